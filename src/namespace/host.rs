//! What the namespace is built on and what it asks of its neighbours.
//!
//! [`Mount`] is the part of a mount that talks to the server; [`FileData`] is the room that keeps the contents of regular
//! files. Both are traits so that this room can be driven by a test without either.

use smallvec::SmallVec;

use super::Namespace;
use super::inode::Inode;
use crate::block::BlockStore;
use crate::error::Result;
use crate::format::layout::{NetRoots, NetStatfs};
use crate::format::{DataBlock, Ino, Key};
use crate::item::{ItemLock, ItemShard, Items, Value};
use crate::lock::LockClient;
use crate::sync::Arc;
use crate::txn::{Hold, Txn};

/// The mount's requests to the server and its open map.
pub(crate) trait Mount: Send + Sync {
    /// A new inode number. `ENOSPC` if there are no more.
    fn alloc_ino(&self, dir: bool) -> Result<Ino>;

    /// The inodes of `group` (1024 numbers) that other mounts use; a request to the server. The caller holds the group's
    /// WRITE lock, so that no bit can be added meanwhile.
    fn others_open(&self, group: u64) -> Result<[u8; 128]>;

    /// Sets this mount's own open map bit of `ino`; the caller holds the group's lock.
    fn set_open(&self, ino: Ino);

    /// Clears the bit.
    fn clear_open(&self, ino: Ino);

    /// Space and inode counts as the server knows them.
    fn statfs(&self) -> Result<NetStatfs>;

    /// Roots of the last stable state of the volume.
    fn roots(&self) -> Result<NetRoots>;
}

/// Everything a [`Namespace`] works with.
pub(crate) struct NamespaceParts {
    pub(crate) locks: Arc<LockClient<ItemShard>>,
    pub(crate) items: Arc<Items>,
    pub(crate) txn: Arc<Txn>,
    pub(crate) store: Arc<BlockStore>,
    pub(crate) mount: Arc<dyn Mount>,
    pub(crate) data: Arc<dyn FileData>,
    /// Format version of the volume.
    pub(crate) fmt_vers: u64,
    pub(crate) options: NamespaceOptions,
}

/// Choices of a mount that concern names and inodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamespaceOptions {
    /// Refuse every change with `EROFS`.
    pub(crate) read_only: bool,
    /// POSIX ACLs are kept and checked; without, `system.posix_acl_*` is `EOPNOTSUPP`.
    pub(crate) acl: bool,
    /// Unused inodes kept in memory.
    pub(crate) cached_inodes: usize,
    /// Names kept in memory.
    pub(crate) cached_names: usize,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        NamespaceOptions { read_only: false, acl: true, cached_inodes: 128 * 1024, cached_names: 128 * 1024 }
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

    /// Forgets cached contents (dirty or not) from block `from` on, then plans to remove the extents there, as many as one
    /// transaction should. The items are changed by the caller, together with the block counts of the inode item.
    fn plan_removal(&self, file: &Arc<Inode>, lock: &ItemLock, hold: &Hold<'_>, from: u64) -> Result<Removal>;

    /// The planned removal has been applied: remembered mappings are to be dropped.
    fn removed(&self, file: &Arc<Inode>, from: u64);
}
