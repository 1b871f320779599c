//! Final deletion of inodes without links (`spec/06 §3.7`).
//!
//! **Problem.** An inode that lost its last link may still be open, here or on another mount. Whoever deletes it must know
//! that nobody uses it, and a deletion of something large takes many transactions, any of which may be the last before a
//! crash.
//!
//! **Idea.** The group's WRITE lock keeps new users out, the open maps tell about present ones. The orphan item stays until
//! the last transaction, so a deletion that was cut off is found and started again; every step may be repeated. An inode
//! that is small and unused is deleted in the very transaction that takes its last link, and never becomes an orphan.

use std::ops::ControlFlow;

use super::xattr_plan::XattrRemoval;
use super::{Fields, Inode, Namespace, Touch, Tx};
use crate::btree;
use crate::error::{Error, Result};
use crate::format::consts::TYPE_SYMLINK;
use crate::format::{Ino, ItemKey, Key, keys};
use crate::item::{ChangeSet, ItemLock};
use crate::lock::{LockName, Mode};
use crate::sync::{Arc, HashMap, Mutex};
use crate::txn::HoldKind;

/// Blocks above which extents are removed by transactions of their own.
const DIRECT_BLOCKS: u64 = 1 << 18;
/// Attribute parts that one transaction removes.
const XATTR_BATCH: usize = 256;
const SHARDS: usize = 16;
const GROUPS_PER_SHARD: usize = 256;

/// By group: the refresh generation of the grant under which it was asked for, and the bits.
type MapsByGroup = HashMap<u64, (u64, [u8; 128])>;

/// Open maps of other mounts, each good under one WRITE grant of its group.
pub(crate) struct OthersOpen {
    shards: Vec<Mutex<MapsByGroup>>,
}

impl OthersOpen {
    pub(crate) fn new() -> OthersOpen {
        OthersOpen { shards: (0..SHARDS).map(|_| Mutex::new(HashMap::default())).collect() }
    }
}

/// Everything that goes with an inode item, besides its extents.
pub(crate) struct Remains {
    xattrs: XattrRemoval,
    symlink_parts: Vec<Key>,
}

impl Remains {
    /// Does the deletion need the lock of the totals, of the value index?
    pub(crate) fn tag_locks(&self) -> impl Iterator<Item = LockName> {
        let totl = (!self.xattrs.totals.is_empty()).then(LockName::totl);
        let indx = (!self.xattrs.index.is_empty()).then(LockName::indx);
        totl.into_iter().chain(indx)
    }
}

impl Namespace {
    /// Does nobody use the inode, here or elsewhere? The caller holds its operation lock in write mode and its group's
    /// WRITE lock. A map that cannot be had means "somebody may".
    pub(crate) fn is_unused(&self, inode: &Inode, lock: &ItemLock) -> bool {
        if inode.opens.lock().count > 0 {
            return false;
        }
        let group = inode.ino().0 >> 10;
        // Held while the server is asked, so that one request serves all tasks that delete in the group.
        let mut shard = self.others_open.shards[group as usize % SHARDS].lock();
        if let Some((seq, bits)) = shard.get(&group)
            && *seq == lock.write_seq()
        {
            return !is_set(bits, inode.ino());
        }
        let Ok(bits) = self.node.open_map(group) else { return false };
        if shard.len() >= GROUPS_PER_SHARD {
            shard.clear();
        }
        shard.insert(group, (lock.write_seq(), bits));
        !is_set(&bits, inode.ino())
    }

    /// Collects what a deletion in one transaction has to remove; `None` if it is too much for one.
    pub(crate) fn small_remains(&self, inode: &Inode, lock: &ItemLock, f: &Fields) -> Result<Option<Remains>> {
        if f.online_blocks.saturating_add(f.offline_blocks) > DIRECT_BLOCKS {
            return Ok(None);
        }
        let (xattrs, complete) = self.plan_xattr_removal(lock, inode.ino(), f, XATTR_BATCH)?;
        if !complete {
            return Ok(None);
        }
        Ok(Some(Remains { xattrs, symlink_parts: self.symlink_parts(lock, inode.ino(), f)? }))
    }

