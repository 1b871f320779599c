//! The bytes of the NBD protocol, and the handshake ("fixed newstyle", option `NBD_OPT_GO`).
//!
//! Nothing that the server sends is trusted: lengths are compared with limits before anything is allocated, the number of
//! answers to an option is bounded, and the whole handshake has one deadline.

use std::io::{self, IoSlice, Read};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use socket2::Socket;

use crate::sync::{Arc, Instant};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags; the client's have the same values.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Longest answer to an option that is read, in bytes; names and descriptions have at most 4096.
const MAX_OPTION_REPLY: u32 = 8192;
/// Answers to one option.
const MAX_OPTION_REPLIES: usize = 64;
/// Greatest request if the server names none (the protocol's default).
const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;

/// Transmission flags.
const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const CAN_MULTI_CONN: u16 = 1 << 8;

/// Flag of a command: durable before it is answered.
pub(super) const CMD_FLAG_FUA: u16 = 1;

/// The server is about to end: its connection is of no more use.
pub(super) const ESHUTDOWN: u32 = 108;

/// Size of a request without payload, and of an answer without payload.
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
}

/// What the server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) size: u64,
    flags: u16,
    pub(super) min_block: u32,
    pub(super) max_payload: u32,
}

impl Export {
    pub(super) fn read_only(&self) -> bool {
        self.flags & READ_ONLY != 0
    }

    pub(super) fn can_flush(&self) -> bool {
        self.flags & SEND_FLUSH != 0
    }

    pub(super) fn can_fua(&self) -> bool {
        self.flags & SEND_FUA != 0
    }

    pub(super) fn can_trim(&self) -> bool {
        self.flags & SEND_TRIM != 0
    }

    /// Several connections see one device: a flush on one makes durable what was answered on any.
    pub(super) fn multi_conn(&self) -> bool {
        self.flags & CAN_MULTI_CONN != 0
    }
}

/// The receiving half of a connection.
pub(super) struct Incoming {
    socket: Arc<Socket>,
    deadline: Option<Instant>,
}

impl Incoming {
    pub(super) fn new(socket: Arc<Socket>, deadline: Instant) -> Incoming {
        Incoming { socket, deadline: Some(deadline) }
    }

    /// From now on reads wait until then at most.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// From now on reads wait as long as it takes.
    pub(super) fn without_deadline(&mut self) -> io::Result<()> {
        self.deadline = None;
        self.socket.set_read_timeout(None)
    }
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        (&*self.socket).read(buf)
    }
}

