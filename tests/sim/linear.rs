//! Is there an order of the operations on one object that explains what all nodes saw?
//!
//! The search of Wing and Gong with the memory of Lowe: go through the events in the order of calls and returns; any operation
//! that has been called may be next; an operation must have had its turn before its return. States that were met with the
//! same set of operations done are not tried again.
//!
//! The object remembers what a crash may undo. As long as one node alone works on a directory, what that node changed may be
//! lost in a crash, from some point on; when another node looks, or the node syncs, all that the node ever did has become durable
//! (`spec/04 §1`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::history::{Event, History, Object, Op, What};
use super::work::NAMES;

/// Content of an object: names with inodes, or a file's content under the name 0.
pub(crate) type Value = Vec<(u8, u64)>;

/// An object and what a crash may do to it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    now: Value,
    /// The directories (numbers of [`NAMES`] names) whose changes may be lost, and with whom.
    owners: BTreeMap<u8, u32>,
    /// What may be in all directories of an owner after it has crashed.
    may_be: BTreeMap<u32, BTreeSet<Value>>,
}

/// The directories whose content decides what an operation gives. Where that is not certain there are none: then the checker
/// believes less than it could.
fn touched(op: &Op) -> Vec<u8> {
    match op {
        Op::Write(_) | Op::Read(_) => vec![0],
        Op::Create(a, _) | Op::Unlink(a, _) | Op::Lookup(a, _) | Op::List(a, _) | Op::Rename(a, _, false) => {
            vec![a / NAMES]
        }
        Op::Exchange(_, _, false) => Vec::new(),
        Op::Rename(a, b, true) | Op::Exchange(a, b, true) => {
            let mut both = vec![a / NAMES, b / NAMES];
            both.dedup();
            both
        }
    }
}

fn get(value: &Value, name: u8) -> Option<u64> {
    value.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
}

fn set(value: &Value, name: u8, to: Option<u64>) -> Value {
    let mut new: Value = value.iter().filter(|(n, _)| *n != name).copied().collect();
    new.extend(to.map(|v| (name, v)));
    new.sort_unstable();
    new
}

/// A file whose create never returned: the first who sees it learns its inode.
fn is_unknown(ino: u64) -> bool {
    ino > u64::MAX / 2
}

/// The object after `op`, if `op` could give what it gave.
fn apply(value: &Value, op: &Op) -> Option<Value> {
    let same = |ok: bool| ok.then(|| value.clone());
    match op {
        Op::Write(v) => Some(set(value, 0, Some(*v))),
        Op::Read(v) => same(get(value, 0) == Some(*v)),
        Op::Create(name, None) => same(get(value, *name).is_some()),
        Op::Create(name, Some(ino)) => get(value, *name).is_none().then(|| set(value, *name, Some(*ino))),
        Op::Unlink(name, false) => same(get(value, *name).is_none()),
        Op::Unlink(name, true) => get(value, *name).map(|_| set(value, *name, None)),
        Op::Lookup(name, ino) => match (get(value, *name), ino) {
            (Some(known), Some(ino)) if known != *ino && is_unknown(known) => Some(set(value, *name, Some(*ino))),
            (known, ino) => same(known == *ino),
        },
        Op::Rename(from, _, false) => same(get(value, *from).is_none()),
        Op::Rename(from, to, true) if from == to => same(get(value, *from).is_some()),
        Op::Rename(from, to, true) => {
            let ino = get(value, *from)?;
            Some(set(&set(value, *from, None), *to, Some(ino)))
        }
        Op::Exchange(a, b, false) => same(get(value, *a).is_none() || get(value, *b).is_none()),
        Op::Exchange(a, b, true) => {
            let (first, second) = (get(value, *a)?, get(value, *b)?);
            Some(set(&set(value, *a, Some(second)), *b, Some(first)))
        }
        Op::List(first, all) => {
            let (here, mut rest): (Value, Value) = value.iter().partition(|(n, _)| (*first..first + NAMES).contains(n));
            let alike = here.len() == all.len()
                && here.iter().zip(all).all(|(v, a)| v.0 == a.0 && (v.1 == a.1 || is_unknown(v.1)));
            rest.extend(all);
            rest.sort_unstable();
            alike.then_some(rest)
        }
    }
}

impl State {
    fn new(now: Value) -> State {
        State { now, owners: BTreeMap::new(), may_be: BTreeMap::new() }
    }

