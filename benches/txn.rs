//! Transactions: entering and leaving, small and large commits (memory devices, server in the same process).

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use scoutfs::internals::Bench;

fn transactions(c: &mut Criterion) {
    let mut bench = Bench::new();
    let mut group = c.benchmark_group("txn");
    for threads in [1, 2] {
        group.bench_function(format!("hold and release, {threads} threads"), |b| {
            b.iter_custom(|n| bench.holds(threads, n));
        });
    }
    group.bench_function("commit of one item", |b| b.iter_custom(|n| bench.small_commits(n)));
    group.sample_size(10);
    group.bench_function("commit of the 80 000 items of 10 000 creates", |b| {
        b.iter_custom(|n| {
            let mut spent = Duration::ZERO;
            for _ in 0..n {
                let mut bench = Bench::new();
                bench.creates(10_000);
                spent += bench.commit();
            }
            spent
        });
    });
    group.finish();
}

criterion_group!(benches, transactions);
criterion_main!(benches);
