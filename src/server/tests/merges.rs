//! Log merges: the conversations of the original, and whole merges over real trees.

use std::time::Duration;

use serde_json::Value;
use zerocopy::{FromBytes, IntoBytes};

use super::account::account;
use super::harness::*;
use crate::btree::{self, Reader};
use crate::error::Errno;
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{Key, KeyRange, keys};
use crate::net::Command;

fn num(v: &Value) -> u64 {
    v.as_u64().unwrap()
}

/// `zone.first.kind.second.third.fourth`.
fn parse_key(s: &str) -> Key {
    if s == "ones" {
        return Key::ONES;
    }
    let f: Vec<u64> = s.split('.').map(|n| n.parse().unwrap()).collect();
    Key::new(f[0] as u8, f[1], f[2] as u8, f[3], f[4], f[5] as u8)
}

fn show_key(k: &StoredKey) -> String {
    let k = k.to_key();
    if k == Key::ONES { "ones".into() } else { k.to_string() }
}

/// The parent ends and input keys of scenarios that give them as a formula.
fn ends_of(scenario: &Value) -> Vec<Key> {
    match scenario["parent_ends"].as_array() {
        Some(ends) => ends.iter().map(|e| parse_key(e.as_str().unwrap())).collect(),
        None => (1..=11).map(|i| Key::new(16, 100 * i, 255, 0, 0, 0)).chain([Key::ONES]).collect(),
    }
}

fn input_keys(v: &Value) -> Vec<Key> {
    match v.as_array() {
        Some(list) => list.iter().map(|k| parse_key(k.as_str().unwrap())).collect(),
        None => (0..12).map(|i| Key::new(16, 100 * i + 50, 4, 0, 0, 0)).collect(),
    }
}

/// A server in the starting state of a scenario.
fn start(scenario: &Value, counter: u64) -> TestServer {
    let (meta, data) = volume(512 * MIB, 64 * MIB, 1);
    let mut server = TestServer::open(meta, data);
    for rid in 1..=3 {
        server.mount(rid);
    }
    let core = &mut server.core;
    core.freeing = true; // The records of freed trees stay as they are.
    let trees = &mut core.trees;
    {
        let (mut cow, sup) = trees.split();
        sup.inode_count = 10.into();
        sup.fs_root = btree::parents_only(&mut cow, &ends_of(scenario)).unwrap();
    }
    for log in scenario["steps"][0]["logs"].as_array().unwrap() {
        let mut lt: LogTrees = zerocopy::FromZeros::new_zeroed();
        let (rid, nr) = (num(&log["rid"]), num(&log["nr"]));
        (lt.rid, lt.nr, lt.inode_count_delta) = (rid.into(), nr.into(), 3.into());
        lt.finalize_seq = num(&log["finalize_seq"]).into();
        lt.flags = u64::from(log["finalized"].as_bool().unwrap()).into();
        let (mut cow, _) = trees.split();
        let name = format!("rid{rid}.nr{nr}");
        if log["finalized"].as_bool().unwrap() {
            for key in input_keys(&scenario["input_item_keys"][&name]) {
                btree::insert(&mut cow, &mut lt.item_root, &key, b"x").unwrap();
            }
        }
        trees.put_log_trees(&lt).unwrap();
    }
    trees.core_seq.set(counter);
    core.start_merge().unwrap();
    server.run().unwrap();
    server
}

/// All records of the log merge tree, written as the vectors write them.
fn merge_items(server: &TestServer) -> Vec<Value> {
    let trees = &server.core.trees;
    let reader = Reader::new(&trees.store);
    let mut items = Vec::new();
    let mut at = Key::ZEROS;
    while let Some((key, item)) = btree::next(&reader, &trees.stable.sup.log_merge, &at).unwrap() {
        let value = &item.value[..];
        let content = match key.zone {
            ZONE_LOG_MERGE_STATUS => {
                let s = LogMergeStatus::read_from_bytes(value).unwrap();
                (
                    "status",
                    serde_json::json!({"next_range_key": show_key(&s.next_range_key),
                    "nr_requests": s.nr_requests.get(), "nr_complete": s.nr_complete.get(), "seq": s.seq.get()}),
                )
            }
            ZONE_LOG_MERGE_RANGE => {
                let r = LogMergeRange::read_from_bytes(value).unwrap();
                ("range", serde_json::json!([show_key(&r.start), show_key(&r.end)]))
            }
            ZONE_LOG_MERGE_REQUEST => {
                let r = LogMergeRequest::read_from_bytes(value).unwrap();
                (
                    "request",
                    serde_json::json!({"rid": r.rid.get(), "seq": r.seq.get(), "input_seq": r.input_seq.get(),
                    "flags": r.flags.get(), "start": show_key(&r.start), "end": show_key(&r.end)}),
                )
            }
            ZONE_LOG_MERGE_COMPLETE => {
                let c = LogMergeComplete::read_from_bytes(value).unwrap();
                (
                    "complete",
                    serde_json::json!({"rid": c.rid.get(), "seq": c.seq.get(), "flags": c.flags.get(),
                    "start": show_key(&c.start), "end": show_key(&c.end), "remain": show_key(&c.remain)}),
                )
            }
            _ => {
                let f = LogMergeFreeing::read_from_bytes(value).unwrap();
                ("freeing", serde_json::json!({"seq": f.seq.get(), "root_height": f.root.height}))
            }
        };
        let mut entry = serde_json::json!({"item_key": key.to_string()});
        entry[content.0] = content.1;
        items.push(entry);
        at = key.next();
    }
    items
}

