//! The rules of the election, one conversation each.

use std::time::Duration;

use super::harness::config;
use crate::quorum::blocks::QuorumEvent::{self, Begin, Elect, End, Fence, Stop, Term};
use crate::quorum::config::{validate_config, votes_needed};
use crate::quorum::election::{Action, Election, ElectionConfig, HEARTBEAT_INTERVAL, Role, To, turn};
use crate::quorum::member::ServerState;
use crate::quorum::message::{Message, MessageKind};
use Action::{Record, Send, StartServer, StopServer};

const ELECTION_MAX: Duration = Duration::from_millis(350);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);

fn member(slot: u8, votes_needed: u32, term: u64, leader: Option<u8>) -> Election {
    member_in_turn(slot, votes_needed, term, leader, Duration::ZERO)
}

fn member_in_turn(slot: u8, votes_needed: u32, term: u64, leader: Option<u8>, turn: Duration) -> Election {
    let heartbeat_timeout = HEARTBEAT_TIMEOUT;
    let config = ElectionConfig { slot, votes_needed, heartbeat_timeout, turn, term, leader, seed: 7 };
    let (election, actions) = Election::new(config, Duration::ZERO);
    assert_eq!(actions, [Record(Begin, term)]);
    election
}

fn hear(kind: MessageKind, from: u8, term: u64) -> Option<Message> {
    Some(Message { kind, from, term })
}

/// Runs into the deadline; the server is down.
fn time_out(election: &mut Election) -> (Duration, Vec<Action>) {
    let now = election.deadline();
    (now, election.step(now, None, ServerState::Down))
}

fn others(kind: MessageKind, term: u64) -> Action {
    Send(To::Others, kind, term)
}

#[test]
fn a_single_slot_elects_itself_within_the_election_timeout() {
    let mut election = member(0, 1, 0, None);
    let (now, actions) = time_out(&mut election);
    assert!((Duration::from_millis(250)..ELECTION_MAX).contains(&now), "{now:?}");
    let want = [
        Record(Term, 1),
        others(MessageKind::RequestVote, 1),
        others(MessageKind::Heartbeat, 1),
        Record(Elect, 1),
        StartServer(1),
    ];
    assert_eq!(actions, want);
    assert_eq!(election.step(now, None, ServerState::Starting), []);
    assert_eq!(election.step(now, None, ServerState::Up), [Record(Fence, 1)]);
    let later = now + HEARTBEAT_INTERVAL;
    assert_eq!(election.step(later, None, ServerState::Up), [others(MessageKind::Heartbeat, 1)]);
}

/// After a crash the stale ELECT made the first mount wait a whole heartbeat timeout, also when it stands on the mount's
/// own slot, where nobody else can be running.
#[test]
fn a_stale_leader_on_the_own_slot_is_not_waited_for() {
    assert!(member(0, 1, 5, Some(0)).deadline() < ELECTION_MAX);
    assert_eq!(member(0, 2, 5, Some(1)).deadline(), HEARTBEAT_TIMEOUT);
}

/// The original asks for votes before TERM is durable, votes again after a restart, and says that it resigns before STOP
/// is durable, so that its successor may fence it.
#[test]
fn defect_46_durable_first() {
    let mut election = member(0, 2, 0, None);
    let (_, actions) = time_out(&mut election);
    assert_eq!(actions, [Record(Term, 1), others(MessageKind::RequestVote, 1)]);
    let now = Duration::from_millis(400);
    let actions = election.step(now, hear(MessageKind::Vote, 1, 1), ServerState::Down);
    assert_eq!(actions, [others(MessageKind::Heartbeat, 1), Record(Elect, 1), StartServer(1)]);
    election.step(now, None, ServerState::Up);
    // The server stops by itself.
    let actions = election.step(now, None, ServerState::Down);
    assert_eq!(actions, [Record(Stop, 1), others(MessageKind::Resignation, 1)]);
    // A vote in a new term follows TERM.
    let actions = election.step(now, hear(MessageKind::RequestVote, 1, 2), ServerState::Down);
    assert_eq!(actions, [Record(Term, 2), Send(To::Slot(1), MessageKind::Vote, 2)]);
    assert_eq!(election.step(now, hear(MessageKind::RequestVote, 2, 2), ServerState::Down), [], "one vote a term");
    // Restarted, it does not know whether it has voted in the term it finds on the device.
    let mut again = member(0, 2, 2, None);
    assert_eq!(again.step(now / 4, hear(MessageKind::RequestVote, 2, 2), ServerState::Down), []);
    let actions = again.step(now / 4, hear(MessageKind::RequestVote, 2, 3), ServerState::Down);
    assert_eq!(actions, [Record(Term, 3), Send(To::Slot(2), MessageKind::Vote, 3)]);
}

