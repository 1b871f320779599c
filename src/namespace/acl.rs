//! POSIX ACLs as values: stored form, the mode they imply, inheritance, checking (`spec/06 §8`).
//!
//! Pure arithmetic on small lists; the items that hold the values are ordinary extended attributes ([`super::xattr`]).
//!
//! Invariant: an [`Acl`] is in the canonical order (owner, users, group, groups, mask, other) with exactly one owner,
//! group and other entry, and a mask if there is any named entry. Only [`Acl::decode`] makes new ones, so nothing else
//! has to check it.

use smallvec::SmallVec;

use super::types::Caller;
use crate::error::{Errno, Result, fail};

/// Name of the attribute that holds the access ACL.
pub(crate) const ACCESS_NAME: &[u8] = b"system.posix_acl_access";
/// Name of the attribute that holds the default ACL of a directory.
pub(crate) const DEFAULT_NAME: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const NO_ID: u32 = u32::MAX;

/// Who an entry speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Owner,
    User(u32),
    Group,
    NamedGroup(u32),
    Mask,
    Other,
}

impl Who {
    /// Position of the class in the canonical order.
    fn class(self) -> u8 {
        match self {
            Who::Owner => 0,
            Who::User(_) => 1,
            Who::Group => 2,
            Who::NamedGroup(_) => 3,
            Who::Mask => 4,
            Who::Other => 5,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    who: Who,
    perm: u8,
}

/// A valid access control list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl {
    entries: SmallVec<[Entry; 6]>,
}

impl Acl {
    /// Parses a stored or given value. `None` is a list without entries, which means "remove".
    pub(crate) fn decode(value: &[u8]) -> Result<Option<Acl>> {
        if value.is_empty() {
            return Ok(None);
        }
        let Some((version, rest)) = value.split_first_chunk::<4>() else { return fail(Errno::EINVAL) };
        if u32::from_le_bytes(*version) != VERSION {
            return fail(Errno::EOPNOTSUPP);
        }
        if rest.len() % ENTRY_BYTES != 0 {
            return fail(Errno::EINVAL);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let mut entries = SmallVec::with_capacity(rest.len() / ENTRY_BYTES);
        for e in rest.chunks_exact(ENTRY_BYTES) {
            let tag = u16::from_le_bytes([e[0], e[1]]);
            let perm = u16::from_le_bytes([e[2], e[3]]);
            let id = u32::from_le_bytes([e[4], e[5], e[6], e[7]]);
            let who = match tag {
                0x01 => Who::Owner,
                0x02 if id != NO_ID => Who::User(id),
                0x04 => Who::Group,
                0x08 if id != NO_ID => Who::NamedGroup(id),
                0x10 => Who::Mask,
                0x20 => Who::Other,
                _ => return fail(Errno::EINVAL),
            };
            if perm > 7 {
                return fail(Errno::EINVAL);
            }
            entries.push(Entry { who, perm: perm as u8 });
        }
        let acl = Acl { entries };
        acl.check()?;
        Ok(Some(acl))
    }

    fn check(&self) -> Result<()> {
        let sorted = self.entries.windows(2).all(|w| w[0].who.class() <= w[1].who.class());
        let count = |class: u8| self.entries.iter().filter(|e| e.who.class() == class).count();
        let named = count(1) + count(3) > 0;
        let masks = count(4);
        let complete = count(0) == 1 && count(2) == 1 && count(5) == 1;
        if sorted && complete && (masks == 1 || (masks == 0 && !named)) { Ok(()) } else { fail(Errno::EINVAL) }
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.entries.len() * ENTRY_BYTES);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for e in &self.entries {
            let (tag, id) = match e.who {
                Who::Owner => (0x01u16, NO_ID),
                Who::User(id) => (0x02, id),
                Who::Group => (0x04, NO_ID),
                Who::NamedGroup(id) => (0x08, id),
                Who::Mask => (0x10, NO_ID),
                Who::Other => (0x20, NO_ID),
            };
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&u16::from(e.perm).to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    fn perm_of(&self, who: Who) -> Option<u8> {
        self.entries.iter().find(|e| e.who == who).map(|e| e.perm)
    }

    /// Nothing but the three entries that a mode can say as well; such a list is never stored.
    pub(crate) fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The nine permission bits that the list shows in a mode: the group bits are the mask's, if there is one.
    pub(crate) fn mode_bits(&self) -> u32 {
        let owner = u32::from(self.perm_of(Who::Owner).unwrap_or(0));
        let group = u32::from(self.perm_of(Who::Mask).or(self.perm_of(Who::Group)).unwrap_or(0));
        let other = u32::from(self.perm_of(Who::Other).unwrap_or(0));
        owner << 6 | group << 3 | other
    }

    /// `f` maps the present permissions of the owner, of the mask (or the group), and of the others, given the mode's bits.
    fn map_mode_entries(&self, mode: u32, f: impl Fn(u8, u8) -> u8) -> Acl {
        let has_mask = self.perm_of(Who::Mask).is_some();
        let mut acl = self.clone();
        for e in &mut acl.entries {
            match e.who {
                Who::Owner => e.perm = f(e.perm, (mode >> 6 & 7) as u8),
                Who::Mask => e.perm = f(e.perm, (mode >> 3 & 7) as u8),
                Who::Group if !has_mask => e.perm = f(e.perm, (mode >> 3 & 7) as u8),
                Who::Other => e.perm = f(e.perm, (mode & 7) as u8),
                _ => {}
            }
        }
        acl
    }

    /// The list after chmod to `mode` (§8.3).
    pub(crate) fn with_mode(&self, mode: u32) -> Acl {
        self.map_mode_entries(mode, |_, bits| bits)
    }

    /// As a directory's default list: the access list of an inode created with `mode`; its [`Self::mode_bits`] become the
    /// mode's permission bits (§8.4).
    pub(crate) fn inherited(&self, mode: u32) -> Acl {
        self.map_mode_entries(mode, |perm, bits| perm & bits)
    }

    /// Does the list grant all of `want` (rwx = 4,2,1) on an inode of `uid` and `gid`? (§8.5, without privileges.)
    pub(crate) fn grants(&self, caller: &Caller, uid: u32, gid: u32, want: u8) -> bool {
        let all = |perm: u8| perm & want == want;
        if caller.uid == uid {
            return all(self.perm_of(Who::Owner).unwrap_or(0));
        }
        let mask = self.perm_of(Who::Mask).unwrap_or(7);
        if let Some(perm) = self.perm_of(Who::User(caller.uid)) {
            return all(perm & mask);
        }
        let mut in_some_group = false;
        for e in &self.entries {
            let matches = match e.who {
                Who::Group => caller.in_group(gid),
                Who::NamedGroup(id) => caller.in_group(id),
                _ => false,
            };
            if matches {
                in_some_group = true;
                if all(e.perm & mask) {
                    return true;
                }
            }
        }
        !in_some_group && all(self.perm_of(Who::Other).unwrap_or(0))
    }
}

/// What becomes of a new inode's mode and lists in a directory with or without a default list (§8.4).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    /// Kind, special and permission bits.
    pub(crate) mode: u32,
    /// To store as the access list.
    pub(crate) access: Option<Acl>,
    /// To store as the default list.
    pub(crate) default: Option<Acl>,
}

/// Applies the umask or the directory's default list to the requested mode. Symlinks keep theirs.
pub(crate) fn inherit(dir_default: Option<&Acl>, mode: u32, umask: u32, is_dir: bool) -> Inherited {
    let Some(default) = dir_default else {
        return Inherited { mode: mode & !(umask & 0o777), access: None, default: None };
    };
    let access = default.inherited(mode);
    let mode = mode & !0o777 | access.mode_bits();
    Inherited { mode, access: (!access.is_minimal()).then_some(access), default: is_dir.then(|| default.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::types::Caps;

    fn vectors() -> serde_json::Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vectors/namespace-acl.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn unhex(s: &str) -> Vec<u8> {
        (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
    }

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn stored(acl: Option<&Acl>) -> String {
        acl.map_or("ENODATA".to_owned(), |a| hex(&a.encode()))
    }

    /// Mode and stored list after setting `value` as access list.
    fn set(mode: u32, value: &[u8]) -> Result<(u32, Option<Acl>)> {
        Ok(match Acl::decode(value)? {
            None => (mode, None),
            Some(acl) => (mode & !0o777 | acl.mode_bits(), (!acl.is_minimal()).then_some(acl)),
        })
    }

    #[test]
    fn setting_an_access_list_gives_the_recorded_mode_and_value() {
        for v in vectors()["set_access"].as_array().unwrap() {
            let before = u32::from_str_radix(v["mode_before"].as_str().unwrap(), 8).unwrap();
            let (ret, mode, acl) = match set(before, &unhex(v["value"].as_str().unwrap())) {
                Ok((mode, acl)) => ("OK", mode, acl),
                Err(e) if e.is(Errno::EINVAL) => ("EINVAL", before, None),
                Err(e) if e.is(Errno::EOPNOTSUPP) => ("ENOTSUP", before, None),
                Err(e) => panic!("{e}"),
            };
            assert_eq!(ret, v["ret"].as_str().unwrap(), "{v}");
            assert_eq!(format!("{mode:o}"), v["mode_after"].as_str().unwrap(), "{v}");
            assert_eq!(stored(acl.as_ref()), v["stored"].as_str().unwrap(), "{v}");
        }
    }

    #[test]
    fn chmod_rewrites_the_stored_list_as_recorded() {
        let v = vectors();
        for c in v["chmod_with_access_acl"].as_array().unwrap() {
            let set_case = v["set_access"].as_array().unwrap().iter().find(|s| s["case"] == c["case"]).unwrap();
            let (_, acl) = set(0o644, &unhex(set_case["value"].as_str().unwrap())).unwrap();
            let to = u32::from_str_radix(c["chmod"].as_str().unwrap(), 8).unwrap();
            let after = acl.map(|a| a.with_mode(to)).filter(|a| !a.is_minimal());
            let mode = after.as_ref().map_or(to, Acl::mode_bits);
            assert_eq!(format!("{mode:o}"), c["mode_after"].as_str().unwrap(), "{c}");
            assert_eq!(stored(after.as_ref()), c["stored"].as_str().unwrap(), "{c}");
        }
    }

    #[test]
    fn inheritance_gives_the_recorded_modes_and_lists() {
        for v in vectors()["inherit"].as_array().unwrap() {
            let octal = |f: &str| u32::from_str_radix(v[f].as_str().unwrap(), 8).unwrap();
            let default = v["default_value"].as_str().and_then(|s| Acl::decode(&unhex(s)).unwrap());
            let is_dir = v["kind"] == "dir";
            let got = inherit(default.as_ref(), octal("create_mode"), octal("umask"), is_dir);
            assert_eq!(format!("{:o}", got.mode), v["mode"].as_str().unwrap(), "{v}");
            assert_eq!(stored(got.access.as_ref()), v["access"].as_str().unwrap(), "{v}");
            if is_dir {
                assert_eq!(stored(got.default.as_ref()), v["default"].as_str().unwrap(), "{v}");
            }
        }
    }

    #[test]
    fn defect_64_inherited_list_keeps_the_setgid_bit_of_a_directory() {
        let value = unhex("0200000001000700ffffffff02000700ce56000004000500ffffffff10000700ffffffff20000500ffffffff");
        let default = Acl::decode(&value).unwrap().unwrap();
        let got = inherit(Some(&default), 0o042_777, 0o022, true);
        assert_eq!(got.mode, 0o042_775);
    }

    #[test]
    fn groups_that_match_but_do_not_grant_shut_out_the_others_entry() {
        // owner rwx, user 5 rw, group r, named group 7 w, mask rw, other rwx
        let value = unhex(
            "0200000001000700ffffffff020006000500000004000400ffffffff080002000700000010000600ffffffff20000700ffffffff",
        );
        let acl = Acl::decode(&value).unwrap().unwrap();
        let who = |uid, gid, groups: &[u32]| Caller { uid, gid, groups: groups.to_vec(), caps: Caps::NONE, umask: 0 };
        assert!(acl.grants(&who(1, 1, &[]), 1, 2, 7));
        assert!(acl.grants(&who(5, 1, &[]), 1, 2, 6));
        assert!(!acl.grants(&who(5, 1, &[]), 1, 2, 1));
        assert!(acl.grants(&who(9, 2, &[]), 1, 2, 4));
        assert!(!acl.grants(&who(9, 2, &[7]), 1, 2, 6), "no single entry grants both");
        assert!(acl.grants(&who(9, 1, &[7]), 1, 2, 2));
        assert!(!acl.grants(&who(9, 1, &[7]), 1, 2, 1));
        assert!(acl.grants(&who(9, 1, &[]), 1, 2, 7));
    }
}
