//! A dirty block: decoded, sorted, cheap to change.
//!
//! Item heads are kept sorted in one vector and values in an arena beside it, so that an insertion moves heads of 48
//! bytes and no values. Space is counted as the encoded block will need it, so "does it fit" has one exact answer.
//!
//! 1. Heads ascend strictly by key.
//! 2. `total` is the `total_item_bytes` of the encoded block, and never exceeds [`Node::capacity`].
//! 3. A slot other than 0 of a head is that of its key in `table`; heads that come from other nodes have none.
//! 4. `dead` counts arena bytes that no head refers to; the arena is repacked before they matter.

use crate::block::{BLOCK_BYTES, Block, BlockKind, CowContent, DirtyContent};
use crate::error::{Error, Result};
use crate::format::Key;
use crate::format::layout::BlockRef;

use super::image::{self, Table, View};

/// Bytes of an encoded item without its value.
pub(super) const ITEM_BYTES: usize = 56;

/// Offset of the first item in a block.
pub(super) const ITEMS_AT: usize = 48;

/// Offset of the leaf hash table.
pub(super) const HASH_AT: usize = 62512;

/// Length of the value of a parent item: a block reference.
pub(super) const REF_BYTES: usize = 16;

/// A non-root block with less than this many item bytes takes items from a sibling when a walk may delete.
pub(super) const LOW_BYTES: usize = 16372;

/// A sibling with at most this many item bytes is taken as a whole.
pub(super) const JOIN_WHOLE_BYTES: usize = 2 * LOW_BYTES;

/// Unreferenced arena bytes that are tolerated.
const MAX_DEAD: usize = 65536;

/// Space that an item with a value of this length takes in a block.
pub(super) fn item_bytes(value_len: usize) -> usize {
    ITEM_BYTES + value_len.next_multiple_of(8)
}

/// Where the value area of a block of this level ends.
pub(super) fn value_end(level: u8) -> usize {
    if level == 0 { HASH_AT } else { BLOCK_BYTES }
}

/// Bits of [`Head::place`] for the arena offset. An arena has at most the values of a block, as many dead ones, and as many that
/// are just being added.
const OFF_BITS: u32 = 20;

/// One item without its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) seq: u64,
    /// Offset in the arena, and above it the slot of the item in the block that was encoded last.
    place: u32,
    len: u16,
    pub(super) flags: u8,
}

impl Head {
    pub(super) fn value_len(&self) -> usize {
        self.len as usize
    }

    fn off(&self) -> usize {
        (self.place & ((1 << OFF_BITS) - 1)) as usize
    }

    fn set_off(&mut self, off: usize) {
        debug_assert!(off < 1 << OFF_BITS);
        self.place = self.place >> OFF_BITS << OFF_BITS | off as u32;
    }

    /// Slot of the key, counted from 1, when this node was encoded last; 0 if it was not there.
    pub(super) fn slot(&self) -> usize {
        (self.place >> OFF_BITS) as usize
    }

    fn set_slot(&mut self, slot: usize) {
        self.place = (slot << OFF_BITS) as u32 | self.off() as u32;
    }

    /// The head takes the place of another one with the same key.
    pub(super) fn instead_of(mut self, other: &Head) -> Head {
        debug_assert!(self.key == other.key);
        self.set_slot(other.slot());
        self
    }
}

/// A decoded B-tree block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(super) level: u8,
    heads: Vec<Head>,
    arena: Vec<u8>,
    dead: usize,
    total: usize,
    /// Rank that continues the latest insertion, to recognise ascending runs; meaningless numbers do no harm.
    run: usize,
    /// Hash table of the leaf as it was encoded last.
    pub(super) table: Option<Table>,
}

