//! Rules that compare items far apart, in bounded memory.
//!
//! Problem: an index item and its inode, an entry and its back reference, a total and the xattrs it sums do not meet
//! while items are read in key order, and keeping one side needs memory that grows with the volume. Idea: each side
//! states *facts*; both sides of a sound volume state the same ones. The first pass only keeps sums of keyed hashes of
//! the facts, in buckets; sums that differ tell that something is wrong and in which buckets. Only then a second pass
//! reads everything again and keeps the facts of those buckets. Memory is bounded in both.

use std::collections::HashMap;

use super::findings::{Finding, FindingClass, Severity};
use crate::format::srch::Entry;
use crate::format::{Ino, Key, keys};

/// What two sides must agree on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Fact {
    /// Metadata sequence of an inode.
    MetaIndex { seq: u64, ino: u64 },
    /// Data sequence of a regular file.
    DataIndex { seq: u64, ino: u64 },
    /// Inode without links.
    Orphan { ino: u64 },
    /// Entry by name, and by position.
    ByPosition(EntryFact),
    /// Entry by name, and at its target.
    AtTarget(EntryFact),
    /// Value index entry.
    ValueIndex(Key),
    /// Contribution to a total.
    Total(Key),
    /// Search entry; compared by parity.
    Search(Entry),
}

/// Everything that the three items of an entry share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct EntryFact {
    pub(super) dir: u64,
    pub(super) pos: u64,
    pub(super) ino: u64,
    pub(super) hash: u64,
    pub(super) name: u64,
    pub(super) kind: u8,
}

/// Which side states a fact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// The item that is derived: index item, total, entry by position, back reference, search entry.
    Derived,
    /// What it is derived from: inode, xattr, entry by name.
    Source,
}

const KINDS: usize = 8;
const BUCKETS: usize = 4096;
/// Facts that the second pass keeps.
const MAX_KEPT: usize = 200_000;

impl Fact {
    fn kind(&self) -> usize {
        match self {
            Fact::MetaIndex { .. } => 0,
            Fact::DataIndex { .. } => 1,
            Fact::Orphan { .. } => 2,
            Fact::ByPosition(_) => 3,
            Fact::AtTarget(_) => 4,
            Fact::ValueIndex(_) => 5,
            Fact::Total(_) => 6,
            Fact::Search(_) => 7,
        }
    }

    fn words(&self) -> [u64; 6] {
        let entry = |e: &EntryFact| [e.dir, e.pos, e.ino, e.hash, e.name, u64::from(e.kind)];
        let key = |k: &Key| {
            let small = u64::from(k.zone) << 16 | u64::from(k.kind) << 8 | u64::from(k.fourth);
            [k.first, k.second, k.third, small, 0, 0]
        };
        match self {
            Fact::MetaIndex { seq, ino } | Fact::DataIndex { seq, ino } => [*seq, *ino, 0, 0, 0, 0],
            Fact::Orphan { ino } => [*ino, 0, 0, 0, 0, 0],
            Fact::ByPosition(e) | Fact::AtTarget(e) => entry(e),
            Fact::ValueIndex(k) | Fact::Total(k) => key(k),
            Fact::Search(e) => [e.hash, e.ino, e.id, 0, 0, 0],
        }
    }

    fn hash(&self, seed: u64) -> u64 {
        self.words().iter().fold(mix(seed ^ self.kind() as u64), |h, w| mix(h ^ w).wrapping_add(h.rotate_left(17)))
    }
}

fn mix(v: u64) -> u64 {
    let wide = u128::from(v ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    let folded = (wide >> 64) as u64 ^ wide as u64;
    (folded ^ folded >> 29).wrapping_mul(0xca5a_8263_9512_1157)
}

/// The sums of the first pass.
pub(super) struct Sums {
    seed: u64,
    buckets: Vec<[u64; BUCKETS]>,
}

impl Sums {
    pub(super) fn new() -> Sums {
        Sums { seed: rand::random(), buckets: vec![[0; BUCKETS]; KINDS] }
    }

    fn bucket(&self, fact: &Fact) -> (usize, usize, u64) {
        let h = fact.hash(self.seed);
        (fact.kind(), h as usize % BUCKETS, mix(h))
    }

    /// A side states a fact; `amount` is (1, 0) but for totals.
    pub(super) fn state(&mut self, fact: &Fact, side: Side, amount: (u64, u64)) {
        let (kind, at, h) = self.bucket(fact);
        let sum = &mut self.buckets[kind][at];
        if matches!(fact, Fact::Search(_)) {
            *sum ^= h;
            return;
        }
        let v = h.wrapping_mul(amount.0).wrapping_add(mix(h).wrapping_mul(amount.1));
        *sum = if side == Side::Derived { sum.wrapping_add(v) } else { sum.wrapping_sub(v) };
    }

    /// Do all sides agree?
    pub(super) fn agree(&self) -> bool {
        self.buckets.iter().flatten().all(|&s| s == 0)
    }

    fn disputes(&self, fact: &Fact) -> bool {
        let (kind, at, _) = self.bucket(fact);
        self.buckets[kind][at] != 0
    }
}

/// The second pass: the facts themselves, where the sums differ.
pub(super) struct Disputed<'a> {
    sums: &'a Sums,
    kept: HashMap<Fact, (u64, u64)>,
    dropped: u64,
}

