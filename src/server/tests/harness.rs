//! A server core with recorded messages and a clock of its own, and a client that really writes log trees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, IntoBytes};

use super::super::core::{CoreConfig, Event, Peers, ServerCore};
use super::super::fence::FenceReason;
use super::super::trees::Trees;
use crate::alloc::{Bounds, DataAlloc, MetaAlloc};
use crate::block::{BlockStore, Cow, DirtySet};
use crate::btree::{self, LogItem, MergeArgs, MergeEnd, Reader};
use crate::device::{BlockDevice, MemDevice};
use crate::error::{Errno, Error, Result};
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{DataBlock, Ino, Key, KeyRange, keys};
use crate::net::{Command, Mail, ServerEvent};
use crate::offline::{MkfsOptions, mkfs};
use crate::sync::Arc;

pub(super) const MIB: u64 = 1 << 20;
const CACHE: usize = 64 << 20;

/// Two devices with a fresh volume; `slots` quorum slots.
pub(super) fn volume(meta_bytes: u64, data_bytes: u64, slots: usize) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let (meta, data) = (MemDevice::new(meta_bytes), MemDevice::new(data_bytes));
    let quorum_slots = (0..slots).map(|i| format!("{i},127.0.0.1,{}", 5000 + i).parse().unwrap()).collect();
    mkfs(&*meta, &*data, &MkfsOptions { quorum_slots, allow_small: true, ..MkfsOptions::default() }).unwrap();
    (meta, data)
}

pub(super) fn open_store(meta: Arc<dyn BlockDevice>) -> Arc<BlockStore> {
    let fsid = super::super::shadow::read_super(&*meta).unwrap().hdr.fsid.get();
    BlockStore::new(meta, fsid, CACHE)
}

/// Everything the core said.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) responses: BTreeMap<(u64, u64), Result<Vec<u8>>>,
    pub(super) requests: Vec<(u64, u64, Command, Vec<u8>)>,
    pub(super) greeted: BTreeMap<u64, Result<()>>,
    pub(super) dropped: Vec<u64>,
    pub(super) broken: Vec<u64>,
    pub(super) fences: Vec<(u64, FenceReason)>,
    pub(super) away: BTreeSet<u64>,
    last_id: u64,
}

impl Mail for Wire {
    fn respond(&mut self, rid: u64, id: u64, _cmd: Command, result: Result<Vec<u8>>) {
        assert!(self.responses.insert((rid, id), result).is_none(), "request {id} of {rid} answered twice");
    }

    fn request(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> Result<u64> {
        if self.away.contains(&rid) {
            return Err(Errno::ENOTCONN.into());
        }
        self.last_id += 1;
        self.requests.push((rid, self.last_id, cmd, payload.to_vec()));
        Ok(self.last_id)
    }

    fn break_client(&mut self, rid: u64, _why: &str) {
        self.broken.push(rid);
    }
}

impl Peers for Wire {
    fn is_away(&self, rid: u64) -> bool {
        self.away.contains(&rid)
    }

    fn greeting_done(&mut self, token: u64, result: Result<()>) {
        assert!(self.greeted.insert(token, result).is_none(), "greeting {token} answered twice");
    }

    fn drop_client(&mut self, rid: u64) {
        self.dropped.push(rid);
    }

