//! What the kernel caches of a volume that other nodes change too, and how it is made to forget it.
//!
//! **Problem.** Names and attributes are cheap only if the kernel keeps them. They are right while this node has the
//! cluster lock of their group of inodes. When it is taken away the kernel must forget them first, but must never be waited
//! for if it may be waiting for us: it holds a directory's lock while it waits for our answer to a create, and a page's
//! lock while it waits for contents. The create may wait for a cluster lock of another node that waits for ours.
//!
//! **Idea.** Only messages to the kernel that wait for nothing:
//!
//! | cached | forgotten by |
//! |---|---|
//! | attributes, ACLs | `FUSE_NOTIFY_INVAL_INODE` without a range, for each inode that the kernel was told of |
//! | names | `FUSE_NOTIFY_INC_EPOCH` (Linux 6.16): every name is asked for again at its next use. Invalidating one name would take its directory's lock. An older kernel is told to keep no names |
//! | contents, listings | not cached: files are opened for direct I/O. Pages of mapped files are another matter, see `mapped` |
//!
//! Invariants:
//!  1. What the kernel may keep is noted here before it is told. [`KernelCache::invalidate`] counts, then takes the notes;
//!     an answer compares the count after making its note. So an answer from before an invalidation is either
//!     noted in time to be invalidated, or sees the count change and is given with no time to keep it.
//!  2. An answer that is on its way while the kernel is told to forget: the kernel compares versions of attributes that it
//!     has, and the epoch of names. Attributes of an inode that is new to the kernel come with a name of the old epoch, so a
//!     path leads to them only after asking again; a file that is opened is invalidated again if nothing is noted of it.
//!  3. Notes need 1024 bits for each group of which this node has the lock.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use scoutfs::{Error, FrontEnd, Ino, InodeGroup, Loans, Result, Volume};

use crate::mapped::Mapped;

/// How long the kernel may use names and attributes without asking.
const TTL: Duration = Duration::from_secs(3600);
const SHARDS: usize = 32;
const WORDS: usize = InodeGroup::INODES as usize / 64;
/// Groups noted in a shard; beyond it the kernel may keep nothing. Far more than there are locks.
const GROUPS: usize = 16 << 10;
/// Message to the kernel: all names are of an old epoch.
const NOTIFY_INC_EPOCH: i32 = 8;

/// The way to the kernel.
struct Kernel {
    notifier: Notifier,
    /// For the message that the FUSE library does not know.
    device: OwnedFd,
}

impl Kernel {
    fn next_epoch(&self) -> io::Result<()> {
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16u32.to_ne_bytes());
        message[4..8].copy_from_slice(&NOTIFY_INC_EPOCH.to_ne_bytes());
        rustix::io::write(&self.device, &message)?;
        Ok(())
    }
}

/// Notes of what the kernel may have cached, by group of inodes.
pub(crate) struct KernelCache {
    shards: Vec<Mutex<HashMap<u64, [u64; WORDS]>>>,
    /// Invalidations so far.
    losses: AtomicU64,
    /// Does the kernel know epochs?
    epochs: AtomicBool,
    /// Which files the kernel has pages of.
    pub(crate) mapped: Mapped,
    kernel: OnceLock<Kernel>,
}

/// What was true when a request began.
#[derive(Clone, Copy)]
pub(crate) struct Before(u64);

