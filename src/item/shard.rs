//! The item cache of one lock.
//!
//! **Problem.** Items are cached strictly coherently under cluster locks (`spec/03 §8`): within a range covered by a
//! granted lock a node knows a subset of the key space for which presence *and absence* are certain. A global tree of
//! cached items makes every split, eviction and invalidation a matter of everybody.
//!
//! **Idea.** Lock ranges are disjoint, so each lock has its own ordered map, its own set of known ranges and its own
//! list of dirty keys. Invalidating a lock drops one map.
//!
//! **Invariants.**
//! 1. A key is *known* if it has an entry, or if it lies in a known range; a known key without entry does not exist.
//! 2. An entry always counts before anything that a tree says about its key (it is newer or equal).
//! 3. Dirty entries are never evicted. They leave the dirty state only in [`ShardCore::clean`], while no transaction is
//!    held.
//! 4. `generation` rises whenever entries are cleaned or dropped by invalidation. A reader that worked without the shard's
//!    lock discards what it read if the generation moved (read barrier, `spec/03 §8.3`).
//! 5. In write-only use nothing is ever known: entries only wait for the commit and are dropped by it.
//!
//! It does not read trees and knows no lock modes; `cache.rs` and `change.rs` do.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

use zerocopy::{FromBytes, IntoBytes};

use super::packed::{Packed, RangeSet};
use super::value::Value;
use crate::format::layout::XattrTotlVal;
use crate::format::{Key, KeyRange};
use crate::lock::Protected;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use crate::sync::{Arc, RwLock};

/// Must be written into the log tree by the next commit.
pub(super) const DIRTY: u8 = 1;
/// A version may exist in some tree, so deleting the item needs a deletion item.
pub(super) const PERSISTENT: u8 = 2;
/// Deleted; waits to be written as a deletion item.
pub(super) const TOMBSTONE: u8 = 4;
/// The value is a difference that is added to what the trees hold.
pub(super) const DELTA: u8 = 8;

/// What an entry costs beside its value, for the byte budget.
const ENTRY_BYTES: u64 = 112;

/// One cached item.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) seq: u64,
    pub(super) flags: u8,
}

impl Entry {
    #[inline]
    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Exists for readers.
    #[inline]
    pub(super) fn live(&self) -> bool {
        self.flags & TOMBSTONE == 0
    }

    #[inline]
    fn bytes(&self) -> u64 {
        ENTRY_BYTES + self.value.len() as u64
    }

    /// Becomes something else that is dirty. Gives what that changes, and whether it was dirty before.
    fn replace(&mut self, value: Value, seq: u64, flags: u8) -> (Tally, bool) {
        let (old, was_dirty) = (self.bytes() as i64, self.is(DIRTY));
        *self = Entry { value, seq, flags: flags | DIRTY };
        let new = self.bytes() as i64;
        let counted = if was_dirty { old } else { 0 };
        let t = Tally {
            bytes: new - old,
            dirty_items: i64::from(!was_dirty),
            dirty_bytes: new - counted,
            ..Tally::default()
        };
        (t, was_dirty)
    }

    /// What the answered commit makes of a dirty entry: clean, or nothing (false).
    fn clean(&mut self, blind: bool, t: &mut Tally) -> bool {
        let size = self.bytes() as i64;
        t.dirty_items -= 1;
        t.dirty_bytes -= size;
        let stays = !blind && self.live() && !self.is(DELTA);
        if stays {
            self.flags = PERSISTENT;
        } else {
            t.bytes -= size;
        }
        stays
    }
}

/// What is known of a key without reading.
pub(super) enum Known<'a> {
    /// The item, live.
    Live(&'a Entry),
    /// Certain not to exist.
    Absent,
    /// The trees have to be asked.
    Unknown,
}

/// How much an operation changed, for the counters that all shards share.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tally {
    pub(super) bytes: i64,
    pub(super) dirty_items: i64,
    pub(super) dirty_bytes: i64,
    /// Items that became dirty; unlike `dirty_items` it does not fall when one goes again.
    pub(super) dirtied: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        self.bytes += other.bytes;
        self.dirty_items += other.dirty_items;
        self.dirty_bytes += other.dirty_bytes;
        self.dirtied += other.dirtied;
    }
}

/// The part of a shard that its lock protects.
#[derive(Default, Debug)]
pub(super) struct Inner {
    pub(super) items: BTreeMap<Packed, Entry>,
    pub(super) known: RangeSet,
    /// Keys that became dirty in the open transaction, in order of the changes; may hold keys that are gone again.
    pub(super) dirty: Vec<Packed>,
    /// How many of them [`Items::newly_dirty`](super::Items::newly_dirty) has given.
    pub(super) given: usize,
    /// Bytes of all entries, as counted in the shared budget.
    pub(super) bytes: u64,
    /// Read barrier (invariant 4).
    pub(super) generation: u64,
    /// Commit (number of answered commits) that last took items from here; trees read must be at least as new.
    pub(super) committed: u64,
    /// The log tree for which the bloom bits of this lock are set or pending.
    pub(super) bloom_epoch: u64,
    /// Changed without reading under a write-only lock (invariant 5).
    pub(super) blind: bool,
    /// In the list that eviction walks.
    pub(super) listed: bool,
    /// Where the last partial eviction stopped.
    pub(super) hand: Option<Packed>,
}

