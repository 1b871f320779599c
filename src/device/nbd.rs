//! Exports of NBD servers (`qemu-nbd`, `nbdkit`, `nbd-server`): a shared disk for several nodes over the network.
//!
//! **Problem.** Nodes on several machines need the same two devices. The kernel's NBD client needs root and a kernel module,
//! and gives up acknowledged but unflushed writes when the server crashes.
//!
//! **Idea.** A small client of our own: fixed newstyle handshake with `NBD_OPT_GO`, simple replies, one connection with many
//! requests in flight. When the connection breaks it connects again and repeats everything that was not answered, after it
//! has repeated everything that was answered but not flushed; those writes are kept in memory for that, up to
//! [`NbdOptions::keep_bytes`]. So a server may crash and restart at any time, and the engine sees a slow device.
//!
//! What a server must offer: `FLUSH` for a writable export; `NBD_FLAG_CAN_MULTI_CONN` for an export that several nodes write
//! (each node has a connection of its own, and without the flag a server may keep what it wrote from the others); blocks of
//! at most 4096 bytes. `FUA` and `TRIM` are used if offered.
//!
//! What it does not do: TLS; several connections for one device; keep others from using the export (NBD has no exclusive
//! open: do not let two programs that are not nodes of one cluster write the same export).
//!
//! A request that stays unanswered for [`NbdOptions::timeout`] fails, and if a server has it, the connection is given up. If that
//! server is alive after all and goes on later, it may still carry the request out; choose the time longer than any pause
//! of the server's disk.

mod address;
mod connect;
mod link;
#[cfg(test)]
mod tests;
mod unflushed;
mod wire;

use std::time::Duration;

use super::{BlockDevice, Error, Result, SECTOR_BYTES, check_bounds, device_error};
use crate::sync::{Arc, thread};
pub(crate) use address::is_url;
use connect::Terms;
use link::{FLUSH, Link, Wish};
use wire::{CMD_FLAG_FUA, Command};

/// Longest single request; longer ones are split, so that several are under way.
const MAX_REQUEST: usize = 1 << 20;

/// Requests of one call that are made at a time.
const MAX_WINDOW: usize = 16;

/// Longest single discard.
const MAX_TRIM: u64 = 1 << 30;

/// How to open a [`NbdDevice`].
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Other nodes write the same export: refuse one that is not made for it (`NBD_FLAG_CAN_MULTI_CONN`).
    pub shared: bool,
    /// How long a request may wait for its answer, all reconnecting included: 1 s to 1 h, by default 60 s. The parameter
    /// `timeout=SECONDS` of the URL has precedence.
    pub timeout: Duration,
    /// Most bytes of writes that are kept because they are not known to be durable, at least 4 MiB, by default 64 MiB. When they
    /// are reached, the device flushes on its own.
    pub keep_bytes: usize,
}

impl Default for NbdOptions {
    fn default() -> NbdOptions {
        NbdOptions { read_only: false, shared: false, timeout: Duration::from_secs(60), keep_bytes: 64 << 20 }
    }
}

/// An export of an NBD server. See the [module documentation](super) for the promises of devices.
pub struct NbdDevice {
    link: Arc<Link>,
    read_only: bool,
    thread: Option<thread::JoinHandle<()>>,
}

impl NbdDevice {
    /// Connects to `nbd://host[:port]/export` or `nbd+unix:///export?socket=path`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL or options that are not valid, [`Error::Unsupported`] for an export that cannot serve (no
    /// flush, not to be shared, read-only), [`Error::Device`] if there is no such server or export.
    pub fn open(url: &str, options: &NbdOptions) -> Result<Arc<NbdDevice>> {
        let address = address::parse(url)?;
        let timeout = address.timeout.unwrap_or(options.timeout);
        if timeout < Duration::from_secs(1) || timeout > Duration::from_secs(3600) {
            return Err(Error::invalid(format!("{url}: a timeout of {timeout:?} is not in 1 s .. 1 h")));
        }
        if options.keep_bytes < 4 * MAX_REQUEST {
            return Err(Error::invalid(format!("{url}: {} bytes of writes are too few to keep", options.keep_bytes)));
        }
        let (link, connected) = Link::open(Terms {
            name: url.to_owned(),
            address,
            read_only: options.read_only,
            shared: options.shared,
            timeout,
            keep_bytes: options.keep_bytes,
        })?;
        let link = Arc::new(link);
        let serve = link.clone();
        let thread = thread::Builder::new().name("scoutfs-nbd".into()).spawn(move || serve.serve(connected));
        let thread = thread.map_err(|e| device_error(url, 0, format!("cannot start a thread: {e}")))?;
        Ok(Arc::new(NbdDevice { link, read_only: options.read_only, thread: Some(thread) }))
    }

