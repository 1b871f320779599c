//! Sorting logs into a file, in bounded memory.
//!
//! A log can be larger than what may be kept in memory, and the work cannot be stopped half way. So it is done in passes:
//! each reads all logs, keeps the least entries above those of the pass before, and writes them.

use super::output::Output;
use super::{has_room, inputs, no_progress};
use crate::block::Cow;
use crate::error::Result;
use crate::format::layout::{SrchCompact, SrchFile};
use crate::format::srch::{Entries, Entry};
use crate::txn::srch_file;

/// Makes the output from all entries of the inputs, at most `room` (at least 1) of them in order at a time.
pub(super) fn sort(cow: &mut Cow<'_>, compact: &mut SrchCompact, room: usize) -> Result<bool> {
    let files: Vec<SrchFile> = inputs(compact).iter().map(|i| i.sfl).collect();
    let mut out = Output::new(&mut compact.output);
    let mut after = None;
    loop {
        let least = collect(cow, &files, after, room)?;
        for entry in least.entries {
            if out.is_full() {
                out.end_block(cow)?;
                if !has_room(cow) {
                    return Err(no_progress());
                }
            }
            out.push(entry);
        }
        match least.up_to {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    if !has_room(cow) {
        return Err(no_progress());
    }
    out.finish(cow)?;
    Ok(true)
}

/// Sorted entries, no two of them equal.
struct Least {
    entries: Vec<Entry>,
    /// There are more above this one; `None`: these are all.
    up_to: Option<Entry>,
}

impl Least {
    /// Sorts, cancels pairs, and lets go of what is beyond the room.
    fn settle(&mut self, room: usize) {
        self.entries.sort_unstable();
        let mut kept = 0;
        for i in 0..self.entries.len() {
            let entry = self.entries[i];
            if kept > 0 && self.entries[kept - 1] == entry {
                kept -= 1;
            } else {
                self.entries[kept] = entry;
                kept += 1;
            }
        }
        self.entries.truncate(room.min(kept));
        if kept > room {
            self.up_to = self.entries.last().copied();
        }
    }
}

/// Reads all files for the least entries above `after`.
fn collect(cow: &Cow<'_>, files: &[SrchFile], after: Option<Entry>, room: usize) -> Result<Least> {
    let mut least = Least { entries: Vec::new(), up_to: None };
    for file in files {
        for blk in 0..file.blocks.get() {
            let block = srch_file::data_block(cow.store, file, blk)?;
            for entry in Entries::new(block.bytes(), block.block_ref().blkno.get())? {
                let entry = entry?;
                if after.is_some_and(|a| entry <= a) || least.up_to.is_some_and(|l| entry > l) {
                    continue;
                }
                least.entries.push(entry);
                if least.entries.len() >= room.saturating_mul(2) {
                    least.settle(room);
                }
            }
        }
    }
    least.settle(room);
    Ok(least)
}
