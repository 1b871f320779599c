//! The dirty items of the open transaction: which shards have some, how much, and handing them to the commit in order.
//!
//! **Invariants.**
//! 1. A shard is in the list exactly while its own list of dirty keys is not empty.
//! 2. Between [`Items::freeze`] and [`Items::committed`] nothing becomes dirty: the transaction excludes holders. So every
//!    try of a commit sees the same items.

use crossbeam::utils::CachePadded;

use super::packed::Packed;
use super::shard::{DELTA, ShardCore, TOMBSTONE, Tally};
use super::{Items, Value};
use crate::format::Key;
use crate::format::consts::ITEM_FLAG_DELETION;
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use crate::sync::pipeline::{Put, pipeline};
use crate::sync::{Arc, Mutex};

/// Items gathered before they are handed to the tree in one go.
const CHUNK: usize = 2048;
/// From so many items on they are gathered on one thread and stored on another.
const MANY: u64 = 4 * CHUNK as u64;

/// What all shards hold together. Every change counts here, so it is one line of memory, and nothing else is in it.
#[derive(Default)]
struct Counts {
    /// Bytes of all items.
    cached: AtomicI64,
    dirty_items: AtomicI64,
    dirty_bytes: AtomicI64,
    /// Items that became dirty in this transaction, whether they still are or not.
    dirtied: AtomicU64,
    /// Items that will become dirty in the commit.
    promised: AtomicU64,
}

/// What all shards have dirty together.
#[derive(Default)]
pub(super) struct DirtyList {
    counts: CachePadded<Counts>,
    /// Shards with the start of their locks.
    shards: Mutex<Vec<(Packed, Arc<ShardCore>)>>,
    /// Where the commit will change items, as far as [`Items::newly_dirty`] has not given it.
    promised: Mutex<Vec<Key>>,
    /// Starts of locks whose bloom bits the next commit sets.
    bloom: Mutex<Vec<Key>>,
    /// Rises when a new log tree starts, or when the bloom block of this one was dropped.
    bloom_epoch: AtomicU64,
}

impl DirtyList {
    pub(super) fn items(&self) -> u64 {
        self.counts.dirty_items.load(Relaxed).max(0) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.counts.dirty_bytes.load(Relaxed).max(0) as u64
    }

    pub(super) fn dirtied(&self) -> u64 {
        self.counts.dirtied.load(Relaxed)
    }

    pub(super) fn promised(&self) -> u64 {
        self.counts.promised.load(Relaxed)
    }

    /// Bytes of all cached items, dirty or not.
    pub(super) fn cached(&self) -> &AtomicI64 {
        &self.counts.cached
    }

    pub(super) fn count(&self, t: Tally) {
        if t.dirty_items != 0 {
            self.counts.dirty_items.fetch_add(t.dirty_items, Relaxed);
        }
        if t.dirty_bytes != 0 {
            self.counts.dirty_bytes.fetch_add(t.dirty_bytes, Relaxed);
        }
        if t.dirtied != 0 {
            self.counts.dirtied.fetch_add(t.dirtied, Relaxed);
        }
    }

    /// The shard got its first dirty item of this transaction.
    pub(super) fn add_shard(&self, start: &Key, core: &Arc<ShardCore>) {
        self.shards.lock().push((Packed::new(start), core.clone()));
    }

    /// Bits of locks are noted once an epoch; epoch 0 is "never".
    pub(super) fn bloom_epoch(&self) -> u64 {
        self.bloom_epoch.load(Relaxed) + 1
    }

    pub(super) fn add_bloom(&self, start: &Key) {
        self.bloom.lock().push(*start);
    }
}

/// A dirty item as the log tree gets it.
#[derive(Debug)]
pub(crate) struct DirtyItem {
    /// Key.
    pub(crate) key: Key,
    /// Version.
    pub(crate) seq: u64,
    /// Deletion flag.
    pub(crate) flags: u8,
    /// Value.
    pub(crate) value: Value,
}

/// All that the open transaction changed, frozen for its commit.
pub(crate) struct DirtyBatch {
    shards: Vec<(Packed, Arc<ShardCore>)>,
    bloom: Vec<Key>,
    items: u64,
}

