//! The NBD client against real servers, `qemu-nbd` and `nbdkit`, which are killed and started again under load.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scoutfs::device::{self, BlockDevice, FileDevice, FileOptions, NbdDevice, NbdOptions};
use scoutfs::namespace::Caller;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

const SIZE: u64 = 64 << 20;

/// Is the program there? If not, that is said aloud, and is a failure in CI.
fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed, and must be in CI");
        eprintln!("NOT TESTED: {program} is not installed (Debian: qemu-utils, nbdkit)");
    }
    found
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Qemu,
    QemuUnix,
    Nbdkit,
}

/// A server of the file `disk` that can be killed and started again.
struct Server {
    kind: Kind,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server {
    fn start(kind: Kind, dir: &Path, size: u64) -> Server {
        FileDevice::create(dir.join("disk"), size).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Server { kind, dir: dir.to_owned(), port, child: None };
        server.up();
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    fn url(&self) -> String {
        match self.kind {
            Kind::QemuUnix => format!("nbd+unix:///disk?socket={}", self.socket().display()),
            _ => format!("nbd://127.0.0.1:{}/disk", self.port),
        }
    }

    fn up(&mut self) {
        let mut command = match self.kind {
            Kind::Nbdkit => Command::new("nbdkit"),
            _ => Command::new("qemu-nbd"),
        };
        let port = self.port.to_string();
        let qemu = ["--shared=8", "--persistent", "--format=raw", "--export-name=disk", "--discard=unmap"];
        match self.kind {
            Kind::Nbdkit => command.args(["-f", "-i", "127.0.0.1", "-p", &port, "file"]).arg(self.dir.join("disk")),
            Kind::Qemu => command.args(qemu).args(["--bind=127.0.0.1", "--port", &port]).arg(self.dir.join("disk")),
            Kind::QemuUnix => {
                let _ = std::fs::remove_file(self.socket());
                command.args(qemu).arg("--socket").arg(self.socket()).arg(self.dir.join("disk"))
            }
        };
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let options = NbdOptions { read_only: true, ..NbdOptions::default() };
        while NbdDevice::open(&self.url(), &options).is_err() {
            assert!(Instant::now() < deadline, "{:?} does not start", self.kind);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn shared() -> FileOptions {
    FileOptions::default()
}

fn basics(kind: Kind) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(kind, dir.path(), SIZE);
    let dev = device::open(server.url(), &shared()).unwrap();
    assert_eq!((dev.size(), dev.name()), (SIZE, server.url()));
    let big: Vec<u8> = (0..5 << 20).map(|i| (i / 4096 % 251) as u8).collect();
    dev.write_at(1 << 20, &big).unwrap();
    dev.write_batch(&[(0, &[1; 4096]), (4096, &[2; 4096]), (65536, &[3; 65536])]).unwrap();
    dev.write_durable(SIZE - 4096, &[9; 4096]).unwrap();
    dev.flush().unwrap();
    let mut back = vec![0; big.len()];
    dev.read_at(1 << 20, &mut back).unwrap();
    assert!(back == big);
    // Another connection sees the same device.
    let other = device::open(server.url(), &shared()).unwrap();
    let mut sector = [0; 4096];
    for (at, value) in [(0, 1), (4096, 2), (65536 + 61440, 3), (SIZE - 4096, 9)] {
        other.read_at(at, &mut sector).unwrap();
        assert_eq!(sector, [value; 4096]);
    }
    dev.discard(1 << 20, 1 << 20).unwrap();
    other.read_at(2 << 20, &mut back[..4096]).unwrap();
    assert!(back[..4096] == big[1 << 20..(1 << 20) + 4096], "discarded only what was asked");
    assert!(dev.read_at(SIZE, &mut sector).is_err() && dev.write_at(SIZE, &sector).is_err());
    let read_only = FileOptions { read_only: true, ..FileOptions::default() };
    assert!(device::open(server.url(), &read_only).unwrap().write_at(0, &sector).is_err());
}

/// Four threads write and read while the server is killed and restarted.
fn restarts(kind: Kind) {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(kind, dir.path(), SIZE);
    let dev = NbdDevice::open(&server.url(), &NbdOptions { shared: true, ..NbdOptions::default() }).unwrap();
    let done = AtomicBool::new(false);
    let rounds: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4u64)
            .map(|nr| {
                let (dev, done) = (&dev, &done);
                scope.spawn(move || {
                    let (base, mut round) = (nr * (SIZE / 4), 0u64);
                    while !done.load(Ordering::Relaxed) {
                        round += 1;
                        let data = vec![round as u8; 128 << 10];
                        let at = base + round % 64 * (128 << 10);
                        dev.write_at(at, &data).unwrap();
                        let mut back = vec![0; data.len()];
                        dev.read_at(at, &mut back).unwrap();
                        assert!(back == data, "worker {nr} round {round}");
                        if round % 16 == 0 {
                            dev.flush().unwrap();
                        }
                    }
                    round
                })
            })
            .collect();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(200));
            server.kill();
            std::thread::sleep(Duration::from_millis(100));
            server.up();
        }
        done.store(true, Ordering::Relaxed);
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    dev.flush().unwrap();
    assert!(dev.reconnects() >= 3 && rounds > 40, "{} reconnects, {rounds} rounds", dev.reconnects());
}

/// A volume lives on two exports; both servers are killed while files are written.
fn volume(kind: Kind) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut servers = dirs.each_ref().map(|dir| Server::start(kind, dir.path(), 1 << 30));
    let open = |server: &Server| device::open(server.url(), &shared()).unwrap();
    let options = MkfsOptions {
        allow_small: true,
        quorum_slots: vec!["0,127.0.0.1,12345".parse().unwrap()],
        ..MkfsOptions::default()
    };
    mkfs(&*open(&servers[0]), &*open(&servers[1]), &options).unwrap();
    let mount = |s: &[Server; 2]| Volume::open(open(&s[0]), open(&s[1]), VolumeOptions::member(0)).unwrap();
    let fs = Arc::new(mount(&servers));
    let content = |i: usize| vec![i as u8; 10_000 + i * 100];
    let writer = std::thread::spawn({
        let fs = fs.clone();
        move || {
            for i in 0..120 {
                fs.write_file(format!("/file-{i}"), &content(i)).unwrap();
                if i % 10 == 0 {
                    fs.sync().unwrap();
                }
            }
        }
    });
    for i in 0..4 {
        std::thread::sleep(Duration::from_millis(150));
        servers[i % 2].kill();
        servers[i % 2].up();
    }
    writer.join().unwrap();
    Arc::into_inner(fs).unwrap().close().unwrap();
    let fs = mount(&servers);
    for i in 0..120 {
        assert!(fs.read_file(format!("/file-{i}")).unwrap() == content(i), "file {i}");
    }
    fs.unlink(&Caller::root(), Ino::ROOT, b"file-0").unwrap();
    fs.close().unwrap();
    let report = check(&*open(&servers[0]), &*open(&servers[1]), &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

macro_rules! suite {
    ($name:ident, $program:literal, $kind:expr) => {
        mod $name {
            #[test]
            fn does_what_a_device_does() {
                super::have($program).then(|| super::basics($kind));
            }

            #[test]
            fn loses_nothing_when_the_server_is_killed_and_restarted() {
                super::have($program).then(|| super::restarts($kind));
            }

            #[test]
            fn carries_a_volume_through_restarts() {
                super::have($program).then(|| super::volume($kind));
            }
        }
    };
}

suite!(qemu_nbd, "qemu-nbd", super::Kind::Qemu);
suite!(qemu_nbd_unix, "qemu-nbd", super::Kind::QemuUnix);
suite!(nbdkit, "nbdkit", super::Kind::Nbdkit);

#[test]
fn an_export_of_one_connection_is_not_shared() {
    if !have("qemu-nbd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(Kind::Qemu, dir.path(), SIZE);
    server.kill();
    let port = server.port.to_string();
    let one = ["--persistent", "--format=raw", "--export-name=disk", "--bind=127.0.0.1", "--port", &port];
    server.child = Some(Command::new("qemu-nbd").args(one).arg(dir.path().join("disk")).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", server.port)).is_err() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let error = device::open(server.url(), &shared()).err().expect("not for several nodes").to_string();
    assert!(error.contains("CAN_MULTI_CONN") && error.contains(&server.url()), "{error}");
    let alone = FileOptions { exclusive: true, ..FileOptions::default() };
    device::open(server.url(), &alone).unwrap().write_at(0, &[1; 4096]).unwrap();
    let gone = format!("nbd://127.0.0.1:{port}/nothing");
    let error = device::open(gone, &shared()).err().expect("no such export").to_string();
    assert!(error.contains("nothing"), "{error}");
}
