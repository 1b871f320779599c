//! B-tree and allocator structures, log trees and log merge items.
//!
//! All structures have alignment 1 and explicit padding, so they can be viewed in place in any buffer.
//! Sizes and offsets are asserted at compile time.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::base::{BlockHeader, BlockRef, StoredKey};

/// In-block AVL links of one B-tree item; offsets count from byte 32 of the block (`spec/01 §8.1`).
///
/// C name `struct scoutfs_avl_node`, 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct AvlNode {
    /// Offset 0.
    pub parent: U16,
    /// Offset 2.
    pub left: U16,
    /// Offset 4.
    pub right: U16,
    /// Offset 6.
    pub height: u8,
    /// Offset 7: padding, zero when written, ignored when read.
    pub pad: [u8; 1],
}

/// Root of a B-tree: all zero is the empty tree (`spec/01 §3`).
///
/// C name `struct scoutfs_btree_root`, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct BtreeRoot {
    /// Offset 0, C name `ref`.
    pub block_ref: BlockRef,
    /// Offset 16.
    pub height: u8,
    /// Offset 17: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

/// Item head inside a B-tree block (`spec/01 §8.1`).
///
/// C name `struct scoutfs_btree_item`, 56 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct BtreeItem {
    /// Offset 0.
    pub node: AvlNode,
    /// Offset 8.
    pub key: StoredKey,
    /// Offset 40.
    pub seq: U64,
    /// Offset 48.
    pub val_off: U16,
    /// Offset 50.
    pub val_len: U16,
    /// Offset 52.
    pub flags: u8,
    /// Offset 53: padding, zero when written, ignored when read.
    pub pad: [u8; 3],
}

/// First 48 bytes of a B-tree block (`spec/01 §8.1`).
///
/// C name `struct scoutfs_btree_block`, 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct BtreeBlockHead {
    /// Offset 0.
    pub hdr: BlockHeader,
    /// Offset 32.
    pub item_root: U16,
    /// Offset 34.
    pub nr_items: U16,
    /// Offset 36.
    pub total_item_bytes: U16,
    /// Offset 38.
    pub mid_free_len: U16,
    /// Offset 40.
    pub level: u8,
    /// Offset 41: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

/// Head of a list of free metadata blocks (`spec/01 §9.1`).
///
/// C name `struct scoutfs_alloc_list_head`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct AllocListHead {
    /// Offset 0, C name `ref`.
    pub block_ref: BlockRef,
    /// Offset 16.
    pub total_nr: U64,
    /// Offset 24.
    pub first_nr: U32,
    /// Offset 28.
    pub flags: U32,
}

/// First 56 bytes of an allocator list block (`spec/01 §9.1`).
///
/// C name `struct scoutfs_alloc_list_block`, 56 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct AllocListBlockHead {
    /// Offset 0.
    pub hdr: BlockHeader,
    /// Offset 32.
    pub next: BlockRef,
    /// Offset 48.
    pub start: U32,
    /// Offset 52.
    pub nr: U32,
}

/// Root of a tree of free extents (`spec/01 §9.2`).
///
/// C name `struct scoutfs_alloc_root`, 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct AllocRoot {
    /// Offset 0.
    pub total_len: U64,
    /// Offset 8.
    pub flags: U32,
    /// Offset 12: padding, zero when written, ignored when read.
    pub pad: U32,
    /// Offset 16.
    pub root: BtreeRoot,
}

/// One entry of a search file, ordered by hash, inode, id (`spec/01 §12`).
///
/// C name `struct scoutfs_srch_entry`, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SrchEntry {
    /// Offset 0.
    pub hash: U64,
    /// Offset 8.
    pub ino: U64,
    /// Offset 16.
    pub id: U64,
}

/// Descriptor of a search file (`spec/01 §12`).
///
/// C name `struct scoutfs_srch_file`, 88 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SrchFile {
    /// Offset 0.
    pub first: SrchEntry,
    /// Offset 24.
    pub last: SrchEntry,
    /// Offset 48, C name `ref`.
    pub block_ref: BlockRef,
    /// Offset 64.
    pub blocks: U64,
    /// Offset 72.
    pub entries: U64,
    /// Offset 80.
    pub height: u8,
    /// Offset 81: padding, zero when written, ignored when read.
    pub pad: [u8; 7],
}

/// First 112 bytes of a search data block (`spec/01 §12`).
///
/// C name `struct scoutfs_srch_block`, 112 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SrchBlockHead {
    /// Offset 0.
    pub hdr: BlockHeader,
    /// Offset 32.
    pub first: SrchEntry,
    /// Offset 56.
    pub last: SrchEntry,
    /// Offset 80.
    pub tail: SrchEntry,
    /// Offset 104.
    pub entry_nr: U32,
    /// Offset 108.
    pub entry_bytes: U32,
}

