//! Giving up idle locks (`spec/04 §7.6, §14.4`).
//!
//! Giving up costs two round trips, so it must neither be part of an acquire nor flood the server. A thread with its own
//! work list does it: it starts when there are more lock objects than the option allows, stops at 95 % of it, and has at
//! most [`IN_FLIGHT`] null requests on their way. Which locks: a clock hand over the shards; a lock that was used since
//! the hand came by last is passed over once, one with changes of the open transaction always.

use super::guard::Lock;
use super::shell::Shell;
use super::{Mode, Protected};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// Most null requests on their way.
const IN_FLIGHT: usize = 64;
/// Most locks taken from one shard before the hand moves on.
const PER_SHARD: usize = 8;

impl<P: Protected> Shell<P> {
    /// A lock object was created.
    pub(super) fn table_grew(&self) {
        if self.table.len() > self.idle_count.load(Ordering::Relaxed) {
            self.shrink_active.store(true, Ordering::Relaxed);
            self.kick_shrinker();
        }
    }

    pub(super) fn set_idle_count(&self, count: usize) {
        self.idle_count.store(count, Ordering::Relaxed);
        self.table_grew();
    }

    /// A null request is over.
    pub(super) fn shrink_done(&self) {
        self.shrinking.fetch_sub(1, Ordering::Relaxed);
        if self.shrink_active.load(Ordering::Relaxed) {
            self.kick_shrinker();
        }
    }

    fn kick_shrinker(&self) {
        if !self.shrink_kicked.swap(true, Ordering::AcqRel) {
            self.shrink_kicks.push(());
        }
    }

    /// How many locks are too many now, once shrinking has begun.
    fn excess(&self) -> usize {
        let low = self.idle_count.load(Ordering::Relaxed) * 19 / 20;
        self.table.len().saturating_sub(self.shrinking.load(Ordering::Relaxed)).saturating_sub(low)
    }

    /// One turn of the shrink thread: up to two rounds of the hand, because the first may only clear the marks.
    pub(super) fn sweep(&self) {
        self.shrink_kicked.store(false, Ordering::Release);
        for _ in 0..2 * self.table.shards() {
            let room = IN_FLIGHT.saturating_sub(self.shrinking.load(Ordering::Relaxed));
            let want = self.excess().min(room).min(PER_SHARD);
            if want == 0 {
                break;
            }
            let open_seq = self.revoke.open_seq();
            let hand = self.shrink_hand.fetch_add(1, Ordering::Relaxed) % self.table.shards();
            for lock in self.table.pick(hand, want, |l| cold(l, open_seq)) {
                self.give_up(&lock);
            }
        }
        // Not while locks are on their way: each end is a new look.
        if self.excess() == 0 && self.shrinking.load(Ordering::Relaxed) == 0 {
            self.shrink_active.store(false, Ordering::Relaxed);
        }
    }

    /// Sends the null request of one lock if it is still idle.
    pub(super) fn give_up(&self, lock: &Arc<Lock<P>>) -> bool {
        // Counted before it is sent, because its end may come at once.
        self.shrinking.fetch_add(1, Ordering::Relaxed);
        let sent = self.input(lock, |m, out| m.give_up(&lock.hot, out));
        if !sent {
            self.shrinking.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }

    /// Gives up every idle lock at once.
    #[cfg(test)]
    pub(super) fn purge(&self) -> usize {
        let mut sent = 0;
        self.table.for_each(|lock| sent += usize::from(self.give_up(lock)));
        sent
    }
}

fn cold<P: Protected>(lock: &Lock<P>, open_seq: u64) -> bool {
    let v = lock.hot.word.load();
    if v.mode() == Mode::Null || v.gate() || !v.unused() {
        return false;
    }
    if v.used() {
        lock.hot.word.clear_used();
        return false;
    }
    let dirty = lock.dirty_seq();
    dirty == 0 || dirty < open_seq
}
