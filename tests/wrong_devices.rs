//! Devices that are not what they are said to be, and arguments that make no sense: each is refused with an error that names
//! what is wrong, and not a byte of any device has changed.
//!
//! Every case starts from two good volumes. The devices of a case record what is written to them and are compared byte for
//! byte afterwards; the same volumes, left as they are, open and work.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use scoutfs::device::{BlockDevice, FileDevice, FileOptions, MemDevice, RecordDevice, Recorder};
use scoutfs::format::seal_block;
use scoutfs::namespace::{Caller, Caps};
use scoutfs::offline::{CheckOptions, Identity, MkfsOptions, QuorumSlot, check, mkfs};
use scoutfs::{Errno, Error, Volume, VolumeOptions};

const MIB: u64 = 1 << 20;
/// Where each device has its super block, and where in it stand the volume id, the format version and the uuid (`spec/01 §6`).
const SUPER: u64 = 64 << 10;
const FSID: Range<usize> = 8..16;

fn slot(text: &str) -> QuorumSlot {
    text.parse().unwrap()
}

fn options() -> MkfsOptions {
    MkfsOptions { allow_small: true, quorum_slots: vec![slot("3,127.0.0.1,12345")], ..MkfsOptions::default() }
}

/// A volume with a file in it, closed.
fn volume(format_version: u64) -> [Arc<MemDevice>; 2] {
    let [meta, data] = [MemDevice::named("meta", 64 * MIB), MemDevice::named("data", 32 * MIB)];
    mkfs(&*meta, &*data, &MkfsOptions { format_version, ..options() }).unwrap();
    let volume = Volume::open(meta.clone(), data.clone(), VolumeOptions::member(3)).unwrap();
    volume.write_file("/file", &[7; 100_000]).unwrap();
    volume.close().unwrap();
    [meta, data]
}

/// All of a device; of an enormous empty one only the front, where anything would be written first.
fn bytes(device: &dyn BlockDevice) -> Vec<u8> {
    let mut all = vec![0; device.size().min(128 * MIB) as usize];
    device.read_at(0, &mut all).unwrap();
    all
}

/// A copy of a device with its super block changed and sealed again.
fn changed(device: &MemDevice, change: impl FnOnce(&mut [u8])) -> Arc<MemDevice> {
    let copy = device.snapshot();
    let mut block = vec![0; 4096];
    copy.read_at(SUPER, &mut block).unwrap();
    change(&mut block);
    seal_block(&mut block);
    copy.write_at(SUPER, &block).unwrap();
    copy
}

/// Offset of the 8 byte format version in a super block: the one place where volumes of versions 1 and 2 that are otherwise
/// the same differ.
fn version_offset() -> usize {
    let supers = [1, 2].map(|format_version| {
        let [meta, data] = [MemDevice::new(64 * MIB), MemDevice::new(32 * MIB)];
        let identity = Some(Identity { fsid: 1, uuid: [1; 16], time: (1, 1) });
        mkfs(&*meta, &*data, &MkfsOptions { format_version, identity, ..options() }).unwrap();
        bytes(&*data)[SUPER as usize..][..4096].to_vec()
    });
    let differ: Vec<usize> = (4..4096).filter(|i| supers[0][*i] != supers[1][*i]).collect();
    assert_eq!(differ.len(), 1, "only the version: {differ:?}");
    differ[0]
}

/// Does `what` with the devices; it must be refused for a reason that contains `because`, with nothing written.
fn refused<T>(
    name: &str,
    because: &str,
    devices: [&Arc<MemDevice>; 2],
    what: impl FnOnce(Arc<RecordDevice>, Arc<RecordDevice>) -> Result<T, Error>,
) {
    let before = devices.map(|d| bytes(&**d));
    let recorder = Recorder::new();
    let error = match what(recorder.wrap(devices[0]), recorder.wrap(devices[1])) {
        Ok(_) => panic!("{name}: was not refused"),
        Err(e) => e,
    };
    assert!(error.to_string().contains(because), "{name}: '{error}' does not say '{because}'");
    assert!(matches!(error.errno(), Errno::EINVAL | Errno::EBUSY | Errno::EROFS | Errno::EIO), "{name}: {error}");
    assert_eq!(recorder.position(), 0, "{name}: something was written or flushed");
    for (device, before) in devices.iter().zip(before) {
        assert!(bytes(&***device) == before, "{name}: {} was changed", device.name());
    }
}

