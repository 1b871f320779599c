//! Walking one tree in key order.

use std::rc::Rc;

use super::{Damage, Image, Node, NodeItem, Visitor};
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, KeyRange, MetaBlock};

struct Level {
    node: Rc<Node>,
    range: KeyRange,
    /// Next item to look at.
    at: usize,
}

/// A position in a tree. It owns one block per level.
pub(crate) struct Cursor<'a> {
    image: &'a Image<'a>,
    stack: Vec<Level>,
    /// The root while it was not read yet.
    root: Option<BtreeRoot>,
    /// Items and subtrees entirely before this key are passed over unread.
    from: Key,
    /// The root is a part of another tree: its last key need not be the greatest.
    part: bool,
}

impl<'a> Cursor<'a> {
    /// A cursor before the first item of `root`.
    pub(crate) fn new(image: &'a Image<'a>, root: &BtreeRoot) -> Cursor<'a> {
        Cursor::from(image, root, Key::ZEROS)
    }

    /// A cursor before the first item of `root` that is not before `from`. Blocks that hold only keys before it are not
    /// read.
    pub(crate) fn from(image: &'a Image<'a>, root: &BtreeRoot, from: Key) -> Cursor<'a> {
        Cursor { image, stack: Vec::new(), root: (root.height > 0).then_some(*root), from, part: false }
    }

    /// A cursor over a tree that may be cut out of another one.
    pub(crate) fn part(image: &'a Image<'a>, root: &BtreeRoot) -> Cursor<'a> {
        Cursor { part: true, ..Cursor::new(image, root) }
    }

    /// Moves to the next item. False at the end.
    pub(crate) fn advance(&mut self, v: &mut dyn Visitor) -> bool {
        if let Some(root) = self.root.take() {
            self.descend(&root.block_ref, root.height - 1, KeyRange::ALL, v);
        }
        while let Some(top) = self.stack.last_mut() {
            let at = top.at;
            let Some(item) = top.node.items().get(at).copied() else {
                self.stack.pop();
                continue;
            };
            top.at += 1;
            if item.key < self.from {
                continue;
            }
            let level = top.node.level();
            if level == 0 {
                return true;
            }
            let (child, range) = (top.node.child(&item), top.node.child_range(at, &top.range));
            self.descend(&child, level - 1, range, v);
        }
        false
    }

    /// The item that [`advance`](Self::advance) moved to, with its value.
    pub(crate) fn item(&self) -> Option<(&NodeItem, &[u8])> {
        let top = self.stack.last()?;
        let item = top.node.items().get(top.at.checked_sub(1)?)?;
        Some((item, top.node.value(item)))
    }

    fn descend(&mut self, r: &BlockRef, level: u8, range: KeyRange, v: &mut dyn Visitor) {
        let blkno = r.blkno.get();
        if !v.enter(MetaBlock(blkno), level) {
            return;
        }
        let open_end = self.part && self.stack.is_empty();
        let node = self.image.node(r, level, &range, open_end);
        match node {
            Ok(node) => self.stack.push(Level { node, range, at: 0 }),
            Err(e) => v.damaged(Damage { blkno, key: Some(range.start), what: e.to_string() }),
        }
    }
}