    fn fence(&mut self, rid: u64, _addr: Option<IpAddr>, reason: FenceReason) {
        self.fences.push((rid, reason));
    }
}

pub(super) struct TestServer {
    pub(super) core: ServerCore,
    pub(super) wire: Wire,
    pub(super) now: Instant,
    last_id: u64,
}

impl TestServer {
    pub(super) fn open(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> TestServer {
        TestServer::try_open(meta, data, &[]).unwrap()
    }

    pub(super) fn try_open(
        meta: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        fenced: &[u64],
    ) -> Result<TestServer> {
        TestServer::try_open_as(meta, data, fenced, false)
    }

    pub(super) fn try_open_as(
        meta: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        fenced: &[u64],
        private: bool,
    ) -> Result<TestServer> {
        let trees = Trees::open(open_store(meta), Some(data), true)?;
        let now = Instant::now();
        let config = CoreConfig {
            votes_needed: crate::quorum::votes_needed(&trees.sup.qconf),
            merge_wait: Duration::from_millis(500),
            private,
            only_mount: None,
        };
        let core = ServerCore::new(trees, config, fenced, now)?;
        Ok(TestServer { core, wire: Wire::default(), now, last_id: 0 })
    }

    pub(super) fn store(&self) -> Arc<BlockStore> {
        self.core.trees.store.clone()
    }

    pub(super) fn event(&mut self, event: Event) -> Result<()> {
        self.core.handle(self.now, event, &mut self.wire)
    }

    /// Rounds until nothing more happens without a message or time passing.
    pub(super) fn run(&mut self) -> Result<()> {
        for _ in 0..100_000 {
            self.core.round(self.now, &mut self.wire)?;
            match self.core.next_round() {
                Some(None) => {}
                Some(Some(at)) if at <= self.now => {}
                _ => return Ok(()),
            }
        }
        panic!("the server does not come to rest");
    }

    pub(super) fn advance(&mut self, by: Duration) -> Result<()> {
        self.now += by;
        self.run()
    }

    /// Greets as the NET layer would announce it; the answer.
    pub(super) fn greet(&mut self, rid: u64, server_term: u64, flags: u64) -> Result<()> {
        self.last_id += 1;
        let token = self.last_id;
        let greeting = NetGreeting {
            fsid: self.core.trees.store.fsid().into(),
            fmt_vers: 2.into(),
            server_term: server_term.into(),
            rid: rid.into(),
            flags: flags.into(),
        };
        let peer = "127.0.0.1:4242".parse().unwrap();
        self.event(Event::Net(ServerEvent::Greeting { token, rid, greeting, peer, first_contact: true }))?;
        self.run()?;
        self.wire.greeted.remove(&token).expect("a greeting is answered")
    }

    pub(super) fn mount(&mut self, rid: u64) {
        self.greet(rid, 0, 0).unwrap();
    }

    /// Hands in a request without letting the core work.
    pub(super) fn send(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.event(Event::Net(ServerEvent::Request { rid, id, cmd, payload: payload.to_vec() })).unwrap();
        id
    }

    pub(super) fn taken(&mut self, rid: u64, id: u64) -> Option<Result<Vec<u8>>> {
        self.wire.responses.remove(&(rid, id))
    }

    /// A request and its answer; waits for deadlines if it has to.
    pub(super) fn call(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> Result<Vec<u8>> {
        let id = self.send(rid, cmd, payload);
        loop {
            self.run()?;
            if let Some(answer) = self.taken(rid, id) {
                return answer;
            }
            match self.core.next_round() {
                Some(Some(at)) => self.now = self.now.max(at),
                _ => panic!("{cmd:?} of {rid} is not answered"),
            }
        }
    }

    pub(super) fn call_for<T: FromBytes>(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> Result<T> {
        Ok(T::read_from_bytes(&self.call(rid, cmd, payload)?).expect("the length of an answer"))
    }

    /// Messages to this client of this kind, removed.
    pub(super) fn requests_to(&mut self, rid: u64, cmd: Command) -> Vec<(u64, Vec<u8>)> {
        let (take, keep): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wire.requests).into_iter().partition(|r| r.0 == rid && r.2 == cmd);
        self.wire.requests = keep;
        take.into_iter().map(|r| (r.1, r.3)).collect()
    }

    pub(super) fn respond(&mut self, rid: u64, id: u64, cmd: Command, payload: Vec<u8>) {
        self.event(Event::Net(ServerEvent::Response { rid, id, cmd, result: Ok(payload) })).unwrap();
    }

    pub(super) fn lock(&mut self, rid: u64, key: Key, old: u8, new: u8) -> u64 {
        let lock = NetLock { key: key.into(), write_seq: 0.into(), old_mode: old, new_mode: new, pad: [0; 6] };
        self.send(rid, Command::Lock, lock.as_bytes())
    }

    /// Answers LOCK_RECOVER with nothing, as a client without locks.
    pub(super) fn recover_empty(&mut self, rid: u64) {
        for (id, _) in self.requests_to(rid, Command::LockRecover) {
            self.respond(rid, id, Command::LockRecover, vec![0; 8]);
        }
        self.run().unwrap();
    }
}

/// The errno of a refused request.
pub(super) fn errno<T>(result: Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(e) => e.errno(),
    }
}

/// A mount that writes inode-like items and data blocks, and remembers what it wrote.
pub(super) struct SimClient {
    pub(super) rid: u64,
    pub(super) lt: LogTrees,
    store: Arc<BlockStore>,
    data_blocks: u64,
    /// Data extents that files of this mount use.
    pub(super) data: Vec<(u64, u64)>,
}

/// Key of the item `n`.
pub(super) fn item_key(n: u64) -> Key {
    keys::inode(Ino(10_000 + n))
}

impl SimClient {
    pub(super) fn open(server: &mut TestServer, rid: u64) -> SimClient {
        let lt = server.call_for(rid, Command::GetLogTrees, &[]).unwrap();
        let data_blocks = server.core.trees.sup.total_data_blocks.get();
        SimClient { rid, lt, store: server.store(), data_blocks, data: Vec::new() }
    }

    pub(super) fn reopen(&mut self, server: &mut TestServer) -> Result<()> {
        self.lt = server.call_for(self.rid, Command::GetLogTrees, &[])?;
        self.store = server.store();
        Ok(())
    }

