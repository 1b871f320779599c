//! A volume that crashes again and again: each crash hits what the recovery from the one before has left.
//!
//! What went wrong: once in some hundred rounds of killing a mount under load, the check of a volume that had been killed and
//! mounted many times reported an error. The crash test (`crash.rs`) could not see such a thing: it looks at one crash of a
//! volume that was new, with one thread and no background work.
//!
//! Here several threads work on a volume, with syncs of their own, open files without names, truncations and search
//! attributes, while the background scans for orphans, merges and compacts. Power is lost at a random moment, a random part of
//! the unflushed writes survives, the devices are checked as they are, opened, looked at, and worked on until the next crash.
//! In some generations the volume is also closed and checked.
//!
//! `SCOUTFS_GENERATIONS_SEED=n` runs one line of generations alone, `SCOUTFS_GENERATIONS_LINES=n` so many of them.
//! Threads make every run another one: a seed gives the same calls and the same kind of crash, not the same moment.

#[path = "common/model.rs"]
#[expect(dead_code, reason = "only the look at a volume is needed")]
mod model;
#[path = "common/op.rs"]
#[expect(dead_code, reason = "only the patterns are needed")]
mod op;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use scoutfs::device::{BlockDevice, MemDevice, Recorder, Survive};
use scoutfs::namespace::{Caller, RenameFlags, SetAttr, XattrFlags};
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Ino, OpenInode, Volume, VolumeOptions};

use op::{PUNCH, pattern};

const LINES: u64 = 8;
const GENERATIONS: u64 = 8;
const LANES: usize = 4;
const WORKERS: u64 = 3;
const FILES: u64 = 40;

/// A file that was promised to be there, from this event of the devices on.
struct Promise {
    position: usize,
    path: String,
    content: (u64, usize),
}

/// One thread of load, in a folder of its own.
struct Worker<'a> {
    volume: &'a Volume,
    recorder: &'a Recorder,
    rng: StdRng,
    dir: Ino,
    folder: String,
    open: Vec<OpenInode>,
    promises: Vec<Promise>,
}

impl Worker<'_> {
    fn content(&mut self, ino: Ino) -> scoutfs::Result<(u64, usize)> {
        let sizes = [0, 10, 4096, 5000, 70_000, 300_000];
        let (seed, len) = (self.rng.random(), sizes[self.rng.random_range(0..sizes.len())]);
        self.write(ino, 0, seed, len)?;
        Ok((seed, len))
    }

    fn write(&self, ino: Ino, offset: u64, seed: u64, len: usize) -> scoutfs::Result<()> {
        let (data, mut done) = (pattern(seed, len), 0);
        while done < len {
            done += self.volume.write(&Caller::root(), ino, offset + done as u64, &data[done..])?;
        }
        Ok(())
    }

    /// Changes of all kinds to a file that nothing is promised of.
    fn ill_treat(&mut self, ino: Ino) -> scoutfs::Result<()> {
        let root = Caller::root();
        match self.rng.random_range(0..7) {
            0 => {
                let size = Some(self.rng.random_range(0..400_000));
                self.volume.setattr(&root, ino, &SetAttr { size, ..SetAttr::default() })?;
            }
            1 => self.volume.fallocate(&root, ino, 0, self.rng.random_range(0..50) * 4096, 200_000)?,
            2 => self.volume.fallocate(&root, ino, PUNCH, self.rng.random_range(0..20) * 4096, 30_000)?,
            3 => {
                let (offset, seed) = (self.rng.random_range(0..200_000), self.rng.random());
                self.write(ino, offset, seed, 9000)?;
            }
            4 => self.volume.setxattr(&root, ino, b"scoutfs.srch.mark", &[1; 20], XattrFlags::Any)?,
            5 => self.volume.setxattr(&root, ino, b"user.long", &[2; 3000], XattrFlags::Any)?,
            _ => {}
        }
        Ok(())
    }

    fn one(&mut self, nr: u64) -> scoutfs::Result<()> {
        let (root, dir) = (Caller::root(), self.dir);
        let (temporary, name) = (format!("f{nr}.tmp"), format!("f{nr}"));
        let (attr, open) = self.volume.create_open(&root, dir, temporary.as_bytes(), 0o644)?;
        let content = self.content(attr.ino)?;
        if nr.is_multiple_of(5) {
            self.volume.sync()?;
            self.volume.rename(&root, (dir, temporary.as_bytes()), (dir, name.as_bytes()), RenameFlags::NONE)?;
            self.volume.sync()?;
            let (position, path) = (self.recorder.position(), format!("{}/{name}", self.folder));
            self.promises.push(Promise { position, path, content });
            return Ok(());
        }
        self.ill_treat(attr.ino)?;
        match self.rng.random_range(0..6) {
            // Without a name, and open for a while.
            0 | 1 => {
                self.volume.unlink(&root, dir, temporary.as_bytes())?;
                self.ill_treat(attr.ino)?;
                self.open.push(open);
                if self.open.len() > 5 {
                    let at = self.rng.random_range(0..self.open.len());
                    self.open.swap_remove(at);
                }
            }
            // Over an earlier one, if there is one that nothing is promised of.
            2 | 3 => {
                let over = if nr % 5 > 1 { format!("f{}", nr - 1) } else { name };
                self.volume.rename(&root, (dir, temporary.as_bytes()), (dir, over.as_bytes()), RenameFlags::NONE)?;
                self.ill_treat(attr.ino)?;
            }
            4 => {
                self.volume.link(&root, attr.ino, dir, name.as_bytes())?;
                self.volume.unlink(&root, dir, temporary.as_bytes())?;
            }
            _ => {
                let (_, nameless) = self.volume.tmpfile(&root, dir, 0o600, false)?;
                self.volume.mkdir(&root, dir, format!("d{nr}").as_bytes(), 0o755)?;
                drop(nameless);
            }
        }
        Ok(())
    }
}

