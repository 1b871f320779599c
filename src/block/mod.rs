//! Metadata blocks: verified reads against references, a bounded cache, and the dirty set of a transaction.
//!
//! Problem: every node reads 64 KiB blocks that other nodes rewrite elsewhere and free, without any lock. What makes this
//! safe is that a block version is never changed in place and that a reference names the version (`spec/02 §2`). So:
//!
//! 1. The cache is keyed by (block number, version nonce). An entry was verified (crc, magic, volume, version, number)
//!    before it entered and is immutable; old and new versions of a number live side by side.
//! 2. A read that finds anything else than the version asked for looks at the device once more and then reports
//!    [`Error::Stale`](crate::Error::Stale). Whether that is corruption only the owner of the root can tell.
//! 3. What a transaction changes lives decoded in its [`DirtySet`], under a newly allocated number and a fresh random
//!    nonce, invisible to readers of the store until it is written; a failed write keeps all of it.
//! 4. The structure of a block is decoded and checked once ([`BlockView`]) and kept beside its bytes.
//! 5. Memory is bounded: the cache by bytes (blocks and views), free buffers by number. A dirty set is bounded by its user.
//!
//! The store knows no trees, allocators or items.

mod buf;
mod cache;
mod dirty;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use buf::BLOCK_BYTES;
pub(crate) use dirty::{BlockSource, Cow, CowContent, DirtyContent, DirtySet};
pub(crate) use store::{Block, BlockKind, BlockStore, BlockView};
