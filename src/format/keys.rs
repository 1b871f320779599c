//! Which item has which key: constructors, and the way back.
//!
//! One function per row of the table in `spec/01 §5`. [`ItemKey::parse`] gives the meaning of a key that was read; a
//! key that fits no row gives `None`, and whoever read it decides whether that is corruption.

use super::consts::*;
use super::hash::{fnv1a_64, xattr_hash};
use super::ids::{Ino, MetaBlock, Rid, Seq};
use super::key::{Key, KeyRange};
use super::layout::QuotaRuleVal;
use zerocopy::IntoBytes;

/// An inode.
pub const fn inode(ino: Ino) -> Key {
    Key::new(ZONE_FS, ino.0, TYPE_INODE, 0, 0, 0)
}

/// All items of one inode: itself, xattrs, entries, back references, symlink parts, extents.
pub const fn inode_items(ino: Ino) -> KeyRange {
    KeyRange::new(inode_type_start(ino, 0), inode_type_end(ino, u8::MAX))
}

/// All items of one type of one inode.
pub const fn inode_items_of_type(ino: Ino, kind: u8) -> KeyRange {
    KeyRange::new(inode_type_start(ino, kind), inode_type_end(ino, kind))
}

const fn inode_type_start(ino: Ino, kind: u8) -> Key {
    Key::new(ZONE_FS, ino.0, kind, 0, 0, 0)
}

const fn inode_type_end(ino: Ino, kind: u8) -> Key {
    Key::new(ZONE_FS, ino.0, kind, u64::MAX, u64::MAX, u8::MAX)
}

/// One part of an xattr: `hash` of its name, its id, the part number.
pub const fn xattr(ino: Ino, hash: u32, id: u64, part: u8) -> Key {
    Key::new(ZONE_FS, ino.0, TYPE_XATTR, hash as u64, id, part)
}

/// All parts of all xattrs of one inode whose names have the hash of `name`.
pub fn xattr_candidates(ino: Ino, name: &[u8]) -> KeyRange {
    let hash = xattr_hash(name);
    KeyRange::new(xattr(ino, hash, 0, 0), xattr(ino, hash, u64::MAX, u8::MAX))
}

/// A directory entry, found by the hash of its name.
pub const fn dirent(dir: Ino, hash: u64, pos: u64) -> Key {
    Key::new(ZONE_FS, dir.0, TYPE_DIRENT, hash, pos, 0)
}

/// A directory entry, found by position.
pub const fn readdir(dir: Ino, pos: u64) -> Key {
    Key::new(ZONE_FS, dir.0, TYPE_READDIR, pos, 0, 0)
}

/// The entry at `pos` of `dir`, found from its target.
pub const fn backref(ino: Ino, dir: Ino, pos: u64) -> Key {
    Key::new(ZONE_FS, ino.0, TYPE_LINK_BACKREF, dir.0, pos, 0)
}

/// One part of a symlink target.
pub const fn symlink(ino: Ino, part: u64) -> Key {
    Key::new(ZONE_FS, ino.0, TYPE_SYMLINK, part, 0, 0)
}

/// A data extent of `len` logical blocks that ends with block `last`.
pub const fn extent(ino: Ino, last: u64, len: u64) -> Key {
    Key::new(ZONE_FS, ino.0, TYPE_DATA_EXTENT, last, len, 0)
}

/// Index entry of an inode by metadata sequence.
pub const fn meta_index(seq: Seq, ino: Ino) -> Key {
    Key::new(ZONE_INODE_INDEX, 0, TYPE_META_SEQ, seq.0, ino.0, 0)
}

/// Index entry of a regular file by data sequence.
pub const fn data_index(seq: Seq, ino: Ino) -> Key {
    Key::new(ZONE_INODE_INDEX, 0, TYPE_DATA_SEQ, seq.0, ino.0, 0)
}

/// An inode without links that is not deleted yet. The inode number is the *second* field.
pub const fn orphan(ino: Ino) -> Key {
    Key::new(ZONE_ORPHAN, 0, TYPE_ORPHAN, ino.0, 0, 0)
}

/// A quota rule by the hash of its value and a collision number.
pub const fn quota_rule(hash: u64, collision: u64) -> Key {
    Key::new(ZONE_QUOTA, 0, TYPE_QUOTA_RULE, hash, collision, 0)
}

