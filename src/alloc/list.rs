//! Lists of free metadata blocks: chains of blocks full of block numbers (`spec/02 §5.2, §5.4`, `spec/01 §9.1`).
//!
//! Only the first block of a chain is worked with; the others wait. Entries are a set: their order means nothing.
//! Here: one list block in decoded form, and what the server does with whole lists: fill one from free extents, empty one
//! into free extents, append one to another. The use of a *pair* of lists by a transaction is [`super::meta`].
//!
//! Invariants:
//! 1. `head.first_nr` is the number of entries of the first block, `head.total_nr` that of all blocks.
//! 2. A list that is filled or emptied is never the one that serves the allocations of the running commit.
//! 3. Every exit, also by an error, leaves head and blocks consistent with each other and no number lost.
//! 4. A number that is already free (a double free) is reported and left out instead of failing every later commit
//!    (`spec/00 §6` row 11).

use std::collections::VecDeque;

use zerocopy::FromBytes;

use super::extents::{self, Bounds};
use crate::block::{BLOCK_BYTES, Block, BlockKind, BlockView, Cow, CowContent, DirtyContent};
use crate::btree::Reader;
use crate::error::{Error, Result};
use crate::format::layout::{AllocListBlockHead, AllocListHead, AllocRoot, BlockRef};
use crate::format::{MetaBlock, consts};

/// Entries of one list block.
pub(crate) const LIST_CAPACITY: usize = consts::ALLOC_LIST_MAX;

const HEAD_BYTES: usize = consts::ALLOC_LIST_HEAD_BYTES;

/// A list block, decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListBlock {
    /// The next block of the chain.
    pub(crate) next: Option<BlockRef>,
    /// The entries; taken from the front, added at the back.
    pub(crate) blknos: VecDeque<u64>,
}

/// The null reference.
pub(crate) fn null_ref() -> BlockRef {
    BlockRef { blkno: 0.into(), seq: 0.into() }
}

/// The reference, unless it is null.
pub(crate) fn some_ref(r: &BlockRef) -> Option<BlockRef> {
    (r.blkno.get() != 0).then_some(*r)
}

impl BlockView for ListBlock {
    fn decode(block: &[u8; BLOCK_BYTES], blkno: u64) -> Result<ListBlock> {
        let what = || format!("allocator list block {blkno}");
        let (head, _) = AllocListBlockHead::ref_from_prefix(&block[..])
            .map_err(|_| Error::corrupt(what(), "shorter than its head"))?;
        let (start, nr) = (head.start.get() as usize, head.nr.get() as usize);
        if start > LIST_CAPACITY || nr > LIST_CAPACITY || start + nr > LIST_CAPACITY {
            return Err(Error::corrupt(what(), format!("entries {start}+{nr} do not fit in {LIST_CAPACITY}")));
        }
        let bytes = &block[HEAD_BYTES + 8 * start..HEAD_BYTES + 8 * (start + nr)];
        let blknos = bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("chunks of 8"))).collect();
        Ok(ListBlock { next: some_ref(&head.next), blknos })
    }

    fn heap_bytes(&self) -> usize {
        8 * self.blknos.capacity()
    }
}

impl DirtyContent for ListBlock {
    fn kind(&self) -> BlockKind {
        BlockKind::AllocList
    }

    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]) {
        debug_assert!(self.blknos.len() <= LIST_CAPACITY);
        let next = self.next.unwrap_or_else(null_ref);
        buf[32..40].copy_from_slice(&next.blkno.get().to_le_bytes());
        buf[40..48].copy_from_slice(&next.seq.get().to_le_bytes());
        buf[48..52].copy_from_slice(&0u32.to_le_bytes());
        buf[52..56].copy_from_slice(&(self.blknos.len() as u32).to_le_bytes());
        let (used, rest) = buf[HEAD_BYTES..].split_at_mut(8 * self.blknos.len());
        for (slot, blkno) in used.as_chunks_mut().0.iter_mut().zip(self.blknos.make_contiguous()) {
            *slot = blkno.to_le_bytes();
        }
        rest.fill(0);
    }
}

