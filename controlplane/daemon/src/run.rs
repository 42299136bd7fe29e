//! Start, serve, stop.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hyphae_bus::topics::Topics;
use hyphae_files::Directory;
use hyphae_notify::Notifier;
use hyphae_overlay::{Config as OverlayConfig, Overlay};
use hyphae_rpc::method::ReloadParams;
use hyphae_wire::Network;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::node::attachment::{DATAPLANE_SOCKET, wait_for_dataplane};
use crate::node::request::Command;
use crate::node::services::bus::{BusParts, BusService};
use crate::node::task::Task;
use crate::node::{Builder, Node, live};
use crate::reload::{Reloader, Reloads};
use crate::rpc::{Configuration, Dispatcher, Files, Parts};
use crate::{metrics, proxy, rpc};
use hyphae_config::{Config, ConfigError, DiscoveryMode, Settings};
use hyphae_host as host;
use hyphae_host::Vigil;
use hyphae_host::discovery::{self, Discovery};
use hyphae_proxy::Gate;
use hyphae_proxy::forward::Forward;
use hyphae_proxy::outbound::Outbound;
use hyphae_store::files::{
    self, ADMIN_FILE, DRAIN_FILE, PEERS_FILE, ROUTES_FILE, StateError, TOPICS_FILE,
    retry_while_busy,
};
use hyphae_store::inbox::{Found, Inbox, InboxError};
use hyphae_store::stored::Stored;
use hyphae_store::token::Token;

/// Messages on their way to the forward proxy.
const FORWARDED_MAX: usize = 1024;

/// What a control plane is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Settings, checked.
    pub settings: Settings,
    /// How they are read again.
    pub reloader: Reloader,
    /// State directory.
    pub state_directory: Directory,
    /// Socket directory.
    pub socket_directory: Directory,
    /// Whether the whole node ends with [`Exit::ShutDown`], or else how it is stopped.
    pub shutdown: Result<(), String>,
    /// How often a supervisor has started this control plane again.
    pub restarts: u64,
}

/// Why a control plane that worked has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal, or another one has to take over from the start.
    Stopped,
    /// A caller of `node.shutdown` wants the whole node to end.
    ShutDown,
}

