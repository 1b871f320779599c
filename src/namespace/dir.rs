//! Entries of directories: finding names, listing, and the three items of each link (`spec/06 §4`).

use std::ops::ControlFlow;

use zerocopy::IntoBytes;

use super::names::Target;
use super::permission::{self, check_sticky};
use super::types::{Access, Attr, Caller, DirBatch};
use super::{Fields, Inode, Namespace};
use crate::error::{Errno, Result, fail};
use crate::format::consts::{DIRENT_FIRST_POS, DIRENT_HEAD_BYTES, DIRENT_LAST_POS, NAME_MAX};
use crate::format::layout::DirentHead;
use crate::format::{DirentKind, Ino, KeyRange, dirent_hash, keys, validate_dirent};
use crate::item::{ChangeSet, ItemLock, Value};
use crate::lock::Mode;

/// How often an operation starts over because a name led elsewhere than it was guessed.
pub(crate) const RETRIES: usize = 100;

/// A name that can be an entry's, with its hash.
#[derive(Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) hash: u64,
}

impl<'a> Name<'a> {
    /// Checks what can be checked without looking: `dots` is the error for `.` and `..`.
    pub(crate) fn new(bytes: &'a [u8], dots: Errno) -> Result<Name<'a>> {
        if bytes.len() > NAME_MAX {
            return fail(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() {
            return fail(Errno::ENOENT);
        }
        if bytes == b"." || bytes == b".." {
            return fail(dots);
        }
        if bytes.iter().any(|&b| b == 0 || b == b'/') {
            return fail(Errno::EINVAL);
        }
        Ok(Name { bytes, hash: dirent_hash(bytes) })
    }
}

/// One link, as an operation adds or removes it.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) dir: Ino,
    pub(crate) name: Name<'a>,
    pub(crate) target: Target,
}

impl Link<'_> {
    /// The value of its three items.
    fn value(&self) -> Value {
        let head = DirentHead {
            ino: self.target.ino.0.into(),
            hash: self.name.hash.into(),
            pos: self.target.pos.into(),
            kind: self.target.kind.map_or(u8::MAX, DirentKind::stored),
            pad: [0; 7],
        };
        let mut buf = [0u8; DIRENT_HEAD_BYTES + NAME_MAX];
        let len = DIRENT_HEAD_BYTES + self.name.bytes.len();
        buf[..DIRENT_HEAD_BYTES].copy_from_slice(head.as_bytes());
        buf[DIRENT_HEAD_BYTES..len].copy_from_slice(self.name.bytes);
        Value::new(&buf[..len])
    }

    /// Adds the three items. `target` covers the inode that the entry names.
    pub(crate) fn add<'a>(&self, cs: &mut ChangeSet<'a>, dir: &'a ItemLock, target: &'a ItemLock) {
        let value = self.value();
        let t = &self.target;
        cs.create(dir, keys::dirent(self.dir, self.name.hash, t.pos), value.clone());
        cs.create(dir, keys::readdir(self.dir, t.pos), value.clone());
        cs.create(target, keys::backref(t.ino, self.dir, t.pos), value);
    }

    /// Removes the three items.
    pub(crate) fn remove<'a>(&self, cs: &mut ChangeSet<'a>, dir: &'a ItemLock, target: &'a ItemLock) {
        let t = &self.target;
        cs.delete(dir, keys::dirent(self.dir, self.name.hash, t.pos));
        cs.delete(dir, keys::readdir(self.dir, t.pos));
        cs.delete(target, keys::backref(t.ino, self.dir, t.pos));
    }

    /// Makes the entry at its position lead to `to` instead of its present target.
    pub(crate) fn redirect<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        dir: &'a ItemLock,
        (old, new): (&'a ItemLock, &'a ItemLock),
        to: Target,
    ) {
        let redirected = Link { target: Target { pos: self.target.pos, ..to }, ..*self };
        let value = redirected.value();
        let pos = self.target.pos;
        cs.update(dir, keys::dirent(self.dir, self.name.hash, pos), value.clone());
        cs.update(dir, keys::readdir(self.dir, pos), value.clone());
        cs.delete(old, keys::backref(self.target.ino, self.dir, pos));
        cs.create(new, keys::backref(to.ino, self.dir, pos), value);
    }
}

/// The position of the next new entry of a directory, taken from its fields.
pub(crate) fn take_position(dir: &mut Fields) -> Result<u64> {
    let pos = dir.next_readdir_pos;
    if pos > DIRENT_LAST_POS {
        return fail(Errno::ENOSPC);
    }
    dir.next_readdir_pos += 1;
    Ok(pos)
}

