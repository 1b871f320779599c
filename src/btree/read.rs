//! Reading: walks from a root to a leaf, look-ups, iteration, whole leaves.

use std::ops::Deref;

use super::image::{CleanNode, MAX_HEIGHT, View, to_ref};
use super::node::Node;
use crate::block::{Block, BlockKind, BlockStore, DirtySet};
use crate::error::{Error, Result};
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, KeyRange};
use crate::sync::{Arc, HashSet};

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

    /// The node that the reference names, of the expected level.
    pub(super) fn node(&self, r: &BlockRef, level: u8) -> Result<Held<'a>> {
        let held = match self.dirty.map(|d| d.get::<Node>(r)).transpose()?.flatten() {
            Some(node) => Held::Dirty(node),
            None => {
                let block = self.store.read(r, BlockKind::Btree)?;
                block.view::<View>()?;
                Held::Clean(block)
            }
        };
        let found = held.node()?.level();
        if found != level {
            let what = format!("btree block {}", r.blkno);
            return Err(Error::corrupt(what, format!("level {found} instead of {level}")));
        }
        Ok(held)
    }
}

/// A node kept alive.
pub(super) enum Held<'a> {
    Clean(Arc<Block>),
    Dirty(&'a Node),
}

impl Held<'_> {
    pub(super) fn node(&self) -> Result<NodeRef<'_>> {
        match self {
            Held::Clean(block) => Ok(NodeRef::Clean(block.view::<View>()?.node(block.bytes()))),
            Held::Dirty(node) => Ok(NodeRef::Dirty(node)),
        }
    }

    /// The item at a rank. Its value shares the cached block.
    pub(super) fn item(&self, rank: usize) -> Result<Item> {
        let node = self.node()?;
        let (seq, flags) = node.version(rank);
        let value = match (self, node) {
            (Held::Clean(block), NodeRef::Clean(node)) => {
                let (off, len) = node.value_at(rank);
                ValueBytes(Bytes::Shared { block: block.clone(), off, len })
            }
            (_, node) => ValueBytes(Bytes::Own(node.value(rank).into())),
        };
        Ok(Item { seq, flags, value })
    }
}

/// A node, clean or dirty, read by rank.
#[derive(Clone, Copy)]
pub(super) enum NodeRef<'a> {
    Clean(CleanNode<'a>),
    Dirty(&'a Node),
}

impl<'a> NodeRef<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            NodeRef::Clean(n) => n.len(),
            NodeRef::Dirty(n) => n.len(),
        }
    }

    pub(super) fn level(&self) -> u8 {
        match self {
            NodeRef::Clean(n) => n.level(),
            NodeRef::Dirty(n) => n.level,
        }
    }

    pub(super) fn total(&self) -> usize {
        match self {
            NodeRef::Clean(n) => n.total(),
            NodeRef::Dirty(n) => n.total(),
        }
    }

    pub(super) fn key(&self, rank: usize) -> Key {
        match self {
            NodeRef::Clean(n) => n.key(rank),
            NodeRef::Dirty(n) => n.head(rank).key,
        }
    }

    pub(super) fn version(&self, rank: usize) -> (u64, u8) {
        match self {
            NodeRef::Clean(n) => n.version(rank),
            NodeRef::Dirty(n) => (n.head(rank).seq, n.head(rank).flags),
        }
    }

    pub(super) fn value(&self, rank: usize) -> &'a [u8] {
        match self {
            NodeRef::Clean(n) => n.value(rank),
            NodeRef::Dirty(n) => n.value(rank),
        }
    }

    pub(super) fn search(&self, key: &Key) -> Result<usize, usize> {
        match self {
            NodeRef::Clean(n) => n.search(key),
            NodeRef::Dirty(n) => n.search(key),
        }
    }

    pub(super) fn child(&self, rank: usize) -> BlockRef {
        to_ref(self.value(rank))
    }

    /// Rank of the child that covers the key.
    pub(super) fn child_rank(&self, key: &Key, r: &BlockRef) -> Result<usize> {
        let rank = self.search(key).unwrap_or_else(|rank| rank);
        if rank == self.len() {
            let what = format!("btree block {}", r.blkno);
            return Err(Error::corrupt(what, format!("no child covers key {key}")));
        }
        Ok(rank)
    }

    /// All keys lie in the range that the parent gives them.
    pub(super) fn check_range(&self, range: &KeyRange, r: &BlockRef) -> Result<()> {
        if self.len() == 0 || (range.start <= self.key(0) && self.key(self.len() - 1) <= range.end) {
            return Ok(());
        }
        let what = format!("btree block {}", r.blkno);
        Err(Error::corrupt(what, format!("keys outside {} to {}", range.start, range.end)))
    }
}

#[derive(Clone)]
enum Bytes {
    Shared { block: Arc<Block>, off: u16, len: u16 },
    Own(Arc<[u8]>),
}

/// The value of an item. It shares the cached block, which it keeps in memory: copy it to keep it for long.
#[derive(Clone)]
pub(crate) struct ValueBytes(Bytes);

impl Deref for ValueBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Shared { block, off, len } => &block.bytes()[*off as usize..*off as usize + *len as usize],
            Bytes::Own(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for ValueBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.deref().fmt(f)
    }
}

