//! Inode numbers: batches from the server, handed out from memory (`spec/06 §3.5`).
//!
//! **Problem.** Inodes of one group of 1024 share one cluster lock and one item shard. If all threads took the next
//! number of one pool, threads that work in different directories would meet in the same shard all the time.
//!
//! **Idea.** Several pools, each working through groups of its own. Files go to the pool of the calling thread; new
//! directories go around the pools, so that directories made one after the other lie in different groups. Directories and
//! other inodes never share a group when whole groups are used. Nothing on disk depends on the policy.
//!
//! Invariants: a number is handed out once; a pool that runs dry asks for its own class only, so pools that still have
//! numbers never wait for the server.

use crossbeam::utils::CachePadded;

use crate::error::{Errno, Error, Result, fail};
use crate::format::Ino;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Numbers asked from the server at once.
pub(crate) const BATCH: u64 = 10_240;
/// Inodes of one cluster lock.
pub(crate) const GROUP: u64 = 1024;

/// Consecutive numbers.
#[derive(Clone, Copy, Default, Debug)]
struct Run {
    next: u64,
    left: u64,
}

#[derive(Debug)]
struct Class {
    /// What the server gave and no pool has taken; the lock is held while asking, so that nobody asks twice.
    reserve: Mutex<Run>,
    pools: Vec<CachePadded<Mutex<Run>>>,
}

/// All pools of a mount.
#[derive(Debug)]
pub(crate) struct InoPools {
    per_lock: u64,
    files: Class,
    /// `None`: directories come from the same pools as everything else.
    dirs: Option<Class>,
    next_dir_pool: AtomicUsize,
}

/// Where new numbers come from: asks the server for `count`, answers (first, how many).
pub(crate) type Refill<'a> = &'a dyn Fn(u64) -> Result<(u64, u64)>;

/// Pools of one class.
const POOLS: usize = 8;

/// A small number that is different for threads that live at the same time, mostly.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|n| *n)
}

impl InoPools {
    /// `per_lock` (1..=1024) is how many numbers of a group are used; below 1024 there is one class for all kinds.
    pub(crate) fn new(per_lock: u64) -> InoPools {
        InoPools::with_pools(per_lock, POOLS)
    }

    fn with_pools(per_lock: u64, pools: usize) -> InoPools {
        let class = || Class {
            reserve: Mutex::new(Run::default()),
            pools: (0..pools).map(|_| CachePadded::new(Mutex::new(Run::default()))).collect(),
        };
        InoPools {
            per_lock: per_lock.clamp(1, GROUP),
            files: class(),
            dirs: (per_lock >= GROUP).then(class),
            next_dir_pool: AtomicUsize::new(0),
        }
    }

    /// The next number for a directory or for anything else.
    ///
    /// # Errors
    /// `ENOSPC` when the volume has no numbers left, `EINVAL` for an impossible answer of the server.
    pub(crate) fn take(&self, dir: bool, refill: Refill<'_>) -> Result<Ino> {
        let class = if dir { self.dirs.as_ref().unwrap_or(&self.files) } else { &self.files };
        let turn = if dir { self.next_dir_pool.fetch_add(1, Ordering::Relaxed) } else { thread_number() };
        let mut pool = class.pools[turn % class.pools.len()].lock();
        if pool.left == 0 {
            *pool = Self::take_group(&class.reserve, refill)?;
        }
        let ino = pool.next;
        pool.next += 1;
        pool.left -= 1;
        if self.per_lock < GROUP && pool.next % GROUP >= self.per_lock {
            let skip = (GROUP - pool.next % GROUP).min(pool.left);
            pool.next += skip;
            pool.left -= skip;
        }
        Ok(Ino(ino))
    }

    /// The rest of one group from the reserve.
    fn take_group(reserve: &Mutex<Run>, refill: Refill<'_>) -> Result<Run> {
        let mut reserve = reserve.lock();
        if reserve.left == 0 {
            let (first, count) = refill(BATCH)?;
            if count == 0 {
                return fail(Errno::ENOSPC);
            }
            if first <= 1 || first.checked_add(count - 1).is_none_or(|last| last == u64::MAX) {
                return Err(Error::invalid(format!("server granted {count} inode numbers from {first}")));
            }
            *reserve = Run { next: first, left: count };
        }
        let taken = reserve.left.min(GROUP - reserve.next % GROUP);
        let run = Run { next: reserve.next, left: taken };
        reserve.next += taken;
        reserve.left -= taken;
        Ok(run)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;

    use super::*;

    struct Server {
        next: Cell<u64>,
        requests: Cell<u64>,
    }

    impl Server {
        fn at(next: u64) -> Server {
            Server { next: Cell::new(next), requests: Cell::new(0) }
        }

        fn grant(&self, count: u64) -> Result<(u64, u64)> {
            self.requests.set(self.requests.get() + 1);
            Ok((self.next.replace(self.next.get() + count), count))
        }
    }

    #[test]
    fn one_pool_gives_the_recorded_sequences() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vectors/namespace-inos.json");
        let v: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for run in v["runs"].as_array().unwrap() {
            let pools = InoPools::with_pools(run["ino_alloc_per_lock"].as_u64().unwrap(), 1);
            let server = Server::at(run["first_next_ino"].as_u64().unwrap());
            let mut n = 0;
            for call in run["calls"].as_array().unwrap() {
                let mut got = Ino(0);
                while n <= call["n"].as_u64().unwrap() {
                    got = pools.take(n % 7 == 3, &|c| server.grant(c)).unwrap();
                    n += 1;
                }
                assert_eq!(got.0, call["ino"].as_u64().unwrap(), "{call}");
                assert_eq!(server.requests.get(), call["requests"].as_u64().unwrap(), "{call}");
            }
        }
    }

    #[test]
    fn numbers_are_unique_and_directories_have_groups_of_their_own() {
        let server = Server::at(1024);
        let pools = InoPools::new(1024);
        let mut seen = HashSet::new();
        let (mut dirs, mut files) = (HashSet::new(), HashSet::new());
        for i in 0..30_000 {
            let ino = pools.take(i % 3 == 0, &|c| server.grant(c)).unwrap();
            assert!(seen.insert(ino));
            if i % 3 == 0 {
                dirs.insert(ino.0 >> 10)
            } else {
                files.insert(ino.0 >> 10)
            };
        }
        assert!(dirs.is_disjoint(&files));
    }

    #[test]
    fn directories_made_in_a_row_lie_in_different_groups() {
        let server = Server::at(1024);
        let pools = InoPools::new(1024);
        let groups: HashSet<u64> =
            (0..POOLS).map(|_| pools.take(true, &|c| server.grant(c)).unwrap().0 / GROUP).collect();
        assert_eq!(groups.len(), POOLS);
    }

    #[test]
    fn no_numbers_left_is_enospc_and_bad_answers_are_refused() {
        let pools = InoPools::new(1024);
        assert!(pools.take(false, &|_| Ok((7000, 0))).unwrap_err().is(Errno::ENOSPC));
        assert_eq!(pools.take(false, &|_| Ok((u64::MAX, 2))).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(pools.take(false, &|_| Ok((0, 2))).unwrap_err().errno(), Errno::EINVAL);
    }
}
