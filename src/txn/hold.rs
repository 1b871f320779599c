//! Holding the open transaction, and what may be done under a hold.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

use super::Txn;
use crate::alloc::DataAlloc;
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::SUPER_BLKNO;
use crate::format::srch::Entry as SrchEntry;
use crate::format::{DataBlock, check};
use crate::item::InTransaction;
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use crate::sync::{Instant, thread};

/// Longest wait for the space that a log merge brings, and the time between two looks at it.
const MERGE_PATIENCE: Duration = Duration::from_secs(10);
const MERGE_POLL: Duration = Duration::from_millis(20);

/// Search entries that wait in memory at most (24 bytes each).
const MAX_SRCH_ENTRIES: u64 = 1 << 20;

/// What a hold is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HoldKind {
    /// May use more space than it frees; refused with ENOSPC when the volume's metadata space is low.
    Allocating,
    /// Frees space or changes in place; always admitted.
    Freeing,
}

/// The open transaction is held until this is dropped.
pub(crate) struct Hold<'a> {
    txn: &'a Txn,
    /// Where the gate was entered; `None` for the commit itself.
    slot: Option<usize>,
    // Stays on its thread, so that the gate's slots are not shared without need.
    x: PhantomData<*const ()>,
}

impl Txn {
    /// Enters the open transaction; waits while a commit runs or space for this transaction is short. The caller has its
    /// cluster locks already, and under a hold waits neither for locks nor for commits.
    /// ENOSPC: `Allocating` and metadata space is low, and no log merge is about to change that. `Shutdown` after a forced unmount.
    #[inline]
    pub(crate) fn hold(&self, kind: HoldKind) -> Result<Hold<'_>> {
        let hold = self.enter()?;
        let low = kind == HoldKind::Allocating && self.room.meta_low.load(Relaxed);
        if !low && !self.needs_commit() { Ok(hold) } else { self.hold_after_commit(hold, kind) }
    }

    #[inline]
    fn enter(&self) -> Result<Hold<'_>> {
        match self.gate.enter(thread_number()) {
            Some(slot) => Ok(Hold { txn: self, slot: Some(slot), x: PhantomData }),
            None => Err(Txn::shutdown_error()),
        }
    }

    /// Must the transaction be committed before more is added to it?
    #[inline]
    fn needs_commit(&self) -> bool {
        self.is_full() || self.may_be_short()
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.items.dirty_bytes() > self.config.dirty_bytes
            || self.room.srch.load(Relaxed) > MAX_SRCH_ENTRIES
            || self.room.data_short.load(Relaxed)
    }

    /// Could the commit run out of metadata blocks, for all that is known without looking?
    #[inline]
    fn may_be_short(&self) -> bool {
        let items = self.items.expected_items();
        items > 0 && self.room.short(items, self.items.dirtied(), self.items.dirty_bytes())
    }

    /// A look at the tree tells that more can be added.
    fn has_room(&self) -> bool {
        self.room.look(&self.store, &self.items).unwrap_or_else(|e| {
            // The commit meets it too, and says so.
            tracing::debug!(error = %e, "which leaves the transaction changes is not known");
            false
        })
    }

    #[cold]
    fn hold_after_commit<'a>(&'a self, mut hold: Hold<'a>, kind: HoldKind) -> Result<Hold<'a>> {
        // LOW is as old as the transaction; a commit asks the server again.
        let mut low_since = None;
        loop {
            let low = kind == HoldKind::Allocating && self.room.meta_low.load(Relaxed);
            if !low && !self.is_full() && (!self.may_be_short() || self.has_room()) {
                return Ok(hold);
            }
            let seq = hold.seq();
            drop(hold);
            if low {
                match low_since {
                    None => low_since = Some(Instant::now()),
                    Some(since) if since.elapsed() < MERGE_PATIENCE && self.merge_runs() => thread::sleep(MERGE_POLL),
                    Some(_) => return fail(Errno::ENOSPC),
                }
            }
            // A failing commit goes on in the background, and entering waits for it.
            let _ = self.commit_beyond(seq);
            hold = self.enter()?;
        }
    }

    /// Does the server merge log trees, or free what a merge replaced? Then space comes back soon; mounts with low space are what
    /// starts merges (`spec/03 §11.2`).
    fn merge_runs(&self) -> bool {
        let block = self.store.read_small(SUPER_BLKNO);
        // One that is being written just now will be whole at the next look.
        block.is_ok_and(|b| check::decode_super(&b[..], "metadata device").is_ok_and(|sb| sb.log_merge.height > 0))
    }

    /// The committer's hold, while all others are excluded.
    pub(super) fn committer(&self) -> Hold<'_> {
        Hold { txn: self, slot: None, x: PhantomData }
    }
}

impl Hold<'_> {
    /// Sequence of the transaction.
    #[inline]
    pub(crate) fn seq(&self) -> u64 {
        self.txn.seq()
    }

    /// Up to `count` contiguous free data blocks. [`Error::NeedCommit`]: drop the hold and try again under a new one, which is given
    /// after a commit. ENOSPC: the volume is full.
    pub(crate) fn data_alloc(&self, count: u64) -> Result<(DataBlock, u64)> {
        self.data(|data| data.alloc(count))
    }

    /// Gives data blocks back; they are reusable after the commit.
    pub(crate) fn data_free(&self, start: DataBlock, count: u64) -> Result<()> {
        self.data(|data| data.free(start, count))
    }

    /// Uses the data allocator of the transaction (promised space, giving back).
    pub(crate) fn data<R>(&self, use_it: impl FnOnce(&mut DataAlloc) -> Result<R>) -> Result<R> {
        let mut data = self.txn.data.lock();
        let Some(data) = data.as_mut() else { return Err(Txn::shutdown_error()) };
        let result = use_it(data);
        let room = &self.txn.room;
        room.set_data_cost(data.finish_cost());
        let few = data.is_changed() && !data.flagged_low() && data.total() < self.txn.stock.data_refill;
        if few || matches!(result, Err(Error::NeedCommit)) {
            // The next one to enter commits first, also if nothing else is dirty.
            room.data_short.store(true, Relaxed);
        }
        result
    }

    /// Logs a search entry; removal is logged by the same entry again (`spec/03 §8.8`).
    pub(crate) fn srch_append(&self, entry: SrchEntry) {
        let mut entries = self.txn.srch.lock();
        entries.push(entry);
        self.txn.room.srch.store(entries.len() as u64, Relaxed);
    }

    /// Counts inodes created (positive) or finally deleted (negative).
    #[inline]
    pub(crate) fn inode_count(&self, delta: i64) {
        self.txn.inode_delta.fetch_add(delta, Relaxed);
    }
}

impl InTransaction for Hold<'_> {
    #[inline]
    fn seq(&self) -> u64 {
        Hold::seq(self)
    }

    #[inline]
    fn commits(&self) -> bool {
        self.slot.is_none()
    }
}

impl Drop for Hold<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.txn.gate.leave(slot);
        }
    }
}

/// Small numbers, one per thread, so that threads spread over the slots of the gate.
#[inline]
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|n| {
        if n.get() == usize::MAX {
            n.set(NEXT.fetch_add(1, Relaxed));
        }
        n.get()
    })
}
