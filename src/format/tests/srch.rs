//! Coding of search entries, search blocks, the radix tree.

use proptest::prelude::*;
use zerocopy::FromZeros;

use super::super::consts::*;
use super::super::layout::SrchFile;
use super::super::srch::*;
use super::*;

fn entry(v: &Value) -> Entry {
    Entry { hash: hexnum(&v["hash"]), ino: num(&v["ino"]), id: num(&v["id"]) }
}

#[test]
fn entries_are_coded_as_in_the_original() {
    for case in list(&vectors("format-srch")["encode"]) {
        let (mut prev, mut coded) = (Entry::default(), Vec::new());
        for v in list(&case["entries"]) {
            let e = entry(v);
            assert_eq!(encode_entry(&mut coded, &prev, &e) as u64, num(&v["bytes"]), "{v}");
            prev = e;
        }
        assert_eq!(coded, hex(&case["encoded"]), "{case}");
        let (mut at, mut prev) = (0, Entry::default());
        for v in list(&case["entries"]) {
            let (e, len) = decode_entry(&coded[at..], &prev).unwrap();
            assert_eq!(e, entry(v));
            (at, prev) = (at + len, e);
        }
        assert_eq!(at, coded.len());
    }
}

#[test]
fn odd_codes_are_read_as_the_original_reads_them() {
    for v in list(&vectors("format-srch")["decode"]) {
        let three = |v: &Value| Entry { hash: num(&v[0]), ino: num(&v[1]), id: num(&v[2]) };
        let (e, len) = decode_entry(&hex(&v["input"]), &three(&v["prev"])).unwrap();
        assert_eq!((e, len as u64), (three(&v["out"]), num(&v["consumed"])), "{v}");
    }
}

#[test]
fn a_log_block_is_laid_out_as_in_the_original() {
    let doc = vectors("format-srch");
    let sample = &doc["sample_log_block"];
    let block = sparse(&sample["size"], &sample["sparse"]);
    assert!(block_crc_matches(&block));
    let case = &doc["encode"][num(&sample["entries_from_encode_case"]) as usize];
    let want: Vec<Entry> = list(&case["entries"]).iter().map(entry).collect();
    let read: Vec<Entry> = Entries::new(&block, 1).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(read, want);

    let mut builder = BlockBuilder::new();
    for e in want {
        assert!(builder.push(e));
    }
    let mut ours: Box<[u8; BLOCK_BYTES]> = vec![0; BLOCK_BYTES].try_into().unwrap();
    ours[..32].copy_from_slice(&block[..32]);
    builder.encode(&mut ours);
    assert!(ours[..] == block[..]);

    let mut resumed: Box<[u8; BLOCK_BYTES]> = vec![0; BLOCK_BYTES].try_into().unwrap();
    resumed[..32].copy_from_slice(&block[..32]);
    BlockBuilder::resume(&block, 1).unwrap().encode(&mut resumed);
    assert!(resumed[..] == block[..]);
}

#[test]
fn the_radix_tree_has_the_indexes_of_the_original() {
    for v in list(&vectors("format-srch")["file_tree"]) {
        let blk = num(&v["blk"]);
        let height = height_for(blk);
        assert_eq!(u64::from(height), num(&v["min_height"]), "{v}");
        let path: Vec<u64> = (1..height).rev().map(|level| parent_index(level, blk) as u64).collect();
        assert_eq!(path, list(&v["ref_index_from_root"]).iter().map(num).collect::<Vec<_>>(), "{v}");
    }
    assert!(height_for(u64::MAX) > SRCH_MAX_HEIGHT);
}

