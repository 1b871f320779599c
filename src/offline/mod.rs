//! What is done to a volume that nobody has mounted: making one, changing what only an unused volume lets change.
//!
//! All functions take whole devices and nothing else. They detect that a volume is in use ([`in_use`]) but cannot
//! prevent that it becomes so while they run: the caller opens the devices exclusively.
//!
//! 1. Nothing is trusted that was not verified, also for the in-use test.
//! 2. A failure is an error, never a success with a message; what was written before it is stated per function.
//! 3. A super block is written only when everything it refers to is durable.

mod change;
mod check;
mod dump;
mod image;
mod leaf;
mod mkfs;
mod signature;
mod slot;
#[cfg(test)]
mod tests;

pub use change::{
    ChangeReport, change_format_version, change_quorum_config, check_empty_data_device, in_use,
    prepare_empty_data_device,
};
pub use check::{CheckOptions, CheckProgress, CheckReport, Finding, FindingClass, Severity, check};
pub use dump::{DumpOptions, dump};
pub use mkfs::{Identity, MIN_META_BLOCKS, MIN_PRODUCTION_BYTES, MkfsOptions, MkfsReport, mkfs};
pub use signature::find_signature;
pub use slot::{QuorumSlot, parse_size};

use zerocopy::IntoBytes;

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::check::{decode_super, validate_quorum_block};
use crate::format::consts::{QUORUM_BLKNO, SMALL_BYTES, SUPER_BLKNO};
use crate::format::layout::{QuorumBlock, SuperBlock};
use crate::format::seal_block;

/// A 4 KiB block in memory.
type Small = [u8; SMALL_BYTES];

/// Reads the super block of a device and verifies that it is one.
pub(crate) fn read_super(dev: &dyn BlockDevice) -> Result<SuperBlock> {
    let mut block: Small = [0; SMALL_BYTES];
    dev.read_at(SUPER_BLKNO * SMALL_BYTES as u64, &mut block)?;
    decode_super(&block, &dev.name())
}

/// The whole 4 KiB block of a super block, checksum included.
fn super_block_bytes(sb: &SuperBlock) -> Small {
    let mut block = [0; SMALL_BYTES];
    block[..size_of::<SuperBlock>()].copy_from_slice(sb.as_bytes());
    seal_block(&mut block);
    block
}

/// Writes a super block and makes it durable.
fn write_super(dev: &dyn BlockDevice, sb: &SuperBlock) -> Result<()> {
    dev.write_at(SUPER_BLKNO * SMALL_BYTES as u64, &super_block_bytes(sb))?;
    dev.flush()
}

/// Reads and verifies the quorum block of a slot.
pub(crate) fn read_quorum_block(meta: &dyn BlockDevice, fsid: u64, slot: usize) -> Result<QuorumBlock> {
    let mut block: Small = [0; SMALL_BYTES];
    meta.read_at((QUORUM_BLKNO + slot as u64) * SMALL_BYTES as u64, &mut block)?;
    validate_quorum_block(&block, fsid, slot)
}
