//! Every on-disk and on-wire layout, as types that can be viewed in place, with keys, hashes, limits and checks.
//!
//! Nothing here does I/O or knows of threads. Content that comes from a device or a peer is turned into a checked, native
//! form once, at the edge; the rest of the crate never looks at raw bytes.

mod ids;
mod key;
pub mod layout;

pub use ids::{DataBlock, Ino, MetaBlock, Rid, Seq};
pub use key::{Key, KeyRange};
