//! Contents of regular files: reading, writing, space, holes (`spec/07`).
//!
//! **Problem.** Programs write any bytes in any order and in small pieces; a volume lives from large extents, and extents and
//! data must become durable together, data first. Space must never run out for what was accepted already.
//!
//! **Idea.** Writing copies into pages, promises the blocks that will be needed (so a full volume is known at once) and changes
//! the inode item, all in one transaction; *where* the blocks are is decided when the pages are written, that is when enough has
//! come together or when the transaction commits. A file written in small appends becomes one extent. Extents that exist are
//! written in place.
//!
//! Invariants (cited by tests):
//! 1. Every dirty page belongs to the open transaction: a commit allocates space for all of them, writes them all and waits,
//!    before anything that refers to them is made durable. A page whose write failed stays dirty and no commit passes it
//!    (`spec/00 §6` row 3).
//! 2. A dirty block is either in a written extent or in the file's list of delayed ranges. Delayed blocks of holes are
//!    promised by the data allocator; all delayed blocks count as online in the inode.
//! 3. Extents, counts and size of a file change only under the inode's operation lock (write) and inside a transaction hold, or
//!    by the commit itself, which excludes holds.
//! 4. Bytes between the size and the end of its block read as zeros, in memory and, once written, on the device.
//! 5. Memory is bounded: clean pages by the cache limit, dirty pages by the dirty limit plus one write.
//! 6. A wait for offline data holds no lock.
//!
//! | file | concept |
//! |---|---|
//! | `pages` | memory for contents |
//! | `extents` | extents as items |
//! | `state` | what is kept for a file |
//! | `io` | the threads that write pages |
//! | `writeout` | deciding where dirty pages go; the part of a commit |
//! | `read`, `write`, `resize`, `fallocate`, `report` | the operations |
//! | `wait` | sleeping until archived contents are back |
//!
//! Not here: the original's preallocation of unwritten blocks past the end (`spec/07 §9.3`, policy). Delayed allocation and the
//! windows of direct writes give large extents without leaving anything behind; files that have such blocks are read and written
//! all the same. The options have their meaning for the windows: how much is taken ahead of a file at most, and whether only for
//! files that grow at their end. A window ramps up with the file as in the original, and what is left of it goes back with the
//! commit. Delayed writes need none, for they are allocated when their number is known.
//!
//! Threads: `scoutfs-data-0`, `-1` write pages, and flush the device when the last of a commit are written; they block on the data
//! device only.

mod extents;
mod fallocate;
mod io;
mod pages;
mod read;
mod report;
mod resize;
mod state;
#[cfg(test)]
mod tests;
mod wait;
mod write;
mod writeout;

use std::collections::BTreeMap;

use crate::device::{BlockDevice, FlushTracker};
use crate::error::{Errno, Result, fail};
use crate::format::{DirentKind, Ino};
use crate::item::{CoveringLock, ItemLock, Items};
use crate::lock::{LockName, Mode};
use crate::namespace::{Fields, Inode};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::sync::{Arc, Mutex};
use crate::txn::{Hold, Txn};

use extents::FileExtents;
use io::Writer;
use pages::{PAGE, Pages};
use state::FileState;
use wait::Waiters;

pub use report::FileExtent;

/// What [`Data`] works with.
pub(crate) struct DataParts {
    pub(crate) items: Arc<Items>,
    pub(crate) txn: Arc<Txn>,
    pub(crate) data_dev: Arc<FlushTracker>,
    pub(crate) read_only: bool,
    /// Bytes of clean file data kept in memory.
    pub(crate) cache_bytes: usize,
    /// Bytes of written data that may wait for a commit.
    pub(crate) dirty_bytes: usize,
    /// Most blocks taken ahead of a file that is written directly (`data_prealloc_blocks`).
    pub(crate) prealloc_blocks: u64,
    /// Only for files without holes that are written at their end (`data_prealloc_contig_only`).
    pub(crate) prealloc_contig_only: bool,
}

/// A file with dirty contents. The inode stays in memory as long as it is listed.
struct DirtyFile {
    inode: Arc<Inode>,
    file: Arc<FileState>,
    lock: Arc<CoveringLock>,
}

