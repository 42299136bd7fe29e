//! The replay window: counters in order, and with some late ones.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hyphae_forward::parts::Replay;

/// Counters of one iteration.
const COUNTERS: u64 = 4096;

fn replay(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(COUNTERS));
    for (what, every) in [("in order", u64::MAX), ("every eighth late", 8)] {
        let late = |n: u64| if n % every == every - 1 { n - 7 } else { n + 1 };
        let order: Vec<u64> = (0..COUNTERS).map(late).collect();
        group.bench_function(what, |b| {
            b.iter(|| {
                let mut window = Replay::new();
                let mut fresh = |counter: &&u64| {
                    let fresh = window.is_fresh(**counter);
                    fresh && {
                        window.note(**counter);
                        true
                    }
                };
                order.iter().filter(&mut fresh).count()
            });
        });
    }
}

criterion_group!(benches, replay);
criterion_main!(benches);
