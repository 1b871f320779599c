//! Search files: coding of entries, content of data blocks, index math of the radix tree (`spec/01 §12`).
//!
//! An entry is coded against the one before it in the same block, so a block is read from its start. Everything read is
//! checked while decoding; a block that was accepted once cannot fail later.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::consts::*;
use super::ids::Ino;
use super::layout::{SrchBlockHead, SrchEntry, SrchFile};
use crate::error::{Error, Result};

/// A search entry in native form; ordering is that of sorted files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Entry {
    /// Hash of the xattr name.
    pub hash: u64,
    /// The inode that has the xattr.
    pub ino: u64,
    /// Id of the xattr.
    pub id: u64,
}

impl Entry {
    /// The entry that setting or removing the xattr `name` with this id appends.
    pub fn for_xattr(name: &[u8], ino: Ino, id: u64) -> Entry {
        Entry { hash: super::hash::srch_hash(name), ino: ino.0, id }
    }
}

impl From<SrchEntry> for Entry {
    fn from(e: SrchEntry) -> Entry {
        Entry { hash: e.hash.get(), ino: e.ino.get(), id: e.id.get() }
    }
}

impl From<Entry> for SrchEntry {
    fn from(e: Entry) -> SrchEntry {
        SrchEntry { hash: e.hash.into(), ino: e.ino.into(), id: e.id.into() }
    }
}

/// Appends the code of `entry` after `prev`, and returns its length, 2 to 26 bytes.
pub fn encode_entry(out: &mut Vec<u8>, prev: &Entry, entry: &Entry) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    let mut lengths = 0u16;
    let fields = [(entry.hash, prev.hash), (entry.ino, prev.ino), (entry.id, prev.id)];
    for (i, (new, old)) in fields.into_iter().enumerate() {
        let diff = new.wrapping_sub(old) as i64;
        let zigzag = ((diff << 1) ^ (diff >> 63)) as u64;
        let len = 8 - zigzag.leading_zeros() as usize / 8;
        out.extend_from_slice(&zigzag.to_le_bytes()[..len]);
        lengths |= (len as u16) << (4 * i);
    }
    out[start..start + 2].copy_from_slice(&lengths.to_le_bytes());
    out.len() - start
}

/// Decodes one entry after `prev` from the front of `bytes`; gives it and the length of its code. `None` if the code
/// is cut off.
pub fn decode_entry(bytes: &[u8], prev: &Entry) -> Option<(Entry, usize)> {
    let lengths = u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]);
    let mut at = 2;
    let mut field = |i: u32, old: u64| {
        let len = usize::from(lengths >> (4 * i) & 15).min(8);
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(bytes.get(at..at + len)?);
        at += len;
        let zigzag = u64::from_le_bytes(raw);
        let diff = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        Some(old.wrapping_add(diff))
    };
    let entry = Entry { hash: field(0, prev.hash)?, ino: field(1, prev.ino)?, id: field(2, prev.id)? };
    Some((entry, at))
}

/// A data block that is being filled.
#[derive(Clone, Debug, Default)]
pub struct BlockBuilder {
    first: Entry,
    last: Entry,
    tail: Entry,
    nr: u32,
    coded: Vec<u8>,
}

impl BlockBuilder {
    /// An empty block.
    pub fn new() -> BlockBuilder {
        BlockBuilder::default()
    }

    /// Goes on with a block that was stored before.
    pub fn resume(block: &[u8], blkno: u64) -> Result<BlockBuilder> {
        let head = block_head(block, blkno)?;
        let mut b = BlockBuilder::new();
        let entries = Entries::new(block, blkno)?;
        for e in entries {
            b.tail = e?;
        }
        b.first = head.first.into();
        b.last = head.last.into();
        b.nr = head.entry_nr.get();
        b.coded.extend_from_slice(&block[SRCH_BLOCK_HEAD_BYTES..][..head.entry_bytes.get() as usize]);
        Ok(b)
    }

    /// Is there no room for another entry of any length?
    pub fn is_full(&self) -> bool {
        self.coded.len() > SRCH_BLOCK_SAFE_BYTES
    }

    /// Is there no entry?
    pub fn is_empty(&self) -> bool {
        self.nr == 0
    }

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.nr
    }

    /// Smallest entry.
    pub fn first(&self) -> Entry {
        self.first
    }

    /// Greatest entry.
    pub fn last(&self) -> Entry {
        self.last
    }

    /// Appends an entry; false if the block is full.
    pub fn push(&mut self, entry: Entry) -> bool {
        if self.is_full() {
            return false;
        }
        encode_entry(&mut self.coded, &self.tail, &entry);
        self.first = if self.nr == 0 { entry } else { self.first.min(entry) };
        self.last = if self.nr == 0 { entry } else { self.last.max(entry) };
        self.tail = entry;
        self.nr += 1;
        true
    }

    /// Writes everything after the block header (bytes 32 on); the rest of the block becomes zero.
    pub fn encode(&self, block: &mut [u8; BLOCK_BYTES]) {
        let mut head = SrchBlockHead::new_zeroed();
        head.first = self.first.into();
        head.last = self.last.into();
        head.tail = self.tail.into();
        head.entry_nr = self.nr.into();
        head.entry_bytes = (self.coded.len() as u32).into();
        block[32..SRCH_BLOCK_HEAD_BYTES].copy_from_slice(&head.as_bytes()[32..]);
        let end = SRCH_BLOCK_HEAD_BYTES + self.coded.len();
        block[SRCH_BLOCK_HEAD_BYTES..end].copy_from_slice(&self.coded);
        block[end..].fill(0);
    }
}

