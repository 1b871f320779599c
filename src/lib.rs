//! The scoutfs engine as an embeddable library.

// With `--cfg loom` only the rooms with models are built.
#[cfg(not(loom))]
mod alloc;
#[cfg(not(loom))]
mod block;
#[cfg(not(loom))]
mod btree;
#[cfg(not(loom))]
mod client;
#[cfg(not(loom))]
mod data;
#[cfg(not(loom))]
pub mod device;
pub mod error;
pub mod format;
#[cfg(all(feature = "internals", not(loom)))]
#[doc(hidden)]
pub mod internals;
#[cfg(not(loom))]
mod item;
pub(crate) mod lock;
#[cfg(not(loom))]
pub mod namespace;
#[cfg(not(loom))]
pub mod net;
#[cfg(not(loom))]
pub mod offline;
#[cfg(not(loom))]
mod quorum;
#[cfg(not(loom))]
pub mod server;
mod sync;
#[cfg(not(loom))]
mod txn;
#[cfg(loom)]
#[path = "txn/loom.rs"]
mod txn;

/// The volumes of `tests/data/fixtures` for unit tests, shared with the integration tests.
#[cfg(all(test, not(loom)))]
#[path = "../tests/common/fixture.rs"]
mod fixture;

#[cfg(not(loom))]
pub mod volume;

#[cfg(not(loom))]
pub use data::FileExtent;
pub use error::{Errno, Error, Result};
pub use format::Ino;
#[cfg(not(loom))]
pub use volume::{ClusterStatus, Environment, MemberStatus, OpenInode, Volume, VolumeOptions};
