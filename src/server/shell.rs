//! The server's thread, and its life from election to the end.
//!
//! One thread owns the [`ServerCore`] and thereby all trees. It sleeps until a message arrives or something is due, takes
//! everything that waits as one batch, and lets the core commit it. While it writes a commit, the next batch collects in
//! the channel: that is all there is to group commit.
//!
//! Threads: `scoutfs-server` may block on the metadata and the data device. `scoutfs-fence`, one for each request, blocks
//! in the embedder's [`Fencer`] and touches nothing of the server but a channel; it is not waited for, because a fencer
//! that does not return is one of the reasons for which a server stops.
//!
//! Invariants
//! 1. No block is read before every earlier leader is fenced.
//! 2. The state is [`ServerState::Down`] only when no write of this server can follow.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::block::BlockStore;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::Rid;
use crate::net::{Command, Mail, ServerEvent, ServerNet, ServerNetConfig, Transport};
use crate::quorum::{Leader, ServerControl, ServerStart, ServerState, votes_needed};
use crate::sync::channel::{Receiver, Selected, Sender, select, unbounded};
use crate::sync::{Arc, Instant, Mutex, thread};

use super::core::{CoreConfig, CoreStatus, Event, Peers, ServerCore};
use super::fence::{FenceReason, Fencer};
use super::report::ServerReport;
use super::trees::Trees;

/// How long a leader that steps down may take to say that it has stopped, before it is fenced; it is looked for that often.
const STEP_DOWN_TIME: Duration = Duration::from_secs(2);
const STEP_DOWN_LOOK: Duration = Duration::from_millis(10);
/// How long the fencing of earlier leaders may take (`spec/05 §3.6`).
const LEADER_FENCE_TIME: Duration = Duration::from_secs(15);
/// Most events taken as one batch.
const BATCH: usize = 4096;

/// What a server is made of.
#[derive(Clone)]
pub(crate) struct ServerConfig {
    /// The metadata device.
    pub(crate) store: Arc<BlockStore>,
    /// The data device, if the server can reach it: needed for growing it.
    pub(crate) data_dev: Option<Arc<dyn BlockDevice>>,
    /// Flush the data device with each commit. Mounts of this engine have flushed it before they send COMMIT, those of
    /// the original have not, and those of a private server have not either.
    pub(crate) flush_data: bool,
    /// All mounts of this server, and all servers that may come after it while they live, are in this process
    /// ([`CoreConfig::private`]).
    pub(crate) private: bool,
    /// The one mount that can reach the server, if it is only one ([`CoreConfig::only_mount`]).
    pub(crate) only_mount: Option<u64>,
    /// How mounts reach the server.
    pub(crate) transport: Arc<dyn Transport>,
    /// The address of its slot.
    pub(crate) addr: SocketAddr,
    /// Isolates failed mounts.
    pub(crate) fencer: Arc<dyn Fencer>,
    /// How long a mount waits for the others before a log merge (`spec/05 §8.1`).
    pub(crate) merge_wait: Duration,
    /// How long a lost connection may stay away.
    pub(crate) reconnect_wait: Duration,
    /// Called after every change of the state; must not block.
    pub(crate) on_change: Arc<dyn Fn() + Send + Sync>,
}

/// For people.
#[derive(Clone, Debug)]
pub(crate) struct ServerStatus {
    /// Where it is in its life.
    pub(crate) state: ServerState,
    /// The term it serves.
    pub(crate) term: u64,
    /// Why it stopped by itself.
    pub(crate) failed: Option<Error>,
    /// Counters as of the last commit.
    pub(crate) core: CoreStatus,
}

enum Control {
    Stop,
    Fenced { rid: u64, result: Result<()> },
    Report(Sender<Result<ServerReport>>),
}

struct Shared {
    status: Mutex<ServerStatus>,
    on_change: Arc<dyn Fn() + Send + Sync>,
}

impl Shared {
    fn set_state(&self, state: ServerState) {
        self.status.lock().state = state;
        (self.on_change)();
    }
}

/// However the thread ends, everybody learns that it is down.
struct DownAtTheEnd(Arc<Shared>);

impl Drop for DownAtTheEnd {
    fn drop(&mut self) {
        self.0.set_state(ServerState::Down);
    }
}

