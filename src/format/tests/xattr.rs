//! Xattr names, values and parts.

use proptest::prelude::*;

use super::super::consts::*;
use super::super::keys::{self, ItemKey};
use super::super::xattr::*;
use super::*;
use crate::Errno;

fn check_tags(name: &str, v: &Value) {
    let failed = v.get("error").is_some() || v.get("ret").is_some_and(|r| r.as_i64() != Some(0));
    match parse_tags(name.as_bytes()) {
        Err(e) => assert!(failed && e.is(Errno::EINVAL), "{v}: {e}"),
        Ok(tags) => {
            assert!(!failed, "{v}");
            let want = ["hide", "indx", "srch", "totl"].map(|t| num(&v[t]) != 0);
            assert_eq!([tags.hide, tags.indx, tags.srch, tags.totl], want, "{v}");
        }
    }
}

fn field_key(v: &Value) -> Key {
    Key::new(
        num(&v["zone"]) as u8,
        hexnum(&v["first"]),
        num(&v["type"]) as u8,
        hexnum(&v["second"]),
        hexnum(&v["third"]),
        num(&v["fourth"]) as u8,
    )
}

#[test]
fn tags_are_parsed_as_in_the_original() {
    for v in list(&vectors("archive-xattr-tags")["tags"]) {
        check_tags(v["name"].as_str().unwrap(), v);
    }
    for v in list(&vectors("namespace-xattr")["tags"]) {
        let name = v["name"].as_str().unwrap();
        check_tags(name, v);
        if let Some(ret) = v.get("totl_ret") {
            match totl_key(name.as_bytes()) {
                Ok(k) => assert_eq!(k, field_key(&v["totl_key"]), "{v}"),
                Err(e) => assert!(e.is(Errno::EINVAL) && ret.as_i64() != Some(0), "{v}"),
            }
        }
        if let Some(ret) = v.get("indx_ret") {
            match indx_numbers(name.as_bytes()) {
                Ok(_) => {
                    let k = indx_key(name.as_bytes(), Ino(hexnum(&v["indx_ino"])), hexnum(&v["indx_xid"])).unwrap();
                    assert_eq!(k, field_key(&v["indx_key"]), "{v}");
                }
                Err(e) => assert!(e.is(Errno::EINVAL) && ret.as_i64() != Some(0), "{v}"),
            }
        }
    }
}

#[test]
fn numbers_in_names_are_parsed_as_in_the_original() {
    let misc = vectors("format-misc");
    for v in list(&misc["totl_names"]) {
        let got = totl_key(v["name"].as_str().unwrap().as_bytes());
        assert_eq!(got.is_ok(), v["ok"].as_bool().unwrap(), "{v}");
        if let Ok(k) = got {
            let n: Vec<u64> = list(&v["u64"]).iter().map(num).collect();
            assert_eq!(k, keys::totl(n[0], n[1], n[2]), "{v}");
        }
    }
    let doc = vectors("archive-xattr-tags");
    for v in list(&doc["totl_names"]) {
        match totl_key(v["name"].as_str().unwrap().as_bytes()) {
            Ok(k) => assert_eq!(stored(&k), hex(&v["key"]), "{v}"),
            Err(_) => assert!(v.get("error").is_some(), "{v}"),
        }
    }
    for v in list(&doc["indx_names"]) {
        let name = v["name"].as_str().unwrap().as_bytes();
        match indx_numbers(name) {
            Ok((major, minor)) => {
                assert_eq!((u64::from(major), minor), (num(&v["major"]), num(&v["minor"])), "{v}");
                let k = indx_key(name, Ino(num(&v["ino"])), num(&v["xid"])).unwrap();
                assert_eq!(stored(&k), hex(&v["key"]), "{v}");
            }
            Err(_) => assert!(v.get("error").is_some(), "{v}"),
        }
    }
}

#[test]
fn values_of_totals_are_parsed_as_in_the_original_when_they_are_taken_back() {
    for v in list(&vectors("namespace-xattr")["totl_values"]) {
        let text = hex(&v["value_hex"]);
        match parse_stored_number(&text) {
            Ok(n) => assert_eq!(n, num(&v["value"]), "{v}"),
            Err(_) => assert_ne!(v["ret"].as_i64(), Some(0), "{v}"),
        }
        // What a caller sets is judged more strictly: nothing may follow the number.
        if !text.contains(&0) {
            assert_eq!(parse_number(&text).ok(), parse_stored_number(&text).ok(), "{v}");
        } else {
            assert!(parse_number(&text).is_err(), "{v}");
        }
    }
    for v in list(&vectors("archive-xattr-tags")["values"]) {
        match parse_stored_number(v["text"].as_str().unwrap().as_bytes()) {
            Ok(n) => assert_eq!(n, num(&v["value"]), "{v}"),
            Err(_) => assert!(v.get("error").is_some(), "{v}"),
        }
    }
}

