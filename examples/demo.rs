//! The main job, with nothing to set up: makes a volume in a temporary folder and opens it with three nodes that talk over
//! loopback TCP, as three machines would. They copy a real tree into it together (this crate's sources and the Rust
//! toolchain's library folder). In the middle the leader crashes; the others elect another one, fence the lost node, and do
//! its share. Then the lost node comes back, every node compares every byte that others wrote, and the volume is checked.
//!
//! ```text
//! cargo run --release --example demo
//! ```

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use scoutfs::device::{DirectIo, FileDevice, FileOptions};
use scoutfs::namespace::{Caller, SetAttr};
use scoutfs::net::{TcpOptions, TcpTransport};
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::server::HostFencer;
use scoutfs::{Environment, Errno, Ino, Role, Volume, VolumeOptions};

// A third less processor time and memory than with the system's allocator (`cargo bench --bench volume`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Enough for a real tree and small enough to be quick.
const MAX_BYTES: u64 = 400 << 20;
const CHUNK: usize = 1 << 20;
const NODES: usize = 3;
/// Files and links after which a node makes its work durable.
const SYNC_EVERY: usize = 128;

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        println!("demo takes no arguments: it makes a volume in a temporary folder, fills it and verifies it");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let cluster = Cluster::make(folder.path())?;
    let sources = collect(&source_folders())?;
    let total: u64 = sources.iter().map(|s| s.bytes).sum();
    println!("volume in {}, {NODES} nodes over loopback TCP", folder.path().display());
    println!("copying {} files and folders, {}", HumanCount(sources.len() as u64), HumanBytes(total));

    let mut nodes = cluster.open_all()?;
    let lost = leader(&nodes).ok_or("no leader, although the nodes have opened the volume")?;
    println!("node {lost} was elected leader");
    let start = Instant::now();
    let bar = bar(total, "write");
    let work = Work { sources: &sources, done: Mutex::default(), bar: &bar, crash_at: total / 2 };
    copy_together(&mut nodes, lost, &work)?;
    bar.finish();
    report("written and synced", sources.len(), total, start.elapsed());
    let written = work.done.into_inner().map_err(|_| "a worker failed")?;
    let of_lost = written.iter().flatten().filter(|nr| **nr == lost).count();
    println!(
        "node {lost} crashed in the middle with {} of its files synced; node {} leads now",
        HumanCount(of_lost as u64),
        leader(&nodes).map_or_else(|| "?".into(), |nr| nr.to_string())
    );

    let start = Instant::now();
    nodes[lost] = Some(cluster.open(lost)?);
    println!("node {lost} is back after {:.1?}", start.elapsed());
    let start = Instant::now();
    let bar = self::bar(total * (NODES as u64 - 1), "verify");
    verify_together(&nodes, &sources, &written, &bar)?;
    bar.finish();
    report("each node read what the others wrote, every byte equal", sources.len(), bar.position(), start.elapsed());
    close_all(nodes)?;
    cluster.check()
}

/// The devices of the volume, and where its nodes meet.
struct Cluster {
    meta: PathBuf,
    data: PathBuf,
    marks: PathBuf,
}

impl Cluster {
    fn make(folder: &Path) -> Outcome<Cluster> {
        let [meta, data, marks] = ["meta", "data", "mounts"].map(|name| folder.join(name));
        let mut slots = Vec::new();
        for nr in 0..NODES {
            // A port that is free now, for both protocols.
            let probe = std::net::UdpSocket::bind("127.0.0.1:0")?;
            slots.push(format!("{nr},127.0.0.1,{}", probe.local_addr()?.port()).parse()?);
        }
        let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
        mkfs(&*FileDevice::create(&meta, 64 << 30)?, &*FileDevice::create(&data, 64 << 30)?, &options)?;
        Ok(Cluster { meta, data, marks })
    }

