//! One client driven by hand: the same machines as in the concurrent shell, without threads, so that a test decides about
//! every single step.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::error::{Error, Result};
use crate::lock::machine::{Acquired, Hot, Machine, Manner, Out, Outs};
use crate::lock::wire::{check, net_lock};
use crate::sync::atomic::{AtomicU64, Ordering};

/// What a node did that somebody else can see.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Request { name: LockName, old: Mode, new: Mode },
    SendFailed,
    Response { epoch: u64, id: u64, lock: NetLock },
    Acquired { task: u32, name: LockName, mode: Mode },
    Failed { task: u32, error: Error },
}

/// One invalidation that was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub(super) name: LockName,
    pub(super) from: Mode,
    pub(super) to: Mode,
    /// Front ends are to give back what they were lent.
    pub(super) recall: bool,
}

pub(super) struct NodeLock {
    pub(super) hot: Hot,
    pub(super) machine: Machine<(u32, Mode)>,
    /// Rises with each release that leaves the lock idle.
    pub(super) idle_since: u64,
}

#[derive(Default)]
pub(super) struct Node {
    pub(super) locks: BTreeMap<LockName, NodeLock>,
    gens: AtomicU64,
    pub(super) epoch: u64,
    pub(super) events: Vec<Event>,
    pub(super) started: VecDeque<Started>,
    /// Sends that will fail.
    pub(super) fail_sends: u32,
    pub(super) shrinking: i32,
    clock: u64,
}

impl Node {
    pub(super) fn eff(&self, name: LockName) -> Mode {
        self.locks.get(&name).map_or(Mode::Null, |l| l.hot.word.load().mode())
    }

    pub(super) fn held(&self, name: LockName) -> Mode {
        self.locks.get(&name).map_or(Mode::Null, |l| l.machine.held())
    }

    pub(super) fn generation(&self, name: LockName) -> u64 {
        self.locks.get(&name).map_or(0, |l| l.hot.refresh_gen.load(Ordering::Relaxed))
    }

    pub(super) fn write_seq(&self, name: LockName) -> u64 {
        self.locks.get(&name).map_or(0, |l| l.hot.write_seq.load(Ordering::Relaxed))
    }

    fn input<R>(
        &mut self,
        name: LockName,
        f: impl FnOnce(&mut NodeLock, &AtomicU64, &mut Outs<(u32, Mode)>) -> R,
    ) -> Option<R> {
        let mut out = Outs::new();
        let r = f(self.locks.get_mut(&name)?, &self.gens, &mut out);
        self.run(name, out);
        Some(r)
    }

    fn run(&mut self, name: LockName, out: Outs<(u32, Mode)>) {
        let mut todo: VecDeque<_> = out.into_iter().collect();
        while let Some(o) = todo.pop_front() {
            match o {
                Out::Request { .. } if self.fail_sends > 0 => {
                    self.fail_sends -= 1;
                    self.events.push(Event::SendFailed);
                    let l = self.locks.get_mut(&name).expect("the lock is there while it asks");
                    let mut more = Outs::new();
                    l.machine.send_failed(&l.hot, Error::Posix(crate::error::Errno::ENOLINK), &mut more);
                    todo.extend(more);
                }
                Out::Request { old, new } => self.events.push(Event::Request { name, old, new }),
                Out::Response { epoch, id, old, new } if epoch == self.epoch => {
                    self.events.push(Event::Response { epoch, id, lock: net_lock(name, old, new, 0) });
                }
                Out::Response { .. } => {}
                Out::Work { from, to } => self.started.push_back(Started { name, from, to, recall: false }),
                Out::Recall { from, to } => self.started.push_back(Started { name, from, to, recall: true }),
                Out::Wake((task, mode), Ok(())) => self.events.push(Event::Acquired { task, name, mode }),
                Out::Wake((task, _), Err(error)) => self.events.push(Event::Failed { task, error }),
                Out::ShrinkDone => self.shrinking -= 1,
                Out::Free => {
                    let l = &self.locks[&name];
                    if l.machine.idle(&l.hot) && l.hot.word.kill() {
                        self.locks.remove(&name);
                    }
                }
            }
        }
    }

