//! Merging log trees into the main tree with bounded memory (`spec/02 §3.10`, `spec/03 §11.4`).
//!
//! A window of keys is collected from all inputs, newest version first winning and deltas added, and then stored in the
//! destination leaf by leaf. However many inputs there are, one leaf of them is looked at at a time and the window holds
//! a fixed number of bytes.
//!
//! The destination never stores deletions, and (unlike in the original) never a sum of zero.

use super::bulk::{LogItem, Rules, add_delta, apply_run, is_null_delta};
use super::node::{LOW_BYTES, REF_BYTES, item_bytes};
use super::read::{Reader, read_leaf};
use super::write::{EMPTY_ROOT, Place, Prepare, descend, descend_or_create, make_room, node};
use super::{ITEM_DELETION, MAX_VALUE_BYTES};
use crate::block::{BLOCK_BYTES, BlockStore, Cow};
use crate::error::{Error, Result};
use crate::format::layout::BtreeRoot;
use crate::format::{Key, KeyRange};

/// What to merge and within which limits.
pub(crate) struct MergeArgs<'a> {
    /// Trees to merge, in the order in which equal versions win.
    pub(crate) inputs: &'a [BtreeRoot],
    /// Keys to merge.
    pub(crate) range: KeyRange,
    /// The destination root is a level-1 block that is spliced back: it must stay one block with the same bounds.
    pub(crate) subtree: bool,
    /// Bytes of items held in memory at a time (the original: 2 MiB).
    pub(crate) window_bytes: usize,
    /// Stop when this many bytes are dirty (the original: 64 MiB).
    pub(crate) dirty_limit: u64,
    /// Stop when the allocator is low on this many blocks (the original: 10).
    pub(crate) low_blocks: u64,
    /// Keys whose values are added.
    pub(crate) delta: fn(&Key) -> bool,
}

/// How a merge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeEnd {
    /// The whole range is merged.
    Done,
    /// A limit was reached: everything below this key is merged.
    Remain(Key),
}

/// Merges trees into one. Any error means: discard the whole transaction.
pub(crate) fn merge(cow: &mut Cow, root: &mut BtreeRoot, args: &MergeArgs) -> Result<MergeEnd> {
    if args.subtree && root.height != 2 {
        return Err(Error::invalid(format!("a subtree of height {}", root.height)));
    }
    let mut start = args.range.start;
    loop {
        let window = collect(cow.store, args, start)?;
        if let Some(key) = apply(cow, root, args, &window)? {
            return Ok(MergeEnd::Remain(key));
        }
        if window.end >= args.range.end {
            return Ok(MergeEnd::Done);
        }
        start = window.end.next();
    }
}

struct WindowItem {
    key: Key,
    seq: u64,
    flags: u8,
    value: std::ops::Range<usize>,
}

/// All items of all inputs up to `end`, combined.
struct Window {
    end: Key,
    items: Vec<WindowItem>,
    /// Values of the items (and of some that were dropped).
    arena: Vec<u8>,
    /// Space that the items would take in leaves.
    bytes: usize,
}

impl Window {
    fn item(&self, i: &WindowItem) -> LogItem<'_> {
        LogItem { key: i.key, seq: i.seq, flags: i.flags, value: &self.arena[i.value.clone()] }
    }

    /// Drops items from the high end until at most `max` bytes (or one item) are left, and ends the window below them.
    fn trim(&mut self, max: usize) {
        while self.bytes > max && self.items.len() > 1 {
            if let Some(i) = self.items.pop() {
                self.bytes -= item_bytes(i.value.len());
                self.end = i.key.prev();
            }
        }
    }

    /// Drops items beyond the end.
    fn cut(&mut self) {
        let keep = self.items.partition_point(|i| i.key <= self.end);
        self.items.truncate(keep);
    }
}

fn collect(store: &BlockStore, args: &MergeArgs, start: Key) -> Result<Window> {
    let reader = Reader::new(store);
    let mut window = Window { end: args.range.end, items: Vec::new(), arena: Vec::new(), bytes: 0 };
    let max_leaves = (args.window_bytes / BLOCK_BYTES).max(1);
    for input in args.inputs {
        let mut new = Vec::new();
        let mut at = start;
        let mut leaves = 0;
        loop {
            let mut range = KeyRange::new(at, window.end);
            let arena = &mut window.arena;
            read_leaf(&reader, input, &at, &mut range, &mut |key, seq, flags, value| {
                let from = arena.len();
                arena.extend_from_slice(value);
                new.push(WindowItem { key: *key, seq, flags, value: from..arena.len() });
                Ok(())
            })?;
            leaves += 1;
            if range.end >= window.end {
                break;
            }
            if leaves >= max_leaves {
                window.end = range.end;
                window.cut();
                break;
            }
            at = range.end.next();
        }
        combine(&mut window, new, args.delta)?;
        window.trim(args.window_bytes);
        repack(&mut window);
    }
    Ok(window)
}

