//! What follows from the quorum blocks (`spec/05 §3.5`, `§3.6`).

use std::net::SocketAddr;

use super::blocks::SlotBlocks;
use crate::error::Result;
use crate::format::layout::QuorumConfig;

/// A leader that may still be writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leader {
    /// Its slot.
    pub(crate) slot: usize,
    /// Its mount.
    pub(crate) rid: u64,
    /// The term it was elected in.
    pub(crate) term: u64,
    /// Its slot's address.
    pub(crate) addr: SocketAddr,
}

/// Address and term of the server. `ENOENT` when no slot claims to have one; EIO if the block of a present slot cannot be
/// read.
pub(crate) fn find_server(_config: &QuorumConfig, _blocks: &SlotBlocks) -> Result<(SocketAddr, u64)> {
    todo!()
}

/// The leaders that a server elected in `term` must fence before it trusts the metadata, in slot order. The blocks must
/// have been read after the own ELECT event was durable.
pub(crate) fn leaders_to_fence(
    _config: &QuorumConfig,
    _blocks: &SlotBlocks,
    _rid: u64,
    _term: u64,
) -> Result<Vec<Leader>> {
    todo!()
}

/// The present slots that a mount uses, or has not left in order (BEGIN newer than END).
pub(crate) fn slots_in_use(_config: &QuorumConfig, _blocks: &SlotBlocks) -> Result<Vec<usize>> {
    todo!()
}
