//! Incremental freeing.

use super::vectors::{key, load, num};
use super::*;
use crate::btree::free_blocks;

/// Frees with this budget until done: what was freed in each call and the key afterwards.
fn run(bed: &Bed, root: &BtreeRoot, budget: u64) -> Vec<(u64, Key)> {
    let mut at = Key::ZEROS;
    let mut calls = Vec::new();
    let mut gone = HashSet::new();
    while at != Key::ONES {
        let mut free = |b: MetaBlock| {
            assert!(gone.insert(b.0), "block {b} was freed twice");
            Ok(())
        };
        let before = at;
        let n = free_blocks(&mut free, &bed.reader(), root, &mut at, budget).unwrap();
        assert!(n <= budget && before < at);
        calls.push((n, at));
    }
    assert_eq!(gone, bed.source.live, "every block of the tree is freed");
    calls
}

fn tree(items: u64) -> (Bed, BtreeRoot) {
    let mut bed = Bed::new();
    let items: Vec<_> = (0..items).map(|id| (k(id), 0, 0, vec![1; 896])).collect();
    let root = bed.build(&items);
    bed.reopen();
    (bed, root)
}

/// The original frees 2122 of 2126 blocks of such a tree: level-1 blocks are never freed.
#[test]
fn defect_15_level_1_blocks_are_freed_with_their_last_child() {
    let v = load("btree-free-blocks.json");
    let by_level: u64 = v["blocks_by_level"].as_array().unwrap().iter().map(num).sum();
    assert!(v["runs"].as_array().unwrap().iter().all(|run| num(&run["total"]) < by_level));
    let (bed, root) = tree(70_000);
    assert_eq!(root.height, 3);
    for run_v in v["runs"].as_array().unwrap() {
        let calls = run(&bed, &root, num(&run_v["budget"]));
        assert_eq!(calls.last().unwrap().1, key(&run_v["calls"].as_array().unwrap().last().unwrap()[1]));
    }
    run(&bed, &root, 21);
}

#[test]
fn low_trees_are_freed_at_once() {
    for (items, height) in [(0, 0), (10, 1), (1000, 2)] {
        let (bed, root) = tree(items);
        assert_eq!(root.height, height);
        let calls = run(&bed, &root, 62);
        assert_eq!(calls.len(), 1);
    }
}

/// A leaf is not read, so damage in one does not matter; leaves freed before are not touched again.
#[test]
fn leaves_are_freed_unread() {
    let (bed, root) = tree(1000);
    for block in bed.look(&root).blocks.iter().filter(|b| b.level == 0) {
        bed.dev.write_at(block.block_ref.blkno.get() * BLOCK_BYTES as u64, &[0; 4096]).unwrap();
    }
    let store = BlockStore::new(bed.dev.clone(), FSID, 1 << 20);
    let mut n = 0;
    let mut at = Key::ZEROS;
    let mut free = |_| {
        n += 1;
        Ok(())
    };
    free_blocks(&mut free, &Reader::new(&store), &root, &mut at, 1000).unwrap();
    assert_eq!(n, bed.source.live.len());
}

#[test]
fn too_small_a_budget_is_refused() {
    let (bed, root) = tree(10);
    let mut at = Key::ZEROS;
    assert!(free_blocks(&mut |_| Ok(()), &bed.reader(), &root, &mut at, 20).is_err());
}
