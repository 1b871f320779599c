//! A cluster under a seed: its machines, what happens to them, and whether it recovers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use scoutfs::offline::{CheckOptions, MkfsOptions, check, mkfs};
use scoutfs::sim::{
    self, DRIVER, DiskProfile, FenceProfile, LockChange, NetProfile, SimDisk, SimFencer, SimFencing, SimNet, below,
    between, one_in,
};
use scoutfs::{Environment, Error, Volume, VolumeOptions};

use super::history::{History, Object};
use super::linear::{self, Verdict};
use super::work::{self, NOTHING, Objects};

const DISK_BYTES: u64 = 64 << 30;
/// No node is cut off so long after the last fault.
const SETTLE: Duration = Duration::from_secs(6);
/// With everything healed, every node must be up and working within this time: two recoveries with their fencing.
const RECOVERY: Duration = Duration::from_secs(300);

/// The faults end when so much has been done, so that busy clusters do not take all the real time.
const MAX_OPERATIONS: usize = 15_000;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// While the objects are made nothing goes wrong: no leader is slow enough to be fenced.
const CALM_DISK: DiskProfile = DiskProfile {
    fast: Duration::from_micros(20),
    slow: Duration::from_micros(200),
    stall_one_in: 0,
    stall: Duration::ZERO,
    lost: 0,
};
/// The same.
const CALM_NET: NetProfile =
    NetProfile { fast: Duration::from_micros(20), slow: Duration::from_micros(200), loss: 0, repeat: 0, silent: 0 };

/// Where a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Mounts.
    Start,
    /// Works.
    Work,
    /// Is to leave.
    Leave,
    /// Has left in order.
    Left,
    /// Cannot go on.
    Failed,
}

struct Machine {
    node: u32,
    life: Life,
    /// Operations done by the present node.
    done: u64,
}

/// Everything that belongs to one run.
pub(crate) struct Cluster {
    pub(crate) history: History,
    net: Arc<SimNet>,
    fencing: Arc<SimFencing>,
    meta: Arc<SimDisk>,
    data: Arc<SimDisk>,
    members: usize,
    /// From when the objects are made.
    profiles: (DiskProfile, NetProfile),
    machines: Mutex<Vec<Machine>>,
    objects: OnceLock<Objects>,
    next_node: Mutex<u32>,
    faults: Mutex<Vec<String>>,
    ending: Mutex<bool>,
    /// Who relies on which lock, in which mode.
    locks: Mutex<BTreeMap<String, BTreeMap<u32, u8>>>,
    /// Who has said farewell: grants that were on their way are of no use to them.
    leaving: Mutex<BTreeSet<u32>>,
}

fn ip(machine: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 1 + machine as u8).into()
}

fn pick<T: Copy>(from: &[T]) -> T {
    from[below(from.len() as u64) as usize]
}

impl Cluster {
    /// Draws a cluster and makes its volume.
    pub(crate) fn new() -> Arc<Cluster> {
        let machines = pick(&[2, 2, 3, 3, 3, 4, 5, 7]);
        let members = if machines >= 3 && !one_in(3) { 3 } else { 1 };
        let disk = DiskProfile {
            fast: pick(&[20, 100, 1000]) * MS / 1000,
            slow: pick(&[200, 1000, 10_000]) * MS / 1000,
            stall_one_in: pick(&[0, 0, 500, 5000]),
            stall: pick(&[50, 1000]) * MS,
            lost: pick(&[0, 30, 100]),
        };
        let net = NetProfile {
            fast: pick(&[10, 100, 1000]) * MS / 1000,
            slow: pick(&[200, 2000, 50_000]) * MS / 1000,
            loss: pick(&[0, 0, 5, 20]),
            repeat: pick(&[0, 5, 20]),
            silent: pick(&[0, 50, 100]),
        };
        let fence = FenceProfile { slow: pick(&[1, 100, 1000, 8000]) * MS, fails: pick(&[0, 0, 0, 20]) };
        let (meta, data) = (SimDisk::new("meta", DISK_BYTES, CALM_DISK), SimDisk::new("data", DISK_BYTES, CALM_DISK));
        let slots = (0..members).map(|nr| format!("{nr},{},{}", ip(nr), 17000).parse().expect("a slot")).collect();
        let options = MkfsOptions { allow_small: true, quorum_slots: slots, ..MkfsOptions::default() };
        mkfs(&*meta.open(DRIVER), &*data.open(DRIVER), &options).expect("a fresh disk takes a volume");
        let fresh = || Machine { node: 0, life: Life::Left, done: 0 };
        let cluster = Arc::new(Cluster {
            history: History::default(),
            net: SimNet::new(CALM_NET),
            profiles: (disk, net),
            fencing: SimFencing::new(vec![meta.clone(), data.clone()], fence),
            meta,
            data,
            members,
            machines: Mutex::new((0..machines).map(|_| fresh()).collect()),
            objects: OnceLock::new(),
            next_node: Mutex::new(1),
            faults: Mutex::default(),
            ending: Mutex::new(false),
            locks: Mutex::default(),
            leaving: Mutex::default(),
        });
        let (crashes, cuts) = (cluster.clone(), cluster.clone());
        sim::on_crash(move |node| {
            crashes.history.gone(node);
            crashes.meta.cut_node(node);
            crashes.data.cut_node(node);
        });
        cluster.fencing.on_cut(move |node| {
            cuts.history.gone(node);
            cuts.note(format!("node {node} is cut off"));
        });
        cluster.note(format!("{machines} machines, {members} members, {disk:?}, {net:?}, {fence:?}"));
        cluster
    }

