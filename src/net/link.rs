//! A session with the socket that is attached to it: one object per mount and server, whatever sockets come and go.
//!
//! **Problem.** Any thread may queue a message at any time; sockets are attached and detached under it; a peer that
//! does not read must not hold up anybody (the server's one thread least of all).
//!
//! **Idea.** All state is under one short lock. Whoever queues a message becomes the transmitter if nobody is: it
//! encodes what is queued and writes it without waiting. What the socket does not take at once goes to a writer thread
//! of that socket, started when it is first needed; until it is done, others only queue.
//!
//! Invariants:
//!
//! 1. At most one thread writes to a socket; it writes what [`Session::transmit`] gave, in that order.
//! 2. A message is queued in the session whether or not a socket is attached; there is no second queue, so none can be
//!    lost between two sockets (`spec/05` S6, S7).
//! 3. The thread that attached a socket reads from it, and detaches it before another one can be attached.

use std::io;

use super::session::Session;
use super::transport::Stream;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

/// Bytes encoded at once.
const BATCH: usize = 64 * 1024;

/// The attached socket.
struct Socket {
    /// Counts the sockets of the link.
    nr: u64,
    stream: Arc<dyn Stream>,
    /// Somebody is the transmitter.
    busy: bool,
    /// Left by a transmitter for the writer thread, which is the transmitter as long as this is not empty.
    spill: Vec<u8>,
    writer: Option<thread::JoinHandle<()>>,
}

/// What is behind the lock of a link: the session, and what its owner wants to keep together with it.
pub(crate) struct LinkState<W, X> {
    /// The logical connection.
    pub(crate) session: Session<W>,
    /// The owner's part.
    pub(crate) own: X,
    socket: Option<Socket>,
    sockets: u64,
    scratch: Vec<u8>,
}

impl<W, X> LinkState<W, X> {
    /// Is a socket attached?
    pub(crate) fn attached(&self) -> bool {
        self.socket.is_some()
    }

    /// Breaks the attached socket; its reader will detach it.
    pub(crate) fn break_socket(&self) {
        if let Some(socket) = &self.socket {
            socket.stream.shutdown();
        }
    }
}

/// A session and its socket.
pub(crate) struct Link<W, X> {
    state: Mutex<LinkState<W, X>>,
    /// A writer thread has work, or the socket is gone.
    writer: Condvar,
    /// A socket was detached.
    detached: Condvar,
    /// Name of the writer threads.
    thread_name: &'static str,
}

impl<W: Send + 'static, X: Send + 'static> Link<W, X> {
    /// A link without socket.
    pub(crate) fn new(session: Session<W>, own: X, thread_name: &'static str) -> Arc<Link<W, X>> {
        let state =
            LinkState { session, own, socket: None, sockets: 0, scratch: Vec::with_capacity(super::codec::MAX_FRAME) };
        Arc::new(Link { state: Mutex::new(state), writer: Condvar::new(), detached: Condvar::new(), thread_name })
    }

