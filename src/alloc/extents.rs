//! Trees of free extents: the free space of a volume or of a mount (`spec/02 §5.1`, `spec/01 §9.2`).
//!
//! One B-tree holds each free extent twice, by position and by size class, so that both neighbours and large runs are
//! found quickly. Allocation takes from the front of the first extent of the size index.
//!
//! Invariants:
//! 1. Both items of an extent exist or neither does.
//! 2. `total_len` is the sum of all lengths.
//! 3. Extents lie inside the device and do not overlap. Inserting a block that is free already is a double free: it is
//!    reported and left out, because refusing it would make every later commit fail (`spec/00 §6` row 11).
//! 4. Nothing is started that the room of the running commit may not finish ([`mod_blocks`]).

use super::extent::{self, Extent, ExtentRead, ExtentStore, Steps};
use super::list::report_doubles;
use super::zones::{ZoneChoice, ZoneSet};
use crate::block::Cow;
use crate::btree::{self, Reader};
use crate::error::{Errno, Error, Result, fail};
use crate::format::layout::{AllocRoot, BtreeRoot};
use crate::format::{Key, consts, keys};

/// The blocks that may be in a tree: metadata blocks or data blocks of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bounds {
    /// First usable block.
    pub(crate) first: u64,
    /// Behind the last usable block.
    pub(crate) end: u64,
}

impl Bounds {
    /// 64 KiB blocks of a metadata device.
    pub(crate) fn meta(total: u64) -> Bounds {
        Bounds { first: consts::META_START, end: total }
    }

    /// 4 KiB blocks of a data device.
    pub(crate) fn data(total: u64) -> Bounds {
        Bounds { first: consts::DATA_START, end: total }
    }

    /// Does the run lie inside?
    pub(crate) fn contains(&self, start: u64, len: u64) -> bool {
        len > 0 && start >= self.first && start.checked_add(len).is_some_and(|end| end <= self.end)
    }
}

/// Worst-case number of blocks that changing one extent of a tree allocates or frees.
///
/// A change is at most three extents, six items, in up to six leaves. Each leaf may be copied, split and joined, and so may
/// each level of parents; a tree of one leaf can only be copied and split. (The original estimates 15 · (height + 1).)
pub(crate) fn mod_blocks(root: &AllocRoot) -> u64 {
    match u64::from(root.root.height) {
        0 | 1 => 3,
        h => 18 * (h - 1) + 4,
    }
}

/// The extent of an item of either index; `None` if the key is of another family.
fn parse(key: &Key, value_len: usize, bounds: Bounds) -> Result<Option<Extent>> {
    let (last, len) = match key.zone {
        consts::ZONE_FREE_BLKNO => (key.first, key.second),
        consts::ZONE_FREE_ORDER => (key.second, key.third),
        _ => return Ok(None),
    };
    let bad = |why: &str| Err(Error::corrupt(format!("free extent item {key}"), why));
    if value_len != 0 {
        return bad("has a value");
    }
    if len == 0 || last < len - 1 {
        return bad("its length is impossible");
    }
    let e = Extent::free(last - (len - 1), len);
    let twin = if key.zone == consts::ZONE_FREE_BLKNO {
        keys::free_by_blkno(last, len)
    } else {
        keys::free_by_order(last, len)
    };
    if twin != *key {
        return bad("its size class or unused fields are wrong");
    }
    if !bounds.contains(e.start, e.len) {
        return Err(Error::corrupt(
            format!("free extent item {key}"),
            format!("outside blocks {}..{}", bounds.first, bounds.end),
        ));
    }
    Ok(Some(e))
}

/// The first extent at or after a key of the same index.
fn next_at(reader: &Reader<'_>, root: &BtreeRoot, key: &Key, bounds: Bounds) -> Result<Option<Extent>> {
    match btree::next(reader, root, key).map_err(owned)? {
        Some((found, item)) if found.zone == key.zone => parse(&found, item.value.len(), bounds),
        _ => Ok(None),
    }
}

/// Free extents are read by their owner, for whom a stale block is a damaged one.
fn owned(e: Error) -> Error {
    match e {
        Error::Stale { blkno, seq } => {
            Error::corrupt(format!("free extent block {blkno}"), format!("does not hold version {seq:#x}"))
        }
        e => e,
    }
}

