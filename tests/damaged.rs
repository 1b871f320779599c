//! Volumes with blocks that say something else than was written, under right checksums.
//!
//! A checksum tells what a device lost, not what a broken or hostile writer stored. So every block of a small volume is
//! changed in ways that matter (numbers, counts, offsets, references to other blocks), its checksum is made right again, and
//! the volume is checked, opened, walked, written to and closed. All of it may end in errors. Nothing may panic, in any
//! thread, wait for ever, or ask for memory that the volume does not have.
//!
//! By default a few changes of each block; `SCOUTFS_DAMAGE_EACH=N` in the environment makes N of each block, and
//! `SCOUTFS_DAMAGE_SEED=N` others than by default, and `SCOUTFS_DAMAGE_ONLY="VOLUME PLACE NR"` repeats one, by the first words of its
//! failure.

#[path = "common/op.rs"]
mod op;
#[path = "common/workload.rs"]
mod workload;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scoutfs::device::{BlockDevice, MemDevice};
use scoutfs::format::{block_crc_matches, seal_block};
use scoutfs::namespace::Caller;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

use op::Op;
use workload::Run as _;

const BLOCK: usize = 65536;
const SMALL: usize = 4096;
/// Changes of each block, if nothing else is asked for.
const EACH: usize = 3;
const THREADS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(90);
/// More than any part of a volume of this size needs at once.
const LARGE: usize = 32 << 20;

/// The system's allocator, which notes the largest request.
struct Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

type Devices = (Arc<MemDevice>, Arc<MemDevice>);

struct Calls<'a>(&'a Volume);

impl workload::Run for Calls<'_> {
    type Stop = scoutfs::Error;

    fn op(&mut self, op: Op) -> scoutfs::Result<Ino> {
        Ok(op.run(self.0)?.unwrap_or(Ino::ROOT))
    }

    fn sync(&mut self) -> scoutfs::Result<()> {
        self.0.sync()
    }
}

fn open((meta, data): &Devices) -> scoutfs::Result<Volume> {
    Volume::open(meta.clone(), data.clone(), VolumeOptions::member(0))
}

/// A volume with something of every kind in it, left in order or not.
fn volume(clean: bool) -> Devices {
    let devices = (MemDevice::new(64 << 20), MemDevice::new(32 << 20));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*devices.0, &*devices.1, &options).unwrap();
    for nr in 0..2 {
        let volume = open(&devices).unwrap();
        workload::round(&mut Calls(&volume), nr).unwrap();
        let mut calls = Calls(&volume);
        // Tags keep search files and totals.
        let ino = calls.op(Op::Create(Ino::ROOT, format!("tagged {nr}"))).unwrap();
        volume
            .setxattr(&Caller::root(), ino, b"scoutfs.srch.color", b"blue", scoutfs::namespace::XattrFlags::Any)
            .unwrap();
        volume.sync().unwrap();
        if nr == 0 || clean {
            volume.close().unwrap();
        }
    }
    devices
}

/// The blocks of the metadata device that hold something: offset and length.
fn blocks(meta: &MemDevice) -> Vec<(u64, usize)> {
    let mut found = Vec::new();
    let mut block = vec![0; BLOCK];
    for at in (16..32u64).map(|n| n * SMALL as u64) {
        meta.read_at(at, &mut block[..SMALL]).unwrap();
        if block_crc_matches(&block[..SMALL]) && block[..SMALL].iter().any(|b| *b != 0) {
            found.push((at, SMALL));
        }
    }
    for at in (2..meta.size() / BLOCK as u64).map(|n| n * BLOCK as u64) {
        meta.read_at(at, &mut block).unwrap();
        if block_crc_matches(&block) && block.iter().any(|b| *b != 0) {
            found.push((at, BLOCK));
        }
    }
    found
}

/// Changes one number somewhere in what is in use. Returns what was done.
fn damage(block: &mut [u8], numbers: &[u64], rng: &mut StdRng) -> String {
    // Mostly where something is: most of a block is empty.
    let used: Vec<usize> = (4..block.len()).filter(|at| block[*at] != 0).collect();
    let near_head = rng.random_bool(0.4);
    let mut at = if near_head { rng.random_range(4..160) } else { used[rng.random_range(0..used.len())] };
    let width = [1, 2, 4, 8][rng.random_range(0..4)];
    if rng.random_bool(0.8) {
        at -= at % width;
    }
    at = at.clamp(4, block.len() - width);
    let field = &mut block[at..at + width];
    let before = field.to_vec();
    let value: u64 = match rng.random_range(0..6) {
        0 => 0,
        1 => u64::MAX,
        2 => numbers[rng.random_range(0..numbers.len())],
        3 => rng.random(),
        4 => rng.random_range(0..2048),
        _ => {
            let bit = rng.random_range(0..width * 8);
            field[bit / 8] ^= 1 << (bit % 8);
            return format!("bit {bit} of {width} bytes at {at}");
        }
    };
    field.copy_from_slice(&value.to_le_bytes()[..width]);
    format!("{before:x?} at {at} becomes {:x?}", &block[at..at + width])
}

