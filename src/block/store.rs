//! The store: verified reads through the cache, small blocks, write-out.

use crate::block::DirtySet;
use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::layout::BlockRef;
use crate::sync::Arc;

use super::buf::BLOCK_BYTES;

/// What a reference says that its block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum BlockKind {
    /// A B-tree block of any level.
    Btree,
    /// A list of free metadata blocks.
    AllocList,
    /// The bloom filter of a log tree.
    Bloom,
    /// A leaf of a search file.
    SrchBlock,
    /// A parent of a search file.
    SrchParent,
}

impl BlockKind {
    /// The stored magic number (`spec/01 §2.2`).
    pub(crate) fn magic(self) -> u32 {
        match self {
            BlockKind::Btree => 0xe597_f96d,
            BlockKind::AllocList => 0x8a93_ac83,
            BlockKind::Bloom => 0x3199_5604,
            BlockKind::SrchBlock => 0x897e_4a7d,
            BlockKind::SrchParent => 0xb23a_2a05,
        }
    }
}

/// One verified, immutable version of a block.
pub(crate) struct Block {
    _x: (),
}

impl Block {
    /// All 64 KiB, header included.
    pub(crate) fn bytes(&self) -> &[u8; BLOCK_BYTES] {
        todo!()
    }

    /// The reference that this block satisfies.
    pub(crate) fn block_ref(&self) -> BlockRef {
        todo!()
    }

    /// The decoded and validated form, made on the first call and kept. A block has one kind of view.
    pub(crate) fn view<T: BlockView>(&self) -> Result<&T> {
        todo!()
    }
}

/// A decoded form of a block that is worth keeping beside its bytes.
pub(crate) trait BlockView: Sized + Send + Sync + 'static {
    /// Checks the whole content of the block and builds the view. `blkno` is for error messages.
    fn decode(block: &[u8; BLOCK_BYTES], blkno: u64) -> Result<Self>;

    /// Heap bytes of the view, for the bound of the cache.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Counters of a store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockStats {
    /// Reads answered from the cache.
    pub(crate) hits: u64,
    /// Reads that went to the device.
    pub(crate) misses: u64,
    /// Blocks dropped to stay within the bound.
    pub(crate) evictions: u64,
    /// Blocks in the cache.
    pub(crate) cached_blocks: u64,
    /// Bytes of the cache.
    pub(crate) cached_bytes: u64,
    /// Blocks written.
    pub(crate) written: u64,
}

/// The verified metadata blocks of one volume.
pub(crate) struct BlockStore {
    _x: (),
}

impl BlockStore {
    /// A store over the metadata device with a cache of at most `cache_bytes`.
    pub(crate) fn new(dev: Arc<dyn BlockDevice>, fsid: u64, cache_bytes: usize) -> Arc<BlockStore> {
        let _ = (dev, fsid, cache_bytes);
        todo!()
    }

    /// The volume that blocks must belong to.
    pub(crate) fn fsid(&self) -> u64 {
        todo!()
    }

    /// Whole 64 KiB blocks of the device as it is now.
    pub(crate) fn meta_blocks(&self) -> u64 {
        todo!()
    }

    /// The metadata device.
    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        todo!()
    }

    /// The block that satisfies the reference. `Error::Stale` if the device holds something else there (`spec/02 §2.2`).
    pub(crate) fn read(&self, r: &BlockRef, kind: BlockKind) -> Result<Arc<Block>> {
        let _ = (r, kind);
        todo!()
    }

    /// Reads a 4 KiB block, uncached and unchecked.
    pub(crate) fn read_small(&self, blkno: u64) -> Result<Box<[u8; 4096]>> {
        let _ = blkno;
        todo!()
    }

    /// Writes a 4 KiB block as it is (the caller has set its crc). Not durable before a flush.
    pub(crate) fn write_small(&self, blkno: u64, block: &[u8; 4096]) -> Result<()> {
        let _ = (blkno, block);
        todo!()
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&self) -> Result<()> {
        todo!()
    }

    /// A fresh random version nonce, never 0.
    pub(crate) fn nonce(&self) -> u64 {
        todo!()
    }

    /// Counters.
    pub(crate) fn stats(&self) -> BlockStats {
        todo!()
    }
}

impl DirtySet {
    /// Encodes and writes all dirty blocks, in ascending order and batches; no flush. On success the set is empty and the
    /// blocks are in the cache; on an error everything stays dirty and the call can be repeated.
    pub(crate) fn write_out(&mut self, store: &BlockStore) -> Result<()> {
        let _ = store;
        todo!()
    }
}
