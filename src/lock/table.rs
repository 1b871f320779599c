//! The table of a mount's locks: sharded, each shard on its own cache lines.
//!
//! 1. A lock object is in the table from its creation until it is idle and null; only the table creates and removes, under
//!    the shard's write lock (S-15).
//! 2. Lock order: shard, then a lock's mutex. Never the other way round.

use std::hash::{BuildHasherDefault, Hasher};

use crossbeam::utils::CachePadded;

use super::guard::Lock;
use super::{LockName, Protected};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, HashMap, RwLock, RwLockReadGuard};

/// [`LockName`] hashes itself; this only hands the value through.
#[derive(Default)]
pub(super) struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = v;
    }
}

/// Hashing of lock names.
pub(super) type MixBuild = BuildHasherDefault<MixHasher>;

/// One shard's locks.
pub(super) type Shard<P> = HashMap<LockName, Arc<Lock<P>>, MixBuild>;

/// All locks of one mount by name.
pub(super) struct Table<P: Protected> {
    shards: Box<[CachePadded<RwLock<Shard<P>>>]>,
    /// Changed only by creation and removal.
    count: AtomicUsize,
}

impl<P: Protected> Table<P> {
    /// An empty table of `shards` (a power of two).
    pub(super) fn new(shards: usize) -> Table<P> {
        assert!(shards.is_power_of_two(), "the shard is chosen by a mask");
        let shard = |_| CachePadded::new(RwLock::new(Shard::default()));
        Table { shards: (0..shards).map(shard).collect(), count: AtomicUsize::new(0) }
    }

    fn index(&self, name: LockName) -> usize {
        // Other bits than the map inside uses for buckets (low) and tags (high).
        (name.mixed() >> 32) as usize & (self.shards.len() - 1)
    }

    /// The shard that `name` is or would be in.
    #[inline]
    pub(super) fn read(&self, name: LockName) -> RwLockReadGuard<'_, Shard<P>> {
        self.shards[self.index(name)].read()
    }

    pub(super) fn get(&self, name: LockName) -> Option<Arc<Lock<P>>> {
        self.read(name).get(&name).cloned()
    }

    /// The lock, created by `make` if absent; `make` runs under the shard's write lock and may refuse. The flag tells
    /// whether it was created.
    pub(super) fn get_or_create<E>(
        &self,
        name: LockName,
        make: impl FnOnce() -> Result<Lock<P>, E>,
    ) -> Result<(Arc<Lock<P>>, bool), E> {
        if let Some(l) = self.get(name) {
            return Ok((l, false));
        }
        let mut shard = self.shards[self.index(name)].write();
        if let Some(l) = shard.get(&name) {
            return Ok((l.clone(), false));
        }
        let l = Arc::new(make()?);
        shard.insert(name, l.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok((l, true))
    }

    /// Removes the lock if it is idle and null.
    pub(super) fn remove_if_free(&self, lock: &Lock<P>) {
        let mut shard = self.shards[self.index(lock.name())].write();
        let machine = lock.machine.lock();
        if machine.idle(&lock.hot) && lock.hot.word.kill() {
            shard.remove(&lock.name());
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Locks of one shard that `pick` wants, at most `max`.
    pub(super) fn pick(&self, shard: usize, max: usize, mut pick: impl FnMut(&Lock<P>) -> bool) -> Vec<Arc<Lock<P>>> {
        self.shards[shard].read().values().filter(|l| pick(l)).take(max).cloned().collect()
    }

    /// Calls `f` for every lock, outside of the shard locks.
    pub(super) fn for_each(&self, mut f: impl FnMut(&Arc<Lock<P>>)) {
        for i in 0..self.shards.len() {
            self.pick(i, usize::MAX, |_| true).iter().for_each(&mut f);
        }
    }
}

impl<P: Protected> Drop for Table<P> {
    /// Locks that are still in use then belong to their users (word, ORPHAN).
    fn drop(&mut self) {
        for i in 0..self.shards.len() {
            for (_, lock) in self.shards[i].write().drain() {
                if !lock.hot.word.orphan().unused() {
                    std::mem::forget(lock);
                }
            }
        }
    }
}
