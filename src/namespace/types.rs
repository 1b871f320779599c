//! Values that cross the public face of the namespace: who asks, what an inode looks like, what a listing returns.
//!
//! They are plain data in native form: nothing here borrows from caches or holds locks, except [`OpenInode`], the one
//! handle that keeps an inode from being deleted.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::format::layout::Timespec;
use crate::format::{DirentKind, Ino};
use crate::sync::wall_clock;

/// A point in time with nanosecond granularity; any 64-bit number of seconds is valid (`spec/06 §10`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Seconds since 1970-01-01, may be negative.
    pub sec: i64,
    /// 0..=999_999_999.
    pub nsec: u32,
}

impl Time {
    /// The system's clock.
    pub fn now() -> Time {
        Time::from(wall_clock())
    }

    pub(crate) fn to_stored(self) -> Timespec {
        Timespec { sec: (self.sec as u64).into(), nsec: self.nsec.into(), pad: [0; 4] }
    }

    pub(crate) fn from_stored(t: &Timespec) -> Time {
        Time { sec: t.sec.get() as i64, nsec: t.nsec.get() }
    }
}

impl From<SystemTime> for Time {
    fn from(t: SystemTime) -> Time {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
            Err(e) => {
                let d = e.duration();
                match d.subsec_nanos() {
                    0 => Time { sec: -(d.as_secs() as i64), nsec: 0 },
                    n => Time { sec: -(d.as_secs() as i64) - 1, nsec: 1_000_000_000 - n },
                }
            }
        }
    }
}

/// Privileges of a caller: the Linux capabilities that the rules of the namespace look at (`spec/06 §5.12`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caps(pub u32);

impl Caps {
    /// No privilege.
    pub const NONE: Caps = Caps(0);
    /// Change owners (`CAP_CHOWN`).
    pub const CHOWN: Caps = Caps(1);
    /// Ignore permission bits (`CAP_DAC_OVERRIDE`).
    pub const DAC_OVERRIDE: Caps = Caps(1 << 1);
    /// Read and search anything (`CAP_DAC_READ_SEARCH`).
    pub const DAC_READ_SEARCH: Caps = Caps(1 << 2);
    /// Act as the owner of any file (`CAP_FOWNER`).
    pub const FOWNER: Caps = Caps(1 << 3);
    /// Keep set-id bits (`CAP_FSETID`).
    pub const FSETID: Caps = Caps(1 << 4);
    /// Make device files (`CAP_MKNOD`).
    pub const MKNOD: Caps = Caps(1 << 5);
    /// Administer: trusted and tagged attributes, attribute calls (`CAP_SYS_ADMIN`).
    pub const SYS_ADMIN: Caps = Caps(1 << 6);
    /// Everything.
    pub const ALL: Caps = Caps(0x7f);

    /// Does it contain all of `other`?
    pub const fn has(self, other: Caps) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Caps {
    type Output = Caps;
    fn bitor(self, o: Caps) -> Caps {
        Caps(self.0 | o.0)
    }
}

impl fmt::Debug for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caps({:#x})", self.0)
    }
}

/// Who asks: the credentials that one operation is checked against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Filesystem user id: owner of what is created, compared for access.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Privileges.
    pub caps: Caps,
    /// Permission bits taken away at creation, unless a default ACL decides.
    pub umask: u32,
}

impl Caller {
    /// User 0 with every privilege and umask 022.
    pub fn root() -> Caller {
        Caller { uid: 0, gid: 0, groups: Vec::new(), caps: Caps::ALL, umask: 0o022 }
    }

    /// A user without privileges (user 0 gets all of them) and umask 022.
    pub fn user(uid: u32, gid: u32) -> Caller {
        let caps = if uid == 0 { Caps::ALL } else { Caps::NONE };
        Caller { uid, gid, groups: Vec::new(), caps, umask: 0o022 }
    }

    /// Is `gid` the caller's group or one of its supplementary groups?
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Does the caller hold this privilege?
    pub fn can(&self, cap: Caps) -> bool {
        self.caps.has(cap)
    }
}

pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
pub(crate) const S_ISVTX: u32 = 0o1000;

