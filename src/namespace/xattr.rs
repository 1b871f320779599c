//! Extended attributes and ACLs: get, set, list, remove (`spec/06 §7, §8`).

use std::ops::ControlFlow;

use super::acl::{ACCESS_NAME, Acl, DEFAULT_NAME};
use super::inode::KnownAcl;
use super::permission::{allowed_mode, is_owner};
use super::types::{Access, Caller, Caps, HiddenCursor, S_ISVTX, XattrFlags};
use super::xattr_plan::{SideItems, check_tags, tag_lock};
use super::{Fields, Inode, Namespace, Touch, lock_ops};
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::{PART_BYTES, TYPE_XATTR, XATTR_NAME_MAX, XATTR_VALUE_MAX};
use crate::format::xattr::{Tags, encode_xattr, parse_tags, part_count, validate_xattr_first};
use crate::format::{DirentKind, Ino, KeyRange, keys, xattr_hash};
use crate::item::{ChangeSet, ItemLock, Value};
use crate::lock::Mode;
use crate::sync::Arc;
use crate::txn::HoldKind;

/// Who is responsible for a name, by prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    User,
    Trusted,
    Security,
    Scoutfs,
    /// A POSIX ACL: the default list, or the access list.
    Acl {
        default: bool,
    },
}

/// An attribute that exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    id: u64,
    value_len: usize,
}

/// Adds all parts of a new attribute.
pub(crate) fn put_new_xattr<'a>(
    cs: &mut ChangeSet<'a>,
    lock: &'a ItemLock,
    ino: Ino,
    id: u64,
    name: &[u8],
    value: &[u8],
) {
    let hash = xattr_hash(name);
    for (i, part) in encode_xattr(name, value).chunks(PART_BYTES).enumerate() {
        cs.create(lock, keys::xattr(ino, hash, id, i as u8), Value::new(part));
    }
}

/// Adds the changes that give an existing attribute another value.
pub(crate) fn replace_xattr<'a>(
    cs: &mut ChangeSet<'a>,
    lock: &'a ItemLock,
    ino: Ino,
    found: &Found,
    name: &[u8],
    value: &[u8],
) {
    let hash = xattr_hash(name);
    for (i, part) in encode_xattr(name, value).chunks(PART_BYTES).enumerate() {
        cs.put(lock, keys::xattr(ino, hash, found.id, i as u8), Value::new(part));
    }
    for i in part_count(name.len(), value.len())..part_count(name.len(), found.value_len) {
        cs.delete(lock, keys::xattr(ino, hash, found.id, i as u8));
    }
}

fn remove_xattr<'a>(cs: &mut ChangeSet<'a>, lock: &'a ItemLock, ino: Ino, found: &Found, name: &[u8]) {
    for i in 0..part_count(name.len(), found.value_len) {
        cs.delete(lock, keys::xattr(ino, xattr_hash(name), found.id, i as u8));
    }
}

impl Namespace {
    fn family(&self, name: &[u8]) -> Result<Family> {
        if name.len() > XATTR_NAME_MAX {
            return fail(Errno::ERANGE);
        }
        let after = |prefix: &[u8], family| match name.strip_prefix(prefix) {
            Some([]) => fail(Errno::EINVAL),
            Some(_) => Ok(Some(family)),
            None => Ok(None),
        };
        let acl = |default| if self.node.acl { Ok(Family::Acl { default }) } else { fail(Errno::EOPNOTSUPP) };
        if name == ACCESS_NAME {
            return acl(false);
        }
        if name == DEFAULT_NAME {
            return acl(true);
        }
        if name.contains(&0) {
            return fail(Errno::EINVAL);
        }
        for (prefix, family) in [
            (&b"user."[..], Family::User),
            (b"trusted.", Family::Trusted),
            (b"security.", Family::Security),
            (b"scoutfs.", Family::Scoutfs),
        ] {
            if let Some(family) = after(prefix, family)? {
                return Ok(family);
            }
        }
        fail(Errno::EOPNOTSUPP)
    }

