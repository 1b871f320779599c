//! Fencing of mounts of this host, by file locks.
//!
//! **Problem.** After a crash the next mount of the same host must know that the crashed process is gone, and nothing of
//! it can reach the devices any more; nobody on the network can tell.
//!
//! **Idea.** Each mount holds an exclusive lock on a file named after its rid, in a directory that all processes of the
//! host use. The kernel drops the lock when the last descriptor is closed, which at the end of a process comes after
//! its system calls, device writes included, have returned. Whoever gets the lock knows that the mount is gone.
//!
//! A mount that is alive but does not answer (stopped, or cut off from the server) has to go as well: the file says which process
//! it is, and with [`HostFencer::killing`] that process is killed if it does not end by itself. Its start time, which is
//! written with the number, keeps another process that got the same number safe.
//!
//! What it does not do: it knows nothing of mounts on other hosts (a rid without a file is refused), and it never kills the
//! process it is part of.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno as OsErrno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{FenceReason, Fencer};
use crate::error::{Error, Result};
use crate::format::Rid;
use crate::sync::{HashMap, Instant, Mutex, thread};

/// How long a mount that is just dying is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// How long a mount that is alive may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(1);

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
    kill: bool,
}

impl HostFencer {
    /// Uses `dir`, which is created if it does not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Result<HostFencer> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|e| failed("cannot create", &dir, &e))?;
        Ok(HostFencer { dir, held: Mutex::new(HashMap::default()), kill: false })
    }

    /// Kills the process of a mount that must be fenced and is alive (SIGKILL), instead of refusing.
    pub fn killing(mut self) -> HostFencer {
        self.kill = true;
        self
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

/// When a process was started, in ticks since the boot; `None` if there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Kills the process that the mark at `path` names, if it is the one that wrote it, and not this one.
pub(super) fn kill_holder(path: &Path, rid: Rid) -> Result<()> {
    let text = fs::read_to_string(path).map_err(|e| failed("cannot read", path, &e))?;
    let (pid, started) = text.trim_end().split_once(' ').unwrap_or_default();
    let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else { return Ok(()) };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(number) = number.filter(|_| pid > 1 && pid != std::process::id()) else { return Ok(()) };
    // A handle first: from here on the number cannot come to mean another process.
    let Ok(handle) = pidfd_open(number, PidfdFlags::empty()) else { return Ok(()) };
    if start_time(pid) == Some(started) {
        tracing::warn!(pid, rid = format_args!("{:016x}", rid.0), "killing a mount that has to be fenced");
        pidfd_send_signal(handle, Signal::KILL).map_err(|e| failed("cannot kill the process of", path, &e.into()))?;
    }
    Ok(())
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
        let start = Instant::now();
        let mut kill = self.kill;
        while !try_lock(&file, &path)? {
            if kill && start.elapsed() >= GRACE {
                kill = false;
                kill_holder(&path, rid)?;
            }
            if start.elapsed() >= WAIT {
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
            .and_then(|mut file| {
                let pid = std::process::id();
                file.write_all(format!("{pid} {}\n", start_time(pid).unwrap_or_default()).as_bytes())?;
                file.sync_all().map(|()| file)
            })
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