impl Inner {
    #[inline]
    pub(super) fn known(&self, key: &Packed) -> Known<'_> {
        match self.items.get(key) {
            Some(e) if e.live() => Known::Live(e),
            Some(_) => Known::Absent,
            None if self.known.find(key).is_some() => Known::Absent,
            None => Known::Unknown,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.known.len() == 0
    }

    /// Stores an entry that is part of the open transaction.
    pub(super) fn put_dirty(&mut self, key: Packed, value: Value, seq: u64, flags: u8) -> Tally {
        let entry = Entry { value, seq, flags: flags | DIRTY };
        let size = entry.bytes() as i64;
        let old = self.items.insert(key, entry);
        let mut t = Tally { bytes: size, dirty_items: 1, dirty_bytes: size, ..Tally::default() };
        match old {
            Some(old) => {
                t.bytes -= old.bytes() as i64;
                if old.is(DIRTY) {
                    t.dirty_items -= 1;
                    t.dirty_bytes -= old.bytes() as i64;
                } else {
                    self.dirty.push(key);
                }
            }
            None => self.dirty.push(key),
        }
        self.bytes = (self.bytes as i64 + t.bytes) as u64;
        t
    }

    /// Creates or overwrites. Whether a deletion must be written later is inherited from what was there; if that is
    /// unknown, it must.
    pub(super) fn store(&mut self, key: Packed, value: Value, seq: u64) -> Tally {
        match self.items.entry(key) {
            MapEntry::Occupied(slot) => {
                let e = slot.into_mut();
                let flags = e.flags & PERSISTENT;
                let (t, was_dirty) = e.replace(value, seq, flags);
                self.note_replaced(key, t, was_dirty)
            }
            MapEntry::Vacant(slot) => {
                let flags = if self.known.find(&key).is_some() { 0 } else { PERSISTENT };
                let size = slot.insert(Entry { value, seq, flags: flags | DIRTY }).bytes() as i64;
                self.dirty.push(key);
                self.bytes += size as u64;
                Tally { bytes: size, dirty_items: 1, dirty_bytes: size, ..Tally::default() }
            }
        }
    }

    /// Deletes an item that exists.
    pub(super) fn delete(&mut self, key: Packed, seq: u64) -> Tally {
        match self.items.entry(key) {
            MapEntry::Occupied(slot) if slot.get().is(PERSISTENT) => {
                let (t, was_dirty) = slot.into_mut().replace(Value::EMPTY, seq, PERSISTENT | TOMBSTONE);
                self.note_replaced(key, t, was_dirty)
            }
            MapEntry::Occupied(slot) => {
                let old = slot.remove();
                self.note_removed(&old)
            }
            MapEntry::Vacant(_) => Tally::default(),
        }
    }

    fn note_replaced(&mut self, key: Packed, t: Tally, was_dirty: bool) -> Tally {
        if !was_dirty {
            self.dirty.push(key);
        }
        self.bytes = (self.bytes as i64 + t.bytes) as u64;
        t
    }

    fn note_removed(&mut self, old: &Entry) -> Tally {
        let size = old.bytes() as i64;
        self.bytes -= size as u64;
        let dirty = i64::from(old.is(DIRTY));
        Tally { bytes: -size, dirty_items: -dirty, dirty_bytes: -size * dirty, ..Tally::default() }
    }

    /// Adds a difference to the one that waits, if there is one; together they may come to nothing.
    pub(super) fn add_delta(&mut self, key: Packed, delta: XattrTotlVal, seq: u64) -> Tally {
        let mut sum = delta;
        let waiting = self.items.get(&key).and_then(|e| XattrTotlVal::read_from_bytes(&e.value).ok());
        if let Some(w) = waiting {
            sum.total = w.total.get().wrapping_add(delta.total.get()).into();
            sum.count = w.count.get().wrapping_add(delta.count.get()).into();
        }
        if sum.total.get() == 0 && sum.count.get() == 0 {
            return self.forget(&key);
        }
        self.put_dirty(key, Value::new(sum.as_bytes()), seq, DELTA)
    }

    /// Removes an entry without a trace.
    pub(super) fn forget(&mut self, key: &Packed) -> Tally {
        match self.items.remove(key) {
            Some(old) => self.note_removed(&old),
            None => Tally::default(),
        }
    }

