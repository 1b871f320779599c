//! Adding and taking away links: link, unlink, rmdir (`spec/06 §5.4, §5.5`).
//!
//! What happens to an inode that loses a link is planned before the transaction ([`Namespace::plan_unlink`]): if it is the
//! last link and nobody uses the inode, the inode goes in the same transaction; if somebody does, or there is too much to
//! remove, it becomes an orphan.

use super::delete::Remains;
use super::dir::{Link, Name, RETRIES, take_position};
use super::names::Target;
use super::types::{Access, Attr, Caller};
use super::{Fields, Inode, Namespace, Removal, Touch, Tx, lock_ops};
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::LINK_MAX;
use crate::format::{Ino, keys};
use crate::item::{ChangeSet, ItemLock, Value};
use crate::lock::{LockName, Mode};
use crate::sync::Arc;
use crate::txn::HoldKind;

/// What taking one link away will mean, with the locks that this needs.
pub(crate) struct Unlinking {
    /// The inode goes at once, with this.
    remains: Option<Remains>,
    tags: Vec<(LockName, ItemLock)>,
    /// It becomes an orphan.
    orphans: Option<ItemLock>,
}

impl Unlinking {
    pub(crate) fn touch(&self) -> Touch {
        if self.remains.is_some() { Touch::Gone } else { Touch::Meta }
    }
}

/// What the transaction did to an inode that lost a link.
pub(crate) enum Unlinked {
    /// There was too much to remove: nothing was planned, plan again without removing at once.
    TooMuch,
    /// Its new fields.
    Kept(Fields),
    /// It is deleted.
    Deleted(Option<Box<Removal>>),
}

/// How a try to remove a name ended.
enum Removed {
    Done,
    /// The name leads to this inode, not to the one that was locked.
    Elsewhere(Ino),
    TooMuch,
}

impl Namespace {
    /// Plans what becomes of an inode with fields `f` that loses a link. Takes locks; before the transaction.
    pub(crate) fn plan_unlink(&self, inode: &Inode, lock: &ItemLock, f: &Fields, at_once: bool) -> Result<Unlinking> {
        let mut plan = Unlinking { remains: None, tags: Vec::new(), orphans: None };
        if !f.is_last_link() {
            return Ok(plan);
        }
        if at_once && self.is_unused(inode, lock) {
            plan.remains = self.small_remains(inode, lock, f)?;
        }
        if plan.remains.is_none() {
            plan.orphans = Some(self.node.locks.acquire(LockName::orphan(), Mode::WriteOnly)?);
        }
        plan.tags = self.lock_tags(plan.remains.as_ref())?;
        Ok(plan)
    }

