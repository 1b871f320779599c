//! Contents of files through the public API: any bytes, holes, space, commits, failures.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use scoutfs::device::{BlockDevice, Fault, FaultDevice, FaultOps, MemDevice};
use scoutfs::namespace::{AttrX, Caller, SetAttr};
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Errno, Ino, Volume, VolumeOptions};

const MIB: u64 = 1 << 20;
const KEEP_SIZE: u32 = 1;
const PUNCH: u32 = 2 | KEEP_SIZE;
const ZERO: u32 = 16;

type Device = Arc<dyn BlockDevice>;

fn devices(meta_mib: u64, data_mib: u64) -> (Device, Device) {
    let (meta, data) = (MemDevice::new(meta_mib << 20), MemDevice::new(data_mib << 20));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*meta, &*data, &options).unwrap();
    (meta, data)
}

fn open_with(meta: &Device, data: &Device, change: impl FnOnce(&mut VolumeOptions)) -> Volume {
    let mut options = VolumeOptions::member(0);
    change(&mut options);
    Volume::open(meta.clone(), data.clone(), options).unwrap()
}

fn open(meta: &Device, data: &Device) -> Volume {
    open_with(meta, data, |_| {})
}

/// Leaves the volume and checks it as a whole.
fn close_and_check(volume: Volume, meta: &Device, data: &Device) {
    volume.close().unwrap();
    let report = check(&**meta, &**data, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn file(volume: &Volume, name: &str) -> Ino {
    volume.create(&Caller::root(), Ino::ROOT, name.as_bytes(), 0o644).unwrap().ino
}

fn write(volume: &Volume, ino: Ino, offset: u64, data: &[u8]) {
    assert_eq!(volume.write(&Caller::root(), ino, offset, data).unwrap(), data.len());
}

fn truncate(volume: &Volume, ino: Ino, size: u64) {
    volume.setattr(&Caller::root(), ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
}

fn read_all(volume: &Volume, ino: Ino) -> Vec<u8> {
    let mut buf = vec![0xee; volume.getattr(ino).unwrap().size as usize + 10];
    let n = volume.read(ino, 0, &mut buf).unwrap();
    buf.truncate(n);
    buf
}

/// Bytes that differ from their neighbours and from other patterns.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u64).wrapping_mul(31).wrapping_add(seed.wrapping_mul(97)).wrapping_add(i as u64 >> 8) as u8 | 1)
        .collect()
}

/// Extents as (first block, blocks, unwritten).
fn extents(volume: &Volume, ino: Ino) -> Vec<(u64, u64, bool)> {
    let all = volume.extents(ino, 0, u64::MAX, 1000).unwrap();
    all.iter().map(|e| (e.logical / 4096, e.length / 4096, e.unwritten)).collect()
}

#[test]
fn small_appends_become_one_extent() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let ino = file(&volume, "log");
    let mut want = Vec::new();
    for i in 0..3000 {
        let piece = pattern(i, 100 + i as usize % 50);
        let (at, n) = volume.append(&Caller::root(), ino, &piece).unwrap();
        assert_eq!((at, n), (want.len() as u64, piece.len()));
        want.extend_from_slice(&piece);
    }
    let attr = volume.getattr(ino).unwrap();
    let blocks = (want.len() as u64).div_ceil(4096);
    assert_eq!((attr.size, attr.online_blocks), (want.len() as u64, blocks), "space counts before it has a place");
    assert_eq!(extents(&volume, ino), [(0, blocks, false)]);
    assert_eq!(read_all(&volume, ino), want);
    close_and_check(volume, &meta, &data);
    let volume = open(&meta, &data);
    assert_eq!(read_all(&volume, ino), want);
    close_and_check(volume, &meta, &data);
}

#[test]
fn sparse_files_read_zeros_and_report_their_holes() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let ino = file(&volume, "sparse");
    write(&volume, ino, 10 * MIB + 5, b"island");
    truncate(&volume, ino, 1 << 40);
    assert_eq!(volume.seek_data(ino, 0).unwrap(), 10 * MIB);
    assert_eq!(volume.seek_hole(ino, 10 * MIB).unwrap(), 10 * MIB + 4096);
    assert!(volume.seek_data(ino, 11 * MIB).unwrap_err().is(Errno::ENXIO));
    assert_eq!(volume.seek_hole(ino, 11 * MIB).unwrap(), 11 * MIB);
    assert!(volume.seek_hole(ino, 1 << 40).unwrap_err().is(Errno::ENXIO));
    assert_eq!(extents(&volume, ino), [(2560, 1, false)]);
    let mut buf = vec![1; 300_000];
    assert_eq!(volume.read(ino, (1 << 40) - 100_000, &mut buf).unwrap(), 100_000);
    assert!(buf[..100_000].iter().all(|b| *b == 0));
    volume.read(ino, 10 * MIB - 10, &mut buf).unwrap();
    assert!(buf[..15].iter().all(|b| *b == 0) && &buf[15..21] == b"island" && buf[21..].iter().all(|b| *b == 0));
    close_and_check(volume, &meta, &data);
}