    fn symlink_parts(&self, lock: &ItemLock, ino: Ino, f: &Fields) -> Result<Vec<Key>> {
        let mut found = Vec::new();
        if f.kind == crate::format::DirentKind::Symlink {
            self.node.items.scan(lock, keys::inode_items_of_type(ino, TYPE_SYMLINK), &mut |key, _| {
                found.push(*key);
                ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }

    /// Adds the removal of the inode and all that is left of it. Extents must be gone or planned to go.
    pub(crate) fn delete_all<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        tx: &'a Tx<'_>,
        lock: &'a ItemLock,
        tags: &'a [(LockName, ItemLock)],
        (ino, f): (Ino, &Fields),
        remains: &Remains,
    ) {
        remains.xattrs.add_to(cs, lock, tags);
        for key in &remains.symlink_parts {
            cs.delete(lock, *key);
        }
        self.delete_inode(cs, tx, lock, ino, f);
    }

    /// The inode item is gone: memory follows.
    pub(crate) fn forget_deleted(&self, inode: &Inode, tx: &Tx<'_>, remains: &Remains) {
        remains.xattrs.log(tx);
        tx.hold().inode_count(-1);
        inode.forget();
        self.inodes.remove(inode.ino());
    }

    /// Takes the locks of the tag zones that a deletion needs; before the index locks.
    pub(crate) fn lock_tags(&self, remains: Option<&Remains>) -> Result<Vec<(LockName, ItemLock)>> {
        let Some(remains) = remains else { return Ok(Vec::new()) };
        remains.tag_locks().map(|name| Ok((name, self.node.locks.acquire(name, Mode::WriteOnly)?))).collect()
    }

    /// Deletes an inode without links if nobody uses it. False: somebody does, or it has a link again.
    pub(crate) fn delete_if_unused(&self, ino: Ino) -> Result<bool> {
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Write)?;
        let _op = inode.op.write();
        let Some(f) = self.fresh_if_any(&inode, &lock)? else {
            self.inodes.remove(ino);
            return Ok(true);
        };
        if f.nlink > 0 || !self.is_unused(&inode, &lock) {
            return Ok(false);
        }
        let orphans = self.node.locks.acquire(LockName::orphan(), Mode::WriteOnly)?;
        if f.is_regular() {
            self.delete_extents(&inode, &lock)?;
        }
        let remains = loop {
            let (xattrs, complete) = self.plan_xattr_removal(&lock, ino, &f, XATTR_BATCH)?;
            if complete {
                break Remains { xattrs, symlink_parts: self.symlink_parts(&lock, ino, &f)? };
            }
            self.delete_xattrs(&lock, xattrs)?;
        };
        let tags = self.lock_tags(Some(&remains))?;
        let tx = self.begin(HoldKind::Freeing, &[(&inode, Touch::Gone)])?;
        let f = inode.fields();
        let mut cs = ChangeSet::new(&self.node.items);
        self.delete_all(&mut cs, &tx, &lock, &tags, (ino, &f), &remains);
        cs.force_delete(&orphans, &lock, keys::orphan(ino));
        cs.apply(tx.hold())?;
        self.forget_deleted(&inode, &tx, &remains);
        Ok(true)
    }

    /// Removes all extents of a file that is being deleted, without touching its inode item.
    fn delete_extents(&self, inode: &Arc<Inode>, lock: &ItemLock) -> Result<()> {
        let mut from = Some(0);
        while let Some(at) = from {
            let hold = self.node.txn.hold(HoldKind::Freeing)?;
            let removal = self.data.plan_removal(inode, lock, &hold, at)?;
            let mut cs = ChangeSet::new(&self.node.items);
            removal.add_to(&mut cs, lock);
            cs.apply(&hold)?;
            removal.finish(&*self.data, inode, &hold, at)?;
            from = removal.next;
        }
        Ok(())
    }

    fn delete_xattrs(&self, lock: &ItemLock, xattrs: XattrRemoval) -> Result<()> {
        let remains = Remains { xattrs, symlink_parts: Vec::new() };
        let tags = self.lock_tags(Some(&remains))?;
        let tx = self.begin(HoldKind::Freeing, &[])?;
        let mut cs = ChangeSet::new(&self.node.items);
        remains.xattrs.add_to(&mut cs, lock, &tags);
        cs.apply(tx.hold())?;
        remains.xattrs.log(&tx);
        Ok(())
    }

    /// What a mount does now and then for the whole volume: finishes what others, or it itself in an earlier life, left
    /// half done. For the background thread.
    pub(crate) fn tidy_up(&self) -> Result<()> {
        let truncates = if self.node.read_only { Ok(()) } else { self.complete_truncates() };
        self.scan_orphans().and(truncates)
    }

    /// One pass over the orphans of the merged tree; deletes those that nobody uses. For the background thread.
    ///
    /// Orphans that are still in a log tree are not seen: this leaves alone what was unlinked a moment ago. One that cannot be
    /// deleted does not keep the others.
    pub(crate) fn scan_orphans(&self) -> Result<()> {
        if self.node.read_only {
            return Ok(());
        }
        let roots = self.node.roots()?;
        let reader = btree::Reader::new(&self.node.store);
        let mut key = keys::orphan(Ino(Ino::ROOT.0 + 1));
        let last = keys::orphan(Ino(u64::MAX));
        // Of the group looked at last: orphans come in order of their numbers.
        let mut open = None;
        loop {
            let found = match btree::next(&reader, &roots.fs_root, &key) {
                Ok(found) => found,
                // The volume went on; the next pass has newer roots.
                Err(Error::Stale { .. }) => return Ok(()),
                Err(e) => return Err(e),
            };
            let Some((found, _)) = found.filter(|(k, _)| *k <= last) else { return Ok(()) };
            if let Some(ItemKey::Orphan { ino }) = ItemKey::parse(&found)
                && let Err(error) = self.delete_orphan(ino, &mut open)
            {
                if matches!(error, Error::Shutdown(_)) {
                    return Err(error);
                }
                tracing::warn!(ino = ino.0, %error, "an orphan could not be deleted");
            }
            if found == last {
                return Ok(());
            }
            key = found.next();
        }
    }

    /// Deletes an orphan unless it is open somewhere, which is asked for without disturbing whoever holds its group's lock.
    fn delete_orphan(&self, ino: Ino, open: &mut Option<(u64, [u8; 128])>) -> Result<()> {
        if self.node.omap_test(ino) {
            return Ok(());
        }
        let group = ino.0 >> 10;
        let bits = match open {
            Some((g, bits)) if *g == group => *bits,
            _ => open.insert((group, self.node.open_map(group)?)).1,
        };
        if !is_set(&bits, ino) {
            self.delete_if_unused(ino)?;
        }
        Ok(())
    }
}

/// The bit of `ino` in the map of its group.
fn is_set(bits: &[u8; 128], ino: Ino) -> bool {
    let bit = ino.0 as usize & 1023;
    bits[bit / 8] & (1 << (bit % 8)) != 0
}
