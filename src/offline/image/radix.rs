//! Walking the blocks of a search file.

use zerocopy::FromBytes;

use super::{Damage, Image, Visitor};
use crate::format::MetaBlock;
use crate::format::consts::*;
use crate::format::layout::{BlockRef, SrchFile};

/// What the caller of [`walk_radix`] wants done with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RadixStep {
    /// Read it, and what is below it.
    Read,
    /// Pass over it and what is below it.
    Skip,
}

/// Gets each data block: its index in the file, its number, its bytes.
type VisitLeaf<'a> = dyn FnMut(&mut dyn Visitor, u64, MetaBlock, &[u8]) + 'a;

/// Visits the blocks of `file` in order of their data. `step` decides for each (level, index of its first data block)
/// whether it is read; `leaf` gets each data block and its index.
pub(crate) fn walk_radix(
    image: &Image<'_>,
    file: &SrchFile,
    v: &mut dyn Visitor,
    step: &mut dyn FnMut(u8, u64) -> RadixStep,
    leaf: &mut VisitLeaf<'_>,
) {
    if file.height > 0 {
        Walk { image, blocks: file.blocks.get(), step, leaf }.block(&file.block_ref, file.height - 1, 0, v);
    }
}

struct Walk<'w, 'i> {
    image: &'w Image<'i>,
    blocks: u64,
    step: &'w mut dyn FnMut(u8, u64) -> RadixStep,
    leaf: &'w mut VisitLeaf<'w>,
}

impl Walk<'_, '_> {
    /// Recursion is as deep as the file is high, at most 6.
    fn block(&mut self, r: &BlockRef, level: u8, first: u64, v: &mut dyn Visitor) {
        let blkno = r.blkno.get();
        if (self.step)(level, first) == RadixStep::Skip || !v.enter(MetaBlock(blkno), level) {
            return;
        }
        let magic = if level == 0 { MAGIC_SRCH_BLOCK } else { MAGIC_SRCH_PARENT };
        let block = match self.image.read(r, magic) {
            Ok(b) => b,
            Err(e) => return v.damaged(Damage { blkno, key: None, what: e.to_string() }),
        };
        if level == 0 {
            return (self.leaf)(v, first, MetaBlock(blkno), &block);
        }
        let span = SRCH_PARENT_REFS.saturating_pow(u32::from(level) - 1);
        for (i, raw) in block[32..].chunks_exact(size_of::<BlockRef>()).take(SRCH_PARENT_REFS as usize).enumerate() {
            let index = first.saturating_add(span.saturating_mul(i as u64));
            let child = BlockRef::read_from_bytes(raw).expect("chunks have the length of a reference");
            if index >= self.blocks {
                if child.blkno.get() != 0 {
                    let what = format!("search parent refers to data block {index} of {}", self.blocks);
                    v.damaged(Damage { blkno, key: None, what });
                }
                return;
            }
            if child.blkno.get() == 0 {
                if (self.step)(level - 1, index) == RadixStep::Read {
                    let what = format!("search parent lacks data block {index} of {}", self.blocks);
                    v.damaged(Damage { blkno, key: None, what });
                }
                continue;
            }
            self.block(&child, level - 1, index, v);
        }
    }
}
