//! Starts, runs and stops a control plane.

use std::path::Path;
use std::sync::Arc;

use hyphae_api::{
    Configuration, Dispatcher, Listeners, Parts, SOCKET_NAME, SocketFile, raise_descriptor_limit,
};
use hyphae_config::Config;
use hyphae_host::Watchdog;
use hyphae_metrics::CallLatency;
use hyphae_node::{Attachment, DATAPLANE_SOCKET, NodeClient, Task, wait_for_dataplane};
use hyphae_notify::Notifier;
use hyphae_proxy as proxy;
use hyphae_proxy::Gate;
use hyphae_proxy::forward::Forward;
use hyphae_proxy::outbound::Outbound;
use hyphae_store::files::Lock;
use hyphae_wire::Network;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::build::{Inputs, build};
use crate::error::RunError;
use crate::open::{Opened, open};
use crate::options::{Exit, Options};

/// Runs a control plane until a signal ends it.
///
/// # Errors
/// When it cannot start. Errors name the likely cause and a remedy.
pub fn run(options: Options) -> Result<Exit, RunError> {
    let system = |what| move |source| RunError::System { what, source };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("runtime"))?
        .block_on(serve(options))
}

/// The signals that stop a control plane.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn watch() -> Result<Self, RunError> {
        let watch = |kind| {
            signal(kind).map_err(|source| RunError::System {
                what: "signals",
                source,
            })
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn serve(options: Options) -> Result<Exit, RunError> {
    raise_descriptor_limit();
    let mut stop = StopSignals::watch()?;
    let opened = {
        let options = options.clone();
        // Reads the inbox, and waits for what a killed process still holds.
        tokio::task::spawn_blocking(move || open(&options))
    };
    let opened = opened.await.map_err(|error| RunError::System {
        what: "start",
        source: error.into(),
    })??;
    // The engines need the ports and the hardware of the dataplane.
    let mut watchdog = Watchdog::new(Notifier::from_environment());
    watchdog.status("waits for a dataplane");
    let attachment = tokio::select! {
        attachment = wait_for_dataplane(options.socket_directory.path()) => attachment,
        () = stop.received() => return Ok(Exit::Stopped),
    };
    let running = start(options, opened, watchdog, &attachment).await?;
    let node = running.node;
    tokio::spawn(async move {
        stop.received().await;
        node.shut_down().await;
    });
    run_task(running.task, attachment).await;
    running.dispatcher.unbind_outbound();
    running.socket_file.close();
    Ok(match running.dispatcher.is_shut_down() {
        true => Exit::ShutDown,
        false => Exit::Stopped,
    })
}

/// A control plane whose listeners are served.
struct Running {
    /// Held until the end.
    _lock: Lock,
    task: Task,
    node: NodeClient,
    dispatcher: Arc<Dispatcher>,
    socket_file: SocketFile,
}

/// Builds the node, its proxies and its listeners, and starts the tasks of all but the node.
async fn start(
    options: Options,
    opened: Opened,
    watchdog: Watchdog,
    attachment: &Attachment,
) -> Result<Running, RunError> {
    let config = opened.config;
    let key = opened.identity.public_key();
    let network = opened.network.as_ref().map(Network::id);
    let built = build(Inputs {
        config: &config,
        identity: opened.identity,
        network: opened.network,
        files: &opened.files,
        inbox: opened.inbox.clone(),
        found: opened.found,
        hello: attachment.hello,
        socket_directory: options.socket_directory.path().to_owned(),
        restarts: options.restarts,
        watchdog,
    })?;
    let bus = built.bus;
    let gate = gate(&config, options.socket_directory.path());
    let topics: proxy::Settings = Arc::new(bus.topic_settings());
    let proxies = proxy::Stats::default();
    let settings = Arc::clone(&topics);
    let sockets = Outbound::new(bus.clone(), settings, proxies.clone(), gate.clone());
    let parts = Parts {
        node: built.node.clone(),
        bus: bus.clone(),
        files: opened.files,
        configuration: Configuration {
            settings: options.settings,
            reloader: options.reloader,
            network,
        },
        key,
        sockets,
        bus_call: config.bus_call,
        gate: gate.clone(),
        shutdown: options.shutdown,
    };
    let dispatcher = Arc::new(Dispatcher::new(parts, CallLatency::new()?));
    let forward = Forward::new(bus, topics, opened.inbox, proxies.clone(), gate);
    tokio::spawn(forward.run(built.forwarded));
    dispatcher.bind_outbound();
    let socket_file = opened.unix.0.clone();
    let listeners = Listeners {
        unix: opened.unix,
        allowed: config.rpc_allowed,
        token: opened.token,
        rpc: config.rpc,
        rest: config.rest,
        metrics: config.metrics,
        calls: built.admin,
        proxies,
    };
    listeners.serve(&dispatcher).await?;
    tokio::spawn(Arc::clone(&dispatcher).reload_when_asked());
    Ok(Running {
        _lock: opened.lock,
        task: built.task,
        node: built.node,
        dispatcher,
        socket_file,
    })
}

/// The check of sockets that callers name. The node's own sockets are refused.
fn gate(config: &Config, directory: &Path) -> Gate {
    let own = [SOCKET_NAME, DATAPLANE_SOCKET].map(|name| directory.join(name));
    Gate::new(&config.socket_dirs, &own)
}

/// Runs the engine task to its end; a panic of it continues here.
async fn run_task(task: Task, attachment: Attachment) {
    // A task of its own: waking the future that the runtime was entered with costs a system call.
    let task = tokio::spawn(task.run(attachment));
    if let Err(error) = task.await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
