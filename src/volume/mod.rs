//! The public face: one open volume.
//!
//! [`Volume`] is thin. It puts the rooms of a mount together, opens and closes them in order, and passes calls on. All
//! operations take inode numbers, which is what front ends have; [`paths`](Volume::resolve) are a convenience on top.

mod admin;
mod front_end;
mod mount;
mod paths;
mod status;
mod watch;

use std::path::Path;

pub use front_end::{FrontEnd, InodeGroup, Loans};
pub use status::{ClusterStatus, LockReport, MemberStatus, Role};

use crate::data::FileExtent;
use crate::device::{self, BlockDevice, DirectIo, FileOptions};
use crate::error::{Error, Result};
use crate::format::Ino;
use crate::namespace::{
    Access, Attr, AttrX, Caller, DirBatch, FileHandle, HiddenCursor, InoPath, Referrer, RenameFlags, SetAttr, StatFs,
    XattrFlags,
};
use crate::net::Transport;
use crate::options::VolumeOptions;
use crate::server::Fencer;
use crate::sync::Arc;
use mount::Mounted;

/// An open volume.
///
/// All methods may be called from any number of threads. Errors carry an errno ([`crate::Error::errno`]) as in `spec/06
/// §13` and `spec/07 §21`.
///
/// A mount that cannot go on ends: damage, a device that loses what was written, or no server that could be had any more. From
/// then on calls fail with the reason, which [`Volume::ended`] tells too.
///
/// Dropping a volume without [`Volume::close`] is a forced unmount: what was not synced is lost, and the cluster takes
/// this mount for dead until it is fenced or opened again.
pub struct Volume {
    mounted: Mounted,
}

