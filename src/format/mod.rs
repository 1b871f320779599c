//! Every on-disk and on-wire layout, as types that can be viewed in place, with keys, hashes, limits and checks.
//!
//! Nothing here does I/O or knows of threads. Content that comes from a device or a peer is turned into a checked, native
//! form once, at the edge; the rest of the crate never looks at raw bytes.

pub mod check;
pub mod consts;
mod crc;
mod dirent;
mod hash;
mod ids;
mod inode;
mod key;
pub mod keys;
mod kind;
pub mod layout;
pub mod quota;
pub mod srch;
pub mod wire;
pub mod xattr;

pub use crc::{block_crc, block_crc_matches, crc, seal_block};
pub use dirent::{Dirent, name_is_valid, validate_dirent};
pub use hash::{
    bloom_bits, dirent_hash, fingerprint, fnv1a_32, fnv1a_64, leaf_hash_bucket, leaf_hash_buckets, srch_hash,
    xattr_hash,
};
pub use ids::{DataBlock, Ino, MetaBlock, Rid, Seq};
pub use inode::{decode_symlink, encode_inode, encode_symlink, symlink_parts, validate_inode};
pub use key::{Key, KeyRange};
pub use keys::{ItemKey, size_order};
pub use kind::{DirentKind, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

#[cfg(all(test, not(loom)))]
mod tests;
