//! Handshakes in flight: those initiated by this node ([`Outgoing`]) and by others ([`HalfOpen`]).
//!
//! Half-open handshakes are bounded per kind: in number, per source, and by the slots that they use. When a
//! table is full, the largest source is evicted ([`ShareTable`]). Renewals are carried in a session; they are
//! bounded by the number of sessions, have no more lanes than theirs, and are charged to the session's owner.
//! No session is affected before a third message has authenticated the other end.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_shares::{ShareTable, Ticket};
use hyphae_time::Nanos;
use hyphae_wire::guard::Token;
use hyphae_wire::handshake::Offer;

use hyphae_wire::{
    AddressPair, Endpoint, LocalAddress, OverlayAddress, SessionIndex, Suite, WorkerId,
};

use crate::ids::ConfiguredPeer;
use crate::ids::FIRST_WORKER;
use crate::ids::Owner;
use crate::index::Class;
use crate::keys::Kind;
use crate::noise::Noise;
use crate::source::{Source, source_of};

/// First retransmission interval.
pub(crate) const RETRANSMIT_MIN: Duration = Duration::from_millis(250);
/// Longest retransmission interval.
pub(crate) const RETRANSMIT_MAX: Duration = Duration::from_secs(8);
/// Time to the second attempt at a peer.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(150);
/// Longest time between attempts at a peer that was up within the last minute: a restarted node is back in
/// service within a second.
pub(crate) const RETRY_MAX_JUST_NOW: Duration = Duration::from_millis(600);
/// Longest time between attempts at a peer that was up recently.
pub(crate) const RETRY_MAX_RECENT: Duration = Duration::from_secs(2);
/// Timeout of a probe of another address of a peer.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of a first message on a link, before the next attempt with fresh keys.
pub(crate) const LINK_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of a first message end to end, before packets that wait for the session are dropped.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a third message. Shorter than [`HALF_OPEN_LIFE`], so that the responder does not complete
/// a session that the initiator has abandoned.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// Lifetime of an answered first message.
pub(crate) const HALF_OPEN_LIFE: Duration = Duration::from_secs(10);

/// Path of a handshake message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carrier {
    Underlay {
        worker: WorkerId,
        endpoint: Endpoint,
        /// Local address of the message and of its answers; unset for handshakes initiated by this node.
        local: LocalAddress,
    },
    Overlay {
        worker: WorkerId,
        address: OverlayAddress,
        /// Neighbour that forwarded it; `None` for handshakes initiated by this node.
        through: Option<u32>,
    },
    /// Inside the session in use, which authenticates the sender.
    Sealed {
        owner: Owner,
        /// Underlay address of the first lane (links).
        endpoint: Endpoint,
    },
}

/// The table that a half-open handshake is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    Link,
    EndToEnd,
    Renewal,
}

/// Half-open renewals of one session.
const RENEWALS_MAX: usize = 2;

impl Carrier {
    /// To an underlay address without earlier traffic.
    pub(crate) fn to(endpoint: Endpoint) -> Self {
        Self::Underlay {
            worker: FIRST_WORKER,
            endpoint,
            local: LocalAddress::UNSET,
        }
    }

    /// The reverse path of a frame that a worker received.
    pub(crate) fn back(worker: WorkerId, addresses: AddressPair) -> Self {
        Self::Underlay {
            worker,
            endpoint: addresses.remote,
            local: addresses.local,
        }
    }

    /// Local address that answers leave from.
    pub(crate) fn local(self) -> LocalAddress {
        match self {
            Self::Underlay { local, .. } => local,
            Self::Overlay { .. } | Self::Sealed { .. } => LocalAddress::UNSET,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Underlay { .. } => Kind::Link,
            Self::Overlay { .. } => Kind::EndToEnd,
            Self::Sealed { owner, .. } => owner.kind(),
        }
    }

    /// Whether a message sent on this carrier reaches the sender of one that arrived on `from`.
    pub(crate) fn leads_to(self, from: Self) -> bool {
        match (self, from) {
            (Self::Underlay { endpoint, .. }, Self::Underlay { endpoint: from, .. }) => {
                endpoint == from
            }
            (Self::Overlay { address, .. }, Self::Overlay { address: from, .. }) => {
                address.subnet_id() == from.subnet_id()
            }
            (Self::Sealed { owner, .. }, Self::Sealed { owner: from, .. }) => owner == from,
            (Self::Underlay { .. } | Self::Overlay { .. } | Self::Sealed { .. }, _) => false,
        }
    }

    fn queue(self) -> Queue {
        match self {
            Self::Underlay { .. } => Queue::Link,
            Self::Overlay { .. } => Queue::EndToEnd,
            Self::Sealed { .. } => Queue::Renewal,
        }
    }

    /// Class of the slots that a handshake on this carrier uses.
    pub(crate) fn class(self) -> Class {
        match self {
            Self::Underlay { .. } | Self::Overlay { .. } => Class::HalfOpen,
            Self::Sealed { .. } => Class::Renewal,
        }
    }

