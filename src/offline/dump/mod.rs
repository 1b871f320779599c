//! Everything that a super block leads to, as text for people.
//!
//! Reads through the same small reader as the checker. A damaged block is reported where it would have been, and what
//! is below it is left out; a block that is reached a second time is named and not printed again, so nothing loops
//! however the volume is damaged. Output is written as it is made; memory does not grow with the volume but for one bit
//! for each metadata block.

mod describe;
#[cfg(test)]
mod tests;

use std::io;

use describe::{describe_item, list_head, log_trees, root, srch_compact, srch_file};

use super::image::{Cursor, Damage, Image, RadixStep, Visitor, walk_radix};
use super::{QuorumSlot, read_quorum_block, read_super};
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::check::{
    validate_log_trees, validate_merge_complete, validate_merge_freeing, validate_merge_request, validate_srch_compact,
};
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::srch::{Entries, block_head};
use crate::format::wire::exact;
use crate::format::{ItemKey, Key, MetaBlock};

/// What to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DumpOptions {
    /// Leave out what is large in a large volume: free extents, entries of lists and search files, filesystem items.
    pub skip_likely_huge: bool,
}

/// Prints the metadata of a volume to `out`.
///
/// An error means that there is no super block on the device, or that `out` or the device failed. Damage further down
/// is printed and passed over.
pub fn dump(meta: &dyn BlockDevice, options: &DumpOptions, out: &mut dyn io::Write) -> Result<()> {
    let sb = read_super(meta)?;
    let image = Image::new(meta, &sb);
    let mut d = Dump {
        image: &image,
        sb: &sb,
        huge: !options.skip_likely_huge,
        out,
        failed: None,
        seen: vec![0; image.blocks().div_ceil(64) as usize],
        indent: 0,
    };
    d.super_block();
    d.quorum_blocks(meta);
    d.server_space();
    d.section("tree of mounted clients", &sb.mounted_clients, true);
    d.section("log merge tree", &sb.log_merge, true);
    d.merge_pieces();
    d.section("tree of search files", &sb.srch_root, true);
    d.search();
    d.section("tree of log trees", &sb.logs_root, true);
    d.log_trees();
    d.section("filesystem tree", &sb.fs_root, d.huge);
    match d.failed {
        // A reader that closed the pipe has seen enough.
        Some(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Some(e) => Err(Error::Device { device: "output".into(), offset: 0, message: e.to_string() }),
        None => Ok(()),
    }
}

struct Dump<'a> {
    image: &'a Image<'a>,
    sb: &'a SuperBlock,
    huge: bool,
    out: &'a mut dyn io::Write,
    /// The first failure to write; after it nothing is written any more.
    failed: Option<io::Error>,
    seen: Vec<u64>,
    indent: usize,
}

impl Visitor for Dump<'_> {
    fn enter(&mut self, blkno: MetaBlock, level: u8) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let (word, bit) = ((blkno.0 / 64) as usize, blkno.0 % 64);
        let again = match self.seen.get_mut(word) {
            Some(w) => std::mem::replace(w, *w | 1 << bit) >> bit & 1 == 1,
            None => false,
        };
        if again {
            self.line(format_args!("block {blkno} was printed before"));
            return false;
        }
        self.line(format_args!("block {blkno} level {level}"));
        true
    }

    fn damaged(&mut self, damage: Damage) {
        let key = damage.key.map(|k| format!(" (keys from {k} on)")).unwrap_or_default();
        self.line(format_args!("DAMAGED block {}{key}: {}", damage.blkno, damage.what));
    }
}

