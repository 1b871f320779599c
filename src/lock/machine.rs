//! The protocol state of one lock at a client: a plain state machine (`spec/04 §7`).
//!
//! Problem: grants, invalidations, fail-overs, local users and give-ups of one lock interleave in every way, and the holes
//! of the original (W-1 to W-4) all come from doing two of these at once. Here every input is one call under the lock's
//! mutex, and what has to be done outside comes back as a list of [`Out`] values.
//!
//! 1. `effective` (in the word) is what local tasks may use; `held` is the highest mode the server may still rely on.
//!    Outside of an invalidation they are equal; during one `effective ≤ held` (S-2, S-17).
//! 2. Grants and invalidations pass through one queue in arrival order; while an invalidation is in progress nothing else
//!    is applied (W-3).
//! 3. `held` is lowered before the response leaves (W-1), and the response tells the true mode, which an invalidation
//!    never raises (W-4).
//! 4. The refresh generation is judged by this node's own former mode and comes from one counter of the mount (W-2).
//! 5. A new server discards what is queued; a request whose grant was discarded is sent again (`spec/04 §7.8`).
//! 6. An invalidation that is queued closes the gate for acquires that its target does not serve (W-6); tasks that waited
//!    when a grant came get their turn first.
//! 7. At most one request is outstanding (S-8).
//! 8. What a front end was lent (pages that it may show, or change, without a use of this lock) it gives back before the
//!    mode is lowered: when no user is left it is asked ([`Out::Recall`]), and again as long as it was lent something
//!    meanwhile. It may itself need the lock to give something back, so a use for it passes the gate until the mode is
//!    lowered.
//!
//! What it does not do: it sends nothing, runs no work, wakes nobody and knows no time.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::Mode;
use super::word::LockWord;
use crate::error::{Errno, Error, Result, fail};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Messages of one lock that may be queued; the protocol needs two for each epoch.
const QUEUE_MAX: usize = 16;

/// The part of a lock that is read and changed without its mutex.
#[derive(Debug)]
pub(super) struct Hot {
    pub(super) word: LockWord,
    pub(super) write_seq: AtomicU64,
    pub(super) refresh_gen: AtomicU64,
    pub(super) dirty_seq: AtomicU64,
}

impl Hot {
    pub(super) fn new() -> Hot {
        Hot {
            word: LockWord::new(),
            write_seq: AtomicU64::new(0),
            refresh_gen: AtomicU64::new(0),
            dirty_seq: AtomicU64::new(0),
        }
    }
}

/// What the driver has to do after an input, outside of the mutex and in this order.
#[derive(Debug)]
pub(super) enum Out<W> {
    /// Send M1; if it fails, hand in [`Machine::send_failed`].
    Request { old: Mode, new: Mode },
    /// Send M4 if the node still talks to the server of this epoch.
    Response { epoch: u64, id: u64, old: Mode, new: Mode },
    /// Take back what front ends were lent and `to` does not cover, then hand in [`Machine::recall_done`].
    Recall { from: Mode, to: Mode },
    /// Commit and drop what the step from one mode to the other demands, then hand in [`Machine::work_done`].
    Work { from: Mode, to: Mode },
    /// Wake this waiter; with `Ok` its use is already counted.
    Wake(W, Result<()>),
    /// A null request is over.
    ShrinkDone,
    /// Idle and null: remove the lock from the table if that is still so.
    Free,
}

/// Outputs of one input.
pub(super) type Outs<W> = SmallVec<[Out<W>; 2]>;

/// What became of an acquire.
#[derive(Debug)]
pub(super) enum Acquired {
    /// The use is counted.
    Yes,
    /// The waiter was queued.
    Wait,
    /// It cannot be.
    No(Errno),
}

/// How an acquire behaves where it cannot succeed at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Manner {
    /// Wait; else fail with EAGAIN.
    pub(super) block: bool,
    /// The caller already holds a use of this lock: it passes the gate, and where the mode does not serve it fails with
    /// EDEADLK, because its own use would block what it waits for (`spec/04 §4.3` rule 7).
    pub(super) nested: bool,
    /// On behalf of a front end's cache, see [`Loan`].
    pub(super) loan: Option<Loan>,
}

/// A use of a lock on behalf of a front end's cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loan {
    /// The front end gets something to keep. It should wait as everybody else, but must not wait for ever behind a closed
    /// gate: what is being recalled may be waiting for this very answer ([`Machine::insist`]).
    Take,
    /// The front end gives something back: passes a closed gate.
    Return,
}

