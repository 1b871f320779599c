//! The super block, quorum structures and volume options.
//!
//! All structures have alignment 1 and explicit padding, so they can be viewed in place in any buffer.
//! Sizes and offsets are asserted at compile time.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::base::{BlockHeader, InetAddr, Timespec};
use super::trees::{AllocListHead, AllocRoot, BtreeRoot};

/// Value of a mounted client item (`spec/01 §14`).
///
/// C name `struct scoutfs_mounted_client_btree_val`, 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct MountedClient {
    /// Offset 0.
    pub addr: InetAddr,
    /// Offset 32.
    pub flags: u8,
    /// Offset 33: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

/// Election datagram (`spec/01 §7.2`).
///
/// C name `struct scoutfs_quorum_message`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct QuorumMessage {
    /// Offset 0.
    pub fsid: U64,
    /// Offset 8.
    pub version: U64,
    /// Offset 16.
    pub term: U64,
    /// Offset 24, C name `type`.
    pub kind: u8,
    /// Offset 25.
    pub from: u8,
    /// Offset 26: padding, zero when written, ignored when read.
    pub pad: [u8; 2],
    /// Offset 28.
    pub crc: U32,
}

/// The quorum slots of a volume (`spec/01 §7.1`).
///
/// C name `struct scoutfs_quorum_config`, 488 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct QuorumConfig {
    /// Offset 0.
    pub version: U64,
    /// Offset 8.
    pub slots: [InetAddr; 15],
}

/// Last occurrence of one kind of quorum event (`spec/01 §7.3`).
///
/// C name `struct scoutfs_quorum_block_event`, 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct QuorumBlockEvent {
    /// Offset 0.
    pub write_nr: U64,
    /// Offset 8.
    pub rid: U64,
    /// Offset 16.
    pub term: U64,
    /// Offset 24.
    pub ts: Timespec,
}

/// Used part of a quorum block (`spec/01 §7.3`).
///
/// C name `struct scoutfs_quorum_block`, 280 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct QuorumBlock {
    /// Offset 0.
    pub hdr: BlockHeader,
    /// Offset 32.
    pub write_nr: U64,
    /// Offset 40.
    pub events: [QuorumBlockEvent; 6],
}

/// Volume options: option *n* is set if bit *n* of `set_bits` is (`spec/01 §6`).
///
/// C name `struct scoutfs_volume_options`, 520 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct VolumeOptionValues {
    /// Offset 0.
    pub set_bits: U64,
    /// Offset 8.
    pub data_alloc_zone_blocks: U64,
    /// Offset 16, C name `__future_expansion`.
    pub unassigned: [U64; 63],
}

/// Used part of the super block (`spec/01 §6`).
///
/// C name `struct scoutfs_super_block`, 1488 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SuperBlock {
    /// Offset 0.
    pub hdr: BlockHeader,
    /// Offset 32.
    pub id: U64,
    /// Offset 40.
    pub fmt_vers: U64,
    /// Offset 48.
    pub flags: U64,
    /// Offset 56.
    pub uuid: [u8; 16],
    /// Offset 72.
    pub seq: U64,
    /// Offset 80.
    pub next_ino: U64,
    /// Offset 88.
    pub inode_count: U64,
    /// Offset 96.
    pub total_meta_blocks: U64,
    /// Offset 104.
    pub total_data_blocks: U64,
    /// Offset 112.
    pub qconf: QuorumConfig,
    /// Offset 600.
    pub meta_alloc: [AllocRoot; 2],
    /// Offset 680.
    pub data_alloc: AllocRoot,
    /// Offset 720.
    pub server_meta_avail: [AllocListHead; 2],
    /// Offset 784.
    pub server_meta_freed: [AllocListHead; 2],
    /// Offset 848.
    pub fs_root: BtreeRoot,
    /// Offset 872.
    pub logs_root: BtreeRoot,
    /// Offset 896.
    pub log_merge: BtreeRoot,
    /// Offset 920.
    pub mounted_clients: BtreeRoot,
    /// Offset 944.
    pub srch_root: BtreeRoot,
    /// Offset 968.
    pub volopt: VolumeOptionValues,
}

const _: () = {
    assert!(size_of::<MountedClient>() == 40);
    assert!(offset_of!(MountedClient, addr) == 0);
    assert!(offset_of!(MountedClient, flags) == 32);
};
const _: () = {
    assert!(size_of::<QuorumMessage>() == 32);
    assert!(offset_of!(QuorumMessage, fsid) == 0);
    assert!(offset_of!(QuorumMessage, version) == 8);
    assert!(offset_of!(QuorumMessage, term) == 16);
    assert!(offset_of!(QuorumMessage, kind) == 24);
    assert!(offset_of!(QuorumMessage, from) == 25);
    assert!(offset_of!(QuorumMessage, crc) == 28);
};
const _: () = {
    assert!(size_of::<QuorumConfig>() == 488);
    assert!(offset_of!(QuorumConfig, version) == 0);
    assert!(offset_of!(QuorumConfig, slots) == 8);
};
const _: () = {
    assert!(size_of::<QuorumBlockEvent>() == 40);
    assert!(offset_of!(QuorumBlockEvent, write_nr) == 0);
    assert!(offset_of!(QuorumBlockEvent, rid) == 8);
    assert!(offset_of!(QuorumBlockEvent, term) == 16);
    assert!(offset_of!(QuorumBlockEvent, ts) == 24);
};
const _: () = {
    assert!(size_of::<QuorumBlock>() == 280);
    assert!(offset_of!(QuorumBlock, hdr) == 0);
    assert!(offset_of!(QuorumBlock, write_nr) == 32);
    assert!(offset_of!(QuorumBlock, events) == 40);
};
const _: () = {
    assert!(size_of::<VolumeOptionValues>() == 520);
    assert!(offset_of!(VolumeOptionValues, set_bits) == 0);
    assert!(offset_of!(VolumeOptionValues, data_alloc_zone_blocks) == 8);
    assert!(offset_of!(VolumeOptionValues, unassigned) == 16);
};
const _: () = {
    assert!(size_of::<SuperBlock>() == 1488);
    assert!(offset_of!(SuperBlock, hdr) == 0);
    assert!(offset_of!(SuperBlock, id) == 32);
    assert!(offset_of!(SuperBlock, fmt_vers) == 40);
    assert!(offset_of!(SuperBlock, flags) == 48);
    assert!(offset_of!(SuperBlock, uuid) == 56);
    assert!(offset_of!(SuperBlock, seq) == 72);
    assert!(offset_of!(SuperBlock, next_ino) == 80);
    assert!(offset_of!(SuperBlock, inode_count) == 88);
    assert!(offset_of!(SuperBlock, total_meta_blocks) == 96);
    assert!(offset_of!(SuperBlock, total_data_blocks) == 104);
    assert!(offset_of!(SuperBlock, qconf) == 112);
    assert!(offset_of!(SuperBlock, meta_alloc) == 600);
    assert!(offset_of!(SuperBlock, data_alloc) == 680);
    assert!(offset_of!(SuperBlock, server_meta_avail) == 720);
    assert!(offset_of!(SuperBlock, server_meta_freed) == 784);
    assert!(offset_of!(SuperBlock, fs_root) == 848);
    assert!(offset_of!(SuperBlock, logs_root) == 872);
    assert!(offset_of!(SuperBlock, log_merge) == 896);
    assert!(offset_of!(SuperBlock, mounted_clients) == 920);
    assert!(offset_of!(SuperBlock, srch_root) == 944);
    assert!(offset_of!(SuperBlock, volopt) == 968);
};
