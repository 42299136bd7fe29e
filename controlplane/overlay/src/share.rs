//! Shares of a bounded table: when it is full, whoever holds the most gives way.
//!
//! A holder has two names, a coarse one (an IPv4 address, an IPv6 /48, the neighbour that a frame
//! came through) and a fine one (the /64). What gives way is the oldest entry of the fine name that
//! holds the most within the coarse name that holds the most; among equals the one whose oldest entry
//! is oldest. Every operation costs O(log n), whatever strangers make the table hold.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hyphae_wire::Endpoint;

/// Names of a holder, the coarse one first.
pub(crate) type Holder = [u128; 2];

/// The names of an underlay address.
pub(crate) fn holder_of(endpoint: Endpoint) -> Holder {
    let address = u128::from_be_bytes(endpoint.ip);
    if endpoint.to_socket_addr().is_ipv4() {
        [address; 2]
    } else {
        [address >> 80 << 80, address >> 64 << 64]
    }
}

/// Entries of one name, by arrival, with their weights.
#[derive(Debug, Default)]
struct Held {
    entries: BTreeMap<u64, u32>,
    weight: u32,
}

/// Name within its parent; a coarse name has none.
type Name = (Option<u128>, u128);
/// Weight, then age: the last of a parent's is the one that gives way.
type Rank = (Option<u128>, u32, Reverse<u64>, u128);

/// Who holds what of one table.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    held: BTreeMap<Name, Held>,
    ranks: BTreeSet<Rank>,
    entries: usize,
    weight: u32,
}

impl Shares {
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight
    }

    /// Notes an entry by its arrival number, which no other has.
    pub(crate) fn add(&mut self, holder: Holder, order: u64, weight: u32) {
        self.entries += 1;
        self.weight += weight;
        self.change(holder, |held| {
            held.entries.insert(order, weight);
            held.weight += weight;
        });
    }

    pub(crate) fn remove(&mut self, holder: Holder, order: u64) {
        let fine = (Some(holder[0]), holder[1]);
        let Some(weight) = self
            .held
            .get(&fine)
            .and_then(|held| held.entries.get(&order))
            .copied()
        else {
            return;
        };
        self.entries -= 1;
        self.weight -= weight;
        self.change(holder, |held| {
            held.entries.remove(&order);
            held.weight -= weight;
        });
    }

    /// Entries of a fine name: how many, and the oldest.
    pub(crate) fn of(&self, holder: Holder) -> (usize, Option<u64>) {
        let held = self.held.get(&(Some(holder[0]), holder[1]));
        let oldest = |held: &Held| held.entries.keys().next().copied();
        (held.map_or(0, |h| h.entries.len()), held.and_then(oldest))
    }

    /// The entries of a fine name, the oldest first.
    pub(crate) fn orders(&self, holder: Holder) -> Vec<u64> {
        let held = self.held.get(&(Some(holder[0]), holder[1]));
        held.map_or_else(Vec::new, |held| held.entries.keys().copied().collect())
    }

    /// The entry that gives way.
    pub(crate) fn largest(&self) -> Option<u64> {
        let coarse = self.last_of(None)?;
        let fine = self.last_of(Some(coarse))?;
        self.of([coarse, fine]).1
    }

    fn last_of(&self, parent: Option<u128>) -> Option<u128> {
        let first = (parent, 0, Reverse(u64::MAX), 0);
        let last = (parent, u32::MAX, Reverse(0), u128::MAX);
        let rank = self.ranks.range(first..=last).next_back()?;
        Some(rank.3)
    }

    fn change(&mut self, holder: Holder, change: impl Fn(&mut Held)) {
        for name in [(None, holder[0]), (Some(holder[0]), holder[1])] {
            let held = self.held.entry(name).or_default();
            let rank = |held: &Held| {
                let oldest = held.entries.keys().next();
                oldest.map(|oldest| (name.0, held.weight, Reverse(*oldest), name.1))
            };
            if let Some(rank) = rank(held) {
                self.ranks.remove(&rank);
            }
            change(held);
            match rank(held) {
                Some(rank) => drop(self.ranks.insert(rank)),
                None => drop(self.held.remove(&name)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn holder(text: &str) -> Holder {
        holder_of(Endpoint::from(text.parse::<SocketAddr>().unwrap()))
    }

    #[test]
    fn the_largest_holder_gives_way_whoever_comes_next() {
        let mut shares = Shares::default();
        let hosts = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.2:9", "192.0.2.3:1"];
        for (order, host) in (1..).zip(hosts) {
            shares.add(holder(host), order, 1);
        }
        assert_eq!((shares.len(), shares.weight()), (4, 4));
        assert_eq!(shares.largest(), Some(2), "the port is no other holder");
        shares.remove(holder("192.0.2.2:1"), 2);
        assert_eq!(shares.largest(), Some(1), "among equals the oldest");
        shares.add(holder("192.0.2.3:1"), 5, 64);
        assert_eq!(shares.largest(), Some(4), "by weight");
        for (order, host) in [(1, 0), (3, 1), (4, 3), (5, 3)] {
            shares.remove(holder(hosts[host]), order);
        }
        assert_eq!(
            (shares.largest(), shares.len(), shares.weight()),
            (None, 0, 0)
        );
        assert!(shares.held.is_empty() && shares.ranks.is_empty());
    }

    #[test]
    fn many_networks_of_one_site_share_what_one_host_elsewhere_may_have() {
        let mut shares = Shares::default();
        for network in 0..16 {
            let host = format!("[2001:db8:7:{network:x}::1]:1");
            shares.add(holder(&host), network + 1, 1);
        }
        for order in 100..115 {
            shares.add(holder("[2001:db8:8::1]:1"), order, 1);
        }
        assert_eq!(shares.largest(), Some(1));
        shares.add(holder("[2001:db8:7:3::9]:1"), 50, 1);
        assert_eq!(
            shares.largest(),
            Some(4),
            "within the site the network with two"
        );
    }
}
