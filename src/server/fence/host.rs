//! Fencing of mounts of this host, by file locks.
//!
//! **Problem.** After a crash the next mount of the same host must know that the crashed process is gone, and nothing of
//! it can reach the devices any more; nobody on the network can tell.
//!
//! **Idea.** Each mount holds an exclusive lock on a file named after its rid, in a directory that all processes of the
//! host use. The kernel drops the lock when the last descriptor is closed, which at the end of a process comes after
//! its system calls, device writes included, have returned. Whoever gets the lock knows that the mount is gone.
//!
//! What it does not do: it never kills anything, and it knows nothing of mounts on other hosts: a rid without a file is
//! refused.

use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno as OsErrno;

use super::{FenceReason, Fencer};
use crate::error::{Error, Result};
use crate::format::Rid;
use crate::sync::{HashMap, Instant, Mutex, thread};

/// How long a mount that is just dying is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// How often its lock is tried.
const TRY: Duration = Duration::from_millis(50);

/// Confirms that a mount of this host is gone.
///
/// All processes of the host that mount a volume must use the same directory, on a local filesystem that survives a
/// reboot (a directory that does not, like `/run`, loses the marks of the mounts that the reboot has ended, which then
/// cannot be confirmed).
#[derive(Debug)]
pub struct HostFencer {
    dir: PathBuf,
    held: Mutex<HashMap<u64, File>>,
}

impl HostFencer {
    /// Uses `dir`, which is created if it does not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Result<HostFencer> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|e| failed("cannot create", &dir, &e))?;
        Ok(HostFencer { dir, held: Mutex::new(HashMap::default()) })
    }

    fn mark(&self, rid: Rid) -> PathBuf {
        self.dir.join(format!("{:016x}", rid.0))
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Unsupported(format!("fencing: {what} {}: {error}", path.display()))
}

/// Takes the lock; false if somebody holds it.
fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(OsErrno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(failed("cannot lock", path, &e.into())),
    }
}

impl Fencer for HostFencer {
    fn fence(&self, rid: Rid, addr: Option<IpAddr>, reason: FenceReason) -> Result<()> {
        let path = self.mark(rid);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let at = addr.map_or_else(String::new, |a| format!(" at {a}"));
                let what = format!("mount {:016x}{at} must be fenced ({reason}), but is not of this host", rid.0);
                return Err(Error::Unsupported(what));
            }
            Err(e) => return Err(failed("cannot open", &path, &e)),
        };
        let deadline = Instant::now() + WAIT;
        while !try_lock(&file, &path)? {
            if Instant::now() >= deadline {
                return Err(Error::Busy(format!("mount {:016x} must be fenced ({reason}), but is alive here", rid.0)));
            }
            thread::sleep(TRY);
        }
        // The mark stays: a later server may ask again.
        Ok(())
    }

    fn mounted(&self, rid: Rid) -> Result<()> {
        let path = self.mark(rid);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|file| file.sync_all().map(|()| file))
            .map_err(|e| failed("cannot create", &path, &e))?;
        if !try_lock(&file, &path)? {
            return Err(Error::Busy(format!("mount {:016x} exists already", rid.0)));
        }
        // The name must survive a crash of the host together with what the mount writes.
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("cannot sync", &self.dir, &e))?;
        self.held.lock().insert(rid.0, file);
        Ok(())
    }

    fn left(&self, rid: Rid, clean: bool) {
        let file = self.held.lock().remove(&rid.0);
        if clean && file.is_some() {
            // A mark too many does no harm.
            let _ = fs::remove_file(self.mark(rid));
        }
    }
}
