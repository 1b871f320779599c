//! The thread of a quorum member: takes datagrams and the time to the [`Election`], and does what it says.
//!
//! Thread: `scoutfs-quorum`; blocks on datagrams and on reads, writes and flushes of quorum blocks.
//!
//! Invariants:
//!
//! 1. Actions are taken in order, and none after a failed record.
//! 2. Leaders that an earlier server of this mount was told to fence are fenced again by the next one, until a server
//!    has come up: a STOP event on their slot, written by us meanwhile, would hide them (`spec/05` S12).

use std::net::SocketAddr;
use std::time::Duration;

use super::blocks::{QuorumDisk, QuorumEvent};
use super::config::{present_slots, slot_addr, validate_config, votes_needed};
use super::election::{Action, Election, ElectionConfig, Role, To, turn};
use super::message::{MESSAGE_BYTES, Message};
use super::scan::{Leader, greatest_fence, has_stopped, leader_slot, leaders_to_fence, running_leaders};
use crate::error::{Error, Result};
use crate::format::consts::QUORUM_SLOTS;
use crate::format::layout::QuorumConfig;
use crate::net::{Datagrams, Transport};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Instant, Mutex, random, thread};

/// Allowed heartbeat timeouts (mount option `quorum_heartbeat_timeout_ms`).
const HEARTBEAT_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);

/// Where the local server is in its life (`spec/05 §5.1`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ServerState {
    /// Not running; nothing of it can reach the device any more.
    Down,
    /// Fencing, reading, not yet accepting.
    Starting,
    /// Accepting clients; every older leader has been fenced.
    Up,
    /// Asked to stop, may still write.
    Stopping,
}

/// A leader that was heard from so short a time before the election did not fail but stepped down. Heartbeats come every
/// 100 ms.
const HEARD_LATELY: Duration = Duration::from_secs(1);

/// The order to start the server.
#[derive(Clone)]
pub(crate) struct ServerStart {
    /// Term of the election.
    pub(crate) term: u64,
    /// Leaders to fence first, including those that an earlier server of this mount could not fence. The server may only
    /// become [`ServerState::Up`] when every one is confirmed.
    pub(crate) fence: Vec<Leader>,
    /// Has this leader recorded meanwhile that it has stopped, so that it need not be fenced?
    pub(crate) has_stopped: Arc<dyn Fn(&Leader) -> bool + Send + Sync>,
}

/// The local server as the election sees it. No method may block; call [`QuorumMember::server_changed`] after every
/// change of the state.
pub(crate) trait ServerControl: Send + Sync {
    /// Starts the server. Its state must not be `Down` when this returns, unless starting has failed for good.
    fn start_server(&self, start: ServerStart);
    /// Asks it to stop.
    fn stop_server(&self);
    /// Where it is.
    fn server_state(&self) -> ServerState;
}

/// What a member is made of.
pub(crate) struct MemberConfig {
    /// The volume.
    pub(crate) fsid: u64,
    /// The mount.
    pub(crate) rid: u64,
    /// Its slot.
    pub(crate) slot: usize,
    /// All slots.
    pub(crate) qconf: QuorumConfig,
    /// 2 s to 60 s, default 10 s.
    pub(crate) heartbeat_timeout: Duration,
    /// Datagrams.
    pub(crate) transport: Arc<dyn Transport>,
    /// The quorum blocks.
    pub(crate) disk: Arc<QuorumDisk>,
    /// The server.
    pub(crate) server: Arc<dyn ServerControl>,
}

/// State of a member, for people.
#[derive(Clone, Debug)]
pub(crate) struct MemberStatus {
    /// Its slot.
    pub(crate) slot: usize,
    /// Its term.
    pub(crate) term: u64,
    /// Is it the leader?
    pub(crate) leader: bool,
    /// Term in which the local server was started, 0 if none runs.
    pub(crate) server_term: u64,
    /// Why it does not take part any more.
    pub(crate) failed: Option<Error>,
}

/// What the thread and its owner share.
struct Shared {
    status: Mutex<MemberStatus>,
    heartbeat_timeout: Mutex<Duration>,
    leave: AtomicBool,
    abandon: AtomicBool,
    /// Gone when the member has left, so that the address is free for the next mount.
    socket: Mutex<Option<Arc<dyn Datagrams>>>,
}

impl Shared {
    fn wake(&self) {
        if let Some(socket) = &*self.socket.lock() {
            socket.wake();
        }
    }
}

