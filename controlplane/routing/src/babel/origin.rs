//! Own announcements, and validation of the origins of others'.

use std::fmt;

use hyphae_time::Nanos;
use hyphae_wire::babel::{Origin, RouterId, Serial};

use hyphae_wire::{Prefix, PublicKey};

use super::Speaker;
use super::table::Marks;

/// Refusals queued for [`Speaker::poll_refusal`].
const REFUSALS_MAX: usize = 16;

/// An announcement of this node.
pub(super) struct Own {
    pub(super) origin: Origin,
    pub(super) marks: Marks,
    /// No new serial before this time, which bounds the signatures that a flood of requests costs.
    pub(super) next_raise: Nanos,
}

/// Checks signatures.
pub trait Verifier: Send {
    /// Whether `origin.key` has signed `message`.
    fn verify(&mut self, origin: &Origin, message: &[u8]) -> bool;
}

/// XEdDSA, for production.
#[derive(Clone, Copy, Debug, Default)]
pub struct Xeddsa;

impl Verifier for Xeddsa {
    fn verify(&mut self, origin: &Origin, message: &[u8]) -> bool {
        origin.key.verify(message, &origin.signature).is_ok()
    }
}

/// Why an announcement was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum RefusalReason {
    /// In the overlay range, a prefix has one owner.
    #[error("the key does not own the prefix")]
    NotOwner,
    /// Router-id and key do not belong together.
    #[error("the router-id is not the key's")]
    RouterId,
    /// The signature is invalid.
    #[error("the signature is not valid")]
    Signature,
    /// No import rule accepts it.
    #[error("no import rule takes it")]
    Filter,
    /// The table is full.
    #[error("the table of routes is full")]
    Full,
}

impl RefusalReason {
    /// All, in the order of [`super::Counters::refused`].
    pub const ALL: [Self; 5] = [
        Self::NotOwner,
        Self::RouterId,
        Self::Signature,
        Self::Filter,
        Self::Full,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOwner => "not_owner",
            Self::RouterId => "router_id",
            Self::Signature => "signature",
            Self::Filter => "filter",
            Self::Full => "full",
        }
    }
}

/// A refused announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The neighbour that forwarded it.
    pub neighbour: PublicKey,
    /// The prefix.
    pub prefix: Prefix,
    /// The key that it claims as its origin.
    pub origin: PublicKey,
    /// Why it was refused.
    pub reason: RefusalReason,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "announcement of {} by {}, passed on by {}: {}",
            self.prefix, self.origin, self.neighbour, self.reason
        )
    }
}

impl Speaker {
    /// Announces a prefix. Within the overlay range others accept only the node's own /64.
    pub fn announce(&mut self, now: Nanos, prefix: Prefix) {
        if self.own.contains_key(&prefix) {
            return;
        }
        // Neighbours would refuse a withdrawn prefix under its old serial.
        let first = Serial::new(self.config.epoch, 1);
        let before = self.withdrawn.remove(&prefix);
        let serial = before.map_or(first, |serial| serial.next().max(first));
        let own = Own {
            origin: self.sign(prefix, serial),
            marks: Marks::default(),
            next_raise: now,
        };
        self.own.insert(prefix, own);
        if self.remove(prefix).is_some() {
            self.changed.insert(prefix);
        }
        self.advertise(now, prefix, true);
    }

    /// Stops announcing a prefix.
    pub fn withdraw(&mut self, now: Nanos, prefix: Prefix) {
        let Some(own) = self.own.remove(&prefix) else {
            return;
        };
        self.withdrawn.insert(prefix, own.origin.serial);
        // Retracted as a destination without a route.
        self.table.entry(prefix).or_default().marks = own.marks;
        self.advertise(now, prefix, true);
        self.end(now, prefix);
    }

    /// Prefixes announced by this node.
    pub fn announced(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.own.keys().copied()
    }

    fn sign(&mut self, prefix: Prefix, serial: Serial) -> Origin {
        let message = Origin::message(prefix, self.router_id, serial);
        // XEdDSA derives the nonce from key and message; this input need not be secret.
        let mut random = [0; 64];
        for chunk in random.chunks_exact_mut(8) {
            self.jitter(std::time::Duration::ZERO);
            chunk.copy_from_slice(&self.rng.to_le_bytes());
        }
        Origin {
            key: self.key,
            serial,
            signature: self.config.identity.sign(&message, &random),
        }
    }

    /// Gives an own announcement a new serial.
    pub(super) fn raise(&mut self, now: Nanos, prefix: Prefix, serial: Serial) {
        let origin = self.sign(prefix, serial);
        if let Some(own) = self.own.get_mut(&prefix) {
            own.origin = origin;
            own.marks.proved.clear();
            own.next_raise = now + std::time::Duration::from_millis(100);
        }
        self.advertise(now, prefix, true);
    }

    /// Continues from an announcement that this node has signed itself and forgotten.
    pub(super) fn recall(&mut self, now: Nanos, prefix: Prefix, origin: &Origin) {
        let serial = origin.serial;
        let newer = self
            .own
            .get(&prefix)
            .is_some_and(|own| serial > own.origin.serial);
        if newer && origin.key == self.key && self.signed(prefix, self.router_id, origin) {
            self.raise(now, prefix, serial.next());
        }
    }

    pub(super) fn signed(&mut self, prefix: Prefix, router_id: RouterId, origin: &Origin) -> bool {
        self.counters.verified += 1;
        self.verify_budget = self.verify_budget.saturating_sub(1);
        let message = Origin::message(prefix, router_id, origin.serial);
        self.verifier.verify(origin, &message)
    }

    /// Whether a key may announce a prefix, before the signature is verified.
    pub(super) fn authorize(
        &self,
        neighbour: &PublicKey,
        prefix: Prefix,
        router_id: RouterId,
        key: &PublicKey,
    ) -> Result<(), RefusalReason> {
        if RouterId::of(key) != router_id {
            return Err(RefusalReason::RouterId);
        }
        let range = hyphae_wire::address::OVERLAY_RANGE;
        if (range.covers(prefix) || prefix.covers(range)) && key.address().subnet() != prefix {
            return Err(RefusalReason::NotOwner);
        }
        if !self.config.import.accepts(prefix, key, neighbour) {
            return Err(RefusalReason::Filter);
        }
        Ok(())
    }

    pub(super) fn refuse(&mut self, refused: Refused) {
        if let Some(at) = RefusalReason::ALL.iter().position(|r| *r == refused.reason) {
            self.counters.refused[at] += 1;
        }
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push_back(refused);
        }
    }
}
