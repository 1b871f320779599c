//! The concurrent core under the model checker:
//! `RUSTFLAGS="--cfg loom" cargo test --lib --release lock::`
//!
//! Each model is two or three threads on one lock, small enough to be explored completely.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use loom::thread;

use super::*;
use crate::error::Result;
use crate::format::Key;
use crate::lock::shell::{Job, Shell};
use crate::lock::wire::{check, net_lock};
use crate::sync::{Arc, Weak};

/// Counts how often the state of a lock is dropped.
#[derive(Default)]
struct State;

std::thread_local! {
    /// All threads of a model run on the thread of its test; a counter for all would count what other tests drop, too.
    static STATES_DROPPED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Protected for State {}

impl Drop for State {
    fn drop(&mut self) {
        STATES_DROPPED.set(STATES_DROPPED.get() + 1);
    }
}

/// A server that grants everything at once, or nothing.
#[derive(Default)]
struct Server {
    shell: std::sync::OnceLock<Weak<Shell<State>>>,
    silent: AtomicBool,
    requests: AtomicUsize,
    responses: AtomicUsize,
}

impl LockSender for Server {
    fn send_request(&self, l: &NetLock) -> Result<()> {
        let n = self.requests.fetch_add(1, SeqCst) as u64;
        if !self.silent.load(SeqCst) {
            let c = check(l)?;
            let seq = if c.new.writes() { 100 + n } else { 0 };
            let shell = self.shell.get().and_then(Weak::upgrade).expect("requests come from the shell");
            shell.grant(&net_lock(c.name, c.old, c.new, seq)).expect("a valid grant");
        }
        Ok(())
    }
    fn send_invalidate_response(&self, _: u64, _: u64, _: &NetLock) {
        self.responses.fetch_add(1, SeqCst);
    }
}

struct Nothing;

impl Revoke<State> for Nothing {
    fn commit_if_dirty(&self, _: &Lock<State>) {}
    fn drop_caches(&self, _: &Lock<State>, _: Mode) {}
    fn open_seq(&self) -> u64 {
        1
    }
}

fn start() -> (Arc<Shell<State>>, Arc<Server>) {
    let config = LockClientConfig { shards: 1, ..LockClientConfig::default() };
    let server = Arc::new(Server::default());
    let shell = Shell::new(&config, server.clone(), Arc::new(Nothing));
    let _ = server.shell.set(Arc::downgrade(&shell));
    (shell, server)
}

fn name() -> LockName {
    group(1)
}

fn invalidate(shell: &Shell<State>, id: u64, old: Mode, new: Mode) {
    shell.invalidate(shell.epoch.load(SeqCst), id, &net_lock(name(), old, new, 0)).expect("a valid invalidation");
}

/// Invalidations that were started, with and without changes that need a commit.
fn started(shell: &Shell<State>) -> Vec<Job<State>> {
    let mut jobs = shell.work.try_take();
    jobs.extend(shell.commits.try_take());
    jobs
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut b = loom::model::Builder::new();
    b.preemption_bound = Some(3);
    b.check(f);
}

/// L-4: whoever is later, the last user's release or the invalidation, starts the work, once.
#[test]
fn release_against_start_of_invalidation() {
    model(|| {
        let (shell, _) = start();
        drop(shell.acquire(name(), Mode::Read).unwrap());
        let s = shell.clone();
        let user = thread::spawn(move || {
            if let Ok(guard) = s.try_acquire(name(), Mode::Read) {
                assert!(guard.lock_mode_serves());
                drop(guard);
            }
        });
        let s = shell.clone();
        let server = thread::spawn(move || invalidate(&s, 1, Mode::Read, Mode::Null));
        user.join().unwrap();
        server.join().unwrap();
        assert_eq!(shell.work.try_take().len(), 1);
        let lock = shell.table.get(name()).expect("in work");
        assert!(lock.hot.word.load().unused() && lock.mode() == Mode::Null);
    });
}

/// S-3: nobody uses a lock while what it protects is being dropped.
#[test]
fn acquire_against_the_work_of_an_invalidation() {
    model(|| {
        let (shell, server) = start();
        drop(shell.acquire(name(), Mode::Write).unwrap());
        let dropping = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let (s, d) = (shell.clone(), dropping.clone());
        let user = thread::spawn(move || {
            if let Ok(guard) = s.try_acquire(name(), Mode::Write) {
                assert!(!d.load(loom::sync::atomic::Ordering::SeqCst), "used while dropped");
                guard.mark_dirty(7);
                assert!(!d.load(loom::sync::atomic::Ordering::SeqCst), "used while dropped");
                return true;
            }
            false
        });
        invalidate(&shell, 1, Mode::Write, Mode::Null);
        let worked = |jobs: Vec<Job<State>>| {
            for job in jobs {
                dropping.store(true, loom::sync::atomic::Ordering::SeqCst);
                shell.job_done(job);
            }
        };
        worked(started(&shell));
        let used = user.join().unwrap();
        let late = started(&shell);
        // S-5: what the user wrote is seen by the work that follows its release.
        assert!(late.iter().all(|j| !used || j.lock.dirty_seq() == 7));
        worked(late);
        assert_eq!(server.responses.load(SeqCst), 1);
        assert!(shell.table.get(name()).is_none(), "idle and null: freed");
    });
}

/// Defect 34 (W-3): the grant of a new server is applied after the old server's invalidation.
#[test]
fn grant_against_finish_of_invalidation() {
    model(|| {
        let (shell, server) = start();
        drop(shell.acquire(name(), Mode::Read).unwrap());
        invalidate(&shell, 1, Mode::Read, Mode::Null);
        let job = shell.work.try_take().pop().expect("started");
        server.silent.store(true, SeqCst);
        let s = shell.clone();
        let user = thread::spawn(move || s.acquire(name(), Mode::Write).map(|g| g.lock_mode_serves()));
        let done = Arc::new(AtomicBool::new(false));
        let (s, d) = (shell.clone(), done.clone());
        let worker = thread::spawn(move || {
            d.store(true, SeqCst);
            s.job_done(job);
        });
        // The user's request is on its way or not; the grant must wait for both.
        loop {
            if server.requests.load(SeqCst) == 2 {
                break;
            }
            thread::yield_now();
        }
        shell.grant(&net_lock(name(), Mode::Null, Mode::Write, 50)).expect("it was asked for");
        assert!(user.join().unwrap().unwrap());
        assert!(done.load(SeqCst), "granted before the invalidation ended");
        worker.join().unwrap();
    });
}

/// S-15: a look-up finds the lock before it is freed, or a new one; it never loses its request.
#[test]
fn free_against_look_up() {
    model(|| {
        let (shell, _) = start();
        drop(shell.acquire(name(), Mode::Read).unwrap());
        invalidate(&shell, 1, Mode::Read, Mode::Null);
        let job = shell.work.try_take().pop().expect("started");
        let s = shell.clone();
        let user = thread::spawn(move || s.acquire(name(), Mode::Read).map(|g| g.refresh_gen()));
        shell.job_done(job);
        assert_eq!(user.join().unwrap().unwrap(), 2, "a new generation after it was null");
        let lock = shell.table.get(name()).expect("granted again");
        assert!(!lock.hot.word.load().dead() && shell.table.len() == 1);
    });
}

/// S-17: a report tells null or the whole grant.
#[test]
fn recovery_report_against_grant() {
    model(|| {
        let (shell, server) = start();
        server.silent.store(true, SeqCst);
        let s = shell.clone();
        let user = thread::spawn(move || s.acquire(name(), Mode::Write).map(|g| g.write_seq()));
        while server.requests.load(SeqCst) == 0 {
            thread::yield_now();
        }
        let s = shell.clone();
        let reporter = thread::spawn(move || s.recover(&Key::ZEROS));
        shell.grant(&net_lock(name(), Mode::Null, Mode::Write, 50)).unwrap();
        for l in reporter.join().unwrap() {
            assert_eq!((l.new_mode, l.write_seq.get()), (Mode::Write.wire(), 50));
        }
        assert_eq!(user.join().unwrap().unwrap(), 50);
    });
}

/// 04 §12 scenario 12: a lock that is given up may be used until the server asks for it; then it goes.
#[test]
fn give_up_against_acquire() {
    model(|| {
        let (shell, server) = start();
        drop(shell.acquire(name(), Mode::Read).unwrap());
        server.silent.store(true, SeqCst);
        let lock = shell.table.get(name()).unwrap();
        let s = shell.clone();
        let user = thread::spawn(move || drop(s.try_acquire(name(), Mode::Read).expect("still granted")));
        let asked = shell.give_up(&lock);
        user.join().unwrap();
        if asked {
            invalidate(&shell, 1, Mode::Read, Mode::Null);
            shell.job_done(shell.work.try_take().pop().expect("nobody uses it"));
            shell.grant(&net_lock(name(), Mode::Null, Mode::Null, 0)).unwrap();
            assert!(shell.table.get(name()).is_none());
        }
        assert_eq!(shell.status().shrinking, 0);
    });
}

/// Two tasks that want different modes share one outstanding request, and both get their turn.
#[test]
fn two_waiters_with_different_modes() {
    model(|| {
        let (shell, _) = start();
        let s = shell.clone();
        let other = thread::spawn(move || drop(s.acquire(name(), Mode::Write).unwrap()));
        drop(shell.acquire(name(), Mode::Read).unwrap());
        other.join().unwrap();
        let lock = shell.table.get(name()).unwrap();
        assert!(lock.hot.word.load().unused() && lock.mode() == Mode::Write);
    });
}

/// The guard outlives the table: the last of both frees the lock, once.
#[test]
fn last_release_against_drop_of_the_table() {
    model(|| {
        STATES_DROPPED.set(0);
        let (shell, _) = start();
        let guard = shell.acquire(name(), Mode::Read).unwrap();
        let other = thread::spawn(move || drop(shell));
        drop(guard);
        other.join().unwrap();
        assert_eq!(STATES_DROPPED.get(), 1);
    });
}

/// A closed list gives out what it has and then ends its takers.
#[test]
fn work_list_against_close() {
    model(|| {
        let list = Arc::new(crate::lock::work::WorkList::new());
        let l = list.clone();
        let taker = thread::spawn(move || {
            let mut n = 0;
            while let Some(items) = l.take(1) {
                n += items.len();
            }
            n
        });
        let l = list.clone();
        let pusher = thread::spawn(move || usize::from(l.push(1)));
        let mine = usize::from(list.push(2));
        pusher
            .join()
            .map(|theirs| {
                list.close();
                assert_eq!(taker.join().unwrap(), mine + theirs);
            })
            .unwrap();
        assert!(!list.push(3));
    });
}

impl LockGuard<State> {
    /// S-3 as seen by a user.
    fn lock_mode_serves(&self) -> bool {
        self.hot.word.load().mode().serves(self.acquired_mode())
    }
}
