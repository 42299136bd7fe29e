//! Listeners: each identifies its callers before a request reaches the dispatcher.

mod bus;
mod connections;
mod credentials;
mod error;
mod gate;
mod http;
mod metrics;
pub(crate) mod peer_uid;
pub(crate) mod rest;
mod socket_file;
mod tcp;
mod unix;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use hyphae_bus::Inbound;
use hyphae_config::Allowed;
use hyphae_proxy::Stats;
use hyphae_store::token::BearerToken;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::authorizer::Listener;
use crate::context::Dispatcher;
pub use connections::raise_descriptor_limit;
pub use error::ListenError;
pub use socket_file::{SOCKET_NAME, SocketFile};
use tcp::{CallerPolicy, listen_tcp, serve_tcp};

/// What a node listens on.
pub struct Listeners {
    /// `rpc.sock`.
    pub unix: (SocketFile, UnixListener),
    /// Users and groups that may call, beside root and the node's own user.
    pub allowed: Allowed,
    /// Bearer token of callers over TCP.
    pub token: Option<BearerToken>,
    /// Address of JSON-RPC.
    pub rpc: Option<SocketAddr>,
    /// Address of REST.
    pub rest: Option<SocketAddr>,
    /// Address of metrics.
    pub metrics: Option<SocketAddr>,
    /// Calls of other nodes over the bus.
    pub calls: mpsc::Receiver<Inbound>,
    /// Requests of the socket proxies, for metrics.
    pub proxies: Stats,
}

impl Listeners {
    /// Serves all of them, each in a task of its own.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub async fn serve(self, dispatcher: &Arc<Dispatcher>) -> Result<(), ListenError> {
        tokio::spawn(bus::answer_remote_calls(self.calls, Arc::clone(dispatcher)));
        let json_rpc = http::router(Arc::clone(dispatcher));
        let uids = self.allowed.uids.clone();
        tokio::spawn(unix::serve_unix(
            self.unix,
            self.allowed,
            Arc::clone(dispatcher),
            gate::checked(json_rpc.clone(), None),
        ));
        let callers = |listener| CallerPolicy::Callers {
            listener,
            uids: uids.clone(),
            token: self.token.clone(),
        };
        if let Some(address) = self.rpc {
            serve_on(address, "--rpc", json_rpc, callers(Listener::Tcp)).await?;
        }
        if let Some(address) = self.rest {
            let router = rest::router(Arc::clone(dispatcher));
            serve_on(address, "--rest", router, callers(Listener::Rest)).await?;
        }
        if let Some(address) = self.metrics {
            let router = metrics::router(Arc::clone(dispatcher), self.proxies);
            serve_on(address, "--metrics", router, CallerPolicy::Open).await?;
        }
        Ok(())
    }
}

/// Serves HTTP at an address that a flag sets.
async fn serve_on(
    address: SocketAddr,
    flag: &'static str,
    router: Router,
    access: CallerPolicy,
) -> Result<(), ListenError> {
    let listener = listen_tcp(address, flag).await?;
    let router = gate::checked(router, Some(address));
    tokio::spawn(serve_tcp(listener, router, access, flag));
    Ok(())
}