    /// How often the connection was lost and made again.
    pub fn reconnects(&self) -> u64 {
        self.link.reconnects()
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        check_bounds(self.link.name(), self.size(), offset, len)
    }

    fn check_write(&self, offset: u64, len: usize) -> Result<()> {
        if self.read_only {
            return Err(device_error(self.link.name(), offset, "the device is open for reading only"));
        }
        self.check(offset, len)
    }

    /// Bytes of one request: whole sectors, as many as the server takes.
    fn request_bytes(&self) -> usize {
        let sector = SECTOR_BYTES as usize;
        MAX_REQUEST.min(self.link.export().max_payload as usize / sector * sector).max(sector)
    }

    /// Writes with as few requests as possible: adjacent pieces are joined.
    fn write_all(&self, writes: &[(u64, &[u8])], flags: u16) -> Result<()> {
        writes.iter().try_for_each(|(offset, buf)| self.check_write(*offset, buf.len()))?;
        let max = self.request_bytes();
        let (mut wishes, mut start, mut joined) = (Vec::new(), 0, Vec::new());
        let finish = |start: u64, joined: &mut Vec<u8>, wishes: &mut Vec<Wish>| {
            if !joined.is_empty() {
                let payload: Arc<[u8]> = Arc::from(&joined[..]);
                let len = payload.len() as u32;
                wishes.push(Wish { command: Command::Write, flags, offset: start, len, payload: Some(payload) });
                joined.clear();
            }
        };
        for (offset, buf) in writes {
            if *offset != start + joined.len() as u64 {
                finish(start, &mut joined, &mut wishes);
                start = *offset;
            }
            let mut rest = *buf;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(max - joined.len()));
                joined.extend_from_slice(now);
                rest = later;
                if joined.len() == max {
                    finish(start, &mut joined, &mut wishes);
                    start += max as u64;
                }
            }
            if wishes.len() >= MAX_WINDOW {
                self.link.run(&std::mem::take(&mut wishes))?;
            }
        }
        finish(start, &mut joined, &mut wishes);
        if wishes.is_empty() { Ok(()) } else { self.link.run(&wishes).map(drop) }
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.link.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl BlockDevice for NbdDevice {
    fn name(&self) -> String {
        self.link.name().to_owned()
    }

    /// What the server said when the connection was made: a server that has grown an export must be connected to again.
    fn size(&self) -> u64 {
        self.link.export().size / SECTOR_BYTES * SECTOR_BYTES
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        let step = self.request_bytes();
        // As many at a time as a mount's caches would hold without it.
        let (mut at, window) = (offset, step * MAX_WINDOW);
        for part in buf.chunks_mut(window) {
            let mut wishes = Vec::with_capacity(part.len().div_ceil(step));
            for piece in part.chunks(step) {
                let len = piece.len() as u32;
                wishes.push(Wish { command: Command::Read, flags: 0, offset: at, len, payload: None });
                at += piece.len() as u64;
            }
            let pieces = self.link.run(&wishes)?;
            for (to, from) in part.chunks_mut(step).zip(&pieces) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_batch(&[(offset, buf)])
    }

    fn write_batch(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        self.write_all(writes, 0)
    }

    fn write_durable(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if self.link.export().can_fua() {
            return self.write_all(&[(offset, buf)], CMD_FLAG_FUA);
        }
        self.write_all(&[(offset, buf)], 0)?;
        self.flush()
    }

    fn flush(&self) -> Result<()> {
        // Only our own writes are promised; other nodes flush theirs.
        if self.read_only || self.link.all_durable() {
            return Ok(());
        }
        self.link.run(&[FLUSH]).map(drop)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        if !self.link.export().can_trim() {
            return Ok(());
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let len = (end - at).min(MAX_TRIM);
            let wish = Wish { command: Command::Trim, flags: 0, offset: at, len: len as u32, payload: None };
            self.link.run(&[wish])?;
            at += len;
        }
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}
