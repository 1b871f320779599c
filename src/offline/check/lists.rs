//! Free space: lists of metadata blocks, trees of free extents.

use std::collections::HashSet;

use super::account::Owner;
use super::findings::{Finding, FindingClass};
use super::{Checker, Claims};
use crate::format::check::{FreeExtent, validate_free_extent};
use crate::format::consts::*;
use crate::format::layout::{AllocListHead, AllocRoot};
use crate::format::{Key, MetaBlock};

use super::super::image::{Cursor, Damage, Quiet, Visitor};

/// Which device a tree of free extents is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Meta,
    Data,
}

/// Gives list blocks to the claims of the list and entries to those of free space.
struct ListClaims<'c, 'a> {
    claims: Claims<'c, 'a>,
    entries: Owner,
}

impl Visitor for ListClaims<'_, '_> {
    fn enter(&mut self, blkno: MetaBlock, level: u8) -> bool {
        self.claims.enter(blkno, level)
    }

    fn damaged(&mut self, damage: Damage) {
        self.claims.damaged(damage);
    }
}

impl Checker<'_> {
    /// A list of free blocks. Entries of a list of blocks that an unspliced merge has freed may still be in use.
    pub(super) fn list(&mut self, head: &AllocListHead, freed_by_merge: bool) {
        let image = self.image;
        let mut entries = Vec::new();
        let mut v = ListClaims { claims: self.claims(Owner::ListBlock), entries: Owner::Listed };
        if freed_by_merge {
            v.entries = Owner::FsFreedByMerge;
        }
        let kind = v.entries;
        image.walk_list(head, &mut v, &mut |_, blkno| entries.push(blkno));
        for blkno in entries {
            match kind {
                Owner::FsFreedByMerge if self.meta.owner(blkno.0) == Some(Owner::FsTree) => {
                    self.claim(blkno, Owner::FsFreedByMerge);
                }
                _ => {
                    self.claim(blkno, Owner::Listed);
                }
            }
        }
    }

    /// A tree of free extents.
    pub(super) fn extents(&mut self, root: &AllocRoot, space: Space, what: &str) {
        let usable = match space {
            Space::Meta => META_START..self.sb.total_meta_blocks.get(),
            Space::Data => DATA_START..self.sb.total_data_blocks.get(),
        };
        let mut cursor = Cursor::new(self.image, &root.root);
        let (mut sum, mut twins) = (0u64, 0u64);
        let seed: u64 = rand::random();
        while cursor.advance(&mut self.claims(Owner::AllocTree)) {
            let Some((item, value)) = cursor.item() else { break };
            let extent = match validate_free_extent(&item.key, value, usable.clone()) {
                Ok(e) => e,
                Err(e) => {
                    let key = item.key;
                    self.find(Finding::error(FindingClass::Allocator, format!("{what}: {e}")).key(key));
                    continue;
                }
            };
            twins ^= hash(seed, &extent);
            if item.key.zone == ZONE_FREE_BLKNO {
                sum = sum.wrapping_add(extent.len);
                let key = item.key;
                self.claim_free(space, &extent, &key, what);
            }
        }
        if sum != root.total_len.get() {
            let text = format!("{what} has {sum} free blocks, its root says {}", root.total_len);
            self.error(FindingClass::Allocator, text);
        }
        if twins != 0 {
            self.twins(root, usable, what);
        }
    }

    fn claim_free(&mut self, space: Space, e: &FreeExtent, key: &Key, what: &str) {
        match space {
            Space::Meta => {
                for blkno in e.start..e.start + e.len {
                    match self.meta.owner(blkno) {
                        Some(Owner::None) => self.meta.set(blkno, Owner::Extent),
                        _ => {
                            self.claim(MetaBlock(blkno), Owner::Extent);
                        }
                    }
                }
            }
            Space::Data => {
                self.report.free_data_blocks += e.len;
                if let Some(hit) = self.data.claim(e.start, e.len) {
                    let text = format!(
                        "{what}: the free extent of {} blocks from {} is used or free elsewhere",
                        e.len, e.start
                    );
                    self.find(Finding::error(FindingClass::Space, text).key(*key).data_block(hit));
                }
            }
        }
    }

    /// Finds the items whose twin is missing. The memory is that of the extents of one tree, and only for a damaged one.
    fn twins(&mut self, root: &AllocRoot, usable: std::ops::Range<u64>, what: &str) {
        let mut open: HashSet<(FreeExtent, u8)> = HashSet::new();
        let mut cursor = Cursor::new(self.image, &root.root);
        while cursor.advance(&mut Quiet) {
            let Some((item, value)) = cursor.item() else { break };
            if let Ok(e) = validate_free_extent(&item.key, value, usable.clone()) {
                let twin = if item.key.zone == ZONE_FREE_BLKNO { ZONE_FREE_ORDER } else { ZONE_FREE_BLKNO };
                if !open.remove(&(e, twin)) {
                    open.insert((e, item.key.zone));
                }
            }
        }
        let mut open: Vec<_> = open.into_iter().collect();
        open.sort_unstable();
        for (e, zone) in open {
            let text = match zone {
                ZONE_FREE_BLKNO => "by location and not by size",
                _ => "by size and not by location",
            };
            let text = format!("{what}: the free extent of {} blocks from {} is there {text}", e.len, e.start);
            self.error(FindingClass::Allocator, text);
        }
    }
}

fn hash(seed: u64, e: &FreeExtent) -> u64 {
    let mixed = (e.start ^ seed).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ e.len.wrapping_mul(0xca5a_8263_9512_1157);
    (mixed ^ mixed >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
