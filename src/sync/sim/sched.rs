//! The scheduler of the simulation: one baton, one clock, one source of random numbers.
//!
//! **Problem.** The engine's shells are threads that block. To replay a run exactly, the order in which they run, the time they
//! see and the random numbers they draw must follow from a seed.
//!
//! **Idea.** Every simulated thread is a thread of the system, and exactly one of them, the holder of the baton, runs. It gives
//! the baton away where it would block, where it ends, and now and then where it takes or wakes something ([`point`]); who gets
//! it is drawn from the seed. Time stands still while anybody can run, and otherwise jumps to the next timer, so an hour in
//! which little happens costs little. Each thread belongs to a node, inherited by the threads it starts. The threads of a crashed
//! node never get the baton again: whatever they were doing stays half done, as it does when a machine stops. Their memory is
//! not given back, so a process simulates one seed and ends.
//!
//! Invariants
//! 1. A thread without the baton is parked in [`wait_for_baton`] (or has not begun, or is past its end).
//! 2. Between the check of a condition and [`block`] no other thread runs, so that no wake-up is lost.
//! 3. Nothing here depends on addresses: they are only looked up, never ordered.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex as RealMutex, MutexGuard as RealGuard, OnceLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Steps without any progress of the time after which the run is called a livelock.
const LIVELOCK: u64 = 30_000_000;
/// The node of threads that no fault touches: the driver of the run.
pub const DRIVER: u32 = 0;

/// Number of a simulated thread.
pub(super) type Tid = usize;
type CrashHook = Arc<dyn Fn(u32) + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Runnable,
    Running,
    Blocked,
    /// Could run, but its node is paused.
    Paused,
    Ended,
    Dead,
}

/// How a thread gets the baton.
struct Parker {
    baton: AtomicBool,
    thread: OnceLock<std::thread::Thread>,
}

struct Task {
    name: String,
    node: u32,
    state: State,
    key: usize,
    what: &'static str,
    since: Duration,
    timer: Option<(Duration, u64)>,
    timed_out: bool,
    parker: Arc<Parker>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Task(Tid),
    Resume(u32),
}

#[derive(Default)]
struct NodeState {
    dead: bool,
    paused: bool,
    /// Times that its threads may still get the baton before it crashes.
    doom: Option<u64>,
}

struct World {
    now: Duration,
    rng: StdRng,
    tasks: Vec<Task>,
    runnable: Vec<Tid>,
    timers: BTreeSet<(Duration, u64, Timer)>,
    timer_seq: u64,
    waiters: std::collections::HashMap<usize, Vec<Tid>>,
    nodes: Vec<NodeState>,
    hooks: Vec<CrashHook>,
    crashed: Vec<u32>,
    steps: u64,
    steps_at_time: u64,
    trace: u64,
    preempt_mean: u32,
    stall_one_in: u32,
}

static WORLD: OnceLock<RealMutex<World>> = OnceLock::new();
/// Points until the next forced change of threads.
static UNTIL_PREEMPT: AtomicU32 = AtomicU32::new(u32::MAX);

thread_local! {
    static ME: Cell<Option<Tid>> = const { Cell::new(None) };
}

fn world() -> RealGuard<'static, World> {
    let world = WORLD.get().expect("a simulation runs");
    world.lock().expect("nothing panics inside of the scheduler")
}

/// The calling thread, if it is part of the simulation.
pub(super) fn me() -> Option<Tid> {
    ME.try_with(Cell::get).unwrap_or(None)
}

