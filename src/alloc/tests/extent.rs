//! Extent arithmetic.

use super::*;
use crate::alloc::extent::{Extent, ExtentMap, apply, mergeable, plan_insert, plan_remove, plan_set};
use crate::error::Errno;

fn ext(row: &[u64]) -> Extent {
    Extent::new(row[0], row[1], row[2], row[3] as u8)
}

fn map_of(rows: &[Vec<u64>]) -> ExtentMap {
    let mut map = ExtentMap::default();
    rows.iter().for_each(|r| map.put(ext(r)));
    map
}

fn listed(map: &ExtentMap) -> Vec<Vec<u64>> {
    map.iter().map(|e| vec![e.start, e.len, e.map, u64::from(e.flags)]).collect()
}

fn run(map: &mut ExtentMap, op: &str, a: &[u64]) -> Result<()> {
    let steps = match op {
        "set" => plan_set(map, ext(a))?,
        "insert" => plan_insert(map, ext(a))?,
        "remove" => plan_remove(map, a[0], a[1])?,
        op => panic!("unknown operation {op}"),
    };
    apply(map, &steps)
}

#[test]
fn file_extent_operations_match_the_vectors() {
    let v = vector("data-extent-ops");
    for case in v["cases"].as_array().unwrap() {
        let mut map = map_of(&rows(&case["before"]));
        let result = run(&mut map, case["op"].as_str().unwrap(), &nums(&case["args"]));
        let name = match &result {
            Ok(()) => "ok",
            Err(e) => e.errno().name(),
        };
        assert_eq!(name, case["result"].as_str().unwrap(), "{case}");
        assert_eq!(listed(&map), rows(&case["after"]), "{case}");
    }
}

#[test]
fn set_matches_the_vectors() {
    let mut map = ExtentMap::default();
    for step in vector("alloc-ext-set")["steps"].as_array().unwrap() {
        let result = run(&mut map, "set", &nums(&step["set"]));
        assert_eq!(errno(&result), step["errno"].as_i64().unwrap(), "{step}");
        assert_eq!(listed(&map), rows(&step["extents"]), "{step}");
    }
}

/// The original takes an extent whose block number equals the length of the erased range in front of it for a continuation
/// of it, and lets it vanish.
#[test]
fn defect_65_erase_keeps_follower() {
    let mut map = map_of(&[vec![0, 100, 5000, 0], vec![100, 50, 100, 0]]);
    run(&mut map, "set", &[0, 100, 0, 0]).unwrap();
    assert_eq!(listed(&map), [[100, 50, 100, 0]]);
    assert!(!mergeable(&Extent::new(0, 100, 0, 0), &Extent::new(100, 50, 100, 0)));
    assert!(!mergeable(&Extent::new(0, 100, 5000, 0), &Extent::new(100, 50, 0, 0)));
}

#[test]
fn impossible_ranges_are_refused() {
    let mut map = ExtentMap::default();
    for (start, len) in [(0, 0), (u64::MAX, 1), (5, u64::MAX)] {
        assert!(plan_insert(&mut map, Extent::free(start, len)).is_err_and(|e| e.is(Errno::EINVAL)));
        assert!(plan_set(&mut map, Extent::new(start, len, 1, 0)).is_err_and(|e| e.is(Errno::EINVAL)));
        assert!(plan_remove(&mut map, start, len).is_err_and(|e| e.is(Errno::EINVAL)));
    }
}

/// A store whose n-th change fails.
struct Failing {
    map: ExtentMap,
    left: usize,
}

impl crate::alloc::extent::ExtentRead for Failing {
    fn next(&mut self, block: u64) -> Result<Option<Extent>> {
        self.map.next(block)
    }
}

impl crate::alloc::extent::ExtentStore for Failing {
    fn insert(&mut self, e: &Extent) -> Result<()> {
        self.count()?;
        self.map.insert(e)
    }
    fn remove(&mut self, e: &Extent) -> Result<()> {
        self.count()?;
        self.map.remove(e)
    }
}

