//! What an open volume keeps in memory, as the number of files grows.
//!
//! ```text
//! cargo bench --bench memory             # a million files
//! cargo bench --bench memory -- 100000   # fewer
//! ```
//!
//! Makes files with 100 bytes each in directories of 10,000, then lists and reads all of them, and prints after each tenth
//! the resident memory of the process beside the sum of the caches it was configured with. A volume whose memory depended on
//! the number of files would show it as a line that rises to the end.

use std::fs;

use scoutfs::device::FileDevice;
use scoutfs::namespace::Caller;
use scoutfs::offline::{MkfsOptions, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DIR_FILES: usize = 10_000;

/// A field of `/proc/self/status`, in MiB.
fn status_mib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|l| l.starts_with(field)).expect("a known field");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number of KiB") / 1024
}

fn caches_mib(options: &VolumeOptions) -> u64 {
    let bytes = [
        options.block_cache_bytes,
        options.item_cache_bytes,
        options.item_dirty_bytes,
        options.data_cache_bytes,
        options.data_dirty_bytes,
    ];
    bytes.iter().map(|b| *b as u64).sum::<u64>() >> 20
}

fn report(step: &str, done: usize, base: u64) {
    println!(
        "{step:<8} {done:>9} files  resident {:>5} MiB more than at start",
        status_mib("VmRSS:").saturating_sub(base)
    );
}

fn main() {
    let files: usize = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(1_000_000);
    let folder = tempfile::tempdir().unwrap();
    let (meta, data) = (folder.path().join("meta"), folder.path().join("data"));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let make = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    let (m, d) = (FileDevice::create(&meta, 16 << 30).unwrap(), FileDevice::create(&data, 16 << 30).unwrap());
    mkfs(&*m, &*d, &make).unwrap();
    drop((m, d));

    let base = status_mib("VmRSS:");
    let options = VolumeOptions::member(0);
    println!("configured caches: {} MiB, resident at start: {base} MiB", caches_mib(&options));
    let volume = Volume::open_paths(&meta, &data, options).unwrap();
    let root = Caller::root();
    let step = (files / 10).max(1);

    let mut dirs: Vec<Ino> = Vec::new();
    for i in 0..files {
        if i % DIR_FILES == 0 {
            dirs.push(volume.mkdir(&root, Ino::ROOT, format!("d{}", dirs.len()).as_bytes(), 0o755).unwrap().ino);
        }
        let dir = *dirs.last().expect("made above");
        let made = volume.create(&root, dir, format!("file-{i:07}").as_bytes(), 0o644).unwrap();
        volume.write(&root, made.ino, 0, &[i as u8; 100]).unwrap();
        if (i + 1) % step == 0 {
            report("created", i + 1, base);
        }
    }
    volume.sync().unwrap();

    let (mut seen, mut buf) = (0, [0; 4096]);
    for dir in &dirs {
        let mut cursor = 0;
        loop {
            let batch = volume.readdir_plus(*dir, cursor, 1024).unwrap();
            for entry in batch.iter().filter(|e| e.name != b"." && e.name != b"..") {
                let ino = entry.attr.as_ref().expect("asked for").ino;
                assert_eq!(volume.read(ino, 0, &mut buf).unwrap(), 100);
                seen += 1;
                if seen % step == 0 {
                    report("read", seen, base);
                }
            }
            if batch.at_end() {
                break;
            }
            cursor = batch.next_cursor();
        }
    }
    assert_eq!(seen, files);
    println!("peak: {} MiB more than at start", status_mib("VmHWM:") - base);
    volume.close().unwrap();
}
