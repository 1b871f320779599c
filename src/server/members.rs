//! Mounts coming and going: greetings, lock traffic and its recovery, lost clients, fencing, farewells.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use zerocopy::IntoBytes;

use crate::error::{Errno, Error, Result};
use crate::format::Key;
use crate::format::consts::{
    AF_IPV4, GREETING_FAREWELL, GREETING_FLUSHES, GREETING_OPENS, GREETING_QUORUM, MOUNTED_CLIENT_QUORUM,
};
use crate::format::layout::{MountedClient, NetGreeting, OpenInoMapArgs};
use crate::lock::{Recovered, wire};
use crate::net::Command;
use crate::quorum::{MountedState, farewells_to_answer};
use crate::sync::Instant;

use super::core::{Answer, Asker, Job, Outcome, Peers, ServerCore, Step, stored_addr};
use super::fence::FenceReason;
use super::omap::OmapOut;
use super::silence::Due;

impl ServerCore {
    // Greetings.

    /// `spec/05 §4.5`; the connections have checked volume and format version.
    pub(super) fn greeting(
        &mut self,
        token: u64,
        rid: u64,
        greeting: &NetGreeting,
        peer: SocketAddr,
        first_contact: bool,
        peers: &mut dyn Peers,
    ) {
        let features = greeting.flags.get() & (GREETING_FLUSHES | GREETING_OPENS);
        if !first_contact {
            self.note_features(rid, features);
            return peers.greeting_done(token, Ok(()));
        }
        // A mount that is being fenced, or was reclaimed by an earlier server, has lost what it believes to own.
        let known = self.trees.mounted.contains_key(&rid);
        let flags = greeting.flags.get();
        let stranger = greeting.server_term.get() != 0 && !known && flags & GREETING_FAREWELL == 0;
        if stranger || self.fences.contains(rid) {
            tracing::warn!(rid, "refused a mount that has been given up");
            return peers.greeting_done(token, Err(Errno::EINVAL.into()));
        }
        self.note_features(rid, features);
        if known || greeting.server_term.get() != 0 {
            // The record may not be durable yet if the first greeting was not answered: wait for the commit.
            self.answers.push(Answer::Greeted { token, rid });
            return;
        }
        let flags = if flags & GREETING_QUORUM != 0 { MOUNTED_CLIENT_QUORUM } else { 0 };
        let client = MountedClient { addr: stored_addr(peer), flags, pad: [0; 7] };
        self.add_job(Job::Greet { token, rid, client, features });
    }

    /// Only of mounts that are recorded: whoever else greets must not fill the memory.
    fn note_features(&mut self, rid: u64, features: u64) {
        if self.trees.mounted.contains_key(&rid) {
            self.features.insert(rid, features);
        }
    }

    pub(super) fn step_greet(&mut self, token: u64, rid: u64, client: MountedClient, features: u64) -> Outcome<Step> {
        if !self.trees.mounted.contains_key(&rid) {
            self.trees.put_mounted(rid, client)?;
        }
        self.note_features(rid, features);
        self.answers.push(Answer::Greeted { token, rid });
        Ok(Step::Done)
    }

    /// The greeting is answered; the client can be sent requests.
    pub(super) fn first_contact(&mut self, rid: u64, peers: &mut dyn Peers) {
        if self.trees.mounted.contains_key(&rid) {
            self.connected.insert(rid);
            self.desk.admit(rid);
            self.omap.join(rid);
            if self.recovery.owes_locks(rid) {
                self.ask_for_locks(rid, Key::ZEROS, peers);
            }
        }
        self.recovery.greeted(rid);
        self.recovery_moved(peers);
    }

    // Recovery.

    fn ask_for_locks(&mut self, rid: u64, from: Key, peers: &mut dyn Peers) {
        if let Err(e) = peers.request(rid, Command::LockRecover, from.to_stored().as_bytes()) {
            tracing::debug!(rid, error = %e, "a recovering client is gone again");
        }
    }

