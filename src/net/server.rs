//! The leader's end of all connections (`spec/05 §4.5`).
//!
//! **Problem.** Clients come, break and come back; anybody may connect and say nonsense; the one thread that runs the
//! server must see each request once and must never wait for a client.
//!
//! **Idea.** One thread per socket reads, checks and hands events to the server thread through a channel, except for what a
//! [`Direct`] takes on the spot. Everything
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
//! 3. A message counts as received exactly if it was put into the channel or taken (`spec/04` W-8).
//! 4. A client that said farewell is never reported lost; one that is reported lost is refused from then on.
//! 5. Greetings of one rid are presented one at a time.

use std::net::SocketAddr;
use std::time::Duration;

use super::command::Command;
use super::link::Link;
use super::session::{Session, first_server_id};
use super::transport::{Listener, Stream, Transport};
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::NetGreeting;
use crate::sync::channel::Sender;
use crate::sync::{Arc, Condvar, HashMap, HashSet, Instant, Mutex, thread};

/// How long a socket may stay without greeting.
const GREETING_WAIT: Duration = Duration::from_secs(10);

/// Sockets that are not let in yet. For one more, the one that has been silent for longest is closed: clients greet at once.
const MAX_UNGREETED: usize = 256;

/// Clients of one server; further ones are refused. Each costs two threads and a record on the device.
pub(super) const MAX_CLIENTS: usize = 4096;

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

/// Ways to the clients. None of them blocks.
pub(crate) trait Mail {
    /// Answers a request; ignored if the client is gone.
    fn respond(&mut self, rid: u64, id: u64, cmd: Command, result: Result<Vec<u8>>);
    /// Sends a request to a client; its id, or `ENOTCONN`.
    fn request(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> Result<u64>;
    /// Breaks the connection of a client that broke the protocol; it may come back.
    fn break_client(&mut self, rid: u64, why: &str);
}

/// Takes messages where they are read, before the server thread sees them.
///
/// Messages of one client may overtake each other that way: only what needs no order with what goes to the server thread may
/// be taken. Those that are taken come in order.
pub(crate) trait Direct: Send + Sync {
    /// Takes the event, or gives it back for the server thread. Called by the threads that read sockets, without any lock.
    fn take(&self, event: ServerEvent, mail: &mut dyn Mail) -> Option<ServerEvent>;
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
    /// Sees messages before the server thread.
    pub(crate) direct: Option<Arc<dyn Direct>>,
}

/// How long a server waits for a disconnected client (`spec/05 §1.3`).
pub(crate) const RECONNECT_WAIT: Duration = Duration::from_secs(20);

/// One client of this server.
pub(super) struct Client {
    pub(super) link: Arc<Link<(), ()>>,
    /// Id of the latest greeting: it grows over the life of the client.
    pub(super) greeting_id: u64,
    pub(super) peer: SocketAddr,
    /// The greeted or greeting socket that owns the link.
    pub(super) socket: u64,
    /// When it has to be back; `None` while a socket is attached or a greeting goes on.
    pub(super) deadline: Option<Instant>,
}

/// An accepted socket.
pub(super) struct Socket {
    pub(super) stream: Arc<dyn Stream>,
    /// Until when it must have greeted.
    pub(super) greet_by: Option<Instant>,
    /// Its greeting has been accepted.
    pub(super) greeted: bool,
    pub(super) thread: Option<thread::JoinHandle<()>>,
}

/// What changes, under one lock.
#[derive(Default)]
pub(super) struct State {
    pub(super) clients: HashMap<u64, Client>,
    pub(super) sockets: HashMap<u64, Socket>,
    pub(super) next_socket: u64,
    /// Rids whose greeting is with the server thread.
    pub(super) greeting: HashSet<u64>,
    /// Greetings that wait for [`ServerNet::greeting_done`], by token (the socket number): the rid, then the verdict.
    pub(super) verdicts: HashMap<u64, (u64, Option<Result<()>>)>,
    /// Threads of closed sockets, to be joined.
    pub(super) finished: Vec<thread::JoinHandle<()>>,
    pub(super) stopping: bool,
}

/// What the threads share.
pub(super) struct Inner {
    pub(super) fsid: u64,
    pub(super) fmt_vers: u64,
    pub(super) term: u64,
    pub(super) reconnect_wait: Duration,
    pub(super) events: Sender<ServerEvent>,
    pub(super) direct: Option<Arc<dyn Direct>>,
    pub(super) state: Mutex<State>,
    /// Greetings may go on, or everything stops.
    pub(super) greetings: Condvar,
    /// The time keeper has something to do.
    pub(super) timer: Condvar,
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
            direct: config.direct,
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
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Answers a request. Ignored when the client is gone.
    pub(crate) fn respond(&self, rid: u64, id: u64, cmd: Command, result: Result<Vec<u8>>) {
        (&*self.inner).respond(rid, id, cmd, result);
    }

