//! The server without I/O of its own: messages in, messages out, and commits of the trees.
//!
//! [`ServerCore::handle`] takes one event. What changes nothing durable is answered at once; everything else becomes a
//! [`Job`]. [`ServerCore::round`] then lets every job do a step on the dirty trees, writes one commit for all of them, and
//! only then gives the answers. A job that is too long for one commit says [`Step::Again`] and goes on in the next round;
//! one that waits for other mounts says [`Step::Park`]. There is no timer before a commit: a lone request is committed
//! at once, and whatever arrives while a commit is being written shares the next one.
//!
//! Invariants
//! 1. Nobody gets an answer before everything it says is durable, refusals included.
//! 2. A job does not trust what it saw in an earlier step: between two steps the trees may have changed, so each step
//!    derives what to do from the trees.
//! 3. A job that starts has the room that one step may need; otherwise the commit is written first.
//! 4. [`Fail::Refuse`] is only possible before the first change of a step, or when the state is consistent as it is;
//!    every other failure is [`Fail::Stop`]: nothing more is written and the server ends (`spec/05 §5.2`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::error::{Errno, Error, Result};
use crate::format::consts::GREETING_FLUSHES;
use crate::format::layout::{
    LogMergeComplete, LogTrees, MountedClient, NetResizeDevices, OpenInoMapArgs, SrchCompact, VolumeOptionValues,
};
use crate::format::wire::exact;
use crate::net::{Command, Mail, ServerEvent};
use crate::sync::{Arc, HashMap, HashSet, Instant};

use super::desk::Desk;
use super::fence::FenceReason;
use super::log_trees::GetLogTrees;
use super::omap::OpenMaps;
use super::reclaim::Reclaim;
use super::recovery::{Fences, Recovery};
use super::silence::Silence;
use super::trees::Trees;

/// What the core does to the world. None of it may block.
pub(crate) trait Peers: Mail {
    /// Ends a greeting.
    fn greeting_done(&mut self, token: u64, result: Result<()>);
    /// Forgets a client that was reclaimed after fencing.
    fn drop_client(&mut self, rid: u64);
    /// Has this client no connection now? It may come back.
    fn is_away(&self, rid: u64) -> bool;
    /// Has a mount fenced; the outcome comes back as [`Event::Fenced`].
    fn fence(&mut self, rid: u64, addr: Option<IpAddr>, reason: FenceReason);
}

/// What happens to the core.
#[derive(Debug)]
pub(crate) enum Event {
    /// From the connections.
    Net(ServerEvent),
    /// A fence request ended.
    Fenced { rid: u64, result: Result<()> },
}

/// Why a step did not do what was asked.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The requester gets this error; the server goes on.
    Refuse(Errno),
    /// The server has to stop.
    Stop(Error),
}

impl From<Error> for Fail {
    fn from(e: Error) -> Fail {
        Fail::Stop(e)
    }
}

pub(crate) type Outcome<T> = Result<T, Fail>;

/// `Err(Fail::Refuse(errno))`.
pub(crate) fn refuse<T>(errno: Errno) -> Outcome<T> {
    Err(Fail::Refuse(errno))
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The job is finished; its answer waits for the commit.
    Done,
    /// To be continued after the commit.
    Again,
    /// To be continued when something happens, at the latest at this time.
    Park(Instant),
}

/// Something that changes the trees.
#[derive(Debug)]
pub(crate) enum Job {
    Greet {
        token: u64,
        rid: u64,
        client: MountedClient,
        features: u64,
    },
    AllocInodes {
        from: Asker,
        count: u64,
    },
    GetLogTrees(GetLogTrees),
    CommitLogTrees {
        from: Asker,
        log_trees: Box<LogTrees>,
    },
    SrchGet {
        from: Asker,
    },
    SrchCommit {
        from: Asker,
        compact: Box<SrchCompact>,
    },
    GetLogMerge {
        from: Asker,
    },
    CommitLogMerge {
        from: Asker,
        complete: Box<LogMergeComplete>,
    },
    Volopt {
        from: Asker,
        options: Box<VolumeOptionValues>,
    },
    Resize {
        from: Asker,
        totals: NetResizeDevices,
    },
    Reclaim(Reclaim),
    /// Frees a slice of the trees that a finished merge left behind.
    FreeTrees,
}