#[test]
fn fallocate_reserves_and_punching_gives_back() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let root = Caller::root();
    let ino = file(&volume, "f");
    volume.fallocate(&root, ino, KEEP_SIZE, 0, MIB).unwrap();
    let attr = volume.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.online_blocks, attr.data_version), (0, 0, 0));
    assert_eq!(extents(&volume, ino), [(0, 256, true)]);
    volume.fallocate(&root, ino, 0, MIB, MIB).unwrap();
    assert_eq!(volume.getattr(ino).unwrap().size, 2 * MIB);
    assert_eq!(volume.seek_data(ino, 0).unwrap_err().errno(), Errno::ENXIO);
    write(&volume, ino, 8192, &pattern(1, 4096));
    assert_eq!(volume.seek_data(ino, 0).unwrap(), 8192);
    assert_eq!(extents(&volume, ino), [(0, 2, true), (2, 1, false), (3, 509, true)]);
    assert_eq!(volume.getattr(ino).unwrap().online_blocks, 1);
    volume.fallocate(&root, ino, PUNCH, 4096 + 1, 3 * 4096).unwrap();
    assert_eq!(extents(&volume, ino), [(0, 2, true), (4, 508, true)], "what is unwritten stays so");
    close_and_check(volume, &meta, &data);
}

#[test]
fn unknown_modes_and_impossible_ranges_are_refused() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let root = Caller::root();
    let ino = file(&volume, "f");
    for mode in [2, 4, 8, 32, 64, 1 << 20] {
        assert!(volume.fallocate(&root, ino, mode, 0, 4096).unwrap_err().is(Errno::EOPNOTSUPP), "{mode}");
    }
    volume.fallocate(&root, ino, 0, 0, 0).unwrap();
    assert!(volume.fallocate(&root, ino, 0, u64::MAX, 2).unwrap_err().is(Errno::EINVAL));
    assert!(volume.fallocate(&root, ino, 0, i64::MAX as u64, 1).unwrap_err().is(Errno::EFBIG));
    assert!(volume.write(&root, ino, i64::MAX as u64, b"x").unwrap_err().is(Errno::EFBIG));
    assert!(volume.write(&root, ino, u64::MAX, b"x").unwrap_err().is(Errno::EFBIG));
    assert!(volume.write(&root, Ino::ROOT, 0, b"x").unwrap_err().is(Errno::EISDIR));
    let mut buf = [0; 10];
    assert!(volume.read(Ino::ROOT, 0, &mut buf).unwrap_err().is(Errno::EISDIR));
    assert_eq!(volume.read(ino, u64::MAX, &mut buf).unwrap(), 0);
    assert_eq!(volume.getattr(ino).unwrap().size, 0);
    close_and_check(volume, &meta, &data);
}

/// Growing a file by allocation is a change of its contents for whoever walks them; the original does not say so.
#[test]
fn defect_68_growing_by_fallocate_is_a_new_version() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let ino = file(&volume, "f");
    volume.sync().unwrap();
    let before = volume.getattr(ino).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    volume.fallocate(&Caller::root(), ino, 0, 0, 10_000).unwrap();
    let after = volume.getattr(ino).unwrap();
    assert_eq!(after.size, 10_000);
    assert!(after.data_version > before.data_version && after.data_seq > before.data_seq);
    assert!(after.mtime > before.mtime && after.ctime > before.ctime && after.version > before.version);
    close_and_check(volume, &meta, &data);
}