#[derive(Clone, Copy, Debug)]
enum Message {
    Grant { new: Mode, write_seq: u64 },
    Invalidate(Invalidation),
}

#[derive(Clone, Copy, Debug)]
struct Invalidation {
    epoch: u64,
    id: u64,
    old: Mode,
    target: Mode,
}

/// Somebody who waits for a use.
#[derive(Debug)]
struct Waiting<W> {
    mode: Mode,
    /// For a front end to keep ([`Loan::Take`]).
    takes: bool,
    who: W,
}

/// Slow state of one lock; all calls are made under the lock's mutex. `W` is a handle to whoever waits.
#[derive(Debug)]
pub(super) struct Machine<W> {
    held: Mode,
    /// The mode wanted by the M1 that has no M2 yet.
    request: Option<Mode>,
    queue: VecDeque<Message>,
    working: Option<Invalidation>,
    /// What front ends keep, as far as they were not asked to give it back.
    lent: Mode,
    /// They are being asked.
    recalling: bool,
    waiters: VecDeque<Waiting<W>>,
    /// The number of the last write grant, which the next one of the same server exceeds.
    floor: u64,
    /// Why new acquires fail and what waiters got.
    closed: bool,
}

impl<W> Machine<W> {
    pub(super) fn new() -> Machine<W> {
        Machine {
            held: Mode::Null,
            request: None,
            queue: VecDeque::new(),
            working: None,
            lent: Mode::Null,
            recalling: false,
            waiters: VecDeque::new(),
            floor: 0,
            closed: false,
        }
    }

    /// A task wants `mode`.
    pub(super) fn acquire(
        &mut self,
        hot: &Hot,
        mode: Mode,
        manner: Manner,
        waiter: impl FnOnce() -> W,
        out: &mut Outs<W>,
    ) -> Acquired {
        let open = !self.closed && self.gate_lets(mode);
        let passes = open || manner.nested || (!self.closed && manner.loan == Some(Loan::Return));
        if passes && hot.word.admit(mode) {
            self.lend(mode, manner.loan == Some(Loan::Take));
            return Acquired::Yes;
        }
        if self.closed {
            return Acquired::No(Errno::ENOLCK);
        }
        if !manner.block {
            return Acquired::No(Errno::EAGAIN);
        }
        if manner.nested {
            return Acquired::No(Errno::EDEADLK);
        }
        self.waiters.push_back(Waiting { mode, takes: manner.loan == Some(Loan::Take), who: waiter() });
        self.settle(hot, out);
        Acquired::Wait
    }

    /// A waiter that `is` the one meant has waited for long behind a closed gate. If it waits for a loan, and the mode
    /// still serves, it is served: true. Else it waits on, or is not there any more.
    pub(super) fn insist(&mut self, hot: &Hot, is: impl Fn(&W) -> bool) -> bool {
        let Some(i) = self.waiters.iter().position(|w| is(&w.who)) else { return false };
        let Waiting { mode, takes, .. } = self.waiters[i];
        if self.closed || !takes || !hot.word.admit(mode) {
            return false;
        }
        self.waiters.remove(i);
        self.lend(mode, true);
        true
    }

    /// Notes what a front end got.
    fn lend(&mut self, mode: Mode, takes: bool) {
        if takes && !self.lent.serves(mode) {
            self.lent = mode;
        }
    }

    /// Front ends have given back what they were asked for.
    pub(super) fn recall_done(&mut self, hot: &Hot, gens: &AtomicU64, out: &mut Outs<W>) {
        self.recalling = false;
        self.pump(hot, gens, out);
    }

    /// A use ends while the gate is closed.
    pub(super) fn release(&mut self, hot: &Hot, mode: Mode, gens: &AtomicU64, out: &mut Outs<W>) {
        hot.word.release(mode);
        self.pump(hot, gens, out);
    }

    /// M2 arrived. An error means that no sane server sends this (`spec/04 §15`); nothing was changed.
    pub(super) fn grant(
        &mut self,
        hot: &Hot,
        new: Mode,
        write_seq: u64,
        gens: &AtomicU64,
        out: &mut Outs<W>,
    ) -> Result<()> {
        let Some(wanted) = self.request else { return fail(Errno::EINVAL) };
        let now = self.working.is_none() && self.queue.is_empty();
        let fresh = !new.writes() || write_seq > self.floor;
        let waiting = self.queue.iter().any(|m| matches!(m, Message::Grant { .. }));
        if !new.serves(wanted) || !fresh || waiting || (now && !may_follow(hot.word.load().mode(), new)) {
            return fail(Errno::EINVAL);
        }
        self.queue.push_back(Message::Grant { new, write_seq });
        self.pump(hot, gens, out);
        Ok(())
    }

