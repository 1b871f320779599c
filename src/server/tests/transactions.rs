//! Transactions of mounts, and the small requests.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::account::account;
use super::harness::*;
use crate::alloc::extents::{self, MoveLimits};
use crate::block::BlockSource;
use crate::device::{Fault, FaultDevice, FaultOps, MemDevice};
use crate::error::Errno;
use crate::format::MetaBlock;
use crate::format::consts::*;
use crate::format::layout::*;
use crate::net::Command;
use crate::sync::Arc;

fn small() -> (Arc<MemDevice>, Arc<MemDevice>, TestServer) {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let server = TestServer::open(meta.clone(), data.clone());
    (meta, data, server)
}

/// The server's free counts are those that a walk over everything finds.
fn assert_statfs(server: &mut TestServer, meta: &Arc<MemDevice>, rid: u64) {
    let a = account(meta.clone());
    for _ in 0..2 {
        let s: NetStatfs = server.call_for(rid, Command::Statfs, &[]).unwrap();
        assert_eq!((s.free_meta_blocks.get(), s.free_data_blocks.get()), (a.free_meta, a.free_data));
        assert_eq!(s.inode_count.get(), a.inodes);
    }
}

#[test]
fn defect_14_statfs_counts_everything_once_through_many_transactions() {
    let (meta, _, mut server) = small();
    server.mount(7);
    assert_statfs(&mut server, &meta, 7);
    let mut client = SimClient::open(&mut server, 7);
    assert_eq!(client.lt.nr.get(), 1);
    for i in 0..60 {
        client.cycle(&mut server, i * 50..i * 50 + 100).unwrap();
        assert_statfs(&mut server, &meta, 7);
        let used: Vec<u64> = client.data.iter().flat_map(|(s, l)| *s..*s + *l).collect();
        let a = account(meta.clone());
        assert_eq!(a.used_data.len(), used.len());
        assert!(used.iter().all(|b| a.used_data.contains(b)));
    }
    let roots: NetRoots = server.call_for(7, Command::GetRoots, &[]).unwrap();
    assert_eq!(roots.logs_root, account(meta).sup.logs_root);
    let seq: U64 = server.call_for(7, Command::GetLastSeq, &[]).unwrap();
    assert_eq!(seq.get(), client.lt.get_trans_seq.get() - 1);
}

#[test]
fn repeated_requests_change_nothing() {
    let (meta, data, mut server) = small();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    let lt = client.write(0..30, 100, 10, 0).unwrap();
    let again: LogTrees = server.call_for(7, Command::GetLogTrees, &[]).unwrap();
    assert_eq!(again, client.lt);
    // The next server, too, gives the open transaction as it is.
    drop(server);
    let mut server = TestServer::open(meta.clone(), data);
    server.greet(7, 1, 0).unwrap();
    let again: LogTrees = server.call_for(7, Command::GetLogTrees, &[]).unwrap();
    assert_eq!(again, client.lt);
    client.commit(&mut server, &lt).unwrap();
    let logs_root = account(meta.clone()).sup.logs_root;
    client.commit(&mut server, &lt).unwrap();
    assert_eq!(account(meta).sup.logs_root, logs_root);
}

/// Alone in its process, a server opens the next transaction with the commit that records one.
#[test]
fn a_private_server_needs_one_commit_for_each_transaction() {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let open = || TestServer::try_open_as(meta.clone(), data.clone(), &[], true).unwrap();
    let mut server = open();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    for i in 0..20 {
        let before = server.core.trees.commits();
        let lt = client.write(i * 50..i * 50 + 100, 160, 40, 7).unwrap();
        client.commit(&mut server, &lt).unwrap();
        assert_eq!(server.core.trees.commits(), before + 1);
        // A repetition changes nothing, at the next server of the process too.
        if i % 5 == 0 {
            client.commit(&mut server, &lt).unwrap();
            drop(server);
            server = open();
            server.greet(7, 1, 0).unwrap();
            client.commit(&mut server, &lt).unwrap();
            assert_eq!(
                errno(client.commit(&mut server, &LogTrees { get_trans_seq: 1_000_000.into(), ..lt })),
                Errno::EIO
            );
        }
        let before = server.core.trees.commits();
        client.reopen(&mut server).unwrap();
        assert_eq!(server.core.trees.commits(), before, "it was open already");
        assert!(client.lt.get_trans_seq > lt.get_trans_seq);
        let stable: U64 = server.call_for(7, Command::GetLastSeq, &[]).unwrap();
        assert_eq!(stable.get(), client.lt.get_trans_seq.get() - 1);
        assert_statfs(&mut server, &meta, 7);
        let used: usize = client.data.iter().map(|(_, len)| *len as usize).sum();
        assert_eq!(account(meta.clone()).used_data.len(), used, "freed blocks are free, used ones are not");
    }
}

