//! Starts, runs and stops a control plane.

use std::net::SocketAddr;
use std::sync::Arc;

use hyphae_host::Watchdog;
use hyphae_node::request::Command;
use hyphae_node::{Attachment, DATAPLANE_SOCKET, Task, wait_for_dataplane};
use hyphae_notify::Notifier;
use hyphae_proxy as proxy;
use hyphae_proxy::Gate;
use hyphae_proxy::forward::Forward;
use hyphae_proxy::outbound::Outbound;
use hyphae_rpc::method::ReloadParams;
use hyphae_store::token::Token;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::build::{Built, Inputs, build};
use crate::error::RunError;
use crate::open::open;
use crate::options::{Exit, Options};
use hyphae_api::{self as rpc, Configuration, Dispatcher, Parts};
use hyphae_metrics::{CallLatency, Reloads};

/// Requests queued for the node.
const COMMANDS_MAX: usize = 256;

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
    rpc::raise_descriptor_limit();
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
    let _lock = opened.lock;
    let config = opened.config;
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let socket_directory = options.socket_directory.path().to_owned();

    // The engines need the ports and the hardware of the dataplane.
    let mut watchdog = Watchdog::new(Notifier::from_environment());
    watchdog.status("waits for a dataplane");
    let attachment = tokio::select! {
        attachment = wait_for_dataplane(&socket_directory) => attachment,
        () = stop.received() => return Ok(Exit::Stopped),
    };
    let key = opened.identity.public_key();
    let Built {
        node,
        bus,
        network,
        calls,
        forwarded,
    } = build(Inputs {
        config: &config,
        identity: opened.identity,
        files: &opened.files,
        inbox: opened.inbox.clone(),
        found: opened.found,
        hello: attachment.hello,
        commands: commands.clone(),
        socket_directory: socket_directory.clone(),
        restarts: options.restarts,
    })?;

    let own = [rpc::SOCKET_NAME, DATAPLANE_SOCKET].map(|name| socket_directory.join(name));
    let gate = Gate::new(&config.socket_dirs, &own);
    let topics: proxy::Settings = Arc::new(bus.topic_settings());
    let stats = proxy::Stats::default();
    let outbound = Outbound::new(
        bus.clone(),
        Arc::clone(&topics),
        stats.clone(),
        gate.clone(),
    );
    let reload_requests = Arc::clone(&options.reloader.asked);
    let parts = Parts {
        commands: commands.clone(),
        bus: bus.clone(),
        files: opened.files,
        configuration: Configuration {
            settings: options.settings,
            reloader: options.reloader,
            network,
        },
        key,
        sockets: outbound,
        bus_call: config.bus_call,
        gate: gate.clone(),
        reloads: Arc::new(Reloads::new()),
        shutdown: options.shutdown,
    };
    let dispatcher = Arc::new(Dispatcher::new(parts, CallLatency::new()?));
    tokio::spawn(rpc::answer_remote_calls(calls, Arc::clone(&dispatcher)));
    let forward = Forward::new(bus, topics, opened.inbox, stats.clone(), gate);
    tokio::spawn(forward.run(forwarded));
    dispatcher.bind_outbound();
    let socket_file = opened.unix.0.clone();
    let router = rpc::checked(rpc::router(Arc::clone(&dispatcher)), None);
    let allowed = config.rpc_allowed.clone();
    tokio::spawn(rpc::serve_unix(
        opened.unix,
        allowed,
        Arc::clone(&dispatcher),
        router,
    ));
    let metrics = rpc::metrics_router(commands.clone(), Arc::clone(&dispatcher), stats);
    serve_tcp(&config, opened.token, &dispatcher, metrics).await?;
    tokio::spawn(reload_on_request(Arc::clone(&dispatcher), reload_requests));
    tokio::spawn(async move {
        stop.received().await;
        // The engine task may have ended already.
        let _ = commands.send(Command::Shutdown).await;
    });
    run_task(Task::new(node, receiver, watchdog), attachment).await;
    dispatcher.unbind_outbound();
    socket_file.close();
    Ok(match dispatcher.is_shut_down() {
        true => Exit::ShutDown,
        false => Exit::Stopped,
    })
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

async fn reload_on_request(dispatcher: Arc<Dispatcher>, requests: Arc<Notify>) {
    loop {
        requests.notified().await;
        // The outcome is logged.
        let _ = dispatcher.reload(ReloadParams::default()).await;
    }
}

/// Serves RPC, REST and metrics at the configured addresses.
async fn serve_tcp(
    config: &hyphae_config::Config,
    token: Option<Token>,
    dispatcher: &Arc<Dispatcher>,
    metrics: axum::Router,
) -> Result<(), RunError> {
    let callers = |listener| rpc::Access::Callers {
        listener,
        uids: config.rpc_allowed.uids.clone(),
        token: token.clone(),
    };
    if let Some(address) = config.rpc {
        let router = rpc::router(Arc::clone(dispatcher));
        serve_on(address, "--rpc", router, callers(rpc::Listener::Tcp)).await?;
    }
    if let Some(address) = config.rest {
        let router = rpc::rest_router(Arc::clone(dispatcher));
        serve_on(address, "--rest", router, callers(rpc::Listener::Rest)).await?;
    }
    if let Some(address) = config.metrics {
        serve_on(address, "--metrics", metrics, rpc::Access::Open).await?;
    }
    Ok(())
}

/// Serves HTTP at an address that a flag sets.
async fn serve_on(
    address: SocketAddr,
    flag: &'static str,
    router: axum::Router,
    access: rpc::Access,
) -> Result<(), RunError> {
    let listener = rpc::listen_tcp(address, flag).await?;
    let router = rpc::checked(router, Some(address));
    tokio::spawn(rpc::serve_tcp(listener, router, access, flag));
    Ok(())
}
