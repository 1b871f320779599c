//! One lock of a mount and the guard of one use of it. The only unsafe code of the room.
//!
//! A guard must cost one compare-exchange to make and one to drop, so it does not count a reference: the user count in
//! the word keeps the lock alive. Safety argument, with the invariants of `word`:
//!
//! * While a lock has users its mode is not null, so it is not dead and the table holds a reference to it.
//! * The table gives that reference up only by removal (dead, hence without users) or when it is dropped; then, if users
//!   are left, it forgets its reference and whoever drops the last use drops it instead. Both sides decide by what their
//!   one atomic operation on the word returned, so exactly one of them does.
//! * A release touches the lock only up to the operation that drops its count. Where it needs more (gate closed) it takes
//!   a reference first, while it is still counted.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

use super::machine::{Hot, Machine};
use super::shell::{Shell, Waiter};
use super::word::Release;
use super::{LockName, Mode, Protected, held};
use crate::format::KeyRange;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, Mutex, Weak};

/// One lock of this node. It stays the same object while the node holds a mode of it.
#[repr(align(64))]
pub(crate) struct Lock<P: Protected> {
    pub(super) hot: Hot,
    name: LockName,
    pub(super) machine: Mutex<Machine<Arc<Waiter>>>,
    pub(super) owner: Weak<Shell<P>>,
    state: P,
}

impl<P: Protected> Lock<P> {
    pub(super) fn new(name: LockName, owner: Weak<Shell<P>>) -> Lock<P> {
        Lock { hot: Hot::new(), name, machine: Mutex::new(Machine::new()), owner, state: P::default() }
    }

    /// Which lock this is.
    pub(crate) fn name(&self) -> LockName {
        self.name
    }

    /// The keys it covers.
    pub(crate) fn range(&self) -> KeyRange {
        self.name.range()
    }

    /// The mode that tasks of this node may use now. Without a guard it is only a hint.
    pub(crate) fn mode(&self) -> Mode {
        self.hot.word.load().mode()
    }

    /// Sequence number of the write or write-only grant, 0 under a read grant.
    pub(crate) fn write_seq(&self) -> u64 {
        self.hot.write_seq.load(Ordering::Relaxed)
    }

    /// Rises every time the lock becomes readable; 0 = it never was (a value that must never count as valid).
    pub(crate) fn refresh_gen(&self) -> u64 {
        self.hot.refresh_gen.load(Ordering::Relaxed)
    }

    /// The refresh generation if the lock is readable now: what a cached name is compared with without holding the lock.
    #[cfg(test)]
    pub(crate) fn readable_gen(&self) -> Option<u64> {
        self.mode().reads().then(|| self.refresh_gen()).filter(|g| *g != 0)
    }

    /// The refresh generation if the lock would serve a reader at once (its gate is open). Copies that were made under this
    /// generation are right at this moment, so an operation that only looks at one may answer from it without using the
    /// lock. Counts as a use for the sweep for idle locks.
    #[inline]
    pub(crate) fn peek_gen(&self) -> Option<u64> {
        if !self.hot.word.serves_readers() {
            return None;
        }
        // After the word: whoever raised the mode has stored the generation before.
        Some(self.refresh_gen()).filter(|g| *g != 0)
    }

    /// What the lock protects.
    pub(crate) fn state(&self) -> &P {
        &self.state
    }

    /// Notes, under a write or write-only guard, that the transaction `seq` holds changes made under this lock. Must be
    /// called before the guard is dropped and before the transaction can commit.
    pub(crate) fn mark_dirty(&self, seq: u64) {
        self.hot.dirty_seq.fetch_max(seq, Ordering::AcqRel);
    }

    /// The greatest sequence given to [`Lock::mark_dirty`].
    pub(crate) fn dirty_seq(&self) -> u64 {
        self.hot.dirty_seq.load(Ordering::Acquire)
    }
}

impl<P: Protected> fmt::Debug for Lock<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.hot.word.load();
        write!(
            f,
            "lock={} mode={} gate={} users={}/{}/{} refresh_gen={} write_seq={}",
            self.name,
            v.mode(),
            u8::from(v.gate()),
            v.users(Mode::Read),
            v.users(Mode::Write),
            v.users(Mode::WriteOnly),
            self.refresh_gen(),
            self.write_seq(),
        )
    }
}

/// One use of a granted lock; dropping it is the release. It stays on the thread that acquired it.
pub(crate) struct LockGuard<P: Protected> {
    lock: NonNull<Lock<P>>,
    mode: Mode,
    /// Not `Send` (see `held`), and behaves like a shared reference to the lock.
    thread: PhantomData<*const Lock<P>>,
}

impl<P: Protected> LockGuard<P> {
    /// A guard for a use of `mode` that was just counted in the lock's word.
    #[inline]
    pub(super) fn counted(lock: &Arc<Lock<P>>, mode: Mode) -> LockGuard<P> {
        let p = Arc::as_ptr(lock);
        held::add(p);
        // SAFETY: a pointer from `Arc::as_ptr` is never null.
        LockGuard { lock: unsafe { NonNull::new_unchecked(p.cast_mut()) }, mode, thread: PhantomData }
    }

    /// The mode that was acquired; the lock's own mode may be stronger.
    #[cfg(test)]
    pub(crate) fn acquired_mode(&self) -> Mode {
        self.mode
    }

    /// A reference to keep for `LockClient::acquire_held`; it is no use of the lock.
    pub(crate) fn handle(&self) -> Arc<Lock<P>> {
        let p = self.lock.as_ptr().cast_const();
        // SAFETY: the pointer came from `Arc::as_ptr`, and the use that this guard counts keeps the lock alive.
        unsafe {
            Arc::increment_strong_count(p);
            Arc::from_raw(p)
        }
    }

    #[cold]
    fn release_gated(&self) {
        let lock = self.handle();
        if let Some(shell) = lock.owner.upgrade() {
            shell.release_gated(&lock, self.mode);
            return;
        }
        let after = lock.hot.word.release(self.mode);
        if after.orphan() && after.unused() {
            // SAFETY: the table forgot its reference when it saw users, and this was the last of them: it is ours.
            unsafe { Arc::decrement_strong_count(self.lock.as_ptr().cast_const()) };
        }
    }
}

impl<P: Protected> Deref for LockGuard<P> {
    type Target = Lock<P>;

    #[inline]
    fn deref(&self) -> &Lock<P> {
        // SAFETY: the use that this guard counts keeps the lock alive.
        unsafe { self.lock.as_ref() }
    }
}

impl<P: Protected> Drop for LockGuard<P> {
    #[inline]
    fn drop(&mut self) {
        held::remove(self.lock.as_ptr().cast_const());
        if self.hot.word.try_release(self.mode) == Release::Slow {
            self.release_gated();
        }
    }
}

impl<P: Protected> fmt::Debug for LockGuard<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.mode, **self)
    }
}
