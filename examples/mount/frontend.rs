//! The FUSE protocol on top of [`Volume`].
//!
//! Permissions are checked by the kernel (`default_permissions` with POSIX ACLs), which has the caller's groups and
//! capabilities; the volume is therefore called with every privilege and the caller's user and group, which become the
//! owner of new inodes. Attributes and names may be cached by the kernel for long. On a volume that nobody else has mounted
//! this mount is the only way to change them, and the replies to changes carry the new attributes. In a cluster see
//! `kernel_cache`; there file locks are refused (`EOPNOTSUPP`), because the protocol between nodes has none and locks that
//! only one node knows would protect nothing.

use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr,
};
use scoutfs::namespace::{Access, Attr, Caller};
use scoutfs::{Ino, OpenInode, Result, Volume};

use crate::convert;
use crate::handles::{Handles, Opens};
use crate::kernel_cache::{Before, KernelCache};

/// How long the kernel may use names and attributes without asking.
pub(crate) const TTL: Duration = Duration::from_secs(3600);
pub(crate) const GENERATION: Generation = Generation(0);

pub(crate) struct FrontEnd {
    pub(crate) volume: Arc<Volume>,
    /// Inodes that the kernel knows, if it does not announce what it opens.
    pub(crate) handles: Handles,
    /// What the kernel has opened, if it does announce it.
    pub(crate) opens: Opens,
    /// In a cluster: what the kernel caches.
    pub(crate) shared: Option<Arc<KernelCache>>,
    pub(crate) max_write: u32,
}

impl FrontEnd {
    pub(crate) fn new(volume: Arc<Volume>, max_write: u32, shared: Option<Arc<KernelCache>>) -> FrontEnd {
        FrontEnd { volume, handles: Handles::new(), opens: Opens::new(), shared, max_write }
    }

    pub(crate) fn before(&self) -> Option<Before> {
        self.shared.as_ref().map(|cache| cache.before())
    }

    /// How long the kernel may keep a name in `dir` that leads to `ino`, and the attributes of it.
    pub(crate) fn entry_ttl(&self, before: Option<Before>, dir: INodeNo, to: Ino) -> Duration {
        match (&self.shared, before) {
            (Some(cache), Some(before)) => cache.entry_ttl(before, ino(dir), to),
            _ => TTL,
        }
    }

    /// An inode is named in an answer. In a cluster that gives no claim to it: a node that remembers a name must not keep the
    /// others from deleting what it leads to.
    pub(crate) fn remember(&self, ino: Ino) -> Result<()> {
        if self.shared.is_some() { Ok(()) } else { self.handles.remember(&self.volume, ino) }
    }

    /// Makes an inode known to the kernel and answers with it.
    pub(crate) fn entry(&self, dir: INodeNo, op: impl FnOnce() -> Result<Attr>, reply: ReplyEntry) {
        let before = self.before();
        match op().and_then(|a| self.remember(a.ino).map(|()| a)) {
            Ok(a) => reply.entry(&self.entry_ttl(before, dir, a.ino), &convert::attr(&a), GENERATION),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    /// Opens an inode for the kernel, in a cluster; otherwise it is told not to ask. `writable`: for reading and writing.
    pub(crate) fn open_any(&self, node: INodeNo, writable: bool, flags: FopenFlags, reply: ReplyOpen) {
        let Some(cache) = &self.shared else {
            // Answered once: the kernel then opens files without asking, and keeps their pages.
            return reply.error(Errno::ENOSYS);
        };
        let ino = ino(node);
        let opened = self.volume.open_inode(&Caller::root(), ino, Access::NONE).and_then(|handle| {
            cache.opened(&self.volume, ino, writable)?;
            Ok(handle)
        });
        match opened {
            Ok(handle) => reply.opened(FileHandle(self.opens.insert(handle, writable.then_some(ino))), flags),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    /// The kernel has closed what it had opened.
    pub(crate) fn release(&self, fh: FileHandle, reply: ReplyEmpty) {
        if let (Some(cache), Some(ino)) = (&self.shared, self.opens.remove(fh.0)) {
            cache.mapped.closed(ino);
        }
        reply.ok();
    }

    /// Answers with a file that was just made, and is open for reading and writing if `writable`.
    pub(crate) fn created(&self, a: &Attr, handle: OpenInode, writable: bool, reply: ReplyCreate) {
        let Some(cache) = &self.shared else {
            self.handles.insert(a.ino, handle);
            let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            return reply.created(&TTL, &convert::attr(a), GENERATION, FileHandle(0), keep);
        };
        if let Err(e) = if writable { cache.mapped.opened(&self.volume, a.ino, || ()) } else { Ok(()) } {
            return reply.error(convert::errno(e));
        }
        let fh = FileHandle(self.opens.insert(handle, writable.then_some(a.ino)));
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        // New to the kernel and open at once: an invalidation that overtakes this answer would find nothing.
        reply.created(&Duration::ZERO, &convert::attr(a), GENERATION, fh, direct);
    }

    /// `to_keep`: the kernel reads pages that it keeps.
    pub(crate) fn read(&self, node: INodeNo, offset: u64, size: usize, to_keep: bool, reply: ReplyData) {
        let mut buf = vec![0; size];
        // Noted as being filled until it is answered.
        let filling = self.shared.as_ref().filter(|_| to_keep).map(|cache| cache.mapped.fill(ino(node)));
        let read = match &filling {
            Some(filling) => self.volume.lend(ino(node), offset, &mut buf, filling.writable),
            None => self.volume.read(ino(node), offset, &mut buf),
        };
        match read {
            Ok(n) => reply.data(&buf[..n]),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    pub(crate) fn write(&self, who: &Caller, node: INodeNo, offset: u64, data: &[u8], how: Writing, reply: ReplyWrite) {
        let ino = ino(node);
        let written = match (&self.shared, how) {
            (Some(_), Writing::Back) => self.volume.give_back(who, ino, offset, data).map(|_| data.len()),
            // Where the file ends only the volume knows: the kernel's offset may be of before another node's append.
            (Some(cache), Writing::Append) => self.volume.append(who, ino, data).map(|(at, n)| {
                if at != offset && cache.mapped.has_pages(ino) {
                    // The kernel drops the pages where it believes that this was written.
                    cache.drop_pages(ino);
                }
                n
            }),
            _ => self.volume.write(who, ino, offset, data),
        };
        match written {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    pub(crate) fn empty(result: Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    pub(crate) fn xattr(result: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
        match result {
            Ok(v) if size == 0 => reply.size(v.len() as u32),
            Ok(v) if v.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(v) => reply.data(&v),
            Err(e) => reply.error(convert::errno(e)),
        }
    }
}

/// Why the kernel writes.
#[derive(Clone, Copy)]
pub(crate) enum Writing {
    /// Somebody wrote at this place.
    There,
    /// Somebody wrote at the end.
    Append,
    /// Pages that were stored into.
    Back,
}

pub(crate) fn ino(n: INodeNo) -> Ino {
    Ino(n.0)
}
