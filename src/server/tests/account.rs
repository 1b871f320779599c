//! Offline accounting: every block of a volume is either free in exactly one place or used in exactly one place.

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::FromBytes;

use super::super::shadow::read_super;
use super::harness::open_store;
use crate::alloc::list::{self, ListVisit};
use crate::alloc::{Bounds, extents};
use crate::block::BlockStore;
use crate::btree::{self, Reader, TreeBlock, Visitor};
use crate::device::BlockDevice;
use crate::error::Error;
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{Key, KeyRange};
use crate::sync::Arc;

/// What was found of one volume.
pub(super) struct Account {
    pub(super) sup: SuperBlock,
    pub(super) free_meta: u64,
    pub(super) free_data: u64,
    pub(super) inodes: u64,
    pub(super) logs: Vec<LogTrees>,
    /// Data blocks that no free structure lists: they must belong to files.
    pub(super) used_data: BTreeSet<u64>,
}

struct Books<'a> {
    store: &'a BlockStore,
    owners: BTreeMap<u64, String>,
    problems: Vec<String>,
    free_meta: u64,
    free_data: BTreeMap<u64, u64>,
}

struct Blocks(BTreeSet<u64>, Vec<Error>);

impl Visitor for Blocks {
    fn enter(&mut self, block_ref: &BlockRef, _level: u8) -> bool {
        self.0.insert(block_ref.blkno.get());
        true
    }
    fn block(&mut self, _block: &TreeBlock) {}
    fn item(&mut self, _key: &Key, _seq: u64, _flags: u8, _value: &[u8]) {}
    fn damage(&mut self, _block_ref: &BlockRef, error: Error) {
        self.1.push(error);
    }
}

impl Books<'_> {
    fn claim(&mut self, blkno: u64, owner: &str) {
        if let Some(other) = self.owners.insert(blkno, owner.to_string()) {
            self.problems.push(format!("block {blkno} belongs to {other} and to {owner}"));
        }
    }

    fn tree_blocks(&mut self, root: &BtreeRoot, whole: bool, what: &str) -> BTreeSet<u64> {
        let mut blocks = Blocks(BTreeSet::new(), Vec::new());
        btree::visit(&Reader::new(self.store), root, whole, &mut blocks);
        self.problems.extend(blocks.1.iter().map(|e| format!("{what}: {e}")));
        blocks.0
    }

    fn tree(&mut self, root: &BtreeRoot, what: &str) {
        for b in self.tree_blocks(root, true, what) {
            self.claim(b, what);
        }
    }

    fn list(&mut self, head: &AllocListHead, what: &str) -> BTreeSet<u64> {
        let mut blocks = Vec::new();
        let mut entries = BTreeSet::new();
        let walked = list::walk(&Reader::new(self.store), head, &mut |v| {
            match v {
                ListVisit::Block(r) => blocks.push(r.blkno.get()),
                ListVisit::Entry(b) => assert!(entries.insert(b.0), "{b} twice in {what}"),
            }
            Ok(())
        });
        if let Err(e) = walked {
            self.problems.push(format!("{what}: {e}"));
        }
        for b in blocks {
            self.claim(b, &format!("{what} (list block)"));
        }
        for b in &entries {
            self.claim(*b, what);
        }
        self.free_meta += entries.len() as u64;
        entries
    }

    fn meta_extents(&mut self, root: &AllocRoot, total: u64, what: &str) {
        self.tree(&root.root, &format!("{what} (tree)"));
        let mut found = Vec::new();
        let checked = extents::check(&Reader::new(self.store), root, Bounds::meta(total), &mut |e| {
            found.push(*e);
            Ok(())
        });
        if let Err(e) = checked {
            self.problems.push(format!("{what}: {e}"));
        }
        for e in found {
            (e.start..e.end()).for_each(|b| self.claim(b, what));
            self.free_meta += e.len;
        }
    }

    fn data_extents(&mut self, root: &AllocRoot, total: u64, what: &str) {
        self.tree(&root.root, &format!("{what} (tree)"));
        let mut found = Vec::new();
        let checked = extents::check(&Reader::new(self.store), root, Bounds::data(total), &mut |e| {
            found.push(*e);
            Ok(())
        });
        if let Err(e) = checked {
            self.problems.push(format!("{what}: {e}"));
        }
        for e in found {
            if let Some((s, l)) = self.free_data.range(..e.end()).next_back()
                && s + l > e.start
            {
                self.problems.push(format!("data {}+{} of {what} is free twice", e.start, e.len));
            }
            self.free_data.insert(e.start, e.len);
        }
    }
}

fn items<T: FromBytes>(store: &BlockStore, root: &BtreeRoot, range: KeyRange) -> Vec<(Key, T)> {
    let mut all = Vec::new();
    let mut at = range.start;
    while let Some((key, item)) = btree::next(&Reader::new(store), root, &at).unwrap() {
        if key > range.end {
            break;
        }
        all.push((key, T::read_from_bytes(&item.value).unwrap()));
        at = key.next();
    }
    all
}

fn zone(zone: u8) -> KeyRange {
    KeyRange::new(Key::new(zone, 0, 0, 0, 0, 0), Key { zone, ..Key::ONES })
}