impl Namespace {
    /// What `name` leads to. The caller holds the directory's operation lock (shared at least) and its group's lock, and the
    /// directory is fresh.
    pub(crate) fn find(&self, dir: Ino, lock: &ItemLock, name: &Name<'_>) -> Result<Option<Target>> {
        let generation = lock.refresh_gen();
        if let Some(known) = self.names.get(dir, name.bytes, generation) {
            return Ok(known);
        }
        let range = KeyRange::new(keys::dirent(dir, name.hash, 0), keys::dirent(dir, name.hash, u64::MAX));
        let mut found = Ok(None);
        self.node.items.scan(lock, range, &mut |key, value| match validate_dirent(key, value) {
            Ok(d) if d.name == name.bytes => {
                found = Ok(Some(Target { ino: d.ino, pos: d.pos, kind: d.kind }));
                ControlFlow::Break(())
            }
            Ok(_) => ControlFlow::Continue(()),
            Err(e) => {
                found = Err(e);
                ControlFlow::Break(())
            }
        })?;
        let found = found?;
        self.names.put(dir, name.bytes, generation, found);
        Ok(found)
    }

    /// `EACCES` unless the caller has `want` on the inode, whose fields are fresh under `lock`.
    pub(crate) fn check_access(
        &self,
        inode: &Inode,
        lock: &ItemLock,
        f: &Fields,
        caller: &Caller,
        want: Access,
    ) -> Result<()> {
        if permission::needs_acl(f, caller, want) && self.node.acl {
            let acl = self.stored_acl(inode, lock, f, false)?;
            return permission::check(f, acl.as_deref(), caller, want);
        }
        permission::check(f, None, caller, want)
    }

    /// May the caller take the name of an inode with fields `victim` away from the directory?
    pub(crate) fn check_delete(
        &self,
        dir: &Inode,
        lock: &ItemLock,
        df: &Fields,
        victim: &Fields,
        caller: &Caller,
    ) -> Result<()> {
        self.check_access(dir, lock, df, caller, Access::WRITE | Access::EXECUTE)?;
        check_sticky(df, victim, caller)
    }

    /// What `name` leads to, under a READ lock that is gone when this returns: to be verified under the locks of the
    /// operation. `ENOENT` if there is no such name.
    pub(crate) fn search(&self, caller: &Caller, parent: Ino, name: &Name<'_>) -> Result<Target> {
        let dir = self.inode(parent)?;
        if let Some(target) = self.search_cached(caller, &dir, name)? {
            return target.ok_or(Errno::ENOENT.into());
        }
        let lock = self.lock_group(&dir, Mode::Read)?;
        let _op = dir.op.read();
        let df = self.fresh_dir(&dir, &lock)?;
        self.check_access(&dir, &lock, &df, caller, Access::EXECUTE)?;
        self.find(parent, &lock, name)?.ok_or(Errno::ENOENT.into())
    }

    /// The answer of the name cache, if it has one that is valid and the directory is fresh.
    fn search_cached(&self, caller: &Caller, dir: &Inode, name: &Name<'_>) -> Result<Option<Option<Target>>> {
        let lock = self.lock_group(dir, Mode::Read)?;
        let generation = lock.refresh_gen();
        let Some(known) = self.names.get(dir.ino(), name.bytes, generation) else { return Ok(None) };
        let Some(df) = dir.fields_at(generation) else { return Ok(None) };
        if permission::needs_acl(&df, caller, Access::EXECUTE) {
            return Ok(None);
        }
        permission::check(&df, None, caller, Access::EXECUTE)?;
        Ok(Some(known))
    }

    /// A guess at what `name` leads to: the last known answer, else a search.
    pub(crate) fn guess(&self, caller: &Caller, parent: Ino, name: &Name<'_>) -> Result<Ino> {
        match self.names.guess(parent, name.bytes).flatten() {
            Some(t) => Ok(t.ino),
            None => Ok(self.search(caller, parent, name)?.ino),
        }
    }

