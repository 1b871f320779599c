//! The seam to the network: ordered byte streams with break notification, and datagrams for elections.
//!
//! An embedder that wants TLS, another address family or a simulated network implements these traits. What the engine
//! relies on (`spec/05 §4.1`):
//!
//! 1. Bytes of a stream arrive complete and in order, or the stream breaks; a broken stream delivers nothing more.
//! 2. A dead peer is noticed within about the time that the transport was configured with (24 s by default).
//! 3. After [`Stream::shutdown`], by either end, reads return 0 bytes or an error on both ends, at once or after the
//!    bytes that had been written before; blocked reads and writes wake up.
//! 4. Datagrams may be lost, repeated and reordered, but not changed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::error::Result;
use crate::sync::Arc;

/// Makes streams and datagram sockets.
pub trait Transport: Send + Sync {
    /// Starts listening at `addr`. Streams that connect before the first accept wait.
    fn listen(&self, addr: SocketAddr) -> Result<Arc<dyn Listener>>;

    /// Connects to the listener at `addr`, within `timeout`.
    fn connect(&self, addr: SocketAddr, timeout: Duration) -> Result<Arc<dyn Stream>>;

    /// Opens a datagram socket bound to `addr`.
    fn datagrams(&self, addr: SocketAddr) -> Result<Arc<dyn Datagrams>>;
}

/// Accepts streams.
pub trait Listener: Send + Sync {
    /// Waits for the next stream; an error after [`Listener::close`].
    fn accept(&self) -> io::Result<Arc<dyn Stream>>;

    /// The address it listens at.
    fn local_addr(&self) -> SocketAddr;

    /// Stops listening and wakes a blocked [`Listener::accept`].
    fn close(&self);
}

/// One end of an ordered stream of bytes. All methods may be called from several threads; the engine has at most one
/// reader and one writer at a time.
pub trait Stream: Send + Sync {
    /// Waits for bytes; 0 means the end of the stream.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes at least one byte, waiting for room.
    fn write(&self, buf: &[u8]) -> io::Result<usize>;

    /// Writes what fits without waiting; [`io::ErrorKind::WouldBlock`] if nothing does.
    fn try_write(&self, buf: &[u8]) -> io::Result<usize>;

    /// Breaks the stream in both directions. Bytes already written may still reach the peer.
    fn shutdown(&self);

    /// Address of the other end, with its port.
    fn peer_addr(&self) -> SocketAddr;

    /// From now on hands what arrives to `sink`, on the threads that write at the other end, instead of keeping it for
    /// [`Stream::read`]. False, and nothing changes, if the transport cannot: only one inside the process can, where it saves
    /// the hand-over between threads for each message.
    fn deliver_to(&self, sink: Arc<dyn Sink>) -> bool {
        let _ = sink;
        false
    }
}

/// Where a stream delivers to ([`Stream::deliver_to`]).
pub trait Sink: Send + Sync {
    /// The next bytes. Not called by two threads at the same time. Does not block.
    fn receive(&self, bytes: &[u8]);

    /// The stream has ended: called once, after the last bytes. Does not block and takes no lock that a caller of
    /// [`Stream::shutdown`] may hold.
    fn closed(&self);
}

/// A datagram socket.
pub trait Datagrams: Send + Sync {
    /// Sends without waiting; datagrams that cannot be sent at once are lost.
    fn send_to(&self, buf: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Waits at most `timeout` for a datagram. `None` when the time is over or [`Datagrams::wake`] was called.
    fn recv_from(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<(usize, SocketAddr)>>;

    /// Makes the current or the next [`Datagrams::recv_from`] return `None` soon.
    fn wake(&self);
}
