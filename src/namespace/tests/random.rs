//! Random operations against the model: same answers, same errnos, same listings, across commits, cache drops and
//! remounts; then the invariants.

use std::sync::Arc;

use proptest::prelude::*;

use super::harness::{Cluster, TestMount};
use super::invariants;
use super::model::{Answer, Id, Model};
use crate::error::{Error, Result};
use crate::format::{DirentKind, Ino, S_IFIFO};
use crate::namespace::{Access, Caller, OpenInode, RenameFlags, SetAttr, XattrFlags};

#[derive(Clone, Debug)]
enum Op {
    Make { dir: u8, name: u8, kind: u8, mode: u8 },
    Tmpfile { dir: u8 },
    Link { id: u8, dir: u8, name: u8 },
    Remove { dir: u8, name: u8, want_dir: bool },
    Rename { from: (u8, u8), to: (u8, u8), flags: u8 },
    Lookup { dir: u8, name: u8 },
    Open { id: u8 },
    Close { handle: u8 },
    Chmod { id: u8, mode: u8 },
    Xattr { id: u8, name: u8, len: Option<u16> },
    List { dir: u8 },
    Sync,
    DropCaches,
    Remount,
}

fn ops() -> impl Strategy<Value = (bool, Op)> {
    let n = || 0u8..7;
    let d = || prop_oneof![3 => 0u8..4, 1 => any::<u8>()];
    let op = prop_oneof![
        8 => (d(), n(), 0u8..5, any::<u8>()).prop_map(|(dir, name, kind, mode)| Op::Make { dir, name, kind, mode }),
        1 => d().prop_map(|dir| Op::Tmpfile { dir }),
        3 => (any::<u8>(), d(), n()).prop_map(|(id, dir, name)| Op::Link { id, dir, name }),
        5 => (d(), n(), any::<bool>()).prop_map(|(dir, name, want_dir)| Op::Remove { dir, name, want_dir }),
        8 => ((d(), n()), (d(), n()), 0u8..4).prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        2 => (d(), n()).prop_map(|(dir, name)| Op::Lookup { dir, name }),
        2 => any::<u8>().prop_map(|id| Op::Open { id }),
        2 => any::<u8>().prop_map(|handle| Op::Close { handle }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(id, mode)| Op::Chmod { id, mode }),
        3 => (any::<u8>(), 0u8..3, proptest::option::weighted(0.7, 0u16..3000))
            .prop_map(|(id, name, len)| Op::Xattr { id, name, len }),
        2 => d().prop_map(|dir| Op::List { dir }),
        1 => Just(Op::Sync),
        1 => Just(Op::DropCaches),
        1 => Just(Op::Remount),
    ];
    (prop::bool::weighted(0.8), op)
}

fn name(n: u8) -> Vec<u8> {
    match n {
        0..5 => vec![b'a' + n],
        5 => vec![b'l'; 255],
        _ => vec![b'm'; 256],
    }
}

struct World {
    cluster: Arc<Cluster>,
    mount: Option<TestMount>,
    model: Model,
    /// Inode numbers of the model's inodes.
    inos: Vec<Ino>,
    handles: Vec<(Id, OpenInode)>,
}

fn same<T>(what: &Op, got: Result<T>, want: Answer<T>) -> Option<T>
where
    T: PartialEq + std::fmt::Debug,
{
    let got = got.map_err(|e: Error| e.errno());
    assert_eq!(got, want, "{what:?}");
    got.ok()
}

impl World {
    fn new() -> World {
        let cluster = Cluster::new();
        let mount = Some(cluster.mount());
        World { cluster, mount, model: Model::new(), inos: vec![Ino::ROOT], handles: Vec::new() }
    }

    fn m(&self) -> &TestMount {
        self.mount.as_ref().unwrap()
    }

