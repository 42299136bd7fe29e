//! State and counters of a node, copied on the engine task for metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_bus::Stats;
use hyphae_overlay::{Handshakes, PeerState};
use hyphae_routing::babel::Counters;
use hyphae_shm::StatsReader;
use hyphae_wire::{Endpoint, PublicKey};

use super::event_log::Totals;
use hyphae_host as host;

/// State and counters of a node, copied for metrics.
pub(crate) struct Snapshot {
    pub(crate) workers: Vec<StatsReader>,
    pub(crate) generation: u64,
    /// Its process.
    pub(crate) dataplane: Option<u32>,
    pub(crate) backlog: usize,
    pub(crate) peers_by_state: BTreeMap<&'static str, usize>,
    pub(crate) sessions: usize,
    pub(crate) routes: usize,
    pub(crate) routes_held: bool,
    pub(crate) drained: bool,
    /// Round-trip times of peers.
    pub(crate) rtt: Vec<Duration>,
    pub(crate) totals: Totals,
    pub(crate) handshakes: Handshakes,
    /// Whether the host's traffic passes the TUN device; `None` without one.
    pub(crate) host: Option<bool>,
    pub(crate) host_repairs: BTreeMap<host::Part, u64>,
    pub(crate) bus: BusSnapshot,
    pub(crate) routing: Option<RoutingSnapshot>,
    /// All peers whose key is known, and how many of them may have families of their own; `None` when
    /// none is to have any.
    pub(crate) per_peer: Option<(Vec<PeerSnapshot>, usize)>,
}

/// State and counters of the message bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct BusSnapshot {
    pub(crate) stats: Stats,
    pub(crate) inbox_messages: u64,
    pub(crate) inbox_bytes: u64,
    pub(crate) inbox_messages_max: u64,
    pub(crate) inbox_bytes_max: u64,
    pub(crate) waiting: u64,
    pub(crate) leased: u64,
    pub(crate) room_waiting: u64,
    pub(crate) unknown_sources: u64,
    pub(crate) inbox_failures: u64,
    pub(crate) inbox_commits: u64,
}

/// State and counters of the routing protocol.
pub(crate) struct RoutingSnapshot {
    pub(crate) counters: Counters,
    /// Links on which the neighbour is heard, and on which it is not.
    pub(crate) heard: usize,
    pub(crate) not_heard: usize,
    /// Round-trip times of links.
    pub(crate) rtt: Vec<Duration>,
}

/// Where a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerLocation {
    /// Underlay endpoint.
    Endpoint(Endpoint),
    /// Configured host name without an address yet.
    Name(String),
}

/// State of one peer, for the metric families of single peers.
#[derive(Clone, Debug)]
pub(crate) struct PeerSnapshot {
    pub(crate) key: PublicKey,
    /// Peer number in the segment, once assigned.
    pub(crate) number: Option<u32>,
    pub(crate) name: Option<String>,
    pub(crate) location: PeerLocation,
    pub(crate) kind: &'static str,
    pub(crate) alive: bool,
    pub(crate) rtt: Option<Duration>,
    pub(crate) loss_permille: Option<u16>,
}

/// State of a peer as the reference network names it.
pub(crate) fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Up => "alive",
        PeerState::Connecting => "connecting",
        PeerState::Down => "dead",
    }
}
