//! Election datagrams (`spec/05 §2.4`, `§3.3`).

use std::mem::size_of;
use std::net::SocketAddr;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::config::slot_addr;
use crate::format::crc;
use crate::format::layout::{QuorumConfig, QuorumMessage};

/// Length of a datagram.
pub(crate) const MESSAGE_BYTES: usize = size_of::<QuorumMessage>();

/// Bytes that the checksum covers.
const CHECKED: usize = MESSAGE_BYTES - size_of::<u32>();

/// What a member says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum MessageKind {
    /// Vote for me.
    RequestVote = 0,
    /// I do.
    Vote = 1,
    /// I lead.
    Heartbeat = 2,
    /// I lead no more.
    Resignation = 3,
}

/// A message that has passed its checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    /// What it says.
    pub(crate) kind: MessageKind,
    /// Slot of the sender.
    pub(crate) from: u8,
    /// Its term.
    pub(crate) term: u64,
}

impl Message {
    /// The datagram.
    pub(crate) fn encode(&self, fsid: u64) -> [u8; MESSAGE_BYTES] {
        let mut wire = QuorumMessage::new_zeroed();
        wire.fsid.set(fsid);
        wire.term.set(self.term);
        wire.kind = self.kind as u8;
        wire.from = self.from;
        let sum = crc(&wire.as_bytes()[..CHECKED]);
        wire.crc.set(sum);
        let mut bytes = [0; MESSAGE_BYTES];
        bytes.copy_from_slice(wire.as_bytes());
        bytes
    }

    /// Decodes a datagram; `None` if it must be dropped.
    pub(crate) fn decode(bytes: &[u8], fsid: u64, config: &QuorumConfig) -> Option<Message> {
        let wire = QuorumMessage::read_from_bytes(bytes).ok()?;
        if wire.crc.get() != crc(&bytes[..CHECKED]) || wire.fsid.get() != fsid {
            return None;
        }
        slot_addr(config, usize::from(wire.from))?;
        let kind = match wire.kind {
            0 => MessageKind::RequestVote,
            1 => MessageKind::Vote,
            2 => MessageKind::Heartbeat,
            3 => MessageKind::Resignation,
            _ => return None,
        };
        Some(Message { kind, from: wire.from, term: wire.term.get() })
    }

    /// Does the datagram come from the host of its slot? Members bind their sockets to their slots' addresses, so any
    /// other source is an impostor (`spec/05` S16).
    pub(crate) fn is_from(&self, source: SocketAddr, config: &QuorumConfig) -> bool {
        slot_addr(config, usize::from(self.from)).is_some_and(|addr| addr.ip() == source.ip())
    }
}
