//! Feasible distances of origins without a route, RFC 8966 section 3.7.3, and their proofs.
//!
//! A route may leave the table of destinations at any time: withdrawn, expired, or displaced. What this node has
//! advertised of it still bounds what is feasible, because a neighbour that learnt the route here could lead it
//! back. Distances therefore have a bounded table of their own. When it is full, the neighbour with the largest
//! share loses its oldest entry.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_shares::{ShareTable, Ticket};
use hyphae_time::Nanos;
use hyphae_wire::babel::{Origin, RouterId, Serial};

use hyphae_wire::Prefix;

/// Lifetime of a feasible distance without a route, RFC 8966 appendix B.
pub(super) const SOURCE_KEPT: Duration = Duration::from_secs(180);

/// An origin of a prefix.
type Name = (Prefix, RouterId);
/// Its distance and proof.
type Remembered = ((Serial, u16), Origin);

struct Entry {
    distance: (Serial, u16),
    /// The newest announcement seen: an origin that was restored from an old state needs it.
    proof: Origin,
    since: Nanos,
    neighbour: RouterId,
    ticket: Ticket,
}

/// Distances by origin, charged to the neighbour whose route was the last.
#[derive(Default)]
pub(super) struct FeasibleDistances {
    entries: BTreeMap<Name, Entry>,
    shares: ShareTable<(), RouterId, Name>,
}

impl FeasibleDistances {
    /// Remembers the distance of an origin whose last route was `neighbour`'s.
    pub(super) fn insert(
        &mut self,
        now: Nanos,
        name: Name,
        (distance, proof): Remembered,
        neighbour: RouterId,
        max: usize,
    ) {
        self.take(name);
        if self.entries.len() >= max {
            let largest = self.shares.largest();
            let oldest = largest.and_then(|largest| self.shares.entries(largest).next());
            if let Some((_, name)) = oldest {
                self.take(*name);
            }
        }
        let entry = Entry {
            distance,
            proof,
            since: now,
            neighbour,
            ticket: self.shares.add((), neighbour, 1, name),
        };
        self.entries.insert(name, entry);
    }

    /// Takes out what is remembered of an origin that has a route again.
    pub(super) fn take(&mut self, name: Name) -> Option<Remembered> {
        let entry = self.entries.remove(&name)?;
        self.shares.remove(entry.neighbour, entry.ticket);
        Some((entry.distance, entry.proof))
    }

    /// Removes distances older than [`SOURCE_KEPT`].
    pub(super) fn expire(&mut self, now: Nanos) {
        while let Some((_, _, name)) = self.shares.oldest()
            && let Some(entry) = self.entries.get(name)
            && now.since(entry.since) >= SOURCE_KEPT
        {
            self.take(*name);
        }
    }

    /// Distances remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use hyphae_wire::{OverlayAddress, PublicKey, Signature};

    use super::*;

    fn remembered() -> Remembered {
        let serial = Serial::new(5, 1);
        let proof = Origin {
            key: PublicKey([3; 32]),
            serial,
            signature: Signature([7; 64]),
        };
        ((serial, 96), proof)
    }

    fn name(n: u8, neighbour: u8) -> Name {
        let mut address = [4; 16];
        (address[6], address[7]) = (neighbour, n);
        let prefix = Prefix::new(OverlayAddress(address), 64);
        (prefix, RouterId([n; 8]))
    }

    #[test]
    fn a_neighbour_that_fills_the_table_loses_its_own_entries() {
        let (honest, loud) = (RouterId([1; 8]), RouterId([2; 8]));
        let distance = remembered();
        let mut distances = FeasibleDistances::default();
        distances.insert(Nanos(0), name(0, 1), distance, honest, 10);
        for n in 0..100 {
            distances.insert(Nanos(1), name(n, 2), distance, loud, 10);
        }
        assert_eq!(distances.len(), 10);
        assert_eq!(distances.take(name(99, 2)), Some(distance));
        assert_eq!(distances.take(name(50, 2)), None);
        assert_eq!(distances.take(name(0, 1)), Some(distance));
        assert_eq!(distances.take(name(0, 1)), None, "taken already");
    }

    #[test]
    fn a_distance_is_forgotten_after_a_while() {
        let (neighbour, distance) = (RouterId([1; 8]), remembered());
        let mut distances = FeasibleDistances::default();
        let later = Nanos(0) + SOURCE_KEPT / 2;
        distances.insert(Nanos(0), name(1, 1), distance, neighbour, 10);
        distances.insert(later, name(2, 1), distance, neighbour, 10);
        distances.expire(Nanos(0) + SOURCE_KEPT);
        assert_eq!(distances.len(), 1);
        assert_eq!(distances.take(name(2, 1)), Some(distance));
    }
}