#[test]
fn damaged_search_blocks_are_refused() {
    let mut builder = BlockBuilder::new();
    while builder.push(Entry { hash: u64::from(builder.entries()) << 40, ino: 7, id: 1 }) {}
    let mut block: Box<[u8; BLOCK_BYTES]> = vec![0; BLOCK_BYTES].try_into().unwrap();
    builder.encode(&mut block);
    let read = |block: &[u8]| Entries::new(block, 9).and_then(|e| e.collect::<crate::Result<Vec<_>>>());
    assert_eq!(read(&block[..]).unwrap().len() as u32, builder.entries());

    let with = |at: usize, v: u32| {
        let mut b = block.clone();
        b[at..at + 4].copy_from_slice(&v.to_le_bytes());
        read(&b[..])
    };
    assert!(with(108, SRCH_BLOCK_MAX_BYTES as u32 + 1).is_err(), "more bytes than there are");
    assert!(with(104, builder.entries() + 1).is_err(), "more entries than bytes");
    assert!(with(104, builder.entries() - 1).is_err(), "bytes left over");
    assert!(with(104, u32::MAX).is_err());
    assert!(with(108, 0).is_err(), "entries without bytes");
    assert!(read(&[0; 100]).is_err());
    assert!(read(&[0; BLOCK_BYTES]).unwrap().is_empty(), "a block without entries is fine");
}

#[test]
fn impossible_search_files_are_refused() {
    let file = |height: u8, blkno: u64, blocks: u64| {
        let mut f = SrchFile::new_zeroed();
        f.height = height;
        f.block_ref.blkno = blkno.into();
        f.blocks = blocks.into();
        validate_file(&f, "test").is_ok()
    };
    assert!(file(0, 0, 0) && file(1, 9, 1) && file(2, 9, 4094) && file(3, 9, 4095));
    assert!(!file(0, 9, 0) && !file(1, 0, 1) && !file(1, 9, 0) && !file(1, 9, 2) && !file(2, 9, 4095));
    assert!(!file(7, 9, 1) && !file(0, 0, 1));
}

#[test]
fn size_classes_group_files_by_powers_of_four() {
    let bits = |blocks: u64| (0..64).find(|b| blocks >> b == 0).unwrap_or(64);
    for blocks in [0, 1, 2, 3, 4, 15, 16, 63, 64, u64::MAX] {
        assert_eq!(size_class(blocks), bits(blocks) / 2, "{blocks}");
    }
}

proptest! {
    #[test]
    fn coding_comes_back(list in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..50)) {
        let list: Vec<Entry> = list.into_iter().map(|(hash, ino, id)| Entry { hash, ino, id }).collect();
        let mut builder = BlockBuilder::new();
        for e in &list {
            prop_assert!(builder.push(*e));
        }
        prop_assert_eq!(Some(&builder.first()), list.iter().min());
        prop_assert_eq!(Some(&builder.last()), list.iter().max());
        let mut block: Box<[u8; BLOCK_BYTES]> = vec![0xaa; BLOCK_BYTES].try_into().unwrap();
        builder.encode(&mut block);
        let mut entries = Entries::new(&block[..], 1).unwrap();
        let mut positions = Vec::new();
        for e in &list {
            positions.push(entries.position());
            prop_assert_eq!(entries.next().unwrap().unwrap(), *e);
        }
        prop_assert!(entries.next().is_none());
        // A compaction resumes anywhere.
        for (i, at) in positions.iter().enumerate() {
            let mut entries = Entries::new(&block[..], 1).unwrap();
            entries.skip_to(*at).unwrap();
            prop_assert_eq!(entries.next().unwrap().unwrap(), list[i]);
        }
        prop_assert!(Entries::new(&block[..], 1).unwrap().skip_to(1).is_err());
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..600), nr in 0u32..300) {
        let mut block = vec![0; SRCH_BLOCK_HEAD_BYTES + bytes.len()];
        block[104..108].copy_from_slice(&nr.to_le_bytes());
        block[108..112].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        block[SRCH_BLOCK_HEAD_BYTES..].copy_from_slice(&bytes);
        if let Ok(entries) = Entries::new(&block, 1) {
            prop_assert!(entries.take(1000).count() <= 301);
        }
    }
}
