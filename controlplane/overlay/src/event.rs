//! Output of an [`crate::Overlay`]: events and status.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::report::ReportCode;

use hyphae_wire::{Endpoint, NetworkId, OverlayAddress, PublicKey, Suite};

use crate::ids::ConfiguredPeer;

/// An event. Handle it only after [`crate::Overlay::poll_program`] is drained, so that a FIB entry never
/// reaches a worker before the peer that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer is up: its first link session is in use.
    PeerUp {
        /// Its number in program records.
        peer: u32,
        /// Its key.
        key: PublicKey,
        /// Where it is.
        endpoint: Endpoint,
    },
    /// A peer is down: its last link session has ended. Its number may be assigned to another peer.
    PeerDown {
        /// Its number in program records.
        peer: u32,
        /// Its key.
        key: PublicKey,
        /// Why.
        reason: DownReason,
    },
    /// A peer's frames come from a new underlay address.
    PeerMoved {
        /// Its number in program records.
        peer: u32,
        /// Its key.
        key: PublicKey,
        /// Where it is now.
        endpoint: Endpoint,
    },
    /// The first end-to-end session with a node is in use.
    SessionUp {
        /// Overlay address of the node.
        address: OverlayAddress,
        /// Its key.
        key: PublicKey,
    },
    /// The last end-to-end session with a node has ended.
    SessionDown {
        /// Overlay address of the node.
        address: OverlayAddress,
        /// Its key.
        key: PublicKey,
        /// Why.
        reason: DownReason,
    },
    /// No session could be established: no answer, or no capacity. Packets that waited for it are dropped.
    SessionFailed {
        /// Where to.
        address: OverlayAddress,
    },
    /// A handshake was refused.
    Refused {
        /// Key of the other side, where it was known.
        key: Option<PublicKey>,
        /// HandshakeSource of the handshake.
        from: HandshakeSource,
        /// Why.
        reason: Refusal,
    },
    /// Two hosts have one key.
    Duplicate {
        /// Key of the peer or end: the duplicated one, or that of the node that claims it of this node's key.
        key: PublicKey,
        /// Which key, and the addresses.
        duplicate: Duplicate,
    },
    /// Answer to [`crate::Overlay::ping`].
    EchoReply {
        /// The caller's number of the ping.
        id: u64,
        /// Who answered.
        address: OverlayAddress,
        /// Round-trip time.
        rtt: Duration,
    },
    /// Answer to [`crate::Overlay::trace`].
    TraceReply {
        /// The caller's number of the trace.
        id: u64,
        /// Outcome.
        code: ReportCode,
        /// Key of the reporting node.
        key: PublicKey,
        /// Round-trip time.
        rtt: Duration,
    },
    /// The path MTU of a node has changed.
    PathMtu {
        /// An address in its /64.
        address: OverlayAddress,
        /// Largest packet of the host, less than the device's MTU; `None` for no such limit.
        mtu: Option<u16>,
    },
    /// All adopted entries are retained. Push every FIB entry to every worker, then call
    /// [`crate::Overlay::finish_resync`].
    ResyncFib {
        /// The generation being attached.
        generation: u64,
    },
}

/// Why a peer or session is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// No answer to probes.
    #[error("no answer to probes")]
    Dead,
    /// The other end closed it.
    #[error("ended by the other side")]
    Closed,
    /// It reached its age limit and was not renewed.
    #[error("reached its age limit without renewal")]
    Expired,
    /// The operator removed the peer.
    #[error("removed from the configuration")]
    Removed,
    /// The policy no longer allows this peer.
    #[error("its key is not allowed any more")]
    Refused,
    /// The dataplane does not have it (it was restarted).
    #[error("the dataplane was restarted")]
    Lost,
    /// Evicted from a full table as the largest holder.
    #[error("others needed its place in a full table")]
    Crowded,
}

/// Two hosts with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Whether it is this node's key, as another node claims without proof; else it is the other node's, as
    /// this node has observed.
    pub own: bool,
    /// Addresses of the two, as the observer sees them: the one in use, or this node, first. Unset end to end.
    pub endpoints: [Endpoint; 2],
}

/// Where a handshake came from or went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeSource {
    /// A link handshake.
    Underlay(Endpoint),
    /// An end-to-end handshake.
    Overlay(OverlayAddress),
}

impl std::fmt::Display for HandshakeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Underlay(endpoint) => endpoint.fmt(f),
            Self::Overlay(address) => address.fmt(f),
        }
    }
}

