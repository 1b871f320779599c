//! Trees of free extents and the data allocator.

use super::*;
use crate::alloc::extent::Extent;
use crate::alloc::extents::{MoveEnd, MoveLimits};
use crate::alloc::zones::{ZoneChoice, ZoneSet};
use crate::error::Errno;
use crate::format::{DataBlock, consts};

fn root_of(w: &mut World, list: &[Vec<u64>]) -> AllocRoot {
    let mut root = empty_root();
    for e in list {
        extents::insert(&mut w.cow(), &mut root, WIDE, e[0], e[1]).unwrap();
    }
    root
}

#[test]
fn free_extents_match_the_vectors() {
    let mut w = World::ready(10_000);
    let mut root = empty_root();
    for step in vector("alloc-extents")["steps"].as_array().unwrap() {
        let (start, len) = (num(&step["start"]), num(&step["len"]));
        let want = nums(&step["ext"]);
        let result = match step["op"].as_str().unwrap() {
            "I" => extents::insert(&mut w.cow(), &mut root, WIDE, start, len),
            "R" => extents::remove(&mut w.cow(), &mut root, WIDE, start, len),
            _ => match extents::alloc(&mut w.cow(), &mut root, WIDE, len) {
                Ok(e) => {
                    assert_eq!([e.start, e.len], want[..], "{step}");
                    Ok(())
                }
                // The original's errno for an empty index at this layer.
                Err(e) if e.is(Errno::ENOSPC) => crate::error::fail(Errno::ENOENT),
                Err(e) => Err(e),
            },
        };
        assert_eq!(errno(&result), step["errno"].as_i64().unwrap(), "{step}");
        assert_eq!(root.total_len.get(), num(&step["root"]["total_len"]), "{step}");
        // The original does not merge what it puts back after taking from the front; positions agree all the same.
        let merged = |list: Vec<Vec<u64>>| {
            let mut m = crate::alloc::extent::ExtentMap::default();
            list.iter().for_each(|e| m.add(Extent::free(e[0], e[1])).unwrap());
            m
        };
        assert_eq!(merged(w.extents(&root, WIDE)), merged(rows(&step["root"]["extents"])), "{step}");
    }
}

#[test]
fn zoned_moves_match_the_vectors() {
    for row in vector("alloc-zones")["rows"].as_array().unwrap() {
        let mut w = World::ready(10_000);
        let mut src =
            root_of(&mut w, &[vec![64, 900], vec![1500, 3000], vec![5200, 40], vec![6100, 700], vec![9000, 9]]);
        let mut dst = empty_root();
        let zones = |name: &str| {
            let mut set = ZoneSet::new(1000);
            nums(&row[name]).into_iter().for_each(|z| set.insert(z));
            set
        };
        let zones = ZoneChoice { exclusive: zones("exclusive"), vacant: zones("vacant") };
        let limits = MoveLimits { total: num(&row["total"]), budget: 0, slack: 50, zones: Some(&zones) };
        let (moved, end) = extents::move_extents(&mut w.cow(), &mut dst, &mut src, WIDE, &limits).unwrap();
        assert_eq!(end, if row["errno"].as_i64() == Some(0) { MoveEnd::Done } else { MoveEnd::Dry }, "{row}");
        assert_eq!(moved, num(&row["dst"]["total_len"]));
        assert_eq!(w.extents(&src, WIDE), rows(&row["src"]["extents"]), "{row}");
        assert_eq!(w.extents(&dst, WIDE), rows(&row["dst"]["extents"]), "{row}");
    }
}

#[test]
fn moves_stop_at_their_budget_and_always_get_on() {
    let mut w = World::ready(10_000);
    let list: Vec<Vec<u64>> = (0..3000).map(|i| vec![100 + 2 * i, 1]).collect();
    let mut src = root_of(&mut w, &list);
    w.commit();
    let mut dst = empty_root();
    let mut calls = 0;
    while src.total_len.get() > 0 {
        // A budget that not even one extent fits in must not stop the move for ever.
        let limits = MoveLimits { total: u64::MAX, budget: 1, slack: 50, zones: None };
        let (moved, end) = extents::move_extents(&mut w.cow(), &mut dst, &mut src, WIDE, &limits).unwrap();
        assert!(moved >= 1 && (end == MoveEnd::Budget || src.total_len.get() == 0));
        calls += 1;
        if calls == 5 {
            let limits = MoveLimits { total: u64::MAX, budget: 250, slack: 50, zones: None };
            extents::move_extents(&mut w.cow(), &mut dst, &mut src, WIDE, &limits).unwrap();
        }
        if calls == 10 {
            let limits = MoveLimits { total: u64::MAX, budget: 0, slack: 50, zones: None };
            let (_, end) = extents::move_extents(&mut w.cow(), &mut dst, &mut src, WIDE, &limits).unwrap();
            assert_eq!(end, MoveEnd::Dry);
        }
    }
    assert_eq!(w.extents(&dst, WIDE), list);
}

