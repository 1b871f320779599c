//! Tests of the devices.

use super::*;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

fn check_basics(dev: &dyn BlockDevice) {
    let size = dev.size();
    let mut buf = vec![0xff; 3 * 4096];
    dev.read_at(8192, &mut buf).unwrap();
    assert!(buf.iter().all(|b| *b == 0), "never written");
    let data: Vec<u8> = (0..200 * 4096).map(|i| (i / 7) as u8).collect();
    dev.write_at(65536 - 4096, &data).unwrap();
    let mut back = vec![0; data.len()];
    dev.read_at(65536 - 4096, &mut back).unwrap();
    assert_eq!(data, back);
    // Two runs of adjacent pieces and one alone.
    let (a, b, c) = (vec![1; 4096], vec![2; 8192], vec![3; 65536]);
    let at = 2 << 20;
    dev.write_batch(&[(at, &a), (at + 4096, &b), (at + 20480, &c), (at + 86016, &a), (at + 131072, &b)]).unwrap();
    let mut back = vec![9; 4096 + 8192];
    dev.read_at(at, &mut back).unwrap();
    assert!(back[..4096] == a[..] && back[4096..] == b[..]);
    let mut back = vec![9; 65536 + 4096];
    dev.read_at(at + 20480, &mut back).unwrap();
    assert!(back[..65536] == c[..] && back[65536..] == a[..]);
    let mut back = vec![9; 8192];
    dev.read_at(at + 131072, &mut back).unwrap();
    assert!(back == b);
    for (offset, len) in [(size, 4096), (size - 4096, 8192), (u64::MAX - 4095, 4096)] {
        assert!(dev.read_at(offset, &mut vec![0; len]).is_err());
        assert!(dev.write_at(offset, &vec![0; len]).is_err());
        assert!(dev.write_batch(&[(offset, &vec![0; len][..])]).is_err());
    }
    dev.flush().unwrap();
    dev.discard(at, 65536).unwrap();
}

#[test]
fn memory() {
    let dev = MemDevice::new(64 << 20);
    check_basics(&*dev);
    assert!(dev.allocated_bytes() < 2 << 20, "sparse");
    let copy = dev.snapshot();
    dev.write_at(1 << 20, &[5; 4096]).unwrap();
    let mut buf = [0; 4096];
    copy.read_at(1 << 20, &mut buf).unwrap();
    assert_eq!(buf, [0; 4096], "a snapshot does not see later writes");
    let smaller = dev.snapshot_sized(1 << 20);
    assert_eq!(smaller.size(), 1 << 20);
    assert!(smaller.read_at(1 << 20, &mut buf).is_err());
}

#[test]
fn files_buffered_and_direct() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dev");
    check_basics(&*FileDevice::create(&path, 64 << 20).unwrap());
    std::fs::remove_file(&path).unwrap();
    FileDevice::create(&path, 64 << 20).unwrap();
    let direct = |direct| FileOptions { direct, ..FileOptions::default() };
    // Some filesystems cannot do it; opening says so, unless it was only a wish.
    if let Ok(dev) = FileDevice::open(&path, &direct(DirectIo::Required)) {
        check_basics(&*dev);
    }
    check_basics(&*FileDevice::open(&path, &direct(DirectIo::Preferred)).unwrap());
    let missing = FileDevice::open(dir.path().join("missing"), &FileOptions::default());
    assert!(missing.err().unwrap().to_string().contains("missing"), "errors name the device");
    assert!(FileDevice::open(dir.path(), &FileOptions::default()).is_err(), "a folder");
}

#[test]
fn a_file_that_grows_is_seen_to_have_grown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dev");
    let dev = FileDevice::create(&path, 1 << 20).unwrap();
    assert!(dev.write_at(1 << 20, &[1; 4096]).is_err());
    std::fs::File::options().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    dev.write_at(1 << 20, &[1; 4096]).unwrap();
    assert_eq!(dev.size(), 2 << 20);
}

