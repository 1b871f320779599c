//! Log merge: bringing results into the main tree, and the end of a merge (`spec/03 §11.6`).
//!
//! Only while no request is outstanding. Each result replaces one block of last parents of the main tree; when all are in
//! place those that are not finished are made fit for more work, and their rest becomes a range again. When no range is
//! left, everything is merged.
//!
//! Invariants
//! 1. The splice of a result and the take-over of its block lists are one commit; empty lists mark a result that is in
//!    place.
//! 2. All results are in place before the first rebalancing, which moves the bounds by which they find their place.
//! 3. All inputs of a merge disappear in one commit, together with the status: a reader never sees an old version of a key
//!    come back because the input that deletes it has gone first.

use crate::alloc::meta::empty_head;
use crate::btree;
use crate::error::Result;
use crate::format::consts::{BLOCK_BYTES, LOG_MERGE_COMPLETE_REMAIN};
use crate::format::layout::{LogMergeComplete, LogMergeFreeing, LogMergeRange, LogMergeStatus, LogTrees};
use crate::format::{Key, MetaBlock, keys};

use super::core::ServerCore;
use super::merge::MERGE_BATCH;
use super::trees::own;

/// How a pass ended.
pub(super) enum Splice {
    /// Look again what there is to do.
    Progress,
    /// The commit is full.
    Again,
}

fn is_spliced(complete: &LogMergeComplete) -> bool {
    complete.meta_avail.block_ref.blkno.get() == 0 && complete.meta_freed.block_ref.blkno.get() == 0
}

impl ServerCore {
    /// One pass; `ranges_left` says that there are ranges nobody has worked on in this round.
    pub(super) fn splice(&mut self, status: &LogMergeStatus, ranges_left: bool) -> Result<Splice> {
        let mut status = *status;
        for (key, complete) in self.merge_completions()? {
            if !is_spliced(&complete) {
                if !self.has_room() {
                    return Ok(Splice::Again);
                }
                self.splice_one(&key, complete)?;
            }
        }
        // No request may be handed out between the commits of what follows.
        if status.nr_complete.get() > 0 && status.nr_complete.get() < MERGE_BATCH {
            status.nr_complete = MERGE_BATCH.into();
            self.trees.put(&keys::LOG_MERGE_STATUS, &status)?;
        }
        let mut again = ranges_left || status.next_range_key.to_key() != Key::ZEROS;
        let mut kept = 0u64;
        for (key, complete) in self.merge_completions()? {
            if !self.has_room() {
                return Ok(Splice::Again);
            }
            if complete.flags.get() & LOG_MERGE_COMPLETE_REMAIN != 0 {
                again = true;
                if !self.return_rest(&status, &complete)? {
                    kept += 1;
                    continue;
                }
            }
            self.trees.remove::<LogMergeComplete>(&key)?;
        }
        if again {
            status.next_range_key = Key::ZEROS.into();
            status.nr_complete = kept.into();
            self.trees.put(&keys::LOG_MERGE_STATUS, &status)?;
            return Ok(Splice::Progress);
        }
        self.end_merge(&status)
    }

    /// Puts one result in its place and takes its lists.
    fn splice_one(&mut self, key: &Key, mut complete: LogMergeComplete) -> Result<()> {
        let start = complete.start.to_key();
        let (mut cow, sup) = self.trees.split();
        own(btree::set_parent(&mut cow, &mut sup.fs_root, &start, &complete.root))?;
        self.trees.take_list(&mut complete.meta_avail)?;
        self.trees.take_list(&mut complete.meta_freed)?;
        (complete.meta_avail, complete.meta_freed) = (empty_head(), empty_head());
        self.trees.put(key, &complete)
    }

    /// The rest of an unfinished result becomes a range. False: its key is taken, try again when the other range is gone.
    fn return_rest(&mut self, status: &LogMergeStatus, complete: &LogMergeComplete) -> Result<bool> {
        let start = complete.start.to_key();
        let (mut cow, sup) = self.trees.split();
        if sup.fs_root.height > 0 {
            own(btree::rebalance(&mut cow, &mut sup.fs_root, &start))?;
        }
        self.try_add_range(status, complete.remain.to_key(), complete.end.to_key())
    }

    /// Everything is merged: the inputs become trees to be freed.
    fn end_merge(&mut self, status: &LogMergeStatus) -> Result<Splice> {
        let inputs = self.merge_inputs(status)?;
        if self.trees.room() < self.end_cost(&inputs) && self.trees.is_dirty() {
            return Ok(Splice::Again);
        }
        let mut blooms = Vec::new();
        let mut inodes = self.trees.sup.inode_count.get();
        for lt in &inputs {
            let seq = self.trees.next_seq();
            let freeing = LogMergeFreeing { root: lt.item_root, key: Key::ZEROS.into(), seq: seq.into() };
            self.trees.put(&keys::log_merge_freeing(seq.into()), &freeing)?;
            self.trees.remove_log_trees(lt.rid.get(), lt.nr.get())?;
            inodes = inodes.wrapping_add(lt.inode_count_delta.get());
            blooms.extend(Some(lt.bloom_ref.blkno.get()).filter(|b| *b != 0).map(MetaBlock));
        }
        self.trees.sup_mut().inode_count = inodes.into();
        self.trees.free_many(&blooms)?;
        self.trees.remove::<LogMergeStatus>(&keys::LOG_MERGE_STATUS)?;
        self.start_freeing();
        Ok(Splice::Progress)
    }

    /// Blocks that the end of a merge may change: the leaves of the records that go and of those that come.
    fn end_cost(&self, inputs: &[LogTrees]) -> u64 {
        let bytes =
            inputs.len() * (size_of::<LogTrees>() + size_of::<LogMergeFreeing>() + 2 * size_of::<LogMergeRange>());
        let heights = u64::from(self.trees.sup.logs_root.height) + u64::from(self.trees.sup.log_merge.height);
        self.budget() + 4 * heights + 3 * (bytes / BLOCK_BYTES) as u64
    }
}
