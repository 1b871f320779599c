//! The copy-on-write B-tree.
//!
//! One block format and one algorithm for every tree of a volume (`spec/02 §3`). Blocks on the device hold an array of
//! items linked by an in-block AVL tree, and leaves a hash table of their items; both exist for the original, which
//! works on blocks in place. Here:
//!
//! 1. A clean block is checked completely when it is first used and indexed by key order; look-ups are binary searches.
//! 2. A dirty block is a decoded, sorted node. It is encoded when it is written: items in key order, a perfectly
//!    balanced AVL tree, compact values, a rebuilt hash table, zeroed padding. So there is no compaction and no
//!    incremental rebalancing, and what is written is always the canonical form.
//! 3. A tree has one writer, which holds the [`BtreeRoot`], and any number of readers of stable roots.
//! 4. Modifying walks prepare parents on the way down (split when full, joined when low), so nothing propagates upwards
//!    and an error leaves a valid tree.
//! 5. Empty trees have height 0. An empty leaf is accepted when read, and never left behind.
//!
//! The tree does not know what items mean; "delta" keys, whose values are added, are told apart by a function.

mod bulk;
mod free;
mod image;
mod merge;
mod node;
mod read;
mod spine;
#[cfg(test)]
mod walk;
mod write;

#[cfg(test)]
mod tests;

#[cfg(feature = "internals")]
pub(crate) use image::View;
#[cfg(feature = "internals")]
pub(crate) use node::Node;

pub(crate) use bulk::{LogItem, insert_list};
pub(crate) use free::free_blocks;
pub(crate) use merge::{MergeArgs, MergeEnd, merge};
#[cfg(test)]
pub(crate) use read::prev;
pub(crate) use read::{Reader, leaves_of, lookup, next, read_leaf};
#[cfg(test)]
pub(crate) use spine::parents_only;
pub(crate) use spine::{get_parent, parent_range, set_parent};
#[cfg(test)]
pub(crate) use walk::{TreeBlock, Visitor, visit};
#[cfg(test)]
pub(crate) use write::update;
pub(crate) use write::{delete, dirty, force, insert, rebalance};

/// Greatest length of a value.
pub(crate) const MAX_VALUE_BYTES: usize = 896;

/// Item flag: the key is deleted (log trees only, `spec/02 §3.11`).
pub(crate) const ITEM_DELETION: u8 = 1;
