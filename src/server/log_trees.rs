//! Transactions of mounts: opening, closing, the cut that a log merge needs, and taking a log tree back.
//!
//! A mount writes into blocks that the server gave it with its log trees record, and gives back what it freed with the
//! next one. Before a merge every mount's tree has to be finalized, so that all items of finalized trees are older than
//! any item written afterwards (`spec/03 §11.2`); a mount that triggers this waits, parked, until the others have come
//! round or its patience is over.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::alloc::extents;
use crate::alloc::meta::empty_head;
use crate::alloc::stock::DATA_LOW_FLAG;
use crate::alloc::zones::{ZoneChoice, ZoneSet};
use crate::btree;
use crate::error::{Errno, Result};
use crate::format::consts::{
    ALLOC_FLAG_LOW, GREETING_OPENS, LOG_TREES_FINALIZED, SRCH_LOG_BLOCK_LIMIT, VOLOPT_DATA_ALLOC_ZONE_BLOCKS,
    ZONE_LOG_MERGE_STATUS,
};
use crate::format::layout::{LogMergeRange, LogMergeStatus, LogTrees, SrchFile};
use crate::format::{Key, Rid, check, keys};
use crate::net::Command;
use crate::sync::Instant;

use super::core::{Asker, Outcome, Peers, ServerCore, Step, refuse};
use super::records::is_finalized;
use super::trees::own;

/// A sequence number that runs ahead of the counter by more than this is not a late report but garbage.
const MAX_SEQ_JUMP: u64 = 1 << 48;
/// A log tree higher than this should be merged.
const DUE_HEIGHT: u8 = 2;

/// A GET_LOG_TREES that is not answered yet.
#[derive(Debug)]
pub(crate) struct GetLogTrees {
    pub(super) from: Asker,
    /// Until when it waits for other mounts; set when it first has to.
    deadline: Option<Instant>,
    /// The transaction that was opened for it, while its freed data is being taken.
    opened: Option<u64>,
}

/// What the search for a clean cut came to.
enum Gather {
    /// Open the transaction now.
    Go,
    /// After the commit, look again.
    Again,
    /// Others have to finalize their trees.
    Wait,
}

impl GetLogTrees {
    pub(crate) fn new(from: Asker) -> GetLogTrees {
        GetLogTrees { from, deadline: None, opened: None }
    }
}

fn zeroed() -> LogTrees {
    zerocopy::FromZeros::new_zeroed()
}

fn set_low(flags: u32, low: bool) -> u32 {
    if low { flags | ALLOC_FLAG_LOW } else { flags & !ALLOC_FLAG_LOW }
}

impl ServerCore {
    /// GET_LOG_TREES (`spec/05 §5.5.2`).
    pub(super) fn step_get_log_trees(
        &mut self,
        get: &mut GetLogTrees,
        now: Instant,
        peers: &mut dyn Peers,
    ) -> Outcome<Step> {
        let rid = get.from.rid;
        if let Some(seq) = get.opened {
            return self.drain_freed_data(get.from, seq);
        }
        let stored = self.trees.last_log_trees(rid)?;
        if let Some(open) = stored.filter(|lt| lt.get_trans_seq > lt.commit_trans_seq && !is_finalized(lt)) {
            // The answer was lost: the transaction is open.
            let seq = open.get_trans_seq.get();
            get.opened = Some(seq);
            return self.drain_freed_data(get.from, seq);
        }
        match self.gather(rid, get.deadline.is_some_and(|d| now >= d), peers)? {
            Gather::Again => return Ok(Step::Again),
            Gather::Wait => {
                let until = *get.deadline.get_or_insert(now + self.config.merge_wait);
                if now < until {
                    return Ok(Step::Park(until));
                }
            }
            Gather::Go => {}
        }
        if !self.has_room() && self.trees.is_dirty() {
            return Ok(Step::Again);
        }
        let seq = self.open_transaction(rid)?;
        get.opened = Some(seq);
        self.drain_freed_data(get.from, seq)
    }

    /// Gives the mount space and opens the transaction; its seq.
    fn open_transaction(&mut self, rid: u64) -> Outcome<u64> {
        let mut lt = match self.trees.last_log_trees(rid)? {
            Some(lt) if !is_finalized(&lt) => {
                // Blocks move between the record and the volume from here on: storing it must not fail.
                let key = keys::log_trees(Rid(rid), lt.nr.get());
                let (mut cow, sup) = self.trees.split();
                own(btree::dirty(&mut cow, &mut sup.logs_root, &key))?;
                lt
            }
            last => {
                let mut lt = zeroed();
                lt.rid = rid.into();
                lt.nr = last.map_or(1, |l| l.nr.get() + 1).into();
                self.trees.put_log_trees(&lt)?;
                lt
            }
        };
        self.exchange_space(&mut lt)?;
        let seq = self.trees.next_seq();
        lt.get_trans_seq = seq.into();
        self.trees.put_log_trees(&lt)?;
        Ok(seq)
    }

