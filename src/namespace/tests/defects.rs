//! What the original gets wrong in this room, by the rows of the table in `spec/00 §6`.

use std::ops::ControlFlow;

use super::harness::{Cluster, TestMount};
use super::invariants;
use crate::error::Errno;
use crate::format::consts::INO_FLAG_TRUNCATE;
use crate::format::{Ino, Key, keys};
use crate::item::{ChangeSet, Value};
use crate::lock::{LockName, Mode};
use crate::namespace::{Access, AttrX, Caller, Caps, FileHandle, RenameFlags, SetAttr, Touch, XattrFlags, lock_ops};
use crate::sync::thread;
use crate::txn::HoldKind;

const ROOT: Ino = Ino::ROOT;
const END: u64 = 200 * 1024;

/// Two mounts move a and b into each other, again and again; one of both must lose each time.
#[test]
fn defect_54_crossing_directory_moves_never_make_a_loop() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let me = Caller::root();
    for round in 0..8 {
        let a = one.ns.mkdir(&me, ROOT, b"a", 0o755).unwrap().ino;
        let b = one.ns.mkdir(&me, ROOT, b"b", 0o755).unwrap().ino;
        let (first, second) = thread::scope(|s| {
            let first = s.spawn(|| one.ns.rename(&me, (ROOT, b"a"), (b, b"a"), RenameFlags::NONE));
            let second = s.spawn(|| two.ns.rename(&me, (ROOT, b"b"), (a, b"b"), RenameFlags::NONE));
            (first.join().unwrap(), second.join().unwrap())
        });
        assert!(first.is_ok() != second.is_ok(), "round {round}: {first:?} {second:?}");
        let (outer, inner, name) = if first.is_ok() { (b"b", b, b"a") } else { (b"a", a, b"b") };
        two.ns.rmdir(&me, inner, name).unwrap();
        one.ns.rmdir(&me, ROOT, outer).unwrap();
    }
    invariants::check(&one, END);
    one.unmount();
    two.unmount();
}

#[test]
fn defect_55_a_create_that_loses_a_race_leaves_nothing() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let me = Caller::root();
    for round in 0..20u8 {
        let name = [b'f', b'a' + round];
        let (first, second) = thread::scope(|s| {
            let first = s.spawn(|| one.ns.create(&me, ROOT, &name, 0o600));
            let second = s.spawn(|| two.ns.create(&me, ROOT, &name, 0o600));
            (first.join().unwrap(), second.join().unwrap())
        });
        let (won, lost) = if first.is_ok() { (first, second) } else { (second, first) };
        assert_eq!(one.ns.lookup(&me, ROOT, &name).unwrap().ino, won.unwrap().ino);
        assert!(lost.unwrap_err().is(Errno::EEXIST));
    }
    assert_eq!(invariants::check(&two, END), 21);
    one.unmount();
    two.unmount();
}

#[test]
fn defect_56_no_entry_is_added_to_a_directory_removed_elsewhere() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let me = Caller::root();
    let dir = one.ns.mkdir(&me, ROOT, b"dir", 0o755).unwrap().ino;
    let file = one.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    let handle = one.ns.open(&me, dir, Access::READ).unwrap();
    two.ns.rmdir(&me, ROOT, b"dir").unwrap();
    assert!(one.ns.create(&me, dir, b"a", 0o600).unwrap_err().is(Errno::ENOENT));
    assert!(one.ns.mkdir(&me, dir, b"a", 0o700).unwrap_err().is(Errno::ENOENT));
    assert!(one.ns.link(&me, file, dir, b"a").unwrap_err().is(Errno::ENOENT));
    assert!(one.ns.tmpfile(&me, dir, 0o600, false).is_err());
    let moved = one.ns.rename(&me, (ROOT, b"file"), (dir, b"a"), RenameFlags::NONE);
    assert!(moved.unwrap_err().is(Errno::ENOENT));
    assert_eq!(invariants::check(&one, END), 3);
    drop(handle);
    assert_eq!(invariants::check(&one, END), 2);
    one.unmount();
    two.unmount();
}

