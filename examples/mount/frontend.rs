//! The FUSE protocol on top of [`Volume`].
//!
//! Permissions are checked by the kernel (`default_permissions` with POSIX ACLs), which has the caller's groups and capabilities;
//! the volume is therefore called with every privilege and the caller's user and group, which become the owner of new
//! inodes. Attributes and names may be cached by the kernel for long. On a volume that nobody else has mounted this mount is
//! the only way to change them, and the replies to changes carry the new attributes. In a cluster see `kernel_cache`; there
//! file locks are refused (`EOPNOTSUPP`), because the protocol between nodes has none and locks that only one node knows
//! would protect nothing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use scoutfs::namespace::{Access, Attr, Caller, Caps, SetAttr, XattrFlags};
use scoutfs::{Ino, Result, Volume};

use crate::convert;
use crate::handles::{Handles, Opens};
use crate::kernel_cache::{Before, KernelCache};

/// How long the kernel may use names and attributes without asking.
const TTL: Duration = Duration::from_secs(3600);
const GENERATION: Generation = Generation(0);
/// Entries fetched for one listing request; the reply buffer usually ends it earlier.
const LISTING: usize = 256;

pub(crate) struct FrontEnd {
    volume: Arc<Volume>,
    /// Inodes that the kernel knows, if it does not announce what it opens.
    handles: Handles,
    /// What the kernel has opened, if it does announce it.
    opens: Opens,
    /// In a cluster: what the kernel caches.
    shared: Option<Arc<KernelCache>>,
    max_write: u32,
}

impl FrontEnd {
    pub(crate) fn new(volume: Arc<Volume>, max_write: u32, shared: Option<Arc<KernelCache>>) -> FrontEnd {
        FrontEnd { volume, handles: Handles::new(), opens: Opens::new(), shared, max_write }
    }

    fn before(&self) -> Option<Before> {
        self.shared.as_ref().map(|cache| cache.before())
    }

    /// How long the kernel may keep a name in `dir` that leads to `ino`, and the attributes of it.
    fn entry_ttl(&self, before: Option<Before>, dir: INodeNo, to: Ino) -> Duration {
        match (&self.shared, before) {
            (Some(cache), Some(before)) => cache.entry_ttl(before, ino(dir), to),
            _ => TTL,
        }
    }

    /// An inode is named in an answer. In a cluster that gives no claim to it: a node that remembers a name must not keep the
    /// others from deleting what it leads to.
    fn remember(&self, ino: Ino) -> Result<()> {
        if self.shared.is_some() { Ok(()) } else { self.handles.remember(&self.volume, ino) }
    }

