//! Tests of the quorum room.

mod harness;
mod member;
mod rules;
mod simulation;
mod vectors;
