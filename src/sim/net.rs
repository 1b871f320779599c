//! A network between nodes: latency, partitions, breaks, silent deaths; datagrams are lost, repeated and overtaken.
//!
//! Streams behave as TCP does with keepalive: bytes arrive in order; while a direction is cut they wait, and if that lasts for
//! longer than about [`USER_TIMEOUT`] both ends learn that the stream is broken. Bytes that were under way when a stream breaks
//! are lost from some point on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{below, between, block, now, on_crash, one_in, sleep, spawn_on, wake_all};
use crate::error::{Errno, Error, Result, fail};
use crate::net::{Datagrams, Listener, Stream, Transport};
use crate::sync::Arc;
use crate::sync::sim::RealMutex;

const USER_TIMEOUT: Duration = Duration::from_secs(24);
/// Bytes that wait in one direction of a stream.
const ROOM: usize = 256 * 1024;
/// Keys of this module where the scheduler waits; addresses have the top bit clear.
const KEYS: usize = 1 << 63;

/// How good the network is.
#[derive(Clone, Copy, Debug)]
pub struct NetProfile {
    /// Least latency.
    pub fast: Duration,
    /// Most latency.
    pub slow: Duration,
    /// Lost datagrams, in percent.
    pub loss: u64,
    /// Repeated datagrams, in percent.
    pub repeat: u64,
    /// Machines that crash die silently, in percent; the others break their streams at once.
    pub silent: u64,
}

/// One end of a stream, with what is on its way to it.
struct End {
    node: u32,
    addr: SocketAddr,
    inbox: VecDeque<(Duration, Vec<u8>)>,
    bytes: usize,
    last: Duration,
    /// The other end has shut down.
    eof: Option<Duration>,
    shut: bool,
    broken: bool,
}

impl End {
    fn new(node: u32, addr: SocketAddr) -> End {
        let (inbox, last) = (VecDeque::new(), Duration::ZERO);
        End { node, addr, inbox, bytes: 0, last, eof: None, shut: false, broken: false }
    }
}

struct Conn {
    ends: [End; 2],
    /// Since when no acknowledgement can come through.
    silent_since: Option<Duration>,
}

struct Accepting {
    node: u32,
    queue: VecDeque<(u64, SocketAddr)>,
    closed: bool,
}

#[derive(Default)]
struct Mailbox {
    node: u32,
    waiting: BTreeMap<(Duration, u64), (SocketAddr, Vec<u8>)>,
    woken: bool,
}

#[derive(Default)]
struct State {
    conns: BTreeMap<u64, Conn>,
    listeners: BTreeMap<SocketAddr, (u64, Accepting)>,
    mailboxes: BTreeMap<SocketAddr, (u64, Mailbox)>,
    cut: BTreeSet<(IpAddr, IpAddr)>,
    dead: BTreeSet<u32>,
    next: u64,
}

impl State {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.cut.contains(&(from, to))
    }

    fn break_conn(&mut self, id: u64, losing: bool) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        for end in &mut conn.ends {
            end.broken = true;
            if losing {
                let keep = below(end.inbox.len() as u64 + 1) as usize;
                end.inbox.truncate(keep);
            }
        }
    }
}

fn end_key(conn: u64, side: usize) -> usize {
    KEYS | (conn as usize) << 2 | side
}

/// The network of a cluster.
pub struct SimNet {
    profile: RealMutex<NetProfile>,
    state: RealMutex<State>,
}

impl SimNet {
    /// A network where all is well. Starts a thread of the driver that finds dead streams.
    pub fn new(profile: NetProfile) -> Arc<SimNet> {
        let net = Arc::new(SimNet { profile: RealMutex::new(profile), state: RealMutex::new(State::default()) });
        let crashes = net.clone();
        on_crash(move |node| crashes.crashed(node));
        let reaper = net.clone();
        spawn_on(super::DRIVER, "net-reaper", move || {
            loop {
                sleep(Duration::from_millis(500));
                reaper.reap();
            }
        });
        net
    }

    /// What `node` at `ip` uses of it.
    pub fn transport(self: &Arc<SimNet>, node: u32, ip: IpAddr) -> Arc<SimTransport> {
        Arc::new(SimTransport { net: self.clone(), node, ip })
    }

    /// Changes how good it is.
    pub fn set_profile(&self, profile: NetProfile) {
        *self.profile.lock().expect("nothing panics here") = profile;
    }

    fn profile(&self) -> NetProfile {
        *self.profile.lock().expect("nothing panics here")
    }

