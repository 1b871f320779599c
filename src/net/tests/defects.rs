//! Known weaknesses of the original's connections, each with what ours does instead (`spec/05 §12.1`).

use std::time::{Duration, Instant};

use super::harness::*;
use crate::error::Errno;
use crate::net::codec::Head;
use crate::net::command::Command;
use crate::net::server::ServerEvent;
use crate::net::transport::Transport;
use crate::net::{MemTransport, TcpOptions, TcpTransport};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Arc, thread};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(60);

fn hub() -> Arc<dyn Transport> {
    MemTransport::new()
}

/// A request that cannot be handled counted as received, so its sender waited for ever. It breaks the socket uncounted,
/// and what is sent next is taken.
#[test]
fn defect_38_a_refused_message_does_not_count_as_received() {
    let hub = hub();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let (seen, thread) = answer_all(&net, events);
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(5, 1, 0, 0);
    assert_eq!(peer.receive().unwrap().0.cmd, Command::Greeting);
    peer.request(2, 2, Command::Lock, &[0; 47]);
    assert_eq!(peer.receive(), None, "the socket is broken");
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(5, 3, 3, 0);
    assert_eq!(peer.receive().unwrap().0.cmd, Command::Greeting);
    peer.request(2, 2, Command::Lock, &[0; 48]);
    let (head, payload) = peer.receive().unwrap();
    assert_eq!((head.cmd, head.id, payload.len()), (Command::Lock, 2, 48));
    // Other requests with a wrong length are answered without asking anybody.
    peer.request(4, 4, Command::AllocInodes, &[0; 7]);
    assert_eq!(peer.receive().unwrap().0.error, 5);
    net.stop();
    drop(net);
    thread.join().unwrap();
    assert_eq!(seen.lock().iter().filter(|e| matches!(e, ServerEvent::Request { .. })).count(), 1);
}

/// A socket that closed without a good greeting was treated as a lost client with rid 0 and stopped the server.
#[test]
fn defect_42_nothing_happens_before_a_good_greeting() {
    let hub = hub();
    let (net, events) = server(&hub, addr(1), 3, SHORT);
    // A port scan.
    drop(Raw::connect(&hub, addr(1)));
    // Garbage.
    let mut peer = Raw::connect(&hub, addr(1));
    peer.stream.write(&[0xff; 500]).unwrap();
    assert_eq!(peer.receive(), None);
    // A request before the greeting.
    let mut peer = Raw::connect(&hub, addr(1));
    peer.request(1, 1, Command::AllocInodes, &[0; 8]);
    assert_eq!(peer.receive(), None);
    // Greetings for other volumes, other versions, impossible rids, wrong lengths.
    let mut wrong = [greeting(5, 0, 0), greeting(5, 0, 0), greeting(0, 0, 0), greeting(u64::MAX, 0, 0)];
    wrong[0].fsid.set(1);
    wrong[1].fmt_vers.set(1);
    for greeting in wrong {
        let mut peer = Raw::connect(&hub, addr(1));
        peer.request(1, 1, Command::Greeting, zerocopy::IntoBytes::as_bytes(&greeting));
        assert_eq!(peer.receive().unwrap().0.error, 5);
        assert_eq!(peer.receive(), None);
    }
    let mut peer = Raw::connect(&hub, addr(1));
    peer.request(1, 1, Command::Greeting, &[0; 39]);
    assert_eq!(peer.receive().unwrap().0.error, 5);
    // A refused reconnect: this server has never seen the client.
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(5, 1, 3, 0);
    assert_eq!(peer.receive().unwrap().0.error, 5);
    thread::sleep(SHORT * 3);
    net.stop();
    drop(net);
    assert!(events.try_iter().next().is_none(), "the server thread has heard of nothing");
}

