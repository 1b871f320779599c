//! Handles for `benches/net.rs`, which as another crate sees only what is public. Not part of the API.

use std::net::SocketAddr;

use crossbeam::channel::unbounded;

use super::client::{ClientConn, ClientConnConfig, ClientHandler, Reply};
use super::codec::{FrameReader, Head, encode};
use super::command::Command;
use super::server::{RECONNECT_WAIT, ServerEvent, ServerNet, ServerNetConfig};
use super::session::{Session, Verdict};
use super::transport::Transport;
use crate::error::{Error, Result};
use crate::sync::{Arc, thread};

/// Encodes `count` lock messages and decodes them again; the number decoded.
pub fn codec(count: u64) -> u64 {
    let mut reader = FrameReader::new();
    let mut bytes = Vec::new();
    let mut decoded = 0;
    for seq in 1..=count {
        bytes.clear();
        let head = Head { seq, recv_seq: seq, id: seq, cmd: Command::Lock, response: false, error: 0 };
        encode(&mut bytes, &head, &[0; 48]);
        reader.space()[..bytes.len()].copy_from_slice(&bytes);
        reader.filled(bytes.len());
        decoded += u64::from(matches!(reader.next(), Ok(Some(_))));
    }
    decoded
}

/// Two ends of a connection without sockets.
pub struct Sessions {
    client: Session<()>,
    server: Session<()>,
    bytes: Vec<u8>,
    reader: FrameReader,
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions { client: Session::new(1), server: Session::new(1), bytes: Vec::new(), reader: FrameReader::new() }
    }
}

impl Sessions {
    /// One lock request and its answer; true if both arrived.
    pub fn exchange(&mut self) -> bool {
        let id = self.client.request(Command::Lock, &[0; 48], ());
        let asked = carry(&mut self.client, &mut self.server, &mut self.bytes, &mut self.reader);
        self.server.respond(Command::Lock, id, Ok(&[0; 48]));
        let answered = carry(&mut self.server, &mut self.client, &mut self.bytes, &mut self.reader);
        asked == Some(Verdict::Request) && answered == Some(Verdict::Response(()))
    }
}

fn carry(
    from: &mut Session<()>,
    to: &mut Session<()>,
    bytes: &mut Vec<u8>,
    reader: &mut FrameReader,
) -> Option<Verdict<()>> {
    bytes.clear();
    from.transmit(bytes, usize::MAX);
    reader.space()[..bytes.len()].copy_from_slice(bytes);
    reader.filled(bytes.len());
    reader.next().ok()?.map(|frame| to.receive(&frame.head))
}

struct Deaf;

impl ClientHandler for Deaf {
    fn request(&self, _: Command, _: Vec<u8>, _: Reply) -> Result<()> {
        Ok(())
    }
    fn lock_response(&self, _: Vec<u8>) -> Result<()> {
        Ok(())
    }
    fn new_server(&self, _: u64) {}
    fn evicted(&self, _: Error) {}
}

/// A client and a server thread that answers everything at once. The thread ends with the network's channel.
pub struct Echo {
    conn: Arc<ClientConn>,
    net: Arc<ServerNet>,
}

impl Echo {
    /// Connects both over this transport.
    pub fn start(transport: Arc<dyn Transport>, addr: SocketAddr) -> Result<Echo> {
        let (events, receiver) = unbounded();
        let config = ServerNetConfig {
            transport: transport.clone(),
            addr,
            fsid: 1,
            fmt_vers: 2,
            term: 1,
            reconnect_wait: RECONNECT_WAIT,
            direct: None,
        };
        let net = Arc::new(ServerNet::start(config, events)?);
        let answering = Arc::downgrade(&net);
        thread::spawn(move || {
            while let (Ok(event), Some(net)) = (receiver.recv(), answering.upgrade()) {
                match event {
                    ServerEvent::Greeting { token, .. } => net.greeting_done(token, Ok(())),
                    ServerEvent::Request { rid, id, cmd, .. } => net.respond(rid, id, cmd, Ok(vec![0; 8])),
                    ServerEvent::Response { .. } | ServerEvent::ClientLost { .. } => {}
                }
            }
        });
        let at = net.local_addr();
        let conn = ClientConn::start(ClientConnConfig {
            rid: 1,
            fsid: 1,
            fmt_vers: 2,
            quorum_member: false,
            flushes: true,
            transport,
            find_server: Box::new(move || Ok((at, 1))),
            is_still_mounted: Box::new(|| Ok(true)),
            watch_leader: false,
            handler: Arc::new(Deaf),
        })?;
        Ok(Echo { conn, net })
    }

    /// One request and its answer.
    pub fn request(&self) -> Result<usize> {
        self.conn.request(Command::GetLastSeq, &[]).map(|answer| answer.len())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.conn.close();
        self.net.stop();
    }
}