/// A running member.
pub(crate) struct QuorumMember {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl QuorumMember {
    /// Checks the configuration, binds the socket, records BEGIN and starts taking part.
    pub(crate) fn start(config: MemberConfig) -> Result<Arc<QuorumMember>> {
        validate_config(&config.qconf, Some(config.slot))?;
        check_timeout(config.heartbeat_timeout)?;
        let addr = slot_addr(&config.qconf, config.slot).ok_or_else(|| Error::invalid("the slot is not present"))?;
        let socket = config.transport.datagrams(addr)?;
        let shared = Arc::new(Shared {
            status: Mutex::new(MemberStatus {
                slot: config.slot,
                term: 0,
                leader: false,
                server_term: 0,
                failed: None,
            }),
            heartbeat_timeout: Mutex::new(config.heartbeat_timeout),
            leave: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            socket: Mutex::new(Some(socket.clone())),
        });
        let driver = Driver::begin(config, shared.clone(), socket)?;
        let thread = thread::Builder::new()
            .name("scoutfs-quorum".into())
            .spawn(move || driver.run())
            .map_err(|e| Error::Unsupported(format!("no thread for the quorum: {e}")))?;
        Ok(Arc::new(QuorumMember { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// The state of the local server has changed.
    pub(crate) fn server_changed(&self) {
        self.shared.wake();
    }

    /// Current state.
    pub(crate) fn status(&self) -> MemberStatus {
        self.shared.status.lock().clone()
    }

    /// Changes the heartbeat timeout, from the next heartbeat on.
    pub(crate) fn set_heartbeat_timeout(&self, timeout: Duration) -> Result<()> {
        check_timeout(timeout)?;
        *self.shared.heartbeat_timeout.lock() = timeout;
        self.shared.wake();
        Ok(())
    }

    /// Leaves in order, after the farewell: stops the server and waits for it, records STOP and END, joins the thread.
    /// The error is the one for which the member stopped taking part, then or earlier.
    pub(crate) fn leave(&self) -> Result<()> {
        self.shared.leave.store(true, Ordering::Release);
        self.join();
        match &self.shared.status.lock().failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Leaves without sending or writing anything (forced unmount), joins the thread. Called by drop too.
    pub(crate) fn abandon(&self) {
        self.shared.abandon.store(true, Ordering::Release);
        self.join();
    }

    fn join(&self) {
        self.shared.wake();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
            // A panic there has been noted in the status.
            let _ = thread.join();
        }
        *self.shared.socket.lock() = None;
    }
}

impl Drop for QuorumMember {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn check_timeout(timeout: Duration) -> Result<()> {
    if HEARTBEAT_TIMEOUTS.contains(&timeout) {
        return Ok(());
    }
    Err(Error::invalid(format!("heartbeat timeout {timeout:?} is not in 2 s .. 60 s")))
}

/// Asks the server to stop when the thread ends by a panic: it must not run without heartbeats.
struct StopOnPanic {
    server: Arc<dyn ServerControl>,
    shared: Arc<Shared>,
}

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.status.lock().failed = Some(Error::Shutdown("the quorum thread has panicked".into()));
            self.server.stop_server();
        }
    }
}

/// The state of the thread.
struct Driver {
    config: MemberConfig,
    shared: Arc<Shared>,
    election: Election,
    origin: Instant,
    socket: Arc<dyn Datagrams>,
    others: Vec<(usize, SocketAddr)>,
    /// Invariant 2.
    unfenced: Vec<Leader>,
    /// When each slot was heard from last.
    heard: [Option<Duration>; QUORUM_SLOTS],
}

impl Driver {
    fn begin(config: MemberConfig, shared: Arc<Shared>, socket: Arc<dyn Datagrams>) -> Result<Driver> {
        let blocks = config.disk.read_all();
        let slots = || present_slots(&config.qconf).map(|(slot, _)| slot);
        let (election, actions) = Election::new(
            ElectionConfig {
                slot: config.slot as u8,
                votes_needed: votes_needed(&config.qconf) as u32,
                heartbeat_timeout: config.heartbeat_timeout,
                turn: turn(slots().filter(|slot| *slot < config.slot).count(), slots().count()),
                term: blocks.greatest_term(slots()),
                leader: leader_slot(&config.qconf, &blocks, true)?.map(|(slot, _)| slot as u8),
                seed: random(),
            },
            Duration::ZERO,
        );
        // Our own ELECT will overwrite what stands on our slot; nobody else may have seen it.
        let unfenced = present_slots(&config.qconf)
            .filter(|(slot, _)| *slot == config.slot)
            .filter_map(|(slot, addr)| Some(running_leaders(slot, addr, blocks.get(slot).ok()?).collect::<Vec<_>>()))
            .flatten()
            .filter(|leader| leader.rid != config.rid && leader.term != 0)
            .collect();
        let others = present_slots(&config.qconf).filter(|(slot, _)| *slot != config.slot).collect();
        let mut driver = Driver {
            config,
            shared,
            election,
            origin: Instant::now(),
            socket,
            others,
            unfenced,
            heard: Default::default(),
        };
        for action in actions {
            driver.act(action)?;
        }
        driver.publish(None);
        Ok(driver)
    }

    fn run(mut self) {
        let _guard = StopOnPanic { server: self.config.server.clone(), shared: self.shared.clone() };
        let mut buf = [0; MESSAGE_BYTES + 1];
        while !self.election.is_gone() {
            let wait = self.election.deadline().saturating_sub(self.origin.elapsed());
            let received = self.socket.recv_from(&mut buf, wait);
            if self.shared.abandon.load(Ordering::Acquire) {
                return;
            }
            let message = match received {
                Ok(Some((len, from))) => Message::decode(&buf[..len], self.config.fsid, &self.config.qconf)
                    .filter(|message| message.is_from(from, &self.config.qconf)),
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(%error, "no election datagrams");
                    // A socket that fails at once must not turn this into a busy loop.
                    thread::sleep(Duration::from_millis(20));
                    None
                }
            };
            self.step(message);
        }
    }

    fn step(&mut self, message: Option<Message>) {
        let now = self.origin.elapsed();
        self.election.set_heartbeat_timeout(*self.shared.heartbeat_timeout.lock());
        if self.shared.leave.load(Ordering::Acquire) {
            self.election.leave(now);
        }
        if let Some(heard) = message.as_ref().and_then(|m| self.heard.get_mut(usize::from(m.from))) {
            *heard = Some(now);
        }
        let server = self.config.server.server_state();
        if server == ServerState::Up {
            self.unfenced.clear();
        }
        let mut failed = None;
        for action in self.election.step(now, message, server) {
            if let Err(error) = self.act(action) {
                tracing::error!(slot = self.config.slot, %error, "quorum block cannot be updated: leaving the quorum");
                if let Action::Record(event, _) = action {
                    self.election.record_failed(event, now);
                }
                failed = Some(error);
                break;
            }
        }
        self.publish(failed);
    }

    fn publish(&self, failed: Option<Error>) {
        let mut status = self.shared.status.lock();
        status.term = self.election.term();
        status.leader = self.election.role() == Role::Leader;
        status.server_term = self.election.server_term();
        if status.failed.is_none() {
            status.failed = failed;
        }
    }

    fn act(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Record(event, term) => {
                self.config.disk.record(self.config.slot, event, self.config.rid, term)?;
                if event == QuorumEvent::Elect {
                    tracing::info!(slot = self.config.slot, term, "elected");
                }
            }
            Action::Send(to, kind, term) => {
                let bytes = Message { kind, from: self.config.slot as u8, term }.encode(self.config.fsid);
                for (slot, addr) in &self.others {
                    if to == To::Others || to == To::Slot(*slot as u8) {
                        // Lost like any datagram may be.
                        let _ = self.socket.send_to(&bytes, *addr);
                    }
                }
            }
            Action::StartServer(term) => match self.whom_to_fence(term) {
                Ok(fence) => {
                    self.unfenced.clone_from(&fence);
                    let (disk, slots) = (self.config.disk.clone(), self.config.qconf);
                    let has_stopped = Arc::new(move |leader: &Leader| has_stopped(&slots, &disk.read_all(), leader));
                    self.config.server.start_server(ServerStart { term, fence, has_stopped });
                }
                // The server stays down, which ends this leadership in the next step.
                Err(error) => tracing::error!(%error, "leaders to be fenced are not known: no server is started"),
            },
            Action::StopServer => self.config.server.stop_server(),
        }
        Ok(())
    }

    /// The older leaders, with those remembered that no later leader has fenced.
    fn whom_to_fence(&self, term: u64) -> Result<Vec<Leader>> {
        let blocks = self.config.disk.read_all();
        let fenced = greatest_fence(&self.config.qconf, &blocks)?;
        let mut leaders = leaders_to_fence(&self.config.qconf, &blocks, self.config.rid, term)?;
        for leader in &self.unfenced {
            if leader.term >= fenced && leaders.iter().all(|l| l.rid != leader.rid) {
                leaders.push(*leader);
            }
        }
        let now = self.origin.elapsed();
        for leader in &mut leaders {
            let heard = self.heard.get(leader.slot).copied().flatten();
            leader.stepping_down = heard.is_some_and(|at| now.saturating_sub(at) < HEARD_LATELY);
        }
        Ok(leaders)
    }
}
