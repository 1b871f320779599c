//! Deciding where dirty pages go, and the data room's part of a commit (`spec/07 §7`).
//!
//! Write-out of a file has two steps. First every delayed range gets blocks: promised ones for holes, the existing ones for
//! unwritten space; the extent items change in the open transaction. Then all dirty pages are handed to the writer threads.
//! A stream does this early for its full chunks; a commit does it for everything and waits.

use smallvec::SmallVec;

use super::extents::{Edit, FileExtents, Stored, is_online};
use super::io::{JOB_BYTES, Job, Part};
use super::pages::{CHUNK_PAGES, PAGE, runs};
use super::state::{DELAYED_NEW, FileState};
use super::{Data, DirtyFile};
use crate::alloc::extent::{Extent, ExtentRead};
use crate::error::{Error, Result};
use crate::format::{DataBlock, Ino};
use crate::item::{ChangeSet, CoveringLock, InTransaction};
use crate::sync::Arc;
use crate::sync::atomic::Ordering::Relaxed;
use crate::txn::{CommitCtx, CommitHook, Hold};

/// Pages on the way to a job. Until the job is started they count as not submitted, so a batch may be dropped.
#[derive(Default)]
pub(super) struct Batch {
    parts: Vec<Part>,
    bytes: usize,
}

impl Data {
    /// Allocates and submits dirty pages of a file: all of them, or all but those of the last chunk, which is probably being
    /// filled. What is less than a job is left in `batch`, for the caller to go on with or to start. The operation lock
    /// (write) is held, or this is the commit.
    pub(super) fn write_out(
        &self,
        hold: &Hold<'_>,
        ino: Ino,
        lock: &CoveringLock,
        file: &Arc<FileState>,
        all: bool,
        batch: &mut Batch,
    ) -> Result<()> {
        if all {
            self.close_window(hold, file)?;
        }
        let last = file.work.lock().dirty_chunks.last().copied();
        let Some(last) = last else { return Ok(()) };
        let limit = if all { u64::MAX } else { last };
        let stored = FileExtents { commits: hold.commits(), ..self.stored(lock, ino) };
        self.allocate(hold, &stored, file, limit.saturating_mul(CHUNK_PAGES))?;
        self.submit(&stored, file, limit, batch)
    }

    /// Gives the delayed ranges before page `limit` their blocks.
    fn allocate(&self, hold: &Hold<'_>, stored: &FileExtents<'_>, file: &FileState, limit: u64) -> Result<()> {
        if limit == 0 {
            return Ok(());
        }
        let ranges: Vec<Extent> = {
            let work = file.work.lock();
            let before = work.delayed.iter().take_while(|e| e.start < limit);
            before.map(|e| e.cut(e.start, limit - 1)).collect()
        };
        if ranges.is_empty() {
            return Ok(());
        }
        let mut taken: Vec<(DataBlock, u64)> = Vec::new();
        let mut edit = Edit::new(*stored);
        let planned = ranges.iter().try_for_each(|r| self.map_range(hold, &mut edit, r, &mut taken));
        let applied = planned.and_then(|()| {
            let mut cs = ChangeSet::new(&self.items);
            edit.add_to(&mut cs);
            cs.apply(hold)
        });
        if let Err(e) = applied {
            hold.data(|d| {
                for (start, len) in &taken {
                    d.give_back(*start, *len);
                    d.reserve(*len)?;
                }
                Ok(())
            })?;
            return Err(e);
        }
        let (before, after) = {
            let mut work = file.work.lock();
            let before = work.delayed.len();
            for r in &ranges {
                work.forget_delayed(r.start, r.last());
            }
            (before, work.delayed.len())
        };
        self.note_ranges(hold, before, after)
    }

