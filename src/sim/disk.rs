//! A disk that several nodes share, with a volatile cache before it on each node.
//!
//! Writes are seen by all nodes at once, piece by piece of 4 KiB while they are under way. What a node wrote since its last flush is
//! lost in any combination when it crashes or is cut off. A cut handle fails everything, also what is under way.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::Duration;

use super::{below, between, one_in, sleep};
use crate::device::{BlockDevice, SECTOR_BYTES};
use crate::error::{Error, Result};
use crate::sync::Arc;
use crate::sync::sim::RealMutex;

type Sector = Option<Box<[u8]>>;

/// How fast and how forgetful a disk is.
#[derive(Clone, Copy, Debug)]
pub struct DiskProfile {
    /// Least time of a request.
    pub fast: Duration,
    /// Most time of a usual request.
    pub slow: Duration,
    /// One request in this many takes up to `stall`; 0: none.
    pub stall_one_in: u64,
    /// See there.
    pub stall: Duration,
    /// Share of unflushed sectors that a crash loses, in percent.
    pub lost: u64,
}

/// What one handle wrote and has not flushed: the content before it.
#[derive(Default)]
struct Cache {
    node: u32,
    cut: bool,
    unflushed: BTreeMap<u64, Sector>,
    flushing: BTreeMap<u64, BTreeMap<u64, Sector>>,
}

#[derive(Default)]
struct State {
    sectors: HashMap<u64, Box<[u8]>>,
    handles: BTreeMap<u64, Cache>,
    next: u64,
}

impl State {
    fn put(&mut self, handle: u64, sector: u64, bytes: &[u8]) {
        // Most of a metadata block is zeros, and absent sectors are zeros.
        let zeros = bytes.iter().all(|b| *b == 0);
        let before = match zeros {
            true => self.sectors.remove(&sector),
            false => self.sectors.insert(sector, bytes.into()),
        };
        for (id, cache) in &mut self.handles {
            if *id == handle {
                cache.unflushed.entry(sector).or_insert_with(|| before.clone());
            } else {
                cache.unflushed.remove(&sector);
                cache.flushing.values_mut().for_each(|f| drop(f.remove(&sector)));
            }
        }
    }

    fn restore(&mut self, sector: u64, content: Sector) {
        match content {
            Some(bytes) => self.sectors.insert(sector, bytes),
            None => self.sectors.remove(&sector),
        };
    }

    /// The handle is gone: its cache is lost in part.
    fn cut(&mut self, handle: u64, lost: u64) {
        let Some(cache) = self.handles.get_mut(&handle) else { return };
        if std::mem::replace(&mut cache.cut, true) {
            return;
        }
        let unflushed = std::mem::take(&mut cache.unflushed);
        let flushing = std::mem::take(&mut cache.flushing);
        let mut older: BTreeMap<u64, Sector> = BTreeMap::new();
        for (sector, content) in flushing.into_values().flatten() {
            older.entry(sector).or_insert(content);
        }
        for (sector, content) in unflushed {
            if below(100) < lost {
                self.restore(sector, content);
            } else {
                older.remove(&sector);
            }
        }
        for (sector, content) in older {
            if below(100) < lost {
                self.restore(sector, content);
            }
        }
    }
}

/// A shared disk; sparse.
pub struct SimDisk {
    name: String,
    size: u64,
    profile: RealMutex<DiskProfile>,
    state: RealMutex<State>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(name: &str, size: u64, profile: DiskProfile) -> Arc<SimDisk> {
        Arc::new(SimDisk {
            name: name.into(),
            size,
            profile: RealMutex::new(profile),
            state: RealMutex::new(State::default()),
        })
    }

    /// Access for `node`, until it is cut off.
    pub fn open(self: &Arc<SimDisk>, node: u32) -> Arc<SimHandle> {
        let id = self.with(|s| {
            s.next += 1;
            s.handles.insert(s.next, Cache { node, ..Cache::default() });
            s.next
        });
        Arc::new(SimHandle { disk: self.clone(), id, node })
    }