/// Whom to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) rid: u64,
    pub(crate) id: u64,
    pub(crate) cmd: Command,
}

impl Job {
    /// Whose request it is, if it is one.
    fn from(&self) -> Option<Asker> {
        match self {
            Job::AllocInodes { from, .. }
            | Job::CommitLogTrees { from, .. }
            | Job::SrchGet { from }
            | Job::SrchCommit { from, .. }
            | Job::GetLogMerge { from }
            | Job::CommitLogMerge { from, .. }
            | Job::Volopt { from, .. }
            | Job::Resize { from, .. } => Some(*from),
            Job::GetLogTrees(get) => Some(get.from),
            Job::Greet { .. } | Job::Reclaim(_) | Job::FreeTrees => None,
        }
    }
}

/// What is said when the commit is durable.
#[derive(Debug)]
pub(super) enum Answer {
    Respond(Asker, Result<Vec<u8>, Errno>),
    Greeted { token: u64, rid: u64 },
    Reclaimed { rid: u64, fenced: bool },
}

/// Settings of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreConfig {
    /// Votes that the quorum configuration needs.
    pub(crate) votes_needed: usize,
    /// How long a mount waits for the others before a log merge (`log_merge_wait_timeout_ms`).
    pub(crate) merge_wait: Duration,
    /// Every mount and every server that they may meet are of this process.
    pub(crate) private: bool,
    /// The one mount that can ever reach this server, if only one can: its network is of that mount's own. Other mounts that
    /// are recorded are not waited for; they are fenced at once.
    pub(crate) only_mount: Option<u64>,
}

/// See the module documentation.
pub(crate) struct ServerCore {
    pub(super) config: CoreConfig,
    pub(super) trees: Trees,
    pub(super) desk: Arc<Desk>,
    pub(super) locks_blocked: bool,
    pub(super) omap: OpenMaps,
    pub(super) recovery: Recovery,
    pub(super) fences: Fences,
    pub(super) silence: Silence,
    /// Mounts that made first contact and were not reclaimed.
    pub(super) connected: BTreeSet<u64>,
    /// Mounts that had no connection when farewells were looked at last.
    pub(super) away: BTreeSet<u64>,
    /// What the connected mounts said that they can (`GREETING_FLUSHES`, `GREETING_OPENS`).
    pub(super) features: BTreeMap<u64, u64>,
    /// Farewells that are not answered, in order of arrival.
    pub(super) farewells: Vec<Asker>,
    /// Reclaimed, and answered as soon as no other farewell is being reclaimed.
    pub(super) goodbyes: Vec<Asker>,
    /// Mounts whose reclaim is under way.
    pub(super) reclaiming: BTreeSet<u64>,
    ready: VecDeque<Job>,
    parked: Vec<(Instant, Job)>,
    pub(super) answers: Vec<Answer>,
    /// A log tree was finalized, or a merge started: who is parked may go on.
    pub(super) logs_moved: bool,
    /// A [`Job::FreeTrees`] is under way.
    pub(super) freeing: bool,
    /// Core sequence at the last round of SYNC_LOG_TREES messages.
    pub(super) sync_sent: u64,
    /// Merge requests that this server handed out, by seq.
    pub(super) handed_merges: HashSet<u64>,
    /// Compactions that this server handed out, by rid and id.
    pub(super) handed_compactions: HashSet<(u64, u64)>,
    /// Reported errors of compactions, by id.
    pub(super) failed_compactions: HashMap<u64, u32>,
}

impl ServerCore {
    /// Takes over the volume. `fenced` are the rids of earlier leaders, which can write no more.
    pub(crate) fn new(trees: Trees, config: CoreConfig, fenced: &[u64], now: Instant) -> Result<ServerCore> {
        let cannot_come = |rid: &u64| config.only_mount.is_some_and(|only| only != *rid) && !fenced.contains(rid);
        let gone = trees.mounted.keys().copied().filter(cannot_come).collect();
        let recovery = Recovery::start(trees.mounted.keys().copied(), gone, now);
        let blocked = recovery.locks_pending();
        let mut core = ServerCore {
            config,
            desk: Desk::new(blocked, trees.core_seq.clone(), trees.stable.clone()),
            locks_blocked: blocked,
            omap: OpenMaps::default(),
            recovery,
            fences: Fences::default(),
            silence: Silence::default(),
            connected: BTreeSet::new(),
            away: BTreeSet::new(),
            features: BTreeMap::new(),
            farewells: Vec::new(),
            goodbyes: Vec::new(),
            reclaiming: BTreeSet::new(),
            ready: VecDeque::new(),
            parked: Vec::new(),
            answers: Vec::new(),
            logs_moved: false,
            freeing: false,
            sync_sent: 0,
            handed_merges: HashSet::default(),
            handed_compactions: HashSet::default(),
            failed_compactions: HashMap::default(),
            trees,
        };
        core.check_merge_status()?;
        for rid in fenced {
            core.start_reclaim(*rid, true);
        }
        // Earlier servers may have left merged trees unfreed.
        if core.trees.has_freeing()? {
            core.start_freeing();
        }
        Ok(core)
    }

