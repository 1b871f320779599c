//! Block devices: where a volume's bytes live.
//!
//! Problem: the engine must run over files, block devices, memory and whatever an embedder has, and its crash safety
//! must be provable. So everything below the blocks is one small trait, [`BlockDevice`], and the devices that inject
//! faults or record every write implement the same trait as the real ones.
//!
//! What every device promises:
//!
//! 1. A read returns what the last completed write of those bytes stored.
//! 2. After [`BlockDevice::flush`] returns, all writes that had completed before it was called survive a power loss.
//!    Until then each 4 KiB sector of them may survive or be lost on its own, in any combination.
//! 3. Requests are whole sectors: offset and length are multiples of 4096. (Buffered files take anything.)
//! 4. All methods may be called from many threads at once; writes that overlap and run at the same time have no order.
//!
//! A device knows nothing of blocks, checksums or versions: `block` does.

mod fault;
mod file;
mod guard;
mod mem;
mod mmap;
mod nbd;
mod open;
mod record;
#[cfg(test)]
mod tests;
mod tracked;

pub use fault::{Fault, FaultDevice, FaultOps};
pub use file::{DirectIo, FileDevice, FileOptions};
pub(crate) use guard::FlushGuard;
pub use mem::MemDevice;
pub use mmap::MmapDevice;
pub use nbd::{NbdDevice, NbdOptions};
pub use open::open;
pub use record::{CrashImage, CrashImages, Event, RecordDevice, Recorder, Survive};
pub(crate) use tracked::FlushTracker;

use crate::error::{Error, Result};

/// Unit in which a device may lose or keep unflushed writes, and in which requests are made.
pub const SECTOR_BYTES: u64 = 4096;

/// A positioned, durable-on-flush store of bytes. See the [module documentation](self) for the promises.
pub trait BlockDevice: Send + Sync {
    /// What to call the device in error messages, usually its path.
    fn name(&self) -> String;

    /// Size in bytes. A device may grow while it is open; it never shrinks.
    fn size(&self) -> u64;

    /// Fills `buf` from the bytes at `offset`. Reading past the end is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Stores `buf` at `offset`. Writing past the end is an error. Durable only after a later [`flush`](Self::flush).
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Stores several pieces that do not overlap, in any order; on an error any part of them may have been stored.
    /// Callers give them in ascending order, so that a device can join adjacent ones.
    fn write_batch(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        writes.iter().try_for_each(|(offset, buf)| self.write_at(*offset, buf))
    }

    /// Makes all writes that completed before this call durable. A device without a volatile cache may do nothing.
    fn flush(&self) -> Result<()>;

    /// Stores `buf` at `offset` and makes at least this write durable before it returns; earlier writes need a
    /// [`flush`](Self::flush) as ever.
    fn write_durable(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_at(offset, buf)?;
        self.flush()
    }

    /// Tells the device that the range holds nothing of worth any more. Its content is undefined afterwards.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Does the device refuse all writes?
    fn read_only(&self) -> bool {
        false
    }
}

/// An [`Error::Device`] of `device` at `offset`.
fn device_error(device: &str, offset: u64, message: impl std::fmt::Display) -> Error {
    Error::Device { device: device.to_owned(), offset, message: message.to_string() }
}

/// Refuses a request that does not lie inside the device.
fn check_bounds(device: &str, size: u64, offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= size => Ok(()),
        _ => Err(device_error(device, offset, format!("{len} bytes reach past the end at {size}"))),
    }
}
