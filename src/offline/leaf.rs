//! The leaf of a new tree that has exactly two items.
//!
//! The image is that of the original bit for bit when asked: its tool leaves the in-block tree degenerate, the second
//! item as root with height 0 (`spec/01 §18.4`). Otherwise the height is right.

use zerocopy::{FromZeros, IntoBytes};

use crate::format::consts::*;
use crate::format::layout::{AvlNode, BtreeBlockHead, BtreeItem};
use crate::format::{Key, leaf_hash_bucket, seal_block};

/// One item of the leaf.
pub(super) struct LeafItem<'a> {
    pub(super) key: Key,
    pub(super) value: &'a [u8],
}

/// Offset of an item's node as links store it: from byte 32 of the block.
fn node_offset(slot: usize) -> u16 {
    (BTREE_HEAD_BYTES - 32 + slot * BTREE_ITEM_BYTES) as u16
}

/// Builds the block with its two items, given in key order.
pub(super) fn two_item_leaf(fsid: u64, blkno: u64, items: [LeafItem<'_>; 2], as_original: bool) -> Vec<u8> {
    debug_assert!(items[0].key < items[1].key);
    let mut block = vec![0; BLOCK_BYTES];
    let mut value_end = BTREE_LEAF_END;
    let mut item_bytes = 0;
    for (slot, item) in items.iter().enumerate() {
        let len = item.value.len();
        let padded = len.next_multiple_of(BTREE_VALUE_ALIGN);
        let mut stored = BtreeItem::new_zeroed();
        stored.node = match slot {
            0 => AvlNode { parent: node_offset(1).into(), height: 1, ..AvlNode::new_zeroed() },
            _ => AvlNode {
                left: node_offset(0).into(),
                height: if as_original { 0 } else { 2 },
                ..AvlNode::new_zeroed()
            },
        };
        stored.key = item.key.to_stored();
        stored.seq.set(1);
        if len > 0 {
            value_end -= padded;
            block[value_end..value_end + len].copy_from_slice(item.value);
            stored.val_off.set(value_end as u16);
            stored.val_len.set(len as u16);
        }
        let at = BTREE_HEAD_BYTES + slot * BTREE_ITEM_BYTES;
        block[at..at + BTREE_ITEM_BYTES].copy_from_slice(stored.as_bytes());
        item_bytes += BTREE_ITEM_BYTES + padded;
        put_in_hash_table(&mut block, leaf_hash_bucket(&stored.key), at as u16);
    }
    let mut head = BtreeBlockHead::new_zeroed();
    head.hdr.magic.set(MAGIC_BTREE);
    head.hdr.fsid.set(fsid);
    head.hdr.seq.set(1);
    head.hdr.blkno.set(blkno);
    head.item_root.set(node_offset(1));
    head.nr_items.set(2);
    head.total_item_bytes.set(item_bytes as u16);
    head.mid_free_len.set((value_end - BTREE_HEAD_BYTES - 2 * BTREE_ITEM_BYTES) as u16);
    block[..BTREE_HEAD_BYTES].copy_from_slice(head.as_bytes());
    seal_block(&mut block);
    block
}

fn put_in_hash_table(block: &mut [u8], home: usize, item: u16) {
    let table = &mut block[BTREE_LEAF_END..];
    let free = (0..BTREE_HASH_BUCKETS)
        .map(|i| (home + i) % BTREE_HASH_BUCKETS * 2)
        .find(|at| table[*at..at + 2] == [0, 0])
        .expect("two items do not fill the table");
    table[free..free + 2].copy_from_slice(&item.to_le_bytes());
}
