//! The data allocator of a mount's transaction (`spec/02 §7`, `spec/07 §6`).
//!
//! The free extents that the server handed to the mount are a tree that nobody changes while the transaction is open. So
//! allocation needs no tree work: extents are read from the tree in order of size as they are needed, and what was taken and
//! what was freed is kept in memory and brought into the two trees once, when the transaction commits.
//!
//! Invariants:
//! 1. Blocks come from `data_avail` only; freed blocks go to `data_freed` only and are not allocated again before the next
//!    transaction, for the committed state may still refer to them, or I/O to them may be under way.
//! 2. Space that was promised ([`DataAlloc::reserve`]) is always there when it is asked for: ENOSPC is known when data is
//!    accepted, not when it is written.
//! 3. "Empty" means ENOSPC only if a commit would not help; otherwise [`Error::NeedCommit`].
//! 4. `finish` changes nothing here: a build of the commit that is thrown away can be made again from the start.
//! 5. The cost of `finish` is known before it comes: promised space is looked up in the tree when it is promised.

use std::collections::{BTreeMap, BTreeSet};

use super::extent::{Extent, ExtentMap};
use super::extents::{self, Bounds};
use super::stock::DATA_LARGE;
use crate::block::{BlockStore, Cow};
use crate::btree::Reader;
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::AllocRoot;
use crate::format::{DataBlock, consts, keys};
use crate::sync::Arc;

/// Place of an extent in the size index: (class from above, last block).
type Place = (u64, u64);

fn place(e: &Extent) -> Place {
    (u64::MAX - keys::size_order(e.len), e.last())
}

/// Free data blocks of one transaction.
pub(crate) struct DataAlloc {
    store: Arc<BlockStore>,
    bounds: Bounds,
    avail: AllocRoot,
    freed: AllocRoot,
    /// Next extent of the tree in order of size, if it has been looked up.
    peeked: Option<Option<Extent>>,
    /// Where to look for the one after it.
    at: Option<Extent>,
    /// Blocks of the tree's extents that have not been looked up.
    in_tree: u64,
    /// Extents of the tree that have been.
    touched: Vec<Extent>,
    /// What is left of them, but for `cached`, in order of size.
    rest: BTreeMap<Place, Extent>,
    /// Small allocations are cut from the front of this one.
    cached: Option<Extent>,
    /// All blocks freed by this transaction.
    gone: ExtentMap,
    /// Free blocks, promised ones included.
    total: u64,
    /// Promised.
    reserved: u64,
    /// Items that the owner of the promises will change when it uses them.
    expected_items: u64,
}

impl DataAlloc {
    /// The allocator over the two roots of a log trees item. Nothing is read before the first use.
    pub(crate) fn new(store: Arc<BlockStore>, bounds: Bounds, avail: AllocRoot, freed: AllocRoot) -> DataAlloc {
        DataAlloc {
            store,
            bounds,
            total: avail.total_len.get(),
            in_tree: avail.total_len.get(),
            avail,
            freed,
            peeked: None,
            at: None,
            touched: Vec::new(),
            rest: BTreeMap::new(),
            cached: None,
            gone: ExtentMap::default(),
            reserved: 0,
            expected_items: 0,
        }
    }

    /// Free blocks that nobody was promised.
    pub(crate) fn total(&self) -> u64 {
        self.total - self.reserved
    }

    /// Did the server say that it has no more to give?
    pub(crate) fn flagged_low(&self) -> bool {
        self.avail.flags.get() & consts::ALLOC_FLAG_LOW != 0
    }

    /// Has anything been allocated or freed?
    pub(crate) fn is_changed(&self) -> bool {
        !self.touched.is_empty() || !self.gone.is_empty()
    }

    /// Nothing left: would a commit bring more?
    fn exhausted<T>(&self) -> Result<T> {
        // With LOW the server gives only what it has left; that is more than nothing if this transaction used some of what
        // it was given, or freed some.
        let used = self.avail.total_len.get() > self.total || self.reserved > 0;
        if self.flagged_low() && !used && self.gone.is_empty() { fail(Errno::ENOSPC) } else { Err(Error::NeedCommit) }
    }

    /// Promises `count` blocks, which [`alloc_reserved`](Self::alloc_reserved) then gives.
    pub(crate) fn reserve(&mut self, count: u64) -> Result<()> {
        if count > self.total() {
            return self.exhausted();
        }
        // Look up as many extents as the promises need: each one adds to what the commit will cost.
        while self.total.saturating_sub(self.in_tree) < self.reserved + count {
            let Some(e) = self.pull()? else { return Err(self.short_tree()) };
            self.rest.insert(place(&e), e);
        }
        self.reserved += count;
        Ok(())
    }

    /// Tells how many items using the promises will change, in all.
    pub(crate) fn expect_items(&mut self, items: u64) {
        self.expected_items = items;
    }

    /// Takes a promise back.
    pub(crate) fn unreserve(&mut self, count: u64) {
        debug_assert!(count <= self.reserved);
        self.reserved = self.reserved.saturating_sub(count);
    }

    /// Up to `count` blocks that were promised before, in one piece; the promise shrinks by what is given.
    pub(crate) fn alloc_reserved(&mut self, count: u64) -> Result<(DataBlock, u64)> {
        let e = self.take(count.min(self.reserved))?;
        self.reserved -= e.len;
        Ok((DataBlock(e.start), e.len))
    }

    /// Up to `count` blocks in one piece; it may be fewer. [`Error::NeedCommit`] or `ENOSPC` if there are none.
    pub(crate) fn alloc(&mut self, count: u64) -> Result<(DataBlock, u64)> {
        let count = count.min(self.total());
        if count == 0 {
            return self.exhausted();
        }
        let e = self.take(count)?;
        Ok((DataBlock(e.start), e.len))
    }

