//! Structures that the others are made of: times, addresses, block headers and references, stored keys.
//!
//! All structures have alignment 1 and explicit padding, so they can be viewed in place in any buffer.
//! Sizes and offsets are asserted at compile time.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A point in time: seconds are the two's complement of a signed Unix time (`spec/01 §3`).
///
/// C name `struct scoutfs_timespec`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct Timespec {
    /// Offset 0.
    pub sec: U64,
    /// Offset 8.
    pub nsec: U32,
    /// Offset 12: padding, zero when written, ignored when read.
    pub pad: [u8; 4],
}

/// A network address; only the IPv4 arm is in use (`spec/01 §3`).
///
/// C name `struct scoutfs_inet_addr`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct InetAddr {
    /// Offset 0, C name `le16`.
    pub family: U16,
    /// Offset 2.
    pub port: U16,
    /// Offset 4.
    pub addr: U32,
    /// Offset 8: padding, zero when written, ignored when read.
    pub pad: [u8; 24],
}

/// Head of the super block, of quorum blocks and of every 64 KiB metadata block (`spec/01 §2.2`).
///
/// C name `struct scoutfs_block_header`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct BlockHeader {
    /// Offset 0.
    pub crc: U32,
    /// Offset 4.
    pub magic: U32,
    /// Offset 8.
    pub fsid: U64,
    /// Offset 16.
    pub seq: U64,
    /// Offset 24.
    pub blkno: U64,
}

/// Reference to one version of a 64 KiB metadata block; block number 0 is "none" (`spec/01 §2.4`).
///
/// C name `struct scoutfs_block_ref`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct BlockRef {
    /// Offset 0.
    pub blkno: U64,
    /// Offset 8.
    pub seq: U64,
}

/// A key as stored on disk and sent on the wire (`spec/01 §4.1`); compute with [`crate::format::Key`].
///
/// C name `struct scoutfs_key`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct StoredKey {
    /// Offset 0, C name `_sk_first`.
    pub first: U64,
    /// Offset 8, C name `_sk_second`.
    pub second: U64,
    /// Offset 16, C name `_sk_third`.
    pub third: U64,
    /// Offset 24, C name `_sk_fourth`.
    pub fourth: u8,
    /// Offset 25, C name `sk_zone`.
    pub zone: u8,
    /// Offset 26, C name `sk_type`.
    pub kind: u8,
    /// Offset 27: padding, zero when written, ignored when read.
    pub pad: [u8; 5],
}

const _: () = {
    assert!(size_of::<Timespec>() == 16);
    assert!(offset_of!(Timespec, sec) == 0);
    assert!(offset_of!(Timespec, nsec) == 8);
};
const _: () = {
    assert!(size_of::<InetAddr>() == 32);
    assert!(offset_of!(InetAddr, family) == 0);
    assert!(offset_of!(InetAddr, port) == 2);
    assert!(offset_of!(InetAddr, addr) == 4);
};
const _: () = {
    assert!(size_of::<BlockHeader>() == 32);
    assert!(offset_of!(BlockHeader, crc) == 0);
    assert!(offset_of!(BlockHeader, magic) == 4);
    assert!(offset_of!(BlockHeader, fsid) == 8);
    assert!(offset_of!(BlockHeader, seq) == 16);
    assert!(offset_of!(BlockHeader, blkno) == 24);
};
const _: () = {
    assert!(size_of::<BlockRef>() == 16);
    assert!(offset_of!(BlockRef, blkno) == 0);
    assert!(offset_of!(BlockRef, seq) == 8);
};
const _: () = {
    assert!(size_of::<StoredKey>() == 32);
    assert!(offset_of!(StoredKey, first) == 0);
    assert!(offset_of!(StoredKey, second) == 8);
    assert!(offset_of!(StoredKey, third) == 16);
    assert!(offset_of!(StoredKey, fourth) == 24);
    assert!(offset_of!(StoredKey, zone) == 25);
    assert!(offset_of!(StoredKey, kind) == 26);
};
