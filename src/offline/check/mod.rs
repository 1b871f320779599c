//! The checker: is every block accounted for once, does every item decode, do all items agree?
//!
//! The original has none. Nothing is changed; a volume that is in use gives nonsense.
//!
//! Problem: a volume is several dozen structures that share one space and describe each other, and a checker that
//! trusts the engine's own code finds none of its mistakes. So this one reads through [`image`](super::image), in
//! steps:
//!
//! 1. Super blocks, quorum blocks; all trees of the server, lists, allocators, the state of a log merge
//!    ([`structures`]). Each block is claimed for its owner ([`account`]): twice is an error.
//! 2. One pass over the merged view of the filesystem tree and all log trees ([`items`]): every item, every inode with
//!    all that belongs to it ([`inode`]). Items that must agree with items elsewhere state facts ([`facts`]).
//! 3. Search files. Blocks that nobody claimed are leaks.
//! 4. If facts disagree, a second pass finds out which.
//!
//! Memory: one byte for each metadata block; bitmaps of partly used GiB of the data device; 17 bytes for each directory
//! up to a limit; 64 KiB for each log tree's bloom filter and for each level of each tree. Nothing else grows.
//!
//! What may be odd and is not an error: level-1 blocks of merged log trees that the original leaks (defect 15), and
//! blocks of search files that it leaks (defect 73), are [`FindingClass::KnownLeak`] warnings; search entries and value
//! index entries without xattr are warnings, because readers must check anyway.

mod account;
mod dirs;
mod facts;
mod findings;
mod inode;
mod items;
mod lists;
mod search;
mod structures;
#[cfg(test)]
mod tests;

pub use findings::{CheckReport, Finding, FindingClass, Severity};

use account::{DataMap, MetaMap, Owner};
use findings::Findings;

use super::image::{Damage, Image, Visitor};
use super::read_super;
use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::check::{DeviceRole, validate_super, validate_super_pair};
use crate::format::consts::*;
use crate::format::layout::SuperBlock;
use crate::format::{Ino, MetaBlock};

/// How to check.
pub struct CheckOptions<'a> {
    /// Called now and then with the state of the work.
    pub progress: Option<&'a dyn Fn(&CheckProgress)>,
    /// Findings that are listed; more are only counted.
    pub max_findings: usize,
    /// Directories whose parents are remembered to find detached loops, 17 bytes each.
    pub max_directories: usize,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        CheckOptions { progress: None, max_findings: 1000, max_directories: 50_000_000 }
    }
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckProgress {
    /// What is being done.
    pub phase: &'static str,
    /// Metadata blocks read.
    pub blocks_read: u64,
    /// Metadata blocks that are in use, as far as known; a little less or more may be read.
    pub blocks_used: u64,
}

/// Checks a volume that nobody has mounted.
///
/// An error means that nothing could be checked: the super block of the metadata device is not one, or a device
/// failed. Everything else is in the report.
pub fn check(meta: &dyn BlockDevice, data: &dyn BlockDevice, options: &CheckOptions<'_>) -> Result<CheckReport> {
    let sb = read_super(meta)?;
    validate_super(&sb, DeviceRole::Meta, meta.size())?;
    let image = Image::new(meta, &sb);
    let mut checker = Checker::new(&image, &sb, data, options);
    checker.data_super(data, &sb);
    checker.quorum_blocks(meta);
    let found = checker.structures();
    let view = checker.view(&found);
    checker.items(&view);
    checker.search_files(&found, &view);
    checker.leaks();
    Ok(checker.finish(&view))
}

/// The state of a check.
struct Checker<'a> {
    image: &'a Image<'a>,
    sb: &'a SuperBlock,
    options: &'a CheckOptions<'a>,
    /// 4 KiB blocks of the data device.
    data_blocks: u64,
    meta: MetaMap,
    data: DataMap,
    findings: Findings,
    report: CheckReport,
    progress: CheckProgress,
}

