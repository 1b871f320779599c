//! The whole service with its threads: a server that answers as real ones do, work that takes its time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, OnceLock, Weak};
use std::time::Duration;

use super::*;
use crate::error::{Errno, Result, fail};
use crate::format::Key;
use crate::lock::wire::{check, net_lock};
use crate::sync::Arc;

/// Id of the invalidations that follow a null request.
const GIVE_UP: u64 = u64::MAX;

/// The items of one lock, as far as these tests need them.
#[derive(Default)]
struct Items {
    cached: AtomicBool,
}

impl Protected for Items {}

/// Server, transaction and network of one node in one.
#[derive(Default)]
struct World {
    client: OnceLock<Weak<LockClient<Items>>>,
    /// Requests are only recorded.
    silent: AtomicBool,
    /// Sends fail as after a forced unmount.
    broken: AtomicBool,
    seq: AtomicU64,
    requests: Mutex<Vec<NetLock>>,
    answers: Mutex<Vec<(u64, NetLock)>>,
    answered: Condvar,
    open_seq: AtomicU64,
    commits: AtomicUsize,
    /// Commits wait while this is held.
    commit_gate: Mutex<()>,
    drops: AtomicUsize,
    drops_while_dirty: AtomicUsize,
}

impl World {
    /// Waits until `n` invalidations are answered.
    fn answers(&self, n: usize) -> Vec<(u64, NetLock)> {
        let answers = self.answers.lock().unwrap();
        let wait = self.answered.wait_timeout_while(answers, Duration::from_secs(20), |a| a.len() < n);
        let answers = wait.unwrap().0;
        assert!(answers.len() >= n, "an invalidation is not answered");
        answers.clone()
    }
}

impl LockSender for World {
    fn send_request(&self, l: &NetLock) -> Result<()> {
        if self.broken.load(SeqCst) {
            return fail(Errno::ENOLINK);
        }
        self.requests.lock().unwrap().push(*l);
        if self.silent.load(SeqCst) {
            return Ok(());
        }
        let c = check(l)?;
        let client = self.client.get().and_then(Weak::upgrade).expect("the client asks");
        if c.new == Mode::Null {
            client.invalidate(0, GIVE_UP, &net_lock(c.name, c.old, Mode::Null, 0))?;
            // The real server waits for the answer; here the worker's answer triggers the grant.
            return Ok(());
        }
        let seq = if c.new.writes() { self.seq.fetch_add(1, SeqCst) + 1 } else { 0 };
        client.grant(&net_lock(c.name, c.old, c.new, seq))
    }

    fn send_invalidate_response(&self, _: u64, id: u64, l: &NetLock) {
        self.answers.lock().unwrap().push((id, *l));
        self.answered.notify_all();
        if id == GIVE_UP {
            let client = self.client.get().and_then(Weak::upgrade).expect("the client answers");
            let name = check(l).unwrap().name;
            client.grant(&net_lock(name, Mode::Null, Mode::Null, 0)).expect("it was asked for");
        }
    }
}

impl Revoke<Items> for World {
    fn commit_if_dirty(&self, lock: &Lock<Items>) {
        let _gate = self.commit_gate.lock().unwrap();
        if lock.dirty_seq() == self.open_seq.load(SeqCst) {
            self.commits.fetch_add(1, SeqCst);
            self.open_seq.fetch_add(1, SeqCst);
        }
    }
    fn drop_caches(&self, lock: &Lock<Items>, to: Mode) {
        assert_eq!(to, Mode::Null);
        self.drops.fetch_add(1, SeqCst);
        self.drops_while_dirty.fetch_add(usize::from(lock.dirty_seq() >= self.open_seq.load(SeqCst)), SeqCst);
        lock.state().cached.store(false, SeqCst);
    }
    fn open_seq(&self) -> u64 {
        self.open_seq.load(SeqCst)
    }
}