    /// The source that a handshake is charged to.
    pub(crate) fn source(self) -> Source {
        match self {
            Self::Underlay { endpoint, .. } => source_of(endpoint),
            Self::Overlay {
                address, through, ..
            } => Source {
                site: through.map_or(u128::MAX, u128::from),
                network: address.subnet_id().into(),
            },
            Self::Sealed { owner, .. } => Source::sealed(owner),
        }
    }

    /// The owner of the session that carries it, if any.
    pub(crate) fn sealed_in(self) -> Option<Owner> {
        match self {
            Self::Sealed { owner, .. } => Some(owner),
            Self::Underlay { .. } | Self::Overlay { .. } => None,
        }
    }

    /// Identifies a first message: a repetition has the same digest.
    pub(crate) fn digest(self, sender: u32, noise: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::Underlay { endpoint, .. } => hasher
                .update(&[0])
                .update(&endpoint.ip)
                .update(&endpoint.port.get().to_le_bytes())
                .update(&[endpoint.transport]),
            Self::Overlay { address, .. } => hasher.update(&[1]).update(&address.0),
            Self::Sealed { .. } => {
                let Source { site, network } = self.source();
                hasher
                    .update(&[2])
                    .update(&site.to_le_bytes())
                    .update(&network.to_le_bytes())
            }
        };
        *hasher
            .update(&sender.to_le_bytes())
            .update(noise)
            .finalize()
            .as_bytes()
    }
}

/// Purpose of a handshake initiated by this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To reach a configured peer.
    Target(ConfiguredPeer),
    /// To measure another address of a peer; ends with the answer.
    Probe { owner: Owner },
    /// To renew the session with a known node; `fresh` when the old one seems to be lost.
    Node { owner: Owner, fresh: bool },
}

/// A handshake initiated by this node.
pub(crate) struct Outgoing {
    pub(crate) goal: Goal,
    pub(crate) stage: Stage,
    /// The message that is retransmitted, with its header.
    pub(crate) message: Vec<u8>,
    /// Carriers, used in turn.
    pub(crate) carriers: Vec<Carrier>,
    pub(crate) attempts: u32,
    /// The last cookie, and the carrier that it came on.
    pub(crate) cookie: Option<(Carrier, Token)>,
    /// The attempt that was repeated with a cookie; each one at most once.
    pub(crate) cookie_for: u32,
    pub(crate) began: Nanos,
    pub(crate) next_at: Nanos,
    /// Time for one round over all carriers; doubles up to `interval_max`.
    pub(crate) interval: Duration,
    pub(crate) interval_max: Duration,
    pub(crate) expires_at: Nanos,
    /// Streams that the first message is sent on as well.
    pub(crate) fallback: Fallback,
}

/// Additional carriers of a first message, used in turn, and the time of the next transmission.
#[derive(Clone, Debug)]
pub(crate) struct Fallback {
    pub(crate) carriers: Vec<Carrier>,
    pub(crate) sent: u32,
    pub(crate) next_at: Nanos,
}

impl Fallback {
    /// No additional carriers.
    pub(crate) const NONE: Self = Self {
        carriers: Vec::new(),
        sent: 0,
        next_at: Nanos::NEVER,
    };
}

/// Retransmission intervals of a first message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetransmitSchedule {
    pub(crate) first: Duration,
    pub(crate) max: Duration,
}

impl RetransmitSchedule {
    /// The other end was up a moment ago.
    pub(crate) const NEIGHBOUR: Self = Self {
        first: RETRY_FIRST,
        max: RETRY_MAX_JUST_NOW,
    };
    /// End to end: every relay on the path carries each retransmission.
    pub(crate) const ROUTED: Self = Self {
        first: RETRANSMIT_MIN,
        max: RETRANSMIT_MAX,
    };
    /// No retransmission.
    pub(crate) const ONCE: Self = Self {
        first: PROBE_TIMEOUT,
        max: PROBE_TIMEOUT,
    };
}

/// State of a handshake initiated by this node.
pub(crate) enum Stage {
    /// First message sent.
    Response(Box<Noise>),
    /// Third message sent, lanes on standby.
    Confirm { owner: Owner, epoch: u32 },
}

/// A handshake initiated by another node: first message answered.
pub(crate) struct HalfOpen {
    pub(crate) carrier: Carrier,
    pub(crate) digest: [u8; 32],
    /// Arrival number.
    pub(crate) order: u64,
    pub(crate) created: Nanos,
    pub(crate) noise: Box<Noise>,
    pub(crate) offer: Offer,
    pub(crate) suite: Suite,
    pub(crate) indices: Vec<SessionIndex>,
    /// Most slots of one worker among them.
    pub(crate) weight: u32,
    /// The answer, sent again when the first message is repeated.
    pub(crate) response: Vec<u8>,
}

/// Half-open handshakes, by our number.
pub(crate) struct HalfOpens {
    max: usize,
    per_source_max: usize,
    by_id: BTreeMap<u32, (Ticket, HalfOpen)>,
    by_digest: BTreeMap<[u8; 32], u32>,
    /// Numbers of each [`Queue`]: by site, then source.
    shares: [ShareTable<u128, Source, u32>; 3],
    order_last: u64,
}

