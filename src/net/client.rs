//! A mount's connection to the current server (`spec/05 §4.4`).
//!
//! **Problem.** The mount sends requests without knowing whether a server exists at the moment, which one it is, or
//! whether the socket is about to break; every request must be answered in the end.
//!
//! **Idea.** One thread looks for the leader, connects, greets and then reads, until the socket ends; then it starts
//! again. Requests are queued in the [`Link`] by the threads that make them and written by these, so that a request over
//! a healthy socket costs no hand-over between threads on the way out.
//!
//! Threads: `scoutfs-net` (connects and reads; blocks on the network and in the two device look-ups it is given), on a shared
//! network `scoutfs-net-look` (see [`super::look`]) and, when the socket does not take everything at once, `scoutfs-net-tx`.
//!
//! Invariants:
//!
//! 1. Nothing but the greeting is sent or accepted before the greeting has been answered well.
//! 2. [`ClientHandler::new_server`] comes before any message of that server, and an answer to a request of an earlier
//!    server is never sent.
//! 3. Every request completes exactly once; forcing the connection down completes all of them.
//! 4. A socket that brought nothing is followed by a pause that grows up to a second (`spec/05` S5).
//! 5. Before each reconnect of a leaving mount, and after repeated refusals of any, the mounted client item is looked
//!    up: without it there is nothing to come back to (`spec/05 §4.7`, S4).

use std::net::SocketAddr;

use super::codec::{Frame, Refusal};
use super::command::{Command, WrongLength};
use super::dial::Dialer;
use super::link::{Link, LinkState};
use super::look::look_for_newer_leader;
use super::session::{Session, Verdict};
use super::transport::{Stream, Transport};
use crate::error::{Errno, Error, Result, fail};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

/// What a mount does with the messages of the server. All methods run on the receive thread (or, over the in-process
/// transport, on a thread of the server), in the order in which the messages arrived, and must not block: they queue
/// work or answer at once.
pub(crate) trait ClientHandler: Send + Sync {
    /// A request of the server: SYNC_LOG_TREES, LOCK (invalidate), LOCK_RECOVER or OPEN_INO_MAP, with the right payload
    /// length. An error says that no server in its senses asks this: the socket is broken, and the mount greets again.
    fn request(&self, cmd: Command, payload: Vec<u8>, reply: Reply) -> Result<()>;

    /// The answer to a LOCK request, 48 bytes, in order with the LOCK requests of the server. An error as for requests.
    fn lock_response(&self, payload: Vec<u8>) -> Result<()>;

    /// Another server than before (or the first) has accepted the greeting. Called before any message of the new server
    /// and before anything is sent to it; unanswered requests are sent again by the connection.
    fn new_server(&self, term: u64);

    /// The volume has given this mount up (its mounted client item is gone although it has not said farewell): every
    /// pending request has been failed and no further one will be sent. The mount must stop writing.
    fn evicted(&self, error: Error);
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
    /// Are both devices flushed before a transaction is sent?
    pub(crate) flushes: bool,
    /// How to reach servers.
    pub(crate) transport: Arc<dyn Transport>,
    /// Address and term of the current leader (`quorum::find_server`); `ENOENT` when there is none.
    pub(crate) find_server: Box<dyn FnMut() -> Result<(SocketAddr, u64)> + Send>,
    /// Does the mounted client item of this rid exist on the device? An error means "not known".
    pub(crate) is_still_mounted: Box<dyn FnMut() -> Result<bool> + Send>,
    /// Look for a newer leader while connected: needed where the leader may be on another host.
    pub(crate) watch_leader: bool,
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
    /// Where the server was that accepted the greeting last.
    pub(crate) server: Option<SocketAddr>,
}

/// A thread that waits for an answer.
pub(super) struct Waiter {
    result: Mutex<Option<Result<Vec<u8>>>>,
    done: AtomicBool,
    thread: thread::Thread,
}

impl Waiter {
    fn new() -> Arc<Waiter> {
        Arc::new(Waiter { result: Mutex::new(None), done: AtomicBool::new(false), thread: thread::current() })
    }

    pub(super) fn complete(&self, result: Result<Vec<u8>>) {
        let mut slot = self.result.lock();
        if slot.is_some() || self.done.load(Ordering::Acquire) {
            return;
        }
        *slot = Some(result);
        self.done.store(true, Ordering::Release);
        drop(slot);
        self.thread.unpark();
    }

    fn wait(&self) -> Result<Vec<u8>> {
        while !self.done.load(Ordering::Acquire) {
            thread::park();
        }
        self.result.lock().take().expect("a completed waiter has a result, taken once")
    }
}

/// Who wants the answer of a request.
pub(super) enum Completion {
    Waiter(Arc<Waiter>),
    /// The handler, in order with other lock messages.
    Lock,
}

