//! What the nodes of a run did and saw, for the checker.
//!
//! Times are counted by events, not by the clock: with one thread running at a time, the order of the calls here is the true one.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// An operation on one object, with what it gave.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    /// A file got this content.
    Write(u64),
    /// A file had this content.
    Read(u64),
    /// `name` was made with this inode; `None`: it existed.
    Create(u8, Option<u64>),
    /// `name` was removed; false: there was none.
    Unlink(u8, bool),
    /// `name` led to this inode, or to none.
    Lookup(u8, Option<u64>),
    /// The first name became the second, which was replaced; false: there was none.
    Rename(u8, u8, bool),
    /// The two names changed places; false: one of them did not exist.
    Exchange(u8, u8, bool),
    /// The names of a directory, which are those from here on, and what was listed.
    List(u8, Vec<(u8, u64)>),
}

/// Which object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Object {
    /// The contents of a file.
    File(usize),
    /// An attribute of a file.
    Attribute(usize),
    /// The names in a directory; in all of them together, if names move between them in this run.
    Dir(usize),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum What {
    Do(Object, Op),
    /// Everything that the node did before is durable.
    Sync,
    /// The node is gone, and with it what was not durable.
    Gone,
}

/// A call and its return.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) node: u32,
    pub(crate) what: What,
    pub(crate) call: u64,
    /// `None`: it never returned, and may have happened or not.
    pub(crate) back: Option<u64>,
}

#[derive(Default)]
struct State {
    clock: u64,
    events: Vec<Event>,
    gone: BTreeMap<u32, u64>,
}

/// Recorder of one run.
#[derive(Default)]
pub(crate) struct History(Mutex<State>);

impl History {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.0.lock().expect("not held for long"))
    }

    /// `node` calls; what it does is known when it returns, but what it wants is noted in case that it does not.
    pub(crate) fn call(&self, node: u32, what: What) -> usize {
        self.with(|s| {
            s.clock += 1;
            s.events.push(Event { node, what, call: s.clock, back: None });
            s.events.len() - 1
        })
    }

    /// The call has returned. After the node is gone that counts no more.
    pub(crate) fn back(&self, nr: usize, what: What) {
        self.with(|s| {
            s.clock += 1;
            let at = s.clock;
            let event = &mut s.events[nr];
            if !s.gone.contains_key(&event.node) {
                scoutfs::sim::note(at);
                event.what = what;
                event.back = Some(at);
            }
        });
    }

    /// Nothing that `node` does from now on counts: it has crashed, or is cut off.
    pub(crate) fn gone(&self, node: u32) {
        self.with(|s| {
            if s.gone.contains_key(&node) {
                return;
            }
            s.clock += 1;
            let at = s.clock;
            s.gone.insert(node, at);
            s.events.push(Event { node, what: What::Gone, call: at, back: Some(at) });
        });
    }

    pub(crate) fn is_gone(&self, node: u32) -> bool {
        self.with(|s| s.gone.contains_key(&node))
    }

    /// Everything that concerns `object`, operations without a return ending where their node did.
    pub(crate) fn of(&self, object: Object) -> Vec<Event> {
        self.with(|s| {
            let concerns = |e: &&Event| match &e.what {
                What::Do(o, _) => *o == object,
                What::Sync => e.back.is_some(),
                What::Gone => true,
            };
            s.events.iter().filter(concerns).cloned().collect()
        })
    }

    /// The end of a node, if it had one.
    pub(crate) fn end_of(&self, node: u32) -> Option<u64> {
        self.with(|s| s.gone.get(&node).copied())
    }

    /// Operations that returned.
    pub(crate) fn done(&self) -> usize {
        self.with(|s| s.events.iter().filter(|e| e.back.is_some()).count())
    }
}