#[test]
fn defect_57_a_failed_unlink_leaves_no_orphan_item() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let file = m.ns.create(&me, ROOT, b"file", 0o644).unwrap();
    let handle = m.ns.open(&me, file.ino, Access::READ).unwrap();
    // The back reference vanishes, so taking the name away must fail, after the orphan item has been planned.
    damage(&m, file.ino, keys::backref(file.ino, ROOT, 2), None);
    assert!(m.ns.unlink(&me, ROOT, b"file").unwrap_err().is(Errno::ENOENT));
    assert_eq!(m.ns.getattr(file.ino).unwrap(), file);
    let orphans = m.node.lock(LockName::orphan(), Mode::Read).unwrap();
    assert_eq!(m.node.items.next(&orphans, &keys::orphan(Ino(0)), &keys::orphan(Ino(u64::MAX))).unwrap(), None);
    drop(orphans);
    drop(handle);
    m.unmount();
}

/// Writes an item as a damaged volume would have it.
fn damage(m: &TestMount, ino: Ino, key: Key, value: Option<&[u8]>) {
    let lock = m.node.lock(LockName::inode(ino), Mode::Write).unwrap();
    let hold = m.node.txn.hold(HoldKind::Freeing).unwrap();
    let mut cs = ChangeSet::new(&m.node.items);
    match value {
        Some(v) => cs.put(&lock, key, Value::new(v)),
        None => cs.delete(&lock, key),
    }
    cs.apply(&hold).unwrap();
}

#[test]
fn defect_58_a_total_that_cannot_be_read_does_not_stop_deletion() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let file = m.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    let name = b"scoutfs.totl.t.1.2.3";
    m.ns.setxattr(&me, file, name, b"12", XattrFlags::Any).unwrap();
    let key = keys::xattr(file, crate::format::xattr_hash(name), 0, 0);
    damage(&m, file, key, Some(&crate::format::xattr::encode_xattr(name, b"twelve")));
    m.ns.unlink(&me, ROOT, b"file").unwrap();
    assert!(m.ns.getattr(file).unwrap_err().is(Errno::ESTALE));
    assert_eq!(invariants::check(&m, END), 1);
    m.unmount();
}

#[test]
fn defect_60_tags_end_with_the_name() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let file = m.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    // Name and value together would read as the same tag twice.
    m.ns.setxattr(&me, file, b"scoutfs.hide.h", b"ide.x", XattrFlags::Any).unwrap();
    assert_eq!(m.ns.listxattr(&me, file).unwrap(), b"");
    let (hidden, next) = m.ns.list_hidden_xattrs(&me, file, Default::default(), 100).unwrap();
    assert_eq!(hidden, b"scoutfs.hide.h\0");
    assert_eq!(m.ns.list_hidden_xattrs(&me, file, next, 100).unwrap().0, b"");
    m.ns.unlink(&me, ROOT, b"file").unwrap();
    assert_eq!(invariants::check(&m, END), 1);
    m.unmount();
}

#[test]
fn defect_61_what_is_unlinked_elsewhere_stays_unlinked() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let me = Caller::root();
    let file = one.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    let handle = one.ns.open(&me, file, Access::READ).unwrap();
    two.ns.unlink(&me, ROOT, b"file").unwrap();
    assert!(one.ns.link(&me, file, ROOT, b"again").unwrap_err().is(Errno::ENOENT));
    assert!(one.ns.lookup(&me, ROOT, b"file").unwrap_err().is(Errno::ENOENT));
    assert!(two.ns.open(&me, file, Access::READ).is_err());
    assert_eq!(one.ns.getattr(file).unwrap().nlink, 0);
    drop(handle);
    assert!(two.ns.getattr(file).unwrap_err().is(Errno::ESTALE));
    one.unmount();
    two.unmount();
}

#[test]
fn defect_62_an_interrupted_truncation_is_completed_without_a_writer() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let file = m.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    set_flag(&m, file);
    m.ns.complete_truncate(file).unwrap();
    let inode = m.ns.inode(file).unwrap();
    assert!(!inode.fields().truncate_pending());
    invariants::check(&m, END);
    m.unmount();
}

fn set_flag(m: &TestMount, file: Ino) {
    let inode = m.ns.inode(file).unwrap();
    let locks = m.ns.lock_groups(&[&inode]).unwrap();
    let _ops = lock_ops(&[&inode]);
    m.ns.fresh(&inode, locks.of(file)).unwrap();
    let tx = m.ns.begin(HoldKind::Freeing, &[(&inode, Touch::Meta)]).unwrap();
    let mut f = inode.fields();
    f.flags |= INO_FLAG_TRUNCATE;
    let mut cs = ChangeSet::new(&m.node.items);
    m.ns.put_inode(&mut cs, &tx, locks.of(file), &inode, &mut f, Touch::Meta);
    cs.apply(tx.hold()).unwrap();
    inode.store(locks.of(file).refresh_gen(), f);
}

