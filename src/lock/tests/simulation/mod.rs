//! Whole clusters in one thread: real client machines, real server machine, a network that loses messages only at
//! fail-over, front ends that keep what they were lent, random schedules. After every step the safety properties of
//! `spec/04 §11` are checked, at the end L-8.
//!
//! A failing run prints its seed; `SCOUTFS_LOCK_SEED=<seed>` runs only that one.

mod check;
mod front;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use front::Page;

use super::node::{Event, Node, Started};
use super::*;
use crate::format::Key;
use crate::lock::machine::{Loan, Manner};
use crate::lock::wire::check;

const CLIENTS: usize = 3;
const LOCKS: u64 = 2;
const STEPS: usize = 400;

#[derive(Clone, Debug)]
enum ToServer {
    Request { id: u64, lock: NetLock },
    Response { id: u64, lock: NetLock },
    Report { locks: Vec<NetLock> },
}

#[derive(Clone, Debug)]
enum ToClient {
    Grant { id: u64, lock: NetLock },
    Invalidate { id: u64, lock: NetLock },
    AskReport { from: Key },
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    /// Front ends give back what they have.
    Recall,
    Recalled,
    Commit,
    Drop,
    Finish,
}

/// What a client has cached of the one item that each lock covers.
#[derive(Clone, Copy, Default, Debug)]
struct Cache {
    known: Option<u64>,
    dirty: u64,
}

#[derive(Default)]
struct Client {
    rid: u64,
    node: Node,
    dead: bool,
    /// Term of the server greeted last; the node's epoch.
    term: u64,
    unanswered: BTreeMap<u64, NetLock>,
    next_id: u64,
    to_server: Vec<ToServer>,
    from_server: VecDeque<ToClient>,
    using: BTreeMap<u32, (LockName, Mode)>,
    waiting: BTreeMap<u32, (LockName, Mode)>,
    next_task: u32,
    cache: BTreeMap<LockName, Cache>,
    pages: BTreeMap<LockName, Page>,
    /// Tasks that want something for the front end.
    takers: BTreeSet<u32>,
    jobs: Vec<(Started, Stage)>,
    /// Modes at the last greeting, of locks that got no grant since (S-17).
    floor: BTreeMap<LockName, Mode>,
    readable: BTreeMap<LockName, (bool, u64)>,
}

struct Sim {
    rng: StdRng,
    /// One fail-over in so many steps.
    fail_over_every: u32,
    /// Only one of so many chances to work on an invalidation is taken: slow commits meet fail-overs.
    work_every: u32,
    clients: Vec<Client>,
    server: LockServer,
    term: u64,
    next_invalidation: u64,
    pending: BTreeSet<u64>,
    seq: u64,
    last_write_seq: u64,
    next_rid: u64,
    names: Vec<LockName>,
    /// The value of each lock's item: what all finished writes add up to, and what is in the trees.
    total: BTreeMap<LockName, u64>,
    committed: BTreeMap<LockName, u64>,
    awaiting: BTreeSet<(u64, LockName)>,
    recorded: BTreeMap<(u64, LockName), Mode>,
    log: Vec<String>,
}

fn at_most(a: Mode, b: Mode) -> bool {
    a == Mode::Null || a == b || (a == Mode::Read && b == Mode::Write)
}

