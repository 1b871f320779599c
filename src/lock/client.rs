//! stub
use super::*;
use crate::format::{Key, KeyRange};
use crate::sync::Arc;
use std::marker::PhantomData;
use std::ops::Deref;

/// Options of a [`LockClient`].
#[derive(Clone, Debug)]
pub(crate) struct LockClientConfig {
    /// How many lock objects are kept before idle ones are given up (32..=100,000; default 10,000).
    pub(crate) idle_count: usize,
    /// Threads that drop caches of invalidated locks.
    pub(crate) workers: usize,
}

impl Default for LockClientConfig {
    fn default() -> Self {
        LockClientConfig { idle_count: 10_000, workers: 2 }
    }
}

/// Counters of a [`LockClient`].
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct LockStatus {
    /// Lock objects of any state.
    pub(crate) locks: usize,
    /// Null requests on their way.
    pub(crate) shrinking: usize,
    /// LOCK requests sent.
    pub(crate) requests: u64,
    /// Grants received.
    pub(crate) grants: u64,
    /// Invalidations received.
    pub(crate) invalidations: u64,
    /// Invalidations answered.
    pub(crate) responses: u64,
}

/// One lock of this node.
pub(crate) struct Lock<P: Protected> {
    state: P,
}

impl<P: Protected> Lock<P> {
    /// Which lock this is.
    pub(crate) fn name(&self) -> LockName {
        todo!()
    }
    /// The keys it covers.
    pub(crate) fn range(&self) -> KeyRange {
        todo!()
    }
    /// The mode that tasks of this node may use now.
    pub(crate) fn mode(&self) -> Mode {
        todo!()
    }
    /// Sequence number of the write or write-only grant, 0 under a read grant.
    pub(crate) fn write_seq(&self) -> u64 {
        todo!()
    }
    /// Rises every time the lock becomes readable; 0 = it never was.
    pub(crate) fn refresh_gen(&self) -> u64 {
        todo!()
    }
    /// The refresh generation if the lock is readable now.
    pub(crate) fn readable_gen(&self) -> Option<u64> {
        todo!()
    }
    /// What the lock protects.
    pub(crate) fn state(&self) -> &P {
        &self.state
    }
    /// Notes, under a write or write-only guard, that the transaction `seq` holds changes made under this lock.
    pub(crate) fn mark_dirty(&self, seq: u64) {
        let _ = seq;
        todo!()
    }
    /// The greatest sequence given to [`Lock::mark_dirty`].
    pub(crate) fn dirty_seq(&self) -> u64 {
        todo!()
    }
}

/// One use of a granted lock; dropping it is the release. It stays on the thread that acquired it.
pub(crate) struct LockGuard<P: Protected> {
    lock: PhantomData<*const Lock<P>>,
}

impl<P: Protected> LockGuard<P> {
    /// The mode that was acquired; the lock's own mode may be stronger.
    pub(crate) fn mode(&self) -> Mode {
        todo!()
    }
    /// A reference to keep for [`LockClient::acquire_held`]; it is no use of the lock.
    pub(crate) fn handle(&self) -> Arc<Lock<P>> {
        todo!()
    }
}

impl<P: Protected> Deref for LockGuard<P> {
    type Target = Lock<P>;
    fn deref(&self) -> &Lock<P> {
        todo!()
    }
}

impl<P: Protected> Drop for LockGuard<P> {
    fn drop(&mut self) {
        todo!()
    }
}

/// All locks of one mount.
pub(crate) struct LockClient<P: Protected> {
    p: PhantomData<P>,
}

impl<P: Protected> LockClient<P> {
    /// Starts the lock service of a mount with its worker threads.
    pub(crate) fn new(config: LockClientConfig, sender: Arc<dyn LockSender>, revoke: Arc<dyn Revoke<P>>) -> Arc<Self> {
        let _ = (config, sender, revoke);
        todo!()
    }
    /// Waits until `mode` may be used and counts one use.
    ///
    /// Errors: EINVAL (null mode), ENOLCK (shut down before), ESHUTDOWN (shut down meanwhile), EDEADLK (this thread holds
    /// the lock in a mode that does not serve), ENOLINK (forced unmount).
    pub(crate) fn acquire(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        let _ = (name, mode);
        todo!()
    }
    /// As [`LockClient::acquire`], but never waits and never sends: EAGAIN.
    pub(crate) fn try_acquire(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        let _ = (name, mode);
        todo!()
    }
    /// As [`LockClient::acquire`] without the look-up; if the kept object was given up meanwhile, the guard is of a new
    /// one (see [`LockGuard::handle`]).
    pub(crate) fn acquire_held(&self, lock: &Arc<Lock<P>>, mode: Mode) -> Result<LockGuard<P>> {
        let _ = (lock, mode);
        todo!()
    }
    /// The lock object, if this node has one; for hints such as comparing generations.
    pub(crate) fn peek(&self, name: LockName) -> Option<Arc<Lock<P>>> {
        let _ = name;
        todo!()
    }
    /// A LOCK response (M2) arrived. An error means that the server broke the protocol: close the connection.
    pub(crate) fn grant(&self, lock: &NetLock) -> Result<()> {
        let _ = lock;
        todo!()
    }
    /// A LOCK request (M3) `id` of the server of term `epoch` arrived. An error means: close the connection.
    pub(crate) fn invalidate(&self, epoch: u64, id: u64, lock: &NetLock) -> Result<()> {
        let _ = (epoch, id, lock);
        todo!()
    }
    /// The answer to LOCK_RECOVER (M5): up to 22 held locks from `key` on, in key order; empty = no more.
    pub(crate) fn recover(&self, key: &Key) -> Vec<NetLock> {
        let _ = key;
        todo!()
    }
    /// A server of another term was greeted; call before any of its messages is handed in.
    pub(crate) fn new_epoch(&self, term: u64) {
        let _ = term;
        todo!()
    }
    /// Orderly unmount: new acquires fail, waiters wake with ESHUTDOWN, invalidations are still answered.
    pub(crate) fn shutdown(&self) {
        todo!()
    }
    /// Forced unmount: everything that waits fails with ENOLINK.
    pub(crate) fn force_down(&self) {
        todo!()
    }
    /// Ends and joins the worker threads; after it invalidations are no longer worked on.
    pub(crate) fn close(&self) {
        todo!()
    }
    /// Gives up idle locks, all of them (testing, low memory); returns how many were asked for.
    pub(crate) fn purge(&self) -> usize {
        todo!()
    }
    /// Counters.
    pub(crate) fn status(&self) -> LockStatus {
        todo!()
    }
}
