//! The primitives of production: `parking_lot`, the standard library, `crossbeam`, the clocks and random numbers of the system.

use std::time::SystemTime;

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use std::sync::{Arc, OnceLock, Weak, atomic};
pub(crate) use std::thread;
pub(crate) use std::time::Instant;

use rand::distr::{Distribution, StandardUniform};

/// Hash table with the fast hasher, whose order differs from one process to the next.
pub(crate) type HashMap<K, V, S = hashbrown::DefaultHashBuilder> = hashbrown::HashMap<K, V, S>;
/// The same for sets.
pub(crate) type HashSet<K, S = hashbrown::DefaultHashBuilder> = hashbrown::HashSet<K, S>;

/// The time of day.
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A random value.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rand::random()
}

/// Queues between threads.
pub(crate) mod channel {
    pub(crate) use crossbeam::channel::{Receiver, Sender, unbounded};

    use super::Instant;

    /// What [`select`] found. `None` inside: that channel has ended.
    pub(crate) enum Selected<A, B> {
        First(Option<A>),
        Second(Option<B>),
        TimedOut,
    }

    /// Waits for the first message of either channel, at most until `until`.
    pub(crate) fn select<A, B>(first: &Receiver<A>, second: &Receiver<B>, until: Option<Instant>) -> Selected<A, B> {
        let never = crossbeam::channel::never();
        let timer = until.map_or(never, crossbeam::channel::at);
        crossbeam::channel::select! {
            recv(first) -> message => Selected::First(message.ok()),
            recv(second) -> message => Selected::Second(message.ok()),
            recv(timer) -> _ => Selected::TimedOut,
        }
    }
}
