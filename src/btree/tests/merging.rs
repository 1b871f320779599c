//! Merging trees: results of the original, limits, and random inputs against the rules.

use proptest::prelude::*;
use serde_json::Value;

use super::vectors::{key, load, num, unhex};
use super::*;
use crate::btree::{MergeArgs, MergeEnd, get_parent, merge, parent_range, rebalance, set_parent};
use crate::format::KeyRange;

type Items = Vec<(Key, u64, u8, Vec<u8>)>;

fn args<'a>(inputs: &'a [BtreeRoot]) -> MergeArgs<'a> {
    MergeArgs {
        inputs,
        range: KeyRange::ALL,
        subtree: false,
        window_bytes: 2 << 20,
        dirty_limit: 64 << 20,
        low_blocks: 10,
        delta: is_totl,
    }
}

fn totl(total: i64, count: i64) -> Vec<u8> {
    [total.to_le_bytes(), count.to_le_bytes()].concat()
}

fn items(v: &Value) -> Items {
    v.as_array().unwrap().iter().map(|i| (key(&i[0]), num(&i[1]), num(&i[2]) as u8, unhex(&i[3]))).collect()
}

fn contents(bed: &Bed, root: &BtreeRoot) -> Items {
    bed.look(root).items.into_iter().map(|(key, (seq, flags, value))| (key, seq, flags, value)).collect()
}

#[test]
fn inputs_of_the_vector() {
    let v = load("btree-merge.json");
    let mut bed = Bed::new();
    let mut fs = bed.build(&items(&v["fs"]));
    let inputs = [bed.build(&items(&v["input_a"])), bed.build(&items(&v["input_b"]))];
    bed.reopen();
    assert_eq!(merge(&mut bed.cow(), &mut fs, &args(&inputs)).unwrap(), MergeEnd::Done);
    assert_eq!(contents(&bed, &fs), items(&v["merged"]));
    bed.reopen();
    bed.check(&[&fs, &inputs[0], &inputs[1]]);

    let two = |second: Vec<u8>| {
        let mut bed = Bed::new();
        let at = Key::new(12, 1, 0, 2, 3, 0);
        let mut root = EMPTY;
        let first = totl(10, 1);
        for (seq, value) in [(6, &first), (7, &second)] {
            let list = [LogItem { key: at, seq, flags: 0, value }];
            insert_list(&mut bed.cow(), &mut root, list, is_totl).unwrap();
        }
        contents(&bed, &root)
    };
    assert_eq!(two(totl(1, 1)), items(&v["insert_list_two_deltas"]));
    let zero = two(totl(-10, -1));
    assert_eq!(zero[0].3, items(&v["insert_list_delta_to_zero"])[0].3);
}

/// The item rules of spec/03, including the case that the original gets wrong.
#[test]
fn rules_of_the_vector() {
    let parse = |v: &Value| -> Key {
        let n: Vec<u64> = v.as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
        Key::new(n[0] as u8, n[1], n[2] as u8, n[3], n[4], n[5] as u8)
    };
    let value = |v: &Value| match v.as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            let n = |name: &str| v[name].as_str().unwrap().parse().unwrap();
            totl(n("total"), n("count"))
        }
    };
    let list = |v: &Value| -> Items {
        let mut list: Items = v
            .as_array()
            .unwrap()
            .iter()
            .map(|i| (parse(&i["key"]), num(&i["seq"]), i["deletion"].as_bool().unwrap() as u8, value(&i["val"])))
            .collect();
        list.sort();
        list
    };
    for case in load("items-merge.json")["cases"].as_array().unwrap() {
        if case["fs_before"].is_null() {
            continue; // one log tree: rules of `insert_list`
        }
        let mut bed = Bed::new();
        let mut fs = bed.build(&list(&case["fs_before"]));
        let inputs: Vec<_> =
            case["inputs_in_visit_order"].as_array().unwrap().iter().map(|i| bed.build(&list(i))).collect();
        bed.reopen();
        assert_eq!(merge(&mut bed.cow(), &mut fs, &args(&inputs)).unwrap(), MergeEnd::Done);
        // A sum of zero without an item in the main tree is stored by the original (defect 27).
        let mut want = list(&case["fs_after"]);
        want.retain(|(key, _, _, value)| !(is_totl(key) && *value == totl(0, 0)));
        assert_eq!(contents(&bed, &fs), want, "{}", case["what"]);
    }
}

/// Two mounts add and remove the same attribute, or one does both: nothing must be left in the main tree.
#[test]
fn defect_27_zero_sums_do_not_become_items() {
    let at = Key::new(12, 1, 0, 2, 3, 0);
    let mut bed = Bed::new();
    let inputs = [bed.build(&[(at, 5, 0, totl(0, 0))])];
    bed.reopen();
    let mut fs = EMPTY;
    merge(&mut bed.cow(), &mut fs, &args(&inputs)).unwrap();
    assert_eq!(fs, EMPTY);
    let mut fs = bed.build(&[(k(1), 1, 0, vec![1])]);
    merge(&mut bed.cow(), &mut fs, &args(&inputs)).unwrap();
    assert_eq!(contents(&bed, &fs).len(), 1);
}