    pub(super) fn lock_recover(&mut self, rid: u64, payload: &[u8], peers: &mut dyn Peers) {
        if !self.recovery.owes_locks(rid) {
            return peers.break_client(rid, "a report of locks that nobody wants");
        }
        match wire::parse_recover(payload).and_then(|locks| self.desk.recovered(rid, &locks)) {
            Ok(Recovered { next: Some(next), .. }) => self.ask_for_locks(rid, next, peers),
            Ok(Recovered { next: None, .. }) => {
                self.recovery.locks_done(rid);
                self.recovery_moved(peers);
            }
            // It stays pending, and is fenced when the time is over.
            Err(e) => peers.break_client(rid, &format!("report of locks refused: {e}")),
        }
    }

    /// Lets go what waited for recovery, if it is over.
    fn recovery_moved(&mut self, peers: &mut dyn Peers) {
        if self.locks_blocked && !self.recovery.locks_pending() {
            self.locks_blocked = false;
            self.desk.end_recovery(peers);
        }
        if !self.recovery.greeting_pending() {
            let out = self.omap.recovered();
            self.send_maps(out, peers);
        }
    }

    pub(super) fn send_maps(&mut self, out: Vec<OmapOut>, peers: &mut dyn Peers) {
        for message in out {
            match message {
                OmapOut::Ask { rid, args } => {
                    if let Err(e) = peers.request(rid, Command::OpenInoMap, args.as_bytes()) {
                        tracing::debug!(rid, error = %e, "an open map request waits for the reclaim of a client");
                    }
                }
                OmapOut::Answer { rid, id, map } => {
                    peers.respond(rid, id, Command::OpenInoMap, Ok(map.as_bytes().to_vec()));
                }
            }
        }
    }

    // Lost mounts.

    pub(super) fn lost(&mut self, rid: u64, peer: SocketAddr, now: Instant, peers: &mut dyn Peers) {
        // A mount that is not on record owns nothing.
        if self.trees.mounted.contains_key(&rid) {
            self.fence(rid, Some(peer.ip()), FenceReason::ClientReconnect, now, peers);
        }
    }

    fn fence(&mut self, rid: u64, addr: Option<IpAddr>, reason: FenceReason, now: Instant, peers: &mut dyn Peers) {
        if !self.reclaiming.contains(&rid) && self.fences.add(rid, now) {
            tracing::warn!(rid, %reason, "fencing a mount");
            peers.fence(rid, addr, reason);
        }
    }

    /// A client that does not do what it must is cut off and fenced: others wait for it, and what it writes cannot be
    /// trusted any more.
    pub(super) fn distrust(&mut self, rid: u64, why: &dyn std::fmt::Display, now: Instant, peers: &mut dyn Peers) {
        tracing::error!(rid, %why, "a client is given up");
        peers.break_client(rid, "it does not keep to the protocol");
        if let Some(client) = self.trees.mounted.get(&rid) {
            self.fence(rid, stored_ip(client), FenceReason::ClientReconnect, now, peers);
        }
    }

    /// Invalidations that are not answered.
    fn watch_silence(&mut self, now: Instant, peers: &mut dyn Peers) {
        // One mount alone is asked for nothing; with two, the desk need not tell anybody that it has asked.
        if self.connected.len() > 1 {
            self.silence.watch(now);
        }
        if !self.silence.is_due(now) {
            return;
        }
        for (rid, at) in self.desk.heard() {
            self.silence.heard(rid, at);
        }
        for due in self.silence.look(now, self.desk.owing().into_iter()) {
            match due {
                Due::Probe(rid) => {
                    // Number 0 is nobody's request: only that there is an answer counts.
                    let args = OpenInoMapArgs { group_nr: 0.into(), req_id: 0.into() };
                    if let Err(e) = peers.request(rid, Command::OpenInoMap, args.as_bytes()) {
                        tracing::debug!(rid, error = %e, "a client that owes an answer is away");
                    }
                }
                Due::Fence(rid, why) => self.distrust(rid, &why, now, peers),
            }
        }
        if self.connected.len() > 1 {
            self.silence.watch(now);
        }
    }

