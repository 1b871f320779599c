//! The server's side of the lock protocol: who holds what, who waits, who was asked to give up (`spec/04 §8, §9`).
//!
//! Problem: many nodes ask for modes of many locks; what is granted at the same time must be compatible, nobody may
//! starve, and all of it must be rebuilt from what the nodes report when another node becomes the server.
//!
//! Idea: three short lists of client entries for each lock (granted, requested, invalidated), one function
//! ([`LockServer::process`]) that runs after every change of a lock, and an index from each client to the locks that
//! mention it, so that a departure costs what the client holds and not what the volume holds. No I/O: inputs are
//! messages, outputs are [`LockOut`] values in the order in which they must be queued.
//!
//! 1. A client has at most one entry in granted ∪ invalidated and at most one in requested of a lock.
//! 2. Nothing is granted while an invalidation of the lock is unanswered or a client is in lock recovery (S-9).
//! 3. What is granted together is compatible, except for phantoms that recovery brought (`spec/04 §9.3`).
//! 4. Requests are served in order; shared modes may pass a waiting head at most `read_batch` times (L-3).
//! 5. The index of a client names exactly the locks that mention it.
//!
//! What it does not do: it keeps nothing on disk, has no timer, and does not decide who is in recovery.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use super::index::{Index, Names};
use super::wire::{Checked, RECOVER_MAX, check, net_lock};
use super::{LockName, Mode};
use crate::error::{Errno, Result, fail};
use crate::format::Key;
use crate::format::layout::NetLock;
use crate::sync::HashMap;

/// How often requests for shared modes may pass one waiting head.
const READ_BATCH: u32 = 8;
/// Most locks that one client may hold or ask for at one of the servers that share the names; far above its share of the greatest idle
/// count of any client.
const CLIENT_LOCKS_MAX: usize = 1 << 17;
/// A reported write_seq may be at most this far ahead of the counter.
const WRITE_SEQ_AHEAD: u64 = 1 << 48;

/// What the server has to send because of an input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LockOut {
    /// The LOCK response (M2) to request `id` of client `rid`.
    Grant { rid: u64, id: u64, lock: NetLock },
    /// A LOCK request (M3) to client `rid`. When it is queued, its message id must be told by
    /// [`LockServer::invalidate_sent`]; if the client is gone (ENOTCONN), nothing needs to be done: reclaim follows.
    Invalidate { rid: u64, lock: NetLock },
}

/// One lock as the server sees it, for people. The parties are rids with the modes they have or want.
#[derive(Clone, Debug)]
pub struct LockReport {
    /// The first key that the lock covers.
    pub name: String,
    /// Who holds it.
    pub held: Vec<(u64, String)>,
    /// Who holds it still, and has been asked to give it up or to reduce it.
    pub giving_up: Vec<(u64, String)>,
    /// Who waits for it, in order.
    pub waiting: Vec<(u64, String)>,
}

/// What [`LockServer::recovered`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Where to continue asking; `None`: the client has reported all its locks.
    pub(crate) next: Option<Key>,
    /// The greatest write_seq reported; the volume's sequence counter must be raised to it.
    pub(crate) max_write_seq: u64,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    rid: u64,
    mode: Mode,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    rid: u64,
    id: u64,
    mode: Mode,
    /// How many later requests were granted before this one while it was the head.
    passed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Invalidated {
    rid: u64,
    mode: Mode,
    target: Mode,
    /// Message id of the invalidation, once it is queued.
    id: Option<u64>,
}

/// Who waits for a lock, and who was asked for their sake.
#[derive(Default, Debug)]
struct Waiting {
    requested: SmallVec<[Request; 2]>,
    invalidated: SmallVec<[Invalidated; 2]>,
}

/// Most locks are only held: what they need lies together, and there is no more of it than that.
#[derive(Default, Debug)]
struct ServerLock {
    granted: SmallVec<[Granted; 2]>,
    /// `None` for nobody.
    waiting: Option<Box<Waiting>>,
}

/// With its name it is in one or two lines of the processor's cache.
const _: () = assert!(size_of::<(LockName, ServerLock)>() == 56);