/// Everything `stat` and its relatives report about an inode, as of one moment across the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Kind, also contained in `mode`.
    pub kind: DirentKind,
    /// Kind and permission bits as in `st_mode`.
    pub mode: u32,
    /// Links; a directory has 2 plus one per subdirectory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device files: `(major << 20) | minor`.
    pub rdev: u32,
    /// Bytes. Symbolic links: length of the target. Directories: sum of the lengths of the names in it.
    pub size: u64,
    /// 4 KiB blocks on the data device.
    pub online_blocks: u64,
    /// 4 KiB blocks that staging could bring back.
    pub offline_blocks: u64,
    /// Last access: set at creation and by explicit request only.
    pub atime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Creation.
    pub crtime: Time,
    /// Transaction that last changed anything of the inode.
    pub meta_seq: u64,
    /// Transaction that last changed contents or size.
    pub data_seq: u64,
    /// Counter of content changes.
    pub data_version: u64,
    /// Change counter (NFS change attribute).
    pub version: u64,
    /// Project id, 0 is none.
    pub project: u64,
    /// In retention: contents and names are frozen.
    pub retention: bool,
}

impl Attr {
    /// `st_blocks`: 512-byte units.
    pub fn blocks(&self) -> u64 {
        (self.online_blocks.saturating_add(self.offline_blocks)).saturating_mul(8)
    }

    /// Major number of a device file.
    pub fn rdev_major(&self) -> u32 {
        self.rdev >> 20
    }

    /// Minor number of a device file.
    pub fn rdev_minor(&self) -> u32 {
        self.rdev & 0xf_ffff
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The operation's own time; allowed to everybody who may write.
    Now,
    /// This time; allowed to the owner.
    At(Time),
}

/// What `setattr` shall change; `None` leaves a field alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (the kind bits are ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time; `None` stands for now, as for every other change.
    pub ctime: Option<Time>,
    /// The change of size comes through an open writable handle: permission bits are not looked at again.
    pub through_handle: bool,
}

/// What access an open handle or an access check asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access(pub u32);

impl Access {
    /// Existence only.
    pub const NONE: Access = Access(0);
    /// Execute, or search in a directory.
    pub const EXECUTE: Access = Access(1);
    /// Write.
    pub const WRITE: Access = Access(2);
    /// Read.
    pub const READ: Access = Access(4);

    /// Does it contain all of `other`?
    pub const fn has(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Access {
    type Output = Access;
    fn bitor(self, o: Access) -> Access {
        Access(self.0 | o.0)
    }
}

impl BitOrAssign for Access {
    fn bitor_assign(&mut self, o: Access) {
        self.0 |= o.0;
    }
}

/// Whether an attribute may or must exist when it is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XattrFlags {
    /// Create or replace.
    #[default]
    Any,
    /// Must not exist (`XATTR_CREATE`).
    Create,
    /// Must exist (`XATTR_REPLACE`).
    Replace,
}

impl XattrFlags {
    /// From the bits of `setxattr(2)`; `None` for both together and for unknown bits.
    pub fn from_bits(bits: u32) -> Option<XattrFlags> {
        match bits {
            0 => Some(XattrFlags::Any),
            1 => Some(XattrFlags::Create),
            2 => Some(XattrFlags::Replace),
            _ => None,
        }
    }
}

/// Flags of rename, numbered as in `renameat2(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags(pub u32);

impl RenameFlags {
    /// Replace what is there.
    pub const NONE: RenameFlags = RenameFlags(0);
    /// Fail with `EEXIST` if the new name exists.
    pub const NOREPLACE: RenameFlags = RenameFlags(1);
    /// Swap the two names; both must exist.
    pub const EXCHANGE: RenameFlags = RenameFlags(2);
}

/// One entry of a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// What the name leads to.
    pub ino: Ino,
    /// Position: 0 is `.`, 1 is `..`, then creation order. A listing goes on after it with the cursor `pos + 1`.
    pub pos: u64,
    /// `DT_*` number, 0 if the stored type is unknown.
    pub dirent_type: u8,
    /// The name, without NUL.
    pub name: &'a [u8],
    /// Attributes, for readdir-plus listings; `None` if the inode vanished meanwhile.
    pub attr: Option<Attr>,
}

