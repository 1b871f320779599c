//! Checks of the structures that hold a volume together: super block, roots, list heads, allocator and merge records.
//!
//! Every function takes what was read and the bounds that the device sets, and gives the native form or an error that
//! names the structure and what is wrong with it (`spec/01 §21`). Block numbers are compared with the size of the
//! *device*, never with a remembered total, because a volume can have grown since (`spec/01 §21`, "any block").

use zerocopy::FromBytes;

use super::consts::*;
use super::crc::block_crc_matches;
use super::ids::{DataBlock, Ino, MetaBlock};
use super::key::Key;
use super::keys::ItemKey;
use super::layout::*;
use super::srch;
use super::wire::exact;
use crate::error::{Error, Result};

/// Which of the two devices a super block was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceRole {
    /// The metadata device, whose super block is authoritative.
    Meta,
    /// The data device, whose super block only identifies it.
    Data,
}

/// Decodes a super block: checksum, magic, own number. Anything else is [`validate_super`]'s.
pub fn decode_super(block: &[u8], device: &str) -> Result<SuperBlock> {
    let what = || format!("super block of {device}");
    let (sb, _) =
        SuperBlock::read_from_prefix(block).map_err(|_| Error::corrupt(what(), "shorter than a super block"))?;
    if sb.hdr.magic.get() != MAGIC_SUPER {
        return Err(Error::corrupt(what(), "no scoutfs magic: the device holds no scoutfs volume"));
    }
    if !block_crc_matches(block) {
        return Err(Error::corrupt(what(), "wrong checksum"));
    }
    if sb.hdr.blkno.get() != SUPER_BLKNO {
        return Err(Error::corrupt(what(), format!("it says that it is block {}", sb.hdr.blkno)));
    }
    Ok(sb)
}

/// Checks the super block of one device of `device_bytes` bytes, before anything that it refers to is read.
///
/// All failures are `EINVAL`, as at mount (`spec/01 §6`). Roots of the data device's copy are stale by design and not
/// looked at.
pub fn validate_super(sb: &SuperBlock, role: DeviceRole, device_bytes: u64) -> Result<()> {
    let name = match role {
        DeviceRole::Meta => "metadata",
        DeviceRole::Data => "data",
    };
    let bad = |why: String| Err(Error::invalid(format!("super block of the {name} device: {why}")));
    let vers = sb.fmt_vers.get();
    if !(FORMAT_VERSION_MIN..=FORMAT_VERSION_MAX).contains(&vers) {
        return bad(format!("format version {vers} is not supported"));
    }
    if (sb.flags.get() & SUPER_FLAG_META != 0) != (role == DeviceRole::Meta) {
        return bad("it belongs to the other kind of device; are the two devices swapped?".into());
    }
    let (meta, data) = (sb.total_meta_blocks.get(), sb.total_data_blocks.get());
    if meta > MAX_META_BLOCK || data > MAX_DATA_BLOCK {
        return bad(format!("{meta} metadata and {data} data blocks are more than the format allows"));
    }
    let (total, have) = match role {
        DeviceRole::Meta => (meta, device_bytes >> BLOCK_SHIFT),
        DeviceRole::Data => (data, device_bytes >> SMALL_SHIFT),
    };
    if total > have {
        return bad(format!("the volume has {total} blocks there, the device only {have}"));
    }
    if meta <= META_START || data <= DATA_START {
        return bad(format!("{meta} metadata and {data} data blocks leave no room"));
    }
    if role == DeviceRole::Meta {
        validate_super_roots(sb, have)?;
    }
    Ok(())
}

fn validate_super_roots(sb: &SuperBlock, device_blocks: u64) -> Result<()> {
    let invalid = |e: Error| Error::invalid(format!("super block of the metadata device: {e}"));
    let roots = [
        (&sb.fs_root, "filesystem tree"),
        (&sb.logs_root, "tree of log trees"),
        (&sb.log_merge, "log merge tree"),
        (&sb.mounted_clients, "tree of mounted clients"),
        (&sb.srch_root, "tree of search files"),
    ];
    for (root, what) in roots {
        validate_root(root, what, device_blocks).map_err(invalid)?;
    }
    for (i, root) in sb.meta_alloc.iter().enumerate() {
        validate_alloc_root(root, &format!("metadata allocator {i}"), device_blocks, sb.total_meta_blocks.get())
            .map_err(invalid)?;
    }
    validate_alloc_root(&sb.data_alloc, "data allocator", device_blocks, sb.total_data_blocks.get())
        .map_err(invalid)?;
    let lists = sb.server_meta_avail.iter().chain(&sb.server_meta_freed);
    for (i, head) in lists.enumerate() {
        validate_list_head(head, &format!("server list {i}"), device_blocks).map_err(invalid)?;
    }
    Ok(())
}