/// A retained file keeps its contents and its space, whatever is tried; the original lets fallocate through.
#[test]
fn defect_68_retained_files_cannot_be_allocated_in() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let root = Caller::root();
    let ino = file(&volume, "f");
    write(&volume, ino, 0, b"kept");
    volume.set_attr_x(&root, ino, &AttrX { retention: Some(true), ..AttrX::default() }).unwrap();
    for mode in [0, KEEP_SIZE, PUNCH, ZERO] {
        assert!(volume.fallocate(&root, ino, mode, 0, 8192).unwrap_err().is(Errno::EPERM), "{mode}");
    }
    assert!(volume.write(&root, ino, 0, b"x").unwrap_err().is(Errno::EPERM));
    assert!(volume.append(&root, ino, b"x").unwrap_err().is(Errno::EPERM));
    // Nor through a mapping, which the original allows too.
    let mut page = [0; 4096];
    assert!(volume.lend(ino, 0, &mut page, true).unwrap_err().is(Errno::EPERM));
    assert!(volume.give_back(&root, ino, 0, b"x").unwrap_err().is(Errno::EPERM));
    assert_eq!(volume.lend(ino, 0, &mut page, false).unwrap(), 4);
    assert_eq!(read_all(&volume, ino), b"kept");
    close_and_check(volume, &meta, &data);
}

/// Bytes between the end of a file and the end of its block are zeros when they become part of it, however that happens.
#[test]
fn what_is_behind_the_end_reads_as_zeros_when_the_file_grows() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let root = Caller::root();
    for (i, commit) in [(0u64, false), (1, true), (2, false), (3, true), (4, false), (5, true)] {
        let ino = file(&volume, &format!("f{i}"));
        write(&volume, ino, 0, &pattern(i, 20_000));
        if commit {
            volume.sync().unwrap();
        }
        truncate(&volume, ino, 10_001);
        if commit {
            volume.sync().unwrap();
        }
        match i / 2 {
            0 => truncate(&volume, ino, 30_000),
            1 => volume.fallocate(&root, ino, 0, 0, 30_000).unwrap(),
            _ => write(&volume, ino, 29_999, &[0]),
        }
        let mut want = pattern(i, 20_000);
        want.truncate(10_001);
        want.resize(30_000, 0);
        assert!(read_all(&volume, ino) == want, "{i}");
    }
    close_and_check(volume, &meta, &data);
}

#[test]
fn every_write_is_a_new_version_with_new_times() {
    let (meta, data) = devices(64, 64);
    let volume = open(&meta, &data);
    let ino = file(&volume, "f");
    let mut before = volume.getattr(ino).unwrap();
    for i in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(2));
        match i {
            0 | 1 => write(&volume, ino, 0, b"x"),
            2 => truncate(&volume, ino, 0),
            _ => volume.fallocate(&Caller::root(), ino, ZERO, 0, 5000).unwrap(),
        }
        let after = volume.getattr(ino).unwrap();
        assert!(after.data_version > before.data_version && after.version > before.version, "{i}");
        assert!(after.mtime > before.mtime && after.ctime > before.ctime, "{i}");
        before = after;
    }
    close_and_check(volume, &meta, &data);
}

