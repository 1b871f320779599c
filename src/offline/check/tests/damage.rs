//! One class of damage at a time, with checksums repaired, must be found; noise must not make the checker panic.

use super::*;
use crate::format::consts::*;

/// One item of a leaf that a test rebuilds.
#[derive(Clone)]
struct Item {
    key: Key,
    seq: u64,
    flags: u8,
    value: Vec<u8>,
}

/// A volume that can be damaged.
struct Patient {
    meta: Arc<MemDevice>,
    data: Arc<MemDevice>,
}

impl Patient {
    fn new(name: &str) -> Patient {
        let (meta, data) = volume(name);
        Patient { meta, data }
    }

    fn sb(&self) -> SuperBlock {
        read_super(&*self.meta).unwrap()
    }

    fn block(&self, blkno: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        self.meta.read_at(blkno << BLOCK_SHIFT, &mut block).unwrap();
        block
    }

    /// Changes a block and repairs its checksum.
    fn change(&self, blkno: u64, f: impl FnOnce(&mut [u8])) {
        let mut block = self.block(blkno);
        f(&mut block);
        seal_block(&mut block);
        self.meta.write_at(blkno << BLOCK_SHIFT, &block).unwrap();
    }

    fn change_super(&self, f: impl FnOnce(&mut SuperBlock)) {
        let mut sb = self.sb();
        f(&mut sb);
        super::super::super::write_super(&*self.meta, &sb).unwrap();
    }

    /// All trees that hold filesystem items, the filesystem tree first.
    fn fs_roots(&self) -> Vec<BtreeRoot> {
        let sb = self.sb();
        let image = Image::new(&*self.meta, &sb);
        let mut roots = vec![sb.fs_root];
        let mut cursor = Cursor::new(&image, &sb.logs_root);
        while cursor.advance(&mut super::super::super::image::Quiet) {
            roots.push(LogTrees::read_from_bytes(cursor.item().unwrap().1).unwrap().item_root);
        }
        roots
    }

    /// Leaves of a tree with their items.
    fn leaves(&self, root: &BtreeRoot) -> Vec<(u64, Vec<Item>)> {
        let sb = self.sb();
        let image = Image::new(&*self.meta, &sb);
        struct Leaves(Vec<u64>);
        impl Visitor for Leaves {
            fn enter(&mut self, blkno: MetaBlock, level: u8) -> bool {
                if level == 0 {
                    self.0.push(blkno.0);
                }
                true
            }
            fn damaged(&mut self, damage: Damage) {
                panic!("{damage:?}");
            }
        }
        let (mut v, mut cursor) = (Leaves(Vec::new()), Cursor::new(&image, root));
        while cursor.advance(&mut v) {}
        let items = |blkno| {
            let node = Node::decode(self.block(blkno), blkno, 0, &KeyRange::ALL, true).unwrap();
            let item = |i: &super::super::super::image::NodeItem| Item {
                key: i.key,
                seq: i.seq,
                flags: i.flags,
                value: node.value(i).to_vec(),
            };
            node.items().iter().map(item).collect()
        };
        v.0.into_iter().map(|blkno| (blkno, items(blkno))).collect()
    }

    /// Rebuilds the leaf that holds the version of `key` that counts.
    fn edit(&self, key: &Key, f: impl FnOnce(&mut Vec<Item>, usize)) {
        let leaves = self.fs_roots().iter().flat_map(|r| self.leaves(r)).collect::<Vec<_>>();
        let found = leaves.into_iter().filter_map(|(blkno, items)| {
            let i = items.iter().position(|i| i.key == *key)?;
            Some((items[i].seq, blkno, items, i))
        });
        let (_, blkno, mut items, i) = found.max_by_key(|(seq, ..)| *seq).unwrap_or_else(|| panic!("no item {key}"));
        f(&mut items, i);
        items.sort_by_key(|i| i.key);
        self.change(blkno, |block| rebuild_leaf(block, &items));
    }

    fn edit_inode(&self, ino: u64, f: impl FnOnce(&mut InodeItem)) {
        self.edit(&keys::inode(Ino(ino)), |items, i| {
            let mut inode = validate_inode(Ino(ino), &items[i].value, 2).unwrap();
            f(&mut inode);
            items[i].value = inode.as_bytes().to_vec();
        });
    }

