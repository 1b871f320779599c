//! A server that answers everything, and a handler that notes what it gets.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::IntoBytes;

use crate::error::{Errno, Error, Result};
use crate::format::layout::NetGreeting;
use crate::net::client::{ClientConn, ClientConnConfig, ClientHandler, Reply};
use crate::net::codec::{FrameReader, Head, encode};
use crate::net::command::Command;
use crate::net::server::{ServerEvent, ServerNet, ServerNetConfig};
use crate::net::transport::{Datagrams, Listener, Stream, Transport};
use crate::sync::atomic::{AtomicBool, Ordering};
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
    fn request(&self, cmd: Command, payload: Vec<u8>, reply: Reply) -> Result<()> {
        self.heard.lock().push(Heard::Request(cmd, payload));
        if self.keep {
            self.kept.lock().push(reply);
        } else {
            reply.send(Ok(zeros(cmd)));
        }
        Ok(())
    }

    fn lock_response(&self, payload: Vec<u8>) -> Result<()> {
        // A grant that no lock client would take.
        let refused = payload.first() == Some(&0xff);
        self.heard.lock().push(Heard::LockResponse(payload));
        if refused { Err(Errno::EINVAL.into()) } else { Ok(()) }
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
    client_with(transport, rid, place, ear.clone())
}

pub(super) fn client_with(
    transport: &Arc<dyn Transport>,
    rid: u64,
    place: &Place,
    handler: Arc<dyn ClientHandler>,
) -> Arc<ClientConn> {
    start_client(transport, rid, place, handler, false)
}

/// A client that looks for a newer leader while it is connected.
pub(super) fn client_that_looks(transport: &Arc<dyn Transport>, rid: u64, place: &Place) -> Arc<ClientConn> {
    start_client(transport, rid, place, Arc::new(Ear::default()), true)
}

fn start_client(
    transport: &Arc<dyn Transport>,
    rid: u64,
    place: &Place,
    handler: Arc<dyn ClientHandler>,
    watch_leader: bool,
) -> Arc<ClientConn> {
    let (server, mounted) = (place.server.clone(), place.mounted.clone());
    ClientConn::start(ClientConnConfig {
        rid,
        fsid: FSID,
        fmt_vers: 2,
        quorum_member: false,
        flushes: true,
        transport: transport.clone(),
        find_server: Box::new(move || server.lock().ok_or(crate::error::Errno::ENOENT.into())),
        is_still_mounted: Box::new(move || Ok(*mounted.lock())),
        watch_leader,
        handler,
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
    let config = ServerNetConfig {
        transport: transport.clone(),
        addr,
        fsid: FSID,
        fmt_vers: 2,
        term,
        reconnect_wait,
        direct: None,
    };
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

/// A peer that writes and reads frames by hand.
pub(super) struct Raw {
    pub(super) stream: Arc<dyn Stream>,
    reader: FrameReader,
}

impl Raw {
    pub(super) fn new(stream: Arc<dyn Stream>) -> Raw {
        Raw { stream, reader: FrameReader::new() }
    }

    pub(super) fn connect(transport: &Arc<dyn Transport>, addr: SocketAddr) -> Raw {
        Raw::new(transport.connect(addr, Duration::from_secs(1)).expect("a server listens"))
    }

    pub(super) fn send(&self, head: Head, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode(&mut bytes, &head, payload);
        // The other end may have closed already.
        let _ = self.stream.write(&bytes);
    }

    pub(super) fn request(&self, seq: u64, id: u64, cmd: Command, payload: &[u8]) {
        self.send(Head { seq, recv_seq: 0, id, cmd, response: false, error: 0 }, payload);
    }

    pub(super) fn greet(&self, rid: u64, seq: u64, server_term: u64, flags: u64) {
        let greeting = greeting(rid, server_term, flags);
        self.request(seq, seq, Command::Greeting, greeting.as_bytes());
    }

    /// The next frame; `None` when the other end has closed.
    pub(super) fn receive(&mut self) -> Option<(Head, Vec<u8>)> {
        loop {
            if let Some(frame) = self.reader.next().expect("good frames") {
                return Some((frame.head, frame.payload.to_vec()));
            }
            match self.stream.read(self.reader.space()) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.reader.filled(n),
            }
        }
    }
}

pub(super) fn greeting(rid: u64, server_term: u64, flags: u64) -> NetGreeting {
    NetGreeting {
        fsid: FSID.into(),
        fmt_vers: 2.into(),
        server_term: server_term.into(),
        rid: rid.into(),
        flags: flags.into(),
    }
}

/// A network whose streams break after a random number of bytes, as long as it is told to.
pub(super) struct Breaking {
    inner: Arc<dyn Transport>,
    rng: Mutex<StdRng>,
    pub(super) calm: Arc<AtomicBool>,
}

impl Breaking {
    pub(super) fn new(inner: Arc<dyn Transport>, seed: u64) -> Arc<Breaking> {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Arc::new(Breaking { inner, rng, calm: Arc::new(AtomicBool::new(false)) })
    }
}

struct BreakingStream {
    inner: Arc<dyn Stream>,
    left: Mutex<usize>,
    calm: Arc<AtomicBool>,
}

impl BreakingStream {
    /// How many of `wanted` bytes still pass.
    fn allow(&self, wanted: usize) -> usize {
        if self.calm.load(Ordering::Relaxed) {
            return wanted;
        }
        let mut left = self.left.lock();
        let n = wanted.min(*left);
        *left -= n;
        if *left == 0 {
            self.inner.shutdown();
        }
        n
    }
}

impl Stream for BreakingStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        // What was read beyond the break never arrived.
        Ok(self.allow(n))
    }
    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(&buf[..self.allow(buf.len())])
    }
    fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.inner.try_write(&buf[..self.allow(buf.len())])
    }
    fn shutdown(&self) {
        self.inner.shutdown();
    }
    fn peer_addr(&self) -> SocketAddr {
        self.inner.peer_addr()
    }
}

impl Transport for Breaking {
    fn listen(&self, addr: SocketAddr) -> Result<Arc<dyn Listener>> {
        self.inner.listen(addr)
    }
    fn connect(&self, addr: SocketAddr, timeout: Duration) -> Result<Arc<dyn Stream>> {
        let inner = self.inner.connect(addr, timeout)?;
        let left = Mutex::new(self.rng.lock().random_range(1..30_000));
        Ok(Arc::new(BreakingStream { inner, left, calm: self.calm.clone() }))
    }
    fn datagrams(&self, addr: SocketAddr) -> Result<Arc<dyn Datagrams>> {
        self.inner.datagrams(addr)
    }
}