    /// Opens the volume as node `nr`, with devices and a network of its own. Waits until there is a leader.
    fn open(&self, nr: usize) -> Outcome<Volume> {
        let device = |path, direct| FileDevice::open(path, &FileOptions { direct, ..FileOptions::default() });
        let mut options = VolumeOptions::member(nr as u8);
        options.heartbeat_timeout = Duration::from_secs(2);
        let environment = Environment {
            transport: Some(TcpTransport::new(TcpOptions::default())?),
            fencer: Some(Arc::new(HostFencer::new(&self.marks)?)),
        };
        let (meta, data) = (device(&self.meta, DirectIo::Preferred)?, device(&self.data, DirectIo::Off)?);
        Ok(Volume::open_in(meta, data, options, environment)?)
    }

    /// All at once: no one is elected alone.
    fn open_all(&self) -> Outcome<Vec<Option<Volume>>> {
        let opened: Vec<Result<Volume, String>> = thread::scope(|scope| {
            let opening: Vec<_> =
                (0..NODES).map(|nr| scope.spawn(move || self.open(nr).map_err(|e| e.to_string()))).collect();
            opening.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a node panicked".into()))).collect()
        });
        Ok(opened.into_iter().map(|volume| volume.map(Some)).collect::<Result<_, _>>()?)
    }

    fn check(&self) -> Outcome<()> {
        let reopen = |path| FileDevice::open(path, &FileOptions { read_only: true, ..FileOptions::default() });
        let start = Instant::now();
        let report = check(&*reopen(&self.meta)?, &*reopen(&self.data)?, &CheckOptions::default())?;
        let verdict = if report.is_clean() { "clean" } else { "INCONSISTENT" };
        println!("checked offline in {:.1?}: {verdict}", start.elapsed());
        if !report.is_clean() {
            report.findings.iter().for_each(|f| println!("  {f}"));
            return Err("the volume is not consistent".into());
        }
        Ok(())
    }
}

fn leader(nodes: &[Option<Volume>]) -> Option<usize> {
    nodes.iter().position(|node| node.as_ref().is_some_and(|v| v.cluster_status().role == Role::Leader))
}

/// The last majority can only leave together.
fn close_all(nodes: Vec<Option<Volume>>) -> Outcome<()> {
    let closing: Vec<_> = nodes.into_iter().flatten().map(|volume| thread::spawn(move || volume.close())).collect();
    for closing in closing {
        closing.join().map_err(|_| "a node panicked")??;
    }
    Ok(())
}

/// What the nodes do together.
struct Work<'a> {
    sources: &'a [Source],
    /// Which node has written each source and made it durable.
    done: Mutex<Vec<Option<usize>>>,
    bar: &'a ProgressBar,
    /// The leader crashes when so many bytes have been written.
    crash_at: u64,
}