/// The first extent in order of size classes at or after this place of the index.
pub(crate) fn next_by_order(
    reader: &Reader<'_>,
    root: &AllocRoot,
    bounds: Bounds,
    after: Option<&Extent>,
) -> Result<Option<Extent>> {
    let key = match after {
        None => Key::new(consts::ZONE_FREE_ORDER, 0, 0, 0, 0, 0),
        Some(e) => keys::free_by_order(e.last(), e.len).next(),
    };
    next_at(reader, &root.root, &key, bounds)
}

/// The extent that contains `block`, or the next one.
pub(crate) fn find(reader: &Reader<'_>, root: &AllocRoot, bounds: Bounds, block: u64) -> Result<Option<Extent>> {
    next_at(reader, &root.root, &keys::free_by_blkno(block, 1), bounds)
}

/// The tree as an extent store.
struct Tree<'t, 'c> {
    cow: &'t mut Cow<'c>,
    root: &'t mut AllocRoot,
    bounds: Bounds,
}

impl ExtentRead for Tree<'_, '_> {
    fn next(&mut self, block: u64) -> Result<Option<Extent>> {
        find(&Reader::with_dirty(self.cow.store, self.cow.dirty), self.root, self.bounds, block)
    }
}

impl ExtentStore for Tree<'_, '_> {
    fn insert(&mut self, e: &Extent) -> Result<()> {
        insert_items(self.cow, self.root, e)
    }

    fn remove(&mut self, e: &Extent) -> Result<()> {
        remove_items(self.cow, self.root, e)
    }
}

/// Adds both items of an extent; neighbours are not looked at.
pub(super) fn insert_items(cow: &mut Cow<'_>, root: &mut AllocRoot, e: &Extent) -> Result<()> {
    let (by_blkno, by_order) = (keys::free_by_blkno(e.last(), e.len), keys::free_by_order(e.last(), e.len));
    btree::insert(cow, &mut root.root, &by_blkno, &[]).map_err(owned)?;
    if let Err(error) = btree::insert(cow, &mut root.root, &by_order, &[]) {
        btree::delete(cow, &mut root.root, &by_blkno).map_err(|second| half_done(&error, &second))?;
        return Err(owned(error));
    }
    root.total_len = (root.total_len.get() + e.len).into();
    Ok(())
}

/// Removes both items of an extent.
pub(super) fn remove_items(cow: &mut Cow<'_>, root: &mut AllocRoot, e: &Extent) -> Result<()> {
    let (by_blkno, by_order) = (keys::free_by_blkno(e.last(), e.len), keys::free_by_order(e.last(), e.len));
    let missing = |error: Error| match error {
        Error::Posix(Errno::ENOENT) => {
            Error::corrupt("free extents", format!("one of the two items of {}+{} is missing", e.start, e.len))
        }
        error => owned(error),
    };
    let total = root.total_len.get().checked_sub(e.len);
    let total = total.ok_or_else(|| Error::corrupt("free extents", "total length is less than an extent"))?;
    btree::delete(cow, &mut root.root, &by_blkno).map_err(missing)?;
    if let Err(error) = btree::delete(cow, &mut root.root, &by_order) {
        btree::insert(cow, &mut root.root, &by_blkno, &[]).map_err(|second| half_done(&error, &second))?;
        return Err(missing(error));
    }
    root.total_len = total.into();
    Ok(())
}

fn half_done(first: &Error, second: &Error) -> Error {
    Error::corrupt(
        "free extents in memory",
        format!("a change failed ({first}) and could not be undone ({second}): transaction unusable"),
    )
}

fn change(
    cow: &mut Cow<'_>,
    root: &mut AllocRoot,
    bounds: Bounds,
    plan: impl FnOnce(&mut Tree<'_, '_>) -> Result<Steps>,
) -> Result<()> {
    let mut tree = Tree { cow, root, bounds };
    let steps = plan(&mut tree)?;
    extent::apply(&mut tree, &steps)
}

/// Adds a free extent, merged with its neighbours. `EINVAL` if it is outside the device or overlaps.
pub(crate) fn insert(cow: &mut Cow<'_>, root: &mut AllocRoot, bounds: Bounds, start: u64, len: u64) -> Result<()> {
    if !bounds.contains(start, len) {
        return fail(Errno::EINVAL);
    }
    change(cow, root, bounds, |t| extent::plan_insert(t, Extent::free(start, len)))
}

