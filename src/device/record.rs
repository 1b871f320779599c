//! Recording devices and the crash images made from their logs.
//!
//! Problem: crash safety is a statement about every moment of a run. So a [`Recorder`] keeps the order of all writes and
//! flushes of a *set* of devices (the metadata and the data device of a volume share one order), and can later produce
//! the devices as they could look had the power failed at any point of it.
//!
//! 1. A write is logged when it has completed. A flush is logged when it has returned, and covers exactly the writes to
//!    its device that were logged before it was called.
//! 2. A crash at cut `n` means: the first `n` events have happened. Covered writes are on the device; of the others each
//!    4 KiB sector is there or not ([`Survive`]).
//! 3. Where several surviving writes touch a sector the latest wins.

use super::{BlockDevice, MemDevice, Result, SECTOR_BYTES};
use crate::sync::{Arc, Mutex};

/// One entry of the shared log.
#[derive(Clone, Debug)]
pub enum Event {
    /// A completed write.
    Write {
        /// Number of the device, in the order of [`Recorder::wrap`].
        device: usize,
        /// Byte offset.
        offset: u64,
        /// What was written.
        data: Arc<[u8]>,
    },
    /// A completed flush.
    Flush {
        /// Number of the device.
        device: usize,
        /// Writes of the device among the first `covers` events are durable.
        covers: usize,
    },
}

/// What survives of the writes that no flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survive {
    /// All of them.
    All,
    /// None of them.
    Nothing,
    /// Each write as a whole by the toss of a coin with this seed.
    Writes(u64),
    /// Each 4 KiB sector by the toss of a coin with this seed: writes are torn.
    Sectors(u64),
}

struct Shared {
    events: Vec<Event>,
    bases: Vec<Arc<MemDevice>>,
}

/// The shared log of a set of devices.
pub struct Recorder {
    shared: Mutex<Shared>,
}

impl Recorder {
    /// An empty log.
    pub fn new() -> Arc<Recorder> {
        Arc::new(Recorder { shared: Mutex::new(Shared { events: Vec::new(), bases: Vec::new() }) })
    }

    /// Wraps a device; its present content is where every image starts from.
    pub fn wrap(self: &Arc<Recorder>, inner: &Arc<MemDevice>) -> Arc<RecordDevice> {
        let mut shared = self.shared.lock();
        let device = shared.bases.len();
        shared.bases.push(inner.snapshot());
        Arc::new(RecordDevice { recorder: self.clone(), device, inner: inner.clone() })
    }

    /// Number of events so far; a test notes it when something was promised (a sync returned).
    pub fn position(&self) -> usize {
        self.shared.lock().events.len()
    }

    /// A copy of the log (data is shared).
    pub fn log(&self) -> Vec<Event> {
        self.shared.lock().events.clone()
    }

    /// The devices, in the order of [`wrap`](Self::wrap), as a crash after the first `cut` events could leave them.
    pub fn image(&self, cut: usize, survive: Survive) -> Vec<Arc<MemDevice>> {
        CrashImages::new(self).image(cut, survive)
    }

    /// Images for many cuts; see [`CrashImages`].
    pub fn images(&self) -> CrashImages {
        CrashImages::new(self)
    }
}

/// One crash: where, what survived, and the devices.
pub struct CrashImage {
    /// The first `cut` events had happened.
    pub cut: usize,
    /// Fate of unflushed writes.
    pub survive: Survive,
    /// The devices, in the order of [`Recorder::wrap`].
    pub devices: Vec<Arc<MemDevice>>,
}

/// Makes crash images from a finished log. As an iterator it goes through all cuts from the first to the end and gives
/// for each: everything survives, nothing survives, and two torn random subsets; [`step`](Self::step) and
/// [`survivals`](Self::survivals) change that. Ascending cuts are cheap: the durable part is kept and moved along.
pub struct CrashImages {
    events: Vec<Event>,
    /// Devices with everything durable at `at` applied.
    durable: Vec<Arc<MemDevice>>,
    bases: Vec<Arc<MemDevice>>,
    /// Events looked at for flushes.
    at: usize,
    /// For each device: writes before this event are in `durable`.
    covered: Vec<usize>,
    cut: usize,
    step: usize,
    survivals: Vec<Survive>,
    next_survival: usize,
}

impl CrashImages {
    fn new(recorder: &Recorder) -> CrashImages {
        let shared = recorder.shared.lock();
        CrashImages {
            events: shared.events.clone(),
            durable: shared.bases.iter().map(|b| b.snapshot()).collect(),
            bases: shared.bases.clone(),
            at: 0,
            covered: vec![0; shared.bases.len()],
            cut: 0,
            step: 1,
            survivals: vec![Survive::All, Survive::Nothing, Survive::Sectors(1), Survive::Sectors(2)],
            next_survival: 0,
        }
    }

