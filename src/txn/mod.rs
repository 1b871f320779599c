//! Transactions of a mount: holding the open one, and committing it (`spec/02 §8`).
//!
//! **Problem.** Changes of items, file data, allocators and search entries must become visible and durable together,
//! and nothing may be half done while they are written. Many threads change things all the time; an `fsync` wants its own
//! changes durable soon.
//!
//! **Idea.** There is one open transaction. Whoever changes something holds it ([`Txn::hold`]); a commit excludes holders,
//! writes everything that is dirty in the order that makes it crash safe, tells the server, and opens the next one. The
//! thread that needs the commit runs it; callers that arrive meanwhile share the next.
//!
//! **Files.** `gate`: holders against commits. `hold`: what a holder may do. `control`: who runs a commit, who waits for
//! what, the commit thread. `commit`: the steps of a commit in their order. `room`: will the blocks suffice. `srch_file`:
//! search entries.
//!
//! **Invariants.**
//! 1. The order of a commit is that of `spec/02 §8.4`: data and blocks written, both devices flushed, then COMMIT, then the
//!    items are clean, then GET, then holders go on. Nothing comes earlier, and nothing is skipped, but for the flush if
//!    mount and server share process and devices ([`TxnConfig::flush`]): what is on the devices at any moment is the same.
//! 2. A step that fails is tried again, from the same inputs; what is recorded at the server is built once and never sent in
//!    two versions. So differences are added once (defect 6) and a lost answer is harmless.
//! 3. A commit is given up only by a forced unmount.
//!
//! **Threads.** One commit thread per mount: timer, SYNC_LOG_TREES, opening the next transaction, and retries. It blocks on
//! devices, on requests to the server and on the gate.

#[cfg(feature = "internals")]
pub(crate) mod bench;
mod commit;
mod control;
mod gate;
mod hold;
mod room;
pub(crate) mod srch_file;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod testbox;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::alloc::{DataAlloc, Stock};
use crate::block::BlockStore;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::consts::SMALL_BYTES;
use crate::format::layout::LogTrees;
use crate::format::srch::Entry as SrchEntry;
use crate::item::Items;
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use crate::sync::{Arc, Mutex, OnceLock, Weak, thread};

use commit::Run;
use control::Control;
use gate::Gate;
pub(crate) use hold::{Hold, HoldKind};
use room::Room;

/// The requests of a transaction to the server; the client room sends them as messages.
pub(crate) trait LogService: Send + Sync {
    /// GET_LOG_TREES: opens the next transaction. Blocks until a server answers or the mount is forced down.
    fn get_log_trees(&self) -> Result<LogTrees>;
    /// COMMIT_LOG_TREES. Blocks likewise.
    fn commit_log_trees(&self, trees: &LogTrees) -> Result<()>;
}

/// What the file data room does in a commit.
pub(crate) trait CommitHook: Send + Sync {
    /// Is there anything that [`CommitHook::prepare`] would do?
    fn is_dirty(&self) -> bool;
    /// Holders are excluded: allocates delayed blocks, changes extent items through `ctx.hold()`, submits the writes of
    /// dirty data. Repeated as a whole if it fails.
    fn prepare(&self, ctx: &CommitCtx) -> Result<()>;
    /// Waits until all data submitted by `prepare` is written (not flushed). Failed writes are submitted again by the
    /// next call. True if any data was written since the last commit, so that the data device has to be flushed.
    fn wait(&self) -> Result<bool>;
    /// The transaction is durable.
    fn committed(&self);
}

/// What a [`CommitHook`] may use while it prepares.
pub(crate) struct CommitCtx<'a> {
    hold: Hold<'a>,
}

impl<'a> CommitCtx<'a> {
    /// The committer's own hold of the transaction; `sync` must not be called under it.
    pub(crate) fn hold(&self) -> &Hold<'a> {
        &self.hold
    }
}

