//! Sizes, limits and numbers of the format, each once and by name.
//!
//! Grouped as `spec/01` is; the C names are those of the vectors in `format-layout.json`, which a test compares. What
//! is a policy (how much to reserve, when to time out) is not here but in the room that decides it.

/// Bytes of a metadata block (`SCOUTFS_BLOCK_LG_SIZE`).
pub const BLOCK_BYTES: usize = 65536;
/// log2 of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u32 = 16;
/// Bytes of a small block: super block, quorum blocks, file data (`SCOUTFS_BLOCK_SM_SIZE`).
pub const SMALL_BYTES: usize = 4096;
/// log2 of [`SMALL_BYTES`].
pub const SMALL_SHIFT: u32 = 12;
/// Greatest usable 64 KiB block number (`SCOUTFS_BLOCK_LG_MAX`).
pub const MAX_META_BLOCK: u64 = (1 << 48) - 1;
/// Greatest usable 4 KiB block number, also of file offsets (`SCOUTFS_BLOCK_SM_MAX`).
pub const MAX_DATA_BLOCK: u64 = (1 << 52) - 1;

/// 4 KiB block of the super block, on both devices.
pub const SUPER_BLKNO: u64 = 16;
/// 4 KiB block of quorum slot 0; slot *s* is at `QUORUM_BLKNO + s`.
pub const QUORUM_BLKNO: u64 = 17;
/// Number of quorum slots.
pub const QUORUM_SLOTS: usize = 15;
/// First usable 64 KiB block of the metadata device.
pub const META_START: u64 = 2;
/// First usable 4 KiB block of the data device.
pub const DATA_START: u64 = 64;

/// Magic of the super block.
pub const MAGIC_SUPER: u32 = 0x103c_428b;
/// Magic of a quorum block.
pub const MAGIC_QUORUM: u32 = 0xbc31_0868;
/// Magic of a B-tree block.
pub const MAGIC_BTREE: u32 = 0xe597_f96d;
/// Magic of a bloom filter block.
pub const MAGIC_BLOOM: u32 = 0x3199_5604;
/// Magic of a search file data block.
pub const MAGIC_SRCH_BLOCK: u32 = 0x897e_4a7d;
/// Magic of a search file parent block.
pub const MAGIC_SRCH_PARENT: u32 = 0xb23a_2a05;
/// Magic of an allocator list block.
pub const MAGIC_ALLOC_LIST: u32 = 0x8a93_ac83;
/// Filesystem type that statfs reports (`SCOUTFS_SUPER_MAGIC`).
pub const STATFS_MAGIC: u32 = 0x554f_4353;

/// Least format version that is understood.
pub const FORMAT_VERSION_MIN: u64 = 1;
/// Greatest format version that is understood.
pub const FORMAT_VERSION_MAX: u64 = 2;
/// First version with project ids, retention, quota rules and the `indx` tag.
pub const FORMAT_VERSION_2: u64 = 2;

/// Super block flag: this is the copy of the metadata device.
pub const SUPER_FLAG_META: u64 = 1;
/// Volume option bit of `data_alloc_zone_blocks`.
pub const VOLOPT_DATA_ALLOC_ZONE_BLOCKS: u64 = 1;
/// Volume option bits that mean nothing yet.
pub const VOLOPT_UNKNOWN: u64 = !VOLOPT_DATA_ALLOC_ZONE_BLOCKS;
/// Least value of the option `data_alloc_zone_blocks`: the data refill target of a mount, 4 GiB.
pub const MIN_DATA_ZONE_BLOCKS: u64 = 1 << 20;
/// Most data zones of a volume.
pub const MAX_DATA_ZONES: u64 = 1024;

/// Address family "no address".
pub const AF_NONE: u16 = 0;
/// Address family IPv4, the only one in use.
pub const AF_IPV4: u16 = 1;
/// Address family IPv6, reserved.
pub const AF_IPV6: u16 = 2;

/// Number of event kinds in a quorum block.
pub const QUORUM_EVENTS: usize = 6;
/// Index of the event "member started".
pub const QUORUM_EVENT_BEGIN: usize = 0;
/// Index of the event "term grew".
pub const QUORUM_EVENT_TERM: usize = 1;
/// Index of the event "won an election".
pub const QUORUM_EVENT_ELECT: usize = 2;
/// Index of the event "all older leaders fenced".
pub const QUORUM_EVENT_FENCE: usize = 3;
/// Index of the event "server stopped".
pub const QUORUM_EVENT_STOP: usize = 4;
/// Index of the event "member stopped".
pub const QUORUM_EVENT_END: usize = 5;

