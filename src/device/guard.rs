//! A device that is not trusted any more once a flush of it has failed.
//!
//! Problem: systems report a failed flush once and drop what they could not write. The next flush then succeeds, and a commit
//! that is tried again would refer to blocks that are not there; nor does it help to write again what is still known, for a
//! part of it was written long ago and is nowhere else. Idea: the first failed flush is the last thing that the device does for
//! this mount. Whoever shares it here, the mount and the server of the same process, fails from then on, so nothing that was
//! written since the last good flush can become part of the volume; the volume stays as the last commit left it.
//!
//! Invariant: after a failed flush no write and no flush reaches the device. Reads do, and are of no harm.

use super::{BlockDevice, Result, device_error};
use crate::error::Error;
use crate::sync::{Arc, OnceLock};

/// See the module.
pub(crate) struct FlushGuard {
    inner: Arc<dyn BlockDevice>,
    failed: OnceLock<Error>,
}

impl FlushGuard {
    /// Guards `inner`.
    pub(crate) fn new(inner: Arc<dyn BlockDevice>) -> Arc<FlushGuard> {
        Arc::new(FlushGuard { inner, failed: OnceLock::new() })
    }

    /// Why the device cannot be used any more, if it cannot.
    pub(crate) fn failed(&self) -> Option<Error> {
        self.failed.get().cloned()
    }

    fn usable(&self) -> Result<()> {
        self.failed.get().map_or(Ok(()), |e| Err(e.clone()))
    }

    fn flushed(&self, result: Result<()>) -> Result<()> {
        result.map_err(|e| {
            let (offset, message) = match e {
                Error::Device { offset, message, .. } => (offset, message),
                other => (0, other.to_string()),
            };
            let text = format!("a flush has failed, what was written before may be lost: {message}");
            let _ = self.failed.set(device_error(&self.inner.name(), offset, text));
            // Of several at the same time the first counts.
            self.failed().unwrap_or_else(|| device_error(&self.inner.name(), offset, message))
        })
    }
}

impl BlockDevice for FlushGuard {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.usable()?;
        self.inner.write_at(offset, buf)
    }

    fn write_batch(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        self.usable()?;
        self.inner.write_batch(writes)
    }

    fn flush(&self) -> Result<()> {
        self.usable()?;
        self.flushed(self.inner.flush())
    }

    /// It is not known which half has failed, so a failure counts as one of the flush.
    fn write_durable(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.usable()?;
        self.flushed(self.inner.write_durable(offset, buf))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.usable()?;
        self.inner.discard(offset, len)
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
}
