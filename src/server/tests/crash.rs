//! Random conversations, and a crash at every write of every commit.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::IntoBytes;

use super::account::account;
use super::harness::*;
use crate::device::{MemDevice, Recorder, Survive};
use crate::error::Errno;
use crate::format::layout::*;
use crate::net::Command;
use crate::sync::Arc;

/// What a client was promised, and when (as a position in the log of writes).
#[derive(Default)]
struct Promises {
    /// Positions from which on the commit of this (rid, nr, get_trans_seq) must be on the device.
    commits: Vec<(usize, u64, u64, u64)>,
    inos: Vec<(usize, u64)>,
}

fn conversation(seed: u64, meta: &Arc<MemDevice>, data: &Arc<MemDevice>, recorder: &Arc<Recorder>) -> Promises {
    let mut rng = StdRng::seed_from_u64(seed);
    let private = seed.is_multiple_of(2);
    let mut server = TestServer::try_open_as(recorder.wrap(meta), data.clone(), &[], private).unwrap();
    let mut clients: BTreeMap<u64, SimClient> = BTreeMap::new();
    let mut promises = Promises::default();
    let mut last_rid = 0;
    for _ in 0..30 {
        let pick = rng.random_range(0..clients.len().max(1));
        let rid = clients.keys().nth(pick).copied();
        match (rng.random_range(0..10), rid) {
            (0, _) | (_, None) if clients.len() < 3 => {
                last_rid += 1;
                server.mount(last_rid);
                clients.insert(last_rid, SimClient::open(&mut server, last_rid));
            }
            (1, Some(rid)) if clients.len() > 1 => {
                server.call(rid, Command::Farewell, &[]).unwrap();
                clients.remove(&rid);
            }
            (2, Some(rid)) => {
                let got: NetInodeAlloc = server.call_for(rid, Command::AllocInodes, &64u64.to_le_bytes()).unwrap();
                promises.inos.push((recorder.position(), got.ino.get() + got.nr.get()));
            }
            (3, Some(rid)) => {
                server.core.finalize_log_tree(rid).unwrap();
                server.run().unwrap();
                clients.get_mut(&rid).unwrap().reopen(&mut server).unwrap();
            }
            (4 | 5, Some(rid)) => match merge_once(&mut server, rid, 128 << 10) {
                Err(e) if e.is(Errno::ENOENT) => {}
                other => other.unwrap(),
            },
            (_, Some(rid)) => {
                let client = clients.get_mut(&rid).unwrap();
                let from = rng.random_range(0..2000u64);
                let lt = client.write(from..from + rng.random_range(0..200), 200, 20, 5).unwrap();
                client.commit(&mut server, &lt).unwrap();
                promises.commits.push((recorder.position(), rid, lt.nr.get(), lt.get_trans_seq.get()));
                client.reopen(&mut server).unwrap();
            }
            _ => {}
        }
    }
    promises
}

fn check_crashes(seed: u64) {
    let (meta, data) = volume(64 * MIB, 64 * MIB, 1);
    let recorder = Recorder::new();
    let promises = conversation(seed, &meta, &data, &recorder);
    let survivals = [Survive::Nothing, Survive::Sectors(seed), Survive::Writes(seed)];
    for image in recorder.images().step(7).survivals(survivals) {
        let context = format!("seed {seed}, crash after {} events, {:?}", image.cut, image.survive);
        let found = account(image.devices[0].clone());
        for (at, rid, nr, seq) in &promises.commits {
            let Some(lt) = found.logs.iter().find(|l| (l.rid.get(), l.nr.get()) == (*rid, *nr)) else { continue };
            assert!(*at > image.cut || lt.commit_trans_seq.get() >= *seq, "{context}: a commit is lost");
        }
        for (at, next) in &promises.inos {
            assert!(*at > image.cut || found.sup.next_ino.get() >= *next, "{context}: inode numbers are given twice");
        }
    }
    // Some of the images are taken over by a server.
    for image in recorder.images().step(151).survivals([Survive::Nothing]) {
        let meta = image.devices[0].clone();
        let mut server = TestServer::open(meta.clone(), data.clone());
        server.run().unwrap();
        let mounted: Vec<u64> = server.core.trees.mounted.keys().copied().collect();
        for rid in mounted {
            server.greet(rid, 1, 0).unwrap();
            server.recover_empty(rid);
            server.call(rid, Command::GetLogTrees, &[]).unwrap();
            server.call(rid, Command::Farewell, &[]).unwrap();
        }
        let found = account(meta);
        assert_eq!(found.sup.mounted_clients.as_bytes(), BtreeRootBytes::default().0);
    }
}

/// The empty tree.
#[derive(Default)]
struct BtreeRootBytes([u8; 24]);

#[test]
fn a_crash_at_any_write_leaves_every_block_in_one_place() {
    for seed in 0..3 {
        check_crashes(seed);
    }
}
