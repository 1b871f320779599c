//! Running seeds: one process each, and the sum of what they did.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use scoutfs::sim;

use super::cluster::Cluster;

/// Longest real time of one seed.
const LIMIT: Duration = Duration::from_secs(300);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

pub(crate) fn main() {
    match number("SIM_CHILD") {
        Some(seed) => child(seed),
        None => {
            super::linear::test_the_checker();
            std::process::exit(if parent() { 0 } else { 1 })
        }
    }
}

struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let now = sim::now().as_secs_f64() - 1e6;
        write!(w, "{now:>12.6} {}/{}", sim::node(), sim::thread_name())
    }
}

fn child(seed: u64) {
    if let Ok(level) = std::env::var("SIM_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(level)
            .with_timer(VirtualTime)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        eprintln!("{}", std::backtrace::Backtrace::force_capture());
        // A panic anywhere in the engine is a failure of the run.
        std::process::exit(4);
    }));
    stay_on_one_processor(seed);
    sim::begin(seed);
    let cluster = Cluster::new();
    cluster.prepare();
    let begun = sim::now();
    let time = number("SIM_VIRTUAL").unwrap_or_else(|| [30, 60, 120, 300][sim::below(4) as usize]);
    cluster.run(Duration::from_secs(time));
    let virtual_time = sim::now() - begun;
    let (trace, steps) = sim::trace();
    if let Err(why) = cluster.check() {
        eprintln!("{}\n{why}", cluster.story());
        std::process::exit(5);
    }
    let done = cluster.history.done();
    println!("ok trace {trace:016x} steps {steps} seconds {} operations {done}", virtual_time.as_secs());
    std::process::exit(0);
}

/// One thread runs at a time: handing the baton over on the same processor costs half.
fn stay_on_one_processor(seed: u64) {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    // SAFETY: the set is a plain value, filled by the macros of the C library.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET((seed % processors) as usize, &mut set);
        // Only slower, if the system does not like it.
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// What a seed gave: its line, or what went wrong.
fn run_seed(seed: u64) -> Result<String, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let out = tempfile::tempfile().map_err(|e| e.to_string())?;
    let err = tempfile::tempfile().map_err(|e| e.to_string())?;
    let piped = |f: &std::fs::File| f.try_clone().map(Stdio::from).map_err(|e| e.to_string());
    let mut child = Command::new(me)
        .env("SIM_CHILD", seed.to_string())
        .stdin(Stdio::null())
        .stdout(piped(&out)?)
        .stderr(piped(&err)?)
        .spawn()
        .map_err(|e| e.to_string())?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break Some(status);
        }
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (out, err) = (text(out), text(err));
    if std::env::var_os("SIM_LOG").is_some() {
        eprint!("{err}");
    }
    match status {
        Some(status) if status.success() => Ok(out.trim().lines().last().unwrap_or_default().to_string()),
        Some(status) => Err(format!("{status}\n{err}\n{out}")),
        None => Err(format!("no end within {LIMIT:?} of real time\n{err}\n{out}")),
    }
}

fn text(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    let _ = file.rewind();
    let _ = file.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn field(line: &str, name: &str) -> u64 {
    let mut words = line.split(' ').skip_while(|w| *w != name);
    words.nth(1).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Two runs of a seed must decide alike everywhere.
fn twice(seed: u64) -> Result<String, String> {
    let first = run_seed(seed)?;
    let second = run_seed(seed)?;
    match first == second {
        true => Ok(first),
        false => Err(format!("the seed does not replay:\n{first}\n{second}")),
    }
}

fn report(seed: u64, why: &str) {
    println!("seed {seed} FAILED\n{why}");
    println!(
        "seed {seed} FAILED; again: SIM_SEED={seed} RUSTFLAGS=\"--cfg sim\" CARGO_TARGET_DIR=target/sim cargo test --release --test sim"
    );
}

fn parent() -> bool {
    if let Some(seed) = number("SIM_SEED") {
        match twice(seed) {
            Ok(line) => println!("seed {seed}: {line}"),
            Err(why) => {
                report(seed, &why);
                return false;
            }
        }
        return true;
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let end = first + number("SIM_SEEDS").unwrap_or(1 << 40);
    let until = Instant::now() + Duration::from_secs(number("SIM_SECONDS").unwrap_or(120));
    let (next, ok) = (AtomicU64::new(first), AtomicBool::new(true));
    let totals: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    std::thread::scope(|s| {
        for _ in 0..number("SIM_JOBS").unwrap_or(2) {
            s.spawn(|| {
                while Instant::now() < until {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    // The first one shows that seeds replay.
                    let result = if seed == first { twice(seed) } else { run_seed(seed) };
                    match result {
                        Ok(line) => {
                            let mut totals = totals.lock().expect("not held for long");
                            *totals.entry("seeds").or_default() += 1;
                            for name in ["steps", "seconds", "operations"] {
                                *totals.entry(name).or_default() += field(&line, name);
                            }
                        }
                        Err(why) => {
                            ok.store(false, Ordering::Relaxed);
                            report(seed, &why);
                        }
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().expect("not held for long");
    let hours = totals.get("seconds").copied().unwrap_or(0) as f64 / 3600.0;
    println!("{totals:?}: {hours:.2} simulated hours, seeds {first}..{}", next.into_inner().min(end));
    ok.into_inner() && totals.contains_key("seeds")
}
