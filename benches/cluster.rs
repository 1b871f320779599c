//! What it costs that a volume has several nodes: hand-overs of locks, and nodes that work side by side.
//!
//! ```text
//! cargo bench --bench cluster              # about half a minute
//! cargo bench --bench cluster -- create    # only what has this in its name
//! ```
//!
//! Three nodes in this process over TCP on the loopback address, on devices in memory. The metadata device has been written
//! all over before, so that no write waits for a page to be found and cleared: it takes 6 GiB. The figures are compared with a
//! round trip of 48 bytes between two threads over such a connection and with a commit, measured in the same run.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use scoutfs::device::{BlockDevice, DirectIo, FileDevice, FileOptions, MemDevice};
use scoutfs::namespace::Caller;
use scoutfs::{Errno, Ino, Volume};

#[path = "../tests/common/cluster.rs"]
mod cluster;

use cluster::Cluster;

/// The allocator of the examples.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 300;
const REPEATS: usize = 5;
const FILES: usize = 30_000;
/// More than what the original needs, so that the numbers of a large volume apply.
const META_BYTES: u64 = 6 << 30;
static CHUNK: [u8; 65536] = [0; 65536];

/// Seconds for each of `rounds` calls: the median of several series.
fn each(rounds: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut series: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            (0..rounds).for_each(&mut call);
            start.elapsed().as_secs_f64() / rounds as f64
        })
        .collect();
    series.sort_by(f64::total_cmp);
    series[REPEATS / 2]
}

fn round_trip() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let echo = std::thread::spawn(move || {
        let mut message = [0; 48];
        while far.read_exact(&mut message).is_ok() {
            far.write_all(&message).unwrap();
        }
    });
    let mut message = [0; 48];
    let time = each(2000, |_| {
        near.write_all(&message).unwrap();
        near.read_exact(&mut message).unwrap();
    });
    drop(near);
    echo.join().unwrap();
    time
}

struct Bench {
    /// The server, and two clients of it.
    server: Volume,
    nodes: [Volume; 2],
    round_trip: f64,
    commit: f64,
    filter: Option<String>,
}

