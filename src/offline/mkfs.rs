//! Making a volume (`spec/01 §18`).
//!
//! Where the blocks go (64 KiB units, F = number of blocks of the first list, 1024 on all but tiny devices):
//!
//! | block | content |
//! |---|---|
//! | 2 | leaf of the filesystem tree: the root directory and its index entry |
//! | 3 | list block with F free blocks, the server's first stock |
//! | 4 .. 3+F | those blocks |
//! | 4+F | leaf of the data allocator |
//! | 5+F, 6+F | leaves of the two metadata allocators |
//! | 7+F .. end | free, half to each metadata allocator |
//!
//! The original always uses F = 1024, and so needs 1033 blocks; any split of the free blocks is a valid volume, so
//! smaller devices get a shorter list.
//!
//! 1. Old super blocks are gone, durably, before anything else is written: an interrupted run never leaves a volume
//!    that can be mounted.
//! 2. The super block of the metadata device is written last; it alone makes the volume.
//! 3. Nothing else on the devices is touched. Old blocks are harmless, because the new volume id is not theirs.

use std::fmt;
use std::time::UNIX_EPOCH;

use zerocopy::{FromZeros, IntoBytes};

use super::leaf::{LeafItem, two_item_leaf};
use super::slot::quorum_config;
use super::{QuorumSlot, find_signature, super_block_bytes};
use crate::device::BlockDevice;
use crate::error::{Errno, Error, Result};
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{Ino, Seq, encode_inode, keys, seal_block};
use crate::sync::{random, wall_clock};

/// Least size of each device of a volume that is meant for production, 64 GiB.
pub const MIN_PRODUCTION_BYTES: u64 = 64 << 30;
/// Least number of 64 KiB metadata blocks, with small sizes allowed.
pub const MIN_META_BLOCKS: u64 = 64;
/// Free blocks in the first list of a volume of ordinary size.
const FIRST_LIST: u64 = 1024;
/// Devices with fewer metadata blocks (256 MiB) get a shorter first list.
const SMALL_META_BLOCKS: u64 = 4096;

/// The numbers that are otherwise drawn at random or taken from the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Volume id in every block; not 0.
    pub fsid: u64,
    /// Identity of the pair of devices.
    pub uuid: [u8; 16],
    /// All times of the root directory: seconds since 1970 and nanoseconds.
    pub time: (i64, u32),
}

impl Identity {
    /// Random numbers and the present time, in the microseconds that the original stores.
    pub fn random() -> Identity {
        let mut uuid: [u8; 16] = random();
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let fsid = std::iter::repeat_with(random).find(|&id| id != 0).unwrap_or(1);
        let now = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
        Identity { fsid, uuid, time: (now.as_secs() as i64, now.subsec_micros() * 1000) }
    }
}

/// How to make a volume.
#[derive(Clone, Debug)]
pub struct MkfsOptions {
    /// Format version, 1 or 2.
    pub format_version: u64,
    /// Quorum slots, at least one.
    pub quorum_slots: Vec<QuorumSlot>,
    /// Use at most this many bytes of the metadata device.
    pub max_meta_bytes: Option<u64>,
    /// Use at most this many bytes of the data device.
    pub max_data_bytes: Option<u64>,
    /// Volume option `data_alloc_zone_blocks`.
    pub data_alloc_zone_blocks: Option<u64>,
    /// Accept devices below [`MIN_PRODUCTION_BYTES`].
    pub allow_small: bool,
    /// Overwrite a device that holds something known.
    pub force: bool,
    /// Fixed identity: the volume is then byte for byte the one that the original makes from the same inputs.
    pub identity: Option<Identity>,
}

impl Default for MkfsOptions {
    /// The newest format version, no slots yet, nothing forced.
    fn default() -> MkfsOptions {
        MkfsOptions {
            format_version: FORMAT_VERSION_MAX,
            quorum_slots: Vec::new(),
            max_meta_bytes: None,
            max_data_bytes: None,
            data_alloc_zone_blocks: None,
            allow_small: false,
            force: false,
            identity: None,
        }
    }
}