/// Adds a free extent, leaving out blocks that are free already; returns how many those were.
pub(crate) fn insert_new(cow: &mut Cow<'_>, root: &mut AllocRoot, bounds: Bounds, start: u64, len: u64) -> Result<u64> {
    insert_new_beside(cow, root, None, bounds, start, len)
}

/// The same for blocks that may be free in a second tree too.
pub(crate) fn insert_new_beside(
    cow: &mut Cow<'_>,
    root: &mut AllocRoot,
    beside: Option<&AllocRoot>,
    bounds: Bounds,
    start: u64,
    len: u64,
) -> Result<u64> {
    if !bounds.contains(start, len) {
        return fail(Errno::EINVAL);
    }
    let mut left_out = 0;
    let (mut at, end) = (start, start + len);
    while at < end {
        let reader = Reader::with_dirty(cow.store, cow.dirty);
        let mut free_end = end;
        let mut known_end = at;
        for root in beside.into_iter().chain([&*root]) {
            match find(&reader, root, bounds, at)? {
                Some(e) if e.start <= at => known_end = known_end.max(e.end()),
                Some(e) => free_end = free_end.min(e.start),
                None => {}
            }
        }
        if known_end > at {
            left_out += known_end.min(end) - at;
            at = known_end;
            continue;
        }
        insert(cow, root, bounds, at, free_end - at)?;
        at = free_end;
    }
    Ok(report_doubles(left_out, "free already"))
}

/// Removes a range that lies in one free extent. `EINVAL` if it does not, `ENOENT` if nothing is at or behind it.
pub(crate) fn remove(cow: &mut Cow<'_>, root: &mut AllocRoot, bounds: Bounds, start: u64, len: u64) -> Result<()> {
    change(cow, root, bounds, |t| extent::plan_remove(t, start, len))
}

/// Takes at most `count` blocks from the front of the first extent of the size index. `ENOSPC` if there is none.
pub(crate) fn alloc(cow: &mut Cow<'_>, root: &mut AllocRoot, bounds: Bounds, count: u64) -> Result<Extent> {
    let first = next_by_order(&Reader::with_dirty(cow.store, cow.dirty), root, bounds, None)?;
    let Some(e) = first else { return fail(Errno::ENOSPC) };
    let taken = Extent::free(e.start, e.len.min(count));
    remove(cow, root, bounds, taken.start, taken.len)?;
    Ok(taken)
}

/// How [`move_extents`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MoveEnd {
    /// All that was asked for has been moved.
    Done,
    /// The budget of the call is used up: call again in a later commit.
    Budget,
    /// The running commit has no room for more.
    Room,
    /// The source has no more.
    Dry,
}

/// Limits of a move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MoveLimits<'a> {
    /// Blocks to move in all.
    pub(crate) total: u64,
    /// Metadata blocks that the call may use, 0 for no limit. At least one extent is moved, whatever the budget: one that
    /// is too small must not stop progress for ever.
    pub(crate) budget: u64,
    /// Room that must be left in the running commit.
    pub(crate) slack: u64,
    /// Preferred places.
    pub(crate) zones: Option<&'a ZoneChoice>,
}

/// Moves free extents from `src` to `dst` (`spec/02 §6.3`); returns the number of blocks moved and why it stopped.
pub(crate) fn move_extents(
    cow: &mut Cow<'_>,
    dst: &mut AllocRoot,
    src: &mut AllocRoot,
    bounds: Bounds,
    limits: &MoveLimits<'_>,
) -> Result<(u64, MoveEnd)> {
    let before = cow.alloc.room();
    let mut moved = 0;
    while moved < limits.total {
        let need = mod_blocks(src) + mod_blocks(dst);
        let now = cow.alloc.room();
        let used = before.0.saturating_sub(now.0).max(before.1.saturating_sub(now.1));
        if limits.budget != 0 && moved > 0 && used + need > limits.budget {
            return Ok((moved, MoveEnd::Budget));
        }
        if cow.alloc.low(limits.slack + need) {
            return Ok((moved, MoveEnd::Room));
        }
        let reader = Reader::with_dirty(cow.store, cow.dirty);
        let Some(e) = choose(&reader, src, bounds, limits.zones, limits.total - moved)? else {
            return Ok((moved, MoveEnd::Dry));
        };
        remove(cow, src, bounds, e.start, e.len)?;
        if let Err(error) = insert_new(cow, dst, bounds, e.start, e.len) {
            insert(cow, src, bounds, e.start, e.len).map_err(|second| half_done(&error, &second))?;
            return Err(error);
        }
        moved += e.len;
    }
    Ok((moved, MoveEnd::Done))
}

