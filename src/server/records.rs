//! The items of the server's trees as typed records: where each kind lives, how it is checked, what it accounts for.

use zerocopy::{Immutable, IntoBytes};

use crate::error::{Error, Result};
use crate::format::Key;
use crate::format::check;
use crate::format::consts::LOG_TREES_FINALIZED;
use crate::format::keys;
use crate::format::layout::{
    AllocListHead, BtreeRoot, LogMergeComplete, LogMergeFreeing, LogMergeRange, LogMergeRequest, LogMergeStatus,
    LogTrees, MountedClient, SrchCompact, SrchFile, SuperBlock,
};
use crate::format::wire::exact;

/// Which of the server's item trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    /// `logs_root`: one record a log tree.
    Logs,
    /// `log_merge`: the state of a running merge, and what is being freed after one.
    Merge,
    /// `mounted_clients`: one record a mount.
    Mounted,
    /// `srch_root`: search files and their compactions.
    Srch,
}

impl Tree {
    pub(crate) fn root(self, sup: &SuperBlock) -> &BtreeRoot {
        match self {
            Tree::Logs => &sup.logs_root,
            Tree::Merge => &sup.log_merge,
            Tree::Mounted => &sup.mounted_clients,
            Tree::Srch => &sup.srch_root,
        }
    }

    pub(crate) fn root_mut(self, sup: &mut SuperBlock) -> &mut BtreeRoot {
        match self {
            Tree::Logs => &mut sup.logs_root,
            Tree::Merge => &mut sup.log_merge,
            Tree::Mounted => &mut sup.mounted_clients,
            Tree::Srch => &mut sup.srch_root,
        }
    }
}

/// Free blocks and inodes that records account for. Inode counts are signed and wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) meta: u64,
    pub(crate) data: u64,
    pub(crate) inodes: u64,
}

impl Sums {
    fn lists(avail: &AllocListHead, freed: &AllocListHead) -> Sums {
        Sums { meta: avail.total_nr.get().wrapping_add(freed.total_nr.get()), ..Sums::default() }
    }

    pub(crate) fn add(&mut self, o: Sums) {
        self.meta = self.meta.wrapping_add(o.meta);
        self.data = self.data.wrapping_add(o.data);
        self.inodes = self.inodes.wrapping_add(o.inodes);
    }

    pub(crate) fn sub(&mut self, o: Sums) {
        self.meta = self.meta.wrapping_sub(o.meta);
        self.data = self.data.wrapping_sub(o.data);
        self.inodes = self.inodes.wrapping_sub(o.inodes);
    }
}

/// The value of an item of the server's trees.
pub(crate) trait Record: IntoBytes + Immutable + Copy {
    /// Where items of this kind are.
    const TREE: Tree;

    /// A checked record.
    fn decode(key: &Key, value: &[u8], meta_blocks: u64) -> Result<Self>;

    /// What it accounts for.
    fn sums(&self) -> Sums {
        Sums::default()
    }
}

/// The record must be stored under the key that its content gives it.
fn at(key: &Key, want: Key, what: &str) -> Result<()> {
    if *key == want { Ok(()) } else { Err(Error::corrupt(what, format!("stored under key {key} instead of {want}"))) }
}

impl Record for LogTrees {
    const TREE: Tree = Tree::Logs;

    fn decode(key: &Key, value: &[u8], meta_blocks: u64) -> Result<LogTrees> {
        check::validate_log_trees(Some(key), value, meta_blocks)
    }

    fn sums(&self) -> Sums {
        let mut sums = Sums::lists(&self.meta_avail, &self.meta_freed);
        sums.data = self.data_avail.total_len.get().wrapping_add(self.data_freed.total_len.get());
        sums.inodes = self.inode_count_delta.get();
        sums
    }
}

impl Record for SrchFile {
    const TREE: Tree = Tree::Srch;

    fn decode(key: &Key, value: &[u8], meta_blocks: u64) -> Result<SrchFile> {
        let what = format!("search file item {key}");
        let file: SrchFile = exact(&what, value)?;
        check::validate_srch_file(&file, &what, meta_blocks)?;
        Ok(file)
    }
}

impl Record for SrchCompact {
    const TREE: Tree = Tree::Srch;

    fn decode(_key: &Key, value: &[u8], meta_blocks: u64) -> Result<SrchCompact> {
        check::validate_srch_compact(value, meta_blocks)
    }

    fn sums(&self) -> Sums {
        Sums::lists(&self.meta_avail, &self.meta_freed)
    }
}

impl Record for LogMergeStatus {
    const TREE: Tree = Tree::Merge;

    fn decode(_key: &Key, value: &[u8], _meta_blocks: u64) -> Result<LogMergeStatus> {
        check::validate_merge_status(value)
    }
}

impl Record for LogMergeRange {
    const TREE: Tree = Tree::Merge;

    fn decode(key: &Key, value: &[u8], _meta_blocks: u64) -> Result<LogMergeRange> {
        let range = check::validate_merge_range(value)?;
        at(key, keys::log_merge_range(&range.start.to_key()), "log merge range")?;
        Ok(range)
    }
}

impl Record for LogMergeRequest {
    const TREE: Tree = Tree::Merge;

    fn decode(key: &Key, value: &[u8], meta_blocks: u64) -> Result<LogMergeRequest> {
        let req = check::validate_merge_request(value, meta_blocks)?;
        at(key, keys::log_merge_request(req.rid.get().into(), req.seq.get().into()), "log merge request")?;
        Ok(req)
    }

    fn sums(&self) -> Sums {
        Sums::lists(&self.meta_avail, &self.meta_freed)
    }
}

impl Record for LogMergeComplete {
    const TREE: Tree = Tree::Merge;

    fn decode(key: &Key, value: &[u8], meta_blocks: u64) -> Result<LogMergeComplete> {
        let comp = check::validate_merge_complete(value, meta_blocks)?;
        at(key, keys::log_merge_complete(comp.seq.get().into()), "log merge completion")?;
        Ok(comp)
    }

    fn sums(&self) -> Sums {
        Sums::lists(&self.meta_avail, &self.meta_freed)
    }
}

impl Record for LogMergeFreeing {
    const TREE: Tree = Tree::Merge;

    fn decode(_key: &Key, value: &[u8], meta_blocks: u64) -> Result<LogMergeFreeing> {
        check::validate_merge_freeing(value, meta_blocks)
    }
}

impl Record for MountedClient {
    const TREE: Tree = Tree::Mounted;

    fn decode(_key: &Key, value: &[u8], _meta_blocks: u64) -> Result<MountedClient> {
        check::validate_mounted_client(value)
    }
}

/// The last log tree of a mount, as far as decisions about all mounts need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastLog {
    pub(crate) nr: u64,
    pub(crate) get_seq: u64,
    pub(crate) commit_seq: u64,
    pub(crate) finalized: bool,
}

impl LastLog {
    pub(crate) fn new(lt: &LogTrees) -> LastLog {
        LastLog {
            nr: lt.nr.get(),
            get_seq: lt.get_trans_seq.get(),
            commit_seq: lt.commit_trans_seq.get(),
            finalized: is_finalized(lt),
        }
    }

    /// A transaction was opened and is not committed.
    pub(crate) fn is_open(&self) -> bool {
        self.get_seq > self.commit_seq
    }
}

/// Nothing is added to this log tree any more; it waits to be merged.
pub(crate) fn is_finalized(lt: &LogTrees) -> bool {
    lt.flags.get() & LOG_TREES_FINALIZED != 0
}
