//! Reading the forest: which version wins, totals, vectors of the original.

use serde_json::Value as Json;
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::error::Errno;
use crate::format::layout::{AllocListHead, BtreeRoot, LogMergeRange, LogMergeStatus, XattrTotlVal};
use crate::format::{KeyRange, bloom_bits};
use crate::item::totals::{Total, TotalsReader};
use crate::sync::Arc;
use crate::txn::testbox::{ServerBox, TestItem, lock_of};
use std::time::Duration;

fn vector(name: &str) -> Json {
    let path = format!("{}/tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A number, possibly negative, possibly in quotes.
fn num(v: &Json) -> u64 {
    let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    text.parse::<u64>().or_else(|_| text.parse::<i64>().map(|n| n as u64)).unwrap_or_else(|_| panic!("{v}"))
}

fn parse_key(v: &Json) -> Key {
    let f: Vec<u64> = v.as_str().unwrap().split('.').map(|s| s.parse().unwrap()).collect();
    Key::new(f[0] as u8, f[1], f[2] as u8, f[3], f[4], f[5] as u8)
}

fn parse_value(v: &Json) -> Vec<u8> {
    match v {
        Json::Object(o) => total_bytes(num(&o["total"]), num(&o["count"])),
        text => text.as_str().unwrap().as_bytes().to_vec(),
    }
}

fn total_bytes(total: u64, count: u64) -> Vec<u8> {
    XattrTotlVal { total: total.into(), count: count.into() }.as_bytes().to_vec()
}

fn parse_items(v: &Json) -> Vec<TestItem> {
    let item =
        |i: &Json| (parse_key(&i["key"]), num(&i["seq"]), i["deletion"].as_bool().unwrap(), parse_value(&i["val"]));
    v.as_array().unwrap().iter().map(item).collect()
}

#[test]
fn bloom_bits_are_those_of_the_original() {
    for case in vector("items-bloom")["cases"].as_array().unwrap() {
        let k = &case["key"];
        let byte = |f: &str| num(&k[f]) as u8;
        let key =
            Key::new(byte("zone"), num(&k["first"]), byte("type"), num(&k["second"]), num(&k["third"]), byte("fourth"));
        let want: Vec<u64> = case["bits"].as_array().unwrap().iter().map(num).collect();
        let bits = bloom_bits(&key);
        assert_eq!(bits.map(u64::from).to_vec(), want, "{}", case["what"]);
        let offsets: Vec<u64> = case["byte_offset_in_block"].as_array().unwrap().iter().map(num).collect();
        let masks: Vec<u64> = case["mask_in_byte"].as_array().unwrap().iter().map(num).collect();
        // Through a block: exactly these bits are set, and a reader of the block finds the lock.
        let mut content = <bloom::BloomContent as crate::block::CowContent>::empty();
        content.set(&key);
        let mut block = Box::new([0u8; 65536]);
        crate::block::DirtyContent::encode(&mut content, &mut block);
        assert_eq!(num(&Json::from(block[32])), 3);
        for (at, mask) in offsets.iter().zip(&masks) {
            assert_ne!(block[*at as usize] & *mask as u8, 0, "{}", case["what"]);
        }
        let set: u32 = block[40..].iter().map(|b| b.count_ones()).sum();
        assert_eq!(set, 3);
    }
}

/// What a reader sees before a merge is what the merge makes of it.
#[test]
fn readers_see_what_the_merge_will_make() {
    for case in vector("items-merge")["cases"].as_array().unwrap() {
        let Some(inputs) = case.get("inputs_in_visit_order") else { continue };
        if num(&case["ret"]) != 0 {
            continue;
        }
        // The merge does not look at the version in the main tree, which cannot be newer in a real volume (rule 3).
        if case["what"].as_str().unwrap().starts_with("input always replaces") {
            continue;
        }
        let server = ServerBox::new();
        let m = Mount::new(&server, 1);
        server.add_fs(&parse_items(&case["fs_before"]));
        for (i, input) in inputs.as_array().unwrap().iter().enumerate() {
            server.add_log(100 + i as u64, Some(90), &parse_items(input));
        }
        server.write_super(BtreeRoot::new_zeroed());
        let totals = TotalsReader::new(server.store.clone(), Duration::ZERO);
        let after = parse_items(&case["fs_after"]);
        let mut all: Vec<Key> = after.iter().map(|i| i.0).collect();
        all.extend(parse_items(&case["fs_before"]).iter().map(|i| i.0));
        inputs.as_array().unwrap().iter().for_each(|i| all.extend(parse_items(i).iter().map(|i| i.0)));
        for k in all {
            let want = after.iter().find(|i| i.0 == k).map(|i| i.3.clone());
            let found = if keys::is_delta(&k) {
                totals.get(&k).unwrap().map(|t| total_bytes(t.total, t.count))
            } else {
                let lock = m.lock(lock_of(&k), Mode::Read);
                m.items.lookup(&lock, &k).unwrap().map(|v| v.to_vec())
            };
            let zero = total_bytes(0, 0);
            assert_eq!(found, want.filter(|v| *v != zero), "{} {k}", case["what"]);
        }
    }
}

/// State of a merge with this seq in which the totals are, or are not, still to be merged.
fn merge_state(server: &Arc<ServerBox>, seq: u64, unmerged: bool) -> BtreeRoot {
    let mut status = LogMergeStatus::new_zeroed();
    status.seq = seq.into();
    let mut items = vec![(keys::LOG_MERGE_STATUS, status.as_bytes().to_vec())];
    if unmerged {
        let range = LogMergeRange { start: Key::ZEROS.to_stored(), end: Key::ONES.to_stored() };
        items.push((keys::log_merge_range(&Key::ZEROS), range.as_bytes().to_vec()));
    }
    server.make_tree(&items)
}

/// The 37 resolutions of the original. Where its guess from versions is right, knowing gives the same; the vector's
/// guess tells which state of the merge it assumed.
#[test]
fn totals_resolve_like_the_original_where_it_guesses_right() {
    let k = keys::totl(1, 2, 3);
    for case in vector("items-totl")["cases"].as_array().unwrap() {
        let server = ServerBox::new();
        let visits = case["visits"].as_array().unwrap();
        let (mut fs_seq, mut input_seq, mut input_count) = (None, None, 0u64);
        for (i, v) in visits.iter().enumerate() {
            let item: TestItem = (k, num(&v["seq"]), false, total_bytes(num(&v["total"]), num(&v["count"])));
            match v["from"].as_str().unwrap() {
                "fs_root" => {
                    fs_seq = Some(item.1);
                    server.add_fs(&[item]);
                }
                "merge_input" => {
                    input_seq = Some(item.1);
                    input_count = input_count.wrapping_add(num(&v["count"]));
                    server.add_log(10 + i as u64, Some(50), &[item]);
                }
                _ => server.add_log(1000 + i as u64, None, &[item]),
            }
        }
        // The rule of the original (`spec/03 §10.1`).
        let counted = match (fs_seq, input_seq) {
            (_, None) => true,
            (Some(fs), Some(input)) => input > fs,
            (None, Some(_)) => (input_count as i64) > 0,
        };
        server.write_super(merge_state(&server, 60, counted));
        let found = TotalsReader::new(server.store.clone(), Duration::ZERO).get(&k).unwrap().unwrap_or_default();
        let want = Total { total: num(&case["total"]), count: num(&case["count"]) };
        assert_eq!(found, want, "{}", case["what"]);
    }
}

/// Without a running merge the original ignores a finalised tree that only updates a total whose creation is in a tree
/// that is still active.
#[test]
fn defect_28_finalised_update_counts_when_the_creation_is_in_an_active_tree() {
    let server = ServerBox::new();
    let k = keys::totl(1, 2, 3);
    server.add_log(1, None, &[(k, 20, false, total_bytes(100, 1))]);
    server.add_log(2, Some(50), &[(k, 21, false, total_bytes(11, 0))]);
    server.write_super(BtreeRoot::new_zeroed());
    let totals = TotalsReader::new(server.store.clone(), Duration::ZERO);
    assert_eq!(totals.get(&k).unwrap(), Some(Total { total: 111, count: 1 }));
    // While a merge of the finalised tree runs, too, before and after its range was merged.
    server.write_super(merge_state(&server, 60, true));
    assert_eq!(totals.get(&k).unwrap(), Some(Total { total: 111, count: 1 }));
    server.write_super(merge_state(&server, 60, false));
    assert_eq!(totals.get(&k).unwrap(), Some(Total { total: 100, count: 1 }));
    // Finalised after the merge began: no input.
    server.write_super(merge_state(&server, 50, false));
    assert_eq!(totals.get(&k).unwrap(), Some(Total { total: 111, count: 1 }));
}

#[test]
fn ranges_requests_and_completions_are_unmerged_until_they_are_spliced() {
    use crate::format::layout::{LogMergeComplete, LogMergeRequest};
    let server = ServerBox::new();
    let item = |n: u64| (keys::totl(n, 0, 0), 20, false, total_bytes(1, 1));
    server.add_log(2, Some(50), &(0..100).map(item).collect::<Vec<_>>());
    let at = |n: u64| keys::totl(n, 0, 0).to_stored();
    let mut status = LogMergeStatus::new_zeroed();
    status.seq = 60.into();
    let range = LogMergeRange { start: at(0), end: at(9) };
    let mut request = LogMergeRequest::new_zeroed();
    (request.start, request.end, request.rid, request.seq) = (at(20), at(29), 7.into(), 70.into());
    let complete = |seq: u64, start: u64, spliced: bool, remain: Option<u64>| {
        let mut c = LogMergeComplete::new_zeroed();
        (c.start, c.end, c.rid, c.seq) = (at(start), at(start + 9), 7.into(), seq.into());
        (c.remain, c.flags) = (at(remain.unwrap_or(start)), if remain.is_some() { 2.into() } else { 0.into() });
        if !spliced {
            let block_ref = crate::format::layout::BlockRef { blkno: 5000.into(), seq: 1.into() };
            c.meta_freed = AllocListHead { block_ref, total_nr: 1.into(), first_nr: 1.into(), flags: 0.into() };
        }
        (keys::log_merge_complete(seq.into()), c.as_bytes().to_vec())
    };
    let root = server.make_tree(&[
        (keys::LOG_MERGE_STATUS, status.as_bytes().to_vec()),
        (keys::log_merge_range(&at(0).to_key()), range.as_bytes().to_vec()),
        (keys::log_merge_request(7.into(), 70.into()), request.as_bytes().to_vec()),
        complete(71, 40, false, None),
        complete(72, 60, true, None),
        complete(73, 80, true, Some(85)),
    ]);
    server.write_super(root);
    let totals = TotalsReader::new(server.store.clone(), Duration::ZERO);
    let mut counted = Vec::new();
    totals
        .scan(KeyRange::ALL, &mut |k, _| {
            counted.push(k.first);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let want: Vec<u64> = (0..10).chain(20..30).chain(40..50).chain(85..90).collect();
    assert_eq!(counted, want);
}

/// The original checks the length of the first version only.
#[test]
fn defect_24_every_version_of_a_total_is_checked() {
    let server = ServerBox::new();
    let k = keys::totl(1, 2, 3);
    server.add_fs(&[(k, 5, false, total_bytes(1, 1))]);
    server.add_log(2, None, &[(k, 21, false, vec![1; 8])]);
    server.write_super(BtreeRoot::new_zeroed());
    let totals = TotalsReader::new(server.store.clone(), Duration::ZERO);
    assert_eq!(totals.get(&k).unwrap_err().errno(), Errno::EIO);
}

/// The original uses uninitialised roots if its first refresh fails.
#[test]
fn defect_25_a_failed_first_snapshot_is_not_used() {
    let server = ServerBox::new();
    let k = keys::totl(1, 2, 3);
    server.add_fs(&[(k, 5, false, total_bytes(3, 1))]);
    let totals = TotalsReader::new(server.store.clone(), Duration::from_secs(100));
    assert!(totals.get(&k).is_err(), "there is no super block yet");
    server.write_super(BtreeRoot::new_zeroed());
    assert_eq!(totals.get(&k).unwrap(), Some(Total { total: 3, count: 1 }));
    // The snapshot is kept for its time.
    server.add_log(2, None, &[(k, 21, false, total_bytes(1, 0))]);
    server.write_super(BtreeRoot::new_zeroed());
    assert_eq!(totals.get(&k).unwrap(), Some(Total { total: 3, count: 1 }));
}

/// A tree with a bloom block but no items makes matching reads of the original fail.
#[test]
fn defect_21_an_empty_tree_with_a_bloom_block_reads_as_empty() {
    let server = ServerBox::new();
    let m = Mount::new(&server, 1);
    server.add_fs(&[(key(1, 1), 5, false, b"here".to_vec())]);
    server.add_log_with_bloom_only(9, &key(1, 1));
    assert_eq!(get(&m, 1, 1).as_deref(), Some("here"));
    assert_eq!(m.items.next_hint(&key(1, 0)).unwrap(), Some(key(1, 1)));
}
