//! Moving and swapping names (`spec/06 §5.6`).
//!
//! **Problem.** A directory moved below itself would leave the tree. Two mounts that move two directories into each other
//! each see nothing wrong alone.
//!
//! **Idea.** Whoever moves a directory to another parent holds the one rename lock of the cluster to the end, and walks from
//! the new parent up to the root while no such move can happen anywhere. Everything else needs no such lock.

use smallvec::SmallVec;

use super::dir::{Link, Name, RETRIES, take_position};
use super::link::Unlinked;
use super::names::Target;
use super::types::{Access, Caller, RenameFlags};
use super::{Fields, GroupLocks, Inode, Namespace, Touch, Tx, lock_ops};
use crate::error::{Errno, Result, fail};
use crate::format::consts::LINK_MAX;
use crate::format::{DirentKind, Ino};
use crate::item::ChangeSet;
use crate::lock::{LockName, Mode};
use crate::sync::Arc;
use crate::txn::HoldKind;

/// How often an ancestor walk starts over because a directory on the way vanished.
pub(crate) const WALK_RETRIES: usize = 10;

/// One side of a rename.
#[derive(Clone, Copy)]
struct Side<'a> {
    dir: Ino,
    name: Name<'a>,
}

/// What both names led to when they were looked up; the operation verifies it.
#[derive(Clone, Copy, PartialEq)]
struct Seen {
    moved: Target,
    other: Option<Target>,
}

/// The inodes of one try, in memory.
struct Cast {
    from: Arc<Inode>,
    to: Arc<Inode>,
    moved: Arc<Inode>,
    other: Option<Arc<Inode>>,
}

/// Fields of the directories of a rename, which may be one.
struct Dirs {
    from: Fields,
    to: Option<Fields>,
}

impl Dirs {
    fn of(cast: &Cast) -> Dirs {
        let same = cast.from.ino() == cast.to.ino();
        Dirs { from: cast.from.fields(), to: (!same).then(|| cast.to.fields()) }
    }

    fn to(&mut self) -> &mut Fields {
        self.to.as_mut().unwrap_or(&mut self.from)
    }

    fn each(&mut self, mut f: impl FnMut(&mut Fields)) {
        f(&mut self.from);
        if let Some(to) = &mut self.to {
            f(to);
        }
    }
}

fn is_dir(t: &Target) -> bool {
    // An entry without a valid type may be anything.
    matches!(t.kind, Some(DirentKind::Dir) | None)
}

impl Namespace {
    /// Moves a name, or swaps two.
    pub(crate) fn rename(
        &self,
        caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        flags: RenameFlags,
    ) -> Result<()> {
        self.writable()?;
        if !matches!(flags, RenameFlags::NONE | RenameFlags::NOREPLACE | RenameFlags::EXCHANGE) {
            return fail(Errno::EINVAL);
        }
        let dots = if flags == RenameFlags::NOREPLACE { Errno::EEXIST } else { Errno::EBUSY };
        let to = Side { dir: to.0, name: Name::new(to.1, dots)? };
        let from = Side { dir: from.0, name: Name::new(from.1, Errno::EBUSY)? };
        let mut at_once = true;
        for _ in 0..RETRIES {
            let seen = self.see(caller, from, to)?;
            match self.rename_seen(caller, (from, to), flags, seen, at_once)? {
                Outcome::Done => return Ok(()),
                Outcome::Changed => {}
                Outcome::TooMuch => at_once = false,
            }
        }
        fail(Errno::EBUSY)
    }

