//! A light node: the engines of both planes, connected without a shared segment, processes or a TUN device. Load
//! generators run a thousand of them in a few processes.
//!
//! ```text
//! socket ──▶ forwarding engine ── punts, events ──▶ overlay engine ── link-local ──▶ speaker
//! socket ◀── forwarding engine ◀── programs ─────── overlay engine ◀── packets ───── speaker
//!                             ◀── FIB ──────────── RIB ◀────────────── routes ─────── speaker
//! ```

#![forbid(unsafe_code)]

mod verdicts;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{Engine, EngineConfig, HostVerdict, Verdict};
use hyphae_overlay::{Config, ConfiguredPeer, Event, Overlay, PeerConfig, PeerTraffic};
use hyphae_routing::Rib;
use hyphae_routing::babel::{self, Action, Filter, Speaker, Xeddsa};
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind};

use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SecretKey, WorkerId};

/// Minimum interval of expiry and counter updates.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// Datagrams received per call.
const RECEIVE_BUDGET: usize = 64;
/// Bytes of the largest datagram received or built.
const DATAGRAM_MAX: usize = 65_536;
/// The only worker.
pub const WORKER: WorkerId = WorkerId(0);

/// Configuration of a light node.
pub struct Spec {
    /// Its underlay address; port 0 for any port.
    pub at: SocketAddr,
    /// Underlay address of the relay that it connects to.
    pub relay: SocketAddr,
    /// Key of the relay.
    pub relay_key: PublicKey,
    /// Whether it accepts routes. An idle node needs none, and the signature checks of all nodes of a swarm would
    /// dominate the measurement.
    pub learns: bool,
    /// Rekey interval; `None` for the default.
    pub rekey_after: Option<Duration>,
}

/// Buffers shared by all nodes of a swarm.
pub struct Scratch {
    /// Received datagram.
    pub incoming: Box<[u8]>,
    /// Built frames.
    pub outgoing: Box<[u8]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            incoming: vec![0; DATAGRAM_MAX].into_boxed_slice(),
            outgoing: vec![0; DATAGRAM_MAX].into_boxed_slice(),
        }
    }
}

/// A light node.
pub struct Node {
    /// Its only socket.
    pub socket: UdpSocket,
    /// Its dataplane.
    pub engine: Engine,
    /// Its control plane: links and sessions.
    pub overlay: Overlay,
    /// Its control plane: routes.
    pub speaker: Speaker,
    rib: Rib,
    verdicts: Vec<Verdict>,
    traffic: BTreeMap<u32, PeerTraffic>,
    housekeeping: Nanos,
    began: Nanos,
    /// Time to the first link with the relay.
    pub joined: Option<Duration>,
    /// Packets for its host.
    pub delivered: Vec<Vec<u8>>,
    /// Answers to [`Self::ping`].
    pub echoes: u64,
    /// Time of the first answer.
    pub answered: Option<Nanos>,
}

