//! Clusters of one to five members in simulated time: datagrams are lost, delayed, repeated and reordered, members crash
//! and come back, servers take time to start and stop. Everything follows from a seed.
//!
//! Properties:
//!
//! 1. No term has two leaders, where a majority is needed.
//! 2. What is said is durable: a vote or a request for votes implies TERM, a resignation implies STOP.
//! 3. When a server is up, no server of an older term runs that has not been fenced or stopped.
//! 4. When the network is good again, one member leads within a few seconds, and stays.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::harness::{FSID, config};
use crate::format::layout::{QuorumBlock, QuorumConfig};
use crate::quorum::blocks::{QuorumEvent, SlotBlocks, event, fresh};
use crate::quorum::config::votes_needed;
use crate::quorum::election::{Action, Election, ElectionConfig, Role, To, turn};
use crate::quorum::member::ServerState;
use crate::quorum::message::{Message, MessageKind};
use crate::quorum::scan::{leader_slot, leaders_to_fence};

struct Server {
    state: ServerState,
    term: u64,
    /// When the next change of state happens.
    at: Duration,
    fence: Vec<u64>,
}

struct Mount {
    rid: u64,
    election: Election,
    server: Server,
}

struct Cluster {
    rng: StdRng,
    now: Duration,
    qconf: QuorumConfig,
    blocks: Vec<QuorumBlock>,
    mounts: Vec<Option<Mount>>,
    /// When a crashed slot is mounted again.
    back: Vec<Duration>,
    next_rid: u64,
    /// Datagrams under way, by time of arrival.
    wire: BTreeMap<(Duration, u64), (usize, Message)>,
    sent: u64,
    loss: f64,
    leaders: HashMap<u64, u64>,
}

impl Cluster {
    fn new(members: usize, seed: u64) -> Cluster {
        Cluster {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            qconf: config(&(0..members).collect::<Vec<_>>()),
            blocks: (0..15).map(|slot| fresh(FSID, slot)).collect(),
            mounts: (0..members).map(|_| None).collect(),
            back: vec![Duration::ZERO; members],
            next_rid: 1,
            wire: BTreeMap::new(),
            sent: 0,
            loss: 0.2,
            leaders: HashMap::new(),
        }
    }

    fn scan(&self) -> SlotBlocks {
        SlotBlocks(self.blocks.iter().copied().map(Ok).collect())
    }

    fn mount(&mut self, slot: usize) {
        let blocks = self.scan();
        let rid = self.next_rid;
        self.next_rid += 1;
        let config = ElectionConfig {
            slot: slot as u8,
            votes_needed: votes_needed(&self.qconf) as u32,
            heartbeat_timeout: Duration::from_secs(2),
            turn: turn(slot, self.mounts.len()),
            term: blocks.greatest_term(0..self.mounts.len()),
            leader: leader_slot(&self.qconf, &blocks, true).unwrap().map(|(slot, _)| slot as u8),
            seed: self.rng.random(),
        };
        let (election, actions) = Election::new(config, self.now);
        let server = Server { state: ServerState::Down, term: 0, at: Duration::MAX, fence: Vec::new() };
        self.mounts[slot] = Some(Mount { rid, election, server });
        self.act(slot, actions);
    }

    fn send(&mut self, to: usize, message: Message) {
        while !self.rng.random_bool(self.loss) {
            let at = self.now + Duration::from_micros(self.rng.random_range(50..40_000));
            self.sent += 1;
            self.wire.insert((at, self.sent), (to, message));
            // Some arrive twice.
            if self.rng.random_bool(0.95) {
                break;
            }
        }
    }

    fn act(&mut self, slot: usize, actions: Vec<Action>) {
        for action in actions {
            let rid = self.mounts[slot].as_ref().expect("it acts").rid;
            match action {
                Action::Record(what, term) => {
                    let block = &mut self.blocks[slot];
                    block.write_nr += 1;
                    let to = &mut block.events[what.index()];
                    to.write_nr = block.write_nr;
                    to.rid.set(rid);
                    to.term.set(term);
                    if what == QuorumEvent::Elect && self.mounts.len() > 2 {
                        let other = self.leaders.insert(term, rid);
                        assert!(other.is_none(), "property 1: term {term} led by {other:?} and {rid}");
                    }
                }
                Action::Send(to, kind, term) => {
                    self.check_durable(slot, kind, term);
                    for other in (0..self.mounts.len()).filter(|o| *o != slot) {
                        if to == To::Others || to == To::Slot(other as u8) {
                            self.send(other, Message { kind, from: slot as u8, term });
                        }
                    }
                }
                Action::StartServer(term) => {
                    let leaders = leaders_to_fence(&self.qconf, &self.scan(), rid, term).unwrap();
                    let at = self.now + Duration::from_millis(self.rng.random_range(1..300));
                    let fence = leaders.iter().map(|l| l.rid).collect();
                    let mount = self.mounts[slot].as_mut().expect("it acts");
                    mount.server = Server { state: ServerState::Starting, term, at, fence };
                }
                Action::StopServer => {
                    let at = self.now + Duration::from_millis(self.rng.random_range(1..600));
                    let mount = self.mounts[slot].as_mut().expect("it acts");
                    mount.server.state = ServerState::Stopping;
                    mount.server.at = at;
                }
            }
        }
    }

