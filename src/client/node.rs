//! One mount of a volume.
//!
//! Invariants:
//!  1. Cluster locks are taken before the transaction is held, never inside ([`Node::indexed`] keeps the order of
//!     `spec/06 §5.1`).
//!  2. Losing a lock drops, in this order, what the listeners cache under it and the cached items; never anything dirty.
//!  3. A mount leaves in the order of `spec/04 §7.9`: background work, caches (by the volume), locks, last commit, farewell.

use smallvec::SmallVec;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::background::Background;
use super::inos::InoPools;
use super::link::{Inbox, Outbox, ServerLink, call};
use super::open_map::OpenMap;
use crate::block::BlockStore;
use crate::device::FlushTracker;
use crate::error::{Errno, Error, Result, fail};
use crate::format::Ino;
use crate::format::layout::{NetInodeAlloc, NetRoots, NetStatfs, OpenInoMap, OpenInoMapArgs};
use crate::item::{CoveringLock, ItemLock, ItemShard, Items, ItemsConfig};
use crate::lock::{Lock, LockClient, LockClientConfig, LockName, Mode, Revoke};
use crate::net::Command;
use crate::options::VolumeOptions;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, RwLock, thread};
use crate::txn::{CommitHook, Hold, HoldKind, Txn, TxnConfig};

/// Somebody who caches what a lock covers, other than items: inodes, names, pages.
pub(crate) trait CacheListener: Send + Sync {
    /// The lock `name` is about to be lost (`to` cannot read what is cached): drop everything. Called on a worker thread of
    /// the lock room; must not wait for locks, commits or inodes being made or deleted.
    fn revoked(&self, name: LockName, to: Mode);

    /// The mode of the lock `name` is about to go down: give back what was lent under it ([`crate::lock::Loan`]) and `to`
    /// does not cover. May wait for calls that use the lock for that, and for commits. By default nothing was lent.
    fn recall(&self, _name: LockName, _from: Mode, _to: Mode) {}

    /// The mount has ended by itself: nothing is covered by locks any more. Called on a thread of its own, when everything
    /// that waited has failed.
    fn ended(&self, _why: &Error) {}
}

/// What a [`Node`] is made of.
pub(crate) struct NodeConfig<'a> {
    pub(crate) store: Arc<BlockStore>,
    pub(crate) data_dev: Arc<FlushTracker>,
    pub(crate) rid: u64,
    pub(crate) fmt_vers: u64,
    /// The only servers there can be run in this process, on these devices, and flush them with their commits.
    pub(crate) private: bool,
    pub(crate) options: &'a VolumeOptions,
}

/// One mount.
pub(crate) struct Node {
    pub(crate) locks: Arc<LockClient<ItemShard>>,
    pub(crate) items: Arc<Items>,
    pub(crate) txn: Arc<Txn>,
    pub(crate) store: Arc<BlockStore>,
    pub(crate) data_dev: Arc<FlushTracker>,
    pub(crate) rid: u64,
    pub(crate) fmt_vers: u64,
    pub(crate) read_only: bool,
    pub(crate) acl: bool,
    inos: InoPools,
    omap: Arc<OpenMap>,
    link: Arc<dyn ServerLink>,
    inbox: Arc<Inbox>,
    revoker: Arc<Revoker>,
    background: Mutex<Option<Background>>,
    down: AtomicBool,
    /// Why the mount was forced down, unless its owner did it.
    ended: OnceLock<Error>,
    /// Tells the listeners so.
    teller: Mutex<Option<thread::JoinHandle<()>>>,
}

/// The locks on sequence index items that an operation needs, and the transaction that they belong to. The hold goes first.
pub(crate) struct Indexed<'a> {
    pub(crate) hold: Hold<'a>,
    locks: SmallVec<[ItemLock; 4]>,
}

impl Indexed<'_> {
    /// The lock that covers `name`, one of the names asked for.
    pub(crate) fn lock(&self, name: LockName) -> Result<&CoveringLock> {
        let found = self.locks.iter().find(|l| l.name() == name);
        found.map(|l| &**l).ok_or_else(|| Error::invalid(format!("{name:?} was not locked")))
    }
}

