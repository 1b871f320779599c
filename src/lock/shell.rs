//! The concurrent shell around the state machines: table, counters, sending, waking, handing out work.
//!
//! 1. A machine is called under its lock's mutex; what it asks for is done after the mutex is released.
//! 2. Nothing here blocks except a waiting acquire: message delivery only queues.
//! 3. Work is queued on lists that other threads drain ([`Shell::work`], [`Shell::commits`], [`Shell::shrink_kicks`]).

use std::collections::VecDeque;
#[cfg(not(loom))]
use std::time::Duration;

use super::guard::{Lock, LockGuard};
use super::machine::{Acquired, Loan, Machine, Manner, Out, Outs};
use super::recover::Snapshot;
use super::table::Table;
use super::wire::{check, net_lock};
use super::work::WorkList;
use super::{LockClientConfig, LockName, LockSender, Mode, Protected, Revoke, held};
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::NetLock;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, Weak};

/// One thread that waits for a grant.
pub(super) struct Waiter {
    result: Mutex<Option<Result<()>>>,
    woken: Condvar,
}

impl Waiter {
    fn new() -> Arc<Waiter> {
        Arc::new(Waiter { result: Mutex::new(None), woken: Condvar::new() })
    }

    fn wake(&self, r: Result<()>) {
        *self.result.lock() = Some(r);
        self.woken.notify_one();
    }

    /// `None`: nothing came for `time`.
    #[cfg(not(loom))]
    fn wait_for(&self, time: Duration) -> Option<Result<()>> {
        let mut result = self.result.lock();
        if result.is_none() {
            self.woken.wait_for(&mut result, time);
        }
        result.take()
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.result.lock();
        loop {
            if let Some(r) = result.take() {
                return r;
            }
            self.woken.wait(&mut result);
        }
    }
}

/// What an invalidation has to do outside of the mutex.
pub(super) struct Job<P: Protected> {
    pub(super) lock: Arc<Lock<P>>,
    pub(super) from: Mode,
    pub(super) to: Mode,
    /// The commit that it needs has been waited for.
    pub(super) committed: bool,
}

/// How long a front end that wants something to keep waits behind a closed gate before it insists.
#[cfg(not(loom))]
const LOAN_PATIENCE: Duration = Duration::from_millis(1);

const OPEN: u8 = 0;
const SHUT: u8 = 1;
const FORCED: u8 = 2;

#[derive(Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    grants: AtomicU64,
    invalidations: AtomicU64,
    responses: AtomicU64,
}

/// All that the threads of the lock room share.
pub(super) struct Shell<P: Protected> {
    pub(super) me: Weak<Shell<P>>,
    pub(super) table: Table<P>,
    pub(super) revoke: Arc<dyn Revoke<P>>,
    sender: Arc<dyn LockSender>,
    state: AtomicU8,
    /// Term of the server that is talked to.
    pub(super) epoch: AtomicU64,
    /// Refresh generations of the whole mount; survives lock objects.
    gens: AtomicU64,
    /// Invalidations that were started.
    pub(super) work: WorkList<Job<P>>,
    /// Invalidations for which front ends have to give something back first.
    pub(super) recalls: WorkList<Job<P>>,
    /// Invalidations that need a commit.
    pub(super) commits: WorkList<Job<P>>,
    pub(super) shrink_kicks: WorkList<()>,
    pub(super) shrink_kicked: AtomicBool,
    pub(super) shrink_active: AtomicBool,
    pub(super) shrink_hand: AtomicUsize,
    pub(super) shrinking: AtomicUsize,
    pub(super) idle_count: AtomicUsize,
    pub(super) snapshot: Mutex<Option<Snapshot<P>>>,
    counters: Counters,
}

