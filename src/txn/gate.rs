//! The gate between holders of the open transaction and its commit.
//!
//! **Problem.** Every operation enters and leaves; a commit must shut out new ones and wait for those inside. One counter
//! for all would be a cache line that all threads fight for.
//!
//! **Idea.** Threads are spread over padded slots. A slot is one word: a count of holders, and a bit that says "closed".
//! Entering adds one and looks at the bit in the same atomic step, so no ordering between different words matters.
//!
//! **Invariants.**
//! 1. Between the return of [`Gate::close`] and [`Gate::open`] nobody is inside.
//! 2. What holders wrote is visible after `close`; what was written before `open` is visible inside.
//! 3. Nobody sleeps through an opening, the last leave or [`Gate::down`].
//! 4. Whoever waits when the gate opens is inside from then on: a gate that is closed again at once, faster than a thread wakes up,
//!    shuts nobody out for ever.

use crate::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire};
use crate::sync::{Condvar, Mutex};

const CLOSED: u64 = 1 << 63;

/// A word on a cache line of its own (pairs of lines are fetched together).
#[repr(align(128))]
struct Slot(AtomicU64);

struct State {
    closed: bool,
    down: bool,
    /// Who waits, by slot, and how often the gate has been opened.
    waiting: Box<[u64]>,
    openings: u64,
}

/// See the module.
pub(super) struct Gate {
    slots: Box<[Slot]>,
    state: Mutex<State>,
    opened: Condvar,
    left: Condvar,
}

impl Gate {
    /// A closed gate with nobody inside.
    pub(super) fn new(slots: usize) -> Gate {
        Gate {
            slots: (0..slots).map(|_| Slot(AtomicU64::new(CLOSED))).collect(),
            state: Mutex::new(State { closed: true, down: false, waiting: vec![0; slots].into(), openings: 0 }),
            opened: Condvar::new(),
            left: Condvar::new(),
        }
    }

    /// Enters by a slot (any number); waits while the gate is closed. Returns the slot to leave by, or `None` if the gate
    /// is down.
    #[inline]
    pub(super) fn enter(&self, number: usize) -> Option<usize> {
        let slot = number % self.slots.len();
        if self.slots[slot].0.fetch_add(1, AcqRel) & CLOSED == 0 {
            return Some(slot);
        }
        self.wait_to_enter(slot)
    }

    #[cold]
    fn wait_to_enter(&self, slot: usize) -> Option<usize> {
        loop {
            self.leave(slot);
            let mut state = self.state.lock();
            if state.closed && !state.down {
                let before = state.openings;
                state.waiting[slot] += 1;
                while state.openings == before && !state.down {
                    self.opened.wait(&mut state);
                }
                if state.openings != before {
                    // Counted by the opening.
                    return Some(slot);
                }
            }
            if state.down {
                return None;
            }
            drop(state);
            if self.slots[slot].0.fetch_add(1, AcqRel) & CLOSED == 0 {
                return Some(slot);
            }
        }
    }

    /// Leaves.
    #[inline]
    pub(super) fn leave(&self, slot: usize) {
        if self.slots[slot].0.fetch_sub(1, AcqRel) == CLOSED | 1 {
            // The closer looks at the slots under this lock, so it has seen the word or hears this.
            drop(self.state.lock());
            self.left.notify_all();
        }
    }

    /// Shuts out newcomers and waits until nobody is inside. One thread at a time; closing a closed gate does nothing.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if !state.closed {
            state.closed = true;
            for slot in &self.slots {
                slot.0.fetch_or(CLOSED, AcqRel);
            }
        }
        while self.slots.iter().any(|s| s.0.load(Acquire) != CLOSED) {
            self.left.wait(&mut state);
        }
    }

    /// Lets everybody in again.
    pub(super) fn open(&self) {
        let mut state = self.state.lock();
        state.closed = false;
        state.openings += 1;
        for (slot, waiting) in self.slots.iter().zip(state.waiting.iter_mut()) {
            slot.0.fetch_add(std::mem::take(waiting), AcqRel);
            slot.0.fetch_and(!CLOSED, AcqRel);
        }
        self.opened.notify_all();
    }

    /// Whoever waits now or has to wait later is turned away.
    pub(super) fn down(&self) {
        let mut state = self.state.lock();
        state.down = true;
        state.closed = true;
        for slot in &self.slots {
            slot.0.fetch_or(CLOSED, AcqRel);
        }
        self.opened.notify_all();
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::sync::{Arc, thread};
    use loom::cell::UnsafeCell;

    struct Shared {
        gate: Gate,
        /// Changed inside by holders of slot i, read and reset by the closer: loom reports a race if invariant 1 or 2 fails.
        cells: [UnsafeCell<u32>; 2],
    }
    // SAFETY: exactly what the model checks.
    unsafe impl Sync for Shared {}
    unsafe impl Send for Shared {}

    fn holder(s: &Shared, slot: usize) -> bool {
        let Some(at) = s.gate.enter(slot) else { return false };
        s.cells[slot].with_mut(|c| unsafe { *c += 1 });
        s.gate.leave(at);
        true
    }

    /// One commit against so many holders on slots of their own.
    fn commit_against(holders: usize, preemptions: Option<usize>) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = preemptions;
        model.check(move || {
            let s = Arc::new(Shared { gate: Gate::new(holders), cells: Default::default() });
            s.gate.open();
            let threads: Vec<_> = (0..holders)
                .map(|slot| {
                    let s = s.clone();
                    thread::spawn(move || assert!(holder(&s, slot)))
                })
                .collect();
            s.gate.close();
            let seen: u32 = s.cells.iter().map(|c| c.with_mut(|c| unsafe { std::mem::take(&mut *c) })).sum();
            s.gate.open();
            threads.into_iter().for_each(|t| t.join().unwrap());
            let rest: u32 = s.cells.iter().map(|c| c.with(|c| unsafe { *c })).sum();
            assert_eq!((seen + rest) as usize, holders);
        });
    }

    #[test]
    fn a_commit_is_alone_inside_and_sees_everything() {
        commit_against(1, None);
    }

    #[test]
    fn a_commit_waits_for_all_slots() {
        commit_against(2, Some(2));
    }

    /// The next commit began before those who had waited for the end of the last one were awake, each time: they never got in.
    #[test]
    fn who_waits_at_an_opening_is_inside_before_the_next_commit() {
        loom::model(|| {
            let s = Arc::new(Shared { gate: Gate::new(1), cells: Default::default() });
            let t = {
                let s = s.clone();
                thread::spawn(move || assert!(holder(&s, 0)))
            };
            while s.gate.state.lock().waiting[0] == 0 {
                thread::yield_now();
            }
            s.gate.open();
            s.gate.close();
            s.cells[0].with(|c| assert_eq!(unsafe { *c }, 1));
            s.gate.open();
            t.join().unwrap();
        });
    }

    #[test]
    fn waiters_are_turned_away_when_the_gate_goes_down() {
        loom::model(|| {
            let s = Arc::new(Shared { gate: Gate::new(1), cells: Default::default() });
            let t = {
                let s = s.clone();
                thread::spawn(move || assert!(!holder(&s, 0)))
            };
            s.gate.down();
            t.join().unwrap();
        });
    }
}
