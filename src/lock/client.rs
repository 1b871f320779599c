//! The lock service of a mount: what the other rooms call, and the threads that work for it.
//!
//! | thread | works on | may block on |
//! |---|---|---|
//! | `lock-drop-N` | started invalidations: drops caches, responds | the locks of the caches |
//! | `lock-commit` | invalidations of locks with uncommitted changes: one commit for all that wait | a commit |
//! | `lock-recall-N`, from the first loan on | invalidations of locks under which front ends keep something: asks for it | front ends, and the calls that they make to give it back |
//! | `lock-shrink` | giving up idle locks | nothing |
//!
//! Messages are handed in by the thread that receives them and only queued here: a commit needs answers of the server, so
//! an invalidation that occupied message delivery would wait for itself (L-6).

#[cfg(not(loom))]
use super::Loan;
use super::guard::{Lock, LockGuard};
use super::shell::{Job, Shell};
use super::{LockName, LockSender, Mode, Protected, Revoke};
use crate::error::Result;
use crate::format::Key;
use crate::format::layout::NetLock;
use crate::sync::{Arc, Mutex, OnceLock, thread};

/// Options of a [`LockClient`].
#[derive(Clone, Debug)]
pub(crate) struct LockClientConfig {
    /// How many lock objects are kept before idle ones are given up (32..=100,000).
    pub(crate) idle_count: usize,
    /// Threads that drop caches of invalidated locks.
    pub(crate) workers: usize,
    /// Parts of the table of locks, a power of two.
    pub(crate) shards: usize,
}

impl Default for LockClientConfig {
    fn default() -> Self {
        LockClientConfig { idle_count: 10_000, workers: 2, shards: 256 }
    }
}

/// Counters of a [`LockClient`].
#[cfg(test)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct LockStatus {
    /// Lock objects of any state.
    pub(crate) locks: usize,
    /// Null requests on their way.
    pub(crate) shrinking: usize,
    /// Invalidations that wait for a worker.
    pub(crate) working: usize,
    /// LOCK requests sent.
    pub(crate) requests: u64,
    /// Grants received.
    pub(crate) grants: u64,
    /// Invalidations received.
    pub(crate) invalidations: u64,
    /// Invalidations answered.
    pub(crate) responses: u64,
}

/// All locks of one mount.
pub(crate) struct LockClient<P: Protected> {
    shell: Arc<Shell<P>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    /// Are there threads that ask front ends for what they were lent?
    lends: OnceLock<()>,
}

impl<P: Protected> LockClient<P> {
    /// Starts the lock service of a mount with its worker threads.
    ///
    /// The threads keep `revoke` alive until [`LockClient::close`] (or drop).
    pub(crate) fn new(
        config: LockClientConfig,
        sender: Arc<dyn LockSender>,
        revoke: Arc<dyn Revoke<P>>,
    ) -> Result<Arc<Self>> {
        let shell = Shell::new(&config, sender, revoke);
        let client =
            Arc::new(LockClient { shell: shell.clone(), threads: Mutex::new(Vec::new()), lends: OnceLock::new() });
        for i in 0..config.workers.max(1) {
            client.spawn(format!("lock-drop-{i}"), |s| while s.work_step().is_some() {})?;
        }
        client.spawn("lock-commit".into(), |s| while s.commit_step().is_some() {})?;
        client.spawn("lock-shrink".into(), |s| {
            while s.shrink_kicks.take(usize::MAX).is_some() {
                s.sweep();
            }
        })?;
        Ok(client)
    }

