//! Tests of transactions against a server in a box.

mod log_tree;
mod room;

use std::time::{Duration, Instant};

use super::testbox::{Hook, Mount, ServerBox};
use super::*;
use crate::btree::{self, Reader};
use crate::device::{Fault, FaultDevice, FaultOps, MemDevice};
use crate::error::Errno;
use crate::format::layout::{BtreeRoot, XattrTotlVal};
use crate::format::srch::{Entries, Entry};
use crate::format::{DataBlock, Ino, Key, keys};
use crate::item::totals::{Total, TotalsReader};
use crate::item::{ChangeSet, CoveringLock, Value};
use crate::lock::{LockName, Mode};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use zerocopy::FromZeros;

fn key(ino: u64, n: u64) -> Key {
    keys::symlink(Ino(ino), n)
}

fn try_put(m: &Mount, kind: HoldKind, ino: u64, n: u64, value: &[u8]) -> Result<()> {
    let lock = m.lock(LockName::inode(Ino(ino)), Mode::Write);
    let hold = m.txn.hold(kind)?;
    let mut set = ChangeSet::new(&m.items);
    set.put(&lock, key(ino, n), Value::new(value));
    set.apply(&hold)
}

fn put(m: &Mount, ino: u64, n: u64, value: &str) {
    try_put(m, HoldKind::Freeing, ino, n, value.as_bytes()).unwrap();
}

fn get(m: &Mount, ino: u64, n: u64) -> Option<String> {
    let lock = m.lock(LockName::inode(Ino(ino)), Mode::Read);
    m.items.lookup(&lock, &key(ino, n)).unwrap().map(|v| String::from_utf8(v.to_vec()).unwrap())
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_synced_or_taken_away_is_read_by_another_mount() {
    let server = ServerBox::new();
    let (a, b) = (Mount::new(&server, 1), Mount::new(&server, 2));
    put(&a, 1, 5, "five");
    a.txn.sync().unwrap();
    assert_eq!(server.commits.lock().len(), 1);
    assert_eq!(get(&b, 1, 5).as_deref(), Some("five"));
    put(&a, 1, 6, "six");
    assert_eq!(get(&b, 1, 6).as_deref(), Some("six"));
    put(&b, 1, 6, "seven");
    assert_eq!(get(&a, 1, 6).as_deref(), Some("seven"));
}

#[test]
fn sync_without_changes_does_nothing_and_start_commit_does_all() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    a.txn.sync().unwrap();
    assert_eq!(server.commits.lock().len(), 0);
    let seq = a.txn.seq();
    a.txn.start_commit();
    wait_until("a full cycle", || a.txn.seq() > seq);
    assert_eq!(server.commits.lock().len(), 1);
    // Changes of a committed transaction need no other commit.
    put(&a, 1, 1, "x");
    a.txn.sync_seq(seq).unwrap();
    assert_eq!(server.commits.lock().len(), 1);
    a.txn.sync_seq(a.txn.seq()).unwrap();
    assert_eq!(server.commits.lock().len(), 2);
}

#[test]
fn dirty_transactions_are_committed_after_a_while() {
    let server = ServerBox::new();
    let a = Mount::with(&server, 1, 1 << 20, |c| c.commit_interval = Duration::from_millis(20));
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(server.commits.lock().len(), 0, "nothing is dirty");
    put(&a, 1, 1, "x");
    wait_until("a commit", || server.commits.lock().len() == 1);
    wait_until("its end", || !a.txn.is_dirty());
}

#[test]
fn idle_transactions_are_renewed_after_a_longer_while() {
    let server = ServerBox::new();
    let a = Mount::with(&server, 1, 1 << 20, |c| c.idle_interval = Duration::from_millis(20));
    let seq = a.txn.seq();
    wait_until("another transaction", || a.txn.seq() > seq);
}

fn add(m: &Mount, total: u64) {
    let lock = m.lock(LockName::totl(), Mode::WriteOnly);
    let hold = m.txn.hold(HoldKind::Freeing).unwrap();
    let mut set = ChangeSet::new(&m.items);
    set.delta(&lock, keys::totl(1, 1, 1), XattrTotlVal { total: total.into(), count: 1.into() });
    set.apply(&hold).unwrap();
}