#[test]
fn defect_63_permissions_are_checked_against_the_mode_set_elsewhere() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let (me, user) = (Caller::root(), Caller::user(1000, 1000));
    let file = one.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    one.ns.access(&user, file, Access::READ).unwrap();
    two.ns.setattr(&me, file, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert!(one.ns.access(&user, file, Access::READ).unwrap_err().is(Errno::EACCES));
    // Trusted names are only for those who may read them.
    one.ns.setxattr(&me, file, b"trusted.t", b"", XattrFlags::Any).unwrap();
    assert_eq!(two.ns.listxattr(&user, file).unwrap(), b"");
    assert_eq!(two.ns.listxattr(&me, file).unwrap(), b"trusted.t\0");
    one.ns.unlink(&me, ROOT, b"file").unwrap();
    assert!(two.ns.resolve_handle(&FileHandle::new(file, None)).unwrap_err().is(Errno::ESTALE));
    one.unmount();
    two.unmount();
}

#[test]
fn defect_63_chown_and_truncation_take_set_id_bits_away() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let (me, user) = (Caller::root(), Caller::user(1000, 1000));
    let file = m.ns.create(&me, ROOT, b"file", 0o666).unwrap().ino;
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    m.ns.setattr(&me, file, &mode(0o6777)).unwrap();
    m.ns.setattr(&user, file, &SetAttr { size: Some(9), ..SetAttr::default() }).unwrap();
    assert_eq!(m.ns.getattr(file).unwrap().mode, 0o100_777);
    m.ns.setattr(&me, file, &mode(0o6755)).unwrap();
    m.ns.setattr(&me, file, &SetAttr { uid: Some(1000), ..SetAttr::default() }).unwrap();
    assert_eq!(m.ns.getattr(file).unwrap().mode, 0o100_755);
    m.unmount();
}

#[test]
fn defect_64_a_directory_keeps_set_gid_beside_an_inherited_list() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let dir = m.ns.mkdir(&me, ROOT, b"dir", 0o777).unwrap().ino;
    m.ns.setattr(&me, dir, &SetAttr { mode: Some(0o2777), gid: Some(50), ..SetAttr::default() }).unwrap();
    let list = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 5, 0, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 7, 0, 255, 255, 255, 255],
    ]
    .concat();
    m.ns.setxattr(&me, dir, b"system.posix_acl_default", &list, XattrFlags::Any).unwrap();
    let user = Caller { caps: Caps::NONE, ..Caller::user(1000, 1000) };
    let sub = m.ns.mkdir(&user, dir, b"sub", 0o755).unwrap();
    assert_eq!((sub.mode & 0o7000, sub.gid), (0o2000, 50));
    assert_eq!(m.ns.getxattr(&user, sub.ino, b"system.posix_acl_default").unwrap(), list);
    m.unmount();
}

#[test]
fn side_items_follow_attributes_and_deletion() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let file = m.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    let index = || {
        m.ns.sync().unwrap();
        let lock = m.node.lock(LockName::indx(), Mode::Read).unwrap();
        let mut found = Vec::new();
        m.node
            .items
            .scan(&lock, lock.range(), &mut |k, _| {
                found.push(*k);
                ControlFlow::Continue(())
            })
            .unwrap();
        found
    };
    m.ns.setxattr(&me, file, b"user.first", b"", XattrFlags::Any).unwrap();
    m.ns.setxattr(&me, file, b"scoutfs.indx.i.7.9", b"", XattrFlags::Any).unwrap();
    m.ns.setxattr(&me, file, b"scoutfs.indx.i.7.9", b"", XattrFlags::Any).unwrap();
    assert_eq!(index(), [keys::indx(7, 9, file, 1)]);
    m.ns.setxattr(&me, file, b"scoutfs.srch.totl.t.1.2.3", b"0x10", XattrFlags::Any).unwrap();
    m.ns.setxattr(&me, file, b"scoutfs.srch.totl.t.1.2.3", b"20", XattrFlags::Replace).unwrap();
    m.ns.removexattr(&me, file, b"scoutfs.indx.i.7.9").unwrap();
    assert_eq!(index(), []);
    m.ns.setxattr(&me, file, b"scoutfs.indx.i.7.9", b"", XattrFlags::Any).unwrap();
    m.ns.unlink(&me, ROOT, b"file").unwrap();
    assert_eq!(index(), []);
    m.unmount();
}

