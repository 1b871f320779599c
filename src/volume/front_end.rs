//! Front ends that cache what they were told, and how they hear that they must forget it: [`FrontEnd`].

use super::Volume;
use super::mount::Mounted;
use crate::client::CacheListener;
use crate::error::{Error, Result};
use crate::format::Ino;
use crate::lock::{LOCK_GROUP, LockName, Mode};
use crate::namespace::Caller;
use crate::sync::Arc;

/// The inodes that one cluster lock covers: 1024 consecutive numbers (`spec/04 §3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeGroup(u64);

impl InodeGroup {
    /// Inode numbers in a group.
    pub const INODES: u64 = LOCK_GROUP;

    /// The group of an inode.
    pub const fn of(ino: Ino) -> InodeGroup {
        InodeGroup(ino.0 / LOCK_GROUP)
    }

    /// Number of the group: its inode numbers divided by 1024.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The `nr`-th inode number of the group, `nr` below [`InodeGroup::INODES`].
    pub const fn inode(self, nr: u64) -> Ino {
        Ino(self.0 * LOCK_GROUP + nr % LOCK_GROUP)
    }

    /// Is the inode one of the group?
    pub const fn contains(self, ino: Ino) -> bool {
        ino.0 / LOCK_GROUP == self.0
    }
}

/// What a front end is asked to give back ([`FrontEnd::recall`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loans {
    /// What was lent only to be shown; there is nothing else.
    ReadOnly,
    /// What was lent to be changed. The rest may stay.
    Writable,
    /// Everything.
    All,
}

impl Loans {
    /// Is what was lent in this manner meant?
    pub fn includes(self, writable: bool) -> bool {
        self == Loans::All || writable == (self == Loans::Writable)
    }
}

/// Somebody who caches what a [`Volume`] answered.
///
/// **Problem.** A front end (a kernel behind FUSE, the clients of an NFS server) remembers attributes, names and contents, so
/// that it need not ask again. On a volume that other nodes change too, that is right only as long as this mount holds
/// the cluster lock under which the answer was given.
///
/// **Idea.** Cluster locks cover groups of 1024 inodes, with all that hangs on them: their attributes, ACLs and extended
/// attributes, the entries of directories, the contents of files. Before this mount gives up the lock of a group it calls
/// [`FrontEnd::invalidate`] for it. What a front end has from that group, and only that, it drops; then other nodes may
/// change it.
///
/// Invariants:
///  1. Nobody on this mount uses the group while `invalidate` runs, and nothing in it changes. Calls of [`Volume`] that need it
///     wait until it has returned and the lock has been granted again.
///  2. The answer of a call that was on its way to the front end when `invalidate` ran may be out of date when it is put into
///     the cache. The front end must notice that: by a counter that `invalidate` raises and that is compared before and after.
///  3. A lock that goes from write to read calls [`FrontEnd::invalidate`] for nobody: all that was cached stays right. So a
///     front end keeps nothing that it has not given to [`Volume::write`] yet.
///
/// **Loans.** Contents that others see and change through the front end without its knowledge, the pages of shared
/// mappings, cannot be dropped like this: to get a page back, the front end may have to wait for somebody who is filling
/// it, and what was stored into it has to be written while the lock is still there. Such contents are read with
/// [`Volume::lend`], which is for ever, until [`FrontEnd::recall`]; what was changed comes back by [`Volume::give_back`].
///
///  4. What is lent writable is lent to this mount alone. What is lent read-only may be lent to others too, read-only.
///  5. The lock does not go before `recall` has returned and nothing was lent while it ran; else it is called again.
///  6. A front end that others wait for while it fills (behind a page's lock) asks for an inode either always read-only or
///     always writable: a recall of what is read-only cannot wait for a fill that waits for the right to change.
///     [`Volume::exclusively`] is the way over.
///  7. A call of [`Volume::lend`] that comes while `recall` waits is answered after some milliseconds,
///     [`Volume::give_back`] at once.
pub trait FrontEnd: Send + Sync {
    /// The mount is about to lose the lock of `group`: drop all that is cached of its inodes, of the entries of its
    /// directories and of the contents of its files, before returning.
    ///
    /// Other nodes wait for the return. It may block on the front end's own locks and on a kernel that drops caches, but on
    /// nothing that may itself be waiting for a cluster lock, on this node or any other. Forbidden are calls of the
    /// [`Volume`], and waiting for a request that may be inside such a call, directly or through a lock that the request's
    /// issuer holds (the kernel holds a directory's lock during a create, and the lock of a page during a read).
    ///
    /// Called on a few threads at the same time for different groups; for one group never twice at a time.
    fn invalidate(&self, group: InodeGroup);

