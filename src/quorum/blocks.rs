//! Quorum blocks: the 15 blocks of 4 KiB at block 17 of the metadata device (`spec/05 §2.3`, `§3.2`).
//!
//! Nobody writes another slot's block. An update changes one event, and is durable when the call returns.

use std::time::Duration;

use zerocopy::IntoBytes;

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::check::validate_quorum_block;
use crate::format::consts::{QUORUM_BLKNO, QUORUM_EVENT_BEGIN, QUORUM_EVENTS, QUORUM_SLOTS, SMALL_BYTES};
use crate::format::layout::{QuorumBlock, QuorumBlockEvent, Timespec};
use crate::format::seal_block;
use crate::sync::{Arc, thread};

/// What a quorum block records; the value is the index of the event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum QuorumEvent {
    /// The member starts.
    Begin = QUORUM_EVENT_BEGIN as u8,
    /// Its term grew.
    Term,
    /// It won an election.
    Elect,
    /// Its server is up: every older leader has been fenced.
    Fence,
    /// Its server has completely stopped.
    Stop,
    /// It takes part no more.
    End,
}

impl QuorumEvent {
    /// Index in the block.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// The blocks of all slots as read from the device; unreadable ones as the error.
pub(crate) struct SlotBlocks(pub(crate) Vec<Result<QuorumBlock>>);

impl SlotBlocks {
    /// The block of a slot.
    pub(crate) fn get(&self, slot: usize) -> Result<&QuorumBlock> {
        match self.0.get(slot) {
            Some(Ok(block)) => Ok(block),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::invalid(format!("no quorum slot {slot}"))),
        }
    }

    /// The greatest term in any event that was ever written, in the readable blocks of these slots.
    pub(crate) fn greatest_term(&self, slots: impl Iterator<Item = usize>) -> u64 {
        slots
            .filter_map(|slot| self.get(slot).ok())
            .flat_map(|block| &block.events)
            .filter(|event| event.rid.get() != 0)
            .map(|event| event.term.get())
            .max()
            .unwrap_or(0)
    }
}

/// An event of a block.
pub(crate) fn event(block: &QuorumBlock, event: QuorumEvent) -> &QuorumBlockEvent {
    &block.events[event.index()]
}

/// The quorum blocks of a metadata device.
pub(crate) struct QuorumDisk {
    device: Arc<dyn BlockDevice>,
    fsid: u64,
}

const BLOCK: usize = SMALL_BYTES;
const _: () = assert!(size_of::<QuorumBlock>() <= BLOCK && QUORUM_EVENTS == 6);

fn offset(slot: usize) -> u64 {
    (QUORUM_BLKNO + slot as u64) * SMALL_BYTES as u64
}

/// How often an event is tried to be recorded, and the pause between.
const RECORD_TRIES: usize = 3;
const RECORD_PAUSE: Duration = Duration::from_millis(20);

impl QuorumDisk {
    /// The quorum blocks of the volume `fsid` on its metadata device.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, fsid: u64) -> QuorumDisk {
        QuorumDisk { device, fsid }
    }

    /// Reads the blocks of all slots, in one access if the device allows it.
    pub(crate) fn read_all(&self) -> SlotBlocks {
        let mut bytes = vec![0; QUORUM_SLOTS * BLOCK];
        if self.device.read_at(offset(0), &mut bytes).is_ok() {
            let blocks = bytes.chunks_exact(BLOCK).enumerate();
            return SlotBlocks(blocks.map(|(slot, block)| validate_quorum_block(block, self.fsid, slot)).collect());
        }
        SlotBlocks((0..QUORUM_SLOTS).map(|slot| self.read(slot)).collect())
    }

    fn read(&self, slot: usize) -> Result<QuorumBlock> {
        let mut block = vec![0; BLOCK];
        self.device.read_at(offset(slot), &mut block)?;
        validate_quorum_block(&block, self.fsid, slot)
    }

    /// Records an event in the block of the own slot. Durable when it returns.
    ///
    /// A device error is tried again a few times, because a member that cannot record its events has to leave for good.
    ///
    /// Fails if the block cannot be read, or if (for any event but BEGIN) another mount has begun to use the slot.
    pub(crate) fn record(&self, slot: usize, what: QuorumEvent, rid: u64, term: u64) -> Result<()> {
        for _ in 1..RECORD_TRIES {
            match self.try_record(slot, what, rid, term) {
                Err(Error::Device { .. }) => thread::sleep(RECORD_PAUSE),
                done => return done,
            }
        }
        self.try_record(slot, what, rid, term)
    }

    fn try_record(&self, slot: usize, what: QuorumEvent, rid: u64, term: u64) -> Result<()> {
        let mut block = self.read(slot)?;
        let begun = event(&block, QuorumEvent::Begin).rid.get();
        if what != QuorumEvent::Begin && begun != rid {
            let detail = format!("mount {begun:016x} uses the slot, not only mount {rid:016x}");
            return Err(Error::corrupt(format!("quorum block of slot {slot}"), detail));
        }
        block.write_nr += 1;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        block.events[what.index()] = QuorumBlockEvent {
            write_nr: block.write_nr,
            rid: rid.into(),
            term: term.into(),
            ts: Timespec { sec: (now.tv_sec as u64).into(), nsec: (now.tv_nsec as u32).into(), pad: [0; 4] },
        };
        self.device.write_durable(offset(slot), &encode(&block))
    }
}

/// The 4 KiB of a block, with its checksum.
pub(crate) fn encode(block: &QuorumBlock) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    bytes[..size_of::<QuorumBlock>()].copy_from_slice(block.as_bytes());
    seal_block(&mut bytes);
    bytes
}

/// A block in which nothing has been recorded, as mkfs writes it.
#[cfg(test)]
pub(crate) fn fresh(fsid: u64, slot: usize) -> QuorumBlock {
    use zerocopy::{FromBytes, FromZeros};
    let mut block = QuorumBlock::new_zeroed();
    block.hdr.magic = crate::format::consts::MAGIC_QUORUM.into();
    block.hdr.fsid = fsid.into();
    block.hdr.seq = 1.into();
    block.hdr.blkno = (QUORUM_BLKNO + slot as u64).into();
    let (sealed, _) = QuorumBlock::read_from_prefix(&encode(&block)).expect("long enough");
    sealed
}