/// A write that fails on the device stays dirty: no commit passes it, and after the device has recovered everything is there.
#[test]
fn defect_3_failed_data_writes_stay_dirty() {
    let (meta, data) = devices(64, 64);
    let fault = FaultDevice::new(data.clone());
    let faulty: Device = fault.clone();
    let volume = open(&meta, &faulty);
    let ino = file(&volume, "f");
    let want = pattern(5, 3_000_000);
    let write_small = |data: &[u8]| {
        // Small writes wait in memory.
        data.chunks(100_000).enumerate().for_each(|(i, piece)| write(&volume, ino, i as u64 * 100_000, piece));
    };
    for round in 0..3 {
        write_small(&want[round..]);
        fault.fail_nth(FaultOps::WRITES, round as u64, if round == 1 { Fault::Torn } else { Fault::Once });
        // The first try may fail; the transaction is committed when the data is written, not before.
        let first = volume.sync();
        fault.heal();
        if first.is_err() {
            volume.sync().unwrap();
        }
    }
    fault.fail_nth(FaultOps::WRITES, 0, Fault::Forever);
    write_small(&want);
    assert!(volume.sync().is_err());
    fault.heal();
    volume.sync().unwrap();
    volume.close().unwrap();
    let volume = open(&meta, &data);
    let read = read_all(&volume, ino);
    assert!(read == want, "contents differ");
    close_and_check(volume, &meta, &data);
}

#[test]
fn large_writes_that_fail_on_the_device_are_kept_and_tried_again() {
    let (meta, data) = devices(64, 64);
    let fault = FaultDevice::new(data.clone());
    let faulty: Device = fault.clone();
    let volume = open(&meta, &faulty);
    let ino = file(&volume, "f");
    let want = pattern(6, 5_000_000);
    for (i, piece) in want.chunks(1_000_000).enumerate() {
        fault.fail_nth(FaultOps::WRITES, 0, if i % 2 == 0 { Fault::Once } else { Fault::Torn });
        write(&volume, ino, i as u64 * 1_000_000, piece);
        fault.heal();
    }
    assert!(read_all(&volume, ino) == want);
    volume.sync().unwrap();
    close_and_check(volume, &meta, &faulty);
    let volume = open(&meta, &data);
    assert!(read_all(&volume, ino) == want);
    close_and_check(volume, &meta, &data);
}

#[test]
fn files_written_side_by_side_have_large_extents() {
    let (meta, data) = devices(64, 256);
    let volume = open(&meta, &data);
    let inos: Vec<Ino> = (0..3).map(|i| file(&volume, &format!("f{i}"))).collect();
    let piece = pattern(1, 256 << 10);
    for i in 0..64 {
        inos.iter().for_each(|ino| write(&volume, *ino, i * piece.len() as u64, &piece));
    }
    for ino in &inos {
        let n = extents(&volume, *ino).len();
        assert!(n <= 8, "{n} extents for 16 MiB");
    }
    close_and_check(volume, &meta, &data);
}

#[test]
fn a_full_volume_says_so_when_data_is_written_and_loses_nothing() {
    let (meta, data) = devices(64, 32);
    let volume = open(&meta, &data);
    let root = Caller::root();
    let mut files = Vec::new();
    let full = 'fill: loop {
        let ino = file(&volume, &format!("f{}", files.len()));
        let want = pattern(files.len() as u64, 700_000);
        let mut done = 0;
        while done < want.len() {
            match volume.write(&root, ino, done as u64, &want[done..]) {
                Ok(n) => done += n,
                Err(e) => {
                    files.push((ino, want[..done].to_vec()));
                    break 'fill e;
                }
            }
        }
        files.push((ino, want));
        assert!(files.len() < 100, "the device has room for 45 of these");
    };
    assert!(full.is(Errno::ENOSPC), "{full}");
    let written: usize = files.iter().map(|(_, w)| w.len()).sum();
    assert!(written > 31_000_000, "only {written} bytes fit");
    volume.sync().unwrap();
    for (ino, want) in &files {
        assert!(read_all(&volume, *ino) == *want, "inode {ino}");
    }
    // Overwriting needs no space; removing gives it back.
    write(&volume, files[0].0, 10, &files[1].1[10..600_000]);
    for i in 0..10 {
        volume.unlink(&root, Ino::ROOT, format!("f{i}").as_bytes()).unwrap();
    }
    let ino = file(&volume, "again");
    let want = pattern(77, 6_500_000);
    write(&volume, ino, 0, &want);
    assert!(read_all(&volume, ino) == want);
    close_and_check(volume, &meta, &data);
}

