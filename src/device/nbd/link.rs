//! One logical connection to an export, over any number of sockets.
//!
//! Callers register their requests under a cookie, send them themselves, and wait. The thread `scoutfs-nbd` connects, receives
//! the answers, and connects again when the socket breaks: then it repeats the unflushed writes, and lets each caller repeat
//! its own unanswered requests (a caller that sends never stops the thread from receiving, so the two ends cannot block each
//! other).
//!
//! Invariants:
//!
//! 1. A request is outstanding from its registration until its answer or until its caller gives up; it is sent on the
//!    socket of its `generation`, and only answers on that socket count.
//! 2. A write is in [`Unflushed`] from its answer until a flush that was sent after the answer is answered.
//! 3. After a break nothing is sent on a new socket before all of [`Unflushed`] has been written on it and answered.
//! 4. A socket is given up only when the transport says that the other end is gone, when the server breaks the protocol, or
//!    when a request has waited for its whole time. A server that is merely slow is waited for: an old request of which the
//!    server still has the bytes could otherwise be carried out after a newer one.
//!
//! Locks: `sender` before `state`; a [`Batch`] last. Nothing is held while waiting for the network but `sender`.

use std::io::BufReader;
use std::net::Shutdown;
use std::time::Duration;

use socket2::Socket;

use super::connect::{Connected, Terms, acceptable, connect};
use super::unflushed::Unflushed;
use super::wire::{self, Command, Export, Incoming};
use crate::device::device_error;
use crate::error::Result;
use crate::sync::{Arc, Condvar, HashMap, Instant, Mutex};

/// Requests that may be outstanding at a time, over all callers.
const MAX_IN_FLIGHT: usize = 64;
/// Pause between attempts to connect, growing from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Repeated writes that are under way at a time.
const REPLAY_WINDOW: usize = 16;

/// What a caller wants done.
#[derive(Clone)]
pub(super) struct Wish {
    pub(super) command: Command,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) payload: Option<Arc<[u8]>>,
}

struct Request {
    wish: Wish,
    generation: u64,
    /// For a flush: what it makes durable.
    mark: u64,
    batch: Arc<Batch>,
    /// Its number in the batch.
    index: usize,
}

/// Requests of one caller that are waited for together.
#[derive(Default)]
struct Batch {
    state: Mutex<BatchState>,
    changed: Condvar,
}

#[derive(Default)]
struct BatchState {
    left: usize,
    error: Option<String>,
    /// There is a new socket.
    resend: bool,
    /// What was read, with the number of the request.
    parts: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
struct State {
    generation: u64,
    /// Requests may be sent.
    up: bool,
    outstanding: HashMap<u64, Request>,
    next_cookie: u64,
    unflushed: Unflushed,
    /// Payload bytes of outstanding writes.
    writing: usize,
    /// Somebody flushes to make room.
    flushing: bool,
    closed: bool,
    /// The server came back with something else: nothing is possible any more.
    refused: Option<String>,
    /// Why there is no connection, or why the last one ended.
    trouble: String,
    /// The socket in use or being set up, so that others than its users can break it.
    socket: Option<Arc<Socket>>,
    reconnects: u64,
}

#[derive(Default)]
struct Sender {
    generation: u64,
    socket: Option<Arc<Socket>>,
}

pub(super) struct Link {
    terms: Terms,
    /// As first seen; only the size may grow.
    export: Mutex<Export>,
    state: Mutex<State>,
    /// There is room, or a connection, or the end.
    room: Condvar,
    sender: Mutex<Sender>,
}

impl Link {
    /// Connects for the first time.
    pub(super) fn open(terms: Terms) -> Result<(Link, Connected)> {
        let wrong = |why: String| device_error(&terms.name, 0, why);
        let (connected, export) = connect(&terms, |_| true).map_err(wrong)?;
        acceptable(&terms, &export)?;
        let state = State { trouble: "not connected yet".into(), ..State::default() };
        let link = Link {
            terms,
            export: Mutex::new(export),
            state: Mutex::new(state),
            room: Condvar::new(),
            sender: Mutex::default(),
        };
        Ok((link, connected))
    }

    pub(super) fn export(&self) -> Export {
        *self.export.lock()
    }

    pub(super) fn name(&self) -> &str {
        &self.terms.name
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.state.lock().reconnects
    }

    /// Is everything durable that was answered?
    pub(super) fn all_durable(&self) -> bool {
        self.state.lock().unflushed.is_empty()
    }

