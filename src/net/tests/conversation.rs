//! Whole conversations between a client and servers, over the in-process network and over TCP.

use std::net::SocketAddr;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::harness::*;
use crate::error::Errno;
use crate::format::consts::{GREETING_FAREWELL, GREETING_FLUSHES, GREETING_OPENS, GREETING_QUORUM};
use crate::format::layout::NetGreeting;
use crate::net::client::{ClientHandler, Reply};
use crate::net::codec::Head;
use crate::net::command::Command;
use crate::net::server::ServerEvent;
use crate::net::transport::Transport;
use crate::net::{ClientConn, MemTransport, ServerNet, TcpOptions, TcpTransport};
use crate::sync::{Arc, thread};

const LONG: Duration = Duration::from_secs(20);

fn request_and_farewell(transport: Arc<dyn Transport>, at: SocketAddr) {
    let (net, events) = server(&transport, at, 7, LONG);
    let (seen, thread) = answer_all(&net, events);
    let ear = Arc::new(Ear::default());
    let place = Place::at(net.local_addr(), 7);
    let conn = client(&transport, 42, &place, &ear);
    assert_eq!(ok(conn.request(Command::GetLogTrees, &[])).len(), 472);
    assert_eq!(ok(conn.request(Command::AllocInodes, &[1; 8])).len(), 16);
    conn.lock_request(&[3; 48]).unwrap();
    eventually("the lock response", || ear.heard().contains(&Heard::LockResponse(vec![0; 48])).then_some(()));
    net.request(42, Command::OpenInoMap, &[9; 16]).unwrap();
    eventually("the answer", || {
        let seen = seen.lock();
        seen.iter().any(|e| matches!(e, ServerEvent::Response { rid: 42, cmd: Command::OpenInoMap, .. })).then_some(())
    });
    conn.farewell().unwrap();
    conn.close();
    eventually("the client is forgotten", || net.clients().is_empty().then_some(()));
    assert_eq!(ear.heard()[0], Heard::NewServer(7));
    net.stop();
    drop(net);
    thread.join().unwrap();
    assert!(!seen.lock().iter().any(|e| matches!(e, ServerEvent::ClientLost { .. })));
}

#[test]
fn a_mount_talks_and_leaves_in_process() {
    request_and_farewell(MemTransport::new(), addr(1));
}

#[test]
fn a_mount_talks_and_leaves_over_tcp() {
    let transport = TcpTransport::new(TcpOptions::default()).unwrap();
    request_and_farewell(transport, SocketAddr::from(([127, 0, 0, 1], 0)));
}

fn payload_of(n: usize) -> Vec<u8> {
    vec![n as u8; 48]
}

fn grants(ear: &Ear) -> Vec<u8> {
    let grant = |heard: &Heard| match heard {
        Heard::LockResponse(payload) => Some(payload[0]),
        _ => None,
    };
    ear.heard.lock().iter().filter_map(grant).collect()
}

