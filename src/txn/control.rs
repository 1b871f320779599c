//! Who runs a commit and who waits for what.
//!
//! **Invariants.**
//! 1. At most one commit runs. The thread that starts it runs it until it is recorded or fails; opening the next transaction
//!    and repeating a failed step is left to the commit thread, so that a waiting `fsync` is not kept.
//! 2. A commit that was started after a caller arrived holds everything that was released before. So a caller waits for
//!    the first such commit, whoever runs it, unless nothing is dirty.
//! 3. `running` falls under the mutex together with the opening of the gate: a change made after the opening finds the
//!    commit over.
//! 4. Before a commit that a caller starts, it waits for other callers if there were some lately: not longer than half the
//!    time of the last commit, nor than [`GATHER_TIME`], and not at all if one thread alone asks for commits.

use std::time::Duration;

use super::Txn;
use crate::error::{Error, Result};
use crate::sync::{Arc, Condvar, Instant, Mutex, MutexGuard, Weak, atomic::Ordering::Relaxed, thread};

/// Longest wait for others to join a commit.
const GATHER_TIME: Duration = Duration::from_millis(5);

/// State shared with the commit thread, which does not keep the transaction alive.
pub(super) struct Control {
    state: Mutex<State>,
    /// Any change of the state.
    changed: Condvar,
    /// Somebody joined those who wait for the next commit.
    joined: Condvar,
    commit_interval: Duration,
    idle_interval: Duration,
}

struct State {
    opened: bool,
    /// Number of commits started, and of those recorded at the server.
    started: u64,
    recorded: u64,
    /// From the start of a commit until the next transaction is open.
    running: bool,
    /// The commit thread has to go on with the running commit: at once, or from then on.
    resume: Option<Instant>,
    failures: u64,
    last_error: Option<Error>,
    /// A commit was asked for without waiting.
    requested: bool,
    /// When the last transaction was opened.
    last_open: Instant,
    /// When the commit thread looks whether something is dirty.
    next_look: Instant,
    stopping: bool,
    down: bool,
    gather: Gather,
}

/// How many ask for commits at the same time, so that they can share one.
struct Gather {
    /// A caller waits for others before it starts a commit.
    running: bool,
    /// Who asked for a commit since the last one started, and how many did so for each of the two before.
    callers: u64,
    before: [u64; 2],
    /// The caller that started the last commit.
    leader: Option<thread::ThreadId>,
    /// When the last commit started, and how long it took until the next transaction was open.
    started: Instant,
    cost: Duration,
}

impl Gather {
    fn new() -> Gather {
        let (started, cost) = (Instant::now(), Duration::ZERO);
        Gather { running: false, callers: 0, before: [0; 2], leader: None, started, cost }
    }

    /// As many as that are expected to ask.
    fn expected(&self) -> u64 {
        self.before[0].max(self.before[1]).max(2)
    }

    /// How long this thread, which is about to start a commit, shall wait for others.
    fn time(&self) -> Duration {
        let me = thread::current().id();
        let alone = self.before[0].max(self.before[1]) < 2 && self.leader.is_none_or(|l| l == me);
        if alone || self.callers >= self.expected() { Duration::ZERO } else { GATHER_TIME.min(self.cost / 2) }
    }
}

impl Control {
    pub(super) fn new(commit_interval: Duration, idle_interval: Duration) -> Control {
        Control {
            commit_interval,
            idle_interval,
            state: Mutex::new(State {
                opened: false,
                started: 0,
                recorded: 0,
                running: false,
                resume: None,
                failures: 0,
                last_error: None,
                requested: false,
                last_open: Instant::now(),
                next_look: Instant::now() + commit_interval,
                stopping: false,
                down: false,
                gather: Gather::new(),
            }),
            changed: Condvar::new(),
            joined: Condvar::new(),
        }
    }

    /// How many tries of commits failed.
    #[cfg(test)]
    pub(super) fn failures(&self) -> u64 {
        self.state.lock().failures
    }

    /// Ends the commit thread, when it is through with what it does.
    pub(super) fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }
}

/// Outcome of running the steps of a commit as far as they go.
pub(super) enum Progress {
    /// Recorded; the next transaction is not open yet.
    Recorded,
    /// All done: the next transaction can be entered when the gate opens.
    Opened,
}