/// Checks that the super blocks of the two devices belong together.
pub fn validate_super_pair(meta: &SuperBlock, data: &SuperBlock) -> Result<()> {
    // The original looks only at the uuid; the volume id is the same on both devices as well (`spec/01 §6`).
    if meta.uuid != data.uuid || meta.hdr.fsid != data.hdr.fsid {
        return Err(Error::invalid(format!(
            "the metadata device belongs to volume {:016x}, the data device to another one, {:016x}",
            meta.hdr.fsid, data.hdr.fsid
        )));
    }
    if meta.fmt_vers != data.fmt_vers {
        return Err(Error::invalid(format!(
            "the metadata device has format version {}, the data device {}: finish the version change",
            meta.fmt_vers, data.fmt_vers
        )));
    }
    Ok(())
}

/// Checks a reference that is not null: the block is inside the device and not in its reserved front.
pub fn validate_ref(block_ref: &BlockRef, what: &str, device_blocks: u64) -> Result<MetaBlock> {
    let blkno = block_ref.blkno.get();
    if (META_START..device_blocks.min(MAX_META_BLOCK + 1)).contains(&blkno) {
        Ok(MetaBlock(blkno))
    } else {
        Err(Error::corrupt(what, format!("refers to block {blkno} of {device_blocks}")))
    }
}

/// Checks the root of a B-tree: height 0 exactly if it is empty, at most 20, the block inside the device.
pub fn validate_root(root: &BtreeRoot, what: &str, device_blocks: u64) -> Result<()> {
    if root.height > BTREE_MAX_HEIGHT {
        return Err(Error::corrupt(what, format!("height {}", root.height)));
    }
    if (root.height == 0) != (root.block_ref.blkno.get() == 0) {
        return Err(Error::corrupt(what, format!("height {} with block {}", root.height, root.block_ref.blkno)));
    }
    if root.height > 0 {
        validate_ref(&root.block_ref, what, device_blocks)?;
    }
    Ok(())
}

/// Checks the root of a tree of free extents of a device with `total_blocks` blocks of the kind that it counts.
pub fn validate_alloc_root(root: &AllocRoot, what: &str, device_blocks: u64, total_blocks: u64) -> Result<()> {
    validate_root(&root.root, what, device_blocks)?;
    let len = root.total_len.get();
    if len > total_blocks || (len > 0 && root.root.height == 0) {
        return Err(Error::corrupt(what, format!("{len} free blocks of {total_blocks}, height {}", root.root.height)));
    }
    Ok(())
}

/// Checks the head of a list of free metadata blocks.
pub fn validate_list_head(head: &AllocListHead, what: &str, device_blocks: u64) -> Result<()> {
    let (total, first) = (head.total_nr.get(), u64::from(head.first_nr.get()));
    if head.block_ref.blkno.get() == 0 {
        if total != 0 || first != 0 {
            return Err(Error::corrupt(what, format!("{total} entries without a block")));
        }
        return Ok(());
    }
    validate_ref(&head.block_ref, what, device_blocks)?;
    if first > ALLOC_LIST_MAX as u64 || first > total || total > device_blocks {
        return Err(Error::corrupt(what, format!("{total} entries, {first} of them in the first block")));
    }
    Ok(())
}

/// Decodes a list block: its successor and its entries.
pub fn decode_list_block(block: &[u8], blkno: u64, device_blocks: u64) -> Result<(BlockRef, Vec<MetaBlock>)> {
    let what = format!("list block {blkno}");
    let (head, entries) =
        AllocListBlockHead::read_from_prefix(block).map_err(|_| Error::corrupt(&what, "shorter than its head"))?;
    let (start, nr) = (head.start.get() as usize, head.nr.get() as usize);
    if start >= ALLOC_LIST_MAX || nr > ALLOC_LIST_MAX - start {
        return Err(Error::corrupt(what, format!("{nr} entries from {start}")));
    }
    if head.next.blkno.get() != 0 {
        validate_ref(&head.next, &what, device_blocks)?;
    }
    let mut out = Vec::with_capacity(nr);
    for raw in entries.chunks_exact(8).skip(start).take(nr) {
        let entry = u64::from_le_bytes(raw.try_into().expect("chunks have 8 bytes"));
        if !(META_START..device_blocks).contains(&entry) {
            return Err(Error::corrupt(what, format!("lists block {entry} of {device_blocks}")));
        }
        out.push(MetaBlock(entry));
    }
    if out.len() != nr {
        return Err(Error::corrupt(what, "cut off"));
    }
    Ok((head.next, out))
}

