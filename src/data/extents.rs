//! The extents of a file, read from and written to items (`spec/07 §2`).
//!
//! There is no second cache: items are cached under the lock that covers them, in order, and one look-up finds the extent
//! that contains a block. Several changes of one file are gathered in an [`Edit`], which shows the file as it will be, and go
//! into one change set.

use crate::alloc::extent::{self, Extent, ExtentMap, ExtentRead, ExtentStore};
use crate::device::{BlockDevice, FlushTracker};
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::{EXTENT_OFFLINE, EXTENT_UNWRITTEN, SMALL_BYTES};
use crate::format::layout::DataExtentVal;
use crate::format::{Ino, Key, check, keys};
use crate::item::{ChangeSet, CoveringLock, Items, Value};

use zerocopy::{FromZeros, IntoBytes};

const OFFLINE_WITH_SPACE: u8 = EXTENT_OFFLINE | EXTENT_UNWRITTEN;

/// How a block counts in the inode (`spec/07 §2.2`): (online, offline).
pub(super) fn counts(e: &Extent) -> (u64, u64) {
    if is_online(e) {
        (e.len, 0)
    } else if is_offline(e) {
        (0, e.len)
    } else {
        (0, 0)
    }
}

/// Data is on the device.
pub(super) fn is_online(e: &Extent) -> bool {
    e.map != 0 && e.flags & EXTENT_UNWRITTEN == 0
}

/// Data is in the archive only, whether there is space for it or not.
pub(super) fn is_offline(e: &Extent) -> bool {
    e.flags & EXTENT_OFFLINE != 0 && !is_online(e)
}

/// Space without contents: reads as zeros.
pub(super) fn is_unwritten(e: &Extent) -> bool {
    e.map != 0 && e.flags == EXTENT_UNWRITTEN
}

/// Extents that planning starts from: those of a file, or in tests those of a list.
pub(super) trait Stored {
    /// The extent that contains `block`, or the next one.
    fn next(&self, block: u64) -> Result<Option<Extent>>;
}

/// The stored extents of one file.
#[derive(Clone, Copy)]
pub(super) struct FileExtents<'a> {
    pub(super) items: &'a Items,
    pub(super) lock: &'a CoveringLock,
    pub(super) ino: Ino,
    /// Known size of the data device; it may have grown.
    pub(super) device_blocks: u64,
    pub(super) device: &'a FlushTracker,
    /// The commit reads, under a lock whose mode may have been lowered.
    pub(super) commits: bool,
}

impl Stored for FileExtents<'_> {
    fn next(&self, block: u64) -> Result<Option<Extent>> {
        let (first, last) = (keys::extent(self.ino, block, 1), keys::extent(self.ino, u64::MAX, u64::MAX));
        let found = if self.commits {
            self.items.next_for_commit(self.lock, &first, &last)?
        } else {
            self.items.next(self.lock, &first, &last)?
        };
        found.map(|(key, value)| self.decode(&key, &value)).transpose()
    }
}

impl FileExtents<'_> {
    fn decode(&self, key: &Key, value: &[u8]) -> Result<Extent> {
        let e = match check::validate_extent(key, value, self.device_blocks) {
            // Asking the system for the size each time would be a call for each small read.
            Err(_) => check::validate_extent(key, value, self.device.size() / SMALL_BYTES as u64)?,
            Ok(e) => e,
        };
        let e = Extent::new(e.start, e.len, e.map.map_or(0, |m| m.0), e.flags);
        // The legal states of `spec/07 §2.2`: written, unwritten, offline with space, offline.
        match (e.map != 0, e.flags) {
            (true, 0) | (true, EXTENT_UNWRITTEN) | (true, OFFLINE_WITH_SPACE) | (false, EXTENT_OFFLINE) => Ok(e),
            _ => Err(Error::corrupt(format!("data extent {key}"), format!("flags {} with block {}", e.flags, e.map))),
        }
    }

    /// Calls `visit` for all parts of `first..=last`, holes included (map 0, flags 0), in order.
    pub(super) fn pieces(&self, first: u64, last: u64, visit: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        let mut at = first;
        while at <= last {
            let piece = match self.next(at)? {
                Some(e) if e.start <= at => e.cut(at, last),
                Some(e) if e.start <= last => Extent::free(at, e.start - at),
                _ => Extent::free(at, last - at + 1),
            };
            at = piece.end();
            visit(piece)?;
        }
        Ok(())
    }

    /// First offline block in `first..=last`.
    pub(super) fn first_offline(&self, first: u64, last: u64) -> Result<Option<u64>> {
        let mut at = first;
        while let Some(e) = self.next(at)? {
            if e.start > last {
                break;
            }
            if is_offline(&e) {
                return Ok(Some(e.start.max(first)));
            }
            if e.last() >= last {
                break;
            }
            at = e.end();
        }
        Ok(None)
    }

    /// Key of an extent.
    pub(super) fn key(&self, e: &Extent) -> Key {
        keys::extent(self.ino, e.last(), e.len)
    }

    /// Value of an extent item.
    pub(super) fn value(e: &Extent) -> Value {
        let mut v = DataExtentVal::new_zeroed();
        v.blkno = e.map.into();
        v.flags = e.flags;
        Value::new(v.as_bytes())
    }
}

