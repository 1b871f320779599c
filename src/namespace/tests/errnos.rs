//! Errnos by operation (`spec/06 §13`): one table, one fixed tree.

use super::harness::Cluster;
use crate::error::{Errno, Result};
use crate::format::{Ino, S_IFCHR, S_IFDIR};
use crate::namespace::{
    Access, AttrX, Caller, Caps, FileHandle, Namespace, RenameFlags, SetAttr, SetTime, Time, XattrFlags,
};
use crate::sync::Arc;

const ROOT: Ino = Ino::ROOT;

/// The inodes of the tree.
struct Tree {
    ns: Arc<Namespace>,
    root: Caller,
    user: Caller,
    dir: Ino,
    file: Ino,
    soft: Ino,
    kept: Ino,
    gone: Ino,
}

type Case = (&'static str, Errno, fn(&Tree) -> Result<()>);

fn long() -> Vec<u8> {
    vec![b'x'; 256]
}

fn set(f: impl FnOnce(&mut SetAttr)) -> SetAttr {
    let mut s = SetAttr::default();
    f(&mut s);
    s
}

fn x(t: &Tree, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
    t.ns.setxattr(&t.root, ino, name, value, flags)
}

const NAMES: &[Case] = &[
    ("lookup long", Errno::ENAMETOOLONG, |t| t.ns.lookup(&t.root, ROOT, &long()).map(drop)),
    ("lookup in a file", Errno::ENOTDIR, |t| t.ns.lookup(&t.root, t.file, b"a").map(drop)),
    ("lookup nothing", Errno::ENOENT, |t| t.ns.lookup(&t.root, ROOT, b"nothing").map(drop)),
    ("lookup without search permission", Errno::EACCES, |t| t.ns.lookup(&t.user, t.dir, b"a").map(drop)),
    ("lookup in a removed directory", Errno::ESTALE, |t| t.ns.lookup(&t.root, t.gone, b"a").map(drop)),
    ("create existing", Errno::EEXIST, |t| t.ns.create(&t.root, ROOT, b"file", 0o600).map(drop)),
    ("create dot", Errno::EEXIST, |t| t.ns.create(&t.root, ROOT, b".", 0o600).map(drop)),
    ("create long", Errno::ENAMETOOLONG, |t| t.ns.create(&t.root, ROOT, &long(), 0o600).map(drop)),
    ("create with a slash", Errno::EINVAL, |t| t.ns.create(&t.root, ROOT, b"a/b", 0o600).map(drop)),
    ("create in a file", Errno::ENOTDIR, |t| t.ns.create(&t.root, t.file, b"a", 0o600).map(drop)),
    ("create without permission", Errno::EACCES, |t| t.ns.create(&t.user, ROOT, b"new", 0o600).map(drop)),
    ("mknod of a device", Errno::EPERM, |t| {
        let weak = Caller { caps: Caps::DAC_OVERRIDE, ..Caller::root() };
        t.ns.mknod(&weak, ROOT, b"null", S_IFCHR | 0o600, 1 << 20 | 3).map(drop)
    }),
    ("mknod of a directory", Errno::EPERM, |t| t.ns.mknod(&t.root, ROOT, b"d", S_IFDIR | 0o700, 0).map(drop)),
    ("symlink empty", Errno::ENOENT, |t| t.ns.symlink(&t.root, ROOT, b"s", b"").map(drop)),
    ("symlink long", Errno::ENAMETOOLONG, |t| t.ns.symlink(&t.root, ROOT, b"s", &[b'x'; 4096]).map(drop)),
    ("tmpfile in a file", Errno::ENOTDIR, |t| t.ns.tmpfile(&t.root, t.file, 0o600, false).map(drop)),
    ("tmpfile without permission", Errno::EACCES, |t| t.ns.tmpfile(&t.user, ROOT, 0o600, false).map(drop)),
    ("link to a directory", Errno::EPERM, |t| t.ns.link(&t.root, t.dir, ROOT, b"l").map(drop)),
    ("link existing", Errno::EEXIST, |t| t.ns.link(&t.root, t.file, ROOT, b"file").map(drop)),
    ("link of nothing", Errno::ESTALE, |t| t.ns.link(&t.root, t.gone, ROOT, b"l").map(drop)),
    ("unlink nothing", Errno::ENOENT, |t| t.ns.unlink(&t.root, ROOT, b"nothing")),
    ("unlink a directory", Errno::EISDIR, |t| t.ns.unlink(&t.root, ROOT, b"dir")),
    ("unlink dot", Errno::EISDIR, |t| t.ns.unlink(&t.root, ROOT, b".")),
    ("unlink without permission", Errno::EACCES, |t| t.ns.unlink(&t.user, ROOT, b"file")),
    ("unlink in retention", Errno::EPERM, |t| t.ns.unlink(&t.root, ROOT, b"kept")),
    ("unlink in a sticky directory", Errno::EPERM, |t| {
        let sticky = t.ns.lookup(&t.root, ROOT, b"sticky")?.ino;
        t.ns.unlink(&t.user, sticky, b"foreign")
    }),
    ("rmdir a file", Errno::ENOTDIR, |t| t.ns.rmdir(&t.root, ROOT, b"file")),
    ("rmdir full", Errno::ENOTEMPTY, |t| t.ns.rmdir(&t.root, ROOT, b"dir")),
    ("rmdir dot", Errno::EINVAL, |t| t.ns.rmdir(&t.root, ROOT, b".")),
    ("rmdir dot dot", Errno::ENOTEMPTY, |t| t.ns.rmdir(&t.root, ROOT, b"..")),
    ("readlink of a file", Errno::EINVAL, |t| t.ns.readlink(t.file).map(drop)),
    ("readdir of a file", Errno::ENOTDIR, |t| t.ns.readdir(t.file, 0, 9).map(drop)),
];

const RENAMES: &[Case] = &[
    ("unknown flags", Errno::EINVAL, |t| t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, b"n"), RenameFlags(4))),
    ("both flags", Errno::EINVAL, |t| t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, b"n"), RenameFlags(3))),
    ("dot", Errno::EBUSY, |t| t.ns.rename(&t.root, (ROOT, b"."), (ROOT, b"n"), RenameFlags::NONE)),
    ("nothing", Errno::ENOENT, |t| t.ns.rename(&t.root, (ROOT, b"no"), (ROOT, b"n"), RenameFlags::NONE)),
    ("long", Errno::ENAMETOOLONG, |t| t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, &long()), RenameFlags::NONE)),
    ("noreplace", Errno::EEXIST, |t| t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, b"soft"), RenameFlags::NOREPLACE)),
    ("exchange with nothing", Errno::ENOENT, |t| {
        t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, b"no"), RenameFlags::EXCHANGE)
    }),
    ("below itself", Errno::EINVAL, |t| t.ns.rename(&t.root, (ROOT, b"dir"), (t.dir, b"n"), RenameFlags::NONE)),
    ("exchange with its parent", Errno::EINVAL, |t| {
        t.ns.rename(&t.root, (t.dir, b"sub"), (ROOT, b"dir"), RenameFlags::EXCHANGE)
    }),
    ("directory onto file", Errno::ENOTDIR, |t| {
        t.ns.rename(&t.root, (ROOT, b"dir"), (ROOT, b"file"), RenameFlags::NONE)
    }),
    ("file onto directory", Errno::EISDIR, |t| {
        t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, b"dir"), RenameFlags::NONE)
    }),
    ("onto a full directory", Errno::ENOTEMPTY, |t| {
        t.ns.rename(&t.root, (ROOT, b"sticky"), (ROOT, b"dir"), RenameFlags::NONE)
    }),
    ("onto its own parent", Errno::ENOTEMPTY, |t| {
        t.ns.rename(&t.root, (t.dir, b"sub"), (ROOT, b"dir"), RenameFlags::NONE)
    }),
    ("in retention", Errno::EPERM, |t| t.ns.rename(&t.root, (ROOT, b"kept"), (ROOT, b"n"), RenameFlags::NONE)),
    ("over retention", Errno::EPERM, |t| t.ns.rename(&t.root, (ROOT, b"file"), (ROOT, b"kept"), RenameFlags::NONE)),
    ("without permission", Errno::EACCES, |t| t.ns.rename(&t.user, (ROOT, b"file"), (ROOT, b"n"), RenameFlags::NONE)),
];