    /// Adds what was read from the trees for the whole of `range`: `items` sorted, live ones only.
    pub(super) fn fill(&mut self, range: &KeyRange, items: Vec<(Packed, u64, Value)>) -> Tally {
        let mut t = Tally::default();
        for (key, seq, value) in items {
            // Known parts are newer or equal: what is absent there stays absent (invariant 2).
            if self.known.find(&key).is_some() {
                continue;
            }
            if let MapEntry::Vacant(slot) = self.items.entry(key) {
                let e = slot.insert(Entry { value, seq, flags: PERSISTENT });
                t.bytes += e.bytes() as i64;
            }
        }
        self.known.insert(range);
        self.bytes += t.bytes as u64;
        t
    }

    /// Drops up to about `want` bytes of clean content; returns how much was dropped. Absence knowledge goes with it.
    pub(super) fn evict(&mut self, want: u64) -> u64 {
        let before = self.bytes;
        if want >= self.bytes && self.dirty.is_empty() {
            self.items = BTreeMap::new();
            self.known.clear();
            self.bytes = 0;
            self.hand = None;
            return before;
        }
        let from = self.hand.take().unwrap_or(Packed::new(&Key::ZEROS));
        let mut drop = Vec::new();
        let mut freed = 0;
        let mut last = Packed::new(&Key::ONES);
        for (k, e) in self.items.range(from..) {
            if freed >= want {
                last = *k;
                self.hand = Some(k.next());
                if !e.is(DIRTY) {
                    drop.push(*k);
                }
                break;
            }
            if !e.is(DIRTY) {
                freed += e.bytes();
                drop.push(*k);
            }
        }
        self.known.remove(from, last);
        for k in &drop {
            self.forget(k);
        }
        before - self.bytes
    }

    /// Calls `visit` with the dirty entries in order, each once, until it fails.
    pub(super) fn for_each_dirty<E>(&self, mut visit: impl FnMut(&Packed, &Entry) -> Result<(), E>) -> Result<(), E> {
        if self.dirty.len() > self.items.len() / 4 {
            return self.items.iter().filter(|(_, e)| e.is(DIRTY)).try_for_each(|(k, e)| visit(k, e));
        }
        let mut keys = self.dirty.clone();
        keys.sort_unstable();
        keys.dedup();
        for k in &keys {
            if let Some(e) = self.items.get(k).filter(|e| e.is(DIRTY)) {
                visit(k, e)?;
            }
        }
        Ok(())
    }
}

/// One shard, shared by its lock and by the lists of dirty and of evictable shards.
#[derive(Default, Debug)]
pub(super) struct ShardCore {
    pub(super) inner: RwLock<Inner>,
    /// Used since eviction came by last.
    pub(super) used: AtomicBool,
    /// Operations that need what they read to stay until they are through.
    pub(super) pins: AtomicU32,
}

impl ShardCore {
    /// Marks the shard as recently used, without writing to shared memory if it is marked already.
    #[inline]
    pub(super) fn touch(&self) {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Keeps eviction away. Taken before reading under the shard's lock and looked at by eviction under the same lock.
    pub(super) fn pin(&self) -> Pin<'_> {
        self.pins.fetch_add(1, Relaxed);
        Pin(self)
    }

    /// The commit that holds the dirty entries was answered: tombstones and differences leave, all others become
    /// clean and persistent. A shard in write-only use is emptied (invariant 5).
    pub(super) fn clean(&self, commit: u64) -> Tally {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        inner.generation += 1;
        inner.committed = commit;
        let dirty = std::mem::take(&mut inner.dirty);
        inner.given = 0;
        let blind = inner.blind;
        let mut t = Tally::default();
        if dirty.len() > inner.items.len() / 4 {
            // One pass over the map instead of a search for every key.
            inner.items.retain(|_, e| !e.is(DIRTY) || e.clean(blind, &mut t));
        } else {
            for k in dirty {
                if let MapEntry::Occupied(mut slot) = inner.items.entry(k)
                    && slot.get().is(DIRTY)
                    && !slot.get_mut().clean(blind, &mut t)
                {
                    slot.remove();
                }
            }
        }
        inner.bytes = (inner.bytes as i64 + t.bytes) as u64;
        t
    }

    /// Drops everything. Dirty entries are lost: the caller committed before.
    pub(super) fn invalidate(&self) -> Tally {
        let mut inner = self.inner.write();
        let lost = inner.items.values().filter(|e| e.is(DIRTY)).fold(Tally::default(), |mut t, e| {
            t.dirty_items -= 1;
            t.dirty_bytes -= e.bytes() as i64;
            t
        });
        let t = Tally { bytes: -(inner.bytes as i64), ..lost };
        inner.generation += 1;
        inner.items = BTreeMap::new();
        inner.known.clear();
        inner.dirty = Vec::new();
        inner.given = 0;
        inner.bytes = 0;
        inner.hand = None;
        inner.blind = false;
        t
    }
}

/// What was read stays cached while this exists.
pub(super) struct Pin<'a>(&'a ShardCore);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Relaxed);
    }
}

/// What a lock protects: the cached items of its range.
#[derive(Default, Debug)]
pub(crate) struct ItemShard {
    pub(super) core: Arc<ShardCore>,
}

impl Protected for ItemShard {}
