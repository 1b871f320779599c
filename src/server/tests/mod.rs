//! The server core driven directly, over volumes in memory.

mod account;
mod compactions;
mod crash;
mod desk;
mod distrust;
mod harness;
mod members;
mod merges;
mod start;
mod transactions;