/// A server that one of the original may follow must not, unless the mount knows what to do: the next server would refuse a
/// COMMIT whose answer was lost.
#[test]
fn a_server_among_others_opens_a_transaction_when_asked() {
    let (_, _, mut server) = small();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    let lt = client.write(0..30, 160, 40, 7).unwrap();
    client.commit(&mut server, &lt).unwrap();
    let stored = server.core.trees.last_log_trees(7).unwrap().unwrap();
    assert_eq!(stored.get_trans_seq, stored.commit_trans_seq);
    client.reopen(&mut server).unwrap();
    // This one knows that it has the COMMIT, whoever opened the next transaction.
    client.commit(&mut server, &lt).unwrap();
    assert_eq!(server.core.trees.last_log_trees(7).unwrap().unwrap().get_trans_seq, client.lt.get_trans_seq);
}

#[test]
fn a_mount_that_knows_how_gets_its_next_transaction_with_the_commit() {
    let (meta, _, mut server) = small();
    server.greet(7, 0, GREETING_OPENS).unwrap();
    server.mount(8);
    let mut client = SimClient::open(&mut server, 7);
    let lt = client.write(0..30, 160, 40, 7).unwrap();
    let before = server.core.trees.commits();
    client.commit(&mut server, &lt).unwrap();
    client.reopen(&mut server).unwrap();
    assert_eq!(server.core.trees.commits(), before + 1);
    assert!(client.lt.get_trans_seq > lt.get_trans_seq);
    assert_statfs(&mut server, &meta, 7);
    // Another mount beside it does not.
    let mut other = SimClient::open(&mut server, 8);
    let lt = other.write(30..60, 160, 40, 7).unwrap();
    other.commit(&mut server, &lt).unwrap();
    let stored = server.core.trees.last_log_trees(8).unwrap().unwrap();
    assert_eq!(stored.get_trans_seq, stored.commit_trans_seq);
}

/// A merge that is due needs the mount's tree to be finalized when the transaction ends.
#[test]
fn a_private_server_does_not_open_past_a_merge_that_is_due() {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let mut server = TestServer::try_open_as(meta, data, &[], true).unwrap();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    let is_open = |server: &TestServer| {
        let stored = server.core.trees.last_log_trees(7).unwrap().unwrap();
        stored.get_trans_seq > stored.commit_trans_seq
    };
    let mut lt = client.write(0..30, 160, 40, 7).unwrap();
    client.commit(&mut server, &lt).unwrap();
    assert!(is_open(&server));
    client.reopen(&mut server).unwrap();
    let nr = client.lt.nr;
    // The mount was told that metadata is short: its items are to be merged.
    lt = client.write(30..60, 160, 40, 7).unwrap();
    lt.meta_avail.flags = ALLOC_FLAG_LOW.into();
    client.commit(&mut server, &lt).unwrap();
    assert!(!is_open(&server));
    client.reopen(&mut server).unwrap();
    assert_eq!(client.lt.nr.get(), nr.get() + 1);
    assert!(server.core.merge_status().unwrap().is_some());
    // While the merge runs nothing stands in the way.
    lt = client.write(60..90, 160, 40, 7).unwrap();
    client.commit(&mut server, &lt).unwrap();
    assert!(is_open(&server));
}