/// A free extent, from either of its two items.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FreeExtent {
    /// First block.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub len: u64,
}

/// Decodes a free extent item. `usable` is the range of block numbers that the device has.
pub fn validate_free_extent(key: &Key, value: &[u8], usable: std::ops::Range<u64>) -> Result<FreeExtent> {
    let bad = |why: &str| Error::corrupt(format!("free extent {key}"), why);
    let (last, len) = match ItemKey::parse(key) {
        Some(ItemKey::FreeByBlkno { last, len }) | Some(ItemKey::FreeByOrder { last, len, .. }) => (last, len),
        _ => return Err(bad("the key is not that of a free extent, or has a wrong size class")),
    };
    if !value.is_empty() {
        return Err(bad("it has a value"));
    }
    if len == 0 || len - 1 > last {
        return Err(bad("an impossible length"));
    }
    let start = last - (len - 1);
    if start < usable.start || last >= usable.end {
        return Err(bad("it is not inside the device"));
    }
    Ok(FreeExtent { start, len })
}

/// A data extent of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataExtent {
    /// First logical 4 KiB block.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub len: u64,
    /// First data block; `None` if nothing is mapped.
    pub map: Option<DataBlock>,
    /// [`EXTENT_OFFLINE`] and [`EXTENT_UNWRITTEN`].
    pub flags: u8,
}

impl DataExtent {
    /// Last logical block.
    pub fn last(&self) -> u64 {
        self.start + (self.len - 1)
    }

    /// Key and value of the item.
    pub fn encode(&self, ino: Ino) -> (Key, DataExtentVal) {
        let val = DataExtentVal { blkno: self.map.map_or(0, |b| b.0).into(), flags: self.flags, pad: [0; 7] };
        (super::keys::extent(ino, self.last(), self.len), val)
    }
}

/// Decodes a data extent item; `device_blocks` is the number of 4 KiB blocks of the data device.
pub fn validate_extent(key: &Key, value: &[u8], device_blocks: u64) -> Result<DataExtent> {
    let bad = |why: String| Error::corrupt(format!("data extent {key}"), why);
    let Some(ItemKey::Extent { last, len, .. }) = ItemKey::parse(key) else {
        return Err(bad("the key is not that of a data extent".into()));
    };
    let val = DataExtentVal::read_from_bytes(value).map_err(|_| bad(format!("{} bytes", value.len())))?;
    if len == 0 || len - 1 > last || last > MAX_DATA_BLOCK {
        return Err(bad("an impossible length".into()));
    }
    if val.flags & EXTENT_UNKNOWN != 0 {
        return Err(bad(format!("unknown flags {:#x}", val.flags)));
    }
    let blkno = val.blkno.get();
    if blkno != 0 && (blkno < DATA_START || blkno.checked_add(len).is_none_or(|end| end > device_blocks)) {
        return Err(bad(format!("it maps block {blkno} of {device_blocks}")));
    }
    Ok(DataExtent { start: last - (len - 1), len, map: (blkno != 0).then_some(DataBlock(blkno)), flags: val.flags })
}

/// Checks a log trees record and all that it refers to directly. `key` is that of its item, if it comes from one.
pub fn validate_log_trees(key: Option<&Key>, value: &[u8], device_blocks: u64) -> Result<LogTrees> {
    let lt: LogTrees = exact("log trees", value)?;
    let what = format!("log trees of rid {:016x} nr {}", lt.rid, lt.nr);
    if let Some(key) = key
        && *key != super::keys::log_trees(lt.rid.get().into(), lt.nr.get())
    {
        return Err(Error::corrupt(what, format!("stored under key {key}")));
    }
    if lt.commit_trans_seq.get() > lt.get_trans_seq.get() {
        return Err(Error::corrupt(
            what,
            format!("transaction {} was committed, {} opened", lt.commit_trans_seq, lt.get_trans_seq),
        ));
    }
    validate_list_head(&lt.meta_avail, &what, device_blocks)?;
    validate_list_head(&lt.meta_freed, &what, device_blocks)?;
    validate_root(&lt.item_root, &what, device_blocks)?;
    if lt.bloom_ref.blkno.get() != 0 {
        validate_ref(&lt.bloom_ref, &what, device_blocks)?;
    }
    validate_alloc_root(&lt.data_avail, &what, device_blocks, MAX_DATA_BLOCK)?;
    validate_alloc_root(&lt.data_freed, &what, device_blocks, MAX_DATA_BLOCK)?;
    validate_srch_file(&lt.srch_file, &what, device_blocks)?;
    Ok(lt)
}

