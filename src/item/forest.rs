//! Reading the forest: one consistent version of a key range from the main tree and all log trees (`spec/03 §7`).
//!
//! **Problem.** The newest version of an item may be in the main tree or in the log tree of any mount. Readers take no
//! locks on trees that others keep rewriting, and a log merge moves items from log trees into the main tree while both are
//! readable.
//!
//! **Idea.** All reading starts from one set of roots. A miss reads the one leaf of every candidate tree that would
//! hold the key, and trusts the range that all of these leaves cover. Blocks that were reused meanwhile show as
//! [`Error::Stale`](crate::Error::Stale): everything read so far is then thrown away and newer roots are taken.
//!
//! **Invariants.**
//! 1. Versions of one result come from one [`View`].
//! 2. Trees are visited in ascending (rid, nr) after the main tree; of equal versions the first visited wins.
//! 3. If the view knows the state of the log merge, an input of the merge counts only for keys that are not merged yet
//!    (`spec/03 §10.2`). Without that knowledge versions decide, which is exact for everything but totals.
//!
//! It keeps nothing but the last lists of log trees, by the reference of their root.

use super::Value;
use super::bloom;
use super::packed::Packed;
use crate::block::BlockStore;
use crate::btree::{self, Reader};
use crate::error::{Error, Result};
use crate::format::bloom_bits;
use crate::format::consts::{
    ITEM_FLAG_DELETION, LOG_MERGE_COMPLETE_REMAIN, LOG_TREES_FINALIZED, ZONE_FS, ZONE_INODE_INDEX,
    ZONE_LOG_MERGE_RANGE, ZONE_LOG_MERGE_REQUEST, ZONE_ORPHAN, ZONE_QUOTA, ZONE_XATTR_INDX, ZONE_XATTR_TOTL,
};
use crate::format::layout::{BlockRef, BtreeRoot, LogTrees};
use crate::format::{Key, KeyRange, check, keys};
use crate::sync::{Arc, Mutex};

/// How many lists of log trees are kept.
const KEPT_LISTS: usize = 4;

/// One log tree, as far as reading needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogTree {
    item_root: BtreeRoot,
    bloom_ref: BlockRef,
    finalized: bool,
    finalize_seq: u64,
}

impl LogTree {
    fn new(lt: &LogTrees) -> LogTree {
        LogTree {
            item_root: lt.item_root,
            bloom_ref: lt.bloom_ref,
            finalized: lt.flags.get() & LOG_TREES_FINALIZED != 0,
            finalize_seq: lt.finalize_seq.get(),
        }
    }
}

/// State of a running log merge.
#[derive(Clone, Debug)]
pub(crate) struct MergeState {
    seq: u64,
    /// Keys of which the inputs are not in the main tree yet; sorted, disjoint.
    unmerged: Vec<KeyRange>,
}

/// One stable state of the volume's items.
#[derive(Clone, Debug)]
pub(crate) struct View {
    fs_root: BtreeRoot,
    logs: Arc<[LogTree]>,
    merge: Option<MergeState>,
}

impl View {
    /// Does the version that this log tree has of `key` still count (invariant 3)?
    fn counts(&self, tree: &LogTree, key: &Key) -> bool {
        match &self.merge {
            Some(m) if tree.finalized && tree.finalize_seq < m.seq => {
                let i = m.unmerged.partition_point(|r| r.end < *key);
                m.unmerged.get(i).is_some_and(|r| r.contains(key))
            }
            _ => true,
        }
    }
}

/// A live item as read: key, version, value.
pub(super) type Read = (Packed, u64, Value);

/// One version of an item while the newest is being found.
struct Version {
    key: Packed,
    seq: u64,
    deleted: bool,
    value: Value,
}

/// Called for each version: key, seq, deleted, value.
type VisitVersion<'a> = dyn FnMut(&Key, u64, bool, &[u8]) -> Result<()> + 'a;

