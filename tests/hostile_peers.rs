//! A running cluster and somebody on its network who does not keep to the protocol: raw sockets against the real server.
//!
//! Whatever is sent, the connection or the client is dropped, and the mounts go on.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scoutfs::device::{BlockDevice, MemDevice};
use scoutfs::format::Rid;
use scoutfs::namespace::Caller;
use scoutfs::net::{TcpOptions, TcpTransport};
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::server::{FenceReason, Fencer};
use scoutfs::{Environment, Ino, Volume, VolumeOptions};

const GREETING: u8 = 0;
const ALLOC_INODES: u8 = 1;
const GET_ROOTS: u8 = 5;
const LOCK: u8 = 7;
const LOCK_RECOVER: u8 = 8;
const STATFS: u8 = 18;
const FAREWELL: u8 = 19;

const WRITE: u8 = 2;
/// The group of inodes that the hostile peer takes.
const GROUP: u64 = 77;

/// Confirms every fence and remembers it.
#[derive(Default)]
struct Fences(Mutex<Vec<(u64, FenceReason)>>);

impl Fencer for Fences {
    fn fence(&self, rid: Rid, _addr: Option<IpAddr>, reason: FenceReason) -> scoutfs::Result<()> {
        self.0.lock().unwrap().push((rid.0, reason));
        Ok(())
    }
}

/// One member that leads, over TCP on the loopback address.
struct Victim {
    meta: Arc<dyn BlockDevice>,
    data: Arc<dyn BlockDevice>,
    addr: SocketAddr,
    fsid: [u8; 8],
    fences: Arc<Fences>,
    volume: Volume,
    files: usize,
}

impl Victim {
    fn new() -> Victim {
        let (meta, data): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) =
            (MemDevice::new(64 << 30), MemDevice::new(64 << 30));
        let port = free_port();
        let slot = format!("0,127.0.0.1,{port}").parse().unwrap();
        mkfs(&*meta, &*data, &MkfsOptions { allow_small: true, quorum_slots: vec![slot], ..MkfsOptions::default() })
            .unwrap();
        let mut fsid = [0; 8];
        meta.read_at(16 * 4096 + 8, &mut fsid).unwrap();
        let fences = Arc::new(Fences::default());
        let volume = mount(&meta, &data, Some(0), &fences);
        Victim { meta, data, addr: ([127, 0, 0, 1], port).into(), fsid, fences, volume, files: 0 }
    }

    /// The mount works: a new file is created and durable, and a second mount may come and see it.
    fn works(&mut self) {
        self.files += 1;
        let name = format!("file-{}", self.files);
        self.volume.create(&Caller::root(), Ino::ROOT, name.as_bytes(), 0o644).unwrap();
        self.volume.sync().unwrap();
    }

    fn ends_clean(mut self) {
        self.works();
        let other = mount(&self.meta, &self.data, None, &self.fences);
        assert!(other.lookup(&Caller::root(), Ino::ROOT, b"file-1").is_ok());
        other.close().unwrap();
        let member = self.volume.cluster_status().member.unwrap();
        assert!(member.leader && member.failed.is_none(), "{member:?}");
        self.volume.close().unwrap();
        let report = check(&*self.meta, &*self.data, &CheckOptions::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn mount(meta: &Arc<dyn BlockDevice>, data: &Arc<dyn BlockDevice>, slot: Option<u8>, fences: &Arc<Fences>) -> Volume {
    let mut options = VolumeOptions::default();
    options.quorum_slot = slot;
    let environment = Environment {
        transport: Some(TcpTransport::new(TcpOptions::default()).unwrap()),
        fencer: Some(fences.clone()),
    };
    Volume::open_in(meta.clone(), data.clone(), options, environment).unwrap()
}

fn free_port() -> u16 {
    loop {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

struct Frame {
    seq: u64,
    id: u64,
    len: u16,
    cmd: u8,
    flags: u8,
    error: u8,
}

impl Frame {
    fn request(seq: u64, cmd: u8, payload: &[u8]) -> Frame {
        Frame { seq, id: seq, len: payload.len() as u16, cmd, flags: 0, error: 0 }
    }

    fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [self.seq, 0, self.id] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&[self.cmd, self.flags, self.error, 0, 0, 0]);
        out.extend_from_slice(payload);
        out
    }
}

/// A socket that says whatever it likes.
struct Peer(TcpStream);

impl Peer {
    fn connect(victim: &Victim) -> Peer {
        let stream = TcpStream::connect(victim.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        Peer(stream)
    }

    fn say(&mut self, bytes: &[u8]) {
        // It may have been closed already.
        let _ = self.0.write_all(bytes);
    }

    fn greet(&mut self, victim: &Victim, rid: u64, seq: u64, term: u64) {
        let mut payload = victim.fsid.to_vec();
        for number in [2, term, rid, 0] {
            payload.extend_from_slice(&u64::to_le_bytes(number));
        }
        self.say(&Frame::request(seq, GREETING, &payload).bytes(&payload));
    }

    /// A peer that has been let in as `rid`.
    fn greeted(victim: &Victim, rid: u64) -> Peer {
        let mut peer = Peer::connect(victim);
        peer.greet(victim, rid, 1, 0);
        let (cmd, error, _) = peer.hear().expect("an answer to the greeting");
        assert_eq!((cmd, error), (GREETING, 0));
        peer
    }

    /// Command, error code and payload of the next message; `None` when the socket was closed.
    fn hear(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        self.hear_all().map(|(cmd, error, _, payload)| (cmd, error, payload))
    }

    fn hear_all(&mut self) -> Option<(u8, u8, u64, Vec<u8>)> {
        let mut head = [0; 32];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("neither an answer nor the end"),
            Err(_) => return None,
        }
        let id = u64::from_le_bytes(head[16..24].try_into().unwrap());
        let mut payload = vec![0; usize::from(u16::from_le_bytes([head[24], head[25]]))];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[26], head[28], id, payload))
    }

    fn is_cut_off(&mut self) -> bool {
        while self.hear().is_some() {}
        true
    }

    /// Takes the group for writing, as a client may.
    fn takes_group(&mut self) {
        let payload = lock(GROUP, 0, WRITE);
        self.say(&Frame::request(2, LOCK, &payload).bytes(&payload));
        let (cmd, error, payload) = self.hear().unwrap();
        assert_eq!((cmd, error, payload[41]), (LOCK, 0, WRITE));
    }
}

