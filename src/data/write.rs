//! Buffered writing (`spec/07 §9`).

use smallvec::SmallVec;

use super::extents::{Edit, FileExtents, check_end, is_offline, is_unwritten, unexpected_offline};
use super::pages::{CHUNK_PAGES, Chunk, PAGE, mask};
use super::state::{DELAYED_CONVERT, DELAYED_NEW, FileState};
use super::writeout::Batch;
use super::{Data, check_regular};
use crate::alloc::extent::Extent;
use crate::device::BlockDevice;
use crate::error::{Errno, Error, Result, fail};
use crate::format::{DataBlock, Ino};
use crate::item::{ChangeSet, ItemLock};
use crate::lock::{Loan, Mode};
use crate::namespace::{Caller, Fields, Inode, Namespace, Touch, Tx, mode_after_write};
use crate::sync::Arc;
use crate::txn::HoldKind;

/// Bytes that are written in one transaction hold.
const PIECE_BYTES: usize = 1 << 20;
/// Aligned pieces of at least this many bytes do not go through the cache.
const DIRECT_BYTES: usize = 128 << 10;

/// Why contents are changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// Somebody asks for it.
    Call,
    /// A front end gives back what it was lent and has changed.
    Cache,
}

/// A file that is being changed: operation lock (write) and WRITE lock held, fields fresh, nothing offline or pending.
pub(super) struct Target<'a> {
    pub(super) ns: &'a Namespace,
    pub(super) caller: &'a Caller,
    pub(super) inode: &'a Arc<Inode>,
    pub(super) lock: &'a ItemLock,
    pub(super) file: Arc<FileState>,
}

impl Data {
    /// Writes all of `data` at `offset` (fewer bytes only when space ends half way).
    pub(crate) fn write(&self, ns: &Namespace, caller: &Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        self.write_at(ns, (caller, Asker::Call), ino, Some(offset), data).map(|(_, n)| n)
    }

    /// Writes at the end of the file; returns where.
    pub(crate) fn append(&self, ns: &Namespace, caller: &Caller, ino: Ino, data: &[u8]) -> Result<(u64, usize)> {
        self.write_at(ns, (caller, Asker::Call), ino, None, data)
    }

    /// Writes what a front end has changed of what it was lent. What lies behind the end of the file is dropped: a mapping
    /// makes no file longer.
    pub(crate) fn return_loan(
        &self,
        ns: &Namespace,
        caller: &Caller,
        ino: Ino,
        offset: u64,
        data: &[u8],
    ) -> Result<usize> {
        self.write_at(ns, (caller, Asker::Cache), ino, Some(offset), data).map(|(_, n)| n)
    }

    fn write_at(
        &self,
        ns: &Namespace,
        (caller, asker): (&Caller, Asker),
        ino: Ino,
        at: Option<u64>,
        data: &[u8],
    ) -> Result<(u64, usize)> {
        self.throttle()?;
        self.change_as(ns, (caller, asker), ino, |target| {
            let size = || target.inode.fields().size;
            let offset = at.unwrap_or_else(size);
            let data = match asker {
                Asker::Call => data,
                Asker::Cache => &data[..(data.len() as u64).min(size().saturating_sub(offset)) as usize],
            };
            check_end(offset, data.len() as u64)?;
            self.write_pieces(target, offset, data).map(|n| (offset, n))
        })
    }