    fn latency(&self) -> Duration {
        let p = self.profile();
        between(p.fast, p.slow)
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().expect("nothing panics here"))
    }

    fn wake_conns(&self, which: &[u64]) {
        for id in which {
            wake_all(end_key(*id, 0));
            wake_all(end_key(*id, 1));
        }
    }

    /// Nothing comes from `from` to `to` any more.
    pub fn cut(&self, from: IpAddr, to: IpAddr) {
        self.with(|s| s.cut.insert((from, to)));
    }

    /// All directions work again; what waited arrives.
    pub fn heal(&self) {
        let all = self.with(|s| {
            s.cut.clear();
            s.conns.keys().copied().collect::<Vec<_>>()
        });
        self.wake_conns(&all);
    }

    /// Breaks a random stream.
    pub fn break_one(&self) {
        let ids = self.with(|s| s.conns.keys().copied().collect::<Vec<_>>());
        if ids.is_empty() {
            return;
        }
        let id = ids[below(ids.len() as u64) as usize];
        self.with(|s| s.break_conn(id, true));
        self.wake_conns(&[id]);
    }

    fn crashed(&self, node: u32) {
        let silent = below(100) < self.profile().silent;
        let broken = self.with(|s| {
            s.dead.insert(node);
            s.listeners.retain(|_, (_, l)| l.node != node);
            s.mailboxes.retain(|_, (_, m)| m.node != node);
            let of_node = |c: &Conn| c.ends.iter().any(|e| e.node == node);
            let ids: Vec<u64> = s.conns.iter().filter(|(_, c)| of_node(c)).map(|(id, _)| *id).collect();
            if !silent {
                ids.iter().for_each(|id| s.break_conn(*id, true));
            }
            ids
        });
        self.wake_conns(&broken);
    }

    /// Streams without acknowledgements for too long break; streams that both ends have left are forgotten.
    fn reap(&self) {
        let now = now();
        let broken = self.with(|s| {
            let mut broken = Vec::new();
            let State { conns, cut, dead, .. } = s;
            conns.retain(|_, c| !c.ends.iter().all(|e| e.shut || dead.contains(&e.node)));
            for (id, conn) in conns.iter_mut().filter(|(_, c)| !c.ends[0].broken) {
                let (a, b) = (conn.ends[0].addr.ip(), conn.ends[1].addr.ip());
                let unreachable =
                    cut.contains(&(a, b)) || cut.contains(&(b, a)) || conn.ends.iter().any(|e| dead.contains(&e.node));
                match (unreachable, conn.silent_since) {
                    (false, _) => conn.silent_since = None,
                    (true, None) => conn.silent_since = Some(now),
                    (true, Some(since)) if now - since > USER_TIMEOUT => broken.push(*id),
                    _ => {}
                }
            }
            broken.iter().for_each(|id| s.break_conn(*id, true));
            broken
        });
        self.wake_conns(&broken);
    }
}

/// The network as one node sees it.
pub struct SimTransport {
    net: Arc<SimNet>,
    node: u32,
    ip: IpAddr,
}

impl Transport for SimTransport {
    fn listen(&self, addr: SocketAddr) -> Result<Arc<dyn Listener>> {
        let id = self.net.with(|s| {
            let id = s.id();
            if s.listeners.contains_key(&addr) {
                return Err(Error::Busy(format!("somebody listens at {addr}")));
            }
            s.listeners.insert(addr, (id, Accepting { node: self.node, queue: VecDeque::new(), closed: false }));
            Ok(id)
        })?;
        Ok(Arc::new(SimListener { net: self.net.clone(), id, addr }))
    }

    fn connect(&self, addr: SocketAddr, timeout: Duration) -> Result<Arc<dyn Stream>> {
        let until = now() + timeout;
        sleep(self.net.latency() + self.net.latency());
        while self.net.with(|s| s.is_cut(self.ip, addr.ip()) || s.is_cut(addr.ip(), self.ip)) {
            if now() >= until {
                return fail(Errno::ETIMEDOUT);
            }
            sleep(Duration::from_millis(200).min(timeout));
        }
        let made = self.net.with(|s| {
            let id = s.id();
            let local = SocketAddr::new(self.ip, 40_000 + (id % 20_000) as u16);
            let (key, accepting) = s.listeners.get_mut(&addr)?;
            if accepting.closed || accepting.queue.len() >= 128 {
                return None;
            }
            accepting.queue.push_back((id, local));
            let (key, there) = (*key, accepting.node);
            s.conns.insert(id, Conn { ends: [End::new(self.node, local), End::new(there, addr)], silent_since: None });
            Some((id, key))
        });
        let Some((conn, key)) = made else { return fail(Errno::ENOTCONN) };
        wake_all(KEYS | (key as usize) << 2);
        Ok(Arc::new(SimStream { net: self.net.clone(), conn, side: 0, peer: addr }))
    }