    /// Takes what the committed transaction freed and refills what the next one may use (`spec/02 §6.3`).
    fn exchange_space(&mut self, lt: &mut LogTrees) -> Result<()> {
        let stock = self.trees.stock;
        let zone_blocks = self.zone_blocks();
        let zones = (zone_blocks != 0).then(|| self.zone_choice(lt.rid.get(), zone_blocks));

        self.trees.take_list(&mut lt.meta_freed)?;
        self.trees.take_data(&mut lt.data_freed)?;
        match self.trees.fill_list(&mut lt.meta_avail, stock.meta_low, stock.meta_target) {
            Err(e) if e.is(Errno::ENOSPC) => {}
            other => other?,
        }
        let low = self.trees.spare_total() <= self.trees.reserved(self.connected.len());
        lt.meta_avail.flags = set_low(lt.meta_avail.flags.get(), low).into();

        let have = lt.data_avail.total_len.get();
        if have < stock.data_low {
            let total = (stock.data_target - have).min(self.trees.sup.data_alloc.total_len.get());
            self.trees.give_data(&mut lt.data_avail, total, zones.as_ref())?;
        }
        let low = lt.data_avail.total_len.get() < DATA_LOW_FLAG;
        lt.data_avail.flags = set_low(lt.data_avail.flags.get(), low).into();
        lt.data_alloc_zone_blocks = zone_blocks.into();
        lt.data_alloc_zones = if zone_blocks == 0 {
            [U64::ZERO; 16]
        } else {
            let (reader, bounds) = (self.trees.reader(), self.trees.data_bounds());
            own(extents::zones_of(&reader, &lt.data_avail, bounds, zone_blocks))?.to_record()
        };
        Ok(())
    }

    /// The volume option, 0 if it is not set.
    fn zone_blocks(&self) -> u64 {
        let options = &self.trees.sup.volopt;
        let set = options.set_bits.get() & VOLOPT_DATA_ALLOC_ZONE_BLOCKS != 0;
        if set { options.data_alloc_zone_blocks.get() } else { 0 }
    }

    fn zone_choice(&self, rid: u64, zone_blocks: u64) -> ZoneChoice {
        self.trees.zones.choose(rid, zone_blocks, self.trees.sup.total_data_blocks.get())
    }

    /// Takes the rest of the freed data, in as many commits as it needs, then answers with the record.
    fn drain_freed_data(&mut self, from: Asker, seq: u64) -> Outcome<Step> {
        let last = self.trees.last_log_trees(from.rid)?;
        let Some(mut lt) = last.filter(|lt| lt.get_trans_seq.get() == seq && lt.commit_trans_seq.get() < seq) else {
            return refuse(Errno::EIO);
        };
        if is_finalized(&lt) {
            return refuse(Errno::EIO);
        }
        let before = lt.data_freed.total_len.get();
        if before > 0 {
            let done = self.trees.take_data(&mut lt.data_freed)?;
            self.trees.put_log_trees(&lt)?;
            // Without progress there is no room in the volume; what is left is taken with the next transaction.
            if !done && lt.data_freed.total_len.get() < before {
                return Ok(Step::Again);
            }
        }
        self.answer(from, Ok(lt.as_bytes().to_vec()));
        Ok(Step::Done)
    }

