//! One end of a logical connection: which messages to send, which received ones count (`spec/05 §4.2` to `§4.5`).
//!
//! **Problem.** Sockets break at any byte. Every request must reach one server exactly once, every response exactly
//! once, and all messages of one end in the order in which they were queued.
//!
//! **Idea.** Messages are numbered when they are queued and kept until the peer has shown that it has them. A socket
//! is only a cursor into the queue: a new one starts at the beginning again, and the receiver drops what it knows.
//!
//! Invariants:
//!
//! 1. On one socket, messages (other than the greeting) are transmitted in increasing `seq` order, whether they were
//!    queued before or after a break; a message that were overtaken would be dropped by the peer as a duplicate.
//! 2. A request is kept until its response has arrived; a response until a message with `recv_seq` ≥ its `seq` has
//!    arrived, or the peer turned out to be a new server.
//! 3. `recv_seq` only grows, except that a client sets it to 0 for a new server.
//! 4. Greetings take numbers but are outside of the rules: never queued here, never dropped, acknowledge nothing.
//!
//! No I/O, no clock, no threads, no knowledge of what requests mean. `W` is what the owner wants back when a response
//! arrives.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use smallvec::SmallVec;

use super::codec::{self, Head};
use super::command::Command;
use crate::error::Error;
use crate::format::wire::error_to_wire;
use crate::sync::HashMap;

/// A payload: lock messages, by far the most, need no allocation of their own.
type Payload = SmallVec<[u8; 64]>;

struct Request<W> {
    id: u64,
    cmd: Command,
    payload: Payload,
    owner: W,
}

struct Response {
    seq: u64,
    id: u64,
    cmd: Command,
    error: u8,
    payload: Payload,
}

/// What a received message is to its receiver.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<W> {
    /// A request that has not been received before.
    Request,
    /// The response to a pending request, which is now finished.
    Response(W),
    /// Known already, or a response that nobody waits for.
    Ignore,
}

/// One end of a logical connection.
pub(crate) struct Session<W> {
    next_seq: u64,
    next_id: u64,
    recv_seq: u64,
    /// Requests without response, by seq.
    requests: BTreeMap<u64, Request<W>>,
    /// The seq of each pending request.
    pending: HashMap<(Command, u64), u64>,
    /// Responses that the peer may not have, ascending by seq.
    responses: VecDeque<Response>,
    /// Greatest seq transmitted on the attached socket.
    cursor: u64,
    /// A FAREWELL response has been queued.
    farewell_queued: bool,
    /// A FAREWELL response has been transmitted.
    farewell_sent: bool,
    /// Received requests without a response, of the kinds that are answered whatever else the peer says.
    open: usize,
    /// Bytes of the responses that are kept.
    kept: usize,
}

impl<W> Session<W> {
    /// A new end. Clients start their ids at 1, servers at [`first_server_id`].
    pub(crate) fn new(first_id: u64) -> Session<W> {
        Session {
            next_seq: 1,
            next_id: first_id,
            recv_seq: 0,
            requests: BTreeMap::new(),
            pending: HashMap::default(),
            responses: VecDeque::new(),
            cursor: 0,
            farewell_queued: false,
            farewell_sent: false,
            open: 0,
            kept: 0,
        }
    }

