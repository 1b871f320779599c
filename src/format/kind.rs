//! File types in their three encodings: stored in directory entries, in the mode, and as `DT_*` for readdir.

/// Type of the inode that a directory entry names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DirentKind {
    /// Named pipe.
    Fifo = 0,
    /// Character device.
    Char = 1,
    /// Directory.
    Dir = 2,
    /// Block device.
    Block = 3,
    /// Regular file.
    Regular = 4,
    /// Symbolic link.
    Symlink = 5,
    /// Socket.
    Socket = 6,
    /// Whiteout; never written.
    Whiteout = 7,
}

/// Mask of the type bits of a mode.
pub const S_IFMT: u32 = 0o170_000;
/// Mode type bits of a socket.
pub const S_IFSOCK: u32 = 0o140_000;
/// Mode type bits of a symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// Mode type bits of a regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Mode type bits of a block device.
pub const S_IFBLK: u32 = 0o060_000;
/// Mode type bits of a directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Mode type bits of a character device.
pub const S_IFCHR: u32 = 0o020_000;
/// Mode type bits of a named pipe.
pub const S_IFIFO: u32 = 0o010_000;

impl DirentKind {
    /// From the byte of a directory entry; `None` for numbers that mean nothing.
    pub fn from_stored(v: u8) -> Option<DirentKind> {
        use DirentKind::*;
        [Fifo, Char, Dir, Block, Regular, Symlink, Socket, Whiteout].get(usize::from(v)).copied()
    }

    /// The byte of a directory entry.
    pub fn stored(self) -> u8 {
        self as u8
    }

    /// From the type bits of a mode; `None` if they name no known type.
    pub fn from_mode(mode: u32) -> Option<DirentKind> {
        Some(match mode & S_IFMT {
            S_IFIFO => DirentKind::Fifo,
            S_IFCHR => DirentKind::Char,
            S_IFDIR => DirentKind::Dir,
            S_IFBLK => DirentKind::Block,
            S_IFREG => DirentKind::Regular,
            S_IFLNK => DirentKind::Symlink,
            S_IFSOCK => DirentKind::Socket,
            _ => return None,
        })
    }

    /// The type bits of the mode; 0 for a whiteout.
    pub fn mode_bits(self) -> u32 {
        match self {
            DirentKind::Fifo => S_IFIFO,
            DirentKind::Char => S_IFCHR,
            DirentKind::Dir => S_IFDIR,
            DirentKind::Block => S_IFBLK,
            DirentKind::Regular => S_IFREG,
            DirentKind::Symlink => S_IFLNK,
            DirentKind::Socket => S_IFSOCK,
            DirentKind::Whiteout => 0,
        }
    }

    /// The `DT_*` value for readdir.
    pub fn dt(self) -> u8 {
        match self {
            DirentKind::Whiteout => 14,
            other => (other.mode_bits() >> 12) as u8,
        }
    }
}