impl ServerLock {
    fn requested(&self) -> &[Request] {
        self.waiting.as_ref().map_or(&[], |w| &w.requested)
    }

    fn invalidated(&self) -> &[Invalidated] {
        self.waiting.as_ref().map_or(&[], |w| &w.invalidated)
    }

    fn waiting_mut(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    /// True if nobody mentions the lock any more.
    fn tidy(&mut self) -> bool {
        if self.requested().is_empty() && self.invalidated().is_empty() {
            self.waiting = None;
        }
        self.waiting.is_none() && self.granted.is_empty()
    }

    fn has_grant(&self, rid: u64) -> bool {
        self.granted.iter().any(|g| g.rid == rid) || self.invalidated().iter().any(|i| i.rid == rid)
    }

    fn has_request(&self, rid: u64) -> bool {
        self.requested().iter().any(|q| q.rid == rid)
    }

    fn forget(&mut self, rid: u64) {
        self.granted.retain(|g| g.rid != rid);
        if let Some(waiting) = &mut self.waiting {
            waiting.requested.retain(|q| q.rid != rid);
            waiting.invalidated.retain(|i| i.rid != rid);
        }
    }

    fn conflicts(&self, q: &Request) -> bool {
        self.granted.iter().any(|g| !g.mode.compatible(q.mode, g.rid == q.rid))
    }

    /// A later request for a shared mode that nothing granted forbids, if the head may be passed once more.
    fn passing(&self, read_batch: u32) -> Option<usize> {
        let requested = self.requested();
        if requested.first()?.passed >= read_batch {
            return None;
        }
        let shared = |m: Mode| matches!(m, Mode::Read | Mode::WriteOnly);
        (1..requested.len()).find(|&i| shared(requested[i].mode) && !self.conflicts(&requested[i]))
    }

    /// Grants what `q` asks for; the client's old entry is replaced.
    fn grant(&mut self, name: LockName, q: Request, next_seq: &mut dyn FnMut() -> u64) -> LockOut {
        let old = match self.granted.iter().position(|g| g.rid == q.rid) {
            Some(at) => self.granted.remove(at).mode,
            None => Mode::Null,
        };
        let write_seq = if q.mode.writes() { next_seq() } else { 0 };
        if q.mode != Mode::Null {
            self.granted.push(Granted { rid: q.rid, mode: q.mode });
        }
        LockOut::Grant { rid: q.rid, id: q.id, lock: net_lock(name, old, q.mode, write_seq) }
    }

    /// Asks everybody whose mode conflicts with `head` to go down.
    fn invalidate_for(&mut self, head: Request, name: LockName, out: &mut Vec<LockOut>) {
        let mut i = 0;
        while i < self.granted.len() {
            let g = self.granted[i];
            if g.mode.compatible(head.mode, g.rid == head.rid) {
                i += 1;
                continue;
            }
            let target = g.mode.invalidation_target(head.mode);
            self.granted.remove(i);
            self.waiting_mut().invalidated.push(Invalidated { rid: g.rid, mode: g.mode, target, id: None });
            out.push(LockOut::Invalidate { rid: g.rid, lock: net_lock(name, g.mode, target, 0) });
        }
    }
}

/// What the server knows of one client.
#[derive(Default, Debug)]
struct Client {
    locks: Names,
    /// Invalidations that were queued to it and not answered, by message id.
    asked: BTreeMap<u64, LockName>,
    /// During its recovery: the least key that the next report may start with.
    cursor: Option<Key>,
}

/// Lock state of the elected server: of all names, or of those of one [`LockName::shard`].
pub(crate) struct LockServer {
    locks: Index<ServerLock>,
    clients: HashMap<u64, Client>,
    recovery_pending: bool,
    /// Locks that got requests while recovery was pending.
    deferred: BTreeSet<LockName>,
    read_batch: u32,
}

/// A LOCK_RECOVER response (M6) of a client that is pending, to the servers that share the names, in the order of
/// [`LockName::shard`]; `seq_now` is the present value of the sequence counter.
///
/// Null entries are not recorded (W-11). An error means: close the connection; nothing was recorded.
pub(crate) fn recovered(
    servers: &mut [&mut LockServer],
    rid: u64,
    locks: &[NetLock],
    seq_now: u64,
) -> Result<Recovered> {
    if locks.len() > RECOVER_MAX {
        return fail(Errno::EINVAL);
    }
    let mut last = servers.iter().filter_map(|s| s.clients.get(&rid)?.cursor).max();
    let mut parts = vec![Vec::new(); servers.len()];
    for l in locks {
        let start = l.key.to_key();
        if last.is_some_and(|last| start < last) {
            return fail(Errno::EINVAL);
        }
        last = Some(start.next());
        parts[check(l)?.name.shard()].push(*l);
    }
    let checked = servers.iter().zip(&parts).map(|(server, part)| server.check_report(rid, part, seq_now));
    let checked: Vec<_> = checked.collect::<Result<_>>()?;
    let mut all = Recovered { next: None, max_write_seq: 0 };
    for (server, entries) in servers.iter_mut().zip(&checked) {
        // Whose part is empty has no news unless the whole report is.
        if !entries.is_empty() || locks.is_empty() {
            let part = server.record(rid, entries);
            all.next = all.next.max(part.next);
            all.max_write_seq = all.max_write_seq.max(part.max_write_seq);
        }
    }
    Ok(all)
}

impl LockServer {
    /// An empty server; nothing is granted while `recovery_pending`.
    pub(crate) fn new(recovery_pending: bool) -> LockServer {
        LockServer {
            locks: Index::default(),
            clients: HashMap::default(),
            recovery_pending,
            deferred: BTreeSet::new(),
            read_batch: READ_BATCH,
        }
    }

