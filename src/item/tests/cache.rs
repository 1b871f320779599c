//! Filling, the read barrier, eviction, damage.

use std::sync::mpsc::channel;

use super::*;
use crate::error::Errno;
use crate::format::KeyRange;
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::sync::Arc;
use crate::txn::testbox::ServerBox;
use std::ops::ControlFlow;

#[test]
fn misses_below_one_grant_share_roots() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    for n in 0..2000 {
        put(&a, 1, n, &"x".repeat(800));
    }
    a.txn.sync().unwrap();
    a.items.purge();
    let asked = *server.roots_asked.lock();
    for n in 0..2000 {
        assert_eq!(get(&a, 1, n).map(|v| v.len()), Some(800));
    }
    assert_eq!(*server.roots_asked.lock() - asked, 1, "one request serves all leaves");
    // Another lock was granted after those roots were asked for, or nobody can tell.
    assert_eq!(get(&a, 5000, 1), None);
    assert_eq!(*server.roots_asked.lock() - asked, 2);
}

#[test]
fn roots_are_asked_for_again_after_a_commit_took_items_from_the_lock() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    assert_eq!(get(&a, 1, 1), None);
    put(&a, 1, 1, "new");
    a.txn.sync().unwrap();
    a.items.purge();
    assert_eq!(get(&a, 1, 1).as_deref(), Some("new"), "roots from before the commit do not have it");
}

/// Scenario 5 of `spec/03 §15`, fault W14 of the original: a slow reader with old roots must not bring back what was
/// deleted, committed and evicted meanwhile.
#[test]
fn delayed_reader_does_not_resurrect() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "old");
    put(&a, 1, 2, "other");
    a.txn.sync().unwrap();
    a.items.purge();

    let (arrived_tx, arrived) = channel();
    let (go, go_rx) = channel::<()>();
    let first = crate::sync::Mutex::new(Some((arrived_tx, go_rx)));
    *server.on_roots.lock() = Some(Arc::new(move || {
        let taken = first.lock().take();
        if let Some((arrived, go)) = taken {
            arrived.send(()).unwrap();
            go.recv().unwrap();
        }
    }));
    let lock = write_lock(&a, 1);
    let covering: &CoveringLock = &lock;
    std::thread::scope(|s| {
        let reader = s.spawn(|| a.items.lookup(covering, &key(1, 1)).unwrap());
        // The reader has the old roots in hand. Delete, commit and evict under its feet.
        arrived.recv().unwrap();
        let hold = hold(&a);
        let mut set = ChangeSet::new(&a.items);
        set.put(covering, key(1, 1), value("newer"));
        set.delete(covering, key(1, 1));
        set.put(covering, key(1, 2), value("newest"));
        set.apply(&hold).unwrap();
        drop(hold);
        a.txn.sync().unwrap();
        a.items.purge();
        go.send(()).unwrap();
        assert_eq!(reader.join().unwrap(), None);
    });
    assert_eq!(a.items.lookup(&lock, &key(1, 1)).unwrap(), None);
    assert_eq!(a.items.lookup(&lock, &key(1, 2)).unwrap(), Some(value("newest")));
}

#[test]
fn clean_content_is_evicted_and_the_budget_holds() {
    let server = ServerBox::new();
    let a = Mount::with(&server, 1, 1 << 20, |_| {});
    for ino in 0..40u64 {
        for n in 0..100 {
            put(&a, ino * 1024 + 1, n, &format!("{ino} {n} {}", "y".repeat(500)));
        }
        a.txn.sync().unwrap();
    }
    assert!(a.items.cached_bytes() < 3 << 19, "{} bytes cached", a.items.cached_bytes());
    for ino in (0..40u64).rev() {
        for n in 0..100 {
            let found = get(&a, ino * 1024 + 1, n).unwrap();
            assert!(found.starts_with(&format!("{ino} {n} y")));
        }
        assert!(a.items.cached_bytes() < 3 << 19, "{} bytes cached", a.items.cached_bytes());
    }
    a.items.purge();
    assert_eq!(a.items.cached_bytes(), 0);
}

/// Dirty items stay, and clean ones are not driven out by them.
#[test]
fn dirty_items_have_a_budget_of_their_own() {
    let server = ServerBox::new();
    let a = Mount::with(&server, 1, 1 << 20, |_| {});
    for n in 0..1000 {
        put(&a, 1, n, &"c".repeat(500));
    }
    a.txn.sync().unwrap();
    let clean = a.items.cached_bytes();
    for n in 0..4000 {
        put(&a, 5000, n, &"d".repeat(500));
    }
    assert!(a.items.dirty_bytes() > 2 << 20);
    assert_eq!(a.items.cached_bytes(), clean + a.items.dirty_bytes());
    a.txn.sync().unwrap();
    assert!(a.items.cached_bytes() < 3 << 19, "{} bytes cached", a.items.cached_bytes());
}

