//! What the simulator's checker sees of the inside of a run, while it happens.

use std::fmt::Display;
use std::sync::OnceLock;

use super::sched;

/// A change that a node makes to what it relies on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockChange {
    /// From now on it holds this lock in this mode (the number on the wire).
    Holds {
        /// The lock.
        name: String,
        /// Its mode.
        mode: u8,
    },
    /// It leaves, and relies on no lock any more.
    Leaves,
}

type Hook = dyn Fn(u32, LockChange) + Send + Sync;

static HOOK: OnceLock<Box<Hook>> = OnceLock::new();

/// Calls `hook` with every change of a lock of a node, in the step in which it happens. It must not block. The first call counts.
pub fn on_lock(hook: impl Fn(u32, LockChange) + Send + Sync + 'static) {
    let _ = HOOK.set(Box::new(hook));
}

pub(crate) fn lock_holds(name: &dyn Display, mode: u8) {
    if let Some(hook) = HOOK.get() {
        hook(sched::node(), LockChange::Holds { name: name.to_string(), mode });
    }
}

pub(crate) fn locks_leave() {
    if let Some(hook) = HOOK.get() {
        hook(sched::node(), LockChange::Leaves);
    }
}
