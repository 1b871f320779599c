//! What one node of a volume has done, every other node sees, at once and whatever it had cached.
//!
//! Two or three nodes in one process, each over a TCP connection of its own. The scenarios are those of the original's test
//! catalogue with several mounts (`spec/06 §20`, `spec/08 §18`). Random calls print their seed; `SCOUTFS_TWO_SEED=n` in the
//! environment runs only that, `SCOUTFS_TWO_CASES=n` so many.

#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/model.rs"]
#[allow(dead_code, reason = "no crashes here, so no history")]
mod model;
#[path = "common/op.rs"]
mod op;
#[path = "common/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scoutfs::namespace::{Access, Caller, RenameFlags, SetAttr, SetTime, Time, XattrFlags};
use scoutfs::{Errno, Ino, Volume};

use cluster::{Cluster, eventually};
use model::{Model, observe};
use random::random_op;

fn root() -> Caller {
    Caller::root()
}

fn find(volume: &Volume, dir: Ino, name: &str) -> Result<Ino, Errno> {
    volume.lookup(&root(), dir, name.as_bytes()).map(|a| a.ino).map_err(|e| e.errno())
}

fn make_dir(volume: &Volume, dir: Ino, name: &str) -> Ino {
    volume.mkdir(&root(), dir, name.as_bytes(), 0o755).unwrap().ino
}

fn make_file(volume: &Volume, dir: Ino, name: &str, content: &[u8]) -> Ino {
    let ino = volume.create(&root(), dir, name.as_bytes(), 0o644).unwrap().ino;
    assert_eq!(volume.write(&root(), ino, 0, content).unwrap(), content.len());
    ino
}

fn content(volume: &Volume, ino: Ino) -> Vec<u8> {
    let mut buf = vec![0; volume.getattr(ino).unwrap().size as usize + 1];
    let n = volume.read(ino, 0, &mut buf).unwrap();
    buf.truncate(n);
    buf
}

fn names(volume: &Volume, dir: Ino) -> Vec<String> {
    let (mut names, mut cursor) = (Vec::new(), 0);
    loop {
        let batch = volume.readdir(dir, cursor, 7).unwrap();
        names.extend(batch.iter().map(|e| String::from_utf8_lossy(e.name).into_owned()));
        if batch.at_end() {
            return names.split_off(2);
        }
        cursor = batch.next_cursor();
    }
}

/// A member that leads and clients, given to `test`; afterwards the volume is checked.
fn with_nodes<const N: usize>(test: impl FnOnce([&Volume; N])) {
    let cluster = Cluster::new(1);
    let nodes: Vec<Volume> = (0..N).map(|i| cluster.mount((i == 0).then_some(0))).collect();
    test(std::array::from_fn(|i| &nodes[i]));
    // The server leaves last.
    for node in nodes.into_iter().rev() {
        node.close().unwrap();
    }
    cluster.check();
}

/// `test` with the roles of two nodes both ways round.
fn both_ways(test: impl Fn(&Volume, &Volume, Ino)) {
    with_nodes(|[a, b]| {
        test(a, b, make_dir(a, Ino::ROOT, "one way"));
        test(b, a, make_dir(b, Ino::ROOT, "other way"));
    });
}

