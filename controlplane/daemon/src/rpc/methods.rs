//! The methods: what each does to the node, and what it returns.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use hyphae_overlay::{PeerState, PeerStatus};
use hyphae_routing::{Origin, Via};
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::DuplicateKey;
use hyphae_rpc::method::{
    Dataplane, DrainParams, EndpointParams, Info, IpParams, PacketStat, PacketStatistics, Peer,
    PeerEndpoint, PingParams, QueriedSubnet, Route, RouteParams, StaticRoute, Status, TraceHop,
    TraceOutcome, TraceParams, Worker,
};
use hyphae_rpc::parse_params;
use hyphae_shm::StatsReader;
use hyphae_shm::stats::{Counter, DropReason, counter_at, drop_at};
use hyphae_time::Nanos;
use hyphae_wire::report::ReportCode;

use hyphae_wire::{OverlayAddress, Prefix, PublicKey, Suite};
use serde::Serialize;
use serde_json::value::RawValue;

use super::rows::Rows;
use crate::node::attachment::Attachment;
use crate::node::snapshot::{PeerLocation, PeerSnapshot, state_name};
use crate::node::{Configured, Node};
use hyphae_config::endpoint::{InvalidPeer, PeerUrl, RouteSpec, parse_via, shown, via_text};
use hyphae_store::files::{
    self, DRAIN_FILE, DrainFile, PEERS_FILE, PeersFile, ROUTES_FILE, RoutesFile,
};
use hyphae_store::stored::CommitError;

/// Longest wait of a ping.
const PING_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// What a call returned, as text: a tree of values would be made only to be written out.
pub(crate) type Outcome = Result<Box<RawValue>, Error>;

impl Node {
    /// Answers a call.
    pub(crate) fn call(&mut self, now: Nanos, method: &str, params: &str) -> Outcome {
        match method {
            "getInfo" => value(self.info()),
            "getPublicKeyFromIp" => self.public_key(params),
            "addPeer" => self.rpc_add_peer(now, params),
            "deletePeer" => self.rpc_delete_peer(now, params),
            "getPacketStatistics" => value(self.packet_statistics()),
            "route.add" => self.rpc_add_route(params),
            "route.remove" => self.rpc_remove_route(params),
            "node.status" => value(self.status(now)),
            "node.drain" => self.rpc_drain(now, params),
            "config.reload" => self.rpc_reload(now, params).and_then(value),
            _ => Err(Error::new(
                code::METHOD_NOT_FOUND,
                format!("no method '{method}'"),
            )),
        }
    }

    /// The list that a call returns, if it is such a call.
    pub(crate) fn rows(&self, now: Nanos, method: &str) -> Option<Rows> {
        Some(match method {
            "getPeers" => Rows::new(self.peers(now), |peer| peer),
            "getSelectedRoutes" => Rows::new(self.routes(), RouteRow::shown),
            "getFallbackRoutes" => Rows::new(self.fallback_routes(), RouteRow::shown),
            "getQueriedSubnets" => Rows::new(self.queried(now), |subnet| subnet),
            "route.list" => Rows::new(self.static_routes(), |route| route),
            _ => return None,
        })
    }

    fn info(&self) -> Info {
        let key = self.identity.public_key();
        Info {
            node_subnet: key.address().subnet().to_string(),
            node_ip: key.address().to_string(),
            node_pubkey: key.to_string(),
            node_start_time: self.started_unix,
        }
    }

    fn public_key(&self, params: &str) -> Outcome {
        let params: IpParams = parse_params(params)?;
        let address = overlay_address(&params.ip)?;
        if address.subnet() == self.identity.public_key().address().subnet() {
            return value(self.identity.public_key());
        }
        let key = self.overlay.key_of(address);
        key.map_or_else(
            || {
                Err(Error::new(
                    code::NO_KEY,
                    "the key of that address is not known",
                ))
            },
            value,
        )
    }

