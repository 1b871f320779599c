//! Freeing a whole tree step by step (`spec/02 §3.13`).
//!
//! The state between steps is one persistent key, and the tree itself is never changed, so a step can be repeated or taken
//! up by another server. Leaves are freed by number, unread.
//!
//! The original loses every level-1 block. Here a level-1 block is freed in the same step as its last child, like the
//! blocks above it; the meaning of the key is the same, so servers of both kinds can continue each other's work.

use super::image::MAX_HEIGHT;
use super::read::{Reader, check_root};
use crate::error::{Error, Result};
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, MetaBlock};

/// Frees a whole tree step by step without changing or (for leaves) reading it. `key` is the persistent state: zeros at
/// first, ones when finished. At most `budget` blocks are freed by a call; it must be at least 21. Returns how many were.
/// On an error some may have been freed with `key` behind: the transaction must be dropped.
pub(crate) fn free_blocks(
    free: &mut dyn FnMut(MetaBlock) -> Result<()>,
    reader: &Reader,
    root: &BtreeRoot,
    key: &mut Key,
    budget: u64,
) -> Result<u64> {
    check_root(root)?;
    if budget <= MAX_HEIGHT as u64 {
        return Err(Error::invalid(format!("a budget of {budget} blocks does not suffice for one path")));
    }
    let mut freed = 0;
    while *key != Key::ONES {
        match root.height {
            0 => *key = Key::ONES,
            1 => {
                free(MetaBlock(root.block_ref.blkno.get()))?;
                freed += 1;
                *key = Key::ONES;
            }
            _ => {
                if !free_parent(free, reader, root, key, budget, &mut freed)? {
                    break;
                }
            }
        }
    }
    Ok(freed)
}

/// Frees what is left below one level-1 block, with it and all ancestors whose last child it was. False if the budget ended.
fn free_parent(
    free: &mut dyn FnMut(MetaBlock) -> Result<()>,
    reader: &Reader,
    root: &BtreeRoot,
    key: &mut Key,
    budget: u64,
    freed: &mut u64,
) -> Result<bool> {
    let mut ancestors: Vec<BlockRef> = Vec::new();
    let mut resume = Key::ONES;
    let mut r = root.block_ref;
    for level in (2..root.height).rev() {
        let held = reader.node(&r, level)?;
        let node = held.node()?;
        let rank = node.child_rank(key, &r)?;
        if rank + 1 < node.len() {
            ancestors.clear();
            resume = node.key(rank).next();
        } else {
            ancestors.push(r);
        }
        r = node.child(rank);
    }
    let held = reader.node(&r, 1)?;
    let node = held.node()?;
    ancestors.push(r);
    for rank in node.child_rank(key, &r)?..node.len() {
        if *freed + 1 + ancestors.len() as u64 > budget {
            return Ok(false);
        }
        free(MetaBlock(node.child(rank).blkno.get()))?;
        *freed += 1;
        if rank + 1 < node.len() {
            *key = node.key(rank).next();
        }
    }
    for r in ancestors {
        free(MetaBlock(r.blkno.get()))?;
        *freed += 1;
    }
    *key = resume;
    Ok(true)
}