    /// Adds what the plan says to the change set.
    pub(crate) fn add_unlink<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        tx: &'a Tx<'_>,
        lock: &'a ItemLock,
        inode: &Arc<Inode>,
        plan: &'a Unlinking,
    ) -> Result<Unlinked> {
        let ino = inode.ino();
        let mut f = inode.fields();
        if let Some(remains) = &plan.remains {
            let mut removal = None;
            if f.is_regular() {
                let planned = self.data.plan_removal(inode, lock, tx.hold(), 0)?;
                if planned.next.is_some() {
                    return Ok(Unlinked::TooMuch);
                }
                planned.add_to(cs, lock);
                removal = Some(Box::new(planned));
            }
            self.delete_all(cs, tx, lock, &plan.tags, (ino, &f), remains);
            return Ok(Unlinked::Deleted(removal));
        }
        f.nlink = f.nlink.saturating_sub(if f.is_dir() { 2 } else { 1 });
        f.ctime = tx.now;
        f.version += 1;
        if let Some(orphans) = &plan.orphans {
            f.nlink = 0;
            cs.force_create(orphans, lock, keys::orphan(ino), Value::EMPTY);
        }
        self.put_inode(cs, tx, lock, inode, &mut f, Touch::Meta);
        Ok(Unlinked::Kept(f))
    }

    /// The change set has been applied: memory and blocks follow.
    pub(crate) fn finish_unlink(
        &self,
        tx: &Tx<'_>,
        lock: &ItemLock,
        inode: &Arc<Inode>,
        plan: &Unlinking,
        done: Unlinked,
    ) -> Result<()> {
        match (done, &plan.remains) {
            (Unlinked::Kept(f), _) => inode.store(lock.refresh_gen(), f),
            (Unlinked::Deleted(removal), Some(remains)) => {
                self.forget_deleted(inode, tx, remains);
                if let Some(removal) = removal {
                    removal.finish(&*self.data, inode, tx.hold(), 0)?;
                }
            }
            (Unlinked::Deleted(_) | Unlinked::TooMuch, _) => {}
        }
        Ok(())
    }

    /// Removes a name that does not lead to a directory.
    pub(crate) fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(caller, parent, Name::new(name, Errno::EISDIR)?, false)
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if name == b".." {
            return fail(Errno::ENOTEMPTY);
        }
        self.remove(caller, parent, Name::new(name, Errno::EINVAL)?, true)
    }

    fn remove(&self, caller: &Caller, parent: Ino, name: Name<'_>, is_dir: bool) -> Result<()> {
        self.writable()?;
        let mut ino = self.guess(caller, parent, &name)?;
        let mut at_once = true;
        for _ in 0..RETRIES {
            match self.remove_entry(caller, parent, &name, is_dir, (ino, at_once))? {
                Removed::Done => return Ok(()),
                Removed::Elsewhere(other) => ino = other,
                Removed::TooMuch => at_once = false,
            }
        }
        fail(Errno::EBUSY)
    }

    fn remove_entry(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &Name<'_>,
        want_dir: bool,
        (ino, at_once): (Ino, bool),
    ) -> Result<Removed> {
        let (dir, inode) = (self.inode(parent)?, self.inode(ino)?);
        let locks = self.lock_groups(&[&dir, &inode])?;
        let _ops = lock_ops(&[&dir, &inode]);
        let (dir_lock, lock) = (locks.of(parent), locks.of(ino));
        let df = self.fresh_dir(&dir, dir_lock)?;
        self.check_access(&dir, dir_lock, &df, caller, Access::EXECUTE)?;
        let target = match self.find(parent, dir_lock, name)? {
            None => return fail(Errno::ENOENT),
            Some(t) if t.ino != ino => return Ok(Removed::Elsewhere(t.ino)),
            Some(t) => t,
        };
        let f = self.linked(&inode, lock, parent, name)?;
        self.check_delete(&dir, dir_lock, &df, &f, caller)?;
        match (want_dir, f.is_dir()) {
            (true, false) => return fail(Errno::ENOTDIR),
            (false, true) => return fail(Errno::EISDIR),
            (true, true) if f.size != 0 => return fail(Errno::ENOTEMPTY),
            _ => {}
        }
        if f.in_retention() {
            return fail(Errno::EPERM);
        }
        let plan = self.plan_unlink(&inode, lock, &f, at_once)?;
        let tx = self.begin(HoldKind::Freeing, &[(&dir, Touch::Meta), (&inode, plan.touch())])?;
        let mut df = dir.fields();
        df.size = df.size.saturating_sub(name.bytes.len() as u64);
        df.nlink = df.nlink.saturating_sub(u32::from(f.is_dir()));
        (df.mtime, df.ctime) = (tx.now, tx.now);
        df.version += 1;
        let mut cs = ChangeSet::new(&self.node.items);
        Link { dir: parent, name: *name, target }.remove(&mut cs, dir_lock, lock);
        let done = self.add_unlink(&mut cs, &tx, lock, &inode, &plan)?;
        if matches!(done, Unlinked::TooMuch) {
            return Ok(Removed::TooMuch);
        }
        self.put_inode(&mut cs, &tx, dir_lock, &dir, &mut df, Touch::Meta);
        cs.apply(tx.hold())?;
        dir.store(dir_lock.refresh_gen(), df);
        self.names.put(parent, name.bytes, dir_lock.refresh_gen(), None);
        self.finish_unlink(&tx, lock, &inode, &plan, done)?;
        Ok(Removed::Done)
    }

    /// Fields of an inode that an entry names, which must therefore exist.
    pub(crate) fn linked(&self, inode: &Inode, lock: &ItemLock, dir: Ino, name: &Name<'_>) -> Result<Fields> {
        self.fresh_if_any(inode, lock)?.ok_or_else(|| {
            let name = String::from_utf8_lossy(name.bytes);
            Error::corrupt(
                format!("entry {name:?} of directory {dir}"),
                format!("it names inode {}, which does not exist", inode.ino()),
            )
        })
    }

    /// Adds a name to an inode that is not a directory.
    pub(crate) fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.writable()?;
        let name = Name::new(name, Errno::EEXIST)?;
        let (dir, inode) = (self.inode(parent)?, self.inode(ino)?);
        let locks = self.lock_groups(&[&dir, &inode])?;
        let _ops = lock_ops(&[&dir, &inode]);
        let (dir_lock, lock) = (locks.of(parent), locks.of(ino));
        self.check_new_entry(caller, &dir, dir_lock, &name)?;
        let f = self.fresh(&inode, lock)?;
        if f.is_dir() {
            return fail(Errno::EPERM);
        }
        if f.nlink == 0 && !inode.opens.lock().linkable {
            // Unlinked, maybe elsewhere: it must not come back (defect 61).
            return fail(Errno::ENOENT);
        }
        if f.nlink >= LINK_MAX {
            return fail(Errno::EMLINK);
        }
        let orphans =
            if f.nlink == 0 { Some(self.node.locks.acquire(LockName::orphan(), Mode::WriteOnly)?) } else { None };
        let tx = self.begin(HoldKind::Allocating, &[(&dir, Touch::Meta), (&inode, Touch::Meta)])?;
        let (mut df, mut f) = (dir.fields(), inode.fields());
        let target = Target { ino, pos: take_position(&mut df)?, kind: Some(f.kind) };
        df.size = df.size.saturating_add(name.bytes.len() as u64);
        (df.mtime, df.ctime, f.ctime) = (tx.now, tx.now, tx.now);
        df.version += 1;
        f.version += 1;
        f.nlink += 1;
        let mut cs = ChangeSet::new(&self.node.items);
        Link { dir: parent, name, target }.add(&mut cs, dir_lock, lock);
        if let Some(orphans) = &orphans {
            cs.force_delete(orphans, lock, keys::orphan(ino));
        }
        self.put_inode(&mut cs, &tx, lock, &inode, &mut f, Touch::Meta);
        self.put_inode(&mut cs, &tx, dir_lock, &dir, &mut df, Touch::Meta);
        cs.apply(tx.hold())?;
        inode.store(lock.refresh_gen(), f);
        dir.store(dir_lock.refresh_gen(), df);
        inode.opens.lock().linkable = false;
        self.names.put(parent, name.bytes, dir_lock.refresh_gen(), Some(target));
        Ok(f.attr(ino))
    }
}
