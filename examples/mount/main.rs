//! Mounts a scoutfs volume through FUSE, in the foreground.
//!
//! ```text
//! mount [-o OPT,...] META DATA DIR
//! ```
//!
//! Prints `mounted DIR` when the directory is ready, and unmounts cleanly on SIGINT, SIGTERM or `umount DIR`.
//! Options are those of the library (`scoutfs::VolumeOptions::parse`) and, for the front end: `allow_other`, `threads=N`,
//! `max_write_kb=N`.

mod convert;
mod frontend;
mod handles;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use fuser::{Config, MountOption, Session, SessionACL};
use scoutfs::device::{FileDevice, FileOptions};
use scoutfs::{Volume, VolumeOptions};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Parser)]
#[command(about = "Mount a scoutfs volume through FUSE, in the foreground", version)]
struct Args {
    /// Mount options, comma separated; may be repeated. `quorum_slot_nr` defaults to 0, so that a volume on one node
    /// needs no options.
    #[arg(short = 'o', value_name = "OPT,...")]
    options: Vec<String>,
    /// Metadata device or file.
    meta: PathBuf,
    /// Data device or file.
    data: PathBuf,
    /// Directory to mount on.
    dir: PathBuf,
}

/// What the front end itself is told.
struct FrontOptions {
    allow_other: bool,
    threads: usize,
    max_write: u32,
}

fn split_options(lists: &[String]) -> scoutfs::Result<(VolumeOptions, FrontOptions)> {
    let mut volume = VolumeOptions::default();
    let mut front = FrontOptions { allow_other: false, threads: 4, max_write: 1 << 20 };
    let mut rest = Vec::new();
    for option in lists.iter().flat_map(|l| l.split(',')).filter(|o| !o.is_empty()) {
        let number = |v: &str, max: usize| match v.parse::<usize>() {
            Ok(n) if (1..=max).contains(&n) => Ok(n),
            _ => Err(scoutfs::Error::Invalid(format!("option {option}: not in 1..={max}"))),
        };
        match option.split_once('=') {
            None if option == "allow_other" => front.allow_other = true,
            Some(("threads", v)) => front.threads = number(v, 64)?,
            Some(("max_write_kb", v)) => front.max_write = (number(v, 16 << 10)? as u32) << 10,
            _ => rest.push(option),
        }
    }
    volume.parse(&rest.join(","))?;
    if volume.quorum_slot.is_none() && !volume.read_only {
        volume.quorum_slot = Some(0);
    }
    Ok((volume, front))
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mount: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let (options, front) = split_options(&args.options)?;
    // Signals are caught from here on, so that none can end the process half way through opening.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;

    let open = |path| {
        FileDevice::open(
            path,
            &FileOptions { read_only: options.read_only, exclusive: !options.read_only, ..FileOptions::default() },
        )
    };
    let read_only = options.read_only;
    let volume = Arc::new(Volume::open(open(&args.meta)?, open(&args.data)?, options)?);

    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(args.meta.display().to_string()),
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

    let fs = frontend::FrontEnd::new(volume.clone(), front.max_write);
    let mut session = Session::new(fs, &args.dir, &config)?;
    let mut unmounter = session.unmount_callable();
    let ending = Arc::new(AtomicBool::new(false));
    let handle = signals.handle();
    let watcher = std::thread::Builder::new().name("signals".into()).spawn({
        let ending = ending.clone();
        move || {
            for _ in signals.forever() {
                ending.store(true, Ordering::Relaxed);
                if let Err(e) = unmounter.unmount() {
                    eprintln!("mount: cannot unmount: {e}");
                }
            }
        }
    })?;
    println!("mounted {}", args.dir.display());
    let served = session.run();
    handle.close();
    let _ = watcher.join();
    // Whatever ended the session, what was written is made durable and the cluster is told that this mount leaves.
    let volume = Arc::into_inner(volume).ok_or("the front end still holds the volume")?;
    volume.close()?;
    match served {
        Err(e) if !ending.load(Ordering::Relaxed) => Err(e.into()),
        _ => Ok(()),
    }
}
