//! Tests of the store, its cache and the dirty set.

use super::*;
use crate::device::{BlockDevice, Fault, FaultDevice, FaultOps, MemDevice};
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::BlockRef;
use crate::format::{MetaBlock, seal_block};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex};

const FSID: u64 = 77;

fn r(blkno: u64, seq: u64) -> BlockRef {
    BlockRef { blkno: blkno.into(), seq: seq.into() }
}

/// A block filled with one byte.
#[derive(Debug)]
struct Plain(u8);

impl DirtyContent for Plain {
    fn kind(&self) -> BlockKind {
        BlockKind::Bloom
    }

    fn encode(&mut self, buf: &mut [u8; BLOCK_BYTES]) {
        buf[32..].fill(self.0);
    }
}

impl CowContent for Plain {
    const KIND: BlockKind = BlockKind::Bloom;

    fn load(block: &Block) -> Result<Plain> {
        Ok(Plain(block.bytes()[100]))
    }

    fn empty() -> Plain {
        Plain(0)
    }
}

/// Views are charged to the cache.
struct Wide;

impl BlockView for Wide {
    fn decode(block: &[u8; BLOCK_BYTES], blkno: u64) -> Result<Wide> {
        if block[100] == 0xee { Err(Error::corrupt(format!("block {blkno}"), "ee")) } else { Ok(Wide) }
    }

    fn heap_bytes(&self) -> usize {
        100_000
    }
}

fn store_on(dev: Arc<dyn BlockDevice>, cache_bytes: usize) -> Arc<BlockStore> {
    BlockStore::new(dev, FSID, cache_bytes)
}

fn fill(store: &BlockStore, blocks: impl IntoIterator<Item = (u64, u64, u8)>) {
    let mut set = DirtySet::new();
    for (blkno, seq, byte) in blocks {
        set.insert(r(blkno, seq), Plain(byte));
    }
    set.write_out(store).unwrap();
}

#[test]
fn a_reference_is_satisfied_by_exactly_its_version() {
    let dev = MemDevice::new(100 << 16);
    fill(&store_on(dev.clone(), 1 << 20), [(5, 50, 1), (6, 60, 2)]);
    let store = store_on(dev.clone(), 1 << 20);
    let block = store.read(&r(5, 50), BlockKind::Bloom).unwrap();
    assert_eq!((block.bytes()[100], block.block_ref()), (1, r(5, 50)));
    let stale = |store: &BlockStore, r: BlockRef, kind| {
        assert!(matches!(store.read(&r, kind), Err(Error::Stale { .. })), "{r:?}");
    };
    stale(&store, r(5, 51), BlockKind::Bloom);
    stale(&store, r(5, 50), BlockKind::Btree); // cached as another kind
    stale(&store, r(6, 60), BlockKind::Btree); // read as another kind
    stale(&store, r(7, 0), BlockKind::Bloom);
    for outside in [0, 1, 100, 101, u64::MAX] {
        stale(&store, r(outside, 0), BlockKind::Bloom);
    }
    stale(&BlockStore::new(dev.clone(), FSID + 1, 1 << 20), r(5, 50), BlockKind::Bloom);
    // A version that is gone from the device can still be in the cache, beside the new one.
    fill(&store, [(5, 51, 9)]);
    assert_eq!(store.read(&r(5, 50), BlockKind::Bloom).unwrap().bytes()[100], 1);
    assert_eq!(store.read(&r(5, 51), BlockKind::Bloom).unwrap().bytes()[100], 9);
    // A wrong byte anywhere is stale too: only the owner of a current root may call it corruption.
    dev.write_at((6 << 16) + 40000, &[0xff]).unwrap();
    stale(&store_on(dev, 1 << 20), r(6, 60), BlockKind::Bloom);
}

/// A device whose first read of each block is torn, and which counts reads.
struct Torn {
    inner: Arc<MemDevice>,
    reads: AtomicU64,
}

