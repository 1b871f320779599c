//! What a check finds, and the report of it.

use std::fmt;

use crate::format::{Ino, Key};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Worth knowing; the volume is fine.
    Note,
    /// Space or entries that nobody needs any more, known to be left by the original. Nothing is lost or wrong.
    Warning,
    /// The volume is inconsistent.
    Error,
}

/// What kind of rule a finding breaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FindingClass {
    /// Super blocks and quorum blocks.
    Super,
    /// A block that cannot be read or verified, or whose structure is wrong.
    Block,
    /// A block that is used or free twice, or both used and free.
    Space,
    /// Blocks that nothing refers to and that are not free.
    Leak,
    /// A leak that the original is known to make.
    KnownLeak,
    /// A free extent without its twin, a wrong sum of free blocks.
    Allocator,
    /// A log tree record, its bloom filter, or an item that must not be where it is.
    LogTrees,
    /// The stored state of a log merge.
    Merge,
    /// An item that does not decode.
    Item,
    /// An inode, or items without one.
    Inode,
    /// Directory entries, link counts, directory sizes.
    Directory,
    /// The entries of the sequence indexes.
    Index,
    /// Orphan items.
    Orphan,
    /// Extended attributes and their parts.
    Xattr,
    /// Totals.
    Total,
    /// The value index of extended attributes.
    ValueIndex,
    /// Search files.
    Search,
    /// Data extents.
    Extent,
}

impl FindingClass {
    /// Name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            FindingClass::Super => "super",
            FindingClass::Block => "block",
            FindingClass::Space => "space",
            FindingClass::Leak => "leak",
            FindingClass::KnownLeak => "known-leak",
            FindingClass::Allocator => "allocator",
            FindingClass::LogTrees => "log-trees",
            FindingClass::Merge => "merge",
            FindingClass::Item => "item",
            FindingClass::Inode => "inode",
            FindingClass::Directory => "directory",
            FindingClass::Index => "index",
            FindingClass::Orphan => "orphan",
            FindingClass::Xattr => "xattr",
            FindingClass::Total => "total",
            FindingClass::ValueIndex => "value-index",
            FindingClass::Search => "search",
            FindingClass::Extent => "extent",
        }
    }
}

impl Severity {
    /// Name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of rule it breaks.
    pub class: FindingClass,
    /// What is wrong, in words.
    pub message: String,
    /// The 64 KiB metadata block concerned.
    pub block: Option<u64>,
    /// The 4 KiB data block concerned.
    pub data_block: Option<u64>,
    /// The key concerned.
    pub key: Option<Key>,
    /// The inode concerned.
    pub ino: Option<Ino>,
    /// Where that inode is in the tree of directories, if it can be found.
    pub path: Option<String>,
}

impl Finding {
    pub(super) fn new(severity: Severity, class: FindingClass, message: impl Into<String>) -> Finding {
        let message = message.into();
        Finding { severity, class, message, block: None, data_block: None, key: None, ino: None, path: None }
    }

    pub(super) fn error(class: FindingClass, message: impl Into<String>) -> Finding {
        Finding::new(Severity::Error, class, message)
    }

    pub(super) fn block(self, blkno: u64) -> Finding {
        Finding { block: Some(blkno), ..self }
    }

    pub(super) fn data_block(self, blkno: u64) -> Finding {
        Finding { data_block: Some(blkno), ..self }
    }

    pub(super) fn key(self, key: Key) -> Finding {
        Finding { key: Some(key), ..self }
    }

    pub(super) fn ino(self, ino: Ino) -> Finding {
        Finding { ino: Some(ino), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] {}", self.severity.name(), self.class.name(), self.message)?;
        let mut sep = " (";
        let mut part = |f: &mut fmt::Formatter<'_>, name: &str, v: Option<&dyn fmt::Display>| match v {
            Some(v) => write!(f, "{}{name} {v}", std::mem::replace(&mut sep, ", ")),
            None => Ok(()),
        };
        part(f, "block", self.block.as_ref().map(|v| v as _))?;
        part(f, "data block", self.data_block.as_ref().map(|v| v as _))?;
        part(f, "key", self.key.as_ref().map(|v| v as _))?;
        part(f, "inode", self.ino.as_ref().map(|v| v as _))?;
        part(f, "path", self.path.as_ref().map(|v| v as _))?;
        if sep == ", " { f.write_str(")") } else { Ok(()) }
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Volume id.
    pub fsid: u64,
    /// Format version.
    pub format_version: u64,
    /// What was found, in the order of finding it; at most [`max_findings`](super::CheckOptions::max_findings).
    pub findings: Vec<Finding>,
    /// Errors, listed or not.
    pub errors: u64,
    /// Warnings, listed or not.
    pub warnings: u64,
    /// Metadata blocks that are in use.
    pub used_meta_blocks: u64,
    /// Metadata blocks that are free.
    pub free_meta_blocks: u64,
    /// Metadata blocks that are neither.
    pub leaked_meta_blocks: u64,
    /// Data blocks that files map.
    pub used_data_blocks: u64,
    /// Data blocks that are free.
    pub free_data_blocks: u64,
    /// Data blocks that are neither.
    pub leaked_data_blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// Directory entries.
    pub entries: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Data extents.
    pub extents: u64,
    /// Items of the merged view.
    pub items: u64,
    /// Log trees.
    pub log_trees: u64,
    /// Entries of search files.
    pub search_entries: u64,
}

impl CheckReport {
    /// Is the volume consistent? Warnings and notes do not count.
    pub fn is_clean(&self) -> bool {
        self.errors == 0
    }
}

/// Where findings go: a bounded list and counters.
pub(super) struct Findings {
    list: Vec<Finding>,
    max: usize,
    pub(super) errors: u64,
    pub(super) warnings: u64,
}

impl Findings {
    pub(super) fn new(max: usize) -> Findings {
        Findings { list: Vec::new(), max, errors: 0, warnings: 0 }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
            Severity::Note => {}
        }
        if self.list.len() < self.max {
            self.list.push(finding);
        }
    }

    pub(super) fn into_list(self) -> Vec<Finding> {
        self.list
    }
}
