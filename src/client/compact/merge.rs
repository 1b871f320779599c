//! Merging sorted files, step by step.
//!
//! A step may end between two output blocks. Where to go on is one position for each input: the data block, and the byte
//! where the next entry that was not delivered starts. The held entry counts as not delivered.

use super::output::Output;
use super::{has_room, inputs, no_progress};
use crate::block::{BlockStore, Cow};
use crate::error::{Error, Result};
use crate::format::layout::{SrchCompact, SrchCompactInput, SrchFile};
use crate::format::srch::{Entries, Entry};
use crate::txn::srch_file;

/// One input. Its present block is decoded as a whole: at most 32,713 entries.
struct Input {
    file: SrchFile,
    blk: u64,
    entries: Vec<(Entry, u64)>,
    at: usize,
    /// The last entry that was decoded.
    before: Option<Entry>,
}

impl Input {
    fn open(store: &BlockStore, input: &SrchCompactInput) -> Result<Input> {
        let mut open = Input { file: input.sfl, blk: input.blk.get(), entries: Vec::new(), at: 0, before: None };
        let (start, nr) = (input.pos.get(), open.file.blocks.get());
        if open.blk > nr || (open.blk == nr && start > 0) {
            let what = format!("search compaction of file {}", open.file.block_ref.blkno);
            return Err(Error::corrupt(what, format!("position {}:{start} of {nr} blocks", open.blk)));
        }
        open.load(store, start)?;
        Ok(open)
    }

    /// Decodes the present block from byte `start` on, or the first one after it that has entries.
    fn load(&mut self, store: &BlockStore, mut start: u64) -> Result<()> {
        (self.at, self.entries) = (0, Vec::new());
        while self.blk < self.file.blocks.get() {
            let block = srch_file::data_block(store, &self.file, self.blk)?;
            let mut entries = Entries::new(block.bytes(), block.block_ref().blkno.get())?;
            entries.skip_to(start)?;
            let mut at = entries.position();
            while let Some(entry) = entries.next() {
                let entry = entry?;
                if self.before.is_some_and(|b| b > entry) {
                    return Err(Error::corrupt(format!("search block {}", block.block_ref().blkno), "not sorted"));
                }
                self.before = Some(entry);
                self.entries.push((entry, at));
                at = entries.position();
            }
            if !self.entries.is_empty() {
                return Ok(());
            }
            (self.blk, start) = (self.blk + 1, 0);
        }
        Ok(())
    }

    fn peek(&self) -> Option<Entry> {
        self.entries.get(self.at).map(|e| e.0)
    }

    fn position(&self) -> (u64, u64) {
        (self.blk, self.entries.get(self.at).map_or(0, |e| e.1))
    }

    fn advance(&mut self, store: &BlockStore) -> Result<()> {
        self.at += 1;
        if self.at >= self.entries.len() {
            self.blk += 1;
            self.load(store, 0)?;
        }
        Ok(())
    }
}

/// Merges until `max_blocks` were written or blocks run low; true when all inputs are read.
pub(super) fn step(cow: &mut Cow<'_>, compact: &mut SrchCompact, max_blocks: u64) -> Result<bool> {
    let store = cow.store;
    let mut open = inputs(compact).iter().map(|i| Input::open(store, i)).collect::<Result<Vec<_>>>()?;
    let mut out = Output::new(&mut compact.output);
    // Where the held entry came from.
    let mut held = (0, (0, 0));
    if !has_room(cow) {
        return Err(no_progress());
    }
    let mut done = false;
    loop {
        let next = open.iter().enumerate().filter_map(|(i, input)| Some((input.peek()?, i))).min();
        let Some((entry, i)) = next else {
            done = true;
            break;
        };
        if out.is_full() {
            out.end_block(cow)?;
            if out.blocks >= max_blocks || !has_room(cow) {
                break;
            }
        }
        held = (i, open[i].position());
        out.push(entry);
        open[i].advance(store)?;
    }
    let mut positions: Vec<_> = open.iter().map(Input::position).collect();
    if done {
        out.finish(cow)?;
    } else {
        // A block is full only when an entry after its last one is held.
        positions[held.0] = held.1;
    }
    for (input, (blk, pos)) in inputs(compact).iter_mut().zip(positions) {
        (input.blk, input.pos) = (blk.into(), pos.into());
    }
    Ok(done)
}