/// Checks a search file descriptor and its root reference.
pub fn validate_srch_file(file: &SrchFile, what: &str, device_blocks: u64) -> Result<()> {
    srch::validate_file(file, what)?;
    if file.height > 0 {
        validate_ref(&file.block_ref, what, device_blocks)?;
    }
    Ok(())
}

/// Decodes a search compaction, from an item or a message.
pub fn validate_srch_compact(value: &[u8], device_blocks: u64) -> Result<SrchCompact> {
    let sc: SrchCompact = exact("search compaction", value)?;
    let what = format!("search compaction {}", sc.id);
    let state = sc.flags & (SRCH_COMPACT_LOG | SRCH_COMPACT_SORTED | SRCH_COMPACT_DELETE);
    if usize::from(sc.nr) > SRCH_COMPACT_NR || state.count_ones() > 1 {
        return Err(Error::corrupt(what, format!("{} inputs, flags {:#x}", sc.nr, sc.flags)));
    }
    validate_list_head(&sc.meta_avail, &what, device_blocks)?;
    validate_list_head(&sc.meta_freed, &what, device_blocks)?;
    validate_srch_file(&sc.output, &what, device_blocks)?;
    for input in &sc.inputs[..usize::from(sc.nr)] {
        validate_srch_file(&input.sfl, &what, device_blocks)?;
    }
    Ok(sc)
}

/// Decodes a log merge status.
pub fn validate_merge_status(value: &[u8]) -> Result<LogMergeStatus> {
    exact("log merge status", value)
}

/// Decodes a log merge range.
pub fn validate_merge_range(value: &[u8]) -> Result<LogMergeRange> {
    let range: LogMergeRange = exact("log merge range", value)?;
    check_order("log merge range", &range.start, &range.end)?;
    Ok(range)
}

/// Decodes a log merge request, from an item or a message.
pub fn validate_merge_request(value: &[u8], device_blocks: u64) -> Result<LogMergeRequest> {
    let req: LogMergeRequest = exact("log merge request", value)?;
    let what = format!("log merge request {} of rid {:016x}", req.seq, req.rid);
    validate_list_head(&req.meta_avail, &what, device_blocks)?;
    validate_list_head(&req.meta_freed, &what, device_blocks)?;
    validate_root(&req.logs_root, &what, device_blocks)?;
    validate_root(&req.root, &what, device_blocks)?;
    check_order(&what, &req.start, &req.end)?;
    Ok(req)
}

/// Decodes a log merge completion, from an item or a message.
pub fn validate_merge_complete(value: &[u8], device_blocks: u64) -> Result<LogMergeComplete> {
    let comp: LogMergeComplete = exact("log merge completion", value)?;
    let what = format!("log merge completion {} of rid {:016x}", comp.seq, comp.rid);
    validate_list_head(&comp.meta_avail, &what, device_blocks)?;
    validate_list_head(&comp.meta_freed, &what, device_blocks)?;
    validate_root(&comp.root, &what, device_blocks)?;
    check_order(&what, &comp.start, &comp.end)?;
    Ok(comp)
}

/// Decodes the record of a merged tree that is being freed.
pub fn validate_merge_freeing(value: &[u8], device_blocks: u64) -> Result<LogMergeFreeing> {
    let fr: LogMergeFreeing = exact("log merge freeing record", value)?;
    validate_root(&fr.root, &format!("log merge freeing record {}", fr.seq), device_blocks)?;
    Ok(fr)
}

fn check_order(what: &str, start: &StoredKey, end: &StoredKey) -> Result<()> {
    let (start, end) = (start.to_key(), end.to_key());
    if start > end {
        return Err(Error::corrupt(what, format!("it starts at {start} and ends at {end}")));
    }
    Ok(())
}

/// Decodes the record of a mounted client.
pub fn validate_mounted_client(value: &[u8]) -> Result<MountedClient> {
    exact("mounted client", value)
}

/// Decodes a quorum block of `slot`: checksum, magic, volume, own number.
pub fn validate_quorum_block(block: &[u8], fsid: u64, slot: usize) -> Result<QuorumBlock> {
    let bad = |why: &str| Error::corrupt(format!("quorum block of slot {slot}"), why);
    let (qb, _) = QuorumBlock::read_from_prefix(block).map_err(|_| bad("shorter than its structure"))?;
    if !block_crc_matches(block) {
        return Err(bad("wrong checksum"));
    }
    if qb.hdr.magic.get() != MAGIC_QUORUM {
        return Err(bad("wrong magic"));
    }
    if qb.hdr.fsid.get() != fsid {
        return Err(bad("it belongs to another volume"));
    }
    if qb.hdr.blkno.get() != QUORUM_BLKNO + slot as u64 {
        return Err(bad("it says that it is another block"));
    }
    Ok(qb)
}