    /// Takes one event.
    pub(crate) fn handle(&mut self, now: Instant, event: Event, peers: &mut dyn Peers) -> Result<()> {
        match event {
            Event::Net(ServerEvent::Greeting { token, rid, greeting, peer, first_contact }) => {
                self.greeting(token, rid, &greeting, peer, first_contact, peers);
            }
            Event::Net(ServerEvent::Request { rid, id, cmd, payload }) => {
                self.silence.heard(rid, now);
                self.request(Asker { rid, id, cmd }, &payload, peers);
            }
            Event::Net(ServerEvent::Response { rid, id, cmd, result }) => {
                self.silence.heard(rid, now);
                if let Err(why) = self.response(rid, id, cmd, result, peers) {
                    self.distrust(rid, &why, now, peers);
                }
            }
            Event::Net(ServerEvent::ClientLost { rid, peer }) => self.lost(rid, peer, now, peers),
            Event::Fenced { rid, result } => self.fenced(rid, result)?,
        }
        Ok(())
    }

    fn request(&mut self, from: Asker, payload: &[u8], peers: &mut dyn Peers) {
        if payload.len() != from.cmd.request_len() {
            return peers.respond(from.rid, from.id, from.cmd, Err(Errno::EINVAL.into()));
        }
        // A mount that was reclaimed owns nothing any more and must not begin to.
        if !self.trees.mounted.contains_key(&from.rid) && from.cmd != Command::Farewell {
            return peers.respond(from.rid, from.id, from.cmd, Err(Errno::EIO.into()));
        }
        match from.cmd {
            Command::Lock => self.desk.request(from.rid, from.id, payload, peers),
            Command::OpenInoMap => {
                let args = exact::<OpenInoMapArgs>("open inode map request", payload);
                let recovering = self.recovery.greeting_pending();
                match args.and_then(|args| self.omap.request(from.rid, from.id, args, recovering)) {
                    Ok(out) => self.send_maps(out, peers),
                    Err(why) => peers.break_client(from.rid, &why.to_string()),
                }
            }
            Command::Farewell => self.farewell(from),
            Command::GetRoots | Command::GetLastSeq | Command::GetVolopt | Command::Statfs => {
                let answer =
                    self.desk.answer(from.cmd).unwrap_or_else(|| self.trees.stable_seq().to_le_bytes().to_vec());
                peers.respond(from.rid, from.id, from.cmd, Ok(answer));
            }
            _ => match self.job(from, payload) {
                Ok(job) => self.ready.push_back(job),
                Err(e) => peers.respond(from.rid, from.id, from.cmd, Err(e)),
            },
        }
    }

    fn job(&self, from: Asker, payload: &[u8]) -> Result<Job> {
        Ok(match from.cmd {
            Command::AllocInodes => {
                let count: zerocopy::little_endian::U64 = exact("inode request", payload)?;
                Job::AllocInodes { from, count: count.get() }
            }
            Command::GetLogTrees => Job::GetLogTrees(GetLogTrees::new(from)),
            Command::CommitLogTrees => {
                Job::CommitLogTrees { from, log_trees: Box::new(exact("log trees message", payload)?) }
            }
            Command::SrchGetCompact => Job::SrchGet { from },
            Command::SrchCommitCompact => {
                Job::SrchCommit { from, compact: Box::new(exact("search compaction message", payload)?) }
            }
            Command::GetLogMerge => Job::GetLogMerge { from },
            Command::CommitLogMerge => {
                Job::CommitLogMerge { from, complete: Box::new(exact("log merge completion message", payload)?) }
            }
            Command::SetVolopt | Command::ClearVolopt => {
                Job::Volopt { from, options: Box::new(exact("volume options message", payload)?) }
            }
            Command::ResizeDevices => Job::Resize { from, totals: exact("resize message", payload)? },
            _ => return Err(Errno::EINVAL.into()),
        })
    }