impl<'a> Checker<'a> {
    fn new(
        image: &'a Image<'a>,
        sb: &'a SuperBlock,
        data: &dyn BlockDevice,
        options: &'a CheckOptions<'a>,
    ) -> Checker<'a> {
        let free: u64 = sb.meta_alloc.iter().map(|a| a.total_len.get()).sum();
        let blocks_used = sb.total_meta_blocks.get().saturating_sub(free);
        Checker {
            image,
            sb,
            options,
            data_blocks: data.size() >> SMALL_SHIFT,
            meta: MetaMap::new(META_START, sb.total_meta_blocks.get()),
            data: DataMap::new(DATA_START, sb.total_data_blocks.get()),
            findings: Findings::new(options.max_findings),
            report: CheckReport {
                fsid: sb.hdr.fsid.get(),
                format_version: sb.fmt_vers.get(),
                ..CheckReport::default()
            },
            progress: CheckProgress { phase: "structures", blocks_read: 0, blocks_used },
        }
    }

    fn phase(&mut self, phase: &'static str) {
        self.progress.phase = phase;
        self.tell();
    }

    fn tell(&self) {
        if let Some(progress) = self.options.progress {
            progress(&self.progress);
        }
    }

    fn find(&mut self, finding: Finding) {
        self.findings.add(finding);
    }

    fn error(&mut self, class: FindingClass, text: impl Into<String>) {
        self.find(Finding::error(class, text));
    }

    /// Claims a metadata block that is in use. False if it must not be read: it is outside, or was claimed before.
    fn claim(&mut self, blkno: MetaBlock, owner: Owner) -> bool {
        match self.meta.owner(blkno.0) {
            Some(Owner::None) => {
                self.meta.set(blkno.0, owner);
                true
            }
            // A merge copies the blocks that it changes and keeps the others; only the splice ends the sharing.
            Some(Owner::FsTree | Owner::FsFreedByMerge) if owner == Owner::MergeResult => false,
            Some(Owner::FsTree) if owner == Owner::FsFreedByMerge => {
                self.meta.set(blkno.0, owner);
                true
            }
            Some(other) => {
                let text = format!("the block belongs to {} and to {}", other.name(), owner.name());
                self.find(Finding::error(FindingClass::Space, text).block(blkno.0));
                false
            }
            None => {
                let text = format!("{} has a block outside of the volume", owner.name());
                self.find(Finding::error(FindingClass::Space, text).block(blkno.0));
                false
            }
        }
    }

    fn damaged(&mut self, damage: Damage) {
        let finding = Finding::error(FindingClass::Block, damage.what).block(damage.blkno);
        self.find(Finding { key: damage.key, ..finding });
    }

    fn count_block(&mut self) {
        self.progress.blocks_read += 1;
        if self.progress.blocks_read.is_multiple_of(256) {
            self.tell();
        }
    }

    /// A visitor that claims for `owner`.
    fn claims(&mut self, owner: Owner) -> Claims<'_, 'a> {
        Claims { checker: self, owner }
    }

    fn data_super(&mut self, data: &dyn BlockDevice, sb: &SuperBlock) {
        let checked = read_super(data).and_then(|dsb| {
            validate_super(&dsb, DeviceRole::Data, data.size())?;
            validate_super_pair(sb, &dsb)
        });
        if let Err(e) = checked {
            self.error(FindingClass::Super, e.to_string());
        }
        if sb.total_data_blocks.get() > self.data_blocks {
            let text = format!("the volume has {} data blocks, the device {}", sb.total_data_blocks, self.data_blocks);
            self.error(FindingClass::Super, text);
        }
    }

    fn quorum_blocks(&mut self, meta: &dyn BlockDevice) {
        for slot in 0..QUORUM_SLOTS {
            if let Err(e) = super::read_quorum_block(meta, self.sb.hdr.fsid.get(), slot) {
                let configured = self.sb.qconf.slots[slot].family.get() == AF_IPV4;
                let severity = if configured { Severity::Error } else { Severity::Warning };
                self.find(Finding::new(severity, FindingClass::Super, e.to_string()));
            }
        }
        // A quorum block that cannot be read was reported above.
        if let Ok(Some(why)) = super::in_use(meta) {
            let text = format!("the volume is in use, or was not left cleanly: {why}");
            self.find(Finding::new(Severity::Note, FindingClass::Super, text));
        }
    }

    /// Blocks that nobody claimed.
    fn leaks(&mut self) {
        self.phase("unaccounted blocks");
        let lost: Vec<u64> = self.meta.unclaimed().collect();
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for blkno in lost {
            let is_known = matches!(
                self.image.identify(blkno),
                Some((MAGIC_BTREE, 1) | (MAGIC_SRCH_BLOCK | MAGIC_SRCH_PARENT, _))
            );
            if is_known { known.push(blkno) } else { unknown.push(blkno) }
        }
        for (severity, class, list, what) in [
            (
                Severity::Warning,
                FindingClass::KnownLeak,
                &known,
                "left behind by a merge or compaction of the original",
            ),
            (Severity::Error, FindingClass::Leak, &unknown, "neither used nor free"),
        ] {
            for (start, len) in runs(list) {
                let text = format!("{len} metadata blocks from {start} on are {what}");
                self.find(Finding::new(severity, class, text).block(start));
            }
        }
        let lost: Vec<(u64, u64)> = self.data.unclaimed().take(self.options.max_findings.max(1)).collect();
        for (start, len) in lost {
            let text = format!("{len} data blocks from {start} on are neither used nor free");
            self.find(Finding::error(FindingClass::Leak, text).data_block(start));
        }
        self.report.leaked_data_blocks = self.data.unclaimed().map(|(_, len)| len).sum();
        (self.report.used_meta_blocks, self.report.free_meta_blocks, self.report.leaked_meta_blocks) =
            self.meta.totals();
    }

    fn finish(mut self, view: &items::View) -> CheckReport {
        self.phase("paths");
        let mut report = self.report;
        (report.errors, report.warnings) = (self.findings.errors, self.findings.warnings);
        report.findings = self.findings.into_list();
        let image = self.image.for_lookups();
        for finding in &mut report.findings {
            finding.path = finding.ino.filter(|i| *i != Ino(0)).and_then(|ino| view.path(&image, ino));
        }
        report
    }
}

/// Joins ascending numbers to runs of (first, length).
fn runs(list: &[u64]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for &n in list {
        match out.last_mut() {
            Some((start, len)) if *start + *len == n => *len += 1,
            _ => out.push((n, 1)),
        }
    }
    out
}

/// Claims every block that is visited.
struct Claims<'c, 'a> {
    checker: &'c mut Checker<'a>,
    owner: Owner,
}

impl Visitor for Claims<'_, '_> {
    fn enter(&mut self, blkno: MetaBlock, _: u8) -> bool {
        self.checker.count_block();
        self.checker.claim(blkno, self.owner)
    }

    fn damaged(&mut self, damage: Damage) {
        self.checker.damaged(damage);
    }
}
