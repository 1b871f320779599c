//! What the kernel asks, passed on to [`FrontEnd`] by a thread that may wait ([`Crew`]).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use scoutfs::Volume;
use scoutfs::namespace::{Caller, Caps, SetAttr, XattrFlags};

use crate::convert;
use crate::crew::Crew;
use crate::frontend::{FrontEnd, GENERATION, TTL, Writing, ino};
use crate::kernel_cache::KernelCache;

/// Entries fetched for one listing request; the reply buffer usually ends it earlier.
const LISTING: usize = 256;

/// The receiver of requests.
pub(crate) struct Requests {
    front: Arc<FrontEnd>,
    crew: Crew,
}

impl Requests {
    /// `threads`: so many receive requests. `shared`: other nodes change the volume too.
    pub(crate) fn new(
        volume: Arc<Volume>,
        max_write: u32,
        threads: usize,
        shared: Option<Arc<KernelCache>>,
    ) -> Requests {
        let crew = Crew::new(shared.is_some().then_some(threads));
        Requests { front: Arc::new(FrontEnd::new(volume, max_write, shared)), crew }
    }

    fn run(&self, job: impl FnOnce(&FrontEnd) + Send + 'static) {
        if let Some(_working) = self.crew.work() {
            return job(&self.front);
        }
        let front = self.front.clone();
        self.crew.delegate(move || job(&front));
    }
}

/// The caller of a request, with every privilege: the kernel has checked.
fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), groups: Vec::new(), caps: Caps::ALL, umask }
}

impl Filesystem for Requests {
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
        let more: &[InitFlags] = match &self.front.shared {
            None => &[InitFlags::FUSE_NO_OPEN_SUPPORT, InitFlags::FUSE_NO_OPENDIR_SUPPORT],
            Some(cache) => {
                let version = config.kernel_abi();
                cache.negotiated((version.0, version.1));
                // Locks are asked for here, to be refused; without these the kernel would grant them itself.
                if cache.may_map() {
                    &[InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS, InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP]
                } else {
                    &[InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS]
                }
            }
        };
        for flag in wanted.into_iter().chain(more.iter().copied()) {
            // What an older kernel does not offer is done without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(self.front.max_write);
        let _ = config.set_max_readahead(1 << 20);
        // Pages that are written must not wait for pages that are read: the latter may wait for another node, and it for
        // the former.
        let _ = config.set_max_background(if self.front.shared.is_some() { u16::MAX } else { 64 });
        Ok(())
    }

