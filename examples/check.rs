//! Checks a scoutfs volume that nobody has mounted. Changes nothing.
//!
//! ```text
//! cargo run --release --example check -- meta.img data.img
//! ```
//!
//! Exit status: 0 the volume is consistent (warnings and notes may be printed), 1 it is not, 2 it cannot be checked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use scoutfs::Result;
use scoutfs::device::{self, BlockDevice, FileOptions};
use scoutfs::offline::{CheckOptions, CheckProgress, CheckReport, Finding, check};
use serde_json::{Value, json};

/// Check a scoutfs volume: is every block accounted for, does every item decode, do all items agree?
#[derive(Parser)]
#[command(name = "check")]
struct Args {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// List at most this many findings
    #[arg(long, value_name = "NR", default_value_t = 1000)]
    max_findings: usize,
    /// Metadata device: a path or nbd://host:port/export
    meta: PathBuf,
    /// Data device, likewise
    data: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(report) => {
            let text = if args.json { format!("{:#}\n", to_json(&report)) } else { to_text(&report) };
            // A reader that closed the pipe (head) has seen enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(e) => {
            if args.json {
                println!("{:#}", json!({ "error": e.to_string() }));
            }
            eprintln!("cannot check: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<CheckReport> {
    let (meta, data) = (open(&args.meta)?, open(&args.data)?);
    let bar = ProgressBar::new(0);
    let style = "{msg:24} {wide_bar} {pos}/{len} blocks {elapsed}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let progress = |p: &CheckProgress| {
        bar.set_length(p.blocks_used.max(p.blocks_read));
        bar.set_position(p.blocks_read);
        bar.set_message(p.phase);
    };
    let options =
        CheckOptions { progress: Some(&progress), max_findings: args.max_findings, ..CheckOptions::default() };
    let report = check(&*meta, &*data, &options);
    bar.finish_and_clear();
    report
}

fn open(path: &Path) -> Result<Arc<dyn BlockDevice>> {
    device::open(path, &FileOptions { read_only: true, ..FileOptions::default() })
}

fn to_text(report: &CheckReport) -> String {
    let mut out = String::new();
    text(&mut out, report).expect("writing to a string cannot fail");
    out
}

fn text(out: &mut String, report: &CheckReport) -> std::fmt::Result {
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let listed = report.findings.len() as u64;
    let all = report.errors + report.warnings;
    if all > listed {
        writeln!(out, "and {} more", all - listed)?;
    }
    writeln!(out, "volume {:016x}, format version {}", report.fsid, report.format_version)?;
    writeln!(
        out,
        "  metadata blocks: {} used, {} free, {} lost",
        report.used_meta_blocks, report.free_meta_blocks, report.leaked_meta_blocks
    )?;
    writeln!(
        out,
        "  data blocks: {} used, {} free, {} lost",
        report.used_data_blocks, report.free_data_blocks, report.leaked_data_blocks
    )?;
    writeln!(
        out,
        "  {} inodes, {} entries, {} xattrs, {} extents, {} items in all; {} log trees, {} search entries",
        report.inodes,
        report.entries,
        report.xattrs,
        report.extents,
        report.items,
        report.log_trees,
        report.search_entries
    )?;
    match (report.errors, report.warnings) {
        (0, 0) => writeln!(out, "The volume is consistent."),
        (0, w) => writeln!(out, "The volume is consistent, with {w} warnings."),
        (e, w) => writeln!(out, "The volume is INCONSISTENT: {e} errors, {w} warnings."),
    }
}

fn to_json(report: &CheckReport) -> Value {
    json!({
        "fsid": format!("{:016x}", report.fsid),
        "format_version": report.format_version,
        "clean": report.is_clean(),
        "errors": report.errors,
        "warnings": report.warnings,
        "meta_blocks": {
            "used": report.used_meta_blocks,
            "free": report.free_meta_blocks,
            "lost": report.leaked_meta_blocks,
        },
        "data_blocks": {
            "used": report.used_data_blocks,
            "free": report.free_data_blocks,
            "lost": report.leaked_data_blocks,
        },
        "inodes": report.inodes,
        "entries": report.entries,
        "xattrs": report.xattrs,
        "extents": report.extents,
        "items": report.items,
        "log_trees": report.log_trees,
        "search_entries": report.search_entries,
        "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
    })
}

fn finding_json(f: &Finding) -> Value {
    json!({
        "severity": f.severity.name(),
        "class": f.class.name(),
        "message": f.message,
        "block": f.block,
        "data_block": f.data_block,
        "key": f.key.map(|k| k.to_string()),
        "ino": f.ino.map(|i| i.0),
        "path": f.path,
    })
}
