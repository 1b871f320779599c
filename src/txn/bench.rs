//! What the benchmarks in `benches/` measure of the rooms `item` and `txn`, which are not public.
//!
//! Each method runs an operation a number of times and returns how long that took.

use std::time::{Duration, Instant};

use super::HoldKind;
use super::testbox::{Mount, ServerBox};
use crate::format::{Ino, Key, Seq, keys};
use crate::item::{ChangeSet, ItemLock, Value};
use crate::lock::{LockName, Mode};

/// A mount over memory devices.
pub struct Bench {
    mount: Mount,
    next: u64,
    inode: Value,
    dirent: Value,
}

const DIR: u64 = 1;
/// Inodes of new files start here.
const FILES: u64 = 1 << 20;

impl Default for Bench {
    fn default() -> Bench {
        Bench::new()
    }
}

impl Bench {
    /// An empty volume with a directory inode.
    pub fn new() -> Bench {
        let mount = Mount::with(&ServerBox::new(), 1, 1 << 30, |_| {});
        let b = Bench { mount, next: 0, inode: Value::new(&[1; 168]), dirent: Value::new(&[2; 48]) };
        let lock = b.lock(LockName::inode(Ino(DIR)), Mode::Write);
        let hold = b.mount.txn.hold(HoldKind::Allocating).expect("holds a fresh volume");
        let mut set = ChangeSet::new(&b.mount.items);
        set.put(&lock, keys::inode(Ino(DIR)), b.inode.clone());
        set.apply(&hold).expect("puts an inode");
        drop((hold, lock));
        b
    }

    fn lock(&self, name: LockName, mode: Mode) -> ItemLock {
        self.mount.lock(name, mode)
    }

    /// Item changes as a file creation makes them, locks and hold included: new inode with index item, three directory
    /// items, the directory's inode with its index items.
    pub fn creates(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            let n = self.next;
            self.next += 1;
            let ino = Ino(FILES + n);
            let seq = self.mount.txn.seq();
            let dir_lock = self.lock(LockName::inode(Ino(DIR)), Mode::Write);
            let ino_lock = self.lock(LockName::inode(ino), Mode::Write);
            let index = self.lock(LockName::meta_index(Seq(seq)), Mode::WriteOnly);
            let hold = self.mount.txn.hold(HoldKind::Allocating).expect("holds");
            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut set = ChangeSet::new(&self.mount.items);
            set.create(&dir_lock, keys::dirent(Ino(DIR), hash, n + 2), self.dirent.clone());
            set.create(&dir_lock, keys::readdir(Ino(DIR), n + 2), Value::new(&self.dirent));
            set.create(&ino_lock, keys::backref(ino, Ino(DIR), n + 2), Value::new(&self.dirent));
            set.create(&ino_lock, keys::inode(ino), Value::new(&self.inode));
            set.force_create(&index, &ino_lock, keys::meta_index(Seq(seq), ino), Value::EMPTY);
            set.update(&dir_lock, keys::inode(Ino(DIR)), Value::new(&self.inode));
            set.force_delete(&index, &dir_lock, keys::meta_index(Seq(seq), Ino(DIR)));
            set.force_create(&index, &dir_lock, keys::meta_index(Seq(seq), Ino(DIR)), Value::EMPTY);
            set.apply(&hold).expect("applies");
        }
        start.elapsed()
    }

    /// Look-ups of cached inode items made by [`Bench::creates`], under one lock that is held.
    pub fn lookups(&self, count: u64) -> Duration {
        let group = self.next.clamp(1, 1024);
        let lock = self.lock(LockName::inode(Ino(FILES)), Mode::Read);
        let start = Instant::now();
        for n in 0..count {
            let key = keys::inode(Ino(FILES + n * 7 % group));
            std::hint::black_box(self.mount.items.lookup(&lock, &key).expect("reads"));
        }
        start.elapsed()
    }

    /// Look-ups of directory entries in the one large shard of the directory.
    pub fn dirent_lookups(&self, count: u64) -> Duration {
        let lock = self.lock(LockName::inode(Ino(DIR)), Mode::Read);
        let start = Instant::now();
        for i in 0..count {
            let n = i.wrapping_mul(7919) % self.next.max(1);
            let key = keys::dirent(Ino(DIR), n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n + 2);
            std::hint::black_box(self.mount.items.lookup(&lock, &key).expect("reads"));
        }
        start.elapsed()
    }

    /// Enters and leaves the transaction on so many threads, each `count` times.
    pub fn holds(&self, threads: usize, count: u64) -> Duration {
        let txn = &self.mount.txn;
        let start = Instant::now();
        std::thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(move || {
                    for _ in 0..count {
                        drop(std::hint::black_box(txn.hold(HoldKind::Allocating)));
                    }
                });
            }
        });
        start.elapsed()
    }

    /// One commit of what is dirty.
    pub fn commit(&self) -> Duration {
        let start = Instant::now();
        self.mount.txn.sync().expect("commits");
        start.elapsed()
    }

    /// Changes one item and commits, so many times: what an fsync of a small change costs without device and network.
    pub fn small_commits(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        for n in 0..count {
            let lock = self.lock(LockName::inode(Ino(DIR)), Mode::Write);
            let hold = self.mount.txn.hold(HoldKind::Freeing).expect("holds");
            let mut set = ChangeSet::new(&self.mount.items);
            set.put(&lock, Key::new(16, DIR, 24, n % 10, 0, 0), Value::new(b"small"));
            set.apply(&hold).expect("applies");
            drop((hold, lock));
            self.mount.txn.sync().expect("commits");
        }
        start.elapsed()
    }

    /// Number of dirty items.
    pub fn dirty_items(&self) -> u64 {
        self.mount.items.dirty_items()
    }
}
