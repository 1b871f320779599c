//! A volume through the public API: made, opened, used, closed, opened again.

use std::sync::Arc;

use scoutfs::device::{BlockDevice, MemDevice};
use scoutfs::namespace::{Caller, RenameFlags, XattrFlags};
use scoutfs::offline::{MkfsOptions, mkfs};
use scoutfs::{Errno, FrontEnd, Ino, InodeGroup, Volume, VolumeOptions};

fn devices(meta_mib: u64, data_mib: u64) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let (meta, data) = (MemDevice::new(meta_mib << 20), MemDevice::new(data_mib << 20));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*meta, &*data, &options).unwrap();
    (meta, data)
}

fn open(meta: &Arc<MemDevice>, data: &Arc<MemDevice>, options: VolumeOptions) -> Volume {
    let (meta, data): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) = (meta.clone(), data.clone());
    Volume::open(meta, data, options).unwrap()
}

#[test]
fn names_survive_a_remount() {
    let (meta, data) = devices(64, 64);
    let root = Caller::root();
    let volume = open(&meta, &data, VolumeOptions::member(0));
    let dir = volume.mkdir(&root, Ino::ROOT, b"dir", 0o755).unwrap();
    let file = volume.create(&root, dir.ino, b"file", 0o644).unwrap();
    volume.link(&root, file.ino, Ino::ROOT, b"second name").unwrap();
    volume.symlink(&root, dir.ino, b"link", b"../second name").unwrap();
    volume.setxattr(&root, file.ino, b"user.color", b"blue", XattrFlags::Any).unwrap();
    volume.rename(&root, (dir.ino, b"file"), (Ino::ROOT, b"third name"), RenameFlags::NONE).unwrap();
    volume.sync().unwrap();
    volume.close().unwrap();

    for options in [VolumeOptions::member(0), VolumeOptions::read_only(), VolumeOptions::member(0)] {
        let volume = open(&meta, &data, options);
        let found = volume.lookup(&root, Ino::ROOT, b"third name").unwrap();
        assert_eq!((found.ino, found.nlink), (file.ino, 2));
        assert!(volume.lookup(&root, dir.ino, b"file").unwrap_err().is(Errno::ENOENT));
        assert_eq!(volume.resolve("dir/link").unwrap().ino, file.ino);
        assert_eq!(volume.getxattr(&root, file.ino, b"user.color").unwrap(), b"blue");
        let names: Vec<_> = volume.readdir(Ino::ROOT, 0, 100).unwrap().iter().map(|e| e.name.to_vec()).collect();
        assert_eq!(names, [&b"."[..], b"..", b"dir", b"second name", b"third name"]);
        volume.close().unwrap();
    }
}

/// A device that fails for good must not leave anybody waiting: opening, using and closing end with errors.
#[test]
fn a_dead_device_ends_in_errors_not_in_waiting() {
    use scoutfs::device::{Fault, FaultDevice, FaultOps};
    let (meta, data) = devices(64, 64);
    let faulty = FaultDevice::new(meta.clone());
    let open = |faulty: &Arc<FaultDevice>| {
        let (meta, data): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) = (faulty.clone(), data.clone());
        Volume::open(meta, data, VolumeOptions::member(0))
    };
    faulty.fail_nth(FaultOps::CHANGES, 3, Fault::Forever);
    assert!(open(&faulty).is_err());
    // One error that heals ends at most this mount, with its reason; the next one finds nothing wrong.
    for n in 0..8 {
        faulty.heal();
        faulty.fail_nth(FaultOps::CHANGES, n, Fault::Once);
        if let Err(e) = open(&faulty).and_then(Volume::close) {
            assert!(e.to_string().contains("injected fault"), "{n}: {e}");
        }
        faulty.heal();
        open(&faulty).unwrap().close().unwrap();
    }
}

/// What a front end has heard of the end of its mount.
#[derive(Default)]
struct Listener(std::sync::Mutex<Vec<String>>);

impl FrontEnd for Listener {
    fn invalidate(&self, _group: InodeGroup) {}

    fn ended(&self, why: &scoutfs::Error) {
        self.0.lock().unwrap().push(why.to_string());
    }
}

#[test]
fn front_ends_are_told_that_a_mount_has_ended_by_itself() {
    use scoutfs::device::{Fault, FaultDevice, FaultOps};
    let (meta, data) = devices(64, 64);
    let faulty = FaultDevice::new(meta.clone());
    let heard = Arc::new(Listener::default());
    let open = || {
        let (meta, data): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) = (faulty.clone(), data.clone());
        let volume = Volume::open(meta, data, VolumeOptions::member(0)).unwrap();
        volume.add_front_end(heard.clone());
        volume
    };
    open().close().unwrap();
    drop(open());
    assert!(heard.0.lock().unwrap().is_empty(), "the owner has ended it");

    let volume = open();
    volume.create(&Caller::root(), Ino::ROOT, b"file", 0o644).unwrap();
    faulty.fail_nth(FaultOps::FLUSHES, 0, Fault::Once);
    assert!(volume.sync().is_err());
    faulty.heal();
    let reason = volume.close().unwrap_err().to_string();
    // All have been told when `close` has returned, whether or not it was fast enough to find the end before the watch.
    let heard = heard.0.lock().unwrap();
    assert!(heard.len() == 1 && heard[0] == reason && reason.contains("a flush has failed"), "{heard:?}, {reason}");
}

/// A small file that is created, written and synced costs two flushes of the metadata device, one after the other, and one of
/// the data device beside them, when the mount runs its own server.
#[test]
fn a_synced_file_costs_two_flushes_in_a_row() {
    use scoutfs::device::{Event, Recorder};
    let (meta, data) = devices(64, 64);
    let recorder = Recorder::new();
    let (m, d) = (recorder.wrap(&meta), recorder.wrap(&data));
    let volume = Volume::open(m, d, VolumeOptions::member(0)).unwrap();
    let root = Caller::root();
    let one = |n: u32| {
        let ino = volume.create(&root, Ino::ROOT, format!("file {n}").as_bytes(), 0o644).unwrap().ino;
        volume.write(&root, ino, 0, &[7; 4096]).unwrap();
        volume.sync().unwrap();
    };
    one(0);
    let before = recorder.position();
    for n in 1..=20 {
        one(n);
    }
    let log = recorder.log();
    let flushes =
        |device| log[before..].iter().filter(move |e| matches!(e, Event::Flush { device: d, .. } if *d == device));
    // A commit by the timer may come between.
    assert!(flushes(0).count() <= 20 * 2 + 4, "{} of metadata", flushes(0).count());
    assert!(flushes(1).count() <= 20 + 2, "{} of data", flushes(1).count());
    volume.close().unwrap();
}
