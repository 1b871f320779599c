//! The scoutfs engine as an embeddable library.

mod block;
mod btree;
pub mod device;
pub mod error;
pub mod format;
pub(crate) mod lock;
mod namespace;
pub mod net;
mod quorum;
pub mod server;
mod sync;

pub use error::{Errno, Error, Result};
