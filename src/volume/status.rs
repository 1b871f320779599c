//! What a mount knows of the cluster, for people (`spec/05 §8.3`).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::Volume;
use crate::error::{Error, Result};
pub use crate::lock::LockReport;
use crate::server::ServerReport;
use crate::sync::Weak;

/// How long a server that is busy with a commit is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a mount does for the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Its server serves the cluster.
    Leader,
    /// It votes, and may become the leader.
    Member,
    /// Neither.
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Leader => "leader",
            Role::Member => "member",
            Role::Client => "client",
        })
    }
}

/// How a mount stands with the cluster. [`fmt::Display`] gives one field a line, the role first.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// What it does for the cluster.
    pub role: Role,
    /// Identity of this mount.
    pub rid: u64,
    /// Identity of the volume.
    pub fsid: u64,
    /// Term of the last server that accepted this mount; 0 if none has yet, or if the mount is read-only and needs none.
    pub server_term: u64,
    /// Where that server was.
    pub server_addr: Option<SocketAddr>,
    /// Is it connected to that server now?
    pub connected: bool,
    /// Servers and reconnects so far.
    pub greetings: u64,
    /// Requests that the server has not answered.
    pub pending_requests: usize,
    /// Why the last connection, or the last attempt at one, ended.
    pub last_error: Option<Error>,
    /// The members that the volume is made for: slot and address.
    pub slots: Vec<(usize, SocketAddr)>,
    /// Its part in the election, if it has one.
    pub member: Option<MemberStatus>,
    /// What its server knows, if it is the leader; `None` also if that is too busy to say.
    pub server: Option<ServerReport>,
}

/// A mount's part in the election.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Its slot.
    pub slot: usize,
    /// Its term.
    pub term: u64,
    /// Does it lead?
    pub leader: bool,
    /// Term in which its own server was started; 0 if none runs.
    pub server_term: u64,
    /// Why it takes part no more.
    pub failed: Option<Error>,
}

impl fmt::Display for ClusterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "role: {}", self.role)?;
        writeln!(f, "rid: {:016x}", self.rid)?;
        writeln!(f, "fsid: {:016x}", self.fsid)?;
        writeln!(f, "server_term: {}", self.server_term)?;
        let server = self.server_addr;
        writeln!(f, "leader_addr: {}", server.map_or_else(|| "unknown".into(), |addr| addr.to_string()))?;
        let slot = self.slots.iter().find(|(_, addr)| Some(*addr) == server).map(|(slot, _)| slot.to_string());
        writeln!(f, "leader_slot: {}", slot.unwrap_or_else(|| "unknown".into()))?;
        writeln!(f, "connected: {}", if self.connected { "yes" } else { "no" })?;
        writeln!(f, "greetings: {}", self.greetings)?;
        writeln!(f, "pending_requests: {}", self.pending_requests)?;
        // Of no interest once there is a connection again.
        if let Some(error) = self.last_error.as_ref().filter(|_| !self.connected) {
            writeln!(f, "last_error: {error}")?;
        }
        for (slot, addr) in &self.slots {
            writeln!(f, "slot_{slot}: {addr}")?;
        }
        if let Some(member) = &self.member {
            writeln!(f, "member_slot: {}\nmember_term: {}", member.slot, member.term)?;
            writeln!(
                f,
                "elected: {}\nown_server_term: {}",
                if member.leader { "yes" } else { "no" },
                member.server_term
            )?;
            if let Some(error) = &member.failed {
                writeln!(f, "member_failed: {error}")?;
            }
        }
        self.server.as_ref().map_or(Ok(()), |server| fmt_server(server, f))
    }
}

fn fmt_server(server: &ServerReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "clients: {}", server.clients.len())?;
    for client in &server.clients {
        let addr = client.addr.map_or_else(|| "unknown".into(), |addr| addr.to_string());
        writeln!(f, "client_{:016x}: {} {addr}", client.rid, client.state)?;
    }
    writeln!(f, "fence_requests: {}", server.fencing.len())?;
    for rid in &server.fencing {
        writeln!(f, "fence_request_{rid:016x}: pending")?;
    }
    writeln!(f, "commits: {}\nseq: {}", server.commits, server.seq)?;
    writeln!(f, "merging: {}\nwaiting_jobs: {}", if server.merging { "yes" } else { "no" }, server.waiting)?;
    writeln!(f, "locks: {}", server.lock_count)?;
    let parties = |list: &[(u64, String)]| {
        let list: Vec<String> = list.iter().map(|(rid, mode)| format!("{rid:016x}={mode}")).collect();
        if list.is_empty() { "-".to_owned() } else { list.join(",") }
    };
    for lock in &server.locks {
        let (held, giving, waiting) = (parties(&lock.held), parties(&lock.giving_up), parties(&lock.waiting));
        writeln!(f, "lock_{}: held {held} giving_up {giving} waiting {waiting}", lock.name)?;
    }
    Ok(())
}

impl Volume {
    /// How this mount stands with the cluster. Uses neither the devices nor the network; on the leader it waits up to two seconds
    /// for the server to finish a commit.
    pub fn cluster_status(&self) -> ClusterStatus {
        let conn = self.mounted.conn.get().and_then(Weak::upgrade).map(|c| c.status()).unwrap_or_default();
        let member = self.mounted.member.as_ref().map(|m| m.status());
        let server = self.mounted.server.upgrade().and_then(|server| server.handle());
        let leads = member.as_ref().is_some_and(|m| m.leader && m.server_term == m.term);
        let role = match &member {
            Some(_) if leads => Role::Leader,
            Some(_) => Role::Member,
            None => Role::Client,
        };
        ClusterStatus {
            role,
            rid: self.mounted.node.rid,
            fsid: self.mounted.node.store.fsid(),
            server_term: conn.term,
            server_addr: conn.server,
            connected: conn.connected,
            greetings: conn.greetings,
            pending_requests: conn.pending,
            last_error: conn.last_error,
            slots: self.mounted.slots.clone(),
            member: member.map(|m| MemberStatus {
                slot: m.slot,
                term: m.term,
                leader: m.leader,
                server_term: m.server_term,
                failed: m.failed,
            }),
            server: server.filter(|_| leads).and_then(|server| server.report(PATIENCE)).and_then(Result::ok),
        }
    }

    /// Changes how long a member waits for a silent leader, from the next heartbeat on: 2 s to 60 s.
    ///
    /// # Errors
    /// `EINVAL` outside of that range, or if the mount is no member.
    pub fn set_heartbeat_timeout(&self, timeout: Duration) -> Result<()> {
        match &self.mounted.member {
            Some(member) => member.set_heartbeat_timeout(timeout),
            None => Err(Error::invalid("this mount is no quorum member")),
        }
    }

    /// Changes how many idle cluster locks are kept, from now on: 32 to 100,000 (option `lock_idle_count`).
    ///
    /// # Errors
    /// `EINVAL` outside of that range.
    pub fn set_lock_idle_count(&self, count: u32) -> Result<()> {
        if !(32..=100_000).contains(&count) {
            return Err(Error::invalid(format!("{count} idle locks are not 32 to 100,000")));
        }
        self.mounted.node.locks.set_idle_count(count as usize);
        Ok(())
    }
}
