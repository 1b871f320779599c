//! Tests of transactions against a server in a box.

use std::ops::ControlFlow;

use super::testbox::{Mount, ServerBox};
use super::*;
use crate::error::Errno;
use crate::format::{Ino, Key, KeyRange, keys};
use crate::item::{ChangeSet, Value};
use crate::lock::{LockName, Mode};

fn put(m: &Mount, ino: u64, n: u64, value: &str) {
    let lock = m.lock(LockName::inode(Ino(ino)), Mode::Write);
    let hold = m.txn.hold(HoldKind::Allocating).unwrap();
    let mut set = ChangeSet::new(&m.items);
    set.put(&lock, key(ino, n), Value::new(value.as_bytes()));
    set.apply(&hold).unwrap();
}

fn key(ino: u64, n: u64) -> Key {
    keys::symlink(Ino(ino), n)
}

fn get(m: &Mount, ino: u64, n: u64) -> Option<String> {
    let lock = m.lock(LockName::inode(Ino(ino)), Mode::Read);
    m.items.lookup(&lock, &key(ino, n)).unwrap().map(|v| String::from_utf8(v.to_vec()).unwrap())
}

#[test]
fn what_is_synced_is_read_by_another_mount() {
    let server = ServerBox::new();
    let (a, b) = (Mount::new(&server, 1), Mount::new(&server, 2));
    put(&a, 1, 5, "five");
    a.txn.sync().unwrap();
    assert_eq!(server.commits.lock().len(), 1);
    assert_eq!(get(&b, 1, 5).as_deref(), Some("five"));
    assert_eq!(get(&b, 1, 6), None);
    // Without a sync too: taking the lock away commits.
    put(&a, 1, 6, "six");
    assert_eq!(get(&b, 1, 6).as_deref(), Some("six"));
    put(&b, 1, 6, "seven");
    assert_eq!(get(&a, 1, 6).as_deref(), Some("seven"));
    let lock = a.lock(LockName::inode(Ino(1)), Mode::Read);
    let mut n = 0;
    a.items
        .scan(&lock, KeyRange::ALL, &mut |_, _| {
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(n, 2);
    let _ = Errno::EIO;
}
