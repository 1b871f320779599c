//! Ends a mount that cannot go on, so that nothing waits for ever.
//!
//! A mount waits for a server as long as it takes: on a shared network another member may take over at any time. On a network
//! of its own there is nobody else. Nothing will ever answer, and every waiting call is failed instead (thread `scoutfs-watch`;
//! it blocks on nothing but its own pause), if
//!  * its one member has left the election because the device fails,
//!  * the mount is without a server for [`PATIENCE`], because its member cannot lead or it cannot read who leads, or
//!  * its servers end, [`CORRUPT_ENDS`] times, over damage that the next one would only find again.

use std::time::Duration;

use crate::client::Node;
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

/// The watching thread; ends when dropped.
pub(super) struct Watch {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    /// Watches over a mount on a network of its own.
    pub(super) fn start(
        node: &Arc<Node>,
        member: &Arc<QuorumMember>,
        server: Weak<LocalServer>,
        conn: Arc<OnceLock<Weak<ClientConn>>>,
    ) -> Result<Watch> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (node, member, stopped) = (Arc::downgrade(node), Arc::downgrade(member), stop.clone());
        let run = move || {
            let mut served = Instant::now();
            let mut end = stopped.0.lock();
            while !*end {
                let (Some(node), Some(member)) = (node.upgrade(), member.upgrade()) else { return };
                if conn.get().and_then(Weak::upgrade).is_some_and(|conn| conn.status().connected) {
                    served = Instant::now();
                }
                let failed = member.status().failed;
                let corrupt = server.upgrade().map_or(0, |s| s.corrupt_ends());
                if failed.is_some() || served.elapsed() > PATIENCE || corrupt >= CORRUPT_ENDS {
                    tracing::error!(?failed, corrupt, "no server can be had any more: the mount ends");
                    return node.force_down();
                }
                drop((node, member));
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