/// The head of a data block, with sane lengths.
pub fn block_head(block: &[u8], blkno: u64) -> Result<SrchBlockHead> {
    let bad = |why: String| Error::corrupt(format!("search block {blkno}"), why);
    let (head, _) = SrchBlockHead::read_from_prefix(block).map_err(|_| bad("too short".into()))?;
    let (nr, bytes) = (head.entry_nr.get() as usize, head.entry_bytes.get() as usize);
    if bytes > SRCH_BLOCK_MAX_BYTES || bytes > block.len().saturating_sub(SRCH_BLOCK_HEAD_BYTES) || nr * 2 > bytes {
        return Err(bad(format!("{nr} entries in {bytes} bytes")));
    }
    Ok(head)
}

/// The entries of a data block, checked one by one; ends after the first error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    coded: &'a [u8],
    at: usize,
    prev: Entry,
    left: u32,
    blkno: u64,
}

impl<'a> Entries<'a> {
    /// Reads from the start of `block`.
    pub fn new(block: &'a [u8], blkno: u64) -> Result<Entries<'a>> {
        let head = block_head(block, blkno)?;
        let coded = &block[SRCH_BLOCK_HEAD_BYTES..][..head.entry_bytes.get() as usize];
        Ok(Entries { coded, at: 0, prev: Entry::default(), left: head.entry_nr.get(), blkno })
    }

    /// Byte of the coded entries where the next one starts: what a compaction stores to resume.
    pub fn position(&self) -> u64 {
        self.at as u64
    }

    /// Reads on to byte `position`, which must be the start of an entry or the end.
    pub fn skip_to(&mut self, position: u64) -> Result<()> {
        while (self.at as u64) < position {
            match self.next() {
                Some(entry) => entry.map(drop)?,
                None => break,
            }
        }
        if self.at as u64 == position { Ok(()) } else { Err(self.bad("a position inside an entry")) }
    }

    fn bad(&self, why: &str) -> Error {
        Error::corrupt(format!("search block {} at coded byte {}", self.blkno, self.at), why)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if self.left == 0 {
            if self.at < self.coded.len() {
                let e = self.bad("bytes after the last entry");
                self.at = self.coded.len();
                return Some(Err(e));
            }
            return None;
        }
        let decoded = match self.at {
            at if at > SRCH_BLOCK_SAFE_BYTES => None,
            at => decode_entry(&self.coded[at..], &self.prev),
        };
        match decoded {
            Some((entry, len)) => {
                self.at += len;
                self.left -= 1;
                self.prev = entry;
                Some(Ok(entry))
            }
            None => {
                let e = self.bad("an entry is cut off");
                (self.left, self.at) = (0, self.coded.len());
                Some(Err(e))
            }
        }
    }
}

/// Least height of a file that has a data block with index `blk`.
pub fn height_for(blk: u64) -> u8 {
    let mut height = 1;
    let mut capacity = 1u64;
    while blk >= capacity {
        height += 1;
        match capacity.checked_mul(SRCH_PARENT_REFS) {
            Some(more) => capacity = more,
            None => break,
        }
    }
    height
}

/// Which reference of a parent block at `level` (1 = its children are data blocks) leads to data block `blk`.
pub fn parent_index(level: u8, blk: u64) -> usize {
    let below = SRCH_PARENT_REFS.checked_pow(u32::from(level) - 1);
    below.map_or(0, |n| (blk / n % SRCH_PARENT_REFS) as usize)
}

/// Checks a file descriptor before its tree is walked.
pub fn validate_file(file: &SrchFile, what: &str) -> Result<()> {
    let bad = |why: String| Error::corrupt(format!("search file of {what}"), why);
    let (height, blocks, root) = (file.height, file.blocks.get(), file.block_ref.blkno.get());
    if height > SRCH_MAX_HEIGHT {
        return Err(bad(format!("height {height}")));
    }
    if (height == 0) != (root == 0) {
        return Err(bad(format!("height {height} with root block {root}")));
    }
    let fits = match height {
        0 => blocks == 0,
        h => blocks >= 1 && height_for(blocks - 1) <= h,
    };
    if !fits {
        return Err(bad(format!("{blocks} blocks at height {height}")));
    }
    Ok(())
}

/// Size class of a sorted file: files of one class are compacted together.
pub fn size_class(blocks: u64) -> u32 {
    (u64::BITS - blocks.leading_zeros()) / SRCH_COMPACT_ORDER
}