impl DirtyBatch {
    /// Starts of the locks whose bloom bits have to be set.
    pub(crate) fn bloom_keys(&self) -> &[Key] {
        &self.bloom
    }

    /// Calls `store` with all dirty items in key order, in chunks, until it fails. It must not use items itself.
    pub(crate) fn for_each_chunk<E>(&self, mut store: impl FnMut(&[DirtyItem]) -> Result<(), E>) -> Result<(), E> {
        pipeline(self.items >= MANY, |out| self.gather(out), |chunk: Vec<DirtyItem>| store(&chunk))
    }

    fn gather(&self, out: &mut Put<'_, Vec<DirtyItem>>) {
        let size = CHUNK.min(self.items as usize);
        let mut chunk = Vec::with_capacity(size);
        for (_, core) in &self.shards {
            let gathered = core.inner.read().for_each_dirty(|key, entry| {
                debug_assert!(!entry.is(TOMBSTONE) || !entry.is(DELTA));
                chunk.push(DirtyItem {
                    key: key.key(),
                    seq: entry.seq,
                    flags: if entry.is(TOMBSTONE) { ITEM_FLAG_DELETION } else { 0 },
                    value: entry.value.clone(),
                });
                let wanted = chunk.len() < CHUNK || out(std::mem::replace(&mut chunk, Vec::with_capacity(size)));
                if wanted { Ok(()) } else { Err(()) }
            });
            if gathered.is_err() {
                return;
            }
        }
        if !chunk.is_empty() {
            out(chunk);
        }
    }
}

impl Items {
    /// What the commit has to write. Holders are excluded until [`Items::committed`].
    pub(crate) fn freeze(&self) -> DirtyBatch {
        let mut shards = self.dirty.shards.lock().clone();
        shards.sort_unstable_by_key(|(start, _)| *start);
        DirtyBatch { shards, bloom: self.dirty.bloom.lock().clone(), items: self.dirty.items() }
    }

    /// The server answered the commit of `batch`: its items are clean. `forget_bloom`: the bits that were set so far do
    /// not hold any more, because a new log tree starts or the bloom block was dropped.
    pub(crate) fn committed(&self, batch: &DirtyBatch, forget_bloom: bool) {
        // Before anything is cleaned and could be evicted, older roots become unusable (`spec/03 §8.3`).
        let commit = self.roots.commit_answered();
        self.dirty.shards.lock().clear();
        self.dirty.bloom.lock().clear();
        if forget_bloom {
            self.forget_bloom();
        }
        let mut tally = Tally::default();
        for (_, core) in &batch.shards {
            tally.add(core.clean(commit));
        }
        self.dirty.promised.lock().clear();
        self.dirty.counts.promised.store(0, Relaxed);
        self.dirty.counts.dirtied.store(0, Relaxed);
        self.account(tally);
    }

    /// The commit of the open transaction, which is held, will change items at or beside these keys, under locks that the mount
    /// has. Until then they count as items that became dirty.
    pub(crate) fn promise(&self, keys: impl Iterator<Item = Key>) {
        let mut promised = self.dirty.promised.lock();
        let before = promised.len();
        promised.extend(keys);
        let new = (promised.len() - before) as u64;
        drop(promised);
        self.dirty.counts.promised.fetch_add(new, Relaxed);
        self.dirty.counts.dirtied.fetch_add(new, Relaxed);
    }

    /// The keys that became dirty, or were promised, since the last call in this transaction, in order. Some may be gone again.
    ///
    /// All that [`Items::dirtied`] counted before the call are among those given so far.
    pub(crate) fn newly_dirty(&self) -> Vec<Key> {
        let shards = self.dirty.shards.lock().clone();
        let mut keys: Vec<Packed> = std::mem::take(&mut *self.dirty.promised.lock()).iter().map(Packed::new).collect();
        for (_, core) in &shards {
            let inner = &mut *core.inner.write();
            keys.extend_from_slice(&inner.dirty[inner.given..]);
            inner.given = inner.dirty.len();
        }
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter().map(Packed::key).collect()
    }

    /// No lock's bits are set in the bloom block of the log tree that is open now.
    pub(crate) fn forget_bloom(&self) {
        self.dirty.bloom_epoch.fetch_add(1, Relaxed);
    }

    /// Has the open transaction changed items?
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.shards.lock().is_empty()
    }
}
