//! Extent arithmetic: what an insertion, a removal or a replacement does to a set of extents (`spec/02 §4`, `spec/07 §3`).
//!
//! Files and free space share these rules. Every change is first *planned* from look-ups alone, as at most four primitive
//! steps, and only then applied. A plan that cannot be made changes nothing; a plan whose application fails is undone, and
//! if even that fails the caller is told to throw the transaction away instead of carrying on with half a change.
//!
//! Invariants:
//! 1. No two extents of a set overlap.
//! 2. An extent has a length of at least one block and ends below 2^64.
//! 3. Two extents merge only if they touch, their flags are equal, and both are unmapped or both are mapped and continue
//!    each other. Requiring *both* maps is what the original forgets: there an erased range swallows its follower.

use smallvec::SmallVec;

use crate::error::{Errno, Error, Result, fail};

/// A run of blocks: of a file (with `map` and `flags`) or of free space (both zero).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub(crate) struct Extent {
    /// First block.
    pub(crate) start: u64,
    /// Number of blocks.
    pub(crate) len: u64,
    /// First block of the data device behind it, 0 for none.
    pub(crate) map: u64,
    /// Offline and unwritten bits.
    pub(crate) flags: u8,
}

impl Extent {
    /// A run of file blocks.
    pub(crate) fn new(start: u64, len: u64, map: u64, flags: u8) -> Extent {
        Extent { start, len, map, flags }
    }

    /// A run of free blocks.
    pub(crate) fn free(start: u64, len: u64) -> Extent {
        Extent { start, len, map: 0, flags: 0 }
    }

    /// Last block.
    pub(crate) fn last(&self) -> u64 {
        self.start + (self.len - 1)
    }

    /// First block behind the extent.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Does it contain this block?
    pub(crate) fn contains(&self, block: u64) -> bool {
        self.start <= block && block <= self.last()
    }

    /// The part that lies in `start..=last`; the caller knows that there is one.
    pub(crate) fn cut(&self, start: u64, last: u64) -> Extent {
        let s = self.start.max(start);
        let e = self.last().min(last);
        debug_assert!(s <= e);
        let map = if self.map == 0 { 0 } else { self.map + (s - self.start) };
        Extent { start: s, len: e - s + 1, map, flags: self.flags }
    }

    fn check(&self) -> Result<()> {
        if self.len == 0 || self.start.checked_add(self.len).is_none() || self.map.checked_add(self.len).is_none() {
            return fail(Errno::EINVAL);
        }
        Ok(())
    }
}

/// May the two become one extent?
pub(crate) fn mergeable(left: &Extent, right: &Extent) -> bool {
    left.end() == right.start
        && left.flags == right.flags
        && match (left.map, right.map) {
            (0, 0) => true,
            (0, _) | (_, 0) => false,
            (l, r) => l + left.len == r,
        }
}

/// Look-ups that planning needs.
pub(crate) trait ExtentRead {
    /// The first extent whose last block is at or after `block`: it contains the block or lies behind it.
    fn next(&mut self, block: u64) -> Result<Option<Extent>>;
}

/// An ordered store of exact extents.
pub(crate) trait ExtentStore: ExtentRead {
    /// Adds an extent that is known not to be there.
    fn insert(&mut self, extent: &Extent) -> Result<()>;
    /// Removes exactly this extent.
    fn remove(&mut self, extent: &Extent) -> Result<()>;
}

/// One primitive step of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Take out this exact extent.
    Remove(Extent),
    /// Put in this exact extent.
    Insert(Extent),
}

/// A planned change, in the order of application.
pub(crate) type Steps = SmallVec<[Step; 4]>;

/// Absorbs the neighbours of `new` that may merge with it.
fn merge_around(
    set: &mut impl ExtentRead,
    new: Extent,
    look_left: bool,
    look_right: bool,
    steps: &mut Steps,
) -> Result<Extent> {
    let mut merged = new;
    if look_right
        && let Some(right) = set.next(new.end())?
        && mergeable(&merged, &right)
    {
        steps.push(Step::Remove(right));
        merged.len += right.len;
    }
    if look_left
        && new.start > 0
        && let Some(left) = set.next(new.start - 1)?
        && mergeable(&left, &merged)
    {
        steps.push(Step::Remove(left));
        merged = Extent { len: left.len + merged.len, ..left };
    }
    Ok(merged)
}

/// Plans the insertion of an extent; `EINVAL` if it overlaps another.
pub(crate) fn plan_insert(set: &mut impl ExtentRead, new: Extent) -> Result<Steps> {
    new.check()?;
    if set.next(new.start)?.is_some_and(|e| e.start <= new.last()) {
        return fail(Errno::EINVAL);
    }
    let mut steps = Steps::new();
    let merged = merge_around(set, new, true, true, &mut steps)?;
    steps.push(Step::Insert(merged));
    Ok(steps)
}

/// Plans the removal of a range that lies in one extent; `EINVAL` if it does not, `ENOENT` if nothing is at or behind it.
pub(crate) fn plan_remove(set: &mut impl ExtentRead, start: u64, len: u64) -> Result<Steps> {
    let range = Extent::free(start, len);
    range.check()?;
    let Some(found) = set.next(start)? else { return fail(Errno::ENOENT) };
    if found.start > start || found.last() < range.last() {
        return fail(Errno::EINVAL);
    }
    let mut steps = Steps::new();
    steps.push(Step::Remove(found));
    push_remainders(&mut steps, &found, &range);
    Ok(steps)
}

