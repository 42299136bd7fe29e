//! State of the dispatcher: clients of the node and the bus, state files, limits of waiting and long calls.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hyphae_bus::Pool;
use hyphae_bus::topics::Topics;
use hyphae_rpc::message::{Error, code};
use hyphae_wire::PublicKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::authorizer::{Admins, Listener};
use super::error::internal;
use super::reloader::Configuration;
use hyphae_metrics::CallLatency;
use hyphae_metrics::{ReloadCounts, Reloads, unix_seconds};
use hyphae_node as bus;
use hyphae_node::NodeClient;
use hyphae_node::request::{Reply, Request};
use hyphae_proxy::Gate;
use hyphae_proxy::outbound::Outbound;
use hyphae_store::files::{DrainFile, PeersFile, RoutesFile};
use hyphae_store::stored::Stored;

/// Concurrent calls that wait.
const WAITS_MAX: usize = 1024;
/// Long requests that are read concurrently: on `rpc.sock`, and on each other listener.
const LARGE_AT_ONCE: (usize, usize) = (4, 2);

/// State files that calls change.
pub struct Files {
    /// topics.toml.
    pub topics: Stored<Topics>,
    /// admin.toml.
    pub admins: Stored<Admins>,
    /// Peers added at run time.
    pub peers: Stored<PeersFile>,
    /// Routes added at run time.
    pub routes: Stored<RoutesFile>,
    /// Whether the node is drained.
    pub drain: Stored<DrainFile>,
}

/// Parts of a [`Dispatcher`].
pub struct Parts {
    /// The node.
    pub node: NodeClient,
    /// The message bus.
    pub bus: bus::Client,
    /// State files.
    pub files: Files,
    /// Settings in force.
    pub configuration: Configuration,
    /// Key of this node.
    pub key: PublicKey,
    /// Outbound sockets.
    pub sockets: Outbound<bus::Client>,
    /// Whether `admin.busCall` is offered.
    pub bus_call: bool,
    /// Check of the sockets that callers name.
    pub gate: Gate,
    /// Whether `node.shutdown` is offered, or else the way to stop the node, for the error.
    pub shutdown: Result<(), String>,
}

/// Answers calls.
pub struct Dispatcher {
    pub(super) node: NodeClient,
    pub(super) bus: bus::Client,
    pub(super) files: Files,
    pub(super) configuration: tokio::sync::Mutex<Configuration>,
    pub(super) key: PublicKey,
    /// Address and key of this node as text, part of every delivered message.
    pub(super) shown: (String, String),
    /// When the control plane started, seconds since 1970.
    pub(super) started_unix: u64,
    pub(super) sockets: Outbound<bus::Client>,
    pub(super) bus_call: bool,
    pub(super) gate: Gate,
    pub(super) reloads: Reloads,
    pub(super) shutdown: Result<(), String>,
    pub(super) shut_down: AtomicBool,
    pub(super) latency: CallLatency,
    waits: Semaphore,
    large: [(Listener, Arc<Semaphore>); 3],
    pub(super) denied_at: Mutex<Option<Instant>>,
}

impl Dispatcher {
    /// A dispatcher of these parts.
    pub fn new(parts: Parts, latency: CallLatency) -> Self {
        Self {
            node: parts.node,
            bus: parts.bus,
            files: parts.files,
            configuration: parts.configuration.into(),
            key: parts.key,
            shown: (parts.key.address().to_string(), parts.key.to_string()),
            started_unix: unix_seconds(),
            sockets: parts.sockets,
            bus_call: parts.bus_call,
            gate: parts.gate,
            reloads: Reloads::new(),
            shutdown: parts.shutdown,
            shut_down: AtomicBool::new(false),
            latency,
            waits: Semaphore::new(WAITS_MAX),
            large: [
                (Listener::Unix, Arc::new(Semaphore::new(LARGE_AT_ONCE.0))),
                (Listener::Tcp, Arc::new(Semaphore::new(LARGE_AT_ONCE.1))),
                (Listener::Rest, Arc::new(Semaphore::new(LARGE_AT_ONCE.1))),
            ],
            denied_at: Mutex::new(None),
        }
    }

    pub(crate) fn node(&self) -> &NodeClient {
        &self.node
    }

    /// Sends a request to the node task and waits for the reply.
    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, Error> {
        self.node.ask(request).await.map_err(internal)
    }

    /// Permit of a call that waits.
    pub(super) fn wait(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.waits.try_acquire().map_err(|_| {
            let message = format!("{WAITS_MAX} calls wait already; try again later");
            Error::new(code::BUSY, message)
        })
    }

    pub(crate) fn bus(&self) -> &bus::Client {
        &self.bus
    }

    /// Buffers for long payloads.
    pub(crate) fn pool(&self) -> &Pool {
        self.bus.pool()
    }

    /// Waits for the permit of a long request of a listener.
    pub(crate) async fn room_for_large(&self, listener: Listener) -> Option<OwnedSemaphorePermit> {
        let (_, room) = self.large.iter().find(|(it, _)| *it == listener)?;
        // Never closed.
        Arc::clone(room).acquire_owned().await.ok()
    }

    /// Metrics of calls, as text.
    pub(crate) fn metrics(&self) -> String {
        self.latency.render()
    }

    pub(crate) fn reloads(&self) -> ReloadCounts {
        self.reloads.read()
    }
}
