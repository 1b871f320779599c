//! Stock and zones.

use super::*;
use crate::alloc::stock::{DATA_LARGE, DATA_LOW_FLAG, FULL_SIZE_META};
use crate::alloc::zones::{MAX_ZONES, ZoneOwners, ZoneSet};
use crate::format::keys;

#[test]
fn numbers_of_a_full_size_volume_are_the_originals() {
    let v = vector("alloc-constants");
    let is = |name: &str, value: u64| assert_eq!(num(&v[name]), value, "{name}");
    let stock = Stock::for_volume(FULL_SIZE_META, 8 << 20);
    is("SCOUTFS_ALLOC_LIST_MAX_BLOCKS", list::LIST_CAPACITY as u64);
    is("SCOUTFS_SERVER_META_FILL_TARGET", stock.meta_target.into());
    is("SCOUTFS_SERVER_META_FILL_LO", stock.meta_low.into());
    is("SCOUTFS_SERVER_MERGE_FILL_TARGET", stock.merge_target.into());
    is("SCOUTFS_SERVER_DATA_FILL_TARGET", stock.data_target);
    is("SCOUTFS_SERVER_DATA_FILL_LO", stock.data_low);
    is("SCOUTFS_SERVER_DATA_FILL_LO", DATA_LOW_FLAG);
    is("SCOUTFS_ALLOC_DATA_REFILL_THRESH", stock.data_refill);
    is("SCOUTFS_ALLOC_DATA_LG_THRESH", DATA_LARGE);
    // The original makes no volume below 64 GiB.
    let reserve = Stock::for_volume(1 << 20, 8 << 20);
    for (clients, want) in nums(&v["reserved_meta_blocks by nr_clients"]).into_iter().enumerate() {
        assert_eq!(reserve.reserved(clients as u64), want, "{clients} clients");
    }
    assert_eq!((stock.holder_budget, stock.move_budget, stock.move_slack), (500, 250, 50));
    for row in rows(&v["orders"]) {
        assert_eq!(keys::size_order(row[0]), row[1]);
    }
}

#[test]
fn small_volumes_are_usable() {
    for total in [1024, 2048, 4096, 16384, 65536, FULL_SIZE_META - 1] {
        let s = Stock::for_volume(total, total * 16);
        // What one server and one client hold, and what is kept back, leaves more than half to the user.
        let held = 3 * u64::from(s.meta_target);
        assert!((held + s.reserved(1)) * 100 <= total * 52, "{total}: {held} held, {} reserved", s.reserved(1));
        // A client can open its pair and do something; a move of an extent fits.
        assert!(s.meta_low >= 48 && s.merge_target >= 48, "{s:?}");
        assert!(u64::from(s.move_slack) + 2 * 22 < u64::from(s.meta_low) + 16, "{s:?}");
    }
}

/// The reserve of each mount was that of a large volume: with three mounts on 5 GiB nothing was left to use.
#[test]
fn volumes_of_any_size_are_usable_by_several_mounts() {
    for total in [1024, 2048, 4096, 16384, 65536, FULL_SIZE_META - 1, FULL_SIZE_META, 1 << 18, 1 << 20] {
        for mounts in 1..=5 {
            let s = Stock::shared(total, total * 16, mounts);
            let held = (2 + mounts) * u64::from(s.meta_target);
            let gone = held + s.reserved(mounts);
            // With the clamp of a tiny volume a third is left, else more.
            assert!(gone * 100 <= total * 70, "{total} blocks, {mounts} mounts: {gone} not usable");
            assert!(s.data_low > Stock::for_volume(total, total * 16).data_refill, "{s:?}");
        }
    }
}

fn set(size: u64, zones: &[u64]) -> ZoneSet {
    let mut s = ZoneSet::new(size);
    zones.iter().for_each(|z| s.insert(*z));
    s
}

/// A zone number behind the bitmap is nobody's; the original writes past the array.
#[test]
fn defect_13_zones_are_clamped() {
    let mut s = ZoneSet::new(10);
    s.insert_blocks(10 * MAX_ZONES - 1, 100);
    assert_eq!(s.iter().collect::<Vec<_>>(), [MAX_ZONES - 1]);
    s.insert_blocks(10 * MAX_ZONES + 5, 1);
    s.insert_blocks(u64::MAX - 1, 1);
    s.insert(u64::MAX);
    assert_eq!(s.iter().count(), 1);
    // A record with zone size 0 has no zones, whatever its bits say.
    let none = ZoneSet::from_record(0, &[u64::MAX.into(); 16]);
    assert!(none.is_empty() && none.iter().next().is_none() && none.next(0).is_none());
    assert!(none.translate(10).is_empty());
}

/// Exclusive zones are a set difference; the original depends on the order of the records.
#[test]
fn exclusive_zones_do_not_depend_on_the_order_of_mounts() {
    for (me, other) in [(1, 2), (2, 1)] {
        let mut owners = ZoneOwners::default();
        owners.record(me, 1, set(1000, &[0, 1, 2]));
        owners.record(other, 1, set(500, &[2, 3, 8]));
        let choice = owners.choose(me, 1000, 6500);
        assert_eq!(choice.exclusive.iter().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(choice.vacant.iter().collect::<Vec<_>>(), [3, 5, 6]);
    }
}

#[test]
fn zones_survive_their_record() {
    let s = set(1 << 20, &[0, 63, 64, 1023]);
    assert_eq!(ZoneSet::from_record(1 << 20, &s.to_record()), s);
    assert_eq!(s.first_touched((63 << 20) - 5, 10), Some((63, 63 << 20)));
    assert_eq!(s.first_touched(2 << 20, 10), None);
    assert_eq!(s.size(), 1 << 20);
}
