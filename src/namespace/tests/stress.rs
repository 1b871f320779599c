//! Many threads on two mounts in one small tree: nothing hangs, nothing is left half done.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::harness::{Cluster, TestMount};
use super::invariants;
use crate::error::Errno;
use crate::format::Ino;
use crate::namespace::{Access, Caller, RenameFlags, XattrFlags};
use crate::sync::thread;

const STEPS: usize = 300;

/// What may come of an operation whose names others change at the same time.
const EXPECTED: [Errno; 12] = [
    Errno::ENOENT,
    Errno::EEXIST,
    Errno::ESTALE,
    Errno::ENOTEMPTY,
    Errno::ENOTDIR,
    Errno::EISDIR,
    Errno::EINVAL,
    Errno::ELOOP,
    Errno::EPERM,
    Errno::ENODATA,
    Errno::EBUSY,
    Errno::EMLINK,
];

fn play(m: &TestMount, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (ns, me) = (&m.ns, Caller::root());
    let mut dirs = vec![Ino::ROOT];
    let mut handles = Vec::new();
    for _ in 0..STEPS {
        let dir = dirs[rng.random_range(0..dirs.len())];
        let to = dirs[rng.random_range(0..dirs.len())];
        let (a, b) = ([b'a' + rng.random_range(0..4u8)], [b'a' + rng.random_range(0..4u8)]);
        let result = match rng.random_range(0..14) {
            0..3 => ns.create(&me, dir, &a, 0o644).map(|_| ()),
            3..5 => ns.mkdir(&me, dir, &a, 0o755).map(|attr| dirs.push(attr.ino)),
            5 => ns.unlink(&me, dir, &a),
            6 => ns.rmdir(&me, dir, &a),
            7..9 => ns.rename(&me, (dir, &a), (to, &b), RenameFlags::NONE),
            9 => ns.rename(&me, (dir, &a), (to, &b), RenameFlags::EXCHANGE),
            10 => ns.lookup(&me, dir, &a).and_then(|attr| ns.link(&me, attr.ino, to, &b)).map(|_| ()),
            11 => ns.lookup(&me, dir, &a).and_then(|attr| ns.setxattr(&me, attr.ino, b"user.x", &a, XattrFlags::Any)),
            12 => ns
                .lookup(&me, dir, &a)
                .and_then(|attr| ns.open(&me, attr.ino, Access::READ))
                .map(|handle| handles.push(handle)),
            _ => ns.readdir_plus(dir, 0, 50).map(|_| ()),
        };
        if let Err(e) = result {
            assert!(EXPECTED.contains(&e.errno()), "{e}");
        }
        if handles.len() > 3 {
            handles.remove(0);
        }
        if dirs.len() > 8 {
            dirs.remove(1);
        }
    }
}

#[test]
fn threads_and_mounts_in_one_tree_leave_it_whole() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    thread::scope(|s| {
        for seed in 0..4 {
            let m = if seed % 2 == 0 { &one } else { &two };
            s.spawn(move || play(m, seed));
        }
    });
    invariants::check(&one, 64 * 1024);
    two.unmount();
    one.unmount();
}

/// Two directories are moved into each other at the same time, by threads of one mount and of two: one of them comes too late.
#[test]
fn directories_that_move_into_each_other_make_no_loop() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let me = Caller::root();
    for (other, rounds) in [(&one, 4000), (&two, 100)] {
        for _ in 0..rounds {
            let [a, b] = [b"a", b"b"].map(|name| one.ns.mkdir(&me, Ino::ROOT, name, 0o755).unwrap().ino);
            let into = |m: &TestMount, name: &[u8], dir: Ino| {
                m.ns.rename(&me, (Ino::ROOT, name), (dir, b"x"), RenameFlags::NONE)
            };
            let start = std::sync::Barrier::new(2);
            let (first, second) = thread::scope(|s| {
                let first = s.spawn(|| {
                    start.wait();
                    into(&one, b"a", b)
                });
                start.wait();
                let second = into(other, b"b", a);
                (first.join().unwrap(), second)
            });
            assert_eq!(u32::from(first.is_ok()) + u32::from(second.is_ok()), 1, "{first:?} {second:?}");
            let (outer, name) = if first.is_ok() { (b, b"b") } else { (a, b"a") };
            one.ns.rmdir(&me, outer, b"x").unwrap();
            one.ns.rmdir(&me, Ino::ROOT, name).unwrap();
        }
    }
    two.unmount();
    one.unmount();
}

#[test]
fn a_name_that_is_replaced_never_seems_to_be_missing() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    m.ns.create(&me, Ino::ROOT, b"name", 0o644).unwrap();
    thread::scope(|s| {
        let writer = s.spawn(|| {
            for _ in 0..500 {
                m.ns.create(&me, Ino::ROOT, b"new", 0o644).unwrap();
                m.ns.rename(&me, (Ino::ROOT, b"new"), (Ino::ROOT, b"name"), RenameFlags::NONE).unwrap();
            }
        });
        while !writer.is_finished() {
            m.ns.lookup(&me, Ino::ROOT, b"name").unwrap();
        }
        writer.join().unwrap();
    });
    m.unmount();
}