/// Keeps an inode alive although its last name may go away: what an open file descriptor is.
///
/// Dropping the last one of an unlinked inode deletes the inode.
pub struct OpenInode(#[expect(dead_code, reason = "held for its drop")] crate::namespace::OpenInode);

/// What a volume is connected to, where the default (a private in-process network, no fencing of others) is not enough.
#[derive(Clone, Default)]
pub struct Environment {
    /// How nodes reach each other; `None`: an in-process network of this volume alone.
    pub transport: Option<Arc<dyn Transport>>,
    /// Who isolates failed nodes. `None` with the default network: nobody but earlier mounts of this very node, which are
    /// known to be gone because the devices are held exclusively. `None` with a network that is given here: every request is
    /// refused, so that after a crash no server starts; [`crate::server::HostFencer`] is enough if all mounts are on one host.
    pub fencer: Option<Arc<dyn Fencer>>,
}

impl Volume {
    /// Opens a volume on two devices. A member (`quorum_slot` set) starts its own server if nobody leads.
    ///
    /// # Errors
    /// `EINVAL` ([`crate::Error::Invalid`], [`crate::Error::Corrupt`] or [`crate::Error::Unsupported`]) for devices that
    /// are not the two devices of one volume, a format version that is not known, or options that do not fit the volume.
    /// Nothing is written before all of it has been checked.
    pub fn open(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>, options: VolumeOptions) -> Result<Volume> {
        Volume::open_in(meta, data, options, Environment::default())
    }

    /// [`Volume::open`] on two devices by path or NBD URL ([`device::open`]), opened exclusively (or read-only, if the options
    /// say so), the metadata device past the page cache where that is possible ([`DirectIo`]).
    pub fn open_paths(meta: impl AsRef<Path>, data: impl AsRef<Path>, options: VolumeOptions) -> Result<Volume> {
        let how = |direct| FileOptions { read_only: options.read_only, exclusive: !options.read_only, direct };
        let (meta, data) = (device::open(meta, &how(DirectIo::Preferred))?, device::open(data, &how(DirectIo::Off))?);
        Volume::open(meta, data, options)
    }

    /// [`Volume::open`] with a network and a fencer.
    pub fn open_in(
        meta: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        options: VolumeOptions,
        environment: Environment,
    ) -> Result<Volume> {
        options.check()?;
        Ok(Volume { mounted: Mounted::open(meta, data, &options, environment)? })
    }

    /// Leaves in order: everything is made durable, the cluster is told, threads are joined.
    ///
    /// # Errors
    /// The first thing that went wrong; the volume is closed in any case.
    pub fn close(mut self) -> Result<()> {
        self.mounted.close()
    }

    /// Why the mount has ended by itself, if it has: nothing more can be done with it but to drop it and to open the volume
    /// again.
    pub fn ended(&self) -> Option<Error> {
        self.mounted.node.ended()
    }

    /// Makes everything done so far durable. Concurrent callers share one commit.
    pub fn sync(&self) -> Result<()> {
        self.mounted.tell(self.mounted.ns.sync())
    }

    /// The inode that `name` in `parent` leads to. `.` and `..` are understood.
    pub fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.lookup(caller, parent, name))
    }

    /// Attributes of an inode; `ESTALE` if the number is not in use.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.getattr(ino))
    }

    /// Changes attributes and returns the new ones.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.setattr(caller, ino, set))
    }

    /// `EACCES` unless the caller has the asked access.
    pub fn access(&self, caller: &Caller, ino: Ino, access: Access) -> Result<()> {
        self.mounted.tell(self.mounted.ns.access(caller, ino, access))
    }

    /// Opens an existing inode after checking access.
    pub fn open_inode(&self, caller: &Caller, ino: Ino, access: Access) -> Result<OpenInode> {
        self.mounted.tell(self.mounted.ns.open(caller, ino, access).map(OpenInode))
    }

    /// Up to `limit` entries from `cursor` (0 starts, `.` and `..` included).
    pub fn readdir(&self, dir: Ino, cursor: u64, limit: usize) -> Result<DirBatch> {
        self.mounted.tell(self.mounted.ns.readdir(dir, cursor, limit))
    }

    /// Like [`Volume::readdir`], with the attributes of every entry.
    pub fn readdir_plus(&self, dir: Ino, cursor: u64, limit: usize) -> Result<DirBatch> {
        self.mounted.tell(self.mounted.ns.readdir_plus(dir, cursor, limit))
    }

    /// Makes a regular file; `mode` has permission bits.
    pub fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.create(caller, parent, name, mode))
    }

    /// Makes a regular file and opens it, as one step.
    pub fn create_open(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<(Attr, OpenInode)> {
        self.mounted.tell(self.mounted.ns.create_open(caller, parent, name, mode).map(|(a, o)| (a, OpenInode(o))))
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.mkdir(caller, parent, name, mode))
    }

    /// Makes an inode of the kind in `mode`; `rdev` as in [`Attr::rdev`].
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.mknod(caller, parent, name, mode, rdev))
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.symlink(caller, parent, name, target))
    }

    /// Makes a regular file without a name. It can be linked unless `exclusive`, and vanishes with the handle.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32, exclusive: bool) -> Result<(Attr, OpenInode)> {
        self.mounted.tell(self.mounted.ns.tmpfile(caller, parent, mode, exclusive).map(|(a, o)| (a, OpenInode(o))))
    }

    /// Adds a name to an inode that is not a directory.
    pub fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.link(caller, ino, parent, name))
    }

    /// Removes a name that does not lead to a directory.
    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.mounted.tell(self.mounted.ns.unlink(caller, parent, name))
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.mounted.tell(self.mounted.ns.rmdir(caller, parent, name))
    }

    /// Moves a name.
    pub fn rename(&self, caller: &Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) -> Result<()> {
        self.mounted.tell(self.mounted.ns.rename(caller, from, to, flags))
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.mounted.tell(self.mounted.ns.readlink(ino))
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.mounted.tell(self.mounted.ns.getxattr(caller, ino, name))
    }

    /// Sets an extended attribute, an ACL included.
    pub fn setxattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        self.mounted.tell(self.mounted.ns.setxattr(caller, ino, name, value, flags))
    }

    /// Removes an extended attribute; `ENODATA` if there is none.
    pub fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.mounted.tell(self.mounted.ns.removexattr(caller, ino, name))
    }

    /// Names of the attributes that are not hidden, each followed by NUL.
    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        self.mounted.tell(self.mounted.ns.listxattr(caller, ino))
    }

    /// Names of hidden attributes from `cursor`, each followed by NUL, at most `bytes`.
    pub fn list_hidden_xattrs(
        &self,
        caller: &Caller,
        ino: Ino,
        cursor: HiddenCursor,
        bytes: usize,
    ) -> Result<(Vec<u8>, HiddenCursor)> {
        self.mounted.tell(self.mounted.ns.list_hidden_xattrs(caller, ino, cursor, bytes))
    }

    /// The archive attributes.
    pub fn get_attr_x(&self, ino: Ino) -> Result<AttrX> {
        self.mounted.tell(self.mounted.ns.get_attr_x(ino))
    }

    /// Sets archive attributes.
    pub fn set_attr_x(&self, caller: &Caller, ino: Ino, set: &AttrX) -> Result<()> {
        self.mounted.tell(self.mounted.ns.set_attr_x(caller, ino, set))
    }

    /// Space and inode counts.
    pub fn statfs(&self) -> Result<StatFs> {
        self.mounted.tell(self.mounted.ns.statfs())
    }

    /// A path of `ino`, starting from its first link at or after (`dir`, `pos`).
    pub fn ino_path(&self, caller: &Caller, ino: Ino, from: (Ino, u64)) -> Result<InoPath> {
        self.mounted.tell(self.mounted.ns.ino_path(caller, ino, from))
    }

    /// Links to `ino` from the cursor (directory, position) on, at most `limit`.
    pub fn referring_entries(
        &self,
        caller: &Caller,
        ino: Ino,
        from: (Ino, u64),
        limit: usize,
    ) -> Result<Vec<Referrer>> {
        self.mounted.tell(self.mounted.ns.referring_entries(caller, ino, from, limit))
    }

    /// Inode numbers at or after `start`, within its group of 1024, that own any item.
    pub fn allocated_inos(&self, caller: &Caller, start: Ino, limit: usize) -> Result<Vec<Ino>> {
        self.mounted.tell(self.mounted.ns.allocated_inos(caller, start, limit))
    }

    /// The inode of an export handle.
    pub fn resolve_handle(&self, handle: &FileHandle) -> Result<Attr> {
        self.mounted.tell(self.mounted.ns.resolve_handle(handle))
    }

    /// A directory that has an entry for `ino`.
    pub fn parent_of(&self, ino: Ino) -> Result<Ino> {
        self.mounted.tell(self.mounted.ns.parent_of(ino))
    }

    /// The name of `ino` in `parent`.
    pub fn name_in(&self, parent: Ino, ino: Ino) -> Result<Vec<u8>> {
        self.mounted.tell(self.mounted.ns.name_in(parent, ino))
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.mounted.tell(self.mounted.data.read(&self.mounted.ns, ino, offset, buf))
    }

    /// Writes `data` at `offset`. Fewer bytes than given are written only when space ends half way. Set-id bits are removed
    /// unless the caller may keep them.
    pub fn write(&self, caller: &Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        self.mounted.tell(self.mounted.data.write(&self.mounted.ns, caller, ino, offset, data))
    }

    /// Writes at the end of the file; returns the offset and the number of bytes.
    pub fn append(&self, caller: &Caller, ino: Ino, data: &[u8]) -> Result<(u64, usize)> {
        self.mounted.tell(self.mounted.data.append(&self.mounted.ns, caller, ino, data))
    }

    /// Reserves or removes space; `mode` as in `fallocate(2)`: 0, KEEP_SIZE (1), PUNCH_HOLE (2) with KEEP_SIZE, ZERO_RANGE
    /// (0x10) with or without KEEP_SIZE. Other modes: `EOPNOTSUPP`.
    pub fn fallocate(&self, caller: &Caller, ino: Ino, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.mounted.tell(self.mounted.data.fallocate(&self.mounted.ns, caller, ino, mode, offset, len))
    }

    /// First byte at or after `offset` that is data; `ENXIO` past the end.
    pub fn seek_data(&self, ino: Ino, offset: u64) -> Result<u64> {
        self.mounted.tell(self.mounted.data.seek_data(&self.mounted.ns, ino, offset))
    }

    /// First byte at or after `offset` that is a hole; the end of the file is one.
    pub fn seek_hole(&self, ino: Ino, offset: u64) -> Result<u64> {
        self.mounted.tell(self.mounted.data.seek_hole(&self.mounted.ns, ino, offset))
    }

    /// Extents that intersect the byte range, at most `max`.
    pub fn extents(&self, ino: Ino, offset: u64, len: u64, max: usize) -> Result<Vec<FileExtent>> {
        self.mounted.tell(self.mounted.data.extents(&self.mounted.ns, ino, offset, len, max))
    }
}
