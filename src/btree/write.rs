//! Changing: walks that dirty their path, splits and joins, and the operations on single items (`spec/02 §3.6`-`§3.9`).
//!
//! Shape is free as long as the invariants hold (`spec/02 §3.5`), so two things differ from the original: parents are
//! prepared for a split only when the leaf really lacks room, and ascending runs leave full blocks behind them.

use super::MAX_VALUE_BYTES;
use super::image::MAX_HEIGHT;
use super::node::{LOW_BYTES, Node, REF_BYTES};
use super::read::check_root;
use crate::block::Cow;
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, KeyRange, MetaBlock};

/// The empty tree.
pub(super) const EMPTY_ROOT: BtreeRoot = BtreeRoot { block_ref: NULL_REF, height: 0, pad: [0; 7] };

const NULL_REF: BlockRef =
    BlockRef { blkno: zerocopy::little_endian::U64::ZERO, seq: zerocopy::little_endian::U64::ZERO };

/// Restarts of one walk before the tree is called corrupt. Each split or join is one, and a level needs few.
const MAX_RESTARTS: usize = 64 * MAX_HEIGHT as usize;

/// What a walk does to the blocks on its path besides making them dirty.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prepare {
    /// Split full parents, so that a child can be split.
    pub(super) split: bool,
    /// Join low blocks with a sibling.
    pub(super) join: bool,
    /// The root is a level-1 block that must stay one (`spec/02 §3.9`).
    pub(super) subtree: bool,
}

impl Prepare {
    pub(super) const NOTHING: Prepare = Prepare { split: false, join: false, subtree: false };
    pub(super) const SPLIT: Prepare = Prepare { split: true, join: false, subtree: false };
    pub(super) const JOIN: Prepare = Prepare { split: false, join: true, subtree: false };

    pub(super) fn within(self, subtree: bool) -> Prepare {
        Prepare { subtree, ..self }
    }
}

/// Where the parent of a block keeps its reference.
pub(super) type InParent = Option<(BlockRef, usize)>;

/// A dirty block on a path.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) r: BlockRef,
    pub(super) parent: InParent,
    /// Exactly the keys that the block can hold.
    pub(super) range: KeyRange,
}

fn corrupt(r: &BlockRef, detail: impl Into<String>) -> Error {
    Error::corrupt(format!("btree block {}", r.blkno), detail)
}

/// A node that is known to be dirty.
pub(super) fn node<'c>(cow: &'c mut Cow, r: &BlockRef) -> Result<&'c mut Node> {
    cow.dirty.get_mut(r)?.ok_or_else(|| corrupt(r, "not dirty"))
}

/// Makes the node dirty, lets its parent (or the root) know where it went, and gives it.
fn dirty_node<'c>(
    cow: &'c mut Cow,
    root: &mut BtreeRoot,
    r: &mut BlockRef,
    parent: InParent,
    level: u8,
) -> Result<&'c mut Node> {
    if !cow.dirty.contains(MetaBlock(r.blkno.get())) {
        cow.content_mut::<Node>(r)?;
        match parent {
            None => root.block_ref = *r,
            Some((parent, rank)) => node(cow, &parent)?.set_child(rank, r),
        }
    }
    let node = node(cow, r)?;
    if node.level == level { Ok(node) } else { Err(corrupt(r, format!("level {} instead of {level}", node.level))) }
}

/// Walks down to the block of `to_level` (or to the root, if that is lower) that covers the key. Everything on the path is
/// dirty afterwards. ENOENT for an empty tree.
pub(super) fn descend(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, to_level: u8, prepare: Prepare) -> Result<Place> {
    check_root(root)?;
    for _ in 0..MAX_RESTARTS {
        if root.height == 0 {
            return fail(Errno::ENOENT);
        }
        if let Some(place) = descend_once(cow, root, key, to_level, prepare)? {
            return Ok(place);
        }
    }
    Err(corrupt(&root.block_ref, "splits and joins do not come to an end"))
}

/// A change of shape that a walk needs before it can go on.
enum Reshape {
    /// Split before this rank.
    Split(usize),
    /// Give up a root with one child.
    Collapse,
    /// Join with a sibling below this parent; the rank is the block's own.
    Join(BlockRef, usize),
}

fn reshape(current: &Node, place: &Place, level: u8, prepare: Prepare) -> Option<Reshape> {
    let fixed = prepare.subtree && place.parent.is_none();
    if level > 0 && !fixed {
        if prepare.split && !current.has_room(REF_BYTES) {
            return Some(Reshape::Split(current.middle()));
        }
        if prepare.join && place.parent.is_none() && current.len() == 1 {
            return Some(Reshape::Collapse);
        }
    }
    match place.parent {
        Some((parent, rank)) if prepare.join && current.total() < LOW_BYTES => Some(Reshape::Join(parent, rank)),
        _ => None,
    }
}

