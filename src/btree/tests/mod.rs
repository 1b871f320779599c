//! Tests of the tree: a harness that keeps account of every block, and a verifier that shares no code with the tree.

mod damage;
mod free;
mod merging;
mod model;
mod real;
mod vectors;

use std::collections::{BTreeMap, HashSet};

use crate::block::{BLOCK_BYTES, BlockSource, BlockStore, Cow, DirtySet};
use crate::btree::{LogItem, Reader, TreeBlock, Visitor, insert_list, visit};
use crate::device::{BlockDevice, MemDevice};
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::{BlockRef, BtreeRoot};
use crate::format::{Key, MetaBlock};
use crate::sync::Arc;

pub(super) const FSID: u64 = 0x1122_3344_5566_7788;

/// Seq, flags, value.
pub(super) type Stored = (u64, u8, Vec<u8>);

pub(super) fn k(id: u64) -> Key {
    Key::new(16, id, 4, 0, 0, 0)
}

pub(super) fn is_totl(key: &Key) -> bool {
    key.zone == 12
}

pub(super) const EMPTY: BtreeRoot = super::write::EMPTY_ROOT;

/// Hands out ascending numbers, panics at a double free, and fails on demand.
pub(super) struct Source {
    next: u64,
    pub(super) live: HashSet<u64>,
    pub(super) fail_in: Option<u64>,
    pub(super) low: bool,
}

impl BlockSource for Source {
    fn alloc(&mut self) -> Result<MetaBlock> {
        self.step()?;
        self.next += 1;
        self.live.insert(self.next);
        Ok(MetaBlock(self.next))
    }

    fn free(&mut self, b: MetaBlock) -> Result<()> {
        self.step()?;
        assert!(self.live.remove(&b.0), "block {b} was not in use");
        Ok(())
    }

    fn cancel(&mut self, b: MetaBlock) {
        assert!(self.live.remove(&b.0));
    }

    fn low(&self, _n: u64) -> bool {
        self.low
    }
}