fn exclusive(a: Mode, b: Mode) -> bool {
    a == Mode::Null || b == Mode::Null || (a == b && a != Mode::Write)
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let mut rng = StdRng::seed_from_u64(seed);
        let names: Vec<LockName> = (1..=rng.random_range(1..=LOCKS)).map(group).collect();
        let zero: BTreeMap<LockName, u64> = names.iter().map(|n| (*n, 0)).collect();
        let mut sim = Sim {
            fail_over_every: [25, 50, 100, 400][rng.random_range(0..4)],
            work_every: [1, 3, 10, 30][rng.random_range(0..4)],
            rng,
            clients: Vec::new(),
            server: LockServer::new(false),
            term: 1,
            next_invalidation: 1 << 32,
            pending: BTreeSet::new(),
            seq: 0,
            last_write_seq: 0,
            next_rid: 1,
            names,
            total: zero.clone(),
            committed: zero,
            awaiting: BTreeSet::new(),
            recorded: BTreeMap::new(),
            log: Vec::new(),
        };
        for _ in 0..CLIENTS {
            let c = sim.mount();
            sim.clients.push(c);
        }
        sim
    }

    fn mount(&mut self) -> Client {
        let mut c = Client { rid: self.next_rid, term: self.term, ..Client::default() };
        c.node.new_epoch(self.term);
        self.next_rid += 1;
        c
    }

    fn note(&mut self, text: String) {
        self.log.push(text);
    }

    // ---- the server ----

    /// Calls the server and carries out what it says, checking S-8, S-9, S-11 and S-12 on the way.
    fn serve(&mut self, f: impl FnOnce(&mut LockServer, &mut dyn FnMut() -> u64, &mut Vec<LockOut>)) {
        let mut out = Vec::new();
        let seq = &mut self.seq;
        let mut next = || {
            *seq += 1;
            *seq
        };
        f(&mut self.server, &mut next, &mut out);
        for o in out {
            self.note(format!("  server: {o:?}"));
            let (LockOut::Grant { rid, lock, .. } | LockOut::Invalidate { rid, lock }) = o;
            let c = check(&lock).expect("the server sends valid locks");
            let recorded = self.recorded.get(&(rid, c.name)).copied().unwrap_or_default();
            assert_eq!(c.old, recorded, "S-11: old mode is what the server has recorded");
            match o {
                LockOut::Grant { id, .. } => {
                    assert!(!self.awaiting.iter().any(|(_, n)| *n == c.name), "S-9: an invalidation is unanswered");
                    assert!(self.pending.is_empty(), "S-9: a client is in recovery");
                    if c.new.writes() {
                        assert!(c.write_seq > self.last_write_seq, "S-12");
                        self.last_write_seq = c.write_seq;
                    }
                    self.recorded.insert((rid, c.name), c.new);
                    if let Some(client) = self.client_of(rid) {
                        client.from_server.push_back(ToClient::Grant { id, lock });
                    }
                }
                LockOut::Invalidate { .. } => {
                    assert!(self.awaiting.insert((rid, c.name)), "S-8: one invalidation at a time");
                    self.next_invalidation += 1;
                    let id = self.next_invalidation;
                    if let Some(client) = self.client_of(rid) {
                        client.from_server.push_back(ToClient::Invalidate { id, lock });
                        self.server.invalidate_sent(rid, &lock, id);
                    }
                }
            }
        }
    }

    /// A client that messages can be sent to.
    fn client_of(&mut self, rid: u64) -> Option<&mut Client> {
        self.clients.iter_mut().find(|c| c.rid == rid && !c.dead)
    }

    fn server_receives(&mut self, i: usize) {
        let c = &mut self.clients[i];
        // Any order, except that the first of two messages of the same kind for one lock cannot be overtaken.
        let at = self.rng.random_range(0..c.to_server.len());
        let msg = c.to_server.remove(at);
        let rid = c.rid;
        self.note(format!("server receives from {rid}: {msg:?}"));
        match msg {
            ToServer::Request { id, lock } => {
                self.serve(|s, next, out| s.request(rid, id, &lock, next, out).expect("a valid request"));
            }
            ToServer::Response { id, lock } => {
                let l = check(&lock).unwrap();
                assert!(self.awaiting.remove(&(rid, l.name)), "S-10: an answer to nothing");
                self.recorded.insert((rid, l.name), l.new);
                self.serve(|s, next, out| s.response(rid, id, &lock, next, out).expect("a valid response"));
            }
            ToServer::Report { locks } => {
                let r = self.server.recovered(rid, &locks, self.seq).expect("a valid report");
                self.seq = self.seq.max(r.max_write_seq);
                for l in locks {
                    let l = check(&l).unwrap();
                    self.recorded.insert((rid, l.name), l.new);
                }
                match r.next {
                    Some(from) => self.clients[i].from_server.push_back(ToClient::AskReport { from }),
                    None => self.recovered(rid),
                }
            }
        }
    }

    fn recovered(&mut self, rid: u64) {
        if self.pending.remove(&rid) && self.pending.is_empty() {
            self.serve(|s, next, out| s.set_recovery_pending(false, next, out));
        }
    }

    fn fail_over(&mut self) {
        self.term += 1;
        self.note(format!("server of term {} takes over", self.term));
        self.pending = self.clients.iter().map(|c| c.rid).collect();
        self.server = LockServer::new(true);
        self.next_invalidation = self.term << 32;
        self.awaiting.clear();
        self.recorded.clear();
        for c in &mut self.clients {
            c.to_server.clear();
        }
    }

    // ---- clients ----

    fn greet(&mut self, i: usize) {
        let term = self.term;
        let c = &mut self.clients[i];
        c.term = term;
        c.from_server.clear();
        c.floor = self.names.iter().map(|n| (*n, c.node.eff(*n))).collect();
        c.node.new_epoch(term);
        // The transport sends again what was not answered.
        c.to_server = c.unanswered.iter().map(|(id, lock)| ToServer::Request { id: *id, lock: *lock }).collect();
        if self.pending.contains(&c.rid) {
            c.from_server.push_back(ToClient::AskReport { from: Key::ZEROS });
        }
        let rid = c.rid;
        self.note(format!("{rid} greets term {term}"));
        self.drain(i);
    }

    fn client_receives(&mut self, i: usize) {
        let c = &mut self.clients[i];
        let msg = c.from_server.pop_front().expect("checked by the caller");
        let rid = c.rid;
        let text = format!("{rid} receives {msg:?}");
        match msg {
            ToClient::Grant { id, lock } => {
                assert!(c.unanswered.remove(&id).is_some(), "S-10: a second answer");
                c.floor.remove(&check(&lock).unwrap().name);
                c.node.grant(&lock).expect("a valid grant");
            }
            ToClient::Invalidate { id, lock } => c.node.invalidate(c.term, id, &lock).expect("a valid invalidation"),
            ToClient::AskReport { from } => {
                let max = self.rng.random_range(1..=2);
                c.to_server.push(ToServer::Report { locks: c.node.recover(&from, max) });
            }
        }
        self.note(text);
        self.drain(i);
    }

    /// Carries out what a node did.
    fn drain(&mut self, i: usize) {
        let connected = self.clients[i].term == self.term;
        for e in self.clients[i].node.take_events() {
            let rid = self.clients[i].rid;
            self.note(format!("  {rid}: {e:?}"));
            let c = &mut self.clients[i];
            match e {
                Event::Request { name, old, new } => {
                    let same = |l: &NetLock| check(l).unwrap().name == name;
                    assert!(!c.unanswered.values().any(same), "S-8: one request at a time");
                    c.next_id += 1;
                    let lock = crate::lock::wire::net_lock(name, old, new, 0);
                    c.unanswered.insert(c.next_id, lock);
                    if connected {
                        c.to_server.push(ToServer::Request { id: c.next_id, lock });
                    }
                }
                Event::Response { id, lock, epoch } => {
                    assert_eq!(epoch, c.term, "S-10: answered to another server");
                    let l = check(&lock).unwrap();
                    let cache = c.cache.get(&l.name).copied().unwrap_or_default();
                    assert_eq!(cache.dirty, 0, "S-5: not durable");
                    assert!(l.new != Mode::Null || cache.known.is_none(), "S-5: still cached");
                    let page = c.pages.get(&l.name);
                    assert!(page.is_none_or(|p| l.new == Mode::Read && !p.writable), "still lent: {page:?}");
                    if connected {
                        c.to_server.push(ToServer::Response { id, lock });
                    }
                }
                Event::Acquired { task, name, mode } => {
                    assert_eq!(c.waiting.remove(&task), Some((name, mode)));
                    self.starts_using(i, task, name, mode);
                }
                Event::SendFailed | Event::Failed { .. } => panic!("nothing fails here"),
            }
        }
        let c = &mut self.clients[i];
        while let Some(s) = c.node.started.pop_front() {
            let dirty = c.cache.get(&s.name).is_some_and(|k| k.dirty > 0);
            let stage = match (dirty, s.to) {
                _ if s.recall => Stage::Recall,
                (true, _) => Stage::Commit,
                (false, Mode::Null) => Stage::Drop,
                _ => Stage::Finish,
            };
            c.jobs.push((s, stage));
        }
    }

    fn acquires(&mut self, i: usize) {
        let name = self.names[self.rng.random_range(0..self.names.len())];
        let mode = [Mode::Read, Mode::Read, Mode::Write, Mode::WriteOnly][self.rng.random_range(0..4)];
        let loan = (mode != Mode::WriteOnly && self.rng.random_ratio(1, 4)).then_some(Loan::Take);
        let c = &mut self.clients[i];
        c.next_task += 1;
        let task = c.next_task;
        let rid = c.rid;
        if loan.is_some() {
            c.takers.insert(task);
        }
        if c.node.acquire(task, name, mode, Manner { block: true, nested: false, loan }).expect("acquire") {
            self.note(format!("{rid} task {task} has {name} {mode}"));
            self.starts_using(i, task, name, mode);
        } else {
            self.clients[i].waiting.insert(task, (name, mode));
            self.note(format!("{rid} task {task} waits for {name} {mode}"));
        }
        self.drain(i);
    }

    /// The task reads, or writes, the item of the lock; S-7.
    fn starts_using(&mut self, i: usize, task: u32, name: LockName, mode: Mode) {
        let c = &mut self.clients[i];
        c.using.insert(task, (name, mode));
        // Who asks the client is answered with what the front end has, as a kernel does.
        c.writes_back(name);
        let cache = c.cache.entry(name).or_default();
        let total = self.total.get_mut(&name).unwrap();
        if mode == Mode::WriteOnly {
            assert_eq!(cache.known, None, "a blind writer found items that were read");
        } else {
            let value = *cache.known.get_or_insert(self.committed[&name]);
            assert_eq!(value, *total, "S-7: stale read of {name} by {}", c.rid);
        }
        if c.takers.contains(&task) {
            let page = c.pages.entry(name).or_insert(Page { value: *total, writable: false, dirty: 0 });
            page.writable |= mode == Mode::Write;
        } else if mode.writes() {
            *total += 1;
            cache.dirty += 1;
            cache.known = cache.known.map(|v| v + 1);
            if let Some(page) = c.pages.get_mut(&name) {
                page.value += 1;
            }
        }
    }

    fn releases(&mut self, i: usize) {
        let c = &mut self.clients[i];
        let at = self.rng.random_range(0..c.using.len());
        let task = *c.using.keys().nth(at).unwrap();
        let (name, mode) = c.using.remove(&task).unwrap();
        c.node.release(name, mode);
        let rid = c.rid;
        self.note(format!("{rid} task {task} releases {name} {mode}"));
        self.drain(i);
    }

    fn commits(&mut self, i: usize) {
        for (name, cache) in &mut self.clients[i].cache {
            *self.committed.get_mut(name).unwrap() += std::mem::take(&mut cache.dirty);
        }
    }

    fn works(&mut self, i: usize) {
        let at = self.rng.random_range(0..self.clients[i].jobs.len());
        let (s, stage) = self.clients[i].jobs[at];
        let rid = self.clients[i].rid;
        self.note(format!("{rid} works on {s:?}: {stage:?}"));
        match stage {
            Stage::Recall => {
                let c = &mut self.clients[i];
                if c.pages.get(&s.name).is_some_and(|p| p.dirty > 0) {
                    let back = Manner { block: false, nested: false, loan: Some(Loan::Return) };
                    assert!(c.node.acquire(0, s.name, Mode::Write, back).expect("the mode serves"), "returned at once");
                    c.writes_back(s.name);
                    c.node.release(s.name, Mode::Write);
                }
                if s.to == Mode::Null || c.pages.get(&s.name).is_some_and(|p| p.writable) {
                    c.pages.remove(&s.name);
                }
                c.jobs[at].1 = Stage::Recalled;
            }
            Stage::Recalled => {
                self.clients[i].jobs.remove(at);
                self.clients[i].node.recall_done(s.name);
            }
            Stage::Commit => {
                self.commits(i);
                self.clients[i].jobs[at].1 = if s.to == Mode::Null { Stage::Drop } else { Stage::Finish };
            }
            Stage::Drop => {
                let cache = self.clients[i].cache.entry(s.name).or_default();
                assert_eq!(cache.dirty, 0, "S-6: dirty items dropped");
                cache.known = None;
                self.clients[i].jobs[at].1 = Stage::Finish;
            }
            Stage::Finish => {
                self.clients[i].jobs.remove(at);
                self.clients[i].node.work_done(s.name);
            }
        }
        self.drain(i);
    }

    /// The client stops for good; its server will notice, fence and reclaim.
    fn dies(&mut self, i: usize) {
        let c = &mut self.clients[i];
        c.dead = true;
        c.to_server.clear();
        for (name, cache) in &mut c.cache {
            *self.total.get_mut(name).unwrap() -= std::mem::take(&mut cache.dirty);
        }
        for (name, page) in std::mem::take(&mut c.pages) {
            *self.total.get_mut(&name).unwrap() -= page.dirty;
        }
        let rid = c.rid;
        self.note(format!("{rid} dies"));
    }

    fn is_reclaimed(&mut self, i: usize) {
        let rid = self.clients[i].rid;
        self.note(format!("{rid} is reclaimed"));
        self.clients[i] = self.mount();
        self.awaiting.retain(|(r, _)| *r != rid);
        self.recorded.retain(|(r, _), _| *r != rid);
        self.serve(|s, next, out| s.reclaim(rid, next, out));
        self.recovered(rid);
        for n in &self.names {
            assert_eq!(self.server.mode_of(rid, *n), Mode::Null, "S-16");
        }
    }

    // ---- schedule ----

    fn step(&mut self, busy: bool) {
        let i = self.rng.random_range(0..self.clients.len());
        let c = &self.clients[i];
        if busy && self.rng.random_ratio(1, self.fail_over_every) {
            return self.fail_over();
        }
        if c.dead {
            return self.is_reclaimed(i);
        }
        if busy && self.rng.random_ratio(1, 400) {
            return self.dies(i);
        }
        // Only what can happen, messages before the rest, so that conversations get to their end between fail-overs.
        let can_work = !c.jobs.is_empty() && (!busy || self.rng.random_ratio(1, self.work_every));
        let able = [
            (2, busy && c.using.len() + c.waiting.len() < 4),
            (2, !c.using.is_empty()),
            (2, can_work),
            (2, c.term != self.term),
            (4, !c.from_server.is_empty()),
            (4, !c.to_server.is_empty() && c.term == self.term),
            (1, busy),
            (1, busy && !c.pages.is_empty()),
            (1, !c.waiting.is_empty() && !c.takers.is_empty()),
            (1, self.rng.random_ratio(1, 4)),
        ];
        let total: u32 = able.iter().map(|(weight, can)| weight * u32::from(*can)).sum();
        if total == 0 {
            return;
        }
        let mut at = self.rng.random_range(0..total);
        let chosen = able.iter().position(|(weight, can)| {
            let mine = *can && at < *weight;
            at -= if *can && !mine { *weight } else { 0 };
            mine
        });
        match chosen.expect("the sum was of these") {
            0 => self.acquires(i),
            1 => self.releases(i),
            2 => self.works(i),
            3 => self.greet(i),
            4 => self.client_receives(i),
            5 => self.server_receives(i),
            6 => {
                let name = self.names[self.rng.random_range(0..self.names.len())];
                if self.clients[i].node.give_up(name) {
                    self.note(format!("client {i} gives up {name}"));
                }
                self.drain(i);
            }
            7 => self.stores(i),
            8 => self.insists(i),
            _ => self.commits(i),
        }
    }

    fn quiet(&self) -> bool {
        self.pending.is_empty()
            && self.clients.iter().all(|c| {
                !c.dead
                    && c.term == self.term
                    && c.unanswered.is_empty()
                    && c.to_server.is_empty()
                    && c.from_server.is_empty()
                    && c.using.is_empty()
                    && c.waiting.is_empty()
                    && c.jobs.is_empty()
            })
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step(true);
            self.check();
        }
        let mut left = 50_000;
        while !self.quiet() {
            left -= 1;
            assert!(left > 0, "L-8: it does not come to rest\n{}", self.state());
            self.step(false);
            self.check();
        }
        for c in &self.clients {
            assert_eq!(c.node.shrinking, 0, "a null request was not counted out");
            assert!(c.node.locks.values().all(|l| l.machine.idle(&l.hot)), "L-8");
        }
        for line in self.server.dump() {
            assert!(line.ends_with("requested= invalidated="), "L-8: {line}");
        }
    }

    fn state(&self) -> String {
        let mut s = self.server.dump().join("\n");
        for c in &self.clients {
            s += &format!("\n{} using {:?} waiting {:?} jobs {:?}", c.rid, c.using, c.waiting, c.jobs);
            for (n, l) in &c.node.locks {
                s += &format!("\n  {n} {:?} {:?}", l.hot.word.load(), l.machine);
            }
        }
        s
    }
}

/// Runs one seed; says which, and what happened last, if it fails.
fn run_seed(seed: u64) {
    let mut sim = Sim::new(seed);
    let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run()));
    if let Err(p) = r {
        let tail = &sim.log[sim.log.len().saturating_sub(60)..];
        eprintln!("{}\n{}\nSCOUTFS_LOCK_SEED={seed}", tail.join("\n"), sim.state());
        std::panic::resume_unwind(p);
    }
}

#[test]
fn random_clusters_keep_the_lock_properties() {
    if let Ok(seed) = std::env::var("SCOUTFS_LOCK_SEED") {
        return run_seed(seed.parse().expect("a number"));
    }
    let runs = std::env::var("SCOUTFS_LOCK_RUNS").map_or(500, |s| s.parse().expect("a number"));
    for seed in 0..runs {
        run_seed(seed);
    }
}
