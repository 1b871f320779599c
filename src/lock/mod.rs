//! Cluster locks: which node may read and change which items.
//!
//! Problem: every node caches items; a cached item is only good while no other node changes it. The key space is cut
//! into fixed ranges, each range is one lock, and a node caches and changes items of a range only under a mode that the
//! server granted to it. Grants are kept until somebody else needs the range, so repeated use costs no message. The
//! original serialises every use of every lock on one spinlock per mount; here nothing on the hot path is shared between
//! different locks.
//!
//! * [`LockName`], [`Mode`]: the names and the compatibility tables.
//! * `machine`: the protocol state of one lock at a client, without I/O; `word`: the one atomic word of a lock, on which
//!   a granted lock is acquired and released without any other shared memory.
//! * [`LockClient`]: the table of locks, the work lists (one for invalidations that need a commit, one for those that only
//!   drop caches, one for shrinking) and their threads.
//! * [`LockServer`]: the elected server's side, without I/O.
//!
//! What it does not do: it knows neither items nor transactions. What a lock protects is a [`Protected`] value inside
//! the lock, and what must happen when a mode is reduced is asked of [`Revoke`].

mod client;
mod guard;
mod held;
mod index;
mod machine;
mod mode;
mod name;
mod recover;
mod server;
mod shell;
mod shrink;
mod table;
pub(crate) mod wire;
mod word;
mod work;

#[cfg(test)]
pub(crate) use client::LockStatus;
pub(crate) use client::{LockClient, LockClientConfig};
pub(crate) use guard::{Lock, LockGuard};
pub(crate) use machine::Loan;
pub(crate) use mode::Mode;
pub(crate) use name::{LOCK_GROUP, LockName, SERVER_SHARDS};
#[cfg(not(loom))]
pub use server::LockReport;
pub(crate) use server::{LockOut, LockServer, Recovered, recovered};

use crate::error::Result;
use crate::format::layout::NetLock;

/// What lives inside a lock: the cache of the items of its range.
pub(crate) trait Protected: Default + Send + Sync + 'static {}

/// What must happen when the mode of a lock is reduced; the item and transaction rooms implement it.
///
/// The calls come from the lock room's worker threads, never from the thread that receives messages, and while no user
/// of an incompatible mode is left. They may block on a commit, never on a lock.
pub(crate) trait Revoke<P: Protected>: Send + Sync {
    /// Makes all changes of this lock durable and visible to other nodes: if [`Lock::dirty_seq`] is the sequence of a
    /// transaction that is not committed yet, commits it and waits. Failure of a commit is only possible after a forced
    /// unmount and is ignored here.
    fn commit_if_dirty(&self, lock: &Lock<P>);

    /// Has front ends give back what they were lent under this lock and what `to` does not cover: everything if that is
    /// null, what they may change if it is read. The mode is still `from`; uses for front ends are possible, others are
    /// over. Called on threads that do nothing else; may wait for front ends that use the lock, and for commits. By default
    /// nothing is ever lent.
    fn recall(&self, _lock: &Lock<P>, _from: Mode, _to: Mode) {}

    /// Drops everything cached under the lock, because the mode goes down to `to`, which cannot keep it (null). Not
    /// called for write to read, where all stays valid.
    fn drop_caches(&self, lock: &Lock<P>, to: Mode);

    /// Sequence of the oldest transaction that is not durable yet. It moves on only after the commit is complete.
    fn open_seq(&self) -> u64;
}

/// How lock messages leave this node. Both calls only queue; neither may block or call back into the lock room.
pub(crate) trait LockSender: Send + Sync {
    /// Queues a LOCK request (M1). An error means that it will never be sent (forced unmount).
    fn send_request(&self, lock: &NetLock) -> Result<()>;

    /// Queues the response (M4) to the invalidation `id` of the server of term `epoch`; dropped silently if the node
    /// talks to another server by now.
    fn send_invalidate_response(&self, epoch: u64, id: u64, lock: &NetLock);
}

#[cfg(test)]
mod tests;
