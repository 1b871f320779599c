//! A volume does what a simple model does: the same errors, the same things to see.
//!
//! Random calls with syncs, closes and opens, and mounts that are dropped. A failing case prints its seed;
//! `SCOUTFS_MODEL_SEED=n` in the environment runs only that, `SCOUTFS_MODEL_CASES=n` so many.

#[path = "common/model.rs"]
mod model;
#[path = "common/op.rs"]
mod op;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use scoutfs::device::MemDevice;
use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::{Errno, Ino, Volume, VolumeOptions};

use model::{History, Model, observe};
use random::random_op;

const CASES: u64 = 12;
const CALLS: usize = 600;

fn devices(meta_mib: u64, data_mib: u64) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let (meta, data) = (MemDevice::new(meta_mib << 20), MemDevice::new(data_mib << 20));
    let slots = vec!["0,127.0.0.1,12345".parse().unwrap()];
    let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
    mkfs(&*meta, &*data, &options).unwrap();
    (meta, data)
}

struct Case {
    rng: StdRng,
    meta: Arc<MemDevice>,
    data: Arc<MemDevice>,
    /// The open volume; `None` only while it is changed for another mount.
    volume: Option<Volume>,
    /// Calls that succeeded, numbered like events of a device.
    history: History,
    done: usize,
}

impl Case {
    fn new(seed: u64) -> Case {
        let (meta, data) = devices(64, 64);
        let rng = StdRng::seed_from_u64(seed);
        let mut case = Case { rng, meta, data, volume: None, history: History::new(Model::new()), done: 0 };
        case.open();
        case
    }

    fn open(&mut self) {
        let volume = Volume::open(self.meta.clone(), self.data.clone(), VolumeOptions::member(0)).unwrap();
        self.volume = Some(volume);
    }

    fn model(&self) -> &Model {
        self.history.last()
    }

    fn call(&mut self) {
        let op = random_op(&mut self.rng, self.history.last());
        let volume = self.volume.as_ref().unwrap();
        let expected = match self.model().clone().apply(&op, || Ino(u64::MAX)) {
            Ok(()) => {
                self.done += 1;
                self.history.step(volume, &op, self.done).unwrap_or_else(|e| panic!("{op:?}: {e}"));
                return;
            }
            Err(e) => e,
        };
        let found: Option<Errno> = op.run(volume).err().map(|e| e.errno());
        if !(found.is_some() && self.model().nested(&op)) {
            assert_eq!(found, Some(expected), "{op:?}");
        }
    }

    fn compare(&self) {
        let seen = observe(self.volume.as_ref().unwrap()).unwrap();
        assert!(seen == *self.model(), "model and volume differ in\n{}", self.model().difference(&seen));
    }

    fn sync(&mut self) {
        self.volume.as_ref().unwrap().sync().unwrap();
        self.done += 1;
        self.history.synced(self.done);
    }

    fn close(&mut self) {
        self.volume.take().unwrap().close().unwrap();
        self.history.synced(self.done);
    }

    fn check(&self) {
        let report = check(&*self.meta, &*self.data, &CheckOptions::default()).unwrap();
        let leaked = (report.leaked_meta_blocks, report.leaked_data_blocks);
        assert!(report.is_clean() && leaked == (0, 0), "{report:?}");
    }

    fn run(&mut self) {
        for _ in 0..CALLS {
            match self.rng.random_range(0..300) {
                0..10 => self.sync(),
                10..13 => self.compare(),
                13 => {
                    self.close();
                    self.check();
                    self.open();
                    self.compare();
                }
                14 => {
                    // The node dies; its devices live on.
                    drop(self.volume.take());
                    self.open();
                    let seen = observe(self.volume.as_ref().unwrap()).unwrap();
                    self.history.allows(&seen, usize::MAX).unwrap();
                    (self.history, self.done) = (History::new(seen), 0);
                }
                _ => self.call(),
            }
        }
        self.compare();
        self.close();
        self.check();
    }
}

#[test]
fn a_volume_does_what_the_model_does() {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("SCOUTFS_MODEL_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SCOUTFS_MODEL_CASES").unwrap_or(CASES)).collect(),
    };
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..4.min(seeds.len()))
            .map(|lane| {
                let seeds: Vec<u64> = seeds.iter().copied().skip(lane).step_by(4).collect();
                scope.spawn(move || {
                    let fails = |seed: &u64| std::panic::catch_unwind(|| Case::new(*seed).run()).is_err();
                    seeds.into_iter().filter(fails).inspect(|s| println!("seed {s} failed")).collect::<Vec<_>>()
                })
            })
            .collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "failed: SCOUTFS_MODEL_SEED={failed:?}");
}
