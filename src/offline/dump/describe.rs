//! One line for each kind of structure and item.

use crate::format::check::{
    validate_extent, validate_log_trees, validate_merge_complete, validate_merge_freeing, validate_merge_range,
    validate_merge_request, validate_merge_status, validate_mounted_client, validate_srch_compact,
};
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::quota::QuotaRule;
use crate::format::wire::exact;
use crate::format::xattr::validate_xattr_first;
use crate::format::{ItemKey, Key, validate_dirent, validate_inode};

/// Bounds of block numbers do not matter for printing.
const ANY: u64 = u64::MAX;

pub(super) fn block_ref(r: &BlockRef) -> String {
    match r.blkno.get() {
        0 => "none".into(),
        blkno => format!("block {blkno} version {:016x}", r.seq),
    }
}

pub(super) fn root(r: &BtreeRoot) -> String {
    if r.height == 0 { "empty".into() } else { format!("height {} {}", r.height, block_ref(&r.block_ref)) }
}

pub(super) fn list_head(h: &AllocListHead) -> String {
    format!("{} entries, {} in the first, flags {:#x}, {}", h.total_nr, h.first_nr, h.flags, block_ref(&h.block_ref))
}

pub(super) fn srch_file(f: &SrchFile) -> String {
    if f.height == 0 {
        return "empty".into();
    }
    let bounds = [&f.first, &f.last].map(|e| format!("{:016x}.{}.{}", e.hash, e.ino, e.id));
    format!(
        "{} blocks, {} entries from {} to {}, height {} {}",
        f.blocks,
        f.entries,
        bounds[0],
        bounds[1],
        f.height,
        block_ref(&f.block_ref)
    )
}

pub(super) fn srch_compact(sc: &SrchCompact) -> String {
    let inputs = &sc.inputs[..usize::from(sc.nr).min(SRCH_COMPACT_NR)];
    let inputs: Vec<String> =
        inputs.iter().map(|i| format!("[{} at block {} byte {}]", srch_file(&i.sfl), i.blk, i.pos)).collect();
    format!(
        "search compaction {} flags {:#x} inputs {} output {}",
        sc.id,
        sc.flags,
        inputs.join(" "),
        srch_file(&sc.output)
    )
}

pub(super) fn log_trees(lt: &LogTrees) -> String {
    let finalized = match lt.flags.get() & LOG_TREES_FINALIZED {
        0 => String::new(),
        _ => format!(" finalized at {}", lt.finalize_seq),
    };
    let zones: u32 = lt.data_alloc_zones.iter().map(|w| w.get().count_ones()).sum();
    format!(
        "log trees of rid {:016x} nr {}: opened {} committed {} greatest item {}{finalized}, inodes {:+}, {zones} data \
         zones of {} blocks, flags {:#x}",
        lt.rid,
        lt.nr,
        lt.get_trans_seq,
        lt.commit_trans_seq,
        lt.max_item_seq,
        lt.inode_count_delta.get() as i64,
        lt.data_alloc_zone_blocks,
        lt.flags
    )
}

/// What an item says. Something that does not decode is told as that, with its bytes.
pub(super) fn describe_item(key: &Key, value: &[u8], fmt_vers: u64) -> String {
    let Some(parsed) = ItemKey::parse(key) else {
        return format!("UNKNOWN KEY {}", bytes(value));
    };
    match try_describe(&parsed, key, value, fmt_vers) {
        Ok(text) => text,
        Err(e) => format!("DAMAGED {e}: {}", bytes(value)),
    }
}

fn try_describe(parsed: &ItemKey, key: &Key, value: &[u8], fmt_vers: u64) -> crate::Result<String> {
    Ok(match parsed {
        ItemKey::MetaIndex { seq, ino } => format!("metadata index: sequence {seq} inode {ino}"),
        ItemKey::DataIndex { seq, ino } => format!("data index: sequence {seq} inode {ino}"),
        ItemKey::Orphan { ino } => format!("orphan: inode {ino}"),
        ItemKey::QuotaRule { .. } => match QuotaRule::decode(key, value)? {
            Some(rule) => format!("quota rule: {rule:?}"),
            None => format!("quota rule that never applies: {}", bytes(value)),
        },
        ItemKey::Totl { a, b, c } => {
            let v: XattrTotlVal = exact("total", value)?;
            format!("total {a}.{b}.{c}: sum {} count {}", v.total.get() as i64, v.count.get() as i64)
        }
        ItemKey::Indx { major, minor, ino, id } => format!("value index: {major}.{minor} inode {ino} xattr {id}"),
        ItemKey::Inode { ino } => inode(&validate_inode(*ino, value, fmt_vers)?),
        ItemKey::Xattr { id, part, .. } => match part {
            0 => {
                let first = validate_xattr_first(key, value)?;
                let shown = &first.value_start[..first.value_start.len().min(64)];
                let (name, value) = (text(first.name), text(shown));
                format!("xattr {id} {name} of {} bytes in {} parts: {value}", first.value_len, first.parts)
            }
            n => format!("xattr {id} part {n}: {} bytes", value.len()),
        },
        ItemKey::Dirent { .. } => format!("entry by name: {}", entry(key, value)?),
        ItemKey::Readdir { .. } => format!("entry by position: {}", entry(key, value)?),
        ItemKey::Backref { .. } => format!("back reference: {}", entry(key, value)?),
        ItemKey::Symlink { part, .. } => format!("symlink part {part}: {}", text(value)),
        ItemKey::Extent { .. } => extent(key, value)?,
        _ => return server_item(parsed, key, value),
    })
}