    /// Takes an item away: in a log tree it becomes a deletion.
    fn remove(&self, key: &Key) {
        let global = self.fs_roots().len() == 1;
        self.edit(key, |items, i| {
            if global {
                items.remove(i);
            } else {
                items[i].flags = ITEM_FLAG_DELETION;
                items[i].value.clear();
            }
        });
    }

    /// The merged items.
    fn items(&self) -> Vec<(Key, Vec<u8>)> {
        let sb = self.sb();
        let image = Image::new(&*self.meta, &sb);
        let roots = self.fs_roots();
        let kind = |i: usize| match i {
            0 => super::super::super::image::SourceKind::Global,
            _ => super::super::super::image::SourceKind::Log,
        };
        let sources: Vec<_> = roots
            .iter()
            .enumerate()
            .map(|(i, r)| super::super::super::image::Source { root: *r, kind: kind(i) })
            .collect();
        let unmerged = super::super::super::image::Unmerged::default();
        let mut merged = super::super::super::image::Merged::new(&image, &sources, &unmerged, Key::ZEROS);
        let mut out = Vec::new();
        while let Some(item) = merged.next(&mut super::super::super::image::Quiet) {
            out.push((item.key, item.value));
        }
        out
    }

    fn check(&self) -> CheckReport {
        run(&self.meta, &self.data)
    }
}

/// Writes items, in key order, as the whole content of a leaf: balanced AVL tree, right hash table.
fn rebuild_leaf(block: &mut [u8], items: &[Item]) {
    block[32..].fill(0);
    let (mut end, mut bytes) = (BTREE_LEAF_END, 0);
    let offset = |slot: usize| (BTREE_HEAD_BYTES - 32 + slot * BTREE_ITEM_BYTES) as u16;
    let mut nodes = vec![<AvlNode as zerocopy::FromZeros>::new_zeroed(); items.len()];
    fn build(
        nodes: &mut [AvlNode],
        range: std::ops::Range<usize>,
        parent: u16,
        offset: &dyn Fn(usize) -> u16,
    ) -> (u16, u8) {
        if range.is_empty() {
            return (0, 0);
        }
        let mid = range.start + range.len() / 2;
        let me = offset(mid);
        let (left, lh) = build(nodes, range.start..mid, me, offset);
        let (right, rh) = build(nodes, mid + 1..range.end, me, offset);
        let height = 1 + lh.max(rh);
        nodes[mid] = AvlNode { parent: parent.into(), left: left.into(), right: right.into(), height, pad: [0] };
        (me, height)
    }
    let (root, _) = build(&mut nodes, 0..items.len(), 0, &offset);
    for (slot, item) in items.iter().enumerate() {
        let padded = item.value.len().next_multiple_of(8);
        end -= padded;
        bytes += BTREE_ITEM_BYTES + padded;
        block[end..end + item.value.len()].copy_from_slice(&item.value);
        let stored = BtreeItem {
            node: nodes[slot],
            key: item.key.to_stored(),
            seq: item.seq.into(),
            val_off: if padded == 0 { 0 } else { end as u16 }.into(),
            val_len: (item.value.len() as u16).into(),
            flags: item.flags,
            pad: [0; 3],
        };
        let at = BTREE_HEAD_BYTES + slot * BTREE_ITEM_BYTES;
        block[at..at + BTREE_ITEM_BYTES].copy_from_slice(stored.as_bytes());
        let mut bucket = leaf_hash_bucket(&stored.key);
        while block[BTREE_LEAF_END + bucket * 2..][..2] != [0, 0] {
            bucket = (bucket + 1) % BTREE_HASH_BUCKETS;
        }
        block[BTREE_LEAF_END + bucket * 2..][..2].copy_from_slice(&(at as u16).to_le_bytes());
    }
    let gap = end - BTREE_HEAD_BYTES - items.len() * BTREE_ITEM_BYTES;
    for (at, v) in [(32, root), (34, items.len() as u16), (36, bytes as u16), (38, gap as u16)] {
        block[at..at + 2].copy_from_slice(&v.to_le_bytes());
    }
}