impl Node {
    /// A node that starts to connect; call [`Self::drain`] next.
    ///
    /// # Errors
    /// When its address is in use, or without randomness.
    pub fn new(now: Nanos, spec: &Spec) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(spec.at).with_context(|| format!("UDP {}", spec.at))?;
        socket.set_nonblocking(true)?;
        let identity = SecretKey::generate().map_err(|error| anyhow!("no randomness: {error}"))?;
        let own = identity.public_key().address();
        let mut config = Config::new(identity.clone(), vec![socket.local_addr()?.port()]);
        config.peers_max = 8;
        config.sessions_max = 64;
        config.session_slots = 256;
        config.rekey_after = spec.rekey_after.unwrap_or(config.rekey_after);
        let mut seed = [0; 32];
        rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        // Seconds since 1970 fit until 2106.
        let mut routing = babel::Config::new(identity, u32::try_from(unix).unwrap_or(u32::MAX));
        if !spec.learns {
            routing.import = Filter {
                rules: Vec::new(),
                otherwise: Action::Refuse,
            };
        }
        let spread = u64::from_le_bytes(own.0[8..].try_into()?);
        let mut node = Self {
            socket,
            engine: Engine::new(EngineConfig {
                worker: WORKER,
                workers: 1,
                has_tun: true,
            }),
            overlay: Overlay::new(config, seed),
            speaker: Speaker::new(now, routing, spread, Box::new(Xeddsa)),
            rib: Rib::new(own),
            verdicts: Vec::new(),
            traffic: BTreeMap::new(),
            housekeeping: now,
            began: now,
            joined: None,
            delivered: Vec::new(),
            echoes: 0,
            answered: None,
        };
        let peer = PeerConfig {
            id: ConfiguredPeer(0),
            addresses: vec![Endpoint::from(spec.relay)],
            key: Some(spec.relay_key),
        };
        node.overlay.add_peer(now, peer);
        node.overlay.begin_attach(now, 1);
        Ok(node)
    }

    /// This node's overlay address.
    pub fn address(&self) -> OverlayAddress {
        self.overlay.address()
    }

    /// Whether its link with a node is up.
    pub fn is_up(&self, key: PublicKey) -> bool {
        self.overlay.is_up(key)
    }

    /// Whether it has a route to an address.
    pub fn reaches(&self, address: OverlayAddress) -> bool {
        self.rib.lookup(address).is_some()
    }

    /// Deadline for the next call of [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Nanos {
        let engines = [self.overlay.poll_timeout(), self.speaker.poll_timeout()];
        engines.into_iter().flatten().min().unwrap_or(Nanos::NEVER)
    }

    /// Receives at most [`RECEIVE_BUDGET`] datagrams.
    pub fn receive(&mut self, now: Nanos, scratch: &mut Scratch) {
        for _ in 0..RECEIVE_BUDGET {
            // EAGAIN, or an ICMP error of an earlier datagram, after which the next call continues.
            let Ok((len, from)) = self.socket.recv_from(&mut scratch.incoming) else {
                break;
            };
            let from = Endpoint::from(from);
            let frame = &mut scratch.incoming[..len];
            self.take_frame(now, &from, frame, &mut scratch.outgoing);
        }
        self.drain(now, scratch);
    }

    fn take_frame(&mut self, now: Nanos, from: &Endpoint, frame: &mut [u8], out: &mut [u8]) {
        let mut verdicts = std::mem::take(&mut self.verdicts);
        let len = frame.len();
        self.engine.receive(now, from, frame, len, &mut verdicts);
        for verdict in verdicts.drain(..) {
            self.execute(now, from, &verdict, frame, out);
        }
        self.verdicts = verdicts;
    }

    /// Executes the timers that are due.
    pub fn handle_timeout(&mut self, now: Nanos, scratch: &mut Scratch) {
        self.overlay.handle_timeout(now);
        self.speaker.handle_timeout(now);
        if now >= self.housekeeping {
            self.housekeeping = now + HOUSEKEEPING;
            self.engine.handle_timeout(now);
            self.read_traffic(now);
        }
        self.drain(now, scratch);
    }

    fn read_traffic(&mut self, now: Nanos) {
        let Self {
            engine, traffic, ..
        } = self;
        engine.drain_traffic(|peer, passed| {
            let total = traffic.entry(peer).or_default();
            total.sent += passed.tx_packets;
            if passed.rx_packets > 0 {
                total.heard = now;
            }
        });
        for (peer, total) in &self.traffic {
            self.overlay.note_traffic(now, *peer, *total);
        }
    }

    /// Exchanges effects between the engines until all are drained.
    pub fn drain(&mut self, now: Nanos, scratch: &mut Scratch) {
        loop {
            let mut idle = true;
            while let Some(event) = self.engine.next_event() {
                idle = false;
                hyphae_dataplane::punts::of_event(&event, |punt| {
                    self.overlay.handle_punt(now, WORKER, punt);
                });
            }
            while let Some(transmit) = self.speaker.poll_transmit() {
                idle = false;
                // Fails if the link is down, which is reported next.
                self.overlay.send_routing(transmit.link, &transmit.packet);
            }
            while let Some(change) = self.speaker.poll_route() {
                self.rib.set_dynamic(change.prefix, change.route);
            }
            while self.speaker.poll_refusal().is_some() {}
            while let Some((_, program)) = self.overlay.poll_program() {
                idle = false;
                self.apply(now, &program.program(), &mut scratch.outgoing);
            }
            while let Some(change) = self.rib.poll_fib() {
                idle = false;
                self.apply(now, &change.program(), &mut scratch.outgoing);
            }
            // Last: an event may cause records that refer to those above.
            if let Some(event) = self.overlay.poll_event() {
                idle = false;
                self.handle_event(now, event);
            }
            while let Some(ready) = self.engine.next_ready() {
                idle = false;
                self.send_packet(now, &ready.header, &ready.packet, &mut scratch.outgoing);
            }
            while self.engine.has_whole() {
                idle = false;
                let Some((len, from)) = self.engine.next_whole(&mut scratch.incoming) else {
                    break;
                };
                let frame = &mut scratch.incoming[..len];
                self.take_frame(now, &from.remote, frame, &mut scratch.outgoing);
            }
            while self.engine.has_report() {
                let train = self.engine.next_report(now, &mut scratch.outgoing);
                self.send_built(train, &mut scratch.outgoing, false);
            }
            while self.engine.next_host_reply().is_some() {}
            if idle {
                break;
            }
        }
    }

    fn handle_event(&mut self, now: Nanos, event: Event) {
        match event {
            Event::PeerUp { peer, key, .. } => {
                self.joined.get_or_insert(now.since(self.began));
                self.traffic.insert(peer, PeerTraffic::default());
                self.rib.peer_up(peer, key);
                self.speaker.link_up(now, peer, key);
            }
            Event::PeerDown { peer, key, .. } => {
                self.traffic.remove(&peer);
                self.rib.peer_down(&key);
                self.speaker.link_down(now, peer);
            }
            Event::ResyncFib { .. } => self.overlay.finish_resync(now),
            Event::EchoReply { .. } => {
                self.echoes += 1;
                self.answered.get_or_insert(now);
            }
            Event::PeerMoved { .. }
            | Event::Duplicate { .. }
            | Event::SessionUp { .. }
            | Event::SessionDown { .. }
            | Event::SessionFailed { .. }
            | Event::Refused { .. }
            | Event::TraceReply { .. }
            | Event::PathMtu { .. } => {}
        }
    }

    /// Passes a punted record to its engine.
    pub fn take_punt(&mut self, now: Nanos, punt: &hyphae_shm::record::Punt<'_>) {
        self.overlay.handle_punt(now, WORKER, punt);
        if let hyphae_shm::record::Punt::LinkLocal(meta, bytes) = punt
            && let Some((ControlKind::Routing, packet)) = control::parse(bytes)
        {
            self.speaker
                .handle_packet(now, meta.peer.get(), now, packet);
        }
    }

    /// Requests an echo of a node, over a session with it.
    pub fn ping(&mut self, now: Nanos, address: OverlayAddress, scratch: &mut Scratch) {
        self.overlay.ping(now, address, 0);
        self.drain(now, scratch);
    }

    /// Sends a packet of the host.
    pub fn send_packet(&mut self, now: Nanos, header: &TunHeader, packet: &[u8], out: &mut [u8]) {
        let HostVerdict::Depart(departure) = self.engine.route_host(now, header, packet) else {
            return;
        };
        let Ok(mut splitter) = Splitter::new(header, packet, departure.mtu()) else {
            return;
        };
        while let Some(train) = self.engine.originate(now, &departure, &mut splitter, out) {
            self.send_built(Ok(train), out, false);
        }
    }
}