fn total(server: &ServerBox) -> Option<Total> {
    server.write_super(BtreeRoot::new_zeroed());
    TotalsReader::new(server.store.clone(), Duration::ZERO).get(&keys::totl(1, 1, 1)).unwrap()
}

/// The original inserts differences again when a later step of the commit fails.
#[test]
fn defect_6_a_repeated_commit_adds_differences_once() {
    let meta = FaultDevice::new(MemDevice::new(10_000 << 16));
    let server = ServerBox::on(meta.clone(), MemDevice::new(1 << 40));
    let a = Mount::new(&server, 1);
    let flushes = FaultOps { reads: false, writes: false, flushes: true };
    add(&a, 5);
    a.txn.sync().unwrap();
    // Existing differences are added to in the log tree. Each step fails once or twice.
    for (n, breakage) in ["write", "flush", "request", "answer", "next"].iter().enumerate() {
        add(&a, 10);
        put(&a, 1, n as u64, breakage);
        match *breakage {
            "write" => meta.fail_nth(FaultOps::WRITES, 0, Fault::Once),
            "flush" => meta.fail_nth(flushes, 0, Fault::Once),
            "request" => server.faults.lock().commit = 2,
            "answer" => server.faults.lock().commit_answer = 2,
            _ => server.faults.lock().get = 2,
        }
        let first = a.txn.sync();
        assert_eq!(first.is_err(), *breakage != "next", "{breakage}: {first:?}");
        meta.heal();
        while a.txn.sync().is_err() {}
        assert_eq!(total(&server), Some(Total { total: 5 + 10 * (n as u64 + 1), count: n as u64 + 2 }), "{breakage}");
    }
    // A record that was sent again is the same, bit by bit.
    let commits = server.commits.lock();
    for pair in commits.windows(2).filter(|p| p[0].get_trans_seq == p[1].get_trans_seq) {
        assert!(pair[0] == pair[1]);
    }
    drop(commits);
    for n in 0..5 {
        assert!(get(&a, 1, n).is_some());
    }
}

#[test]
fn errors_show_soon_and_holders_wait_for_success() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "x");
    server.faults.lock().commit = u32::MAX;
    assert!(a.txn.sync().is_err());
    assert!(a.txn.sync().is_err(), "later callers hear of it too");
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (a, done) = (&a, &done);
        let holder = s.spawn(move || {
            put(a, 1, 2, "y");
            done.store(true, SeqCst);
        });
        std::thread::sleep(Duration::from_millis(30));
        assert!(!done.load(SeqCst));
        server.faults.lock().commit = 0;
        holder.join().unwrap();
    });
    a.txn.sync().unwrap();
    assert_eq!(get(&a, 1, 1).as_deref(), Some("x"));
}

/// What the server needs to raise its counter after a fail-over: the greatest version that was written.
#[test]
fn defect_31_the_record_carries_the_greatest_version() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "x");
    let seq = a.lock(LockName::inode(Ino(1)), Mode::Write).write_seq();
    assert!(seq > a.txn.seq());
    a.txn.sync().unwrap();
    assert_eq!(server.commits.lock()[0].max_item_seq.get(), seq);
    // It never falls over the life of a tree, also when a commit has no items.
    a.txn.start_commit();
    wait_until("a commit", || server.commits.lock().len() == 2);
    assert_eq!(server.commits.lock()[1].max_item_seq.get(), seq);
}

#[test]
fn many_syncers_share_commits() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    *server.on_commit.lock() = Some(Arc::new(|| std::thread::sleep(Duration::from_millis(3))));
    std::thread::scope(|s| {
        for t in 0..8u64 {
            let a = &a;
            s.spawn(move || {
                for n in 0..10 {
                    put(a, 1, t * 100 + n, "x");
                    let seq = a.txn.seq();
                    a.txn.sync().unwrap();
                    assert!(a.txn.durable_seq.load(SeqCst) >= seq.min(a.txn.durable_seq.load(SeqCst)));
                }
            });
        }
    });
    let commits = server.commits.lock().len();
    assert!(commits < 60, "{commits} commits for 80 calls");
    assert!(!a.txn.is_dirty());
}

