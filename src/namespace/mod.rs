//! Inodes, directories, extended attributes, ACLs, permissions: what POSIX operations do to items (`spec/06`).
//!
//! **Problem.** A program wants files and directories; the volume stores items that other mounts read and write as well.
//! Each operation must take the cluster locks that protect its items, look at what is really there, and change all items
//! that belong together in one transaction.
//!
//! **Idea.** Every modifying operation has one frame: local inode locks, cluster locks, refresh, all checks, index locks and
//! the transaction hold, then one change set that is applied at once. Nothing has to be undone half way: before the change
//! set is applied nothing has changed, and applying it either fails as a whole or succeeds as a whole.
//!
//! **Invariants** (cited by tests):
//!  1. The fields of a cached inode are used only under its group's cluster lock and only if they were loaded under the
//!     current grant (refresh generation); they change only together with the inode item, inside a transaction hold.
//!  2. Local order: operation locks of inodes by rising number, then cluster locks (rename, inode groups by rising number,
//!     orphan, totl or indx, index locks sorted), then the hold, then the field lock of an inode, which is never held while
//!     waiting for anything else.
//!  3. An inode item with nlink 0 exists exactly as long as its orphan item.
//!  4. Three entry items per link, changed together with the inode items they imply.
//!  5. One metadata index item per inode and one data index item per regular file, equal to the fields of the inode item.
//!  6. An inode is deleted only under its group's WRITE lock, when no open map bit of any mount is set.
//!
//! **Not here**: contents of files (the data room implements [`FileData`]), quota rules and searches (archive).

mod acl;
mod cache;
mod frame;
mod host;
mod inode;
mod names;
mod permission;
mod types;

use crate::block::BlockStore;
use crate::error::Result;
use crate::format::Ino;
use crate::item::{ItemShard, Items};
use crate::lock::LockClient;
use crate::sync::Arc;
use crate::txn::Txn;
use cache::InodeCache;
use names::NameCache;

pub(crate) use frame::{GroupLocks, Touch, Tx, lock_ops};
pub(crate) use host::{FileData, Mount, NamespaceOptions, NamespaceParts, Removal};
pub(crate) use inode::{Fields, Inode};

pub use types::{
    Access, Attr, AttrX, Caller, Caps, DirBatch, DirEntry, FileHandle, HiddenCursor, InoPath, Referrer, RenameFlags,
    SetAttr, SetTime, StatFs, Time, XattrFlags,
};

/// All operations on names and inodes of one mount, by inode number.
///
/// Every call checks the caller's permissions itself. Errors are the errnos of `spec/06 §13`.
pub(crate) struct Namespace {
    locks: Arc<LockClient<ItemShard>>,
    items: Arc<Items>,
    txn: Arc<Txn>,
    store: Arc<BlockStore>,
    mount: Arc<dyn Mount>,
    data: Arc<dyn FileData>,
    fmt_vers: u64,
    options: NamespaceOptions,
    inodes: InodeCache,
    names: NameCache,
}

/// Keeps an inode alive although its last name may go away: what an open file descriptor is.
///
/// Dropping the last handle of an unlinked inode deletes it, which takes cluster locks: never drop one inside a
/// transaction or while holding a cluster lock.
pub(crate) struct OpenInode {}

impl OpenInode {
    /// Number of the open inode.
    pub(crate) fn ino(&self) -> Ino {
        todo!()
    }
}

impl Namespace {
    /// The namespace of a mount.
    pub(crate) fn new(parts: NamespaceParts) -> Arc<Namespace> {
        Arc::new(Namespace {
            inodes: InodeCache::new(parts.options.cached_inodes),
            names: NameCache::new(parts.options.cached_names),
            locks: parts.locks,
            items: parts.items,
            txn: parts.txn,
            store: parts.store,
            mount: parts.mount,
            data: parts.data,
            fmt_vers: parts.fmt_vers,
            options: parts.options,
        })
    }

