//! A B-tree block, decoded and verified in every detail (`spec/01 §8`, `§21`).

use std::ops::Range;

use zerocopy::FromBytes;

use crate::error::{Error, Result};
use crate::format::consts::*;
use crate::format::layout::{BlockRef, BtreeBlockHead, BtreeItem};
use crate::format::{Key, KeyRange, leaf_hash_bucket};

/// One item of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeItem {
    /// Its key.
    pub(crate) key: Key,
    /// Item sequence number.
    pub(crate) seq: u64,
    /// Item flags.
    pub(crate) flags: u8,
    at: usize,
    len: usize,
}

/// A verified block with its items in key order.
pub(crate) struct Node {
    block: Vec<u8>,
    level: u8,
    items: Vec<NodeItem>,
}

impl Node {
    /// Verifies and decodes a block that should be at `level`, with all keys inside `range`. The last child of a parent
    /// must end where the range ends, unless `open_end`.
    pub(crate) fn decode(block: Vec<u8>, blkno: u64, level: u8, range: &KeyRange, open_end: bool) -> Result<Node> {
        let items = decode(&block, level, range, open_end)
            .map_err(|why| Error::corrupt(format!("B-tree block {blkno} at level {level}"), why))?;
        Ok(Node { block, level, items })
    }

    /// Level, 0 for a leaf.
    pub(crate) fn level(&self) -> u8 {
        self.level
    }

    /// The items in key order.
    pub(crate) fn items(&self) -> &[NodeItem] {
        &self.items
    }

    /// The value of an item.
    pub(crate) fn value(&self, item: &NodeItem) -> &[u8] {
        &self.block[item.at..item.at + item.len]
    }

    /// The child reference of an item of a parent.
    pub(crate) fn child(&self, item: &NodeItem) -> BlockRef {
        BlockRef::read_from_bytes(self.value(item)).expect("values of parents were verified to be references")
    }

    /// The range of keys that the child of item `i` may hold, when the block itself may hold `range`.
    pub(crate) fn child_range(&self, i: usize, range: &KeyRange) -> KeyRange {
        let start = if i == 0 { range.start } else { self.items[i - 1].key.next() };
        KeyRange::new(start, self.items[i].key)
    }
}

type Checked<T> = std::result::Result<T, String>;

fn decode(block: &[u8], level: u8, range: &KeyRange, open_end: bool) -> Checked<Vec<NodeItem>> {
    let (head, _) = BtreeBlockHead::read_from_prefix(block).map_err(|_| "too short")?;
    if head.level != level {
        return Err(format!("it says level {}", head.level));
    }
    let end = if level == 0 { BTREE_LEAF_END } else { BLOCK_BYTES };
    let nr = usize::from(head.nr_items.get());
    let gap_start = BTREE_HEAD_BYTES + nr * BTREE_ITEM_BYTES;
    let gap_end = gap_start + usize::from(head.mid_free_len.get());
    if gap_start > end || gap_end > end {
        return Err(format!("{nr} items and a gap of {} bytes do not fit", head.mid_free_len));
    }
    let slots = (0..nr).map(|i| slot(block, i, gap_end, end)).collect::<Checked<Vec<_>>>()?;
    check_values(&slots, level, usize::from(head.total_item_bytes.get()))?;
    let order = walk_avl(&slots, head.item_root.get())?;
    let items: Vec<NodeItem> = order.iter().map(|&i| slots[i].item).collect();
    check_keys(&items, level, range, open_end)?;
    if level == 0 {
        check_hash_table(block, &slots)?;
    }
    Ok(items)
}

struct Slot {
    raw: BtreeItem,
    item: NodeItem,
}

fn slot(block: &[u8], i: usize, gap_end: usize, end: usize) -> Checked<Slot> {
    let at = BTREE_HEAD_BYTES + i * BTREE_ITEM_BYTES;
    let (raw, _) = BtreeItem::read_from_prefix(&block[at..]).map_err(|_| "item array is cut off")?;
    let key = raw.key.to_key();
    if raw.key.pad != [0; 5] {
        return Err(format!("item {key} has bytes in its key padding"));
    }
    let (val_off, val_len) = (usize::from(raw.val_off.get()), usize::from(raw.val_len.get()));
    let fits = match val_len {
        0 => true,
        len => {
            len <= BTREE_MAX_VALUE
                && val_off % BTREE_VALUE_ALIGN == 0
                && val_off >= gap_end
                && val_off + len.next_multiple_of(BTREE_VALUE_ALIGN) <= end
        }
    };
    if !fits {
        return Err(format!("item {key} has its value of {val_len} bytes at {val_off}"));
    }
    let at = if val_len == 0 { 0 } else { val_off };
    Ok(Slot { raw, item: NodeItem { key, seq: raw.seq.get(), flags: raw.flags, at, len: val_len } })
}