    /// For a server that meets a client which already has counters of this server's term, but whose own it has dropped
    /// (the client repeats its farewell): messages must be newer than any the client has seen. False if it claims to have
    /// seen more than anybody can have sent.
    pub(crate) fn continue_after(&mut self, peer_recv_seq: u64) -> bool {
        let possible = peer_recv_seq < u64::MAX >> 1;
        if possible {
            self.next_seq = self.next_seq.max(peer_recv_seq + 1);
        }
        possible
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Queues a request and returns its id.
    pub(crate) fn request(&mut self, cmd: Command, payload: &[u8], owner: W) -> u64 {
        let seq = self.take_seq();
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert((cmd, id), seq);
        self.requests.insert(seq, Request { id, cmd, payload: SmallVec::from_slice(payload), owner });
        id
    }

    /// Queues a response.
    pub(crate) fn respond(&mut self, cmd: Command, id: u64, result: Result<&[u8], &Error>) {
        let seq = self.take_seq();
        let (error, payload) = match result {
            Ok(payload) => (0, SmallVec::from_slice(payload)),
            Err(error) => (error_to_wire(error.errno()), SmallVec::new()),
        };
        self.farewell_queued |= cmd == Command::Farewell;
        if cmd.is_answered_alone() {
            self.open = self.open.saturating_sub(1);
        }
        self.kept += kept_bytes(&payload);
        self.responses.push_back(Response { seq, id, cmd, error, payload });
    }

    /// Encodes a greeting request; it goes first on the new socket.
    pub(crate) fn greeting_request(&mut self, out: &mut Vec<u8>, payload: &[u8]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let seq = self.take_seq();
        let head = Head { seq, recv_seq: self.recv_seq, id, cmd: Command::Greeting, response: false, error: 0 };
        codec::encode(out, &head, payload);
        id
    }

    /// Encodes a greeting response; it goes first on the new socket.
    pub(crate) fn greeting_response(&mut self, out: &mut Vec<u8>, id: u64, result: Result<&[u8], &Error>) {
        let (error, payload) = match result {
            Ok(payload) => (0, payload),
            Err(error) => (error_to_wire(error.errno()), &[][..]),
        };
        let seq = self.take_seq();
        let head = Head { seq, recv_seq: self.recv_seq, id, cmd: Command::Greeting, response: true, error };
        codec::encode(out, &head, payload);
    }

    /// A greeted socket replaces whatever was attached before: everything unfinished is transmitted again.
    pub(crate) fn new_socket(&mut self) {
        self.cursor = 0;
    }

    /// A client has been accepted by a server with another term: what it had received and answered belongs to the old
    /// one; what it wants, it still wants.
    pub(crate) fn new_server(&mut self) {
        self.recv_seq = 0;
        self.responses.clear();
        (self.open, self.kept) = (0, 0);
        self.farewell_queued = false;
        self.farewell_sent = false;
    }

    /// Appends frames that have not been transmitted on this socket, in seq order, until `out` has `limit` bytes.
    pub(crate) fn transmit(&mut self, out: &mut Vec<u8>, limit: usize) {
        let mut responses = self.responses.partition_point(|r| r.seq <= self.cursor);
        let mut requests = self.requests.range((Bound::Excluded(self.cursor), Bound::Unbounded)).peekable();
        while out.len() < limit {
            let response = self.responses.get(responses);
            let (head, payload) = match (requests.peek(), response) {
                (Some((seq, request)), response) if response.is_none_or(|r| r.seq > **seq) => {
                    let head = Head {
                        seq: **seq,
                        recv_seq: self.recv_seq,
                        id: request.id,
                        cmd: request.cmd,
                        response: false,
                        error: 0,
                    };
                    let payload = &request.payload;
                    requests.next();
                    (head, payload)
                }
                (_, Some(response)) => {
                    responses += 1;
                    self.farewell_sent |= response.cmd == Command::Farewell;
                    let head = Head {
                        seq: response.seq,
                        recv_seq: self.recv_seq,
                        id: response.id,
                        cmd: response.cmd,
                        response: true,
                        error: response.error,
                    };
                    (head, &response.payload)
                }
                (_, None) => break,
            };
            debug_assert!(head.seq > self.cursor, "invariant 1");
            self.cursor = head.seq;
            codec::encode(out, &head, payload);
        }
    }

    /// Takes note of a received message, not a greeting. The caller has checked that it can handle it, and does so
    /// before it receives the next one: from here on the message counts as received.
    pub(crate) fn receive(&mut self, head: &Head) -> Verdict<W> {
        debug_assert!(head.cmd != Command::Greeting, "invariant 4");
        while self.responses.front().is_some_and(|r| r.seq <= head.recv_seq && r.seq <= self.cursor) {
            let acknowledged = self.responses.pop_front();
            self.kept -= acknowledged.map_or(0, |r| kept_bytes(&r.payload));
        }
        if head.seq <= self.recv_seq {
            return Verdict::Ignore;
        }
        self.recv_seq = head.seq;
        if !head.response {
            self.open += usize::from(head.cmd.is_answered_alone());
            return Verdict::Request;
        }
        let Some(seq) = self.pending.remove(&(head.cmd, head.id)) else { return Verdict::Ignore };
        let request = self.requests.remove(&seq).expect("every pending request is in the queue");
        Verdict::Response(request.owner)
    }

    /// Gives up all pending requests, for a connection that ends for good.
    pub(crate) fn give_up(&mut self) -> Vec<W> {
        self.pending.clear();
        self.responses.clear();
        self.kept = 0;
        std::mem::take(&mut self.requests).into_values().map(|r| r.owner).collect()
    }

    /// Requests without response.
    pub(crate) fn pending(&self) -> usize {
        self.requests.len()
    }

    /// Received requests that are not answered yet, without those whose answer may need further messages of the peer.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Memory of the responses that the peer has not acknowledged.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// Greatest seq received from the peer.
    pub(crate) fn recv_seq(&self) -> u64 {
        self.recv_seq
    }

    /// Has a farewell been answered (the answer may still be in the queue)?
    pub(crate) fn farewell_queued(&self) -> bool {
        self.farewell_queued
    }

    /// Has the answer to a farewell been transmitted?
    pub(crate) fn farewell_sent(&self) -> bool {
        self.farewell_sent
    }
}

fn kept_bytes(payload: &Payload) -> usize {
    size_of::<Response>() + if payload.spilled() { payload.len() } else { 0 }
}

/// Where a server starts the ids of its requests: answers meant for an earlier server then match nothing.
pub(crate) fn first_server_id(term: u64) -> u64 {
    ((term & 0x7fff_ffff) << 32) + 1
}
