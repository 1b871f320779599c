//! Quorum blocks: the 15 blocks of 4 KiB at block 17 of the metadata device (`spec/05 §2.3`, `§3.2`).

use crate::error::Result;
use crate::format::layout::QuorumBlock;

/// The blocks of all slots as read from the device; unreadable ones as the error.
pub(crate) struct SlotBlocks(pub(crate) Vec<Result<QuorumBlock>>);

/// The quorum blocks of a metadata device; `QuorumDisk::new(device, fsid)` follows when the device room is there.
pub(crate) struct QuorumDisk {}

impl QuorumDisk {
    /// Reads the blocks of all slots in one access.
    pub(crate) fn read_all(&self) -> Result<SlotBlocks> {
        todo!()
    }
}
