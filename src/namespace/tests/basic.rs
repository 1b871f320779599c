//! One mount, plain use.

use super::harness::Cluster;
use crate::error::Errno;
use crate::format::{DirentKind, Ino};
use crate::namespace::{Caller, RenameFlags, SetAttr, XattrFlags};

const ROOT: Ino = Ino::ROOT;

#[test]
fn files_directories_links_and_renames() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let (ns, me) = (&m.ns, &Caller::root());
    let dir = ns.mkdir(me, ROOT, b"dir", 0o755).unwrap();
    assert_eq!((dir.kind, dir.nlink, dir.mode), (DirentKind::Dir, 2, 0o040_755));
    let file = ns.create(me, dir.ino, b"file", 0o666).unwrap();
    assert_eq!((file.mode, file.nlink, file.size), (0o100_644, 1, 0));
    assert!(ns.create(me, dir.ino, b"file", 0o666).unwrap_err().is(Errno::EEXIST));
    assert_eq!(ns.lookup(me, dir.ino, b"file").unwrap().ino, file.ino);
    assert_eq!(ns.lookup(me, dir.ino, b"..").unwrap().ino, ROOT);
    assert!(ns.lookup(me, dir.ino, b"none").unwrap_err().is(Errno::ENOENT));
    assert_eq!(ns.link(me, file.ino, ROOT, b"hard").unwrap().nlink, 2);
    ns.symlink(me, ROOT, b"soft", b"dir/file").unwrap();
    let soft = ns.lookup(me, ROOT, b"soft").unwrap();
    assert_eq!((soft.size, ns.readlink(soft.ino).unwrap()), (8, b"dir/file".to_vec()));
    ns.rename(me, (dir.ino, b"file"), (ROOT, b"moved"), RenameFlags::NONE).unwrap();
    assert!(ns.lookup(me, dir.ino, b"file").unwrap_err().is(Errno::ENOENT));
    let names: Vec<Vec<u8>> = ns.readdir(ROOT, 0, 100).unwrap().iter().map(|e| e.name.to_vec()).collect();
    assert_eq!(names, [&b"."[..], b"..", b"dir", b"hard", b"soft", b"moved"]);
    assert_eq!(ns.getattr(ROOT).unwrap().nlink, 3);
    ns.rmdir(me, ROOT, b"dir").unwrap();
    ns.unlink(me, ROOT, b"moved").unwrap();
    ns.unlink(me, ROOT, b"hard").unwrap();
    ns.unlink(me, ROOT, b"soft").unwrap();
    assert!(ns.getattr(file.ino).unwrap_err().is(Errno::ESTALE));
    let root = ns.getattr(ROOT).unwrap();
    assert_eq!((root.nlink, root.size), (2, 0));
    ns.setxattr(me, ROOT, b"user.a", b"1", XattrFlags::Any).unwrap();
    ns.setattr(me, ROOT, &SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap();
    m.unmount();

    let m = cluster.mount();
    assert_eq!(m.ns.getattr(ROOT).unwrap().mode, 0o040_700);
    assert_eq!(m.ns.getxattr(me, ROOT, b"user.a").unwrap(), b"1");
    m.unmount();
}

/// Looking up answers from copies without using the cluster locks; the copies must not outlive the grants they were made under.
#[test]
fn answers_from_memory_end_with_their_grant() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.mount(), cluster.mount());
    let me = &Caller::root();
    let dir = a.ns.mkdir(me, ROOT, b"dir", 0o755).unwrap().ino;
    let file = a.ns.create(me, dir, b"name-0", 0o600).unwrap().ino;
    for i in 0..20u32 {
        let (reader, writer) = if i % 2 == 0 { (&a.ns, &b.ns) } else { (&b.ns, &a.ns) };
        let (old, new) = (format!("name-{i}"), format!("name-{}", i + 1));
        let (old, new) = (old.as_bytes(), new.as_bytes());
        for _ in 0..3 {
            assert_eq!(reader.lookup(me, dir, old).unwrap().mode & 0o777, 0o600 + i);
            assert!(reader.lookup(me, dir, new).unwrap_err().is(Errno::ENOENT));
            assert_eq!(reader.getattr(file).unwrap().mode & 0o777, 0o600 + i);
        }
        writer.rename(me, (dir, old), (dir, new), RenameFlags::NONE).unwrap();
        let set = SetAttr { mode: Some(0o600 + i + 1), ..SetAttr::default() };
        writer.setattr(me, file, &set).unwrap();
        for ns in [reader, writer, reader] {
            assert!(ns.lookup(me, dir, old).unwrap_err().is(Errno::ENOENT));
            assert_eq!(ns.lookup(me, dir, new).unwrap().mode & 0o777, 0o600 + i + 1);
        }
    }
    let nobody = &Caller::user(7, 7);
    let closed = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    assert!(a.ns.lookup(nobody, dir, b"name-20").is_ok());
    b.ns.setattr(me, dir, &closed).unwrap();
    assert!(a.ns.lookup(me, dir, b"name-20").is_ok(), "with the copies fresh again");
    assert!(a.ns.lookup(nobody, dir, b"name-20").unwrap_err().is(Errno::EACCES));
    assert!(a.ns.lookup(nobody, dir, b"none").unwrap_err().is(Errno::EACCES));
    a.unmount();
    b.unmount();
}