/// Changes of one file's extents that have not been applied yet.
pub(super) struct Edit<S> {
    stored: S,
    /// Stored extents that go.
    gone: ExtentMap,
    /// Extents that come.
    new: ExtentMap,
}

impl<S: Stored> Edit<S> {
    /// No changes.
    pub(super) fn new(stored: S) -> Edit<S> {
        Edit { stored, gone: ExtentMap::default(), new: ExtentMap::default() }
    }

    /// Replaces what is in the range of `e`, which lies in one extent or touches none (`spec/07 §3`).
    pub(super) fn set(&mut self, e: Extent) -> Result<()> {
        let steps = extent::plan_set(self, e)?;
        extent::apply(self, &steps)
    }

    /// What the changes start from.
    pub(super) fn stored(&self) -> &S {
        &self.stored
    }

    /// Extents that go, and extents that come.
    #[cfg(test)]
    pub(super) fn changes(&self) -> (impl Iterator<Item = &Extent>, impl Iterator<Item = &Extent>) {
        (self.gone.iter(), self.new.iter())
    }

    /// How many items will change.
    pub(super) fn len(&self) -> usize {
        self.gone.len() + self.new.len()
    }
}

impl<'a> Edit<FileExtents<'a>> {
    /// Adds the item changes to a change set.
    pub(super) fn add_to(&self, cs: &mut ChangeSet<'a>) {
        for e in self.gone.iter() {
            let key = self.stored.key(e);
            if self.new.at_or_after(e.last()).is_none_or(|n| self.stored.key(&n) != key) {
                cs.delete(self.stored.lock, key);
            }
        }
        for e in self.new.iter() {
            cs.put(self.stored.lock, self.stored.key(e), FileExtents::value(e));
        }
    }
}

impl<S: Stored> ExtentRead for Edit<S> {
    fn next(&mut self, block: u64) -> Result<Option<Extent>> {
        let mut stored = self.stored.next(block)?;
        while let Some(e) = stored {
            if self.gone.at_or_after(e.last()) != Some(e) {
                break;
            }
            stored = self.stored.next(e.end())?;
        }
        let new = self.new.at_or_after(block);
        Ok(match (stored, new) {
            (Some(s), Some(n)) => Some(if s.start < n.start { s } else { n }),
            (s, n) => s.or(n),
        })
    }
}

impl<S: Stored> ExtentStore for Edit<S> {
    fn insert(&mut self, e: &Extent) -> Result<()> {
        if self.gone.at_or_after(e.last()) == Some(*e) {
            self.gone.take(e.last());
        } else {
            self.new.put(*e);
        }
        Ok(())
    }

    fn remove(&mut self, e: &Extent) -> Result<()> {
        if self.new.at_or_after(e.last()) == Some(*e) {
            self.new.take(e.last());
        } else {
            self.gone.put(*e);
        }
        Ok(())
    }
}

/// An offline block was reached by somebody who has waited for there to be none.
pub(super) fn unexpected_offline<T>(block: u64) -> Result<T> {
    Err(Error::corrupt("file extents", format!("block {block} is offline although the file was found online")))
}

/// `EFBIG` unless the bytes can be in a file.
pub(super) fn check_end(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => fail(Errno::EFBIG),
    }
}
