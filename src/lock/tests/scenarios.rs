//! The interleavings of `spec/04 §12` that can be told at this level, by number; clients A, B, C, one server after the
//! other. What needs threads is in `service`, what the reference's traces show is in the trace tests.

use std::collections::{BTreeMap, VecDeque};

use super::node::{Event, Node};
use super::*;
use crate::error::Errno;
use crate::format::Key;
use crate::lock::machine::Manner;
use crate::lock::wire::{check, net_lock};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

#[derive(Clone, Copy, Debug)]
enum ToServer {
    Request(u64, NetLock),
    Response(u64, NetLock),
}

#[derive(Default)]
struct Peer {
    node: Node,
    unanswered: BTreeMap<u64, NetLock>,
    next_id: u64,
    to_server: VecDeque<ToServer>,
    to_client: VecDeque<(u64, LockOut)>,
}

/// Three nodes and a server; nothing moves unless told, or everything does ([`Cluster::settle`]).
struct Cluster {
    peers: Vec<Peer>,
    server: LockServer,
    term: u64,
    seq: u64,
    next_invalidation: u64,
    next_task: u32,
    has: BTreeMap<u32, (usize, LockName, Mode)>,
    /// Invalidations as `A:write>read`, in the order in which they were sent.
    asked: Vec<String>,
    /// Grants as `A:read>write`.
    granted: Vec<String>,
    /// Nodes whose workers stand still.
    lazy: Vec<usize>,
    reports: usize,
}

fn letter(i: usize) -> char {
    (b'A' + i as u8) as char
}

fn l() -> LockName {
    group(5)
}

impl Cluster {
    fn new() -> Cluster {
        let mut c = Cluster {
            peers: (0..3).map(|_| Peer::default()).collect(),
            server: LockServer::new(false),
            term: 1,
            seq: 100,
            next_invalidation: 1000,
            next_task: 0,
            has: BTreeMap::new(),
            asked: Vec::new(),
            granted: Vec::new(),
            lazy: Vec::new(),
            reports: 0,
        };
        c.peers.iter_mut().for_each(|p| p.node.new_epoch(1));
        c
    }

    fn wants(&mut self, i: usize, name: LockName, mode: Mode) -> u32 {
        self.next_task += 1;
        let task = self.next_task;
        let manner = Manner { block: true, nested: false };
        if self.peers[i].node.acquire(task, name, mode, manner).unwrap() {
            self.has.insert(task, (i, name, mode));
        }
        self.collect(i);
        task
    }

    fn releases(&mut self, task: u32) {
        let (i, name, mode) = self.has.remove(&task).expect("the task has it");
        self.peers[i].node.release(name, mode);
        self.collect(i);
    }

    /// Wants, gets, and releases.
    fn uses(&mut self, i: usize, name: LockName, mode: Mode) {
        let t = self.wants(i, name, mode);
        self.settle();
        self.releases(t);
    }

    fn gives_up(&mut self, i: usize, name: LockName) {
        assert!(self.peers[i].node.give_up(name));
        self.collect(i);
    }