impl KernelCache {
    pub(crate) fn new() -> KernelCache {
        KernelCache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            losses: AtomicU64::new(0),
            epochs: AtomicBool::new(false),
            mapped: Mapped::new(),
            kernel: OnceLock::new(),
        }
    }

    /// Where the kernel listens; before it asks for anything.
    pub(crate) fn connect(&self, notifier: Notifier, device: OwnedFd) {
        let _ = self.kernel.set(Kernel { notifier, device });
    }

    /// The kernel has said which version of the protocol it speaks.
    pub(crate) fn negotiated(&self, version: (u32, u32)) {
        self.epochs.store(version >= (7, 44), Ordering::Relaxed);
    }

    /// May files be mapped shared? From the same version of Linux on the kernel keeps a page that it writes until that is
    /// done. Before, it wrote a copy, and taking the page back would not wait for it.
    pub(crate) fn may_map(&self) -> bool {
        self.epochs.load(Ordering::Relaxed)
    }

    pub(crate) fn before(&self) -> Before {
        Before(self.losses.load(Ordering::SeqCst))
    }

    /// How long the kernel may keep the attributes of `ino`, read since `before`.
    pub(crate) fn attr_ttl(&self, before: Before, ino: Ino) -> Duration {
        if self.note(ino) { self.ttl(before) } else { Duration::ZERO }
    }

    /// How long the kernel may keep a name in `dir` and the attributes of `ino` that it leads to, read since `before`.
    pub(crate) fn entry_ttl(&self, before: Before, dir: Ino, ino: Ino) -> Duration {
        let noted = self.epochs.load(Ordering::Relaxed) && self.note(dir) && self.note(ino);
        if noted { self.ttl(before) } else { Duration::ZERO }
    }

    fn ttl(&self, before: Before) -> Duration {
        if self.losses.load(Ordering::SeqCst) == before.0 { TTL } else { Duration::ZERO }
    }

    fn shard(&self, group: u64) -> &Mutex<HashMap<u64, [u64; WORDS]>> {
        &self.shards[group as usize % SHARDS]
    }

    /// Notes that the kernel may keep something of `ino`; false if there is no room for the note.
    fn note(&self, ino: Ino) -> bool {
        let group = InodeGroup::of(ino).number();
        let mut shard = self.shard(group).lock().expect("not poisoned");
        if shard.len() >= GROUPS && !shard.contains_key(&group) {
            return false;
        }
        let (word, bit) = place(ino);
        shard.entry(group).or_default()[word] |= bit;
        true
    }

    fn noted(&self, ino: Ino) -> bool {
        let group = InodeGroup::of(ino).number();
        let (word, bit) = place(ino);
        self.shard(group).lock().expect("not poisoned").get(&group).is_some_and(|g| g[word] & bit != 0)
    }

    /// A file is being opened: whatever the kernel has of it and should not have, it forgets (invariant 2).
    /// `writable`: for reading and writing, so that it may be mapped and stored into.
    pub(crate) fn opened(&self, volume: &Volume, ino: Ino, writable: bool) -> Result<()> {
        if !self.noted(ino) {
            self.forget(ino, -1);
        }
        if writable { self.mapped.opened(volume, ino, || self.drop_pages(ino)) } else { Ok(()) }
    }

    /// The kernel drops all pages of a file. Waits for those that are being read, and for those that are written for this.
    pub(crate) fn drop_pages(&self, ino: Ino) {
        self.forget(ino, 0);
    }

    /// `from`: pages from this offset on are dropped too, unless it is negative.
    fn forget(&self, ino: Ino, from: i64) {
        let Some(kernel) = self.kernel.get() else { return };
        // An error means that the kernel does not know the inode, or that the mount is going away.
        if let Err(e) = kernel.notifier.inval_inode(INodeNo(ino.0), from, 0) {
            tracing::debug!("{ino:?} stays in the kernel's cache: {e}");
        }
    }
}

fn group_of(number: u64) -> InodeGroup {
    InodeGroup::of(Ino(number * InodeGroup::INODES))
}

/// The bit of an inode in the notes of its group.
fn place(ino: Ino) -> (usize, u64) {
    let nr = ino.0 % InodeGroup::INODES;
    (nr as usize / 64, 1 << (nr % 64))
}

impl FrontEnd for KernelCache {
    fn invalidate(&self, group: InodeGroup) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        let notes = self.shard(group.number()).lock().expect("not poisoned").remove(&group.number());
        let Some(notes) = notes else { return };
        if let Some(kernel) = self.kernel.get()
            && self.epochs.load(Ordering::Relaxed)
            && let Err(e) = kernel.next_epoch()
        {
            tracing::debug!("names stay in the kernel's cache: {e}");
        }
        for (word, mut bits) in notes.into_iter().enumerate() {
            while bits != 0 {
                self.forget(group.inode(word as u64 * 64 + u64::from(bits.trailing_zeros())), -1);
                bits &= bits - 1;
            }
        }
    }

    fn recall(&self, group: InodeGroup, loans: Loans) {
        for ino in self.mapped.recalled(group, loans) {
            self.drop_pages(ino);
        }
    }

    /// The kernel forgets everything. Pages that were stored into cannot be written any more: `msync` says so.
    fn ended(&self, _why: &Error) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        for shard in &self.shards {
            let groups: Vec<u64> = shard.lock().expect("not poisoned").keys().copied().collect();
            groups.into_iter().for_each(|number| self.invalidate(group_of(number)));
        }
        self.mapped.groups().into_iter().for_each(|number| self.recall(group_of(number), Loans::All));
    }
}
