//! Power loss at any moment: what was promised is there, and nothing is half done.
//!
//! One run is recorded, from the first open to the close. Then the devices are looked at as a crash after each (or each
//! so many) of their writes and flushes could leave them. By default about 600 images are tried; `SCOUTFS_CRASH_ALL=1` in
//! the environment tries every cut with every survival.

#[path = "common/model.rs"]
mod model;
#[path = "common/op.rs"]
mod op;
#[path = "common/workload.rs"]
mod workload;

use std::sync::{Arc, Mutex};

use scoutfs::device::{BlockDevice, CrashImage, MemDevice, Recorder, Survive};
use scoutfs::namespace::Caller;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

use model::{History, Model, observe};
use op::Op;

const IMAGES: usize = 600;
const THREADS: usize = 10;

fn devices(meta_mib: u64, data_mib: u64) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let (meta, data) = (MemDevice::new(meta_mib << 20), MemDevice::new(data_mib << 20));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*meta, &*data, &options).unwrap();
    (meta, data)
}

struct Run<'a> {
    volume: &'a Volume,
    recorder: &'a Recorder,
    history: History,
}

impl workload::Run for Run<'_> {
    type Stop = std::convert::Infallible;

    fn op(&mut self, op: Op) -> Result<Ino, Self::Stop> {
        let at = self.recorder.position();
        assert!(!self.history.last().nested(&op), "the run does what is possible");
        Ok(self.history.step(self.volume, &op, at).unwrap_or_else(|e| panic!("{op:?}: {e}")).unwrap_or(Ino::ROOT))
    }

    fn sync(&mut self) -> Result<(), Self::Stop> {
        self.volume.sync().unwrap();
        self.history.synced(self.recorder.position());
        Ok(())
    }
}

/// Opens what the crash left, uses it, leaves it and checks it.
fn examine(image: &CrashImage, history: &History) -> Result<(), String> {
    let [meta, data] = &image.devices[..] else { panic!("two devices") };
    let (m, d): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) = (meta.clone(), data.clone());
    let volume = Volume::open(m, d, VolumeOptions::member(0)).map_err(|e| format!("open: {e}"))?;
    let seen = observe(&volume).map_err(|e| format!("look: {e}"))?;
    history.allows(&seen, image.cut)?;
    let root = Caller::root();
    let ino = volume.create(&root, Ino::ROOT, b"after", 0o600).map_err(|e| format!("create: {e}"))?.ino;
    volume.write(&root, ino, 0, &[7; 10_000]).map_err(|e| format!("write: {e}"))?;
    volume.close().map_err(|e| format!("close: {e}"))?;
    let report = check(&**meta, &**data, &CheckOptions::default()).map_err(|e| format!("check: {e}"))?;
    if !report.is_clean() || report.leaked_meta_blocks != 0 || report.leaked_data_blocks != 0 {
        return Err(format!("check: {report:?}"));
    }
    Ok(())
}

#[test]
fn every_crash_keeps_what_was_synced() {
    let (meta, data) = devices(64, 32);
    let recorder = Recorder::new();
    let (m, d) = (recorder.wrap(&meta), recorder.wrap(&data));
    let volume = Volume::open(m, d, VolumeOptions::member(0)).unwrap();
    let mut run = Run { volume: &volume, recorder: &recorder, history: History::new(Model::new()) };
    for nr in 0..3 {
        let Ok(()) = workload::round(&mut run, nr);
    }
    let mut history = run.history;
    assert!(observe(&volume).unwrap() == *history.last(), "{}", observe(&volume).unwrap().difference(history.last()));
    volume.close().unwrap();
    history.synced(recorder.position());

    let all = std::env::var_os("SCOUTFS_CRASH_ALL").is_some();
    let survivals = [Survive::All, Survive::Nothing, Survive::Writes(1), Survive::Sectors(2)];
    let step = if all { 1 } else { (recorder.position() * survivals.len()).div_ceil(IMAGES) | 1 };
    println!("{} events, every {step}th", recorder.position());
    let images = Mutex::new(recorder.images().step(step).survivals(survivals));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(image) = images.lock().unwrap().next() else { return };
                    if let Err(e) = examine(&image, &history) {
                        failures.lock().unwrap().push(format!("cut {} {:?}: {e}", image.cut, image.survive));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} images\n{}", failures.len(), failures.join("\n"));
}