#[test]
fn commits_that_cannot_be_are_refused() {
    let (_, _, mut server) = small();
    server.mount(7);
    server.mount(8);
    let mut client = SimClient::open(&mut server, 7);
    let lt = client.write(0..30, 100, 10, 0).unwrap();
    let refused = |server: &mut TestServer, rid: u64, f: &dyn Fn(&mut LogTrees)| {
        let mut wrong = lt;
        f(&mut wrong);
        errno(server.call(rid, Command::CommitLogTrees, wrong.as_bytes()))
    };
    assert_eq!(refused(&mut server, 8, &|_| {}), Errno::EIO);
    assert_eq!(refused(&mut server, 7, &|l| l.nr = 9.into()), Errno::ENOENT);
    assert_eq!(refused(&mut server, 7, &|l| l.get_trans_seq = 1_000.into()), Errno::EIO);
    assert_eq!(refused(&mut server, 7, &|l| l.flags = 1.into()), Errno::EINVAL);
    assert_eq!(refused(&mut server, 7, &|l| l.finalize_seq = 1.into()), Errno::EINVAL);
    assert_eq!(refused(&mut server, 7, &|l| l.data_alloc_zones[3] = 1.into()), Errno::EINVAL);
    assert_eq!(refused(&mut server, 7, &|l| l.item_root.height = 21), Errno::EINVAL);
    assert_eq!(refused(&mut server, 7, &|l| l.meta_avail.first_nr = 9_000.into()), Errno::EINVAL);
    assert_eq!(refused(&mut server, 7, &|l| l.max_item_seq = (1 << 60).into()), Errno::EINVAL);
    client.commit(&mut server, &lt).unwrap();
    assert_eq!(errno(server.call(99, Command::GetLogTrees, &[])), Errno::EIO, "nobody has mounted as 99");
}

#[test]
fn defect_29_a_commit_to_a_reclaimed_log_tree_is_refused() {
    let (_, _, mut server) = small();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    let lt = client.write(0..30, 100, 10, 0).unwrap();
    assert!(server.core.finalize_log_tree(7).unwrap());
    server.run().unwrap();
    assert_eq!(errno(client.commit(&mut server, &lt)), Errno::EIO);
    server.call(7, Command::Farewell, &[]).unwrap();
    assert_eq!(errno(client.commit(&mut server, &lt)), Errno::EIO);
}

#[test]
fn defect_30_get_roots_with_a_payload_is_refused() {
    let (_, _, mut server) = small();
    server.mount(7);
    assert_eq!(errno(server.call(7, Command::GetRoots, b"x")), Errno::EINVAL);
}

#[test]
fn defect_31_a_commit_raises_the_sequence_counter() {
    let (meta, data, mut server) = small();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    let mut lt = client.write(0..30, 100, 10, 0).unwrap();
    // A lock that this server does not know of yet had this write_seq.
    lt.max_item_seq = (server.core.trees.seq() + 10_000).into();
    client.commit(&mut server, &lt).unwrap();
    client.reopen(&mut server).unwrap();
    assert!(client.lt.get_trans_seq > lt.max_item_seq);
    let lower = client.write(0..0, 0, 0, 0).unwrap();
    client.commit(&mut server, &LogTrees { max_item_seq: 1.into(), ..lower }).unwrap();
    drop(server);
    let server = TestServer::open(meta, data);
    assert!(server.core.trees.seq() >= lt.max_item_seq.get(), "the greatest value of the tree is kept");
}

#[test]
fn waiting_requests_share_a_commit() {
    let (_, _, mut server) = small();
    for rid in 1..=5 {
        server.mount(rid);
    }
    let before = server.core.trees.commits();
    let ids: Vec<u64> = (1..=5).map(|rid| server.send(rid, Command::GetLogTrees, &[])).collect();
    let roots = server.send(1, Command::GetRoots, &[]);
    assert!(server.taken(1, roots).is_some(), "what needs no commit does not wait for one");
    server.run().unwrap();
    for (rid, id) in (1..=5).zip(ids) {
        assert!(server.taken(rid, id).unwrap().is_ok());
    }
    assert_eq!(server.core.trees.commits(), before + 1);
}

