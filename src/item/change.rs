//! Change sets: all item changes of one operation, checked first, then applied without a way to fail.
//!
//! **Problem.** An operation such as creating a file changes about nine items under five locks. Undoing some of them when a
//! later one fails is where the original has faults (defect 23).
//!
//! **Idea.** Changes are collected. [`ChangeSet::apply`] first makes everything known that has to be (which may read
//! trees), takes the shards of the locks in a fixed order, and checks all changes in sequence; only then it changes
//! anything, by steps that cannot fail. Forced changes need no check and no look at others, so they come last, one by one.

use smallvec::SmallVec;

use super::cache::refuse;
use super::packed::Packed;
use super::shard::{DELTA, Inner, Known, PERSISTENT, TOMBSTONE, Tally};
use super::{CoveringLock, Items, Value};
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::BTREE_MAX_VALUE;
use crate::format::layout::XattrTotlVal;
use crate::format::{Key, keys};
use crate::lock::Mode;
use crate::sync::{HashMap, RwLockWriteGuard};

/// Sets up to this size look for earlier changes of a key by comparing.
const SMALL_SET: usize = 16;

/// Proof that the open transaction is held, so that it cannot be committed under the caller's hands.
pub(crate) trait InTransaction {
    /// Sequence of the open transaction.
    fn seq(&self) -> u64;

    /// Is this the commit itself? It may change what a lock covers although its mode has been lowered already: nobody else
    /// is given the lock before the commit is done.
    fn commits(&self) -> bool {
        false
    }
}

#[derive(Debug)]
enum Op {
    Create(Value),
    Update(Value),
    Put(Value),
    Delete,
    ForceCreate(Value),
    ForceDelete,
    Delta(XattrTotlVal),
}

impl Op {
    /// Does the change depend on whether the item exists?
    fn reads(&self) -> bool {
        matches!(self, Op::Create(_) | Op::Update(_) | Op::Delete)
    }

    /// Is there an item after it?
    fn leaves_item(&self) -> bool {
        !matches!(self, Op::Delete | Op::ForceDelete)
    }

    /// Is it made without looking at anything?
    fn is_forced(&self) -> bool {
        matches!(self, Op::ForceCreate(_) | Op::ForceDelete)
    }

    fn mode(&self) -> Mode {
        match self {
            Op::Create(_) | Op::Update(_) | Op::Put(_) | Op::Delete => Mode::Write,
            Op::ForceCreate(_) | Op::ForceDelete | Op::Delta(_) => Mode::WriteOnly,
        }
    }

    fn value(&self) -> &[u8] {
        match self {
            Op::Create(v) | Op::Update(v) | Op::Put(v) | Op::ForceCreate(v) => v,
            _ => &[],
        }
    }
}

struct Change<'a> {
    lock: &'a CoveringLock,
    primary: Option<&'a CoveringLock>,
    key: Key,
    packed: Packed,
    op: Op,
}

/// Item changes to be applied together.
///
/// Later changes of a set see the earlier ones. Building a set does nothing; dropping it undoes nothing because
/// nothing was done.
pub(crate) struct ChangeSet<'a> {
    items: &'a Items,
    changes: SmallVec<[Change<'a>; 12]>,
}

/// The locks of a set in the order of their names. Several shards are locked at once only here, so there is no cycle.
type Locks<'a> = SmallVec<[&'a CoveringLock; 8]>;
/// Their shards, locked.
type Shards<'a> = SmallVec<[RwLockWriteGuard<'a, Inner>; 8]>;

