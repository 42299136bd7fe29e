//! Requests of other tasks to the node task, and the errors of its replies.

use std::time::Duration;

use hyphae_config::Config;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_routing::{RouteError, Via};
use hyphae_wire::report::ReportCode;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey};
use tokio::sync::oneshot;

use super::views::{PacketCounts, PeerView, RouteView, SearchView, StaticRouteView, StatusView};

/// Channel of a reply.
pub type Reply<T> = oneshot::Sender<T>;

/// A request of another task. Changes of peers and routes are on disk when they are requested.
pub enum Request {
    /// State of the node.
    Status(Reply<StatusView>),
    /// Key of the node that owns an address, where it is known.
    KeyOf(OverlayAddress, Reply<Option<PublicKey>>),
    /// All peers.
    Peers(Reply<Vec<PeerView>>),
    /// Frames and bytes exchanged with each peer.
    PacketCounts(Reply<Vec<PacketCounts>>),
    /// Whether a peer can be added.
    CheckPeer(PeerUrl, Reply<Result<(), PeerError>>),
    /// Connect to a peer from now on.
    AddPeer(PeerUrl, Reply<()>),
    /// Entries that lead to a peer.
    FindPeer(PeerUrl, Reply<Result<Vec<(u32, PeerUrl)>, PeerError>>),
    /// Stop connecting to these entries, and end their links.
    RemovePeers(Vec<u32>, Reply<()>),
    /// Routes in use.
    SelectedRoutes(Reply<Vec<RouteView>>),
    /// Routes that could be used and are not.
    FallbackRoutes(Reply<Vec<RouteView>>),
    /// Subnets for which a route or session is being searched.
    Searches(Reply<Vec<SearchView>>),
    /// Static routes, in use or not.
    StaticRoutes(Reply<Vec<StaticRouteView>>),
    /// Use a static route; whether that is a change.
    AddRoute(RouteSpec, Reply<Result<bool, RouteError>>),
    /// Use the static routes of a prefix no longer, through one next hop or any; whether there were some.
    RemoveRoute(Prefix, Option<Via>, Reply<bool>),
    /// Whether dynamic routing is on.
    IsRouting(Reply<bool>),
    /// Drain the node, or end that.
    SetDrained(bool, Reply<()>),
    /// Round trip to another node.
    Ping(OverlayAddress, Duration, Reply<Result<Duration, NoAnswer>>),
    /// The node that is so many hops away on the path to another one.
    Trace(
        OverlayAddress,
        u8,
        Duration,
        Reply<Result<TraceAnswer, NoAnswer>>,
    ),
    /// Put a checked configuration in force; the routes are those of the state file.
    Apply(Box<Config>, Vec<RouteSpec>, Reply<()>),
}

/// A change of peers that is refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It is configured.
    #[error("{0} is a peer already")]
    Exists(PeerUrl),
    /// It connects to this node, and not this node to it.
    #[error("{0} has connected from its side; remove this node there, or deny its key")]
    Inbound(PeerUrl),
    /// It is no peer.
    #[error("{0} is not a configured peer")]
    NotConfigured(PeerUrl),
}

/// No answer to a ping or trace.
#[derive(Debug, thiserror::Error)]
#[error("no answer in time")]
pub struct NoAnswer;

/// An answer to a trace, which every node on the path could have written.
pub struct TraceAnswer {
    /// What the node reports.
    pub code: ReportCode,
    /// Key that it claims.
    pub key: PublicKey,
    /// Round-trip time.
    pub rtt: Duration,
}
