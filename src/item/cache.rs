//! Looking up, iterating, filling and evicting cached items.
//!
//! The state of one lock's cache and its invariants are in `shard.rs`; here is what all shards share: reading on a miss,
//! the byte budget, and the lists for commit and eviction.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::dirty::DirtyList;
use super::forest::Forest;
use super::packed::Packed;
use super::roots::RootsKeeper;
use super::shard::{Inner, Known, ShardCore, Tally};
use super::{CoveringLock, Value};
use crate::block::BlockStore;
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::NetRoots;
use crate::format::{Key, KeyRange};
use crate::lock::Mode;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, Mutex, thread};

/// Changes of the roots that one read survives before the volume is called corrupt.
const STALE_TRIES: u32 = 100;
/// Items handed over at a time while scanning.
const SCAN_BATCH: usize = 64;

/// Where the roots of the last stable state of the volume come from: GET_ROOTS to the server (`spec/03 §5.6`).
pub(crate) trait RootsSource: Send + Sync {
    /// The roots of the last super block that the server wrote, asked for now.
    fn roots(&self) -> Result<NetRoots>;
}

/// Limits of [`Items`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ItemsConfig {
    /// Bytes of clean items after which some are evicted.
    pub(crate) cache_bytes: u64,
}

/// The shards with content, in the order in which eviction comes by.
#[derive(Default)]
struct Clock {
    shards: VecDeque<Arc<ShardCore>>,
    prune_at: usize,
}

/// All cached items of a mount.
pub(crate) struct Items {
    forest: Forest,
    pub(super) roots: RootsKeeper,
    limit: u64,
    clock: Mutex<Clock>,
    evicting: Mutex<()>,
    pub(super) dirty: DirtyList,
}

impl Items {
    /// An empty cache over the trees in `store`.
    pub(crate) fn new(store: Arc<BlockStore>, roots: Arc<dyn RootsSource>, config: ItemsConfig) -> Arc<Items> {
        Arc::new(Items {
            forest: Forest::new(store),
            roots: RootsKeeper::new(roots),
            limit: config.cache_bytes,
            clock: Mutex::new(Clock::default()),
            evicting: Mutex::new(()),
            dirty: DirtyList::default(),
        })
    }

    /// The item, if it exists. EINVAL if the lock does not cover the key or cannot read.
    pub(crate) fn lookup(&self, lock: &CoveringLock, key: &Key) -> Result<Option<Value>> {
        check_read(lock, key)?;
        let core = &*lock.state().core;
        core.touch();
        let packed = Packed::new(key);
        let cached = |inner: &Inner| match inner.known(&packed) {
            Known::Live(e) => Some(Some(e.value.clone())),
            Known::Absent => Some(None),
            Known::Unknown => None,
        };
        if let Some(found) = cached(&core.inner.read()) {
            return Ok(found);
        }
        let pin = core.pin();
        self.fill(lock, key)?;
        let found = cached(&core.inner.read());
        drop(pin);
        self.trim();
        // What a pinned fill has made known stays known: nobody else may drop it while the lock is held.
        found.ok_or_else(|| Error::corrupt(format!("cache of {key}"), "what was just read is unknown"))
    }

    /// The first item from `key` to the lesser of `last` and the end of the lock. `None` may mean "end of the lock".
    pub(crate) fn next(&self, lock: &CoveringLock, key: &Key, last: &Key) -> Result<Option<(Key, Value)>> {
        if *key <= lock.range().end.min(*last) {
            check_read(lock, key)?;
        }
        self.next_for_commit(lock, key, last)
    }

    /// [`Self::next`] for a commit: the lock's mode may have been lowered already, but what it covers stays this mount's
    /// until the commit is done.
    pub(crate) fn next_for_commit(&self, lock: &CoveringLock, key: &Key, last: &Key) -> Result<Option<(Key, Value)>> {
        let mut found = Vec::new();
        self.gather(lock, *key, *last, 1, &mut found)?;
        Ok(found.pop())
    }

