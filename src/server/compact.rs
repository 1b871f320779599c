//! Handing out the compaction of search files, and taking its results (`spec/08 §7.5`).
//!
//! Search logs and sorted files are merged four at a time by whichever mount asks for work. The record of a compaction is
//! an item of the search tree all the time: *busy* with a mount, or *pending*. Each move from one state to the next is
//! one server commit, so nothing is lost with a mount or a server.

use zerocopy::{FromZeros, IntoBytes};

use crate::alloc::list::LIST_CAPACITY;
use crate::error::{Errno, Result};
use crate::format::consts::{
    SRCH_COMPACT_DELETE, SRCH_COMPACT_DONE, SRCH_COMPACT_ERROR, SRCH_COMPACT_LOG, SRCH_COMPACT_NR, SRCH_COMPACT_SORTED,
    TYPE_SRCH_BLOCKS, TYPE_SRCH_BUSY, TYPE_SRCH_LOG, TYPE_SRCH_PENDING, ZONE_SRCH,
};
use crate::format::layout::{SrchCompact, SrchCompactInput, SrchFile};
use crate::format::srch::size_class;
use crate::format::{Key, KeyRange, Rid, check, keys};
use crate::sync::HashSet;

use super::core::{Asker, Outcome, ServerCore, Step, refuse};

/// A pending compaction that failed this often is handed out only when there is nothing else.
const MANY_FAILURES: u32 = 3;
/// Bits that say what the work is.
const WORK: u8 = SRCH_COMPACT_LOG | SRCH_COMPACT_SORTED | SRCH_COMPACT_DELETE;

/// All items of one kind.
fn kind(kind: u8) -> KeyRange {
    let start = Key::new(ZONE_SRCH, 0, kind, 0, 0, 0);
    KeyRange::new(start, Key { second: u64::MAX, third: u64::MAX, fourth: u8::MAX, ..start })
}

fn inputs(compact: &SrchCompact) -> &[SrchCompactInput] {
    &compact.inputs[..usize::from(compact.nr).min(SRCH_COMPACT_NR)]
}

impl ServerCore {
    /// SRCH_GET_COMPACT. Success with no inputs says that there is nothing to do.
    pub(super) fn step_get_compact(&mut self, from: Asker) -> Outcome<Step> {
        let (rid, trees) = (from.rid, &self.trees);
        // What an earlier server gave to this mount never reached it, or it would not ask.
        let own = KeyRange::new(keys::srch_busy(Rid(rid), 0), keys::srch_busy(Rid(rid), u64::MAX));
        for (_, compact) in trees.all::<SrchCompact>(own)? {
            if self.handed_compactions.insert((rid, compact.id.get())) {
                self.answer(from, Ok(compact.as_bytes().to_vec()));
                return Ok(Step::Done);
            }
        }
        let work = match self.pending_compaction()? {
            Some(pending) => {
                self.trees.remove::<SrchCompact>(&keys::srch_pending(pending.id.get()))?;
                Some(pending)
            }
            None => self.new_compaction()?,
        };
        let Some(mut compact) = work else {
            self.answer(from, Ok(SrchCompact::new_zeroed().as_bytes().to_vec()));
            return Ok(Step::Done);
        };
        let stock = self.trees.stock;
        self.trees.take_list(&mut compact.meta_freed)?;
        let (mut low, mut target) = (stock.meta_low, stock.meta_target);
        if stock.is_scaled() && compact.flags & SRCH_COMPACT_LOG != 0 {
            // Sorting logs cannot stop half way: it needs as many blocks as they have, and some for parents and lists.
            let blocks: u64 = inputs(&compact).iter().map(|i| i.sfl.blocks.get()).sum();
            let needed = blocks.saturating_add(blocks / 64 + 40).min(LIST_CAPACITY as u64) as u32;
            (low, target) = (low.max(needed), target.max(needed));
        }
        match self.trees.fill_list(&mut compact.meta_avail, low, target) {
            Err(e) if e.is(Errno::ENOSPC) => {}
            other => other?,
        }
        self.trees.put(&keys::srch_busy(Rid(rid), compact.id.get()), &compact)?;
        self.handed_compactions.insert((rid, compact.id.get()));
        self.answer(from, Ok(compact.as_bytes().to_vec()));
        Ok(Step::Done)
    }

    /// The first pending compaction, or the one that failed least if all have failed often.
    fn pending_compaction(&self) -> Result<Option<SrchCompact>> {
        let pending = self.trees.all::<SrchCompact>(kind(TYPE_SRCH_PENDING))?;
        let failures = |c: &SrchCompact| match self.failed_compactions.get(&c.id.get()) {
            Some(n) if *n >= MANY_FAILURES => *n,
            _ => 0,
        };
        Ok(pending.into_iter().map(|(_, c)| c).min_by_key(failures))
    }

