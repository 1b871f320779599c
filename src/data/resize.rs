//! Changes of size and removal of extents, for the namespace room (`spec/07 §12`).

use super::Data;
use super::extents::{FileExtents, counts, is_online};
use super::pages::{CHUNK_PAGES, PAGE, mask};
use super::state::FileState;
use super::write::zero_tail;
use crate::alloc::extent::Extent;
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
        if least % PAGE as u64 != 0 && size != f.size {
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
        if old_size == new_size || least % PAGE as u64 == 0 {
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
        let mut at = from;
        while let Some(e) = stored.next(at)? {
            if removal.items.len() >= REMOVE_EXTENTS {
                removal.next = Some(at);
                break;
            }
            plan_one(&stored, &e, from, &mut removal);
            at = e.end();
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

/// Plans to cut `e` off at block `from`.
fn plan_one(stored: &FileExtents<'_>, e: &Extent, from: u64, removal: &mut Removal) {
    removal.items.push((stored.key(e), None));
    if e.start < from {
        let kept = e.cut(e.start, from - 1);
        removal.items.push((stored.key(&kept), Some(FileExtents::value(&kept))));
    }
    let piece = e.cut(from, e.last());
    let (online, offline) = counts(&piece);
    removal.online += online;
    removal.offline += offline;
    if piece.map != 0 {
        removal.freed.push((DataBlock(piece.map), piece.len));
    }
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
