//! Search files as trees of blocks: appending and walking (`spec/01 §12`).
//!
//! A transaction appends the entries that waited in memory to the log of its log trees, once, when it commits. A compaction
//! adds whole blocks to a sorted file, reads blocks in order, and takes trees apart.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use crate::block::{BLOCK_BYTES, Block, BlockKind, BlockStore, Cow, CowContent, DirtyContent};
use crate::error::{Error, Result};
use crate::format::consts::SRCH_PARENT_REFS;
use crate::format::layout::{BlockRef, SrchFile};
use crate::format::srch::{self, BlockBuilder, Entry};
use crate::sync::Arc;

const HEADER_BYTES: usize = 32;
const REF_BYTES: usize = 16;

/// A data block that is being filled.
struct Data(BlockBuilder);

impl DirtyContent for Data {
    fn kind(&self) -> BlockKind {
        BlockKind::SrchBlock
    }
    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]) {
        self.0.encode(buf);
    }
}

impl CowContent for Data {
    const KIND: BlockKind = BlockKind::SrchBlock;
    fn load(block: &Block) -> Result<Data> {
        Ok(Data(BlockBuilder::resume(block.bytes(), block.block_ref().blkno.get())?))
    }
    fn empty() -> Data {
        Data(BlockBuilder::new())
    }
}

/// A block of references.
struct Parent(Box<[BlockRef]>);

impl DirtyContent for Parent {
    fn kind(&self) -> BlockKind {
        BlockKind::SrchParent
    }
    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]) {
        let end = HEADER_BYTES + self.0.len() * REF_BYTES;
        buf[HEADER_BYTES..end].copy_from_slice(self.0.as_bytes());
        buf[end..].fill(0);
    }
}

impl CowContent for Parent {
    const KIND: BlockKind = BlockKind::SrchParent;
    fn load(block: &Block) -> Result<Parent> {
        Ok(Parent(references(block)?.into()))
    }
    fn empty() -> Parent {
        Parent(vec![NO_REF; SRCH_PARENT_REFS as usize].into())
    }
}

/// The references of a parent block.
fn references(block: &Block) -> Result<&[BlockRef]> {
    let bytes = &block.bytes()[HEADER_BYTES..][..SRCH_PARENT_REFS as usize * REF_BYTES];
    <[BlockRef]>::ref_from_bytes(bytes)
        .map_err(|_| Error::corrupt("search parent block", "references do not fill the block"))
}

const NO_REF: BlockRef = BlockRef { blkno: U64::ZERO, seq: U64::ZERO };

/// Appends entries; the order is kept.
pub(crate) fn append(cow: &mut Cow, file: &mut SrchFile, entries: &[Entry]) -> Result<()> {
    let mut rest = entries;
    while !rest.is_empty() {
        // The last block may have room; if it turns out to be full, go on with a new one.
        let last = file.blocks.get().saturating_sub(1);
        let mut taken = fill_block(cow, file, last, rest)?;
        if taken == 0 {
            taken = fill_block(cow, file, last + 1, rest)?;
        }
        if taken == 0 {
            return Err(Error::corrupt("search file", "a new block takes no entry"));
        }
        rest = &rest[taken..];
    }
    Ok(())
}

/// Adds a finished block behind the last one, unless it has no entries: the original fails on such blocks (defect 72).
pub(crate) fn add_block(cow: &mut Cow, file: &mut SrchFile, block: BlockBuilder) -> Result<()> {
    if block.is_empty() {
        return Ok(());
    }
    let (taken, bounds, mut block) = (block.entries() as usize, (block.first(), block.last()), Some(block));
    grow(cow, file, file.blocks.get(), &mut |data| {
        data.0 = block.take().unwrap_or_default();
        (taken, bounds.0, bounds.1)
    })?;
    Ok(())
}

/// Adds a block as the original may have written it, without entries.
#[cfg(test)]
pub(crate) fn add_empty_block(cow: &mut Cow, file: &mut SrchFile) -> Result<()> {
    let blk = file.blocks.get();
    grow(cow, file, blk, &mut |_| (0, Entry::default(), Entry::default()))?;
    file.blocks = (blk + 1).into();
    Ok(())
}

/// Puts entries into data block `blk`, an existing one or the next; returns how many found room.
fn fill_block(cow: &mut Cow, file: &mut SrchFile, blk: u64, entries: &[Entry]) -> Result<usize> {
    grow(cow, file, blk, &mut |data| {
        let taken = entries.iter().take_while(|e| data.0.push(**e)).count();
        let first = entries[..taken].iter().min().copied().unwrap_or_default();
        let last = entries[..taken].iter().max().copied().unwrap_or_default();
        (taken, first, last)
    })
}

/// Fills a data block: how many entries were added, the least and the greatest of them.
type Fill<'a> = &'a mut dyn FnMut(&mut Data) -> (usize, Entry, Entry);

/// Lets `fill` add entries to data block `blk`, an existing one or the next, and keeps the file's description.
fn grow(cow: &mut Cow, file: &mut SrchFile, blk: u64, fill: Fill<'_>) -> Result<usize> {
    let height = srch::height_for(blk);
    if file.height == 0 {
        file.height = 1;
    }
    while file.height < height {
        // A new root on top, with the old one as its first reference.
        let mut root = NO_REF;
        let old = file.block_ref;
        cow.content_mut::<Parent>(&mut root)?.0[0] = old;
        file.block_ref = root;
        file.height += 1;
    }
    let mut root = file.block_ref;
    let (taken, first, last) = fill_below(cow, &mut root, file.height, blk, fill)?;
    file.block_ref = root;
    if taken > 0 {
        let empty = file.entries.get() == 0;
        file.first = if empty { first } else { Entry::from(file.first).min(first) }.into();
        file.last = if empty { last } else { Entry::from(file.last).max(last) }.into();
        file.entries = (file.entries.get() + taken as u64).into();
        file.blocks = file.blocks.get().max(blk + 1).into();
    }
    Ok(taken)
}

/// Walks down to data block `blk` below `r`, which has this height, copying the path.
fn fill_below(cow: &mut Cow, r: &mut BlockRef, height: u8, blk: u64, fill: Fill<'_>) -> Result<(usize, Entry, Entry)> {
    if height <= 1 {
        return Ok(fill(cow.content_mut::<Data>(r)?));
    }
    let at = srch::parent_index(height - 1, blk);
    let mut child = cow.content_mut::<Parent>(r)?.0[at];
    let result = fill_below(cow, &mut child, height - 1, blk, fill)?;
    cow.content_mut::<Parent>(r)?.0[at] = child;
    Ok(result)
}

/// The committed data block `blk` of a file.
pub(crate) fn data_block(store: &BlockStore, file: &SrchFile, blk: u64) -> Result<Arc<Block>> {
    match reference(store, file, 0, blk)? {
        Some(r) => store.read(&r, BlockKind::SrchBlock),
        None => Err(Error::corrupt(format!("search file {}", file.block_ref.blkno), format!("no data block {blk}"))),
    }
}

/// The reference to the block at `level` (0: data) above data block `blk`; `None` where the file has none.
pub(crate) fn reference(store: &BlockStore, file: &SrchFile, level: u8, blk: u64) -> Result<Option<BlockRef>> {
    let mut r = file.block_ref;
    for above in (level + 1..file.height).rev() {
        if r.blkno.get() == 0 {
            return Ok(None);
        }
        let parent = store.read(&r, BlockKind::SrchParent)?;
        r = references(&parent)?[srch::parent_index(above, blk)];
    }
    Ok((r.blkno.get() != 0 && level < file.height).then_some(r))
}