impl Source {
    fn step(&mut self) -> Result<()> {
        match &mut self.fail_in {
            Some(0) => fail(Errno::ENOSPC),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Trees over one memory device.
pub(super) struct Bed {
    pub(super) dev: Arc<MemDevice>,
    pub(super) store: Arc<BlockStore>,
    pub(super) dirty: DirtySet,
    pub(super) source: Source,
}

impl Bed {
    pub(super) fn new() -> Bed {
        let dev = MemDevice::new(1 << 40);
        let store = BlockStore::new(dev.clone(), FSID, 16 << 20);
        let source = Source { next: 100, live: HashSet::new(), fail_in: None, low: false };
        Bed { dev, store, dirty: DirtySet::new(), source }
    }

    pub(super) fn cow(&mut self) -> Cow<'_> {
        Cow { store: &self.store, dirty: &mut self.dirty, alloc: &mut self.source }
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::with_dirty(&self.store, &self.dirty)
    }

    /// Writes everything and starts over with an empty cache.
    pub(super) fn reopen(&mut self) {
        self.dirty.write_out(&self.store).unwrap();
        self.store = BlockStore::new(self.dev.clone(), FSID, 16 << 20);
    }

    pub(super) fn build(&mut self, items: &[(Key, u64, u8, Vec<u8>)]) -> BtreeRoot {
        let mut root = EMPTY;
        let list = items.iter().map(|(key, seq, flags, value)| LogItem { key: *key, seq: *seq, flags: *flags, value });
        insert_list(&mut self.cow(), &mut root, list, is_totl).unwrap();
        root
    }

    pub(super) fn look(&self, root: &BtreeRoot) -> Look {
        self.look_at(root, true)
    }

    pub(super) fn look_at(&self, root: &BtreeRoot, whole: bool) -> Look {
        let mut look = Look::default();
        visit(&self.reader(), root, whole, &mut look);
        assert!(look.damage.is_empty(), "{:?}", look.damage);
        look
    }

    /// The trees hold exactly the blocks in use; blocks on the device are what the original would accept.
    pub(super) fn check(&self, roots: &[&BtreeRoot]) {
        let mut all = HashSet::new();
        for root in roots {
            for block in &self.look(root).blocks {
                assert!(all.insert(block.block_ref.blkno.get()), "block {} is in two places", block.block_ref.blkno);
                if self.dirty.len() == 0 {
                    let mut image = vec![0; BLOCK_BYTES];
                    self.dev.read_at(block.block_ref.blkno.get() * BLOCK_BYTES as u64, &mut image).unwrap();
                    strict(&image);
                }
            }
        }
        let lost: Vec<_> = self.source.live.difference(&all).take(5).collect();
        let freed: Vec<_> = all.difference(&self.source.live).take(5).collect();
        assert!(lost.is_empty() && freed.is_empty(), "lost {lost:?}, freed but used {freed:?}");
    }
}

/// Everything that a visit tells.
#[derive(Default)]
pub(super) struct Look {
    pub(super) blocks: Vec<TreeBlock>,
    pub(super) items: BTreeMap<Key, Stored>,
    pub(super) damage: Vec<Error>,
}

impl Look {
    pub(super) fn level(&self, level: u8) -> usize {
        self.blocks.iter().filter(|b| b.level == level).count()
    }
}

impl Visitor for Look {
    fn enter(&mut self, _r: &BlockRef, _level: u8) -> bool {
        true
    }

    fn block(&mut self, block: &TreeBlock) {
        self.blocks.push(*block);
    }

    fn item(&mut self, key: &Key, seq: u64, flags: u8, value: &[u8]) {
        if let Some((last, _)) = self.items.last_key_value() {
            assert!(last < key);
        }
        self.items.insert(*key, (seq, flags, value.to_vec()));
    }

    fn damage(&mut self, _r: &BlockRef, error: Error) {
        self.damage.push(error);
    }
}

/// Checks one written block by the numbers of the specification alone: exact AVL tree, hash table, gap, totals, zeros.
pub(super) fn strict(b: &[u8]) {
    let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    let (root, nr, total, gap, level) = (u16_at(32), u16_at(34), u16_at(36), u16_at(38), b[40]);
    let end = if level == 0 { 62512 } else { 65536 };
    assert!(b[41..48].iter().all(|x| *x == 0));
    assert_eq!(!crc_bitwise(&b[4..]), u32::from_le_bytes(b[..4].try_into().unwrap()));
    let mut used = vec![false; 65536];
    used[..48 + 56 * nr].fill(true);
    let mut sum = 0;
    for slot in 0..nr {
        let at = 48 + 56 * slot;
        let (off, len) = (u16_at(at + 48), u16_at(at + 50));
        let room = len.div_ceil(8) * 8;
        sum += 56 + room;
        assert!(len <= 896 && (level == 0 || len == 16));
        assert_eq!(off == 0, len == 0);
        assert!(b[at + 7] == 0 && b[at + 35..at + 40] == [0; 5] && b[at + 53..at + 56] == [0; 3]);
        if len > 0 {
            assert!(off % 8 == 0 && off >= 48 + 56 * nr + gap && off + room <= end);
            assert!(b[off + len..off + room].iter().all(|x| *x == 0));
        }
        for byte in &mut used[off..off + room] {
            assert!(!*byte);
            *byte = true;
        }
        if level > 0 {
            assert!(u64_at(off) >= 2);
            assert_eq!((u64_at(at + 40), b[at + 52]), (0, 0));
        }
    }
    assert_eq!(total, sum);
    assert_eq!(gap, end - 48 - sum, "values are packed");
    assert!((48 + 56 * nr..end).all(|at| used[at] || b[at] == 0));
    let mut order = Vec::new();
    strict_avl(b, root, 0, &mut order);
    assert_eq!(order.len(), nr);
    let key = |at: usize| (b[at + 33], u64_at(at + 8), b[at + 34], u64_at(at + 16), u64_at(at + 24), b[at + 32]);
    assert!(order.windows(2).all(|w| key(w[0]) < key(w[1])));
    if level == 0 {
        strict_hash(b, nr);
    }
}

/// Height of the subtree; collects block offsets of items in order.
fn strict_avl(b: &[u8], node: usize, parent: usize, order: &mut Vec<usize>) -> u8 {
    if node == 0 {
        return 0;
    }
    let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]) as usize;
    let at = node + 32;
    assert!((at - 48).is_multiple_of(56));
    assert_eq!(u16_at(at), parent);
    let left = strict_avl(b, u16_at(at + 2), node, order);
    order.push(at);
    let right = strict_avl(b, u16_at(at + 4), node, order);
    assert!(left.abs_diff(right) <= 1);
    assert_eq!(b[at + 6], 1 + left.max(right));
    b[at + 6]
}

fn strict_hash(b: &[u8], nr: usize) {
    let bucket = |i: usize| u16::from_le_bytes([b[62512 + 2 * i], b[62513 + 2 * i]]) as usize;
    assert_eq!((0..1512).filter(|i| bucket(*i) != 0).count(), nr);
    for slot in 0..nr {
        let at = 48 + 56 * slot;
        let hash = b[at + 8..at + 40].iter().fold(0x811c_9dc5u32, |h, x| (h ^ *x as u32).wrapping_mul(0x0100_0193));
        let mut i = hash as usize % 1512;
        while bucket(i) != at {
            assert_ne!(bucket(i), 0, "item {slot} is not found");
            i = (i + 1) % 1512;
        }
    }
}

/// CRC-32C bit by bit, as libraries give it.
fn crc_bitwise(bytes: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (i, t) in table.iter_mut().enumerate() {
        *t = (0..8).fold(i as u32, |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 });
    }
    !bytes.iter().fold(!0u32, |c, b| (c >> 8) ^ table[((c ^ *b as u32) & 0xff) as usize])
}
