//! The one error type of the crate.
//!
//! Variants are split by what a caller can do about them, not by where they arise. Every error maps to the errno
//! that the original reports in the same situation ([`Error::errno`]; `spec/06 §13`, `spec/07 §21`).

use std::fmt;

/// Result of every fallible operation of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Linux errno values used by the engine, by name.
///
/// They are part of the public contract (a FUSE or NFS front end passes them on), so they do not depend on the
/// platform the crate is built for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:expr, $text:expr;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Errno = Errno($value);)*

            /// The symbolic name, for example `ENOENT`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Errno::$name => stringify!($name),)*
                    _ => "errno",
                }
            }

            /// What the error means, in words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Errno::$name => $text,)*
                    _ => "unknown error",
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or directory";
    EINTR = 4, "interrupted";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "argument too long";
    EBADF = 9, "bad file descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EBUSY = 16, "device or resource busy";
    EEXIST = 17, "file exists";
    EXDEV = 18, "cross-device link";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    ENOTTY = 25, "inappropriate operation for this kind of file";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no space left";
    EROFS = 30, "read-only filesystem";
    EMLINK = 31, "too many links";
    ERANGE = 34, "result does not fit";
    EDEADLK = 35, "lock order would deadlock";
    ENAMETOOLONG = 36, "name too long";
    ENOLCK = 37, "no locks available";
    ENOTEMPTY = 39, "directory not empty";
    ELOOP = 40, "too many levels of links";
    EBADR = 53, "invalid request";
    ENODATA = 61, "no data available";
    ENOLINK = 67, "link has been severed";
    EOVERFLOW = 75, "value too large";
    EOPNOTSUPP = 95, "operation not supported";
    EMSGSIZE = 90, "message too long";
    ENOBUFS = 105, "no buffer space";
    ECONNABORTED = 103, "connection aborted";
    ENOTCONN = 107, "not connected";
    ESHUTDOWN = 108, "shut down";
    ETIMEDOUT = 110, "timed out";
    ESTALE = 116, "stale handle";
    EUCLEAN = 117, "structure needs cleaning";
    EDQUOT = 122, "quota exceeded";
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation failed for one of the reasons that POSIX names: the caller asked for something that is not so.
    #[error("{0}")]
    Posix(Errno),

    /// A device refused a read, write or flush.
    #[error("device error on {device} at byte {offset}: {message}")]
    Device {
        /// Which device, as its implementation names itself.
        device: String,
        /// Byte offset of the failed access.
        offset: u64,
        /// What the system said.
        message: String,
    },

    /// Content of a device or a message that cannot be right. Nothing was changed because of it.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// The structure, named with its block, key or peer.
        what: String,
        /// What was expected and what was found.
        detail: String,
    },

    /// A block no longer holds the version that a reference names: newer roots are needed. Internal; a caller of the
    /// public API never sees it.
    #[error("block {blkno} does not hold version {seq:#x}")]
    Stale {
        /// 64 KiB metadata block number.
        blkno: u64,
        /// The nonce of the reference.
        seq: u64,
    },

    /// The volume or the request needs something that this build does not do.
    #[error("unsupported: {0}")]
    Unsupported(String),

    /// An argument or an option is out of its range.
    #[error("invalid argument: {0}")]
    Invalid(String),

    /// The volume is used by somebody else.
    #[error("volume is in use: {0}")]
    Busy(String),

    /// The mount was ended by force or has lost its way to the volume; nothing more can be done with it.
    #[error("the mount is shut down: {0}")]
    Shutdown(String),

    /// The data allocator of the open transaction is empty: commit and try again. Internal, never reaches a caller of the public API.
    #[error("the open transaction has no more space: commit and retry")]
    NeedCommit,
}

impl Error {
    /// Shorthand for [`Error::Corrupt`].
    pub fn corrupt(what: impl Into<String>, detail: impl Into<String>) -> Error {
        Error::Corrupt { what: what.into(), detail: detail.into() }
    }

    /// Shorthand for [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Error {
        Error::Invalid(what.into())
    }

    /// The errno to hand to a program that knows only errnos.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Posix(e) => *e,
            Error::Device { .. } | Error::Corrupt { .. } => Errno::EIO,
            Error::Stale { .. } => Errno::ESTALE,
            Error::Unsupported(_) => Errno::EOPNOTSUPP,
            Error::Invalid(_) => Errno::EINVAL,
            Error::Busy(_) => Errno::EBUSY,
            Error::Shutdown(_) => Errno::ENOLINK,
            Error::NeedCommit => Errno::ENOBUFS,
        }
    }

    /// True for [`Error::Posix`] with this errno.
    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, Error::Posix(e) if *e == errno)
    }
}

impl From<Errno> for Error {
    fn from(e: Errno) -> Error {
        Error::Posix(e)
    }
}

/// `Err(Error::Posix(errno))`.
pub fn fail<T>(errno: Errno) -> Result<T> {
    Err(Error::Posix(errno))
}
