//! Space: lists of free metadata blocks, trees of free extents, and who may take what (`spec/02 §4..§7`).
//!
//! Problem: free space is handed from the volume to the server's commits and to mounts and back, by nodes that may crash at
//! any moment, and no block may be used while a state that is or may become durable refers to it. The format's answer: a
//! number is in exactly one free structure or referenced by exactly one structure; every transaction takes from one list and
//! gives to another; what was given comes into circulation only after the transaction is durable.
//!
//! | file | what |
//! |---|---|
//! | [`extent`] | what inserting, removing and replacing does to a set of extents; files use it too |
//! | [`extents`] | trees of free extents, moves between them |
//! | [`list`] | lists of metadata blocks: fill, empty, append |
//! | [`meta`] | one pair of lists in use by a transaction |
//! | [`data`] | the data blocks of a mount's transaction |
//! | [`zones`] | which mount allocates where |
//! | [`stock`] | how much is handed around, by size of the volume |
//!
//! Not here: who owns which list when (server, txn), what file blocks mean (data).

pub(crate) mod data;
pub(crate) mod extent;
pub(crate) mod extents;
pub(crate) mod list;
pub(crate) mod meta;
pub(crate) mod stock;
#[cfg(test)]
mod tests;
pub(crate) mod zones;

pub(crate) use data::DataAlloc;
pub(crate) use extents::Bounds;
pub(crate) use meta::MetaAlloc;
pub(crate) use stock::Stock;
