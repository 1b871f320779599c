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
//! **Not here**: contents of files (the data room implements `FileData`), quota rules and searches (archive).

mod acl;
mod attr;
mod attr_x;
mod cache;
mod create;
mod delete;
mod dir;
mod frame;
mod host;
mod inode;
mod link;
mod names;
mod open;
mod paths;
mod permission;
mod rename;
mod types;
mod xattr;
mod xattr_plan;

#[cfg(test)]
mod tests;

use crate::client::Node;
use crate::error::Result;
use crate::format::Ino;
use crate::format::consts::NAME_MAX;
use crate::sync::{Arc, Mutex};
use cache::InodeCache;
use delete::OthersOpen;
use names::NameCache;

#[cfg(feature = "internals")]
pub(crate) use acl::Acl;
pub(crate) use frame::{GroupLocks, Touch, Tx, lock_ops};
pub(crate) use host::{FileData, NamespaceOptions, Removal};
pub(crate) use inode::{Fields, Inode};
pub(crate) use open::OpenInode;
pub(crate) use permission::mode_after_write;

pub use types::{
    Access, Attr, AttrX, Caller, Caps, DirBatch, DirEntry, FileHandle, HiddenCursor, InoPath, Referrer, RenameFlags,
    SetAttr, SetTime, StatFs, Time, XattrFlags,
};

/// All operations on names and inodes of one mount, by inode number.
///
/// Every call checks the caller's permissions itself. Errors are the errnos of `spec/06 §13`.
pub(crate) struct Namespace {
    node: Arc<Node>,
    data: Arc<dyn FileData>,
    inodes: InodeCache,
    names: NameCache,
    others_open: OthersOpen,
    /// Seen with an unfinished truncation that nobody works on (defect 62).
    unfinished: Mutex<std::collections::BTreeSet<Ino>>,
    /// Held together with the rename lock, which keeps away only other mounts.
    renaming: Mutex<()>,
}

impl Namespace {
    /// The namespace of a mount.
    pub(crate) fn new(node: Arc<Node>, data: Arc<dyn FileData>, options: NamespaceOptions) -> Arc<Namespace> {
        Arc::new(Namespace {
            node,
            data,
            inodes: InodeCache::new(options.cached_inodes),
            names: NameCache::new(options.cached_names),
            others_open: OthersOpen::new(),
            unfinished: Mutex::default(),
            renaming: Mutex::default(),
        })
    }

    /// Space and inode counts (`spec/06 §5.11`).
    pub(crate) fn statfs(&self) -> Result<StatFs> {
        let s = self.node.statfs()?;
        let word = |i: usize| u32::from_le_bytes([s.uuid[i], s.uuid[i + 1], s.uuid[i + 2], s.uuid[i + 3]]);
        let (meta, data) = (s.total_meta_blocks.get(), s.total_data_blocks.get());
        let free_meta = s.free_meta_blocks.get().min(meta);
        let free_data = s.free_data_blocks.get().min(data);
        let files = meta.saturating_mul(32);
        Ok(StatFs {
            fsid: [word(0) ^ word(4), word(8) ^ word(12)],
            block_size: 4096,
            blocks: meta.saturating_mul(16).saturating_add(data),
            free_blocks: free_meta.saturating_mul(16).saturating_add(free_data),
            files,
            free_files: files.saturating_sub(s.inode_count.get()),
            name_len: NAME_MAX as u32,
        })
    }

    /// Makes everything done so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.node.read_only { Ok(()) } else { self.node.txn.sync() }
    }

    /// Drops what is cached of inodes that nobody uses; for unmount, after which no operation may come.
    pub(crate) fn close(&self) {
        self.inodes.clear();
    }
}
