//! Lists of blocks and the pair of a transaction.

use super::*;
use crate::block::BlockSource;
use crate::device::{Fault, FaultDevice, FaultOps};
use crate::error::Errno;
use crate::format::MetaBlock;
use crate::format::layout::BlockRef;

fn entries(v: &Value) -> Vec<u64> {
    nums(&v["blknos"])
}

fn sorted(mut v: Vec<u64>) -> Vec<u64> {
    v.sort_unstable();
    v
}

/// Compares a list with the vector's picture of it: the same blocks with the same entries, in any order.
fn same_list(w: &World, head: &AllocListHead, want: &Value) {
    let want: Vec<(u64, Vec<u64>)> =
        want.as_array().unwrap().iter().map(|b| (num(&b["blkno"]), sorted(entries(b)))).collect();
    let got: Vec<(u64, Vec<u64>)> = w.blocks(head).into_iter().map(|(b, e)| (b, sorted(e))).collect();
    assert_eq!(got, want);
}

#[test]
fn transactions_over_a_pair_match_the_vectors() {
    let v = vector("alloc-meta-lists");
    let mut w = World::new(300_000);
    let first = &v["initial"]["avail"][0];
    let avail = w.write_list(num(&first["blkno"]), entries(first), None);
    w.alloc = MetaAlloc::new(w.store.clone(), avail, empty_head());
    for txn in ["txn1", "txn2"] {
        for op in v[txn]["ops"].as_array().unwrap() {
            let blkno = num(&op[1]);
            match op[0].as_str().unwrap() {
                "alloc" => assert_eq!(w.alloc.alloc().unwrap(), MetaBlock(blkno)),
                _ => w.alloc.free(MetaBlock(blkno)).unwrap(),
            }
        }
        let (avail, freed) = w.commit();
        same_list(&w, &avail, &v[txn]["avail"]);
        same_list(&w, &freed, &v[txn]["freed"]);
    }
}

#[test]
fn rotation_matches_the_vectors() {
    for row in vector("alloc-meta-lists")["rotation"].as_array().unwrap() {
        let mut w = World::new(300_000);
        let after = &row["after_free_of_42"];
        // The entry that appears first in a rotated block is the old avail block; else any number will do.
        let nr = num(&row["freed_first_nr"]);
        let freed = w.write_list(400, (50_000..50_000 + nr).collect(), None);
        let avail = w.write_list(401, vec![1001, 1002, 1003, 1004, 1005], None);
        w.alloc = MetaAlloc::new(w.store.clone(), avail, freed);
        let room = |w: &World| [w.alloc.avail_remaining(), w.alloc.freed_remaining()].to_vec();
        assert_eq!(room(&w), nums(&row["clean_remaining"]));
        w.alloc.free(MetaBlock(42)).unwrap();
        assert_eq!(room(&w), nums(&after["remaining"]));
        let (avail, freed) = w.commit();
        for (head, want) in [(avail, &after["avail"]), (freed, &after["freed"])] {
            assert_eq!(head.block_ref.blkno.get(), num(&want["blkno"]));
            assert_eq!(head.total_nr.get(), num(&want["total_nr"]));
            assert_eq!(u64::from(head.first_nr.get()), num(&want["first_nr"]));
        }
        assert_eq!(w.blocks(&freed).len(), after["freed_blocks"].as_array().unwrap().len());
    }
}

#[test]
fn splice_matches_the_vectors() {
    let v = &vector("alloc-meta-lists")["splice"];
    let mut w = World::new(300_000);
    let head = w.write_list(402, (200_000..200_010).collect(), None);
    w.alloc = MetaAlloc::new(w.store.clone(), head, empty_head());
    let mut src = w.write_list(350, entries(&v["src"][0]), None);
    let mut dst = w.write_list(351, entries(&v["dst"][0]), None);
    list::splice(&mut w.cow(), &mut dst, &mut src).unwrap();
    assert_eq!(dst.block_ref.blkno.get(), num(&v["result_dst"]["blkno"]));
    assert_eq!([dst.total_nr.get(), dst.first_nr.get().into()], [5, 2]);
    assert_eq!(src, empty_head());
    same_list(&w, &dst, &v["result_blocks"]);
    w.commit();
    same_list(&w, &dst, &v["result_blocks"]);
}

