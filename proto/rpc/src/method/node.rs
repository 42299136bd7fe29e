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

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerEndpoint {
    /// "udp", or "tcp" for a stream link.
    pub proto: String,
    /// Address and port, IPv6 in brackets, a link-local one with the name of its interface; the name as
    /// configured while it does not resolve. After `proto` and `://`, `deletePeer` takes it.
    pub socket_addr: String,
}

/// One of `getPeers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Where it is.
    pub endpoint: PeerEndpoint,
    /// "static", "inbound", or "lan" for one found on a local network.
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
    /// Seconds since it was last connected, or for how long it has been; null when it never was.
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
    /// Share of probes that stayed unanswered lately, in thousandths; null before the first.
    #[serde(default)]
    pub loss_permille: Option<u16>,
    /// Name of its key in the allow-list or deny-list of this node.
    #[serde(default)]
    pub name: Option<String>,
    /// Finished handshakes.
    pub handshakes: u64,
    /// Why its last handshake was refused.
    pub refusal: Option<String>,
    /// Why there is no link: the refusal, or why its name leads to no address.
    #[serde(default)]
    pub error: Option<String>,
    /// Two hosts have one key; null when there is no sign of that.
    #[serde(default)]
    pub duplicate: Option<DuplicateKey>,
}

/// Two hosts with one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DuplicateKey {
    /// Whether it is the key of this node, as the peer says; else it is the peer's.
    pub own: bool,
    /// Underlay addresses of the two, as far as the node sees that noticed it.
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
    /// Keys of all peers that flows are shared out among, `nextHop` one of them.
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
    /// Destinations that a route is looked for.
    pub subnet: String,
    /// As `expirationSeconds`, as text, under the name of the reference network.
    pub expiration: String,
    /// Seconds until the search is given up.
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
    /// What came from each peer.
    pub by_source: Vec<PacketStat>,
    /// What went to each peer.
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
    /// Key or overlay address of the next hop; `route.remove` may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

/// Parameters of `node.ping`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PingParams {
    /// Overlay address.
    pub address: String,
    /// How long to wait, milliseconds; at most 60,000.
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
    /// Round-trip time between the control plane here and the dataplane there, microseconds.
    pub rtt_micros: u64,
}

/// Parameters of `node.trace`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceParams {
    /// Overlay address.
    pub address: String,
    /// Hops that the question may take, 1 to 255.
    pub hop_limit: u8,
    /// How long to wait, milliseconds; at most 60,000.
    #[serde(default = "trace_timeout_ms")]
    pub timeout_ms: u64,
}

fn trace_timeout_ms() -> u64 {
    1000
}

/// What a node on the way said of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TraceOutcome {
    /// It is the destination.
    Reached,
    /// The hops were used up at it.
    HopLimit,
    /// It has no route to the destination.
    NoRoute,
    /// Its next link does not carry the question.
    TooBig,
}

/// Result of `node.trace`. Whoever is on the way could have written it: it is not a proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceHop {
    /// What it said.
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
    /// Why that one.
    pub driver_reason: String,
    /// Its workers.
    pub workers: Vec<Worker>,
    /// Name of the TUN device.
    pub tun: Option<String>,
    /// How many control planes have attached.
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
    /// Say what would change, and change nothing.
    pub dry_run: bool,
}

/// A setting that is another one in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigChange {
    /// Its key; for state files, the file and what in it.
    pub key: String,
    /// Value in force before, as TOML; null where there was none.
    pub old: Option<String>,
    /// Value in the file; null where there is none any more.
    pub new: Option<String>,
}

/// Result of `config.reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReloadResult {
    /// Nothing was changed.
    pub dry_run: bool,
    /// In force now, or what would be.
    pub applied: Vec<ConfigChange>,
    /// These need a restart; until then what was before holds.
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
    /// Why this host's traffic does not pass the TUN device; null while it does, and without a device.
    #[serde(default)]
    pub host_problem: Option<String>,
    /// Largest inner packet.
    pub mtu: u16,
    /// Suites on offer.
    pub suites: Vec<String>,
    /// Peers that are up, and all.
    pub peers_up: usize,
    /// All peers.
    pub peers: usize,
    /// End-to-end sessions.
    pub sessions: usize,
    /// Routes in use.
    pub routes: usize,
    /// Whether neighbours are asked to use other paths.
    #[serde(default)]
    pub drained: bool,
    /// How often the supervisor has started the control plane again.
    #[serde(default)]
    pub controlplane_restarts: u64,
    /// Dataplanes that this control plane has seen end.
    #[serde(default)]
    pub dataplane_restarts: u64,
    /// Counters that are not zero, summed over workers.
    pub counters: BTreeMap<String, u64>,
    /// Drops by reason that are not zero, summed over workers.
    pub drops: BTreeMap<String, u64>,
}
