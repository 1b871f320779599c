//! Change sets: all item changes of one operation, checked first, then applied without a way to fail.

use std::marker::PhantomData;

use super::{CoveringLock, Items, Value};
use crate::error::Result;
use crate::format::Key;
use crate::format::layout::XattrTotlVal;

/// Proof that the open transaction is held, so that it cannot be committed under the caller's hands.
pub(crate) trait InTransaction {
    /// Sequence of the open transaction.
    fn seq(&self) -> u64;
}

/// Item changes to be applied together.
///
/// Later changes of a set see the earlier ones. Building a set does nothing; dropping it undoes nothing because
/// nothing was done.
pub(crate) struct ChangeSet<'a> {
    x: PhantomData<&'a Items>,
}

impl<'a> ChangeSet<'a> {
    /// No changes yet.
    pub(crate) fn new(items: &'a Items) -> ChangeSet<'a> {
        let _ = items;
        todo!()
    }

    /// A new item under a write lock; `apply` fails with EEXIST if it exists.
    pub(crate) fn create(&mut self, lock: &'a CoveringLock, key: Key, value: Value) {
        let _ = (lock, key, value);
        todo!()
    }

    /// A new value under a write lock; `apply` fails with ENOENT if the item does not exist.
    pub(crate) fn update(&mut self, lock: &'a CoveringLock, key: Key, value: Value) {
        let _ = (lock, key, value);
        todo!()
    }

    /// Creates or overwrites under a write lock, without reading.
    pub(crate) fn put(&mut self, lock: &'a CoveringLock, key: Key, value: Value) {
        let _ = (lock, key, value);
        todo!()
    }

    /// Deletes under a write lock; `apply` fails with ENOENT if the item does not exist.
    pub(crate) fn delete(&mut self, lock: &'a CoveringLock, key: Key) {
        let _ = (lock, key);
        todo!()
    }

    /// Creates or overwrites under a write-only lock. `primary` is the write lock that orders changes of the key between
    /// nodes: that of the inode.
    pub(crate) fn force_create(&mut self, lock: &'a CoveringLock, primary: &'a CoveringLock, key: Key, value: Value) {
        let _ = (lock, primary, key, value);
        todo!()
    }

    /// Deletes under a write-only lock whether the item exists or not.
    pub(crate) fn force_delete(&mut self, lock: &'a CoveringLock, primary: &'a CoveringLock, key: Key) {
        let _ = (lock, primary, key);
        todo!()
    }

    /// Adds a difference to a total under the write-only lock of the totals.
    pub(crate) fn delta(&mut self, lock: &'a CoveringLock, key: Key, delta: XattrTotlVal) {
        let _ = (lock, key, delta);
        todo!()
    }

    /// Are there no changes?
    pub(crate) fn is_empty(&self) -> bool {
        todo!()
    }

    /// Checks everything and reads what must be known; then applies all of it. On an error nothing was changed.
    /// EINVAL: a lock does not cover its key or has not the mode that the change needs.
    pub(crate) fn apply(self, txn: &impl InTransaction) -> Result<()> {
        let _ = txn.seq();
        todo!()
    }
}
