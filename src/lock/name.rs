//! Lock names: how the key space is cut into ranges (`spec/04 §3`).
//!
//! A lock is named on the wire by the first key of its range and nothing else, every node must cut alike, and the same
//! key seeds the bloom filters on disk. So a lock can only be named through [`LockName`]: its constructors are the eight
//! families, and two names are either equal or have disjoint ranges (property S-14 by construction).

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::format::{Ino, Key, KeyRange, Seq};

/// How many inode numbers or sequence values one group covers; also the bits of one open-inode map.
pub(crate) const LOCK_GROUP: u64 = 1024;

const LOW: u64 = LOCK_GROUP - 1;

const ZONE_INODE_INDEX: u8 = 4;
const ZONE_ORPHAN: u8 = 8;
const ZONE_QUOTA: u8 = 10;
const ZONE_TOTL: u8 = 12;
const ZONE_INDX: u8 = 14;
const ZONE_FS: u8 = 16;
const ZONE_LOCK: u8 = 20;
const KIND_META_SEQ: u8 = 4;
const KIND_DATA_SEQ: u8 = 8;
const KIND_ORPHAN: u8 = 4;
const KIND_RENAME: u8 = 4;

/// Which of the eight ways to cut applies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
enum Family {
    MetaIndex,
    DataIndex,
    Orphan,
    Quota,
    Totl,
    Indx,
    Inode,
    Rename,
}

/// So many consecutive names are a run: those who use one mostly use its neighbours too.
pub(super) const RUN: u64 = 64;

/// How many lock servers share the names of a volume.
pub(crate) const SERVER_SHARDS: usize = 16;

/// The families by their numbers, in the order of their start keys.
const FAMILIES: [Family; 8] = [
    Family::MetaIndex,
    Family::DataIndex,
    Family::Orphan,
    Family::Quota,
    Family::Totl,
    Family::Indx,
    Family::Inode,
    Family::Rename,
];

const _: () = {
    let mut i = 0;
    while i < FAMILIES.len() {
        assert!(FAMILIES[i] as usize == i, "a family is not at its number");
        i += 1;
    }
};

/// Where the number of the family is; groups have at most 54 bits.
const FAMILY_SHIFT: u32 = 56;

/// The name of one lock: a family and, where the family is cut into groups, the number of the group.
///
/// The order of names is the order of their start keys. One word, because servers have millions of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LockName(u64);

impl LockName {
    const fn new(family: Family, group: u64) -> LockName {
        LockName((family as u64) << FAMILY_SHIFT | group)
    }

    const fn family(&self) -> Family {
        FAMILIES[(self.0 >> FAMILY_SHIFT) as usize]
    }

    const fn group(&self) -> u64 {
        self.0 & ((1 << FAMILY_SHIFT) - 1)
    }

    /// The group of 1024 inodes that `ino` belongs to, with their entries, xattrs and extents.
    pub(crate) const fn inode(ino: Ino) -> LockName {
        LockName::new(Family::Inode, ino.0 / LOCK_GROUP)
    }

    /// Metadata change index items whose major is in the group of `seq`.
    pub(crate) const fn meta_index(seq: Seq) -> LockName {
        LockName::new(Family::MetaIndex, seq.0 / LOCK_GROUP)
    }

    /// Data change index items whose major is in the group of `seq`.
    pub(crate) const fn data_index(seq: Seq) -> LockName {
        LockName::new(Family::DataIndex, seq.0 / LOCK_GROUP)
    }

    /// All orphan items.
    pub(crate) const fn orphan() -> LockName {
        LockName::new(Family::Orphan, 0)
    }

    /// All quota rules.
    pub(crate) const fn quota() -> LockName {
        LockName::new(Family::Quota, 0)
    }

    /// All xattr totals.
    pub(crate) const fn totl() -> LockName {
        LockName::new(Family::Totl, 0)
    }

    /// The whole xattr index.
    pub(crate) const fn indx() -> LockName {
        LockName::new(Family::Indx, 0)
    }

    /// The lock of renames between two directories; it covers no item.
    pub(crate) const fn rename() -> LockName {
        LockName::new(Family::Rename, 0)
    }

