#![no_main]
//! A whole volume, changed where the input says, under right checksums: checked, opened read-only and walked. (Opening it to
//! write starts threads and elections, which a fuzzer is too slow with; `tests/damaged.rs` does that.)

use std::sync::{Arc, OnceLock};

use scoutfs::device::{BlockDevice, MemDevice};
use scoutfs::format::{block_crc_matches, seal_block};
use scoutfs::namespace::{Caller, XattrFlags};
use scoutfs::offline::{CheckOptions, DumpOptions, MkfsOptions, check, dump, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

const BLOCK: usize = 65536;

struct Base {
    meta: Arc<MemDevice>,
    data: Arc<MemDevice>,
    /// Where blocks are: offset and length.
    blocks: Vec<(u64, usize)>,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let (meta, data) = (MemDevice::new(64 << 20), MemDevice::new(32 << 20));
        let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
        let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
        mkfs(&*meta, &*data, &options).unwrap();
        let volume = Volume::open(meta.clone(), data.clone(), VolumeOptions::member(0)).unwrap();
        volume.create_dir_all("a/b").unwrap();
        for i in 0..40 {
            volume.write_file(format!("a/b/{i}"), &vec![i as u8; i * 700]).unwrap();
        }
        let ino = volume.resolve("a/b/3").unwrap().ino;
        volume.setxattr(&Caller::root(), ino, b"scoutfs.srch.color", b"blue", XattrFlags::Any).unwrap();
        volume.close().unwrap();
        let mut blocks = vec![(BLOCK as u64, 4096)];
        let mut block = vec![0; BLOCK];
        for at in (2..meta.size() / BLOCK as u64).map(|n| n * BLOCK as u64) {
            meta.read_at(at, &mut block).unwrap();
            if block_crc_matches(&block) && block.iter().any(|b| *b != 0) {
                blocks.push((at, BLOCK));
            }
        }
        Base { meta, data, blocks }
    })
}

/// Each eight bytes of the input: which block (1), how wide (1), where (2), and what (4, spread over the width).
fn mutate(base: &Base, meta: &MemDevice, input: &[u8]) {
    for change in input.chunks_exact(8).take(8) {
        let (at, len) = base.blocks[usize::from(change[0]) % base.blocks.len()];
        let mut block = vec![0; len];
        meta.read_at(at, &mut block).unwrap();
        let width = 1 << (change[1] % 4);
        let place = usize::from(u16::from_le_bytes([change[2], change[3]])).clamp(4, len - width);
        for (i, byte) in block[place..place + width].iter_mut().enumerate() {
            *byte = change[4 + i % 4];
        }
        seal_block(&mut block);
        meta.write_at(at, &block).unwrap();
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let base = base();
    let meta = base.meta.snapshot();
    mutate(base, &meta, input);
    let _ = check(&*meta, &*base.data, &CheckOptions::default());
    let _ = dump(&*meta, &DumpOptions::default(), &mut std::io::sink());
    let Ok(volume) = Volume::open(meta, base.data.clone(), VolumeOptions::read_only()) else { return };
    let mut todo = vec![Ino::ROOT];
    for _ in 0..200 {
        let Some(ino) = todo.pop() else { break };
        let _ = (volume.getattr(ino), volume.listxattr(&Caller::root(), ino));
        let _ = volume.read(ino, 0, &mut [0; 4096]);
        if let Ok(batch) = volume.readdir_plus(ino, 0, 100) {
            todo.extend(batch.iter().filter(|e| e.name != b"." && e.name != b"..").map(|e| e.ino));
        }
    }
    let _ = volume.close();
});
