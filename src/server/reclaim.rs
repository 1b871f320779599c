//! Taking back everything a mount owned, after its farewell or when it has been fenced (`spec/05 §5.9`).
//!
//! Every step can be repeated, also by a later server; the mounted client record goes last, because it is what makes a
//! later server repeat the rest.

use crate::error::Result;
use crate::format::consts::{SRCH_COMPACT_DELETE, ZONE_LOG_MERGE_REQUEST};
use crate::format::layout::{LogMergeRequest, SrchCompact};
use crate::format::{Key, KeyRange, Rid, keys};

use super::core::{Answer, Job, Outcome, Peers, ServerCore, Step};

/// The reclaim of one mount.
#[derive(Debug)]
pub(crate) struct Reclaim {
    rid: u64,
    fenced: bool,
    locks_done: bool,
}

impl ServerCore {
    /// Begins, unless it is under way.
    pub(super) fn start_reclaim(&mut self, rid: u64, fenced: bool) {
        if self.reclaiming.insert(rid) {
            self.drop_jobs(rid);
            self.add_job(Job::Reclaim(Reclaim { rid, fenced, locks_done: false }));
        }
    }

    pub(super) fn step_reclaim(&mut self, reclaim: &mut Reclaim, peers: &mut dyn Peers) -> Outcome<Step> {
        let rid = reclaim.rid;
        if !reclaim.locks_done {
            reclaim.locks_done = true;
            self.desk.reclaim(rid, peers);
        }
        let done = self.finalize_log_tree(rid)? && self.reclaim_compactions(rid)? && self.reclaim_merges(rid)?;
        if !done || (!self.has_room() && self.trees.is_dirty()) {
            return Ok(Step::Again);
        }
        let out = self.omap.reclaim(rid);
        self.send_maps(out, peers);
        self.trees.remove_mounted(rid)?;
        self.answers.push(Answer::Reclaimed { rid, fenced: reclaim.fenced });
        Ok(Step::Done)
    }

    /// Compactions that the mount worked on. One that has written or freed blocks is continued by somebody else: nothing
    /// but its record refers to those blocks.
    pub(super) fn reclaim_compactions(&mut self, rid: u64) -> Result<bool> {
        let busy = KeyRange::new(keys::srch_busy(Rid(rid), 0), keys::srch_busy(Rid(rid), u64::MAX));
        while let Some((key, mut compact)) = self.trees.first::<SrchCompact>(busy)? {
            if !self.has_room() {
                return Ok(false);
            }
            if compact.flags & SRCH_COMPACT_DELETE != 0 || compact.output.blocks.get() > 0 {
                self.trees.put(&keys::srch_pending(compact.id.get()), &compact)?;
            } else {
                self.trees.take_list(&mut compact.meta_avail)?;
                self.trees.take_list(&mut compact.meta_freed)?;
            }
            self.trees.remove::<SrchCompact>(&key)?;
        }
        Ok(true)
    }

    /// Merge requests that the mount worked on: their ranges are merged by somebody else.
    pub(super) fn reclaim_merges(&mut self, rid: u64) -> Result<bool> {
        let requests = merge_requests_of(rid);
        while let Some((_, request)) = self.trees.first::<LogMergeRequest>(requests)? {
            if !self.has_room() {
                return Ok(false);
            }
            self.cancel_merge_request(request)?;
        }
        Ok(true)
    }
}

/// The keys of a mount's merge requests.
pub(super) fn merge_requests_of(rid: u64) -> KeyRange {
    let start = Key::new(ZONE_LOG_MERGE_REQUEST, rid, 0, 0, 0, 0);
    KeyRange::new(start, keys::log_merge_request(Rid(rid), u64::MAX.into()))
}
