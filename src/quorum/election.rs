//! The election as a state machine without clock, socket, thread or device (`spec/05 §3.4`).
//!
//! The driver gives it the time, at most one message, and where the local server is; it gives back what to do, **in
//! order**: an action may only be taken when all earlier ones have succeeded, and [`Action::Record`] only succeeds when
//! the event is durable. So "durable before it is said" is visible in the order of the actions.
//!
//! Invariants:
//!
//! 1. TERM is durable before a vote is asked for or given in that term.
//! 2. ELECT is durable before the server starts, STOP before the resignation is sent.
//! 3. A member gives at most one vote a term, its own candidature included, also across a restart: it gives none in
//!    the term it started with, which is at least as great as any it may have voted in before (invariant 1).
//! 4. A term is led at most once by a member, and at most one local server runs.
//! 5. After a failed record the member neither votes nor leads; its server is stopped, STOP is tried, and it is gone.
//! 6. All members learn at the same moment that a leader has gone. They ask for votes one after the other
//!    ([`ElectionConfig::turn`]), because of those that ask at once none may win; but only the first time: who can ask and
//!    cannot win must not be the first for ever.
//!
//! Where this differs from the original, it is by the compatible repairs S10, S11, L2 and L4 of `spec/05 §12`.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::blocks::QuorumEvent;
use super::member::ServerState;
use super::message::{Message, MessageKind};

/// Least time without a leader after which a member asks for votes.
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(250);

/// What is added to it at random.
pub(crate) const ELECTION_JITTER_MS: u64 = 100;

/// The turn of the `nr`-th of `members` members: they share the time that chance would add.
pub(crate) fn turn(nr: usize, members: usize) -> Duration {
    Duration::from_millis(ELECTION_JITTER_MS) * nr as u32 / members.max(1) as u32
}

/// How often the leader says that it leads.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);

/// To whom a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// Every other present slot.
    Others,
    /// One slot.
    Slot(u8),
}

/// What the driver has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Record an event in the own block, durably. If that fails, drop the rest and call [`Election::record_failed`].
    Record(QuorumEvent, u64),
    /// Send a message with this term.
    Send(To, MessageKind, u64),
    /// Start the server in this term.
    StartServer(u64),
    /// Ask the server to stop.
    StopServer,
}

/// A member's part in the election.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Waits for a leader.
    Follower,
    /// Has asked for votes.
    Candidate,
    /// Has been elected.
    Leader,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Taking,
    /// Asked to leave.
    Leaving,
    /// A record has failed.
    Failing,
    Gone,
}

/// What a member knows when it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ElectionConfig {
    /// Own slot.
    pub(crate) slot: u8,
    /// Votes that make a leader.
    pub(crate) votes_needed: u32,
    /// How long a silent leader is waited for.
    pub(crate) heartbeat_timeout: Duration,
    /// How long this member lets others ask before it does, when a leader has gone; different for each (see [`turn`]).
    pub(crate) turn: Duration,
    /// The greatest term found in the blocks.
    pub(crate) term: u64,
    /// The slot that claims to have a server, if any.
    pub(crate) leader: Option<u8>,
    /// Seed of the random part of the timeouts.
    pub(crate) seed: u64,
}

/// The state of one member.
pub(crate) struct Election {
    slot: u8,
    votes_needed: u32,
    heartbeat_timeout: Duration,
    turn: Duration,
    mode: Mode,
    role: Role,
    term: u64,
    /// The term it started with, in which it may have voted in an earlier life.
    start_term: u64,
    voted: Option<u8>,
    votes: u32,
    deadline: Duration,
    /// Term in which the local server was started, 0 if STOP is recorded.
    server_term: u64,
    fence_recorded: bool,
    stop_asked: bool,
    rng: StdRng,
}

