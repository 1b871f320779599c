//! Where the data of a file is: extents, next data, next hole (`spec/07 §18`).

use super::extents::{Stored, is_offline, is_online};
use super::pages::PAGE;
use super::{Data, check_regular};
use crate::error::{Errno, Result, fail};
use crate::format::Ino;
use crate::lock::Mode;
use crate::namespace::Namespace;

/// One extent of a file, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileExtent {
    /// Byte offset in the file.
    pub logical: u64,
    /// Byte offset on the data device; 0 if there is none.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    /// Contents are in the archive only.
    pub offline: bool,
    /// Space is reserved, contents read as zeros.
    pub unwritten: bool,
    /// Nothing follows.
    pub last: bool,
}

impl Data {
    /// Extents that intersect the byte range, at most `max`, as they are stored: what is written and has no place yet is
    /// committed first. `EINVAL` if `len` is 0.
    pub(crate) fn extents(
        &self,
        ns: &Namespace,
        ino: Ino,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>> {
        if len == 0 {
            return fail(Errno::EINVAL);
        }
        let last = offset.saturating_add(len - 1) / PAGE as u64;
        loop {
            let inode = ns.inode(ino)?;
            let lock = ns.lock_group(&inode, Mode::Read)?;
            let op = inode.op.read();
            check_regular(&ns.fresh(&inode, &lock)?)?;
            if !self.file(&inode, &lock).work.lock().delayed.is_empty() {
                drop(op);
                drop(lock);
                self.txn.sync()?;
                continue;
            }
            let stored = self.stored(&lock, ino);
            let mut out = Vec::new();
            let mut at = offset / PAGE as u64;
            while out.len() < max {
                let Some(e) = stored.next(at)?.filter(|e| e.start <= last) else { break };
                at = e.end();
                let offline = is_offline(&e);
                out.push(FileExtent {
                    logical: e.start * PAGE as u64,
                    physical: if offline { 0 } else { e.map * PAGE as u64 },
                    length: e.len * PAGE as u64,
                    offline,
                    unwritten: !offline && !is_online(&e),
                    last: stored.next(at)?.is_none(),
                });
            }
            return Ok(out);
        }
    }

    /// First byte at or after `offset` that is data (`ENXIO` past the end).
    pub(crate) fn seek_data(&self, ns: &Namespace, ino: Ino, offset: u64) -> Result<u64> {
        match self.seek(ns, ino, offset, true)? {
            Some(found) => Ok(found),
            None => fail(Errno::ENXIO),
        }
    }

    /// First byte at or after `offset` that is a hole; the end of the file is one.
    pub(crate) fn seek_hole(&self, ns: &Namespace, ino: Ino, offset: u64) -> Result<u64> {
        match self.seek(ns, ino, offset, false)? {
            Some(found) => Ok(found),
            None => fail(Errno::ENXIO),
        }
    }

    fn seek(&self, ns: &Namespace, ino: Ino, offset: u64, data: bool) -> Result<Option<u64>> {
        let inode = ns.inode(ino)?;
        let lock = ns.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let f = ns.fresh(&inode, &lock)?;
        check_regular(&f)?;
        if offset >= f.size {
            return Ok(None);
        }
        let file = self.file(&inode, &lock);
        let stored = self.stored(&lock, ino);
        let (mut at, last) = (offset / PAGE as u64, (f.size - 1) / PAGE as u64);
        while at <= last {
            let delayed = file.work.lock().delayed.at_or_after(at);
            // Offline counts as data; unwritten space only if something was written into it.
            let stored = stored.next(at)?;
            let (is_data, end) = match (delayed, stored) {
                (Some(d), _) if d.start <= at => (true, d.end()),
                (d, Some(e)) if e.start <= at => {
                    let data = is_online(&e) || is_offline(&e);
                    (data, if data { e.end() } else { e.end().min(d.map_or(u64::MAX, |d| d.start)) })
                }
                (d, e) => {
                    let next = |x: Option<crate::alloc::extent::Extent>| x.map_or(u64::MAX, |x| x.start);
                    (false, next(d).min(next(e)))
                }
            };
            if is_data == data {
                return Ok(Some(offset.max(at * PAGE as u64)));
            }
            at = end;
        }
        Ok((!data).then_some(f.size))
    }
}
