//! The server: what the elected leader does for all mounts.
//!
//! Problem: the super block and the trees it refers to (free space, log trees, merges, mounted clients, search files)
//! have exactly one writer in the whole cluster. Every mount asks it for space, sequence numbers and locks, and every
//! answer must be true after a power failure.
//!
//! Idea: one thread owns the trees. It takes all waiting messages as one batch; what changes nothing durable is
//! answered at once, everything else is applied to the dirty trees, written as one commit and answered together. A lone
//! request is committed without waiting for company, and many share one commit (`spec/05 §5`). What needs no trees, lock
//! traffic above all, never waits for a commit: it has a desk of its own (`desk`).

mod admin;
mod commit;
mod compact;
mod core;
mod desk;
mod fence;
mod freeing;
mod log_trees;
mod members;
mod merge;
mod omap;
mod reclaim;
mod records;
mod recovery;
mod report;
mod shadow;
mod shell;
mod silence;
mod splice;
#[cfg(test)]
mod tests;
mod trees;

use crate::block::BlockStore;
use crate::error::Result;
use crate::format::layout::NetStatfs;
use crate::sync::Arc;

pub use fence::{CommandFencer, ConfirmFencing, FenceReason, Fencer, HostFencer, RefuseFencing};
pub use report::{ClientReport, ClientState, ServerReport};
pub(crate) use shadow::read_super;
pub(crate) use shell::{LocalServer, ServerConfig};
#[cfg(test)]
pub(crate) use shell::{Server, ServerHandle};

/// Free space of a volume that nobody serves, from its super block; writes nothing.
pub(crate) fn offline_statfs(store: &Arc<BlockStore>) -> Result<NetStatfs> {
    Ok(trees::Trees::open(store.clone(), None, false)?.stable.statfs())
}
