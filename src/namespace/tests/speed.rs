//! How long single operations take; run by hand: `cargo test --release namespace::tests::speed -- --ignored --nocapture`.

use std::time::Instant;

use super::harness::{Cluster, TestMount};
use crate::format::Ino;
use crate::namespace::{Caller, RenameFlags, SetAttr};
use crate::sync::thread;

const FILES: u64 = 50_000;

fn name(i: u64) -> Vec<u8> {
    format!("file-{i:06}").into_bytes()
}

fn time(what: &str, threads: u64, f: impl Fn(u64, u64) + Sync) {
    let start = Instant::now();
    thread::scope(|s| {
        for t in 0..threads {
            let f = &f;
            s.spawn(move || (0..FILES).for_each(|i| f(t, i)));
        }
    });
    let ns = start.elapsed().as_nanos() / u128::from(FILES * threads);
    println!("{what:<28} {threads} threads {ns:>7} ns");
}

fn run(m: &TestMount, dirs: &[Ino], threads: u64) {
    let (ns, me) = (&m.ns, &Caller::root());
    let dir = |t: u64| dirs[t as usize];
    time("create", threads, |t, i| {
        ns.create(me, dir(t), &name(i), 0o644).unwrap();
    });
    let inos: Vec<Vec<Ino>> =
        (0..threads).map(|t| ns.readdir(dir(t), 2, usize::MAX).unwrap().iter().map(|e| e.ino).collect()).collect();
    time("sync (share)", 1, |_, i| {
        if i == 0 {
            ns.sync().unwrap();
        }
    });
    time("getattr", threads, |t, i| {
        ns.getattr(inos[t as usize][i as usize]).unwrap();
    });
    time("lookup", threads, |t, i| {
        ns.lookup(me, dir(t), &name(i)).unwrap();
    });
    time("lookup again", threads, |t, i| {
        ns.lookup(me, dir(t), &name(i % 100)).unwrap();
    });
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    time("chmod", threads, |t, i| {
        ns.setattr(me, inos[t as usize][i as usize], &set).unwrap();
    });
    time("rename", threads, |t, i| {
        ns.rename(me, (dir(t), &name(i)), (dir(t), format!("renamed-{i:06}").as_bytes()), RenameFlags::NONE)
            .unwrap_or_else(|e| panic!("{i} {e}"));
    });
    time("readdir_plus (share)", threads, |t, i| {
        if i % 100 == 0 {
            ns.readdir_plus(dir(t), i + 2, 100).unwrap();
        }
    });
    let names: Vec<Vec<Vec<u8>>> = (0..threads)
        .map(|t| ns.readdir(dir(t), 2, usize::MAX).unwrap().iter().map(|e| e.name.to_vec()).collect())
        .collect();
    time("unlink", threads, |t, i| {
        if let Some(name) = names[t as usize].get(i as usize) {
            ns.unlink(me, dir(t), name).unwrap();
        }
    });
    time("sync (share)", 1, |_, i| {
        if i == 0 {
            ns.sync().unwrap();
        }
    });
}

#[test]
#[ignore = "a measurement, not a test"]
fn operations_one_by_one() {
    // These mounts do no merge work, so everything that 150,000 files were ever called stays in the log tree, deletions as
    // well: 256 MiB of metadata ran out in the part with two threads.
    let cluster = Cluster::with_size(2, 2 << 30);
    let m = cluster.mount();
    for threads in [1, 2] {
        let dirs: Vec<Ino> = (0..threads)
            .map(|t| m.ns.mkdir(&Caller::root(), Ino::ROOT, format!("d{threads}{t}").as_bytes(), 0o755).unwrap().ino)
            .collect();
        run(&m, &dirs, threads);
    }
    m.unmount();
}