    /// For the story of a run that failed.
    fn note(&self, what: String) {
        let line = format!("{:>12.3} {what}", (sim::now() - 1_000_000 * S).as_secs_f64());
        if std::env::var_os("SIM_LOG").is_some() {
            eprintln!("{line}");
        }
        self.faults.lock().expect("not held for long").push(line);
    }

    pub(crate) fn story(&self) -> String {
        self.faults.lock().expect("not held for long").join("\n")
    }

    fn with<R>(&self, machine: usize, f: impl FnOnce(&mut Machine) -> R) -> R {
        f(&mut self.machines.lock().expect("not held for long")[machine])
    }

    fn count(&self) -> usize {
        self.machines.lock().expect("not held for long").len()
    }

    pub(crate) fn objects(&self) -> &Objects {
        self.objects.get().expect("made before the work begins")
    }

    pub(crate) fn life(&self, machine: usize) -> Life {
        self.with(machine, |m| m.life)
    }

    pub(crate) fn progress(&self, machine: usize) {
        self.with(machine, |m| m.done += 1);
    }

    pub(crate) fn mounted(&self, machine: usize) {
        self.with(machine, |m| {
            if m.life == Life::Start {
                m.life = Life::Work;
            }
        });
        self.note(format!("machine {machine} has mounted"));
    }

    pub(crate) fn left(&self, machine: usize) {
        self.with(machine, |m| m.life = Life::Left);
        self.note(format!("machine {machine} has left"));
    }

    /// A node that was not cut off must not fail.
    pub(crate) fn failed(&self, machine: usize, node: u32, error: &Error) {
        self.note(format!("machine {machine} (node {node}) fails: {error}"));
        if !self.history.is_gone(node) {
            sim::fail(&format!("node {node} failed without having been cut off: {error:?}\n{}", self.story()));
        }
        self.with(machine, |m| m.life = Life::Failed);
    }

    /// Opens the volume for a node.
    pub(crate) fn open(&self, machine: usize, node: u32) -> Result<Volume, Error> {
        let mut options = VolumeOptions::default();
        options.quorum_slot = (machine < self.members).then_some(machine as u8);
        options.heartbeat_timeout = pick(&[2, 3, 10]) * S;
        options.commit_interval = pick(&[200, 2000, 30_000]) * MS;
        options.log_merge_wait = pick(&[200, 1000, 5000]) * MS;
        options.orphan_scan_delay = pick(&[1, 10]) * S;
        options.block_cache_bytes = 16 << 20;
        options.item_cache_bytes = 4 << 20;
        options.data_cache_bytes = 4 << 20;
        options.lock_idle_count = pick(&[32, 100, 10_000]);
        let environment = Environment {
            transport: Some(self.net.transport(node, ip(machine))),
            fencer: Some(Arc::new(SimFencer(self.fencing.clone()))),
        };
        Volume::open_in(self.meta.open(node), self.data.open(node), options, environment)
    }

    /// Starts a machine.
    fn boot(self: &Arc<Cluster>, machine: usize) {
        let node = {
            let mut next = self.next_node.lock().expect("not held for long");
            *next += 1;
            *next
        };
        self.with(machine, |m| *m = Machine { node, life: Life::Start, done: 0 });
        self.note(format!("machine {machine} boots as node {node}"));
        let cluster = self.clone();
        sim::spawn_on(node, "main", move || work::node_main(&cluster, machine, node));
    }

