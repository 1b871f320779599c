//! The leader's end of all connections (`spec/05 §4.5`).
//!
//! **Problem.** Clients come, break and come back; anybody may connect and say nonsense; the one thread that runs the
//! server must see each request once and must never wait for a client.
//!
//! **Idea.** One thread per socket reads, checks and hands events to the server thread through a channel. Everything
//! that outlives a socket is in one [`Link`] per rid. What the server thread sends is written by itself as far as the
//! socket takes it, otherwise by the socket's writer thread.
//!
//! Threads: `scoutfs-srv-acc` (accepts), `scoutfs-srv-time` (20 s of absence, 10 s for the greeting), `scoutfs-srv-rx` (one
//! a socket) and `scoutfs-srv-tx` (one a socket that is slow).
//!
//! Invariants:
//!
//! 1. Before a good greeting nothing is executed and nothing is remembered of a socket: when it closes, nobody is
//!    told (`spec/05` S2, S3).
//! 2. One link per rid. A later socket of the same rid takes it over, whatever term the client believes in, after the
//!    earlier socket's thread has handed over all it had received (S7, S18).
//! 3. A message counts as received exactly if it was put into the channel (`spec/04` W-8).
//! 4. A client that said farewell is never reported lost; one that is reported lost is refused from then on.
//! 5. Greetings of one rid are presented one at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use hashbrown::{HashMap, HashSet};
use zerocopy::{FromBytes, IntoBytes};

use super::client::GREETING_FAREWELL;
use super::codec::{Frame, FrameReader, Refusal};
use super::command::{Command, WrongLength};
use super::link::{Link, read_frames, write_all};
use super::session::{Session, Verdict, first_server_id};
use super::transport::{Listener, Stream, Transport};
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::NetGreeting;
use crate::sync::{Arc, Condvar, Mutex, thread};

/// How long a socket may stay without greeting.
const GREETING_WAIT: Duration = Duration::from_secs(10);

/// Sockets that have not greeted yet; more are closed at once.
const MAX_UNGREETED: usize = 256;

/// Events in the channel above which sockets are not read any further.
const MAX_EVENTS: usize = 8192;

/// How often a paused reader looks at the channel.
const EVENTS_PAUSE: Duration = Duration::from_millis(1);

/// Pause after a failed accept (out of file descriptors, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

/// One client of this server.
struct Client {
    link: Arc<Link<(), ()>>,
    /// Id of the latest greeting: it grows over the life of the client.
    greeting_id: u64,
    peer: SocketAddr,
    /// The greeted or greeting socket that owns the link.
    socket: u64,
    /// When it has to be back; `None` while a socket is attached or a greeting goes on.
    deadline: Option<Instant>,
}

struct Socket {
    stream: Arc<dyn Stream>,
    /// Until when it must have greeted.
    greet_by: Option<Instant>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    clients: HashMap<u64, Client>,
    sockets: HashMap<u64, Socket>,
    next_socket: u64,
    /// Rids whose greeting is with the server thread.
    greeting: HashSet<u64>,
    /// Greetings that wait for [`ServerNet::greeting_done`], by token (the socket number): the rid, then the verdict.
    verdicts: HashMap<u64, (u64, Option<Result<()>>)>,
    /// Threads of closed sockets, to be joined.
    finished: Vec<thread::JoinHandle<()>>,
    stopping: bool,
}

struct Inner {
    fsid: u64,
    fmt_vers: u64,
    term: u64,
    reconnect_wait: Duration,
    events: Sender<ServerEvent>,
    state: Mutex<State>,
    /// Greetings may go on, or everything stops.
    greetings: Condvar,
    /// The time keeper has something to do.
    timer: Condvar,
}

