//! State and counters of a node, copied on the engine task for metrics.

#![allow(
    missing_docs,
    reason = "fields are named as the metrics and RPC fields that show them"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_bus::Stats;
use hyphae_overlay::{Handshakes, PeerState};
use hyphae_routing::babel::Counters;
use hyphae_shm::StatsReader;
use hyphae_wire::{Endpoint, PublicKey};

pub use super::event_log::Totals;

/// State and counters of a node, copied for metrics.
pub struct Snapshot {
    pub workers: Vec<StatsReader>,
    pub generation: u64,
    /// Its process.
    pub dataplane: Option<u32>,
    pub backlog: usize,
    pub peers_by_state: BTreeMap<&'static str, usize>,
    pub sessions: usize,
    pub routes: usize,
    pub routes_held: bool,
    pub drained: bool,
    /// Round-trip times of peers.
    pub rtt: Vec<Duration>,
    pub totals: Totals,
    pub handshakes: Handshakes,
    /// Whether the host's traffic passes the TUN device; `None` without one.
    pub host: Option<bool>,
    /// Repairs of each part of the host's side of the TUN device.
    pub host_repairs: Vec<(&'static str, u64)>,
    pub bus: BusSnapshot,
    pub routing: Option<RoutingSnapshot>,
    /// All peers whose key is known, and how many of them may have families of their own; `None` when
    /// none is to have any.
    pub per_peer: Option<(Vec<PeerSnapshot>, usize)>,
}

/// State and counters of the message bus.
#[derive(Clone, Debug, Default)]
pub struct BusSnapshot {
    pub stats: Stats,
    pub inbox_messages: u64,
    pub inbox_bytes: u64,
    pub inbox_messages_max: u64,
    pub inbox_bytes_max: u64,
    pub waiting: u64,
    pub leased: u64,
    pub room_waiting: u64,
    pub unknown_sources: u64,
    pub inbox_failures: u64,
    pub inbox_commits: u64,
}

/// State and counters of the routing protocol.
pub struct RoutingSnapshot {
    pub counters: Counters,
    /// Links on which the neighbour is heard, and on which it is not.
    pub heard: usize,
    pub not_heard: usize,
    /// Round-trip times of links.
    pub rtt: Vec<Duration>,
}

/// Where a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerLocation {
    /// Underlay endpoint.
    Endpoint(Endpoint),
    /// Configured host name without an address yet.
    Name(String),
}

/// State of one peer, for the metric families of single peers.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    pub key: PublicKey,
    /// Peer number in the segment, once assigned.
    pub number: Option<u32>,
    pub name: Option<String>,
    pub location: PeerLocation,
    pub kind: &'static str,
    pub alive: bool,
    pub rtt: Option<Duration>,
    pub loss_permille: Option<u16>,
}

/// State of a peer as the reference network names it.
pub fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Up => "alive",
        PeerState::Connecting => "connecting",
        PeerState::Down => "dead",
    }
}
