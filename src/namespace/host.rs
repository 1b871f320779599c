//! What the namespace asks of the room that keeps the contents of regular files.
//!
//! That room lies above this one (it uses inodes), so what is asked of it is a trait.

use smallvec::SmallVec;

use super::Namespace;
use super::inode::Inode;
use crate::error::Result;
use crate::format::{DataBlock, Key};
use crate::item::{ChangeSet, ItemLock, Value};
use crate::sync::Arc;
use crate::txn::Hold;

/// Limits of the caches of this room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamespaceOptions {
    /// Unused inodes kept in memory.
    pub(crate) cached_inodes: usize,
    /// Names kept in memory.
    pub(crate) cached_names: usize,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        NamespaceOptions { cached_inodes: 128 * 1024, cached_names: 128 * 1024 }
    }
}

/// One step of removing extents, planned inside a transaction hold and not yet applied.
#[derive(Default)]
pub(crate) struct Removal {
    /// Extent items to delete (`None`) or to overwrite.
    pub(crate) items: SmallVec<[(Key, Option<Value>); 8]>,
    /// Data blocks to give back once the items are changed.
    pub(crate) freed: SmallVec<[(DataBlock, u64); 8]>,
    /// Blocks that no longer count as online.
    pub(crate) online: u64,
    /// Blocks that no longer count as offline.
    pub(crate) offline: u64,
    /// Where the next step has to go on; `None`: nothing is left.
    pub(crate) next: Option<u64>,
}

/// The contents of regular files. `file` is always a regular file, its operation lock held in write mode and its group's
/// lock held in WRITE mode with fields refreshed.
pub(crate) trait FileData: Send + Sync {
    /// The size is about to become `size`. Whatever can fail or wait happens here, outside of any transaction: finding
    /// offline contents that must be staged first, reading the blocks whose tails will have to be zeroed.
    fn before_resize(&self, ns: &Namespace, file: &Arc<Inode>, lock: &ItemLock, size: u64) -> Result<()>;

    /// The inode item has got its new size in the transaction `hold`: zeroes the tail of the block that holds the lesser of
    /// both ends, forgets cached contents past the new end. Cannot fail.
    fn resized(&self, file: &Arc<Inode>, lock: &ItemLock, hold: &Hold<'_>, old_size: u64, new_size: u64);

    /// Plans to remove the extents from block `from` on, as many as one transaction should. The items are changed by the
    /// caller, together with the block counts of the inode item, in the same transaction. Nothing else has happened yet.
    fn plan_removal(&self, file: &Arc<Inode>, lock: &ItemLock, hold: &Hold<'_>, from: u64) -> Result<Removal>;

    /// The planned removal has been applied: forgets cached contents (dirty or not) from block `from` on.
    fn removed(&self, file: &Arc<Inode>, hold: &Hold<'_>, from: u64);
}

impl Removal {
    /// Adds the changes of extent items.
    pub(crate) fn add_to<'a>(&self, cs: &mut ChangeSet<'a>, lock: &'a ItemLock) {
        for (key, value) in &self.items {
            match value {
                Some(value) => cs.put(lock, *key, value.clone()),
                None => cs.delete(lock, *key),
            }
        }
    }

    /// Gives the blocks back, after the items have been changed.
    pub(crate) fn finish(&self, data: &dyn FileData, file: &Arc<Inode>, hold: &Hold<'_>, from: u64) -> Result<()> {
        for (start, count) in &self.freed {
            hold.data_free(*start, *count)?;
        }
        data.removed(file, hold, from);
        Ok(())
    }
}
