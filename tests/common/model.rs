//! A file system that is nothing but maps, to compare a volume with.
//!
//! [`Op`] is one call, which [`Op::run`] does on a volume; [`Model::apply`] says what must come of it. [`observe`] walks a
//! volume and gives what is visible of it, as a model again, so that "the same" is `==`. [`History`] remembers the model
//! after each call, for volumes that come back from a crash at some unknown call.

use std::collections::BTreeMap;
use std::sync::Arc;

use scoutfs::namespace::{Caller, RenameFlags, XattrFlags};
use scoutfs::{Errno, Ino, Volume};

use crate::op::{KEEP_SIZE, Op, PUNCH, ZERO, pattern};

/// What an inode holds.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Dir(BTreeMap<String, Ino>),
    File(Vec<u8>),
    Link(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) content: Content,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

impl Inode {
    fn new(content: Content) -> Inode {
        Inode { content, xattrs: BTreeMap::new() }
    }

    fn describe(&self) -> String {
        let what = match &self.content {
            Content::Dir(entries) => format!("dir {entries:?}"),
            Content::File(data) => {
                format!("file of {} bytes, sum {}", data.len(), data.iter().map(|b| *b as u64).sum::<u64>())
            }
            Content::Link(target) => format!("link to {}", String::from_utf8_lossy(target)),
        };
        let xattrs: Vec<_> = self.xattrs.iter().map(|(n, v)| format!("{n}: {} bytes", v.len())).collect();
        format!("{what} {xattrs:?}")
    }
}

/// Inodes that can be reached, by number. Clones share what they have in common.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) inodes: BTreeMap<Ino, Arc<Inode>>,
}

impl Model {
    /// A new volume.
    pub(crate) fn new() -> Model {
        Model { inodes: BTreeMap::from([(Ino::ROOT, Arc::new(Inode::new(Content::Dir(BTreeMap::new()))))]) }
    }

