//! Attributes: stat, chmod, chown, utimes, truncate, access checks, targets of symbolic links (`spec/06 §5.7, §5.8`).

use std::ops::ControlFlow;

use super::permission::{allowed_mode, is_owner, mode_after_write, without_set_id};
use super::types::{Access, Attr, Caller, Caps, SetAttr, SetTime};
use super::xattr::replace_xattr;
use super::{Fields, Inode, Namespace, Touch, lock_ops};
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::{INO_FLAG_TRUNCATE, SMALL_BYTES, TYPE_SYMLINK};
use crate::format::{DirentKind, Ino, decode_symlink, keys};
use crate::item::{ChangeSet, ItemLock};
use crate::lock::Mode;
use crate::sync::Arc;
use crate::txn::HoldKind;

/// Permission and special bits of a mode.
const MODE_BITS: u32 = 0o7777;

/// Interrupted truncations remembered at a time.
const UNFINISHED_MAX: usize = 4096;

impl Namespace {
    /// Attributes of an inode. `ESTALE` if the number is not in use.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        match self.inodes.peek(ino, |inode| inode.peek_fields(|_, f| Some(f.attr(ino)))) {
            Some(attr) => Ok(attr),
            None => self.with_fields(ino, |_, _, f| Ok(f.attr(ino))),
        }
    }

    /// `EACCES` unless the caller has the asked access.
    pub(crate) fn access(&self, caller: &Caller, ino: Ino, access: Access) -> Result<()> {
        if access.has(Access::WRITE) {
            self.writable()?;
        }
        self.with_fields(ino, |inode, lock, f| self.check_access(inode, lock, &f, caller, access))
    }

    /// Target of a symbolic link; `EINVAL` for anything else.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let f = self.fresh(&inode, &lock)?;
        if f.kind != DirentKind::Symlink {
            return fail(Errno::EINVAL);
        }
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut in_order = true;
        self.node.items.scan(&lock, keys::inode_items_of_type(ino, TYPE_SYMLINK), &mut |key, value| {
            in_order &= key.second == parts.len() as u64;
            parts.push(value.to_vec());
            if in_order { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !in_order {
            return Err(Error::corrupt(format!("symlink {ino}"), "a part is missing"));
        }
        decode_symlink(ino, f.size, &parts)
    }

    /// Changes attributes and returns the new ones.
    ///
    /// A change of size is a transaction (or several) of its own, before the rest.
    pub(crate) fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Write)?;
        let _ops = lock_ops(&[&inode]);
        let f = self.fresh(&inode, &lock)?;
        self.check_setattr(&inode, &lock, &f, caller, set)?;
        if let Some(size) = set.size {
            self.set_size(caller, &inode, &lock, size)?;
        }
        let only_size = SetAttr { size: None, through_handle: false, ..*set } == SetAttr::default();
        if set.size.is_none() || !only_size {
            self.set_fields(caller, &inode, &lock, set)?;
        }
        Ok(inode.fields().attr(ino))
    }

    /// The rules on changing attributes, all before anything changes.
    fn check_setattr(&self, inode: &Inode, lock: &ItemLock, f: &Fields, caller: &Caller, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            match f.kind {
                DirentKind::Regular => {}
                DirentKind::Dir => return fail(Errno::EISDIR),
                _ => return fail(Errno::EINVAL),
            }
            if size > i64::MAX as u64 {
                return fail(Errno::EFBIG);
            }
            if !set.through_handle {
                self.check_access(inode, lock, f, caller, Access::WRITE)?;
            }
        }
        let owner = is_owner(f, caller);
        let chown = caller.can(Caps::CHOWN);
        if set.uid.is_some_and(|u| !chown && (caller.uid != f.uid || u != f.uid)) {
            return fail(Errno::EPERM);
        }
        if set.gid.is_some_and(|g| !chown && !(caller.uid == f.uid && (g == f.gid || caller.in_group(g)))) {
            return fail(Errno::EPERM);
        }
        if set.mode.is_some() {
            if f.kind == DirentKind::Symlink {
                return fail(Errno::EOPNOTSUPP);
            }
            if !owner {
                return fail(Errno::EPERM);
            }
        }
        self.check_times(inode, lock, f, caller, set)?;
        if f.in_retention() { fail(Errno::EPERM) } else { Ok(()) }
    }

    fn check_times(&self, inode: &Inode, lock: &ItemLock, f: &Fields, caller: &Caller, set: &SetAttr) -> Result<()> {
        let given = [set.atime, set.mtime];
        let explicit = given.iter().flatten().filter_map(|t| match t {
            SetTime::At(t) => Some(t),
            SetTime::Now => None,
        });
        let mut any_explicit = set.ctime.is_some();
        for time in explicit.chain(&set.ctime) {
            any_explicit = true;
            if time.nsec >= 1_000_000_000 {
                return fail(Errno::EINVAL);
            }
        }
        if is_owner(f, caller) || given == [None, None] && set.ctime.is_none() {
            return Ok(());
        }
        // Both times to now is what anybody who may write can do; a truncation sets the modification time by itself.
        let touch = given == [Some(SetTime::Now); 2] || (set.size.is_some() && given[0].is_none());
        if any_explicit || !touch {
            return fail(Errno::EPERM);
        }
        if set.size.is_some() {
            return Ok(());
        }
        self.check_access(inode, lock, f, caller, Access::WRITE)
    }

    /// Everything but the size.
    fn set_fields(&self, caller: &Caller, inode: &Inode, lock: &ItemLock, set: &SetAttr) -> Result<()> {
        let stored = inode.fields();
        let acl = match set.mode {
            Some(_) if self.node.acl => self.stored_acl(inode, lock, &stored, false)?,
            _ => None,
        };
        let acl_item = match &acl {
            Some(_) => self.find_xattr(lock, inode.ino(), super::acl::ACCESS_NAME)?,
            None => None,
        };
        let tx = self.begin(HoldKind::Freeing, &[(inode, Touch::Meta)])?;
        let mut f = inode.fields();
        if set.uid.is_some() || set.gid.is_some() {
            f.mode = without_set_id(&f, caller);
        }
        f.uid = set.uid.unwrap_or(f.uid);
        f.gid = set.gid.unwrap_or(f.gid);
        if let Some(mode) = set.mode {
            f.mode = f.mode & !MODE_BITS | allowed_mode(mode & MODE_BITS, f.gid, caller);
        }
        let time = |t: SetTime| match t {
            SetTime::Now => tx.now,
            SetTime::At(t) => t,
        };
        f.atime = set.atime.map_or(f.atime, time);
        f.mtime = set.mtime.map_or(f.mtime, time);
        f.ctime = set.ctime.unwrap_or(tx.now);
        f.version += 1;
        let mut cs = ChangeSet::new(&self.node.items);
        let acl = acl.map(|acl| Arc::new(acl.with_mode(f.mode)));
        if let (Some(acl), Some(found)) = (&acl, &acl_item) {
            replace_xattr(&mut cs, lock, inode.ino(), found, super::acl::ACCESS_NAME, &acl.encode());
        }
        self.put_inode(&mut cs, &tx, lock, inode, &mut f, Touch::Meta);
        cs.apply(tx.hold())?;
        inode.store(lock.refresh_gen(), f);
        if acl.is_some() {
            inode.remember_acl(lock.refresh_gen(), false, super::inode::KnownAcl::Is(acl));
        }
        Ok(())
    }

    /// Changes the size of a regular file whose operation lock (write) and WRITE lock are held.
    fn set_size(&self, caller: &Caller, inode: &Arc<Inode>, lock: &ItemLock, size: u64) -> Result<()> {
        self.finish_truncate(inode, lock)?;
        self.data.before_resize(self, inode, lock, size)?;
        let tx = self.begin(HoldKind::Freeing, &[(inode, Touch::Data)])?;
        let mut f = inode.fields();
        let old_size = f.size;
        let mut cs = ChangeSet::new(&self.node.items);
        let from = size.div_ceil(SMALL_BYTES as u64);
        let mut removal = None;
        if size <= old_size {
            // Most truncations fit into the transaction that sets the size; only a larger one needs the flag.
            let planned = self.data.plan_removal(inode, lock, tx.hold(), from)?;
            planned.add_to(&mut cs, lock);
            f.online_blocks = f.online_blocks.saturating_sub(planned.online);
            f.offline_blocks = f.offline_blocks.saturating_sub(planned.offline);
            if planned.next.is_some() {
                f.flags |= INO_FLAG_TRUNCATE;
            }
            removal = Some(planned);
        }
        f.data_version += u64::from(size != old_size);
        f.size = size;
        (f.mtime, f.ctime) = (tx.now, tx.now);
        f.mode = mode_after_write(&f, caller);
        f.version += 1;
        self.put_inode(&mut cs, &tx, lock, inode, &mut f, Touch::Data);
        cs.apply(tx.hold())?;
        inode.store(lock.refresh_gen(), f);
        self.data.resized(inode, lock, tx.hold(), old_size, size);
        if let Some(removal) = &removal {
            removal.finish(&*self.data, inode, tx.hold(), from)?;
        }
        drop(tx);
        self.finish_truncate(inode, lock)
    }

    /// Finishes a truncation that this or another mount has begun (`spec/06 §3.8`): before every write and change of size.
    /// The operation lock (write) and the WRITE lock are held, the inode is fresh.
    pub(crate) fn finish_truncate(&self, inode: &Arc<Inode>, lock: &ItemLock) -> Result<()> {
        let mut from = inode.fields().size.div_ceil(SMALL_BYTES as u64);
        while inode.fields().truncate_pending() {
            let tx = self.begin(HoldKind::Freeing, &[(inode, Touch::Meta)])?;
            let mut f = inode.fields();
            let removal = self.data.plan_removal(inode, lock, tx.hold(), from)?;
            let mut cs = ChangeSet::new(&self.node.items);
            removal.add_to(&mut cs, lock);
            f.online_blocks = f.online_blocks.saturating_sub(removal.online);
            f.offline_blocks = f.offline_blocks.saturating_sub(removal.offline);
            match removal.next {
                Some(next) => from = next,
                None => f.flags &= !INO_FLAG_TRUNCATE,
            }
            self.put_inode(&mut cs, &tx, lock, inode, &mut f, Touch::Meta);
            cs.apply(tx.hold())?;
            inode.store(lock.refresh_gen(), f);
            removal.finish(&*self.data, inode, tx.hold(), from)?;
        }
        Ok(())
    }

    /// Finishes an interrupted truncation of an inode that was seen with the flag, without waiting for its next writer
    /// (defect 62). For a background thread.
    pub(crate) fn complete_truncate(&self, ino: Ino) -> Result<()> {
        self.writable()?;
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Write)?;
        let _ops = lock_ops(&[&inode]);
        match self.fresh_if_any(&inode, &lock)? {
            Some(f) if f.truncate_pending() => self.finish_truncate(&inode, &lock),
            _ => Ok(()),
        }
    }

    /// Finishes the interrupted truncations that were seen since the last pass. For the background thread; one that
    /// fails is tried again in the next pass and does not keep the others.
    pub(crate) fn complete_truncates(&self) -> Result<()> {
        let seen = std::mem::take(&mut *self.unfinished.lock());
        for ino in seen {
            match self.complete_truncate(ino) {
                Err(e @ Error::Shutdown(_)) => return Err(e),
                Err(error) => {
                    tracing::warn!(ino = ino.0, %error, "an interrupted truncation could not be finished");
                    self.saw_unfinished(ino);
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Remembers an inode that was read with an unfinished truncation. The mount that began it holds the group's WRITE lock
    /// to the end, so one that can be read belongs to a mount that is gone. More than there is room for are found again
    /// when they are read again.
    pub(super) fn saw_unfinished(&self, ino: Ino) {
        let mut unfinished = self.unfinished.lock();
        if unfinished.len() < UNFINISHED_MAX {
            unfinished.insert(ino);
        }
    }
}
