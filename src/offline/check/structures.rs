//! Everything that the server owns: its trees, lists and allocators, log tree records, the state of a log merge.

use super::Checker;
use super::account::Owner;
use super::findings::{Finding, FindingClass, Severity};
use super::items::View;
use super::lists::Space;
use crate::format::check::{
    validate_log_trees, validate_merge_complete, validate_merge_freeing, validate_merge_range, validate_merge_request,
    validate_merge_status, validate_mounted_client, validate_srch_compact, validate_srch_file,
};
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::wire::exact;
use crate::format::{ItemKey, Key, KeyRange, keys};

use super::super::image::{Cursor, Source, SourceKind, Unmerged};

/// What later steps need to know.
#[derive(Default)]
pub(super) struct Found {
    /// All log trees, in key order.
    pub(super) log_trees: Vec<LogTrees>,
    /// Sequence of the running merge.
    pub(super) merge_seq: Option<u64>,
    /// Ranges that are not merged yet.
    pub(super) unmerged: Unmerged,
    /// Completions that are not spliced yet.
    pub(super) completions: Vec<LogMergeComplete>,
    /// Search files of the search tree, with their keys.
    pub(super) files: Vec<(Key, SrchFile)>,
    /// Search compactions.
    pub(super) compactions: Vec<SrchCompact>,
}

