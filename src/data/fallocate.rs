//! Allocating, zeroing and punching ranges (`spec/07 §11`).

use super::Data;
use super::extents::{Edit, Stored, check_end, is_offline, is_online, unexpected_offline};
use super::pages::{CHUNK_PAGES, PAGE};
use super::write::{Target, zero_tail};
use crate::alloc::extent::{Extent, ExtentMap};
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::EXTENT_UNWRITTEN;
use crate::format::{DataBlock, Ino};
use crate::item::ChangeSet;
use crate::namespace::{Caller, Namespace, Touch, mode_after_write};
use crate::txn::HoldKind;

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

/// Greatest run of blocks that is asked for at once (128 MiB).
const ALLOC_BLOCKS: u64 = 32_768;
/// Extents changed in one transaction.
const STEP_EXTENTS: usize = 32;

/// What happens to the whole blocks of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fill {
    /// Holes become unwritten space.
    Allocate,
    /// Everything becomes a hole.
    Punch,
    /// Everything becomes unwritten space.
    Zero,
}

impl Data {
    /// `mode` as in `fallocate(2)`: 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE with or without KEEP_SIZE; `EOPNOTSUPP` for
    /// others. On `ENOSPC` what was done so far stays.
    pub(crate) fn fallocate(
        &self,
        ns: &Namespace,
        caller: &Caller,
        ino: Ino,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let (fill, keep) = match mode {
            0 => (Fill::Allocate, false),
            KEEP_SIZE => (Fill::Allocate, true),
            m if m == PUNCH_HOLE | KEEP_SIZE => (Fill::Punch, true),
            ZERO_RANGE => (Fill::Zero, false),
            m if m == ZERO_RANGE | KEEP_SIZE => (Fill::Zero, true),
            _ => return fail(Errno::EOPNOTSUPP),
        };
        if len == 0 {
            return Ok(());
        }
        if offset.checked_add(len - 1).is_none() {
            return fail(Errno::EINVAL);
        }
        check_end(offset, len)?;
        self.change(ns, caller, ino, |target| {
            self.writer.wait_file(&target.file);
            match fill {
                Fill::Allocate => self.fill_blocks(target, fill, offset, offset + len, keep),
                _ => self.clear(target, fill, offset, offset + len, keep),
            }
        })
    }

    /// Zeros or punches: the partial blocks at both ends are overwritten, the whole ones between change their space.
    fn clear(&self, target: &Target<'_>, fill: Fill, offset: u64, end: u64, keep: bool) -> Result<()> {
        let page = PAGE as u64;
        let (first, behind) = (offset.div_ceil(page) * page, end / page * page);
        if first >= behind {
            self.zero_bytes(target, offset, end)?;
        } else {
            self.zero_bytes(target, offset, first)?;
            self.fill_blocks(target, fill, first, behind, true)?;
            self.zero_bytes(target, behind, end)?;
        }
        let size = target.inode.fields().size;
        if !keep && end > size { self.fill_blocks(target, Fill::Allocate, offset, end, false) } else { Ok(()) }
    }

    /// Writes zeros over bytes inside the file that are not zeros by being a hole.
    fn zero_bytes(&self, target: &Target<'_>, from: u64, to: u64) -> Result<()> {
        let to = to.min(target.inode.fields().size);
        if from >= to {
            return Ok(());
        }
        let page = from / PAGE as u64;
        let there = target.file.work.lock().delayed.at_or_after(page).is_some_and(|e| e.contains(page))
            || self
                .stored(target.lock, target.inode.ino())
                .next(page)?
                .is_some_and(|e| e.contains(page) && is_online(&e));
        // The bytes may lie in two neighbouring blocks when the range is short.
        let split = ((page + 1) * PAGE as u64).min(to);
        if there {
            let zeros = [0; PAGE];
            self.write_pieces(target, from, &zeros[..(split - from) as usize])?;
        }
        if split < to { self.zero_bytes(target, split, to) } else { Ok(()) }
    }

    /// Changes whole blocks step by step, each in its own transaction.
    fn fill_blocks(&self, target: &Target<'_>, fill: Fill, offset: u64, end: u64, keep: bool) -> Result<()> {
        let (mut at, last) = (offset / PAGE as u64, (end - 1) / PAGE as u64);
        loop {
            match self.fill_step(target, fill, at, last, if keep { 0 } else { end }) {
                Ok(next) if next > last => return Ok(()),
                Ok(next) => at = next,
                Err(Error::NeedCommit) => self.txn.sync()?,
                Err(e) => return Err(e),
            }
        }
    }