#[test]
fn orphans_of_a_mount_that_died_are_found_by_the_scan() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.mount(), cluster.mount());
    let me = Caller::root();
    let (attr, handle) = one.ns.tmpfile(&me, ROOT, 0o600, true).unwrap();
    assert!(one.ns.link(&me, attr.ino, ROOT, b"no").unwrap_err().is(Errno::ENOENT));
    one.ns.sync().unwrap();
    // In use: stays.
    assert!(!two.ns.delete_if_unused(attr.ino).unwrap());
    drop(handle);
    assert!(two.ns.getattr(attr.ino).unwrap_err().is(Errno::ESTALE));
    two.ns.scan_orphans().unwrap();
    one.unmount();
    two.unmount();
}

#[test]
fn project_and_retention_follow_the_rules() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let dir = m.ns.mkdir(&me, ROOT, b"dir", 0o755).unwrap().ino;
    m.ns.set_attr_x(&me, dir, &AttrX { project: Some(u64::MAX), ..AttrX::default() }).unwrap();
    let file = m.ns.create(&me, dir, b"file", 0o644).unwrap();
    assert_eq!(file.project, u64::MAX);
    let retain = |on| AttrX { retention: Some(on), ..AttrX::default() };
    m.ns.set_attr_x(&me, file.ino, &retain(true)).unwrap();
    assert_eq!(m.ns.link(&me, file.ino, ROOT, b"l").unwrap().nlink, 2);
    m.ns.setxattr(&me, file.ino, b"trusted.t", b"", XattrFlags::Any).unwrap();
    m.ns.set_attr_x(&me, file.ino, &AttrX { project: Some(3), ..retain(false) }).unwrap();
    assert_eq!(m.ns.get_attr_x(file.ino).unwrap().project, Some(3));
    m.ns.unlink(&me, dir, b"file").unwrap();
    m.unmount();

    let old = Cluster::with_version(1);
    let m = old.mount();
    let file = m.ns.create(&me, ROOT, b"file", 0o644).unwrap().ino;
    assert!(m.ns.set_attr_x(&me, file, &retain(true)).unwrap_err().errno() == Errno::EOPNOTSUPP);
    let indexed = m.ns.setxattr(&me, file, b"scoutfs.indx.i.7.9", b"", XattrFlags::Any);
    assert!(indexed.unwrap_err().is(Errno::EOPNOTSUPP));
    invariants::check(&m, END);
    m.unmount();
}

#[test]
fn paths_and_referrers_lead_back_to_names() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let me = Caller::root();
    let a = m.ns.mkdir(&me, ROOT, b"a", 0o755).unwrap().ino;
    let b = m.ns.mkdir(&me, a, b"b", 0o755).unwrap().ino;
    let file = m.ns.create(&me, b, b"file", 0o644).unwrap().ino;
    m.ns.link(&me, file, ROOT, b"other").unwrap();
    let first = m.ns.ino_path(&me, file, (Ino(0), 0)).unwrap();
    let second = m.ns.ino_path(&me, file, (first.dir, first.pos + 1)).unwrap();
    let mut paths = [first.path, second.path.clone()];
    paths.sort();
    assert_eq!(paths, [b"a/b/file".to_vec(), b"other".to_vec()]);
    assert!(m.ns.ino_path(&me, file, (second.dir, second.pos + 1)).unwrap_err().is(Errno::ENOENT));
    let entries = m.ns.referring_entries(&me, file, (Ino(0), 0), 10).unwrap();
    assert_eq!(entries.iter().map(|e| e.last).collect::<Vec<_>>(), [false, true]);
    assert_eq!(m.ns.referring_entries(&me, ROOT, (Ino(0), 0), 10).unwrap(), []);
    assert_eq!(m.ns.parent_of(b).unwrap(), a);
    assert_eq!(m.ns.name_in(a, b).unwrap(), b"b");
    assert_eq!(m.ns.allocated_inos(&me, a, 10).unwrap(), [a]);
    assert_eq!(m.ns.resolve_handle(&FileHandle::new(file, Some(b))).unwrap().ino, file);
    m.unmount();
}