/// What was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MkfsReport {
    /// Name of the metadata device.
    pub meta_device: String,
    /// Name of the data device.
    pub data_device: String,
    /// Volume id.
    pub fsid: u64,
    /// Identity of the pair of devices.
    pub uuid: [u8; 16],
    /// Format version.
    pub format_version: u64,
    /// 64 KiB blocks of the metadata device.
    pub total_meta_blocks: u64,
    /// 4 KiB blocks of the data device.
    pub total_data_blocks: u64,
    /// Quorum slots.
    pub quorum_slots: Vec<QuorumSlot>,
    /// What is allowed but should be known.
    pub warnings: Vec<String>,
}

impl fmt::Display for MkfsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        writeln!(f, "Created scoutfs filesystem:")?;
        writeln!(f, "  meta device path:       {}", self.meta_device)?;
        writeln!(f, "  data device path:       {}", self.data_device)?;
        writeln!(f, "  fsid:                   {:016x}", self.fsid)?;
        writeln!(f, "  uuid:                   {}", format_uuid(&self.uuid))?;
        writeln!(f, "  format version:         {}", self.format_version)?;
        let (meta, data) = (self.total_meta_blocks, self.total_data_blocks);
        writeln!(f, "  64KB metadata blocks:   {meta} ({:.2} GB)", gib(meta << BLOCK_SHIFT))?;
        writeln!(f, "  4KB data blocks:        {data} ({:.2} GB)", gib(data << SMALL_SHIFT))?;
        writeln!(f, "  quorum config version:  1")?;
        for (i, slot) in self.quorum_slots.iter().enumerate() {
            let label = if i == 0 { "quorum slots:" } else { "" };
            writeln!(f, "  {label:<23} {}: {}", slot.nr, slot.addr)?;
        }
        Ok(())
    }
}

/// A uuid as text.
pub(super) fn format_uuid(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]].map(hex).join("-")
}

/// Makes a volume on two devices. They should be open exclusively.
///
/// `EINVAL` for options or sizes that make no volume, `EBUSY` ([`Error::Busy`]) for a device that holds something and
/// [`MkfsOptions::force`] is not given. All checks are made before the first write. When a write fails the devices hold
/// no volume any more.
pub fn mkfs(meta: &dyn BlockDevice, data: &dyn BlockDevice, options: &MkfsOptions) -> Result<MkfsReport> {
    let plan = Plan::new(meta, data, options)?;
    let zero = [0; SMALL_BYTES];
    let super_at = SUPER_BLKNO * SMALL_BYTES as u64;
    for dev in [meta, data] {
        dev.write_at(super_at, &zero)?;
    }
    flush_both(meta, data)?;
    plan.write_quorum_blocks(meta)?;
    plan.write_metadata(meta)?;
    flush_both(meta, data)?;

    let mut sb = plan.super_block();
    data.write_at(super_at, &super_block_bytes(&sb))?;
    data.flush()?;
    sb.flags.set(SUPER_FLAG_META);
    meta.write_at(super_at, &super_block_bytes(&sb))?;
    meta.flush()?;
    Ok(plan.report(meta, data))
}

fn flush_both(meta: &dyn BlockDevice, data: &dyn BlockDevice) -> Result<()> {
    meta.flush()?;
    data.flush()
}

/// Everything that is decided before the first write.
struct Plan {
    id: Identity,
    as_original: bool,
    format_version: u64,
    total_meta: u64,
    total_data: u64,
    /// Free blocks in the first list.
    listed: u64,
    qconf: QuorumConfig,
    slots: Vec<QuorumSlot>,
    zone_blocks: Option<u64>,
    warnings: Vec<String>,
}

