//! Checks of roots, lists, extents, super blocks.

use zerocopy::{FromZeros, IntoBytes};

use super::super::check::*;
use super::super::consts::*;
use super::super::keys;
use super::super::layout::*;
use super::*;
use crate::Errno;

fn a_ref(blkno: u64) -> BlockRef {
    BlockRef { blkno: blkno.into(), seq: 1.into() }
}

fn a_root(blkno: u64, height: u8) -> BtreeRoot {
    BtreeRoot { block_ref: a_ref(blkno), height, pad: [0; 7] }
}

#[test]
fn roots_outside_the_device_or_of_impossible_height_are_refused() {
    let ok = |blkno, height| validate_root(&a_root(blkno, height), "test", 100).is_ok();
    assert!(ok(0, 0) && ok(2, 1) && ok(99, 20));
    assert!(!ok(0, 1) && !ok(2, 0) && !ok(1, 1) && !ok(100, 1) && !ok(2, 21) && !ok(u64::MAX, 1));
}

#[test]
fn impossible_list_heads_and_blocks_are_refused() {
    let head = |blkno: u64, total: u64, first: u32| {
        let h =
            AllocListHead { block_ref: a_ref(blkno), total_nr: total.into(), first_nr: first.into(), flags: 0.into() };
        validate_list_head(&h, "test", 10_000).is_ok()
    };
    assert!(head(0, 0, 0) && head(5, 0, 0) && head(5, 9000, 815));
    assert!(!head(0, 1, 1) && !head(5, 1, 2) && !head(5, 9000, 8186) && !head(5, 10_001, 1) && !head(10_000, 1, 1));

    let mut block = vec![0; BLOCK_BYTES];
    let set = |block: &mut Vec<u8>, start: u32, nr: u32| {
        block[48..52].copy_from_slice(&start.to_le_bytes());
        block[52..56].copy_from_slice(&nr.to_le_bytes());
    };
    set(&mut block, 3, 2);
    block[56 + 24..56 + 32].copy_from_slice(&7u64.to_le_bytes());
    block[56 + 32..56 + 40].copy_from_slice(&9u64.to_le_bytes());
    let (next, entries) = decode_list_block(&block, 4, 100).unwrap();
    assert_eq!((next.blkno.get(), entries), (0, vec![MetaBlock(7), MetaBlock(9)]));
    assert!(decode_list_block(&block, 4, 9).is_err(), "an entry past the device");
    for (start, nr) in [(8185, 0), (8184, 2), (0, 8186), (u32::MAX, 2), (2, u32::MAX)] {
        set(&mut block, start, nr);
        assert!(decode_list_block(&block, 4, 100).is_err(), "{nr} from {start}");
    }
    assert!(decode_list_block(&block[..50], 4, 100).is_err());
}

#[test]
fn impossible_extents_are_refused() {
    let free = |last, len| validate_free_extent(&keys::free_by_blkno(last, len), &[], 64..1000).ok();
    assert_eq!(free(99, 10), Some(FreeExtent { start: 90, len: 10 }));
    assert_eq!(free(999, 936), Some(FreeExtent { start: 64, len: 936 }));
    for (last, len) in [(99, 0), (99, 100), (99, 101), (1000, 1), (999, 937), (u64::MAX, u64::MAX)] {
        assert_eq!(free(last, len), None, "{len} to {last}");
    }
    let mut k = keys::free_by_order(99, 10);
    assert!(validate_free_extent(&k, &[], 64..1000).is_ok());
    k.first -= 1;
    assert!(validate_free_extent(&k, &[], 64..1000).is_err(), "wrong size class");
    assert!(validate_free_extent(&keys::free_by_blkno(99, 10), &[0], 64..1000).is_err());

    let data = |last, len, blkno: u64, flags| {
        let val = DataExtentVal { blkno: blkno.into(), flags, pad: [0; 7] };
        validate_extent(&keys::extent(Ino(9), last, len), val.as_bytes(), 1000).ok()
    };
    let e = data(9, 10, 64, 0).unwrap();
    assert_eq!((e.start, e.len, e.map, e.last()), (0, 10, Some(DataBlock(64)), 9));
    assert_eq!(e.encode(Ino(9)).0, keys::extent(Ino(9), 9, 10));
    assert!(data(9, 10, 990, 3).is_some() && data(9, 10, 0, EXTENT_OFFLINE).is_some());
    assert!(data(9, 10, 991, 0).is_none() && data(9, 10, 63, 0).is_none() && data(9, 10, u64::MAX, 0).is_none());
    assert!(data(9, 0, 0, 1).is_none() && data(9, 11, 0, 1).is_none() && data(1 << 52, 1, 0, 1).is_none());
    assert!(data(9, 10, 64, 4).is_none());
}

fn good_super() -> SuperBlock {
    let mut sb = SuperBlock::new_zeroed();
    sb.hdr.magic.set(MAGIC_SUPER);
    sb.hdr.blkno.set(SUPER_BLKNO);
    sb.fmt_vers.set(2);
    sb.flags.set(SUPER_FLAG_META);
    sb.total_meta_blocks.set(2000);
    sb.total_data_blocks.set(5000);
    sb.fs_root = a_root(2, 1);
    sb
}

