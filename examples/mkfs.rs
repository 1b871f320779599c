//! Makes a scoutfs volume on two devices or files.
//!
//! ```text
//! cargo run --example mkfs -- -A --create-meta 1G --create-data 4G -Q 0,127.0.0.1,42000 meta.img data.img
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use scoutfs::device::{self, BlockDevice, FileDevice, FileOptions};
use scoutfs::offline::{MkfsOptions, QuorumSlot, mkfs, parse_size};
use scoutfs::{Error, Result};

/// Make a scoutfs volume on a metadata device and a data device.
#[derive(Parser)]
#[command(name = "mkfs")]
struct Args {
    /// Overwrite devices that hold a known filesystem or partition table
    #[arg(short = 'f', long)]
    force: bool,
    /// Allow devices smaller than 64 GiB
    #[arg(short = 'A', long)]
    allow_small_size: bool,
    /// Format version, 1 or 2
    #[arg(short = 'V', long, value_name = "VERS", default_value_t = 2)]
    format_version: u64,
    /// Use at most this much of the metadata device (suffix K, M, G, T or P)
    #[arg(short = 'm', long, value_name = "SIZE", value_parser = parse_size)]
    max_meta_size: Option<u64>,
    /// Use at most this much of the data device
    #[arg(short = 'd', long, value_name = "SIZE", value_parser = parse_size)]
    max_data_size: Option<u64>,
    /// Give each mount data space of its own zones of this many 4 KiB blocks
    #[arg(short = 'z', long, value_name = "BLOCKS")]
    data_alloc_zone_blocks: Option<u64>,
    /// Make META a sparse file of this size first
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    create_meta: Option<u64>,
    /// Make DATA a sparse file of this size first
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    create_data: Option<u64>,
    /// Quorum slot: number 0 to 14, IPv4 address and port of the member there; at least one
    #[arg(short = 'Q', long, value_name = "NR,ADDR,PORT", required = true)]
    quorum_slot: Vec<QuorumSlot>,
    /// Metadata device: a path or nbd://host:port/export
    meta: PathBuf,
    /// Data device, likewise
    data: PathBuf,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mkfs failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let meta = open(&args.meta, args.create_meta)?;
    if same_file(&args.meta, &args.data) {
        return Err(Error::Invalid("META and DATA are the same device".into()));
    }
    let data = open(&args.data, args.create_data)?;
    let options = MkfsOptions {
        format_version: args.format_version,
        quorum_slots: args.quorum_slot,
        max_meta_bytes: args.max_meta_size,
        max_data_bytes: args.max_data_size,
        data_alloc_zone_blocks: args.data_alloc_zone_blocks,
        allow_small: args.allow_small_size,
        force: args.force,
        identity: None,
    };
    let report = mkfs(&*meta, &*data, &options)?;
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    print!("{report}");
    Ok(())
}

fn open(path: &Path, create: Option<u64>) -> Result<Arc<dyn BlockDevice>> {
    if let Some(size) = create {
        FileDevice::create(path, size)?;
    }
    let options = FileOptions { exclusive: true, ..FileOptions::default() };
    device::open(path, &options)
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