/// Greatest height of a B-tree.
pub const BTREE_MAX_HEIGHT: u8 = 20;
/// Longest value of a B-tree item.
pub const BTREE_MAX_VALUE: usize = 896;
/// Bytes of a B-tree block before the item array.
pub const BTREE_HEAD_BYTES: usize = 48;
/// Bytes of one element of the item array.
pub const BTREE_ITEM_BYTES: usize = 56;
/// Values start at, and take, multiples of this.
pub const BTREE_VALUE_ALIGN: usize = 8;
/// Buckets of the hash table at the end of a leaf.
pub const BTREE_HASH_BUCKETS: usize = 1512;
/// Bytes of the hash table at the end of a leaf.
pub const BTREE_HASH_BYTES: usize = BTREE_HASH_BUCKETS * 2;
/// End of the value area of a leaf.
pub const BTREE_LEAF_END: usize = BLOCK_BYTES - BTREE_HASH_BYTES;
/// Item flag: the key is deleted.
pub const ITEM_FLAG_DELETION: u8 = 1;

/// Entries that one allocator list block holds.
pub const ALLOC_LIST_MAX: usize = 8185;
/// Bytes of an allocator list block before its entries.
pub const ALLOC_LIST_HEAD_BYTES: usize = 56;
/// Flag of list heads and extent tree roots: space is running out.
pub const ALLOC_FLAG_LOW: u32 = 1;

/// Bits of a bloom filter.
pub const BLOOM_BITS: u32 = 523_968;
/// Byte of the block where the bits begin.
pub const BLOOM_HEAD_BYTES: usize = 40;
/// Bits set for one key.
pub const BLOOM_BITS_PER_KEY: usize = 3;
/// Log trees flag: never written again, waiting to be merged.
pub const LOG_TREES_FINALIZED: u64 = 1;
/// Merge request flag: `root` is a sub-tree below a last-level parent.
pub const LOG_MERGE_REQUEST_SUBTREE: u64 = 1;
/// Merge completion flag: ignore the completion, reclaim the request.
pub const LOG_MERGE_COMPLETE_ERROR: u64 = 1;
/// Merge completion flag: the rest of the range, from `remain`, is to be done again.
pub const LOG_MERGE_COMPLETE_REMAIN: u64 = 2;

/// References in a search file parent block.
pub const SRCH_PARENT_REFS: u64 = 4094;
/// Bytes of a search file data block before the coded entries.
pub const SRCH_BLOCK_HEAD_BYTES: usize = 112;
/// Room for coded entries in a data block.
pub const SRCH_BLOCK_MAX_BYTES: usize = BLOCK_BYTES - SRCH_BLOCK_HEAD_BYTES;
/// No entry starts beyond this byte of the coded entries.
pub const SRCH_BLOCK_SAFE_BYTES: usize = SRCH_BLOCK_MAX_BYTES - SRCH_ENTRY_MAX_BYTES;
/// Longest coded entry.
pub const SRCH_ENTRY_MAX_BYTES: usize = 26;
/// Greatest height of a search file that is accepted.
pub const SRCH_MAX_HEIGHT: u8 = 6;
/// A search log file is rotated when it has this many blocks.
pub const SRCH_LOG_BLOCK_LIMIT: u64 = 16;
/// Inputs of one search compaction.
pub const SRCH_COMPACT_NR: usize = 4;
/// Files of one size class differ by less than this power of two, as an exponent.
pub const SRCH_COMPACT_ORDER: u32 = 2;
/// Compaction flag: inputs are unsorted log files.
pub const SRCH_COMPACT_LOG: u8 = 1;
/// Compaction flag: inputs are sorted files.
pub const SRCH_COMPACT_SORTED: u8 = 2;
/// Compaction flag: inputs are being freed.
pub const SRCH_COMPACT_DELETE: u8 = 4;
/// Compaction flag: the work is complete.
pub const SRCH_COMPACT_DONE: u8 = 16;
/// Compaction flag: the client gave up.
pub const SRCH_COMPACT_ERROR: u8 = 32;

/// Zone of the inode sequence indexes.
pub const ZONE_INODE_INDEX: u8 = 4;
/// Zone of orphans.
pub const ZONE_ORPHAN: u8 = 8;
/// Zone of quota rules.
pub const ZONE_QUOTA: u8 = 10;
/// Zone of xattr totals.
pub const ZONE_XATTR_TOTL: u8 = 12;
/// Zone of the xattr value index.
pub const ZONE_XATTR_INDX: u8 = 14;
/// Zone of inodes and all that belongs to them.
pub const ZONE_FS: u8 = 16;
/// Zone of locks without items.
pub const ZONE_LOCK: u8 = 20;
/// Zone of log trees.
pub const ZONE_LOG_TREES: u8 = 24;
/// Zone of mounted clients.
pub const ZONE_MOUNTED_CLIENT: u8 = 28;
/// Zone of search files and compactions.
pub const ZONE_SRCH: u8 = 32;
/// Zone of free extents by location.
pub const ZONE_FREE_BLKNO: u8 = 36;
/// Zone of free extents by size.
pub const ZONE_FREE_ORDER: u8 = 40;
/// Zone of the log merge status.
pub const ZONE_LOG_MERGE_STATUS: u8 = 44;
/// Zone of log merge ranges.
pub const ZONE_LOG_MERGE_RANGE: u8 = 48;
/// Zone of log merge requests.
pub const ZONE_LOG_MERGE_REQUEST: u8 = 52;
/// Zone of log merge completions.
pub const ZONE_LOG_MERGE_COMPLETE: u8 = 56;
/// Zone of merged trees being freed.
pub const ZONE_LOG_MERGE_FREEING: u8 = 60;

