//! What a commit leaves in the log tree's record: its bloom block.

use super::*;

#[test]
fn bloom_bits_that_are_set_are_not_written_again() {
    let server = ServerBox::new();
    let (a, b) = (Mount::new(&server, 1), Mount::new(&server, 2));
    for n in 0..4 {
        put(&a, 1, n, "a");
        put(&b, 1, n, "b");
    }
    b.txn.sync().unwrap();
    let of = |rid: u64| -> Vec<u64> {
        let commits = server.commits.lock();
        commits.iter().filter(|lt| lt.rid.get() == rid).map(|lt| lt.bloom_ref.blkno.get()).collect()
    };
    for rid in [1, 2] {
        let blocks = of(rid);
        assert!(blocks.len() >= 4 && blocks[0] != 0 && blocks.iter().all(|b| *b == blocks[0]), "{blocks:?}");
    }
    // Those of another lock are.
    put(&a, 1 << 30, 0, "a");
    assert_eq!(get(&b, 1 << 30, 0).as_deref(), Some("a"));
    assert_ne!(of(1).last(), of(1).first());
}

/// The original's readers fail on a log tree that has a bloom block but no items.
#[test]
fn defect_21_no_bloom_block_without_items_is_recorded() {
    let server = ServerBox::new();
    let (a, b) = (Mount::new(&server, 1), Mount::new(&server, 2));
    let lock = a.lock(LockName::inode(Ino(1)), Mode::Write);
    {
        let hold = a.txn.hold(HoldKind::Freeing).unwrap();
        for delete in [false, true] {
            let mut set = ChangeSet::new(&a.items);
            if delete {
                set.delete(&lock, key(1, 1))
            } else {
                set.create(&lock, key(1, 1), Value::EMPTY)
            }
            set.apply(&hold).unwrap();
        }
        hold.inode_count(1);
    }
    drop(lock);
    a.txn.sync().unwrap();
    assert_eq!(server.commits.lock()[0].bloom_ref.blkno.get(), 0);
    // The bits are set again with the first item that stays.
    put(&a, 1, 2, "stays");
    a.txn.sync().unwrap();
    assert_eq!(get(&b, 1, 2).as_deref(), Some("stays"));
    // And in a new tree after the old one was finalised.
    server.faults.lock().finalize.insert(1);
    a.txn.start_commit();
    wait_until("finalisation", || !server.faults.lock().finalize.contains(&1));
    put(&a, 1, 3, "second tree");
    a.txn.sync().unwrap();
    assert_eq!(server.logs(1).len(), 2);
    assert_eq!(get(&b, 1, 3).as_deref(), Some("second tree"));
    assert_eq!(get(&b, 1, 2).as_deref(), Some("stays"));
}
