//! Storing sorted runs of items leaf by leaf: the log tree's commit and the merge's application.
//!
//! A run is merged into a decoded leaf in one pass, so the cost per item does not depend on how full the leaf is.

use std::iter::Peekable;

use super::node::{Head, Node, item_bytes};
use super::write::{Prepare, descend_or_create, make_room, node};
use super::{ITEM_DELETION, MAX_VALUE_BYTES};
use crate::block::Cow;
use crate::error::{Errno, Error, Result, fail};
use crate::format::Key;
use crate::format::layout::BtreeRoot;

/// An item to be stored by [`insert_list`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogItem<'a> {
    /// Key; strictly ascending in a list.
    pub(crate) key: Key,
    /// Version.
    pub(crate) seq: u64,
    /// [`ITEM_DELETION`] or 0.
    pub(crate) flags: u8,
    /// Value, empty for deletions.
    pub(crate) value: &'a [u8],
}

impl LogItem<'_> {
    pub(super) fn is_deletion(&self) -> bool {
        self.flags & ITEM_DELETION != 0
    }
}

/// What items mean when they are stored.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    /// Keys whose values are added.
    pub(super) delta: fn(&Key) -> bool,
    /// The tree is the main tree: deletions remove, sums of zero vanish (`spec/03 §2.4`). Else a log tree, which keeps both.
    pub(super) main: bool,
}

/// Stores many items at once: new ones are inserted, existing ones overwritten with value, seq and flags; where `delta` says
/// that a key's values are sums, the value is added to the existing one (a zero sum stays as an item). An error can leave a
/// first part stored.
///
/// # Panics
///
/// If the keys do not ascend strictly: items would be stored where no reader finds them.
pub(crate) fn insert_list<'i>(
    cow: &mut Cow,
    root: &mut BtreeRoot,
    items: impl IntoIterator<Item = LogItem<'i>>,
    delta: fn(&Key) -> bool,
) -> Result<()> {
    let rules = Rules { delta, main: false };
    let mut last: Option<Key> = None;
    let in_order = items.into_iter().inspect(|item| {
        assert!(last.is_none_or(|last| last < item.key), "item {} is out of order", item.key);
        last = Some(item.key);
    });
    let mut items = in_order.peekable();
    while let Some(first) = items.peek() {
        let key = first.key;
        if first.value.len() > MAX_VALUE_BYTES {
            return fail(Errno::EINVAL); // before an empty leaf is made for it
        }
        let place = descend_or_create(cow, root, &key, Prepare::NOTHING)?;
        let full_at = apply_run(node(cow, &place.r)?, &mut items, &place.range.end, &rules)?;
        if let Some(rank) = full_at
            && let Some(item) = items.peek()
        {
            make_room(cow, root, &item.key, rank, false)?;
        }
    }
    Ok(())
}

/// Adds two delta values; both must be two 64-bit numbers (`spec/03 §2.5`).
pub(super) fn add_delta(key: &Key, a: &[u8], b: &[u8]) -> Result<[u8; 16]> {
    let halves = |v: &[u8]| -> Option<[u64; 2]> {
        let (total, count) = v.split_first_chunk::<8>()?;
        Some([u64::from_le_bytes(*total), u64::from_le_bytes(count.try_into().ok()?)])
    };
    let (Some(a), Some(b)) = (halves(a), halves(b)) else {
        return Err(Error::corrupt(format!("delta item {key}"), "its value is not two numbers"));
    };
    let mut sum = [0; 16];
    sum[..8].copy_from_slice(&a[0].wrapping_add(b[0]).to_le_bytes());
    sum[8..].copy_from_slice(&a[1].wrapping_add(b[1]).to_le_bytes());
    Ok(sum)
}

pub(super) fn is_null_delta(value: &[u8]) -> bool {
    value.len() == 16 && value.iter().all(|b| *b == 0)
}

