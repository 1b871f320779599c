//! Payloads of messages: exact lengths, error codes, the one payload of variable length (`spec/05 §2.7`, `§4.8`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::consts::NET_LOCK_RECOVER_MAX;
use super::layout::{NetLock, NetLockRecoverHead};
use crate::error::{Errno, Error, Result};

/// Decodes bytes that must have exactly the length of `T`; `what` names them in the error.
pub fn exact<T: FromBytes + KnownLayout + Immutable>(what: &str, bytes: &[u8]) -> Result<T> {
    T::read_from_bytes(bytes)
        .map_err(|_| Error::corrupt(what, format!("{} bytes instead of {}", bytes.len(), size_of::<T>())))
}

/// Decodes the payload of a success response. Another length than that of `T` is `EMSGSIZE`.
pub fn response<T: FromBytes>(bytes: &[u8]) -> Result<T> {
    T::read_from_bytes(bytes).map_err(|_| Errno::EMSGSIZE.into())
}

/// The code in the `error` field of a response. An errno without a code goes out as `EINVAL`.
pub fn error_to_wire(errno: Errno) -> u8 {
    match errno {
        Errno(0) => 0,
        Errno::ENOENT => 1,
        Errno::ENOMEM => 2,
        Errno::EIO => 3,
        Errno::ENOSPC => 4,
        Errno::ENOLINK => 6,
        _ => 5,
    }
}

/// What a response with this code says: `Ok(Ok(()))` for success. The outer error is a code that breaks the connection.
pub fn error_from_wire(code: u8) -> Result<Result<(), Errno>> {
    Ok(match code {
        0 => Ok(()),
        1 => Err(Errno::ENOENT),
        2 => Err(Errno::ENOMEM),
        3 => Err(Errno::EIO),
        4 => Err(Errno::ENOSPC),
        5 => Err(Errno::EINVAL),
        6 => Err(Errno::ENOLINK),
        _ => return Err(Error::corrupt("response", format!("error code {code}"))),
    })
}

/// Payload of a LOCK_RECOVER response; at most 22 locks.
pub fn encode_lock_recover(locks: &[NetLock]) -> Vec<u8> {
    debug_assert!(locks.len() <= NET_LOCK_RECOVER_MAX);
    let head = NetLockRecoverHead { nr: (locks.len() as u16).into(), pad: [0; 6] };
    let mut v = Vec::with_capacity(size_of_val(&head) + size_of_val(locks));
    v.extend_from_slice(head.as_bytes());
    v.extend_from_slice(locks.as_bytes());
    v
}

/// Decodes a LOCK_RECOVER response. That keys ascend is for the lock room to check.
pub fn decode_lock_recover(payload: &[u8]) -> Result<Vec<NetLock>> {
    let bad = |why: String| Error::corrupt("lock recovery response", why);
    let (head, locks) = NetLockRecoverHead::read_from_prefix(payload).map_err(|_| bad("too short".into()))?;
    let nr = usize::from(head.nr.get());
    if nr > NET_LOCK_RECOVER_MAX || locks.len() != nr * size_of::<NetLock>() {
        return Err(bad(format!("{nr} locks in {} bytes", locks.len())));
    }
    let locks = <[NetLock]>::ref_from_bytes(locks).map_err(|_| bad("odd length".into()))?;
    Ok(locks.to_vec())
}
