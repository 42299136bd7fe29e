//! Puts another configuration in force while the node runs. It was checked; nothing here can fail it.

use std::collections::BTreeSet;

use hyphae_config::Config;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_overlay::Live;
use hyphae_routing::Via;
use hyphae_time::Nanos;

use super::Node;

/// The part of the settings that the overlay takes while it runs.
pub fn live(config: &Config, aes_hardware: bool) -> Live {
    Live {
        suites: config.suites(aes_hardware),
        rekey_after: config.session.rekey_after,
        keepalive: config.session.keepalive,
        dead_after: config.session.dead_after,
        lost_after: config.session.lost_after,
        retry_max: config.session.retry_max,
        peers_max: config.peering.peers_max,
        half_open_per_source_max: config.peering.handshakes_per_source_max,
        stream_fallback_after: config.stream.fallback_after,
        stream_upgrade_every: config.stream.upgrade_every,
    }
}

impl Node {
    /// Puts a configuration in force. `stored` are the routes of the state file, which stay.
    pub(super) fn apply(&mut self, now: Nanos, new: Config, stored: &[RouteSpec]) {
        let old = std::mem::replace(&mut self.config, new);
        let new = self.config.clone();
        // Before the peers: whom it refuses is not dialled.
        if new.peering.policy != old.peering.policy {
            self.overlay.set_policy(now, new.peering.policy.clone());
        }
        self.overlay.set_live(&live(&new, self.setup.aes_hardware));
        self.apply_peers(now, &old.peers, &new.peers);
        self.apply_routes(&old.routes, &new.routes, stored);
        self.apply_routing(now, &old, &new);
        if new.log_level != old.log_level {
            self.reload_dataplane();
        }
    }

    /// Peers of the file come and go; those added by RPC stay.
    fn apply_peers(&mut self, now: Nanos, old: &[PeerUrl], new: &[PeerUrl]) {
        for url in old.iter().filter(|url| !new.contains(url)) {
            let given = self.peers.configured.iter().find(|(_, configured)| {
                configured.url == *url && !configured.stored && !configured.lan
            });
            if let Some(id) = given.map(|(id, _)| *id) {
                self.remove_peer(now, id);
            }
        }
        for url in new.iter().filter(|url| !old.contains(url)) {
            let mut all = self.peers.configured.values();
            if !all.any(|configured| configured.url == *url && !configured.lan) {
                self.add_peer(now, url.clone(), false);
            }
        }
    }

    /// The same of static routes.
    fn apply_routes(&mut self, old: &[RouteSpec], new: &[RouteSpec], stored: &[RouteSpec]) {
        let [before, after] = [old, new].map(|all| all.iter().collect::<BTreeSet<_>>());
        for route in old.iter().filter(|route| !after.contains(route)) {
            if !stored.contains(route) {
                let via: Via = route.route().via;
                self.routes.rib.remove_static(route.prefix, Some(via));
            }
        }
        for route in new.iter().filter(|route| !before.contains(route)) {
            // Tried before.
            if let Err(error) = self.routes.rib.add_static(route.route()) {
                tracing::error!(%error, %route, "route was not added");
            }
        }
    }

    fn apply_routing(&mut self, now: Nanos, old: &Config, new: &Config) {
        let (old, new) = (&old.routing, &new.routing);
        if old == new {
            return;
        }
        if let Some(routing) = &mut self.routes.protocol {
            let speaker = &mut routing.speaker;
            for prefix in old
                .announce
                .iter()
                .filter(|prefix| !new.announce.contains(prefix))
            {
                speaker.withdraw(now, *prefix);
            }
            for prefix in new
                .announce
                .iter()
                .filter(|prefix| !old.announce.contains(prefix))
            {
                speaker.announce(now, *prefix);
            }
            speaker.set_filters(now, new.import.clone(), new.export.clone());
            speaker.set_routes_max(now, new.routes_max);
        }
        if (&old.announce, &old.reach) == (&new.announce, &new.reach) {
            return;
        }
        self.routes.rib.set_gateways(&new.announce, &new.reach);
        let prefixes = self.routes.rib.routes().map(|route| route.prefix);
        let reached: BTreeSet<_> = prefixes
            .filter(|prefix| self.routes.rib.uses(*prefix))
            .collect();
        if let Some(routes) = &self.host.routes {
            routes.reach_only(reached);
        }
    }

    /// Has the dataplane read the level of its log again.
    fn reload_dataplane(&self) {
        let process = self
            .attachment
            .as_ref()
            .map(|attachment| attachment.hello.pid.get());
        let process = process.and_then(|pid| i32::try_from(pid).ok());
        let Some(process) = process.and_then(rustix::process::Pid::from_raw) else {
            return;
        };
        if let Err(error) = rustix::process::kill_process(process, rustix::process::Signal::HUP) {
            tracing::warn!(%error, "the dataplane keeps its log level");
        }
    }
}