/// Stores the items up to the key `end` in a leaf. If room ends first: the rank that the next item would have. The leaf is in
/// order whatever happens; on an error a first part of the items is stored.
pub(super) fn apply_run<'i, I: Iterator<Item = LogItem<'i>>>(
    leaf: &mut Node,
    items: &mut Peekable<I>,
    end: &Key,
    rules: &Rules,
) -> Result<Option<usize>> {
    let mut last = leaf.last_key();
    while let Some(item) = items.peek() {
        if item.key > *end {
            return Ok(None);
        }
        if last.is_some_and(|last| last >= item.key) {
            return merge_run(leaf, items, end, rules);
        }
        check_item(item)?;
        if skips(item, rules) {
            items.next();
            continue;
        }
        if !leaf.has_room(item.value.len()) {
            return Ok(Some(leaf.len()));
        }
        leaf.push(item.key, item.seq, item.flags, item.value);
        last = Some(item.key);
        items.next();
    }
    Ok(None)
}

fn check_item(item: &LogItem) -> Result<()> {
    if item.value.len() > MAX_VALUE_BYTES { fail(Errno::EINVAL) } else { Ok(()) }
}

/// Is there nothing to store for an absent key?
fn skips(item: &LogItem, rules: &Rules) -> bool {
    rules.main && (item.is_deletion() || ((rules.delta)(&item.key) && is_null_delta(item.value)))
}

/// What becomes of an existing item.
enum Outcome {
    Removed,
    Stored(Head),
    Full,
}

/// The general case: one pass over the leaf's items and the new ones.
fn merge_run<'i, I: Iterator<Item = LogItem<'i>>>(
    leaf: &mut Node,
    items: &mut Peekable<I>,
    end: &Key,
    rules: &Rules,
) -> Result<Option<usize>> {
    let old = leaf.take_heads();
    let mut out: Vec<Head> = Vec::with_capacity(old.len() + 64);
    let mut at = 0;
    let mut total = leaf.total();
    let mut dropped = 0;
    let mut ended = Ok(None);
    while let Some(item) = items.peek().filter(|item| item.key <= *end) {
        if let Err(e) = check_item(item) {
            ended = Err(e);
            break;
        }
        let run = count_below(&old[at..], &item.key);
        out.extend_from_slice(&old[at..at + run]);
        at += run;
        let existing = old.get(at).filter(|h| h.key == item.key);
        match outcome(leaf, existing, item, total, rules) {
            Ok(Outcome::Full) => {
                ended = Ok(Some(out.len()));
                break;
            }
            Ok(outcome) => {
                if let Some(h) = existing {
                    total -= item_bytes(h.value_len());
                    dropped += h.value_len();
                    at += 1;
                }
                if let Outcome::Stored(h) = outcome {
                    let h = existing.map_or(h, |old| h.instead_of(old));
                    total += item_bytes(h.value_len());
                    out.push(h);
                }
                items.next();
            }
            Err(e) => {
                ended = Err(e);
                break;
            }
        }
    }
    out.extend_from_slice(&old[at..]);
    leaf.replace_heads(out, total, dropped);
    ended
}

/// How many of the heads have smaller keys: next to nothing if they are few, whatever there is behind.
fn count_below(heads: &[Head], key: &Key) -> usize {
    let mut reach = 1;
    while reach < heads.len() && heads[reach].key < *key {
        reach *= 2;
    }
    heads[..(reach + 1).min(heads.len())].partition_point(|h| h.key < *key)
}

fn outcome(leaf: &mut Node, existing: Option<&Head>, item: &LogItem, total: usize, rules: &Rules) -> Result<Outcome> {
    let mut sum = None;
    match existing {
        None if skips(item, rules) => return Ok(Outcome::Removed),
        None => {}
        Some(h) => {
            let plain = item.is_deletion() || h.flags & ITEM_DELETION != 0;
            if (rules.delta)(&item.key) && !plain {
                let added = add_delta(&item.key, leaf.value_of(h), item.value)?;
                if rules.main && is_null_delta(&added) {
                    return Ok(Outcome::Removed);
                }
                sum = Some(added);
            } else if rules.main && item.is_deletion() {
                return Ok(Outcome::Removed);
            }
        }
    }
    let value = sum.as_ref().map_or(item.value, |sum| &sum[..]);
    let freed = existing.map_or(0, |h| item_bytes(h.value_len()));
    if total - freed + item_bytes(value.len()) > leaf.capacity() {
        return Ok(Outcome::Full);
    }
    Ok(Outcome::Stored(leaf.make(item.key, item.seq, item.flags, value)))
}
