//! A stand-in for the server: a view of the last committed state, from the super block on the device.
//!
//! A real read-only mount is a full client of a server. To look at a volume that nobody serves, or whose devices must not be
//! written, all that the rooms of a mount need is somebody who grants read locks and names roots. The roots are those of
//! the super block, read again when they are asked for, so that a view of a volume that somebody else writes follows it.
//! Nothing else is answered; whatever would change the volume fails with `EROFS`.

use zerocopy::{FromBytes, IntoBytes};

use super::link::{Inbox, ServerLink};
use crate::block::BlockStore;
use crate::error::{Errno, Error, Result, fail};
use crate::format::check;
use crate::format::layout::{NetLock, NetRoots, SuperBlock};
use crate::lock::Mode;
use crate::net::Command;
use crate::sync::channel::{Sender, unbounded};
use crate::sync::{Arc, Mutex, thread};

/// Answers a read-only mount from the metadata device.
pub(crate) struct SnapshotLink {
    store: Arc<BlockStore>,
    meta_bytes: u64,
    grants: Mutex<Option<Sender<NetLock>>>,
    worker: Mutex<Option<thread::JoinHandle<()>>>,
}

impl SnapshotLink {
    /// Grants go to `inbox` from a thread of the link, as they would from a connection.
    pub(crate) fn start(store: Arc<BlockStore>, meta_bytes: u64, inbox: Arc<Inbox>) -> Result<Arc<SnapshotLink>> {
        let (tx, rx) = unbounded::<NetLock>();
        let worker = thread::Builder::new()
            .name("scoutfs-snapshot".into())
            .spawn(move || {
                for lock in rx {
                    if let Err(e) = inbox.grant(&lock) {
                        tracing::error!("lock grant refused: {e}");
                    }
                }
            })
            .map_err(|e| Error::Shutdown(format!("cannot start a thread: {e}")))?;
        Ok(Arc::new(SnapshotLink { store, meta_bytes, grants: Mutex::new(Some(tx)), worker: Mutex::new(Some(worker)) }))
    }

    fn super_block(&self) -> Result<SuperBlock> {
        let sb =
            check::decode_super(&self.store.read_small(crate::format::consts::SUPER_BLKNO)?[..], "metadata device")?;
        check::validate_super(&sb, check::DeviceRole::Meta, self.meta_bytes)?;
        Ok(sb)
    }
}

impl ServerLink for SnapshotLink {
    fn request(&self, cmd: Command, _payload: &[u8]) -> Result<Vec<u8>> {
        let sb = self.super_block()?;
        match cmd {
            Command::GetRoots => {
                let roots = NetRoots { fs_root: sb.fs_root, logs_root: sb.logs_root, srch_root: sb.srch_root };
                Ok(roots.as_bytes().to_vec())
            }
            Command::GetLastSeq => Ok(sb.seq.as_bytes().to_vec()),
            Command::Statfs => Ok(crate::server::offline_statfs(&self.store)?.as_bytes().to_vec()),
            _ => fail(Errno::EROFS),
        }
    }

    fn lock_request(&self, payload: &[u8]) -> Result<()> {
        let mut lock = NetLock::read_from_bytes(payload).map_err(|_| Error::from(Errno::EINVAL))?;
        if lock.new_mode == Mode::Write as u8 || lock.new_mode == Mode::WriteOnly as u8 {
            return fail(Errno::EROFS);
        }
        lock.old_mode = Mode::Null as u8;
        lock.write_seq = 0.into();
        match &*self.grants.lock() {
            Some(tx) => tx.send(lock).map_err(|_| Error::Shutdown("the view is closed".into())),
            None => Err(Error::Shutdown("the view is closed".into())),
        }
    }

    fn farewell(&self) -> Result<()> {
        Ok(())
    }

    fn force_down(&self) {
        self.grants.lock().take();
    }

    fn close(&self) {
        self.force_down();
        if let Some(worker) = self.worker.lock().take() {
            let _ = worker.join();
        }
    }
}
