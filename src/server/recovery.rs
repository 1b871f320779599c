//! Which mounts of an earlier server still have to report, and which mounts are being fenced.
//!
//! Every mount that was recorded when the server started owes it two things: a greeting (then its open inodes are
//! known) and the list of its locks. Until the last list is complete no lock is granted; who is late is fenced
//! (`spec/05 §5.8`, `§5.9`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::sync::Instant;

/// How long the mounts of an earlier server have to report.
pub(crate) const RECOVERY_TIME: Duration = Duration::from_secs(30);
/// How long a fence request may take before it counts as failed.
pub(crate) const FENCE_TIME: Duration = Duration::from_secs(30);

/// What is still owed, by rid.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    greeting: BTreeSet<u64>,
    locks: BTreeSet<u64>,
    /// Of these, who cannot come back: to be fenced without waiting.
    gone: BTreeSet<u64>,
    started: Option<Instant>,
    deadline: Option<Instant>,
}

impl Recovery {
    /// Everybody in `mounted` owes a greeting and its locks, from `now` on. Who is `gone` is known not to come.
    pub(crate) fn start(mounted: impl Iterator<Item = u64>, gone: BTreeSet<u64>, now: Instant) -> Recovery {
        let locks: BTreeSet<u64> = mounted.collect();
        let deadline = (!locks.is_empty()).then(|| now + RECOVERY_TIME);
        Recovery { greeting: locks.clone(), locks, gone, started: Some(now), deadline }
    }

    pub(crate) fn greeting_pending(&self) -> bool {
        !self.greeting.is_empty()
    }

    pub(crate) fn locks_pending(&self) -> bool {
        !self.locks.is_empty()
    }

    pub(crate) fn owes_locks(&self, rid: u64) -> bool {
        self.locks.contains(&rid)
    }

    pub(crate) fn greeted(&mut self, rid: u64) {
        self.greeting.remove(&rid);
        self.settle();
    }

    pub(crate) fn locks_done(&mut self, rid: u64) {
        self.locks.remove(&rid);
        self.settle();
    }

    fn settle(&mut self) {
        if self.greeting.is_empty() && self.locks.is_empty() {
            self.deadline = None;
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.gone.is_empty() { self.deadline } else { self.started }
    }

    /// The rids to fence: at once those that cannot come, and when the time is over all that are missing. Each of the two is
    /// given once.
    pub(crate) fn late(&mut self, now: Instant) -> Vec<u64> {
        if self.deadline.is_none_or(|d| now < d) {
            return std::mem::take(&mut self.gone).into_iter().collect();
        }
        self.gone.clear();
        self.deadline = None;
        self.greeting.union(&self.locks).copied().collect()
    }
}

/// Fence requests that wait for their confirmation: at most one a rid.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    waiting: BTreeMap<u64, Instant>,
}

impl Fences {
    /// Adds a request; false if the rid is being fenced already.
    pub(crate) fn add(&mut self, rid: u64, now: Instant) -> bool {
        if self.waiting.contains_key(&rid) {
            return false;
        }
        self.waiting.insert(rid, now + FENCE_TIME);
        true
    }

    /// The request was confirmed; false if there is none.
    pub(crate) fn confirmed(&mut self, rid: u64) -> bool {
        self.waiting.remove(&rid).is_some()
    }

    pub(crate) fn contains(&self, rid: u64) -> bool {
        self.waiting.contains_key(&rid)
    }

    pub(crate) fn rids(&self) -> impl Iterator<Item = u64> {
        self.waiting.keys().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.values().min().copied()
    }

    /// A rid whose confirmation is overdue: the server has to stop.
    pub(crate) fn overdue(&self, now: Instant) -> Option<u64> {
        self.waiting.iter().find(|(_, d)| **d <= now).map(|(rid, _)| *rid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_mounts_are_given_once() {
        let t = Instant::now();
        let mut r = Recovery::start([1, 2, 3].into_iter(), BTreeSet::new(), t);
        r.greeted(1);
        r.locks_done(1);
        r.greeted(2);
        assert!(r.greeting_pending() && r.locks_pending() && r.owes_locks(2));
        assert!(r.late(t + Duration::from_secs(29)).is_empty());
        assert_eq!(r.late(t + RECOVERY_TIME), [2, 3]);
        assert!(r.late(t + RECOVERY_TIME).is_empty());
        assert!(r.locks_pending(), "locks stay blocked until the fenced mounts are reclaimed");
    }

    #[test]
    fn who_cannot_come_is_given_at_once_and_the_others_in_time() {
        let t = Instant::now();
        let mut r = Recovery::start([1, 2, 3].into_iter(), BTreeSet::from([1, 3]), t);
        assert_eq!(r.deadline(), Some(t));
        assert_eq!(r.late(t), [1, 3]);
        assert!(r.late(t).is_empty());
        assert_eq!(r.deadline(), Some(t + RECOVERY_TIME));
        assert!(r.owes_locks(1), "until it is reclaimed");
        r.greeted(1);
        r.locks_done(1);
        assert_eq!(r.late(t + RECOVERY_TIME), [2, 3]);
    }

    #[test]
    fn nobody_mounted_means_nothing_to_recover() {
        let r = Recovery::start(std::iter::empty(), BTreeSet::new(), Instant::now());
        assert!(!r.greeting_pending() && !r.locks_pending() && r.deadline().is_none());
    }

    #[test]
    fn one_fence_request_a_rid() {
        let t = Instant::now();
        let mut f = Fences::default();
        assert!(f.add(7, t) && !f.add(7, t + FENCE_TIME));
        assert_eq!(f.overdue(t + FENCE_TIME), Some(7));
        assert!(f.confirmed(7) && !f.confirmed(7));
        assert_eq!(f.overdue(t + FENCE_TIME), None);
    }
}
