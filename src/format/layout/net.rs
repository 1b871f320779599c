//! Frames and payloads of the cluster protocol.
//!
//! All structures have alignment 1 and explicit padding, so they can be viewed in place in any buffer.
//! Sizes and offsets are asserted at compile time.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::base::StoredKey;
use super::trees::BtreeRoot;

/// Head of every frame (`spec/05 §2.5`).
///
/// C name `struct scoutfs_net_header`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetHeader {
    /// Offset 0.
    pub seq: U64,
    /// Offset 8.
    pub recv_seq: U64,
    /// Offset 16.
    pub id: U64,
    /// Offset 24.
    pub data_len: U16,
    /// Offset 26.
    pub cmd: u8,
    /// Offset 27.
    pub flags: u8,
    /// Offset 28.
    pub error: u8,
    /// Offset 29: padding, zero when written, ignored when read.
    pub pad: [u8; 3],
}

/// Payload of GREETING (`spec/05 §2.6`).
///
/// C name `struct scoutfs_net_greeting`, 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetGreeting {
    /// Offset 0.
    pub fsid: U64,
    /// Offset 8.
    pub fmt_vers: U64,
    /// Offset 16.
    pub server_term: U64,
    /// Offset 24.
    pub rid: U64,
    /// Offset 32.
    pub flags: U64,
}

/// Response to ALLOC_INODES (`spec/05 §2.7`).
///
/// C name `struct scoutfs_net_inode_alloc`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetInodeAlloc {
    /// Offset 0.
    pub ino: U64,
    /// Offset 8.
    pub nr: U64,
}

/// Response to GET_ROOTS (`spec/05 §2.7`).
///
/// C name `struct scoutfs_net_roots`, 72 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetRoots {
    /// Offset 0.
    pub fs_root: BtreeRoot,
    /// Offset 24.
    pub logs_root: BtreeRoot,
    /// Offset 48.
    pub srch_root: BtreeRoot,
}

/// Payload of RESIZE_DEVICES (`spec/05 §2.7`).
///
/// C name `struct scoutfs_net_resize_devices`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetResizeDevices {
    /// Offset 0.
    pub new_total_meta_blocks: U64,
    /// Offset 8.
    pub new_total_data_blocks: U64,
}

/// Response to STATFS (`spec/05 §2.7`).
///
/// C name `struct scoutfs_net_statfs`, 56 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetStatfs {
    /// Offset 0.
    pub uuid: [u8; 16],
    /// Offset 16.
    pub free_meta_blocks: U64,
    /// Offset 24.
    pub total_meta_blocks: U64,
    /// Offset 32.
    pub free_data_blocks: U64,
    /// Offset 40.
    pub total_data_blocks: U64,
    /// Offset 48.
    pub inode_count: U64,
}

/// Payload of LOCK (`spec/04 §6`).
///
/// C name `struct scoutfs_net_lock`, 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetLock {
    /// Offset 0.
    pub key: StoredKey,
    /// Offset 32.
    pub write_seq: U64,
    /// Offset 40.
    pub old_mode: u8,
    /// Offset 41.
    pub new_mode: u8,
    /// Offset 42: padding, zero when written, ignored when read.
    pub pad: [u8; 6],
}

/// Head of a LOCK_RECOVER response (`spec/04 §6`).
///
/// C name `struct scoutfs_net_lock_recover`, 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct NetLockRecoverHead {
    /// Offset 0.
    pub nr: U16,
    /// Offset 2: padding, zero when written, ignored when read.
    pub pad: [u8; 6],
}

/// Payload of an OPEN_INO_MAP request (`spec/05 §2.7`).
///
/// C name `struct scoutfs_open_ino_map_args`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct OpenInoMapArgs {
    /// Offset 0.
    pub group_nr: U64,
    /// Offset 8.
    pub req_id: U64,
}

/// Payload of an OPEN_INO_MAP response (`spec/05 §2.7`).
///
/// C name `struct scoutfs_open_ino_map`, 144 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct OpenInoMap {
    /// Offset 0.
    pub args: OpenInoMapArgs,
    /// Offset 16.
    pub bits: [U64; 16],
}

const _: () = {
    assert!(size_of::<NetHeader>() == 32);
    assert!(offset_of!(NetHeader, seq) == 0);
    assert!(offset_of!(NetHeader, recv_seq) == 8);
    assert!(offset_of!(NetHeader, id) == 16);
    assert!(offset_of!(NetHeader, data_len) == 24);
    assert!(offset_of!(NetHeader, cmd) == 26);
    assert!(offset_of!(NetHeader, flags) == 27);
    assert!(offset_of!(NetHeader, error) == 28);
};
const _: () = {
    assert!(size_of::<NetGreeting>() == 40);
    assert!(offset_of!(NetGreeting, fsid) == 0);
    assert!(offset_of!(NetGreeting, fmt_vers) == 8);
    assert!(offset_of!(NetGreeting, server_term) == 16);
    assert!(offset_of!(NetGreeting, rid) == 24);
    assert!(offset_of!(NetGreeting, flags) == 32);
};
const _: () = {
    assert!(size_of::<NetInodeAlloc>() == 16);
    assert!(offset_of!(NetInodeAlloc, ino) == 0);
    assert!(offset_of!(NetInodeAlloc, nr) == 8);
};
const _: () = {
    assert!(size_of::<NetRoots>() == 72);
    assert!(offset_of!(NetRoots, fs_root) == 0);
    assert!(offset_of!(NetRoots, logs_root) == 24);
    assert!(offset_of!(NetRoots, srch_root) == 48);
};
const _: () = {
    assert!(size_of::<NetResizeDevices>() == 16);
    assert!(offset_of!(NetResizeDevices, new_total_meta_blocks) == 0);
    assert!(offset_of!(NetResizeDevices, new_total_data_blocks) == 8);
};
const _: () = {
    assert!(size_of::<NetStatfs>() == 56);
    assert!(offset_of!(NetStatfs, uuid) == 0);
    assert!(offset_of!(NetStatfs, free_meta_blocks) == 16);
    assert!(offset_of!(NetStatfs, total_meta_blocks) == 24);
    assert!(offset_of!(NetStatfs, free_data_blocks) == 32);
    assert!(offset_of!(NetStatfs, total_data_blocks) == 40);
    assert!(offset_of!(NetStatfs, inode_count) == 48);
};
const _: () = {
    assert!(size_of::<NetLock>() == 48);
    assert!(offset_of!(NetLock, key) == 0);
    assert!(offset_of!(NetLock, write_seq) == 32);
    assert!(offset_of!(NetLock, old_mode) == 40);
    assert!(offset_of!(NetLock, new_mode) == 41);
};
const _: () = {
    assert!(size_of::<NetLockRecoverHead>() == 8);
    assert!(offset_of!(NetLockRecoverHead, nr) == 0);
};
const _: () = {
    assert!(size_of::<OpenInoMapArgs>() == 16);
    assert!(offset_of!(OpenInoMapArgs, group_nr) == 0);
    assert!(offset_of!(OpenInoMapArgs, req_id) == 8);
};
const _: () = {
    assert!(size_of::<OpenInoMap>() == 144);
    assert!(offset_of!(OpenInoMap, args) == 0);
    assert!(offset_of!(OpenInoMap, bits) == 16);
};
