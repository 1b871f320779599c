//! Inode numbers in stock (`spec/06 §3.5`).
//!
//! Numbers come from the server in runs and are never reused. Which number a new inode gets decides which lock group it
//! falls into, so the stock is kept by use: directories apart from everything else, and the rest in a few slots chosen by
//! thread, so that threads that create in parallel work under different cluster locks and never share a pool.
//! Nothing on disk depends on this policy.
//!
//! A refill asks the server for several groups at once and cuts them into whole lock groups; a slot takes one group at
//! a time. What is left at unmount is lost, as the protocol intends.

use crate::error::{Errno, Error, Result, fail};
use crate::format::Ino;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Numbers asked from the server at once (`spec/06 §1`).
pub(crate) const BATCH: u64 = 10240;
const GROUP: u64 = 1024;
const FILE_SLOTS: usize = 8;

#[derive(Default, Clone, Copy)]
struct Run {
    next: u64,
    end: u64,
}

/// Where new numbers come from: asks the server for `count`, answers (first, how many).
pub(crate) type Refill<'a> = &'a dyn Fn(u64) -> Result<(u64, u64)>;

/// The stock of one mount.
pub(crate) struct InoPools {
    per_lock: u64,
    dirs: Mutex<Run>,
    files: Vec<Mutex<Run>>,
    /// Whole groups received and not yet given to a slot.
    stock: Mutex<Run>,
}

impl InoPools {
    /// `per_lock` of each 1024 numbers of a lock group are used (mount option `ino_alloc_per_lock`, 1..=1024).
    pub(crate) fn new(per_lock: u64) -> InoPools {
        InoPools {
            per_lock: per_lock.clamp(1, GROUP),
            dirs: Mutex::new(Run::default()),
            files: (0..FILE_SLOTS).map(|_| Mutex::new(Run::default())).collect(),
            stock: Mutex::new(Run::default()),
        }
    }

    /// The next number for a directory or for anything else.
    ///
    /// # Errors
    /// `ENOSPC` when the volume has no numbers left, `EINVAL` for an impossible answer of the server.
    pub(crate) fn take(&self, dir: bool, refill: Refill<'_>) -> Result<Ino> {
        let slot = if dir { &self.dirs } else { &self.files[thread_slot()] };
        let mut run = slot.lock();
        if run.next == run.end {
            *run = self.take_group(refill)?;
        }
        let ino = run.next;
        run.next += 1;
        if run.next < run.end && (run.next & (GROUP - 1)) >= self.per_lock {
            run.next = (run.next | (GROUP - 1)).saturating_add(1).min(run.end);
        }
        Ok(Ino(ino))
    }

    /// The rest of one lock group.
    fn take_group(&self, refill: Refill<'_>) -> Result<Run> {
        let mut stock = self.stock.lock();
        if stock.next == stock.end {
            let (first, nr) = refill(BATCH)?;
            if nr == 0 {
                return fail(Errno::ENOSPC);
            }
            let end = first.checked_add(nr).filter(|_| first > 1);
            let end = end.ok_or_else(|| Error::invalid(format!("inode numbers {first}+{nr} from the server")))?;
            *stock = Run { next: first, end };
        }
        let end = (stock.next | (GROUP - 1)).saturating_add(1).min(stock.end);
        let run = Run { next: stock.next, end };
        stock.next = end;
        Ok(run)
    }
}

/// Threads are dealt to the slots in turn.
fn thread_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SLOT: usize = NEXT.fetch_add(1, Ordering::Relaxed) % FILE_SLOTS);
    SLOT.with(|s| *s)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_unique_and_directories_have_groups_of_their_own() {
        let next = Cell::new(1024);
        let refill = |n: u64| {
            let first = next.get();
            next.set(first + n);
            Ok((first, n))
        };
        let pools = InoPools::new(1024);
        let mut seen = HashSet::new();
        let (mut dirs, mut files) = (HashSet::new(), HashSet::new());
        for i in 0..30_000 {
            let ino = pools.take(i % 3 == 0, &refill).unwrap();
            assert!(seen.insert(ino));
            if i % 3 == 0 { dirs.insert(ino.0 >> 10) } else { files.insert(ino.0 >> 10) };
        }
        assert!(dirs.is_disjoint(&files));
    }

    #[test]
    fn fewer_numbers_a_group_on_request() {
        let pools = InoPools::new(2);
        let refill = |n| Ok((5000, n));
        let got: Vec<u64> = (0..6).map(|_| pools.take(false, &refill).unwrap().0).collect();
        // 5000 lies beyond the used part of its group: the first number of a batch is always used, then the next group.
        assert_eq!(got, [5000, 5120, 5121, 6144, 6145, 7168]);
    }

    #[test]
    fn no_numbers_left_is_enospc_and_bad_answers_are_refused() {
        let pools = InoPools::new(1024);
        assert!(pools.take(false, &|_| Ok((7000, 0))).unwrap_err().is(Errno::ENOSPC));
        assert_eq!(pools.take(false, &|_| Ok((u64::MAX, 2))).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(pools.take(false, &|_| Ok((0, 2))).unwrap_err().errno(), Errno::EINVAL);
    }
}
