//! Sizes, offsets and numbers against `format-layout.json`.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use super::super::consts::*;
use super::super::layout::*;
use super::*;

/// C name, offset and size of every field of a structure.
pub(super) type Fields = Vec<(&'static str, usize, usize)>;

fn field_size<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! c_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $c:literal) => {
        $c
    };
}

macro_rules! structures {
    ($($c:literal $t:ident { $($f:ident $(= $fc:literal)?),* })*) => {
        /// Every structure by its C name.
        pub(super) fn structures() -> BTreeMap<&'static str, (usize, Fields)> {
            BTreeMap::from([$(
                ($c, (size_of::<$t>(), vec![$(
                    (c_name!($f $($fc)?), offset_of!($t, $f), field_size(|s: &$t| &s.$f)),
                )*])),
            )*])
        }
    };
}

structures! {
    "scoutfs_timespec" Timespec { sec, nsec, pad = "__pad" }
    "scoutfs_inet_addr4" InetAddr { family, port, addr }
    "scoutfs_block_header" BlockHeader { crc, magic, fsid, seq, blkno }
    "scoutfs_block_ref" BlockRef { blkno, seq }
    "scoutfs_key" StoredKey {
        first = "_sk_first", second = "_sk_second", third = "_sk_third", fourth = "_sk_fourth",
        zone = "sk_zone", kind = "sk_type", pad = "__pad"
    }
    "scoutfs_avl_node" AvlNode { parent, left, right, height, pad = "__pad" }
    "scoutfs_btree_root" BtreeRoot { block_ref = "ref", height, pad = "__pad" }
    "scoutfs_btree_item" BtreeItem { node, key, seq, val_off, val_len, flags, pad = "__pad" }
    "scoutfs_btree_block" BtreeBlockHead {
        hdr, item_root, nr_items, total_item_bytes, mid_free_len, level, pad = "__pad"
    }
    "scoutfs_alloc_list_head" AllocListHead { block_ref = "ref", total_nr, first_nr, flags }
    "scoutfs_alloc_list_block" AllocListBlockHead { hdr, next, start, nr }
    "scoutfs_alloc_root" AllocRoot { total_len, flags, pad = "_pad", root }
    "scoutfs_mounted_client_btree_val" MountedClient { addr, flags, pad = "__pad" }
    "scoutfs_srch_entry" SrchEntry { hash, ino, id }
    "scoutfs_srch_file" SrchFile { first, last, block_ref = "ref", blocks, entries, height, pad = "__pad" }
    "scoutfs_srch_block" SrchBlockHead { hdr, first, last, tail, entry_nr, entry_bytes }
    "scoutfs_srch_compact_input" SrchCompactInput { sfl, blk, pos }
    "scoutfs_srch_compact" SrchCompact {
        meta_avail, meta_freed, id, nr, flags, pad = "__pad", output = "out", inputs = "in"
    }
    "scoutfs_log_trees" LogTrees {
        meta_avail, meta_freed, item_root, bloom_ref, data_avail, data_freed, srch_file, data_alloc_zone_blocks,
        data_alloc_zones, inode_count_delta, get_trans_seq, commit_trans_seq, max_item_seq, finalize_seq, rid, nr, flags
    }
    "scoutfs_bloom_block" BloomBlockHead { hdr, total_set }
    "scoutfs_log_merge_status" LogMergeStatus { next_range_key, nr_requests, nr_complete, seq }
    "scoutfs_log_merge_request" LogMergeRequest {
        meta_avail, meta_freed, logs_root, root, start, end, input_seq, rid, seq, flags
    }
    "scoutfs_log_merge_complete" LogMergeComplete { meta_avail, meta_freed, root, start, end, remain, rid, seq, flags }
    "scoutfs_log_merge_range" LogMergeRange { start, end }
    "scoutfs_log_merge_freeing" LogMergeFreeing { root, key, seq }
    "scoutfs_data_extent_val" DataExtentVal { blkno, flags, pad = "__pad" }
    "scoutfs_xattr" XattrHead { val_len, name_len, pad = "__pad" }
    "scoutfs_xattr_totl_val" XattrTotlVal { total, count }
    "scoutfs_quota_rule_val" QuotaRuleVal {
        name_val, limit, prio, op, rule_flags, name_source, name_flags, pad = "_pad"
    }
    "scoutfs_quorum_message" QuorumMessage { fsid, version, term, kind = "type", from, pad = "__pad", crc }
    "scoutfs_quorum_config" QuorumConfig { version, slots }
    "scoutfs_quorum_block_event" QuorumBlockEvent { write_nr, rid, term, ts }
    "scoutfs_quorum_block" QuorumBlock { hdr, write_nr, events }
    "scoutfs_volume_options" VolumeOptionValues {
        set_bits, data_alloc_zone_blocks, unassigned = "__future_expansion"
    }
    "scoutfs_super_block" SuperBlock {
        hdr, id, fmt_vers, flags, uuid, seq, next_ino, inode_count, total_meta_blocks, total_data_blocks, qconf,
        meta_alloc, data_alloc, server_meta_avail, server_meta_freed, fs_root, logs_root, log_merge, mounted_clients,
        srch_root, volopt
    }
    "scoutfs_inode" InodeItem {
        size, meta_seq, data_seq, data_version, online_blocks, offline_blocks, next_readdir_pos, next_xattr_id, version,
        nlink, uid, gid, mode, rdev, flags, atime, ctime, mtime, crtime, proj
    }
    "scoutfs_dirent" DirentHead { ino, hash, pos, kind = "type", pad = "__pad" }
    "scoutfs_net_greeting" NetGreeting { fsid, fmt_vers, server_term, rid, flags }
    "scoutfs_net_header" NetHeader { seq, recv_seq, id, data_len, cmd, flags, error, pad = "__pad" }
    "scoutfs_net_inode_alloc" NetInodeAlloc { ino, nr }
    "scoutfs_net_roots" NetRoots { fs_root, logs_root, srch_root }
    "scoutfs_net_resize_devices" NetResizeDevices { new_total_meta_blocks, new_total_data_blocks }
    "scoutfs_net_statfs" NetStatfs {
        uuid, free_meta_blocks, total_meta_blocks, free_data_blocks, total_data_blocks, inode_count
    }
    "scoutfs_net_lock" NetLock { key, write_seq, old_mode, new_mode, pad = "__pad" }
    "scoutfs_net_lock_recover" NetLockRecoverHead { nr, pad = "__pad" }
    "scoutfs_open_ino_map_args" OpenInoMapArgs { group_nr, req_id }
    "scoutfs_open_ino_map" OpenInoMap { args, bits }
}

