//! What a node does: it mounts, works in several tasks, and leaves when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scoutfs::namespace::{Caller, RenameFlags, SetAttr, XattrFlags};
use scoutfs::sim::{self, below, between, one_in};
use scoutfs::{Errno, Error, Ino, Volume};

use super::cluster::{Cluster, Life};
use super::history::{Object, Op, What};

/// Bytes of a register file: one sector, whose content changes as a whole.
const FILE_BYTES: usize = 4096;
/// Names of one directory.
pub(crate) const NAMES: u8 = 4;
/// What an empty file, or a file without the attribute, is taken for.
pub(crate) const NOTHING: u64 = u64::MAX / 4;
const ATTRIBUTE: &[u8] = b"user.value";

/// Contents are told apart by their number.
static NEXT_VALUE: AtomicU64 = AtomicU64::new(1);

fn content(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(FILE_BYTES / 8)
}

/// The number of a content, if it is one.
fn value_of(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes.len() == FILE_BYTES && content(value) == bytes).then_some(value)
}

/// Registers and directories, made before the run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Objects {
    pub(crate) files: Vec<Ino>,
    pub(crate) dirs: Vec<Ino>,
    /// Names move between the directories.
    pub(crate) joint: bool,
}

impl Objects {
    /// Makes them on a fresh volume.
    pub(crate) fn make(volume: &Volume, files: usize, dirs: usize) -> Result<Objects, Error> {
        let root = Caller::root();
        let mut made = Objects { joint: one_in(3), ..Objects::default() };
        for i in 0..files {
            let attr = volume.create(&root, Ino::ROOT, format!("file-{i}").as_bytes(), 0o644)?;
            volume.write(&root, attr.ino, 0, &content(0))?;
            made.files.push(attr.ino);
        }
        for i in 0..dirs {
            made.dirs.push(volume.mkdir(&root, Ino::ROOT, format!("dir-{i}").as_bytes(), 0o755)?.ino);
        }
        volume.sync()?;
        Ok(made)
    }
}

/// One task of a node.
struct Task<'a> {
    cluster: &'a Cluster,
    volume: &'a Volume,
    node: u32,
    machine: usize,
}

/// The name with this number in its directory.
fn name(nr: u8) -> [u8; 1] {
    [b'a' + nr % NAMES]
}

