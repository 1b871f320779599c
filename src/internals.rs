//! Doors into crate-private rooms for benchmarks and fuzz targets, only with the feature `internals`.
//!
//! Nothing here is part of the interface of the crate: it changes without notice.

#![allow(missing_docs, reason = "not an interface")]

use crate::block::{BlockKind, BlockSource, BlockStore, BlockView, Cow, CowContent, DirtyContent, DirtySet};
use crate::btree::{self, LogItem, Node, Reader, View};
use crate::device::MemDevice;
use crate::error::Result;
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, MetaBlock};
use crate::sync::Arc;

pub mod fuzz;

pub use crate::net::bench as net;
pub use crate::txn::bench::Bench;

/// Ascending numbers, never reused.
struct Numbers(u64);

impl BlockSource for Numbers {
    fn alloc(&mut self) -> Result<MetaBlock> {
        self.0 += 1;
        Ok(MetaBlock(self.0))
    }

    fn free(&mut self, _b: MetaBlock) -> Result<()> {
        Ok(())
    }
}

/// One tree in memory.
pub struct Tree {
    dev: Arc<MemDevice>,
    store: Arc<BlockStore>,
    dirty: DirtySet,
    numbers: Numbers,
    root: BtreeRoot,
}

impl Tree {
    pub fn new(cache_bytes: usize) -> Tree {
        let dev = MemDevice::new(1 << 40);
        let store = BlockStore::new(dev.clone(), 1, cache_bytes);
        let root = BtreeRoot { block_ref: BlockRef { blkno: 0.into(), seq: 0.into() }, height: 0, pad: [0; 7] };
        Tree { dev, store, dirty: DirtySet::new(), numbers: Numbers(100), root }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Cow, &mut BtreeRoot) -> R) -> R {
        let mut cow = Cow { store: &self.store, dirty: &mut self.dirty, alloc: &mut self.numbers };
        f(&mut cow, &mut self.root)
    }

    /// Stores keys in ascending order at once.
    pub fn insert_list(&mut self, keys: &[Key], value: &[u8]) {
        let items = keys.iter().map(|key| LogItem { key: *key, seq: 1, flags: 0, value });
        self.with(|cow, root| btree::insert_list(cow, root, items, |_| false)).expect("memory");
    }

    pub fn force(&mut self, key: &Key, value: &[u8]) {
        self.with(|cow, root| btree::force(cow, root, key, value)).expect("memory");
    }

    pub fn delete(&mut self, key: &Key) -> bool {
        self.with(|cow, root| btree::delete(cow, root, key)).is_ok()
    }

    /// Length of the value, if the key is there.
    pub fn lookup(&self, key: &Key) -> Option<usize> {
        let reader = Reader::with_dirty(&self.store, &self.dirty);
        btree::lookup(&reader, &self.root, key).expect("memory").map(|item| item.value.len())
    }

    /// Writes everything out.
    pub fn commit(&mut self) -> usize {
        let blocks = self.dirty.len();
        self.dirty.write_out(&self.store).expect("memory");
        blocks
    }

    /// Forgets the cache.
    pub fn cool(&mut self, cache_bytes: usize) {
        self.store = BlockStore::new(self.dev.clone(), 1, cache_bytes);
    }

    /// Reads the root block through the store.
    pub fn read_root(&self) -> usize {
        self.store.read(&self.root.block_ref, BlockKind::Btree).expect("memory").bytes().len()
    }

    /// Number of items in the root block, decoded again.
    pub fn decode_root(&self) -> usize {
        let block = self.store.read(&self.root.block_ref, BlockKind::Btree).expect("memory");
        View::decode(block.bytes(), 1).expect("just written").node(block.bytes()).len()
    }

    /// The root block as a node that can be changed.
    pub fn load_root(&self) -> Leaf {
        let block = self.store.read(&self.root.block_ref, BlockKind::Btree).expect("memory");
        Leaf(Node::load(&block).expect("just written"))
    }
}

/// A decoded block.
pub struct Leaf(Node);

impl Leaf {
    pub fn encode(&mut self, buf: &mut [u8; 65536]) {
        self.0.encode(buf);
    }
}
