//! The frame of every operation: locks in the one order that cannot deadlock, the transaction, inode items with their index
//! items (`spec/06 §3.4, §5.1`).
//!
//! An operation that changes something reads like this: find the inodes, [`Namespace::lock_groups`], [`lock_ops`] them,
//! [`Namespace::fresh`] each, check everything, [`Namespace::begin`], build a change set from the fields *as they are now*
//! (a commit may have added blocks while the transaction was waited for), apply, store the new fields.

use smallvec::SmallVec;

use super::Namespace;
use super::inode::{Fields, Inode};
use super::types::Time;
use crate::client::Indexed;
use crate::error::{Errno, Result, fail};
use crate::format::{Ino, Seq, keys};
use crate::item::{ChangeSet, CoveringLock, ItemLock, Value};
use crate::lock::{Loan, LockName, Mode};
use crate::sync::{Arc, RwLockWriteGuard};
use crate::txn::{Hold, HoldKind};

/// Operation locks of up to four inodes.
pub(crate) type OpGuards<'a> = SmallVec<[RwLockWriteGuard<'a, ()>; 4]>;

/// Takes the operation locks for a change, by rising number, each once. Always inside the cluster locks: whoever has an
/// operation lock can go on, so that a front end which must give something back ([`crate::lock::Loan`]) never waits behind
/// somebody who waits for the lock.
pub(crate) fn lock_ops<'a>(inodes: &[&'a Inode]) -> OpGuards<'a> {
    let mut sorted: SmallVec<[&Inode; 4]> = SmallVec::from_slice(inodes);
    sorted.sort_unstable_by_key(|i| i.ino());
    sorted.dedup_by_key(|i| i.ino());
    sorted.into_iter().map(|i| i.op.write()).collect()
}

/// Locks of the groups of the inodes of one operation.
pub(crate) struct GroupLocks {
    locks: SmallVec<[(u64, ItemLock); 4]>,
}

impl GroupLocks {
    /// The lock that covers `ino`, which the operation has locked.
    pub(crate) fn of(&self, ino: Ino) -> &ItemLock {
        let group = ino.0 >> 10;
        let found = self.locks.iter().find(|(g, _)| *g == group);
        &found.expect("an operation touches only inodes that it has locked").1
    }
}

/// What an operation will do to an inode item, as far as index items care.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Changes fields other than `data_seq`.
    Meta,
    /// Changes contents or size as well.
    Data,
    /// Creates it, as a regular file or not.
    New { regular: bool },
    /// Deletes it.
    Gone,
}

/// Index locks and the transaction hold; nothing may wait for a lock while this exists.
pub(crate) struct Tx<'n> {
    indexed: Indexed<'n>,
    /// The one time of the operation.
    pub(crate) now: Time,
}

impl Tx<'_> {
    /// Sequence of the transaction.
    pub(crate) fn seq(&self) -> u64 {
        self.indexed.hold.seq()
    }

    pub(crate) fn hold(&self) -> &Hold<'_> {
        &self.indexed.hold
    }

    fn index_lock(&self, name: LockName) -> &CoveringLock {
        self.indexed.lock(name).expect("begin() took the locks of all sequence values that the operation may change")
    }
}

impl Namespace {
    /// The lock of an inode's group.
    pub(crate) fn lock_group(&self, inode: &Inode, mode: Mode) -> Result<ItemLock> {
        if let Some(kept) = inode.kept_lock() {
            return self.node.locks.acquire_held(kept, mode);
        }
        let guard = self.node.locks.acquire(LockName::inode(inode.ino()), mode)?;
        inode.keep_lock(guard.handle());
        Ok(guard)
    }

    /// The lock of an inode's group, on behalf of a front end's cache.
    pub(crate) fn lock_loan(&self, inode: &Inode, mode: Mode, loan: Loan) -> Result<ItemLock> {
        self.node.locks.acquire_loan(LockName::inode(inode.ino()), mode, loan)
    }