/// A mount whose state was reclaimed was let in by the next server, or reconnected in a tight loop. It is refused, tries
/// at a decent pace, looks up its mounted client item, and gives up when that is gone.
#[test]
fn defect_43_a_reclaimed_mount_is_refused_and_notices() {
    let hub = hub();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let (_, thread) = answer_all(&net, events);
    let ear = Arc::new(Ear::default());
    let place = Place::at(addr(1), 3);
    let conn = client(&hub, 5, &place, &ear);
    ok(conn.request(Command::GetLastSeq, &[]));
    // Its state is dropped, as after fencing; its item is still there at first.
    net.drop_client(5);
    let refused = Instant::now();
    eventually("refusal", || conn.status().last_error.filter(|e| e.errno() == Errno::EINVAL));
    *place.mounted.lock() = false;
    // Refused greetings are not what counts here: the next server refuses after it has greeted.
    net.stop();
    drop(net);
    thread.join().unwrap();
    let greetings = Arc::new(AtomicU32::new(0));
    let listener = hub.listen(addr(1)).unwrap();
    let (count, accepting) = (greetings.clone(), listener.clone());
    let impostor = thread::spawn(move || {
        while let Ok(stream) = accepting.accept() {
            let mut peer = Raw::new(stream);
            if let Some((head, _)) = peer.receive() {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = Head { response: true, ..head };
                peer.send(answer, zerocopy::IntoBytes::as_bytes(&greeting(5, 3, 0)));
            }
            peer.stream.shutdown();
        }
    });
    eventually("the end of the mount", || ear.heard().contains(&Heard::Evicted).then_some(()));
    let attempts = greetings.load(Ordering::Relaxed);
    assert!(attempts <= 4, "{attempts} attempts in {:?}", refused.elapsed());
    assert!(conn.request(Command::GetLastSeq, &[]).unwrap_err().errno() == Errno::ENOLINK);
    listener.close();
    impostor.join().unwrap();
}

/// A farewell whose answer was lost: the client comes back only for that, and is forgotten once.
#[test]
fn defect_48_coming_back_for_the_farewell_is_harmless() {
    let hub = hub();
    let (net, events) = server(&hub, addr(1), 3, SHORT);
    let (seen, thread) = answer_all(&net, events);
    let mut peer = Raw::connect(&hub, addr(1));
    peer.greet(5, 1, 0, 0);
    peer.receive().unwrap();
    peer.request(2, 2, Command::Farewell, &[]);
    assert_eq!(peer.receive().unwrap().0.cmd, Command::Farewell);
    drop(peer);
    eventually("it is forgotten", || net.clients().is_empty().then_some(()));
    // The answer did not get through: it asks again, with what it has received so far.
    for seq in [3, 4] {
        let mut peer = Raw::connect(&hub, addr(1));
        let again = greeting(5, 3, 1);
        let head = Head { seq, recv_seq: 40, id: seq, cmd: Command::Greeting, response: false, error: 0 };
        peer.send(head, zerocopy::IntoBytes::as_bytes(&again));
        assert_eq!(peer.receive().unwrap().0.error, 0);
        peer.request(2, 2, Command::Farewell, &[]);
        let (head, _) = peer.receive().unwrap();
        assert_eq!((head.cmd, head.id), (Command::Farewell, 2));
        assert!(head.seq > 40, "a client that has received up to 40 would drop {}", head.seq);
        drop(peer);
        eventually("it is forgotten again", || net.clients().is_empty().then_some(()));
    }
    thread::sleep(SHORT * 3);
    net.stop();
    drop(net);
    thread.join().unwrap();
    assert!(!seen.lock().iter().any(|e| matches!(e, ServerEvent::ClientLost { .. })));
}

/// A break between the server's handling of the first greeting and its answer: the client greets again with term 0. The
/// first connection was not taken over, expired after 20 s, and the living client was fenced.
#[test]
fn defect_51_a_first_greeting_without_answer_is_taken_over() {
    let hub = hub();
    let (net, events) = server(&hub, addr(1), 3, SHORT);
    let first = Raw::connect(&hub, addr(1));
    first.greet(5, 1, 0, 0);
    let ServerEvent::Greeting { token, first_contact: true, .. } = events.recv().unwrap() else { panic!("a greeting") };
    // The second greeting comes before the first one is done, and has to wait for it.
    let mut second = Raw::connect(&hub, addr(1));
    second.greet(5, 2, 0, 0);
    first.stream.shutdown();
    assert!(events.recv_timeout(SHORT).is_err(), "greetings of a rid come one at a time");
    net.greeting_done(token, Ok(()));
    let id = net.request(5, Command::LockRecover, &[0; 32]).unwrap();
    let ServerEvent::Greeting { token, first_contact: false, .. } = events.recv().unwrap() else {
        panic!("a greeting")
    };
    net.greeting_done(token, Ok(()));
    assert_eq!(second.receive().unwrap().0.cmd, Command::Greeting);
    let (head, _) = second.receive().unwrap();
    assert_eq!((head.cmd, head.id), (Command::LockRecover, id), "queued for the first socket, sent on the second");
    assert!(events.recv_timeout(SHORT * 4).is_err(), "the living client is not reported lost");
    drop(second);
    assert!(matches!(events.recv_timeout(LONG).unwrap(), ServerEvent::ClientLost { rid: 5, .. }));
    assert!(net.request(5, Command::SyncLogTrees, &[]).unwrap_err().is(Errno::ENOTCONN));
}

