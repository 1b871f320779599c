//! The tree: look-ups, single and bulk changes, decoding and encoding of leaves.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use scoutfs::format::Key;
use scoutfs::internals::Tree;
use std::hint::black_box;

const ITEMS: u64 = 100_000;

fn key(i: u64) -> Key {
    Key::new(16, i / 8, 4 * (i % 8) as u8, 0, i, 0)
}

/// A permutation of the numbers below [`ITEMS`].
fn shuffled(i: u64) -> u64 {
    i.wrapping_mul(61_803_399) % ITEMS
}

fn keys() -> Vec<Key> {
    (0..ITEMS).map(key).collect()
}

fn full() -> Tree {
    let mut tree = Tree::new(256 << 20);
    tree.insert_list(&keys(), &[7; 100]);
    tree.commit();
    tree
}

fn bulk(c: &mut Criterion) {
    let keys = keys();
    let mut g = c.benchmark_group("100,000 sorted items of 100 bytes");
    g.throughput(Throughput::Elements(ITEMS)).sample_size(20);
    g.bench_function("insert_list, empty tree", |b| {
        b.iter_batched_ref(|| Tree::new(0), |tree| tree.insert_list(&keys, &[7; 100]), BatchSize::PerIteration)
    });
    g.bench_function("insert_list, overwriting a written tree", |b| {
        b.iter_batched_ref(full, |tree| tree.insert_list(&keys, &[8; 100]), BatchSize::PerIteration)
    });
    let odd: Vec<Key> = keys.iter().map(|key| Key { fourth: 1, ..*key }).collect();
    g.bench_function("insert_list, between those of a written tree", |b| {
        b.iter_batched_ref(full, |tree| tree.insert_list(&odd, &[8; 100]), BatchSize::PerIteration)
    });
    g.bench_function("encode, crc and write to memory", |b| {
        let fresh = || {
            let mut tree = Tree::new(0);
            tree.insert_list(&keys, &[7; 100]);
            tree
        };
        b.iter_batched_ref(fresh, |tree| tree.commit(), BatchSize::PerIteration)
    });
    g.finish();
}

fn single(c: &mut Criterion) {
    let mut g = c.benchmark_group("single items in a tree of 100,000");
    let tree = full();
    let mut i = 0;
    g.bench_function("lookup, cached, random", |b| {
        b.iter(|| {
            i += 1;
            tree.lookup(black_box(&key(shuffled(i % ITEMS))))
        })
    });
    let mut tree = full();
    g.bench_function("overwrite, dirty, random", |b| {
        b.iter(|| {
            i += 1;
            tree.force(&key(shuffled(i % ITEMS)), &[9; 100])
        })
    });
    g.bench_function("lookup, dirty, random", |b| {
        b.iter(|| {
            i += 1;
            tree.lookup(black_box(&key(shuffled(i % ITEMS))))
        })
    });
    g.bench_function("delete and insert, dirty, random", |b| {
        b.iter(|| {
            i += 1;
            let key = key(shuffled(i % ITEMS));
            tree.delete(&key);
            tree.force(&key, &[9; 100]);
        })
    });
    g.finish();
}

fn leaves(c: &mut Criterion) {
    let mut g = c.benchmark_group("one leaf");
    for (items, len) in [(380, 100), (1100, 0)] {
        let mut tree = Tree::new(1 << 20);
        tree.insert_list(&(0..items).map(key).collect::<Vec<_>>(), &vec![7; len]);
        tree.commit();
        let mut leaf = tree.load_root();
        let mut buf = Box::new([0; 65536]);
        g.bench_function(format!("check and index, {items} items"), |b| b.iter(|| tree.decode_root()));
        g.bench_function(format!("load for changing, {items} items"), |b| b.iter(|| tree.load_root()));
        g.bench_function(format!("encode, {items} items"), |b| {
            b.iter_batched_ref(|| tree.load_root(), |leaf| leaf.encode(&mut buf), BatchSize::LargeInput)
        });
        g.bench_function(format!("encode again, {items} items"), |b| b.iter(|| leaf.encode(&mut buf)));
    }
    g.finish();
}

criterion_group!(benches, bulk, single, leaves);
criterion_main!(benches);