    /// The attribute, if it exists. The caller holds the operation lock (shared at least) and the group's lock.
    pub(crate) fn find_xattr(&self, lock: &ItemLock, ino: Ino, name: &[u8]) -> Result<Option<Found>> {
        let mut found = Ok(None);
        self.node.items.scan(lock, keys::xattr_candidates(ino, name), &mut |key, value| {
            if key.fourth != 0 {
                return ControlFlow::Continue(());
            }
            match validate_xattr_first(key, value) {
                Ok(first) if first.name == name => {
                    found = Ok(Some(Found { id: key.third, value_len: first.value_len }));
                    ControlFlow::Break(())
                }
                Ok(_) => ControlFlow::Continue(()),
                Err(e) => {
                    found = Err(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        found
    }

    fn read_xattr(&self, lock: &ItemLock, ino: Ino, name: &[u8], found: &Found) -> Result<Vec<u8>> {
        let hash = xattr_hash(name);
        let parts = part_count(name.len(), found.value_len);
        let range =
            KeyRange::new(keys::xattr(ino, hash, found.id, 0), keys::xattr(ino, hash, found.id, parts as u8 - 1));
        let bad = || Error::corrupt(format!("xattr {}", range.start), "a part is missing or has a wrong length");
        let mut all = Vec::with_capacity(parts * PART_BYTES);
        let mut whole = true;
        self.node.items.scan(lock, range, &mut |key, value| {
            whole &= all.len() == usize::from(key.fourth) * PART_BYTES;
            all.extend_from_slice(value);
            if whole { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let head = all.len().checked_sub(found.value_len).filter(|_| whole).ok_or_else(bad)?;
        if head != crate::format::xattr::total_bytes(name.len(), 0) {
            return Err(bad());
        }
        all.drain(..head);
        Ok(all)
    }

    /// The stored access (or default) list of an inode whose fields are fresh under `lock`.
    pub(crate) fn stored_acl(
        &self,
        inode: &Inode,
        lock: &ItemLock,
        f: &Fields,
        default: bool,
    ) -> Result<Option<Arc<Acl>>> {
        if f.next_xattr_id == 0 {
            return Ok(None);
        }
        let generation = lock.refresh_gen();
        if let KnownAcl::Is(acl) = inode.known_acl(generation, default) {
            return Ok(acl);
        }
        let name = if default { DEFAULT_NAME } else { ACCESS_NAME };
        let acl = match self.find_xattr(lock, inode.ino(), name)? {
            None => None,
            Some(found) => Acl::decode(&self.read_xattr(lock, inode.ino(), name, &found)?)?.map(Arc::new),
        };
        inode.remember_acl(generation, default, KnownAcl::Is(acl.clone()));
        Ok(acl)
    }

    /// May the caller read (or change) attributes of this family?
    fn check_xattr_access(
        &self,
        (inode, lock, f): (&Inode, &ItemLock, &Fields),
        family: Family,
        caller: &Caller,
        write: bool,
    ) -> Result<()> {
        let refused = if write { Errno::EPERM } else { Errno::ENODATA };
        match family {
            Family::Trusted if !caller.can(Caps::SYS_ADMIN) => return fail(refused),
            Family::Security if write && !caller.can(Caps::SYS_ADMIN) => return fail(Errno::EPERM),
            Family::Trusted | Family::Security | Family::Acl { .. } => return Ok(()),
            Family::User if !matches!(f.kind, DirentKind::Regular | DirentKind::Dir) => return fail(refused),
            Family::User if write && f.is_dir() && f.mode & S_ISVTX != 0 && !is_owner(f, caller) => {
                return fail(Errno::EPERM);
            }
            Family::User | Family::Scoutfs => {}
        }
        self.check_access(inode, lock, f, caller, if write { Access::WRITE } else { Access::READ })
    }

    /// Value of an extended attribute.
    pub(crate) fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let family = match self.family(name) {
            Err(e) if e.is(Errno::ERANGE) => return fail(Errno::ENODATA),
            other => other?,
        };
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let f = self.fresh(&inode, &lock)?;
        self.check_xattr_access((&inode, &lock, &f), family, caller, false)?;
        if f.next_xattr_id == 0 {
            return fail(Errno::ENODATA);
        }
        let found = self.find_xattr(&lock, ino, name)?.ok_or(Errno::ENODATA)?;
        self.read_xattr(&lock, ino, name, &found)
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
        self.writable()?;
        let family = self.family(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return fail(Errno::E2BIG);
        }
        if let Family::Acl { default } = family {
            return self.set_acl(caller, ino, default, Acl::decode(value)?);
        }
        self.change_xattr(caller, ino, family, name, Some((value, flags)))
    }

    /// Removes an extended attribute; `ENODATA` if there is none.
    pub(crate) fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let family = self.family(name)?;
        if let Family::Acl { default } = family {
            return self.set_acl(caller, ino, default, None);
        }
        self.change_xattr(caller, ino, family, name, None)
    }

    /// Sets (with `new`) or removes an attribute that is not an ACL.
    fn change_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        family: Family,
        name: &[u8],
        new: Option<(&[u8], XattrFlags)>,
    ) -> Result<()> {
        let tags = if family == Family::Scoutfs { check_tags(name, self.node.fmt_vers)? } else { Tags::default() };
        if tags.any() && !caller.can(Caps::SYS_ADMIN) {
            return fail(Errno::EPERM);
        }
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Write)?;
        let _ops = lock_ops(&[&inode]);
        let f = self.fresh(&inode, &lock)?;
        self.check_xattr_access((&inode, &lock, &f), family, caller, true)?;
        if family == Family::User && f.in_retention() {
            return fail(Errno::EPERM);
        }
        let found = if f.next_xattr_id == 0 { None } else { self.find_xattr(&lock, ino, name)? };
        match (new, found) {
            (Some((_, XattrFlags::Create)), Some(_)) => return fail(Errno::EEXIST),
            (Some((_, XattrFlags::Replace)) | None, None) => return fail(Errno::ENODATA),
            _ => {}
        }
        let new = new.map(|(value, _)| value);
        let old = match found {
            // Only a total depends on the old value.
            Some(found) if tags.totl => Some(self.read_xattr(&lock, ino, name, &found)?),
            Some(_) => Some(Vec::new()),
            None => None,
        };
        let id = found.map_or(f.next_xattr_id, |found| found.id);
        let side = SideItems::plan((ino, id), name, &tags, old.as_deref(), new)?;
        if tags.indx && new.is_some() && found.is_some() {
            return Ok(());
        }
        let tag = tag_lock(&tags).map(|n| self.node.lock(n, Mode::WriteOnly)).transpose()?;
        // Removing must work when space is short (defect 59).
        let kind = if new.is_some() { HoldKind::Allocating } else { HoldKind::Freeing };
        let tx = self.begin(kind, &[(&inode, Touch::Meta)])?;
        let mut f = inode.fields();
        let mut cs = ChangeSet::new(&self.node.items);
        side.add_to(&mut cs, &lock, tag.as_ref());
        match (new, &found) {
            (Some(value), Some(found)) => replace_xattr(&mut cs, &lock, ino, found, name, value),
            (Some(value), None) => {
                put_new_xattr(&mut cs, &lock, ino, id, name, value);
                f.next_xattr_id += 1;
            }
            (None, Some(found)) => remove_xattr(&mut cs, &lock, ino, found, name),
            (None, None) => {}
        }
        f.ctime = tx.now;
        f.version += 1;
        self.put_inode(&mut cs, &tx, &lock, &inode, &mut f, Touch::Meta);
        cs.apply(tx.hold())?;
        if let Some(entry) = side.srch {
            tx.hold().srch_append(entry);
        }
        inode.store(lock.refresh_gen(), f);
        Ok(())
    }

    /// Sets or removes a POSIX ACL (`spec/06 §8.2`).
    fn set_acl(&self, caller: &Caller, ino: Ino, default: bool, acl: Option<Acl>) -> Result<()> {
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Write)?;
        let _ops = lock_ops(&[&inode]);
        let f = self.fresh(&inode, &lock)?;
        if f.kind == DirentKind::Symlink {
            return fail(Errno::EOPNOTSUPP);
        }
        if default && !f.is_dir() {
            // As the Linux VFS answers; an older kernel would say EINVAL.
            return if acl.is_some() { fail(Errno::EACCES) } else { Ok(()) };
        }
        if !is_owner(&f, caller) {
            return fail(Errno::EPERM);
        }
        let mode = match &acl {
            Some(acl) if !default => allowed_mode(f.mode & !0o777 | acl.mode_bits(), f.gid, caller),
            _ => f.mode,
        };
        // What the mode says as well is not stored.
        let stored = acl.filter(|a| default || !a.is_minimal());
        let name = if default { DEFAULT_NAME } else { ACCESS_NAME };
        let found = if f.next_xattr_id == 0 { None } else { self.find_xattr(&lock, ino, name)? };
        let kind = if stored.is_some() { HoldKind::Allocating } else { HoldKind::Freeing };
        let tx = self.begin(kind, &[(&inode, Touch::Meta)])?;
        let mut f = inode.fields();
        let mut cs = ChangeSet::new(&self.node.items);
        match (&stored, &found) {
            (Some(acl), Some(found)) => replace_xattr(&mut cs, &lock, ino, found, name, &acl.encode()),
            (Some(acl), None) => {
                put_new_xattr(&mut cs, &lock, ino, f.next_xattr_id, name, &acl.encode());
                f.next_xattr_id += 1;
            }
            (None, Some(found)) => remove_xattr(&mut cs, &lock, ino, found, name),
            (None, None) => {}
        }
        f.mode = mode;
        f.ctime = tx.now;
        f.version += 1;
        self.put_inode(&mut cs, &tx, &lock, &inode, &mut f, Touch::Meta);
        cs.apply(tx.hold())?;
        inode.store(lock.refresh_gen(), f);
        inode.remember_acl(lock.refresh_gen(), default, KnownAcl::Is(stored.map(Arc::new)));
        Ok(())
    }

    /// Calls `visit` with the key fields (hash, id) and the name of every attribute from (hash, id) on.
    fn each_xattr(
        &self,
        ino: Ino,
        from: HiddenCursor,
        check: impl FnOnce(&Inode, &ItemLock, &Fields) -> Result<()>,
        visit: &mut dyn FnMut(HiddenCursor, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let f = self.fresh(&inode, &lock)?;
        check(&inode, &lock, &f)?;
        if f.next_xattr_id == 0 {
            return Ok(());
        }
        let all = keys::inode_items_of_type(ino, TYPE_XATTR);
        let range = KeyRange::new(keys::xattr(ino, from.hash, from.id, 0), all.end);
        let mut result = Ok(());
        self.node.items.scan(&lock, range, &mut |key, value| {
            if key.fourth != 0 {
                return ControlFlow::Continue(());
            }
            match validate_xattr_first(key, value) {
                Ok(first) => visit(HiddenCursor { hash: key.second as u32, id: key.third }, first.name),
                Err(e) => {
                    result = Err(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        result
    }

    /// Names of the attributes that are not hidden, each followed by NUL. `trusted.` names only for the privileged.
    pub(crate) fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        self.each_xattr(ino, HiddenCursor::default(), |_, _, _| Ok(()), &mut |_, name| {
            let secret = name.starts_with(b"trusted.") && !caller.can(Caps::SYS_ADMIN);
            let unsupported = !self.node.acl && (name == ACCESS_NAME || name == DEFAULT_NAME);
            if !secret && !unsupported && !is_hidden(name) {
                list.extend_from_slice(name);
                list.push(0);
            }
            ControlFlow::Continue(())
        })?;
        Ok(list)
    }

    /// Names of hidden attributes from `cursor`, each followed by NUL, at most `bytes`. `ERANGE` if the first does not fit.
    pub(crate) fn list_hidden_xattrs(
        &self,
        caller: &Caller,
        ino: Ino,
        cursor: HiddenCursor,
        bytes: usize,
    ) -> Result<(Vec<u8>, HiddenCursor)> {
        let (mut list, mut next, mut too_small) = (Vec::new(), cursor, false);
        let check =
            |inode: &Inode, lock: &ItemLock, f: &Fields| self.check_access(inode, lock, f, caller, Access::READ);
        self.each_xattr(ino, cursor, check, &mut |at, name| {
            if !is_hidden(name) {
                return ControlFlow::Continue(());
            }
            if list.len() + name.len() + 1 > bytes {
                too_small = list.is_empty();
                return ControlFlow::Break(());
            }
            list.extend_from_slice(name);
            list.push(0);
            next = after(at);
            ControlFlow::Continue(())
        })?;
        if too_small { fail(Errno::ERANGE) } else { Ok((list, next)) }
    }
}

/// A stored name that does not parse has no tags.
fn is_hidden(name: &[u8]) -> bool {
    parse_tags(name).is_ok_and(|t| t.hide)
}

/// The cursor after an attribute.
fn after(at: HiddenCursor) -> HiddenCursor {
    match at.id.checked_add(1) {
        Some(id) => HiddenCursor { id, ..at },
        None => HiddenCursor { hash: at.hash.saturating_add(1), id: 0 },
    }
}
