//! `node --status DIR`: how the question reaches the node that is mounted at DIR.
//!
//! Not through the mount itself: a look at its files may have to wait for the very leader that is missing. Each node
//! listens at a unix socket that is named after the device number of its mount, which the kernel gives out once; whoever can
//! name the directory can find that number, without a request to the node, and every user of the host may ask.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use scoutfs::Volume;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Nodes answer in much less.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is shown.
const MAX_ANSWER: u64 = 16 << 20;

/// Folders for the sockets: of the system, and of the user for nodes that have no privileges.
fn folders() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("scoutfs"));
    [Some(PathBuf::from("/run/scoutfs")), own].into_iter().flatten().collect()
}

/// The device number of the mount that `dir` is on. The cached one will do, so the node is not asked.
fn socket_name(dir: &Path) -> Outcome<String> {
    let fd = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(&fd, "", flags, StatxFlags::empty())?;
    Ok(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

/// Asks the node that is mounted at `dir`.
pub(crate) fn ask(dir: &Path) -> Outcome<String> {
    let name = socket_name(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for folder in folders() {
        let Ok(stream) = UnixStream::connect(folder.join(&name)) else { continue };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        (&stream).take(MAX_ANSWER).read_to_string(&mut answer)?;
        return Ok(answer);
    }
    Err(format!("no node is mounted at {}", dir.display()).into())
}

/// Removes the socket when the node ends.
pub(crate) struct Answering(PathBuf);

impl Drop for Answering {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Answers questions about the node that is mounted at `dir`, on a thread that ends with the process.
pub(crate) fn answer(volume: &Arc<Volume>, dir: &Path) -> Outcome<Answering> {
    let name = socket_name(dir)?;
    let mut last = String::from("there is no folder for sockets");
    for folder in folders() {
        match listen(&folder, &name) {
            Ok((path, listener)) => {
                let volume = Arc::downgrade(volume);
                thread::Builder::new().name("status".into()).spawn(move || serve(&listener, &volume))?;
                return Ok(Answering(path));
            }
            Err(e) => last = format!("{}: {e}", folder.display()),
        }
    }
    Err(last.into())
}

fn listen(folder: &Path, name: &str) -> std::io::Result<(PathBuf, UnixListener)> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(name);
    // The number is ours now: whoever left the socket is gone.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666))?;
    Ok((path, listener))
}

fn serve(listener: &UnixListener, volume: &Weak<Volume>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        // One who does not read holds up the others only for a moment.
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let Some(text) = volume.upgrade().map(|volume| volume.cluster_status().to_string()) else { return };
        let _ = stream.write_all(text.as_bytes());
    }
}
