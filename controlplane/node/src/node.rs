//! The node: the engines, their configured peers, and the task that drives them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use hyphae_overlay::{ConfiguredPeer, Event, Overlay, PeerConfig, PeerState};
use hyphae_shm::attach::Hello;
use hyphae_shm::record::{Program, Punt};
use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SecretKey, WorkerId};
use tokio::sync::mpsc;

use crate::attachment::Attachment;
use crate::command::Command;
use crate::event_log::Totals;
use crate::fib_hold::FibHold;
use crate::host_side::HostSide;
use crate::memory::Memory;
use crate::neighbours::Neighbours;
use crate::peers::{Configured, Peers};
use crate::probes::Probes;
use crate::request::TraceAnswer;
use crate::resolve::{Lookups, name};
use crate::routing::Routes;
use crate::services::bus::{BusRequest, BusService};
use crate::services::context::NodeContext;
use crate::services::{Input, NodeService, Session, Turn};
use hyphae_config::Config;
use hyphae_config::endpoint::PeerUrl;
use hyphae_host as host;
use hyphae_host::Resolved;

/// Datagrams of the message bus per turn.
const BUS_SHARE: usize = 180;

/// Properties that a node has from its start to its end.
pub(crate) struct Setup {
    pub(crate) identity: SecretKey,
    pub(crate) socket_directory: PathBuf,
    /// UDP port of each worker.
    pub(crate) ports: Vec<u16>,
    /// Whether the workers' processor has AES instructions.
    pub(crate) aes_hardware: bool,
    pub(crate) started: Nanos,
}

/// Services, and the senders of requests to them, for outputs of jobs.
pub(crate) struct Services {
    pub(crate) bus: BusService,
    pub(crate) bus_requests: mpsc::Sender<BusRequest>,
}

/// Deadlines of periodic work.
pub(crate) struct Upkeep {
    pub(crate) neighbours_at: Nanos,
    pub(crate) counters_at: Nanos,
    pub(crate) memory: Memory,
}

/// The node.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) setup: Setup,
    pub(crate) overlay: Overlay,
    pub(crate) routes: Routes,
    pub(crate) services: Services,
    pub(crate) peers: Peers,
    pub(crate) lookups: Lookups,
    pub(crate) neighbours: Neighbours,
    pub(crate) attachment: Option<Attachment>,
    /// Pings and traces that wait for an answer.
    pub(crate) probes: Probes,
    pub(crate) host: HostSide,
    pub(crate) upkeep: Upkeep,
    pub(crate) totals: Totals,
}

impl Node {
    /// A node without peers and routes, not attached.
    pub(crate) fn new(
        now: Nanos,
        config: Config,
        setup: Setup,
        overlay: Overlay,
        services: Services,
        host: HostSide,
    ) -> Self {
        Self {
            routes: Routes::new(now, &config.routing, &setup.identity),
            host,
            config,
            setup,
            overlay,
            services,
            peers: Peers::default(),
            lookups: Lookups::new(now),
            neighbours: Neighbours::default(),
            attachment: None,
            probes: Probes::default(),
            upkeep: Upkeep {
                neighbours_at: Nanos::NEVER,
                counters_at: now,
                memory: Memory::new(now),
            },
            totals: Totals::default(),
        }
    }

    /// Adds a configured peer; `stored` if it is in peers.toml.
    pub(crate) fn add_peer(&mut self, now: Nanos, url: PeerUrl, stored: bool) {
        let configured = Configured {
            url,
            stored,
            lan: false,
            since: now,
            error: None,
        };
        let id = self.add_entry(now, configured, Vec::new());
        if let Some(configured) = self.peers.configured.get(&id) {
            self.lookups.names.want(now, name(&configured.url));
        }
        self.prefer_links();
    }

    pub(crate) fn add_entry(
        &mut self,
        now: Nanos,
        configured: Configured,
        addresses: Vec<Endpoint>,
    ) -> u32 {
        let key = configured.url.key;
        let id = self.peers.insert(configured);
        let peer = PeerConfig {
            id: ConfiguredPeer(id),
            addresses,
            key,
        };
        self.overlay.add_peer(now, peer);
        id
    }

    /// Removes a configured peer and its link.
    pub(crate) fn remove_peer(&mut self, now: Nanos, id: u32) {
        self.overlay.remove_peer(now, ConfiguredPeer(id));
        self.peers.configured.remove(&id);
    }

