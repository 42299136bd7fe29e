//! Peers in the REST of the Mycelium network.
//!
//! Its client knows the transports `tcp`, `tls`, `quic` and `vsock`, parses numeric addresses only, and fails on a
//! list with one entry that it cannot parse. Therefore `udp` is `quic` here, a scope is a number, and a name that
//! does not resolve is the unspecified address:
//!
//! ```text
//!  {"proto":"quic","socketAddr":"[fe80::1%3]:9651","addr":{"socket":"[fe80::1%3]:9651"},
//!   "host":"relay.example:9651"}      host: only where the address is not known
//! ```
//!
//! `socketAddr` is of releases before 0.7.6, `addr` of those since.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use hyphae_rpc::method;
use serde::Serialize;

use hyphae_config::endpoint::Transport;

/// Its name of the transport over UDP.
const QUIC: &str = "quic";
/// Its name of a peer that was discovered on a local network.
const LAN: &str = "linkLocalDiscovery";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    proto: String,
    socket_addr: SocketAddr,
    addr: Address,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Address {
    Socket(SocketAddr),
}

/// [`method::Peer`] with another endpoint.
#[derive(Serialize)]
pub(super) struct Peer {
    endpoint: Endpoint,
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Peer {
    pub(super) fn new(peer: method::Peer) -> serde_json::Result<Self> {
        let serde_json::Value::Object(mut rest) = serde_json::to_value(&peer)? else {
            return Err(serde::ser::Error::custom("a peer is an object"));
        };
        rest.remove("endpoint");
        rest.remove("type");
        let method::PeerEndpoint { proto, socket_addr } = peer.endpoint;
        let known = numeric(&socket_addr);
        let port = socket_addr
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let unknown = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.unwrap_or(0)));
        Ok(Self {
            endpoint: Endpoint {
                proto: if proto == Transport::Udp.scheme() {
                    QUIC.to_owned()
                } else {
                    proto
                },
                socket_addr: known.unwrap_or(unknown),
                addr: Address::Socket(known.unwrap_or(unknown)),
                host: known.is_none().then_some(socket_addr),
            },
            kind: if peer.kind == "lan" {
                LAN.to_owned()
            } else {
                peer.kind
            },
            rest,
        })
    }
}

/// An address and a port, its scope as a number or as the name of an interface, brackets or not.
pub fn numeric(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (ip, scope) = match host.split_once('%') {
        Some((ip, scope)) => (ip, Some(scope)),
        None => (host, None),
    };
    match (ip.parse().ok()?, scope) {
        (ip, None) => Some(SocketAddr::new(ip, port)),
        (IpAddr::V6(ip), Some(scope)) => {
            let scope = scope.parse().ok().or_else(|| index_of(scope))?;
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        (IpAddr::V4(_), Some(_)) => None,
    }
}

/// Spellings of a client's endpoint on this node: `quic` is `udp`, and a numeric scope may be configured by name.
pub fn spellings(endpoint: &str) -> Vec<String> {
    let udp = Transport::Udp.scheme();
    let ours = match endpoint.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(QUIC) => format!("{udp}://{rest}"),
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None => endpoint.to_owned(),
    };
    let by_name = ours.split_once('%').and_then(|(head, tail)| {
        let (scope, rest) = tail.split_once(']')?;
        let name = name_of(scope.parse().ok()?)?;
        Some(format!("{head}%{name}]{rest}"))
    });
    std::iter::once(ours).chain(by_name).collect()
}

fn index_of(name: &str) -> Option<u32> {
    rustix::net::netdevice::name_to_index(any_socket()?, name).ok()
}

fn name_of(index: u32) -> Option<String> {
    rustix::net::netdevice::index_to_name(any_socket()?, index).ok()
}

