//! Getting to an export: finding the server, connecting, and whether what it offers will do.

use std::io::BufReader;
use std::net::ToSocketAddrs;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::address::{Address, Place};
use super::wire::{self, Export, Incoming};
use crate::error::{Error, Result};
use crate::sync::{Arc, Instant};

/// Longest connecting and handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence of a dead host after which the system breaks a connection.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// What the device wants of the connection.
pub(super) struct Terms {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) read_only: bool,
    pub(super) shared: bool,
    pub(super) timeout: Duration,
    /// Bytes of unflushed and outstanding writes.
    pub(super) keep_bytes: usize,
}

/// A socket after the handshake.
pub(super) struct Connected {
    pub(super) socket: Arc<Socket>,
    pub(super) incoming: BufReader<Incoming>,
}

/// Can the device do its job on this export?
pub(super) fn acceptable(terms: &Terms, export: &Export) -> Result<()> {
    let cannot = |why: &str| Err(Error::Unsupported(format!("{}: {why}", terms.name)));
    if u64::from(export.min_block) > super::SECTOR_BYTES {
        return cannot(&format!("its blocks of {} bytes are larger than 4096", export.min_block));
    }
    if u64::from(export.max_payload) < super::SECTOR_BYTES {
        return cannot(&format!("it takes only requests of {} bytes, less than 4096", export.max_payload));
    }
    if terms.read_only {
        return Ok(());
    }
    if export.read_only() {
        return cannot("the export is read-only");
    }
    if !export.can_flush() {
        return cannot("the export has no flush, so nothing could be made durable");
    }
    if terms.shared && !export.multi_conn() {
        return cannot(
            "the export does not promise that several connections see one device (NBD_FLAG_CAN_MULTI_CONN), so it cannot \
             be shared by several nodes (qemu-nbd: --shared=N)",
        );
    }
    Ok(())
}

/// Connects and agrees on the export. `watch` sees the socket before anything can take long; false ends it.
pub(super) fn connect(terms: &Terms, watch: impl Fn(&Arc<Socket>) -> bool) -> Result<(Connected, Export), String> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let mut last = String::from("the name has no address");
    for addr in places(&terms.address.place)? {
        match connect_to(&addr, terms.timeout, deadline) {
            Ok(socket) => {
                let socket = Arc::new(socket);
                if !watch(&socket) {
                    return Err("closed".into());
                }
                let mut incoming = BufReader::with_capacity(1 << 16, Incoming::new(socket.clone(), deadline));
                let export = wire::handshake(&socket, &mut incoming, &terms.address.export)?;
                return Ok((Connected { socket, incoming }, export));
            }
            Err(e) => last = format!("cannot connect: {e}"),
        }
    }
    Err(last)
}

fn places(place: &Place) -> Result<Vec<SockAddr>, String> {
    match place {
        Place::Tcp { host, port } => match (host.as_str(), *port).to_socket_addrs() {
            Ok(addrs) => Ok(addrs.map(SockAddr::from).collect()),
            Err(e) => Err(format!("cannot find {host}: {e}")),
        },
        Place::Unix(path) => match SockAddr::unix(path) {
            Ok(addr) => Ok(vec![addr]),
            Err(e) => Err(format!("{}: {e}", path.display())),
        },
    }
}

fn connect_to(addr: &SockAddr, timeout: Duration, deadline: Instant) -> std::io::Result<Socket> {
    let socket = Socket::new(addr.domain(), Type::STREAM, None)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    if addr.domain() == Domain::UNIX {
        socket.connect(addr)?;
    } else {
        socket.connect_timeout(addr, left)?;
        socket.set_tcp_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(DEAD_AFTER / 2).with_interval(Duration::from_secs(1)).with_retries(5);
        let sock = SockRef::from(&socket);
        sock.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        sock.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    }
    socket.set_write_timeout(Some(timeout))?;
    Ok(socket)
}