#[test]
fn splice_of_chains_keeps_every_entry() {
    let mut w = World::ready(300_000);
    let tail = w.write_list(10, vec![31, 32], None);
    let mid = w.write_list(11, vec![], Some(tail.block_ref));
    let mut src = w.write_list(12, vec![33], Some(mid.block_ref));
    src.total_nr = 3.into();
    let mut dst = empty_head();
    list::splice(&mut w.cow(), &mut dst, &mut src).unwrap();
    assert_eq!(w.blocks(&dst).len(), 3);
    assert_eq!(w.dirty.len(), 0, "an empty list takes the other one as it is");
    let mut more = w.write_list(13, vec![41, 42], None);
    std::mem::swap(&mut dst, &mut more);
    list::splice(&mut w.cow(), &mut dst, &mut more).unwrap();
    let all: Vec<u64> = w.blocks(&dst).into_iter().flat_map(|(_, e)| e).collect();
    assert_eq!(sorted(all), [31, 32, 33, 41, 42]);
    assert_eq!(dst.total_nr.get(), 5);
}

#[test]
fn server_commits_match_the_vectors() {
    let v = vector("alloc-server-commits");
    let mut w = World::new(300_000);
    let bounds = Bounds::meta(300_000);
    // The two single leaves of the free extent trees, at the numbers that the vector tells.
    let setup = w.write_list(402, (200_000..200_010).collect(), None);
    w.alloc = MetaAlloc::new(w.store.clone(), setup, empty_head());
    let mut roots = [empty_root(), empty_root()];
    for (root, start) in roots.iter_mut().zip([20_000, 60_000]) {
        extents::insert(&mut w.cow(), root, bounds, start, 30_000).unwrap();
    }
    w.commit();
    let first = w.write_list(2000, (3000..4024).collect(), None);
    let (mut avails, mut freeds) = ([first, empty_head()], [empty_head(), empty_head()]);
    for commit in v["commits"].as_array().unwrap() {
        let active = num(&commit["active"]) as usize;
        let idle = 1 - active;
        w.alloc = MetaAlloc::new(w.store.clone(), avails[active], freeds[active]);
        for _ in nums(&commit["allocs"]) {
            w.alloc.alloc().unwrap();
        }
        for blkno in nums(&commit["frees"]) {
            w.alloc.free(MetaBlock(blkno)).unwrap();
        }
        let [avail_root, freed_root] = &mut roots;
        let mut cow = Cow { store: &w.store, dirty: &mut w.dirty, alloc: &mut w.alloc };
        list::fill(&mut cow, &mut avails[idle], avail_root, bounds, 4092, 8185).unwrap();
        assert_eq!(list::empty(&mut cow, &mut freeds[idle], freed_root, None, bounds).unwrap(), 0);
        (avails[active], freeds[active]) = w.commit();
        // Numbers taken and given back in one commit stay in avail here, in the original they go to freed and make their way
        // through the roots. So single counts may differ by those few; what there is in all may not.
        let ours: Vec<u64> = avails.iter().chain(&freeds).map(|h| h.total_nr.get()).collect();
        let of = |name: &str| commit[name].as_array().unwrap().iter().map(|h| num(&h["total_nr"])).collect::<Vec<_>>();
        let theirs = [of("server_meta_avail"), of("server_meta_freed")].concat();
        assert_eq!(
            ours.iter().sum::<u64>() + roots[0].total_len.get() + roots[1].total_len.get(),
            theirs.iter().sum::<u64>()
                + num(&commit["avail_root"]["total_len"])
                + num(&commit["freed_root"]["total_len"]),
            "{commit}"
        );
        assert!(ours.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 8), "{ours:?} {theirs:?}");
        for (head, root) in freeds.iter().zip(&roots) {
            w.blocks(head);
            w.extents(root, bounds);
        }
    }
}