    /// COMMIT_LOG_TREES (`spec/05 §5.5.3`, `spec/02 §8.5`).
    pub(super) fn step_commit_log_trees(&mut self, from: Asker, sent: &LogTrees) -> Outcome<Step> {
        if sent.rid.get() != from.rid {
            return refuse(Errno::EIO);
        }
        let key = keys::log_trees(Rid(from.rid), sent.nr.get());
        let Some(stored) = self.trees.get::<LogTrees>(&key)? else { return refuse(Errno::ENOENT) };
        // The commit that recorded it may have opened the next one, here or at an earlier server.
        let opened_next = stored.get_trans_seq > stored.commit_trans_seq;
        let recorded = stored.commit_trans_seq == sent.get_trans_seq && sent.get_trans_seq != 0;
        let same = stored.get_trans_seq == sent.get_trans_seq || (opened_next && recorded);
        if !same || is_finalized(&stored) {
            return refuse(Errno::EIO);
        }
        if recorded {
            self.answer(from, Ok(Vec::new()));
            return Ok(Step::Done);
        }
        if let Err(why) = self.check_commit(&stored, sent) {
            tracing::warn!(rid = from.rid, why, "refused the commit of a transaction");
            return refuse(Errno::EINVAL);
        }
        // A mount that has not reported its locks yet may have used sequence numbers that this server does not know.
        self.trees.raise_seq(sent.max_item_seq.get());
        let mut lt = *sent;
        lt.max_item_seq = sent.max_item_seq.get().max(stored.max_item_seq.get()).into();
        lt.commit_trans_seq = sent.get_trans_seq;
        for root in [&mut lt.data_avail, &mut lt.data_freed] {
            (root.pad, root.root.pad) = (0.into(), [0; 7]);
        }
        (lt.item_root.pad, lt.srch_file.pad) = ([0; 7], [0; 7]);
        if lt.srch_file.blocks.get() >= SRCH_LOG_BLOCK_LIMIT {
            self.rotate_srch_file(&mut lt)?;
        }
        self.trees.put_log_trees(&lt)?;
        self.trees.closing.push(sent.get_trans_seq.get());
        self.answer(from, Ok(Vec::new()));
        if self.may_open(from.rid) && self.has_room() && self.needs_no_cut(from.rid)? {
            // The mount asks for the next transaction as soon as it has the answer, and finds it open.
            self.open_transaction(from.rid)?;
        }
        Ok(Step::Done)
    }

    /// Does this mount know that the commit which records its transaction may open the next one? It is the same state as
    /// after two commits. But a server of the original that took over before the answer was sent would refuse the repeated
    /// COMMIT, because the record is of another transaction already; a mount that does not know this would repeat it for
    /// ever.
    fn may_open(&self, rid: u64) -> bool {
        self.config.private || self.features.get(&rid).is_some_and(|f| f & GREETING_OPENS != 0)
    }

