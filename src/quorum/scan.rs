//! What follows from the quorum blocks (`spec/05 §3.5`, `§3.6`). Pure functions over blocks that were read before.
//!
//! Terms are only compared, never subtracted: any value may stand in a block. An event that was never written has term
//! 0.

use std::net::SocketAddr;

use super::blocks::{QuorumEvent, SlotBlocks, event};
use super::config::{present_slots, slot_addr};
use crate::error::{Errno, Result, fail};
use crate::format::layout::{QuorumBlock, QuorumConfig};

/// A leader that may still be writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leader {
    /// Its slot.
    pub(crate) slot: usize,
    /// Its mount.
    pub(crate) rid: u64,
    /// The term it was elected in.
    pub(crate) term: u64,
    /// Its slot's address.
    pub(crate) addr: SocketAddr,
    /// It was heard from a moment ago. So it knows, or will know at once, that it leads no more, and may be about to record
    /// that it has stopped.
    pub(crate) stepping_down: bool,
}

fn term(block: &QuorumBlock, what: QuorumEvent) -> u64 {
    event(block, what).term.get()
}

/// The slot that claims to have the server, and the term it was elected in. Unreadable blocks are errors, or skipped.
pub(crate) fn leader_slot(config: &QuorumConfig, blocks: &SlotBlocks, skip: bool) -> Result<Option<(usize, u64)>> {
    let mut best: Option<(usize, u64)> = None;
    for (slot, _) in present_slots(config) {
        let block = match blocks.get(slot) {
            Ok(block) => block,
            Err(_) if skip => continue,
            Err(error) => return Err(error),
        };
        let elect = term(block, QuorumEvent::Elect);
        if elect > term(block, QuorumEvent::Stop) && best.is_none_or(|(_, t)| elect > t) {
            best = Some((slot, elect));
        }
    }
    Ok(best)
}

/// Address and term of the server. `ENOENT` when no slot claims to have one; EIO if the block of a present slot cannot be
/// read.
pub(crate) fn find_server(config: &QuorumConfig, blocks: &SlotBlocks) -> Result<(SocketAddr, u64)> {
    match leader_slot(config, blocks, false)? {
        Some((slot, term)) => Ok((slot_addr(config, slot).ok_or(Errno::ENOENT)?, term)),
        None => fail(Errno::ENOENT),
    }
}

/// The leaders recorded in one slot's block that may not have stopped: the last one elected there, and the one before it
/// whose ELECT event has been overwritten.
pub(crate) fn running_leaders(slot: usize, addr: SocketAddr, block: &QuorumBlock) -> impl Iterator<Item = Leader> {
    let (elect, fence) = (event(block, QuorumEvent::Elect), event(block, QuorumEvent::Fence));
    let stop = term(block, QuorumEvent::Stop);
    let last = (elect.term.get() > stop).then_some(elect);
    let before = (stop < fence.term.get() && fence.term < elect.term).then_some(fence);
    let leader = move |e: &crate::format::layout::QuorumBlockEvent| Leader {
        slot,
        rid: e.rid.get(),
        term: e.term.get(),
        addr,
        stepping_down: false,
    };
    [last, before].into_iter().flatten().map(leader).collect::<Vec<_>>().into_iter()
}

/// Do the blocks say that this leader has completely stopped? False if its block cannot be read.
pub(crate) fn has_stopped(config: &QuorumConfig, blocks: &SlotBlocks, leader: &Leader) -> bool {
    let (Some(addr), Ok(block)) = (slot_addr(config, leader.slot), blocks.get(leader.slot)) else { return false };
    running_leaders(leader.slot, addr, block).all(|l| (l.rid, l.term) != (leader.rid, leader.term))
}

/// The greatest term in which a leader has fenced all older ones.
pub(crate) fn greatest_fence(config: &QuorumConfig, blocks: &SlotBlocks) -> Result<u64> {
    let mut greatest = 0;
    for (slot, _) in present_slots(config) {
        greatest = term(blocks.get(slot)?, QuorumEvent::Fence).max(greatest);
    }
    Ok(greatest)
}

/// The leaders that a server elected in `term` must fence before it trusts the metadata, in slot order. The blocks must
/// have been read after the own ELECT event was durable.
pub(crate) fn leaders_to_fence(config: &QuorumConfig, blocks: &SlotBlocks, rid: u64, term: u64) -> Result<Vec<Leader>> {
    let fenced = greatest_fence(config, blocks)?;
    let mut leaders = Vec::new();
    for (slot, addr) in present_slots(config) {
        let running = running_leaders(slot, addr, blocks.get(slot)?);
        leaders.extend(running.filter(|l| l.term != 0 && l.term >= fenced && l.term <= term && l.rid != rid));
    }
    Ok(leaders)
}
