//! One inode in memory: its fields in native form, and what its users agree through.
//!
//! **Problem.** The fields live in an item of the inode's group. Operations want them without parsing, under the rule that
//! they are only good under the grant they were loaded under, while a commit running in the background may still add
//! blocks to a file whose inode is locked by an operation that waits for that very commit.
//!
//! **Idea.** Two locks. The *operation lock* orders operations of this mount on one inode and may be held while waiting
//! for cluster locks, transactions and devices. The *field lock* is held for a copy only. Fields change only inside a
//! transaction hold (or while a commit excludes holders), together with the item; so whoever holds the operation lock in
//! write mode and has entered a transaction may read, change and store them without anybody else interfering.
//!
//! Invariants: (1) `loaded` is the refresh generation of the group lock under which the fields were last read or written,
//! 0 if never; (2) `indexed` values are `meta_seq` and `data_seq` of the fields: every store of fields has written the
//! index items too; (3) the number of open handles is greater than 0 exactly while the open map bit is set.

use std::any::Any;

use super::acl::Acl;
use super::types::{Attr, Time};
use crate::error::Result;
use crate::format::consts::{DIRENT_FIRST_POS, INO_FLAG_RETENTION, INO_FLAG_TRUNCATE};
use crate::format::layout::InodeItem;
use crate::format::{DirentKind, Ino, encode_inode, validate_inode};
use crate::item::{ItemShard, Value};
use crate::lock::Lock;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, RwLock};

/// The stored fields of an inode (`spec/06 §3.1`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fields {
    pub(crate) kind: DirentKind,
    pub(crate) size: u64,
    pub(crate) meta_seq: u64,
    pub(crate) data_seq: u64,
    pub(crate) data_version: u64,
    pub(crate) online_blocks: u64,
    pub(crate) offline_blocks: u64,
    pub(crate) next_readdir_pos: u64,
    pub(crate) next_xattr_id: u64,
    pub(crate) version: u64,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) rdev: u32,
    pub(crate) flags: u32,
    pub(crate) atime: Time,
    pub(crate) ctime: Time,
    pub(crate) mtime: Time,
    pub(crate) crtime: Time,
    pub(crate) proj: u64,
}

impl Default for Fields {
    /// What every new inode starts from.
    fn default() -> Fields {
        Fields {
            kind: DirentKind::Regular,
            size: 0,
            meta_seq: 0,
            data_seq: 0,
            data_version: 0,
            online_blocks: 0,
            offline_blocks: 0,
            next_readdir_pos: DIRENT_FIRST_POS,
            next_xattr_id: 0,
            version: 0,
            nlink: 0,
            uid: 0,
            gid: 0,
            mode: 0,
            rdev: 0,
            flags: 0,
            atime: Time::default(),
            ctime: Time::default(),
            mtime: Time::default(),
            crtime: Time::default(),
            proj: 0,
        }
    }
}

impl Fields {
    /// Reads and checks the value of an inode item.
    pub(crate) fn decode(ino: Ino, value: &[u8], fmt_vers: u64) -> Result<Fields> {
        let i = validate_inode(ino, value, fmt_vers)?;
        let kind = DirentKind::from_mode(i.mode.get()).expect("validate_inode refuses unknown kinds");
        Ok(Fields {
            kind,
            size: i.size.get(),
            meta_seq: i.meta_seq.get(),
            data_seq: i.data_seq.get(),
            data_version: i.data_version.get(),
            online_blocks: i.online_blocks.get(),
            offline_blocks: i.offline_blocks.get(),
            next_readdir_pos: i.next_readdir_pos.get(),
            next_xattr_id: i.next_xattr_id.get(),
            version: i.version.get(),
            nlink: i.nlink.get(),
            uid: i.uid.get(),
            gid: i.gid.get(),
            mode: i.mode.get(),
            rdev: i.rdev.get(),
            flags: i.flags.get(),
            atime: Time::from_stored(&i.atime),
            ctime: Time::from_stored(&i.ctime),
            mtime: Time::from_stored(&i.mtime),
            crtime: Time::from_stored(&i.crtime),
            proj: i.proj.get(),
        })
    }

    /// The value of the inode item.
    pub(crate) fn encode(&self, fmt_vers: u64) -> Value {
        let item = InodeItem {
            size: self.size.into(),
            meta_seq: self.meta_seq.into(),
            data_seq: self.data_seq.into(),
            data_version: self.data_version.into(),
            online_blocks: self.online_blocks.into(),
            offline_blocks: self.offline_blocks.into(),
            next_readdir_pos: self.next_readdir_pos.into(),
            next_xattr_id: self.next_xattr_id.into(),
            version: self.version.into(),
            nlink: self.nlink.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            mode: self.mode.into(),
            rdev: self.rdev.into(),
            flags: self.flags.into(),
            atime: self.atime.to_stored(),
            ctime: self.ctime.to_stored(),
            mtime: self.mtime.to_stored(),
            crtime: self.crtime.to_stored(),
            proj: self.proj.into(),
        };
        Value::from(encode_inode(&item, fmt_vers))
    }

