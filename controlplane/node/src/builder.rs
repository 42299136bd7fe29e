//! Builds the node task from its parts, and hands out its clients and the receivers of what other nodes send.

use std::path::PathBuf;

use hyphae_bus::Inbound;
use hyphae_config::Config;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_host::discovery::Discovery;
use hyphae_host::{self as host, Watchdog};
use hyphae_overlay::Overlay;
use hyphae_routing::RouteError;
use hyphae_time::Nanos;
use hyphae_wire::SecretKey;
use tokio::sync::{broadcast, mpsc};

use crate::client::NodeClient;
use crate::host_side::HostSide;
use crate::node::{Node, Services, Setup};
use crate::services::bus::{BusParts, BusService, Client};
use crate::task::{Requests, Task};

/// Requests that wait for the node, and for each of its services.
const REQUESTS_MAX: usize = 256;

/// Parts of a node.
pub struct Builder {
    /// Configuration.
    pub config: Config,
    /// Key of the node.
    pub identity: SecretKey,
    /// Engine of the overlay.
    pub overlay: Overlay,
    /// Parts of the message bus.
    pub bus: BusParts,
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
    /// Reports to the service manager.
    pub watchdog: Watchdog,
    /// Settings in state files.
    pub stored: StoredSettings,
}

/// Settings that calls have made, beside those of the configuration.
#[derive(Clone, Debug, Default)]
pub struct StoredSettings {
    /// Peers.
    pub peers: Vec<PeerUrl>,
    /// Static routes.
    pub routes: Vec<RouteSpec>,
    /// Whether the node is drained.
    pub drained: bool,
}

/// A node that is not attached yet, and its channels.
pub struct Built {
    /// The engine task.
    pub task: Task,
    /// Client of the node.
    pub node: NodeClient,
    /// Client of the message bus.
    pub bus: Client,
    /// Messages on the administration topic.
    pub admin: mpsc::Receiver<Inbound>,
    /// Messages on topics with a forward socket. The receiver settles each.
    pub forwarded: mpsc::Receiver<Inbound>,
}

/// A static route that could never be used.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: {source}")]
pub struct UnusableRoute {
    /// The route.
    pub route: RouteSpec,
    /// Why not.
    pub source: RouteError,
}

impl Builder {
    /// Builds the node.
    ///
    /// # Errors
    /// When a static route could never be used.
    pub fn build(self, now: Nanos) -> Result<Built, UnusableRoute> {
        let (commands, command_receiver) = mpsc::channel(REQUESTS_MAX);
        let (bus_requests, bus_receiver) = mpsc::channel(REQUESTS_MAX);
        let (bus, outputs) = BusService::new(now, self.bus);
        let client = bus.client(bus_requests.clone());
        let services = Services { bus, bus_requests };
        let setup = Setup {
            identity: self.identity,
            socket_directory: self.socket_directory,
            ports: self.ports,
            aes_hardware: self.aes_hardware,
            started: now,
        };
        let host = HostSide::new(self.kernel_changes, self.config.tun.clone(), self.discovery);
        let mut node = Node::new(now, self.config, setup, self.overlay, services, host);
        node.totals.controlplane_restarts = self.restarts;
        node.set_drained(now, self.stored.drained);
        add_routes(&mut node, &self.stored.routes)?;
        add_peers(&mut node, now, self.stored.peers);
        let requests = Requests {
            commands: command_receiver,
            bus: bus_receiver,
        };
        Ok(Built {
            task: Task::new(node, requests, self.watchdog),
            node: NodeClient::new(commands),
            bus: client,
            admin: outputs.admin,
            forwarded: outputs.forwarded,
        })
    }
}

fn add_routes(node: &mut Node, stored: &[RouteSpec]) -> Result<(), UnusableRoute> {
    let configured = node.config.routes.clone();
    for route in configured.iter().chain(stored) {
        let added = node.routes.rib.add_static(route.route());
        added.map_err(|source| UnusableRoute {
            route: *route,
            source,
        })?;
    }
    Ok(())
}

/// A peer in both the configuration and the state file counts as stored: it remains when it is removed from the
/// configuration.
fn add_peers(node: &mut Node, now: Nanos, stored: Vec<PeerUrl>) {
    let mut configured = node.config.peers.clone();
    configured.retain(|peer| !stored.contains(peer));
    for peer in configured {
        node.add_peer(now, peer, false);
    }
    for peer in stored {
        node.add_peer(now, peer, true);
    }
}
