//! What a cluster lock costs when nobody contends for it, and what the server pays for a request.
//!
//! The engine's rooms are private to the crate, so this includes their sources instead of widening the public surface.
//!
//! Target: acquire + release of a granted lock ≤ 60 ns, whatever other locks there are.

// Most of the included rooms is not measured here.
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub)]
// Inside of a program the types of the format are not public, which changes what these lints see.
#![allow(clippy::wrong_self_convention, unfulfilled_lint_expectations)]

#[path = "../src/error.rs"]
mod error;
#[path = "../src/format/mod.rs"]
mod format;
#[path = "../src/lock/mod.rs"]
mod lock;
#[path = "../src/sync/mod.rs"]
mod sync;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
pub use error::{Errno, Error, Result};
use format::Ino;
use format::layout::NetLock;
use lock::wire::{check, net_lock};
use lock::{
    LOCK_GROUP, Lock, LockClient, LockClientConfig, LockName, LockOut, LockSender, LockServer, Mode, Protected, Revoke,
};

#[derive(Default)]
struct State;

impl Protected for State {}

/// Grants everything at once.
#[derive(Default)]
struct Granter {
    client: OnceLock<Weak<LockClient<State>>>,
    seq: AtomicU64,
    answered: AtomicU64,
}

impl LockSender for Granter {
    fn send_request(&self, l: &NetLock) -> Result<()> {
        let c = check(l)?;
        let seq = if c.new.writes() { self.seq.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        let client = self.client.get().and_then(Weak::upgrade).expect("the client asks");
        client.grant(&net_lock(c.name, c.old, c.new, seq))
    }
    fn send_invalidate_response(&self, _: u64, _: u64, _: &NetLock) {
        self.answered.fetch_add(1, Ordering::Release);
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

fn client(locks: u64) -> (Arc<LockClient<State>>, Arc<Granter>) {
    let granter = Arc::new(Granter::default());
    let config = LockClientConfig { idle_count: 1 << 20, ..LockClientConfig::default() };
    let client = LockClient::new(config, granter.clone(), Arc::new(Nothing)).expect("threads");
    let _ = granter.client.set(Arc::downgrade(&client));
    for i in 0..locks {
        drop(client.acquire(name(i), Mode::Read).expect("granted"));
    }
    (client, granter)
}

fn name(i: u64) -> LockName {
    LockName::inode(Ino(i * LOCK_GROUP))
}

/// Two threads at once, each with its own lock (or both with one); the time of one operation of one thread.
fn two_threads(client: &Arc<LockClient<State>>, iters: u64, names: [LockName; 2]) -> Duration {
    let barrier = std::sync::Barrier::new(2);
    let run = |n: LockName| {
        barrier.wait();
        let start = Instant::now();
        for _ in 0..iters {
            drop(black_box(client.acquire(n, Mode::Read)));
        }
        start.elapsed()
    };
    std::thread::scope(|s| {
        let other = s.spawn(|| run(names[1]));
        let mine = run(names[0]);
        mine.max(other.join().expect("no panic"))
    })
}

fn acquire_release(c: &mut Criterion) {
    let mut g = c.benchmark_group("lock/acquire_release");
    for locks in [1u64, 100_000] {
        let (client, _granter) = client(locks);
        g.bench_function(BenchmarkId::new("one_lock_of", locks), |b| {
            b.iter(|| drop(black_box(client.acquire(name(0), Mode::Read))));
        });
        let kept = client.acquire(name(0), Mode::Read).expect("it was used").handle();
        g.bench_function(BenchmarkId::new("held_of", locks), |b| {
            b.iter(|| drop(black_box(client.acquire_held(&kept, Mode::Read))));
        });
        g.bench_function(BenchmarkId::new("round_robin_of", locks), |b| {
            let mut i = 0u64;
            b.iter(|| {
                i = (i + 7919) % locks;
                drop(black_box(client.acquire(name(i), Mode::Read)));
            });
        });
    }
    let (client, granter) = client(4);
    g.bench_function("two_threads_two_locks", |b| b.iter_custom(|n| two_threads(&client, n, [name(0), name(1)])));
    g.bench_function("two_threads_one_lock", |b| b.iter_custom(|n| two_threads(&client, n, [name(0), name(0)])));
    // Another thread takes lock 2 away as fast as it can while lock 0 is used.
    let stop = Arc::new(AtomicBool::new(false));
    let storm = {
        let (client, granter, stop) = (client.clone(), granter.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut id = 0;
            while !stop.load(Ordering::Relaxed) {
                id += 1;
                let before = granter.answered.load(Ordering::Acquire);
                drop(client.acquire(name(2), Mode::Read));
                let _ = client.invalidate(0, id, &net_lock(name(2), Mode::Read, Mode::Null, 0));
                while granter.answered.load(Ordering::Acquire) == before && !stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
        })
    };
    g.bench_function("under_invalidation_storm", |b| {
        b.iter(|| drop(black_box(client.acquire(name(0), Mode::Read))));
    });
    stop.store(true, Ordering::Relaxed);
    storm.join().expect("no panic");
    g.finish();
}

/// Invalidations of many locks, from message to answer, through the worker threads.
fn invalidations(c: &mut Criterion) {
    let mut g = c.benchmark_group("lock/invalidate");
    g.sample_size(10);
    g.bench_function("acquire_and_invalidate_1000", |b| {
        let (client, granter) = client(0);
        b.iter(|| {
            let before = granter.answered.load(Ordering::Acquire);
            for i in 0..1000 {
                drop(client.acquire(name(i), Mode::Read));
                client.invalidate(0, i, &net_lock(name(i), Mode::Read, Mode::Null, 0)).expect("valid");
            }
            while granter.answered.load(Ordering::Acquire) < before + 1000 {
                std::thread::yield_now();
            }
        });
    });
    g.finish();
}

/// A server with `locks` read locks, each held by two of `clients`.
fn server(locks: u64, clients: u64) -> LockServer {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 1;
    for i in 0..locks {
        for k in 0..2 {
            let rid = (i + k) % clients;
            s.request(rid, i, &net_lock(name(i), Mode::Null, Mode::Read, 0), &mut next, &mut out).expect("valid");
            out.clear();
        }
    }
    s
}

fn requests(c: &mut Criterion) {
    let mut g = c.benchmark_group("lock/server");
    g.sample_size(20);
    for (locks, clients) in [(1_000, 2), (1_000, 64), (100_000, 16), (1_000_000, 2), (1_000_000, 64)] {
        let mut s = server(locks, clients);
        let (mut seq, mut i) = (0u64, 0u64);
        let mut out: Vec<LockOut> = Vec::new();
        // One request that takes the lock from another client, with its invalidations and answers.
        g.bench_function(BenchmarkId::new("hand_over", format!("{locks}_locks_{clients}_clients")), |b| {
            b.iter(|| {
                i += 1;
                let n = name((i * 7919) % locks);
                let mut next = || {
                    seq += 1;
                    seq
                };
                let rid = i % clients;
                let mode = if i % 2 == 0 { Mode::Read } else { Mode::Write };
                s.request(rid, i, &net_lock(n, Mode::Null, mode, 0), &mut next, &mut out).expect("valid");
                while let Some(o) = out.pop() {
                    if let LockOut::Invalidate { rid, lock } = o {
                        i += clients;
                        s.invalidate_sent(rid, &lock, i);
                        s.response(rid, i, &lock, &mut next, &mut out).expect("valid");
                    }
                }
            });
        });
    }
    g.finish();
}

criterion_group!(benches, acquire_release, invalidations, requests);
criterion_main!(benches);