#[test]
fn names_change_on_one_node_and_are_seen_on_the_other() {
    both_ways(|a, b, dir| {
        assert_eq!(find(b, dir, "file"), Err(Errno::ENOENT), "now the other node remembers that there is none");
        let file = make_file(a, dir, "file", b"content");
        assert_eq!(find(b, dir, "file"), Ok(file));
        assert_eq!(b.create(&root(), dir, b"file", 0o644).unwrap_err().errno(), Errno::EEXIST);
        a.link(&root(), file, dir, b"second").unwrap();
        assert_eq!(find(b, dir, "second"), Ok(file));
        assert_eq!(b.getattr(file).unwrap().nlink, 2);
        a.unlink(&root(), dir, b"file").unwrap();
        assert_eq!(find(b, dir, "file"), Err(Errno::ENOENT));
        assert_eq!(b.getattr(file).unwrap().nlink, 1);
        a.rename(&root(), (dir, b"second"), (dir, b"third"), RenameFlags::NONE).unwrap();
        assert_eq!((find(b, dir, "second"), find(b, dir, "third")), (Err(Errno::ENOENT), Ok(file)));
        let link = a.symlink(&root(), dir, b"link", b"third").unwrap().ino;
        assert_eq!(b.readlink(link).unwrap(), b"third");
        let sub = make_dir(a, dir, "sub");
        assert_eq!(b.getattr(dir).unwrap().nlink, 3);
        make_file(b, sub, "in it", b"");
        assert_eq!(a.rmdir(&root(), dir, b"sub").unwrap_err().errno(), Errno::ENOTEMPTY);
        b.unlink(&root(), sub, b"in it").unwrap();
        a.rmdir(&root(), dir, b"sub").unwrap();
        assert_eq!(find(b, dir, "sub"), Err(Errno::ENOENT));
        assert_eq!(b.create(&root(), sub, b"late", 0o644).unwrap_err().errno(), Errno::ESTALE, "the directory is gone");
        let other = make_file(a, dir, "other", b"");
        a.rename(&root(), (dir, b"third"), (dir, b"other"), RenameFlags::EXCHANGE).unwrap();
        assert_eq!((find(b, dir, "third"), find(b, dir, "other")), (Ok(other), Ok(file)));
        a.rename(&root(), (dir, b"third"), (dir, b"other"), RenameFlags::NONE).unwrap();
        assert_eq!((find(b, dir, "third"), find(b, dir, "other")), (Err(Errno::ENOENT), Ok(other)));
        assert_eq!(names(a, dir), ["link", "other"]);
        assert_eq!(names(b, dir), ["link", "other"]);
    });
}

#[test]
fn attributes_change_on_one_node_and_are_seen_on_the_other() {
    both_ways(|a, b, dir| {
        let file = make_file(a, dir, "file", b"content");
        let sets = [
            SetAttr { mode: Some(0o4711), ..SetAttr::default() },
            SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() },
            SetAttr { size: Some(100_000), ..SetAttr::default() },
            SetAttr { size: Some(3), ..SetAttr::default() },
            SetAttr { mtime: Some(SetTime::At(Time { sec: -5, nsec: 6 })), ..SetAttr::default() },
        ];
        for set in sets {
            b.getattr(file).unwrap();
            let done = a.setattr(&root(), file, &set).unwrap();
            let seen = b.getattr(file).unwrap();
            assert_eq!((seen.mode, seen.uid, seen.gid, seen.size), (done.mode, done.uid, done.gid, done.size));
            assert_eq!((seen.mtime, seen.ctime, seen.meta_seq), (done.mtime, done.ctime, done.meta_seq));
        }
        assert_eq!(content(b, file), b"con");
        let user = Caller::user(9, 9);
        assert!(b.access(&user, file, Access::READ).is_err());
        // An access list of the version 2 form: owner rwx, user 9 r, group -, mask r, others -.
        let acl: Vec<u8> = [(1u16, 7u16, u32::MAX), (2, 4, 9), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
            .iter()
            .flat_map(|(tag, perm, id)| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat())
            .collect();
        let acl = [&2u32.to_le_bytes()[..], &acl].concat();
        a.setxattr(&root(), file, b"system.posix_acl_access", &acl, XattrFlags::Any).unwrap();
        b.access(&user, file, Access::READ).unwrap();
        assert_eq!(b.getxattr(&root(), file, b"system.posix_acl_access").unwrap(), acl);
        a.removexattr(&root(), file, b"system.posix_acl_access").unwrap();
        assert!(b.access(&user, file, Access::READ).is_err());
        for len in [0, 1, 900, 5000, 65_000, 10] {
            let value = op::pattern(len as u64, len);
            a.setxattr(&root(), file, b"user.x", &value, XattrFlags::Any).unwrap();
            assert_eq!(b.getxattr(&root(), file, b"user.x").unwrap(), value);
        }
        assert_eq!(b.listxattr(&root(), file).unwrap(), b"user.x\0");
        a.removexattr(&root(), file, b"user.x").unwrap();
        assert_eq!(b.getxattr(&root(), file, b"user.x").unwrap_err().errno(), Errno::ENODATA);
    });
}