fn logs(server: &TestServer) -> Vec<(u64, u64, bool)> {
    let range = KeyRange::new(Key::new(ZONE_LOG_TREES, 0, 0, 0, 0, 0), Key { zone: ZONE_LOG_TREES, ..Key::ONES });
    let all = server.core.trees.all::<LogTrees>(range).unwrap();
    all.into_iter().map(|(_, l)| (l.rid.get(), l.nr.get(), l.flags.get() == 1)).collect()
}

/// The words of a step: who, what, which request, how.
fn play(server: &mut TestServer, requests: &mut Vec<LogMergeRequest>, step: &str) -> i64 {
    if let Some(rest) = step.strip_prefix("eviction of rid ") {
        let rid: u64 = rest.split(':').next().unwrap().parse().unwrap();
        assert!(server.core.reclaim_merges(rid).unwrap());
        server.run().unwrap();
        return 0;
    }
    let Some(rest) = step.strip_prefix("rid ") else { return 0 };
    let (rid, rest) = rest.split_once(": ").unwrap();
    let rid: u64 = rid.parse().unwrap();
    let result = if rest.starts_with("GET_LOG_MERGE") {
        server.call_for::<LogMergeRequest>(rid, Command::GetLogMerge, &[]).map(|r| requests.push(r))
    } else {
        let rest = rest.strip_prefix("COMMIT_LOG_MERGE of request ").unwrap();
        let request = requests[rest.split(' ').next().unwrap().parse::<usize>().unwrap()];
        let remain = rest.split_once("with remain ").map(|(_, k)| parse_key(k));
        let flags = match remain {
            Some(_) => LOG_MERGE_COMPLETE_REMAIN,
            None if rest.contains("with error flag") => LOG_MERGE_COMPLETE_ERROR,
            None => 0,
        };
        let complete = LogMergeComplete {
            meta_avail: request.meta_avail,
            meta_freed: request.meta_freed,
            root: request.root,
            start: request.start,
            end: request.end,
            remain: remain.map_or(request.end, |k| k.into()),
            rid: request.rid,
            seq: request.seq,
            flags: flags.into(),
        };
        server.call(rid, Command::CommitLogMerge, complete.as_bytes()).map(|_| ())
    };
    result.map_or_else(
        |e| {
            assert!(e.is(Errno::ENOENT), "{step}: {e}");
            -i64::from(e.errno().0)
        },
        |()| 0,
    )
}

