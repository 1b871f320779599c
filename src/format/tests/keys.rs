//! Keys: order, arithmetic, stored form, one of each kind.

use proptest::prelude::*;

use super::super::consts::*;
use super::super::keys::{self, ItemKey};
use super::super::layout::StoredKey;
use super::*;
use zerocopy::FromBytes;

fn check_stored(v: &Value) -> Key {
    let k = key(&v["key"]);
    let raw = hex(&v["raw"]);
    assert_eq!(stored(&k), raw, "{v}");
    assert_eq!(StoredKey::read_from_bytes(&raw).unwrap().to_key(), k);
    assert_eq!(k.to_string(), v["key"].as_str().unwrap());
    k
}

fn field_key(v: &Value) -> Key {
    let k = Key::new(
        num(&v["zone"]) as u8,
        num(&v["first"]),
        num(&v["type"]) as u8,
        num(&v["second"]),
        num(&v["third"]),
        num(&v["fourth"]) as u8,
    );
    assert_eq!(stored(&k), hex(&v["bytes"]), "{v}");
    k
}

fn range_order(a: KeyRange, b: KeyRange) -> i64 {
    if a.overlaps(&b) {
        assert!(a.intersect(&b).is_some());
        0
    } else {
        assert!(a.intersect(&b).is_none());
        if a.end < b.start { -1 } else { 1 }
    }
}

#[test]
fn keys_sort_count_and_overlap_as_in_the_original() {
    let doc = vectors("format-keys");
    let sorted: Vec<Key> = list(&doc["sorted"]).iter().map(check_stored).collect();
    assert!(sorted.is_sorted());
    for pair in list(&doc["inc"]) {
        assert_eq!(check_stored(&pair[0]).next(), check_stored(&pair[1]));
    }
    for pair in list(&doc["dec"]) {
        assert_eq!(check_stored(&pair[0]).prev(), check_stored(&pair[1]));
    }
    for v in list(&doc["range_compare"]) {
        let a = KeyRange::new(key(&v["a_start"]), key(&v["a_end"]));
        let b = KeyRange::new(key(&v["b_start"]), key(&v["b_end"]));
        assert_eq!(range_order(a, b), v["result"].as_i64().unwrap(), "{v}");
    }
}

#[test]
fn item_keys_compare_as_in_the_original() {
    let doc = vectors("items-keys");
    let all: Vec<Key> = list(&doc["keys"]).iter().map(|v| field_key(&v["key"])).collect();
    for (v, k) in list(&doc["keys"]).iter().zip(&all) {
        assert_eq!(k.next(), field_key(&v["inc"]));
        assert_eq!(k.prev(), field_key(&v["dec"]));
    }
    for (a, row) in all.iter().zip(list(&doc["compare"])) {
        for (b, want) in all.iter().zip(list(row)) {
            assert_eq!(a.cmp(b) as i64, want.as_i64().unwrap());
        }
    }
    for v in list(&doc["range_compare"]) {
        let at = |i: usize| all[num(&v[i]) as usize];
        let (a, b) = (KeyRange::new(at(0), at(1)), KeyRange::new(at(2), at(3)));
        assert_eq!(range_order(a, b), v[4].as_i64().unwrap(), "{v}");
    }
}