#[test]
fn delta_values_of_another_length_are_corrupt() {
    let at = Key::new(12, 1, 0, 2, 3, 0);
    let mut bed = Bed::new();
    let mut fs = bed.build(&[(at, 1, 0, totl(1, 1))]);
    let inputs = [bed.build(&[(at, 5, 0, vec![1; 15])])];
    bed.reopen();
    assert!(matches!(merge(&mut bed.cow(), &mut fs, &args(&inputs)), Err(Error::Corrupt { .. })));
}

/// Limits stop a merge between leaves; going on from the key that it gives ends with the same result.
#[test]
fn limited_merges_can_be_continued() {
    let fs_items: Items = (0..20_000).map(|i| (k(2 * i), 1, 0, vec![0x5a; 400])).collect();
    let mut input: Items = (0..3000).map(|i| (k(2 * i + 1), 5, 0, vec![1; 100])).collect();
    input.extend(
        (20_000..26_000).map(|id| (k(id), 6, (id % 2 == 0) as u8, if id % 2 == 0 { vec![] } else { vec![2; 50] })),
    );
    let mut want = None;
    for (dirty_limit, window_bytes) in [(64 << 20, 2 << 20), (1 << 20, 2 << 20), (64 << 20, 65536), (10 << 16, 65536)] {
        let mut bed = Bed::new();
        let mut fs = bed.build(&fs_items);
        let inputs = [bed.build(&input)];
        bed.reopen();
        let mut at = Key::ZEROS;
        let mut rounds = 0;
        loop {
            let range = KeyRange::new(at, Key::ONES);
            let end = merge(&mut bed.cow(), &mut fs, &MergeArgs { dirty_limit, window_bytes, range, ..args(&inputs) });
            assert!(bed.dirty.bytes() <= dirty_limit + 6 * 65536);
            rounds += 1;
            bed.reopen();
            match end.unwrap() {
                MergeEnd::Done => break,
                MergeEnd::Remain(key) => {
                    assert!(at < key);
                    at = key;
                }
            }
        }
        bed.check(&[&fs, &inputs[0]]);
        assert_eq!(rounds > 1, dirty_limit < 64 << 20);
        let result = contents(&bed, &fs);
        assert_eq!(result.len(), 20_000 + 3000 + 3000 - 3000);
        assert_eq!(*want.get_or_insert(result.clone()), result);
    }
}

#[test]
fn a_low_allocator_stops_a_merge_before_anything_changes() {
    let mut bed = Bed::new();
    let mut fs = bed.build(&[(k(5), 1, 0, vec![1])]);
    let inputs = [bed.build(&[(k(7), 5, 0, vec![1])])];
    bed.reopen();
    bed.source.low = true;
    assert_eq!(merge(&mut bed.cow(), &mut fs, &args(&inputs)).unwrap(), MergeEnd::Remain(k(7)));
    assert_eq!(bed.dirty.len(), 0);
}

/// A level-1 block merged as a unit stays one block with its bounds, whatever is merged; the server rebalances and goes on.
#[test]
fn subtrees_keep_their_bounds() {
    let mut bed = Bed::new();
    let fs_items: Items = (0..62_000).map(|id| (k(id), 1, 0, vec![3; 896])).collect();
    let mut fs = bed.build(&fs_items);
    let deletions: Items = (0..62_000).filter(|id| id % 1000 != 0).map(|id| (k(id), 5, 1, vec![])).collect();
    let additions: Items = (0..62_000).map(|id| (Key::new(16, id, 8, 0, 0, 0), 5, 0, vec![1; 800])).collect();
    let mut inputs: Vec<BtreeRoot> = Vec::new();
    let mut expect: Items = fs_items.iter().filter(|i| i.0.first % 1000 == 0).cloned().collect();
    for (input, more) in [(deletions, vec![]), (additions.clone(), additions)] {
        expect.extend(more);
        expect.sort();
        inputs.push(bed.build(&input));
        bed.reopen();
        let mut at = Key::ZEROS;
        let mut requests = 0;
        loop {
            requests += 1;
            let parents = parent_range(&bed.reader(), &fs, &at).unwrap();
            let part = get_parent(&bed.reader(), &fs, &at).unwrap();
            let subtree = fs.height > 2;
            let mut new = part;
            let range = KeyRange::new(at, parents.end);
            let end =
                merge(&mut bed.cow(), &mut new, &MergeArgs { range, subtree, ..args(&inputs[inputs.len() - 1..]) })
                    .unwrap();
            assert!(!subtree || new.height == 2);
            if subtree && requests % 6 == 1 {
                let look = bed.look_at(&new, false);
                let last = look.blocks.iter().rev().find(|b| b.level == 0).unwrap();
                assert_eq!(last.range.end, parents.end, "the last child keeps its key");
                assert!(look.blocks.iter().filter(|b| b.level == 0).all(|b| b.items > 0), "no empty leaves");
            }
            set_parent(&mut bed.cow(), &mut fs, &at, &new).unwrap();
            let resume = match end {
                MergeEnd::Remain(key) => {
                    rebalance(&mut bed.cow(), &mut fs, &at).unwrap();
                    key
                }
                MergeEnd::Done if parents.end == Key::ONES => break,
                MergeEnd::Done => parents.end.next(),
            };
            at = resume;
            bed.reopen();
        }
        bed.reopen();
        let all: Vec<&BtreeRoot> = inputs.iter().chain([&fs]).collect();
        bed.check(&all);
        assert!(requests < 500, "{requests} requests");
        assert_eq!(contents(&bed, &fs), expect);
    }
}