    fn peers(&self, now: Nanos) -> Vec<Peer> {
        let workers = self.attachment.as_ref().map(Attachment::stats);
        let workers = workers.unwrap_or_default();
        let peers = self.overlay.peers();
        peers.map(|peer| self.peer(now, &peer, &workers)).collect()
    }

    /// State of a peer for its metric families; `None` while its key is unknown.
    pub(crate) fn peer_snapshot(&self, peer: &PeerStatus) -> Option<PeerSnapshot> {
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

    /// The entry that leads to a peer: one that the operator has given says more than one that was
    /// found.
    fn entry_of(&self, peer: &PeerStatus) -> Option<&Configured> {
        let entries = peer.configured.iter();
        let entries = entries.filter_map(|id| self.configured.get(&id.0));
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

    fn peer(&self, now: Nanos, peer: &PeerStatus, workers: &[StatsReader]) -> Peer {
        let configured = self.entry_of(peer);
        let (proto, place) = match (peer.endpoint.is_unset(), configured) {
            (true, Some(configured)) => {
                let url = &configured.url;
                (url.transport.scheme(), url.place())
            }
            _ => (peer.endpoint.scheme(), shown(peer.endpoint)),
        };
        let key = peer.key.map(|key| key.to_string());
        let seen = key.as_ref().and_then(|key| self.seen.get(key));
        let first = seen
            .map(|seen| seen.0)
            .or(configured.map(|c| c.since))
            .or(peer.since);
        let discovered = first.map_or(0, |at| now.since(at).as_secs());
        let last_connected = match peer.state {
            PeerState::Up => peer.since,
            PeerState::Connecting | PeerState::Down => seen.map(|seen| seen.1),
        };
        let last_connected = last_connected.map(|at| now.since(at).as_secs());
        let stats: Vec<_> = match peer.peer {
            Some(number) => workers.iter().map(|worker| worker.peer(number)).collect(),
            None => Vec::new(),
        };
        Peer {
            endpoint: PeerEndpoint {
                proto: proto.to_owned(),
                socket_addr: place,
            },
            kind: self.kind_of(peer, configured).to_owned(),
            connection_state: state_name(peer.state).to_owned(),
            tx_bytes: stats.iter().map(|stats| stats.tx_bytes).sum(),
            rx_bytes: stats.iter().map(|stats| stats.rx_bytes).sum(),
            discovered,
            discovered_seconds: discovered,
            last_connected,
            last_connected_seconds: last_connected,
            pubkey: key,
            address: peer.address.map(|address| address.to_string()),
            suite: peer.suite.map(|suite| suite.to_string()),
            lanes: peer.lanes,
            lanes_active: peer.lanes_active,
            rtt_micros: peer
                .rtt
                .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            loss_permille: peer.loss_permille,
            name: peer
                .key
                .and_then(|key| self.config.peering.names.get(&key).cloned()),
            handshakes: peer.handshakes,
            refusal: peer.refusal.map(|refusal| refusal.to_string()),
            error: self.error_of(peer),
            duplicate: peer.duplicate.map(|duplicate| DuplicateKey {
                own: duplicate.own,
                places: duplicate.endpoints.map(|place| place.to_string()).to_vec(),
            }),
        }
    }

    /// Why there is no link to a peer: the last refusal, or why its name leads nowhere.
    fn error_of(&self, peer: &PeerStatus) -> Option<String> {
        let refusal = peer.refusal.map(|refusal| refusal.to_string());
        let entries = peer.configured.iter();
        let mut entries = entries.filter_map(|id| self.configured.get(&id.0));
        refusal.or_else(|| entries.find_map(|configured| configured.error.clone()))
    }

    fn rpc_add_peer(&mut self, now: Nanos, params: &str) -> Outcome {
        let params: EndpointParams = parse_params(params)?;
        let bad = |e: InvalidPeer| Error::new(code::BAD_ENDPOINT, e.to_string());
        let url: PeerUrl = params.endpoint.parse().map_err(bad)?;
        url.check_scope().map_err(bad)?;
        let same = |other: &PeerUrl| other.is_at(&url);
        if self
            .configured
            .values()
            .any(|configured| same(&configured.url))
        {
            return Err(Error::new(
                code::PEER_EXISTS,
                format!("{url} is a peer already"),
            ));
        }
        let mut file = self.stored_peers();
        file.peers.push(url.clone());
        self.persist(PEERS_FILE, &file)?;
        self.add_peer(now, url, true);
        value(true)
    }

    fn rpc_drain(&mut self, now: Nanos, params: &str) -> Outcome {
        let DrainParams { on } = parse_params(params)?;
        if self.routing.is_none() {
            let message = "this node has no dynamic routing ([routing] enabled = false), so its \
                           neighbours' routes are not its to change";
            return Err(Error::new(code::NOT_ROUTING, message));
        }
        self.persist(DRAIN_FILE, &DrainFile { drained: on })?;
        self.set_drained(now, on);
        value(true)
    }

    fn rpc_delete_peer(&mut self, now: Nanos, params: &str) -> Outcome {
        let params: EndpointParams = parse_params(params)?;
        let bad = |e: InvalidPeer| Error::new(code::BAD_ENDPOINT_DELETE, e.to_string());
        let url: PeerUrl = params.endpoint.parse().map_err(bad)?;
        let same = |other: &PeerUrl| other.is_at(&url);
        // One that was given with different keys is there more than once.
        let found = self.configured.iter();
        let found = found.filter(|(_, configured)| same(&configured.url));
        let mut found: Vec<u32> = found.map(|(id, _)| *id).collect();
        // A list shows where a peer is, which may not be what it was added as.
        let shown_there = url.endpoint().and_then(|endpoint| {
            let mut peers = self.overlay.peers();
            peers.find(|peer| peer.endpoint == endpoint)
        });
        if let Some(peer) = &shown_there
            && found.is_empty()
        {
            found.extend(peer.configured.iter().map(|id| id.0));
        }
        if found.is_empty() {
            let message = match shown_there {
                Some(_) => format!(
                    "{url} has connected from its side; remove this node there, or deny its key"
                ),
                None => format!("{url} is not a configured peer"),
            };
            return Err(Error::new(code::PEER_NOT_FOUND, message));
        }
        let mut file = self.stored_peers();
        let gone = |url: &PeerUrl| {
            let mut gone = found.iter().filter_map(|id| self.configured.get(id));
            gone.any(|configured| configured.url.is_at(url))
        };
        file.peers.retain(|other| !gone(other));
        self.persist(PEERS_FILE, &file)?;
        for id in found {
            self.remove_peer(now, id);
        }
        value(true)
    }

    fn stored_peers(&self) -> PeersFile {
        let stored = self
            .configured
            .values()
            .filter(|configured| configured.stored);
        PeersFile {
            peers: stored.map(|configured| configured.url.clone()).collect(),
        }
    }

    fn routes(&self) -> Vec<RouteRow> {
        let route = |route: &hyphae_routing::SelectedRoute| RouteRow {
            prefix: route.prefix,
            next_hops: route.next_hops.iter().map(|hop| hop.key).collect(),
            metric: route.metric,
            seqno: route.seqno,
            origin: route.origin,
        };
        self.rib.routes().map(route).collect()
    }

    /// Routes that could be used and are not: what neighbours offer, and static routes whose next hop
    /// is a peer that is up.
    fn fallback_routes(&self) -> Vec<RouteRow> {
        let entry = |prefix: Prefix, key: PublicKey, metric, seqno, origin| RouteRow {
            prefix,
            next_hops: vec![key],
            metric,
            seqno,
            origin,
        };
        let speaker = self.routing.as_ref().map(|routing| &routing.speaker);
        let offered = speaker.into_iter().flat_map(|speaker| {
            speaker
                .fallbacks()
                .filter_map(move |(prefix, candidate, metric)| {
                    let key = speaker.neighbour(candidate.link)?;
                    let (seqno, origin) = (candidate.serial.seqno(), Origin::Dynamic);
                    let usable = metric < hyphae_wire::babel::INFINITY;
                    usable.then(|| entry(prefix, key, metric, seqno, origin))
                })
        });
        let fixed = self.rib.static_routes().filter_map(|route| {
            let key = match route.via {
                Via::Peer(key) => key,
                Via::Address(address) => self.rib.neighbour(address)?,
            };
            let used = self
                .rib
                .route(route.prefix)
                .is_some_and(|used| used.origin == Origin::Static && used.next_hops[0].key == key);
            (self.rib.is_up(&key) && !used)
                .then(|| entry(route.prefix, key, route.metric, 0, Origin::Static))
        });
        offered.chain(fixed).collect()
    }

    fn queried(&self, now: Nanos) -> Vec<QueriedSubnet> {
        let entry = |(address, until): (OverlayAddress, Nanos)| QueriedSubnet {
            subnet: address.subnet().to_string(),
            expiration: until.since(now).as_secs().to_string(),
            expiration_seconds: until.since(now).as_secs(),
        };
        let speaker = self.routing.as_ref().map(|routing| &routing.speaker);
        let asked = speaker.into_iter().flat_map(|speaker| speaker.queries());
        let asked = asked.map(|query| (query.prefix.address(), query.expires));
        self.overlay.searching().chain(asked).map(entry).collect()
    }

    fn packet_statistics(&self) -> PacketStatistics {
        let mut statistics = PacketStatistics::default();
        let workers = self.attachment.as_ref().map(|a| a.stats());
        let workers = workers.unwrap_or_default();
        for peer in self.overlay.peers() {
            let (Some(number), Some(address)) = (peer.peer, peer.address) else {
                continue;
            };
            let stats: Vec<_> = workers.iter().map(|worker| worker.peer(number)).collect();
            let entry = |packet_count, byte_count| PacketStat {
                ip: address.to_string(),
                packet_count,
                byte_count,
            };
            statistics.by_source.push(entry(
                stats.iter().map(|s| s.rx_packets).sum(),
                stats.iter().map(|s| s.rx_bytes).sum(),
            ));
            statistics.by_destination.push(entry(
                stats.iter().map(|s| s.tx_packets).sum(),
                stats.iter().map(|s| s.tx_bytes).sum(),
            ));
        }
        statistics
    }

    fn static_routes(&self) -> Vec<StaticRoute> {
        let in_use = |prefix: Prefix| {
            let route = self.rib.route(prefix);
            route.is_some_and(|route| route.origin == Origin::Static)
        };
        let route = |route: hyphae_routing::StaticRoute| StaticRoute {
            prefix: route.prefix.to_string(),
            via: via_text(route.via),
            reachable: in_use(route.prefix),
        };
        self.rib.static_routes().map(route).collect()
    }

    fn rpc_add_route(&mut self, params: &str) -> Outcome {
        let params: RouteParams = parse_params(params)?;
        let bad = |message: String| Error::new(code::BAD_SUBNET, message);
        let prefix = params
            .prefix
            .parse::<Prefix>()
            .map_err(|e| bad(e.to_string()))?;
        let via = params.via.ok_or_else(|| bad("via is missing".to_owned()))?;
        let spec = RouteSpec {
            prefix,
            via: parse_via(&via).map_err(|e| bad(e.to_string()))?,
        };
        // Held against the rules before it is written, written before it is used.
        let mut trial = hyphae_routing::Rib::new(self.identity.public_key().address());
        trial
            .add_static(spec.route())
            .map_err(|e| bad(e.to_string()))?;
        let mut file = self.stored_routes()?;
        if !file.routes.contains(&spec) {
            file.routes.push(spec);
        }
        self.persist(ROUTES_FILE, &file)?;
        let changed = self
            .rib
            .add_static(spec.route())
            .map_err(|e| bad(e.to_string()))?;
        value(changed)
    }

    fn rpc_remove_route(&mut self, params: &str) -> Outcome {
        let params: RouteParams = parse_params(params)?;
        let bad = |message: String| Error::new(code::BAD_SUBNET, message);
        let prefix = params
            .prefix
            .parse::<Prefix>()
            .map_err(|e| bad(e.to_string()))?;
        let via = params
            .via
            .as_deref()
            .map(parse_via)
            .transpose()
            .map_err(|e| bad(e.to_string()))?;
        let matches = |p: Prefix, v: Via| p == prefix && via.is_none_or(|via| via == v);
        if !self
            .rib
            .static_routes()
            .any(|route| matches(route.prefix, route.via))
        {
            let message = format!("no static route for {prefix}");
            return Err(Error::new(code::ROUTE_NOT_FOUND, message));
        }
        let mut file = self.stored_routes()?;
        file.routes
            .retain(|route| !matches(route.prefix, route.via));
        self.persist(ROUTES_FILE, &file)?;
        value(self.rib.remove_static(prefix, via))
    }

    fn stored_routes(&self) -> Result<RoutesFile, Error> {
        files::read_toml(&self.state_directory, ROUTES_FILE)
            .map_err(|error| Error::new(code::PERSIST_FAILED, error.to_string()))
    }

    fn persist<T: Serialize>(&self, file: &str, content: &T) -> Result<(), Error> {
        files::write_toml(&self.state_directory, file, content).map_err(|error| {
            tracing::error!(%error, "state file was not written; the change was not made");
            Error::new(
                code::PERSIST_FAILED,
                format!("not stored, so not changed: {error}"),
            )
        })
    }

    fn status(&self, now: Nanos) -> Status {
        let (mut counters, mut drops) = (BTreeMap::new(), BTreeMap::new());
        let stats = self
            .attachment
            .as_ref()
            .map(|a| a.stats())
            .unwrap_or_default();
        for all in stats.iter().map(hyphae_shm::StatsReader::counters) {
            for counter in Counter::ALL {
                *counters.entry(counter.name().to_owned()).or_default() +=
                    all[counter_at(*counter)];
            }
            for reason in DropReason::ALL {
                *drops.entry(reason.name().to_owned()).or_default() += all[drop_at(*reason)];
            }
        }
        counters.retain(|_, total| *total != 0);
        drops.retain(|_, total| *total != 0);
        let dataplane = self.attachment.as_ref().map(|attachment| {
            let hello = &attachment.hello;
            let workers = hello
                .ports
                .iter()
                .zip(&hello.cores)
                .take(hello.workers.get().into());
            Dataplane {
                pid: hello.pid.get(),
                uptime: now.since(Nanos(hello.started.get())).as_secs(),
                uptime_seconds: now.since(Nanos(hello.started.get())).as_secs(),
                driver: hello.driver().to_owned(),
                driver_reason: hello.driver_reason().to_owned(),
                workers: workers
                    .map(|(port, core)| Worker {
                        port: port.get(),
                        core: Some(core.get()).filter(|core| *core != u16::MAX),
                    })
                    .collect(),
                tun: hello.tun_name().map(str::to_owned),
                generation: hello.generation.get(),
                socket_receive_bytes: hello.socket_receive_bytes.get(),
                aes_hardware: hello.aes_hardware != 0,
            }
        });
        let suites = self
            .config
            .suites(dataplane.as_ref().is_some_and(|d| d.aes_hardware));
        let offered = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            info: self.info(),
            pid: std::process::id(),
            uptime: now.since(self.started).as_secs(),
            uptime_seconds: now.since(self.started).as_secs(),
            dataplane,
            host_problem: self.host_routes.as_ref().and_then(|_| self.host.sentence()),
            mtu: self.config.mtu,
            suites: offered
                .iter()
                .filter(|suite| suites.contains(**suite))
                .map(ToString::to_string)
                .collect(),
            peers_up: self
                .overlay
                .peers()
                .filter(|peer| peer.state == PeerState::Up)
                .count(),
            peers: self.overlay.peers().count(),
            sessions: self.overlay.sessions().count(),
            routes: self.rib.routes().count(),
            drained: self.is_drained(),
            controlplane_restarts: self.totals.controlplane_restarts,
            dataplane_restarts: self.totals.dataplane_restarts,
            counters,
            drops,
        }
    }
}

/// A [`Route`], not yet text.
struct RouteRow {
    prefix: Prefix,
    next_hops: Vec<PublicKey>,
    metric: u16,
    seqno: u16,
    origin: Origin,
}

impl RouteRow {
    fn shown(self) -> Route {
        let next_hops: Vec<_> = self.next_hops.iter().map(ToString::to_string).collect();
        let origin = match self.origin {
            Origin::Connected => "connected",
            Origin::Static => "static",
            Origin::Dynamic => "dynamic",
        };
        Route {
            subnet: self.prefix.to_string(),
            next_hop: next_hops.first().cloned().unwrap_or_default(),
            next_hops,
            metric: self.metric,
            seqno: self.seqno,
            origin: origin.to_owned(),
        }
    }
}

/// Address and deadline of a ping.
pub(crate) fn ping_params(params: &str) -> Result<(OverlayAddress, Duration), Error> {
    let params: PingParams = parse_params(params)?;
    let timeout = Duration::from_millis(params.timeout_ms).min(PING_TIMEOUT_MAX);
    Ok((overlay_address(&params.address)?, timeout))
}

/// Address, hops and deadline of a trace.
pub(crate) fn trace_params(params: &str) -> Result<(OverlayAddress, u8, Duration), Error> {
    let params: TraceParams = parse_params(params)?;
    if params.hop_limit == 0 {
        let message = "hopLimit is 0; it counts from 1, the next node";
        return Err(Error::new(code::INVALID_PARAMS, message));
    }
    let timeout = Duration::from_millis(params.timeout_ms).min(PING_TIMEOUT_MAX);
    Ok((overlay_address(&params.address)?, params.hop_limit, timeout))
}

/// An answer to a trace.
pub(crate) fn trace_hop(code: ReportCode, key: &PublicKey, rtt: Duration) -> Outcome {
    value(TraceHop {
        outcome: match code {
            ReportCode::Reached => TraceOutcome::Reached,
            ReportCode::HopLimit => TraceOutcome::HopLimit,
            ReportCode::NoRoute => TraceOutcome::NoRoute,
            ReportCode::TooBig => TraceOutcome::TooBig,
        },
        address: key.address().to_string(),
        pubkey: key.to_string(),
        rtt_micros: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
    })
}

pub(crate) fn overlay_address(text: &str) -> Result<OverlayAddress, Error> {
    let bad = || {
        Error::new(
            code::BAD_IP,
            format!("'{text}' is not an overlay address (400::/7)"),
        )
    };
    let ip: Ipv6Addr = text.parse().map_err(|_| bad())?;
    Some(OverlayAddress::from(ip))
        .filter(|address| address.is_overlay())
        .ok_or_else(bad)
}

/// A durable change that was not made.
pub(super) fn uncommitted(error: CommitError) -> Error {
    let code = match error {
        CommitError::Write(_) => code::PERSIST_FAILED,
        CommitError::Task(_) => code::INTERNAL,
    };
    Error::new(code, error.to_string())
}

pub(crate) fn value(result: impl Serialize) -> Outcome {
    serde_json::value::to_raw_value(&result)
        .map_err(|error| Error::new(code::INTERNAL, error.to_string()))
}
