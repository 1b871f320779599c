//! Which inodes this mount has in use: one bit an inode, in groups of 1024 (`spec/05 §6`, `spec/06 §3.6`).
//!
//! A file whose last link is gone is deleted by whoever can prove that nobody uses it any more. The proof is the union of
//! these bits over all mounts, so a bit is set *before* an inode becomes usable and cleared *before* this mount itself
//! considers deleting it. Answering another mount's question must never wait for a lock of the engine: the bits are atomics
//! behind a sharded map that is locked for a lookup only.

use crate::format::Ino;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, HashMap, RwLock};

const SHARDS: usize = 64;
const WORDS: usize = 16;

/// The bits of one group of 1024 inode numbers.
#[derive(Default)]
struct Group([AtomicU64; WORDS]);

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
        let g = match self.group(group) {
            Some(g) => g,
            None => self.shard(group).write().entry(group).or_default().clone(),
        };
        g.0[word].fetch_or(mask, Ordering::AcqRel);
    }

    /// Marks `ino` as no longer in use.
    pub(crate) fn clear(&self, ino: Ino) {
        let (group, word, mask) = place(ino);
        if let Some(g) = self.group(group) {
            g.0[word].fetch_and(!mask, Ordering::AcqRel);
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