impl BlockDevice for Torn {
    fn name(&self) -> String {
        "torn".into()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)?;
        if self.reads.fetch_add(1, Ordering::SeqCst) == 0 {
            buf[4096..8192].fill(0);
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_mismatch_is_looked_at_twice() {
    let inner = MemDevice::new(10 << 16);
    fill(&store_on(inner.clone(), 0), [(5, 50, 1)]);
    let dev = Arc::new(Torn { inner, reads: AtomicU64::new(0) });
    let store = store_on(dev.clone(), 1 << 20);
    store.read(&r(5, 50), BlockKind::Bloom).unwrap();
    assert_eq!(dev.reads.load(Ordering::SeqCst), 2);
    assert!(store.read(&r(5, 51), BlockKind::Bloom).is_err());
    assert_eq!(dev.reads.load(Ordering::SeqCst), 4);
}

/// Holds reads up until told, and counts them.
struct Gate {
    inner: Arc<MemDevice>,
    open: Mutex<bool>,
    changed: Condvar,
    reads: AtomicU64,
}

impl BlockDevice for Gate {
    fn name(&self) -> String {
        "gate".into()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock();
        while !*open {
            self.changed.wait(&mut open);
        }
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn concurrent_readers_share_one_read() {
    let inner = MemDevice::new(10 << 16);
    fill(&store_on(inner.clone(), 0), [(5, 50, 1)]);
    let gate = Arc::new(Gate { inner, open: Mutex::new(false), changed: Condvar::new(), reads: AtomicU64::new(0) });
    let store = store_on(gate.clone(), 1 << 20);
    std::thread::scope(|s| {
        let readers: Vec<_> = (0..4).map(|_| s.spawn(|| store.read(&r(5, 50), BlockKind::Bloom).unwrap())).collect();
        while store.stats().hits + store.stats().misses < 4 {
            std::thread::yield_now();
        }
        *gate.open.lock() = true;
        gate.changed.notify_all();
        let blocks: Vec<_> = readers.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(blocks.iter().all(|b| Arc::ptr_eq(b, &blocks[0])));
    });
    assert_eq!(gate.reads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_read_leaves_nothing_behind() {
    let inner = MemDevice::new(10 << 16);
    fill(&store_on(inner.clone(), 0), [(5, 50, 1)]);
    let dev = FaultDevice::new(inner);
    let store = store_on(dev.clone(), 1 << 20);
    dev.fail_nth(FaultOps::READS, 0, Fault::Once);
    assert!(matches!(store.read(&r(5, 50), BlockKind::Bloom), Err(Error::Device { .. })));
    store.read(&r(5, 50), BlockKind::Bloom).unwrap();
}

#[test]
fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
    let dev = MemDevice::new(4000 << 16);
    fill(&store_on(dev.clone(), 0), (2..3000).map(|b| (b, b, 1)));
    let store = store_on(dev, 64 << 16);
    let read = |b: u64| drop(store.read(&r(b, b), BlockKind::Bloom).unwrap());
    for _ in 0..3 {
        (2..12).for_each(read);
    }
    (100..3000).for_each(read); // one long scan
    assert!(store.stats().cached_blocks <= 64);
    assert_eq!(store.stats().evictions, 2910 - store.stats().cached_blocks);
    let before = store.stats();
    (2..12).for_each(read);
    assert_eq!(store.stats().hits - before.hits, 10, "the scan has not pushed them out");
}

#[test]
fn views_are_made_once_and_counted() {
    let dev = MemDevice::new(1000 << 16);
    fill(&store_on(dev.clone(), 0), (2..400).map(|b| (b, b, if b == 2 { 0xee } else { 1 })));
    let store = store_on(dev, 64 << 16);
    let bad = store.read(&r(2, 2), BlockKind::Bloom).unwrap();
    assert!(bad.view::<Wide>().is_err() && bad.view::<Wide>().is_err());
    drop(bad);
    for b in 3..400 {
        let block = store.read(&r(b, b), BlockKind::Bloom).unwrap();
        assert!(std::ptr::eq(block.view::<Wide>().unwrap(), block.view::<Wide>().unwrap()));
        assert!(store.stats().cached_bytes <= (64 << 16) + 200_000, "{:?}", store.stats());
    }
}

#[test]
fn a_failed_write_keeps_everything_dirty() {
    let mem = MemDevice::new(1000 << 16);
    let dev = FaultDevice::new(mem.clone());
    let store = store_on(dev.clone(), 1 << 20);
    let mut set = DirtySet::new();
    for b in 2..202 {
        set.insert(r(b, b), Plain(1));
    }
    for nth in [0, 63, 64, 150, 199] {
        dev.fail_nth(FaultOps::WRITES, nth, Fault::Torn);
        assert!(set.write_out(&store).is_err());
        assert_eq!(set.len(), 200);
    }
    // Changed after a failed write: the new content counts, also for those that had been written.
    set.get_mut::<Plain>(&r(3, 3)).unwrap().unwrap().0 = 9;
    set.write_out(&store).unwrap();
    assert_eq!((set.len(), set.bytes()), (0, 0));
    assert_eq!(store.read(&r(3, 3), BlockKind::Bloom).unwrap().bytes()[100], 9);
    let cold = store_on(mem, 1 << 20);
    for b in 2..202 {
        let byte = if b == 3 { 9 } else { 1 };
        assert_eq!(cold.read(&r(b, b), BlockKind::Bloom).unwrap().bytes()[60_000], byte);
    }
}

/// Gives 10, 11, 12.. and remembers.
#[derive(Default)]
struct Source {
    given: u64,
    freed: Vec<u64>,
    cancelled: Vec<u64>,
    refuse_free: bool,
    give: Option<u64>,
}

impl BlockSource for Source {
    fn alloc(&mut self) -> Result<MetaBlock> {
        self.given += 1;
        Ok(MetaBlock(self.give.unwrap_or(9 + self.given)))
    }
    fn free(&mut self, b: MetaBlock) -> Result<()> {
        if self.refuse_free {
            return fail(Errno::EIO);
        }
        self.freed.push(b.0);
        Ok(())
    }
    fn cancel(&mut self, b: MetaBlock) {
        self.cancelled.push(b.0);
    }
}

#[test]
fn copy_on_write() {
    let dev = MemDevice::new(100 << 16);
    let store = store_on(dev, 1 << 20);
    fill(&store, [(5, 50, 7)]);
    let (mut set, mut source) = (DirtySet::new(), Source::default());
    let mut cow = Cow { store: &store, dirty: &mut set, alloc: &mut source };
    let (mut new, mut old) = (r(0, 0), r(5, 50));
    assert_eq!(cow.content_mut::<Plain>(&mut new).unwrap().0, 0);
    cow.content_mut::<Plain>(&mut old).unwrap().0 = 8;
    assert_eq!((new.blkno.get(), old.blkno.get()), (10, 11));
    assert!(new.seq != old.seq && old.seq.get() != 50);
    // Once dirty it stays where it is; the old version is what readers still see.
    let again = old;
    assert_eq!(cow.content_mut::<Plain>(&mut old).unwrap().0, 8);
    assert_eq!(old, again);
    assert_eq!(store.read(&r(5, 50), BlockKind::Bloom).unwrap().bytes()[100], 7);
    // Another version of a dirty number is stale at once.
    assert!(matches!(cow.content_mut::<Plain>(&mut r(11, 1)), Err(Error::Stale { .. })));
    assert!(matches!(cow.dirty.get::<Plain>(&r(11, 1)), Err(Error::Stale { .. })));
    cow.free_block(&new).unwrap();
    assert_eq!(set.len(), 1);
    assert_eq!(source.freed, [5, 10]);
}

#[test]
fn what_a_small_transaction_wrote_is_at_hand_for_the_next_one() {
    let store = store_on(MemDevice::new(200 << 16), 1 << 20);
    let (mut set, mut source) = (DirtySet::new(), Source::default());
    let mut write = |set: &mut DirtySet, count: usize| {
        let mut refs = vec![r(0, 0); count];
        let mut cow = Cow { store: &store, dirty: set, alloc: &mut source };
        refs.iter_mut().for_each(|r| cow.content_mut::<Plain>(r).unwrap().0 = 8);
        set.write_out(&store).unwrap();
        refs
    };
    let few = write(&mut set, 2);
    // Where nothing can be read.
    let blind = store_on(MemDevice::new(200 << 16), 1 << 20);
    let mut more = Source::default();
    let mut take = |set: &mut DirtySet, r: &BlockRef| {
        let mut cow = Cow { store: &blind, dirty: set, alloc: &mut more };
        cow.content_mut::<Plain>(&mut r.clone()).map(|content| content.0)
    };
    assert!(take(&mut set, &r(few[0].blkno.get(), 1)).is_err(), "another version");
    assert_eq!(take(&mut set, &few[0]).unwrap(), 8);
    assert!(take(&mut set, &few[0]).is_err(), "its content belongs to the new block");
    set.forget();
    let many = write(&mut set, 100);
    assert!(take(&mut set, &few[1]).is_err(), "only the last transaction is kept");
    assert!(take(&mut set, &many[0]).is_err(), "too many to keep");
}

#[test]
fn failed_copies_change_nothing() {
    let dev = MemDevice::new(100 << 16);
    let store = store_on(dev, 1 << 20);
    fill(&store, [(5, 50, 7)]);
    let (mut set, mut source) = (DirtySet::new(), Source { refuse_free: true, ..Source::default() });
    let mut cow = Cow { store: &store, dirty: &mut set, alloc: &mut source };
    let mut old = r(5, 50);
    assert!(cow.content_mut::<Plain>(&mut old).is_err());
    assert_eq!((old, set.len()), (r(5, 50), 0));
    assert_eq!(source.cancelled, [10]);
    // A list that gives out a number in use, or none of the device, is corrupt.
    for bad in [0, 1, 100, 20] {
        let mut set = DirtySet::new();
        set.insert(r(20, 1), Plain(1));
        let mut source = Source { give: Some(bad), ..Source::default() };
        let mut cow = Cow { store: &store, dirty: &mut set, alloc: &mut source };
        assert!(matches!(cow.content_mut::<Plain>(&mut old), Err(Error::Corrupt { .. })));
        assert_eq!((old, set.len()), (r(5, 50), 1));
        assert!(source.freed.is_empty());
    }
}

#[test]
fn small_blocks() {
    let dev = MemDevice::new(10 << 16);
    let store = store_on(dev.clone(), 0);
    let mut block = [3; 4096];
    seal_block(&mut block);
    store.write_small(16, &block).unwrap();
    assert_eq!(*store.read_small(16).unwrap(), block);
    assert!(store.write_small(7, &block).is_err(), "boot loaders live there");
    assert!(store.read_small(160).is_err());
    store.flush().unwrap();
}
