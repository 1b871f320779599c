//! One call of a volume as a value, to be done, remembered and compared.

use scoutfs::namespace::{Caller, RenameFlags, SetAttr, XattrFlags};
use scoutfs::{Ino, Volume};

pub(crate) const KEEP_SIZE: u32 = 1;
pub(crate) const PUNCH: u32 = 2 | KEEP_SIZE;
pub(crate) const ZERO: u32 = 0x10;

/// One call; inodes are named by number.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Mkdir(Ino, String),
    Create(Ino, String),
    Symlink(Ino, String, String),
    Write { ino: Ino, offset: u64, len: usize, seed: u64 },
    Append { ino: Ino, len: usize, seed: u64 },
    Truncate(Ino, u64),
    Fallocate { ino: Ino, mode: u32, offset: u64, len: u64 },
    SetXattr { ino: Ino, name: String, len: usize, seed: u64, flags: XattrFlags },
    RemoveXattr(Ino, String),
    Link(Ino, Ino, String),
    Unlink(Ino, String),
    Rmdir(Ino, String),
    Rename { from: (Ino, String), to: (Ino, String), flags: RenameFlags },
}

/// Bytes that no other seed gives, none of them zero.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8 | 1
        })
        .collect()
}

impl Op {
    /// Does it; gives the number of the inode that was made.
    pub(crate) fn run(&self, volume: &Volume) -> scoutfs::Result<Option<Ino>> {
        let root = Caller::root();
        match self {
            Op::Mkdir(dir, name) => return volume.mkdir(&root, *dir, name.as_bytes(), 0o755).map(|a| Some(a.ino)),
            Op::Create(dir, name) => return volume.create(&root, *dir, name.as_bytes(), 0o644).map(|a| Some(a.ino)),
            Op::Symlink(dir, name, target) => {
                return volume.symlink(&root, *dir, name.as_bytes(), target.as_bytes()).map(|a| Some(a.ino));
            }
            Op::Write { ino, offset, len, seed } => {
                let mut done = 0;
                let data = pattern(*seed, *len);
                while done < *len {
                    done += volume.write(&root, *ino, offset + done as u64, &data[done..])?;
                }
            }
            Op::Append { ino, len, seed } => {
                volume.append(&root, *ino, &pattern(*seed, *len))?;
            }
            Op::Truncate(ino, size) => {
                volume.setattr(&root, *ino, &SetAttr { size: Some(*size), ..SetAttr::default() })?;
            }
            Op::Fallocate { ino, mode, offset, len } => volume.fallocate(&root, *ino, *mode, *offset, *len)?,
            Op::SetXattr { ino, name, len, seed, flags } => {
                volume.setxattr(&root, *ino, name.as_bytes(), &pattern(*seed, *len), *flags)?;
            }
            Op::RemoveXattr(ino, name) => volume.removexattr(&root, *ino, name.as_bytes())?,
            Op::Link(ino, dir, name) => {
                volume.link(&root, *ino, *dir, name.as_bytes())?;
            }
            Op::Unlink(dir, name) => volume.unlink(&root, *dir, name.as_bytes())?,
            Op::Rmdir(dir, name) => volume.rmdir(&root, *dir, name.as_bytes())?,
            Op::Rename { from, to, flags } => {
                volume.rename(&root, (from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), *flags)?;
            }
        }
        Ok(None)
    }
}
