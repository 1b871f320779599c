//! Blocks as bytes: checking and reading what was read, encoding what is written (`spec/02 §3.1`-`§3.3`, `§3.12`).
//!
//! Reading trusts nothing: [`View::decode`] proves once per cached block that every offset, length and link is right, after
//! which items are reached by rank without further checks. The heights and the balance of the AVL tree are not checked
//! (volume creation writes wrong ones), and the hash table only by [`verify`], for nothing here uses it.

use zerocopy::{FromBytes, IntoBytes};

use crate::block::{BLOCK_BYTES, BlockView};
use crate::error::{Error, Result};
use crate::format::layout::{AvlNode, BlockRef, BtreeBlockHead, BtreeItem};
use crate::format::{Key, leaf_hash_bucket, leaf_hash_buckets};

use super::MAX_VALUE_BYTES;
use super::node::{HASH_AT, ITEM_BYTES, ITEMS_AT, Node, REF_BYTES, item_bytes, value_end};

/// Greatest height of a tree.
pub(super) const MAX_HEIGHT: u8 = 20;

/// Buckets of the leaf hash table.
const BUCKETS: usize = 1512;

/// AVL offsets count from here.
const AVL_BASE: usize = 32;

/// AVL offset of the first array slot.
const AVL_FIRST: usize = ITEMS_AT - AVL_BASE;

/// Version that volume creation gives to its blocks.
#[cfg(test)]
const CREATION_SEQ: u64 = 1;

/// Value bytes are tracked in units of this.
const UNIT: usize = 8;

/// Greatest number of a block that can be referred to.
const MAX_BLKNO: u64 = (1 << 48) - 1;

/// A block reference stored as a value of the right length.
pub(super) fn to_ref(value: &[u8]) -> BlockRef {
    BlockRef::read_from_bytes(value).expect("parent values were checked to be references")
}

fn head_of(block: &[u8; BLOCK_BYTES]) -> &BtreeBlockHead {
    BtreeBlockHead::ref_from_prefix(&block[..]).expect("a block is longer than its head").0
}

/// The item array; the caller has checked that it fits.
fn items_of(block: &[u8; BLOCK_BYTES], nr: usize) -> &[BtreeItem] {
    let bytes = &block[ITEMS_AT..ITEMS_AT + nr * ITEM_BYTES];
    <[BtreeItem]>::ref_from_bytes(bytes).expect("a whole number of unaligned items")
}

/// What is known of a block that passed all checks.
#[derive(Debug)]
pub(crate) struct View {
    level: u8,
    nr: u16,
    total: u16,
    /// Array slot of each rank; empty if they are the same, as in every block that we write.
    order: Box<[u16]>,
}

impl BlockView for View {
    fn decode(block: &[u8; BLOCK_BYTES], blkno: u64) -> Result<View> {
        let bad = |detail: String| Error::corrupt(format!("btree block {blkno}"), detail);
        let head = head_of(block);
        let nr = head.nr_items.get() as usize;
        let level = head.level;
        let end = value_end(level);
        let gap_end = ITEMS_AT + nr * ITEM_BYTES + head.mid_free_len.get() as usize;
        if level >= MAX_HEIGHT {
            return Err(bad(format!("level {level}")));
        }
        if gap_end > end {
            return Err(bad(format!("{nr} items and a gap of {} bytes do not fit", head.mid_free_len)));
        }
        if level > 0 && nr == 0 {
            return Err(bad("a parent without children".into()));
        }
        let items = items_of(block, nr);
        let total = check_values(items, level, gap_end, end).map_err(bad)?;
        if total != head.total_item_bytes.get() as usize {
            return Err(bad(format!("total_item_bytes {} instead of {total}", head.total_item_bytes)));
        }
        let order = walk_avl(items, head.item_root.get()).map_err(bad)?;
        check_keys(items, &order).map_err(bad)?;
        if level > 0 {
            check_children(block, items).map_err(bad)?;
        }
        let identity = order.iter().enumerate().all(|(rank, slot)| rank == *slot as usize);
        let order = if identity { Box::default() } else { order.into_boxed_slice() };
        Ok(View { level, nr: nr as u16, total: total as u16, order })
    }

    fn heap_bytes(&self) -> usize {
        size_of::<View>() + self.order.len() * 2
    }
}