impl<P: Protected> Shell<P> {
    pub(super) fn new(
        config: &LockClientConfig,
        sender: Arc<dyn LockSender>,
        revoke: Arc<dyn Revoke<P>>,
    ) -> Arc<Shell<P>> {
        Arc::new_cyclic(|me| Shell {
            me: me.clone(),
            table: Table::new(config.shards),
            revoke,
            sender,
            state: AtomicU8::new(OPEN),
            epoch: AtomicU64::new(0),
            gens: AtomicU64::new(0),
            work: WorkList::new(),
            recalls: WorkList::new(),
            commits: WorkList::new(),
            shrink_kicks: WorkList::new(),
            shrink_kicked: AtomicBool::new(false),
            shrink_active: AtomicBool::new(false),
            shrink_hand: AtomicUsize::new(0),
            shrinking: AtomicUsize::new(0),
            idle_count: AtomicUsize::new(config.idle_count),
            snapshot: Mutex::new(None),
            counters: Counters::default(),
        })
    }

    fn state_error(&self) -> Option<Errno> {
        match self.state.load(Ordering::Acquire) {
            OPEN => None,
            SHUT => Some(Errno::ENOLCK),
            _ => Some(Errno::ENOLINK),
        }
    }

    /// The fast path: look up, count, done.
    #[inline]
    pub(super) fn acquire(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        if mode == Mode::Null {
            return fail(Errno::EINVAL);
        }
        if let Some(lock) = self.table.read(name).get(&name) {
            // Counted while the shard is locked, so the lock cannot be freed in between.
            if lock.hot.word.try_acquire(mode) {
                return Ok(LockGuard::counted(lock, mode));
            }
        }
        self.acquire_slow(name, mode)
    }

    fn get_or_create(&self, name: LockName) -> Result<Arc<Lock<P>>> {
        let (lock, created) = self.table.get_or_create(name, || match self.state_error() {
            Some(e) => fail(e),
            None => Ok(Lock::new(name, self.me.clone())),
        })?;
        if created {
            self.table_grew();
        }
        Ok(lock)
    }

    #[cold]
    fn acquire_slow(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        loop {
            let lock = self.get_or_create(name)?;
            if let Some(guard) = self.acquire_on(&lock, mode, true)? {
                return Ok(guard);
            }
        }
    }

    #[allow(dead_code, reason = "part of the protocol (spec/04 §4.2); no operation of a mount wants it yet")]
    pub(super) fn try_acquire(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        if mode == Mode::Null {
            return fail(Errno::EINVAL);
        }
        if let Some(e) = self.state_error() {
            return fail(e);
        }
        let Some(lock) = self.table.get(name) else { return fail(Errno::EAGAIN) };
        match self.acquire_on(&lock, mode, false)? {
            Some(guard) => Ok(guard),
            None => fail(Errno::EAGAIN),
        }
    }

    #[inline]
    pub(super) fn acquire_held(&self, lock: &Arc<Lock<P>>, mode: Mode) -> Result<LockGuard<P>> {
        if mode != Mode::Null && lock.hot.word.try_acquire(mode) {
            return Ok(LockGuard::counted(lock, mode));
        }
        self.acquire(lock.name(), mode)
    }

    /// `None`: the object is dead, look it up again.
    fn acquire_on(&self, lock: &Arc<Lock<P>>, mode: Mode, block: bool) -> Result<Option<LockGuard<P>>> {
        if lock.hot.word.try_acquire(mode) {
            return Ok(Some(LockGuard::counted(lock, mode)));
        }
        let manner = Manner { block, nested: held::holds(Arc::as_ptr(lock)), loan: None };
        self.acquire_as(lock, mode, manner, |w| w.wait())
    }

    /// Uses a lock on behalf of a front end's cache.
    #[cfg(not(loom))]
    pub(super) fn acquire_loan(&self, name: LockName, mode: Mode, loan: Loan) -> Result<LockGuard<P>> {
        if mode == Mode::Null {
            return fail(Errno::EINVAL);
        }
        loop {
            let lock = self.get_or_create(name)?;
            let wait = |w: &Arc<Waiter>| {
                loop {
                    match w.wait_for(LOAN_PATIENCE) {
                        Some(r) => return r,
                        None if self.input(&lock, |m, _| m.insist(&lock.hot, |x| Arc::ptr_eq(x, w))) => return Ok(()),
                        None => {}
                    }
                }
            };
            let manner = Manner { block: true, nested: held::holds(Arc::as_ptr(&lock)), loan: Some(loan) };
            if let Some(guard) = self.acquire_as(&lock, mode, manner, wait)? {
                return Ok(guard);
            }
        }
    }