    /// Starts iterating at this cut.
    pub fn from_cut(mut self, cut: usize) -> CrashImages {
        self.cut = cut;
        self
    }

    /// Looks only at every `step`-th cut.
    pub fn step(mut self, step: usize) -> CrashImages {
        self.step = step.max(1);
        self
    }

    /// What survives, one image each. Seeds are mixed with the cut, so the same list gives other subsets at other cuts.
    pub fn survivals(mut self, survivals: impl Into<Vec<Survive>>) -> CrashImages {
        self.survivals = survivals.into();
        self
    }

    /// Number of events of the log.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// The devices after a crash at `cut`.
    pub fn image(&mut self, cut: usize, survive: Survive) -> Vec<Arc<MemDevice>> {
        let cut = cut.min(self.events.len());
        self.advance(cut);
        let images: Vec<_> = self.durable.iter().map(|d| d.snapshot()).collect();
        let mut coin = Coin::new(survive, cut);
        let first = self.covered.iter().copied().min().unwrap_or(0);
        for (nr, event) in self.events[..cut].iter().enumerate().skip(first) {
            if let Event::Write { device, offset, data } = event
                && nr >= self.covered[*device]
            {
                coin.apply(survive, &images[*device], *offset, data);
            }
        }
        images
    }

    /// Applies what the flushes among the first `cut` events made durable.
    fn advance(&mut self, cut: usize) {
        if cut < self.at {
            self.durable = self.bases.iter().map(|b| b.snapshot()).collect();
            self.covered.fill(0);
            self.at = 0;
        }
        for nr in self.at..cut {
            let Event::Flush { device, covers } = self.events[nr] else { continue };
            for event in &self.events[self.covered[device].min(covers)..covers] {
                if let Event::Write { device: d, offset, data } = event
                    && *d == device
                {
                    write(&self.durable[device], *offset, data);
                }
            }
            self.covered[device] = self.covered[device].max(covers);
        }
        self.at = cut;
    }
}

impl Iterator for CrashImages {
    type Item = CrashImage;

    fn next(&mut self) -> Option<CrashImage> {
        if self.next_survival == self.survivals.len() {
            self.next_survival = 0;
            self.cut += self.step;
        }
        if self.cut > self.events.len() {
            return None;
        }
        let survive = *self.survivals.get(self.next_survival)?;
        self.next_survival += 1;
        let cut = self.cut;
        Some(CrashImage { cut, survive, devices: self.image(cut, survive) })
    }
}

fn write(device: &MemDevice, offset: u64, data: &[u8]) {
    device.write_at(offset, data).expect("the same write succeeded on a device of this size");
}

/// A small deterministic generator (splitmix64): images must be the same for the same seed everywhere.
struct Coin(u64);

impl Coin {
    fn new(survive: Survive, cut: usize) -> Coin {
        match survive {
            Survive::Writes(seed) | Survive::Sectors(seed) => {
                Coin(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (cut as u64).wrapping_mul(0xd134_2543_de82_ef95))
            }
            Survive::All | Survive::Nothing => Coin(0),
        }
    }

    fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 63 == 1
    }

    fn apply(&mut self, survive: Survive, device: &MemDevice, offset: u64, data: &[u8]) {
        match survive {
            Survive::All => write(device, offset, data),
            Survive::Nothing => {}
            Survive::Writes(_) => {
                if self.toss() {
                    write(device, offset, data);
                }
            }
            Survive::Sectors(_) => {
                let mut at = offset;
                let mut rest = data;
                while !rest.is_empty() {
                    let n = ((SECTOR_BYTES - at % SECTOR_BYTES) as usize).min(rest.len());
                    if self.toss() {
                        write(device, at, &rest[..n]);
                    }
                    at += n as u64;
                    rest = &rest[n..];
                }
            }
        }
    }
}

/// A memory device whose writes and flushes are logged.
pub struct RecordDevice {
    recorder: Arc<Recorder>,
    device: usize,
    inner: Arc<MemDevice>,
}

impl RecordDevice {
    /// The log that this device shares with the others of its recorder.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// A copy of the shared log.
    pub fn log(&self) -> Vec<Event> {
        self.recorder.log()
    }
}

impl BlockDevice for RecordDevice {
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
        self.inner.write_at(offset, buf)?;
        self.recorder.shared.lock().events.push(Event::Write { device: self.device, offset, data: buf.into() });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let covers = self.recorder.position();
        self.inner.flush()?;
        self.recorder.shared.lock().events.push(Event::Flush { device: self.device, covers });
        Ok(())
    }
}
