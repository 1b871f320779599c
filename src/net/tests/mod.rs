//! Tests of the net room.

mod codec;
mod conversation;
mod defects;
mod harness;
mod hostile;
mod property;
mod sequences;
mod vectors;
