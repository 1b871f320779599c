//! Mounts coming and going: greetings, recovery, fencing, farewells.

use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::super::core::Event;
use super::super::fence::FenceReason;
use super::account::account;
use super::harness::*;
use crate::device::MemDevice;
use crate::error::Errno;
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{Ino, Key};
use crate::lock::LockName;
use crate::net::{Command, ServerEvent};
use crate::sync::Arc;

fn small(slots: usize) -> (Arc<MemDevice>, Arc<MemDevice>, TestServer) {
    let (meta, data) = volume(64 * MIB, 64 * MIB, slots);
    let server = TestServer::open(meta.clone(), data.clone());
    (meta, data, server)
}

fn group_key(group: u64) -> Key {
    LockName::inode(Ino(group * 1024)).start()
}

#[test]
fn a_greeting_is_durable_before_its_answer() {
    let (meta, _, mut server) = small(1);
    server.greet(9, 0, GREETING_QUORUM).unwrap();
    let mounted = account(meta).sup.mounted_clients;
    assert_eq!(mounted, server.core.trees.stable.sup.mounted_clients);
    assert!(mounted.height > 0);
    assert_eq!(server.core.trees.mounted[&9].flags, MOUNTED_CLIENT_QUORUM);
}

#[test]
fn defect_43_a_reclaimed_mount_is_not_let_in_by_the_next_server() {
    let (_, _, mut server) = small(1);
    assert_eq!(errno(server.greet(9, 77, 0)), Errno::EINVAL);
    assert!(server.greet(9, 77, GREETING_FAREWELL).is_ok(), "it may repeat its farewell");
    assert!(server.call(9, Command::Farewell, &[]).is_ok());
    assert_eq!(errno(server.call(9, Command::AllocInodes, &8u64.to_le_bytes())), Errno::EIO);
}