/// Asking again after a failed write gives the same lists; the original loses two entries each time.
#[test]
fn defect_7_repeated_finish_loses_nothing() {
    let mem = MemDevice::new(20_000 * 65536);
    let fault = FaultDevice::new(mem);
    let store = BlockStore::new(fault.clone(), 7, 1 << 20);
    let mut w = World { store, dirty: DirtySet::new(), alloc: World::new(4).alloc };
    let head = w.write_list(500, (1000..1100).collect(), None);
    w.alloc = MetaAlloc::new(w.store.clone(), head, empty_head());
    let b = w.alloc.alloc().unwrap();
    w.alloc.free(MetaBlock(900)).unwrap();
    let heads = w.alloc.finish(&mut w.dirty).unwrap();
    fault.fail_nth(FaultOps::WRITES, 0, Fault::Forever);
    assert!(w.dirty.write_out(&w.store).is_err());
    assert_eq!(w.alloc.finish(&mut w.dirty).unwrap(), heads);
    fault.heal();
    w.dirty.write_out(&w.store).unwrap();
    assert_eq!((heads.0.total_nr.get(), heads.1.total_nr.get()), (97, 2));
    assert_eq!(b, MetaBlock(1002));
    assert!(w.alloc.alloc().is_err(), "nothing is allocated after the lists are finished");
}

/// An error while the pair is opened leaves it as it was.
#[test]
fn defect_7_failed_opening_changes_nothing() {
    let mut w = World::new(20_000);
    let avail = w.write_list(500, (1000..1100).collect(), None);
    let mut freed = w.write_list(501, (2000..9000).collect(), None);
    freed.block_ref.seq = 5.into();
    freed.first_nr = 10.into();
    w.alloc = MetaAlloc::new(w.store.clone(), avail, freed);
    assert!(matches!(w.alloc.alloc(), Err(crate::Error::Corrupt { .. })));
    assert_eq!(w.alloc.finish(&mut w.dirty).unwrap(), (avail, freed));
    assert_eq!(w.dirty.len(), 0);
}

/// The rotation that opening will do counts as room in every gate, also in the "low" test.
#[test]
fn defect_10_full_clean_freed_head_is_not_low() {
    let mut w = World::new(20_000);
    let avail = w.write_list(500, (1000..2000).collect(), None);
    let freed = w.write_list(501, (2000..2000 + 8185).collect(), None);
    w.alloc = MetaAlloc::new(w.store.clone(), avail, freed);
    assert_eq!(w.alloc.freed_remaining(), 8183);
    assert!(!w.alloc.low(500));
    let before = w.alloc.snapshot();
    w.alloc.free(MetaBlock(700)).unwrap();
    assert!(!w.alloc.low_since(&before, 3, 0) && w.alloc.low_since(&before, 3, 2));
}

#[test]
fn numbers_given_back_in_the_same_transaction_are_used_again() {
    let mut w = World::ready(20_000);
    let b = w.alloc.alloc().unwrap();
    let room = w.alloc.room();
    w.alloc.free(b).unwrap();
    assert_eq!(w.alloc.room(), (room.0 + 1, room.1));
    assert_eq!(w.alloc.alloc().unwrap(), b);
    w.alloc.cancel(b);
    assert_eq!(w.alloc.room(), (room.0 + 1, room.1));
    w.alloc.free(MetaBlock(9500)).unwrap();
    assert_eq!(w.alloc.room(), (room.0 + 1, room.1 - 1));
}

#[test]
fn draining_leaves_out_double_frees() {
    let mut w = World::ready(20_000);
    let bounds = Bounds::meta(20_000);
    let mut root = empty_root();
    extents::insert(&mut w.cow(), &mut root, bounds, 9500, 10).unwrap();
    let mut head = w.write_list(501, vec![9600, 9505, 9601, 9600, 9400], None);
    assert_eq!(list::empty(&mut w.cow(), &mut head, &mut root, None, bounds).unwrap(), 2);
    assert_eq!(w.extents(&root, bounds), [[9400, 1], [9500, 10], [9600, 2]]);
    assert_eq!(head, empty_head());
}