fn start_with(config: LockClientConfig) -> (Arc<LockClient<Items>>, Arc<World>) {
    let world = Arc::new(World { open_seq: AtomicU64::new(10), ..World::default() });
    let client = LockClient::new(config, world.clone(), world.clone()).unwrap();
    let _ = world.client.set(Arc::downgrade(&client));
    (client, world)
}

fn start() -> (Arc<LockClient<Items>>, Arc<World>) {
    start_with(LockClientConfig::default())
}

fn invalidate(client: &LockClient<Items>, id: u64, n: u64, old: Mode, new: Mode) {
    client.invalidate(0, id, &net_lock(group(n), old, new, 0)).unwrap();
}

fn eventually(what: &str, f: impl Fn() -> bool) {
    for _ in 0..2000 {
        if f() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never: {what}");
}

#[test]
fn a_granted_lock_is_used_again_without_a_message() {
    let (client, world) = start();
    for _ in 0..10 {
        let guard = client.acquire(group(1), Mode::Write).unwrap();
        assert_eq!((guard.acquired_mode(), guard.name(), guard.range()), (Mode::Write, group(1), group(1).range()));
        assert!(client.try_acquire(group(1), Mode::Read).is_ok());
    }
    assert_eq!(world.requests.lock().unwrap().len(), 1);
    assert!(client.try_acquire(group(2), Mode::Read).unwrap_err().is(Errno::EAGAIN));
    assert!(client.acquire(group(1), Mode::Null).unwrap_err().is(Errno::EINVAL));
    assert_eq!(client.status().locks, 1, "a try leaves no object behind");
}

/// Scenario 32: many invalidations at once, each of which needs a commit.
#[test]
fn scenario_32_one_commit_serves_all_invalidations_that_wait() {
    let (client, world) = start();
    let held = world.commit_gate.lock().unwrap();
    for n in 0..50 {
        let guard = client.acquire(group(n), Mode::Write).unwrap();
        guard.mark_dirty(10);
    }
    for n in 0..50 {
        // Returns at once although commits are blocked: message delivery never waits for them.
        invalidate(&client, n, n, Mode::Write, if n % 2 == 0 { Mode::Read } else { Mode::Null });
    }
    // A lock without changes of the open transaction does not wait either.
    drop(client.acquire(group(99), Mode::Write).unwrap());
    invalidate(&client, 99, 99, Mode::Write, Mode::Null);
    assert_eq!(world.answers(1)[0].0, 99);
    drop(held);
    world.answers(51);
    assert_eq!(world.commits.load(SeqCst), 1);
    assert_eq!(world.drops_while_dirty.load(SeqCst), 0);
    assert_eq!(world.drops.load(SeqCst), 26, "write to read keeps the caches");
}

/// Scenario 33: an invalidation of a lock whose changes were committed long ago.
#[test]
fn scenario_33_a_clean_write_lock_needs_no_commit() {
    let (client, world) = start();
    client.acquire(group(1), Mode::Write).unwrap().mark_dirty(9);
    invalidate(&client, 1, 1, Mode::Write, Mode::Read);
    let answers = world.answers(1);
    assert_eq!(answers[0].1.new_mode, Mode::Read.wire());
    assert_eq!(world.commits.load(SeqCst), 0);
    eventually("readable", || client.try_acquire(group(1), Mode::Read).is_ok());
    assert!(client.try_acquire(group(1), Mode::Write).is_err());
}

#[test]
fn dropping_clears_what_the_lock_protects() {
    let (client, world) = start();
    let guard = client.acquire(group(1), Mode::Read).unwrap();
    guard.state().cached.store(true, SeqCst);
    let kept = guard.handle();
    invalidate(&client, 1, 1, Mode::Read, Mode::Null);
    assert!(kept.state().cached.load(SeqCst), "there is a user");
    assert_eq!(kept.readable_gen(), Some(1));
    drop(guard);
    world.answers(1);
    assert!(!kept.state().cached.load(SeqCst));
    eventually("freed", || client.peek(group(1)).is_none());
    assert_eq!(kept.readable_gen(), None);
    // The kept object is dead; a new one takes its place, with a new generation.
    let again = client.acquire_held(&kept, Mode::Read).unwrap();
    assert!(!Arc::ptr_eq(&kept, &again.handle()));
    assert_eq!(again.refresh_gen(), 2);
}

/// Defect 37 (W-6), scenario 47: readers that never stop must not keep a writer elsewhere waiting.
#[test]
fn defect_37_heavy_local_use_does_not_starve_an_invalidation() {
    let (client, world) = start();
    drop(client.acquire(group(1), Mode::Read).unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !stop.load(SeqCst) {
                    // Overlapping uses: there is nearly always a user.
                    let outer = client.acquire(group(1), Mode::Read).unwrap();
                    let nested = client.acquire(group(1), Mode::Read).unwrap();
                    drop(nested);
                    drop(outer);
                    std::thread::yield_now();
                }
            });
        }
        for i in 1..=20 {
            invalidate(&client, i, 1, Mode::Read, Mode::Null);
            world.answers(i as usize);
            eventually("granted again", || client.peek(group(1)).is_some_and(|l| l.mode() == Mode::Read));
        }
        stop.store(true, SeqCst);
    });
}