#[test]
fn a_subtree_must_be_a_level_1_block() {
    let mut bed = Bed::new();
    let mut fs = bed.build(&[(k(1), 1, 0, vec![])]);
    assert!(merge(&mut bed.cow(), &mut fs, &MergeArgs { subtree: true, ..args(&[]) }).is_err());
    let other = bed.build(&[(k(1), 1, 0, vec![])]);
    let big: Items = (0..80_000).map(|id| (k(id), 1, 0, vec![3; 896])).collect();
    let mut big = bed.build(&big);
    assert!(set_parent(&mut bed.cow(), &mut big, &k(1), &other).unwrap_err().is(Errno::EINVAL));
    // A low tree is replaced as a whole, with its height.
    set_parent(&mut bed.cow(), &mut fs, &k(1), &big).unwrap();
    assert_eq!(fs, big);
}

fn log_items() -> impl Strategy<Value = Items> {
    let id = 0..600u64;
    let plain = (id.clone(), 1..50u64, prop::option::of(0..300usize))
        .prop_map(|(id, seq, len)| (k(id), seq, len.is_none() as u8, vec![seq as u8; len.unwrap_or(0)]));
    let delta = (id, 1..50u64, -2..3i64, -1..2i64)
        .prop_map(|(id, seq, total, count)| (Key::new(12, id / 10, 0, 0, 0, 0), seq, 0, totl(total, count)));
    prop::collection::btree_map(0..1000u32, prop_oneof![4 => plain, 1 => delta], 0..300).prop_map(|m| {
        let by_key: BTreeMap<Key, _> = m.into_values().map(|i| (i.0, i)).collect();
        by_key.into_values().collect()
    })
}

/// The rules of `spec/03 §2.4`, item by item.
fn merged(fs: &Items, inputs: &[Items]) -> Items {
    let sum = |a: &[u8], b: &[u8]| {
        let n = |v: &[u8], i: usize| i64::from_le_bytes(v[i..i + 8].try_into().unwrap());
        totl(n(a, 0) + n(b, 0), n(a, 8) + n(b, 8))
    };
    let mut win: BTreeMap<Key, Stored> = BTreeMap::new();
    for (key, seq, flags, value) in inputs.iter().flatten() {
        let new = (*seq, *flags, value.clone());
        match win.remove(key) {
            None => drop(win.insert(*key, new)),
            Some(old) if is_totl(key) => {
                let added = sum(&old.2, value);
                if added != totl(0, 0) {
                    win.insert(*key, (old.0.max(*seq), 0, added));
                }
            }
            Some(old) => drop(win.insert(*key, if new.0 > old.0 { new } else { old })),
        }
    }
    let mut out: BTreeMap<Key, Stored> = fs.iter().map(|(k, s, f, v)| (*k, (*s, *f, v.clone()))).collect();
    for (key, new) in win {
        let old = out.remove(&key);
        if new.1 != 0 {
            continue;
        }
        let value = match old {
            Some(old) if is_totl(&key) => sum(&old.2, &new.2),
            _ => new.2,
        };
        if !(is_totl(&key) && value == totl(0, 0)) {
            out.insert(key, (new.0, 0, value));
        }
    }
    out.into_iter().map(|(key, (seq, flags, value))| (key, seq, flags, value)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn merges_follow_the_rules(
        fs in log_items(),
        inputs in prop::collection::vec(log_items(), 0..5),
        window_bytes in 500..100_000usize,
        dirty_limit in 4..20u64,
    ) {
        let fs: Items = fs.into_iter().filter(|i| i.2 == 0 && !(is_totl(&i.0) && i.3 == totl(0, 0))).collect();
        let mut bed = Bed::new();
        let mut root = bed.build(&fs);
        let roots: Vec<_> = inputs.iter().map(|i| bed.build(i)).collect();
        bed.reopen();
        let mut at = Key::ZEROS;
        loop {
            let range = KeyRange::new(at, Key::ONES);
            let limits = MergeArgs { window_bytes, dirty_limit: dirty_limit << 16, range, ..args(&roots) };
            match merge(&mut bed.cow(), &mut root, &limits).unwrap() {
                MergeEnd::Done => break,
                MergeEnd::Remain(key) => at = key,
            }
            bed.reopen();
        }
        bed.reopen();
        let all: Vec<&BtreeRoot> = roots.iter().chain([&root]).collect();
        bed.check(&all);
        prop_assert_eq!(contents(&bed, &root), merged(&fs, &inputs));
    }
}
