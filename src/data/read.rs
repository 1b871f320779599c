//! Reading (`spec/07 §8`).

use super::extents::{FileExtents, is_offline, is_online, unexpected_offline};
use super::pages::{CHUNK_PAGES, PAGE, mask, runs};
use super::state::FileState;
use super::{Data, check_regular};
use crate::alloc::extent::Extent;
use crate::device::BlockDevice;
use crate::error::{Errno, Error, Result, fail};
use crate::format::Ino;
use crate::lock::{Loan, Mode};
use crate::namespace::Namespace;
use crate::sync::Arc;

/// Uncached ranges at least this long are read into the caller's memory, without keeping them.
const DIRECT_BYTES: u64 = 64 << 10;
/// Bytes read ahead of somebody who reads in order.
const AHEAD_PAGES: u64 = 128;

impl Data {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file. Waits for offline data.
    pub(crate) fn read(&self, ns: &Namespace, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_as(ns, ino, offset, buf, None)
    }

    /// Reads what a front end will keep, and change if `writable`: then nobody else can use the inode's group until it has
    /// been given back. Nobody waits for offline data here, because others may wait for the answer: `EIO`. Nothing of a
    /// retained file is lent writable: `EPERM`.
    pub(crate) fn lend(&self, ns: &Namespace, ino: Ino, offset: u64, buf: &mut [u8], writable: bool) -> Result<usize> {
        if writable {
            ns.writable()?;
        }
        let mode = if writable { Mode::Write } else { Mode::Read };
        self.read_as(ns, ino, offset, buf, Some(mode))
    }

