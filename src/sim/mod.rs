//! What a simulated cluster stands on: threads and time under a seed, a network, disks and fencing.
//!
//! **Problem.** What goes wrong between nodes goes wrong in an order of events that no test with real threads, sockets and clocks
//! meets twice.
//!
//! **Idea.** In a build with `--cfg sim` the whole engine, its shells included, runs on threads that a seeded scheduler lets run
//! one at a time (`sync::sim`). The devices, the network and the fencing of this room stand below it. Everything that they decide
//! is drawn from the seed, and they keep their state behind plain mutexes that are never held across a point where another thread
//! may run: a crashed node cannot leave them locked.
//!
//! The clusters themselves, with their work, their faults and the checks, are in `tests/sim`.

mod disk;
mod fence;
mod net;

pub use crate::sync::sim::sched::{
    DRIVER, begin, block, crash, crash_after, describe, fail, is_dead, node, note, now, on_crash, pause, random_u64,
    sleep, spare, thread_name, trace, wake_all,
};
pub use crate::sync::sim::thread::{JoinHandle, spawn_on};
pub use crate::sync::sim::watch::{LockChange, on_lock};
pub use disk::{DiskProfile, SimDisk, SimHandle};
pub use fence::{FenceProfile, SimFencer, SimFencing};
pub use net::{NetProfile, SimNet, SimTransport};

use std::time::Duration;

/// A random number below `n`; 0 if `n` is 0.
pub fn below(n: u64) -> u64 {
    if n == 0 { 0 } else { random_u64() % n }
}

/// True once in `n` times; never for 0.
pub fn one_in(n: u64) -> bool {
    n > 0 && below(n) == 0
}

/// A random time of the range.
pub fn between(from: Duration, to: Duration) -> Duration {
    from + Duration::from_nanos(below(to.saturating_sub(from).as_nanos() as u64 + 1))
}