/// The volume is damaged by `damage`; the check must give an error of `class`.
fn expect(name: &str, class: FindingClass, damage: impl FnOnce(&Patient)) -> CheckReport {
    let p = Patient::new(name);
    damage(&p);
    let report = p.check();
    assert!(!report.is_clean(), "nothing found where {} was expected:\n{}", class.name(), show(&report));
    let found = report.findings.iter().any(|f| f.class == class && f.severity == Severity::Error);
    assert!(found, "no error of class {}:\n{}", class.name(), show(&report));
    report
}

const TREE: &str = "03-small-tree";
const ARCHIVE: &str = "05-archive";

fn first_of_kind(p: &Patient, want: impl Fn(&Key, &[u8]) -> bool) -> Key {
    p.items().into_iter().find(|(k, v)| want(k, v)).expect("the volume has such an item").0
}

fn regular_file(p: &Patient) -> u64 {
    let key = first_of_kind(p, |k, v| {
        k.zone == ZONE_FS
            && k.kind == TYPE_INODE
            && validate_inode(Ino(k.first), v, 2)
                .is_ok_and(|i| i.mode.get() & 0o170_000 == 0o100_000 && i.size.get() > 0)
    });
    key.first
}

#[test]
fn rebuilding_a_leaf_does_no_damage() {
    for name in [TREE, ARCHIVE] {
        let p = Patient::new(name);
        let ino = regular_file(&p);
        p.edit_inode(ino, |_| {});
        let report = p.check();
        assert!(report.is_clean(), "{}", show(&report));
    }
}

#[test]
fn damaged_blocks_are_found() {
    let leaf = |p: &Patient| p.leaves(&p.sb().fs_root)[0].0;
    expect(TREE, FindingClass::Block, |p| {
        let mut block = p.block(leaf(p));
        block[3000] ^= 1;
        p.meta.write_at(leaf(p) << BLOCK_SHIFT, &block).unwrap();
    });
    type Change = fn(&mut [u8]);
    let changes: [(&str, Change); 12] = [
        ("volume id", |b| b[8] ^= 1),
        ("version", |b| b[16] ^= 1),
        ("own number", |b| b[24] ^= 1),
        ("AVL root", |b| b[32] = b[32].wrapping_add(1)),
        ("number of items", |b| b[34] = b[34].wrapping_sub(1)),
        ("item bytes", |b| b[36] ^= 8),
        ("level", |b| b[40] ^= 1),
        ("AVL parent", |b| b[48] = b[48].wrapping_add(56)),
        ("AVL height", |b| b[54] = b[54].wrapping_add(1)),
        ("key padding", |b| b[48 + 8 + 30] = 1),
        ("value offset", |b| {
            let at = (0..).map(|i| 48 + 56 * i).find(|at| b[at + 50] != 0).expect("some item has a value");
            b[at + 49] ^= 0xff;
        }),
        ("hash table", |b| b[BTREE_LEAF_END..].fill(0)),
    ];
    for (what, change) in changes {
        let report = expect(TREE, FindingClass::Block, |p| {
            // The root inode's leaf: its first item has a value somewhere.
            p.change(leaf(p), change);
        });
        assert!(report.findings.iter().any(|f| f.block.is_some()), "{what}");
    }
}

