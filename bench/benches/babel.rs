//! One announcement, from its signature at one speaker to the route at its neighbour, and its withdrawal.

use criterion::{Criterion, criterion_group, criterion_main};
use hyphae_routing::babel::{Config, Filter, Speaker, Verifier, Xeddsa};
use hyphae_time::Nanos;
use hyphae_wire::babel::Origin;

use hyphae_wire::{OverlayAddress, Prefix, SecretKey};

/// Accepts every signature: measures the protocol alone.
struct Credulous;

impl Verifier for Credulous {
    fn verify(&mut self, _: &Origin, _: &[u8]) -> bool {
        true
    }
}

struct Pair {
    now: Nanos,
    speakers: [Speaker; 2],
}

impl Pair {
    fn new(verifier: fn() -> Box<dyn Verifier>) -> Self {
        let now = Nanos(1_000_000_000);
        let secrets = [[1; 32], [2; 32]].map(|bytes| SecretKey::from_bytes(&bytes));
        let [Ok(a), Ok(b)] = secrets else {
            panic!("any 32 bytes are a key");
        };
        let keys = [a.public_key(), b.public_key()];
        let speaker = |secret| {
            let mut config = Config::new(secret, 1);
            config.import = Filter::accept_all();
            Speaker::new(now, config, 7, verifier())
        };
        let mut pair = Self {
            now,
            speakers: [speaker(a), speaker(b)],
        };
        for (n, speaker) in pair.speakers.iter_mut().enumerate() {
            speaker.link_up(now, 1, keys[1 - n]);
        }
        let own = keys[0].address().subnet();
        pair.until(|speaker| speaker.route(own).is_some());
        pair
    }

    /// Exchanges packets and advances time until a condition holds at the second speaker.
    fn until(&mut self, done: impl Fn(&Speaker) -> bool) {
        for _ in 0..10_000 {
            let mut idle = true;
            for n in 0..2 {
                while let Some(transmit) = self.speakers[n].poll_transmit() {
                    idle = false;
                    let to = &mut self.speakers[1 - n];
                    to.handle_packet(self.now, 1, self.now, &transmit.packet);
                }
                while self.speakers[n].poll_route().is_some() {}
            }
            if done(&self.speakers[1]) {
                return;
            }
            if idle {
                let due = self.speakers.iter().filter_map(Speaker::poll_timeout).min();
                self.now = self.now.max(due.unwrap_or(self.now));
                for speaker in &mut self.speakers {
                    speaker.handle_timeout(self.now);
                }
            }
        }
        panic!("the neighbour does not learn the route");
    }

    fn come_and_go(&mut self, prefix: Prefix) {
        self.speakers[0].announce(self.now, prefix);
        self.until(|speaker| speaker.route(prefix).is_some());
        self.speakers[0].withdraw(self.now, prefix);
        self.until(|speaker| speaker.route(prefix).is_none());
    }
}

fn babel(c: &mut Criterion) {
    let mut group = c.benchmark_group("babel");
    let signed: fn() -> Box<dyn Verifier> = || Box::new(Xeddsa);
    let unverified: fn() -> Box<dyn Verifier> = || Box::new(Credulous);
    for (what, verifier) in [("signed", signed), ("unverified", unverified)] {
        let mut pair = Pair::new(verifier);
        let mut n = 0u64;
        group.bench_function(what, |b| {
            b.iter(|| {
                n += 1;
                let mut bytes = [0xfd; 16];
                bytes[8..].fill(0);
                bytes[2..8].copy_from_slice(&n.to_be_bytes()[2..]);
                pair.come_and_go(Prefix::new(OverlayAddress(bytes), 64));
            });
        });
    }
}

criterion_group!(benches, babel);
criterion_main!(benches);
