//! Who has which block.
//!
//! Metadata blocks are few enough for one byte each. Data blocks are counted in chunks of 1 GiB whose bitmap exists only
//! while the chunk is partly claimed: at most 32 MiB for each TiB of data, in practice a small part of that, because free
//! space and large files fill whole chunks.

use std::collections::BTreeMap;

/// What a metadata block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Owner {
    None = 0,
    FsTree,
    LogsRoot,
    LogTree,
    Bloom,
    MergeTree,
    MergeResult,
    FreeingTree,
    ClientsTree,
    SrchTree,
    SrchFile,
    AllocTree,
    ListBlock,
    /// Free, in a list.
    Listed,
    /// Free, in an extent.
    Extent,
    /// In the filesystem tree, and listed as freed by a merge that is not spliced yet.
    FsFreedByMerge,
}

impl Owner {
    const ALL: [Owner; 16] = [
        Owner::None,
        Owner::FsTree,
        Owner::LogsRoot,
        Owner::LogTree,
        Owner::Bloom,
        Owner::MergeTree,
        Owner::MergeResult,
        Owner::FreeingTree,
        Owner::ClientsTree,
        Owner::SrchTree,
        Owner::SrchFile,
        Owner::AllocTree,
        Owner::ListBlock,
        Owner::Listed,
        Owner::Extent,
        Owner::FsFreedByMerge,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Owner::None => "nobody",
            Owner::FsTree => "the filesystem tree",
            Owner::LogsRoot => "the tree of log trees",
            Owner::LogTree => "a log tree",
            Owner::Bloom => "a bloom filter",
            Owner::MergeTree => "the log merge tree",
            Owner::MergeResult => "the result of a log merge",
            Owner::FreeingTree => "a merged log tree",
            Owner::ClientsTree => "the tree of mounted clients",
            Owner::SrchTree => "the tree of search files",
            Owner::SrchFile => "a search file",
            Owner::AllocTree => "a tree of free extents",
            Owner::ListBlock => "a list of free blocks",
            Owner::Listed => "free space (a list)",
            Owner::Extent => "free space (an extent)",
            Owner::FsFreedByMerge => "the filesystem tree, to be freed when a merge is spliced",
        }
    }
}

/// The metadata device, one byte a block.
pub(super) struct MetaMap {
    owners: Vec<u8>,
    first: u64,
}

impl MetaMap {
    /// A map of the blocks `first..end`.
    pub(super) fn new(first: u64, end: u64) -> MetaMap {
        MetaMap { owners: vec![0; end.saturating_sub(first) as usize], first }
    }

    fn index(&self, blkno: u64) -> Option<usize> {
        let i = usize::try_from(blkno.checked_sub(self.first)?).ok()?;
        (i < self.owners.len()).then_some(i)
    }

    /// Who has the block; `None` if it is not a usable one.
    pub(super) fn owner(&self, blkno: u64) -> Option<Owner> {
        let code = self.owners[self.index(blkno)?];
        Owner::ALL.get(usize::from(code)).copied()
    }

    pub(super) fn set(&mut self, blkno: u64, owner: Owner) {
        if let Some(i) = self.index(blkno) {
            self.owners[i] = owner as u8;
        }
    }

    /// Number of blocks of each kind: used, free, neither.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let none = self.owners.iter().filter(|&&o| o == Owner::None as u8).count() as u64;
        let free = self.owners.iter().filter(|&&o| o == Owner::Listed as u8 || o == Owner::Extent as u8).count() as u64;
        (self.owners.len() as u64 - none - free, free, none)
    }

    /// Blocks that nobody has, ascending.
    pub(super) fn unclaimed(&self) -> impl Iterator<Item = u64> + '_ {
        self.owners.iter().enumerate().filter(|&(_, &o)| o == 0).map(|(i, _)| self.first + i as u64)
    }
}

/// 4 KiB blocks of one chunk: 1 GiB.
const CHUNK_BLOCKS: u64 = 1 << 18;

enum Chunk {
    Bits { bits: Box<[u64]>, set: u64 },
    Full,
}

/// The data device: which blocks are claimed.
pub(super) struct DataMap {
    chunks: BTreeMap<u64, Chunk>,
    first: u64,
    end: u64,
}

impl DataMap {
    /// A map of the blocks `first..end`.
    pub(super) fn new(first: u64, end: u64) -> DataMap {
        DataMap { chunks: BTreeMap::new(), first, end: end.max(first) }
    }