#[test]
fn what_became_dirty_is_given_once() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 5000, 1, "x");
    put(&a, 1, 3, "x");
    put(&a, 1, 2, "x");
    put(&a, 1, 3, "y");
    assert_eq!((a.items.newly_dirty(), a.items.dirtied()), (vec![key(1, 2), key(1, 3), key(5000, 1)], 3));
    assert_eq!(a.items.newly_dirty(), []);
    // Gone again, and yet it was there.
    put(&a, 1, 4, "x");
    {
        let lock = write_lock(&a, 1);
        let mut set = ChangeSet::new(&a.items);
        set.delete(&lock, key(1, 4));
        set.apply(&hold(&a)).unwrap();
    }
    assert_eq!((a.items.newly_dirty(), a.items.dirtied(), a.items.dirty_items()), (vec![key(1, 4)], 4, 4));
    // What is to come counts as if it were there.
    a.items.promise([key(1, 9), key(1, 8)].into_iter());
    assert_eq!((a.items.dirtied(), a.items.expected_items(), a.items.dirty_items()), (6, 6, 4));
    assert_eq!((a.items.newly_dirty(), a.items.newly_dirty()), (vec![key(1, 8), key(1, 9)], vec![]));
    a.items.promise([key(1, 10)].into_iter());
    a.txn.sync().unwrap();
    assert_eq!((a.items.newly_dirty(), a.items.dirtied(), a.items.expected_items()), (vec![], 0, 0));
    put(&a, 1, 3, "z");
    assert_eq!((a.items.newly_dirty(), a.items.dirtied()), (vec![key(1, 3)], 1));
}

#[test]
fn one_big_shard_is_evicted_in_parts() {
    let server = ServerBox::new();
    let a = Mount::with(&server, 1, 1 << 20, |_| {});
    for n in 0..6000 {
        put(&a, 1, n, &format!("{n} {}", "z".repeat(400)));
    }
    a.txn.sync().unwrap();
    let mut seen = 0;
    let lock = read_lock(&a, 1);
    a.items
        .scan(&lock, KeyRange::ALL, &mut |k, v| {
            assert_eq!(*k, key(1, seen));
            assert!(v.starts_with(format!("{seen} z").as_bytes()));
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 6000);
    assert!(a.items.cached_bytes() < 3 << 19, "{} bytes cached", a.items.cached_bytes());
    assert!(a.items.cached_bytes() > 1 << 18, "something stays cached");
}

/// Item reads of the original repeat for ever on a damaged block.
#[test]
fn defect_8_damage_below_unchanged_roots_is_an_error() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let block_ref = BlockRef { blkno: 999.into(), seq: 77.into() };
    server.set_fs_root(BtreeRoot { block_ref, height: 1, pad: [0; 7] });
    let lock = read_lock(&a, 1);
    let e = a.items.lookup(&lock, &key(1, 1)).unwrap_err();
    assert_eq!(e.errno(), Errno::EIO, "{e}");
    assert_eq!(*server.roots_asked.lock(), 2);
    assert_eq!(a.items.next_hint(&Key::ZEROS).unwrap_err().errno(), Errno::EIO);
}

#[test]
fn reused_blocks_are_read_again_from_newer_roots() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "here");
    a.txn.sync().unwrap();
    a.items.purge();
    let good = server.roots().fs_root;
    let block_ref = BlockRef { blkno: 999.into(), seq: 77.into() };
    server.set_fs_root(BtreeRoot { block_ref, height: 1, pad: [0; 7] });
    let (weak, tries) = (Arc::downgrade(&server), crate::sync::atomic::AtomicU32::new(0));
    *server.on_roots.lock() = Some(Arc::new(move || {
        // The first answer is stale when it is used, the next one is not.
        if tries.fetch_add(1, crate::sync::atomic::Ordering::SeqCst) == 0 {
            weak.upgrade().unwrap().set_fs_root(good);
        }
    }));
    assert_eq!(get(&a, 1, 1).as_deref(), Some("here"));
}

#[test]
fn many_threads_read_and_write_under_eviction() {
    let server = ServerBox::new();
    let a = Mount::with(&server, 1, 1 << 18, |_| {});
    let text = |t: u64, n: u64| format!("{t} {n} {}", "w".repeat(200));
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let a = &a;
            s.spawn(move || {
                for n in 0..300 {
                    put(a, 1, t * 1000 + n, &text(t, n));
                    if n % 50 == 49 {
                        a.txn.sync().unwrap();
                    }
                    let back = n / 2;
                    assert_eq!(get(a, 1, t * 1000 + back), Some(text(t, back)));
                }
            });
        }
    });
    a.txn.sync().unwrap();
    for t in 0..4 {
        for n in 0..300 {
            assert_eq!(get(&a, 1, t * 1000 + n), Some(text(t, n)));
        }
    }
}