/// Hash of a quota rule in its key.
pub fn quota_rule_hash(rule: &QuotaRuleVal) -> u64 {
    fnv1a_64(rule.as_bytes())
}

/// The total of all xattrs whose names end in `.a.b.c`.
pub const fn totl(a: u64, b: u64, c: u64) -> Key {
    Key::new(ZONE_XATTR_TOTL, a, 0, b, c, 0)
}

/// Value index entry of xattr `id` of `ino`: a 200 bit number laid over four fields (`spec/01 §13.9`).
pub const fn indx(major: u8, minor: u64, ino: Ino, id: u64) -> Key {
    Key::new(
        ZONE_XATTR_INDX,
        (major as u64) << 56 | minor >> 8,
        0,
        minor << 56 | ino.0 >> 8,
        ino.0 << 56 | id >> 8,
        id as u8,
    )
}

/// A log trees record.
pub const fn log_trees(rid: Rid, nr: u64) -> Key {
    Key::new(ZONE_LOG_TREES, rid.0, 0, nr, 0, 0)
}

/// A mounted client.
pub const fn mounted_client(rid: Rid) -> Key {
    Key::new(ZONE_MOUNTED_CLIENT, rid.0, 0, 0, 0, 0)
}

/// An unsorted search log file, by its root block.
pub const fn srch_log(root: MetaBlock) -> Key {
    Key::new(ZONE_SRCH, 0, TYPE_SRCH_LOG, root.0, 0, 0)
}

/// A sorted search file, by its length and root block.
pub const fn srch_sorted(blocks: u64, root: MetaBlock) -> Key {
    Key::new(ZONE_SRCH, 0, TYPE_SRCH_BLOCKS, blocks, root.0, 0)
}

/// A search compaction that waits for a client.
pub const fn srch_pending(id: u64) -> Key {
    Key::new(ZONE_SRCH, 0, TYPE_SRCH_PENDING, id, 0, 0)
}

/// A search compaction that a client works on.
pub const fn srch_busy(rid: Rid, id: u64) -> Key {
    Key::new(ZONE_SRCH, 0, TYPE_SRCH_BUSY, rid.0, id, 0)
}

/// A free extent by location.
pub const fn free_by_blkno(last: u64, len: u64) -> Key {
    Key::new(ZONE_FREE_BLKNO, last, 0, len, 0, 0)
}

/// A free extent by size: greater orders sort first.
pub const fn free_by_order(last: u64, len: u64) -> Key {
    Key::new(ZONE_FREE_ORDER, u64::MAX - size_order(len), 0, last, len, 0)
}

/// Size class of a free extent: floor(log8(len)), 0 for 0.
pub const fn size_order(len: u64) -> u64 {
    if len == 0 { 0 } else { (len.ilog2() / 3) as u64 }
}

/// The one log merge status.
pub const LOG_MERGE_STATUS: Key = Key::new(ZONE_LOG_MERGE_STATUS, 0, 0, 0, 0, 0);

/// A range still to be merged: its start key with another zone.
pub const fn log_merge_range(start: &Key) -> Key {
    Key::new(ZONE_LOG_MERGE_RANGE, start.first, start.kind, start.second, start.third, start.fourth)
}

/// A merge request that a client works on.
pub const fn log_merge_request(rid: Rid, seq: Seq) -> Key {
    Key::new(ZONE_LOG_MERGE_REQUEST, rid.0, 0, seq.0, 0, 0)
}

/// A merge completion that waits to be spliced.
pub const fn log_merge_complete(seq: Seq) -> Key {
    Key::new(ZONE_LOG_MERGE_COMPLETE, seq.0, 0, 0, 0, 0)
}

/// A merged tree whose blocks are being freed.
pub const fn log_merge_freeing(seq: Seq) -> Key {
    Key::new(ZONE_LOG_MERGE_FREEING, seq.0, 0, 0, 0, 0)
}

/// Is `key` one whose versions are added instead of the greatest sequence winning?
pub const fn is_delta(key: &Key) -> bool {
    key.zone == ZONE_XATTR_TOTL
}

