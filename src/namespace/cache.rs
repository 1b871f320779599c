//! The inodes in memory, at most one a number, bounded.
//!
//! A sharded hash map with second chance: a shard that is full gives up inodes that nobody refers to and that were not
//! used since it last looked. An inode with open handles, dirty contents or an operation in progress has another
//! reference and stays. Losing an unused inode costs a read of its item, nothing else: all that is persistent is in items.

use std::collections::VecDeque;

use crossbeam::utils::CachePadded;
use hashbrown::hash_map::Entry;

use super::inode::Inode;
use crate::format::Ino;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, HashMap, RwLock};

const SHARDS: usize = 64;
/// Inodes whose numbers differ in these bits only share a shard.
const RUN_BITS: u32 = 4;
/// How many inodes one insertion into a full shard looks at.
const LOOKS: usize = 8;

#[derive(Default)]
struct Shard {
    inodes: HashMap<u64, Arc<Inode>, Mix>,
    /// Every number of the map once, oldest first.
    order: VecDeque<u64>,
}

/// Spreads consecutive numbers; nobody chooses inode numbers to attack it.
#[derive(Clone, Copy, Default)]
struct Mix;

struct MixHasher(u64);

impl std::hash::BuildHasher for Mix {
    type Hasher = MixHasher;
    fn build_hasher(&self) -> MixHasher {
        MixHasher(0)
    }
}

impl std::hash::Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 32);
    }
}

/// All inodes in memory.
pub(crate) struct InodeCache {
    shards: Vec<CachePadded<RwLock<Shard>>>,
    per_shard: usize,
}

impl InodeCache {
    /// Keeps about `capacity` unused inodes.
    pub(crate) fn new(capacity: usize) -> InodeCache {
        InodeCache {
            shards: (0..SHARDS).map(|_| CachePadded::new(RwLock::new(Shard::default()))).collect(),
            per_shard: (capacity / SHARDS).max(LOOKS),
        }
    }

    fn shard(&self, ino: Ino) -> &RwLock<Shard> {
        // Runs of numbers stay together, so that threads that work in different groups seldom meet here; they are short and
        // spread, so that the shards fill evenly: a whole group would not fit into one.
        let x = (ino.0 >> RUN_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(x >> 40) as usize % SHARDS]
    }

    /// Calls `look` with the inode if it is in memory, without counting a reference. The shard is locked meanwhile, so `look`
    /// must not wait for anything.
    #[inline]
    pub(crate) fn peek<R>(&self, ino: Ino, look: impl FnOnce(&Inode) -> Option<R>) -> Option<R> {
        let shard = self.shard(ino).read();
        let inode = shard.inodes.get(&ino.0)?;
        inode.touch();
        look(inode)
    }

    /// The inode, if it is in memory.
    pub(crate) fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        let shard = self.shard(ino).read();
        let inode = shard.inodes.get(&ino.0)?;
        inode.touch();
        Some(inode.clone())
    }

    /// The inode, made if it is not in memory.
    pub(crate) fn get_or_new(&self, ino: Ino) -> Arc<Inode> {
        if let Some(inode) = self.get(ino) {
            return inode;
        }
        let mut shard = self.shard(ino).write();
        let shard = &mut *shard;
        let inode = match shard.inodes.entry(ino.0) {
            Entry::Occupied(e) => return e.get().clone(),
            Entry::Vacant(e) => e.insert(Arc::new(Inode::new(ino))).clone(),
        };
        shard.order.push_back(ino.0);
        if shard.order.len() > self.per_shard {
            shard.shrink();
        }
        inode
    }

    /// Drops an inode whose item is gone. Others may still refer to it; they find that there is no item.
    pub(crate) fn remove(&self, ino: Ino) {
        self.shard(ino).write().inodes.remove(&ino.0);
    }

    /// Drops everything that nobody refers to.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.inodes.retain(|_, i| Arc::strong_count(i) > 1);
            let Shard { inodes, order } = &mut *shard;
            order.retain(|n| inodes.contains_key(n));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().inodes.len()).sum()
    }
}

impl Shard {
    fn shrink(&mut self) {
        for _ in 0..LOOKS {
            let Some(n) = self.order.pop_front() else { return };
            let Entry::Occupied(e) = self.inodes.entry(n) else { continue };
            let unused = Arc::strong_count(e.get()) == 1 && !e.get().referenced.swap(false, Ordering::Relaxed);
            if unused {
                e.remove();
            } else {
                self.order.push_back(n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_inode_a_number_and_unused_ones_go() {
        let cache = InodeCache::new(SHARDS * 16);
        let kept = cache.get_or_new(Ino(5));
        assert!(Arc::ptr_eq(&kept, &cache.get_or_new(Ino(5))));
        for n in 6..2000 {
            cache.get_or_new(Ino(n));
        }
        // Of 2000 in a row; numbers do not fill the shards quite evenly, and second chances come late.
        assert!((SHARDS * 4..=SHARDS * 24).contains(&cache.len()), "{} inodes", cache.len());
        assert!(Arc::ptr_eq(&kept, &cache.get(Ino(5)).unwrap()));
    }
}
