//! Neighbours heard on local networks: whether to dial them.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::{Endpoint, PublicKey};

/// Limits of entries, and of entries at one address that are not connected.
const NEIGHBOURS_MAX: usize = 64;
const PER_ADDRESS_MAX: usize = 4;
/// Addresses of one node: the first one, and the latest others.
const ADDRESSES_MAX: usize = 3;
/// Shortest interval between two changes of a node's addresses: each restarts the handshake.
const ADDRESSES_PAUSE: Duration = Duration::from_secs(1);
/// Silence after which an entry that is not connected expires: three beacons.
const SILENT: Duration = Duration::from_secs(100);
/// Time for which the side with the smaller key waits for the other side to dial.
const DIAL_ANYWAY: Duration = Duration::from_secs(15);

/// A node heard on an interface.
#[derive(Clone, Debug)]
struct Neighbour {
    /// Sources of its beacons. Beacons can be replayed from other addresses, so none replaces another: all are tried,
    /// and the handshake decides.
    endpoints: Vec<Endpoint>,
    changed: Nanos,
    first: Nanos,
    heard: Nanos,
    /// Handle of the entry that dials it.
    dialled: Option<u32>,
}

/// Reaction to a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    None,
    /// Answer with a beacon: the other side dials.
    Answer,
    /// Dial it.
    Dial,
    /// Heard at a further address: update the entry.
    Readdress(u32),
}

/// Nodes heard lately, by key and interface. Beacons are not authenticated, so entries that are not connected are
/// evicted for new ones, oldest first, with a limit per address. A real node is connected before it is evicted.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    heard: BTreeMap<(PublicKey, u32), Neighbour>,
}

impl Neighbours {
    /// Handles a beacon of another node. `up`: whether a key is connected. Also returns the entry of an evicted node.
    pub(crate) fn note(
        &mut self,
        now: Nanos,
        own: PublicKey,
        (key, endpoint): (PublicKey, Endpoint),
        up: impl Fn(PublicKey) -> bool,
    ) -> (Step, Option<u32>) {
        let at = (key, endpoint.scope.get());
        let dials = own > key;
        let Some(known) = self.heard.get_mut(&at) else {
            let Ok(gone) = self.make_room(endpoint, &up) else {
                return (Step::None, None);
            };
            let new = Neighbour {
                endpoints: vec![endpoint],
                changed: now,
                first: now,
                heard: now,
                dialled: None,
            };
            self.heard.insert(at, new);
            let step = if dials { Step::Dial } else { Step::Answer };
            return (step, gone);
        };
        known.heard = now;
        let up = up(key);
        let another = !known.endpoints.contains(&endpoint)
            && !up
            && now.since(known.changed) >= ADDRESSES_PAUSE;
        if another {
            known.changed = now;
            known.endpoints.push(endpoint);
            if known.endpoints.len() > ADDRESSES_MAX {
                known.endpoints.remove(1);
            }
        }
        let step = match known.dialled {
            Some(id) if another => Step::Readdress(id),
            Some(_) => Step::None,
            None if dials || (!up && now.since(known.first) >= DIAL_ANYWAY) => Step::Dial,
            None => Step::None,
        };
        (step, None)
    }

    /// Evicts a node for one at `endpoint` if necessary: the oldest of the same address if that has too many, else the
    /// oldest of all. `Err` when all are connected.
    fn make_room(
        &mut self,
        endpoint: Endpoint,
        up: &impl Fn(PublicKey) -> bool,
    ) -> Result<Option<u32>, ()> {
        let here = |known: &Neighbour| {
            let mut of_known = known.endpoints.iter();
            of_known.any(|e| e.with_port(0) == endpoint.with_port(0))
        };
        let (mut same, mut oldest) = (0, [None; 2]);
        for (at, known) in self.heard.iter().filter(|((key, _), _)| !up(*key)) {
            let here = here(known);
            same += usize::from(here);
            let oldest = &mut oldest[usize::from(here)];
            if oldest.is_none_or(|(first, _)| known.first < first) {
                *oldest = Some((known.first, *at));
            }
        }
        let [others, own] = oldest;
        let victim = if same >= PER_ADDRESS_MAX {
            own
        } else if self.heard.len() >= NEIGHBOURS_MAX {
            Some(others.or(own).ok_or(())?)
        } else {
            None
        };
        let gone = victim.and_then(|(_, at)| self.heard.remove(&at));
        Ok(gone.and_then(|known| known.dialled))
    }

    /// Addresses of a node.
    pub(crate) fn endpoints(&self, key: PublicKey, interface: u32) -> Vec<Endpoint> {
        let known = self.heard.get(&(key, interface));
        known
            .map(|known| known.endpoints.clone())
            .unwrap_or_default()
    }

    /// An entry dials it now.
    pub(crate) fn dialled(&mut self, key: PublicKey, interface: u32, id: u32) {
        if let Some(known) = self.heard.get_mut(&(key, interface)) {
            known.dialled = Some(id);
        }
    }

    /// Whether a node was heard.
    pub(crate) fn knows(&self, key: &PublicKey) -> bool {
        let mut known = self.heard.range((*key, 0)..=(*key, u32::MAX));
        known.next().is_some()
    }

