//! A device that is not flushed without need, and may be flushed ahead of time.
//!
//! Problem: the steps of a commit need "all data is durable", and each used to ask the device for it at the moment when it
//! had nothing else to do. Idea: remember whether anything was written since the last flush. Then whoever has finished the
//! last write of a commit can start the flush at once, while others still build metadata, and the step that needs it
//! only waits for it, or finds it done.
//!
//! Invariants
//! 1. [`flush`](BlockDevice::flush) returns without flushing only if a flush that began after the last completed write has
//!    succeeded.
//! 2. The failure of a flush ahead is given to the next caller of `flush`: systems report such a failure once, and the next
//!    flush then succeeds although data was lost.
//!
//! It knows only of writes that go through it, so it must not answer for a device that others write too.

use super::{BlockDevice, Result};
use crate::error::Error;
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire},
};
use crate::sync::{Arc, Mutex};

/// See the module.
pub(crate) struct FlushTracker {
    inner: Arc<dyn BlockDevice>,
    /// Completed writes.
    written: AtomicU64,
    /// Held while a flush runs: who comes meanwhile mostly finds its own work done.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// So many of the writes are durable.
    flushed: u64,
    /// Of a flush ahead that nobody has heard of.
    failed: Option<Error>,
}

impl FlushTracker {
    /// Tracks `inner`. What was written to it before is not known: the first flush is one.
    pub(crate) fn new(inner: Arc<dyn BlockDevice>) -> Arc<FlushTracker> {
        Arc::new(FlushTracker { inner, written: AtomicU64::new(1), state: Mutex::default() })
    }

    /// Begins a flush that somebody will need soon; returns when it has ended, and leaves a failure to who needs it.
    pub(crate) fn flush_ahead(&self) {
        let mut state = self.state.lock();
        if state.failed.is_none() {
            state.failed = self.run(&mut state).err();
        }
    }

    fn run(&self, state: &mut State) -> Result<()> {
        let written = self.written.load(Acquire);
        if state.flushed != written {
            self.inner.flush()?;
            state.flushed = written;
        }
        Ok(())
    }

    /// Counts a write, a failed one too: parts of it may be there.
    fn wrote<T>(&self, result: T) -> T {
        self.written.fetch_add(1, AcqRel);
        result
    }
}

impl BlockDevice for FlushTracker {
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
        self.wrote(self.inner.write_at(offset, buf))
    }

    fn write_batch(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        self.wrote(self.inner.write_batch(writes))
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.state.lock();
        match state.failed.take() {
            Some(e) => Err(e),
            None => self.run(&mut state),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.wrote(self.inner.discard(offset, len))
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
}
