//! Log merge: cutting the key space into pieces of work and taking the results (`spec/03 §11.3`, `§11.5`).
//!
//! A merge exists exactly while its status record does. The keys that still have to be merged are spread over three kinds
//! of records: ranges nobody works on, requests that a mount works on, and completions that are not spliced into the main
//! tree yet. `splice.rs` does the splicing and ends the merge.
//!
//! Invariants (beside M1..M6 of `spec/03 §11.1`)
//! 1. Ranges are chosen by their stored start. Their keys have lost the zone, so they sort differently and can collide; a
//!    range that finds its key taken is parked as a completion that has nothing to splice.
//! 2. A refused or erroneous completion gives back what the *stored* request holds; nothing of the message is used.

use zerocopy::IntoBytes;

use crate::alloc::meta::empty_head;
use crate::btree::{self, Reader};
use crate::error::{Errno, Error, Result};
use crate::format::consts::{
    LOG_MERGE_COMPLETE_ERROR, LOG_MERGE_COMPLETE_REMAIN, LOG_MERGE_REQUEST_SUBTREE, ZONE_LOG_MERGE_COMPLETE,
    ZONE_LOG_MERGE_RANGE, ZONE_LOG_MERGE_REQUEST, ZONE_LOG_TREES,
};
use crate::format::layout::{LogMergeComplete, LogMergeRange, LogMergeRequest, LogMergeStatus, LogTrees};
use crate::format::{Key, KeyRange, Rid, check, keys};

use super::core::{Asker, Outcome, ServerCore, Step, refuse};
use super::reclaim::merge_requests_of;
use super::records::is_finalized;
use super::splice::Splice;
use super::trees::{own, zone};

/// Requests and completions that may exist before results are spliced.
pub(super) const MERGE_BATCH: u64 = 8;

impl ServerCore {
    /// The counts of the status must be right: they gate everything (`spec/03 §13`).
    pub(super) fn check_merge_status(&self) -> Result<()> {
        let requests = self.trees.all::<LogMergeRequest>(zone(ZONE_LOG_MERGE_REQUEST))?;
        let status = self.merge_status()?;
        let counted = status.map_or(0, |s| s.nr_requests.get());
        if counted != requests.len() as u64 {
            let found = requests.len();
            return Err(Error::corrupt("log merge status", format!("{counted} requests, and {found} are stored")));
        }
        let seq = status.map_or(0, |s| s.seq.get());
        let stray = requests.iter().find(|(_, r)| r.input_seq.get() != seq);
        stray.map_or(Ok(()), |(key, _)| Err(Error::corrupt(format!("server item {key}"), "of another merge")))
    }

    /// GET_LOG_MERGE.
    pub(super) fn step_get_log_merge(&mut self, from: Asker) -> Outcome<Step> {
        if self.merge_status()?.is_none() {
            return refuse(Errno::ENOENT);
        }
        if let Some(request) = self.lost_merge_request(from.rid)? {
            self.answer(from, Ok(request.as_bytes().to_vec()));
            return Ok(Step::Done);
        }
        let mut spliced = false;
        loop {
            let Some(status) = self.merge_status()? else { return refuse(Errno::ENOENT) };
            let range = self.next_merge_range(&status)?;
            let (requests, complete) = (status.nr_requests.get(), status.nr_complete.get());
            if requests == 0 && (range.is_none() || (complete >= MERGE_BATCH && !spliced)) {
                if let Splice::Again = self.splice(&status, range.is_some())? {
                    return Ok(Step::Again);
                }
                spliced = true;
                continue;
            }
            let Some(range) = range else { return refuse(Errno::ENOENT) };
            if requests + complete >= MERGE_BATCH && !spliced {
                return refuse(Errno::ENOENT);
            }
            if !self.has_room() {
                return Ok(Step::Again);
            }
            let keys = KeyRange::new(range.start.to_key(), range.end.to_key());
            match self.first_input_key(&status, keys)? {
                Some(start) => return self.hand_out_merge(from, status, &range, start),
                // Nothing to merge in there.
                None => self.remove_range(&range)?,
            }
        }
    }