    /// The name whose range starts exactly at `key`, if there is one.
    pub(crate) fn from_key(key: &Key) -> Option<LockName> {
        let name = match (key.zone, key.kind) {
            (ZONE_FS, 0) => LockName::inode(Ino(key.first)),
            (ZONE_INODE_INDEX, KIND_META_SEQ) => LockName::meta_index(Seq(key.second)),
            (ZONE_INODE_INDEX, KIND_DATA_SEQ) => LockName::data_index(Seq(key.second)),
            (ZONE_ORPHAN, KIND_ORPHAN) => LockName::orphan(),
            (ZONE_QUOTA, 0) => LockName::quota(),
            (ZONE_TOTL, 0) => LockName::totl(),
            (ZONE_INDX, 0) => LockName::indx(),
            (ZONE_LOCK, KIND_RENAME) => LockName::rename(),
            _ => return None,
        };
        (name.start() == *key).then_some(name)
    }

    /// The number of the group of inodes, for a lock of one.
    pub(crate) fn inode_group(&self) -> Option<u64> {
        (self.family() == Family::Inode).then_some(self.group())
    }

    /// The first key of the range: the name on the wire and in bloom filters.
    pub(crate) const fn start(&self) -> Key {
        let first = self.group() * LOCK_GROUP;
        match self.family() {
            Family::Inode => Key::new(ZONE_FS, first, 0, 0, 0, 0),
            Family::MetaIndex => Key::new(ZONE_INODE_INDEX, 0, KIND_META_SEQ, first, 0, 0),
            Family::DataIndex => Key::new(ZONE_INODE_INDEX, 0, KIND_DATA_SEQ, first, 0, 0),
            Family::Orphan => Key::new(ZONE_ORPHAN, 0, KIND_ORPHAN, 0, 0, 0),
            Family::Quota => Key::new(ZONE_QUOTA, 0, 0, 0, 0, 0),
            Family::Totl => Key::new(ZONE_TOTL, 0, 0, 0, 0, 0),
            Family::Indx => Key::new(ZONE_INDX, 0, 0, 0, 0, 0),
            Family::Rename => Key::new(ZONE_LOCK, 0, KIND_RENAME, 0, 0, 0),
        }
    }

    /// All keys that the lock covers.
    pub(crate) const fn range(&self) -> KeyRange {
        let last = (self.group() * LOCK_GROUP) | LOW;
        let end = match self.family() {
            Family::Inode => Key::new(ZONE_FS, last, u8::MAX, u64::MAX, u64::MAX, u8::MAX),
            Family::MetaIndex => Key::new(ZONE_INODE_INDEX, 0, KIND_META_SEQ, last, u64::MAX, 0),
            Family::DataIndex => Key::new(ZONE_INODE_INDEX, 0, KIND_DATA_SEQ, last, u64::MAX, 0),
            Family::Orphan => Key::new(ZONE_ORPHAN, 0, KIND_ORPHAN, u64::MAX, 0, 0),
            Family::Quota => whole_zone_end(ZONE_QUOTA),
            Family::Totl => whole_zone_end(ZONE_TOTL),
            Family::Indx => whole_zone_end(ZONE_INDX),
            Family::Rename => self.start(),
        };
        KeyRange::new(self.start(), end)
    }

    /// The number of the run of consecutive names that this one is in, and its place there.
    pub(super) const fn run(&self) -> (Run, u64) {
        (Run(self.0 / RUN), self.0 % RUN)
    }

    /// The name that has this place in a run.
    pub(super) const fn of_run(run: Run, at: u64) -> LockName {
        LockName(run.0 * RUN + at)
    }

    /// Which of the lock servers that share the work has this name: the same one for a run.
    pub(crate) const fn shard(&self) -> usize {
        (mix(self.run().0.0) >> 36) as usize % SERVER_SHARDS
    }

    /// A well mixed hash: groups are consecutive numbers, and both the shard and the bucket come from it.
    pub(crate) const fn mixed(&self) -> u64 {
        mix(self.0)
    }
}

const fn mix(number: u64) -> u64 {
    let x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 32)
}

const fn whole_zone_end(zone: u8) -> Key {
    Key::new(zone, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX)
}

impl Hash for LockName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed());
    }
}

/// The number of a run of names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run(u64);

impl Hash for Run {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(mix(self.0));
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.start(), f)
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
