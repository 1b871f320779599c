//! What a mount knows of the cluster, for people (`spec/05 §8.3`).

use std::time::Duration;

use super::Volume;
use crate::error::{Error, Result};
use crate::sync::Weak;

/// How a mount stands with the cluster.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// Identity of this mount.
    pub rid: u64,
    /// Term of the last server that accepted this mount; 0 if none has yet, or if the mount is read-only and needs none.
    pub server_term: u64,
    /// Is it connected to that server now?
    pub connected: bool,
    /// Servers and reconnects so far.
    pub greetings: u64,
    /// Requests that the server has not answered.
    pub pending_requests: usize,
    /// Why the last connection, or the last attempt at one, ended.
    pub last_error: Option<Error>,
    /// Its part in the election, if it has one.
    pub member: Option<MemberStatus>,
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

impl Volume {
    /// How this mount stands with the cluster.
    pub fn cluster_status(&self) -> ClusterStatus {
        let conn = self.mounted.conn.get().and_then(Weak::upgrade).map(|c| c.status()).unwrap_or_default();
        let member = self.mounted.member.as_ref().map(|m| m.status());
        ClusterStatus {
            rid: self.mounted.node.rid,
            server_term: conn.term,
            connected: conn.connected,
            greetings: conn.greetings,
            pending_requests: conn.pending,
            last_error: conn.last_error,
            member: member.map(|m| MemberStatus {
                slot: m.slot,
                term: m.term,
                leader: m.leader,
                server_term: m.server_term,
                failed: m.failed,
            }),
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
}
