//! Streams over TCP, datagrams over UDP (`spec/05 §4.1`).

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::transport::{Datagrams, Listener, Stream, Transport};
use crate::error::{Errno, Error, Result};
use crate::options::VolumeOptions;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Instant};

/// Unanswered keepalive probes that break a connection.
const PROBES: u32 = 3;

/// Streams that wait to be accepted: a whole cluster may come at once after a fail-over, and one that does not fit is delayed by a
/// second.
const BACKLOG: i32 = 1024;

/// Longest uninterrupted wait for a datagram, should the datagram that wakes us get lost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Options of [`TcpTransport`].
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Silence that breaks a connection, at least 4 s (mount option `tcp_keepalive_timeout_ms`). Below 4 s the idle
    /// time of the keepalive, which is whole seconds and three less than this, would be 0.
    pub keepalive_timeout: Duration,
    /// Address from which streams to servers come, where the host has several: it is what a fencer is told of a mount.
    pub source: Option<Ipv4Addr>,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions { keepalive_timeout: Duration::from_secs(24), source: None }
    }
}

impl From<&VolumeOptions> for TcpOptions {
    /// What a mount with these options sets on its sockets.
    fn from(options: &VolumeOptions) -> TcpOptions {
        TcpOptions { keepalive_timeout: options.keepalive_timeout, ..TcpOptions::default() }
    }
}

/// The kernel's network.
pub struct TcpTransport {
    keepalive_timeout: Duration,
    source: Option<Ipv4Addr>,
}

impl TcpTransport {
    /// A transport with these options.
    pub fn new(options: TcpOptions) -> Result<Arc<TcpTransport>> {
        let timeout = options.keepalive_timeout;
        if timeout < Duration::from_secs(4) || timeout > Duration::from_secs(3600) {
            return Err(Error::invalid(format!("keepalive timeout {timeout:?} is not in 4 s .. 1 h")));
        }
        Ok(Arc::new(TcpTransport { keepalive_timeout: timeout, source: options.source }))
    }

    fn new_socket(&self, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        Socket::new(Domain::IPV4, kind, Some(protocol))
    }

    fn connected(&self, stream: TcpStream) -> io::Result<Arc<dyn Stream>> {
        configure(&stream, self.keepalive_timeout)?;
        let peer = stream.peer_addr()?;
        Ok(Arc::new(Connection { stream, peer }))
    }
}

/// What both ends set on their sockets.
fn configure(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    let idle = Duration::from_secs(timeout.as_secs() - u64::from(PROBES));
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(Duration::from_secs(1)).with_retries(PROBES);
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(timeout))?;
    Ok(())
}

/// An error of a socket call, with what was tried.
fn socket_error(what: &str, addr: SocketAddr, error: &io::Error) -> Error {
    tracing::debug!(%addr, %error, "cannot {what}");
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::Busy(format!("cannot {what} {addr}: {error}")),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => {
            Error::invalid(format!("cannot {what} {addr}: {error}"))
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Errno::ETIMEDOUT.into(),
        _ => Errno::ENOTCONN.into(),
    }
}

impl Transport for TcpTransport {
    fn listen(&self, addr: SocketAddr) -> Result<Arc<dyn Listener>> {
        let open = || -> io::Result<Arc<dyn Listener>> {
            let socket = self.new_socket(Type::STREAM, Protocol::TCP)?;
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from(socket);
            let addr = listener.local_addr()?;
            let closed = AtomicBool::new(false);
            Ok(Arc::new(Accepting { listener, addr, closed, keepalive_timeout: self.keepalive_timeout }))
        };
        open().map_err(|e| socket_error("listen at", addr, &e))
    }

    fn connect(&self, addr: SocketAddr, timeout: Duration) -> Result<Arc<dyn Stream>> {
        let open = || -> io::Result<Arc<dyn Stream>> {
            let socket = self.new_socket(Type::STREAM, Protocol::TCP)?;
            if let Some(source) = self.source {
                socket.bind(&SocketAddr::from((source, 0)).into())?;
            }
            socket.connect_timeout(&addr.into(), timeout)?;
            self.connected(socket.into())
        };
        open().map_err(|e| socket_error("connect to", addr, &e))
    }

    fn datagrams(&self, addr: SocketAddr) -> Result<Arc<dyn Datagrams>> {
        let open = || -> io::Result<Arc<dyn Datagrams>> {
            let socket = self.new_socket(Type::DGRAM, Protocol::UDP)?;
            socket.bind(&addr.into())?;
            let socket = UdpSocket::from(socket);
            let addr = socket.local_addr()?;
            Ok(Arc::new(Udp { socket, addr, woken: AtomicBool::new(false) }))
        };
        open().map_err(|e| socket_error("receive datagrams at", addr, &e))
    }
}

struct Accepting {
    listener: TcpListener,
    addr: SocketAddr,
    closed: AtomicBool,
    keepalive_timeout: Duration,
}

impl Listener for Accepting {
    fn accept(&self) -> io::Result<Arc<dyn Stream>> {
        let (stream, peer) = self.listener.accept()?;
        if self.closed.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        configure(&stream, self.keepalive_timeout)?;
        Ok(Arc::new(Connection { stream, peer }))
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        // On Linux this wakes the accepting thread and refuses new streams.
        if SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both).is_err() {
            // Elsewhere a connection of our own does.
            let _ = TcpStream::connect_timeout(&self.addr, Duration::from_millis(100));
        }
    }
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
}

impl Stream for Connection {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        (&self.stream).write(buf)
    }

    fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        use rustix::net::{SendFlags, send};
        Ok(send(&self.stream, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn shutdown(&self) {
        // Fails when it is broken already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

struct Udp {
    socket: UdpSocket,
    addr: SocketAddr,
    woken: AtomicBool,
}

impl Datagrams for Udp {
    fn send_to(&self, buf: &[u8], to: SocketAddr) -> io::Result<()> {
        use rustix::net::{SendFlags, sendto};
        sendto(&self.socket, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &to)?;
        Ok(())
    }

    fn recv_from(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<(usize, SocketAddr)>> {
        let deadline = Instant::now() + timeout;
        let mut looked = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // What has arrived already counts even if the time is over.
            if self.woken.swap(false, Ordering::AcqRel) || (left.is_zero() && looked) {
                return Ok(None);
            }
            looked = true;
            self.socket.set_read_timeout(Some(left.clamp(Duration::from_millis(1), LONGEST_WAIT)))?;
            match self.socket.recv_from(buf) {
                // Our own empty datagram: see `wake`.
                Ok((0, _)) => {}
                Ok((n, from)) => return Ok(Some((n, from))),
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                    // An answer of the kernel to an earlier datagram: its receiver is not there.
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {}
                    _ => return Err(e),
                },
            }
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        let mut to = self.addr;
        if to.ip().is_unspecified() {
            to.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        // If it does not get through, `LONGEST_WAIT` does.
        let _ = self.socket.send_to(&[], to);
    }
}