impl Txn {
    /// Gets the first transaction and starts the commit thread.
    pub(crate) fn open(self: &Arc<Self>) -> Result<()> {
        self.open_transaction(&mut self.run.lock())?;
        let mut state = self.control.state.lock();
        if state.down {
            return Err(Txn::shutdown_error());
        }
        state.opened = true;
        state.opened_now(self.control.commit_interval);
        drop(state);
        self.gate.open();
        let (control, txn) = (self.control.clone(), Arc::downgrade(self));
        let thread = thread::Builder::new()
            .name("scoutfs-commit".into())
            .spawn(move || commit_thread(&control, &txn))
            .map_err(|e| Error::Busy(format!("cannot start the commit thread: {e}")))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Returns when everything that was released before the call is durable and visible to other nodes. An error tells
    /// that a first try failed; nothing is lost and the commit goes on being tried.
    pub(crate) fn sync(&self) -> Result<()> {
        self.commit()
    }

    /// [`Txn::sync`] for changes made in transaction `seq`: returns at once if that is committed.
    pub(crate) fn sync_seq(&self, seq: u64) -> Result<()> {
        if seq <= self.durable_seq.load(Relaxed) { Ok(()) } else { self.commit() }
    }

    /// Makes the commit thread run a full commit, even if nothing is dirty, and returns at once (SYNC_LOG_TREES).
    pub(crate) fn start_commit(&self) {
        self.control.state.lock().requested = true;
        self.control.changed.notify_all();
    }

    /// Ends transaction `seq` by a full commit, whoever runs it, so that the next one can be entered.
    pub(super) fn commit_beyond(&self, seq: u64) -> Result<()> {
        let mut state = self.control.state.lock();
        let failures = state.failures;
        while !state.down && state.failures == failures && self.seq() == seq {
            if state.running {
                self.control.changed.wait(&mut state);
            } else {
                start(&mut state);
                drop(state);
                return self.drive(true);
            }
        }
        Ok(())
    }

    /// Waits for a commit that was started after now, if anything is dirty by then.
    fn commit(&self) -> Result<()> {
        let mut state = self.control.state.lock();
        if !state.opened {
            return Ok(());
        }
        let (needed, failures) = (state.started + 1, state.failures);
        let (mut joined, mut gathered) = (false, false);
        loop {
            if state.down {
                return Err(Txn::shutdown_error());
            }
            if state.recorded >= needed {
                return Ok(());
            }
            if state.failures != failures {
                return Err(state.last_error.clone().unwrap_or_else(Txn::shutdown_error));
            }
            // Until the running commit is recorded it is not known what it leaves; mostly nothing.
            let recorded = state.recorded == state.started;
            if recorded && !self.is_dirty() {
                if gathered {
                    // They wait for this thread.
                    self.control.changed.notify_all();
                }
                return Ok(());
            }
            if !std::mem::replace(&mut joined, true) {
                state.gather.callers += 1;
                self.control.joined.notify_all();
            }
            if state.running || state.gather.running {
                self.control.changed.wait(&mut state);
            } else if !std::mem::replace(&mut gathered, true) {
                self.gather(&mut state);
            } else {
                state.gather.leader = Some(thread::current().id());
                start(&mut state);
                drop(state);
                return self.drive(false);
            }
        }
    }

    /// Waits for others who want a commit too. Whoever arrives meanwhile leaves the start to this thread.
    fn gather(&self, state: &mut MutexGuard<'_, State>) {
        let until = Instant::now() + state.gather.time();
        state.gather.running = true;
        while !state.running && !state.down && state.gather.callers < state.gather.expected() && Instant::now() < until
        {
            let _ = self.control.joined.wait_until(state, until);
        }
        state.gather.running = false;
    }

    /// Runs the steps of the running commit from where it is, and says how it went to all that wait. `to_the_end` goes on
    /// with opening the next transaction; otherwise that is left to the commit thread.
    fn drive(&self, to_the_end: bool) -> Result<()> {
        let mut run = self.run.lock();
        let mut result = if run.is_recorded() { Ok(Progress::Recorded) } else { self.record(&mut run) };
        if matches!(result, Ok(Progress::Recorded)) {
            let mut state = self.control.state.lock();
            if state.recorded < state.started {
                state.recorded = state.started;
                self.control.changed.notify_all();
            }
            if !to_the_end || state.stopping {
                state.resume = Some(Instant::now());
                return Ok(());
            }
            drop(state);
            result = self.open_transaction(&mut run).map(|()| Progress::Opened);
        }
        let mut state = self.control.state.lock();
        self.control.changed.notify_all();
        match result {
            Ok(_) => {
                run.reset();
                state.running = false;
                state.opened_now(self.control.commit_interval);
                if !state.down {
                    self.gate.open();
                }
                Ok(())
            }
            Err(e) => {
                tracing::warn!(error = %e, "commit failed, it will be tried again");
                state.failures += 1;
                state.last_error = Some(e.clone());
                state.resume = Some(Instant::now() + self.config.retry);
                Err(e)
            }
        }
    }

    /// Orderly end: the thread is joined, a last commit, later holds fail. If the commit fails, another call goes on with
    /// it; the alternative is [`Txn::force_down`].
    pub(crate) fn close(&self) -> Result<()> {
        self.control.stop();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        let mut state = self.control.state.lock();
        while state.running && state.resume.is_none() && !state.down {
            self.control.changed.wait(&mut state);
        }
        if !state.down && state.opened && (state.running || self.is_dirty()) {
            if !state.running {
                start(&mut state);
            }
            state.resume = None;
            drop(state);
            self.drive(false)?;
            state = self.control.state.lock();
        }
        let down = state.down;
        drop(state);
        self.gate.down();
        if down { Err(Txn::shutdown_error()) } else { Ok(()) }
    }

    /// Forced unmount: everything that waits or comes later fails with `Shutdown`; dirty state is dropped. Requests that the
    /// commit waits for are ended by the connection.
    pub(crate) fn force_down(&self) {
        self.control.state.lock().down = true;
        self.control.changed.notify_all();
        self.gate.down();
    }

    /// Was the mount forced down?
    pub(super) fn is_down(&self) -> bool {
        self.control.state.lock().down
    }
}

fn start(state: &mut MutexGuard<'_, State>) {
    state.running = true;
    state.started += 1;
    let gather = &mut state.gather;
    gather.before = [std::mem::take(&mut gather.callers), gather.before[0]];
    gather.started = Instant::now();
}

impl State {
    /// A transaction was opened.
    fn opened_now(&mut self, commit_interval: Duration) {
        self.last_open = Instant::now();
        self.next_look = self.last_open + commit_interval;
        self.gather.cost = self.last_open.saturating_duration_since(self.gather.started);
    }
}

/// What the commit thread has to do next.
enum Work {
    /// Commit, in any case.
    Commit,
    /// Commit if something is dirty.
    Look,
    /// Go on with the running commit.
    Resume,
    Stop,
}

impl Control {
    /// Sleeps until there is something to do.
    fn next_work(&self) -> Work {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if state.stopping || state.down {
                return Work::Stop;
            }
            let until = if state.running {
                match state.resume {
                    Some(at) if at <= now => {
                        state.resume = None;
                        return Work::Resume;
                    }
                    // Whoever runs the commit changes the state when it is through.
                    at => at.unwrap_or(now + self.idle_interval),
                }
            } else {
                let late = state.last_open + self.idle_interval;
                if state.requested || now >= late {
                    return Work::Commit;
                }
                if now >= state.next_look {
                    // Changes do not wake this thread, so it looks now and then while all is clean.
                    state.next_look = now + self.commit_interval / 4;
                    return Work::Look;
                }
                state.next_look.min(late)
            };
            let _ = self.changed.wait_until(&mut state, until);
        }
    }
}

fn commit_thread(control: &Control, txn: &Weak<Txn>) {
    loop {
        let work = control.next_work();
        // The transaction may go away while this thread sleeps.
        let Some(txn) = txn.upgrade() else { return };
        match work {
            Work::Stop => return,
            Work::Look if !txn.is_dirty() => {}
            Work::Resume => drop(txn.drive(true)),
            Work::Look | Work::Commit => {
                let mut state = control.state.lock();
                if !state.running {
                    state.requested = false;
                    start(&mut state);
                    drop(state);
                    drop(txn.drive(true));
                }
            }
        }
    }
}