impl<'a> Disputed<'a> {
    pub(super) fn new(sums: &'a Sums) -> Disputed<'a> {
        Disputed { sums, kept: HashMap::new(), dropped: 0 }
    }

    pub(super) fn state(&mut self, fact: &Fact, side: Side, amount: (u64, u64)) {
        if !self.sums.disputes(fact) {
            return;
        }
        if self.kept.len() >= MAX_KEPT && !self.kept.contains_key(fact) {
            self.dropped += 1;
            return;
        }
        let sum = self.kept.entry(*fact).or_default();
        let parity = matches!(fact, Fact::Search(_));
        *sum = match (parity, side) {
            (true, Side::Derived) => (sum.0 ^ 1, sum.1),
            (true, Side::Source) => (sum.0, sum.1 ^ 1),
            (false, Side::Derived) => (sum.0.wrapping_add(amount.0), sum.1.wrapping_add(amount.1)),
            (false, Side::Source) => (sum.0.wrapping_sub(amount.0), sum.1.wrapping_sub(amount.1)),
        };
        if *sum == (0, 0) {
            self.kept.remove(fact);
        }
    }

    /// What is left, as findings.
    pub(super) fn findings(self) -> Vec<Finding> {
        let agreed = |(f, sum): &(Fact, (u64, u64))| matches!(f, Fact::Search(_)) && sum.0 == sum.1;
        let mut list: Vec<_> = self.kept.into_iter().filter(|f| !agreed(f)).collect();
        list.sort_by_key(|(f, _)| (f.kind(), f.words()));
        let mut out: Vec<Finding> = list.iter().map(|(fact, sum)| describe(fact, *sum)).collect();
        if self.dropped > 0 {
            let text = format!("{} further disagreements between items are not listed", self.dropped);
            out.push(Finding::error(FindingClass::Item, text));
        }
        out
    }
}

fn describe(fact: &Fact, sum: (u64, u64)) -> Finding {
    let derived = (sum.0 as i64) > 0;
    let entry = |e: &EntryFact, class_item: &str, key: Key| {
        let text = match derived {
            true => format!(
                "{class_item} of an entry at position {} of directory {} that is not there by name",
                e.pos, e.dir
            ),
            false => format!("the entry at position {} of directory {} has no equal {class_item}", e.pos, e.dir),
        };
        Finding::error(FindingClass::Directory, text).key(key).ino(Ino(e.ino))
    };
    match fact {
        Fact::MetaIndex { seq, ino } | Fact::DataIndex { seq, ino } => {
            let meta = matches!(fact, Fact::MetaIndex { .. });
            let (name, key) = match meta {
                true => ("metadata", keys::meta_index((*seq).into(), Ino(*ino))),
                false => ("data", keys::data_index((*seq).into(), Ino(*ino))),
            };
            let text = match derived {
                true => format!("{name} index item of sequence {seq}, which the inode does not have"),
                false => format!("no {name} index item for the inode's sequence {seq}"),
            };
            Finding::error(FindingClass::Index, text).key(key).ino(Ino(*ino))
        }
        Fact::Orphan { ino } => {
            let text = if derived {
                "orphan item of an inode with links"
            } else {
                "inode without links and without orphan item"
            };
            Finding::error(FindingClass::Orphan, text).key(keys::orphan(Ino(*ino))).ino(Ino(*ino))
        }
        Fact::ByPosition(e) => entry(e, "item by position", keys::readdir(Ino(e.dir), e.pos)),
        Fact::AtTarget(e) => entry(e, "back reference", keys::backref(Ino(e.ino), Ino(e.dir), e.pos)),
        Fact::ValueIndex(key) => {
            let ino = match keys::ItemKey::parse(key) {
                Some(keys::ItemKey::Indx { ino, .. }) => ino,
                _ => Ino(0),
            };
            let text =
                if derived { "value index item without its xattr" } else { "xattr without its value index item" };
            // Before release 1.30 the original left these behind when a file was deleted.
            let severity = if derived { Severity::Warning } else { Severity::Error };
            Finding::new(severity, FindingClass::ValueIndex, text).key(*key).ino(ino)
        }
        Fact::Total(key) => {
            let text =
                format!("the total differs from its xattrs by {} in sum and {} in number", sum.0 as i64, sum.1 as i64);
            Finding::error(FindingClass::Total, text).key(*key)
        }
        Fact::Search(e) => {
            let (severity, text) = match sum.0 {
                0 => (Severity::Error, "xattr that no search file finds"),
                _ => (Severity::Warning, "search entry without its xattr"),
            };
            let text = format!("{text}: hash {:016x}, xattr id {}", e.hash, e.id);
            Finding::new(severity, FindingClass::Search, text).ino(Ino(e.ino))
        }
    }
}