/// All connections of a running server.
///
/// No method but [`ServerNet::stop`] blocks. Events go to the channel in the order described at [`ServerEvent`]; use an
/// unbounded channel, reading from sockets pauses while many events wait in it.
pub(crate) struct ServerNet {
    inner: Arc<Inner>,
    listener: Arc<dyn Listener>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl ServerNet {
    /// Binds the listener and starts accepting.
    pub(crate) fn start(config: ServerNetConfig, events: Sender<ServerEvent>) -> Result<ServerNet> {
        let listener = config.transport.listen(config.addr)?;
        let inner = Arc::new(Inner {
            fsid: config.fsid,
            fmt_vers: config.fmt_vers,
            term: config.term,
            reconnect_wait: config.reconnect_wait,
            events,
            state: Mutex::new(State::default()),
            greetings: Condvar::new(),
            timer: Condvar::new(),
        });
        let net = ServerNet { inner: inner.clone(), listener: listener.clone(), threads: Mutex::new(Vec::new()) };
        let accept = inner.clone();
        net.spawn("scoutfs-srv-acc", move || accept.accept_loop(&*listener))?;
        net.spawn("scoutfs-srv-time", move || inner.timer_loop())?;
        Ok(net)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(work)
            .map_err(|e| Error::Unsupported(format!("no thread {name}: {e}")))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The address it listens at.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    fn link(&self, rid: u64) -> Option<Arc<Link<(), ()>>> {
        self.inner.state.lock().clients.get(&rid).map(|c| c.link.clone())
    }

    /// Answers a request. Ignored when the client is gone.
    pub(crate) fn respond(&self, rid: u64, id: u64, cmd: Command, result: Result<Vec<u8>>) {
        if let Some(link) = self.link(rid) {
            let mut state = link.lock();
            state.session.respond(cmd, id, result.as_deref());
            link.pump(state);
        }
    }

    /// Sends a request to a client, returns its id. `ENOTCONN` when the server has no connection state of the client
    /// (any more); a client that has lost its socket and may come back gets it then.
    pub(crate) fn request(&self, rid: u64, cmd: Command, payload: &[u8]) -> Result<u64> {
        debug_assert!(cmd.served_by_client() && payload.len() == cmd.request_len(), "{cmd:?} {}", payload.len());
        let Some(link) = self.link(rid) else { return fail(Errno::ENOTCONN) };
        let mut state = link.lock();
        let id = state.session.request(cmd, payload, ());
        link.pump(state);
        Ok(id)
    }

    /// Ends a greeting. `Ok`: the client is let in, and requests may be sent to it from now on (they follow the greeting
    /// response). `Err`: it gets an error response and its socket is closed.
    pub(crate) fn greeting_done(&self, token: u64, result: Result<()>) {
        let mut state = self.inner.state.lock();
        let state = &mut *state;
        let Some((rid, verdict)) = state.verdicts.get_mut(&token) else { return };
        if result.is_ok() && !state.clients.contains_key(rid) {
            let session = Session::new(first_server_id(self.inner.term));
            let peer = state.sockets.get(&token).map_or_else(|| self.listener.local_addr(), |s| s.stream.peer_addr());
            let client = Client {
                link: Link::new(session, (), "scoutfs-srv-tx"),
                greeting_id: 0,
                peer,
                socket: token,
                deadline: None,
            };
            state.clients.insert(*rid, client);
        }
        *verdict = Some(result);
        self.inner.greetings.notify_all();
    }

    /// Forgets a client (it has been reclaimed): its socket is closed, nothing is reported about it any more.
    ///
    /// Not needed after a farewell: a client whose farewell has been answered is forgotten when its socket closes.
    pub(crate) fn drop_client(&self, rid: u64) {
        let client = self.inner.state.lock().clients.remove(&rid);
        if let Some(client) = client {
            client.link.lock().break_socket();
        }
    }

    /// The rids with connection state.
    pub(crate) fn clients(&self) -> Vec<u64> {
        self.inner.state.lock().clients.keys().copied().collect()
    }

    /// Closes everything and joins all threads; no event is sent afterwards. Called by drop too.
    pub(crate) fn stop(&self) {
        self.listener.close();
        let sockets = {
            let mut state = self.inner.state.lock();
            state.stopping = true;
            self.inner.greetings.notify_all();
            self.inner.timer.notify_all();
            for socket in state.sockets.values() {
                socket.stream.shutdown();
            }
            state.sockets.values_mut().filter_map(|s| s.thread.take()).collect::<Vec<_>>()
        };
        let threads = std::mem::take(&mut *self.threads.lock());
        // The accepting thread comes first: after it no socket is added.
        for thread in threads.into_iter().chain(sockets) {
            let _ = thread.join();
        }
        let late = std::mem::take(&mut self.inner.state.lock().finished);
        for thread in late {
            let _ = thread.join();
        }
    }
}

impl Drop for ServerNet {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn accept_loop(self: &Arc<Self>, listener: &dyn Listener) {
        loop {
            let accepted = listener.accept();
            let mut state = self.state.lock();
            if state.stopping {
                return;
            }
            let finished = std::mem::take(&mut state.finished);
            match accepted {
                Ok(stream) => self.start_socket(&mut state, stream),
                Err(_) => {
                    // Not the end (that is `stopping`): resources are short. The time keeper wakes us at stop only.
                    self.greetings.wait_for(&mut state, ACCEPT_PAUSE);
                }
            }
            drop(state);
            for thread in finished {
                let _ = thread.join();
            }
        }
    }

    fn start_socket(self: &Arc<Self>, state: &mut State, stream: Arc<dyn Stream>) {
        if state.sockets.values().filter(|s| s.greet_by.is_some()).count() >= MAX_UNGREETED {
            stream.shutdown();
            return;
        }
        let nr = state.next_socket;
        state.next_socket += 1;
        let (inner, theirs) = (self.clone(), stream.clone());
        let thread = thread::Builder::new().name("scoutfs-srv-rx".into()).spawn(move || {
            let result = inner.run_socket(nr, &theirs);
            theirs.shutdown();
            if let Err(error) = result {
                tracing::debug!(peer = %theirs.peer_addr(), %error, "socket closed");
            }
            let mut state = inner.state.lock();
            state.verdicts.remove(&nr);
            if let Some(thread) = state.sockets.remove(&nr).and_then(|s| s.thread) {
                state.finished.push(thread);
            }
        });
        match thread {
            Ok(thread) => {
                let greet_by = Some(Instant::now() + GREETING_WAIT);
                state.sockets.insert(nr, Socket { stream, greet_by, thread: Some(thread) });
                self.timer.notify_all();
            }
            Err(_) => stream.shutdown(),
        }
    }

    /// Ends waiting clients and sockets that do not greet.
    fn timer_loop(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let now = Instant::now();
            for socket in state.sockets.values_mut() {
                if socket.greet_by.is_some_and(|at| at <= now) {
                    socket.greet_by = None;
                    socket.stream.shutdown();
                }
            }
            let late = state.clients.extract_if(|_, c| c.deadline.is_some_and(|at| at <= now)).collect::<Vec<_>>();
            for (rid, client) in late {
                // Invariant 4: the item of a client whose farewell has been answered is gone.
                if !client.link.lock().session.farewell_queued() {
                    // The receiver is gone only while everything stops.
                    let _ = self.events.send(ServerEvent::ClientLost { rid, peer: client.peer });
                }
            }
            let clients = state.clients.values().filter_map(|c| c.deadline);
            let next = state.sockets.values().filter_map(|s| s.greet_by).chain(clients).min();
            match next {
                Some(at) => {
                    self.timer.wait_until(&mut state, at);
                }
                None => self.timer.wait(&mut state),
            }
        }
    }

    /// The life of one accepted socket.
    fn run_socket(self: &Arc<Self>, nr: u64, stream: &Arc<dyn Stream>) -> Result<()> {
        let mut reader = FrameReader::new();
        let mut first = None;
        read_frames(&**stream, &mut reader, |frame| {
            if frame.head.cmd != Command::Greeting || frame.head.response {
                return Err("a message before the greeting");
            }
            first = Some((frame.head.id, frame.head.recv_seq, frame.payload.to_vec()));
            Ok(false)
        })?;
        let Some((greeting_id, recv_seq, payload)) = first else { return fail(Errno::ENOTCONN) };
        if let Some(socket) = self.state.lock().sockets.get_mut(&nr) {
            socket.greet_by = None;
        }
        let greeting = match self.check_greeting(&payload) {
            Ok(greeting) => greeting,
            Err(error) => return refuse(&**stream, greeting_id, error),
        };
        let rid = greeting.rid.get();
        self.wait_turn(rid)?;
        let entered = self.enter(nr, stream, greeting_id, recv_seq, &greeting);
        self.state.lock().greeting.remove(&rid);
        self.greetings.notify_all();
        let (link, attached) = match entered {
            Ok(entered) => entered,
            Err(error) => return refuse(&**stream, greeting_id, error),
        };
        let result = match attached {
            Ok(attached) => {
                let result = read_frames(&**stream, &mut reader, |frame| self.receive(rid, &link, frame));
                link.detach(attached);
                result
            }
            Err(error) => Err(error),
        };
        self.leave(rid, nr, &link);
        result
    }

    fn check_greeting(&self, payload: &[u8]) -> Result<NetGreeting> {
        let Ok(greeting) = NetGreeting::read_from_bytes(payload) else {
            return Err(Error::invalid(format!("greeting of {} bytes", payload.len())));
        };
        if greeting.fsid.get() != self.fsid {
            return Err(Error::invalid(format!("greeting for volume {:016x}", greeting.fsid)));
        }
        if greeting.fmt_vers.get() != self.fmt_vers {
            return Err(Error::invalid(format!("greeting for format version {}", greeting.fmt_vers)));
        }
        if matches!(greeting.rid.get(), 0 | u64::MAX) {
            return Err(Error::invalid(format!("greeting of rid {:016x}", greeting.rid)));
        }
        Ok(greeting)
    }

    /// Waits until no other greeting of the rid is being presented (invariant 5).
    fn wait_turn(&self, rid: u64) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return Err(Error::Shutdown("the server stops".into()));
            }
            if state.greeting.insert(rid) {
                return Ok(());
            }
            self.greetings.wait(&mut state);
        }
    }

    /// Lets a checked greeting in: asks the server thread, takes the rid's link over, answers and attaches the socket.
    /// The outer error refuses the client; the inner one means that it is in, but the socket broke.
    #[allow(clippy::type_complexity)]
    fn enter(
        &self,
        nr: u64,
        stream: &Arc<dyn Stream>,
        greeting_id: u64,
        recv_seq: u64,
        greeting: &NetGreeting,
    ) -> Result<(Arc<Link<(), ()>>, Result<u64>)> {
        let rid = greeting.rid.get();
        let first_contact = self.check_client(nr, greeting_id, greeting)?;
        let event =
            ServerEvent::Greeting { token: nr, rid, greeting: *greeting, peer: stream.peer_addr(), first_contact };
        self.send(event)?;
        let link = match self.wait_verdict(nr, rid, greeting_id, stream.peer_addr()) {
            Ok(link) => link,
            Err(error) => {
                self.start_waiting(rid, nr);
                return Err(error);
            }
        };
        // The previous socket has been shut down; its thread hands over what it has and goes.
        let mut answer = Vec::new();
        {
            let mut response = *greeting;
            response.server_term.set(self.term);
            response.flags.set(0);
            let mut state = link.lock_detached();
            if !first_contact && state.session.recv_seq() == 0 && greeting.server_term.get() == self.term {
                state.session.continue_after(recv_seq);
            }
            state.session.greeting_response(&mut answer, greeting_id, Ok(response.as_bytes()));
        }
        match write_all(&**stream, &answer) {
            Ok(()) => {
                let attached = link.attach(stream.clone());
                Ok((link, Ok(attached)))
            }
            Err(_) => Ok((link, fail(Errno::ENOTCONN))),
        }
    }

    /// Compares a greeting with what is known of the rid; true if this is its first contact with this server.
    fn check_client(&self, nr: u64, greeting_id: u64, greeting: &NetGreeting) -> Result<bool> {
        let term = greeting.server_term.get();
        let mut state = self.state.lock();
        state.verdicts.insert(nr, (greeting.rid.get(), None));
        let Some(client) = state.clients.get_mut(&greeting.rid.get()) else {
            if term == self.term && greeting.flags.get() & GREETING_FAREWELL == 0 {
                return Err(Error::invalid("this server has given the client up"));
            }
            return Ok(term != self.term);
        };
        if greeting_id <= client.greeting_id {
            return Err(Error::invalid("an earlier greeting than the one that was let in"));
        }
        let link = client.link.lock();
        if term != self.term && link.session.recv_seq() > 0 {
            // It had been greeted here, then by another server, and comes back: one of the two servers is not real.
            return Err(Error::invalid("the client has been with another server meanwhile"));
        }
        link.break_socket();
        drop(link);
        client.deadline = None;
        client.socket = nr;
        Ok(false)
    }

    fn wait_verdict(&self, nr: u64, rid: u64, id: u64, peer: SocketAddr) -> Result<Arc<Link<(), ()>>> {
        let mut state = self.state.lock();
        let verdict = loop {
            if state.stopping {
                return Err(Error::Shutdown("the server stops".into()));
            }
            match state.verdicts.get_mut(&nr) {
                Some((_, verdict @ Some(_))) => break verdict.take(),
                Some(_) => self.greetings.wait(&mut state),
                None => break None,
            }
        };
        verdict.unwrap_or_else(|| fail(Errno::EINVAL))?;
        let Some(client) = state.clients.get_mut(&rid) else {
            return Err(Error::invalid("this server has given the client up"));
        };
        client.greeting_id = id;
        client.peer = peer;
        client.socket = nr;
        client.deadline = None;
        Ok(client.link.clone())
    }

    /// Puts an event into the channel.
    fn send(&self, event: ServerEvent) -> Result<()> {
        self.events.send(event).map_err(|_| Error::Shutdown("the server has stopped".into()))
    }

    /// Handles one message of a greeted client.
    fn receive(&self, rid: u64, link: &Arc<Link<(), ()>>, frame: &Frame<'_>) -> Result<bool, Refusal> {
        let head = &frame.head;
        let len = frame.payload.len();
        let wrong_len = !head.response && len != head.cmd.request_len();
        if head.cmd == Command::Greeting {
            return Err("a second greeting");
        }
        if head.response {
            let lock = matches!(head.cmd, Command::Lock | Command::LockRecover);
            if lock && (head.error != 0 || !head.cmd.response_len_ok(len)) {
                return Err("lock response with an error or a wrong length");
            }
        } else if !head.cmd.served_by_server() {
            return Err("a request that servers do not serve");
        } else if wrong_len && head.cmd.on_wrong_length() == WrongLength::Break {
            return Err("request with a wrong length");
        }
        while self.events.len() > MAX_EVENTS && !self.state.lock().stopping {
            thread::sleep(EVENTS_PAUSE);
        }
        let mut state = link.lock();
        let verdict = state.session.receive(head);
        if wrong_len && verdict == Verdict::Request {
            state.session.respond(head.cmd, head.id, Err(&Errno::EINVAL.into()));
            link.pump(state);
            return Ok(true);
        }
        drop(state);
        let event = match verdict {
            Verdict::Ignore => return Ok(true),
            Verdict::Request => {
                ServerEvent::Request { rid, id: head.id, cmd: head.cmd, payload: frame.payload.to_vec() }
            }
            Verdict::Response(()) => {
                let result = match frame.result() {
                    Ok(payload) if !head.cmd.response_len_ok(payload.len()) => fail(Errno::EMSGSIZE),
                    other => other,
                };
                ServerEvent::Response { rid, id: head.id, cmd: head.cmd, result }
            }
        };
        self.send(event).map_err(|_| "the server has stopped")?;
        Ok(true)
    }

    /// The socket of a greeted client is closed.
    fn leave(&self, rid: u64, nr: u64, link: &Arc<Link<(), ()>>) {
        let mut state = self.state.lock();
        // Another socket may have taken over, or another life of the rid begun.
        let ours = state.clients.get(&rid).is_some_and(|c| c.socket == nr && Arc::ptr_eq(&c.link, link));
        if ours && link.lock().session.farewell_sent() {
            state.clients.remove(&rid);
        }
        drop(state);
        self.start_waiting(rid, nr);
    }

    /// Gives the client the time to come back, if this socket was the last one to have its link.
    fn start_waiting(&self, rid: u64, nr: u64) {
        let mut state = self.state.lock();
        if let Some(client) = state.clients.get_mut(&rid).filter(|c| c.socket == nr) {
            client.deadline = Some(Instant::now() + self.reconnect_wait);
            self.timer.notify_all();
        }
    }
}

/// Answers a greeting with an error. The client may not get it before the socket closes.
fn refuse(stream: &dyn Stream, greeting_id: u64, error: Error) -> Result<()> {
    let mut answer = Vec::new();
    Session::<()>::new(1).greeting_response(&mut answer, greeting_id, Err(&error));
    let _ = write_all(stream, &answer);
    Err(error)
}
