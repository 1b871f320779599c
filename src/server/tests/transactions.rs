//! Transactions of mounts.

use zerocopy::{FromBytes, IntoBytes};

use super::account::account;
use super::harness::*;
use crate::error::Errno;
use crate::format::layout::*;
use crate::net::Command;

fn small() -> (crate::sync::Arc<crate::device::MemDevice>, crate::sync::Arc<crate::device::MemDevice>, TestServer) {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let server = TestServer::open(meta.clone(), data.clone());
    (meta, data, server)
}

#[test]
fn a_fresh_volume_balances() {
    let (meta, _, server) = small();
    let a = account(meta);
    let s = server.core.trees.statfs();
    assert_eq!((s.free_meta_blocks.get(), s.free_data_blocks.get()), (a.free_meta, a.free_data));
    assert_eq!(s.inode_count.get(), a.inodes);
}

#[test]
fn transactions_of_a_mount_on_a_small_volume() {
    let (meta, _, mut server) = small();
    server.mount(7);
    let mut client = SimClient::open(&mut server, 7);
    assert_eq!(client.lt.nr.get(), 1);
    for i in 0..60 {
        client.cycle(&mut server, i * 50..i * 50 + 100).unwrap();
        let a = account(meta.clone());
        let s = server.core.trees.statfs();
        assert_eq!((s.free_meta_blocks.get(), s.free_data_blocks.get()), (a.free_meta, a.free_data), "round {i}");
        assert_eq!(s.inode_count.get(), a.inodes);
        let used: Vec<u64> = client.data.iter().flat_map(|(s, l)| *s..*s + *l).collect();
        assert_eq!(a.used_data.len(), used.len());
        assert!(used.iter().all(|b| a.used_data.contains(b)));
    }
    let roots: NetRoots = server.call_for(7, Command::GetRoots, &[]).unwrap();
    assert_eq!(roots.logs_root, account(meta).sup.logs_root);
    let seq: zerocopy::little_endian::U64 = server.call_for(7, Command::GetLastSeq, &[]).unwrap();
    assert_eq!(seq.get(), client.lt.get_trans_seq.get() - 1);
    let _ = LogTrees::read_from_bytes(client.lt.as_bytes()).unwrap();
    assert_eq!(errno(server.call(8, Command::GetLogTrees, &[])), Errno::EIO);
}
