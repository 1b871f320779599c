//! The sharded cache.
