//! The sorted file that a compaction makes.
//!
//! The latest entry is held back until the next one is known: if they are equal both go. So no block is started for an entry
//! that then goes, and no block ends up empty (defect 72).

use crate::block::Cow;
use crate::error::Result;
use crate::format::layout::SrchFile;
use crate::format::srch::{BlockBuilder, Entry};
use crate::txn::srch_file;

/// Appends to a file, whole blocks at a time.
pub(super) struct Output<'a> {
    file: &'a mut SrchFile,
    block: BlockBuilder,
    held: Option<Entry>,
    /// Blocks added.
    pub(super) blocks: u64,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a mut SrchFile) -> Output<'a> {
        Output { file, block: BlockBuilder::new(), held: None, blocks: 0 }
    }

    /// Is the block full? The held entry belongs to the next one then.
    pub(super) fn is_full(&self) -> bool {
        self.block.is_full()
    }

    /// Takes the next entry in order; the block must not be full.
    pub(super) fn push(&mut self, entry: Entry) {
        if self.held == Some(entry) {
            self.held = None;
        } else if let Some(settled) = self.held.replace(entry) {
            self.block.push(settled);
        }
    }

    /// Adds the block to the file and starts another.
    pub(super) fn end_block(&mut self, cow: &mut Cow<'_>) -> Result<()> {
        let block = std::mem::take(&mut self.block);
        self.blocks += u64::from(!block.is_empty());
        srch_file::add_block(cow, self.file, block)
    }

    /// There are no more entries.
    pub(super) fn finish(mut self, cow: &mut Cow<'_>) -> Result<()> {
        if let Some(last) = self.held.take()
            && !self.block.push(last)
        {
            self.end_block(cow)?;
            self.block.push(last);
        }
        self.end_block(cow)
    }
}
