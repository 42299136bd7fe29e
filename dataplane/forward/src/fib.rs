//! The FIB: exact match on /64 first, longest prefix match for every other length.
//!
//! Nearly every entry is a node's /64, found by one probe of a hash table. Other prefixes sit in
//! one table per length, longest first. An entry says whether to discard, or names up to 8 next
//! hops with weights; a flow always takes the same one while the entry stands. Prefixes outside of
//! the overlay are only of the host's concern: their entries name the node to send to, and the
//! frames between the nodes are addressed to that node.

use std::collections::BTreeMap;

use hyphae_shm::record::{
    ACTION_BLACKHOLE, ACTION_FORWARD, ACTION_GATEWAY, FibReplace, NEXT_HOPS_MAX,
};
use hyphae_wire::address::OVERLAY_RANGE;
use hyphae_wire::{OverlayAddress, Prefix};

use crate::map::Map;

/// What to do with packets to a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Drop them.
    Discard,
    /// Pass them on to one of these.
    Forward(NextHops),
    /// The prefix lies outside of the overlay, behind this node.
    Gateway(OverlayAddress),
}

/// Weighted next hops; a hash picks one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHops {
    peers: [u32; NEXT_HOPS_MAX],
    /// Running sums of the weights.
    bounds: [u32; NEXT_HOPS_MAX],
    count: u8,
}

impl NextHops {
    /// The peer for a flow.
    pub fn pick(&self, flow_hash: u16) -> u32 {
        let last = usize::from(self.count) - 1;
        if last == 0 {
            return self.peers[0];
        }
        // Scales the hash to the sum of weights: 16 bits times at most 19 bits.
        let point = (u64::from(flow_hash) * u64::from(self.bounds[last])) >> 16;
        let at = self.bounds[..last]
            .iter()
            .position(|bound| point < u64::from(*bound));
        self.peers[at.unwrap_or(last)]
    }
}

#[derive(Clone, Copy)]
struct Entry {
    target: Target,
    /// Generation that named it last.
    mark: u64,
}

/// Not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed FIB entry")]
pub struct InvalidEntry;

/// The table of one worker.
pub struct Fib {
    exact: Map<Entry>,
    /// By length, longest first on lookup; keys are the prefix bits.
    others: BTreeMap<u8, BTreeMap<u128, Entry>>,
}

impl Fib {
    /// An empty table.
    #[allow(
        clippy::new_without_default,
        reason = "an empty table is no likely default"
    )]
    pub fn new() -> Self {
        Self {
            exact: Map::new(),
            others: BTreeMap::new(),
        }
    }

    /// What the most specific entry for an address says.
    pub fn lookup(&self, destination: OverlayAddress) -> Option<Target> {
        if self.others.is_empty() {
            return self
                .exact
                .get(destination.subnet_id())
                .map(|entry| entry.target);
        }
        let longer = self.others.range(65..).rev();
        if let Some(target) = longer
            .filter_map(|(len, table)| at(table, destination, *len))
            .next()
        {
            return Some(target);
        }
        if let Some(entry) = self.exact.get(destination.subnet_id()) {
            return Some(entry.target);
        }
        let shorter = self.others.range(..64).rev();
        shorter
            .filter_map(|(len, table)| at(table, destination, *len))
            .next()
    }

    /// Adds an entry, or changes the one of the same prefix; `mark` is its generation.
    ///
    /// # Errors
    /// When the record is no entry.
    pub fn replace(&mut self, record: &FibReplace, mark: u64) -> Result<(), InvalidEntry> {
        let prefix = prefix_of(record.prefix, record.prefix_len)?;
        let entry = Entry {
            target: target_of(record, prefix)?,
            mark,
        };
        if prefix.len() == 64 {
            self.exact.insert(prefix.address().subnet_id(), entry);
        } else {
            let table = self.others.entry(prefix.len()).or_default();
            table.insert(u128::from_be_bytes(prefix.address().0), entry);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, address: OverlayAddress, len: u8) -> Result<(), InvalidEntry> {
        let prefix = prefix_of(address, len)?;
        if prefix.len() == 64 {
            self.exact.remove(prefix.address().subnet_id());
        } else if let Some(table) = self.others.get_mut(&prefix.len()) {
            table.remove(&u128::from_be_bytes(prefix.address().0));
            if table.is_empty() {
                self.others.remove(&prefix.len());
            }
        }
        Ok(())
    }

    /// Removes what `mark` did not name.
    pub(crate) fn sweep(&mut self, mark: u64) {
        let stale: Vec<_> = self
            .exact
            .iter()
            .filter(|(_, entry)| entry.mark != mark)
            .map(|(key, _)| key)
            .collect();
        for key in stale {
            self.exact.remove(key);
        }
        self.others
            .values_mut()
            .for_each(|table| table.retain(|_, entry| entry.mark == mark));
        self.others.retain(|_, table| !table.is_empty());
    }
}

fn at(table: &BTreeMap<u128, Entry>, address: OverlayAddress, len: u8) -> Option<Target> {
    let prefix = Prefix::new(address, len).address();
    table
        .get(&u128::from_be_bytes(prefix.0))
        .map(|entry| entry.target)
}

fn prefix_of(address: OverlayAddress, len: u8) -> Result<Prefix, InvalidEntry> {
    let prefix = Prefix::new(address, len);
    if len <= 128 && prefix.address() == address {
        Ok(prefix)
    } else {
        Err(InvalidEntry)
    }
}

