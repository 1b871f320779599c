//! Messages between nodes: byte streams, frames, and one logical connection per mount.
//!
//! **Problem.** A mount talks to exactly one server at a time. Sockets break, servers change; requests must neither be
//! lost nor executed twice by one server, and everything must arrive in the order in which it was queued.
//!
//! **Idea.** The protocol is a plain state machine, `Session`, that knows nothing of sockets, threads or
//! clocks: messages are queued with a sequence number, transmitted on whatever socket is attached, and kept until the
//! peer has shown that it has them. A thin threaded shell moves the bytes: `ClientConn` for a mount, `ServerNet`
//! for the leader. Below it is the seam [`Transport`], with TCP and an in-process hub.
//!
//! | file | concept |
//! |---|---|
//! | `command` | the commands, who may send them, how long their payloads are |
//! | `codec` | frames: encode, decode, every check on a received header |
//! | `session` | one end of a logical connection (`spec/05 §4.2`) |
//! | `transport`, `tcp`, `mem` | byte streams and datagrams |
//! | `link` | a session with the socket that is attached to it: sending |
//! | `receive` | frames from a stream, by a reading thread or by the sender's |
//! | `client`, `dial` | requests and answers; finding the server, greeting, reconnecting |
//! | `look` | noticing that another server leads |
//! | `server`, `accepted` | listening, waiting for lost clients; greetings and messages of one socket |
//!
//! The room does not know what requests mean; it only checks the lengths of their payloads.

mod accepted;
#[cfg(feature = "internals")]
pub mod bench;
mod client;
mod codec;
mod command;
mod dial;
mod link;
mod look;
mod mem;
mod receive;
mod server;
mod session;
mod tcp;
#[cfg(test)]
mod tests;
mod transport;

pub(crate) use client::{ClientConn, ClientConnConfig, ClientHandler, Reply};
#[cfg(feature = "internals")]
pub(crate) use codec::FrameReader;
pub(crate) use command::Command;
pub use mem::MemTransport;
pub(crate) use server::{Direct, Mail, RECONNECT_WAIT, ServerEvent, ServerNet, ServerNetConfig};
pub use tcp::{TcpOptions, TcpTransport};
pub use transport::{Datagrams, Listener, Sink, Stream, Transport};
