//! The life of a volume over a longer time and with several mounts: what is left behind is found, merged, compacted and
//! deleted, and what is small stays usable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scoutfs::device::{BlockDevice, Fault, FaultDevice, FaultOps, MemDevice};
use scoutfs::namespace::{Access, Caller, SetAttr, XattrFlags};
use scoutfs::net::{MemTransport, Transport};
use scoutfs::offline::{CheckOptions, CheckReport, MkfsOptions, check, mkfs};
use scoutfs::server::ConfirmFencing;
use scoutfs::{Environment, Errno, Ino, Volume, VolumeOptions};

type Device = Arc<dyn BlockDevice>;

/// Devices, and mounts over one in-memory network.
struct World {
    meta: Device,
    data: Device,
    transport: Arc<dyn Transport>,
}

impl World {
    fn new(meta_mib: u64, data_mib: u64) -> World {
        World::with(meta_mib, data_mib, MkfsOptions::default())
    }

    fn with(meta_mib: u64, data_mib: u64, options: MkfsOptions) -> World {
        let (meta, data) = (MemDevice::new(meta_mib << 20), MemDevice::new(data_mib << 20));
        let slots = vec!["0,127.0.0.1,17001".parse().unwrap(), "1,127.0.0.1,17002".parse().unwrap()];
        mkfs(&*meta, &*data, &MkfsOptions { allow_small: true, quorum_slots: slots, ..options }).unwrap();
        World { meta, data, transport: MemTransport::new() }
    }

    fn mount(&self, slot: Option<u8>) -> Volume {
        self.mount_on(self.meta.clone(), slot)
    }

    fn mount_on(&self, meta: Device, slot: Option<u8>) -> Volume {
        let mut options = VolumeOptions::default();
        options.quorum_slot = slot;
        options.heartbeat_timeout = Duration::from_secs(2);
        options.orphan_scan_delay = Duration::from_millis(100);
        options.search_compact_delay = Duration::from_millis(100);
        options.log_merge_wait = Duration::from_millis(100);
        let environment =
            Environment { transport: Some(self.transport.clone()), fencer: Some(Arc::new(ConfirmFencing)) };
        Volume::open_in(meta, self.data.clone(), options, environment).unwrap()
    }

    /// Two members, of which one leads, and more.
    fn mounts(&self, more: usize) -> Vec<Volume> {
        let mut all: Vec<Volume> = std::thread::scope(|s| {
            let mounting = [0, 1].map(|slot| s.spawn(move || self.mount(Some(slot))));
            mounting.into_iter().map(|m| m.join().unwrap()).collect()
        });
        all.extend((0..more).map(|_| self.mount(None)));
        all
    }