impl Plan {
    fn new(meta: &dyn BlockDevice, data: &dyn BlockDevice, options: &MkfsOptions) -> Result<Plan> {
        let vers = options.format_version;
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION_MAX).contains(&vers) {
            return Err(Error::invalid(format!("format version {vers} is not one of 1 and 2")));
        }
        let qconf = quorum_config(1, &options.quorum_slots)?;
        if std::ptr::addr_eq(meta, data) {
            return Err(Error::invalid(format!("{} cannot be both metadata and data device", meta.name())));
        }
        for dev in [meta, data] {
            if dev.read_only() {
                return Err(Errno::EROFS.into());
            }
            if let (false, Some(found)) = (options.force, find_signature(dev)?) {
                return Err(Error::Busy(format!("{} holds {found}; overwrite it only by force", dev.name())));
            }
        }
        let mut warnings = Vec::new();
        let mut size = |dev: &dyn BlockDevice, limit: Option<u64>, unit: usize, kind: &str| {
            let limit = limit.map_or(u64::MAX, |l| l / unit as u64 * unit as u64);
            let bytes = dev.size().min(limit);
            if bytes < MIN_PRODUCTION_BYTES {
                let text = format!("{bytes} bytes of {kind} device are less than the 64 GiB that a volume should have");
                if !options.allow_small {
                    return Err(Error::invalid(text));
                }
                warnings.push(text);
            }
            Ok(bytes / unit as u64)
        };
        let total_meta = size(meta, options.max_meta_bytes, BLOCK_BYTES, "metadata")?.min(MAX_META_BLOCK);
        let total_data = size(data, options.max_data_bytes, SMALL_BYTES, "data")?.min(MAX_DATA_BLOCK);
        if total_meta < MIN_META_BLOCKS {
            return Err(Error::invalid(format!("{total_meta} metadata blocks are fewer than {MIN_META_BLOCKS}")));
        }
        if total_data <= DATA_START {
            return Err(Error::invalid(format!("{total_data} data blocks leave none for data")));
        }
        if let Some(zone) = options.data_alloc_zone_blocks {
            check_zone_blocks(zone, total_data)?;
        }
        let identity = options.identity.unwrap_or_else(Identity::random);
        if identity.fsid == 0 {
            return Err(Error::invalid("volume id 0 means any volume"));
        }
        let listed = match total_meta {
            // What is in the list is the server's alone: a tiny device must not give it most of its space.
            small if small < SMALL_META_BLOCKS => (small / 16).clamp(8, FIRST_LIST),
            _ => FIRST_LIST,
        };
        Ok(Plan {
            id: identity,
            as_original: options.identity.is_some(),
            format_version: vers,
            total_meta,
            total_data,
            listed,
            qconf,
            slots: options.quorum_slots.clone(),
            zone_blocks: options.data_alloc_zone_blocks,
            warnings,
        })
    }

    fn data_leaf(&self) -> u64 {
        META_START + 2 + self.listed
    }

    fn meta_leaf(&self, i: usize) -> u64 {
        self.data_leaf() + 1 + i as u64
    }

    /// First block and length of what metadata allocator `i` gets.
    fn meta_extent(&self, i: usize) -> (u64, u64) {
        let start = self.meta_leaf(1) + 1;
        let all = self.total_meta - start;
        let first = all.div_ceil(2);
        if i == 0 { (start, first) } else { (start + first, all - first) }
    }

    fn data_extent(&self) -> (u64, u64) {
        (DATA_START, self.total_data - DATA_START)
    }

    fn root(&self, blkno: u64) -> BtreeRoot {
        BtreeRoot { block_ref: first_ref(blkno), height: 1, pad: [0; 7] }
    }

    fn super_block(&self) -> SuperBlock {
        let mut sb = SuperBlock::new_zeroed();
        sb.hdr.magic.set(MAGIC_SUPER);
        sb.hdr.fsid.set(self.id.fsid);
        sb.hdr.seq.set(1);
        sb.hdr.blkno.set(SUPER_BLKNO);
        sb.fmt_vers.set(self.format_version);
        sb.uuid = self.id.uuid;
        sb.seq.set(1);
        sb.next_ino.set(LOCK_INODE_GROUP);
        sb.inode_count.set(1);
        sb.total_meta_blocks.set(self.total_meta);
        sb.total_data_blocks.set(self.total_data);
        sb.qconf = self.qconf;
        for i in 0..2 {
            sb.meta_alloc[i].total_len.set(self.meta_extent(i).1);
            sb.meta_alloc[i].root = self.root(self.meta_leaf(i));
        }
        sb.data_alloc.total_len.set(self.data_extent().1);
        sb.data_alloc.root = self.root(self.data_leaf());
        sb.server_meta_avail[0] = AllocListHead {
            block_ref: first_ref(META_START + 1),
            total_nr: self.listed.into(),
            first_nr: (self.listed as u32).into(),
            flags: 0.into(),
        };
        sb.fs_root = self.root(META_START);
        if let Some(zone) = self.zone_blocks {
            sb.volopt.set_bits.set(VOLOPT_DATA_ALLOC_ZONE_BLOCKS);
            sb.volopt.data_alloc_zone_blocks.set(zone);
        }
        sb
    }

    fn write_quorum_blocks(&self, meta: &dyn BlockDevice) -> Result<()> {
        for blkno in QUORUM_BLKNO..QUORUM_BLKNO + QUORUM_SLOTS as u64 {
            let mut block = [0; SMALL_BYTES];
            block[..size_of::<BlockHeader>()].copy_from_slice(self.header(MAGIC_QUORUM, blkno).as_bytes());
            seal_block(&mut block);
            meta.write_at(blkno * SMALL_BYTES as u64, &block)?;
        }
        Ok(())
    }

    fn write_metadata(&self, meta: &dyn BlockDevice) -> Result<()> {
        let write = |blkno: u64, block: &[u8]| meta.write_at(blkno << BLOCK_SHIFT, block);
        write(META_START, &self.fs_leaf())?;
        write(META_START + 1, &self.list_block())?;
        write(self.data_leaf(), &self.extent_leaf(self.data_leaf(), self.data_extent()))?;
        for i in 0..2 {
            write(self.meta_leaf(i), &self.extent_leaf(self.meta_leaf(i), self.meta_extent(i)))?;
        }
        Ok(())
    }

    fn header(&self, magic: u32, blkno: u64) -> BlockHeader {
        BlockHeader {
            crc: 0.into(),
            magic: magic.into(),
            fsid: self.id.fsid.into(),
            seq: 1.into(),
            blkno: blkno.into(),
        }
    }

    /// The root directory and its entry in the metadata sequence index.
    fn fs_leaf(&self) -> Vec<u8> {
        let (sec, nsec) = self.id.time;
        let now = Timespec { sec: (sec as u64).into(), nsec: nsec.into(), pad: [0; 4] };
        let mut inode = InodeItem::new_zeroed();
        inode.next_readdir_pos.set(DIRENT_FIRST_POS);
        inode.nlink.set(2);
        inode.mode.set(0o040_755);
        (inode.atime, inode.ctime, inode.mtime, inode.crtime) = (now, now, now, now);
        let items = [
            LeafItem { key: keys::meta_index(Seq(0), Ino::ROOT), value: &[] },
            LeafItem { key: keys::inode(Ino::ROOT), value: encode_inode(&inode, self.format_version) },
        ];
        two_item_leaf(self.id.fsid, META_START, items, self.as_original)
    }

    fn extent_leaf(&self, blkno: u64, (start, len): (u64, u64)) -> Vec<u8> {
        let last = start + len - 1;
        let items = [
            LeafItem { key: keys::free_by_blkno(last, len), value: &[] },
            LeafItem { key: keys::free_by_order(last, len), value: &[] },
        ];
        two_item_leaf(self.id.fsid, blkno, items, self.as_original)
    }

    fn list_block(&self) -> Vec<u8> {
        let blkno = META_START + 1;
        let mut head = AllocListBlockHead::new_zeroed();
        head.hdr = self.header(MAGIC_ALLOC_LIST, blkno);
        head.nr.set(self.listed as u32);
        let mut block = head.as_bytes().to_vec();
        block.extend((blkno + 1..=blkno + self.listed).flat_map(u64::to_le_bytes));
        block.resize(BLOCK_BYTES, 0);
        seal_block(&mut block);
        block
    }

    fn report(self, meta: &dyn BlockDevice, data: &dyn BlockDevice) -> MkfsReport {
        MkfsReport {
            meta_device: meta.name(),
            data_device: data.name(),
            fsid: self.id.fsid,
            uuid: self.id.uuid,
            format_version: self.format_version,
            total_meta_blocks: self.total_meta,
            total_data_blocks: self.total_data,
            quorum_slots: self.slots,
            warnings: self.warnings,
        }
    }
}

fn first_ref(blkno: u64) -> BlockRef {
    BlockRef { blkno: blkno.into(), seq: 1.into() }
}

/// Is `zone` a possible value of the volume option for a data device of this many blocks (`spec/01 §6`, `§22`)?
fn check_zone_blocks(zone: u64, total_data: u64) -> Result<()> {
    if zone < MIN_DATA_ZONE_BLOCKS || zone > total_data || total_data.div_ceil(zone) > MAX_DATA_ZONES {
        return Err(Error::invalid(format!(
            "data zones of {zone} blocks: at least {MIN_DATA_ZONE_BLOCKS}, at most the {total_data} of the device, and \
             no more than {MAX_DATA_ZONES} zones"
        )));
    }
    Ok(())
}
