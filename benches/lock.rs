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

use criterion::{BenchmarkId, Criterion, criterion_group};
pub use error::{Errno, Error, Result};
use format::Ino;
use format::layout::NetLock;
use lock::wire::{check, net_lock};
use lock::{
    LOCK_GROUP, Lock, LockClient, LockClientConfig, LockName, LockOut, LockSender, LockServer, Mode, Protected, Revoke,
    SERVER_SHARDS,
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

/// Lock servers that share the names, as an elected server has them.
fn servers() -> Vec<LockServer> {
    (0..SERVER_SHARDS).map(|_| LockServer::new(false)).collect()
}

/// The same with `locks` read locks, each held by two of `clients`.
fn server(locks: u64, clients: u64) -> Vec<LockServer> {
    let mut s = servers();
    let mut out = Vec::new();
    let mut next = || 1;
    for i in 0..locks {
        for k in 0..2 {
            let rid = (i + k) % clients;
            let (n, s) = (name(i), &mut s[name(i).shard()]);
            s.request(rid, i, &net_lock(n, Mode::Null, Mode::Read, 0), &mut next, &mut out).expect("valid");
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
                let s = &mut s[n.shard()];
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

/// Nanoseconds of one call, the best of several rounds.
fn best_ns(rounds: u32, iters: u64, mut run: impl FnMut(u64) -> Duration) -> f64 {
    (0..rounds).map(|_| run(iters).as_nanos() as f64 / iters as f64).fold(f64::MAX, f64::min)
}

fn alone(client: &LockClient<State>, iters: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..iters {
        drop(black_box(client.acquire(name(0), Mode::Read)));
    }
    start.elapsed()
}

/// Runs `measure` while another thread has lock 2 taken away as fast as it can.
fn in_a_storm<R>(client: &Arc<LockClient<State>>, granter: &Granter, measure: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
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
        });
        let result = measure();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// The targets of the room, as ratios of one run. Times are those of one thread; the storm has two processors with its victim, so
/// it is compared with a thread that only counts.
fn ratios() {
    const ITERS: u64 = 1_000_000;
    let (few, granter) = client(4);
    let (many, _keep) = client(100_000);
    let one = best_ns(7, ITERS, |n| alone(&few, n));
    let idle = best_ns(7, ITERS, |n| alone(&many, n));
    println!(
        "lock: acquire+release {one:.1} ns, with 100,000 idle locks {idle:.1} ns (target 60): {:.2} of it",
        idle / one
    );
    let two = best_ns(7, ITERS, |n| two_threads(&few, n, [name(0), name(1)]));
    println!("lock: two threads on two locks, throughput of one: {:.2} (target 1.8)", 2.0 * one / two);
    let quiet = best_ns(7, ITERS, |n| beside_a_busy_thread(|| alone(&few, n)));
    let storm = best_ns(7, ITERS, |n| in_a_storm(&few, &granter, || alone(&few, n)));
    println!(
        "lock: under an invalidation storm on another lock, throughput of the quiet case: {:.2} (target 0.8)",
        quiet / storm
    );
    freeing();
    traffic();
}

fn beside_a_busy_thread<R>(measure: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n = black_box(n + 1);
                std::thread::yield_now();
            }
        });
        let result = measure();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

enum ToServer {
    Request(NetLock),
    Response(u64, NetLock),
}

/// Sends to the thread of a real [`LockServer`].
struct Wire(std::sync::mpsc::Sender<ToServer>);

impl LockSender for Wire {
    fn send_request(&self, l: &NetLock) -> Result<()> {
        let _ = self.0.send(ToServer::Request(*l));
        Ok(())
    }
    fn send_invalidate_response(&self, _: u64, id: u64, l: &NetLock) {
        let _ = self.0.send(ToServer::Response(id, *l));
    }
}

/// 100,000 idle locks are given up while a task goes on using and asking for others.
fn freeing() {
    const LOCKS: u64 = 100_000;
    let (send, receive) = std::sync::mpsc::channel();
    let config = LockClientConfig { idle_count: 1 << 20, ..LockClientConfig::default() };
    let client = LockClient::<State>::new(config, Arc::new(Wire(send)), Arc::new(Nothing)).expect("threads");
    let weak = Arc::downgrade(&client);
    let server = std::thread::spawn(move || {
        let (mut server, mut seq, mut id, mut out) = (LockServer::new(false), 0u64, 0u64, Vec::new());
        while let Ok(message) = receive.recv() {
            let Some(client) = weak.upgrade() else { return };
            let mut next = || {
                seq += 1;
                seq
            };
            match message {
                ToServer::Request(l) => server.request(1, id, &l, &mut next, &mut out).expect("valid"),
                ToServer::Response(id, l) => server.response(1, id, &l, &mut next, &mut out).expect("valid"),
            }
            for o in out.drain(..) {
                match o {
                    LockOut::Grant { lock, .. } => client.grant(&lock).expect("asked for"),
                    LockOut::Invalidate { rid, lock } => {
                        id += 1;
                        server.invalidate_sent(rid, &lock, id);
                        client.invalidate(0, id, &lock).expect("valid");
                    }
                }
            }
        }
    });
    for i in 0..LOCKS {
        drop(client.acquire(name(i), Mode::Read).expect("granted"));
    }
    client.set_idle_count(32);
    let (mut asked, mut used, start) = (Vec::new(), Vec::new(), Instant::now());
    let mut i = LOCKS;
    while client.len() > 200 && start.elapsed() < Duration::from_secs(60) {
        i += 1;
        let at = Instant::now();
        drop(client.acquire(name(i), Mode::Read).expect("granted"));
        asked.push(at.elapsed());
        let at = Instant::now();
        drop(client.acquire(name(i), Mode::Read).expect("granted"));
        used.push(at.elapsed());
    }
    let took = start.elapsed();
    for (what, times) in [("new locks", &mut asked), ("granted locks", &mut used)] {
        times.sort_unstable();
        let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000];
        println!(
            "lock: {what} while 100,000 are freed in {took:.2?}: median {:.2?}, 99 % {:.2?}, 99.9 % {:.2?}, worst {:.2?} (target 10 ms)",
            at(500),
            at(990),
            at(999),
            at(1000)
        );
    }
    drop(client);
    server.join().expect("no panic");
}