impl CowContent for ListBlock {
    const KIND: BlockKind = BlockKind::AllocList;

    fn load(block: &Block) -> Result<ListBlock> {
        Ok(block.view::<ListBlock>()?.clone())
    }

    fn empty() -> ListBlock {
        ListBlock::default()
    }
}

/// Reads the list block behind `r` and checks it against what the head says; stale means corrupt, for lists are always
/// read by their owner.
pub(crate) fn read_block(reader: &Reader<'_>, r: &BlockRef, nr: Option<u32>) -> Result<ListBlock> {
    let stale = |e| match e {
        Error::Stale { blkno, seq } => {
            Error::corrupt(format!("allocator list block {blkno}"), format!("does not hold version {seq:#x}"))
        }
        e => e,
    };
    let meta_blocks = reader.store.meta_blocks();
    if let Some(dirty) = reader.dirty
        && let Some(list) = dirty.get::<ListBlock>(r).map_err(stale)?
    {
        check_block(list, r.blkno.get(), nr, meta_blocks)?;
        return Ok(list.clone());
    }
    let block = reader.store.read(r, BlockKind::AllocList).map_err(stale)?;
    let list = block.view::<ListBlock>()?;
    check_block(list, r.blkno.get(), nr, meta_blocks)?;
    Ok(list.clone())
}

fn check_block(list: &ListBlock, blkno: u64, nr: Option<u32>, meta_blocks: u64) -> Result<()> {
    let what = || format!("allocator list block {blkno}");
    if nr.is_some_and(|nr| list.blknos.len() != nr as usize) {
        return Err(Error::corrupt(what(), format!("{} entries, its head says {nr:?}", list.blknos.len())));
    }
    if let Some(bad) = list.blknos.iter().find(|b| **b < 2 || **b >= meta_blocks) {
        return Err(Error::corrupt(what(), format!("entry {bad} is outside the device of {meta_blocks} blocks")));
    }
    Ok(())
}

/// Makes the first block dirty and checks it against the head.
fn first_mut<'c>(cow: &'c mut Cow<'_>, head: &mut AllocListHead) -> Result<&'c mut ListBlock> {
    let meta_blocks = cow.store.meta_blocks();
    let list = cow.content_mut::<ListBlock>(&mut head.block_ref)?;
    check_block(list, head.block_ref.blkno.get(), Some(head.first_nr.get()), meta_blocks)?;
    Ok(list)
}

fn set_first(cow: &mut Cow<'_>, head: &mut AllocListHead, blknos: VecDeque<u64>) -> Result<()> {
    let list = cow.content_mut::<ListBlock>(&mut head.block_ref)?;
    let total = head.total_nr.get() - u64::from(head.first_nr.get()) + blknos.len() as u64;
    head.first_nr = (blknos.len() as u32).into();
    head.total_nr = total.into();
    list.blknos = blknos;
    Ok(())
}

