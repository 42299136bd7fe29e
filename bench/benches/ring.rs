//! Records through a ring, in and out in one thread.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hyphae_shm::{RECORD_MAX, heap};

fn ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    for (batch, size) in [(1u64, 64usize), (32, 64), (32, 1400)] {
        group.throughput(Throughput::Elements(batch));
        let (mut producer, mut consumer) = heap(1 << 17);
        let (record, mut scratch) = (vec![7; size], vec![0; RECORD_MAX]);
        group.bench_function(BenchmarkId::new(format!("{size} bytes"), batch), |b| {
            b.iter(|| {
                for _ in 0..batch {
                    assert!(producer.push(1, &[&record]).is_ok(), "there is room");
                }
                // The reader polls: no wakeup is due.
                let _ = producer.publish();
                let mut popped = 0;
                while let Ok(Some(_)) = consumer.pop(&mut scratch) {
                    popped += 1;
                }
                consumer.release();
                assert_eq!(popped, batch, "what goes in comes out");
            });
        });
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
