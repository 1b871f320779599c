//! The server's trees: the dirty super block, everything it refers to, and what is kept in memory about it.
//!
//! All changes of the volume's shared state go through here. `commit.rs` makes them durable.
//!
//! Invariants
//! 1. `sums` always equals what all records of the dirty trees account for ([`Record::sums`]).
//! 2. `last_logs` and `mounted` always mirror the dirty trees, so that no request has to scan them.
//! 3. The core sequence counter only grows, and is never below a value that is stored or held anywhere.

use std::collections::BTreeMap;

use crate::alloc::zones::{ZoneOwners, ZoneSet};
use crate::alloc::{MetaAlloc, Stock};
use crate::block::{BlockStore, Cow, DirtySet};
use crate::btree::{self, Reader};
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::consts::{
    TYPE_SRCH_PENDING, ZONE_LOG_MERGE_COMPLETE, ZONE_LOG_MERGE_REQUEST, ZONE_LOG_TREES, ZONE_MOUNTED_CLIENT, ZONE_SRCH,
};
use crate::format::layout::{LogMergeComplete, LogMergeRequest, LogTrees, MountedClient, SrchCompact, SuperBlock};
use crate::format::{Key, KeyRange, Rid, check, keys};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

use super::records::{LastLog, Record, Sums};
use super::shadow::{self, SuperWriter};

/// See the module documentation.
pub(crate) struct Trees {
    pub(super) store: Arc<BlockStore>,
    pub(super) data_dev: Option<Arc<dyn BlockDevice>>,
    /// The data device is flushed with each commit of a server that mounts reach which do not flush it themselves.
    pub(super) flush_data: bool,
    pub(super) writer: SuperWriter,
    pub(super) sup: Box<SuperBlock>,
    /// The last commit.
    pub(super) stable: Arc<Published>,
    pub(super) dirty: DirtySet,
    pub(super) alloc: MetaAlloc,
    /// Which pair of `server_meta_avail`/`server_meta_freed` the running commit allocates from.
    pub(super) active: usize,
    /// Which of `meta_alloc` supplies blocks; the other receives them.
    pub(super) avail_root: usize,
    pub(super) stock: Stock,
    pub(super) core_seq: Arc<CoreSeq>,
    pub(super) changed: bool,
    pub(super) commits: u64,
    pub(super) sums: Sums,
    pub(super) last_logs: BTreeMap<u64, LastLog>,
    pub(super) mounted: BTreeMap<u64, MountedClient>,
    /// Zones of the data device that each log tree allocates in.
    pub(super) zones: ZoneOwners,
    /// get_trans_seq of transactions whose commit is applied but not durable yet.
    pub(super) closing: Vec<u64>,
}

/// The core sequence counter. It only grows.
pub(crate) struct CoreSeq(AtomicU64);

impl CoreSeq {
    /// The last value handed out.
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// The next value.
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The counter must not be below `seq`.
    pub(super) fn raise(&self, seq: u64) {
        self.0.fetch_max(seq, Ordering::SeqCst);
    }

    /// Sets it back, for replays.
    #[cfg(test)]
    pub(super) fn set(&self, seq: u64) {
        self.0.store(seq, Ordering::SeqCst);
    }
}

/// A commit that is durable.
pub(crate) struct Published {
    pub(super) sup: SuperBlock,
    /// What the records of its trees account for.
    pub(super) sums: Sums,
}

/// All keys of a zone.
pub(crate) fn zone(zone: u8) -> KeyRange {
    KeyRange::new(Key::new(zone, 0, 0, 0, 0, 0), Key { zone, ..Key::ONES })
}

impl Trees {
    /// Takes over the volume as it is on the device. Every earlier leader must have been fenced.
    pub(crate) fn open(
        store: Arc<BlockStore>,
        data_dev: Option<Arc<dyn BlockDevice>>,
        flush_data: bool,
    ) -> Result<Trees> {
        let dev = store.device().clone();
        let sup = shadow::read_super(&*dev)?;
        check::validate_super(&sup, check::DeviceRole::Meta, dev.size())?;
        if sup.hdr.fsid.get() != store.fsid() {
            return Err(Error::invalid("the metadata device holds another volume than when it was opened"));
        }
        let greater = |a: u64, b: u64| usize::from(a < b);
        let active = greater(sup.server_meta_avail[0].total_nr.get(), sup.server_meta_avail[1].total_nr.get());
        let avail_root = greater(sup.meta_alloc[0].total_len.get(), sup.meta_alloc[1].total_len.get());
        let alloc = MetaAlloc::new(store.clone(), sup.server_meta_avail[active], sup.server_meta_freed[active]);
        let mut trees = Trees {
            writer: SuperWriter::new(&*dev, store.fsid())?,
            store,
            data_dev,
            flush_data,
            stable: Arc::new(Published { sup: *sup, sums: Sums::default() }),
            dirty: DirtySet::new(),
            alloc,
            active,
            avail_root,
            stock: Stock::for_volume(sup.total_meta_blocks.get(), sup.total_data_blocks.get()),
            core_seq: Arc::new(CoreSeq(AtomicU64::new(sup.seq.get()))),
            sup,
            changed: false,
            commits: 0,
            sums: Sums::default(),
            last_logs: BTreeMap::new(),
            mounted: BTreeMap::new(),
            zones: ZoneOwners::default(),
            closing: Vec::new(),
        };
        trees.load()?;
        Ok(trees)
    }

