//! Three namespaces in a line, as in the lab.

use std::net::IpAddr;

use hyphae::lab::Namespace;

use crate::command::ip;

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Client,
    Relay,
    Server,
}

impl Place {
    pub(super) const ALL: [Self; 3] = [Self::Client, Self::Relay, Self::Server];

    pub(super) fn number(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Relay => 1,
            Self::Server => 2,
        }
    }

    pub(super) fn name(self) -> &'static str {
        ["client", "relay", "server"][self.number()]
    }

    /// The relay's address on the link to this node.
    pub(super) fn relay_at(self) -> &'static str {
        match self {
            Self::Client | Self::Relay => RELAY_TO_CLIENT,
            Self::Server => RELAY_TO_SERVER,
        }
    }
}

pub(super) const CLIENT: &str = "198.18.1.2";
pub(super) const RELAY_TO_CLIENT: &str = "198.18.1.1";
pub(super) const RELAY_TO_SERVER: &str = "198.18.2.1";
pub(super) const SERVER: &str = "198.18.2.2";

/// Client, relay, server.
pub(super) fn row() -> anyhow::Result<[Namespace; 3]> {
    let all = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
    let [client, relay, server] = &all;
    let net = |ip: &str| anyhow::Ok((ip.parse::<IpAddr>()?, 24));
    relay.join(
        "to-client",
        net(RELAY_TO_CLIENT)?,
        client,
        "to-relay",
        net(CLIENT)?,
    )?;
    relay.join(
        "to-server",
        net(RELAY_TO_SERVER)?,
        server,
        "to-relay",
        net(SERVER)?,
    )?;
    Ok(all)
}

/// Enables IPv4 and IPv6 forwarding in the relay's kernel.
pub(super) fn forward(relay: &Namespace) -> anyhow::Result<()> {
    Ok(relay.run(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
    })??)
}

/// Adds routes between client and server via the relay's kernel.
pub(super) fn route([client, relay, server]: &[Namespace; 3]) -> anyhow::Result<()> {
    forward(relay)?;
    ip(
        client,
        &format!("route add 198.18.2.0/24 via {RELAY_TO_CLIENT}"),
    )?;
    ip(
        server,
        &format!("route add 198.18.1.0/24 via {RELAY_TO_SERVER}"),
    )
}
