//! End to end: the library in process against the machine's own filesystem through system calls, same operations, same run.
//!
//! ```text
//! cargo bench --bench volume            # 100,000 files, 1 GiB
//! cargo bench --bench volume -- 10000   # fewer files
//! cargo bench --bench volume -- 10000 stat rename library single
//! ```
//!
//! Words choose phases (those that others need run as well, without a line of their own); `library` leaves the filesystem
//! out, `single` the runs with two threads. That is for profilers: the operations of a phase are called from the functions of
//! `Engine`, so for instance `valgrind --tool=callgrind --toggle-collect='<volume::Engine as volume::Side>::stat'` counts those
//! of one phase.
//!
//! Prints operations a second of both and their ratio (above 1: the library is faster). Each phase ends with a sync, which
//! counts; behind the ratio stand its share of the library's time and the processor time an operation of both. The volume's
//! devices are two files in the same temporary folder that the filesystem is measured in.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use scoutfs::device::FileDevice;
use scoutfs::namespace::{Caller, RenameFlags};
use scoutfs::offline::{MkfsOptions, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BLOCK: usize = 4096;
const SEQUENTIAL: u64 = 1 << 30;
const CHUNK: usize = 1 << 20;

/// The operations of one side; `dir` is the directory of the calling thread.
trait Side: Sync {
    fn mkdir(&self, dir: usize);
    fn create(&self, dir: usize, name: &str);
    fn stat(&self, dir: usize, name: &str);
    fn list_stat(&self, dir: usize) -> usize;
    fn write(&self, dir: usize, name: &str, block: &[u8]);
    fn read(&self, dir: usize, name: &str, block: &mut [u8]);
    fn rename(&self, dir: usize, from: &str, to: &str);
    fn unlink(&self, dir: usize, name: &str);
    fn fsync_new(&self, dir: usize, name: &str);
    fn sync(&self);
    fn write_big(&self, name: &str);
    fn read_big(&self, name: &str);
}

struct Kernel {
    root: PathBuf,
}

impl Kernel {
    fn path(&self, dir: usize, name: &str) -> PathBuf {
        self.root.join(format!("d{dir}")).join(name)
    }
}

impl Side for Kernel {
    fn mkdir(&self, dir: usize) {
        fs::create_dir(self.root.join(format!("d{dir}"))).unwrap();
    }
    fn create(&self, dir: usize, name: &str) {
        OpenOptions::new().write(true).create_new(true).open(self.path(dir, name)).unwrap();
    }
    fn stat(&self, dir: usize, name: &str) {
        fs::symlink_metadata(self.path(dir, name)).unwrap();
    }
    fn list_stat(&self, dir: usize) -> usize {
        let entries = fs::read_dir(self.root.join(format!("d{dir}"))).unwrap();
        entries.filter(|e| e.as_ref().unwrap().metadata().is_ok()).count()
    }
    fn write(&self, dir: usize, name: &str, block: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path(dir, name)).unwrap();
        file.write_all_at(block, 0).unwrap();
    }
    fn read(&self, dir: usize, name: &str, block: &mut [u8]) {
        File::open(self.path(dir, name)).unwrap().read_exact_at(block, 0).unwrap();
    }
    fn rename(&self, dir: usize, from: &str, to: &str) {
        fs::rename(self.path(dir, from), self.path(dir, to)).unwrap();
    }
    fn unlink(&self, dir: usize, name: &str) {
        fs::remove_file(self.path(dir, name)).unwrap();
    }
    fn fsync_new(&self, dir: usize, name: &str) {
        let mut file = OpenOptions::new().write(true).create_new(true).open(self.path(dir, name)).unwrap();
        file.write_all(&[7; BLOCK]).unwrap();
        file.sync_all().unwrap();
    }
    fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.root).unwrap()).unwrap();
    }
    fn write_big(&self, name: &str) {
        let mut file = File::create(self.root.join(name)).unwrap();
        let chunk = vec![0x5a; CHUNK];
        for _ in 0..SEQUENTIAL / CHUNK as u64 {
            file.write_all(&chunk).unwrap();
        }
        file.sync_all().unwrap();
    }
    fn read_big(&self, name: &str) {
        let mut file = File::open(self.root.join(name)).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        file.rewind().unwrap();
        let mut chunk = vec![0; CHUNK];
        let mut total = 0;
        loop {
            match file.read(&mut chunk).unwrap() {
                0 => break,
                n => total += n as u64,
            }
        }
        assert_eq!(total, SEQUENTIAL);
    }
}