/// Every value lies in the value area, and no two share a byte. Gives the item bytes.
fn check_values(items: &[BtreeItem], level: u8, from: usize, end: usize) -> Result<usize, String> {
    let mut used = [0u64; BLOCK_BYTES / UNIT / 64];
    let mut total = 0;
    for (slot, item) in items.iter().enumerate() {
        let (off, len) = (item.val_off.get() as usize, item.val_len.get() as usize);
        let wrong = || format!("item {slot}: a value of {len} bytes at {off}");
        if len > MAX_VALUE_BYTES || (level > 0 && len != REF_BYTES) {
            return Err(wrong());
        }
        total += item_bytes(len);
        if len == 0 {
            continue;
        }
        if !off.is_multiple_of(UNIT) || off < from || off + len > end {
            return Err(wrong());
        }
        if !claim(&mut used, off / UNIT, len.div_ceil(UNIT)) {
            return Err(format!("item {slot}: its value overlaps another"));
        }
    }
    Ok(total)
}

/// Marks `count` (at most 112) units; false if one was marked already.
fn claim(used: &mut [u64], first: usize, count: usize) -> bool {
    let (mut at, mut left) = (first, count);
    let mut free = true;
    while left > 0 {
        let (word, bit) = (at / 64, at % 64);
        let n = left.min(64 - bit);
        let mask = (u64::MAX >> (64 - n)) << bit;
        free &= used[word] & mask == 0;
        used[word] |= mask;
        at += n;
        left -= n;
    }
    free
}

/// Array slot of an AVL offset.
fn slot_of(offset: u16, nr: usize) -> Result<usize, String> {
    let slot = (offset as usize).wrapping_sub(AVL_FIRST) / ITEM_BYTES;
    if slot < nr && slot * ITEM_BYTES + AVL_FIRST == offset as usize {
        Ok(slot)
    } else {
        Err(format!("AVL offset {offset} is not that of an item"))
    }
}

fn avl_offset(slot: usize) -> u16 {
    (AVL_FIRST + slot * ITEM_BYTES) as u16
}

/// The slots in the order of the AVL tree. Every node is visited exactly once and its parent link is right, which
/// bounds the walk whatever the links say.
fn walk_avl(items: &[BtreeItem], root: u16) -> Result<Vec<u16>, String> {
    let nr = items.len();
    let mut order = Vec::with_capacity(nr);
    let mut pushed = 0;
    // Slots whose left side has been entered but which have not been visited themselves.
    let mut open: Vec<u16> = Vec::with_capacity(16);
    let (mut offset, mut parent) = (root, 0u16);
    loop {
        while offset != 0 {
            let slot = slot_of(offset, nr)?;
            let node = &items[slot].node;
            if node.parent.get() != parent {
                return Err(format!("item {slot}: AVL parent {} instead of {parent}", node.parent));
            }
            pushed += 1;
            if pushed > nr {
                return Err("the AVL links form a loop".into());
            }
            open.push(slot as u16);
            (parent, offset) = (offset, node.left.get());
        }
        let Some(slot) = open.pop() else { break };
        order.push(slot);
        parent = avl_offset(slot as usize);
        offset = items[slot as usize].node.right.get();
    }
    if order.len() == nr { Ok(order) } else { Err(format!("the AVL tree links {} of {nr} items", order.len())) }
}

/// Keys ascend strictly and have no padding bits.
fn check_keys(items: &[BtreeItem], order: &[u16]) -> Result<(), String> {
    let mut last: Option<Key> = None;
    for slot in order {
        let stored = &items[*slot as usize].key;
        let key = stored.to_key();
        if stored.pad != [0; 5] {
            return Err(format!("item {slot}: bytes in the padding of key {key}"));
        }
        if last.is_some_and(|last| last >= key) {
            return Err(format!("item {slot}: key {key} is out of order"));
        }
        last = Some(key);
    }
    Ok(())
}

fn check_children(block: &[u8; BLOCK_BYTES], items: &[BtreeItem]) -> Result<(), String> {
    for (slot, item) in items.iter().enumerate() {
        let off = item.val_off.get() as usize;
        let child = to_ref(&block[off..off + REF_BYTES]);
        if !(2..=MAX_BLKNO).contains(&child.blkno.get()) {
            return Err(format!("item {slot}: child block {}", child.blkno));
        }
    }
    Ok(())
}

impl View {
    pub(super) fn total(&self) -> usize {
        self.total as usize
    }

    /// The items of the block that this view was made of.
    pub(crate) fn node<'a>(&'a self, block: &'a [u8; BLOCK_BYTES]) -> CleanNode<'a> {
        CleanNode { block, items: items_of(block, self.nr as usize), view: self }
    }
}

/// A checked block, read by rank.
#[derive(Clone, Copy)]
pub(crate) struct CleanNode<'a> {
    block: &'a [u8; BLOCK_BYTES],
    items: &'a [BtreeItem],
    view: &'a View,
}

impl<'a> CleanNode<'a> {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn level(&self) -> u8 {
        self.view.level
    }