/// Looks at everything that can be reached; errors are what a damaged volume gives.
fn walk(volume: &Volume) {
    let (mut todo, mut seen) = (vec![Ino::ROOT], BTreeSet::new());
    while let Some(ino) = todo.pop() {
        if !seen.insert(ino) || seen.len() > 1000 {
            continue;
        }
        let _ = volume.getattr(ino);
        let _ = volume.listxattr(&Caller::root(), ino);
        let _ = volume.getxattr(&Caller::root(), ino, b"user.a");
        let _ = volume.readlink(ino);
        let _ = volume.extents(ino, 0, u64::MAX, 100);
        let mut buf = vec![0; 300_000];
        let _ = volume.read(ino, 0, &mut buf);
        let mut cursor = 0;
        // A damaged position must not make a listing endless.
        for _ in 0..1000 {
            let Ok(batch) = volume.readdir_plus(ino, cursor, 50) else { break };
            todo.extend(batch.iter().map(|e| e.ino));
            if batch.at_end() {
                break;
            }
            assert!(batch.next_cursor() > cursor, "a listing goes on");
            cursor = batch.next_cursor();
        }
    }
}

fn use_volume(devices: &Devices, step: &Mutex<&'static str>) {
    *step.lock().unwrap() = "check";
    let _ = check(&*devices.0, &*devices.1, &CheckOptions::default());
    *step.lock().unwrap() = "open";
    let Ok(volume) = open(devices) else { return };
    *step.lock().unwrap() = "walk";
    walk(&volume);
    *step.lock().unwrap() = "write";
    let _ = workload::round(&mut Calls(&volume), 7);
    for name in [&b"large"[..], b"second name 0", b"tagged 0", b"tagged 1"] {
        let _ = volume.unlink(&Caller::root(), Ino::ROOT, name);
    }
    let _ = volume.sync();
    *step.lock().unwrap() = "close";
    let _ = volume.close();
}

/// Uses a copy in a thread of its own, so that waiting for ever is a failure and not a test that never ends.
fn watched(devices: Devices) -> Result<(), String> {
    let (done, result) = channel();
    let step = Arc::new(Mutex::new("start"));
    let inside = step.clone();
    std::thread::spawn(move || {
        use_volume(&devices, &inside);
        let _ = done.send(());
    });
    match result.recv_timeout(PATIENCE) {
        Ok(()) => Ok(()),
        Err(RecvTimeoutError::Timeout) => Err(format!("hangs in {}", step.lock().unwrap())),
        Err(RecvTimeoutError::Disconnected) => Err(format!("panics in {}", step.lock().unwrap())),
    }
}

#[test]
fn no_block_can_make_a_volume_panic_hang_or_grow() {
    let number = |name: &str, otherwise: usize| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: {text} is not a number")),
        Err(_) => otherwise,
    };
    // `RUST_LOG=scoutfs=info` shows what the volumes say.
    let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init();
    let (each, seed) = (number("SCOUTFS_DAMAGE_EACH", EACH), number("SCOUTFS_DAMAGE_SEED", 1));
    let bases = [volume(true), volume(false)];
    let mut plans = Vec::new();
    for (base, devices) in bases.iter().enumerate() {
        let blocks = blocks(&devices.0);
        println!("{} blocks", blocks.len());
        plans.extend((0..each).flat_map(|nr| blocks.iter().map(move |b| (base, *b, nr))));
    }
    if let Ok(only) = std::env::var("SCOUTFS_DAMAGE_ONLY") {
        plans.retain(|(base, (at, _), nr)| format!("{base} {at} {nr}") == only);
        assert!(!plans.is_empty(), "there is no {only}");
    }
    let numbers: Vec<u64> = plans.iter().map(|(_, (at, _), _)| at / BLOCK as u64).collect();
    let (queue, failures) = (Mutex::new(plans.into_iter()), Mutex::new(Vec::new()));
    let panics: Arc<Mutex<Vec<String>>> = Arc::default();
    std::panic::set_hook(Box::new({
        let panics = panics.clone();
        move |info| panics.lock().unwrap().push(format!("{:?}: {info}", std::thread::current().name()))
    }));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some((base, (at, len), nr)) = queue.lock().unwrap().next() else { return };
                    let mut rng = StdRng::seed_from_u64(seed as u64 ^ (at << 20) ^ (nr as u64) << 8 ^ base as u64);
                    let devices = (bases[base].0.snapshot(), bases[base].1.snapshot());
                    let mut block = vec![0; len];
                    devices.0.read_at(at, &mut block).unwrap();
                    let what = damage(&mut block, &numbers, &mut rng);
                    seal_block(&mut block);
                    devices.0.write_at(at, &block).unwrap();
                    if let Err(e) = watched(devices) {
                        failures.lock().unwrap().push(format!("{base} {at} {nr}, {what}: {e}"));
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let (failures, panics) = (failures.into_inner().unwrap(), panics.lock().unwrap());
    let largest = LARGEST.load(Ordering::Relaxed);
    println!("largest request for memory: {largest} bytes");
    assert!(failures.is_empty() && panics.is_empty(), "{}\n{}", failures.join("\n"), panics.join("\n"));
    assert!(largest <= LARGE, "{largest} bytes of memory asked for at once");
}