    /// Makes the objects of the run with machines that all live.
    pub(crate) fn prepare(self: &Arc<Cluster>) {
        let cluster = self.clone();
        let (node, members) = (1, self.members);
        // One alone is no majority of three, so the others mount too.
        let helpers: Vec<_> = (1..members)
            .map(|machine| {
                let cluster = self.clone();
                sim::spawn_on(1, "helper", move || cluster.open(machine, 1).expect("a fresh volume mounts"))
            })
            .collect();
        let made = sim::spawn_on(node, "maker", move || {
            let volume = cluster.open(0, node).expect("a fresh volume mounts");
            let objects = Objects::make(&volume, 3, 2).expect("a fresh volume can be written");
            (volume, objects)
        });
        let Ok((volume, objects)) = made.join() else { unreachable!("panics end the run") };
        let mut all = vec![volume];
        all.extend(helpers.into_iter().filter_map(|h| h.join().ok()));
        let closing: Vec<_> = all
            .into_iter()
            .map(|v| sim::spawn_on(node, "closer", move || v.close().expect("leaves in order")))
            .collect();
        closing.into_iter().for_each(|c| drop(c.join()));
        let _ = self.objects.set(objects);
        let (disk, net) = self.profiles;
        self.meta.set_profile(disk);
        self.data.set_profile(disk);
        self.net.set_profile(net);
        self.note("the objects are made".into());
        // Before, several mounts had one number.
        let watcher = self.clone();
        sim::on_lock(move |node, change| watcher.lock_changed(node, change));
    }

    /// Of two nodes that have not been cut off, never do two rely on modes that exclude each other (`spec/04` S-1).
    fn lock_changed(&self, node: u32, change: LockChange) {
        let mut locks = self.locks.lock().expect("not held for long");
        let mut leaving = self.leaving.lock().expect("not held for long");
        let LockChange::Holds { name, mode } = change else {
            leaving.insert(node);
            locks.values_mut().for_each(|holders| _ = holders.remove(&node));
            return;
        };
        if leaving.contains(&node) {
            return;
        }
        let holders = locks.entry(name.clone()).or_default();
        if mode == 0 {
            holders.remove(&node);
            return;
        }
        holders.insert(node, mode);
        if self.history.is_gone(node) {
            return;
        }
        // Read with read, and blind writing with blind writing.
        let shared = |other: u8| mode == other && mode != 2;
        if let Some((other, theirs)) =
            holders.iter().find(|(n, m)| **n != node && !shared(**m) && !self.history.is_gone(**n))
        {
            let story = self.story();
            sim::fail(&format!("S-1: node {node} holds {name} in mode {mode}, node {other} in mode {theirs}\n{story}"));
        }
    }

    /// Looks after one machine: boots it when it is down.
    fn tend(self: &Arc<Cluster>, machine: usize) {
        loop {
            let (node, life) = self.with(machine, |m| (m.node, m.life));
            let ending = *self.ending.lock().expect("not held for long");
            let dead = node != 0 && sim::is_dead(node);
            if !dead && node != 0 && (life == Life::Failed || self.history.is_gone(node)) {
                // Somebody pulls the plug of what was cut off.
                sim::sleep(between(Duration::ZERO, 3 * S));
                self.note(format!("node {node} is reset"));
                sim::crash(node);
                continue;
            }
            if dead || life == Life::Left {
                if ending && life == Life::Left && !dead {
                    return;
                }
                sim::sleep(between(Duration::ZERO, pick(&[100, 3000, 40_000]) * MS));
                self.boot(machine);
            }
            sim::sleep(100 * MS);
        }
    }

    fn isolate(&self) {
        let n = self.count();
        let one_way = one_in(4);
        // A random set of machines on one side; often a single one.
        let side: Vec<bool> = match one_in(2) {
            true => {
                let lonely = below(n as u64) as usize;
                (0..n).map(|m| m == lonely).collect()
            }
            false => (0..n).map(|_| one_in(2)).collect(),
        };
        for a in 0..n {
            for b in 0..n {
                if side[a] && !side[b] {
                    self.net.cut(ip(a), ip(b));
                    if !one_way {
                        self.net.cut(ip(b), ip(a));
                    }
                }
            }
        }
        let time = between(50 * MS, pick(&[2, 15, 60]) * S);
        self.note(format!("partition {side:?} one way: {one_way} for {time:?}"));
        sim::sleep(time);
        self.net.heal();
        self.note("healed".into());
    }

    /// A member that is needed for a majority waits with leaving until the others leave too (`spec/05 §5.10`): one at a
    /// time, and never the only one.
    fn may_leave(&self, machine: usize) -> bool {
        let machines = self.machines.lock().expect("not held for long");
        let leaving = machines[..self.members].iter().any(|m| m.life == Life::Leave);
        machine >= self.members || (self.members > 1 && !leaving)
    }

