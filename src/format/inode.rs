//! Inode items by format version, and symlink targets in parts (`spec/01 §13.1`, `§13.3`).

use zerocopy::{FromBytes, IntoBytes};

use super::consts::*;
use super::ids::Ino;
use super::kind::DirentKind;
use super::layout::InodeItem;
use crate::error::{Error, Result};

const INODE_V2_BYTES: usize = size_of::<InodeItem>();

/// Decodes and checks the value of the inode item of `ino` on a volume of format version `fmt_vers`.
///
/// Version 2 volumes may still hold version 1 items, whose project id is 0. Nanoseconds that are none are clamped, not
/// refused: they harm nobody.
pub fn validate_inode(ino: Ino, value: &[u8], fmt_vers: u64) -> Result<InodeItem> {
    let bad = |why: String| Error::corrupt(format!("inode {ino}"), why);
    let right_length = match value.len() {
        INODE_V1_BYTES => true,
        INODE_V2_BYTES => fmt_vers >= FORMAT_VERSION_2,
        _ => false,
    };
    if !right_length {
        return Err(bad(format!("an item of {} bytes in format version {fmt_vers}", value.len())));
    }
    let mut bytes = [0; INODE_V2_BYTES];
    bytes[..value.len()].copy_from_slice(value);
    let mut inode = InodeItem::read_from_bytes(&bytes).expect("the array has the length of the structure");

    if ino.0 == 0 {
        return Err(bad("number 0 is never an inode".into()));
    }
    let mode = inode.mode.get();
    let kind = DirentKind::from_mode(mode).ok_or_else(|| bad(format!("mode {mode:o} names no file type")))?;
    let (size, nlink) = (inode.size.get(), inode.nlink.get());
    if size > i64::MAX as u64 {
        return Err(bad(format!("size {size}")));
    }
    match kind {
        DirentKind::Dir if nlink == 1 => return Err(bad("a directory with one link".into())),
        DirentKind::Symlink if size == 0 || size > SYMLINK_MAX as u64 => {
            return Err(bad(format!("a symlink of size {size}")));
        }
        _ => {}
    }
    if inode.next_readdir_pos.get() < DIRENT_FIRST_POS {
        return Err(bad(format!("next directory position {}", inode.next_readdir_pos)));
    }
    let blocks = inode.online_blocks.get().checked_add(inode.offline_blocks.get());
    if blocks.is_none_or(|b| b > MAX_DATA_BLOCK + 1) {
        return Err(bad(format!("{} online and {} offline blocks", inode.online_blocks, inode.offline_blocks)));
    }
    for time in [&mut inode.atime, &mut inode.ctime, &mut inode.mtime, &mut inode.crtime] {
        time.nsec.set(time.nsec.get().min(999_999_999));
    }
    Ok(inode)
}

/// The value to store for an inode on a volume of format version `fmt_vers`.
pub fn encode_inode(inode: &InodeItem, fmt_vers: u64) -> &[u8] {
    let bytes = inode.as_bytes();
    if fmt_vers >= FORMAT_VERSION_2 { bytes } else { &bytes[..INODE_V1_BYTES] }
}

/// Number of parts of a symlink whose inode has this size (target with its NUL).
pub fn symlink_parts(size: u64) -> u64 {
    size.div_ceil(PART_BYTES as u64)
}

/// The stored bytes of a symlink target: the target and one NUL. Cut them with `chunks(PART_BYTES)`.
pub fn encode_symlink(target: &[u8]) -> Vec<u8> {
    let mut v = Vec::with_capacity(target.len() + 1);
    v.extend_from_slice(target);
    v.push(0);
    v
}

/// Puts the parts of a symlink together, in order, and gives the target without its NUL.
///
/// `size` is the size of the inode. An embedded NUL ends the target (`spec/06 §6`).
pub fn decode_symlink<P: AsRef<[u8]>>(ino: Ino, size: u64, parts: &[P]) -> Result<Vec<u8>> {
    let bad = |why: &str| Error::corrupt(format!("symlink {ino}"), why);
    if size == 0 || size > SYMLINK_MAX as u64 {
        return Err(bad("a size that no symlink has"));
    }
    if parts.len() as u64 != symlink_parts(size) {
        return Err(bad("a wrong number of parts"));
    }
    let mut target = Vec::with_capacity(size as usize);
    for part in parts {
        let want = (size as usize - target.len()).min(PART_BYTES);
        if part.as_ref().len() != want {
            return Err(bad("a part of wrong length"));
        }
        target.extend_from_slice(part.as_ref());
    }
    if target.pop() != Some(0) {
        return Err(bad("the target does not end with a NUL"));
    }
    if let Some(end) = target.iter().position(|&b| b == 0) {
        target.truncate(end);
    }
    Ok(target)
}