    fn datagrams(&self, addr: SocketAddr) -> Result<Arc<dyn Datagrams>> {
        let id = self.net.with(|s| {
            let id = s.id();
            if s.mailboxes.contains_key(&addr) {
                return Err(Error::Busy(format!("somebody receives datagrams at {addr}")));
            }
            s.mailboxes.insert(addr, (id, Mailbox { node: self.node, ..Mailbox::default() }));
            Ok(id)
        })?;
        Ok(Arc::new(SimDatagrams { net: self.net.clone(), id, addr }))
    }
}

struct SimListener {
    net: Arc<SimNet>,
    id: u64,
    addr: SocketAddr,
}

impl Listener for SimListener {
    fn accept(&self) -> io::Result<Arc<dyn Stream>> {
        loop {
            let next = self.net.with(|s| match s.listeners.get_mut(&self.addr) {
                Some((id, l)) if *id == self.id && !l.closed => Ok(l.queue.pop_front()),
                _ => Err(io::ErrorKind::ConnectionAborted),
            })?;
            if let Some((conn, peer)) = next {
                return Ok(Arc::new(SimStream { net: self.net.clone(), conn, side: 1, peer }));
            }
            block(KEYS | (self.id as usize) << 2, "accepts", None);
        }
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn close(&self) {
        let waiting = self.net.with(|s| match s.listeners.get(&self.addr) {
            Some((id, _)) if *id == self.id => s.listeners.remove(&self.addr).map(|(_, l)| l.queue),
            _ => None,
        });
        wake_all(KEYS | (self.id as usize) << 2);
        for (conn, _) in waiting.into_iter().flatten() {
            self.net.with(|s| s.break_conn(conn, false));
            self.net.wake_conns(&[conn]);
        }
    }
}

struct SimStream {
    net: Arc<SimNet>,
    conn: u64,
    side: usize,
    peer: SocketAddr,
}

enum Poll<T> {
    Ready(T),
    Wait(Option<Duration>),
}

impl SimStream {
    fn poll_read(&self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let now = now();
        self.net.with(|s| {
            let Some(conn) = s.conns.get(&self.conn) else { return Poll::Ready(Ok(0)) };
            let (me, peer) = (&conn.ends[self.side], &conn.ends[1 - self.side]);
            let held = s.is_cut(peer.addr.ip(), me.addr.ip());
            let Some(conn) = s.conns.get_mut(&self.conn) else { return Poll::Ready(Ok(0)) };
            let me = &mut conn.ends[self.side];
            if me.shut {
                return Poll::Ready(Ok(0));
            }
            match me.inbox.front_mut() {
                Some((at, bytes)) if *at <= now && (!held || me.broken) => {
                    let n = bytes.len().min(buf.len());
                    buf[..n].copy_from_slice(&bytes[..n]);
                    bytes.drain(..n);
                    me.bytes -= n;
                    if bytes.is_empty() {
                        me.inbox.pop_front();
                    }
                    Poll::Ready(Ok(n))
                }
                Some((at, _)) if !held || me.broken => Poll::Wait(Some(*at)),
                None if me.broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None if !held => match me.eof {
                    Some(at) if at <= now => Poll::Ready(Ok(0)),
                    eof => Poll::Wait(eof),
                },
                _ => Poll::Wait(None),
            }
        })
    }

    fn poll_write(&self, buf: &[u8], latency: Duration) -> Poll<io::Result<usize>> {
        let now = now();
        self.net.with(|s| {
            let Some(conn) = s.conns.get_mut(&self.conn) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let me = &conn.ends[self.side];
            if me.shut || me.broken || me.eof.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let to = &mut conn.ends[1 - self.side];
            let n = buf.len().min(ROOM.saturating_sub(to.bytes));
            if n == 0 {
                return Poll::Wait(None);
            }
            to.last = to.last.max(now + latency);
            to.inbox.push_back((to.last, buf[..n].to_vec()));
            to.bytes += n;
            Poll::Ready(Ok(n))
        })
    }

