//! Bloom filters of log trees: which locks a tree may hold items of (`spec/03 §6`).
//!
//! Every miss of the item cache asks every log tree; a filter of one block per tree, keyed by the start of the lock that
//! covers the key, answers nearly all of these questions with "no". A filter may say "yes" wrongly, never "no".

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use crate::block::{BLOCK_BYTES, Block, BlockKind, BlockStore, CowContent, DirtyContent};
use crate::error::Result;
use crate::format::Key;
use crate::format::bloom_bits;
use crate::format::consts::BLOOM_HEAD_BYTES;
use crate::format::layout::BlockRef;

const HEADER_BYTES: usize = BLOOM_HEAD_BYTES - 8;

/// A bloom block that is being written.
pub(crate) struct BloomContent {
    total_set: u64,
    bits: Box<[u8]>,
}

impl BloomContent {
    /// Notes that the tree may hold items of the lock that starts at `lock_start`.
    pub(crate) fn set(&mut self, lock_start: &Key) {
        for bit in bloom_bits(lock_start) {
            let (byte, mask) = (bit as usize / 8, 1 << (bit % 8));
            if self.bits[byte] & mask == 0 {
                self.bits[byte] |= mask;
                self.total_set += 1;
            }
        }
    }
}

impl DirtyContent for BloomContent {
    fn kind(&self) -> BlockKind {
        BlockKind::Bloom
    }

    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]) {
        buf[HEADER_BYTES..BLOOM_HEAD_BYTES].copy_from_slice(&self.total_set.to_le_bytes());
        buf[BLOOM_HEAD_BYTES..].copy_from_slice(&self.bits);
    }
}

impl CowContent for BloomContent {
    const KIND: BlockKind = BlockKind::Bloom;

    fn load(block: &Block) -> Result<BloomContent> {
        let bytes = block.bytes();
        let total_set = U64::read_from_bytes(&bytes[HEADER_BYTES..BLOOM_HEAD_BYTES]).map_or(0, U64::get);
        Ok(BloomContent { total_set, bits: bytes[BLOOM_HEAD_BYTES..].into() })
    }

    fn empty() -> BloomContent {
        BloomContent { total_set: 0, bits: vec![0; BLOCK_BYTES - BLOOM_HEAD_BYTES].into() }
    }
}

/// May a tree with this filter hold items of a lock with these bits ([`bloom_bits`])? A tree without a filter holds none.
pub(crate) fn may_hold(store: &BlockStore, bloom: &BlockRef, bits: &[u32]) -> Result<bool> {
    if bloom.blkno.get() == 0 {
        return Ok(false);
    }
    let block = store.read(bloom, BlockKind::Bloom)?;
    let field = &block.bytes()[BLOOM_HEAD_BYTES..];
    Ok(bits.iter().all(|bit| field[*bit as usize / 8] & (1 << (bit % 8)) != 0))
}
