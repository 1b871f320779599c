//! Between the library's types and those of the FUSE protocol.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use scoutfs::format::DirentKind;
use scoutfs::namespace::{Attr, SetTime, Time};

pub(crate) fn errno(e: scoutfs::Error) -> Errno {
    match &e {
        scoutfs::Error::Posix(_) => tracing::trace!("{e}"),
        _ => tracing::error!("{e}"),
    }
    Errno::from_i32(e.errno().0)
}

pub(crate) fn kind(k: DirentKind) -> FileType {
    match k {
        DirentKind::Fifo => FileType::NamedPipe,
        DirentKind::Char => FileType::CharDevice,
        DirentKind::Dir => FileType::Directory,
        DirentKind::Block => FileType::BlockDevice,
        DirentKind::Regular | DirentKind::Whiteout => FileType::RegularFile,
        DirentKind::Symlink => FileType::Symlink,
        DirentKind::Socket => FileType::Socket,
    }
}

/// The type of a listed entry; unknown stored types are shown as regular files, the kernel asks again on access.
pub(crate) fn dirent_kind(dt: u8) -> FileType {
    match dt {
        1 => FileType::NamedPipe,
        2 => FileType::CharDevice,
        4 => FileType::Directory,
        6 => FileType::BlockDevice,
        10 => FileType::Symlink,
        12 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

pub(crate) fn system_time(t: Time) -> SystemTime {
    let nsec = Duration::from_nanos(u64::from(t.nsec));
    let whole = if t.sec >= 0 {
        UNIX_EPOCH.checked_add(Duration::from_secs(t.sec as u64))
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs(t.sec.unsigned_abs()))
    };
    whole.and_then(|w| w.checked_add(nsec)).unwrap_or(UNIX_EPOCH)
}

pub(crate) fn set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(t.into()),
    }
}

/// Device numbers: the volume stores `major << 20 | minor`, the protocol the kernel's 32-bit encoding.
pub(crate) fn rdev_to_fuse(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub(crate) fn rdev_from_fuse(rdev: u32) -> u32 {
    let major = (rdev & 0xfff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
    (major << 20) | minor
}

pub(crate) fn attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino.0),
        size: a.size,
        blocks: a.blocks(),
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: system_time(a.crtime),
        kind: kind(a.kind),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: rdev_to_fuse(a.rdev_major(), a.rdev_minor()),
        blksize: 4096,
        flags: 0,
    }
}
