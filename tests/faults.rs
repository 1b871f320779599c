//! Devices that fail: at the n-th operation, once or from then on.
//!
//! An ordinary run (open, every kind of call, syncs, close) is repeated with another operation failing each time. Whatever
//! fails, nothing panics and nothing waits for ever: calls end, with errors if need be. Afterwards the devices, healthy again,
//! open; everything that a sync promised is there; nothing is half done; the check finds nothing.
//!
//! About 150 runs by default; `SCOUTFS_FAULTS_ALL=1` in the environment tries every operation, and `SCOUTFS_FAULTS_ONLY=TEXT`
//! those whose printed plan contains the text.

#[path = "common/model.rs"]
mod model;
#[path = "common/op.rs"]
mod op;
#[path = "common/workload.rs"]
mod workload;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scoutfs::device::{BlockDevice, Fault, FaultDevice, FaultOps, MemDevice};
use scoutfs::namespace::Caller;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Ino, Volume, VolumeOptions};

use model::{History, Model, observe};
use op::Op;
use workload::Run as _;

const RUNS: u64 = 150;
const THREADS: usize = 16;
/// No run may take longer. A mount that has lost its only server gives up after 20 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// What one run does to one of the devices.
#[derive(Clone, Copy, Debug)]
struct Plan {
    metadata: bool,
    ops: FaultOps,
    nth: u64,
    fault: Fault,
}

/// Where a run is, so that one that hangs can be told.
#[derive(Clone)]
struct Progress(Arc<Mutex<String>>);

impl Progress {
    fn at(&self, step: impl std::fmt::Debug) {
        *self.0.lock().unwrap() = format!("{step:?}");
    }
}

struct Run<'a> {
    volume: &'a Volume,
    history: &'a mut History,
    progress: &'a Progress,
}

impl workload::Run for Run<'_> {
    type Stop = scoutfs::Error;

    fn op(&mut self, op: Op) -> scoutfs::Result<Ino> {
        assert!(!self.history.last().nested(&op), "the run does what is possible");
        self.progress.at(&op);
        Ok(self.history.step(self.volume, &op, 0)?.unwrap_or(Ino::ROOT))
    }

    fn sync(&mut self) -> scoutfs::Result<()> {
        self.progress.at("sync");
        self.volume.sync()?;
        self.history.synced(0);
        Ok(())
    }
}

fn devices() -> (Arc<MemDevice>, Arc<MemDevice>) {
    let (meta, data) = (MemDevice::new(64 << 20), MemDevice::new(32 << 20));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*meta, &*data, &options).unwrap();
    (meta, data)
}

fn dynamic(device: &Arc<impl BlockDevice + 'static>) -> Arc<dyn BlockDevice> {
    device.clone()
}

/// Opens, uses and closes; errors are what devices that fail give.
fn use_volume(
    meta: &Arc<FaultDevice>,
    data: &Arc<FaultDevice>,
    history: &mut History,
    progress: &Progress,
) -> scoutfs::Result<()> {
    progress.at("open");
    let volume = Volume::open(dynamic(meta), dynamic(data), VolumeOptions::member(0))?;
    let mut run = Run { volume: &volume, history, progress };
    if workload::round(&mut run, 0).is_err() {
        // A fault that was passing is over; one that lasts is not. A sync says which.
        let _ = run.sync();
    }
    progress.at("close");
    volume.close()?;
    history.synced(0);
    Ok(())
}

