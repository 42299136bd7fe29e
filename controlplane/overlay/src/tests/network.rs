//! A seeded network of nodes: each an engine and its workers. It loses, repeats, delays and so
//! reorders frames, and checks after every step that connected ends can receive from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SecretKey, SessionIndex, WorkerId};

use hyphae_wire::report::FRAME_MIN_MAX;

use super::worker::{Body, Frame, OwnedPunt, Routed, Worker};
use crate::{Config, ConfiguredPeer, Ephemerals, Event, Overlay, PeerConfig};
use hyphae_random::Rng;

pub(super) const BASE_PORT: u16 = 9670;
/// Port that streams are dialled from.
const DIALLED_FROM: u16 = 40_000;

pub(super) struct Node {
    pub(super) config: Config,
    pub(super) overlay: Option<Overlay>,
    pub(super) workers: Vec<Worker>,
    pub(super) ip: Ipv4Addr,
    /// More addresses. A frame leaves from the one in the network of its destination (its first
    /// two bytes), as from a host with an interface there, else from `ip`.
    pub(super) aliases: Vec<Ipv4Addr>,
    pub(super) events: Vec<Event>,
    pub(super) peers_up: BTreeMap<PublicKey, u32>,
    /// Static routes: /64 to the key of the next hop.
    pub(super) routes: BTreeMap<u64, PublicKey>,
    /// Handshake frames sent.
    pub(super) raw_sent: u64,
    pub(super) routed_handshakes: u64,
    generation: u64,
}

pub(super) struct Network {
    pub(super) now: Nanos,
    pub(super) nodes: Vec<Node>,
    pub(super) rng: Rng,
    queue: BTreeMap<(Nanos, u64), (Endpoint, Endpoint, Frame)>,
    sequence: u64,
    pub(super) loss_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) delay_max: Duration,
    /// Frames for addresses 10.n take that much longer.
    pub(super) slow_network: Option<(u8, Duration)>,
    /// Directed pairs of addresses between which nothing passes.
    pub(super) blocked: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Bytes that a datagram may have between two nodes, if not any number; in both directions.
    pub(super) carries: BTreeMap<(usize, usize), usize>,
    /// The same, of datagrams only.
    pub(super) datagrams_blocked: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Raw frames as sent, for replays.
    pub(super) captured: Vec<(Endpoint, Endpoint, Vec<u8>)>,
    /// Pairs of nodes that must be able to receive from each other at any time.
    pub(super) checked: Vec<(usize, usize)>,
}

pub(super) fn secret(seed: u8) -> SecretKey {
    SecretKey::from_bytes(&[seed; 32]).unwrap()
}

/// A configuration with the usual times.
pub(super) fn config(seed: u8, workers: u16) -> Config {
    let ports = (0..workers).map(|worker| BASE_PORT + worker).collect();
    Config {
        ephemerals: Ephemerals::Seeded,
        ..Config::new(secret(seed), ports)
    }
}

impl Node {
    fn has(&self, ip: Ipv4Addr) -> bool {
        self.ip == ip || self.aliases.contains(&ip)
    }
}

fn same_network(ip: Ipv4Addr, to: Endpoint) -> bool {
    let prefix = |ip: &Ipv4Addr| [ip.octets()[0], ip.octets()[1]];
    matches!(to.to_socket_addr(), SocketAddr::V4(v4) if prefix(v4.ip()) == prefix(&ip))
}

