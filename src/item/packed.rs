//! Keys packed for comparison, and sets of key ranges.
//!
//! Every cached lookup compares a dozen keys, so the six fields are packed into two machine integers whose order is the
//! order of the volume (`spec/03 §2.1`).

use crate::format::{Key, KeyRange};

/// A [`Key`] as one big integer of 216 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Packed {
    /// zone (8), first (64), kind (8), upper 48 bits of second.
    hi: u128,
    /// lower 16 bits of second, third (64), fourth (8).
    lo: u128,
}

impl Packed {
    #[inline]
    pub(super) fn new(k: &Key) -> Packed {
        Packed {
            hi: (k.zone as u128) << 120 | (k.first as u128) << 56 | (k.kind as u128) << 48 | (k.second >> 16) as u128,
            lo: ((k.second & 0xffff) as u128) << 72 | (k.third as u128) << 8 | k.fourth as u128,
        }
    }

    #[inline]
    pub(super) fn key(self) -> Key {
        Key {
            zone: (self.hi >> 120) as u8,
            first: (self.hi >> 56) as u64,
            kind: (self.hi >> 48) as u8,
            second: (((self.hi & 0xffff_ffff_ffff) as u64) << 16) | (self.lo >> 72) as u64 & 0xffff,
            third: (self.lo >> 8) as u64,
            fourth: self.lo as u8,
        }
    }

    /// The next greater key; wraps like [`Key::next`].
    pub(super) fn next(self) -> Packed {
        Packed::new(&self.key().next())
    }

    /// The next lesser key; wraps like [`Key::prev`].
    pub(super) fn prev(self) -> Packed {
        Packed::new(&self.key().prev())
    }
}

/// Inclusive ranges, sorted, disjoint and never touching each other.
#[derive(Default, Debug)]
pub(super) struct RangeSet(Vec<(Packed, Packed)>);

impl RangeSet {
    /// Index of the first range that ends at or behind `key`.
    #[inline]
    fn at(&self, key: &Packed) -> usize {
        self.0.partition_point(|(_, end)| end < key)
    }

    /// The range that holds `key`.
    #[inline]
    pub(super) fn find(&self, key: &Packed) -> Option<(Packed, Packed)> {
        // Nearly always there is one range: the whole lock.
        let i = if self.0.len() <= 1 { 0 } else { self.at(key) };
        self.0.get(i).filter(|(start, end)| start <= key && key <= end).copied()
    }

    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a range, joining it with all that it overlaps or touches.
    pub(super) fn insert(&mut self, r: &KeyRange) {
        let (mut start, mut end) = (Packed::new(&r.start), Packed::new(&r.end));
        // A range that ends right before `start` touches; the least key has nothing before it.
        let lo = if r.start == Key::ZEROS { 0 } else { self.at(&start.prev()) };
        let mut hi = lo;
        while let Some((s, e)) = self.0.get(hi) {
            if r.end != Key::ONES && *s > end.next() {
                break;
            }
            start = start.min(*s);
            end = end.max(*e);
            hi += 1;
        }
        self.0.splice(lo..hi, [(start, end)]);
    }

    /// Removes a range, trimming or splitting what overlaps it.
    pub(super) fn remove(&mut self, start: Packed, end: Packed) {
        let lo = self.at(&start);
        let mut hi = lo;
        let mut rest = Vec::new();
        while let Some(&(s, e)) = self.0.get(hi) {
            if s > end {
                break;
            }
            if s < start {
                rest.push((s, start.prev()));
            }
            if e > end {
                rest.push((end.next(), e));
            }
            hi += 1;
        }
        self.0.splice(lo..hi, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u64) -> Key {
        Key::new(16, 0, 4, n, 0, 0)
    }

    fn arb_key() -> impl Strategy<Value = Key> {
        (any::<u8>(), any::<u64>(), any::<u8>(), any::<u64>(), any::<u64>(), any::<u8>())
            .prop_map(|(z, a, t, b, c, d)| Key::new(z, a, t, b, c, d))
    }

    proptest! {
        #[test]
        fn packing_keeps_order_and_content(a in arb_key(), b in arb_key()) {
            prop_assert_eq!(Packed::new(&a).key(), a);
            prop_assert_eq!(Packed::new(&a).cmp(&Packed::new(&b)), a.cmp(&b));
            prop_assert_eq!(Packed::new(&a).next().key(), a.next());
        }

        #[test]
        fn range_set_is_a_set_of_keys(ops in proptest::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 1..40)) {
            let mut set = RangeSet::default();
            let mut model = [false; 64];
            for (add, start, len) in ops {
                let r = KeyRange::new(Key::new(0, 0, 0, 0, start, 0), Key::new(0, 0, 0, 0, start + len, u8::MAX));
                if add { set.insert(&r) } else { set.remove(Packed::new(&r.start), Packed::new(&r.end)) }
                (start..=start + len).for_each(|n| model[n as usize] = add);
                for (n, want) in model.iter().enumerate() {
                    let k = Packed::new(&Key::new(0, 0, 0, 0, n as u64, 7));
                    prop_assert_eq!(set.find(&k).is_some(), *want, "key {}", n);
                }
                for w in set.0.windows(2) {
                    prop_assert!(w[0].1.next() < w[1].0, "ranges are disjoint and do not touch");
                }
            }
        }
    }

    #[test]
    fn ranges_at_the_ends_of_the_key_space() {
        let mut set = RangeSet::default();
        set.insert(&KeyRange::new(key(5), Key::ONES));
        set.insert(&KeyRange::new(Key::ZEROS, key(2)));
        assert_eq!(set.len(), 2);
        set.insert(&KeyRange::ALL);
        assert_eq!(set.len(), 1);
        set.remove(Packed::new(&Key::ZEROS), Packed::new(&Key::ONES));
        assert_eq!(set.len(), 0);
    }
}