impl Failing {
    fn count(&mut self) -> Result<()> {
        if self.left == 0 {
            self.left = usize::MAX;
            return crate::error::fail(Errno::ENOSPC);
        }
        self.left -= 1;
        Ok(())
    }
}

/// A failing change is undone in reverse order; the original crashes the host if that fails, here it is an error.
#[test]
fn defect_12_failed_change_is_undone() {
    for n in 0..4 {
        let before = map_of(&[vec![0, 10, 0, 0], vec![20, 10, 0, 0]]);
        let mut store = Failing { map: before.clone(), left: n };
        let steps = plan_insert(&mut store, Extent::free(10, 10)).unwrap();
        assert_eq!(steps.len(), 3);
        let result = apply(&mut store, &steps);
        assert_eq!(result.is_err(), n < 3);
        if n < 3 {
            assert_eq!(store.map, before);
        } else {
            assert_eq!(listed(&store.map), [[0, 30, 0, 0]]);
        }
    }
}

/// One byte string drives random operations that are compared with an array of blocks.
mod model {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: usize = 64;

    /// What each block is: (map, flags); a hole is (0, 0).
    type Array = [(u64, u8); BLOCKS];

    fn array_of(map: &ExtentMap) -> Array {
        let mut out = [(0, 0); BLOCKS];
        for e in map.iter() {
            for i in 0..e.len {
                let slot = &mut out[(e.start + i) as usize];
                assert_eq!(*slot, (0, 0), "extents overlap");
                *slot = (if e.map == 0 { 0 } else { e.map + i }, e.flags);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn set_changes_exactly_its_range(ops in prop::collection::vec((0u64..64, 1u64..20, 0u8..4), 1..60)) {
            let mut map = ExtentMap::default();
            for (start, len, kind) in ops {
                let len = len.min(BLOCKS as u64 - start);
                let new = match kind {
                    0 => Extent::new(start, len, 0, 0),
                    1 => Extent::new(start, len, 1000 + start, 0),
                    2 => Extent::new(start, len, 1000 + start, 2),
                    _ => Extent::new(start, len, 0, 1),
                };
                let before = array_of(&map);
                let mut want = before;
                for i in 0..len {
                    want[(start + i) as usize] = (if new.map == 0 { 0 } else { new.map + i }, new.flags);
                }
                match plan_set(&mut map, new) {
                    Ok(steps) => {
                        apply(&mut map, &steps).unwrap();
                        prop_assert_eq!(array_of(&map), want);
                    }
                    Err(_) => prop_assert_eq!(array_of(&map), before),
                }
                // Neighbours that may merge have merged, but for the remainders of a split beside an equal piece.
                let all: Vec<Extent> = map.iter().copied().collect();
                prop_assert!(all.iter().all(|e| e.len > 0 && (e.map, e.flags) != (0, 0)));
            }
        }

        #[test]
        fn erase_takes_out_any_range(fill in prop::collection::vec((0u64..64, 1u64..20), 1..20), cut in (0u64..64, 0u64..64)) {
            let mut map = ExtentMap::default();
            for (start, len) in fill {
                let _ = map.add(Extent::new(start, len.min(BLOCKS as u64 - start), 100 + start, 0));
            }
            let (start, last) = (cut.0.min(cut.1), cut.0.max(cut.1));
            let before = array_of(&map);
            let mut gone = Vec::new();
            map.erase(start, last, |e| gone.push(e));
            let mut want = before;
            want[start as usize..=last as usize].fill((0, 0));
            prop_assert_eq!(array_of(&map), want);
            let blocks: u64 = gone.iter().map(|e| e.len).sum();
            prop_assert_eq!(blocks as usize, before[start as usize..=last as usize].iter().filter(|b| **b != (0, 0)).count());
        }
    }
}
