//! The metadata allocator of one transaction: a pair of block lists, one to take from and one to give to (`spec/02 §5.3`).
//!
//! Problem: the lists live in blocks that are themselves copy-on-write, so using the allocator changes blocks, which needs
//! the allocator. The format solves it with a fixed opening move: the first two entries of the avail list become the new
//! homes of the two first blocks. Here both blocks are decoded when the transaction first allocates or frees, worked with in
//! memory, and handed to the dirty set once, at the end.
//!
//! Invariants:
//! 1. Opening is all or nothing: an error leaves the heads as they were (`spec/00 §6` row 7).
//! 2. A number given back that this transaction itself had taken goes back to avail, for nobody else ever knew it. All other
//!    frees go to the freed list and cannot be allocated by this transaction.
//! 3. After [`MetaAlloc::finish`] nothing can be allocated or freed; asking again gives the same heads, so that a failed
//!    write is repeated without touching the lists.
//! 4. Room counts the rotation that opening will do, in every gate (`spec/00 §6` row 10).

use std::collections::VecDeque;

use super::list::{LIST_CAPACITY, ListBlock, null_ref, read_block, some_ref};
use crate::block::{BlockSource, BlockStore, DirtySet};
use crate::btree::Reader;
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::{AllocListHead, BlockRef};
use crate::format::{MetaBlock, consts};
use crate::sync::{Arc, HashSet};

/// A first freed block with fewer free slots than this is not used any more: opening puts a new one before it.
const ROTATE_BELOW: usize = LIST_CAPACITY / 4;

/// Room for frees after a rotation: the new block minus the numbers of the two replaced list blocks.
const ROTATED_ROOM: usize = LIST_CAPACITY - 2;

/// One pair of lists in use.
pub(crate) struct MetaAlloc {
    store: Arc<BlockStore>,
    avail: AllocListHead,
    freed: AllocListHead,
    open: Option<Open>,
    finished: bool,
}

/// The first blocks of both lists, in memory.
struct Open {
    avail_ref: BlockRef,
    avail: ListBlock,
    freed_ref: BlockRef,
    freed: ListBlock,
    /// Taken by this transaction and not given back.
    taken: HashSet<u64>,
}

/// How much room there was at some moment, for budgets.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomSnapshot {
    avail: u64,
    freed: u64,
}

impl MetaAlloc {
    /// The allocator of a transaction that owns these lists. Nothing is read before the first use.
    pub(crate) fn new(store: Arc<BlockStore>, avail: AllocListHead, freed: AllocListHead) -> MetaAlloc {
        MetaAlloc { store, avail, freed, open: None, finished: false }
    }

    /// Allocations left.
    pub(crate) fn avail_remaining(&self) -> u64 {
        match &self.open {
            Some(open) => open.avail.blknos.len() as u64,
            None => u64::from(self.avail.first_nr.get()),
        }
    }

    /// Frees left.
    pub(crate) fn freed_remaining(&self) -> u64 {
        let left = match &self.open {
            Some(open) => LIST_CAPACITY.saturating_sub(open.freed.blknos.len()),
            None => match LIST_CAPACITY.saturating_sub(self.freed.first_nr.get() as usize) {
                left if left < ROTATE_BELOW => ROTATED_ROOM,
                left => left,
            },
        };
        left as u64
    }

    /// Is the LOW flag set: the server is short of metadata, allocating operations must be refused?
    pub(crate) fn flagged_low(&self) -> bool {
        self.avail.flags.get() & consts::ALLOC_FLAG_LOW != 0
    }

    /// The room as it is now.
    #[cfg(test)]
    pub(crate) fn snapshot(&self) -> RoomSnapshot {
        RoomSnapshot { avail: self.avail_remaining(), freed: self.freed_remaining() }
    }

    /// Would using `n` more blocks exceed `budget` blocks since the snapshot?
    #[cfg(test)]
    pub(crate) fn low_since(&self, since: &RoomSnapshot, budget: u64, n: u64) -> bool {
        let avail = since.avail.saturating_sub(self.avail_remaining());
        let freed = since.freed.saturating_sub(self.freed_remaining());
        avail.max(freed) + n > budget
    }

    fn opened(&mut self) -> Result<&mut Open> {
        if self.finished {
            return Err(Error::corrupt("metadata allocator in memory", "used after its lists were finished"));
        }
        if self.open.is_none() {
            self.open = Some(self.prepare()?);
        }
        Ok(self.open.as_mut().expect("just opened"))
    }