/// Type of index items by metadata sequence, in [`ZONE_INODE_INDEX`].
pub const TYPE_META_SEQ: u8 = 4;
/// Type of index items by data sequence, in [`ZONE_INODE_INDEX`].
pub const TYPE_DATA_SEQ: u8 = 8;
/// Type of orphans.
pub const TYPE_ORPHAN: u8 = 4;
/// Type of quota rules.
pub const TYPE_QUOTA_RULE: u8 = 4;
/// Type of inodes.
pub const TYPE_INODE: u8 = 4;
/// Type of xattr parts.
pub const TYPE_XATTR: u8 = 8;
/// Type of directory entries by name hash.
pub const TYPE_DIRENT: u8 = 12;
/// Type of directory entries by position.
pub const TYPE_READDIR: u8 = 16;
/// Type of back references from an inode to its entries.
pub const TYPE_LINK_BACKREF: u8 = 20;
/// Type of symlink target parts.
pub const TYPE_SYMLINK: u8 = 24;
/// Type of data extents.
pub const TYPE_DATA_EXTENT: u8 = 28;
/// Type of the rename lock, in [`ZONE_LOCK`].
pub const TYPE_RENAME: u8 = 4;
/// Type of unsorted search log files.
pub const TYPE_SRCH_LOG: u8 = 4;
/// Type of sorted search files.
pub const TYPE_SRCH_BLOCKS: u8 = 8;
/// Type of compactions that wait for a client.
pub const TYPE_SRCH_PENDING: u8 = 12;
/// Type of compactions that a client works on.
pub const TYPE_SRCH_BUSY: u8 = 16;

/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;
/// Bytes of an inode item in format version 1.
pub const INODE_V1_BYTES: usize = 160;
/// Inode flag: a truncation to `size` is unfinished.
pub const INO_FLAG_TRUNCATE: u32 = 1;
/// Inode flag: the file is in retention.
pub const INO_FLAG_RETENTION: u32 = 2;
/// Longest symlink target, with its final NUL.
pub const SYMLINK_MAX: usize = 4096;
/// Bytes of one part of a symlink target or an xattr.
pub const PART_BYTES: usize = BTREE_MAX_VALUE;
/// Longest name of a directory entry.
pub const NAME_MAX: usize = 255;
/// Most links of one inode.
pub const LINK_MAX: u32 = 2_147_483_647;
/// Bytes of a directory entry before its name.
pub const DIRENT_HEAD_BYTES: usize = 32;
/// Position of the first entry of a directory.
pub const DIRENT_FIRST_POS: u64 = 2;
/// Last usable position.
pub const DIRENT_LAST_POS: u64 = u64::MAX - 1;
/// Longest xattr name, with prefix.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest xattr value.
pub const XATTR_VALUE_MAX: usize = 65535;
/// Bytes of an xattr before its name.
pub const XATTR_HEAD_BYTES: usize = 8;
/// Most characters of a number in totl and indx names and totl values.
pub const XATTR_NUMBER_MAX: usize = 23;

/// Data extent flag: the content lives in the archive.
pub const EXTENT_OFFLINE: u8 = 1;
/// Data extent flag: allocated, not written, reads as zeros.
pub const EXTENT_UNWRITTEN: u8 = 2;
/// Data extent flags that mean nothing.
pub const EXTENT_UNKNOWN: u8 = !(EXTENT_OFFLINE | EXTENT_UNWRITTEN);

/// Inodes covered by one lock.
pub const LOCK_INODE_GROUP: u64 = 1024;
/// Sequence numbers covered by one index lock.
pub const LOCK_SEQ_GROUP: u64 = 1024;

/// Mounted client flag: the client is a quorum member.
pub const MOUNTED_CLIENT_QUORUM: u8 = 1;
/// Most payload bytes of a message.
pub const NET_MAX_PAYLOAD: usize = 1100;
/// Bytes of a message head.
pub const NET_HEADER_BYTES: usize = 32;
/// Header flag: the message is a response.
pub const NET_FLAG_RESPONSE: u8 = 1;
/// Most locks in one LOCK_RECOVER response.
pub const NET_LOCK_RECOVER_MAX: usize = 22;
/// Greeting flag: the client has begun to unmount.
pub const GREETING_FAREWELL: u64 = 1;
/// Greeting flag: the client is a quorum member.
pub const GREETING_QUORUM: u64 = 2;
/// Greeting flag of ours, which the original ignores (`spec/05 §2.6`): the client has flushed both devices when it sends
/// COMMIT_LOG_TREES.
pub const GREETING_FLUSHES: u64 = 1 << 62;
/// Greeting flag of ours: the client knows that the server commit which records its transaction may open its next one too.
pub const GREETING_OPENS: u64 = 1 << 63;
/// Inodes of one open map group.
pub const OPEN_INO_MAP_BITS: u64 = 1024;