#[test]
fn contents_change_on_one_node_and_are_seen_on_the_other() {
    both_ways(|a, b, dir| {
        let file = make_file(a, dir, "file", b"first");
        assert_eq!(content(b, file), b"first");
        a.write(&root(), file, 0, b"other").unwrap();
        assert_eq!(content(b, file), b"other", "overwritten in place");
        b.append(&root(), file, b" end").unwrap();
        assert_eq!(content(a, file), b"other end");
        // Alternately, in sizes around blocks and the largest direct ones.
        let mut expected = content(a, file);
        for (i, len) in [1, 4095, 4096, 4097, 300_000, 2 << 20, 5].into_iter().enumerate() {
            let (writer, reader) = if i % 2 == 0 { (a, b) } else { (b, a) };
            let (at, data) = (expected.len() / 3, op::pattern(i as u64 + 1, len));
            assert_eq!(writer.write(&root(), file, at as u64, &data).unwrap(), len);
            expected.resize(expected.len().max(at + len), 0);
            expected[at..at + len].copy_from_slice(&data);
            assert!(content(reader, file) == expected, "write {i}");
        }
        a.fallocate(&root(), file, op::PUNCH, 4096, 100_000).unwrap();
        expected[4096..104_096].fill(0);
        assert!(content(b, file) == expected, "a hole");
        assert_eq!(b.seek_hole(file, 0).unwrap(), 4096);
        let size = expected.len() as u64;
        b.fallocate(&root(), file, 0, size, 10_000).unwrap();
        expected.resize(expected.len() + 10_000, 0);
        assert!(content(a, file) == expected, "preallocated");
        a.fallocate(&root(), file, op::ZERO, 200_000, 1000).unwrap();
        expected[200_000..201_000].fill(0);
        b.setattr(&root(), file, &SetAttr { size: Some(250_001), ..SetAttr::default() }).unwrap();
        a.setattr(&root(), file, &SetAttr { size: Some(260_000), ..SetAttr::default() }).unwrap();
        expected.truncate(250_001);
        expected.resize(260_000, 0);
        assert!(content(b, file) == expected, "shortened and grown");
        let extents = |v: &Volume| v.extents(file, 0, u64::MAX, 100).unwrap();
        a.sync().unwrap();
        assert_eq!(format!("{:?}", extents(a)), format!("{:?}", extents(b)));
    });
}

#[test]
fn an_unlinked_file_lives_until_the_last_node_has_closed_it() {
    both_ways(|a, b, dir| {
        let file = make_file(a, dir, "file", b"content");
        let [handle, second] = [(); 2].map(|()| b.open_inode(&root(), file, Access::READ).unwrap());
        a.unlink(&root(), dir, b"file").unwrap();
        assert_eq!(content(b, file), b"content");
        assert_eq!(content(a, file), b"content", "by its number, as long as it is open anywhere");
        // A number leads a node to what is linked, or open there already.
        assert!(a.open_inode(&root(), file, Access::READ).is_err_and(|e| e.errno() == Errno::ESTALE));
        drop(handle);
        assert_eq!(content(a, file), b"content");
        a.write(&root(), file, 0, b"changed").unwrap();
        assert_eq!(content(b, file), b"changed");
        drop(second);
        eventually("the file is gone everywhere", || {
            [a, b].iter().all(|v| v.getattr(file).is_err_and(|e| e.errno() == Errno::ESTALE))
        });
    });
}

