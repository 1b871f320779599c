//! The only place that chooses the locks, the threads, the clock and the random numbers.
//!
//! Everything else uses these names, so that the same code runs under loom's model checker (`--cfg loom`) and in the simulator of
//! whole clusters (`--cfg sim`), where one thread runs at a time and time is counted. What a node does depends on nothing that
//! does not come from here, from a device or from the network; the iteration order of hash tables included.
//! Mutexes do not poison: a panic in the engine is a bug that tests must find, not a state to carry on from.

#[cfg(loom)]
mod model;
#[cfg(not(loom))]
pub(crate) mod pipeline;
#[cfg(not(any(loom, sim)))]
mod real;
#[cfg(sim)]
pub(crate) mod sim;

#[cfg(loom)]
pub(crate) use model::*;
#[cfg(not(any(loom, sim)))]
pub(crate) use real::*;
#[cfg(sim)]
pub(crate) use sim::*;
