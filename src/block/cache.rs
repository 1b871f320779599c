//! The bounded, sharded cache of verified blocks.
//!
//! Problem: point reads want the upper levels of trees and a working set of leaves kept; merges, tree walks and freeing read
//! much and once, and must not push that out. So each shard is an S3-FIFO: new blocks enter a small queue (a tenth of the
//! room) and leave it again unless they are asked for a second time; those, and blocks that come back soon after they
//! were dropped, live in the main queue with second chances.
//!
//! 1. Readers of the same missing block share one load: the first does it, the others wait for its result.
//! 2. A load that fails leaves nothing behind.
//! 3. The blocks of a shard stay within its part of the bound. Blocks in use elsewhere live on, uncounted.

use std::collections::VecDeque;

use super::BLOCK_BYTES;
use super::store::Block;
use crate::error::{Error, Result};
use crate::sync::{Arc, Condvar, HashMap, HashSet, Mutex};

/// Number and nonce: one version of one block.
pub(super) type CacheKey = (u64, u64);

/// Room of a shard below which fewer shards are used.
const MIN_SHARD_BYTES: usize = 4 << 20;
const MAX_SHARDS: usize = 16;

/// A load in progress.
struct Pending {
    result: Mutex<Option<Result<Arc<Block>>>>,
    done: Condvar,
}

impl Pending {
    fn wait(&self) -> Result<Arc<Block>> {
        let mut result = self.result.lock();
        loop {
            if let Some(r) = &*result {
                return r.clone();
            }
            self.done.wait(&mut result);
        }
    }

    fn finish(&self, r: Result<Arc<Block>>) {
        *self.result.lock() = Some(r);
        self.done.notify_all();
    }
}

enum Slot {
    Loading(Arc<Pending>),
    Ready { block: Arc<Block>, asked: u8 },
}

#[derive(Default)]
struct Shard {
    map: HashMap<CacheKey, Slot>,
    small: VecDeque<CacheKey>,
    main: VecDeque<CacheKey>,
    /// Keys lately dropped from `small`, at most as many as there is room for blocks.
    ghosts: VecDeque<CacheKey>,
    ghost_set: HashSet<CacheKey>,
    hits: u64,
    misses: u64,
    evictions: u64,
}

impl Shard {
    fn blocks(&self) -> usize {
        self.small.len() + self.main.len()
    }

    /// Makes room until at most `room` blocks are cached.
    fn shrink(&mut self, room: usize) -> Vec<Arc<Block>> {
        let mut dropped = Vec::new();
        while self.blocks() > room {
            let from_small = self.small.len() > room / 10 || self.main.is_empty();
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let Some(key) = queue.pop_front() else { break };
            let Some(Slot::Ready { asked, .. }) = self.map.get_mut(&key) else { continue };
            if *asked > 0 {
                *asked = if from_small { 0 } else { *asked - 1 };
                self.main.push_back(key);
                continue;
            }
            if let Some(Slot::Ready { block, .. }) = self.map.remove(&key) {
                dropped.push(block);
            }
            self.evictions += 1;
            if from_small && self.ghost_set.insert(key) {
                self.ghosts.push_back(key);
            }
        }
        while self.ghosts.len() > room {
            if let Some(key) = self.ghosts.pop_front() {
                self.ghost_set.remove(&key);
            }
        }
        dropped
    }

    /// Puts a block in. It replaces a load in progress of the same version (a write-out may overtake a reader).
    fn put(&mut self, key: CacheKey, block: Arc<Block>, proven: bool) {
        if let Some(Slot::Ready { .. }) = self.map.insert(key, Slot::Ready { block, asked: 0 }) {
            return; // already queued
        }
        if proven || self.ghost_set.contains(&key) {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
        }
    }
}

/// Sums over all shards.
#[cfg(test)]
#[derive(Default)]
pub(super) struct CacheStats {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) evictions: u64,
    pub(super) blocks: u64,
}

pub(super) struct Cache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes: usize,
}