const ATTRS: &[Case] = &[
    ("stat of nothing", Errno::ESTALE, |t| t.ns.getattr(Ino(999_999)).map(drop)),
    ("stat of number 0", Errno::ESTALE, |t| t.ns.getattr(Ino(0)).map(drop)),
    ("truncate a directory", Errno::EISDIR, |t| t.ns.setattr(&t.root, t.dir, &set(|s| s.size = Some(0))).map(drop)),
    ("truncate a symlink", Errno::EINVAL, |t| t.ns.setattr(&t.root, t.soft, &set(|s| s.size = Some(0))).map(drop)),
    ("truncate too far", Errno::EFBIG, |t| t.ns.setattr(&t.root, t.file, &set(|s| s.size = Some(1 << 63))).map(drop)),
    ("truncate without permission", Errno::EACCES, |t| {
        t.ns.setattr(&t.user, t.file, &set(|s| s.size = Some(0))).map(drop)
    }),
    ("chmod of a symlink", Errno::EOPNOTSUPP, |t| {
        t.ns.setattr(&t.root, t.soft, &set(|s| s.mode = Some(0o600))).map(drop)
    }),
    ("chmod by a stranger", Errno::EPERM, |t| t.ns.setattr(&t.user, t.file, &set(|s| s.mode = Some(0))).map(drop)),
    ("chown by a stranger", Errno::EPERM, |t| t.ns.setattr(&t.user, t.file, &set(|s| s.uid = Some(1000))).map(drop)),
    ("times by a stranger", Errno::EPERM, |t| {
        let at = Some(SetTime::At(Time { sec: 1, nsec: 0 }));
        t.ns.setattr(&t.user, t.file, &set(|s| (s.atime, s.mtime) = (at, at))).map(drop)
    }),
    ("touch without permission", Errno::EACCES, |t| {
        t.ns.setattr(&t.user, t.file, &set(|s| (s.atime, s.mtime) = (Some(SetTime::Now), Some(SetTime::Now)))).map(drop)
    }),
    ("bad nanoseconds", Errno::EINVAL, |t| {
        let at = Some(SetTime::At(Time { sec: 1, nsec: 1_000_000_000 }));
        t.ns.setattr(&t.root, t.file, &set(|s| s.mtime = at)).map(drop)
    }),
    ("setattr in retention", Errno::EPERM, |t| t.ns.setattr(&t.root, t.kept, &set(|s| s.mode = Some(0))).map(drop)),
    ("open for writing in retention", Errno::EPERM, |t| t.ns.open(&t.root, t.kept, Access::WRITE).map(drop)),
    ("open a symlink", Errno::ELOOP, |t| t.ns.open(&t.root, t.soft, Access::READ).map(drop)),
    ("write to a directory", Errno::EISDIR, |t| t.ns.open(&t.root, t.dir, Access::WRITE).map(drop)),
    ("open without permission", Errno::EACCES, |t| t.ns.open(&t.user, t.file, Access::WRITE).map(drop)),
    ("attr_x unprivileged", Errno::EPERM, |t| t.ns.set_attr_x(&t.user, t.file, &AttrX::default())),
    ("retention of a directory", Errno::EINVAL, |t| {
        t.ns.set_attr_x(&t.root, t.dir, &AttrX { retention: Some(true), ..AttrX::default() })
    }),
    ("data version 0", Errno::EINVAL, |t| {
        t.ns.set_attr_x(&t.root, t.file, &AttrX { data_version: Some(0), ..AttrX::default() })
    }),
    ("size without version", Errno::EINVAL, |t| {
        t.ns.set_attr_x(&t.root, t.file, &AttrX { size: Some(5), ..AttrX::default() })
    }),
    ("project in retention", Errno::EPERM, |t| {
        t.ns.set_attr_x(&t.root, t.kept, &AttrX { project: Some(5), ..AttrX::default() })
    }),
    ("bad handle", Errno::ESTALE, |t| t.ns.resolve_handle(&FileHandle { kind: 1, bytes: vec![0; 8] }).map(drop)),
    ("handle of nothing", Errno::ESTALE, |t| t.ns.resolve_handle(&FileHandle::new(t.gone, None)).map(drop)),
    ("path of the root", Errno::ENOENT, |t| t.ns.ino_path(&t.root, ROOT, (Ino(0), 0)).map(drop)),
    ("path by a user", Errno::EPERM, |t| t.ns.ino_path(&t.user, t.file, (Ino(0), 0)).map(drop)),
];