/// The server of one term.
pub(crate) struct Server;

impl Server {
    /// Starts the server that was elected: fences the leaders in `start`, then takes over the volume and serves.
    ///
    /// Returns at once; [`ServerHandle::state`] tells how it goes.
    pub(crate) fn start(config: ServerConfig, start: ServerStart) -> Result<ServerHandle> {
        let status =
            ServerStatus { state: ServerState::Starting, term: start.term, failed: None, core: CoreStatus::default() };
        let shared = Arc::new(Shared { status: Mutex::new(status), on_change: config.on_change.clone() });
        let (control, receiver) = unbounded();
        let run = Run { shared: shared.clone(), control: control.clone(), receiver, config, start };
        let thread = thread::Builder::new()
            .name("scoutfs-server".into())
            .spawn(move || {
                let _down = DownAtTheEnd(run.shared.clone());
                if let Err(e) = run.run() {
                    tracing::error!(term = run.start.term, error = %e, "the server stopped");
                    run.shared.status.lock().failed = Some(e);
                }
            })
            .map_err(|e| Error::Shutdown(format!("no thread for the server: {e}")))?;
        Ok(ServerHandle { shared, control, thread: Mutex::new(Some(thread)) })
    }
}

/// A running server.
pub(crate) struct ServerHandle {
    shared: Arc<Shared>,
    control: Sender<Control>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl ServerHandle {
    /// Where it is in its life.
    pub(crate) fn state(&self) -> ServerState {
        self.shared.status.lock().state
    }

    /// For people.
    pub(crate) fn status(&self) -> ServerStatus {
        self.shared.status.lock().clone()
    }

    fn failed(&self) -> Option<Error> {
        self.shared.status.lock().failed.clone()
    }

    /// What it knows; `None` if it does not serve, or is too busy to answer in `patience`.
    pub(crate) fn report(&self, patience: Duration) -> Option<Result<ServerReport>> {
        if self.state() != ServerState::Up {
            return None;
        }
        let (answer, receiver) = unbounded();
        self.control.send(Control::Report(answer)).ok()?;
        receiver.recv_deadline(Instant::now() + patience).ok()
    }

    /// Asks it to stop, without waiting.
    pub(crate) fn request_stop(&self) {
        {
            let mut status = self.shared.status.lock();
            if status.state == ServerState::Down {
                return;
            }
            status.state = ServerState::Stopping;
        }
        // A thread that has ended needs no message.
        let _ = self.control.send(Control::Stop);
    }

    /// Stops it; returns when nothing of it can reach the device any more.
    pub(crate) fn stop(&self) {
        self.request_stop();
        if let Some(thread) = self.thread.lock().take() {
            if thread.join().is_err() {
                tracing::error!("the server thread panicked");
            }
            let ServerStatus { term, core, failed, .. } = self.status();
            tracing::info!(term, ?core, failed = failed.is_some(), "the server is down");
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread owns.
struct Run {
    shared: Arc<Shared>,
    control: Sender<Control>,
    receiver: Receiver<Control>,
    config: ServerConfig,
    start: ServerStart,
}

impl Run {
    fn run(&self) -> Result<()> {
        let Some(fenced) = self.fence_leaders()? else { return Ok(()) };
        let trees = Trees::open(self.config.store.clone(), self.config.data_dev.clone(), self.config.flush_data)?;
        let core_config = CoreConfig {
            votes_needed: votes_needed(&trees.sup.qconf),
            merge_wait: self.config.merge_wait,
            private: self.config.private,
            only_mount: self.config.only_mount,
        };
        let core = ServerCore::new(trees, core_config, &fenced, Instant::now())?;
        let (events, receiver) = unbounded();
        let net_config = ServerNetConfig {
            transport: self.config.transport.clone(),
            addr: self.config.addr,
            fsid: self.config.store.fsid(),
            fmt_vers: core.trees.sup.fmt_vers.get(),
            term: self.start.term,
            reconnect_wait: self.config.reconnect_wait,
            direct: Some(core.desk.clone()),
        };
        let net = ServerNet::start(net_config, events)?;
        {
            let mut status = self.shared.status.lock();
            if status.state == ServerState::Starting {
                status.state = ServerState::Up;
            }
        }
        (self.shared.on_change)();
        let result = self.serve(core, &net, &receiver);
        net.stop();
        result
    }

    /// The earlier leaders that have to be fenced: those that are just stepping down get some time to do that. `None`: the
    /// server was asked to stop meanwhile.
    fn leaders_to_fence(&self) -> Option<Vec<Leader>> {
        let mut leaders = self.start.fence.clone();
        let patience = Instant::now() + STEP_DOWN_TIME;
        while leaders.iter().any(|l| l.stepping_down) && Instant::now() < patience {
            leaders.retain(|l| !(l.stepping_down && (self.start.has_stopped)(l)));
            match self.receiver.recv_deadline(Instant::now() + STEP_DOWN_LOOK) {
                Ok(Control::Stop) => return None,
                // Nothing was asked for yet, and whoever wants a report sees that there is none.
                Ok(Control::Fenced { .. } | Control::Report(_)) | Err(_) => {}
            }
        }
        Some(leaders)
    }

    /// Fences the earlier leaders and tells which. `None`: the server was asked to stop meanwhile.
    fn fence_leaders(&self) -> Result<Option<Vec<u64>>> {
        let Some(leaders) = self.leaders_to_fence() else { return Ok(None) };
        let deadline = Instant::now() + LEADER_FENCE_TIME;
        for Leader { rid, addr, .. } in &leaders {
            self.spawn_fence(*rid, Some(addr.ip()), FenceReason::QuorumBlockLeader);
        }
        let mut fenced: Vec<u64> = leaders.iter().map(|l| l.rid).collect();
        fenced.sort_unstable();
        fenced.dedup();
        let mut missing = fenced.clone();
        while let Some(rid) = missing.first() {
            match self.receiver.recv_deadline(deadline) {
                Ok(Control::Stop) => return Ok(None),
                Ok(Control::Fenced { rid, result }) => {
                    result?;
                    missing.retain(|m| *m != rid);
                }
                // Whoever asked sees that there is no answer.
                Ok(Control::Report(_)) => {}
                Err(_) => return Err(Error::Busy(format!("leader {rid:016x} has not been fenced in time"))),
            }
        }
        Ok(Some(fenced))
    }

    fn spawn_fence(&self, rid: u64, addr: Option<IpAddr>, reason: FenceReason) {
        let (fencer, control) = (self.config.fencer.clone(), self.control.clone());
        let ask = move || {
            let result = fencer.fence(Rid(rid), addr, reason);
            let _ = control.send(Control::Fenced { rid, result });
        };
        if let Err(e) = thread::Builder::new().name("scoutfs-fence".into()).spawn(ask) {
            let result = Err(Error::Shutdown(format!("no thread to fence with: {e}")));
            let _ = self.control.send(Control::Fenced { rid, result });
        }
    }

    fn serve(&self, mut core: ServerCore, net: &ServerNet, events: &Receiver<ServerEvent>) -> Result<()> {
        let mut peers = NetPeers { net, run: self };
        loop {
            core.round(Instant::now(), &mut peers)?;
            self.shared.status.lock().core = core.status();
            let first = match core.next_round() {
                Some(None) => None,
                Some(Some(at)) => self.wait(events, Some(at))?,
                None => self.wait(events, None)?,
            };
            let now = Instant::now();
            match first {
                Some(Wakeup::Stop) => return Ok(()),
                Some(Wakeup::Event(event)) => core.handle(now, event, &mut peers)?,
                Some(Wakeup::Report(answer)) => drop(answer.send(core.report(self.start.term))),
                None => {}
            }
            for control in self.receiver.try_iter() {
                match control {
                    Control::Stop => return Ok(()),
                    Control::Fenced { rid, result } => core.handle(now, Event::Fenced { rid, result }, &mut peers)?,
                    Control::Report(answer) => drop(answer.send(core.report(self.start.term))),
                }
            }
            for event in events.try_iter().take(BATCH) {
                core.handle(now, Event::Net(event), &mut peers)?;
            }
        }
    }

    /// Sleeps until something happens. `None`: the time has come.
    fn wait(&self, events: &Receiver<ServerEvent>, until: Option<Instant>) -> Result<Option<Wakeup>> {
        match select(events, &self.receiver, until) {
            Selected::First(Some(event)) => Ok(Some(Wakeup::Event(Event::Net(event)))),
            Selected::First(None) => Err(Error::Shutdown("the network of the server has ended".into())),
            Selected::Second(Some(Control::Fenced { rid, result })) => {
                Ok(Some(Wakeup::Event(Event::Fenced { rid, result })))
            }
            Selected::Second(Some(Control::Report(answer))) => Ok(Some(Wakeup::Report(answer))),
            Selected::Second(Some(Control::Stop) | None) => Ok(Some(Wakeup::Stop)),
            Selected::TimedOut => Ok(None),
        }
    }
}

enum Wakeup {
    Stop,
    Event(Event),
    Report(Sender<Result<ServerReport>>),
}

/// The core's way out: the connections and the fencing threads.
struct NetPeers<'a> {
    net: &'a ServerNet,
    run: &'a Run,
}

impl Mail for NetPeers<'_> {
    fn respond(&mut self, rid: u64, id: u64, cmd: Command, result: Result<Vec<u8>>) {
        self.net.respond(rid, id, cmd, result);
    }

    fn request(&mut self, rid: u64, cmd: Command, payload: &[u8]) -> Result<u64> {
        self.net.request(rid, cmd, payload)
    }

    fn break_client(&mut self, rid: u64, why: &str) {
        self.net.break_client(rid, why);
    }
}

impl Peers for NetPeers<'_> {
    fn is_away(&self, rid: u64) -> bool {
        self.net.is_away(rid)
    }

    fn greeting_done(&mut self, token: u64, result: Result<()>) {
        self.net.greeting_done(token, result);
    }

    fn drop_client(&mut self, rid: u64) {
        self.net.drop_client(rid);
    }

    fn fence(&mut self, rid: u64, addr: Option<IpAddr>, reason: FenceReason) {
        self.run.spawn_fence(rid, addr, reason);
    }
}

/// The server of a mount as its quorum member starts and stops it.
pub(crate) struct LocalServer {
    config: ServerConfig,
    current: Mutex<Option<Arc<ServerHandle>>>,
    /// Of the servers before the current one.
    earlier: Mutex<Ends>,
}

/// How servers of a mount have ended by themselves.
#[derive(Clone, Default)]
pub(crate) struct Ends {
    /// So many because of what they found on the device.
    pub(crate) corrupt: u32,
    /// The reason of the last one.
    pub(crate) last: Option<Error>,
}

impl Ends {
    fn add(&mut self, failed: Option<Error>) {
        self.corrupt += u32::from(matches!(failed, Some(Error::Corrupt { .. })));
        self.last = failed.or(self.last.take());
    }
}

impl LocalServer {
    /// No server runs yet; every one that is started will be made of this.
    pub(crate) fn new(config: ServerConfig) -> LocalServer {
        LocalServer { config, current: Mutex::new(None), earlier: Mutex::default() }
    }

    /// How the servers of this mount have ended, the current one included.
    pub(crate) fn ends(&self) -> Ends {
        let mut ends = self.earlier.lock().clone();
        ends.add(self.handle().and_then(|s| s.failed()));
        ends
    }

    /// The server that was started last.
    pub(crate) fn handle(&self) -> Option<Arc<ServerHandle>> {
        self.current.lock().clone()
    }
}

impl ServerControl for LocalServer {
    fn start_server(&self, start: ServerStart) {
        let old = self.current.lock().take();
        self.earlier.lock().add(old.as_ref().and_then(|s| s.failed()));
        // It is down, or quorum would not start another; dropping it joins a thread that has ended.
        drop(old);
        match Server::start(self.config.clone(), start) {
            Ok(handle) => *self.current.lock() = Some(Arc::new(handle)),
            Err(e) => tracing::error!(error = %e, "the server could not be started"),
        }
    }

    fn stop_server(&self) {
        if let Some(server) = self.handle() {
            server.request_stop();
        }
    }

    fn server_state(&self) -> ServerState {
        self.handle().map_or(ServerState::Down, |s| s.state())
    }
}