    /// One thing that goes wrong.
    fn fault(&self) {
        let machine = below(self.count() as u64) as usize;
        let (node, life) = self.with(machine, |m| (m.node, m.life));
        if node == 0 || sim::is_dead(node) {
            return;
        }
        match below(13) {
            12 => {
                self.note("the power fails everywhere".into());
                let nodes: Vec<u32> = (0..self.count()).map(|m| self.with(m, |m| m.node)).collect();
                nodes.into_iter().filter(|n| *n != 0 && !sim::is_dead(*n)).for_each(sim::crash);
            }
            0 | 1 => {
                self.note(format!("machine {machine} (node {node}) crashes"));
                sim::crash(node);
            }
            2..=4 => {
                let steps = 1 + below(pick(&[20, 300, 3000]));
                self.note(format!("machine {machine} (node {node}) crashes after {steps} steps"));
                sim::crash_after(node, steps);
                sim::sleep(2 * S);
            }
            5 | 6 => {
                let time = between(10 * MS, pick(&[1, 12, 70]) * S);
                self.note(format!("machine {machine} (node {node}) pauses for {time:?}"));
                sim::pause(node, time);
            }
            7 | 8 => self.isolate(),
            9 | 10 => {
                self.note("streams break".into());
                (0..1 + below(6)).for_each(|_| self.net.break_one());
            }
            _ if life == Life::Work && self.may_leave(machine) => {
                self.note(format!("machine {machine} (node {node}) leaves"));
                self.with(machine, |m| m.life = Life::Leave);
            }
            _ => {}
        }
    }

    /// Everything at once: work and faults for `time`, then recovery, the end, and the checks.
    pub(crate) fn run(self: &Arc<Cluster>, time: Duration) {
        let tenders: Vec<_> = (0..self.count())
            .map(|machine| {
                let cluster = self.clone();
                sim::spawn_on(DRIVER, &format!("machine-{machine}"), move || cluster.tend(machine))
            })
            .collect();
        let until = sim::now() + time;
        let pace = pick(&[1, 5, 20, 60]) * S;
        while sim::now() < until && self.history.done() < MAX_OPERATIONS {
            sim::sleep(between(Duration::ZERO, pace));
            self.fault();
        }
        self.recover();
        self.note("the end".into());
        *self.ending.lock().expect("not held for long") = true;
        (0..self.count()).for_each(|m| self.with(m, |m| m.life = Life::Leave));
        self.wait("all nodes leave", |m| m.life == Life::Left);
        tenders.into_iter().for_each(|t| drop(t.join()));
    }

    /// No more faults: all nodes must come to work again.
    fn recover(self: &Arc<Cluster>) {
        self.note("no more faults".into());
        self.net.heal();
        self.fencing.set_profile(FenceProfile { slow: S, fails: 0 });
        for machine in 0..self.count() {
            let node = self.with(machine, |m| m.node);
            sim::spare(node);
            self.with(machine, |m| m.done = 0);
        }
        // Also those that are about to be cut off now, because the others had given them up.
        let mut before = Vec::new();
        loop {
            self.wait("all nodes work", |m| m.life == Life::Work && m.done > 3 && !sim::is_dead(m.node));
            let nodes: Vec<u32> = (0..self.count()).map(|m| self.with(m, |m| m.node)).collect();
            if nodes == before && nodes.iter().all(|n| !self.history.is_gone(*n)) {
                return;
            }
            before = nodes;
            sim::sleep(SETTLE);
        }
    }

    fn wait(&self, what: &str, ready: impl Fn(&Machine) -> bool) {
        let until = sim::now() + RECOVERY;
        while !self.machines.lock().expect("not held for long").iter().all(&ready) {
            if sim::now() >= until {
                sim::fail(&format!("waited too long until {what}\n{}", self.story()));
            }
            sim::sleep(500 * MS);
        }
    }

    /// The checks after the end. What is wrong, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (i, _) in self.objects().files.iter().enumerate() {
            self.explain(Object::File(i), vec![(0, 0)])?;
            self.explain(Object::Attribute(i), vec![(0, NOTHING)])?;
        }
        let dirs = if self.objects().joint { 1 } else { self.objects().dirs.len() };
        for i in 0..dirs {
            self.explain(Object::Dir(i), Vec::new())?;
        }
        let report = check(&*self.meta.open(DRIVER), &*self.data.open(DRIVER), &CheckOptions::default());
        match report {
            Ok(report) if report.is_clean() => Ok(()),
            Ok(report) => Err(format!("the offline check finds {:#?}", report.findings)),
            Err(e) => Err(format!("the offline check fails: {e}")),
        }
    }

    fn explain(&self, object: Object, first: linear::Value) -> Result<(), String> {
        match linear::check(&self.history, object, first) {
            Verdict::Fine => Ok(()),
            Verdict::TooHard => {
                println!("{object:?}: too many operations at the same time, not decided");
                Ok(())
            }
            Verdict::Wrong(story) => Err(format!("{object:?}: {story}")),
        }
    }
}
