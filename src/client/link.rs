//! The seam to the server, and the translation between its messages and the rooms of the mount.

use zerocopy::{FromBytes, IntoBytes};

use super::open_map::OpenMap;
use crate::error::{Errno, Error, Result};
use crate::format::layout::{LogTrees, NetLock, NetLockRecoverHead, NetRoots, OpenInoMap, OpenInoMapArgs, StoredKey};
use crate::item::{ItemShard, RootsSource};
use crate::lock::{LockClient, LockSender};
use crate::net::{ClientConn, ClientHandler, Command, Reply};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, HashMap, Mutex, OnceLock, Weak};
use crate::txn::{LogService, Txn};

/// Where the requests of a mount go.
pub(crate) trait ServerLink: Send + Sync {
    /// Sends a request and waits for the answer.
    fn request(&self, cmd: Command, payload: &[u8]) -> Result<Vec<u8>>;
    /// Queues a LOCK request; the answer goes to [`Inbox::grant`].
    fn lock_request(&self, payload: &[u8]) -> Result<()>;
    /// Says farewell and waits for the confirmation.
    fn farewell(&self) -> Result<()>;
    /// Fails everything that waits and everything later.
    fn force_down(&self);
    /// Ends the threads of the link.
    fn close(&self);
}

impl ServerLink for ClientConn {
    fn request(&self, cmd: Command, payload: &[u8]) -> Result<Vec<u8>> {
        ClientConn::request(self, cmd, payload)
    }
    fn lock_request(&self, payload: &[u8]) -> Result<()> {
        ClientConn::lock_request(self, payload)
    }
    fn farewell(&self) -> Result<()> {
        ClientConn::farewell(self)
    }
    fn force_down(&self) {
        ClientConn::force_down(self);
    }
    fn close(&self) {
        ClientConn::close(self);
    }
}

/// A typed request: sends `body`, reads the answer as `T`.
pub(crate) fn call<T: FromBytes>(link: &dyn ServerLink, cmd: Command, body: &[u8]) -> Result<T> {
    let answer = link.request(cmd, body)?;
    T::read_from_bytes(&answer)
        .map_err(|_| Error::corrupt(format!("answer to {cmd:?}"), format!("{} bytes", answer.len())))
}

/// The requests that the item and transaction rooms and the lock room send.
pub(crate) struct Outbox {
    link: OnceLock<Arc<dyn ServerLink>>,
    inbox: OnceLock<Weak<Inbox>>,
}

impl Outbox {
    pub(crate) fn new() -> Arc<Outbox> {
        Arc::new(Outbox { link: OnceLock::new(), inbox: OnceLock::new() })
    }

    pub(crate) fn connect(&self, link: Arc<dyn ServerLink>, inbox: &Arc<Inbox>) {
        let _ = self.link.set(link);
        let _ = self.inbox.set(Arc::downgrade(inbox));
    }

    fn link(&self) -> Result<&Arc<dyn ServerLink>> {
        self.link.get().ok_or_else(|| Error::Shutdown("not connected yet".into()))
    }
}

impl RootsSource for Outbox {
    fn roots(&self) -> Result<NetRoots> {
        call(&**self.link()?, Command::GetRoots, &[])
    }
}

impl LogService for Outbox {
    fn get_log_trees(&self) -> Result<LogTrees> {
        call(&**self.link()?, Command::GetLogTrees, &[])
    }
    fn commit_log_trees(&self, trees: &LogTrees) -> Result<()> {
        self.link()?.request(Command::CommitLogTrees, trees.as_bytes()).map(drop)
    }
}

impl LockSender for Outbox {
    fn send_request(&self, lock: &NetLock) -> Result<()> {
        self.link()?.lock_request(lock.as_bytes())
    }
    fn send_invalidate_response(&self, _epoch: u64, id: u64, lock: &NetLock) {
        // The reply knows the server it belongs to and drops itself if that has changed.
        if let Some(inbox) = self.inbox.get().and_then(Weak::upgrade) {
            inbox.answer(id, lock);
        }
    }
}

/// Where the server's messages arrive. Nothing here blocks.
pub(crate) struct Inbox {
    omap: Arc<OpenMap>,
    // Weak: both rooms send through the connection, which holds the inbox.
    locks: OnceLock<Weak<LockClient<ItemShard>>>,
    txn: OnceLock<Weak<Txn>>,
    /// Invalidations being worked on, by a number of ours.
    replies: Mutex<HashMap<u64, Reply>>,
    next_reply: AtomicU64,
    unmounting: AtomicBool,
    on_evicted: OnceLock<Box<dyn Fn(Error) + Send + Sync>>,
}