#[test]
fn threads_write_and_read_at_once() {
    let (meta, data) = devices(64, 256);
    let volume = open_with(&meta, &data, |o| {
        o.data_cache_bytes = 4 << 20;
        o.data_dirty_bytes = 8 << 20;
    });
    let shared = file(&volume, "shared");
    let base = pattern(9, 2_000_000);
    write(&volume, shared, 0, &base);
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let (volume, base) = (&volume, &base);
            s.spawn(move || {
                let mut rng = StdRng::seed_from_u64(t);
                let ino = file(volume, &format!("own{t}"));
                let mut want = Vec::new();
                for i in 0..60 {
                    let piece = pattern(t * 1000 + i, rng.random_range(1..300_000));
                    write(volume, ino, want.len() as u64, &piece);
                    want.extend_from_slice(&piece);
                    let at = rng.random_range(0..base.len());
                    let mut buf = vec![0; rng.random_range(1..200_000)];
                    let n = volume.read(shared, at as u64, &mut buf).unwrap();
                    assert!(buf[..n] == base[at..at + n], "shared contents");
                    if i % 20 == 7 {
                        volume.sync().unwrap();
                    }
                }
                assert!(read_all(volume, ino) == want, "own contents of {t}");
            });
        }
    });
    close_and_check(volume, &meta, &data);
}

/// A volume, and what its file should contain.
struct Model {
    meta: Device,
    data: Device,
    volume: Option<Volume>,
    ino: Ino,
    bytes: Vec<u8>,
    seed: u64,
}

impl Model {
    const MAX: u64 = 600_000;

    fn new(seed: u64) -> Model {
        let (meta, data) = devices(64, 64);
        let mut m = Model { meta, data, volume: None, ino: Ino(0), bytes: Vec::new(), seed };
        m.reopen(&mut StdRng::seed_from_u64(seed));
        m.ino = file(m.volume(), "model");
        m
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    fn reopen(&mut self, rng: &mut StdRng) {
        if let Some(v) = self.volume.take() {
            close_and_check(v, &self.meta, &self.data);
        }
        let small = rng.random_bool(0.5);
        self.volume = Some(open_with(&self.meta, &self.data, |o| {
            if small {
                o.data_cache_bytes = 64 << 10;
                o.data_dirty_bytes = 256 << 10;
            }
        }));
    }

    fn range(rng: &mut StdRng) -> (u64, u64) {
        let align = |v: u64, rng: &mut StdRng| if rng.random_bool(0.4) { v & !4095 } else { v };
        let at = align(rng.random_range(0..Model::MAX), rng);
        let most = if rng.random_bool(0.3) { 200_000 } else { 9_000 };
        let len = align(rng.random_range(1..most), rng).max(1);
        (at, len)
    }

    fn grow(&mut self, size: u64) {
        if self.bytes.len() < size as usize {
            self.bytes.resize(size as usize, 0);
        }
    }

    fn step(&mut self, rng: &mut StdRng) {
        let root = Caller::root();
        let (at, len) = Model::range(rng);
        let (from, to) = (at as usize, (at + len) as usize);
        let zero = |bytes: &mut Vec<u8>| {
            let end = to.min(bytes.len());
            if from < end {
                bytes[from..end].fill(0);
            }
        };
        match rng.random_range(0..100) {
            0..35 => {
                let piece = pattern(rng.random(), len as usize);
                write(self.volume(), self.ino, at, &piece);
                self.grow(at + len);
                self.bytes[from..to].copy_from_slice(&piece);
            }
            35..42 => {
                let piece = pattern(rng.random(), len as usize % 20_000);
                self.volume().append(&root, self.ino, &piece).unwrap();
                self.bytes.extend_from_slice(&piece);
                if self.bytes.len() as u64 > Model::MAX * 2 {
                    truncate(self.volume(), self.ino, at);
                    self.bytes.truncate(at as usize);
                    self.grow(at);
                }
            }
            42..52 => {
                truncate(self.volume(), self.ino, at);
                self.bytes.truncate(from);
                self.grow(at);
            }
            52..58 => {
                self.volume().fallocate(&root, self.ino, PUNCH, at, len).unwrap();
                zero(&mut self.bytes);
            }
            58..63 => {
                let keep = rng.random_bool(0.5);
                self.volume().fallocate(&root, self.ino, ZERO | u32::from(keep), at, len).unwrap();
                zero(&mut self.bytes);
                if !keep {
                    self.grow(at + len);
                }
            }
            63..70 => {
                let keep = rng.random_bool(0.5);
                self.volume().fallocate(&root, self.ino, u32::from(keep), at, len).unwrap();
                if !keep {
                    self.grow(at + len);
                }
            }
            70..90 => {
                let mut buf = vec![0xaa; len as usize];
                let n = self.volume().read(self.ino, at, &mut buf).unwrap();
                let want = self.bytes.get(from..to.min(self.bytes.len())).unwrap_or(&[]);
                assert!(buf[..n] == *want, "read of {at}+{len}: {n} bytes");
            }
            90..96 => self.volume().sync().unwrap(),
            96..98 => self.check_seek(at),
            _ => self.reopen(rng),
        }
    }

    /// What is reported as a hole has no data.
    fn check_seek(&self, at: u64) {
        let (v, size) = (self.volume(), self.bytes.len() as u64);
        if at >= size {
            assert!(v.seek_hole(self.ino, at).unwrap_err().is(Errno::ENXIO));
            return;
        }
        let hole = v.seek_hole(self.ino, at).unwrap();
        let data = v.seek_data(self.ino, at).unwrap_or(size);
        assert!(hole >= at && hole <= size && data >= at && data <= size && (hole == at || data == at));
        assert!(self.bytes[at as usize..data as usize].iter().all(|b| *b == 0));
    }

    fn run(seed: u64, steps: usize) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut m = Model::new(seed);
        for i in 0..steps {
            m.step(&mut rng);
            assert_eq!(m.volume().getattr(m.ino).unwrap().size, m.bytes.len() as u64, "seed {} step {i}", m.seed);
            if i % 16 == 0 {
                assert!(read_all(m.volume(), m.ino) == m.bytes, "seed {} step {i}", m.seed);
            }
        }
        assert!(read_all(m.volume(), m.ino) == m.bytes, "seed {}", m.seed);
        m.volume().unlink(&Caller::root(), Ino::ROOT, b"model").unwrap();
        close_and_check(m.volume.take().unwrap(), &m.meta, &m.data);
    }
}

