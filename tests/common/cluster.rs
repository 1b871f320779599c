//! Several nodes in one process: each a mount of the same devices with a TCP transport of its own.

#![allow(dead_code, reason = "each test program uses what it needs")]

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

/// A volume in memory, and where its mounts are known.
pub(crate) struct Cluster {
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
    /// A volume with so many quorum slots on the loopback address.
    pub(crate) fn new(slots: usize) -> Cluster {
        // Sparse; the reserve that the server keeps for each mount is counted in gigabytes.
        Cluster::on(MemDevice::new(64 << 30), MemDevice::new(64 << 30), slots)
    }

    /// The same on these devices.
    pub(crate) fn on(meta: Device, data: Device, slots: usize) -> Cluster {
        let slots = (0..slots).map(|nr| format!("{nr},127.0.0.1,{}", free_port()).parse().unwrap()).collect();
        let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
        mkfs(&*meta, &*data, &options).unwrap();
        Cluster { meta, data, marks: tempfile::tempdir().unwrap() }
    }

    /// One more node; without a slot it is a mere client.
    pub(crate) fn mount(&self, slot: Option<u8>) -> Volume {
        self.mount_through(self.meta.clone(), slot)
    }

    /// The metadata device.
    pub(crate) fn meta(&self) -> Device {
        self.meta.clone()
    }

    /// The same with a device of its own before the metadata device.
    pub(crate) fn mount_through(&self, meta: Device, slot: Option<u8>) -> Volume {
        let mut options = VolumeOptions::default();
        options.quorum_slot = slot;
        options.heartbeat_timeout = Duration::from_secs(2);
        let environment = Environment {
            transport: Some(TcpTransport::new(TcpOptions::default()).unwrap()),
            fencer: Some(Arc::new(HostFencer::new(self.marks.path()).unwrap())),
        };
        Volume::open_in(meta, self.data.clone(), options, environment).unwrap()
    }

    /// The volume must be consistent; nobody has it mounted.
    pub(crate) fn check(&self) {
        let report = check(&*self.meta, &*self.data, &CheckOptions::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

pub(crate) fn create(volume: &Volume, name: &str) {
    volume.create(&Caller::root(), Ino::ROOT, name.as_bytes(), 0o644).unwrap();
}

pub(crate) fn exists(volume: &Volume, name: &str) -> bool {
    volume.lookup(&Caller::root(), Ino::ROOT, name.as_bytes()).is_ok()
}

pub(crate) fn leads(volume: &Volume) -> bool {
    let member = volume.cluster_status().member;
    member.is_some_and(|m| m.leader && m.server_term == m.term)
}

pub(crate) fn eventually(name: &str, mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < deadline, "waited too long for {name}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
