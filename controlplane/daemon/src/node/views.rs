//! Snapshots of the node.

use std::collections::BTreeMap;

use super::Node;
use super::attachment::Attachment;
use super::routing::Routing;
use super::snapshot::{Snapshot, state_name};

impl Node {
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
            workers: attachment.map(Attachment::stats).unwrap_or_default(),
            generation: attachment.map_or(0, |a| a.hello.generation.get()),
            dataplane: attachment.map(|a| a.hello.pid.get()),
            backlog: attachment.map_or(0, Attachment::backlog),
            peers_by_state,
            sessions: self.overlay.sessions().count(),
            routes: self.rib.routes().count(),
            routes_held: !self.hold.is_off(),
            drained: self.is_drained(),
            rtt,
            totals: self.totals.clone(),
            handshakes: self.overlay.handshakes(),
            host: self
                .host_routes
                .as_ref()
                .map(|_| self.host.sentence().is_none()),
            host_repairs: self.host.repairs(),
            reloads: self.reloads.read(),
            bus: self.bus.snapshot(),
            routing: self.routing.as_ref().map(Routing::snapshot),
            per_peer: per_peer.map(|peers| (peers, peers_max)),
        }
    }
}
