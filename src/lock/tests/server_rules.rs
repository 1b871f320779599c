//! What the lock server does about departures, collisions, bad input and crowds.

use super::cluster::l;
use super::*;
use crate::error::Errno;
use crate::format::Key;
use crate::lock::wire::net_lock;

#[test]
fn scenario_29_a_client_without_connection_blocks_until_it_is_reclaimed() {
    let mut s = LockServer::new(false);
    let (mut n, mut out) = (0, Vec::new());
    let mut next = || {
        n += 1;
        n
    };
    s.request(1, 1, &net_lock(l(), Mode::Null, Mode::Read, 0), &mut next, &mut out).unwrap();
    s.request(2, 1, &net_lock(l(), Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    // The invalidation could not be sent: nobody tells an id, nothing happens.
    assert_eq!(out.len(), 2);
    out.clear();
    s.response(1, 1001, &net_lock(l(), Mode::Read, Mode::Null, 0), &mut next, &mut out).unwrap();
    assert!(out.is_empty());
    s.reclaim(1, &mut next, &mut out);
    assert!(matches!(out[..], [LockOut::Grant { rid: 2, .. }]));
    s.reclaim(2, &mut next, &mut out);
    s.reclaim(2, &mut next, &mut out);
    assert_eq!(s.len(), 0);
}

/// Defect 36 (W-5), server side: an answer whose id collides with an invalidation of another lock answers nothing.
#[test]
fn defect_36_a_colliding_answer_is_ignored() {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 7;
    for name in [group(5), group(6)] {
        s.request(1, name.start().first, &net_lock(name, Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
        s.request(2, name.start().first, &net_lock(name, Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    }
    s.invalidate_sent(1, &net_lock(group(5), Mode::Write, Mode::Null, 0), 50);
    s.invalidate_sent(1, &net_lock(group(6), Mode::Write, Mode::Null, 0), 51);
    out.clear();
    let before = s.dump();
    for (id, name, old) in [(51, group(5), Mode::Write), (50, group(5), Mode::Read), (49, group(5), Mode::Write)] {
        s.response(1, id, &net_lock(name, old, Mode::Null, 0), &mut next, &mut out).unwrap();
    }
    assert!(out.is_empty() && s.dump() == before);
    s.response(1, 50, &net_lock(group(5), Mode::Write, Mode::Null, 0), &mut next, &mut out).unwrap();
    assert_eq!(out.len(), 1);
}

/// 04 §15: what the server must refuse, leaving its state alone.
#[test]
fn the_server_refuses_bad_messages() {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 7;
    let ask = |m| net_lock(l(), Mode::Null, m, 0);
    let mut bad = ask(Mode::Read);
    bad.new_mode = 4;
    assert!(s.request(1, 1, &bad, &mut next, &mut out).unwrap_err().is(Errno::EINVAL));
    let mut bad = ask(Mode::Read);
    bad.key = Key::new(16, 3, 0, 0, 0, 0).to_stored();
    assert!(s.request(1, 1, &bad, &mut next, &mut out).unwrap_err().is(Errno::EINVAL));
    s.request(1, 1, &ask(Mode::Write), &mut next, &mut out).unwrap();
    s.request(2, 1, &ask(Mode::Read), &mut next, &mut out).unwrap();
    let again = s.request(2, 2, &ask(Mode::Write), &mut next, &mut out);
    assert!(again.unwrap_err().is(Errno::EINVAL), "a second request for one lock");
    s.invalidate_sent(1, &net_lock(l(), Mode::Write, Mode::Read, 0), 60);
    let higher = s.response(1, 60, &net_lock(l(), Mode::Write, Mode::Write, 0), &mut next, &mut out);
    assert!(higher.unwrap_err().is(Errno::EINVAL), "more than was asked to keep");
    let late = s.recovered(3, &[net_lock(l(), Mode::Read, Mode::Read, 0)], 7);
    assert!(late.unwrap_err().is(Errno::EINVAL), "not in recovery");
}

#[test]
fn the_server_refuses_bad_reports() {
    let mut s = LockServer::new(true);
    let held = |n, seq| net_lock(group(n), Mode::Write, Mode::Write, seq);
    assert!(s.recovered(1, &[held(6, 0), held(5, 0)], 10).unwrap_err().is(Errno::EINVAL), "not rising");
    assert!(s.recovered(1, &[held(5, (1 << 48) + 11)], 10).unwrap_err().is(Errno::EINVAL), "sequence far ahead");
    assert!(s.recovered(1, &vec![held(5, 0); 23], 10).unwrap_err().is(Errno::EINVAL), "too many");
    let r = s.recovered(1, &[held(5, 40), held(6, 30)], 10).unwrap();
    assert_eq!(r, Recovered { next: Some(group(6).start().next()), max_write_seq: 40 });
    assert!(s.recovered(1, &[held(4, 0)], 10).unwrap_err().is(Errno::EINVAL), "before what was asked for");
    assert!(s.recovered(1, &[held(5, 0)], 10).unwrap_err().is(Errno::EEXIST), "twice");
    assert_eq!(s.recovered(1, &[], 10).unwrap().next, None);
}

/// A report is checked as a whole and recorded as a whole, although its locks belong to several servers.
#[test]
fn servers_that_share_the_names_refuse_what_one_would() {
    let mut shards: Vec<LockServer> = (0..SERVER_SHARDS).map(|_| LockServer::new(true)).collect();
    let held = |n, seq| net_lock(group(n), Mode::Write, Mode::Write, seq);
    let (a, b) = (6, 6 + 64 * (1..).find(|i| group(6 + 64 * i).shard() != group(6).shard()).expect("more than one"));
    let mut report = |locks: &[NetLock]| {
        let mut all: Vec<_> = shards.iter_mut().collect();
        let found = recovered(&mut all, 1, locks, 10);
        (found, shards.iter().map(LockServer::len).sum::<usize>())
    };
    let mut refused = |locks: &[NetLock], errno, len, why| {
        let (found, now) = report(locks);
        assert!(found.unwrap_err().is(errno), "{why}");
        assert_eq!(now, len, "{why}: a part was recorded");
    };
    refused(&[held(b, 0), held(a, 0)], Errno::EINVAL, 0, "not rising");
    refused(&[held(a, 0), held(b, (1 << 48) + 11)], Errno::EINVAL, 0, "sequence far ahead");
    refused(&(0..23).map(|i| held(a + 64 * i, 0)).collect::<Vec<_>>(), Errno::EINVAL, 0, "too many");
    let (found, now) = report(&[held(a, 30), held(b, 40)]);
    assert_eq!(found.unwrap(), Recovered { next: Some(group(b).start().next()), max_write_seq: 40 });
    assert_eq!(now, 2);
    let mut refused = |locks: &[NetLock], errno, why| {
        let (found, now) = report(locks);
        assert!(found.unwrap_err().is(errno) && now == 2, "{why}");
    };
    refused(
        &[held(a + 1, 0)],
        Errno::EINVAL,
        "before what was asked for, at a server that has only heard of an earlier one",
    );
    refused(&[held(b + 1, 0), held(b + 1, 0)], Errno::EINVAL, "twice");
    assert_eq!(report(&[]).0.unwrap().next, None);
    assert_eq!(report(&[held(a + 1, 0)]).1, 3, "a new report begins at the first key");
}

/// L-3 and 04 §14.3: readers may pass a waiting writer, but not for ever.
#[test]
fn readers_pass_a_waiting_writer_at_most_eight_times() {
    let mut s = LockServer::new(false);
    let mut out = Vec::new();
    let mut next = || 7;
    s.request(1, 1, &net_lock(l(), Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    s.request(2, 1, &net_lock(l(), Mode::Null, Mode::Read, 0), &mut next, &mut out).unwrap();
    s.invalidate_sent(1, &net_lock(l(), Mode::Write, Mode::Read, 0), 60);
    s.request(3, 1, &net_lock(l(), Mode::Null, Mode::Write, 0), &mut next, &mut out).unwrap();
    for rid in 10..30 {
        s.request(rid, 1, &net_lock(l(), Mode::Null, Mode::Read, 0), &mut next, &mut out).unwrap();
    }
    out.clear();
    s.response(1, 60, &net_lock(l(), Mode::Write, Mode::Read, 0), &mut next, &mut out).unwrap();
    let readers = out.iter().filter(|o| matches!(o, LockOut::Grant { rid: 10.., .. })).count();
    assert_eq!(readers, 8);
    let asked = out.iter().filter(|o| matches!(o, LockOut::Invalidate { .. })).count();
    assert_eq!(asked, 1 + 1 + 8, "then everybody is asked for the writer");
}
