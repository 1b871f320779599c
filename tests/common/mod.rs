//! What several test programs share.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test program uses what it needs")]

mod fixture;

use std::sync::Arc;

use scoutfs::device::{BlockDevice, MemDevice};

pub use fixture::{ALL, Fixture, fixture, folder, text, unpack};

/// Unpacks the volume `name` into two sparse in-memory devices, metadata first.
pub fn fixture_mem(name: &str) -> (Arc<MemDevice>, Arc<MemDevice>) {
    (mem(name, "meta"), mem(name, "data"))
}

fn mem(name: &str, device: &str) -> Arc<MemDevice> {
    // The size is known only after the first pass over the headers, which costs nothing when nothing is kept.
    let size = unpack(name, device, &mut |_, _| {});
    let dev = MemDevice::named(format!("{name}/{device}"), size);
    unpack(name, device, &mut |offset, bytes| dev.write_at(offset, bytes).expect("the run is inside the device"));
    dev
}