#[test]
fn listings_keep_their_positions_while_the_other_node_changes_the_directory() {
    both_ways(|a, b, dir| {
        for i in 0..60 {
            make_file(if i % 2 == 0 { a } else { b }, dir, &format!("{i:03}"), b"");
        }
        let expected: Vec<String> = (0..60).map(|i| format!("{i:03}")).collect();
        assert_eq!((names(a, dir), names(b, dir)), (expected.clone(), expected));
        // One lists slowly; the other removes what was listed, adds, and moves.
        let (mut seen, mut cursor, mut turn) = (Vec::new(), 0, 0);
        loop {
            let batch = b.readdir(dir, cursor, 10).unwrap();
            seen.extend(batch.iter().map(|e| String::from_utf8_lossy(e.name).into_owned()));
            if batch.at_end() {
                break;
            }
            cursor = batch.next_cursor();
            if turn < 5 {
                a.unlink(&root(), dir, format!("{turn:03}").as_bytes()).unwrap();
                make_file(a, dir, &format!("new {turn}"), b"");
            }
            turn += 1;
        }
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!(unique.len(), seen.len(), "each entry once");
        for i in 10..60 {
            assert!(seen.contains(&format!("{i:03}")), "{i} was there all the time");
        }
    });
}

#[test]
fn every_step_of_mkdir_rename_rename_rmdir_on_any_node() {
    with_nodes::<3>(|nodes| {
        for case in 0..81 {
            let node = |step: u32| nodes[case / 3usize.pow(step) % 3];
            make_dir(node(0), Ino::ROOT, "one");
            node(1).rename(&root(), (Ino::ROOT, b"one"), (Ino::ROOT, b"two"), RenameFlags::NONE).unwrap();
            node(2).rename(&root(), (Ino::ROOT, b"two"), (Ino::ROOT, b"three"), RenameFlags::NONE).unwrap();
            node(3).rmdir(&root(), Ino::ROOT, b"three").unwrap();
        }
    });
}

/// The original compared ancestors in the wrong order: of two nodes that moved `a` under `b` and `b` under `a` both
/// succeeded, and the loop could be reached from nowhere.
#[test]
fn defect_54_crossing_directory_moves_on_two_nodes_make_no_loop() {
    with_nodes::<2>(|nodes| {
        for round in 0..25 {
            let top = make_dir(nodes[round % 2], Ino::ROOT, &format!("top {round}"));
            let deep = [make_dir(nodes[0], top, "a"), make_dir(nodes[1], top, "b")];
            let inner = deep.map(|d| make_dir(nodes[0], d, "inner"));
            let start = Barrier::new(2);
            let moved = thread::scope(|scope| {
                let move_into = |from: usize| {
                    let (start, node, to) = (&start, nodes[from], inner[1 - from]);
                    let name: &[u8] = [b"a", b"b"][from];
                    scope.spawn(move || {
                        start.wait();
                        node.rename(&root(), (top, name), (to, b"moved"), RenameFlags::NONE).map_err(|e| e.errno())
                    })
                };
                [move_into(0), move_into(1)].map(|t| t.join().unwrap())
            });
            let refused = moved.iter().filter(|m| **m == Err(Errno::EINVAL)).count();
            assert!(moved.iter().filter(|m| m.is_ok()).count() == 1 && refused == 1, "round {round}: {moved:?}");
            assert_eq!(names(nodes[0], top).len(), 1);
        }
    });
}

