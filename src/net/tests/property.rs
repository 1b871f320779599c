//! Two sessions over a byte stream that breaks anywhere, with servers that come and go.
//!
//! Whatever happens: one server executes a request at most once and in the order of queueing; every request of the client
//! is answered exactly once in the end, and every request of the last server too.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::net::codec::FrameReader;
use crate::net::command::Command;
use crate::net::session::{Session, Verdict, first_server_id};

/// One end with what it has still to answer.
struct End {
    session: Session<u64>,
    reader: FrameReader,
    /// Bytes on their way to this end.
    wire: Vec<u8>,
    /// Requests received and not answered.
    open: Vec<u64>,
    /// How often each of the peer's requests was executed here, in order.
    executed: Vec<u64>,
    /// How often each own request was answered.
    answered: BTreeMap<u64, u32>,
    asked: u64,
}

impl End {
    fn new(first_id: u64) -> End {
        End {
            session: Session::new(first_id),
            reader: FrameReader::new(),
            wire: Vec::new(),
            open: Vec::new(),
            executed: Vec::new(),
            answered: BTreeMap::new(),
            asked: 0,
        }
    }

    fn ask(&mut self, cmd: Command) {
        self.asked += 1;
        let name = self.asked;
        self.session.request(cmd, &name.to_le_bytes(), name);
    }

    /// Answers the n-th open request; requests are named by their payload.
    fn answer(&mut self, nth: usize, cmd: Command) {
        if !self.open.is_empty() {
            let id = self.open.remove(nth % self.open.len());
            self.session.respond(cmd, id, Ok(&[]));
        }
    }

    /// Puts frames on the wire to `peer`.
    fn transmit(&mut self, peer: &mut End, limit: usize) {
        self.session.transmit(&mut peer.wire, limit);
    }

    /// Receives at most `n` bytes.
    fn receive(&mut self, n: usize) {
        let n = n.min(self.wire.len()).min(self.reader.space().len());
        self.reader.space()[..n].copy_from_slice(&self.wire[..n]);
        self.wire.drain(..n);
        self.reader.filled(n);
        while let Some(frame) = self.reader.next().expect("nobody damages bytes") {
            match self.session.receive(&frame.head) {
                Verdict::Ignore => {}
                Verdict::Request => {
                    let name = u64::from_le_bytes(frame.payload.try_into().expect("a name"));
                    self.executed.push(name);
                    self.open.push(frame.head.id);
                }
                Verdict::Response(name) => *self.answered.entry(name).or_default() += 1,
            }
        }
    }

    fn cut(&mut self) {
        self.wire.clear();
        self.reader = FrameReader::new();
    }

    fn check_executed(&self) {
        assert!(self.executed.is_sorted_by(|a, b| a < b), "each once and in order: {:?}", self.executed);
    }

    fn check_answered(&self) {
        assert!(self.answered.values().all(|times| *times == 1), "answered twice: {:?}", self.answered);
    }
}

#[derive(Clone, Debug)]
enum Step {
    ClientAsks,
    ServerAsks,
    ClientAnswers(usize),
    ServerAnswers(usize),
    ClientSends(usize),
    ServerSends(usize),
    ClientReceives(usize),
    ServerReceives(usize),
    Break,
    NewServer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::ClientAsks),
        2 => Just(Step::ServerAsks),
        3 => any::<usize>().prop_map(Step::ClientAnswers),
        4 => any::<usize>().prop_map(Step::ServerAnswers),
        5 => (1usize..200).prop_map(Step::ClientSends),
        5 => (1usize..200).prop_map(Step::ServerSends),
        6 => (1usize..150).prop_map(Step::ClientReceives),
        6 => (1usize..150).prop_map(Step::ServerReceives),
        2 => Just(Step::Break),
        1 => Just(Step::NewServer),
    ]
}

struct World {
    client: End,
    server: End,
    term: u64,
}

impl World {
    fn reconnect(&mut self, new_server: bool) {
        self.client.cut();
        self.server.cut();
        if new_server {
            self.server.check_executed();
            self.server.check_answered();
            self.term += 1;
            self.server = End::new(first_server_id(self.term));
            self.client.session.new_server();
            // Answers to the old server are dropped by the owner's epoch.
            self.client.open.clear();
            self.client.executed.clear();
        }
        let mut unused = Vec::new();
        let id = self.client.session.greeting_request(&mut unused, &[]);
        self.server.session.greeting_response(&mut unused, id, Ok(&[]));
        self.client.session.new_socket();
        self.server.session.new_socket();
    }