#[test]
fn force_down_ends_all_waiting() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "x");
    server.faults.lock().commit = u32::MAX;
    assert!(a.txn.sync().is_err());
    std::thread::scope(|s| {
        let waiters: Vec<_> = (0..2)
            .map(|i| {
                let a = &a;
                s.spawn(move || if i == 0 { a.txn.hold(HoldKind::Freeing).map(drop) } else { a.txn.sync() })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        a.txn.force_down();
        for w in waiters {
            assert!(w.join().unwrap().is_err());
        }
    });
    assert_eq!(a.txn.sync().unwrap_err().errno(), Errno::ENOLINK);
    assert_eq!(a.txn.hold(HoldKind::Freeing).map(drop).unwrap_err().errno(), Errno::ENOLINK);
}

#[test]
fn close_commits_what_is_left() {
    let server = ServerBox::new();
    let (a, b) = (Mount::new(&server, 1), Mount::new(&server, 2));
    put(&a, 1, 1, "last words");
    a.txn.close().unwrap();
    assert!(a.txn.hold(HoldKind::Freeing).is_err());
    drop(a);
    assert_eq!(get(&b, 1, 1).as_deref(), Some("last words"));
}

#[test]
fn a_commit_that_an_earlier_server_recorded_is_not_repeated_for_ever() {
    // A server recorded the transaction and opened the next one with the same commit, then died. Its successor, one of the
    // original, refuses the repeated COMMIT, because the record is of another transaction.
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "first");
    server.faults.lock().recorded_before = 1;
    a.txn.sync().unwrap();
    put(&a, 1, 2, "second");
    a.txn.sync().unwrap();
    let seqs: Vec<u64> = server.commits.lock().iter().map(|lt| lt.get_trans_seq.get()).collect();
    assert!(seqs.windows(2).all(|w| w[0] < w[1]), "{seqs:?}");
    let b = Mount::new(&server, 2);
    assert_eq!((get(&b, 1, 1).as_deref(), get(&b, 1, 2).as_deref()), (Some("first"), Some("second")));
}

#[test]
fn a_commit_that_is_refused_and_not_recorded_has_failed() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    put(&a, 1, 1, "first");
    let recorded = server.commits.lock().len();
    server.faults.lock().refuse = 1;
    assert_eq!(a.txn.sync().unwrap_err().errno(), Errno::EIO);
    assert_eq!(server.commits.lock().len(), recorded);
    // It is still to be recorded.
    a.txn.sync().unwrap();
    assert_eq!(server.commits.lock().len(), recorded + 1);
    let b = Mount::new(&server, 2);
    assert_eq!(get(&b, 1, 1).as_deref(), Some("first"));
}

#[test]
fn answers_that_cannot_be_right_are_not_used() {
    struct Wrong(AtomicU32, LogTrees);
    impl LogService for Wrong {
        fn get_log_trees(&self) -> Result<LogTrees> {
            let mut lt = self.1;
            match self.0.fetch_add(1, SeqCst) {
                0 => lt.rid = 8.into(),
                1 => lt.flags = 1.into(),
                2 => lt.commit_trans_seq = lt.get_trans_seq,
                3 => lt.meta_avail.first_nr = 1.into(),
                4 => lt.item_root.height = 3,
                5 => lt.nr = 0.into(),
                _ => {}
            }
            Ok(lt)
        }
        fn commit_log_trees(&self, _: &LogTrees) -> Result<()> {
            Ok(())
        }
    }
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let service = Arc::new(Wrong(AtomicU32::new(0), server.logs(1)[0]));
    let txn =
        Txn::new(TxnConfig::new(1), server.store.clone(), server.data_dev.clone(), a.items.clone(), service.clone());
    for wrong in 0..6 {
        assert_eq!(txn.open().unwrap_err().errno(), Errno::EIO, "{wrong}");
    }
    txn.open().unwrap();
    // The same transaction again is refused, too.
    assert!(txn.open_transaction(&mut txn.run.lock()).is_err());
    txn.force_down();
}

