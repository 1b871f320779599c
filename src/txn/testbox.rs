//! A server in a box for tests of items and transactions: hands out log trees, serves roots and locks, merges, and can be
//! told to fail. It keeps no crash safety of its own; what it does is visible at once.

#[cfg(test)]
mod build;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use zerocopy::{FromZeros, IntoBytes};

use super::{LogService, Txn, TxnConfig};
use crate::alloc::list::{self, ListBlock, ListVisit};
use crate::alloc::{Bounds, extents};
use crate::block::{BlockSource, BlockStore, Cow, DirtySet};
use crate::btree::{self, Reader};
use crate::device::{BlockDevice, MemDevice};
use crate::error::{Errno, Error, Result};
use crate::format::layout::{AllocListHead, BlockRef, BtreeRoot, LogTrees, NetLock, NetRoots};
use crate::format::{MetaBlock, keys};
use crate::item::{CoveringLock, ItemLock, ItemShard, Items, ItemsConfig, RootsSource};
use crate::lock::{LockClient, LockClientConfig, LockName, LockOut, LockSender, LockServer, Mode, Revoke};
use crate::sync::{Arc, Mutex, OnceLock, Weak, thread};
use std::sync::mpsc;

#[cfg(test)]
pub(crate) use build::{TestItem, lock_of};

/// Blocks given to a transaction.
const AVAIL: u64 = 4000;

/// Block numbers nobody uses, oldest first.
struct Pool(VecDeque<u64>);

impl BlockSource for Pool {
    fn alloc(&mut self) -> Result<MetaBlock> {
        self.0.pop_front().map(MetaBlock).ok_or(Error::Posix(Errno::ENOSPC))
    }
    fn free(&mut self, b: MetaBlock) -> Result<()> {
        self.0.push_back(b.0);
        Ok(())
    }
}

struct Trees {
    fs_root: BtreeRoot,
    logs_root: BtreeRoot,
    logs: BTreeMap<(u64, u64), LogTrees>,
    seq: u64,
    pool: Pool,
    data_next: u64,
}

/// What goes wrong on purpose.
#[derive(Default)]
pub(crate) struct Faults {
    /// Fail so many COMMITs before doing anything.
    pub(crate) commit: u32,
    /// Do so many COMMITs, but answer an error.
    pub(crate) commit_answer: u32,
    /// Refuse so many COMMITs (EIO).
    pub(crate) refuse: u32,
    /// Refuse so many COMMITs, but record them and open the next transaction before: what an earlier server did, whose
    /// answer was lost.
    pub(crate) recorded_before: u32,
    /// Fail so many GETs.
    pub(crate) get: u32,
    /// Set the LOW flag of metadata.
    pub(crate) low: bool,
    /// Give only so many metadata blocks.
    pub(crate) avail: Option<u64>,
    /// Finalise the trees of these mounts at their next GET.
    pub(crate) finalize: BTreeSet<u64>,
}

enum LockEvent {
    Request(u64, NetLock),
    Response(u64, u64, NetLock),
    Leave(u64),
    Stop,
}

/// Something that a test wants to happen in between.
pub(crate) type Hook = Arc<dyn Fn() + Send + Sync>;