    /// An unconfirmed fence ends the server: another member may have more luck.
    pub(super) fn fenced(&mut self, rid: u64, result: Result<()>) -> Result<()> {
        result?;
        if self.fences.confirmed(rid) {
            self.start_reclaim(rid, true);
        }
        Ok(())
    }

    /// What is due because of the time.
    pub(super) fn tick(&mut self, now: Instant, peers: &mut dyn Peers) -> Result<()> {
        for rid in self.recovery.late(now) {
            let addr = self.trees.mounted.get(&rid).and_then(stored_ip);
            self.fence(rid, addr, FenceReason::ClientRecovery, now, peers);
        }
        self.watch_silence(now, peers);
        match self.fences.overdue(now) {
            Some(rid) => Err(Error::Busy(format!("mount {rid:016x} has not been fenced in time"))),
            None => Ok(()),
        }
    }

    // Farewells.

    pub(super) fn farewell(&mut self, from: Asker) {
        self.farewells.retain(|f| f.rid != from.rid);
        self.goodbyes.retain(|f| f.rid != from.rid);
        self.farewells.push(from);
    }

    fn may_leave(&self) -> Vec<u64> {
        let state = |(rid, client): (&u64, &MountedClient)| MountedState {
            rid: *rid,
            quorum: client.flags & MOUNTED_CLIENT_QUORUM != 0,
            locks_pending: self.recovery.owes_locks(*rid),
        };
        let mounted: Vec<MountedState> = self.trees.mounted.iter().map(state).collect();
        let asking: Vec<u64> = self.farewells.iter().map(|f| f.rid).collect();
        let mut leave = farewells_to_answer(&mounted, &asking, self.config.votes_needed);
        // The last majority leaves together, and after all others. Whoever of it left before somebody has recovered would
        // take the server along, and the one that stays could never have another one. Who is not there, and may be dead,
        // votes for nobody.
        let staying = |m: &&MountedState| !leave.contains(&m.rid);
        let there = |m: &&MountedState| self.connected.contains(&m.rid) && !self.away.contains(&m.rid);
        let members = mounted.iter().filter(staying).filter(there).filter(|m| m.quorum).count();
        if members < self.config.votes_needed && mounted.iter().any(|m| staying(&m)) {
            leave.retain(|rid| !mounted.iter().any(|m| m.quorum && m.rid == *rid));
        }
        leave.retain(|rid| !self.reclaiming.contains(rid));
        leave
    }

    pub(super) fn farewell_due(&self) -> bool {
        !self.farewells.is_empty() && !self.may_leave().is_empty()
    }

    /// Begins to reclaim the mounts that may leave.
    pub(super) fn start_farewells(&mut self, peers: &dyn Peers) -> Result<()> {
        if !self.farewells.is_empty() {
            self.away = self.connected.iter().copied().filter(|rid| peers.is_away(*rid)).collect();
            for rid in self.may_leave() {
                self.start_reclaim(rid, false);
            }
        }
        Ok(())
    }

    /// All traces of a mount are gone, durably.
    pub(super) fn reclaimed(&mut self, rid: u64, fenced: bool, peers: &mut dyn Peers) {
        self.reclaiming.remove(&rid);
        self.connected.remove(&rid);
        self.features.remove(&rid);
        if let Some(i) = self.farewells.iter().position(|f| f.rid == rid) {
            self.goodbyes.push(self.farewells.remove(i));
        }
        // The answer to the leader's own mount ends this server, so it must not come before all others are reclaimed.
        if !self.farewells.iter().any(|f| self.reclaiming.contains(&f.rid)) {
            for from in std::mem::take(&mut self.goodbyes) {
                peers.respond(from.rid, from.id, Command::Farewell, Ok(Vec::new()));
            }
        }
        if fenced {
            peers.drop_client(rid);
        }
        self.recovery.greeted(rid);
        self.recovery.locks_done(rid);
        self.recovery_moved(peers);
    }
}

fn stored_ip(client: &MountedClient) -> Option<IpAddr> {
    (client.addr.family.get() == AF_IPV4).then(|| Ipv4Addr::from(client.addr.addr.get()).into())
}
