//! Peers that flood, starve or lie: bounded memory, the socket is broken for a reason, everybody else goes on.

use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::harness::*;
use crate::net::codec::Head;
use crate::net::command::Command;
use crate::net::server::ServerEvent;
use crate::net::transport::Transport;
use crate::net::{MemTransport, TcpOptions, TcpTransport};
use crate::sync::{Arc, thread};

const LONG: Duration = Duration::from_secs(20);

fn tcp() -> Arc<dyn Transport> {
    TcpTransport::new(TcpOptions::default()).unwrap()
}

fn any() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Requests that are sent faster than they are answered wait in the sender's own socket.
#[test]
fn a_flood_of_requests_is_held_up_in_the_socket_of_its_sender() {
    let transport = tcp();
    let (net, events) = server(&transport, any(), 3, LONG);
    let mut peer = Raw::connect(&transport, net.local_addr());
    peer.greet(5, 1, 0, 0);
    let ServerEvent::Greeting { token, .. } = events.recv().unwrap() else { panic!("a greeting") };
    net.greeting_done(token, Ok(()));
    assert_eq!(peer.receive().unwrap().0.cmd, Command::Greeting);
    let flood = thread::spawn(move || {
        for seq in 2..20_002 {
            peer.request(seq, seq, Command::GetRoots, &[]);
        }
        peer
    });
    // Nobody answers: what has been taken from the socket stays bounded.
    let mut taken = Vec::new();
    let calm = Instant::now() + Duration::from_millis(500);
    while Instant::now() < calm {
        taken.extend(events.try_iter());
        thread::sleep(Duration::from_millis(5));
    }
    assert!((1000..1200).contains(&taken.len()), "{} requests were taken", taken.len());
    // Once they are answered it goes on, to the last one.
    let mut answered = 0;
    let deadline = Instant::now() + LONG;
    while answered < 20_000 {
        for event in taken.drain(..) {
            let ServerEvent::Request { rid, id, cmd, .. } = event else { panic!("{event:?}") };
            net.respond(rid, id, cmd, Ok(zeros(cmd)));
            answered += 1;
        }
        taken.extend(events.recv_timeout(Duration::from_millis(100)));
        assert!(Instant::now() < deadline, "{answered} requests were answered");
    }
    drop(flood.join().unwrap());
    net.stop();
}

/// Answers are kept until they are acknowledged; a peer that never does must not fill the memory.
#[test]
fn answers_that_are_never_acknowledged_end_the_socket() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let (_, thread) = answer_all(&net, events);
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(5, 1, 0, 0);
    let mut seq = 1;
    // 584 bytes each, plus the record of it: 64 MiB are full after about 100,000.
    let ended = loop {
        seq += 1;
        peer.request(seq, seq, Command::SrchGetCompact, &[]);
        if peer.receive().is_none() {
            break seq;
        }
        assert!(seq < 200_000, "nothing is ever refused");
    };
    assert!(ended > 50_000, "refused after {ended} answers");
    // It may come back and acknowledge, and is served again.
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(5, seq + 1, 3, 0);
    let (head, _) = peer.receive().unwrap();
    assert_eq!((head.cmd, head.error), (Command::Greeting, 0));
    net.stop();
    drop(net);
    thread.join().unwrap();
}

/// Sockets that connect and stay silent must not keep others out: the oldest of them goes.
#[test]
fn silent_sockets_do_not_keep_clients_out() {
    let transport = tcp();
    let (net, events) = server(&transport, any(), 3, LONG);
    let (_, thread) = answer_all(&net, events);
    let at = net.local_addr();
    let mut silent: Vec<Raw> = (0..300).map(|_| Raw::connect(&transport, at)).collect();
    // A greeting that comes byte by byte counts as silence, too.
    let slow = Raw::connect(&transport, at);
    slow.stream.write(&[0]).unwrap();
    let mut client = Raw::connect(&transport, at);
    client.greet(5, 1, 0, 0);
    let (head, _) = client.receive().unwrap();
    assert_eq!((head.cmd, head.error), (Command::Greeting, 0));
    assert_eq!(silent[0].receive(), None, "the oldest silent one was closed");
    client.request(2, 2, Command::GetRoots, &[]);
    assert_eq!(client.receive().unwrap().0.cmd, Command::GetRoots);
    net.stop();
    drop((net, silent));
    thread.join().unwrap();
}

/// The number was added to without a look: a greeting could stop the thread by an overflow.
#[test]
fn a_greeting_that_has_received_the_last_number_is_refused() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let (_, thread) = answer_all(&net, events);
    const FAREWELL: u64 = 1;
    for recv_seq in [u64::MAX, u64::MAX - 1, u64::MAX >> 1] {
        let mut peer = Raw::connect(&hub, addr(1));
        let greeting = greeting(5, 3, FAREWELL);
        let id = recv_seq - (u64::MAX >> 1) + 1;
        let head = Head { seq: 1, recv_seq, id: id.max(1), cmd: Command::Greeting, response: false, error: 0 };
        peer.send(head, greeting.as_bytes());
        assert_ne!(peer.receive().map_or(5, |(head, _)| head.error), 0);
        net.drop_client(5);
    }
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(6, 1, 0, 0);
    assert_eq!(peer.receive().unwrap().0.error, 0, "others are let in");
    net.stop();
    drop(net);
    thread.join().unwrap();
}

/// A server that is gone without a word is noticed by its successor's record, long before the connection times out.
#[test]
fn a_client_leaves_a_silent_server_for_the_next_one() {
    let hub: Arc<dyn Transport> = MemTransport::new();
    let (old, old_events) = server(&hub, addr(1), 3, LONG);
    let (_, old_thread) = answer_all(&old, old_events);
    let (new, new_events) = server(&hub, addr(2), 4, LONG);
    let (_, new_thread) = answer_all(&new, new_events);
    let place = Place::at(addr(1), 3);
    let client = client_that_looks(&hub, 5, &place);
    eventually("the first server", || (client.status().term == 3).then_some(()));
    let elected = Instant::now();
    *place.server.lock() = Some((addr(2), 4));
    eventually("the next server", || (client.status().term == 4).then_some(()));
    assert!(elected.elapsed() < Duration::from_secs(3), "{:?}", elected.elapsed());
    client.close();
    for (net, thread) in [(old, old_thread), (new, new_thread)] {
        net.stop();
        drop(net);
        thread.join().unwrap();
    }
}