/// An item without its key.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Version (`spec/02 §3.11`).
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests look at single items of log trees"))]
    pub(crate) seq: u64,
    /// [`ITEM_DELETION`](super::ITEM_DELETION) or 0.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests look at single items of log trees"))]
    pub(crate) flags: u8,
    /// Value.
    pub(crate) value: ValueBytes,
}

/// Height and reference agree and are within limits.
pub(super) fn check_root(root: &BtreeRoot) -> Result<()> {
    let (height, blkno) = (root.height, root.block_ref.blkno.get());
    if height > MAX_HEIGHT || (height == 0) != (blkno == 0) {
        return Err(Error::corrupt("btree root", format!("height {height} with block {blkno}")));
    }
    Ok(())
}

/// Where a walk ended.
pub(super) struct Walk<'a> {
    pub(super) held: Held<'a>,
    pub(super) block_ref: BlockRef,
    /// Exactly the keys that the block can hold.
    pub(super) range: KeyRange,
    /// Greatest key of what lies before it.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests walk backwards"))]
    pub(super) before: Option<Key>,
    /// Least key of what lies behind it.
    pub(super) after: Option<Key>,
}

/// Walks down to the block of `level` that covers the key. `None` for an empty tree.
pub(super) fn walk<'a>(reader: &Reader<'a>, root: &BtreeRoot, key: &Key, level: u8) -> Result<Option<Walk<'a>>> {
    check_root(root)?;
    if root.height == 0 {
        return Ok(None);
    }
    let mut r = root.block_ref;
    let (mut range, mut before, mut after) = (KeyRange::ALL, None, None);
    let mut current = root.height - 1;
    loop {
        let held = reader.node(&r, current)?;
        let node = held.node()?;
        node.check_range(&range, &r)?;
        if current <= level {
            return Ok(Some(Walk { held, block_ref: r, range, before, after }));
        }
        let rank = node.child_rank(key, &r)?;
        if rank > 0 {
            let last = node.key(rank - 1);
            range.start = last.next();
            before = Some(last);
        }
        range.end = node.key(rank);
        if rank + 1 < node.len() {
            after = Some(range.end.next());
        }
        r = node.child(rank);
        current -= 1;
    }
}

/// The item with this key.
pub(crate) fn lookup(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<Option<Item>> {
    let Some(walk) = walk(reader, root, key, 0)? else { return Ok(None) };
    match walk.held.node()?.search(key) {
        Ok(rank) => walk.held.item(rank).map(Some),
        Err(_) => Ok(None),
    }
}

/// The first item at or after `key`.
pub(crate) fn next(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<Option<(Key, Item)>> {
    let mut key = *key;
    loop {
        let Some(walk) = walk(reader, root, &key, 0)? else { return Ok(None) };
        let node = walk.held.node()?;
        let rank = node.search(&key).unwrap_or_else(|rank| rank);
        if rank < node.len() {
            return Ok(Some((node.key(rank), walk.held.item(rank)?)));
        }
        match walk.after {
            Some(after) => key = after,
            None => return Ok(None),
        }
    }
}

/// The last item at or before `key`.
#[cfg(test)]
pub(crate) fn prev(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<Option<(Key, Item)>> {
    let mut key = *key;
    loop {
        let Some(walk) = walk(reader, root, &key, 0)? else { return Ok(None) };
        let node = walk.held.node()?;
        let rank = node.search(&key).map_or_else(|rank| rank, |rank| rank + 1);
        if rank > 0 {
            return Ok(Some((node.key(rank - 1), walk.held.item(rank - 1)?)));
        }
        match walk.before {
            Some(before) => key = before,
            None => return Ok(None),
        }
    }
}

/// Adds the block numbers of the leaves that cover `keys`, which ascend. Reads no leaf, but the root if that is one.
pub(crate) fn leaves_of(reader: &Reader, root: &BtreeRoot, keys: &[Key], leaves: &mut HashSet<u64>) -> Result<()> {
    let mut keys = keys.iter().peekable();
    while let Some(first) = keys.peek() {
        let Some(walk) = walk(reader, root, first, 1)? else { return Ok(()) };
        let node = walk.held.node()?;
        if node.level() == 0 {
            leaves.insert(walk.block_ref.blkno.get());
            return Ok(());
        }
        while let Some(key) = keys.next_if(|key| **key <= walk.range.end) {
            let rank = node.child_rank(key, &walk.block_ref)?;
            leaves.insert(node.child(rank).blkno.get());
            let end = node.key(rank);
            while keys.next_if(|key| **key <= end).is_some() {}
        }
    }
    Ok(())
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
    let Some(walk) = walk(reader, root, key, 0)? else { return Ok(()) };
    range.start = range.start.max(walk.range.start);
    range.end = range.end.min(walk.range.end);
    let node = walk.held.node()?;
    let first = node.search(&range.start).unwrap_or_else(|rank| rank);
    for rank in first..node.len() {
        let key = node.key(rank);
        if key > range.end {
            break;
        }
        let (seq, flags) = node.version(rank);
        visit(&key, seq, flags, node.value(rank))?;
    }
    Ok(())
}
