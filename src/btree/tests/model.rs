//! Random operations against an ordered map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::btree::read::walk;
use crate::btree::{delete, dirty, force, insert, leaves_of, lookup, next, prev, read_leaf, rebalance, update};
use crate::format::KeyRange;

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, usize),
    Update(u64, usize),
    Force(u64, usize),
    Delete(u64),
    DeleteRange(u64, u64),
    Dirty(u64),
    Rebalance(u64),
    List {
        first: u64,
        step: u64,
        count: u64,
        len: usize,
    },
    /// Everything is written, and the next transaction goes on: without what this one had in memory, or with it.
    Reopen {
        afresh: bool,
    },
    /// The n-th allocation or free from now fails; the operation after it may fail.
    NoSpace(u64),
}

fn ops(ids: u64) -> impl Strategy<Value = Op> {
    let id = 0..ids;
    let len = prop_oneof![Just(0usize), 1..200usize, 800..=896usize];
    prop_oneof![
        4 => (id.clone(), len.clone()).prop_map(|(i, l)| Op::Insert(i, l)),
        2 => (id.clone(), len.clone()).prop_map(|(i, l)| Op::Update(i, l)),
        4 => (id.clone(), len.clone()).prop_map(|(i, l)| Op::Force(i, l)),
        4 => id.clone().prop_map(Op::Delete),
        3 => (id.clone(), 1..ids / 2).prop_map(|(i, n)| Op::DeleteRange(i, n)),
        1 => id.clone().prop_map(Op::Dirty),
        1 => id.clone().prop_map(Op::Rebalance),
        6 => (id, 1..5u64, 1..400u64, len)
            .prop_map(|(first, step, count, len)| Op::List { first, step, count, len }),
        4 => any::<bool>().prop_map(|afresh| Op::Reopen { afresh }),
        1 => (0..30u64).prop_map(Op::NoSpace),
    ]
}

fn value(id: u64, len: usize, salt: u64) -> Vec<u8> {
    (0..len).map(|i| (id.wrapping_mul(31) + salt + i as u64) as u8).collect()
}

struct Run {
    bed: Bed,
    root: BtreeRoot,
    model: BTreeMap<Key, Stored>,
    salt: u64,
}

impl Run {
    fn new() -> Run {
        Run { bed: Bed::new(), root: EMPTY, model: BTreeMap::new(), salt: 0 }
    }

    fn step(&mut self, op: &Op) {
        self.salt += 1;
        match *op {
            Op::Reopen { afresh } => {
                self.bed.reopen();
                if afresh {
                    self.bed.dirty = DirtySet::new();
                }
            }
            Op::NoSpace(n) => self.bed.source.fail_in = Some(n),
            Op::List { first, step, count, len } => self.list(first, step, count, len),
            Op::DeleteRange(first, count) => (first..first + count).for_each(|id| self.single(&Op::Delete(id))),
            _ => self.single(op),
        }
        if !matches!(op, Op::NoSpace(_)) {
            self.bed.source.fail_in = None;
        }
    }

    fn single(&mut self, op: &Op) {
        let (salt, model) = (self.salt, &mut self.model);
        let (mut cow, root) = (self.bed.cow(), &mut self.root);
        let have = |id: u64| model.contains_key(&k(id));
        let (result, expect) = match *op {
            Op::Insert(id, len) => {
                let v = value(id, len, salt);
                let expect = if have(id) { Some(Errno::EEXIST) } else { None };
                let r = insert(&mut cow, root, &k(id), &v);
                if r.is_ok() {
                    model.insert(k(id), (0, 0, v));
                }
                (r, expect)
            }
            Op::Update(id, len) | Op::Force(id, len) => {
                let v = value(id, len, salt);
                let forced = matches!(op, Op::Force(..));
                let expect = if have(id) || forced { None } else { Some(Errno::ENOENT) };
                let r = if forced { force(&mut cow, root, &k(id), &v) } else { update(&mut cow, root, &k(id), &v) };
                if r.is_ok() {
                    model.entry(k(id)).or_default().2 = v;
                }
                (r, expect)
            }
            Op::Delete(id) => {
                let expect = if have(id) { None } else { Some(Errno::ENOENT) };
                let r = delete(&mut cow, root, &k(id));
                if r.is_ok() {
                    model.remove(&k(id));
                }
                (r, expect)
            }
            Op::Dirty(id) => {
                let r = dirty(&mut cow, root, &k(id));
                if r.is_ok() {
                    // An update of the same length needs no block now.
                    cow.alloc.low(0);
                    let v = value(id, model[&k(id)].2.len(), salt);
                    self.bed.source.fail_in = Some(0);
                    update(&mut self.bed.cow(), root, &k(id), &v).unwrap();
                    model.get_mut(&k(id)).unwrap().2 = v;
                    return;
                }
                (r, if have(id) { None } else { Some(Errno::ENOENT) })
            }
            Op::Rebalance(id) => (rebalance(&mut cow, root, &k(id)), None),
            _ => unreachable!(),
        };
        self.judge(result, expect);
    }

