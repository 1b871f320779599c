//! The namespace against a real server, over memory devices.

mod basic;
mod defects;
mod errnos;
mod harness;
mod invariants;
mod model;
mod random;
mod speed;
mod stress;
