//! The stored volumes of the original unpack to whole devices.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};

use scoutfs::device::BlockDevice;
use scoutfs::format::check::{DeviceRole, decode_super, validate_super, validate_super_pair};
use scoutfs::format::consts::{QUORUM_BLKNO, SMALL_BYTES, SUPER_BLKNO};

#[test]
fn every_fixture_has_two_sound_super_blocks() {
    for name in common::ALL {
        let (meta, data) = common::fixture_mem(name);
        let read = |dev: &dyn BlockDevice, role| {
            let mut block = [0; SMALL_BYTES];
            dev.read_at(SUPER_BLKNO * SMALL_BYTES as u64, &mut block).unwrap();
            let sb = decode_super(&block, &dev.name()).unwrap();
            validate_super(&sb, role, dev.size()).unwrap();
            sb
        };
        let (m, d) = (read(&*meta, DeviceRole::Meta), read(&*data, DeviceRole::Data));
        validate_super_pair(&m, &d).unwrap();
        assert_eq!(m.hdr.fsid, d.hdr.fsid);
        for slot in 0..15 {
            let mut block = [0; SMALL_BYTES];
            meta.read_at((QUORUM_BLKNO + slot) * SMALL_BYTES as u64, &mut block).unwrap();
            scoutfs::format::check::validate_quorum_block(&block, m.hdr.fsid.get(), slot as usize).unwrap();
        }
    }
}

#[test]
fn the_files_are_sparse_and_equal_the_memory_devices() {
    let name = "03-small-tree";
    let files = common::fixture(name);
    let (meta, data) = common::fixture_mem(name);
    for (path, mem) in [(&files.meta, meta), (&files.data, data)] {
        let file = std::fs::File::open(path).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!(stat.len(), mem.size());
        assert!(stat.blocks() * 512 < 64 << 20, "the file has holes");
        let (mut a, mut b) = (vec![0; 65536], vec![0; 65536]);
        for blkno in (0..256).chain([mem.size() / 65536 - 1]) {
            file.read_exact_at(&mut a, blkno * 65536).unwrap();
            mem.read_at(blkno * 65536, &mut b).unwrap();
            assert_eq!(a, b, "block {blkno}");
        }
    }
}
