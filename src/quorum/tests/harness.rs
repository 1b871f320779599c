//! Volumes with quorum blocks only, and a server that does what it is told.

use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use crate::device::{BlockDevice, MemDevice};
use crate::format::consts::{QUORUM_BLKNO, QUORUM_SLOTS, SMALL_BYTES};
use crate::format::layout::{InetAddr, QuorumBlock, QuorumConfig};
use crate::quorum::blocks::{QuorumDisk, QuorumEvent, SlotBlocks, encode, event, fresh};
use crate::quorum::member::{QuorumMember, ServerControl, ServerStart, ServerState};
use crate::sync::{Arc, Mutex, OnceLock, thread};

pub(super) const FSID: u64 = 0x1122_3344_5566_7788;

/// A configuration with these slots present, at 10.0.0.(slot + 1) port 4000.
pub(super) fn config(present: &[usize]) -> QuorumConfig {
    let mut config = QuorumConfig::new_zeroed();
    config.version.set(1);
    for slot in present {
        config.slots[*slot] = addr(*slot);
    }
    config
}

pub(super) fn addr(slot: usize) -> InetAddr {
    InetAddr { family: 1.into(), port: 4000.into(), addr: (0x0a00_0001 + slot as u32).into(), pad: [0; 24] }
}

/// A device with fresh quorum blocks.
pub(super) fn device() -> Arc<MemDevice> {
    let device = MemDevice::new(1 << 20);
    for slot in 0..QUORUM_SLOTS {
        let offset = (QUORUM_BLKNO + slot as u64) * SMALL_BYTES as u64;
        device.write_at(offset, &encode(&fresh(FSID, slot))).expect("memory can be written");
    }
    device
}

pub(super) fn disk(device: &Arc<dyn BlockDevice>) -> Arc<QuorumDisk> {
    Arc::new(QuorumDisk::new(device.clone(), FSID))
}

pub(super) fn term_of(blocks: &SlotBlocks, slot: usize, what: QuorumEvent) -> u64 {
    event(blocks.get(slot).expect("a readable block"), what).term.get()
}

pub(super) fn block(blocks: &SlotBlocks, slot: usize) -> QuorumBlock {
    *blocks.get(slot).expect("a readable block")
}

/// A server that comes up at once (or never), and goes down when asked.
pub(super) struct FakeServer {
    state: Mutex<ServerState>,
    pub(super) starts: Mutex<Vec<ServerStart>>,
    pub(super) stops: Mutex<u32>,
    /// What becomes of a started server.
    pub(super) becomes: Mutex<ServerState>,
    pub(super) member: OnceLock<Arc<QuorumMember>>,
}

impl FakeServer {
    pub(super) fn new() -> Arc<FakeServer> {
        Arc::new(FakeServer {
            state: Mutex::new(ServerState::Down),
            starts: Mutex::new(Vec::new()),
            stops: Mutex::new(0),
            becomes: Mutex::new(ServerState::Up),
            member: OnceLock::new(),
        })
    }

    pub(super) fn set(&self, state: ServerState) {
        *self.state.lock() = state;
        if let Some(member) = self.member.get() {
            member.server_changed();
        }
    }
}

impl ServerControl for FakeServer {
    fn start_server(&self, start: ServerStart) {
        assert_eq!(self.server_state(), ServerState::Down, "one server at a time");
        self.starts.lock().push(start);
        let becomes = *self.becomes.lock();
        self.set(becomes);
    }

    fn stop_server(&self) {
        *self.stops.lock() += 1;
        self.set(ServerState::Down);
    }

    fn server_state(&self) -> ServerState {
        *self.state.lock()
    }
}

/// Waits until `what` gives something; a test that waits 20 s has failed.
pub(super) fn eventually<T>(name: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {name}");
        thread::sleep(Duration::from_millis(2));
    }
}