    /// The inode that `name` in `parent` leads to. `.` and `..` are understood.
    pub(crate) fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        todo!()
    }

    /// Attributes of an inode. `ESTALE` if the number is not in use.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        todo!()
    }

    /// Changes attributes and returns the new ones.
    pub(crate) fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        todo!()
    }

    /// `EACCES` unless the caller has the asked access.
    pub(crate) fn access(&self, caller: &Caller, ino: Ino, access: Access) -> Result<()> {
        todo!()
    }

    /// Opens an existing inode after checking access. `truncate` is setattr(size 0) through the handle.
    pub(crate) fn open(self: &Arc<Self>, caller: &Caller, ino: Ino, access: Access) -> Result<OpenInode> {
        todo!()
    }

    /// Up to `limit` entries from `cursor` (0 starts, `.` and `..` included). Access was checked when the directory was opened.
    pub(crate) fn readdir(&self, dir: Ino, cursor: u64, limit: usize) -> Result<DirBatch> {
        todo!()
    }

    /// Like [`Self::readdir`], with the attributes of every entry.
    pub(crate) fn readdir_plus(&self, dir: Ino, cursor: u64, limit: usize) -> Result<DirBatch> {
        todo!()
    }

    /// Makes a regular file. `mode` has permission bits.
    pub(crate) fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        todo!()
    }

    /// Makes a regular file and opens it, as one step.
    pub(crate) fn create_open(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, OpenInode)> {
        todo!()
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        todo!()
    }

    /// Makes an inode of the kind in `mode` (not a directory or symlink); `rdev` as in [`Attr::rdev`].
    pub(crate) fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr> {
        todo!()
    }

    /// Makes a symbolic link to `target`.
    pub(crate) fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        todo!()
    }

    /// Makes a regular file without a name. It can be linked unless `exclusive`, and vanishes with the handle.
    pub(crate) fn tmpfile(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        mode: u32,
        exclusive: bool,
    ) -> Result<(Attr, OpenInode)> {
        todo!()
    }

    /// Adds a name to an inode that is not a directory.
    pub(crate) fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        todo!()
    }

    /// Removes a name that does not lead to a directory.
    pub(crate) fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Moves a name.
    pub(crate) fn rename(
        &self,
        caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        flags: RenameFlags,
    ) -> Result<()> {
        todo!()
    }

    /// Target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        todo!()
    }

    /// Value of an extended attribute.
    pub(crate) fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }

    /// Sets an extended attribute, an ACL included.
    pub(crate) fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        todo!()
    }

    /// Removes an extended attribute; `ENODATA` if there is none.
    pub(crate) fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Names of the attributes that are not hidden, each followed by NUL.
    pub(crate) fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        todo!()
    }

    /// Names of hidden attributes from `cursor`, each followed by NUL, at most `bytes`. `ERANGE` if the first does not fit.
    pub(crate) fn list_hidden_xattrs(
        &self,
        caller: &Caller,
        ino: Ino,
        cursor: HiddenCursor,
        bytes: usize,
    ) -> Result<(Vec<u8>, HiddenCursor)> {
        todo!()
    }

    /// The archive attributes; every field that the volume has is given.
    pub(crate) fn get_attr_x(&self, ino: Ino) -> Result<AttrX> {
        todo!()
    }

    /// Sets archive attributes: retention, project, times, size and data version of new files.
    pub(crate) fn set_attr_x(&self, caller: &Caller, ino: Ino, set: &AttrX) -> Result<()> {
        todo!()
    }

    /// Space and inode counts.
    pub(crate) fn statfs(&self) -> Result<StatFs> {
        todo!()
    }

    /// Makes everything done so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        todo!()
    }

    /// A path of `ino`, starting from its first link at or after (`dir`, `pos`).
    pub(crate) fn ino_path(&self, caller: &Caller, ino: Ino, from: (Ino, u64)) -> Result<InoPath> {
        todo!()
    }

    /// Links to `ino` from the cursor (directory, position) on, at most `limit`.
    pub(crate) fn referring_entries(
        &self,
        caller: &Caller,
        ino: Ino,
        from: (Ino, u64),
        limit: usize,
    ) -> Result<Vec<Referrer>> {
        todo!()
    }

    /// Inode numbers at or after `start`, within its group of 1024, that own any item.
    pub(crate) fn allocated_inos(&self, caller: &Caller, start: Ino, limit: usize) -> Result<Vec<Ino>> {
        todo!()
    }

    /// The inode of an export handle; `ESTALE` if it is malformed or the inode has no links.
    pub(crate) fn resolve_handle(&self, handle: &FileHandle) -> Result<Attr> {
        todo!()
    }

    /// A directory that has an entry for `ino`.
    pub(crate) fn parent_of(&self, ino: Ino) -> Result<Ino> {
        todo!()
    }

    /// The name of `ino` in `parent`.
    pub(crate) fn name_in(&self, parent: Ino, ino: Ino) -> Result<Vec<u8>> {
        todo!()
    }

    /// One pass over the orphans of the merged tree; deletes those that nobody uses. For the background thread.
    pub(crate) fn scan_orphans(&self) -> Result<()> {
        todo!()
    }

    /// Drops what is cached of inodes that nobody uses; for unmount, after which no operation may come.
    pub(crate) fn close(&self) -> Result<()> {
        todo!()
    }
}