#[test]
fn reference_merge_conversations() {
    let doc: Value =
        serde_json::from_str(include_str!("../../../tests/data/vectors/items-logmerge-server.json")).unwrap();
    for (i, scenario) in doc["scenarios"].as_array().unwrap().iter().enumerate() {
        let mut server = start(scenario, 100 * (i as u64 + 1));
        let mut requests = Vec::new();
        for step in scenario["steps"].as_array().unwrap() {
            let name = format!("{}: {}", scenario["name"], step["step"]);
            let ret = play(&mut server, &mut requests, step["step"].as_str().unwrap());
            assert_eq!(ret, step["ret"].as_i64().unwrap(), "{name}");
            assert_eq!(&merge_items(&server), step["log_merge_items"].as_array().unwrap(), "{name}");
            let want: Vec<(u64, u64, bool)> = step["logs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|l| (num(&l["rid"]), num(&l["nr"]), l["finalized"].as_bool().unwrap()))
                .collect();
            assert_eq!(logs(&server), want, "{name}");
        }
        let finalized = scenario["steps"][0]["logs"].as_array().unwrap().iter().filter(|l| l["finalized"] == true);
        assert_eq!(server.core.trees.sup.inode_count.get(), 10 + 3 * finalized.count() as u64);
    }
}

/// A server on a small volume with these mounts.
fn mounted(
    meta_bytes: u64,
    rids: &[u64],
) -> (crate::sync::Arc<crate::device::MemDevice>, crate::sync::Arc<crate::device::MemDevice>, TestServer) {
    let (meta, data) = volume(meta_bytes, 64 * MIB, 1);
    let mut server = TestServer::open(meta.clone(), data.clone());
    rids.iter().for_each(|rid| server.mount(*rid));
    (meta, data, server)
}

/// Finalizes the mount's tree now, so that its next GET starts a merge as soon as everybody else has come round.
fn finalize(server: &mut TestServer, rid: u64) {
    assert!(server.core.finalize_log_tree(rid).unwrap());
    server.run().unwrap();
}

/// The items of the main tree.
fn main_items(server: &TestServer) -> Vec<(Key, u64)> {
    let trees = &server.core.trees;
    let mut all = Vec::new();
    let mut at = item_key(0);
    while let Some((key, item)) = btree::next(&Reader::new(&trees.store), &trees.stable.sup.fs_root, &at).unwrap() {
        all.push((key, item.seq));
        at = key.next();
    }
    all
}

/// Works until there is no merge; the number of pieces.
fn finish_merge(server: &mut TestServer, rid: u64, dirty_limit: u64) -> usize {
    for pieces in 0..10_000 {
        match merge_once(server, rid, dirty_limit) {
            Ok(()) => {}
            Err(e) if e.is(Errno::ENOENT) => return pieces,
            Err(e) => panic!("{e}"),
        }
    }
    panic!("the merge does not end");
}

#[test]
fn a_merge_of_two_mounts_from_gathering_to_freeing() {
    let (meta, data, mut server) = mounted(256 * MIB, &[1, 2]);
    let mut a = SimClient::open(&mut server, 1);
    let mut b = SimClient::open(&mut server, 2);
    a.cycle(&mut server, 0..1500).unwrap();
    b.cycle(&mut server, 1000..2500).unwrap();
    let lt = a.write(0..10, 50, 0, 0).unwrap();
    a.commit(&mut server, &lt).unwrap();
    finalize(&mut server, 1);

    // Mount 1 waits for mount 2, which is told once.
    let waiting = server.send(1, Command::GetLogTrees, &[]);
    server.run().unwrap();
    assert!(server.taken(1, waiting).is_none());
    assert_eq!(server.requests_to(2, Command::SyncLogTrees).len(), 1);
    let lt = b.write(0..0, 0, 0, 0).unwrap();
    b.commit(&mut server, &lt).unwrap();
    assert!(server.requests_to(2, Command::SyncLogTrees).is_empty());
    b.reopen(&mut server).unwrap();
    assert!(server.taken(1, waiting).unwrap().is_ok(), "the cut is made: everybody goes on");
    assert!(server.core.merge_status().unwrap().is_some());
    assert_eq!(b.lt.nr.get(), 2);
    account(meta.clone());

    let request: LogMergeRequest = server.call_for(2, Command::GetLogMerge, &[]).unwrap();
    account(meta.clone());
    let complete = do_merge(&server, &request, 1 << 20).unwrap();
    server.call(2, Command::CommitLogMerge, complete.as_bytes()).unwrap();
    assert_eq!(errno(server.call(2, Command::CommitLogMerge, complete.as_bytes())), Errno::ENOENT);
    account(meta.clone());
    finish_merge(&mut server, 1, 1 << 20);
    let found = account(meta.clone());
    assert_eq!(found.sup.log_merge.height, 0, "freeing is finished, too");
    assert_eq!(found.inodes, 3010 + 1, "with the root directory");
    let items = main_items(&server);
    assert_eq!(items.len(), 2500);
    assert!(items.iter().map(|i| i.0).eq((0..2500).map(item_key)));
    drop(server);
    account(meta.clone());
    TestServer::open(meta, data);
}

#[test]
fn a_mount_does_not_wait_for_ever_for_the_others() {
    let (_, _, mut server) = mounted(256 * MIB, &[1, 2]);
    let mut a = SimClient::open(&mut server, 1);
    let _b = SimClient::open(&mut server, 2);
    let lt = a.write(0..10, 50, 0, 0).unwrap();
    a.commit(&mut server, &lt).unwrap();
    finalize(&mut server, 1);
    let waiting = server.send(1, Command::GetLogTrees, &[]);
    server.run().unwrap();
    server.advance(Duration::from_millis(499)).unwrap();
    assert!(server.taken(1, waiting).is_none());
    server.advance(Duration::from_millis(1)).unwrap();
    assert!(server.taken(1, waiting).unwrap().is_ok());
    assert!(server.core.merge_status().unwrap().is_none());
}

#[test]
fn orphaned_log_trees_do_not_hold_up_merges() {
    let (meta, data, mut server) = mounted(256 * MIB, &[1, 2]);
    let mut a = SimClient::open(&mut server, 1);
    let mut b = SimClient::open(&mut server, 2);
    b.cycle(&mut server, 500..600).unwrap();
    // An interrupted reclaim of an original server: the record of the mount is gone, its tree is open.
    server.core.trees.remove_mounted(2).unwrap();
    let lt = a.write(0..10, 50, 0, 0).unwrap();
    a.commit(&mut server, &lt).unwrap();
    finalize(&mut server, 1);
    a.reopen(&mut server).unwrap();
    assert!(server.core.merge_status().unwrap().is_some());
    assert!(finish_merge(&mut server, 1, 1 << 20) > 0);
    assert_eq!(main_items(&server).len(), 110);
    account(meta);
    drop(data);
}

/// A merge that is under way, with mount 1 having work to do.
fn merging(
    meta_bytes: u64,
) -> (crate::sync::Arc<crate::device::MemDevice>, crate::sync::Arc<crate::device::MemDevice>, TestServer) {
    let (meta, data, mut server) = mounted(meta_bytes, &[1]);
    let mut a = SimClient::open(&mut server, 1);
    for i in 0..4 {
        a.cycle(&mut server, i * 500..i * 500 + 1000).unwrap();
    }
    let lt = a.write(0..10, 50, 0, 0).unwrap();
    a.commit(&mut server, &lt).unwrap();
    finalize(&mut server, 1);
    a.reopen(&mut server).unwrap();
    (meta, data, server)
}

#[test]
fn merges_that_stop_early_go_on() {
    let (meta, _, mut server) = merging(256 * MIB);
    assert!(finish_merge(&mut server, 1, 256 << 10) > 2);
    assert_eq!(main_items(&server).len(), 2500);
    account(meta);
}

#[test]
fn defect_18_a_merge_request_whose_answer_was_lost_is_handed_out_again() {
    let (meta, data, mut server) = merging(256 * MIB);
    let request: LogMergeRequest = server.call_for(1, Command::GetLogMerge, &[]).unwrap();
    drop(server);
    let mut server = TestServer::open(meta.clone(), data);
    server.greet(1, 1, 0).unwrap();
    let again: LogMergeRequest = server.call_for(1, Command::GetLogMerge, &[]).unwrap();
    assert_eq!((again.seq, again.start, again.end), (request.seq, request.start, request.end));
    assert_eq!(errno(server.call(1, Command::GetLogMerge, &[])), Errno::ENOENT, "once in the life of a server");
    let complete = do_merge(&server, &again, 1 << 20).unwrap();
    server.call(1, Command::CommitLogMerge, complete.as_bytes()).unwrap();
    finish_merge(&mut server, 1, 1 << 20);
    assert_eq!(main_items(&server).len(), 2500);
    account(meta);
}

#[test]
fn a_result_that_cannot_be_is_an_error() {
    let (meta, _, mut server) = merging(256 * MIB);
    let request: LogMergeRequest = server.call_for(1, Command::GetLogMerge, &[]).unwrap();
    let mut complete = do_merge(&server, &request, 1 << 20).unwrap();
    complete.end = Key::ZEROS.into();
    assert_eq!(errno(server.call(1, Command::CommitLogMerge, complete.as_bytes())), Errno::EINVAL);
    account(meta.clone());
    finish_merge(&mut server, 1, 1 << 20);
    assert_eq!(main_items(&server).len(), 2500);
    account(meta);
}

#[test]
fn a_worker_that_leaves_gives_its_range_back() {
    let (meta, _, mut server) = merging(256 * MIB);
    server.mount(2);
    let _request: LogMergeRequest = server.call_for(2, Command::GetLogMerge, &[]).unwrap();
    server.call(2, Command::Farewell, &[]).unwrap();
    account(meta.clone());
    finish_merge(&mut server, 1, 1 << 20);
    assert_eq!(main_items(&server).len(), 2500);
    account(meta);
}

#[test]
fn defect_19_all_inputs_of_a_merge_disappear_in_one_commit() {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let recorder = crate::device::Recorder::new();
    let mut server = TestServer::open(recorder.wrap(&meta), data);
    server.mount(1);
    let mut a = SimClient::open(&mut server, 1);
    for i in 0..12 {
        a.cycle(&mut server, i * 10..i * 10 + 20).unwrap();
        finalize(&mut server, 1);
        server.core.freeing = true;
        if i < 11 {
            // A finalized tree more: as if another mount had always held up the merge.
            let lt: LogTrees = {
                let mut lt: LogTrees = zerocopy::FromZeros::new_zeroed();
                (lt.rid, lt.nr) = (1.into(), (server.core.trees.last_logs[&1].nr + 1).into());
                lt
            };
            server.core.trees.put_log_trees(&lt).unwrap();
            a.reopen(&mut server).unwrap();
        }
    }
    a.reopen(&mut server).unwrap();
    let before = server.core.merge_inputs(&server.core.merge_status().unwrap().unwrap()).unwrap().len();
    assert!(before >= 11, "{before}");
    let from = recorder.position();
    finish_merge(&mut server, 1, 1 << 20);
    for image in recorder.images().from_cut(from) {
        let found = account(image.devices[0].clone());
        let inputs = found.logs.iter().filter(|l| l.flags.get() == LOG_TREES_FINALIZED).count();
        assert!(inputs == before || inputs == 0, "{inputs} of {before} inputs at cut {}", image.cut);
    }
}

#[test]
fn defect_20_ranges_whose_keys_collide_are_parked() {
    let (_, _, mut server) = merging(256 * MIB);
    let mut status = server.core.merge_status().unwrap().unwrap();
    let range = server.core.merge_ranges().unwrap()[0];
    server.core.remove_range(&range).unwrap();
    // The same numbers in two zones.
    let first = Key::new(ZONE_XATTR_TOTL, 10_005, TYPE_INODE, 0, 0, 0);
    let second = Key { zone: ZONE_FS, ..first };
    assert_eq!(second, item_key(5));
    server.core.add_range(&mut status, first, Key { zone: ZONE_XATTR_INDX, ..Key::ZEROS }).unwrap();
    server.core.add_range(&mut status, second, Key::ONES).unwrap();
    assert_eq!((server.core.merge_ranges().unwrap().len(), status.nr_complete.get()), (1, 1));
    server.core.trees.put(&keys::LOG_MERGE_STATUS, &status).unwrap();
    server.run().unwrap();
    finish_merge(&mut server, 1, 1 << 20);
    let items = main_items(&server);
    assert!(items.iter().map(|i| i.0).eq((5..2500).map(item_key)), "what was parked has been merged");

    // A start that is no input key moves up to one.
    let (_, _, mut server) = merging(256 * MIB);
    let mut status = server.core.merge_status().unwrap().unwrap();
    let range = server.core.merge_ranges().unwrap()[0];
    server.core.remove_range(&range).unwrap();
    let first = Key { fourth: 1, ..first };
    server.core.add_range(&mut status, first, first).unwrap();
    server.core.add_range(&mut status, Key { zone: ZONE_FS, ..first }, Key::ONES).unwrap();
    let starts: Vec<Key> = server.core.merge_ranges().unwrap().iter().map(|r| r.start.to_key()).collect();
    assert_eq!((starts.contains(&item_key(6)), status.nr_complete.get()), (true, 0));
}

#[test]
fn defect_26_freeing_goes_on_when_a_server_comes_up() {
    let (meta, data, mut server) = merging(256 * MIB);
    server.core.freeing = true; // This server never gets to it.
    finish_merge(&mut server, 1, 1 << 20);
    assert!(server.core.trees.has_freeing().unwrap());
    let before = account(meta.clone()).free_meta;
    drop(server);
    let mut server = TestServer::open(meta.clone(), data);
    server.run().unwrap();
    assert!(!server.core.trees.has_freeing().unwrap());
    assert!(account(meta).free_meta > before + 5);
}

#[test]
fn a_small_volume_never_fills_up_with_log_trees() {
    let (meta, _, mut server) = mounted(64 * MIB, &[1]);
    let mut a = SimClient::open(&mut server, 1);
    let mut pieces = 0;
    for i in 0..400u64 {
        let from = (i * 4_987) % 22_000;
        let lt = a.write(from..from + 200, 800, 0, 0).unwrap_or_else(|e| panic!("round {i}: {e}"));
        a.commit(&mut server, &lt).unwrap();
        a.reopen(&mut server).unwrap();
        assert_eq!(a.lt.meta_avail.flags.get() & ALLOC_FLAG_LOW, 0, "round {i}: users would see ENOSPC");
        if server.core.merge_status().unwrap().is_some() {
            pieces += finish_merge(&mut server, 1, 4 << 20);
        }
        if i % 20 == 0 {
            account(meta.clone());
        }
    }
    assert!(pieces > 10, "{pieces}");
    account(meta);
}