/// Begins the simulation of this process, with the calling thread as its first one.
///
/// # Panics
/// If one has begun already.
pub fn begin(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let preempt_mean = [4, 16, 64, 256, 2048][rng.random_range(0..5)];
    let stall_one_in = [0, 0, 200, 2000][rng.random_range(0..4)];
    let parker = Arc::new(Parker { baton: AtomicBool::new(false), thread: OnceLock::new() });
    let _ = parker.thread.set(std::thread::current());
    let driver = Task {
        name: "driver".into(),
        node: DRIVER,
        state: State::Running,
        key: 0,
        what: "",
        since: Duration::ZERO,
        timer: None,
        timed_out: false,
        parker,
    };
    let fresh = World {
        // Not zero, so that code may subtract from the present time.
        now: Duration::from_secs(1_000_000),
        rng,
        tasks: vec![driver],
        runnable: Vec::new(),
        timers: BTreeSet::new(),
        timer_seq: 0,
        waiters: std::collections::HashMap::new(),
        nodes: Vec::new(),
        hooks: Vec::new(),
        crashed: Vec::new(),
        steps: 0,
        steps_at_time: 0,
        trace: seed,
        preempt_mean,
        stall_one_in,
    };
    assert!(WORLD.set(RealMutex::new(fresh)).is_ok(), "a process simulates one seed");
    ME.with(|m| m.set(Some(0)));
    UNTIL_PREEMPT.store(preempt_mean, Ordering::Relaxed);
}

impl World {
    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }

    fn node(&mut self, node: u32) -> &mut NodeState {
        let at = node as usize;
        if self.nodes.len() <= at {
            self.nodes.resize_with(at + 1, NodeState::default);
        }
        &mut self.nodes[at]
    }

    fn set_timer(&mut self, at: Duration, timer: Timer) -> u64 {
        self.timer_seq += 1;
        self.timers.insert((at, self.timer_seq, timer));
        self.timer_seq
    }

    fn forget_waiter(&mut self, tid: Tid) {
        let key = self.tasks[tid].key;
        if let Some(list) = self.waiters.get_mut(&key) {
            list.retain(|t| *t != tid);
            if list.is_empty() {
                self.waiters.remove(&key);
            }
        }
        if let Some((at, seq)) = self.tasks[tid].timer.take() {
            self.timers.remove(&(at, seq, Timer::Task(tid)));
        }
    }

    fn wake(&mut self, tid: Tid, timed_out: bool) {
        self.forget_waiter(tid);
        let task = &mut self.tasks[tid];
        debug_assert_eq!(task.state, State::Blocked);
        task.timed_out = timed_out;
        task.state = State::Runnable;
        self.runnable.push(tid);
    }

    /// Whoever runs next. The caller has put itself where it belongs.
    fn next(&mut self) -> Tid {
        loop {
            self.steps += 1;
            if self.steps - self.steps_at_time > LIVELOCK {
                fail_now(self, "livelock: threads run and the time does not advance");
            }
            if self.runnable.is_empty() {
                self.advance();
                continue;
            }
            let at = self.rng.random_range(0..self.runnable.len());
            let tid = self.runnable.swap_remove(at);
            let node = self.tasks[tid].node;
            let state = self.node(node);
            if state.paused {
                self.tasks[tid].state = State::Paused;
                continue;
            }
            if let Some(left) = &mut state.doom {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.runnable.push(tid);
                    self.kill(node);
                    continue;
                }
            }
            self.tasks[tid].state = State::Running;
            self.note(tid as u64);
            return tid;
        }
    }

    fn advance(&mut self) {
        let Some(&(at, ..)) = self.timers.first() else { fail_now(self, "deadlock: nobody can run") };
        self.now = self.now.max(at);
        self.steps_at_time = self.steps;
        self.note(at.as_nanos() as u64);
        while let Some(&(t, seq, timer)) = self.timers.first()
            && t <= at
        {
            self.timers.remove(&(t, seq, timer));
            match timer {
                Timer::Task(tid) => {
                    self.tasks[tid].timer = None;
                    self.wake(tid, true);
                }
                Timer::Resume(node) => self.resume(node),
            }
        }
    }

    fn resume(&mut self, node: u32) {
        self.node(node).paused = false;
        for tid in 0..self.tasks.len() {
            if self.tasks[tid].node == node && self.tasks[tid].state == State::Paused {
                self.tasks[tid].state = State::Runnable;
                self.runnable.push(tid);
            }
        }
    }

    fn kill(&mut self, node: u32) {
        let state = self.node(node);
        state.doom = None;
        if std::mem::replace(&mut state.dead, true) {
            return;
        }
        for tid in 0..self.tasks.len() {
            if self.tasks[tid].node != node || self.tasks[tid].state == State::Ended {
                continue;
            }
            self.forget_waiter(tid);
            self.tasks[tid].state = State::Dead;
        }
        let tasks = &self.tasks;
        self.runnable.retain(|t| tasks[*t].state == State::Runnable);
        self.crashed.push(node);
        self.note(u64::from(node) << 32);
    }
}