/// Fills the first block of the list to `target` entries from the free extents of `root`, if it holds fewer than `lo`.
///
/// `ENOSPC` if the root ran dry first (what was there has been moved); success if only the room of the running commit
/// ran out.
pub(crate) fn fill(
    cow: &mut Cow<'_>,
    head: &mut AllocListHead,
    root: &mut AllocRoot,
    bounds: Bounds,
    lo: u32,
    target: u32,
) -> Result<()> {
    let target = (target as usize).min(LIST_CAPACITY);
    if head.first_nr.get() >= lo {
        return Ok(());
    }
    let mut blknos = std::mem::take(&mut first_mut(cow, head)?.blknos);
    let mut result = Ok(());
    while blknos.len() < target && !cow.alloc.low(1 + extents::mod_blocks(root)) {
        match extents::alloc(cow, root, bounds, (target - blknos.len()) as u64) {
            Ok(e) => blknos.extend(e.start..e.end()),
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    set_first(cow, head, blknos)?;
    result
}

/// Empties the list into the free extents of `root`, as far as the room of the running commit reaches.
///
/// Returns how many numbers were left out because they were free already, there or in the tree `beside` it.
pub(crate) fn empty(
    cow: &mut Cow<'_>,
    head: &mut AllocListHead,
    root: &mut AllocRoot,
    beside: Option<&AllocRoot>,
    bounds: Bounds,
) -> Result<u64> {
    let mut quarantined = 0;
    while let Some(first) = some_ref(&head.block_ref) {
        if cow.alloc.low(2 + extents::mod_blocks(root)) {
            return Ok(quarantined);
        }
        if head.first_nr.get() == 0 {
            drop_first(cow, head, &first)?;
            continue;
        }
        let mut blknos = std::mem::take(&mut first_mut(cow, head)?.blknos);
        blknos.make_contiguous().sort_unstable();
        let before = blknos.len();
        let mut rest: Vec<u64> = blknos.into();
        rest.dedup();
        quarantined += report_doubles((before - rest.len()) as u64, "listed twice");
        let mut done = 0;
        let mut result = Ok(());
        while done < rest.len() && !cow.alloc.low(1 + extents::mod_blocks(root)) {
            let run = run_length(&rest[done..]);
            match extents::insert_new_beside(cow, root, beside, bounds, rest[done], run as u64) {
                Ok(left_out) => quarantined += left_out,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            done += run;
        }
        let stuck = done == 0;
        rest.drain(..done);
        set_first(cow, head, rest.into())?;
        result?;
        if stuck {
            return Ok(quarantined);
        }
    }
    if head.total_nr.get() != 0 {
        return Err(Error::corrupt("allocator list", format!("{} entries in no block", head.total_nr.get())));
    }
    Ok(quarantined)
}

/// How many numbers from the front are consecutive.
fn run_length(sorted: &[u64]) -> usize {
    1 + sorted.windows(2).take_while(|w| w[1] == w[0] + 1).count()
}

pub(crate) fn report_doubles(count: u64, how: &str) -> u64 {
    if count > 0 {
        tracing::error!(count, how, "blocks freed twice: left out of the free space");
    }
    count
}

/// Frees the empty first block and goes on to the next of the chain.
fn drop_first(cow: &mut Cow<'_>, head: &mut AllocListHead, first: &BlockRef) -> Result<()> {
    let next = read_block(&Reader::with_dirty(cow.store, cow.dirty), first, Some(0))?.next;
    let nr = match &next {
        None => 0,
        Some(next) => read_block(&Reader::with_dirty(cow.store, cow.dirty), next, None)?.blknos.len() as u32,
    };
    if u64::from(nr) > head.total_nr.get() {
        return Err(Error::corrupt("allocator list", format!("{nr} entries in a block of {}", head.total_nr.get())));
    }
    cow.free_block(first)?;
    head.block_ref = next.unwrap_or_else(null_ref);
    head.first_nr = nr.into();
    Ok(())
}

/// Adds all of `src` to `dst`; `src` is empty afterwards. Few entries go into the first block of `dst`, so that the chain does not
/// grow by a block for each of them; of many the chains are joined.
pub(crate) fn absorb(cow: &mut Cow<'_>, dst: &mut AllocListHead, src: &mut AllocListHead) -> Result<()> {
    let (have, more) = (dst.first_nr.get() as usize, src.first_nr.get() as usize);
    let few = u64::from(src.first_nr.get()) == src.total_nr.get() && have + more <= LIST_CAPACITY / 2;
    let (Some(_), Some(from)) = (some_ref(&dst.block_ref), some_ref(&src.block_ref)) else {
        return splice(cow, dst, src);
    };
    let list = read_block(&Reader::with_dirty(cow.store, cow.dirty), &from, Some(src.first_nr.get()))?;
    if !few || list.next.is_some() {
        return splice(cow, dst, src);
    }
    cow.free_block(&from)?;
    let mut blknos = std::mem::take(&mut first_mut(cow, dst)?.blknos);
    blknos.extend(list.blknos);
    set_first(cow, dst, blknos)?;
    *src = AllocListHead { block_ref: null_ref(), total_nr: 0.into(), first_nr: 0.into(), flags: src.flags };
    Ok(())
}

/// Appends `dst` to `src` and makes that the new `dst`; `src` is empty afterwards.
pub(crate) fn splice(cow: &mut Cow<'_>, dst: &mut AllocListHead, src: &mut AllocListHead) -> Result<()> {
    let flags = dst.flags;
    if let Some(behind) = some_ref(&dst.block_ref) {
        if some_ref(&src.block_ref).is_none() {
            return Ok(());
        }
        let chain = cow_chain(cow, src)?;
        for (i, r) in chain.iter().enumerate() {
            let mut r = *r;
            cow.content_mut::<ListBlock>(&mut r)?.next = Some(*chain.get(i + 1).unwrap_or(&behind));
        }
        dst.block_ref = chain[0];
        dst.first_nr = src.first_nr;
        dst.total_nr = (dst.total_nr.get() + src.total_nr.get()).into();
    } else {
        *dst = *src;
    }
    dst.flags = flags;
    *src = AllocListHead { block_ref: null_ref(), total_nr: 0.into(), first_nr: 0.into(), flags: src.flags };
    Ok(())
}

/// Makes every block of a list dirty; returns the new references in order. All blocks are read and checked before the
/// first one changes.
fn cow_chain(cow: &mut Cow<'_>, head: &AllocListHead) -> Result<Vec<BlockRef>> {
    let mut refs = Vec::new();
    walk(&Reader::with_dirty(cow.store, cow.dirty), head, &mut |v| {
        if let ListVisit::Block(r) = v {
            refs.push(r);
        }
        Ok(())
    })?;
    for r in &mut refs {
        cow.content_mut::<ListBlock>(r)?;
    }
    Ok(refs)
}

/// What [`walk`] meets.
pub(crate) enum ListVisit {
    /// A block of the chain itself.
    Block(BlockRef),
    /// An entry.
    #[cfg_attr(not(any(test, feature = "internals")), expect(dead_code, reason = "only tests look at the entries"))]
    Entry(MetaBlock),
}

/// Visits all blocks and entries of a list, with every check of `spec/02 §5.2`.
pub(crate) fn walk(
    reader: &Reader<'_>,
    head: &AllocListHead,
    visit: &mut dyn FnMut(ListVisit) -> Result<()>,
) -> Result<()> {
    let total = head.total_nr.get();
    let mut seen = 0u64;
    let mut blocks = 0u64;
    let mut nr = Some(head.first_nr.get());
    let mut next = some_ref(&head.block_ref);
    if next.is_none() && (total != 0 || head.first_nr.get() != 0) {
        return Err(Error::corrupt("allocator list", format!("{total} entries in no block")));
    }
    while let Some(r) = next {
        let list = read_block(reader, &r, nr.take())?;
        seen += list.blknos.len() as u64;
        blocks += 1;
        // Empty blocks do not count towards the total, so the number of blocks bounds a cycle of them.
        if seen > total || blocks > reader.store.meta_blocks() {
            return Err(Error::corrupt("allocator list", format!("more than the {total} entries of its head")));
        }
        visit(ListVisit::Block(r))?;
        for blkno in &list.blknos {
            visit(ListVisit::Entry(MetaBlock(*blkno)))?;
        }
        next = list.next;
    }
    if seen != total {
        return Err(Error::corrupt("allocator list", format!("{seen} entries, its head says {total}")));
    }
    Ok(())
}

/// Checks a head that came from a peer (`spec/02 §8.1`): null reference ⇒ zero counts, first ≤ total, first ≤ capacity.
#[cfg(test)]
pub(crate) fn check_head(what: &str, head: &AllocListHead) -> Result<()> {
    let (first, total) = (u64::from(head.first_nr.get()), head.total_nr.get());
    let null = head.block_ref.blkno.get() == 0;
    if (null && total != 0) || first > total || first > LIST_CAPACITY as u64 {
        return Err(Error::corrupt(what, format!("list of {total} entries, {first} in the first block, null {null}")));
    }
    Ok(())
}
