//! Clients that lie, ask for nonsense or fall silent: each is cut off, and the others go on.

use std::time::Duration;

use zerocopy::IntoBytes;

use super::super::core::Event;
use super::super::fence::FenceReason;
use super::super::silence::{ANSWER_TIME, INVALIDATION_TIME, LOOK_EVERY, PROBE_AFTER};
use super::harness::*;
use crate::error::Errno;
use crate::format::Ino;
use crate::format::layout::*;
use crate::lock::LockName;
use crate::net::{Command, ServerEvent};

const READ: u8 = 1;
const WRITE: u8 = 2;

/// Client 1 holds a group for writing and is asked to give it to client 2; the number of the invalidation and of the request.
fn contended() -> (TestServer, u64, u64) {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let mut server = TestServer::open(meta, data);
    server.mount(1);
    server.mount(2);
    let key = LockName::inode(Ino(5 * 1024)).start();
    let id = server.lock(1, key, 0, WRITE);
    assert!(server.taken(1, id).unwrap().is_ok());
    let wanted = server.lock(2, key, 0, READ);
    server.run().unwrap();
    let asked = server.requests_to(1, Command::Lock);
    assert_eq!(asked.len(), 1);
    (server, asked[0].0, wanted)
}

fn answer(old: u8, new: u8) -> NetLock {
    let key = LockName::inode(Ino(5 * 1024)).start();
    NetLock { key: key.into(), write_seq: 0.into(), old_mode: old, new_mode: new, pad: [0; 6] }
}

fn confirm_fence(server: &mut TestServer, rid: u64) {
    server.event(Event::Fenced { rid, result: Ok(()) }).unwrap();
    server.run().unwrap();
}

/// A client that keeps a mode which it was asked to give up can be neither believed nor waited for.
#[test]
fn a_client_that_lies_about_a_mode_is_cut_off_and_fenced() {
    let (mut server, id, wanted) = contended();
    server.respond(1, id, Command::Lock, answer(WRITE, WRITE).as_bytes().to_vec());
    assert_eq!(server.wire.broken, [1]);
    assert_eq!(server.wire.fences, [(1, FenceReason::ClientReconnect)]);
    assert!(server.taken(2, wanted).is_none(), "not before it is certain that the other writes no more");
    confirm_fence(&mut server, 1);
    assert!(server.taken(2, wanted).unwrap().is_ok());
    assert_eq!(server.wire.dropped, [1]);
}

#[test]
fn an_error_in_answer_to_an_invalidation_is_no_answer() {
    let (mut server, id, wanted) = contended();
    let result = Err(Errno::ENOMEM.into());
    server.event(Event::Net(ServerEvent::Response { rid: 1, id, cmd: Command::Lock, result })).unwrap();
    confirm_fence(&mut server, 1);
    assert!(server.taken(2, wanted).unwrap().is_ok());
}

/// A process that is stopped keeps its connection: only its silence tells.
#[test]
fn a_client_that_never_answers_is_probed_and_fenced() {
    let (mut server, _, wanted) = contended();
    let mut waited = Duration::ZERO;
    let mut pass = |server: &mut TestServer, until: Duration| {
        while waited < until {
            waited += LOOK_EVERY;
            server.advance(LOOK_EVERY).unwrap();
        }
    };
    pass(&mut server, PROBE_AFTER + 2 * LOOK_EVERY);
    let probes = server.requests_to(1, Command::OpenInoMap);
    assert_eq!(probes.len(), 1, "one probe");
    assert!(server.requests_to(2, Command::OpenInoMap).is_empty(), "who owes nothing is not probed");
    pass(&mut server, PROBE_AFTER + ANSWER_TIME - LOOK_EVERY);
    assert!(server.wire.fences.is_empty());
    pass(&mut server, PROBE_AFTER + ANSWER_TIME + 3 * LOOK_EVERY);
    assert_eq!(server.wire.fences, [(1, FenceReason::ClientReconnect)]);
    confirm_fence(&mut server, 1);
    assert!(server.taken(2, wanted).unwrap().is_ok());
    server.advance(LOOK_EVERY).unwrap();
    assert_eq!(server.core.next_round(), None, "nothing is watched any more");
}

/// A commit may take long: who answers probes is alive, and gets the time.
#[test]
fn a_client_that_is_only_slow_is_waited_for() {
    let (mut server, id, wanted) = contended();
    let mut probes = 0;
    for _ in 0..(2 * ANSWER_TIME.as_secs() / LOOK_EVERY.as_secs()) {
        server.advance(LOOK_EVERY).unwrap();
        for (probe, _) in server.requests_to(1, Command::OpenInoMap) {
            probes += 1;
            server.respond(1, probe, Command::OpenInoMap, vec![0; size_of::<OpenInoMap>()]);
        }
    }
    assert!(probes >= 4 && server.wire.fences.is_empty());
    server.respond(1, id, Command::Lock, answer(WRITE, READ).as_bytes().to_vec());
    assert!(server.taken(2, wanted).unwrap().is_ok());
    assert!(server.wire.broken.is_empty());
}

/// Who talks but never gives the lock up would hold up the others for ever all the same.
#[test]
fn a_client_that_never_gives_up_a_lock_is_fenced_in_the_end() {
    let (mut server, _, _) = contended();
    for _ in 0..=(INVALIDATION_TIME.as_secs() / LOOK_EVERY.as_secs()) + 1 {
        assert!(server.wire.fences.is_empty());
        server.advance(LOOK_EVERY).unwrap();
        for (probe, _) in server.requests_to(1, Command::OpenInoMap) {
            server.respond(1, probe, Command::OpenInoMap, vec![0; size_of::<OpenInoMap>()]);
        }
        if !server.wire.fences.is_empty() {
            break;
        }
    }
    assert_eq!(server.wire.fences, [(1, FenceReason::ClientReconnect)]);
}

#[test]
fn senseless_lock_requests_break_the_connection_and_change_nothing() {
    let (mut server, _, wanted) = contended();
    let before = server.core.desk.dump();
    let key = LockName::inode(Ino(5 * 1024)).start();
    server.lock(2, key, 0, 4);
    server.lock(2, key.next(), 0, READ);
    // A second request for the same lock.
    server.lock(2, key, 0, WRITE);
    assert_eq!(server.wire.broken, [2, 2, 2]);
    assert_eq!(server.core.desk.dump(), before);
    assert!(server.taken(2, wanted).is_none(), "the first request still waits");
    // A report of locks that nobody asked for.
    server
        .event(Event::Net(ServerEvent::Response { rid: 2, id: 7, cmd: Command::LockRecover, result: Ok(vec![0; 8]) }))
        .unwrap();
    assert_eq!(server.wire.broken.len(), 4);
    assert!(server.wire.fences.is_empty());
}

#[test]
fn a_flood_of_open_map_requests_is_cut_off() {
    let (mut server, _, _) = contended();
    let args = OpenInoMapArgs { group_nr: 1.into(), req_id: 0.into() };
    for _ in 0..5000 {
        server.send(2, Command::OpenInoMap, args.as_bytes());
    }
    assert!(server.wire.broken.len() > 900 && server.wire.broken.iter().all(|rid| *rid == 2));
    assert_eq!(server.requests_to(1, Command::OpenInoMap).len(), 4096);
}
