//! The desk: who is served there, in which order, and what the server's thread learns of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::super::silence::{ANSWER_TIME, LOOK_EVERY, PROBE_AFTER};
use super::harness::*;
use crate::error::{Errno, Result};
use crate::format::Ino;
use crate::format::layout::*;
use crate::lock::LockName;
use crate::net::{Command, Direct, Mail, ServerEvent};
use crate::sync::{Arc, Mutex};

const READ: u8 = 1;
const WRITE: u8 = 2;

/// Numbers of requests to clients; theirs are smaller.
const FIRST_ASKED: u64 = 1_000_000;

/// What was sent, in order: to whom, its number (of the request that it answers, or its own), the lock.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<(u64, u64, NetLock)>>>, Arc<AtomicU64>);

impl Mail for Sent {
    fn respond(&mut self, rid: u64, id: u64, _cmd: Command, result: Result<Vec<u8>>) {
        self.0.lock().push((rid, id, NetLock::read_from_bytes(&result.unwrap()).unwrap()));
    }

    fn request(&mut self, rid: u64, _cmd: Command, payload: &[u8]) -> Result<u64> {
        let id = FIRST_ASKED + self.1.fetch_add(1, Ordering::SeqCst);
        self.0.lock().push((rid, id, NetLock::read_from_bytes(payload).unwrap()));
        Ok(id)
    }

    fn break_client(&mut self, rid: u64, why: &str) {
        panic!("{rid}: {why}");
    }
}

fn lock(group: u64, old: u8, new: u8) -> NetLock {
    let key = LockName::inode(Ino(group * 1024)).start();
    NetLock { key: key.into(), write_seq: 0.into(), old_mode: old, new_mode: new, pad: [0; 6] }
}

fn request(rid: u64, id: u64, lock: &NetLock) -> ServerEvent {
    ServerEvent::Request { rid, id, cmd: Command::Lock, payload: lock.as_bytes().to_vec() }
}

fn two_mounts() -> TestServer {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let mut server = TestServer::open(meta, data);
    server.mount(1);
    server.mount(2);
    server
}

#[test]
fn only_admitted_mounts_are_served() {
    let mut server = two_mounts();
    let (desk, mut sent) = (server.core.desk.clone(), Sent::default());
    // A stranger, and what is not for the desk, goes on to the server's thread.
    assert!(desk.take(request(3, 1, &lock(5, 0, READ)), &mut sent).is_some());
    let other = ServerEvent::Request { rid: 1, id: 1, cmd: Command::GetLogTrees, payload: Vec::new() };
    assert!(desk.take(other, &mut sent).is_some());
    assert!(desk.take(request(1, 2, &lock(5, 0, WRITE)), &mut sent).is_none());
    assert_eq!(sent.0.lock().len(), 1);
    // From the moment in which its locks are taken back the mount gets none, whoever brings the request.
    desk.reclaim(1, &mut server.wire);
    let late = request(1, 3, &lock(6, 0, WRITE));
    assert!(desk.take(late, &mut sent).is_some());
    let id = server.lock(1, LockName::inode(Ino(6 * 1024)).start(), 0, WRITE);
    assert_eq!(server.taken(1, id).unwrap().unwrap_err().errno(), Errno::EIO);
    assert_eq!(desk.lock_count(), 0);
}

#[test]
fn questions_about_the_last_commit_are_answered_at_once() {
    let mut server = two_mounts();
    for cmd in [Command::GetRoots, Command::Statfs, Command::GetVolopt] {
        let here = server.core.desk.answer(cmd).unwrap();
        assert_eq!(server.call(1, cmd, &[]).unwrap(), here);
    }
    let mut client = SimClient::open(&mut server, 1);
    let before = server.core.desk.answer(Command::GetRoots);
    client.cycle(&mut server, 0..5).unwrap();
    assert_ne!(server.core.desk.answer(Command::GetRoots), before, "a commit is published");
}

/// Whoever answers at the desk is not silent; whoever does not is.
#[test]
fn the_desk_knows_who_was_heard() {
    let mut server = two_mounts();
    let (desk, mut sent) = (server.core.desk.clone(), Sent::default());
    assert!(desk.take(request(1, 1, &lock(5, 0, WRITE)), &mut sent).is_none());
    assert!(desk.take(request(2, 1, &lock(5, 0, READ)), &mut sent).is_none());
    assert_eq!(sent.0.lock().last().unwrap().0, 1, "1 is asked to give it up");
    let mut waited = Duration::ZERO;
    while server.wire.fences.is_empty() {
        assert!(waited < PROBE_AFTER + ANSWER_TIME + 4 * LOOK_EVERY, "nobody notices");
        waited += LOOK_EVERY;
        server.advance(LOOK_EVERY).unwrap();
    }
    assert!(waited >= PROBE_AFTER + ANSWER_TIME);
    assert_eq!(server.wire.fences.len(), 1);
    assert_eq!(server.wire.fences[0].0, 1);
}

/// Many threads at the desk: what is said about a lock to a client comes in the order in which it was decided, so that what it
/// hears is grants and invalidations by turns.
#[test]
fn what_is_said_about_a_lock_keeps_its_order() {
    const ROUNDS: u64 = 3000;
    let mut server = two_mounts();
    server.mount(3);
    let (desk, sent) = (server.core.desk.clone(), Sent::default());
    let done = AtomicU64::new(0);
    let client = |rid: u64| {
        let (mut mail, mut at) = (sent.clone(), 0);
        // The next message to this client; none if nobody else wants the lock any more.
        let mut next = |me_too: u64| loop {
            let all = sent.0.lock();
            if let Some(i) = all[at..].iter().position(|m| m.0 == rid) {
                at += i + 1;
                return Some(all[at - 1]);
            }
            drop(all);
            if done.load(Ordering::SeqCst) == 2 + me_too {
                return None;
            }
            std::thread::yield_now();
        };
        for round in 1..=ROUNDS {
            assert!(desk.take(request(rid, round, &lock(5, 0, WRITE)), &mut mail).is_none());
            let (_, answered, granted) = next(1).unwrap();
            assert_eq!((answered, granted.new_mode), (round, WRITE));
            let last = u64::from(round == ROUNDS);
            done.fetch_add(last, Ordering::SeqCst);
            let Some((_, asked, wanted)) = next(last) else {
                done.fetch_add(1 - last, Ordering::SeqCst);
                return;
            };
            assert!(asked >= FIRST_ASKED && wanted.old_mode == WRITE && wanted.new_mode == 0);
            let result = Ok(lock(5, WRITE, 0).as_bytes().to_vec());
            let response = ServerEvent::Response { rid, id: asked, cmd: Command::Lock, result };
            assert!(desk.take(response, &mut mail).is_none());
        }
    };
    std::thread::scope(|scope| (1..=3).for_each(|rid| drop(scope.spawn(move || client(rid)))));
    assert_eq!(desk.lock_count(), 1);
}
