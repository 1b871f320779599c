//! The store: verified reads through the cache, small blocks, write-out.

use std::any::Any;

use zerocopy::{FromBytes, IntoBytes};

use super::DirtySet;
use super::buf::{BLOCK_BYTES, Buf, Pool};
use super::cache::Cache;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::layout::{BlockHeader, BlockRef};
use crate::format::{block_crc_matches, seal_block};
use crate::sync::pipeline::pipeline;
use crate::sync::{Arc, OnceLock, random};

const SMALL_BYTES: u64 = 4096;

/// The first metadata block that may be referred to; super and quorum blocks lie before it.
const FIRST_BLOCK: u64 = 2;

/// Blocks encoded and written at a time.
const WRITE_BATCH: usize = 64;

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
    buf: Buf,
    kind: BlockKind,
    view: OnceLock<Result<Box<dyn Any + Send + Sync>>>,
}

impl Block {
    fn new(buf: Buf, kind: BlockKind) -> Arc<Block> {
        Arc::new(Block { buf, kind, view: OnceLock::new() })
    }

    /// All 64 KiB, header included.
    pub(crate) fn bytes(&self) -> &[u8; BLOCK_BYTES] {
        &self.buf
    }

    fn header(&self) -> &BlockHeader {
        header(&self.buf)
    }

    /// The reference that this block satisfies.
    pub(crate) fn block_ref(&self) -> BlockRef {
        BlockRef { blkno: self.header().blkno, seq: self.header().seq }
    }

    /// The decoded and validated form, made on the first call and kept. A kind of block has one kind of view.
    pub(crate) fn view<T: BlockView>(&self) -> Result<&T> {
        let made = self.view.get_or_init(|| {
            let view = T::decode(&self.buf, self.header().blkno.get())?;
            self.buf.charge(view.heap_bytes());
            Ok(Box::new(view))
        });
        match made {
            Ok(view) => Ok(view.downcast_ref().expect("a kind of block has one kind of view")),
            Err(e) => Err(e.clone()),
        }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} block {}", self.kind, self.header().blkno.get())
    }
}

fn header(buf: &[u8; BLOCK_BYTES]) -> &BlockHeader {
    BlockHeader::ref_from_prefix(buf).expect("a block is longer than its header").0
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
#[cfg(test)]
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
    /// Bytes of the cache, views included.
    pub(crate) cached_bytes: u64,
}

/// The verified metadata blocks of one volume.
pub(crate) struct BlockStore {
    dev: Arc<dyn BlockDevice>,
    fsid: u64,
    cache: Cache,
    pool: Arc<Pool>,
}

impl BlockStore {
    /// A store over the metadata device with a cache of at most `cache_bytes`.
    pub(crate) fn new(dev: Arc<dyn BlockDevice>, fsid: u64, cache_bytes: usize) -> Arc<BlockStore> {
        Arc::new(BlockStore { dev, fsid, cache: Cache::new(cache_bytes), pool: Pool::new() })
    }

    /// The volume that blocks must belong to.
    pub(crate) fn fsid(&self) -> u64 {
        self.fsid
    }

    /// Whole 64 KiB blocks of the device as it is now.
    pub(crate) fn meta_blocks(&self) -> u64 {
        self.dev.size() / BLOCK_BYTES as u64
    }

