//! Totals of attributes, read without locks from a snapshot of the super block (`spec/03 §9, §10`).
//!
//! A total is the sum of differences that are spread over the main tree and all log trees; a difference must count exactly
//! once although a running merge copies it from the one to the other. Instead of guessing from versions, the reader takes
//! roots and merge state from one super block, so it knows for every key which trees still count
//! ([`forest`](super::forest), invariant 3).
//!
//! Results may be as old as the snapshot ([`TotalsReader::new`]); nothing is locked and nothing is invalidated.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use zerocopy::FromBytes;

use super::forest::{Forest, View};
use crate::block::BlockStore;
use crate::error::{Error, Result};
use crate::format::consts::{SUPER_BLKNO, ZONE_XATTR_TOTL};
use crate::format::layout::{BlockRef, XattrTotlVal};
use crate::format::{Key, KeyRange, check};
use crate::sync::{Arc, Instant, Mutex};

/// Tries of reading a super block that the server may be writing at this moment.
const SUPER_TRIES: u32 = 20;
/// Snapshots that may turn stale while one range is read.
const STALE_TRIES: u32 = 100;

/// All keys of the zone of totals; its start is the bloom key.
const ALL_TOTALS: KeyRange = KeyRange::new(
    Key::new(ZONE_XATTR_TOTL, 0, 0, 0, 0, 0),
    Key::new(ZONE_XATTR_TOTL, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX),
);

/// A sum: of values, and of the number of attributes that contribute.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Total {
    /// Sum of the values, wrapping.
    pub(crate) total: u64,
    /// Number of contributions.
    pub(crate) count: u64,
}

impl Total {
    fn add(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        let v = XattrTotlVal::read_from_bytes(value)
            .map_err(|_| Error::corrupt(format!("total {key}"), format!("{} bytes instead of 16", value.len())))?;
        self.total = self.total.wrapping_add(v.total.get());
        self.count = self.count.wrapping_add(v.count.get());
        Ok(())
    }
}

/// The state of one super block.
struct Snapshot {
    view: View,
    refs: (BlockRef, BlockRef),
    taken: Instant,
}

/// Reader of totals, shared by all that ask.
pub(crate) struct TotalsReader {
    store: Arc<BlockStore>,
    forest: Forest,
    max_age: Duration,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
}

impl TotalsReader {
    /// A reader whose answers are at most `max_age` old.
    pub(crate) fn new(store: Arc<BlockStore>, max_age: Duration) -> TotalsReader {
        TotalsReader { forest: Forest::new(store.clone()), store, max_age, snapshot: Mutex::new(None) }
    }

    /// The total of one name; `None` if nothing contributes.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Total>> {
        let (_, totals) = self.leaf(key)?;
        Ok(totals.get(key).copied())
    }

    /// Visits the totals of `range` in key order until `visit` breaks.
    pub(crate) fn scan(&self, range: KeyRange, visit: &mut dyn FnMut(&Key, Total) -> ControlFlow<()>) -> Result<()> {
        let Some(range) = range.intersect(&ALL_TOTALS) else { return Ok(()) };
        let mut from = range.start;
        loop {
            let (covered, totals) = self.leaf(&from)?;
            for (key, total) in totals.range(from..=covered.end.min(range.end)) {
                if visit(key, *total).is_break() {
                    return Ok(());
                }
            }
            if covered.end >= range.end {
                return Ok(());
            }
            from = covered.end.next();
        }
    }

    /// All totals around `key` that are not zero, and the range for which they are complete.
    fn leaf(&self, key: &Key) -> Result<(KeyRange, BTreeMap<Key, Total>)> {
        let mut failed: Option<Arc<Snapshot>> = None;
        for _ in 0..STALE_TRIES {
            let snap = match self.snapshot(failed.as_deref()) {
                Err(Error::Stale { .. }) => continue,
                other => other?,
            };
            // Partial sums of a stale snapshot are dropped: a difference must not be counted twice.
            let mut totals: BTreeMap<Key, Total> = BTreeMap::new();
            let read = self.forest.read(&snap.view, key, &ALL_TOTALS.start, ALL_TOTALS, &mut |k, _, deleted, value| {
                if !deleted {
                    totals.entry(*k).or_default().add(k, value)?;
                }
                Ok(())
            });
            match read {
                Ok(range) => {
                    totals.retain(|k, t| range.contains(k) && *t != Total::default());
                    return Ok((range, totals));
                }
                Err(Error::Stale { blkno, .. }) => {
                    if failed.as_ref().is_some_and(|f| f.refs == snap.refs) {
                        return Err(Error::corrupt(format!("block {blkno}"), "stale below unchanged roots"));
                    }
                    failed = Some(snap);
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::corrupt("totals", format!("{STALE_TRIES} snapshots in a row were stale")))
    }

    /// The kept snapshot if it is young and not the one that failed, else a new one.
    fn snapshot(&self, failed: Option<&Snapshot>) -> Result<Arc<Snapshot>> {
        let mut kept = self.snapshot.lock();
        let usable = |s: &&Arc<Snapshot>| {
            s.taken.elapsed() < self.max_age && failed.is_none_or(|f| !std::ptr::eq(f, s.as_ref()))
        };
        if let Some(s) = kept.as_ref().filter(usable) {
            return Ok(s.clone());
        }
        // Nothing is kept if this fails: the next reader starts afresh (defect 25).
        *kept = None;
        let taken = Instant::now();
        let sb = self.read_super()?;
        let view = self.forest.view(sb.fs_root, sb.logs_root, Some(&sb.log_merge))?;
        let snap = Arc::new(Snapshot { view, refs: (sb.fs_root.block_ref, sb.logs_root.block_ref), taken });
        *kept = Some(snap.clone());
        Ok(snap)
    }

    fn read_super(&self) -> Result<crate::format::layout::SuperBlock> {
        let name = self.store.device().name();
        let mut tries = 0;
        loop {
            let block = self.store.read_small(SUPER_BLKNO)?;
            match check::decode_super(&block[..], &name) {
                Ok(sb) if sb.hdr.fsid.get() == self.store.fsid() => return Ok(sb),
                Ok(sb) => {
                    let found = format!("volume {:016x} instead of {:016x}", sb.hdr.fsid, self.store.fsid());
                    return Err(Error::corrupt(format!("super block of {name}"), found));
                }
                Err(e) if tries >= SUPER_TRIES => return Err(e),
                Err(_) => tries += 1,
            }
            crate::sync::thread::sleep(Duration::from_millis(1));
        }
    }
}
