//! Fencing that takes its time, fails, and cuts the disks off when it succeeds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::disk::SimDisk;
use super::{below, between, node, sleep};
use crate::error::{Error, Result};
use crate::format::Rid;
use crate::server::{FenceReason, Fencer};
use crate::sync::Arc;
use crate::sync::sim::RealMutex;

/// How well fencing works.
#[derive(Clone, Copy, Debug)]
pub struct FenceProfile {
    /// Most time that it takes.
    pub slow: Duration,
    /// Failures, in percent.
    pub fails: u64,
}

type CutHook = Box<dyn Fn(u32) + Send + Sync>;

/// The fencing of a cluster.
pub struct SimFencing {
    disks: Vec<Arc<SimDisk>>,
    profile: RealMutex<FenceProfile>,
    mounts: RealMutex<BTreeMap<u64, u32>>,
    hook: RealMutex<Option<CutHook>>,
}

impl SimFencing {
    /// Fencing from `disks`.
    pub fn new(disks: Vec<Arc<SimDisk>>, profile: FenceProfile) -> Arc<SimFencing> {
        let (mounts, hook) = (RealMutex::default(), RealMutex::default());
        Arc::new(SimFencing { disks, profile: RealMutex::new(profile), mounts, hook })
    }

    /// Changes how well it works.
    pub fn set_profile(&self, profile: FenceProfile) {
        *self.profile.lock().expect("nothing panics here") = profile;
    }

    /// Calls `hook` with each node that is cut off, before anybody else runs. It must not block.
    pub fn on_cut(&self, hook: impl Fn(u32) + Send + Sync + 'static) {
        *self.hook.lock().expect("nothing panics here") = Some(Box::new(hook));
    }

    /// The node on which the mount `rid` is or was.
    pub fn node_of(&self, rid: Rid) -> Option<u32> {
        self.mounts.lock().expect("nothing panics here").get(&rid.0).copied()
    }
}

/// What one node uses of it.
pub struct SimFencer(pub Arc<SimFencing>);

impl Fencer for SimFencer {
    fn fence(&self, rid: Rid, _addr: Option<IpAddr>, reason: FenceReason) -> Result<()> {
        let profile = *self.0.profile.lock().expect("nothing panics here");
        sleep(between(Duration::ZERO, profile.slow));
        if below(100) < profile.fails {
            return Err(Error::Busy(format!("fencing of {:016x} ({reason}) does not work today", rid.0)));
        }
        let Some(node) = self.0.node_of(rid) else { return Ok(()) };
        for disk in &self.0.disks {
            disk.cut_node(node);
        }
        if let Some(hook) = &*self.0.hook.lock().expect("nothing panics here") {
            hook(node);
        }
        // The answer takes its time too.
        sleep(between(Duration::ZERO, profile.slow / 4));
        Ok(())
    }

    fn mounted(&self, rid: Rid) -> Result<()> {
        self.0.mounts.lock().expect("nothing panics here").insert(rid.0, node());
        Ok(())
    }
}
