//! The interleavings of `spec/04 §12` under one server, by number. What needs threads is in `service`, what needs a new server in
//! `failover`, what the reference's traces show is in the trace tests; [`super`] has the whole list.

use super::cluster::{A, B, C, Cluster, ToServer, l};
use super::*;

#[test]
fn scenario_01_two_readers_share() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(B, l(), Mode::Read);
    assert!(c.asked.is_empty() && c.eff(A) == Mode::Read && c.eff(B) == Mode::Read);
}

#[test]
fn scenario_02_a_writer_waits_for_both_answers() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(B, l(), Mode::Read);
    c.lazy = vec![A];
    let w = c.wants(C, l(), Mode::Write);
    c.settle();
    assert_eq!(c.asked, ["A:read>null", "B:read>null"]);
    assert!(!c.has(w) && c.eff(B) == Mode::Null);
    c.works(A);
    c.settle();
    assert!(c.has(w));
    assert_eq!((c.granted.last().unwrap().as_str(), c.peers[C].node.write_seq(l())), ("C:null>write", 101));
}

#[test]
fn scenario_03_a_reader_lowers_a_writer_who_keeps_his_cache() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Write);
    c.uses(B, l(), Mode::Read);
    assert_eq!(c.asked, ["A:write>read"]);
    assert_eq!((c.eff(A), c.generation(A)), (Mode::Read, 1));
    let t = c.wants(A, l(), Mode::Read);
    assert!(c.has(t), "without a message");
}

#[test]
fn scenario_04_the_only_reader_becomes_writer_in_place() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(A, l(), Mode::Write);
    assert!(c.asked.is_empty());
    assert_eq!((c.granted[1].as_str(), c.generation(A)), ("A:read>write", 1));
}

#[test]
fn scenario_05_two_readers_both_want_to_write() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.uses(B, l(), Mode::Read);
    let (a, b) = (c.wants(A, l(), Mode::Write), c.wants(B, l(), Mode::Write));
    c.settle();
    assert!(c.has(a) && !c.has(b));
    c.releases(a);
    c.settle();
    assert!(c.has(b));
    assert_eq!(c.asked, ["B:read>null", "A:write>null"]);
    assert_eq!(c.granted[2..], ["A:read>write", "B:null>write"]);
    assert_eq!(c.generation(B), 2);
}

#[test]
fn scenario_07_a_reader_ends_shared_blind_writing() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::WriteOnly);
    c.uses(B, l(), Mode::WriteOnly);
    assert!(c.asked.is_empty());
    c.uses(C, l(), Mode::Read);
    assert_eq!(c.asked, ["A:write_only>null", "B:write_only>null"]);
}

#[test]
fn scenario_08_blind_writer_wants_to_read() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::WriteOnly);
    c.uses(A, l(), Mode::Read);
    assert_eq!(c.asked, ["A:write_only>null"]);
    assert_eq!(c.granted[1], "A:null>read");
    assert_eq!(c.generation(A), 1);
}

#[test]
fn scenario_09_a_grant_followed_at_once_by_an_invalidation_is_used_once() {
    let mut c = Cluster::new();
    let a = c.wants(A, l(), Mode::Write);
    c.server_reads(A);
    let b = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    assert_eq!(c.peers[A].to_client.len(), 2, "grant and invalidation on their way");
    c.settle();
    assert!(c.has(a) && !c.has(b), "the waiter gets its turn first");
    c.releases(a);
    c.settle();
    assert!(c.has(b));
}

#[test]
fn scenario_11_invalidations_in_close_succession_are_all_answered() {
    let mut c = Cluster::new();
    for _ in 0..10 {
        for i in [A, B, C] {
            c.uses(i, l(), Mode::Write);
            c.uses(i, l(), Mode::Read);
        }
    }
    assert!(c.asked.len() >= 29);
    c.settle();
    assert_eq!(c.server.dump(), [format!("lock={} granted=2:write requested= invalidated=", l())]);
}

#[test]
fn scenario_12_a_lock_that_is_given_up_is_used_again() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.gives_up(A, l());
    let t = c.wants(A, l(), Mode::Read);
    assert!(c.has(t), "granted until the server asks for it");
    c.settle();
    assert_eq!(c.eff(A), Mode::Read, "the invalidation waits for the user");
    c.releases(t);
    c.settle();
    assert_eq!(c.granted.last().unwrap(), "A:null>null");
    assert!(c.peers[A].node.locks.is_empty());
}

#[test]
fn scenario_13_giving_up_what_is_being_taken() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    let b = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    c.gives_up(A, l());
    c.settle();
    assert!(c.has(b));
    assert_eq!(c.asked, ["A:read>null"], "one invalidation only");
    assert_eq!(c.granted[1..], ["B:null>write", "A:null>null"]);
}

#[test]
fn scenario_14_giving_up_disturbs_nobody_else() {
    let mut c = Cluster::new();
    for i in [A, B, C] {
        c.uses(i, l(), Mode::Read);
    }
    c.gives_up(A, l());
    c.settle();
    assert_eq!(c.asked, ["A:read>null"]);
}

#[test]
fn scenario_16_a_request_arrives_before_the_answer_sent_earlier() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Write);
    let b = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    c.client_reads(A);
    c.works(A);
    let a = c.wants(A, l(), Mode::Write);
    c.peers[A].to_server.make_contiguous().reverse();
    assert!(matches!(c.peers[A].to_server[0], ToServer::Request(..)));
    c.settle();
    assert!(c.has(b) && !c.has(a));
    c.releases(b);
    c.settle();
    assert!(c.has(a));
}

#[test]
fn scenario_10_messages_of_one_lock_are_applied_in_the_order_of_their_arrival() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Write);
    c.lazy = vec![A];
    let b = c.wants(B, l(), Mode::Read);
    c.settle();
    // A's first invalidation is being worked on; its own request is granted by a server that no longer waits for it.
    c.works(A);
    c.settle();
    assert!(c.has(b));
    let a = c.wants(A, l(), Mode::Write);
    c.releases(b);
    c.settle();
    let again = c.wants(B, l(), Mode::Write);
    c.server_reads(B);
    c.client_reads(A);
    assert!(c.has(a) && !c.has(again), "the grant came first and is used first");
    c.releases(a);
    c.lazy.clear();
    c.settle();
    assert!(c.has(again));
}

#[test]
fn scenario_15_a_request_for_a_lock_that_is_just_freed_is_not_lost() {
    let mut c = Cluster::new();
    c.uses(A, l(), Mode::Read);
    c.gives_up(A, l());
    let b = c.wants(B, l(), Mode::Read);
    c.server_reads(A);
    c.client_reads(A);
    c.works(A);
    // The answer that frees the lock at the server and the request for it arrive together.
    c.server_reads(A);
    c.server_reads(B);
    c.settle();
    assert!(c.has(b) && c.peers[A].node.locks.is_empty());
    assert_eq!(c.server.dump(), [format!("lock={} granted=1:read requested= invalidated=", l())]);
}