/// A create that found the name taken by another node left its inode behind. Here one of two creates of a name succeeds, and
/// the check after the test finds no inode without a name.
#[test]
fn defect_55_of_two_creates_of_a_name_on_two_nodes_one_succeeds() {
    with_nodes::<3>(|nodes| {
        for round in 0..40 {
            let name = format!("name {round}");
            let start = Barrier::new(3);
            let made: Vec<_> = thread::scope(|scope| {
                let (start, name) = (&start, &name);
                let makers = nodes.map(|node| {
                    scope.spawn(move || {
                        start.wait();
                        let made = match round % 2 {
                            0 => node.create(&root(), Ino::ROOT, name.as_bytes(), 0o644),
                            _ => node.mkdir(&root(), Ino::ROOT, name.as_bytes(), 0o755),
                        };
                        made.map(|a| a.ino).map_err(|e| e.errno())
                    })
                });
                makers.map(|m| m.join().unwrap()).into_iter().collect()
            });
            let won: Vec<Ino> = made.iter().filter_map(|m| m.ok()).collect();
            assert_eq!(won.len(), 1, "{made:?}");
            assert_eq!(made.iter().filter(|m| **m == Err(Errno::EEXIST)).count(), 2, "{made:?}");
            assert!(nodes.iter().all(|n| find(n, Ino::ROOT, &name) == Ok(won[0])));
        }
    });
}

/// A node whose directory was removed elsewhere still added entries to it. Either the directory goes, or the entry comes.
#[test]
fn defect_56_a_directory_is_removed_or_gets_an_entry_but_not_both() {
    with_nodes::<2>(|[a, b]| {
        let (mut removed, mut filled) = (0, 0);
        for round in 0..60 {
            let dir = make_dir(a, Ino::ROOT, &format!("dir {round}"));
            b.getattr(dir).unwrap();
            let start = Barrier::new(2);
            let (gone, made) = thread::scope(|scope| {
                let remove = scope.spawn(|| {
                    start.wait();
                    a.rmdir(&root(), Ino::ROOT, format!("dir {round}").as_bytes()).map_err(|e| e.errno())
                });
                let make = scope.spawn(|| {
                    start.wait();
                    b.create(&root(), dir, b"late", 0o644).map(|f| f.ino).map_err(|e| e.errno())
                });
                (remove.join().unwrap(), make.join().unwrap())
            });
            match (gone, made) {
                (Ok(()), Err(Errno::ENOENT | Errno::ESTALE)) => removed += 1,
                (Err(Errno::ENOTEMPTY), Ok(file)) => {
                    assert_eq!(find(a, dir, "late"), Ok(file));
                    filled += 1;
                }
                other => panic!("round {round}: {other:?}"),
            }
        }
        assert_eq!(removed + filled, 60);
    });
}

#[test]
fn of_two_renames_to_a_free_name_on_two_nodes_one_succeeds() {
    with_nodes::<2>(|nodes| {
        for round in 0..50 {
            let files = [0, 1].map(|i| make_file(nodes[i], Ino::ROOT, &format!("{round} of {i}"), b""));
            let start = Barrier::new(2);
            let target = format!("{round}");
            let moved = thread::scope(|scope| {
                let movers = [0, 1].map(|i| {
                    let (start, node, target) = (&start, nodes[i], &target);
                    scope.spawn(move || {
                        let from = format!("{round} of {i}");
                        start.wait();
                        let to = (Ino::ROOT, target.as_bytes());
                        node.rename(&root(), (Ino::ROOT, from.as_bytes()), to, RenameFlags::NOREPLACE)
                            .map_err(|e| e.errno())
                    })
                });
                movers.map(|m| m.join().unwrap())
            });
            let winner = moved.iter().position(|m| m.is_ok()).expect("one succeeds");
            assert_eq!(moved[1 - winner], Err(Errno::EEXIST), "{moved:?}");
            assert!(nodes.iter().all(|n| find(n, Ino::ROOT, &target) == Ok(files[winner])));
        }
    });
}

