//! Peers and next hops as people write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyphae_routing::{StaticRoute, Via};
use hyphae_wire::{Endpoint, OverlayAddress, Prefix, PublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Metric of static routes from flags, files and RPC.
const METRIC: u16 = hyphae_routing::METRIC_STATIC;

/// What frames to a peer travel in.
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

    /// An address of a peer as the engines take it.
    pub(crate) fn endpoint(self, address: SocketAddr) -> Endpoint {
        let endpoint = Endpoint::from(address);
        match self {
            Self::Udp => endpoint,
            Self::Tcp => endpoint.stream(),
        }
    }
}

/// `udp://HOST:PORT[#KEY]` or `tcp://…`: where a peer is, and optionally the only key to accept
/// there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerUrl {
    /// How it is reached.
    pub transport: Transport,
    /// Name or address; IPv6 without brackets.
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
    /// The part after '#'.
    #[error("'{0}': {1}")]
    Key(String, hyphae_wire::identity::InvalidPublicKey),
}

impl PeerUrl {
    /// Whether both name one place, whatever the key.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        let place = |url: &Self| (url.transport, url.host.clone(), url.port);
        place(self) == place(other)
    }

    /// Host and port.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

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
        let host = match bracketed {
            Some(inside) if matches!(inside.parse(), Ok(IpAddr::V6(_))) || inside.contains('%') => {
                inside
            }
            Some(_) => return Err(bad()),
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(name) {
            return Err(bad());
        }
        let key = key
            .map(|key| {
                key.parse()
                    .map_err(|error| InvalidPeer::Key(s.to_owned(), error))
            })
            .transpose()?;
        Ok(Self {
            transport,
            host: host.to_owned(),
            port,
            key,
        })
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v6 = self.host.contains(':');
        let (open, close) = if v6 { ("[", "]") } else { ("", "") };
        let scheme = self.transport.scheme();
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)?;
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