    /// Low numbers are the first directories.
    fn dir(&self, n: u8) -> Id {
        let dirs: Vec<Id> = (0..self.inos.len()).filter(|i| self.model.nodes[*i].kind == DirentKind::Dir).collect();
        if n < 4 { dirs[usize::from(n) % dirs.len()] } else { self.any(n) }
    }

    fn any(&self, n: u8) -> Id {
        usize::from(n) % self.inos.len()
    }

    fn step(&mut self, root: bool, op: &Op) {
        let caller = if root { Caller::root() } else { Caller::user(1000, 1000) };
        let (c, uid) = (&caller, caller.uid);
        let ns = self.m().ns.clone();
        match *op {
            Op::Make { dir, name: n, kind, mode } => {
                let (dir, n, mode) = (self.dir(dir), name(n), u32::from(mode) << 1 | 0o400);
                let ino = self.inos[dir];
                let (got, kind) = match kind {
                    0 | 1 => (ns.create(c, ino, &n, mode), DirentKind::Regular),
                    2 => (ns.mkdir(c, ino, &n, mode | 0o100), DirentKind::Dir),
                    3 => (ns.mknod(c, ino, &n, S_IFIFO | mode, 0), DirentKind::Fifo),
                    _ => (ns.symlink(c, ino, &n, &n), DirentKind::Symlink),
                };
                let mode = if kind == DirentKind::Dir { mode | 0o100 } else { mode };
                let want = self.model.make(uid, dir, &n, kind, mode);
                if let Ok(id) = want {
                    self.model.nodes[id].target = if kind == DirentKind::Symlink { n } else { Vec::new() };
                    self.inos.push(got.as_ref().map_or(Ino(0), |a| a.ino));
                }
                same(op, got.map(|_| ()), want.map(|_| ()));
            }
            Op::Tmpfile { dir } => {
                let dir = self.dir(dir);
                let got = ns.tmpfile(c, self.inos[dir], 0o600, false);
                let want = self.model.tmpfile(uid, dir, 0o600);
                if let (Ok((attr, handle)), Ok(id)) = (&got, &want) {
                    self.inos.push(attr.ino);
                    self.handles.push((*id, handle.clone()));
                }
                same(op, got.map(|_| ()), want.map(|_| ()));
            }
            Op::Link { id, dir, name: n } => {
                let (id, dir, n) = (self.any(id), self.dir(dir), name(n));
                let got = ns.link(c, self.inos[id], self.inos[dir], &n).map(|_| ());
                same(op, got, self.model.link(uid, id, dir, &n));
            }
            Op::Remove { dir, name: n, want_dir } => {
                let (dir, n) = (self.dir(dir), name(n));
                let ino = self.inos[dir];
                let got = if want_dir { ns.rmdir(c, ino, &n) } else { ns.unlink(c, ino, &n) };
                same(op, got, self.model.remove(uid, dir, &n, want_dir));
            }
            Op::Rename { from, to, flags } => {
                let flags = [RenameFlags::NONE, RenameFlags::NONE, RenameFlags::NOREPLACE, RenameFlags::EXCHANGE]
                    [usize::from(flags)];
                let (f, t) = (self.dir(from.0), self.dir(to.0));
                let (old, new) = (name(from.1), name(to.1));
                let got = ns.rename(c, (self.inos[f], &old), (self.inos[t], &new), flags);
                same(op, got, self.model.rename(uid, (f, &old), (t, &new), flags));
            }
            Op::Lookup { dir, name: n } => {
                let (dir, n) = (self.dir(dir), name(n));
                let got = ns.lookup(c, self.inos[dir], &n).map(|a| a.ino);
                same(op, got, self.model.lookup(uid, dir, &n).map(|id| self.inos[id]));
            }
            Op::Open { id } => {
                let id = self.any(id);
                let got = ns.open(c, self.inos[id], Access::READ);
                let want = self.model.open(uid, id);
                if let Ok(handle) = &got {
                    self.handles.push((id, handle.clone()));
                }
                same(op, got.map(|_| ()), want);
            }
            Op::Close { handle } => {
                if !self.handles.is_empty() {
                    let (id, handle) = self.handles.remove(usize::from(handle) % self.handles.len());
                    drop(handle);
                    self.model.close(id);
                }
            }
            Op::Chmod { id, mode } => {
                let (id, mode) = (self.any(id), u32::from(mode) << 2);
                let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                let got = ns.setattr(c, self.inos[id], &set).map(|_| ());
                same(op, got, self.model.chmod(uid, id, mode));
            }
            Op::Xattr { id, name: n, len } => {
                let (id, n) = (self.any(id), [b"user.", &[b'a' + n][..]].concat());
                let value = len.map(|l| vec![l as u8; usize::from(l)]);
                let got = match &value {
                    Some(v) => ns.setxattr(c, self.inos[id], &n, v, XattrFlags::Any),
                    None => ns.removexattr(c, self.inos[id], &n),
                };
                same(op, got, self.model.set_xattr(uid, id, &n, value));
                same(op, ns.getxattr(c, self.inos[id], &n), self.model.get_xattr(uid, id, &n));
            }
            Op::List { dir } => self.compare(self.dir(dir)),
            Op::Sync => ns.sync().unwrap(),
            Op::DropCaches => {
                ns.sync().unwrap();
                self.m().node.locks.purge();
                self.m().node.items.purge();
            }
            Op::Remount => {
                for (id, handle) in self.handles.drain(..) {
                    drop(handle);
                    self.model.close(id);
                }
                drop(ns);
                self.mount.take().unwrap().unmount();
                self.mount = Some(self.cluster.mount());
            }
        }
    }

