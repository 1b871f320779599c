//! Extended attributes: how they are cut into items, what the tags in their names say (`spec/01 §13.4`, `spec/06 §7`).

use zerocopy::{FromBytes, IntoBytes};

use super::consts::*;
use super::ids::Ino;
use super::key::Key;
use super::keys;
use super::layout::XattrHead;
use crate::error::{Errno, Error, Result, fail};

const PREFIX: &[u8] = b"scoutfs.";
/// A name with a tag has at least one tag and one more byte.
const TAGGED_MIN: usize = 14;

/// Tags in the name of an xattr.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tags {
    /// Left out of normal listings.
    pub hide: bool,
    /// Has an entry in the value index.
    pub indx: bool,
    /// Can be found by name.
    pub srch: bool,
    /// Its value is counted in a total.
    pub totl: bool,
}

impl Tags {
    /// Is there any tag?
    pub fn any(&self) -> bool {
        *self != Tags::default()
    }
}

/// The tags of a full xattr name. `EINVAL` for a name with the prefix and a free part but no tag, or one tag twice.
///
/// Names without the prefix, and names too short for a tag, have none. That `indx` and `totl` exclude each other is
/// for the caller to say, because the original says it later (`spec/06 §7.5`).
pub fn parse_tags(name: &[u8]) -> Result<Tags> {
    let mut tags = Tags::default();
    if name.len() < TAGGED_MIN || !name.starts_with(PREFIX) {
        return Ok(tags);
    }
    let mut rest = &name[PREFIX.len()..];
    while let Some((word, after)) = rest.split_at_checked(5) {
        let tag = match word {
            b"hide." => &mut tags.hide,
            b"indx." => &mut tags.indx,
            b"srch." => &mut tags.srch,
            b"totl." => &mut tags.totl,
            _ => break,
        };
        if *tag {
            return fail(Errno::EINVAL);
        }
        *tag = true;
        rest = after;
    }
    if tags.any() { Ok(tags) } else { fail(Errno::EINVAL) }
}

/// One number: 1 to 23 characters, decimal, `0x` hexadecimal or octal with a leading 0, unsigned 64 bits; nothing
/// around it. `EINVAL` otherwise.
pub fn parse_number(text: &[u8]) -> Result<u64> {
    if text.is_empty() || text.len() > XATTR_NUMBER_MAX {
        return fail(Errno::EINVAL);
    }
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (rest, 16),
        [b'0', rest @ ..] if !rest.is_empty() => (rest, 8),
        _ => (text, 10),
    };
    if digits.is_empty() {
        return fail(Errno::EINVAL);
    }
    let mut v = 0u64;
    for &c in digits {
        let digit = (c as char).to_digit(radix).ok_or(Errno::EINVAL)?;
        v = v.checked_mul(u64::from(radix)).and_then(|v| v.checked_add(u64::from(digit))).ok_or(Errno::EINVAL)?;
    }
    Ok(v)
}

/// As [`parse_number`], for values that the original may have stored: it stops at a NUL byte, and forgives one newline
/// just before it. Only for taking back what such a value has added to a total.
pub fn parse_stored_number(text: &[u8]) -> Result<u64> {
    if text.len() > XATTR_NUMBER_MAX {
        return fail(Errno::EINVAL);
    }
    match text.iter().position(|&b| b == 0) {
        None => parse_number(text),
        Some(end) => {
            let text = &text[..end];
            parse_number(text.strip_suffix(b"\n").unwrap_or(text))
        }
    }
}

/// The `N` numbers at the end of `name`, each after a dot, first one first.
fn trailing_numbers<const N: usize>(name: &[u8]) -> Result<[u64; N]> {
    let mut out = [0; N];
    let mut rest = name;
    for v in out.iter_mut().rev() {
        let dot = rest.iter().rposition(|&b| b == b'.').ok_or(Errno::EINVAL)?;
        *v = parse_number(&rest[dot + 1..])?;
        rest = &rest[..dot];
    }
    Ok(out)
}

