//! Several mounts of one volume, each with its own TCP transport, as processes on one host would have them.

#[path = "common/cluster.rs"]
mod cluster;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use scoutfs::device::BlockDevice;
use scoutfs::namespace::{Access, Caller};
use scoutfs::{Errno, Ino, Result, Volume};

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

/// The server forgets who has what open when it crashes. The next one asks: what another node has open is not deleted by the one that
/// has unlinked it, nor as an orphan, until it is closed.
#[test]
fn an_open_file_outlives_the_server_that_knew_of_it() {
    let cluster = Cluster::new(1);
    let leader = cluster.mount(Some(0));
    let (user, other) = (cluster.mount(None), cluster.mount(None));
    let root = Caller::root();
    let files: Vec<Ino> = (0..2)
        .map(|n| {
            let file = user.create(&root, Ino::ROOT, format!("file {n}").as_bytes(), 0o644).unwrap().ino;
            user.write(&root, file, 0, b"content").unwrap();
            file
        })
        .collect();
    user.sync().unwrap();
    let opens: Vec<_> = files.iter().map(|file| user.open_inode(&root, *file, Access::READ).unwrap()).collect();
    // One is unlinked while the old server knows who has it open, the other when there is a new one.
    other.unlink(&root, Ino::ROOT, b"file 0").unwrap();
    other.sync().unwrap();
    drop(leader);
    let leader = cluster.mount(Some(0));
    eventually("the user is with the new server", || user.cluster_status().greetings >= 2);
    other.unlink(&root, Ino::ROOT, b"file 1").unwrap();
    other.sync().unwrap();
    let readable = |file: &Ino| {
        let mut content = [0; 7];
        user.read(*file, 0, &mut content).is_ok_and(|n| n == 7 && &content == b"content")
    };
    assert!(files.iter().all(readable), "open, and deleted");
    // Neither a scan for orphans nor the last close of somebody else deletes them.
    drop(other.open_inode(&root, files[0], Access::READ));
    std::thread::sleep(Duration::from_secs(2));
    assert!(files.iter().all(readable), "open, and deleted by others");
    drop(opens);
    let gone = |file: &Ino| leader.getattr(*file).is_err_and(|e| e.is(Errno::ESTALE));
    eventually("the last one to close them to delete them", || files.iter().all(gone));
    for volume in [user, other, leader] {
        volume.close().unwrap();
    }
    cluster.check();
}

/// A device whose flushes wait while it is shut.
struct Gate {
    inner: Arc<dyn BlockDevice>,
    /// Is it shut, and how many wait?
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn new(inner: Arc<dyn BlockDevice>) -> Arc<Gate> {
        Arc::new(Gate { inner, state: Mutex::default(), changed: Condvar::new() })
    }

    fn set_shut(&self, shut: bool) {
        self.state.lock().unwrap().0 = shut;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

impl BlockDevice for Gate {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        state = self.changed.wait_while(state, |(shut, _)| *shut).unwrap();
        state.1 -= 1;
        drop(state);
        self.inner.flush()
    }
}

/// The leader is in the middle of a commit, and its device takes as long as it likes: locks go from node to node all the same.
#[test]
fn locks_do_not_wait_for_commits() {
    let cluster = Cluster::new(1);
    let gate = Gate::new(cluster.meta());
    let leader = cluster.mount_through(gate.clone(), Some(0));
    let nodes = [cluster.mount(None), cluster.mount(None)];
    let root = Caller::root();
    let quiet = nodes[0].mkdir(&root, Ino::ROOT, b"quiet", 0o755).unwrap().ino;
    nodes[0].sync().unwrap();
    // A call that takes the lock for a change and then finds nothing to change: the lock goes over clean.
    let hand_over = |node: &Volume| {
        assert_eq!(node.removexattr(&root, quiet, b"user.none").unwrap_err().errno(), Errno::ENODATA);
    };
    nodes.iter().for_each(hand_over);

    create(&leader, "of the leader");
    std::thread::scope(|scope| {
        gate.set_shut(true);
        let syncing = scope.spawn(|| leader.sync());
        eventually("the leader flushes", || gate.waiting() > 0);
        let (done, end) = std::sync::mpsc::channel();
        let nodes = &nodes;
        scope.spawn(move || {
            (0..20).for_each(|i| hand_over(&nodes[i % 2]));
            done.send(()).unwrap();
        });
        let in_time = end.recv_timeout(Duration::from_secs(20));
        assert!(!syncing.is_finished(), "the leader still waits for its device");
        gate.set_shut(false);
        syncing.join().unwrap().unwrap();
        in_time.expect("hand-overs beside a commit");
    });
    for node in nodes {
        node.close().unwrap();
    }
    leader.close().unwrap();
    cluster.check();
}
