//! Files and block devices of the system.
//!
//! Buffered by default; with [`FileOptions::direct`] requests bypass the page cache (O_DIRECT), which the engine prefers
//! for metadata because it has its own verified cache. Memory that is not aligned for direct requests goes through a
//! bounce buffer, so callers need not know. `flush` is `fdatasync`.

use std::path::Path;

use super::{BlockDevice, Result};
use crate::sync::Arc;

/// How to open a [`FileDevice`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Bypass the page cache.
    pub direct: bool,
    /// Take an exclusive advisory lock (`flock`), and `O_EXCL` for a block device; fails with `Error::Busy` if held elsewhere.
    pub exclusive: bool,
}

/// A file or block device of the system.
pub struct FileDevice {
    size: u64,
}

impl FileDevice {
    /// Opens an existing file or block device.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Arc<FileDevice>> {
        let _ = (path, options);
        todo!()
    }

    /// Creates a sparse file of `size` bytes (or resizes an existing one) and opens it for reading and writing.
    pub fn create(path: impl AsRef<Path>, size: u64) -> Result<Arc<FileDevice>> {
        let _ = (path, size);
        todo!()
    }
}

impl BlockDevice for FileDevice {
    fn name(&self) -> String {
        todo!()
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        todo!()
    }
    fn write_at(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        todo!()
    }
    fn flush(&self) -> Result<()> {
        todo!()
    }
}