/// Sends everything, or fails.
pub(super) fn send_all(socket: &Socket, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match sendmsg(socket, rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A request without its payload.
pub(super) fn request(command: Command, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The next answer without its payload: cookie and error (0: none).
pub(super) fn read_reply(from: &mut impl Read) -> Result<(u64, u32), String> {
    let mut bytes = [0; REPLY_BYTES];
    from.read_exact(&mut bytes).map_err(ended)?;
    let magic = be32(&bytes[..4]);
    if magic != SIMPLE_REPLY_MAGIC {
        return Err(format!("an answer that begins with {magic:#010x}"));
    }
    Ok((be64(&bytes[8..]), be32(&bytes[4..8])))
}

/// Why a read failed, in words.
pub(super) fn ended(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "the server does not answer".into(),
        _ => error.to_string(),
    }
}

/// What an error number in an answer means.
pub(super) fn error_text(number: u32) -> String {
    let text = match number {
        1 => "operation not permitted",
        5 => "input/output error",
        12 => "out of memory",
        22 => "invalid argument",
        28 => "no space left",
        75 => "value too large",
        95 => "operation not supported",
        ESHUTDOWN => "the server is shutting down",
        _ => return format!("the server reports error {number}"),
    };
    format!("the server reports: {text}")
}

/// Agrees with the server on `export`.
pub(super) fn handshake(socket: &Socket, from: &mut impl Read, export: &str) -> Result<Export, String> {
    let greeting: [u8; 18] = take(from)?;
    if be64(&greeting[..8]) != NBD_MAGIC {
        return Err("not an NBD server".into());
    }
    if be64(&greeting[8..16]) != OPTION_MAGIC {
        return Err("the server speaks the old form of the protocol".into());
    }
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err("the server does not speak the fixed newstyle form of the protocol".into());
    }
    let client_flags = u32::from(FIXED_NEWSTYLE | (flags & NO_ZEROES));
    let name = export.as_bytes();
    let mut go = Vec::with_capacity(32 + name.len());
    go.extend((name.len() as u32).to_be_bytes());
    go.extend(name);
    go.extend(1u16.to_be_bytes());
    go.extend(INFO_BLOCK_SIZE.to_be_bytes());
    let mut head = Vec::with_capacity(20);
    head.extend(client_flags.to_be_bytes());
    head.extend(OPTION_MAGIC.to_be_bytes());
    head.extend(OPT_GO.to_be_bytes());
    head.extend((go.len() as u32).to_be_bytes());
    send_all(socket, &[&head, &go]).map_err(ended)?;

    let (mut basic, mut sizes) = (None, None);
    for _ in 0..MAX_OPTION_REPLIES {
        let (kind, data) = option_reply(from)?;
        match kind {
            REP_ACK => return described(basic, sizes),
            REP_INFO => match data.split_first_chunk::<2>() {
                Some((info, rest)) if u16::from_be_bytes(*info) == INFO_EXPORT && rest.len() == 10 => {
                    basic = Some((be64(&rest[..8]), u16::from_be_bytes([rest[8], rest[9]])));
                }
                Some((info, rest)) if u16::from_be_bytes(*info) == INFO_BLOCK_SIZE && rest.len() == 12 => {
                    sizes = Some((be32(&rest[..4]), be32(&rest[8..])));
                }
                Some((info, _)) if !matches!(u16::from_be_bytes(*info), INFO_EXPORT | INFO_BLOCK_SIZE) => {}
                _ => return Err("information about the export has a wrong length".into()),
            },
            kind if kind & REP_ERROR != 0 => return Err(refusal(kind, &data, export)),
            kind => return Err(format!("an answer of unknown kind {kind} in the handshake")),
        }
    }
    Err("no end of answers in the handshake".into())
}

fn option_reply(from: &mut impl Read) -> Result<(u32, Vec<u8>), String> {
    let head: [u8; 20] = take(from)?;
    if be64(&head[..8]) != OPTION_REPLY_MAGIC || be32(&head[8..12]) != OPT_GO {
        return Err("an answer in the handshake that belongs to no question".into());
    }
    let len = be32(&head[16..]);
    if len > MAX_OPTION_REPLY {
        return Err(format!("an answer of {len} bytes in the handshake"));
    }
    let mut data = vec![0; len as usize];
    from.read_exact(&mut data).map_err(ended)?;
    Ok((be32(&head[12..16]), data))
}

/// Puts together what was said of the export, if it makes sense.
fn described(basic: Option<(u64, u16)>, sizes: Option<(u32, u32)>) -> Result<Export, String> {
    let (size, flags) = basic.ok_or("the server says nothing about the export")?;
    if flags & HAS_FLAGS == 0 || size > i64::MAX as u64 {
        return Err(format!("an export of {size} bytes with flags {flags:#x}"));
    }
    // Without a word from the server anything may be asked for, but 512 is the custom.
    let (min_block, max_payload) = sizes.unwrap_or((512, DEFAULT_MAX_PAYLOAD));
    if !min_block.is_power_of_two() || max_payload < min_block {
        return Err(format!("an export with blocks of {min_block} to {max_payload} bytes"));
    }
    Ok(Export { size, flags, min_block, max_payload })
}

fn refusal(kind: u32, message: &[u8], export: &str) -> String {
    let why = match kind & !REP_ERROR {
        1 => "does not know NBD_OPT_GO".to_owned(),
        2 => "does not allow it".to_owned(),
        5 => "wants TLS, which is not supported".to_owned(),
        6 => format!("has no export \"{export}\""),
        7 => "is shutting down".to_owned(),
        code => format!("refuses the export \"{export}\" (error {code})"),
    };
    let message = String::from_utf8_lossy(message);
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if message.is_empty() { format!("the server {why}") } else { format!("the server {why}: {message}") }
}

fn take<const N: usize>(from: &mut impl Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(ended)?;
    Ok(bytes)
}

fn be32(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(bytes);
    u32::from_be_bytes(word)
}

fn be64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_be_bytes(word)
}