/// Removes a folder and what is in it.
fn remove_tree(volume: &Volume, parent: Ino, name: &[u8]) -> scoutfs::Result<()> {
    let root = Caller::root();
    let dir = volume.lookup(&root, parent, name)?.ino;
    loop {
        let batch = volume.readdir(dir, 0, 100)?;
        let entries: Vec<_> = batch.iter().map(|e| (e.name.to_vec(), e.dirent_type)).collect();
        let mut entries = entries.into_iter().filter(|(n, _)| n != b"." && n != b"..").peekable();
        if entries.peek().is_none() {
            return volume.rmdir(&root, parent, name);
        }
        for (entry, kind) in entries {
            if kind == 4 { remove_tree(volume, dir, &entry)? } else { volume.unlink(&root, dir, &entry)? }
        }
    }
}

fn devices() -> [Arc<MemDevice>; 2] {
    let devices = [MemDevice::new(64 << 20), MemDevice::new(256 << 20)];
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*devices[0], &*devices[1], &options).unwrap();
    devices
}

fn open(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>, rng: &mut StdRng) -> Result<Volume, String> {
    let mut options = VolumeOptions::member(0);
    options.orphan_scan_delay = Duration::from_millis(100);
    options.search_compact_delay = Duration::from_secs(1);
    options.commit_interval = Duration::from_millis([100, 300, 10_000][rng.random_range(0..3)]);
    Volume::open(meta, data, options).map_err(|e| format!("open: {e}"))
}

/// The check that everything hangs on; leaks count only when nothing is in flight.
fn checked(devices: &[Arc<MemDevice>; 2], when: &str, closed: bool) -> Result<(), String> {
    let report =
        check(&*devices[0], &*devices[1], &CheckOptions::default()).map_err(|e| format!("{when}: check: {e}"))?;
    let leaked = closed && (report.leaked_meta_blocks, report.leaked_data_blocks) != (0, 0);
    if report.is_clean() && !leaked { Ok(()) } else { Err(format!("{when}: check: {report:?}")) }
}

