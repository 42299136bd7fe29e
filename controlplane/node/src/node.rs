//! The node: the engines, their configured peers, and the task that drives them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hyphae_overlay::{ConfiguredPeer, Event, Overlay, PeerConfig, PeerState};
use hyphae_routing::Rib;
use hyphae_shm::attach::Hello;
use hyphae_shm::record::{Program, Punt};
use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SecretKey, WorkerId};
use tokio::sync::{broadcast, mpsc};

use crate::attachment::Attachment;
use crate::event_log::Totals;
use crate::fib_hold::FibHold;
use crate::host_side::HostSide;
use crate::memory::Memory;
use crate::neighbours::Neighbours;
use crate::peers::{Configured, Peers};
use crate::probes::Probes;
use crate::request::{Command, TraceAnswer};
use crate::resolve::{Lookups, name};
use crate::routing::Routing;
use crate::services::bus::BusService;
use crate::services::context::NodeContext;
use crate::services::{Input, Service, Session, Turn};
use hyphae_config::Config;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_host as host;
use hyphae_host::Resolved;
use hyphae_host::discovery::Discovery;

/// Datagrams of the message bus per turn.
const BUS_SHARE: usize = 180;

/// Parts of a [`Node`].
pub struct Builder {
    /// Configuration.
    pub config: Config,
    /// Key of the node.
    pub identity: SecretKey,
    /// Engine of the overlay.
    pub overlay: Overlay,
    /// Service of the message bus.
    pub bus: BusService,
    /// Sender of requests to the node.
    pub commands: mpsc::Sender<Command>,
    /// UDP port of each worker.
    pub ports: Vec<u16>,
    /// Whether the workers' processor has AES instructions.
    pub aes_hardware: bool,
    /// Discovery on local networks.
    pub discovery: Discovery,
    /// Changes of links and addresses, as the kernel reports them.
    pub kernel_changes: broadcast::Sender<host::Change>,
    /// Directory of the dataplane socket.
    pub socket_directory: PathBuf,
    /// Restarts of this control plane by its supervisor.
    pub restarts: u64,
}

/// The node.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) identity: SecretKey,
    pub(crate) socket_directory: PathBuf,
    pub(crate) overlay: Overlay,
    /// UDP port of each worker.
    pub(crate) ports: Vec<u16>,
    pub(crate) rib: Rib,
    pub(crate) bus: BusService,
    /// Sender of requests to this node, for outputs of jobs.
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) routing: Option<Routing>,
    pub(crate) hold: FibHold,
    pub(crate) peers: Peers,
    pub(crate) attachment: Option<Attachment>,
    /// Process of the last dataplane.
    pub(crate) dataplane_pid: Option<u32>,
    pub(crate) neighbours: Neighbours,
    pub(crate) neighbours_at: Nanos,
    pub(crate) counters_at: Nanos,
    pub(crate) memory: Memory,
    /// Pings and traces that wait for an answer.
    pub(crate) probes: Probes,
    pub(crate) host: HostSide,
    pub(crate) lookups: Lookups,
    pub(crate) totals: Totals,
    pub(crate) started: Nanos,
    /// Whether the workers' processor has AES instructions.
    pub(crate) aes_hardware: bool,
}

impl Node {
    /// Builds a node; it is not attached yet.
    pub fn new(now: Nanos, builder: Builder) -> Self {
        let Builder {
            config,
            identity,
            overlay,
            bus,
            commands,
            ports,
            aes_hardware,
            discovery,
            kernel_changes,
            socket_directory,
            restarts,
        } = builder;
        let own = identity.public_key().address();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        // Spreads timers; not secret.
        let seed = now.0 ^ u64::from_le_bytes(own.0[8..].try_into().unwrap_or_default());
        let routing = Routing::new(now, &config.routing, &identity, unix.as_secs(), seed);
        let host = HostSide::new(kernel_changes, config.tun.clone(), discovery);
        let mut rib = Rib::new(own);
        rib.set_gateways(&config.routing.announce, &config.routing.reach);
        Self {
            config,
            identity,
            socket_directory,
            overlay,
            ports,
            rib,
            bus,
            commands,
            routing,
            hold: FibHold::default(),
            peers: Peers::default(),
            attachment: None,
            dataplane_pid: None,
            neighbours: Neighbours::default(),
            neighbours_at: Nanos::NEVER,
            counters_at: now,
            memory: Memory::new(now),
            probes: Probes::default(),
            host,
            lookups: Lookups::new(now),
            totals: Totals::new(restarts),
            started: now,
            aes_hardware,
        }
    }

    /// Adds a static route.
    ///
    /// # Errors
    /// When the route could never be used.
    pub fn add_static_route(
        &mut self,
        route: &RouteSpec,
    ) -> Result<(), hyphae_routing::RouteError> {
        self.rib.add_static(route.route()).map(|_| ())
    }

    /// Adds a configured peer; `stored` if it is in peers.toml.
    pub fn add_peer(&mut self, now: Nanos, url: PeerUrl, stored: bool) {
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
        ports.map(|port| port.get()).eq(self.ports.iter().copied())
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
        let before = self.dataplane_pid.replace(hello.pid.get());
        if before.is_some_and(|before| before != hello.pid.get()) {
            self.totals.dataplane_restarts += 1;
        }
        if let (Some(name), Some(_)) = (hello.tun_name(), &self.config.tun) {
            let device = host::Device {
                name: name.to_owned(),
                address: self.identity.public_key().address().ip(),
                mtu: self.config.mtu,
                mark: attachment.hello.underlay_mark.get(),
            };
            self.host.maintain(device);
        }
        self.overlay.set_instance(instance_of(hello));
        self.attachment = Some(attachment);
        self.hold = FibHold::Adopting;
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
        if now >= self.counters_at {
            self.read_counters(now);
        }
        if now >= self.neighbours_at {
            self.expire_neighbours(now);
        }
        self.trim(now);
        self.overlay.handle_timeout(now);
        self.bus.handle_timeout(now);
        if let Some(routing) = &mut self.routing {
            routing.speaker.handle_timeout(now);
        }
        self.release_routes(now);
        self.look_names_up(now);
        self.probes.expire(now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Nanos> {
        let bus = self.bus.poll_timeout();
        let routing = self.routing.as_ref().and_then(|r| r.speaker.poll_timeout());
        let memory = self.memory.at();
        let own = [
            self.lookups.due(),
            self.neighbours_at,
            self.counters_at,
            memory,
        ];
        let engines = [self.overlay.poll_timeout(), bus, routing];
        engines
            .into_iter()
            .chain([
                self.hold.deadline(),
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
            while self.hold.is_off()
                && let Some(change) = self.rib.poll_fib()
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
            self.bus.handle(now, Input::Datagram { key, source, bytes });
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
            commands: &self.commands,
            sent: 0,
        };
        self.bus.turn(now, BUS_SHARE, &mut context)
    }

    fn bus_session_up(&mut self, now: Nanos, address: OverlayAddress, key: PublicKey) {
        let mtu = self.overlay.path_mtu(address).into();
        let session = Session { key, mtu };
        self.bus.handle(now, Input::SessionUp { address, session });
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
                self.rib.peer_up(peer, key);
                self.routing_link_up(now, peer, key);
            }
            Event::PeerDown { peer, key, .. } => {
                self.rib.peer_down(&key);
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
                self.bus.handle(
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
                self.bus.handle(now, Input::SessionDown(address));
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
            Command::Bus(command) => {
                self.bus.handle(now, Input::Request(command));
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
        let (sessions, routes) = (self.overlay.sessions().count(), self.rib.routes().count());
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
