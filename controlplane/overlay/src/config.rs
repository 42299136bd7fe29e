//! Configuration of an [`crate::Overlay`]: what is fixed, what may change, configured peers.

use std::time::Duration;

use hyphae_wire::frame::MTU_DEFAULT;
use hyphae_wire::index::SLOTS_MAX;
use hyphae_wire::{Endpoint, Network, PublicKey, SecretKey, SuiteSet};

use crate::Policy;
use crate::ids::ConfiguredPeer;

/// Fewest link lanes of one worker, whatever the number of peers.
const LINK_SLOTS_MIN: u32 = 16_384;

/// Where ephemeral keys of handshakes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ephemerals {
    /// The operating system's random source. The only choice for a node that carries traffic.
    System,
    /// The engine's own generator. A simulation is repeatable with it; two engines with one seed
    /// would have one set of keys.
    Seeded,
}

/// Configuration of an overlay engine. Start from [`Config::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's key pair.
    pub identity: SecretKey,
    /// UDP port of each worker, as bound; as many as there are workers, 1 to 64.
    pub ports: Vec<u16>,
    /// The private network that this node is a member of; `None` for the public one.
    pub network: Option<Network>,
    /// Who may be a peer.
    pub policy: Policy,
    /// Suites to offer.
    pub suites: SuiteSet,
    /// Largest inner packet that this node takes, bytes.
    pub mtu: u16,
    /// Age at which a session is renewed (jittered down by up to a tenth).
    pub rekey_after: Duration,
    /// Age at which a session neither sends nor receives; above `rekey_after`.
    pub reject_after: Duration,
    /// Time between probes of a link.
    pub keepalive: Duration,
    /// Silence after which a peer is down; at least twice `keepalive`.
    pub dead_after: Duration,
    /// The same for a peer to which frames are being sent, at least 1 s; never more than
    /// `dead_after`.
    pub lost_after: Duration,
    /// Longest time between two attempts at a configured peer that was never up.
    pub retry_max: Duration,
    /// How long a replaced session goes on receiving.
    pub grace: Duration,
    /// Most peers; inbound peers beyond are refused.
    pub peers_max: usize,
    /// Limit of nodes with end-to-end sessions, established or in progress.
    pub sessions_max: usize,
    /// Handshakes initiated by others that may be unfinished at a time, of each kind.
    pub half_open_max: usize,
    /// The same, of one underlay address or one overlay /64.
    pub half_open_per_source_max: usize,
    /// First handshake messages per second, over all workers, that need no cookie.
    pub inits_per_second: u32,
    /// End-to-end lanes of one worker, at most 65,536: the size of its table.
    pub session_slots: u32,
    /// Source of ephemeral keys.
    pub ephemerals: Ephemerals,
    /// Silence after which a peer with a datagram address is tried over a stream to that address
    /// too; `None` for never.
    pub stream_fallback_after: Option<Duration>,
    /// While such a peer is connected over a stream, time between attempts by datagram.
    pub stream_upgrade_every: Duration,
}

impl Config {
    /// The defaults, for a node with one worker per port whose dataplane carries no streams.
    pub fn new(identity: SecretKey, ports: Vec<u16>) -> Self {
        Self {
            identity,
            ports,
            network: None,
            policy: Policy::default(),
            suites: SuiteSet::all(),
            mtu: MTU_DEFAULT,
            rekey_after: Duration::from_secs(120),
            reject_after: Duration::from_secs(180),
            keepalive: Duration::from_secs(5),
            dead_after: Duration::from_secs(15),
            lost_after: Duration::from_millis(2500),
            retry_max: Duration::from_secs(30),
            grace: Duration::from_secs(15),
            peers_max: 1024,
            sessions_max: 4096,
            half_open_max: 256,
            half_open_per_source_max: 32,
            inits_per_second: 200,
            session_slots: 16_384,
            ephemerals: Ephemerals::System,
            stream_fallback_after: None,
            stream_upgrade_every: Duration::from_secs(60),
        }
    }
}

/// Settings that may change while the engine runs. They apply to what begins from then on: timers that are set,
/// existing sessions and peers stay as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Live {
    /// [`Config::suites`]
    pub suites: SuiteSet,
    /// [`Config::rekey_after`]
    pub rekey_after: Duration,
    /// [`Config::keepalive`]
    pub keepalive: Duration,
    /// [`Config::dead_after`]
    pub dead_after: Duration,
    /// [`Config::lost_after`]
    pub lost_after: Duration,
    /// [`Config::retry_max`]
    pub retry_max: Duration,
    /// [`Config::peers_max`]
    pub peers_max: usize,
    /// [`Config::half_open_per_source_max`]
    pub half_open_per_source_max: usize,
    /// [`Config::stream_fallback_after`]
    pub stream_fallback_after: Option<Duration>,
    /// [`Config::stream_upgrade_every`]
    pub stream_upgrade_every: Duration,
}

impl Config {
    /// Most link lanes of one worker. Half of them are for sessions: of each peer those in use, those of
    /// the session before, and as many again for one that has more workers. The worker's table grows
    /// with what is in use.
    pub(crate) fn link_slots(&self) -> u32 {
        let wanted = u32::try_from(self.peers_max.saturating_mul(8)).unwrap_or(u32::MAX);
        wanted.clamp(LINK_SLOTS_MIN, SLOTS_MAX)
    }

    /// Applies settings that may change.
    pub fn set_live(&mut self, live: &Live) {
        self.suites = live.suites;
        self.rekey_after = live.rekey_after;
        self.keepalive = live.keepalive;
        self.dead_after = live.dead_after;
        self.lost_after = live.lost_after;
        self.retry_max = live.retry_max;
        self.peers_max = live.peers_max;
        self.half_open_per_source_max = live.half_open_per_source_max;
        self.stream_fallback_after = live.stream_fallback_after;
        self.stream_upgrade_every = live.stream_upgrade_every;
    }

    /// Checks that times do not contradict each other.
    pub(crate) fn assert_times(&self) {
        assert!(
            self.rekey_after < self.reject_after,
            "renewal comes before the age limit"
        );
        assert!(
            self.keepalive * 2 <= self.dead_after,
            "two probes fit into the dead time"
        );
        assert!(
            self.lost_after >= Duration::from_secs(1),
            "answers need time"
        );
    }
}

/// A configured peer, which the node connects to again after every failure.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The caller's handle.
    pub id: ConfiguredPeer,
    /// Addresses of the peer's worker 0, tried in turn; one of a stream is used as such only. May be
    /// empty while a name does not resolve.
    pub addresses: Vec<Endpoint>,
    /// The only key to accept at its addresses, if pinned.
    pub key: Option<PublicKey>,
}
