//! Several nodes on a small volume: its space is for all of them.

#[path = "common/cluster.rs"]
mod cluster;

use std::thread;

use scoutfs::device::MemDevice;
use scoutfs::namespace::Caller;
use scoutfs::{Ino, Volume};

use cluster::Cluster;

const NODES: usize = 3;

/// Makes and removes files in rounds, much more than would fit at a time.
fn work(volume: &Volume, name: &str, rounds: usize, files: usize) -> scoutfs::Result<()> {
    let root = Caller::root();
    let dir = volume.mkdir(&root, Ino::ROOT, name.as_bytes(), 0o755)?.ino;
    for round in 0..rounds {
        for i in 0..files {
            let file = volume.create(&root, dir, format!("{round}-{i}").as_bytes(), 0o644)?.ino;
            volume.write(&root, file, 0, &[i as u8; 5000])?;
        }
        volume.sync()?;
        for i in 0..files {
            volume.unlink(&root, dir, format!("{round}-{i}").as_bytes())?;
        }
    }
    Ok(())
}

fn share(meta: u64, rounds: usize, files: usize) {
    let cluster = Cluster::on(MemDevice::new(meta), MemDevice::new(1 << 30), 1);
    let nodes: Vec<Volume> = (0..NODES).map(|i| cluster.mount((i == 0).then_some(0))).collect();
    thread::scope(|s| {
        let working: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| s.spawn(move || work(node, &format!("node{i}"), rounds, files)))
            .collect();
        for (i, w) in working.into_iter().enumerate() {
            w.join().unwrap().unwrap_or_else(|e| panic!("node {i}: {e}"));
        }
    });
    for node in nodes.into_iter().rev() {
        node.close().unwrap();
    }
    cluster.check();
}

#[test]
fn three_nodes_on_64_mib_of_metadata() {
    share(64 << 20, 12, 800);
}

#[test]
fn three_nodes_on_512_mib_of_metadata() {
    share(512 << 20, 4, 4000);
}
