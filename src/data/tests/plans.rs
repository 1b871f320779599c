//! Truncation and allocation steps against the original's vectors, with a step limit that does not matter in the chosen rows.

use serde_json::Value;

use crate::alloc::extent::{Extent, ExtentMap, apply, plan_set};
use crate::data::extents::{Edit, Stored, counts};
use crate::data::fallocate::{Fill, Step};
use crate::data::resize::plan_cuts;
use crate::error::Result;
use crate::format::DataBlock;

/// Extents of a file in a list.
struct List(ExtentMap);

impl Stored for &List {
    fn next(&self, block: u64) -> Result<Option<Extent>> {
        Ok(self.0.at_or_after(block))
    }
}

fn rows(v: &Value) -> Vec<[u64; 4]> {
    let row = |r: &Value| [0, 1, 2, 3].map(|i| r[i].as_u64().unwrap());
    v.as_array().unwrap().iter().map(row).collect()
}

fn list(v: &Value) -> List {
    let mut map = ExtentMap::default();
    rows(v).iter().for_each(|r| map.put(Extent::new(r[0], r[1], r[2], r[3] as u8)));
    List(map)
}

fn listed(map: &ExtentMap) -> Vec<[u64; 4]> {
    map.iter().map(|e| [e.start, e.len, e.map, e.flags.into()]).collect()
}

fn cases() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vectors/data-truncate-fallocate.json");
    let v: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    v["cases"].as_array().unwrap().clone()
}

#[test]
fn truncation_steps_match_the_vectors() {
    let mut seen = 0;
    for case in cases().iter().filter(|c| c["op"] == "truncate") {
        let stored = list(&case["before"]);
        let (first, last) = (case["args"][0].as_u64().unwrap(), case["args"][1].as_u64().unwrap());
        let plan = plan_cuts(&&stored, first, last, 8).unwrap();
        let mut after = stored.0.clone();
        let mut freed = Vec::new();
        for cut in &plan.cuts {
            assert_eq!(after.take(cut.old.last()), Some(cut.old));
            cut.kept.iter().for_each(|k| after.put(*k));
            if cut.gone.map != 0 {
                freed.push([cut.gone.map, cut.gone.len]);
            }
        }
        assert_eq!(listed(&after), rows(&case["after"]), "{case}");
        let want: Vec<[u64; 2]> =
            case["freed"].as_array().unwrap().iter().map(|f| [0, 1].map(|i| f[i].as_u64().unwrap())).collect();
        assert_eq!(freed, want, "{case}");
        let totals = after.iter().map(counts).fold((0, 0), |a, c| (a.0 + c.0, a.1 + c.1));
        assert_eq!(totals, (case["online"].as_u64().unwrap(), case["offline"].as_u64().unwrap()), "{case}");
        // The original learns that it is finished only by looking again, so it may stop one step later.
        if case["ret"].as_u64() == Some(0) {
            assert_eq!(plan.next, None, "{case}");
        }
        seen += 1;
    }
    assert!(seen > 50, "{seen} rows");
}

/// Rows without offline extents in the range: a file with those is never allocated in here, it is staged first.
#[test]
fn allocation_steps_match_the_vectors() {
    let mut seen = 0;
    for case in cases().iter().filter(|c| c["op"] == "fallocate") {
        let (first, last) = (case["args"][0].as_u64().unwrap(), case["args"][1].as_u64().unwrap());
        let whole = case["ret"].as_u64().unwrap() == last - first + 1;
        let before = rows(&case["before"]);
        let offline = before.iter().any(|r| r[3] & 1 != 0 && r[0] <= last && r[0] + r[1] > first);
        if !whole || offline {
            continue;
        }
        let stored = list(&case["before"]);
        let most = case["alloc_max"].as_u64().unwrap();
        let mut cursor = case["alloc_blkno"].as_u64().unwrap();
        let mut alloc = |count: u64| {
            let (start, len) = (cursor, count.min(most));
            cursor += len + 1000;
            Ok((DataBlock(start), len))
        };
        let mut step = Step::new(Edit::new(&stored), first);
        step.plan(&ExtentMap::default(), &mut alloc, Fill::Allocate, last).unwrap();
        assert_eq!(step.next, last + 1, "{case}");
        let mut after = stored.0.clone();
        for e in step.edit.changes().0 {
            after.take(e.last());
        }
        step.edit.changes().1.for_each(|e| after.put(*e));
        assert_eq!(listed(&after), rows(&case["after"]), "{case}");
        seen += 1;
    }
    assert!(seen > 5, "{seen} rows");
}

/// Punching and zeroing any range of any file, block by block.
#[test]
fn punching_and_zeroing_change_exactly_their_range() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for round in 0..400 {
        let mut map = ExtentMap::default();
        for _ in 0..rng.random_range(0..6) {
            let (start, len) = (rng.random_range(0..60), rng.random_range(1..10));
            let e = Extent::new(start, len, 1000 + 100 * rng.random_range(0..50), 2 * rng.random_range(0..2));
            if let Ok(steps) = plan_set(&mut map, e) {
                apply(&mut map, &steps).unwrap();
            }
        }
        let (a, b) = (rng.random_range(0..70), rng.random_range(0..70));
        let (first, last) = (a.min(b), a.max(b));
        let fill = if round % 2 == 0 { Fill::Punch } else { Fill::Zero };
        let stored = List(map);
        let block = |map: &ExtentMap, b: u64| {
            map.at_or_after(b).filter(|e| e.contains(b)).map(|e| (e.map + (b - e.start), e.flags))
        };
        let mut cursor = 100_000;
        let mut alloc = |count: u64| {
            cursor += 100;
            Ok((DataBlock(cursor), count.min(3)))
        };
        let mut step = Step::new(Edit::new(&stored), first);
        step.plan(&ExtentMap::default(), &mut alloc, fill, last).unwrap();
        let mut after = stored.0.clone();
        for e in step.edit.changes().0 {
            after.take(e.last());
        }
        step.edit.changes().1.for_each(|e| after.put(*e));
        let (mut online, mut freed) = (0, 0);
        for b in 0..90 {
            let (old, new) = (block(&stored.0, b), block(&after, b));
            if b < first || b >= step.next {
                assert_eq!(old, new, "block {b} is outside of {first}..{}", step.next);
                continue;
            }
            online += u64::from(old.is_some_and(|o| o.1 == 0));
            match (fill, old) {
                (Fill::Punch, _) => assert_eq!(new, None),
                (_, Some((map, _))) => assert_eq!(new, Some((map, 2))),
                (_, None) => assert!(new.is_some_and(|n| n.0 > 100_000 && n.1 == 2)),
            }
            freed += u64::from(fill == Fill::Punch && old.is_some());
        }
        assert_eq!((step.online, step.freed.iter().map(|f| f.1).sum::<u64>()), (online, freed));
    }
}