fn server_item(parsed: &ItemKey, key: &Key, value: &[u8]) -> crate::Result<String> {
    Ok(match parsed {
        ItemKey::LogTrees { .. } => log_trees(&validate_log_trees(Some(key), value, ANY)?),
        ItemKey::MountedClient { rid } => {
            let c = validate_mounted_client(value)?;
            let addr = std::net::Ipv4Addr::from(c.addr.addr.get());
            let member = if c.flags & MOUNTED_CLIENT_QUORUM != 0 { ", quorum member" } else { "" };
            format!("mounted client rid {:016x} from {addr}:{}{member}", rid.0, c.addr.port)
        }
        ItemKey::SrchLog { .. } => format!("search log: {}", srch_file(&exact("search file", value)?)),
        ItemKey::SrchSorted { .. } => format!("sorted search file: {}", srch_file(&exact("search file", value)?)),
        ItemKey::SrchPending { .. } => format!("pending {}", srch_compact(&validate_srch_compact(value, ANY)?)),
        ItemKey::SrchBusy { rid, .. } => {
            format!("busy with rid {:016x} {}", rid.0, srch_compact(&validate_srch_compact(value, ANY)?))
        }
        ItemKey::FreeByBlkno { last, len } | ItemKey::FreeByOrder { last, len, .. } => {
            let by = if key.zone == ZONE_FREE_BLKNO { "location" } else { "size" };
            format!("free by {by}: {len} blocks from {}", last.wrapping_sub(*len).wrapping_add(1))
        }
        ItemKey::LogMergeStatus => {
            let s = validate_merge_status(value)?;
            let next = s.next_range_key.to_key();
            format!("log merge {}: {} requests, {} completions, next {next}", s.seq, s.nr_requests, s.nr_complete)
        }
        ItemKey::LogMergeRange => {
            let r = validate_merge_range(value)?;
            format!("merge range {} to {}", r.start.to_key(), r.end.to_key())
        }
        ItemKey::LogMergeRequest { .. } => {
            let r = validate_merge_request(value, ANY)?;
            format!(
                "merge request {} to {} rid {:016x} input {} flags {:#x} into {}",
                r.start.to_key(),
                r.end.to_key(),
                r.rid,
                r.input_seq,
                r.flags,
                root(&r.root)
            )
        }
        ItemKey::LogMergeComplete { .. } => {
            let c = validate_merge_complete(value, ANY)?;
            let (start, end, remain) = (c.start.to_key(), c.end.to_key(), c.remain.to_key());
            format!("merge completion {start} to {end} remain {remain} flags {:#x} {}", c.flags, root(&c.root))
        }
        ItemKey::LogMergeFreeing { .. } => {
            let f = validate_merge_freeing(value, ANY)?;
            format!("merged tree being freed from {} on: {}", f.key.to_key(), root(&f.root))
        }
        other => format!("{other:?} {}", bytes(value)),
    })
}

fn inode(i: &InodeItem) -> String {
    let time = |t: &Timespec| format!("{}.{:09}", t.sec.get() as i64, t.nsec);
    format!(
        "inode mode {:o} links {} owner {}:{} size {} metadata {} data {} version {} blocks {}+{} next position {} next \
         xattr {} i_version {} rdev {:#x} flags {:#x} project {} atime {} ctime {} mtime {} crtime {}",
        i.mode,
        i.nlink,
        i.uid,
        i.gid,
        i.size,
        i.meta_seq,
        i.data_seq,
        i.data_version,
        i.online_blocks,
        i.offline_blocks,
        i.next_readdir_pos,
        i.next_xattr_id,
        i.version,
        i.rdev,
        i.flags,
        i.proj,
        time(&i.atime),
        time(&i.ctime),
        time(&i.mtime),
        time(&i.crtime)
    )
}

fn entry(key: &Key, value: &[u8]) -> crate::Result<String> {
    let e = validate_dirent(key, value)?;
    let kind = e.kind.map_or("unknown".into(), |k| format!("{k:?}").to_lowercase());
    Ok(format!("{} {kind} inode {} position {} hash {:016x}", text(e.name), e.ino, e.pos, e.hash))
}

fn extent(key: &Key, value: &[u8]) -> crate::Result<String> {
    let e = validate_extent(key, value, ANY)?;
    let map = e.map.map_or("unmapped".into(), |b| format!("at data block {b}"));
    let offline = if e.flags & EXTENT_OFFLINE != 0 { " offline" } else { "" };
    let unwritten = if e.flags & EXTENT_UNWRITTEN != 0 { " unwritten" } else { "" };
    Ok(format!("extent of {} blocks from {} {map}{offline}{unwritten}", e.len, e.start))
}

/// Bytes as a quoted string; what is not printable is escaped.
fn text(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn bytes(value: &[u8]) -> String {
    let shown = &value[..value.len().min(64)];
    let hex: String = shown.iter().map(|b| format!("{b:02x}")).collect();
    format!("{} bytes {hex}", value.len())
}
