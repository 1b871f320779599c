//! One node of a cluster as a process: nodes meet over TCP at the addresses of the quorum slots, and share the two devices.
//!
//! ```text
//! node [-o OPT,...] META DATA [--mount DIR] [--exec SCRIPT]
//! node --status DIR
//! ```
//!
//! With `--mount` the volume is shown at DIR like `mount` does, until it is unmounted or a signal comes; with `--exec` the
//! operations of SCRIPT (`-`: standard input) are carried out one after the other, and the node leaves (see
//! `node/script.rs` for the language). With both, the script runs while the directory is mounted, and the mount stays.
//! With neither, the node serves until a signal comes: a member that only votes and leads.
//!
//! `--status DIR` asks the node that is mounted at DIR how the cluster stands, one field a line.

#[path = "../mount/convert.rs"]
mod convert;
#[path = "../mount/crew.rs"]
mod crew;
#[path = "../mount/frontend.rs"]
mod frontend;
#[path = "../mount/handles.rs"]
mod handles;
#[path = "../mount/kernel_cache.rs"]
mod kernel_cache;
#[path = "../mount/mapped.rs"]
mod mapped;
#[path = "../mount/options.rs"]
mod options;
#[path = "../mount/requests.rs"]
mod requests;
mod script;
#[path = "../mount/session.rs"]
mod session;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use scoutfs::Volume;

// A third less processor time and memory than with the system's allocator (`cargo bench --bench volume`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(about = "One node of a scoutfs cluster, or a look at one", version)]
#[command(after_help = format!("{}\n\n{}", options::HELP, script::HELP))]
struct Args {
    /// Options, comma separated; may be repeated.
    #[arg(short = 'o', value_name = "OPT,...")]
    options: Vec<String>,
    /// Show the volume at this directory.
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Carry out the operations of this file.
    #[arg(long, value_name = "SCRIPT")]
    exec: Option<PathBuf>,
    /// Ask the node that is mounted here how the cluster stands.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["mount", "exec", "meta", "data", "options"])]
    status: Option<PathBuf>,
    /// Metadata device.
    #[arg(required_unless_present = "status")]
    meta: Option<PathBuf>,
    /// Data device.
    #[arg(required_unless_present = "status")]
    data: Option<PathBuf>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("node: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Outcome {
    if let Some(dir) = &args.status {
        print!("{}", status::ask(dir)?);
        return Ok(());
    }
    let (Some(meta), Some(data)) = (&args.meta, &args.data) else { return Err("META and DATA are needed".into()) };
    let options = options::Options::parse(&args.options, true)?;
    let script = args.exec.as_deref().map(script::read).transpose()?;
    let mut signals = session::catch_signals()?;
    let volume = Arc::new(options.open(meta, data)?);
    let done = match (&args.mount, script) {
        (Some(dir), script) => mounted(&volume, meta, dir, &options, script, signals),
        (None, Some(script)) => script::run(&volume, &script),
        (None, None) => {
            println!("running");
            let _ = signals.forever().next();
            Ok(())
        }
    };
    // Whatever happened, what was written is made durable and the cluster is told that this node leaves.
    close(volume)?;
    done
}

/// Leaves in order, once a last question about the status has been answered.
fn close(mut volume: Arc<Volume>) -> Outcome {
    for _ in 0..500 {
        match Arc::try_unwrap(volume) {
            Ok(volume) => return Ok(volume.close()?),
            Err(still) => volume = still,
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err("the volume is still in use".into())
}

/// Serves the directory, and runs the script beside it.
fn mounted(
    volume: &Arc<Volume>,
    name: &std::path::Path,
    dir: &std::path::Path,
    options: &options::Options,
    script: Option<Vec<script::Line>>,
    signals: signal_hook::iterator::Signals,
) -> Outcome {
    let how = (options.volume.read_only, &options.front);
    let (mut answering, mut failed) = (None, None);
    let served = std::thread::scope(|scope| {
        let (answering, failed) = (&mut answering, &mut failed);
        session::serve(volume, name, dir, how, signals, || {
            match status::answer(volume, dir) {
                Ok(started) => *answering = Some(started),
                Err(e) => eprintln!("node: --status will not work: {e}"),
            }
            if let Some(script) = script {
                scope.spawn(move || *failed = script::run(volume, &script).err().map(|e| e.to_string()));
            }
        })
    });
    drop(answering);
    served?;
    failed.map_or(Ok(()), |e| Err(e.into()))
}