#[test]
fn appends_of_three_nodes_at_once_are_all_there_and_whole() {
    with_nodes::<3>(|nodes| {
        let file = make_file(nodes[0], Ino::ROOT, "log", b"");
        const APPENDS: usize = 60;
        thread::scope(|scope| {
            for (nr, node) in nodes.into_iter().enumerate() {
                scope.spawn(move || {
                    for i in 0..APPENDS {
                        let record = format!("{nr} {i:05}\n");
                        assert_eq!(node.append(&root(), file, record.as_bytes()).unwrap().1, record.len());
                    }
                });
            }
        });
        let all = content(nodes[1], file);
        let lines: Vec<&str> = std::str::from_utf8(&all).unwrap().lines().collect();
        for nr in 0..3 {
            let of: Vec<String> = (0..APPENDS).map(|i| format!("{nr} {i:05}")).collect();
            let found: Vec<&str> = lines.iter().copied().filter(|l| l.starts_with(&format!("{nr} "))).collect();
            assert_eq!(found, of, "in the order in which they were appended");
        }
        assert_eq!(lines.len(), 3 * APPENDS);
    });
}

#[test]
fn nothing_older_than_what_was_announced_is_ever_seen() {
    with_nodes::<3>(|[writer, second, third]| {
        let file = make_file(writer, Ino::ROOT, "file", &0u64.to_le_bytes());
        let (announced, done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for reader in [second, third, writer] {
                let (announced, done) = (&announced, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        let expected = announced.load(Ordering::SeqCst);
                        let mut value = [0; 8];
                        assert_eq!(reader.read(file, 0, &mut value).unwrap(), 8);
                        assert!(u64::from_le_bytes(value) >= expected, "contents");
                        let expected = announced.load(Ordering::SeqCst);
                        assert!(reader.getattr(file).unwrap().mtime.nsec as u64 >= expected, "attributes");
                        let expected = announced.load(Ordering::SeqCst);
                        let later = [expected, expected + 1, expected + 2];
                        let there = later.iter().any(|n| find(reader, Ino::ROOT, &format!("name {n}")).is_ok());
                        let now = announced.load(Ordering::SeqCst);
                        assert!(expected == 0 || there || now > expected + 1, "name {expected}");
                    }
                });
            }
            for i in 1..=150u64 {
                writer.write(&root(), file, 0, &i.to_le_bytes()).unwrap();
                let mtime = Some(SetTime::At(Time { sec: 0, nsec: i as u32 }));
                writer.setattr(&root(), file, &SetAttr { mtime, ..SetAttr::default() }).unwrap();
                if i == 1 {
                    make_file(writer, Ino::ROOT, "name 1", b"");
                } else {
                    let (from, to) = (format!("name {}", i - 1), format!("name {i}"));
                    let (from, to) = ((Ino::ROOT, from.as_bytes()), (Ino::ROOT, to.as_bytes()));
                    writer.rename(&root(), from, to, RenameFlags::NONE).unwrap();
                }
                announced.store(i, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn a_storm_of_stats_does_not_keep_a_writer_waiting_for_ever() {
    with_nodes::<3>(|[writer, second, third]| {
        let dir = make_dir(writer, Ino::ROOT, "dir");
        let files: Vec<Ino> = (0..50).map(|i| make_file(writer, dir, &format!("{i}"), b"")).collect();
        let (done, stats) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for node in [second, third, second, third] {
                let (files, done, stats) = (&files, &done, &stats);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        for file in files {
                            node.getattr(*file).unwrap();
                        }
                        stats.fetch_add(files.len() as u64, Ordering::Relaxed);
                    }
                });
            }
            for (i, file) in files.iter().enumerate() {
                writer.write(&root(), *file, 0, &vec![1; i + 1]).unwrap();
                assert_eq!(second.getattr(*file).unwrap().size, i as u64 + 1);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(stats.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn a_deep_tree_made_by_one_node_is_walked_moved_and_removed_by_others() {
    with_nodes::<3>(|[a, b, c]| {
        let (mut dirs, mut at) = (Vec::new(), Ino::ROOT);
        for i in 0..60 {
            at = make_dir([a, b][i % 2], at, "d");
            make_file(a, at, "f", &[i as u8]);
            dirs.push(at);
        }
        let path = c.ino_path(&root(), at, (Ino(0), 0)).unwrap().path;
        assert_eq!(path, vec![b"d".as_slice(); 60].join(&b'/'));
        b.rename(&root(), (dirs[10], b"d"), (Ino::ROOT, b"moved"), RenameFlags::NONE).unwrap();
        let path = c.ino_path(&root(), at, (Ino(0), 0)).unwrap().path;
        assert_eq!(path.iter().filter(|b| **b == b'/').count(), 48);
        assert_eq!(
            a.rename(&root(), (Ino::ROOT, b"moved"), (at, b"x"), RenameFlags::NONE).unwrap_err().errno(),
            Errno::EINVAL
        );
        for (i, dir) in dirs.iter().enumerate().rev() {
            [b, c][i % 2].unlink(&root(), *dir, b"f").unwrap();
            let (parent, name): (Ino, &[u8]) = match i {
                0 => (Ino::ROOT, b"d"),
                11 => (Ino::ROOT, b"moved"),
                _ => (dirs[i - 1], b"d"),
            };
            [c, a][i % 2].rmdir(&root(), parent, name).unwrap();
        }
        assert!([a, b, c].iter().all(|v| names(v, Ino::ROOT).is_empty()));
    });
}

/// Every call on a random node; all nodes always show what the model says.
fn random_calls_on_random_nodes(seed: u64) {
    with_nodes::<3>(|nodes| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        for nr in 0..400 {
            let op = random_op(&mut rng, &model);
            let node = nodes[rng.random_range(0..3)];
            match model.clone().apply(&op, || Ino(u64::MAX)) {
                Ok(()) => {
                    let made = op.run(node).unwrap_or_else(|e| panic!("call {nr}, {op:?}: {e}"));
                    model.apply(&op, || made.expect("this call makes one")).expect("as just tried");
                }
                Err(expected) => {
                    let found = op.run(node).err().map(|e| e.errno());
                    let open = found.is_some() && model.nested(&op);
                    assert!(open || found == Some(expected), "call {nr}, {op:?}: {found:?}, not {expected:?}");
                }
            }
            if rng.random_range(0..8) == 0 {
                let seen = observe(nodes[rng.random_range(0..3)]).unwrap();
                assert!(seen == model, "after call {nr} model and volume differ in\n{}", model.difference(&seen));
            }
        }
        for node in nodes {
            assert!(observe(node).unwrap() == model);
        }
    });
}

#[test]
fn nodes_together_do_what_the_model_does() {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let seeds = match number("SCOUTFS_TWO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SCOUTFS_TWO_CASES").unwrap_or(4),
    };
    for seed in seeds {
        println!("SCOUTFS_TWO_SEED={seed}");
        random_calls_on_random_nodes(seed);
    }
}

/// A rename put "the old name is gone" into the cache of names before "the new one is there". Who asked for both in between found
/// neither.
#[test]
fn a_rename_is_never_seen_half_done_on_its_own_node() {
    const RENAMES: u64 = 20_000;
    with_nodes::<1>(|[node]| {
        let dir = make_dir(node, Ino::ROOT, "dir");
        make_file(node, dir, "0", b"");
        let (announced, done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        let expected = announced.load(Ordering::SeqCst);
                        let there = (expected..expected + 4).any(|n| find(node, dir, &n.to_string()).is_ok());
                        let now = announced.load(Ordering::SeqCst);
                        assert!(there || now > expected + 2, "neither {expected} nor what follows, {now} is announced");
                    }
                });
            }
            for i in 1..=RENAMES {
                let (from, to) = ((i - 1).to_string(), i.to_string());
                node.rename(&root(), (dir, from.as_bytes()), (dir, to.as_bytes()), RenameFlags::NONE).unwrap();
                announced.store(i, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        });
    });
}