    /// Sends a request to a client, returns its id. `ENOTCONN` when the server has no connection state of the client
    /// (any more); a client that has lost its socket and may come back gets it then.
    pub(crate) fn request(&self, rid: u64, cmd: Command, payload: &[u8]) -> Result<u64> {
        (&*self.inner).request(rid, cmd, payload)
    }

    /// Has the client no socket now?
    pub(crate) fn is_away(&self, rid: u64) -> bool {
        self.inner.state.lock().clients.get(&rid).is_none_or(|c| c.deadline.is_some())
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

    /// Breaks the socket of a client that broke the protocol. It may come back and do better.
    pub(crate) fn break_client(&self, rid: u64, why: &str) {
        (&*self.inner).break_client(rid, why);
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
    #[cfg(test)]
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

impl Mail for &Inner {
    fn respond(&mut self, rid: u64, id: u64, cmd: Command, result: Result<Vec<u8>>) {
        if let Some(link) = self.link(rid) {
            let mut state = link.lock();
            state.session.respond(cmd, id, result.as_deref());
            link.pump(state);
        }
    }

    fn request(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> Result<u64> {
        debug_assert!(cmd.served_by_client() && payload.len() == cmd.request_len(), "{cmd:?} {}", payload.len());
        let Some(link) = self.link(rid) else { return fail(Errno::ENOTCONN) };
        let mut state = link.lock();
        let id = state.session.request(cmd, payload, ());
        link.pump(state);
        Ok(id)
    }

    fn break_client(&mut self, rid: u64, why: &str) {
        if let Some(link) = self.link(rid) {
            tracing::warn!(rid, why, "the connection of a client is broken off");
            link.lock().break_socket();
        }
    }
}

impl Inner {
    fn link(&self, rid: u64) -> Option<Arc<Link<(), ()>>> {
        self.state.lock().clients.get(&rid).map(|c| c.link.clone())
    }

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
        if state.sockets.values().filter(|s| !s.greeted).count() >= MAX_UNGREETED {
            let silent = state.sockets.iter_mut().filter_map(|(nr, s)| s.greet_by.map(|by| ((by, *nr), s)));
            let Some((_, oldest)) = silent.min_by_key(|(age, _)| *age) else {
                tracing::warn!(peer = %stream.peer_addr(), "too many connections are being greeted: one more is closed");
                return stream.shutdown();
            };
            tracing::warn!(peer = %oldest.stream.peer_addr(), "too many connections: one that does not greet is closed");
            oldest.greet_by = None;
            oldest.greeted = true;
            oldest.stream.shutdown();
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
                state.sockets.insert(nr, Socket { stream, greet_by, greeted: false, thread: Some(thread) });
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

    /// Puts an event into the channel.
    pub(super) fn send(&self, event: ServerEvent) -> Result<()> {
        self.events.send(event).map_err(|_| Error::Shutdown("the server has stopped".into()))
    }
}
