//! Answers to a recovering server (`spec/04 §7.7, §14.2`).
//!
//! The conversation is one round trip for 22 locks, so each answer must be cheap: the names are sorted once, when the
//! first question of an epoch comes, and the modes are read live. That is exact, because no lock that is null can become
//! held before the server has heard everybody.

use super::guard::Lock;
use super::shell::Shell;
use super::wire::{RECOVER_MAX, net_lock};
use super::{Mode, Protected};
use crate::format::Key;
use crate::format::layout::NetLock;
use crate::sync::Arc;

/// The locks held when recovery began, by start key.
pub(super) type Snapshot<P> = Vec<(Key, Arc<Lock<P>>)>;

impl<P: Protected> Shell<P> {
    pub(super) fn recover(&self, key: &Key) -> Vec<NetLock> {
        let mut snapshot = self.snapshot.lock();
        if *key == Key::ZEROS {
            *snapshot = None;
        }
        let locks = snapshot.get_or_insert_with(|| self.held_locks());
        let from = locks.partition_point(|(start, _)| start < key);
        let report = |(_, lock): &(Key, Arc<Lock<P>>)| {
            let held = lock.machine.lock().held();
            (held != Mode::Null).then(|| net_lock(lock.name(), held, held, lock.write_seq()))
        };
        let answer: Vec<NetLock> = locks[from..].iter().filter_map(report).take(RECOVER_MAX).collect();
        if answer.is_empty() {
            *snapshot = None;
        }
        answer
    }

    fn held_locks(&self) -> Snapshot<P> {
        let mut locks = Vec::new();
        self.table.for_each(|lock| {
            if lock.machine.lock().held() != Mode::Null {
                locks.push((lock.name().start(), lock.clone()));
            }
        });
        locks.sort_unstable_by_key(|(start, _)| *start);
        locks
    }
}