    /// One inode, and its listing and attributes by name.
    fn compare(&self, id: Id) {
        let (ns, node, ino) = (&self.m().ns, &self.model.nodes[id], self.inos[id]);
        if node.gone {
            assert_eq!(ns.getattr(ino).unwrap_err().errno(), crate::Errno::ESTALE);
            return;
        }
        let a = ns.getattr(ino).unwrap();
        let got = (a.kind, a.mode & 0o7777, a.uid, a.nlink, a.size);
        assert_eq!(got, (node.kind, node.mode, node.uid, node.nlink, node.size()), "inode {id}");
        match node.kind {
            DirentKind::Symlink => assert_eq!(ns.readlink(ino).unwrap(), node.target),
            DirentKind::Dir => {
                let mut listed = Vec::new();
                let mut cursor = 0;
                loop {
                    let batch = ns.readdir_plus(ino, cursor, 3).unwrap();
                    for e in batch.iter() {
                        assert_eq!(e.attr.map(|a| a.ino), Some(e.ino));
                        listed.push((e.name.to_vec(), e.ino));
                    }
                    cursor = batch.next_cursor();
                    if batch.at_end() {
                        break;
                    }
                }
                let want: Vec<_> = node.entries.iter().map(|(n, i)| (n.clone(), self.inos[*i])).collect();
                assert_eq!(listed[2..], want[..], "listing of {id}");
            }
            _ => {}
        }
        let mut names = ns.listxattr(&Caller::root(), ino).unwrap();
        names.pop();
        let mut names: Vec<_> = names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
        names.sort();
        assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>());
    }

    fn compare_all(&self) {
        for id in 0..self.inos.len() {
            self.compare(id);
        }
        let alive = self.model.nodes.iter().filter(|n| !n.gone).count();
        let end = self.inos.iter().map(|i| i.0 + 1).max().unwrap_or(0);
        assert_eq!(invariants::check(self.m(), end), alive);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_a_simple_file_system(ops in prop::collection::vec(ops(), 1..120)) {
        let mut world = World::new();
        for (root, op) in &ops {
            world.step(*root, op);
        }
        world.compare_all();
        world.step(true, &Op::Remount);
        world.compare_all();
        world.mount.take().unwrap().unmount();
    }
}
