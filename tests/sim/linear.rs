//! Is there an order of the operations on one object that explains what all nodes saw?
//!
//! The search of Wing and Gong with the memory of Lowe: go through the events in the order of calls and returns; any operation
//! that has been called may be next; an operation must have had its turn before its return. States that were met with the
//! same set of operations done are not tried again.
//!
//! The object remembers what a crash may undo. As long as one node alone works on it, what that node changed may be lost in a
//! crash, from some point on; when another node looks, or the node syncs, all of it has become durable (`spec/04 §1`).

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::history::{Event, History, Object, Op, What};

/// Content of an object: names with inodes, or a file's content under the name 0.
pub(crate) type Value = Vec<(u8, u64)>;

/// An object and what a crash may do to it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    now: Value,
    /// Whose changes may be lost; 0: nobody's.
    owner: u32,
    /// What may be there after a crash of the owner.
    may_be: BTreeSet<Value>,
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
        Op::List(all) => {
            let alike = value.len() == all.len()
                && value.iter().zip(all).all(|(v, a)| v.0 == a.0 && (v.1 == a.1 || is_unknown(v.1)));
            alike.then(|| all.clone())
        }
    }
}

impl State {
    fn after(&self, node: u32, what: &What) -> Vec<State> {
        let mut new = self.clone();
        match what {
            What::Do(_, op) => {
                let Some(value) = apply(&self.now, op) else { return Vec::new() };
                if self.owner != node {
                    new.owner = node;
                    new.may_be = BTreeSet::from([self.now.clone()]);
                }
                new.may_be.insert(value.clone());
                new.now = value;
                vec![new]
            }
            What::Sync if self.owner == node => {
                new.may_be = BTreeSet::from([self.now.clone()]);
                vec![new]
            }
            What::Gone if self.owner == node => self
                .may_be
                .iter()
                .map(|v| State { now: v.clone(), owner: 0, may_be: BTreeSet::from([v.clone()]) })
                .collect(),
            What::Sync | What::Gone => vec![new],
        }
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
    let events = history.of(object);
    // Never returned and the node lives on, or ended: it may happen until then, or not at all.
    let last = u64::MAX;
    let end = |e: &Event| e.back.or_else(|| history.end_of(e.node)).unwrap_or(last);
    let optional: Vec<bool> = events.iter().map(|e| e.back.is_none()).collect();
    let mut entries: Vec<(u64, bool, Entry)> = Vec::new();
    for (i, e) in events.iter().enumerate() {
        entries.push((e.call, false, Entry { event: i, returns: false }));
        // What ends with its node ends before the node does.
        entries.push((end(e), e.back.is_some(), Entry { event: i, returns: true }));
    }
    entries.sort_by_key(|(at, really, e)| (*at, *really, e.returns));
    let entries: Vec<Entry> = entries.into_iter().map(|(.., e)| e).collect();
    search(&events, &entries, &optional, first)
}

fn search(events: &[Event], entries: &[Entry], optional: &[bool], first: Value) -> Verdict {
    // Breadth first over the entries: all (state, operations done among the open ones) that are possible here.
    let start = State { now: first.clone(), owner: 0, may_be: BTreeSet::from([first]) };
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
