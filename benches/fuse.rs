//! The FUSE front end against a filesystem that does nothing but remember names, built with the same library and the same
//! mount options: what is left is the cost of the volume. Then the same with caches that other nodes can invalidate.
//!
//! ```text
//! cargo bench --bench fuse            # 20,000 files; needs root and /dev/fuse
//! ```

#[path = "../examples/mount/convert.rs"]
mod convert;
#[path = "../examples/mount/crew.rs"]
mod crew;
#[path = "../examples/mount/frontend.rs"]
mod frontend;
#[path = "../examples/mount/handles.rs"]
mod handles;
#[path = "../examples/mount/kernel_cache.rs"]
mod kernel_cache;
#[path = "../examples/mount/mapped.rs"]
mod mapped;
#[path = "../examples/mount/requests.rs"]
mod requests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session,
};
use scoutfs::device::FileDevice;
use scoutfs::offline::{MkfsOptions, mkfs};
use scoutfs::{Volume, VolumeOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads that receive requests.
const THREADS: usize = 4;
const TTL: Duration = Duration::from_secs(3600);

/// Names in a hash map, nothing else.
struct Nothing {
    names: Mutex<HashMap<(u64, Vec<u8>), FileAttr>>,
    next: AtomicU64,
}

impl Nothing {
    fn make(&self, parent: INodeNo, name: &OsStr, kind: FileType) -> FileAttr {
        let a = attr(self.next.fetch_add(1, Ordering::Relaxed), kind);
        self.names.lock().unwrap().insert((parent.0, name.as_encoded_bytes().to_vec()), a);
        a
    }
}

fn attr(ino: u64, kind: FileType) -> FileAttr {
    let now = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Nothing {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [InitFlags::FUSE_NO_OPEN_SUPPORT, InitFlags::FUSE_NO_OPENDIR_SUPPORT, InitFlags::FUSE_POSIX_ACL] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.names.lock().unwrap().get(&(parent.0, name.as_encoded_bytes().to_vec())) {
            Some(a) => reply.entry(&TTL, a, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }
    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino.0, FileType::Directory));
    }
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }
    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.entry(&TTL, &self.make(parent, name, FileType::Directory), Generation(0));
    }
    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let a = self.make(parent, name, FileType::RegularFile);
        reply.created(&TTL, &a, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }
    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.names.lock().unwrap().remove(&(parent.0, name.as_encoded_bytes().to_vec()));
        reply.ok();
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::DefaultPermissions, MountOption::NoAtime];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

/// Operations a second of create, stat (first and again, from the kernel's cache) and unlink.
fn measure(dir: &Path, files: usize) -> [(&'static str, f64); 4] {
    let dir = dir.join("d");
    fs::create_dir(&dir).unwrap();
    let path = |i: usize| dir.join(format!("file-{i:07}"));
    let rate = |op: &dyn Fn(usize)| {
        let start = Instant::now();
        (0..files).for_each(op);
        files as f64 / start.elapsed().as_secs_f64()
    };
    let create = rate(&|i| {
        OpenOptions::new().write(true).create_new(true).open(path(i)).unwrap();
    });
    // Names and attributes are asked for again once the kernel has dropped its caches.
    let _ = fs::write("/proc/sys/vm/drop_caches", "2");
    let first = rate(&|i| {
        fs::symlink_metadata(path(i)).unwrap();
    });
    let again = rate(&|i| {
        fs::symlink_metadata(path(i)).unwrap();
    });
    let unlink = rate(&|i| fs::remove_file(path(i)).unwrap());
    [("create", create), ("stat, kernel cache dropped", first), ("stat, kernel cache", again), ("unlink", unlink)]
}

/// A new volume, mounted alone or with what other nodes would require of it.
fn measure_volume(folder: &Path, dir: &Path, files: usize, shared: bool) -> [(&'static str, f64); 4] {
    let (meta, data) = (folder.join("meta"), folder.join("data"));
    let options = MkfsOptions {
        allow_small: true,
        quorum_slots: vec!["0,127.0.0.1,12345".parse().unwrap()],
        ..MkfsOptions::default()
    };
    for path in [&meta, &data] {
        let _ = fs::remove_file(path);
    }
    mkfs(&*FileDevice::create(&meta, 8 << 30).unwrap(), &*FileDevice::create(&data, 8 << 30).unwrap(), &options)
        .unwrap();
    let volume = Arc::new(Volume::open_paths(&meta, &data, VolumeOptions::member(0)).unwrap());
    let cache = shared.then(|| Arc::new(kernel_cache::KernelCache::new()));
    let front = requests::Requests::new(volume.clone(), 1 << 20, THREADS, cache.clone());
    let session = Session::new(front, dir, &config()).unwrap();
    if let Some(cache) = cache {
        cache.connect(session.notifier(), session.as_fd().try_clone_to_owned().unwrap());
        volume.add_front_end(cache);
    }
    let session = session.spawn().unwrap();
    let measured = measure(dir, files);
    session.umount_and_join().unwrap();
    Arc::into_inner(volume).unwrap().close().unwrap();
    measured
}

fn main() {
    let files = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(20_000);
    if File::open("/dev/fuse").is_err() {
        println!("not measured: /dev/fuse cannot be opened");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("mnt");
    fs::create_dir(&dir).unwrap();

    let nothing = Nothing { names: Mutex::default(), next: AtomicU64::new(2) };
    let session = fuser::spawn_mount(nothing, &dir, &config()).unwrap();
    let theirs = measure(&dir, files);
    session.umount_and_join().unwrap();

    let alone = measure_volume(folder.path(), &dir, files, false);
    let cluster = measure_volume(folder.path(), &dir, files, true);
    for (title, ours) in [("volume", alone), ("as in a cluster", cluster)] {
        println!("{:<28} {title:>16} {:>12} {:>6}", "", "nothing", "ratio");
        for ((what, a), (_, b)) in ours.iter().zip(&theirs) {
            println!("{what:<28} {a:>16.0} {b:>12.0} {:>6.2}", a / b);
        }
    }
}