    fn check_commit(&self, stored: &LogTrees, sent: &LogTrees) -> Result<(), &'static str> {
        if check::validate_log_trees(None, sent.as_bytes(), self.trees.store.meta_blocks()).is_err() {
            return Err("a list or root in it is impossible");
        }
        if (sent.flags, sent.finalize_seq) != (stored.flags, stored.finalize_seq) {
            return Err("it changes the state of the log tree");
        }
        if sent.data_alloc_zone_blocks != stored.data_alloc_zone_blocks
            || sent.data_alloc_zones != stored.data_alloc_zones
        {
            return Err("it changes the allocation zones");
        }
        if sent.max_item_seq.get().saturating_sub(self.trees.seq()) > MAX_SEQ_JUMP {
            return Err("its item sequence is far from the counter");
        }
        Ok(())
    }

    /// Moves the search log of a mount to the volume's search files.
    fn rotate_srch_file(&mut self, lt: &mut LogTrees) -> Result<()> {
        let blkno = lt.srch_file.block_ref.blkno.get();
        if blkno != 0 {
            self.trees.put::<SrchFile>(&keys::srch_log(blkno.into()), &lt.srch_file)?;
        }
        lt.srch_file = zerocopy::FromZeros::new_zeroed();
        Ok(())
    }

    /// Takes back all space of a mount's last log tree and finalizes it. False: the rest follows in another commit. True
    /// also if there is nothing to do.
    pub(super) fn finalize_log_tree(&mut self, rid: u64) -> Result<bool> {
        let Some(mut lt) = self.trees.last_log_trees(rid)?.filter(|lt| !is_finalized(lt)) else { return Ok(true) };
        let key = keys::log_trees(Rid(rid), lt.nr.get());
        let (mut cow, sup) = self.trees.split();
        own(btree::dirty(&mut cow, &mut sup.logs_root, &key))?;
        self.rotate_srch_file(&mut lt)?;
        self.trees.take_list(&mut lt.meta_freed)?;
        self.trees.take_list(&mut lt.meta_avail)?;
        let done = self.trees.take_data(&mut lt.data_avail)? && self.trees.take_data(&mut lt.data_freed)?;
        if done {
            (lt.meta_avail, lt.meta_freed) = (empty_head(), empty_head());
            (lt.data_avail.flags, lt.data_freed.flags) = (0.into(), 0.into());
            (lt.data_alloc_zone_blocks, lt.data_alloc_zones) = (0.into(), ZoneSet::new(0).to_record());
            lt.commit_trans_seq = lt.get_trans_seq;
            lt.flags = (lt.flags.get() | LOG_TREES_FINALIZED).into();
            lt.finalize_seq = self.trees.next_seq().into();
            self.logs_moved = true;
        }
        self.trees.put_log_trees(&lt)?;
        Ok(done)
    }

    /// The state of the running merge.
    pub(super) fn merge_status(&self) -> Result<Option<LogMergeStatus>> {
        debug_assert_eq!(keys::LOG_MERGE_STATUS.zone, ZONE_LOG_MERGE_STATUS);
        self.trees.get(&keys::LOG_MERGE_STATUS)
    }

    /// Brings all mounts to a clean cut and starts a merge, if one is due (`spec/03 §11.2`).
    fn gather(&mut self, rid: u64, patience_over: bool, peers: &mut dyn Peers) -> Outcome<Gather> {
        if self.needs_no_cut(rid)? {
            return Ok(Gather::Go);
        }
        // Trees that an interrupted reclaim left open would hold up merges for ever.
        while let Some(orphan) = self.orphaned_log_tree(rid) {
            if !self.has_room() || !self.finalize_log_tree(orphan)? {
                return Ok(Gather::Again);
            }
        }
        let logs = &self.trees.last_logs;
        let active: Vec<(u64, u64)> =
            logs.iter().filter(|(r, l)| **r != rid && !l.finalized).map(|(r, l)| (*r, l.get_seq)).collect();
        let own_tree = self.trees.last_log_trees(rid)?.filter(|lt| !is_finalized(lt));
        if !active.is_empty() {
            for (other, _) in active.iter().filter(|(_, get_seq)| *get_seq > self.sync_sent) {
                if let Err(e) = peers.request(*other, Command::SyncLogTrees, &[]) {
                    tracing::debug!(rid = other, error = %e, "a mount to be synced is away");
                }
            }
            self.sync_sent = self.trees.seq();
        }
        if own_tree.is_some() && !(self.has_room() && self.finalize_log_tree(rid)?) {
            return Ok(Gather::Again);
        }
        if !active.is_empty() {
            return Ok(if patience_over { Gather::Go } else { Gather::Wait });
        }
        self.start_merge()?;
        Ok(Gather::Go)
    }

    /// May a transaction of this mount be opened as it is? Not if a merge is due, or others wait for this mount before one.
    fn needs_no_cut(&self, rid: u64) -> Result<bool> {
        if self.merge_status()?.is_some() {
            return Ok(true);
        }
        if self.orphaned_log_tree(rid).is_some() || self.trees.last_logs.values().any(|l| l.finalized) {
            return Ok(false);
        }
        let own_tree = self.trees.last_log_trees(rid)?.filter(|lt| !is_finalized(lt));
        Ok(!own_tree.is_some_and(|lt| self.is_due(&lt)))
    }

    /// Should this tree be merged? When it has grown, when the mount was told that metadata is short, and in time before
    /// that: on a small volume a log that is never merged would take all of it.
    fn is_due(&self, lt: &LogTrees) -> bool {
        let reserved = self.trees.reserved(self.connected.len());
        let margin = reserved.min(self.trees.sup.total_meta_blocks.get() / 8);
        let short = self.trees.spare_total() <= reserved + margin;
        let low = lt.meta_avail.flags.get() & ALLOC_FLAG_LOW != 0;
        match lt.item_root.height {
            0 => false,
            1 => low,
            DUE_HEIGHT => low || short,
            _ => true,
        }
    }

    /// A mount other than the requester whose tree is open although nobody is mounted under that rid.
    fn orphaned_log_tree(&self, requester: u64) -> Option<u64> {
        let trees = &self.trees;
        let mut open = trees.last_logs.iter().filter(|(rid, l)| **rid != requester && !l.finalized);
        open.find(|(rid, _)| !trees.mounted.contains_key(rid)).map(|(rid, _)| *rid)
    }

    pub(super) fn start_merge(&mut self) -> Result<()> {
        self.logs_moved = true;
        let range = LogMergeRange { start: Key::ZEROS.into(), end: Key::ONES.into() };
        self.trees.put(&keys::log_merge_range(&Key::ZEROS), &range)?;
        let status = LogMergeStatus {
            next_range_key: Key::ZEROS.into(),
            nr_requests: 0.into(),
            nr_complete: 0.into(),
            seq: self.trees.next_seq().into(),
        };
        self.trees.put(&keys::LOG_MERGE_STATUS, &status)
    }
}
