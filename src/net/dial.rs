//! The connecting and reading thread of a mount: finds the leader, greets it, reads until the socket ends, starts again.
//!
//! The rules are those of [`super::client`], invariants 1, 2, 4 and 5.

use std::net::SocketAddr;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::client::{Inner, Own, is_down};
use super::codec::{Frame, FrameReader};
use super::command::Command;
use super::link::write_all;
use super::receive::{By, read_frames, receive_all};
use super::transport::Stream;
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::{GREETING_FAREWELL, GREETING_FLUSHES, GREETING_OPENS, GREETING_QUORUM};
use crate::format::layout::NetGreeting;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Instant, Mutex, random};

/// How long one connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// First pause after an attempt that led to nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause while there is no server: what a fail-over takes is felt by everybody.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause after greetings that led to nothing (`spec/05` S5).
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Answered greetings in a row that led to nothing after which the mounted client item is looked up.
const REFUSALS_BEFORE_LOOKUP: u32 = 3;

/// Looks for the leader: its address and term.
pub(super) type FindServer = Box<dyn FnMut() -> Result<(SocketAddr, u64)> + Send>;

/// Looks for the own mounted client item.
type IsStillMounted = Box<dyn FnMut() -> Result<bool> + Send>;

/// Forces the connection down when the connecting thread ends, also by a panic: nobody must wait for it then.
struct DownOnExit(Arc<Inner>);

impl Drop for DownOnExit {
    fn drop(&mut self) {
        self.0.force_down();
    }
}

/// The connecting and reading thread.
pub(super) struct Dialer {
    inner: Arc<Inner>,
    find_server: Arc<Mutex<FindServer>>,
    is_still_mounted: IsStillMounted,
    /// Answered greetings in a row that led to nothing.
    refusals: u32,
    /// Greetings in a row that ended without an answer.
    unanswered: u32,
}

impl Dialer {
    pub(super) fn new(
        inner: Arc<Inner>,
        find_server: Arc<Mutex<FindServer>>,
        is_still_mounted: IsStillMounted,
    ) -> Dialer {
        Dialer { inner, find_server, is_still_mounted, refusals: 0, unanswered: 0 }
    }

    /// Until nobody wants a connection any more.
    pub(super) fn run(mut self) {
        let _down = DownOnExit(self.inner.clone());
        let mut pause = Duration::ZERO;
        while self.wait(pause) {
            if !self.is_wanted() {
                return;
            }
            let mut progress = false;
            let result = self.attempt(&mut progress);
            let mut state = self.inner.link.lock();
            state.own.greeting_in_flight = false;
            state.own.stream = None;
            if let Err(error) = result {
                tracing::debug!(rid = self.inner.rid, %error, "connection to the server ended");
                state.own.last_error = Some(error);
            }
            self.inner.changed.notify_all();
            drop(state);
            let longest = if self.refusals == 0 { LONGEST_PAUSE } else { LONGEST_REFUSED_PAUSE };
            pause = if progress { Duration::ZERO } else { longer(pause, longest) };
        }
    }

    /// Waits out the pause; false when no connection is wanted any more.
    fn wait(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut state = self.inner.link.lock();
        loop {
            if state.own.down || state.own.left {
                return false;
            }
            if std::mem::take(&mut state.own.woken) || Instant::now() >= deadline {
                return true;
            }
            self.inner.changed.wait_until(&mut state, deadline);
        }
    }

    /// Looks at the mounted client item when there is reason to (invariant 5); false if there is nothing to come back to.
    fn is_wanted(&mut self) -> bool {
        let (leaving, known) = {
            let own = &self.inner.link.lock().own;
            (own.farewell.clone(), own.term != 0 || own.maybe_recorded)
        };
        if !known || (leaving.is_none() && self.refusals < REFUSALS_BEFORE_LOOKUP) {
            return true;
        }
        // An error means that the item could not be looked up: the next attempt tries again.
        if !matches!((self.is_still_mounted)(), Ok(false)) {
            return true;
        }
        if let Some(waiter) = leaving {
            waiter.complete(Ok(Vec::new()));
        } else {
            self.inner.force_down();
            let error = Error::Shutdown("the volume has given this mount up: its mounted client item is gone".into());
            self.inner.link.lock().own.last_error = Some(error.clone());
            self.inner.handler.evicted(error);
        }
        false
    }

    /// Finds the server, connects and talks until the socket ends.
    fn attempt(&mut self, progress: &mut bool) -> Result<()> {
        let (addr, _) = (self.find_server.lock())()?;
        let stream = self.inner.transport.connect(addr, CONNECT_TIMEOUT)?;
        {
            let mut state = self.inner.link.lock();
            if state.own.down || state.own.left {
                stream.shutdown();
                return Err(is_down());
            }
            state.own.stream = Some(stream.clone());
            // From here on a farewell has to wait for the outcome of the greeting.
            state.own.greeting_in_flight = true;
        }
        let result = self.converse(&stream, progress);
        stream.shutdown();
        result
    }