    /// Reads what is kept in memory, and checks it on the way (`spec/03 §13`).
    fn load(&mut self) -> Result<()> {
        let mut pos = zone(ZONE_LOG_TREES);
        while let Some((key, lt)) = self.first::<LogTrees>(pos)? {
            let rid = lt.rid.get();
            if self.last_logs.get(&rid).is_some_and(|l| !l.finalized) {
                return Err(Error::corrupt(format!("log trees of rid {rid:016x}"), "an older one is still open"));
            }
            self.note_log_trees(&lt);
            self.sums.add(lt.sums());
            self.raise_seq(lt.max_item_seq.get());
            pos.start = key.next();
        }
        let mut pos = zone(ZONE_MOUNTED_CLIENT);
        while let Some((key, client)) = self.first::<MountedClient>(pos)? {
            self.mounted.insert(key.first, client);
            pos.start = key.next();
        }
        let mut sums = self.sum_up::<LogMergeRequest>(zone(ZONE_LOG_MERGE_REQUEST))?;
        sums.add(self.sum_up::<LogMergeComplete>(zone(ZONE_LOG_MERGE_COMPLETE))?);
        let compactions = KeyRange::new(Key { kind: TYPE_SRCH_PENDING, ..zone(ZONE_SRCH).start }, zone(ZONE_SRCH).end);
        sums.add(self.sum_up::<SrchCompact>(compactions)?);
        self.sums.add(sums);
        self.stable = Arc::new(Published { sup: *self.sup, sums: self.sums });
        Ok(())
    }

    fn sum_up<R: Record>(&self, mut range: KeyRange) -> Result<Sums> {
        let mut sums = Sums::default();
        while let Some((key, record)) = self.first::<R>(range)? {
            sums.add(record.sums());
            range.start = key.next();
        }
        Ok(sums)
    }

    // Reading.

    fn decode<R: Record>(&self, key: &Key, value: &[u8]) -> Result<R> {
        R::decode(key, value, self.store.meta_blocks())
    }

