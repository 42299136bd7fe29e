//! Lookups of names, by the resolver of the system.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyphae_config::endpoint::{PeerUrl, Transport};
use hyphae_wire::Endpoint;
use tokio::sync::mpsc;

use crate::lookups::Name;

/// Addresses of a name, or the error.
pub type Resolved = (Name, Result<Vec<SocketAddr>, String>);

/// Resolves names in tasks of their own.
pub struct Resolver {
    sender: mpsc::Sender<Resolved>,
    receiver: mpsc::Receiver<Resolved>,
}

impl Default for Resolver {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(64);
        Self { sender, receiver }
    }
}

impl Resolver {
    /// Starts the lookup of a name.
    pub fn start(&self, name: Name) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let found = lookup(name.clone()).await;
            // The engine task may be ending.
            let _ = sender.send((name, found)).await;
        });
    }

    /// The next result.
    pub async fn next(&mut self) -> Resolved {
        match self.receiver.recv().await {
            Some(found) => found,
            // This struct has a sender, so the channel never closes.
            None => std::future::pending().await,
        }
    }
}

/// Addresses of a peer's host, without those that no peer can have, or the error.
async fn lookup((host, port): Name) -> Result<Vec<SocketAddr>, String> {
    let url = PeerUrl {
        transport: Transport::Udp,
        host,
        port,
        key: None,
    };
    if url.is_literal() {
        url.check_scope().map_err(|error| error.to_string())?;
        let endpoint = url.endpoint().into_iter();
        return Ok(endpoint.map(Endpoint::to_socket_addr).collect());
    }
    let found = tokio::net::lookup_host((url.host.as_str(), port)).await;
    let found = found.map_err(|error| format!("the name does not resolve: {error}"))?;
    let usable = |address: &SocketAddr| {
        let ip = address.ip();
        !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    Ok(found.filter(usable).collect())
}