/// One input of a search compaction (`spec/01 §12`).
///
/// C name `struct scoutfs_srch_compact_input`, 104 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SrchCompactInput {
    /// Offset 0.
    pub sfl: SrchFile,
    /// Offset 88.
    pub blk: U64,
    /// Offset 96.
    pub pos: U64,
}

/// A search compaction, as item value and as message (`spec/01 §12`).
///
/// C name `struct scoutfs_srch_compact`, 584 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SrchCompact {
    /// Offset 0.
    pub meta_avail: AllocListHead,
    /// Offset 32.
    pub meta_freed: AllocListHead,
    /// Offset 64.
    pub id: U64,
    /// Offset 72.
    pub nr: u8,
    /// Offset 73.
    pub flags: u8,
    /// Offset 74: padding, zero when written, ignored when read.
    pub pad: [u8; 6],
    /// Offset 80, C name `out`.
    pub output: SrchFile,
    /// Offset 168, C name `in`.
    pub inputs: [SrchCompactInput; 4],
}

/// Everything one mount uses in a transaction (`spec/01 §10.1`).
///
/// C name `struct scoutfs_log_trees`, 472 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct LogTrees {
    /// Offset 0.
    pub meta_avail: AllocListHead,
    /// Offset 32.
    pub meta_freed: AllocListHead,
    /// Offset 64.
    pub item_root: BtreeRoot,
    /// Offset 88.
    pub bloom_ref: BlockRef,
    /// Offset 104.
    pub data_avail: AllocRoot,
    /// Offset 144.
    pub data_freed: AllocRoot,
    /// Offset 184.
    pub srch_file: SrchFile,
    /// Offset 272.
    pub data_alloc_zone_blocks: U64,
    /// Offset 280.
    pub data_alloc_zones: [U64; 16],
    /// Offset 408.
    pub inode_count_delta: U64,
    /// Offset 416.
    pub get_trans_seq: U64,
    /// Offset 424.
    pub commit_trans_seq: U64,
    /// Offset 432.
    pub max_item_seq: U64,
    /// Offset 440.
    pub finalize_seq: U64,
    /// Offset 448.
    pub rid: U64,
    /// Offset 456.
    pub nr: U64,
    /// Offset 464.
    pub flags: U64,
}

/// First 40 bytes of a bloom block (`spec/01 §10.3`).
///
/// C name `struct scoutfs_bloom_block`, 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct BloomBlockHead {
    /// Offset 0.
    pub hdr: BlockHeader,
    /// Offset 32.
    pub total_set: U64,
}

/// Exists exactly while a log merge runs (`spec/01 §11`).
///
/// C name `struct scoutfs_log_merge_status`, 56 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct LogMergeStatus {
    /// Offset 0.
    pub next_range_key: StoredKey,
    /// Offset 32.
    pub nr_requests: U64,
    /// Offset 40.
    pub nr_complete: U64,
    /// Offset 48.
    pub seq: U64,
}

/// A piece of merge work handed to a client (`spec/01 §11`).
///
/// C name `struct scoutfs_log_merge_request`, 208 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct LogMergeRequest {
    /// Offset 0.
    pub meta_avail: AllocListHead,
    /// Offset 32.
    pub meta_freed: AllocListHead,
    /// Offset 64.
    pub logs_root: BtreeRoot,
    /// Offset 88.
    pub root: BtreeRoot,
    /// Offset 112.
    pub start: StoredKey,
    /// Offset 144.
    pub end: StoredKey,
    /// Offset 176.
    pub input_seq: U64,
    /// Offset 184.
    pub rid: U64,
    /// Offset 192.
    pub seq: U64,
    /// Offset 200.
    pub flags: U64,
}

/// The answer to a [`LogMergeRequest`] (`spec/01 §11`).
///
/// C name `struct scoutfs_log_merge_complete`, 208 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct LogMergeComplete {
    /// Offset 0.
    pub meta_avail: AllocListHead,
    /// Offset 32.
    pub meta_freed: AllocListHead,
    /// Offset 64.
    pub root: BtreeRoot,
    /// Offset 88.
    pub start: StoredKey,
    /// Offset 120.
    pub end: StoredKey,
    /// Offset 152.
    pub remain: StoredKey,
    /// Offset 184.
    pub rid: U64,
    /// Offset 192.
    pub seq: U64,
    /// Offset 200.
    pub flags: U64,
}

