//! Recognising what a device holds before it is overwritten.
//!
//! A small table of magic bytes of the filesystems, partition tables and volume managers that one meets. It is a seat
//! belt, not an inventory: a device that is not recognised may still hold something.

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::consts::{MAGIC_SUPER, SMALL_BYTES, SUPER_BLKNO};

struct Signature {
    name: &'static str,
    offset: usize,
    magic: &'static [u8],
}

const fn at(offset: usize, magic: &'static [u8], name: &'static str) -> Signature {
    Signature { name, offset, magic }
}

const SCOUTFS: [u8; 4] = MAGIC_SUPER.to_le_bytes();

/// More telling ones first.
const SIGNATURES: &[Signature] = &[
    at(SUPER_BLKNO as usize * SMALL_BYTES + 4, &SCOUTFS, "scoutfs"),
    at(512, b"EFI PART", "a GPT partition table"),
    at(4096, b"EFI PART", "a GPT partition table"),
    at(0, b"XFSB", "xfs"),
    at(1080, b"\x53\xef", "ext2, ext3 or ext4"),
    at(65600, b"_BHRfS_M", "btrfs"),
    at(4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcachefs"),
    at(1024, b"\x10\x20\xf5\xf2", "f2fs"),
    at(65536, b"\x01\x16\x19\x70", "gfs2"),
    at(8192, b"OCFSV2", "ocfs2"),
    at(4086, b"SWAPSPACE2", "swap"),
    at(4086, b"SWAP-SPACE", "swap"),
    at(0, b"LUKS\xba\xbe", "LUKS"),
    at(536, b"LVM2 001", "an LVM physical volume"),
    at(1048, b"LVM2 001", "an LVM physical volume"),
    at(0, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    at(4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    at(3, b"NTFS    ", "ntfs"),
    at(3, b"EXFAT   ", "exfat"),
    at(82, b"FAT32   ", "vfat"),
    at(54, b"FAT1", "vfat"),
    at(0, b"hsqs", "squashfs"),
    at(32769, b"CD001", "iso9660"),
    at(65588, b"ReIsEr", "reiserfs"),
    at(32768, b"JFS1", "jfs"),
    at(1030, b"\x34\x34", "nilfs2"),
    at(510, b"\x55\xaa", "a DOS partition table or boot sector"),
];

/// Bytes at the front of a device that are looked at.
const LOOK_BYTES: u64 = 72 << 10;

/// What the device seems to hold, if it is anything known.
pub fn find_signature(dev: &dyn BlockDevice) -> Result<Option<&'static str>> {
    let mut front = vec![0; dev.size().min(LOOK_BYTES) as usize / SMALL_BYTES * SMALL_BYTES];
    dev.read_at(0, &mut front)?;
    let found = SIGNATURES.iter().find(|s| front.get(s.offset..).is_some_and(|rest| rest.starts_with(s.magic)));
    Ok(found.map(|s| s.name))
}