/// Readers of one volume's forest.
pub(crate) struct Forest {
    store: Arc<BlockStore>,
    lists: Mutex<Vec<(BlockRef, Arc<[LogTree]>)>>,
}

impl Forest {
    pub(crate) fn new(store: Arc<BlockStore>) -> Forest {
        Forest { store, lists: Mutex::new(Vec::new()) }
    }

    /// The view of one set of roots. `log_merge` is the root of the tree of merge state if it belongs to the same super
    /// block.
    pub(crate) fn view(&self, fs_root: BtreeRoot, logs_root: BtreeRoot, log_merge: Option<&BtreeRoot>) -> Result<View> {
        let merge = match log_merge {
            Some(root) => self.merge_state(root)?,
            None => None,
        };
        Ok(View { fs_root, logs: self.log_trees(&logs_root)?, merge })
    }

    fn log_trees(&self, root: &BtreeRoot) -> Result<Arc<[LogTree]>> {
        if let Some((_, list)) = self.lists.lock().iter().find(|(r, _)| *r == root.block_ref) {
            return Ok(list.clone());
        }
        let blocks = self.store.meta_blocks();
        let mut list = Vec::new();
        self.each_item(root, |key, value| {
            list.push(LogTree::new(&check::validate_log_trees(Some(key), value, blocks)?));
            Ok(())
        })?;
        let list: Arc<[LogTree]> = list.into();
        let mut lists = self.lists.lock();
        if lists.len() >= KEPT_LISTS {
            lists.remove(0);
        }
        lists.push((root.block_ref, list.clone()));
        Ok(list)
    }