#[test]
fn the_stable_sequence_stays_below_every_open_transaction() {
    let (_, _, mut server) = small();
    server.mount(1);
    server.mount(2);
    let mut slow = SimClient::open(&mut server, 1);
    let mut fast = SimClient::open(&mut server, 2);
    for i in 0..3 {
        fast.cycle(&mut server, i..i + 1).unwrap();
    }
    let stable = |server: &mut TestServer| server.call_for::<U64>(2, Command::GetLastSeq, &[]).unwrap().get();
    assert_eq!(stable(&mut server), slow.lt.get_trans_seq.get() - 1);
    slow.cycle(&mut server, 0..1).unwrap();
    assert_eq!(stable(&mut server), fast.lt.get_trans_seq.get() - 1);
}

#[test]
fn defect_05_a_failed_commit_ends_the_server_and_leaves_the_volume_as_it_was() {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    for nth in 0..64 {
        let base = meta.snapshot();
        let faulty = FaultDevice::new(base.clone());
        let mut server = TestServer::open(faulty.clone(), data.clone());
        server.mount(7);
        faulty.fail_nth(FaultOps::CHANGES, nth, Fault::Torn);
        let id = server.send(7, Command::GetLogTrees, &[]);
        let failed = server.run().is_err();
        if !failed {
            assert!(nth > 5, "a commit writes and flushes something");
            return;
        }
        assert!(server.taken(7, id).is_none(), "no answer before it is durable");
        drop(server);
        let a = account(base.clone());
        assert!(a.logs.len() <= 1 && a.sup.mounted_clients.height == 1);
        let mut next = TestServer::open(base, data.clone());
        next.greet(7, 1, 0).unwrap();
        assert!(next.call(7, Command::GetLogTrees, &[]).is_ok());
    }
    panic!("the commit never succeeds");
}

#[test]
fn defect_09_the_full_tree_takes_over_when_the_other_runs_dry() {
    let (meta, _, mut server) = small();
    let trees = &mut server.core.trees;
    let (from, bounds) = (trees.avail_root, trees.meta_bounds());
    {
        let (mut cow, sup) = trees.split();
        let [a, b] = &mut sup.meta_alloc;
        let (src, dst) = if from == 0 { (a, b) } else { (b, a) };
        let limits = MoveLimits { total: u64::MAX, budget: 0, slack: 0, zones: None };
        extents::move_extents(&mut cow, dst, src, bounds, &limits).unwrap();
    }
    assert_eq!(trees.sup.meta_alloc[from].total_len.get(), 0);
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    client.cycle(&mut server, 0..10).unwrap();
    assert_ne!(server.core.trees.avail_root, from);
    account(meta);
}

#[test]
fn defect_11_a_double_free_does_not_stop_later_commits() {
    let (meta, _, mut server) = small();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    let bounds = server.core.trees.meta_bounds();
    let free = {
        let trees = &server.core.trees;
        let root = trees.sup.meta_alloc[trees.avail_root];
        extents::find(&trees.reader(), &root, bounds, 0).unwrap().unwrap().last()
    };
    server.core.trees.alloc.free(MetaBlock(free)).unwrap();
    for i in 0..8 {
        client.cycle(&mut server, i..i + 5).unwrap();
    }
    account(meta);
}

#[test]
fn small_requests() {
    let (meta, data) = volume(64 * MIB, 8 << 30, 1);
    let mut server = TestServer::open(meta.clone(), data.clone());
    server.mount(7);
    let inos = |server: &mut TestServer, n: u64| {
        server.call_for::<NetInodeAlloc>(7, Command::AllocInodes, &n.to_le_bytes()).unwrap()
    };
    let first = inos(&mut server, 10_240);
    let second = inos(&mut server, u64::MAX);
    assert_eq!((first.ino.get(), first.nr.get(), second.ino.get()), (1024, 10_240, 1024 + 10_240));
    assert_eq!(inos(&mut server, 1).nr.get(), 0, "used up");

    let mut options: VolumeOptionValues = zerocopy::FromZeros::new_zeroed();
    options.set_bits = 2.into();
    assert_eq!(errno(server.call(7, Command::SetVolopt, options.as_bytes())), Errno::EINVAL);
    options.set_bits = 1.into();
    for bad in [0, MIN_DATA_ZONE_BLOCKS - 1, 1 << 40] {
        options.data_alloc_zone_blocks = bad.into();
        assert_eq!(errno(server.call(7, Command::SetVolopt, options.as_bytes())), Errno::EINVAL);
    }
    options.data_alloc_zone_blocks = MIN_DATA_ZONE_BLOCKS.into();
    server.call(7, Command::SetVolopt, options.as_bytes()).unwrap();
    assert_eq!(server.call_for::<VolumeOptionValues>(7, Command::GetVolopt, &[]).unwrap(), options);
    let client = SimClient::open(&mut server, 7);
    assert_eq!(client.lt.data_alloc_zone_blocks.get(), MIN_DATA_ZONE_BLOCKS);
    assert_ne!(client.lt.data_alloc_zones[0].get(), 0);
    server.call(7, Command::ClearVolopt, options.as_bytes()).unwrap();
    assert_eq!(server.call_for::<VolumeOptionValues>(7, Command::GetVolopt, &[]).unwrap().set_bits.get(), 0);
}

