//! Plain values that describe the node; other packages render them.

#![allow(
    missing_docs,
    reason = "fields are named as the metrics and RPC fields that show them"
)]

use std::time::Duration;

use hyphae_config::endpoint::PeerUrl;
use hyphae_overlay::PeerStatus;
use hyphae_routing::{RouteSource, StaticRoute};
use hyphae_shm::StatsReader;
use hyphae_shm::attach::Hello;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey, SuiteSet};

/// State of the node.
pub struct StatusView {
    pub uptime: Duration,
    /// The dataplane that is attached, and how long it has run.
    pub dataplane: Option<(Hello, Duration)>,
    /// Counters of its workers.
    pub workers: Vec<StatsReader>,
    pub host_problem: Option<String>,
    /// Largest inner packet, bytes.
    pub mtu: u16,
    pub suites: SuiteSet,
    pub peers_up: usize,
    pub peers: usize,
    pub sessions: usize,
    pub routes: usize,
    pub drained: bool,
    pub controlplane_restarts: u64,
    pub dataplane_restarts: u64,
}

/// A peer.
pub struct PeerView {
    pub status: PeerStatus,
    /// "static", "inbound" or "lan".
    pub kind: &'static str,
    /// How it is configured, while its endpoint is not known.
    pub unresolved: Option<PeerUrl>,
    /// Time since it was first seen.
    pub discovered: Option<Duration>,
    /// Time since it was last connected, or for how long it has been.
    pub last_connected: Option<Duration>,
    /// Name of its key in the lists of this node.
    pub name: Option<String>,
    /// Why there is no link.
    pub error: Option<String>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// Frames and bytes exchanged with a peer.
pub struct PacketCounts {
    pub address: OverlayAddress,
    /// Packets and bytes received.
    pub received: [u64; 2],
    /// Packets and bytes sent.
    pub sent: [u64; 2],
}

/// A route.
pub struct RouteView {
    pub prefix: Prefix,
    pub next_hops: Vec<PublicKey>,
    pub metric: u16,
    pub seqno: u16,
    pub origin: RouteSource,
}

/// An address for which a route or session is being searched, and the time left.
pub struct SearchView {
    pub address: OverlayAddress,
    pub remaining: Duration,
}

/// A static route.
pub struct StaticRouteView {
    pub route: StaticRoute,
    /// Whether its next hop is up.
    pub in_use: bool,
}
