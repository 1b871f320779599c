//! Three nodes and a server, driven by hand: nothing moves unless a test says so. Clients A, B, C, one server after the other.

use std::collections::{BTreeMap, VecDeque};

use super::node::{Event, Node};
use super::*;
use crate::format::Key;
use crate::lock::machine::Manner;
use crate::lock::wire::{check, net_lock};

pub(super) const A: usize = 0;
pub(super) const B: usize = 1;
pub(super) const C: usize = 2;

#[derive(Clone, Copy, Debug)]
pub(super) enum ToServer {
    Request(u64, NetLock),
    Response(u64, NetLock),
}

#[derive(Default)]
pub(super) struct Peer {
    pub(super) node: Node,
    pub(super) unanswered: BTreeMap<u64, NetLock>,
    pub(super) next_id: u64,
    pub(super) to_server: VecDeque<ToServer>,
    pub(super) to_client: VecDeque<(u64, LockOut)>,
}

/// Three nodes and a server; nothing moves unless told, or everything does ([`Cluster::settle`]).
pub(super) struct Cluster {
    pub(super) peers: Vec<Peer>,
    pub(super) server: LockServer,
    pub(super) term: u64,
    pub(super) seq: u64,
    pub(super) next_invalidation: u64,
    pub(super) next_task: u32,
    pub(super) has: BTreeMap<u32, (usize, LockName, Mode)>,
    /// Invalidations as `A:write>read`, in the order in which they were sent.
    pub(super) asked: Vec<String>,
    /// Grants as `A:read>write`.
    pub(super) granted: Vec<String>,
    /// Nodes whose workers stand still.
    pub(super) lazy: Vec<usize>,
    pub(super) reports: usize,
}

pub(super) fn letter(i: usize) -> char {
    (b'A' + i as u8) as char
}

pub(super) fn l() -> LockName {
    group(5)
}

impl Cluster {
    pub(super) fn new() -> Cluster {
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

    pub(super) fn wants(&mut self, i: usize, name: LockName, mode: Mode) -> u32 {
        self.next_task += 1;
        let task = self.next_task;
        let manner = Manner { block: true, nested: false, loan: None };
        if self.peers[i].node.acquire(task, name, mode, manner).unwrap() {
            self.has.insert(task, (i, name, mode));
        }
        self.collect(i);
        task
    }

    pub(super) fn releases(&mut self, task: u32) {
        let (i, name, mode) = self.has.remove(&task).expect("the task has it");
        self.peers[i].node.release(name, mode);
        self.collect(i);
    }

    /// Wants, gets, and releases.
    pub(super) fn uses(&mut self, i: usize, name: LockName, mode: Mode) {
        let t = self.wants(i, name, mode);
        self.settle();
        self.releases(t);
    }

    pub(super) fn gives_up(&mut self, i: usize, name: LockName) {
        assert!(self.peers[i].node.give_up(name));
        self.collect(i);
    }

    pub(super) fn collect(&mut self, i: usize) {
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

    pub(super) fn serve(&mut self, f: impl FnOnce(&mut LockServer, &mut dyn FnMut() -> u64, &mut Vec<LockOut>)) {
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

    pub(super) fn server_reads(&mut self, i: usize) -> bool {
        let Some(m) = self.peers[i].to_server.pop_front() else { return false };
        self.serve(|s, next, out| match m {
            ToServer::Request(id, lock) => s.request(i as u64, id, &lock, next, out).unwrap(),
            ToServer::Response(id, lock) => s.response(i as u64, id, &lock, next, out).unwrap(),
        });
        true
    }

    pub(super) fn client_reads(&mut self, i: usize) -> bool {
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
    pub(super) fn works(&mut self, i: usize) -> bool {
        let Some(s) = self.peers[i].node.started.pop_front() else { return false };
        self.peers[i].node.work_done(s.name);
        self.collect(i);
        true
    }

    pub(super) fn settle(&mut self) {
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
    pub(super) fn fails_over(&mut self) {
        self.dies();
        for i in 0..3 {
            self.greets(i);
        }
        self.recovers();
    }

    pub(super) fn dies(&mut self) {
        self.term += 1;
        self.server = LockServer::new(true);
        self.asked.clear();
        self.granted.clear();
        for p in &mut self.peers {
            p.to_server.clear();
            p.to_client.clear();
        }
    }

    pub(super) fn greets(&mut self, i: usize) {
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

    pub(super) fn recovers(&mut self) {
        self.serve(|s, next, out| s.set_recovery_pending(false, next, out));
    }

    pub(super) fn eff(&self, i: usize) -> Mode {
        self.peers[i].node.eff(l())
    }

    pub(super) fn generation(&self, i: usize) -> u64 {
        self.peers[i].node.generation(l())
    }

    pub(super) fn has(&self, task: u32) -> bool {
        self.has.contains_key(&task)
    }
}