/// Records the order of what a commit does.
#[derive(Default)]
struct TestHook {
    log: Mutex<Vec<&'static str>>,
    dirty: AtomicBool,
    change: Mutex<Option<(Arc<Items>, Arc<CoveringLock>)>>,
    fail_prepare: AtomicU32,
}

impl CommitHook for TestHook {
    fn is_dirty(&self) -> bool {
        self.dirty.load(SeqCst)
    }
    fn prepare(&self, ctx: &CommitCtx) -> Result<()> {
        self.log.lock().push("prepare");
        if self.fail_prepare.load(SeqCst) > 0 {
            self.fail_prepare.fetch_sub(1, SeqCst);
            return Err(Error::Busy("not yet".into()));
        }
        if let Some((items, lock)) = &*self.change.lock() {
            let (start, len) = ctx.hold().data_alloc(8)?;
            ctx.hold().data_free(start, len)?;
            let mut set = ChangeSet::new(items);
            set.put(lock, key(1, 77), Value::new(b"written by the commit"));
            set.apply(ctx.hold())?;
        }
        Ok(())
    }
    fn wait(&self) -> Result<bool> {
        self.log.lock().push("wait");
        Ok(self.dirty.swap(false, SeqCst))
    }
    fn committed(&self) {
        self.log.lock().push("committed");
    }
}

/// Device that knows whether all its writes were flushed.
struct Watched {
    inner: Arc<MemDevice>,
    unflushed: AtomicBool,
    log: Mutex<Vec<&'static str>>,
}

impl BlockDevice for Watched {
    fn name(&self) -> String {
        "watched".into()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.unflushed.store(true, SeqCst);
        self.log.lock().push("write");
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> Result<()> {
        self.unflushed.store(false, SeqCst);
        self.log.lock().push("flush");
        self.inner.flush()
    }
}

#[test]
fn the_order_of_a_commit_is_kept() {
    let watched = |size| {
        Arc::new(Watched { inner: MemDevice::new(size), unflushed: AtomicBool::new(false), log: Mutex::default() })
    };
    let (meta, data) = (watched(10_000 << 16), watched(1 << 40));
    let server = ServerBox::on(meta.clone(), data.clone());
    let a = Mount::closed(&server, 1, 1 << 20, |_| {});
    let hook = Arc::new(TestHook::default());
    a.txn.set_hook(&(hook.clone() as Arc<dyn CommitHook>));
    a.txn.open().unwrap();
    put(&a, 1, 1, "x");
    meta.log.lock().clear();
    let check: Hook = {
        let (meta, data, hook) = (meta.clone(), data.clone(), hook.clone());
        Arc::new(move || {
            assert_eq!(*hook.log.lock(), ["prepare", "wait"]);
            assert!(!meta.unflushed.load(SeqCst), "blocks are flushed before COMMIT");
            assert!(!data.unflushed.load(SeqCst), "data is flushed before COMMIT");
            assert_eq!(meta.log.lock().last(), Some(&"flush"));
        })
    };
    *server.on_commit.lock() = Some(check);
    hook.dirty.store(true, SeqCst);
    data.write_at(0, &[0; 4096]).unwrap();
    a.txn.sync().unwrap();
    assert_eq!(*hook.log.lock(), ["prepare", "wait", "committed"]);
    assert_eq!(*data.log.lock(), ["write", "flush"]);
    // Without written data the data device is left alone.
    hook.log.lock().clear();
    put(&a, 1, 2, "y");
    a.txn.sync().unwrap();
    assert_eq!(data.log.lock().len(), 2);
}

/// Delayed allocation happens in the commit that a lock's invalidation waits for, when nobody may enter the lock any more.
#[test]
fn the_commit_changes_items_of_a_lock_that_is_being_taken_away() {
    let server = ServerBox::new();
    let a = Mount::closed(&server, 1, 1 << 20, |_| {});
    let hook = Arc::new(TestHook::default());
    a.txn.set_hook(&(hook.clone() as Arc<dyn CommitHook>));
    a.txn.open().unwrap();
    let b = Mount::new(&server, 2);
    put(&a, 1, 1, "x");
    let handle = a.lock(LockName::inode(Ino(1)), Mode::Write).handle();
    *hook.change.lock() = Some((a.items.clone(), handle));
    hook.fail_prepare.store(2, SeqCst);
    assert_eq!(get(&b, 1, 77).as_deref(), Some("written by the commit"));
    let lt = server.logs(1)[0];
    assert_eq!(lt.data_freed.total_len.get(), 8, "allocated and freed once, although prepare was repeated");
}

#[test]
fn data_blocks_are_taken_and_freed_with_the_commit() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let before = server.logs(1)[0].data_avail.total_len.get();
    let (start, len) = {
        let hold = a.txn.hold(HoldKind::Allocating).unwrap();
        let got = hold.data_alloc(100).unwrap();
        hold.data_free(DataBlock(1 << 20), 7).unwrap();
        assert!(hold.data_free(DataBlock(1), 7).is_err());
        got
    };
    assert!(start.0 >= 64 && len == 100);
    a.txn.sync().unwrap();
    let record = server.commits.lock()[0];
    assert_eq!(record.data_avail.total_len.get(), before - 100);
    assert_eq!(record.data_freed.total_len.get(), 7);
}