    /// A request that an earlier server stored for this mount: it never arrived, or the mount would not ask. Each is
    /// given once in the life of this server.
    fn lost_merge_request(&mut self, rid: u64) -> Result<Option<LogMergeRequest>> {
        for (key, mut request) in self.trees.all::<LogMergeRequest>(merge_requests_of(rid))? {
            if self.handed_merges.insert(request.seq.get()) {
                request.logs_root = self.trees.sup.logs_root;
                self.trees.put(&key, &request)?;
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    pub(super) fn merge_ranges(&self) -> Result<Vec<LogMergeRange>> {
        Ok(self.trees.all::<LogMergeRange>(zone(ZONE_LOG_MERGE_RANGE))?.into_iter().map(|(_, r)| r).collect())
    }

    /// The range with the least start from where the last one was cut.
    fn next_merge_range(&self, status: &LogMergeStatus) -> Result<Option<LogMergeRange>> {
        let from = status.next_range_key.to_key();
        let start = |r: &LogMergeRange| r.start.to_key();
        let ranges = self.merge_ranges()?.into_iter().filter(|r| start(r) >= from && start(r) != Key::ONES);
        Ok(ranges.min_by_key(start))
    }

    pub(super) fn remove_range(&mut self, range: &LogMergeRange) -> Result<()> {
        self.trees.remove::<LogMergeRange>(&keys::log_merge_range(&range.start.to_key()))?;
        Ok(())
    }

    /// The log trees that this merge takes in.
    pub(super) fn merge_inputs(&self, status: &LogMergeStatus) -> Result<Vec<LogTrees>> {
        let logs = self.trees.all::<LogTrees>(zone(ZONE_LOG_TREES))?;
        Ok(logs.into_iter().map(|(_, lt)| lt).filter(|lt| is_finalized(lt) && lt.finalize_seq < status.seq).collect())
    }

    /// The least key that any input has in the range.
    pub(super) fn first_input_key(&self, status: &LogMergeStatus, range: KeyRange) -> Outcome<Option<Key>> {
        let reader = Reader::new(&self.trees.store);
        let mut least: Option<Key> = None;
        for lt in self.merge_inputs(status)?.iter().filter(|lt| lt.item_root.height > 0) {
            match own(btree::next(&reader, &lt.item_root, &range.start)) {
                Ok(Some((key, _))) if key <= range.end => least = Some(least.map_or(key, |l| l.min(key))),
                Ok(_) => {}
                Err(e) => {
                    // A mount's damaged tree stops its merge, not the server.
                    tracing::error!(rid = lt.rid.get(), error = %e, "cannot read a log tree that should be merged");
                    return refuse(Errno::EIO);
                }
            }
        }
        Ok(least)
    }

    /// Cuts a request off the front of `range`; `start` is the first key of any input in it.
    fn hand_out_merge(
        &mut self,
        from: Asker,
        mut status: LogMergeStatus,
        range: &LogMergeRange,
        start: Key,
    ) -> Outcome<Step> {
        let fs_root = self.trees.sup.fs_root;
        let parent = own(btree::parent_range(&self.trees.reader(), &fs_root, &start))?;
        let root = own(btree::get_parent(&self.trees.reader(), &fs_root, &start))?;
        let end = range.end.to_key().min(parent.end);

        let mut meta_avail = empty_head();
        let target = self.trees.stock.merge_target;
        match self.trees.fill_list(&mut meta_avail, target, target) {
            Err(e) if e.is(Errno::ENOSPC) && meta_avail.total_nr.get() < u64::from(target) / 2 => {
                self.trees.take_list(&mut meta_avail)?;
                return refuse(Errno::ENOSPC);
            }
            Err(e) if e.is(Errno::ENOSPC) => {}
            other => other?,
        }
        let seq = self.trees.next_seq();
        let subtree = if fs_root.height > 2 { LOG_MERGE_REQUEST_SUBTREE } else { 0 };
        let request = LogMergeRequest {
            meta_avail,
            meta_freed: empty_head(),
            logs_root: self.trees.sup.logs_root,
            root,
            start: start.into(),
            end: end.into(),
            input_seq: status.seq,
            rid: from.rid.into(),
            seq: seq.into(),
            flags: subtree.into(),
        };
        self.remove_range(range)?;
        self.trees.put(&keys::log_merge_request(Rid(from.rid), seq.into()), &request)?;
        if range.end.to_key() > end {
            self.add_range(&mut status, end.next(), range.end.to_key())?;
        }
        status.next_range_key = if parent.end == Key::ONES { Key::ONES } else { parent.end.next() }.into();
        status.nr_requests = (status.nr_requests.get() + 1).into();
        self.trees.put(&keys::LOG_MERGE_STATUS, &status)?;
        self.handed_merges.insert(seq);
        self.answer(from, Ok(request.as_bytes().to_vec()));
        Ok(Step::Done)
    }

    /// Stores a range if its key is free, moving its start up to the next key that any input has if it is not. What has
    /// no input keys at all is dropped. False: the key is taken.
    pub(super) fn try_add_range(&mut self, status: &LogMergeStatus, start: Key, end: Key) -> Result<bool> {
        let taken = |core: &ServerCore, start: &Key| -> Result<bool> {
            Ok(core.trees.get::<LogMergeRange>(&keys::log_merge_range(start))?.is_some())
        };
        let mut start = start;
        if taken(self, &start)? {
            start = match self.first_input_key(status, KeyRange::new(start, end)) {
                Ok(Some(key)) => key,
                Ok(None) => return Ok(true),
                Err(_) => start,
            };
            if taken(self, &start)? {
                return Ok(false);
            }
        }
        let range = LogMergeRange { start: start.into(), end: end.into() };
        self.trees.put(&keys::log_merge_range(&start), &range)?;
        Ok(true)
    }

    /// Stores a range, or parks it as a completion of which everything remains (invariant 1). The caller stores `status`.
    pub(super) fn add_range(&mut self, status: &mut LogMergeStatus, start: Key, end: Key) -> Result<()> {
        if self.try_add_range(status, start, end)? {
            return Ok(());
        }
        let seq = self.trees.next_seq();
        let parked = LogMergeComplete {
            meta_avail: empty_head(),
            meta_freed: empty_head(),
            root: zerocopy::FromZeros::new_zeroed(),
            start: start.into(),
            end: end.into(),
            remain: start.into(),
            rid: 0.into(),
            seq: seq.into(),
            flags: LOG_MERGE_COMPLETE_REMAIN.into(),
        };
        self.trees.put(&keys::log_merge_complete(seq.into()), &parked)?;
        status.nr_complete = (status.nr_complete.get() + 1).into();
        Ok(())
    }

    /// COMMIT_LOG_MERGE. `ENOENT` is the normal answer to a repetition.
    pub(super) fn step_commit_log_merge(&mut self, from: Asker, sent: &LogMergeComplete) -> Outcome<Step> {
        let key = keys::log_merge_request(Rid(from.rid), sent.seq.get().into());
        let Some(mut status) = self.merge_status()? else { return refuse(Errno::ENOENT) };
        let Some(request) = self.trees.get::<LogMergeRequest>(&key)? else { return refuse(Errno::ENOENT) };
        let good = self.completes(&request, sent);
        if !good || sent.flags.get() & LOG_MERGE_COMPLETE_ERROR != 0 {
            self.cancel_merge_request(request)?;
            self.answer(from, if good { Ok(Vec::new()) } else { Err(Errno::EINVAL) });
            return Ok(Step::Done);
        }
        self.trees.remove::<LogMergeRequest>(&key)?;
        let mut complete = *sent;
        complete.root.pad = [0; 7];
        self.trees.put(&keys::log_merge_complete(sent.seq.get().into()), &complete)?;
        status.nr_complete = (status.nr_complete.get() + 1).into();
        status.nr_requests = status.nr_requests.get().saturating_sub(1).into();
        self.trees.put(&keys::LOG_MERGE_STATUS, &status)?;
        self.handed_merges.remove(&sent.seq.get());
        self.answer(from, Ok(Vec::new()));
        Ok(Step::Done)
    }

    /// Is it a possible result of this request? Of an error only the identity counts.
    fn completes(&self, request: &LogMergeRequest, sent: &LogMergeComplete) -> bool {
        let flags = sent.flags.get();
        if sent.rid != request.rid {
            return false;
        }
        if flags & LOG_MERGE_COMPLETE_ERROR != 0 {
            return true;
        }
        let (start, end, remain) = (sent.start.to_key(), sent.end.to_key(), sent.remain.to_key());
        let lists = [&sent.meta_avail, &sent.meta_freed];
        check::validate_merge_complete(sent.as_bytes(), self.trees.store.meta_blocks()).is_ok()
            && flags & !LOG_MERGE_COMPLETE_REMAIN == 0
            && (start, end) == (request.start.to_key(), request.end.to_key())
            && (flags & LOG_MERGE_COMPLETE_REMAIN == 0 || (start <= remain && remain <= end))
            && (request.flags.get() & LOG_MERGE_REQUEST_SUBTREE == 0 || sent.root.height == 2)
            && lists.iter().any(|l| l.block_ref.blkno.get() != 0)
    }

    /// Nobody works on this request any more: its keys have to be merged by somebody else.
    pub(super) fn cancel_merge_request(&mut self, mut request: LogMergeRequest) -> Result<()> {
        let Some(mut status) = self.merge_status()? else {
            return Err(Error::corrupt("log merge", "there is a request, but no merge"));
        };
        self.trees.take_list(&mut request.meta_avail)?;
        self.trees.take_list(&mut request.meta_freed)?;
        let (rid, seq) = (request.rid.get(), request.seq.get());
        self.trees.remove::<LogMergeRequest>(&keys::log_merge_request(Rid(rid), seq.into()))?;
        self.add_range(&mut status, request.start.to_key(), request.end.to_key())?;
        status.nr_requests = status.nr_requests.get().saturating_sub(1).into();
        self.trees.put(&keys::LOG_MERGE_STATUS, &status)?;
        self.handed_merges.remove(&seq);
        Ok(())
    }

    /// All completions, in order of their seq.
    pub(super) fn merge_completions(&self) -> Result<Vec<(Key, LogMergeComplete)>> {
        self.trees.all(zone(ZONE_LOG_MERGE_COMPLETE))
    }
}