    /// Makes an inode known to the kernel and answers with it.
    fn entry(&self, dir: INodeNo, op: impl FnOnce() -> Result<Attr>, reply: ReplyEntry) {
        let before = self.before();
        match op().and_then(|a| self.remember(a.ino).map(|()| a)) {
            Ok(a) => reply.entry(&self.entry_ttl(before, dir, a.ino), &convert::attr(&a), GENERATION),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    /// Opens an inode for the kernel, in a cluster; otherwise it is told not to ask.
    fn open_any(&self, node: INodeNo, flags: FopenFlags, reply: ReplyOpen) {
        let Some(cache) = &self.shared else {
            // Answered once: the kernel then opens files without asking, and keeps their pages.
            return reply.error(Errno::ENOSYS);
        };
        match self.volume.open_inode(&Caller::root(), ino(node), Access::NONE) {
            Ok(handle) => {
                cache.opened(ino(node));
                reply.opened(FileHandle(self.opens.insert(handle)), flags);
            }
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn empty(result: Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn xattr(result: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
        match result {
            Ok(v) if size == 0 => reply.size(v.len() as u32),
            Ok(v) if v.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(v) => reply.data(&v),
            Err(e) => reply.error(convert::errno(e)),
        }
    }
}

/// The caller of a request, with every privilege: the kernel has checked.
fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), groups: Vec::new(), caps: Caps::ALL, umask }
}

fn ino(n: INodeNo) -> Ino {
    Ino(n.0)
}

impl Filesystem for FrontEnd {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        let more = match &self.shared {
            None => [InitFlags::FUSE_NO_OPEN_SUPPORT, InitFlags::FUSE_NO_OPENDIR_SUPPORT],
            // Locks are asked for here, to be refused; without these the kernel would grant them itself.
            Some(_) => [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS],
        };
        if let Some(cache) = &self.shared {
            let version = config.kernel_abi();
            cache.negotiated((version.0, version.1));
        }
        for flag in wanted.into_iter().chain(more) {
            // What an older kernel does not offer is done without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(self.max_write);
        let _ = config.set_max_readahead(1 << 20);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn destroy(&mut self) {
        self.handles.clear();
        self.opens.clear();
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(parent, || self.volume.lookup(&caller(req, 0), ino(parent), name.as_bytes()), reply);
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.handles.forget(ino(node), nlookup);
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let before = self.before();
        match self.volume.getattr(ino(node)) {
            Ok(a) => {
                let ttl = match (&self.shared, before) {
                    (Some(cache), Some(before)) => cache.attr_ttl(before, a.ino),
                    _ => TTL,
                };
                reply.attr(&ttl, &convert::attr(&a));
            }
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(Into::into),
            through_handle: true,
        };
        match self.volume.setattr(&caller(req, 0), ino(node), &set) {
            // Without a check of versions the kernel would take what an invalidation has overtaken.
            Ok(a) => reply.attr(if self.shared.is_some() { &Duration::ZERO } else { &TTL }, &convert::attr(&a)),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        match self.volume.readlink(ino(node)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let rdev = convert::rdev_from_fuse(rdev);
        let make = || self.volume.mknod(&caller(req, umask), ino(parent), name.as_bytes(), mode, rdev);
        self.entry(parent, make, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.entry(parent, || self.volume.mkdir(&caller(req, umask), ino(parent), name.as_bytes(), mode), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(self.volume.unlink(&caller(req, 0), ino(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(self.volume.rmdir(&caller(req, 0), ino(parent), name.as_bytes()), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.entry(parent, || self.volume.symlink(&caller(req, 0), ino(parent), name.as_bytes(), target), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((ino(parent), name.as_bytes()), (ino(newparent), newname.as_bytes()));
        let flags = scoutfs::namespace::RenameFlags(flags.bits());
        Self::empty(self.volume.rename(&caller(req, 0), from, to, flags), reply);
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let make = || self.volume.link(&caller(req, 0), ino(node), ino(newparent), newname.as_bytes());
        self.entry(newparent, make, reply);
    }

    fn open(&self, _req: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_any(node, FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH, reply);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.opens.remove(fh.0);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Not FOPEN_CACHE_DIR: listings are not kept.
        self.open_any(node, FopenFlags::empty(), reply);
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.opens.remove(fh.0);
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buf = vec![0; size as usize];
        match self.volume.read(ino(node), offset, &mut buf) {
            Ok(n) => reply.data(&buf[..n]),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn write(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut who = caller(req, 0);
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            who.caps = Caps::NONE;
        }
        // Where the file ends only the volume knows: the kernel's offset may be of before another node's append.
        let append = self.shared.is_some() && flags.0 & libc::O_APPEND != 0;
        let written = if append {
            self.volume.append(&who, ino(node), data).map(|(_, n)| n)
        } else {
            self.volume.write(&who, ino(node), offset, data)
        };
        match written {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        Self::empty(self.volume.sync(), reply);
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        Self::empty(self.volume.sync(), reply);
    }

    fn readdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.volume.readdir(ino(node), offset, LISTING) {
            Ok(batch) => {
                for e in batch.iter() {
                    let kind = convert::dirent_kind(e.dirent_type);
                    if reply.add(INodeNo(e.ino.0), e.pos + 1, kind, OsStr::from_bytes(e.name)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn readdirplus(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let before = self.before();
        let batch = match self.volume.readdir_plus(ino(node), offset, LISTING) {
            Ok(b) => b,
            Err(e) => return reply.error(convert::errno(e)),
        };
        for e in batch.iter() {
            // An inode that vanished since the entry was read is left out, as if it had been removed before.
            let Some(a) = e.attr else { continue };
            // The kernel takes no reference for `.` and `..`.
            let counted = e.name != b"." && e.name != b"..";
            if counted && self.remember(e.ino).is_err() {
                continue;
            }
            let name = OsStr::from_bytes(e.name);
            let ttl = if counted { self.entry_ttl(before, node, e.ino) } else { TTL };
            if reply.add(INodeNo(e.ino.0), e.pos + 1, name, &ttl, &convert::attr(&a), GENERATION) {
                if counted && self.shared.is_none() {
                    self.handles.forget(e.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.volume.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free_blocks,
                s.free_blocks,
                s.files,
                s.free_files,
                s.block_size,
                s.name_len,
                s.block_size,
            ),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let Some(flags) = XattrFlags::from_bits(flags as u32) else { return reply.error(Errno::EINVAL) };
        let done = self.volume.setxattr(&caller(req, 0), ino(node), name.as_bytes(), value, flags);
        Self::empty(done, reply);
    }

    fn getxattr(&self, req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        Self::xattr(self.volume.getxattr(&caller(req, 0), ino(node), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        Self::xattr(self.volume.listxattr(&caller(req, 0), ino(node)), size, reply);
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(self.volume.removexattr(&caller(req, 0), ino(node), name.as_bytes()), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.volume.create_open(&caller(req, umask), ino(parent), name.as_bytes(), mode) {
            Ok((a, handle)) if self.shared.is_some() => {
                let fh = FileHandle(self.opens.insert(handle));
                let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                // New to the kernel and open at once: an invalidation that overtakes this answer would find nothing.
                reply.created(&Duration::ZERO, &convert::attr(&a), GENERATION, fh, direct);
            }
            Ok((a, handle)) => {
                self.handles.insert(a.ino, handle);
                let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.created(&TTL, &convert::attr(&a), GENERATION, FileHandle(0), keep);
            }
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        Self::empty(self.volume.fallocate(&caller(req, 0), ino(node), mode as u32, offset, length), reply);
    }

    fn lseek(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Ok(at) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let found = match whence {
            libc::SEEK_DATA => self.volume.seek_data(ino(node), at),
            libc::SEEK_HOLE => self.volume.seek_hole(ino(node), at),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(pos) => reply.offset(pos as i64),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn setlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        // Nobody holds a lock, so there is always none to give back.
        if typ == libc::F_UNLCK { reply.ok() } else { reply.error(Errno::EOPNOTSUPP) }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies through its cache instead.
        reply.error(Errno::ENOSYS);
    }
}
