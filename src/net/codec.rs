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
use crate::error::{Errno, Error};
use crate::format::layout::NetHeader;

/// Length of a frame's header.
pub(crate) const HEADER: usize = size_of::<NetHeader>();

/// Greatest length of a frame.
pub(crate) const MAX_FRAME: usize = HEADER + MAX_PAYLOAD;

/// Bit of `flags`: the message is a response.
const FLAG_RESPONSE: u8 = 1;

/// The wire's error codes, by code (`spec/05 §4.8`).
const ERRNOS: [Errno; 7] =
    [Errno(0), Errno::ENOENT, Errno::ENOMEM, Errno::EIO, Errno::ENOSPC, Errno::EINVAL, Errno::ENOLINK];

/// Code 5, which stands for every errno outside the table.
const WIRE_EINVAL: u8 = 5;

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
        match error_from_wire(self.head.error) {
            None => Ok(self.payload.to_vec()),
            Some(errno) => Err(Error::Posix(errno)),
        }
    }
}

/// Why a peer's bytes are refused: the reason the socket is broken for.
pub(crate) type Refusal = &'static str;

/// The code under which an error travels.
pub(crate) fn error_to_wire(error: &Error) -> u8 {
    let errno = error.errno();
    // Index 0 is "no error" and never equals an errno.
    ERRNOS.iter().position(|e| *e == errno).map_or(WIRE_EINVAL, |code| code as u8)
}

/// The errno of a code; `None` for 0. Codes outside the table do not get here, but mean EINVAL.
pub(crate) fn error_from_wire(code: u8) -> Option<Errno> {
    match code {
        0 => None,
        code => Some(ERRNOS.get(usize::from(code)).copied().unwrap_or(Errno::EINVAL)),
    }
}

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
pub(crate) fn decode_head(wire: &NetHeader) -> Result<(Head, usize), Refusal> {
    let len = usize::from(wire.data_len.get());
    let Some(cmd) = Command::from_wire(wire.cmd) else { return Err("unknown command") };
    let response = wire.flags & FLAG_RESPONSE != 0;
    if wire.seq.get() == 0 {
        return Err("sequence number 0");
    }
    if wire.id.get() == 0 {
        return Err("request number 0");
    }
    if wire.flags & !FLAG_RESPONSE != 0 {
        return Err("unknown flags");
    }
    if usize::from(wire.error) >= ERRNOS.len() {
        return Err("unknown error code");
    }
    if len > MAX_PAYLOAD {
        return Err("payload too long");
    }
    if !response && wire.error != 0 {
        return Err("request with an error code");
    }
    let head = Head {
        seq: wire.seq.get(),
        recv_seq: wire.recv_seq.get(),
        id: wire.id.get(),
        cmd,
        response,
        error: wire.error,
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
