//! Ends a mount that cannot go on, so that nothing waits for ever.
//!
//! A mount waits for a server as long as it takes: on a shared network another member may take over at any time. On a network
//! of its own there is nobody else. Nothing will ever answer, and every waiting call is failed with the reason instead (thread
//! `scoutfs-watch`; it blocks on nothing but its own pause), if
//!  * its one member has left the election because the device fails,
//!  * the mount is without a server for [`PATIENCE`], because its member cannot lead or it cannot read who leads, or
//!  * its servers end, [`CORRUPT_ENDS`] times, over damage that the next one would only find again.
//!
//! On any network it ends when a flush of one of its devices has failed ([`FlushGuard`]): what it wrote may be lost, and it must
//! not be committed.

use std::time::Duration;

use crate::client::Node;
use crate::device::FlushGuard;
use crate::error::{Error, Result};
use crate::net::ClientConn;
use crate::quorum::QuorumMember;
use crate::server::LocalServer;
use crate::sync::{Arc, Condvar, Instant, Mutex, OnceLock, Weak, thread};

/// How long a mount on a network of its own may be without a server: longer than an election and the fencing of an earlier
/// leader take.
const PATIENCE: Duration = Duration::from_secs(20);
/// A single damaged block may have been a bad read.
const CORRUPT_ENDS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(200);

/// What is looked at.
pub(super) struct Watched {
    pub(super) devices: [Arc<FlushGuard>; 2],
    /// The member, on a network of the mount's own.
    pub(super) member: Option<Weak<QuorumMember>>,
    pub(super) server: Weak<LocalServer>,
    pub(super) conn: Arc<OnceLock<Weak<ClientConn>>>,
}

impl Watched {
    /// Why the mount cannot go on; `served` is when it had a server last.
    fn reason_to_end(&self, served: &mut Instant) -> Option<Error> {
        if let Some(failed) = self.devices.iter().find_map(|d| d.failed()) {
            return Some(failed);
        }
        let member = self.member.as_ref()?.upgrade()?;
        let status = self.conn.get().and_then(Weak::upgrade).map(|conn| conn.status()).unwrap_or_default();
        if status.connected {
            *served = Instant::now();
        }
        if let Some(failed) = member.status().failed {
            return Some(failed);
        }
        let ends = self.server.upgrade().map(|s| s.ends()).unwrap_or_default();
        if ends.corrupt >= CORRUPT_ENDS || served.elapsed() > PATIENCE {
            let no_server = || Error::Shutdown(format!("without a server for {} s", PATIENCE.as_secs()));
            return Some(ends.last.or(status.last_error).unwrap_or_else(no_server));
        }
        None
    }
}

/// The watching thread; ends when dropped.
pub(super) struct Watch {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    /// Watches over a mount that writes.
    pub(super) fn start(node: &Arc<Node>, watched: Watched) -> Result<Watch> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (node, stopped) = (Arc::downgrade(node), stop.clone());
        let run = move || {
            let mut served = Instant::now();
            let mut end = stopped.0.lock();
            while !*end {
                let Some(node) = node.upgrade() else { return };
                if let Some(why) = watched.reason_to_end(&mut served) {
                    return node.end(why);
                }
                drop(node);
                stopped.1.wait_for(&mut end, PAUSE);
            }
        };
        let thread = thread::Builder::new().name("scoutfs-watch".into()).spawn(run);
        let thread = thread.map_err(|e| Error::Shutdown(format!("cannot start a thread: {e}")))?;
        Ok(Watch { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