/// Structures that the crate has no type of its own for.
const ELSEWHERE: [&str; 6] = [
    "scoutfs_inet_addr",   // one type for the union, compared as scoutfs_inet_addr4
    "scoutfs_inet_addr6",  // reserved
    "scoutfs_avl_root",    // a plain number in the block head
    "scoutfs_srch_parent", // a header and an array of references
    "scoutfs_quorum_slot", // a plain address
    "scoutfs_fid",         // file handles: the namespace room
];

#[test]
fn every_stored_structure_has_the_size_and_offsets_of_the_original() {
    let ours = structures();
    let doc = vectors("format-layout");
    let theirs = doc["structs"].as_object().unwrap();
    for (name, want) in theirs {
        if ELSEWHERE.contains(&name.as_str()) {
            continue;
        }
        let (size, fields) = ours.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no type"));
        // The address type includes the room of the reserved variant.
        let want_size = if name == "scoutfs_inet_addr4" { 32 } else { num(&want["size"]) };
        assert_eq!(*size as u64, want_size, "size of {name}");
        let want_fields: Vec<_> = list(&want["fields"])
            .iter()
            .filter(|f| num(&f["size"]) != 0)
            .map(|f| (f["name"].as_str().unwrap(), num(&f["offset"]) as usize, num(&f["size"]) as usize))
            .collect();
        assert_eq!(*fields, want_fields, "fields of {name}");
    }
    assert_eq!(ours.len() + ELSEWHERE.len(), theirs.len());
}

