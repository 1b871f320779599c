//! A mount: what ties one node's locks, items and transactions to the server, and its background work.
//!
//! **Problem.** The lock client, the item cache and the transactions are rooms of their own and know nothing of messages;
//! the connection knows nothing of what messages mean. Something has to translate between them, hold what belongs to the
//! mount as a whole (inode numbers in stock, the open map, the identity of the volume), and keep the order in which a mount
//! comes and goes.
//!
//! **Idea.** [`Node`] owns the rooms. Towards the server there is one small seam, [`ServerLink`], with two implementations:
//! the connection of a real mount, and [`snapshot::SnapshotLink`], which answers from the super block on the device, so that
//! a read-only look at a volume needs no server and writes nothing, but runs through exactly the same rooms.
//!
//! | file | concept |
//! |---|---|
//! | `node` | the mount: construction, locks and holds for operations, leaving |
//! | `link` | the seam to the server, and the translation of messages |
//! | `snapshot` | the stand-in for a server that a read-only view uses |
//! | `open_map` | which inodes are in use here |
//! | `inos` | inode numbers in stock |
//! | `background` | the threads: log merge work, search compaction, orphan scan |
//! | `merge` | one piece of log merge work |
//! | `compact` | one piece of search file compaction |

mod background;
mod compact;
mod inos;
mod link;
mod merge;
mod node;
mod open_map;
pub(crate) mod snapshot;

pub(crate) use link::{Inbox, ServerLink};
pub(crate) use node::{CacheListener, Indexed, Node, NodeConfig};