/// Checks the volume as it is on the device.
pub(super) fn account(meta: Arc<dyn BlockDevice>) -> Account {
    let sup = *read_super(&*meta).unwrap();
    let store = open_store(meta);
    let total = sup.total_meta_blocks.get();
    let mut books = Books {
        store: &store,
        owners: BTreeMap::new(),
        problems: Vec::new(),
        free_meta: 0,
        free_data: BTreeMap::new(),
    };
    for (root, what) in [
        (&sup.logs_root, "logs"),
        (&sup.log_merge, "log merge"),
        (&sup.mounted_clients, "mounted clients"),
        (&sup.srch_root, "srch"),
    ] {
        books.tree(root, what);
    }
    for i in 0..2 {
        books.meta_extents(&sup.meta_alloc[i], total, &format!("meta alloc {i}"));
        books.list(&sup.server_meta_avail[i], &format!("server avail {i}"));
        books.list(&sup.server_meta_freed[i], &format!("server freed {i}"));
    }
    books.data_extents(&sup.data_alloc, sup.total_data_blocks.get(), "data alloc");
    let logs: Vec<LogTrees> = items(&store, &sup.logs_root, zone(ZONE_LOG_TREES)).into_iter().map(|(_, l)| l).collect();
    let mut inodes = sup.inode_count.get();
    for lt in &logs {
        let what = format!("log {}.{}", lt.rid, lt.nr);
        books.tree(&lt.item_root, &format!("{what} items"));
        books.list(&lt.meta_avail, &format!("{what} avail"));
        books.list(&lt.meta_freed, &format!("{what} freed"));
        books.data_extents(&lt.data_avail, sup.total_data_blocks.get(), &format!("{what} data avail"));
        books.data_extents(&lt.data_freed, sup.total_data_blocks.get(), &format!("{what} data freed"));
        if lt.bloom_ref.blkno.get() != 0 {
            books.claim(lt.bloom_ref.blkno.get(), &format!("{what} bloom"));
        }
        inodes = inodes.wrapping_add(lt.inode_count_delta.get());
    }
    for (_, r) in items::<LogMergeRequest>(&store, &sup.log_merge, zone(ZONE_LOG_MERGE_REQUEST)) {
        books.list(&r.meta_avail, "merge request avail");
        books.list(&r.meta_freed, "merge request freed");
    }
    // A result that is not spliced shares blocks with the main tree and has freed some that the main tree still uses.
    let mut main = books.tree_blocks(&sup.fs_root, true, "main tree");
    for (_, c) in items::<LogMergeComplete>(&store, &sup.log_merge, zone(ZONE_LOG_MERGE_COMPLETE)) {
        let spliced = c.meta_avail.block_ref.blkno.get() == 0 && c.meta_freed.block_ref.blkno.get() == 0;
        if !spliced {
            books.list(&c.meta_avail, "merge result avail");
            let freed = books.list(&c.meta_freed, "merge result freed");
            main.extend(books.tree_blocks(&c.root, false, "merge result"));
            main.retain(|b| !freed.contains(b));
        }
    }
    main.into_iter().for_each(|b| books.claim(b, "main tree"));
    for (_, f) in items::<LogMergeFreeing>(&store, &sup.log_merge, zone(ZONE_LOG_MERGE_FREEING)) {
        // Blocks that are freed already may have been used again: what is not free or used is still this tree's.
        let tree = freeing_blocks(&store, &f);
        tree.into_iter().for_each(|b| books.claim(b, "tree being freed"));
    }
    for (_, c) in items::<SrchCompact>(
        &store,
        &sup.srch_root,
        KeyRange::new(Key::new(ZONE_SRCH, 0, TYPE_SRCH_PENDING, 0, 0, 0), zone(ZONE_SRCH).end),
    ) {
        books.list(&c.meta_avail, "compaction avail");
        books.list(&c.meta_freed, "compaction freed");
    }
    let unclaimed: Vec<u64> = (META_START..total).filter(|b| !books.owners.contains_key(b)).collect();
    if !unclaimed.is_empty() {
        books.problems.push(format!("blocks {unclaimed:?} belong to nobody"));
    }
    assert!(books.problems.is_empty(), "{:#?}", books.problems);
    let free: BTreeSet<u64> = books.free_data.iter().flat_map(|(s, l)| *s..*s + *l).collect();
    let used_data = (DATA_START..sup.total_data_blocks.get()).filter(|b| !free.contains(b)).collect();
    Account { sup, free_meta: books.free_meta, free_data: free.len() as u64, inodes, logs, used_data }
}

/// The blocks of a tree that its freeing record still has to free.
fn freeing_blocks(store: &BlockStore, freeing: &LogMergeFreeing) -> BTreeSet<u64> {
    let mut key = freeing.key.to_key();
    let mut blocks = BTreeSet::new();
    while key != Key::ONES {
        let free = &mut |b: crate::format::MetaBlock| {
            assert!(blocks.insert(b.0), "{b} is freed twice");
            Ok(())
        };
        btree::free_blocks(free, &Reader::new(store), &freeing.root, &mut key, 1 << 20).unwrap();
    }
    blocks
}
