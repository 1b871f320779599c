//! The archive attribute calls: sequence numbers, retention, projects, restoring files (`spec/06 §5.9`).

use super::types::{AttrX, Caller, Caps};
use super::{Fields, Namespace, Touch, lock_ops};
use crate::error::{Errno, Result, fail};
use crate::format::Ino;
use crate::format::consts::{FORMAT_VERSION_2, INO_FLAG_RETENTION};
use crate::item::ChangeSet;
use crate::lock::Mode;
use crate::txn::HoldKind;

impl Namespace {
    /// The archive attributes; every field that the volume's format has is given.
    pub(crate) fn get_attr_x(&self, ino: Ino) -> Result<AttrX> {
        let v2 = self.node.fmt_vers >= FORMAT_VERSION_2;
        self.with_fields(ino, |_, _, f| {
            Ok(AttrX {
                meta_seq: Some(f.meta_seq),
                data_seq: Some(f.data_seq),
                data_version: Some(f.data_version),
                online_blocks: Some(f.online_blocks),
                offline_blocks: Some(f.offline_blocks),
                ctime: Some(f.ctime),
                crtime: Some(f.crtime),
                size: Some(f.attr(ino).size),
                retention: v2.then(|| f.in_retention()),
                project: v2.then_some(f.proj),
                size_offline: false,
            })
        })
    }

    /// Sets archive attributes: retention, project, times, size and data version of new files. Read-only fields are
    /// ignored. Everything is checked before anything changes.
    pub(crate) fn set_attr_x(&self, caller: &Caller, ino: Ino, set: &AttrX) -> Result<()> {
        self.writable()?;
        if !caller.can(Caps::SYS_ADMIN) {
            return fail(Errno::EPERM);
        }
        if (set.retention.is_some() || set.project.is_some()) && self.node.fmt_vers < FORMAT_VERSION_2 {
            return fail(Errno::EOPNOTSUPP);
        }
        if set.size_offline {
            return fail(Errno::EOPNOTSUPP);
        }
        let changes = AttrX { meta_seq: None, data_seq: None, online_blocks: None, offline_blocks: None, ..*set };
        if changes == AttrX::default() {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        let lock = self.lock_group(&inode, Mode::Write)?;
        let _ops = lock_ops(&[&inode]);
        check(&self.fresh(&inode, &lock)?, set)?;
        let tx = self.begin(HoldKind::Allocating, &[(&inode, Touch::Meta)])?;
        let mut f = inode.fields();
        f.data_version = set.data_version.unwrap_or(f.data_version);
        f.ctime = set.ctime.unwrap_or(f.ctime);
        f.crtime = set.crtime.unwrap_or(f.crtime);
        f.size = set.size.unwrap_or(f.size);
        f.proj = set.project.unwrap_or(f.proj);
        match set.retention {
            Some(true) => f.flags |= INO_FLAG_RETENTION,
            Some(false) => f.flags &= !INO_FLAG_RETENTION,
            None => {}
        }
        let mut cs = ChangeSet::new(&self.node.items);
        self.put_inode(&mut cs, &tx, &lock, &inode, &mut f, Touch::Meta);
        cs.apply(tx.hold())?;
        inode.store(lock.refresh_gen(), f);
        Ok(())
    }
}

/// The rules on the fields, given the inode's present ones.
fn check(f: &Fields, set: &AttrX) -> Result<()> {
    let restores = set.size.is_some() || set.data_version.is_some();
    let unsized_version = set.size.is_some_and(|s| s > 0) && set.data_version.is_none();
    let bad_time = set.ctime.iter().chain(&set.crtime).any(|t| t.nsec >= 1_000_000_000);
    if set.data_version == Some(0)
        || (restores && (!f.is_regular() || f.data_version != 0))
        || unsized_version
        || (set.retention.is_some() && !f.is_regular())
        || bad_time
    {
        return fail(Errno::EINVAL);
    }
    if set.size.is_some_and(|s| s > i64::MAX as u64) {
        return fail(Errno::EFBIG);
    }
    if f.in_retention() && set.retention != Some(false) {
        return fail(Errno::EPERM);
    }
    Ok(())
}
