//! A network inside the process.
//!
//! For tests, and for a mount that talks to its own server. Streams are bounded byte buffers with parking readers and
//! writers; datagrams are bounded queues that drop what does not fit. Nothing here waits busily. A stream whose receiving
//! end has a [`Sink`] is a function call: the writing thread does the receiver's work, unless another one is just at it.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use super::transport::{Datagrams, Listener, Sink, Stream, Transport};
use crate::error::{Errno, Error, Result, fail};
use crate::sync::{Arc, Condvar, HashMap, Instant, Mutex, MutexGuard, Weak};

/// Bytes that a stream holds in each direction.
const PIPE_BYTES: usize = 256 * 1024;

/// Streams that wait to be accepted, and datagrams that wait to be received.
const BACKLOG: usize = 128;

/// First port given to connecting ends.
const FIRST_EPHEMERAL_PORT: u16 = 49152;

/// All addresses of one in-process network. Clones of the `Arc` share it.
pub struct MemTransport {
    hub: Mutex<Hub>,
    this: Weak<MemTransport>,
}

#[derive(Default)]
struct Hub {
    listeners: HashMap<SocketAddr, Arc<MemListener>>,
    datagrams: HashMap<SocketAddr, Arc<Mailbox>>,
    next_port: u16,
}

impl MemTransport {
    /// An empty network.
    pub fn new() -> Arc<MemTransport> {
        Arc::new_cyclic(|this| MemTransport { hub: Mutex::new(Hub::default()), this: this.clone() })
    }
}

impl Transport for MemTransport {
    fn listen(&self, addr: SocketAddr) -> Result<Arc<dyn Listener>> {
        let mut hub = self.hub.lock();
        if hub.listeners.contains_key(&addr) {
            return Err(Error::Busy(format!("somebody listens at {addr}")));
        }
        let listener = Arc::new(MemListener {
            addr,
            hub: self.this.clone(),
            state: Mutex::new(ListenerState::default()),
            changed: Condvar::new(),
        });
        hub.listeners.insert(addr, listener.clone());
        Ok(listener)
    }

    fn connect(&self, addr: SocketAddr, _timeout: Duration) -> Result<Arc<dyn Stream>> {
        let (listener, port) = {
            let mut hub = self.hub.lock();
            hub.next_port = hub.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT).max(FIRST_EPHEMERAL_PORT);
            (hub.listeners.get(&addr).cloned(), hub.next_port)
        };
        let Some(listener) = listener else { return fail(Errno::ENOTCONN) };
        let (up, down) = (Arc::new(Pipe::new()), Arc::new(Pipe::new()));
        let local = SocketAddr::new(addr.ip(), port);
        let near = MemStream { input: down.clone(), output: up.clone(), peer: addr };
        let far = MemStream { input: up, output: down, peer: local };
        listener.offer(far)?;
        Ok(Arc::new(near))
    }

    fn datagrams(&self, addr: SocketAddr) -> Result<Arc<dyn Datagrams>> {
        let mut hub = self.hub.lock();
        if hub.datagrams.contains_key(&addr) {
            return Err(Error::Busy(format!("somebody receives datagrams at {addr}")));
        }
        let mailbox = Arc::new(Mailbox { state: Mutex::new(MailboxState::default()), changed: Condvar::new() });
        hub.datagrams.insert(addr, mailbox.clone());
        Ok(Arc::new(MemDatagrams { addr, hub: self.this.clone(), mailbox }))
    }
}

struct MemListener {
    addr: SocketAddr,
    hub: Weak<MemTransport>,
    state: Mutex<ListenerState>,
    changed: Condvar,
}

#[derive(Default)]
struct ListenerState {
    waiting: VecDeque<MemStream>,
    closed: bool,
}

impl MemListener {
    fn offer(&self, stream: MemStream) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed || state.waiting.len() >= BACKLOG {
            return fail(Errno::ENOTCONN);
        }
        state.waiting.push_back(stream);
        self.changed.notify_one();
        Ok(())
    }
}

impl Listener for MemListener {
    fn accept(&self) -> io::Result<Arc<dyn Stream>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if let Some(stream) = state.waiting.pop_front() {
                return Ok(Arc::new(stream));
            }
            self.changed.wait(&mut state);
        }
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            self.changed.notify_all();
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        if let Some(transport) = self.hub.upgrade() {
            let mut hub = transport.hub.lock();
            // A later listener may have taken the address over.
            if hub.listeners.get(&self.addr).is_some_and(|l| std::ptr::eq(Arc::as_ptr(l), self)) {
                hub.listeners.remove(&self.addr);
            }
        }
    }
}

/// One direction of a stream.
struct Pipe {
    state: Mutex<PipeState>,
    readable: Condvar,
    writable: Condvar,
}

#[derive(Default)]
struct PipeState {
    bytes: VecDeque<u8>,
    closed: bool,
    sink: Option<Arc<dyn Sink>>,
    /// A thread is giving bytes to the sink; it will give what is added meanwhile, and the end.
    delivering: bool,
}

