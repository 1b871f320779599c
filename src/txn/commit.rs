//! The steps of a commit, in the order that makes it crash safe (`spec/02 §8.4`).
//!
//! | step | what | may it be repeated? |
//! |---|---|---|
//! | prepare | exclude holders; the data room allocates and submits its writes | as a whole |
//! | build | items, bloom bits, search entries and free data extents go into trees, the record is made | from the received log trees; what a failed try built is forgotten |
//! | write | blocks, then wait for data | yes, everything stays dirty until it is written |
//! | flush | both devices, unless the server does it for us | yes |
//! | send | COMMIT_LOG_TREES with the record | yes, the server knows a record it has |
//! | open | GET_LOG_TREES, checks, new allocators | yes |
//!
//! Between build and the answer to send the record does not change, so nothing is added twice (defect 6).

use super::control::Progress;
use super::{CommitCtx, Txn, srch_file};
use crate::alloc::{Bounds, DataAlloc, MetaAlloc};
use crate::block::{Cow, DirtySet};
use crate::btree::{self, LogItem};
use crate::error::{Errno, Error, Result};
use crate::format::consts::{LOG_TREES_FINALIZED, SMALL_BYTES};
use crate::format::layout::{BlockRef, LogTrees};
use crate::format::{bloom_bits, check, keys};
use crate::item::DirtyBatch;
use crate::item::bloom::{self, BloomContent};
use crate::sync::atomic::Ordering::Relaxed;
use zerocopy::{FromZeros, IntoBytes};

/// How far the running commit is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Step {
    Prepare,
    Build,
    Write,
    Flush,
    Send,
    Open,
}

/// The commit procedure between its steps.
pub(super) struct Run {
    step: Step,
    /// As received; nothing in it changes while the transaction is open.
    base: LogTrees,
    batch: Option<DirtyBatch>,
    dirty: DirtySet,
    /// What the server is told.
    record: LogTrees,
    flush_data: bool,
    /// Bits that were set in a bloom block do not count any more.
    forget_bloom: bool,
    /// The next transaction, if it is known already.
    opened: Option<LogTrees>,
}

impl Run {
    pub(super) fn new() -> Run {
        Run {
            step: Step::Prepare,
            base: LogTrees::new_zeroed(),
            batch: None,
            dirty: DirtySet::new(),
            record: LogTrees::new_zeroed(),
            flush_data: false,
            forget_bloom: false,
            opened: None,
        }
    }

    /// Did the server record the transaction, so that only the next one has to be opened?
    pub(super) fn is_recorded(&self) -> bool {
        self.step == Step::Open
    }

    /// The next transaction is open.
    pub(super) fn reset(&mut self) {
        self.step = Step::Prepare;
    }
}

impl Txn {
    /// Runs all steps that are left until the server has recorded the transaction.
    pub(super) fn record(&self, run: &mut Run) -> Result<Progress> {
        while run.step < Step::Open {
            if self.is_down() {
                run.dirty.forget();
                return Err(Txn::shutdown_error());
            }
            run.step = match run.step {
                Step::Prepare => self.prepare(run)?,
                Step::Build => self.build(run)?,
                Step::Write => self.write(run)?,
                Step::Flush => self.flush(run.flush_data)?,
                Step::Send => self.send(run)?,
                Step::Open => Step::Open,
            };
        }
        Ok(Progress::Recorded)
    }

    fn prepare(&self, run: &mut Run) -> Result<Step> {
        self.gate.close();
        if let Some(hook) = self.hook() {
            hook.prepare(&CommitCtx { hold: self.committer() })?;
        }
        run.batch = Some(self.items.freeze());
        Ok(Step::Build)
    }

    /// Makes blocks and record from what is in memory. Works on copies until it has succeeded.
    fn build(&self, run: &mut Run) -> Result<Step> {
        run.dirty.forget();
        let base = &run.base;
        let Some(batch) = &run.batch else { return Ok(Step::Prepare) };
        let mut meta = MetaAlloc::new(self.store.clone(), base.meta_avail, base.meta_freed);
        let mut cow = Cow { store: &self.store, dirty: &mut run.dirty, alloc: &mut meta };
        let mut new = *base;

        let before = cow.alloc.room();
        let mut max_seq = base.max_item_seq.get();
        batch.for_each_chunk(|chunk| {
            let items = chunk.iter().map(|i| {
                max_seq = max_seq.max(i.seq);
                LogItem { key: i.key, seq: i.seq, flags: i.flags, value: &i.value }
            });
            btree::insert_list(&mut cow, &mut new.item_root, items, keys::is_delta)
        })?;
        let grown = grown(before, cow.alloc.room());
        new.max_item_seq = max_seq.into();

        run.forget_bloom = build_bloom(&mut cow, &mut new, batch)?;
        srch_file::append(&mut cow, &mut new.srch_file, &self.srch.lock())?;
        new.inode_count_delta = base.inode_count_delta.get().wrapping_add(self.inode_delta.load(Relaxed) as u64).into();
        if let Some(data) = self.data.lock().as_ref() {
            (new.data_avail, new.data_freed) = data.finish(&mut cow)?;
        }
        (new.meta_avail, new.meta_freed) = meta.finish(&mut run.dirty)?;
        self.room.tree_grew(grown);
        run.record = new;
        Ok(Step::Write)
    }

