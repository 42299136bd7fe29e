//! How many errors a worker may send: a token bucket for all, and one per node (RFC 4443, section
//! 2.4 (f)). Nodes share 256 buckets by a hash of their /64, so the table never grows; two that
//! share one only get fewer errors.

use std::time::Duration;

use hyphae_wire::{Nanos, OverlayAddress};

const BUCKETS: usize = 256;

/// Tokens, in nanoseconds of credit.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When it would be full.
    full_at: Nanos,
}

/// One kind of error.
pub(crate) struct Limiter {
    /// Credit that one error costs, and the most that can be saved up.
    all: (Duration, Duration),
    each: (Duration, Duration),
    overall: Bucket,
    nodes: Box<[Bucket; BUCKETS]>,
}

impl Bucket {
    const FULL: Self = Self { full_at: Nanos(0) };

    fn has(self, now: Nanos, (cost, most): (Duration, Duration)) -> bool {
        // What is missing, and one more, still fits.
        self.full_at.max(now) + cost <= now + most
    }

    fn take(&mut self, now: Nanos, (cost, _): (Duration, Duration)) {
        self.full_at = self.full_at.max(now) + cost;
    }
}

impl Limiter {
    /// At most `all_per_second` errors with bursts of the same number, and a tenth of both to one
    /// node.
    pub(crate) fn new(all_per_second: u32) -> Self {
        let rate = |per_second: u32| {
            (
                Duration::from_secs(1) / per_second.max(1),
                Duration::from_secs(1),
            )
        };
        Self {
            all: rate(all_per_second),
            each: rate(all_per_second / 10),
            overall: Bucket::FULL,
            nodes: Box::new([Bucket::FULL; BUCKETS]),
        }
    }

    /// Whether an error about `node` may be sent; if so, it is counted as sent.
    pub(crate) fn admit(&mut self, now: Nanos, node: OverlayAddress) -> bool {
        let hash = node.subnet_id().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        let bucket = &mut self.nodes[hash as usize % BUCKETS];
        let admitted = bucket.has(now, self.each) && self.overall.has(now, self.all);
        if admitted {
            bucket.take(now, self.each);
            self.overall.take(now, self.all);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> OverlayAddress {
        let mut address = OverlayAddress::default();
        address.0[0] = 4;
        address.0[7] = n;
        address
    }

    #[test]
    fn a_node_gets_a_burst_and_then_its_rate() {
        let mut limiter = Limiter::new(100);
        let start = Nanos(5_000_000_000);
        let burst = (0..50).filter(|_| limiter.admit(start, node(1))).count();
        assert_eq!(burst, 10);
        let later = start + Duration::from_millis(100);
        let more = (0..50).filter(|_| limiter.admit(later, node(1))).count();
        assert_eq!(more, 1);
    }

    #[test]
    fn all_together_are_limited_too() {
        let mut limiter = Limiter::new(100);
        let start = Nanos(5_000_000_000);
        let burst = (0..=u8::MAX)
            .flat_map(|n| [n; 10])
            .filter(|n| limiter.admit(start, node(*n)))
            .count();
        assert_eq!(burst, 100);
    }
}
