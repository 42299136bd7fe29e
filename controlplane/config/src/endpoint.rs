//! Text forms of peers and next hops.
//!
//! Addresses have one spelling: hosts are made canonical when they are parsed, and scopes are compared by interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use hyphae_routing::{StaticRoute, Via};
use hyphae_wire::{Endpoint, OverlayAddress, Prefix, PublicKey};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Metric of static routes from flags, files and RPC.
const METRIC: u16 = hyphae_routing::METRIC_STATIC;

/// Transport of the frames to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Datagrams, with streams as a fallback where that is switched on.
    #[default]
    Udp,
    /// Streams only.
    Tcp,
}

impl Transport {
    /// As in a URL.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }

    /// The endpoint of an address, for the engines.
    pub fn endpoint(self, address: SocketAddr) -> Endpoint {
        let endpoint = Endpoint::from(address);
        match self {
            Self::Udp => endpoint,
            Self::Tcp => endpoint.stream(),
        }
    }
}

/// `udp://HOST:PORT[#KEY]` or `tcp://…`: address of a peer, and optionally its pinned key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerUrl {
    /// Transport.
    pub transport: Transport,
    /// Name or address in canonical form; IPv6 without brackets, a link-local one with `%` and its interface.
    pub host: String,
    /// UDP port of the peer's worker 0, or TCP port.
    pub port: u16,
    /// Pinned key.
    pub key: Option<PublicKey>,
}

/// Text that is not a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeer {
    /// Another or no scheme.
    #[error("'{0}' is not a peer: expected udp://HOST:PORT or tcp://HOST:PORT, optionally #KEY")]
    Scheme(String),
    /// Host or port is missing or wrong.
    #[error(
        "'{0}': expected udp://HOST:PORT or tcp://HOST:PORT with a port from 1 to 65535; IPv6 \
         addresses in brackets"
    )]
    HostPort(String),
    /// An address that no peer can have.
    #[error("'{0}': {1}")]
    Unusable(String, &'static str),
    /// A link-local address with an interface that this host does not have.
    #[error("'{0}': this host has no interface '{1}'")]
    Scope(String, String),
    /// The part after '#'.
    #[error("'{0}': {1}")]
    Key(String, hyphae_wire::identity::InvalidPublicKey),
}

impl PeerUrl {
    /// Whether both name one place, whatever the key.
    pub fn is_at(&self, other: &Self) -> bool {
        let place = |url: &Self| match url.endpoint() {
            Some(endpoint) => Ok(endpoint),
            None => Err((url.transport, url.host.clone(), url.port)),
        };
        place(self) == place(other)
    }

    /// A peer at an address.
    pub fn at(endpoint: Endpoint, key: PublicKey) -> Self {
        Self {
            transport: Transport::Udp,
            host: host_of(endpoint),
            port: endpoint.port.get(),
            key: Some(key),
        }
    }

