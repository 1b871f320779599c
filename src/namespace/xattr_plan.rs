//! What goes with an extended attribute besides its parts: search entry, total, value index (`spec/06 §7.3, §7.5, §7.7`).
//!
//! The side items are part of the same change set as the parts, so neither can exist without the other (defect 58).

use std::ops::ControlFlow;

use super::{Fields, Namespace, Tx};
use crate::error::{Errno, Result, fail};
use crate::format::consts::{FORMAT_VERSION_2, TYPE_XATTR};
use crate::format::layout::XattrTotlVal;
use crate::format::srch::Entry as SrchEntry;
use crate::format::xattr::{
    Tags, XattrFirst, indx_key, indx_numbers, parse_number, parse_stored_number, parse_tags, totl_key,
    validate_xattr_first,
};
use crate::format::{Ino, Key, keys};
use crate::item::{ChangeSet, ItemLock, Value};
use crate::lock::LockName;

/// The side items of changing one attribute.
#[derive(Default)]
pub(crate) struct SideItems {
    /// Logged when an attribute appears or disappears; twice is never.
    pub(crate) srch: Option<SrchEntry>,
    pub(crate) total: Option<(Key, XattrTotlVal)>,
    /// Value index entry to create (true) or delete.
    pub(crate) index: Option<(Key, bool)>,
}

/// Which of the tag zone locks changing an attribute with these tags needs.
pub(crate) fn tag_lock(tags: &Tags) -> Option<LockName> {
    if tags.totl {
        Some(LockName::totl())
    } else if tags.indx {
        Some(LockName::indx())
    } else {
        None
    }
}

/// The tags of a name that is to be set or removed, with everything about it that can be checked without looking.
pub(crate) fn check_tags(name: &[u8], fmt_vers: u64) -> Result<Tags> {
    let tags = parse_tags(name)?;
    if tags.totl && tags.indx {
        return fail(Errno::EINVAL);
    }
    if tags.totl {
        totl_key(name)?;
    }
    if tags.indx {
        if fmt_vers < FORMAT_VERSION_2 {
            return fail(Errno::EOPNOTSUPP);
        }
        indx_numbers(name)?;
    }
    Ok(tags)
}

/// A difference of a total, two's complement.
fn delta(add: Option<u64>, take: Option<u64>) -> XattrTotlVal {
    let total = add.unwrap_or(0).wrapping_sub(take.unwrap_or(0));
    let count = i64::from(add.is_some()) - i64::from(take.is_some());
    XattrTotlVal { total: total.into(), count: (count as u64).into() }
}

/// The number that a stored value has added to its total; one that does not parse has added nothing.
fn counted(value: &[u8]) -> Option<u64> {
    parse_stored_number(value).ok()
}

impl SideItems {
    /// For setting (`new` is the value) or removing attribute `id`, whose old value is `old`. The tags have been checked.
    pub(crate) fn plan(
        (ino, id): (Ino, u64),
        name: &[u8],
        tags: &Tags,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<SideItems> {
        let mut side = SideItems::default();
        if tags.srch && old.is_some() != new.is_some() {
            side.srch = Some(SrchEntry::for_xattr(name, ino, id));
        }
        if tags.totl {
            let add = new.map(parse_number).transpose()?;
            side.total = Some((totl_key(name)?, delta(add, old.and_then(counted))));
        }
        if tags.indx {
            if new.is_some_and(|v| !v.is_empty()) {
                return fail(Errno::EINVAL);
            }
            side.index = Some((indx_key(name, ino, id)?, new.is_some()));
        }
        Ok(side)
    }

    /// Adds the items; `tag` is the lock that [`tag_lock`] named.
    pub(crate) fn add_to<'a>(&self, cs: &mut ChangeSet<'a>, primary: &'a ItemLock, tag: Option<&'a ItemLock>) {
        let Some(tag) = tag else { return };
        match self.index {
            Some((key, true)) => cs.force_create(tag, primary, key, Value::EMPTY),
            Some((key, false)) => cs.force_delete(tag, primary, key),
            None => {}
        }
        if let Some((key, delta)) = self.total {
            cs.delta(tag, key, delta);
        }
    }
}

/// Removing many attributes at once: parts and side items.
#[derive(Default)]
pub(crate) struct XattrRemoval {
    parts: Vec<Key>,
    srch: Vec<SrchEntry>,
    pub(crate) totals: Vec<(Key, XattrTotlVal)>,
    pub(crate) index: Vec<Key>,
}

impl XattrRemoval {
    /// Adds the changes; `tags` are the locks of the tag zones that are needed.
    pub(crate) fn add_to<'a>(&self, cs: &mut ChangeSet<'a>, lock: &'a ItemLock, tags: &'a [(LockName, ItemLock)]) {
        let tag = |name: LockName| tags.iter().find(|(n, _)| *n == name).map(|(_, l)| l);
        if let Some(indx) = tag(LockName::indx()) {
            for key in &self.index {
                cs.force_delete(indx, lock, *key);
            }
        }
        if let Some(totl) = tag(LockName::totl()) {
            for (key, delta) in &self.totals {
                cs.delta(totl, *key, *delta);
            }
        }
        for key in &self.parts {
            cs.delete(lock, *key);
        }
    }

    /// Logs the search entries, after the changes have been applied.
    pub(crate) fn log(&self, tx: &Tx<'_>) {
        for entry in &self.srch {
            tx.hold().srch_append(*entry);
        }
    }

    /// Notes what follows from removing the attribute with this first part. What cannot be understood has no side items:
    /// it must not keep the inode for ever.
    fn note(&mut self, ino: Ino, id: u64, first: &XattrFirst<'_>, fmt_vers: u64) {
        let Ok(tags) = parse_tags(first.name) else { return };
        if tags.srch {
            self.srch.push(SrchEntry::for_xattr(first.name, ino, id));
        }
        if tags.totl && !tags.indx {
            match (totl_key(first.name), counted(first.value_start)) {
                (Ok(key), Some(value)) => self.totals.push((key, delta(None, Some(value)))),
                _ => tracing::warn!(ino = ino.0, "a deleted attribute had a total that cannot be read"),
            }
        }
        if tags.indx
            && !tags.totl
            && fmt_vers >= FORMAT_VERSION_2
            && let Ok(key) = indx_key(first.name, ino, id)
        {
            self.index.push(key);
        }
    }
}

impl Namespace {
    /// Plans to remove the attributes of an inode, whole ones, about `limit` parts; true if these are all.
    pub(crate) fn plan_xattr_removal(
        &self,
        lock: &ItemLock,
        ino: Ino,
        f: &Fields,
        limit: usize,
    ) -> Result<(XattrRemoval, bool)> {
        let mut plan = XattrRemoval::default();
        let mut complete = true;
        if f.next_xattr_id == 0 {
            return Ok((plan, complete));
        }
        self.node.items.scan(lock, keys::inode_items_of_type(ino, TYPE_XATTR), &mut |key, value| {
            if key.fourth == 0 {
                if plan.parts.len() >= limit {
                    complete = false;
                    return ControlFlow::Break(());
                }
                match validate_xattr_first(key, value) {
                    Ok(first) => plan.note(ino, key.third, &first, self.node.fmt_vers),
                    Err(error) => tracing::warn!(%error, "a deleted attribute cannot be read"),
                }
            }
            plan.parts.push(*key);
            ControlFlow::Continue(())
        })?;
        Ok((plan, complete))
    }
}