/// Neither a mount that writes nor one that only looks accepts the devices.
fn cannot_be_opened(name: &str, because: &str, meta: &Arc<MemDevice>, data: &Arc<MemDevice>) {
    refused(name, because, [meta, data], |m, d| Volume::open(m, d, VolumeOptions::member(3)));
    refused(name, because, [meta, data], |m, d| Volume::open(m, d, VolumeOptions::read_only()));
}

#[test]
fn truncated_devices_are_not_opened() {
    let [meta, data] = volume(2);
    for (size, because) in [
        (64 * MIB - 65_536, "metadata device: the volume has 1024 blocks there, the device only 1023"),
        (64 * MIB - 1, "metadata device: the volume has 1024 blocks there, the device only 1023"),
        (5 * MIB, "the device only 80"),
        (SUPER + 4096, "the device only 1"),
        (SUPER + 4095, "meta is too small to hold a super block"),
        (4096, "meta is too small to hold a super block"),
        (0, "meta is too small to hold a super block"),
    ] {
        cannot_be_opened(&format!("metadata device of {size} bytes"), because, &meta.snapshot_sized(size), &data);
    }
    for (size, because) in [
        (32 * MIB - 4096, "data device: the volume has 8192 blocks there, the device only 8191"),
        (SUPER + 4096, "the device only 17"),
        (SUPER, "data is too small to hold a super block"),
        (0, "data is too small to hold a super block"),
    ] {
        cannot_be_opened(&format!("data device of {size} bytes"), because, &meta, &data.snapshot_sized(size));
    }
    // A longer one is no damage: somebody is about to grow the volume.
    let (meta, data) = (meta.snapshot_sized(65 * MIB), data.snapshot_sized(33 * MIB));
    let grown = Volume::open(meta.clone(), data.clone(), VolumeOptions::member(3)).unwrap();
    assert_eq!(grown.read_file("/file").unwrap(), [7; 100_000]);
    grown.close().unwrap();
    assert!(check(&*meta, &*data, &CheckOptions::default()).unwrap().is_clean());
}

#[test]
fn devices_that_do_not_belong_together_are_not_opened() {
    let [meta, data] = volume(2);
    let [other_meta, other_data] = volume(2);
    cannot_be_opened("swapped", "are the two devices swapped?", &data, &meta);
    cannot_be_opened("twice the metadata device", "are the two devices swapped?", &meta, &meta.snapshot());
    cannot_be_opened("twice the data device", "are the two devices swapped?", &data, &data.snapshot());
    cannot_be_opened("data of another volume", "the data device to another one", &meta, &other_data);
    cannot_be_opened("metadata of another volume", "the data device to another one", &other_meta, &data);
    // The uuid alone does not make them a pair.
    let fsid = changed(&data, |sb| sb[FSID].copy_from_slice(&0x1234_5678_9abc_def0u64.to_le_bytes()));
    cannot_be_opened("data with another volume id", "to another one, 123456789abcdef0", &meta, &fsid);
    let [_, old_data] = volume(1);
    let at = version_offset();
    let mut version = vec![0; 4096];
    old_data.read_at(SUPER, &mut version).unwrap();
    let half = changed(&data, |sb| sb[at] = version[at]);
    cannot_be_opened("half of a version change", "finish the version change", &meta, &half);
    // The pair itself is good.
    let volume = Volume::open(meta, data, VolumeOptions::member(3)).unwrap();
    assert_eq!(volume.read_file("/file").unwrap(), [7; 100_000]);
    volume.close().unwrap();
}

