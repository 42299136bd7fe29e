//! Links: neighbours found on local networks, and the workers' counters, by which the overlay detects failures.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyphae_overlay::{ConfiguredPeer, PeerTraffic};
use hyphae_time::Nanos;

use super::Node;
use super::attachment::Attachment;
use super::neighbours::Step;
use super::peers::Configured;
use hyphae_config::endpoint::PeerUrl;
use hyphae_host::discovery::DiscoveryEvent;

/// Interval of the expiry of neighbours.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of reading the peers' counters, while a peer carries traffic and otherwise.
const COUNTERS_BUSY: Duration = Duration::from_millis(250);
const COUNTERS_IDLE: Duration = Duration::from_millis(500);

impl Node {
    /// Handles an event of discovery.
    pub(crate) fn found(&mut self, now: Nanos, found: DiscoveryEvent) {
        let (key, endpoint) = match found {
            DiscoveryEvent::Node { key, endpoint } => (key, endpoint),
            DiscoveryEvent::InterfacesChanged => {
                self.overlay.retry_now(now);
                return;
            }
        };
        if self.overlay.policy().check(&key).is_err() {
            tracing::debug!(%key, %endpoint, "found on the local network, but not allowed");
            return;
        }
        self.upkeep.neighbours_at = self.upkeep.neighbours_at.min(now + EXPIRE_INTERVAL);
        let (own, interface) = (self.overlay.key(), endpoint.scope.get());
        let overlay = &self.overlay;
        let up = |key| overlay.is_up(key);
        let (step, gone) = self.neighbours.note(now, own, (key, endpoint), up);
        if let Some(gone) = gone {
            self.remove_peer(now, gone);
        }
        match step {
            Step::None => {}
            Step::Answer => self.host.discovery.answer(interface),
            Step::Dial => {
                tracing::info!(%key, %endpoint, "found on the local network");
                let configured = Configured {
                    url: PeerUrl::at(endpoint, key),
                    stored: false,
                    lan: true,
                    since: now,
                    error: None,
                };
                // It may have started after this node's last beacon.
                self.host.discovery.answer(interface);
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

    /// Removes neighbours that are silent.
    pub(super) fn expire_neighbours(&mut self, now: Nanos) {
        let overlay = &self.overlay;
        for id in self.neighbours.expire(now, |key| overlay.is_up(key)) {
            self.remove_peer(now, id);
        }
        self.upkeep.neighbours_at = now + EXPIRE_INTERVAL;
    }

    /// Reads the workers' counters of every peer that is up.
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
        self.upkeep.counters_at = now + wait;
        if let Some(routes) = self.host.routes.as_ref().filter(|it| it.wants_links()) {
            routes.links(self.link_addresses());
        }
    }

    /// IPv6 addresses of the peers.
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
