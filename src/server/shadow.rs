//! A second copy of the super block, outside the format, against torn writes.
//!
//! The format has one super block, rewritten in place with every commit; a power failure in the middle of that write
//! would lose the volume. So each commit writes the same super block to small block 8 first, together with the other
//! blocks of the commit and before the flush that precedes the real one: it costs one more 4 KiB write and no more
//! waiting. The original neither writes nor reads block 8 (`spec/02 §9.4`).
//!
//! Invariants
//! 1. Block 8 is only used if it was zero or held an earlier shadow; anything else there belongs to somebody.
//! 2. A shadow differs from a super block in its own block number, so nobody can take it for one.
//! 3. It replaces a torn super block only if it is that commit or the one just before, going by the header of the torn
//!    block. Otherwise somebody who writes no shadows has been at work since.

use zerocopy::IntoBytes;

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::consts::{MAGIC_SUPER, SMALL_BYTES, SUPER_BLKNO};
use crate::format::layout::{BlockHeader, SuperBlock};
use crate::format::{block_crc_matches, check, seal_block};

/// Where the shadow is, in 4 KiB blocks.
const SHADOW_BLKNO: u64 = 8;

type Small = [u8; SMALL_BYTES];

fn read_small(dev: &dyn BlockDevice, blkno: u64) -> Result<Box<Small>> {
    let mut buf = Box::new([0; SMALL_BYTES]);
    dev.read_at(blkno * SMALL_BYTES as u64, &mut buf[..])?;
    Ok(buf)
}

fn header(block: &Small) -> BlockHeader {
    zerocopy::FromBytes::read_from_prefix(&block[..]).expect("a small block is longer than a header").0
}

/// Reads the super block of a metadata device, from its shadow if the last write of it was torn.
pub(crate) fn read_super(dev: &dyn BlockDevice) -> Result<Box<SuperBlock>> {
    let block = read_small(dev, SUPER_BLKNO)?;
    let torn = match check::decode_super(&block[..], &dev.name()) {
        Ok(sup) => return Ok(Box::new(sup)),
        Err(e) => e,
    };
    let head = header(&block);
    if head.magic.get() != MAGIC_SUPER || head.blkno.get() != SUPER_BLKNO {
        return Err(torn);
    }
    match read_shadow(dev)? {
        Some(sup) if sup.hdr.fsid == head.fsid && sup.hdr.seq.get().wrapping_sub(head.seq.get()) <= 1 => Ok(sup),
        _ => Err(torn),
    }
}

/// The super block that the shadow holds, if it holds one.
fn read_shadow(dev: &dyn BlockDevice) -> Result<Option<Box<SuperBlock>>> {
    let mut block = read_small(dev, SHADOW_BLKNO)?;
    if header(&block).blkno.get() != SHADOW_BLKNO || !block_crc_matches(&block[..]) {
        return Ok(None);
    }
    renumber(&mut block, SUPER_BLKNO);
    Ok(check::decode_super(&block[..], &dev.name()).ok().map(Box::new))
}

fn renumber(block: &mut Small, blkno: u64) {
    let mut head = header(block);
    head.blkno = blkno.into();
    block[..size_of::<BlockHeader>()].copy_from_slice(head.as_bytes());
    seal_block(&mut block[..]);
}

/// The two places that hold the super block.
#[derive(Debug)]
pub(crate) struct SuperWriter {
    use_shadow: bool,
}

impl SuperWriter {
    /// Looks whether the shadow's place may be used.
    pub(crate) fn new(dev: &dyn BlockDevice, fsid: u64) -> Result<SuperWriter> {
        let block = read_small(dev, SHADOW_BLKNO)?;
        let head = header(&block);
        let ours = (head.magic.get(), head.fsid.get(), head.blkno.get()) == (MAGIC_SUPER, fsid, SHADOW_BLKNO);
        Ok(SuperWriter { use_shadow: ours || block.iter().all(|b| *b == 0) })
    }

    /// The sealed 4 KiB block of a super block.
    fn image(sup: &SuperBlock) -> Box<Small> {
        let mut block = Box::new([0; SMALL_BYTES]);
        block[..size_of::<SuperBlock>()].copy_from_slice(sup.as_bytes());
        seal_block(&mut block[..]);
        block
    }

    /// Writes the shadow. It must be durable before [`write_super`](Self::write_super).
    pub(crate) fn write_shadow(&self, dev: &dyn BlockDevice, sup: &SuperBlock) -> Result<()> {
        if !self.use_shadow {
            return Ok(());
        }
        let mut block = SuperWriter::image(sup);
        renumber(&mut block, SHADOW_BLKNO);
        dev.write_at(SHADOW_BLKNO * SMALL_BYTES as u64, &block[..])
    }

    /// Writes the super block itself: the commit point, once it is durable.
    pub(crate) fn write_super(&self, dev: &dyn BlockDevice, sup: &SuperBlock) -> Result<()> {
        if sup.hdr.blkno.get() != SUPER_BLKNO || sup.hdr.magic.get() != MAGIC_SUPER {
            return Err(Error::corrupt("super block", "the copy in memory has a wrong header"));
        }
        dev.write_durable(SUPER_BLKNO * SMALL_BYTES as u64, &SuperWriter::image(sup)[..])
    }
}
