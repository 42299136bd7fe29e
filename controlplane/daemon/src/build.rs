//! Builds the engines and the node for a dataplane: its ports and hardware decide.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use hyphae_bus::Inbound;
use hyphae_bus::topics::Topics;
use hyphae_config::{Config, DiscoveryMode};
use hyphae_host as host;
use hyphae_host::discovery::{self, Discovery};
use hyphae_node::request::Command;
use hyphae_node::{Builder, BusParts, BusService, Client, Node, live};
use hyphae_overlay::{Config as OverlayConfig, Overlay};
use hyphae_shm::attach::Hello;
use hyphae_store::inbox::{Found, Inbox};
use hyphae_wire::{Network, NetworkId, SecretKey};
use tokio::sync::mpsc;

use crate::error::RunError;
use hyphae_api::{self as rpc, Files};

/// Messages queued for the forward proxy.
const FORWARDED_MAX: usize = 1024;

/// Inputs of a node.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) identity: SecretKey,
    pub(crate) files: &'a Files,
    pub(crate) inbox: Inbox,
    pub(crate) found: Found,
    pub(crate) hello: Hello,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) socket_directory: PathBuf,
    pub(crate) restarts: u64,
}

/// A node, and what belongs to it.
pub(crate) struct Built {
    pub(crate) node: Node,
    pub(crate) bus: Client,
    /// Number of the private network.
    pub(crate) network: Option<NetworkId>,
    /// Calls of other nodes over the bus.
    pub(crate) calls: mpsc::Receiver<Inbound>,
    /// Messages on topics with a forward socket.
    pub(crate) forwarded: mpsc::Receiver<Inbound>,
}

pub(crate) fn build(inputs: Inputs<'_>) -> Result<Built, RunError> {
    let (config, hello) = (inputs.config, inputs.hello);
    let ports = hello.ports.iter().take(hello.workers.get().into());
    let ports: Vec<u16> = ports.map(|port| port.get()).collect();
    let aes_hardware = hello.aes_hardware != 0;
    let network = match &config.peering.network {
        Some(network) => {
            let key = hyphae_store::network_key::read(&network.key_file)?;
            Some(Network::new(&network.name, &key))
        }
        None => None,
    };
    let network_id = network.as_ref().map(Network::id);
    let mut overlay = OverlayConfig::new(inputs.identity.clone(), ports.clone());
    overlay.set_live(&live(config, aes_hardware));
    overlay.mtu = config.mtu;
    overlay.network = network.clone();
    overlay.policy = config.peering.policy.clone();
    let overlay = Overlay::new(overlay, random_seed()?);
    let mut bus = hyphae_bus::Config::new(inputs.identity.public_key());
    bus.mtu = config.mtu.into();
    let (admin, calls) = mpsc::channel(rpc::REMOTE_CALLS_QUEUED);
    let (forward, forwarded) = mpsc::channel(FORWARDED_MAX);
    let now = hyphae_time::monotonic();
    let bus = BusService::new(
        now,
        BusParts {
            config: bus,
            seed: random_seed()?,
            topics: Topics::clone(&inputs.files.topics.read()),
            inbox: inputs.inbox,
            found: inputs.found,
            admin: Some(admin),
            forward: Some(forward),
        },
    );
    let client = bus.client(inputs.commands.clone());
    let discovery = Discovery::start(discovery_settings(config, &overlay, &ports, network));
    let mut node = Node::new(
        now,
        Builder {
            config: config.clone(),
            identity: inputs.identity,
            overlay,
            bus,
            commands: inputs.commands,
            ports,
            aes_hardware,
            discovery,
            kernel_changes: host::watch(),
            socket_directory: inputs.socket_directory,
            restarts: inputs.restarts,
        },
    );
    node.set_drained(now, inputs.files.drain.read().drained);
    add_routes(&mut node, config, inputs.files)?;
    // A peer in both the configuration and the state file counts as stored: it remains when it is removed from the
    // configuration.
    let stored = inputs.files.peers.read().peers.clone();
    let configured = config.peers.iter().filter(|peer| !stored.contains(peer));
    configured.for_each(|peer| node.add_peer(now, peer.clone(), false));
    stored
        .into_iter()
        .for_each(|peer| node.add_peer(now, peer, true));
    Ok(Built {
        node,
        bus: client,
        network: network_id,
        calls,
        forwarded,
    })
}

fn add_routes(node: &mut Node, config: &Config, files: &Files) -> Result<(), RunError> {
    let stored = files.routes.read().routes.clone();
    for route in config.routes.iter().chain(&stored) {
        let refused = |source| RunError::Route {
            route: route.to_string(),
            source,
        };
        node.add_static_route(route).map_err(refused)?;
    }
    Ok(())
}

fn random_seed() -> Result<[u8; 32], RunError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(RunError::Random)?;
    Ok(seed)
}

fn discovery_settings(
    config: &Config,
    overlay: &Overlay,
    ports: &[u16],
    network: Option<Network>,
) -> discovery::DiscoverySettings {
    let mut mode = config.peering.discovery.mode.clone();
    // Neighbours dial link-local addresses, which only a wildcard socket receives.
    if config.listen.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) && mode != DiscoveryMode::Off {
        let listen = config.listen;
        tracing::info!(%listen, "discovery on local networks is off: it needs --listen on [::]");
        mode = DiscoveryMode::Off;
    }
    discovery::DiscoverySettings {
        mode,
        port: config.peering.discovery.port,
        node_port: ports.first().copied().unwrap_or(config.listen.port()),
        key: overlay.key(),
        network,
        tun: config.tun.clone(),
    }
}