    /// An operation does what the model says, or fails for lack of space if that was arranged.
    fn judge(&self, result: Result<()>, expect: Option<Errno>) {
        match (result, expect) {
            (Ok(()), None) => {}
            (Err(e), Some(want)) if e.is(want) => {}
            (Err(e), _) if e.is(Errno::ENOSPC) && self.bed.source.fail_in == Some(0) => {}
            (result, expect) => panic!("{result:?} instead of {expect:?}"),
        }
    }

    fn list(&mut self, first: u64, step: u64, count: u64, len: usize) {
        let salt = self.salt;
        let items: Vec<(Key, Stored)> = (0..count)
            .map(|i| {
                let id = first + i * step;
                let deletion = (id + salt).is_multiple_of(11);
                let v = value(id, if deletion { 0 } else { len }, salt);
                (k(id), (salt, deletion as u8, v))
            })
            .collect();
        let list = items.iter().map(|(key, (seq, flags, v))| LogItem { key: *key, seq: *seq, flags: *flags, value: v });
        match insert_list(&mut self.bed.cow(), &mut self.root, list, is_totl) {
            Ok(()) => self.model.extend(items),
            Err(e) => {
                assert!(e.is(Errno::ENOSPC), "{e}");
                // A first part was stored.
                let found = self.bed.look(&self.root).items;
                let stored = items.iter().take_while(|(key, v)| found.get(key) == Some(v)).count();
                self.model.extend(items.into_iter().take(stored));
            }
        }
    }

