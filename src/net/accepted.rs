//! The life of one accepted socket: greeting, taking over the client's link, receiving, leaving (`spec/05 §4.5`).
//!
//! The rules are those of [`super::server`].

use std::net::SocketAddr;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::codec::{Frame, FrameReader, Refusal};
use super::command::{Command, WrongLength};
use super::link::{Link, write_all};
use super::receive::{By, read_frames, receive_all};
use super::server::{Inner, MAX_CLIENTS, ServerEvent};
use super::session::{Session, Verdict};
use super::transport::Stream;
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::GREETING_FAREWELL;
use crate::format::layout::NetGreeting;
use crate::sync::{Arc, Instant, thread};

/// Events in the channel above which sockets are not read any further.
const MAX_EVENTS: usize = 8192;

/// Unanswered requests of one client above which its socket is not read any further: a flood waits in its own socket.
const MAX_OPEN: usize = 1024;

/// Bytes of answers that one client may leave unacknowledged.
const MAX_KEPT: usize = 64 << 20;

/// How often a paused reader looks whether it may go on.
const EVENTS_PAUSE: Duration = Duration::from_millis(1);

impl Inner {
    /// The life of one accepted socket.
    pub(super) fn run_socket(self: &Arc<Self>, nr: u64, stream: &Arc<dyn Stream>) -> Result<()> {
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
        {
            let mut state = self.state.lock();
            state.greeting.remove(&rid);
            if let Some(socket) = state.sockets.get_mut(&nr) {
                socket.greeted = true;
            }
        }
        self.greetings.notify_all();
        let (link, attached) = match entered {
            Ok(entered) => entered,
            Err(error) => return refuse(&**stream, greeting_id, error),
        };
        let result = match attached {
            Ok(attached) => {
                let each = {
                    let (inner, link) = (self.clone(), link.clone());
                    Arc::new(move |frame: &Frame<'_>, by: By| inner.receive(rid, &link, frame, by))
                };
                let result = receive_all(stream, reader, || self.wait_for_room(&link), each);
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
            let resumed = !first_contact && state.session.recv_seq() == 0 && greeting.server_term.get() == self.term;
            if resumed && !state.session.continue_after(recv_seq) {
                drop(state);
                self.start_waiting(rid, nr);
                return Err(Error::invalid("a greeting that has received more than was sent"));
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
        let others = state.clients.len();
        let Some(client) = state.clients.get_mut(&greeting.rid.get()) else {
            if term == self.term && greeting.flags.get() & GREETING_FAREWELL == 0 {
                return Err(Error::invalid("this server has given the client up"));
            }
            if others >= MAX_CLIENTS {
                return Err(Error::Busy(format!("{MAX_CLIENTS} clients are connected")));
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

    /// Handles one message of a greeted client.
    fn receive(&self, rid: u64, link: &Arc<Link<(), ()>>, frame: &Frame<'_>, by: By) -> Result<(), Refusal> {
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
        let mut state = link.lock();
        let verdict = state.session.receive(head);
        if state.session.kept() > MAX_KEPT {
            return Err("too many answers are not acknowledged");
        }
        if wrong_len && verdict == Verdict::Request {
            state.session.respond(head.cmd, head.id, Err(&Errno::EINVAL.into()));
            link.pump_elsewhere(state);
            return Ok(());
        }
        drop(state);
        let event = match verdict {
            Verdict::Ignore => return Ok(()),
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
        let left = match &self.direct {
            Some(direct) if by == By::Reader => direct.take(event, &mut &*self),
            _ => Some(event),
        };
        left.map_or(Ok(()), |event| self.send(event)).map_err(|_| "the server has stopped")
    }

    /// Holds up a reading thread while too much waits for the server thread, or too much of this client's does. Mounts of
    /// this process are bounded by what they have at work.
    fn wait_for_room(&self, link: &Link<(), ()>) {
        while (self.events.len() > MAX_EVENTS || link.lock().session.open() > MAX_OPEN) && !self.state.lock().stopping {
            thread::sleep(EVENTS_PAUSE);
        }
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