    /// Claims a range. Gives the first block that was claimed before, or that does not exist; the rest is claimed.
    pub(super) fn claim(&mut self, start: u64, len: u64) -> Option<u64> {
        let end = start.saturating_add(len);
        let mut conflict = (start < self.first || end > self.end).then_some(start);
        let (mut at, end) = (start.max(self.first), end.min(self.end));
        while at < end {
            let nr = at / CHUNK_BLOCKS;
            let stop = end.min((nr + 1) * CHUNK_BLOCKS);
            if let Some(hit) = self.claim_in_chunk(nr, at % CHUNK_BLOCKS, stop - at) {
                conflict.get_or_insert(nr * CHUNK_BLOCKS + hit);
            }
            at = stop;
        }
        conflict
    }

    fn claim_in_chunk(&mut self, nr: u64, from: u64, len: u64) -> Option<u64> {
        let new = || Chunk::Bits { bits: vec![0; (CHUNK_BLOCKS / 64) as usize].into(), set: 0 };
        let chunk = self.chunks.entry(nr).or_insert_with(new);
        let Chunk::Bits { bits, set } = chunk else { return Some(from) };
        let mut conflict = None;
        let (mut at, end) = (from, from + len);
        while at < end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let n = (64 - bit).min(end - at);
            let mask = (u64::MAX >> (64 - n)) << bit;
            let hit = bits[word] & mask;
            if hit != 0 {
                conflict.get_or_insert(word as u64 * 64 + u64::from(hit.trailing_zeros()));
            }
            *set += u64::from((mask & !bits[word]).count_ones());
            bits[word] |= mask;
            at += n;
        }
        if *set == CHUNK_BLOCKS {
            *chunk = Chunk::Full;
        }
        conflict
    }

    /// Runs of blocks that nobody claimed, as (first, length).
    pub(super) fn unclaimed(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = self.first;
        std::iter::from_fn(move || {
            let start = self.next(at, false)?;
            let stop = self.next(start, true).unwrap_or(self.end);
            at = stop;
            Some((start, stop - start))
        })
    }

    /// The first block from `at` on that is claimed, or that is not.
    fn next(&self, mut at: u64, claimed: bool) -> Option<u64> {
        while at < self.end {
            let nr = at / CHUNK_BLOCKS;
            let chunk_end = (nr + 1) * CHUNK_BLOCKS;
            match self.chunks.get(&nr) {
                None if !claimed => return Some(at),
                Some(Chunk::Full) if claimed => return Some(at),
                None | Some(Chunk::Full) => at = chunk_end,
                Some(Chunk::Bits { bits, .. }) => {
                    let flip = if claimed { 0 } else { u64::MAX };
                    let word = (bits[(at % CHUNK_BLOCKS / 64) as usize] ^ flip) >> (at % 64);
                    if word != 0 {
                        let hit = at + u64::from(word.trailing_zeros());
                        return (hit < self.end).then_some(hit);
                    }
                    at = (at / 64 + 1) * 64;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn data_blocks_are_counted_as_a_plain_bitmap_counts_them(
            claims in prop::collection::vec((0u64..3000, 1u64..400), 0..40),
            base in prop_oneof![Just(0), Just(CHUNK_BLOCKS - 1500)],
        ) {
            let (first, end) = (base + 64, base + 3100);
            let mut map = DataMap::new(first, end);
            let mut plain = vec![false; 3100];
            for (start, len) in claims {
                let hit = (start..start + len).find(|&b| b >= 3100 || plain[b as usize] || b < 64);
                let got = map.claim(base + start, len);
                prop_assert_eq!(got.is_some(), hit.is_some());
                (start.max(64)..(start + len).min(3100)).for_each(|b| plain[b as usize] = true);
            }
            let runs: Vec<(u64, u64)> = map.unclaimed().collect();
            let mut want = Vec::new();
            for b in 64..3100 {
                if !plain[b as usize] {
                    match want.last_mut() {
                        Some((s, n)) if *s + *n == base + b => *n += 1,
                        _ => want.push((base + b, 1)),
                    }
                }
            }
            prop_assert_eq!(runs, want);
        }
    }

    #[test]
    fn full_chunks_take_no_memory() {
        let mut map = DataMap::new(0, 10 * CHUNK_BLOCKS);
        assert_eq!(map.claim(0, 10 * CHUNK_BLOCKS), None);
        assert!(map.chunks.values().all(|c| matches!(c, Chunk::Full)));
        assert_eq!(map.claim(5 * CHUNK_BLOCKS + 7, 1), Some(5 * CHUNK_BLOCKS + 7));
        assert_eq!(map.unclaimed().count(), 0);
    }
}
