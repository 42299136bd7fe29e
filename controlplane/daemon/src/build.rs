//! Builds the engines and the node for a dataplane: its ports and hardware decide.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use hyphae_api::Files;
use hyphae_bus::topics::Topics;
use hyphae_config::{Config, DiscoveryMode};
use hyphae_host::discovery::{Discovery, DiscoverySettings};
use hyphae_host::{self as host, Watchdog};
use hyphae_node::{Builder, Built, BusParts, StoredSettings, live};
use hyphae_overlay::{Config as OverlayConfig, Overlay};
use hyphae_shm::attach::Hello;
use hyphae_store::inbox::{Found, Inbox};
use hyphae_wire::{Network, SecretKey};

use crate::error::RunError;

/// Inputs of a node.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) identity: SecretKey,
    /// The private network.
    pub(crate) network: Option<Network>,
    pub(crate) files: &'a Files,
    pub(crate) inbox: Inbox,
    pub(crate) found: Found,
    pub(crate) hello: Hello,
    pub(crate) socket_directory: PathBuf,
    pub(crate) restarts: u64,
    pub(crate) watchdog: Watchdog,
}

pub(crate) fn build(inputs: Inputs<'_>) -> Result<Built, RunError> {
    let (config, files, hello) = (inputs.config, inputs.files, inputs.hello);
    let ports = hello.ports.iter().take(hello.workers.get().into());
    let ports: Vec<u16> = ports.map(|port| port.get()).collect();
    let aes_hardware = hello.aes_hardware != 0;
    let mut overlay = OverlayConfig::new(inputs.identity.clone(), ports.clone());
    overlay.set_live(&live(config, aes_hardware));
    overlay.mtu = config.mtu;
    overlay.network.clone_from(&inputs.network);
    overlay.policy = config.peering.policy.clone();
    let overlay = Overlay::new(overlay, random_seed()?);
    let mut bus = hyphae_bus::Config::new(inputs.identity.public_key());
    bus.mtu = config.mtu.into();
    let kernel_changes = host::watch();
    let discovery = discovery_settings(config, &overlay, &ports, inputs.network);
    let builder = Builder {
        config: config.clone(),
        discovery: Discovery::start(discovery, kernel_changes.subscribe()),
        overlay,
        bus: BusParts {
            config: bus,
            seed: random_seed()?,
            topics: Topics::clone(&files.topics.read()),
            inbox: inputs.inbox,
            found: inputs.found,
        },
        identity: inputs.identity,
        ports,
        aes_hardware,
        kernel_changes,
        socket_directory: inputs.socket_directory,
        restarts: inputs.restarts,
        watchdog: inputs.watchdog,
        stored: StoredSettings {
            peers: files.peers.read().peers.clone(),
            routes: files.routes.read().routes.clone(),
            drained: files.drain.read().drained,
        },
    };
    Ok(builder.build(hyphae_time::monotonic())?)
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
) -> DiscoverySettings {
    let mut mode = config.peering.discovery.mode.clone();
    // Neighbours dial link-local addresses, which only a wildcard socket receives.
    if config.listen.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) && mode != DiscoveryMode::Off {
        let listen = config.listen;
        tracing::info!(%listen, "discovery on local networks is off: it needs --listen on [::]");
        mode = DiscoveryMode::Off;
    }
    DiscoverySettings {
        mode,
        port: config.peering.discovery.port,
        node_port: ports.first().copied().unwrap_or(config.listen.port()),
        key: overlay.key(),
        network,
        tun: config.tun.clone(),
    }
}