/// Key of the total that an xattr with this name and the `totl` tag contributes to.
pub fn totl_key(name: &[u8]) -> Result<Key> {
    let [a, b, c] = trailing_numbers(name)?;
    Ok(keys::totl(a, b, c))
}

/// The numbers (major, minor) of an xattr name with the `indx` tag.
pub fn indx_numbers(name: &[u8]) -> Result<(u8, u64)> {
    let [major, minor] = trailing_numbers(name)?;
    Ok((u8::try_from(major).map_err(|_| Errno::EINVAL)?, minor))
}

/// Key of the value index entry of xattr `id` of `ino` with this name and the `indx` tag.
pub fn indx_key(name: &[u8], ino: Ino, id: u64) -> Result<Key> {
    let (major, minor) = indx_numbers(name)?;
    Ok(keys::indx(major, minor, ino, id))
}

/// Length of head, name and value together.
pub fn total_bytes(name_len: usize, value_len: usize) -> usize {
    XATTR_HEAD_BYTES + name_len + value_len
}

/// Number of items of an xattr, at most 74.
pub fn part_count(name_len: usize, value_len: usize) -> usize {
    total_bytes(name_len, value_len).div_ceil(PART_BYTES)
}

/// The stored bytes of an xattr; cut them with `chunks(PART_BYTES)`.
///
/// The caller has checked the limits: name 1 to 255 bytes (`ERANGE`), value at most 65535 (`E2BIG`).
pub fn encode_xattr(name: &[u8], value: &[u8]) -> Vec<u8> {
    debug_assert!((1..=XATTR_NAME_MAX).contains(&name.len()) && value.len() <= XATTR_VALUE_MAX);
    let head = XattrHead { val_len: (value.len() as u16).into(), name_len: name.len() as u8, pad: [0; 5] };
    let mut v = Vec::with_capacity(total_bytes(name.len(), value.len()));
    v.extend_from_slice(head.as_bytes());
    v.extend_from_slice(name);
    v.extend_from_slice(value);
    v
}

/// What the first part of an xattr says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XattrFirst<'a> {
    /// Full name, with prefix.
    pub name: &'a [u8],
    /// Length of the whole value.
    pub value_len: usize,
    /// The beginning of the value that the first part holds.
    pub value_start: &'a [u8],
    /// Number of parts, this one included.
    pub parts: usize,
}

impl XattrFirst<'_> {
    /// Length that part number `part` must have.
    pub fn part_len(&self, part: usize) -> usize {
        total_bytes(self.name.len(), self.value_len).saturating_sub(part * PART_BYTES).min(PART_BYTES)
    }
}

/// Decodes and checks the first part of an xattr, found under `key`.
pub fn validate_xattr_first<'a>(key: &Key, value: &'a [u8]) -> Result<XattrFirst<'a>> {
    let bad = |why: &str| Error::corrupt(format!("xattr {key}"), why);
    let (head, rest) = XattrHead::read_from_prefix(value).map_err(|_| bad("first part is shorter than its head"))?;
    let (name_len, value_len) = (usize::from(head.name_len), usize::from(head.val_len.get()));
    if name_len == 0 || name_len > rest.len() {
        return Err(bad("a name of wrong length"));
    }
    if value.len() != total_bytes(name_len, value_len).min(PART_BYTES) {
        return Err(bad("the first part has not the length that its head gives"));
    }
    let (name, value_start) = rest.split_at(name_len);
    if name.contains(&0) {
        return Err(bad("a NUL in the name"));
    }
    if u64::from(super::hash::xattr_hash(name)) != key.second || key.fourth != 0 {
        return Err(bad("the name differs from the key"));
    }
    Ok(XattrFirst { name, value_len, value_start, parts: part_count(name_len, value_len) })
}