#[test]
fn double_use_and_loss_of_metadata_blocks_are_found() {
    let list_entry = |p: &Patient, i: usize, v: u64| {
        let head = p.sb().server_meta_avail[0];
        p.change(head.block_ref.blkno.get(), |b| {
            let start = u32::from_le_bytes(b[48..52].try_into().unwrap()) as usize;
            b[56 + 8 * (start + i)..][..8].copy_from_slice(&v.to_le_bytes());
        });
    };
    // The block that is listed no more is lost, the one that is listed is used.
    let report = expect(TREE, FindingClass::Space, |p| list_entry(p, 1, p.sb().fs_root.block_ref.blkno.get()));
    assert!(report.findings.iter().any(|f| f.class == FindingClass::Leak), "{}", show(&report));
    expect(TREE, FindingClass::Space, |p| {
        // One entry twice.
        let head = p.sb().server_meta_avail[0];
        let b = p.block(head.block_ref.blkno.get());
        let start = u32::from_le_bytes(b[48..52].try_into().unwrap()) as usize;
        list_entry(p, 1, u64::from_le_bytes(b[56 + 8 * start..][..8].try_into().unwrap()));
    });
    expect(TREE, FindingClass::Leak, |p| {
        let head = p.sb().server_meta_avail[0];
        p.change(head.block_ref.blkno.get(), |b| {
            let nr = u32::from_le_bytes(b[52..56].try_into().unwrap()) - 1;
            b[52..56].copy_from_slice(&nr.to_le_bytes());
        });
        p.change_super(|sb| {
            let head = &mut sb.server_meta_avail[0];
            head.total_nr.set(head.total_nr.get() - 1);
            head.first_nr.set(head.first_nr.get() - 1);
        });
    });
    expect(TREE, FindingClass::Block, |p| {
        p.change_super(|sb| {
            let head = &mut sb.server_meta_avail[0];
            head.total_nr.set(head.total_nr.get() + 1);
        });
    });
}

#[test]
fn wrong_allocators_are_found() {
    let meta_leaf = |p: &Patient| p.leaves(&p.sb().meta_alloc[0].root)[0].clone();
    expect(TREE, FindingClass::Allocator, |p| {
        // The twin by size is gone.
        let (blkno, mut items) = meta_leaf(p);
        let at = items.iter().position(|i| i.key.zone == ZONE_FREE_ORDER).unwrap();
        items.remove(at);
        p.change(blkno, |b| rebuild_leaf(b, &items));
    });
    expect(TREE, FindingClass::Allocator, |p| p.change_super(|sb| sb.data_alloc.total_len.set(1)));
    let report = expect(TREE, FindingClass::Space, |p| {
        // An extent of free data that reaches one block into a neighbour.
        let sb = p.sb();
        let (blkno, mut items) = p.leaves(&sb.data_alloc.root)[0].clone();
        let old = items.iter().find(|i| i.key.zone == ZONE_FREE_BLKNO && i.key.first - i.key.second > 64).unwrap().key;
        let (last, len) = (old.first, old.second);
        items.retain(|i| i.key != old && i.key != keys::free_by_order(last, len));
        for key in [keys::free_by_blkno(last, len + 1), keys::free_by_order(last, len + 1)] {
            items.push(Item { key, seq: 0, flags: 0, value: vec![] });
        }
        items.sort_by_key(|i| i.key);
        p.change(blkno, |b| rebuild_leaf(b, &items));
        p.change_super(|sb| sb.data_alloc.total_len.set(sb.data_alloc.total_len.get() + 1));
    });
    assert!(report.findings.iter().any(|f| f.data_block.is_some()));
}

#[test]
fn wrong_extents_are_found() {
    let extent =
        |p: &Patient| first_of_kind(p, |k, v| k.zone == ZONE_FS && k.kind == TYPE_DATA_EXTENT && v[..8] != [0; 8]);
    let report = expect(TREE, FindingClass::Leak, |p| {
        let key = extent(p);
        p.remove(&key);
    });
    assert!(report.findings.iter().any(|f| f.class == FindingClass::Extent && f.path.is_some()), "{}", show(&report));
    expect(TREE, FindingClass::Space, |p| {
        // Two files map the same block.
        let key = extent(p);
        let other =
            first_of_kind(p, |k, v| k.kind == TYPE_DATA_EXTENT && *k != key && k.zone == ZONE_FS && v[..8] != [0; 8]);
        let value = p.items().into_iter().find(|(k, _)| *k == other).unwrap().1;
        p.edit(&key, |items, i| items[i].value = value);
    });
    expect(TREE, FindingClass::Item, |p| {
        let key = extent(p);
        p.edit(&key, |items, i| items[i].value[..8].copy_from_slice(&(1u64 << 40).to_le_bytes()));
    });
    expect(TREE, FindingClass::Extent, |p| {
        let key = extent(p);
        p.edit(&key, |items, i| items[i].value[8] = EXTENT_UNWRITTEN);
    });
}

