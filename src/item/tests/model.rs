//! Random change sets, commits, evictions, lock changes, merges and new mounts, compared with a map.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::error::Errno;
use crate::format::layout::{BtreeRoot, XattrTotlVal};
use crate::format::{KeyRange, Seq};
use crate::item::totals::{Total, TotalsReader};
use crate::sync::Arc;
use crate::txn::testbox::{ServerBox, lock_of};
use zerocopy::FromZeros;

const GROUPS: u64 = 2;

#[derive(Clone, Debug)]
enum Change {
    Create(u64, u64, u16),
    Update(u64, u64, u16),
    Put(u64, u64, u16),
    Delete(u64, u64),
    Index(u64, bool),
    Delta(u64, i8, i8),
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Change>),
    Sync,
    Purge,
    Merge,
    Check,
    NewMount,
}

fn change() -> impl Strategy<Value = Change> {
    let (g, n, len) = (0..GROUPS, 0u64..30, 0u16..800);
    prop_oneof![
        (g.clone(), n.clone(), len.clone()).prop_map(|(g, n, l)| Change::Create(g, n, l)),
        (g.clone(), n.clone(), len.clone()).prop_map(|(g, n, l)| Change::Update(g, n, l)),
        (g.clone(), n.clone(), len).prop_map(|(g, n, l)| Change::Put(g, n, l)),
        (g, n).prop_map(|(g, n)| Change::Delete(g, n)),
        (0u64..8, any::<bool>()).prop_map(|(n, add)| Change::Index(n, add)),
        (0u64..3, any::<i8>(), -1i8..=1).prop_map(|(n, t, c)| Change::Delta(n, t, c)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec(change(), 1..6).prop_map(Step::Apply),
        2 => Just(Step::Sync),
        1 => Just(Step::Purge),
        1 => Just(Step::Merge),
        1 => Just(Step::Check),
        1 => Just(Step::NewMount),
    ]
}

#[derive(Default)]
struct Model {
    items: BTreeMap<Key, Vec<u8>>,
    index: BTreeMap<Key, ()>,
    totals: BTreeMap<Key, Total>,
}

fn item(g: u64, n: u64) -> Key {
    key(g * 1024 + n % 5, n)
}

fn index(n: u64) -> Key {
    keys::meta_index(Seq(n * 300), Ino(7))
}

/// Applies the changes to a copy of the model, or says why they cannot be.
fn apply_to_model(model: &Model, changes: &[Change], stamp: u64) -> Result<Model, Errno> {
    let mut m = Model { items: model.items.clone(), index: model.index.clone(), totals: model.totals.clone() };
    for c in changes {
        match *c {
            Change::Create(g, n, _) if m.items.contains_key(&item(g, n)) => return Err(Errno::EEXIST),
            Change::Update(g, n, _) | Change::Delete(g, n) if !m.items.contains_key(&item(g, n)) => {
                return Err(Errno::ENOENT);
            }
            Change::Create(g, n, l) | Change::Update(g, n, l) | Change::Put(g, n, l) => {
                m.items.insert(item(g, n), bytes(l, stamp));
            }
            Change::Delete(g, n) => drop(m.items.remove(&item(g, n))),
            Change::Index(n, true) => drop(m.index.insert(index(n), ())),
            Change::Index(n, false) => drop(m.index.remove(&index(n))),
            Change::Delta(n, t, c) => {
                let sum = m.totals.entry(keys::totl(9, n, 1)).or_default();
                sum.total = sum.total.wrapping_add(t as i64 as u64);
                sum.count = sum.count.wrapping_add(c as i64 as u64);
            }
        }
    }
    Ok(m)
}

fn bytes(len: u16, stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().iter().copied().cycle().take(usize::from(len)).collect()
}

fn apply_to_mount(m: &Mount, changes: &[Change], stamp: u64) -> crate::error::Result<()> {
    let groups: Vec<ItemLock> = (0..GROUPS).map(|g| write_lock(m, g * 1024)).collect();
    let indexes: Vec<ItemLock> = (0..3).map(|i| m.lock(LockName::meta_index(Seq(i * 1024)), Mode::WriteOnly)).collect();
    let totl = m.lock(LockName::totl(), Mode::WriteOnly);
    let index_lock = |n: u64| indexes.iter().find(|l| l.range().contains(&index(n))).unwrap();
    let hold = hold(m);
    let mut set = ChangeSet::new(&m.items);
    for c in changes {
        match *c {
            Change::Create(g, n, l) => set.create(&groups[g as usize], item(g, n), bytes(l, stamp).into()),
            Change::Update(g, n, l) => set.update(&groups[g as usize], item(g, n), bytes(l, stamp).into()),
            Change::Put(g, n, l) => set.put(&groups[g as usize], item(g, n), bytes(l, stamp).into()),
            Change::Delete(g, n) => set.delete(&groups[g as usize], item(g, n)),
            Change::Index(n, true) => set.force_create(index_lock(n), &groups[0], index(n), Value::EMPTY),
            Change::Index(n, false) => set.force_delete(index_lock(n), &groups[0], index(n)),
            Change::Delta(n, t, c) => {
                let d = XattrTotlVal { total: (t as i64 as u64).into(), count: (c as i64 as u64).into() };
                set.delta(&totl, keys::totl(9, n, 1), d);
            }
        }
    }
    set.apply(&hold)
}

fn scan(m: &Mount, name: LockName) -> Vec<(Key, Vec<u8>)> {
    let lock = m.lock(name, Mode::Read);
    let mut out = Vec::new();
    m.items
        .scan(&lock, KeyRange::ALL, &mut |k, v| {
            out.push((*k, v.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    out
}

/// Everything that can be read through this mount is what the model says; totals as of the last commits of all.
fn check(server: &Arc<ServerBox>, mounts: &[Mount], reader: usize, model: &Model) {
    let m = &mounts[reader];
    let mut items = Vec::new();
    for g in 0..GROUPS {
        items.extend(scan(m, LockName::inode(Ino(g * 1024))));
    }
    let want: Vec<(Key, Vec<u8>)> = model.items.iter().map(|(k, v)| (*k, v.clone())).collect();
    assert_eq!(items, want);
    let mut found = Vec::new();
    for i in 0..3 {
        found.extend(scan(m, LockName::meta_index(Seq(i * 1024))));
    }
    assert_eq!(found.iter().map(|(k, _)| *k).collect::<Vec<_>>(), model.index.keys().copied().collect::<Vec<_>>());
    for (k, v) in model.items.iter().step_by(3) {
        let lock = m.lock(lock_of(k), Mode::Read);
        assert_eq!(m.items.lookup(&lock, k).unwrap().as_deref(), Some(v.as_slice()));
    }
    mounts.iter().for_each(|m| m.txn.sync().unwrap());
    server.write_super(BtreeRoot::new_zeroed());
    let totals = TotalsReader::new(server.store.clone(), std::time::Duration::ZERO);
    let mut found = BTreeMap::new();
    totals
        .scan(KeyRange::ALL, &mut |k, t| {
            found.insert(*k, t);
            ControlFlow::Continue(())
        })
        .unwrap();
    let want: BTreeMap<Key, Total> =
        model.totals.iter().filter(|(_, t)| **t != Total::default()).map(|(k, t)| (*k, *t)).collect();
    assert_eq!(found, want);
}

/// Finalises the trees of all mounts and merges them.
fn merge(server: &Arc<ServerBox>, mounts: &[Mount]) {
    for m in mounts {
        m.txn.sync().unwrap();
        // The answer to SYNC_LOG_TREES is a full cycle; the tree is finalised in its GET.
        server.faults.lock().finalize.insert(m.rid);
        m.txn.start_commit();
        while server.faults.lock().finalize.contains(&m.rid) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    server.merge();
}

/// A few, or as many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mounts_agree_with_a_map(steps in proptest::collection::vec((0usize..2, step()), 1..60)) {
        let server = ServerBox::new();
        // A small cache, so that eviction takes part.
        let mut mounts = vec![Mount::with(&server, 1, 20_000, |_| {}), Mount::with(&server, 2, 20_000, |_| {})];
        let (mut rid, mut model) = (2, Model::default());
        for (stamp, (who, step)) in steps.iter().enumerate() {
            match step {
                Step::Apply(changes) => {
                    let result = apply_to_mount(&mounts[*who], changes, stamp as u64);
                    match apply_to_model(&model, changes, stamp as u64) {
                        Ok(next) => {
                            prop_assert!(result.is_ok(), "{result:?}");
                            model = next;
                        }
                        Err(e) => prop_assert!(result.as_ref().is_err_and(|r| r.is(e)), "{result:?} instead of {e}"),
                    }
                }
                Step::Sync => mounts[*who].txn.sync().unwrap(),
                Step::Purge => mounts[*who].items.purge(),
                Step::Merge => merge(&server, &mounts),
                Step::Check => check(&server, &mounts, *who, &model),
                Step::NewMount => {
                    merge(&server, &mounts);
                    mounts[*who].txn.close().unwrap();
                    rid += 1;
                    let old = std::mem::replace(&mut mounts[*who], Mount::with(&server, rid, 20_000, |_| {}));
                    drop(old);
                }
            }
        }
        check(&server, &mounts, 0, &model);
        check(&server, &mounts, 1, &model);
        merge(&server, &mounts);
        mounts.iter().for_each(|m| m.items.purge());
        check(&server, &mounts, 1, &model);
    }
}