    /// Calls `visit` for every item of `range` (clipped to the lock) in order until it breaks. No lock of this room is
    /// held during the calls.
    pub(crate) fn scan(
        &self,
        lock: &CoveringLock,
        range: KeyRange,
        visit: &mut dyn FnMut(&Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut from = range.start.max(lock.range().start);
        let mut batch = Vec::with_capacity(SCAN_BATCH);
        loop {
            if from <= range.end.min(lock.range().end) {
                check_read(lock, &from)?;
            }
            self.gather(lock, from, range.end, SCAN_BATCH, &mut batch)?;
            let more = batch.len() == SCAN_BATCH;
            for (key, value) in batch.drain(..) {
                if visit(&key, &value).is_break() || key == range.end {
                    return Ok(());
                }
                from = key.next();
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Up to `max` items from `from` to the lesser of `last` and the end of the lock, whatever its mode.
    fn gather(
        &self,
        lock: &CoveringLock,
        from: Key,
        last: Key,
        max: usize,
        found: &mut Vec<(Key, Value)>,
    ) -> Result<()> {
        let last = last.min(lock.range().end);
        if from > last {
            return Ok(());
        }
        let core = &*lock.state().core;
        core.touch();
        let (mut at, last) = (Packed::new(&from), Packed::new(&last));
        loop {
            let missing = walk(&core.inner.read(), at, last, max, found);
            let Some(missing) = missing else { return Ok(()) };
            // What was found so far is right: the lock is held, so nobody else can have put something in between.
            let pin = core.pin();
            self.fill(lock, &missing.key())?;
            let missing = walk(&core.inner.read(), missing, last, max, found);
            drop(pin);
            self.trim();
            match missing {
                Some(next) => at = next,
                None => return Ok(()),
            }
        }
    }

    /// Least key at or after `key` in any tree, from roots asked for now: a hint which lock to take next
    /// (`spec/03 §7`). Deleted items count.
    #[cfg_attr(not(test), expect(dead_code, reason = "index walks come with the archive room"))]
    pub(crate) fn next_hint(&self, key: &Key) -> Result<Option<Key>> {
        let mut tries = StaleTries::default();
        loop {
            let kept = self.roots.fresh()?;
            match kept.view(&self.forest).and_then(|view| self.forest.next_hint(&view, key)) {
                Err(e) => tries.failed(e, kept.refs())?,
                Ok(hint) => return Ok(hint),
            }
        }
    }

    /// Reads what the trees hold around `key` into the pinned shard; afterwards the key is known. [`Items::trim`] is left to
    /// the caller, for when the pin is gone.
    pub(super) fn fill(&self, lock: &CoveringLock, key: &Key) -> Result<()> {
        let core = &lock.state().core;
        let packed = Packed::new(key);
        let (widest, generation) = (lock.range(), lock.refresh_gen());
        let mut tries = StaleTries::default();
        let mut after = 0;
        loop {
            // Read barrier: sampled before the roots, compared when inserting.
            let (barrier, committed) = {
                let inner = core.inner.read();
                if !matches!(inner.known(&packed), Known::Unknown) {
                    return Ok(());
                }
                (inner.generation, inner.committed)
            };
            let kept = self.roots.get(generation, committed, after)?;
            let read = kept.view(&self.forest).and_then(|v| self.forest.newest(&v, key, &widest.start, widest));
            let (range, items) = match read {
                Ok(read) => read,
                Err(e) => {
                    tries.failed(e, kept.refs())?;
                    after = kept.serial;
                    continue;
                }
            };
            let mut inner = core.inner.write();
            if inner.generation != barrier {
                continue;
            }
            let tally = inner.fill(&range, items);
            self.list_shard(core, &mut inner);
            drop(inner);
            core.touch();
            self.dirty.cached().fetch_add(tally.bytes, Relaxed);
            return Ok(());
        }
    }

    /// A change set changed something in the shard of `lock`: what commit, eviction, bloom filter and lock have to know.
    pub(super) fn note_changed(&self, lock: &CoveringLock, inner: &mut Inner, was_clean: bool, seq: u64) {
        let core = &lock.state().core;
        if inner.bloom_epoch != self.dirty.bloom_epoch() {
            inner.bloom_epoch = self.dirty.bloom_epoch();
            self.dirty.add_bloom(&lock.range().start);
        }
        if was_clean && !inner.dirty.is_empty() {
            self.dirty.add_shard(&lock.range().start, core);
            self.list_shard(core, inner);
        }
        core.touch();
        lock.mark_dirty(seq);
    }

    /// Puts a shard that got content into the list that eviction walks.
    fn list_shard(&self, core: &Arc<ShardCore>, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.listed, true) {
            let mut clock = self.clock.lock();
            if clock.shards.len() >= clock.prune_at {
                // Shards whose lock objects went away; they were invalidated before.
                clock.shards.retain(|c| Arc::strong_count(c) > 1);
                clock.prune_at = clock.shards.len() * 2 + 1024;
            }
            clock.shards.push_back(core.clone());
        }
    }

    /// Counts a change of cached and dirty content and evicts if there is too much.
    pub(super) fn account(&self, tally: Tally) {
        self.dirty.count(tally);
        if tally.bytes != 0 {
            self.dirty.cached().fetch_add(tally.bytes, Relaxed);
        }
        self.trim();
    }

    /// Evicts if there is too much.
    #[inline]
    fn trim(&self) {
        let clean = self.dirty.cached().load(Relaxed) - self.dirty.bytes() as i64;
        let excess = clean - self.limit as i64;
        if excess > 0 {
            // Some more than needed, so that the next misses do not come here too.
            self.evict((excess + self.limit as i64 / 16) as u64);
        }
    }

    /// Evicts about `want` bytes of clean content, least recently used shards first (second chance). Shards that are in
    /// use at this moment are passed over.
    fn evict(&self, want: u64) {
        // One evictor at a time; others go on over the limit for a moment.
        let Some(_evicting) = self.evicting.try_lock() else { return };
        let mut freed = 0;
        let mut visits = self.clock.lock().shards.len() * 2;
        while freed < want && visits > 0 {
            visits -= 1;
            let Some(core) = self.clock.lock().shards.pop_front() else { break };
            if core.used.swap(false, Relaxed) {
                self.clock.lock().shards.push_back(core);
                continue;
            }
            let emptied = core.inner.try_write().is_some_and(|mut inner| {
                if core.pins.load(Relaxed) == 0 {
                    freed += inner.evict(want - freed);
                }
                inner.listed = !inner.is_empty();
                !inner.listed
            });
            if !emptied {
                self.clock.lock().shards.push_back(core);
            }
        }
        self.dirty.cached().fetch_sub(freed as i64, Relaxed);
    }

    /// Drops everything cached under a lock whose mode goes to null. The transaction that holds its changes is
    /// committed before.
    pub(crate) fn invalidate(&self, lock: &CoveringLock) {
        let core = &lock.state().core;
        let tally = core.invalidate();
        self.dirty.count(tally);
        self.dirty.cached().fetch_add(tally.bytes, Relaxed);
    }

    /// Evicts all clean content.
    #[cfg(test)]
    pub(crate) fn purge(&self) {
        for core in self.clock.lock().shards.iter() {
            core.used.store(false, Relaxed);
        }
        self.evict(u64::MAX);
    }

    /// Bytes of all cached items.
    #[cfg(test)]
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.dirty.cached().load(Relaxed).max(0) as u64
    }

    /// Number of dirty items.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn dirty_items(&self) -> u64 {
        self.dirty.items()
    }

    /// How often an item became dirty in this transaction, or was promised, those included that are gone again.
    pub(crate) fn dirtied(&self) -> u64 {
        self.dirty.dirtied()
    }

    /// Number of items that the next commit will write, with those promised.
    pub(crate) fn expected_items(&self) -> u64 {
        self.dirty.items() + self.dirty.promised()
    }

    /// Bytes that they take in memory, which is more than they take in blocks.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty.bytes()
    }
}