fn target_of(record: &FibReplace, prefix: Prefix) -> Result<Target, InvalidEntry> {
    match record.action {
        ACTION_BLACKHOLE => Ok(Target::Discard),
        // Inside the overlay an address is its owner's, and nobody is in front of it.
        ACTION_GATEWAY if record.gateway.is_overlay() && !prefix.overlaps(OVERLAY_RANGE) => {
            Ok(Target::Gateway(record.gateway))
        }
        ACTION_FORWARD => {
            let count = usize::from(record.next_hop_count);
            let hops = record
                .next_hops
                .get(..count)
                .filter(|hops| !hops.is_empty());
            let mut next = NextHops {
                peers: [0; 8],
                bounds: [0; 8],
                count: record.next_hop_count,
            };
            let mut sum = 0;
            for (n, hop) in hops.ok_or(InvalidEntry)?.iter().enumerate() {
                sum += u32::from(hop.weight.get().max(1));
                next.peers[n] = hop.peer.get();
                next.bounds[n] = sum;
            }
            Ok(Target::Forward(next))
        }
        _ => Err(InvalidEntry),
    }
}

#[cfg(test)]
mod tests {
    use hyphae_shm::record::NextHop;
    use proptest::prelude::*;
    use zerocopy::FromZeros;
    use zerocopy::little_endian::{U16, U32};

    use super::*;

    fn record(prefix: Prefix, hops: &[(u32, u16)]) -> FibReplace {
        let mut record = FibReplace::new_zeroed();
        record.prefix = prefix.address();
        record.prefix_len = prefix.len();
        record.next_hop_count = u8::try_from(hops.len()).unwrap();
        for (place, (peer, weight)) in record.next_hops.iter_mut().zip(hops) {
            *place = NextHop {
                peer: U32::new(*peer),
                weight: U16::new(*weight),
                reserved: U16::ZERO,
            };
        }
        record
    }

    fn peer(fib: &Fib, address: OverlayAddress) -> Option<u32> {
        match fib.lookup(address) {
            Some(Target::Forward(hops)) => Some(hops.pick(0)),
            Some(Target::Discard | Target::Gateway(_)) | None => None,
        }
    }

    proptest! {
        #[test]
        fn lookup_is_longest_match(
            entries in prop::collection::vec((0u128..64, prop::sample::select(vec![0u8, 7, 8, 56, 63, 64, 65, 96, 128])), 0..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            probes in prop::collection::vec(0u128..64, 1..40),
        ) {
            let address = |n: u128| OverlayAddress((4u128 << 120 | n << 61 | n << 30 | n).to_be_bytes());
            let mut fib = Fib::new();
            let mut oracle: BTreeMap<Prefix, u32> = BTreeMap::new();
            for (n, (bits, len)) in entries.iter().enumerate() {
                let prefix = Prefix::new(address(*bits), *len);
                let peer = u32::try_from(n).unwrap();
                fib.replace(&record(prefix, &[(peer, 1)]), 1).unwrap();
                oracle.insert(prefix, peer);
            }
            for index in removed {
                let Some(prefix) = (!oracle.is_empty()).then(|| *oracle.keys().nth(index.index(oracle.len())).unwrap()) else { break };
                oracle.remove(&prefix);
                fib.remove(prefix.address(), prefix.len()).unwrap();
            }
            for probe in probes {
                let best = oracle.iter().filter(|(p, _)| p.contains(address(probe))).max_by_key(|(p, _)| p.len());
                prop_assert_eq!(peer(&fib, address(probe)), best.map(|(_, peer)| *peer));
            }
        }
    }

    #[test]
    fn flows_divide_by_weight_and_stick() {
        let prefix: Prefix = "400:1::/64".parse().unwrap();
        let mut fib = Fib::new();
        fib.replace(&record(prefix, &[(1, 1), (2, 3)]), 1).unwrap();
        let Some(Target::Forward(hops)) = fib.lookup(prefix.address()) else {
            panic!("forward")
        };
        let second = (0..=u16::MAX).filter(|hash| hops.pick(*hash) == 2).count();
        assert_eq!(second, 65_536 / 4 * 3);
        assert_eq!(hops.pick(7), hops.pick(7));
    }

    #[test]
    fn sweep_keeps_what_was_named() {
        let (a, b, c) = ("400:1::/64", "400:2::/64", "400::/16");
        let mut fib = Fib::new();
        for (n, prefix) in [a, b, c].iter().enumerate() {
            let mark = u64::from(n == 0) + 1;
            fib.replace(&record(prefix.parse().unwrap(), &[(1, 1)]), mark)
                .unwrap();
        }
        fib.sweep(2);
        let known = |text: &str| {
            fib.lookup(text.parse::<Prefix>().unwrap().address())
                .is_some()
        };
        assert_eq!((known(a), known(b), known(c)), (true, false, false));
    }

    #[test]
    fn malformed_entries_are_refused() {
        let mut fib = Fib::new();
        let good = record("400:1::/64".parse().unwrap(), &[(1, 1)]);
        let bad = [
            FibReplace {
                prefix_len: 129,
                ..good
            },
            FibReplace {
                prefix_len: 8,
                ..good
            },
            FibReplace {
                next_hop_count: 0,
                ..good
            },
            FibReplace {
                next_hop_count: 9,
                ..good
            },
            FibReplace { action: 7, ..good },
        ];
        assert!(
            bad.iter()
                .all(|record| fib.replace(record, 1) == Err(InvalidEntry))
        );
    }
}
