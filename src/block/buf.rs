//! Aligned 64 KiB buffers and their reuse.
//!
//! Buffers are aligned for direct I/O, and returned to a small pool when their block goes, because getting and clearing
//! 64 KiB for each read costs more than verifying it.

use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

/// Size of a metadata block.
pub(crate) const BLOCK_BYTES: usize = 65536;

/// Free buffers kept for reuse (16 MiB): a commit needs some hundred at once, and fresh ones cost page faults.
const POOL_BUFFERS: usize = 256;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Aligned([u8; BLOCK_BYTES]);

/// Free buffers, and the account of what the views of living blocks take.
pub(crate) struct Pool {
    free: Mutex<Vec<Box<Aligned>>>,
    charged: AtomicUsize,
}

impl Pool {
    pub(crate) fn new() -> Arc<Pool> {
        Arc::new(Pool { free: Mutex::new(Vec::new()), charged: AtomicUsize::new(0) })
    }

    /// Bytes that all views take.
    pub(crate) fn charged(&self) -> usize {
        self.charged.load(Ordering::Relaxed)
    }

    /// A buffer with any content.
    pub(crate) fn get(self: &Arc<Pool>) -> Buf {
        let free = self.free.lock().pop();
        let mem = free.unwrap_or_else(|| Aligned::new_box_zeroed().expect("64 KiB of memory"));
        Buf { mem: Some(mem), pool: self.clone(), charge: AtomicUsize::new(0) }
    }
}

/// One 64 KiB buffer; goes back to its pool when dropped.
pub(crate) struct Buf {
    mem: Option<Box<Aligned>>,
    pool: Arc<Pool>,
    charge: AtomicUsize,
}

impl Buf {
    /// Counts heap bytes that belong to this block until it goes.
    pub(crate) fn charge(&self, bytes: usize) {
        self.charge.fetch_add(bytes, Ordering::Relaxed);
        self.pool.charged.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Deref for Buf {
    type Target = [u8; BLOCK_BYTES];

    fn deref(&self) -> &Self::Target {
        &self.mem.as_ref().expect("present until dropped").0
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.mem.as_mut().expect("present until dropped").0
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.charged.fetch_sub(self.charge.load(Ordering::Relaxed), Ordering::Relaxed);
        if let Some(mem) = self.mem.take() {
            let mut free = self.pool.free.lock();
            if free.len() < POOL_BUFFERS {
                free.push(mem);
            }
        }
    }
}