/// Runs what hangs on crashes; the caller has the baton and not the world.
fn after_crashes() {
    loop {
        let (crashed, hooks) = {
            let mut w = world();
            (std::mem::take(&mut w.crashed), w.hooks.clone())
        };
        if crashed.is_empty() {
            return;
        }
        for node in crashed {
            for hook in &hooks {
                hook(node);
            }
        }
    }
}

fn hand_over(mut w: RealGuard<'static, World>, own: Option<Tid>) {
    let next = w.next();
    if !w.crashed.is_empty() {
        // The hooks run on this thread, which still has the baton.
        drop(w);
        after_crashes();
        w = world();
    }
    if own == Some(next) {
        return;
    }
    let parker = w.tasks[next].parker.clone();
    let mine = own.map(|tid| w.tasks[tid].parker.clone());
    drop(w);
    parker.baton.store(true, Ordering::Release);
    if let Some(thread) = parker.thread.get() {
        thread.unpark();
    }
    if let Some(mine) = mine {
        wait_for_baton(&mine);
    }
}

fn wait_for_baton(parker: &Parker) {
    while !parker.baton.swap(false, Ordering::Acquire) {
        std::thread::park();
    }
}

/// The calling thread could do without the baton for a moment.
#[inline]
pub(super) fn point() {
    if UNTIL_PREEMPT.fetch_sub(1, Ordering::Relaxed) <= 1 {
        preempt();
    }
}

#[cold]
fn preempt() {
    let Some(tid) = me() else { return };
    let mut w = world();
    let mean = w.preempt_mean;
    let next = w.rng.random_range(1..=2 * mean);
    UNTIL_PREEMPT.store(next, Ordering::Relaxed);
    let stall = w.stall_one_in > 0 && w.tasks[tid].node != DRIVER && {
        let one_in = w.stall_one_in;
        w.rng.random_ratio(1, one_in)
    };
    if stall {
        let time = Duration::from_micros(w.rng.random_range(1..60_000));
        drop(w);
        block(usize::MAX, "stalled", Some(now() + time));
        return;
    }
    yield_in(w, tid);
}

fn yield_in(mut w: RealGuard<'static, World>, tid: Tid) {
    w.tasks[tid].state = State::Runnable;
    w.tasks[tid].what = "runs";
    w.runnable.push(tid);
    hand_over(w, Some(tid));
}

/// Lets somebody else run.
pub(super) fn yield_now() {
    if let Some(tid) = me() {
        yield_in(world(), tid);
    }
}

/// Waits until `key` is woken, at most until `deadline`. True: the time is over.
pub fn block(key: usize, what: &'static str, deadline: Option<Duration>) -> bool {
    let tid = me().expect("only simulated threads block");
    let mut w = world();
    if deadline.is_some_and(|at| at <= w.now) {
        yield_in(w, tid);
        return true;
    }
    let timer = deadline.map(|at| (at, w.set_timer(at, Timer::Task(tid))));
    let now = w.now;
    let task = &mut w.tasks[tid];
    task.state = State::Blocked;
    (task.key, task.what, task.since, task.timer) = (key, what, now, timer);
    w.waiters.entry(key).or_default().push(tid);
    hand_over(w, Some(tid));
    world().tasks[tid].timed_out
}

/// Wakes everybody who waits at `key`.
pub fn wake_all(key: usize) {
    let mut w = world();
    while let Some(&tid) = w.waiters.get(&key).and_then(|l| l.first()) {
        w.wake(tid, false);
    }
}

/// Wakes one of those who wait at `key`.
pub(super) fn wake_one(key: usize) -> bool {
    let mut w = world();
    let Some(n) = w.waiters.get(&key).map(Vec::len) else { return false };
    let at = w.rng.random_range(0..n);
    let tid = w.waiters[&key][at];
    w.wake(tid, false);
    true
}

/// The simulated time since an arbitrary origin.
pub fn now() -> Duration {
    world().now
}

/// The next random number.
pub fn random_u64() -> u64 {
    world().rng.random()
}