/// Each node copies a part of the tree, until the leader crashes; the others then do what it has not made durable.
fn copy_together(nodes: &mut [Option<Volume>], lost: usize, work: &Work) -> Outcome<()> {
    *work.done.lock().map_err(|_| "a worker failed")? = vec![None; work.sources.len()];
    let shares = shares(work.sources, &(0..work.sources.len()).collect::<Vec<_>>(), NODES);
    let copied: Vec<Result<(), String>> = thread::scope(|scope| {
        let workers: Vec<_> = nodes
            .iter_mut()
            .zip(&shares)
            .enumerate()
            .map(|(nr, (node, share))| {
                scope.spawn(move || {
                    let volume = node.as_ref().ok_or("no such node")?;
                    let dies = || nr == lost && work.bar.position() >= work.crash_at;
                    copy_share(volume, nr, share, work, &dies).map_err(|e| e.to_string())?;
                    if nr == lost {
                        // Without a farewell: this is how a crash looks to the others.
                        drop(node.take());
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err("a node panicked".into()))).collect()
    });
    copied.into_iter().collect::<Result<Vec<()>, String>>()?;
    let left: Vec<usize> = {
        let done = work.done.lock().map_err(|_| "a worker failed")?;
        (0..done.len()).filter(|i| done[*i].is_none()).collect()
    };
    let alive: Vec<(usize, &Volume)> =
        nodes.iter().enumerate().filter_map(|(nr, node)| node.as_ref().map(|v| (nr, v))).collect();
    let again = self::shares(work.sources, &left, alive.len());
    let copied: Vec<Result<(), String>> = thread::scope(|scope| {
        let workers: Vec<_> = alive
            .iter()
            .zip(&again)
            .map(|((nr, volume), share)| {
                scope.spawn(move || copy_share(volume, *nr, share, work, &|| false).map_err(|e| e.to_string()))
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err("a node panicked".into()))).collect()
    });
    copied.into_iter().collect::<Result<Vec<()>, String>>()?;
    Ok(())
}

/// Cuts the tree into parts of about the same work. Neighbours stay together, so that nodes seldom need the same folders.
fn shares(sources: &[Source], which: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let cost = |i: &usize| sources[*i].bytes + (64 << 10);
    let total: u64 = which.iter().map(cost).sum();
    let (mut shares, mut at) = (vec![Vec::new(); parts], 0);
    for i in which {
        shares[(at * parts as u64 / total.max(1)) as usize].push(*i);
        at += cost(i);
    }
    shares
}

/// Node `nr` copies these sources, and notes what is durable. Stops when it `dies`.
fn copy_share(volume: &Volume, nr: usize, share: &[usize], work: &Work, dies: &dyn Fn() -> bool) -> Outcome<()> {
    let mut buf = vec![0; CHUNK];
    for part in share.chunks(SYNC_EVERY) {
        for i in part {
            if dies() {
                return Ok(());
            }
            let source = &work.sources[*i];
            copy_in(volume, source, &mut buf, work.bar)
                .map_err(|e| format!("node {nr}: {}: {e}", source.target.display()))?;
        }
        volume.sync()?;
        let mut done = work.done.lock().map_err(|_| "a worker failed")?;
        part.iter().for_each(|i| done[*i] = Some(nr));
    }
    Ok(())
}

/// Each node compares what the others wrote.
fn verify_together(
    nodes: &[Option<Volume>],
    sources: &[Source],
    written: &[Option<usize>],
    bar: &ProgressBar,
) -> Outcome<()> {
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let workers: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(nr, node)| {
                scope.spawn(move || {
                    let volume = node.as_ref().ok_or("no such node")?;
                    let theirs = sources.iter().zip(written).filter(|(_, by)| **by != Some(nr)).map(|(s, _)| s);
                    verify(volume, theirs, bar).map_err(|e| format!("node {nr}: {e}"))
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err("a node panicked".into()))).collect()
    });
    Ok(results.into_iter().collect::<Result<Vec<()>, String>>().map(drop)?)
}

/// One file, folder or link to copy; parents come before their children.
struct Source {
    path: PathBuf,
    /// Path in the volume.
    target: PathBuf,
    bytes: u64,
}

fn source_folders() -> Vec<(PathBuf, &'static str)> {
    let mut folders = vec![(PathBuf::from(env!("CARGO_MANIFEST_DIR")), "crate")];
    if let Ok(out) = Command::new("rustc").args(["--print", "sysroot"]).output() {
        let root = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        for (sub, name) in [("share", "toolchain-share"), ("lib", "toolchain-lib")] {
            if root.join(sub).is_dir() {
                folders.push((root.join(sub), name));
            }
        }
    }
    folders
}

fn collect(folders: &[(PathBuf, &str)]) -> Outcome<Vec<Source>> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for (folder, name) in folders {
        let mut stack = vec![(folder.clone(), PathBuf::from(name))];
        while let Some((path, target)) = stack.pop() {
            let meta = fs::symlink_metadata(&path)?;
            let kind = meta.file_type();
            if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
                continue;
            }
            let size = if kind.is_file() { meta.len() } else { 0 };
            if bytes + size > MAX_BYTES {
                continue;
            }
            bytes += size;
            found.push(Source { path: path.clone(), target: target.clone(), bytes: size });
            if kind.is_dir() {
                let mut inside: Vec<_> = fs::read_dir(&path)?.collect::<Result<_, _>>()?;
                inside.sort_by_key(|e| e.file_name());
                for entry in inside {
                    let name = entry.file_name();
                    if name != ".git" && name != "target" {
                        stack.push((entry.path(), target.join(name)));
                    }
                }
            }
        }
    }
    Ok(found)
}

