//! Items: the metadata of the volume, cached under cluster locks and read through the forest of log trees.
//!
//! * [`ItemShard`]: what one lock caches.
//! * [`Items`]: look up, iterate, fill on a miss, evict.
//! * [`ChangeSet`]: all changes of one operation, checked first, then applied without a way to fail.
//! * [`forest`]: reading a consistent version of a key range from the main tree and all log trees.
//! * [`bloom`]: which locks a log tree may hold items of.
//! * [`totals`]: sums over attributes, read weakly from a snapshot of the super block.
//!
//! Above it, the transaction room decides when dirty items are written; this room keeps them in order for it.

pub(crate) mod bloom;
mod cache;
mod change;
mod dirty;
pub(crate) mod forest;
mod packed;
mod roots;
mod shard;
#[cfg_attr(not(test), expect(dead_code, reason = "quota checks and the listing of totals come with the archive room"))]
pub(crate) mod totals;
mod value;

pub(crate) use cache::{Items, ItemsConfig, RootsSource};
pub(crate) use change::{ChangeSet, InTransaction};
pub(crate) use dirty::DirtyBatch;
pub(crate) use shard::ItemShard;
pub(crate) use value::Value;

/// One use of a lock together with the items that it covers.
pub(crate) type ItemLock = crate::lock::LockGuard<ItemShard>;
/// The lock itself; every operation here takes this, and an [`ItemLock`] is accepted for it.
pub(crate) type CoveringLock = crate::lock::Lock<ItemShard>;

#[cfg(test)]
mod tests;
