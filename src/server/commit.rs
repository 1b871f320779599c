//! The server commit: the one place that writes the super block of a mounted volume.
//!
//! Problem: the server allocates from the same free space whose trees it changes, and a block freed now may still be
//! read through the super block that is on the device. Idea: two pairs of lists take turns. The active pair serves every
//! copy-on-write of the running commit; the idle pair is filled and drained as plain data, and becomes active with the
//! next commit. Likewise one tree of free extents only supplies blocks and the other only receives them, until they
//! change roles (`spec/02 §6.4`).
//!
//! Invariants
//! 1. A block is written only at a number that the super block on the device counts as free.
//! 2. Every block of a commit is durable before its super block is written, and the super block before anybody is
//!    answered.
//! 3. A block freed in a commit can be allocated at the earliest in the commit after the next.
//! 4. After an error nothing more is written: the caller stops the server, and the next one starts from the device.

use crate::alloc::extents::{self, MoveEnd, MoveLimits};
use crate::alloc::list::{self, ListBlock};
use crate::alloc::meta::empty_head;
use crate::alloc::zones::ZoneChoice;
use crate::alloc::{Bounds, MetaAlloc};
use crate::error::{Errno, Result};
use crate::format::MetaBlock;
use crate::format::layout::{AllocListHead, AllocRoot, NetStatfs};
use crate::sync::Arc;

use super::trees::{Published, Trees, own};

impl Trees {
    /// Is there anything to write?
    pub(super) fn is_dirty(&self) -> bool {
        self.changed
    }

    /// Commits written by this server.
    pub(super) fn commits(&self) -> u64 {
        self.commits
    }

    /// Blocks that mounts must not be given, for `clients` connected mounts.
    pub(super) fn reserved(&self, clients: usize) -> u64 {
        self.stock.reserved(clients as u64)
    }

    /// Free blocks that decide whether metadata is low. On a small volume both trees count, for they change roles when one
    /// runs dry, and so does what the next commits bring into them. On a large one the original's rule is kept, which
    /// leaves it a reserve, but for the tree that will supply blocks after this commit.
    pub(super) fn spare_total(&self) -> u64 {
        let [a, b] = self.sup.meta_alloc.map(|r| r.total_len.get());
        let lists: u64 = self.sup.server_meta_freed.iter().map(|h| h.total_nr.get()).sum();
        if self.stock.is_scaled() { a + b + lists } else { a.max(b) }
    }

    /// Which tree of free extents `need` blocks are taken from.
    ///
    /// It may have run dry while the other one is full. Nothing freed in the running commit is in the other one before
    /// the commit's own end, so that may take over at once.
    fn supply(&mut self, need: u32) -> usize {
        let totals = self.sup.meta_alloc.map(|r| r.total_len.get());
        let (avail, freed) = (totals[self.avail_root], totals[1 - self.avail_root]);
        if avail < u64::from(need) && freed > avail {
            self.avail_root = 1 - self.avail_root;
        }
        self.avail_root
    }

    /// How many blocks the changes of this commit may still allocate, or free, before it must be written.
    pub(super) fn room(&self) -> u64 {
        let left = self.alloc.avail_remaining().min(self.alloc.freed_remaining());
        left.saturating_sub(self.commit_cost())
    }

    /// What the commit itself may need: one more extent each into and out of the trees of free extents, and the first
    /// blocks of two lists (`spec/02 §5.5`).
    fn commit_cost(&self) -> u64 {
        2 + self.sup.meta_alloc.iter().map(|r| 3 + extents::mod_blocks(r)).sum::<u64>()
    }

    /// Writes everything that has changed. `clients` is the number of connected mounts; `all_flush`: they all have flushed
    /// the data device before they sent what this commit records.
    pub(super) fn commit(&mut self, clients: usize, all_flush: bool) -> Result<()> {
        self.refill()?;
        let (avail, freed) = self.alloc.finish(&mut self.dirty)?;
        self.sup.server_meta_avail[self.active] = avail;
        self.sup.server_meta_freed[self.active] = freed;
        self.sup.seq = self.seq().into();
        self.sup.hdr.seq = self.sup.hdr.seq.get().wrapping_add(1).into();

        let dev = self.store.device().clone();
        self.dirty.write_out(&self.store)?;
        self.writer.write_shadow(&*dev, &self.sup)?;
        dev.flush()?;
        // The first commit covers what was recorded by a server that did not flush.
        if let Some(data) = self.data_dev.as_ref().filter(|_| self.flush_data && (!all_flush || self.commits == 0)) {
            data.flush()?;
        }
        self.writer.write_super(&*dev, &self.sup)?;

        self.published(clients);
        Ok(())
    }

    /// Fills the idle list of free blocks, and empties the idle list of freed ones if that is worth its cost, as far as there
    /// is room.
    fn refill(&mut self) -> Result<()> {
        let idle = 1 - self.active;
        let (low, target, keep) = (self.stock.meta_low, self.stock.meta_target, self.stock.freed_keep);
        let have = self.sup.server_meta_avail[idle].first_nr.get();
        let from = if have < low { self.supply(target - have) } else { self.avail_root };
        let to = 1 - from;
        let bounds = self.meta_bounds();
        let (mut cow, sup) = self.split();
        let (head, root) = (&mut sup.server_meta_avail[idle], &mut sup.meta_alloc[from]);
        match own(list::fill(&mut cow, head, root, bounds, low, target)) {
            // What could be had is in the list; the next commits have to do with that.
            Err(e) if e.is(Errno::ENOSPC) => {}
            other => other?,
        }
        let other = sup.meta_alloc[from];
        let (head, root) = (&mut sup.server_meta_freed[idle], &mut sup.meta_alloc[to]);
        if head.total_nr.get() > u64::from(keep) {
            own(list::empty(&mut cow, head, root, Some(&other), bounds))?;
        }
        Ok(())
    }