    /// Writes items (with values of `len` bytes), takes `take` data blocks and frees `free` extents; the record to commit.
    pub(super) fn write(
        &mut self,
        items: impl Iterator<Item = u64>,
        len: usize,
        take: u64,
        free: usize,
    ) -> Result<LogTrees> {
        let mut lt = self.lt;
        let mut dirty = DirtySet::new();
        let mut alloc = MetaAlloc::new(self.store.clone(), lt.meta_avail, lt.meta_freed);
        let bounds = Bounds::data(self.data_blocks);
        let mut data = DataAlloc::new(self.store.clone(), bounds, lt.data_avail, lt.data_freed);
        let numbers: BTreeSet<u64> = items.collect();
        let value = vec![7u8; len];
        let list =
            numbers.iter().map(|n| LogItem { key: item_key(*n), seq: lt.get_trans_seq.get(), flags: 0, value: &value });
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut alloc };
        btree::insert_list(&mut cow, &mut lt.item_root, list, keys::is_delta)?;
        let mut wanted = take;
        let mut taken = Vec::new();
        while wanted > 0 {
            match data.alloc(wanted.min(3)) {
                Ok((start, got)) => {
                    taken.push((start.0, got));
                    wanted -= got;
                }
                Err(Error::NeedCommit) => break,
                Err(e) if e.is(Errno::ENOSPC) => break,
                Err(e) => return Err(e),
            }
        }
        let free = free.min(self.data.len());
        for (start, len) in self.data.drain(..free) {
            data.free(DataBlock(start), len)?;
        }
        self.data.extend(taken);
        (lt.data_avail, lt.data_freed) = data.finish(&mut cow)?;
        (lt.meta_avail, lt.meta_freed) = alloc.finish(&mut dirty)?;
        dirty.write_out(&self.store)?;
        self.store.flush()?;
        if !numbers.is_empty() {
            lt.max_item_seq = lt.get_trans_seq;
        }
        lt.inode_count_delta = lt.inode_count_delta.get().wrapping_add(numbers.len() as u64).into();
        Ok(lt)
    }

    pub(super) fn commit(&mut self, server: &mut TestServer, lt: &LogTrees) -> Result<()> {
        server.call(self.rid, Command::CommitLogTrees, lt.as_bytes()).map(|_| ())
    }

    /// A whole transaction.
    pub(super) fn cycle(&mut self, server: &mut TestServer, items: std::ops::Range<u64>) -> Result<()> {
        let lt = self.write(items, 160, 40, 7)?;
        self.commit(server, &lt)?;
        self.reopen(server)
    }
}

/// Does one merge request; `dirty_limit` in bytes makes it stop early.
pub(super) fn merge_once(server: &mut TestServer, rid: u64, dirty_limit: u64) -> Result<()> {
    let request: LogMergeRequest = server.call_for(rid, Command::GetLogMerge, &[])?;
    let complete = do_merge(server, &request, dirty_limit)?;
    server.call(rid, Command::CommitLogMerge, complete.as_bytes())?;
    Ok(())
}

pub(super) fn do_merge(server: &TestServer, request: &LogMergeRequest, dirty_limit: u64) -> Result<LogMergeComplete> {
    let store = server.store();
    let reader = Reader::new(&store);
    let mut inputs = Vec::new();
    let mut at = Key::ZEROS;
    while let Some((key, item)) = btree::next(&reader, &request.logs_root, &at)? {
        let lt = LogTrees::read_from_bytes(&item.value).unwrap();
        let input = lt.flags.get() & LOG_TREES_FINALIZED != 0 && lt.finalize_seq < request.input_seq;
        if input && lt.item_root.height > 0 {
            inputs.push(lt.item_root);
        }
        at = key.next();
    }
    let mut dirty = DirtySet::new();
    let mut alloc = MetaAlloc::new(store.clone(), request.meta_avail, request.meta_freed);
    let mut root = request.root;
    let end = btree::merge(
        &mut Cow { store: &store, dirty: &mut dirty, alloc: &mut alloc },
        &mut root,
        &MergeArgs {
            inputs: &inputs,
            range: KeyRange::new(request.start.to_key(), request.end.to_key()),
            subtree: request.flags.get() & LOG_MERGE_REQUEST_SUBTREE != 0,
            window_bytes: 64 << 10,
            dirty_limit,
            low_blocks: 10,
            delta: keys::is_delta,
        },
    )?;
    let (meta_avail, meta_freed) = alloc.finish(&mut dirty)?;
    dirty.write_out(&store)?;
    store.flush()?;
    let (remain, flags) = match end {
        MergeEnd::Done => (request.end, 0),
        MergeEnd::Remain(key) => (key.into(), LOG_MERGE_COMPLETE_REMAIN),
    };
    Ok(LogMergeComplete {
        meta_avail,
        meta_freed,
        root,
        start: request.start,
        end: request.end,
        remain,
        rid: request.rid,
        seq: request.seq,
        flags: flags.into(),
    })
}