impl Node {
    /// Builds the rooms; `connect` makes the link to the server, given where its messages shall go.
    pub(crate) fn new(
        config: NodeConfig<'_>,
        connect: impl FnOnce(&Arc<Inbox>) -> Result<Arc<dyn ServerLink>>,
    ) -> Result<Arc<Node>> {
        let NodeConfig { store, data_dev, rid, fmt_vers, private, options } = config;
        let omap = Arc::new(OpenMap::new());
        let inbox = Inbox::new(omap.clone());
        let outbox = Outbox::new();
        let item_config = ItemsConfig { cache_bytes: options.item_cache_bytes as u64 };
        let items = Items::new(store.clone(), outbox.clone(), item_config);
        let txn_config = TxnConfig {
            commit_interval: options.commit_interval,
            dirty_bytes: options.item_dirty_bytes as u64,
            flush: !private,
            ..TxnConfig::new(rid)
        };
        let txn = Txn::new(txn_config, store.clone(), data_dev.clone(), items.clone(), outbox.clone());
        let revoker = Arc::new(Revoker { items: items.clone(), txn: txn.clone(), listeners: RwLock::new(Vec::new()) });
        let lock_config =
            LockClientConfig { idle_count: options.lock_idle_count as usize, ..LockClientConfig::default() };
        let locks = LockClient::new(lock_config, outbox.clone(), revoker.clone())?;
        inbox.connect(&locks, &txn);
        let link = connect(&inbox)?;
        outbox.connect(link.clone(), &inbox);
        let node = Arc::new(Node {
            locks,
            items,
            txn,
            store,
            data_dev,
            rid,
            fmt_vers,
            read_only: options.read_only,
            acl: options.acl,
            inos: InoPools::new(u64::from(options.ino_alloc_per_lock)),
            omap,
            link,
            inbox,
            revoker,
            background: Mutex::new(None),
            down: AtomicBool::new(false),
            ended: OnceLock::new(),
            teller: Mutex::new(None),
        });
        let weak = Arc::downgrade(&node);
        node.inbox.on_evicted(Box::new(move |why| {
            if let Some(node) = weak.upgrade() {
                node.end(why);
            }
        }));
        Ok(node)
    }

    /// Registers a cache that depends on locks; before anything is put into it.
    pub(crate) fn add_listener(&self, listener: Arc<dyn CacheListener>) {
        self.revoker.listeners.write().push(listener);
    }