    /// Host and port.
    pub fn place(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The address, where it is one and not a name; `None` also for a scope that this host does not have.
    pub fn endpoint(&self) -> Option<Endpoint> {
        let (ip, scope) = match self.host.split_once('%') {
            Some((ip, scope)) => (ip, interface_index(scope)?),
            None => (self.host.as_str(), 0),
        };
        let address = match ip.parse().ok()? {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), self.port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, self.port, 0, scope).into(),
        };
        Some(self.transport.endpoint(address))
    }

    /// Whether the host is an address and not a name.
    pub fn is_literal(&self) -> bool {
        let ip = self.host.split('%').next().unwrap_or_default();
        ip.parse::<IpAddr>().is_ok()
    }

    /// Refuses a scope that this host does not have now.
    pub fn check_scope(&self) -> Result<(), InvalidPeer> {
        match self.host.split_once('%') {
            Some((_, scope)) if interface_index(scope).is_none() => {
                Err(InvalidPeer::Scope(self.to_string(), scope.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// An address as lists show it: the scope is the name of its interface.
pub fn shown(endpoint: Endpoint) -> String {
    let (host, port) = (host_of(endpoint), endpoint.port.get());
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn host_of(endpoint: Endpoint) -> String {
    let address = endpoint.to_socket_addr();
    match endpoint.scope.get() {
        0 => address.ip().to_string(),
        scope => {
            let name = any_socket().and_then(|fd| netdevice::index_to_name(fd, scope));
            // The number is the only spelling of a deleted interface.
            let scope = name.unwrap_or_else(|_| scope.to_string());
            format!("{}%{scope}", address.ip())
        }
    }
}

/// The index of an interface of this host, named or numbered.
fn interface_index(scope: &str) -> Option<u32> {
    let fd = any_socket().ok()?;
    match scope.parse::<u32>() {
        Ok(index) => netdevice::index_to_name(fd, index).ok().map(|_| index),
        Err(_) => netdevice::name_to_index(fd, scope).ok(),
    }
}

/// What the kernel is asked about interfaces with.
fn any_socket() -> rustix::io::Result<rustix::fd::OwnedFd> {
    socket(AddressFamily::UNIX, SocketType::DGRAM, None)
}

/// One spelling of a host: `None` when it is none, an error when no peer can be there.
fn canonical_host(host: &str, bracketed: bool) -> Option<Result<String, &'static str>> {
    if bracketed {
        let (ip, scope) = match host.split_once('%') {
            Some((ip, scope)) => (ip, Some(scope)),
            None => (host, None),
        };
        let ip: Ipv6Addr = ip.parse().ok()?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if scope.is_some_and(|scope| scope.is_empty() || !scope.chars().all(is_name)) {
            return None;
        }
        return Some(match (ip.to_canonical(), scope) {
            (IpAddr::V4(ip), _) => usable_ipv4(ip),
            (IpAddr::V6(ip), _) if ip.is_unspecified() => Err(UNSPECIFIED),
            (IpAddr::V6(ip), _) if ip.is_multicast() => Err(MULTICAST),
            (IpAddr::V6(ip), None) if ip.is_unicast_link_local() => Err(NO_SCOPE),
            (IpAddr::V6(ip), Some(scope)) if ip.is_unicast_link_local() => {
                Ok(format!("{ip}%{scope}"))
            }
            // The scope of any other address says nothing.
            (IpAddr::V6(ip), _) => Ok(ip.to_string()),
        });
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some(usable_ipv4(ip));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(is_name) {
        return None;
    }
    // Resolvers read "0", "127.1" and "0x7f000001" as addresses.
    let last = host.trim_end_matches('.').rsplit('.').next()?;
    let number = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    let is_number = number.map_or(
        !last.is_empty() && last.chars().all(|c| c.is_ascii_digit()),
        |hex| hex.chars().all(|c| c.is_ascii_hexdigit()),
    );
    (!is_number).then(|| Ok(host.to_ascii_lowercase()))
}

fn usable_ipv4(ip: Ipv4Addr) -> Result<String, &'static str> {
    match ip {
        ip if ip.is_unspecified() => Err(UNSPECIFIED),
        ip if ip.is_multicast() => Err(MULTICAST),
        ip if ip.is_broadcast() => Err("a broadcast address is no peer"),
        ip => Ok(ip.to_string()),
    }
}

const UNSPECIFIED: &str =
    "the unspecified address is no peer; name the address that the peer listens on";
const MULTICAST: &str = "a multicast address is no peer";
const NO_SCOPE: &str = "a link-local address needs its interface, as in [fe80::1%eth0]";

impl FromStr for PeerUrl {
    type Err = InvalidPeer;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (transport, rest) = [Transport::Udp, Transport::Tcp]
            .into_iter()
            .find_map(|transport| {
                let rest = s.strip_prefix(transport.scheme())?.strip_prefix("://")?;
                Some((transport, rest))
            })
            .ok_or_else(|| InvalidPeer::Scheme(s.to_owned()))?;
        let (place, key) = match rest.split_once('#') {
            Some((place, key)) => (place, Some(key)),
            None => (rest, None),
        };
        let bad = || InvalidPeer::HostPort(s.to_owned());
        let (host, port) = place
            .trim_end_matches('/')
            .rsplit_once(':')
            .ok_or_else(bad)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = canonical_host(bracketed.unwrap_or(host), bracketed.is_some())
            .ok_or_else(bad)?
            .map_err(|why| InvalidPeer::Unusable(s.to_owned(), why))?;
        let key = key
            .map(|key| {
                key.parse()
                    .map_err(|error| InvalidPeer::Key(s.to_owned(), error))
            })
            .transpose()?;
        Ok(Self {
            transport,
            host,
            port,
            key,
        })
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.scheme(), self.place())?;
        self.key.map_or(Ok(()), |key| write!(f, "#{key}"))
    }
}

impl Serialize for PeerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// `PREFIX=KEY` or `PREFIX=ADDRESS`: a static route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSpec {
    /// Destinations.
    pub prefix: Prefix,
    /// Next hop.
    pub via: Via,
}

/// Text that is not a static route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    /// No '='.
    #[error("'{0}' is not a route: expected PREFIX=KEY or PREFIX=ADDRESS")]
    Form(String),
    /// The part before '='.
    #[error(transparent)]
    Prefix(#[from] hyphae_wire::address::InvalidPrefix),
    /// The part after '='.
    #[error("'{0}' is not a next hop: expected a public key (64 hex digits) or an overlay address")]
    Via(String),
}

/// Reads a next hop.
///
/// # Errors
/// When it is neither a key nor an overlay address.
pub fn parse_via(s: &str) -> Result<Via, InvalidRoute> {
    if let Ok(key) = s.parse() {
        return Ok(Via::Peer(key));
    }
    s.parse::<std::net::Ipv6Addr>()
        .map(OverlayAddress::from)
        .ok()
        .filter(|address| address.is_overlay())
        .map(Via::Address)
        .ok_or_else(|| InvalidRoute::Via(s.to_owned()))
}

/// A next hop as text.
pub fn via_text(via: Via) -> String {
    match via {
        Via::Peer(key) => key.to_string(),
        Via::Address(address) => address.to_string(),
    }
}

impl RouteSpec {
    /// The route for the RIB.
    pub fn route(self) -> StaticRoute {
        StaticRoute {
            prefix: self.prefix,
            via: self.via,
            metric: METRIC,
        }
    }
}

impl FromStr for RouteSpec {
    type Err = InvalidRoute;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (prefix, via) = s
            .split_once('=')
            .ok_or_else(|| InvalidRoute::Form(s.to_owned()))?;
        Ok(Self {
            prefix: prefix.parse()?,
            via: parse_via(via)?,
        })
    }
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, via_text(self.via))
    }
}