    /// `loan`: the mode in which a front end keeps what is read.
    fn read_as(&self, ns: &Namespace, ino: Ino, offset: u64, buf: &mut [u8], loan: Option<Mode>) -> Result<usize> {
        loop {
            let inode = ns.inode(ino)?;
            let lock = match loan {
                None => ns.lock_group(&inode, Mode::Read)?,
                Some(mode) => ns.lock_loan(&inode, mode, Loan::Take)?,
            };
            let op = inode.op.read();
            let f = ns.fresh(&inode, &lock)?;
            check_regular(&f)?;
            let len = f.size.saturating_sub(offset).min(buf.len() as u64);
            if len == 0 {
                return Ok(0);
            }
            let stored = self.stored(&lock, ino);
            let writable = loan == Some(Mode::Write);
            if writable && f.in_retention() {
                return fail(Errno::EPERM);
            }
            if f.offline_blocks > 0 {
                // As for a write, the whole file has to be here (`spec/07 §10`).
                let (from, end) = if writable { (0, f.size) } else { (offset, offset + len) };
                let (first, last) = (from / PAGE as u64, (end - 1) / PAGE as u64);
                if stored.first_offline(first, last)?.is_some() {
                    if loan.is_some() {
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
            self.read_range(&file, &stored, f.size, offset, &mut buf[..len as usize])?;
            self.pages.evict();
            return Ok(len as usize);
        }
    }

    /// Fills `buf`, which ends at or before `size`.
    fn read_range(
        &self,
        file: &Arc<FileState>,
        stored: &FileExtents<'_>,
        size: u64,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let end = offset + buf.len() as u64;
        let in_order = file.reads_in_order(offset, end);
        let (page_bytes, last) = (PAGE as u64, (end - 1) / PAGE as u64);
        let mut pos = offset;
        while pos < end {
            let out = (pos - offset) as usize;
            let copied = copy_cached(file, pos, &mut buf[out..]);
            pos += copied as u64;
            if copied > 0 {
                continue;
            }
            let page = pos / page_bytes;
            let missing = file.pages.missing(page, last).max(1);
            let direct_end = ((page + missing) * page_bytes).min(end / page_bytes * page_bytes);
            if pos.is_multiple_of(page_bytes) && direct_end.saturating_sub(pos) >= DIRECT_BYTES {
                let upto = (direct_end - offset) as usize;
                self.read_direct(stored, page, &mut buf[out..upto])?;
                pos = direct_end;
                continue;
            }
            let needed = page + missing - 1;
            let ahead = if in_order { (page + AHEAD_PAGES - 1).min((size - 1) / page_bytes) } else { 0 };
            self.load(file, stored, page, needed, ahead.max(needed))?;
        }
        Ok(())
    }

    /// Reads whole blocks from `page` on past the cache.
    fn read_direct(&self, stored: &FileExtents<'_>, page: u64, buf: &mut [u8]) -> Result<()> {
        let last = page + (buf.len() / PAGE) as u64 - 1;
        stored.pieces(page, last, &mut |piece| {
            let at = (piece.start - page) as usize * PAGE;
            self.read_piece(&piece, &mut buf[at..at + piece.len as usize * PAGE])
        })
    }

    /// Reads one piece of an extent or a hole.
    fn read_piece(&self, piece: &Extent, buf: &mut [u8]) -> Result<()> {
        if is_online(piece) {
            self.device.read_at(piece.map * PAGE as u64, buf)
        } else if is_offline(piece) {
            unexpected_offline(piece.start)
        } else {
            buf.fill(0);
            Ok(())
        }
    }

    /// Reads pages `first..=ahead` into the cache, as far as they are not there. Offline pages behind `needed` are left out;
    /// before that they are an error.
    pub(super) fn load(
        &self,
        file: &Arc<FileState>,
        stored: &FileExtents<'_>,
        first: u64,
        needed: u64,
        ahead: u64,
    ) -> Result<()> {
        for index in first / CHUNK_PAGES..=ahead / CHUNK_PAGES {
            let base = index * CHUNK_PAGES;
            let from = first.max(base);
            let last = ahead.min(base + CHUNK_PAGES - 1);
            loop {
                let chunk = file.pages.chunk_or_new(index);
                let mut state = chunk.state.write();
                if state.gone {
                    continue;
                }
                let wanted = mask(from - base, last - from + 1) & !state.valid;
                self.pages.grow(&mut state, (last - base + 1) as usize);
                for (at, n) in runs(wanted) {
                    let (bytes, mut valid) = (state.bytes_mut(), 0);
                    stored.pieces(base + at, base + at + n - 1, &mut |piece| {
                        if is_offline(&piece) && piece.start > needed {
                            return Ok(());
                        }
                        let (rel, len) = ((piece.start - base) as usize, piece.len as usize);
                        self.read_piece(&piece, &mut bytes[rel * PAGE..(rel + len) * PAGE])?;
                        valid |= mask(rel as u64, piece.len);
                        Ok(())
                    })?;
                    state.valid |= valid;
                }
                break;
            }
        }
        Ok(())
    }

    /// One block as it is now, cached or not.
    pub(super) fn block(&self, file: &FileState, stored: &FileExtents<'_>, page: u64) -> Result<Box<[u8; PAGE]>> {
        let mut buf: Box<[u8; PAGE]> =
            vec![0; PAGE].into_boxed_slice().try_into().map_err(|_| Error::invalid("a page has 4096 bytes"))?;
        if copy_cached(file, page * PAGE as u64, &mut buf[..]) < PAGE {
            self.read_direct(stored, page, &mut buf[..])?;
        }
        Ok(buf)
    }
}

/// Copies cached bytes from `pos` on, as many as follow each other in one chunk.
fn copy_cached(file: &FileState, pos: u64, buf: &mut [u8]) -> usize {
    let page = pos / PAGE as u64;
    let (index, within) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
    let Some(chunk) = file.pages.chunk(index) else { return 0 };
    let state = chunk.state.read();
    let pages = u64::from((state.valid >> within).trailing_ones());
    if pages == 0 {
        return 0;
    }
    chunk.touch();
    let from = (pos - index * CHUNK_PAGES * PAGE as u64) as usize;
    let end = (within + pages) as usize * PAGE;
    let n = (end - from).min(buf.len());
    buf[..n].copy_from_slice(&state.bytes()[from..from + n]);
    n
}
