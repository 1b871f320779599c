//! The background threads of a mount.
//!
//! | thread | does | may block on |
//! |---|---|---|
//! | `scoutfs-merge` | asks for log merge work and does it (`spec/03 §11.4`) | the server, device reads and writes |
//! | `scoutfs-compact` | asks for search file compaction and does it (`spec/08 §7.5`) | the server, device reads and writes |
//! | `scoutfs-orphan` | scans for orphans and deletes them, finishes interrupted truncations (`spec/06 §3.7, §3.8`) | the server, cluster locks, commits |
//!
//! Both end when the mount leaves or is forced down; dropping [`Background`] joins them.

use std::time::Duration;

use super::node::Node;
use super::{compact, merge};
use crate::error::{Error, Result};
use crate::options::VolumeOptions;
use crate::sync::{Arc, Condvar, Mutex, random, thread};

/// Pause of the merge worker when there is no work (`spec/05 §1.3`).
const MERGE_POLL: Duration = Duration::from_secs(5);

/// Tells threads to end, and interrupts their pauses.
struct Stop {
    stopped: Mutex<bool>,
    wake: Condvar,
}

impl Stop {
    /// Waits; true when it is time to end.
    fn pause(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        if !*stopped {
            self.wake.wait_for(&mut stopped, time);
        }
        *stopped
    }
}

/// The running threads.
pub(crate) struct Background {
    stop: Arc<Stop>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start(
        node: &Arc<Node>,
        options: &VolumeOptions,
        scan_orphans: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    ) -> Result<Background> {
        let stop = Arc::new(Stop { stopped: Mutex::new(false), wake: Condvar::new() });
        let mut all = Background { stop: stop.clone(), threads: Vec::new() };
        let delay = options.orphan_scan_delay;
        all.work("scoutfs-merge", node, MERGE_POLL, merge::work_once)?;
        all.work("scoutfs-compact", node, options.search_compact_delay, compact::work_once)?;
        let scanning = Arc::downgrade(node);
        all.spawn("scoutfs-orphan", move |stop| {
            while !stop.pause(delay.mul_f64(0.8 + 0.4 * random::<f64>())) {
                if scanning.upgrade().is_none_or(|n| n.is_down()) {
                    return;
                }
                if let Err(e) = scan_orphans() {
                    tracing::warn!("orphan scan failed: {e}");
                }
            }
        })?;
        Ok(all)
    }

    /// A thread that asks the server for one kind of work: at once after a piece was done, else after `poll`.
    fn work(
        &mut self,
        name: &'static str,
        node: &Arc<Node>,
        poll: Duration,
        work_once: fn(&Node) -> Result<bool>,
    ) -> Result<()> {
        let node = Arc::downgrade(node);
        self.spawn(name, move |stop| {
            let mut wait = poll;
            while !stop.pause(wait) {
                let Some(node) = node.upgrade().filter(|n| !n.is_down()) else { return };
                wait = match work_once(&node) {
                    Ok(true) => Duration::ZERO,
                    Ok(false) => poll,
                    Err(e) => {
                        tracing::warn!("{name}: {e}");
                        poll
                    }
                };
            }
        })
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Stop) + Send + 'static) -> Result<()> {
        let stop = self.stop.clone();
        let handle = thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&stop))
            .map_err(|e| Error::Shutdown(format!("cannot start thread {name}: {e}")))?;
        self.threads.push(handle);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        *self.stop.stopped.lock() = true;
        self.stop.wake.notify_all();
        for thread in self.threads.drain(..) {
            // The last reference to the node may be dropped by one of its own threads.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