#[test]
fn other_formats_are_not_opened() {
    let [meta, data] = volume(2);
    let at = version_offset();
    for version in [0, 3, 255] {
        let set = |d: &MemDevice| changed(d, |sb| sb[at] = version);
        let because = format!("format version {version} is not supported");
        cannot_be_opened("another version", &because, &set(&meta), &set(&data));
        cannot_be_opened("another version of the data device", &because, &meta, &set(&data));
    }
    let (zero, zero_data) = (MemDevice::named("empty", 64 * MIB), MemDevice::named("empty", 32 * MIB));
    cannot_be_opened("no volume", "empty", &zero, &zero_data);
    cannot_be_opened("no metadata", "empty", &zero, &data);
    cannot_be_opened("no data", "empty", &meta, &zero_data);
    let noise = MemDevice::named("noise", 32 * MIB);
    noise.write_at(SUPER, &(0..4096).map(|i: u32| ((i * 7919) >> 3) as u8).collect::<Vec<_>>()).unwrap();
    cannot_be_opened("noise", "noise", &meta, &noise);
}

#[test]
fn arguments_out_of_range_open_nothing() {
    type Set = fn(&mut VolumeOptions);
    let [meta, data] = volume(2);
    let (ms, member) = (Duration::from_millis as fn(u64) -> Duration, VolumeOptions::member(3));
    assert_eq!(ms(1000), Duration::from_secs(1));
    let wrong: &[(&str, Set)] = &[
        ("no quorum slot 4", |o| o.quorum_slot = Some(4)),
        ("option quorum_slot: 15", |o| o.quorum_slot = Some(15)),
        ("option quorum_slot: 255", |o| o.quorum_slot = Some(255)),
        ("option heartbeat_timeout", |o| o.heartbeat_timeout = Duration::from_millis(1999)),
        ("option heartbeat_timeout", |o| o.heartbeat_timeout = Duration::from_millis(60_001)),
        ("option keepalive_timeout", |o| o.keepalive_timeout = Duration::from_millis(3999)),
        ("option log_merge_wait", |o| o.log_merge_wait = Duration::from_millis(99)),
        ("option log_merge_wait", |o| o.log_merge_wait = Duration::MAX),
        ("option lock_idle_count", |o| o.lock_idle_count = 0),
        ("option lock_idle_count", |o| o.lock_idle_count = 100_001),
        ("option ino_alloc_per_lock", |o| o.ino_alloc_per_lock = 0),
        ("option ino_alloc_per_lock", |o| o.ino_alloc_per_lock = 1025),
        ("option orphan_scan_delay", |o| o.orphan_scan_delay = Duration::ZERO),
        ("option orphan_scan_delay", |o| o.orphan_scan_delay = Duration::from_millis(60_001)),
        ("option search_compact_delay", |o| o.search_compact_delay = Duration::ZERO),
        ("option search_compact_delay", |o| o.search_compact_delay = Duration::from_millis(60_001)),
        ("option data_prealloc_blocks", |o| o.data_prealloc_blocks = 0),
        ("option data_prealloc_blocks", |o| o.data_prealloc_blocks = 1 << 52),
        ("option commit_interval", |o| o.commit_interval = Duration::ZERO),
        ("option commit_interval", |o| o.commit_interval = Duration::MAX),
        ("option block_cache_bytes", |o| o.block_cache_bytes = 0),
        ("option item_cache_bytes", |o| o.item_cache_bytes = usize::MAX),
        ("option cached_inodes", |o| o.cached_inodes = 1023),
        ("option cached_inodes", |o| o.cached_inodes = usize::MAX),
        ("option item_dirty_bytes", |o| o.item_dirty_bytes = 1),
        ("option data_cache_bytes", |o| o.data_cache_bytes = 0),
        ("option data_dirty_bytes", |o| o.data_dirty_bytes = 0),
    ];
    for (because, set) in wrong {
        let mut options = member.clone();
        set(&mut options);
        refused("options", because, [&meta, &data], |m, d| Volume::open(m, d, options));
    }
    let volume = Volume::open(meta, data, member).unwrap();
    let root = Caller::root();
    for (blocks, data_blocks) in
        [(Some(0), None), (Some(1023), None), (Some(1025), None), (None, Some(8193)), (None, Some(1))]
    {
        let error = volume.grow(&root, blocks, data_blocks).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "grow to {blocks:?} and {data_blocks:?}: {error}");
    }
    for zone in [0, 1, 8193, u64::MAX] {
        let error = volume.set_data_alloc_zone_blocks(&root, Some(zone)).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "zones of {zone} blocks: {error}");
    }
    let anybody = Caller { caps: Caps::NONE, ..Caller::root() };
    assert!(volume.grow(&anybody, None, None).unwrap_err().is(Errno::EPERM));
    assert!(volume.set_lock_idle_count(31).unwrap_err().to_string().contains("31"));
    assert_eq!(volume.set_heartbeat_timeout(Duration::from_millis(1999)).unwrap_err().errno(), Errno::EINVAL);
    volume.close().unwrap();
}