    fn item(&self, rank: usize) -> &'a BtreeItem {
        let slot = if self.view.order.is_empty() { rank } else { self.view.order[rank] as usize };
        &self.items[slot]
    }

    pub(crate) fn key(&self, rank: usize) -> Key {
        self.item(rank).key.to_key()
    }

    /// Seq and flags.
    pub(super) fn version(&self, rank: usize) -> (u64, u8) {
        let item = self.item(rank);
        (item.seq.get(), item.flags)
    }

    /// Offset and length of the value in the block.
    pub(super) fn value_at(&self, rank: usize) -> (u16, u16) {
        let item = self.item(rank);
        match item.val_len.get() {
            0 => (0, 0),
            len => (item.val_off.get(), len),
        }
    }

    pub(crate) fn value(&self, rank: usize) -> &'a [u8] {
        let (off, len) = self.value_at(rank);
        &self.block[off as usize..off as usize + len as usize]
    }

    pub(super) fn total(&self) -> usize {
        self.view.total()
    }

    /// Rank of the key, or where it would be.
    pub(crate) fn search(&self, key: &Key) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = (low + high) / 2;
            match self.key(mid).cmp(key) {
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
                std::cmp::Ordering::Equal => return Ok(mid),
            }
        }
        Err(low)
    }
}

/// Writes everything behind the block header: items in key order, a balanced AVL tree, values packed against the end of
/// their area in the same order, the hash table, zeros elsewhere.
pub(super) fn encode(node: &mut Node, buf: &mut [u8; BLOCK_BYTES]) {
    let nr = node.len();
    let end = value_end(node.level);
    let array_end = ITEMS_AT + nr * ITEM_BYTES;
    let values_at = end - (node.total() - nr * ITEM_BYTES);
    let head = BtreeBlockHead {
        hdr: head_of(buf).hdr,
        item_root: (if nr == 0 { 0 } else { avl_offset(nr / 2) }).into(),
        nr_items: (nr as u16).into(),
        total_item_bytes: (node.total() as u16).into(),
        mid_free_len: ((values_at - array_end) as u16).into(),
        level: node.level,
        pad: [0; 7],
    };
    buf[..ITEMS_AT].copy_from_slice(head.as_bytes());
    buf[array_end..values_at].fill(0);
    let (front, values) = buf.split_at_mut(values_at);
    let items = <[BtreeItem]>::mut_from_bytes(&mut front[ITEMS_AT..array_end]).expect("a whole number of items");
    let mut at = 0;
    for (item, h) in items.iter_mut().zip(node.heads()) {
        let value = node.value_of(h);
        let padded = value.len().next_multiple_of(UNIT);
        item.key = h.key.to_stored();
        item.seq = h.seq.into();
        item.val_off = (if value.is_empty() { 0 } else { values_at + at } as u16).into();
        item.val_len = (value.len() as u16).into();
        item.flags = h.flags;
        item.pad = [0; 3];
        values[at..at + value.len()].copy_from_slice(value);
        values[at + value.len()..at + padded].fill(0);
        at += padded;
    }
    link_balanced(items, 0, nr, 0);
    if node.level == 0 {
        let table = Table::of(node, items);
        for (bytes, entry) in values[HASH_AT - values_at..].chunks_exact_mut(2).zip(&table.slots[..]) {
            let at = if *entry == 0 { 0 } else { (ITEMS_AT + (*entry as usize - 1) * ITEM_BYTES) as u16 };
            bytes.copy_from_slice(&at.to_le_bytes());
        }
        node.encoded(table);
    }
}

/// Links the sorted items `from..to` as a tree; gives offset and height of its root. Halving keeps the sizes of the two
/// sides within one, and so their heights.
fn link_balanced(items: &mut [BtreeItem], from: usize, to: usize, parent: u16) -> (u16, u8) {
    if from == to {
        return (0, 0);
    }
    let mid = (from + to) / 2;
    let own = avl_offset(mid);
    let (left, left_height) = link_balanced(items, from, mid, own);
    let (right, right_height) = link_balanced(items, mid + 1, to, own);
    let height = 1 + left_height.max(right_height);
    items[mid].node = AvlNode { parent: parent.into(), left: left.into(), right: right.into(), height, pad: [0; 1] };
    (own, height)
}

/// The hash table of a leaf: linear probing from the bucket that a key hashes to.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Slots, counted from 1; 0 is none.
    slots: Box<[u16; BUCKETS]>,
    used: usize,
}

