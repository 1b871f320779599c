//! Files and block devices of the system.
//!
//! Buffered by default; with [`DirectIo`] requests bypass the page cache (O_DIRECT), which the engine prefers
//! for metadata because it has its own verified cache. Memory that is not aligned for direct requests goes through a
//! bounce buffer, so callers need not know. `flush` is `fdatasync`.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno as SysErrno;

use super::{BlockDevice, Error, Result, SECTOR_BYTES, check_bounds, device_error};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Pieces that one system call takes (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// Bytes that go through a bounce buffer at a time.
const BOUNCE_BYTES: usize = 1 << 20;

/// Whether requests bypass the page cache of the system.
///
/// The engine keeps its own, verified cache of metadata, so for a metadata device the page cache only costs copies: an fsync
/// takes less than half the time without (`cargo bench --bench volume`). File data gains from read-ahead and stays in it by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// Through the page cache.
    #[default]
    Off,
    /// Past it, if the filesystem that holds the file can do that.
    Preferred,
    /// Past it; a filesystem that cannot do it makes [`FileDevice::open`] fail.
    Required,
}

/// How to open a [`FileDevice`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Shall requests bypass the page cache (`O_DIRECT`)?
    pub direct: DirectIo,
    /// Take an exclusive advisory lock (`flock`), and `O_EXCL` for a block device; fails with [`Error::Busy`] if somebody
    /// else has it.
    pub exclusive: bool,
}

/// A file or block device of the system.
pub struct FileDevice {
    name: String,
    file: File,
    size: AtomicU64,
    direct: bool,
    read_only: bool,
    regular: bool,
}

impl FileDevice {
    /// Opens an existing file or block device.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Arc<FileDevice>> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let fail = |e: std::io::Error| device_error(&name, 0, e);
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::invalid(format!("{name} is neither a file nor a block device")));
        }
        let open = |direct| {
            let mut flags = OFlags::empty();
            flags.set(OFlags::DIRECT, direct);
            flags.set(OFlags::EXCL, options.exclusive && kind.is_block_device());
            OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags.bits() as i32).open(path)
        };
        let wanted = options.direct != DirectIo::Off;
        let (file, direct) = match open(wanted) {
            Err(e) if options.direct == DirectIo::Preferred && os_error(&e) == Some(SysErrno::INVAL) => {
                (open(false), false)
            }
            file => (file, wanted),
        };
        let file = file.map_err(|e| if os_error(&e) == Some(SysErrno::BUSY) { busy(&name) } else { fail(e) })?;
        FileDevice::from_file(name, file, kind.is_file(), direct, options)
    }

    /// Creates a sparse file of `size` bytes (or resizes an existing one) and opens it for reading and writing.
    pub fn create(path: impl AsRef<Path>, size: u64) -> Result<Arc<FileDevice>> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let fail = |e: std::io::Error| device_error(&name, 0, e);
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(Error::invalid(format!("{name} is not a file")));
        }
        file.set_len(size).map_err(fail)?;
        FileDevice::from_file(name, file, true, false, &FileOptions::default())
    }

    fn from_file(
        name: String,
        file: File,
        regular: bool,
        direct: bool,
        options: &FileOptions,
    ) -> Result<Arc<FileDevice>> {
        if options.exclusive {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(SysErrno::WOULDBLOCK) => return Err(busy(&name)),
                Err(e) => return Err(device_error(&name, 0, e)),
            }
        }
        let size = end_of(&file).map_err(|e| device_error(&name, 0, e))?;
        let read_only = options.read_only;
        Ok(Arc::new(FileDevice { name, file, size: AtomicU64::new(size), direct, read_only, regular }))
    }

    /// The request must lie inside the device, which may have grown since it was opened.
    fn check(&self, offset: u64, len: usize) -> Result<()> {
        let known = self.size.load(Ordering::Relaxed);
        if check_bounds(&self.name, known, offset, len).is_ok() {
            return Ok(());
        }
        check_bounds(&self.name, self.size(), offset, len)
    }

    fn check_write(&self, offset: u64, len: usize) -> Result<()> {
        if self.read_only {
            return Err(device_error(&self.name, offset, "the device is open for reading only"));
        }
        self.check(offset, len)
    }

    /// May this memory be given to the system as it is?
    fn fits(&self, buf: &[u8]) -> bool {
        !self.direct || (buf.as_ptr() as u64).is_multiple_of(SECTOR_BYTES)
    }

    fn error(&self, offset: u64, e: impl std::fmt::Display) -> Error {
        device_error(&self.name, offset, e)
    }

    /// One run of adjacent pieces, with as few system calls as possible.
    fn write_run(&self, mut offset: u64, pieces: &[(u64, &[u8])]) -> Result<()> {
        for pieces in pieces.chunks(MAX_PIECES) {
            let mut slices: Vec<IoSlice> = pieces.iter().map(|(_, buf)| IoSlice::new(buf)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                match rustix::io::pwritev(&self.file, rest, offset) {
                    Ok(0) => return Err(self.error(offset, "the device takes no more bytes")),
                    Ok(n) => {
                        offset += n as u64;
                        IoSlice::advance_slices(&mut rest, n);
                    }
                    Err(SysErrno::INTR) => {}
                    Err(e) => return Err(self.error(offset, e)),
                }
            }
        }
        Ok(())
    }
}

