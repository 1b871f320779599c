//! Modes, names and message layouts against the reference vectors.

use super::*;
use crate::format::layout::StoredKey;
use crate::format::{Key, KeyRange, Seq};
use crate::lock::wire::{check, encode_recover, net_lock, parse_lock, parse_recover, parse_recover_key};
use crate::lock::word::LockWord;
use zerocopy::IntoBytes;

#[test]
fn modes_serve_as_the_vectors_say() {
    let v = vector("locks-modes.json");
    for (name, value) in v["mode_values"].as_object().unwrap() {
        assert_eq!(u64::from(mode(name).wire()), value.as_u64().unwrap());
        assert_eq!(Mode::from_wire(mode(name).wire()), Some(mode(name)));
    }
    assert_eq!(Mode::from_wire(4), None);
    for c in v["client_granted_satisfies"].as_array().unwrap() {
        let (g, r) = (mode(c["granted"].as_str().unwrap()), mode(c["requested"].as_str().unwrap()));
        assert_eq!(g.serves(r), c["satisfied"].as_bool().unwrap(), "{g} {r}");
        if r != Mode::Null {
            let word = LockWord::new();
            word.raise(g);
            assert_eq!(word.try_acquire(r), g.serves(r), "the word must judge like the table: {g} {r}");
        }
    }
}

#[test]
fn modes_are_compatible_as_the_vectors_say() {
    for c in vector("locks-modes.json")["server_granted_vs_requested"].as_array().unwrap() {
        let (g, r) = (mode(c["granted"].as_str().unwrap()), mode(c["requested"].as_str().unwrap()));
        assert_eq!(g.compatible(r, true), c["compatible_same_client"].as_bool().unwrap(), "{g} {r} same");
        assert_eq!(g.compatible(r, false), c["compatible_other_client"].as_bool().unwrap(), "{g} {r} other");
        if !g.compatible(r, true) || !g.compatible(r, false) {
            assert_eq!(g.invalidation_target(r), mode(c["invalidate_to_if_incompatible"].as_str().unwrap()));
        }
    }
}

#[test]
fn lowering_never_raises() {
    for from in Mode::ALL {
        for target in [Mode::Null, Mode::Read] {
            let to = from.lowered_to(target);
            assert!(to == from || from.serves(to) || to == Mode::Null);
            assert!(to == target || target.serves(to) || to == Mode::Null);
        }
    }
}

fn name_of(c: &Value) -> LockName {
    let n = |f: &str| c[f].as_u64().unwrap();
    match c["lock"].as_str().unwrap() {
        "ino" => LockName::inode(Ino(n("ino"))),
        "meta_seq" => LockName::meta_index(Seq(n("major"))),
        "data_seq" => LockName::data_index(Seq(n("major"))),
        "orphan" => LockName::orphan(),
        "rename" => LockName::rename(),
        "xattr_totl" => LockName::totl(),
        "xattr_indx" => LockName::indx(),
        "quota" => LockName::quota(),
        other => panic!("family {other}"),
    }
}