    /// Strict order of requests, as the original serves them.
    #[cfg(test)]
    pub(crate) fn without_batching(mut self) -> LockServer {
        self.read_batch = 0;
        self
    }

    /// A LOCK request (M1). `next_seq` gives a fresh value of the volume's sequence counter. An error means: close the
    /// connection; nothing was changed.
    pub(crate) fn request(
        &mut self,
        rid: u64,
        id: u64,
        lock: &NetLock,
        next_seq: &mut dyn FnMut() -> u64,
        out: &mut Vec<LockOut>,
    ) -> Result<()> {
        let Checked { name, new, .. } = check(lock)?;
        let client = self.clients.entry(rid).or_default();
        if client.locks.len() >= CLIENT_LOCKS_MAX && !client.locks.contains(&name) {
            return fail(Errno::ENOBUFS);
        }
        let entry = self.locks.entry(name);
        if entry.has_request(rid) {
            return fail(Errno::EINVAL);
        }
        client.locks.insert(name);
        let q = Request { rid, id, mode: new, passed: 0 };
        if new == Mode::Null || self.recovery_pending || entry.waiting.is_some() || entry.conflicts(&q) {
            entry.waiting_mut().requested.push(q);
            self.process(name, next_seq, out);
        } else {
            out.push(entry.grant(name, q, next_seq));
        }
        Ok(())
    }

    /// The invalidation of `lock` was queued to `rid` as message `id`.
    pub(crate) fn invalidate_sent(&mut self, rid: u64, lock: &NetLock, id: u64) {
        let Some(name) = LockName::from_key(&lock.key.to_key()) else { return };
        let Some(entry) = self.locks.get_mut(&name) else { return };
        let invalidated = entry.waiting.as_mut().map_or(&mut [][..], |w| &mut w.invalidated);
        if let Some(inv) = invalidated.iter_mut().find(|i| i.rid == rid) {
            inv.id = Some(id);
            self.clients.entry(rid).or_default().asked.insert(id, name);
        }
    }

    /// The clients that owe an answer, each with the number of the oldest invalidation.
    pub(crate) fn owing(&self) -> impl Iterator<Item = (u64, u64)> {
        self.clients.iter().filter_map(|(rid, client)| Some((*rid, *client.asked.first_key_value()?.0)))
    }

