//! Tests of the alloc room: vectors of the original, models, and the defects that must not come back.

mod extent;
mod lists;
mod policy;
mod trees;

use serde_json::Value;

use super::*;
use crate::alloc::meta::empty_head;
use crate::block::{BlockStore, Cow, DirtySet};
use crate::btree::Reader;
use crate::device::MemDevice;
use crate::error::Result;
use crate::format::layout::{AllocListHead, AllocRoot};
use crate::sync::Arc;
use zerocopy::FromZeros;

fn vector(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn num(v: &Value) -> u64 {
    v.as_u64().unwrap_or_else(|| panic!("{v} is not a number"))
}

fn nums(v: &Value) -> Vec<u64> {
    v.as_array().unwrap().iter().map(num).collect()
}

/// A list of `[a, b, ..]` rows.
fn rows(v: &Value) -> Vec<Vec<u64>> {
    v.as_array().unwrap().iter().map(nums).collect()
}

fn errno<T>(r: &Result<T>) -> i64 {
    r.as_ref().err().map_or(0, |e| -i64::from(e.errno().0))
}

/// A store of `blocks` metadata blocks in memory, with a transaction whose list of free blocks is `avail`.
struct World {
    store: Arc<BlockStore>,
    dirty: DirtySet,
    alloc: MetaAlloc,
}

impl World {
    fn new(blocks: u64) -> World {
        let store = BlockStore::new(MemDevice::new(blocks * 65536), 7, 64 << 20);
        let alloc = MetaAlloc::new(store.clone(), empty_head(), empty_head());
        World { store, dirty: DirtySet::new(), alloc }
    }

    /// A world whose transaction may use the first 8000 blocks behind block 1000 of the device.
    fn ready(blocks: u64) -> World {
        let mut w = World::new(blocks);
        let head = w.write_list(500, (1000..9000).collect(), None);
        w.alloc = MetaAlloc::new(w.store.clone(), head, empty_head());
        w
    }

    fn cow(&mut self) -> Cow<'_> {
        Cow { store: &self.store, dirty: &mut self.dirty, alloc: &mut self.alloc }
    }

    fn reader(&self) -> Reader<'_> {
        Reader::with_dirty(&self.store, &self.dirty)
    }

    /// Puts a list block on the device.
    fn write_list(
        &mut self,
        blkno: u64,
        blknos: Vec<u64>,
        next: Option<crate::format::layout::BlockRef>,
    ) -> AllocListHead {
        let r = crate::format::layout::BlockRef { blkno: blkno.into(), seq: self.store.nonce().into() };
        let nr = blknos.len() as u64;
        let mut dirty = DirtySet::new();
        dirty.insert(r, list::ListBlock { next, blknos: blknos.into() });
        dirty.write_out(&self.store).unwrap();
        AllocListHead { block_ref: r, total_nr: nr.into(), first_nr: (nr as u32).into(), flags: 0.into() }
    }

    /// Writes everything and goes on with the resulting lists as a new transaction.
    fn commit(&mut self) -> (AllocListHead, AllocListHead) {
        let (avail, freed) = self.alloc.finish(&mut self.dirty).unwrap();
        self.dirty.write_out(&self.store).unwrap();
        self.alloc = MetaAlloc::new(self.store.clone(), avail, freed);
        (avail, freed)
    }

    fn extents(&self, root: &AllocRoot, bounds: Bounds) -> Vec<Vec<u64>> {
        let mut out = Vec::new();
        extents::check(&self.reader(), root, bounds, &mut |e| {
            out.push(vec![e.start, e.len]);
            Ok(())
        })
        .unwrap();
        out
    }

    /// Entries of a list, block by block.
    fn blocks(&self, head: &AllocListHead) -> Vec<(u64, Vec<u64>)> {
        let mut out: Vec<(u64, Vec<u64>)> = Vec::new();
        list::walk(&self.reader(), head, &mut |v| {
            match v {
                list::ListVisit::Block(r) => out.push((r.blkno.get(), Vec::new())),
                list::ListVisit::Entry(b) => out.last_mut().unwrap().1.push(b.0),
            }
            Ok(())
        })
        .unwrap();
        out
    }
}

fn empty_root() -> AllocRoot {
    AllocRoot::new_zeroed()
}

/// All block numbers of the device.
const WIDE: Bounds = Bounds { first: 0, end: 1 << 40 };