impl<'a> ChangeSet<'a> {
    /// No changes yet.
    pub(crate) fn new(items: &'a Items) -> ChangeSet<'a> {
        ChangeSet { items, changes: SmallVec::new() }
    }

    fn push(&mut self, lock: &'a CoveringLock, primary: Option<&'a CoveringLock>, key: Key, op: Op) {
        self.changes.push(Change { lock, primary, key, packed: Packed::new(&key), op });
    }

    /// A new item under a write lock; `apply` fails with EEXIST if it exists.
    pub(crate) fn create(&mut self, lock: &'a CoveringLock, key: Key, value: Value) {
        self.push(lock, None, key, Op::Create(value));
    }

    /// A new value under a write lock; `apply` fails with ENOENT if the item does not exist.
    pub(crate) fn update(&mut self, lock: &'a CoveringLock, key: Key, value: Value) {
        self.push(lock, None, key, Op::Update(value));
    }

    /// Creates or overwrites under a write lock, without reading.
    pub(crate) fn put(&mut self, lock: &'a CoveringLock, key: Key, value: Value) {
        self.push(lock, None, key, Op::Put(value));
    }

    /// Deletes under a write lock; `apply` fails with ENOENT if the item does not exist.
    pub(crate) fn delete(&mut self, lock: &'a CoveringLock, key: Key) {
        self.push(lock, None, key, Op::Delete);
    }

    /// Creates or overwrites under a write-only lock. `primary` is the write lock that orders changes of the key between
    /// nodes: that of the inode.
    pub(crate) fn force_create(&mut self, lock: &'a CoveringLock, primary: &'a CoveringLock, key: Key, value: Value) {
        self.push(lock, Some(primary), key, Op::ForceCreate(value));
    }

    /// Deletes under a write-only lock whether the item exists or not.
    pub(crate) fn force_delete(&mut self, lock: &'a CoveringLock, primary: &'a CoveringLock, key: Key) {
        self.push(lock, Some(primary), key, Op::ForceDelete);
    }

    /// Adds a difference to a total under the write-only lock of the totals. A zero difference is not logged.
    pub(crate) fn delta(&mut self, lock: &'a CoveringLock, key: Key, delta: XattrTotlVal) {
        if delta.total.get() != 0 || delta.count.get() != 0 {
            self.push(lock, None, key, Op::Delta(delta));
        }
    }

    /// Checks everything and reads what must be known; then applies all of it. On an error nothing was changed.
    /// EINVAL: a lock does not cover its key or has not the mode that the change needs.
    pub(crate) fn apply(mut self, txn: &impl InTransaction) -> Result<()> {
        for c in &self.changes {
            c.check_locks(txn.commits())?;
        }
        let together = self.changes.iter().filter(|c| !c.op.is_forced());
        let mut locks: Locks = together.map(|c| c.lock).collect();
        locks.sort_unstable_by_key(|l| l.name());
        locks.dedup_by_key(|l| l.name());
        // Of a forced change the number means nothing.
        let find = |c: &Change| locks.partition_point(|l| l.name() < c.lock.name());
        let shard_of: SmallVec<[usize; 12]> = self.changes.iter().map(find).collect();

        let mut pins = SmallVec::<[_; 8]>::new();
        let mut shards = loop {
            let shards: Shards = locks.iter().map(|l| l.state().core.inner.write()).collect();
            match self.check(&shards, &shard_of)? {
                None => break shards,
                Some(missing) => {
                    drop(shards);
                    if pins.is_empty() {
                        // What is read now stays until the set is applied.
                        pins.extend(locks.iter().map(|l| l.state().core.pin()));
                    }
                    let c = &self.changes[missing];
                    self.items.fill(c.lock, &c.key)?;
                }
            }
        };
        let items = self.items;
        let clean: SmallVec<[bool; 8]> = shards.iter().map(|s| s.dirty.is_empty()).collect();
        let mut tally = self.apply_together(txn.seq(), &mut shards, &shard_of);
        for ((lock, inner), was_clean) in locks.iter().zip(&mut shards).zip(clean) {
            items.note_changed(lock, inner, was_clean, txn.seq());
        }
        drop(shards);
        drop(pins);
        tally.add(self.apply_forced(txn.seq()));
        items.account(tally);
        Ok(())
    }

    /// Phase 1 under the shard locks. Returns the index of a change whose key has to be read first.
    fn check(&self, shards: &Shards, shard_of: &[usize]) -> Result<Option<usize>> {
        // What earlier changes of the set make of a key, if there are too many to compare with all.
        let mut after: HashMap<Packed, bool> = HashMap::default();
        let small = self.changes.len() <= SMALL_SET;
        for (i, (c, shard)) in self.changes.iter().zip(shard_of).enumerate() {
            if c.op.is_forced() {
                continue;
            }
            let inner = &shards[*shard];
            if c.op.reads() {
                let earlier = if small {
                    let before = self.changes[..i].iter().rev().find(|p| p.packed == c.packed);
                    before.map(|p| p.op.leaves_item())
                } else {
                    after.get(&c.packed).copied()
                };
                let live = match (earlier, inner.known(&c.packed)) {
                    (Some(live), _) => live,
                    (None, Known::Live(_)) => true,
                    (None, Known::Absent) => false,
                    (None, Known::Unknown) => return Ok(Some(i)),
                };
                match (&c.op, live) {
                    (Op::Create(_), true) => return fail(Errno::EEXIST),
                    (Op::Update(_) | Op::Delete, false) => return fail(Errno::ENOENT),
                    _ => {}
                }
            }
            if !small {
                after.insert(c.packed, c.op.leaves_item());
            }
            if matches!(c.op, Op::Delta(_)) && inner.items.get(&c.packed).is_some_and(|e| !e.is(DELTA)) {
                return Err(Error::corrupt(format!("total {}", c.key), "cached as an ordinary item"));
            }
        }
        Ok(None)
    }

    /// Phase 2: cannot fail.
    fn apply_together(&mut self, txn_seq: u64, shards: &mut Shards, shard_of: &[usize]) -> Tally {
        let mut tally = Tally::default();
        for (c, shard) in self.changes.iter_mut().zip(shard_of) {
            if !c.op.is_forced() {
                let inner = &mut *shards[*shard];
                inner.blind |= c.op.mode() == Mode::WriteOnly;
                tally.add(c.store(txn_seq, inner));
            }
        }
        tally
    }

    /// Phase 3, the forced changes: nobody reads what a write-only lock covers, the inode's lock orders changes of a key, and
    /// the hold keeps the commit away. So their shards, which all threads of the mount share, need not be locked together
    /// with the others, nor for longer than one change takes.
    fn apply_forced(&mut self, txn_seq: u64) -> Tally {
        let mut tally = Tally::default();
        for c in self.changes.iter_mut().filter(|c| c.op.is_forced()) {
            let mut inner = c.lock.state().core.inner.write();
            let was_clean = inner.dirty.is_empty();
            inner.blind = true;
            tally.add(c.store(txn_seq, &mut inner));
            self.items.note_changed(c.lock, &mut inner, was_clean, txn_seq);
        }
        tally
    }
}

impl Change<'_> {
    /// Makes the change, taking the value.
    fn store(&mut self, txn_seq: u64, inner: &mut Inner) -> Tally {
        let primary = self.primary.map_or(0, |p| p.write_seq());
        let seq = txn_seq.max(self.lock.write_seq()).max(primary);
        let before = inner.dirty.len();
        let tally = match std::mem::replace(&mut self.op, Op::Delete) {
            Op::Create(v) | Op::Update(v) | Op::Put(v) => inner.store(self.packed, v, seq),
            Op::Delete => inner.delete(self.packed, seq),
            Op::ForceCreate(v) => inner.put_dirty(self.packed, v, seq, PERSISTENT),
            Op::ForceDelete => inner.put_dirty(self.packed, Value::EMPTY, seq, PERSISTENT | TOMBSTONE),
            Op::Delta(d) => inner.add_delta(self.packed, d, seq),
        };
        Tally { dirtied: (inner.dirty.len() - before) as u64, ..tally }
    }

    fn check_locks(&self, commits: bool) -> Result<()> {
        let allowed = self.lock.mode() == self.op.mode() || (commits && self.op.mode() == Mode::Write);
        let serves = allowed && self.lock.range().contains(&self.key);
        if !serves {
            refuse(self.lock, &self.key, "change")?;
        }
        if let Some(primary) = self.primary.filter(|p| p.mode() != Mode::Write) {
            refuse(primary, &primary.range().start, "primary")?;
        }
        if keys::is_delta(&self.key) != matches!(self.op, Op::Delta(_)) {
            return Err(Error::invalid(format!("item {}: totals change by differences, nothing else does", self.key)));
        }
        let len = self.op.value().len();
        if len > BTREE_MAX_VALUE {
            return Err(Error::invalid(format!("item {}: value of {len} bytes", self.key)));
        }
        Ok(())
    }
}