    /// The set of keys that a running merge has not moved yet (`spec/03 §10.2`).
    fn merge_state(&self, root: &BtreeRoot) -> Result<Option<MergeState>> {
        let reader = Reader::new(&self.store);
        let Some(status) = btree::lookup(&reader, root, &keys::LOG_MERGE_STATUS)? else { return Ok(None) };
        let seq = check::validate_merge_status(&status.value)?.seq.get();
        let blocks = self.store.meta_blocks();
        let mut unmerged = Vec::new();
        self.each_item(root, |key, value| {
            match key.zone {
                ZONE_LOG_MERGE_RANGE => {
                    let r = check::validate_merge_range(value)?;
                    unmerged.push(KeyRange::new(r.start.to_key(), r.end.to_key()));
                }
                ZONE_LOG_MERGE_REQUEST => {
                    let r = check::validate_merge_request(value, blocks)?;
                    unmerged.push(KeyRange::new(r.start.to_key(), r.end.to_key()));
                }
                _ if keys::log_merge_complete(key.first.into()) == *key => {
                    let c = check::validate_merge_complete(value, blocks)?;
                    let spliced = c.meta_avail.block_ref.blkno.get() == 0 && c.meta_freed.block_ref.blkno.get() == 0;
                    if !spliced {
                        unmerged.push(KeyRange::new(c.start.to_key(), c.end.to_key()));
                    } else if c.flags.get() & LOG_MERGE_COMPLETE_REMAIN != 0 {
                        unmerged.push(KeyRange::new(c.remain.to_key(), c.end.to_key()));
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        unmerged.sort_unstable_by_key(|r| r.start);
        Ok(Some(MergeState { seq, unmerged }))
    }

    /// All items of a small tree.
    fn each_item(&self, root: &BtreeRoot, mut visit: impl FnMut(&Key, &[u8]) -> Result<()>) -> Result<()> {
        let reader = Reader::new(&self.store);
        let mut from = Key::ZEROS;
        loop {
            let mut range = KeyRange::new(from, Key::ONES);
            btree::read_leaf(&reader, root, &from, &mut range, &mut |key, _, _, value| visit(key, value))?;
            if range.end == Key::ONES {
                return Ok(());
            }
            from = range.end.next();
        }
    }

    /// Visits the versions of one leaf's worth of items around `key` in every tree that may hold items of the lock
    /// that starts at `bloom_key`, and returns the part of `widest` that all of them cover. Versions outside it are
    /// visited too and must be dropped by the caller.
    pub(crate) fn read(
        &self,
        view: &View,
        key: &Key,
        bloom_key: &Key,
        widest: KeyRange,
        visit: &mut VisitVersion,
    ) -> Result<KeyRange> {
        let reader = Reader::new(&self.store);
        let mut range = widest;
        btree::read_leaf(&reader, &view.fs_root, key, &mut range, &mut |k, seq, flags, value| {
            check_item(k, flags, value, false)?;
            visit(k, seq, false, value)
        })?;
        let bits = bloom_bits(bloom_key);
        for tree in view.logs.iter() {
            if tree.item_root.height == 0 || !bloom::may_hold(&self.store, &tree.bloom_ref, &bits)? {
                continue;
            }
            btree::read_leaf(&reader, &tree.item_root, key, &mut range, &mut |k, seq, flags, value| {
                check_item(k, flags, value, true)?;
                if view.counts(tree, k) {
                    visit(k, seq, flags & ITEM_FLAG_DELETION != 0, value)?;
                }
                Ok(())
            })?;
        }
        Ok(range)
    }

    /// The live items around `key`, newest versions, sorted, with the range for which they are complete.
    pub(super) fn newest(
        &self,
        view: &View,
        key: &Key,
        bloom_key: &Key,
        widest: KeyRange,
    ) -> Result<(KeyRange, Vec<Read>)> {
        let mut versions: Vec<Version> = Vec::new();
        let mut sorted = true;
        let range = self.read(view, key, bloom_key, widest, &mut |k, seq, deleted, value| {
            let key = Packed::new(k);
            sorted &= versions.last().is_none_or(|v| v.key < key);
            versions.push(Version { key, seq, deleted, value: Value::new(value) });
            Ok(())
        })?;
        if !sorted {
            // Stable: of equal versions the first visited stays in front.
            versions.sort_by(|a, b| a.key.cmp(&b.key).then(b.seq.cmp(&a.seq)));
            versions.dedup_by(|later, first| later.key == first.key);
        }
        let (start, end) = (Packed::new(&range.start), Packed::new(&range.end));
        let live = versions.into_iter().filter(|v| !v.deleted && start <= v.key && v.key <= end);
        Ok((range, live.map(|v| (v.key, v.seq, v.value)).collect()))
    }

    /// Least key at or after `key` in any tree, deletions included.
    pub(crate) fn next_hint(&self, view: &View, key: &Key) -> Result<Option<Key>> {
        let reader = Reader::new(&self.store);
        let mut least: Option<Key> = None;
        for root in std::iter::once(&view.fs_root).chain(view.logs.iter().map(|t| &t.item_root)) {
            if let Some((k, _)) = btree::next(&reader, root, key)? {
                least = Some(least.map_or(k, |l| l.min(k)));
            }
        }
        Ok(least)
    }
}

/// Refuses what can be no filesystem item (`spec/03 §13`).
fn check_item(key: &Key, flags: u8, value: &[u8], log: bool) -> Result<()> {
    let bad = |why: &str| Err(Error::corrupt(format!("item {key}"), why));
    let zones = [ZONE_INODE_INDEX, ZONE_ORPHAN, ZONE_QUOTA, ZONE_XATTR_TOTL, ZONE_XATTR_INDX, ZONE_FS];
    if !zones.contains(&key.zone) {
        return bad("no filesystem item has this zone");
    }
    if flags & ITEM_FLAG_DELETION != 0 && (!log || !value.is_empty()) {
        return bad("deletion with a value or in the main tree");
    }
    if keys::is_delta(key) && flags & ITEM_FLAG_DELETION == 0 && value.len() != 16 {
        return bad("total of another length than 16");
    }
    Ok(())
}