#[test]
fn exclusive_and_read_only_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dev");
    FileDevice::create(&path, 1 << 20).unwrap().write_at(4096, &[8; 4096]).unwrap();
    let exclusive = FileOptions { exclusive: true, ..FileOptions::default() };
    let first = FileDevice::open(&path, &exclusive).unwrap();
    assert!(matches!(FileDevice::open(&path, &exclusive), Err(Error::Busy(_))));
    drop(first);
    FileDevice::open(&path, &exclusive).unwrap();
    let reader = FileDevice::open(&path, &FileOptions { read_only: true, ..FileOptions::default() }).unwrap();
    let map = MmapDevice::open(&path).unwrap();
    for dev in [reader as Arc<dyn BlockDevice>, map] {
        assert!(dev.read_only());
        let mut buf = [0; 4096];
        dev.read_at(4096, &mut buf).unwrap();
        assert_eq!(buf, [8; 4096]);
        assert!(dev.write_at(0, &buf).is_err());
        assert!(dev.read_at((1 << 20) - 4095, &mut buf).is_err());
        dev.flush().unwrap();
    }
}

#[test]
fn faults_hit_the_chosen_operation() {
    let mem = MemDevice::new(1 << 20);
    let dev = FaultDevice::new(mem.clone());
    dev.write_at(0, &[1; 8192]).unwrap();
    dev.fail_nth(FaultOps::WRITES, 1, Fault::Once);
    dev.write_at(0, &[2; 8192]).unwrap();
    dev.flush().unwrap();
    assert!(dev.write_at(0, &[3; 8192]).is_err());
    dev.write_at(8192, &[4; 8192]).unwrap();
    assert_eq!((dev.operations(), dev.hits()), (3, 1));
    dev.fail_nth(FaultOps::WRITES, 0, Fault::Torn);
    assert!(dev.write_at(0, &[5; 8192]).is_err());
    let mut buf = [0; 8192];
    dev.read_at(0, &mut buf).unwrap();
    assert_eq!((buf[0], buf[4095], buf[4096]), (5, 5, 2), "half of it is there");
    dev.fail_nth(FaultOps::ALL, 0, Fault::Forever);
    assert!(dev.flush().is_err() && dev.read_at(0, &mut buf).is_err() && dev.write_at(0, &buf).is_err());
    dev.heal();
    dev.read_at(0, &mut buf).unwrap();
}

fn byte(dev: &MemDevice, sector: u64) -> u8 {
    let mut buf = [0; 4096];
    dev.read_at(sector * 4096, &mut buf).unwrap();
    assert!(buf.iter().all(|b| *b == buf[0]), "sectors are written as a whole");
    buf[0]
}

/// Two devices, one order: writes 1, 2 to the first, flush of it, 3 to the second, 4 to the first.
fn recorded() -> (Arc<Recorder>, Arc<RecordDevice>, Arc<RecordDevice>) {
    let (a, b) = (MemDevice::new(1 << 20), MemDevice::new(1 << 20));
    a.write_at(0, &[9; 4096]).unwrap();
    let recorder = Recorder::new();
    let (a, b) = (recorder.wrap(&a), recorder.wrap(&b));
    a.write_at(0, &[1; 4096]).unwrap();
    a.write_at(4096, &[2; 8192]).unwrap();
    a.flush().unwrap();
    b.write_at(0, &[3; 4096]).unwrap();
    a.write_at(0, &[4; 4096]).unwrap();
    (recorder, a, b)
}

#[test]
fn crash_images_hold_what_was_flushed() {
    let (recorder, a, _b) = recorded();
    assert_eq!(recorder.position(), 5);
    assert_eq!(a.log().len(), 5);
    let state = |cut, survive| {
        let devs = recorder.image(cut, survive);
        (byte(&devs[0], 0), byte(&devs[0], 1), byte(&devs[0], 2), byte(&devs[1], 0))
    };
    assert_eq!(state(0, Survive::All), (9, 0, 0, 0));
    assert_eq!(state(1, Survive::All), (1, 0, 0, 0));
    assert_eq!(state(2, Survive::Nothing), (9, 0, 0, 0));
    assert_eq!(state(3, Survive::Nothing), (1, 2, 2, 0));
    assert_eq!(state(5, Survive::Nothing), (1, 2, 2, 0));
    assert_eq!(state(5, Survive::All), (4, 2, 2, 3));
    let mut seen = std::collections::HashSet::new();
    for seed in 0..200 {
        let s = state(5, Survive::Sectors(seed));
        assert_eq!((s.1, s.2), (2, 2), "flushed");
        seen.insert((s.0, s.3));
        let s = state(2, Survive::Sectors(seed));
        seen.insert((s.1, s.2));
        let s = state(2, Survive::Writes(seed));
        assert_eq!(s.1, s.2, "whole writes");
    }
    for subset in [(1, 0), (1, 3), (4, 0), (4, 3), (0, 0), (0, 2), (2, 0), (2, 2)] {
        assert!(seen.contains(&subset), "{subset:?}");
    }
}

