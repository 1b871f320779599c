//! Contents of regular files (signatures; see the working agreement of the rooms).
#![allow(unused_variables)]

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::Ino;
use crate::item::Items;
use crate::lock::{LockName, Mode};
use crate::namespace::{Caller, Namespace};
use crate::sync::Arc;
use crate::txn::Txn;

/// What [`Data`] works with.
pub(crate) struct DataParts {
    pub(crate) items: Arc<Items>,
    pub(crate) txn: Arc<Txn>,
    pub(crate) data_dev: Arc<dyn BlockDevice>,
    pub(crate) read_only: bool,
    /// Bytes of clean file data kept in memory.
    pub(crate) cache_bytes: usize,
    /// Bytes of written data that may wait for a commit.
    pub(crate) dirty_bytes: usize,
}

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

/// The contents of all regular files of a mount. Implements `namespace::FileData` and `txn::CommitHook`.
pub(crate) struct Data {}

impl Data {
    /// Starts the write-out thread.
    pub(crate) fn new(parts: DataParts) -> Result<Arc<Data>> {
        todo!()
    }
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    pub(crate) fn read(&self, ns: &Namespace, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        todo!()
    }
    /// Writes all of `data` at `offset` (fewer bytes only when space ends half way).
    pub(crate) fn write(&self, ns: &Namespace, caller: &Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        todo!()
    }
    /// Writes at the end of the file; returns where.
    pub(crate) fn append(&self, ns: &Namespace, caller: &Caller, ino: Ino, data: &[u8]) -> Result<(u64, usize)> {
        todo!()
    }
    /// `mode` as in `fallocate(2)`.
    pub(crate) fn fallocate(
        &self,
        ns: &Namespace,
        caller: &Caller,
        ino: Ino,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        todo!()
    }
    /// First byte at or after `offset` that is data (`ENXIO` past the end).
    pub(crate) fn seek_data(&self, ns: &Namespace, ino: Ino, offset: u64) -> Result<u64> {
        todo!()
    }
    /// First byte at or after `offset` that is a hole.
    pub(crate) fn seek_hole(&self, ns: &Namespace, ino: Ino, offset: u64) -> Result<u64> {
        todo!()
    }
    /// Extents that intersect the byte range, at most `max`.
    pub(crate) fn extents(
        &self,
        ns: &Namespace,
        ino: Ino,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>> {
        todo!()
    }
    /// The lock is about to be lost: forget clean contents of its inodes, wake who waits for staging.
    pub(crate) fn revoked(&self, name: LockName, to: Mode) {
        todo!()
    }
    /// Ends the threads; nothing is dirty any more.
    pub(crate) fn close(&self) {
        todo!()
    }
}

impl crate::namespace::FileData for Data {
    fn before_resize(
        &self,
        ns: &Namespace,
        file: &Arc<crate::namespace::Inode>,
        lock: &crate::item::ItemLock,
        size: u64,
    ) -> Result<()> {
        todo!()
    }
    fn resized(
        &self,
        file: &Arc<crate::namespace::Inode>,
        lock: &crate::item::ItemLock,
        hold: &crate::txn::Hold<'_>,
        old_size: u64,
        new_size: u64,
    ) {
        todo!()
    }
    fn plan_removal(
        &self,
        file: &Arc<crate::namespace::Inode>,
        lock: &crate::item::ItemLock,
        hold: &crate::txn::Hold<'_>,
        from: u64,
    ) -> Result<crate::namespace::Removal> {
        todo!()
    }
    fn removed(&self, file: &Arc<crate::namespace::Inode>, from: u64) {
        todo!()
    }
}

impl crate::txn::CommitHook for Data {
    fn is_dirty(&self) -> bool {
        todo!()
    }
    fn prepare(&self, ctx: &crate::txn::CommitCtx) -> Result<()> {
        todo!()
    }
    fn wait(&self) -> Result<bool> {
        todo!()
    }
    fn committed(&self) {
        todo!()
    }
}