impl Dump<'_> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        if self.failed.is_none() {
            let indent = self.indent * 2;
            if let Err(e) = writeln!(self.out, "{:indent$}{text}", "") {
                self.failed = Some(e);
            }
        }
    }

    fn indented(&mut self, body: impl FnOnce(&mut Self)) {
        self.indent += 1;
        body(self);
        self.indent -= 1;
    }

    fn super_block(&mut self) {
        let sb = self.sb;
        self.line(format_args!("super block {SUPER_BLKNO}"));
        self.indented(|d| {
            d.line(format_args!("crc {:08x} fsid {:016x} seq {}", sb.hdr.crc, sb.hdr.fsid, sb.hdr.seq));
            let uuid = super::mkfs::format_uuid(&sb.uuid);
            d.line(format_args!("format version {} uuid {uuid} flags {:#x}", sb.fmt_vers, sb.flags));
            d.line(format_args!("sequence {} next inode {} inodes {}", sb.seq, sb.next_ino, sb.inode_count));
            d.line(format_args!("metadata blocks {} data blocks {}", sb.total_meta_blocks, sb.total_data_blocks));
            d.line(format_args!("quorum configuration {}", sb.qconf.version));
            for slot in QuorumSlot::list(&sb.qconf) {
                d.line(format_args!("quorum slot {}: {}", slot.nr, slot.addr));
            }
            let opt = &sb.volopt;
            d.line(format_args!("volume options {:#x}", opt.set_bits));
            if opt.set_bits.get() & VOLOPT_DATA_ALLOC_ZONE_BLOCKS != 0 {
                d.line(format_args!("data_alloc_zone_blocks {}", opt.data_alloc_zone_blocks));
            }
        });
    }

    fn quorum_blocks(&mut self, meta: &dyn BlockDevice) {
        for slot in 0..QUORUM_SLOTS {
            let qb = match read_quorum_block(meta, self.sb.hdr.fsid.get(), slot) {
                Ok(qb) => qb,
                Err(e) => {
                    self.line(format_args!("DAMAGED {e}"));
                    continue;
                }
            };
            if qb.write_nr.get() == 0 {
                continue;
            }
            self.line(format_args!("quorum block of slot {slot}: {} updates", qb.write_nr));
            let names = ["begin", "term", "elect", "fence", "stop", "end"];
            self.indented(|d| {
                for (name, e) in names.iter().zip(&qb.events) {
                    let time = format!("{}.{:09}", e.ts.sec, e.ts.nsec);
                    d.line(format_args!("{name:5} update {} rid {:016x} term {} at {time}", e.write_nr, e.rid, e.term));
                }
            });
        }
    }

    fn server_space(&mut self) {
        let sb = self.sb;
        for (i, head) in sb.server_meta_avail.iter().enumerate() {
            self.list(&format!("server's available blocks {i}"), head);
        }
        for (i, head) in sb.server_meta_freed.iter().enumerate() {
            self.list(&format!("server's freed blocks {i}"), head);
        }
        for (i, alloc) in sb.meta_alloc.iter().enumerate() {
            self.extents(&format!("metadata allocator {i}"), alloc);
        }
        self.extents("data allocator", &sb.data_alloc);
    }

    fn list(&mut self, what: &str, head: &AllocListHead) {
        self.line(format_args!("{what}: {}", list_head(head)));
        if !self.huge {
            return;
        }
        let image = self.image;
        let mut entries = Vec::new();
        self.indented(|d| image.walk_list(head, d, &mut |_, blkno| entries.push(blkno.0)));
        entries.sort_unstable();
        self.indented(|d| {
            for run in entries.chunk_by(|a, b| a + 1 == *b) {
                match run {
                    [one] => d.line(format_args!("free {one}")),
                    [first, .., last] => d.line(format_args!("free {first} to {last}")),
                    [] => {}
                }
            }
        });
    }

    fn extents(&mut self, what: &str, alloc: &AllocRoot) {
        let text = format!("{what}: {} free, flags {:#x}", alloc.total_len, alloc.flags);
        self.section(&text, &alloc.root, self.huge);
    }

    /// One tree: its root, and if wanted its blocks and items.
    fn section(&mut self, what: &str, r: &BtreeRoot, items: bool) {
        self.line(format_args!("{what}: {}", root(r)));
        if items {
            self.indented(|d| d.tree(Cursor::new(d.image, r)));
        }
    }

    fn tree(&mut self, mut cursor: Cursor<'_>) {
        let fmt_vers = self.sb.fmt_vers.get();
        while self.failed.is_none() && cursor.advance(self) {
            let Some((item, value)) = cursor.item() else { break };
            let deleted = if item.flags & ITEM_FLAG_DELETION != 0 { " deleted" } else { "" };
            let what = if deleted.is_empty() { describe_item(&item.key, value, fmt_vers) } else { String::new() };
            self.line(format_args!("  {} seq {}{deleted} {what}", item.key, item.seq));
        }
    }

    /// The values of a tree that was printed already.
    fn values<T>(&mut self, r: &BtreeRoot, mut decode: impl FnMut(&Key, &[u8]) -> Option<T>) -> Vec<T> {
        let mut cursor = Cursor::new(self.image, r);
        let mut out = Vec::new();
        // Blocks were printed, so a visitor that refuses those would refuse all; depth alone bounds this walk, and a
        // tree whose blocks repeat is cut off at as many blocks as the device has.
        let mut quiet = Bounded(self.image.blocks());
        while cursor.advance(&mut quiet) {
            if let Some((item, value)) = cursor.item() {
                out.extend(decode(&item.key, value));
            }
        }
        out
    }

    fn merge_pieces(&mut self) {
        enum Piece {
            Request(LogMergeRequest),
            Complete(LogMergeComplete),
            Freeing(LogMergeFreeing),
        }
        let blocks = self.image.blocks();
        let pieces = self.values(&self.sb.log_merge, |key, value| match ItemKey::parse(key)? {
            ItemKey::LogMergeRequest { .. } => Some(Piece::Request(validate_merge_request(value, blocks).ok()?)),
            ItemKey::LogMergeComplete { .. } => Some(Piece::Complete(validate_merge_complete(value, blocks).ok()?)),
            ItemKey::LogMergeFreeing { .. } => Some(Piece::Freeing(validate_merge_freeing(value, blocks).ok()?)),
            _ => None,
        });
        for piece in pieces {
            match piece {
                Piece::Request(r) => {
                    self.list(&format!("merge request {} available blocks", r.seq), &r.meta_avail);
                    self.list(&format!("merge request {} freed blocks", r.seq), &r.meta_freed);
                }
                Piece::Complete(c) => {
                    self.list(&format!("merge completion {} available blocks", c.seq), &c.meta_avail);
                    self.list(&format!("merge completion {} freed blocks", c.seq), &c.meta_freed);
                    self.line(format_args!("merge completion {} result: {}", c.seq, root(&c.root)));
                    if self.huge {
                        self.indented(|d| d.tree(Cursor::part(d.image, &c.root)));
                    }
                }
                Piece::Freeing(f) => {
                    self.line(format_args!("merged tree {} being freed: {}", f.seq, root(&f.root)));
                    if self.huge && f.key.to_key() != Key::ONES {
                        self.indented(|d| d.tree(Cursor::from(d.image, &f.root, f.key.to_key())));
                    }
                }
            }
        }
    }

    fn search(&mut self) {
        let blocks = self.image.blocks();
        let files = self.values(&self.sb.srch_root, |key, value| match ItemKey::parse(key)? {
            ItemKey::SrchLog { .. } | ItemKey::SrchSorted { .. } => {
                Some((key.to_string(), exact::<SrchFile>("search file", value).ok()?))
            }
            _ => None,
        });
        for (key, file) in files {
            self.search_file(&format!("search file {key}"), &file);
        }
        let compactions = self.values(&self.sb.srch_root, |key, value| match ItemKey::parse(key)? {
            ItemKey::SrchPending { .. } | ItemKey::SrchBusy { .. } => validate_srch_compact(value, blocks).ok(),
            _ => None,
        });
        for sc in compactions {
            self.line(format_args!("{}", srch_compact(&sc)));
            self.list("available blocks", &sc.meta_avail);
            self.list("freed blocks", &sc.meta_freed);
            if sc.flags & SRCH_COMPACT_DELETE == 0 {
                self.search_file("output so far", &sc.output);
            }
        }
    }

    fn search_file(&mut self, what: &str, file: &SrchFile) {
        self.line(format_args!("{what}: {}", srch_file(file)));
        if !self.huge || file.height == 0 {
            return;
        }
        let (image, indent) = (self.image, self.indent);
        let mut blocks: Vec<String> = Vec::new();
        self.indent = indent + 1;
        walk_radix(image, file, self, &mut |_, _| RadixStep::Read, &mut |_, index, blkno, block| {
            blocks.push(search_block(index, blkno, block));
        });
        for text in blocks {
            self.line(format_args!("{text}"));
        }
        self.indent = indent;
    }

    fn log_trees(&mut self) {
        let blocks = self.image.blocks();
        let list = self.values(&self.sb.logs_root, |key, value| validate_log_trees(Some(key), value, blocks).ok());
        for lt in list {
            self.line(format_args!("{}", log_trees(&lt)));
            self.indented(|d| {
                d.list("available blocks", &lt.meta_avail);
                d.list("freed blocks", &lt.meta_freed);
                d.extents("data stock", &lt.data_avail);
                d.extents("freed data", &lt.data_freed);
                d.search_file("search log", &lt.srch_file);
                d.bloom(&lt.bloom_ref);
                d.section("items", &lt.item_root, d.huge);
            });
        }
    }

    fn bloom(&mut self, r: &BlockRef) {
        let blkno = r.blkno.get();
        if blkno == 0 || !self.enter(MetaBlock(blkno), 0) {
            return;
        }
        match self.image.read(r, MAGIC_BLOOM) {
            Ok(block) => {
                let set: u64 = block[BLOOM_HEAD_BYTES..].iter().map(|b| u64::from(b.count_ones())).sum();
                self.line(format_args!("bloom filter: {set} of {BLOOM_BITS} bits set"));
            }
            Err(e) => self.damaged(Damage { blkno, key: None, what: e.to_string() }),
        }
    }
}

/// Lets a fixed number of blocks through.
struct Bounded(u64);

impl Visitor for Bounded {
    fn enter(&mut self, _: MetaBlock, _: u8) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 > 0
    }

    fn damaged(&mut self, _: Damage) {}
}

fn search_block(index: u64, blkno: MetaBlock, block: &[u8]) -> String {
    let entries = match (block_head(block, blkno.0), Entries::new(block, blkno.0)) {
        (Ok(_), Ok(entries)) => entries,
        (Err(e), _) | (_, Err(e)) => return format!("DAMAGED {e}"),
    };
    let mut text = format!("data block {index} (block {blkno})");
    for e in entries {
        match e {
            Ok(e) => text.push_str(&format!("\n    {:016x} inode {} id {}", e.hash, e.ino, e.id)),
            Err(e) => text.push_str(&format!("\n    DAMAGED {e}")),
        }
    }
    text
}