impl Network {
    /// One node per configuration; node `n` has address 10.0.0.(n + 1).
    pub(super) fn new(seed: u64, configs: Vec<Config>) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut network = Self {
            now: Nanos(1_000_000_000_000),
            nodes: Vec::new(),
            rng: Rng::new(bytes),
            queue: BTreeMap::new(),
            sequence: 0,
            loss_percent: 0,
            duplicate_percent: 0,
            delay_max: Duration::from_millis(20),
            slow_network: None,
            blocked: BTreeSet::new(),
            carries: BTreeMap::new(),
            datagrams_blocked: BTreeSet::new(),
            captured: Vec::new(),
            checked: Vec::new(),
        };
        for config in configs {
            let host = u8::try_from(network.nodes.len() + 1).unwrap();
            network.nodes.push(Node {
                config,
                overlay: None,
                workers: Vec::new(),
                ip: Ipv4Addr::new(10, 0, 0, host),
                aliases: Vec::new(),
                events: Vec::new(),
                peers_up: BTreeMap::new(),
                routes: BTreeMap::new(),
                raw_sent: 0,
                routed_handshakes: 0,
                generation: 0,
            });
            let node = network.nodes.len() - 1;
            network.restart(node);
        }
        network
    }

    /// Restarts both planes of a node.
    pub(super) fn restart(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.workers = (0u16..)
            .zip(&n.config.ports)
            .map(|(id, _)| Worker::new(id))
            .collect();
        self.restart_control_plane(node);
    }

    /// A new engine attaches to the workers as they are.
    pub(super) fn restart_control_plane(&mut self, node: usize) {
        self.start_control_plane(node, &[]);
    }

    /// The same, with configured peers known from the start.
    pub(super) fn start_control_plane(&mut self, node: usize, peers: &[PeerConfig]) {
        let seed = self.rng.array();
        let n = &mut self.nodes[node];
        n.generation += 1;
        n.peers_up.clear();
        let mut overlay = Overlay::new(n.config.clone(), seed);
        for peer in peers {
            overlay.add_peer(self.now, peer.clone());
        }
        overlay.begin_attach(self.now, n.generation);
        n.overlay = Some(overlay);
        self.drain(node);
    }

    pub(super) fn key(&self, node: usize) -> PublicKey {
        self.nodes[node].config.identity.public_key()
    }

    pub(super) fn address(&self, node: usize) -> OverlayAddress {
        self.key(node).address()
    }

    pub(super) fn endpoint(&self, node: usize) -> Endpoint {
        SocketAddr::from((self.nodes[node].ip, BASE_PORT)).into()
    }

    pub(super) fn peer_config(&self, id: u32, to: usize) -> PeerConfig {
        let addresses = vec![self.endpoint(to)];
        PeerConfig {
            id: ConfiguredPeer(id),
            addresses,
            key: None,
        }
    }

    /// `from` is configured to connect to `to`.
    pub(super) fn connect(&mut self, from: usize, to: usize) {
        let peer = self.peer_config(u32::try_from(to).unwrap(), to);
        self.with(from, |overlay, now| overlay.add_peer(now, peer));
    }

    /// Calls into an engine and executes its effects.
    pub(super) fn with<T>(&mut self, node: usize, f: impl FnOnce(&mut Overlay, Nanos) -> T) -> T {
        let result = f(self.nodes[node].overlay.as_mut().unwrap(), self.now);
        self.drain(node);
        result
    }

    pub(super) fn overlay(&self, node: usize) -> &Overlay {
        self.nodes[node].overlay.as_ref().unwrap()
    }

    pub(super) fn is_up(&self, a: usize, b: usize) -> bool {
        self.overlay(a).is_up(self.key(b))
    }

    pub(super) fn block(&mut self, a: usize, b: usize, blocked: bool) {
        let (a, b) = (self.nodes[a].ip, self.nodes[b].ip);
        for pair in [(a, b), (b, a)] {
            if blocked {
                self.blocked.insert(pair);
            } else {
                self.blocked.remove(&pair);
            }
        }
    }

    pub(super) fn block_datagrams(&mut self, a: usize, b: usize, blocked: bool) {
        let (a, b) = (self.nodes[a].ip, self.nodes[b].ip);
        for pair in [(a, b), (b, a)] {
            if blocked {
                self.datagrams_blocked.insert(pair);
            } else {
                self.datagrams_blocked.remove(&pair);
            }
        }
    }

    /// A packet of the host of `from` for `to`; true when it left.
    pub(super) fn packet(&mut self, from: usize, worker: usize, to: usize) -> bool {
        let (now, address) = (self.now, self.address(to));
        let left = self.nodes[from].workers[worker].host_packet(now, address);
        self.drain(from);
        left
    }

    /// A packet every 20 ms, with the counters read four times per second, as a daemon does.
    pub(super) fn carry(&mut self, from: usize, to: usize, time: Duration) {
        let end = self.now + time;
        let mut next_reading = self.now;
        while self.now < end {
            let peer = self.nodes[from].peers_up.get(&self.key(to)).copied();
            if let Some(peer) = peer {
                for worker in 0..self.nodes[from].workers.len() {
                    let sending = &self.nodes[from].workers[worker].link_sending;
                    let lane = sending.range((peer, 0)..=(peer, u16::MAX)).next();
                    if let Some(index) = lane.map(|(_, index)| *index) {
                        let (now, body) = (self.now, Body::Control(vec![0; 8]));
                        self.nodes[from].workers[worker].send_link(now, index, body);
                        break;
                    }
                }
                self.drain(from);
            }
            if self.now >= next_reading {
                next_reading = self.now + Duration::from_millis(250);
                self.read_counters(from);
            }
            self.run(Duration::from_millis(20));
        }
    }

    /// Hands the workers' counters to the engine; true while some peer carries traffic.
    pub(super) fn read_counters(&mut self, node: usize) -> bool {
        let peers: Vec<_> = self.overlay(node).peers_up().collect();
        let mut busy = false;
        for peer in peers {
            let mut reading = crate::PeerTraffic::default();
            for worker in &self.nodes[node].workers {
                let (sent, heard) = worker.traffic.get(&peer).copied().unwrap_or_default();
                reading.sent += sent;
                reading.heard = reading.heard.max(heard);
            }
            busy |= self.with(node, |overlay, now| {
                overlay.note_traffic(now, peer, reading)
            });
        }
        busy
    }

    pub(super) fn delivered(&self, node: usize) -> u64 {
        self.nodes[node].workers.iter().map(|w| w.delivered).sum()
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Runs until the condition holds; panics after `limit`.
    pub(super) fn wait(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        assert!(self.run_until(end, done), "{what}: not within {limit:?}");
    }

    fn run_until(&mut self, end: Nanos, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let frame = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timeout = (0..self.nodes.len()).filter_map(|node| {
                self.nodes[node]
                    .overlay
                    .as_ref()?
                    .poll_timeout()
                    .map(|at| (at, node))
            });
            let timeout = timeout.min();
            let next = frame.into_iter().chain(timeout.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(next);
            if frame == Some(next) {
                let (_, (from, to, frame)) = self.queue.pop_first().unwrap();
                self.arrive(from, to, frame);
            } else if let Some((_, node)) = timeout {
                self.with(node, |overlay, now| overlay.handle_timeout(now));
                let again = self.overlay(node).poll_timeout();
                assert!(
                    again.is_none_or(|at| at > self.now),
                    "a timeout that stays due: {:?}",
                    self.overlay(node).timers.first()
                );
            }
            self.check();
        }
    }

    /// Puts a frame on the wire.
    pub(super) fn transmit(&mut self, from: Endpoint, to: Endpoint, frame: &Frame) {
        if let Frame::Raw(bytes) = frame {
            self.captured.push((from, to, bytes.clone()));
        }
        let mut copies = 1;
        if self.rng.below(100) < self.duplicate_percent {
            copies += 1;
        }
        for _ in 0..copies {
            if self.rng.below(100) < self.loss_percent {
                continue;
            }
            let span = u64::try_from(self.delay_max.as_nanos()).unwrap();
            let slow = self
                .slow_network
                .filter(|(network, _)| to.ip[13] == *network);
            let delay = Duration::from_nanos(span / 2 + self.rng.below(span / 2))
                + slow.map_or(Duration::ZERO, |(_, delay)| delay);
            self.sequence += 1;
            self.queue
                .insert((self.now + delay, self.sequence), (from, to, frame.clone()));
        }
    }

    fn arrive(&mut self, from: Endpoint, to: Endpoint, frame: Frame) {
        let ip = |endpoint: Endpoint| match endpoint.to_socket_addr() {
            SocketAddr::V4(v4) => *v4.ip(),
            // Of unauthenticated sources: no node has this address.
            SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        if self.blocked.contains(&(ip(from), ip(to))) {
            return;
        }
        let Some(node) = self.nodes.iter().position(|n| n.has(ip(to))) else {
            return;
        };
        let sender = self.nodes.iter().position(|n| n.ip == ip(from));
        let pair = sender.map(|sender| (node.min(sender), node.max(sender)));
        let most = pair.and_then(|pair| self.carries.get(&pair));
        if most.is_some_and(|most| frame.len() > *most) {
            return;
        }
        let worker = match &frame {
            _ if !to.is_stream() => {
                if self.datagrams_blocked.contains(&(ip(from), ip(to))) {
                    return;
                }
                usize::from(to.port.get().wrapping_sub(BASE_PORT))
            }
            // What the dataplane reads from a stream goes to the worker that owns it.
            Frame::Raw(_) => 0,
            Frame::Link { receive, .. } => SessionIndex(*receive).worker().as_usize(),
        };
        let now = self.now;
        let n = &mut self.nodes[node];
        if worker >= n.workers.len() {
            return;
        }
        match frame {
            Frame::Raw(bytes) => {
                n.workers[worker].receive_raw(from, &bytes);
            }
            Frame::Link {
                receive,
                key,
                counter,
                body,
            } => {
                let routed =
                    n.workers[worker].receive_link(now, from, (receive, key, counter), body);
                if let Some(routed) = routed {
                    self.route(node, routed);
                }
            }
        }
        self.drain(node);
    }

    /// Delivers at a node or sends on from it.
    fn route(&mut self, node: usize, routed: Routed) {
        let now = self.now;
        let own = self.address(node);
        let n = &mut self.nodes[node];
        if routed.destination.subnet_id() == own.subnet_id() {
            let worker = routed
                .sealed
                .map_or(0, |(index, _)| SessionIndex(index).worker().as_usize());
            if let Some(worker) = n.workers.get_mut(worker) {
                worker.deliver(now, routed);
            }
            return;
        }
        let subnet = routed.destination.subnet_id();
        let direct = n
            .peers_up
            .keys()
            .find(|key| key.address().subnet_id() == subnet);
        let Some(next) = direct.or(n.routes.get(&subnet)).copied() else {
            return;
        };
        let Some(peer) = n.peers_up.get(&next).copied() else {
            return;
        };
        for worker in &mut n.workers {
            let known = worker
                .link_mtus
                .get(&peer)
                .map_or(65_507, |mtu| usize::from(*mtu));
            if Frame::routed_len(&routed) > known.max(usize::from(FRAME_MIN_MAX)) {
                return;
            }
            let lane = worker
                .link_sending
                .range((peer, 0)..=(peer, u16::MAX))
                .next();
            if let Some(index) = lane.map(|(_, index)| *index) {
                worker.send_link(now, index, Body::Routed(routed));
                return;
            }
        }
    }

    /// Moves records between an engine and its workers until nothing is left.
    fn drain(&mut self, node: usize) {
        for _ in 0..10_000 {
            let now = self.now;
            let n = &mut self.nodes[node];
            let mut idle = true;
            if let Some(overlay) = &mut n.overlay {
                while let Some((worker, program)) = overlay.poll_program() {
                    idle = false;
                    n.workers[worker.as_usize()].execute(now, &program);
                }
                while let Some(event) = overlay.poll_event() {
                    idle = false;
                    if let Event::PeerUp { peer, key, .. } = event {
                        assert!(n.peers_up.insert(key, peer).is_none(), "up twice");
                    }
                    if let Event::PeerDown { peer, key, .. } = event {
                        assert_eq!(n.peers_up.remove(&key), Some(peer), "down without up");
                    }
                    if let Event::ResyncFib { .. } = event {
                        overlay.finish_resync(now);
                    }
                    n.events.push(event);
                }
            }
            let mut outs = Vec::new();
            let mut routed = Vec::new();
            let mut punts: Vec<(WorkerId, OwnedPunt)> = Vec::new();
            for worker in &mut n.workers {
                let port = BASE_PORT + worker.id.0;
                for (to, frame) in worker.out.drain(..) {
                    let near = n.aliases.iter().find(|ip| same_network(**ip, to));
                    let from = *near.filter(|_| !same_network(n.ip, to)).unwrap_or(&n.ip);
                    let from = Endpoint::from(SocketAddr::from((from, port)));
                    // Whoever dials has a port that only this connection knows.
                    let from = match (to.is_stream(), to.port.get()) {
                        (false, _) => from,
                        (true, BASE_PORT) => from.with_port(DIALLED_FROM).stream(),
                        (true, _) => from.with_port(BASE_PORT).stream(),
                    };
                    outs.push((from, to, frame));
                }
                routed.append(&mut worker.routed);
                punts.extend(worker.punts.drain(..).map(|punt| (worker.id, punt)));
            }
            n.raw_sent += outs
                .iter()
                .filter(|(_, _, f)| matches!(f, Frame::Raw(_)))
                .count() as u64;
            n.routed_handshakes += routed.iter().filter(|r| r.sealed.is_none()).count() as u64;
            if let Some(overlay) = &mut n.overlay {
                for (worker, punt) in &punts {
                    overlay.handle_punt(now, *worker, &punt.punt());
                }
            }
            idle &= outs.is_empty() && routed.is_empty() && punts.is_empty();
            for (from, to, frame) in outs {
                self.transmit(from, to, &frame);
            }
            for frame in routed {
                self.route(node, frame);
            }
            if idle {
                return;
            }
        }
        panic!("engine and workers exchange records without end");
    }

    /// Every lane that a checked node sends on leads to keys that the other one has.
    fn check(&self) {
        for (a, b) in self.checked.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
            let (from, to) = (&self.nodes[a], &self.nodes[b]);
            let mut lanes = 0;
            for worker in &from.workers {
                for ((peer, lane), index) in &worker.link_sending {
                    if worker.peers.get(peer).map(|(key, _)| *key) != Some(self.key(b)) {
                        continue;
                    }
                    lanes += 1;
                    let install = &worker.links[index].install;
                    let other = SessionIndex(install.send_index.get());
                    let held = to.workers[other.worker().as_usize()].links.get(&other.0);
                    assert!(
                        held.is_some_and(|held| held.install.keys.receive == install.keys.send),
                        "at {:?} node {a} sends to {b} on lane {lane} of epoch {} that {b} has removed",
                        self.now,
                        install.epoch
                    );
                }
            }
            assert!(lanes > 0, "at {:?} node {a} has no lane to {b}", self.now);
        }
    }
}