    fn destroy(&mut self) {
        self.front.handles.clear();
        self.front.opens.clear();
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            f.entry(parent, || f.volume.lookup(&who, ino(parent), name.as_bytes()), reply);
        });
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.front.handles.forget(ino(node), nlookup);
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.run(move |f| {
            let before = f.before();
            match f.volume.getattr(ino(node)) {
                Ok(a) => {
                    let ttl = match (&f.shared, before) {
                        (Some(cache), Some(before)) => cache.attr_ttl(before, a.ino),
                        _ => TTL,
                    };
                    reply.attr(&ttl, &convert::attr(&a));
                }
                Err(e) => reply.error(convert::errno(e)),
            }
        });
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
        let who = caller(req, 0);
        self.run(move |f| {
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
            match f.volume.setattr(&who, ino(node), &set) {
                // Without a check of versions the kernel would take what an invalidation has overtaken.
                Ok(a) => reply.attr(if f.shared.is_some() { &Duration::ZERO } else { &TTL }, &convert::attr(&a)),
                Err(e) => reply.error(convert::errno(e)),
            }
        });
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        self.run(move |f| match f.volume.readlink(ino(node)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(convert::errno(e)),
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let name = name.to_owned();
        let who = caller(req, umask);
        self.run(move |f| {
            let rdev = convert::rdev_from_fuse(rdev);
            let make = || f.volume.mknod(&who, ino(parent), name.as_bytes(), mode, rdev);
            f.entry(parent, make, reply);
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let name = name.to_owned();
        let who = caller(req, umask);
        self.run(move |f| {
            f.entry(parent, || f.volume.mkdir(&who, ino(parent), name.as_bytes(), mode), reply);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            FrontEnd::empty(f.volume.unlink(&who, ino(parent), name.as_bytes()), reply);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            FrontEnd::empty(f.volume.rmdir(&who, ino(parent), name.as_bytes()), reply);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let name = name.to_owned();
        let target = target.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            let target = target.as_os_str().as_bytes();
            f.entry(parent, || f.volume.symlink(&who, ino(parent), name.as_bytes(), target), reply);
        });
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
        let name = name.to_owned();
        let newname = newname.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            let (from, to) = ((ino(parent), name.as_bytes()), (ino(newparent), newname.as_bytes()));
            let flags = scoutfs::namespace::RenameFlags(flags.bits());
            FrontEnd::empty(f.volume.rename(&who, from, to, flags), reply);
        });
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let newname = newname.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            let make = || f.volume.link(&who, ino(node), ino(newparent), newname.as_bytes());
            f.entry(newparent, make, reply);
        });
    }

    fn open(&self, _req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writable = flags.acc_mode() == OpenAccMode::O_RDWR;
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        self.run(move |f| f.open_any(node, writable, direct, reply));
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
        self.run(move |f| f.release(fh, reply));
    }

    fn opendir(&self, _req: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Not FOPEN_CACHE_DIR: listings are not kept.
        self.run(move |f| f.open_any(node, false, FopenFlags::empty(), reply));
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.run(move |f| f.release(fh, reply));
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Who reads past the cache says on whose behalf.
        let to_keep = lock_owner.is_none();
        self.run(move |f| f.read(node, offset, size as usize, to_keep, reply));
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
        let how = if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            Writing::Back
        } else if flags.0 & libc::O_APPEND != 0 {
            Writing::Append
        } else {
            Writing::There
        };
        // As `run`, but the contents are copied only for a helper.
        if let Some(_working) = self.crew.work() {
            return self.front.write(&who, node, offset, data, how, reply);
        }
        let (front, data) = (self.front.clone(), data.to_vec());
        self.crew.delegate(move || front.write(&who, node, offset, &data, how, reply));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.run(move |f| {
            FrontEnd::empty(f.volume.sync(), reply);
        });
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.run(move |f| {
            FrontEnd::empty(f.volume.sync(), reply);
        });
    }

    fn readdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.run(move |f| match f.volume.readdir(ino(node), offset, LISTING) {
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
        });
    }

    fn readdirplus(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.run(move |f| {
            let before = f.before();
            let batch = match f.volume.readdir_plus(ino(node), offset, LISTING) {
                Ok(b) => b,
                Err(e) => return reply.error(convert::errno(e)),
            };
            for e in batch.iter() {
                // An inode that vanished since the entry was read is left out, as if it had been removed before.
                let Some(a) = e.attr else { continue };
                // The kernel takes no reference for `.` and `..`.
                let counted = e.name != b"." && e.name != b"..";
                if counted && f.remember(e.ino).is_err() {
                    continue;
                }
                let name = OsStr::from_bytes(e.name);
                let ttl = if counted { f.entry_ttl(before, node, e.ino) } else { TTL };
                if reply.add(INodeNo(e.ino.0), e.pos + 1, name, &ttl, &convert::attr(&a), GENERATION) {
                    if counted && f.shared.is_none() {
                        f.handles.forget(e.ino, 1);
                    }
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.run(move |f| match f.volume.statfs() {
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
        });
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
        let name = name.to_owned();
        let value = value.to_vec();
        let who = caller(req, 0);
        self.run(move |f| {
            let Some(flags) = XattrFlags::from_bits(flags as u32) else { return reply.error(Errno::EINVAL) };
            let done = f.volume.setxattr(&who, ino(node), name.as_bytes(), &value, flags);
            FrontEnd::empty(done, reply);
        });
    }

    fn getxattr(&self, req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            FrontEnd::xattr(f.volume.getxattr(&who, ino(node), name.as_bytes()), size, reply);
        });
    }

    fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let who = caller(req, 0);
        self.run(move |f| {
            FrontEnd::xattr(f.volume.listxattr(&who, ino(node)), size, reply);
        });
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let who = caller(req, 0);
        self.run(move |f| {
            FrontEnd::empty(f.volume.removexattr(&who, ino(node), name.as_bytes()), reply);
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        let who = caller(req, umask);
        let writable = OpenFlags(flags).acc_mode() == OpenAccMode::O_RDWR;
        self.run(move |f| match f.volume.create_open(&who, ino(parent), name.as_bytes(), mode) {
            Ok((a, handle)) => f.created(&a, handle, writable, reply),
            Err(e) => reply.error(convert::errno(e)),
        });
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
        let who = caller(req, 0);
        self.run(move |f| {
            FrontEnd::empty(f.volume.fallocate(&who, ino(node), mode as u32, offset, length), reply);
        });
    }

    fn lseek(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.run(move |f| {
            let Ok(at) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
            let found = match whence {
                libc::SEEK_DATA => f.volume.seek_data(ino(node), at),
                libc::SEEK_HOLE => f.volume.seek_hole(ino(node), at),
                _ => return reply.error(Errno::EINVAL),
            };
            match found {
                Ok(pos) => reply.offset(pos as i64),
                Err(e) => reply.error(convert::errno(e)),
            }
        });
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