#[test]
fn defect_48_repeated_farewells_do_not_lower_the_count_of_mounts() {
    let (_, _, mut server) = small(1);
    server.mount(1);
    server.mount(2);
    for _ in 0..3 {
        server.call(2, Command::Farewell, &[]).unwrap();
        server.greet(2, 1, GREETING_FAREWELL).unwrap();
    }
    assert_eq!(server.core.connected.iter().copied().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_farewell_leaves_nothing_behind() {
    let (meta, _, mut server) = small(1);
    let empty = account(meta.clone());
    server.mount(5);
    let mut client = SimClient::open(&mut server, 5);
    client.cycle(&mut server, 0..50).unwrap();
    server.call(5, Command::Farewell, &[]).unwrap();
    let a = account(meta);
    assert_eq!(a.sup.mounted_clients.height, 0);
    assert_eq!((a.logs.len(), a.logs[0].flags.get()), (1, LOG_TREES_FINALIZED));
    assert_eq!(a.free_data, empty.free_data - 40, "only the files' blocks are in use");
}

#[test]
fn members_needed_for_a_majority_stay() {
    let (_, _, mut server) = small(3);
    server.greet(1, 0, GREETING_QUORUM).unwrap();
    server.greet(2, 0, GREETING_QUORUM).unwrap();
    let first = server.send(1, Command::Farewell, &[]);
    server.run().unwrap();
    assert!(server.taken(1, first).is_none());
    let second = server.send(2, Command::Farewell, &[]);
    server.run().unwrap();
    assert!(server.taken(1, first).unwrap().is_ok() && server.taken(2, second).unwrap().is_ok());
}

#[test]
fn locks_and_maps_wait_for_the_mounts_of_the_earlier_server() {
    let (meta, data, mut server) = small(1);
    server.mount(1);
    server.mount(2);
    drop(server);
    let mut server = TestServer::open(meta, data);
    server.greet(1, 1, 0).unwrap();
    let lock = server.lock(1, group_key(0), 0, 1);
    let map = server.send(1, Command::OpenInoMap, OpenInoMapArgs { group_nr: 0.into(), req_id: 0.into() }.as_bytes());
    server.recover_empty(1);
    assert!(server.taken(1, lock).is_none() && server.taken(1, map).is_none());
    assert!(server.call(1, Command::GetLogTrees, &[]).is_ok(), "everything else is served from the start");

    // Mount 2 reports a lock with a write_seq far above what the super block knows.
    server.greet(2, 1, 0).unwrap();
    let held = NetLock { key: group_key(7).into(), write_seq: 5_000.into(), old_mode: 2, new_mode: 2, pad: [0; 6] };
    for (id, _) in server.requests_to(2, Command::LockRecover) {
        let report = crate::lock::wire::encode_recover(&[held]);
        server.respond(2, id, Command::LockRecover, report);
    }
    assert!(server.taken(1, lock).is_none());
    server.recover_empty(2);
    assert!(server.taken(1, lock).unwrap().is_ok());
    assert!(server.core.trees.seq() >= 5_000, "later grants must win over the recovered lock");
    let (_, ask) = server.requests_to(2, Command::OpenInoMap).pop().unwrap();
    assert_eq!(ask.len(), size_of::<OpenInoMapArgs>());
}

#[test]
fn mounts_that_do_not_come_back_are_fenced_and_reclaimed() {
    let (meta, data, mut server) = small(1);
    server.mount(1);
    server.mount(2);
    let mut client = SimClient::open(&mut server, 2);
    client.cycle(&mut server, 0..20).unwrap();
    drop(server);
    let mut server = TestServer::open(meta.clone(), data);
    server.greet(1, 1, 0).unwrap();
    let lock = server.lock(1, group_key(0), 0, 2);
    server.recover_empty(1);
    server.advance(Duration::from_secs(30)).unwrap();
    assert_eq!(server.wire.fences, [(2, FenceReason::ClientRecovery)]);
    assert_eq!(errno(server.greet(2, 1, 0)), Errno::EINVAL, "too late");
    server.event(Event::Fenced { rid: 2, result: Ok(()) }).unwrap();
    server.run().unwrap();
    assert_eq!(server.wire.dropped, [2]);
    assert!(server.taken(1, lock).unwrap().is_ok());
    assert!(!server.core.trees.mounted.contains_key(&2));
    account(meta);
}

#[test]
fn a_fence_without_confirmation_stops_the_server() {
    let (_, _, mut server) = small(1);
    server.mount(1);
    let lost = |rid| Event::Net(ServerEvent::ClientLost { rid, peer: "127.0.0.1:9".parse().unwrap() });
    server.event(lost(1)).unwrap();
    server.event(lost(1)).unwrap();
    server.event(lost(4)).unwrap();
    assert_eq!(server.wire.fences, [(1, FenceReason::ClientReconnect)], "once, and only mounts on record");
    assert!(server.advance(Duration::from_secs(29)).is_ok());
    assert!(server.advance(Duration::from_secs(2)).is_err());
}

#[test]
fn defect_41_a_failed_fence_stops_the_server() {
    let (_, _, mut server) = small(1);
    server.mount(1);
    let peer = "127.0.0.1:9".parse().unwrap();
    server.event(Event::Net(ServerEvent::ClientLost { rid: 1, peer })).unwrap();
    assert!(server.event(Event::Fenced { rid: 1, result: Err(Errno::EIO.into()) }).is_err());
}

#[test]
fn reclaim_lets_waiting_locks_go() {
    let (_, _, mut server) = small(1);
    server.mount(1);
    server.mount(2);
    let id = server.lock(1, group_key(3), 0, 2);
    server.run().unwrap();
    let grant = NetLock::read_from_bytes(&server.taken(1, id).unwrap().unwrap()).unwrap();
    assert!(grant.write_seq.get() > 0);
    let waiting = server.lock(2, group_key(3), 0, 2);
    server.run().unwrap();
    assert_eq!(server.requests_to(1, Command::Lock).len(), 1);
    server.call(1, Command::Farewell, &[]).unwrap();
    assert!(server.taken(2, waiting).unwrap().is_ok());
}

/// Right after a fail-over both members of the last majority asked to leave. One had recovered its locks and was answered
/// at once; it was the leader, left, and took the server along. The other one waited for ever for a server that it could
/// not elect.
#[test]
fn the_last_majority_leaves_together_after_a_fail_over_too() {
    let (meta, data, mut server) = small(3);
    server.greet(1, 0, GREETING_QUORUM).unwrap();
    server.greet(2, 0, GREETING_QUORUM).unwrap();
    drop(server);
    let mut server = TestServer::open(meta.clone(), data);
    server.greet(1, 1, GREETING_FAREWELL | GREETING_QUORUM).unwrap();
    server.recover_empty(1);
    let first = server.send(1, Command::Farewell, &[]);
    server.greet(2, 1, GREETING_FAREWELL | GREETING_QUORUM).unwrap();
    let second = server.send(2, Command::Farewell, &[]);
    server.run().unwrap();
    assert!(server.taken(1, first).is_none(), "mount 2 has still to report its locks");
    server.recover_empty(2);
    server.run().unwrap();
    assert!(server.taken(1, first).unwrap().is_ok() && server.taken(2, second).unwrap().is_ok());
    account(meta);
}

/// The same with a mount that is no member: it had asked to leave, so the members did not wait for it, but it had still to
/// report its locks, so it was not let go; then all members were gone.
#[test]
fn the_last_majority_waits_for_clients_that_still_recover() {
    let (meta, data, mut server) = small(1);
    server.greet(1, 0, GREETING_QUORUM).unwrap();
    server.mount(2);
    drop(server);
    let mut server = TestServer::open(meta.clone(), data);
    server.greet(1, 1, GREETING_FAREWELL | GREETING_QUORUM).unwrap();
    server.recover_empty(1);
    let member = server.send(1, Command::Farewell, &[]);
    server.greet(2, 1, GREETING_FAREWELL).unwrap();
    let client = server.send(2, Command::Farewell, &[]);
    server.run().unwrap();
    assert!(server.taken(1, member).is_none(), "mount 2 has still to report its locks");
    server.recover_empty(2);
    server.run().unwrap();
    assert!(server.taken(1, member).unwrap().is_ok() && server.taken(2, client).unwrap().is_ok());
    account(meta);
}

/// A member that had crashed, and was not reclaimed yet, was counted among those who would remain. So the leader left, and
/// the one living member had no majority any more: found by the simulator.
#[test]
fn a_member_that_may_be_dead_is_no_part_of_a_majority() {
    // It crashed under an earlier server, or under this one.
    for earlier in [true, false] {
        let (meta, data, mut server) = small(3);
        (1..=3).for_each(|rid| server.greet(rid, 0, GREETING_QUORUM).unwrap());
        if earlier {
            drop(server);
            server = TestServer::open(meta, data);
            for rid in [1, 2] {
                server.greet(rid, 1, GREETING_QUORUM).unwrap();
                server.recover_empty(rid);
            }
        }
        server.wire.away.insert(3);
        let first = server.send(1, Command::Farewell, &[]);
        server.run().unwrap();
        assert!(server.taken(1, first).is_none(), "earlier: {earlier}");
        if !earlier {
            // It was only away.
            server.wire.away.clear();
            server.run().unwrap();
            assert!(server.taken(1, first).unwrap().is_ok());
        }
    }
}

/// Two farewells were reclaimed in different commits, and the first was answered in between: if that is the leader's own mount,
/// the server ends before the second one is reclaimed.
#[test]
fn no_farewell_is_answered_before_all_who_may_leave_are_reclaimed() {
    let (_, _, mut server) = small(1);
    server.mount(1);
    server.mount(2);
    let first = server.send(1, Command::Farewell, &[]);
    let second = server.send(2, Command::Farewell, &[]);
    server.core.start_farewells(&server.wire).unwrap();
    server.core.reclaimed(1, false, &mut server.wire);
    assert!(server.taken(1, first).is_none());
    server.core.reclaimed(2, false, &mut server.wire);
    assert!(server.taken(1, first).is_some() && server.taken(2, second).is_some());
}

/// Whoever greets without being recorded leaves nothing behind, however often.
#[test]
fn greetings_of_strangers_fill_no_memory() {
    let (_, _, mut server) = small(1);
    server.greet(1, 0, GREETING_OPENS).unwrap();
    for stranger in 100..200 {
        let _ = server.greet(stranger, 7, GREETING_FAREWELL | GREETING_OPENS);
    }
    assert_eq!(server.core.features.len(), 1);
    server.call(1, Command::Farewell, &[]).unwrap();
    assert!(server.core.features.is_empty());
}
