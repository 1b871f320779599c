//! Directory entries: one value, stored three times (`spec/01 §13.2`, `spec/06 §4`).

use zerocopy::{FromBytes, IntoBytes};

use super::consts::*;
use super::hash::dirent_hash;
use super::ids::Ino;
use super::key::Key;
use super::keys::ItemKey;
use super::kind::DirentKind;
use super::layout::DirentHead;
use crate::error::{Error, Result};

/// A checked directory entry value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dirent<'a> {
    /// The inode that the entry names.
    pub ino: Ino,
    /// Hash of the name.
    pub hash: u64,
    /// Position in the directory.
    pub pos: u64,
    /// Type of the inode; `None` if the stored number means nothing (readdir then reports "unknown").
    pub kind: Option<DirentKind>,
    /// The name, 1 to 255 bytes.
    pub name: &'a [u8],
}

impl Dirent<'_> {
    /// The value of all three items of an entry.
    pub fn encode(&self) -> Vec<u8> {
        let head = DirentHead {
            ino: self.ino.0.into(),
            hash: self.hash.into(),
            pos: self.pos.into(),
            kind: self.kind.map_or(u8::MAX, DirentKind::stored),
            pad: [0; 7],
        };
        let mut v = Vec::with_capacity(DIRENT_HEAD_BYTES + self.name.len());
        v.extend_from_slice(head.as_bytes());
        v.extend_from_slice(self.name);
        v
    }
}

/// May `name` be the name of a directory entry? Only its content is judged: 1 to 255 bytes, no NUL, no `/`, neither
/// `.` nor `..`.
pub fn name_is_valid(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.iter().any(|&b| b == 0 || b == b'/') && name != b"." && name != b".."
}

/// Decodes the value of a directory entry found under `key`, which is one of its three keys, and compares every field
/// that both contain.
pub fn validate_dirent<'a>(key: &Key, value: &'a [u8]) -> Result<Dirent<'a>> {
    let bad = |why: &str| Error::corrupt(format!("directory entry {key}"), why);
    let (head, name) = DirentHead::read_from_prefix(value).map_err(|_| bad("value is shorter than its head"))?;
    if !name_is_valid(name) {
        return Err(bad("the name has a wrong length or forbidden bytes"));
    }
    let entry = Dirent {
        ino: Ino(head.ino.get()),
        hash: head.hash.get(),
        pos: head.pos.get(),
        kind: DirentKind::from_stored(head.kind),
        name,
    };
    if entry.ino.0 == 0 {
        return Err(bad("it names inode 0"));
    }
    if entry.hash != dirent_hash(name) {
        return Err(bad("the stored hash is not that of the name"));
    }
    let key_agrees = match ItemKey::parse(key) {
        Some(ItemKey::Dirent { dir, hash, pos }) => dir.0 != 0 && hash == entry.hash && pos == entry.pos,
        Some(ItemKey::Readdir { dir, pos }) => dir.0 != 0 && pos == entry.pos,
        Some(ItemKey::Backref { ino, dir, pos }) => dir.0 != 0 && ino == entry.ino && pos == entry.pos,
        _ => return Err(bad("the key is not that of a directory entry")),
    };
    if !key_agrees {
        return Err(bad("the value differs from the key"));
    }
    Ok(entry)
}
