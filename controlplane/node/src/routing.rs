//! The routing protocol in the node: links from the overlay's events, packets through its
//! sessions, routes into the RIB.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyphae_overlay::ConfiguredPeer;
use hyphae_routing::babel::{Config, Speaker, Xeddsa};
use hyphae_routing::{FibChange, Rib};
use hyphae_shm::record::{Program, PuntLinkLocal};
use hyphae_time::Nanos;
use hyphae_wire::babel::INFINITY;
use hyphae_wire::control::{self, ControlKind};

use hyphae_wire::{Prefix, PublicKey, SecretKey};

use super::Node;
use super::fib_hold::FibHold;
use super::snapshot::RoutingSnapshot;
use hyphae_config::RoutingConfig;

/// Shortest interval between log lines about refusals of one reason; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The speaker of a node, and the time of the last log line of each refusal reason.
pub(crate) struct Routing {
    pub(crate) speaker: Speaker,
    logged: BTreeMap<&'static str, Nanos>,
}

impl Routing {
    pub(crate) fn snapshot(&self) -> RoutingSnapshot {
        let links: Vec<_> = self.speaker.links().collect();
        let heard = links.iter().filter(|link| link.cost < INFINITY).count();
        let rtt = links.iter().filter_map(|link| link.rtt).collect();
        RoutingSnapshot {
            counters: *self.speaker.counters(),
            heard,
            not_heard: links.len() - heard,
            rtt,
        }
    }

    fn new(
        now: Nanos,
        config: &RoutingConfig,
        identity: &SecretKey,
        unix: u64,
        seed: u64,
    ) -> Option<Self> {
        if !config.enabled {
            return None;
        }
        // Seconds since 1970 fit until 2106.
        let epoch = u32::try_from(unix).unwrap_or(u32::MAX);
        let mut speaker = Config::new(identity.clone(), epoch);
        speaker.announce.clone_from(&config.announce);
        speaker.hello = config.hello;
        speaker.next_hops_max = config.next_hops_max;
        speaker.routes_max = config.routes_max;
        speaker.import = config.import.clone();
        speaker.export = config.export.clone();
        Some(Self {
            speaker: Speaker::new(now, speaker, seed, Box::new(Xeddsa)),
            logged: BTreeMap::new(),
        })
    }
}

/// Routes of a node.
pub(crate) struct Routes {
    pub(crate) rib: Rib,
    /// The routing protocol; `None` when dynamic routing is disabled.
    pub(crate) protocol: Option<Routing>,
    pub(crate) hold: FibHold,
}

impl Routes {
    pub(crate) fn new(now: Nanos, config: &RoutingConfig, identity: &SecretKey) -> Self {
        let own = identity.public_key().address();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        // Spreads timers; not secret.
        let seed = now.0 ^ u64::from_le_bytes(own.0[8..].try_into().unwrap_or_default());
        let mut rib = Rib::new(own);
        rib.set_gateways(&config.announce, &config.reach);
        let unix = unix.unwrap_or_default().as_secs();
        Self {
            rib,
            protocol: Routing::new(now, config, identity, unix, seed),
            hold: FibHold::default(),
        }
    }
}

impl Node {
    pub(crate) fn routing_link_up(&mut self, now: Nanos, peer: u32, key: PublicKey) {
        let Some(routing) = &mut self.routes.protocol else {
            return;
        };
        if self.routes.hold == FibHold::Adopting {
            routing.speaker.link_adopted(now, peer, key);
        } else {
            routing.speaker.link_up(now, peer, key);
        }
        self.prefer_link(peer, key);
    }

    /// Prefers routes of configured peers over those of discovered neighbours when the table is full.
    fn prefer_link(&mut self, peer: u32, key: PublicKey) {
        let configured = self.overlay.entries_of(key);
        let chosen = |id: &ConfiguredPeer| self.peers.configured.get(&id.0).is_some_and(|c| !c.lan);
        let preferred = configured.iter().any(chosen);
        if let Some(routing) = &mut self.routes.protocol {
            routing.speaker.prefer(peer, preferred);
        }
    }

