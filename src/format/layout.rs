//! Stored structures, one file a family.

mod base;
mod items;
mod net;
mod trees;
mod volume;

pub use base::{BlockHeader, BlockRef, InetAddr, StoredKey, Timespec};
pub use items::{DataExtentVal, DirentHead, InodeItem, QuotaRuleVal, XattrHead, XattrTotlVal};
pub use net::{
    NetGreeting, NetHeader, NetInodeAlloc, NetLock, NetLockRecoverHead, NetResizeDevices, NetRoots, NetStatfs,
    OpenInoMap, OpenInoMapArgs,
};
pub use trees::{
    AllocListBlockHead, AllocListHead, AllocRoot, AvlNode, BloomBlockHead, BtreeBlockHead, BtreeItem, BtreeRoot,
    LogMergeComplete, LogMergeFreeing, LogMergeRange, LogMergeRequest, LogMergeStatus, LogTrees, SrchBlockHead,
    SrchCompact, SrchCompactInput, SrchEntry, SrchFile,
};
pub use volume::{
    MountedClient, QuorumBlock, QuorumBlockEvent, QuorumConfig, QuorumMessage, SuperBlock, VolumeOptionValues,
};
