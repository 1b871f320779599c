//! A volume shown at a directory through FUSE, until it is unmounted or a signal comes.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::mount::UnmountFlags;
use scoutfs::{Error, FrontEnd, InodeGroup, Volume};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::kernel_cache::KernelCache;
use crate::options::FrontOptions;
use crate::requests::Requests;

/// Takes a mount away that has ended by itself: a directory that only gives errors would look like a mount to whoever
/// watches over it, and programs would go on with what they have mapped.
struct Ended {
    dir: PathBuf,
    /// `None` once it is not mounted any more: there may be something else.
    mounted: Mutex<Option<SessionUnmounter>>,
}

impl FrontEnd for Ended {
    fn invalidate(&self, _group: InodeGroup) {}

    fn ended(&self, why: &Error) {
        eprintln!("{}: the mount has ended: {why}", self.dir.display());
        // By force: whoever waits for an answer gets an error. Only root may.
        let force = UnmountFlags::FORCE | UnmountFlags::DETACH;
        if let Some(mut mounted) = self.mounted.lock().expect("not poisoned").take()
            && rustix::mount::unmount(&self.dir, force).is_err()
            && let Err(e) = mounted.unmount()
        {
            eprintln!("cannot unmount: {e}");
        }
    }
}

/// Signals that end a mount in order. They are caught from here on, so that none can end the process half way through
/// opening.
pub(crate) fn catch_signals() -> std::io::Result<Signals> {
    Signals::new([SIGINT, SIGTERM, SIGHUP])
}

/// Serves `dir` until it is unmounted. `name` is what `mount` and `df` show; `ready` is called when the directory can be used.
pub(crate) fn serve(
    volume: &Arc<Volume>,
    name: &Path,
    dir: &Path,
    (read_only, front): (bool, &FrontOptions),
    mut signals: Signals,
    ready: impl FnOnce(),
) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(name.display().to_string()),
        MountOption::Subtype("scoutfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    if read_only {
        config.mount_options.push(MountOption::RO);
    }
    if rustix::process::geteuid().is_root() {
        config.mount_options.extend([MountOption::Dev, MountOption::Suid]);
    }
    config.acl = if front.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(front.threads);
    config.clone_fd = true;

    let cache = front.shared.then(|| Arc::new(KernelCache::new()));
    let mut session = {
        let requests = Requests::new(volume.clone(), front.max_write, front.threads, cache.clone());
        Session::new(requests, dir, &config)?
    };
    if let Some(cache) = cache {
        cache.connect(session.notifier(), session.as_fd().try_clone_to_owned()?);
        volume.add_front_end(cache);
    }
    let ended = Arc::new(Ended { dir: dir.to_owned(), mounted: Mutex::new(Some(session.unmount_callable())) });
    volume.add_front_end(ended.clone());
    if let Some(why) = volume.ended() {
        return Err(why.into());
    }
    let mut unmounter = session.unmount_callable();
    let ending = Arc::new(AtomicBool::new(false));
    let handle = signals.handle();
    let watcher = std::thread::Builder::new().name("signals".into()).spawn({
        let ending = ending.clone();
        move || {
            for _ in signals.forever() {
                ending.store(true, Ordering::Relaxed);
                if let Err(e) = unmounter.unmount() {
                    eprintln!("cannot unmount: {e}");
                }
            }
        }
    })?;
    ready();
    println!("mounted {}", dir.display());
    let served = session.run();
    ended.mounted.lock().expect("not poisoned").take();
    handle.close();
    let _ = watcher.join();
    match served {
        Err(e) if !ending.load(Ordering::Relaxed) => Err(e.into()),
        _ => Ok(()),
    }
}