    /// The part of the object that `node` may lose.
    fn part(&self, node: u32) -> Value {
        self.now.iter().filter(|(n, _)| self.owners.get(&(n / NAMES)) == Some(&node)).copied().collect()
    }

    /// Everything that `node` has changed is durable.
    fn committed(&mut self, node: u32) {
        self.owners.retain(|_, owner| *owner != node);
        self.may_be.remove(&node);
    }

    /// Another node's lock of the directory was taken away: all that it ever did has been committed.
    fn look(&mut self, node: u32, dir: u8) {
        if let Some(other) = self.owners.get(&dir).copied().filter(|owner| *owner != node) {
            self.committed(other);
        }
    }

    /// What `node` is about to change in the directory may be lost.
    fn own(&mut self, node: u32, dir: u8) {
        if self.owners.get(&dir) == Some(&node) {
            return;
        }
        self.owners.insert(dir, node);
        let here: Value = self.now.iter().filter(|(n, _)| n / NAMES == dir).copied().collect();
        let before = self.may_be.remove(&node).unwrap_or_else(|| BTreeSet::from([Vec::new()]));
        let with = |mut value: Value| {
            value.extend(&here);
            value.sort_unstable();
            value
        };
        self.may_be.insert(node, before.into_iter().map(with).collect());
    }

    fn after(&self, node: u32, what: &What) -> Vec<State> {
        let mut new = self.clone();
        match what {
            What::Do(_, op) => {
                let Some(value) = apply(&self.now, op) else { return Vec::new() };
                // Whoever only reads has nothing to commit when it is asked for the lock.
                let changed = |dir: u8| {
                    let of = |value: &Value| value.iter().filter(|(n, _)| n / NAMES == dir).copied().collect::<Value>();
                    of(&self.now) != of(&value)
                };
                for dir in touched(op) {
                    new.look(node, dir);
                    if changed(dir) {
                        new.own(node, dir);
                    }
                }
                new.now = value;
                let part = new.part(node);
                if let Some(may_be) = new.may_be.get_mut(&node) {
                    may_be.insert(part);
                }
            }
            What::Sync => {
                if let Some(may_be) = new.may_be.get_mut(&node) {
                    *may_be = BTreeSet::from([self.part(node)]);
                }
            }
            What::Gone => {
                let lost: Vec<Value> = new.may_be.get(&node).into_iter().flatten().cloned().collect();
                let rest: Value =
                    self.now.iter().filter(|(n, _)| self.owners.get(&(n / NAMES)) != Some(&node)).copied().collect();
                new.committed(node);
                if !lost.is_empty() {
                    let with = |mut value: Value| {
                        value.extend(&rest);
                        value.sort_unstable();
                        State { now: value, ..new.clone() }
                    };
                    return lost.into_iter().map(with).collect();
                }
            }
        }
        vec![new]
    }
}

/// Nobody finds an explanation in this many steps: given up, which is said aloud.
const PATIENCE: u64 = 20_000_000;

/// The verdict on one object.
#[derive(Debug)]
pub(crate) enum Verdict {
    Fine,
    /// Not decided.
    TooHard,
    /// No order explains it; the events until which one does, and the next ones.
    Wrong(String),
}

struct Entry {
    event: usize,
    returns: bool,
}

/// Checks one object that began as `first`.
pub(crate) fn check(history: &History, object: Object, first: Value) -> Verdict {
    explain(&history.of(object), |node| history.end_of(node), first)
}

/// The same for these events; `end_of` tells when a node ended, if it did.
fn explain(events: &[Event], end_of: impl Fn(u32) -> Option<u64>, first: Value) -> Verdict {
    // Never returned and the node lives on, or ended: it may happen until then, or not at all.
    let last = u64::MAX;
    let end = |e: &Event| e.back.or_else(|| end_of(e.node)).unwrap_or(last);
    let optional: Vec<bool> = events.iter().map(|e| e.back.is_none()).collect();
    let mut entries: Vec<(u64, bool, Entry)> = Vec::new();
    for (i, e) in events.iter().enumerate() {
        entries.push((e.call, false, Entry { event: i, returns: false }));
        // What ends with its node ends before the node does.
        entries.push((end(e), e.back.is_some(), Entry { event: i, returns: true }));
    }
    entries.sort_by_key(|(at, really, e)| (*at, *really, e.returns));
    let entries: Vec<Entry> = entries.into_iter().map(|(.., e)| e).collect();
    search(events, &entries, &optional, first)
}

