//! From inodes back to names: referring entries, paths, export handles, allocated numbers (`spec/06 §4.7, §11, §12`).

use std::ops::ControlFlow;

use super::Namespace;
use super::rename::WALK_RETRIES;
use super::types::{Attr, Caller, Caps, FileHandle, InoPath, Referrer};
use crate::error::{Errno, Result, fail};
use crate::format::consts::{TYPE_LINK_BACKREF, ZONE_FS};
use crate::format::{DirentKind, Ino, Key, KeyRange, keys, validate_dirent};
use crate::lock::{LOCK_GROUP, Mode};

/// Handle type: inode.
const HANDLE_INODE: u8 = 0x81;
/// Handle type: inode and a parent.
const HANDLE_PARENT: u8 = 0x82;
/// Longest path, in directories, that is walked.
const MAX_DEPTH: usize = 1 << 16;

impl Namespace {
    /// Links to `ino` from the cursor (directory, position) on, at most `limit`.
    fn referrers(&self, ino: Ino, from: (Ino, u64), limit: usize) -> Result<Vec<Referrer>> {
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let _op = inode.op.read();
        let all = keys::inode_items_of_type(ino, TYPE_LINK_BACKREF);
        let range = KeyRange::new(keys::backref(ino, from.0, from.1), all.end);
        let mut found: Vec<Referrer> = Vec::new();
        let mut result = Ok(true);
        self.node.items.scan(&lock, range, &mut |key, value| {
            if found.len() == limit {
                result = Ok(false);
                return ControlFlow::Break(());
            }
            match validate_dirent(key, value) {
                Ok(d) => {
                    let dirent_type = d.kind.map_or(0, DirentKind::dt);
                    let dir = Ino(key.second);
                    found.push(Referrer { dir, pos: d.pos, dirent_type, name: d.name.to_vec(), last: false });
                    ControlFlow::Continue(())
                }
                Err(e) => {
                    result = Err(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        if result? && let Some(last) = found.last_mut() {
            last.last = true;
        }
        Ok(found)
    }

    fn first_referrer(&self, ino: Ino, from: (Ino, u64)) -> Result<Referrer> {
        self.referrers(ino, from, 1)?.pop().ok_or(Errno::ENOENT.into())
    }

    /// Links to `ino` from the cursor (directory, position) on, at most `limit`. None for the root and for unused numbers.
    pub(crate) fn referring_entries(
        &self,
        caller: &Caller,
        ino: Ino,
        from: (Ino, u64),
        limit: usize,
    ) -> Result<Vec<Referrer>> {
        if !caller.can(Caps::DAC_READ_SEARCH) {
            return fail(Errno::EPERM);
        }
        self.referrers(ino, from, limit.max(1))
    }

    /// A path of `ino`, starting from its first link at or after (`dir`, `pos`). `ENOENT`: there is none.
    pub(crate) fn ino_path(&self, caller: &Caller, ino: Ino, from: (Ino, u64)) -> Result<InoPath> {
        if !caller.can(Caps::DAC_READ_SEARCH) {
            return fail(Errno::EPERM);
        }
        for _ in 0..WALK_RETRIES {
            let first = self.first_referrer(ino, from)?;
            if let Some(path) = self.path_from(&first)? {
                return Ok(InoPath { dir: first.dir, pos: first.pos, path });
            }
        }
        fail(Errno::ELOOP)
    }

    /// The path that ends with this link; `None` if a directory on the way vanished meanwhile.
    fn path_from(&self, link: &Referrer) -> Result<Option<Vec<u8>>> {
        let mut names = vec![link.name.clone()];
        let mut at = link.dir;
        while at != Ino::ROOT {
            if names.len() > MAX_DEPTH {
                return fail(Errno::ELOOP);
            }
            match self.first_referrer(at, (Ino(0), 0)) {
                Ok(r) => {
                    names.push(r.name);
                    at = r.dir;
                }
                Err(e) if e.is(Errno::ENOENT) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }

    /// A directory that has an entry for `ino`.
    pub(crate) fn parent_of(&self, ino: Ino) -> Result<Ino> {
        Ok(self.first_referrer(ino, (Ino(0), 0))?.dir)
    }

    /// The name of `ino` in `parent`.
    pub(crate) fn name_in(&self, parent: Ino, ino: Ino) -> Result<Vec<u8>> {
        let found = self.first_referrer(ino, (parent, 0))?;
        if found.dir == parent { Ok(found.name) } else { fail(Errno::ENOENT) }
    }

    /// The inode of an export handle; `ESTALE` if it is malformed or the inode has no links.
    pub(crate) fn resolve_handle(&self, handle: &FileHandle) -> Result<Attr> {
        let attr = self.getattr(handle.ino().ok_or(Errno::ESTALE)?)?;
        if attr.nlink == 0 { fail(Errno::ESTALE) } else { Ok(attr) }
    }

    /// Inode numbers at or after `start`, within its group of 1024, that own any item.
    pub(crate) fn allocated_inos(&self, caller: &Caller, start: Ino, limit: usize) -> Result<Vec<Ino>> {
        if !caller.can(Caps::SYS_ADMIN) {
            return fail(Errno::EPERM);
        }
        if start.0 == 0 {
            return self.allocated_inos(caller, Ino::ROOT, limit);
        }
        let inode = self.inode(start)?;
        let lock = self.lock_group(&inode, Mode::Read)?;
        let end = Key::new(ZONE_FS, start.0 | (LOCK_GROUP - 1), u8::MAX, u64::MAX, u64::MAX, u8::MAX);
        let mut found = Vec::new();
        let mut at = Key::new(ZONE_FS, start.0, 0, 0, 0, 0);
        while found.len() < limit {
            let Some((key, _)) = self.node.items.next(&lock, &at, &end)? else { break };
            found.push(Ino(key.first));
            if key.first == end.first {
                break;
            }
            at = Key::new(ZONE_FS, key.first + 1, 0, 0, 0, 0);
        }
        Ok(found)
    }
}

impl FileHandle {
    /// The handle of an inode, with a parent if one is given.
    pub fn new(ino: Ino, parent: Option<Ino>) -> FileHandle {
        let mut bytes = ino.0.to_le_bytes().to_vec();
        bytes.extend(parent.iter().flat_map(|p| p.0.to_le_bytes()));
        FileHandle { kind: if parent.is_some() { HANDLE_PARENT } else { HANDLE_INODE }, bytes }
    }

    /// The inode that it names, if it is well formed.
    pub fn ino(&self) -> Option<Ino> {
        let words = match self.kind {
            HANDLE_INODE => 2,
            HANDLE_PARENT => 4,
            _ => return None,
        };
        if self.bytes.len() < words * 4 {
            return None;
        }
        let ino = u64::from_le_bytes(*self.bytes.first_chunk()?);
        (ino != 0).then_some(Ino(ino))
    }

    /// The parent that it names, if it is a handle with one.
    pub fn parent(&self) -> Option<Ino> {
        let bytes = self.bytes.get(8..).filter(|_| self.kind == HANDLE_PARENT)?;
        Some(Ino(u64::from_le_bytes(*bytes.first_chunk()?)))
    }
}