    fn take(&mut self, step: &Step) {
        let World { client, server, .. } = self;
        match step {
            Step::ClientAsks => client.ask(Command::Lock),
            Step::ServerAsks => server.ask(Command::Lock),
            Step::ClientAnswers(nth) => client.answer(*nth, Command::Lock),
            Step::ServerAnswers(nth) => server.answer(*nth, Command::Lock),
            Step::ClientSends(limit) => client.transmit(server, *limit),
            Step::ServerSends(limit) => server.transmit(client, *limit),
            Step::ClientReceives(n) => client.receive(*n),
            Step::ServerReceives(n) => server.receive(*n),
            Step::Break => self.reconnect(false),
            Step::NewServer => self.reconnect(true),
        }
    }

    fn settle(&mut self) {
        self.reconnect(false);
        for _ in 0..10_000 {
            for step in [
                Step::ClientAnswers(0),
                Step::ServerAnswers(0),
                Step::ClientSends(usize::MAX),
                Step::ServerSends(usize::MAX),
                Step::ClientReceives(usize::MAX),
                Step::ServerReceives(usize::MAX),
            ] {
                self.take(&step);
            }
            if self.client.session.pending() == 0 && self.server.session.pending() == 0 {
                return;
            }
        }
        panic!("requests without answer: {} and {}", self.client.session.pending(), self.server.session.pending());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_request_once_and_in_order(steps in prop::collection::vec(step(), 1..300)) {
        let mut world = World { client: End::new(1), server: End::new(first_server_id(1)), term: 1 };
        world.reconnect(false);
        for step in &steps {
            world.take(step);
        }
        world.settle();
        for end in [&world.client, &world.server] {
            end.check_executed();
            end.check_answered();
            prop_assert_eq!(end.answered.len() as u64, end.asked);
        }
    }
}

/// What goes wrong in the original: messages not yet transmitted when a socket breaks are put behind those queued later,
/// and are then taken for duplicates by the receiver.
#[test]
fn defect_44_messages_keep_their_order_over_a_break() {
    let mut client = Session::new(1);
    let mut server = Session::<()>::new(1);
    for _ in 0..4 {
        client.request(Command::Lock, &[], ());
    }
    let mut wire = Vec::new();
    client.transmit(&mut wire, 40);
    // Two frames are out, two are not; the socket breaks; more is queued; a new socket.
    client.request(Command::Farewell, &[], ());
    client.new_socket();
    wire.clear();
    client.transmit(&mut wire, usize::MAX);
    let mut reader = FrameReader::new();
    reader.space()[..wire.len()].copy_from_slice(&wire);
    reader.filled(wire.len());
    let mut got = Vec::new();
    while let Some(frame) = reader.next().unwrap() {
        assert_eq!(server.receive(&frame.head), Verdict::Request);
        got.push(frame.head.seq);
    }
    assert_eq!(got, [1, 2, 3, 4, 5]);
}

#[test]
fn servers_number_their_requests_by_term() {
    assert_eq!(first_server_id(1), (1 << 32) + 1);
    assert_eq!(first_server_id(1 << 31), 1);
    assert_eq!(first_server_id(u64::MAX), (0x7fff_ffff << 32) + 1);
}

/// An answer is kept until the client has shown that it has it, also when it arrives before the client's next message.
#[test]
fn answers_are_kept_until_acknowledged() {
    let mut server = Session::<()>::new(1);
    server.respond(Command::Statfs, 1, Ok(&[]));
    for _ in 0..3 {
        let mut wire = Vec::new();
        server.new_socket();
        server.transmit(&mut wire, usize::MAX);
        assert_eq!(wire.len(), 32);
    }
    let ack = crate::net::codec::Head { seq: 9, recv_seq: 1, id: 2, cmd: Command::Statfs, response: false, error: 0 };
    assert_eq!(server.receive(&ack), Verdict::Request);
    let mut wire = Vec::new();
    server.new_socket();
    server.transmit(&mut wire, usize::MAX);
    assert!(wire.is_empty());
}