#[test]
fn impossible_super_blocks_are_refused() {
    let (meta_bytes, data_bytes) = (2000 * 65536, 5000 * 4096);
    let check = |change: fn(&mut SuperBlock)| {
        let mut sb = good_super();
        change(&mut sb);
        validate_super(&sb, DeviceRole::Meta, meta_bytes)
    };
    check(|_| {}).unwrap();
    let bad: [fn(&mut SuperBlock); 12] = [
        |sb| sb.fmt_vers.set(0),
        |sb| sb.fmt_vers.set(3),
        |sb| sb.flags.set(0),
        |sb| sb.total_meta_blocks.set(2001),
        |sb| sb.total_meta_blocks.set(2),
        |sb| sb.total_data_blocks.set(1 << 52),
        |sb| sb.total_data_blocks.set(64),
        |sb| sb.fs_root.height = 0,
        |sb| sb.logs_root = a_root(2000, 1),
        |sb| sb.meta_alloc[1].total_len.set(1),
        |sb| sb.data_alloc.total_len.set(5001),
        |sb| sb.server_meta_freed[1].total_nr.set(1),
    ];
    for (i, change) in bad.into_iter().enumerate() {
        assert_eq!(check(change).unwrap_err().errno(), Errno::EINVAL, "change {i}");
    }
    let mut data = good_super();
    data.flags.set(0);
    data.logs_root = a_root(u64::MAX, 99);
    validate_super(&data, DeviceRole::Data, data_bytes).expect("stale roots of the data device do not matter");
    assert!(validate_super(&data, DeviceRole::Data, data_bytes - 1).is_err());
    assert!(validate_super(&good_super(), DeviceRole::Data, data_bytes).is_err(), "swapped devices");
    validate_super_pair(&good_super(), &data).unwrap();
    data.uuid[3] ^= 1;
    assert!(validate_super_pair(&good_super(), &data).is_err());
}

#[test]
fn defect_49_different_versions_of_the_two_super_blocks_are_refused() {
    let mut data = good_super();
    data.fmt_vers.set(1);
    assert_eq!(validate_super_pair(&good_super(), &data).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn a_super_block_is_recognised_by_checksum_magic_and_place() {
    let mut block = vec![0; SMALL_BYTES];
    block[..size_of::<SuperBlock>()].copy_from_slice(good_super().as_bytes());
    seal_block(&mut block);
    assert_eq!(decode_super(&block, "test").unwrap().fmt_vers.get(), 2);
    for at in [0, 5, 24, 4095] {
        let mut bad = block.clone();
        bad[at] ^= 1;
        assert_eq!(decode_super(&bad, "test").unwrap_err().errno(), Errno::EIO, "byte {at}");
        seal_block(&mut bad);
        assert_eq!(decode_super(&bad, "test").is_ok(), at == 0 || at == 4095, "byte {at}, summed again");
    }
    assert!(decode_super(&block[..100], "test").is_err());
    assert!(decode_super(&[], "test").is_err());
}

#[test]
fn log_trees_are_checked() {
    let mut lt = LogTrees::new_zeroed();
    lt.rid.set(7);
    lt.nr.set(1);
    lt.get_trans_seq.set(5);
    let k = keys::log_trees(Rid(7), 1);
    assert!(validate_log_trees(Some(&k), lt.as_bytes(), 100).is_ok());
    assert!(validate_log_trees(None, lt.as_bytes(), 100).is_ok());
    assert!(validate_log_trees(Some(&keys::log_trees(Rid(7), 2)), lt.as_bytes(), 100).is_err());
    assert!(validate_log_trees(None, &lt.as_bytes()[1..], 100).is_err());
    lt.commit_trans_seq.set(6);
    assert!(validate_log_trees(None, lt.as_bytes(), 100).is_err());
}

#[test]
fn checks_never_panic_on_noise() {
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    for len in [0, 16, 40, 48, 56, 64, 168, 208, 472, 584, 4096] {
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..len).map(|_| if byte() < 128 { 0 } else { byte() }).collect();
            let _ = decode_super(&bytes, "noise");
            let _ = validate_log_trees(None, &bytes, 1000);
            let _ = validate_srch_compact(&bytes, 1000);
            let _ = validate_merge_request(&bytes, 1000);
            let _ = validate_merge_complete(&bytes, 1000);
            let _ = validate_merge_range(&bytes);
            let _ = validate_merge_status(&bytes);
            let _ = validate_merge_freeing(&bytes, 1000);
            let _ = validate_mounted_client(&bytes);
            let _ = validate_quorum_block(&bytes, 0, 3);
            let _ = decode_list_block(&bytes, 4, 1000);
            let _ = validate_inode(Ino(3), &bytes, 2);
            let _ = validate_dirent(&keys::readdir(Ino(1), 2), &bytes);
            let _ = validate_extent(&keys::extent(Ino(1), 2, 1), &bytes, 1000);
        }
    }
}