struct Engine {
    volume: Volume,
    root: Caller,
    dirs: std::sync::RwLock<Vec<Ino>>,
    data: PathBuf,
}

impl Engine {
    fn new(folder: &Path) -> Engine {
        let (meta, data) = (folder.join("meta"), folder.join("data"));
        let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
        let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
        let (m, d) = (FileDevice::create(&meta, 8 << 30).unwrap(), FileDevice::create(&data, 16 << 30).unwrap());
        mkfs(&*m, &*d, &options).unwrap();
        drop((m, d));
        let volume = Volume::open_paths(&meta, &data, VolumeOptions::member(0)).unwrap();
        Engine { volume, root: Caller::root(), dirs: Default::default(), data }
    }
    fn dir(&self, dir: usize) -> Ino {
        self.dirs.read().unwrap()[dir]
    }
    fn find(&self, dir: usize, name: &str) -> Ino {
        self.volume.lookup(&self.root, self.dir(dir), name.as_bytes()).unwrap().ino
    }
}

impl Side for Engine {
    fn mkdir(&self, dir: usize) {
        let made = self.volume.mkdir(&self.root, Ino::ROOT, format!("d{dir}").as_bytes(), 0o755).unwrap();
        let mut dirs = self.dirs.write().unwrap();
        assert_eq!(dirs.len(), dir);
        dirs.push(made.ino);
    }
    fn create(&self, dir: usize, name: &str) {
        self.volume.create(&self.root, self.dir(dir), name.as_bytes(), 0o644).unwrap();
    }
    fn stat(&self, dir: usize, name: &str) {
        self.volume.lookup(&self.root, self.dir(dir), name.as_bytes()).unwrap();
    }
    fn list_stat(&self, dir: usize) -> usize {
        let (mut cursor, mut count) = (0, 0);
        loop {
            let batch = self.volume.readdir_plus(self.dir(dir), cursor, 1024).unwrap();
            count += batch.iter().filter(|e| e.attr.is_some() && e.name != b"." && e.name != b"..").count();
            if batch.at_end() {
                return count;
            }
            cursor = batch.next_cursor();
        }
    }
    fn write(&self, dir: usize, name: &str, block: &[u8]) {
        assert_eq!(self.volume.write(&self.root, self.find(dir, name), 0, block).unwrap(), block.len());
    }
    fn read(&self, dir: usize, name: &str, block: &mut [u8]) {
        assert_eq!(self.volume.read(self.find(dir, name), 0, block).unwrap(), block.len());
    }
    fn rename(&self, dir: usize, from: &str, to: &str) {
        let d = self.dir(dir);
        self.volume.rename(&self.root, (d, from.as_bytes()), (d, to.as_bytes()), RenameFlags::NONE).unwrap();
    }
    fn unlink(&self, dir: usize, name: &str) {
        self.volume.unlink(&self.root, self.dir(dir), name.as_bytes()).unwrap();
    }
    fn fsync_new(&self, dir: usize, name: &str) {
        let made = self.volume.create(&self.root, self.dir(dir), name.as_bytes(), 0o644).unwrap();
        self.volume.write(&self.root, made.ino, 0, &[7; BLOCK]).unwrap();
        self.volume.sync().unwrap();
    }
    fn sync(&self) {
        self.volume.sync().unwrap();
    }
    fn write_big(&self, name: &str) {
        let ino = self.volume.create(&self.root, Ino::ROOT, name.as_bytes(), 0o644).unwrap().ino;
        let chunk = vec![0x5a; CHUNK];
        for i in 0..SEQUENTIAL / CHUNK as u64 {
            assert_eq!(self.volume.write(&self.root, ino, i * CHUNK as u64, &chunk).unwrap(), CHUNK);
        }
        self.volume.sync().unwrap();
    }
    fn read_big(&self, name: &str) {
        // The pages of the device file are dropped, as the file's own are on the other side.
        let device = File::open(&self.data).unwrap();
        rustix::fs::fadvise(&device, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let ino = self.volume.lookup(&self.root, Ino::ROOT, name.as_bytes()).unwrap().ino;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        loop {
            match self.volume.read(ino, at, &mut chunk).unwrap() {
                0 => break,
                n => at += n as u64,
            }
        }
        assert_eq!(at, SEQUENTIAL);
    }
}

/// How often sequential phases run, each side in turn: the disk's own speed changes more than what is compared.
const REPEATS: usize = 5;

/// What one phase cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Operations a second.
    rate: f64,
    /// Share of the sync at the end.
    sync: f64,
    /// Processor time of the whole process, microseconds an operation.
    cpu: f64,
}

