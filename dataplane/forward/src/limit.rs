//! How many errors a worker may send or believe (RFC 4443, section 2.4 (f)): a rate for all, half of
//! it for one neighbour that frames come from, and a tenth for one node. The node is a name that
//! anybody can forge, so its rate counts by neighbour, too: who forges it elsewhere takes nothing
//! from those who reach this node another way.

use hyphae_time::Nanos;

use hyphae_wire::OverlayAddress;

use crate::rate::{Buckets, Rate};

/// Sets of nodes that are remembered, and of neighbours.
const SETS: usize = 64;

/// One kind of error.
pub(crate) struct Limiter {
    all: Rate,
    neighbour: Rate,
    node: Rate,
    paid: u64,
    nodes: Buckets,
    /// Apart from the nodes, whose made-up names would push them out.
    neighbours: Buckets,
}

impl Limiter {
    /// At most `per_second` errors with bursts of the same number.
    pub(crate) fn new(per_second: u32) -> Self {
        let rate = |share: u32| Rate::new(per_second / share, per_second / share);
        Self {
            all: rate(1),
            neighbour: rate(2),
            node: rate(10),
            paid: 0,
            nodes: Buckets::new(SETS),
            neighbours: Buckets::new(SETS),
        }
    }

    /// Whether an error about `node` may be sent, on account of a frame from `neighbour` (0 for the
    /// host); if so, it is counted as sent.
    pub(crate) fn admit(&mut self, now: Nanos, neighbour: u32, node: OverlayAddress) -> bool {
        let name = (neighbour, node.subnet_id());
        self.nodes.take(now, self.node, name)
            && self.neighbours.take(now, self.neighbour, neighbour)
            && self.all.take(&mut self.paid, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Nanos = Nanos(5_000_000_000);

    fn node(n: u8) -> OverlayAddress {
        let mut address = OverlayAddress::default();
        address.0[0] = 4;
        address.0[7] = n;
        address
    }

    #[test]
    fn a_node_gets_a_burst_and_then_its_rate() {
        let mut limiter = Limiter::new(100);
        let burst = (0..50).filter(|_| limiter.admit(START, 1, node(1))).count();
        assert_eq!(burst, 10);
        let later = START + Duration::from_millis(100);
        let more = (0..50).filter(|_| limiter.admit(later, 1, node(1))).count();
        assert_eq!(more, 1);
    }

    #[test]
    fn a_neighbour_that_forges_names_takes_half_and_nobody_elses() {
        let mut limiter = Limiter::new(100);
        let mut admit = |neighbour, names: std::ops::Range<u8>| {
            let names = names.flat_map(|n| [n; 20]);
            names
                .filter(|n| limiter.admit(START, neighbour, node(*n)))
                .count()
        };
        assert_eq!(admit(1, 0..200), 50);
        assert_eq!(admit(2, 7..8), 10, "the same name from elsewhere");
        assert_eq!(admit(2, 0..200) + admit(3, 0..200), 40, "all together");
    }
}
