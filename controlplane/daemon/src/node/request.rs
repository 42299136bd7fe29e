//! What other tasks ask of the node task, and the errors of its replies. A requester that has ended gets no reply.

use std::time::Duration;

use hyphae_config::Config;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_routing::{RouteError, Via};
use hyphae_time::Nanos;
use hyphae_wire::report::ReportCode;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey};
use tokio::sync::oneshot;

use super::Node;
use super::services::bus::BusRequest;
use super::snapshot::Snapshot;
use super::views::{PacketCounts, PeerView, RouteView, SearchView, StaticRouteView, StatusView};

/// Where a reply goes.
pub(crate) type Reply<T> = oneshot::Sender<T>;

/// A command to the node task.
pub(crate) enum Command {
    /// A request with a reply.
    Request(Request),
    /// A request to the message bus.
    Bus(BusRequest),
    /// State and counters for metrics.
    Snapshot(Reply<Snapshot>),
    /// Ends the task.
    Shutdown,
}

impl From<BusRequest> for Command {
    fn from(request: BusRequest) -> Self {
        Self::Bus(request)
    }
}

/// A request of another task. Changes of peers and routes are on disk when they are requested.
pub(crate) enum Request {
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
    /// Subnets that a route or session is being looked for.
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
pub(crate) enum PeerError {
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
pub(crate) struct NoAnswer;

/// An answer to a trace, which every node on the path could have written.
pub(crate) struct TraceAnswer {
    pub(crate) code: ReportCode,
    pub(crate) key: PublicKey,
    pub(crate) rtt: Duration,
}

/// A ping or trace that waits for its answer.
pub(super) enum Probe {
    Ping(Reply<Result<Duration, NoAnswer>>),
    Trace(Reply<Result<TraceAnswer, NoAnswer>>),
}

impl Probe {
    /// Ends the wait without an answer.
    fn expire(self) {
        // The requester may have ended.
        match self {
            Self::Ping(reply) => drop(reply.send(Err(NoAnswer))),
            Self::Trace(reply) => drop(reply.send(Err(NoAnswer))),
        }
    }
}

impl Node {
    /// Does what a request asks, and replies.
    pub(super) fn handle_request(&mut self, now: Nanos, request: Request) {
        /// The requester may have ended.
        fn answer<T>(reply: Reply<T>, value: T) {
            drop(reply.send(value));
        }
        match request {
            Request::Status(reply) => answer(reply, self.status(now)),
            Request::KeyOf(address, reply) => answer(reply, self.key_of(address)),
            Request::Peers(reply) => answer(reply, self.peers(now)),
            Request::PacketCounts(reply) => answer(reply, self.packet_counts()),
            Request::CheckPeer(url, reply) => answer(reply, self.check_peer(url)),
            Request::AddPeer(url, reply) => {
                self.add_peer(now, url, true);
                answer(reply, ());
            }
            Request::FindPeer(url, reply) => answer(reply, self.find_peer(url)),
            Request::RemovePeers(ids, reply) => {
                ids.into_iter().for_each(|id| self.remove_peer(now, id));
                answer(reply, ());
            }
            Request::SelectedRoutes(reply) => answer(reply, self.selected_routes()),
            Request::FallbackRoutes(reply) => answer(reply, self.fallback_routes()),
            Request::Searches(reply) => answer(reply, self.searches(now)),
            Request::StaticRoutes(reply) => answer(reply, self.static_routes()),
            Request::AddRoute(route, reply) => {
                answer(reply, self.rib.add_static(route.route()));
            }
            Request::RemoveRoute(prefix, via, reply) => {
                answer(reply, self.rib.remove_static(prefix, via));
            }
            Request::IsRouting(reply) => answer(reply, self.routing.is_some()),
            Request::SetDrained(on, reply) => {
                self.set_drained(now, on);
                answer(reply, ());
            }
            Request::Ping(address, timeout, reply) => {
                let id = self.start_probe(now + timeout, Probe::Ping(reply));
                self.overlay.ping(now, address, id);
            }
            Request::Trace(address, hop_limit, timeout, reply) => {
                let id = self.start_probe(now + timeout, Probe::Trace(reply));
                self.overlay.trace(now, address, hop_limit, id);
            }
            Request::Apply(config, stored, reply) => {
                self.apply(now, *config, &stored);
                answer(reply, ());
            }
        }
    }

    fn start_probe(&mut self, deadline: Nanos, probe: Probe) -> u64 {
        let id = self.next_probe;
        self.next_probe += 1;
        self.probes.insert(id, (deadline, probe));
        id
    }

    /// Ends the wait of probes whose time is over.
    pub(super) fn expire_probes(&mut self, now: Nanos) {
        let late = self.probes.iter().filter(|(_, (at, _))| *at <= now);
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        for (_, probe) in late.iter().filter_map(|id| self.probes.remove(id)) {
            probe.expire();
        }
    }

    /// A ping was answered.
    pub(super) fn ping_answered(&mut self, id: u64, rtt: Duration) {
        if let Some((_, Probe::Ping(reply))) = self.probes.remove(&id) {
            // The requester may have ended.
            drop(reply.send(Ok(rtt)));
        }
    }

    /// A trace was answered.
    pub(super) fn trace_answered(&mut self, id: u64, answer: TraceAnswer) {
        if let Some((_, Probe::Trace(reply))) = self.probes.remove(&id) {
            // The requester may have ended.
            drop(reply.send(Ok(answer)));
        }
    }

    /// Refuses a peer that is configured.
    fn check_peer(&self, url: PeerUrl) -> Result<(), PeerError> {
        let mut configured = self.configured.values();
        match configured.any(|configured| configured.url.is_at(&url)) {
            true => Err(PeerError::Exists(url)),
            false => Ok(()),
        }
    }

    /// Entries at a place. One that was given with several keys has several entries.
    fn find_peer(&self, url: PeerUrl) -> Result<Vec<(u32, PeerUrl)>, PeerError> {
        let entry = |id: &u32| Some((*id, self.configured.get(id)?.url.clone()));
        let configured = self.configured.iter();
        let found = configured.filter(|(_, configured)| configured.url.is_at(&url));
        let found: Vec<_> = found.filter_map(|(id, _)| entry(id)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        // A list shows where a peer is, which may not be what it was added as.
        let shown_there = url.endpoint().and_then(|endpoint| {
            let mut peers = self.overlay.peers();
            peers.find(|peer| peer.endpoint == endpoint)
        });
        let Some(peer) = shown_there else {
            return Err(PeerError::NotConfigured(url));
        };
        let ids = peer.configured.iter().map(|id| id.0);
        let found: Vec<_> = ids.filter_map(|id| entry(&id)).collect();
        match found.is_empty() {
            true => Err(PeerError::Inbound(url)),
            false => Ok(found),
        }
    }
}
