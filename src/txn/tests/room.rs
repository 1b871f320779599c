//! Room for a commit: metadata that is low, few blocks, many leaves.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

#[test]
fn low_metadata_refuses_what_allocates_and_asks_again() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    server.faults.lock().low = true;
    a.txn.start_commit();
    wait_until("LOW", || a.txn.room.meta_low.load(Relaxed));
    assert!(try_put(&a, HoldKind::Allocating, 1, 1, b"x").unwrap_err().is(Errno::ENOSPC));
    try_put(&a, HoldKind::Freeing, 1, 1, b"x").unwrap();
    // As soon as the server has space again the next caller gets it, without waiting for a timer.
    server.faults.lock().low = false;
    try_put(&a, HoldKind::Allocating, 1, 2, b"y").unwrap();
}

#[test]
fn few_blocks_force_commits_but_never_fail_them() {
    let server = ServerBox::new();
    server.faults.lock().avail = Some(60);
    let a = Mount::new(&server, 1);
    let big = [7u8; 800];
    // Spread over many groups, so that every item may hit another leaf.
    for n in 0..20_000u64 {
        let at = n.wrapping_mul(2_654_435_761) % 20_000;
        try_put(&a, HoldKind::Freeing, at % 40 * 1024, at, &big).unwrap();
    }
    a.txn.sync().unwrap();
    assert!(server.commits.lock().len() > 10);
    let failures = a.txn.control.failures();
    assert_eq!(failures, 0, "no commit ran out of blocks");
    a.items.purge();
    for at in (0..20_000).step_by(97) {
        assert!(get_bytes(&a, at % 40 * 1024, at).is_some(), "{at}");
    }
}

/// Every dirty item was assumed to fall into another leaf, so a mount with a large log tree committed after a few hundred
/// files, however close together they were.
#[test]
fn changes_that_lie_close_together_share_a_commit() {
    let server = ServerBox::new();
    server.faults.lock().avail = Some(120);
    let a = Mount::new(&server, 1);
    for n in 0..20_000 {
        try_put(&a, HoldKind::Freeing, 1, n, &[7; 800]).unwrap();
    }
    a.txn.sync().unwrap();
    let commits = |from: usize| server.commits.lock().len() - from;
    let before = commits(0);
    for n in 0..1500 {
        put(&a, 1, n, "small");
    }
    a.txn.sync().unwrap();
    assert!(commits(before) <= 2, "{} commits for the items of some 20 leaves", commits(before));
    let before = commits(0);
    for n in 0..1500 {
        put(&a, 1, n * 13, "spread");
    }
    a.txn.sync().unwrap();
    assert!(commits(before) > 5, "{} commits for the items of some 280 leaves", commits(before));
    assert_eq!(a.txn.control.failures(), 0, "no commit ran out of blocks");
    a.items.purge();
    assert_eq!(get(&a, 1, 1499).as_deref(), Some("small"));
    assert_eq!(get(&a, 1, 1300).as_deref(), Some("spread"));
}

/// What came and went again in a transaction does not hide what it touched.
#[test]
fn changes_of_all_kinds_never_make_a_commit_run_out_of_blocks() {
    let server = ServerBox::new();
    server.faults.lock().avail = Some(80);
    let a = Mount::new(&server, 1);
    let mut rng = StdRng::seed_from_u64(5);
    let mut model = BTreeMap::new();
    let put = |m: &mut BTreeMap<(u64, u64), usize>, ino: u64, n: u64, len: usize| {
        try_put(&a, HoldKind::Freeing, ino, n, &vec![3; len]).unwrap();
        m.insert((ino, n), len);
    };
    for _ in 0..400 {
        let (ino, from) = (rng.random_range(0..8u64) * 1024, rng.random_range(0..20_000u64));
        match rng.random_range(0..3) {
            // Close together.
            0 => (0..60).for_each(|i| put(&mut model, ino, from + i, 300)),
            // Far from each other.
            1 => (0..20).for_each(|i| put(&mut model, ino, (from + i * 7919) % 20_000, 800)),
            // New ones that go again, and others in their place.
            _ => {
                for i in 0..30 {
                    let n = 1 << 30 | (from + i * 104_729);
                    put(&mut model, ino, n, 100);
                    let lock = a.lock(LockName::inode(Ino(ino)), Mode::Write);
                    let hold = a.txn.hold(HoldKind::Freeing).unwrap();
                    let mut set = ChangeSet::new(&a.items);
                    set.delete(&lock, key(ino, n));
                    set.apply(&hold).unwrap();
                    drop(hold);
                    model.remove(&(ino, n));
                    put(&mut model, ino, from + i * 613, 200);
                }
            }
        }
    }
    a.txn.sync().unwrap();
    assert_eq!(a.txn.control.failures(), 0, "no commit ran out of blocks");
    a.items.purge();
    for ((ino, n), len) in model {
        assert_eq!(get_bytes(&a, ino, n).map(|v| v.len()), Some(len), "{ino} {n}");
    }
}

fn get_bytes(m: &Mount, ino: u64, n: u64) -> Option<Value> {
    let lock = m.lock(LockName::inode(Ino(ino)), Mode::Read);
    m.items.lookup(&lock, &key(ino, n)).unwrap()
}
