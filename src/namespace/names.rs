//! What names lead to: a bounded cache in front of the entry items (`spec/06 §4.5`).
//!
//! **Problem.** Walking a path asks for the same few names again and again; an entry item is found by hash in an ordered
//! map, compared, checked.
//!
//! **Idea.** A fixed table of small sets, found by directory and name hash. A slot says what the name led to under one
//! refresh generation of the directory's lock; under another one it says nothing. Operations that change an entry write the
//! slot while they hold the directory's operation lock and WRITE lock, so a slot of the current generation is always right
//! and may be used in place of the item, also to verify what an operation is about to change.
//!
//! Generation 0 is never valid. Long names are not kept.

use smallvec::SmallVec;

use crate::format::{DirentKind, Ino};
use crate::sync::Mutex;

const WAYS: usize = 4;
const NAME_KEPT: usize = 36;

/// What an entry says, besides its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) ino: Ino,
    pub(crate) pos: u64,
    pub(crate) kind: Option<DirentKind>,
}

#[derive(Clone)]
struct Slot {
    generation: u64,
    dir: Ino,
    hash: u64,
    /// `None`: there is no such name.
    target: Option<Target>,
    name: SmallVec<[u8; NAME_KEPT]>,
}

#[derive(Default)]
struct Set {
    slots: SmallVec<[Slot; WAYS]>,
    /// Which slot goes next.
    turn: u8,
}

/// The table of one mount.
pub(crate) struct NameCache {
    sets: Vec<Mutex<Set>>,
}

impl NameCache {
    /// Room for about `entries` names.
    pub(crate) fn new(entries: usize) -> NameCache {
        let sets = (entries / WAYS).max(16).next_power_of_two();
        NameCache { sets: (0..sets).map(|_| Mutex::new(Set::default())).collect() }
    }

    fn set(&self, dir: Ino, hash: u64) -> &Mutex<Set> {
        let x = (dir.0.rotate_left(32) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.sets[(x >> 32) as usize & (self.sets.len() - 1)]
    }

    /// What `name` leads to: `None` if that is not known, `Some(None)` if there is no such entry.
    pub(crate) fn get(&self, dir: Ino, hash: u64, name: &[u8], generation: u64) -> Option<Option<Target>> {
        let set = self.set(dir, hash).lock();
        let slot = set.find(dir, hash, name)?;
        (slot.generation == generation && generation != 0).then_some(slot.target)
    }

    /// What `name` led to last, whenever that was: a guess to be verified.
    pub(crate) fn guess(&self, dir: Ino, hash: u64, name: &[u8]) -> Option<Target> {
        self.set(dir, hash).lock().find(dir, hash, name)?.target
    }

    /// Remembers an answer of the entry items, or a change that has just been made to them.
    pub(crate) fn put(&self, dir: Ino, hash: u64, name: &[u8], generation: u64, target: Option<Target>) {
        if name.len() > NAME_KEPT || generation == 0 {
            return;
        }
        let mut set = self.set(dir, hash).lock();
        let set = &mut *set;
        let same = set.slots.iter().position(|s| s.dir == dir && s.hash == hash && s.name.as_slice() == name);
        if let Some(i) = same {
            set.slots[i].generation = generation;
            set.slots[i].target = target;
            return;
        }
        let slot = Slot { generation, dir, hash, target, name: SmallVec::from_slice(name) };
        if set.slots.len() < WAYS {
            set.slots.push(slot);
        } else {
            set.turn = (set.turn + 1) % WAYS as u8;
            set.slots[usize::from(set.turn)] = slot;
        }
    }

    /// Forgets a name whose entry may have changed in a way that is not known.
    pub(crate) fn forget(&self, dir: Ino, hash: u64, name: &[u8]) {
        let mut set = self.set(dir, hash).lock();
        set.slots.retain(|s| !(s.dir == dir && s.hash == hash && s.name.as_slice() == name));
    }
}

impl Set {
    fn find(&self, dir: Ino, hash: u64, name: &[u8]) -> Option<&Slot> {
        self.slots.iter().find(|s| s.hash == hash && s.dir == dir && s.name.as_slice() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Ino = Ino(1);

    fn target(ino: u64) -> Option<Target> {
        Some(Target { ino: Ino(ino), pos: 2, kind: Some(DirentKind::Regular) })
    }

    #[test]
    fn answers_hold_for_one_generation_only() {
        let cache = NameCache::new(64);
        cache.put(DIR, 7, b"a", 3, target(9));
        assert_eq!(cache.get(DIR, 7, b"a", 3), Some(target(9)));
        assert_eq!(cache.get(DIR, 7, b"a", 4), None);
        assert_eq!(cache.get(DIR, 7, b"b", 3), None, "same hash, other name");
        cache.put(DIR, 7, b"a", 4, None);
        assert_eq!(cache.get(DIR, 7, b"a", 4), Some(None));
    }

    #[test]
    fn defect_40_generation_0_is_never_valid() {
        let cache = NameCache::new(64);
        cache.put(DIR, 7, b"a", 0, target(9));
        assert_eq!(cache.get(DIR, 7, b"a", 0), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let cache = NameCache::new(64);
        for i in 0..10_000u64 {
            cache.put(DIR, i, &i.to_le_bytes(), 1, target(i));
        }
        let held: usize = cache.sets.iter().map(|s| s.lock().slots.len()).sum();
        assert!(held <= 64);
    }
}
