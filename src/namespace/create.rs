//! Making inodes: files, directories, special files, symbolic links, files without names (`spec/06 §5.3`).
//!
//! Everything that can forbid the creation is looked at before the first item exists, so a creation that loses a race
//! leaves nothing behind (defect 55).

use super::acl::{self, ACCESS_NAME, DEFAULT_NAME};
use super::dir::{Link, Name, take_position};
use super::inode::KnownAcl;
use super::names::Target;
use super::open::OpenInode;
use super::permission::new_owner;
use super::types::{Access, Attr, Caller, Caps};
use super::xattr::put_new_xattr;
use super::{Fields, GroupLocks, Inode, Namespace, Touch, lock_ops};
use crate::error::{Errno, Result, fail};
use crate::format::consts::{LINK_MAX, PART_BYTES, SYMLINK_MAX};
use crate::format::{DirentKind, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, encode_symlink, keys};
use crate::format::{Ino, S_IFBLK, S_IFCHR};
use crate::item::{ChangeSet, Value};
use crate::lock::{LockName, Mode};
use crate::sync::Arc;
use crate::txn::HoldKind;

/// What to make.
struct New<'a> {
    /// Kind and permission bits as asked for.
    mode: u32,
    rdev: u32,
    /// Target of a symbolic link.
    target: &'a [u8],
    /// Count an open handle before anybody else can see the inode.
    open: bool,
}

impl New<'_> {
    fn plain(mode: u32) -> New<'static> {
        New { mode, rdev: 0, target: &[], open: false }
    }

    fn kind(&self) -> DirentKind {
        DirentKind::from_mode(self.mode).expect("callers pass a mode of a kind that exists")
    }
}

/// A new inode as it will be stored, with the lists that it inherits.
struct Birth {
    fields: Fields,
    acls: acl::Inherited,
}