#[test]
fn every_kind_of_item_has_the_key_of_the_original() {
    for v in list(&vectors("format-keys")["items"]) {
        let k = check_stored(v);
        let what = v["what"].as_str().unwrap();
        match ItemKey::parse(&k) {
            Some(ItemKey::LogMergeRange) => assert!(what.contains("range"), "{what}"),
            Some(parsed) => assert_eq!(parsed.key(), Some(k), "{what}: {parsed:?}"),
            None => assert_eq!(k.zone, ZONE_LOCK, "{what}"),
        }
        let field = |name: &str| {
            let (_, rest) = what.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name} in {what}"));
            rest.split_whitespace().next().unwrap().to_owned()
        };
        let n = |name: &str| {
            let text = field(name);
            match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
                None => text.parse().unwrap(),
            }
        };
        let ino = || Ino(n("ino"));
        let seq = || Seq(n("seq"));
        let rid = || Rid(n("rid"));
        let last = || n("start") + n("len") - 1;
        let kind = what.split(' ').take_while(|w| !w.contains('=')).collect::<Vec<_>>().join(" ");
        let want = match kind.as_str() {
            "inode" => keys::inode(ino()),
            "xattr" => keys::xattr(ino(), xattr_hash(field("name").as_bytes()), n("id"), n("part") as u8),
            "dirent" => keys::dirent(Ino(n("dir")), dirent_hash(field("name").as_bytes()), n("pos")),
            "readdir" => keys::readdir(Ino(n("dir")), n("pos")),
            "link backref" => keys::backref(ino(), Ino(n("dir")), n("pos")),
            "symlink" => keys::symlink(ino(), n("nr")),
            "data extent" => keys::extent(ino(), n("iblock") + n("len") - 1, n("len")),
            "inode index meta" => keys::meta_index(seq(), ino()),
            "inode index data" => keys::data_index(seq(), ino()),
            "orphan" => keys::orphan(ino()),
            "totl" => keys::totl(n("a"), n("b"), n("c")),
            "log trees" => keys::log_trees(rid(), n("nr")),
            "mounted client" => keys::mounted_client(rid()),
            "srch log file" => keys::srch_log(MetaBlock(n("blkno"))),
            "srch sorted file" => keys::srch_sorted(n("blocks"), MetaBlock(n("blkno"))),
            "srch pending" => keys::srch_pending(n("id")),
            "srch busy" => keys::srch_busy(rid(), n("id")),
            "free extent by blkno" => keys::free_by_blkno(last(), n("len")),
            "free extent by order" => keys::free_by_order(last(), n("len")),
            "log merge status" => keys::LOG_MERGE_STATUS,
            "log merge range" => keys::log_merge_range(&key(&Value::String(field("start")))),
            "log merge request" => keys::log_merge_request(rid(), seq()),
            "log merge complete" => keys::log_merge_complete(seq()),
            "log merge freeing" => keys::log_merge_freeing(seq()),
            other => panic!("{other}"),
        };
        assert_eq!(k, want, "{what}");
    }
}

#[test]
fn index_keys_pack_as_in_the_original() {
    for v in list(&vectors("format-keys")["indx"]) {
        let k = check_stored(v);
        let (major, minor, ino, id) = (num(&v["major"]) as u8, num(&v["minor"]), Ino(num(&v["ino"])), num(&v["xid"]));
        assert_eq!(keys::indx(major, minor, ino, id), k, "{v}");
        assert_eq!(ItemKey::parse(&k), Some(ItemKey::Indx { major, minor, ino, id }));
    }
}

#[test]
fn free_extents_have_the_size_class_of_the_original() {
    for v in list(&vectors("format-keys")["free_extent_order"]) {
        assert_eq!(size_order(num(&v["len"])), num(&v["order"]), "{v}");
        assert_eq!(1u64 << (3 * num(&v["order"])), num(&v["smallest_len"]), "{v}");
    }
    assert_eq!(size_order(0), 0);
}

#[test]
fn keys_hash_to_the_leaf_buckets_and_bloom_bits_of_the_original() {
    for v in list(&vectors("format-key-hashes")["keys"]) {
        let k = check_stored(v);
        assert_eq!(leaf_hash_bucket(&k.to_stored()) as u64, num(&v["leaf_bucket"]), "{v}");
        assert_eq!(u64::from(fnv1a_32(&stored(&k))), hexnum(&v["fnv1a32"]));
        assert_eq!(fnv1a_64(&stored(&k)), hexnum(&v["fnv1a64"]));
        let want: Vec<u64> = list(&v["bloom_bits"]).iter().map(num).collect();
        assert_eq!(bloom_bits(&k).map(u64::from).to_vec(), want, "{v}");
    }
    let doc = vectors("items-bloom");
    assert_eq!(num(&doc["bloom_bits"]), u64::from(BLOOM_BITS));
    for v in list(&doc["cases"]) {
        let k = field_key(&v["key"]);
        let bits = bloom_bits(&k).map(u64::from);
        assert_eq!(bits.to_vec(), list(&v["bits"]).iter().map(num).collect::<Vec<_>>(), "{v}");
        let offsets = bits.map(|b| BLOOM_HEAD_BYTES as u64 + b / 8).to_vec();
        assert_eq!(offsets, list(&v["byte_offset_in_block"]).iter().map(num).collect::<Vec<_>>());
        let masks = bits.map(|b| 1 << (b % 8)).to_vec();
        assert_eq!(masks, list(&v["mask_in_byte"]).iter().map(num).collect::<Vec<_>>());
    }
}

