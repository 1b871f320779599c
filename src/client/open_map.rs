//! Which inodes this mount has in use: one bit an inode, in groups of 1024 (`spec/05 §6`, `spec/06 §3.6`).
//!
//! A file whose last link is gone is deleted by whoever can prove that nobody uses it any more. The proof is the union of
//! these bits over all mounts, so a bit is set *before* an inode becomes usable and cleared *before* this mount itself
//! considers deleting it. Answering another mount's question must never wait for a lock of the engine: the bits are atomics
//! behind a sharded map that is locked for a lookup only.
//!
//! Memory is bounded by the inodes in use: a shard that has grown lets go of the groups that became empty. A bit is set and
//! a group is dropped under the shard's lock, so that no bit is set in a group that is not in the map any more.

use crate::format::Ino;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, HashMap, RwLock};

const SHARDS: usize = 64;
const WORDS: usize = 16;
/// Groups that a shard keeps, empty or not.
const KEPT_GROUPS: usize = 64;

/// The bits of one group of 1024 inode numbers.
#[derive(Default)]
struct Group([AtomicU64; WORDS]);

impl Group {
    fn is_empty(&self) -> bool {
        self.0.iter().all(|w| w.load(Ordering::Acquire) == 0)
    }
}

/// The open-inode bits of one mount.
pub(crate) struct OpenMap {
    shards: Vec<RwLock<HashMap<u64, Arc<Group>>>>,
}

impl OpenMap {
    pub(crate) fn new() -> OpenMap {
        OpenMap { shards: (0..SHARDS).map(|_| RwLock::new(HashMap::default())).collect() }
    }

    fn shard(&self, group: u64) -> &RwLock<HashMap<u64, Arc<Group>>> {
        &self.shards[group as usize % SHARDS]
    }

    fn group(&self, group: u64) -> Option<Arc<Group>> {
        self.shard(group).read().get(&group).cloned()
    }

    /// Marks `ino` as in use. The caller holds the inode group's lock.
    pub(crate) fn set(&self, ino: Ino) {
        let (group, word, mask) = place(ino);
        let shard = self.shard(group);
        if let Some(g) = shard.read().get(&group) {
            g.0[word].fetch_or(mask, Ordering::AcqRel);
            return;
        }
        shard.write().entry(group).or_default().0[word].fetch_or(mask, Ordering::AcqRel);
    }

    /// Marks `ino` as no longer in use.
    pub(crate) fn clear(&self, ino: Ino) {
        let (group, word, mask) = place(ino);
        let shard = self.shard(group);
        let (empty, groups) = {
            let shard = shard.read();
            let empty = shard.get(&group).is_some_and(|g| g.0[word].fetch_and(!mask, Ordering::AcqRel) & !mask == 0);
            (empty, shard.len())
        };
        if empty && groups > KEPT_GROUPS {
            let mut shard = shard.write();
            if shard.get(&group).is_some_and(|g| g.is_empty()) {
                shard.remove(&group);
            }
        }
    }

    /// Is `ino` in use by this mount?
    pub(crate) fn test(&self, ino: Ino) -> bool {
        let (group, word, mask) = place(ino);
        self.group(group).is_some_and(|g| g.0[word].load(Ordering::Acquire) & mask != 0)
    }

    /// The 128 bytes of a group as they go on the wire.
    pub(crate) fn bits(&self, group: u64) -> [u8; 128] {
        let mut out = [0; 128];
        if let Some(g) = self.group(group) {
            for (bytes, word) in out.chunks_exact_mut(8).zip(&g.0) {
                bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
            }
        }
        out
    }
}

fn place(ino: Ino) -> (u64, usize, u64) {
    (ino.0 >> 10, (ino.0 >> 6) as usize % WORDS, 1 << (ino.0 & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups were never dropped: a mount that saw the whole volume kept a group for each 1024 of its inodes.
    #[test]
    fn memory_follows_the_inodes_in_use() {
        let map = OpenMap::new();
        let groups = |map: &OpenMap| map.shards.iter().map(|s| s.read().len()).sum::<usize>();
        for group in 0..100_000u64 {
            map.set(Ino(group << 10));
            map.set(Ino((group << 10) + 5));
            map.clear(Ino(group << 10));
            map.clear(Ino((group << 10) + 5));
        }
        assert!(groups(&map) <= SHARDS * (KEPT_GROUPS + 1), "{}", groups(&map));
        // What is in use stays.
        (0..10_000u64).for_each(|group| map.set(Ino(group << 10)));
        assert!((0..10_000u64).all(|group| map.test(Ino(group << 10)) && map.bits(group)[0] == 1));
    }

    /// A bit that is set while the group is dropped for being empty must not be lost.
    #[test]
    fn no_bit_is_lost_while_groups_are_dropped() {
        let map = OpenMap::new();
        (0..(SHARDS * (KEPT_GROUPS + 4)) as u64).for_each(|g| map.set(Ino(g << 10)));
        std::thread::scope(|s| {
            for i in 0..4u64 {
                let map = &map;
                s.spawn(move || {
                    let ino = Ino((1 << 30) + i * 64);
                    for _ in 0..50_000 {
                        map.set(ino);
                        assert!(map.test(ino));
                        map.clear(ino);
                    }
                });
            }
        });
    }

    #[test]
    fn bits_are_numbered_as_on_the_wire() {
        let map = OpenMap::new();
        map.set(Ino(1024));
        map.set(Ino(1024 + 77));
        map.set(Ino(2048));
        let bits = map.bits(1);
        assert_eq!(bits[0], 1);
        assert_eq!(bits[9], 1 << 5);
        assert_eq!(bits.iter().map(|b| b.count_ones()).sum::<u32>(), 2);
        assert!(map.test(Ino(1024 + 77)));
        map.clear(Ino(1024 + 77));
        assert!(!map.test(Ino(1024 + 77)));
        assert_eq!(map.bits(7), [0; 128]);
    }
}
