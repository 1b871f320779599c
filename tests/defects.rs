//! Known defects of the original that show at the public interface (`spec/00`, the table of defects), one test each. Others are
//! beside the code that they concern; all are named `defect_NN_...`.
//!
//! Without a test, because what failed does not exist here: 66, 71 and 75 (staging, offline sizes, index walks) come with the archive
//! interfaces; 69 (page faults that skip rules): there are no page faults, a front end's mapped writes arrive as [`Volume::write`].

use std::sync::Arc;
use std::time::Duration;

use scoutfs::device::{BlockDevice, Event, Fault, FaultDevice, FaultOps, MemDevice, Recorder};
use scoutfs::namespace::{Caller, RenameFlags, SetAttr, XattrFlags};
use scoutfs::net::MemTransport;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::server::ConfirmFencing;
use scoutfs::{Environment, Errno, Ino, Volume, VolumeOptions};

const MIB: u64 = 1 << 20;
const SUPER_AT: u64 = 16 * 4096;

fn devices(meta: u64, data: u64) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let (meta, data) = (MemDevice::new(meta), MemDevice::new(data));
    let slots = vec!["0,127.0.0.1,17001".parse().unwrap(), "1,127.0.0.1,17002".parse().unwrap()];
    mkfs(&*meta, &*data, &MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() }).unwrap();
    (meta, data)
}