/// Hand-overs at the server: what a request costs, whatever number of locks and clients there is.
fn traffic() {
    const ROUND: u64 = 200_000;
    for clients in [2, 8, 64] {
        let mut costs = Vec::new();
        for locks in [1_000, 10_000, 100_000, 1_000_000] {
            let mut s = server(locks, clients);
            let (mut seq, mut id, mut worst) = (0u64, 1u64 << 40, Duration::ZERO);
            let mut out: Vec<LockOut> = Vec::new();
            let ns = best_ns(3, ROUND, |n| {
                let start = Instant::now();
                for i in 0..n {
                    let at = Instant::now();
                    id += 1;
                    let mut next = || {
                        seq += 1;
                        seq
                    };
                    let mode = if i % 2 == 0 { Mode::Read } else { Mode::Write };
                    let n = name((i * 7919) % locks);
                    let (l, s) = (net_lock(n, Mode::Null, mode, 0), &mut s[n.shard()]);
                    s.request(i % clients, id, &l, &mut next, &mut out).expect("valid");
                    while let Some(o) = out.pop() {
                        if let LockOut::Invalidate { rid, lock } = o {
                            id += 1;
                            s.invalidate_sent(rid, &lock, id);
                            s.response(rid, id, &lock, &mut next, &mut out).expect("valid");
                        }
                    }
                    worst = worst.max(at.elapsed());
                }
                start.elapsed()
            });
            costs.push(ns);
        }
        let ratio = costs.iter().fold(0.0f64, |a, b| a.max(*b)) / costs[0];
        let shown: Vec<String> = costs.iter().map(|c| format!("{c:.0}")).collect();
        println!(
            "lock: server, {clients} clients, 1,000 to 1,000,000 locks: {} ns a request, worst of them to the first {ratio:.2} (target 1.5)",
            shown.join(", ")
        );
    }
    growth();
}

/// The longest that one request waits because a table grows.
fn growth() {
    let mut s = servers();
    let (mut out, mut worst) = (Vec::new(), Duration::ZERO);
    for i in 0..1_000_000 {
        let at = Instant::now();
        s[name(i).shard()]
            .request(i % 8, i, &net_lock(name(i), Mode::Null, Mode::Read, 0), &mut || 1, &mut out)
            .expect("valid");
        out.clear();
        worst = worst.max(at.elapsed());
    }
    println!("lock: server, longest request while 1,000,000 locks come: {worst:.2?}");
}

criterion_group!(benches, acquire_release, invalidations, requests);

/// `-- ratios`: only the targets; anything else goes to criterion.
fn main() {
    let only = std::env::args().any(|a| a == "ratios");
    if !std::env::args().any(|a| a == "--test") {
        ratios();
    }
    if !only {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
