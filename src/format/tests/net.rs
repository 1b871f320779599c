//! Payloads and error codes of messages.

use std::collections::BTreeMap;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::consts::*;
use super::super::layout::*;
use super::super::wire::*;
use super::layouts::structures;
use super::*;
use crate::Errno;

/// Finds the bytes of a field path like `meta_avail.ref.blkno` or `locks[1].key.sk_zone` in a structure.
fn field<'a>(types: &BTreeMap<String, BTreeMap<String, String>>, ty: &str, path: &str, bytes: &'a [u8]) -> &'a [u8] {
    let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
    let (name, index) = match head.split_once('[') {
        Some((n, i)) => (n, i.trim_end_matches(']').parse::<usize>().unwrap()),
        None => (head, 0),
    };
    let table = structures();
    let (_, fields) = &table[ty];
    let sub = types[ty].get(name).map(|t| t.split('[').next().unwrap().to_owned());
    let (at, len) = match fields.iter().find(|f| f.0 == name) {
        Some(f) => (f.1, f.2),
        None if (ty, name) == ("scoutfs_net_lock_recover", "locks") => (8, bytes.len() - 8),
        None => panic!("{ty}.{name}"),
    };
    let bytes = &bytes[at..at + len];
    let element = |t: &str| match t {
        "le64" => 8,
        "le32" => 4,
        "le16" => 2,
        "u8" => 1,
        t => table[t].0,
    };
    let sub = sub.unwrap();
    let bytes = if head.contains('[') { &bytes[index * element(&sub)..][..element(&sub)] } else { bytes };
    match rest {
        Some(rest) => field(types, &sub, rest, bytes),
        None => bytes,
    }
}

/// Decodes and encodes again.
fn twice<T: FromBytes + IntoBytes + KnownLayout + Immutable + std::fmt::Debug>(payload: &[u8]) -> Vec<u8> {
    assert!(
        exact::<T>("test", &payload[1..]).is_err() && response::<T>(&payload[1..]).unwrap_err().is(Errno::EMSGSIZE)
    );
    assert_eq!(response::<T>(payload).unwrap().as_bytes(), payload);
    exact::<T>("test", payload).unwrap().as_bytes().to_vec()
}

#[test]
fn payloads_decode_field_by_field_as_in_the_original() {
    let doc = vectors("format-layout");
    let types: BTreeMap<String, BTreeMap<String, String>> = doc["structs"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, s)| {
            let fields = list(&s["fields"]).iter();
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            (name.clone(), fields.map(|f| (text(&f["name"]), text(&f["type"]))).collect())
        })
        .collect();
    let messages = vectors("net-messages");
    let messages = messages.as_array().or_else(|| messages["messages"].as_array()).unwrap();
    for m in messages {
        let bytes = hex(&m["hex"]);
        assert_eq!(bytes.len() as u64, num(&m["total_bytes"]));
        let (head, payload) = NetHeader::read_from_prefix(&bytes).unwrap();
        let h = &m["header"];
        assert_eq!(head.seq.get(), num(&h["seq"]));
        assert_eq!(head.recv_seq.get(), num(&h["recv_seq"]));
        assert_eq!(head.id.get(), num(&h["id"]));
        assert_eq!(u64::from(head.data_len.get()), num(&h["data_len"]));
        assert_eq!(payload.len() as u64, num(&h["data_len"]));
        assert_eq!((u64::from(head.flags), u64::from(head.error)), (num(&h["flags"]), num(&h["error"])));
        assert!(payload.len() <= NET_MAX_PAYLOAD);
        if payload.is_empty() {
            continue;
        }
        let response = head.flags & NET_FLAG_RESPONSE != 0;
        let (ty, again) = match (head.cmd, response) {
            (0, _) => ("scoutfs_net_greeting", twice::<NetGreeting>(payload)),
            (1, true) => ("scoutfs_net_inode_alloc", twice::<NetInodeAlloc>(payload)),
            (2 | 3, _) => ("scoutfs_log_trees", twice::<LogTrees>(payload)),
            (5, _) => ("scoutfs_net_roots", twice::<NetRoots>(payload)),
            (7, _) => ("scoutfs_net_lock", twice::<NetLock>(payload)),
            (8, true) => ("scoutfs_net_lock_recover", encode_lock_recover(&decode_lock_recover(payload).unwrap())),
            (9 | 10, _) => ("scoutfs_srch_compact", twice::<SrchCompact>(payload)),
            (11, _) => ("scoutfs_log_merge_request", twice::<LogMergeRequest>(payload)),
            (12, _) => ("scoutfs_log_merge_complete", twice::<LogMergeComplete>(payload)),
            (13, false) => ("scoutfs_open_ino_map_args", twice::<OpenInoMapArgs>(payload)),
            (13, true) => ("scoutfs_open_ino_map", twice::<OpenInoMap>(payload)),
            (14..=16, _) => ("scoutfs_volume_options", twice::<VolumeOptionValues>(payload)),
            (17, _) => ("scoutfs_net_resize_devices", twice::<NetResizeDevices>(payload)),
            (18, _) => ("scoutfs_net_statfs", twice::<NetStatfs>(payload)),
            (8, false) => ("key", twice::<StoredKey>(payload)),
            (1, false) | (6, _) => ("number", twice::<zerocopy::little_endian::U64>(payload)),
            other => panic!("{other:?}"),
        };
        assert_eq!(again, payload, "{}", m["name"]);
        for pair in list(&m["payload_fields"]) {
            let (path, want) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
            let found = match ty {
                "number" => payload,
                "key" => field(&types, "scoutfs_key", path.trim_start_matches("key."), payload),
                ty => field(&types, ty, path, payload),
            };
            match want.strip_prefix("0x") {
                Some(_) => {
                    let n = found.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
                    assert_eq!(n, num(&pair[1]), "{} {path}", m["name"]);
                }
                None => assert_eq!(found, hex(&pair[1]), "{} {path}", m["name"]),
            }
        }
    }
}

#[test]
fn errors_travel_as_in_the_original() {
    let doc = vectors("net-errors");
    for v in list(&doc["from_host"]) {
        let errno = Errno(-v[0].as_i64().unwrap() as i32);
        assert_eq!(u64::from(error_to_wire(errno)), num(&v[1]), "{errno:?}");
    }
    for v in list(&doc["to_host"]) {
        let code = num(&v[0]) as u8;
        match error_from_wire(code) {
            Ok(Ok(())) => assert_eq!(v[1].as_i64(), Some(0)),
            Ok(Err(errno)) => {
                assert_eq!(v[1].as_i64(), Some(-i64::from(errno.0)), "{v}");
                assert_eq!(error_to_wire(errno), code);
            }
            Err(_) => assert!(code >= 7, "{v}"),
        }
    }
}

#[test]
fn lock_recovery_responses_of_impossible_length_are_refused() {
    let locks = vec![NetLock::new_zeroed(); NET_LOCK_RECOVER_MAX];
    let good = encode_lock_recover(&locks);
    assert!(good.len() <= NET_MAX_PAYLOAD);
    assert_eq!(decode_lock_recover(&good).unwrap().len(), NET_LOCK_RECOVER_MAX);
    assert!(decode_lock_recover(&good[..good.len() - 1]).is_err());
    assert!(decode_lock_recover(&[0; 7]).is_err());
    let mut more = good.clone();
    more[0] += 1;
    more.extend_from_slice(&[0; 48]);
    assert!(decode_lock_recover(&more).is_err(), "23 locks");
}

use zerocopy::FromZeros;