    /// Four files that are worth merging and are not being merged.
    fn new_compaction(&mut self) -> Result<Option<SrchCompact>> {
        let mut in_use: HashSet<u64> = HashSet::default();
        for state in [TYPE_SRCH_PENDING, TYPE_SRCH_BUSY] {
            for (_, compact) in self.trees.all::<SrchCompact>(kind(state))? {
                in_use.extend(inputs(&compact).iter().map(|i| i.sfl.block_ref.blkno.get()));
            }
        }
        let idle = |files: Vec<(Key, SrchFile)>| {
            let files = files.into_iter().map(|(_, f)| f);
            files.filter(|f| !in_use.contains(&f.block_ref.blkno.get())).collect::<Vec<_>>()
        };
        let logs = idle(self.trees.all::<SrchFile>(kind(TYPE_SRCH_LOG))?);
        if logs.len() >= SRCH_COMPACT_NR {
            return Ok(Some(compaction(SRCH_COMPACT_LOG, &logs[..SRCH_COMPACT_NR])));
        }
        let sorted = idle(self.trees.all::<SrchFile>(kind(TYPE_SRCH_BLOCKS))?);
        // The original can leave files whose entries all cancelled and cannot compact them: just delete those.
        if let Some(empty) = sorted.iter().find(|f| f.entries.get() == 0) {
            self.trees
                .remove::<SrchFile>(&keys::srch_sorted(empty.blocks.get(), empty.block_ref.blkno.get().into()))?;
            return Ok(Some(compaction(SRCH_COMPACT_DELETE, &[*empty])));
        }
        let group = sorted
            .chunk_by(|a, b| size_class(a.blocks.get()) == size_class(b.blocks.get()))
            .find(|g| g.len() >= SRCH_COMPACT_NR);
        Ok(group.map(|g| compaction(SRCH_COMPACT_SORTED, &g[..SRCH_COMPACT_NR])))
    }

    /// SRCH_COMMIT_COMPACT.
    pub(super) fn step_commit_compact(&mut self, from: Asker, sent: &SrchCompact) -> Outcome<Step> {
        let id = sent.id.get();
        let busy = keys::srch_busy(Rid(from.rid), id);
        let Some(stored) = self.trees.get::<SrchCompact>(&busy)? else { return refuse(Errno::ENOENT) };
        if sent.flags & SRCH_COMPACT_ERROR != 0 {
            *self.failed_compactions.entry(id).or_default() += 1;
            self.trees.put(&keys::srch_pending(id), &stored)?;
            return self.end_busy(from, &busy);
        }
        self.check_compaction(&stored, sent)?;
        self.failed_compactions.remove(&id);
        let mut compact = *sent;
        compact.flags &= !SRCH_COMPACT_DONE;
        compact.pad = [0; 6];
        if sent.flags & SRCH_COMPACT_DONE == 0 {
            self.trees.put(&keys::srch_pending(id), &compact)?;
        } else if sent.flags & SRCH_COMPACT_DELETE != 0 {
            self.trees.take_list(&mut compact.meta_avail)?;
            self.trees.take_list(&mut compact.meta_freed)?;
        } else {
            for input in inputs(&stored) {
                self.trees.remove::<SrchFile>(&file_key(stored.flags, &input.sfl))?;
            }
            if compact.output.blocks.get() > 0 {
                self.trees.put(&file_key(SRCH_COMPACT_SORTED, &compact.output), &compact.output)?;
            }
            compact.output = SrchFile::new_zeroed();
            compact.flags = SRCH_COMPACT_DELETE;
            for input in &mut compact.inputs {
                (input.blk, input.pos) = (0.into(), 0.into());
            }
            self.trees.put(&keys::srch_pending(id), &compact)?;
        }
        self.end_busy(from, &busy)
    }

    fn end_busy(&mut self, from: Asker, busy: &Key) -> Outcome<Step> {
        self.trees.remove::<SrchCompact>(busy)?;
        self.handed_compactions.remove(&(busy.second, busy.third));
        self.answer(from, Ok(Vec::new()));
        Ok(Step::Done)
    }

    /// A result must be about the work that was given, and everything in it possible.
    fn check_compaction(&self, stored: &SrchCompact, sent: &SrchCompact) -> Outcome<()> {
        let valid = check::validate_srch_compact(sent.as_bytes(), self.trees.store.meta_blocks()).is_ok();
        let same_work = sent.flags & WORK == stored.flags & WORK && (sent.flags & WORK).count_ones() == 1;
        let same_inputs = sent.nr == stored.nr
            && inputs(sent).iter().zip(inputs(stored)).all(|(a, b)| a.sfl.block_ref == b.sfl.block_ref);
        if !valid || !same_work || !same_inputs || sent.flags & !(WORK | SRCH_COMPACT_DONE) != 0 {
            return refuse(Errno::EINVAL);
        }
        if sent.flags & SRCH_COMPACT_DONE != 0 && sent.flags & SRCH_COMPACT_DELETE == 0 {
            for input in inputs(stored) {
                if self.trees.get::<SrchFile>(&file_key(stored.flags, &input.sfl))?.is_none() {
                    return refuse(Errno::EIO);
                }
            }
        }
        Ok(())
    }
}

/// The record of a new compaction.
fn compaction(work: u8, files: &[SrchFile]) -> SrchCompact {
    let mut compact = SrchCompact::new_zeroed();
    compact.id = files[0].block_ref.blkno;
    compact.nr = files.len() as u8;
    compact.flags = work;
    for (input, file) in compact.inputs.iter_mut().zip(files) {
        input.sfl = *file;
    }
    compact
}

/// The key of an input or output of this kind of work.
fn file_key(work: u8, file: &SrchFile) -> Key {
    let root = file.block_ref.blkno.get().into();
    if work & SRCH_COMPACT_LOG != 0 { keys::srch_log(root) } else { keys::srch_sorted(file.blocks.get(), root) }
}