/// A block that is free already is left out and reported; refusing it would stop every later commit.
#[test]
fn defect_11_double_free_is_left_out() {
    let mut w = World::ready(10_000);
    let mut root = root_of(&mut w, &[vec![100, 10], vec![120, 5]]);
    let left_out = extents::insert_new(&mut w.cow(), &mut root, WIDE, 95, 40).unwrap();
    assert_eq!(left_out, 15);
    assert_eq!(w.extents(&root, WIDE), [[95, 40]]);
    assert!(extents::insert(&mut w.cow(), &mut root, WIDE, 134, 2).is_err_and(|e| e.is(Errno::EINVAL)));
}

#[test]
fn blocks_outside_the_device_are_refused() {
    let mut w = World::ready(10_000);
    let mut root = empty_root();
    for (start, len) in [(0, 5), (63, 5), (995, 6), (64, 0), (u64::MAX, 2)] {
        let r = extents::insert(&mut w.cow(), &mut root, Bounds::data(1000), start, len);
        assert!(r.is_err_and(|e| e.is(Errno::EINVAL)), "{start}+{len}");
    }
    // An item that does not fit is corruption for whoever reads it.
    extents::insert(&mut w.cow(), &mut root, WIDE, 990, 20).unwrap();
    let r = extents::find(&w.reader(), &root, Bounds::data(1000), 64);
    assert!(matches!(r, Err(crate::Error::Corrupt { .. })));
}

fn data_alloc(w: &World, avail: AllocRoot) -> DataAlloc {
    DataAlloc::new(w.store.clone(), WIDE, avail, empty_root())
}

/// Writes the trees, so that a data allocator can read them.
fn stable_root(w: &mut World, list: &[Vec<u64>]) -> AllocRoot {
    let root = root_of(w, list);
    w.commit();
    root
}

#[test]
fn data_allocations_match_the_vectors() {
    let v = vector("alloc-data");
    let mut w = World::ready(10_000);
    let avail = stable_root(&mut w, &rows(&v["initial"]["extents"]));
    let mut data = data_alloc(&w, avail);
    for step in v["steps"].as_array().unwrap() {
        if step.get("return_cached").is_some() {
            let (avail, _) = data.finish(&mut w.cow()).unwrap();
            assert_eq!(w.extents(&avail, WIDE), rows(&step["root"]["extents"]));
            w.commit();
            data = data_alloc(&w, avail);
            continue;
        }
        let low = num(&step["low"]) as u32;
        data = if data.total() == 0 && low != 0 {
            let mut root = empty_root();
            root.flags = consts::ALLOC_FLAG_LOW.into();
            data_alloc(&w, root)
        } else {
            data
        };
        let want = step["result"].as_array().unwrap();
        let result = data.alloc(num(&step["count"]));
        assert_eq!(errno(&result), want[0].as_i64().unwrap(), "{step}");
        if let Ok((DataBlock(start), len)) = result {
            assert_eq!([start, len], [num(&want[1]), num(&want[2])], "{step}");
        }
        assert_eq!(data.total(), num(&step["total_len"]), "{step}");
    }
}

#[test]
fn low_means_enospc_only_if_a_commit_cannot_help() {
    let mut w = World::ready(10_000);
    let mut avail = stable_root(&mut w, &[vec![100, 10]]);
    avail.flags = consts::ALLOC_FLAG_LOW.into();
    let mut data = data_alloc(&w, avail);
    assert!(data.reserve(11).is_err_and(|e| e.is(Errno::ENOSPC)));
    data.reserve(10).unwrap();
    assert!(matches!(data.alloc(1), Err(crate::Error::NeedCommit)));
    assert_eq!(data.alloc_reserved(4).unwrap(), (DataBlock(100), 4));
    data.unreserve(6);
    assert_eq!(data.total(), 6);
    // Some was used: the server may have more after a commit.
    assert!(matches!(data.reserve(7), Err(crate::Error::NeedCommit)));
    let mut empty = empty_root();
    empty.flags = consts::ALLOC_FLAG_LOW.into();
    let mut data = data_alloc(&w, empty);
    assert!(data.alloc(1).is_err_and(|e| e.is(Errno::ENOSPC)));
    data.free(DataBlock(50), 3).unwrap();
    assert!(matches!(data.alloc(1), Err(crate::Error::NeedCommit)));
    assert!(matches!(data.free(DataBlock(52), 1), Err(crate::Error::Corrupt { .. })));
}