/// One attempt; `None` if the shape changed and the walk must start again.
fn descend_once(
    cow: &mut Cow,
    root: &mut BtreeRoot,
    key: &Key,
    to_level: u8,
    prepare: Prepare,
) -> Result<Option<Place>> {
    let mut place = Place { r: root.block_ref, parent: None, range: KeyRange::ALL };
    let mut level = root.height - 1;
    loop {
        let current = dirty_node(cow, root, &mut place.r, place.parent, level)?;
        if let (Some(first), Some(last)) = (current.first_key(), current.last_key())
            && (first < place.range.start || last > place.range.end)
        {
            return Err(corrupt(&place.r, format!("keys outside {} to {}", place.range.start, place.range.end)));
        }
        if let Some(change) = reshape(current, &place, level, prepare) {
            match change {
                Reshape::Split(at) => split(cow, root, &place, at, false)?,
                Reshape::Collapse => collapse_root(cow, root)?,
                Reshape::Join(parent, rank) => join(cow, root, &place.r, parent, rank, level, prepare)?,
            }
            return Ok(None);
        }
        if level <= to_level {
            return Ok(Some(place));
        }
        let rank = current.search(key).unwrap_or_else(|rank| rank);
        if rank == current.len() {
            return Err(corrupt(&place.r, format!("no child covers key {key}")));
        }
        if rank > 0 {
            place.range.start = current.head(rank - 1).key.next();
        }
        place.range.end = current.head(rank).key;
        let child = current.child(rank);
        place.parent = Some((place.r, rank));
        place.r = child;
        level -= 1;
    }
}

/// Moves the items before `at` to a new left sibling. `wide`: keys between the two halves belong to the left one. The parent
/// has room; a root gets a parent first.
pub(super) fn split(cow: &mut Cow, root: &mut BtreeRoot, place: &Place, at: usize, wide: bool) -> Result<()> {
    let mut left_ref = NULL_REF;
    cow.content_mut::<Node>(&mut left_ref)?;
    let parent = match place.parent {
        Some(parent) => Ok(parent),
        None => grow_root(cow, root),
    };
    let (parent, rank) = match parent {
        Ok(parent) => parent,
        Err(e) => {
            cow.cancel_block(&left_ref);
            return Err(e);
        }
    };
    let right = node(cow, &place.r)?;
    let left = right.split_left(at);
    let separator = if wide { right.first_key().map(Key::prev) } else { left.last_key() };
    let separator = separator.expect("both halves of a split have items");
    *node(cow, &left_ref)? = left;
    node(cow, &parent)?.insert_child(rank, separator, &left_ref);
    Ok(())
}

/// Puts a parent with one child above the root.
fn grow_root(cow: &mut Cow, root: &mut BtreeRoot) -> Result<(BlockRef, usize)> {
    if root.height >= MAX_HEIGHT {
        return Err(corrupt(&root.block_ref, "the tree would become too high"));
    }
    let mut r = NULL_REF;
    let parent = cow.content_mut::<Node>(&mut r)?;
    *parent = Node::empty_parent(root.height);
    parent.insert_child(0, Key::ONES, &root.block_ref);
    root.block_ref = r;
    root.height += 1;
    Ok((r, 0))
}

/// Makes the only child of the root the root.
fn collapse_root(cow: &mut Cow, root: &mut BtreeRoot) -> Result<()> {
    let old = root.block_ref;
    let child = node(cow, &old)?.child(0);
    cow.free_block(&old)?;
    root.block_ref = child;
    root.height -= 1;
    Ok(())
}

/// Moves items from a sibling into a block that has few, and forgets the sibling if it is empty then (`spec/02 §3.8`).
fn join(
    cow: &mut Cow,
    root: &mut BtreeRoot,
    r: &BlockRef,
    parent: BlockRef,
    rank: usize,
    level: u8,
    prepare: Prepare,
) -> Result<()> {
    let siblings = node(cow, &parent)?;
    let left = rank > 0;
    let sibling_rank = if left { rank - 1 } else { 1 };
    if sibling_rank >= siblings.len() {
        return Err(corrupt(&parent, "an only child that is not the root's"));
    }
    let mut sibling_ref = siblings.child(sibling_rank);
    dirty_node(cow, root, &mut sibling_ref, Some((parent, sibling_rank)), level)?;
    let mut sibling = std::mem::take(node(cow, &sibling_ref)?);
    let gone = sibling.total() <= super::node::JOIN_WHOLE_BYTES;
    if gone && let Err(e) = cow.free_block(&sibling_ref) {
        *node(cow, &sibling_ref)? = sibling;
        return Err(e);
    }
    let own = node(cow, r)?;
    own.take_from(&mut sibling, left);
    let (own_last, sibling_last) = (own.last_key(), sibling.last_key());
    let siblings = node(cow, &parent)?;
    match (gone, left) {
        (true, true) => siblings.remove(sibling_rank),
        (true, false) => {
            // The block takes over the sibling's upper bound, which may be that of the whole parent.
            let bound = siblings.head(sibling_rank).key;
            siblings.remove(sibling_rank);
            siblings.set_key(rank, bound);
        }
        (false, true) => siblings.set_key(sibling_rank, sibling_last.expect("it kept items")),
        (false, false) => siblings.set_key(rank, own_last.expect("it got items")),
    }
    let only_child = siblings.len() == 1;
    if !gone {
        *node(cow, &sibling_ref)? = sibling;
    } else if only_child && parent == root.block_ref && !prepare.subtree {
        collapse_root(cow, root)?;
    }
    Ok(())
}