    fn check(&self) -> CheckReport {
        let report = check(&*self.meta, &*self.data, &CheckOptions::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        report
    }
}

fn close_all(mounts: Vec<Volume>) {
    std::thread::scope(|s| mounts.into_iter().for_each(|m| drop(s.spawn(move || m.close().unwrap()))));
}

fn eventually(name: &str, mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !what() {
        assert!(Instant::now() < deadline, "waited too long for {name}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn root() -> Caller {
    Caller::root()
}

/// Creates and removes files in a directory of its own, `rounds` times `files`, and syncs after each.
fn churn(volume: &Volume, name: &str, rounds: usize, files: usize) {
    let dir = match volume.mkdir(&root(), Ino::ROOT, name.as_bytes(), 0o755) {
        Ok(dir) => dir.ino,
        Err(e) if e.is(Errno::EEXIST) => volume.lookup(&root(), Ino::ROOT, name.as_bytes()).unwrap().ino,
        Err(e) => panic!("{e}"),
    };
    for round in 0..rounds {
        for i in 0..files {
            volume.create(&root(), dir, format!("{round}-{i}").as_bytes(), 0o644).unwrap();
        }
        volume.sync().unwrap();
        for i in 0..files {
            volume.unlink(&root(), dir, format!("{round}-{i}").as_bytes()).unwrap();
        }
        volume.sync().unwrap();
    }
}

#[test]
fn an_unlinked_file_lives_until_its_last_user_on_any_mount_lets_go() {
    let world = World::new(256, 64);
    let mut mounts = world.mounts(1);
    let client = mounts.pop().unwrap();
    let file = client.create(&root(), Ino::ROOT, b"file", 0o644).unwrap().ino;
    client.write(&root(), file, 0, b"content").unwrap();
    let opens: Vec<_> = mounts.iter().map(|m| m.open_inode(&root(), file, Access::READ).unwrap()).collect();
    client.unlink(&root(), Ino::ROOT, b"file").unwrap();
    client.sync().unwrap();
    let mut content = [0; 7];
    for (mount, open) in mounts.iter().zip(opens) {
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(mount.read(file, 0, &mut content).unwrap(), 7, "still open");
        assert_eq!(&content, b"content");
        drop(open);
    }
    eventually("the last one to delete it", || {
        mounts.iter().for_each(|m| churn(m, "more", 1, 10));
        client.getattr(file).is_err_and(|e| e.is(Errno::ESTALE))
    });
    mounts.push(client);
    close_all(mounts);
    world.check();
}

#[test]
fn a_file_that_was_open_on_a_crashed_mount_is_deleted() {
    let world = World::new(256, 64);
    let mut mounts = world.mounts(1);
    let client = mounts.pop().unwrap();
    let file = client.create(&root(), Ino::ROOT, b"file", 0o644).unwrap().ino;
    client.sync().unwrap();
    let open = client.open_inode(&root(), file, Access::READ).unwrap();
    mounts[0].unlink(&root(), Ino::ROOT, b"file").unwrap();
    mounts[0].sync().unwrap();
    assert!(mounts[0].getattr(file).is_ok());
    // The user crashes; it is reclaimed, and the orphan found by whoever scans.
    drop(client);
    drop(open);
    let inodes = |m: &Volume| {
        let s = m.statfs().unwrap();
        s.files - s.free_files
    };
    let with = inodes(&mounts[0]);
    eventually("somebody to delete it", || {
        // Orphans are found in the merged tree.
        mounts.iter().for_each(|m| churn(m, "more", 1, 500));
        mounts[0].getattr(file).is_err_and(|e| e.is(Errno::ESTALE))
    });
    assert!(inodes(&mounts[0]) <= with + 1);
    close_all(mounts);
    world.check();
}

/// Three mounts on a small volume found no space although most of it was free: what was kept back was counted in large
/// volumes.
#[test]
fn a_small_volume_is_usable_by_three_mounts() {
    let world = World::new(256, 64);
    let mounts = world.mounts(1);
    let dirs: Vec<Ino> = (0..3).map(|i| mounts[0].mkdir(&root(), Ino::ROOT, &[b'a' + i], 0o755).unwrap().ino).collect();
    // 60,000 files of some 500 bytes of items each way, in turns.
    std::thread::scope(|s| {
        for (m, dir) in mounts.iter().zip(&dirs) {
            s.spawn(move || {
                for i in 0..20_000 {
                    m.create(&root(), *dir, format!("a name of some length {i}").as_bytes(), 0o644).unwrap();
                }
                m.sync().unwrap();
            });
        }
    });
    close_all(mounts);
    assert_eq!(world.check().inodes, 60_004);
}

/// A truncation that a crash cut off kept its space until somebody wrote to the file.
#[test]
fn defect_62_an_interrupted_truncation_is_finished_in_the_background() {
    let world = World::new(256, 256);
    let mut cut_off = false;
    for attempt in 0..20 {
        let name = format!("file-{attempt}");
        let faulty = FaultDevice::new(world.meta.clone());
        let volume = {
            let (volume, other) = std::thread::scope(|s| {
                let other = s.spawn(|| world.mount(Some(1)));
                (world.mount_on(faulty.clone(), Some(0)), other.join().unwrap())
            });
            let file = volume.create(&root(), Ino::ROOT, name.as_bytes(), 0o644).unwrap().ino;
            for i in 0..20_000 {
                volume.write(&root(), file, i * 8192, b"x").unwrap();
            }
            volume.sync().unwrap();
            std::thread::scope(|s| {
                let volume = &volume;
                let faulty = &faulty;
                s.spawn(move || {
                    // Somebody commits while the file shrinks; then the mount is cut off.
                    while volume.getattr(file).is_ok_and(|a| a.size > 0) {
                        std::hint::spin_loop();
                    }
                    let _ = volume.sync();
                    faulty.fail_nth(FaultOps::CHANGES, 0, Fault::Forever);
                });
                let shrink = SetAttr { size: Some(0), ..SetAttr::default() };
                let _ = volume.setattr(&root(), file, &shrink);
            });
            drop(volume);
            other
        };
        let file = volume.lookup(&root(), Ino::ROOT, name.as_bytes()).unwrap();
        if file.size == 0 && file.blocks() > 0 {
            cut_off = true;
            eventually("the blocks to go", || volume.getattr(file.ino).unwrap().blocks() == 0);
        }
        drop(volume);
        if cut_off {
            break;
        }
    }
    assert!(cut_off, "no crash came in the middle of a truncation");
    close_all(world.mounts(0));
    world.check();
}

/// Search files were never compacted: every change of a tagged attribute stayed for ever.
#[test]
fn search_files_shrink_when_their_entries_cancel() {
    let world = World::new(256, 64);
    let mounts = world.mounts(0);
    let files: Vec<Ino> =
        (0..50).map(|i| mounts[0].create(&root(), Ino::ROOT, format!("f{i}").as_bytes(), 0o644).unwrap().ino).collect();
    close_all(mounts);
    // Each mount that leaves gives a log. Four logs become a sorted file, four of those a larger one, and so on: which
    // entries meet depends on where the files lie, but sixteen logs meet in one file at the latest.
    let (mut given, mut left) = (0, 0);
    for round in 0..60 {
        let mounts = world.mounts(0);
        for file in &files {
            let name = b"scoutfs.srch.tag";
            if round % 2 == 0 {
                mounts[0].setxattr(&root(), *file, name, b"", XattrFlags::Any).unwrap();
            } else {
                mounts[1].removexattr(&root(), *file, name).unwrap();
            }
        }
        close_all(mounts);
        given += files.len() as u64;
        left = world.check().search_entries;
        assert!(left <= given, "{left} of {given} entries");
        if given >= 600 && left < given / 2 {
            return;
        }
    }
    panic!("{left} of {given} entries");
}

#[test]
fn a_volume_grows_while_it_is_used() {
    let limits =
        MkfsOptions { max_meta_bytes: Some(64 << 20), max_data_bytes: Some(64 << 20), ..MkfsOptions::default() };
    let world = World::with(128, 128, limits);
    let mounts = world.mounts(0);
    let before = mounts[0].statfs().unwrap();
    let nobody = Caller::user(1000, 1000);
    assert!(mounts[0].grow(&nobody, Some(2048), None).unwrap_err().is(Errno::EPERM));
    for (meta, data) in
        [(Some(0), None), (Some(1023), None), (Some(2049), None), (None, Some(16383)), (None, Some(32769))]
    {
        let e = mounts[1].grow(&root(), meta, data).unwrap_err();
        assert_eq!(e.errno(), Errno::EINVAL, "{meta:?} {data:?}");
    }
    assert_eq!(mounts[0].statfs().unwrap().blocks, before.blocks, "what was refused changed nothing");
    mounts[1].grow(&root(), Some(2048), None).unwrap();
    mounts[0].grow(&root(), None, Some(32768)).unwrap();
    mounts[0].grow(&root(), Some(2048), Some(32768)).unwrap();
    let after = mounts[0].statfs().unwrap();
    assert_eq!(after.blocks, 2 * before.blocks);
    // More than there was before.
    let file = mounts[0].create(&root(), Ino::ROOT, b"large", 0o644).unwrap().ino;
    let chunk = vec![7; 1 << 20];
    for i in 0..80 {
        assert_eq!(mounts[0].write(&root(), file, i << 20, &chunk).unwrap(), chunk.len());
    }
    mounts[0].sync().unwrap();
    close_all(mounts);
    world.check();
}

/// More zones than there are bits for them: the original wrote past its bitmap.
#[test]
fn defect_78_zones_bound_options_and_growth() {
    let limits = MkfsOptions { max_data_bytes: Some(64 << 30), ..MkfsOptions::default() };
    let world = World::with(64, (4 << 20) + 1, limits);
    let (zone, total) = (1 << 20, 16 << 20);
    let mounts = world.mounts(0);
    assert_eq!(mounts[0].data_alloc_zone_blocks().unwrap(), None);
    for bad in [0, 1, zone - 1, total + 1, u64::MAX] {
        let e = mounts[0].set_data_alloc_zone_blocks(&root(), Some(bad)).unwrap_err();
        assert_eq!(e.errno(), Errno::EINVAL, "{bad}");
    }
    let nobody = Caller::user(1000, 1000);
    assert!(mounts[0].set_data_alloc_zone_blocks(&nobody, None).unwrap_err().is(Errno::EPERM));
    mounts[0].set_data_alloc_zone_blocks(&root(), Some(zone)).unwrap();
    assert_eq!(mounts[1].data_alloc_zone_blocks().unwrap(), Some(zone));
    // 1025 zones.
    assert_eq!(mounts[0].grow(&root(), None, Some(zone * 1024 + 1)).unwrap_err().errno(), Errno::EINVAL);
    mounts[1].set_data_alloc_zone_blocks(&root(), None).unwrap();
    assert_eq!(mounts[0].data_alloc_zone_blocks().unwrap(), None);
    close_all(mounts);
    world.check();
}

/// Metadata blocks of 64 KiB in use, as the server says.
fn used_meta(volume: &Volume) -> u64 {
    let s = volume.statfs().unwrap();
    (s.blocks - s.free_blocks) / 16
}

#[test]
fn merges_keep_the_metadata_bounded_while_files_come_and_go() {
    // Was ENOSPC: a mount whose space was low did not wait for the merge that was about to bring it back.
    let world = World::new(64, 64);
    let mounts = world.mounts(0);
    let before = used_meta(&mounts[0]);
    let used: Vec<u64> = (0..32)
        .map(|_| {
            churn(&mounts[0], "churn", 1, 3000);
            used_meta(&mounts[0])
        })
        .collect();
    // Each round leaves some 40 blocks of deletions in the log, which a merge carries out in the main tree: without merges
    // there would be no space for so many rounds.
    let grown = used[0] - before;
    assert!(before + grown * used.len() as u64 > 64 * 16, "too few rounds: {before}, {used:?}");
    assert!(used.windows(2).any(|w| w[1] < w[0]), "no merge ran: {before}, {used:?}");
    close_all(mounts);
    assert_eq!(world.check().inodes, 2);
}

#[test]
fn merges_go_on_under_other_leaders() {
    let world = World::new(64, 64);
    let mut mounts = world.mounts(1);
    let client = mounts.pop().unwrap();
    let mut used = Vec::new();
    for round in 0..4 {
        std::thread::scope(|s| {
            s.spawn(|| churn(&client, "client", 2, 1500));
            for (i, m) in mounts.iter().enumerate() {
                s.spawn(move || churn(m, &format!("member-{i}"), 2, 1500));
            }
        });
        // The leader goes in the middle of whatever it does, in order or by a crash, and comes back as a follower.
        let leads = |v: &Volume| v.cluster_status().member.is_some_and(|m| m.leader);
        let leader = mounts.remove(mounts.iter().position(leads).expect("somebody leads"));
        let slot = leader.cluster_status().member.expect("it is one").slot as u8;
        if round % 2 == 1 {
            drop(leader)
        } else {
            leader.close().unwrap()
        }
        churn(&mounts[0], "during", 1, 100);
        mounts.push(world.mount(Some(slot)));
        used.push(used_meta(&client));
    }
    mounts.push(client);
    close_all(mounts);
    let report = world.check();
    assert_eq!(report.inodes, 5, "the root and four directories: {used:?}");
    // 36,000 files left some 480 blocks of deletions in logs. What is left over is what came after the last merge.
    assert!(report.used_meta_blocks < 420, "{used:?}, {} at the end", report.used_meta_blocks);
}