    /// The frame of everything that changes contents (`spec/07 §9.1` steps 1 to 6): locks, checks, waiting until the whole
    /// file is online.
    pub(super) fn change<R>(
        &self,
        ns: &Namespace,
        caller: &Caller,
        ino: Ino,
        f: impl FnMut(&Target<'_>) -> Result<R>,
    ) -> Result<R> {
        self.change_as(ns, (caller, Asker::Call), ino, f)
    }

    fn change_as<R>(
        &self,
        ns: &Namespace,
        (caller, asker): (&Caller, Asker),
        ino: Ino,
        mut f: impl FnMut(&Target<'_>) -> Result<R>,
    ) -> Result<R> {
        if self.read_only {
            return fail(Errno::EROFS);
        }
        loop {
            let inode = ns.inode(ino)?;
            let lock = match asker {
                Asker::Call => ns.lock_group(&inode, Mode::Write)?,
                Asker::Cache => ns.lock_loan(&inode, Mode::Write, Loan::Return)?,
            };
            let op = inode.op.write();
            let fields = ns.fresh(&inode, &lock)?;
            check_regular(&fields)?;
            if fields.in_retention() {
                return fail(Errno::EPERM);
            }
            ns.finish_truncate(&inode, &lock)?;
            if inode.fields().offline_blocks > 0 {
                let last = inode.fields().size.div_ceil(PAGE as u64).saturating_sub(1);
                if self.stored(&lock, ino).first_offline(0, last)?.is_some() {
                    if asker == Asker::Cache {
                        // The lock may be waited for elsewhere until this is done.
                        return fail(Errno::EIO);
                    }
                    let waiter = self.waiters.sample(ino);
                    drop(op);
                    drop(lock);
                    waiter.sleep()?;
                    continue;
                }
            }
            let file = self.file(&inode, &lock);
            return f(&Target { ns, caller, inode: &inode, lock: &lock, file });
        }
    }

    /// Writes piece by piece; an error after the first piece is a short write.
    pub(super) fn write_pieces(&self, target: &Target<'_>, offset: u64, data: &[u8]) -> Result<usize> {
        let mut done = 0;
        let mut most = PIECE_BYTES;
        while done < data.len() {
            let at = offset + done as u64;
            let piece = next_piece(at, &data[done..], most);
            let written = match self.write_direct(target, at, piece) {
                Ok(false) => self.write_piece(target, at, piece),
                Ok(true) => Ok(()),
                Err(e) => Err(e),
            };
            match written {
                Ok(()) => {
                    done += piece.len();
                    self.pages.evict();
                    if done < data.len() {
                        self.throttle()?;
                    }
                }
                Err(Error::NeedCommit) => self.txn.sync()?,
                // There may be room for less.
                Err(e) if e.is(Errno::ENOSPC) && piece.len() > PAGE => most = (piece.len() / 2).max(PAGE),
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Whole blocks, many of them, and none of them dirty: straight from the caller's memory to the device, inside the
    /// hold, before anything refers to them. False: it has to go through the cache, also after an error of the device.
    fn write_direct(&self, target: &Target<'_>, offset: u64, data: &[u8]) -> Result<bool> {
        let Target { ns, caller, inode, lock, file } = target;
        let (page, size) = (PAGE as u64, inode.fields().size);
        let whole = offset.is_multiple_of(page) && data.len().is_multiple_of(PAGE);
        let aligned = whole && (offset <= size || size.is_multiple_of(page));
        if data.len() < DIRECT_BYTES || !aligned {
            return Ok(false);
        }
        let end = offset + data.len() as u64;
        let (first, last) = (offset / page, end / page - 1);
        if file.pages.is_busy(first, last)
            || file.work.lock().delayed.at_or_after(first).is_some_and(|d| d.start <= last)
        {
            return Ok(false);
        }
        self.list_dirty(inode, file, lock);
        let tx = ns.begin(HoldKind::Allocating, &[(inode, Touch::Data)])?;
        let mut f = inode.fields();
        let stored = self.stored(lock, inode.ino());
        let mut new = 0;
        stored.pieces(first, last, &mut |piece| {
            new += if piece.map == 0 { piece.len } else { 0 };
            Ok(())
        })?;
        let mut promised = new.saturating_sub(file.work.lock().window.map_or(0, |w| w.1));
        tx.hold().data(|d| d.reserve(promised))?;
        let mut plan = Direct { edit: Edit::new(stored), taken: Vec::new(), online: 0, batch: Vec::new() };
        let ahead = self.blocks_ahead(first, f.online_blocks);
        let mut alloc = |want| self.window_alloc(tx.hold(), file, want, &mut promised, ahead);
        let planned = stored.pieces(first, last, &mut |piece| {
            let from = (piece.start - first) as usize * PAGE;
            plan.add(&piece, &data[from..from + piece.len as usize * PAGE], &mut alloc)
        });
        if let Err(e) = planned {
            self.give_back(tx.hold(), &plan.taken)?;
            tx.hold().data(|d| {
                d.unreserve(promised);
                Ok(())
            })?;
            return Err(e);
        }
        if let Err(e) = self.device.write_batch(&plan.batch) {
            tracing::warn!("direct write to inode {}: {e}; going through the cache", inode.ino());
            self.give_back(tx.hold(), &plan.taken)?;
            return Ok(false);
        }
        self.writer.note_written();
        f.online_blocks += plan.online;
        wrote_up_to(&mut f, end, &tx, caller);
        let mut cs = ChangeSet::new(&self.items);
        plan.edit.add_to(&mut cs);
        ns.put_inode(&mut cs, &tx, lock, inode, &mut f, Touch::Data);
        if let Err(e) = cs.apply(tx.hold()) {
            self.give_back(tx.hold(), &plan.taken)?;
            return Err(e);
        }
        inode.store(lock.refresh_gen(), f);
        file.pages.forget(first, last);
        Ok(true)
    }

    /// One piece in one transaction.
    fn write_piece(&self, target: &Target<'_>, offset: u64, data: &[u8]) -> Result<()> {
        let Target { ns, caller, inode, lock, file } = target;
        let stored = self.stored(lock, inode.ino());
        let end = offset + data.len() as u64;
        let (first, last) = (offset / PAGE as u64, (end - 1) / PAGE as u64);
        // Pages that are only partly overwritten must be in memory; the references keep them there.
        let _edges = self.load_edges(file, &stored, offset, end, inode.fields().size)?;

        let tx = ns.begin(HoldKind::Allocating, &[(inode, Touch::Data)])?;
        let mut f = inode.fields();
        let old_size = f.size;
        let delayed = self.not_written(file, &stored, first, last)?;
        let new: u64 = delayed.iter().filter(|e| e.flags == DELAYED_NEW).map(|e| e.len).sum();
        if new > 0 {
            tx.hold().data(|d| d.reserve(new))?;
        }
        wrote_up_to(&mut f, end, &tx, caller);
        f.online_blocks += delayed.iter().map(|e| e.len).sum::<u64>();
        let mut cs = ChangeSet::new(&self.items);
        ns.put_inode(&mut cs, &tx, lock, inode, &mut f, Touch::Data);
        if let Err(e) = cs.apply(tx.hold()) {
            tx.hold().data(|d| {
                d.unreserve(new);
                Ok(())
            })?;
            return Err(e);
        }
        inode.store(lock.refresh_gen(), f);

        // From here on nothing fails.
        self.list_dirty(inode, file, lock);
        let mut made = if offset > old_size { zero_tail(file, old_size, offset) } else { 0 };
        made += self.fill_pages(file, offset, data, old_size.max(end));
        let (before, after, unsubmitted) = {
            let mut work = file.work.lock();
            let before = work.delayed.len();
            delayed.iter().for_each(|e| work.delay(*e));
            work.unsubmitted += made;
            (before, work.delayed.len(), work.unsubmitted)
        };
        self.note_ranges(tx.hold(), before, after)?;
        if after > before {
            self.items.promise(delayed.iter().map(|e| stored.key(e)));
        }
        if unsubmitted as usize * PAGE >= self.write_out_bytes() {
            let mut batch = Batch::default();
            if let Err(e) = self.write_out(tx.hold(), inode.ino(), lock, file, false, &mut batch) {
                // The commit tries again, and tells.
                tracing::warn!("early write-out of inode {}: {e}", inode.ino());
            }
            self.start_job(&mut batch);
        }
        Ok(())
    }

    /// Loads the pages of which `offset..end` covers only a part, and the one whose tail becomes visible when the file grows.
    fn load_edges(
        &self,
        file: &Arc<FileState>,
        stored: &FileExtents<'_>,
        offset: u64,
        end: u64,
        size: u64,
    ) -> Result<SmallVec<[Arc<Chunk>; 3]>> {
        let page = PAGE as u64;
        let mut edges: SmallVec<[u64; 3]> = SmallVec::new();
        if offset > size && !size.is_multiple_of(page) {
            edges.push(size / page);
        }
        if !offset.is_multiple_of(page) {
            edges.push(offset / page);
        }
        if !end.is_multiple_of(page) {
            edges.push(end / page);
        }
        edges.dedup();
        let mut pins = SmallVec::new();
        for at in edges {
            // Pinned first, so that it is not evicted in between.
            pins.push(file.pages.chunk_or_new(at / CHUNK_PAGES));
            self.load(file, stored, at, at, at)?;
        }
        Ok(pins)
    }

    /// The parts of `first..=last` that have no written space and are not delayed yet: holes and unwritten space.
    fn not_written(
        &self,
        file: &FileState,
        stored: &FileExtents<'_>,
        first: u64,
        last: u64,
    ) -> Result<SmallVec<[Extent; 4]>> {
        let work = file.work.lock();
        let mut out: SmallVec<[Extent; 4]> = SmallVec::new();
        let mut at = first;
        while at <= last {
            let gap_end = match work.delayed.at_or_after(at) {
                Some(d) if d.start <= at => {
                    at = d.end();
                    continue;
                }
                Some(d) => d.start.min(last + 1),
                None => last + 1,
            };
            stored.pieces(at, gap_end - 1, &mut |piece| {
                if is_offline(&piece) {
                    return unexpected_offline(piece.start);
                }
                if piece.map == 0 {
                    out.push(Extent::new(piece.start, piece.len, 0, DELAYED_NEW));
                } else if is_unwritten(&piece) {
                    out.push(Extent::new(piece.start, piece.len, 0, DELAYED_CONVERT));
                }
                Ok(())
            })?;
            at = gap_end;
        }
        Ok(out)
    }

    /// Copies `data` into pages and marks them dirty; zeros what the last page has behind the new end of the file. Returns how
    /// many pages became dirty.
    fn fill_pages(&self, file: &Arc<FileState>, offset: u64, data: &[u8], size: u64) -> u64 {
        let (page, chunk_bytes) = (PAGE as u64, CHUNK_PAGES * PAGE as u64);
        let end = offset + data.len() as u64;
        let mut made = 0;
        let mut pos = offset;
        while pos < end {
            let index = pos / chunk_bytes;
            let base = index * chunk_bytes;
            let upto = end.min(base + chunk_bytes);
            let chunk = file.pages.chunk_or_new(index);
            let mut state = chunk.state.write();
            if state.gone {
                continue;
            }
            chunk.touch();
            let (first, last) = ((pos - base) / page, (upto - 1 - base) / page);
            self.pages.grow(&mut state, last as usize + 1);
            let bytes = state.bytes_mut();
            let (from, to) = ((pos - base) as usize, (upto - base) as usize);
            bytes[from..to].copy_from_slice(&data[(pos - offset) as usize..(upto - offset) as usize]);
            if upto == size {
                bytes[to..(last as usize + 1) * PAGE].fill(0);
            }
            let bits = mask(first, last - first + 1);
            made += file.pages.set_dirty(&mut state, bits);
            drop(state);
            file.work.lock().dirty_chunks.insert(index);
            pos = upto;
        }
        made
    }

    /// Waits until there is room for more dirty pages.
    fn throttle(&self) -> Result<()> {
        while self.pages.dirty_bytes() > self.dirty_limit {
            if self.writer.is_busy() {
                self.writer.wait_one();
            } else {
                self.txn.sync()?;
            }
        }
        Ok(())
    }

    /// Dirty bytes of one file that are worth writing before the commit.
    fn write_out_bytes(&self) -> usize {
        (self.dirty_limit / 4).min(8 << 20)
    }
}

/// The next piece of at most `most` bytes: if a piece can be written directly it consists of whole blocks.
fn next_piece(offset: u64, data: &[u8], most: usize) -> &[u8] {
    let len = data.len().min(most);
    let head = (PAGE - offset as usize % PAGE) % PAGE;
    if len < head + DIRECT_BYTES {
        &data[..len]
    } else if head > 0 {
        &data[..head]
    } else {
        &data[..len / PAGE * PAGE]
    }
}

/// What every write changes in the inode, apart from its space.
fn wrote_up_to(f: &mut Fields, end: u64, tx: &Tx<'_>, caller: &Caller) {
    f.size = f.size.max(end);
    f.data_version += 1;
    f.version += 1;
    (f.mtime, f.ctime) = (tx.now, tx.now);
    f.mode = mode_after_write(f, caller);
}

/// A direct write before it is made.
struct Direct<'a, 'd> {
    edit: Edit<FileExtents<'a>>,
    taken: Vec<(DataBlock, u64)>,
    /// Blocks that become online.
    online: u64,
    batch: Vec<(u64, &'d [u8])>,
}

impl<'d> Direct<'_, 'd> {
    /// Plans one piece of an extent or a hole.
    fn add(
        &mut self,
        piece: &Extent,
        data: &'d [u8],
        alloc: &mut dyn FnMut(u64) -> Result<(DataBlock, u64)>,
    ) -> Result<()> {
        if is_offline(piece) {
            return unexpected_offline(piece.start);
        }
        if piece.map != 0 {
            if is_unwritten(piece) {
                self.edit.set(Extent { flags: 0, ..*piece })?;
                self.online += piece.len;
            }
            self.batch.push((piece.map * PAGE as u64, data));
            return Ok(());
        }
        let mut done = 0;
        while done < piece.len {
            let (start, len) = alloc(piece.len - done)?;
            self.taken.push((start, len));
            self.edit.set(Extent::new(piece.start + done, len, start.0, 0))?;
            self.batch.push((start.0 * PAGE as u64, &data[done as usize * PAGE..(done + len) as usize * PAGE]));
            done += len;
        }
        self.online += piece.len;
        Ok(())
    }
}

/// The bytes of the block of `size` from there to `upto` or the end of the block become visible: they are zeros. The page is
/// loaded. Returns how many pages became dirty.
pub(super) fn zero_tail(file: &Arc<FileState>, size: u64, upto: u64) -> u64 {
    let page = size / PAGE as u64;
    let (from, end) = ((size % PAGE as u64) as usize, (upto - page * PAGE as u64).min(PAGE as u64) as usize);
    let Some(chunk) = file.pages.chunk(page / CHUNK_PAGES).filter(|_| from != 0) else { return 0 };
    let mut state = chunk.state.write();
    let within = page % CHUNK_PAGES;
    if state.valid & mask(within, 1) == 0 {
        return 0;
    }
    let start = within as usize * PAGE;
    let tail = &mut state.bytes_mut()[start + from..start + end];
    if tail.iter().all(|b| *b == 0) {
        return 0;
    }
    tail.fill(0);
    let made = file.pages.set_dirty(&mut state, mask(within, 1));
    drop(state);
    file.work.lock().dirty_chunks.insert(page / CHUNK_PAGES);
    made
}