/// See the module.
pub(crate) struct ServerBox {
    pub(crate) store: Arc<BlockStore>,
    pub(crate) data_dev: Arc<dyn BlockDevice>,
    trees: Mutex<Trees>,
    pub(crate) faults: Mutex<Faults>,
    /// All records that COMMITs brought, and how often roots were asked for.
    pub(crate) commits: Mutex<Vec<LogTrees>>,
    pub(crate) roots_asked: Mutex<u64>,
    /// Called with the roots in hand, before they are answered.
    pub(crate) on_roots: Mutex<Option<Hook>>,
    /// Called when a COMMIT arrives.
    pub(crate) on_commit: Mutex<Option<Hook>>,
    locks: Mutex<mpsc::Sender<LockEvent>>,
    mounts: Mutex<HashMap<u64, Weak<LockClient<ItemShard>>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl ServerBox {
    pub(crate) fn new() -> Arc<ServerBox> {
        ServerBox::on(MemDevice::new(300_000 << 16), MemDevice::new(1 << 40))
    }

    pub(crate) fn on(meta: Arc<dyn BlockDevice>, data_dev: Arc<dyn BlockDevice>) -> Arc<ServerBox> {
        let blocks = meta.size() >> 16;
        let (tx, rx) = mpsc::channel();
        let server = Arc::new(ServerBox {
            store: BlockStore::new(meta, 0x5c07, 256 << 20),
            data_dev,
            trees: Mutex::new(Trees {
                fs_root: BtreeRoot::new_zeroed(),
                logs_root: BtreeRoot::new_zeroed(),
                logs: BTreeMap::new(),
                seq: 100,
                pool: Pool((2..blocks).collect()),
                data_next: 64,
            }),
            faults: Mutex::default(),
            commits: Mutex::default(),
            roots_asked: Mutex::new(0),
            on_roots: Mutex::default(),
            on_commit: Mutex::default(),
            locks: Mutex::new(tx),
            mounts: Mutex::default(),
            thread: Mutex::new(None),
        });
        let weak = Arc::downgrade(&server);
        *server.thread.lock() = Some(thread::spawn(move || serve_locks(&weak, &rx)));
        server
    }

    fn get(&self, rid: u64) -> Result<LogTrees> {
        let mut faults = self.faults.lock();
        if faults.get > 0 {
            faults.get -= 1;
            return Err(Error::Busy("no server".into()));
        }
        let mut trees = self.trees.lock();
        let trees = &mut *trees;
        let last = trees.logs.range((rid, 0)..=(rid, u64::MAX)).next_back().map(|(_, lt)| *lt);
        let mut lt = last.unwrap_or_else(|| {
            let mut lt = LogTrees::new_zeroed();
            (lt.rid, lt.nr) = (rid.into(), 1.into());
            lt
        });
        if lt.get_trans_seq != lt.commit_trans_seq {
            return Ok(lt);
        }
        if faults.finalize.remove(&rid) && last.is_some() {
            trees.seq += 1;
            let mut old = lt;
            (old.flags, old.finalize_seq) = (1.into(), trees.seq.into());
            (old.meta_avail, old.meta_freed) = (AllocListHead::new_zeroed(), AllocListHead::new_zeroed());
            trees.logs.insert((rid, lt.nr.get()), old);
            lt.nr = (lt.nr.get() + 1).into();
            (lt.item_root, lt.bloom_ref) = (BtreeRoot::new_zeroed(), BlockRef::new_zeroed());
            (lt.inode_count_delta, lt.max_item_seq) = (0.into(), 0.into());
        }
        self.refill(trees, &mut lt, faults.avail.unwrap_or(AVAIL))?;
        lt.meta_avail.flags = u32::from(faults.low).into();
        trees.seq += 1;
        lt.get_trans_seq = trees.seq.into();
        trees.logs.insert((rid, lt.nr.get()), lt);
        self.store_logs(trees)?;
        Ok(lt)
    }

    /// Freed blocks go to the pool, the list of free ones is made anew, data comes from where nobody was yet.
    fn refill(&self, trees: &mut Trees, lt: &mut LogTrees, avail: u64) -> Result<()> {
        let reader = Reader::new(&self.store);
        let mut back = Vec::new();
        for head in [&lt.meta_freed, &lt.meta_avail] {
            list::walk(&reader, head, &mut |v| {
                match v {
                    ListVisit::Block(r) => back.push(r.blkno.get()),
                    ListVisit::Entry(b) => back.push(b.0),
                }
                Ok(())
            })?;
        }
        trees.pool.0.extend(back);
        let home = trees.pool.alloc()?;
        let blknos: VecDeque<u64> = (0..avail).map(|_| trees.pool.alloc().map(|b| b.0)).collect::<Result<_>>()?;
        let r = BlockRef { blkno: home.0.into(), seq: self.store.nonce().into() };
        let nr = blknos.len() as u64;
        let mut dirty = DirtySet::new();
        dirty.insert(r, ListBlock { next: None, blknos });
        lt.meta_avail =
            AllocListHead { block_ref: r, total_nr: nr.into(), first_nr: (nr as u32).into(), flags: 0.into() };
        lt.meta_freed = AllocListHead::new_zeroed();
        let want = 1 << 20;
        if lt.data_avail.total_len.get() < want / 2 {
            let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
            let bounds = Bounds::data(self.data_dev.size() >> 12);
            extents::insert(&mut cow, &mut lt.data_avail, bounds, trees.data_next, want)?;
            trees.data_next += want;
        }
        dirty.write_out(&self.store)
    }

    fn store_logs(&self, trees: &mut Trees) -> Result<()> {
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &self.store, dirty: &mut dirty, alloc: &mut trees.pool };
        for ((rid, nr), lt) in &trees.logs {
            btree::force(&mut cow, &mut trees.logs_root, &keys::log_trees((*rid).into(), *nr), lt.as_bytes())?;
        }
        dirty.write_out(&self.store)
    }

