//! What the data room keeps in memory for one regular file.

use std::collections::BTreeSet;

use super::pages::{FilePages, PAGE, Pages};
use crate::alloc::extent::{Extent, ExtentMap};
use crate::format::DataBlock;
use crate::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use crate::sync::{Arc, Mutex};

/// A delayed range is a hole: blocks were promised for it.
pub(super) const DELAYED_NEW: u8 = 0;
/// A delayed range is unwritten space: it becomes written space.
pub(super) const DELAYED_CONVERT: u8 = crate::format::consts::EXTENT_UNWRITTEN;

/// Cached and dirty contents of a file, kept with its inode.
pub(crate) struct FileState {
    pub(super) pages: Arc<FilePages>,
    pub(super) work: Mutex<Work>,
    jobs: AtomicUsize,
    /// Where the last read ended, to recognise reading in order.
    next_read: AtomicU64,
}

/// What has to be done before the file is clean.
#[derive(Default)]
pub(super) struct Work {
    /// Dirty blocks without written space, with what they are now in `flags`. They count as online already.
    pub(super) delayed: ExtentMap,
    /// Chunks with dirty pages that no job has been made for.
    pub(super) dirty_chunks: BTreeSet<u64>,
    /// Pages made dirty since the last write-out.
    pub(super) unsubmitted: u64,
    /// Blocks taken for coming direct writes, given back by the commit.
    pub(super) window: Option<(DataBlock, u64)>,
    /// In the list of dirty files.
    pub(super) listed: bool,
    /// A block whose tail a coming change of size has to zero, as it is on the device.
    pub(super) tail: Option<(u64, Box<[u8; PAGE]>)>,
}

impl Work {
    /// A chunk has no dirty pages any more that wait for a job.
    pub(super) fn chunk_done(&mut self, index: u64) {
        self.dirty_chunks.remove(&index);
        // A set that was used keeps memory for its next entries; most files are never written again.
        if self.dirty_chunks.is_empty() {
            self.dirty_chunks = BTreeSet::new();
        }
    }

    /// Forgets delayed blocks of `first..=last`; returns how many were promised.
    pub(super) fn forget_delayed(&mut self, first: u64, last: u64) -> u64 {
        let mut promised = 0;
        self.delayed.erase(first, last, |e| promised += if e.flags == DELAYED_NEW { e.len } else { 0 });
        promised
    }

    /// Delayed blocks at or after `first`.
    pub(super) fn delayed_from(&self, first: u64) -> u64 {
        self.delayed.iter_from(first).map(|e| e.end() - e.start.max(first)).sum()
    }

    /// Adds a delayed range that overlaps none.
    pub(super) fn delay(&mut self, e: Extent) {
        if self.delayed.add(e).is_err() {
            debug_assert!(false, "a block is delayed twice");
        }
    }
}

impl FileState {
    pub(super) fn new(pages: Arc<Pages>) -> FileState {
        FileState {
            pages: Arc::new(FilePages::new(pages)),
            work: Mutex::new(Work::default()),
            jobs: AtomicUsize::new(0),
            next_read: AtomicU64::new(0),
        }
    }

    /// Notes a read up to `end`; does it go on where the last one ended, or start the file?
    pub(super) fn reads_in_order(&self, offset: u64, end: u64) -> bool {
        let before = self.next_read.swap(end, Relaxed);
        offset == 0 || before == offset
    }

    pub(super) fn job_started(&self) {
        self.jobs.fetch_add(1, AcqRel);
    }

    pub(super) fn job_ended(&self) {
        self.jobs.fetch_sub(1, AcqRel);
    }

    /// Jobs queued or running.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.load(Acquire)
    }
}
