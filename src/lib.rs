//! The scoutfs engine as an embeddable library.

mod alloc;
mod block;
mod btree;
mod client;
mod data;
pub mod device;
pub mod error;
pub mod format;
mod item;
pub(crate) mod lock;
pub mod namespace;
pub mod net;
pub mod offline;
mod quorum;
pub mod server;
mod sync;
mod txn;

/// The volumes of `tests/data/fixtures` for unit tests, shared with the integration tests.
#[cfg(test)]
#[path = "../tests/common/fixture.rs"]
mod fixture;

pub mod volume;

pub use data::FileExtent;
pub use error::{Errno, Error, Result};
pub use format::Ino;
pub use volume::{Environment, OpenInode, Volume, VolumeOptions};
