//! Freeing the log trees that a finished merge left behind, slice by slice (`spec/03 §11.7`).
//!
//! The position reached is stored in the same commit as the frees, so a later server goes on where this one stopped; it
//! starts by itself when a server comes up.

use crate::block::BlockSource;
use crate::btree;
use crate::error::Result;
use crate::format::Key;
use crate::format::consts::ZONE_LOG_MERGE_FREEING;
use crate::format::layout::LogMergeFreeing;

use super::core::{Job, Outcome, ServerCore, Step};
use super::trees::{Trees, own, zone};

/// One call of the tree may have to free this many blocks at once: a leaf and all its ancestors.
const MIN_SLICE: u64 = 24;

impl Trees {
    /// Is there anything to free?
    pub(super) fn has_freeing(&self) -> Result<bool> {
        Ok(self.first::<LogMergeFreeing>(zone(ZONE_LOG_MERGE_FREEING))?.is_some())
    }

    /// Frees up to `budget` blocks of a tree, advancing its position.
    fn free_slice(&mut self, freeing: &mut LogMergeFreeing, budget: u64) -> Result<u64> {
        self.changed = true;
        let mut key = freeing.key.to_key();
        let alloc = &mut self.alloc;
        let reader = btree::Reader::with_dirty(&self.store, &self.dirty);
        let freed = own(btree::free_blocks(&mut |b| alloc.free(b), &reader, &freeing.root, &mut key, budget))?;
        freeing.key = key.into();
        Ok(freed)
    }
}

impl ServerCore {
    /// Frees as much as half of the room of this commit.
    pub(super) fn step_free_trees(&mut self) -> Outcome<Step> {
        let room = self.trees.room();
        let mut left = (room / 2).max(room.min(MIN_SLICE));
        while let Some((key, mut freeing)) = self.trees.first::<LogMergeFreeing>(zone(ZONE_LOG_MERGE_FREEING))? {
            if left < MIN_SLICE {
                return Ok(Step::Again);
            }
            // The position has to be stored with the frees: that must not fail for lack of room.
            let (mut cow, sup) = self.trees.split();
            own(btree::dirty(&mut cow, &mut sup.log_merge, &key))?;
            let freed = self.trees.free_slice(&mut freeing, left)?;
            left = left.saturating_sub(freed + 1);
            if freeing.key.to_key() == Key::ONES {
                self.trees.remove::<LogMergeFreeing>(&key)?;
            } else {
                self.trees.put(&key, &freeing)?;
            }
        }
        self.freeing = false;
        Ok(Step::Done)
    }

    /// Starts freeing in the background, if it is not under way.
    pub(super) fn start_freeing(&mut self) {
        if !std::mem::replace(&mut self.freeing, true) {
            self.add_job(Job::FreeTrees);
        }
    }
}
