//! A work list: a queue with its own lock, drained in batches by named threads.
//!
//! Queueing work takes only this list's lock, never a lock's mutex or the table's, and nothing else is protected by it:
//! that is how invalidation and shrinking stay off the path of acquires and of message delivery.

use std::collections::VecDeque;

use crate::sync::{Condvar, Mutex};

struct Inner<T> {
    queue: VecDeque<T>,
    closed: bool,
}

/// Work waiting for a thread.
///
/// Its length needs no limit of its own: an invalidation list holds each lock at most once, because a lock has at most
/// one invalidation in progress.
pub(super) struct WorkList<T> {
    inner: Mutex<Inner<T>>,
    ready: Condvar,
}

impl<T> WorkList<T> {
    pub(super) fn new() -> WorkList<T> {
        WorkList { inner: Mutex::new(Inner { queue: VecDeque::new(), closed: false }), ready: Condvar::new() }
    }

    /// Queues an item; false (and the item is dropped) after [`WorkList::close`].
    pub(super) fn push(&self, item: T) -> bool {
        let mut inner = self.inner.lock();
        if inner.closed {
            return false;
        }
        inner.queue.push_back(item);
        drop(inner);
        self.ready.notify_one();
        true
    }

    /// Waits for work and takes up to `max` items; `None` when the list is closed and empty.
    pub(super) fn take(&self, max: usize) -> Option<Vec<T>> {
        let mut inner = self.inner.lock();
        loop {
            if !inner.queue.is_empty() {
                let n = max.min(inner.queue.len());
                return Some(inner.queue.drain(..n).collect());
            }
            if inner.closed {
                return None;
            }
            self.ready.wait(&mut inner);
        }
    }

    /// Takes what is there without waiting.
    #[cfg(all(test, loom))]
    pub(super) fn try_take(&self) -> Vec<T> {
        self.inner.lock().queue.drain(..).collect()
    }

    /// No more work is accepted; takers get what is queued, then `None`.
    pub(super) fn close(&self) {
        self.inner.lock().closed = true;
        self.ready.notify_all();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.inner.lock().queue.len()
    }
}
