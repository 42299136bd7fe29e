//! Sources that bounded tables charge their entries to.

use hyphae_wire::Endpoint;

use crate::ids::Owner;

/// A source, coarse and fine: in a full table the largest network of the largest site is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// An IPv4 address, an IPv6 /48, the neighbour that a frame came through, or a kind of session.
    pub(crate) site: u128,
    /// The same IPv4 address, an IPv6 /64, or a session.
    pub(crate) network: u128,
}

impl Source {
    /// The session that a sealed handshake came in.
    pub(crate) fn sealed(owner: Owner) -> Self {
        let (site, network) = match owner {
            Owner::Peer(peer) => (0, peer.into()),
            Owner::Remote(subnet) => (1, subnet.into()),
        };
        Self { site, network }
    }
}

/// The source of frames from an underlay address. The port is no part of it.
pub(crate) fn source_of(endpoint: Endpoint) -> Source {
    let address = u128::from_be_bytes(endpoint.ip);
    let (site, network) = if endpoint.to_socket_addr().is_ipv4() {
        (address, address)
    } else {
        (address >> 80 << 80, address >> 64 << 64)
    };
    Source { site, network }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hyphae_shares::ShareTable;

    use super::*;

    fn largest(hosts: impl IntoIterator<Item = &'static str>) -> Source {
        let mut table = ShareTable::default();
        for host in hosts {
            let source = source(host);
            table.add(source.site, source, 1, ());
        }
        table.largest().unwrap()
    }

    fn source(text: &str) -> Source {
        source_of(text.parse::<SocketAddr>().unwrap().into())
    }

    #[test]
    fn one_host_is_one_source_whatever_its_port() {
        let hosts = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.2:9", "192.0.2.3:1"];
        assert_eq!(largest(hosts), source("192.0.2.2:1"));
    }

    #[test]
    fn networks_of_one_site_share_what_one_host_elsewhere_may_have() {
        let site = [
            "[2001:db8:7:1::1]:1",
            "[2001:db8:7:2::1]:1",
            "[2001:db8:7:2::9]:1",
        ];
        let host = ["[2001:db8:8::1]:1"; 2];
        assert_eq!(
            largest(site.into_iter().chain(host)),
            source("[2001:db8:7:2::5]:1")
        );
        assert_eq!(
            largest(site[..2].iter().copied().chain([host[0]; 3])),
            source(host[0])
        );
    }
}
