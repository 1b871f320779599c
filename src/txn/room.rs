//! Will the commit have enough metadata blocks?
//!
//! A commit that runs out of blocks in the middle would fail for ever, so the transaction is committed while the worst case
//! still fits (`spec/02 §8.2`). Each dirty item may fall into another leaf of the log tree, which is copied and may have to
//! be split; items that fall together fill leaves that are at least half full.

use crate::alloc::MetaAlloc;
use crate::format::layout::LogTrees;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Item bytes of a leaf that is half full after a split.
const HALF_LEAF_BYTES: u64 = 30_000;
/// Entries of a parent block that is half full.
const HALF_PARENT: u64 = 400;
/// Blocks besides those of items: bloom, list blocks, one spare.
const FIXED_BLOCKS: u64 = 4;
/// Search entries that fit in any block.
const SRCH_ENTRIES: u64 = 2500;

/// Room and needs of the open transaction. Estimates, read without locks.
#[derive(Default)]
pub(super) struct Room {
    /// Blocks that may be allocated and freed, less a reserve for what holders add before they look again.
    allocs: AtomicU64,
    frees: AtomicU64,
    /// Blocks of the item tree.
    tree_blocks: AtomicU64,
    height: AtomicU64,
    /// What the data allocator will need at the end.
    data: AtomicU64,
    /// Search entries waiting.
    pub(super) srch: AtomicU64,
    /// Data space of this transaction runs out although the server has more.
    pub(super) data_short: AtomicBool,
    /// The server is short of metadata.
    pub(super) meta_low: AtomicBool,
}

impl Room {
    /// A new transaction starts.
    pub(super) fn open(&self, trees: &LogTrees, meta: &MetaAlloc, same_tree: bool) {
        let reserved = |n: u64| n - n / 4;
        self.allocs.store(reserved(meta.avail_remaining()), Relaxed);
        self.frees.store(reserved(meta.freed_remaining()), Relaxed);
        let height = u64::from(trees.item_root.height);
        self.height.store(height, Relaxed);
        if height == 0 {
            self.tree_blocks.store(0, Relaxed);
        } else if !same_tree {
            self.tree_blocks.store(u64::MAX, Relaxed);
        }
        self.data.store(0, Relaxed);
        self.srch.store(0, Relaxed);
        self.data_short.store(false, Relaxed);
        self.meta_low.store(meta.flagged_low(), Relaxed);
    }

    /// The item tree has grown by so many blocks.
    pub(super) fn tree_grew(&self, blocks: u64) {
        self.tree_blocks.store(self.tree_blocks.load(Relaxed).saturating_add(blocks), Relaxed);
    }

    /// What the data allocator will need.
    pub(super) fn set_data_cost(&self, blocks: u64) {
        self.data.store(blocks, Relaxed);
    }

    /// Could a commit of this many dirty items and bytes need more than there is?
    #[inline]
    pub(super) fn short(&self, items: u64, bytes: u64) -> bool {
        let copied = items.min(self.tree_blocks.load(Relaxed));
        let added = copied + bytes / HALF_LEAF_BYTES;
        let path = self.height.load(Relaxed) + 2;
        let others = self.data.load(Relaxed) + self.srch.load(Relaxed) / SRCH_ENTRIES + FIXED_BLOCKS;
        let frees = copied + copied / HALF_PARENT + path + others;
        let allocs = frees + added + added / HALF_PARENT;
        allocs > self.allocs.load(Relaxed) || frees > self.frees.load(Relaxed)
    }
}