    fn collect(&mut self, i: usize) {
        let p = &mut self.peers[i];
        for e in p.node.take_events() {
            match e {
                Event::Request { name, old, new } => {
                    p.next_id += 1;
                    p.unanswered.insert(p.next_id, net_lock(name, old, new, 0));
                    p.to_server.push_back(ToServer::Request(p.next_id, net_lock(name, old, new, 0)));
                }
                Event::Response { id, lock, .. } => p.to_server.push_back(ToServer::Response(id, lock)),
                Event::Acquired { task, name, mode } => {
                    self.has.insert(task, (i, name, mode));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn serve(&mut self, f: impl FnOnce(&mut LockServer, &mut dyn FnMut() -> u64, &mut Vec<LockOut>)) {
        let mut out = Vec::new();
        let seq = &mut self.seq;
        let mut next = || {
            *seq += 1;
            *seq
        };
        f(&mut self.server, &mut next, &mut out);
        for o in out {
            let (LockOut::Grant { rid, lock, .. } | LockOut::Invalidate { rid, lock }) = o;
            let c = check(&lock).unwrap();
            let text = format!("{}:{}>{}", letter(rid as usize), c.old, c.new);
            let id = match o {
                LockOut::Grant { id, .. } => {
                    self.granted.push(text);
                    id
                }
                LockOut::Invalidate { .. } => {
                    self.asked.push(text);
                    self.next_invalidation += 1;
                    self.server.invalidate_sent(rid, &lock, self.next_invalidation);
                    self.next_invalidation
                }
            };
            self.peers[rid as usize].to_client.push_back((id, o));
        }
    }

    fn server_reads(&mut self, i: usize) -> bool {
        let Some(m) = self.peers[i].to_server.pop_front() else { return false };
        self.serve(|s, next, out| match m {
            ToServer::Request(id, lock) => s.request(i as u64, id, &lock, next, out).unwrap(),
            ToServer::Response(id, lock) => s.response(i as u64, id, &lock, next, out).unwrap(),
        });
        true
    }

    fn client_reads(&mut self, i: usize) -> bool {
        let p = &mut self.peers[i];
        let Some((id, o)) = p.to_client.pop_front() else { return false };
        match o {
            LockOut::Grant { lock, .. } => {
                p.unanswered.remove(&id).expect("it was asked for");
                p.node.grant(&lock).unwrap();
            }
            LockOut::Invalidate { lock, .. } => p.node.invalidate(self.term, id, &lock).unwrap(),
        }
        self.collect(i);
        true
    }

    /// One finished invalidation.
    fn works(&mut self, i: usize) -> bool {
        let Some(s) = self.peers[i].node.started.pop_front() else { return false };
        self.peers[i].node.work_done(s.name);
        self.collect(i);
        true
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for i in 0..3 {
                moved |= self.client_reads(i) | self.server_reads(i);
                moved |= !self.lazy.contains(&i) && self.works(i);
            }
            if !moved {
                return;
            }
        }
    }

    /// A new server takes over and everybody is heard.
    fn fails_over(&mut self) {
        self.dies();
        for i in 0..3 {
            self.greets(i);
        }
        self.recovers();
    }

    fn dies(&mut self) {
        self.term += 1;
        self.server = LockServer::new(true);
        self.asked.clear();
        self.granted.clear();
        for p in &mut self.peers {
            p.to_server.clear();
            p.to_client.clear();
        }
    }

    fn greets(&mut self, i: usize) {
        let term = self.term;
        let p = &mut self.peers[i];
        p.node.new_epoch(term);
        p.to_server = p.unanswered.iter().map(|(id, l)| ToServer::Request(*id, *l)).collect();
        self.collect(i);
        let mut from = Key::ZEROS;
        loop {
            self.reports += 1;
            let locks = self.peers[i].node.recover(&from, 22);
            let r = self.server.recovered(i as u64, &locks, self.seq).unwrap();
            self.seq = self.seq.max(r.max_write_seq);
            match r.next {
                Some(key) => from = key,
                None => break,
            }
        }
    }

    fn recovers(&mut self) {
        self.serve(|s, next, out| s.set_recovery_pending(false, next, out));
    }

    fn eff(&self, i: usize) -> Mode {
        self.peers[i].node.eff(l())
    }

    fn generation(&self, i: usize) -> u64 {
        self.peers[i].node.generation(l())
    }

    fn has(&self, task: u32) -> bool {
        self.has.contains_key(&task)
    }
}

#[test]
fn scenario_01_two_readers_share() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(B, l(), Mode::Read);
    assert!(c.asked.is_empty() && c.eff(A) == Mode::Read && c.eff(B) == Mode::Read);
}

#[test]
fn scenario_02_a_writer_waits_for_both_answers() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(B, l(), Mode::Read);
    c.lazy = vec![A];
    let w = c.wants(C, l(), Mode::Write);
    c.settle();
    assert_eq!(c.asked, ["A:read>null", "B:read>null"]);
    assert!(!c.has(w) && c.eff(B) == Mode::Null);
    c.works(A);
    c.settle();
    assert!(c.has(w));
    assert_eq!((c.granted.last().unwrap().as_str(), c.peers[C].node.write_seq(l())), ("C:null>write", 101));
}

#[test]
fn scenario_03_a_reader_lowers_a_writer_who_keeps_his_cache() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Write);
    c.uses(B, l(), Mode::Read);
    assert_eq!(c.asked, ["A:write>read"]);
    assert_eq!((c.eff(A), c.generation(A)), (Mode::Read, 1));
    let t = c.wants(A, l(), Mode::Read);
    assert!(c.has(t), "without a message");
}

#[test]
fn scenario_04_the_only_reader_becomes_writer_in_place() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(A, l(), Mode::Write);
    assert!(c.asked.is_empty());
    assert_eq!((c.granted[1].as_str(), c.generation(A)), ("A:read>write", 1));
}