/// Rule 4.3.7 and scenario 6: who uses a lock must not wait for a stronger mode of it.
#[test]
fn scenario_06_upgrade_while_holding_is_refused() {
    let (client, _) = start();
    let guard = client.acquire(group(1), Mode::Read).unwrap();
    assert!(client.acquire(group(1), Mode::Write).unwrap_err().is(Errno::EDEADLK));
    assert!(client.try_acquire(group(1), Mode::Write).unwrap_err().is(Errno::EAGAIN));
    drop(guard);
    assert!(client.acquire(group(1), Mode::Write).is_ok());
}

/// Defect 39 (W-9), scenario 40: a forced unmount fails who waits for a grant.
#[test]
fn defect_39_forced_unmount_fails_waiters() {
    let (client, world) = start();
    world.silent.store(true, SeqCst);
    std::thread::scope(|s| {
        let waiters: Vec<_> =
            (0..3).map(|_| s.spawn(|| client.acquire(group(1), Mode::Write).map(|_| ()).unwrap_err())).collect();
        eventually("three wait", || client.dump().iter().any(|l| l.contains("waiters=3")));
        client.force_down();
        for w in waiters {
            assert!(w.join().unwrap().is(Errno::ENOLINK));
        }
    });
    assert!(client.acquire(group(1), Mode::Read).unwrap_err().is(Errno::ENOLINK));
    assert!(client.acquire(group(2), Mode::Read).unwrap_err().is(Errno::ENOLINK));
}

/// Defect 39 (W-10): messages that no sane server sends are refused, not asserted.
#[test]
fn defect_39_unexpected_messages_are_refused() {
    let (client, world) = start();
    assert!(client.grant(&net_lock(group(1), Mode::Null, Mode::Read, 0)).is_err(), "unknown lock");
    drop(client.acquire(group(1), Mode::Write).unwrap());
    assert!(client.grant(&net_lock(group(1), Mode::Null, Mode::Write, 9)).is_err(), "nothing was asked for");
    world.silent.store(true, SeqCst);
    std::thread::scope(|s| {
        let waiter = s.spawn(|| client.acquire(group(2), Mode::Write).map(|g| g.write_seq()));
        eventually("asked", || world.requests.lock().unwrap().len() == 2);
        assert!(client.grant(&net_lock(group(2), Mode::Null, Mode::Read, 0)).is_err(), "weaker than wanted");
        assert!(client.grant(&net_lock(group(2), Mode::Null, Mode::Write, 0)).is_err(), "no write_seq");
        let mut bad = net_lock(group(2), Mode::Null, Mode::Write, 7);
        bad.new_mode = 9;
        assert!(client.grant(&bad).is_err() && client.invalidate(0, 1, &bad).is_err(), "no such mode");
        assert!(client.invalidate(0, 1, &net_lock(group(2), Mode::Read, Mode::Write, 0)).is_err(), "not lower");
        client.grant(&net_lock(group(2), Mode::Null, Mode::Write, 7)).unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), 7);
    });
    // Unknown locks are answered at once with null (scenario 19).
    invalidate(&client, 5, 77, Mode::Write, Mode::Read);
    let answers = world.answers(1);
    assert_eq!((answers[0].0, answers[0].1.new_mode), (5, Mode::Null.wire()));
}

