//! stub
use super::*;
use crate::format::Key;

/// What the server has to send because of an input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LockOut {
    /// The LOCK response (M2) to request `id` of client `rid`.
    Grant { rid: u64, id: u64, lock: NetLock },
    /// A LOCK request (M3) to client `rid`. When it is queued, its message id must be told by
    /// [`LockServer::invalidate_sent`]; if the client is gone (ENOTCONN), nothing needs to be done: reclaim follows.
    Invalidate { rid: u64, lock: NetLock },
}

/// What [`LockServer::recovered`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Where to continue asking; `None`: the client has reported all its locks.
    pub(crate) next: Option<Key>,
    /// The greatest write_seq reported; the volume's sequence counter must be raised to it.
    pub(crate) max_write_seq: u64,
}

/// Lock state of the elected server.
pub(crate) struct LockServer {}

impl LockServer {
    /// An empty server; nothing is granted while `recovery_pending`.
    pub(crate) fn new(recovery_pending: bool) -> LockServer {
        let _ = recovery_pending;
        todo!()
    }
    /// A LOCK request (M1). `next_seq` gives a fresh value of the volume's sequence counter. An error means: close the
    /// connection.
    pub(crate) fn request(
        &mut self,
        rid: u64,
        id: u64,
        lock: &NetLock,
        next_seq: &mut dyn FnMut() -> u64,
        out: &mut Vec<LockOut>,
    ) -> Result<()> {
        let _ = (rid, id, lock, next_seq, out);
        todo!()
    }
    /// The invalidation of `lock` was queued to `rid` as message `id`.
    pub(crate) fn invalidate_sent(&mut self, rid: u64, lock: &NetLock, id: u64) {
        let _ = (rid, lock, id);
        todo!()
    }
    /// A LOCK response (M4). Responses whose id is not outstanding are ignored. An error means: close the connection.
    pub(crate) fn response(
        &mut self,
        rid: u64,
        id: u64,
        lock: &NetLock,
        next_seq: &mut dyn FnMut() -> u64,
        out: &mut Vec<LockOut>,
    ) -> Result<()> {
        let _ = (rid, id, lock, next_seq, out);
        todo!()
    }
    /// A LOCK_RECOVER response (M6) of a client that is pending; `seq_now` is the present value of the sequence counter.
    pub(crate) fn recovered(&mut self, rid: u64, locks: &[NetLock], seq_now: u64) -> Result<Recovered> {
        let _ = (rid, locks, seq_now);
        todo!()
    }
    /// Is any client still in lock recovery? Setting false processes all waiting requests.
    pub(crate) fn set_recovery_pending(
        &mut self,
        pending: bool,
        next_seq: &mut dyn FnMut() -> u64,
        out: &mut Vec<LockOut>,
    ) {
        let _ = (pending, next_seq, out);
        todo!()
    }
    /// Forgets everything of a client that is gone; safe to repeat.
    pub(crate) fn reclaim(&mut self, rid: u64, next_seq: &mut dyn FnMut() -> u64, out: &mut Vec<LockOut>) {
        let _ = (rid, next_seq, out);
        todo!()
    }
}