/// Inserts what `range` leaves of `old` on both sides; returns whether there was a left and a right remainder.
fn push_remainders(steps: &mut Steps, old: &Extent, range: &Extent) -> (bool, bool) {
    let left = old.start < range.start;
    let right = old.last() > range.last();
    if left {
        steps.push(Step::Insert(old.cut(old.start, range.start - 1)));
    }
    if right {
        steps.push(Step::Insert(old.cut(range.end(), old.last())));
    }
    (left, right)
}

/// Plans the replacement of whatever is in the range of `new` by `new`; `map` 0 and `flags` 0 erases.
///
/// The range must lie inside one extent or touch none, else `EINVAL`.
pub(crate) fn plan_set(set: &mut impl ExtentRead, new: Extent) -> Result<Steps> {
    new.check()?;
    let erase = new.map == 0 && new.flags == 0;
    let mut steps = Steps::new();
    let mut remainder = (false, false);
    if let Some(old) = set.next(new.start)?
        && old.start <= new.last()
    {
        if old.start > new.start || old.last() < new.last() {
            return fail(Errno::EINVAL);
        }
        steps.push(Step::Remove(old));
        remainder = push_remainders(&mut steps, &old, &new);
    }
    if erase {
        return Ok(steps);
    }
    let merged = merge_around(set, new, !remainder.0, !remainder.1, &mut steps)?;
    steps.push(Step::Insert(merged));
    Ok(steps)
}

/// Applies a plan. On an error the steps already made are undone; if that fails too the error says so and the
/// transaction must be abandoned.
pub(crate) fn apply(store: &mut impl ExtentStore, steps: &Steps) -> Result<()> {
    for (i, step) in steps.iter().enumerate() {
        let Err(error) = do_step(store, step) else { continue };
        for done in steps[..i].iter().rev() {
            if let Err(second) = do_step(store, &inverse(done)) {
                return Err(Error::corrupt(
                    "extents in memory",
                    format!("a change failed ({error}) and could not be undone ({second}): transaction unusable"),
                ));
            }
        }
        return Err(error);
    }
    Ok(())
}

fn do_step(store: &mut impl ExtentStore, step: &Step) -> Result<()> {
    match step {
        Step::Remove(e) => store.remove(e),
        Step::Insert(e) => store.insert(e),
    }
}

fn inverse(step: &Step) -> Step {
    match *step {
        Step::Remove(e) => Step::Insert(e),
        Step::Insert(e) => Step::Remove(e),
    }
}

/// Extents in memory, by last block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtentMap {
    map: std::collections::BTreeMap<u64, Extent>,
}

impl ExtentMap {
    /// Extents in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.map.values()
    }

    /// Extents whose last block is at or after `block`, ascending.
    pub(crate) fn iter_from(&self, block: u64) -> impl Iterator<Item = &Extent> {
        self.map.range(block..).map(|(_, e)| e)
    }

    /// Number of extents.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Is there none?
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The first extent whose last block is at or after `block`.
    pub(crate) fn at_or_after(&self, block: u64) -> Option<Extent> {
        self.map.range(block..).next().map(|(_, e)| *e)
    }

    /// Puts in an extent without looking at neighbours; the caller knows that nothing overlaps.
    pub(crate) fn put(&mut self, extent: Extent) {
        self.map.insert(extent.last(), extent);
    }

    /// Takes out the extent with this last block.
    pub(crate) fn take(&mut self, last: u64) -> Option<Extent> {
        let taken = self.map.remove(&last);
        self.free_if_empty();
        taken
    }

    /// A map that was used keeps memory for its next entries; there is one map for each file that was written.
    fn free_if_empty(&mut self) {
        if self.map.is_empty() {
            self.map = std::collections::BTreeMap::new();
        }
    }

    /// Inserts and merges.
    pub(crate) fn add(&mut self, extent: Extent) -> Result<()> {
        let steps = plan_insert(self, extent)?;
        apply(self, &steps)
    }

    /// Removes a range that may touch any number of extents and holes; `gone` is told each removed piece.
    pub(crate) fn erase(&mut self, start: u64, last: u64, mut gone: impl FnMut(Extent)) {
        while let Some(e) = self.at_or_after(start) {
            if e.start > last {
                break;
            }
            let piece = e.cut(start, last);
            self.map.remove(&e.last());
            if e.start < piece.start {
                self.put(e.cut(e.start, piece.start - 1));
            }
            if e.last() > piece.last() {
                self.put(e.cut(piece.end(), e.last()));
            }
            gone(piece);
            if piece.last() == last {
                break;
            }
        }
        self.free_if_empty();
    }
}

impl ExtentRead for ExtentMap {
    fn next(&mut self, block: u64) -> Result<Option<Extent>> {
        Ok(self.at_or_after(block))
    }
}

impl ExtentStore for ExtentMap {
    fn insert(&mut self, extent: &Extent) -> Result<()> {
        self.put(*extent);
        Ok(())
    }

    fn remove(&mut self, extent: &Extent) -> Result<()> {
        match self.map.remove(&extent.last()) {
            Some(e) if e == *extent => Ok(()),
            _ => fail(Errno::ENOENT),
        }
    }
}
