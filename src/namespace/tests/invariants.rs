//! The rules of `spec/06 §16` that concern this room, checked on everything that a mount can see.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

use super::harness::TestMount;
use crate::format::consts::*;
use crate::format::xattr::{part_count, validate_xattr_first};
use crate::format::{DirentKind, Ino, ItemKey, Key, KeyRange, Seq, symlink_parts, validate_dirent};
use crate::lock::{LockName, Mode};
use crate::namespace::Fields;

/// All items of zone 16 below inode `end`.
fn fs_items(m: &TestMount, end: u64) -> BTreeMap<Key, Vec<u8>> {
    let mut all = BTreeMap::new();
    for group in 0..end.div_ceil(1024) {
        all.extend(under(m, LockName::inode(Ino(group << 10))));
    }
    all
}

fn under(m: &TestMount, name: LockName) -> Vec<(Key, Vec<u8>)> {
    let lock = m.node.lock(name, Mode::Read).unwrap();
    let mut all = Vec::new();
    let range: KeyRange = lock.range();
    m.node
        .items
        .scan(&lock, range, &mut |k, v| {
            all.push((*k, v.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

/// Checks everything; `end` is greater than every inode number in use. Gives the number of inodes.
pub(super) fn check(m: &TestMount, end: u64) -> usize {
    let items = fs_items(m, end);
    let mut inodes: BTreeMap<Ino, Fields> = BTreeMap::new();
    for (key, value) in &items {
        if let Some(ItemKey::Inode { ino }) = ItemKey::parse(key) {
            inodes.insert(ino, Fields::decode(ino, value, m.node.fmt_vers).unwrap());
        }
    }
    for key in items.keys() {
        assert!(inodes.contains_key(&Ino(key.first)), "item {key} without an inode");
    }
    check_links(&items, &inodes);
    check_parts(&items, &inodes);
    check_indexes(m, &inodes);
    inodes.len()
}

fn check_links(items: &BTreeMap<Key, Vec<u8>>, inodes: &BTreeMap<Ino, Fields>) {
    let (mut names, mut subdirs, mut backrefs) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut twins: HashMap<(Ino, u64), Vec<&[u8]>> = HashMap::new();
    let mut parents = HashMap::new();
    for (key, value) in items {
        let dir = match ItemKey::parse(key) {
            Some(ItemKey::Dirent { dir, .. } | ItemKey::Readdir { dir, .. } | ItemKey::Backref { dir, .. }) => dir,
            _ => continue,
        };
        let d = validate_dirent(key, value).unwrap();
        twins.entry((dir, d.pos)).or_default().push(value);
        assert!(d.pos < inodes[&dir].next_readdir_pos);
        match key.kind {
            TYPE_DIRENT => {
                *names.entry(dir).or_insert(0) += d.name.len() as u64;
                *subdirs.entry(dir).or_insert(0) += u32::from(d.kind == Some(DirentKind::Dir));
                assert_eq!(d.kind, Some(inodes[&d.ino].kind));
            }
            TYPE_LINK_BACKREF => {
                *backrefs.entry(d.ino).or_insert(0u32) += 1;
                parents.insert(d.ino, dir);
            }
            _ => {}
        }
    }
    for ((dir, pos), values) in twins {
        assert_eq!(values.len(), 3, "entry {pos} of {dir}");
        assert!(values.iter().all(|v| *v == values[0]), "entry {pos} of {dir} differs in its three items");
    }
    for (ino, f) in inodes {
        let links = backrefs.get(ino).copied().unwrap_or(0);
        if f.is_dir() {
            assert_eq!(f.size, names.get(ino).copied().unwrap_or(0), "size of directory {ino}");
            if f.nlink > 0 {
                assert_eq!(f.nlink, 2 + subdirs.get(ino).copied().unwrap_or(0), "links of directory {ino}");
                assert_eq!(links, u32::from(*ino != Ino::ROOT));
            }
            let (mut at, mut seen) = (*ino, HashSet::new());
            while at != Ino::ROOT && f.nlink > 0 {
                assert!(seen.insert(at), "directory {ino} is in a loop");
                at = parents[&at];
            }
        } else {
            assert_eq!(f.nlink, links, "links of {ino}");
        }
    }
}

fn check_parts(items: &BTreeMap<Key, Vec<u8>>, inodes: &BTreeMap<Ino, Fields>) {
    let (mut xattrs, mut symlinks) = (HashMap::new(), HashMap::new());
    for (key, value) in items {
        match ItemKey::parse(key) {
            Some(ItemKey::Xattr { ino, id, part, .. }) => {
                assert!(id < inodes[&ino].next_xattr_id);
                let slot = xattrs.entry((ino, id)).or_insert((0, 0));
                slot.1 += 1;
                if part == 0 {
                    let first = validate_xattr_first(key, value).unwrap();
                    slot.0 = part_count(first.name.len(), first.value_len);
                }
            }
            Some(ItemKey::Symlink { ino, .. }) => *symlinks.entry(ino).or_insert(0) += 1,
            _ => {}
        }
    }
    assert!(xattrs.values().all(|(want, have)| want == have), "parts of attributes");
    for (ino, f) in inodes {
        let want = if f.kind == DirentKind::Symlink { symlink_parts(f.size) } else { 0 };
        assert_eq!(symlinks.get(ino).copied().unwrap_or(0), want, "parts of symlink {ino}");
    }
}

fn check_indexes(m: &TestMount, inodes: &BTreeMap<Ino, Fields>) {
    let mut found: HashSet<Key> = HashSet::new();
    for group in 0..=m.node.txn.seq() / 1024 {
        let seq = Seq(group * 1024);
        for name in [LockName::meta_index(seq), LockName::data_index(seq)] {
            for (key, value) in under(m, name) {
                assert!(value.is_empty());
                found.insert(key);
            }
        }
    }
    let mut want = HashSet::new();
    for (ino, f) in inodes {
        want.insert(crate::format::keys::meta_index(Seq(f.meta_seq), *ino));
        if f.is_regular() {
            want.insert(crate::format::keys::data_index(Seq(f.data_seq), *ino));
        }
    }
    assert_eq!(found, want, "index items");
    let orphans: HashSet<Key> = under(m, LockName::orphan()).into_iter().map(|(k, _)| k).collect();
    let unlinked = inodes.iter().filter(|(_, f)| f.nlink == 0).map(|(ino, _)| crate::format::keys::orphan(*ino));
    assert_eq!(orphans, unlinked.collect(), "orphans");
}