const XATTRS: &[Case] = &[
    ("no prefix", Errno::EOPNOTSUPP, |t| x(t, t.file, b"abc", b"", XattrFlags::Any)),
    ("no name", Errno::EOPNOTSUPP, |t| x(t, t.file, b"", b"", XattrFlags::Any)),
    ("prefix only", Errno::EINVAL, |t| x(t, t.file, b"user.", b"", XattrFlags::Any)),
    ("long name", Errno::ERANGE, |t| x(t, t.file, &[b"user.", &long()[..]].concat(), b"", XattrFlags::Any)),
    ("long value", Errno::E2BIG, |t| x(t, t.file, b"user.a", &[0; 65_536], XattrFlags::Any)),
    ("replace nothing", Errno::ENODATA, |t| x(t, t.file, b"user.none", b"", XattrFlags::Replace)),
    ("create existing", Errno::EEXIST, |t| x(t, t.file, b"user.there", b"", XattrFlags::Create)),
    ("user on a symlink", Errno::EPERM, |t| x(t, t.soft, b"user.a", b"", XattrFlags::Any)),
    ("user in retention", Errno::EPERM, |t| x(t, t.kept, b"user.a", b"", XattrFlags::Any)),
    ("user without permission", Errno::EACCES, |t| t.ns.setxattr(&t.user, t.file, b"user.a", b"", XattrFlags::Any)),
    ("trusted by a user", Errno::EPERM, |t| t.ns.setxattr(&t.user, t.file, b"trusted.a", b"", XattrFlags::Any)),
    ("trusted read by a user", Errno::ENODATA, |t| t.ns.getxattr(&t.user, t.file, b"trusted.a").map(drop)),
    ("tag by a user", Errno::EPERM, |t| t.ns.setxattr(&t.user, t.file, b"scoutfs.hide.a", b"", XattrFlags::Any)),
    ("unknown tag", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.nothing.a", b"", XattrFlags::Any)),
    ("tag twice", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.srch.srch.a", b"", XattrFlags::Any)),
    ("totl and indx", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.totl.indx.a.1.2.3", b"1", XattrFlags::Any)),
    ("totl without numbers", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.totl.a", b"1", XattrFlags::Any)),
    ("totl value", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.totl.a.1.2.3", b"one", XattrFlags::Any)),
    ("indx major", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.indx.a.256.1", b"", XattrFlags::Any)),
    ("indx value", Errno::EINVAL, |t| x(t, t.file, b"scoutfs.indx.a.1.1", b"1", XattrFlags::Any)),
    ("get nothing", Errno::ENODATA, |t| t.ns.getxattr(&t.root, t.file, b"user.none").map(drop)),
    ("get long", Errno::ENODATA, |t| t.ns.getxattr(&t.root, t.file, &[b"user.", &long()[..]].concat()).map(drop)),
    ("remove nothing", Errno::ENODATA, |t| t.ns.removexattr(&t.root, t.file, b"user.none")),
    ("bad ACL", Errno::EINVAL, |t| x(t, t.file, b"system.posix_acl_access", b"\x02", XattrFlags::Any)),
    ("ACL by a stranger", Errno::EPERM, |t| {
        t.ns.setxattr(&t.user, t.file, b"system.posix_acl_access", &[2, 0, 0, 0], XattrFlags::Any)
    }),
    ("hidden name that does not fit (defect 79)", Errno::ERANGE, |t| {
        t.ns.list_hidden_xattrs(&t.root, t.file, Default::default(), 5).map(drop)
    }),
];

#[test]
fn every_operation_answers_with_the_specified_errno() {
    let cluster = Cluster::new();
    let m = cluster.mount();
    let (ns, root) = (m.ns.clone(), Caller::root());
    let dir = ns.mkdir(&root, ROOT, b"dir", 0o700).unwrap().ino;
    ns.mkdir(&root, dir, b"sub", 0o700).unwrap();
    let sticky = ns.mkdir(&root, ROOT, b"sticky", 0o777).unwrap().ino;
    ns.setattr(&root, sticky, &set(|s| s.mode = Some(0o1777))).unwrap();
    ns.create(&root, sticky, b"foreign", 0o666).unwrap();
    let file = ns.create(&root, ROOT, b"file", 0o644).unwrap().ino;
    ns.setxattr(&root, file, b"user.there", b"", XattrFlags::Any).unwrap();
    ns.setxattr(&root, file, b"scoutfs.hide.secret", b"", XattrFlags::Any).unwrap();
    let kept = ns.create(&root, ROOT, b"kept", 0o644).unwrap().ino;
    ns.set_attr_x(&root, kept, &AttrX { retention: Some(true), ..AttrX::default() }).unwrap();
    let soft = ns.symlink(&root, ROOT, b"soft", b"file").unwrap().ino;
    let gone = ns.mkdir(&root, ROOT, b"gone", 0o700).unwrap().ino;
    ns.rmdir(&root, ROOT, b"gone").unwrap();
    let t = Tree { ns, root, user: Caller::user(1000, 1000), dir, file, soft, kept, gone };
    for (what, errno, run) in NAMES.iter().chain(RENAMES).chain(ATTRS).chain(XATTRS) {
        assert_eq!(run(&t).map_err(|e| e.errno()), Err(*errno), "{what}");
    }
    drop(t);
    m.unmount();
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    use crate::VolumeOptions;
    let cluster = Cluster::new();
    let m = cluster.mount();
    let root = Caller::root();
    let file = m.ns.create(&root, ROOT, b"file", 0o644).unwrap().ino;
    m.unmount();
    let m = cluster.mount_with(VolumeOptions { read_only: true, ..VolumeOptions::default() });
    let ns = &m.ns;
    let results = [
        ns.create(&root, ROOT, b"a", 0o600).map(drop),
        ns.tmpfile(&root, ROOT, 0o600, false).map(drop),
        ns.link(&root, file, ROOT, b"a").map(drop),
        ns.unlink(&root, ROOT, b"file"),
        ns.rename(&root, (ROOT, b"file"), (ROOT, b"a"), RenameFlags::NONE),
        ns.setattr(&root, file, &set(|s| s.mode = Some(0))).map(drop),
        ns.setxattr(&root, file, b"user.a", b"", XattrFlags::Any),
        ns.set_attr_x(&root, file, &AttrX { project: Some(1), ..AttrX::default() }),
        ns.open(&root, file, Access::WRITE).map(drop),
        ns.access(&root, file, Access::WRITE),
    ];
    for r in results {
        assert!(r.unwrap_err().is(Errno::EROFS));
    }
    assert_eq!(ns.lookup(&root, ROOT, b"file").unwrap().ino, file);
    drop(ns.open(&root, file, Access::READ).unwrap());
    m.unmount();
}