/// Processor time of all threads so far, seconds.
fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// What runs: `files` files in `threads` directories, of which the first is `first_dir`.
#[derive(Clone, Copy)]
struct Load {
    threads: usize,
    first_dir: usize,
    files: usize,
}

impl Load {
    /// Runs `op(dir, i)` `each` times a thread and then syncs; `count` operations are what it comes to.
    fn run(self, side: &dyn Side, each: usize, count: usize, op: impl Fn(usize, usize) + Sync) -> Cost {
        let (start, before) = (Instant::now(), cpu());
        std::thread::scope(|s| {
            for t in 0..self.threads {
                let op = &op;
                s.spawn(move || (0..each).for_each(|i| op(self.first_dir + t, i)));
            }
        });
        let done = start.elapsed().as_secs_f64();
        side.sync();
        let all = start.elapsed().as_secs_f64();
        let count = count as f64;
        Cost { rate: count / all, sync: 1.0 - done / all, cpu: (cpu() - before) * 1e6 / count }
    }
}

/// The phases in their order, with those that each needs to have run.
const PHASES: [(&str, &[&str]); 7] = [
    ("create", &[]),
    ("stat", &["create"]),
    ("readdir+stat", &["create"]),
    ("write 4 KiB", &["create"]),
    ("open+read 4 KiB", &["create", "write 4 KiB"]),
    ("rename", &["create"]),
    ("unlink", &["create", "rename"]),
];

/// Runs the chosen phases and what they need; the costs of the chosen ones.
fn phases(side: &dyn Side, load: Load, chosen: &dyn Fn(&str) -> bool) -> Vec<(&'static str, Cost)> {
    for t in 0..load.threads {
        side.mkdir(load.first_dir + t);
    }
    let name = |i| format!("file-{i:07}");
    let renamed = |i| format!("renamed-{i:07}");
    let block = [0x33; BLOCK];
    let each = load.files / load.threads;
    let all = each * load.threads;
    let mut out = Vec::new();
    for (phase, _) in PHASES {
        let needed = |other: &(&str, &[&str])| chosen(other.0) && (other.0 == phase || other.1.contains(&phase));
        if !PHASES.iter().any(needed) {
            continue;
        }
        let cost = match phase {
            "create" => load.run(side, each, all, |d, i| side.create(d, &name(i))),
            "stat" => load.run(side, each, all, |d, i| side.stat(d, &name(i))),
            "readdir+stat" => load.run(side, 1, all, |d, _| assert_eq!(side.list_stat(d), each)),
            "write 4 KiB" => load.run(side, each, all, |d, i| side.write(d, &name(i), &block)),
            "open+read 4 KiB" => load.run(side, each, all, |d, i| {
                let mut buf = [0; BLOCK];
                side.read(d, &name(i), &mut buf);
                assert_eq!(buf[17], 0x33);
            }),
            "rename" => load.run(side, each, all, |d, i| side.rename(d, &name(i), &renamed(i))),
            "unlink" => load.run(side, each, all, |d, i| side.unlink(d, &renamed(i))),
            other => unreachable!("phase {other}"),
        };
        if chosen(phase) {
            out.push((phase, cost));
        }
    }
    out
}

