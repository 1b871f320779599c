//! The copy-on-write B-tree.
//!
//! One block format and one algorithm for every tree of a volume (`spec/02 §3`). Blocks on the device hold an array of
//! items linked by an in-block AVL tree, and leaves a hash table of their items; both exist for the original, which
//! works on blocks in place. Here:
//!
//! 1. A clean block is checked completely when it is first used and indexed by key order; look-ups are binary searches.
//! 2. A dirty block is a decoded, sorted node. It is encoded when it is written: items in key order, a perfectly
//!    balanced AVL tree, compact values, a rebuilt hash table, zeroed padding. So there is no compaction and no
//!    incremental rebalancing, and what is written is always the canonical form.
//! 3. A tree has one writer, which holds the [`BtreeRoot`], and any number of readers of stable roots.
//! 4. Modifying walks prepare parents on the way down (split when full, joined when low), so nothing propagates upwards
//!    and an error leaves a valid tree.
//! 5. Empty trees have height 0. An empty leaf is accepted when read, and never left behind.
//!
//! The tree does not know what items mean; "delta" keys, whose values are added, are told apart by a function.

use crate::block::{BlockStore, Cow, DirtySet};
use crate::error::Result;
use crate::format::layout::BtreeRoot;
use crate::format::{Key, KeyRange, MetaBlock};

#[cfg(test)]
mod tests;

/// Greatest length of a value.
pub(crate) const MAX_VALUE_BYTES: usize = 896;

/// Item flag: the key is deleted (log trees only, `spec/02 §3.11`).
pub(crate) const ITEM_DELETION: u8 = 1;

/// Where blocks are read: the store, and the dirty blocks of the transaction if the reader is part of one.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    /// Clean blocks.
    pub(crate) store: &'a BlockStore,
    /// Dirty blocks that are seen first.
    pub(crate) dirty: Option<&'a DirtySet>,
}

impl<'a> Reader<'a> {
    /// A reader of stable roots.
    pub(crate) fn new(store: &'a BlockStore) -> Reader<'a> {
        Reader { store, dirty: None }
    }

    /// A reader that sees a transaction's changes.
    pub(crate) fn with_dirty(store: &'a BlockStore, dirty: &'a DirtySet) -> Reader<'a> {
        Reader { store, dirty: Some(dirty) }
    }
}

/// The value of an item: points into a cached block where possible.
#[derive(Clone, Debug)]
pub(crate) struct ValueBytes(std::sync::Arc<[u8]>);

impl std::ops::Deref for ValueBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// An item without its key.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Version (`spec/02 §3.11`).
    pub(crate) seq: u64,
    /// [`ITEM_DELETION`] or 0.
    pub(crate) flags: u8,
    /// Value.
    pub(crate) value: ValueBytes,
}

/// The item with this key.
pub(crate) fn lookup(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<Option<Item>> {
    let _ = (reader.store, reader.dirty, root, key);
    todo!()
}

/// The first item at or after `key`.
pub(crate) fn next(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<Option<(Key, Item)>> {
    let _ = (reader, root, key);
    todo!()
}

/// The last item at or before `key`.
pub(crate) fn prev(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<Option<(Key, Item)>> {
    let _ = (reader, root, key);
    todo!()
}

/// Called for each item: key, seq, flags, value.
pub(crate) type VisitItem<'a> = dyn FnMut(&Key, u64, u8, &[u8]) -> Result<()> + 'a;

/// Visits the items of the leaf that covers `key`, in order, inside `range`; `range` is narrowed to what that leaf covers,
/// so nothing else of the tree lies in it. An empty tree has no items and leaves the range as it is.
pub(crate) fn read_leaf(
    reader: &Reader,
    root: &BtreeRoot,
    key: &Key,
    range: &mut KeyRange,
    visit: &mut VisitItem,
) -> Result<()> {
    let _ = (reader, root, key, range, visit);
    todo!()
}

/// Adds an item with seq 0. EEXIST if the key is there, EINVAL if the value is too long.
pub(crate) fn insert(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8]) -> Result<()> {
    let _ = (cow, root, key, value);
    todo!()
}

/// Replaces a value, keeping seq and flags. ENOENT if the key is not there.
pub(crate) fn update(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8]) -> Result<()> {
    let _ = (cow, root, key, value);
    todo!()
}

/// [`insert`] or [`update`].
pub(crate) fn force(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, value: &[u8]) -> Result<()> {
    let _ = (cow, root, key, value);
    todo!()
}

/// Removes an item. ENOENT if the key is not there.
pub(crate) fn delete(cow: &mut Cow, root: &mut BtreeRoot, key: &Key) -> Result<()> {
    let _ = (cow, root, key);
    todo!()
}

/// Makes the path to an existing item dirty, so that an update of it with a value of the same length cannot fail. ENOENT if the key is not there.
pub(crate) fn dirty(cow: &mut Cow, root: &mut BtreeRoot, key: &Key) -> Result<()> {
    let _ = (cow, root, key);
    todo!()
}

/// An item to be stored by [`insert_list`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogItem<'a> {
    /// Key; strictly ascending in a list.
    pub(crate) key: Key,
    /// Version.
    pub(crate) seq: u64,
    /// [`ITEM_DELETION`] or 0.
    pub(crate) flags: u8,
    /// Value, empty for deletions.
    pub(crate) value: &'a [u8],
}

/// Stores many items at once: new ones are inserted, existing ones overwritten with value, seq and flags; where `delta` says
/// that a key's values are sums, the value is added to the existing one (a zero sum stays as an item). Keys must ascend
/// strictly. An error can leave a first part stored.
pub(crate) fn insert_list<'i>(
    cow: &mut Cow,
    root: &mut BtreeRoot,
    items: impl IntoIterator<Item = LogItem<'i>>,
    delta: fn(&Key) -> bool,
) -> Result<()> {
    let _ = (cow, root, delta);
    let _ = items.into_iter();
    todo!()
}

/// What to merge and within which limits (`spec/02 §3.10`).
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
    let _ = (cow, root, args);
    todo!()
}

/// The range of keys below the level-1 block that covers `key`; everything if the height is at most 2.
pub(crate) fn parent_range(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<KeyRange> {
    let _ = (reader, root, key);
    todo!()
}

/// A root (height 2) of the level-1 block that covers `key`; the whole tree if the height is at most 2.
pub(crate) fn get_parent(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<BtreeRoot> {
    let _ = (reader, root, key);
    todo!()
}

/// Replaces the level-1 block that covers `key` by `new`; EINVAL if `new` has not height 2, unless the whole tree is replaced.
/// Neither the old nor the new blocks are accounted for.
pub(crate) fn set_parent(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, new: &BtreeRoot) -> Result<()> {
    let _ = (cow, root, key, new);
    todo!()
}

/// Splits and joins the blocks on the path of `key` so that each has room for more and is not too empty.
pub(crate) fn rebalance(cow: &mut Cow, root: &mut BtreeRoot, key: &Key) -> Result<()> {
    let _ = (cow, root, key);
    todo!()
}

/// Frees a whole tree step by step without changing or (for leaves) reading it (`spec/02 §3.13`). `key` is the persistent
/// state: zeros at first, ones when finished. At most `budget` blocks are freed by a call; it must be at least 21.
/// Returns how many were.
pub(crate) fn free_blocks(
    free: &mut dyn FnMut(MetaBlock) -> Result<()>,
    reader: &Reader,
    root: &BtreeRoot,
    key: &mut Key,
    budget: u64,
) -> Result<u64> {
    let _ = (free, reader, root, key, budget);
    todo!()
}
