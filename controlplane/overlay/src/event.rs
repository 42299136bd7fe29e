//! What an [`crate::Overlay`] tells: events and status.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::report::ReportCode;

use hyphae_wire::{Endpoint, NetworkId, OverlayAddress, PublicKey, Suite};

use crate::ConfiguredPeer;

/// Something that happened. Act on it only after [`crate::Overlay::poll_program`] is drained, so
/// that a FIB entry never reaches a worker before the peer that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link session with a peer is in use; before, there was none.
    PeerUp {
        /// Its number in program records.
        peer: u32,
        /// Its key.
        key: PublicKey,
        /// Where it is.
        endpoint: Endpoint,
    },
    /// There is no link session with a peer any more. Its number may be given to another peer.
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
    /// There is an end-to-end session with a node; before, there was none.
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
    /// No session could be made: nobody answers there, or there is no room. What waited is dropped.
    SessionFailed {
        /// Where to.
        address: OverlayAddress,
    },
    /// A handshake was refused.
    Refused {
        /// Key of the other side, where it was known.
        key: Option<PublicKey>,
        /// Who it was.
        from: Origin,
        /// Why.
        reason: Refusal,
    },
    /// Two hosts have one key.
    Duplicate {
        /// The key of the peer or end that has it, or that says so of this node's.
        key: PublicKey,
        /// Which key, and where.
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
        /// What has become of it.
        code: ReportCode,
        /// Key of the node that says so.
        key: PublicKey,
        /// Round-trip time.
        rtt: Duration,
    },
    /// What the path to a node carries has changed.
    PathMtu {
        /// An address in its /64.
        address: OverlayAddress,
        /// Largest packet of the host, less than the device's MTU; `None` for no such limit.
        mtu: Option<u16>,
    },
    /// All that the overlay keeps is named in the resync: now push every FIB entry to every worker,
    /// then call [`crate::Overlay::finish_resync`].
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
    /// The other side ended it.
    #[error("ended by the other side")]
    Closed,
    /// It reached its age limit and was not renewed.
    #[error("reached its age limit without renewal")]
    Expired,
    /// The operator removed the peer.
    #[error("removed from the configuration")]
    Removed,
    /// The policy does not allow this peer any more.
    #[error("its key is not allowed any more")]
    Refused,
    /// The dataplane does not have it (it was restarted).
    #[error("the dataplane was restarted")]
    Lost,
    /// A full table was needed by others, and this one held the most.
    #[error("others needed its place in a full table")]
    Crowded,
}

/// Two hosts with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// It is this node's key, as a peer or end says, which alone proves nothing; else it is theirs, as this
    /// node has seen.
    pub own: bool,
    /// Where the two are, as far as whoever found it sees: the one in use, or this node, first. Unset end
    /// to end.
    pub endpoints: [Endpoint; 2],
}

/// Where a handshake came from or went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A link handshake.
    Underlay(Endpoint),
    /// An end-to-end handshake.
    Overlay(OverlayAddress),
}

impl std::fmt::Display for Origin {
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
    /// It was up, or was tried without an answer; it is tried again from time to time.
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
    /// Where it is, or where it is looked for; unset while a name does not resolve.
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
    /// Share of its probes that stayed unanswered lately, in thousandths; `None` before the first.
    pub loss_permille: Option<u16>,
    /// Up since, or down since; `None` when it never was up.
    pub since: Option<Nanos>,
    /// Who began the session in use.
    pub direction: Option<Direction>,
    /// Finished handshakes.
    pub handshakes: u64,
    /// Why its last handshake was refused, if it was.
    pub refusal: Option<Refusal>,
    /// Two hosts have its key, or this node's as it says.
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

/// Handshakes since the start, links and end to end together, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// The session works; those that renew one included.
    pub finished: u64,
    /// Refused, here or by the other end.
    pub refused: u64,
    /// Begun here, and given up for want of an answer.
    pub unanswered: u64,
    /// Begun by others, who did not go on.
    pub abandoned: u64,
    /// Begun by others, unfinished when their place was needed.
    pub crowded: u64,
    /// Links among the finished that renewed a session that worked.
    pub links_renewed: u64,
    /// The same end to end.
    pub sessions_renewed: u64,
}