    /// `None`: the object is dead, look it up again.
    fn acquire_as(
        &self,
        lock: &Arc<Lock<P>>,
        mode: Mode,
        manner: Manner,
        wait: impl FnOnce(&Arc<Waiter>) -> Result<()>,
    ) -> Result<Option<LockGuard<P>>> {
        let mut waiter = None;
        let mut out = Outs::new();
        let acquired = {
            let mut machine = lock.machine.lock();
            if lock.hot.word.load().dead() {
                return Ok(None);
            }
            machine.acquire(&lock.hot, mode, manner, || waiter.insert(Waiter::new()).clone(), &mut out)
        };
        self.run(lock, out);
        match (acquired, waiter) {
            (Acquired::Yes, _) => {}
            (Acquired::Wait, Some(w)) => wait(&w)?,
            (Acquired::Wait, None) => unreachable!("a queued waiter was made"),
            (Acquired::No(Errno::ENOLCK), _) => return fail(self.state_error().unwrap_or(Errno::ENOLCK)),
            (Acquired::No(e), _) => return fail(e),
        }
        Ok(Some(LockGuard::counted(lock, mode)))
    }

    /// The rest of a release that found the gate closed.
    pub(super) fn release_gated(&self, lock: &Arc<Lock<P>>, mode: Mode) {
        self.input(lock, |m, out| m.release(&lock.hot, mode, &self.gens, out));
    }

    /// Calls a machine and does what it asks for.
    pub(super) fn input<R>(
        &self,
        lock: &Arc<Lock<P>>,
        f: impl FnOnce(&mut Machine<Arc<Waiter>>, &mut Outs<Arc<Waiter>>) -> R,
    ) -> R {
        let mut out = Outs::new();
        let r = {
            let mut machine = lock.machine.lock();
            #[cfg(sim)]
            let before = machine.held();
            let r = f(&mut machine, &mut out);
            #[cfg(any(test, sim))]
            machine.check(&lock.hot);
            #[cfg(sim)]
            if machine.held() != before {
                crate::sync::watch::lock_holds(&lock.name(), machine.held().wire());
            }
            r
        };
        self.run(lock, out);
        r
    }

    /// Does what a machine asked for, without holding its mutex.
    fn run(&self, lock: &Arc<Lock<P>>, out: Outs<Arc<Waiter>>) {
        let mut todo: VecDeque<_> = out.into_iter().collect();
        let mut shrunk = 0;
        while let Some(o) = todo.pop_front() {
            match o {
                Out::Request { old, new } => {
                    self.counters.requests.fetch_add(1, Ordering::Relaxed);
                    if let Err(e) = self.sender.send_request(&net_lock(lock.name(), old, new, 0)) {
                        let mut more = Outs::new();
                        lock.machine.lock().send_failed(&lock.hot, e, &mut more);
                        todo.extend(more);
                    }
                }
                Out::Response { epoch, id, old, new } => self.respond(epoch, id, lock.name(), old, new),
                Out::Work { from, to } => {
                    let job = Job { lock: lock.clone(), from, to, committed: false };
                    let list = if self.needs_commit(&job) { &self.commits } else { &self.work };
                    list.push(job);
                }
                Out::Recall { from, to } => {
                    if !self.recalls.push(Job { lock: lock.clone(), from, to, committed: false }) {
                        // The mount is over, and its front ends with it.
                        let mut more = Outs::new();
                        lock.machine.lock().recall_done(&lock.hot, &self.gens, &mut more);
                        todo.extend(more);
                    }
                }
                Out::Wake(w, r) => w.wake(r),
                Out::ShrinkDone => shrunk += 1,
                Out::Free => self.table.remove_if_free(lock),
            }
        }
        // After the lock is gone: one that counts as there and not as going would have another one given up for it.
        (0..shrunk).for_each(|_| self.shrink_done());
    }

