//! Zones of the data device: which mount allocates where (`spec/02 §7.3`).
//!
//! With the volume option set, each mount's log trees record notes in a bitmap the zones that its data allocator touches,
//! so that the server can hand out space which no other mount is writing near. The bits are hints: they steer, nothing
//! depends on them. There are 1024 bits; blocks behind the last one belong to no zone (the original writes past its array,
//! `spec/00 §6` row 13).

use std::collections::BTreeMap;

use zerocopy::little_endian::U64;

/// Number of zones that can be recorded.
pub(crate) const MAX_ZONES: u64 = 1024;

/// A set of zones of one size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ZoneSet {
    size: u64,
    bits: [u64; 16],
}

impl ZoneSet {
    /// No zones; `size` is in data blocks and 0 means that nothing can be added.
    pub(crate) fn new(size: u64) -> ZoneSet {
        ZoneSet { size, bits: [0; 16] }
    }

    /// As recorded in a log trees item.
    pub(crate) fn from_record(size: u64, bits: &[U64; 16]) -> ZoneSet {
        ZoneSet { size, bits: bits.map(|b| b.get()) }
    }

    /// As recorded in a log trees item.
    pub(crate) fn to_record(&self) -> [U64; 16] {
        self.bits.map(U64::new)
    }

    /// Blocks in a zone.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Is this zone in the set?
    pub(crate) fn contains(&self, zone: u64) -> bool {
        zone < MAX_ZONES && self.bits[(zone / 64) as usize] & (1 << (zone % 64)) != 0
    }

    /// Is it empty?
    pub(crate) fn is_empty(&self) -> bool {
        self.size == 0 || self.bits.iter().all(|b| *b == 0)
    }

    /// Adds one zone; numbers without a bit are ignored.
    pub(crate) fn insert(&mut self, zone: u64) {
        if zone < MAX_ZONES {
            self.bits[(zone / 64) as usize] |= 1 << (zone % 64);
        }
    }

    /// The zones in the set, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..if self.size == 0 { 0 } else { MAX_ZONES }).filter(|z| self.contains(*z))
    }

    /// The first zone of the set at or after `zone`.
    pub(crate) fn next(&self, zone: u64) -> Option<u64> {
        (zone..if self.size == 0 { 0 } else { MAX_ZONES }).find(|z| self.contains(*z))
    }

    /// Adds every zone that the blocks `start .. start + len` touch.
    pub(crate) fn insert_blocks(&mut self, start: u64, len: u64) {
        if self.size == 0 || len == 0 {
            return;
        }
        let last = (start.saturating_add(len - 1) / self.size).min(MAX_ZONES - 1);
        for zone in start / self.size..=last {
            self.insert(zone);
        }
    }

    /// The same blocks in zones of another size.
    pub(crate) fn translate(&self, size: u64) -> ZoneSet {
        let mut out = ZoneSet::new(size);
        for zone in self.iter() {
            out.insert_blocks(zone.saturating_mul(self.size), self.size);
        }
        out
    }

    fn zip(&self, other: &ZoneSet, f: impl Fn(u64, u64) -> u64) -> ZoneSet {
        debug_assert_eq!(self.size, other.size);
        let mut out = self.clone();
        for (a, b) in out.bits.iter_mut().zip(other.bits) {
            *a = f(*a, b);
        }
        out
    }

    /// Zones in either.
    pub(crate) fn union(&self, other: &ZoneSet) -> ZoneSet {
        self.zip(other, |a, b| a | b)
    }

    /// Zones of this set that are not in the other.
    pub(crate) fn minus(&self, other: &ZoneSet) -> ZoneSet {
        self.zip(other, |a, b| a & !b)
    }

    /// The lowest zone of the set that the blocks touch, with its first block.
    pub(crate) fn first_touched(&self, start: u64, len: u64) -> Option<(u64, u64)> {
        if self.size == 0 || len == 0 {
            return None;
        }
        let zone = self.next(start / self.size)?;
        let first = zone * self.size;
        (first <= start.saturating_add(len - 1)).then_some((zone, first))
    }
}

/// Where a mount should get its space from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ZoneChoice {
    /// Zones that only this mount occupies.
    pub(crate) exclusive: ZoneSet,
    /// Zones that no mount occupies.
    pub(crate) vacant: ZoneSet,
}

/// What every mount occupies, kept by the server so that it need not read all log trees items for each request.
#[derive(Clone, Default, Debug)]
pub(crate) struct ZoneOwners {
    owners: BTreeMap<(u64, u64), ZoneSet>,
}

impl ZoneOwners {
    /// Notes what the log trees item (rid, nr) records; a zone size of 0 forgets it.
    pub(crate) fn record(&mut self, rid: u64, nr: u64, zones: ZoneSet) {
        if zones.is_empty() {
            self.owners.remove(&(rid, nr));
        } else {
            self.owners.insert((rid, nr), zones);
        }
    }

    /// Exclusive and vacant zones for `rid` with zones of `size` blocks on a device of `total_data` blocks.
    pub(crate) fn choose(&self, rid: u64, size: u64, total_data: u64) -> ZoneChoice {
        let mut own = ZoneSet::new(size);
        let mut others = ZoneSet::new(size);
        for ((owner, _), zones) in &self.owners {
            let zones = zones.translate(size);
            if *owner == rid {
                own = own.union(&zones);
            } else {
                others = others.union(&zones);
            }
        }
        let mut all = ZoneSet::new(size);
        all.insert_blocks(0, total_data);
        ZoneChoice { exclusive: own.minus(&others), vacant: all.minus(&own.union(&others)) }
    }
}