#[test]
fn a_volume_is_not_made_of_wrong_devices_or_arguments() {
    let blank = |meta: u64, data: u64| [MemDevice::named("meta", meta), MemDevice::named("data", data)];
    let at = |nr, text: &str| QuorumSlot { nr, addr: text.parse().unwrap() };
    let not = |name: &str, because: &str, [meta, data]: [Arc<MemDevice>; 2], options: MkfsOptions| {
        refused(name, because, [&meta, &data], |m, d| mkfs(&*m, &*d, &options));
    };
    let good = || blank(64 * MIB, 32 * MIB);
    for (because, sizes) in [
        ("63 metadata blocks are fewer than 64", (4 * MIB - 1, 32 * MIB)),
        ("0 metadata blocks", (0, 32 * MIB)),
        ("data blocks leave none for data", (64 * MIB, SUPER)),
        ("0 data blocks", (64 * MIB, 4095)),
    ] {
        not("too small", because, blank(sizes.0, sizes.1), options());
    }
    let strict = MkfsOptions { allow_small: false, ..options() };
    not("small", "of metadata device are less than the 64 GiB", good(), strict.clone());
    not("small data", "of data device are less than the 64 GiB", blank(64 << 30, 32 * MIB), strict);
    type Set = fn(&mut MkfsOptions);
    let wrong: &[(&str, Set)] = &[
        ("format version 0", |o| o.format_version = 0),
        ("format version 3", |o| o.format_version = 3),
        ("at least one quorum slot", |o| o.quorum_slots.clear()),
        ("quorum slot 3 is given twice", |o| o.quorum_slots.push(slot("3,127.0.0.2,1"))),
        ("two quorum slots have the address 127.0.0.1:12345", |o| o.quorum_slots.push(slot("4,127.0.0.1,12345"))),
        ("1 metadata blocks are fewer", |o| o.max_meta_bytes = Some(70_000)),
        ("0 data blocks leave none", |o| o.max_data_bytes = Some(0)),
        ("data zones of 0 blocks", |o| o.data_alloc_zone_blocks = Some(0)),
        ("data zones of 8193 blocks", |o| o.data_alloc_zone_blocks = Some(8193)),
        ("data zones of 1 blocks", |o| o.data_alloc_zone_blocks = Some(1)),
        ("volume id 0", |o| o.identity = Some(Identity { fsid: 0, uuid: [1; 16], time: (0, 0) })),
    ];
    for (because, set) in wrong {
        let mut options = options();
        set(&mut options);
        not("options", because, good(), options);
    }
    for (nr, addr, because) in [
        (15, "127.0.0.1:1", "slot numbers are 0 to 14"),
        (255, "127.0.0.1:1", "slot numbers are 0 to 14"),
        (0, "0.0.0.0:1", "not one of a single host"),
        (0, "224.0.0.1:1", "not one of a single host"),
        (0, "255.255.255.255:1", "not one of a single host"),
        (0, "127.0.0.1:0", "ports are 1 to 65534"),
        (0, "127.0.0.1:65535", "ports are 1 to 65534"),
    ] {
        not(addr, because, good(), MkfsOptions { quorum_slots: vec![at(nr, addr)], ..options() });
    }
    let [meta, data] = good();
    refused("one device", "cannot be both", [&meta, &data], |m, _| mkfs(&*m, &*m, &options()));
}