#[test]
fn volumes_grow_and_never_shrink() {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let (meta, data) = (meta.snapshot_sized(96 * MIB), data.snapshot_sized(128 * MIB));
    let mut server = TestServer::open(meta.clone(), data);
    server.mount(7);
    let resize = |server: &mut TestServer, m: u64, d: u64| {
        let totals = NetResizeDevices { new_total_meta_blocks: m.into(), new_total_data_blocks: d.into() };
        server.call(7, Command::ResizeDevices, totals.as_bytes())
    };
    for (m, d) in [(1023, 0), (0, 100), (1537, 0), (0, 32_769)] {
        assert_eq!(errno(resize(&mut server, m, d)), Errno::EINVAL, "{m} {d}");
    }
    resize(&mut server, 0, 0).unwrap();
    resize(&mut server, 1536, 32_768).unwrap();
    resize(&mut server, 1536, 32_768).unwrap();
    assert_statfs(&mut server, &meta, 7);
    let mut client = SimClient::open(&mut server, 7);
    client.cycle(&mut server, 0..10).unwrap();
    assert_statfs(&mut server, &meta, 7);
}

#[test]
fn defect_13_growing_past_the_last_zone_is_refused() {
    let total = MIN_DATA_ZONE_BLOCKS * MAX_DATA_ZONES;
    let (meta, data) = volume(64 * MIB, total * 4096, 1);
    let data = data.snapshot_sized((total + 5) * 4096);
    let mut server = TestServer::open(meta, data);
    server.mount(7);
    let mut options: VolumeOptionValues = zerocopy::FromZeros::new_zeroed();
    (options.set_bits, options.data_alloc_zone_blocks) = (1.into(), MIN_DATA_ZONE_BLOCKS.into());
    server.call(7, Command::SetVolopt, options.as_bytes()).unwrap();
    let totals = NetResizeDevices { new_total_meta_blocks: 0.into(), new_total_data_blocks: (total + 1).into() };
    assert_eq!(errno(server.call(7, Command::ResizeDevices, totals.as_bytes())), Errno::EINVAL);
}

/// Mounts of the original never flush what they write; the server does it for them, before the super block refers to it.
#[test]
fn the_data_device_is_flushed_for_mounts_that_do_not_flush_it() {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let data = FaultDevice::new(data);
    let mut server = TestServer::open(meta, data.clone());
    let flushes = |server: &mut TestServer, client: &mut SimClient| {
        let lt = client.write(0..30, 160, 40, 7).unwrap();
        let before = data.operations();
        client.commit(server, &lt).unwrap();
        let after = data.operations();
        client.reopen(server).unwrap();
        after - before
    };
    server.greet(7, 0, GREETING_FLUSHES).unwrap();
    let mut flushing = SimClient::open(&mut server, 7);
    assert!(data.operations() > 0, "the first commit covers what earlier servers recorded");
    assert_eq!(flushes(&mut server, &mut flushing), 0);
    server.greet(8, 0, 0).unwrap();
    let mut other = SimClient::open(&mut server, 8);
    assert_eq!(flushes(&mut server, &mut other), 1);
    assert_eq!(flushes(&mut server, &mut flushing), 1, "a commit may be of both");
}
