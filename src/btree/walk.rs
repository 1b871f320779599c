//! Visiting a whole tree, for tests of what the engine writes.
//!
//! Unlike the other readers it goes on after damage: it reports the block and visits the rest.

use super::image::verify;
use super::read::{Held, NodeRef, Reader, check_root};
use crate::error::Error;
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, KeyRange};

/// A block met on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TreeBlock {
    /// Where it is and which version.
    pub(crate) block_ref: BlockRef,
    /// 0 for leaves.
    pub(crate) level: u8,
    /// Exactly the keys that it can hold.
    pub(crate) range: KeyRange,
    /// Items in it.
    pub(crate) items: usize,
    /// `total_item_bytes`.
    pub(crate) item_bytes: usize,
}

/// What a visit tells.
pub(crate) trait Visitor {
    /// A reference is about to be followed. False skips it, for example because the block was met before.
    fn enter(&mut self, block_ref: &BlockRef, level: u8) -> bool;

    /// A readable block, before what is below it.
    fn block(&mut self, block: &TreeBlock);

    /// An item of a leaf, in key order within the leaf.
    fn item(&mut self, key: &Key, seq: u64, flags: u8, value: &[u8]);

    /// Something is wrong at or in this block. An [`Error::Corrupt`] about the inside of a readable block does not
    /// stop its items from being visited.
    fn damage(&mut self, block_ref: &BlockRef, error: Error);
}

/// Visits every block and item of a tree in key order. `whole`: the tree is complete, so its right spine must end with the greatest key;
/// else it is a subtree. Errors of the device or in the structure go to the visitor.
pub(crate) fn visit(reader: &Reader, root: &BtreeRoot, whole: bool, visitor: &mut dyn Visitor) {
    if let Err(e) = check_root(root) {
        visitor.damage(&root.block_ref, e);
        return;
    }
    if root.height > 0 {
        let range = KeyRange::ALL;
        visit_block(reader, &root.block_ref, root.height - 1, range, whole, visitor);
    }
}

fn visit_block(reader: &Reader, r: &BlockRef, level: u8, range: KeyRange, bounded: bool, visitor: &mut dyn Visitor) {
    if !visitor.enter(r, level) {
        return;
    }
    let held = match reader.node(r, level) {
        Ok(held) => held,
        Err(e) => return visitor.damage(r, e),
    };
    let node = match held.node() {
        Ok(node) => node,
        Err(e) => return visitor.damage(r, e),
    };
    if let Held::Clean(block) = &held {
        for finding in verify(block.bytes()) {
            visitor.damage(r, Error::corrupt(format!("btree block {}", r.blkno), finding));
        }
    }
    visitor.block(&TreeBlock { block_ref: *r, level, range, items: node.len(), item_bytes: node.total() });
    if let Err(e) = node.check_range(&range, r) {
        visitor.damage(r, e);
    }
    if level == 0 {
        visit_items(&node, visitor);
        return;
    }
    if bounded && node.key(node.len() - 1) != range.end {
        let detail = format!("the last child ends at {} instead of {}", node.key(node.len() - 1), range.end);
        visitor.damage(r, Error::corrupt(format!("btree block {}", r.blkno), detail));
    }
    let mut start = range.start;
    for rank in 0..node.len() {
        let end = node.key(rank);
        visit_block(reader, &node.child(rank), level - 1, KeyRange::new(start, end), true, visitor);
        start = end.next();
    }
}

fn visit_items(node: &NodeRef, visitor: &mut dyn Visitor) {
    for rank in 0..node.len() {
        let (seq, flags) = node.version(rank);
        visitor.item(&node.key(rank), seq, flags, node.value(rank));
    }
}
