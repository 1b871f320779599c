//! The volumes that the original made are read entry by entry as its own mount showed them, clean and unclean ones, without
//! writing to them.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Fixture, fixture as unpack_fixture, folder};
use scoutfs::format::DirentKind;
use scoutfs::namespace::{Attr, Caller, HiddenCursor, Time};
use scoutfs::{Ino, Volume, VolumeOptions};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// FIEMAP flags as in the manifests.
const LAST: u64 = 1;
const UNKNOWN: u64 = 2;
const DELALLOC: u64 = 4;
const UNWRITTEN: u64 = 0x800;

fn open(f: &Fixture) -> Volume {
    Volume::open_paths(&f.meta, &f.data, VolumeOptions::read_only()).unwrap()
}

fn manifest(name: &str, file: &str) -> Vec<Value> {
    let packed = std::fs::read(folder(name).join(file)).unwrap();
    let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Names that are not printable are given as `hex:..`.
fn bytes(text: &str) -> Vec<u8> {
    match text.strip_prefix("hex:") {
        Some(hex) => unhex(hex),
        None => text.as_bytes().to_vec(),
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

fn ns(t: Time) -> i128 {
    i128::from(t.sec) * 1_000_000_000 + i128::from(t.nsec)
}

fn int(v: &Value) -> i128 {
    v.as_str().map_or_else(|| v.to_string(), str::to_string).parse().unwrap()
}

/// Everything that is wrong is collected, so that one run shows it all.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, path: &str, what: &str, got: T, want: T) {
        if got != want && self.0.len() < 40 {
            self.0.push(format!("{path}: {what} is {got:?}, the original shows {want:?}"));
        }
    }
}

fn find(volume: &Volume, path: &[u8]) -> scoutfs::Result<Attr> {
    let mut at = volume.getattr(Ino::ROOT)?;
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".") {
        at = volume.lookup(&Caller::root(), at.ino, name)?;
    }
    Ok(at)
}

fn check_attr(report: &mut Report, path: &str, a: &Attr, want: &Value, atime: bool) {
    let kind = match a.kind {
        DirentKind::Dir => "dir",
        DirentKind::Regular => "file",
        DirentKind::Symlink => "symlink",
        DirentKind::Fifo => "fifo",
        DirentKind::Char => "char",
        DirentKind::Block => "block",
        DirentKind::Socket => "socket",
        DirentKind::Whiteout => "whiteout",
    };
    let shown = want["type"].as_str().unwrap();
    report.same(path, "type", kind, if shown.starts_with("sock") { "socket" } else { shown });
    report.same(path, "mode", format!("{:o}", a.mode & 0o7777), want["mode"].as_str().unwrap().to_string());
    // The original counts the NUL of a link target.
    let size = a.size + u64::from(a.kind == DirentKind::Symlink);
    let numbers = [
        ("ino", i128::from(a.ino.0)),
        ("uid", a.uid.into()),
        ("gid", a.gid.into()),
        ("nlink", a.nlink.into()),
        ("size", size.into()),
        ("blocks", a.blocks().into()),
        ("atime_ns", ns(a.atime)),
        ("mtime_ns", ns(a.mtime)),
        ("ctime_ns", ns(a.ctime)),
    ];
    for (name, got) in numbers.into_iter().filter(|(name, _)| atime || *name != "atime_ns") {
        report.same(path, name, got, int(&want[name]));
    }
    if let Some(s) = want.get("scoutfs") {
        let numbers = [
            ("meta_seq", a.meta_seq),
            ("data_seq", a.data_seq),
            ("data_version", a.data_version),
            ("online_blocks", a.online_blocks),
            ("offline_blocks", a.offline_blocks),
            ("project_id", a.project),
            ("retention", u64::from(a.retention)),
        ];
        for (name, got) in numbers {
            // Version 1 volumes have neither projects nor retention: the original answers with an errno.
            if s[name].is_number() {
                report.same(path, name, i128::from(got), int(&s[name]));
            }
        }
        let crtime = format!("{}.{:09}", a.crtime.sec, a.crtime.nsec);
        report.same(path, "crtime", crtime.as_str(), s["crtime"].as_str().unwrap());
    }
}

fn check_xattrs(report: &mut Report, volume: &Volume, path: &str, ino: Ino, want: &Value) {
    let root = Caller::root();
    let split = |list: Vec<u8>| -> BTreeSet<Vec<u8>> {
        list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let empty = serde_json::Map::new();
    let values = want.get("xattrs").and_then(Value::as_object).unwrap_or(&empty);
    let hidden: BTreeSet<Vec<u8>> = want
        .get("hidden")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|n| bytes(n.as_str().unwrap()))
        .collect();
    let shown = values.keys().map(|n| bytes(n)).filter(|n| !hidden.contains(n)).collect();
    report.same(path, "xattr names", split(volume.listxattr(&root, ino).unwrap()), shown);
    let mut found = BTreeSet::new();
    let mut cursor = HiddenCursor::default();
    loop {
        let (names, next) = volume.list_hidden_xattrs(&root, ino, cursor, 512).unwrap();
        if names.is_empty() {
            break;
        }
        found.extend(split(names));
        cursor = next;
    }
    report.same(path, "hidden names", found, hidden);
    for (name, value) in values {
        let got = volume.getxattr(&root, ino, &bytes(name)).unwrap_or_else(|e| panic!("{path}: {name}: {e}"));
        report.same(path, name, got.len() as i128, int(&value["len"]));
        if let Some(hex) = value["hex"].as_str() {
            report.same(path, name, got, unhex(hex));
        } else {
            report.same(path, name, sha256(&got).as_str(), value["sha256"].as_str().unwrap());
        }
    }
}

