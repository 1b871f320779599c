//! Several mounts of one volume, each with its own TCP transport, as processes on one host would have them.

#[path = "common/cluster.rs"]
mod cluster;

use std::time::{Duration, Instant};

use scoutfs::Volume;

use cluster::{Cluster, create, eventually, exists, leads};

#[test]
fn two_mounts_see_each_others_files() {
    let cluster = Cluster::new(1);
    let a = cluster.mount(Some(0));
    let b = cluster.mount(None);
    for i in 0..20 {
        let (from, to) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        create(from, &format!("file-{i}"));
        assert!(exists(to, &format!("file-{i}")), "{i}");
    }
    let status = b.cluster_status();
    assert!(status.connected && status.greetings == 1 && status.member.is_none(), "{status:?}");
    b.close().unwrap();
    a.close().unwrap();
    cluster.check();
}

#[test]
fn a_crashed_single_member_is_followed_soon() {
    let cluster = Cluster::new(1);
    let a = cluster.mount(Some(0));
    create(&a, "synced");
    a.sync().unwrap();
    drop(a);
    let start = Instant::now();
    let b = cluster.mount(Some(0));
    assert!(start.elapsed() < Duration::from_secs(9), "no heartbeat timeout: {:?}", start.elapsed());
    assert!(exists(&b, "synced"));
    create(&b, "after");
    b.close().unwrap();
    cluster.check();
}

#[test]
fn leadership_moves_when_the_leader_leaves() {
    let cluster = Cluster::new(3);
    // One alone cannot be elected, so its mount waits for the second one.
    let mut members: Vec<Volume> = std::thread::scope(|scope| {
        let cluster = &cluster;
        let mounting = (0..3).map(|slot| scope.spawn(move || cluster.mount(Some(slot)))).collect::<Vec<_>>();
        mounting.into_iter().map(|m| m.join().unwrap()).collect()
    });
    let client = cluster.mount(None);
    create(&client, "before");
    let leader = members.iter().position(leads).expect("a leader, for the mounts have succeeded");
    members.remove(leader).close().unwrap();
    eventually("another leader", || members.iter().any(leads));
    create(&client, "after");
    eventually("the client is with the new leader", || client.cluster_status().greetings >= 2);
    for member in &members {
        assert!(exists(member, "before") && exists(member, "after"));
    }
    client.close().unwrap();
    // The last majority leaves together.
    std::thread::scope(|scope| {
        for member in members {
            scope.spawn(move || member.close().unwrap());
        }
    });
    cluster.check();
}