#[test]
fn wrong_inodes_are_found() {
    type Change = fn(&mut InodeItem);
    let cases: [(FindingClass, Change); 7] = [
        (FindingClass::Directory, |i| i.nlink.set(i.nlink.get() + 1)),
        (FindingClass::Orphan, |i| i.nlink.set(0)),
        (FindingClass::Index, |i| i.meta_seq.set(i.meta_seq.get() + 1)),
        (FindingClass::Index, |i| i.data_seq.set(i.data_seq.get() + 1)),
        (FindingClass::Extent, |i| i.online_blocks.set(i.online_blocks.get() + 1)),
        (FindingClass::Directory, |i| i.mode.set(0o010_644)),
        (FindingClass::Item, |i| i.mode.set(0)),
    ];
    for (class, change) in cases {
        let report = expect(TREE, class, |p| p.edit_inode(regular_file(p), change));
        let f = report.findings.iter().find(|f| f.class == class).unwrap();
        assert!(f.ino.is_some(), "{f}");
    }
    // Without links it is being deleted: extents go before the inode item, so that they may be fewer, and never more.
    let of_extents = |report: &CheckReport, severity: Severity| {
        report.findings.iter().any(|f| f.class == FindingClass::Extent && f.severity == severity)
    };
    for (more, severity) in [(1, Severity::Note), (-1, Severity::Error)] {
        let report = expect(TREE, FindingClass::Orphan, |p| {
            p.edit_inode(regular_file(p), |i| {
                i.nlink.set(0);
                i.online_blocks.set(i.online_blocks.get().wrapping_add_signed(more));
            });
        });
        assert!(of_extents(&report, severity), "{}", show(&report));
        assert_eq!(of_extents(&report, Severity::Error), severity == Severity::Error, "{}", show(&report));
    }
    expect(TREE, FindingClass::Item, |p| {
        let key = keys::inode(Ino(regular_file(p)));
        p.edit(&key, |items, i| items[i].value.truncate(100));
    });
    expect(TREE, FindingClass::Inode, |p| p.remove(&keys::inode(Ino(regular_file(p)))));
    expect(TREE, FindingClass::Inode, |p| p.change_super(|sb| sb.inode_count.set(sb.inode_count.get() + 1)));
    expect(TREE, FindingClass::Inode, |p| p.change_super(|sb| sb.next_ino.set(1024)));
    expect(TREE, FindingClass::Directory, |p| p.edit_inode(1, |i| i.size.set(i.size.get() + 1)));
    expect(TREE, FindingClass::Directory, |p| p.edit_inode(1, |i| i.next_readdir_pos.set(2)));
}

#[test]
fn missing_and_stray_items_are_found() {
    let of = |kind: u8| move |k: &Key, _: &[u8]| k.zone == ZONE_FS && k.kind == kind;
    let missing: [(&str, u8, FindingClass); 5] = [
        (TREE, TYPE_DIRENT, FindingClass::Directory),
        (TREE, TYPE_READDIR, FindingClass::Directory),
        (TREE, TYPE_LINK_BACKREF, FindingClass::Directory),
        (TREE, TYPE_SYMLINK, FindingClass::Inode),
        (ARCHIVE, TYPE_XATTR, FindingClass::Xattr),
    ];
    for (name, kind, class) in missing {
        expect(name, class, |p| {
            let key = match kind {
                TYPE_XATTR => first_of_kind(p, |k, _| of(TYPE_XATTR)(k, &[]) && k.fourth == 1),
                _ => first_of_kind(p, of(kind)),
            };
            p.remove(&key);
        });
    }
    expect(TREE, FindingClass::Index, |p| {
        let key = first_of_kind(p, |k, _| k.zone == ZONE_INODE_INDEX);
        p.remove(&key);
    });
    let stray: [(FindingClass, Key); 5] = [
        (FindingClass::Orphan, keys::orphan(Ino(1))),
        (FindingClass::Index, keys::meta_index(Seq(5), Ino(1))),
        (FindingClass::Inode, keys::symlink(Ino(1), 0)),
        (FindingClass::Item, Key::new(ZONE_FS, 1, 5, 0, 0, 0)),
        (FindingClass::Item, Key::new(ZONE_ORPHAN, 1, 4, 5, 0, 0)),
    ];
    for (class, key) in stray {
        expect(TREE, class, |p| {
            // Put it into the leaf where it belongs by order.
            let leaves = p.leaves(&p.sb().fs_root);
            let (blkno, mut items) =
                leaves.iter().find(|(_, items)| items.last().is_some_and(|l| l.key > key)).unwrap().clone();
            items.truncate(items.len().min(600));
            items.push(Item { key, seq: 1, flags: 0, value: vec![] });
            items.sort_by_key(|i| i.key);
            p.change(blkno, |b| rebuild_leaf(b, &items));
        });
    }
}

