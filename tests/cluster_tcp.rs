//! Several mounts of one volume, each with its own TCP transport, as processes on one host would have them.

use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scoutfs::device::{BlockDevice, MemDevice};
use scoutfs::namespace::Caller;
use scoutfs::net::{TcpOptions, TcpTransport};
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::server::HostFencer;
use scoutfs::{Environment, Ino, Volume, VolumeOptions};

type Device = Arc<dyn BlockDevice>;

struct Cluster {
    meta: Device,
    data: Device,
    marks: tempfile::TempDir,
}

/// A port of the loopback address that is free for both protocols now.
fn free_port() -> u16 {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Cluster {
    fn new(slots: usize) -> Cluster {
        // Sparse; the reserve that the server keeps for each mount is counted in gigabytes.
        let (meta, data) = (MemDevice::new(64 << 30), MemDevice::new(64 << 30));
        let slots = (0..slots).map(|nr| format!("{nr},127.0.0.1,{}", free_port()).parse().unwrap()).collect();
        let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
        mkfs(&*meta, &*data, &options).unwrap();
        Cluster { meta, data, marks: tempfile::tempdir().unwrap() }
    }

    fn mount(&self, slot: Option<u8>) -> Volume {
        let mut options = VolumeOptions::default();
        options.quorum_slot = slot;
        options.heartbeat_timeout = Duration::from_secs(2);
        let environment = Environment {
            transport: Some(TcpTransport::new(TcpOptions::default()).unwrap()),
            fencer: Some(Arc::new(HostFencer::new(self.marks.path()).unwrap())),
        };
        Volume::open_in(self.meta.clone(), self.data.clone(), options, environment).unwrap()
    }

    fn check(&self) {
        let report = check(&*self.meta, &*self.data, &CheckOptions::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn create(volume: &Volume, name: &str) {
    volume.create(&Caller::root(), Ino::ROOT, name.as_bytes(), 0o644).unwrap();
}

fn exists(volume: &Volume, name: &str) -> bool {
    volume.lookup(&Caller::root(), Ino::ROOT, name.as_bytes()).is_ok()
}

fn leads(volume: &Volume) -> bool {
    let member = volume.cluster_status().member;
    member.is_some_and(|m| m.leader && m.server_term == m.term)
}

fn eventually(name: &str, mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < deadline, "waited too long for {name}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn two_mounts_see_each_others_files() {
    let cluster = Cluster::new(1);
    let a = cluster.mount(Some(0));
    let b = cluster.mount(None);
    for i in 0..20 {
        let (from, to) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        create(from, &format!("file-{i}"));
        assert!(exists(to, &format!("file-{i}")), "{i}");
    }
    let status = b.cluster_status();
    assert!(status.connected && status.greetings == 1 && status.member.is_none(), "{status:?}");
    b.close().unwrap();
    a.close().unwrap();
    cluster.check();
}

#[test]
fn a_crashed_single_member_is_followed_soon() {
    let cluster = Cluster::new(1);
    let a = cluster.mount(Some(0));
    create(&a, "synced");
    a.sync().unwrap();
    drop(a);
    let start = Instant::now();
    let b = cluster.mount(Some(0));
    assert!(start.elapsed() < Duration::from_secs(9), "no heartbeat timeout: {:?}", start.elapsed());
    assert!(exists(&b, "synced"));
    create(&b, "after");
    b.close().unwrap();
    cluster.check();
}

#[test]
fn leadership_moves_when_the_leader_leaves() {
    let cluster = Cluster::new(3);
    // One alone cannot be elected, so its mount waits for the second one.
    let mut members: Vec<Volume> = std::thread::scope(|scope| {
        let cluster = &cluster;
        let mounting = (0..3).map(|slot| scope.spawn(move || cluster.mount(Some(slot)))).collect::<Vec<_>>();
        mounting.into_iter().map(|m| m.join().unwrap()).collect()
    });
    let client = cluster.mount(None);
    create(&client, "before");
    let leader = members.iter().position(leads).expect("a leader, for the mounts have succeeded");
    members.remove(leader).close().unwrap();
    eventually("another leader", || members.iter().any(leads));
    create(&client, "after");
    eventually("the client is with the new leader", || client.cluster_status().greetings >= 2);
    for member in &members {
        assert!(exists(member, "before") && exists(member, "after"));
    }
    client.close().unwrap();
    // The last majority leaves together.
    std::thread::scope(|scope| {
        for member in members {
            scope.spawn(move || member.close().unwrap());
        }
    });
    cluster.check();
}
