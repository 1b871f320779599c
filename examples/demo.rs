//! The main job, with nothing to set up: makes a volume in a temporary folder, copies a real tree into it (this crate's
//! sources and the Rust toolchain's library folder), opens it again and compares every byte.
//!
//! ```text
//! cargo run --release --example demo
//! ```

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use scoutfs::device::{FileDevice, FileOptions};
use scoutfs::namespace::Caller;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Enough for a real tree and small enough to be quick.
const MAX_BYTES: u64 = 400 << 20;
const CHUNK: usize = 1 << 20;

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
    let meta = folder.path().join("meta");
    let data = folder.path().join("data");
    println!("volume in {}", folder.path().display());
    {
        let meta = FileDevice::create(&meta, 1 << 30)?;
        let data = FileDevice::create(&data, 4 << 30)?;
        let options = MkfsOptions {
            allow_small: true,
            quorum_slots: vec!["0,127.0.0.1,12345".parse()?],
            ..MkfsOptions::default()
        };
        mkfs(&*meta, &*data, &options)?;
    }
    let open = |options: VolumeOptions| -> Outcome<Volume> { Ok(Volume::open_paths(&meta, &data, options)?) };

    let sources = collect(&source_folders())?;
    let total: u64 = sources.iter().map(|s| s.bytes).sum();
    println!("copying {} files and folders, {}", HumanCount(sources.len() as u64), HumanBytes(total));

    let volume = open(VolumeOptions::member(0))?;
    let start = Instant::now();
    let bar = bar(total, "write");
    copy_in(&volume, &sources, &bar)?;
    volume.sync()?;
    bar.finish();
    report("written and synced", sources.len(), total, start.elapsed());
    volume.close()?;

    let volume = open(VolumeOptions::member(0))?;
    let start = Instant::now();
    let bar = self::bar(total, "verify");
    verify(&volume, &sources, &bar)?;
    bar.finish();
    report("read back, every byte equal", sources.len(), total, start.elapsed());
    let stat = volume.statfs()?;
    println!(
        "volume: {} free of {}",
        HumanBytes(stat.free_blocks * u64::from(stat.block_size)),
        HumanBytes(stat.blocks * u64::from(stat.block_size))
    );
    volume.close()?;

    let reopen = |path| FileDevice::open(path, &FileOptions { read_only: true, ..FileOptions::default() });
    let start = Instant::now();
    let report = check(&*reopen(&meta)?, &*reopen(&data)?, &CheckOptions::default())?;
    let verdict = if report.is_clean() { "clean" } else { "INCONSISTENT" };
    println!("checked offline in {:.1?}: {verdict}", start.elapsed());
    if !report.is_clean() {
        report.findings.iter().for_each(|f| println!("  {f}"));
        return Err("the volume is not consistent".into());
    }
    Ok(())
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
    let parent = volume.resolve(target.parent().unwrap_or(Path::new("")))?;
    Ok((parent.ino, target.file_name().ok_or("a path without a name")?.as_bytes()))
}

fn copy_in(volume: &Volume, sources: &[Source], bar: &ProgressBar) -> Outcome<()> {
    let root = Caller::root();
    let mut buf = vec![0; CHUNK];
    for s in sources {
        let (parent, name) = parent_and_name(volume, &s.target)?;
        let meta = fs::symlink_metadata(&s.path)?;
        if meta.is_dir() {
            volume.mkdir(&root, parent, name, meta.mode() & 0o7777)?;
        } else if meta.is_symlink() {
            volume.symlink(&root, parent, name, fs::read_link(&s.path)?.as_os_str().as_bytes())?;
        } else {
            let ino = volume.create(&root, parent, name, meta.mode() & 0o7777)?.ino;
            let mut file = fs::File::open(&s.path)?;
            let mut at = 0;
            loop {
                let n = std::io::Read::read(&mut file, &mut buf)?;
                if n == 0 {
                    break;
                }
                volume.write(&root, ino, at, &buf[..n])?;
                at += n as u64;
                bar.inc(n as u64);
            }
        }
    }
    Ok(())
}

fn verify(volume: &Volume, sources: &[Source], bar: &ProgressBar) -> Outcome<()> {
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