    /// M3 arrived. An error means that no sane server sends this; nothing was changed.
    pub(super) fn invalidate(
        &mut self,
        hot: &Hot,
        epoch: u64,
        id: u64,
        modes: (Mode, Mode),
        gens: &AtomicU64,
        out: &mut Outs<W>,
    ) -> Result<()> {
        let (old, target) = modes;
        if self.queue.len() >= QUEUE_MAX {
            return fail(Errno::EINVAL);
        }
        self.queue.push_back(Message::Invalidate(Invalidation { epoch, id, old, target }));
        self.pump(hot, gens, out);
        Ok(())
    }

    /// The work of the invalidation in progress is done.
    pub(super) fn work_done(&mut self, hot: &Hot, gens: &AtomicU64, out: &mut Outs<W>) {
        let Some(inv) = self.working.take() else {
            debug_assert!(false, "work ended that was never started");
            return;
        };
        self.held = hot.word.load().mode();
        out.push(Out::Response { epoch: inv.epoch, id: inv.id, old: inv.old, new: self.held });
        self.pump(hot, gens, out);
    }

    /// The M1 given out last could not be sent and never will be.
    pub(super) fn send_failed(&mut self, hot: &Hot, error: Error, out: &mut Outs<W>) {
        match self.request.take() {
            Some(Mode::Null) => out.push(Out::ShrinkDone),
            Some(_) => {
                let mode = hot.word.load().mode();
                if let Some(i) = self.waiters.iter().position(|w| !mode.serves(w.mode)) {
                    let w = self.waiters.remove(i).expect("the index was just found");
                    out.push(Out::Wake(w.who, Err(error)));
                }
            }
            None => {}
        }
        self.settle(hot, out);
    }

    /// Another server was greeted: nothing of the former one that was not started counts any more.
    pub(super) fn new_epoch(&mut self, hot: &Hot, out: &mut Outs<W>) {
        let lost_grant = self.queue.iter().any(|m| matches!(m, Message::Grant { .. }));
        self.queue.clear();
        // Of a lock that was given back nobody tells the new server how far the old one had counted.
        if !self.held.writes() {
            self.floor = 0;
        }
        if let (true, Some(wanted)) = (lost_grant, self.request) {
            out.push(Out::Request { old: hot.word.load().mode(), new: wanted });
        }
        self.settle(hot, out);
    }

    /// If nobody needs the lock, asks the server to take it back; false if somebody does.
    pub(super) fn give_up(&mut self, hot: &Hot, out: &mut Outs<W>) -> bool {
        let mode = hot.word.load().mode();
        if self.closed || mode == Mode::Null || !self.idle(hot) {
            return false;
        }
        self.request = Some(Mode::Null);
        out.push(Out::Request { old: mode, new: Mode::Null });
        true
    }

    /// Fails all waiters and all later acquires; messages are still handled.
    pub(super) fn close(&mut self, hot: &Hot, error: &Error, out: &mut Outs<W>) {
        self.closed = true;
        hot.word.set_gate(true);
        for w in self.waiters.drain(..) {
            out.push(Out::Wake(w.who, Err(error.clone())));
        }
    }

    /// What a recovering server must assume of this node.
    pub(super) fn held(&self) -> Mode {
        self.held
    }

    /// Does nobody use the lock or wait for it or for a message about it?
    pub(super) fn idle(&self, hot: &Hot) -> bool {
        self.request.is_none()
            && self.queue.is_empty()
            && self.working.is_none()
            && self.waiters.is_empty()
            && hot.word.load().unused()
    }

    /// Invariant 1, checked after every input.
    #[cfg(any(test, sim))]
    pub(super) fn check(&self, hot: &Hot) {
        let effective = hot.word.load().mode();
        assert_eq!(effective.lowered_to(self.held), effective, "S-2: {effective} is used, {} is held", self.held);
        assert!(self.working.is_some() || effective == self.held, "S-17: {effective} is used, {} is held", self.held);
    }

