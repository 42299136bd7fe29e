//! The FIB: exact match on /64 first, longest prefix match for every other length.
//!
//! Nearly every entry is a node's /64, found by one probe of a hash table. Other prefixes sit in
//! one table per length, longest first. An entry says whether to discard, or names up to 8 next
//! hops with weights; a flow always takes the same one while the entry stands. Prefixes outside of
//! the overlay are only of the host's concern: their entries name the node to send to, and the
//! frames between the nodes are addressed to that node.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

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

/// Next hops of an entry: [`Fib::pick`] picks one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHops {
    first: u32,
    /// Place in the table's groups plus one, if there are several.
    group: Option<NonZeroU32>,
}

/// Weighted next hops, several; a hash picks one.
#[derive(Clone, Copy)]
struct Group {
    peers: [u32; NEXT_HOPS_MAX],
    /// Running sums of the weights.
    bounds: [u32; NEXT_HOPS_MAX],
    count: u8,
}

impl Group {
    fn pick(&self, flow_hash: u16) -> u32 {
        let last = usize::from(self.count) - 1;
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
    /// Apart, for they are long and most entries have one next hop: short entries stay in the cache.
    groups: Vec<Group>,
    /// Places of groups that no entry has any more.
    free: Vec<NonZeroU32>,
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
            groups: Vec::new(),
            free: Vec::new(),
        }
    }

    /// The peer for a flow, of next hops that this table has just told.
    pub fn pick(&self, hops: NextHops, flow_hash: u16) -> u32 {
        let group = hops.group.and_then(|place| self.groups.get(at(place)));
        group.map_or(hops.first, |group| group.pick(flow_hash))
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
            .filter_map(|(len, table)| found(table, destination, *len))
            .next()
        {
            return Some(target);
        }
        if let Some(entry) = self.exact.get(destination.subnet_id()) {
            return Some(entry.target);
        }
        let shorter = self.others.range(..64).rev();
        shorter
            .filter_map(|(len, table)| found(table, destination, *len))
            .next()
    }

    /// Adds an entry, or changes the one of the same prefix; `mark` is its generation.
    ///
    /// # Errors
    /// When the record is no entry.
    pub fn replace(&mut self, record: &FibReplace, mark: u64) -> Result<(), InvalidEntry> {
        let prefix = prefix_of(record.prefix, record.prefix_len)?;
        let target = match record.action {
            ACTION_BLACKHOLE => Target::Discard,
            // Inside the overlay an address is its owner's, and nobody is in front of it.
            ACTION_GATEWAY if record.gateway.is_overlay() && !prefix.overlaps(OVERLAY_RANGE) => {
                Target::Gateway(record.gateway)
            }
            ACTION_FORWARD => Target::Forward(self.hops_of(group_of(record)?)?),
            _ => return Err(InvalidEntry),
        };
        let entry = Entry { target, mark };
        let before = if prefix.len() == 64 {
            self.exact.insert(prefix.address().subnet_id(), entry)
        } else {
            let table = self.others.entry(prefix.len()).or_default();
            table.insert(u128::from_be_bytes(prefix.address().0), entry)
        };
        self.let_go(before);
        Ok(())
    }

    fn hops_of(&mut self, group: Group) -> Result<NextHops, InvalidEntry> {
        let first = group.peers[0];
        if group.count == 1 {
            return Ok(NextHops { first, group: None });
        }
        let place = if let Some(place) = self.free.pop() {
            self.groups[at(place)] = group;
            place
        } else {
            self.groups.push(group);
            let place = u32::try_from(self.groups.len()).ok();
            place.and_then(NonZeroU32::new).ok_or(InvalidEntry)?
        };
        let group = Some(place);
        Ok(NextHops { first, group })
    }

    /// An entry has gone, and with it its next hops.
    fn let_go(&mut self, entry: Option<Entry>) {
        if let Some(Target::Forward(hops)) = entry.map(|entry| entry.target) {
            self.free.extend(hops.group);
        }
    }

    pub(crate) fn remove(&mut self, address: OverlayAddress, len: u8) -> Result<(), InvalidEntry> {
        let prefix = prefix_of(address, len)?;
        let gone = if prefix.len() == 64 {
            self.exact.remove(prefix.address().subnet_id())
        } else if let Some(table) = self.others.get_mut(&prefix.len()) {
            let gone = table.remove(&u128::from_be_bytes(prefix.address().0));
            if table.is_empty() {
                self.others.remove(&prefix.len());
            }
            gone
        } else {
            None
        };
        self.let_go(gone);
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
            let gone = self.exact.remove(key);
            self.let_go(gone);
        }
        let mut gone = Vec::new();
        for table in self.others.values_mut() {
            table.retain(|_, entry| {
                let stays = entry.mark == mark;
                gone.extend((!stays).then_some(*entry));
                stays
            });
        }
        for entry in gone {
            self.let_go(Some(entry));
        }
        self.others.retain(|_, table| !table.is_empty());
    }
}

/// Where a group lies.
fn at(place: NonZeroU32) -> usize {
    place.get() as usize - 1
}

fn found(table: &BTreeMap<u128, Entry>, address: OverlayAddress, len: u8) -> Option<Target> {
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

fn group_of(record: &FibReplace) -> Result<Group, InvalidEntry> {
    let count = usize::from(record.next_hop_count);
    let hops = record
        .next_hops
        .get(..count)
        .filter(|hops| !hops.is_empty());
    let mut group = Group {
        peers: [0; NEXT_HOPS_MAX],
        bounds: [0; NEXT_HOPS_MAX],
        count: record.next_hop_count,
    };
    let mut sum = 0;
    for (n, hop) in hops.ok_or(InvalidEntry)?.iter().enumerate() {
        sum += u32::from(hop.weight.get().max(1));
        group.peers[n] = hop.peer.get();
        group.bounds[n] = sum;
    }
    Ok(group)
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
            Some(Target::Forward(hops)) => Some(fib.pick(hops, 0)),
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
        let second = (0..=u16::MAX)
            .filter(|hash| fib.pick(hops, *hash) == 2)
            .count();
        assert_eq!(second, 65_536 / 4 * 3);
        assert_eq!(fib.pick(hops, 7), fib.pick(hops, 7));
    }

    #[test]
    fn places_of_next_hops_are_used_again() {
        let prefixes = ["400:1::/64", "400:2::/64", "400::/16"].map(|it| it.parse().unwrap());
        let mut fib = Fib::new();
        for turn in 1..20 {
            for prefix in prefixes {
                let hops = [(turn, 1), (turn + 100, 1)];
                fib.replace(&record(prefix, &hops), 1).unwrap();
            }
            // One of several, one removed, all swept.
            fib.replace(&record(prefixes[0], &[(turn, 1)]), 1).unwrap();
            fib.remove(prefixes[1].address(), 64).unwrap();
            assert_eq!(peer(&fib, prefixes[0].address()), Some(turn));
            assert_eq!(peer(&fib, prefixes[1].address()), Some(turn));
            if turn % 3 == 0 {
                fib.sweep(2);
                assert_eq!(peer(&fib, prefixes[1].address()), None);
                assert_eq!(fib.free.len(), fib.groups.len());
            }
        }
        assert!(fib.groups.len() <= 4, "{}", fib.groups.len());
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
