//! Fencing: the seam to whatever can make sure that a failed mount writes no more.
//!
//! A server may give away what a mount owned (its locks, its free blocks) only when that mount can no longer write to
//! either device. Software inside the filesystem cannot know that; a [`Fencer`] can: it kills the process, resets the
//! host, cuts it off at the storage, or knows that it does not exist any more (`spec/05 §5.9`).

mod command;
mod host;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use crate::error::{Error, Result};
use crate::format::Rid;

pub use command::CommandFencer;
pub use host::HostFencer;

/// Why a mount has to be fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceReason {
    /// It was connected to an earlier server and did not come back in time.
    ClientRecovery,
    /// Its connection broke and it did not come back in time.
    ClientReconnect,
    /// It was the leader before this one and never recorded that it had stopped.
    QuorumBlockLeader,
}

impl fmt::Display for FenceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FenceReason::ClientRecovery => "client_recovery",
            FenceReason::ClientReconnect => "client_reconnect",
            FenceReason::QuorumBlockLeader => "quorum_block_leader",
        })
    }
}

/// Isolates failed mounts.
///
/// [`Fencer::fence`] is called on a thread of its own for each request, so it may block; the server gives up on it after 30 seconds and then
/// stops, so that another member can try. The same mount may be fenced more than once, also at the same time.
pub trait Fencer: Send + Sync {
    /// Make sure that the mount `rid`, last seen at `addr`, writes no more.
    ///
    /// `Ok` is a promise: from now on no write of that mount reaches the metadata or the data device. An error means
    /// that this could not be reached; the server then stops.
    fn fence(&self, rid: Rid, addr: Option<IpAddr>, reason: FenceReason) -> Result<()>;

    /// The mount `rid` begins here. Called before it can be seen by any other node; an error fails the mount.
    fn mounted(&self, rid: Rid) -> Result<()> {
        let _ = rid;
        Ok(())
    }

    /// The mount `rid`, which began here, has ended and writes no more. `clean`: the volume knows, nobody will ask for it
    /// to be fenced.
    fn left(&self, rid: Rid, clean: bool) {
        let _ = (rid, clean);
    }
}

/// Refuses every request: the safe choice where nothing is known about the other mounts.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefuseFencing;

impl Fencer for RefuseFencing {
    fn fence(&self, rid: Rid, addr: Option<IpAddr>, reason: FenceReason) -> Result<()> {
        let at = addr.map_or_else(|| "unknown address".to_string(), |a| a.to_string());
        Err(Error::Unsupported(format!("mount {:016x} at {at} must be fenced ({reason}) and no fencer is set", rid.0)))
    }
}

/// Confirms every request: right where the caller knows that no other mount of the volume can be alive, for example
/// because it holds the devices exclusively, and in tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfirmFencing;

impl Fencer for ConfirmFencing {
    fn fence(&self, _rid: Rid, _addr: Option<IpAddr>, _reason: FenceReason) -> Result<()> {
        Ok(())
    }
}