/// The contents of all regular files of a mount. Implements `namespace::FileData` and `txn::CommitHook`.
pub(crate) struct Data {
    items: Arc<Items>,
    txn: Arc<Txn>,
    device: Arc<FlushTracker>,
    /// Size of the device when the mount was opened.
    device_blocks: u64,
    prealloc_blocks: u64,
    prealloc_contig_only: bool,
    read_only: bool,
    pages: Arc<Pages>,
    dirty_limit: usize,
    dirty: Mutex<BTreeMap<Ino, DirtyFile>>,
    /// Delayed ranges of all files: extent items that the commit will have to change.
    delayed_ranges: AtomicU64,
    writer: Writer,
    /// The last wait of a commit ended with a failure: its pages must be submitted again.
    write_failed: AtomicBool,
    waiters: Waiters,
}

impl Data {
    /// Starts the threads that write.
    pub(crate) fn new(parts: DataParts) -> Result<Arc<Data>> {
        Ok(Arc::new(Data {
            items: parts.items,
            txn: parts.txn,
            writer: Writer::start(parts.data_dev.clone())?,
            device_blocks: parts.data_dev.size() / PAGE as u64,
            prealloc_blocks: parts.prealloc_blocks,
            prealloc_contig_only: parts.prealloc_contig_only,
            device: parts.data_dev,
            read_only: parts.read_only,
            pages: Pages::new(parts.cache_bytes),
            dirty_limit: parts.dirty_bytes.max(64 * PAGE),
            dirty: Mutex::new(BTreeMap::new()),
            delayed_ranges: AtomicU64::new(0),
            write_failed: AtomicBool::new(false),
            waiters: Waiters::new(),
        }))
    }

    /// The lock is about to be lost: who waits for staging looks again. Cached contents are dropped when they are next looked
    /// at, for the lock has another generation then.
    pub(crate) fn revoked(&self, name: LockName, to: Mode) {
        if to == Mode::Null {
            self.waiters.lock_lost(name);
        }
    }

    /// Ends the threads; nothing is dirty any more, or nothing matters any more.
    pub(crate) fn close(&self) {
        self.waiters.close();
        self.writer.close();
    }

    /// What is in memory for a file, valid under `lock`.
    fn file(&self, inode: &Inode, lock: &ItemLock) -> Arc<FileState> {
        let file = inode.file(|| FileState::new(self.pages.clone()));
        file.pages.validate(lock.refresh_gen());
        file
    }

    /// The stored extents of a file.
    fn stored<'a>(&'a self, lock: &'a CoveringLock, ino: Ino) -> FileExtents<'a> {
        FileExtents {
            items: &self.items,
            lock,
            ino,
            device_blocks: self.device_blocks,
            device: &self.device,
            commits: false,
        }
    }

    /// Puts a file on the list of those that a commit has to write.
    fn list_dirty(&self, inode: &Arc<Inode>, file: &Arc<FileState>, lock: &ItemLock) {
        if !file.work.lock().listed {
            let entry = DirtyFile { inode: inode.clone(), file: file.clone(), lock: lock.handle() };
            self.dirty.lock().insert(inode.ino(), entry);
            file.work.lock().listed = true;
        }
    }

    /// Forgets cached contents and delayed ranges of pages `first..=last`, dirty or not, and the promises that go with them.
    fn forget(&self, hold: &Hold<'_>, file: &FileState, first: u64, last: u64) -> Result<()> {
        file.pages.forget(first, last);
        let (before, after, promised) = {
            let mut work = file.work.lock();
            let before = work.delayed.len();
            let promised = work.forget_delayed(first, last);
            (before, work.delayed.len(), promised)
        };
        hold.data(|d| {
            d.unreserve(promised);
            Ok(())
        })?;
        self.note_ranges(hold, before, after)
    }

    /// The number of a file's delayed ranges has changed: the transaction counts the items that will follow.
    fn note_ranges(&self, hold: &Hold<'_>, before: usize, after: usize) -> Result<()> {
        if before == after {
            return Ok(());
        }
        let change = (after as u64).wrapping_sub(before as u64);
        let all = self.delayed_ranges.fetch_add(change, Relaxed).wrapping_add(change);
        hold.data(|d| {
            d.expect_items(all);
            Ok(())
        })
    }
}

/// `EISDIR` or `EINVAL` unless the inode is a regular file.
fn check_regular(f: &Fields) -> Result<()> {
    match f.kind {
        DirentKind::Regular => Ok(()),
        DirentKind::Dir => fail(Errno::EISDIR),
        _ => fail(Errno::EINVAL),
    }
}