    /// Handles the result of a lookup.
    pub(crate) fn resolved(&mut self, now: Nanos, (looked_up, found): Resolved) {
        self.lookups.names.done(&looked_up);
        let ids: Vec<u32> = self
            .peers
            .configured
            .iter()
            .filter(|(_, configured)| !configured.lan && name(&configured.url) == looked_up)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.resolved_for(now, id, found.clone());
        }
    }

    fn resolved_for(&mut self, now: Nanos, id: u32, found: Result<Vec<SocketAddr>, String>) {
        let listen = self.config.listen;
        let reachable = |address: &SocketAddr| match listen.ip() {
            IpAddr::V4(_) => address.is_ipv4(),
            IpAddr::V6(ip) => ip.is_unspecified() || address.is_ipv6(),
        };
        let Some(configured) = self.peers.configured.get_mut(&id) else {
            return;
        };
        let url = &configured.url;
        let found = found.and_then(|found| {
            let usable = found.iter().filter(|address| reachable(address));
            let usable: Vec<_> = usable
                .map(|address| url.transport.endpoint(*address))
                .collect();
            match (usable.is_empty(), listen.ip()) {
                (false, _) => Ok(usable),
                (true, _) if found.is_empty() => Err("the name has no address".to_owned()),
                (true, IpAddr::V4(_)) => {
                    Err(format!("IPv6 only, but this node listens on {listen}"))
                }
                (true, IpAddr::V6(_)) => {
                    Err(format!("IPv4 only, but this node listens on {listen}"))
                }
            }
        });
        let addresses = match found {
            Ok(addresses) => addresses,
            Err(error) => {
                // Logged once, not at every lookup.
                if configured.error.as_ref() != Some(&error) {
                    tracing::warn!(peer = %url, error, "peer has no address to connect to");
                    configured.error = Some(error);
                }
                return;
            }
        };
        configured.error = None;
        self.overlay
            .set_addresses(now, ConfiguredPeer(id), addresses);
    }

    /// Whether a dataplane has the workers and ports that the engines were built for.
    pub(crate) fn fits(&self, hello: &Hello) -> bool {
        let ports = hello.ports.iter().take(hello.workers.get().into());
        ports
            .map(|port| port.get())
            .eq(self.setup.ports.iter().copied())
    }

    /// Starts with a dataplane: adopts its sessions and routes.
    pub(crate) fn attached(&mut self, now: Nanos, attachment: Attachment) {
        let hello = &attachment.hello;
        let generation = hello.generation.get();
        tracing::info!(
            generation,
            driver = hello.driver(),
            pid = hello.pid.get(),
            "attached"
        );
        self.totals.note_dataplane(hello.pid.get());
        if let (Some(name), Some(_)) = (hello.tun_name(), &self.config.tun) {
            let device = host::Device {
                name: name.to_owned(),
                address: self.setup.identity.public_key().address().ip(),
                mtu: self.config.mtu,
                mark: attachment.hello.underlay_mark.get(),
            };
            self.host.maintain(device);
        }
        self.overlay.set_instance(instance_of(hello));
        self.attachment = Some(attachment);
        self.routes.hold = FibHold::Adopting;
        self.overlay.begin_attach(now, generation);
        self.drain();
    }

    /// The dataplane has ended, and every session with it.
    pub(crate) fn detached(&mut self) {
        tracing::warn!("dataplane is gone; waiting for the next one");
        self.attachment = None;
        self.host.routes = None;
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        if now >= self.upkeep.counters_at {
            self.read_counters(now);
        }
        if now >= self.upkeep.neighbours_at {
            self.expire_neighbours(now);
        }
        self.trim(now);
        self.overlay.handle_timeout(now);
        self.services.bus.handle_timeout(now);
        if let Some(routing) = &mut self.routes.protocol {
            routing.speaker.handle_timeout(now);
        }
        self.release_routes(now);
        self.look_names_up(now);
        self.probes.expire(now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Nanos> {
        let bus = self.services.bus.poll_timeout();
        let routing = self
            .routes
            .protocol
            .as_ref()
            .and_then(|r| r.speaker.poll_timeout());
        let memory = self.upkeep.memory.at();
        let own = [
            self.lookups.due(),
            self.upkeep.neighbours_at,
            self.upkeep.counters_at,
            memory,
        ];
        let engines = [self.overlay.poll_timeout(), bus, routing];
        engines
            .into_iter()
            .chain([
                self.routes.hold.deadline(),
                self.probes.poll_timeout(),
                self.lookups.names.poll_timeout(),
            ])
            .flatten()
            .chain(own)
            .min()
    }

    /// Moves the output of the engines into the rings. True when records wait for room.
    pub(crate) fn drain(&mut self) -> bool {
        loop {
            let mut idle = !self.drain_routing(hyphae_time::monotonic());
            while let Some((worker, program)) = self.overlay.poll_program() {
                idle = false;
                self.push(worker, program);
            }
            while self.routes.hold.is_off()
                && let Some(change) = self.routes.rib.poll_fib()
            {
                idle = false;
                self.push_all(&change.program());
                self.reach_gateway(&change);
            }
            // Last: an event may cause records that refer to those above.
            if let Some(event) = self.overlay.poll_event() {
                idle = false;
                self.handle_event(hyphae_time::monotonic(), event);
            }
            if idle {
                break;
            }
        }
        self.attachment.as_mut().is_some_and(Attachment::flush)
    }

    /// Handles a record of a worker.
    pub(crate) fn handle_punt(&mut self, now: Nanos, worker: WorkerId, punt: &Punt<'_>) {
        if let Punt::Service(meta, bytes) = punt
            && hyphae_wire::Service::from_code(meta.service) == Some(hyphae_wire::Service::Message)
        {
            let (key, source) = (self.overlay.lane_key(meta.receive_index.get()), meta.source);
            self.services
                .bus
                .handle(now, Input::Datagram { key, source, bytes });
            return;
        }
        self.overlay.handle_punt(now, worker, punt);
        if let Punt::LinkLocal(head, message) = punt {
            self.handle_routing(now, head, message);
        }
        self.drain();
    }

    /// Runs a turn of each service.
    pub(crate) fn run_services(&mut self, now: Nanos) -> Turn {
        let mut context = NodeContext {
            overlay: &mut self.overlay,
            attachment: &mut self.attachment,
            requests: &self.services.bus_requests,
            sent: 0,
        };
        self.services.bus.turn(now, BUS_SHARE, &mut context)
    }

    fn bus_session_up(&mut self, now: Nanos, address: OverlayAddress, key: PublicKey) {
        let mtu = self.overlay.path_mtu(address).into();
        let session = Session { key, mtu };
        self.services
            .bus
            .handle(now, Input::SessionUp { address, session });
    }

    fn push(&mut self, worker: WorkerId, program: hyphae_overlay::OwnedProgram) {
        // Discarded without a dataplane: the next one is resynchronised.
        let Some(attachment) = &mut self.attachment else {
            return;
        };
        if !attachment.push(worker, program) {
            crate::attachment::abandon(&mut self.attachment);
        }
    }

    pub(crate) fn push_all(&mut self, program: &Program<'_>) {
        let workers = self
            .attachment
            .as_ref()
            .map_or(0, |a| a.hello.workers.get());
        for worker in 0..workers {
            self.push(WorkerId(worker), hyphae_overlay::OwnedProgram::new(program));
        }
    }

    fn handle_event(&mut self, now: Nanos, event: Event) {
        self.totals.note(now, &event, &self.config.peering.names);
        match event {
            Event::PeerUp { peer, key, .. } => {
                self.peers.note_up(now, key);
                self.routes.rib.peer_up(peer, key);
                self.routing_link_up(now, peer, key);
            }
            Event::PeerDown { peer, key, .. } => {
                self.routes.rib.peer_down(&key);
                // Its name may resolve to another address.
                self.lookups.retry_at = now;
                self.routing_link_down(now, peer);
            }
            Event::EchoReply { id, rtt, .. } => self.probes.ping_answered(id, rtt),
            Event::TraceReply { id, code, key, rtt } => {
                self.probes
                    .trace_answered(id, TraceAnswer { code, key, rtt });
            }
            Event::PathMtu { address, mtu } => {
                let carries = self.overlay.path_mtu(address);
                self.services.bus.handle(
                    now,
                    Input::PathMtu {
                        address,
                        mtu: carries.into(),
                    },
                );
                if let Some(routes) = &self.host.routes {
                    routes.limit(address.subnet(), mtu);
                }
            }
            Event::ResyncFib { .. } => self.hold_routes(now),
            Event::SessionUp { address, key } => self.bus_session_up(now, address, key),
            Event::SessionDown { address, .. } => {
                self.services.bus.handle(now, Input::SessionDown(address));
            }
            Event::PeerMoved { .. }
            | Event::SessionFailed { .. }
            | Event::Refused { .. }
            | Event::Duplicate { .. } => {}
        }
    }

    /// Handles a request; true for a shutdown.
    pub(crate) fn handle_command(&mut self, now: Nanos, command: Command) -> bool {
        match command {
            Command::Request(request) => {
                self.handle_request(now, request);
                self.drain();
                false
            }
            Command::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
                false
            }
            Command::Shutdown => true,
        }
    }

    /// Status for the service manager.
    pub(crate) fn status_line(&self) -> String {
        let (mut peers, mut alive) = (0, 0);
        for peer in self.overlay.peers() {
            peers += 1;
            alive += usize::from(peer.state == PeerState::Up);
        }
        let (sessions, routes) = (
            self.overlay.sessions().count(),
            self.routes.rib.routes().count(),
        );
        let drained = if self.is_drained() { "; drained" } else { "" };
        format!("{alive} of {peers} peers alive, {routes} routes, {sessions} sessions{drained}")
    }
}

/// Number of a start of a dataplane: unique across starts and hosts, and the same for every control plane that
/// attaches to it.
fn instance_of(hello: &Hello) -> u64 {
    // Of this boot; without it start time and process number distinguish hosts.
    let boot = host::boot_id();
    let hash = blake3::Hasher::new()
        .update(&boot)
        .update(&hello.started.get().to_le_bytes())
        .update(&hello.pid.get().to_le_bytes())
        .finalize();
    let mut number = [0; 8];
    number.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(number).max(1)
}
