//! Looks for a newer leader while a mount is connected (`spec/05` L5).
//!
//! **Problem.** A server whose host has lost power or network sends nothing that says so: its clients would find out by silence
//! only, after 24 s, although the quorum blocks name its successor after 10.
//!
//! **Idea.** While connected, look at the blocks once a second; when a greater term stands there than that of the server that
//! greeted us, break the socket. The dialer then finds the new server at once.

use std::time::Duration;

use super::client::Inner;
use super::dial::FindServer;
use crate::sync::{Arc, Instant, Mutex};

/// How often a connected mount looks for a newer leader.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The thread `scoutfs-net-look`, until nobody wants a connection any more.
pub(super) fn look_for_newer_leader(inner: &Arc<Inner>, find_server: &Mutex<FindServer>) {
    loop {
        let until = Instant::now() + LOOK_EVERY;
        let mut state = inner.link.lock();
        while Instant::now() < until {
            if state.own.down || state.own.left {
                return;
            }
            inner.changed.wait_until(&mut state, until);
        }
        let (connected, term) = (state.attached(), state.own.term);
        drop(state);
        if !connected {
            continue;
        }
        // An error means that there is nothing to know now.
        let Ok((_, newest)) = (find_server.lock())() else { continue };
        let mut state = inner.link.lock();
        if newest > term && state.own.term == term && state.attached() {
            tracing::info!(rid = inner.rid, term, newest, "another server has been elected: leaving the old one");
            state.own.woken = true;
            state.break_socket();
        }
    }
}