#[test]
fn xattrs_are_cut_into_the_parts_of_the_original() {
    for v in list(&vectors("format-misc")["xattr_parts"]) {
        let (name, value) = (vec![b'n'; num(&v["name_len"]) as usize], vec![b'v'; num(&v["val_len"]) as usize]);
        let bytes = encode_xattr(&name, &value);
        let parts: Vec<&[u8]> = bytes.chunks(PART_BYTES).collect();
        assert_eq!(parts.len() as u64, num(&v["parts"]), "{v}");
        assert_eq!(part_count(name.len(), value.len()), parts.len());
        assert_eq!(parts[0].len() as u64, num(&v["first_item_len"]), "{v}");
        assert_eq!(parts[parts.len() - 1].len() as u64, num(&v["last_item_len"]), "{v}");
    }
    for v in list(&vectors("namespace-xattr")["parts"]) {
        let (name, value) = (vec![b'n'; num(&v["name_len"]) as usize], vec![b'v'; num(&v["val_len"]) as usize]);
        let lens: Vec<u64> = encode_xattr(&name, &value).chunks(PART_BYTES).map(|p| p.len() as u64).collect();
        assert_eq!(lens, list(&v["item_bytes"]).iter().map(num).collect::<Vec<_>>(), "{v}");
    }
}

#[test]
fn defect_60_tag_scan_stops_at_the_end_of_the_name() {
    // The original scans on into the value that follows the name in the item.
    let bytes = encode_xattr(b"scoutfs.hide.tot", b"l.1.2.3");
    let k = keys::xattr(Ino(5), xattr_hash(b"scoutfs.hide.tot"), 0, 0);
    let first = validate_xattr_first(&k, &bytes).unwrap();
    assert_eq!(parse_tags(first.name).unwrap(), Tags { hide: true, ..Tags::default() });
}

#[test]
fn damaged_first_parts_are_refused() {
    let name = b"user.name";
    let k = keys::xattr(Ino(5), xattr_hash(name), 3, 0);
    let good = encode_xattr(name, &[7; 100]);
    let first = validate_xattr_first(&k, &good).unwrap();
    assert_eq!((first.name, first.value_len, first.value_start.len(), first.parts), (&name[..], 100, 100, 1));
    for len in 0..good.len() {
        assert!(validate_xattr_first(&k, &good[..len]).is_err(), "cut to {len}");
    }
    for (at, v) in [(0, 0xff), (1, 0xff), (2, 0), (2, 255), (8, b'x'), (9, 0)] {
        let mut bad = good.clone();
        bad[at] = v;
        assert!(validate_xattr_first(&k, &bad).is_err(), "byte {at} = {v}");
    }
    assert!(validate_xattr_first(&keys::xattr(Ino(5), xattr_hash(name), 3, 1), &good).is_err());
}

proptest! {
    #[test]
    fn parts_come_back(name in prop::collection::vec(1u8.., 1..=255), value in prop::collection::vec(any::<u8>(), 0..4000)) {
        let bytes = encode_xattr(&name, &value);
        let k = keys::xattr(Ino(1), xattr_hash(&name), 0, 0);
        let mut parts = bytes.chunks(PART_BYTES);
        let first = validate_xattr_first(&k, parts.next().unwrap()).unwrap();
        prop_assert_eq!(first.name, &name[..]);
        prop_assert_eq!(first.value_len, value.len());
        let mut whole = first.value_start.to_vec();
        for (i, part) in parts.enumerate() {
            prop_assert_eq!(part.len(), first.part_len(i + 1));
            whole.extend_from_slice(part);
        }
        prop_assert_eq!(first.part_len(first.parts), 0);
        prop_assert_eq!(whole, value);
        prop_assert_eq!(first.parts, bytes.len().div_ceil(PART_BYTES));
    }

    #[test]
    fn parsers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tail in "(\\.?(0x|0)?[0-9a-f]{0,25}\\.?){0,4}") {
        let _ = parse_tags(&bytes);
        let _ = validate_xattr_first(&Key::ZEROS, &bytes);
        let _ = (parse_number(&bytes), parse_stored_number(&bytes), totl_key(&bytes), indx_numbers(&bytes));
        for tag in ["hide.", "totl.", "indx.", "srch.", ""] {
            let name = format!("scoutfs.{tag}{tail}");
            let _ = parse_tags(name.as_bytes());
            if let Ok(k) = totl_key(name.as_bytes()) {
                let parsed = ItemKey::parse(&k);
                prop_assert!(matches!(parsed, Some(ItemKey::Totl { .. })), "{:?}", parsed);
            }
            let _ = indx_key(name.as_bytes(), Ino(1), 2);
        }
    }

    #[test]
    fn numbers_come_back_in_all_three_notations(n: u64) {
        for text in [format!("{n}"), format!("{n:#x}"), format!("0X{n:X}"), format!("0{n:o}")] {
            prop_assert_eq!(parse_number(text.as_bytes()).unwrap(), n);
        }
    }
}
