//! One piece of search file compaction (`spec/08 §7.5`).
//!
//! **Problem.** Every tagged attribute that is set or removed appends an entry to a search file, so files and entries grow
//! with what was ever done, not with what there is; and a search reads all of them.
//!
//! **Idea.** The server hands out up to four files at a time with a private stock of blocks, as for log merges. Logs are
//! sorted into a new file, sorted files are merged into a larger one, files that were replaced are taken apart. Equal pairs
//! of entries cancel on the way.
//!
//! Invariants
//! 1. Every request is answered, with ERROR when the work or the write of its blocks failed (defect 4): otherwise the
//!    server would wait for this mount, or refer to blocks that were never written.
//! 2. Everything is durable before the answer is sent.
//! 3. No block without entries is written, and blocks without entries are read as such (defect 72).
//! 4. Memory is bounded whatever the sizes of the files.
//!
//! `logs`: sorting. `merge`: merging, with positions to go on from. `delete`: taking apart. `output`: the file that is made.

mod delete;
mod logs;
mod merge;
mod output;
#[cfg(test)]
mod tests;

use zerocopy::IntoBytes;

use super::link::call;
use super::node::Node;
use crate::alloc::MetaAlloc;
use crate::block::{BlockStore, Cow, DirtySet};
use crate::error::{Errno, Error, Result};
use crate::format::check;
use crate::format::consts::{SRCH_COMPACT_DELETE, SRCH_COMPACT_DONE, SRCH_COMPACT_ERROR, SRCH_COMPACT_LOG};
use crate::format::layout::{SrchCompact, SrchCompactInput};
use crate::net::Command;
use crate::sync::Arc;

/// Limits of one piece of work.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// New data blocks of one step of a merge. The original lets 32 MiB be dirty; a step of 8 MiB is as good.
    merge_blocks: u64,
    /// Entries sorted at once, 24 bytes each, and as many again while they are collected.
    sort_entries: usize,
}

const LIMITS: Limits = Limits { merge_blocks: 128, sort_entries: 256 << 10 };

/// Blocks that adding one data block may use: the block, a path of parents, list blocks.
const LOW_BLOCKS: u64 = 16;

/// Asks for work and does it; false if there is none.
pub(super) fn work_once(node: &Node) -> Result<bool> {
    let request: SrchCompact = call(node.link(), Command::SrchGetCompact, &[])?;
    if request.nr == 0 {
        return Ok(false);
    }
    let mut answer = request;
    let worked = work(&node.store, &mut answer, LIMITS);
    if worked.is_err() {
        answer = request;
        answer.flags |= SRCH_COMPACT_ERROR;
    }
    match node.link().request(Command::SrchCommitCompact, answer.as_bytes()) {
        Ok(_) => {}
        // An earlier copy of the message was already processed.
        Err(e) if e.is(Errno::ENOENT) => {}
        Err(e) => return Err(e),
    }
    worked.map(|()| true)
}

/// Does what `compact` asks for as far as the limits allow, makes it durable, and turns the record into the answer. After an
/// error the record means nothing and nothing refers to what may have been written.
fn work(store: &Arc<BlockStore>, compact: &mut SrchCompact, limits: Limits) -> Result<()> {
    check::validate_srch_compact(compact.as_bytes(), store.meta_blocks())?;
    let mut dirty = DirtySet::new();
    let mut alloc = MetaAlloc::new(store.clone(), compact.meta_avail, compact.meta_freed);
    let mut cow = Cow { store, dirty: &mut dirty, alloc: &mut alloc };
    let done = if compact.flags & SRCH_COMPACT_DELETE != 0 {
        delete::step(&mut cow, inputs(compact))?
    } else if compact.flags & SRCH_COMPACT_LOG != 0 {
        logs::sort(&mut cow, compact, limits.sort_entries)?
    } else {
        merge::step(&mut cow, compact, limits.merge_blocks)?
    };
    (compact.meta_avail, compact.meta_freed) = alloc.finish(&mut dirty)?;
    dirty.write_out(store)?;
    store.flush()?;
    if done {
        compact.flags |= SRCH_COMPACT_DONE;
    }
    Ok(())
}

fn inputs(compact: &mut SrchCompact) -> &mut [SrchCompactInput] {
    let nr = usize::from(compact.nr);
    &mut compact.inputs[..nr]
}

/// Is there room for one more data block?
fn has_room(cow: &Cow<'_>) -> bool {
    !cow.alloc.low(LOW_BLOCKS)
}

fn no_progress() -> Error {
    Error::Posix(Errno::ENOSPC)
}