    pub(crate) fn entries(&self, dir: Ino) -> Result<&BTreeMap<String, Ino>, Errno> {
        match &self.inodes[&dir].content {
            Content::Dir(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.inodes[&ino].content, Content::Dir(_))
    }

    fn inode(&mut self, ino: Ino) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&ino).expect("calls name inodes that exist"))
    }

    fn dir(&mut self, ino: Ino) -> &mut BTreeMap<String, Ino> {
        match &mut self.inode(ino).content {
            Content::Dir(entries) => entries,
            _ => panic!("checked before"),
        }
    }

    fn data(&mut self, ino: Ino) -> &mut Vec<u8> {
        match &mut self.inode(ino).content {
            Content::File(data) => data,
            _ => panic!("calls on contents name files"),
        }
    }

    /// Whether `below` is `dir` or lies under it.
    fn contains(&self, dir: Ino, below: Ino) -> bool {
        dir == below
            || self
                .entries(dir)
                .is_ok_and(|e| e.values().any(|child| self.is_dir(*child) && self.contains(*child, below)))
    }

    fn links(&self, ino: Ino) -> usize {
        let names = |i: &Arc<Inode>| match &i.content {
            Content::Dir(entries) => entries.values().filter(|e| **e == ino).count(),
            _ => 0,
        };
        self.inodes.values().map(names).sum()
    }

    fn forget_unlinked(&mut self, ino: Ino) {
        if self.links(ino) == 0 {
            self.inodes.remove(&ino);
        }
    }

    fn add(&mut self, dir: Ino, name: &str, made: impl FnOnce() -> Ino, content: Content) -> Result<(), Errno> {
        if self.entries(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let ino = made();
        self.dir(dir).insert(name.into(), ino);
        assert!(self.inodes.insert(ino, Arc::new(Inode::new(content))).is_none(), "{ino:?} is in use");
        Ok(())
    }

    fn put(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        if data.len() < offset + bytes.len() {
            data.resize(offset + bytes.len(), 0);
        }
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// What must come of a call; `made` gives the number that the volume chose for a new inode.
    pub(crate) fn apply(&mut self, op: &Op, made: impl FnOnce() -> Ino) -> Result<(), Errno> {
        match op {
            Op::Mkdir(dir, name) => self.add(*dir, name, made, Content::Dir(BTreeMap::new()))?,
            Op::Create(dir, name) => self.add(*dir, name, made, Content::File(Vec::new()))?,
            Op::Symlink(dir, name, target) => self.add(*dir, name, made, Content::Link(target.clone().into()))?,
            Op::Write { ino, offset, len, seed } => {
                Model::put(self.data(*ino), *offset as usize, &pattern(*seed, *len));
            }
            Op::Append { ino, len, seed } => self.data(*ino).extend_from_slice(&pattern(*seed, *len)),
            Op::Truncate(ino, size) => self.data(*ino).resize(*size as usize, 0),
            Op::Fallocate { ino, mode, offset, len } => self.fallocate(*ino, *mode, *offset as usize, *len as usize),
            Op::SetXattr { ino, name, len, seed, flags } => {
                let there = self.inodes[ino].xattrs.contains_key(name);
                match flags {
                    XattrFlags::Create if there => return Err(Errno::EEXIST),
                    XattrFlags::Replace if !there => return Err(Errno::ENODATA),
                    _ => self.inode(*ino).xattrs.insert(name.clone(), pattern(*seed, *len)),
                };
            }
            Op::RemoveXattr(ino, name) => {
                if !self.inodes[ino].xattrs.contains_key(name) {
                    return Err(Errno::ENODATA);
                }
                self.inode(*ino).xattrs.remove(name);
            }
            Op::Link(ino, dir, name) => {
                if self.entries(*dir)?.contains_key(name) {
                    return Err(Errno::EEXIST);
                }
                if self.is_dir(*ino) {
                    return Err(Errno::EPERM);
                }
                self.dir(*dir).insert(name.clone(), *ino);
            }
            Op::Unlink(dir, name) => self.remove(*dir, name, false)?,
            Op::Rmdir(dir, name) => self.remove(*dir, name, true)?,
            Op::Rename { from, to, flags } => self.rename((from.0, &from.1), (to.0, &to.1), *flags)?,
        }
        Ok(())
    }

    fn fallocate(&mut self, ino: Ino, mode: u32, offset: usize, len: usize) {
        let data = self.data(ino);
        if mode & KEEP_SIZE == 0 && data.len() < offset + len {
            data.resize(offset + len, 0);
        }
        if mode & (PUNCH | ZERO) & !KEEP_SIZE != 0 {
            let end = data.len();
            data[offset.min(end)..(offset + len).min(end)].fill(0);
        }
    }

    fn remove(&mut self, dir: Ino, name: &str, directory: bool) -> Result<(), Errno> {
        let ino = *self.entries(dir)?.get(name).ok_or(Errno::ENOENT)?;
        match (directory, self.is_dir(ino)) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (true, true) if !self.entries(ino)?.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.dir(dir).remove(name);
        self.forget_unlinked(ino);
        Ok(())
    }

    fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), flags: RenameFlags) -> Result<(), Errno> {
        let ino = *self.entries(from.0)?.get(from.1).ok_or(Errno::ENOENT)?;
        let old = self.entries(to.0)?.get(to.1).copied();
        if flags == RenameFlags::NOREPLACE && old.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags == RenameFlags::EXCHANGE && old.is_none() {
            return Err(Errno::ENOENT);
        }
        if self.is_dir(ino) && self.contains(ino, to.0) {
            return Err(Errno::EINVAL);
        }
        if let Some(old) = old {
            let above = self.is_dir(old) && self.contains(old, from.0);
            if flags == RenameFlags::EXCHANGE {
                if above {
                    return Err(Errno::EINVAL);
                }
                self.dir(from.0).insert(from.1.into(), old);
                self.dir(to.0).insert(to.1.into(), ino);
                return Ok(());
            }
            if above {
                return Err(Errno::ENOTEMPTY);
            }
            if old == ino {
                return Ok(());
            }
            match (self.is_dir(ino), self.is_dir(old)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.entries(old)?.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        self.dir(from.0).remove(from.1);
        self.dir(to.0).insert(to.1.into(), ino);
        if let Some(old) = old {
            self.forget_unlinked(old);
        }
        Ok(())
    }

    /// Whether a call would move a directory into itself, or onto one that it lies in: with another reason to fail as well,
    /// which is reported first is left open.
    pub(crate) fn nested(&self, op: &Op) -> bool {
        let Op::Rename { from, to, .. } = op else { return false };
        let (Ok(source), Ok(target)) = (self.entries(from.0), self.entries(to.0)) else { return false };
        let holds = |ino: Option<&Ino>, dir| ino.is_some_and(|ino| self.contains(*ino, dir));
        holds(source.get(&from.1), to.0) || holds(target.get(&to.1), from.0)
    }

    /// Where two of them differ, in words.
    pub(crate) fn difference(&self, other: &Model) -> String {
        let mut lines = Vec::new();
        for ino in self.differing(other) {
            let show = |m: &Model| m.inodes.get(&ino).map_or("nothing".into(), |i| i.describe());
            lines.push(format!("  {ino:?}: {}\n     and {}", show(self), show(other)));
        }
        lines.join("\n")
    }

    fn differing(&self, other: &Model) -> Vec<Ino> {
        let mut all: Vec<Ino> = self.inodes.keys().chain(other.inodes.keys()).copied().collect();
        all.sort();
        all.dedup();
        all.retain(|ino| self.inodes.get(ino) != other.inodes.get(ino));
        all
    }
}

/// Everything visible of a volume. Each inode must be consistent in itself: kinds, sizes, link counts, readable contents.
pub(crate) fn observe(volume: &Volume) -> scoutfs::Result<Model> {
    let root = Caller::root();
    let mut model = Model { inodes: BTreeMap::new() };
    let mut nlinks = BTreeMap::new();
    let mut todo = vec![volume.getattr(Ino::ROOT)?];
    while let Some(attr) = todo.pop() {
        let ino = attr.ino;
        if model.inodes.contains_key(&ino) {
            continue;
        }
        nlinks.insert(ino, attr.nlink);
        let content = match attr.mode & 0o170000 {
            0o040000 => Content::Dir(observe_dir(volume, ino, &mut todo)?),
            0o120000 => Content::Link(volume.readlink(ino)?),
            _ => {
                let mut data = vec![0xee; attr.size as usize + 1];
                let n = volume.read(ino, 0, &mut data)?;
                assert_eq!(n as u64, attr.size, "{ino:?}: fewer bytes than its size says");
                data.truncate(n);
                Content::File(data)
            }
        };
        let mut inode = Inode::new(content);
        for name in volume.listxattr(&root, ino)?.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            inode.xattrs.insert(String::from_utf8_lossy(name).into_owned(), volume.getxattr(&root, ino, name)?);
        }
        model.inodes.insert(ino, Arc::new(inode));
    }
    for (ino, nlink) in nlinks {
        let expected = match &model.inodes[&ino].content {
            Content::Dir(entries) => 2 + entries.values().filter(|e| model.is_dir(**e)).count(),
            _ => model.links(ino),
        };
        assert_eq!(nlink as usize, expected, "link count of {ino:?}");
    }
    Ok(model)
}