#[test]
fn scenario_05_two_readers_both_want_to_write() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(B, l(), Mode::Read);
    let (a, b) = (c.wants(A, l(), Mode::Write), c.wants(B, l(), Mode::Write));
    c.settle();
    assert!(c.has(a) && !c.has(b));
    c.releases(a);
    c.settle();
    assert!(c.has(b));
    assert_eq!(c.asked, ["B:read>null", "A:write>null"]);
    assert_eq!(c.granted[2..], ["A:read>write", "B:null>write"]);
    assert_eq!(c.generation(B), 2);
}

#[test]
fn scenario_07_a_reader_ends_shared_blind_writing() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::WriteOnly);
    c.uses(B, l(), Mode::WriteOnly);
    assert!(c.asked.is_empty());
    c.uses(C, l(), Mode::Read);
    assert_eq!(c.asked, ["A:write_only>null", "B:write_only>null"]);
}

#[test]
fn scenario_08_blind_writer_wants_to_read() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::WriteOnly);
    c.uses(A, l(), Mode::Read);
    assert_eq!(c.asked, ["A:write_only>null"]);
    assert_eq!(c.granted[1], "A:null>read");
    assert_eq!(c.generation(A), 1);
}

#[test]
fn scenario_09_a_grant_followed_at_once_by_an_invalidation_is_used_once() {
    let mut c = Cluster::new();
    let a = c.wants(A, l(), Mode::Write);
    c.server_reads(A);
    let b = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    assert_eq!(c.peers[A].to_client.len(), 2, "grant and invalidation on their way");
    c.settle();
    assert!(c.has(a) && !c.has(b), "the waiter gets its turn first");
    c.releases(a);
    c.settle();
    assert!(c.has(b));
}

#[test]
fn scenario_11_invalidations_in_close_succession_are_all_answered() {
    let mut c = Cluster::new();
    for _ in 0..10 {
        for i in [A, B, C] {
            c.uses(i, l(), Mode::Write);
            c.uses(i, l(), Mode::Read);
        }
    }
    assert!(c.asked.len() >= 29);
    c.settle();
    assert_eq!(c.server.dump(), [format!("lock={} granted=2:write requested= invalidated=", l())]);
}

#[test]
fn scenario_12_a_lock_that_is_given_up_is_used_again() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.gives_up(A, l());
    let t = c.wants(A, l(), Mode::Read);
    assert!(c.has(t), "granted until the server asks for it");
    c.settle();
    assert_eq!(c.eff(A), Mode::Read, "the invalidation waits for the user");
    c.releases(t);
    c.settle();
    assert_eq!(c.granted.last().unwrap(), "A:null>null");
    assert!(c.peers[A].node.locks.is_empty());
}

#[test]
fn scenario_13_giving_up_what_is_being_taken() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    let b = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    c.gives_up(A, l());
    c.settle();
    assert!(c.has(b));
    assert_eq!(c.asked, ["A:read>null"], "one invalidation only");
    assert_eq!(c.granted[1..], ["B:null>write", "A:null>null"]);
}

#[test]
fn scenario_14_giving_up_disturbs_nobody_else() {
    let mut c = Cluster::new();
    for i in [A, B, C] {
        c.uses(i, l(), Mode::Read);
    }
    c.gives_up(A, l());
    c.settle();
    assert_eq!(c.asked, ["A:read>null"]);
}

#[test]
fn scenario_16_a_request_arrives_before_the_answer_sent_earlier() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Write);
    let b = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    c.client_reads(A);
    c.works(A);
    let a = c.wants(A, l(), Mode::Write);
    c.peers[A].to_server.make_contiguous().reverse();
    assert!(matches!(c.peers[A].to_server[0], ToServer::Request(..)));
    c.settle();
    assert!(c.has(b) && !c.has(a));
    c.releases(b);
    c.settle();
    assert!(c.has(a));
}

#[test]
fn scenario_17_an_invalidation_in_progress_is_reported_with_the_old_mode() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Write);
    c.lazy = vec![A];
    let b = c.wants(B, l(), Mode::Write);
    c.settle();
    c.fails_over();
    assert_eq!(c.server.mode_of(A as u64, l()), Mode::Write);
    c.settle();
    assert!(!c.has(b), "not before A has finished");
    // Scenario 18: the new server's invalidation is worked on after the first.
    assert_eq!(c.asked, ["A:write>null"]);
    c.works(A);
    c.settle();
    assert!(c.has(b));
}