mod model {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Random allocations and frees of several transactions against a set of blocks.
        #[test]
        fn data_allocator_keeps_the_set(ops in prop::collection::vec((0u8..4, 1u64..3000), 1..80)) {
            let mut w = World::ready(10_000);
            let avail = stable_root(&mut w, &[vec![100, 4000], vec![5000, 2500], vec![8000, 10], vec![9000, 1]]);
            let mut data = data_alloc(&w, avail);
            let mut free: BTreeSet<u64> = (100..4100).chain(5000..7500).chain(8000..8010).chain([9000]).collect();
            let mut used: Vec<Extent> = Vec::new();
            let mut freed = BTreeSet::new();
            for (op, n) in ops {
                match op {
                    0 if n % 2 == 0 => {
                        // Promised space is there, whatever happens to the rest.
                        if data.reserve(n).is_ok() {
                            let _ = data.alloc(n / 2).map(|(DataBlock(start), len)| {
                                (start..start + len).for_each(|b| assert!(free.remove(&b)));
                                used.push(Extent::free(start, len));
                            });
                            let mut left = n;
                            while left > n / 3 {
                                let (DataBlock(start), len) = data.alloc_reserved(left).unwrap();
                                (start..start + len).for_each(|b| assert!(free.remove(&b)));
                                used.push(Extent::free(start, len));
                                left -= len;
                            }
                            data.unreserve(left);
                        } else {
                            prop_assert!(free.len() < n as usize);
                        }
                    }
                    0 | 1 => match data.alloc(n) {
                        Ok((DataBlock(start), len)) => {
                            prop_assert!(len >= 1 && len <= n);
                            for b in start..start + len {
                                prop_assert!(free.remove(&b), "block {} was not free", b);
                            }
                            used.push(Extent::free(start, len));
                        }
                        Err(_) => prop_assert!(free.is_empty()),
                    },
                    2 => if let Some(e) = used.pop() {
                        if n % 3 == 0 {
                            data.give_back(DataBlock(e.start), e.len);
                            free.extend(e.start..e.end());
                        } else {
                            data.free(DataBlock(e.start), e.len).unwrap();
                            freed.extend(e.start..e.end());
                        }
                    },
                    _ => {
                        let cost = data.finish_cost();
                        let before = w.alloc.snapshot();
                        let (avail, gone) = data.finish(&mut w.cow()).unwrap();
                        prop_assert!(!w.alloc.low_since(&before, cost + 4, 0), "cost {cost}");
                        let blocks = |list: Vec<Vec<u64>>| list.iter().flat_map(|e| e[0]..e[0] + e[1]).collect::<BTreeSet<_>>();
                        prop_assert_eq!(blocks(w.extents(&avail, WIDE)), free.clone());
                        prop_assert_eq!(blocks(w.extents(&gone, WIDE)), freed.clone());
                        freed.clear();
                        w.commit();
                        data = data_alloc(&w, avail);
                    }
                }
                prop_assert_eq!(data.total(), free.len() as u64);
            }
        }

        /// The tree against a set of blocks.
        #[test]
        fn free_extent_tree_keeps_the_set(ops in prop::collection::vec((0u8..3, 64u64..400, 1u64..30), 1..120)) {
            let mut w = World::ready(10_000);
            let mut root = empty_root();
            let mut set: BTreeSet<u64> = BTreeSet::new();
            for (op, start, len) in ops {
                let range = start..start + len;
                match op {
                    0 => {
                        let ok = extents::insert(&mut w.cow(), &mut root, WIDE, start, len).is_ok();
                        prop_assert_eq!(ok, range.clone().all(|b| !set.contains(&b)));
                        if ok { set.extend(range); }
                    }
                    1 => {
                        let ok = extents::remove(&mut w.cow(), &mut root, WIDE, start, len).is_ok();
                        prop_assert_eq!(ok, range.clone().all(|b| set.contains(&b)));
                        if ok { range.for_each(|b| { set.remove(&b); }); }
                    }
                    _ => {
                        let out = extents::insert_new(&mut w.cow(), &mut root, WIDE, start, len).unwrap();
                        prop_assert_eq!(out as usize, range.clone().filter(|b| set.contains(b)).count());
                        set.extend(range);
                    }
                }
                let blocks: BTreeSet<u64> = w.extents(&root, WIDE).iter().flat_map(|e| e[0]..e[0] + e[1]).collect();
                prop_assert_eq!(&blocks, &set);
            }
        }
    }
}
