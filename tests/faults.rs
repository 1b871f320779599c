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
use scoutfs::net::MemTransport;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::server::ConfirmFencing;
use scoutfs::{Environment, Ino, Volume, VolumeOptions};

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
    /// The mount is on a network that others might be on, so that it flushes by itself.
    shared: bool,
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
    shared: bool,
) -> scoutfs::Result<()> {
    progress.at("open");
    let environment = match shared {
        true => Environment { transport: Some(MemTransport::new()), fencer: Some(Arc::new(ConfirmFencing)) },
        false => Environment::default(),
    };
    let mut options = VolumeOptions::member(0);
    options.heartbeat_timeout = Duration::from_secs(2);
    let volume = Volume::open_in(dynamic(meta), dynamic(data), options, environment)?;
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

/// What came of a run.
struct Outcome {
    /// Operations of the two devices that the plan counted.
    counted: (u64, u64),
    /// Operations that failed.
    hits: u64,
    /// How the use of the volume ended.
    ended: scoutfs::Result<()>,
}

/// One run and the look at what it left.
fn run(plan: Option<Plan>, progress: &Progress) -> Result<Outcome, String> {
    let (meta, data) = devices();
    let (faulty_meta, faulty_data) = (FaultDevice::new(dynamic(&meta)), FaultDevice::new(dynamic(&data)));
    if let Some(Plan { metadata, ops, nth, fault, .. }) = plan {
        if metadata { &faulty_meta } else { &faulty_data }.fail_nth(ops, nth, fault);
    }
    let mut history = History::new(Model::new());
    let shared = plan.is_some_and(|p| p.shared);
    let ended = use_volume(&faulty_meta, &faulty_data, &mut history, progress, shared);
    let counted = (faulty_meta.operations(), faulty_data.operations());
    let hits = faulty_meta.hits() + faulty_data.hits();
    if let (0, Err(e)) = (hits, &ended) {
        return Err(format!("without faults: {e}"));
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
    Ok(Outcome { counted, hits, ended })
}

/// Runs in a thread of its own, so that waiting for ever is a failure and not a test that never ends.
fn watched(plan: Option<Plan>) -> Result<Outcome, String> {
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
            plans.extend((0..count).map(|nth| Plan { metadata, ops, nth, fault, shared: false }));
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

/// Runs all plans, some at a time; the outcomes of those that did not fail, and what is wrong with the others.
fn all(plans: Vec<Plan>) -> (Vec<(Plan, Outcome)>, Vec<String>) {
    let (queue, results) = (Mutex::new(plans.into_iter()), Mutex::new((Vec::new(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(plan) = queue.lock().unwrap().next() else { return };
                    match watched(Some(plan)) {
                        Ok(outcome) => results.lock().unwrap().0.push((plan, outcome)),
                        Err(e) => {
                            println!("{plan:?}: {e}");
                            results.lock().unwrap().1.push(format!("{plan:?}: {e}"));
                        }
                    }
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn whatever_operation_fails_nothing_hangs_and_nothing_promised_is_lost() {
    let (meta_ops, data_ops) = watched(None).unwrap().counted;
    let plans = plans(meta_ops, data_ops);
    println!("{meta_ops} and {data_ops} operations, {} runs", plans.len());
    let (_, failures) = all(plans);
    assert!(failures.is_empty(), "{} runs failed\n{}", failures.len(), failures.join("\n"));
}

/// A commit whose flush had failed was tried again without writing its blocks again. Systems report a failed flush once and drop
/// what they could not write: the second flush succeeded, and the commit referred to blocks that were not there. The mount
/// ends now, with the failure as its reason.
#[test]
fn a_failed_flush_that_lost_what_was_written_is_never_committed_over() {
    let mut plans = Vec::new();
    for (metadata, shared) in [(true, false), (false, false), (true, true), (false, true)] {
        let plan = |nth| Plan { metadata, ops: FaultOps::FLUSHES, nth, fault: Fault::Lost, shared };
        // A plan that never comes true counts the flushes.
        let counted = watched(Some(plan(u64::MAX))).unwrap().counted;
        let flushes = if metadata { counted.0 } else { counted.1 };
        assert!(flushes > 3, "{flushes} flushes are not worth a test");
        plans.extend((0..flushes).map(plan));
    }
    println!("{} runs", plans.len());
    let (outcomes, failures) = all(plans);
    assert!(failures.is_empty(), "{} runs failed\n{}", failures.len(), failures.join("\n"));
    let hit = outcomes.iter().filter(|(_, o)| o.hits > 0).count();
    assert!(hit * 2 > outcomes.len(), "only {hit} of {} runs had the fault", outcomes.len());
    for (plan, outcome) in outcomes {
        if let Err(e) = outcome.ended {
            assert!(e.to_string().contains("a flush has failed"), "{plan:?}: the reason is not told: {e}");
        }
    }
}