    /// Does the invalidation have to wait until what was changed under the lock is durable?
    pub(super) fn needs_commit(&self, job: &Job<P>) -> bool {
        let dirty = job.lock.dirty_seq();
        job.from.writes() && !job.committed && dirty != 0 && dirty >= self.revoke.open_seq()
    }

    fn respond(&self, epoch: u64, id: u64, name: LockName, old: Mode, new: Mode) {
        if self.epoch.load(Ordering::Acquire) == epoch {
            self.counters.responses.fetch_add(1, Ordering::Relaxed);
            self.sender.send_invalidate_response(epoch, id, &net_lock(name, old, new, 0));
        }
    }

    pub(super) fn grant(&self, msg: &NetLock) -> Result<()> {
        let c = check(msg)?;
        self.counters.grants.fetch_add(1, Ordering::Relaxed);
        let Some(lock) = self.table.get(c.name) else { return fail(Errno::EINVAL) };
        self.input(&lock, |m, out| m.grant(&lock.hot, c.new, c.write_seq, &self.gens, out))
    }

    pub(super) fn invalidate(&self, epoch: u64, id: u64, msg: &NetLock) -> Result<()> {
        let c = check(msg)?;
        if !matches!(c.new, Mode::Null | Mode::Read) {
            return fail(Errno::EINVAL);
        }
        self.counters.invalidations.fetch_add(1, Ordering::Relaxed);
        if let Some(lock) = self.table.get(c.name) {
            let handled = self.input(&lock, |m, out| {
                if lock.hot.word.load().dead() {
                    return Ok(false);
                }
                m.invalidate(&lock.hot, epoch, id, (c.old, c.new), &self.gens, out).map(|()| true)
            })?;
            if handled {
                return Ok(());
            }
        }
        self.respond(epoch, id, c.name, c.old, Mode::Null);
        Ok(())
    }

    /// Front ends have given back what an invalidation asked for.
    pub(super) fn recall_done(&self, lock: &Arc<Lock<P>>) {
        self.input(lock, |m, out| m.recall_done(&lock.hot, &self.gens, out));
    }

    /// The work of an invalidation is done.
    pub(super) fn job_done(&self, job: Job<P>) {
        let lock = job.lock;
        self.input(&lock, |m, out| m.work_done(&lock.hot, &self.gens, out));
    }

    pub(super) fn new_epoch(&self, term: u64) {
        self.epoch.store(term, Ordering::Release);
        *self.snapshot.lock() = None;
        self.table.for_each(|lock| self.input(lock, |m, out| m.new_epoch(&lock.hot, out)));
    }

    pub(super) fn shutdown(&self) {
        if self.state.compare_exchange(OPEN, SHUT, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.close_all(&Error::Posix(Errno::ESHUTDOWN));
        }
    }

    pub(super) fn force_down(&self) {
        if self.state.swap(FORCED, Ordering::AcqRel) != FORCED {
            self.close_all(&Error::Posix(Errno::ENOLINK));
        }
    }

    /// Locks that are created later see the state under their shard's lock, so none is missed.
    fn close_all(&self, error: &Error) {
        self.table.for_each(|lock| self.input(lock, |m, out| m.close(&lock.hot, error, out)));
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> super::LockStatus {
        super::LockStatus {
            locks: self.table.len(),
            shrinking: self.shrinking.load(Ordering::Relaxed),
            working: self.work.len() + self.commits.len(),
            requests: self.counters.requests.load(Ordering::Relaxed),
            grants: self.counters.grants.load(Ordering::Relaxed),
            invalidations: self.counters.invalidations.load(Ordering::Relaxed),
            responses: self.counters.responses.load(Ordering::Relaxed),
        }
    }
}