fn check_contents(report: &mut Report, volume: &Volume, path: &str, a: &Attr, want: &Value) {
    let read = |offset: u64, len: usize| {
        let mut buf = vec![0; len];
        let n = volume.read(a.ino, offset, &mut buf).unwrap_or_else(|e| panic!("{path}: {e}"));
        buf.truncate(n);
        buf
    };
    if let Some(hash) = want.get("sha256").and_then(Value::as_str) {
        report.same(path, "sha256", sha256(&read(0, a.size as usize)).as_str(), hash);
    }
    for part in want.get("online_sha256").and_then(Value::as_array).into_iter().flatten() {
        let (offset, len) = (part[0].as_u64().unwrap(), part[1].as_u64().unwrap());
        report.same(path, "sha256 of a part", sha256(&read(offset, len as usize)).as_str(), part[2].as_str().unwrap());
    }
    if let Some(extents) = want.get("extents").and_then(Value::as_array) {
        let got: Vec<_> = volume.extents(a.ino, 0, u64::MAX, usize::MAX).unwrap();
        let got: Vec<_> = got
            .iter()
            .map(|e| {
                let state = if e.offline {
                    DELALLOC | UNKNOWN
                } else if e.unwritten {
                    UNWRITTEN
                } else {
                    0
                };
                [e.logical, e.length, state | if e.last { LAST } else { 0 }]
            })
            .collect();
        let want: Vec<_> = extents.iter().map(|e| [0, 1, 2].map(|i| e[i].as_u64().unwrap())).collect();
        report.same(path, "extents", got, want);
    }
}

/// All entries of the volume, with the number of each path.
fn walk(volume: &Volume) -> BTreeMap<Vec<u8>, Ino> {
    let mut found = BTreeMap::from([(b".".to_vec(), Ino::ROOT)]);
    let mut todo = vec![(Vec::new(), Ino::ROOT)];
    while let Some((path, dir)) = todo.pop() {
        let mut cursor = 0;
        loop {
            let batch = volume.readdir_plus(dir, cursor, 500).unwrap();
            for e in batch.iter().filter(|e| e.name != b"." && e.name != b"..") {
                let sub = if path.is_empty() { e.name.to_vec() } else { [&path, &b"/"[..], e.name].concat() };
                if e.attr.is_some_and(|a| a.kind == DirentKind::Dir) {
                    todo.push((sub.clone(), e.ino));
                }
                assert!(found.insert(sub, e.ino).is_none(), "an entry is listed twice");
            }
            if batch.at_end() {
                break;
            }
            cursor = batch.next_cursor();
        }
    }
    found
}

fn check_volume(name: &str) {
    // Reading for the manifest of the recovered volume moved access times in the memory of that mount.
    let atime = name != "06-unclean";
    let f = unpack_fixture(name);
    let before = [&f.meta, &f.data].map(|p| std::fs::metadata(p).unwrap().modified().unwrap());
    let volume = open(&f);
    let mut report = Report::default();
    let wanted = manifest(name, "manifest.jsonl.zst");
    let mut listed = walk(&volume);
    for want in &wanted {
        let path = want["path"].as_str().unwrap();
        let raw = bytes(path);
        let Some(ino) = listed.remove(&raw) else {
            report.same(path, "listed", false, true);
            continue;
        };
        let a = find(&volume, &raw).unwrap_or_else(|e| panic!("{path}: {e}"));
        report.same(path, "listed number", a.ino, ino);
        check_attr(&mut report, path, &a, want, atime);
        check_xattrs(&mut report, &volume, path, a.ino, want);
        if a.kind == DirentKind::Regular {
            check_contents(&mut report, &volume, path, &a, want);
        }
        if let Some(target) = want.get("target").and_then(Value::as_str) {
            report.same(path, "target", volume.readlink(a.ino).unwrap(), bytes(target));
        }
        if let Some(rdev) = want.get("rdev") {
            let want: Vec<_> = rdev.as_array().unwrap().iter().map(int).collect();
            let got = vec![i128::from(a.rdev_major()), i128::from(a.rdev_minor())];
            report.same(path, "rdev", got, want);
        }
    }
    for path in listed.keys() {
        report.same(&String::from_utf8_lossy(path), "listed", true, false);
    }
    assert!(report.0.is_empty(), "{name}:\n{}", report.0.join("\n"));
    let stat = volume.statfs().unwrap();
    assert!(stat.free_blocks <= stat.blocks);
    volume.close().unwrap();
    let after = [&f.meta, &f.data].map(|p| std::fs::metadata(p).unwrap().modified().unwrap());
    assert_eq!(before, after, "a device was written to");
}

#[test]
fn fresh_volumes_are_empty() {
    for name in ["01-fresh-v2", "02-fresh-v1"] {
        let f = unpack_fixture(name);
        let volume = open(&f);
        assert_eq!(walk(&volume).len(), 1);
        volume.close().unwrap();
    }
}

#[test]
fn small_tree() {
    check_volume("03-small-tree");
}

#[test]
fn directory_of_twenty_thousand() {
    check_volume("04-dir-20k");
}

#[test]
fn archive_features() {
    check_volume("05-archive");
}

#[test]
fn unclean_after_a_power_cut() {
    check_volume("06-unclean");
}

#[test]
fn unclean_with_two_mounts() {
    check_volume("07-two-mounts");
}

#[test]
fn after_many_merges() {
    check_volume("08-churn");
}

#[test]
fn version_one() {
    check_volume("09-v1-tree");
}
