//! Writes that a server has answered but not yet made durable.
//!
//! A server that crashes loses them, and the program that asked for them has long gone on. Two answers are possible: fail the
//! next flush, or keep the writes and repeat them when the server is back. A failed flush is of no use to the engine: it
//! would try the flush again (which then succeeds, with the writes gone) or end the mount. So they are kept, up to a limit
//! at which the device flushes on its own.
//!
//! Repeating is right although other nodes use the same export: a block has one owner at a time, and it changes hands only
//! after the owner has flushed (then nothing is kept here) or has been fenced (then this process is gone).

use std::collections::{BTreeMap, VecDeque};

use crate::sync::Arc;

struct Entry {
    /// Order of the answers.
    nr: u64,
    offset: u64,
    bytes: Arc<[u8]>,
    /// Durable when it was answered; kept because older ones that it covers must not come back.
    durable: bool,
}

/// The writes since the last flush, in the order of their answers.
#[derive(Default)]
pub(super) struct Unflushed {
    entries: VecDeque<Entry>,
    next: u64,
    bytes: usize,
    /// Those that are not durable.
    volatile: usize,
}

impl Unflushed {
    /// A write was answered.
    pub(super) fn push(&mut self, offset: u64, bytes: Arc<[u8]>, durable: bool) {
        if durable && self.volatile == 0 {
            // Nothing older could come back over it.
            return;
        }
        self.bytes += bytes.len();
        self.volatile += usize::from(!durable);
        self.entries.push_back(Entry { nr: self.next, offset, bytes, durable });
        self.next += 1;
    }

    /// Marks the present end, for [`Unflushed::forget`].
    pub(super) fn mark(&self) -> u64 {
        self.next
    }

    /// A flush that was sent at `mark` was answered.
    pub(super) fn forget(&mut self, mark: u64) {
        let done = self.entries.partition_point(|entry| entry.nr < mark);
        for entry in self.entries.drain(..done) {
            self.bytes -= entry.bytes.len();
            self.volatile -= usize::from(!entry.durable);
        }
    }

    /// Memory that is held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Is everything durable?
    pub(super) fn is_empty(&self) -> bool {
        self.volatile == 0
    }

    /// What has to be written again: the newest content of each byte, in pieces that do not overlap, so that a server may
    /// carry them out in any order. Each is the offset on the device, the buffer, and the part of it.
    pub(super) fn replay(&self) -> Vec<(u64, Arc<[u8]>, std::ops::Range<usize>)> {
        // Start and end of what newer writes cover.
        let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
        let mut pieces = Vec::new();
        for entry in self.entries.iter().rev() {
            let (start, end) = (entry.offset, entry.offset + entry.bytes.len() as u64);
            let mut at = start;
            let mut merged = (start, end);
            let touching: Vec<(u64, u64)> =
                covered.range(..end).rev().take_while(|(_, e)| **e > start).map(|(s, e)| (*s, *e)).collect();
            for (from, to) in touching.into_iter().rev() {
                if at < from && !entry.durable {
                    pieces.push((at, entry.bytes.clone(), (at - start) as usize..(from - start) as usize));
                }
                at = at.max(to);
                merged = (merged.0.min(from), merged.1.max(to));
                covered.remove(&from);
            }
            if at < end && !entry.durable {
                pieces.push((at, entry.bytes.clone(), (at - start) as usize..(end - start) as usize));
            }
            covered.insert(merged.0, merged.1);
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever was lost of the unflushed writes: repeating restores what reads have shown, and touches nothing that
        /// was durable and newer.
        #[test]
        fn repeating_restores_the_newest_content(
            writes in prop::collection::vec((0u64..40, 1usize..12, any::<u8>(), prop::bool::weighted(0.2)), 0..30),
            lost in prop::collection::vec(any::<bool>(), 30),
            mark in 0usize..30,
        ) {
            let mut log = Unflushed::default();
            let (mut seen, mut disk) = (vec![0u8; 64], vec![0u8; 64]);
            for (i, (offset, len, value, durable)) in writes.iter().enumerate() {
                if i == mark {
                    log.forget(log.mark());
                    disk.clone_from(&seen);
                }
                let range = *offset as usize..*offset as usize + len;
                seen[range.clone()].fill(*value);
                if *durable || !lost[i] {
                    disk[range].fill(*value);
                }
                log.push(*offset, vec![*value; *len].into(), *durable);
            }
            let pieces = log.replay();
            let mut touched = [false; 64];
            for (offset, bytes, part) in &pieces {
                for (at, byte) in (*offset as usize..).zip(&bytes[part.clone()]) {
                    prop_assert!(!std::mem::replace(&mut touched[at], true), "pieces overlap");
                    prop_assert_eq!(*byte, seen[at], "never older content, not even for a moment");
                    disk[at] = *byte;
                }
            }
            prop_assert_eq!(disk, seen);
            log.forget(log.mark());
            prop_assert!(log.is_empty() && log.bytes() == 0 && log.replay().is_empty());
        }
    }
}