    fn wake(&self) {
        self.net.wake_conns(&[self.conn]);
    }
}

impl Stream for SimStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.poll_read(buf) {
                Poll::Ready(result) => {
                    self.wake();
                    return result;
                }
                Poll::Wait(until) => block(end_key(self.conn, self.side), "reads a stream", until),
            };
        }
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        loop {
            match self.poll_write(buf, self.net.latency()) {
                Poll::Ready(result) => {
                    self.wake();
                    return result;
                }
                Poll::Wait(until) => block(end_key(self.conn, self.side), "writes a stream", until),
            };
        }
    }

    fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        // Now and then there is room for a part only.
        let len = if one_in(20) { 1 + below(buf.len() as u64) as usize } else { buf.len() };
        match self.poll_write(&buf[..len.min(buf.len())], self.net.latency()) {
            Poll::Ready(result) => {
                self.wake();
                result
            }
            Poll::Wait(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn shutdown(&self) {
        let latency = self.net.latency();
        let now = now();
        let losing = one_in(3);
        self.net.with(|s| {
            let Some(conn) = s.conns.get_mut(&self.conn) else { return };
            let me = &mut conn.ends[self.side];
            if std::mem::replace(&mut me.shut, true) {
                return;
            }
            let to = &mut conn.ends[1 - self.side];
            if losing {
                let keep = below(to.inbox.len() as u64 + 1) as usize;
                to.inbox.truncate(keep);
                to.bytes = to.inbox.iter().map(|(_, b)| b.len()).sum();
            }
            to.eof = Some(to.last.max(now + latency));
        });
        self.wake();
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.shutdown();
    }
}

struct SimDatagrams {
    net: Arc<SimNet>,
    id: u64,
    addr: SocketAddr,
}

impl SimDatagrams {
    fn key(&self) -> usize {
        KEYS | (self.id as usize) << 2
    }
}

impl Datagrams for SimDatagrams {
    fn send_to(&self, buf: &[u8], to: SocketAddr) -> io::Result<()> {
        let p = self.net.profile();
        let copies = if below(100) < p.loss { 0 } else { 1 + usize::from(below(100) < p.repeat) };
        for _ in 0..copies {
            let at = now() + self.net.latency();
            let key = self.net.with(|s| {
                if s.is_cut(self.addr.ip(), to.ip()) {
                    return None;
                }
                let nr = s.id();
                let (id, mailbox) = s.mailboxes.get_mut(&to)?;
                if mailbox.waiting.len() < 128 {
                    mailbox.waiting.insert((at, nr), (self.addr, buf.to_vec()));
                }
                Some(KEYS | (*id as usize) << 2)
            });
            if let Some(key) = key {
                wake_all(key);
            }
        }
        Ok(())
    }

    fn recv_from(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<(usize, SocketAddr)>> {
        let until = now() + timeout;
        loop {
            let now = now();
            let polled = self.net.with(|s| {
                let Some((id, mailbox)) = s.mailboxes.get_mut(&self.addr) else { return Poll::Ready(None) };
                if *id != self.id || std::mem::take(&mut mailbox.woken) {
                    return Poll::Ready(None);
                }
                match mailbox.waiting.first_key_value() {
                    Some((&(at, nr), _)) if at <= now => Poll::Ready(mailbox.waiting.remove(&(at, nr))),
                    Some((&(at, _), _)) => Poll::Wait(Some(at.min(until))),
                    None => Poll::Wait(Some(until)),
                }
            });
            match polled {
                Poll::Ready(Some((from, bytes))) => {
                    let n = bytes.len().min(buf.len());
                    buf[..n].copy_from_slice(&bytes[..n]);
                    return Ok(Some((n, from)));
                }
                Poll::Ready(None) => return Ok(None),
                Poll::Wait(_) if now >= until => return Ok(None),
                Poll::Wait(at) => block(self.key(), "receives datagrams", at),
            };
        }
    }

    fn wake(&self) {
        self.net.with(|s| {
            if let Some((id, mailbox)) = s.mailboxes.get_mut(&self.addr)
                && *id == self.id
            {
                mailbox.woken = true;
            }
        });
        wake_all(self.key());
    }
}

impl Drop for SimDatagrams {
    fn drop(&mut self) {
        self.net.with(|s| {
            if s.mailboxes.get(&self.addr).is_some_and(|(id, _)| *id == self.id) {
                s.mailboxes.remove(&self.addr);
            }
        });
    }
}