    fn check_durable(&self, slot: usize, kind: MessageKind, term: u64) {
        let durable = |what| event(&self.blocks[slot], what).term.get();
        match kind {
            MessageKind::RequestVote | MessageKind::Vote => assert!(durable(QuorumEvent::Term) >= term, "property 2"),
            MessageKind::Resignation => {
                assert!(durable(QuorumEvent::Stop) >= durable(QuorumEvent::Elect), "property 2")
            }
            MessageKind::Heartbeat => {}
        }
    }

    /// The server's own changes.
    fn serve(&mut self, slot: usize) {
        let fails = self.loss > 0.0 && self.rng.random_bool(0.2);
        let mount = self.mounts[slot].as_mut().expect("it serves");
        if self.now < mount.server.at {
            return;
        }
        mount.server.at = Duration::MAX;
        match mount.server.state {
            ServerState::Starting if fails => mount.server.state = ServerState::Down,
            ServerState::Starting => {
                mount.server.state = ServerState::Up;
                let (fence, term) = (mount.server.fence.clone(), mount.server.term);
                for rid in fence {
                    self.kill(|m| m.rid == rid);
                }
                for (other, m) in self.mounts.iter().enumerate().filter(|(other, _)| *other != slot) {
                    let older = m.as_ref().filter(|m| m.server.state != ServerState::Down && m.server.term < term);
                    assert!(older.is_none(), "property 3: {other} still runs a server older than {term}");
                }
            }
            ServerState::Stopping => mount.server.state = ServerState::Down,
            _ => {}
        }
    }

    fn kill(&mut self, which: impl Fn(&Mount) -> bool) {
        for slot in 0..self.mounts.len() {
            if self.mounts[slot].as_ref().is_some_and(&which) {
                self.mounts[slot] = None;
                self.back[slot] = self.now + Duration::from_millis(self.rng.random_range(0..3000));
            }
        }
    }

    fn step(&mut self, slot: usize, message: Option<Message>) {
        let Some(mount) = &mut self.mounts[slot] else { return };
        let actions = mount.election.step(self.now, message, mount.server.state);
        self.act(slot, actions);
    }

    /// One millisecond.
    fn tick(&mut self, crash: f64) {
        self.now += Duration::from_millis(1);
        if crash > 0.0 && self.rng.random_bool(crash) {
            let slot = self.rng.random_range(0..self.mounts.len());
            let victim = self.mounts[slot].as_ref().map(|m| m.rid);
            self.kill(|m| Some(m.rid) == victim);
        }
        while let Some(((at, _), _)) = self.wire.first_key_value()
            && *at <= self.now
        {
            let (_, (to, message)) = self.wire.pop_first().expect("it has a first one");
            self.step(to, Some(message));
        }
        for slot in 0..self.mounts.len() {
            if self.mounts[slot].is_none() && self.back[slot] <= self.now {
                self.mount(slot);
            }
            if self.mounts[slot].is_none() {
                continue;
            }
            self.serve(slot);
            self.step(slot, None);
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |m: &&Mount| m.election.role() == Role::Leader && m.server.state == ServerState::Up;
        let leaders = self.mounts.iter().flatten().filter(leads).map(|m| m.rid).collect::<Vec<_>>();
        (leaders.len() == 1).then(|| leaders[0])
    }
}

#[test]
fn clusters_elect_and_recover() {
    for seed in 0..60 {
        let members = 1 + seed as usize % 5;
        let mut cluster = Cluster::new(members, seed);
        for _ in 0..15_000 {
            cluster.tick(0.0008);
        }
        cluster.loss = 0.0;
        // A crashed member may be away for 3 s, a dead leader is waited for 2 s.
        for _ in 0..8_000 {
            cluster.tick(0.0);
        }
        let leader = cluster.leader();
        assert!(leader.is_some(), "property 4: seed {seed}, {members} members");
        for _ in 0..3_000 {
            cluster.tick(0.0);
        }
        assert_eq!(cluster.leader(), leader, "property 4: seed {seed}, {members} members");
    }
}