/// What a key addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are those of the constructors of the same name")]
pub enum ItemKey {
    /// [`meta_index`].
    MetaIndex { seq: Seq, ino: Ino },
    /// [`data_index`].
    DataIndex { seq: Seq, ino: Ino },
    /// [`orphan`].
    Orphan { ino: Ino },
    /// [`quota_rule`].
    QuotaRule { hash: u64, collision: u64 },
    /// [`totl`].
    Totl { a: u64, b: u64, c: u64 },
    /// [`indx`].
    Indx { major: u8, minor: u64, ino: Ino, id: u64 },
    /// [`inode`].
    Inode { ino: Ino },
    /// [`xattr`].
    Xattr { ino: Ino, hash: u32, id: u64, part: u8 },
    /// [`dirent`].
    Dirent { dir: Ino, hash: u64, pos: u64 },
    /// [`readdir`].
    Readdir { dir: Ino, pos: u64 },
    /// [`backref`].
    Backref { ino: Ino, dir: Ino, pos: u64 },
    /// [`symlink`].
    Symlink { ino: Ino, part: u64 },
    /// [`extent`].
    Extent { ino: Ino, last: u64, len: u64 },
    /// [`log_trees`].
    LogTrees { rid: Rid, nr: u64 },
    /// [`mounted_client`].
    MountedClient { rid: Rid },
    /// [`srch_log`].
    SrchLog { root: MetaBlock },
    /// [`srch_sorted`].
    SrchSorted { blocks: u64, root: MetaBlock },
    /// [`srch_pending`].
    SrchPending { id: u64 },
    /// [`srch_busy`].
    SrchBusy { rid: Rid, id: u64 },
    /// [`free_by_blkno`].
    FreeByBlkno { last: u64, len: u64 },
    /// [`free_by_order`].
    FreeByOrder { order: u64, last: u64, len: u64 },
    /// [`LOG_MERGE_STATUS`].
    LogMergeStatus,
    /// [`log_merge_range`].
    LogMergeRange,
    /// [`log_merge_request`].
    LogMergeRequest { rid: Rid, seq: Seq },
    /// [`log_merge_complete`].
    LogMergeComplete { seq: Seq },
    /// [`log_merge_freeing`].
    LogMergeFreeing { seq: Seq },
}

impl ItemKey {
    /// The meaning of `key`, or `None` if it is no item's key (a field that must be zero is not, or an unknown type).
    pub fn parse(key: &Key) -> Option<ItemKey> {
        let parsed = match key.zone {
            ZONE_FS => Self::parse_fs(key)?,
            ZONE_SRCH => Self::parse_srch(key)?,
            ZONE_INODE_INDEX => match key.kind {
                TYPE_META_SEQ => ItemKey::MetaIndex { seq: Seq(key.second), ino: Ino(key.third) },
                TYPE_DATA_SEQ => ItemKey::DataIndex { seq: Seq(key.second), ino: Ino(key.third) },
                _ => return None,
            },
            ZONE_ORPHAN => ItemKey::Orphan { ino: Ino(key.second) },
            ZONE_QUOTA => ItemKey::QuotaRule { hash: key.second, collision: key.third },
            ZONE_XATTR_TOTL => ItemKey::Totl { a: key.first, b: key.second, c: key.third },
            ZONE_XATTR_INDX => ItemKey::Indx {
                major: (key.first >> 56) as u8,
                minor: key.first << 8 | key.second >> 56,
                ino: Ino(key.second << 8 | key.third >> 56),
                id: key.third << 8 | u64::from(key.fourth),
            },
            ZONE_LOG_TREES => ItemKey::LogTrees { rid: Rid(key.first), nr: key.second },
            ZONE_MOUNTED_CLIENT => ItemKey::MountedClient { rid: Rid(key.first) },
            ZONE_FREE_BLKNO => ItemKey::FreeByBlkno { last: key.first, len: key.second },
            ZONE_FREE_ORDER => ItemKey::FreeByOrder { order: u64::MAX - key.first, last: key.second, len: key.third },
            ZONE_LOG_MERGE_STATUS => ItemKey::LogMergeStatus,
            // The zone of the start key is lost, so there is nothing to compare with.
            ZONE_LOG_MERGE_RANGE => return Some(ItemKey::LogMergeRange),
            ZONE_LOG_MERGE_REQUEST => ItemKey::LogMergeRequest { rid: Rid(key.first), seq: Seq(key.second) },
            ZONE_LOG_MERGE_COMPLETE => ItemKey::LogMergeComplete { seq: Seq(key.first) },
            ZONE_LOG_MERGE_FREEING => ItemKey::LogMergeFreeing { seq: Seq(key.first) },
            _ => return None,
        };
        (parsed.key()? == *key).then_some(parsed)
    }

