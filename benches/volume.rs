//! End to end: the library in process against the machine's own filesystem through system calls, same operations, same run.
//!
//! ```text
//! cargo bench --bench volume            # 100,000 files, 1 GiB
//! cargo bench --bench volume -- 10000   # fewer files
//! ```
//!
//! Prints operations a second of both and their ratio (above 1: the library is faster). Each phase ends with a sync, which
//! counts. The volume's devices are two files in the same temporary folder that the filesystem is measured in.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use scoutfs::device::FileDevice;
use scoutfs::namespace::{Caller, RenameFlags};
use scoutfs::offline::{MkfsOptions, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

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

/// Runs `op(dir, i)` for `files` numbers over `threads` directories, then syncs; operations a second.
fn rate(side: &dyn Side, threads: usize, first_dir: usize, files: usize, op: impl Fn(usize, usize) + Sync) -> f64 {
    let start = Instant::now();
    let each = files / threads;
    std::thread::scope(|s| {
        for t in 0..threads {
            let op = &op;
            s.spawn(move || (0..each).for_each(|i| op(first_dir + t, i)));
        }
    });
    side.sync();
    (each * threads) as f64 / start.elapsed().as_secs_f64()
}

fn phases(side: &dyn Side, threads: usize, first_dir: usize, files: usize) -> Vec<(&'static str, f64)> {
    for t in 0..threads {
        side.mkdir(first_dir + t);
    }
    let name = |i| format!("file-{i:07}");
    let block = [0x33; BLOCK];
    let mut out = Vec::new();
    out.push(("create", rate(side, threads, first_dir, files, |d, i| side.create(d, &name(i)))));
    out.push(("stat", rate(side, threads, first_dir, files, |d, i| side.stat(d, &name(i)))));
    let each = files / threads;
    let listed = rate(side, threads, first_dir, threads, |d, _| assert_eq!(side.list_stat(d), each));
    out.push(("readdir+stat", listed * each as f64));
    out.push(("write 4 KiB", rate(side, threads, first_dir, files, |d, i| side.write(d, &name(i), &block))));
    out.push((
        "open+read 4 KiB",
        rate(side, threads, first_dir, files, |d, i| {
            let mut buf = [0; BLOCK];
            side.read(d, &name(i), &mut buf);
            assert_eq!(buf[17], 0x33);
        }),
    ));
    let renamed = |i| format!("renamed-{i:07}");
    out.push(("rename", rate(side, threads, first_dir, files, |d, i| side.rename(d, &name(i), &renamed(i)))));
    out.push(("unlink", rate(side, threads, first_dir, files, |d, i| side.unlink(d, &renamed(i)))));
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

fn row(what: &str, ours: f64, theirs: f64, unit: &str) {
    println!("{what:<28} {ours:>12.0} {theirs:>12.0} {unit:<6} {:>6.2}", ours / theirs);
}

fn main() {
    let files = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100_000);
    let folder = tempfile::tempdir().unwrap();
    let kernel = Kernel { root: folder.path().join("kernel") };
    fs::create_dir(&kernel.root).unwrap();
    let engine = Engine::new(folder.path());
    println!("{:<28} {:>12} {:>12} {:<6} {:>6}", "", "library", "filesystem", "", "ratio");
    let mut single = Vec::new();
    for (threads, first_dir) in [(1, 0), (2, 1)] {
        let theirs = phases(&kernel, threads, first_dir, files);
        let ours = phases(&engine, threads, first_dir, files);
        for ((what, a), (_, b)) in ours.iter().zip(&theirs) {
            row(&format!("{what}, {threads} thread{}", if threads == 1 { "" } else { "s" }), *a, *b, "/s");
        }
        if threads == 1 {
            single = ours;
        } else {
            for ((what, two), (_, one)) in ours.iter().zip(&single) {
                println!("{:<28} {:>40.2}", format!("{what}, 2 threads of 1"), two / one);
            }
        }
    }
    for side in [&engine as &dyn Side, &kernel] {
        side.mkdir(3);
    }
    let one = (durable(&engine, 3, 1, 1000), durable(&kernel, 3, 1, 1000));
    row("create+write+fsync, 1 thread", one.0, one.1, "/s");
    let many = (durable(&engine, 3, 16, 4000), durable(&kernel, 3, 16, 4000));
    row("create+write+fsync, 16 thr.", many.0, many.1, "/s");
    println!("{:<28} {:>40.2}", "fsync, 16 threads of 1", many.0 / one.0);
    let mib = SEQUENTIAL as f64 / f64::from(1 << 20);
    let written = (mib / seconds(|| engine.write_big("big")), mib / seconds(|| kernel.write_big("big")));
    row("sequential write", written.0, written.1, "MiB/s");
    let read = (mib / seconds(|| engine.read_big("big")), mib / seconds(|| kernel.read_big("big")));
    row("sequential read", read.0, read.1, "MiB/s");
    engine.volume.close().unwrap();
}