#[test]
fn draining_leaves_out_what_is_free_in_the_tree_beside() {
    let mut w = World::ready(20_000);
    let bounds = Bounds::meta(20_000);
    let (mut root, mut beside) = (empty_root(), empty_root());
    extents::insert(&mut w.cow(), &mut root, bounds, 9500, 10).unwrap();
    extents::insert(&mut w.cow(), &mut beside, bounds, 9508, 10).unwrap();
    let mut head = w.write_list(501, (9506..9522).collect(), None);
    assert_eq!(list::empty(&mut w.cow(), &mut head, &mut root, Some(&beside), bounds).unwrap(), 12);
    assert_eq!(w.extents(&root, bounds), [[9500, 10], [9518, 4]]);
    assert_eq!(w.extents(&beside, bounds), [[9508, 10]]);
}

#[test]
fn absorbed_entries_share_a_block_while_there_is_room() {
    let mut w = World::ready(300_000);
    let mut dst = empty_head();
    let mut want = Vec::new();
    for (i, len) in [3u64, 1, 5, 900, 2000, 5000].into_iter().enumerate() {
        let first = 20_000 + 6000 * i as u64;
        let mut src = w.write_list(400 + i as u64, (first..first + len).collect(), None);
        want.extend(first..first + len);
        list::absorb(&mut w.cow(), &mut dst, &mut src).unwrap();
        assert_eq!(src, empty_head());
        let blocks = w.blocks(&dst);
        assert_eq!(blocks.len(), if i < 5 { 1 } else { 2 }, "{i}");
        let all: Vec<u64> = blocks.into_iter().flat_map(|(_, e)| e).collect();
        assert_eq!((all.len() as u64, sorted(all)), (dst.total_nr.get(), want.clone()));
    }
}

#[test]
fn filling_a_dry_list_keeps_what_there_was() {
    let mut w = World::ready(20_000);
    let bounds = Bounds::meta(20_000);
    let mut root = empty_root();
    extents::insert(&mut w.cow(), &mut root, bounds, 9500, 10).unwrap();
    let mut head = empty_head();
    let r = list::fill(&mut w.cow(), &mut head, &mut root, bounds, 50, 100);
    assert!(r.is_err_and(|e| e.is(Errno::ENOSPC)));
    assert_eq!((head.first_nr.get(), head.total_nr.get(), root.total_len.get()), (10, 10, 0));
    assert_eq!(
        w.blocks(&head).into_iter().flat_map(|(_, e)| sorted(e)).collect::<Vec<_>>(),
        (9500..9510).collect::<Vec<_>>()
    );
}

#[test]
fn damaged_lists_are_errors() {
    let mut w = World::new(20_000);
    let good = w.write_list(500, vec![1000, 1001, 1002], None);
    let wild = w.write_list(501, vec![1000, 20_000], None);
    let selfish = BlockRef { blkno: 502.into(), seq: 9.into() };
    let mut dirty = DirtySet::new();
    dirty.insert(selfish, list::ListBlock { next: Some(selfish), blknos: Default::default() });
    dirty.write_out(&w.store).unwrap();
    let cyclic = AllocListHead { block_ref: selfish, ..empty_head() };
    let mut miscounted = good;
    miscounted.first_nr = 2.into();
    let mut long = good;
    long.total_nr = 4.into();
    let mut stale = good;
    stale.block_ref.seq = 1.into();
    let nowhere = AllocListHead { total_nr: 1.into(), first_nr: 1.into(), ..empty_head() };
    for head in [wild, cyclic, miscounted, long, stale, nowhere] {
        let r = list::walk(&w.reader(), &head, &mut |_| Ok(()));
        assert!(matches!(r, Err(crate::Error::Corrupt { .. })), "{head:?}");
    }
    assert!(list::check_head("a head", &good).is_ok() && list::check_head("a head", &nowhere).is_err());
}
