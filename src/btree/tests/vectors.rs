//! The original's trees: what they contain, and that we read its blocks.

use serde_json::Value;

use super::*;
use crate::block::{Block, BlockKind, BlockView, CowContent, DirtyContent};
use crate::btree::image::{self, View};
use crate::btree::node::Node;
use crate::btree::{delete, force, insert, lookup, next, prev, update};
use crate::format::{block_crc, leaf_hash_bucket};

pub(super) fn load(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A number, or a decimal or 0x-less hexadecimal text.
pub(super) fn num(v: &Value) -> u64 {
    v.as_u64().unwrap_or_else(|| v.as_str().unwrap().parse().unwrap())
}

/// `[zone, first, type, second, third, fourth]` or the same as named fields.
pub(super) fn key(v: &Value) -> Key {
    let f = |i: usize, name: &str| num(if v.is_array() { &v[i] } else { &v[name] });
    Key::new(f(0, "zone") as u8, f(1, "first"), f(2, "type") as u8, f(3, "second"), f(4, "third"), f(5, "fourth") as u8)
}

pub(super) fn unhex(v: &Value) -> Vec<u8> {
    let s = v.as_str().unwrap();
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

/// A block given by its non-zero runs, stored on the bed's device and read back through the store.
fn read_image(runs: &Value, fsid: u64, blkno: u64, seq: u64) -> Arc<Block> {
    let mut image = vec![0u8; BLOCK_BYTES];
    for run in runs.as_array().unwrap() {
        let (at, bytes) = (num(&run[0]) as usize, unhex(&run[1]));
        image[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let dev = MemDevice::new(1 << 30);
    dev.write_at(blkno * BLOCK_BYTES as u64, &image).unwrap();
    let store = BlockStore::new(dev, fsid, 1 << 20);
    store.read(&BlockRef { blkno: blkno.into(), seq: seq.into() }, BlockKind::Btree).unwrap()
}

/// The items of a block dump in key order.
fn dumped(block: &Value) -> Vec<(Key, Stored)> {
    let mut items: Vec<_> = block["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| (key(&i["key"]), (num(&i["seq"]), num(&i["flags"]) as u8, unhex(&i["val"]))))
        .collect();
    items.sort_by_key(|(key, _)| *key);
    items
}

/// Decodes an image of the original, compares, and encodes it in our own way.
fn check_image(block: &Block, dump: &Value, items: Vec<(Key, Stored)>) {
    let view = block.view::<View>().unwrap();
    let node = view.node(block.bytes());
    assert_eq!(node.level() as u64, num(&dump["level"]));
    assert_eq!(view.total() as u64, num(&dump["total_item_bytes"]));
    assert_eq!(image::verify(block.bytes()), Vec::<String>::new());
    let ours: Vec<_> = (0..node.len())
        .map(|rank| {
            let (seq, flags) = node.version(rank);
            (node.key(rank), (seq, flags, node.value(rank).to_vec()))
        })
        .collect();
    assert_eq!(ours, items);
    let mut node = Node::load(block).unwrap();
    let mut again = *block.bytes();
    node.encode(&mut again);
    crate::format::seal_block(&mut again);
    strict(&again);
    assert_eq!(View::decode(&again, 1).unwrap().node(&again).len(), ours.len());
}

#[test]
fn leaf_image_of_the_original() {
    let v = load("btree-leaf-image.json");
    let block = read_image(&v["runs"], num(&v["fsid"]), num(&v["blkno"]), num(&v["seq"]));
    assert_eq!(block_crc(block.bytes()) as u64, num(&v["crc"]));
    check_image(&block, &v["block"], dumped(&v["block"]));
}

#[test]
fn leaf_and_parent_images_of_the_original() {
    for case in load("format-btree-blocks.json")["cases"].as_array().unwrap() {
        let b = &case["block"];
        let fsid = u64::from_str_radix(b["fsid"].as_str().unwrap(), 16).unwrap();
        let block = read_image(&b["sparse"], fsid, num(&b["blkno"]), num(&b["seq"]));
        let mut items = BTreeMap::new();
        for op in case["ops"].as_array().unwrap() {
            match op["op"].as_str().unwrap() {
                "insert" => {
                    let item = (num(&op["seq"]), num(&op["flags"]) as u8, unhex(&op["val"]));
                    items.insert(key(&op["key"]), item);
                }
                "delete" => drop(items.remove(&key(&op["key"])).unwrap()),
                other => assert_eq!(other, "compact_values"),
            }
        }
        check_image(&block, b, items.into_iter().collect());
    }
}

#[test]
fn buckets_of_the_leaf_hash() {
    for case in load("btree-leaf-hash.json")["cases"].as_array().unwrap() {
        assert_eq!(leaf_hash_bucket(&key(&case["key"]).to_stored()) as u64, num(&case["bucket"]));
    }
}

#[test]
fn operations_on_one_leaf() {
    let v = load("btree-leaf-ops.json");
    let mut bed = Bed::new();
    let mut root = EMPTY;
    for step in v["steps"].as_array().unwrap() {
        let (id, len) = (num(&step["id"]), step["len"].as_u64().unwrap_or(0));
        let value: Vec<u8> = (0..len).map(|j| ((id + len + j) & 255) as u8).collect();
        let mut cow = bed.cow();
        let result = match step["op"].as_str().unwrap() {
            "I" => insert(&mut cow, &mut root, &k(id), &value),
            "U" => update(&mut cow, &mut root, &k(id), &value),
            "F" => force(&mut cow, &mut root, &k(id), &value),
            "D" => delete(&mut cow, &mut root, &k(id)),
            op => panic!("operation {op}"),
        };
        let errno = result.map_or_else(|e| -e.errno().0, |()| 0);
        assert_eq!(errno as i64, step["errno"].as_i64().unwrap(), "{step}");
        assert_eq!(root.height as u64, num(&step["height"]));
        let look = bed.look(&root);
        if root.height == 0 {
            assert!(step["leaf"].is_null() || num(&step["leaf"]["nr_items"]) == 0);
            continue;
        }
        let items: Vec<_> = look.items.into_iter().collect();
        assert_eq!(items, dumped(&step["leaf"]));
        assert_eq!(look.blocks[0].item_bytes as u64, num(&step["leaf"]["total_item_bytes"]));
    }
}

#[test]
fn shapes_of_the_original_are_balanced_trees() {
    // Its trees are reproduced by shape nowhere; ours have at most their height.
    for case in load("btree-avl.json")["cases"].as_array().unwrap() {
        let mut bed = Bed::new();
        let mut root = EMPTY;
        let ids = |v: &Value| v.as_array().unwrap().iter().map(num).collect::<Vec<_>>();
        for id in ids(&case["insert"]) {
            insert(&mut bed.cow(), &mut root, &k(id), &[]).unwrap();
        }
        for id in ids(&case["delete"]) {
            delete(&mut bed.cow(), &mut root, &k(id)).unwrap();
        }
        bed.reopen();
        bed.check(&[&root]);
        let left: std::collections::BTreeSet<u64> =
            case["nodes"].as_array().unwrap().iter().map(|n| num(&n[0])).collect();
        assert!(bed.look(&root).items.keys().map(|key| key.first).eq(left));
    }
}

/// One update after the other in place: the original compacts each 27.
#[test]
fn updates_take_no_space() {
    let v = load("btree-compact.json");
    let mut bed = Bed::new();
    let mut root = EMPTY;
    for id in 1..=40 {
        insert(&mut bed.cow(), &mut root, &k(id), &[7; 896]).unwrap();
    }
    for row in v["rows"].as_array().unwrap() {
        update(&mut bed.cow(), &mut root, &k(1), &[8; 896]).unwrap();
        assert_eq!(bed.look(&root).blocks[0].item_bytes as u64, num(&row[1]));
    }
    bed.reopen();
    bed.check(&[&root]);
    assert_eq!(root.height, 1);
}

#[test]
fn splitting_and_joining() {
    let v = load("btree-split-join.json");
    let mut bed = Bed::new();
    let mut root = EMPTY;
    let mut x: u64 = 1;
    let mut random = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        x >> 33
    };
    for phase in v["phases"].as_array().unwrap() {
        match phase["phase"].as_str().unwrap() {
            "force" => {
                for _ in 0..num(&phase["n"]) {
                    let (id, len) = (random() % 20000, random() % 200);
                    force(&mut bed.cow(), &mut root, &k(id), &vec![0xa5; len as usize]).unwrap();
                }
            }
            "delete" => {
                let words: Vec<&str> = phase["order"].as_str().unwrap().split(' ').collect();
                let (from, to): (u64, u64) = (words[2].parse().unwrap(), words[6].parse().unwrap());
                let found = (from..=to)
                    .step_by(4)
                    .filter(|id| match delete(&mut bed.cow(), &mut root, &k(*id)) {
                        Ok(()) => true,
                        Err(e) => {
                            assert!(e.is(Errno::ENOENT));
                            false
                        }
                    })
                    .count();
                assert_eq!(found as u64, num(&phase["found"]));
            }
            _ => {
                for q in phase["results"].as_array().unwrap() {
                    let at = key(&q["key"]);
                    let want = |v: &Value| v.is_array().then(|| key(v));
                    let found = next(&bed.reader(), &root, &at).unwrap().map(|(key, _)| key);
                    assert_eq!(found, want(&q["next"]));
                    let found = prev(&bed.reader(), &root, &at).unwrap().map(|(key, _)| key);
                    assert_eq!(found, want(&q["prev"]));
                }
                continue;
            }
        }
        bed.reopen();
        bed.check(&[&root]);
        let look = bed.look(&root);
        // The same items in total as in the original's leaves, in about as many of them.
        let blocks = phase["tree"]["blocks"].as_array().unwrap();
        let leaves: Vec<&Value> = blocks.iter().filter(|b| num(&b[0]) == 0).collect();
        assert_eq!(look.items.len() as u64, leaves.iter().map(|b| num(&b[1])).sum::<u64>());
        let bytes: usize = look.blocks.iter().filter(|b| b.level == 0).map(|b| b.item_bytes).sum();
        assert_eq!(bytes as u64, leaves.iter().map(|b| num(&b[2])).sum::<u64>());
        assert!(look.level(0) <= leaves.len() * 6 / 5, "{} leaves, the original {}", look.level(0), leaves.len());
        assert_eq!(root.height as u64, num(&phase["tree"]["height"]));
    }
}

/// Volume creation writes two items with wrong heights and no balance (`spec/02 §3.14`).
#[test]
fn blocks_of_volume_creation_are_read() {
    let mut node = Node::default();
    for id in 0..2 {
        node.push(k(id), 1, 0, &[id as u8]);
    }
    let mut image = [0u8; BLOCK_BYTES];
    node.encode(&mut image);
    // The greater item is the root with height 0, the other its left child.
    image[32..34].copy_from_slice(&72u16.to_le_bytes());
    image[48..56].copy_from_slice(&[72, 0, 0, 0, 0, 0, 1, 0]);
    image[104..112].copy_from_slice(&[0, 0, 16, 0, 0, 0, 0, 0]);
    let view = View::decode(&image, 1).unwrap();
    assert_eq!(view.node(&image).len(), 2);
    assert_eq!(image::verify(&image).len(), 1, "reported, not refused");
}

#[test]
fn constants_agree() {
    let v = load("btree-constants.json");
    assert_eq!(num(&v["SCOUTFS_BTREE_MAX_VAL_LEN"]) as usize, super::super::MAX_VALUE_BYTES);
    assert_eq!(num(&v["SCOUTFS_BTREE_MAX_HEIGHT"]) as u8, image::MAX_HEIGHT);
    assert_eq!(num(&v["offset of leaf hash table"]) as usize, super::super::node::HASH_AT);
    assert_eq!(num(&v["empty leaf mid_free_len"]) as usize, Node::empty().capacity());
    let parent = Node::empty_parent(1);
    assert_eq!(num(&v["empty parent mid_free_len"]) as usize, parent.capacity());
}

#[test]
fn lookups_share_the_cached_block() {
    let mut bed = Bed::new();
    let root = bed.build(&[(k(1), 5, 0, vec![3; 100]), (k(2), 6, 1, vec![])]);
    bed.reopen();
    let one = lookup(&bed.reader(), &root, &k(1)).unwrap().unwrap();
    let two = lookup(&bed.reader(), &root, &k(2)).unwrap().unwrap();
    assert_eq!((one.seq, one.flags, &*one.value), (5, 0, &[3; 100][..]));
    assert_eq!((two.seq, two.flags, two.value.len()), (6, 1, 0));
    assert_eq!(bed.store.stats().misses, 1);
}
