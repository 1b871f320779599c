//! Values of filesystem items.
//!
//! All structures have alignment 1 and explicit padding, so they can be viewed in place in any buffer.
//! Sizes and offsets are asserted at compile time.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::base::Timespec;

/// Value of an inode item; version 1 volumes store the first 160 bytes (`spec/01 §13.1`).
///
/// C name `struct scoutfs_inode`, 168 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct InodeItem {
    /// Offset 0.
    pub size: U64,
    /// Offset 8.
    pub meta_seq: U64,
    /// Offset 16.
    pub data_seq: U64,
    /// Offset 24.
    pub data_version: U64,
    /// Offset 32.
    pub online_blocks: U64,
    /// Offset 40.
    pub offline_blocks: U64,
    /// Offset 48.
    pub next_readdir_pos: U64,
    /// Offset 56.
    pub next_xattr_id: U64,
    /// Offset 64.
    pub version: U64,
    /// Offset 72.
    pub nlink: U32,
    /// Offset 76.
    pub uid: U32,
    /// Offset 80.
    pub gid: U32,
    /// Offset 84.
    pub mode: U32,
    /// Offset 88.
    pub rdev: U32,
    /// Offset 92.
    pub flags: U32,
    /// Offset 96.
    pub atime: Timespec,
    /// Offset 112.
    pub ctime: Timespec,
    /// Offset 128.
    pub mtime: Timespec,
    /// Offset 144.
    pub crtime: Timespec,
    /// Offset 160.
    pub proj: U64,
}

/// Head of a directory entry value, followed by the name (`spec/01 §13.2`).
///
/// C name `struct scoutfs_dirent`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct DirentHead {
    /// Offset 0.
    pub ino: U64,
    /// Offset 8.
    pub hash: U64,
    /// Offset 16.
    pub pos: U64,
    /// Offset 24, C name `type`.
    pub kind: u8,
    /// Offset 25: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

/// Head of the first part of an extended attribute (`spec/01 §13.4`).
///
/// C name `struct scoutfs_xattr`, 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct XattrHead {
    /// Offset 0.
    pub val_len: U16,
    /// Offset 2.
    pub name_len: u8,
    /// Offset 3: padding, zero when written, ignored when read.
    pub pad: [u8; 5],
}

/// Value of a data extent item (`spec/01 §13.5`).
///
/// C name `struct scoutfs_data_extent_val`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct DataExtentVal {
    /// Offset 0.
    pub blkno: U64,
    /// Offset 8.
    pub flags: u8,
    /// Offset 9: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

/// A total: sum and count, two's complement (`spec/01 §13.7`).
///
/// C name `struct scoutfs_xattr_totl_val`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct XattrTotlVal {
    /// Offset 0.
    pub total: U64,
    /// Offset 8.
    pub count: U64,
}

/// A quota rule (`spec/01 §13.8`).
///
/// C name `struct scoutfs_quota_rule_val`, 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct QuotaRuleVal {
    /// Offset 0.
    pub name_val: [U64; 3],
    /// Offset 24.
    pub limit: U64,
    /// Offset 32.
    pub prio: u8,
    /// Offset 33.
    pub op: u8,
    /// Offset 34.
    pub rule_flags: u8,
    /// Offset 35.
    pub name_source: [u8; 3],
    /// Offset 38.
    pub name_flags: [u8; 3],
    /// Offset 41: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

const _: () = {
    assert!(size_of::<InodeItem>() == 168);
    assert!(offset_of!(InodeItem, size) == 0);
    assert!(offset_of!(InodeItem, meta_seq) == 8);
    assert!(offset_of!(InodeItem, data_seq) == 16);
    assert!(offset_of!(InodeItem, data_version) == 24);
    assert!(offset_of!(InodeItem, online_blocks) == 32);
    assert!(offset_of!(InodeItem, offline_blocks) == 40);
    assert!(offset_of!(InodeItem, next_readdir_pos) == 48);
    assert!(offset_of!(InodeItem, next_xattr_id) == 56);
    assert!(offset_of!(InodeItem, version) == 64);
    assert!(offset_of!(InodeItem, nlink) == 72);
    assert!(offset_of!(InodeItem, uid) == 76);
    assert!(offset_of!(InodeItem, gid) == 80);
    assert!(offset_of!(InodeItem, mode) == 84);
    assert!(offset_of!(InodeItem, rdev) == 88);
    assert!(offset_of!(InodeItem, flags) == 92);
    assert!(offset_of!(InodeItem, atime) == 96);
    assert!(offset_of!(InodeItem, ctime) == 112);
    assert!(offset_of!(InodeItem, mtime) == 128);
    assert!(offset_of!(InodeItem, crtime) == 144);
    assert!(offset_of!(InodeItem, proj) == 160);
};
const _: () = {
    assert!(size_of::<DirentHead>() == 32);
    assert!(offset_of!(DirentHead, ino) == 0);
    assert!(offset_of!(DirentHead, hash) == 8);
    assert!(offset_of!(DirentHead, pos) == 16);
    assert!(offset_of!(DirentHead, kind) == 24);
};
const _: () = {
    assert!(size_of::<XattrHead>() == 8);
    assert!(offset_of!(XattrHead, val_len) == 0);
    assert!(offset_of!(XattrHead, name_len) == 2);
};
const _: () = {
    assert!(size_of::<DataExtentVal>() == 16);
    assert!(offset_of!(DataExtentVal, blkno) == 0);
    assert!(offset_of!(DataExtentVal, flags) == 8);
};
const _: () = {
    assert!(size_of::<XattrTotlVal>() == 16);
    assert!(offset_of!(XattrTotlVal, total) == 0);
    assert!(offset_of!(XattrTotlVal, count) == 8);
};
const _: () = {
    assert!(size_of::<QuotaRuleVal>() == 48);
    assert!(offset_of!(QuotaRuleVal, name_val) == 0);
    assert!(offset_of!(QuotaRuleVal, limit) == 24);
    assert!(offset_of!(QuotaRuleVal, prio) == 32);
    assert!(offset_of!(QuotaRuleVal, op) == 33);
    assert!(offset_of!(QuotaRuleVal, rule_flags) == 34);
    assert!(offset_of!(QuotaRuleVal, name_source) == 35);
    assert!(offset_of!(QuotaRuleVal, name_flags) == 38);
};
