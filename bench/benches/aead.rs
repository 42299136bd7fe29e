//! Sealing and opening of payloads by suite and size, through the type that the packet path uses.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hyphae_aead::Aead;
use hyphae_wire::Suite;

fn aead(c: &mut Criterion) {
    let aad = [3; 32];
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut group = c.benchmark_group(format!("aead/{suite}"));
        let cipher = Aead::new(suite, &[7; 32]);
        for size in [56usize, 64, 512, 1400] {
            group.throughput(Throughput::Bytes(size as u64));
            let mut text = vec![0x5a; size];
            let mut counter = 0;
            group.bench_function(BenchmarkId::new("seal", size), |b| {
                b.iter(|| {
                    counter += 1;
                    cipher.seal(counter, &aad, &mut text)
                });
            });
            let mut sealed = vec![0x5a; size];
            let tag = cipher.seal(1, &aad, &mut sealed);
            sealed.extend(tag);
            group.bench_function(BenchmarkId::new("open", size), |b| {
                let open = |message: &mut Vec<u8>| assert!(cipher.open(1, &aad, message).is_ok());
                b.iter_batched_ref(|| sealed.clone(), open, BatchSize::SmallInput);
            });
        }
    }
}

criterion_group!(benches, aead);
criterion_main!(benches);
