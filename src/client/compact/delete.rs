//! Taking files apart that were replaced.
//!
//! From the bottom up, so that what is still needed to find the rest goes last: all data blocks, then their parents, level by
//! level, then the root. Data blocks are not read. The position is the level of the parents whose children go (0 counts as
//! 1) and the first data block below the next child; beyond the height of the file it is finished.

use super::no_progress;
use crate::block::Cow;
use crate::error::{Error, Result};
use crate::format::MetaBlock;
use crate::format::consts::SRCH_PARENT_REFS;
use crate::format::layout::SrchCompactInput;
use crate::txn::srch_file;

/// Frees that are left for the lists of the allocator itself.
const SPARE_FREES: u64 = 4;

/// Frees what there is room to record; true when nothing of the inputs is left.
pub(super) fn step(cow: &mut Cow<'_>, inputs: &mut [SrchCompactInput]) -> Result<bool> {
    let mut freed = 0;
    for input in inputs {
        let (file, mut level, mut blk) = (input.sfl, input.pos.get().max(1), input.blk.get());
        while level <= u64::from(file.height) {
            // Both fit: a height is at most 6.
            let child = level as u8 - 1;
            let below = SRCH_PARENT_REFS.pow(u32::from(child));
            while blk < file.blocks.get() {
                if cow.alloc.room().1 <= SPARE_FREES {
                    (input.blk, input.pos) = (blk.into(), level.into());
                    return if freed > 0 { Ok(false) } else { Err(no_progress()) };
                }
                let Some(r) = srch_file::reference(cow.store, &file, child, blk)? else {
                    let what = format!("search file {}", file.block_ref.blkno);
                    return Err(Error::corrupt(what, format!("no block of level {child} above data block {blk}")));
                };
                cow.alloc.free(MetaBlock(r.blkno.get()))?;
                freed += 1;
                blk = (blk / below + 1).saturating_mul(below);
            }
            (level, blk) = (level + 1, 0);
        }
        (input.blk, input.pos) = (0.into(), level.into());
    }
    Ok(true)
}