/// A key as one 216 bit number, in four 54 bit digits would be clumsy: two halves of 80 and 136 bits do.
fn as_number(k: &Key) -> (u128, u128) {
    let high = u128::from(k.zone) << 72 | u128::from(k.first) << 8 | u128::from(k.kind);
    let low = u128::from(k.second) << 64 | u128::from(k.third);
    (high, low)
}

fn any_key() -> impl Strategy<Value = Key> {
    let edge64 = || prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()];
    let edge8 = || prop_oneof![Just(0), Just(1), Just(u8::MAX), Just(u8::MAX - 1), any::<u8>()];
    (edge8(), edge64(), edge8(), edge64(), edge64(), edge8())
        .prop_map(|(z, f, t, s, th, fo)| Key::new(z, f, t, s, th, fo))
}

proptest! {
    #[test]
    fn keys_are_one_216_bit_number(a in any_key(), b in any_key()) {
        let number = |k: &Key| { let (h, l) = as_number(k); (h, l, k.fourth) };
        prop_assert_eq!(a.cmp(&b), number(&a).cmp(&number(&b)));
        prop_assert_eq!(a.next().prev(), a);
        prop_assert_eq!(a.prev().next(), a);
        // The successor of a number: add one to the least digit and carry.
        let (h, l, f) = number(&a);
        let (f2, carry) = f.overflowing_add(1);
        let (l2, carry) = l.overflowing_add(u128::from(carry));
        let h2 = (h + u128::from(carry)) & ((1 << 80) - 1);
        prop_assert_eq!(number(&a.next()), (h2, l2, f2));
        if a != Key::ONES {
            prop_assert!(a.next() > a);
        } else {
            prop_assert_eq!(a.next(), Key::ZEROS);
        }
    }

    #[test]
    fn stored_keys_come_back(a in any_key()) {
        prop_assert_eq!(a.to_stored().to_key(), a);
        let mut dirty = a.to_stored();
        dirty.pad = [0xff; 5];
        prop_assert_eq!(dirty.to_key(), a);
        prop_assert_eq!(dirty.to_key().to_stored().pad, [0; 5]);
    }

    #[test]
    fn parsing_a_key_never_panics_and_is_exact(a in any_key(), zone in 0u8..64, kind in 0u8..32) {
        for k in [a, Key { zone, kind, ..a }, Key { zone, kind, fourth: 0, third: 0, ..a }] {
            if let Some(parsed) = ItemKey::parse(&k) {
                prop_assert!(parsed == ItemKey::LogMergeRange || parsed.key() == Some(k));
            }
        }
    }

    #[test]
    fn index_keys_come_back(major: u8, minor: u64, ino: u64, id: u64) {
        let k = keys::indx(major, minor, Ino(ino), id);
        prop_assert_eq!(ItemKey::parse(&k), Some(ItemKey::Indx { major, minor, ino: Ino(ino), id }));
    }

    #[test]
    fn range_intersection_is_the_shared_keys(a in any_key(), b in any_key(), c in any_key(), d in any_key(), k in any_key()) {
        let (x, y) = (KeyRange::new(a.min(b), a.max(b)), KeyRange::new(c.min(d), c.max(d)));
        let both = x.contains(&k) && y.contains(&k);
        prop_assert_eq!(x.intersect(&y).is_some_and(|r| r.contains(&k)), both);
    }
}