impl Inbox {
    pub(crate) fn new(omap: Arc<OpenMap>) -> Arc<Inbox> {
        Arc::new(Inbox {
            omap,
            locks: OnceLock::new(),
            txn: OnceLock::new(),
            replies: Mutex::new(HashMap::default()),
            next_reply: AtomicU64::new(1),
            unmounting: AtomicBool::new(false),
            on_evicted: OnceLock::new(),
        })
    }

    pub(crate) fn connect(&self, locks: &Arc<LockClient<ItemShard>>, txn: &Arc<Txn>) {
        let _ = self.locks.set(Arc::downgrade(locks));
        let _ = self.txn.set(Arc::downgrade(txn));
    }

    fn locks(&self) -> Option<Arc<LockClient<ItemShard>>> {
        self.locks.get().and_then(Weak::upgrade)
    }

    /// What to do when the volume has given this mount up.
    pub(crate) fn on_evicted(&self, f: Box<dyn Fn(Error) + Send + Sync>) {
        let _ = self.on_evicted.set(f);
    }

    /// The last commit is coming anyway: requests for one are only answered.
    pub(crate) fn begin_unmount(&self) {
        self.unmounting.store(true, Ordering::Release);
    }

    /// A lock was granted. An error says that the grant breaks the protocol.
    pub(crate) fn grant(&self, lock: &NetLock) -> Result<()> {
        self.locks().map_or(Ok(()), |locks| locks.grant(lock))
    }

    fn answer(&self, id: u64, lock: &NetLock) {
        if let Some(reply) = self.replies.lock().remove(&id) {
            reply.send(Ok(lock.as_bytes().to_vec()));
        }
    }

    fn invalidate(&self, payload: &[u8], reply: Reply) -> Result<()> {
        let lock = NetLock::read_from_bytes(payload).map_err(|_| Error::from(Errno::EINVAL))?;
        // Without locks the mount is going down by force, and answers nothing any more.
        let Some(locks) = self.locks() else { return Ok(()) };
        let epoch = reply.term();
        let id = self.next_reply.fetch_add(1, Ordering::Relaxed);
        self.replies.lock().insert(id, reply);
        locks.invalidate(epoch, id, &lock).inspect_err(|_| drop(self.replies.lock().remove(&id)))
    }

    fn recover(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let key = StoredKey::read_from_bytes(payload).map_err(|_| Error::from(Errno::EINVAL))?;
        let held = self.locks().map(|l| l.recover(&key.to_key())).unwrap_or_default();
        let head = NetLockRecoverHead { nr: (held.len() as u16).into(), pad: [0; 6] };
        let mut out = head.as_bytes().to_vec();
        for lock in &held {
            out.extend_from_slice(lock.as_bytes());
        }
        Ok(out)
    }

    fn open_map(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let args = OpenInoMapArgs::read_from_bytes(payload).map_err(|_| Error::from(Errno::EINVAL))?;
        let mut map = OpenInoMap::read_from_bytes(&[0; size_of::<OpenInoMap>()]).map_err(|_| Errno::EINVAL)?;
        map.args = args;
        map.bits.as_mut_bytes().copy_from_slice(&self.omap.bits(args.group_nr.get()));
        Ok(map.as_bytes().to_vec())
    }
}

impl ClientHandler for Inbox {
    fn request(&self, cmd: Command, payload: Vec<u8>, reply: Reply) -> Result<()> {
        match cmd {
            Command::Lock => return self.invalidate(&payload, reply),
            Command::LockRecover => reply.send(self.recover(&payload)),
            Command::OpenInoMap => reply.send(self.open_map(&payload)),
            Command::SyncLogTrees => {
                reply.send(Ok(Vec::new()));
                if !self.unmounting.load(Ordering::Acquire)
                    && let Some(txn) = self.txn.get().and_then(Weak::upgrade)
                {
                    txn.start_commit();
                }
            }
            _ => reply.send(Err(Errno::EINVAL.into())),
        }
        Ok(())
    }

    fn lock_response(&self, payload: Vec<u8>) -> Result<()> {
        let lock = NetLock::read_from_bytes(&payload);
        self.grant(&lock.map_err(|_| Error::corrupt("lock grant", format!("{} bytes", payload.len())))?)
    }

    fn new_server(&self, term: u64) {
        // What the old server asked for is answered to nobody.
        self.replies.lock().clear();
        if let Some(locks) = self.locks() {
            locks.new_epoch(term);
        }
    }

    fn evicted(&self, error: Error) {
        tracing::error!("the volume has given this mount up: {error}");
        if let Some(f) = self.on_evicted.get() {
            f(error);
        }
    }
}