fn search(events: &[Event], entries: &[Entry], optional: &[bool], first: Value) -> Verdict {
    // Breadth first over the entries: all (state, operations done among the open ones) that are possible here.
    let start = State::new(first);
    let mut open: Vec<usize> = Vec::new();
    let mut configs: HashSet<(State, Vec<usize>)> = HashSet::from([(start, Vec::new())]);
    let mut steps = 0;
    for (at, entry) in entries.iter().enumerate() {
        if !entry.returns {
            open.push(entry.event);
            continue;
        }
        // Everything that may have happened by now, until the one that returns has.
        let mut next: HashSet<(State, Vec<usize>)> = HashSet::new();
        let mut seen: HashSet<u64> = HashSet::new();
        let mut todo: Vec<(State, Vec<usize>)> = configs.iter().cloned().collect();
        while let Some((state, done)) = todo.pop() {
            steps += 1;
            if steps > PATIENCE {
                return Verdict::TooHard;
            }
            let mut hasher = DefaultHasher::new();
            (&state, &done).hash(&mut hasher);
            if !seen.insert(hasher.finish()) {
                continue;
            }
            if done.contains(&entry.event) || optional[entry.event] {
                let rest = done.iter().copied().filter(|e| *e != entry.event).collect();
                next.insert((state.clone(), rest));
                if done.contains(&entry.event) {
                    continue;
                }
                if !optional[entry.event] {
                    continue;
                }
            }
            for &e in open.iter().filter(|e| !done.contains(e)) {
                for after in state.after(events[e].node, &events[e].what) {
                    let mut more = done.clone();
                    more.push(e);
                    more.sort_unstable();
                    todo.push((after, more));
                }
            }
        }
        if next.is_empty() {
            return Verdict::Wrong(story(events, entries, at, &configs));
        }
        open.retain(|e| *e != entry.event);
        configs = next;
    }
    Verdict::Fine
}

fn story(events: &[Event], entries: &[Entry], at: usize, configs: &HashSet<(State, Vec<usize>)>) -> String {
    let mut out = String::from("no order explains the last of these:\n");
    for entry in &entries[at.saturating_sub(60)..=at] {
        let e = &events[entry.event];
        let dir = if entry.returns { "<-" } else { "->" };
        let end = e.back.map_or("never".into(), |b| b.to_string());
        out += &format!("  node {} {dir} {:?} ({}..{end})\n", e.node, e.what, e.call);
    }
    out += "possible before it:\n";
    for (state, done) in configs.iter().take(8) {
        out += &format!("  {state:?} with {done:?} done\n");
    }
    out
}

