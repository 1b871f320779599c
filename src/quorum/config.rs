//! The quorum slots of a volume (`spec/05 §3.1`).

use std::net::SocketAddr;

use crate::error::Result;
use crate::format::layout::QuorumConfig;

/// Number of slots a volume can have.
pub(crate) const SLOTS: usize = 15;

/// Address of a slot; `None` if the slot is not present.
pub(crate) fn slot_addr(_config: &QuorumConfig, _slot: usize) -> Option<SocketAddr> {
    todo!()
}

/// Votes that make a leader: 1 for one or two present slots, else a majority.
pub(crate) fn votes_needed(_config: &QuorumConfig) -> usize {
    todo!()
}

/// Checks the configuration as a mount must. `own`: the slot this mount is a member with.
pub(crate) fn validate_config(_config: &QuorumConfig, _own: Option<usize>) -> Result<()> {
    todo!()
}