/// A key range still to be merged (`spec/01 §11`).
///
/// C name `struct scoutfs_log_merge_range`, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct LogMergeRange {
    /// Offset 0.
    pub start: StoredKey,
    /// Offset 32.
    pub end: StoredKey,
}

/// A merged log tree whose blocks are being freed (`spec/01 §11`).
///
/// C name `struct scoutfs_log_merge_freeing`, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct LogMergeFreeing {
    /// Offset 0.
    pub root: BtreeRoot,
    /// Offset 24.
    pub key: StoredKey,
    /// Offset 56.
    pub seq: U64,
}

const _: () = {
    assert!(size_of::<AvlNode>() == 8);
    assert!(offset_of!(AvlNode, parent) == 0);
    assert!(offset_of!(AvlNode, left) == 2);
    assert!(offset_of!(AvlNode, right) == 4);
    assert!(offset_of!(AvlNode, height) == 6);
};
const _: () = {
    assert!(size_of::<BtreeRoot>() == 24);
    assert!(offset_of!(BtreeRoot, block_ref) == 0);
    assert!(offset_of!(BtreeRoot, height) == 16);
};
const _: () = {
    assert!(size_of::<BtreeItem>() == 56);
    assert!(offset_of!(BtreeItem, node) == 0);
    assert!(offset_of!(BtreeItem, key) == 8);
    assert!(offset_of!(BtreeItem, seq) == 40);
    assert!(offset_of!(BtreeItem, val_off) == 48);
    assert!(offset_of!(BtreeItem, val_len) == 50);
    assert!(offset_of!(BtreeItem, flags) == 52);
};
const _: () = {
    assert!(size_of::<BtreeBlockHead>() == 48);
    assert!(offset_of!(BtreeBlockHead, hdr) == 0);
    assert!(offset_of!(BtreeBlockHead, item_root) == 32);
    assert!(offset_of!(BtreeBlockHead, nr_items) == 34);
    assert!(offset_of!(BtreeBlockHead, total_item_bytes) == 36);
    assert!(offset_of!(BtreeBlockHead, mid_free_len) == 38);
    assert!(offset_of!(BtreeBlockHead, level) == 40);
};
const _: () = {
    assert!(size_of::<AllocListHead>() == 32);
    assert!(offset_of!(AllocListHead, block_ref) == 0);
    assert!(offset_of!(AllocListHead, total_nr) == 16);
    assert!(offset_of!(AllocListHead, first_nr) == 24);
    assert!(offset_of!(AllocListHead, flags) == 28);
};
const _: () = {
    assert!(size_of::<AllocListBlockHead>() == 56);
    assert!(offset_of!(AllocListBlockHead, hdr) == 0);
    assert!(offset_of!(AllocListBlockHead, next) == 32);
    assert!(offset_of!(AllocListBlockHead, start) == 48);
    assert!(offset_of!(AllocListBlockHead, nr) == 52);
};
const _: () = {
    assert!(size_of::<AllocRoot>() == 40);
    assert!(offset_of!(AllocRoot, total_len) == 0);
    assert!(offset_of!(AllocRoot, flags) == 8);
    assert!(offset_of!(AllocRoot, root) == 16);
};
const _: () = {
    assert!(size_of::<SrchEntry>() == 24);
    assert!(offset_of!(SrchEntry, hash) == 0);
    assert!(offset_of!(SrchEntry, ino) == 8);
    assert!(offset_of!(SrchEntry, id) == 16);
};
const _: () = {
    assert!(size_of::<SrchFile>() == 88);
    assert!(offset_of!(SrchFile, first) == 0);
    assert!(offset_of!(SrchFile, last) == 24);
    assert!(offset_of!(SrchFile, block_ref) == 48);
    assert!(offset_of!(SrchFile, blocks) == 64);
    assert!(offset_of!(SrchFile, entries) == 72);
    assert!(offset_of!(SrchFile, height) == 80);
};
const _: () = {
    assert!(size_of::<SrchBlockHead>() == 112);
    assert!(offset_of!(SrchBlockHead, hdr) == 0);
    assert!(offset_of!(SrchBlockHead, first) == 32);
    assert!(offset_of!(SrchBlockHead, last) == 56);
    assert!(offset_of!(SrchBlockHead, tail) == 80);
    assert!(offset_of!(SrchBlockHead, entry_nr) == 104);
    assert!(offset_of!(SrchBlockHead, entry_bytes) == 108);
};
const _: () = {
    assert!(size_of::<SrchCompactInput>() == 104);
    assert!(offset_of!(SrchCompactInput, sfl) == 0);
    assert!(offset_of!(SrchCompactInput, blk) == 88);
    assert!(offset_of!(SrchCompactInput, pos) == 96);
};
const _: () = {
    assert!(size_of::<SrchCompact>() == 584);
    assert!(offset_of!(SrchCompact, meta_avail) == 0);
    assert!(offset_of!(SrchCompact, meta_freed) == 32);
    assert!(offset_of!(SrchCompact, id) == 64);
    assert!(offset_of!(SrchCompact, nr) == 72);
    assert!(offset_of!(SrchCompact, flags) == 73);
    assert!(offset_of!(SrchCompact, output) == 80);
    assert!(offset_of!(SrchCompact, inputs) == 168);
};
const _: () = {
    assert!(size_of::<LogTrees>() == 472);
    assert!(offset_of!(LogTrees, meta_avail) == 0);
    assert!(offset_of!(LogTrees, meta_freed) == 32);
    assert!(offset_of!(LogTrees, item_root) == 64);
    assert!(offset_of!(LogTrees, bloom_ref) == 88);
    assert!(offset_of!(LogTrees, data_avail) == 104);
    assert!(offset_of!(LogTrees, data_freed) == 144);
    assert!(offset_of!(LogTrees, srch_file) == 184);
    assert!(offset_of!(LogTrees, data_alloc_zone_blocks) == 272);
    assert!(offset_of!(LogTrees, data_alloc_zones) == 280);
    assert!(offset_of!(LogTrees, inode_count_delta) == 408);
    assert!(offset_of!(LogTrees, get_trans_seq) == 416);
    assert!(offset_of!(LogTrees, commit_trans_seq) == 424);
    assert!(offset_of!(LogTrees, max_item_seq) == 432);
    assert!(offset_of!(LogTrees, finalize_seq) == 440);
    assert!(offset_of!(LogTrees, rid) == 448);
    assert!(offset_of!(LogTrees, nr) == 456);
    assert!(offset_of!(LogTrees, flags) == 464);
};
const _: () = {
    assert!(size_of::<BloomBlockHead>() == 40);
    assert!(offset_of!(BloomBlockHead, hdr) == 0);
    assert!(offset_of!(BloomBlockHead, total_set) == 32);
};
const _: () = {
    assert!(size_of::<LogMergeStatus>() == 56);
    assert!(offset_of!(LogMergeStatus, next_range_key) == 0);
    assert!(offset_of!(LogMergeStatus, nr_requests) == 32);
    assert!(offset_of!(LogMergeStatus, nr_complete) == 40);
    assert!(offset_of!(LogMergeStatus, seq) == 48);
};
const _: () = {
    assert!(size_of::<LogMergeRequest>() == 208);
    assert!(offset_of!(LogMergeRequest, meta_avail) == 0);
    assert!(offset_of!(LogMergeRequest, meta_freed) == 32);
    assert!(offset_of!(LogMergeRequest, logs_root) == 64);
    assert!(offset_of!(LogMergeRequest, root) == 88);
    assert!(offset_of!(LogMergeRequest, start) == 112);
    assert!(offset_of!(LogMergeRequest, end) == 144);
    assert!(offset_of!(LogMergeRequest, input_seq) == 176);
    assert!(offset_of!(LogMergeRequest, rid) == 184);
    assert!(offset_of!(LogMergeRequest, seq) == 192);
    assert!(offset_of!(LogMergeRequest, flags) == 200);
};
const _: () = {
    assert!(size_of::<LogMergeComplete>() == 208);
    assert!(offset_of!(LogMergeComplete, meta_avail) == 0);
    assert!(offset_of!(LogMergeComplete, meta_freed) == 32);
    assert!(offset_of!(LogMergeComplete, root) == 64);
    assert!(offset_of!(LogMergeComplete, start) == 88);
    assert!(offset_of!(LogMergeComplete, end) == 120);
    assert!(offset_of!(LogMergeComplete, remain) == 152);
    assert!(offset_of!(LogMergeComplete, rid) == 184);
    assert!(offset_of!(LogMergeComplete, seq) == 192);
    assert!(offset_of!(LogMergeComplete, flags) == 200);
};
const _: () = {
    assert!(size_of::<LogMergeRange>() == 64);
    assert!(offset_of!(LogMergeRange, start) == 0);
    assert!(offset_of!(LogMergeRange, end) == 32);
};
const _: () = {
    assert!(size_of::<LogMergeFreeing>() == 64);
    assert!(offset_of!(LogMergeFreeing, root) == 0);
    assert!(offset_of!(LogMergeFreeing, key) == 24);
    assert!(offset_of!(LogMergeFreeing, seq) == 56);
};