    fn converse(&mut self, stream: &Arc<dyn Stream>, progress: &mut bool) -> Result<()> {
        let inner = self.inner.clone();
        let mut reader = FrameReader::new();
        let mut answered = false;
        let greeted = self.greet(&**stream, &mut reader, &mut answered);
        self.unanswered = if answered { 0 } else { self.unanswered.wrapping_add(1) };
        // Forgotten below if the socket brings something.
        self.refusals += u32::from(answered);
        let term = greeted?;
        let is_new = {
            let mut state = inner.link.lock();
            if state.own.down || state.own.left {
                return Err(is_down());
            }
            let is_new = state.own.term != term;
            if is_new {
                state.session.new_server();
                state.own.term = term;
            }
            state.own.greetings += 1;
            state.own.server = Some(stream.peer_addr());
            state.own.greeting_in_flight = false;
            state.own.maybe_recorded = true;
            is_new
        };
        if is_new {
            inner.handler.new_server(term);
        }
        let nr = inner.link.attach(stream.clone());
        inner.changed.notify_all();
        let news = Arc::new(AtomicBool::new(false));
        let each = {
            let (inner, news) = (inner.clone(), news.clone());
            Arc::new(move |frame: &Frame<'_>, _: By| {
                if inner.receive(frame)? {
                    news.store(true, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let result = receive_all(stream, reader, || {}, each);
        inner.link.detach(nr);
        *progress = news.load(Ordering::Relaxed);
        if *progress {
            self.refusals = 0;
        }
        result
    }

    /// Sends the greeting and waits for a good answer: the server's term.
    fn greet(&self, stream: &dyn Stream, reader: &mut FrameReader, answered: &mut bool) -> Result<u64> {
        let mut out = Vec::new();
        let id = {
            let mut state = self.inner.link.lock();
            let greeting = self.greeting(&state.own);
            state.own.maybe_recorded = true;
            state.session.greeting_request(&mut out, greeting.as_bytes())
        };
        write_all(stream, &out).map_err(|_| Errno::ENOTCONN)?;
        let mut answer = fail(Errno::ENOTCONN);
        let mut refused = false;
        read_frames(stream, reader, |frame| {
            answer = self.check_greeting(id, frame);
            *answered = true;
            refused = frame.head.cmd == Command::Greeting && frame.head.error != 0;
            Ok(false)
        })?;
        if refused {
            // An error response means that nothing was recorded because of this greeting.
            let mut state = self.inner.link.lock();
            state.own.maybe_recorded = state.own.term != 0;
        }
        answer
    }

    fn greeting(&self, own: &Own) -> NetGreeting {
        let farewell = if own.farewell.is_some() { GREETING_FAREWELL } else { 0 };
        let quorum = if self.inner.quorum_member { GREETING_QUORUM } else { 0 };
        NetGreeting {
            fsid: self.inner.fsid.into(),
            fmt_vers: self.inner.fmt_vers.into(),
            server_term: own.term.into(),
            rid: self.inner.rid.into(),
            flags: (farewell | quorum | self.features()).into(),
        }
    }

    /// What this client can do beyond the original. Left out after a refusal, in case that this is why.
    fn features(&self) -> u64 {
        if self.refusals > 0 || !self.unanswered.is_multiple_of(2) {
            return 0;
        }
        GREETING_OPENS | if self.inner.flushes { GREETING_FLUSHES } else { 0 }
    }

    /// The term in a greeting response, after its checks.
    fn check_greeting(&self, id: u64, frame: &Frame<'_>) -> Result<u64, Error> {
        let head = &frame.head;
        if head.cmd != Command::Greeting || !head.response || head.id != id {
            return Err(Error::corrupt("greeting response", "another message came first"));
        }
        let payload = frame.result()?;
        let Ok(greeting) = NetGreeting::read_from_bytes(&payload) else {
            return Err(Error::corrupt("greeting response", format!("{} bytes", payload.len())));
        };
        if greeting.fsid.get() != self.inner.fsid || greeting.fmt_vers.get() != self.inner.fmt_vers {
            return Err(Error::invalid(format!(
                "the server serves volume {:016x} format {}, not {:016x} format {}",
                greeting.fsid, greeting.fmt_vers, self.inner.fsid, self.inner.fmt_vers
            )));
        }
        if greeting.server_term.get() == 0 {
            return Err(Error::corrupt("greeting response", "term 0"));
        }
        Ok(greeting.server_term.get())
    }
}

/// The next pause, with jitter so that the clients of a lost server do not come in step.
fn longer(pause: Duration, longest: Duration) -> Duration {
    let next = (pause * 3 / 2).clamp(FIRST_PAUSE, longest);
    next.mul_f64(0.8 + 0.4 * random::<f64>())
}