/// Scenario 39: the work of an invalidation meets a forced unmount.
#[test]
fn defect_39_invalidation_survives_a_forced_unmount() {
    let (client, world) = start();
    client.acquire(group(1), Mode::Write).unwrap().mark_dirty(10);
    let gate = world.commit_gate.lock().unwrap();
    invalidate(&client, 1, 1, Mode::Write, Mode::Null);
    world.broken.store(true, SeqCst);
    client.force_down();
    drop(gate);
    world.answers(1);
    client.close();
}

/// Defect 40: a lock that was never readable has generation 0, and that never counts as valid.
#[test]
fn defect_40_generation_zero_is_never_valid() {
    let (client, world) = start();
    drop(client.acquire(group(1), Mode::WriteOnly).unwrap());
    let lock = client.peek(group(1)).unwrap();
    assert_eq!((lock.refresh_gen(), lock.readable_gen()), (0, None));
    drop(client.acquire(group(2), Mode::Read).unwrap());
    assert_eq!(client.peek(group(2)).unwrap().readable_gen(), Some(1));
    // The counter is the mount's: it goes on over freed lock objects.
    invalidate(&client, 1, 2, Mode::Read, Mode::Null);
    world.answers(1);
    eventually("freed", || client.peek(group(2)).is_none());
    drop(client.acquire(group(2), Mode::Read).unwrap());
    assert_eq!(client.peek(group(2)).unwrap().readable_gen(), Some(2));
}

/// Scenario 36: after the orderly shutdown new users fail but invalidations are still answered.
#[test]
fn scenario_36_shutdown_still_answers_invalidations() {
    let (client, world) = start();
    drop(client.acquire(group(1), Mode::Read).unwrap());
    world.silent.store(true, SeqCst);
    std::thread::scope(|s| {
        let waiter = s.spawn(|| client.acquire(group(2), Mode::Read).map(|_| ()).unwrap_err());
        eventually("one waits", || client.dump().iter().any(|l| l.contains("waiters=1")));
        client.shutdown();
        assert!(waiter.join().unwrap().is(Errno::ESHUTDOWN));
    });
    assert!(client.acquire(group(1), Mode::Read).unwrap_err().is(Errno::ENOLCK));
    assert!(client.acquire(group(3), Mode::Read).unwrap_err().is(Errno::ENOLCK));
    invalidate(&client, 1, 1, Mode::Read, Mode::Null);
    world.answers(1);
    // The grant of the request that was on its way is still taken.
    client.grant(&net_lock(group(2), Mode::Null, Mode::Read, 0)).unwrap();
    assert_eq!(client.recover(&Key::ZEROS).len(), 1);
}

/// Scenario 37: the service goes while an invalidation waits for a user.
#[test]
fn scenario_37_close_with_a_queued_invalidation_and_a_user() {
    let (client, _world) = start();
    let guard = client.acquire(group(1), Mode::Read).unwrap();
    let kept = guard.handle();
    invalidate(&client, 1, 1, Mode::Read, Mode::Null);
    client.close();
    drop(client);
    drop(guard);
    assert_eq!(Arc::strong_count(&kept), 1, "the last use freed the lock");
}