    /// One step from block `at` on; returns where to go on. `grow_to` is the size that the whole operation reaches, 0 if it
    /// leaves the size alone.
    fn fill_step(&self, target: &Target<'_>, fill: Fill, at: u64, last: u64, grow_to: u64) -> Result<u64> {
        let Target { ns, caller, inode, lock, file } = target;
        let stored = self.stored(lock, inode.ino());
        let old_size = inode.fields().size;
        let tail = (grow_to > old_size && old_size % PAGE as u64 != 0).then_some(old_size / PAGE as u64);
        // Pinned, so that it stays until its tail is zeroed.
        let _pin = tail.map(|page| file.pages.chunk_or_new(page / CHUNK_PAGES));
        if let Some(page) = tail {
            self.load(file, &stored, page, page, page)?;
        }

        let kind = if fill == Fill::Punch { HoldKind::Freeing } else { HoldKind::Allocating };
        let tx = ns.begin(kind, &[(inode, Touch::Data)])?;
        let mut step = Step::new(Edit::new(stored), at);
        let delayed = file.work.lock().delayed.clone();
        let planned = step.plan(&delayed, &mut |count| tx.hold().data_alloc(count), fill, last);
        let mut f = inode.fields();
        let grown = grow_to.min(step.next * PAGE as u64).max(f.size);
        let contents = fill != Fill::Allocate || grown != f.size;
        let applied = planned.and_then(|()| {
            if step.edit.len() == 0 && step.online == 0 && grown == f.size {
                return Ok(());
            }
            f.online_blocks = f.online_blocks.saturating_sub(step.online);
            if contents {
                f.data_version += 1;
                f.version += 1;
                f.size = grown;
                (f.mtime, f.ctime) = (tx.now, tx.now);
                f.mode = mode_after_write(&f, caller);
            }
            let mut cs = ChangeSet::new(&self.items);
            step.edit.add_to(&mut cs);
            ns.put_inode(&mut cs, &tx, lock, inode, &mut f, if contents { Touch::Data } else { Touch::Meta });
            cs.apply(tx.hold())?;
            inode.store(lock.refresh_gen(), f);
            Ok(())
        });
        if let Err(e) = applied {
            tx.hold().data(|d| {
                step.allocated.iter().for_each(|(start, len)| d.give_back(*start, *len));
                Ok(())
            })?;
            return Err(e);
        }
        if grown != old_size && tail.is_some() {
            self.list_dirty(inode, file, lock);
            zero_tail(file, old_size, u64::MAX);
        }
        if fill != Fill::Allocate {
            self.forget(tx.hold(), file, at, step.next - 1)?;
            for (start, len) in &step.freed {
                tx.hold().data_free(*start, *len)?;
            }
        }
        Ok(step.next)
    }
}

/// Gives up to so many contiguous blocks.
type Alloc<'f> = dyn FnMut(u64) -> Result<(DataBlock, u64)> + 'f;

/// One transaction's worth of changes.
pub(super) struct Step<S> {
    pub(super) edit: Edit<S>,
    /// How far the plan reaches: where the next step goes on.
    pub(super) next: u64,
    /// Blocks that stop being online.
    pub(super) online: u64,
    pub(super) allocated: Vec<(DataBlock, u64)>,
    pub(super) freed: Vec<(DataBlock, u64)>,
}

impl<S: Stored> Step<S> {
    pub(super) fn new(edit: Edit<S>, at: u64) -> Step<S> {
        Step { edit, next: at, online: 0, allocated: Vec::new(), freed: Vec::new() }
    }

    /// Plans changes from `self.next` on, up to `last` or until there are enough for one transaction.
    pub(super) fn plan(&mut self, delayed: &ExtentMap, alloc: &mut Alloc<'_>, fill: Fill, last: u64) -> Result<()> {
        let mut changes = 0;
        while self.next <= last && changes < STEP_EXTENTS {
            let near = delayed.at_or_after(self.next);
            let inside = near.filter(|d| d.start <= self.next);
            let upto = inside.map_or_else(|| near.map_or(last, |d| (d.start - 1).min(last)), |d| d.last().min(last));
            let piece = match self.edit.stored().next(self.next)? {
                Some(e) if e.start <= self.next => e.cut(self.next, upto),
                Some(e) if e.start <= upto => Extent::free(self.next, e.start - self.next),
                _ => Extent::free(self.next, upto - self.next + 1),
            };
            let (blocks, changed) = self.plan_piece(alloc, fill, piece, inside.is_some())?;
            if blocks == 0 {
                break;
            }
            changes += usize::from(changed);
            self.next += blocks;
        }
        Ok(())
    }

    /// Plans one piece that is either delayed as a whole or not at all; returns its blocks that are done (0: the rest must
    /// wait for another transaction), and whether something changes.
    fn plan_piece(&mut self, alloc: &mut Alloc<'_>, fill: Fill, piece: Extent, delayed: bool) -> Result<(u64, bool)> {
        let written = is_online(&piece);
        if is_offline(&piece) {
            return unexpected_offline(piece.start);
        }
        match fill {
            Fill::Allocate if piece.map == 0 && !delayed => return self.allocate(alloc, &piece),
            Fill::Allocate => return Ok((piece.len, false)),
            Fill::Zero if piece.map == 0 => {
                let (len, changed) = self.allocate(alloc, &piece)?;
                self.online += if delayed { len } else { 0 };
                return Ok((len, changed));
            }
            Fill::Zero if written => self.edit.set(Extent { flags: EXTENT_UNWRITTEN, ..piece })?,
            Fill::Punch if piece.map != 0 => {
                self.edit.set(Extent::free(piece.start, piece.len))?;
                self.freed.push((DataBlock(piece.map), piece.len));
            }
            Fill::Zero | Fill::Punch => {}
        }
        self.online += if written || delayed { piece.len } else { 0 };
        Ok((piece.len, written || delayed || piece.map != 0))
    }

    /// Plans unwritten space for the front of a hole.
    fn allocate(&mut self, alloc: &mut Alloc<'_>, hole: &Extent) -> Result<(u64, bool)> {
        let (start, len) = match alloc(hole.len.min(ALLOC_BLOCKS)) {
            // What the plan has so far is worth a transaction of its own.
            Err(Error::NeedCommit) if self.edit.len() > 0 => return Ok((0, false)),
            other => other?,
        };
        self.allocated.push((start, len));
        self.edit.set(Extent::new(hole.start, len, start.0, EXTENT_UNWRITTEN))?;
        Ok((len, true))
    }
}