    /// [`Self::lookup`] from memory alone; `None` if that does not tell, or not simply.
    ///
    /// Uses no cluster lock and waits for nothing: it looks at copies that are right at the moment when it looks at the
    /// generation of their lock, which lies between call and return. Directory and inode are looked at one after the other,
    /// as everywhere.
    #[inline]
    fn lookup_cached(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Option<Result<Attr>> {
        let generation = self.inodes.peek(parent, |dir| {
            dir.peek_fields(|generation, f| {
                let plain = f.is_dir() && !permission::needs_acl(f, caller, Access::EXECUTE);
                (plain && permission::check(f, None, caller, Access::EXECUTE).is_ok()).then_some(generation)
            })
        })?;
        let Some(target) = self.names.get(parent, name, generation)? else {
            return Some(fail(Errno::ENOENT));
        };
        let look = |_, f: &Fields| (f.nlink > 0).then(|| f.attr(target.ino));
        self.inodes.peek(target.ino, |inode| inode.peek_fields(look)).map(Ok)
    }

    /// The inode that `name` in `parent` leads to. `.` and `..` are understood.
    pub(crate) fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name == b"." || name == b".." {
            let f = self.with_fields(parent, |dir, lock, f| {
                if !f.is_dir() {
                    return fail(Errno::ENOTDIR);
                }
                self.check_access(dir, lock, &f, caller, Access::EXECUTE).map(|()| f)
            })?;
            return if name == b"." { Ok(f.attr(parent)) } else { self.getattr(self.dir_parent(parent)?) };
        }
        // Only names that were checked are in the cache.
        if let Some(known) = self.lookup_cached(caller, parent, name) {
            return known;
        }
        let name = Name::new(name, Errno::EINVAL)?;
        for _ in 0..RETRIES {
            let target = self.search(caller, parent, &name)?;
            // Numbers are never reused, so between both locks the inode can only have vanished or lost its links. Then the
            // name leads elsewhere by now, or nowhere; a name is never left that leads to a dead inode (defect 61).
            match self.with_fields(target.ino, |_, _, f| Ok(f)) {
                Ok(f) if f.nlink > 0 => return Ok(f.attr(target.ino)),
                Ok(_) => {}
                Err(e) if e.is(Errno::ESTALE) => {}
                Err(e) => return Err(e),
            }
            if self.search_uncached(caller, parent, &name)? == target {
                return fail(Errno::ENOENT);
            }
        }
        fail(Errno::ENOENT)
    }

    fn search_uncached(&self, caller: &Caller, parent: Ino, name: &Name<'_>) -> Result<Target> {
        self.names.forget(parent, name.bytes);
        self.search(caller, parent, name)
    }

    /// The directory that has the entry of directory `dir`; the root is its own.
    pub(crate) fn dir_parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT {
            return Ok(dir);
        }
        self.parent_of(dir)
    }

    /// Up to `limit` entries from `cursor` (0 starts, `.` and `..` included). Access was checked when the directory was opened.
    pub(crate) fn readdir(&self, dir: Ino, cursor: u64, limit: usize) -> Result<DirBatch> {
        let mut batch = DirBatch::default();
        let limit = limit.max(1);
        let is_dir = self.with_fields(dir, |_, _, f| Ok(f.is_dir()))?;
        if !is_dir {
            return fail(Errno::ENOTDIR);
        }
        let dt = DirentKind::Dir.dt();
        if cursor == 0 {
            batch.push(dir, 0, dt, b".");
        }
        if cursor <= 1 && batch.len() < limit {
            // A directory that has been removed meanwhile has no parent any more; it lists itself.
            let parent = match self.dir_parent(dir) {
                Err(e) if e.is(Errno::ENOENT) => dir,
                other => other?,
            };
            batch.push(parent, 1, dt, b"..");
        }
        let end = batch.len() < limit && self.list_entries(dir, cursor.max(DIRENT_FIRST_POS), limit, &mut batch)?;
        batch.finish(cursor, end);
        Ok(batch)
    }

    /// Adds entries from position `from` on until `limit`; true if the last one was among them.
    fn list_entries(&self, dir: Ino, from: u64, limit: usize, batch: &mut DirBatch) -> Result<bool> {
        if from > DIRENT_LAST_POS {
            return Ok(true);
        }
        let inode = self.inode(dir)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let range = KeyRange::new(keys::readdir(dir, from), keys::readdir(dir, DIRENT_LAST_POS));
        let mut result = Ok(true);
        self.node.items.scan(&lock, range, &mut |key, value| {
            if batch.len() >= limit {
                result = Ok(false);
                return ControlFlow::Break(());
            }
            match validate_dirent(key, value) {
                Ok(d) => {
                    batch.push(d.ino, d.pos, d.kind.map_or(0, DirentKind::dt), d.name);
                    ControlFlow::Continue(())
                }
                Err(e) => {
                    result = Err(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        result
    }

    /// Like [`Self::readdir`], with the attributes of every entry.
    pub(crate) fn readdir_plus(&self, dir: Ino, cursor: u64, limit: usize) -> Result<DirBatch> {
        let mut batch = self.readdir(dir, cursor, limit)?;
        // By number, so that inodes of one group come together and its lock is asked for once in a row.
        let mut order: Vec<(Ino, usize)> = batch.inos().enumerate().map(|(i, ino)| (ino, i)).collect();
        order.sort_unstable();
        for (ino, index) in order {
            let attr = match self.getattr(ino) {
                Ok(attr) => Some(attr),
                Err(e) if e.is(Errno::ESTALE) => None,
                Err(e) => return Err(e),
            };
            batch.set_attr(index, attr);
        }
        Ok(batch)
    }
}