    /// What a caller sees.
    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        // The stored size of a symlink counts its NUL; POSIX wants the length of the target (`spec/06 §6`).
        let size = if self.kind == DirentKind::Symlink { self.size.saturating_sub(1) } else { self.size };
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            online_blocks: self.online_blocks,
            offline_blocks: self.offline_blocks,
            atime: self.atime,
            ctime: self.ctime,
            mtime: self.mtime,
            crtime: self.crtime,
            meta_seq: self.meta_seq,
            data_seq: self.data_seq,
            data_version: self.data_version,
            version: self.version,
            project: self.proj,
            retention: self.in_retention(),
        }
    }

    /// Regular files have a data index item, others none.
    pub(crate) fn is_regular(&self) -> bool {
        self.kind == DirentKind::Regular
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == DirentKind::Dir
    }

    pub(crate) fn in_retention(&self) -> bool {
        self.flags & INO_FLAG_RETENTION != 0
    }

    /// A truncation to `size` has not removed all extents yet.
    pub(crate) fn truncate_pending(&self) -> bool {
        self.flags & INO_FLAG_TRUNCATE != 0
    }

    /// Taking one more link away leaves none.
    pub(crate) fn is_last_link(&self) -> bool {
        self.nlink <= if self.is_dir() { 2 } else { 1 }
    }
}

/// A stored ACL, as far as it is known under the current grant.
#[derive(Clone, Debug, Default)]
pub(crate) enum KnownAcl {
    /// Has to be read.
    #[default]
    Unknown,
    /// Read.
    Is(Option<Arc<Acl>>),
}

/// What the field lock protects.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Refresh generation of the group lock under which the rest is known; 0: nothing is known.
    loaded: u64,
    fields: Fields,
    access: KnownAcl,
    default: KnownAcl,
}

/// Open handles of this mount.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    pub(crate) count: u32,
    /// Made by `tmpfile` of this mount and not opened exclusively: the only inodes without links that may get one.
    pub(crate) linkable: bool,
}

/// One inode; at most one exists for a number.
pub(crate) struct Inode {
    ino: Ino,
    /// The operation lock: shared for reads of several items that must fit together, exclusive for changes. Taken with the
    /// group's cluster lock, after it.
    pub(crate) op: RwLock<()>,
    state: RwLock<State>,
    pub(crate) opens: Mutex<Opens>,
    /// The group's lock object, so that the next operation need not look it up.
    lock: OnceLock<Arc<Lock<ItemShard>>>,
    /// Belongs to the data room: cached contents of a regular file.
    file: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// Recently used, for the cache's second chance.
    pub(crate) referenced: AtomicBool,
}

impl Inode {
    /// An inode of which nothing is known yet.
    pub(crate) fn new(ino: Ino) -> Inode {
        Inode {
            ino,
            op: RwLock::new(()),
            state: RwLock::new(State::default()),
            opens: Mutex::new(Opens::default()),
            lock: OnceLock::new(),
            file: OnceLock::new(),
            referenced: AtomicBool::new(true),
        }
    }

    /// Number of the inode.
    pub(crate) fn ino(&self) -> Ino {
        self.ino
    }

    /// The kept lock object of the inode's group.
    pub(crate) fn kept_lock(&self) -> Option<&Arc<Lock<ItemShard>>> {
        self.lock.get()
    }

    /// Keeps the lock object; the first one stays.
    pub(crate) fn keep_lock(&self, lock: Arc<Lock<ItemShard>>) {
        let _ = self.lock.set(lock);
    }

    /// Notes a use, for the cache's second chance.
    #[inline]
    pub(crate) fn touch(&self) {
        if !self.referenced.load(Ordering::Relaxed) {
            self.referenced.store(true, Ordering::Relaxed);
        }
    }

    /// Looks at the fields and the refresh generation they are of, if they are right at this moment; neither uses the group's
    /// lock nor waits.
    #[inline]
    pub(crate) fn peek_fields<R>(&self, look: impl FnOnce(u64, &Fields) -> Option<R>) -> Option<R> {
        let generation = self.lock.get()?.peek_gen()?;
        let s = self.state.try_read()?;
        if s.loaded == generation { look(generation, &s.fields) } else { None }
    }

    /// The fields, if they were loaded under generation `generation` of the group lock.
    pub(crate) fn fields_at(&self, generation: u64) -> Option<Fields> {
        let s = self.state.read();
        (s.loaded == generation && generation != 0).then_some(s.fields)
    }

    /// The fields. The caller holds the group lock and has refreshed the inode under it.
    pub(crate) fn fields(&self) -> Fields {
        self.state.read().fields
    }

    /// Installs fields read from the item under `generation`, unless somebody was faster: theirs may be newer.
    pub(crate) fn load(&self, generation: u64, fields: Fields) {
        let mut s = self.state.write();
        if s.loaded != generation {
            *s = State { loaded: generation, fields, ..State::default() };
        }
    }

    /// Stores fields whose item has just been changed in the transaction that the caller holds, under a WRITE lock of
    /// generation `generation`.
    pub(crate) fn store(&self, generation: u64, fields: Fields) {
        let mut s = self.state.write();
        s.loaded = generation;
        s.fields = fields;
    }

    /// Forgets everything: the item is gone, or the state of memory and items is not known to agree.
    pub(crate) fn forget(&self) {
        *self.state.write() = State::default();
    }

    /// What is known of the access (or default) list under `generation`.
    pub(crate) fn known_acl(&self, generation: u64, default: bool) -> KnownAcl {
        let s = self.state.read();
        match (s.loaded == generation, default) {
            (false, _) => KnownAcl::Unknown,
            (true, false) => s.access.clone(),
            (true, true) => s.default.clone(),
        }
    }

    /// Remembers a list that was read or written under `generation`.
    pub(crate) fn remember_acl(&self, generation: u64, default: bool, acl: KnownAcl) {
        let mut s = self.state.write();
        if s.loaded == generation {
            *(if default { &mut s.default } else { &mut s.access }) = acl;
        }
    }

    /// The data room's part, made by `make` at first use.
    pub(crate) fn file<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let any = self.file.get_or_init(|| Arc::new(make())).clone();
        any.downcast().expect("only the data room puts something here, always of one type")
    }

    /// The data room's part, if there is one.
    pub(crate) fn known_file<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.file.get()?.clone().downcast().ok()
    }
}