fn open(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Volume {
    Volume::open(meta, data, VolumeOptions::member(0)).unwrap()
}

fn root() -> Caller {
    Caller::root()
}

fn assert_clean(meta: &MemDevice, data: &MemDevice) {
    let report = check(meta, data, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Files that spread the items of others over more blocks than an open volume has read.
fn fill(volume: &Volume, nr: u32) {
    let dir = volume.create_dir_all(format!("fill-{nr}")).unwrap().ino;
    for i in 0..100u32 {
        volume.symlink(&root(), dir, i.to_string().as_bytes(), &[b'x'; 500]).unwrap();
    }
}

/// No flush anywhere: a power loss could leave a super block without its blocks.
#[test]
fn defect_01_a_super_block_is_written_only_over_flushed_blocks_and_flushed_itself() {
    let (meta, data) = devices(64 * MIB, 64 * MIB);
    let recorder = Recorder::new();
    let (recorded_meta, recorded_data) = (recorder.wrap(&meta), recorder.wrap(&data));
    let volume = open(recorded_meta, recorded_data);
    for i in 0..20 {
        volume.write_file(format!("file-{i}"), &vec![i; 10_000]).unwrap();
        volume.sync().unwrap();
        let promised = recorder.position();
        assert!(last_super_is_flushed(&recorder.log()[..promised]), "sync returned before its super block was durable");
    }
    volume.close().unwrap();

    // The blocks of a commit, and file data before it, are durable when the super block that refers to them is written.
    let log = recorder.log();
    let (mut supers, mut unflushed) = (0, [0usize; 2]);
    for (at, event) in log.iter().enumerate() {
        match event {
            Event::Write { device: 0, offset: SUPER_AT, .. } => {
                supers += 1;
                assert_eq!(unflushed[0], 0, "event {at}: a super block over unflushed blocks");
            }
            // Quorum blocks and heartbeats are not referred to by super blocks.
            Event::Write { device: 0, offset, .. } if *offset < 64 * 65536 / 16 => {}
            Event::Write { device, .. } => unflushed[*device] += 1,
            Event::Flush { device, covers } => {
                let later = &log[*covers..at];
                unflushed[*device] = later.iter().filter(|e| is_block_write(e, *device)).count();
            }
        }
    }
    assert!(supers >= 20, "{supers} commits");
    assert_eq!(unflushed, [0, 0]);
}

fn is_block_write(event: &Event, of: usize) -> bool {
    matches!(event, Event::Write { device, offset, .. } if *device == of && (of == 1 || *offset >= 64 * 65536 / 16))
}

fn last_super_is_flushed(log: &[Event]) -> bool {
    let last = log.iter().rposition(|e| matches!(e, Event::Write { device: 0, offset: SUPER_AT, .. }));
    last.is_some_and(|at| log[at..].iter().any(|e| matches!(e, Event::Flush { device: 0, covers } if *covers > at)))
}

/// One super block, written in place: a torn write lost the volume.
#[test]
fn defect_02_a_super_block_torn_at_any_sector_is_replaced_by_its_shadow() {
    let (meta, data) = devices(64 * MIB, 64 * MIB);
    let recorder = Recorder::new();
    let volume = open(recorder.wrap(&meta), recorder.wrap(&data));
    volume.write_file("file", b"content").unwrap();
    volume.sync().unwrap();
    volume.write_file("later", b"may be lost").unwrap();
    volume.sync().unwrap();
    let log = recorder.log();
    let mut supers = log.iter().enumerate().filter_map(|(at, e)| match e {
        Event::Write { device: 0, offset: SUPER_AT, data } => Some((at, data.clone())),
        _ => None,
    });
    let (at, new) = supers.next_back().unwrap();
    let (_, old) = supers.next_back().unwrap();
    drop(supers);
    for sectors in 1..8 {
        for (head, tail) in [(&new, &old), (&old, &new)] {
            let images = recorder.image(at, scoutfs::device::Survive::All);
            let mut torn = head[..sectors * 512].to_vec();
            torn.extend_from_slice(&tail[sectors * 512..4096]);
            images[0].write_at(SUPER_AT, &torn).unwrap();
            let again = open(images[0].clone(), images[1].clone());
            assert_eq!(again.read_file("file").unwrap(), b"content", "{sectors} sectors");
            again.close().unwrap();
            assert_clean(&images[0], &images[1]);
        }
    }
    volume.close().unwrap();
}

/// An index update or an undo that failed ran into an assertion; here a failing operation has changed nothing.
#[test]
fn defect_23_operations_that_fail_half_way_leave_no_trace() {
    let (meta, data) = devices(64 * MIB, 64 * MIB);
    let volume = open(meta.clone(), data.clone());
    let (from, to) = (volume.create_dir_all("from").unwrap().ino, volume.create_dir_all("to").unwrap().ino);
    for i in 0..50 {
        volume.write_file(format!("from/{i}"), b"moved").unwrap();
        volume.write_file(format!("to/{i}"), b"replaced").unwrap();
        fill(&volume, i);
    }
    volume.close().unwrap();

    let mut failed = 0;
    for nth in 0.. {
        let (meta, data) = (meta.snapshot(), data.snapshot());
        let faulty = FaultDevice::new(meta.clone());
        let volume = open(faulty.clone(), data.clone());
        faulty.fail_nth(FaultOps::READS, nth, Fault::Once);
        let done = volume.rename(&root(), (from, b"7"), (to, b"7"), RenameFlags::NONE);
        let hit = faulty.hits() > 0;
        faulty.heal();
        let (left, there) = match done {
            Ok(()) => (false, &b"moved"[..]),
            Err(e) => {
                assert_eq!(e.errno(), Errno::EIO, "{e}");
                failed += 1;
                (true, &b"replaced"[..])
            }
        };
        assert_eq!(volume.lookup(&root(), from, b"7").is_ok(), left, "read {nth}");
        assert_eq!(volume.read_file("to/7").unwrap(), there, "read {nth}");
        volume.close().unwrap();
        assert_clean(&meta, &data);
        if !hit {
            break;
        }
    }
    assert!(failed > 0, "no read made the operation fail: the test proves nothing");
}

/// Attributes could not be removed when space was low, although that is one way to get it back.
#[test]
fn defect_59_attributes_are_removed_on_a_full_volume() {
    let (meta, data) = devices(64 * MIB, 64 * MIB);
    let volume = open(meta.clone(), data.clone());
    let mut last = volume.create(&root(), Ino::ROOT, b"0", 0o644).unwrap().ino;
    let value = vec![7; 4000];
    let full = (1..1_000_000u32).find_map(|i| {
        let made = volume.create(&root(), Ino::ROOT, i.to_string().as_bytes(), 0o644).and_then(|made| {
            (0..8).try_for_each(|n| {
                volume.setxattr(&root(), made.ino, format!("user.{n}").as_bytes(), &value, XattrFlags::Any)
            })?;
            last = made.ino;
            Ok(())
        });
        made.err()
    });
    assert!(full.as_ref().is_some_and(|e| e.is(Errno::ENOSPC)), "{full:?}");
    for n in 0..8 {
        volume.removexattr(&root(), last, format!("user.{n}").as_bytes()).unwrap();
    }
    volume.unlink(&root(), Ino::ROOT, b"1").unwrap();
    volume.sync().unwrap();
    assert!(volume.listxattr(&root(), last).unwrap().is_empty());
    volume.close().unwrap();
    assert_clean(&meta, &data);
}

/// Punching a hole kept the transaction held when it failed; every later commit waited for ever.
#[test]
fn defect_67_a_hole_that_cannot_be_punched_holds_up_no_commit() {
    const PUNCH: u32 = 3;
    let (meta, data) = devices(64 * MIB, 64 * MIB);
    let volume = open(meta.clone(), data.clone());
    (0..25).for_each(|i| fill(&volume, i));
    let file = volume.write_file("file", &vec![9; 4 << 20]).unwrap().ino;
    (0..200).for_each(|i| volume.fallocate(&root(), file, PUNCH, i * 16384, 4096).unwrap());
    (25..50).for_each(|i| fill(&volume, i));
    volume.close().unwrap();

    let faulty = FaultDevice::new(meta.clone());
    let volume = Arc::new(open(faulty.clone(), data.clone()));
    let mut failed = 0;
    for nth in 0..3 {
        faulty.fail_nth(FaultOps::READS, nth, Fault::Once);
        failed += u32::from(volume.fallocate(&root(), file, PUNCH, 0, 4 << 20).is_err());
        faulty.heal();
        let (done, finished) = std::sync::mpsc::channel();
        let syncing = volume.clone();
        std::thread::spawn(move || done.send(syncing.sync()));
        finished.recv_timeout(Duration::from_secs(60)).expect("a commit that ends").unwrap();
    }
    assert!(failed > 0, "no read failed: the test proves nothing");
    drop(volume);
    assert_clean(&meta, &data);
}

/// Some ways to write did not change the times.
#[test]
fn defect_70_every_way_to_write_changes_the_times() {
    let (meta, data) = devices(64 * MIB, 64 * MIB);
    let volume = open(meta, data);
    let file = volume.write_file("file", &[1; 20_000]).unwrap().ino;
    let ways: [(&str, &dyn Fn()); 7] = [
        ("write", &|| assert!(volume.write(&root(), file, 0, b"in place").is_ok())),
        ("write at the end", &|| assert!(volume.write(&root(), file, 30_000, b"behind a hole").is_ok())),
        ("append", &|| assert!(volume.append(&root(), file, b"more").is_ok())),
        ("punch", &|| volume.fallocate(&root(), file, 3, 0, 4096).unwrap()),
        ("allocate", &|| volume.fallocate(&root(), file, 0, 0, 100_000).unwrap()),
        ("shorten", &|| {
            assert!(volume.setattr(&root(), file, &SetAttr { size: Some(5), ..SetAttr::default() }).is_ok())
        }),
        ("lengthen", &|| {
            assert!(volume.setattr(&root(), file, &SetAttr { size: Some(500), ..SetAttr::default() }).is_ok())
        }),
    ];
    for (way, change) in ways {
        let before = volume.getattr(file).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        change();
        let after = volume.getattr(file).unwrap();
        assert!(after.mtime > before.mtime && after.ctime > before.ctime, "{way}: {before:?} {after:?}");
    }
    volume.close().unwrap();
}

/// Each node counted its own reserve as used.
#[test]
fn defect_77_all_nodes_see_the_same_free_space() {
    let (meta, data) = devices(256 * MIB, 64 * MIB);
    let transport: Arc<dyn scoutfs::net::Transport> = MemTransport::new();
    let mount = |slot| {
        let mut options = VolumeOptions::default();
        options.quorum_slot = slot;
        let environment = Environment { transport: Some(transport.clone()), fencer: Some(Arc::new(ConfirmFencing)) };
        Volume::open_in(meta.clone(), data.clone(), options, environment).unwrap()
    };
    let (first, second) = std::thread::scope(|s| {
        let first = s.spawn(|| mount(Some(0)));
        let second = s.spawn(|| mount(Some(1)));
        (first.join().unwrap(), second.join().unwrap())
    });
    let third = mount(None);
    third.write_file("file", &vec![3; 5 << 20]).unwrap();
    third.sync().unwrap();
    // A commit between the three questions makes a difference; one after the other has none.
    let ask = || [&first, &second, &third].map(|v| v.statfs().unwrap()).map(|s| (s.blocks, s.free_blocks, s.files));
    let agree = |free: &[_; 3]| free.iter().all(|f| *f == free[0]);
    let mut answers = (0..50).map(|_| ask());
    assert!(answers.any(|free| agree(&free)), "{:?}", ask());
    std::thread::scope(|s| [first, second, third].into_iter().for_each(|v| drop(s.spawn(|| v.close().unwrap()))));
    assert_clean(&meta, &data);
}
