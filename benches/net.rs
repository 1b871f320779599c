//! What messages cost: frames, sessions, and whole requests between two threads.
//!
//! `cargo bench --features internals --bench net`

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scoutfs::internals::net::{Echo, Sessions, codec};
use scoutfs::net::{MemTransport, TcpOptions, TcpTransport, Transport};

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("net");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("codec: encode and decode lock messages", |b| b.iter(|| black_box(codec(1000))));
    group.throughput(Throughput::Elements(1));
    let mut sessions = Sessions::default();
    group.bench_function("session: a lock request and its answer", |b| b.iter(|| assert!(sessions.exchange())));
    group.finish();
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("net");
    let transports: [(&str, Arc<dyn Transport>); 2] = [
        ("in process", MemTransport::new()),
        ("TCP loopback", TcpTransport::new(TcpOptions::default()).expect("valid options")),
    ];
    for (name, transport) in transports {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let echo = Echo::start(transport, any).expect("the loopback address can be used");
        echo.request().expect("the first request waits for the connection");
        group.bench_function(format!("round trip: {name}"), |b| b.iter(|| black_box(echo.request())));
    }
    group.finish();
}

criterion_group!(benches, messages, requests);
criterion_main!(benches);