/// What has no answer is asked again at the new server, in order; what was answered for the old one is not.
#[test]
fn requests_survive_a_change_of_server() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let (old, events) = server(&hub, addr(1), 3, LONG);
    let ear = Arc::new(Ear { keep: true, ..Ear::default() });
    let place = Place::at(addr(1), 3);
    let conn = client(&hub, 5, &place, &ear);
    for n in 0..10u8 {
        conn.lock_request(&[n; 48]).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 10 {
        match events.recv().unwrap() {
            ServerEvent::Greeting { token, first_contact, .. } => {
                assert!(first_contact);
                old.greeting_done(token, Ok(()));
                old.request(5, Command::Lock, &[1; 48]).unwrap();
            }
            ServerEvent::Request { id, payload, .. } => {
                seen.push(payload);
                if seen.len() <= 3 {
                    old.respond(5, id, Command::Lock, Ok(payload_of(seen.len())));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let stale = eventually("the invalidation", || ear.kept.lock().pop());
    eventually("three grants", || (grants(&ear) == [1, 2, 3]).then_some(()));
    // Fail-over.
    *place.server.lock() = Some((addr(2), 9));
    let (new, events) = server(&hub, addr(2), 9, LONG);
    old.stop();
    let mut again = Vec::new();
    while again.len() < 7 {
        match events.recv().unwrap() {
            ServerEvent::Greeting { token, greeting, first_contact, .. } => {
                assert_eq!((greeting.server_term.get(), first_contact), (3, true));
                new.greeting_done(token, Ok(()));
            }
            ServerEvent::Request { id, payload, .. } => {
                again.push(payload);
                new.respond(5, id, Command::Lock, Ok(payload_of(3 + again.len())));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(again, seen[3..]);
    eventually("all grants", || (grants(&ear) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).then_some(()));
    stale.send(Ok(vec![0; 48]));
    ok(conn.request_in_background(&events, &new));
    assert_eq!(ear.heard()[0], Heard::NewServer(3));
    assert!(ear.heard().contains(&Heard::NewServer(9)));
}

/// Forced down: what waits fails, what comes later fails, nothing hangs.
#[test]
fn forcing_down_completes_everything() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let place = Place::at(addr(1), 3);
    *place.server.lock() = None;
    let conn = client(&hub, 5, &place, &Arc::default());
    let waiting = {
        let conn = conn.clone();
        thread::spawn(move || conn.request(Command::GetRoots, &[]))
    };
    eventually("the request waits", || (conn.status().pending == 1).then_some(()));
    assert!(conn.status().last_error.is_none_or(|e| e.is(Errno::ENOENT)));
    conn.force_down();
    assert!(waiting.join().unwrap().unwrap_err().is(Errno::ECONNABORTED));
    assert_eq!(conn.request(Command::GetRoots, &[]).unwrap_err().errno(), Errno::ENOLINK);
    assert_eq!(conn.lock_request(&[0; 48]).unwrap_err().errno(), Errno::ENOLINK);
    assert!(conn.farewell().is_err());
    conn.close();
}

/// Nobody knows of a mount that has never greeted: it just goes.
#[test]
fn a_mount_without_server_leaves_at_once() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let conn = client(&hub, 5, &Place::at(addr(1), 3), &Arc::default());
    conn.farewell().unwrap();
    conn.close();
}

/// The answer to the farewell is lost with the server; the mounted client item is gone, so the mount is done.
#[test]
fn the_missing_item_confirms_a_farewell() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let place = Place::at(addr(1), 3);
    let conn = client(&hub, 5, &place, &Arc::default());
    let ServerEvent::Greeting { token, .. } = events.recv().unwrap() else { panic!("a greeting") };
    net.greeting_done(token, Ok(()));
    eventually("it is connected", || conn.status().connected.then_some(()));
    let leaving = {
        let conn = conn.clone();
        thread::spawn(move || conn.farewell())
    };
    assert!(matches!(events.recv().unwrap(), ServerEvent::Request { cmd: Command::Farewell, .. }));
    *place.mounted.lock() = false;
    net.stop();
    leaving.join().unwrap().unwrap();
    conn.close();
}

/// A client that does not read holds up neither the server nor other clients, and gets everything in the end.
#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    for transport in [MemTransport::new() as Arc<dyn Transport>, TcpTransport::new(TcpOptions::default()).unwrap()] {
        let tcp = SocketAddr::from(([127, 0, 0, 1], 0));
        // Port 0 stands for "any" over TCP, and for itself in process.
        let (net, events) = server(&transport, tcp, 3, LONG);
        let mut slow = Raw::connect(&transport, net.local_addr());
        slow.greet(5, 1, 0, 0);
        let ServerEvent::Greeting { token, .. } = events.recv().unwrap() else { panic!("a greeting") };
        net.greeting_done(token, Ok(()));
        let total = 300_000u64;
        for _ in 0..total {
            net.request(5, Command::Lock, &[0; 48]).unwrap();
        }
        let (_, answering) = answer_all(&net, events);
        let quick = client(&transport, 6, &Place::at(net.local_addr(), 3), &Arc::default());
        ok(quick.request(Command::Statfs, &[]));
        assert_eq!(slow.receive().unwrap().0.cmd, Command::Greeting);
        // Some may have been queued, and numbered, before the greeting was answered.
        let mut seq = 0;
        for _ in 0..total {
            let (head, _) = slow.receive().unwrap();
            assert!(head.seq > seq);
            seq = head.seq;
        }
        quick.close();
        net.stop();
        drop(net);
        answering.join().unwrap();
    }
}

trait Background {
    fn request_in_background(
        &self,
        events: &crossbeam::channel::Receiver<ServerEvent>,
        net: &ServerNet,
    ) -> crate::Result<Vec<u8>>;
}

impl Background for Arc<ClientConn> {
    /// Makes a request and answers it; nothing else may arrive at the server.
    fn request_in_background(
        &self,
        events: &crossbeam::channel::Receiver<ServerEvent>,
        net: &ServerNet,
    ) -> crate::Result<Vec<u8>> {
        let conn = self.clone();
        let asking = thread::spawn(move || conn.request(Command::Statfs, &[]));
        let ServerEvent::Request { rid, id, cmd: Command::Statfs, .. } = events.recv().unwrap() else {
            panic!("an answer to the old server, or anything else")
        };
        net.respond(rid, id, Command::Statfs, Ok(zeros(Command::Statfs)));
        asking.join().unwrap()
    }
}

/// Inside the process a message is a function call; what panics there must not leave anybody waiting.
#[test]
fn a_panic_in_a_handler_breaks_the_connection() {
    struct Panics;
    impl ClientHandler for Panics {
        fn request(&self, _: Command, _: Vec<u8>, _: Reply) -> crate::Result<()> {
            panic!("a bug in a handler");
        }
        fn lock_response(&self, _: Vec<u8>) -> crate::Result<()> {
            Ok(())
        }
        fn new_server(&self, _: u64) {}
        fn evicted(&self, _: crate::Error) {}
    }
    let hub: Arc<dyn Transport> = MemTransport::new();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let place = Place::at(addr(1), 3);
    let conn = client_with(&hub, 5, &place, Arc::new(Panics));
    let ServerEvent::Greeting { token, .. } = events.recv().unwrap() else { panic!("a greeting") };
    net.greeting_done(token, Ok(()));
    eventually("it is connected", || conn.status().connected.then_some(()));
    let asking = net.clone();
    // Whoever runs the handler, the server's thread or the client's, gets the panic.
    let _ = thread::spawn(move || asking.request(5, Command::SyncLogTrees, &[])).join();
    // The request is not lost: it comes again on the next socket, and again.
    assert!(matches!(events.recv().unwrap(), ServerEvent::Greeting { .. }) || !conn.status().connected);
    net.stop();
    conn.close();
}

/// What a client can do beyond the original is told in bits of the greeting that the original ignores. Should a server refuse
/// them or close on them, the client comes in without.
#[test]
fn a_server_that_refuses_unknown_bits_is_greeted_without_them() {
    for answers in [true, false] {
        let hub: Arc<dyn Transport> = MemTransport::new();
        let listener = hub.listen(addr(1)).unwrap();
        let ear = Arc::new(Ear::default());
        let conn = client(&hub, 5, &Place::at(addr(1), 3), &ear);
        let mut flags = Vec::new();
        loop {
            let mut raw = Raw::new(listener.accept().unwrap());
            let (head, payload) = raw.receive().unwrap();
            let mut greeting = NetGreeting::read_from_bytes(&payload).unwrap();
            flags.push(greeting.flags.get());
            let known = GREETING_FAREWELL | GREETING_QUORUM;
            let refused = greeting.flags.get() & !known != 0;
            if refused && !answers {
                raw.stream.shutdown();
                continue;
            }
            (greeting.server_term, greeting.flags) = (3.into(), 0.into());
            let error = if refused { 22 } else { 0 };
            let payload = if refused { &[][..] } else { greeting.as_bytes() };
            raw.send(Head { recv_seq: 0, response: true, error, ..head }, payload);
            if !refused {
                break;
            }
            raw.stream.shutdown();
        }
        assert_eq!(flags, [GREETING_FLUSHES | GREETING_OPENS, 0], "answers: {answers}");
        conn.force_down();
    }
}
