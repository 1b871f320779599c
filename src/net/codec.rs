//! Frames: a 32-byte header and at most 1100 bytes of payload (`spec/05 §2.5`).
//!
//! Invariants:
//!
//! 1. Everything in a received header is checked before anything is done with it (`spec/05 §4.3`); memory used for
//!    receiving is one fixed buffer per socket, whatever the peer claims.
//! 2. Padding is zero when written and ignored when read.
//! 3. An error response has no payload.

use std::mem::size_of;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::command::{Command, MAX_PAYLOAD};
use crate::error::Error;
use crate::format::layout::NetHeader;
use crate::format::wire;

/// Length of a frame's header.
pub(crate) const HEADER: usize = size_of::<NetHeader>();

/// Greatest length of a frame.
pub(crate) const MAX_FRAME: usize = HEADER + MAX_PAYLOAD;

/// Bit of `flags`: the message is a response.
const FLAG_RESPONSE: u8 = 1;

/// Error codes from here on break the connection (`spec/05 §4.8`).
const ERROR_CODES: u8 = 7;

/// A header after its checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    /// The sender's message number.
    pub(crate) seq: u64,
    /// Greatest message number the sender has received.
    pub(crate) recv_seq: u64,
    /// Request number.
    pub(crate) id: u64,
    /// What it is about.
    pub(crate) cmd: Command,
    /// Request or response.
    pub(crate) response: bool,
    /// Code of an error response, else 0.
    pub(crate) error: u8,
}

/// A received message, its payload still in the receive buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame<'a> {
    /// Its header.
    pub(crate) head: Head,
    /// Its content.
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    /// The content of a response, or the error it carries.
    pub(crate) fn result(&self) -> Result<Vec<u8>, Error> {
        match wire::error_from_wire(self.head.error)? {
            Ok(()) => Ok(self.payload.to_vec()),
            Err(errno) => Err(Error::Posix(errno)),
        }
    }
}

/// Why a peer's bytes are refused: the reason the socket is broken for.
pub(crate) type Refusal = &'static str;

/// Appends a frame.
pub(crate) fn encode(out: &mut Vec<u8>, head: &Head, payload: &[u8]) {
    assert!(payload.len() <= MAX_PAYLOAD, "payloads are bounded where they are queued");
    let mut wire = NetHeader::new_zeroed();
    wire.seq.set(head.seq);
    wire.recv_seq.set(head.recv_seq);
    wire.id.set(head.id);
    wire.data_len.set(payload.len() as u16);
    wire.cmd = head.cmd as u8;
    wire.flags = if head.response { FLAG_RESPONSE } else { 0 };
    wire.error = head.error;
    out.extend_from_slice(wire.as_bytes());
    out.extend_from_slice(payload);
}

/// Checks a header and returns it with the length of the payload that follows.
pub(crate) fn decode_head(header: &NetHeader) -> Result<(Head, usize), Refusal> {
    let len = usize::from(header.data_len.get());
    let Some(cmd) = Command::from_wire(header.cmd) else { return Err("unknown command") };
    let response = header.flags & FLAG_RESPONSE != 0;
    if header.seq.get() == 0 {
        return Err("sequence number 0");
    }
    if header.id.get() == 0 {
        return Err("request number 0");
    }
    if header.flags & !FLAG_RESPONSE != 0 {
        return Err("unknown flags");
    }
    if header.error >= ERROR_CODES {
        return Err("unknown error code");
    }
    if len > MAX_PAYLOAD {
        return Err("payload too long");
    }
    if !response && header.error != 0 {
        return Err("request with an error code");
    }
    let head = Head {
        seq: header.seq.get(),
        recv_seq: header.recv_seq.get(),
        id: header.id.get(),
        cmd,
        response,
        error: header.error,
    };
    Ok((head, len))
}

/// Cuts a byte stream into frames.
pub(crate) struct FrameReader {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameReader {
    /// A reader with room for many small frames per read.
    pub(crate) fn new() -> FrameReader {
        FrameReader { buf: vec![0; 32 * 1024].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where the next bytes of the stream go; never empty after [`FrameReader::next`] has returned `None`.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buf.len() - self.end < MAX_FRAME {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buf[self.end..]
    }

    /// `n` bytes have been put into [`FrameReader::space`].
    pub(crate) fn filled(&mut self, n: usize) {
        assert!(n <= self.buf.len() - self.end, "no more than there was space for");
        self.end += n;
    }

    /// The next complete frame. After an error the stream cannot be used any more.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, Refusal> {
        let bytes = &self.buf[self.start..self.end];
        let Ok((wire, rest)) = NetHeader::ref_from_prefix(bytes) else { return Ok(None) };
        let (head, len) = decode_head(wire)?;
        if rest.len() < len {
            return Ok(None);
        }
        self.start += HEADER + len;
        Ok(Some(Frame { head, payload: &rest[..len] }))
    }
}
