//! What a node does: it mounts, works in several tasks, and leaves when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scoutfs::namespace::{Caller, RenameFlags};
use scoutfs::sim::{self, below, between};
use scoutfs::{Errno, Error, Ino, Volume};

use super::cluster::{Cluster, Life};
use super::history::{Object, Op, What};

/// Bytes of a register file: one sector, whose content changes as a whole.
const FILE_BYTES: usize = 4096;
const NAMES: u8 = 4;

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
}

impl Objects {
    /// Makes them on a fresh volume.
    pub(crate) fn make(volume: &Volume, files: usize, dirs: usize) -> Result<Objects, Error> {
        let root = Caller::root();
        let mut made = Objects::default();
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

fn name(nr: u8) -> [u8; 1] {
    [b'a' + nr]
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
                Some(value) => Ok(Op::Read(value)),
                // Cut off, it may see anything; nobody believes it any more.
                None if self.cluster.history.is_gone(self.node) => Err(Error::Shutdown("cut off".into())),
                None => {
                    sim::fail(&format!("node {} read no content of file {at}: {:x?}", self.node, &buf[..16.min(n)]))
                }
            }
        })
    }

    fn directory(&self) -> Result<(), Error> {
        let at = below(self.cluster.objects().dirs.len() as u64) as usize;
        let dir = self.cluster.objects().dirs[at];
        let object = Object::Dir(at);
        let (root, v) = (Caller::root(), self.volume);
        let (a, b) = (below(u64::from(NAMES)) as u8, below(u64::from(NAMES)) as u8);
        match below(10) {
            0..=2 => self.run_create(object, dir, a),
            3 | 4 => self.run(object, Op::Unlink(a, true), || match v.unlink(&root, dir, &name(a)) {
                Ok(()) => Ok(Op::Unlink(a, true)),
                Err(Error::Posix(Errno::ENOENT)) => Ok(Op::Unlink(a, false)),
                Err(e) => Err(e),
            }),
            5 | 6 => self.run(object, Op::Rename(a, b, true), || {
                match v.rename(&root, (dir, &name(a)), (dir, &name(b)), RenameFlags::default()) {
                    Ok(()) => Ok(Op::Rename(a, b, true)),
                    Err(Error::Posix(Errno::ENOENT)) => Ok(Op::Rename(a, b, false)),
                    Err(e) => Err(e),
                }
            }),
            7 => self.run(object, Op::List(Vec::new()), || {
                let batch = v.readdir(dir, 0, 100)?;
                let mut all: Vec<(u8, u64)> = batch
                    .iter()
                    .filter(|e| e.name != b"." && e.name != b"..")
                    .map(|e| (e.name[0] - b'a', e.ino.0))
                    .collect();
                all.sort_unstable();
                Ok(Op::List(all))
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
