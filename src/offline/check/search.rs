//! Search files: those of the search tree, those of compactions, those of log trees.

use super::account::Owner;
use super::facts::{Disputed, Fact, Side, Sums};
use super::findings::{Finding, FindingClass};
use super::items::View;
use super::structures::Found;
use super::{Checker, Claims};
use crate::format::MetaBlock;
use crate::format::consts::*;
use crate::format::layout::{SrchCompact, SrchFile};
use crate::format::srch::{Entries, Entry, block_head};

use super::super::image::{Image, Quiet, RadixStep, Visitor, walk_radix};

/// What is expected of a file's entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sorted {
    Yes,
    No,
}

impl Checker<'_> {
    /// Checks and claims all search files.
    pub(super) fn search_files(&mut self, found: &Found, view: &View) {
        self.phase("search files");
        for (key, file) in &found.files {
            let sorted = if key.kind == TYPE_SRCH_BLOCKS { Sorted::Yes } else { Sorted::No };
            self.search_file(file, sorted, &format!("search file {key}"));
        }
        for lt in &view.log_trees {
            let what = format!("search log of log trees {:016x} {}", lt.rid, lt.nr);
            self.search_file(&lt.srch_file, Sorted::No, &what);
        }
        for sc in &found.compactions {
            self.compaction(sc, found);
        }
    }

    fn search_file(&mut self, file: &SrchFile, sorted: Sorted, what: &str) {
        let image = self.image;
        let mut seen = FileCheck::new(sorted);
        let mut problems = Vec::new();
        let mut v = self.claims(Owner::SrchFile);
        walk_radix(image, file, &mut v, &mut |_, _| RadixStep::Read, &mut |_, _, blkno, block| {
            if let Err(why) = seen.block(blkno, block) {
                problems.push((blkno, why));
            }
        });
        for (blkno, why) in problems {
            self.find(Finding::error(FindingClass::Search, format!("{what}: {why}")).block(blkno.0));
        }
        self.report.search_entries += seen.entries;
        if let Some(why) = seen.compare(file) {
            self.error(FindingClass::Search, format!("{what}: {why}"));
        }
    }

    fn compaction(&mut self, sc: &SrchCompact, found: &Found) {
        let inputs = &sc.inputs[..usize::from(sc.nr)];
        if sc.flags & SRCH_COMPACT_DELETE != 0 {
            for input in inputs {
                self.deleting(&input.sfl, input.pos.get().max(1), input.blk.get());
            }
            return;
        }
        // The output so far is the compaction's own; the inputs are still those of the items.
        self.search_file(&sc.output, Sorted::Yes, &format!("output of search compaction {}", sc.id));
        for input in inputs {
            let known =
                found.files.iter().any(|(_, f)| f.block_ref == input.sfl.block_ref && f.blocks == input.sfl.blocks);
            if !known {
                let text = format!("search compaction {} reads a file that is not in the search tree", sc.id);
                self.find(Finding::error(FindingClass::Search, text).block(input.sfl.block_ref.blkno.get()));
            }
        }
    }

    /// The rest of a file that is being freed: everything but what is below `level - 1`, and at `level - 1` before data
    /// block `blk` (`spec/08 §7.5`).
    fn deleting(&mut self, file: &SrchFile, level: u64, blk: u64) {
        let freed = |l: u8, first: u64| {
            let l = u64::from(l) + 1;
            l < level || (l == level && first < blk)
        };
        let height = u64::from(file.height);
        if level > height || (level == height && freed(file.height.saturating_sub(1), 0)) {
            return;
        }
        let image = self.image;
        // Damage is not interesting in what nobody reads any more, but a double use is.
        let mut v = Unread(self.claims(Owner::SrchFile));
        let step = &mut |l: u8, first: u64| if freed(l, first) { RadixStep::Skip } else { RadixStep::Read };
        walk_radix(image, file, &mut v, step, &mut |_, _, _, _| {});
    }

    /// States the entries of all files that count.
    pub(super) fn search_facts(&mut self, view: &View, sums: &mut Sums) {
        let files = self.counting_files(view);
        each_entry(self.image, &files, &mut |e| sums.state(&Fact::Search(e), Side::Derived, (1, 0)));
    }

    /// States them again to find the disputed ones.
    pub(super) fn search_disputes(&mut self, view: &View, disputed: &mut Disputed<'_>) {
        let files = self.counting_files(view);
        each_entry(self.image, &files, &mut |e| disputed.state(&Fact::Search(e), Side::Derived, (1, 0)));
    }

    /// Files that a search reads: those of the search tree and those of log trees.
    fn counting_files(&self, view: &View) -> Vec<SrchFile> {
        let mut files = view.files.clone();
        files.extend(view.log_trees.iter().map(|lt| lt.srch_file));
        files
    }
}

/// Claims blocks; what is wrong with them does not matter.
struct Unread<'c, 'a>(Claims<'c, 'a>);

impl Visitor for Unread<'_, '_> {
    fn enter(&mut self, blkno: MetaBlock, level: u8) -> bool {
        self.0.enter(blkno, level)
    }

    fn damaged(&mut self, _: super::Damage) {}
}

fn each_entry(image: &Image<'_>, files: &[SrchFile], entry: &mut dyn FnMut(Entry)) {
    for file in files {
        walk_radix(image, file, &mut Quiet, &mut |_, _| RadixStep::Read, &mut |_, _, blkno, block| {
            if let Ok(entries) = Entries::new(block, blkno.0) {
                entries.map_while(|e| e.ok()).for_each(&mut *entry);
            }
        });
    }
}

/// What the blocks of one file add up to.
struct FileCheck {
    sorted: Sorted,
    blocks: u64,
    entries: u64,
    bounds: Option<(Entry, Entry)>,
    previous: Option<Entry>,
}

impl FileCheck {
    fn new(sorted: Sorted) -> FileCheck {
        FileCheck { sorted, blocks: 0, entries: 0, bounds: None, previous: None }
    }

    fn block(&mut self, blkno: MetaBlock, block: &[u8]) -> Result<(), String> {
        self.blocks += 1;
        let head = block_head(block, blkno.0).map_err(|e| e.to_string())?;
        let entries = Entries::new(block, blkno.0).map_err(|e| e.to_string())?;
        let (mut bounds, mut tail): (Option<(Entry, Entry)>, _) = (None, Entry::default());
        for e in entries {
            let e = e.map_err(|e| e.to_string())?;
            self.entries += 1;
            if self.sorted == Sorted::Yes && self.previous.is_some_and(|p| p > e) {
                return Err(format!("entry {e:?} is out of order"));
            }
            self.previous = Some(e);
            tail = e;
            bounds = Some(bounds.map_or((e, e), |(a, b)| (a.min(e), b.max(e))));
        }
        let Some((first, last)) = bounds else { return Ok(()) };
        if (first, last, tail) != (head.first.into(), head.last.into(), head.tail.into()) {
            return Err("the head of the block does not have the bounds of its entries".into());
        }
        self.bounds = Some(self.bounds.map_or((first, last), |(a, b)| (a.min(first), b.max(last))));
        Ok(())
    }

    fn compare(&self, file: &SrchFile) -> Option<String> {
        if (self.blocks, self.entries) != (file.blocks.get(), file.entries.get()) {
            let (b, e) = (self.blocks, self.entries);
            return Some(format!("{b} blocks with {e} entries, it says {} and {}", file.blocks, file.entries));
        }
        let outside = self.bounds.is_some_and(|(a, b)| a < file.first.into() || b > file.last.into());
        outside.then(|| "entries outside of its bounds".into())
    }
}