fn parent_and_name<'a>(volume: &Volume, target: &'a Path) -> Outcome<(Ino, &'a [u8])> {
    let parent = target.parent().unwrap_or(Path::new(""));
    let parent = match volume.resolve(parent) {
        // Another node has not come to it yet.
        Err(e) if e.is(Errno::ENOENT) => volume.create_dir_all(parent)?,
        found => found?,
    };
    Ok((parent.ino, target.file_name().ok_or("a path without a name")?.as_bytes()))
}

/// Copies one file, folder or link; what a crash may have left of an earlier attempt is replaced.
fn copy_in(volume: &Volume, s: &Source, buf: &mut [u8], bar: &ProgressBar) -> Outcome<()> {
    let root = Caller::root();
    let (parent, name) = parent_and_name(volume, &s.target)?;
    let meta = fs::symlink_metadata(&s.path)?;
    let mode = meta.mode() & 0o7777;
    if meta.is_dir() {
        match volume.mkdir(&root, parent, name, mode) {
            Err(e) if e.is(Errno::EEXIST) => {
                let found = volume.lookup(&root, parent, name)?.ino;
                volume.setattr(&root, found, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
            }
            made => drop(made?),
        }
    } else if meta.is_symlink() {
        match volume.symlink(&root, parent, name, fs::read_link(&s.path)?.as_os_str().as_bytes()) {
            Err(e) if e.is(Errno::EEXIST) => {}
            made => drop(made?),
        }
    } else {
        let ino = match volume.create(&root, parent, name, mode) {
            Err(e) if e.is(Errno::EEXIST) => {
                let found = volume.lookup(&root, parent, name)?.ino;
                volume.setattr(&root, found, &SetAttr { size: Some(0), ..SetAttr::default() })?.ino
            }
            made => made?.ino,
        };
        let mut file = fs::File::open(&s.path)?;
        let mut at = 0;
        loop {
            let n = std::io::Read::read(&mut file, buf)?;
            if n == 0 {
                break;
            }
            volume.write(&root, ino, at, &buf[..n])?;
            at += n as u64;
            bar.inc(n as u64);
        }
    }
    Ok(())
}

fn verify<'a>(volume: &Volume, sources: impl Iterator<Item = &'a Source>, bar: &ProgressBar) -> Outcome<()> {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    for s in sources {
        let wrong = |what: &str| format!("{}: {what}", s.target.display());
        let attr = volume.resolve_nofollow(&s.target)?;
        let meta = fs::symlink_metadata(&s.path)?;
        if meta.is_symlink() {
            if volume.readlink(attr.ino)? != fs::read_link(&s.path)?.as_os_str().as_bytes() {
                return Err(wrong("another link target").into());
            }
        } else if meta.is_file() {
            if attr.size != meta.len() {
                return Err(wrong("another size").into());
            }
            let mut file = fs::File::open(&s.path)?;
            let mut at = 0;
            loop {
                let n = std::io::Read::read(&mut file, &mut theirs)?;
                if n == 0 {
                    break;
                }
                if volume.read(attr.ino, at, &mut ours[..n])? != n || ours[..n] != theirs[..n] {
                    return Err(wrong("other contents").into());
                }
                at += n as u64;
                bar.inc(n as u64);
            }
        } else if attr.mode & 0o7777 != meta.mode() & 0o7777 {
            return Err(wrong("another mode").into());
        }
    }
    Ok(())
}

fn bar(total: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:7} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
    ProgressBar::new(total).with_style(style.expect("a valid template")).with_message(what)
}

fn report(what: &str, items: usize, bytes: u64, time: Duration) {
    let secs = time.as_secs_f64().max(1e-9);
    println!(
        "{what}: {} items, {} in {secs:.1} s ({}/s, {}/s)",
        HumanCount(items as u64),
        HumanBytes(bytes),
        HumanCount((items as f64 / secs) as u64),
        HumanBytes((bytes as f64 / secs) as u64)
    );
}
