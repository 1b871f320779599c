//! What names lead to: a bounded cache in front of the entry items (`spec/06 §4.5`).
//!
//! **Problem.** Walking a path asks for the same few names again and again; an entry item is found by hash in an ordered
//! map, compared, checked.
//!
//! **Idea.** A fixed table of small sets, found by a quick hash of directory and name (the hash of stored entries takes longer
//! than all the rest of a look-up). A slot says what the name led to under one
//! refresh generation of the directory's lock; under another one it says nothing. Operations that change an entry write the
//! slot while they hold the directory's operation lock and WRITE lock, so a slot of the current generation is always right
//! and may be used in place of the item, also to verify what an operation is about to change.
//!
//! A set starts with a few bits of each of its names, so that looking one up touches one line of memory and those of the
//! slot that has it. Generation 0 is never valid. Long names are not kept. Memory: about 80 bytes an entry, taken at once.

use crate::format::{DirentKind, Ino};
use crate::sync::Mutex;

const WAYS: usize = 8;
const NAME_KEPT: usize = 39;

/// What an entry says, besides its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) ino: Ino,
    pub(crate) pos: u64,
    pub(crate) kind: Option<DirentKind>,
}

#[derive(Clone, Copy)]
struct Slot {
    generation: u64,
    dir: Ino,
    /// `None`: there is no such name.
    target: Option<Target>,
    len: u8,
    name: [u8; NAME_KEPT],
}

const EMPTY: Slot = Slot { generation: 0, dir: Ino(0), target: None, len: 0, name: [0; NAME_KEPT] };

impl Slot {
    #[inline]
    fn is(&self, dir: Ino, name: &[u8]) -> bool {
        self.dir == dir && &self.name[..usize::from(self.len)] == name
    }
}

#[repr(C)]
struct Set {
    /// Bits of what is in the slots, 0 for nothing.
    tags: [u16; WAYS],
    /// Which slot goes next.
    turn: u8,
    slots: [Slot; WAYS],
}

/// The table of one mount.
pub(crate) struct NameCache {
    sets: Vec<Mutex<Set>>,
}

impl NameCache {
    /// Room for about `entries` names.
    pub(crate) fn new(entries: usize) -> NameCache {
        let sets = (entries / WAYS).max(8).next_power_of_two();
        let empty = || Mutex::new(Set { tags: [0; WAYS], turn: 0, slots: [EMPTY; WAYS] });
        NameCache { sets: (0..sets).map(|_| empty()).collect() }
    }

    /// The set of a name, and the name's tag in it.
    #[inline]
    fn set(&self, dir: Ino, name: &[u8]) -> (&Mutex<Set>, u16) {
        let x = mix(dir, name);
        (&self.sets[(x >> 24) as usize & (self.sets.len() - 1)], (x >> 48) as u16 | 1)
    }

    /// What `name` leads to: `None` if that is not known, `Some(None)` if there is no such entry.
    #[inline]
    pub(crate) fn get(&self, dir: Ino, name: &[u8], generation: u64) -> Option<Option<Target>> {
        let (set, tag) = self.set(dir, name);
        let set = set.lock();
        let slot = &set.slots[set.find(tag, dir, name)?];
        (slot.generation == generation && generation != 0).then_some(slot.target)
    }

    /// What `name` led to last, whenever that was: a guess to be verified. As [`NameCache::get`].
    pub(crate) fn guess(&self, dir: Ino, name: &[u8]) -> Option<Option<Target>> {
        let (set, tag) = self.set(dir, name);
        let set = set.lock();
        Some(set.slots[set.find(tag, dir, name)?].target)
    }

    /// Remembers an answer of the entry items, or a change that has just been made to them.
    pub(crate) fn put(&self, dir: Ino, name: &[u8], generation: u64, target: Option<Target>) {
        if name.len() > NAME_KEPT || generation == 0 {
            return;
        }
        let (set, tag) = self.set(dir, name);
        let mut set = set.lock();
        if let Some(i) = set.find(tag, dir, name) {
            set.slots[i].generation = generation;
            set.slots[i].target = target;
            return;
        }
        let i = match set.tags.iter().position(|t| *t == 0) {
            Some(free) => free,
            None => {
                set.turn = (set.turn + 1) % WAYS as u8;
                usize::from(set.turn)
            }
        };
        set.tags[i] = tag;
        let slot = &mut set.slots[i];
        (slot.generation, slot.dir, slot.target, slot.len) = (generation, dir, target, name.len() as u8);
        slot.name[..name.len()].copy_from_slice(name);
    }

    /// Forgets a name whose entry may have changed in a way that is not known.
    pub(crate) fn forget(&self, dir: Ino, name: &[u8]) {
        let (set, tag) = self.set(dir, name);
        let mut set = set.lock();
        if let Some(i) = set.find(tag, dir, name) {
            set.tags[i] = 0;
        }
    }

    /// Names in the table.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sets.iter().map(|s| s.lock().tags.iter().filter(|t| **t != 0).count()).sum()
    }
}

/// Spreads directories and names over the table. Whoever chooses names that meet in one set only has them forgotten sooner.
#[inline]
fn mix(dir: Ino, name: &[u8]) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |h: u64, word: u64| {
        let x = (h ^ word).wrapping_mul(SPREAD);
        x ^ x >> 32
    };
    let (words, rest) = name.as_chunks::<8>();
    let h = words.iter().fold(dir.0 ^ (name.len() as u64) << 56, |h, w| fold(h, u64::from_le_bytes(*w)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(fold(h, u64::from_le_bytes(last)), 0)
}

impl Set {
    #[inline]
    fn find(&self, tag: u16, dir: Ino, name: &[u8]) -> Option<usize> {
        (0..WAYS).find(|&i| self.tags[i] == tag && self.slots[i].is(dir, name))
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
        cache.put(DIR, b"a", 3, target(9));
        assert_eq!(cache.get(DIR, b"a", 3), Some(target(9)));
        assert_eq!(cache.get(DIR, b"a", 4), None);
        assert_eq!(cache.get(DIR, b"b", 3), None, "another name");
        cache.put(DIR, b"a", 4, None);
        assert_eq!(cache.get(DIR, b"a", 4), Some(None));
    }

    #[test]
    fn defect_40_generation_0_is_never_valid() {
        let cache = NameCache::new(64);
        cache.put(DIR, b"a", 0, target(9));
        assert_eq!(cache.get(DIR, b"a", 0), None);
    }

    #[test]
    fn a_forgotten_name_and_one_that_is_too_long_are_not_known() {
        let cache = NameCache::new(64);
        cache.put(DIR, b"a", 3, target(9));
        cache.forget(DIR, b"a");
        assert_eq!((cache.get(DIR, b"a", 3), cache.guess(DIR, b"a")), (None, None));
        let long = [b'x'; NAME_KEPT + 1];
        cache.put(DIR, &long, 3, target(9));
        assert_eq!(cache.get(DIR, &long, 3), None);
        assert_eq!(cache.get(DIR, &long[1..], 3), None);
        cache.put(DIR, &long[1..], 3, None);
        assert_eq!(cache.get(DIR, &long[1..], 3), Some(None));
        assert_eq!(cache.guess(DIR, &long[1..]), Some(None), "known not to be");
    }

    #[test]
    fn the_table_is_bounded() {
        let cache = NameCache::new(64);
        for i in 0..10_000u64 {
            cache.put(DIR, &i.to_le_bytes(), 1, target(i));
        }
        assert!(cache.len() <= 64);
    }
}