impl Task<'_> {
    /// Notes the call, makes it, notes the result. An error that is none of those that `known` explains ends the node.
    fn run(&self, object: Object, intent: Op, call: impl FnOnce() -> Result<Op, Error>) -> Result<(), Error> {
        let history = &self.cluster.history;
        let nr = history.call(self.node, What::Do(object, intent));
        let op = call()?;
        history.back(nr, What::Do(object, op));
        Ok(())
    }

    fn file(&self) -> Result<(), Error> {
        let at = below(self.cluster.objects().files.len() as u64) as usize;
        let ino = self.cluster.objects().files[at];
        let object = Object::File(at);
        if one_in(16) {
            return self.run(object, Op::Write(NOTHING), || {
                let empty = SetAttr { size: Some(0), ..SetAttr::default() };
                self.volume.setattr(&Caller::root(), ino, &empty)?;
                Ok(Op::Write(NOTHING))
            });
        }
        if below(2) == 0 {
            let value = NEXT_VALUE.fetch_add(1, Ordering::Relaxed);
            return self.run(object, Op::Write(value), || {
                let n = self.volume.write(&Caller::root(), ino, 0, &content(value))?;
                assert_eq!(n, FILE_BYTES, "a short write");
                Ok(Op::Write(value))
            });
        }
        self.run(object, Op::Read(u64::MAX), || {
            let mut buf = vec![0; FILE_BYTES + 8];
            let n = self.volume.read(ino, 0, &mut buf)?;
            buf.truncate(n);
            match value_of(&buf) {
                _ if n == 0 => Ok(Op::Read(NOTHING)),
                Some(value) => Ok(Op::Read(value)),
                // Cut off, it may see anything; nobody believes it any more.
                None if self.cluster.history.is_gone(self.node) => Err(Error::Shutdown("cut off".into())),
                None => {
                    sim::fail(&format!("node {} read no content of file {at}: {:x?}", self.node, &buf[..16.min(n)]))
                }
            }
        })
    }

    /// An attribute, which is a register like a file.
    fn attribute(&self) -> Result<(), Error> {
        let at = below(self.cluster.objects().files.len() as u64) as usize;
        let ino = self.cluster.objects().files[at];
        let (object, root, v) = (Object::Attribute(at), Caller::root(), self.volume);
        match below(5) {
            0 => self.run(object, Op::Write(NOTHING), || match v.removexattr(&root, ino, ATTRIBUTE) {
                Ok(()) | Err(Error::Posix(Errno::ENODATA)) => Ok(Op::Write(NOTHING)),
                Err(e) => Err(e),
            }),
            1 | 2 => {
                let value = NEXT_VALUE.fetch_add(1, Ordering::Relaxed);
                self.run(object, Op::Write(value), || {
                    v.setxattr(&root, ino, ATTRIBUTE, &value.to_le_bytes(), XattrFlags::Any)?;
                    Ok(Op::Write(value))
                })
            }
            _ => self.run(object, Op::Read(u64::MAX), || match v.getxattr(&root, ino, ATTRIBUTE) {
                Ok(value) => Ok(Op::Read(u64::from_le_bytes(value.try_into().unwrap_or([0xff; 8])))),
                Err(Error::Posix(Errno::ENODATA)) => Ok(Op::Read(NOTHING)),
                Err(e) => Err(e),
            }),
        }
    }

    fn directory(&self) -> Result<(), Error> {
        let objects = self.cluster.objects();
        let at = below(objects.dirs.len() as u64) as usize;
        let other = if objects.joint { below(objects.dirs.len() as u64) as usize } else { at };
        let object = Object::Dir(if objects.joint { 0 } else { at });
        let (root, v) = (Caller::root(), self.volume);
        // Names are numbered through all directories that belong together.
        let first = |dir: usize| if objects.joint { dir as u8 * NAMES } else { 0 };
        let (a, b) = (first(at) + below(u64::from(NAMES)) as u8, first(other) + below(u64::from(NAMES)) as u8);
        let (dir, to) = (objects.dirs[at], objects.dirs[other]);
        match below(11) {
            0..=2 => self.run_create(object, dir, a),
            3 | 4 => self.run(object, Op::Unlink(a, true), || match v.unlink(&root, dir, &name(a)) {
                Ok(()) => Ok(Op::Unlink(a, true)),
                Err(Error::Posix(Errno::ENOENT)) => Ok(Op::Unlink(a, false)),
                Err(e) => Err(e),
            }),
            5 | 6 => self.run(object, Op::Rename(a, b, true), || {
                match v.rename(&root, (dir, &name(a)), (to, &name(b)), RenameFlags::NONE) {
                    Ok(()) => Ok(Op::Rename(a, b, true)),
                    Err(Error::Posix(Errno::ENOENT)) => Ok(Op::Rename(a, b, false)),
                    Err(e) => Err(e),
                }
            }),
            7 => self.run(object, Op::Exchange(a, b, true), || {
                match v.rename(&root, (dir, &name(a)), (to, &name(b)), RenameFlags::EXCHANGE) {
                    Ok(()) => Ok(Op::Exchange(a, b, true)),
                    Err(Error::Posix(Errno::ENOENT)) => Ok(Op::Exchange(a, b, false)),
                    Err(e) => Err(e),
                }
            }),
            8 => self.run(object, Op::List(first(at), Vec::new()), || {
                let batch = v.readdir(dir, 0, 100)?;
                let mut all: Vec<(u8, u64)> = batch
                    .iter()
                    .filter(|e| e.name != b"." && e.name != b"..")
                    .map(|e| (first(at) + e.name[0] - b'a', e.ino.0))
                    .collect();
                all.sort_unstable();
                Ok(Op::List(first(at), all))
            }),
            _ => self.run(object, Op::Lookup(a, Some(u64::MAX)), || match v.lookup(&root, dir, &name(a)) {
                Ok(attr) => Ok(Op::Lookup(a, Some(attr.ino.0))),
                Err(Error::Posix(Errno::ENOENT)) => Ok(Op::Lookup(a, None)),
                Err(e) => Err(e),
            }),
        }
    }

    /// An interrupted create leaves a file whose inode nobody knows; the checker needs one, so it is not tried where others
    /// cannot tell: the inode is found out by whoever looks first.
    fn run_create(&self, object: Object, dir: Ino, a: u8) -> Result<(), Error> {
        let unknown = u64::MAX - NEXT_VALUE.fetch_add(1, Ordering::Relaxed);
        self.run(object, Op::Create(a, Some(unknown)), || {
            match self.volume.create(&Caller::root(), dir, &name(a), 0o644) {
                Ok(attr) => Ok(Op::Create(a, Some(attr.ino.0))),
                Err(Error::Posix(Errno::EEXIST)) => Ok(Op::Create(a, None)),
                Err(e) => Err(e),
            }
        })
    }

    fn sync(&self) -> Result<(), Error> {
        let history = &self.cluster.history;
        let nr = history.call(self.node, What::Sync);
        self.volume.sync()?;
        history.back(nr, What::Sync);
        Ok(())
    }

    fn work(&self) {
        let think = Duration::from_millis([2, 20, 100, 400][below(4) as usize]);
        while self.cluster.life(self.machine) == Life::Work {
            let done = match below(20) {
                0 => self.sync(),
                1..=9 => self.directory(),
                10..=12 => self.attribute(),
                _ => self.file(),
            };
            if let Err(e) = done {
                self.cluster.failed(self.machine, self.node, &e);
                return;
            }
            self.cluster.progress(self.machine);
            sim::sleep(between(Duration::ZERO, think));
        }
    }
}

/// The life of a node from mounting to leaving; it may be cut short anywhere.
pub(crate) fn node_main(cluster: &Arc<Cluster>, machine: usize, node: u32) {
    let volume = match cluster.open(machine, node) {
        Ok(volume) => Arc::new(volume),
        Err(e) => return cluster.failed(machine, node, &e),
    };
    cluster.mounted(machine);
    let tasks: Vec<_> = (0..1 + below(3))
        .map(|nr| {
            let (cluster, volume) = (cluster.clone(), volume.clone());
            sim::spawn_on(node, &format!("task-{nr}"), move || {
                Task { cluster: &cluster, volume: &volume, node, machine }.work();
            })
        })
        .collect();
    for task in tasks {
        let _ = task.join();
    }
    if cluster.life(machine) == Life::Failed {
        return;
    }
    let volume = Arc::into_inner(volume).expect("all tasks have ended");
    let sync = cluster.history.call(node, What::Sync);
    match volume.close() {
        Ok(()) => {
            cluster.history.back(sync, What::Sync);
            cluster.left(machine);
        }
        Err(e) => cluster.failed(machine, node, &e),
    }
}