fn observe_dir(
    volume: &Volume,
    dir: Ino,
    todo: &mut Vec<scoutfs::namespace::Attr>,
) -> scoutfs::Result<BTreeMap<String, Ino>> {
    let (mut entries, mut cursor) = (BTreeMap::new(), 0);
    loop {
        let batch = volume.readdir_plus(dir, cursor, 100)?;
        for entry in batch.iter().filter(|e| e.name != b"." && e.name != b"..") {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            let attr = match entry.attr {
                Some(attr) => attr,
                None => volume.getattr(entry.ino)?,
            };
            assert_eq!(attr.mode >> 12, entry.dirent_type as u32, "kind of {name} in {dir:?}");
            let found = volume.lookup(&Caller::root(), dir, entry.name)?.ino;
            assert_eq!(found, entry.ino, "{name} in {dir:?} by name and by listing");
            assert!(entries.insert(name.clone(), entry.ino).is_none(), "{name} twice in {dir:?}");
            todo.push(attr);
        }
        if batch.at_end() {
            return Ok(entries);
        }
        cursor = batch.next_cursor();
    }
}

/// Models after each call of a run.
pub(crate) struct History {
    /// Number of events of the devices when the call began, and the model when it had returned.
    states: Vec<(usize, Model)>,
    /// Events of the devices when a sync had returned, and the state it promised.
    syncs: Vec<(usize, usize)>,
    /// The last call failed: it may have been done in part.
    uncertain: bool,
}