/// An error in an update of the quorum block ended the member, while its server ran on without heartbeats.
#[test]
fn defect_45_a_failed_record_stops_the_server() {
    let mut election = member(0, 1, 0, None);
    let (now, _) = time_out(&mut election);
    assert_eq!(election.step(now, None, ServerState::Up), [Record(Fence, 1)]);
    election.record_failed(Fence, now);
    assert_eq!(election.step(now, None, ServerState::Up), [StopServer]);
    assert_eq!(election.step(now + HEARTBEAT_INTERVAL, None, ServerState::Stopping), []);
    let actions = election.step(now + HEARTBEAT_INTERVAL * 2, None, ServerState::Down);
    assert_eq!(actions, [Record(Stop, 1), others(MessageKind::Resignation, 1), Record(End, 1)]);
    assert!(election.is_gone());
    // Failing again at STOP changes nothing.
    election.record_failed(Stop, now);
    assert!(election.is_gone());
    assert_eq!(election.step(now, hear(MessageKind::RequestVote, 1, 9), ServerState::Down), []);
}

/// ELECT could not be recorded, so the server was not started; the member leaves.
#[test]
fn a_leader_without_elect_starts_no_server() {
    let mut election = member(0, 1, 0, None);
    let (now, _) = time_out(&mut election);
    election.record_failed(Elect, now);
    let actions = election.step(now, None, ServerState::Down);
    assert_eq!(actions[0], Record(Stop, 1));
    assert!(election.is_gone());
}

/// Heartbeats of another leader of the same term silenced a leader, and a candidate did not step back.
#[test]
fn defect_52_two_leaders_of_one_term() {
    let mut candidate = member(0, 2, 0, None);
    let (now, _) = time_out(&mut candidate);
    assert_eq!(candidate.step(now, hear(MessageKind::Heartbeat, 1, 1), ServerState::Down), []);
    assert_eq!(candidate.role(), Role::Follower);
    assert_eq!(candidate.deadline(), now + HEARTBEAT_TIMEOUT);
    let request = hear(MessageKind::RequestVote, 2, 1);
    assert_eq!(candidate.step(now, request, ServerState::Down), [], "it has voted for itself");

    let mut leader = member(0, 1, 0, None);
    let (now, _) = time_out(&mut leader);
    leader.step(now, None, ServerState::Up);
    assert_eq!(leader.step(now, hear(MessageKind::Heartbeat, 1, 1), ServerState::Up), [StopServer]);
    assert_eq!(leader.role(), Role::Follower);
    assert_eq!(leader.step(now, None, ServerState::Stopping), []);
    assert_eq!(leader.step(now, None, ServerState::Down), [Record(Stop, 1)]);
}

#[test]
fn a_greater_term_makes_a_leader_step_down() {
    let mut leader = member(0, 1, 0, None);
    let (now, _) = time_out(&mut leader);
    leader.step(now, None, ServerState::Up);
    let actions = leader.step(now, hear(MessageKind::RequestVote, 1, 5), ServerState::Up);
    assert_eq!(actions, [Record(Term, 5), StopServer, Send(To::Slot(1), MessageKind::Vote, 5)]);
    // It does not become a candidate as long as its server has not stopped.
    let deadline = leader.deadline();
    assert_eq!(leader.step(deadline, None, ServerState::Stopping), []);
    let deadline = leader.deadline();
    assert_eq!(leader.step(deadline, None, ServerState::Down), [Record(Stop, 1)]);
    let (_, actions) = time_out(&mut leader);
    assert_eq!(actions[0], Record(Term, 6));
}

#[test]
fn queued_heartbeats_come_before_an_election() {
    let mut election = member(0, 2, 3, Some(1));
    let late = HEARTBEAT_TIMEOUT * 2;
    assert_eq!(election.step(late, hear(MessageKind::Heartbeat, 1, 3), ServerState::Down), []);
    assert_eq!(election.role(), Role::Follower);
    assert_eq!(election.deadline(), late + HEARTBEAT_TIMEOUT);
    // Old terms are nothing.
    assert_eq!(election.step(late, hear(MessageKind::Heartbeat, 1, 2), ServerState::Down), []);
    // After a resignation the election is near.
    election.step(late, hear(MessageKind::Resignation, 1, 3), ServerState::Down);
    assert!(election.deadline() < late + ELECTION_MAX);
}