#[test]
fn crash_images_are_reproducible_in_any_order() {
    let (recorder, ..) = recorded();
    let images: Vec<CrashImage> = recorder.images().collect();
    assert_eq!(images.len(), 6 * 4);
    let mut other = recorder.images();
    for image in images.iter().rev() {
        let again = other.image(image.cut, image.survive);
        for (x, y) in image.devices.iter().zip(&again) {
            assert!((0..256).all(|sector| byte(x, sector) == byte(y, sector)));
        }
    }
    assert_eq!(recorder.images().from_cut(2).step(2).survivals([Survive::All]).count(), 2);
}

/// A write that completes while a flush runs is not covered by it.
#[test]
fn a_flush_covers_what_was_complete_when_it_began() {
    let (recorder, a, _) = recorded();
    a.flush().unwrap();
    let log = recorder.log();
    let Some(Event::Flush { device: 0, covers }) = log.last() else { panic!("{log:?}") };
    assert_eq!(*covers, 5);
}

fn flushes() -> FaultOps {
    FaultOps { reads: false, writes: false, flushes: true }
}

#[test]
fn a_tracked_device_is_flushed_only_after_writes() {
    let faulty = FaultDevice::new(MemDevice::new(1 << 20));
    let tracked = FlushTracker::new(faulty.clone());
    faulty.fail_nth(flushes(), u64::MAX, Fault::Once);
    let count = |f: &dyn Fn()| {
        let before = faulty.operations();
        f();
        faulty.operations() - before
    };
    assert_eq!(count(&|| tracked.flush().unwrap()), 1, "nobody knows what was written before");
    assert_eq!(count(&|| tracked.flush().unwrap()), 0);
    tracked.write_at(0, &[1; 4096]).unwrap();
    assert_eq!(count(&|| tracked.flush_ahead()), 1);
    assert_eq!(count(&|| tracked.flush().unwrap()), 0, "done ahead");
    tracked.write_batch(&[(0, &[2; 4096])]).unwrap();
    assert_eq!(count(&|| tracked.flush().unwrap()), 1);
}

/// Systems report a failed flush once; the one who relies on the flush must hear of it, not the one who began it.
#[test]
fn the_failure_of_a_flush_ahead_is_given_to_who_needs_it() {
    let faulty = FaultDevice::new(MemDevice::new(1 << 20));
    let tracked = FlushTracker::new(faulty.clone());
    tracked.write_at(0, &[1; 4096]).unwrap();
    faulty.fail_nth(flushes(), 0, Fault::Once);
    tracked.flush_ahead();
    tracked.flush_ahead();
    assert!(tracked.flush().is_err());
    let before = faulty.operations();
    tracked.flush().unwrap();
    assert_eq!(faulty.operations(), before + 1, "it is flushed, not believed");
}

/// A write that completes while a flush runs is not taken for durable.
#[test]
fn a_write_during_a_flush_needs_another_one() {
    struct Slow(Mutex<Option<Arc<FlushTracker>>>, AtomicUsize);
    impl BlockDevice for Slow {
        fn name(&self) -> String {
            "slow".into()
        }
        fn size(&self) -> u64 {
            1 << 20
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            self.1.fetch_add(1, Ordering::SeqCst);
            match self.0.lock().take() {
                Some(tracked) => tracked.write_at(0, &[0; 4096]),
                None => Ok(()),
            }
        }
    }
    let slow = Arc::new(Slow(Mutex::new(None), AtomicUsize::new(0)));
    let tracked = FlushTracker::new(slow.clone());
    *slow.0.lock() = Some(tracked.clone());
    tracked.flush().unwrap();
    tracked.flush().unwrap();
    tracked.flush().unwrap();
    assert_eq!(slow.1.load(Ordering::SeqCst), 2);
}