#[derive(Clone, Copy, Debug)]
struct BatchEntry {
    ino: Ino,
    pos: u64,
    name: (u32, u32),
    dirent_type: u8,
    attr: Option<Attr>,
}

/// One batch of a listing, copied out so that no lock is held while it is looked at.
#[derive(Clone, Debug, Default)]
pub struct DirBatch {
    names: Vec<u8>,
    entries: Vec<BatchEntry>,
    next: u64,
    end: bool,
}

impl DirBatch {
    /// Entries in order of position.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = DirEntry<'_>> + Clone {
        self.entries.iter().map(|e| DirEntry {
            ino: e.ino,
            pos: e.pos,
            dirent_type: e.dirent_type,
            name: &self.names[e.name.0 as usize..][..e.name.1 as usize],
            attr: e.attr,
        })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No entries?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Cursor from which the next batch goes on.
    pub fn next_cursor(&self) -> u64 {
        self.next
    }

    /// Nothing comes after this batch.
    pub fn at_end(&self) -> bool {
        self.end
    }

    pub(crate) fn push(&mut self, ino: Ino, pos: u64, dirent_type: u8, name: &[u8]) {
        let at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        self.entries.push(BatchEntry { ino, pos, name: (at, name.len() as u32), dirent_type, attr: None });
        self.next = pos.saturating_add(1);
    }

    pub(crate) fn finish(&mut self, cursor: u64, end: bool) {
        self.next = self.next.max(cursor);
        self.end = end;
    }

    pub(crate) fn inos(&self) -> impl Iterator<Item = Ino> + '_ {
        self.entries.iter().map(|e| e.ino)
    }

    pub(crate) fn set_attr(&mut self, index: usize, attr: Option<Attr>) {
        self.entries[index].attr = attr;
    }
}

/// State of the volume as `statfs` reports it (`spec/06 §5.11`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Identity of the volume, folded to two words.
    pub fsid: [u32; 2],
    /// Unit of the block counts, 4096.
    pub block_size: u32,
    /// Blocks of both devices.
    pub blocks: u64,
    /// Free blocks of both devices.
    pub free_blocks: u64,
    /// Highest number of inodes there could be.
    pub files: u64,
    /// Inodes that can still be made.
    pub free_files: u64,
    /// Longest name.
    pub name_len: u32,
}

/// One link to an inode, found from the inode (`spec/06 §4.7`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Referrer {
    /// Directory that has the entry.
    pub dir: Ino,
    /// Position of the entry in the directory.
    pub pos: u64,
    /// `DT_*` number of the entry.
    pub dirent_type: u8,
    /// The name.
    pub name: Vec<u8>,
    /// No further entry followed in the same pass.
    pub last: bool,
}

/// A path of an inode relative to the root, with the link that it starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InoPath {
    /// Directory of the link; (`dir`, `pos + 1`) is the cursor for the next path.
    pub dir: Ino,
    /// Position of the link in that directory.
    pub pos: u64,
    /// Names joined by `/`, without a leading one.
    pub path: Vec<u8>,
}

/// A file handle for export (`spec/06 §11`): type and 4-byte words as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileHandle {
    /// 0x81 (inode) or 0x82 (inode and parent).
    pub kind: u8,
    /// Content, little-endian.
    pub bytes: Vec<u8>,
}

/// Fields of the archive attribute call, with the mask that says which are meant (`spec/06 §5.9`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AttrX {
    /// Read only.
    pub meta_seq: Option<u64>,
    /// Read only.
    pub data_seq: Option<u64>,
    /// Settable once, on a new regular file, to a value other than 0.
    pub data_version: Option<u64>,
    /// Read only.
    pub online_blocks: Option<u64>,
    /// Read only.
    pub offline_blocks: Option<u64>,
    /// Change time.
    pub ctime: Option<Time>,
    /// Creation time.
    pub crtime: Option<Time>,
    /// Size; settable on a new regular file together with `data_version`.
    pub size: Option<u64>,
    /// Retention bit.
    pub retention: Option<bool>,
    /// Project id.
    pub project: Option<u64>,
    /// Set only: the blocks of the new size are offline.
    pub size_offline: bool,
}

/// Cursor of the listing of hidden attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HiddenCursor {
    /// Name hash.
    pub hash: u32,
    /// Attribute id.
    pub id: u64,
}