    fn spawn(&self, name: String, body: impl FnOnce(&Shell<P>) + Send + 'static) -> Result<()> {
        let shell = self.shell.clone();
        let spawned = thread::Builder::new().name(name).spawn(move || {
            let _fuse = Fuse(&shell);
            body(&shell);
        });
        let handle = spawned.map_err(|_| crate::error::Errno::EAGAIN)?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// Waits until `mode` may be used and counts one use.
    ///
    /// Errors: EINVAL (null mode), ENOLCK (shut down before), ESHUTDOWN (shut down meanwhile), EDEADLK (this thread uses
    /// the lock in a mode that does not serve), ENOLINK (forced unmount).
    #[inline]
    pub(crate) fn acquire(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        self.shell.acquire(name, mode)
    }

    /// As [`LockClient::acquire`], but never waits and never sends: EAGAIN.
    #[allow(dead_code, reason = "part of the protocol (spec/04 §4.2); no operation of a mount wants it yet")]
    pub(crate) fn try_acquire(&self, name: LockName, mode: Mode) -> Result<LockGuard<P>> {
        self.shell.try_acquire(name, mode)
    }

    /// As [`LockClient::acquire`] without the look-up. If the kept object was given up meanwhile, the guard is of a new
    /// one; keep [`LockGuard::handle`] of it then.
    #[inline]
    pub(crate) fn acquire_held(&self, lock: &Arc<Lock<P>>, mode: Mode) -> Result<LockGuard<P>> {
        self.shell.acquire_held(lock, mode)
    }

    /// As [`LockClient::acquire`], on behalf of a front end's cache, see [`Loan`]. With [`Loan::Take`] what was read under
    /// the guard may be kept after it is dropped, until [`Revoke::recall`] asks for it.
    #[cfg(not(loom))]
    pub(crate) fn acquire_loan(&self, name: LockName, mode: Mode, loan: Loan) -> Result<LockGuard<P>> {
        if self.lends.get().is_none() {
            self.start_lending()?;
        }
        self.shell.acquire_loan(name, mode, loan)
    }

    /// Starts the threads that ask for what is lent.
    #[cfg(not(loom))]
    fn start_lending(&self) -> Result<()> {
        for i in 0..2 {
            self.spawn(format!("lock-recall-{i}"), |s| while s.recall_step().is_some() {})?;
        }
        let _ = self.lends.set(());
        Ok(())
    }

    /// The lock object, if this node has one; for hints such as comparing generations.
    #[cfg(test)]
    pub(crate) fn peek(&self, name: LockName) -> Option<Arc<Lock<P>>> {
        self.shell.table.get(name)
    }

    /// A LOCK response (M2) arrived. An error means that the server broke the protocol: close the connection.
    pub(crate) fn grant(&self, lock: &NetLock) -> Result<()> {
        self.shell.grant(lock)
    }

    /// A LOCK request (M3) `id` of the server of term `epoch` arrived. An error means: close the connection.
    pub(crate) fn invalidate(&self, epoch: u64, id: u64, lock: &NetLock) -> Result<()> {
        self.shell.invalidate(epoch, id, lock)
    }

    /// The answer to LOCK_RECOVER (M5): up to 22 held locks from `key` on, in key order; empty = no more.
    pub(crate) fn recover(&self, key: &Key) -> Vec<NetLock> {
        self.shell.recover(key)
    }

    /// A server of another term was greeted; call before any of its messages is handed in, the first one included.
    pub(crate) fn new_epoch(&self, term: u64) {
        self.shell.new_epoch(term);
    }

    /// Orderly unmount: new acquires fail with ENOLCK, waiters wake with ESHUTDOWN, invalidations are still answered,
    /// with everything that they need, because the final commit may still be to come.
    pub(crate) fn shutdown(&self) {
        self.shell.shutdown();
    }

    /// Forced unmount: everything that waits fails with ENOLINK.
    pub(crate) fn force_down(&self) {
        self.shell.force_down();
    }

    /// Ends and joins the worker threads; after it invalidations are no longer worked on.
    pub(crate) fn close(&self) {
        self.shell.recalls.close();
        self.shell.commits.close();
        self.shell.work.close();
        self.shell.shrink_kicks.close();
        for t in std::mem::take(&mut *self.threads.lock()) {
            // The last reference may be dropped by a worker itself.
            if t.thread().id() != thread::current().id() {
                let _ = t.join();
            }
        }
    }

    /// Lock objects of any state.
    #[allow(dead_code, reason = "for benchmarks, and for people who look at a mount")]
    pub(crate) fn len(&self) -> usize {
        self.shell.table.len()
    }

    /// Changes how many lock objects are kept, from now on.
    pub(crate) fn set_idle_count(&self, count: usize) {
        self.shell.set_idle_count(count);
    }

    /// Gives up all idle locks (testing, low memory); returns how many were asked for.
    #[cfg(test)]
    pub(crate) fn purge(&self) -> usize {
        self.shell.purge()
    }

    /// Counters.
    #[cfg(test)]
    pub(crate) fn status(&self) -> LockStatus {
        self.shell.status()
    }

    /// One line for each lock, for diagnostics.
    #[cfg(test)]
    pub(crate) fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.shell.table.for_each(|lock| {
            let machine = lock.machine.lock();
            let (request, queued, working, waiters) = machine.load();
            let request = request.map_or("none".into(), |m| m.to_string());
            let held = machine.held();
            lines.push(format!(
                "{lock:?} held={held} request={request} queued={queued} working={working} waiters={waiters}"
            ));
        });
        lines.sort_unstable();
        lines
    }
}

/// A worker that panics must not leave others waiting for what it will never do.
struct Fuse<'a, P: Protected>(&'a Shell<P>);

impl<P: Protected> Drop for Fuse<'_, P> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.force_down();
        }
    }
}

impl<P: Protected> Drop for LockClient<P> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<P: Protected> Shell<P> {
    /// Takes one started invalidation and does it, or hands it to the commit thread. `None`: closed.
    pub(super) fn work_step(&self) -> Option<()> {
        for job in self.work.take(1)? {
            // Changed since it was queued, by somebody who marks late.
            if self.needs_commit(&job) {
                self.commits.push(job);
            } else {
                self.drop_and_finish(job);
            }
        }
        Some(())
    }

    /// Takes one invalidation of a lock under which front ends keep something, and asks for it. `None`: closed.
    #[cfg(not(loom))]
    fn recall_step(&self) -> Option<()> {
        for job in self.recalls.take(1)? {
            self.revoke.recall(&job.lock, job.from, job.to);
            self.recall_done(&job.lock);
        }
        Some(())
    }

    /// Takes all invalidations that need a commit; the first one's serves the others too. `None`: closed.
    pub(super) fn commit_step(&self) -> Option<()> {
        for mut job in self.commits.take(usize::MAX)? {
            self.revoke.commit_if_dirty(&job.lock);
            job.committed = true;
            if job.to == Mode::Null {
                // Dropping is left to the workers: the next commit need not wait for it.
                self.work.push(job);
            } else {
                self.job_done(job);
            }
        }
        Some(())
    }

    fn drop_and_finish(&self, job: Job<P>) {
        if !job.to.reads() {
            self.revoke.drop_caches(&job.lock, job.to);
        }
        self.job_done(job);
    }
}