    fn write(&self, run: &mut Run) -> Result<Step> {
        run.dirty.write_out(&self.store)?;
        run.flush_data = match self.hook() {
            Some(hook) => hook.wait()?,
            None => false,
        };
        Ok(Step::Flush)
    }

    /// After this everything that the record refers to survives a loss of power (`spec/02 §9.4`).
    fn flush(&self, data: bool) -> Result<Step> {
        if self.config.flush {
            self.store.flush()?;
            if data {
                // The data room has begun it meanwhile.
                self.data_dev.flush()?;
            }
        }
        Ok(Step::Send)
    }

    /// Tells the server. When it has answered, what was dirty is clean.
    fn send(&self, run: &mut Run) -> Result<Step> {
        let opened = match self.service.commit_log_trees(&run.record) {
            Ok(()) => None,
            Err(e) if e.is(Errno::EIO) => Some(self.recorded_before(&run.record, e)?),
            Err(e) => return Err(e),
        };
        if let Some(batch) = run.batch.take() {
            self.items.committed(&batch, run.forget_bloom);
        }
        self.srch.lock().clear();
        self.room.srch.store(0, Relaxed);
        self.inode_delta.store(0, Relaxed);
        *self.data.lock() = None;
        run.base = run.record;
        run.opened = opened;
        if let Some(hook) = self.hook() {
            hook.committed();
        }
        self.durable_seq.store(run.record.get_trans_seq.get(), Relaxed);
        Ok(Step::Open)
    }

    /// A server has refused the COMMIT. It may be one of the original, and its predecessor recorded the transaction and
    /// opened the next one without being able to tell us (`GREETING_OPENS`). Then that is the transaction that is given out
    /// now.
    fn recorded_before(&self, record: &LogTrees, refusal: Error) -> Result<LogTrees> {
        let new = self.service.get_log_trees()?;
        if new.rid == record.rid && new.nr == record.nr && new.commit_trans_seq == record.get_trans_seq {
            tracing::info!(seq = record.get_trans_seq.get(), "an earlier server has recorded the transaction");
            Ok(new)
        } else {
            Err(refusal)
        }
    }

    /// Gets the next transaction (or the first one) and makes it the open one. The gate is still closed.
    pub(super) fn open_transaction(&self, run: &mut Run) -> Result<()> {
        let new = match run.opened.take() {
            Some(new) => new,
            None => self.service.get_log_trees()?,
        };
        self.check_received(&new)?;
        let old = &run.base;
        let same_tree = new.nr == old.nr && old.get_trans_seq.get() != 0;
        if !same_tree || new.bloom_ref.blkno.get() == 0 {
            self.items.forget_bloom();
        }
        let data_blocks = self.data_dev.size() / SMALL_BYTES as u64;
        let bounds = Bounds::data(data_blocks);
        *self.data.lock() = Some(DataAlloc::new(self.store.clone(), bounds, new.data_avail, new.data_freed));
        self.room.open(&new, &MetaAlloc::new(self.store.clone(), new.meta_avail, new.meta_freed), same_tree);
        self.seq.store(new.get_trans_seq.get(), Relaxed);
        run.base = new;
        Ok(())
    }

    /// What a server may answer (`spec/02 §8.1`, `spec/03 §13`).
    fn check_received(&self, new: &LogTrees) -> Result<()> {
        check::validate_log_trees(None, new.as_bytes(), self.store.meta_blocks())?;
        let bad = |why: String| Err(Error::corrupt(format!("log trees of rid {:016x} nr {}", new.rid, new.nr), why));
        let (get, last) = (new.get_trans_seq.get(), self.seq());
        if new.rid.get() != self.config.rid || new.nr.get() == 0 {
            return bad(format!("not those of this mount, {:016x}", self.config.rid));
        }
        if new.flags.get() & LOG_TREES_FINALIZED != 0 {
            return bad("finalised".into());
        }
        if get <= new.commit_trans_seq.get() || get <= last {
            return bad(format!("transaction {get} after {last}, committed {}", new.commit_trans_seq));
        }
        if new.meta_avail.first_nr.get() < 2 {
            return bad(format!("{} free metadata blocks, 2 are needed", new.meta_avail.first_nr));
        }
        Ok(())
    }
}

/// Sets the bits of all locks that have items in the tree, or drops a bloom block beside an empty tree, on which the
/// original's readers fail (defect 21). True if bits set before do not count any more.
fn build_bloom(cow: &mut Cow, new: &mut LogTrees, batch: &DirtyBatch) -> Result<bool> {
    if new.item_root.height == 0 {
        if new.bloom_ref.blkno.get() != 0 {
            cow.free_block(&new.bloom_ref)?;
            new.bloom_ref = BlockRef::new_zeroed();
        }
        return Ok(true);
    }
    // A lock that was given back and comes again has its bits already.
    let mut unset = Vec::new();
    for start in batch.bloom_keys() {
        if !bloom::may_hold(cow.store, &new.bloom_ref, &bloom_bits(start))? {
            unset.push(start);
        }
    }
    if !unset.is_empty() {
        let bloom = cow.content_mut::<BloomContent>(&mut new.bloom_ref)?;
        unset.into_iter().for_each(|start| bloom.set(start));
    }
    Ok(false)
}

/// Net number of blocks that were added to a tree between two measures of the allocator's room.
fn grown(before: (u64, u64), after: (u64, u64)) -> u64 {
    let (allocated, freed) = (before.0.saturating_sub(after.0), before.1.saturating_sub(after.1));
    allocated.saturating_sub(freed)
}
