//! The filesystem as all nodes together have committed it: the merge of the filesystem tree and all log trees.
//!
//! For each key the version with the greatest sequence number counts, totals are added (`spec/03 §2.4`). While a log
//! merge runs its inputs are still there beside what was already merged into the filesystem tree; which of their keys
//! still count is known exactly from the stored state of the merge (`spec/03 §10.2`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use zerocopy::FromBytes;

use super::{Cursor, Damage, Image, Visitor};
use crate::format::consts::{ITEM_FLAG_DELETION, LOG_MERGE_COMPLETE_REMAIN};
use crate::format::keys::is_delta;
use crate::format::layout::{BtreeRoot, LogMergeComplete, XattrTotlVal};
use crate::format::{Key, KeyRange, MetaBlock};

/// What a source is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SourceKind {
    /// The filesystem tree.
    Global,
    /// A log tree.
    Log,
    /// A log tree that is an input of the running merge.
    MergeInput,
}

/// One tree of the view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Its root.
    pub(crate) root: BtreeRoot,
    /// What it is.
    pub(crate) kind: SourceKind,
}

/// Key ranges of a running merge that are not merged yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unmerged(Vec<KeyRange>);

impl Unmerged {
    /// Adds a range, of a range item or a request.
    pub(crate) fn add(&mut self, range: KeyRange) {
        self.0.push(range);
    }

    /// Adds what a completion leaves unmerged.
    pub(crate) fn add_completion(&mut self, comp: &LogMergeComplete) {
        let (start, end) = (comp.start.to_key(), comp.end.to_key());
        let spliced = comp.meta_avail.block_ref.blkno.get() == 0 && comp.meta_freed.block_ref.blkno.get() == 0;
        if !spliced {
            self.add(KeyRange::new(start, end));
        } else if comp.flags.get() & LOG_MERGE_COMPLETE_REMAIN != 0 {
            self.add(KeyRange::new(comp.remain.to_key(), end));
        }
    }

    fn contains(&self, key: &Key) -> bool {
        self.0.iter().any(|r| r.contains(key))
    }
}

/// An item of the view.
#[derive(Clone, Debug)]
pub(crate) struct MergedItem {
    /// Its key.
    pub(crate) key: Key,
    /// Sequence number of the version that counts.
    pub(crate) seq: u64,
    /// Its value.
    pub(crate) value: Vec<u8>,
}

/// Told of the versions of each tree, and of its blocks.
pub(crate) trait SourceVisitor {
    /// Block of source `i`.
    fn enter(&mut self, i: usize, blkno: MetaBlock, level: u8) -> bool;
    /// Damaged block of source `i`.
    fn damaged(&mut self, i: usize, damage: Damage);
    /// A version of an item in source `i`, before merging.
    fn version(&mut self, i: usize, key: &Key, seq: u64, flags: u8, value: &[u8]);
}

/// One source of a [`SourceVisitor`] as a plain visitor.
struct Of<'v>(usize, &'v mut dyn SourceVisitor);

impl Visitor for Of<'_> {
    fn enter(&mut self, blkno: MetaBlock, level: u8) -> bool {
        self.1.enter(self.0, blkno, level)
    }

    fn damaged(&mut self, damage: Damage) {
        self.1.damaged(self.0, damage);
    }
}

/// Ignores everything.
impl SourceVisitor for super::Quiet {
    fn enter(&mut self, _: usize, _: MetaBlock, _: u8) -> bool {
        true
    }

    fn damaged(&mut self, _: usize, _: Damage) {}

    fn version(&mut self, _: usize, _: &Key, _: u64, _: u8, _: &[u8]) {}
}

/// The merged view, from a key on, in key order.
pub(crate) struct Merged<'a> {
    sources: Vec<(SourceKind, Cursor<'a>)>,
    heap: BinaryHeap<Reverse<(Key, usize)>>,
    unmerged: &'a Unmerged,
    started: bool,
}

impl<'a> Merged<'a> {
    /// The view over `sources` from `from` on.
    pub(crate) fn new(image: &'a Image<'a>, sources: &[Source], unmerged: &'a Unmerged, from: Key) -> Merged<'a> {
        let sources = sources.iter().map(|s| (s.kind, Cursor::from(image, &s.root, from))).collect();
        Merged { sources, heap: BinaryHeap::new(), unmerged, started: false }
    }

    /// The next item that exists.
    pub(crate) fn next(&mut self, v: &mut dyn SourceVisitor) -> Option<MergedItem> {
        if !std::mem::replace(&mut self.started, true) {
            (0..self.sources.len()).for_each(|i| self.advance(i, v));
        }
        loop {
            let &Reverse((key, _)) = self.heap.peek()?;
            if let Some(item) = self.resolve(key, v) {
                return Some(item);
            }
        }
    }

    /// Takes all versions of `key` and decides between them.
    fn resolve(&mut self, key: Key, v: &mut dyn SourceVisitor) -> Option<MergedItem> {
        let inputs_count = self.unmerged.contains(&key);
        let mut best: Option<(MergedItem, bool)> = None;
        let mut total = (0u64, 0u64);
        while let Some(&Reverse((k, i))) = self.heap.peek() {
            if k != key {
                break;
            }
            self.heap.pop();
            let (kind, cursor) = &self.sources[i];
            if let Some((item, value)) = cursor.item() {
                v.version(i, &key, item.seq, item.flags, value);
                let counts = *kind != SourceKind::MergeInput || inputs_count;
                if counts
                    && is_delta(&key)
                    && let Ok(val) = XattrTotlVal::read_from_bytes(value)
                {
                    total.0 = total.0.wrapping_add(val.total.get());
                    total.1 = total.1.wrapping_add(val.count.get());
                }
                if counts && best.as_ref().is_none_or(|(b, _)| item.seq > b.seq) {
                    let deleted = item.flags & ITEM_FLAG_DELETION != 0;
                    best = Some((MergedItem { key, seq: item.seq, value: value.to_vec() }, deleted));
                }
            }
            self.advance(i, v);
        }
        let (mut item, deleted) = best?;
        if is_delta(&key) {
            if total == (0, 0) {
                return None;
            }
            item.value = [total.0.to_le_bytes(), total.1.to_le_bytes()].concat();
            return Some(item);
        }
        (!deleted).then_some(item)
    }

    fn advance(&mut self, i: usize, v: &mut dyn SourceVisitor) {
        let cursor = &mut self.sources[i].1;
        if cursor.advance(&mut Of(i, v))
            && let Some((item, _)) = cursor.item()
        {
            self.heap.push(Reverse((item.key, i)));
        }
    }
}