fn durable(side: &dyn Side, dir: usize, threads: usize, files: usize) -> f64 {
    let start = Instant::now();
    let each = files / threads;
    std::thread::scope(|s| {
        for t in 0..threads {
            s.spawn(move || (0..each).for_each(|i| side.fsync_new(dir, &format!("s{threads}-{t}-{i}"))));
        }
    });
    (each * threads) as f64 / start.elapsed().as_secs_f64()
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, ours: f64, theirs: f64, unit: &str, more: &str) {
    println!("{what:<28} {ours:>12.0} {theirs:>12.0} {unit:<6} {:>6.2}{more}", ours / theirs);
}

/// Several directories and threads at once, and one; with the filesystem beside it if `kernel` says so.
fn compare(engine: &Engine, kernel: Option<&Kernel>, files: usize, threads: &[usize], chosen: &dyn Fn(&str) -> bool) {
    let mut single = Vec::new();
    let mut first_dir = 0;
    for &threads in threads {
        let load = Load { threads, first_dir, files };
        let theirs = kernel.map(|k| phases(k, load, chosen));
        let ours = phases(engine, load, chosen);
        for (i, (what, a)) in ours.iter().enumerate() {
            let b = theirs.as_ref().map_or(Cost::default(), |t| t[i].1);
            let what = format!("{what}, {threads} thread{}", if threads == 1 { "" } else { "s" });
            let more = format!("  sync {:>3.0} %  cpu {:>6.2} {:>6.2} us", a.sync * 100.0, a.cpu, b.cpu);
            row(&what, a.rate, b.rate, "/s", &more);
        }
        if threads == 1 {
            single = ours;
        } else {
            for ((what, two), (_, one)) in ours.iter().zip(&single) {
                println!("{:<28} {:>40.2}", format!("{what}, {threads} threads of 1"), two.rate / one.rate);
            }
        }
        first_dir += threads;
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let files = args.iter().find_map(|a| a.parse().ok()).unwrap_or(100_000);
    let has = |word: &str| args.iter().any(|a| a == word);
    let words = ["library", "single"];
    let all = args.iter().all(|a| a.parse::<usize>().is_ok() || words.contains(&a.as_str()));
    let chosen = |phase: &str| all || args.iter().any(|a| phase.split(' ').next() == Some(a));
    let folder = tempfile::tempdir().unwrap();
    let kernel = Kernel { root: folder.path().join("kernel") };
    fs::create_dir(&kernel.root).unwrap();
    let engine = Engine::new(folder.path());
    println!("{:<28} {:>12} {:>12} {:<6} {:>6}", "", "library", "filesystem", "", "ratio");
    let threads: &[usize] = if has("single") { &[1] } else { &[1, 2] };
    compare(&engine, (!has("library")).then_some(&kernel), files, threads, &chosen);
    let dir = threads.iter().sum();
    let sides: &[&dyn Side] = if has("library") { &[&engine] } else { &[&engine, &kernel] };
    let both = |f: &dyn Fn(&dyn Side) -> f64| (f(sides[0]), sides.get(1).map_or(0.0, |s| f(*s)));
    if chosen("fsync") {
        sides.iter().for_each(|s| s.mkdir(dir));
        let one = both(&|s| durable(s, dir, 1, 1000));
        row("create+write+fsync, 1 thread", one.0, one.1, "/s", "");
        let many = both(&|s| durable(s, dir, 16, 4000));
        row("create+write+fsync, 16 thr.", many.0, many.1, "/s", "");
        println!("{:<28} {:>40.2}", "fsync, 16 threads of 1", many.0 / one.0);
    }
    if chosen("sequential") {
        let mib = SEQUENTIAL as f64 / f64::from(1 << 20);
        let in_turn = |f: &dyn Fn(&dyn Side, usize)| {
            let rates = (0..REPEATS).map(|nr| both(&|s| mib / seconds(|| f(s, nr))));
            let (ours, theirs): (Vec<f64>, Vec<f64>) = rates.unzip();
            (median(ours), median(theirs))
        };
        let written = in_turn(&|s, nr| s.write_big(&format!("big {nr}")));
        row("sequential write", written.0, written.1, "MiB/s", "");
        let read = in_turn(&|s, nr| s.read_big(&format!("big {nr}")));
        row("sequential read", read.0, read.1, "MiB/s", "");
    }
    engine.volume.close().unwrap();
}
