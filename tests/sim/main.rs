//! Whole clusters under a seed: the real engine on a simulated network, disks and clock.
//!
//! ```text
//! RUSTFLAGS="--cfg sim" CARGO_TARGET_DIR=target/sim cargo test --release --test sim
//! ```
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SIM_SEED` | run this seed only, twice, and compare the traces | |
//! | `SIM_FIRST` | the first seed | 1 |
//! | `SIM_SEEDS` | so many seeds | no limit |
//! | `SIM_SECONDS` | real seconds after which no more seeds are begun | 120 |
//! | `SIM_JOBS` | seeds at the same time | 2 |
//! | `SIM_VIRTUAL` | simulated seconds with faults, for each seed | drawn |
//! | `SIM_LOG` | print what happens, and what the engine logs at this level | |
//! | `SIM_HOLD` | a failing run waits for a debugger | |
//!
//! Each seed runs in a process of its own, because crashed nodes keep their memory and threads.

#[cfg(sim)]
mod cluster;
#[cfg(sim)]
mod history;
#[cfg(sim)]
mod linear;
#[cfg(sim)]
mod run;
#[cfg(sim)]
mod work;

fn main() {
    #[cfg(sim)]
    run::main();
    #[cfg(not(sim))]
    println!("the simulator is a build of its own: RUSTFLAGS=\"--cfg sim\" CARGO_TARGET_DIR=target/sim (see .ci/run)");
}
