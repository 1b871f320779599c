//! Does every directory hang from the root?
//!
//! Each directory has one parent (that is checked where its back references are). So the graph is a tree unless a set of
//! directories forms a loop of its own. The list of (directory, parent) is the one part of the check whose memory grows
//! with the volume, 17 bytes a directory; it is cut at a limit, and then the check says that it did not look.

use super::findings::{Finding, FindingClass, Findings, Severity};
use crate::format::{Ino, keys};

pub(super) struct Parents {
    list: Vec<(u64, u64)>,
    max: usize,
    skipped: bool,
}

impl Parents {
    pub(super) fn new(max: usize) -> Parents {
        Parents { list: Vec::new(), max, skipped: false }
    }

    /// Directories come in ascending order.
    pub(super) fn add(&mut self, dir: Ino, parent: Ino) {
        if self.list.len() < self.max {
            self.list.push((dir.0, parent.0));
        } else {
            self.skipped = true;
        }
    }

    pub(super) fn check(self, findings: &mut Findings) {
        if self.skipped {
            let text = format!("more than {} directories: it was not checked that all hang from the root", self.max);
            return findings.add(Finding::new(Severity::Note, FindingClass::Directory, text));
        }
        const UNKNOWN: u8 = 0;
        const ON_PATH: u8 = 1;
        const DONE: u8 = 2;
        let mut state = vec![UNKNOWN; self.list.len()];
        let find = |ino: u64| self.list.binary_search_by_key(&ino, |e| e.0).ok();
        for start in 0..self.list.len() {
            let mut path = Vec::new();
            let mut at = Some(start);
            while let Some(i) = at {
                if state[i] == ON_PATH {
                    let (dir, parent) = self.list[i];
                    let text = "the directory is in a loop of directories that does not hang from the root";
                    let finding = Finding::error(FindingClass::Directory, text).ino(Ino(dir));
                    findings.add(finding.key(keys::backref(Ino(dir), Ino(parent), 0)));
                }
                if state[i] != UNKNOWN {
                    break;
                }
                state[i] = ON_PATH;
                path.push(i);
                let parent = self.list[i].1;
                at = if parent == Ino::ROOT.0 { None } else { find(parent) };
                if parent != Ino::ROOT.0 && at.is_none() {
                    let text = format!("its parent {parent} is no directory with a parent");
                    findings.add(Finding::error(FindingClass::Directory, text).ino(Ino(self.list[i].0)));
                }
            }
            path.into_iter().for_each(|i| state[i] = DONE);
        }
    }
}