    fn parse_fs(key: &Key) -> Option<ItemKey> {
        let ino = Ino(key.first);
        Some(match key.kind {
            TYPE_INODE => ItemKey::Inode { ino },
            TYPE_XATTR => {
                ItemKey::Xattr { ino, hash: u32::try_from(key.second).ok()?, id: key.third, part: key.fourth }
            }
            TYPE_DIRENT => ItemKey::Dirent { dir: ino, hash: key.second, pos: key.third },
            TYPE_READDIR => ItemKey::Readdir { dir: ino, pos: key.second },
            TYPE_LINK_BACKREF => ItemKey::Backref { ino, dir: Ino(key.second), pos: key.third },
            TYPE_SYMLINK => ItemKey::Symlink { ino, part: key.second },
            TYPE_DATA_EXTENT => ItemKey::Extent { ino, last: key.second, len: key.third },
            _ => return None,
        })
    }

    fn parse_srch(key: &Key) -> Option<ItemKey> {
        Some(match key.kind {
            TYPE_SRCH_LOG => ItemKey::SrchLog { root: MetaBlock(key.second) },
            TYPE_SRCH_BLOCKS => ItemKey::SrchSorted { blocks: key.second, root: MetaBlock(key.third) },
            TYPE_SRCH_PENDING => ItemKey::SrchPending { id: key.second },
            TYPE_SRCH_BUSY => ItemKey::SrchBusy { rid: Rid(key.second), id: key.third },
            _ => return None,
        })
    }

    /// The key again; `None` for a merge range, whose start key is only in its value, and for a free extent whose
    /// stored size class is not that of its length.
    pub fn key(&self) -> Option<Key> {
        Some(match *self {
            ItemKey::MetaIndex { seq, ino } => meta_index(seq, ino),
            ItemKey::DataIndex { seq, ino } => data_index(seq, ino),
            ItemKey::Orphan { ino } => orphan(ino),
            ItemKey::QuotaRule { hash, collision } => quota_rule(hash, collision),
            ItemKey::Totl { a, b, c } => totl(a, b, c),
            ItemKey::Indx { major, minor, ino, id } => indx(major, minor, ino, id),
            ItemKey::Inode { ino } => inode(ino),
            ItemKey::Xattr { ino, hash, id, part } => xattr(ino, hash, id, part),
            ItemKey::Dirent { dir, hash, pos } => dirent(dir, hash, pos),
            ItemKey::Readdir { dir, pos } => readdir(dir, pos),
            ItemKey::Backref { ino, dir, pos } => backref(ino, dir, pos),
            ItemKey::Symlink { ino, part } => symlink(ino, part),
            ItemKey::Extent { ino, last, len } => extent(ino, last, len),
            ItemKey::LogTrees { rid, nr } => log_trees(rid, nr),
            ItemKey::MountedClient { rid } => mounted_client(rid),
            ItemKey::SrchLog { root } => srch_log(root),
            ItemKey::SrchSorted { blocks, root } => srch_sorted(blocks, root),
            ItemKey::SrchPending { id } => srch_pending(id),
            ItemKey::SrchBusy { rid, id } => srch_busy(rid, id),
            ItemKey::FreeByBlkno { last, len } => free_by_blkno(last, len),
            ItemKey::FreeByOrder { order, last, len } => {
                (order == size_order(len)).then(|| free_by_order(last, len))?
            }
            ItemKey::LogMergeStatus => LOG_MERGE_STATUS,
            ItemKey::LogMergeRange => return None,
            ItemKey::LogMergeRequest { rid, seq } => log_merge_request(rid, seq),
            ItemKey::LogMergeComplete { seq } => log_merge_complete(seq),
            ItemKey::LogMergeFreeing { seq } => log_merge_freeing(seq),
        })
    }
}