#[test]
fn random_operations_agree_with_a_byte_array() {
    for seed in 0..6 {
        println!("seed {seed}");
        Model::run(seed, 120);
    }
}

/// A write here and there in a large file changes an extent item at each place when it is committed. The transaction did not
/// count with that many leaves of its log tree, so on a small volume the commit failed for want of blocks, for ever.
#[test]
fn writes_all_over_a_file_never_make_a_commit_run_out_of_blocks() {
    const PAGE: u64 = 4096;
    let (meta, data) = devices(64, 2048);
    let volume = Arc::new(open(&meta, &data));
    let file = volume.create(&Caller::root(), Ino::ROOT, b"file", 0o644).unwrap().ino;
    let (done, end) = std::sync::mpsc::channel();
    let writer = volume.clone();
    std::thread::spawn(move || {
        let mut rng = StdRng::seed_from_u64(1);
        let mut written = std::collections::BTreeMap::new();
        for i in 0..60_000u64 {
            let page = rng.random_range(0..512 * MIB / PAGE);
            assert_eq!(writer.write(&Caller::root(), file, page * PAGE, &i.to_le_bytes()).unwrap(), 8);
            written.insert(page, i);
        }
        writer.sync().unwrap();
        drop(writer);
        done.send(written).unwrap();
    });
    let written = end.recv_timeout(std::time::Duration::from_secs(300)).expect("all is written in time");
    let volume = Arc::into_inner(volume).expect("the writer has ended");
    volume.close().unwrap();
    let volume = open(&meta, &data);
    for (page, i) in written.into_iter().step_by(7) {
        let mut buf = [0; 8];
        volume.read(file, page * PAGE, &mut buf).unwrap();
        assert_eq!(u64::from_le_bytes(buf), i, "page {page}");
    }
    close_and_check(volume, &meta, &data);
}
