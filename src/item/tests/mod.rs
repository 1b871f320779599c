//! Tests of the item room over a server in a box.

mod cache;
mod change;
mod model;
mod read;

use super::*;
use crate::format::{Ino, Key, keys};
use crate::lock::{LockName, Mode};
use crate::txn::testbox::Mount;
use crate::txn::{Hold, HoldKind};

/// An item of inode `ino`.
fn key(ino: u64, n: u64) -> Key {
    keys::symlink(Ino(ino), n)
}

fn value(text: &str) -> Value {
    Value::new(text.as_bytes())
}

fn write_lock(m: &Mount, ino: u64) -> ItemLock {
    m.lock(LockName::inode(Ino(ino)), Mode::Write)
}

fn read_lock(m: &Mount, ino: u64) -> ItemLock {
    m.lock(LockName::inode(Ino(ino)), Mode::Read)
}

fn hold(m: &Mount) -> Hold<'_> {
    m.txn.hold(HoldKind::Freeing).unwrap()
}

fn put(m: &Mount, ino: u64, n: u64, text: &str) {
    let lock = write_lock(m, ino);
    let hold = hold(m);
    let mut set = ChangeSet::new(&m.items);
    set.put(&lock, key(ino, n), value(text));
    set.apply(&hold).unwrap();
}

fn get(m: &Mount, ino: u64, n: u64) -> Option<String> {
    let lock = read_lock(m, ino);
    m.items.lookup(&lock, &key(ino, n)).unwrap().map(|v| String::from_utf8(v.to_vec()).unwrap())
}