/// Why a handshake was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is not the one pinned for this address.
    #[error("its key is not the pinned one, {expected}")]
    Pinned {
        /// The pinned key.
        expected: PublicKey,
    },
    /// It is this node itself, or another one with a copy of its key file.
    #[error(
        "it has this node's own key: a peer entry points to this node, or a key file was copied"
    )]
    OwnKey,
    /// Another protocol version.
    #[error("it speaks protocol version {0}; this node speaks {version}", version = hyphae_wire::handshake::VERSION)]
    Version(u8),
    /// No cipher suite in common.
    #[error("no cipher suite in common: it offers {0:#04x}; check --suite on both sides")]
    Suite(u8),
    /// Its number of lanes is not the one that both ends compute.
    #[error(
        "it lists {listed} lanes where this release of protocol version {version} requires {required}: it runs \
         another release; upgrade the older one",
        version = hyphae_wire::handshake::VERSION
    )]
    Lanes {
        /// Lanes in its message.
        listed: usize,
        /// Lanes required ([`hyphae_wire::Lane::count`]).
        required: u16,
    },
    /// Its payload contradicts the protocol.
    #[error("its handshake payload is not valid")]
    Offer,
    /// The key does not hash to the overlay address.
    #[error("its key does not belong to its overlay address")]
    Address,
    /// It is a member of another network.
    #[error(
        "it belongs to {theirs}, this node to {ours}; [network] name and key must be the same on both"
    )]
    Network {
        /// Its network.
        theirs: NetworkId,
        /// This node's.
        ours: NetworkId,
    },
    /// The key is not one of those that may be peers.
    #[error("its key is not on the allow-list ([peering] allow)")]
    NotAllowed,
    /// The key is one of those that may not.
    #[error("its key is on the deny-list ([peering] deny)")]
    Denied,
    /// Too many nodes connected by themselves.
    #[error("the limit of inbound peers is reached ([peering] inbound_max)")]
    InboundMax,
    /// Too many nodes of one address connected by themselves.
    #[error(
        "the limit of inbound peers of one address is reached ([peering] inbound_per_source_max)"
    )]
    SourceMax,
    /// There is no room for another peer.
    #[error("the limit of peers is reached ([peering] peers_max)")]
    PeersMax,
    /// There is no room for another end-to-end session.
    #[error("the limit of end-to-end sessions is reached")]
    SessionsMax,
    /// The session tables of the workers are full.
    #[error("the session tables are full")]
    Slots,
}

/// State of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// A link session is in use.
    Up,
    /// A first connection is being tried.
    Connecting,
    /// It was up, or did not answer; attempts continue.
    Down,
}

/// Who began the session in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// This node.
    Outbound,
    /// The other one.
    Inbound,
}

/// A peer, or a configured address that has not answered yet.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its key; unknown until it has answered, unless pinned.
    pub key: Option<PublicKey>,
    /// Its overlay address, known with the key.
    pub address: Option<OverlayAddress>,
    /// Its number in program records and statistics, once it has one.
    pub peer: Option<u32>,
    /// Its address, or the one being tried; unset while a name does not resolve.
    pub endpoint: Endpoint,
    /// Handles of the configured entries that lead to it; none for an inbound peer.
    pub configured: Vec<ConfiguredPeer>,
    /// Its state.
    pub state: PeerState,
    /// Suite of the session in use.
    pub suite: Option<Suite>,
    /// Lanes of the session in use.
    pub lanes: u16,
    /// Lanes that carry traffic.
    pub lanes_active: u16,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Share of recent probes without an answer, thousandths; `None` before the first.
    pub loss_permille: Option<u16>,
    /// Up since, or down since; `None` when it never was up.
    pub since: Option<Nanos>,
    /// Who began the session in use.
    pub direction: Option<Direction>,
    /// Finished handshakes.
    pub handshakes: u64,
    /// Why its last handshake was refused, if it was.
    pub refusal: Option<Refusal>,
    /// Two hosts have its key, or, as it claims, this node's.
    pub duplicate: Option<Duplicate>,
}

/// An end-to-end session.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// Overlay address of the other end.
    pub address: OverlayAddress,
    /// Its key.
    pub key: PublicKey,
    /// Suite in use.
    pub suite: Suite,
    /// Lanes.
    pub lanes: u16,
    /// Lanes that carry traffic.
    pub lanes_active: u16,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Up since.
    pub since: Nanos,
    /// Who began the session in use.
    pub direction: Direction,
    /// Finished handshakes.
    pub handshakes: u64,
}

/// Handshakes since the start, of links and end to end, by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// The session works; those that renew one included.
    pub finished: u64,
    /// Refused, here or by the other end.
    pub refused: u64,
    /// Begun here and abandoned without an answer.
    pub unanswered: u64,
    /// Begun by others and never finished.
    pub abandoned: u64,
    /// Begun by others and evicted unfinished.
    pub crowded: u64,
    /// Links among the finished that renewed a session that worked.
    pub links_renewed: u64,
    /// The same end to end.
    pub sessions_renewed: u64,
}