    /// True if the task got the lock at once; otherwise an event tells later.
    pub(super) fn acquire(&mut self, task: u32, name: LockName, mode: Mode, manner: Manner) -> Result<bool> {
        let new = || NodeLock { hot: Hot::new(), machine: Machine::new(), idle_since: 0 };
        if !manner.block && !self.locks.contains_key(&name) {
            return crate::error::fail(crate::error::Errno::EAGAIN);
        }
        let l = self.locks.entry(name).or_insert_with(new);
        if manner.loan.is_none() && l.hot.word.try_acquire(mode) {
            return Ok(true);
        }
        let mut out = Outs::new();
        let acquired = l.machine.acquire(&l.hot, mode, manner, || (task, mode), &mut out);
        self.run(name, out);
        match acquired {
            Acquired::Yes => Ok(true),
            Acquired::Wait => Ok(false),
            Acquired::No(e) => Err(e.into()),
        }
    }

    pub(super) fn release(&mut self, name: LockName, mode: Mode) {
        self.clock += 1;
        let now = self.clock;
        let l = self.locks.get_mut(&name).expect("a used lock is there");
        l.idle_since = now;
        if l.hot.word.try_release(mode) == crate::lock::word::Release::Slow {
            self.input(name, |l, gens, out| l.machine.release(&l.hot, mode, gens, out));
        }
    }

    pub(super) fn grant(&mut self, msg: &NetLock) -> Result<()> {
        let c = check(msg)?;
        self.input(c.name, |l, gens, out| l.machine.grant(&l.hot, c.new, c.write_seq, gens, out))
            .unwrap_or_else(|| crate::error::fail(crate::error::Errno::EINVAL))
    }

    pub(super) fn invalidate(&mut self, epoch: u64, id: u64, msg: &NetLock) -> Result<()> {
        let c = check(msg)?;
        match self.input(c.name, |l, gens, out| l.machine.invalidate(&l.hot, epoch, id, (c.old, c.new), gens, out)) {
            Some(r) => r,
            None => {
                self.events.push(Event::Response { epoch, id, lock: net_lock(c.name, c.old, Mode::Null, 0) });
                Ok(())
            }
        }
    }

    /// A task that waits for a loan will not wait any longer; true if it got it.
    pub(super) fn insist(&mut self, task: u32, name: LockName) -> bool {
        self.input(name, |l, _, _| l.machine.insist(&l.hot, |w| w.0 == task)) == Some(true)
    }

    pub(super) fn recall_done(&mut self, name: LockName) {
        self.input(name, |l, gens, out| l.machine.recall_done(&l.hot, gens, out)).expect("a lock with loans is there");
    }

    pub(super) fn work_done(&mut self, name: LockName) {
        self.input(name, |l, gens, out| l.machine.work_done(&l.hot, gens, out)).expect("a lock in work is there");
    }

    pub(super) fn new_epoch(&mut self, term: u64) {
        self.epoch = term;
        for name in self.locks.keys().copied().collect::<Vec<_>>() {
            self.input(name, |l, _, out| l.machine.new_epoch(&l.hot, out));
        }
    }

    pub(super) fn give_up(&mut self, name: LockName) -> bool {
        let sent = self.input(name, |l, _, out| l.machine.give_up(&l.hot, out)) == Some(true);
        self.shrinking += i32::from(sent);
        sent
    }

    pub(super) fn recover(&self, from: &crate::format::Key, max: usize) -> Vec<NetLock> {
        let held = |(name, l): (&LockName, &NodeLock)| {
            let held = l.machine.held();
            (name.start() >= *from && held != Mode::Null)
                .then(|| net_lock(*name, held, held, l.hot.write_seq.load(Ordering::Relaxed)))
        };
        self.locks.iter().filter_map(held).take(max).collect()
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}