    /// Looks at or changes the session; queued messages go out by [`Link::pump`].
    pub(crate) fn lock(&self) -> MutexGuard<'_, LinkState<W, X>> {
        self.state.lock()
    }

    /// Waits until no socket is attached.
    pub(crate) fn lock_detached(&self) -> MutexGuard<'_, LinkState<W, X>> {
        let mut state = self.state.lock();
        while state.socket.is_some() {
            self.detached.wait(&mut state);
        }
        state
    }

    /// Waits until no socket is attached, then attaches this one and transmits what is queued. The greeting must have
    /// been exchanged. Returns the number to detach it with.
    pub(crate) fn attach(self: &Arc<Self>, stream: Arc<dyn Stream>) -> u64 {
        let mut state = self.lock_detached();
        state.session.new_socket();
        state.sockets += 1;
        let nr = state.sockets;
        state.socket = Some(Socket { nr, stream, busy: false, spill: Vec::new(), writer: None });
        self.pump(state);
        nr
    }

    /// Ends the attached socket. Called by the thread that read from it, when it has stopped reading.
    pub(crate) fn detach(&self, nr: u64) {
        let socket = {
            let mut state = self.state.lock();
            match &state.socket {
                Some(socket) if socket.nr == nr => state.socket.take(),
                _ => None,
            }
        };
        let Some(socket) = socket else { return };
        socket.stream.shutdown();
        self.writer.notify_all();
        if let Some(writer) = socket.writer {
            // It never panics, and a panic there would have nothing to tell us here.
            let _ = writer.join();
        }
        self.detached.notify_all();
    }

    /// Transmits what is queued, as far as the socket takes it without waiting.
    pub(crate) fn pump<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, LinkState<W, X>>) {
        loop {
            let mut batch = std::mem::take(&mut state.scratch);
            batch.clear();
            let parts = &mut *state;
            let Some(socket) = parts.socket.as_mut().filter(|s| !s.busy) else {
                parts.scratch = batch;
                return;
            };
            parts.session.transmit(&mut batch, BATCH);
            if batch.is_empty() {
                parts.scratch = batch;
                return;
            }
            socket.busy = true;
            let (nr, stream) = (socket.nr, socket.stream.clone());
            drop(state);
            let written = write_without_waiting(&*stream, &batch);
            state = self.state.lock();
            let Some(socket) = state.socket.as_mut().filter(|s| s.nr == nr) else { return };
            match written {
                Ok(n) if n == batch.len() => {
                    socket.busy = false;
                    state.scratch = batch;
                }
                Ok(n) => {
                    socket.spill = batch.split_off(n);
                    self.start_writer(socket);
                    return;
                }
                Err(_) => {
                    // Stays busy: nothing more is written to it. Its reader notices and detaches it.
                    stream.shutdown();
                    return;
                }
            }
        }
    }

    /// Has what is queued transmitted by the writer thread: for threads that receive, which may be anybody's
    /// (see [`super::receive`]) and must not come to receive what they sent.
    pub(crate) fn pump_elsewhere(self: &Arc<Self>, mut state: MutexGuard<'_, LinkState<W, X>>) {
        let parts = &mut *state;
        if let Some(socket) = parts.socket.as_mut().filter(|s| !s.busy) {
            parts.session.transmit(&mut socket.spill, BATCH);
            socket.busy = !socket.spill.is_empty();
            self.start_writer(socket);
        }
    }

    fn start_writer(self: &Arc<Self>, socket: &mut Socket) {
        if socket.writer.is_some() {
            self.writer.notify_all();
            return;
        }
        let (link, nr, stream) = (self.clone(), socket.nr, socket.stream.clone());
        match thread::Builder::new().name(self.thread_name.into()).spawn(move || link.writer_loop(nr, &*stream)) {
            Ok(handle) => socket.writer = Some(handle),
            // No thread, no writing: the socket is given up, the messages stay queued for the next one.
            Err(_) => socket.stream.shutdown(),
        }
    }

    /// Writes what transmitters left, and what is queued meanwhile, until the socket is gone.
    fn writer_loop(&self, nr: u64, stream: &dyn Stream) {
        let mut state = self.state.lock();
        loop {
            let parts = &mut *state;
            let Some(socket) = parts.socket.as_mut().filter(|s| s.nr == nr) else { return };
            if socket.spill.is_empty() {
                self.writer.wait(&mut state);
                continue;
            }
            let mut batch = std::mem::take(&mut socket.spill);
            while !batch.is_empty() {
                let written = MutexGuard::unlocked(&mut state, || write_all(stream, &batch));
                let parts = &mut *state;
                let Some(socket) = parts.socket.as_mut().filter(|s| s.nr == nr) else { return };
                if written.is_err() {
                    stream.shutdown();
                    return;
                }
                batch.clear();
                parts.session.transmit(&mut batch, BATCH);
                if batch.is_empty() {
                    socket.busy = false;
                }
            }
        }
    }
}

/// Writes until everything is written or the stream would wait; the number of bytes written.
fn write_without_waiting(stream: &dyn Stream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.try_write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(written)
}

/// Writes everything, waiting for room.
pub(crate) fn write_all(stream: &dyn Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
