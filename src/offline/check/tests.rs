//! Sound volumes are found sound, damaged ones damaged, and nothing makes the checker panic.

use zerocopy::{FromBytes, IntoBytes};

use super::super::image::{Cursor, Node};
use super::*;
use crate::device::MemDevice;
use crate::fixture;
use crate::format::layout::*;
use crate::format::{
    Key, KeyRange, Seq, dirent_hash, keys, leaf_hash_bucket, seal_block, validate_dirent, validate_inode, xattr_hash,
};
use crate::sync::Arc;

mod damage;

/// A stored volume of the original, in memory.
fn volume(name: &str) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let device = |kind: &str| {
        let size = fixture::unpack(name, kind, &mut |_, _| {});
        let dev = MemDevice::named(format!("{name}/{kind}"), size);
        fixture::unpack(name, kind, &mut |offset, bytes| dev.write_at(offset, bytes).unwrap());
        dev
    };
    (device("meta"), device("data"))
}

fn run(meta: &MemDevice, data: &MemDevice) -> CheckReport {
    check(meta, data, &CheckOptions::default()).unwrap()
}

fn show(report: &CheckReport) -> String {
    report.findings.iter().map(|f| format!("{f}\n")).collect()
}

#[test]
fn volumes_of_the_original_are_sound() {
    for name in fixture::ALL {
        let (meta, data) = volume(name);
        let report = run(&meta, &data);
        assert!(report.is_clean(), "{name}:\n{}", show(&report));
        assert_eq!(report.leaked_data_blocks, 0, "{name}");
        let only_known =
            report.findings.iter().all(|f| f.severity == Severity::Note || f.class == FindingClass::KnownLeak);
        assert!(only_known, "{name}:\n{}", show(&report));
        let manifest = fixture::folder(name).join("manifest.jsonl.zst").exists();
        if manifest && name != "06-unclean" && name != "07-two-mounts" {
            let lines = String::from_utf8(fixture::text(name, "manifest.jsonl")).unwrap().lines().count() as u64;
            assert_eq!(report.entries + 1, lines, "{name}: one entry for each path but the root");
        }
    }
}

#[test]
fn a_new_volume_is_sound() {
    use crate::offline::{MIN_META_BLOCKS, MkfsOptions, mkfs};
    for (meta_blocks, data_blocks, version) in [(MIN_META_BLOCKS, 65, 1), (1024, 4096, 2), (4096, 1 << 20, 2)] {
        let (meta, data) = (MemDevice::new(meta_blocks << 16), MemDevice::new(data_blocks << 12));
        let options = MkfsOptions {
            format_version: version,
            quorum_slots: vec!["0,127.0.0.1,42000".parse().unwrap()],
            allow_small: true,
            ..MkfsOptions::default()
        };
        mkfs(&*meta, &*data, &options).unwrap();
        let report = run(&meta, &data);
        assert!(report.is_clean() && report.findings.is_empty(), "{}", show(&report));
        assert_eq!((report.inodes, report.items, report.used_meta_blocks), (1, 2, 5));
        assert_eq!(report.free_meta_blocks, meta_blocks - 7);
        assert_eq!(report.free_data_blocks, data_blocks - 64);
    }
}

#[test]
fn what_is_no_volume_cannot_be_checked() {
    let (meta, data) = volume("01-fresh-v2");
    assert!(check(&*MemDevice::new(1 << 20), &*data, &CheckOptions::default()).is_err());
    assert!(check(&*data, &*meta, &CheckOptions::default()).is_err(), "swapped");
    let small = meta.snapshot_sized(1 << 30);
    assert!(check(&*small, &*data, &CheckOptions::default()).is_err(), "a device that shrank");
}

#[test]
fn directories_that_do_not_hang_from_the_root_are_found() {
    let check = |list: &[(u64, u64)]| {
        let mut parents = dirs::Parents::new(10);
        list.iter().for_each(|&(dir, parent)| parents.add(Ino(dir), Ino(parent)));
        let mut findings = Findings::new(100);
        parents.check(&mut findings);
        (findings.errors, findings.into_list().len())
    };
    assert_eq!(check(&[]), (0, 0));
    assert_eq!(check(&[(2, 1), (3, 2), (4, 3), (9, 1)]), (0, 0));
    assert_eq!(check(&[(2, 1), (3, 4), (4, 3)]).0, 1, "a loop of two");
    assert_eq!(check(&[(3, 3)]).0, 1, "its own parent");
    assert_eq!(check(&[(2, 5), (3, 4), (4, 5), (5, 3)]).0, 1, "a loop and a branch of it");
    assert_eq!(check(&[(2, 7)]).0, 1, "no such parent");
    let many: Vec<(u64, u64)> = (2..20).map(|i| (i, i - 1)).collect();
    assert_eq!(check(&many), (0, 1), "too many: a note");
}

#[test]
fn progress_is_told() {
    let (meta, data) = volume("04-dir-20k");
    let phases = std::cell::RefCell::new(Vec::new());
    let progress = |p: &CheckProgress| {
        assert!(p.blocks_used > 0);
        let mut phases = phases.borrow_mut();
        if phases.last() != Some(&p.phase) {
            phases.push(p.phase);
        }
    };
    check(&*meta, &*data, &CheckOptions { progress: Some(&progress), ..CheckOptions::default() }).unwrap();
    let phases = phases.into_inner();
    assert_eq!(phases, ["server structures", "items", "search files", "unaccounted blocks", "paths"]);
}