    /// Reads the dirty trees. They are the server's own: a stale reference in them is corruption.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::with_dirty(&self.store, &self.dirty)
    }

    /// The record under `key`.
    pub(super) fn get<R: Record>(&self, key: &Key) -> Result<Option<R>> {
        match own(btree::lookup(&self.reader(), R::TREE.root(&self.sup), key))? {
            Some(item) => Ok(Some(self.decode(key, &item.value)?)),
            None => Ok(None),
        }
    }

    /// The first record of a range of keys, all of which must be of this kind.
    pub(super) fn first<R: Record>(&self, range: KeyRange) -> Result<Option<(Key, R)>> {
        match own(btree::next(&self.reader(), R::TREE.root(&self.sup), &range.start))? {
            Some((key, item)) if key <= range.end => Ok(Some((key, self.decode(&key, &item.value)?))),
            _ => Ok(None),
        }
    }

    /// All records of a range.
    pub(super) fn all<R: Record>(&self, mut range: KeyRange) -> Result<Vec<(Key, R)>> {
        let mut all = Vec::new();
        while let Some((key, record)) = self.first(range)? {
            all.push((key, record));
            if key == range.end {
                break;
            }
            range.start = key.next();
        }
        Ok(all)
    }

    /// The log tree with the greatest number of a mount.
    pub(super) fn last_log_trees(&self, rid: u64) -> Result<Option<LogTrees>> {
        match self.last_logs.get(&rid) {
            None => Ok(None),
            Some(last) => match self.get(&keys::log_trees(Rid(rid), last.nr))? {
                Some(lt) => Ok(Some(lt)),
                None => Err(Error::corrupt(format!("log trees of rid {rid:016x}"), "its last item has vanished")),
            },
        }
    }

    // Changing. An error of any of these leaves the dirty trees in an unknown state: the server has to stop.

    /// What a change of the trees needs. Taking it means that there is something to commit.
    pub(super) fn split(&mut self) -> (Cow<'_>, &mut SuperBlock) {
        self.changed = true;
        (Cow { store: &self.store, dirty: &mut self.dirty, alloc: &mut self.alloc }, &mut self.sup)
    }

    /// The super block, for changing its plain fields.
    pub(super) fn sup_mut(&mut self) -> &mut SuperBlock {
        self.changed = true;
        &mut self.sup
    }

    /// Stores a record, replacing what was there.
    pub(super) fn put<R: Record>(&mut self, key: &Key, record: &R) -> Result<()> {
        if let Some(old) = self.get::<R>(key)? {
            self.sums.sub(old.sums());
        }
        let (mut cow, sup) = self.split();
        own(btree::force(&mut cow, R::TREE.root_mut(sup), key, record.as_bytes()))?;
        self.sums.add(record.sums());
        Ok(())
    }

    /// Removes a record that must be there.
    pub(super) fn remove<R: Record>(&mut self, key: &Key) -> Result<R> {
        let Some(old) = self.get::<R>(key)? else {
            return Err(Error::corrupt(format!("server item {key}"), "it should exist"));
        };
        let (mut cow, sup) = self.split();
        own(btree::delete(&mut cow, R::TREE.root_mut(sup), key))?;
        self.sums.sub(old.sums());
        Ok(old)
    }

    /// Stores a log tree under the key that its content gives.
    pub(super) fn put_log_trees(&mut self, lt: &LogTrees) -> Result<()> {
        self.put(&keys::log_trees(Rid(lt.rid.get()), lt.nr.get()), lt)?;
        self.note_log_trees(lt);
        Ok(())
    }

    fn note_log_trees(&mut self, lt: &LogTrees) {
        let (rid, nr) = (lt.rid.get(), lt.nr.get());
        if self.last_logs.get(&rid).is_none_or(|l| l.nr <= nr) {
            self.last_logs.insert(rid, LastLog::new(lt));
        }
        self.zones.record(rid, nr, ZoneSet::from_record(lt.data_alloc_zone_blocks.get(), &lt.data_alloc_zones));
    }

    /// Removes a finalized log tree.
    pub(super) fn remove_log_trees(&mut self, rid: u64, nr: u64) -> Result<LogTrees> {
        let lt = self.remove(&keys::log_trees(Rid(rid), nr))?;
        if self.last_logs.get(&rid).is_some_and(|l| l.nr == nr) {
            self.last_logs.remove(&rid);
        }
        self.zones.record(rid, nr, ZoneSet::new(0));
        Ok(lt)
    }

    /// Recomputes what is handed around, after the volume's size or the number of its mounts has changed.
    pub(super) fn restock(&mut self) {
        let (meta, data) = (self.sup.total_meta_blocks.get(), self.sup.total_data_blocks.get());
        self.stock = Stock::shared(meta, data, self.mounted.len() as u64);
    }

    /// Records a mount.
    pub(super) fn put_mounted(&mut self, rid: u64, client: MountedClient) -> Result<()> {
        self.put(&keys::mounted_client(Rid(rid)), &client)?;
        self.mounted.insert(rid, client);
        self.restock();
        Ok(())
    }

    /// Forgets a mount, the last step of its reclaim.
    pub(super) fn remove_mounted(&mut self, rid: u64) -> Result<()> {
        if self.mounted.remove(&rid).is_some() {
            self.remove::<MountedClient>(&keys::mounted_client(Rid(rid)))?;
        }
        Ok(())
    }

    // The core sequence.

    /// The last value handed out.
    pub(super) fn seq(&self) -> u64 {
        self.core_seq.now()
    }

    /// The next value.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.core_seq.next()
    }

    /// The counter must not be below `seq`.
    pub(super) fn raise_seq(&mut self, seq: u64) {
        self.core_seq.raise(seq);
    }

    /// No transaction that becomes visible from now on contains a sequence number up to this one (`spec/05 §5.3`).
    ///
    /// Transactions whose commit is applied but not yet durable count as open: readers do not see them yet.
    pub(super) fn stable_seq(&self) -> u64 {
        let open = self.last_logs.iter().filter(|(rid, l)| l.is_open() && self.mounted.contains_key(rid));
        let open = open.map(|(_, l)| l.get_seq).chain(self.closing.iter().copied());
        open.map(|get| get.saturating_sub(1)).fold(self.seq().saturating_sub(1), u64::min)
    }
}

/// A stale block in a tree that nobody else writes is damage.
pub(super) fn own<T>(result: Result<T>) -> Result<T> {
    result.map_err(|e| match e {
        Error::Stale { blkno, seq } => {
            Error::corrupt(format!("metadata block {blkno}"), format!("it does not hold version {seq:#x}"))
        }
        e => e,
    })
}
