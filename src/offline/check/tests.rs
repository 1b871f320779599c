//! Sound volumes are found sound, damaged ones damaged.

use super::*;
use crate::device::MemDevice;
use crate::fixture;
use crate::sync::Arc;

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
        println!("{name}: {report:?}\n{}", show(&report));
        assert!(report.is_clean(), "{name}:\n{}", show(&report));
    }
}