    /// Cuts off all handles of `node`: nothing of it reaches the disk any more.
    pub fn cut_node(&self, node: u32) {
        let lost = self.profile().lost;
        self.with(|s| {
            let of_node: Vec<u64> = s.handles.iter().filter(|(_, c)| c.node == node).map(|(id, _)| *id).collect();
            for id in of_node {
                s.cut(id, lost);
            }
        });
    }

    /// Changes how fast and how forgetful it is.
    pub fn set_profile(&self, profile: DiskProfile) {
        *self.profile.lock().expect("nothing panics here") = profile;
    }

    fn profile(&self) -> DiskProfile {
        *self.profile.lock().expect("nothing panics here")
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().expect("nothing panics here"))
    }
}

/// A disk as one node sees it.
pub struct SimHandle {
    disk: Arc<SimDisk>,
    id: u64,
    node: u32,
}

impl SimHandle {
    fn error(&self, offset: u64, message: &str) -> Error {
        Error::Device { device: self.disk.name.clone(), offset, message: message.into() }
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        if !offset.is_multiple_of(SECTOR_BYTES) || !(len as u64).is_multiple_of(SECTOR_BYTES) {
            return Err(self.error(offset, "not whole sectors"));
        }
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.disk.size => {}
            _ => return Err(self.error(offset, "past the end")),
        }
        match self.disk.with(|s| s.handles.get(&self.id).is_none_or(|c| c.cut)) {
            true => Err(self.error(offset, "cut off by fencing")),
            false => Ok(()),
        }
    }

    /// Handles of the driver take no time.
    fn take_time(&self) {
        let p = self.disk.profile();
        if self.node == super::DRIVER {
            return;
        }
        sleep(match one_in(p.stall_one_in) {
            true => between(p.slow, p.stall),
            false => between(p.fast, p.slow),
        });
    }

    fn put(&self, writes: &[(u64, &[u8])], pick: impl Fn(usize) -> bool) {
        self.disk.with(|s| {
            let mut nr = 0;
            for (offset, buf) in writes {
                for (i, piece) in buf.chunks(SECTOR_BYTES as usize).enumerate() {
                    if pick(nr) {
                        s.put(self.id, offset / SECTOR_BYTES + i as u64, piece);
                    }
                    nr += 1;
                }
            }
        });
    }
}

impl BlockDevice for SimHandle {
    fn name(&self) -> String {
        self.disk.name.clone()
    }

    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        self.take_time();
        self.check(offset, buf.len())?;
        self.disk.with(|s| {
            for (i, piece) in buf.chunks_mut(SECTOR_BYTES as usize).enumerate() {
                match s.sectors.get(&(offset / SECTOR_BYTES + i as u64)) {
                    Some(bytes) => piece.copy_from_slice(&bytes[..piece.len()]),
                    None => piece.fill(0),
                }
            }
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_batch(&[(offset, buf)])
    }

    fn write_batch(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        for (offset, buf) in writes {
            self.check(*offset, buf.len())?;
        }
        // Some pieces at once, the others at the end.
        let early = super::random_u64();
        self.put(writes, |nr| early >> (nr % 64) & 1 == 1);
        self.take_time();
        for (offset, buf) in writes {
            self.check(*offset, buf.len())?;
        }
        self.put(writes, |nr| early >> (nr % 64) & 1 == 0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.check(0, 0)?;
        let nr = self.disk.with(|s| {
            s.next += 1;
            let nr = s.next;
            if let Some(cache) = s.handles.get_mut(&self.id) {
                let taken = std::mem::take(&mut cache.unflushed);
                cache.flushing.insert(nr, taken);
            }
            nr
        });
        self.take_time();
        self.check(0, 0)?;
        self.disk.with(|s| {
            if let Some(cache) = s.handles.get_mut(&self.id) {
                // Earlier flushes cover less than this one.
                cache.flushing.retain(|at, _| *at > nr);
            }
        });
        Ok(())
    }
}