#[test]
fn scenario_22_upgrade_by_the_new_server_during_an_old_invalidation() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.lazy = vec![A];
    let b = c.wants(B, l(), Mode::Write);
    c.settle();
    let a = c.wants(A, l(), Mode::Write);
    c.fails_over();
    // A's request first, so that it is granted in place.
    c.server_reads(A);
    assert_eq!(c.granted, ["A:read>write"]);
    c.client_reads(A);
    assert!(!c.has(a), "the items are still being dropped");
    c.works(A);
    c.settle();
    assert!(c.has(a) && c.generation(A) == 2);
    c.lazy.clear();
    c.releases(a);
    c.settle();
    assert!(c.has(b));
}

#[test]
fn scenario_25_a_grant_of_a_dead_epoch_is_discarded_and_asked_for_again() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.lazy = vec![A];
    let b = c.wants(B, l(), Mode::Write);
    c.settle();
    let a = c.wants(A, l(), Mode::Write);
    c.fails_over();
    c.server_reads(A);
    c.client_reads(A);
    // The grant of epoch 2 is queued behind the invalidation of epoch 1. Epoch 3:
    c.fails_over();
    assert_eq!(c.server.mode_of(A as u64, l()), Mode::Read);
    c.lazy.clear();
    c.settle();
    let first = if c.has(a) { a } else { b };
    assert!(c.has(first) && !(c.has(a) && c.has(b)), "S-1");
    c.releases(first);
    c.settle();
    assert!(c.has(a) || c.has(b), "the request was sent again");
}

#[test]
fn scenario_26_a_null_lock_with_a_request_costs_no_extra_trip() {
    let mut c = Cluster::new();
    let a = c.wants(A, l(), Mode::Write);
    c.fails_over();
    assert_eq!(c.reports, 3, "each of the three has nothing to report");
    c.settle();
    assert!(c.has(a) && c.asked.is_empty());
}

#[test]
fn scenario_27_a_phantom_reader_stays_until_something_conflicts() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.lazy = vec![A];
    let b = c.wants(B, l(), Mode::Write);
    c.settle();
    c.dies();
    c.greets(A);
    // A finishes after it has reported; its answer has no addressee any more.
    c.works(A);
    c.peers[A].to_server.clear();
    c.greets(B);
    c.greets(C);
    c.recovers();
    c.lazy.clear();
    assert_eq!(c.server.mode_of(A as u64, l()), Mode::Read);
    assert_eq!(c.eff(A), Mode::Null);
    let t = c.wants(C, l(), Mode::Read);
    c.server_reads(C);
    c.client_reads(C);
    assert!(c.has(t) && c.asked.is_empty(), "a phantom reader does not disturb readers");
    c.releases(t);
    c.settle();
    assert!(c.has(b));
    assert_eq!(c.asked, ["A:read>null", "C:read>null"], "A answers with null at once");
}