#[test]
fn inode_counts_and_search_entries_are_recorded() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    let entry = |n: u64| Entry { hash: n.wrapping_mul(0x9e37_79b9_7f4a_7c15), ino: n, id: n / 3 };
    let mut appended = 0;
    for round in 0..5u64 {
        let hold = a.txn.hold(HoldKind::Allocating).unwrap();
        hold.inode_count(3);
        hold.inode_count(-1);
        for _ in 0..(7000 * round) {
            hold.srch_append(entry(appended));
            appended += 1;
        }
        drop(hold);
        a.txn.sync().unwrap();
        let record = server.commits.lock().last().copied().unwrap();
        assert_eq!(record.inode_count_delta.get(), 2 * (round + 1));
        assert_eq!(record.srch_file.entries.get(), appended);
    }
    let file = server.logs(1)[0].srch_file;
    assert!(file.height == 2 && file.blocks.get() > 3);
    crate::format::check::validate_srch_file(&file, "test", server.store.meta_blocks()).unwrap();
    let root = server.store.read(&file.block_ref, crate::block::BlockKind::SrchParent).unwrap();
    let mut n = 0;
    for blk in 0..file.blocks.get() as usize {
        let at = 32 + 16 * blk;
        let word = |at: usize| u64::from_le_bytes(root.bytes()[at..at + 8].try_into().unwrap());
        let r = crate::format::layout::BlockRef { blkno: word(at).into(), seq: word(at + 8).into() };
        let block = server.store.read(&r, crate::block::BlockKind::SrchBlock).unwrap();
        for e in Entries::new(block.bytes(), r.blkno.get()).unwrap() {
            assert_eq!(e.unwrap(), entry(n));
            n += 1;
        }
    }
    assert_eq!(n, appended);
    let all = (0..appended).map(entry);
    assert_eq!(Entry::from(file.first), all.clone().min().unwrap());
    assert_eq!(Entry::from(file.last), all.max().unwrap());
}

#[test]
fn log_tree_items_are_what_was_dirty() {
    let server = ServerBox::new();
    let a = Mount::new(&server, 1);
    for n in 0..3000 {
        put(&a, 1 + n % 3 * 1024, n, "some value");
    }
    a.txn.sync().unwrap();
    let root = server.logs(1)[0].item_root;
    let reader = Reader::new(&server.store);
    let (mut at, mut n) = (Key::ZEROS, 0);
    while let Some((k, item)) = btree::next(&reader, &root, &at).unwrap() {
        assert_eq!(&*item.value, b"some value");
        at = k.next();
        n += 1;
    }
    assert_eq!(n, 3000);
}
