//! Prints all metadata of a scoutfs volume.
//!
//! ```text
//! cargo run --release --example dump -- meta.img | less
//! ```

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use scoutfs::Result;
use scoutfs::device::{self, FileOptions};
use scoutfs::offline::{DumpOptions, dump};

/// Print the super block, quorum blocks, allocators, trees and items of a scoutfs volume.
#[derive(Parser)]
#[command(name = "dump")]
struct Args {
    /// Leave out free extents, list and search entries, and filesystem items
    #[arg(short = 'S', long)]
    skip_likely_huge: bool,
    /// Metadata device: a path or nbd://host:port/export
    meta: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dump failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let meta = device::open(&args.meta, &FileOptions { read_only: true, ..FileOptions::default() })?;
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    dump(&*meta, &DumpOptions { skip_likely_huge: args.skip_likely_huge }, &mut out)?;
    // A reader that closed the pipe has seen enough.
    let _ = out.flush();
    Ok(())
}
