//! What the kernel remembers of inodes, so that an unlinked file lives as long as somebody can still reach it.
//!
//! The kernel is told that it need not announce open and close (that makes opening a file five times cheaper), so the daemon
//! does not know which files are open. It knows which inodes the kernel has: every answer that names an inode adds one to
//! the inode's count, and FORGET takes them back when the kernel drops the inode, which it cannot do while a file is open.
//! Each inode with a count keeps a handle of the volume.
//!
//! In a cluster that would keep other nodes from deleting what this kernel merely remembers. There the kernel announces what it
//! opens, and a handle is kept for each open file ([`Opens`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use scoutfs::namespace::{Access, Caller};
use scoutfs::{Ino, OpenInode, Result, Volume};

const SHARDS: usize = 32;

pub(crate) struct Handles {
    shards: Vec<Mutex<HashMap<u64, (u64, OpenInode)>>>,
}

impl Handles {
    pub(crate) fn new() -> Handles {
        Handles { shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<u64, (u64, OpenInode)>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The kernel is told of `ino` once more.
    pub(crate) fn remember(&self, volume: &Volume, ino: Ino) -> Result<()> {
        if let Some((count, _)) = self.shard(ino).lock().expect("not poisoned").get_mut(&ino.0) {
            *count += 1;
            return Ok(());
        }
        // Opening may need a cluster lock: not while other requests wait for the shard.
        let handle = volume.open_inode(&Caller::root(), ino, Access::NONE)?;
        self.insert(ino, handle);
        Ok(())
    }

    /// The kernel is told of an inode that was just made and opened.
    pub(crate) fn insert(&self, ino: Ino, handle: OpenInode) {
        let surplus = match self.shard(ino).lock().expect("not poisoned").entry(ino.0) {
            Entry::Occupied(mut e) => {
                e.get_mut().0 += 1;
                Some(handle)
            }
            Entry::Vacant(e) => {
                e.insert((1, handle));
                None
            }
        };
        drop(surplus);
    }

    /// The kernel gives `count` references back.
    pub(crate) fn forget(&self, ino: Ino, count: u64) {
        let mut shard = self.shard(ino).lock().expect("not poisoned");
        let last = match shard.entry(ino.0) {
            Entry::Occupied(mut e) => {
                let left = e.get().0.saturating_sub(count);
                if left > 0 {
                    e.get_mut().0 = left;
                    None
                } else {
                    Some(e.remove())
                }
            }
            Entry::Vacant(_) => None,
        };
        drop(shard);
        // Dropping the last handle of an unlinked file deletes it.
        drop(last);
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let all = std::mem::take(&mut *shard.lock().expect("not poisoned"));
            drop(all);
        }
    }
}

/// What is open, and its number if that is for reading and writing.
type Open = (OpenInode, Option<Ino>);

/// Files and directories that the kernel has announced as open.
pub(crate) struct Opens {
    next: AtomicU64,
    shards: Vec<Mutex<HashMap<u64, Open>>>,
}

impl Opens {
    pub(crate) fn new() -> Opens {
        Opens { next: AtomicU64::new(1), shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect() }
    }

    fn shard(&self, fh: u64) -> &Mutex<HashMap<u64, Open>> {
        &self.shards[fh as usize % SHARDS]
    }

    /// Keeps a handle; gives its number. `writable`: the inode, if it is open for reading and writing.
    pub(crate) fn insert(&self, handle: OpenInode, writable: Option<Ino>) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(fh).lock().expect("not poisoned").insert(fh, (handle, writable));
        fh
    }

    /// The kernel has closed it. Returns the inode if it was open for reading and writing.
    pub(crate) fn remove(&self, fh: u64) -> Option<Ino> {
        let open = self.shard(fh).lock().expect("not poisoned").remove(&fh);
        // Dropping the last one of an unlinked file deletes it.
        open.and_then(|(_, writable)| writable)
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let all = std::mem::take(&mut *shard.lock().expect("not poisoned"));
            drop(all);
        }
    }
}