#[test]
fn idle_locks_are_given_up_down_to_95_percent() {
    let (client, world) = start_with(LockClientConfig { idle_count: 100, ..LockClientConfig::default() });
    let dirty = client.acquire(group(5000), Mode::Write).unwrap();
    dirty.mark_dirty(10);
    drop(dirty);
    let used = client.acquire(group(5001), Mode::Read).unwrap();
    for n in 0..98 {
        drop(client.acquire(group(n), Mode::Read).unwrap());
    }
    assert_eq!(client.status().locks, 100, "not more than allowed");
    drop(client.acquire(group(98), Mode::Read).unwrap());
    eventually("shrunk", || client.status().locks <= 95 && client.status().shrinking == 0);
    assert_eq!(client.status().locks, 95, "not less than wanted");
    assert!(client.peek(group(5000)).is_some(), "has changes of the open transaction");
    assert!(client.peek(group(5001)).is_some(), "is used");
    assert!(world.drops.load(SeqCst) >= 6);
    drop(used);
    client.purge();
    eventually("purged", || client.status().locks == 0);
}

/// Many locks of many threads, grants and invalidations at once: users never see a lock that does not serve them.
#[test]
fn storm_of_users_and_invalidations() {
    let (client, world) = start_with(LockClientConfig { idle_count: 32, ..LockClientConfig::default() });
    let (stop, mut taken) = (AtomicBool::new(false), 0);
    std::thread::scope(|s| {
        for t in 0..3u64 {
            let (client, stop) = (&client, &stop);
            s.spawn(move || {
                let mut n = t;
                while !stop.load(SeqCst) {
                    n = (n * 31 + 7) % 60;
                    let guard = client.acquire(group(n), Mode::Read).unwrap();
                    assert!(guard.lock_serves());
                    guard.state().cached.store(true, SeqCst);
                    assert!(guard.refresh_gen() > 0);
                }
            });
        }
        for i in 0..3000u64 {
            // More than are kept of one lock are refused: a server waits for each answer.
            if client.invalidate(0, i, &net_lock(group(i % 60), Mode::Read, Mode::Null, 0)).is_ok() {
                taken += 1;
            }
            if i % 16 == 0 {
                std::thread::yield_now();
            }
        }
        stop.store(true, SeqCst);
    });
    assert!(taken >= 500, "only {taken} invalidations were taken");
    eventually("at rest", || client.status().working == 0 && client.status().shrinking == 0);
    for line in client.dump() {
        assert!(line.contains("users=0/0/0") && line.contains("waiters=0"), "{line}");
    }
    // Those that follow null requests are not counted.
    let answered = || -> Vec<u64> {
        let answers = world.answers.lock().unwrap();
        answers.iter().map(|(id, _)| *id).filter(|id| *id != GIVE_UP).collect()
    };
    eventually("each is answered", || answered().len() >= taken);
    let mut ids = answered();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), answered().len()), (taken, taken), "each is answered once");
}

/// 04 §7.7: what is reported is what is held, 22 a trip, in key order, each lock once.
#[test]
fn recovery_reports_all_held_locks_in_trips() {
    let (client, _) = start();
    for n in 0..50 {
        drop(client.acquire(group(n * 3), if n % 2 == 0 { Mode::Read } else { Mode::Write }).unwrap());
    }
    client.new_epoch(2);
    let (mut key, mut seen, mut trips) = (Key::ZEROS, Vec::new(), 0);
    loop {
        let some = client.recover(&key);
        trips += 1;
        let Some(last) = some.last() else { break };
        key = last.key.to_key().next();
        seen.extend(some.iter().map(|l| (check(l).unwrap().name, l.new_mode, l.write_seq.get())));
    }
    assert_eq!((seen.len(), trips), (50, 4));
    assert!(seen.is_sorted_by(|a, b| a.0 < b.0));
    assert!(seen.iter().all(|(_, m, seq)| (*m == Mode::Write.wire()) == (*seq > 0)));
}

impl LockGuard<Items> {
    fn lock_serves(&self) -> bool {
        (**self).mode().serves(self.acquired_mode())
    }
}
