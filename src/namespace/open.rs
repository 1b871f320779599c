//! Open handles: what keeps an inode without links alive (`spec/06 §3.6`).
//!
//! This mount's open map bit of an inode is set exactly while it has open handles. It is set under the group's lock, so a
//! mount that holds the group's WRITE lock and has seen all bits clear knows that nobody uses the inode. Numbers and names
//! that a front end merely remembers count for nothing.

use super::types::{Access, Caller};
use super::{Inode, Namespace};
use crate::error::{Errno, Result, fail};
use crate::format::{DirentKind, Ino};
use crate::lock::Mode;
use crate::sync::Arc;

/// Keeps an inode alive although its last name may go away: what an open file descriptor is.
///
/// Dropping the last handle of an unlinked inode deletes it, which takes cluster locks: never drop one inside a
/// transaction or while holding a cluster lock.
pub(crate) struct OpenInode {
    ns: Arc<Namespace>,
    inode: Arc<Inode>,
}

impl OpenInode {
    /// A handle that [`Namespace::count_open`] has counted already.
    pub(super) fn counted(ns: &Arc<Namespace>, inode: Arc<Inode>) -> OpenInode {
        OpenInode { ns: ns.clone(), inode }
    }
}

impl Clone for OpenInode {
    fn clone(&self) -> OpenInode {
        self.ns.count_open(&self.inode);
        OpenInode { ns: self.ns.clone(), inode: self.inode.clone() }
    }
}

impl Drop for OpenInode {
    fn drop(&mut self) {
        self.ns.close_inode(&self.inode);
    }
}

impl Namespace {
    /// Opens an existing inode after checking access. A symbolic link is `ELOOP` (unless no access is asked for, which only
    /// keeps it alive), writing to a directory `EISDIR`.
    pub(crate) fn open(self: &Arc<Self>, caller: &Caller, ino: Ino, access: Access) -> Result<OpenInode> {
        if access.has(Access::WRITE) {
            self.writable()?;
        }
        let inode = self.inode(ino)?;
        {
            let lock = self.lock_group(&inode, Mode::Read)?;
            let _op = inode.op.read();
            let f = self.fresh(&inode, &lock)?;
            if f.nlink == 0 && inode.opens.lock().count == 0 {
                // Unlinked, and not by somebody here who still has it open: it is being deleted somewhere.
                return fail(Errno::ESTALE);
            }
            match f.kind {
                DirentKind::Symlink if access != Access::NONE => return fail(Errno::ELOOP),
                DirentKind::Dir if access.has(Access::WRITE) => return fail(Errno::EISDIR),
                _ => {}
            }
            self.check_access(&inode, &lock, &f, caller, access)?;
            if access.has(Access::WRITE) && f.in_retention() {
                return fail(Errno::EPERM);
            }
            self.count_open(&inode);
        }
        Ok(OpenInode { ns: self.clone(), inode })
    }

    /// One more handle; the caller holds the group's lock or has a handle already.
    pub(super) fn count_open(&self, inode: &Inode) {
        let mut opens = inode.opens.lock();
        opens.count += 1;
        if opens.count == 1 {
            self.node.omap_set(inode.ino());
        }
    }

    /// One handle less; the last one of an inode without links deletes it.
    fn close_inode(&self, inode: &Arc<Inode>) {
        {
            let mut opens = inode.opens.lock();
            opens.count -= 1;
            if opens.count > 0 {
                return;
            }
            opens.linkable = false;
            self.node.omap_clear(inode.ino());
        }
        if self.node.read_only {
            return;
        }
        // Another mount may have taken the last link while this one did not look, so coverage that was lost is asked for
        // again, instead of leaving the inode to a scan much later.
        let unlinked = self.with_fields(inode.ino(), |_, _, f| Ok(f.nlink == 0));
        if matches!(unlinked, Ok(true))
            && let Err(error) = self.delete_if_unused(inode.ino())
        {
            tracing::debug!(ino = inode.ino().0, %error, "deletion is left to the orphan scan");
        }
    }
}
