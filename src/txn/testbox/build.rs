//! What tests put into the server in a box by hand: log trees of mounts that are not there, items, a merge, damage.

use zerocopy::{FromZeros, IntoBytes};

use super::ServerBox;
use crate::block::{Cow, DirtySet};
use crate::btree::{self, LogItem, MergeArgs, MergeEnd};
use crate::format::layout::{BtreeRoot, LogTrees, SuperBlock};
use crate::format::{Key, KeyRange, consts, keys};
use crate::item::bloom::BloomContent;
use crate::lock::LockName;

impl ServerBox {
    /// Merges all finalised trees into the main tree at once and forgets them.
    pub(crate) fn merge(&self) {
        let mut trees = self.trees.lock();
        let trees = &mut *trees;
        assert!(
            trees.logs.values().all(|lt| lt.flags.get() == 1 || lt.item_root.height == 0),
            "active trees with items"
        );
        let inputs: Vec<BtreeRoot> =
            trees.logs.values().filter(|lt| lt.flags.get() == 1).map(|lt| lt.item_root).collect();
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
        let args = MergeArgs {
            inputs: &inputs,
            range: KeyRange::ALL,
            subtree: false,
            window_bytes: 2 << 20,
            dirty_limit: u64::MAX,
            low_blocks: 10,
            delta: keys::is_delta,
        };
        assert_eq!(btree::merge(&mut cow, &mut trees.fs_root, &args).unwrap(), MergeEnd::Done);
        let gone: Vec<(u64, u64)> = trees.logs.iter().filter(|(_, lt)| lt.flags.get() == 1).map(|(k, _)| *k).collect();
        for (rid, nr) in gone {
            trees.logs.remove(&(rid, nr));
            btree::delete(&mut cow, &mut trees.logs_root, &keys::log_trees(rid.into(), nr)).unwrap();
        }
        dirty.write_out(&self.store).unwrap();
    }

    /// The stored log trees of a mount, oldest first.
    pub(crate) fn logs(&self, rid: u64) -> Vec<LogTrees> {
        self.trees.lock().logs.range((rid, 0)..=(rid, u64::MAX)).map(|(_, lt)| *lt).collect()
    }

    /// Writes a super block with the roots as they are now and this tree of merge state.
    pub(crate) fn write_super(&self, log_merge: BtreeRoot) {
        let trees = self.trees.lock();
        let mut sb = SuperBlock::new_zeroed();
        sb.hdr.magic = consts::MAGIC_SUPER.into();
        sb.hdr.fsid = self.store.fsid().into();
        sb.hdr.blkno = consts::SUPER_BLKNO.into();
        (sb.fs_root, sb.logs_root, sb.log_merge) = (trees.fs_root, trees.logs_root, log_merge);
        let mut block = Box::new([0; 4096]);
        block[..sb.as_bytes().len()].copy_from_slice(sb.as_bytes());
        crate::format::seal_block(&mut block[..]);
        self.store.write_small(consts::SUPER_BLKNO, &block).unwrap();
    }

    /// Stores a log tree of a mount that is not there, with these items; returns its number.
    pub(crate) fn add_log(&self, rid: u64, finalize_seq: Option<u64>, items: &[TestItem]) {
        let mut trees = self.trees.lock();
        let trees = &mut *trees;
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
        let mut lt = LogTrees::new_zeroed();
        let nr = trees.logs.range((rid, 0)..=(rid, u64::MAX)).next_back().map_or(0, |((_, nr), _)| *nr) + 1;
        (lt.rid, lt.nr) = (rid.into(), nr.into());
        if let Some(seq) = finalize_seq {
            (lt.flags, lt.finalize_seq) = (1.into(), seq.into());
        }
        let bloom = cow.content_mut::<BloomContent>(&mut lt.bloom_ref).unwrap();
        items.iter().for_each(|i| bloom.set(&lock_of(&i.0).start()));
        insert_items(&mut cow, &mut lt.item_root, items);
        dirty.write_out(&self.store).unwrap();
        trees.logs.insert((rid, nr), lt);
        self.store_logs(trees).unwrap();
    }

    /// As a client of the original may leave it: a bloom block beside an empty tree.
    pub(crate) fn add_log_with_bloom_only(&self, rid: u64, key: &Key) {
        let mut trees = self.trees.lock();
        let trees = &mut *trees;
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
        let mut lt = LogTrees::new_zeroed();
        (lt.rid, lt.nr) = (rid.into(), 1.into());
        cow.content_mut::<BloomContent>(&mut lt.bloom_ref).unwrap().set(&lock_of(key).start());
        dirty.write_out(&self.store).unwrap();
        trees.logs.insert((rid, 1), lt);
        self.store_logs(trees).unwrap();
    }

    /// Stores items in the main tree.
    pub(crate) fn add_fs(&self, items: &[TestItem]) {
        let mut trees = self.trees.lock();
        let trees = &mut *trees;
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
        insert_items(&mut cow, &mut trees.fs_root, items);
        dirty.write_out(&self.store).unwrap();
    }

    /// Makes a small tree of ordinary items, for example of merge state.
    pub(crate) fn make_tree(&self, items: &[(Key, Vec<u8>)]) -> BtreeRoot {
        let mut trees = self.trees.lock();
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
        let mut root = BtreeRoot::new_zeroed();
        for (key, value) in items {
            btree::insert(&mut cow, &mut root, key, value).unwrap();
        }
        dirty.write_out(&self.store).unwrap();
        root
    }

    /// Replaces a root by hand, for tests of damage.
    pub(crate) fn set_fs_root(&self, root: BtreeRoot) {
        self.trees.lock().fs_root = root;
    }
}

/// Key, seq, deletion, value.
pub(crate) type TestItem = (Key, u64, bool, Vec<u8>);

/// The lock that covers an item.
pub(crate) fn lock_of(key: &Key) -> LockName {
    match key.zone {
        consts::ZONE_INODE_INDEX => LockName::meta_index(key.second.into()),
        consts::ZONE_XATTR_TOTL => LockName::totl(),
        consts::ZONE_ORPHAN => LockName::orphan(),
        _ => LockName::inode(key.first.into()),
    }
}

fn insert_items(cow: &mut Cow, root: &mut BtreeRoot, items: &[TestItem]) {
    let mut sorted: Vec<&TestItem> = items.iter().collect();
    sorted.sort_by_key(|i| i.0);
    let items = sorted.into_iter().map(|(key, seq, deleted, value)| LogItem {
        key: *key,
        seq: *seq,
        flags: u8::from(*deleted),
        value,
    });
    btree::insert_list(cow, root, items, |_| false).unwrap();
}
