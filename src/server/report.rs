//! What a running server knows, for people: the leader's part of the cluster status.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::core::ServerCore;
use crate::error::Result;
use crate::format::consts::AF_IPV4;
use crate::lock::LockReport;

/// Locks that are listed one by one at most; those somebody waits for come first.
const LISTED_LOCKS: usize = 1000;

/// How a mount stands with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientState {
    /// It was with an earlier server and has not reported everything yet.
    Recovering,
    /// It has been let in.
    Active,
    /// It is being isolated.
    Fencing,
    /// What it held is being taken back.
    Reclaiming,
}

impl std::fmt::Display for ClientState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ClientState::Recovering => "recovering",
            ClientState::Active => "active",
            ClientState::Fencing => "fencing",
            ClientState::Reclaiming => "reclaiming",
        })
    }
}

/// A mount as the server sees it.
#[derive(Clone, Debug)]
pub struct ClientReport {
    /// Its identity.
    pub rid: u64,
    /// How it stands.
    pub state: ClientState,
    /// Where it came from when it was recorded; `None` if that is not known.
    pub addr: Option<SocketAddr>,
}

/// What the server of the leader knows.
#[derive(Clone, Debug)]
pub struct ServerReport {
    /// The term it serves.
    pub term: u64,
    /// All mounts on record, by rid.
    pub clients: Vec<ClientReport>,
    /// Mounts that were asked to be fenced, without confirmation yet.
    pub fencing: Vec<u64>,
    /// Locks in memory.
    pub lock_count: usize,
    /// At most 1000 of them: first those that somebody waits for.
    pub locks: Vec<LockReport>,
    /// Commits written.
    pub commits: u64,
    /// Sequence counter of the volume.
    pub seq: u64,
    /// Is a log merge under way?
    pub merging: bool,
    /// Requests that wait for a commit or for other mounts.
    pub waiting: usize,
}

impl ServerCore {
    /// Everything as it is now.
    pub(super) fn report(&self, term: u64) -> Result<ServerReport> {
        let status = self.status();
        let clients = self.trees.mounted.iter().map(|(rid, item)| {
            let state = if self.reclaiming.contains(rid) {
                ClientState::Reclaiming
            } else if self.fences.contains(*rid) {
                ClientState::Fencing
            } else if self.connected.contains(rid) && !self.recovery.owes_locks(*rid) {
                ClientState::Active
            } else {
                ClientState::Recovering
            };
            let ip = Ipv4Addr::from(item.addr.addr.get());
            let known = item.addr.family.get() == AF_IPV4;
            let addr = known.then(|| SocketAddr::new(IpAddr::V4(ip), item.addr.port.get()));
            ClientReport { rid: *rid, state, addr }
        });
        Ok(ServerReport {
            term,
            clients: clients.collect(),
            fencing: self.fences.rids().collect(),
            lock_count: self.desk.lock_count(),
            locks: self.desk.report(LISTED_LOCKS),
            commits: status.commits,
            seq: status.seq,
            merging: self.merge_status()?.is_some(),
            waiting: status.waiting,
        })
    }
}