impl Completion {
    fn fail(self, errno: Errno) {
        match self {
            Completion::Waiter(waiter) => waiter.complete(Err(errno.into())),
            // The lock room fails its waiters by itself when the mount is forced down.
            Completion::Lock => {}
        }
    }
}

/// What the connection keeps beside the session.
#[derive(Default)]
pub(super) struct Own {
    /// Term of the last server that accepted the greeting.
    pub(super) term: u64,
    pub(super) greetings: u64,
    pub(super) server: Option<SocketAddr>,
    pub(super) last_error: Option<Error>,
    /// The socket of the running attempt, greeted or not.
    pub(super) stream: Option<Arc<dyn Stream>>,
    /// A first greeting is on its way or was sent and never answered: a server may have recorded this mount.
    pub(super) maybe_recorded: bool,
    /// The first greeting is on its way.
    pub(super) greeting_in_flight: bool,
    /// The farewell that has been sent.
    pub(super) farewell: Option<Arc<Waiter>>,
    /// No further connection is wanted.
    pub(super) left: bool,
    /// Forced down.
    pub(super) down: bool,
    /// Skip the pause.
    pub(super) woken: bool,
}

type State = LinkState<Completion, Own>;

/// What the threads of a connection share.
pub(super) struct Inner {
    pub(super) rid: u64,
    pub(super) fsid: u64,
    pub(super) fmt_vers: u64,
    pub(super) quorum_member: bool,
    pub(super) flushes: bool,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) handler: Arc<dyn ClientHandler>,
    pub(super) link: Arc<Link<Completion, Own>>,
    /// The connecting thread should look at the state.
    pub(super) changed: Condvar,
}

/// The way to answer one request of the server.
pub(crate) struct Reply {
    inner: Arc<Inner>,
    term: u64,
    cmd: Command,
    id: u64,
}

impl Reply {
    /// Sends the answer, unless the server has changed since the request arrived.
    pub(crate) fn send(self, result: Result<Vec<u8>>) {
        self.inner.respond(self.term, self.cmd, self.id, result.as_deref());
    }

    /// Term of the server that asked.
    pub(crate) fn term(&self) -> u64 {
        self.term
    }
}