/// The checker must find what it is there for, and nothing else: made-up histories with their verdicts. Run before any seed.
pub(crate) fn test_the_checker() {
    const NEVER: u64 = 0;
    const A: u32 = 1;
    const B: u32 = 2;
    let file = |op: Op| What::Do(Object::File(0), op);
    let dir = |op: Op| What::Do(Object::Dir(0), op);
    let (write, read) = (|v| file(Op::Write(v)), |v| file(Op::Read(v)));
    let lookup = |n, ino| dir(Op::Lookup(n, ino));
    let create = |n, ino| dir(Op::Create(n, ino));
    let rename = |a, b, ok| dir(Op::Rename(a, b, ok));
    // Name, is it right, who did what between which moments.
    let cases: Vec<(&str, bool, Vec<(u32, What, u64, u64)>)> = vec![
        ("a value is read", true, vec![(A, write(1), 1, 2), (B, read(1), 3, 4)]),
        ("a stale value is read", false, vec![(A, write(1), 1, 2), (B, read(0), 3, 4)]),
        ("either value beside the write", true, vec![(A, write(1), 1, 4), (B, read(0), 2, 3), (B, read(1), 5, 6)]),
        ("a value comes and goes", false, vec![(A, write(1), 1, 8), (B, read(1), 2, 3), (B, read(0), 4, 5)]),
        ("a value of nobody", false, vec![(A, write(1), 1, 2), (B, read(7), 3, 4)]),
        ("what was not synced is lost", true, vec![(A, write(1), 1, 2), (A, What::Gone, 3, 3), (B, read(0), 4, 5)]),
        (
            "what was synced is lost",
            false,
            vec![(A, write(1), 1, 2), (A, What::Sync, 3, 4), (A, What::Gone, 5, 5), (B, read(0), 6, 7)],
        ),
        (
            "what another node has seen is lost",
            false,
            vec![(A, write(1), 1, 2), (B, read(1), 3, 4), (A, What::Gone, 5, 5), (B, read(0), 6, 7)],
        ),
        (
            "the later of two writes is lost alone",
            true,
            vec![(A, write(1), 1, 2), (A, write(2), 3, 4), (A, What::Gone, 5, 5), (B, read(1), 6, 7)],
        ),
        (
            "a write without return happens",
            true,
            vec![(A, write(1), 1, NEVER), (A, What::Gone, 2, 2), (B, read(1), 3, 4)],
        ),
        (
            "it happens after the node is gone",
            false,
            vec![(A, write(1), 1, NEVER), (A, What::Gone, 2, 2), (B, read(0), 3, 4), (B, read(1), 5, 6)],
        ),
        ("a name exists", true, vec![(A, create(0, Some(9)), 1, 2), (B, lookup(0, Some(9)), 3, 4)]),
        ("a name is missing", false, vec![(A, create(0, Some(9)), 1, 2), (B, lookup(0, None), 3, 4)]),
        ("two nodes make one name", false, vec![(A, create(0, Some(8)), 1, 4), (B, create(0, Some(9)), 2, 3)]),
        (
            "a renamed file has two names",
            false,
            vec![
                (A, create(0, Some(9)), 1, 2),
                (A, rename(0, 1, true), 3, 4),
                (B, lookup(1, Some(9)), 5, 6),
                (B, lookup(0, Some(9)), 7, 8),
            ],
        ),
        (
            "half of a rename is durable",
            false,
            vec![
                (A, create(0, Some(9)), 1, 2),
                (A, What::Sync, 3, 4),
                (A, rename(0, NAMES, true), 5, 6),
                (A, What::Gone, 7, 7),
                (B, lookup(0, None), 8, 9),
                (B, lookup(NAMES, None), 10, 11),
            ],
        ),
        (
            "others work in one directory, what was done in another is lost",
            true,
            vec![
                (A, create(0, Some(9)), 1, 2),
                (B, create(NAMES, Some(8)), 3, 4),
                (A, What::Gone, 5, 5),
                (B, lookup(0, None), 6, 7),
                (B, lookup(NAMES, Some(8)), 8, 9),
            ],
        ),
        (
            "a directory that was only read makes nobody commit",
            true,
            vec![
                (A, create(NAMES, Some(9)), 1, 2),
                (A, lookup(0, None), 3, 4),
                (B, create(0, Some(8)), 5, 6),
                (A, What::Gone, 7, 7),
                (B, lookup(NAMES, None), 8, 9),
            ],
        ),
        (
            "a commit is of all that the node did",
            false,
            vec![
                (A, create(0, Some(9)), 1, 2),
                (A, create(NAMES, Some(8)), 3, 4),
                (B, lookup(NAMES, Some(8)), 5, 6),
                (A, What::Gone, 7, 7),
                (B, lookup(0, None), 8, 9),
            ],
        ),
        (
            "a listing mixes two moments",
            false,
            vec![
                (A, create(0, Some(8)), 1, 2),
                (A, rename(0, 1, true), 3, 4),
                (B, dir(Op::List(0, vec![(0, 8), (1, 8)])), 5, 6),
            ],
        ),
        (
            "an exchange",
            true,
            vec![
                (A, create(0, Some(8)), 1, 2),
                (A, create(1, Some(9)), 3, 4),
                (B, dir(Op::Exchange(0, 1, true)), 5, 6),
                (A, dir(Op::List(0, vec![(0, 9), (1, 8)])), 7, 8),
            ],
        ),
    ];
    for (name, right, events) in cases {
        let gone = |node: u32| events.iter().find(|e| e.0 == node && e.1 == What::Gone).map(|e| e.2);
        let history: Vec<Event> = events
            .iter()
            .map(|(node, what, call, back)| Event {
                node: *node,
                what: what.clone(),
                call: *call,
                back: (*back != NEVER).then_some(*back),
            })
            .collect();
        let is_file = matches!(history[0].what, What::Do(Object::File(_), _));
        let first = if is_file { vec![(0, 0)] } else { Vec::new() };
        let verdict = explain(&history, gone, first);
        assert_eq!(matches!(verdict, Verdict::Fine), right, "{name}: {verdict:?}");
    }
}