    /// For diagnostics: outstanding request, queued messages, invalidation in progress, waiters.
    #[cfg(test)]
    pub(super) fn load(&self) -> (Option<Mode>, usize, bool, usize) {
        (self.request, self.queue.len(), self.working.is_some(), self.waiters.len())
    }

    fn gate_lets(&self, mode: Mode) -> bool {
        self.queue.iter().all(|m| match m {
            Message::Invalidate(inv) => inv.target.serves(mode),
            Message::Grant { .. } => true,
        })
    }

    /// Applies queued messages as far as possible.
    fn pump(&mut self, hot: &Hot, gens: &AtomicU64, out: &mut Outs<W>) {
        while self.working.is_none() {
            match self.queue.front() {
                None => break,
                Some(&Message::Grant { new, write_seq }) => {
                    self.queue.pop_front();
                    self.apply_grant(hot, new, write_seq, gens, out);
                }
                Some(&Message::Invalidate(inv)) => {
                    // Closed before users are looked at, so that the last of them comes here (word, invariant 3).
                    hot.word.set_gate(true);
                    let from = hot.word.load().mode();
                    let to = from.lowered_to(inv.target);
                    if self.recalling || !hot.word.can_lower(to) {
                        break;
                    }
                    if self.lent != self.lent.lowered_to(to) {
                        self.lent = self.lent.lowered_to(to);
                        self.recalling = true;
                        out.push(Out::Recall { from, to });
                        break;
                    }
                    if !hot.word.lower(to) {
                        break;
                    }
                    self.queue.pop_front();
                    if from == to {
                        out.push(Out::Response { epoch: inv.epoch, id: inv.id, old: inv.old, new: to });
                    } else {
                        self.working = Some(inv);
                        out.push(Out::Work { from, to });
                    }
                }
            }
        }
        self.settle(hot, out);
    }

    fn apply_grant(&mut self, hot: &Hot, new: Mode, write_seq: u64, gens: &AtomicU64, out: &mut Outs<W>) {
        let former = hot.word.load().mode();
        if !may_follow(former, new) {
            // A server lost track of us. Not using the grant is always safe; ask again.
            if let Some(wanted) = self.request {
                out.push(Out::Request { old: former, new: wanted });
            }
            return;
        }
        if self.request.take() == Some(Mode::Null) {
            out.push(Out::ShrinkDone);
        }
        if !former.reads() && new.reads() {
            hot.refresh_gen.store(gens.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        hot.write_seq.store(write_seq, Ordering::Relaxed);
        if new.writes() {
            self.floor = write_seq;
        }
        self.held = new;
        hot.word.raise(new);
        // Everybody who waited when the grant came gets a turn, before any invalidation queued behind it.
        self.serve(hot, out, |_, _| true);
    }

    /// Counts and wakes the waiters that the effective mode and `allowed` let in, in order.
    fn serve(&mut self, hot: &Hot, out: &mut Outs<W>, allowed: impl Fn(&Self, Mode) -> bool) {
        let mut i = 0;
        while i < self.waiters.len() {
            let Waiting { mode, takes, .. } = self.waiters[i];
            if allowed(self, mode) && hot.word.admit(mode) {
                let w = self.waiters.remove(i).expect("the index is in range");
                self.lend(mode, takes);
                out.push(Out::Wake(w.who, Ok(())));
            } else {
                i += 1;
            }
        }
    }

    /// Ends every input: gate, waiters, next request, freeing.
    fn settle(&mut self, hot: &Hot, out: &mut Outs<W>) {
        let gate = self.closed || self.queue.iter().any(|m| matches!(m, Message::Invalidate(_)));
        let view = hot.word.load();
        if view.gate() != gate {
            hot.word.set_gate(gate);
        }
        if self.closed {
            return;
        }
        self.serve(hot, out, |m, mode| m.gate_lets(mode));
        if self.request.is_none()
            && let Some(wanted) = self.waiters.iter().map(|w| w.mode).find(|wanted| !view.mode().serves(*wanted))
        {
            self.request = Some(wanted);
            out.push(Out::Request { old: view.mode(), new: wanted });
        }
        if view.mode() == Mode::Null && self.idle(hot) {
            out.push(Out::Free);
        }
    }
}

/// May a grant of `new` reach a client whose effective mode is `former`? Every other step goes through null.
fn may_follow(former: Mode, new: Mode) -> bool {
    former == Mode::Null || former == new || (former == Mode::Read && new == Mode::Write)
}