#[test]
fn archive_structures_have_the_same_layout() {
    let ours = structures();
    for (name, want) in vectors("archive-format-layouts")["structs"].as_object().unwrap() {
        let Some((size, fields)) = ours.get(name.as_str()) else {
            assert!(ELSEWHERE.contains(&name.as_str()), "{name}");
            continue;
        };
        assert_eq!(*size as u64, num(&want["size"]), "{name}");
        for (field, at) in want["fields"].as_object().unwrap() {
            if at[1].is_null() {
                continue;
            }
            let found = fields.iter().find(|f| f.0.trim_start_matches('_') == field.trim_start_matches('_'));
            let found = found.unwrap_or_else(|| panic!("{name}.{field}"));
            assert_eq!((found.1 as u64, found.2 as u64), (num(&at[0]), num(&at[1])), "{name}.{field}");
        }
    }
}

macro_rules! constants {
    ($($c:literal $e:expr;)*) => {
        fn constants() -> BTreeMap<&'static str, u64> {
            BTreeMap::from([$(($c, $e as u64),)*])
        }
    };
}

constants! {
    "SCOUTFS_FORMAT_VERSION_MIN" FORMAT_VERSION_MIN;
    "SCOUTFS_FORMAT_VERSION_MAX" FORMAT_VERSION_MAX;
    "SCOUTFS_FORMAT_VERSION_FEAT_RETENTION" FORMAT_VERSION_2;
    "SCOUTFS_FORMAT_VERSION_FEAT_PROJECT_ID" FORMAT_VERSION_2;
    "SCOUTFS_FORMAT_VERSION_FEAT_QUOTA" FORMAT_VERSION_2;
    "SCOUTFS_FORMAT_VERSION_FEAT_INDX_TAG" FORMAT_VERSION_2;
    "SCOUTFS_SUPER_MAGIC" STATFS_MAGIC;
    "SCOUTFS_BLOCK_MAGIC_SUPER" MAGIC_SUPER;
    "SCOUTFS_BLOCK_MAGIC_BTREE" MAGIC_BTREE;
    "SCOUTFS_BLOCK_MAGIC_BLOOM" MAGIC_BLOOM;
    "SCOUTFS_BLOCK_MAGIC_SRCH_BLOCK" MAGIC_SRCH_BLOCK;
    "SCOUTFS_BLOCK_MAGIC_SRCH_PARENT" MAGIC_SRCH_PARENT;
    "SCOUTFS_BLOCK_MAGIC_ALLOC_LIST" MAGIC_ALLOC_LIST;
    "SCOUTFS_BLOCK_MAGIC_QUORUM" MAGIC_QUORUM;
    "SCOUTFS_BLOCK_SM_SHIFT" SMALL_SHIFT;
    "SCOUTFS_BLOCK_SM_SIZE" SMALL_BYTES;
    "SCOUTFS_BLOCK_SM_MAX" MAX_DATA_BLOCK;
    "SCOUTFS_BLOCK_LG_SHIFT" BLOCK_SHIFT;
    "SCOUTFS_BLOCK_LG_SIZE" BLOCK_BYTES;
    "SCOUTFS_BLOCK_LG_MAX" MAX_META_BLOCK;
    "SCOUTFS_BLOCK_SM_LG_SHIFT" (BLOCK_SHIFT - SMALL_SHIFT);
    "SCOUTFS_SUPER_BLKNO" SUPER_BLKNO;
    "SCOUTFS_QUORUM_BLKNO" QUORUM_BLKNO;
    "SCOUTFS_QUORUM_BLOCKS" QUORUM_SLOTS;
    "SCOUTFS_QUORUM_MAX_SLOTS" QUORUM_SLOTS;
    "SCOUTFS_META_DEV_START_BLKNO" META_START;
    "SCOUTFS_DATA_DEV_START_BLKNO" DATA_START;
    "SCOUTFS_BTREE_MAX_VAL_LEN" BTREE_MAX_VALUE;
    "SCOUTFS_BTREE_MAX_HEIGHT" BTREE_MAX_HEIGHT;
    "SCOUTFS_ITEM_FLAG_DELETION" ITEM_FLAG_DELETION;
    "SCOUTFS_BTREE_VALUE_ALIGN" BTREE_VALUE_ALIGN;
    "SCOUTFS_BTREE_LEAF_ITEM_HASH_NR" BTREE_HASH_BUCKETS;
    "SCOUTFS_BTREE_LEAF_ITEM_HASH_BYTES" BTREE_HASH_BYTES;
    "SCOUTFS_ALLOC_LIST_MAX_BLOCKS" ALLOC_LIST_MAX;
    "SCOUTFS_ALLOC_FLAG_LOW" ALLOC_FLAG_LOW;
    "SCOUTFS_MOUNTED_CLIENT_QUORUM" MOUNTED_CLIENT_QUORUM;
    "SCOUTFS_SRCH_ENTRY_MAX_BYTES" SRCH_ENTRY_MAX_BYTES;
    "SCOUTFS_SRCH_PARENT_REFS" SRCH_PARENT_REFS;
    "SCOUTFS_SRCH_BLOCK_SAFE_BYTES" SRCH_BLOCK_SAFE_BYTES;
    "SCOUTFS_SRCH_LOG_BLOCK_LIMIT" SRCH_LOG_BLOCK_LIMIT;
    "SCOUTFS_SRCH_COMPACT_ORDER" SRCH_COMPACT_ORDER;
    "SCOUTFS_SRCH_COMPACT_NR" SRCH_COMPACT_NR;
    "SCOUTFS_SRCH_COMPACT_FLAG_LOG" SRCH_COMPACT_LOG;
    "SCOUTFS_SRCH_COMPACT_FLAG_SORTED" SRCH_COMPACT_SORTED;
    "SCOUTFS_SRCH_COMPACT_FLAG_DELETE" SRCH_COMPACT_DELETE;
    "SCOUTFS_SRCH_COMPACT_FLAG_DONE" SRCH_COMPACT_DONE;
    "SCOUTFS_SRCH_COMPACT_FLAG_ERROR" SRCH_COMPACT_ERROR;
    "SCOUTFS_DATA_ALLOC_MAX_ZONES" MAX_DATA_ZONES;
    "SCOUTFS_LOG_TREES_FINALIZED" LOG_TREES_FINALIZED;
    "SCOUTFS_MAX_VAL_SIZE" PART_BYTES;
    "SCOUTFS_FOREST_BLOOM_NRS" BLOOM_BITS_PER_KEY;
    "SCOUTFS_FOREST_BLOOM_BITS" BLOOM_BITS;
    "SCOUTFS_LOG_MERGE_REQUEST_SUBTREE" LOG_MERGE_REQUEST_SUBTREE;
    "SCOUTFS_LOG_MERGE_COMP_ERROR" LOG_MERGE_COMPLETE_ERROR;
    "SCOUTFS_LOG_MERGE_COMP_REMAIN" LOG_MERGE_COMPLETE_REMAIN;
    "SCOUTFS_INODE_INDEX_ZONE" ZONE_INODE_INDEX;
    "SCOUTFS_ORPHAN_ZONE" ZONE_ORPHAN;
    "SCOUTFS_QUOTA_ZONE" ZONE_QUOTA;
    "SCOUTFS_XATTR_TOTL_ZONE" ZONE_XATTR_TOTL;
    "SCOUTFS_XATTR_INDX_ZONE" ZONE_XATTR_INDX;
    "SCOUTFS_FS_ZONE" ZONE_FS;
    "SCOUTFS_LOCK_ZONE" ZONE_LOCK;
    "SCOUTFS_LOG_TREES_ZONE" ZONE_LOG_TREES;
    "SCOUTFS_MOUNTED_CLIENT_ZONE" ZONE_MOUNTED_CLIENT;
    "SCOUTFS_SRCH_ZONE" ZONE_SRCH;
    "SCOUTFS_FREE_EXTENT_BLKNO_ZONE" ZONE_FREE_BLKNO;
    "SCOUTFS_FREE_EXTENT_ORDER_ZONE" ZONE_FREE_ORDER;
    "SCOUTFS_LOG_MERGE_STATUS_ZONE" ZONE_LOG_MERGE_STATUS;
    "SCOUTFS_LOG_MERGE_RANGE_ZONE" ZONE_LOG_MERGE_RANGE;
    "SCOUTFS_LOG_MERGE_REQUEST_ZONE" ZONE_LOG_MERGE_REQUEST;
    "SCOUTFS_LOG_MERGE_COMPLETE_ZONE" ZONE_LOG_MERGE_COMPLETE;
    "SCOUTFS_LOG_MERGE_FREEING_ZONE" ZONE_LOG_MERGE_FREEING;
    "SCOUTFS_INODE_INDEX_META_SEQ_TYPE" TYPE_META_SEQ;
    "SCOUTFS_INODE_INDEX_DATA_SEQ_TYPE" TYPE_DATA_SEQ;
    "SCOUTFS_ORPHAN_TYPE" TYPE_ORPHAN;
    "SCOUTFS_QUOTA_RULE_TYPE" TYPE_QUOTA_RULE;
    "SCOUTFS_INODE_TYPE" TYPE_INODE;
    "SCOUTFS_XATTR_TYPE" TYPE_XATTR;
    "SCOUTFS_DIRENT_TYPE" TYPE_DIRENT;
    "SCOUTFS_READDIR_TYPE" TYPE_READDIR;
    "SCOUTFS_LINK_BACKREF_TYPE" TYPE_LINK_BACKREF;
    "SCOUTFS_SYMLINK_TYPE" TYPE_SYMLINK;
    "SCOUTFS_DATA_EXTENT_TYPE" TYPE_DATA_EXTENT;
    "SCOUTFS_RENAME_TYPE" TYPE_RENAME;
    "SCOUTFS_SRCH_LOG_TYPE" TYPE_SRCH_LOG;
    "SCOUTFS_SRCH_BLOCKS_TYPE" TYPE_SRCH_BLOCKS;
    "SCOUTFS_SRCH_PENDING_TYPE" TYPE_SRCH_PENDING;
    "SCOUTFS_SRCH_BUSY_TYPE" TYPE_SRCH_BUSY;
    "SEF_OFFLINE" EXTENT_OFFLINE;
    "SEF_UNWRITTEN" EXTENT_UNWRITTEN;
    "SEF_UNKNOWN" EXTENT_UNKNOWN;
    "SQ_RF_TOTL_COUNT" crate::format::quota::RULE_TOTL_COUNT;
    "SQ_NS_LITERAL" crate::format::quota::SOURCE_LITERAL;
    "SQ_NS_PROJ" crate::format::quota::SOURCE_PROJECT;
    "SQ_NS_UID" crate::format::quota::SOURCE_UID;
    "SQ_NS_GID" crate::format::quota::SOURCE_GID;
    "SQ_NF_SELECT" crate::format::quota::NAME_SELECT;
    "SQ_OP_INODE" crate::format::quota::OP_INODE;
    "SQ_OP_DATA" crate::format::quota::OP_DATA;
    "SCOUTFS_VOLOPT_DATA_ALLOC_ZONE_BLOCKS_BIT" VOLOPT_DATA_ALLOC_ZONE_BLOCKS;
    "SCOUTFS_VOLOPT_EXPANSION_BITS" VOLOPT_UNKNOWN;
    "SCOUTFS_FLAG_IS_META_BDEV" SUPER_FLAG_META;
    "SCOUTFS_ROOT_INO" ROOT_INO;
    "SCOUTFS_INODE_FMT_V1_BYTES" INODE_V1_BYTES;
    "SCOUTFS_INO_FLAG_TRUNCATE" INO_FLAG_TRUNCATE;
    "SCOUTFS_INO_FLAG_RETENTION" INO_FLAG_RETENTION;
    "SCOUTFS_SYMLINK_MAX_SIZE" SYMLINK_MAX;
    "SCOUTFS_NAME_LEN" NAME_MAX;
    "SCOUTFS_LINK_MAX" LINK_MAX;
    "SCOUTFS_DIRENT_FIRST_POS" DIRENT_FIRST_POS;
    "SCOUTFS_DIRENT_LAST_POS" DIRENT_LAST_POS;
    "SCOUTFS_XATTR_MAX_NAME_LEN" XATTR_NAME_MAX;
    "SCOUTFS_XATTR_MAX_VAL_LEN" XATTR_VALUE_MAX;
    "SCOUTFS_XATTR_MAX_PART_SIZE" PART_BYTES;
    "SCOUTFS_XATTR_MAX_TOTL_U64" XATTR_NUMBER_MAX;
    "SCOUTFS_LOCK_INODE_GROUP_NR" LOCK_INODE_GROUP;
    "SCOUTFS_LOCK_INODE_GROUP_MASK" (LOCK_INODE_GROUP - 1);
    "SCOUTFS_LOCK_SEQ_GROUP_MASK" (LOCK_SEQ_GROUP - 1);
    "SCOUTFS_NET_GREETING_FLAG_FAREWELL" GREETING_FAREWELL;
    "SCOUTFS_NET_GREETING_FLAG_QUORUM" GREETING_QUORUM;
    "SCOUTFS_NET_GREETING_FLAG_INVALID" !(GREETING_FAREWELL | GREETING_QUORUM);
    "SCOUTFS_NET_FLAG_RESPONSE" NET_FLAG_RESPONSE;
    "SCOUTFS_NET_MAX_DATA_LEN" NET_MAX_PAYLOAD;
    "SCOUTFS_NET_LOCK_MAX_RECOVER_NR" NET_LOCK_RECOVER_MAX;
    "SCOUTFS_OPEN_INO_MAP_BITS" OPEN_INO_MAP_BITS;
    "SCOUTFS_AF_NONE" AF_NONE;
    "SCOUTFS_AF_IPV4" AF_IPV4;
    "SCOUTFS_AF_IPV6" AF_IPV6;
    "SCOUTFS_QUORUM_EVENT_BEGIN" QUORUM_EVENT_BEGIN;
    "SCOUTFS_QUORUM_EVENT_TERM" QUORUM_EVENT_TERM;
    "SCOUTFS_QUORUM_EVENT_ELECT" QUORUM_EVENT_ELECT;
    "SCOUTFS_QUORUM_EVENT_FENCE" QUORUM_EVENT_FENCE;
    "SCOUTFS_QUORUM_EVENT_STOP" QUORUM_EVENT_STOP;
    "SCOUTFS_QUORUM_EVENT_END" QUORUM_EVENT_END;
    "SCOUTFS_QUORUM_EVENT_NR" QUORUM_EVENTS;
    "SCOUTFS_DT_FIFO" DirentKind::Fifo.stored();
    "SCOUTFS_DT_CHR" DirentKind::Char.stored();
    "SCOUTFS_DT_DIR" DirentKind::Dir.stored();
    "SCOUTFS_DT_BLK" DirentKind::Block.stored();
    "SCOUTFS_DT_REG" DirentKind::Regular.stored();
    "SCOUTFS_DT_LNK" DirentKind::Symlink.stored();
    "SCOUTFS_DT_SOCK" DirentKind::Socket.stored();
    "SCOUTFS_DT_WHT" DirentKind::Whiteout.stored();
}

#[test]
fn constants_have_the_values_of_the_original() {
    let doc = vectors("format-layout");
    let theirs = doc["constants"].as_object().unwrap();
    for (name, ours) in constants() {
        let want = theirs.get(name).unwrap_or_else(|| panic!("{name} is not in the vectors"));
        assert_eq!(ours, num(want), "{name}");
    }
    let archive = vectors("archive-format-layouts");
    for (name, want) in archive["constants"].as_object().unwrap() {
        let ours = match name.as_str() {
            "SCOUTFS_BLOCK_LG_SIZE - sizeof(struct scoutfs_srch_block)" => SRCH_BLOCK_MAX_BYTES as u64,
            name => *constants().get(name).unwrap_or_else(|| panic!("{name} is not compared")),
        };
        assert_eq!(ours, num(want), "{name}");
    }
}
