//! Change sets: all or nothing, checks, sequences.

use super::*;
use crate::error::Errno;
use crate::format::layout::XattrTotlVal;
use crate::format::{KeyRange, Seq};
use crate::txn::testbox::ServerBox;

fn index(seq: u64, ino: u64) -> Key {
    keys::meta_index(Seq(seq), Ino(ino))
}

#[test]
fn a_failing_set_changes_nothing() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "one");
    let (one, two) = (write_lock(&a, 1), write_lock(&a, 2048));
    let h = hold(&a);
    let mut set = ChangeSet::new(&a.items);
    set.update(&one, key(1, 1), value("changed"));
    set.create(&two, key(2048, 1), value("new"));
    set.create(&one, key(1, 1), value("again"));
    assert!(set.apply(&h).unwrap_err().is(Errno::EEXIST));
    let mut set = ChangeSet::new(&a.items);
    set.delete(&one, key(1, 1));
    set.update(&one, key(1, 1), value("gone already"));
    assert!(set.apply(&h).unwrap_err().is(Errno::ENOENT));
    assert_eq!(a.items.lookup(&one, &key(1, 1)).unwrap(), Some(value("one")));
    assert_eq!(a.items.lookup(&two, &key(2048, 1)).unwrap(), None);
    // Delete and create again in one set is an update, and large sets see their own changes too.
    let mut set = ChangeSet::new(&a.items);
    for n in 100..140 {
        set.create(&one, key(1, n), value("many"));
    }
    for n in 100..140 {
        set.delete(&one, key(1, n));
        set.create(&one, key(1, n), value("again"));
    }
    set.delete(&one, key(1, 1));
    set.create(&one, key(1, 1), value("reborn"));
    set.apply(&h).unwrap();
    assert_eq!(a.items.lookup(&one, &key(1, 1)).unwrap(), Some(value("reborn")));
    assert_eq!(a.items.lookup(&one, &key(1, 139)).unwrap(), Some(value("again")));
}

#[test]
fn locks_must_cover_and_serve() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let read = read_lock(&a, 1);
    assert!(a.items.lookup(&read, &key(5000, 1)).unwrap_err().is(Errno::EINVAL));
    let h = hold(&a);
    let refused = |set: ChangeSet| assert!(set.apply(&h).unwrap_err().is(Errno::EINVAL));
    let mut set = ChangeSet::new(&a.items);
    set.put(&read, key(1, 1), value("under a read lock"));
    refused(set);
    let blind = a.lock(LockName::meta_index(Seq(5)), Mode::WriteOnly);
    let mut set = ChangeSet::new(&a.items);
    set.put(&blind, index(5, 1), Value::EMPTY);
    refused(set);
    // The primary must be a write lock.
    let mut set = ChangeSet::new(&a.items);
    set.force_create(&blind, &read, index(5, 1), Value::EMPTY);
    refused(set);
    assert!(a.items.lookup(&blind, &index(5, 1)).unwrap_err().is(Errno::EINVAL), "write-only cannot read");
    assert_eq!(a.items.dirty_items(), 0);
}

/// The original passes no primary for the value index, so a deletion could get a lesser version than the creation.
#[test]
fn defect_22_blind_changes_take_the_version_of_the_primary() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let blind = a.lock(LockName::indx(), Mode::WriteOnly);
    let primary = write_lock(&a, 1);
    assert!(primary.write_seq() > blind.write_seq() && primary.write_seq() > a.txn.seq());
    let h = hold(&a);
    let mut set = ChangeSet::new(&a.items);
    set.force_delete(&blind, &primary, keys::indx(1, 2, Ino(1), 3));
    set.apply(&h).unwrap();
    drop(h);
    let batch = a.items.freeze();
    batch
        .for_each_chunk(|chunk| {
            assert_eq!(chunk.len(), 1);
            assert_eq!((chunk[0].seq, chunk[0].flags), (primary.write_seq(), 1));
            Ok::<_, ()>(())
        })
        .unwrap();
}

#[test]
fn items_that_never_reached_a_tree_vanish_without_a_trace() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let lock = write_lock(&a, 1);
    let h = hold(&a);
    let mut set = ChangeSet::new(&a.items);
    set.create(&lock, key(1, 1), value("short lived"));
    set.apply(&h).unwrap();
    assert_eq!(a.items.dirty_items(), 1);
    let mut set = ChangeSet::new(&a.items);
    set.delete(&lock, key(1, 1));
    set.apply(&h).unwrap();
    assert_eq!((a.items.dirty_items(), a.items.dirty_bytes()), (0, 0));
    // One that a tree may have leaves a tombstone, which is an absent item.
    let mut set = ChangeSet::new(&a.items);
    set.put(&lock, key(1, 2), value("x"));
    set.apply(&h).unwrap();
    drop(h);
    a.txn.sync().unwrap();
    let h = hold(&a);
    let mut set = ChangeSet::new(&a.items);
    set.delete(&lock, key(1, 2));
    set.apply(&h).unwrap();
    assert_eq!(a.items.dirty_items(), 1);
    assert_eq!(a.items.lookup(&lock, &key(1, 2)).unwrap(), None);
    assert_eq!(a.items.next(&lock, &key(1, 0), &KeyRange::ALL.end).unwrap(), None);
    drop(h);
    a.txn.sync().unwrap();
    assert_eq!((a.items.dirty_items(), a.items.dirty_bytes()), (0, 0));
    a.items.purge();
    assert_eq!(a.items.lookup(&lock, &key(1, 2)).unwrap(), None);
}

#[test]
fn differences_add_up_and_may_come_to_nothing() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let lock = a.lock(LockName::totl(), Mode::WriteOnly);
    let k = keys::totl(1, 2, 3);
    let add = |total: i64, count: i64| {
        let h = hold(&a);
        let mut set = ChangeSet::new(&a.items);
        set.delta(&lock, k, XattrTotlVal { total: (total as u64).into(), count: (count as u64).into() });
        set.apply(&h).unwrap();
    };
    add(5, 1);
    add(-7, 0);
    assert_eq!(a.items.dirty_items(), 1);
    add(2, -1);
    assert_eq!(a.items.dirty_items(), 0);
    add(0, 0);
    assert_eq!(a.items.dirty_items(), 0);
    // Nothing but differences under the totals' keys.
    let h = hold(&a);
    let primary = write_lock(&a, 1);
    let mut set = ChangeSet::new(&a.items);
    set.force_create(&lock, &primary, k, Value::EMPTY);
    assert!(set.apply(&h).unwrap_err().errno() == Errno::EINVAL);
}
