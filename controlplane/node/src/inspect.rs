//! State of the node as plain values.

use std::collections::BTreeMap;

use hyphae_overlay::{PeerState, PeerStatus};
use hyphae_routing::{RouteSource, StaticRoute, Via};
use hyphae_shm::StatsReader;
use hyphae_time::Nanos;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey};

use super::Node;
use super::attachment::Attachment;
use super::peers::Configured;
use super::routing::Routing;
use super::snapshot::{PeerLocation, PeerSnapshot, Snapshot, state_name};
use super::views::{PacketCounts, PeerView, RouteView, SearchView, StaticRouteView, StatusView};

impl Node {
    pub(super) fn key_of(&self, address: OverlayAddress) -> Option<PublicKey> {
        let own = self.setup.identity.public_key();
        if address.subnet() == own.address().subnet() {
            return Some(own);
        }
        self.overlay.key_of(address)
    }

    fn workers(&self) -> Vec<StatsReader> {
        let workers = self.attachment.as_ref().map(Attachment::stats);
        workers.unwrap_or_default()
    }

    pub(super) fn peers(&self, now: Nanos) -> Vec<PeerView> {
        let workers = self.workers();
        let peers = self.overlay.peers();
        peers.map(|peer| self.peer(now, peer, &workers)).collect()
    }

    fn peer(&self, now: Nanos, peer: PeerStatus, workers: &[StatsReader]) -> PeerView {
        let configured = self.entry_of(&peer);
        let seen = peer.key.as_ref().and_then(|key| self.peers.seen(key));
        let first = seen
            .map(|seen| seen.0)
            .or(configured.map(|c| c.since))
            .or(peer.since);
        let last = match peer.state {
            PeerState::Up => peer.since,
            PeerState::Connecting | PeerState::Down => seen.map(|seen| seen.1),
        };
        let counts = |number| workers.iter().map(move |worker| worker.peer(number));
        let sum = |bytes: [u64; 2], stats: hyphae_shm::stats::PeerStats| {
            [bytes[0] + stats.rx_bytes, bytes[1] + stats.tx_bytes]
        };
        let counts = peer.peer.into_iter().flat_map(counts);
        let [rx_bytes, tx_bytes] = counts.fold([0; 2], sum);
        PeerView {
            kind: self.kind_of(&peer, configured),
            unresolved: configured
                .filter(|_| peer.endpoint.is_unset())
                .map(|configured| configured.url.clone()),
            discovered: first.map(|at| now.since(at)),
            last_connected: last.map(|at| now.since(at)),
            name: peer
                .key
                .and_then(|key| self.config.peering.names.get(&key).cloned()),
            error: self.error_of(&peer),
            rx_bytes,
            tx_bytes,
            status: peer,
        }
    }

    /// State of a peer for its metric families; `None` while its key is unknown.
    fn peer_snapshot(&self, peer: &PeerStatus) -> Option<PeerSnapshot> {
        let key = peer.key?;
        let configured = self.entry_of(peer);
        Some(PeerSnapshot {
            key,
            number: peer.peer,
            name: self.config.peering.names.get(&key).cloned(),
            location: match (peer.endpoint.is_unset(), configured) {
                (true, Some(configured)) => PeerLocation::Name(configured.url.place()),
                _ => PeerLocation::Endpoint(peer.endpoint),
            },
            kind: self.kind_of(peer, configured),
            alive: peer.state == PeerState::Up,
            rtt: peer.rtt,
            loss_permille: peer.loss_permille,
        })
    }

    /// The entry that leads to a peer: one of the operator's before one that was discovered.
    fn entry_of(&self, peer: &PeerStatus) -> Option<&Configured> {
        let entries = peer.configured.iter();
        let entries = entries.filter_map(|id| self.peers.configured.get(&id.0));
        entries.min_by_key(|configured| configured.lan)
    }

