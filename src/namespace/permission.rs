//! Who may do what: permission bits, ACLs, privileges, sticky and set-id rules (`spec/06 §5.2, §5.8, §9`).
//!
//! Pure functions on the fields of an inode that is held under its group's lock, so a stale mode is never used.

use super::acl::Acl;
use super::inode::Fields;
use super::types::{Access, Caller, Caps, S_ISGID, S_ISUID, S_ISVTX};
use crate::error::{Errno, Result, fail};
use crate::format::DirentKind;

/// `EACCES` unless the bits, the ACL or a privilege grant all of `want`.
pub(crate) fn check(f: &Fields, acl: Option<&Acl>, caller: &Caller, want: Access) -> Result<()> {
    if want == Access::NONE || by_bits(f, acl, caller, want) || by_privilege(f, caller, want) {
        Ok(())
    } else {
        fail(Errno::EACCES)
    }
}

/// Can the answer depend on a stored access ACL? If not, it need not be read.
pub(crate) fn needs_acl(f: &Fields, caller: &Caller, want: Access) -> bool {
    want != Access::NONE && f.next_xattr_id != 0 && caller.uid != f.uid && !by_privilege(f, caller, want)
}

fn by_bits(f: &Fields, acl: Option<&Acl>, caller: &Caller, want: Access) -> bool {
    let want = want.0 & 7;
    if let Some(acl) = acl {
        return acl.grants(caller, f.uid, f.gid, want as u8);
    }
    let bits = if caller.uid == f.uid {
        f.mode >> 6
    } else if caller.in_group(f.gid) {
        f.mode >> 3
    } else {
        f.mode
    };
    bits & want == want
}

fn by_privilege(f: &Fields, caller: &Caller, want: Access) -> bool {
    let reads_only = !want.has(Access::WRITE);
    if f.kind == DirentKind::Dir {
        return caller.can(Caps::DAC_OVERRIDE) || (reads_only && caller.can(Caps::DAC_READ_SEARCH));
    }
    let runs = want.has(Access::EXECUTE);
    (caller.can(Caps::DAC_OVERRIDE) && (!runs || f.mode & 0o111 != 0))
        || (want == Access::READ && caller.can(Caps::DAC_READ_SEARCH))
}

/// Owner of the inode, or privileged to act as one.
pub(crate) fn is_owner(f: &Fields, caller: &Caller) -> bool {
    caller.uid == f.uid || caller.can(Caps::FOWNER)
}

/// The sticky rule on taking a name away: `EPERM` unless the caller owns the entry's inode or the directory.
pub(crate) fn check_sticky(dir: &Fields, victim: &Fields, caller: &Caller) -> Result<()> {
    if dir.mode & S_ISVTX != 0 && caller.uid != victim.uid && caller.uid != dir.uid && !caller.can(Caps::FOWNER) {
        return fail(Errno::EPERM);
    }
    Ok(())
}

/// Mode bits that stay when somebody without `CAP_FSETID` asks for them: no set-gid for a group one is not in.
pub(crate) fn allowed_mode(mode: u32, gid: u32, caller: &Caller) -> u32 {
    if mode & S_ISGID != 0 && !caller.in_group(gid) && !caller.can(Caps::FSETID) { mode & !S_ISGID } else { mode }
}

/// The mode after contents or owner changed hands: set-uid goes, set-gid goes where it means "run as".
pub(crate) fn without_set_id(f: &Fields, caller: &Caller) -> u32 {
    if f.kind == DirentKind::Dir {
        return f.mode;
    }
    let mut mode = f.mode & !S_ISUID;
    if mode & S_ISGID != 0 && (mode & 0o010 != 0 || (!caller.in_group(f.gid) && !caller.can(Caps::FSETID))) {
        mode &= !S_ISGID;
    }
    mode
}

/// The mode of a file after a write or truncation by this caller.
pub(crate) fn mode_after_write(f: &Fields, caller: &Caller) -> u32 {
    if f.mode & (S_ISUID | S_ISGID) == 0 || caller.can(Caps::FSETID) { f.mode } else { without_set_id(f, caller) }
}

/// Group and mode that a new inode gets in a directory, before umask and ACLs (`spec/06 §5.3`).
pub(crate) fn new_owner(dir: &Fields, mode: u32, caller: &Caller) -> (u32, u32) {
    if dir.mode & S_ISGID == 0 {
        return (caller.gid, strip_new_setgid(mode, caller.gid, caller));
    }
    if DirentKind::from_mode(mode) == Some(DirentKind::Dir) {
        return (dir.gid, mode | S_ISGID);
    }
    (dir.gid, strip_new_setgid(mode, dir.gid, caller))
}

fn strip_new_setgid(mode: u32, gid: u32, caller: &Caller) -> u32 {
    let is_dir = DirentKind::from_mode(mode) == Some(DirentKind::Dir);
    if !is_dir && mode & (S_ISGID | 0o010) == S_ISGID | 0o010 { allowed_mode(mode, gid, caller) } else { mode }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(mode: u32, uid: u32, gid: u32) -> Fields {
        Fields { mode, uid, gid, kind: DirentKind::from_mode(mode).unwrap(), ..Fields::default() }
    }

    #[test]
    fn privileges_do_not_make_a_file_without_x_executable() {
        let f = fields(0o100_600, 5, 5);
        assert!(check(&f, None, &Caller::root(), Access::EXECUTE).is_err());
        assert!(check(&f, None, &Caller::root(), Access::READ | Access::WRITE).is_ok());
        let d = fields(0o040_000, 5, 5);
        assert!(check(&d, None, &Caller::root(), Access::READ | Access::WRITE | Access::EXECUTE).is_ok());
    }

    #[test]
    fn read_search_privilege_reads_but_does_not_write() {
        let mut c = Caller::user(9, 9);
        c.caps = Caps::DAC_READ_SEARCH;
        let d = fields(0o040_000, 5, 5);
        assert!(check(&d, None, &c, Access::READ | Access::EXECUTE).is_ok());
        assert!(check(&d, None, &c, Access::WRITE).is_err());
    }

    #[test]
    fn owner_bits_bind_the_owner_even_if_others_may_more() {
        let f = fields(0o100_077, 5, 5);
        assert!(check(&f, None, &Caller::user(5, 5), Access::READ).is_err());
        assert!(check(&f, None, &Caller::user(6, 5), Access::READ).is_ok());
    }

    #[test]
    fn defect_63_set_id_bits_go_when_an_unprivileged_caller_writes() {
        let f = fields(0o106_755, 5, 5);
        assert_eq!(mode_after_write(&f, &Caller::user(5, 5)), 0o100_755);
        assert_eq!(mode_after_write(&f, &Caller::root()), 0o106_755);
    }
}
