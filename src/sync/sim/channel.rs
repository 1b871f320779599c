//! Unbounded channels under the simulation's scheduler.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex as RealMutex};

use super::{Instant, sched};

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receiver: bool,
    /// Woken besides the channel itself: where a [`select`] waits.
    also: Option<usize>,
}

struct Inner<T>(RealMutex<State<T>>);

impl<T> Inner<T> {
    fn with<R>(&self, f: impl FnOnce(&mut State<T>) -> R) -> R {
        f(&mut self.0.lock().expect("not held for long"))
    }

    fn wake(self: &Arc<Self>) {
        sched::wake_all(Arc::as_ptr(self).cast::<()>() as usize);
        if let Some(key) = self.with(|s| s.also) {
            sched::wake_all(key);
        }
    }
}

pub(crate) struct Sender<T>(Arc<Inner<T>>);
pub(crate) struct Receiver<T>(Arc<Inner<T>>);

/// The channel has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ended;

/// Nothing was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecvError {
    Timeout,
    Ended,
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, receiver: true, also: None };
    let inner = Arc::new(Inner(RealMutex::new(state)));
    (Sender(inner.clone()), Receiver(inner))
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.with(|s| s.senders += 1);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.with(|s| s.senders -= 1);
        self.0.wake();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let queue = self.0.with(|s| {
            s.receiver = false;
            std::mem::take(&mut s.queue)
        });
        drop(queue);
    }
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, value: T) -> Result<(), Ended> {
        sched::point();
        let kept = self.0.with(|s| {
            if s.receiver {
                s.queue.push_back(value);
                return Ok(());
            }
            Err(value)
        });
        // Dropped outside of the lock, if nobody receives.
        if kept.is_err() {
            return Err(Ended);
        }
        self.0.wake();
        Ok(())
    }
}

impl<T> Sender<T> {
    pub(crate) fn len(&self) -> usize {
        self.0.with(|s| s.queue.len())
    }
}

impl<T> Receiver<T> {
    fn poll(&self) -> Option<Option<T>> {
        self.0.with(|s| match s.queue.pop_front() {
            Some(v) => Some(Some(v)),
            None if s.senders == 0 => Some(None),
            None => None,
        })
    }

    pub(crate) fn recv_deadline(&self, until: Instant) -> Result<T, RecvError> {
        self.wait(Some(until))
    }

    fn wait(&self, until: Option<Instant>) -> Result<T, RecvError> {
        loop {
            match self.poll() {
                Some(Some(v)) => return Ok(v),
                Some(None) => return Err(RecvError::Ended),
                None => {}
            }
            let key = Arc::as_ptr(&self.0).cast::<()>() as usize;
            if sched::block(key, "receives", until.map(|i| i.0)) && self.0.with(|s| s.queue.is_empty()) {
                return Err(RecvError::Timeout);
            }
        }
    }

    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.poll().flatten())
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;
    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

pub(crate) struct IntoIter<T>(Receiver<T>);

impl<T> Iterator for IntoIter<T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        self.0.wait(None).ok()
    }
}

/// What [`select`] found. `None` inside: that channel has ended.
pub(crate) enum Selected<A, B> {
    First(Option<A>),
    Second(Option<B>),
    TimedOut,
}

/// Waits for the first message of either channel, at most until `until`.
pub(crate) fn select<A, B>(first: &Receiver<A>, second: &Receiver<B>, until: Option<Instant>) -> Selected<A, B> {
    let here = 0u8;
    let key = std::ptr::from_ref(&here) as usize;
    first.0.with(|s| s.also = Some(key));
    second.0.with(|s| s.also = Some(key));
    let found = loop {
        if let Some(v) = first.poll() {
            break Selected::First(v);
        }
        if let Some(v) = second.poll() {
            break Selected::Second(v);
        }
        if until.is_some_and(|at| at <= Instant::now()) {
            break Selected::TimedOut;
        }
        sched::block(key, "selects", until.map(|i| i.0));
    };
    first.0.with(|s| s.also = None);
    second.0.with(|s| s.also = None);
    found
}
