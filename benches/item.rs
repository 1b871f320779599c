//! Cached items: look-ups, and the item changes of a file creation.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use scoutfs::internals::Bench;

fn items(c: &mut Criterion) {
    let mut bench = Bench::new();
    let mut group = c.benchmark_group("item");
    // Commits are left out: they happen between the measured batches.
    group.bench_function("changes of one create", |b| {
        b.iter_custom(|n| {
            let mut spent = Duration::ZERO;
            let mut left = n;
            while left > 0 {
                let batch = left.min(20_000);
                spent += bench.creates(batch);
                bench.commit();
                left -= batch;
            }
            spent
        });
    });
    group.bench_function("inode lookup", |b| b.iter_custom(|n| bench.lookups(n)));
    group.bench_function("entry lookup in a large directory", |b| b.iter_custom(|n| bench.dirent_lookups(n)));
    group.finish();
}

criterion_group!(benches, items);
criterion_main!(benches);
