//! Election of the leader, and the quorum blocks that say who leads.
//!
//! **Problem.** Exactly one node may write the shared trees, and every node must find it, with nothing shared but the
//! metadata device.
//!
//! **Idea.** A raft-like vote over datagrams makes it likely that there is one leader; events in one 4 KiB block per
//! member, and fencing of every older leader found there, make it certain (`spec/05 §3`).
//!
//! | file | concept |
//! |---|---|
//! | `config` | the slots, votes needed, addresses |
//! | `blocks` | quorum blocks: reading all, updating the own one |
//! | `scan` | pure conclusions from the blocks: where is the server, whom to fence |
//! | `message` | election datagrams |
//! | `election` | the election as a state machine without clock, socket or thread |
//! | `member` | the thread that drives it |
//! | `farewell` | who may leave (`spec/05 §5.10`) |

mod blocks;
mod config;
mod election;
mod farewell;
mod member;
mod message;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use blocks::QuorumDisk;
pub(crate) use config::{present_slots, slot_addr, validate_config, votes_needed};
pub(crate) use farewell::{MountedState, farewells_to_answer};
pub(crate) use member::{MemberConfig, QuorumMember, ServerControl, ServerStart, ServerState};
#[cfg(feature = "internals")]
pub(crate) use message::Message;
pub(crate) use scan::{Leader, find_server};