impl Election {
    /// Starts taking part. The first actions record BEGIN.
    pub(crate) fn new(config: ElectionConfig, now: Duration) -> (Election, Vec<Action>) {
        let mut election = Election {
            slot: config.slot,
            votes_needed: config.votes_needed,
            heartbeat_timeout: config.heartbeat_timeout,
            turn: config.turn,
            mode: Mode::Taking,
            role: Role::Follower,
            term: config.term,
            start_term: config.term,
            voted: None,
            votes: 0,
            deadline: now,
            server_term: 0,
            fence_recorded: false,
            stop_asked: false,
            rng: StdRng::seed_from_u64(config.seed),
        };
        // A leader on the own slot cannot be running: at most one mount uses a slot (L4).
        if config.leader.is_some_and(|slot| slot != config.slot) {
            election.wait_for_leader(now);
        } else {
            election.wait_for_election(now);
        }
        let begin = Action::Record(QuorumEvent::Begin, config.term);
        (election, vec![begin])
    }

    /// When [`Election::step`] has to be called even if nothing arrives.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Own term.
    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// Own role.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Term in which the local server was started, 0 if there is none.
    pub(crate) fn server_term(&self) -> u64 {
        self.server_term
    }

    /// Has it left, or failed completely?
    pub(crate) fn is_gone(&self) -> bool {
        self.mode == Mode::Gone
    }

    /// Changes the heartbeat timeout from the next heartbeat on.
    pub(crate) fn set_heartbeat_timeout(&mut self, timeout: Duration) {
        self.heartbeat_timeout = timeout;
    }

    /// Begins to leave; the following steps do it.
    pub(crate) fn leave(&mut self, now: Duration) {
        if self.mode == Mode::Taking {
            self.mode = Mode::Leaving;
            self.deadline = now;
        }
    }

    /// An event could not be recorded: the block, and with it the right to say anything, is lost (S10).
    pub(crate) fn record_failed(&mut self, event: QuorumEvent, now: Duration) {
        let last = matches!(event, QuorumEvent::Begin | QuorumEvent::Stop | QuorumEvent::End);
        self.mode =
            if last && self.mode != Mode::Taking || event == QuorumEvent::Begin { Mode::Gone } else { Mode::Failing };
        self.role = Role::Follower;
        self.deadline = now;
    }

