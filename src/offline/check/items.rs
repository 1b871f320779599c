//! The pass over the merged view, what is told of single versions, bloom filters, merge results.

use super::Checker;
use super::account::Owner;
use super::dirs::Parents;
use super::facts::{Disputed, Sums};
use super::findings::{Finding, FindingClass, Severity};
use super::inode::{Counts, FirstPass, ItemWalk, Outputs};
use crate::format::consts::*;
use crate::format::layout::{LogMergeComplete, LogTrees, SrchFile};
use crate::format::{Ino, Key, MetaBlock, bloom_bits, keys, validate_dirent};

use super::super::image::{Cursor, Damage, Image, Merged, Quiet, Source, SourceVisitor, Unmerged};

/// Everything that makes up the filesystem.
pub(super) struct View {
    pub(super) sources: Vec<Source>,
    pub(super) unmerged: Unmerged,
    pub(super) log_trees: Vec<LogTrees>,
    pub(super) completions: Vec<LogMergeComplete>,
    /// Search files of the search tree.
    pub(super) files: Vec<SrchFile>,
}

/// Longest path that is followed up to the root.
const MAX_PATH_PARTS: usize = 512;

impl View {
    /// Where an inode is, by its first link, if it can be followed to the root.
    pub(super) fn path(&self, image: &Image<'_>, ino: Ino) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            if parts.len() == MAX_PATH_PARTS {
                return None;
            }
            let range = keys::inode_items_of_type(at, TYPE_LINK_BACKREF);
            let item = Merged::new(image, &self.sources, &self.unmerged, range.start).next(&mut Quiet)?;
            if !range.contains(&item.key) {
                return None;
            }
            let entry = validate_dirent(&item.key, &item.value).ok()?;
            parts.push(String::from_utf8_lossy(entry.name).into_owned());
            at = Ino(item.key.second);
        }
        parts.reverse();
        Some(format!("/{}", parts.join("/")))
    }
}

impl Checker<'_> {
    /// Reads everything once, and once more if items disagree.
    pub(super) fn items(&mut self, view: &View) {
        self.phase("items");
        let blooms = self.blooms(view);
        let (image, sb, data_blocks) = (self.image, self.sb, self.data_blocks);
        let mut sums = Sums::new();
        let mut counts = Counts::default();
        let mut parents = Parents::new(self.options.max_directories);
        let mut walk = ItemWalk::new(sb, data_blocks);
        let mut merged = Merged::new(image, &view.sources, &view.unmerged, Key::ZEROS);
        loop {
            let item = merged.next(&mut Versions { checker: self, blooms: &blooms, last_lock: None });
            let mut out = Outputs {
                facts: &mut |fact, side, amount| sums.state(fact, side, amount),
                first: Some(FirstPass {
                    findings: &mut self.findings,
                    data: &mut self.data,
                    parents: &mut parents,
                    counts: &mut counts,
                }),
            };
            match item {
                Some(item) => walk.item(&item, &mut out),
                None => break walk.finish(&mut out),
            }
        }
        drop(merged);
        parents.check(&mut self.findings);
        self.merge_results(view);
        self.inode_count(view, &counts);
        self.search_facts(view, &mut sums);
        self.report.items = counts.items;
        self.report.inodes = counts.inodes;
        self.report.entries = counts.entries;
        self.report.xattrs = counts.xattrs;
        self.report.extents = counts.extents;
        self.report.used_data_blocks = counts.data_blocks;
        if !sums.agree() {
            self.disagreements(view, &sums);
        }
    }

    /// The second pass: which items disagree?
    fn disagreements(&mut self, view: &View, sums: &Sums) {
        self.phase("items that disagree");
        let mut disputed = Disputed::new(sums);
        let mut walk = ItemWalk::new(self.sb, self.data_blocks);
        let mut merged = Merged::new(self.image, &view.sources, &view.unmerged, Key::ZEROS);
        {
            let mut out = Outputs { facts: &mut |fact, side, amount| disputed.state(fact, side, amount), first: None };
            while let Some(item) = merged.next(&mut Quiet) {
                walk.item(&item, &mut out);
            }
            walk.finish(&mut out);
        }
        self.search_disputes(view, &mut disputed);
        disputed.findings().into_iter().for_each(|f| self.find(f));
    }

    fn inode_count(&mut self, view: &View, counts: &Counts) {
        let deltas = view.log_trees.iter().fold(0u64, |sum, lt| sum.wrapping_add(lt.inode_count_delta.get()));
        let stored = self.sb.inode_count.get().wrapping_add(deltas);
        if stored != counts.inodes {
            let text = format!("there are {} inodes, the volume counts {}", counts.inodes, stored as i64);
            self.error(FindingClass::Inode, text);
        }
    }

    /// Results of merges that are not spliced in yet: their new blocks are theirs, the others still the filesystem
    /// tree's.
    fn merge_results(&mut self, view: &View) {
        for comp in &view.completions {
            if comp.meta_avail.block_ref.blkno.get() == 0 && comp.meta_freed.block_ref.blkno.get() == 0 {
                continue;
            }
            let mut cursor = Cursor::part(self.image, &comp.root);
            while cursor.advance(&mut self.claims(Owner::MergeResult)) {}
            self.list(&comp.meta_avail, false);
            self.list(&comp.meta_freed, true);
        }
    }

    /// The bloom filters of the log trees, in order of the sources.
    fn blooms(&mut self, view: &View) -> Vec<Option<Vec<u8>>> {
        let mut out = vec![None];
        for lt in &view.log_trees {
            let key = keys::log_trees(lt.rid.get().into(), lt.nr.get());
            let blkno = lt.bloom_ref.blkno.get();
            if blkno == 0 || !self.claim(MetaBlock(blkno), Owner::Bloom) {
                if lt.item_root.height > 0 && blkno == 0 {
                    let text = "log trees with items and without bloom filter: readers skip them";
                    self.find(Finding::error(FindingClass::LogTrees, text).key(key));
                }
                out.push(None);
                continue;
            }
            self.count_block();
            if lt.item_root.height == 0 {
                let text = "log trees with a bloom filter and without items: the original fails to read them";
                self.find(Finding::new(Severity::Warning, FindingClass::LogTrees, text).key(key));
            }
            match self.image.read(&lt.bloom_ref, MAGIC_BLOOM) {
                Ok(block) => {
                    let set: u64 = block[BLOOM_HEAD_BYTES..].iter().map(|b| u64::from(b.count_ones())).sum();
                    let total = u64::from_le_bytes(block[32..40].try_into().expect("eight bytes"));
                    if set != total {
                        let text = format!("bloom filter with {set} bits, its head says {total}");
                        self.find(Finding::error(FindingClass::LogTrees, text).block(blkno).key(key));
                    }
                    out.push(Some(block));
                }
                Err(e) => {
                    self.damaged(Damage { blkno, key: Some(key), what: e.to_string() });
                    out.push(None);
                }
            }
        }
        out
    }
}

