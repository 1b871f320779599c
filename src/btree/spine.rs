//! Level-1 blocks as units of work: finding them, handing them out, splicing them back (`spec/02 §3.9`, `spec/03 §11`).

use super::read::{Reader, check_root, walk};
use super::write::{Prepare, descend, node};
use crate::block::Cow;
use crate::error::{Errno, Result, fail};
use crate::format::layout::BtreeRoot;
use crate::format::{Key, KeyRange};

/// The range of keys below the level-1 block that covers `key`; everything if the height is at most 2.
pub(crate) fn parent_range(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<KeyRange> {
    check_root(root)?;
    if root.height <= 2 {
        return Ok(KeyRange::ALL);
    }
    Ok(walk(reader, root, key, 1)?.map_or(KeyRange::ALL, |w| w.range))
}

/// A root (height 2) of the level-1 block that covers `key`; the whole tree if the height is at most 2.
pub(crate) fn get_parent(reader: &Reader, root: &BtreeRoot, key: &Key) -> Result<BtreeRoot> {
    check_root(root)?;
    if root.height <= 2 {
        return Ok(*root);
    }
    Ok(walk(reader, root, key, 1)?.map_or(*root, |w| BtreeRoot { block_ref: w.block_ref, height: 2, pad: [0; 7] }))
}

/// Replaces the level-1 block that covers `key` by `new`; EINVAL if `new` has not height 2, unless the whole tree is replaced.
/// Neither the old nor the new blocks are accounted for.
pub(crate) fn set_parent(cow: &mut Cow, root: &mut BtreeRoot, key: &Key, new: &BtreeRoot) -> Result<()> {
    check_root(root)?;
    check_root(new)?;
    if root.height <= 2 {
        *root = *new;
        return Ok(());
    }
    if new.height != 2 {
        return fail(Errno::EINVAL);
    }
    let place = descend(cow, root, key, 2, Prepare::NOTHING)?;
    let above = node(cow, &place.r)?;
    let rank = above.search(key).unwrap_or_else(|rank| rank);
    if rank == above.len() {
        let what = format!("btree block {}", place.r.blkno);
        return Err(crate::Error::corrupt(what, format!("no child covers key {key}")));
    }
    above.set_child(rank, &new.block_ref);
    Ok(())
}

/// A tree of height 3 whose level-1 blocks end at the given keys. They, and the first leaf of each, are full enough to be
/// left alone by rebalancing; the other leaves do not exist.
#[cfg(test)]
pub(crate) fn parents_only(cow: &mut Cow, ends: &[Key]) -> Result<BtreeRoot> {
    use super::node::Node;
    use crate::format::layout::BlockRef;

    let null = BlockRef { blkno: 0.into(), seq: 0.into() };
    let mut top = null;
    for end in ends {
        let mut key = *end;
        let mut children = Vec::new();
        for i in 0..300u64 {
            children.push((key, BlockRef { blkno: (2 + i).into(), seq: 1.into() }));
            key = key.prev();
        }
        let (mut key, mut first) = (key.next(), null);
        let leaf = cow.content_mut::<Node>(&mut first)?;
        for _ in 0..30 {
            leaf.insert(0, key, 1, 0, &[0; super::MAX_VALUE_BYTES]);
            key = key.prev();
        }
        children.last_mut().expect("there are 300").1 = first;

        let mut parent = null;
        let block = cow.content_mut::<Node>(&mut parent)?;
        block.level = 1;
        for (key, child) in children {
            block.insert_child(0, key, &child);
        }
        let root = cow.content_mut::<Node>(&mut top)?;
        root.level = 2;
        root.insert_child(root.len(), *end, &parent);
    }
    Ok(BtreeRoot { block_ref: top, height: 3, pad: [0; 7] })
}
