//! A file system in a few maps, written from POSIX and not from the engine, to compare answers with.

use std::collections::BTreeMap;

use crate::error::Errno;
use crate::format::DirentKind::{self, Dir, Fifo, Regular, Symlink};
use crate::namespace::RenameFlags;

/// Number of an inode of the model.
pub(super) type Id = usize;
pub(super) type Answer<T = ()> = Result<T, Errno>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: DirentKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) nlink: u32,
    pub(super) opens: u32,
    pub(super) linkable: bool,
    /// Removed for good.
    pub(super) gone: bool,
    /// In listing order.
    pub(super) entries: Vec<(Vec<u8>, Id)>,
    pub(super) target: Vec<u8>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) parent: Id,
}

impl Node {
    fn new(kind: DirentKind, mode: u32, uid: u32, parent: Id) -> Node {
        Node {
            kind,
            mode,
            uid,
            nlink: if kind == Dir { 2 } else { 1 },
            opens: 0,
            linkable: false,
            gone: false,
            entries: Vec::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            parent,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self.kind {
            Dir => self.entries.iter().map(|(n, _)| n.len() as u64).sum(),
            Symlink => self.target.len() as u64,
            _ => 0,
        }
    }

    /// Users are in the group of their own number only.
    fn allows(&self, uid: u32, want: u32) -> bool {
        let shift = if uid == self.uid { 6 } else { 0 };
        uid == 0 || (self.mode >> shift) & want == want
    }
}

const R: u32 = 4;
const W: u32 = 2;
const X: u32 = 1;

pub(super) struct Model {
    pub(super) nodes: Vec<Node>,
}

impl Model {
    pub(super) fn new() -> Model {
        Model { nodes: vec![Node::new(Dir, 0o755, 0, 0)] }
    }

    fn check(&self, id: Id) -> Answer {
        if self.nodes[id].gone { Err(Errno::ESTALE) } else { Ok(()) }
    }

    fn settle(&mut self, id: Id) {
        let n = &mut self.nodes[id];
        if n.nlink == 0 && n.opens == 0 {
            n.gone = true;
        }
    }

    fn allowed(&self, id: Id, uid: u32, want: u32) -> Answer {
        if self.nodes[id].allows(uid, want) { Ok(()) } else { Err(Errno::EACCES) }
    }

