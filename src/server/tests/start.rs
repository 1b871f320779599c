//! Whom a new server fences before it serves.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::harness::{MIB, open_store, volume};
use crate::device::FlushTracker;
use crate::error::{Errno, Result, fail};
use crate::format::Rid;
use crate::net::MemTransport;
use crate::quorum::{Leader, ServerStart, ServerState};
use crate::server::{FenceReason, Fencer, Server, ServerConfig};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Instant, Mutex, thread};

/// Notes who was fenced, and confirms.
#[derive(Default)]
struct Notes(Mutex<Vec<u64>>);

impl Fencer for Notes {
    fn fence(&self, rid: Rid, _addr: Option<IpAddr>, reason: FenceReason) -> Result<()> {
        if reason != FenceReason::QuorumBlockLeader {
            return fail(Errno::EINVAL);
        }
        self.0.lock().push(rid.0);
        Ok(())
    }
}

fn leader(rid: u64, stepping_down: bool) -> Leader {
    let addr: SocketAddr = "127.0.0.1:5001".parse().unwrap();
    Leader { slot: 1, rid, term: 4, addr, stepping_down }
}

/// Starts a server that finds `leaders`, of which all that step down say that they have stopped after `stop`. Tells who was
/// fenced and how long it took until it served.
fn started(leaders: Vec<Leader>, stop: Option<Duration>) -> (Vec<u64>, Duration) {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 2);
    let fencer = Arc::new(Notes::default());
    let config = ServerConfig {
        store: open_store(meta),
        data_dev: Some(FlushTracker::new(data)),
        flush_data: false,
        private: false,
        only_mount: None,
        transport: MemTransport::new(),
        addr: "127.0.0.1:5000".parse().unwrap(),
        fencer: fencer.clone(),
        merge_wait: Duration::from_secs(1),
        reconnect_wait: Duration::from_secs(20),
        on_change: Arc::new(|| {}),
    };
    let begin = Instant::now();
    let looked = Arc::new(AtomicBool::new(false));
    let has_stopped = {
        let looked = looked.clone();
        Arc::new(move |l: &Leader| {
            assert!(l.stepping_down, "who did not step down is not waited for");
            looked.store(true, Ordering::Relaxed);
            stop.is_some_and(|after| begin.elapsed() >= after)
        })
    };
    let server = Server::start(config, ServerStart { term: 5, fence: leaders, has_stopped }).unwrap();
    while server.state() == ServerState::Starting {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(server.state(), ServerState::Up);
    let took = begin.elapsed();
    server.stop();
    let mut fenced = fencer.0.lock().clone();
    fenced.sort_unstable();
    (fenced, took)
}

#[test]
fn a_leader_that_steps_down_is_not_fenced() {
    // Every leader that gave way to a newer term was fenced, because its STOP was not on the device yet when the next one
    // looked.
    let (fenced, _) = started(vec![leader(7, true)], Some(Duration::from_millis(60)));
    assert!(fenced.is_empty(), "{fenced:?}");
    // The others are.
    let (fenced, _) = started(vec![leader(7, true), leader(8, false)], Some(Duration::from_millis(60)));
    assert_eq!(fenced, [8]);
}

#[test]
fn a_leader_that_never_stops_is_fenced_after_a_while_and_a_silent_one_at_once() {
    let (fenced, took) = started(vec![leader(7, true), leader(8, false)], None);
    assert_eq!(fenced, [7, 8]);
    assert!(took >= Duration::from_secs(2));
    let (fenced, _) = started(vec![leader(8, false), leader(9, false)], None);
    assert_eq!(fenced, [8, 9]);
}