impl Serialize for RouteSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RouteSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

    #[test]
    fn peers_round_trip() {
        for text in [
            "udp://relay.example:9670".to_owned(),
            format!("udp://192.0.2.1:1#{KEY}"),
            format!("tcp://192.0.2.1:443#{KEY}"),
            format!("udp://[2001:db8::1]:9670#{KEY}"),
        ] {
            assert_eq!(text.parse::<PeerUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_with_a_peer_is_named() {
        assert!(matches!(
            "tls://a:1".parse::<PeerUrl>(),
            Err(InvalidPeer::Scheme(_))
        ));
        for bad in [
            "udp://a",
            "tcp://a",
            "udp://:1",
            "udp://a:0",
            "udp://a:70000",
            "udp://2001:db8::1:9670",
            "udp://[192.0.2.1]:9670",
            "udp://[fe80::1%]:9670",
            "udp://[fe80::1%a b]:9670",
            "udp://a%lo:1",
            "udp://0:1",
            "udp://127.1:1",
            "udp://relay.0x7f:1",
            "udp://a b:1",
        ] {
            assert!(
                matches!(bad.parse::<PeerUrl>(), Err(InvalidPeer::HostPort(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            "udp://a:1#12".parse::<PeerUrl>(),
            Err(InvalidPeer::Key(..))
        ));
    }

    #[test]
    fn addresses_that_no_peer_can_have_are_refused_in_any_spelling() {
        for bad in [
            "udp://0.0.0.0:9670",
            "udp://[::]:9670",
            "udp://[::ffff:0.0.0.0]:9670",
            "udp://224.0.0.1:9670",
            "tcp://[ff02::1]:9670",
            "udp://255.255.255.255:9670",
            "udp://[::ffff:255.255.255.255]:9670",
            "udp://[fe80::1]:9670",
        ] {
            assert!(
                matches!(bad.parse::<PeerUrl>(), Err(InvalidPeer::Unusable(..))),
                "{bad}"
            );
        }
        let unknown: PeerUrl = "udp://[fe80::1%nosuch0]:9670".parse().unwrap();
        assert!(matches!(unknown.check_scope(), Err(InvalidPeer::Scope(..))));
        let unknown: PeerUrl = "udp://[fe80::1%4294967294]:9670".parse().unwrap();
        assert!(unknown.check_scope().is_err());
    }

    #[test]
    fn all_spellings_of_an_address_are_one_place() {
        let loopback = interface_index("lo").unwrap();
        for (one, other) in [
            (
                "udp://[2001:DB8:0::0:1]:9670",
                "udp://[2001:db8::1]:9670".to_owned(),
            ),
            (
                "udp://[::ffff:192.0.2.1]:9670",
                "udp://192.0.2.1:9670".to_owned(),
            ),
            (
                "udp://Relay.Example:9670/",
                "udp://relay.example:9670".to_owned(),
            ),
            (
                "udp://[2001:db8::1%lo]:9670",
                "udp://[2001:db8::1]:9670".to_owned(),
            ),
            (
                "tcp://[FE80::1%lo]:9670",
                format!("tcp://[fe80::1%{loopback}]:9670"),
            ),
        ] {
            let [a, b]: [PeerUrl; 2] = [one, &other].map(|url| url.parse().unwrap());
            assert!(a.is_at(&b), "{a} and {b}");
            b.check_scope().unwrap();
        }
        let [a, b]: [PeerUrl; 2] =
            ["udp://192.0.2.1:9670", "tcp://192.0.2.1:9670"].map(|url| url.parse().unwrap());
        assert!(!a.is_at(&b));
    }

    #[test]
    fn lists_show_addresses_as_they_can_be_given() {
        let url: PeerUrl = "udp://[fe80::1%lo]:9670".parse().unwrap();
        assert_eq!(url.place(), "[fe80::1%lo]:9670");
        let endpoint = url.endpoint().unwrap();
        assert_ne!(endpoint.scope.get(), 0);
        assert_eq!(shown(endpoint), "[fe80::1%lo]:9670");
        let url: PeerUrl = "udp://[2001:db8::1]:9670".parse().unwrap();
        assert_eq!(
            (url.place(), shown(url.endpoint().unwrap())),
            (url.place(), url.place())
        );
    }

    #[test]
    fn routes_take_keys_and_overlay_addresses() {
        assert!(matches!(
            format!("400:1::/64={KEY}")
                .parse::<RouteSpec>()
                .unwrap()
                .via,
            Via::Peer(_)
        ));
        assert!(matches!(
            "400:1::/64=500::1".parse::<RouteSpec>().unwrap().via,
            Via::Address(_)
        ));
        assert!("400:1::/64=2001:db8::1".parse::<RouteSpec>().is_err());
        assert!("400:1::/64".parse::<RouteSpec>().is_err());
    }
}
