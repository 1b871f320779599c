//! A device in memory, for tests, examples and volumes that need not last.
//!
//! It is sparse (only chunks that were written take memory) and copies are cheap: chunks are shared between a device and
//! its [snapshots](MemDevice::snapshot) until one of them writes. Crash tests make thousands of images this way.

use super::{BlockDevice, Result, check_bounds};
use crate::sync::{Arc, HashMap, RwLock};

const CHUNK_BYTES: usize = 65536;
const SHARDS: usize = 64;

type Chunk = Arc<[u8; CHUNK_BYTES]>;

/// A sparse in-memory device. Bytes never written read as zero.
pub struct MemDevice {
    name: String,
    size: u64,
    shards: Vec<RwLock<HashMap<u64, Chunk>>>,
}

impl MemDevice {
    /// An empty device of `size` bytes.
    pub fn new(size: u64) -> Arc<MemDevice> {
        MemDevice::named("memory", size)
    }

    /// The same with a name for error messages.
    pub fn named(name: impl Into<String>, size: u64) -> Arc<MemDevice> {
        Arc::new(MemDevice {
            name: name.into(),
            size,
            shards: (0..SHARDS).map(|_| RwLock::new(HashMap::default())).collect(),
        })
    }

    /// A second device with the same content. Later writes to one are not seen by the other.
    pub fn snapshot(&self) -> Arc<MemDevice> {
        self.snapshot_sized(self.size)
    }

    /// A [`snapshot`](Self::snapshot) that is larger or smaller; what lies past its end is dropped.
    pub fn snapshot_sized(&self, size: u64) -> Arc<MemDevice> {
        let keep = |m: &HashMap<u64, Chunk>| -> HashMap<u64, Chunk> {
            m.iter().filter(|(i, _)| **i * (CHUNK_BYTES as u64) < size).map(|(i, c)| (*i, c.clone())).collect()
        };
        Arc::new(MemDevice {
            name: self.name.clone(),
            size,
            shards: self.shards.iter().map(|s| RwLock::new(keep(&s.read()))).collect(),
        })
    }

    /// Bytes of memory that the content takes.
    pub fn allocated_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.read().len() as u64 * CHUNK_BYTES as u64).sum()
    }

    fn shard(&self, chunk: u64) -> &RwLock<HashMap<u64, Chunk>> {
        &self.shards[(chunk % SHARDS as u64) as usize]
    }

    /// Calls `f(chunk number, range inside the chunk, range inside the request)` for each chunk the request touches.
    fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = offset + done as u64;
            let start = (at % CHUNK_BYTES as u64) as usize;
            let n = (CHUNK_BYTES - start).min(len - done);
            let piece = (at / CHUNK_BYTES as u64, start..start + n, done..done + n);
            done += n;
            Some(piece)
        })
    }
}

impl BlockDevice for MemDevice {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_bounds(&self.name, self.size, offset, buf.len())?;
        for (chunk, inside, at) in Self::pieces(offset, buf.len()) {
            match self.shard(chunk).read().get(&chunk) {
                Some(c) => buf[at].copy_from_slice(&c[inside]),
                None => buf[at].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        check_bounds(&self.name, self.size, offset, buf.len())?;
        for (chunk, inside, at) in Self::pieces(offset, buf.len()) {
            let mut shard = self.shard(chunk).write();
            match shard.get_mut(&chunk) {
                Some(c) => Arc::make_mut(c)[inside].copy_from_slice(&buf[at]),
                None => {
                    // A whole chunk, which is what metadata blocks are, needs no clearing.
                    let whole = Arc::<[u8]>::from(&buf[at.clone()]).try_into();
                    let mut c: Chunk = whole.unwrap_or_else(|_| Arc::new([0; CHUNK_BYTES]));
                    if inside.len() < CHUNK_BYTES {
                        Arc::make_mut(&mut c)[inside].copy_from_slice(&buf[at]);
                    }
                    shard.insert(chunk, c);
                }
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let first = offset.div_ceil(CHUNK_BYTES as u64);
        let end = offset.saturating_add(len).min(self.size) / CHUNK_BYTES as u64;
        for chunk in first..end {
            self.shard(chunk).write().remove(&chunk);
        }
        Ok(())
    }
}
