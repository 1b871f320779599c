//! Fencing by an external command, with the interface of the original's fencing agent.

use std::ffi::OsString;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::{FenceReason, Fencer};
use crate::error::{Error, Result};
use crate::format::Rid;

/// Runs a command for each mount to be fenced. Exit status 0 confirms, anything else is an error.
///
/// The command finds the mount in its environment: `SCOUTFS_FENCED_REQ_RID` is the rid as 16 hexadecimal digits,
/// `SCOUTFS_FENCED_REQ_IP` the IPv4 address as a dotted quad (absent if none is known), `SCOUTFS_FENCED_REQ_REASON` one of
/// `client_recovery`, `client_reconnect` and `quorum_block_leader`. Scripts written for the original's agent work
/// unchanged (`spec/05 §5.9`).
#[derive(Clone, Debug)]
pub struct CommandFencer {
    program: OsString,
    args: Vec<OsString>,
}

impl CommandFencer {
    /// Runs `program` with these arguments.
    pub fn new<A: Into<OsString>>(program: impl Into<OsString>, args: impl IntoIterator<Item = A>) -> CommandFencer {
        CommandFencer { program: program.into(), args: args.into_iter().map(Into::into).collect() }
    }
}

impl Fencer for CommandFencer {
    fn fence(&self, rid: Rid, addr: Option<IpAddr>, reason: FenceReason) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null());
        command.env("SCOUTFS_FENCED_REQ_RID", format!("{:016x}", rid.0));
        command.env("SCOUTFS_FENCED_REQ_REASON", reason.to_string());
        match addr {
            Some(addr) => command.env("SCOUTFS_FENCED_REQ_IP", addr.to_string()),
            None => command.env_remove("SCOUTFS_FENCED_REQ_IP"),
        };
        let failed = |why: String| {
            let program = self.program.to_string_lossy();
            Error::Unsupported(format!("fencing of mount {:016x} by {program}: {why}", rid.0))
        };
        let status = command.status().map_err(|e| failed(e.to_string()))?;
        if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
    }
}