/// Why a control plane could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// State directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The inbox.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// Settings that contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Key of the private network.
    #[error(transparent)]
    NetworkKey(#[from] hyphae_store::network_key::NetworkKeyError),
    /// Listening sockets.
    #[error(transparent)]
    Listen(#[from] rpc::ListenError),
    /// Bearer token.
    #[error(transparent)]
    Token(#[from] hyphae_store::token::TokenError),
    /// A configured route.
    #[error("route {route}: {source}")]
    Route {
        /// As configured.
        route: String,
        /// Why not.
        source: hyphae_routing::RouteError,
    },
    /// The system failed.
    #[error("{what}: {source}")]
    System {
        /// What for.
        what: &'static str,
        /// How.
        source: std::io::Error,
    },
    /// Metrics of RPC.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// No randomness.
    #[error("cannot seed: {0}")]
    Random(getrandom::Error),
}

/// Runs a control plane until a signal ends it.
///
/// # Errors
/// When it cannot start. Errors name the likely cause and the way out.
pub fn run(options: Options) -> Result<Exit, RunError> {
    let system = |what| move |source| RunError::System { what, source };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("runtime"))?
        .block_on(serve(options))
}

async fn serve(options: Options) -> Result<Exit, RunError> {
    let system = |what| move |source| RunError::System { what, source };
    rpc::raise_descriptor_limit();
    let mut terminate = signal(SignalKind::terminate()).map_err(system("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signals"))?;
    let _lock = files::lock(&options.state_directory)?;
    let identity = files::load_or_create_key(&options.state_directory)?;
    let directory = &options.state_directory;
    let files = Files {
        peers: Stored::open(directory, PEERS_FILE)?,
        routes: Stored::open(directory, ROUTES_FILE)?,
        drain: Stored::open_or_default(directory, DRAIN_FILE)?,
        topics: Stored::open(directory, TOPICS_FILE)?,
        admins: Stored::open(directory, ADMIN_FILE)?,
    };
    let config = options.settings.config()?;
    let limits = config.inbox.into();
    let (inbox, found) = if config.inbox.durable {
        let in_use = |error: &InboxError| matches!(error, InboxError::InUse(_));
        retry_while_busy(in_use, || Inbox::open(&options.state_directory, limits))?
    } else {
        (Inbox::in_memory(limits)?, Found::default())
    };
    let reloader = options.reloader;
    let asked = Arc::clone(&reloader.asked);
    let allowed = config.rpc_allowed.clone();
    let sockets = options.socket_directory.path().to_owned();
    let unix = retry_while_busy(
        |error| matches!(error, rpc::ListenError::InUse(_)),
        || rpc::Place::listen(&options.socket_directory, &allowed),
    )?;
    let token = config.rpc_token.as_deref().map(Token::read).transpose()?;
    let (metrics_at, rpc_at, rest_at) = (config.metrics, config.rpc, config.rest);
    let (commands, receiver) = mpsc::channel(256);

    // Ports and hardware are the dataplane's to tell: the engines are made when it is there.
    let mut vigil = Vigil::new(Notifier::from_environment());
    vigil.status("waits for a dataplane");
    let waiting = wait_for_dataplane(&sockets);
    let attachment = tokio::select! {
        attachment = waiting => attachment,
        _ = terminate.recv() => return Ok(Exit::Stopped),
        _ = interrupt.recv() => return Ok(Exit::Stopped),
    };
    let hello = attachment.hello;
    let ports = hello.ports.iter().take(hello.workers.get().into());
    let ports: Vec<u16> = ports.map(|port| port.get()).collect();
    let network = match &config.peering.network {
        Some(network) => {
            let key = hyphae_store::network_key::read(&network.key_file)?;
            Some(Network::new(&network.name, &key))
        }
        None => None,
    };
    let mut overlay_config = OverlayConfig::new(identity.clone(), ports.clone());
    overlay_config.set_live(&live(&config, hello.aes_hardware != 0));
    overlay_config.mtu = config.mtu;
    overlay_config.network = network.clone();
    overlay_config.policy = config.peering.policy.clone();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(RunError::Random)?;
    let now = hyphae_time::monotonic();
    let overlay = Overlay::new(overlay_config, seed);
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(RunError::Random)?;
    let mut bus_config = hyphae_bus::Config::new(identity.public_key());
    bus_config.mtu = config.mtu.into();
    let (calls, remote_calls) = mpsc::channel(rpc::REMOTE_CALLS_QUEUED);
    let (forwarded, messages) = mpsc::channel(FORWARDED_MAX);
    let bus = BusService::new(
        now,
        BusParts {
            config: bus_config,
            seed,
            topics: Topics::clone(&files.topics.read()),
            inbox: inbox.clone(),
            found,
            admin: Some(calls),
            forward: Some(forwarded),
        },
    );
    let (bus_client, stats) = (bus.client(commands.clone()), proxy::Stats::default());
    let topic_settings: proxy::Settings = Arc::new(bus_client.topic_settings());
    let network_id = network.as_ref().map(Network::id);
    let discovery = Discovery::start(discovery_settings(&config, &overlay, &ports, network));
    let kernel_changes = host::watch();
    let mut node = Node::new(
        now,
        Builder {
            config,
            identity,
            overlay,
            bus,
            commands: commands.clone(),
            ports,
            aes_hardware: hello.aes_hardware != 0,
            discovery,
            kernel_changes,
            socket_directory: sockets,
            restarts: options.restarts,
        },
    );
    node.set_drained(now, files.drain.read().drained);
    let stored = files.routes.read().routes.clone();
    for route in node.config.routes.clone().into_iter().chain(stored) {
        let refused = |source| RunError::Route {
            route: route.to_string(),
            source,
        };
        node.rib.add_static(route.route()).map_err(refused)?;
    }
    // One that was added at run time stays when it leaves the configuration, and is one peer meanwhile.
    let stored = files.peers.read().peers.clone();
    let mut given = node.config.peers.clone();
    given.retain(|peer| !stored.contains(peer));
    for peer in given {
        node.add_peer(now, peer, false);
    }
    for peer in stored {
        node.add_peer(now, peer, true);
    }

    let own = [rpc::SOCKET_NAME, DATAPLANE_SOCKET].map(|name| node.socket_directory.join(name));
    let gate = Gate::new(&node.config.socket_dirs, &own);
    let parts = Parts {
        commands: commands.clone(),
        bus: bus_client.clone(),
        files,
        configuration: Configuration {
            settings: options.settings,
            reloader,
            network: network_id,
        },
        key: node.identity.public_key(),
        sockets: Outbound::new(
            bus_client.clone(),
            Arc::clone(&topic_settings),
            stats.clone(),
            gate.clone(),
        ),
        bus_call: node.config.bus_call,
        gate: gate.clone(),
        reloads: Arc::new(Reloads::new()),
        shutdown: options.shutdown,
    };
    let dispatcher = Arc::new(Dispatcher::new(parts, metrics::CallLatency::new()?));
    tokio::spawn(rpc::answer_remote_calls(
        remote_calls,
        Arc::clone(&dispatcher),
    ));
    let forward = Forward::new(
        bus_client.clone(),
        Arc::clone(&topic_settings),
        inbox,
        stats.clone(),
        gate,
    );
    tokio::spawn(forward.run(messages));
    dispatcher.bind_outbound();
    let place = unix.0.clone();
    let uids = allowed.uids.clone();
    let router = rpc::checked(rpc::router(Arc::clone(&dispatcher)), None);
    let serving = rpc::serve_unix(unix, allowed, Arc::clone(&dispatcher), router);
    tokio::spawn(serving);
    let callers = |listener| rpc::Access::Callers {
        listener,
        uids: uids.clone(),
        token: token.clone(),
    };
    if let Some(address) = rpc_at {
        let router = rpc::router(Arc::clone(&dispatcher));
        let access = callers(rpc::Listener::Tcp);
        serve_on(address, "--rpc", router, access)?;
    }
    if let Some(address) = rest_at {
        let router = rpc::rest_router(Arc::clone(&dispatcher));
        let access = callers(rpc::Listener::Rest);
        serve_on(address, "--rest", router, access)?;
    }
    if let Some(address) = metrics_at {
        let router = metrics::router(commands.clone(), Arc::clone(&dispatcher), stats);
        serve_on(address, "--metrics", router, rpc::Access::Open)?;
    }
    let reloading = Arc::clone(&dispatcher);
    tokio::spawn(async move {
        loop {
            asked.notified().await;
            // It says in the log what came of it.
            let _ = reloading.reload(ReloadParams::default()).await;
        }
    });
    let stopper = commands.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // The engine task may have ended already.
        let _ = stopper.send(Command::Shutdown).await;
    });
    // A task of its own: waking the future that the runtime was entered with costs a system call.
    let task = tokio::spawn(Task::new(node, receiver, vigil).run(attachment));
    if let Err(error) = task.await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
    dispatcher.unbind_outbound();
    place.close();
    Ok(match dispatcher.is_shut_down() {
        true => Exit::ShutDown,
        false => Exit::Stopped,
    })
}

fn discovery_settings(
    config: &Config,
    overlay: &Overlay,
    ports: &[u16],
    network: Option<Network>,
) -> discovery::Settings {
    let mut mode = config.peering.discovery.mode.clone();
    // Others dial link-local addresses: a socket bound to anything else does not hear them.
    if config.listen.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) && mode != DiscoveryMode::Off {
        let listen = config.listen;
        tracing::info!(%listen, "discovery on local networks is off: it needs --listen on [::]");
        mode = DiscoveryMode::Off;
    }
    discovery::Settings {
        mode,
        port: config.peering.discovery.port,
        node_port: ports.first().copied().unwrap_or(config.listen.port()),
        key: overlay.key(),
        network,
        tun: config.tun.clone(),
    }
}

/// Serves HTTP at an address that a flag sets.
fn serve_on(
    address: SocketAddr,
    flag: &'static str,
    router: axum::Router,
    access: rpc::Access,
) -> Result<(), RunError> {
    let listener = rpc::listen_tcp(address, flag)?;
    let router = rpc::checked(router, Some(address));
    tokio::spawn(rpc::serve_tcp(listener, router, access, flag));
    Ok(())
}