/// Lets the calling thread sleep.
pub fn sleep(time: Duration) {
    block(usize::MAX, "sleeps", Some(now() + time));
}

/// The node of the calling thread.
pub fn node() -> u32 {
    me().map_or(DRIVER, |tid| world().tasks[tid].node)
}

/// The name of the calling thread.
pub fn thread_name() -> String {
    me().map_or_else(|| "outside".into(), |tid| world().tasks[tid].name.clone())
}

/// Starts a thread of `node`.
pub(super) fn spawn(node: u32, name: String, run: Box<dyn FnOnce() + Send>) -> std::io::Result<Tid> {
    let parker = Arc::new(Parker { baton: AtomicBool::new(false), thread: OnceLock::new() });
    let mine = parker.clone();
    let tid = {
        let mut w = world();
        let since = w.now;
        let name = name.clone();
        let state = State::Runnable;
        let task = Task { name, node, state, key: 0, what: "begins", since, timer: None, timed_out: false, parker };
        w.tasks.push(task);
        w.tasks.len() - 1
    };
    let body = move || {
        let _ = mine.thread.set(std::thread::current());
        ME.with(|m| m.set(Some(tid)));
        wait_for_baton(&mine);
        run();
        let mut w = world();
        w.tasks[tid].state = State::Ended;
        ME.with(|m| m.set(None));
        hand_over(w, None);
    };
    let spawned = std::thread::Builder::new().name(format!("{node}/{name}")).stack_size(1 << 20).spawn(body)?;
    let mut w = world();
    let _ = w.tasks[tid].parker.thread.set(spawned.thread().clone());
    w.runnable.push(tid);
    drop(w);
    point();
    Ok(tid)
}

/// Calls `hook` with each node that crashes, before anybody else runs. It must not block.
pub fn on_crash(hook: impl Fn(u32) + Send + Sync + 'static) {
    world().hooks.push(Arc::new(hook));
}

/// The threads of `node` never run again.
///
/// # Panics
/// If it is the node of the calling thread.
pub fn crash(node: u32) {
    assert_ne!(self::node(), node, "a node does not crash itself");
    world().kill(node);
    after_crashes();
}

/// `node` crashes after its threads have got the baton `steps` more times.
pub fn crash_after(node: u32, steps: u64) {
    world().node(node).doom = Some(steps.max(1));
}

/// Takes back [`crash_after`]; false if the node has crashed.
pub fn spare(node: u32) -> bool {
    let mut w = world();
    w.node(node).doom = None;
    !w.node(node).dead
}

/// Has the node crashed?
pub fn is_dead(node: u32) -> bool {
    world().node(node).dead
}

/// The threads of `node` do not run for `time`.
pub fn pause(node: u32, time: Duration) {
    let mut w = world();
    if w.node(node).dead || std::mem::replace(&mut w.node(node).paused, true) {
        return;
    }
    let at = w.now + time;
    w.set_timer(at, Timer::Resume(node));
}

/// Adds to the trace, whose hash two runs of one seed have in common.
pub fn note(what: u64) {
    world().note(what);
}

/// Hash of all decisions so far, and their number.
pub fn trace() -> (u64, u64) {
    let w = world();
    (w.trace, w.steps)
}

/// What every thread that is alive does.
pub fn describe() -> String {
    describe_in(&world())
}

fn describe_in(w: &World) -> String {
    let mut out = String::new();
    for (tid, t) in w.tasks.iter().enumerate().filter(|(_, t)| !matches!(t.state, State::Ended | State::Dead)) {
        let since = w.now.saturating_sub(t.since);
        out += &format!("  {tid} node {} {}: {:?}, {} for {since:?}\n", t.node, t.name, t.state, t.what);
    }
    out
}

fn fail_now(w: &World, why: &str) -> ! {
    eprintln!("{why}, at {:?}\n{}", w.now, describe_in(w));
    if std::env::var_os("SIM_HOLD").is_some() {
        eprintln!("held for a debugger: pid {}", std::process::id());
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    std::process::exit(3);
}

/// Ends the process because the run has failed; `why` is for people.
pub fn fail(why: &str) -> ! {
    fail_now(&world(), why)
}