impl Namespace {
    /// Makes a regular file. `mode` has permission bits.
    pub(crate) fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let new = New::plain(mode & 0o7777 | S_IFREG);
        Ok(self.make(caller, parent, name, &new)?.1)
    }

    /// Makes a regular file and opens it, as one step.
    pub(crate) fn create_open(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, OpenInode)> {
        let new = New { open: true, ..New::plain(mode & 0o7777 | S_IFREG) };
        let (inode, attr) = self.make(caller, parent, name, &new)?;
        Ok((attr, OpenInode::counted(self, inode)))
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        Ok(self.make(caller, parent, name, &New::plain(mode & 0o7777 | S_IFDIR))?.1)
    }

    /// Makes an inode of the kind in `mode` (not a directory or symlink); `rdev` as in [`Attr::rdev`].
    pub(crate) fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr> {
        let mode = if mode & S_IFMT == 0 { mode | S_IFREG } else { mode };
        let is_device = matches!(mode & S_IFMT, S_IFCHR | S_IFBLK);
        match DirentKind::from_mode(mode) {
            None | Some(DirentKind::Symlink) => return fail(Errno::EINVAL),
            Some(DirentKind::Dir) => return fail(Errno::EPERM),
            Some(_) => {}
        }
        let new = New { rdev: if is_device { rdev } else { 0 }, ..New::plain(mode & (S_IFMT | 0o7777)) };
        Ok(self.make(caller, parent, name, &new)?.1)
    }

    /// Makes a symbolic link to `target`.
    pub(crate) fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        if target.is_empty() {
            return fail(Errno::ENOENT);
        }
        if target.len() >= SYMLINK_MAX {
            return fail(Errno::ENAMETOOLONG);
        }
        if target.contains(&0) {
            return fail(Errno::EINVAL);
        }
        let new = New { target, ..New::plain(S_IFLNK | 0o777) };
        Ok(self.make(caller, parent, name, &new)?.1)
    }

    fn make(&self, caller: &Caller, parent: Ino, name: &[u8], new: &New<'_>) -> Result<(Arc<Inode>, Attr)> {
        self.writable()?;
        let name = Name::new(name, Errno::EEXIST)?;
        let kind = new.kind();
        let dir = self.inode(parent)?;
        let guess = self.names.guess(parent, name.bytes).flatten();
        if guess.is_some() && self.search(caller, parent, &name).is_ok() {
            // Spares the number.
            return fail(Errno::EEXIST);
        }
        let ino = self.node.alloc_ino(kind == DirentKind::Dir)?;
        let inode = self.inodes.get_or_new(ino);
        let locks = self.lock_groups(&[&dir, &inode])?;
        let _ops = lock_ops(&[&dir, &inode]);
        let (dir_lock, lock) = (locks.of(parent), locks.of(ino));
        let df = self.check_new_entry(caller, &dir, dir_lock, &name)?;
        if matches!(kind, DirentKind::Char | DirentKind::Block) && !caller.can(Caps::MKNOD) {
            return fail(Errno::EPERM);
        }
        if kind == DirentKind::Dir && df.nlink >= LINK_MAX {
            return fail(Errno::EMLINK);
        }
        let Birth { mut fields, acls } = self.birth(caller, &dir, dir_lock, &df, new)?;
        fields.nlink = if kind == DirentKind::Dir { 2 } else { 1 };

        let touches = [(&*dir, Touch::Meta), (&*inode, Touch::New { regular: kind == DirentKind::Regular })];
        let tx = self.begin(HoldKind::Allocating, &touches)?;
        let mut df = dir.fields();
        let target = Target { ino, pos: take_position(&mut df)?, kind: Some(kind) };
        df.size = df.size.saturating_add(name.bytes.len() as u64);
        df.nlink += u32::from(kind == DirentKind::Dir);
        (df.mtime, df.ctime) = (tx.now, tx.now);
        df.version += 1;
        (fields.atime, fields.mtime, fields.ctime, fields.crtime) = (tx.now, tx.now, tx.now, tx.now);

        let mut cs = ChangeSet::new(&self.node.items);
        self.add_inherited(&mut cs, &locks, ino, &mut fields, &acls);
        self.put_inode(&mut cs, &tx, lock, &inode, &mut fields, touches[1].1);
        add_symlink(&mut cs, &locks, ino, new.target);
        Link { dir: parent, name, target }.add(&mut cs, dir_lock, lock);
        self.put_inode(&mut cs, &tx, dir_lock, &dir, &mut df, Touch::Meta);
        cs.apply(tx.hold())?;

        self.remember_new(&inode, lock.refresh_gen(), fields, acls, new.open);
        tx.hold().inode_count(1);
        dir.store(dir_lock.refresh_gen(), df);
        self.names.put(parent, name.bytes, dir_lock.refresh_gen(), Some(target));
        drop(tx);
        let attr = fields.attr(ino);
        drop(locks);
        drop(_ops);
        Ok((inode, attr))
    }

    /// All rules on adding an entry `name` to `dir`; gives the directory's fields.
    pub(crate) fn check_new_entry(
        &self,
        caller: &Caller,
        dir: &Inode,
        lock: &crate::item::ItemLock,
        name: &Name<'_>,
    ) -> Result<Fields> {
        let df = self.fresh_dir(dir, lock)?;
        self.check_access(dir, lock, &df, caller, Access::EXECUTE)?;
        if self.find(dir.ino(), lock, name)?.is_some() {
            return fail(Errno::EEXIST);
        }
        // Another mount may have removed it while somebody here stands in it (defect 56).
        if df.nlink == 0 {
            return fail(Errno::ENOENT);
        }
        self.check_access(dir, lock, &df, caller, Access::WRITE | Access::EXECUTE)?;
        Ok(df)
    }

    /// Owner, group, mode and lists of a new inode in a directory.
    fn birth(
        &self,
        caller: &Caller,
        dir: &Inode,
        dir_lock: &crate::item::ItemLock,
        df: &Fields,
        new: &New<'_>,
    ) -> Result<Birth> {
        let kind = new.kind();
        let (gid, mode) = new_owner(df, new.mode, caller);
        let acls = if kind == DirentKind::Symlink {
            acl::Inherited { mode, access: None, default: None }
        } else {
            let default = if self.node.acl { self.stored_acl(dir, dir_lock, df, true)? } else { None };
            acl::inherit(default.as_deref(), mode, caller.umask, kind == DirentKind::Dir)
        };
        let fields = Fields {
            kind,
            size: if kind == DirentKind::Symlink { new.target.len() as u64 + 1 } else { 0 },
            uid: caller.uid,
            gid,
            mode: acls.mode,
            rdev: new.rdev,
            proj: if self.node.fmt_vers >= 2 { df.proj } else { 0 },
            version: 1,
            ..Fields::default()
        };
        Ok(Birth { fields, acls })
    }

    /// Adds the inherited lists as attributes of the new inode.
    fn add_inherited<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        locks: &'a GroupLocks,
        ino: Ino,
        fields: &mut Fields,
        acls: &acl::Inherited,
    ) {
        for (name, acl) in [(ACCESS_NAME, &acls.access), (DEFAULT_NAME, &acls.default)] {
            if let Some(acl) = acl {
                put_new_xattr(cs, locks.of(ino), ino, fields.next_xattr_id, name, &acl.encode());
                fields.next_xattr_id += 1;
            }
        }
    }

    /// The new inode exists: from now on it can be used from memory.
    fn remember_new(&self, inode: &Inode, generation: u64, fields: Fields, acls: acl::Inherited, open: bool) {
        inode.store(generation, fields);
        inode.remember_acl(generation, false, KnownAcl::Is(acls.access.map(Arc::new)));
        inode.remember_acl(generation, true, KnownAcl::Is(acls.default.map(Arc::new)));
        if open {
            self.count_open(inode);
        }
    }

    /// Makes a regular file without a name. It can be linked unless `exclusive`, and vanishes with the handle.
    pub(crate) fn tmpfile(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        mode: u32,
        exclusive: bool,
    ) -> Result<(Attr, OpenInode)> {
        self.writable()?;
        let new = New::plain(mode & 0o7777 | S_IFREG);
        let dir = self.inode(parent)?;
        let ino = self.node.alloc_ino(false)?;
        let inode = self.inodes.get_or_new(ino);
        let locks = self.lock_groups(&[&dir, &inode])?;
        let _ops = lock_ops(&[&dir, &inode]);
        let (dir_lock, lock) = (locks.of(parent), locks.of(ino));
        let df = self.fresh_dir(&dir, dir_lock)?;
        self.check_access(&dir, dir_lock, &df, caller, Access::WRITE | Access::EXECUTE)?;
        if df.nlink == 0 {
            return fail(Errno::ENOENT);
        }
        let Birth { mut fields, acls } = self.birth(caller, &dir, dir_lock, &df, &new)?;
        let orphans = self.node.locks.acquire(LockName::orphan(), Mode::WriteOnly)?;
        let touch = Touch::New { regular: true };
        let tx = self.begin(HoldKind::Allocating, &[(&inode, touch)])?;
        (fields.atime, fields.mtime, fields.ctime, fields.crtime) = (tx.now, tx.now, tx.now, tx.now);
        let mut cs = ChangeSet::new(&self.node.items);
        self.add_inherited(&mut cs, &locks, ino, &mut fields, &acls);
        self.put_inode(&mut cs, &tx, lock, &inode, &mut fields, touch);
        cs.force_create(&orphans, lock, keys::orphan(ino), Value::EMPTY);
        cs.apply(tx.hold())?;
        self.remember_new(&inode, lock.refresh_gen(), fields, acls, true);
        inode.opens.lock().linkable = !exclusive;
        tx.hold().inode_count(1);
        drop(tx);
        drop(orphans);
        drop(locks);
        drop(_ops);
        Ok((fields.attr(ino), OpenInode::counted(self, inode)))
    }
}

/// Adds the parts of a symbolic link's target.
fn add_symlink<'a>(cs: &mut ChangeSet<'a>, locks: &'a GroupLocks, ino: Ino, target: &[u8]) {
    if target.is_empty() {
        return;
    }
    for (i, part) in encode_symlink(target).chunks(PART_BYTES).enumerate() {
        cs.create(locks.of(ino), keys::symlink(ino, i as u64), Value::new(part));
    }
}