/// Collects live items from `at` to `last`; returns the first unknown key, if it comes before the end.
fn walk(inner: &Inner, mut at: Packed, last: Packed, max: usize, found: &mut Vec<(Key, Value)>) -> Option<Packed> {
    while found.len() < max {
        let stop = match inner.known.find(&at) {
            Some((_, end)) => end.min(last),
            // Outside the known ranges only the entries themselves are known.
            None if inner.items.contains_key(&at) => at,
            None => return Some(at),
        };
        for (key, entry) in inner.items.range(at..=stop) {
            if entry.live() {
                found.push((key.key(), entry.value.clone()));
                if found.len() == max {
                    return None;
                }
            }
        }
        if stop == last {
            return None;
        }
        at = stop.next();
    }
    None
}

/// EINVAL unless `key` may be read under the lock.
#[inline]
pub(super) fn check_read(lock: &CoveringLock, key: &Key) -> Result<()> {
    let readable = matches!(lock.mode(), Mode::Read | Mode::Write);
    if readable && lock.range().contains(key) { Ok(()) } else { refuse(lock, key, "read") }
}

/// EINVAL for an access that the lock's mode or range does not allow.
#[cold]
pub(super) fn refuse(lock: &CoveringLock, key: &Key, what: &str) -> Result<()> {
    tracing::error!(lock = ?lock.name(), mode = ?lock.mode(), %key, what, "item access without a lock that serves");
    fail(Errno::EINVAL)
}

/// Decides about reads that found reused blocks (`spec/02 §2.3`): another try with newer roots, or corruption.
#[derive(Default)]
struct StaleTries {
    count: u32,
    last: Option<(crate::format::layout::BlockRef, crate::format::layout::BlockRef)>,
}

impl StaleTries {
    fn failed(
        &mut self,
        error: Error,
        refs: (crate::format::layout::BlockRef, crate::format::layout::BlockRef),
    ) -> Result<()> {
        let Error::Stale { blkno, seq } = error else { return Err(error) };
        if self.last == Some(refs) {
            return Err(Error::corrupt(
                format!("block {blkno}"),
                format!("does not hold version {seq:#x}, which the current roots refer to"),
            ));
        }
        self.count += 1;
        if self.count > STALE_TRIES {
            return Err(Error::corrupt(format!("block {blkno}"), format!("stale below {STALE_TRIES} roots in a row")));
        }
        self.last = Some(refs);
        if self.count > 1 {
            thread::sleep(std::time::Duration::from_millis(u64::from(self.count.min(20))));
        }
        Ok(())
    }
}