    /// A LOCK response (M4). A response whose id is not outstanding, or is but names another lock or mode than was asked
    /// about, is left over from another server and ignored (`spec/04` W-5). An error means: close the connection.
    pub(crate) fn response(
        &mut self,
        rid: u64,
        id: u64,
        lock: &NetLock,
        next_seq: &mut dyn FnMut() -> u64,
        out: &mut Vec<LockOut>,
    ) -> Result<()> {
        let Checked { name, old, new, .. } = check(lock)?;
        let Some(client) = self.clients.get_mut(&rid) else { return Ok(()) };
        if client.asked.get(&id) != Some(&name) {
            return Ok(());
        }
        let Some(entry) = self.locks.get_mut(&name) else { return Ok(()) };
        let Some(at) = entry.invalidated().iter().position(|i| i.rid == rid && i.id == Some(id)) else { return Ok(()) };
        let inv = entry.invalidated()[at];
        if old != inv.mode {
            return Ok(());
        }
        if inv.target.lowered_to(new) != new {
            return fail(Errno::EINVAL);
        }
        client.asked.remove(&id);
        entry.waiting_mut().invalidated.remove(at);
        if new != Mode::Null {
            entry.granted.push(Granted { rid, mode: new });
        } else if !entry.has_request(rid) {
            client.locks.remove(&name);
        }
        self.process(name, next_seq, out);
        Ok(())
    }

    /// A LOCK_RECOVER response (M6) of a client that is pending; `seq_now` is the present value of the sequence counter.
    ///
    /// Null entries are not recorded (W-11). An error means: close the connection; nothing was recorded.
    #[cfg(test)]
    pub(crate) fn recovered(&mut self, rid: u64, locks: &[NetLock], seq_now: u64) -> Result<Recovered> {
        let entries = self.check_report(rid, locks, seq_now)?;
        Ok(self.record(rid, &entries))
    }

    fn check_report(&self, rid: u64, locks: &[NetLock], seq_now: u64) -> Result<SmallVec<[Checked; RECOVER_MAX]>> {
        if !self.recovery_pending || locks.len() > RECOVER_MAX {
            return fail(Errno::EINVAL);
        }
        let client = self.clients.get(&rid);
        let mut least = client.and_then(|c| c.cursor).unwrap_or(Key::ZEROS);
        let mut entries: SmallVec<[Checked; RECOVER_MAX]> = SmallVec::new();
        for l in locks {
            let c = check(l)?;
            let start = c.name.start();
            if self.locks.get(&c.name).is_some_and(|e| e.has_grant(rid)) || entries.iter().any(|e| e.name == c.name) {
                return fail(Errno::EEXIST);
            }
            if start < least || c.write_seq > seq_now.saturating_add(WRITE_SEQ_AHEAD) {
                return fail(Errno::EINVAL);
            }
            least = start.next();
            entries.push(c);
        }
        if client.map_or(0, |c| c.locks.len()) + entries.len() > CLIENT_LOCKS_MAX {
            return fail(Errno::ENOBUFS);
        }
        Ok(entries)
    }

    /// Records what was checked; nothing at all ends the report of the client.
    fn record(&mut self, rid: u64, entries: &[Checked]) -> Recovered {
        let client = self.clients.entry(rid).or_default();
        client.cursor = entries.last().map(|c| c.name.start().next());
        for c in entries.iter().filter(|c| c.new != Mode::Null) {
            client.locks.insert(c.name);
            self.locks.entry(c.name).granted.push(Granted { rid, mode: c.new });
        }
        Recovered { next: client.cursor, max_write_seq: entries.iter().map(|c| c.write_seq).max().unwrap_or(0) }
    }

    /// Is any client still in lock recovery? Setting false processes all waiting requests, in key order.
    pub(crate) fn set_recovery_pending(
        &mut self,
        pending: bool,
        next_seq: &mut dyn FnMut() -> u64,
        out: &mut Vec<LockOut>,
    ) {
        self.recovery_pending = pending;
        if !pending {
            for name in std::mem::take(&mut self.deferred) {
                self.process(name, next_seq, out);
            }
        }
    }