    /// Plans written space for one delayed range.
    fn map_range(
        &self,
        hold: &Hold<'_>,
        edit: &mut Edit<FileExtents<'_>>,
        range: &Extent,
        taken: &mut Vec<(DataBlock, u64)>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let piece = if range.flags == DELAYED_NEW {
                let (start, len) = hold.data(|d| d.alloc_reserved(range.end() - at))?;
                taken.push((start, len));
                Extent::new(at, len, start.0, 0)
            } else {
                let found = edit.next(at)?.filter(|e| e.start <= at && e.map != 0);
                let e = found.ok_or_else(|| {
                    Error::corrupt("file data in memory", format!("block {at} was unwritten space and is not any more"))
                })?;
                Extent { flags: 0, ..e.cut(at, range.last()) }
            };
            edit.set(piece)?;
            at = piece.end();
        }
        Ok(())
    }

    /// Makes jobs of all dirty pages in chunks before `limit`, but for the rest that is left in `batch`. They all have
    /// written space.
    fn submit(&self, stored: &FileExtents<'_>, file: &Arc<FileState>, limit: u64, batch: &mut Batch) -> Result<()> {
        let indices: Vec<u64> = file.work.lock().dirty_chunks.range(..limit).copied().collect();
        let mut pages = 0;
        let mut current: Option<Extent> = None;
        for index in &indices {
            // Forgotten chunks have nothing to write any more.
            let Some(chunk) = file.pages.chunk(*index) else {
                file.work.lock().chunk_done(*index);
                continue;
            };
            let dirty = chunk.state.read().dirty;
            let mut mapped: SmallVec<[(u64, u64, u64); 2]> = SmallVec::new();
            for (from, n) in runs(dirty) {
                let (mut at, end) = (index * CHUNK_PAGES + from, index * CHUNK_PAGES + from + n);
                while at < end {
                    if current.is_none_or(|e| !e.contains(at)) {
                        current = stored.next(at)?;
                    }
                    let Some(e) = current.filter(|e| e.contains(at) && is_online(e)) else {
                        return Err(Error::corrupt(
                            format!("file {}", stored.ino),
                            format!("block {at} is dirty and has no written space"),
                        ));
                    };
                    let piece = e.cut(at, end - 1);
                    mapped.push((at - index * CHUNK_PAGES, piece.len, piece.map));
                    at = piece.end();
                }
            }
            batch.bytes += dirty.count_ones() as usize * PAGE;
            pages += u64::from(dirty.count_ones());
            batch.parts.push(Part { file: file.clone(), chunk, runs: mapped });
            if batch.bytes >= JOB_BYTES {
                self.start_job(batch);
            }
        }
        let mut work = file.work.lock();
        work.unsubmitted = work.unsubmitted.saturating_sub(pages);
        Ok(())
    }

    /// Submits what has come together.
    pub(super) fn start_job(&self, batch: &mut Batch) {
        let Batch { parts, .. } = std::mem::take(batch);
        if parts.is_empty() {
            return;
        }
        for part in &parts {
            part.file.work.lock().chunk_done(part.chunk.index);
        }
        self.writer.submit(Job { parts });
    }

    /// Blocks for a direct write, of which `promised` are reserved: from the file's window, which grows with the file, so that
    /// files that are written side by side do not interleave block by block.
    pub(super) fn window_alloc(
        &self,
        hold: &Hold<'_>,
        file: &FileState,
        want: u64,
        promised: &mut u64,
        ahead: u64,
    ) -> Result<(DataBlock, u64)> {
        let mut work = file.work.lock();
        let (start, len) = match work.window.take() {
            Some(window) => window,
            None => hold.data(|d| {
                // More than is wanted only if it was promised to nobody.
                d.unreserve(*promised);
                let most = d.total() - promised.saturating_sub(want);
                let got = d.alloc(want.max(ahead).min(most));
                *promised -= got.as_ref().map_or(0, |(_, len)| want.min(*len)).min(*promised);
                d.reserve(*promised)?;
                got
            })?,
        };
        let taken = want.min(len);
        work.window = (len > taken).then(|| (DataBlock(start.0 + taken), len - taken));
        Ok((start, taken))
    }

    /// How large a window may be for a file with so many blocks that is written from block `first` on: it grows with the file.
    pub(super) fn blocks_ahead(&self, first: u64, online: u64) -> u64 {
        let in_order = first == online;
        if self.prealloc_contig_only && !in_order { 0 } else { online.min(self.prealloc_blocks) }
    }

    /// Gives back what is left of the window.
    fn close_window(&self, hold: &Hold<'_>, file: &FileState) -> Result<()> {
        match file.work.lock().window.take() {
            Some(window) => self.give_back(hold, &[window]),
            None => Ok(()),
        }
    }

    /// Gives back blocks that this transaction took and that no I/O is going to.
    pub(super) fn give_back(&self, hold: &Hold<'_>, taken: &[(DataBlock, u64)]) -> Result<()> {
        hold.data(|d| {
            taken.iter().for_each(|(start, len)| d.give_back(*start, *len));
            Ok(())
        })
    }

    fn listed(&self) -> Vec<(Ino, Arc<FileState>, Arc<CoveringLock>)> {
        self.dirty.lock().iter().map(|(ino, d)| (*ino, d.file.clone(), d.lock.clone())).collect()
    }
}

impl CommitHook for Data {
    fn is_dirty(&self) -> bool {
        !self.dirty.lock().is_empty()
    }

    fn prepare(&self, ctx: &CommitCtx) -> Result<()> {
        // Whatever failed before is dirty and submitted now.
        self.writer.clear_failure();
        self.write_failed.store(false, Relaxed);
        // Small files share jobs.
        let mut batch = Batch::default();
        for (ino, file, lock) in self.listed() {
            self.write_out(ctx.hold(), ino, &lock, &file, true, &mut batch)?;
        }
        self.start_job(&mut batch);
        self.writer.flush_behind();
        Ok(())
    }

    fn wait(&self) -> Result<bool> {
        let resubmitted = match self.write_failed.load(Relaxed) {
            // Holders are excluded, so what is dirty now is what failed.
            true => {
                let mut batch = Batch::default();
                let submitted = self.listed().iter().try_for_each(|(ino, file, lock)| {
                    let stored = FileExtents { commits: true, ..self.stored(lock, *ino) };
                    self.submit(&stored, file, u64::MAX, &mut batch)
                });
                self.start_job(&mut batch);
                submitted
            }
            false => Ok(()),
        };
        let result = resubmitted.and(self.writer.wait_all()).and_then(|wrote| {
            // The last line of defence of invariant 1.
            match self.dirty.lock().iter().find(|(_, d)| d.file.pages.is_dirty()) {
                Some((ino, _)) => Err(Error::corrupt(format!("file {ino} in memory"), "dirty after all was written")),
                None => Ok(wrote),
            }
        });
        self.write_failed.store(result.is_err(), Relaxed);
        result
    }

    fn committed(&self) {
        let mut clean: Vec<DirtyFile> = Vec::new();
        let mut dirty = self.dirty.lock();
        dirty.retain(|_, d| {
            if d.file.pages.is_dirty() {
                return true;
            }
            d.file.work.lock().listed = false;
            clean.push(DirtyFile { inode: d.inode.clone(), file: d.file.clone(), lock: d.lock.clone() });
            false
        });
        drop(dirty);
        // Inodes that nobody else refers to end here, outside of the lock.
        drop(clean);
        self.delayed_ranges.store(0, Relaxed);
    }
}