impl Pipe {
    fn new() -> Pipe {
        Pipe { state: Mutex::new(PipeState::default()), readable: Condvar::new(), writable: Condvar::new() }
    }

    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        while state.bytes.is_empty() && !state.closed {
            self.readable.wait(&mut state);
        }
        let n = state.bytes.read(buf)?;
        self.writable.notify_one();
        Ok(n)
    }

    fn write(&self, buf: &[u8], wait: bool) -> io::Result<usize> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if state.bytes.is_empty()
                && !state.delivering
                && let Some(sink) = state.sink.clone()
            {
                state.delivering = true;
                MutexGuard::unlocked(&mut state, || self.hand_over(&*sink, buf));
                self.deliver(state, &*sink);
                return Ok(buf.len());
            }
            let n = buf.len().min(PIPE_BYTES - state.bytes.len());
            if n > 0 {
                state.bytes.extend(&buf[..n]);
                self.readable.notify_one();
                return Ok(n);
            }
            if !wait {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.writable.wait(&mut state);
        }
    }

    /// Gives what is in the buffer to the sink, as the thread that has set `delivering`.
    fn deliver(&self, mut state: MutexGuard<'_, PipeState>, sink: &dyn Sink) {
        while !state.closed && !state.bytes.is_empty() {
            let mut batch = std::mem::take(&mut state.bytes);
            self.writable.notify_all();
            MutexGuard::unlocked(&mut state, || self.hand_over(sink, batch.make_contiguous()));
        }
        state.delivering = false;
        let ended = state.closed && state.sink.take().is_some();
        drop(state);
        if ended {
            sink.closed();
        }
    }

    fn hand_over(&self, sink: &dyn Sink, bytes: &[u8]) {
        let panic = BreakOnPanic { pipe: self, sink };
        sink.receive(bytes);
        std::mem::forget(panic);
    }

    fn deliver_to(&self, sink: Arc<dyn Sink>) {
        let mut state = self.state.lock();
        state.sink = Some(sink.clone());
        state.delivering = true;
        self.deliver(state, &*sink);
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.readable.notify_all();
        self.writable.notify_all();
        let sink = if state.delivering { None } else { state.sink.take() };
        drop(state);
        if let Some(sink) = sink {
            sink.closed();
        }
    }
}

/// Ends the stream when a sink panics: its owner waits for the end.
struct BreakOnPanic<'a> {
    pipe: &'a Pipe,
    sink: &'a dyn Sink,
}

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        state.closed = true;
        state.sink = None;
        drop(state);
        self.sink.closed();
    }
}

/// One end of a stream; breaks when dropped.
struct MemStream {
    input: Arc<Pipe>,
    output: Arc<Pipe>,
    peer: SocketAddr,
}

impl Stream for MemStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf, true)
    }

    fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf, false)
    }

    fn shutdown(&self) {
        self.input.close();
        self.output.close();
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn deliver_to(&self, sink: Arc<dyn Sink>) -> bool {
        self.input.deliver_to(sink);
        true
    }
}

impl Drop for MemStream {
    fn drop(&mut self) {
        self.shutdown();
    }
}

struct Mailbox {
    state: Mutex<MailboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct MailboxState {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    woken: bool,
}

struct MemDatagrams {
    addr: SocketAddr,
    hub: Weak<MemTransport>,
    mailbox: Arc<Mailbox>,
}

impl Datagrams for MemDatagrams {
    fn send_to(&self, buf: &[u8], to: SocketAddr) -> io::Result<()> {
        let Some(transport) = self.hub.upgrade() else { return Ok(()) };
        let Some(mailbox) = transport.hub.lock().datagrams.get(&to).cloned() else { return Ok(()) };
        let mut state = mailbox.state.lock();
        if state.waiting.len() < BACKLOG {
            state.waiting.push_back((self.addr, buf.to_vec()));
            mailbox.changed.notify_one();
        }
        Ok(())
    }

    fn recv_from(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<(usize, SocketAddr)>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.mailbox.state.lock();
        loop {
            if std::mem::take(&mut state.woken) {
                return Ok(None);
            }
            if let Some((from, bytes)) = state.waiting.pop_front() {
                let n = bytes.len().min(buf.len());
                buf[..n].copy_from_slice(&bytes[..n]);
                return Ok(Some((n, from)));
            }
            if self.mailbox.changed.wait_until(&mut state, deadline).timed_out() {
                return Ok(None);
            }
        }
    }

    fn wake(&self) {
        self.mailbox.state.lock().woken = true;
        self.mailbox.changed.notify_all();
    }
}

impl Drop for MemDatagrams {
    fn drop(&mut self) {
        if let Some(transport) = self.hub.upgrade() {
            transport.hub.lock().datagrams.remove(&self.addr);
        }
    }
}
