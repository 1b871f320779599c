//! One piece of log merge work (`spec/03 §11.4`).
//!
//! The server hands out a key range, a part of the main tree and a private stock of blocks; the answer is a rewritten part
//! with the log trees' items merged in. Nothing of it touches the mount's own transaction. Every request is answered, also
//! when the work failed: an unanswered one would stop the merge for the whole volume.

use zerocopy::IntoBytes;

use super::link::call;
use super::node::Node;
use crate::alloc::MetaAlloc;
use crate::block::{Cow, DirtySet};
use crate::btree::{self, MergeArgs, MergeEnd, Reader};
use crate::error::{Errno, Error, Result};
use crate::format::consts::LOG_TREES_FINALIZED;
use crate::format::keys::is_delta;
use crate::format::layout::{BtreeRoot, LogMergeComplete, LogMergeRequest, LogTrees};
use crate::format::{Key, KeyRange, check};
use crate::net::Command;

const FLAG_SUBTREE: u64 = 1;
const FLAG_ERROR: u64 = 1;
const FLAG_REMAIN: u64 = 2;
/// Limits of one piece of work: what is read at once, what may be dirty, what must stay in stock. The original lets 64 MiB
/// be dirty; that would be a quarter of this mount's memory, and the rest of the range is simply another piece.
const WINDOW_BYTES: usize = 2 << 20;
const DIRTY_LIMIT: u64 = 16 << 20;
const LOW_BLOCKS: u64 = 10;

/// Asks for work and does it; false if there is none.
pub(crate) fn work_once(node: &Node) -> Result<bool> {
    let request: LogMergeRequest = match call(node.link(), Command::GetLogMerge, &[]) {
        Ok(r) => r,
        Err(e) if e.is(Errno::ENOENT) => return Ok(false),
        Err(e) => return Err(e),
    };
    let mut complete = LogMergeComplete {
        meta_avail: request.meta_avail,
        meta_freed: request.meta_freed,
        root: request.root,
        start: request.start,
        end: request.end,
        remain: request.end,
        rid: request.rid,
        seq: request.seq,
        flags: 0.into(),
    };
    let worked = merge(node, &request, &mut complete);
    if worked.is_err() {
        complete.flags = FLAG_ERROR.into();
    }
    match node.link().request(Command::CommitLogMerge, complete.as_bytes()) {
        Ok(_) => {}
        // An earlier copy of the message was already processed.
        Err(e) if e.is(Errno::ENOENT) => {}
        Err(e) => return Err(e),
    }
    worked.map(|()| true)
}

fn merge(node: &Node, request: &LogMergeRequest, complete: &mut LogMergeComplete) -> Result<()> {
    let store = &*node.store;
    let request_checked = check::validate_merge_request(request.as_bytes(), store.meta_blocks())?;
    let range = KeyRange::new(request_checked.start.to_key(), request_checked.end.to_key());
    let inputs = inputs(node, request)?;
    let mut dirty = DirtySet::new();
    let mut alloc = MetaAlloc::new(node.store.clone(), request.meta_avail, request.meta_freed);
    let mut root = request.root;
    let args = MergeArgs {
        inputs: &inputs,
        range,
        subtree: request.flags.get() & FLAG_SUBTREE != 0,
        window_bytes: WINDOW_BYTES,
        dirty_limit: DIRTY_LIMIT,
        low_blocks: LOW_BLOCKS,
        delta: is_delta,
    };
    let end = btree::merge(&mut Cow { store, dirty: &mut dirty, alloc: &mut alloc }, &mut root, &args)?;
    let (avail, freed) = alloc.finish(&mut dirty)?;
    dirty.write_out(store)?;
    store.flush()?;
    complete.meta_avail = avail;
    complete.meta_freed = freed;
    complete.root = root;
    if let MergeEnd::Remain(key) = end {
        complete.remain = key.to_stored();
        complete.flags = FLAG_REMAIN.into();
    }
    Ok(())
}

/// The finalised, non-empty log trees that the merge takes in, in the order in which equal versions win.
fn inputs(node: &Node, request: &LogMergeRequest) -> Result<Vec<BtreeRoot>> {
    let reader = Reader::new(&node.store);
    let mut found = Vec::new();
    let mut key = Key::ZEROS;
    while let Some((at, item)) = btree::next(&reader, &request.logs_root, &key)? {
        let trees: LogTrees = check::validate_log_trees(Some(&at), &item.value, node.store.meta_blocks())?;
        let finalized = trees.flags.get() & LOG_TREES_FINALIZED != 0;
        if finalized && trees.finalize_seq.get() < request.input_seq.get() && trees.item_root.height > 0 {
            found.push(trees.item_root);
        }
        if at == Key::ONES {
            return Err(Error::corrupt("log trees", "an item with the greatest key"));
        }
        key = at.next();
    }
    Ok(found)
}