    fn get(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.nodes[dir].entries.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    fn search(&self, uid: u32, dir: Id, name: &[u8]) -> Answer<Option<Id>> {
        self.check(dir)?;
        if self.nodes[dir].kind != Dir {
            return Err(Errno::ENOTDIR);
        }
        self.allowed(dir, uid, X)?;
        Ok(self.get(dir, name))
    }

    pub(super) fn lookup(&self, uid: u32, dir: Id, name: &[u8]) -> Answer<Id> {
        short(name)?;
        self.search(uid, dir, name)?.ok_or(Errno::ENOENT)
    }

    fn new_entry(&self, uid: u32, dir: Id, name: &[u8]) -> Answer {
        if self.search(uid, dir, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.nodes[dir].nlink == 0 {
            return Err(Errno::ENOENT);
        }
        self.allowed(dir, uid, W | X)
    }

    fn deletable(&self, uid: u32, dir: Id, id: Id) -> Answer {
        self.allowed(dir, uid, W | X)?;
        let d = &self.nodes[dir];
        if d.mode & 0o1000 != 0 && uid != 0 && uid != d.uid && uid != self.nodes[id].uid {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    pub(super) fn make(&mut self, uid: u32, dir: Id, name: &[u8], kind: DirentKind, mode: u32) -> Answer<Id> {
        short(name)?;
        self.new_entry(uid, dir, name)?;
        let id = self.nodes.len();
        let mode = if kind == Symlink { 0o777 } else { mode & !0o022 };
        self.nodes.push(Node::new(kind, mode, uid, dir));
        self.nodes[dir].entries.push((name.to_vec(), id));
        self.nodes[dir].nlink += u32::from(kind == Dir);
        Ok(id)
    }

    pub(super) fn tmpfile(&mut self, uid: u32, dir: Id, mode: u32) -> Answer<Id> {
        self.check(dir)?;
        if self.nodes[dir].kind != Dir {
            return Err(Errno::ENOTDIR);
        }
        self.allowed(dir, uid, W | X)?;
        if self.nodes[dir].nlink == 0 {
            return Err(Errno::ENOENT);
        }
        let mut node = Node::new(Regular, mode & !0o022, uid, dir);
        (node.nlink, node.opens, node.linkable) = (0, 1, true);
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    pub(super) fn link(&mut self, uid: u32, id: Id, dir: Id, name: &[u8]) -> Answer {
        short(name)?;
        self.new_entry(uid, dir, name)?;
        self.check(id)?;
        let n = &self.nodes[id];
        if n.kind == Dir {
            return Err(Errno::EPERM);
        }
        if n.nlink == 0 && !n.linkable {
            return Err(Errno::ENOENT);
        }
        self.nodes[id].nlink += 1;
        self.nodes[id].linkable = false;
        self.nodes[dir].entries.push((name.to_vec(), id));
        Ok(())
    }

    fn take(&mut self, dir: Id, name: &[u8]) {
        self.nodes[dir].entries.retain(|(n, _)| n != name);
    }

    fn drop_link(&mut self, id: Id) {
        let n = &mut self.nodes[id];
        n.nlink -= if n.kind == Dir { 2 } else { 1 };
        self.settle(id);
    }

    pub(super) fn remove(&mut self, uid: u32, dir: Id, name: &[u8], want_dir: bool) -> Answer {
        let id = self.lookup(uid, dir, name)?;
        self.deletable(uid, dir, id)?;
        let is_dir = self.nodes[id].kind == Dir;
        match (want_dir, is_dir) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (true, true) if !self.nodes[id].entries.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.take(dir, name);
        self.nodes[dir].nlink -= u32::from(is_dir);
        self.drop_link(id);
        Ok(())
    }

    fn is_below(&self, mut dir: Id, top: Id) -> Answer<bool> {
        loop {
            if dir == top {
                return Ok(true);
            }
            if dir == 0 {
                return Ok(false);
            }
            if self.nodes[dir].nlink == 0 {
                return Err(Errno::ENOENT);
            }
            dir = self.nodes[dir].parent;
        }
    }

    pub(super) fn rename(
        &mut self,
        uid: u32,
        (from, old): (Id, &[u8]),
        (to, new): (Id, &[u8]),
        flags: RenameFlags,
    ) -> Answer {
        let exchange = flags == RenameFlags::EXCHANGE;
        short(new)?;
        let id = self.lookup(uid, from, old)?;
        let other = self.search(uid, to, new)?;
        let is_dir = |m: &Model, id: Id| m.nodes[id].kind == Dir;
        if from != to {
            if is_dir(self, id) && self.is_below(to, id)? {
                return Err(Errno::EINVAL);
            }
            if let Some(o) = other.filter(|o| is_dir(self, *o))
                && flags != RenameFlags::NOREPLACE
                && self.is_below(from, o)?
            {
                return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
        }
        if flags == RenameFlags::NOREPLACE && other.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange && other.is_none() {
            return Err(Errno::ENOENT);
        }
        if other == Some(id) {
            return Ok(());
        }
        self.deletable(uid, from, id)?;
        if self.nodes[to].nlink == 0 {
            return Err(Errno::ENOENT);
        }
        match other {
            None => self.allowed(to, uid, W | X)?,
            Some(o) => {
                self.deletable(uid, to, o)?;
                match (is_dir(self, id), is_dir(self, o)) {
                    _ if exchange => {}
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    (true, true) if !self.nodes[o].entries.is_empty() => return Err(Errno::ENOTEMPTY),
                    _ => {}
                }
            }
        }
        if from != to {
            for moved in [Some(id), other.filter(|_| exchange)].into_iter().flatten() {
                if is_dir(self, moved) {
                    self.allowed(moved, uid, W)?;
                }
            }
        }
        let (md, od) = (u32::from(is_dir(self, id)), u32::from(other.is_some_and(|o| is_dir(self, o))));
        if exchange {
            let o = other.unwrap();
            for (dir, name, now) in [(from, old, o), (to, new, id)] {
                self.nodes[dir].entries.iter_mut().find(|(n, _)| n == name).unwrap().1 = now;
            }
            self.nodes[from].nlink = self.nodes[from].nlink + od - md;
            self.nodes[to].nlink = self.nodes[to].nlink + md - od;
            (self.nodes[id].parent, self.nodes[o].parent) = (to, from);
            return Ok(());
        }
        self.take(to, new);
        self.take(from, old);
        self.nodes[to].entries.push((new.to_vec(), id));
        self.nodes[from].nlink -= md;
        self.nodes[to].nlink = self.nodes[to].nlink + md - od;
        self.nodes[id].parent = to;
        if let Some(o) = other {
            self.drop_link(o);
        }
        Ok(())
    }

    pub(super) fn open(&mut self, uid: u32, id: Id) -> Answer {
        self.check(id)?;
        if self.nodes[id].kind == Symlink {
            return Err(Errno::ELOOP);
        }
        self.allowed(id, uid, R)?;
        self.nodes[id].opens += 1;
        Ok(())
    }

    pub(super) fn close(&mut self, id: Id) {
        self.nodes[id].opens -= 1;
        if self.nodes[id].opens == 0 {
            self.nodes[id].linkable = false;
        }
        self.settle(id);
    }

    pub(super) fn chmod(&mut self, uid: u32, id: Id, mode: u32) -> Answer {
        self.check(id)?;
        let n = &mut self.nodes[id];
        if n.kind == Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        if uid != 0 && uid != n.uid {
            return Err(Errno::EPERM);
        }
        n.mode = mode;
        Ok(())
    }

    /// `value`: set, else remove.
    pub(super) fn set_xattr(&mut self, uid: u32, id: Id, name: &[u8], value: Option<Vec<u8>>) -> Answer {
        self.check(id)?;
        if matches!(self.nodes[id].kind, Symlink | Fifo) {
            return Err(Errno::EPERM);
        }
        let n = &self.nodes[id];
        if n.kind == Dir && n.mode & 0o1000 != 0 && uid != 0 && uid != n.uid {
            return Err(Errno::EPERM);
        }
        self.allowed(id, uid, W)?;
        let xattrs = &mut self.nodes[id].xattrs;
        match value {
            Some(v) => drop(xattrs.insert(name.to_vec(), v)),
            None => drop(xattrs.remove(name).ok_or(Errno::ENODATA)?),
        }
        Ok(())
    }

    pub(super) fn get_xattr(&self, uid: u32, id: Id, name: &[u8]) -> Answer<Vec<u8>> {
        self.check(id)?;
        if matches!(self.nodes[id].kind, Symlink | Fifo) {
            return Err(Errno::ENODATA);
        }
        self.allowed(id, uid, R)?;
        self.nodes[id].xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }
}

fn short(name: &[u8]) -> Answer {
    if name.len() > 255 { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}