impl HalfOpens {
    pub(crate) fn new(max: usize, per_source_max: usize) -> Self {
        Self {
            max: max.max(1),
            per_source_max: per_source_max.max(1),
            by_id: BTreeMap::new(),
            by_digest: BTreeMap::new(),
            shares: Default::default(),
            order_last: 0,
        }
    }

    /// Handshakes above a lowered limit stay until they end.
    pub(crate) fn set_per_source_max(&mut self, max: usize) {
        self.per_source_max = max.max(1);
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut HalfOpen> {
        self.by_id.get_mut(&id).map(|(_, half)| half)
    }

    pub(crate) fn find(&self, digest: &[u8; 32]) -> Option<&HalfOpen> {
        let (_, half) = self.by_id.get(self.by_digest.get(digest)?)?;
        Some(half)
    }

    /// Makes room for a handshake on `carrier` that takes `weight` slots of one worker, of `weight_max` for
    /// all of its kind. Returns its arrival number, or `None` when its own source has the largest share, and
    /// the evicted ones.
    pub(crate) fn make_room(
        &mut self,
        carrier: Carrier,
        weight: u32,
        weight_max: u32,
    ) -> (Option<u64>, Vec<HalfOpen>) {
        let (queue, source) = (carrier.queue(), carrier.source());
        self.order_last += 1;
        let mut evicted = Vec::new();
        let each_max = match queue {
            Queue::Link | Queue::EndToEnd => self.per_source_max,
            Queue::Renewal => RENEWALS_MAX,
        };
        while self.shares[queue as usize].count(source) >= each_max {
            evicted.extend(self.remove_oldest(queue, source));
        }
        let newcomer = self.shares[queue as usize].add(source.site, source, weight, 0);
        let fits = loop {
            let shares = &self.shares[queue as usize];
            let fits = shares.len() <= self.max && shares.weight() <= weight_max.into();
            if fits || queue == Queue::Renewal {
                break true;
            }
            let largest = shares.largest().unwrap_or(source);
            if shares
                .entries(largest)
                .next()
                .is_none_or(|(oldest, _)| oldest == newcomer)
            {
                break false;
            }
            evicted.extend(self.remove_oldest(queue, largest));
        };
        self.shares[queue as usize].remove(source, newcomer);
        (fits.then_some(self.order_last), evicted)
    }

    /// Adds a handshake that [`Self::make_room`] admitted.
    pub(crate) fn insert(&mut self, id: u32, half: HalfOpen) {
        let (queue, source) = (half.carrier.queue(), half.carrier.source());
        let ticket = self.shares[queue as usize].add(source.site, source, half.weight, id);
        self.by_digest.insert(half.digest, id);
        self.by_id.insert(id, (ticket, half));
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<HalfOpen> {
        let (ticket, half) = self.by_id.remove(&id)?;
        self.by_digest.remove(&half.digest);
        self.shares[half.carrier.queue() as usize].remove(half.carrier.source(), ticket);
        Some(half)
    }

    /// Slots of all workers that the half-open renewals of a session hold.
    pub(crate) fn renewal_slots(&self, owner: Owner, workers: u16) -> u32 {
        let ids = self.shares[Queue::Renewal as usize].entries(Source::sealed(owner));
        let halves = ids.filter_map(|(_, id)| self.by_id.get(id));
        halves
            .map(|(_, half)| half.indices.len().div_ceil(workers.into()))
            .map(|slots| u32::try_from(slots).unwrap_or(u32::MAX))
            .sum()
    }

    /// Removes the half-open renewals of a session.
    pub(crate) fn remove_renewals(&mut self, owner: Owner) -> Vec<HalfOpen> {
        let source = Source::sealed(owner);
        std::iter::from_fn(|| self.remove_oldest(Queue::Renewal, source)).collect()
    }

    /// Removes an expired handshake.
    pub(crate) fn expire(&mut self, now: Nanos) -> Option<HalfOpen> {
        let (created, id) = self.oldest()?;
        (created + HALF_OPEN_LIFE <= now).then(|| self.remove(id))?
    }

    pub(crate) fn next_expiry(&self) -> Option<Nanos> {
        self.oldest().map(|(created, _)| created + HALF_OPEN_LIFE)
    }

    /// Number of handshakes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The oldest of all queues: when it began, and its number.
    fn oldest(&self) -> Option<(Nanos, u32)> {
        let ids = self.shares.iter().filter_map(|shares| shares.oldest());
        let created = |id: u32| Some((self.by_id.get(&id)?.1.created, id));
        ids.filter_map(|(_, _, id)| created(*id)).min()
    }

    fn remove_oldest(&mut self, queue: Queue, source: Source) -> Option<HalfOpen> {
        let (_, id) = self.shares[queue as usize].entries(source).next()?;
        self.remove(*id)
    }
}