/// Looks at each version of each item in its own tree.
struct Versions<'c, 'v, 'a> {
    checker: &'c mut Checker<'a>,
    blooms: &'v [Option<Vec<u8>>],
    last_lock: Option<(usize, Key)>,
}

impl SourceVisitor for Versions<'_, '_, '_> {
    fn enter(&mut self, i: usize, blkno: MetaBlock, _: u8) -> bool {
        self.checker.count_block();
        self.checker.claim(blkno, if i == 0 { Owner::FsTree } else { Owner::LogTree })
    }

    fn damaged(&mut self, _: usize, damage: Damage) {
        self.checker.damaged(damage);
    }

    fn version(&mut self, i: usize, key: &Key, _: u64, flags: u8, value: &[u8]) {
        if i == 0 && flags & ITEM_FLAG_DELETION != 0 {
            let text = "a deletion in the filesystem tree";
            self.checker.find(Finding::error(FindingClass::Item, text).key(*key));
        }
        if keys::is_delta(key) && (value.len() != 16 || flags & ITEM_FLAG_DELETION != 0) {
            let text = "a total or a change of one that is not 16 bytes long";
            self.checker.find(Finding::error(FindingClass::Item, text).key(*key));
        }
        let (Some(Some(bloom)), Some(lock)) = (self.blooms.get(i), lock_start(key)) else { return };
        if self.last_lock != Some((i, lock)) {
            self.last_lock = Some((i, lock));
            let set = |bit: u32| bloom[BLOOM_HEAD_BYTES + bit as usize / 8] >> (bit % 8) & 1 == 1;
            if !bloom_bits(&lock).into_iter().all(set) {
                let text = format!("an item that the bloom filter of its log tree hides (lock {lock})");
                self.checker.find(Finding::error(FindingClass::LogTrees, text).key(*key));
            }
        }
    }
}

/// First key of the lock that covers an item (`spec/01 §4.3`).
fn lock_start(key: &Key) -> Option<Key> {
    let seq_group = !(LOCK_SEQ_GROUP - 1);
    Some(match key.zone {
        ZONE_FS => Key::new(ZONE_FS, key.first & !(LOCK_INODE_GROUP - 1), 0, 0, 0, 0),
        ZONE_INODE_INDEX => Key::new(ZONE_INODE_INDEX, 0, key.kind, key.second & seq_group, 0, 0),
        ZONE_ORPHAN => Key::new(ZONE_ORPHAN, 0, TYPE_ORPHAN, 0, 0, 0),
        ZONE_QUOTA | ZONE_XATTR_TOTL | ZONE_XATTR_INDX => Key::new(key.zone, 0, 0, 0, 0, 0),
        _ => return None,
    })
}
