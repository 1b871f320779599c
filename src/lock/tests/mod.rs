//! Tests of the lock room: reference vectors, the scenarios of `spec/04 §12` by name, the defects that must not come
//! back, a simulation of whole clusters with fail-overs, and (with `--cfg loom`) models of the concurrent core.

#[cfg(loom)]
mod models;

#[cfg(not(loom))]
mod client_traces;
#[cfg(not(loom))]
mod node;
#[cfg(not(loom))]
mod scenarios;
#[cfg(not(loom))]
mod server_traces;
#[cfg(not(loom))]
mod service;
#[cfg(not(loom))]
mod simulation;
#[cfg(not(loom))]
mod tables;

use serde_json::Value;

use super::*;
use crate::format::Ino;

/// A reference vector file.
#[cfg(not(loom))]
fn vector(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).expect("vector file")).expect("valid JSON")
}

#[cfg(not(loom))]
fn mode(s: &str) -> Mode {
    *Mode::ALL.iter().find(|m| m.to_string() == s).unwrap_or_else(|| panic!("mode {s}"))
}

/// The vectors call the lock of inode group N "lock N".
fn group(n: u64) -> LockName {
    LockName::inode(Ino(n * LOCK_GROUP))
}