/// Walks to the leaf, making an empty one if the tree is empty.
pub(super) fn descend_or_create(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, prepare: Prepare) -> Result<Place> {
    check_root(root)?;
    if root.height == 0 {
        let mut r = NULL_REF;
        cow.content_mut::<Node>(&mut r)?;
        *root = BtreeRoot { block_ref: r, height: 1, pad: [0; 7] };
    }
    descend(cow, root, key, 0, prepare)
}

/// Splits the leaf of the key so that there is room in front of `rank`, the place of the next item.
pub(super) fn make_room(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, rank: usize, subtree: bool) -> Result<()> {
    let place = descend(cow, root, key, 0, Prepare::SPLIT.within(subtree))?;
    let leaf = node(cow, &place.r)?;
    if leaf.len() < 2 {
        return Err(corrupt(&place.r, "a full leaf of one item"));
    }
    let (at, wide) = leaf.split_point(rank);
    split(cow, root, &place, at, wide)
}

fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > MAX_VALUE_BYTES { fail(Errno::EINVAL) } else { Ok(()) }
}

/// What to do with a key that is there, or that is not.
#[derive(Clone, Copy, PartialEq)]
enum Want {
    New,
    Old,
    Any,
}

fn store(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8], want: Want) -> Result<()> {
    check_value(value)?;
    loop {
        let place = match want {
            Want::Old => descend(cow, root, key, 0, Prepare::NOTHING)?,
            _ => descend_or_create(cow, root, key, Prepare::NOTHING)?,
        };
        let leaf = node(cow, &place.r)?;
        let full_at = match leaf.search(key) {
            Ok(_) if want == Want::New => return fail(Errno::EEXIST),
            Err(_) if want == Want::Old => return fail(Errno::ENOENT),
            Ok(rank) if leaf.fits_value(rank, value.len()) => {
                leaf.set_value(rank, value);
                return Ok(());
            }
            Err(rank) if leaf.has_room(value.len()) => {
                leaf.insert(rank, *key, 0, 0, value);
                return Ok(());
            }
            Ok(rank) | Err(rank) => rank,
        };
        make_room(cow, root, key, full_at, false)?;
    }
}

/// Adds an item with seq 0. EEXIST if the key is there, EINVAL if the value is too long.
pub(crate) fn insert(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8]) -> Result<()> {
    store(cow, root, key, value, Want::New)
}

/// Replaces a value, keeping seq and flags. ENOENT if the key is not there.
#[cfg(test)]
pub(crate) fn update(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8]) -> Result<()> {
    store(cow, root, key, value, Want::Old)
}

/// [`insert`] or [`update`].
pub(crate) fn force(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8]) -> Result<()> {
    store(cow, root, key, value, Want::Any)
}

/// Removes an item. ENOENT if the key is not there.
pub(crate) fn delete(cow: &mut Cow, root: &mut BtreeRoot, key: &Key) -> Result<()> {
    let place = descend(cow, root, key, 0, Prepare::JOIN)?;
    let leaf = node(cow, &place.r)?;
    let Ok(rank) = leaf.search(key) else { return fail(Errno::ENOENT) };
    if leaf.len() > 1 {
        leaf.remove(rank);
        return Ok(());
    }
    if root.height != 1 {
        return Err(corrupt(&place.r, "a leaf of one item that is not the root"));
    }
    cow.free_block(&place.r)?;
    *root = EMPTY_ROOT;
    Ok(())
}

/// Makes the path to an existing item dirty, so that an update of it with a value of the same length cannot fail. ENOENT if the
/// key is not there.
pub(crate) fn dirty(cow: &mut Cow, root: &mut BtreeRoot, key: &Key) -> Result<()> {
    let place = descend(cow, root, key, 0, Prepare::NOTHING)?;
    match node(cow, &place.r)?.search(key) {
        Ok(_) => Ok(()),
        Err(_) => fail(Errno::ENOENT),
    }
}

/// Splits and joins the blocks on the path of `key` so that each has room for more and none is too empty. An empty tree is
/// left alone.
pub(crate) fn rebalance(cow: &mut Cow, root: &mut BtreeRoot, key: &Key) -> Result<()> {
    check_root(root)?;
    if root.height == 0 {
        return Ok(());
    }
    let prepare = Prepare { split: true, join: true, subtree: false };
    let place = descend(cow, root, key, 0, prepare)?;
    let leaf = node(cow, &place.r)?;
    if leaf.has_room(MAX_VALUE_BYTES) {
        return Ok(());
    }
    let at = leaf.middle();
    split(cow, root, &place, at, false)
}