    /// One message, or none when the deadline has passed, the server's state may have changed, or what came was invalid.
    pub(crate) fn step(&mut self, now: Duration, message: Option<Message>, server: ServerState) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.mode {
            Mode::Taking => self.take_part(now, message, server, &mut actions),
            Mode::Leaving | Mode::Failing => self.end(now, server, &mut actions),
            Mode::Gone => {}
        }
        actions
    }

    fn wait_for_leader(&mut self, now: Duration) {
        self.deadline = now + self.heartbeat_timeout + self.turn;
    }

    fn wait_for_election(&mut self, now: Duration) {
        let jitter = Duration::from_millis(self.rng.random_range(0..ELECTION_JITTER_MS));
        self.deadline = now + ELECTION_TIMEOUT + jitter;
    }

    /// The rules, in their order; their numbers are those of `spec/05 §3.4`.
    fn take_part(&mut self, now: Duration, message: Option<Message>, server: ServerState, out: &mut Vec<Action>) {
        // 1, and our own voice, which can only be a second mount on the slot.
        let message = message.filter(|m| m.term >= self.term && m.from != self.slot);
        if let Some(message) = message {
            self.hear(now, message, out);
        } else if self.role != Role::Leader && now >= self.deadline {
            self.ask_for_votes(now, server, out);
        }
        if self.role == Role::Candidate && self.votes.count_ones() >= self.votes_needed {
            // 7. A candidate has no server (see 5).
            self.role = Role::Leader;
            self.deadline = now + HEARTBEAT_INTERVAL;
            self.server_term = self.term;
            self.fence_recorded = false;
            self.stop_asked = false;
            out.push(Action::Send(To::Others, MessageKind::Heartbeat, self.term));
            out.push(Action::Record(QuorumEvent::Elect, self.term));
            out.push(Action::StartServer(self.term));
            return;
        }
        self.watch_server(now, server, out);
        if self.role == Role::Leader && now >= self.deadline {
            // 11
            self.deadline = now + HEARTBEAT_INTERVAL;
            out.push(Action::Send(To::Others, MessageKind::Heartbeat, self.term));
        }
        let asked = message.filter(|m| m.kind == MessageKind::RequestVote && m.term == self.term);
        if let Some(message) = asked
            && self.role == Role::Follower
            && self.voted.is_none()
            && self.term > self.start_term
        {
            // 12, with invariant 3
            self.voted = Some(message.from);
            out.push(Action::Send(To::Slot(message.from), MessageKind::Vote, self.term));
        }
    }

    /// Rules 2, 3, 4 and 6.
    fn hear(&mut self, now: Duration, message: Message, out: &mut Vec<Action>) {
        if message.term > self.term {
            // 2
            self.role = Role::Follower;
            self.term = message.term;
            self.voted = None;
            self.votes = 0;
            self.wait_for_election(now);
            out.push(Action::Record(QuorumEvent::Term, self.term));
        }
        match message.kind {
            MessageKind::Heartbeat => {
                // 3. Somebody else leads this term: a candidate has lost, a leader resigns (L2). The vote each of them
                // has given itself stays given.
                self.role = Role::Follower;
                self.wait_for_leader(now);
            }
            // 4
            MessageKind::Resignation if self.role == Role::Follower => {
                self.deadline = now + ELECTION_TIMEOUT + self.turn
            }
            // 6
            MessageKind::Vote if self.role == Role::Candidate => self.votes |= 1 << message.from,
            _ => {}
        }
    }

    /// Rule 5.
    fn ask_for_votes(&mut self, now: Duration, server: ServerState, out: &mut Vec<Action>) {
        self.wait_for_election(now);
        if self.server_term != 0 || server != ServerState::Down {
            return;
        }
        // Somebody has sent the last term there is. No election is possible any more, but nothing breaks.
        let Some(term) = self.term.checked_add(1) else { return };
        self.role = Role::Candidate;
        self.term = term;
        self.voted = Some(self.slot);
        self.votes = 1 << self.slot;
        out.push(Action::Record(QuorumEvent::Term, term));
        out.push(Action::Send(To::Others, MessageKind::RequestVote, term));
    }

    /// Rules 8, 9 and 10.
    fn watch_server(&mut self, now: Duration, server: ServerState, out: &mut Vec<Action>) {
        if self.server_term == 0 {
            return;
        }
        let leads = self.role == Role::Leader && self.server_term == self.term;
        if leads && !self.fence_recorded && server == ServerState::Up {
            // 8
            self.fence_recorded = true;
            out.push(Action::Record(QuorumEvent::Fence, self.server_term));
        }
        if !leads && !self.stop_asked && server != ServerState::Down {
            // 9
            self.stop_asked = true;
            out.push(Action::StopServer);
        }
        if server == ServerState::Down {
            // 10
            out.push(Action::Record(QuorumEvent::Stop, self.server_term));
            if self.role == Role::Leader {
                self.role = Role::Follower;
                self.wait_for_election(now);
                out.push(Action::Send(To::Others, MessageKind::Resignation, self.server_term));
            }
            self.server_term = 0;
        }
    }

    /// Leaving, in order or after a failure.
    fn end(&mut self, now: Duration, server: ServerState, out: &mut Vec<Action>) {
        if self.server_term != 0 && server != ServerState::Down {
            if !self.stop_asked {
                self.stop_asked = true;
                out.push(Action::StopServer);
            }
            self.deadline = now + HEARTBEAT_INTERVAL;
            if self.mode == Mode::Leaving && self.role == Role::Leader && self.server_term == self.term {
                // The others need not begin an election while the server still writes.
                out.push(Action::Send(To::Others, MessageKind::Heartbeat, self.term));
            }
            return;
        }
        if self.server_term != 0 {
            out.push(Action::Record(QuorumEvent::Stop, self.server_term));
            out.push(Action::Send(To::Others, MessageKind::Resignation, self.term));
            self.server_term = 0;
        }
        out.push(Action::Record(QuorumEvent::End, self.term));
        self.mode = Mode::Gone;
    }
}
