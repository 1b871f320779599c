//! What the server answers without waiting for its trees: lock traffic, and questions about the last commit.
//!
//! **Problem.** The server's thread applies requests to the trees and then waits for the device. A lock that two mounts hand to
//! and fro has nothing to do with that, and neither has whoever asks for the roots of the last commit; behind a commit they
//! would wait for flushes of mounts that they know nothing of.
//!
//! **Idea.** The lock server and the last commit are at a desk of their own. The thread that reads a client's socket goes there
//! itself, if the message is for the desk, and sends what follows; only what needs the trees goes on to the server's thread,
//! which works with the same desk. A mount inside the process may deliver on a thread that holds its own locks, so its
//! messages all go to the server's thread (see `net::receive`).
//!
//! Messages about different locks do not wait for each other here either: the names are shared out among several lock servers,
//! each with a place of its own at the desk.
//!
//! Invariants
//! 1. What the lock server says about a lock is queued to the clients in the order in which it was decided: while its place
//!    is locked.
//! 2. No lock is given to a mount that is not admitted; one whose locks are taken back stops being admitted at a place in the
//!    same moment.
//! 3. Lock order: the places by number, then connections. Nobody who holds anything of a connection comes to the desk.

use std::collections::BTreeMap;

use crossbeam::utils::CachePadded;
use zerocopy::IntoBytes;

use crate::error::{Errno, Result};
use crate::format::layout::{NetLock, NetRoots};
use crate::lock::{self, LockName, LockOut, LockReport, LockServer, Recovered, SERVER_SHARDS, wire};
use crate::net::{Command, Direct, Mail, ServerEvent};
use crate::sync::{Arc, HashMap, HashSet, Instant, Mutex};

use super::trees::{CoreSeq, Published};

/// One of those who share the names.
struct Place {
    locks: LockServer,
    /// Mounts that have greeted and whose locks have not been taken back.
    admitted: HashSet<u64>,
    /// When mounts last said something here, since somebody asked.
    heard: HashMap<u64, Instant>,
}

/// See the module documentation.
pub(crate) struct Desk {
    /// As many as [`SERVER_SHARDS`].
    places: Box<[CachePadded<Mutex<Place>>]>,
    published: Mutex<Arc<Published>>,
    /// The volume's sequence counter: a lock that allows writing is granted with a number of its own.
    seq: Arc<CoreSeq>,
}

/// The place for a LOCK payload. Those that nobody can read go to the first, which refuses them.
fn place(lock: Option<&NetLock>) -> usize {
    lock.and_then(|lock| LockName::from_key(&lock.key.to_key())).map_or(0, |name| name.shard())
}

impl Desk {
    /// No locks yet. While `recovering`, none is granted.
    pub(super) fn new(recovering: bool, seq: Arc<CoreSeq>, published: Arc<Published>) -> Arc<Desk> {
        let place = |_| {
            let locks = LockServer::new(recovering);
            CachePadded::new(Mutex::new(Place { locks, admitted: HashSet::default(), heard: HashMap::default() }))
        };
        Arc::new(Desk { places: (0..SERVER_SHARDS).map(place).collect(), published: Mutex::new(published), seq })
    }

    /// Lets a lock server do something and sends what it says.
    fn locks<R>(&self, place: usize, mail: &mut dyn Mail, work: impl FnOnce(&mut Place, &mut Vec<LockOut>) -> R) -> R {
        let mut place = self.places[place].lock();
        let mut out = Vec::new();
        let result = work(&mut place, &mut out);
        for message in out {
            match message {
                LockOut::Grant { rid, id, lock } => {
                    mail.respond(rid, id, Command::Lock, Ok(lock.as_bytes().to_vec()));
                }
                LockOut::Invalidate { rid, lock } => match mail.request(rid, Command::Lock, lock.as_bytes()) {
                    Ok(id) => place.locks.invalidate_sent(rid, &lock, id),
                    Err(e) => tracing::debug!(rid, error = %e, "an invalidation waits for the reclaim of its client"),
                },
            }
        }
        result
    }

    /// A LOCK request.
    pub(super) fn request(&self, rid: u64, id: u64, payload: &[u8], mail: &mut dyn Mail) {
        let lock = wire::parse_lock(payload);
        let done = self.locks(place(lock.as_ref().ok()), mail, |place, out| {
            if !place.admitted.contains(&rid) {
                return Err(None);
            }
            let lock = lock.map_err(Some)?;
            place.locks.request(rid, id, &lock, &mut || self.seq.next(), out).map_err(Some)
        });
        match done {
            Ok(()) => {}
            // A mount that was reclaimed owns nothing any more and must not begin to.
            Err(None) => mail.respond(rid, id, Command::Lock, Err(Errno::EIO.into())),
            // Lock messages never carry an error (`spec/04 §6.1`).
            Err(Some(e)) => mail.break_client(rid, &format!("lock request refused: {e}")),
        }
    }

    /// A LOCK response. An error says that the client has lied about a mode: it would keep what it was asked to give up.
    pub(super) fn response(&self, rid: u64, id: u64, payload: &[u8], mail: &mut dyn Mail) -> Result<()> {
        let lock = wire::parse_lock(payload)?;
        self.locks(place(Some(&lock)), mail, |place, out| {
            place.locks.response(rid, id, &lock, &mut || self.seq.next(), out)
        })
    }