    /// An error says that the client cannot or does not do what it must, so that others would wait for ever.
    fn response(
        &mut self,
        rid: u64,
        id: u64,
        cmd: Command,
        result: Result<Vec<u8>>,
        peers: &mut dyn Peers,
    ) -> Result<()> {
        let payload = match result {
            Ok(payload) => payload,
            // A commit that was asked for and not made is no harm.
            Err(_) if cmd == Command::SyncLogTrees => return Ok(()),
            Err(error) => return Err(error),
        };
        match cmd {
            Command::Lock => self.desk.response(rid, id, &payload, peers)?,
            Command::LockRecover => self.lock_recover(rid, &payload, peers),
            Command::OpenInoMap => {
                let out = self.omap.response(rid, &exact("open inode map response", &payload)?);
                self.send_maps(out, peers);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn add_job(&mut self, job: Job) {
        self.ready.push_back(job);
    }

    /// Forgets requests of a mount that is gone.
    pub(super) fn drop_jobs(&mut self, rid: u64) {
        let keep = |job: &Job| job.from().is_none_or(|f| f.rid != rid);
        self.ready.retain(keep);
        self.parked.retain(|(_, job)| keep(job));
    }

    /// Queues the answer to a request for the end of the commit.
    pub(super) fn answer(&mut self, from: Asker, result: Result<Vec<u8>, Errno>) {
        self.answers.push(Answer::Respond(from, result));
    }

    /// Lets every job do a step, commits, and answers. An error means that the server must stop without writing.
    pub(crate) fn round(&mut self, now: Instant, peers: &mut dyn Peers) -> Result<()> {
        self.tick(now, peers)?;
        self.start_farewells(peers)?;
        self.logs_moved = false;
        let parked = std::mem::take(&mut self.parked).into_iter().map(|(_, job)| job);
        let mut jobs: VecDeque<Job> = parked.chain(std::mem::take(&mut self.ready)).collect();
        while let Some(mut job) = jobs.pop_front() {
            match self.admit()? {
                Admit::Yes => {}
                Admit::AfterCommit => {
                    jobs.push_front(job);
                    break;
                }
                Admit::No => {
                    self.no_room(job, now);
                    continue;
                }
            }
            match self.step(&mut job, now, peers) {
                Ok(Step::Done) => {}
                Ok(Step::Again) => self.ready.push_back(job),
                Ok(Step::Park(until)) => self.parked.push((until, job)),
                Err(Fail::Refuse(errno)) => match job.from() {
                    Some(from) => self.answer(from, Err(errno)),
                    None => return Err(errno.into()),
                },
                Err(Fail::Stop(e)) => return Err(e),
            }
        }
        // What did not fit goes first next time.
        jobs.append(&mut self.ready);
        self.ready = jobs;
        if self.trees.is_dirty() {
            self.commit()?;
        }
        for answer in std::mem::take(&mut self.answers) {
            self.give(answer, peers);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let flushes = |rid| self.features.get(rid).is_some_and(|f| f & GREETING_FLUSHES != 0);
        let all_flush = self.connected.iter().all(flushes);
        self.trees.commit(self.connected.len(), all_flush)?;
        self.desk.publish(&self.trees.stable);
        Ok(())
    }

    fn give(&mut self, answer: Answer, peers: &mut dyn Peers) {
        match answer {
            Answer::Respond(from, result) => {
                peers.respond(from.rid, from.id, from.cmd, result.map_err(Error::from));
            }
            Answer::Greeted { token, rid } => {
                peers.greeting_done(token, Ok(()));
                self.first_contact(rid, peers);
            }
            Answer::Reclaimed { rid, fenced } => self.reclaimed(rid, fenced, peers),
        }
    }

    /// When [`round`](Self::round) has to be called next, if nothing happens before: at once (`Some(None)`), at a time, or
    /// not at all.
    pub(crate) fn next_round(&self) -> Option<Option<Instant>> {
        let wake_parked = self.logs_moved && !self.parked.is_empty();
        if !self.ready.is_empty() || wake_parked || self.farewell_due() {
            return Some(None);
        }
        let parked = self.parked.iter().map(|(at, _)| *at);
        parked
            .chain(self.recovery.deadline())
            .chain(self.fences.deadline())
            .chain(self.silence.deadline())
            .min()
            .map(Some)
    }

    fn step(&mut self, job: &mut Job, now: Instant, peers: &mut dyn Peers) -> Outcome<Step> {
        match job {
            Job::Greet { token, rid, client, features } => self.step_greet(*token, *rid, *client, *features),
            Job::AllocInodes { from, count } => self.step_alloc_inodes(*from, *count),
            Job::GetLogTrees(get) => self.step_get_log_trees(get, now, peers),
            Job::CommitLogTrees { from, log_trees } => self.step_commit_log_trees(*from, log_trees),
            Job::SrchGet { from } => self.step_get_compact(*from),
            Job::SrchCommit { from, compact } => self.step_commit_compact(*from, compact),
            Job::GetLogMerge { from } => self.step_get_log_merge(*from),
            Job::CommitLogMerge { from, complete } => self.step_commit_log_merge(*from, complete),
            Job::Volopt { from, options } => self.step_volopt(*from, options),
            Job::Resize { from, totals } => self.step_resize(*from, totals),
            Job::Reclaim(reclaim) => self.step_reclaim(reclaim, peers),
            Job::FreeTrees => self.step_free_trees(),
        }
    }

    /// What one step may use.
    pub(super) fn budget(&self) -> u64 {
        u64::from(self.trees.stock.holder_budget)
    }

    /// Has the running commit room for another step?
    pub(super) fn has_room(&self) -> bool {
        self.trees.room() >= self.budget()
    }

    fn admit(&mut self) -> Result<Admit> {
        if self.has_room() {
            return Ok(Admit::Yes);
        }
        if self.trees.is_dirty() {
            return Ok(Admit::AfterCommit);
        }
        // Nothing to commit, but the lists are low: commits that do nothing else refill them.
        for _ in 0..ROTATIONS {
            self.commit()?;
            if self.has_room() {
                return Ok(Admit::Yes);
            }
        }
        Ok(if self.trees.room() >= MIN_ROOM { Admit::Yes } else { Admit::No })
    }

    /// The volume has no metadata left, not even the reserve.
    fn no_room(&mut self, job: Job, now: Instant) {
        match job.from() {
            Some(from) => self.answer(from, Err(Errno::ENOSPC)),
            None => self.parked.push((now + NO_ROOM_PAUSE, job)),
        }
    }

    /// For people.
    pub(crate) fn status(&self) -> CoreStatus {
        CoreStatus {
            connected: self.connected.len(),
            mounted: self.trees.mounted.len(),
            recovering: self.recovery.greeting_pending() || self.recovery.locks_pending(),
            fencing: self.fences.len(),
            waiting: self.ready.len() + self.parked.len(),
            commits: self.trees.commits(),
            seq: self.trees.seq(),
        }
    }
}

enum Admit {
    Yes,
    AfterCommit,
    No,
}

/// Commits that only refill lists, before a step is tried with what there is.
const ROTATIONS: usize = 4;
/// With less room no step may start.
const MIN_ROOM: u64 = 16;
/// When work that has no requester is tried again after the volume had no room.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Counters of a running server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CoreStatus {
    /// Mounts that have made contact.
    pub(crate) connected: usize,
    /// Mounts on record.
    pub(crate) mounted: usize,
    /// Mounts of an earlier server have still to report.
    pub(crate) recovering: bool,
    /// Fence requests without confirmation.
    pub(crate) fencing: usize,
    /// Jobs that wait for a commit or for other mounts.
    pub(crate) waiting: usize,
    /// Commits written.
    pub(crate) commits: u64,
    /// The core sequence counter.
    pub(crate) seq: u64,
}

/// The peer address as it is stored.
pub(super) fn stored_addr(peer: SocketAddr) -> crate::format::layout::InetAddr {
    let (family, addr) = match peer.ip() {
        IpAddr::V4(ip) => (crate::format::consts::AF_IPV4, u32::from(ip)),
        IpAddr::V6(_) => (crate::format::consts::AF_NONE, 0),
    };
    crate::format::layout::InetAddr { family: family.into(), port: peer.port().into(), addr: addr.into(), pad: [0; 24] }
}
