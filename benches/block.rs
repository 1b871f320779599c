//! The block store: checksums, verified reads, write-out.
//!
//! The checksum is compared between two crates; the engine uses `crc-fast`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scoutfs::format::Key;
use scoutfs::internals::Tree;
use std::hint::black_box;

fn checksums(c: &mut Criterion) {
    let block = vec![0x5au8; 65536];
    let mut g = c.benchmark_group("crc32c of 64 KiB");
    g.throughput(Throughput::Bytes(65536));
    g.bench_function("crc-fast", |b| b.iter(|| crc_fast::crc32_iscsi(black_box(&block))));
    g.bench_function("crc32c", |b| b.iter(|| crc32c::crc32c(black_box(&block))));
    let mut copy = block.clone();
    g.bench_function("memcpy", |b| b.iter(|| copy.copy_from_slice(black_box(&block))));
    g.finish();
}

fn reads(c: &mut Criterion) {
    let mut tree = Tree::new(64 << 20);
    tree.insert_list(&(0..300).map(|i| Key::new(16, i, 4, 0, 0, 0)).collect::<Vec<_>>(), &[1; 100]);
    tree.commit();
    let mut g = c.benchmark_group("block store");
    g.bench_function("read, cached", |b| b.iter(|| tree.read_root()));
    tree.cool(0);
    g.bench_function("read and verify from memory", |b| b.iter(|| tree.read_root()));
    g.finish();
}

criterion_group!(benches, checksums, reads);
criterion_main!(benches);
