//! The node itself: peers, routes, statistics.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Result of `getInfo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The /64 of the node.
    pub node_subnet: String,
    /// Its address.
    pub node_ip: String,
    /// Its key, hex.
    pub node_pubkey: String,
    /// When its control plane started, seconds since 1970.
    pub node_start_time: u64,
}

/// Endpoint of a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerEndpoint {
    /// "udp", or "tcp" for a stream link.
    pub proto: String,
    /// Address and port, IPv6 in brackets, a link-local one with the name of its interface; the name as
    /// configured while it does not resolve. `deletePeer` accepts it after `proto` and `://`.
    pub socket_addr: String,
}

/// One of `getPeers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its endpoint.
    pub endpoint: PeerEndpoint,
    /// "static", "inbound", or "lan" for one discovered on a local network.
    #[serde(rename = "type")]
    pub kind: String,
    /// "alive", "connecting" or "dead".
    pub connection_state: String,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// As `discoveredSeconds`, under the name of the reference network.
    pub discovered: u64,
    /// Seconds since it was first seen.
    #[serde(default)]
    pub discovered_seconds: u64,
    /// As `lastConnectedSeconds`, under the name of the reference network.
    pub last_connected: Option<u64>,
    /// Seconds since it was last connected, or since the current connection; null if it never was.
    #[serde(default)]
    pub last_connected_seconds: Option<u64>,
    /// Its key, hex; null until it has answered.
    pub pubkey: Option<String>,
    /// Its overlay address.
    pub address: Option<String>,
    /// Cipher suite of the link.
    pub suite: Option<String>,
    /// Lanes of the link.
    pub lanes: u16,
    /// Lanes in use.
    pub lanes_active: u16,
    /// Smoothed round-trip time, microseconds.
    pub rtt_micros: Option<u64>,
    /// Share of recent probes without an answer, in thousandths; null before the first.
    #[serde(default)]
    pub loss_permille: Option<u16>,
    /// Name of its key in the allow-list or deny-list of this node.
    #[serde(default)]
    pub name: Option<String>,
    /// Finished handshakes.
    pub handshakes: u64,
    /// Cause of the refusal of its last handshake.
    pub refusal: Option<String>,
    /// Cause of a missing link: the refusal, or the error of name resolution.
    #[serde(default)]
    pub error: Option<String>,
    /// Two hosts with one key, if detected.
    #[serde(default)]
    pub duplicate: Option<DuplicateKey>,
}

/// Two hosts with one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DuplicateKey {
    /// Whether it is the key of this node, as reported by the peer; otherwise it is the peer's.
    pub own: bool,
    /// Underlay addresses of the two, as observed by the reporting node.
    pub places: Vec<String>,
}

/// One of `getSelectedRoutes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destinations.
    pub subnet: String,
    /// Key of the peer that frames go to.
    pub next_hop: String,
    /// Keys of all next hops that flows are distributed over, `nextHop` included.
    #[serde(default)]
    pub next_hops: Vec<String>,
    /// Lower is better.
    pub metric: u16,
    /// Sequence number of the routing protocol; 0 for connected and static routes.
    pub seqno: u16,
    /// "connected", "static" or "dynamic".
    pub origin: String,
}

/// One of `getQueriedSubnets`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueriedSubnet {
    /// Destinations of the search.
    pub subnet: String,
    /// As `expirationSeconds`, as text, under the name of the reference network.
    pub expiration: String,
    /// Seconds until the search ends.
    #[serde(default)]
    pub expiration_seconds: u64,
}

/// One of the lists of `getPacketStatistics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PacketStat {
    /// Overlay address.
    pub ip: String,
    /// Packets.
    pub packet_count: u64,
    /// Bytes.
    pub byte_count: u64,
}

/// Result of `getPacketStatistics`: frames exchanged with each peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PacketStatistics {
    /// Received from each peer.
    pub by_source: Vec<PacketStat>,
    /// Sent to each peer.
    pub by_destination: Vec<PacketStat>,
}

/// One of `route.list`: a static route, in use or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaticRoute {
    /// Destinations.
    pub prefix: String,
    /// Key or overlay address of the next hop.
    pub via: String,
    /// Whether the next hop is up.
    pub reachable: bool,
}

/// Parameters of `addPeer` and `deletePeer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointParams {
    /// `udp://HOST:PORT` or `tcp://HOST:PORT`, optionally `#KEY`.
    pub endpoint: String,
}

/// Parameters of `getPublicKeyFromIp`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpParams {
    /// Overlay address.
    // The reference network's document has the other name, its code this one.
    #[serde(alias = "mycelium_ip")]
    pub ip: String,
}

