//! Handing out search compactions: the conversations of the original, and what it gets wrong.

use serde_json::{Value, json};
use zerocopy::{FromZeros, IntoBytes};

use super::harness::*;
use crate::error::Errno;
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{Key, KeyRange, Rid, keys};
use crate::net::Command;

fn num(v: &Value) -> u64 {
    v.as_u64().unwrap()
}

fn file(blkno: u64, blocks: u64) -> SrchFile {
    let mut f = SrchFile::new_zeroed();
    f.block_ref = BlockRef { blkno: blkno.into(), seq: 1.into() };
    (f.blocks, f.entries) = (blocks.into(), (blocks * 100).into());
    f.height = if blocks > 1 { 2 } else { 1 };
    f
}

fn put_file(server: &mut TestServer, kind: &str, second: u64, third: u64) {
    let trees = &mut server.core.trees;
    match kind {
        "log" => trees.put(&keys::srch_log(second.into()), &file(second, 20)).unwrap(),
        _ => trees.put(&keys::srch_sorted(second, third.into()), &file(third, second)).unwrap(),
    }
}

fn show(c: &SrchCompact) -> Value {
    let inputs: Vec<u64> = c.inputs[..usize::from(c.nr)].iter().map(|i| i.sfl.block_ref.blkno.get()).collect();
    json!({"id": c.id.get(), "flags": c.flags, "in": inputs})
}

/// All records of the search tree, written as the vectors write them.
fn items(server: &TestServer) -> Vec<Value> {
    let kind = |kind| {
        let start = Key::new(ZONE_SRCH, 0, kind, 0, 0, 0);
        KeyRange::new(start, Key { second: u64::MAX, third: u64::MAX, ..start })
    };
    let trees = &server.core.trees;
    let mut all = Vec::new();
    for (k, name) in [(TYPE_SRCH_LOG, "log"), (TYPE_SRCH_BLOCKS, "sorted")] {
        all.extend(trees.all::<SrchFile>(kind(k)).unwrap().iter().map(|(k, _)| json!([name, k.second, k.third])));
    }
    for (k, name) in [(TYPE_SRCH_PENDING, "pending"), (TYPE_SRCH_BUSY, "busy")] {
        let found = trees.all::<SrchCompact>(kind(k)).unwrap();
        all.extend(found.iter().map(|(k, c)| json!([name, k.second, k.third, show(c)])));
    }
    all
}

fn busy(server: &TestServer, rid: u64, id: u64) -> SrchCompact {
    server.core.trees.get(&keys::srch_busy(Rid(rid), id)).unwrap().unwrap()
}

fn server() -> TestServer {
    let (meta, data) = volume(8 << 30, 64 * MIB, 1);
    let mut server = TestServer::open(meta, data);
    for rid in 1..=3 {
        server.mount(rid);
    }
    server
}

#[test]
fn reference_compaction_conversations() {
    let doc: Value =
        serde_json::from_str(include_str!("../../../tests/data/vectors/archive-srch-server.json")).unwrap();
    for (nr, case) in doc["cases"].as_array().unwrap().iter().enumerate() {
        let mut server = server();
        for f in case["start"].as_array().unwrap() {
            put_file(&mut server, f[0].as_str().unwrap(), num(&f[1]), num(&f[2]));
        }
        for (at, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let rid = num(&step["rid"]);
            if step["op"] == "get" {
                let c: SrchCompact = server.call_for(rid, Command::SrchGetCompact, &[]).unwrap();
                assert_eq!(u64::from(c.nr), num(&step["nr"]), "case {nr} step {at}");
                assert_eq!(show(&c), json!({"id": step["id"], "flags": step["flags"], "in": step["in"]}));
            } else {
                let mut c = busy(&server, rid, num(&step["id"]));
                match step["result"].as_str().unwrap() {
                    "error" => c.flags |= SRCH_COMPACT_ERROR,
                    "done" => c.flags |= SRCH_COMPACT_DONE,
                    _ => {}
                }
                if num(&step["out_blocks"]) > 0 {
                    c.output = file(num(&step["out_blkno"]), num(&step["out_blocks"]));
                }
                server.call(rid, Command::SrchCommitCompact, c.as_bytes()).unwrap();
            }
            assert_eq!(&items(&server), step["items"].as_array().unwrap(), "case {nr} step {at}");
        }
    }
}

fn four_logs(server: &mut TestServer) {
    for n in [100, 200, 300, 400] {
        put_file(server, "log", n, 0);
    }
}

