//! Tests of the quorum room.