    /// Calls `f` while this mount alone may use the group of `ino`.
    pub(crate) fn exclusively<R>(&self, ino: Ino, f: impl FnOnce() -> R) -> Result<R> {
        self.writable()?;
        let inode = self.inode(ino)?;
        let _lock = self.lock_group(&inode, Mode::Write)?;
        Ok(f())
    }

    /// WRITE locks of the groups of all these inodes, by rising number, each once.
    pub(crate) fn lock_groups(&self, inodes: &[&Inode]) -> Result<GroupLocks> {
        let mut sorted: SmallVec<[&Inode; 4]> = SmallVec::from_slice(inodes);
        sorted.sort_unstable_by_key(|i| i.ino());
        sorted.dedup_by_key(|i| i.ino().0 >> 10);
        let mut locks = SmallVec::new();
        for inode in sorted {
            locks.push((inode.ino().0 >> 10, self.lock_group(inode, Mode::Write)?));
        }
        Ok(GroupLocks { locks })
    }

    /// The fields under `lock`, read again if they were loaded under another grant; `None` if there is no such inode.
    /// The caller holds the inode's operation lock, shared at least.
    pub(crate) fn fresh_if_any(&self, inode: &Inode, lock: &ItemLock) -> Result<Option<Fields>> {
        let generation = lock.refresh_gen();
        if let Some(f) = inode.fields_at(generation) {
            return Ok(Some(f));
        }
        let Some(value) = self.node.items.lookup(lock, &keys::inode(inode.ino()))? else {
            inode.forget();
            return Ok(None);
        };
        let fields = Fields::decode(inode.ino(), &value, self.node.fmt_vers)?;
        if fields.truncate_pending() && fields.nlink > 0 && !self.node.read_only {
            self.saw_unfinished(inode.ino());
        }
        inode.load(generation, fields);
        Ok(inode.fields_at(generation).or(Some(fields)))
    }

    /// [`Self::fresh_if_any`] of an inode that the caller named by number: `ESTALE` if there is none.
    pub(crate) fn fresh(&self, inode: &Inode, lock: &ItemLock) -> Result<Fields> {
        match self.fresh_if_any(inode, lock)? {
            Some(f) => Ok(f),
            None => {
                self.inodes.remove(inode.ino());
                fail(Errno::ESTALE)
            }
        }
    }

    /// [`Self::fresh`] for a directory of an operation: `ENOTDIR` for anything else.
    pub(crate) fn fresh_dir(&self, inode: &Inode, lock: &ItemLock) -> Result<Fields> {
        let f = self.fresh(inode, lock)?;
        if f.is_dir() { Ok(f) } else { fail(Errno::ENOTDIR) }
    }

    /// Calls `f` with fresh fields under the group's READ lock, without the operation lock if that can be avoided.
    pub(crate) fn with_fields<R>(&self, ino: Ino, f: impl FnOnce(&Inode, &ItemLock, Fields) -> Result<R>) -> Result<R> {
        if let Some(inode) = self.inodes.get(ino) {
            let lock = self.lock_group(&inode, Mode::Read)?;
            if let Some(fields) = inode.fields_at(lock.refresh_gen()) {
                return f(&inode, &lock, fields);
            }
        }
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let fields = self.fresh(&inode, &lock)?;
        f(&inode, &lock, fields)
    }

