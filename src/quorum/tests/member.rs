//! Whole members with their threads, over the in-process network and memory.

use std::time::{Duration, Instant};

use super::harness::*;
use crate::device::{BlockDevice, Fault, FaultDevice, FaultOps};
use crate::format::layout::QuorumConfig;
use crate::net::{MemTransport, Transport};
use crate::quorum::blocks::{QuorumDisk, QuorumEvent, event};
use crate::quorum::member::{MemberConfig, QuorumMember, ServerState};
use crate::quorum::scan::find_server;
use crate::quorum::slot_addr;
use crate::sync::Arc;

struct Mount {
    member: Arc<QuorumMember>,
    server: Arc<FakeServer>,
}

fn mount(
    slot: usize,
    rid: u64,
    qconf: QuorumConfig,
    disk: &Arc<QuorumDisk>,
    transport: &Arc<dyn Transport>,
    becomes: ServerState,
) -> Mount {
    let server = FakeServer::new();
    *server.becomes.lock() = becomes;
    let member = QuorumMember::start(MemberConfig {
        fsid: FSID,
        rid,
        slot,
        qconf,
        heartbeat_timeout: Duration::from_secs(2),
        transport: transport.clone(),
        disk: disk.clone(),
        server: server.clone(),
    })
    .expect("a member starts");
    let _ = server.member.set(member.clone());
    member.server_changed();
    Mount { member, server }
}

fn volume() -> (Arc<dyn BlockDevice>, Arc<QuorumDisk>, Arc<dyn Transport>) {
    let device: Arc<dyn BlockDevice> = device();
    let disk = disk(&device);
    (device, disk, MemTransport::new())
}

#[test]
fn a_single_member_leads_soon_and_leaves_in_order() {
    let (_, disk, net) = volume();
    let qconf = config(&[2]);
    let start = Instant::now();
    let a = mount(2, 77, qconf, &disk, &net, ServerState::Up);
    eventually("FENCE", || (term_of(&disk.read_all(), 2, QuorumEvent::Fence) == 1).then_some(()));
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
    assert_eq!(find_server(&qconf, &disk.read_all()).unwrap(), (slot_addr(&qconf, 2).unwrap(), 1));
    let status = a.member.status();
    assert!(status.leader && status.server_term == 1 && status.failed.is_none());
    a.member.leave().unwrap();
    let blocks = disk.read_all();
    let block = block(&blocks, 2);
    let order = block.events.map(|e| e.write_nr.get());
    assert_eq!(order, [1, 2, 3, 4, 5, 6], "BEGIN, TERM, ELECT, FENCE, STOP, END");
    assert!(block.events.iter().all(|e| e.rid == 77));
    assert!(find_server(&qconf, &blocks).is_err());
}

/// After a crash the next mount of the slot leads within the election timeout, and fences its predecessor.
#[test]
fn a_crashed_single_member_is_replaced_soon_and_fenced() {
    let (_, disk, net) = volume();
    let qconf = config(&[0]);
    let a = mount(0, 1, qconf, &disk, &net, ServerState::Up);
    eventually("FENCE", || (term_of(&disk.read_all(), 0, QuorumEvent::Fence) == 1).then_some(()));
    a.member.abandon();
    drop(a);
    let start = Instant::now();
    let b = mount(0, 2, qconf, &disk, &net, ServerState::Up);
    eventually("FENCE", || (term_of(&disk.read_all(), 0, QuorumEvent::Fence) == 2).then_some(()));
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
    let fenced = b.server.starts.lock()[0].fence.clone();
    assert_eq!(fenced.iter().map(|l| (l.rid, l.term)).collect::<Vec<_>>(), [(1, 1)]);
    b.member.leave().unwrap();
}

/// A predecessor that crashed between ELECT and FENCE leaves nothing but the ELECT that the next mount overwrites.
#[test]
fn a_member_that_crashed_before_fence_is_fenced_too() {
    let (_, disk, net) = volume();
    let qconf = config(&[0]);
    let a = mount(0, 1, qconf, &disk, &net, ServerState::Starting);
    eventually("ELECT", || (term_of(&disk.read_all(), 0, QuorumEvent::Elect) == 1).then_some(()));
    a.member.abandon();
    drop(a);
    let b = mount(0, 2, qconf, &disk, &net, ServerState::Up);
    eventually("a start", || (!b.server.starts.lock().is_empty()).then_some(()));
    assert_eq!(b.server.starts.lock()[0].fence[0].rid, 1);
    b.member.leave().unwrap();
}

