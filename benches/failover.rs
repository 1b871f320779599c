//! How long the others wait when the leader goes: three processes on one volume over loopback TCP.
//!
//! `cargo bench --bench failover [-- RUNS [killed|leaves]]` (default 3 of each kind). A node is a process of this program; each creates files as
//! fast as it can and reports when each one was done. The parent kills the leader with SIGKILL, or has it leave, and looks for the
//! longest time in which nobody else finished anything.
//!
//! Targets: kill ≤ heartbeat timeout + 2 s; leaving ≤ 1 s.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use scoutfs::device::{DirectIo, FileDevice, FileOptions};
use scoutfs::namespace::Caller;
use scoutfs::net::TcpTransport;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::server::HostFencer;
use scoutfs::{Environment, Ino, Volume, VolumeOptions};

const SLOTS: u8 = 3;
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
const NODE: &str = "SCOUTFS_FAILOVER_NODE";
const DIR: &str = "SCOUTFS_FAILOVER_DIR";

fn main() {
    if let Ok(slot) = std::env::var(NODE) {
        let dir = PathBuf::from(std::env::var(DIR).expect("the parent says where"));
        return node(&dir, slot.parse().expect("a slot number"));
    }
    let runs = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(3);
    let only = std::env::args().find(|a| ["killed", "leaves"].contains(&a.as_str())).unwrap_or_default();
    let mut late = false;
    let kinds = [
        ("leader killed", true, HEARTBEAT_TIMEOUT + Duration::from_secs(2)),
        ("leader leaves", false, Duration::from_secs(1)),
    ];
    for (what, kill, limit) in kinds.into_iter().filter(|(what, ..)| what.ends_with(&only)) {
        let mut times: Vec<Duration> = (0..runs).map(|_| run(kill)).collect();
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        let ratio = worst.as_secs_f64() / limit.as_secs_f64();
        println!("failover: {what}: all {times:.2?}");
        println!(
            "failover: {what}: median {median:.2?}, worst {worst:.2?} of {runs}, limit {limit:?}, ratio {ratio:.2}"
        );
        late |= ratio > 1.0;
    }
    if late {
        println!("failover: TARGET MISSED");
    }
}

/// Nanoseconds of the clock that all processes of the host share.
fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// One node: reports `done BEGUN` for each file, `leads` when it leads; leaves on the first line of input.
fn node(dir: &Path, slot: u8) {
    let options = |direct| FileOptions { direct, ..FileOptions::default() };
    let meta = FileDevice::open(dir.join("meta"), &options(DirectIo::Preferred)).expect("the metadata device");
    let data = FileDevice::open(dir.join("data"), &options(DirectIo::Off)).expect("the data device");
    let mut options = VolumeOptions::member(slot);
    options.heartbeat_timeout = HEARTBEAT_TIMEOUT;
    let environment = Environment {
        transport: Some(TcpTransport::new((&options).into()).expect("a transport")),
        fencer: Some(Arc::new(HostFencer::new(dir.join("marks")).expect("a fencer"))),
    };
    let volume = Volume::open_in(meta, data, options, environment).expect("a mount");
    let leave = Arc::new(AtomicBool::new(false));
    let told = leave.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        told.store(true, Ordering::Relaxed);
    });
    let own = volume.mkdir(&Caller::root(), Ino::ROOT, format!("node-{slot}").as_bytes(), 0o755).expect("a directory");
    let mut nr = 0;
    while !leave.load(Ordering::Relaxed) {
        let begun = now();
        nr += 1;
        // In its own directory, and with a look at what all share.
        volume.create(&Caller::root(), own.ino, format!("file-{nr}").as_bytes(), 0o644).expect("a file");
        volume.lookup(&Caller::root(), Ino::ROOT, format!("node-{slot}").as_bytes()).expect("the directory");
        // Leaves nothing to caches: a server has to confirm it.
        volume.sync().expect("durable");
        println!("done {begun} {}", now());
        let member = volume.cluster_status().member.expect("a member");
        if member.leader && member.server_term == member.term {
            println!("leads");
        }
    }
    println!("leaving {}", now());
    volume.close().expect("a clean end");
}

struct Node {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

fn start(dir: &Path, slot: u8) -> Node {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .env(NODE, slot.to_string())
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let input = child.stdin.take().expect("piped");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    Node { child, input, lines }
}

/// The node that leads, when every node has done something.
fn wait_for_leader(nodes: &[Node]) -> usize {
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut worked, mut leader) = ([false; SLOTS as usize], None);
    while leader.is_none() || worked.contains(&false) {
        assert!(Instant::now() < deadline, "no leader");
        for (i, node) in nodes.iter().enumerate() {
            for line in node.lines.try_iter() {
                worked[i] = true;
                if line == "leads" {
                    leader = Some(i);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    leader.expect("the loop has ended")
}

/// The longest time in which none of these nodes finished anything, among `watch` from `since` on.
fn longest_pause(nodes: &[Node], since: u64, watch: Duration) -> Duration {
    std::thread::sleep(watch);
    let done = |line: String| -> Option<u64> {
        let mut words = line.split_whitespace();
        (words.next() == Some("done")).then(|| words.nth(1)?.parse().ok()).flatten()
    };
    let mut times: Vec<u64> = nodes.iter().flat_map(|node| node.lines.try_iter().filter_map(done)).collect();
    times.retain(|t| *t >= since);
    times.sort_unstable();
    assert!(!times.is_empty(), "nobody goes on");
    let before = std::iter::once(since).chain(times.iter().copied());
    let pauses = before.zip(&times).map(|(from, to)| to - from);
    Duration::from_nanos(pauses.max().expect("there are some"))
}

fn run(kill: bool) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let size = 64 << 30;
    let meta = FileDevice::create(dir.path().join("meta"), size).expect("a sparse file");
    let data = FileDevice::create(dir.path().join("data"), size).expect("a sparse file");
    let slots = (0..SLOTS).map(|nr| format!("{nr},127.0.0.1,{}", free_port()).parse().expect("a slot")).collect();
    mkfs(&*meta, &*data, &MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() })
        .expect("a volume");
    let mut nodes: Vec<Node> = (0..SLOTS).map(|slot| start(dir.path(), slot)).collect();
    let leader = wait_for_leader(&nodes);
    std::thread::sleep(Duration::from_secs(1));
    let mut gone = nodes.remove(leader);
    let before = now();
    if kill {
        gone.child.kill().expect("a process to kill");
    } else {
        writeln!(gone.input).expect("it listens");
    }
    let pause = longest_pause(&nodes, before, HEARTBEAT_TIMEOUT + Duration::from_secs(4));
    gone.child.wait().expect("its end");
    for node in &mut nodes {
        writeln!(node.input).expect("it listens");
    }
    for node in &mut nodes {
        assert!(node.child.wait().expect("its end").success(), "a node failed");
    }
    if !kill {
        let report = check(&*meta, &*data, &CheckOptions::default()).expect("a volume");
        assert!(report.is_clean(), "{report:?}");
    }
    pause
}

fn free_port() -> u16 {
    loop {
        let port = UdpSocket::bind("127.0.0.1:0").expect("a socket").local_addr().expect("bound").port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
