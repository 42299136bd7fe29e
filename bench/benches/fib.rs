//! Lookups in the forwarding table by its size.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hyphae_forward::parts::Fib;
use hyphae_instructions::{Spread, records};
use hyphae_wire::OverlayAddress;

/// Lookups of one iteration.
const LOOKUPS: u64 = 1024;

fn fib(c: &mut Criterion) {
    let mut group = c.benchmark_group("fib");
    group.throughput(Throughput::Elements(LOOKUPS));
    for prefixes in [1000u64, 100_000] {
        let mut fib = Fib::new();
        for n in 0..prefixes {
            let route = records::route(records::network(n), 1);
            assert!(fib.replace(&route, 1).is_ok(), "an entry");
        }
        let mut spread = Spread(1);
        for (what, first) in [("hit", 0), ("miss", prefixes)] {
            let picks = (0..LOOKUPS).map(|_| first + spread.next_number() % prefixes);
            let addresses: Vec<OverlayAddress> = picks.map(records::network).collect();
            group.bench_function(BenchmarkId::new(what, prefixes), |b| {
                b.iter(|| {
                    addresses
                        .iter()
                        .filter(|a| fib.lookup(**a).is_some())
                        .count()
                });
            });
        }
    }
}

criterion_group!(benches, fib);
criterion_main!(benches);