/// A LOCK payload for a group of inodes.
fn lock(group: u64, old: u8, new: u8) -> Vec<u8> {
    let mut payload = vec![0; 48];
    payload[..8].copy_from_slice(&(group * 1024).to_le_bytes());
    payload[25] = 16;
    payload[40] = old;
    payload[41] = new;
    payload
}

#[test]
fn bad_frames_and_lengths_end_the_connection_and_nothing_else() {
    let mut victim = Victim::new();
    victim.works();
    let frame = |cmd| Frame::request(2, cmd, &[]);
    let recover = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &lock(GROUP, WRITE, WRITE)].concat();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("seq 0", Frame { seq: 0, ..frame(STATFS) }.bytes(&[])),
        ("id 0", Frame { id: 0, ..frame(STATFS) }.bytes(&[])),
        ("an unknown command", frame(20).bytes(&[])),
        ("the greatest command", frame(255).bytes(&[])),
        ("unknown flags", Frame { flags: 2, ..frame(STATFS) }.bytes(&[])),
        ("a request with an error", Frame { error: 1, ..frame(STATFS) }.bytes(&[])),
        ("an unknown error", Frame { error: 7, flags: 1, ..frame(STATFS) }.bytes(&[])),
        ("a payload that is too long", Frame { len: 1101, ..frame(STATFS) }.bytes(&[0; 1101])),
        ("the longest payload", Frame { len: u16::MAX, ..frame(STATFS) }.bytes(&[])),
        ("a lock request of 47 bytes", Frame { len: 47, ..frame(LOCK) }.bytes(&[0; 47])),
        ("a farewell with a payload", Frame { len: 1, ..frame(FAREWELL) }.bytes(&[0])),
        ("a request that only servers send", Frame { len: 32, ..frame(LOCK_RECOVER) }.bytes(&[0; 32])),
        ("a second greeting", Frame { len: 40, ..frame(GREETING) }.bytes(&[0; 40])),
        ("a mode that does not exist", Frame { len: 48, ..frame(LOCK) }.bytes(&lock(GROUP, 0, 4))),
        ("a lock that does not exist", Frame { len: 48, ..frame(LOCK) }.bytes(&[1; 48])),
        ("garbage", (0..5000u32).map(|i| (i * i % 251) as u8).collect()),
        ("nothing but ones", vec![0xff; 4000]),
        ("a report that nobody wants", Frame { len: 56, flags: 1, ..frame(LOCK_RECOVER) }.bytes(&recover)),
    ];
    for (nr, (what, bytes)) in bad.iter().enumerate() {
        let mut peer = Peer::greeted(&victim, 1000 + nr as u64);
        peer.say(bytes);
        let unsolicited = *what == "a report that nobody wants";
        if unsolicited {
            // An answer to no question is dropped; the connection is as good as before.
            peer.say(&Frame::request(3, GET_ROOTS, &[]).bytes(&[]));
            assert_eq!(peer.hear().map(|m| m.0), Some(GET_ROOTS), "{what}");
        } else {
            assert!(peer.is_cut_off(), "{what}");
        }
        // Goes in order, so that nobody has to be fenced for it.
        let mut peer = Peer::connect(&victim);
        peer.greet(&victim, 1000 + nr as u64, 900, victim.volume.cluster_status().server_term);
        assert_eq!(peer.hear().map(|m| m.1), Some(0), "{what}: it may come back");
        peer.say(&Frame::request(901, FAREWELL, &[]).bytes(&[]));
        while peer.hear().expect("an answer to the farewell").0 != FAREWELL {}
        victim.works();
    }
    assert!(victim.fences.0.lock().unwrap().is_empty());
    victim.ends_clean();
}

