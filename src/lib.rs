//! The scoutfs engine as an embeddable library.

pub mod error;
pub mod format;
mod sync;

pub use error::{Errno, Error, Result};
