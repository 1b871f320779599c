//! The dirty set of one transaction and copy-on-write.

use std::any::Any;

use super::{BLOCK_BYTES, Block, BlockKind, BlockStore};
use crate::error::Result;
use crate::format::MetaBlock;
use crate::format::layout::BlockRef;

/// Decoded content of a dirty block.
pub(crate) trait DirtyContent: Any + Send {
    /// What kind of block it becomes.
    fn kind(&self) -> BlockKind;

    /// Writes bytes 32.. of the block, all of them (`buf` has any content). The store adds header and crc.
    fn encode(&self, buf: &mut [u8; BLOCK_BYTES]);
}

/// Content that can be made from a clean block, or from nothing.
pub(crate) trait CowContent: DirtyContent + Sized {
    /// Which kind of block [`load`](Self::load) takes.
    const KIND: BlockKind;

    /// The content of a clean block, ready to be changed.
    fn load(block: &Block) -> Result<Self>;

    /// The content of a new block.
    fn empty() -> Self;
}

/// Where new block numbers come from and old ones go.
pub(crate) trait BlockSource {
    /// Takes a free block. ENOSPC if there is none left for this transaction.
    fn alloc(&mut self) -> Result<MetaBlock>;

    /// Gives up a block that the new state no longer refers to. It must not be allocated again before the stable state
    /// no longer refers to it either.
    fn free(&mut self, b: MetaBlock) -> Result<()>;

    /// Are fewer than `n` allocations or `n` frees left (`spec/02 §5.5`)?
    fn low(&self, n: u64) -> bool {
        let _ = n;
        false
    }
}

/// The blocks that one transaction has changed, decoded.
pub(crate) struct DirtySet {
    _x: (),
}

impl DirtySet {
    /// An empty set.
    pub(crate) fn new() -> DirtySet {
        todo!()
    }

    /// Number of dirty blocks.
    pub(crate) fn len(&self) -> usize {
        todo!()
    }

    /// Bytes that a write-out would write.
    pub(crate) fn bytes(&self) -> u64 {
        self.len() as u64 * BLOCK_BYTES as u64
    }

    /// Drops everything unwritten.
    pub(crate) fn forget(&mut self) {
        todo!()
    }

    /// Adds a block under a number and nonce that the caller chose.
    pub(crate) fn insert<T: DirtyContent>(&mut self, r: BlockRef, content: T) {
        let _ = (r, content);
        todo!()
    }

    /// The dirty content that the reference names. `None` if the block is not dirty here, `Stale` if another version of it is.
    pub(crate) fn get<T: DirtyContent>(&self, r: &BlockRef) -> Result<Option<&T>> {
        let _ = r;
        todo!()
    }

    /// The same for changing.
    pub(crate) fn get_mut<T: DirtyContent>(&mut self, r: &BlockRef) -> Result<Option<&mut T>> {
        let _ = r;
        todo!()
    }
}

/// Everything that a change of copy-on-write blocks needs.
pub(crate) struct Cow<'a> {
    /// Where clean blocks are read.
    pub(crate) store: &'a BlockStore,
    /// Where changed ones are kept.
    pub(crate) dirty: &'a mut DirtySet,
    /// Block numbers.
    pub(crate) alloc: &'a mut dyn BlockSource,
}

impl Cow<'_> {
    /// The content of the block, ready to be changed. A null reference gets a new empty block; a clean block is copied to
    /// a new number with a fresh nonce and the old number is freed; a dirty one is given as it is. `r` is updated. On an
    /// error nothing has changed.
    pub(crate) fn content_mut<T: CowContent>(&mut self, r: &mut BlockRef) -> Result<&mut T> {
        let _ = r;
        todo!()
    }

    /// Frees a block, dropping it from the dirty set if it is there.
    pub(crate) fn free_block(&mut self, r: &BlockRef) -> Result<()> {
        let _ = r;
        todo!()
    }
}