fn hex(k: Key) -> String {
    k.to_stored().as_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn names_cover_the_ranges_of_the_vectors() {
    let v = vector("locks-names.json");
    let mut all = Vec::new();
    for c in v["ranges"].as_array().unwrap() {
        let name = name_of(c);
        let KeyRange { start, end } = name.range();
        assert_eq!(start.to_string(), c["start"].as_str().unwrap());
        assert_eq!(end.to_string(), c["end"].as_str().unwrap());
        assert_eq!(hex(start), c["start_hex"].as_str().unwrap());
        assert_eq!(hex(end), c["end_hex"].as_str().unwrap());
        assert_eq!(name.start(), start);
        assert_eq!(LockName::from_key(&start), Some(name));
        all.push(name);
    }
    for a in &all {
        for b in &all {
            assert!(a == b || !a.range().overlaps(&b.range()), "{a} overlaps {b}");
            assert_eq!(a.cmp(b), a.start().cmp(&b.start()), "names must sort like their keys: {a} {b}");
        }
    }
}

#[test]
fn keys_that_start_no_range_name_no_lock() {
    for k in [
        Key::ZEROS,
        Key::ONES,
        Key::new(16, 1, 0, 0, 0, 0),
        Key::new(16, 1024, 0, 0, 0, 1),
        Key::new(16, 1024, 4, 0, 0, 0),
        Key::new(4, 0, 4, 5, 0, 0),
        Key::new(4, 1024, 4, 0, 0, 0),
        Key::new(8, 0, 4, 1024, 0, 0),
        Key::new(10, 1024, 0, 0, 0, 0),
        Key::new(20, 0, 0, 0, 0, 0),
    ] {
        assert_eq!(LockName::from_key(&k), None, "{k}");
    }
}

fn payload(i: usize) -> Vec<u8> {
    let v = vector("locks-wire.json");
    let hex = v["messages"][i]["hex"].as_str().unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
    bytes[32..].to_vec()
}

#[test]
fn messages_are_coded_as_in_the_vectors() {
    let name = group(5);
    let cases = [(Mode::Null, Mode::Write, 0), (Mode::Null, Mode::Write, 257), (Mode::Write, Mode::Read, 0)];
    for (i, (old, new, seq)) in cases.into_iter().enumerate() {
        let l = net_lock(name, old, new, seq);
        assert_eq!(l.as_bytes(), payload(i));
        assert_eq!(parse_lock(&payload(i)).unwrap(), l);
        let c = check(&l).unwrap();
        assert_eq!((c.name, c.old, c.new, c.write_seq), (name, old, new, seq));
    }
    assert_eq!(payload(3), payload(2), "the response echoes the request");
    assert_eq!(parse_recover_key(&payload(4)).unwrap(), Key::ZEROS);
    let two = parse_recover(&payload(5)).unwrap();
    assert_eq!(two.len(), 2);
    assert_eq!(encode_recover(&two), payload(5));
    assert_eq!(encode_recover(&[]), payload(6));
}

#[test]
fn messages_of_a_wrong_shape_are_refused() {
    assert!(parse_lock(&[0; 47]).is_err() && parse_lock(&[0; 49]).is_err());
    assert!(parse_recover_key(&[0; 31]).is_err());
    assert!(parse_recover(&[]).is_err());
    assert!(parse_recover(&payload(5)[..100]).is_err());
    let mut many = vec![0; 8 + 23 * 48];
    many[0] = 23;
    assert!(parse_recover(&many).is_err());
    let mut bad = net_lock(LockName::quota(), Mode::Null, Mode::Read, 0);
    bad.new_mode = 4;
    assert!(check(&bad).is_err());
    let mut bad = net_lock(LockName::quota(), Mode::Null, Mode::Read, 0);
    bad.key = StoredKey::from(Key::new(16, 5, 0, 0, 0, 0));
    assert!(check(&bad).is_err());
}

#[test]
fn constants_are_those_of_the_vectors() {
    let v = vector("locks-layout.json");
    let c = |f: &str| v["constants"][f].as_u64().unwrap();
    assert_eq!(c("NET_LOCK_MAX_RECOVER_NR"), crate::lock::wire::RECOVER_MAX as u64);
    assert_eq!(c("LOCK_INODE_GROUP_NR"), LOCK_GROUP);
    assert_eq!(c("LOCK_SEQ_GROUP_SIZE"), LOCK_GROUP);
    assert_eq!(
        v["constants"]["lock_idle_count"]["default"].as_u64(),
        Some(LockClientConfig::default().idle_count as u64)
    );
    assert_eq!(v["sizes"]["scoutfs_net_lock"].as_u64(), Some(size_of::<NetLock>() as u64));
    let full = vec![net_lock(LockName::quota(), Mode::Read, Mode::Read, 0); crate::lock::wire::RECOVER_MAX];
    assert_eq!(encode_recover(&full).len() as u64, c("max_recover_payload_bytes"));
}

/// Every test that the tables of [`super`] name is there, and every scenario has a test or a reason.
#[test]
fn every_name_in_the_tables_exists() {
    fn sources(dir: &std::path::Path, out: &mut String) {
        for entry in std::fs::read_dir(dir).expect("the source tree") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push_str(&std::fs::read_to_string(&path).expect("a source file"));
            }
        }
    }
    let mut all = String::new();
    sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let rows: Vec<&str> = include_str!("mod.rs").lines().filter(|l| l.starts_with("//! | ")).collect();
    for name in rows.iter().flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|n| n.len() > 12) {
        assert!(all.contains(&format!("fn {name}(")), "no test is called {name}");
    }
    for nr in 1..=48 {
        let excused = rows.iter().filter_map(|row| row.strip_prefix("//! | ")).any(|row| {
            let numbers = row.split(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ').next().unwrap_or_default();
            numbers.split([',', ' ']).any(|n| n.parse() == Ok(nr))
        });
        assert!(excused || all.contains(&format!("fn scenario_{nr:02}_")), "scenario {nr} has neither test nor reason");
    }
}
