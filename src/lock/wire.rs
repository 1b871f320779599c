//! Payloads of LOCK and LOCK_RECOVER messages: bytes to checked structures and back (`spec/04 §6, §15`).

use zerocopy::FromBytes;
#[cfg(test)]
use zerocopy::IntoBytes;

use super::{LockName, Mode};
use crate::error::{Errno, Error, Result, fail};
#[cfg(test)]
use crate::format::Key;
#[cfg(test)]
use crate::format::layout::StoredKey;
use crate::format::layout::{NetLock, NetLockRecoverHead};

/// Most entries of one LOCK_RECOVER response.
pub(crate) const RECOVER_MAX: usize = 22;

/// A LOCK payload, built from its parts.
pub(crate) fn net_lock(name: LockName, old: Mode, new: Mode, write_seq: u64) -> NetLock {
    NetLock {
        key: name.start().to_stored(),
        write_seq: write_seq.into(),
        old_mode: old.wire(),
        new_mode: new.wire(),
        pad: [0; 6],
    }
}

/// The checked content of a LOCK payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Checked {
    pub(crate) name: LockName,
    pub(crate) old: Mode,
    pub(crate) new: Mode,
    pub(crate) write_seq: u64,
}

/// Checks key and modes of a message; EINVAL means that the connection it came from must be closed.
pub(crate) fn check(l: &NetLock) -> Result<Checked> {
    let name = LockName::from_key(&l.key.to_key());
    match (name, Mode::from_wire(l.old_mode), Mode::from_wire(l.new_mode)) {
        (Some(name), Some(old), Some(new)) => Ok(Checked { name, old, new, write_seq: l.write_seq.get() }),
        _ => fail(Errno::EINVAL),
    }
}

/// The payload of a LOCK message, exactly 48 bytes.
pub(crate) fn parse_lock(payload: &[u8]) -> Result<NetLock> {
    NetLock::read_from_bytes(payload).map_err(|_| Error::from(Errno::EINVAL))
}

/// The payload of a LOCK_RECOVER request, exactly one key.
#[cfg(test)]
pub(crate) fn parse_recover_key(payload: &[u8]) -> Result<Key> {
    match StoredKey::read_from_bytes(payload) {
        Ok(k) => Ok(k.to_key()),
        Err(_) => fail(Errno::EINVAL),
    }
}

/// The payload of a LOCK_RECOVER response: the length must match the count, and the count the limit.
pub(crate) fn parse_recover(payload: &[u8]) -> Result<Vec<NetLock>> {
    let Ok((head, rest)) = NetLockRecoverHead::read_from_prefix(payload) else { return fail(Errno::EINVAL) };
    let nr = usize::from(head.nr.get());
    if nr > RECOVER_MAX || rest.len() != nr * size_of::<NetLock>() {
        return fail(Errno::EINVAL);
    }
    rest.chunks_exact(size_of::<NetLock>()).map(parse_lock).collect()
}

/// The payload of a LOCK_RECOVER response with at most [`RECOVER_MAX`] entries.
#[cfg(test)]
pub(crate) fn encode_recover(locks: &[NetLock]) -> Vec<u8> {
    assert!(locks.len() <= RECOVER_MAX, "a recovery response holds at most {RECOVER_MAX} locks");
    let head = NetLockRecoverHead { nr: (locks.len() as u16).into(), pad: [0; 6] };
    let mut out = head.as_bytes().to_vec();
    out.extend_from_slice(locks.as_bytes());
    out
}
