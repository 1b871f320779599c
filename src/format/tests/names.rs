//! Hashes of names and blocks.

use super::*;

#[test]
fn names_hash_as_in_the_original() {
    for v in list(&vectors("format-hashes")["names"]) {
        let name = hex(&v["hex"]);
        assert_eq!(name.len() as u64, num(&v["len"]));
        assert_eq!(u64::from(fnv1a_32(&name)), hexnum(&v["fnv1a32"]), "{v}");
        assert_eq!(fnv1a_64(&name), hexnum(&v["fnv1a64"]), "{v}");
        assert_eq!(u64::from(fingerprint(&name)), hexnum(&v["fingerprint"]), "{v}");
        assert_eq!(dirent_hash(&name), hexnum(&v["dirent_hash"]), "{v}");
        assert_eq!(u64::from(xattr_hash(&name)), hexnum(&v["xattr_name_hash"]), "{v}");
        assert_eq!(srch_hash(&name), hexnum(&v["srch_hash"]), "{v}");
    }
}

#[test]
fn namespace_names_hash_as_in_the_original() {
    for v in list(&vectors("namespace-names")["names"]) {
        let name = hex(&v["name_hex"]);
        assert_eq!(dirent_hash(&name), hexnum(&v["dirent_hash"]), "{v}");
        assert_eq!(u64::from(fingerprint(&name)), hexnum(&v["fingerprint"]), "{v}");
        assert_eq!(u64::from(fnv1a_32(&name)), hexnum(&v["fnv1a32"]), "{v}");
        assert_eq!(u64::from(xattr_hash(&name)), hexnum(&v["xattr_hash"]), "{v}");
        assert_eq!(fnv1a_64(&name), hexnum(&v["fnv1a64"]), "{v}");
    }
}

#[test]
fn checksums_are_crc32c_without_final_inversion() {
    assert_eq!(crc(b"123456789"), 0x1cf9_6d7c);
    let doc = vectors("format-crc");
    for v in list(&doc["crc32c_raw"]) {
        if let Some(text) = v["ascii"].as_str() {
            assert_eq!(hexnum(&v["seed"]), 0xffff_ffff, "the only seed in use");
            assert_eq!(u64::from(crc(text.as_bytes())), hexnum(&v["crc"]), "{v}");
        }
    }
    for v in list(&doc["blocks"]) {
        let mut block = sparse(&v["size"], &v["sparse"]);
        assert_eq!(u64::from(block_crc(&block)), hexnum(&v["crc"]), "{}", v["what"]);
        assert!(block_crc_matches(&block));
        let sealed = block.clone();
        block[..4].fill(0);
        assert!(!block_crc_matches(&block));
        seal_block(&mut block);
        assert_eq!(block, sealed);
    }
    for v in list(&doc["quorum_messages"]) {
        let bytes = hex(&v["bytes"]);
        assert_eq!(crc(&bytes[..28]).to_le_bytes(), bytes[28..], "{v}");
    }
}

#[test]
fn a_short_block_has_no_valid_checksum() {
    for len in 0..32 {
        assert!(!block_crc_matches(&vec![0xff; len]));
    }
}

#[test]
fn fingerprints_of_all_lengths_sample_every_nth_bit() {
    let name: Vec<u8> = (0..255u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    for len in 0..=name.len() {
        let bits = len * 8;
        let step = (bits / 32).max(1);
        let bit = |at: usize| at < bits && name[at / 8] >> (7 - at % 8) & 1 == 1;
        let expected = (0..32).filter(|i| bit(i * step)).fold(0u32, |out, i| out | 1 << (31 - i));
        assert_eq!(fingerprint(&name[..len]), expected, "{len} bytes");
    }
}
