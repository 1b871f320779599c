//! The primitives of the simulator: what a seed decides ([`sched`]) in the shape of the real ones.
#![allow(missing_docs, dead_code, reason = "the names are those of the real primitives, used or not")]
#![allow(unreachable_pub, reason = "part of this is what crate::sim offers")]

pub(crate) mod channel;
mod locks;
pub mod sched;
pub mod thread;
mod time;
pub mod watch;

/// For what is never held across a point where another thread may run.
pub(crate) use std::sync::Mutex as RealMutex;
pub(crate) use std::sync::{Arc, OnceLock, Weak, atomic};

pub(crate) use locks::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rand::SeedableRng;
use rand::distr::{Distribution, StandardUniform};
pub(crate) use time::{Instant, wall_clock};

type Hasher = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;
/// Hash table whose order is the same in every run.
pub(crate) type HashMap<K, V, S = Hasher> = hashbrown::HashMap<K, V, S>;
/// The same for sets.
pub(crate) type HashSet<K, S = Hasher> = hashbrown::HashSet<K, S>;

/// A random value.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    StandardUniform.sample(&mut rand::rngs::SmallRng::seed_from_u64(sched::random_u64()))
}