/// Parameters of `route.add` and `route.remove`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteParams {
    /// Destinations.
    pub prefix: String,
    /// Key or overlay address of the next hop; optional for `route.remove`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

/// Parameters of `node.ping`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PingParams {
    /// Overlay address.
    pub address: String,
    /// Wait, milliseconds, at most 60,000.
    #[serde(default = "ping_timeout_ms")]
    pub timeout_ms: u64,
}

fn ping_timeout_ms() -> u64 {
    5000
}

/// Result of `node.ping`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pong {
    /// Round-trip time from this control plane to the other dataplane, microseconds.
    pub rtt_micros: u64,
}

/// Parameters of `node.trace`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceParams {
    /// Overlay address.
    pub address: String,
    /// Hop limit of the probe, 1 to 255.
    pub hop_limit: u8,
    /// Wait, milliseconds, at most 60,000.
    #[serde(default = "trace_timeout_ms")]
    pub timeout_ms: u64,
}

fn trace_timeout_ms() -> u64 {
    1000
}

/// Report of a node on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TraceOutcome {
    /// It is the destination.
    Reached,
    /// The hop limit was reached at it.
    HopLimit,
    /// It has no route to the destination.
    NoRoute,
    /// Its next link does not carry the probe.
    TooBig,
}

/// Result of `node.trace`. Every node on the path can forge it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceHop {
    /// Its report.
    pub outcome: TraceOutcome,
    /// Overlay address of the node that answered.
    pub address: String,
    /// Its key, hex.
    pub pubkey: String,
    /// Round-trip time, microseconds.
    pub rtt_micros: u64,
}

/// A worker in `node.status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// UDP port.
    pub port: u16,
    /// Core it is pinned to, if any.
    pub core: Option<u16>,
}

/// The dataplane in `node.status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dataplane {
    /// Process number.
    pub pid: u32,
    /// As `uptimeSeconds`.
    pub uptime: u64,
    /// Seconds since it started.
    #[serde(default)]
    pub uptime_seconds: u64,
    /// "io_uring" or "epoll".
    pub driver: String,
    /// Cause of the choice.
    pub driver_reason: String,
    /// Its workers.
    pub workers: Vec<Worker>,
    /// Name of the TUN device.
    pub tun: Option<String>,
    /// Control planes that have attached.
    pub generation: u64,
    /// Receive buffer of the sockets, bytes.
    pub socket_receive_bytes: u32,
    /// Whether the processor has AES instructions.
    pub aes_hardware: bool,
}

/// Parameters of `node.drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainParams {
    /// Drain, or end it.
    pub on: bool,
}

/// Parameters of `config.reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReloadParams {
    /// Report the changes without applying them.
    pub dry_run: bool,
}

/// A setting whose value in the file differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigChange {
    /// Its key; for state files, the file and the entry.
    pub key: String,
    /// Value in force before, as TOML; null without one.
    pub old: Option<String>,
    /// Value in the file; null without one.
    pub new: Option<String>,
}

/// Result of `config.reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReloadResult {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Applied changes, or those that would be applied.
    pub applied: Vec<ConfigChange>,
    /// Changes that need a restart; the old values stay in force until then.
    pub restart: Vec<ConfigChange>,
}

/// Result of `node.status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// As `getInfo`.
    pub info: Info,
    /// Process number of the control plane.
    pub pid: u32,
    /// As `uptimeSeconds`.
    pub uptime: u64,
    /// Seconds since it started.
    #[serde(default)]
    pub uptime_seconds: u64,
    /// The dataplane; null while none is attached.
    pub dataplane: Option<Dataplane>,
    /// Cause why this host's traffic does not pass the TUN device; null while it does, and without a device.
    #[serde(default)]
    pub host_problem: Option<String>,
    /// Largest inner packet.
    pub mtu: u16,
    /// Offered suites.
    pub suites: Vec<String>,
    /// Peers that are up, and all.
    pub peers_up: usize,
    /// All peers.
    pub peers: usize,
    /// End-to-end sessions.
    pub sessions: usize,
    /// Routes in use.
    pub routes: usize,
    /// Whether the node is drained.
    #[serde(default)]
    pub drained: bool,
    /// Restarts of the control plane by the supervisor.
    #[serde(default)]
    pub controlplane_restarts: u64,
    /// Dataplanes that have ended while this control plane runs.
    #[serde(default)]
    pub dataplane_restarts: u64,
    /// Counters that are not zero, summed over workers.
    pub counters: BTreeMap<String, u64>,
    /// Drops by reason that are not zero, summed over workers.
    pub drops: BTreeMap<String, u64>,
}
