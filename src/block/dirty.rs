//! The dirty set of one transaction and copy-on-write (`spec/02 §2.4`, `§2.5`).
//!
//! Dirty blocks are kept decoded, as whatever their room finds handy to change, and encoded once, when they are written.

use std::any::Any;

use super::{BLOCK_BYTES, Block, BlockKind, BlockStore};
use crate::error::{Error, Result};
use crate::format::MetaBlock;
use crate::format::layout::BlockRef;
use crate::sync::HashMap;

/// Decoded content of a dirty block.
pub(crate) trait DirtyContent: Any + Send {
    /// What kind of block it becomes.
    fn kind(&self) -> BlockKind;

    /// Writes bytes 32.. of the block, all of them (`buf` has any content). The store adds header and crc. Changes nothing but
    /// what makes the next encoding cheaper.
    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]);
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

    /// Takes back an [`alloc`](Self::alloc) that came to nothing. A source that cannot loses the number for this transaction.
    fn cancel(&mut self, b: MetaBlock) {
        let _ = b;
    }

    /// How many allocations and how many frees are left for this transaction.
    fn room(&self) -> (u64, u64) {
        (u64::MAX, u64::MAX)
    }

    /// Are fewer than `n` allocations or `n` frees left (`spec/02 §5.5`)?
    fn low(&self, n: u64) -> bool {
        let (allocs, frees) = self.room();
        allocs < n || frees < n
    }
}

struct Dirty {
    seq: u64,
    content: Box<dyn DirtyContent>,
}

/// The blocks that one transaction has changed, decoded.
#[derive(Default)]
pub(crate) struct DirtySet {
    blocks: HashMap<u64, Dirty>,
    /// Clean blocks that dirty ones replace: versions that only readers of older roots still want.
    replaced: Vec<(u64, u64)>,
    /// Those that the last write-out replaced. Readers had a whole transaction to come to the newer roots.
    outdated: Vec<(u64, u64)>,
    /// What the last write-out wrote, if it was little: the next small transaction changes mostly the same blocks, and
    /// need not read and check them.
    kept: HashMap<(u64, u64), Box<dyn DirtyContent>>,
}

/// Write-outs of at most so many blocks leave their content for the next transaction.
const KEEP_BLOCKS: usize = 32;

impl DirtySet {
    /// An empty set.
    pub(crate) fn new() -> DirtySet {
        DirtySet::default()
    }

    /// Number of dirty blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes that a write-out would write.
    pub(crate) fn bytes(&self) -> u64 {
        self.len() as u64 * BLOCK_BYTES as u64
    }

    /// Drops everything unwritten.
    pub(crate) fn forget(&mut self) {
        self.blocks.clear();
        self.replaced.clear();
    }

    /// The dirty blocks are written: nothing is dirty any more. Gives the versions that were replaced one write-out before.
    pub(super) fn written(&mut self) -> Vec<(u64, u64)> {
        self.kept.clear();
        let small = self.blocks.len() <= KEEP_BLOCKS;
        let blocks = self.blocks.drain().filter(|_| small);
        self.kept.extend(blocks.map(|(blkno, d)| ((blkno, d.seq), d.content)));
        std::mem::replace(&mut self.outdated, std::mem::take(&mut self.replaced))
    }

    /// Adds a block under a number and nonce that the caller chose.
    pub(crate) fn insert<T: DirtyContent>(&mut self, r: BlockRef, content: T) {
        let was = self.blocks.insert(r.blkno.get(), Dirty { seq: r.seq.get(), content: Box::new(content) });
        assert!(was.is_none(), "block {} is dirty already", r.blkno.get());
    }

    /// Is some version of this block number dirty?
    pub(crate) fn contains(&self, b: MetaBlock) -> bool {
        self.blocks.contains_key(&b.0)
    }

    /// The dirty content that the reference names. `None` if the block is not dirty here, `Stale` if another version of it is.
    pub(crate) fn get<T: DirtyContent>(&self, r: &BlockRef) -> Result<Option<&T>> {
        let Some(d) = self.blocks.get(&r.blkno.get()) else { return Ok(None) };
        check_version(d, r)?;
        (&*d.content as &dyn Any).downcast_ref().map(Some).ok_or_else(|| wrong_kind(r))
    }