/// The next extent to move: from exclusive zones, else from vacant ones, else from anywhere.
fn choose(
    reader: &Reader<'_>,
    src: &AllocRoot,
    bounds: Bounds,
    zones: Option<&ZoneChoice>,
    count: u64,
) -> Result<Option<Extent>> {
    if let Some(zones) = zones {
        for set in [&zones.exclusive, &zones.vacant] {
            if let Some(e) = find_in_zones(reader, src, bounds, set, count)? {
                return Ok(Some(e));
            }
        }
    }
    let first = next_by_order(reader, src, bounds, None)?;
    Ok(first.map(|e| Extent::free(e.start, e.len.min(count))))
}

/// Greatest size class.
const MAX_ORDER: u64 = 17;

/// The largest class of extents that touch a zone of the set, searched as `spec/02 §7.3` tells.
fn find_in_zones(
    reader: &Reader<'_>,
    src: &AllocRoot,
    bounds: Bounds,
    zones: &ZoneSet,
    count: u64,
) -> Result<Option<Extent>> {
    let mut order = MAX_ORDER;
    let mut from = 0;
    loop {
        let Some(zone) = zones.next(from) else {
            if order == 0 || from == 0 {
                return Ok(None);
            }
            (order, from) = (order - 1, 0);
            continue;
        };
        let smallest = 1u64 << (3 * order);
        let last = (zone * zones.size()).saturating_add(smallest - 1);
        let key = Key::new(consts::ZONE_FREE_ORDER, u64::MAX - order, 0, last, 0, 0);
        let Some(e) = next_at(reader, &src.root, &key, bounds)? else {
            // Nothing at or behind this place; smaller classes come later in the index, so there are none.
            return Ok(None);
        };
        order = keys::size_order(e.len);
        if let Some((_, first)) = zones.first_touched(e.start, e.len) {
            let start = first.max(e.start);
            return Ok(Some(Extent::free(start, (e.end() - start).min(count))));
        }
        from = e.last() / zones.size() + 1;
    }
}

/// The zones of `size` blocks that the extents of a tree touch.
pub(crate) fn zones_of(reader: &Reader<'_>, root: &AllocRoot, bounds: Bounds, size: u64) -> Result<ZoneSet> {
    let mut zones = ZoneSet::new(size);
    walk(reader, root, bounds, &mut |e| {
        zones.insert_blocks(e.start, e.len);
        Ok(())
    })?;
    Ok(zones)
}

/// Visits all extents by position, checking their items one by one.
pub(crate) fn walk(
    reader: &Reader<'_>,
    root: &AllocRoot,
    bounds: Bounds,
    visit: &mut dyn FnMut(&Extent) -> Result<()>,
) -> Result<()> {
    let mut block = 0;
    while let Some(e) = find(reader, root, bounds, block)? {
        if e.start < block {
            return Err(Error::corrupt("free extents", format!("{}+{} overlaps its predecessor", e.start, e.len)));
        }
        visit(&e)?;
        block = e.end();
    }
    Ok(())
}

/// The complete check of a tree: every extent in both indices, no overlap, `total_len` right.
#[cfg(test)]
pub(crate) fn check(
    reader: &Reader<'_>,
    root: &AllocRoot,
    bounds: Bounds,
    visit: &mut dyn FnMut(&Extent) -> Result<()>,
) -> Result<()> {
    let (mut total, mut by_position, mut by_order) = (0u64, 0u64, 0u64);
    walk(reader, root, bounds, &mut |e| {
        total += e.len;
        by_position += 1;
        if btree::lookup(reader, &root.root, &keys::free_by_order(e.last(), e.len))?.is_none() {
            return Err(Error::corrupt("free extents", format!("{}+{} is not in the size index", e.start, e.len)));
        }
        visit(e)
    })?;
    let mut at = None;
    while let Some(e) = next_by_order(reader, root, bounds, at.as_ref())? {
        by_order += 1;
        at = Some(e);
    }
    if by_order != by_position {
        return Err(Error::corrupt("free extents", format!("{by_position} by position, {by_order} by size")));
    }
    if total != root.total_len.get() {
        return Err(Error::corrupt("free extents", format!("{total} blocks, the root says {}", root.total_len.get())));
    }
    Ok(())
}