    fn take(&mut self, count: u64) -> Result<Extent> {
        if count == 0 {
            return Err(Error::corrupt("data allocator in memory", "asked for nothing, or for more than was promised"));
        }
        let e = if count >= DATA_LARGE {
            match self.take_first(count)? {
                Some(e) => Some(e),
                // All that is left is what small allocations were being cut from.
                None => self.take_cached(count)?,
            }
        } else {
            self.take_cached(count)?
        };
        let Some(e) = e else { return Err(self.short_tree()) };
        self.total -= e.len;
        Ok(e)
    }

    fn short_tree(&self) -> Error {
        Error::corrupt(
            "data_avail of the open transaction",
            format!("{} blocks by its total, none in its size index", self.total),
        )
    }

    fn take_cached(&mut self, count: u64) -> Result<Option<Extent>> {
        if self.cached.is_none() {
            self.cached = self.take_first(DATA_LARGE)?;
        }
        let Some(c) = self.cached else { return Ok(None) };
        let n = c.len.min(count);
        self.cached = (c.len > n).then(|| Extent::free(c.start + n, c.len - n));
        Ok(Some(Extent::free(c.start, n)))
    }

    fn peek(&mut self) -> Result<Option<Extent>> {
        if let Some(e) = self.peeked {
            return Ok(e);
        }
        let e = extents::next_by_order(&Reader::new(&self.store), &self.avail, self.bounds, self.at.as_ref())?;
        self.peeked = Some(e);
        Ok(e)
    }

    /// Takes the next extent out of the tree.
    fn pull(&mut self) -> Result<Option<Extent>> {
        let e = self.peek()?;
        if let Some(e) = e {
            self.peeked = None;
            self.at = Some(e);
            self.in_tree = self.in_tree.checked_sub(e.len).ok_or_else(|| self.short_tree())?;
            self.touched.push(e);
        }
        Ok(e)
    }

    /// Up to `count` blocks from the front of the first extent in order of size.
    fn take_first(&mut self, count: u64) -> Result<Option<Extent>> {
        let from_tree = self.peek()?;
        let from_rest = self.rest.first_key_value().map(|(p, e)| (*p, *e));
        let e = match (from_tree, from_rest) {
            (None, None) => return Ok(None),
            (tree, Some((p, e))) if tree.is_none_or(|t| p < place(&t)) => {
                self.rest.remove(&p);
                e
            }
            _ => match self.pull()? {
                Some(e) => e,
                None => return Ok(None),
            },
        };
        if e.len > count {
            let tail = Extent::free(e.start + count, e.len - count);
            self.rest.insert(place(&tail), tail);
        }
        Ok(Some(Extent::free(e.start, e.len.min(count))))
    }

    /// Gives back blocks that this transaction allocated, that nothing refers to and no I/O is going to.
    pub(crate) fn give_back(&mut self, start: DataBlock, len: u64) {
        let e = Extent::free(start.0, len);
        self.rest.insert(place(&e), e);
        self.total += len;
    }

    /// Frees blocks. `EINVAL` if they are outside the device, EIO if they were freed before.
    pub(crate) fn free(&mut self, start: DataBlock, len: u64) -> Result<()> {
        if !self.bounds.contains(start.0, len) {
            return fail(Errno::EINVAL);
        }
        self.gone.add(Extent::free(start.0, len)).map_err(|_| {
            Error::corrupt("file extents", format!("data blocks {}+{len} are freed twice in one transaction", start.0))
        })
    }

    /// An estimate from above of the metadata blocks that [`finish`](Self::finish) will change.
    pub(crate) fn finish_cost(&self) -> u64 {
        let tree = |root: &AllocRoot, extents: u64, items: u64| {
            let h = u64::from(root.root.height);
            match extents {
                0 => 0,
                // In a tree of many leaves each item may be in another one; a small tree is changed as a whole.
                n if h > 1 => (n * items * (h - 1)).min(4096) + n * items / 500 + h + 3,
                n => n * items / 500 + 4,
            }
        };
        // The items of a promise lie beside the inode item that was changed with it.
        let items = self.expected_items / 100 + u64::from(self.expected_items > 0);
        tree(&self.avail, self.touched.len() as u64, 6) + tree(&self.freed, self.gone.len() as u64, 2) + items
    }

    /// Brings all changes into the two trees; the roots are what the commit records.
    pub(crate) fn finish(&self, cow: &mut Cow<'_>) -> Result<(AllocRoot, AllocRoot)> {
        let (mut avail, mut freed) = (self.avail, self.freed);
        // What was looked up and not used stays as it is.
        let unused = |e: &Extent| self.rest.get(&place(e)) == Some(e);
        let mut taken: Vec<Extent> = self.touched.iter().copied().filter(|e| !unused(e)).collect();
        taken.sort_unstable_by_key(|e| e.start);
        let whole: BTreeSet<u64> = self.touched.iter().filter(|e| unused(e)).map(|e| e.start).collect();
        let left = self.rest.values().copied().filter(|e| !whole.contains(&e.start)).chain(self.cached);
        let mut left: Vec<Extent> = left.collect();
        left.sort_unstable_by_key(|e| e.start);
        for e in &taken {
            extents::remove_items(cow, &mut avail, e)?;
        }
        for e in &left {
            extents::insert(cow, &mut avail, self.bounds, e.start, e.len)?;
        }
        for e in self.gone.iter() {
            extents::insert_new(cow, &mut freed, self.bounds, e.start, e.len)?;
        }
        if avail.total_len.get() != self.total {
            return Err(Error::corrupt(
                "data allocator in memory",
                format!("{} blocks in the tree, {} expected", avail.total_len.get(), self.total),
            ));
        }
        Ok((avail, freed))
    }
}