fn check_values(slots: &[Slot], level: u8, total_item_bytes: usize) -> Checked<()> {
    let mut values: Vec<Range<usize>> = slots
        .iter()
        .filter(|s| s.item.len > 0)
        .map(|s| s.item.at..s.item.at + s.item.len.next_multiple_of(BTREE_VALUE_ALIGN))
        .collect();
    values.sort_unstable_by_key(|r| r.start);
    if let Some(pair) = values.windows(2).find(|p| p[0].end > p[1].start) {
        return Err(format!("two values overlap at byte {}", pair[1].start));
    }
    let bytes = slots.len() * BTREE_ITEM_BYTES + values.iter().map(|r| r.len()).sum::<usize>();
    // The sum is stored in 16 bits; a full parent comes close to it but cannot exceed it.
    if bytes != total_item_bytes {
        return Err(format!("items take {bytes} bytes, the block says {total_item_bytes}"));
    }
    for s in slots {
        if level > 0 && s.item.len != size_of::<BlockRef>() {
            return Err(format!("child {} has a value of {} bytes", s.item.key, s.item.len));
        }
        if s.item.flags & ITEM_FLAG_DELETION != 0 && s.item.len != 0 {
            return Err(format!("deletion item {} has a value", s.item.key));
        }
    }
    Ok(())
}

/// Slot of the item that an AVL link names.
fn link(offset: u16, nr: usize) -> Checked<Option<usize>> {
    let first = (BTREE_HEAD_BYTES - 32) as u16;
    match offset {
        0 => Ok(None),
        o if o >= first && ((o - first) as usize).is_multiple_of(BTREE_ITEM_BYTES) => {
            let i = (o - first) as usize / BTREE_ITEM_BYTES;
            if i < nr { Ok(Some(i)) } else { Err(format!("AVL link to item {i} of {nr}")) }
        }
        o => Err(format!("AVL link to byte {o}")),
    }
}

/// Slots in AVL order, with all links, heights and balances checked. Every slot is visited exactly once, which proves
/// that there is no cycle.
fn walk_avl(slots: &[Slot], root: u16) -> Checked<Vec<usize>> {
    let nr = slots.len();
    let mut order = Vec::with_capacity(nr);
    let mut seen = vec![false; nr];
    let mut stack: Vec<usize> = Vec::new();
    let mut at = link(root, nr)?;
    if let Some(i) = at
        && slots[i].raw.node.parent.get() != 0
    {
        return Err("the AVL root has a parent".into());
    }
    while at.is_some() || !stack.is_empty() {
        while let Some(i) = at {
            if std::mem::replace(&mut seen[i], true) {
                return Err("the AVL tree has a cycle".into());
            }
            stack.push(i);
            let node = &slots[i].raw.node;
            for child in [node.left.get(), node.right.get()] {
                if let Some(c) = link(child, nr)?
                    && link(slots[c].raw.node.parent.get(), nr)? != Some(i)
                {
                    return Err(format!("AVL parent of item {} is wrong", slots[c].item.key));
                }
            }
            at = link(node.left.get(), nr)?;
        }
        let i = stack.pop().expect("the loop runs only while there is something to visit");
        order.push(i);
        at = link(slots[i].raw.node.right.get(), nr)?;
    }
    if order.len() != nr {
        return Err(format!("the AVL tree has {} of {nr} items", order.len()));
    }
    // A new volume's leaves have two items, a wrong height in the root and nobody who corrects it (spec/01 §8.2).
    if nr > 2 {
        check_heights(slots, root)?;
    }
    Ok(order)
}

fn check_heights(slots: &[Slot], root: u16) -> Checked<()> {
    let nr = slots.len();
    let height =
        |offset: u16| -> Checked<i32> { Ok(link(offset, nr)?.map_or(0, |i| i32::from(slots[i].raw.node.height))) };
    for s in slots {
        let (left, right) = (height(s.raw.node.left.get())?, height(s.raw.node.right.get())?);
        if i32::from(s.raw.node.height) != 1 + left.max(right) || (left - right).abs() > 1 {
            return Err(format!("AVL node of {} has height {} over {left} and {right}", s.item.key, s.raw.node.height));
        }
    }
    height(root).map(drop)
}

fn check_keys(items: &[NodeItem], level: u8, range: &KeyRange, open_end: bool) -> Checked<()> {
    if let Some(pair) = items.windows(2).find(|p| p[0].key >= p[1].key) {
        return Err(format!("key {} is followed by {}", pair[0].key, pair[1].key));
    }
    if let Some(out) = items.iter().find(|i| !range.contains(&i.key)) {
        return Err(format!("key {} is outside of {} to {}", out.key, range.start, range.end));
    }
    if level > 0 {
        match items.last() {
            None => return Err("a parent without children".into()),
            Some(last) if last.key != range.end && !open_end => {
                return Err(format!("the last child ends at {}, not at {}", last.key, range.end));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_hash_table(block: &[u8], slots: &[Slot]) -> Checked<()> {
    let bucket = |i: usize| {
        let at = BTREE_LEAF_END + i * 2;
        usize::from(u16::from_le_bytes([block[at], block[at + 1]]))
    };
    let used = (0..BTREE_HASH_BUCKETS).filter(|&i| bucket(i) != 0).count();
    if used != slots.len() {
        return Err(format!("the hash table has {used} entries for {} items", slots.len()));
    }
    for (i, s) in slots.iter().enumerate() {
        let want = BTREE_HEAD_BYTES + i * BTREE_ITEM_BYTES;
        let home = leaf_hash_bucket(&s.raw.key);
        let chain = (0..BTREE_HASH_BUCKETS).map(|n| bucket((home + n) % BTREE_HASH_BUCKETS));
        if !chain.take_while(|&b| b != 0).any(|b| b == want) {
            return Err(format!("item {} cannot be found through the hash table", s.item.key));
        }
    }
    Ok(())
}