    /// The same for changing.
    pub(crate) fn get_mut<T: DirtyContent>(&mut self, r: &BlockRef) -> Result<Option<&mut T>> {
        let Some(d) = self.blocks.get_mut(&r.blkno.get()) else { return Ok(None) };
        check_version(d, r)?;
        (&mut *d.content as &mut dyn Any).downcast_mut().map(Some).ok_or_else(|| wrong_kind(r))
    }

    /// References to all blocks, in no order.
    pub(super) fn refs(&self) -> Vec<BlockRef> {
        self.blocks.iter().map(|(blkno, d)| BlockRef { blkno: (*blkno).into(), seq: d.seq.into() }).collect()
    }

    /// Content of a block that is known to be here.
    pub(super) fn content(&mut self, r: &BlockRef) -> &mut dyn DirtyContent {
        &mut *self.blocks.get_mut(&r.blkno.get()).expect("dirty, as the caller knows").content
    }

    /// The content of a clean block, if it was written a short while ago.
    fn take_kept<T: DirtyContent>(&mut self, r: &BlockRef) -> Option<T> {
        let content: Box<dyn Any> = self.kept.remove(&(r.blkno.get(), r.seq.get()))?;
        content.downcast().ok().map(|content| *content)
    }
}

/// A local writer has reused the number: reading again cannot help, and the dirty block must not be dropped.
fn check_version(d: &Dirty, r: &BlockRef) -> Result<()> {
    if d.seq == r.seq.get() { Ok(()) } else { Err(Error::Stale { blkno: r.blkno.get(), seq: r.seq.get() }) }
}

fn wrong_kind(r: &BlockRef) -> Error {
    Error::corrupt(format!("reference to block {}", r.blkno.get()), "the block is of another kind")
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
        let old = r.blkno.get();
        if !self.dirty.contains(MetaBlock(old)) {
            let content = match self.dirty.take_kept(r) {
                Some(kept) => kept,
                None if old == 0 => T::empty(),
                None => T::load(&*self.store.read(r, T::KIND)?)?,
            };
            let new = self.alloc_block()?;
            if old != 0
                && let Err(e) = self.alloc.free(MetaBlock(old))
            {
                self.alloc.cancel(new);
                return Err(e);
            }
            if old != 0 {
                self.dirty.replaced.push((old, r.seq.get()));
            }
            *r = BlockRef { blkno: new.0.into(), seq: self.store.nonce().into() };
            self.dirty.insert(*r, content);
        }
        let content = self.dirty.get_mut(r)?;
        Ok(content.expect("dirty, as just checked"))
    }

    /// A new number that is certain not to hold anything of this transaction.
    fn alloc_block(&mut self) -> Result<MetaBlock> {
        let new = self.alloc.alloc()?;
        if new.0 < 2 || new.0 >= self.store.meta_blocks() || self.dirty.contains(new) {
            return Err(Error::corrupt(
                "list of free metadata blocks",
                format!("block {new} is in use or outside the device"),
            ));
        }
        Ok(new)
    }

    /// Undoes the [`content_mut`](Self::content_mut) that made this new block.
    pub(crate) fn cancel_block(&mut self, r: &BlockRef) {
        self.dirty.blocks.remove(&r.blkno.get());
        self.alloc.cancel(MetaBlock(r.blkno.get()));
    }

    /// Frees a block, dropping it from the dirty set if it is there.
    pub(crate) fn free_block(&mut self, r: &BlockRef) -> Result<()> {
        let blkno = r.blkno.get();
        if let Some(d) = self.dirty.blocks.get(&blkno) {
            check_version(d, r)?;
        }
        self.alloc.free(MetaBlock(blkno))?;
        if self.dirty.blocks.remove(&blkno).is_none() {
            self.dirty.replaced.push((blkno, r.seq.get()));
        }
        Ok(())
    }
}