fn root() -> Caller {
    Caller::root()
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|f| name.contains(f.as_str()))
    }

    fn file(&self, name: &str) -> Ino {
        let dir = self.nodes[0].mkdir(&root(), Ino::ROOT, name.as_bytes(), 0o755).unwrap().ino;
        let file = self.nodes[0].create(&root(), dir, b"file", 0o644).unwrap().ino;
        self.nodes[0].write(&root(), file, 0, &[0; 8]).unwrap();
        file
    }

    /// The lock of a file's group goes from one node that may write to another; nothing is dirty.
    fn clean(&self) {
        const NAME: &str = "hand-over of a clean lock";
        if !self.wants(NAME) {
            return;
        }
        // A call that takes the lock for a change and then finds nothing to change. It also reads items: what it finds
        // under a new grant is asked for anew, from the roots of the server's last commit.
        let file = self.file("clean");
        self.nodes[0].sync().unwrap();
        let time = each(ROUNDS, |i| {
            let refused = self.nodes[i % 2].removexattr(&root(), file, b"user.none").unwrap_err();
            assert_eq!(refused.errno(), Errno::ENODATA);
        });
        println!("{NAME:<44} {:>9.1} µs {:>7.1} round trips (wanted: at most 4)", time * 1e6, time / self.round_trip);
    }

    fn dirty(&self) {
        const NAME: &str = "hand-over of a dirty inode, write then read";
        if !self.wants(NAME) {
            return;
        }
        let file = self.file("dirty");
        let time = each(ROUNDS, |i| {
            let value = (i as u64).to_le_bytes();
            self.nodes[0].write(&root(), file, 0, &value).unwrap();
            let mut found = [0; 8];
            self.nodes[1].read(file, 0, &mut found).unwrap();
            assert_eq!(found, value);
        });
        // The write takes the lock back, the read takes it over.
        let allowed = 8.0 * self.round_trip + self.commit;
        println!("{NAME:<44} {:>9.1} µs {:>7.2} of 8 round trips and a commit", time * 1e6, time / allowed);
    }

    fn alternating(&self) {
        const NAME: &str = "two nodes write one file in turn";
        if !self.wants(NAME) {
            return;
        }
        let time = self.in_turn("alternating", 3000);
        println!("{NAME:<44} {:>9.0} hand-overs/s (wanted: 2,000)", 1.0 / time);
    }

    /// Seconds for a write by one node and the next by the other.
    fn in_turn(&self, name: &str, rounds: usize) -> f64 {
        let file = self.file(name);
        each(rounds, |i| {
            self.nodes[i % 2].write(&root(), file, 0, &[i as u8; 8]).unwrap();
        })
    }

    fn end(self) {
        std::thread::sleep(Duration::from_millis(10));
        for node in self.nodes {
            node.close().unwrap();
        }
        self.server.close().unwrap();
    }

    fn creating(&self) {
        const NAME: &str = "two nodes create in different directories";
        if !self.wants(NAME) {
            return;
        }
        let mut ratios = Vec::new();
        for repeat in 0..REPEATS {
            let create = |node: usize, name: String| {
                let node = &self.nodes[node];
                let dir = node.mkdir(&root(), Ino::ROOT, name.as_bytes(), 0o755).unwrap().ino;
                for i in 0..FILES {
                    node.create(&root(), dir, format!("file {i}").as_bytes(), 0o644).unwrap();
                }
            };
            let start = Instant::now();
            create(0, format!("alone {repeat}"));
            let alone = start.elapsed();
            let start = Instant::now();
            std::thread::scope(|scope| {
                for node in 0..2 {
                    scope.spawn(move || create(node, format!("together {repeat} {node}")));
                }
            });
            ratios.push(2.0 * alone.as_secs_f64() / start.elapsed().as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        let (median, best) = (ratios[REPEATS / 2], ratios[REPEATS - 1]);
        println!("{NAME:<44} {median:>9.2} of one node, at best {best:.2} (wanted: 1.6)");
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let meta = MemDevice::new(META_BYTES);
    (0..META_BYTES).step_by(CHUNK.len()).for_each(|at| meta.write_at(at, &CHUNK).unwrap());
    let cluster = Cluster::on(meta, MemDevice::new(64 << 30), 1);
    let (server, nodes) = mount_all(&cluster);
    let file = nodes[0].create(&root(), Ino::ROOT, b"commits", 0o644).unwrap().ino;
    let commit = each(50, |i| {
        nodes[0].write(&root(), file, 0, &[i as u8]).unwrap();
        nodes[0].sync().unwrap();
    });
    let bench = Bench { server, nodes, round_trip: round_trip(), commit, filter };
    println!("round trip {:.1} µs, commit {:.1} µs", bench.round_trip * 1e6, bench.commit * 1e6);
    bench.clean();
    bench.dirty();
    bench.alternating();
    bench.creating();
    bench.end();
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    slow_flushes(&filter);
    on_files(&filter);
}

/// The server, and two clients of it.
fn mount_all(cluster: &Cluster) -> (Volume, [Volume; 2]) {
    let server = cluster.mount(Some(0));
    (server, [cluster.mount(None), cluster.mount(None)])
}

/// A device in memory whose flushes take as long as those of a disk or a network device.
struct SlowFlush {
    memory: Arc<MemDevice>,
    flushes: AtomicU64,
}

/// Of a disk with a cache that survives a power cut it would be a tenth, without one several times this.
const FLUSH: Duration = Duration::from_millis(4);

impl BlockDevice for SlowFlush {
    fn name(&self) -> String {
        self.memory.name()
    }

    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> scoutfs::Result<()> {
        self.memory.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> scoutfs::Result<()> {
        self.memory.write_at(offset, buf)
    }

    fn flush(&self) -> scoutfs::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(FLUSH);
        self.memory.flush()
    }
}

/// Hand-overs of a dirty file on devices with flushes that take their time.
fn slow_flushes(filter: &Option<String>) {
    const NAME: &str = "the same in turn, flushes take 4 ms";
    if filter.as_ref().is_some_and(|f| !NAME.contains(f.as_str())) {
        return;
    }
    let device = |size| Arc::new(SlowFlush { memory: MemDevice::new(size), flushes: AtomicU64::new(0) });
    let (meta, data) = (device(META_BYTES), device(64 << 30));
    let cluster = Cluster::on(meta.clone(), data.clone(), 1);
    let (server, nodes) = mount_all(&cluster);
    let bench = Bench { server, nodes, round_trip: 0.0, commit: 0.0, filter: None };
    let flushes = || meta.flushes.load(Ordering::Relaxed) + data.flushes.load(Ordering::Relaxed);
    let (start, before) = (Instant::now(), flushes());
    meta.flush().unwrap();
    let flush = start.elapsed().as_secs_f64();
    let time = bench.in_turn("slow", 30);
    let each = (flushes() - before) as f64 / (REPEATS * 30) as f64;
    println!("{NAME:<44} {:>9.2} of the rate of flushes, {each:.1} flushes each (wanted: 0.5)", flush / time);
    bench.end();
}

/// Hand-overs of a dirty file on devices that are files, against flushes of such a file.
fn on_files(filter: &Option<String>) {
    const NAME: &str = "the same in turn, devices are files";
    if filter.as_ref().is_some_and(|f| !NAME.contains(f.as_str())) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let create = |name: &str, size| {
        let path = dir.path().join(name);
        drop(FileDevice::create(&path, size).unwrap());
        // As the examples open the metadata device.
        let direct = if name == "data" { DirectIo::Off } else { DirectIo::Preferred };
        FileDevice::open(&path, &FileOptions { direct, ..FileOptions::default() }).unwrap()
    };
    let device = create("flushed", 64 << 20);
    let flush = each(100, |i| {
        device.write_at(i as u64 * CHUNK.len() as u64, &CHUNK).unwrap();
        device.flush().unwrap();
    });
    let cluster = Cluster::on(create("meta", META_BYTES), create("data", 64 << 30), 1);
    let (server, nodes) = mount_all(&cluster);
    let bench = Bench { server, nodes, round_trip: 0.0, commit: 0.0, filter: None };
    let time = bench.in_turn("files", 50);
    println!("{NAME:<44} {:>9.2} of {:.0} flushes/s (wanted: 0.5)", flush / time, 1.0 / flush);
    bench.end();
}
