//! The scoutfs engine as an embeddable library: a POSIX filesystem for very large archives that many nodes mount at once.
//!
//! A volume lives on two devices that all its nodes share, one for metadata and one for file data. Nodes coordinate by
//! cluster locks that one elected node, the server, hands out; each node writes what it changed into logs of its own, in
//! transactions, and the server merges the logs into the volume's trees. The format of the devices and of the messages is
//! that of the original kernel module.
//!
//! The crate is for programs that want such a volume without a kernel: front ends (see `examples/` for a FUSE mount),
//! archive software, tools that make, inspect and check volumes. Devices, network and fencing are traits, so all of it also
//! runs in memory:
//!
//! ```
//! use scoutfs::device::MemDevice;
//! use scoutfs::offline::{MkfsOptions, QuorumSlot, mkfs};
//! use scoutfs::{Volume, VolumeOptions};
//!
//! let (meta, data) = (MemDevice::new(256 << 20), MemDevice::new(256 << 20));
//! let slot = QuorumSlot { nr: 0, addr: "127.0.0.1:17001".parse().expect("an address") };
//! mkfs(&*meta, &*data, &MkfsOptions { quorum_slots: vec![slot], allow_small: true, ..MkfsOptions::default() })?;
//!
//! let volume = Volume::open(meta, data, VolumeOptions::member(0))?;
//! volume.write_file("/greeting", b"hello")?;
//! assert_eq!(volume.read_file("/greeting")?, b"hello");
//! volume.close()?;
//! # Ok::<(), scoutfs::Error>(())
//! ```
//!
//! # Rooms
//!
//! | room | what it is for |
//! |---|---|
//! | [`volume`] | the public face: one open volume |
//! | [`namespace`] | what POSIX operations do to items: inodes, directories, attributes, permissions |
//! | `data` | contents of regular files: reading, writing, space, holes |
//! | `client` | one mount: ties locks, items and transactions to the server, and works in the background |
//! | `item` | the metadata items, cached under cluster locks and read through the forest of log trees |
//! | `txn` | transactions of a mount: holding the open one, and committing it |
//! | `lock` | cluster locks: the mount's side and the server's side |
//! | [`server`] | what the elected leader does for all mounts |
//! | `quorum` | election of the leader, and the blocks that say who leads |
//! | [`net`] | messages between nodes: byte streams, frames, one logical connection per mount |
//! | `alloc` | space: lists of free metadata blocks, trees of free extents |
//! | `btree` | the copy-on-write B-tree |
//! | `block` | metadata blocks: verified reads, a bounded cache, the dirty set of a transaction |
//! | [`device`] | where the bytes of a volume live |
//! | [`mod@format`] | every layout on disk and on the wire, with keys, hashes, limits and checks |
//! | [`offline`] | what is done to a volume that nobody has mounted: make, change, print, check |
//! | `options` | what a mount can be told |
//! | [`error`] | the one error type |
//!
//! Calls go downwards in this table; upwards there are only the traits below. Server and client meet in messages alone.
//!
//! # Threads
//!
//! The library has no executor: calls run on the caller's threads and block there. Besides, an open volume has these:
//!
//! | thread | of | may block on |
//! |---|---|---|
//! | `scoutfs-net` | mount | connecting, receiving from the server; never on locks or devices but to find the server |
//! | `scoutfs-net-look` | mount on a shared network | the metadata device (quorum blocks) |
//! | `scoutfs-net-tx`, one per socket | mount | sending |
//! | `scoutfs-commit` | mount | operations that hold the transaction, both devices, answers of the server |
//! | `scoutfs-stage`, while a commit is large | mount | the stage that follows it |
//! | `lock-drop-0`.. | mount | writers of caches that are dropped, the [`FrontEnd`] |
//! | `lock-commit` | mount | commits |
//! | `lock-recall-0`.., from the first loan on | mount | the [`FrontEnd`], and its calls that give back what it was lent |
//! | `lock-shrink` | mount | nothing |
//! | `scoutfs-data-0`.. | mount | the data device |
//! | `scoutfs-orphan` | mount | everything that an unlink waits for |
//! | `scoutfs-merge` | mount | both devices, answers of the server |
//! | `scoutfs-compact` | mount | the metadata device, answers of the server |
//! | `scoutfs-snapshot` | read-only mount | nothing |
//! | `scoutfs-watch` | mount | nothing but its own pauses |
//! | `scoutfs-nbd` | each [`NbdDevice`](device::NbdDevice) | connecting to its server, receiving from it |
//! | `scoutfs-quorum` | member | the metadata device (quorum blocks), datagrams with a timeout |
//! | `scoutfs-server` | leader | both devices; never on a client |
//! | `scoutfs-fence`, one per fenced node | leader | the [`Fencer`](server::Fencer) |
//! | `scoutfs-srv-acc`, `scoutfs-srv-time` | leader | accepting, sleeping |
//! | `scoutfs-srv-rx`, `scoutfs-srv-tx`, two per mount | leader | receiving, sending |
//!
//! # Seams
//!
//! What an embedder may replace: [`device::BlockDevice`] (storage), [`net::Transport`] with its streams, listeners and
//! datagrams (network), [`server::Fencer`] (isolation of failed nodes). [`Environment`] takes them. [`FrontEnd`] is told
//! what to drop from caches above the volume, and asked for contents that it was lent to show and change. Fault injection
//! and crash images ([`device::FaultDevice`], [`device::RecordDevice`]) are implementations of the same traits.
//!
//! # Errors
//!
//! Everything returns [`Error`]; its variants are by what the caller can do, and [`Error::errno`] gives the number that
//! POSIX has for each. [`Error::Corrupt`] names the structure and what was expected, and nothing was changed because of it.
//! [`Error::Shutdown`] is final: the mount is over, open the volume again; a mount that ends by itself gives the reason
//! instead ([`Volume::ended`]). What came from a device or a peer never panics.

// With `--cfg loom` only the rooms with models are built.
#[cfg(not(loom))]
mod alloc;
#[cfg(not(loom))]
mod block;
#[cfg(not(loom))]
mod btree;
#[cfg(not(loom))]
mod client;
#[cfg(not(loom))]
mod data;
#[cfg(not(loom))]
pub mod device;
pub mod error;
pub mod format;
#[cfg(all(feature = "internals", not(loom)))]
#[doc(hidden)]
pub mod internals;
#[cfg(not(loom))]
mod item;
pub(crate) mod lock;
#[cfg(not(loom))]
pub mod namespace;
#[cfg(not(loom))]
pub mod net;
#[cfg(not(loom))]
pub mod offline;
#[cfg(not(loom))]
mod options;
#[cfg(not(loom))]
mod quorum;
#[cfg(not(loom))]
pub mod server;
#[cfg(sim)]
#[doc(hidden)]
pub mod sim;
mod sync;
#[cfg(not(loom))]
mod txn;
#[cfg(loom)]
#[path = "txn/loom.rs"]
mod txn;

/// The volumes of `tests/data/fixtures` for unit tests, shared with the integration tests.
#[cfg(all(test, not(loom)))]
#[path = "../tests/common/fixture.rs"]
mod fixture;

#[cfg(not(loom))]
pub mod volume;

#[cfg(not(loom))]
pub use data::FileExtent;
pub use error::{Errno, Error, Result};
pub use format::Ino;
#[cfg(not(loom))]
pub use options::VolumeOptions;
#[cfg(not(loom))]
pub use volume::{
    ClusterStatus, Environment, FrontEnd, InodeGroup, Loans, LockReport, MemberStatus, OpenInode, Role, Volume,
};