#[test]
fn duplicates_and_replays_are_executed_once() {
    let mut victim = Victim::new();
    victim.works();
    let mut peer = Peer::greeted(&victim, 7);
    let count = 8u64.to_le_bytes();
    let ask = Frame::request(2, ALLOC_INODES, &count).bytes(&count);
    for _ in 0..5 {
        peer.say(&ask);
    }
    peer.say(&Frame::request(3, GET_ROOTS, &[]).bytes(&[]));
    assert_eq!(peer.hear().unwrap().0, ALLOC_INODES);
    assert_eq!(peer.hear().unwrap().0, GET_ROOTS, "the copies were ignored");
    // The whole conversation once more: the greeting is an earlier one than that which was let in.
    let mut replay = Peer::connect(&victim);
    replay.greet(&victim, 7, 1, 0);
    assert_ne!(replay.hear().map_or(5, |m| m.1), 0);
    replay.say(&ask);
    assert!(replay.is_cut_off());
    peer.say(&Frame::request(4, FAREWELL, &[]).bytes(&[]));
    assert_eq!(peer.hear().unwrap().0, FAREWELL, "the first connection goes on");
    victim.ends_clean();
}

#[test]
fn greetings_of_other_terms_and_volumes_are_refused() {
    let mut victim = Victim::new();
    victim.works();
    let term = victim.volume.cluster_status().server_term;
    for wrong in [term, term + 1, u64::MAX] {
        let mut peer = Peer::connect(&victim);
        peer.greet(&victim, 9, 1, wrong);
        assert!(peer.hear().is_none_or(|m| m.1 != 0), "term {wrong} of a client that nobody knows");
        assert!(peer.is_cut_off());
    }
    for (at, rid) in [(0, 9), (8, 9), (24, 0), (24, u64::MAX)] {
        let mut payload = [&victim.fsid[..], &2u64.to_le_bytes(), &[0; 8], &9u64.to_le_bytes(), &[0; 8]].concat();
        if at == 24 {
            payload[24..32].copy_from_slice(&rid.to_le_bytes());
        } else {
            payload[at] ^= 1;
        }
        let mut peer = Peer::connect(&victim);
        peer.say(&Frame::request(1, GREETING, &payload).bytes(&payload));
        assert_ne!(peer.hear().map_or(5, |m| m.1), 0);
    }
    victim.works();
    assert!(victim.fences.0.lock().unwrap().is_empty(), "whoever was never let in is never fenced");
    victim.ends_clean();
}

