//! Will the commit have enough metadata blocks?
//!
//! A commit that runs out of blocks in the middle would fail for ever, so the transaction is committed while the worst case
//! still fits (`spec/02 §8.2`). Each dirty item may fall into another leaf of the log tree, which is copied and may have to
//! be split; items that fall together fill leaves that are at least half full.
//!
//! Most changes of a transaction lie close together, and a log tree may have thousands of leaves: to assume another leaf for
//! each item would commit every few hundred files. So when the estimate runs out, the leaves of the items that are new
//! since the last time are looked up ([`Room::look`]): a walk through parents that are in memory, once for each item.
//!
//! Invariant: the leaves that dirty items fall into are at most those found so far, and one for each item that became
//! dirty since the last look.

use crate::alloc::MetaAlloc;
use crate::block::BlockStore;
use crate::btree::{self, Reader};
use crate::error::Result;
use crate::format::layout::{BtreeRoot, LogTrees};
use crate::item::Items;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use crate::sync::{HashSet, Mutex};
use zerocopy::FromZeros;

/// Item bytes of a leaf that is half full after a split.
const HALF_LEAF_BYTES: u64 = 30_000;
/// Entries of a parent block that is half full.
const HALF_PARENT: u64 = 400;
/// Blocks besides those of items: bloom, list blocks, one spare.
const FIXED_BLOCKS: u64 = 4;
/// Search entries that fit in any block.
const SRCH_ENTRIES: u64 = 2500;
/// The part of the blocks that must be left for another look to be worth it.
const WORTH: u64 = 16;

/// What the items that became dirty will copy of the item tree.
struct Leaves {
    /// The tree as the transaction got it.
    root: BtreeRoot,
    found: HashSet<u64>,
}

/// Room and needs of the open transaction. Estimates, read without locks.
pub(super) struct Room {
    /// Blocks that may be allocated and freed, less a reserve for what holders add before they look again.
    allocs: AtomicU64,
    frees: AtomicU64,
    /// Blocks of the item tree.
    tree_blocks: AtomicU64,
    height: AtomicU64,
    leaves: Mutex<Leaves>,
    /// How many were found at the last look, and how many items had become dirty before it.
    found: AtomicU64,
    looked: AtomicU64,
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
    pub(super) fn new() -> Room {
        Room {
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            tree_blocks: AtomicU64::new(0),
            height: AtomicU64::new(0),
            leaves: Mutex::new(Leaves { root: BtreeRoot::new_zeroed(), found: HashSet::default() }),
            found: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            data: AtomicU64::new(0),
            srch: AtomicU64::new(0),
            data_short: AtomicBool::new(false),
            meta_low: AtomicBool::new(false),
        }
    }

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
        *self.leaves.lock() = Leaves { root: trees.item_root, found: HashSet::default() };
        self.found.store(0, Relaxed);
        self.looked.store(0, Relaxed);
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

    /// Could a commit of this many items (promised ones included) and dirty bytes need more than there is, if items became dirty so many times?
    #[inline]
    pub(super) fn short(&self, items: u64, dirtied: u64, bytes: u64) -> bool {
        // In this order: whoever sees what was looked at sees what was found.
        let unseen = dirtied.saturating_sub(self.looked.load(Acquire));
        let leaves = self.found.load(Relaxed).saturating_add(unseen);
        let copied = items.min(leaves).min(self.tree_blocks.load(Relaxed));
        let added = copied + bytes / HALF_LEAF_BYTES;
        let path = self.height.load(Relaxed) + 2;
        let others = self.data.load(Relaxed) + self.srch.load(Relaxed) / SRCH_ENTRIES + FIXED_BLOCKS;
        let frees = copied + copied / HALF_PARENT + path + others;
        let allocs = frees + added + added / HALF_PARENT;
        allocs > self.allocs.load(Relaxed) || frees > self.frees.load(Relaxed)
    }

    /// Looks up the leaves of what became dirty since the last look. True if that leaves room for so much more that another
    /// look will be worth it. On an error all stays estimated for the rest of the transaction.
    pub(super) fn look(&self, store: &BlockStore, items: &Items) -> Result<bool> {
        let mut leaves = self.leaves.lock();
        let Leaves { root, found } = &mut *leaves;
        // What becomes dirty from here on counts, even if it is among what is looked up.
        let dirtied = items.dirtied();
        let keys = items.newly_dirty();
        let looked = btree::leaves_of(&Reader::new(store), root, &keys, found);
        self.found.store(if looked.is_ok() { found.len() as u64 } else { u64::MAX }, Relaxed);
        self.looked.store(dirtied, Release);
        looked?;
        let more = self.allocs.load(Relaxed).min(self.frees.load(Relaxed)) / WORTH;
        Ok(!self.short(items.expected_items() + more, items.dirtied() + more, items.dirty_bytes()))
    }
}
