//! Cached items: look-ups, and the item changes of a file creation.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use scoutfs::internals::Bench;

fn items(c: &mut Criterion) {
    let mut group = c.benchmark_group("item");
    group.bench_function("changes of one create", |b| {
        b.iter_custom(|n| {
            let mut spent = Duration::ZERO;
            let mut left = n;
            while left > 0 {
                // A new volume each time: without a server that merges, the log tree would only grow.
                let batch = left.min(20_000);
                spent += Bench::new().creates(batch);
                left -= batch;
            }
            spent
        });
    });
    let mut bench = Bench::new();
    bench.creates(20_000);
    group.bench_function("inode lookup", |b| b.iter_custom(|n| bench.lookups(n)));
    group.bench_function("entry lookup, 20 000 in the directory", |b| b.iter_custom(|n| bench.dirent_lookups(n)));
    group.finish();
}

criterion_group!(benches, items);
criterion_main!(benches);