    /// The inode object of a number, of which nothing may be known yet. `ESTALE` for number 0.
    pub(crate) fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        if ino.0 == 0 {
            return fail(Errno::ESTALE);
        }
        Ok(self.inodes.get_or_new(ino))
    }

    /// `EROFS` on a read-only mount.
    pub(crate) fn writable(&self) -> Result<()> {
        if self.node.read_only { fail(Errno::EROFS) } else { Ok(()) }
    }

    /// Takes the index locks for what will happen to these inodes and enters the transaction (`spec/06 §3.4`).
    ///
    /// Which locks are needed depends on the transaction, and no lock may be asked for inside it; so its number is
    /// guessed, and everything is given up and tried again if another one has been opened meanwhile.
    pub(crate) fn begin(&self, kind: HoldKind, touches: &[(&Inode, Touch)]) -> Result<Tx<'_>> {
        let indexed = self.node.indexed(kind, |seq, names| index_names(seq, touches, names))?;
        Ok(Tx { indexed, now: Time::now() })
    }

    /// Adds to `cs` the inode item with `new` fields and the index items that follow from them; sets `meta_seq`, and
    /// `data_seq` if `touch` says so. `old` are the fields as stored.
    pub(crate) fn put_inode<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        tx: &'a Tx<'_>,
        lock: &'a ItemLock,
        inode: &Inode,
        new: &mut Fields,
        touch: Touch,
    ) {
        let (ino, seq) = (inode.ino(), Seq(tx.seq()));
        let is_new = matches!(touch, Touch::New { .. });
        let old = inode.fields();
        if is_new || old.meta_seq != seq.0 {
            let name = LockName::meta_index(seq);
            cs.force_create(tx.index_lock(name), lock, keys::meta_index(seq, ino), Value::EMPTY);
            if !is_new {
                delete_index(cs, tx, lock, Index::Meta, Seq(old.meta_seq), ino);
            }
        }
        new.meta_seq = seq.0;
        if is_new || touch == Touch::Data {
            if new.is_regular() && (is_new || old.data_seq != seq.0) {
                let name = LockName::data_index(seq);
                cs.force_create(tx.index_lock(name), lock, keys::data_index(seq, ino), Value::EMPTY);
                if !is_new {
                    delete_index(cs, tx, lock, Index::Data, Seq(old.data_seq), ino);
                }
            }
            new.data_seq = seq.0;
        }
        if is_new {
            cs.create(lock, keys::inode(ino), new.encode(self.node.fmt_vers));
        } else {
            cs.put(lock, keys::inode(ino), new.encode(self.node.fmt_vers));
        }
    }

    /// Adds the removal of an inode item and its index items.
    pub(crate) fn delete_inode<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        tx: &'a Tx<'_>,
        lock: &'a ItemLock,
        ino: Ino,
        old: &Fields,
    ) {
        delete_index(cs, tx, lock, Index::Meta, Seq(old.meta_seq), ino);
        if old.is_regular() {
            delete_index(cs, tx, lock, Index::Data, Seq(old.data_seq), ino);
        }
        cs.delete(lock, keys::inode(ino));
    }
}

#[derive(Clone, Copy)]
enum Index {
    Meta,
    Data,
}

fn delete_index<'a>(cs: &mut ChangeSet<'a>, tx: &'a Tx<'_>, primary: &'a ItemLock, index: Index, seq: Seq, ino: Ino) {
    let (name, key) = match index {
        Index::Meta => (LockName::meta_index(seq), keys::meta_index(seq, ino)),
        Index::Data => (LockName::data_index(seq), keys::data_index(seq, ino)),
    };
    cs.force_delete(tx.index_lock(name), primary, key);
}

/// Index locks for the touches in a transaction `seq`.
fn index_names(seq: u64, touches: &[(&Inode, Touch)], names: &mut SmallVec<[LockName; 8]>) {
    for (inode, touch) in touches {
        let regular_new = match touch {
            Touch::New { regular } => Some(*regular),
            _ => None,
        };
        if let Some(regular) = regular_new {
            names.push(LockName::meta_index(Seq(seq)));
            if regular {
                names.push(LockName::data_index(Seq(seq)));
            }
            continue;
        }
        let f = inode.fields();
        let gone = *touch == Touch::Gone;
        if gone || f.meta_seq != seq {
            names.push(LockName::meta_index(Seq(f.meta_seq)));
            if !gone {
                names.push(LockName::meta_index(Seq(seq)));
            }
        }
        if f.is_regular() && (gone || (*touch == Touch::Data && f.data_seq != seq)) {
            names.push(LockName::data_index(Seq(f.data_seq)));
            if !gone {
                names.push(LockName::data_index(Seq(seq)));
            }
        }
    }
}