impl Checker<'_> {
    /// Checks all server structures.
    pub(super) fn structures(&mut self) -> Found {
        self.phase("server structures");
        let sb = self.sb;
        for head in sb.server_meta_avail.iter().chain(&sb.server_meta_freed) {
            self.list(head, false);
        }
        for (i, root) in sb.meta_alloc.iter().enumerate() {
            self.extents(root, Space::Meta, &format!("metadata allocator {i}"));
        }
        self.extents(&sb.data_alloc, Space::Data, "the data allocator");
        let mut found = Found::default();
        self.mounted_clients();
        self.log_trees(&mut found);
        self.log_merge(&mut found);
        self.srch_tree(&mut found);
        found
    }

    /// Every item of a server tree goes to `item`, which says what is wrong with it.
    fn server_tree(
        &mut self,
        root: &BtreeRoot,
        owner: Owner,
        class: FindingClass,
        item: &mut dyn FnMut(&Key, &[u8]) -> crate::Result<()>,
    ) {
        let mut cursor = Cursor::new(self.image, root);
        while cursor.advance(&mut self.claims(owner)) {
            let Some((i, value)) = cursor.item() else { break };
            if let Err(e) = item(&i.key, value) {
                let key = i.key;
                self.find(Finding::error(class, e.to_string()).key(key));
            }
        }
    }

    fn mounted_clients(&mut self) {
        let root = self.sb.mounted_clients;
        self.server_tree(&root, Owner::ClientsTree, FindingClass::Item, &mut |key, value| {
            validate_mounted_client(value)?;
            match ItemKey::parse(key) {
                Some(ItemKey::MountedClient { .. }) => Ok(()),
                _ => Err(odd_key()),
            }
        });
    }

    fn log_trees(&mut self, found: &mut Found) {
        let (root, blocks) = (self.sb.logs_root, self.image.blocks());
        let mut list = Vec::new();
        self.server_tree(&root, Owner::LogsRoot, FindingClass::LogTrees, &mut |key, value| {
            list.push(validate_log_trees(Some(key), value, blocks)?);
            Ok(())
        });
        for (i, lt) in list.iter().enumerate() {
            let key = keys::log_trees(lt.rid.get().into(), lt.nr.get());
            self.list(&lt.meta_avail, false);
            self.list(&lt.meta_freed, false);
            self.extents(&lt.data_avail, Space::Data, &format!("data stock of log trees {key}"));
            self.extents(&lt.data_freed, Space::Data, &format!("freed data of log trees {key}"));
            let finalized = lt.flags.get() & LOG_TREES_FINALIZED != 0;
            let newest = list.get(i + 1).is_none_or(|next| next.rid != lt.rid);
            if !finalized && !newest {
                let text = "log trees that are not finalized, although the mount has newer ones";
                self.find(Finding::error(FindingClass::LogTrees, text).key(key));
            }
            if lt.rid.get() == 0 || lt.nr.get() == 0 {
                self.find(Finding::error(FindingClass::LogTrees, "log trees without rid or number").key(key));
            }
            let empty = lt.meta_avail.total_nr.get() == 0
                && lt.meta_freed.total_nr.get() == 0
                && lt.data_avail.total_len.get() == 0
                && lt.data_freed.total_len.get() == 0;
            if finalized && (!empty || lt.get_trans_seq != lt.commit_trans_seq) {
                let text = "finalized log trees with free space or an open transaction";
                self.find(Finding::error(FindingClass::LogTrees, text).key(key));
            }
        }
        self.report.log_trees = list.len() as u64;
        found.log_trees = list;
    }

    fn log_merge(&mut self, found: &mut Found) {
        let (root, blocks) = (self.sb.log_merge, self.image.blocks());
        let (mut status, mut requests, mut completes, mut freeing) = (None, Vec::new(), Vec::new(), Vec::new());
        let mut ranges: Vec<(KeyRange, Key)> = Vec::new();
        self.server_tree(&root, Owner::MergeTree, FindingClass::Merge, &mut |key, value| {
            match ItemKey::parse(key).ok_or_else(odd_key)? {
                ItemKey::LogMergeStatus => status = Some(validate_merge_status(value)?),
                ItemKey::LogMergeRange => {
                    let range = validate_merge_range(value)?;
                    if keys::log_merge_range(&range.start.to_key()) != *key {
                        return Err(odd_key());
                    }
                    ranges.push((KeyRange::new(range.start.to_key(), range.end.to_key()), *key));
                }
                ItemKey::LogMergeRequest { .. } => requests.push((validate_merge_request(value, blocks)?, *key)),
                ItemKey::LogMergeComplete { .. } => completes.push((validate_merge_complete(value, blocks)?, *key)),
                ItemKey::LogMergeFreeing { .. } => freeing.push(validate_merge_freeing(value, blocks)?),
                _ => return Err(odd_key()),
            }
            Ok(())
        });
        for (range, _) in &ranges {
            found.unmerged.add(*range);
        }
        for (req, key) in &requests {
            let range = KeyRange::new(req.start.to_key(), req.end.to_key());
            ranges.push((range, *key));
            found.unmerged.add(range);
            self.list(&req.meta_avail, false);
            self.list(&req.meta_freed, false);
        }
        for (comp, key) in &completes {
            ranges.push((KeyRange::new(comp.start.to_key(), comp.end.to_key()), *key));
            found.unmerged.add_completion(comp);
        }
        ranges.sort_by_key(|(r, _)| r.start);
        for pair in ranges.windows(2) {
            if pair[0].0.overlaps(&pair[1].0) {
                let text = format!("two pieces of a log merge overlap, the other is {}", pair[1].1);
                self.find(Finding::error(FindingClass::Merge, text).key(pair[0].1));
            }
        }
        self.merge_counts(status.as_ref(), requests.len(), completes.len(), ranges.len());
        found.merge_seq = status.map(|s| s.seq.get());
        found.completions = completes.into_iter().map(|(c, _)| c).collect();
        for fr in &freeing {
            let mut cursor = Cursor::from(self.image, &fr.root, fr.key.to_key());
            if fr.key.to_key() != Key::ONES {
                while cursor.advance(&mut self.claims(Owner::FreeingTree)) {}
            }
        }
    }

    fn merge_counts(&mut self, status: Option<&LogMergeStatus>, requests: usize, completes: usize, pieces: usize) {
        match status {
            None if pieces > 0 => {
                self.error(FindingClass::Merge, "pieces of a log merge without its status");
            }
            None => {}
            Some(s) => {
                let nr_complete = s.nr_complete.get();
                if s.nr_requests.get() != requests as u64 || nr_complete < completes as u64 {
                    let text = format!(
                        "the log merge status counts {} requests and {nr_complete} completions, there are {requests} \
                         and {completes}",
                        s.nr_requests
                    );
                    self.find(Finding::error(FindingClass::Merge, text).key(keys::LOG_MERGE_STATUS));
                }
                self.find(Finding::new(Severity::Note, FindingClass::Merge, "a log merge was running"));
            }
        }
    }

    fn srch_tree(&mut self, found: &mut Found) {
        let (root, blocks) = (self.sb.srch_root, self.image.blocks());
        self.server_tree(&root, Owner::SrchTree, FindingClass::Search, &mut |key, value| {
            let parsed = ItemKey::parse(key).ok_or_else(odd_key)?;
            let sound = match parsed {
                ItemKey::SrchLog { root } | ItemKey::SrchSorted { root, .. } => {
                    let file: SrchFile = exact("search file", value)?;
                    validate_srch_file(&file, &format!("item {key}"), blocks)?;
                    found.files.push((*key, file));
                    let blocks_agree = match parsed {
                        ItemKey::SrchSorted { blocks, .. } => blocks == file.blocks.get(),
                        _ => true,
                    };
                    file.block_ref.blkno.get() == root.0 && blocks_agree
                }
                ItemKey::SrchPending { id } | ItemKey::SrchBusy { id, .. } => {
                    let sc = validate_srch_compact(value, blocks)?;
                    found.compactions.push(sc);
                    sc.id.get() == id
                }
                _ => false,
            };
            if sound { Ok(()) } else { Err(odd_key()) }
        });
        let compactions = found.compactions.clone();
        for sc in &compactions {
            self.list(&sc.meta_avail, false);
            self.list(&sc.meta_freed, false);
        }
    }

    /// The merged view of everything that was found.
    pub(super) fn view(&mut self, found: &Found) -> View {
        let mut sources = vec![Source { root: self.sb.fs_root, kind: SourceKind::Global }];
        for lt in &found.log_trees {
            let finalized = lt.flags.get() & LOG_TREES_FINALIZED != 0;
            let input = found.merge_seq.is_some_and(|seq| finalized && lt.finalize_seq.get() < seq);
            let kind = if input { SourceKind::MergeInput } else { SourceKind::Log };
            sources.push(Source { root: lt.item_root, kind });
        }
        View {
            sources,
            unmerged: found.unmerged.clone(),
            log_trees: found.log_trees.clone(),
            completions: found.completions.clone(),
            files: found.files.iter().map(|(_, f)| *f).collect(),
        }
    }
}

fn odd_key() -> crate::Error {
    crate::Error::corrupt("item", "its key does not fit its value or its tree")
}