/// All waited equally long for a silent leader, asked for votes at the same moment, and none got them.
#[test]
fn members_ask_for_votes_one_after_the_other() {
    for members in [2, 3, 5, 7, 15] {
        let turns: Vec<Duration> = (0..members).map(|nr| turn(nr, members)).collect();
        assert!(turns.windows(2).all(|w| w[1] - w[0] > Duration::from_millis(6)), "{turns:?}");
        assert!(turns.iter().all(|t| *t < Duration::from_millis(100)), "{turns:?}");
    }
    let now = Duration::from_secs(100);
    let mut all: Vec<Election> = (1..=2).map(|slot| member_in_turn(slot, 2, 3, None, turn(slot.into(), 3))).collect();
    for (kind, wait) in
        [(MessageKind::Heartbeat, HEARTBEAT_TIMEOUT), (MessageKind::Resignation, Duration::from_millis(250))]
    {
        all.iter_mut().for_each(|e| drop(e.step(now, hear(kind, 0, 4), ServerState::Down)));
        assert_eq!(all[0].deadline(), now + wait + turn(1, 3));
        assert_eq!(all[1].deadline(), now + wait + turn(2, 3));
    }
    // The first one wins before it is the other's turn.
    let (asked, _) = time_out(&mut all[0]);
    let votes = all[1].step(asked, hear(MessageKind::RequestVote, 1, 5), ServerState::Down);
    assert_eq!(votes, [Record(Term, 5), Send(To::Slot(1), MessageKind::Vote, 5)]);
    let won = all[0].step(asked, hear(MessageKind::Vote, 2, 5), ServerState::Down);
    assert!(won.contains(&StartServer(5)), "{won:?}");
    // Who asked in vain waits for a time that chance has a part in, like all others.
    let mut lonely = member_in_turn(1, 2, 3, Some(0), Duration::ZERO);
    let waits: Vec<Duration> = (0..20).map(|_| time_out(&mut lonely).0).collect();
    let waits: Vec<Duration> = waits.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(waits.iter().all(|w| (Duration::from_millis(250)..ELECTION_MAX).contains(w)), "{waits:?}");
    assert!(waits.iter().any(|w| *w != waits[0]), "{waits:?}");
}

#[test]
fn leaving_stops_the_server_first() {
    let mut leader = member(0, 1, 0, None);
    let (now, _) = time_out(&mut leader);
    leader.step(now, None, ServerState::Up);
    leader.leave(now);
    assert_eq!(leader.step(now, None, ServerState::Up)[0], StopServer);
    let actions = leader.step(now, None, ServerState::Down);
    assert_eq!(actions, [Record(Stop, 1), others(MessageKind::Resignation, 1), Record(End, 1)]);
    assert!(leader.is_gone());
    let mut follower = member(1, 2, 4, None);
    follower.leave(now);
    assert_eq!(follower.step(now, None, ServerState::Down), [Record(End, 4)]);
}

#[test]
fn the_last_term_breaks_nothing() {
    let mut election = member(0, 1, 0, None);
    let now = Duration::from_millis(1);
    let actions = election.step(now, hear(MessageKind::Heartbeat, 1, u64::MAX), ServerState::Down);
    assert_eq!(actions, [Record(Term, u64::MAX)]);
    let (_, actions) = time_out(&mut election);
    assert_eq!(actions, []);
}

#[test]
fn configurations_are_checked() {
    assert!(validate_config(&config(&[0, 3]), Some(3)).is_ok());
    assert!(validate_config(&config(&[0, 3]), Some(1)).is_err());
    assert!(validate_config(&config(&[]), None).is_err());
    for (addr, port) in [(0xe000_0001u32, 1), (u32::MAX, 1), (5, 1), (0x0a00_0001, 0), (0x0a00_0001, 65535)] {
        let mut bad = config(&[0]);
        bad.slots[0].addr.set(addr);
        bad.slots[0].port.set(port);
        assert!(validate_config(&bad, Some(0)).is_err(), "{addr:x}:{port}");
    }
    let mut twice = config(&[0, 1]);
    twice.slots[1] = twice.slots[0];
    assert!(validate_config(&twice, Some(0)).is_err());
    let votes = (1..=6).map(|n| votes_needed(&config(&(0..n).collect::<Vec<_>>())));
    assert!(votes.eq([1, 1, 2, 3, 3, 4]));
}

/// The events stand in the block at the index of their value.
#[test]
fn events_have_their_indexes() {
    let events = [Begin, Term, Elect, Fence, Stop, End];
    assert!(events.into_iter().map(QuorumEvent::index).eq(0..6));
}