/// A leader that could not fence its predecessor on the same slot records STOP, which hides the predecessor's FENCE event;
/// it was then forgotten. And a server that has not fenced everybody never counts as up (defect 41).
#[test]
fn defect_47_who_could_not_be_fenced_is_fenced_again() {
    let (_, disk, net) = volume();
    let qconf = config(&[0]);
    let a = mount(0, 1, qconf, &disk, &net, ServerState::Up);
    eventually("FENCE", || (term_of(&disk.read_all(), 0, QuorumEvent::Fence) == 1).then_some(()));
    a.member.abandon();
    drop(a);
    let b = mount(0, 2, qconf, &disk, &net, ServerState::Starting);
    eventually("a first start", || (b.server.starts.lock().len() == 1).then_some(()));
    *b.server.becomes.lock() = ServerState::Up;
    // Fencing has failed.
    b.server.set(ServerState::Down);
    eventually("a second start", || (b.server.starts.lock().len() == 2).then_some(()));
    let blocks = disk.read_all();
    let stopped = event(blocks.get(0).unwrap(), QuorumEvent::Stop);
    assert_eq!((stopped.term.get(), stopped.rid.get()), (2, 2));
    for start in b.server.starts.lock().iter() {
        assert_eq!(start.fence.iter().map(|l| l.rid).collect::<Vec<_>>(), [1], "term {}", start.term);
    }
    eventually("FENCE", || (term_of(&disk.read_all(), 0, QuorumEvent::Fence) == 3).then_some(()));
    b.member.leave().unwrap();
}

/// The same with a third leader in between: who failed once was not up, so it did not record FENCE.
#[test]
fn defect_41_a_server_that_could_not_fence_is_never_recorded_as_up() {
    let (_, disk, net) = volume();
    let qconf = config(&[0]);
    let b = mount(0, 2, qconf, &disk, &net, ServerState::Starting);
    eventually("a start", || (b.server.starts.lock().len() == 1).then_some(()));
    b.server.set(ServerState::Down);
    eventually("STOP", || (term_of(&disk.read_all(), 0, QuorumEvent::Stop) == 1).then_some(()));
    assert_eq!(term_of(&disk.read_all(), 0, QuorumEvent::Fence), 0);
    b.member.abandon();
}

/// The device fails under a leader: its server is stopped and the member gone, with the error known.
#[test]
fn defect_45_a_failing_device_stops_the_server() {
    let qconf = config(&[0]);
    for nth in 0..40 {
        let faulty = FaultDevice::new(device());
        let device: Arc<dyn BlockDevice> = faulty.clone();
        let (disk, net): (_, Arc<dyn Transport>) = (disk(&device), MemTransport::new());
        // BEGIN takes a read of all, a read, a write and a flush.
        faulty.fail_nth(FaultOps::ALL, 4 + nth, Fault::Forever);
        let a = mount(0, 1, qconf, &disk, &net, ServerState::Up);
        let done = eventually("failure or success", || {
            let status = a.member.status();
            (status.failed.is_some() || a.server.starts.lock().len() > 1 || faulty.hits() == 0 && status.leader)
                .then_some(status)
        });
        if faulty.hits() == 0 {
            a.member.abandon();
            return;
        }
        assert!(done.failed.is_some() || !a.server.starts.lock().is_empty());
        let error = eventually("the end", || a.member.status().failed);
        assert!(matches!(error, crate::error::Error::Device { .. }), "{error}");
        assert!(a.member.leave().is_err());
        assert_eq!(crate::quorum::ServerControl::server_state(&*a.server), ServerState::Down);
    }
}

#[test]
fn two_mounts_on_one_slot_are_noticed() {
    let (_, disk, net) = volume();
    let qconf = config(&[0]);
    let a = mount(0, 1, qconf, &disk, &net, ServerState::Up);
    eventually("leads", || a.member.status().leader.then_some(()));
    // On another host, so that it can bind the same address.
    let b = mount(0, 2, qconf, &disk, &MemTransport::new().into_dyn(), ServerState::Starting);
    a.server.set(ServerState::Down);
    let error = eventually("an error", || a.member.status().failed);
    assert!(matches!(error, crate::error::Error::Corrupt { .. }), "{error}");
    b.member.abandon();
}

trait IntoDyn {
    fn into_dyn(self) -> Arc<dyn Transport>;
}

impl IntoDyn for Arc<MemTransport> {
    fn into_dyn(self) -> Arc<dyn Transport> {
        self
    }
}

#[test]
fn three_members_elect_one_and_hand_over() {
    let (_, disk, net) = volume();
    let qconf = config(&[0, 1, 2]);
    let mounts = (0..3).map(|slot| mount(slot, slot as u64 + 1, qconf, &disk, &net, ServerState::Up));
    let mut mounts = mounts.collect::<Vec<_>>();
    let leads = |m: &Mount| {
        let status = m.member.status();
        status.leader && status.server_term == status.term
    };
    let first = eventually("a leader", || mounts.iter().position(leads));
    let leader = mounts.remove(first);
    leader.member.leave().unwrap();
    let start = Instant::now();
    let second = eventually("another leader", || mounts.iter().position(leads));
    assert!(start.elapsed() < Duration::from_millis(1900), "not after a heartbeat timeout: {:?}", start.elapsed());
    assert!(mounts[second].server.starts.lock()[0].fence.is_empty(), "who left in order needs no fencing");
    let lonely = mounts.remove(1 - second);
    // One crashes, the other fences it: two of three are needed, so the third comes back first.
    let crashed = mounts.remove(0);
    crashed.member.abandon();
    let back = mount(first, 9, qconf, &disk, &net, ServerState::Up);
    let rid_of_crashed = eventually("a third leader", || {
        [&lonely, &back].into_iter().find(|m| leads(m)).map(|m| m.server.starts.lock()[0].fence[0].rid)
    });
    assert!((1..=3).contains(&rid_of_crashed));
    lonely.member.abandon();
    back.member.abandon();
}
