//! `std::thread` under the simulation's scheduler.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex as RealMutex};
use std::time::Duration;

pub(crate) use std::thread::{Result, panicking};

use super::sched;

/// Number of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct ThreadId(sched::Tid);

#[derive(Debug)]
struct Seat {
    tid: RealMutex<sched::Tid>,
    token: RealMutex<bool>,
}

/// A thread that can be unparked.
#[derive(Clone, Debug)]
pub(crate) struct Thread(Arc<Seat>);

thread_local! {
    static CURRENT: Thread = Thread(Arc::new(Seat {
        tid: RealMutex::new(sched::me().unwrap_or(usize::MAX)),
        token: RealMutex::new(false),
    }));
}

impl Thread {
    pub(crate) fn id(&self) -> ThreadId {
        ThreadId(*self.0.tid.lock().expect("not held for long"))
    }

    pub(crate) fn unpark(&self) {
        *self.0.token.lock().expect("not held for long") = true;
        sched::wake_all(Arc::as_ptr(&self.0) as usize);
        sched::point();
    }
}

pub(crate) fn current() -> Thread {
    CURRENT.with(Clone::clone)
}

pub(crate) fn park() {
    let me = current();
    loop {
        if std::mem::take(&mut *me.0.token.lock().expect("not held for long")) {
            return;
        }
        sched::block(Arc::as_ptr(&me.0) as usize, "parked", None);
    }
}

pub(crate) fn sleep(time: Duration) {
    sched::sleep(time);
}

pub(crate) fn yield_now() {
    sched::yield_now();
}

struct Packet<T> {
    result: RealMutex<Option<Result<T>>>,
}

/// Waits for a thread.
pub struct JoinHandle<T> {
    packet: Arc<Packet<T>>,
    thread: Thread,
}

impl<T> std::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinHandle({:?})", self.thread)
    }
}

impl<T> JoinHandle<T> {
    /// Waits for the end of the thread.
    pub fn join(self) -> Result<T> {
        loop {
            if let Some(result) = self.packet.result.lock().expect("not held for long").take() {
                return result;
            }
            sched::block(Arc::as_ptr(&self.packet).cast::<()>() as usize, "joins", None);
        }
    }

    pub(crate) fn thread(&self) -> &Thread {
        &self.thread
    }

    /// Has it ended?
    pub fn is_finished(&self) -> bool {
        self.packet.result.lock().expect("not held for long").is_some()
    }
}

fn start<'a, F, T>(node: u32, name: String, f: F) -> std::io::Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'a,
    T: Send + 'a,
{
    let packet = Arc::new(Packet { result: RealMutex::new(None) });
    let seat = Arc::new(Seat { tid: RealMutex::new(usize::MAX), token: RealMutex::new(false) });
    let thread = Thread(seat);
    let (theirs, out) = (thread.clone(), packet.clone());
    let body = move || {
        // A panic ends the process (the driver's hook), so there is nothing to catch.
        let _ = theirs;
        let result = f();
        *out.result.lock().expect("not held for long") = Some(Ok(result));
        sched::wake_all(Arc::as_ptr(&out).cast::<()>() as usize);
    };
    let body: Box<dyn FnOnce() + Send + 'a> = Box::new(body);
    // SAFETY: `spawn` takes only 'static things, and `Scope` joins its threads before anything borrowed goes.
    let body: Box<dyn FnOnce() + Send + 'static> = unsafe { std::mem::transmute(body) };
    let tid = sched::spawn(node, name, body)?;
    *thread.0.tid.lock().expect("not held for long") = tid;
    Ok(JoinHandle { packet, thread })
}

/// Starts a thread of `node`.
pub fn spawn_on<F, T>(node: u32, name: &str, f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    start(node, name.into(), f).expect("the system has threads")
}

/// Makes threads with names.
#[derive(Default)]
pub(crate) struct Builder {
    name: String,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder::default()
    }

    pub(crate) fn name(self, name: String) -> Builder {
        Builder { name }
    }

    pub(crate) fn spawn<F, T>(self, f: F) -> std::io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        start(sched::node(), self.name, f)
    }
}

/// Threads that end before [`scope`] returns.
pub(crate) struct Scope<'scope, 'env: 'scope> {
    left: RealMutex<Vec<Arc<RealMutex<bool>>>>,
    x: PhantomData<(&'scope mut &'scope (), &'env mut &'env ())>,
}

/// Handle of a thread of a scope.
pub(crate) struct ScopedJoinHandle<'scope, T>(JoinHandle<T>, PhantomData<&'scope ()>);

impl<T> ScopedJoinHandle<'_, T> {
    pub(crate) fn join(self) -> Result<T> {
        self.0.join()
    }
}

impl<'scope> Scope<'scope, '_> {
    pub(crate) fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let ended = Arc::new(RealMutex::new(false));
        self.left.lock().expect("not held for long").push(ended.clone());
        let body = move || {
            let result = f();
            *ended.lock().expect("not held for long") = true;
            sched::wake_all(Arc::as_ptr(&ended) as usize);
            result
        };
        ScopedJoinHandle(start(sched::node(), "scoped".into(), body).expect("the system has threads"), PhantomData)
    }
}

pub(crate) fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let scope = Scope { left: RealMutex::new(Vec::new()), x: PhantomData };
    let result = f(&scope);
    for ended in scope.left.lock().expect("not held for long").drain(..) {
        while !*ended.lock().expect("not held for long") {
            sched::block(Arc::as_ptr(&ended) as usize, "joins", None);
        }
    }
    result
}
