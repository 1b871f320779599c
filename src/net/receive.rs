//! Frames from a stream.
//!
//! Over a network, the thread that owns a socket reads it. Inside the process the stream delivers: the thread that sends a
//! message at one end also does the receiver's work at the other, which saves two of four thread switches of a request.
//! Therefore what is done with a frame
//!
//! 1. does not block,
//! 2. on a server does nothing but to put it into the channel of the server thread, if it came [`By::Sender`]: that may be any
//!    thread of a mount, whatever locks that holds,
//! 3. on a client may run on a thread of the server.

use std::io;

use super::codec::{Frame, FrameReader, Refusal};
use super::transport::{Sink, Stream};
use crate::error::{Errno, Error, Result};
use crate::sync::{Arc, Condvar, Mutex, Weak};

/// Which thread has brought a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// The one that owns the socket.
    Reader,
    /// The one that sent it.
    Sender,
}

/// What is done with a frame; an error breaks the stream.
pub(crate) type Each = dyn Fn(&Frame<'_>, By) -> Result<(), Refusal> + Send + Sync;

/// Gives every frame to `each` until the stream ends, and says why it did. `before_read` may hold up a reading thread.
pub(crate) fn receive_all(
    stream: &Arc<dyn Stream>,
    mut reader: FrameReader,
    before_read: impl Fn(),
    each: Arc<Each>,
) -> Result<()> {
    // What came together with the greeting.
    while let Some(frame) = reader.next().map_err(|why| refused(&**stream, why))? {
        each(&frame, By::Reader).map_err(|why| refused(&**stream, why))?;
    }
    let delivery = Arc::new(Delivery {
        stream: Arc::downgrade(stream),
        reader: Mutex::new(reader),
        each: each.clone(),
        end: Mutex::new(End::default()),
        ended: Condvar::new(),
    });
    if stream.deliver_to(delivery.clone()) {
        return delivery.wait();
    }
    let mut reader = std::mem::replace(&mut *delivery.reader.lock(), FrameReader::new());
    drop(delivery);
    read_frames(&**stream, &mut reader, |frame| {
        each(frame, By::Reader)?;
        before_read();
        Ok(true)
    })
}

#[derive(Default)]
struct End {
    closed: bool,
    refused: Option<Error>,
}

/// The receiving end of a stream that delivers.
struct Delivery {
    /// The stream holds this, and nobody holds the stream for it: whoever drops the one under a lock must not drop the
    /// other.
    stream: Weak<dyn Stream>,
    reader: Mutex<FrameReader>,
    each: Arc<Each>,
    end: Mutex<End>,
    ended: Condvar,
}

impl Delivery {
    fn wait(&self) -> Result<()> {
        let mut end = self.end.lock();
        while !end.closed {
            self.ended.wait(&mut end);
        }
        Err(end.refused.take().unwrap_or_else(|| Errno::ENOTCONN.into()))
    }

    fn frames(&self, reader: &mut FrameReader, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let space = reader.space();
            let n = bytes.len().min(space.len());
            space[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            reader.filled(n);
            while let Some(frame) = reader.next()? {
                (self.each)(&frame, By::Sender)?;
            }
        }
        Ok(())
    }
}

impl Sink for Delivery {
    fn receive(&self, bytes: &[u8]) {
        // After a refusal nothing more counts, although the stream may still deliver what it has at hand.
        if self.end.lock().refused.is_some() {
            return;
        }
        let mut reader = self.reader.lock();
        if let Err(why) = self.frames(&mut reader, bytes) {
            let Some(stream) = self.stream.upgrade() else { return };
            self.end.lock().refused = Some(refused(&*stream, why));
            stream.shutdown();
        }
    }

    fn closed(&self) {
        self.end.lock().closed = true;
        self.ended.notify_all();
    }
}

/// Reads frames from a stream, for as long as `each` returns true.
///
/// Ends with an error that says why: the stream broke, a frame was malformed, or `each` refused one.
pub(crate) fn read_frames(
    stream: &dyn Stream,
    reader: &mut FrameReader,
    mut each: impl FnMut(&Frame<'_>) -> Result<bool, Refusal>,
) -> Result<()> {
    loop {
        while let Some(frame) = reader.next().map_err(|why| refused(stream, why))? {
            if !each(&frame).map_err(|why| refused(stream, why))? {
                return Ok(());
            }
        }
        match stream.read(reader.space()) {
            Ok(0) => return Err(Errno::ENOTCONN.into()),
            Ok(n) => reader.filled(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Errno::ENOTCONN.into()),
        }
    }
}

fn refused(stream: &dyn Stream, why: Refusal) -> Error {
    Error::corrupt(format!("message from {}", stream.peer_addr()), why)
}