/// A socket for requests about interfaces.
fn any_socket() -> Option<std::net::UdpSocket> {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))
        .ok()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    /// The types that the stock client of version 0.7.10 parses a list of peers into.
    mod stock {
        use super::*;

        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) enum Protocol {
            Tcp,
            Tls,
            Quic,
            Vsock,
        }

        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) enum PeerAddr {
            Socket(SocketAddr),
            Vsock { cid: u32, port: u32 },
        }

        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct Endpoint {
            pub(super) proto: Protocol,
            pub(super) addr: PeerAddr,
        }

        /// Before 0.7.6.
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct OldEndpoint {
            pub(super) socket_addr: SocketAddr,
        }

        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) enum PeerType {
            Static,
            LinkLocalDiscovery,
            Inbound,
        }

        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) enum ConnectionState {
            Alive,
            Connecting,
            Dead,
        }

        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct PeerStats {
            pub(super) endpoint: Endpoint,
            #[serde(rename = "type")]
            pub(super) pt: PeerType,
            pub(super) connection_state: ConnectionState,
            pub(super) tx_bytes: u64,
            pub(super) rx_bytes: u64,
            pub(super) discovered: u64,
            pub(super) last_connected: Option<u64>,
        }
    }

    fn shown(proto: &str, place: &str, kind: &str) -> serde_json::Value {
        let peer = json!({
            "endpoint": { "proto": proto, "socketAddr": place },
            "type": kind,
            "connectionState": "alive",
            "txBytes": 1,
            "rxBytes": 2,
            "discovered": 3,
            "lastConnected": null,
            "lanes": 1,
            "lanesActive": 1,
            "handshakes": 1,
        });
        let peer = Peer::new(serde_json::from_value(peer).unwrap()).unwrap();
        serde_json::to_value(peer).unwrap()
    }

    #[test]
    fn stock_clients_parse_every_peer() {
        let loopback = index_of("lo").unwrap();
        for (place, expected) in [
            ("192.0.2.1:9651", "192.0.2.1:9651".to_owned()),
            ("[2001:db8::1]:9651", "[2001:db8::1]:9651".to_owned()),
            ("2001:db8::1:9651", "[2001:db8::1]:9651".to_owned()),
            ("[fe80::1%3]:9651", "[fe80::1%3]:9651".to_owned()),
            ("fe80::1%lo:9651", format!("[fe80::1%{loopback}]:9651")),
            ("[fe80::1%lo]:9651", format!("[fe80::1%{loopback}]:9651")),
            ("relay.example:9651", "[::]:9651".to_owned()),
            ("fe80::1%nosuchlink:9651", "[::]:9651".to_owned()),
        ] {
            let shown = shown("udp", place, "lan");
            let peer: stock::PeerStats = serde_json::from_value(shown.clone()).unwrap();
            assert_eq!(peer.endpoint.proto, stock::Protocol::Quic);
            let address: SocketAddr = expected.parse().unwrap();
            assert_eq!(
                peer.endpoint.addr,
                stock::PeerAddr::Socket(address),
                "{place}"
            );
            assert_eq!(peer.pt, stock::PeerType::LinkLocalDiscovery);
            assert_eq!(peer.connection_state, stock::ConnectionState::Alive);
            assert_eq!((peer.tx_bytes, peer.rx_bytes, peer.discovered), (1, 2, 3));
            assert_eq!(peer.last_connected, None);
            let old: stock::OldEndpoint =
                serde_json::from_value(shown["endpoint"].clone()).unwrap();
            assert_eq!(old.socket_addr, address);
            let unknown = address.ip().is_unspecified();
            assert_eq!(shown["endpoint"]["host"].as_str(), unknown.then_some(place));
        }
        let tcp: stock::PeerStats =
            serde_json::from_value(shown("tcp", "192.0.2.1:1", "static")).unwrap();
        assert_eq!(tcp.endpoint.proto, stock::Protocol::Tcp);
        assert_eq!(tcp.pt, stock::PeerType::Static);
    }

    #[test]
    fn what_a_stock_client_removes_is_spelled_as_configured() {
        let loopback = index_of("lo").unwrap();
        let of = |text: &str| spellings(text);
        assert_eq!(of("quic://192.0.2.1:1"), ["udp://192.0.2.1:1"]);
        assert_eq!(of("QUIC://192.0.2.1:1"), ["udp://192.0.2.1:1"]);
        assert_eq!(of("Tcp://192.0.2.1:1"), ["tcp://192.0.2.1:1"]);
        let numbered = format!("[fe80::1%{loopback}]:1");
        let expected = [
            format!("udp://{numbered}"),
            "udp://[fe80::1%lo]:1".to_owned(),
        ];
        assert_eq!(of(&format!("quic://{numbered}")), expected);
        assert_eq!(of("nothing"), ["nothing"]);
    }
}
