//! A file mapped for reading: for offline tools that look at a whole device.
//!
//! Nothing is written, and no page is copied twice; the system keeps what fits in memory.

use std::path::Path;

use memmap2::Mmap;

use super::{BlockDevice, Result, check_bounds, device_error};
use crate::sync::Arc;

/// A read-only mapped file.
pub struct MmapDevice {
    name: String,
    map: Mmap,
}

impl MmapDevice {
    /// Maps the file. It must not be truncated while it is open: reads of bytes that are gone end the process.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<MmapDevice>> {
        let name = path.as_ref().display().to_string();
        let file = std::fs::File::open(path.as_ref()).map_err(|e| device_error(&name, 0, e))?;
        // Safety: the map is private to this type, which only ever copies out of it into buffers of the caller, so no
        // reference into it outlives a copy. Bytes that somebody changes meanwhile make a torn copy, as with any read.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(|e| device_error(&name, 0, e))?;
        Ok(Arc::new(MmapDevice { name, map }))
    }
}

impl BlockDevice for MmapDevice {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_bounds(&self.name, self.size(), offset, buf.len())?;
        let at = offset as usize;
        buf.copy_from_slice(&self.map[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, _buf: &[u8]) -> Result<()> {
        Err(device_error(&self.name, offset, "the device is open for reading only"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_only(&self) -> bool {
        true
    }
}