    fn commit(&self, rid: u64, lt: &LogTrees) -> Result<()> {
        let hook = self.on_commit.lock().clone();
        hook.inspect(|h| h());
        let mut faults = self.faults.lock();
        if faults.commit > 0 {
            faults.commit -= 1;
            return Err(Error::Busy("no server".into()));
        }
        if faults.refuse > 0 {
            faults.refuse -= 1;
            return Err(Error::Posix(Errno::EIO));
        }
        assert_eq!(lt.rid.get(), rid);
        assert!(lt.item_root.height > 0 || lt.bloom_ref.blkno.get() == 0, "bloom block beside an empty tree");
        self.commits.lock().push(*lt);
        let mut trees = self.trees.lock();
        let stored = trees.logs.get_mut(&(rid, lt.nr.get())).ok_or(Error::Posix(Errno::ENOENT))?;
        assert_eq!(stored.get_trans_seq, lt.get_trans_seq);
        if stored.commit_trans_seq != stored.get_trans_seq {
            *stored = *lt;
            stored.commit_trans_seq = lt.get_trans_seq;
            self.store_logs(&mut trees)?;
        }
        if faults.commit_answer > 0 {
            faults.commit_answer -= 1;
            return Err(Error::Busy("answer lost".into()));
        }
        if faults.recorded_before > 0 {
            faults.recorded_before -= 1;
            drop((trees, faults));
            self.get(rid)?;
            return Err(Error::Posix(Errno::EIO));
        }
        Ok(())
    }

    pub(crate) fn roots(&self) -> NetRoots {
        let trees = self.trees.lock();
        NetRoots { fs_root: trees.fs_root, logs_root: trees.logs_root, srch_root: BtreeRoot::new_zeroed() }
    }
}

impl Drop for ServerBox {
    fn drop(&mut self) {
        let _ = self.locks.lock().send(LockEvent::Stop);
        let thread = self.thread.lock().take();
        if let Some(t) = thread.filter(|t| t.thread().id() != thread::current().id()) {
            t.join().unwrap();
        }
    }
}

fn serve_locks(server: &Weak<ServerBox>, events: &mpsc::Receiver<LockEvent>) {
    let mut locks = LockServer::new(false);
    let mut next_id = 0u64;
    while let Ok(event) = events.recv() {
        let Some(server) = server.upgrade() else { return };
        let mut seq = || {
            let mut trees = server.trees.lock();
            trees.seq += 1;
            trees.seq
        };
        let mut out = Vec::new();
        match event {
            LockEvent::Request(rid, lock) => {
                next_id += 1;
                locks.request(rid, next_id, &lock, &mut seq, &mut out).unwrap();
            }
            LockEvent::Response(rid, id, lock) => locks.response(rid, id, &lock, &mut seq, &mut out).unwrap(),
            LockEvent::Leave(rid) => locks.reclaim(rid, &mut seq, &mut out),
            LockEvent::Stop => return,
        }
        for o in out {
            let client = |rid: u64| server.mounts.lock().get(&rid).and_then(Weak::upgrade);
            match o {
                LockOut::Grant { rid, lock, .. } => {
                    if let Some(c) = client(rid) {
                        c.grant(&lock).unwrap();
                    }
                }
                LockOut::Invalidate { rid, lock } => {
                    next_id += 1;
                    locks.invalidate_sent(rid, &lock, next_id);
                    if let Some(c) = client(rid) {
                        c.invalidate(1, next_id, &lock).unwrap();
                    }
                }
            }
        }
    }
}

/// A mount's connection to the box.
struct Link {
    rid: u64,
    server: Arc<ServerBox>,
}

