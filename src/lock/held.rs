//! Which locks the present thread uses: the operation context of `spec/04 §5.1, §14.3`.
//!
//! A task that already uses a lock must pass a closed gate (it has to finish for the gate to open), and must not wait for
//! a stronger mode of the same lock (its own use would block the server's request to others). Guards stay on their thread,
//! so a small list for each thread tells. Uses beyond its length are not known, which only loses the two courtesies.

use std::cell::Cell;
use std::ptr;

const SLOTS: usize = 16;

struct Held {
    len: Cell<usize>,
    slots: [Cell<*const ()>; SLOTS],
}

// The model checker runs its threads on one thread of the system.
#[cfg(not(loom))]
thread_local! {
    static HELD: Held = const { Held { len: Cell::new(0), slots: [const { Cell::new(ptr::null()) }; SLOTS] } };
}

#[cfg(not(loom))]
impl Held {
    fn find(&self, lock: *const ()) -> Option<usize> {
        (0..self.len.get()).rev().find(|&i| ptr::eq(self.slots[i].get(), lock))
    }
}

/// This thread now uses `lock`.
#[inline]
pub(super) fn add<T>(lock: *const T) {
    #[cfg(not(loom))]
    HELD.with(|h| {
        let n = h.len.get();
        if n < SLOTS {
            h.slots[n].set(lock.cast());
            h.len.set(n + 1);
        }
    });
    #[cfg(loom)]
    let _ = lock;
}

/// One use of `lock` by this thread ends.
#[inline]
pub(super) fn remove<T>(lock: *const T) {
    #[cfg(not(loom))]
    HELD.with(|h| {
        if let Some(i) = h.find(lock.cast()) {
            let last = h.len.get() - 1;
            h.slots[i].set(h.slots[last].get());
            h.len.set(last);
        }
    });
    #[cfg(loom)]
    let _ = lock;
}

/// Does this thread use `lock`?
pub(super) fn holds<T>(lock: *const T) -> bool {
    #[cfg(not(loom))]
    return HELD.with(|h| h.find(lock.cast()).is_some());
    #[cfg(loom)]
    {
        let _ = lock;
        false
    }
}