#[test]
fn a_device_that_holds_something_is_overwritten_only_by_force() {
    let [meta, data] = volume(2);
    let blank = || (MemDevice::named("blank", 64 * MIB), MemDevice::named("blank", 32 * MIB));
    refused("metadata in use", "meta holds", [&meta, &blank().1], |m, d| mkfs(&*m, &*d, &options()));
    refused("data in use", "data holds", [&blank().0, &data], |m, d| mkfs(&*m, &*d, &options()));
    let forced = MkfsOptions { force: true, ..options() };
    mkfs(&*meta, &*data, &forced).unwrap();
    let volume = Volume::open(meta, data, VolumeOptions::member(3)).unwrap();
    assert!(volume.resolve("/file").unwrap_err().is(Errno::ENOENT));
    volume.close().unwrap();
}

/// The device files of a volume in a folder.
fn files() -> (tempfile::TempDir, [std::path::PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["meta", "data"].map(|name| dir.path().join(name));
    let [meta, data] =
        [(&paths[0], 64 * MIB), (&paths[1], 32 * MIB)].map(|(p, size)| FileDevice::create(p, size).unwrap());
    mkfs(&*meta, &*data, &options()).unwrap();
    (dir, paths)
}

/// Another process that has the devices is known by the exclusive lock on their files; a second file handle of this process
/// counts the same.
#[test]
fn devices_that_are_mounted_cannot_be_mounted_or_made_again() {
    let (_dir, [meta, data]) = files();
    let volume = Volume::open_paths(&meta, &data, VolumeOptions::member(3)).unwrap();
    volume.write_file("/file", b"kept").unwrap();
    let exclusive = FileOptions { exclusive: true, ..FileOptions::default() };
    for path in [&meta, &data] {
        let Err(error) = FileDevice::open(path, &exclusive) else { panic!("{} was opened twice", path.display()) };
        assert!(matches!(error, Error::Busy(_)) && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let Err(error) = Volume::open_paths(&meta, &data, VolumeOptions::member(3)) else { panic!("mounted twice") };
    assert!(matches!(error, Error::Busy(_)) && error.to_string().contains(meta.to_str().unwrap()), "{error}");
    // One of the two is enough.
    let (_other_dir, [other_meta, _]) = files();
    let Err(error) = Volume::open_paths(&other_meta, &data, VolumeOptions::member(3)) else { panic!("mounted twice") };
    assert!(matches!(error, Error::Busy(_)) && error.to_string().contains(data.to_str().unwrap()), "{error}");
    volume.sync().unwrap();
    volume.close().unwrap();
    let volume = Volume::open_paths(&meta, &data, VolumeOptions::member(3)).unwrap();
    assert_eq!(volume.read_file("/file").unwrap(), b"kept");
    volume.close().unwrap();
}

#[test]
fn devices_that_cannot_be_written_are_only_looked_at() {
    let (_dir, paths) = files();
    Volume::open_paths(&paths[0], &paths[1], VolumeOptions::member(3)).unwrap().close().unwrap();
    let before = paths.clone().map(|p| std::fs::read(p).unwrap());
    for read_only in [(true, false), (false, true), (true, true)] {
        let open = |path, read_only| {
            FileDevice::open(path, &FileOptions { read_only, ..FileOptions::default() }).unwrap()
                as Arc<dyn BlockDevice>
        };
        let devices = || (open(&paths[0], read_only.0), open(&paths[1], read_only.1));
        let (meta, data) = devices();
        assert_eq!(Volume::open(meta, data, VolumeOptions::member(3)).err().unwrap().errno(), Errno::EROFS);
        let (meta, data) = devices();
        assert_eq!(mkfs(&*meta, &*data, &MkfsOptions { force: true, ..options() }).unwrap_err().errno(), Errno::EROFS);
        let view = Volume::open(meta, data, VolumeOptions::read_only()).unwrap();
        assert!(view.write_file("/file", b"no").unwrap_err().is(Errno::EROFS));
        view.close().unwrap();
    }
    assert!(paths.map(|p| std::fs::read(p).unwrap()) == before, "a look has changed the devices");
}
