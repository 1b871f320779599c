//! Waiting for contents that are only in the archive (`spec/07 §19`).
//!
//! A waiter notes how often the file has changed while it still holds the locks under which it saw the offline block, then
//! lets go of everything and sleeps until the number moves. So no wake-up is lost, and nothing is held while an agent, on
//! whatever node, brings the data back.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::format::Ino;
use crate::lock::LockName;
use crate::sync::{Condvar, Mutex};

#[derive(Default)]
struct Table {
    /// For each file somebody waits for: changes so far, sleepers.
    files: BTreeMap<u64, (u64, usize)>,
    closed: bool,
}

/// Everybody of this mount who waits for staging.
#[derive(Default)]
pub(super) struct Waiters {
    table: Mutex<Table>,
    woken: Condvar,
}

/// A sample of a file's changes.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    ino: u64,
    seen: u64,
}

impl Waiters {
    pub(super) fn new() -> Waiters {
        Waiters { table: Mutex::new(Table::default()), woken: Condvar::new() }
    }

    /// To be called under the locks that showed that the file is offline.
    pub(super) fn sample(&self, ino: Ino) -> Waiter<'_> {
        let mut table = self.table.lock();
        let entry = table.files.entry(ino.0).or_default();
        entry.1 += 1;
        Waiter { waiters: self, ino: ino.0, seen: entry.0 }
    }

    /// Offline blocks of these inodes may have become online.
    fn changed(&self, inos: std::ops::RangeInclusive<u64>) {
        let mut table = self.table.lock();
        let mut any = false;
        for (_, (changes, _)) in table.files.range_mut(inos) {
            *changes += 1;
            any = true;
        }
        drop(table);
        if any {
            self.woken.notify_all();
        }
    }

    /// The file has fewer offline blocks than before.
    pub(super) fn file_changed(&self, ino: Ino) {
        self.changed(ino.0..=ino.0);
    }

    /// The lock is given away: another node may have staged.
    pub(super) fn lock_lost(&self, name: LockName) {
        let range = name.range();
        if range.start.zone == crate::format::consts::ZONE_FS {
            self.changed(range.start.first..=range.end.first);
        }
    }

    /// Everybody gives up.
    pub(super) fn close(&self) {
        self.table.lock().closed = true;
        self.woken.notify_all();
    }
}

impl Waiter<'_> {
    /// Sleeps until the file has changed. No lock may be held.
    pub(super) fn sleep(self) -> Result<()> {
        let mut table = self.waiters.table.lock();
        while table.files.get(&self.ino).is_some_and(|(changes, _)| *changes == self.seen) {
            if table.closed {
                return Err(Error::Shutdown("while waiting for offline data".into()));
            }
            self.waiters.woken.wait(&mut table);
        }
        Ok(())
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut table = self.waiters.table.lock();
        if let Some(entry) = table.files.get_mut(&self.ino) {
            entry.1 -= 1;
            if entry.1 == 0 {
                table.files.remove(&self.ino);
            }
        }
    }
}
