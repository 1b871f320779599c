//! Transactions of a mount: holding the open one, and committing it (`spec/02 §8`).
//!
//! **Problem.** Changes of items, file data, allocators and search entries must become visible and durable together,
//! and nothing may be half done while they are written. Many threads change things all the time; an `fsync` wants its own
//! changes durable soon.
//!
//! **Idea.** There is one open transaction. Whoever changes something holds it ([`Txn::hold`]); a commit excludes holders,
//! writes everything that is dirty in the order that makes it crash safe, tells the server, and opens the next one. The
//! thread that needs the commit runs it; callers that arrive meanwhile share the next.

use std::marker::PhantomData;
use std::time::Duration;

use crate::block::BlockStore;
use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::DataBlock;
use crate::format::layout::LogTrees;
use crate::format::srch::Entry as SrchEntry;
use crate::item::{InTransaction, Items};
use crate::sync::Arc;

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
    /// next call.
    fn wait(&self) -> Result<()>;
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

/// What a hold is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HoldKind {
    /// May use more space than it frees; refused with ENOSPC when the volume's metadata space is low.
    Allocating,
    /// Frees space or changes in place; always admitted.
    Freeing,
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
}

impl TxnConfig {
    /// The usual options for the mount `rid`.
    pub(crate) fn new(rid: u64) -> TxnConfig {
        TxnConfig {
            rid,
            commit_interval: Duration::from_secs(10),
            idle_interval: Duration::from_secs(60),
            retry: Duration::from_secs(2),
        }
    }
}

/// The transactions of one mount.
pub(crate) struct Txn {
    _x: (),
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
        let _ = (config, store, data_dev, items, service);
        todo!()
    }

    /// Sets the file data room's part; before [`Txn::open`].
    pub(crate) fn set_hook(&self, hook: Arc<dyn CommitHook>) {
        let _ = hook;
        todo!()
    }

    /// Gets the first transaction and starts the commit thread.
    pub(crate) fn open(self: &Arc<Self>) -> Result<()> {
        todo!()
    }

    /// Enters the open transaction; waits while a commit runs or space for this transaction is short. The caller has its
    /// cluster locks already, and under a hold waits neither for locks nor for commits.
    /// ENOSPC: `Allocating` and metadata space is low. `Shutdown` after a forced unmount.
    pub(crate) fn hold(&self, kind: HoldKind) -> Result<Hold<'_>> {
        let _ = kind;
        todo!()
    }

    /// Sequence of the open transaction; only a sample unless held.
    pub(crate) fn seq(&self) -> u64 {
        todo!()
    }

    /// Returns when everything that was released before the call is durable and visible to other nodes. An error tells
    /// that a first try failed; nothing is lost and the commit goes on being tried.
    pub(crate) fn sync(&self) -> Result<()> {
        todo!()
    }

    /// [`Txn::sync`] for changes made in transaction `seq`: returns at once if that is committed.
    pub(crate) fn sync_seq(&self, seq: u64) -> Result<()> {
        let _ = seq;
        todo!()
    }

    /// Makes the commit thread run a full commit, even if nothing is dirty, and returns at once (SYNC_LOG_TREES).
    pub(crate) fn start_commit(&self) {
        todo!()
    }

    /// Orderly end: a last commit, then the thread is joined; later holds fail.
    pub(crate) fn close(&self) -> Result<()> {
        todo!()
    }

    /// Forced unmount: everything that waits or comes later fails with `Shutdown`; dirty state is dropped.
    pub(crate) fn force_down(&self) {
        todo!()
    }
}

/// The open transaction is held until this is dropped.
pub(crate) struct Hold<'a> {
    x: PhantomData<(*const (), &'a Txn)>,
}

impl Hold<'_> {
    /// Sequence of the transaction.
    pub(crate) fn seq(&self) -> u64 {
        todo!()
    }

    /// Up to `count` contiguous free data blocks. [`Error::NeedCommit`](crate::Error::NeedCommit): drop the hold, `sync`, try
    /// again. ENOSPC: the volume is full.
    pub(crate) fn data_alloc(&self, count: u64) -> Result<(DataBlock, u64)> {
        let _ = count;
        todo!()
    }

    /// Gives data blocks back; they are reusable after the commit.
    pub(crate) fn data_free(&self, start: DataBlock, count: u64) -> Result<()> {
        let _ = (start, count);
        todo!()
    }

    /// Logs a search entry; removal is logged by the same entry again (`spec/03 §8.8`).
    pub(crate) fn srch_append(&self, entry: SrchEntry) {
        let _ = entry;
        todo!()
    }

    /// Counts inodes created (positive) or finally deleted (negative).
    pub(crate) fn inode_count(&self, delta: i64) {
        let _ = delta;
        todo!()
    }
}

impl InTransaction for Hold<'_> {
    fn seq(&self) -> u64 {
        Hold::seq(self)
    }
}