    /// Updates the preference of every link after a change of the configured peers.
    pub(crate) fn prefer_links(&mut self) {
        let links = self.routes.protocol.iter().flat_map(|r| r.speaker.links());
        let links: Vec<_> = links.map(|l| (l.link, l.key)).collect();
        for (link, key) in links {
            self.prefer_link(link, key);
        }
    }

    pub(crate) fn routing_link_down(&mut self, now: Nanos, peer: u32) {
        if let Some(routing) = &mut self.routes.protocol {
            routing.speaker.link_down(now, peer);
        }
    }

    /// The overlay has replayed its records: replays the FIB now, or holds it until the routes are learnt.
    pub(crate) fn hold_routes(&mut self, now: Nanos) {
        let links = self
            .routes
            .protocol
            .as_ref()
            .map(|r| r.speaker.links().count());
        if links.unwrap_or(0) == 0 {
            self.replay_routes(now);
        } else {
            let (since, changed) = (now, now);
            self.routes.hold = FibHold::Learning { since, changed };
        }
    }

    /// Ends the hold when the routes are learnt.
    pub(crate) fn release_routes(&mut self, now: Nanos) {
        if self.routes.hold.deadline().is_some_and(|at| at <= now) {
            self.replay_routes(now);
        }
    }

    fn replay_routes(&mut self, now: Nanos) {
        self.routes.hold = FibHold::Off;
        let mut reached = BTreeSet::new();
        for entry in self.routes.rib.replay_all() {
            self.push_all(&Program::FibReplace(&entry));
            let prefix = Prefix::new(entry.prefix, entry.prefix_len);
            if self.routes.rib.uses(prefix) {
                reached.insert(prefix);
            }
        }
        if let Some(routes) = &self.host.routes {
            routes.reach_only(reached);
        }
        self.overlay.finish_resync(now);
    }

    /// Routes a prefix into the TUN device while it has a gateway.
    pub(crate) fn reach_gateway(&self, change: &FibChange) {
        if let Some(routes) = &self.host.routes
            && self.routes.rib.uses(change.prefix())
        {
            routes.reach(change.prefix(), matches!(change, FibChange::Replace(_)));
        }
    }

    /// Starts or ends the drain of this node.
    pub(crate) fn set_drained(&mut self, now: Nanos, on: bool) {
        if let Some(routing) = &mut self.routes.protocol
            && routing.speaker.is_drained() != on
        {
            tracing::info!(on, "drain");
            routing.speaker.drain(now, on);
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.routes
            .protocol
            .as_ref()
            .is_some_and(|r| r.speaker.is_drained())
    }

    /// Handles a control message of a neighbour, if it is of the routing protocol.
    pub(crate) fn handle_routing(&mut self, now: Nanos, punt: &PuntLinkLocal, message: &[u8]) {
        if let Some((ControlKind::Routing, packet)) = control::parse(message)
            && let Some(routing) = &mut self.routes.protocol
        {
            let (peer, received) = (punt.peer.get(), Nanos(punt.received.get()));
            routing.speaker.handle_packet(now, peer, received, packet);
        }
    }

    /// Moves the output of the speaker into the other engines; false when there was none.
    pub(crate) fn drain_routing(&mut self, now: Nanos) -> bool {
        let Some(routing) = &mut self.routes.protocol else {
            return false;
        };
        let mut any = false;
        while let Some(transmit) = routing.speaker.poll_transmit() {
            any = true;
            // A link that went down meanwhile is about to be reported.
            self.overlay.send_routing(transmit.link, &transmit.packet);
        }
        while let Some(change) = routing.speaker.poll_route() {
            any = true;
            self.routes.rib.set_dynamic(change.prefix, change.route);
            if let FibHold::Learning { changed, .. } = &mut self.routes.hold {
                *changed = now;
            }
        }
        while let Some(refused) = routing.speaker.poll_refusal() {
            let last = routing.logged.get(refused.reason.name());
            if last.is_none_or(|at| now.since(*at) >= LOG_EVERY) {
                routing.logged.insert(refused.reason.name(), now);
                tracing::warn!("{refused}");
            }
        }
        any
    }
}
