//! Tests of the net room.

mod codec;
mod conversation;
mod harness;
mod property;
mod sequences;
mod vectors;
