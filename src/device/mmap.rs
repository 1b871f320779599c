//! A file mapped for reading: for offline tools that look at a whole device.

use std::path::Path;

use super::{BlockDevice, Result};
use crate::sync::Arc;

/// A read-only mapped file.
pub struct MmapDevice {
    size: u64,
}

impl MmapDevice {
    /// Maps the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<MmapDevice>> {
        let _ = path;
        todo!()
    }
}

impl BlockDevice for MmapDevice {
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
        Ok(())
    }
    fn read_only(&self) -> bool {
        true
    }
}