impl History {
    /// Begins with what is durable already.
    pub(crate) fn new(start: Model) -> History {
        History { states: vec![(0, start)], syncs: vec![(0, 0)], uncertain: false }
    }

    pub(crate) fn last(&self) -> &Model {
        &self.states.last().expect("starts with one").1
    }

    /// Does a call that must succeed by the model; gives the inode that was made.
    pub(crate) fn step(&mut self, volume: &Volume, op: &Op, position: usize) -> scoutfs::Result<Option<Ino>> {
        let mut model = self.last().clone();
        // Were it to fail half way, the state after it would still be one that may be seen.
        match op.run(volume) {
            Ok(made) => {
                model
                    .apply(op, || made.expect("this call makes one"))
                    .unwrap_or_else(|e| panic!("{op:?} should fail: {e}"));
                self.states.push((position, model));
                self.uncertain = false;
                Ok(made)
            }
            Err(e) => {
                if !matches!(op, Op::Mkdir(..) | Op::Create(..) | Op::Symlink(..)) {
                    model.apply(op, || unreachable!("makes none")).expect("the test does what is possible");
                    self.states.push((position, model));
                    self.uncertain = true;
                }
                Err(e)
            }
        }
    }

    /// A sync has returned.
    pub(crate) fn synced(&mut self, position: usize) {
        self.syncs.push((position, self.states.len() - 1 - usize::from(self.uncertain)));
    }

    /// Whether a volume may look like this after a crash at event `cut`: like after any call that had begun since the last
    /// sync. Blocks of files are overwritten in place, before the commit, and large calls on contents take several
    /// commits: so a byte of a file may be as after any of these calls.
    pub(crate) fn allows(&self, seen: &Model, cut: usize) -> Result<(), String> {
        let from = self.syncs.iter().rev().find(|(at, _)| *at <= cut).map_or(0, |s| s.1);
        let begun = self.states.iter().rposition(|(at, _)| *at <= cut).unwrap_or(0).max(from);
        let range = &self.states[from..=begun];
        if range.iter().any(|(_, state)| state.differing(seen).iter().all(|ino| mixed(range, state, seen, *ino))) {
            return Ok(());
        }
        let (oldest, newest) = (&self.states[from].1, &self.states[begun].1);
        Err(format!(
            "no state from call {from} to {begun}; promised and seen differ in\n{}\nnewest and seen differ in\n{}",
            oldest.difference(seen),
            newest.difference(seen)
        ))
    }
}

/// Whether what is seen of a file may be what `range` left, its namespace being that of `state`.
fn mixed(range: &[(usize, Model)], state: &Model, seen: &Model, ino: Ino) -> bool {
    fn file(model: &Model, ino: Ino) -> Option<&Vec<u8>> {
        match model.inodes.get(&ino).map(|i| &i.content) {
            Some(Content::File(data)) => Some(data),
            _ => None,
        }
    }
    let (Some(_), Some(found)) = (file(state, ino), file(seen, ino)) else { return false };
    let all: Vec<_> = range.iter().filter_map(|(_, m)| file(m, ino)).collect();
    let sizes = all.iter().map(|data| data.len());
    let (smallest, largest) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
    state.inodes[&ino].xattrs == seen.inodes[&ino].xattrs
        && (smallest..=largest).contains(&found.len())
        && found.iter().enumerate().all(|(at, byte)| all.iter().any(|data| data.get(at).copied().unwrap_or(0) == *byte))
}