fn os_error(e: &std::io::Error) -> Option<SysErrno> {
    SysErrno::from_io_error(e)
}

fn busy(name: &str) -> Error {
    Error::Busy(format!("{name} is locked by another process"))
}

/// Size of a file or a block device.
fn end_of(mut file: &File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Calls `f` with an aligned buffer of at most `len` bytes.
fn with_bounce<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let sector = SECTOR_BYTES as usize;
    let len = len.min(BOUNCE_BYTES);
    let mut memory = vec![0u8; len + sector];
    let skip = memory.as_ptr().align_offset(sector);
    f(&mut memory[skip..skip + len])
}

impl BlockDevice for FileDevice {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        if let Ok(now) = end_of(&self.file) {
            self.size.fetch_max(now, Ordering::Relaxed);
        }
        self.size.load(Ordering::Relaxed)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        if self.fits(buf) {
            return self.file.read_exact_at(buf, offset).map_err(|e| self.error(offset, e));
        }
        with_bounce(buf.len(), |bounce| {
            let mut at = offset;
            for part in buf.chunks_mut(bounce.len().max(1)) {
                self.file.read_exact_at(&mut bounce[..part.len()], at).map_err(|e| self.error(at, e))?;
                part.copy_from_slice(&bounce[..part.len()]);
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_write(offset, buf.len())?;
        if self.fits(buf) {
            return self.file.write_all_at(buf, offset).map_err(|e| self.error(offset, e));
        }
        with_bounce(buf.len(), |bounce| {
            let mut at = offset;
            for part in buf.chunks(bounce.len().max(1)) {
                bounce[..part.len()].copy_from_slice(part);
                self.file.write_all_at(&bounce[..part.len()], at).map_err(|e| self.error(at, e))?;
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn write_batch(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        writes.iter().try_for_each(|(offset, buf)| self.check_write(*offset, buf.len()))?;
        let mut rest = writes;
        while let Some((offset, buf)) = rest.first() {
            let mut n = 1;
            let mut end = offset + buf.len() as u64;
            while n < rest.len() && rest[n].0 == end {
                end += rest[n].1.len() as u64;
                n += 1;
            }
            let (run, later) = rest.split_at(n);
            rest = later;
            if n > 1 && run.iter().all(|(_, buf)| self.fits(buf)) {
                self.write_run(*offset, run)?;
            } else {
                run.iter().try_for_each(|(offset, buf)| self.write_at(*offset, buf))?;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| self.error(0, e))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len as usize)?;
        if !self.regular || len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, how, offset, len) {
            Ok(()) | Err(SysErrno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(self.error(offset, e)),
        }
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}