    /// Removes entries that are silent and not connected; returns those that dialled them.
    pub(crate) fn expire(&mut self, now: Nanos, up: impl Fn(PublicKey) -> bool) -> Vec<u32> {
        let mut entries = Vec::new();
        self.heard.retain(|(key, _), known| {
            let keep = now.since(known.heard) < SILENT || up(*key);
            if !keep {
                entries.extend(known.dialled);
            }
            keep
        });
        entries
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn place(scope: u32, port: u16) -> Endpoint {
        let ip = "fe80::1".parse().unwrap();
        Endpoint::from(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
    }

    fn at(n: u16, port: u16) -> Endpoint {
        let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n);
        Endpoint::from(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, 3)))
    }

    const START: Nanos = Nanos(1_000_000_000);

    #[test]
    fn the_larger_key_dials_and_the_smaller_one_waits_a_while() {
        let (small, large) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let mut at_large = Neighbours::default();
        let mut note = || {
            at_large
                .note(START, large, (small, place(3, 1)), |_| false)
                .0
        };
        assert_eq!(note(), Step::Dial);
        at_large.dialled(small, 3, 7);
        let mut note = || {
            at_large
                .note(START, large, (small, place(3, 1)), |_| false)
                .0
        };
        assert_eq!(note(), Step::None);
        let mut at_small = Neighbours::default();
        let mut note = |after, up| {
            let now = START + SECOND * after;
            at_small.note(now, small, (large, place(3, 1)), |_| up).0
        };
        assert_eq!(note(0, false), Step::Answer);
        assert_eq!(note(5, false), Step::None);
        assert_eq!(note(30, true), Step::None, "it is connected");
        assert_eq!(note(60, false), Step::Dial, "the other one does not hear");
    }

    #[test]
    fn a_beacon_from_elsewhere_moves_nothing() {
        let (own, key) = (PublicKey([0xff; 32]), PublicKey([1; 32]));
        let mut neighbours = Neighbours::default();
        let mut note = |seconds, from, up| {
            let now = START + SECOND * seconds;
            let step = neighbours.note(now, own, (key, at(from, 9)), |_| up).0;
            if step == Step::Dial {
                neighbours.dialled(key, 3, 7);
            }
            (step, neighbours.endpoints(key, 3))
        };
        assert_eq!(note(0, 1, false), (Step::Dial, vec![at(1, 9)]));
        assert_eq!(note(2, 66, true), (Step::None, vec![at(1, 9)]), "connected");
        let both = vec![at(1, 9), at(66, 9)];
        assert_eq!(note(3, 66, false), (Step::Readdress(7), both.clone()));
        assert_eq!(note(3, 67, false), (Step::None, both), "one at a time");
        for n in 4..50 {
            let (step, endpoints) = note(n, 100 + u16::try_from(n).unwrap(), false);
            assert_eq!(step, Step::Readdress(7));
            assert_eq!((endpoints[0], endpoints.len()), (at(1, 9), 3));
        }
    }

    #[test]
    fn forged_beacons_keep_no_node_out_and_disturb_none_that_is_connected() {
        let own = PublicKey([0xff; 32]);
        let connected = |key: PublicKey| key.0[0] == 1;
        let mut neighbours = Neighbours::default();
        let key = |kind: u8, n: u16| {
            let mut key = [kind; 32];
            key[1..3].copy_from_slice(&n.to_be_bytes());
            PublicKey(key)
        };
        for n in 0..10 {
            neighbours.note(START, own, (key(1, n), at(n, 1)), connected);
            neighbours.dialled(key(1, n), 3, n.into());
        }
        // Of one address, and of as many as there are.
        for n in 0..1000 {
            let now = START + SECOND + Duration::from_millis(n.into());
            let from = if n < 500 { at(500, n) } else { at(n, 1) };
            let (step, gone) = neighbours.note(now, own, (key(2, n), from), connected);
            assert_eq!(step, Step::Dial);
            neighbours.dialled(key(2, n), 3, 1000 + u32::from(n));
            assert!(gone.is_none_or(|id| id >= 1000), "of the forged ones");
            let here = neighbours.heard.len();
            assert!(here <= if n < 500 { 14 } else { NEIGHBOURS_MAX });
        }
        let newcomer = (key(3, 0), at(900, 1));
        let (step, gone) = neighbours.note(START + SECOND * 3, own, newcomer, connected);
        assert!(step == Step::Dial && gone.is_some());
        assert!((0..10).all(|n| neighbours.knows(&key(1, n))));
        // None is evicted while all are connected.
        let (step, _) = neighbours.note(START, own, (key(4, 0), at(7, 7)), |_| true);
        assert_eq!(step, Step::None);
    }

    #[test]
    fn what_is_silent_and_down_is_forgotten() {
        let own = PublicKey([0xff; 32]);
        let mut neighbours = Neighbours::default();
        for n in 0..64u8 {
            let heard = (PublicKey([n; 32]), at(n.into(), 1));
            let step = neighbours.note(START, own, heard, |_| false);
            assert_eq!(step, (Step::Dial, None));
            neighbours.dialled(PublicKey([n; 32]), 3, u32::from(n));
        }
        let heard = (PublicKey([1; 32]), at(1, 1));
        neighbours.note(START + SECOND * 50, own, heard, |_| false);
        let gone = neighbours.expire(START + SECOND * 120, |key| key == PublicKey([2; 32]));
        assert_eq!(gone.len(), 62);
        assert!(!gone.contains(&1) && !gone.contains(&2));
        assert!(neighbours.knows(&PublicKey([1; 32])) && !neighbours.knows(&PublicKey([3; 32])));
    }
}