/// Adds the items of one more input to the window. For plain keys the greater seq wins, and the earlier input on a tie; deltas
/// are added and vanish when they cancel.
fn combine(window: &mut Window, new: Vec<WindowItem>, delta: fn(&Key) -> bool) -> Result<()> {
    let mut out = Vec::with_capacity(window.items.len() + new.len());
    let mut old = std::mem::take(&mut window.items).into_iter().peekable();
    for item in new {
        while let Some(o) = old.next_if(|o| o.key < item.key) {
            out.push(o);
        }
        let Some(mut o) = old.next_if(|o| o.key == item.key) else {
            out.push(item);
            continue;
        };
        let plain = (o.flags | item.flags) & ITEM_DELETION != 0;
        if delta(&item.key) && !plain {
            let sum = add_delta(&item.key, &window.arena[o.value.clone()], &window.arena[item.value.clone()])?;
            if !is_null_delta(&sum) {
                window.arena[o.value.clone()].copy_from_slice(&sum);
                o.seq = o.seq.max(item.seq);
                out.push(o);
            }
        } else if item.seq > o.seq {
            out.push(item);
        } else {
            out.push(o);
        }
    }
    out.extend(old);
    window.bytes = out.iter().map(|i| item_bytes(i.value.len())).sum();
    window.items = out;
    Ok(())
}

/// Gives up values of dropped items when they are more than those that are left.
fn repack(window: &mut Window) {
    if window.arena.len() < 2 * window.bytes + BLOCK_BYTES {
        return;
    }
    let mut arena = Vec::with_capacity(window.bytes);
    for i in &mut window.items {
        let from = arena.len();
        arena.extend_from_slice(&window.arena[i.value.clone()]);
        i.value = from..arena.len();
    }
    window.arena = arena;
}

/// Stores a window. Gives the key to go on from if a limit is reached.
fn apply(cow: &mut Cow, root: &mut BtreeRoot, args: &MergeArgs, window: &Window) -> Result<Option<Key>> {
    let rules = Rules { delta: args.delta, main: true };
    let mut items = window.items.iter().map(|i| window.item(i)).peekable();
    while let Some(first) = items.peek() {
        let key = first.key;
        if root.height == 0 && (first.is_deletion() || ((args.delta)(&key) && is_null_delta(first.value))) {
            items.next();
            continue;
        }
        if first.value.len() > MAX_VALUE_BYTES {
            return Err(Error::corrupt(format!("item {key}"), "its value is too long"));
        }
        if cow.dirty.bytes() >= args.dirty_limit
            || cow.alloc.low(args.low_blocks)
            || (args.subtree && !subtree_is_fit(cow, root)?)
        {
            return Ok(Some(key));
        }
        let prepare = Prepare::NOTHING.within(args.subtree);
        let place = descend_or_create(cow, root, &key, prepare)?;
        let leaf = node(cow, &place.r)?;
        let before = leaf.total();
        let full_at = apply_run(leaf, &mut items, &place.range.end, &rules)?;
        let after = leaf.total();
        match (full_at, items.peek()) {
            (Some(rank), Some(next)) => make_room(cow, root, &next.key, rank, args.subtree)?,
            _ if after < before && after < LOW_BYTES => settle(cow, root, &place, args.subtree)?,
            _ => {}
        }
    }
    Ok(None)
}

/// A level-1 block that is to stay one must neither run out of children nor of room for one more (`spec/02 §3.9`).
fn subtree_is_fit(cow: &Cow, root: &BtreeRoot) -> Result<bool> {
    let held = Reader::with_dirty(cow.store, cow.dirty).node(&root.block_ref, 1)?;
    let total = held.node()?.total();
    Ok(total >= LOW_BYTES && total + item_bytes(REF_BYTES) <= BLOCK_BYTES - super::node::ITEMS_AT)
}

/// Joins a leaf that has lost items, or frees it if it was the last of the tree.
fn settle(cow: &mut Cow, root: &mut BtreeRoot, place: &Place, subtree: bool) -> Result<()> {
    let empty = node(cow, &place.r)?.len() == 0;
    if place.parent.is_some() {
        descend(cow, root, &place.range.end, 0, Prepare::JOIN.within(subtree))?;
    } else if empty {
        cow.free_block(&place.r)?;
        *root = EMPTY_ROOT;
    }
    Ok(())
}