impl Node {
    /// A parent without children yet.
    pub(super) fn empty_parent(level: u8) -> Node {
        Node { level, ..Node::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    /// Item bytes of the encoded block.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Item bytes that fit in the encoded block.
    pub(super) fn capacity(&self) -> usize {
        value_end(self.level) - ITEMS_AT
    }

    /// Is there room for one more item with a value of this length?
    pub(super) fn has_room(&self, value_len: usize) -> bool {
        self.total + item_bytes(value_len) <= self.capacity()
    }

    pub(super) fn head(&self, rank: usize) -> &Head {
        &self.heads[rank]
    }

    pub(super) fn first_key(&self) -> Option<Key> {
        self.heads.first().map(|h| h.key)
    }

    pub(super) fn last_key(&self) -> Option<Key> {
        self.heads.last().map(|h| h.key)
    }

    pub(super) fn value(&self, rank: usize) -> &[u8] {
        self.value_of(&self.heads[rank])
    }

    pub(super) fn value_of(&self, h: &Head) -> &[u8] {
        &self.arena[h.off()..h.off() + h.len as usize]
    }

    /// Rank of the key, or where it would be.
    pub(super) fn search(&self, key: &Key) -> Result<usize, usize> {
        self.heads.binary_search_by(|h| h.key.cmp(key))
    }

    /// The child of a parent item.
    pub(super) fn child(&self, rank: usize) -> BlockRef {
        image::to_ref(self.value(rank))
    }

    pub(super) fn set_child(&mut self, rank: usize, child: &BlockRef) {
        let at = self.heads[rank].off();
        self.arena[at..at + REF_BYTES].copy_from_slice(zerocopy::IntoBytes::as_bytes(child));
    }

    pub(super) fn set_key(&mut self, rank: usize, key: Key) {
        self.heads[rank].key = key;
        self.heads[rank].set_slot(0);
    }

    pub(super) fn insert_child(&mut self, rank: usize, key: Key, child: &BlockRef) {
        self.insert(rank, key, 0, 0, zerocopy::IntoBytes::as_bytes(child));
    }

    fn push_value(&mut self, value: &[u8]) -> usize {
        let off = self.arena.len();
        assert!(off < 1 << OFF_BITS, "the arena of a block is repacked before it has so many bytes");
        self.arena.extend_from_slice(value);
        off
    }

    /// A head whose value is stored in the arena but which is not in the node yet.
    pub(super) fn make(&mut self, key: Key, seq: u64, flags: u8, value: &[u8]) -> Head {
        let place = self.push_value(value) as u32;
        Head { key, seq, place, len: value.len() as u16, flags }
    }

    pub(super) fn insert(&mut self, rank: usize, key: Key, seq: u64, flags: u8, value: &[u8]) {
        let head = self.make(key, seq, flags, value);
        self.total += item_bytes(value.len());
        debug_assert!(self.total <= self.capacity());
        self.heads.insert(rank, head);
        self.run = rank + 1;
    }

    /// Adds an item behind all others.
    pub(super) fn push(&mut self, key: Key, seq: u64, flags: u8, value: &[u8]) {
        debug_assert!(self.last_key().is_none_or(|last| last < key));
        self.insert(self.heads.len(), key, seq, flags, value);
    }

    pub(super) fn remove(&mut self, rank: usize) {
        let h = self.heads.remove(rank);
        self.total -= item_bytes(h.value_len());
        self.drop_value(&h);
    }

    fn drop_value(&mut self, h: &Head) {
        self.dead += h.value_len();
        if self.dead > MAX_DEAD {
            self.repack();
        }
    }

    fn repack(&mut self) {
        let mut arena = Vec::with_capacity(self.arena.len() - self.dead);
        for h in &mut self.heads {
            let at = h.off();
            h.set_off(arena.len());
            arena.extend_from_slice(&self.arena[at..at + h.len as usize]);
        }
        self.arena = arena;
        self.dead = 0;
    }

    /// Does a new value for an existing item fit?
    pub(super) fn fits_value(&self, rank: usize, value_len: usize) -> bool {
        self.total - item_bytes(self.heads[rank].value_len()) + item_bytes(value_len) <= self.capacity()
    }

    pub(super) fn set_value(&mut self, rank: usize, value: &[u8]) {
        let mut h = self.heads[rank];
        self.total = self.total - item_bytes(h.value_len()) + item_bytes(value.len());
        debug_assert!(self.total <= self.capacity());
        if value.len() <= h.value_len() {
            let at = h.off();
            self.arena[at..at + value.len()].copy_from_slice(value);
            self.dead += h.value_len() - value.len();
            h.len = value.len() as u16;
            self.heads[rank] = h;
        } else {
            let old = h;
            h.set_off(self.push_value(value));
            h.len = value.len() as u16;
            self.heads[rank] = h;
            self.drop_value(&old);
        }
    }

    /// Replaces all heads by a merge of them with new ones made by [`make`](Self::make). `dropped` counts arena bytes that the new
    /// list no longer refers to.
    pub(super) fn replace_heads(&mut self, heads: Vec<Head>, total: usize, dropped: usize) {
        debug_assert!(heads.is_sorted_by(|a, b| a.key < b.key));
        debug_assert!(total == heads.iter().map(|h| item_bytes(h.value_len())).sum::<usize>());
        self.heads = heads;
        self.total = total;
        self.dead += dropped;
        if self.dead > MAX_DEAD {
            self.repack();
        }
    }

    pub(super) fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Takes the heads out, to be given back by [`replace_heads`](Self::replace_heads).
    pub(super) fn take_heads(&mut self) -> Vec<Head> {
        std::mem::take(&mut self.heads)
    }

    /// The node was encoded, with this hash table.
    pub(super) fn encoded(&mut self, table: Table) {
        self.heads.iter_mut().enumerate().for_each(|(slot, h)| h.set_slot(slot + 1));
        self.table = Some(table);
    }

    /// Where to cut a full block whose next item goes to `rank`: the rank of the first item that stays, and whether new items
    /// between the two parts belong to the left one. Ascending runs leave full blocks behind; else both get half.
    pub(super) fn split_point(&self, rank: usize) -> (usize, bool) {
        let n = self.len();
        if rank == n {
            return (n - 1, false);
        }
        if rank == self.run && rank > 0 {
            return (rank, true);
        }
        (self.middle(), false)
    }

    /// The rank that divides the bytes in half; both sides get at least one of the (two or more) items.
    pub(super) fn middle(&self) -> usize {
        let mut left = 0;
        let at = self.heads.iter().take_while(|h| {
            left += item_bytes(h.value_len());
            left <= self.total / 2
        });
        at.count().clamp(1, self.len() - 1)
    }

    /// Cuts off the items before `rank`.
    pub(super) fn split_left(&mut self, rank: usize) -> Node {
        if rank <= self.len() / 2 {
            return self.move_out(0, rank);
        }
        let mut right = self.move_out(rank, self.len());
        if right.len() < self.len() / 8 {
            // An ascending run goes on there: save it the growing.
            right.heads.reserve(self.len());
            right.arena.reserve(self.arena.len());
        }
        std::mem::replace(self, right)
    }

    /// Removes the items of the ranks `from..to` and gives them as a node of their own.
    fn move_out(&mut self, from: usize, to: usize) -> Node {
        let mut out = Node { level: self.level, ..Node::default() };
        out.heads.reserve(to - from);
        for h in self.heads.drain(from..to) {
            let place = out.arena.len() as u32;
            out.arena.extend_from_slice(&self.arena[h.off()..h.off() + h.len as usize]);
            out.heads.push(Head { place, ..h });
            out.total += item_bytes(h.value_len());
            self.total -= item_bytes(h.value_len());
            self.dead += h.value_len();
        }
        self.run = 0;
        if self.dead > MAX_DEAD {
            self.repack();
        }
        out
    }

    /// Number of items at the end (`from_end`) or the start whose bytes reach `bytes`.
    fn count_bytes(&self, bytes: usize, from_end: bool) -> usize {
        let mut sum = 0;
        let mut count = 0;
        let mut rank = |i: usize| {
            if sum < bytes {
                sum += item_bytes(self.heads[i].value_len());
                count += 1;
            }
        };
        if from_end {
            (0..self.len()).rev().for_each(&mut rank)
        } else {
            (0..self.len()).for_each(&mut rank)
        }
        count
    }

    /// Takes items from a sibling: all if it is small, else about [`LOW_BYTES`], the nearest first.
    pub(super) fn take_from(&mut self, sibling: &mut Node, sibling_is_left: bool) {
        let all = sibling.total <= JOIN_WHOLE_BYTES;
        let count = if all { sibling.len() } else { sibling.count_bytes(LOW_BYTES, sibling_is_left) };
        let (from, to) = if sibling_is_left { (sibling.len() - count, sibling.len()) } else { (0, count) };
        let moved = sibling.move_out(from, to);
        let at = if sibling_is_left { 0 } else { self.len() };
        let base = self.arena.len() as u32;
        self.arena.extend_from_slice(&moved.arena);
        self.heads.splice(at..at, moved.heads.into_iter().map(|h| Head { place: base + h.place, ..h }));
        self.total += moved.total;
        self.run = 0;
        debug_assert!(self.total <= self.capacity());
    }
}

impl DirtyContent for Node {
    fn kind(&self) -> BlockKind {
        BlockKind::Btree
    }

    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]) {
        image::encode(self, buf);
    }
}

impl CowContent for Node {
    const KIND: BlockKind = BlockKind::Btree;

    fn load(block: &Block) -> Result<Node> {
        let view = block.view::<View>()?;
        let node = view.node(block.bytes());
        let n = node.len();
        let mut out = Node { level: node.level(), run: usize::MAX, ..Node::default() };
        out.heads.reserve(n + n / 8 + 8);
        out.arena.reserve(view.total());
        for rank in 0..n {
            let value = node.value(rank);
            let (seq, flags) = node.version(rank);
            let head = out.make(node.key(rank), seq, flags, value);
            out.heads.push(head);
            out.total += item_bytes(value.len());
        }
        if out.total > out.capacity() {
            return Err(Error::corrupt(format!("btree block {}", block.block_ref().blkno), "too many item bytes"));
        }
        Ok(out)
    }

    fn empty() -> Node {
        Node::default()
    }
}
