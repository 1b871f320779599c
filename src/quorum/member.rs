//! The thread of a quorum member.

use std::time::Duration;

use super::blocks::QuorumDisk;
use super::scan::Leader;
use crate::error::{Error, Result};
use crate::format::layout::QuorumConfig;
use crate::net::Transport;
use crate::sync::Arc;

/// Where the local server is in its life (`spec/05 §5.1`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ServerState {
    /// Not running; nothing of it can reach the device any more.
    Down,
    /// Fencing, reading, not yet accepting.
    Starting,
    /// Accepting clients; every older leader has been fenced.
    Up,
    /// Asked to stop, may still write.
    Stopping,
}

/// The order to start the server.
#[derive(Clone, Debug)]
pub(crate) struct ServerStart {
    /// Term of the election.
    pub(crate) term: u64,
    /// Leaders to fence first, including those that an earlier server of this mount could not fence. The server may only
    /// become [`ServerState::Up`] when every one is confirmed.
    pub(crate) fence: Vec<Leader>,
}

/// The local server as the election sees it. No method may block; call [`QuorumMember::server_changed`] after every
/// change of the state.
pub(crate) trait ServerControl: Send + Sync {
    /// Starts the server. Its state must not be `Down` when this returns, unless starting has failed for good.
    fn start_server(&self, start: ServerStart);
    /// Asks it to stop.
    fn stop_server(&self);
    /// Where it is.
    fn server_state(&self) -> ServerState;
}

/// What a member is made of.
pub(crate) struct MemberConfig {
    /// The volume.
    pub(crate) fsid: u64,
    /// The mount.
    pub(crate) rid: u64,
    /// Its slot.
    pub(crate) slot: usize,
    /// All slots.
    pub(crate) qconf: QuorumConfig,
    /// 2 s to 60 s, default 10 s.
    pub(crate) heartbeat_timeout: Duration,
    /// Datagrams.
    pub(crate) transport: Arc<dyn Transport>,
    /// The quorum blocks.
    pub(crate) disk: Arc<QuorumDisk>,
    /// The server.
    pub(crate) server: Arc<dyn ServerControl>,
}

/// State of a member, for people.
#[derive(Clone, Debug)]
pub(crate) struct MemberStatus {
    /// Its slot.
    pub(crate) slot: usize,
    /// Its term.
    pub(crate) term: u64,
    /// Is it the leader?
    pub(crate) leader: bool,
    /// Term in which the local server was started, 0 if none runs.
    pub(crate) server_term: u64,
    /// Why it does not take part any more.
    pub(crate) failed: Option<Error>,
}

/// A running member.
pub(crate) struct QuorumMember {}

impl QuorumMember {
    /// Checks the configuration, binds the socket, records BEGIN and starts taking part.
    pub(crate) fn start(_config: MemberConfig) -> Result<Arc<QuorumMember>> {
        todo!()
    }

    /// The state of the local server has changed.
    pub(crate) fn server_changed(&self) {
        todo!()
    }

    /// Current state.
    pub(crate) fn status(&self) -> MemberStatus {
        todo!()
    }

    /// Changes the heartbeat timeout, from the next heartbeat on.
    pub(crate) fn set_heartbeat_timeout(&self, _timeout: Duration) {
        todo!()
    }

    /// Leaves in order, after the farewell: stops the server and waits for it, records STOP and END, joins the thread.
    pub(crate) fn leave(&self) -> Result<()> {
        todo!()
    }

    /// Leaves without sending or writing anything (forced unmount), joins the thread. Called by drop too.
    pub(crate) fn abandon(&self) {
        todo!()
    }
}
