//! Reading the metadata of a volume at rest, without the engine.
//!
//! The checker and the dump must not trust the code that wrote the volume, so they read it through this second, small
//! reader: verified blocks, decoded B-tree nodes, cursors over trees, the merged view of all trees. It is slow where
//! the engine is fast and picky where the engine may be lenient.
//!
//! 1. A block is used only after checksum, magic, volume, version and number were right.
//! 2. A damaged block costs what is below it and nothing else: it is told to the [`Visitor`], and reading goes on.
//! 3. Nothing loops: depth is bounded by the height in the root, and a visitor can refuse a block that was seen before.

mod cursor;
mod merged;
mod node;
mod radix;

pub(crate) use cursor::Cursor;
pub(crate) use merged::{Merged, MergedItem, Source, SourceKind, SourceVisitor, Unmerged};
pub(crate) use node::{Node, NodeItem};
pub(crate) use radix::{RadixStep, walk_radix};

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::block_crc_matches;
use crate::format::check::{decode_list_block, validate_ref};
use crate::format::consts::*;
use crate::format::layout::{AllocListHead, BlockHeader, BlockRef, SuperBlock};
use crate::format::{Key, KeyRange, MetaBlock};

use zerocopy::FromBytes;

/// Decoded nodes by block number, with the version that was decoded.
type NodesByBlock = HashMap<u64, (u64, Rc<Node>)>;

/// The metadata device of one volume.
pub(crate) struct Image<'a> {
    dev: &'a dyn BlockDevice,
    fsid: u64,
    blocks: u64,
    /// Decoded nodes, for many small lookups; `None` for one pass over everything.
    nodes: Option<RefCell<NodesByBlock>>,
}

/// Nodes that are kept for lookups, about 20 MiB.
const KEPT_NODES: usize = 256;

/// A damaged block, or one that could not be read.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    /// Its number.
    pub(crate) blkno: u64,
    /// The first key that it would hold, for B-tree blocks.
    pub(crate) key: Option<Key>,
    /// What is wrong.
    pub(crate) what: String,
}

/// Told of every block that is reached.
pub(crate) trait Visitor {
    /// Block `blkno` is about to be read at `level` (0 = leaf). False: leave it and what is below it out.
    fn enter(&mut self, blkno: MetaBlock, level: u8) -> bool;

    /// A block is damaged; it and what is below it are left out.
    fn damaged(&mut self, damage: Damage);
}

/// A visitor that wants everything and reports nothing.
pub(crate) struct Quiet;

impl Visitor for Quiet {
    fn enter(&mut self, _: MetaBlock, _: u8) -> bool {
        true
    }

    fn damaged(&mut self, _: Damage) {}
}

impl<'a> Image<'a> {
    /// The image of the volume with this super block.
    pub(crate) fn new(dev: &'a dyn BlockDevice, sb: &SuperBlock) -> Image<'a> {
        Image { dev, fsid: sb.hdr.fsid.get(), blocks: dev.size() >> BLOCK_SHIFT, nodes: None }
    }

    /// The same image, for many lookups in few places.
    pub(crate) fn for_lookups(&self) -> Image<'a> {
        Image { dev: self.dev, fsid: self.fsid, blocks: self.blocks, nodes: Some(RefCell::default()) }
    }

    /// Reads, verifies and decodes a B-tree block.
    fn node(&self, r: &BlockRef, level: u8, range: &KeyRange, open_end: bool) -> Result<Rc<Node>> {
        let (blkno, seq) = (r.blkno.get(), r.seq.get());
        let kept = self.nodes.as_ref().and_then(|n| n.borrow().get(&blkno).cloned());
        if let Some((s, node)) = kept
            && s == seq
            && node.level() == level
        {
            return Ok(node);
        }
        let node = Rc::new(Node::decode(self.read(r, MAGIC_BTREE)?, blkno, level, range, open_end)?);
        if let Some(nodes) = &self.nodes {
            let mut nodes = nodes.borrow_mut();
            if nodes.len() >= KEPT_NODES {
                nodes.clear();
            }
            nodes.insert(blkno, (seq, node.clone()));
        }
        Ok(node)
    }

