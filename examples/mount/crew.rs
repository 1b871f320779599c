//! The threads that work on requests: one is always free to take the next.
//!
//! **Problem.** A few threads receive requests and work on them. A request may wait for a cluster lock, and the node that
//! has the lock may wait for a request of ours: to take a page of a mapping back from the kernel, the kernel has to write
//! it, and that comes through the same queue. If all threads waited, nobody would receive it.
//!
//! **Idea.** Whoever receives a request and finds that no other thread is left to receive leaves the work to a thread of
//! its own. There are as many of those as requests wait, which is as many as processes wait, and none while everything goes
//! well.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

type Job = Box<dyn FnOnce() + Send>;

/// More helpers than this are not made; then receivers work themselves and the promise is lost.
const HELPERS: usize = 16 << 10;
/// How long a helper without work stays.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Crew {
    /// Receivers that are not working. `None`: requests never wait for others, everybody works.
    free: Option<AtomicUsize>,
    /// To a helper that waits; nothing is kept in it.
    jobs: Option<Sender<Job>>,
    helpers: Arc<Helpers>,
}

struct Helpers {
    waiting: Receiver<Job>,
    count: Mutex<usize>,
    left: Condvar,
}

/// A receiver that works itself.
pub(crate) struct Working<'a>(Option<&'a AtomicUsize>);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if let Some(free) = self.0 {
            free.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Crew {
    /// `receivers`: so many threads receive requests, which may wait for each other.
    pub(crate) fn new(receivers: Option<usize>) -> Crew {
        let (jobs, waiting) = bounded(0);
        let helpers = Arc::new(Helpers { waiting, count: Mutex::new(0), left: Condvar::new() });
        Crew { free: receivers.map(AtomicUsize::new), jobs: Some(jobs), helpers }
    }

    /// The calling receiver may work on its request itself; `None`: it must [delegate](Crew::delegate) it.
    pub(crate) fn work(&self) -> Option<Working<'_>> {
        let Some(free) = &self.free else { return Some(Working(None)) };
        let working = Working(Some(free));
        (free.fetch_sub(1, Ordering::SeqCst) > 1).then_some(working)
    }

    /// Leaves a request to a helper.
    pub(crate) fn delegate(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.as_ref().expect("only gone when dropped");
        let Err(back) = jobs.try_send(Box::new(job)) else { return };
        let job = back.into_inner();
        let mut count = self.helpers.count.lock().expect("not poisoned");
        if *count < HELPERS {
            let helpers = self.helpers.clone();
            let first = Arc::new(Mutex::new(Some(job)));
            let taken = first.clone();
            let begin = move || {
                let job = taken.lock().expect("not poisoned").take();
                helpers.help(job);
            };
            if std::thread::Builder::new().name("fuse-helper".into()).spawn(begin).is_ok() {
                *count += 1;
                return;
            }
            drop(count);
            tracing::warn!("no thread for a request that may have to wait");
            let job = first.lock().expect("not poisoned").take();
            job.into_iter().for_each(|job| job());
        } else {
            drop(count);
            job();
        }
    }
}

impl Helpers {
    fn help(&self, first: Option<Job>) {
        /// Counted out whatever happens.
        struct Leave<'a>(&'a Helpers);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                if let Ok(mut count) = self.0.count.lock() {
                    *count -= 1;
                }
                self.0.left.notify_all();
            }
        }
        let _leave = Leave(self);
        let mut job = first;
        while let Some(now) = job {
            now();
            job = self.waiting.recv_timeout(IDLE).ok();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.jobs = None;
        let mut count = self.helpers.count.lock().expect("not poisoned");
        while *count > 0 {
            count = self.helpers.left.wait(count).expect("not poisoned");
        }
    }
}
