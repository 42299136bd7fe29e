//! Requests of other tasks, answered from the engines.

use hyphae_config::endpoint::PeerUrl;
use hyphae_time::Nanos;

use super::Node;
use super::probes::Probe;
use super::request::{PeerError, Reply, Request};

impl Node {
    /// Handles a request and replies.
    pub(super) fn handle_request(&mut self, now: Nanos, request: Request) {
        /// The caller may have disconnected.
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
                answer(reply, self.routes.rib.add_static(route.route()));
            }
            Request::RemoveRoute(prefix, via, reply) => {
                answer(reply, self.routes.rib.remove_static(prefix, via));
            }
            Request::IsRouting(reply) => answer(reply, self.routes.protocol.is_some()),
            Request::SetDrained(on, reply) => {
                self.set_drained(now, on);
                answer(reply, ());
            }
            Request::Ping(address, timeout, reply) => {
                let id = self.probes.start(now + timeout, Probe::Ping(reply));
                self.overlay.ping(now, address, id);
            }
            Request::Trace(address, hop_limit, timeout, reply) => {
                let id = self.probes.start(now + timeout, Probe::Trace(reply));
                self.overlay.trace(now, address, hop_limit, id);
            }
            Request::Apply(config, stored, reply) => {
                self.apply(now, *config, &stored);
                answer(reply, ());
            }
        }
    }

    /// Refuses a peer that is configured.
    fn check_peer(&self, url: PeerUrl) -> Result<(), PeerError> {
        let mut configured = self.peers.configured.values();
        match configured.any(|configured| configured.url.is_at(&url)) {
            true => Err(PeerError::Exists(url)),
            false => Ok(()),
        }
    }

    /// Entries at an endpoint. One that is configured with several keys has several entries.
    fn find_peer(&self, url: PeerUrl) -> Result<Vec<(u32, PeerUrl)>, PeerError> {
        let entry = |id: &u32| Some((*id, self.peers.configured.get(id)?.url.clone()));
        let configured = self.peers.configured.iter();
        let found = configured.filter(|(_, configured)| configured.url.is_at(&url));
        let found: Vec<_> = found.filter_map(|(id, _)| entry(id)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        // Lists of peers show the endpoint in use, which may differ from the configured one.
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