    /// Number of whole 64 KiB blocks of the device.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Reads the block that `r` names and verifies that it is this version of it.
    pub(crate) fn read(&self, r: &BlockRef, magic: u32) -> Result<Vec<u8>> {
        let (blkno, seq) = (r.blkno.get(), r.seq.get());
        let bad = |why: String| Error::corrupt(format!("block {blkno}"), why);
        validate_ref(r, "a reference", self.blocks)?;
        let block = self.read_raw(blkno)?;
        let (hdr, _) = BlockHeader::read_from_prefix(&block).expect("a block is longer than its header");
        if !block_crc_matches(&block) {
            return Err(bad("wrong checksum".into()));
        }
        if hdr.magic.get() != magic {
            return Err(bad(format!("magic {:#010x} instead of {magic:#010x}", hdr.magic)));
        }
        if hdr.fsid.get() != self.fsid {
            return Err(bad("it belongs to another volume".into()));
        }
        if hdr.blkno.get() != blkno {
            return Err(bad(format!("it says that it is block {}", hdr.blkno)));
        }
        if hdr.seq.get() != seq {
            return Err(bad(format!("version {:016x}, referenced is {seq:016x}", hdr.seq)));
        }
        Ok(block)
    }

    /// Reads a block without any check.
    pub(crate) fn read_raw(&self, blkno: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; BLOCK_BYTES];
        self.dev.read_at(blkno << BLOCK_SHIFT, &mut block)?;
        Ok(block)
    }

    /// What a block that nothing refers to seems to have been, if it carries a valid header of this volume: its magic
    /// and the level of a B-tree block.
    pub(crate) fn identify(&self, blkno: u64) -> Option<(u32, u8)> {
        let block = self.read_raw(blkno).ok()?;
        let (hdr, _) = BlockHeader::read_from_prefix(&block).ok()?;
        let ours = hdr.fsid.get() == self.fsid && hdr.blkno.get() == blkno && block_crc_matches(&block);
        ours.then(|| (hdr.magic.get(), block[40]))
    }

    /// Visits the blocks of a list of free blocks, and gives every entry to `entry`. Bounded by the number of entries
    /// that the head promises. Differences to that number are damage.
    pub(crate) fn walk_list(
        &self,
        head: &AllocListHead,
        v: &mut dyn Visitor,
        entry: &mut dyn FnMut(&mut dyn Visitor, MetaBlock),
    ) {
        let (mut r, mut left, mut first) = (head.block_ref, head.total_nr.get(), Some(head.first_nr.get()));
        // An empty list may keep its blocks, and so may the end of any list; but not more of them than the device has.
        let mut blocks_left = self.blocks;
        while r.blkno.get() != 0 {
            let blkno = r.blkno.get();
            if blocks_left == 0 || !v.enter(MetaBlock(blkno), 0) {
                return;
            }
            blocks_left -= 1;
            let decoded = self.read(&r, MAGIC_ALLOC_LIST).and_then(|b| decode_list_block(&b, blkno, self.blocks));
            let (next, entries) = match decoded {
                Ok(d) => d,
                Err(e) => return v.damaged(Damage { blkno, key: None, what: e.to_string() }),
            };
            let nr = entries.len() as u64;
            if first.take().is_some_and(|f| u64::from(f) != nr) || nr > left {
                let what = format!("{nr} entries, {left} are left and {} expected in the first block", head.first_nr);
                v.damaged(Damage { blkno, key: None, what });
            }
            left = left.saturating_sub(nr);
            for e in entries {
                entry(v, e);
            }
            r = next;
        }
        if left != 0 {
            let what = format!("the list ends {left} entries early");
            v.damaged(Damage { blkno: head.block_ref.blkno.get(), key: None, what });
        }
    }
}