#[test]
fn defect_18_a_compaction_whose_answer_was_lost_is_handed_out_again() {
    let mut server = server();
    four_logs(&mut server);
    let first: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    assert_eq!(first.nr, 4);
    server.core.handed_compactions.clear(); // The memory of another server.
    let again: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    assert_eq!(again, first);
    let none: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    assert_eq!(none.nr, 0, "only once in the life of a server");
}

/// Mount 1 compacts four logs; what it has told the server.
fn done_compaction(server: &mut TestServer) -> SrchCompact {
    four_logs(server);
    let mut c: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    c.flags |= SRCH_COMPACT_DONE;
    c.output = file(900, 30);
    server.call(1, Command::SrchCommitCompact, c.as_bytes()).unwrap();
    c
}

/// The answer of a commit was lost, and its server too: the mount asks again, and is told that there is no such work any more.
#[test]
fn a_compaction_that_is_committed_twice_counts_once() {
    let mut server = server();
    let c = done_compaction(&mut server);
    let after = (items(&server), server.core.trees.sums);
    server.core.handed_compactions.clear(); // The memory of another server.
    assert_eq!(errno(server.call(1, Command::SrchCommitCompact, c.as_bytes())), Errno::ENOENT);
    assert_eq!((items(&server), server.core.trees.sums), after);
}

#[test]
fn defect_73_what_a_leaving_mount_wrote_or_freed_is_continued() {
    let mut server = server();
    done_compaction(&mut server);
    let deleting: SrchCompact = server.call_for(2, Command::SrchGetCompact, &[]).unwrap();
    assert_eq!(deleting.flags, SRCH_COMPACT_DELETE);
    server.call(2, Command::Farewell, &[]).unwrap();
    let pending = server.core.trees.get::<SrchCompact>(&keys::srch_pending(deleting.id.get())).unwrap();
    assert_eq!(pending.unwrap(), deleting, "unchanged, with its lists");
}

#[test]
fn a_compaction_without_progress_goes_with_its_mount() {
    let mut server = server();
    four_logs(&mut server);
    let before = server.core.trees.sums;
    let c: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    server.call(1, Command::Farewell, &[]).unwrap();
    assert_eq!(server.core.trees.get::<SrchCompact>(&keys::srch_pending(c.id.get())).unwrap(), None);
    assert_eq!(server.core.trees.sums, before);
}

#[test]
fn defect_72_an_empty_sorted_file_is_deleted_instead_of_compacted() {
    let mut server = server();
    let mut empty = file(500, 1);
    empty.entries = 0.into();
    server.core.trees.put(&keys::srch_sorted(1, 500.into()), &empty).unwrap();
    let c: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    assert_eq!((c.nr, c.flags, c.inputs[0].sfl), (1, SRCH_COMPACT_DELETE, empty));
    assert_eq!(server.core.trees.get::<SrchFile>(&keys::srch_sorted(1, 500.into())).unwrap(), None);
}

#[test]
fn defect_74_a_failing_compaction_does_not_block_the_rest() {
    let mut server = server();
    four_logs(&mut server);
    for _ in 0..3 {
        let mut c: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
        assert_eq!(c.id.get(), 100);
        c.flags |= SRCH_COMPACT_ERROR;
        server.call(1, Command::SrchCommitCompact, c.as_bytes()).unwrap();
    }
    let mut other = SrchCompact::new_zeroed();
    (other.id, other.nr, other.flags) = (777.into(), 1, SRCH_COMPACT_DELETE);
    other.inputs[0].sfl = file(777, 1);
    server.core.trees.put(&keys::srch_pending(777), &other).unwrap();
    let next: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    assert_eq!(next.id.get(), 777);
}

#[test]
fn results_that_do_not_fit_the_work_are_refused() {
    let mut server = server();
    four_logs(&mut server);
    let c: SrchCompact = server.call_for(1, Command::SrchGetCompact, &[]).unwrap();
    let mut wrong = c;
    wrong.flags = SRCH_COMPACT_SORTED | SRCH_COMPACT_DONE;
    assert_eq!(errno(server.call(1, Command::SrchCommitCompact, wrong.as_bytes())), Errno::EINVAL);
    let mut wrong = c;
    wrong.inputs[2] = SrchCompactInput::new_zeroed();
    assert_eq!(errno(server.call(1, Command::SrchCommitCompact, wrong.as_bytes())), Errno::EINVAL);
    assert_eq!(errno(server.call(2, Command::SrchCommitCompact, c.as_bytes())), Errno::ENOENT);
    assert_eq!(busy(&server, 1, c.id.get()), c);
}