/// Options of a [`Txn`].
#[derive(Clone, Debug)]
pub(crate) struct TxnConfig {
    /// Identity of the mount; log trees of others are refused.
    pub(crate) rid: u64,
    /// Commits at least this often while something is dirty (10 s).
    pub(crate) commit_interval: Duration,
    /// Commits at least this often when nothing is dirty, so that the stable sequence goes on (60 s).
    pub(crate) idle_interval: Duration,
    /// Wait before a failed step of a commit is tried again (2 s).
    pub(crate) retry: Duration,
    /// Bytes of dirty items in memory after which a commit is forced.
    pub(crate) dirty_bytes: u64,
    /// Flush both devices before COMMIT. Not needed if every server that may get it runs in this process, on the same two
    /// devices: its own flush, between the blocks of its commit and the super block, covers the mount's writes as well.
    pub(crate) flush: bool,
}

impl TxnConfig {
    /// The usual options for the mount `rid`.
    pub(crate) fn new(rid: u64) -> TxnConfig {
        TxnConfig {
            rid,
            commit_interval: Duration::from_secs(10),
            idle_interval: Duration::from_secs(60),
            retry: Duration::from_secs(2),
            dirty_bytes: 192 << 20,
            flush: true,
        }
    }
}

/// Slots of the gate; more threads than this share.
const GATE_SLOTS: usize = 16;

/// The transactions of one mount.
pub(crate) struct Txn {
    config: TxnConfig,
    store: Arc<BlockStore>,
    data_dev: Arc<dyn BlockDevice>,
    items: Arc<Items>,
    service: Arc<dyn LogService>,
    // Weak: the data room holds the transactions.
    hook: OnceLock<Weak<dyn CommitHook>>,
    stock: Stock,
    gate: Gate,
    /// Sequence of the open transaction.
    seq: AtomicU64,
    /// Sequence of the last transaction that the server recorded.
    durable_seq: AtomicU64,
    room: Room,
    data: Mutex<Option<DataAlloc>>,
    srch: Mutex<Vec<SrchEntry>>,
    /// Changed by every creation, on a line that others do not read all the time.
    inode_delta: CachePadded<AtomicI64>,
    control: Arc<Control>,
    /// The commit procedure; locked by the one who runs it.
    run: Mutex<Run>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Txn {
    /// Not open yet: holds wait, commits do nothing.
    pub(crate) fn new(
        config: TxnConfig,
        store: Arc<BlockStore>,
        data_dev: Arc<dyn BlockDevice>,
        items: Arc<Items>,
        service: Arc<dyn LogService>,
    ) -> Arc<Txn> {
        let stock = Stock::for_volume(store.meta_blocks(), data_dev.size() / SMALL_BYTES as u64);
        Arc::new(Txn {
            store,
            data_dev,
            items,
            service,
            hook: OnceLock::new(),
            stock,
            gate: Gate::new(GATE_SLOTS),
            seq: AtomicU64::new(0),
            durable_seq: AtomicU64::new(0),
            room: Room::new(),
            data: Mutex::new(None),
            srch: Mutex::new(Vec::new()),
            inode_delta: CachePadded::new(AtomicI64::new(0)),
            control: Arc::new(Control::new(config.commit_interval, config.idle_interval)),
            run: Mutex::new(Run::new()),
            thread: Mutex::new(None),
            config,
        })
    }

    /// Sets the file data room's part; before [`Txn::open`]; the caller keeps it alive until after [`Txn::close`]. A second call is ignored.
    pub(crate) fn set_hook(&self, hook: &Arc<dyn CommitHook>) {
        let _ = self.hook.set(Arc::downgrade(hook));
    }

    fn hook(&self) -> Option<Arc<dyn CommitHook>> {
        self.hook.get().and_then(Weak::upgrade)
    }

    /// Sequence of the open transaction; only a sample unless held.
    #[inline]
    pub(crate) fn seq(&self) -> u64 {
        self.seq.load(Relaxed)
    }

    /// Is there anything that a commit would make durable?
    fn is_dirty(&self) -> bool {
        self.items.is_dirty()
            || self.room.srch.load(Relaxed) != 0
            || self.inode_delta.load(Relaxed) != 0
            || self.data.lock().as_ref().is_some_and(DataAlloc::is_changed)
            || self.hook().is_some_and(|h| h.is_dirty())
    }

    fn shutdown_error() -> Error {
        Error::Shutdown("the transaction was ended by force".into())
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.lock().take() {
            // The commit thread itself may have held the last reference.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