/// What the peer holds is wanted by the mount; it says that it keeps it.
#[test]
fn a_peer_that_lies_about_its_mode_is_fenced_and_the_mount_goes_on() {
    let mut victim = Victim::new();
    victim.works();
    let mut peer = Peer::greeted(&victim, 7);
    peer.takes_group();
    let wanted = Instant::now();
    std::thread::scope(|scope| {
        let (volume, asking) = (&victim.volume, Ino(GROUP * 1024 + 1));
        let waits = scope.spawn(move || volume.getattr(asking).is_err());
        let (cmd, _, id, _) = peer.hear_all().unwrap();
        assert_eq!(cmd, LOCK, "it is asked to give it up");
        let payload = lock(GROUP, WRITE, WRITE);
        peer.say(&Frame { id, flags: 1, ..Frame::request(3, LOCK, &payload) }.bytes(&payload));
        assert!(peer.is_cut_off());
        assert!(waits.join().unwrap(), "there is no such inode, but there is an answer");
    });
    assert!(wanted.elapsed() < Duration::from_secs(5), "{:?}", wanted.elapsed());
    assert_eq!(*victim.fences.0.lock().unwrap(), [(7, FenceReason::ClientReconnect)]);
    let mut again = Peer::connect(&victim);
    again.greet(&victim, 7, 50, victim.volume.cluster_status().server_term);
    assert_ne!(again.hear().map_or(5, |m| m.1), 0, "it is not let in again");
    victim.ends_clean();
}

/// Its connection stays as alive as that of a process that was stopped.
#[test]
fn a_peer_that_never_answers_is_fenced_and_the_mount_goes_on() {
    let mut victim = Victim::new();
    victim.works();
    let mut peer = Peer::greeted(&victim, 7);
    peer.takes_group();
    let wanted = Instant::now();
    assert!(victim.volume.getattr(Ino(GROUP * 1024 + 1)).is_err());
    let took = wanted.elapsed();
    assert!((Duration::from_secs(20)..Duration::from_secs(40)).contains(&took), "{took:?}");
    assert_eq!(*victim.fences.0.lock().unwrap(), [(7, FenceReason::ClientReconnect)]);
    victim.ends_clean();
}

#[test]
fn silent_and_slow_connections_keep_nobody_out() {
    let mut victim = Victim::new();
    victim.works();
    let silent: Vec<Peer> = (0..400).map(|_| Peer::connect(&victim)).collect();
    // One byte of a greeting now and then.
    let mut slow = Peer::connect(&victim);
    slow.say(&[1]);
    let other = mount(&victim.meta, &victim.data, None, &victim.fences);
    assert!(other.lookup(&Caller::root(), Ino::ROOT, b"file-1").is_ok());
    other.close().unwrap();
    victim.works();
    assert!(slow.is_cut_off(), "whoever has not greeted after 10 s goes");
    drop(silent);
    victim.ends_clean();
}

#[test]
fn a_flood_of_requests_does_not_hold_up_the_mount() {
    let mut victim = Victim::new();
    victim.works();
    let mut peer = Peer::greeted(&victim, 7);
    let mut flood = peer.0.try_clone().unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let flooding = std::thread::spawn(move || {
        let mut seq = 2;
        flood.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // Answers are never read, so in the end the socket takes no more; that is the point.
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let count = 1u64.to_le_bytes();
            if flood.write_all(&Frame::request(seq, ALLOC_INODES, &count).bytes(&count)).is_err() {
                break;
            }
            seq += 1;
        }
        seq
    });
    for _ in 0..20 {
        let start = Instant::now();
        victim.works();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(flooding.join().unwrap() > 1000);
    peer.say(&[0; 32]);
    drop(peer);
    victim.works();
    victim.volume.close().unwrap();
}

#[test]
fn garbage_datagrams_change_no_election() {
    let mut victim = Victim::new();
    victim.works();
    let before = victim.volume.cluster_status().member.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..5000u64 {
        let len = (i % 70) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|n| (i * 31 + n as u64 * 7) as u8).collect();
        if len >= 32 {
            // The right volume, a great term, a wrong checksum.
            bytes[..8].copy_from_slice(&victim.fsid);
            bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
            bytes[24] = (i % 4) as u8;
            bytes.truncate(32 + (i % 2) as usize);
        }
        let _ = socket.send_to(&bytes, victim.addr);
    }
    victim.works();
    let after = victim.volume.cluster_status().member.unwrap();
    assert_eq!((before.term, before.leader), (after.term, after.leader));
    victim.ends_clean();
}
