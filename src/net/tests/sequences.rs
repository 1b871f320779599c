//! The conversations of `net-sequences.json`: every header that two sessions exchange, through breaks and fail-over.

use std::collections::VecDeque;

use serde_json::Value;

use super::vectors::{load, number};
use crate::net::codec::{Frame, FrameReader, Head};
use crate::net::command::Command;
use crate::net::session::{Session, Verdict};

/// Both ends of the conversations, which continue one another.
struct Replay {
    client: Session<()>,
    servers: Vec<Session<()>>,
    /// Who the client's greeted socket leads to.
    attached: Option<usize>,
    /// The client's remembered server.
    greeted: Option<usize>,
    to_server: VecDeque<Head>,
    to_client: VecDeque<Head>,
}

fn command(name: &Value) -> Command {
    let wanted = name.as_str().unwrap().replace('_', "").to_lowercase();
    *Command::ALL.iter().find(|c| format!("{c:?}").to_lowercase() == wanted).expect("a command")
}

/// All frames a session has for its socket.
fn transmit(session: &mut Session<()>) -> Vec<Head> {
    let mut bytes = Vec::new();
    session.transmit(&mut bytes, usize::MAX);
    heads(&bytes)
}

fn heads(bytes: &[u8]) -> Vec<Head> {
    let mut reader = FrameReader::new();
    reader.space()[..bytes.len()].copy_from_slice(bytes);
    reader.filled(bytes.len());
    let mut heads = Vec::new();
    while let Some(Frame { head, .. }) = reader.next().unwrap() {
        heads.push(head);
    }
    heads
}

fn server_nr(message: &Value) -> usize {
    let direction = message["direction"].as_str().unwrap();
    if direction.contains("server2") { 1 } else { 0 }
}

impl Replay {
    /// Queues what the message of the script must be made of, if it is not queued already.
    fn queue(&mut self, message: &Value, known: bool) {
        let cmd = command(&message["cmd"]);
        let (response, id) = (message["response"].as_bool().unwrap(), number(&message["id"]));
        if known {
            return;
        }
        let from_client = message["direction"].as_str().unwrap().starts_with("client");
        let session = if from_client { &mut self.client } else { &mut self.servers[server_nr(message)] };
        if response {
            session.respond(cmd, id, Ok(&[]));
        } else {
            let given = session.request(cmd, &[], ());
            assert_eq!(given, id, "{message}");
        }
    }
}

/// The script names what is transmitted; what is *queued* when is told here, by (conversation, index): messages that
/// were queued before the script's order of transmission.
#[test]
fn a_mount_is_replayed() {
    let script = load("net-sequences");
    let messages = script[0]["messages"].as_array().unwrap();
    let mut client = Session::new(1);
    let mut server = Session::new(1);
    // The lock request is queued before there is a connection, so the greeting gets the second number.
    client.request(Command::Lock, &[], ());
    let mut bytes = Vec::new();
    let id = client.greeting_request(&mut bytes, &[]);
    check(&heads(&bytes)[0], &messages[0]);
    bytes.clear();
    server.greeting_response(&mut bytes, id, Ok(&[]));
    check(&heads(&bytes)[0], &messages[1]);
    client.new_server();
    client.new_socket();
    server.new_socket();
    let mut replay = Replay {
        client,
        servers: vec![server, Session::new(1)],
        attached: Some(0),
        greeted: Some(0),
        to_server: VecDeque::new(),
        to_client: VecDeque::new(),
    };
    for (i, message) in messages.iter().enumerate().skip(2) {
        replay.queue(message, i == 2);
        replay.exchange(message);
    }
    replay.breaks(script[1]["messages"].as_array().unwrap());
    replay.fails_over(script[2]["messages"].as_array().unwrap());
}

/// Compares a header with the script's. Greeting responses may carry any `recv_seq`.
fn check(head: &Head, message: &Value) {
    assert_eq!(head.cmd, command(&message["cmd"]), "{message}");
    assert_eq!(head.response, message["response"].as_bool().unwrap(), "{message}");
    assert_eq!(head.seq, number(&message["seq"]), "{message}");
    assert_eq!(head.id, number(&message["id"]), "{message}");
    let greeted = head.cmd == Command::Greeting && head.response;
    if !greeted && !message["recv_seq"].is_null() {
        assert_eq!(head.recv_seq, number(&message["recv_seq"]), "{message}");
    }
}

impl Replay {
    /// Transmits one message of the script and lets the other end receive it, unless it was lost.
    fn exchange(&mut self, message: &Value) {
        let from_client = message["direction"].as_str().unwrap().starts_with("client");
        let server = server_nr(message);
        assert_eq!(self.attached, Some(server), "{message}");
        let (from, to, queue) = if from_client {
            (&mut self.client, &mut self.servers[server], &mut self.to_server)
        } else {
            (&mut self.servers[server], &mut self.client, &mut self.to_client)
        };
        queue.extend(transmit(from));
        let head = queue.pop_front().unwrap_or_else(|| panic!("nothing to send for {message}"));
        check(&head, message);
        let result = message["result"].as_str().unwrap();
        if result.starts_with("lost") {
            return;
        }
        let verdict = to.receive(&head);
        match result {
            "processed" if head.response => assert_eq!(verdict, Verdict::Response(()), "{message}"),
            "processed" => assert_eq!(verdict, Verdict::Request, "{message}"),
            "dropped as duplicate" => assert_eq!(verdict, Verdict::Ignore, "{message}"),
            other => panic!("unknown result {other}"),
        }
    }

    /// The socket breaks, and another one to `server` is greeted.
    fn reconnect(&mut self, server: usize, messages: &[Value]) {
        self.attached = None;
        self.to_server.clear();
        self.to_client.clear();
        let mut bytes = Vec::new();
        let id = self.client.greeting_request(&mut bytes, &[]);
        check(&heads(&bytes)[0], &messages[0]);
        bytes.clear();
        // The script's greeting responses have seq 1: the original answers before it takes the old counters over.
        Session::<()>::new(1).greeting_response(&mut bytes, id, Ok(&[]));
        check(&heads(&bytes)[0], &messages[1]);
        if self.greeted != Some(server) {
            let mut unused = Vec::new();
            self.servers[server].greeting_response(&mut unused, id, Ok(&[]));
            self.client.new_server();
        }
        self.greeted = Some(server);
        self.attached = Some(server);
        self.client.new_socket();
        self.servers[server].new_socket();
    }

    fn breaks(&mut self, messages: &[Value]) {
        self.queue(&messages[0], false);
        self.exchange(&messages[0]);
        self.queue(&messages[1], false);
        self.exchange(&messages[1]);
        // Queued while there is no socket.
        self.queue(&messages[6], false);
        self.reconnect(0, &messages[2..4]);
        for (i, message) in messages.iter().enumerate().skip(4) {
            self.queue(message, i != 8);
            self.exchange(message);
        }
    }

    fn fails_over(&mut self, messages: &[Value]) {
        self.queue(&messages[0], false);
        self.exchange(&messages[0]);
        self.queue(&messages[1], false);
        self.exchange(&messages[1]);
        self.queue(&messages[2], false);
        self.exchange(&messages[2]);
        self.queue(&messages[7], false);
        self.reconnect(1, &messages[3..5]);
        for (i, message) in messages.iter().enumerate().skip(5) {
            self.queue(message, i == 6 || i == 7);
            self.exchange(message);
        }
    }
}