    /// A part of what a mount of an earlier server holds.
    pub(super) fn recovered(&self, rid: u64, locks: &[NetLock]) -> Result<Recovered> {
        let mut places: Vec<_> = self.places.iter().map(|place| place.lock()).collect();
        let mut servers: Vec<_> = places.iter_mut().map(|place| &mut place.locks).collect();
        let recovered = lock::recovered(&mut servers, rid, locks, self.seq.now())?;
        self.seq.raise(recovered.max_write_seq);
        Ok(recovered)
    }

    /// All mounts of earlier servers have reported or are gone: what waits is granted.
    pub(super) fn end_recovery(&self, mail: &mut dyn Mail) {
        for place in 0..SERVER_SHARDS {
            self.locks(place, mail, |place, out| {
                place.locks.set_recovery_pending(false, &mut || self.seq.next(), out);
            });
        }
    }

    /// The mount may ask for locks.
    pub(super) fn admit(&self, rid: u64) {
        for place in &self.places {
            place.lock().admitted.insert(rid);
        }
    }

    /// Takes all locks of a mount back.
    pub(super) fn reclaim(&self, rid: u64, mail: &mut dyn Mail) {
        for place in 0..SERVER_SHARDS {
            self.locks(place, mail, |place, out| {
                place.admitted.remove(&rid);
                place.heard.remove(&rid);
                place.locks.reclaim(rid, &mut || self.seq.next(), out);
            });
        }
    }

    /// A commit is durable.
    pub(super) fn publish(&self, published: &Arc<Published>) {
        *self.published.lock() = published.clone();
    }

    /// The answer to a question about the last commit.
    pub(super) fn answer(&self, cmd: Command) -> Option<Vec<u8>> {
        let published = self.published.lock().clone();
        let sup = &published.sup;
        match cmd {
            Command::GetRoots => {
                let (fs_root, logs_root, srch_root) = (sup.fs_root, sup.logs_root, sup.srch_root);
                Some(NetRoots { fs_root, logs_root, srch_root }.as_bytes().to_vec())
            }
            Command::Statfs => Some(published.statfs().as_bytes().to_vec()),
            Command::GetVolopt => Some(sup.volopt.as_bytes().to_vec()),
            _ => None,
        }
    }

    /// Who said something here since the last call, and when.
    pub(super) fn heard(&self) -> HashMap<u64, Instant> {
        let mut all = HashMap::default();
        for place in &self.places {
            for (rid, at) in std::mem::take(&mut place.lock().heard) {
                let last = all.entry(rid).or_insert(at);
                *last = at.max(*last);
            }
        }
        all
    }

    /// The clients that owe an answer, each with the number of the oldest invalidation.
    pub(super) fn owing(&self) -> BTreeMap<u64, u64> {
        let mut all = BTreeMap::new();
        for place in &self.places {
            for (rid, id) in place.lock().locks.owing() {
                let oldest = all.entry(rid).or_insert(id);
                *oldest = id.min(*oldest);
            }
        }
        all
    }

    /// Locks in memory.
    pub(super) fn lock_count(&self) -> usize {
        self.places.iter().map(|place| place.lock().locks.len()).sum()
    }

    /// At most `max` locks, those first that somebody waits for.
    pub(super) fn report(&self, max: usize) -> Vec<LockReport> {
        let mut all: Vec<_> = self.places.iter().flat_map(|place| place.lock().locks.report(max)).collect();
        all.sort_unstable_by_key(|(order, _)| *order);
        all.into_iter().take(max).map(|(_, report)| report).collect()
    }

    /// For tests.
    #[cfg(test)]
    pub(super) fn dump(&self) -> Vec<String> {
        self.places.iter().flat_map(|place| place.lock().locks.dump()).collect()
    }
}

/// What lock the message is about.
fn lock_of(event: &ServerEvent) -> Option<NetLock> {
    match event {
        ServerEvent::Request { cmd: Command::Lock, payload, .. }
        | ServerEvent::Response { cmd: Command::Lock, result: Ok(payload), .. } => wire::parse_lock(payload).ok(),
        _ => None,
    }
}

impl Direct for Desk {
    fn take(&self, event: ServerEvent, mail: &mut dyn Mail) -> Option<ServerEvent> {
        let (ServerEvent::Request { rid, .. } | ServerEvent::Response { rid, .. }) = &event else { return Some(event) };
        let rid = *rid;
        {
            let mut place = self.places[place(lock_of(&event).as_ref())].lock();
            if !place.admitted.contains(&rid) {
                return Some(event);
            }
            place.heard.insert(rid, Instant::now());
        }
        match event {
            ServerEvent::Request { id, cmd: Command::Lock, payload, .. } => {
                self.request(rid, id, &payload, mail);
                None
            }
            ServerEvent::Response { id, cmd: Command::Lock, result: Ok(payload), .. } => {
                match self.response(rid, id, &payload, mail) {
                    Ok(()) => None,
                    // Nothing was changed; the server's thread comes to the same end and knows what to do about it.
                    Err(_) => Some(ServerEvent::Response { rid, id, cmd: Command::Lock, result: Ok(payload) }),
                }
            }
            ServerEvent::Request { id, cmd, payload, .. } => match self.answer(cmd).filter(|_| payload.is_empty()) {
                Some(answer) => {
                    mail.respond(rid, id, cmd, Ok(answer));
                    None
                }
                None => Some(ServerEvent::Request { rid, id, cmd, payload }),
            },
            other => Some(other),
        }
    }
}