    /// Has all of it done and gives what was read, in the order of the wishes.
    pub(super) fn run(&self, wishes: &[Wish]) -> Result<Vec<Vec<u8>>> {
        let offset = wishes.first().map_or(0, |wish| wish.offset);
        let deadline = Instant::now() + self.terms.timeout;
        let batch = Arc::new(Batch::default());
        batch.state.lock().left = wishes.len();
        for (index, wish) in wishes.iter().enumerate() {
            if let Err(why) = self.submit(&batch, index, wish, deadline) {
                self.give_up(&batch);
                return Err(device_error(&self.terms.name, wish.offset, why));
            }
        }
        self.wait(&batch, deadline).map_err(|why| device_error(&self.terms.name, offset, why))?;
        let mut parts = std::mem::take(&mut batch.state.lock().parts);
        parts.sort_unstable_by_key(|(index, _)| *index);
        Ok(parts.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// Registers and sends one request, once there is a connection and room.
    fn submit(&self, batch: &Arc<Batch>, index: usize, wish: &Wish, deadline: Instant) -> Result<(), String> {
        let bytes = wish.payload.as_ref().map_or(0, |payload| payload.len());
        loop {
            let mut state = self.state.lock();
            if let Some(why) = &state.refused {
                return Err(why.clone());
            }
            if state.up {
                if batch.state.lock().resend {
                    drop(state);
                    self.resend(batch);
                    continue;
                }
                let held = state.unflushed.bytes() + state.writing;
                let fits = bytes == 0 || held == 0 || held + bytes <= self.terms.keep_bytes;
                // A flush is what makes room: it may come from a caller that itself holds all places with requests that it
                // has still to repeat.
                if fits && (state.outstanding.len() < MAX_IN_FLIGHT || wish.command == Command::Flush) {
                    let (cookie, generation, mark) = (state.next_cookie, state.generation, state.unflushed.mark());
                    state.next_cookie += 1;
                    state.writing += bytes;
                    let request = Request { wish: wish.clone(), generation, mark, batch: batch.clone(), index };
                    state.outstanding.insert(cookie, request);
                    drop(state);
                    self.send(generation, cookie, wish);
                    return Ok(());
                }
                if !fits && !state.unflushed.is_empty() && !state.flushing {
                    state.flushing = true;
                    drop(state);
                    let flushed = self.run(&[FLUSH]);
                    self.state.lock().flushing = false;
                    self.room.notify_all();
                    flushed.map_err(|e| e.to_string())?;
                    continue;
                }
            }
            if self.room.wait_until(&mut state, deadline).timed_out() {
                return Err(format!("no answer in {:?}: {}", self.terms.timeout, state.trouble));
            }
        }
    }

    /// Sends a registered request, unless its socket is gone: then it is repeated on the next one.
    fn send(&self, generation: u64, cookie: u64, wish: &Wish) {
        let sender = self.sender.lock();
        let Some(socket) = sender.socket.as_ref().filter(|_| sender.generation == generation) else { return };
        let head = wire::request(wish.command, wish.flags, cookie, wish.offset, wish.len);
        let payload = wish.payload.as_deref().unwrap_or_default();
        if let Err(error) = wire::send_all(socket, &[&head, payload]) {
            tracing::debug!(device = self.terms.name, %error, "cannot send");
            // The receiving thread sees it and connects again.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Repeats what this caller has outstanding from earlier sockets.
    fn resend(&self, batch: &Arc<Batch>) {
        let mut again = Vec::new();
        {
            let mut state = self.state.lock();
            batch.state.lock().resend = false;
            let now = state.generation;
            for (cookie, request) in &mut state.outstanding {
                if request.generation < now && Arc::ptr_eq(&request.batch, batch) {
                    request.generation = now;
                    again.push((now, *cookie, request.wish.clone()));
                }
            }
        }
        again.sort_unstable_by_key(|(_, cookie, _)| *cookie);
        for (generation, cookie, wish) in again {
            self.send(generation, cookie, &wish);
        }
    }

    /// Waits until all requests of a batch are answered.
    fn wait(&self, batch: &Arc<Batch>, deadline: Instant) -> Result<(), String> {
        loop {
            let mut state = batch.state.lock();
            if state.left == 0 {
                return state.error.take().map_or(Ok(()), Err);
            }
            if state.resend {
                drop(state);
                self.resend(batch);
            } else if batch.changed.wait_until(&mut state, deadline).timed_out() && state.left > 0 {
                drop(state);
                if self.silent(batch) {
                    let why = format!("no answer in {:?}", self.terms.timeout);
                    let trouble = self.state.lock().trouble.clone();
                    self.give_up(batch);
                    return Err(if trouble.is_empty() { why } else { format!("{why}: {trouble}") });
                }
            }
        }
    }

    /// Time is over: is anything of the batch really unanswered? If the server has it, its socket is given up.
    fn silent(&self, batch: &Arc<Batch>) -> bool {
        let (mut any, mut sent) = (false, None);
        {
            let state = self.state.lock();
            for request in state.outstanding.values().filter(|r| Arc::ptr_eq(&r.batch, batch)) {
                any = true;
                if state.up && request.generation == state.generation {
                    sent = Some(request.generation);
                }
            }
        }
        if let Some(generation) = sent {
            tracing::warn!(device = self.terms.name, "the server does not answer: its connection is given up");
            self.break_socket(generation);
        }
        any
    }

    fn break_socket(&self, generation: u64) {
        // Not through `sender`: its holder may be blocked in sending to just this server.
        let state = self.state.lock();
        if let Some(socket) = state.socket.as_ref().filter(|_| state.up && state.generation == generation) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Nobody waits for these requests any more.
    fn give_up(&self, batch: &Arc<Batch>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut sent = None;
        state.outstanding.retain(|_, request| {
            let ours = Arc::ptr_eq(&request.batch, batch);
            if ours {
                state.writing -= request.wish.payload.as_ref().map_or(0, |p| p.len());
                if state.up && request.generation == state.generation {
                    sent = Some(request.generation);
                }
            }
            !ours
        });
        drop(guard);
        self.room.notify_all();
        if let Some(generation) = sent {
            // Answers to requests that nobody knows would be taken for a broken protocol anyway.
            self.break_socket(generation);
        }
    }

    /// The thread: receives, and connects again, until the device is closed.
    pub(super) fn serve(&self, first: Connected) {
        let mut next = Some(first);
        while let Some(mut connected) = next.take().or_else(|| self.reconnect()) {
            let why = match self.go_up(&mut connected) {
                Ok(()) => self.receive(&mut connected.incoming),
                Err(why) => why,
            };
            self.go_down(&connected, &why);
        }
    }

    /// Requests may be sent on this socket.
    fn go_up(&self, connected: &mut Connected) -> Result<(), String> {
        connected.incoming.get_mut().without_deadline().map_err(|e| e.to_string())?;
        let mut sender = self.sender.lock();
        let mut state = self.state.lock();
        if state.closed {
            return Err("closed".into());
        }
        state.generation += 1;
        state.up = true;
        state.socket = Some(connected.socket.clone());
        state.trouble.clear();
        sender.generation = state.generation;
        sender.socket = Some(connected.socket.clone());
        for request in state.outstanding.values() {
            request.batch.state.lock().resend = true;
            request.batch.changed.notify_all();
        }
        drop(state);
        self.room.notify_all();
        Ok(())
    }

    fn go_down(&self, connected: &Connected, why: &str) {
        let _ = connected.socket.shutdown(Shutdown::Both);
        let mut sender = self.sender.lock();
        let mut state = self.state.lock();
        sender.socket = None;
        state.socket = None;
        state.up = false;
        state.trouble = why.to_owned();
        if !state.closed {
            tracing::warn!(device = self.terms.name, why, "connection lost");
        }
    }

    /// Takes answers until the socket ends; gives the reason.
    fn receive(&self, incoming: &mut BufReader<Incoming>) -> String {
        loop {
            let (cookie, error) = match wire::read_reply(incoming) {
                Ok(reply) => reply,
                Err(why) => return why,
            };
            if error == wire::ESHUTDOWN {
                return "the server is shutting down".into();
            }
            let Some((command, len)) = self.asked(cookie) else {
                return format!("an answer to a request that was not made ({cookie:#x})");
            };
            let result = if error != 0 {
                Err(wire::error_text(error))
            } else if command == Command::Read {
                let mut bytes = vec![0; len as usize];
                if let Err(e) = std::io::Read::read_exact(incoming, &mut bytes) {
                    return wire::ended(e);
                }
                Ok(bytes)
            } else {
                Ok(Vec::new())
            };
            let lost = match &result {
                Err(why) if command == Command::Flush => Some(format!("a flush failed ({why})")),
                _ => None,
            };
            self.answered(cookie, result);
            if let Some(why) = lost {
                // The server may have dropped what it could not make durable, and would report it only once: everything is
                // written again before the next flush.
                return why;
            }
        }
    }

    /// The outstanding request that was sent on the present socket with this cookie.
    fn asked(&self, cookie: u64) -> Option<(Command, u32)> {
        let state = self.state.lock();
        let request = state.outstanding.get(&cookie).filter(|r| r.generation == state.generation)?;
        Some((request.wish.command, request.wish.len))
    }

    fn answered(&self, cookie: u64, result: Result<Vec<u8>, String>) {
        let mut state = self.state.lock();
        // Its caller may have given up meanwhile.
        let Some(request) = state.outstanding.remove(&cookie) else { return };
        let Wish { command, flags, offset, payload, .. } = request.wish;
        if let Some(payload) = payload {
            state.writing -= payload.len();
            if result.is_ok() {
                state.unflushed.push(offset, payload, flags & wire::CMD_FLAG_FUA != 0);
            }
        }
        if command == Command::Flush && result.is_ok() {
            state.unflushed.forget(request.mark);
        }
        drop(state);
        self.room.notify_all();
        let mut batch = request.batch.state.lock();
        batch.left -= 1;
        match result {
            Ok(bytes) if command == Command::Read => batch.parts.push((request.index, bytes)),
            Ok(_) => {}
            Err(why) => batch.error = Some(why),
        }
        if batch.left == 0 {
            request.batch.changed.notify_all();
        }
    }

    /// Tries until there is a socket with everything repeated on it; `None` when the device is closed or can never work again.
    fn reconnect(&self) -> Option<Connected> {
        let mut pause = PAUSE.0;
        loop {
            {
                let mut state = self.state.lock();
                if state.closed || state.refused.is_some() {
                    return None;
                }
                self.room.wait_for(&mut state, pause);
                if state.closed {
                    return None;
                }
            }
            match self.connect_again() {
                Ok(connected) => {
                    tracing::info!(device = self.terms.name, "connected again");
                    return Some(connected);
                }
                Err(why) => {
                    tracing::debug!(device = self.terms.name, why, "cannot connect");
                    self.state.lock().trouble = why;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    fn connect_again(&self) -> Result<Connected, String> {
        let (mut connected, export) = connect(&self.terms, |socket| {
            let mut state = self.state.lock();
            state.socket = Some(socket.clone());
            !state.closed
        })?;
        let mut known = self.export.lock();
        let changed = match acceptable(&self.terms, &export) {
            Err(e) => Some(e.to_string()),
            Ok(()) if export.size < known.size => {
                Some(format!("it shrank from {} to {} bytes", known.size, export.size))
            }
            Ok(()) => None,
        };
        if let Some(what) = changed {
            let why = format!("the server came back with another export: {what}");
            drop(known);
            self.refuse(&why);
            return Err(why);
        }
        *known = export;
        drop(known);
        self.repeat(&mut connected)?;
        self.state.lock().reconnects += 1;
        Ok(connected)
    }

    /// Nothing can be done any more.
    fn refuse(&self, why: &str) {
        tracing::error!(device = self.terms.name, why, "the device has failed");
        let mut state = self.state.lock();
        state.refused = Some(why.to_owned());
        state.writing = 0;
        for (_, request) in state.outstanding.drain() {
            let mut batch = request.batch.state.lock();
            batch.error = Some(why.to_owned());
            batch.left -= 1;
            request.batch.changed.notify_all();
        }
        drop(state);
        self.room.notify_all();
    }

    /// Writes again what the server may have lost (invariant 3).
    fn repeat(&self, connected: &mut Connected) -> Result<(), String> {
        let max = self.export().max_payload as usize;
        // Nobody adds to it while there is no connection.
        let pieces = self.state.lock().unflushed.replay();
        let pieces = pieces.iter().flat_map(|(offset, bytes, part)| {
            bytes[part.clone()].chunks(max).scan(*offset, |at, chunk| {
                let here = *at;
                *at += chunk.len() as u64;
                Some((here, chunk))
            })
        });
        let (mut sent, mut answered) = (0u64, 0u64);
        let incoming = &mut connected.incoming;
        let mut answer = |sent: u64, answered: &mut u64| -> Result<(), String> {
            // Each answer has time of its own.
            incoming.get_mut().set_deadline(Instant::now() + self.terms.timeout);
            let (cookie, error) = wire::read_reply(incoming)?;
            if cookie >= sent || error != 0 {
                return Err(format!("repeating unflushed writes: {}", wire::error_text(error)));
            }
            *answered += 1;
            Ok(())
        };
        for (offset, chunk) in pieces {
            let head = wire::request(Command::Write, 0, sent, offset, chunk.len() as u32);
            wire::send_all(&connected.socket, &[&head, chunk]).map_err(wire::ended)?;
            sent += 1;
            if sent - answered >= REPLAY_WINDOW as u64 {
                answer(sent, &mut answered)?;
            }
        }
        while answered < sent {
            answer(sent, &mut answered)?;
        }
        if sent > 0 {
            tracing::info!(device = self.terms.name, writes = sent, "repeated what had not been flushed");
        }
        Ok(())
    }

    /// Ends everything; the thread ends soon.
    pub(super) fn close(&self) {
        let (socket, up) = {
            let mut state = self.state.lock();
            state.closed = true;
            (state.socket.take(), state.up)
        };
        self.room.notify_all();
        let Some(socket) = socket else { return };
        if up {
            let _sender = self.sender.lock();
            let _ = socket.set_write_timeout(Some(Duration::from_millis(100)));
            let _ = wire::send_all(&socket, &[&wire::request(Command::Disconnect, 0, 0, 0, 0)]);
        }
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Makes everything durable that was answered before.
pub(super) const FLUSH: Wish = Wish { command: Command::Flush, flags: 0, offset: 0, len: 0, payload: None };