#[test]
fn scenario_29_a_client_without_connection_blocks_until_it_is_reclaimed() {
    let mut s = LockServer::new(false);
    let (mut n, mut out) = (0, Vec::new());
    let mut next = || {
        n += 1;
        n
    };
    s.request(1, 1, &net_lock(l(), Mode::Null, Mode::Read, 0), &mut next, &mut out).unwrap();
    s.request(2, 1, &net_lock(l(), Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    // The invalidation could not be sent: nobody tells an id, nothing happens.
    assert_eq!(out.len(), 2);
    out.clear();
    s.response(1, 1001, &net_lock(l(), Mode::Read, Mode::Null, 0), &mut next, &mut out).unwrap();
    assert!(out.is_empty());
    s.reclaim(1, &mut next, &mut out);
    assert!(matches!(out[..], [LockOut::Grant { rid: 2, .. }]));
    s.reclaim(2, &mut next, &mut out);
    s.reclaim(2, &mut next, &mut out);
    assert_eq!(s.len(), 0);
}

/// Defect 36 (W-5), server side: an answer whose id collides with an invalidation of another lock answers nothing.
#[test]
fn defect_36_a_colliding_answer_is_ignored() {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 7;
    for name in [group(5), group(6)] {
        s.request(1, name.start().first, &net_lock(name, Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
        s.request(2, name.start().first, &net_lock(name, Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    }
    s.invalidate_sent(1, &net_lock(group(5), Mode::Write, Mode::Null, 0), 50);
    s.invalidate_sent(1, &net_lock(group(6), Mode::Write, Mode::Null, 0), 51);
    out.clear();
    let before = s.dump();
    for (id, name, old) in [(51, group(5), Mode::Write), (50, group(5), Mode::Read), (49, group(5), Mode::Write)] {
        s.response(1, id, &net_lock(name, old, Mode::Null, 0), &mut next, &mut out).unwrap();
    }
    assert!(out.is_empty() && s.dump() == before);
    s.response(1, 50, &net_lock(group(5), Mode::Write, Mode::Null, 0), &mut next, &mut out).unwrap();
    assert_eq!(out.len(), 1);
}

/// 04 §15: what the server must refuse, leaving its state alone.
#[test]
fn the_server_refuses_bad_messages() {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 7;
    let ask = |m| net_lock(l(), Mode::Null, m, 0);
    let mut bad = ask(Mode::Read);
    bad.new_mode = 4;
    assert!(s.request(1, 1, &bad, &mut next, &mut out).unwrap_err().is(Errno::EINVAL));
    let mut bad = ask(Mode::Read);
    bad.key = Key::new(16, 3, 0, 0, 0, 0).to_stored();
    assert!(s.request(1, 1, &bad, &mut next, &mut out).unwrap_err().is(Errno::EINVAL));
    s.request(1, 1, &ask(Mode::Write), &mut next, &mut out).unwrap();
    s.request(2, 1, &ask(Mode::Read), &mut next, &mut out).unwrap();
    let again = s.request(2, 2, &ask(Mode::Write), &mut next, &mut out);
    assert!(again.unwrap_err().is(Errno::EINVAL), "a second request for one lock");
    s.invalidate_sent(1, &net_lock(l(), Mode::Write, Mode::Read, 0), 60);
    let higher = s.response(1, 60, &net_lock(l(), Mode::Write, Mode::Write, 0), &mut next, &mut out);
    assert!(higher.unwrap_err().is(Errno::EINVAL), "more than was asked to keep");
    let late = s.recovered(3, &[net_lock(l(), Mode::Read, Mode::Read, 0)], 7);
    assert!(late.unwrap_err().is(Errno::EINVAL), "not in recovery");
}

#[test]
fn the_server_refuses_bad_reports() {
    let mut s = LockServer::new(true);
    let held = |n, seq| net_lock(group(n), Mode::Write, Mode::Write, seq);
    assert!(s.recovered(1, &[held(6, 0), held(5, 0)], 10).unwrap_err().is(Errno::EINVAL), "not rising");
    assert!(s.recovered(1, &[held(5, (1 << 48) + 11)], 10).unwrap_err().is(Errno::EINVAL), "sequence far ahead");
    assert!(s.recovered(1, &vec![held(5, 0); 23], 10).unwrap_err().is(Errno::EINVAL), "too many");
    let r = s.recovered(1, &[held(5, 40), held(6, 30)], 10).unwrap();
    assert_eq!(r, Recovered { next: Some(group(6).start().next()), max_write_seq: 40 });
    assert!(s.recovered(1, &[held(4, 0)], 10).unwrap_err().is(Errno::EINVAL), "before what was asked for");
    assert!(s.recovered(1, &[held(5, 0)], 10).unwrap_err().is(Errno::EEXIST), "twice");
    assert_eq!(s.recovered(1, &[], 10).unwrap().next, None);
}

/// L-3 and 04 §14.3: readers may pass a waiting writer, but not for ever.
#[test]
fn readers_pass_a_waiting_writer_at_most_eight_times() {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 7;
    s.request(1, 1, &net_lock(l(), Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    s.request(2, 1, &net_lock(l(), Mode::Null, Mode::Read, 0), &mut next, &mut out).unwrap();
    s.invalidate_sent(1, &net_lock(l(), Mode::Write, Mode::Read, 0), 60);
    s.request(3, 1, &net_lock(l(), Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    for rid in 10..30 {
        s.request(rid, 1, &net_lock(l(), Mode::Null, Mode::Read, 0), &mut next, &mut out).unwrap();
    }
    out.clear();
    s.response(1, 60, &net_lock(l(), Mode::Write, Mode::Read, 0), &mut next, &mut out).unwrap();
    let readers = out.iter().filter(|o| matches!(o, LockOut::Grant { rid: 10.., .. })).count();
    assert_eq!(readers, 8);
    let asked = out.iter().filter(|o| matches!(o, LockOut::Invalidate { .. })).count();
    assert_eq!(asked, 1 + 1 + 8, "then everybody is asked for the writer");
}
