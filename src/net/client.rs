//! A mount's connection to the current server.

use std::net::SocketAddr;

use super::command::Command;
use super::transport::Transport;
use crate::error::{Error, Result};
use crate::sync::Arc;

/// What a mount does with the messages of the server. All methods run on the receive thread (or, over the in-process
/// transport, on a thread of the server), in the order in which the messages arrived, and must not block: they queue
/// work or answer at once.
pub(crate) trait ClientHandler: Send + Sync {
    /// A request of the server: SYNC_LOG_TREES, LOCK (invalidate), LOCK_RECOVER or OPEN_INO_MAP, with the right payload
    /// length.
    fn request(&self, cmd: Command, payload: Vec<u8>, reply: Reply);

    /// The answer to a LOCK request, 48 bytes, in order with the LOCK requests of the server.
    fn lock_response(&self, payload: Vec<u8>);

    /// Another server than before (or the first) has accepted the greeting. Called before any message of the new server
    /// and before anything is sent to it; unanswered requests are sent again by the connection.
    fn new_server(&self, term: u64);

    /// The volume has given this mount up (its mounted client item is gone although it has not said farewell): every
    /// pending request has been failed and no further one will be sent. The mount must stop writing.
    fn evicted(&self, error: Error);
}

/// The way to answer one request of the server.
pub(crate) struct Reply {}

impl Reply {
    /// Sends the answer, unless the server has changed since the request arrived.
    pub(crate) fn send(self, _result: Result<Vec<u8>>) {
        todo!()
    }

    /// Term of the server that asked.
    pub(crate) fn term(&self) -> u64 {
        todo!()
    }
}

/// What a connection is made of.
pub(crate) struct ClientConnConfig {
    /// Identity of the mount.
    pub(crate) rid: u64,
    /// Identity of the volume.
    pub(crate) fsid: u64,
    /// Format version of the super block.
    pub(crate) fmt_vers: u64,
    /// Is the mount a quorum member?
    pub(crate) quorum_member: bool,
    /// How to reach servers.
    pub(crate) transport: Arc<dyn Transport>,
    /// Address and term of the current leader (`quorum::find_server`); `ENOENT` when there is none.
    pub(crate) find_server: Box<dyn FnMut() -> Result<(SocketAddr, u64)> + Send>,
    /// Does the mounted client item of this rid exist on the device? An error means "not known".
    pub(crate) is_still_mounted: Box<dyn FnMut() -> Result<bool> + Send>,
    /// Who gets the server's messages.
    pub(crate) handler: Arc<dyn ClientHandler>,
}

/// State of a connection, for people and for a mount that waits for its first server.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnStatus {
    /// Term of the last server that accepted the greeting; 0 if none has.
    pub(crate) term: u64,
    /// Is a greeted socket attached now?
    pub(crate) connected: bool,
    /// Why the last attempt or socket ended.
    pub(crate) last_error: Option<Error>,
    /// Requests without answer.
    pub(crate) pending: usize,
    /// Sockets that got a good greeting so far.
    pub(crate) greetings: u64,
}

/// What completes a request that nobody waits for.
pub(crate) type Done = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

/// One mount's connection to whichever server leads.
pub(crate) struct ClientConn {}

impl ClientConn {
    /// Starts connecting in the background.
    pub(crate) fn start(_config: ClientConnConfig) -> Result<Arc<ClientConn>> {
        todo!()
    }

    /// Sends a request and waits for its answer, as long as it takes. A successful answer has the right length
    /// (`EMSGSIZE` otherwise).
    ///
    /// Errors: what the server answered; `ENOLINK` ([`Error::Shutdown`]) when the connection had already been forced
    /// down, `ECONNABORTED` when it was forced down meanwhile.
    pub(crate) fn request(&self, _cmd: Command, _payload: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }

    /// Sends a request; `done` is called once, on the receive thread, and must not block.
    pub(crate) fn request_with(&self, _cmd: Command, _payload: &[u8], _done: Done) {
        todo!()
    }

    /// Sends a LOCK request (48 bytes); its answer goes to [`ClientHandler::lock_response`].
    pub(crate) fn lock_request(&self, _payload: &[u8]) -> Result<()> {
        todo!()
    }

    /// Says farewell and waits until the server, or the mounted client item's absence, has confirmed it. Returns at once
    /// when no server has ever accepted a greeting.
    pub(crate) fn farewell(&self) -> Result<()> {
        todo!()
    }

    /// Looks for the server now instead of waiting out the pause between two attempts.
    pub(crate) fn wake(&self) {
        todo!()
    }

    /// Current state.
    pub(crate) fn status(&self) -> ConnStatus {
        todo!()
    }

    /// Fails everything pending with `ECONNABORTED` and everything later with `ENOLINK`, sends nothing more.
    pub(crate) fn force_down(&self) {
        todo!()
    }

    /// Like [`ClientConn::force_down`], then joins all threads. Called by drop too.
    pub(crate) fn close(&self) {
        todo!()
    }
}
