//! A wrapper that makes chosen operations of another device fail.
//!
//! The usual test is a loop: run a workload with the n-th operation failing, for n from 0 until the workload no longer
//! reaches it, and see that the result is an error without damage.

use super::{BlockDevice, Error, Result, SECTOR_BYTES, device_error};
use crate::sync::{Arc, Mutex};

/// Which operations are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultOps {
    /// Count reads.
    pub reads: bool,
    /// Count writes (each piece of a batch by itself).
    pub writes: bool,
    /// Count flushes.
    pub flushes: bool,
}

impl FaultOps {
    /// Everything.
    pub const ALL: FaultOps = FaultOps { reads: true, writes: true, flushes: true };
    /// Reads only.
    pub const READS: FaultOps = FaultOps { reads: true, writes: false, flushes: false };
    /// Writes only.
    pub const WRITES: FaultOps = FaultOps { reads: false, writes: true, flushes: false };
    /// Flushes only.
    pub const FLUSHES: FaultOps = FaultOps { reads: false, writes: false, flushes: true };
    /// Writes and flushes.
    pub const CHANGES: FaultOps = FaultOps { reads: false, writes: true, flushes: true };
}

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails without effect; later ones work again.
    Once,
    /// It and all later counted ones fail without effect.
    Forever,
    /// A flush fails, and what was written since the last one is gone, as when a system drops pages that it could not write
    /// (other operations just fail); later ones work again.
    Lost,
    /// A write stores only the first half of its sectors and fails (other operations just fail); later ones work again.
    Torn,
}

#[derive(Debug)]
struct Plan {
    ops: FaultOps,
    seen: u64,
    at: Option<u64>,
    fault: Fault,
    hits: u64,
}

/// Passes everything on to another device, except for what it was told to let fail.
pub struct FaultDevice {
    inner: Arc<dyn BlockDevice>,
    plan: Mutex<Plan>,
    /// What was overwritten since the last flush, oldest first; kept only for [`Fault::Lost`].
    undo: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl FaultDevice {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Arc<FaultDevice> {
        let plan = Plan { ops: FaultOps::ALL, seen: 0, at: None, fault: Fault::Once, hits: 0 };
        Arc::new(FaultDevice { inner, plan: Mutex::new(plan), undo: Mutex::default() })
    }

    /// Counts from zero again and lets the operation number `nth` (0 is the next one) of the kinds `ops` fail.
    pub fn fail_nth(&self, ops: FaultOps, nth: u64, fault: Fault) {
        *self.plan.lock() = Plan { ops, seen: 0, at: Some(nth), fault, hits: 0 };
        self.undo.lock().clear();
    }

    /// Nothing fails any more; counting goes on.
    pub fn heal(&self) {
        self.plan.lock().at = None;
    }

    /// Counted operations since the last [`fail_nth`](Self::fail_nth) (or since the start).
    pub fn operations(&self) -> u64 {
        self.plan.lock().seen
    }

    /// How many operations have been made to fail by the present plan.
    pub fn hits(&self) -> u64 {
        self.plan.lock().hits
    }

    /// Counts one operation; gives the fault if it must fail.
    fn step(&self, counted: impl Fn(&FaultOps) -> bool) -> Option<Fault> {
        let mut plan = self.plan.lock();
        if !counted(&plan.ops) {
            return None;
        }
        let nr = plan.seen;
        plan.seen += 1;
        let hit = match plan.at {
            Some(at) if plan.fault == Fault::Forever => nr >= at,
            Some(at) => nr == at,
            None => false,
        };
        plan.hits += hit as u64;
        hit.then_some(plan.fault)
    }

    /// Writes, and remembers what was there if it may have to come back.
    fn store(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let may_be_lost = {
            let plan = self.plan.lock();
            plan.fault == Fault::Lost && plan.at.is_some_and(|at| plan.seen <= at)
        };
        if !may_be_lost {
            return self.inner.write_at(offset, buf);
        }
        // Held over the write: a flush takes back all or nothing of it.
        let mut undo = self.undo.lock();
        let mut old = vec![0; buf.len()];
        self.inner.read_at(offset, &mut old)?;
        undo.push((offset, old));
        self.inner.write_at(offset, buf)
    }

    fn error(&self, offset: u64) -> Error {
        device_error(&self.inner.name(), offset, "injected fault")
    }
}

impl BlockDevice for FaultDevice {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self.step(|o| o.reads) {
            Some(_) => Err(self.error(offset)),
            None => self.inner.read_at(offset, buf),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        match self.step(|o| o.writes) {
            None => self.store(offset, buf),
            Some(Fault::Torn) => {
                let sectors = (buf.len() as u64).div_ceil(SECTOR_BYTES) / 2;
                self.inner.write_at(offset, &buf[..(sectors * SECTOR_BYTES) as usize])?;
                Err(self.error(offset))
            }
            Some(_) => Err(self.error(offset)),
        }
    }

    fn flush(&self) -> Result<()> {
        match self.step(|o| o.flushes) {
            Some(Fault::Lost) => {
                for (offset, old) in std::mem::take(&mut *self.undo.lock()).into_iter().rev() {
                    self.inner.write_at(offset, &old)?;
                }
                Err(self.error(0))
            }
            Some(_) => Err(self.error(0)),
            None => {
                // What is written from now on may belong to the next flush; that it may be lost then is allowed as well.
                let covered = self.undo.lock().len();
                self.inner.flush()?;
                let mut undo = self.undo.lock();
                // Another flush may have been quicker.
                let covered = covered.min(undo.len());
                undo.drain(..covered);
                Ok(())
            }
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
}
