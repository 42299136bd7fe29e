//! Links as the node looks after them: neighbours on local networks come and go, and what the
//! workers count tells the overlay which links are in trouble.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyphae_overlay::{ConfiguredPeer, PeerTraffic};
use hyphae_time::Nanos;

use super::attachment::Attachment;
use super::neighbours::Step;
use super::{Configured, Node};
use hyphae_config::endpoint::PeerUrl;
use hyphae_host::discovery::Found;

/// How often neighbours are checked for having gone.
const EXPIRE_AGAIN: Duration = Duration::from_secs(10);
/// Time between readings of the peers' counters, while some peer carries traffic and else.
const COUNTERS_BUSY: Duration = Duration::from_millis(250);
const COUNTERS_IDLE: Duration = Duration::from_millis(500);

impl Node {
    /// Discovery has something to tell.
    pub(crate) fn found(&mut self, now: Nanos, found: Found) {
        let (key, endpoint) = match found {
            Found::Node { key, endpoint } => (key, endpoint),
            Found::InterfacesChanged => {
                self.overlay.retry_now(now);
                return;
            }
        };
        if self.overlay.policy().check(&key).is_err() {
            tracing::debug!(%key, %endpoint, "found on the local network, but not allowed");
            return;
        }
        self.neighbours_at = self.neighbours_at.min(now + EXPIRE_AGAIN);
        let (own, interface) = (self.overlay.key(), endpoint.scope.get());
        let overlay = &self.overlay;
        let up = |key| overlay.is_up(key);
        let (step, gone) = self.neighbours.note(now, own, (key, endpoint), up);
        if let Some(gone) = gone {
            self.remove_peer(now, gone);
        }
        match step {
            Step::None => {}
            Step::Answer => self.discovery.answer(interface),
            Step::Dial => {
                tracing::info!(%key, %endpoint, "found on the local network");
                let configured = Configured {
                    url: PeerUrl::at(endpoint, key),
                    stored: false,
                    lan: true,
                    since: now,
                    error: None,
                };
                // It may have come after this node's last beacon.
                self.discovery.answer(interface);
                let id = self.add_entry(now, configured, vec![endpoint]);
                self.neighbours.dialled(key, interface, id);
            }
            Step::Readdress(id) => {
                let addresses = self.neighbours.endpoints(key, interface);
                self.overlay
                    .set_addresses(now, ConfiguredPeer(id), addresses);
            }
        }
    }

    /// Forgets nodes of local networks that are gone.
    pub(super) fn expire_neighbours(&mut self, now: Nanos) {
        let overlay = &self.overlay;
        for id in self.neighbours.expire(now, |key| overlay.is_up(key)) {
            self.remove_peer(now, id);
        }
        self.neighbours_at = now + EXPIRE_AGAIN;
    }

    /// Reads what the workers have counted for every peer that is up.
    pub(super) fn read_counters(&mut self, now: Nanos) {
        let workers = self.attachment.as_ref().map(Attachment::stats);
        let (workers, peers) = (workers.unwrap_or_default(), self.overlay.peers_up());
        let mut busy = false;
        for peer in peers.collect::<Vec<_>>() {
            let mut traffic = PeerTraffic::default();
            for stats in workers.iter().map(|worker| worker.peer(peer)) {
                traffic.sent += stats.tx_packets;
                traffic.heard = traffic.heard.max(Nanos(stats.last_rx));
            }
            busy |= self.overlay.note_traffic(now, peer, traffic);
        }
        let wait = if busy { COUNTERS_BUSY } else { COUNTERS_IDLE };
        self.counters_at = now + wait;
        if let Some(routes) = self.host_routes.as_ref().filter(|it| it.wants_links()) {
            routes.links(self.link_addresses());
        }
    }

    /// Where the peers are, over IPv6.
    fn link_addresses(&self) -> BTreeSet<Ipv6Addr> {
        let endpoints = self.overlay.peers().map(|peer| peer.endpoint);
        endpoints
            .filter_map(|endpoint| match endpoint.to_socket_addr() {
                SocketAddr::V6(place) => Some(*place.ip()),
                SocketAddr::V4(_) => None,
            })
            .collect()
    }
}