    /// Opens the first transaction; before it, only reading works. A read-only view never has one.
    pub(crate) fn open(&self, hook: &Arc<dyn CommitHook>) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.txn.set_hook(hook);
        self.txn.open()
    }

    /// Starts the background threads; `scan_orphans` is one pass of the orphan scanner.
    pub(crate) fn start_background(
        self: &Arc<Self>,
        options: &VolumeOptions,
        scan_orphans: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    ) -> Result<()> {
        if !self.read_only {
            *self.background.lock() = Some(Background::start(self, options, scan_orphans)?);
        }
        Ok(())
    }

    /// Waits until `mode` may be used on `name`.
    pub(crate) fn lock(&self, name: LockName, mode: Mode) -> Result<ItemLock> {
        self.locks.acquire(name, mode)
    }

    /// Takes the index locks that `names` asks for in the transaction with the given sequence, in order, and enters that
    /// transaction, or a later one that the same locks serve (`spec/06 §3.4`). `names` is asked again when the sequence moved
    /// meanwhile.
    pub(crate) fn indexed(
        &self,
        kind: HoldKind,
        mut names: impl FnMut(u64, &mut SmallVec<[LockName; 8]>),
    ) -> Result<Indexed<'_>> {
        if self.read_only {
            return fail(Errno::EROFS);
        }
        let mut wanted = SmallVec::new();
        loop {
            let seq = self.txn.seq();
            wanted.clear();
            names(seq, &mut wanted);
            wanted.sort_unstable();
            wanted.dedup();
            let locks = wanted.iter().map(|n| self.lock(*n, Mode::WriteOnly)).collect::<Result<SmallVec<[_; 4]>>>()?;
            let hold = self.txn.hold(kind)?;
            // Entering may have waited for another transaction. Its number mostly falls under the same locks; to insist on the
            // guess would let nobody in while transactions follow each other closely.
            let mut needed = SmallVec::<[LockName; 8]>::new();
            if hold.seq() != seq {
                names(hold.seq(), &mut needed);
            }
            if needed.iter().all(|name| wanted.contains(name)) {
                return Ok(Indexed { hold, locks });
            }
        }
    }

    /// A new inode number, for a directory or for anything else.
    pub(crate) fn alloc_ino(&self, dir: bool) -> Result<Ino> {
        self.inos.take(dir, &|count| {
            let got: NetInodeAlloc = call(&*self.link, Command::AllocInodes, U64::new(count).as_bytes())?;
            Ok((got.ino.get(), got.nr.get()))
        })
    }

    /// Marks an inode as in use here.
    pub(crate) fn omap_set(&self, ino: Ino) {
        self.omap.set(ino);
    }

    /// Marks an inode as no longer in use here.
    pub(crate) fn omap_clear(&self, ino: Ino) {
        self.omap.clear(ino);
    }

    /// Is the inode in use here?
    pub(crate) fn omap_test(&self, ino: Ino) -> bool {
        self.omap.test(ino)
    }

    /// The union of all *other* mounts' open bits of a group of 1024 inodes.
    pub(crate) fn open_map(&self, group: u64) -> Result<[u8; 128]> {
        let args = OpenInoMapArgs { group_nr: group.into(), req_id: 0.into() };
        let map: OpenInoMap = call(&*self.link, Command::OpenInoMap, args.as_bytes())?;
        if map.args.group_nr.get() != group {
            return Err(Error::corrupt("open map from the server", format!("group {} for {group}", map.args.group_nr)));
        }
        let mut bits = [0; 128];
        bits.copy_from_slice(map.bits.as_bytes());
        Ok(bits)
    }

    /// Free space as of the last server commit.
    pub(crate) fn statfs(&self) -> Result<NetStatfs> {
        call(&*self.link, Command::Statfs, &[])
    }

    /// The roots of the last server commit.
    pub(crate) fn roots(&self) -> Result<NetRoots> {
        call(&*self.link, Command::GetRoots, &[])
    }

    /// Any other request.
    pub(crate) fn link(&self) -> &dyn ServerLink {
        &*self.link
    }

    /// Has the mount been forced down?
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// First step of leaving: background threads end, so that nothing touches the caches while they are emptied.
    pub(crate) fn stop_background(&self) {
        self.inbox.begin_unmount();
        let background = self.background.lock().take();
        drop(background);
    }

    /// Leaves in order, after the caches above have been emptied. The first error is returned, everything is ended anyway.
    pub(crate) fn leave(&self) -> Result<()> {
        self.stop_background();
        self.locks.shutdown();
        let committed = if self.read_only { Ok(()) } else { self.txn.close() };
        #[cfg(sim)]
        crate::sync::watch::locks_leave();
        let left = self.link.farewell();
        self.link.close();
        self.locks.close();
        self.all_told();
        committed.and(left)
    }

    /// Forced unmount: everything that waits fails, nothing is sent or written any more. The volume's server will fence
    /// this mount.
    pub(crate) fn force_down(&self) {
        if !self.down.swap(true, Ordering::AcqRel) {
            self.link.force_down();
            self.txn.force_down();
            self.locks.force_down();
        }
    }

    /// Forced unmount by the mount itself, for a reason that everybody gets to know.
    pub(crate) fn end(&self, why: Error) {
        // Held until it is known who tells, so that whoever closes because of this waits for that.
        let mut teller = self.teller.lock();
        let first = !self.is_down() && self.ended.set(why.clone()).is_ok();
        if first {
            tracing::error!(%why, "the mount ends");
        }
        self.force_down();
        if first {
            // They may take their time, and whoever has found the reason must not wait for them.
            let listeners = self.revoker.listeners.read().clone();
            let tell = move || listeners.iter().for_each(|listener| listener.ended(&why));
            match thread::Builder::new().name("scoutfs-ended".into()).spawn(tell) {
                Ok(thread) => *teller = Some(thread),
                Err(error) => tracing::error!(%error, "nobody can be told that the mount has ended"),
            }
        }
    }

    /// Waits until all listeners have been told that the mount has ended, if it has.
    fn all_told(&self) {
        let teller = self.teller.lock().take();
        if let Some(teller) = teller.filter(|t| t.thread().id() != thread::current().id()) {
            let _ = teller.join();
        }
    }

    /// Why the mount has ended by itself.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.ended.get().cloned()
    }

    /// What to tell a caller: rooms know only that the mount is over, which is of little use to people.
    pub(crate) fn reason(&self, e: Error) -> Error {
        match (self.ended.get(), &e) {
            (Some(why), Error::Shutdown(_)) => why.clone(),
            (Some(why), Error::Posix(Errno::ENOLINK | Errno::ECONNABORTED | Errno::ESHUTDOWN)) => why.clone(),
            _ => e,
        }
    }

    /// Joins all threads after [`Node::force_down`].
    pub(crate) fn close_forced(&self) {
        self.force_down();
        self.stop_background();
        self.link.close();
        self.locks.close();
        self.all_told();
    }
}

/// What happens when a lock's mode is reduced.
struct Revoker {
    items: Arc<Items>,
    txn: Arc<Txn>,
    listeners: RwLock<Vec<Arc<dyn CacheListener>>>,
}

impl Revoke<ItemShard> for Revoker {
    fn commit_if_dirty(&self, lock: &Lock<ItemShard>) {
        // Only a forced unmount ends without a commit, and then the data is lost by declaration.
        while let Err(e) = self.txn.sync_seq(lock.dirty_seq()) {
            if matches!(e, Error::Shutdown(_)) {
                return;
            }
            tracing::warn!("giving up {:?} waits for a commit that fails: {e}", lock.name());
        }
    }

    fn recall(&self, lock: &Lock<ItemShard>, from: Mode, to: Mode) {
        // A copy of the list: this takes long.
        let listeners = self.listeners.read().clone();
        for listener in listeners {
            listener.recall(lock.name(), from, to);
        }
    }

    fn drop_caches(&self, lock: &Lock<ItemShard>, to: Mode) {
        for listener in self.listeners.read().iter() {
            listener.revoked(lock.name(), to);
        }
        self.items.invalidate(lock);
    }

    fn open_seq(&self) -> u64 {
        self.txn.seq()
    }
}
