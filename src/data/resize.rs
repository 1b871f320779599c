//! Changes of size and removal of extents, for the namespace room (`spec/07 §12`).

use super::Data;
use super::extents::{FileExtents, Stored, counts, is_online};
use super::pages::{CHUNK_PAGES, PAGE, mask};
use super::state::FileState;
use super::write::zero_tail;
use crate::alloc::extent::Extent;
use smallvec::SmallVec;

use crate::error::{Errno, Result, fail};
use crate::format::DataBlock;
use crate::item::ItemLock;
use crate::namespace::{FileData, Inode, Namespace, Removal};
use crate::sync::Arc;
use crate::txn::Hold;

/// Extents that one transaction removes.
const REMOVE_EXTENTS: usize = 128;

impl FileData for Data {
    fn before_resize(&self, _ns: &Namespace, inode: &Arc<Inode>, lock: &ItemLock, size: u64) -> Result<()> {
        let f = inode.fields();
        let stored = self.stored(lock, inode.ino());
        if f.offline_blocks > 0 && size > 0 && size != f.size {
            let last = (size - 1) / PAGE as u64;
            if stored.first_offline(0, last)?.is_some() {
                // The caller holds locks that staging needs: it has to let go and try again later.
                return fail(Errno::EAGAIN);
            }
        }
        let file = self.file(inode, lock);
        let least = size.min(f.size);
        let page = least / PAGE as u64;
        let mut tail = None;
        if !least.is_multiple_of(PAGE as u64) && size != f.size {
            let stored_there = stored.next(page)?.is_some_and(|e| e.contains(page) && is_online(&e));
            if stored_there {
                tail = Some((page, self.block(&file, &stored, page)?));
            }
        }
        file.work.lock().tail = tail;
        Ok(())
    }

    fn resized(&self, inode: &Arc<Inode>, lock: &ItemLock, _hold: &Hold<'_>, old_size: u64, new_size: u64) {
        let file = self.file(inode, lock);
        let least = old_size.min(new_size);
        let tail = file.work.lock().tail.take();
        if old_size == new_size || least.is_multiple_of(PAGE as u64) {
            return;
        }
        self.list_dirty(inode, &file, lock);
        if let Some((page, content)) = tail {
            put_clean(&file, page, &content);
        }
        let made = zero_tail(&file, least, u64::MAX);
        file.work.lock().unsubmitted += made;
    }

    fn plan_removal(&self, inode: &Arc<Inode>, lock: &ItemLock, _hold: &Hold<'_>, from: u64) -> Result<Removal> {
        let file = self.file(inode, lock);
        let stored = self.stored(lock, inode.ino());
        let mut removal = Removal { online: file.work.lock().delayed_from(from), ..Removal::default() };
        let cuts = plan_cuts(&stored, from, u64::MAX, REMOVE_EXTENTS)?;
        removal.next = cuts.next;
        for Cut { old, kept, gone } in &cuts.cuts {
            removal.items.push((stored.key(old), None));
            removal.items.extend(kept.iter().map(|k| (stored.key(k), Some(FileExtents::value(k)))));
            let (online, offline) = counts(gone);
            removal.online += online;
            removal.offline += offline;
            if gone.map != 0 {
                removal.freed.push((DataBlock(gone.map), gone.len));
            }
        }
        Ok(removal)
    }

    fn removed(&self, inode: &Arc<Inode>, hold: &Hold<'_>, from: u64) {
        let Some(file) = inode.known_file::<FileState>() else { return };
        if let Err(e) = self.forget(hold, &file, from, u64::MAX) {
            tracing::warn!("promised space of inode {} is kept until the commit: {e}", inode.ino());
        }
        self.waiters.file_changed(inode.ino());
    }
}

/// One extent of which a part goes.
pub(super) struct Cut {
    pub(super) old: Extent,
    /// What stays of it, in front and behind.
    pub(super) kept: SmallVec<[Extent; 2]>,
    pub(super) gone: Extent,
}

/// Extents to be cut, and where to go on if there are more.
pub(super) struct Cuts {
    pub(super) cuts: Vec<Cut>,
    pub(super) next: Option<u64>,
}

/// Plans to remove all blocks of `first..=last`, at most `max` extents.
pub(super) fn plan_cuts(stored: &impl Stored, first: u64, last: u64, max: usize) -> Result<Cuts> {
    let mut cuts = Vec::new();
    let mut at = first;
    while let Some(old) = stored.next(at)?.filter(|e| e.start <= last) {
        if cuts.len() >= max {
            return Ok(Cuts { cuts, next: Some(at) });
        }
        let gone = old.cut(first, last);
        let mut kept = SmallVec::new();
        if old.start < gone.start {
            kept.push(old.cut(old.start, gone.start - 1));
        }
        if old.last() > gone.last() {
            kept.push(old.cut(gone.end(), old.last()));
        }
        cuts.push(Cut { old, kept, gone });
        at = gone.end();
    }
    Ok(Cuts { cuts, next: None })
}

/// Puts a block into the cache, unless it is there.
fn put_clean(file: &Arc<FileState>, page: u64, content: &[u8; PAGE]) {
    loop {
        let chunk = file.pages.chunk_or_new(page / CHUNK_PAGES);
        let mut state = chunk.state.write();
        if state.gone {
            continue;
        }
        let within = page % CHUNK_PAGES;
        if state.valid & mask(within, 1) == 0 {
            file.pages.all().grow(&mut state, within as usize + 1);
            let at = within as usize * PAGE;
            state.bytes_mut()[at..at + PAGE].copy_from_slice(content);
            state.valid |= mask(within, 1);
        }
        return;
    }
}
