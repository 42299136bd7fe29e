//! One message from one engine of the bus to another, including its acknowledgement.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hyphae_instructions::Messengers;

fn bus(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus");
    for size in [128usize, 16 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        let payload = Bytes::from(vec![7; size]);
        let Ok(mut messengers) = Messengers::new() else {
            panic!("two engines");
        };
        group.bench_function(BenchmarkId::new("send and receive", size), |b| {
            b.iter(|| assert!(messengers.exchange(&payload, 1).is_ok(), "it arrives"));
        });
    }
}

criterion_group!(benches, bus);
criterion_main!(benches);