    /// The commit is durable: everybody may see it, and the pairs change places.
    fn published(&mut self, clients: usize) {
        self.stable = Arc::new(Published { sup: *self.sup, sums: self.sums });
        self.closing.clear();
        self.changed = false;
        self.commits += 1;
        self.active = 1 - self.active;
        self.alloc = MetaAlloc::new(
            self.store.clone(),
            self.sup.server_meta_avail[self.active],
            self.sup.server_meta_freed[self.active],
        );
        let (avail, freed) = (self.avail_root, 1 - self.avail_root);
        let totals = self.sup.meta_alloc.map(|r| r.total_len.get());
        if totals[avail] < 2 * self.reserved(clients) && totals[freed] > totals[avail] {
            self.avail_root = freed;
        }
    }

    pub(super) fn meta_bounds(&self) -> Bounds {
        Bounds::meta(self.sup.total_meta_blocks.get())
    }

    pub(super) fn data_bounds(&self) -> Bounds {
        Bounds::data(self.sup.total_data_blocks.get())
    }

    /// Fills a list that is handed to a mount. `ENOSPC` if nothing is left; the list has what could be had.
    pub(super) fn fill_list(&mut self, head: &mut AllocListHead, low: u32, target: u32) -> Result<()> {
        let have = head.first_nr.get();
        let from = if have < low { self.supply(target.saturating_sub(have)) } else { self.avail_root };
        let bounds = self.meta_bounds();
        let (mut cow, sup) = self.split();
        own(list::fill(&mut cow, head, &mut sup.meta_alloc[from], bounds, low, target))
    }

    /// Takes a list back from a mount. Its blocks cannot be allocated in this commit: they become free with it.
    pub(super) fn take_list(&mut self, head: &mut AllocListHead) -> Result<()> {
        if head.block_ref.blkno.get() == 0 {
            return Ok(());
        }
        let idle = 1 - self.active;
        let (mut cow, sup) = self.split();
        own(list::absorb(&mut cow, &mut sup.server_meta_freed[idle], head))
    }

    /// Frees blocks that the running commit stops referring to, any number of them: they are written as lists of their
    /// own, so that they need no places in the list of the running commit.
    pub(super) fn free_many(&mut self, blocks: &[MetaBlock]) -> Result<()> {
        for chunk in blocks.chunks(list::LIST_CAPACITY) {
            let (mut cow, _) = self.split();
            let mut head = empty_head();
            let block = own(cow.content_mut::<ListBlock>(&mut head.block_ref))?;
            block.blknos.extend(chunk.iter().map(|b| b.0));
            head.first_nr = (chunk.len() as u32).into();
            head.total_nr = (chunk.len() as u64).into();
            self.take_list(&mut head)?;
        }
        Ok(())
    }

    /// Moves free data blocks from a mount's tree to the volume's, as far as the running commit reaches. True when the
    /// mount's tree is empty.
    pub(super) fn take_data(&mut self, root: &mut AllocRoot) -> Result<bool> {
        if root.total_len.get() == 0 {
            return Ok(true);
        }
        let bounds = self.data_bounds();
        let limits = MoveLimits { total: u64::MAX, zones: None, ..self.move_limits() };
        let (mut cow, sup) = self.split();
        let (_, end) = own(extents::move_extents(&mut cow, &mut sup.data_alloc, root, bounds, &limits))?;
        Ok(end == MoveEnd::Dry)
    }

    /// Moves up to `total` free data blocks from the volume's tree to a mount's.
    pub(super) fn give_data(&mut self, root: &mut AllocRoot, total: u64, zones: Option<&ZoneChoice>) -> Result<()> {
        let bounds = self.data_bounds();
        let limits = MoveLimits { total, zones, ..self.move_limits() };
        let (mut cow, sup) = self.split();
        own(extents::move_extents(&mut cow, root, &mut sup.data_alloc, bounds, &limits))?;
        Ok(())
    }

    /// One request may use a part of the commit, and must leave room for storing its record and for the commit itself.
    fn move_limits(&self) -> MoveLimits<'static> {
        let slack = u64::from(self.stock.move_slack) + self.commit_cost();
        MoveLimits { total: 0, budget: self.stock.move_budget.into(), slack, zones: None }
    }
}

impl Published {
    /// Free space as of the last commit (`spec/05 §5.5.11`). The sums are kept up to date, so nothing is counted twice
    /// and nothing has to be walked.
    pub(super) fn statfs(&self) -> NetStatfs {
        let sup = &self.sup;
        let lists = sup.server_meta_avail.iter().chain(&sup.server_meta_freed).map(|h| h.total_nr.get());
        let trees = sup.meta_alloc.iter().map(|r| r.total_len.get());
        let meta: u64 = lists.chain(trees).sum();
        NetStatfs {
            uuid: sup.uuid,
            free_meta_blocks: meta.wrapping_add(self.sums.meta).into(),
            total_meta_blocks: sup.total_meta_blocks,
            free_data_blocks: sup.data_alloc.total_len.get().wrapping_add(self.sums.data).into(),
            total_data_blocks: sup.total_data_blocks,
            inode_count: sup.inode_count.get().wrapping_add(self.sums.inodes).into(),
        }
    }
}