    /// Other nodes need the group: give back, by [`Volume::give_back`], what was stored into the contents that were lent of
    /// its inodes and are among `loans`, and forget them, before returning. By default nothing was ever lent.
    ///
    /// May wait for calls of [`Volume::lend`] and [`Volume::give_back`] of this group as far as they are meant here, and
    /// for nobody who may wait for another call of the [`Volume`].
    fn recall(&self, _group: InodeGroup, _loans: Loans) {}

    /// The mount has ended by itself ([`Volume::ended`]): the cluster has given it up, or a device does not keep what is
    /// written. Other nodes may change everything that is cached or was lent, and what was stored into it is lost. Every
    /// call of the [`Volume`] fails with this reason from now on; what is left is to drop all that is cached, to tell those
    /// who use it, and to drop the volume.
    ///
    /// Called once at most, on a thread that does nothing else; before [`Volume::close`] returns, and not because of it.
    fn ended(&self, _why: &Error) {}
}

impl Volume {
    /// Registers a front end that caches; before it asks for anything. It stays until the volume is gone, and is called until
    /// [`Volume::close`] returns, so it must not keep the volume alive itself. Whether the mount has [ended](Volume::ended)
    /// already has to be asked.
    pub fn add_front_end(&self, front_end: Arc<dyn FrontEnd>) {
        self.mounted.node.add_listener(Arc::new(Listener(front_end)));
    }

    /// As [`Volume::read`], for a front end that keeps the contents until it is told to [recall](FrontEnd::recall) them.
    /// With `writable` they may be changed meanwhile; no other mount has them then.
    ///
    /// Does not wait for contents that are offline, and lends nothing writable of a file of which a part is offline: `EIO`.
    /// Nothing of a retained file is lent writable: `EPERM`.
    pub fn lend(&self, ino: Ino, offset: u64, buf: &mut [u8], writable: bool) -> Result<usize> {
        let Mounted { data, ns, .. } = &self.mounted;
        self.mounted.tell(data.lend(ns, ino, offset, buf, writable))
    }

    /// As [`Volume::write`], for contents that were lent writable. What lies behind the end of the file is dropped, so
    /// fewer bytes than given are no error. Passes everybody who waits for the lock.
    pub fn give_back(&self, caller: &Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        let Mounted { data: room, ns, .. } = &self.mounted;
        self.mounted.tell(room.return_loan(ns, caller, ino, offset, data))
    }

    /// Calls `f` while no other mount can use the group of `ino`: for a front end that takes back itself what it was lent
    /// read-only, because from now on it wants it writable. `f` must not call the volume, but may wait for those that
    /// [`FrontEnd::recall`] may wait for. `EROFS` on a read-only mount.
    pub fn exclusively<R>(&self, ino: Ino, f: impl FnOnce() -> R) -> Result<R> {
        self.mounted.tell(self.mounted.ns.exclusively(ino, f))
    }
}

struct Listener(Arc<dyn FrontEnd>);

impl CacheListener for Listener {
    fn revoked(&self, name: LockName, _to: Mode) {
        if let Some(number) = name.inode_group() {
            self.0.invalidate(InodeGroup(number));
        }
    }

    fn recall(&self, name: LockName, from: Mode, to: Mode) {
        let Some(number) = name.inode_group() else { return };
        let loans = match (from, to) {
            (Mode::Write, Mode::Read) => Loans::Writable,
            (Mode::Write, _) => Loans::All,
            _ => Loans::ReadOnly,
        };
        self.0.recall(InodeGroup(number), loans);
    }

    fn ended(&self, why: &Error) {
        self.0.ended(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_what_its_lock_covers() {
        let group = InodeGroup::of(Ino(5000));
        assert_eq!((group.number(), group.inode(0), group.inode(1023)), (4, Ino(4096), Ino(5119)));
        assert!(group.contains(Ino(4096)) && group.contains(Ino(5119)) && !group.contains(Ino(5120)));
        assert_eq!(LockName::inode(Ino(5000)).inode_group(), Some(4));
        assert_eq!(LockName::orphan().inode_group(), None);
    }
}
