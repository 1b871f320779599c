//! Tests of the lock room: reference vectors, the scenarios of `spec/04 §12` by name, the defects that must not come
//! back, a simulation of whole clusters with fail-overs, and (with `--cfg loom`) models of the concurrent core.
//!
//! Where each property of `spec/04 §11` is checked ([`tables::every_name_in_the_tables_exists`] keeps this list honest):
//!
//! | property | checked by |
//! |---|---|
//! | S-1 exclusion | `random_clusters_keep_the_lock_properties` (after every step) |
//! | S-2 server covers client | `random_clusters_keep_the_lock_properties` |
//! | S-3 use | `random_clusters_keep_the_lock_properties`; `acquire_against_the_work_of_an_invalidation` (loom) |
//! | S-4 dirty | `random_clusters_keep_the_lock_properties` |
//! | S-5 clean cut | `scenario_32_one_commit_serves_all_invalidations_that_wait`, `dropping_clears_what_the_lock_protects` |
//! | S-6 no loss | `scenario_32_one_commit_serves_all_invalidations_that_wait` (drops while dirty), the simulation's totals |
//! | S-7 freshness | `random_clusters_keep_the_lock_properties` (each read sees all finished writes) |
//! | S-8 one request | `the_server_refuses_bad_messages`, `two_waiters_with_different_modes` (loom) |
//! | S-9 no grant while waiting | `scenario_02_a_writer_waits_for_both_answers`, `random_clusters_keep_the_lock_properties` |
//! | S-10 exactly one answer | `scenario_20_an_answer_is_never_given_to_another_server_than_that_which_asked`, `scenario_25_a_grant_of_a_dead_epoch_is_discarded_and_asked_for_again` |
//! | S-11 `old_mode` truth | `server_does_what_the_reference_does`, `scenario_05_two_readers_both_want_to_write` |
//! | S-12 `write_seq` | `random_clusters_keep_the_lock_properties`, `defect_31_a_commit_raises_the_sequence_counter` |
//! | S-13 generation | `random_clusters_keep_the_lock_properties`, `free_against_look_up` (loom) |
//! | S-14 disjoint | by construction of `LockName`; `names_cover_the_ranges_of_the_vectors` |
//! | S-15 freeing | `free_against_look_up`, `last_release_against_drop_of_the_table` (loom) |
//! | S-16 departure | `scenario_29_a_client_without_connection_blocks_until_it_is_reclaimed`, `random_clusters_keep_the_lock_properties` |
//! | S-17 report | `random_clusters_keep_the_lock_properties`, `recovery_report_against_grant` (loom) |
//! | L-1 invalidations are answered | `a_client_that_never_answers_is_probed_and_fenced`, `a_client_that_is_only_slow_is_waited_for` |
//! | L-2 acquires return | `random_clusters_keep_the_lock_properties` (nobody waits at the end) |
//! | L-3 no starvation | `readers_pass_a_waiting_writer_at_most_eight_times` |
//! | L-4 work is looked at | `release_against_start_of_invalidation` (loom), `storm_of_users_and_invalidations` |
//! | L-5 recovery ends | `late_mounts_are_given_once` |
//! | L-6 no wait cycle | `scenario_32_one_commit_serves_all_invalidations_that_wait` |
//! | L-7 answers after shut-down | `scenario_36_shutdown_still_answers_invalidations` |
//! | L-8 queues drain | `random_clusters_keep_the_lock_properties` |
//! | L-9 bounded turns | `defect_37_heavy_local_use_does_not_starve_an_invalidation` |
//!
//! Scenarios of `spec/04 §12` are tests named `scenario_NN_...`; these are elsewhere or cannot happen:
//!
//! | scenario | why there is no test of that name |
//! |---|---|
//! | 28 farewell during recovery | `farewells_are_answered_as_by_the_original` |
//! | 30 send to a connection that is going | `defect_44_nothing_is_lost_or_repeated_over_breaks` |
//! | 31 first greeting unanswered | `defect_51_a_first_greeting_without_answer_is_taken_over` |
//! | 34, 35, 38 inode and name caches | an invalidation of ours takes no inode and no name: cached ones are judged by generation |
//! | 39 forced unmount during a commit | `defect_39_invalidation_survives_a_forced_unmount` |
//! | 40 forced unmount of waiters | `defect_39_forced_unmount_fails_waiters` |
//! | 41 order under shared locks | items take the sequence of the primary lock: `item` room |
//! | 42 sequence of a new server | `defect_31_a_commit_raises_the_sequence_counter` |
//! | 43, 44 records of tasks, double release | a guard is the record, and its drop the one release |
//! | 45 quota rules | read and changed under the guard of the quota lock |
//! | 46 readdir into a mapping | results are returned by value, after the lock is released |
//! | 47 local load | `defect_37_heavy_local_use_does_not_starve_an_invalidation` |
//! | 48 request lost by a failing handler | `defect_38_a_refused_message_does_not_count_as_received` |

#[cfg(loom)]
mod models;

#[cfg(not(loom))]
mod client_traces;
#[cfg(not(loom))]
mod cluster;
#[cfg(not(loom))]
mod failover;
#[cfg(not(loom))]
mod node;
#[cfg(not(loom))]
mod scenarios;
#[cfg(not(loom))]
mod server_rules;
#[cfg(not(loom))]
mod server_traces;
#[cfg(not(loom))]
mod service;
#[cfg(not(loom))]
mod simulation;
#[cfg(not(loom))]
mod tables;

use serde_json::Value;

use super::*;
use crate::format::Ino;

/// A reference vector file.
#[cfg(not(loom))]
fn vector(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).expect("vector file")).expect("valid JSON")
}

#[cfg(not(loom))]
fn mode(s: &str) -> Mode {
    *Mode::ALL.iter().find(|m| m.to_string() == s).unwrap_or_else(|| panic!("mode {s}"))
}

/// The vectors call the lock of inode group N "lock N".
fn group(n: u64) -> LockName {
    LockName::inode(Ino(n * LOCK_GROUP))
}