#[test]
fn wrong_entries_are_found() {
    expect(TREE, FindingClass::Item, |p| {
        let key = first_of_kind(p, |k, _| k.kind == TYPE_DIRENT && k.zone == ZONE_FS);
        p.edit(&key, |items, i| *items[i].value.last_mut().unwrap() ^= 1);
    });
    expect(TREE, FindingClass::Directory, |p| {
        // The entry by name names another inode than its twins.
        let key = first_of_kind(p, |k, _| k.kind == TYPE_DIRENT && k.zone == ZONE_FS);
        p.edit(&key, |items, i| items[i].value[0] ^= 1);
    });
    expect(TREE, FindingClass::Directory, |p| {
        let key = first_of_kind(p, |k, _| k.kind == TYPE_LINK_BACKREF && k.zone == ZONE_FS);
        p.edit(&key, |items, i| items[i].value[24] = 6);
    });
}

#[test]
fn wrong_side_items_of_xattrs_are_found() {
    expect(ARCHIVE, FindingClass::Total, |p| {
        let key = first_of_kind(p, |k, _| k.zone == ZONE_XATTR_TOTL);
        p.edit(&key, |items, i| items[i].value[0] ^= 1);
    });
    expect(ARCHIVE, FindingClass::ValueIndex, |p| {
        let key = first_of_kind(p, |k, _| k.zone == ZONE_XATTR_INDX);
        p.remove(&key);
    });
    expect(ARCHIVE, FindingClass::Xattr, |p| {
        let key = first_of_kind(p, |k, _| k.kind == TYPE_XATTR && k.zone == ZONE_FS);
        p.edit_inode(key.first, |i| i.next_xattr_id.set(0));
    });
    expect(ARCHIVE, FindingClass::Item, |p| {
        let key = first_of_kind(p, |k, v| k.kind == TYPE_XATTR && k.zone == ZONE_FS && v.len() < 100);
        p.edit(&key, |items, i| items[i].value[2] = 0);
    });
    // A searchable xattr that no search file knows: its name is changed, and with it the key.
    expect(ARCHIVE, FindingClass::Search, |p| {
        let key =
            first_of_kind(p, |k, v| k.kind == TYPE_XATTR && k.zone == ZONE_FS && v[8..].starts_with(b"scoutfs.srch."));
        p.edit(&key, |items, i| {
            let item = &mut items[i];
            let len = usize::from(item.value[2]);
            item.value[8 + len - 1] ^= 1;
            item.key.second = u64::from(xattr_hash(&item.value[8..8 + len]));
        });
    });
}

#[test]
fn wrong_search_files_are_found() {
    let search_block = |p: &Patient| {
        let sb = p.sb();
        let (_, items) = p.leaves(&sb.srch_root)[0].clone();
        let file = items.iter().find(|i| i.key.kind <= TYPE_SRCH_BLOCKS).unwrap();
        SrchFile::read_from_bytes(&file.value[..]).unwrap().block_ref.blkno.get()
    };
    for (at, what) in [(32, "first"), (80, "tail"), (104, "number"), (116, "codes")] {
        let report = expect(ARCHIVE, FindingClass::Search, |p| p.change(search_block(p), |b| b[at] ^= 1));
        assert!(report.errors > 0, "{what}");
    }
    expect(ARCHIVE, FindingClass::Block, |p| p.change(search_block(p), |b| b[4] ^= 1));
}