/// Timeouts from 3001 to 3999 ms were accepted and gave connections that never worked.
#[test]
fn defect_53_keepalive_timeouts_below_4_s_are_refused() {
    let new =
        |ms| TcpTransport::new(TcpOptions { keepalive_timeout: Duration::from_millis(ms), ..TcpOptions::default() });
    assert!(new(3999).is_err());
    let transport = new(4000).unwrap();
    let listener = transport.listen(([127, 0, 0, 1], 0).into()).unwrap();
    assert!(transport.connect(listener.local_addr(), Duration::from_secs(1)).is_ok());
}

/// Messages queued on a connection that was just being taken over were lost. Breaks at any byte, several threads asking,
/// invalidations from the server: everything arrives exactly once.
#[test]
fn defect_44_nothing_is_lost_or_repeated_over_breaks() {
    for seed in 0..4 {
        let hub = hub();
        let breaking = Breaking::new(hub.clone(), seed);
        let calm = breaking.calm.clone();
        let (net, events) = server(&hub, addr(1), 3, LONG);
        let (seen, thread) = answer_all(&net, events);
        let ear = Arc::new(Ear::default());
        let transport: Arc<dyn Transport> = breaking;
        let conn = client(&transport, 5, &Place::at(addr(1), 3), &ear);
        ok(conn.request(Command::GetLastSeq, &[]));
        let askers = (0..3u8).map(|n| {
            let conn = conn.clone();
            thread::spawn(move || {
                for i in 0..300u32 {
                    let mut payload = [n; 8];
                    payload[4..].copy_from_slice(&i.to_le_bytes());
                    ok(conn.request(Command::AllocInodes, &payload));
                }
            })
        });
        let askers = askers.collect::<Vec<_>>();
        for i in 0..100u64 {
            net.request(5, Command::OpenInoMap, &[i.to_le_bytes(), [0; 8]].concat()).unwrap();
            thread::sleep(Duration::from_micros(300));
        }
        for asker in askers {
            asker.join().unwrap();
        }
        calm.store(true, Ordering::Relaxed);
        eventually("all answers of the client", || {
            let seen = seen.lock();
            (seen.iter().filter(|e| matches!(e, ServerEvent::Response { .. })).count() == 100).then_some(())
        });
        conn.farewell().unwrap();
        conn.close();
        net.stop();
        drop(net);
        thread.join().unwrap();
        let seen = seen.lock();
        let mut asked = seen
            .iter()
            .filter_map(|e| match e {
                ServerEvent::Request { cmd: Command::AllocInodes, payload, .. } => Some(payload.clone()),
                _ => None,
            })
            .collect::<Vec<_>>();
        assert_eq!(asked.len(), 900, "seed {seed}");
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), 900, "seed {seed}: a request was executed twice");
        assert!(!seen.iter().any(|e| matches!(e, ServerEvent::ClientLost { .. })));
        let heard = ear.heard();
        let order = heard.iter().filter_map(|h| match h {
            Heard::Request(Command::OpenInoMap, p) => Some(u64::from_le_bytes(p[..8].try_into().unwrap())),
            _ => None,
        });
        assert!(order.eq(0..100), "seed {seed}: the server's requests came once and in order");
    }
}

/// A grant that breaks the protocol was only logged, and the mount went on with a server that lies about modes.
#[test]
fn a_refused_lock_grant_closes_the_connection() {
    let hub = hub();
    let (net, events) = server(&hub, addr(1), 3, LONG);
    let (weak, bad) = (Arc::downgrade(&net), AtomicU32::new(1));
    let thread = thread::spawn(move || {
        while let Ok(event) = events.recv() {
            let Some(net) = weak.upgrade() else { return };
            match event {
                ServerEvent::Greeting { token, .. } => net.greeting_done(token, Ok(())),
                ServerEvent::Request { rid, id, cmd, .. } => {
                    let lie = cmd == Command::Lock && bad.swap(0, Ordering::Relaxed) == 1;
                    net.respond(rid, id, cmd, Ok(if lie { vec![0xff; 48] } else { zeros(cmd) }));
                }
                _ => {}
            }
        }
    });
    let ear = Arc::new(Ear::default());
    let client = client(&hub, 5, &Place::at(addr(1), 3), &ear);
    client.lock_request(&[0; 48]).unwrap();
    eventually("a second greeting", || (client.status().greetings >= 2).then_some(()));
    // Everything else goes on over the new connection.
    client.lock_request(&[0; 48]).unwrap();
    eventually("the next grant", || {
        (ear.heard().last() == Some(&Heard::LockResponse(zeros(Command::Lock)))).then_some(())
    });
    client.close();
    net.stop();
    drop(net);
    thread.join().unwrap();
}
