//! Which files the kernel has pages of, because programs map them, and how they are taken back.
//!
//! **Problem.** Programs load from and store into mapped pages without asking anybody. Another node's change must tear the
//! pages down first, and what was stored into them must be written first.
//!
//! **Idea.** Pages are lent ([`Volume::lend`]). The kernel says nothing when a page is stored into for the first time, so
//! every page of a file that is open for reading and writing here is lent writable: this node alone has it. Pages of other
//! files are lent read-only, to any number of nodes. Recalled pages are dropped by the kernel (`FUSE_NOTIFY_INVAL_INODE`),
//! which writes them before if they were stored into, and waits for those that are just being filled.
//!
//! Invariants:
//!  1. How a page is lent is decided, and noted, before it is read; it is the kernel that has locked the page before it
//!     asked. So who takes pages back by the notes waits for all of them.
//!  2. A note outlives a recall if a page is being filled meanwhile, because what is answered during a recall is recalled
//!     again.
//!  3. Pages of one file are filled only read-only or only writable at any time: a recall of read-only pages cannot wait
//!     for one that wants the right to change. A file that is opened for reading and writing while it may have read-only
//!     pages loses them under [`Volume::exclusively`], where every fill is answered.

use std::collections::HashMap;
use std::sync::Mutex;

use scoutfs::{Ino, InodeGroup, Loans, Result, Volume};

const SHARDS: usize = 32;

/// What is known of one file.
#[derive(Clone, Copy, Default, Debug)]
struct File {
    /// Pages may be there that were lent read-only, or writable.
    lent: [bool; 2],
    /// Pages that are being read, for read-only and for writable.
    filling: [u32; 2],
    /// How often it is open for reading and writing.
    writers: u32,
}

impl File {
    fn is_nothing(&self) -> bool {
        self.lent == [false; 2] && self.filling == [0; 2] && self.writers == 0
    }
}

type Group = HashMap<u64, File>;

/// The notes, by group of inodes.
pub(crate) struct Mapped {
    shards: Vec<Mutex<HashMap<u64, Group>>>,
}

/// A page is being filled; until this is dropped, which must be after the answer.
pub(crate) struct Filling<'a> {
    notes: &'a Mapped,
    ino: Ino,
    pub(crate) writable: bool,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        tracing::trace!("filled {:?} writable {}", self.ino, self.writable);
        self.notes.change(self.ino, |f| f.filling[usize::from(self.writable)] -= 1);
    }
}

impl Mapped {
    pub(crate) fn new() -> Mapped {
        Mapped { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, group: u64) -> &Mutex<HashMap<u64, Group>> {
        &self.shards[group as usize % SHARDS]
    }

    fn change<R>(&self, ino: Ino, f: impl FnOnce(&mut File) -> R) -> R {
        let group = InodeGroup::of(ino).number();
        let mut shard = self.shard(group).lock().expect("not poisoned");
        let files = shard.entry(group).or_default();
        let file = files.entry(ino.0).or_default();
        let r = f(file);
        if file.is_nothing() {
            files.remove(&ino.0);
            if files.is_empty() {
                shard.remove(&group);
            }
        }
        r
    }

    /// The kernel asks for pages to keep.
    pub(crate) fn fill(&self, ino: Ino) -> Filling<'_> {
        let writable = self.change(ino, |f| {
            let writable = f.writers > 0 || f.filling[1] > 0;
            f.filling[usize::from(writable)] += 1;
            f.lent[usize::from(writable)] = true;
            writable
        });
        tracing::trace!("fill {ino:?} writable {writable}");
        Filling { notes: self, ino, writable }
    }

    /// May the kernel have pages of the file?
    pub(crate) fn has_pages(&self, ino: Ino) -> bool {
        self.change(ino, |f| f.lent != [false; 2])
    }

    /// The file is opened for reading and writing; `drop_pages` makes the kernel drop its pages. Undone by [`Mapped::closed`].
    pub(crate) fn opened(&self, volume: &Volume, ino: Ino, drop_pages: impl FnOnce()) -> Result<()> {
        let counted = self.change(ino, |f| {
            let now = !f.lent[0] && f.filling[0] == 0;
            f.writers += u32::from(now);
            now
        });
        if counted {
            return Ok(());
        }
        volume.exclusively(ino, || {
            self.change(ino, |f| f.writers += 1);
            drop_pages();
            self.change(ino, |f| f.lent[0] = false);
            tracing::trace!("opened {ino:?}");
        })
    }

    /// A file that was opened for reading and writing is closed, and unmapped.
    pub(crate) fn closed(&self, ino: Ino) {
        self.change(ino, |f| f.writers -= 1);
    }

    /// Numbers of the groups of which there are notes.
    pub(crate) fn groups(&self) -> Vec<u64> {
        self.shards.iter().flat_map(|s| s.lock().expect("not poisoned").keys().copied().collect::<Vec<_>>()).collect()
    }

    /// The files of a group of which the kernel has pages that are meant. Who asks takes them back.
    pub(crate) fn recalled(&self, group: InodeGroup, loans: Loans) -> Vec<Ino> {
        let mut shard = self.shard(group.number()).lock().expect("not poisoned");
        let Some(files) = shard.get_mut(&group.number()) else { return Vec::new() };
        let mut found = Vec::new();
        for (ino, f) in files.iter_mut() {
            let mut has = false;
            for writable in [false, true].into_iter().filter(|w| loans.includes(*w)) {
                let at = usize::from(writable);
                has |= f.lent[at];
                tracing::trace!("recall {loans:?} of {ino}: {f:?}");
                f.lent[at] &= f.filling[at] > 0;
            }
            if has {
                found.push(Ino(*ino));
            }
        }
        files.retain(|_, f| !f.is_nothing());
        if files.is_empty() {
            shard.remove(&group.number());
        }
        found
    }
}
