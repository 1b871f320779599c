//! Keys: the one address space of all items.
//!
//! The order of significance is (zone, first, kind, second, third, fourth), which is neither the order of the stored
//! bytes nor their endianness, so keys are converted once when they are read ([`StoredKey::to_key`]) and compared in
//! this native form (`spec/01 §4`).

use std::fmt;

use super::layout::StoredKey;

/// A key in native form. Ordering is the order of the volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// Most significant: which family of items (`sk_zone`).
    pub zone: u8,
    /// `_sk_first`, for filesystem items the inode number.
    pub first: u64,
    /// Which kind of item within the zone (`sk_type`).
    pub kind: u8,
    /// `_sk_second`.
    pub second: u64,
    /// `_sk_third`.
    pub third: u64,
    /// Least significant (`_sk_fourth`).
    pub fourth: u8,
}

impl Key {
    /// The least key.
    pub const ZEROS: Key = Key::new(0, 0, 0, 0, 0, 0);
    /// The greatest key.
    pub const ONES: Key = Key::new(u8::MAX, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX);

    /// A key from its fields, in order of significance.
    pub const fn new(zone: u8, first: u64, kind: u8, second: u64, third: u64, fourth: u8) -> Key {
        Key { zone, first, kind, second, third, fourth }
    }

    /// The next greater key; the greatest wraps to [`Key::ZEROS`].
    pub fn next(mut self) -> Key {
        self.fourth = self.fourth.wrapping_add(1);
        if self.fourth == 0 {
            self.third = self.third.wrapping_add(1);
            if self.third == 0 {
                self.second = self.second.wrapping_add(1);
                if self.second == 0 {
                    self.kind = self.kind.wrapping_add(1);
                    if self.kind == 0 {
                        self.first = self.first.wrapping_add(1);
                        if self.first == 0 {
                            self.zone = self.zone.wrapping_add(1);
                        }
                    }
                }
            }
        }
        self
    }

    /// The next lesser key; the least wraps to [`Key::ONES`].
    pub fn prev(mut self) -> Key {
        self.fourth = self.fourth.wrapping_sub(1);
        if self.fourth == u8::MAX {
            self.third = self.third.wrapping_sub(1);
            if self.third == u64::MAX {
                self.second = self.second.wrapping_sub(1);
                if self.second == u64::MAX {
                    self.kind = self.kind.wrapping_sub(1);
                    if self.kind == u8::MAX {
                        self.first = self.first.wrapping_sub(1);
                        if self.first == u64::MAX {
                            self.zone = self.zone.wrapping_sub(1);
                        }
                    }
                }
            }
        }
        self
    }

    /// The 32 stored bytes, padding zero.
    pub fn to_stored(self) -> StoredKey {
        StoredKey {
            first: self.first.into(),
            second: self.second.into(),
            third: self.third.into(),
            fourth: self.fourth,
            zone: self.zone,
            kind: self.kind,
            pad: [0; 5],
        }
    }
}

impl StoredKey {
    /// The native form; padding is dropped.
    pub fn to_key(&self) -> Key {
        Key {
            zone: self.zone,
            first: self.first.get(),
            kind: self.kind,
            second: self.second.get(),
            third: self.third.get(),
            fourth: self.fourth,
        }
    }
}

impl From<Key> for StoredKey {
    fn from(k: Key) -> StoredKey {
        k.to_stored()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}.{}.{}", self.zone, self.first, self.kind, self.second, self.third, self.fourth)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An inclusive range of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Key,
    /// Last key of the range.
    pub end: Key,
}

impl KeyRange {
    /// All keys.
    pub const ALL: KeyRange = KeyRange { start: Key::ZEROS, end: Key::ONES };

    /// The range from `start` to `end`, both included.
    pub const fn new(start: Key, end: Key) -> KeyRange {
        KeyRange { start, end }
    }

    /// Is `key` inside?
    pub fn contains(&self, key: &Key) -> bool {
        self.start <= *key && *key <= self.end
    }

    /// Do the two ranges share a key?
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// The shared part, if there is one.
    pub fn intersect(&self, other: &KeyRange) -> Option<KeyRange> {
        let r = KeyRange { start: self.start.max(other.start), end: self.end.min(other.end) };
        (r.start <= r.end).then_some(r)
    }
}