    /// The metadata device.
    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.dev
    }

    /// The block that satisfies the reference. `Error::Stale` if the device holds something else there (`spec/02 §2.2`).
    pub(crate) fn read(&self, r: &BlockRef, kind: BlockKind) -> Result<Arc<Block>> {
        let (blkno, seq) = (r.blkno.get(), r.seq.get());
        let stale = Error::Stale { blkno, seq };
        if blkno < FIRST_BLOCK {
            return Err(stale);
        }
        let block = self.cache.get((blkno, seq), self.pool.charged(), || self.load(r, kind))?;
        if block.kind == kind { Ok(block) } else { Err(stale) }
    }

    /// Reads from the device and verifies. A mismatch is looked at twice: the first may have been another node's write in
    /// progress.
    fn load(&self, r: &BlockRef, kind: BlockKind) -> Result<Arc<Block>> {
        let (blkno, seq) = (r.blkno.get(), r.seq.get());
        let stale = Error::Stale { blkno, seq };
        if blkno >= self.meta_blocks() {
            return Err(stale);
        }
        let mut buf = self.pool.get();
        for _ in 0..2 {
            self.dev.read_at(blkno * BLOCK_BYTES as u64, &mut buf[..])?;
            let h = header(&buf);
            let named = h.magic == kind.magic() && h.fsid == self.fsid && h.seq == seq && h.blkno == blkno;
            if named && block_crc_matches(&buf[..]) {
                return Ok(Block::new(buf, kind));
            }
        }
        Err(stale)
    }

    /// Reads a 4 KiB block, uncached and unchecked.
    pub(crate) fn read_small(&self, blkno: u64) -> Result<Box<[u8; 4096]>> {
        let mut buf = self.pool.get();
        let (small, _) = buf.split_first_chunk_mut::<4096>().expect("a buffer is longer");
        self.dev.read_at(blkno * SMALL_BYTES, small)?;
        Ok(Box::new(*small))
    }

    /// Writes a 4 KiB block as it is (the caller has set its crc). Not durable before a flush. The first 32 KiB of a device
    /// belong to boot loaders and partition tables and are refused.
    #[cfg(test)]
    pub(crate) fn write_small(&self, blkno: u64, block: &[u8; 4096]) -> Result<()> {
        if blkno < 8 {
            return Err(Error::invalid(format!("small block {blkno} is not ours to write")));
        }
        let mut buf = self.pool.get();
        buf[..4096].copy_from_slice(block);
        self.dev.write_at(blkno * SMALL_BYTES, &buf[..4096])
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&self) -> Result<()> {
        self.dev.flush()
    }

    /// A fresh random version nonce, never 0.
    pub(crate) fn nonce(&self) -> u64 {
        loop {
            match random() {
                0 => continue,
                nonce => return nonce,
            }
        }
    }

    /// Counters.
    #[cfg(test)]
    pub(crate) fn stats(&self) -> BlockStats {
        let cache = self.cache.stats();
        BlockStats {
            hits: cache.hits,
            misses: cache.misses,
            evictions: cache.evictions,
            cached_blocks: cache.blocks,
            cached_bytes: cache.blocks * BLOCK_BYTES as u64 + self.pool.charged() as u64,
        }
    }

    /// Encodes one dirty block with header and crc.
    fn encode(&self, r: BlockRef, content: &mut dyn super::DirtyContent) -> Arc<Block> {
        let mut buf = self.pool.get();
        content.encode(&mut buf);
        let head = BlockHeader {
            crc: 0.into(),
            magic: content.kind().magic().into(),
            fsid: self.fsid.into(),
            seq: r.seq,
            blkno: r.blkno,
        };
        buf[..32].copy_from_slice(head.as_bytes());
        seal_block(&mut buf[..]);
        Block::new(buf, content.kind())
    }
}

impl DirtySet {
    /// Encodes and writes all dirty blocks, in ascending order and batches; no flush. On success the set is empty and the
    /// blocks are in the cache, without the versions that nobody is likely to want again; on an error everything stays
    /// dirty and the call can be repeated.
    pub(crate) fn write_out(&mut self, store: &BlockStore) -> Result<()> {
        let mut refs = self.refs();
        refs.sort_unstable_by_key(|r| r.blkno.get());
        let mut done: Vec<Arc<Block>> = Vec::with_capacity(refs.len());
        // The next batch is encoded while the device writes one.
        pipeline(
            refs.len() > WRITE_BATCH,
            |out| {
                for batch in refs.chunks(WRITE_BATCH) {
                    if !out(batch.iter().map(|r| store.encode(*r, self.content(r))).collect::<Vec<_>>()) {
                        return;
                    }
                }
            },
            |blocks| {
                let first = done.len();
                done.extend(blocks);
                let at = |i: usize| refs[first + i].blkno.get() * BLOCK_BYTES as u64;
                let writes: Vec<(u64, &[u8])> =
                    done[first..].iter().enumerate().map(|(i, b)| (at(i), &b.bytes()[..])).collect();
                store.dev.write_batch(&writes)
            },
        )?;
        // Only now: content may still change before a failed write-out is repeated, under the same version.
        let outdated = self.written();
        outdated.into_iter().for_each(|key| store.cache.remove(key));
        for (r, block) in refs.iter().zip(done) {
            store.cache.put((r.blkno.get(), r.seq.get()), block, store.pool.charged());
        }
        Ok(())
    }
}