    fn compare(&self, probes: &[u64]) {
        if self.bed.source.fail_in.is_none() {
            self.bed.check(&[&self.root]);
        }
        assert_eq!(self.bed.look(&self.root).items, self.model);
        let reader = self.bed.reader();
        for id in probes {
            let key = k(*id);
            let found = lookup(&reader, &self.root, &key).unwrap();
            assert_eq!(found.map(|i| (i.seq, i.flags, i.value.to_vec())), self.model.get(&key).cloned());
            let after = next(&reader, &self.root, &key).unwrap().map(|(key, _)| key);
            assert_eq!(after, self.model.range(key..).next().map(|(key, _)| *key));
            let before = prev(&reader, &self.root, &key).unwrap().map(|(key, _)| key);
            assert_eq!(before, self.model.range(..=key).next_back().map(|(key, _)| *key));
            let mut range = KeyRange::ALL;
            let mut seen = Vec::new();
            read_leaf(&reader, &self.root, &key, &mut range, &mut |key, _, _, _| {
                seen.push(*key);
                Ok(())
            })
            .unwrap();
            assert!(range.contains(&key));
            assert!(seen.iter().eq(self.model.range(range.start..=range.end).map(|(key, _)| key)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_an_ordered_map(ops in prop::collection::vec(ops(1500), 1..80), probes in prop::collection::vec(0..1700u64, 20)) {
        let mut run = Run::new();
        for op in &ops {
            run.step(op);
        }
        run.bed.source.fail_in = None;
        run.compare(&probes);
        run.bed.reopen();
        run.compare(&probes);
        // Everything can be deleted again, and nothing is left.
        let ids: Vec<Key> = run.model.keys().copied().collect();
        for key in ids {
            delete(&mut run.bed.cow(), &mut run.root, &key).unwrap();
        }
        prop_assert_eq!(run.root, EMPTY);
        prop_assert!(run.bed.source.live.is_empty());
    }
}

/// Ascending insertion fills blocks; the original leaves half of them empty.
#[test]
fn ascending_runs_leave_full_leaves() {
    let mut bed = Bed::new();
    let mut root = EMPTY;
    for id in 0..5000 {
        insert(&mut bed.cow(), &mut root, &k(id), &[1; 100]).unwrap();
    }
    bed.reopen();
    bed.check(&[&root]);
    let leaves = bed.look(&root).level(0);
    assert!(leaves <= 5000 / (62464 / 160 - 1) + 1, "{leaves} leaves");

    // The same before the items of another zone.
    let mut root = EMPTY;
    let mut bed = Bed::new();
    for id in 0..50 {
        insert(&mut bed.cow(), &mut root, &Key::new(20, id, 0, 0, 0, 0), &[1; 100]).unwrap();
    }
    for id in 0..5000 {
        insert(&mut bed.cow(), &mut root, &k(id), &[1; 100]).unwrap();
    }
    bed.reopen();
    bed.check(&[&root]);
    let leaves = bed.look(&root).level(0);
    assert!(leaves <= 5000 / (62464 / 160 - 1) + 3, "{leaves} leaves");
}

#[test]
fn three_levels() {
    let mut bed = Bed::new();
    let items: Vec<_> = (0..70_000u64).map(|id| (k(id), 9, 0, vec![id as u8; 896])).collect();
    let mut root = bed.build(&items);
    bed.reopen();
    bed.check(&[&root]);
    assert_eq!(root.height, 3);
    for id in 0..70_000 {
        delete(&mut bed.cow(), &mut root, &k(id * 7919 % 70_000)).unwrap();
        if id == 40_000 {
            bed.reopen();
            bed.check(&[&root]);
        }
    }
    assert_eq!(root, EMPTY);
    assert!(bed.source.live.is_empty());
}

#[test]
fn values_over_the_limit_are_refused_without_effect() {
    let mut bed = Bed::new();
    let mut root = EMPTY;
    let long = [0; 897];
    for op in [insert, update, force] {
        assert!(op(&mut bed.cow(), &mut root, &k(1), &long).unwrap_err().is(Errno::EINVAL));
    }
    let list = [LogItem { key: k(1), seq: 1, flags: 0, value: &long }];
    assert!(insert_list(&mut bed.cow(), &mut root, list, is_totl).unwrap_err().is(Errno::EINVAL));
    assert_eq!(root, EMPTY);
}

/// The leaves of keys are those that a walk to each finds, whether the key is there or not.
#[test]
fn leaves_of_keys_are_where_walks_end() {
    for items in [0, 1, 50, 5000, 70_000] {
        let mut bed = Bed::new();
        let list: Vec<_> = (0..items).map(|id| (k(id * 10), 0, 0, vec![1; 896])).collect();
        let root = bed.build(&list);
        bed.reopen();
        let mut rng = StdRng::seed_from_u64(items);
        for run in [1, 3, 400] {
            let mut keys = vec![Key::ZEROS, Key::ONES];
            for _ in 0..20 {
                let from = rng.random_range(0..items * 10 + 20);
                keys.extend((0..run).map(|i| k(from + i * rng.random_range(1..9))));
            }
            keys.sort_unstable();
            let mut found = crate::sync::HashSet::default();
            leaves_of(&bed.reader(), &root, &keys, &mut found).unwrap();
            let walks = keys.iter().filter_map(|key| walk(&bed.reader(), &root, key, 0).unwrap());
            let expected: crate::sync::HashSet<u64> = walks.map(|w| w.block_ref.blkno.get()).collect();
            assert_eq!(found, expected, "{items} items, runs of {run}");
        }
    }
}
