//! A server that answers everything, and a handler that notes what it gets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};

use crate::error::{Error, Result};
use crate::net::client::{ClientConn, ClientConnConfig, ClientHandler, Reply};
use crate::net::command::Command;
use crate::net::server::{ServerEvent, ServerNet, ServerNetConfig};
use crate::net::transport::Transport;
use crate::sync::{Arc, Mutex, thread};

pub(super) const FSID: u64 = 0x1122_3344_5566_7788;

pub(super) fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 4000))
}

/// What a client was told.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Heard {
    Request(Command, Vec<u8>),
    LockResponse(Vec<u8>),
    NewServer(u64),
    Evicted,
}

/// Notes everything, answers requests with the right number of zeros unless it is told to keep them.
#[derive(Default)]
pub(super) struct Ear {
    pub(super) heard: Mutex<Vec<Heard>>,
    pub(super) kept: Mutex<Vec<Reply>>,
    pub(super) keep: bool,
}

impl Ear {
    pub(super) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().clone()
    }
}

impl ClientHandler for Ear {
    fn request(&self, cmd: Command, payload: Vec<u8>, reply: Reply) {
        self.heard.lock().push(Heard::Request(cmd, payload));
        if self.keep {
            self.kept.lock().push(reply);
        } else {
            reply.send(Ok(zeros(cmd)));
        }
    }

    fn lock_response(&self, payload: Vec<u8>) {
        self.heard.lock().push(Heard::LockResponse(payload));
    }

    fn new_server(&self, term: u64) {
        self.heard.lock().push(Heard::NewServer(term));
    }

    fn evicted(&self, _error: Error) {
        self.heard.lock().push(Heard::Evicted);
    }
}

/// A response payload of the right length.
pub(super) fn zeros(cmd: Command) -> Vec<u8> {
    let len = (0..=1100).find(|n| cmd.response_len_ok(*n)).expect("every command has a response");
    vec![0; len]
}

/// Where clients find the server, and whether they are mounted.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) server: Arc<Mutex<Option<(SocketAddr, u64)>>>,
    pub(super) mounted: Arc<Mutex<bool>>,
}

impl Place {
    pub(super) fn at(addr: SocketAddr, term: u64) -> Place {
        Place { server: Arc::new(Mutex::new(Some((addr, term)))), mounted: Arc::new(Mutex::new(true)) }
    }
}

pub(super) fn client(transport: &Arc<dyn Transport>, rid: u64, place: &Place, ear: &Arc<Ear>) -> Arc<ClientConn> {
    let (server, mounted) = (place.server.clone(), place.mounted.clone());
    ClientConn::start(ClientConnConfig {
        rid,
        fsid: FSID,
        fmt_vers: 2,
        quorum_member: false,
        transport: transport.clone(),
        find_server: Box::new(move || server.lock().ok_or(crate::error::Errno::ENOENT.into())),
        is_still_mounted: Box::new(move || Ok(*mounted.lock())),
        handler: ear.clone(),
    })
    .expect("a client starts")
}

pub(super) fn server(
    transport: &Arc<dyn Transport>,
    addr: SocketAddr,
    term: u64,
    reconnect_wait: Duration,
) -> (Arc<ServerNet>, Receiver<ServerEvent>) {
    let (events, receiver) = unbounded();
    let config = ServerNetConfig { transport: transport.clone(), addr, fsid: FSID, fmt_vers: 2, term, reconnect_wait };
    (Arc::new(ServerNet::start(config, events).expect("a server starts")), receiver)
}

/// Lets everybody in and answers every request with zeros, until the server stops; what it saw.
pub(super) fn answer_all(
    net: &Arc<ServerNet>,
    events: Receiver<ServerEvent>,
) -> (Arc<Mutex<Vec<ServerEvent>>>, thread::JoinHandle<()>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (weak, out) = (Arc::downgrade(net), seen.clone());
    let thread = thread::spawn(move || {
        while let Ok(event) = events.recv() {
            let Some(net) = weak.upgrade() else { return };
            match &event {
                ServerEvent::Greeting { token, .. } => net.greeting_done(*token, Ok(())),
                ServerEvent::Request { rid, id, cmd, .. } => net.respond(*rid, *id, *cmd, Ok(zeros(*cmd))),
                _ => {}
            }
            out.lock().push(event);
        }
    });
    (seen, thread)
}

/// Waits until `what` gives something; a test that waits 20 s has failed.
pub(super) fn eventually<T>(name: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {name}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn ok(result: Result<Vec<u8>>) -> Vec<u8> {
    result.expect("the server answers well")
}