    /// The opening move, on copies.
    fn prepare(&self) -> Result<Open> {
        if self.avail.first_nr.get() < 2 {
            return fail(Errno::ENOSPC);
        }
        let reader = Reader::new(&self.store);
        let mut avail = read_block(&reader, &self.avail.block_ref, Some(self.avail.first_nr.get()))?;
        let old_freed = some_ref(&self.freed.block_ref);
        let full = LIST_CAPACITY - (self.freed.first_nr.get() as usize).min(LIST_CAPACITY) < ROTATE_BELOW;
        let mut freed = match old_freed {
            Some(old) if full => ListBlock { next: Some(old), blknos: VecDeque::new() },
            Some(old) => read_block(&reader, &old, Some(self.freed.first_nr.get()))?,
            None => ListBlock::default(),
        };
        let mut home = || -> Result<BlockRef> {
            let blkno = avail.blknos.pop_front().ok_or(Error::Posix(Errno::ENOSPC))?;
            Ok(BlockRef { blkno: blkno.into(), seq: self.store.nonce().into() })
        };
        let (avail_ref, freed_ref) = (home()?, home()?);
        avail.blknos.make_contiguous().sort_unstable();
        freed.blknos.push_back(self.avail.block_ref.blkno.get());
        if let (Some(old), false) = (old_freed, full) {
            freed.blknos.push_back(old.blkno.get());
        }
        Ok(Open { avail_ref, avail, freed_ref, freed, taken: HashSet::default() })
    }

    /// Ends the use of the lists: both first blocks go to the dirty set, the heads are what the commit records. Without
    /// any allocation or free the heads are the old ones.
    pub(crate) fn finish(&mut self, dirty: &mut DirtySet) -> Result<(AllocListHead, AllocListHead)> {
        if !self.finished {
            if let Some(open) = self.open.take() {
                self.avail = head_after(&self.avail, open.avail_ref, &open.avail, 0)?;
                let kept = if open.freed.next.is_some_and(|n| n == self.freed.block_ref) {
                    u64::from(self.freed.first_nr.get())
                } else {
                    0
                };
                self.freed = head_after(&self.freed, open.freed_ref, &open.freed, kept)?;
                dirty.insert(open.avail_ref, open.avail);
                dirty.insert(open.freed_ref, open.freed);
            }
            self.finished = true;
        }
        Ok((self.avail, self.freed))
    }
}

/// The head of a list whose first block became `list`; `kept` entries of the old first block are still in the chain.
fn head_after(old: &AllocListHead, block_ref: BlockRef, list: &ListBlock, kept: u64) -> Result<AllocListHead> {
    let nr = list.blknos.len() as u64;
    let behind = old.total_nr.get().checked_sub(u64::from(old.first_nr.get()));
    let behind = behind.ok_or_else(|| Error::corrupt("allocator list head", "first block holds more than the list"))?;
    Ok(AllocListHead {
        block_ref,
        total_nr: (behind + kept + nr).into(),
        first_nr: (nr as u32).into(),
        flags: old.flags,
    })
}

impl BlockSource for MetaAlloc {
    fn alloc(&mut self) -> Result<MetaBlock> {
        let open = self.opened()?;
        let Some(blkno) = open.avail.blknos.pop_front() else { return fail(Errno::ENOSPC) };
        open.taken.insert(blkno);
        Ok(MetaBlock(blkno))
    }

    fn free(&mut self, b: MetaBlock) -> Result<()> {
        if b.0 < consts::META_START || b.0 >= self.store.meta_blocks() {
            return fail(Errno::EINVAL);
        }
        let open = self.opened()?;
        if open.taken.remove(&b.0) {
            open.avail.blknos.push_front(b.0);
            return Ok(());
        }
        if open.freed.blknos.len() >= LIST_CAPACITY {
            return Err(Error::corrupt("metadata allocator in memory", "more frees than a transaction can record"));
        }
        open.freed.blknos.push_back(b.0);
        Ok(())
    }

    fn cancel(&mut self, b: MetaBlock) {
        if let Some(open) = self.open.as_mut().filter(|_| !self.finished)
            && open.taken.remove(&b.0)
        {
            open.avail.blknos.push_front(b.0);
        }
    }

    fn room(&self) -> (u64, u64) {
        (self.avail_remaining(), self.freed_remaining())
    }
}

/// A head that owns nothing.
pub(crate) fn empty_head() -> AllocListHead {
    AllocListHead { block_ref: null_ref(), total_nr: 0.into(), first_nr: 0.into(), flags: 0.into() }
}