/// One mount's connection to whichever server leads.
pub(crate) struct ClientConn {
    inner: Arc<Inner>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl ClientConn {
    /// Starts connecting in the background.
    pub(crate) fn start(config: ClientConnConfig) -> Result<Arc<ClientConn>> {
        let inner = Arc::new(Inner {
            rid: config.rid,
            fsid: config.fsid,
            fmt_vers: config.fmt_vers,
            quorum_member: config.quorum_member,
            flushes: config.flushes,
            transport: config.transport,
            handler: config.handler,
            link: Link::new(Session::new(1), Own::default(), "scoutfs-net-tx"),
            changed: Condvar::new(),
        });
        let find_server = Arc::new(Mutex::new(config.find_server));
        let conn = Arc::new(ClientConn { inner: inner.clone(), threads: Mutex::new(Vec::new()) });
        let dialer = Dialer::new(inner.clone(), find_server.clone(), config.is_still_mounted);
        conn.spawn("scoutfs-net", move || dialer.run())?;
        if config.watch_leader {
            conn.spawn("scoutfs-net-look", move || look_for_newer_leader(&inner, &find_server))?;
        }
        Ok(conn)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(work)
            .map_err(|e| Error::Unsupported(format!("no thread {name}: {e}")))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Sends a request and waits for its answer, as long as it takes. A successful answer has the right length
    /// (`EMSGSIZE` otherwise).
    ///
    /// Errors: what the server answered; `ENOLINK` ([`Error::Shutdown`]) when the connection had already been forced
    /// down, `ECONNABORTED` when it was forced down meanwhile.
    pub(crate) fn request(&self, cmd: Command, payload: &[u8]) -> Result<Vec<u8>> {
        let waiter = Waiter::new();
        self.inner.queue(cmd, payload, Completion::Waiter(waiter.clone()))?;
        waiter.wait()
    }

    /// Sends a LOCK request (48 bytes); its answer goes to [`ClientHandler::lock_response`].
    pub(crate) fn lock_request(&self, payload: &[u8]) -> Result<()> {
        self.inner.queue(Command::Lock, payload, Completion::Lock)
    }

    /// Says farewell and waits until the server, or the mounted client item's absence, has confirmed it. Returns at once
    /// when no server can know of this mount.
    pub(crate) fn farewell(&self) -> Result<()> {
        let waiter = Waiter::new();
        let mut state = self.inner.link.lock();
        loop {
            if state.own.down {
                return Err(is_down());
            }
            if state.own.term != 0 || (state.own.maybe_recorded && !state.own.greeting_in_flight) {
                break;
            }
            if !state.own.greeting_in_flight {
                state.own.left = true;
                self.inner.changed.notify_all();
                return Ok(());
            }
            wait_link(&self.inner.changed, &mut state);
        }
        state.own.farewell = Some(waiter.clone());
        state.session.request(Command::Farewell, &[], Completion::Waiter(waiter.clone()));
        self.inner.link.pump(state);
        let answer = waiter.wait();
        self.inner.link.lock().own.left |= answer.is_ok();
        answer.map(drop)
    }

    /// Looks for the server now instead of waiting out the pause between two attempts.
    pub(crate) fn wake(&self) {
        self.inner.link.lock().own.woken = true;
        self.inner.changed.notify_all();
    }

    /// Current state.
    pub(crate) fn status(&self) -> ConnStatus {
        let state = self.inner.link.lock();
        ConnStatus {
            term: state.own.term,
            connected: state.attached(),
            last_error: state.own.last_error.clone(),
            pending: state.session.pending(),
            greetings: state.own.greetings,
            server: state.own.server,
        }
    }

    /// Fails everything pending with `ECONNABORTED` and everything later with `ENOLINK`, sends nothing more.
    pub(crate) fn force_down(&self) {
        self.inner.force_down();
    }

    /// Like [`ClientConn::force_down`], then joins all threads. Called by drop too.
    pub(crate) fn close(&self) {
        self.inner.force_down();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads.into_iter().filter(|t| t.thread().id() != thread::current().id()) {
            // A panic there has forced the connection down already.
            let _ = thread.join();
        }
    }
}

impl Drop for ClientConn {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn is_down() -> Error {
    Error::Shutdown("the connection to the server was forced down".into())
}

fn wait_link(changed: &Condvar, state: &mut MutexGuard<'_, State>) {
    changed.wait(state);
}

impl Inner {
    fn queue(&self, cmd: Command, payload: &[u8], who: Completion) -> Result<()> {
        debug_assert!(cmd.served_by_server() && payload.len() == cmd.request_len(), "{cmd:?} {}", payload.len());
        let mut state = self.link.lock();
        if state.own.down {
            return Err(is_down());
        }
        state.session.request(cmd, payload, who);
        self.link.pump(state);
        Ok(())
    }

    fn respond(&self, term: u64, cmd: Command, id: u64, result: Result<&[u8], &Error>) {
        let mut state = self.link.lock();
        if state.own.down || state.own.term != term {
            return;
        }
        state.session.respond(cmd, id, result);
        self.link.pump(state);
    }

    pub(super) fn force_down(&self) {
        let pending = {
            let mut state = self.link.lock();
            state.own.down = true;
            state.break_socket();
            if let Some(stream) = state.own.stream.take() {
                stream.shutdown();
            }
            self.changed.notify_all();
            state.session.give_up()
        };
        for completion in pending {
            completion.fail(Errno::ECONNABORTED);
        }
    }

    /// Handles one message of the greeted socket; true if it brought something new.
    pub(super) fn receive(self: &Arc<Self>, frame: &Frame<'_>) -> Result<bool, Refusal> {
        let head = &frame.head;
        let len = frame.payload.len();
        if head.cmd == Command::Greeting {
            return Err("a second greeting");
        }
        if head.response {
            if head.cmd == Command::Lock && (head.error != 0 || !head.cmd.response_len_ok(len)) {
                return Err("lock response with an error or a wrong length");
            }
        } else if !head.cmd.served_by_client() {
            return Err("a request that clients do not serve");
        } else if len != head.cmd.request_len() && head.cmd.on_wrong_length() == WrongLength::Break {
            return Err("request with a wrong length");
        }
        let mut state = self.link.lock();
        let term = state.own.term;
        let verdict = state.session.receive(head);
        drop(state);
        match verdict {
            Verdict::Ignore => return Ok(false),
            Verdict::Response(who) => self.complete(who, frame)?,
            Verdict::Request if len != head.cmd.request_len() => {
                let mut state = self.link.lock();
                state.session.respond(head.cmd, head.id, Err(&Errno::EINVAL.into()));
                self.link.pump_elsewhere(state);
            }
            Verdict::Request => {
                let reply = Reply { inner: self.clone(), term, cmd: head.cmd, id: head.id };
                self.handler.request(head.cmd, frame.payload.to_vec(), reply).map_err(senseless)?;
            }
        }
        Ok(true)
    }

    fn complete(&self, who: Completion, frame: &Frame<'_>) -> Result<(), Refusal> {
        let result = match frame.result() {
            Ok(payload) if !frame.head.cmd.response_len_ok(payload.len()) => fail(Errno::EMSGSIZE),
            other => other,
        };
        match who {
            Completion::Waiter(waiter) => waiter.complete(result),
            Completion::Lock => {
                if let Ok(payload) = result {
                    self.handler.lock_response(payload).map_err(senseless)?;
                }
            }
        }
        Ok(())
    }
}

fn senseless(error: Error) -> Refusal {
    tracing::error!(%error, "the server sent what makes no sense");
    "a lock message that makes no sense"
}
