//! The open-inode map: which inodes of a group are in use on any mount (`spec/05 §6`).
//!
//! A mount that wants to delete unlinked inodes asks the server, which asks everybody else and answers with the union.
//! A pure state machine: it returns what to send.
//!
//! Invariants
//! 1. A request is answered exactly once, when every participant of the moment it was started has answered or was
//!    reclaimed.
//! 2. Nothing is started while a mount of an earlier server may still greet: its bits would be missing.

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::little_endian::U64;

use crate::error::{Errno, Result, fail};
use crate::format::layout::{OpenInoMap, OpenInoMapArgs};

/// Most requests of one mount that may wait for answers.
const PENDING_MAX: usize = 4096;

/// What to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OmapOut {
    /// Ask a mount for its bits.
    Ask { rid: u64, args: OpenInoMapArgs },
    /// Answer the request `id` of a mount.
    Answer { rid: u64, id: u64, map: OpenInoMap },
}

#[derive(Debug)]
struct Request {
    rid: u64,
    id: u64,
    map: OpenInoMap,
    waiting: BTreeSet<u64>,
}

/// State of all open-inode map requests of one server.
#[derive(Debug, Default)]
pub(crate) struct OpenMaps {
    participants: BTreeSet<u64>,
    last_nr: u64,
    requests: BTreeMap<u64, Request>,
    /// Requests that arrived while recovery was pending.
    parked: Vec<(u64, u64, OpenInoMapArgs)>,
}

impl OpenMaps {
    /// A mount made first contact.
    pub(crate) fn join(&mut self, rid: u64) {
        self.participants.insert(rid);
    }

    /// A mount asks for the bits of a group; `recovering` says that some mount has not greeted this server yet.
    /// An error says that it asks for too many at once.
    pub(crate) fn request(
        &mut self,
        rid: u64,
        id: u64,
        args: OpenInoMapArgs,
        recovering: bool,
    ) -> Result<Vec<OmapOut>> {
        if self.parked.len() + self.requests.len() >= PENDING_MAX {
            let parked = self.parked.iter().filter(|p| p.0 == rid).count();
            if parked + self.requests.values().filter(|r| r.rid == rid).count() >= PENDING_MAX {
                return fail(Errno::ENOBUFS);
            }
        }
        if recovering {
            self.parked.push((rid, id, args));
            return Ok(Vec::new());
        }
        Ok(self.start(rid, id, args))
    }

    fn start(&mut self, rid: u64, id: u64, args: OpenInoMapArgs) -> Vec<OmapOut> {
        let waiting: BTreeSet<u64> = self.participants.iter().copied().filter(|p| *p != rid).collect();
        if waiting.is_empty() {
            return vec![OmapOut::Answer { rid, id, map: OpenInoMap { args, bits: [U64::ZERO; 16] } }];
        }
        self.last_nr += 1;
        let ask = OpenInoMapArgs { group_nr: args.group_nr, req_id: self.last_nr.into() };
        let map = OpenInoMap { args: ask, bits: [U64::ZERO; 16] };
        let out = waiting.iter().map(|p| OmapOut::Ask { rid: *p, args: ask }).collect();
        self.requests.insert(self.last_nr, Request { rid, id, map, waiting });
        out
    }

    /// A mount answered. Unknown numbers, unexpected senders and other groups are ignored.
    pub(crate) fn response(&mut self, rid: u64, got: &OpenInoMap) -> Vec<OmapOut> {
        let nr = got.args.req_id.get();
        let Some(req) = self.requests.get_mut(&nr) else { return Vec::new() };
        if got.args.group_nr != req.map.args.group_nr || !req.waiting.remove(&rid) {
            return Vec::new();
        }
        for (sum, bits) in req.map.bits.iter_mut().zip(&got.bits) {
            *sum |= *bits;
        }
        self.finish(nr)
    }

    fn finish(&mut self, nr: u64) -> Vec<OmapOut> {
        match self.requests.get(&nr) {
            Some(req) if req.waiting.is_empty() => {
                let req = self.requests.remove(&nr).expect("found just now");
                vec![OmapOut::Answer { rid: req.rid, id: req.id, map: req.map }]
            }
            _ => Vec::new(),
        }
    }

    /// A mount is gone: nobody waits for it any more and its own requests are forgotten.
    pub(crate) fn reclaim(&mut self, rid: u64) -> Vec<OmapOut> {
        self.participants.remove(&rid);
        self.parked.retain(|p| p.0 != rid);
        self.requests.retain(|_, r| r.rid != rid);
        for req in self.requests.values_mut() {
            req.waiting.remove(&rid);
        }
        let done: Vec<u64> = self.requests.iter().filter(|(_, r)| r.waiting.is_empty()).map(|(nr, _)| *nr).collect();
        done.into_iter().flat_map(|nr| self.finish(nr)).collect()
    }

    /// Every mount has greeted: start what waited for that.
    pub(crate) fn recovered(&mut self) -> Vec<OmapOut> {
        let parked = std::mem::take(&mut self.parked);
        parked.into_iter().flat_map(|(rid, id, args)| self.start(rid, id, args)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(group: u64, nr: u64) -> OpenInoMapArgs {
        OpenInoMapArgs { group_nr: group.into(), req_id: nr.into() }
    }

    fn map(group: u64, nr: u64, first: u64) -> OpenInoMap {
        let mut bits = [U64::ZERO; 16];
        bits[0] = first.into();
        OpenInoMap { args: args(group, nr), bits }
    }

    #[test]
    fn union_without_the_asker() {
        let mut o = OpenMaps::default();
        assert_eq!(o.request(1, 9, args(5, 0), false).unwrap(), [OmapOut::Answer { rid: 1, id: 9, map: map(5, 0, 0) }]);
        for rid in [1, 2, 3] {
            o.join(rid);
        }
        let out = o.request(1, 10, args(5, 0), false).unwrap();
        assert_eq!(out, [OmapOut::Ask { rid: 2, args: args(5, 1) }, OmapOut::Ask { rid: 3, args: args(5, 1) }]);
        assert!(o.response(2, &map(5, 1, 4)).is_empty());
        assert!(o.response(2, &map(5, 1, 8)).is_empty(), "each rid counts once");
        assert!(o.response(3, &map(5, 7, 8)).is_empty(), "unknown number");
        assert_eq!(o.response(3, &map(5, 1, 1)), [OmapOut::Answer { rid: 1, id: 10, map: map(5, 1, 5) }]);
    }

    #[test]
    fn a_mount_that_leaves_is_not_waited_for() {
        let mut o = OpenMaps::default();
        for rid in [1, 2, 3] {
            o.join(rid);
        }
        o.request(1, 10, args(5, 0), false).unwrap();
        o.request(3, 11, args(6, 0), false).unwrap();
        o.response(2, &map(5, 1, 4));
        assert_eq!(o.reclaim(3), [OmapOut::Answer { rid: 1, id: 10, map: map(5, 1, 4) }]);
        assert!(o.requests.is_empty(), "the request of the mount that left is forgotten");
    }

    #[test]
    fn nothing_starts_before_all_mounts_have_greeted() {
        let mut o = OpenMaps::default();
        o.join(1);
        assert!(o.request(1, 10, args(5, 0), true).unwrap().is_empty());
        o.join(2);
        assert_eq!(o.recovered(), [OmapOut::Ask { rid: 2, args: args(5, 1) }]);
    }
}
