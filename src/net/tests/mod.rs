//! Tests of the net room.

mod codec;
mod conversation;
mod defects;
mod harness;
mod property;
mod sequences;
mod vectors;