#[test]
fn wrong_log_trees_are_found() {
    // Items that the bloom filter hides.
    expect("07-two-mounts", FindingClass::LogTrees, |p| {
        let sb = p.sb();
        let (_, items) = p.leaves(&sb.logs_root)[0].clone();
        let lt = LogTrees::read_from_bytes(&items[0].value[..]).unwrap();
        p.change(lt.bloom_ref.blkno.get(), |b| b[32..].fill(0));
    });
    let edit = |p: &Patient, f: fn(&mut LogTrees)| {
        let (blkno, mut items) = p.leaves(&p.sb().logs_root)[0].clone();
        let mut lt = LogTrees::read_from_bytes(&items[0].value[..]).unwrap();
        f(&mut lt);
        items[0].value = lt.as_bytes().to_vec();
        p.change(blkno, |b| rebuild_leaf(b, &items));
    };
    expect("07-two-mounts", FindingClass::LogTrees, |p| edit(p, |lt| lt.nr.set(7)));
    expect("07-two-mounts", FindingClass::LogTrees, |p| edit(p, |lt| lt.flags.set(LOG_TREES_FINALIZED)));
    expect("07-two-mounts", FindingClass::LogTrees, |p| edit(p, |lt| lt.commit_trans_seq.set(u64::MAX)));
    expect("07-two-mounts", FindingClass::Inode, |p| edit(p, |lt| lt.inode_count_delta.set(0)));
}

#[test]
fn wrong_supers_and_quorum_blocks_are_found() {
    expect(TREE, FindingClass::Super, |p| {
        let mut sb = read_super(&*p.data).unwrap();
        sb.uuid[0] ^= 1;
        super::super::super::write_super(&*p.data, &sb).unwrap();
    });
    expect(TREE, FindingClass::Super, |p| p.data.write_at(SUPER_BLKNO * 4096, &[0; 4096]).unwrap());
    expect(TREE, FindingClass::Super, |p| p.meta.write_at(QUORUM_BLKNO * 4096, &[0; 4096]).unwrap());
}

#[test]
fn names_of_findings_lead_to_the_path() {
    let report = expect(TREE, FindingClass::Directory, |p| p.edit_inode(regular_file(p), |i| i.nlink.set(77)));
    let f = report.findings.iter().find(|f| f.class == FindingClass::Directory).unwrap();
    let path = f.path.as_deref().unwrap();
    let manifest = String::from_utf8(fixture::text(TREE, "manifest.jsonl")).unwrap();
    let same = manifest
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .any(|e| e["ino"].as_u64() == f.ino.map(|i| i.0) && format!("/{}", e["path"].as_str().unwrap()) == path);
    assert!(same, "{f}");
    let p = Patient::new(TREE);
    let (key, value) = p.items().into_iter().find(|(k, _)| k.kind == TYPE_DIRENT && k.zone == ZONE_FS).unwrap();
    assert_eq!(validate_dirent(&key, &value).unwrap().hash, dirent_hash(validate_dirent(&key, &value).unwrap().name));
}

#[test]
fn noise_never_makes_the_checker_panic() {
    let p = Patient::new(ARCHIVE);
    let sb = p.sb();
    let used: Vec<u64> = (META_START..sb.total_meta_blocks.get())
        .filter(|b| *b < 2000 || *b > 66_000)
        .filter(|&b| b < 68_000)
        .filter(|&b| p.block(b)[..8] != [0; 8])
        .collect();
    assert!(used.len() > 20);
    let mut state = 0x1234_5678u64;
    let mut next = move |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    for _ in 0..60 {
        let (meta, data) = (p.meta.snapshot(), p.data.clone());
        let patient = Patient { meta, data };
        for _ in 0..1 + next(4) {
            let blkno = used[next(used.len() as u64) as usize];
            let (at, v) = (if next(3) == 0 { next(3000) } else { next(65536) }, next(256) as u8);
            patient.change(blkno, |b| b[at as usize] = v);
        }
        if next(4) == 0 {
            let mut block = [0; 4096];
            patient.meta.read_at(SUPER_BLKNO * 4096, &mut block).unwrap();
            block[next(1488) as usize] = next(256) as u8;
            seal_block(&mut block);
            patient.meta.write_at(SUPER_BLKNO * 4096, &block).unwrap();
        }
        let _ = check(&*patient.meta, &*patient.data, &CheckOptions::default());
        let _ = crate::offline::dump(&*patient.meta, &Default::default(), &mut std::io::sink());
    }
}
