//! Clients that do not answer invalidations (`spec/05` L8).
//!
//! **Problem.** The protocol has no time limit for an invalidation: a commit takes as long as it takes. A client whose process is
//! stopped, or which is broken in a way that keeps its connection alive, would hold what it has for ever.
//!
//! **Idea.** Who owes an answer and has said nothing at all for a while is probed with a question that every client answers at
//! once and that changes nothing (OPEN_INO_MAP). Who does not answer that either is as good as lost, and fenced like a client that
//! does not come back. Who answers other things but not the invalidation gets much longer, not for ever.
//!
//! Invariants
//! 1. A client that owes nothing is neither probed nor fenced.
//! 2. A client is fenced for its silence only after a probe that it had [`ANSWER_TIME`] to answer.
//!
//! No I/O and no clock: the core tells the time and does what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sync::Instant;

/// How often the clients that owe an answer are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Silence after which a client that owes an answer is probed.
pub(super) const PROBE_AFTER: Duration = Duration::from_secs(5);
/// How long it may take to answer the probe: as long as a lost connection may stay away.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(20);
/// How long one invalidation may take at a client that is otherwise alive: far longer than any commit.
pub(super) const INVALIDATION_TIME: Duration = Duration::from_secs(300);

/// What has to be done about a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Probe(u64),
    Fence(u64, &'static str),
}

#[derive(Debug)]
struct Debtor {
    /// The oldest invalidation that it owes an answer to, and since when it was seen to be the oldest.
    oldest: u64,
    since: Instant,
    heard: Instant,
    probed: Option<Instant>,
}

/// The clients that owe an answer.
#[derive(Debug, Default)]
pub(super) struct Silence {
    debtors: BTreeMap<u64, Debtor>,
    look_at: Option<Instant>,
}

impl Silence {
    /// The client said something.
    pub(super) fn heard(&mut self, rid: u64, now: Instant) {
        if let Some(debtor) = self.debtors.get_mut(&rid) {
            debtor.heard = now;
            debtor.probed = None;
        }
    }

    /// When to call [`Silence::look`] again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// Invalidations are unanswered: they will be looked at.
    pub(super) fn watch(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + LOOK_EVERY);
    }

    /// Is it time to look?
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    /// Looks at everybody who owes an answer: rid and the number of the oldest unanswered invalidation.
    pub(super) fn look(&mut self, now: Instant, owing: impl Iterator<Item = (u64, u64)>) -> Vec<Due> {
        let mut due = Vec::new();
        let mut before = std::mem::take(&mut self.debtors);
        for (rid, oldest) in owing {
            let fresh = || Debtor { oldest, since: now, heard: now, probed: None };
            let mut debtor = before.remove(&rid).unwrap_or_else(fresh);
            if debtor.oldest != oldest {
                (debtor.oldest, debtor.since) = (oldest, now);
            }
            match debtor.probed {
                Some(at) if now >= at + ANSWER_TIME => due.push(Due::Fence(rid, "it answers nothing any more")),
                None if now >= debtor.heard + PROBE_AFTER => {
                    debtor.probed = Some(now);
                    due.push(Due::Probe(rid));
                }
                _ if now >= debtor.since + INVALIDATION_TIME => due.push(Due::Fence(rid, "it does not give up a lock")),
                _ => {}
            }
            self.debtors.insert(rid, debtor);
        }
        self.look_at = (!self.debtors.is_empty()).then(|| now + LOOK_EVERY);
        due
    }
}
