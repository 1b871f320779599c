//! Whole conversations between a client and servers, over the in-process network and over TCP.

use std::net::SocketAddr;
use std::time::Duration;

use super::harness::*;
use crate::net::command::Command;
use crate::net::server::ServerEvent;
use crate::net::transport::Transport;
use crate::net::{MemTransport, TcpOptions, TcpTransport};
use crate::sync::Arc;

const LONG: Duration = Duration::from_secs(20);

fn request_and_farewell(transport: Arc<dyn Transport>, at: SocketAddr) {
    let (net, events) = server(&transport, at, 7, LONG);
    let (seen, thread) = answer_all(&net, events);
    let ear = Arc::new(Ear::default());
    let place = Place::at(net.local_addr(), 7);
    let conn = client(&transport, 42, &place, &ear);
    assert_eq!(ok(conn.request(Command::GetLogTrees, &[])).len(), 472);
    assert_eq!(ok(conn.request(Command::AllocInodes, &[1; 8])).len(), 16);
    conn.lock_request(&[3; 48]).unwrap();
    eventually("the lock response", || ear.heard().contains(&Heard::LockResponse(vec![0; 48])).then_some(()));
    net.request(42, Command::OpenInoMap, &[9; 16]).unwrap();
    eventually("the answer", || {
        let seen = seen.lock();
        seen.iter().any(|e| matches!(e, ServerEvent::Response { rid: 42, cmd: Command::OpenInoMap, .. })).then_some(())
    });
    conn.farewell().unwrap();
    conn.close();
    eventually("the client is forgotten", || net.clients().is_empty().then_some(()));
    assert_eq!(ear.heard()[0], Heard::NewServer(7));
    net.stop();
    drop(net);
    thread.join().unwrap();
    assert!(!seen.lock().iter().any(|e| matches!(e, ServerEvent::ClientLost { .. })));
}

#[test]
fn a_mount_talks_and_leaves_in_process() {
    request_and_farewell(MemTransport::new(), addr(1));
}

#[test]
fn a_mount_talks_and_leaves_over_tcp() {
    let transport = TcpTransport::new(TcpOptions::default()).unwrap();
    request_and_farewell(transport, SocketAddr::from(([127, 0, 0, 1], 0)));
}