    fn kind_of(&self, peer: &PeerStatus, configured: Option<&Configured>) -> &'static str {
        let lan = match configured {
            Some(configured) => configured.lan,
            None => peer.key.is_some_and(|key| self.neighbours.knows(&key)),
        };
        match (lan, configured) {
            (true, _) => "lan",
            (false, Some(_)) => "static",
            (false, None) => "inbound",
        }
    }

    /// Why there is no link to a peer: the last refusal, or why its name leads nowhere.
    fn error_of(&self, peer: &PeerStatus) -> Option<String> {
        let refusal = peer.refusal.map(|refusal| refusal.to_string());
        let entries = peer.configured.iter();
        let mut entries = entries.filter_map(|id| self.peers.configured.get(&id.0));
        refusal.or_else(|| entries.find_map(|configured| configured.error.clone()))
    }

    pub(super) fn packet_counts(&self) -> Vec<PacketCounts> {
        let workers = self.workers();
        let counted = |peer: PeerStatus| {
            let (number, address) = (peer.peer?, peer.address?);
            let (mut received, mut sent) = ([0; 2], [0; 2]);
            for stats in workers.iter().map(|worker| worker.peer(number)) {
                received[0] += stats.rx_packets;
                received[1] += stats.rx_bytes;
                sent[0] += stats.tx_packets;
                sent[1] += stats.tx_bytes;
            }
            Some(PacketCounts {
                address,
                received,
                sent,
            })
        };
        self.overlay.peers().filter_map(counted).collect()
    }

    pub(super) fn selected_routes(&self) -> Vec<RouteView> {
        let route = |route: &hyphae_routing::SelectedRoute| RouteView {
            prefix: route.prefix,
            next_hops: route.next_hops.iter().map(|hop| hop.key).collect(),
            metric: route.metric,
            seqno: route.seqno,
            origin: route.origin,
        };
        self.routes.rib.routes().map(route).collect()
    }

    /// Routes that could be used and are not: what neighbours offer, and static routes whose next hop
    /// is a peer that is up.
    pub(super) fn fallback_routes(&self) -> Vec<RouteView> {
        let entry = |prefix: Prefix, key: PublicKey, metric, seqno, origin| RouteView {
            prefix,
            next_hops: vec![key],
            metric,
            seqno,
            origin,
        };
        let speaker = self
            .routes
            .protocol
            .as_ref()
            .map(|routing| &routing.speaker);
        let offered = speaker.into_iter().flat_map(|speaker| {
            speaker
                .fallbacks()
                .filter_map(move |(prefix, candidate, metric)| {
                    let key = speaker.neighbour(candidate.link)?;
                    let (seqno, origin) = (candidate.serial.seqno(), RouteSource::Dynamic);
                    let usable = metric < hyphae_wire::babel::INFINITY;
                    usable.then(|| entry(prefix, key, metric, seqno, origin))
                })
        });
        let fixed = self.routes.rib.static_routes().filter_map(|route| {
            let key = match route.via {
                Via::Peer(key) => key,
                Via::Address(address) => self.routes.rib.neighbour(address)?,
            };
            let used = self.routes.rib.route(route.prefix).is_some_and(|used| {
                used.origin == RouteSource::Static && used.next_hops[0].key == key
            });
            (self.routes.rib.is_up(&key) && !used)
                .then(|| entry(route.prefix, key, route.metric, 0, RouteSource::Static))
        });
        offered.chain(fixed).collect()
    }

    pub(super) fn searches(&self, now: Nanos) -> Vec<SearchView> {
        let entry = |(address, until): (OverlayAddress, Nanos)| SearchView {
            address,
            remaining: until.since(now),
        };
        let speaker = self
            .routes
            .protocol
            .as_ref()
            .map(|routing| &routing.speaker);
        let asked = speaker.into_iter().flat_map(|speaker| speaker.queries());
        let asked = asked.map(|query| (query.prefix.address(), query.expires));
        self.overlay.searching().chain(asked).map(entry).collect()
    }

    pub(super) fn static_routes(&self) -> Vec<StaticRouteView> {
        let view = |route: StaticRoute| {
            let selected = self.routes.rib.route(route.prefix);
            StaticRouteView {
                route,
                in_use: selected.is_some_and(|selected| selected.origin == RouteSource::Static),
            }
        };
        self.routes.rib.static_routes().map(view).collect()
    }

    pub(super) fn status(&self, now: Nanos) -> StatusView {
        let attachment = self.attachment.as_ref();
        let hello = attachment.map(|attachment| attachment.hello);
        let peers_up = self.overlay.peers();
        StatusView {
            uptime: now.since(self.setup.started),
            dataplane: hello.map(|hello| (hello, now.since(Nanos(hello.started.get())))),
            workers: self.workers(),
            host_problem: self.host.problem(),
            mtu: self.config.mtu,
            suites: self
                .config
                .suites(hello.is_some_and(|hello| hello.aes_hardware != 0)),
            peers_up: peers_up.filter(|peer| peer.state == PeerState::Up).count(),
            peers: self.overlay.peers().count(),
            sessions: self.overlay.sessions().count(),
            routes: self.routes.rib.routes().count(),
            drained: self.is_drained(),
            controlplane_restarts: self.totals.controlplane_restarts,
            dataplane_restarts: self.totals.dataplane_restarts,
        }
    }

    /// One pass over the peers, which copies: what else there is to do is not done on this thread.
    pub(super) fn snapshot(&self) -> Snapshot {
        let peers_max = self.config.metrics_peers_max;
        let mut per_peer = (peers_max > 0).then(Vec::new);
        let mut peers_by_state = BTreeMap::from([("alive", 0), ("connecting", 0), ("dead", 0)]);
        let mut rtt = Vec::new();
        for peer in self.overlay.peers() {
            *peers_by_state.entry(state_name(peer.state)).or_default() += 1;
            rtt.extend(peer.rtt);
            if let Some(each) = &mut per_peer {
                each.extend(self.peer_snapshot(&peer));
            }
        }
        let attachment = self.attachment.as_ref();
        Snapshot {
            workers: self.workers(),
            generation: attachment.map_or(0, |a| a.hello.generation.get()),
            dataplane: attachment.map(|a| a.hello.pid.get()),
            backlog: attachment.map_or(0, Attachment::backlog),
            peers_by_state,
            sessions: self.overlay.sessions().count(),
            routes: self.routes.rib.routes().count(),
            routes_held: !self.routes.hold.is_off(),
            drained: self.is_drained(),
            rtt,
            totals: self.totals.clone(),
            handshakes: self.overlay.handshakes(),
            host: self.host.is_up(),
            host_repairs: self.host.repairs(),
            bus: self.services.bus.snapshot(),
            routing: self.routes.protocol.as_ref().map(Routing::snapshot),
            per_peer: per_peer.map(|peers| (peers, peers_max)),
        }
    }
}
