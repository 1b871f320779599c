//! The leader's end of all connections.

use std::net::SocketAddr;
use std::time::Duration;

use crossbeam::channel::Sender;

use super::command::Command;
use super::transport::Transport;
use crate::error::Result;
use crate::format::layout::NetGreeting;
use crate::sync::Arc;

/// What happens on the connections, in the order in which the server thread should see it.
#[derive(Debug)]
pub(crate) enum ServerEvent {
    /// A client greets. Volume, format version and rid have been checked. Must be answered by
    /// [`ServerNet::greeting_done`]; greetings of one rid come one at a time.
    Greeting {
        /// Names this greeting in [`ServerNet::greeting_done`].
        token: u64,
        /// The client.
        rid: u64,
        /// All it said.
        greeting: NetGreeting,
        /// Address and port of its socket.
        peer: SocketAddr,
        /// The first greeting of this rid at this server: insert the mounted client item if `server_term` is 0, refuse
        /// if it is not and the item does not exist (unless the FAREWELL flag is set), and do the first-contact work
        /// after [`ServerNet::greeting_done`] (`spec/05 §4.5` steps 2, 7, 9). Otherwise there is nothing to do but to
        /// answer.
        first_contact: bool,
    },
    /// A request with the right payload length. Each is delivered once in the life of this server.
    Request {
        /// The client.
        rid: u64,
        /// Repeat it in [`ServerNet::respond`].
        id: u64,
        /// What it wants: only commands that servers handle.
        cmd: Command,
        /// Its content.
        payload: Vec<u8>,
    },
    /// The answer to a [`ServerNet::request`], once each; a successful one has a right length.
    Response {
        /// The client.
        rid: u64,
        /// As returned by [`ServerNet::request`].
        id: u64,
        /// What had been asked.
        cmd: Command,
        /// The answer.
        result: Result<Vec<u8>>,
    },
    /// The client has been away for 20 s without having said farewell, and is refused from now on: fence it.
    ClientLost {
        /// The client.
        rid: u64,
        /// Its last address.
        peer: SocketAddr,
    },
}

/// What a server's network is made of.
pub(crate) struct ServerNetConfig {
    /// How clients reach us.
    pub(crate) transport: Arc<dyn Transport>,
    /// Where we listen: our slot's address.
    pub(crate) addr: SocketAddr,
    /// Identity of the volume.
    pub(crate) fsid: u64,
    /// Format version of the super block.
    pub(crate) fmt_vers: u64,
    /// Term in which this server was elected.
    pub(crate) term: u64,
    /// How long a lost client may stay away: [`RECONNECT_WAIT`] unless a test says otherwise.
    pub(crate) reconnect_wait: Duration,
}

/// How long a server waits for a disconnected client (`spec/05 §1.3`).
pub(crate) const RECONNECT_WAIT: Duration = Duration::from_secs(20);

/// All connections of a running server.
///
/// No method blocks on a client. Events go to the channel in the order described at [`ServerEvent`]; use an unbounded
/// channel, reading from sockets pauses while more than a few thousand events wait in it.
pub(crate) struct ServerNet {}

impl ServerNet {
    /// Binds the listener and starts accepting.
    pub(crate) fn start(_config: ServerNetConfig, _events: Sender<ServerEvent>) -> Result<ServerNet> {
        todo!()
    }

    /// Answers a request. Ignored when the client is gone.
    pub(crate) fn respond(&self, _rid: u64, _id: u64, _cmd: Command, _result: Result<Vec<u8>>) {
        todo!()
    }

    /// Sends a request to a client, returns its id. `ENOTCONN` when the server has no connection state of the client
    /// (any more); a client that has lost its socket and may come back gets it then.
    pub(crate) fn request(&self, _rid: u64, _cmd: Command, _payload: &[u8]) -> Result<u64> {
        todo!()
    }

    /// Ends a greeting. `Ok`: the client is let in, and requests may be sent to it from now on (they follow the greeting
    /// response). `Err`: it gets an error response and its socket is closed.
    pub(crate) fn greeting_done(&self, _token: u64, _result: Result<()>) {
        todo!()
    }

    /// Forgets a client (it has been reclaimed): its socket is closed, nothing is reported about it any more.
    pub(crate) fn drop_client(&self, _rid: u64) {
        todo!()
    }

    /// The rids with connection state.
    pub(crate) fn clients(&self) -> Vec<u64> {
        todo!()
    }

    /// Closes everything and joins all threads; no event is sent afterwards.
    pub(crate) fn stop(&self) {
        todo!()
    }
}
