//! What is built of this room under the loom model checker: the gate.

// The models use only what they need.
#![expect(dead_code, reason = "used by the models")]

mod gate;
