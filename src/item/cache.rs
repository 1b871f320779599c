//! Looking up, iterating, filling and evicting cached items.

use std::ops::ControlFlow;

use super::{CoveringLock, Value};
use crate::block::BlockStore;
use crate::error::Result;
use crate::format::layout::NetRoots;
use crate::format::{Key, KeyRange};
use crate::sync::Arc;

/// Where the roots of the last stable state of the volume come from: GET_ROOTS to the server (`spec/03 §5.6`).
pub(crate) trait RootsSource: Send + Sync {
    /// The roots of the last super block that the server wrote, asked for now.
    fn roots(&self) -> Result<NetRoots>;
}

/// Limits of [`Items`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ItemsConfig {
    /// Bytes of cached items after which clean ones are evicted. Dirty items count but stay.
    pub(crate) cache_bytes: u64,
}

/// All cached items of a mount.
pub(crate) struct Items {
    _x: (),
}

impl Items {
    /// An empty cache over the trees in `store`.
    pub(crate) fn new(store: Arc<BlockStore>, roots: Arc<dyn RootsSource>, config: ItemsConfig) -> Arc<Items> {
        let _ = (store, roots, config);
        todo!()
    }

    /// The item, if it exists. EINVAL if the lock does not cover the key or cannot read.
    pub(crate) fn lookup(&self, lock: &CoveringLock, key: &Key) -> Result<Option<Value>> {
        let _ = (lock, key);
        todo!()
    }

    /// The first item from `key` to the lesser of `last` and the end of the lock. `None` may mean "end of the lock".
    pub(crate) fn next(&self, lock: &CoveringLock, key: &Key, last: &Key) -> Result<Option<(Key, Value)>> {
        let _ = (lock, key, last);
        todo!()
    }

    /// Calls `visit` for every item of `range` (clipped to the lock) in order until it breaks. No lock of this room is
    /// held during the calls.
    pub(crate) fn scan(
        &self,
        lock: &CoveringLock,
        range: KeyRange,
        visit: &mut dyn FnMut(&Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = (lock, range, visit);
        todo!()
    }

    /// Least key at or after `key` in any tree, from roots asked for now: a hint which lock to take next
    /// (`spec/03 §7`). Deleted items count.
    pub(crate) fn next_hint(&self, key: &Key) -> Result<Option<Key>> {
        let _ = key;
        todo!()
    }

    /// Drops everything cached under a lock whose mode goes to null. The transaction that holds its changes is
    /// committed before.
    pub(crate) fn invalidate(&self, lock: &CoveringLock) {
        let _ = lock;
        todo!()
    }

    /// Evicts all clean content (low memory, tests).
    pub(crate) fn purge(&self) {
        todo!()
    }

    /// Bytes of all cached items.
    pub(crate) fn cached_bytes(&self) -> u64 {
        todo!()
    }

    /// Number of items that the next commit will write.
    pub(crate) fn dirty_items(&self) -> u64 {
        todo!()
    }
}