    /// Forgets everything of a client that is gone; safe to repeat.
    pub(crate) fn reclaim(&mut self, rid: u64, next_seq: &mut dyn FnMut() -> u64, out: &mut Vec<LockOut>) {
        let Some(client) = self.clients.remove(&rid) else { return };
        let mut names: Vec<LockName> = client.locks.iter().collect();
        names.sort_unstable();
        for name in names {
            let Some(entry) = self.locks.get_mut(&name) else { continue };
            entry.forget(rid);
            self.process(name, next_seq, out);
        }
    }

    /// Grants and invalidates what the state of one lock now allows and demands; frees it when nobody mentions it.
    fn process(&mut self, name: LockName, next_seq: &mut dyn FnMut() -> u64, out: &mut Vec<LockOut>) {
        let Some(lock) = self.locks.get_mut(&name) else { return };
        if self.recovery_pending {
            self.deferred.insert(name);
            return;
        }
        while let Some(waiting) = lock.waiting.as_mut().filter(|w| w.invalidated.is_empty() && !w.requested.is_empty())
        {
            let head = waiting.requested[0];
            let at = if !lock.conflicts(&head) {
                0
            } else if let Some(i) = lock.passing(self.read_batch) {
                lock.waiting_mut().requested[0].passed += 1;
                i
            } else {
                lock.invalidate_for(head, name, out);
                return;
            };
            let q = lock.waiting_mut().requested.remove(at);
            out.push(lock.grant(name, q, next_seq));
            if q.mode == Mode::Null
                && let Some(c) = self.clients.get_mut(&q.rid)
            {
                c.locks.remove(&name);
            }
        }
        if lock.tidy() {
            self.locks.remove(&name);
        }
    }

    /// At most `max` locks: first those that somebody waits for, by name. With what they are to be ordered by.
    pub(crate) fn report(&self, max: usize) -> Vec<((bool, LockName), LockReport)> {
        let (mut busy, idle): (Vec<_>, Vec<_>) = self.locks.iter().partition(|(_, l)| l.waiting.is_some());
        busy.sort_unstable_by_key(|(name, _)| **name);
        busy.into_iter()
            .chain(idle)
            .take(max)
            .map(|(name, l)| {
                let report = LockReport {
                    name: name.to_string(),
                    held: l.granted.iter().map(|g| (g.rid, g.mode.to_string())).collect(),
                    giving_up: l.invalidated().iter().map(|i| (i.rid, i.mode.to_string())).collect(),
                    waiting: l.requested().iter().map(|q| (q.rid, q.mode.to_string())).collect(),
                };
                ((l.waiting.is_none(), *name), report)
            })
            .collect()
    }

    /// One line for each lock, in key order, for diagnostics.
    #[cfg(test)]
    pub(crate) fn dump(&self) -> Vec<String> {
        let mut names: Vec<&LockName> = self.locks.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        let join = |it: &mut dyn Iterator<Item = (u64, Mode)>| {
            it.map(|(rid, mode)| format!("{rid}:{mode}")).collect::<Vec<_>>().join(",")
        };
        let line = |name: &LockName| {
            let l = self.locks.get(name).expect("listed above");
            format!(
                "lock={name} granted={} requested={} invalidated={}",
                join(&mut l.granted.iter().map(|g| (g.rid, g.mode))),
                join(&mut l.requested().iter().map(|q| (q.rid, q.mode))),
                join(&mut l.invalidated().iter().map(|i| (i.rid, i.mode))),
            )
        };
        names.into_iter().map(line).collect()
    }

    /// The mode recorded for a client, granted or being invalidated.
    #[cfg(test)]
    pub(crate) fn mode_of(&self, rid: u64, name: LockName) -> Mode {
        let Some(l) = self.locks.get(&name) else { return Mode::Null };
        let granted = l.granted.iter().find(|g| g.rid == rid).map(|g| g.mode);
        granted.or_else(|| l.invalidated().iter().find(|i| i.rid == rid).map(|i| i.mode)).unwrap_or_default()
    }

    /// Locks in memory.
    pub(crate) fn len(&self) -> usize {
        self.locks.len()
    }
}