/// One run and the look at what it left; the number of operations that the plan counted.
fn run(plan: Option<Plan>, progress: &Progress) -> Result<(u64, u64), String> {
    let (meta, data) = devices();
    let (faulty_meta, faulty_data) = (FaultDevice::new(dynamic(&meta)), FaultDevice::new(dynamic(&data)));
    if let Some(Plan { metadata, ops, nth, fault }) = plan {
        if metadata { &faulty_meta } else { &faulty_data }.fail_nth(ops, nth, fault);
    }
    let mut history = History::new(Model::new());
    let ended = use_volume(&faulty_meta, &faulty_data, &mut history, progress);
    let counted = (faulty_meta.operations(), faulty_data.operations());
    if plan.is_none() {
        ended.map_err(|e| format!("without faults: {e}"))?;
    }

    progress.at("open again");
    let volume = Volume::open(dynamic(&meta), dynamic(&data), VolumeOptions::member(0))
        .map_err(|e| format!("open again: {e}"))?;
    progress.at("look");
    let seen = observe(&volume).map_err(|e| format!("look: {e}"))?;
    history.allows(&seen, usize::MAX)?;
    let made = volume.create(&Caller::root(), Ino::ROOT, b"after", 0o600).map_err(|e| format!("create: {e}"))?;
    volume.write(&Caller::root(), made.ino, 0, &[7; 10_000]).map_err(|e| format!("write: {e}"))?;
    progress.at("close again");
    volume.close().map_err(|e| format!("close: {e}"))?;
    let report = check(&*meta, &*data, &CheckOptions::default()).map_err(|e| format!("check: {e}"))?;
    if !report.is_clean() || report.leaked_meta_blocks != 0 || report.leaked_data_blocks != 0 {
        return Err(format!("check: {report:?}"));
    }
    Ok(counted)
}

/// Runs in a thread of its own, so that waiting for ever is a failure and not a test that never ends.
fn watched(plan: Option<Plan>) -> Result<(u64, u64), String> {
    let progress = Progress(Arc::default());
    let (done, result) = channel();
    let inside = progress.clone();
    let thread = std::thread::spawn(move || {
        let _ = done.send(run(plan, &inside));
    });
    match result.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(format!("hangs in {}", progress.0.lock().unwrap())),
        Err(RecvTimeoutError::Disconnected) => {
            let panic = thread.join().expect_err("nothing was sent");
            let text = panic.downcast_ref::<String>().map_or("?", String::as_str);
            Err(format!("panics in {}: {text}", progress.0.lock().unwrap()))
        }
    }
}

/// Every plan, or about [`RUNS`] of them spread over all.
fn plans(meta_ops: u64, data_ops: u64) -> Vec<Plan> {
    let kinds = [
        (FaultOps::READS, Fault::Once),
        (FaultOps::READS, Fault::Forever),
        (FaultOps::CHANGES, Fault::Once),
        (FaultOps::CHANGES, Fault::Forever),
        (FaultOps::WRITES, Fault::Torn),
    ];
    let mut plans = Vec::new();
    for (metadata, count) in [(true, meta_ops), (false, data_ops)] {
        for (ops, fault) in kinds {
            plans.extend((0..count).map(|nth| Plan { metadata, ops, nth, fault }));
        }
    }
    if let Ok(only) = std::env::var("SCOUTFS_FAULTS_ONLY") {
        plans.retain(|plan| format!("{plan:?}").contains(&only));
        assert!(!plans.is_empty(), "no plan is called {only}");
        return plans;
    }
    let all = std::env::var_os("SCOUTFS_FAULTS_ALL").is_some();
    let step = if all { 1 } else { (plans.len() as u64).div_ceil(RUNS).max(1) | 1 };
    plans.into_iter().step_by(step as usize).collect()
}

#[test]
fn whatever_operation_fails_nothing_hangs_and_nothing_promised_is_lost() {
    let (meta_ops, data_ops) = watched(None).unwrap();
    let plans = plans(meta_ops, data_ops);
    println!("{meta_ops} and {data_ops} operations, {} runs", plans.len());
    let (queue, failures) = (Mutex::new(plans.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(plan) = queue.lock().unwrap().next() else { return };
                    if let Err(e) = watched(Some(plan)) {
                        println!("{plan:?}: {e}");
                        failures.lock().unwrap().push(format!("{plan:?}: {e}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} runs failed\n{}", failures.len(), failures.join("\n"));
}
