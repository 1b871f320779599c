//! Keys and values of namespace items.

use zerocopy::FromZeros;

use super::super::consts::*;
use super::super::keys::{self, ItemKey};
use super::super::layout::InodeItem;
use super::super::xattr::validate_xattr_first;
use super::*;

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
fn items_of_the_original_decode_and_encode_to_the_same_bytes() {
    for v in list(&vectors("namespace-items")["items"]) {
        let what = v["item"].as_str().unwrap();
        let k = field_key(&v["key"]);
        assert_eq!(stored(&k), hex(&v["key_raw"]), "{what}");
        let parsed = ItemKey::parse(&k).unwrap_or_else(|| panic!("{what}: {k}"));
        assert_eq!(parsed.key(), Some(k), "{what}");
        let value = v.get("value_raw").map(hex).unwrap_or_default();
        if what.contains("no value shown") {
            continue;
        }
        match parsed {
            ItemKey::Inode { ino } => {
                let vers = if value.len() == INODE_V1_BYTES { 1 } else { 2 };
                let inode = validate_inode(ino, &value, vers).unwrap();
                assert_eq!(encode_inode(&inode, vers), value, "{what}");
            }
            ItemKey::Dirent { .. } | ItemKey::Readdir { .. } | ItemKey::Backref { .. } => {
                let entry = validate_dirent(&k, &value).unwrap();
                assert_eq!(entry.encode(), value, "{what}");
            }
            ItemKey::Symlink { part, .. } => assert!(part < 5 && !value.is_empty(), "{what}"),
            ItemKey::Xattr { .. } => {
                let first = validate_xattr_first(&k, &value).unwrap();
                assert_eq!(super::super::xattr::encode_xattr(first.name, first.value_start), value, "{what}");
            }
            ItemKey::MetaIndex { .. } | ItemKey::DataIndex { .. } | ItemKey::Orphan { .. } => {
                assert!(value.is_empty(), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn modes_map_to_entry_types_as_in_the_original() {
    for v in list(&vectors("namespace-items")["mode_types"]) {
        let Some(want) = v.get("dirent_type") else { continue };
        let mode = u32::from_str_radix(v["mode_octal"].as_str().unwrap(), 8).unwrap();
        // Modes that name no type are stored as 0 by the original; we refuse to store them.
        let ours = DirentKind::from_mode(mode | 0o755).map_or(0, DirentKind::stored);
        assert_eq!(u64::from(ours), num(want), "{v}");
    }
    for stored in 0..8 {
        let kind = DirentKind::from_stored(stored).unwrap();
        assert_eq!(kind.stored(), stored);
        if kind != DirentKind::Whiteout {
            assert_eq!(DirentKind::from_mode(kind.mode_bits() | 0o644), Some(kind));
        }
    }
    assert_eq!(DirentKind::from_stored(8), None);
    let dt = [1, 2, 4, 6, 8, 10, 12, 14];
    assert_eq!((0..8).map(|s| DirentKind::from_stored(s).unwrap().dt()).collect::<Vec<_>>(), dt);
}

fn sample_inode(mode: u32) -> InodeItem {
    let mut i = InodeItem::new_zeroed();
    i.mode.set(mode);
    i.nlink.set(if mode & S_IFMT == S_IFDIR { 2 } else { 1 });
    i.size.set(if mode & S_IFMT == S_IFLNK { 5 } else { 0 });
    i.next_readdir_pos.set(DIRENT_FIRST_POS);
    i.proj.set(77);
    i
}

#[test]
fn inodes_have_the_length_of_their_version() {
    let inode = sample_inode(0o100_644);
    let (v1, v2) = (encode_inode(&inode, 1), encode_inode(&inode, 2));
    assert_eq!((v1.len(), v2.len()), (160, 168));
    assert_eq!(validate_inode(Ino(9), v2, 2).unwrap(), inode);
    let old = validate_inode(Ino(9), v1, 2).unwrap();
    assert_eq!(old.proj.get(), 0, "an item from before the upgrade");
    assert!(validate_inode(Ino(9), v1, 1).is_ok());
    assert!(validate_inode(Ino(9), v2, 1).is_err());
    for len in (0..160).chain(161..168) {
        assert!(validate_inode(Ino(9), &v2[..len], 2).is_err(), "{len} bytes");
    }
}

#[test]
fn impossible_inodes_are_refused() {
    let check = |change: fn(&mut InodeItem), mode| {
        let mut i = sample_inode(mode);
        change(&mut i);
        validate_inode(Ino(9), encode_inode(&i, 2), 2)
    };
    let file = 0o100_644;
    assert!(check(|_| {}, file).is_ok());
    assert!(check(|_| {}, 0o040_755).is_ok() && check(|_| {}, 0o120_777).is_ok());
    assert!(check(|i| i.mode.set(0o644), file).is_err());
    assert!(check(|i| i.mode.set(0o170_644), file).is_err());
    assert!(check(|i| i.size.set(1 << 63), file).is_err());
    assert!(check(|i| i.next_readdir_pos.set(1), file).is_err());
    assert!(check(|i| i.online_blocks.set(u64::MAX), file).is_err());
    assert!(check(|i| i.nlink.set(1), 0o040_755).is_err());
    assert!(check(|i| i.nlink.set(0), 0o040_755).is_ok());
    assert!(check(|i| i.size.set(0), 0o120_777).is_err());
    assert!(check(|i| i.size.set(4097), 0o120_777).is_err());
    let clamped = check(|i| i.atime.nsec.set(u32::MAX), file).unwrap();
    assert_eq!(clamped.atime.nsec.get(), 999_999_999);
    assert!(validate_inode(Ino(0), encode_inode(&sample_inode(file), 2), 2).is_err());
}

#[test]
fn impossible_entries_are_refused() {
    let entry = |name: &'static [u8]| Dirent {
        ino: Ino(70),
        hash: dirent_hash(name),
        pos: 5,
        kind: Some(DirentKind::Regular),
        name,
    };
    let good = entry(b"file");
    let value = good.encode();
    let keys = [keys::dirent(Ino(1), good.hash, 5), keys::readdir(Ino(1), 5), keys::backref(Ino(70), Ino(1), 5)];
    for k in &keys {
        assert_eq!(validate_dirent(k, &value).unwrap(), good);
        for len in 0..=DIRENT_HEAD_BYTES {
            assert!(validate_dirent(k, &value[..len]).is_err());
        }
        let mut unknown = value.clone();
        unknown[24] = 9;
        assert_eq!(validate_dirent(k, &unknown).unwrap().kind, None, "unknown types are told, not refused");
    }
    let wrong = [
        keys::dirent(Ino(1), good.hash + 1, 5),
        keys::dirent(Ino(1), good.hash, 6),
        keys::dirent(Ino(0), good.hash, 5),
        keys::readdir(Ino(1), 6),
        keys::backref(Ino(71), Ino(1), 5),
        keys::backref(Ino(70), Ino(0), 5),
        keys::backref(Ino(70), Ino(1), 6),
        keys::inode(Ino(1)),
    ];
    for k in &wrong {
        assert!(validate_dirent(k, &value).is_err(), "{k}");
    }
    for name in [&b"."[..], b"..", b"a/b", b"a\0", b"", &[b'x'; 256]] {
        assert!(!name_is_valid(name));
    }
    assert!(name_is_valid(&[b'x'; 255]) && name_is_valid(b"..."));
    let mut other_name = value.clone();
    other_name[32] = b'g';
    assert!(validate_dirent(&keys[1], &other_name).is_err(), "the stored hash is of another name");
}

#[test]
fn symlinks_are_cut_and_joined() {
    for len in [1, 895, 896, 1791, 4095] {
        let target = vec![b't'; len];
        let bytes = encode_symlink(&target);
        let parts: Vec<&[u8]> = bytes.chunks(PART_BYTES).collect();
        let size = len as u64 + 1;
        assert_eq!(parts.len() as u64, symlink_parts(size));
        assert_eq!(decode_symlink(Ino(9), size, &parts).unwrap(), target);
        assert!(decode_symlink(Ino(9), size + 1, &parts).is_err());
        assert!(decode_symlink(Ino(9), size, &parts[1..]).is_err());
    }
    assert_eq!(decode_symlink(Ino(9), 5, &[b"ab\0c\0"]).unwrap(), b"ab", "a NUL ends the target");
    assert!(decode_symlink(Ino(9), 4, &[b"abcd"]).is_err(), "no NUL at the end");
    assert!(decode_symlink::<&[u8]>(Ino(9), 0, &[]).is_err());
    assert!(decode_symlink(Ino(9), 4097, &[b"x"]).is_err());
}