impl Cache {
    pub(super) fn new(bytes: usize) -> Cache {
        let shards = (bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        Cache { shards: (0..shards).map(|_| Mutex::new(Shard::default())).collect(), shard_bytes: bytes / shards }
    }

    fn shard(&self, key: CacheKey) -> &Mutex<Shard> {
        let mixed = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.shards[mixed as usize % self.shards.len()]
    }

    /// Blocks that a shard may hold when all views together take `view_bytes`.
    fn room(&self, view_bytes: usize) -> usize {
        self.shard_bytes.saturating_sub(view_bytes / self.shards.len()) / BLOCK_BYTES
    }

    /// The cached block, or what `load` makes. Only one caller at a time loads a version.
    pub(super) fn get(
        &self,
        key: CacheKey,
        view_bytes: usize,
        load: impl FnOnce() -> Result<Arc<Block>>,
    ) -> Result<Arc<Block>> {
        let mut shard = self.shard(key).lock();
        match shard.map.get_mut(&key) {
            Some(Slot::Ready { block, asked }) => {
                *asked = (*asked + 1).min(3);
                let block = block.clone();
                shard.hits += 1;
                return Ok(block);
            }
            Some(Slot::Loading(pending)) => {
                let pending = pending.clone();
                shard.hits += 1;
                drop(shard);
                return pending.wait();
            }
            None => {}
        }
        let pending = Arc::new(Pending { result: Mutex::new(None), done: Condvar::new() });
        shard.map.insert(key, Slot::Loading(pending.clone()));
        shard.misses += 1;
        drop(shard);
        let mut guard = LoadGuard { cache: self, key, pending, view_bytes, result: None };
        guard.result = Some(load());
        guard.finish()
    }

    /// Puts a block in that is sure to be wanted again.
    pub(super) fn put(&self, key: CacheKey, block: Arc<Block>, view_bytes: usize) {
        let room = self.room(view_bytes);
        let mut shard = self.shard(key).lock();
        shard.put(key, block, true);
        let dropped = shard.shrink(room);
        drop(shard);
        drop(dropped);
    }

    /// Drops a version, if it is here. Its place in the queue is given up when its turn comes.
    pub(super) fn remove(&self, key: CacheKey) {
        let mut shard = self.shard(key).lock();
        let dropped = match shard.map.get(&key) {
            Some(Slot::Ready { .. }) => shard.map.remove(&key),
            _ => None,
        };
        drop(shard);
        drop(dropped);
    }

    #[cfg(test)]
    pub(super) fn stats(&self) -> CacheStats {
        let mut sum = CacheStats::default();
        for shard in &self.shards {
            let shard = shard.lock();
            sum.hits += shard.hits;
            sum.misses += shard.misses;
            sum.evictions += shard.evictions;
            sum.blocks += shard.blocks() as u64;
        }
        sum
    }
}

/// Ends a load, also when it panics: those who wait for it must not wait for ever.
struct LoadGuard<'a> {
    cache: &'a Cache,
    key: CacheKey,
    pending: Arc<Pending>,
    view_bytes: usize,
    result: Option<Result<Arc<Block>>>,
}

impl LoadGuard<'_> {
    fn finish(mut self) -> Result<Arc<Block>> {
        let result = self.result.take().expect("set before");
        let room = self.cache.room(self.view_bytes);
        let mut shard = self.cache.shard(self.key).lock();
        let mut dropped = Vec::new();
        match &result {
            Ok(block) => {
                if !matches!(shard.map.get(&self.key), Some(Slot::Ready { .. })) {
                    shard.put(self.key, block.clone(), false);
                    dropped = shard.shrink(room);
                }
            }
            Err(_) => {
                if let Some(Slot::Loading(_)) = shard.map.get(&self.key) {
                    shard.map.remove(&self.key);
                }
            }
        }
        drop(shard);
        drop(dropped);
        self.pending.finish(result.clone());
        result
    }
}

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        let mut result = self.pending.result.lock();
        if result.is_none() {
            *result = Some(Err(Error::corrupt("block", "its load did not finish")));
            self.pending.done.notify_all();
            drop(result);
            self.cache.shard(self.key).lock().map.remove(&self.key);
        }
    }
}