/// Works on the volume and loses power; what is left, and what was promised of it.
fn generation(
    devices: &[Arc<MemDevice>; 2],
    nr: u64,
    rng: &mut StdRng,
) -> Result<([Arc<MemDevice>; 2], Vec<Promise>), String> {
    let recorder = Recorder::new();
    let volume = open(recorder.wrap(&devices[0]), recorder.wrap(&devices[1]), rng)?;
    let root = Caller::root();
    let mut work = || -> scoutfs::Result<Vec<Promise>> {
        if nr >= 2 {
            let old = format!("g{}", nr - 2);
            match remove_tree(&volume, Ino::ROOT, old.as_bytes()) {
                Err(e) if e.is(scoutfs::Errno::ENOENT) => {}
                other => other?,
            }
        }
        let top = volume.mkdir(&root, Ino::ROOT, format!("g{nr}").as_bytes(), 0o755)?.ino;
        let mut workers = Vec::new();
        for w in 0..WORKERS {
            let (dir, folder) =
                (volume.mkdir(&root, top, format!("w{w}").as_bytes(), 0o755)?.ino, format!("/g{nr}/w{w}"));
            let rng = StdRng::seed_from_u64(rng.random());
            let (volume, recorder) = (&volume, &*recorder);
            workers.push(Worker { volume, recorder, rng, dir, folder, open: Vec::new(), promises: Vec::new() });
        }
        std::thread::scope(|s| {
            let running = workers.into_iter().map(|mut w| {
                s.spawn(move || {
                    (0..FILES).try_for_each(|i| w.one(i))?;
                    // The power goes while some files without names are open.
                    Ok((w.promises, w.open))
                })
            });
            let running: Vec<_> = running.collect();
            let ended: Vec<scoutfs::Result<_>> =
                running.into_iter().map(|r| r.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect();
            let mut all = Vec::new();
            for result in ended {
                all.extend(result?.0);
            }
            Ok(all)
        })
    };
    let promises = work().map_err(|e| format!("work: {e}"))?;
    if rng.random_range(0..4) == 0 {
        volume.close().map_err(|e| format!("close: {e}"))?;
        checked(devices, "closed", true)?;
    } else {
        drop(volume);
    }
    // Mostly somewhere in the middle, and often at the end: the drop.
    let end = recorder.position();
    let cut = if rng.random_range(0..5) == 0 { end } else { rng.random_range(0..=end) };
    let survive = match rng.random_range(0..6) {
        0 | 1 => Survive::All,
        2 => Survive::Nothing,
        3 => Survive::Writes(rng.random()),
        _ => Survive::Sectors(rng.random()),
    };
    let left: [Arc<MemDevice>; 2] = recorder.image(cut, survive).try_into().map_err(|_| "two devices")?;
    checked(&left, &format!("cut {cut} of {end} {survive:?}"), false)?;
    Ok((left, promises.into_iter().filter(|p| p.position <= cut).collect()))
}

/// Opens what a crash has left, looks at all of it, and leaves in one way or the other.
fn look(devices: &[Arc<MemDevice>; 2], promises: &[Promise], rng: &mut StdRng) -> Result<(), String> {
    let volume = open(devices[0].clone(), devices[1].clone(), rng)?;
    model::observe(&volume).map_err(|e| format!("look: {e}"))?;
    for Promise { path, content: (seed, len), .. } in promises {
        let found = volume.read_file(path).map_err(|e| format!("{path} was promised: {e}"))?;
        if found != pattern(*seed, *len) {
            return Err(format!("{path} has other content than was promised"));
        }
    }
    match rng.random_range(0..3) {
        0 => drop(volume),
        _ => {
            volume.close().map_err(|e| format!("close: {e}"))?;
            return checked(devices, "recovered and closed", true);
        }
    }
    checked(devices, "recovered and dropped", false)
}

/// All generations of one volume; the number of promises that were kept.
fn line(seed: u64) -> Result<usize, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut devices, mut kept) = (devices(), 0);
    for nr in 0..GENERATIONS {
        let (left, promises) = generation(&devices, nr, &mut rng).map_err(|e| format!("generation {nr}: {e}"))?;
        // Half of the crashes are met by the next generation directly.
        if rng.random() {
            look(&left, &promises, &mut rng).map_err(|e| format!("generation {nr}: {e}"))?;
            kept += promises.len();
        }
        devices = left;
    }
    Ok(kept)
}

#[test]
fn crash_after_crash_nothing_promised_is_lost_and_the_check_is_clean() {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let seeds = match number("SCOUTFS_GENERATIONS_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SCOUTFS_GENERATIONS_LINES").unwrap_or(LINES)).collect(),
    };
    let lines = seeds.len();
    let (queue, failures, kept) = (Mutex::new(seeds.into_iter()), Mutex::new(Vec::new()), Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let Some(seed) = queue.lock().unwrap().next() else { return };
                    match line(seed) {
                        Ok(n) => *kept.lock().unwrap() += n,
                        Err(e) => {
                            println!("seed {seed}: {e}");
                            failures.lock().unwrap().push(format!("seed {seed}: {e}"));
                        }
                    }
                }
            });
        }
    });
    let (failures, kept) = (failures.into_inner().unwrap(), kept.into_inner().unwrap());
    println!("{lines} lines of {GENERATIONS} generations, {kept} promises were kept");
    assert!(failures.is_empty(), "{} lines failed\n{}", failures.len(), failures.join("\n"));
    assert!(kept > lines, "hardly anything was promised: the test proves nothing");
}