impl LogService for Link {
    fn get_log_trees(&self) -> Result<LogTrees> {
        self.server.get(self.rid)
    }
    fn commit_log_trees(&self, trees: &LogTrees) -> Result<()> {
        self.server.commit(self.rid, trees)
    }
}

impl RootsSource for Link {
    fn roots(&self) -> Result<NetRoots> {
        *self.server.roots_asked.lock() += 1;
        let roots = self.server.roots();
        let hook = self.server.on_roots.lock().clone();
        hook.inspect(|h| h());
        Ok(roots)
    }
}

impl LockSender for Link {
    fn send_request(&self, lock: &NetLock) -> Result<()> {
        let _ = self.server.locks.lock().send(LockEvent::Request(self.rid, *lock));
        Ok(())
    }
    fn send_invalidate_response(&self, _epoch: u64, id: u64, lock: &NetLock) {
        let _ = self.server.locks.lock().send(LockEvent::Response(self.rid, id, *lock));
    }
}

struct Revoker {
    items: Arc<Items>,
    txn: OnceLock<Weak<Txn>>,
}

impl Revoke<ItemShard> for Revoker {
    fn commit_if_dirty(&self, lock: &CoveringLock) {
        if let Some(txn) = self.txn.get().and_then(Weak::upgrade) {
            while matches!(txn.sync_seq(lock.dirty_seq()), Err(ref e) if !matches!(e, Error::Shutdown(_))) {}
        }
    }
    fn drop_caches(&self, lock: &CoveringLock, _to: Mode) {
        self.items.invalidate(lock);
    }
    fn open_seq(&self) -> u64 {
        self.txn.get().and_then(Weak::upgrade).map_or(0, |t| t.seq())
    }
}

/// One mount: locks, items and transactions.
pub(crate) struct Mount {
    pub(crate) server: Arc<ServerBox>,
    pub(crate) items: Arc<Items>,
    pub(crate) txn: Arc<Txn>,
    pub(crate) locks: Arc<LockClient<ItemShard>>,
    pub(crate) rid: u64,
}

impl Mount {
    /// A mount that commits only when asked.
    #[cfg(test)]
    pub(crate) fn new(server: &Arc<ServerBox>, rid: u64) -> Mount {
        Mount::with(server, rid, 64 << 20, |_| {})
    }

    pub(crate) fn with(
        server: &Arc<ServerBox>,
        rid: u64,
        cache_bytes: u64,
        configure: impl FnOnce(&mut TxnConfig),
    ) -> Mount {
        let m = Mount::closed(server, rid, cache_bytes, configure);
        m.txn.open().unwrap();
        m
    }

    /// Not opened yet.
    pub(crate) fn closed(
        server: &Arc<ServerBox>,
        rid: u64,
        cache_bytes: u64,
        configure: impl FnOnce(&mut TxnConfig),
    ) -> Mount {
        let link = Arc::new(Link { rid, server: server.clone() });
        let items = Items::new(server.store.clone(), link.clone(), ItemsConfig { cache_bytes });
        let mut config = TxnConfig::new(rid);
        config.commit_interval = std::time::Duration::from_secs(1000);
        config.idle_interval = std::time::Duration::from_secs(1000);
        config.retry = std::time::Duration::from_millis(5);
        configure(&mut config);
        let txn = Txn::new(config, server.store.clone(), server.data_dev.clone(), items.clone(), link.clone());
        let revoker = Arc::new(Revoker { items: items.clone(), txn: OnceLock::new() });
        let _ = revoker.txn.set(Arc::downgrade(&txn));
        let locks = LockClient::new(LockClientConfig::default(), link, revoker).unwrap();
        locks.new_epoch(1);
        server.mounts.lock().insert(rid, Arc::downgrade(&locks));
        Mount { server: server.clone(), items, txn, locks, rid }
    }

    pub(crate) fn lock(&self, name: LockName, mode: Mode) -> ItemLock {
        self.locks.acquire(name, mode).unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.txn.force_down();
        let _ = self.txn.close();
        self.locks.close();
        self.server.mounts.lock().remove(&self.rid);
        let _ = self.server.locks.lock().send(LockEvent::Leave(self.rid));
    }
}
