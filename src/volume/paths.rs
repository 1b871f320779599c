//! Paths, for programs that have them.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::Volume;
use crate::error::{Errno, Result, fail};
use crate::format::{DirentKind, Ino};
use crate::namespace::{Attr, Caller};

/// Symbolic links followed before it is taken for a loop.
const MAX_LINKS: u32 = 40;

impl Volume {
    /// The inode at `path`, following symbolic links, with every privilege. Relative paths start at the root.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG`.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<Attr> {
        self.walk(Ino::ROOT, path.as_ref(), true, &mut 0)
    }

    /// [`Volume::resolve`] without following a symbolic link at the end.
    pub fn resolve_nofollow(&self, path: impl AsRef<Path>) -> Result<Attr> {
        self.walk(Ino::ROOT, path.as_ref(), false, &mut 0)
    }

    fn walk(&self, from: Ino, path: &Path, follow_last: bool, links: &mut u32) -> Result<Attr> {
        let root = Caller::root();
        let mut at = self.getattr(from)?;
        let mut parent = from;
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let name: &[u8] = match component {
                Component::RootDir | Component::Prefix(_) => {
                    at = self.getattr(Ino::ROOT)?;
                    continue;
                }
                Component::CurDir => b".",
                Component::ParentDir => b"..",
                Component::Normal(name) => name.as_bytes(),
            };
            if at.kind == DirentKind::Dir {
                parent = at.ino;
            }
            at = self.lookup(&root, parent, name)?;
            let last = components.peek().is_none();
            if at.kind == DirentKind::Symlink && (follow_last || !last) {
                *links += 1;
                if *links > MAX_LINKS {
                    return fail(Errno::ELOOP);
                }
                let target = self.readlink(at.ino)?;
                at = self.walk(parent, Path::new(std::ffi::OsStr::from_bytes(&target)), true, links)?;
            }
            if !last && at.kind != DirentKind::Dir {
                return fail(Errno::ENOTDIR);
            }
        }
        Ok(at)
    }

    /// Makes a directory and those above it that are missing.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<Attr> {
        let root = Caller::root();
        let mut at = self.getattr(Ino::ROOT)?;
        for component in path.as_ref().components() {
            let Component::Normal(name) = component else { continue };
            at = match self.lookup(&root, at.ino, name.as_bytes()) {
                Err(e) if e.is(Errno::ENOENT) => match self.mkdir(&root, at.ino, name.as_bytes(), 0o755) {
                    Err(e) if e.is(Errno::EEXIST) => self.lookup(&root, at.ino, name.as_bytes())?,
                    made => made?,
                },
                found => found?,
            };
        }
        Ok(at)
    }

    /// The whole contents of a file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let attr = self.resolve(path)?;
        let mut contents = vec![0; usize::try_from(attr.size).map_err(|_| Errno::EFBIG)?];
        let n = self.read(attr.ino, 0, &mut contents)?;
        contents.truncate(n);
        Ok(contents)
    }

    /// Makes or replaces the file at `path`; its directory must exist.
    pub fn write_file(&self, path: impl AsRef<Path>, contents: &[u8]) -> Result<Attr> {
        let path = path.as_ref();
        let root = Caller::root();
        let parent = self.resolve(path.parent().unwrap_or(Path::new("")))?;
        let Some(name) = path.file_name() else { return fail(Errno::EISDIR) };
        let attr = match self.create(&root, parent.ino, name.as_bytes(), 0o644) {
            Err(e) if e.is(Errno::EEXIST) => {
                let found = self.resolve(path)?;
                let empty = crate::namespace::SetAttr { size: Some(0), ..Default::default() };
                self.setattr(&root, found.ino, &empty)?
            }
            made => made?,
        };
        let mut at = 0;
        while at < contents.len() {
            match self.write(&root, attr.ino, at as u64, &contents[at..])? {
                0 => return fail(Errno::ENOSPC),
                n => at += n,
            }
        }
        self.getattr(attr.ino)
    }
}
