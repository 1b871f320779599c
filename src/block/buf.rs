//! Aligned 64 KiB buffers and their reuse.
//!
//! Buffers are aligned for direct I/O, and returned to a small pool when their block goes, because getting and clearing
//! 64 KiB for each read costs more than verifying it.

use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::sync::{Arc, Mutex};

/// Size of a metadata block.
pub(crate) const BLOCK_BYTES: usize = 65536;

/// Free buffers kept for reuse (4 MiB).
const POOL_BUFFERS: usize = 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Aligned([u8; BLOCK_BYTES]);

/// Free buffers.
pub(crate) struct Pool(Mutex<Vec<Box<Aligned>>>);

impl Pool {
    pub(crate) fn new() -> Arc<Pool> {
        Arc::new(Pool(Mutex::new(Vec::new())))
    }

    /// A buffer with any content.
    pub(crate) fn get(self: &Arc<Pool>) -> Buf {
        let free = self.0.lock().pop();
        let mem = free.unwrap_or_else(|| Aligned::new_box_zeroed().expect("64 KiB of memory"));
        Buf { mem: Some(mem), pool: self.clone() }
    }
}

/// One 64 KiB buffer; goes back to its pool when dropped.
pub(crate) struct Buf {
    mem: Option<Box<Aligned>>,
    pool: Arc<Pool>,
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
        if let Some(mem) = self.mem.take() {
            let mut free = self.pool.0.lock();
            if free.len() < POOL_BUFFERS {
                free.push(mem);
            }
        }
    }
}
