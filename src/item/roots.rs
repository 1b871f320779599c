//! Roots that are shared by cache misses.
//!
//! **Problem.** A miss must read from roots that are new enough, and asking the server for each miss costs a message.
//!
//! **Rule** (`spec/03 §8.3`). Roots may be used under a lock if they were asked for (a) after the grant that made the
//! lock readable, and (b) after the answer to the commit that last took items from this lock's cache.
//!
//! (a) is judged by the refresh generations of locks, which rise in the order of grants: roots asked for when generation
//! `g` was already granted serve all locks with generations up to `g`. (b) is judged by the number of answered commits.
//! The original states (b) for any commit; a commit without items of the lock cannot matter to it.

use super::RootsSource;
use super::forest::{Forest, View};
use crate::error::Result;
use crate::format::layout::{BlockRef, NetRoots};
use crate::sync::atomic::{AtomicU64, Ordering::SeqCst};
use crate::sync::{Arc, Mutex};

/// Roots as received, with what was certain when they were asked for.
pub(super) struct Kept {
    pub(super) roots: NetRoots,
    generation: u64,
    commit: u64,
    /// Rises with every answer.
    pub(super) serial: u64,
}

impl Kept {
    /// What tells two states of the volume apart (`spec/02 §2.3`).
    pub(super) fn refs(&self) -> (BlockRef, BlockRef) {
        (self.roots.fs_root.block_ref, self.roots.logs_root.block_ref)
    }

    pub(super) fn view(&self, forest: &Forest) -> Result<View> {
        forest.view(self.roots.fs_root, self.roots.logs_root, None)
    }
}

/// The last roots that were asked for.
pub(super) struct RootsKeeper {
    source: Arc<dyn RootsSource>,
    kept: Mutex<Option<Arc<Kept>>>,
    /// Held while a request is on its way, so that others wait for its answer.
    asking: Mutex<()>,
    newest_generation: AtomicU64,
    commits: AtomicU64,
}

impl RootsKeeper {
    pub(super) fn new(source: Arc<dyn RootsSource>) -> RootsKeeper {
        RootsKeeper {
            source,
            kept: Mutex::new(None),
            asking: Mutex::new(()),
            newest_generation: AtomicU64::new(0),
            commits: AtomicU64::new(0),
        }
    }

    /// The server answered a commit; returns its number.
    pub(super) fn commit_answered(&self) -> u64 {
        self.commits.fetch_add(1, SeqCst) + 1
    }

    /// Roots for a lock of this refresh generation whose items were last committed by `commit`, later than the answer
    /// `after` (0: any). Callers that need new roots at the same time share one request.
    pub(super) fn get(&self, generation: u64, commit: u64, after: u64) -> Result<Arc<Kept>> {
        self.newest_generation.fetch_max(generation, SeqCst);
        let usable = || {
            let kept = self.kept.lock();
            let k = kept.as_ref()?;
            (k.generation >= generation && k.commit >= commit && k.serial > after).then(|| k.clone())
        };
        if let Some(k) = usable() {
            return Ok(k);
        }
        let _asking = self.asking.lock();
        match usable() {
            Some(k) => Ok(k),
            None => self.ask(),
        }
    }

    /// Roots asked for now.
    pub(super) fn fresh(&self) -> Result<Arc<Kept>> {
        let _asking = self.asking.lock();
        self.ask()
    }

    fn ask(&self) -> Result<Arc<Kept>> {
        let (generation, commit) = (self.newest_generation.load(SeqCst), self.commits.load(SeqCst));
        let roots = self.source.roots()?;
        let mut kept = self.kept.lock();
        let serial = kept.as_ref().map_or(0, |k| k.serial) + 1;
        let new = Arc::new(Kept { roots, generation, commit, serial });
        *kept = Some(new.clone());
        Ok(new)
    }
}