impl Table {
    /// The table for what `node` holds, as `items`: the one of its last encoding with what has come since, if no key has gone. A
    /// leaf is mostly written again with a few items more, and hashing all of them is most of the work.
    fn of(node: &mut Node, items: &[BtreeItem]) -> Table {
        let old = node.table.take();
        if let Some(mut table) = old.and_then(|old| old.moved(node)) {
            for (slot, h) in node.heads().iter().enumerate().filter(|(_, h)| h.slot() == 0) {
                table.put(slot, leaf_hash_bucket(&items[slot].key));
                debug_assert!(h.key == items[slot].key.to_key());
            }
            return table;
        }
        let mut table = Table { slots: Box::new([0; BUCKETS]), used: 0 };
        let (eights, rest) = items.as_chunks::<8>();
        for (nr, eight) in eights.iter().enumerate() {
            let homes = leaf_hash_buckets(eight.each_ref().map(|item| &item.key));
            homes.into_iter().enumerate().for_each(|(i, home)| table.put(8 * nr + i, home));
        }
        for (i, item) in rest.iter().enumerate() {
            table.put(items.len() - rest.len() + i, leaf_hash_bucket(&item.key));
        }
        table
    }

    /// With the slots that its keys have now. `None` if a key has gone: others may have been put behind it.
    fn moved(mut self, node: &Node) -> Option<Table> {
        const SLOTS: usize = 2048;
        let mut now = [0u16; SLOTS];
        let mut left = 0;
        for (slot, h) in node.heads().iter().enumerate().filter(|(_, h)| h.slot() != 0) {
            now[h.slot() % SLOTS] = slot as u16 + 1;
            left += 1;
        }
        if left != self.used {
            return None;
        }
        self.slots.iter_mut().for_each(|slot| *slot = now[*slot as usize % SLOTS]);
        Some(self)
    }

    fn put(&mut self, slot: usize, home: usize) {
        let mut bucket = home;
        while self.slots[bucket] != 0 {
            bucket = if bucket + 1 == BUCKETS { 0 } else { bucket + 1 };
        }
        self.slots[bucket] = slot as u16 + 1;
        self.used += 1;
    }
}

/// What else the original relies on and we do not, as findings for a checker: the leaf hash table, and the heights and balance of the
/// AVL tree (not in blocks of volume creation, which are known to be wrong there and harmless, `spec/02 §3.14`). The block must
/// have passed [`View::decode`].
#[cfg(test)]
pub(super) fn verify(block: &[u8; BLOCK_BYTES]) -> Vec<String> {
    let head = head_of(block);
    let items = items_of(block, head.nr_items.get() as usize);
    let mut findings = Vec::new();
    if head.level == 0 {
        verify_table(block, items, &mut findings);
    }
    if head.hdr.seq.get() != CREATION_SEQ {
        verify_heights(items, head.item_root.get(), &mut findings);
    }
    findings
}

#[cfg(test)]
fn verify_table(block: &[u8; BLOCK_BYTES], items: &[BtreeItem], findings: &mut Vec<String>) {
    let entry = |bucket: usize| {
        let at = HASH_AT + 2 * bucket;
        u16::from_le_bytes([block[at], block[at + 1]]) as usize
    };
    let used = (0..BUCKETS).filter(|b| entry(*b) != 0).count();
    if used != items.len() {
        findings.push(format!("the hash table has {used} entries for {} items", items.len()));
    }
    for (slot, item) in items.iter().enumerate() {
        let home = leaf_hash_bucket(&item.key);
        let probe = (0..BUCKETS).map(|i| entry((home + i) % BUCKETS));
        let found = probe.take_while(|e| *e != 0).any(|e| e == ITEMS_AT + slot * ITEM_BYTES);
        if !found {
            findings.push(format!("key {} is not found in the hash table", item.key.to_key()));
        }
    }
}

/// Heights are recomputed children first: the in-order walk of [`walk_avl`] has proven the shape.
#[cfg(test)]
fn verify_heights(items: &[BtreeItem], root: u16, findings: &mut Vec<String>) {
    // Post-order with an explicit stack, for the tree may be a chain.
    let mut heights = vec![0u8; items.len()];
    let mut stack = vec![(root, false)];
    while let Some((offset, children_done)) = stack.pop() {
        let Ok(slot) = slot_of(offset, items.len()) else { continue };
        let node = &items[slot].node;
        if !children_done {
            stack.extend([(offset, true), (node.left.get(), false), (node.right.get(), false)]);
            continue;
        }
        let height = |o: u16| slot_of(o, items.len()).map_or(0, |s| heights[s]);
        let (left, right) = (height(node.left.get()), height(node.right.get()));
        heights[slot] = left.max(right).saturating_add(1);
        if node.height != heights[slot] || left.abs_diff(right) > 1 {
            findings.push(format!("item {slot}: AVL height {} over {left} and {right}", node.height));
        }
    }
}