    /// What both names lead to. Within one directory the last known answers do, because nothing is decided before they have
    /// been verified.
    fn see(&self, caller: &Caller, from: Side<'_>, to: Side<'_>) -> Result<Seen> {
        let known = |side: &Side<'_>| match from.dir == to.dir {
            true => self.names.guess(side.dir, side.name.bytes),
            false => None,
        };
        let moved = match known(&from) {
            Some(Some(t)) => t,
            _ => self.search(caller, from.dir, &from.name)?,
        };
        let other = match known(&to) {
            Some(known) => known,
            None => match self.search(caller, to.dir, &to.name) {
                Ok(t) => Some(t),
                Err(e) if e.is(Errno::ENOENT) => None,
                Err(e) => return Err(e),
            },
        };
        Ok(Seen { moved, other })
    }

    fn rename_seen(
        &self,
        caller: &Caller,
        (from, to): (Side<'_>, Side<'_>),
        flags: RenameFlags,
        seen: Seen,
        at_once: bool,
    ) -> Result<Outcome> {
        let exchange = flags == RenameFlags::EXCHANGE;
        let Seen { moved, other } = seen;
        let moves_dir = from.dir != to.dir && (is_dir(&moved) || (exchange && other.as_ref().is_some_and(is_dir)));
        let _rename = if moves_dir {
            let ours = self.renaming.lock();
            Some((self.node.locks.acquire(LockName::rename(), Mode::Write)?, ours))
        } else {
            None
        };
        if moves_dir {
            if is_dir(&moved) && self.is_below(to.dir, moved.ino)? {
                return fail(Errno::EINVAL);
            }
            if let Some(t) = other.filter(|t| exchange && is_dir(t))
                && self.is_below(from.dir, t.ino)?
            {
                return fail(Errno::EINVAL);
            }
        }
        // What contains the source cannot be empty, and that counts before its kind.
        if !exchange
            && from.dir != to.dir
            && let Some(t) = other.filter(is_dir)
            && flags != RenameFlags::NOREPLACE
            && self.is_below(from.dir, t.ino)?
        {
            return fail(Errno::ENOTEMPTY);
        }
        let cast = Cast {
            from: self.inode(from.dir)?,
            to: self.inode(to.dir)?,
            moved: self.inode(moved.ino)?,
            other: other.map(|t| self.inode(t.ino)).transpose()?,
        };
        let mut all: SmallVec<[&Inode; 4]> = SmallVec::from_slice(&[&*cast.from, &*cast.to, &*cast.moved]);
        all.extend(cast.other.as_deref());
        let locks = self.lock_groups(&all)?;
        let _ops = lock_ops(&all);
        let (from_dir, to_dir) =
            (self.fresh_dir(&cast.from, locks.of(from.dir))?, self.fresh_dir(&cast.to, locks.of(to.dir))?);
        self.check_access(&cast.from, locks.of(from.dir), &from_dir, caller, Access::EXECUTE)?;
        self.check_access(&cast.to, locks.of(to.dir), &to_dir, caller, Access::EXECUTE)?;
        let now = Seen {
            moved: match self.find(from.dir, locks.of(from.dir), &from.name)? {
                Some(t) => t,
                None => return fail(Errno::ENOENT),
            },
            other: self.find(to.dir, locks.of(to.dir), &to.name)?,
        };
        if now != seen {
            return Ok(Outcome::Changed);
        }
        if flags == RenameFlags::NOREPLACE && other.is_some() {
            return fail(Errno::EEXIST);
        }
        if exchange && other.is_none() {
            return fail(Errno::ENOENT);
        }
        if other.is_some_and(|t| t.ino == moved.ino) {
            return Ok(Outcome::Done);
        }
        let mf = self.linked(&cast.moved, locks.of(moved.ino), from.dir, &from.name)?;
        let of = match (&cast.other, other) {
            (Some(inode), Some(t)) => Some(self.linked(inode, locks.of(t.ino), to.dir, &to.name)?),
            _ => None,
        };
        let fields = [&from_dir, &to_dir, &mf];
        self.check_rename(caller, &cast, &locks, fields, of.as_ref(), exchange)?;
        match (exchange, of) {
            (true, Some(of)) => self.apply_exchange(&cast, &locks, (from, to), seen, (&mf, &of)),
            _ => self.apply_rename(&cast, &locks, (from, to), seen, (&mf, of.as_ref()), at_once),
        }
    }

    /// All rules on a rename that depend on what the inodes are.
    fn check_rename(
        &self,
        caller: &Caller,
        cast: &Cast,
        locks: &GroupLocks,
        [from_dir, to_dir, moved]: [&Fields; 3],
        other: Option<&Fields>,
        exchange: bool,
    ) -> Result<()> {
        let (from, to) = (&cast.from, &cast.to);
        let (from_lock, to_lock) = (locks.of(from.ino()), locks.of(to.ino()));
        self.check_delete(from, from_lock, from_dir, moved, caller)?;
        // Another mount may have removed the directory (defect 56).
        if to_dir.nlink == 0 {
            return fail(Errno::ENOENT);
        }
        match other {
            None => self.check_access(to, to_lock, to_dir, caller, Access::WRITE | Access::EXECUTE)?,
            Some(o) => {
                self.check_delete(to, to_lock, to_dir, o, caller)?;
                match (moved.is_dir(), o.is_dir()) {
                    _ if exchange => {}
                    (true, false) => return fail(Errno::ENOTDIR),
                    (false, true) => return fail(Errno::EISDIR),
                    (true, true) if o.size != 0 => return fail(Errno::ENOTEMPTY),
                    _ => {}
                }
            }
        }
        let retained = moved.in_retention() || other.is_some_and(Fields::in_retention);
        if retained {
            return fail(Errno::EPERM);
        }
        if from.ino() != to.ino() {
            // The entry `..` of a moved directory changes.
            if moved.is_dir() {
                self.check_access(&cast.moved, locks.of(cast.moved.ino()), moved, caller, Access::WRITE)?;
                if to_dir.nlink >= LINK_MAX {
                    return fail(Errno::EMLINK);
                }
            }
            if let (true, Some(o), Some(inode)) = (exchange, other, &cast.other)
                && o.is_dir()
            {
                self.check_access(inode, locks.of(inode.ino()), o, caller, Access::WRITE)?;
            }
        }
        Ok(())
    }

    fn apply_rename(
        &self,
        cast: &Cast,
        locks: &GroupLocks,
        (from, to): (Side<'_>, Side<'_>),
        seen: Seen,
        (mf, of): (&Fields, Option<&Fields>),
        at_once: bool,
    ) -> Result<Outcome> {
        let (from_lock, to_lock, lock) = (locks.of(from.dir), locks.of(to.dir), locks.of(seen.moved.ino));
        let victim = match (&cast.other, seen.other, of) {
            (Some(inode), Some(target), Some(f)) => {
                let lock = locks.of(target.ino);
                Some((inode, target, lock, self.plan_unlink(inode, lock, f, at_once)?))
            }
            _ => None,
        };
        let mut touches: SmallVec<[(&Inode, Touch); 4]> =
            SmallVec::from_slice(&[(&*cast.from, Touch::Meta), (&*cast.to, Touch::Meta), (&*cast.moved, Touch::Meta)]);
        touches.extend(victim.as_ref().map(|(inode, _, _, plan)| (&***inode, plan.touch())));
        let tx = self.begin(HoldKind::Allocating, &touches)?;

        let mut dirs = Dirs::of(cast);
        let moved = Target { pos: take_position(dirs.to())?, ..seen.moved };
        let is_dir = mf.is_dir();
        dirs.from.size = dirs.from.size.saturating_sub(from.name.bytes.len() as u64);
        dirs.from.nlink = dirs.from.nlink.saturating_sub(u32::from(is_dir));
        let to_fields = dirs.to();
        to_fields.nlink += u32::from(is_dir);
        match of {
            None => to_fields.size = to_fields.size.saturating_add(to.name.bytes.len() as u64),
            Some(of) => to_fields.nlink = to_fields.nlink.saturating_sub(u32::from(of.is_dir())),
        }

        let mut cs = ChangeSet::new(&self.node.items);
        let mut done = None;
        if let Some((inode, target, victim_lock, plan)) = &victim {
            Link { dir: to.dir, name: to.name, target: *target }.remove(&mut cs, to_lock, victim_lock);
            match self.add_unlink(&mut cs, &tx, victim_lock, inode, plan)? {
                Unlinked::TooMuch => return Ok(Outcome::TooMuch),
                unlinked => done = Some(unlinked),
            }
        }
        Link { dir: to.dir, name: to.name, target: moved }.add(&mut cs, to_lock, lock);
        Link { dir: from.dir, name: from.name, target: seen.moved }.remove(&mut cs, from_lock, lock);
        let mut moved_fields = changed(&cast.moved, &tx);
        self.put_inode(&mut cs, &tx, lock, &cast.moved, &mut moved_fields, Touch::Meta);
        self.put_dirs(&mut cs, &tx, locks, cast, &mut dirs);
        cs.apply(tx.hold())?;

        cast.moved.store(lock.refresh_gen(), moved_fields);
        store_dirs(cast, locks, &dirs);
        // Who has seen that the old name is gone, without the operation lock, must not find the new one absent: it is not
        // known until both are.
        self.names.forget(to.dir, to.name.bytes);
        self.names.put(from.dir, from.name.bytes, from_lock.refresh_gen(), None);
        self.names.put(to.dir, to.name.bytes, to_lock.refresh_gen(), Some(moved));
        if let (Some((inode, _, victim_lock, plan)), Some(done)) = (&victim, done) {
            self.finish_unlink(&tx, victim_lock, inode, plan, done)?;
        }
        Ok(Outcome::Done)
    }

    /// Both entries stay where they are and change targets, so listings that are under way see each name once.
    fn apply_exchange(
        &self,
        cast: &Cast,
        locks: &GroupLocks,
        (from, to): (Side<'_>, Side<'_>),
        seen: Seen,
        (mf, of): (&Fields, &Fields),
    ) -> Result<Outcome> {
        let (Some(other), Some(other_inode)) = (seen.other, &cast.other) else { return fail(Errno::ENOENT) };
        let (from_lock, to_lock) = (locks.of(from.dir), locks.of(to.dir));
        let (lock, other_lock) = (locks.of(seen.moved.ino), locks.of(other.ino));
        let touches = [&*cast.from, &*cast.to, &*cast.moved, &**other_inode].map(|i| (i, Touch::Meta));
        let tx = self.begin(HoldKind::Allocating, &touches)?;
        let mut dirs = Dirs::of(cast);
        let (md, od) = (u32::from(mf.is_dir()), u32::from(of.is_dir()));
        dirs.from.nlink = (dirs.from.nlink + od).saturating_sub(md);
        let to_fields = dirs.to();
        to_fields.nlink = (to_fields.nlink + md).saturating_sub(od);

        let mut cs = ChangeSet::new(&self.node.items);
        let first = Link { dir: from.dir, name: from.name, target: seen.moved };
        first.redirect(&mut cs, from_lock, (lock, other_lock), other);
        let second = Link { dir: to.dir, name: to.name, target: other };
        second.redirect(&mut cs, to_lock, (other_lock, lock), seen.moved);
        let (mut moved_fields, mut other_fields) = (changed(&cast.moved, &tx), changed(other_inode, &tx));
        self.put_inode(&mut cs, &tx, lock, &cast.moved, &mut moved_fields, Touch::Meta);
        self.put_inode(&mut cs, &tx, other_lock, other_inode, &mut other_fields, Touch::Meta);
        self.put_dirs(&mut cs, &tx, locks, cast, &mut dirs);
        cs.apply(tx.hold())?;

        cast.moved.store(lock.refresh_gen(), moved_fields);
        other_inode.store(other_lock.refresh_gen(), other_fields);
        store_dirs(cast, locks, &dirs);
        let at_from = Target { pos: seen.moved.pos, ..other };
        let at_to = Target { pos: other.pos, ..seen.moved };
        self.names.forget(to.dir, to.name.bytes);
        self.names.put(from.dir, from.name.bytes, from_lock.refresh_gen(), Some(at_from));
        self.names.put(to.dir, to.name.bytes, to_lock.refresh_gen(), Some(at_to));
        Ok(Outcome::Done)
    }

    fn put_dirs<'a>(
        &self,
        cs: &mut ChangeSet<'a>,
        tx: &'a Tx<'_>,
        locks: &'a GroupLocks,
        cast: &Cast,
        dirs: &mut Dirs,
    ) {
        dirs.each(|f| {
            (f.mtime, f.ctime) = (tx.now, tx.now);
            f.version += 1;
        });
        self.put_inode(cs, tx, locks.of(cast.from.ino()), &cast.from, &mut dirs.from, Touch::Meta);
        if let Some(to) = &mut dirs.to {
            self.put_inode(cs, tx, locks.of(cast.to.ino()), &cast.to, to, Touch::Meta);
        }
    }

    /// Is `dir` the directory `top` or somewhere below it? Certain only while the rename lock and `renaming` are held.
    fn is_below(&self, dir: Ino, top: Ino) -> Result<bool> {
        for _ in 0..WALK_RETRIES {
            let mut at = dir;
            // Brent: a mark that moves up at every power of two is met again if the chain is a loop.
            let (mut mark, mut steps, mut limit) = (dir, 0u64, 1u64);
            loop {
                if at == top {
                    return Ok(true);
                }
                if at == Ino::ROOT {
                    return Ok(false);
                }
                at = match self.parent_of(at) {
                    Ok(parent) => parent,
                    Err(e) if e.is(Errno::ENOENT) && at == dir => return fail(Errno::ENOENT),
                    Err(e) if e.is(Errno::ENOENT) => break,
                    Err(e) => return Err(e),
                };
                if at == mark {
                    return fail(Errno::ELOOP);
                }
                steps += 1;
                if steps == limit {
                    (mark, limit) = (at, limit * 2);
                }
            }
        }
        fail(Errno::ELOOP)
    }
}

/// How a try to rename ended.
enum Outcome {
    Done,
    /// A name led elsewhere than before.
    Changed,
    /// The victim is too large to be deleted at once.
    TooMuch,
}

/// Fields of an inode whose name changes.
fn changed(inode: &Inode, tx: &Tx<'_>) -> Fields {
    let mut f = inode.fields();
    f.ctime = tx.now;
    f.version += 1;
    f
}

fn store_dirs(cast: &Cast, locks: &GroupLocks, dirs: &Dirs) {
    cast.from.store(locks.of(cast.from.ino()).refresh_gen(), dirs.from);
    if let Some(to) = dirs.to {
        cast.to.store(locks.of(cast.to.ino()).refresh_gen(), to);
    }
}
