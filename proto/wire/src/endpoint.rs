//! Underlay addresses in the form that records, tables and sockets share.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An underlay UDP address, 24 bytes. IPv4 is kept as an IPv4-mapped IPv6 address, which is also
/// how a dual-stack socket reports it, so two equal addresses are always equal bytes.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Endpoint {
    /// IPv6 or IPv4-mapped address.
    pub ip: [u8; 16],
    /// Scope of a link-local address, else 0.
    pub scope: U32,
    /// UDP port.
    pub port: U16,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<Endpoint>() == 24);

impl Endpoint {
    /// The address as `std` has it, IPv4 unmapped.
    pub fn to_socket_addr(self) -> SocketAddr {
        let ip = Ipv6Addr::from(self.ip);
        match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), self.port.get()),
            None => SocketAddr::V6(SocketAddrV6::new(ip, self.port.get(), 0, self.scope.get())),
        }
    }

    /// The same address with another port.
    pub fn with_port(self, port: u16) -> Self {
        Self {
            port: U16::new(port),
            ..self
        }
    }

    /// Whether nothing was ever stored here.
    pub fn is_unset(self) -> bool {
        self.port.get() == 0
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        let (ip, scope) = match addr {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => (*v6.ip(), v6.scope_id()),
            SocketAddr::V6(v6) => (*v6.ip(), 0),
        };
        Self {
            ip: ip.octets(),
            scope: U32::new(scope),
            port: U16::new(addr.port()),
            reserved: [0; 2],
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_socket_addr().fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_socket_addr().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_a_round_trip() {
        for text in ["192.0.2.7:9670", "[2001:db8::1]:1", "[fe80::1%3]:9670"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Endpoint::from(addr).to_socket_addr(), addr);
        }
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_endpoint() {
        let plain: SocketAddr = "192.0.2.7:9670".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:9670".parse().unwrap();
        assert_eq!(Endpoint::from(plain), Endpoint::from(mapped));
    }

    #[test]
    fn scope_counts_for_link_local_addresses_only() {
        for (scoped, plain) in [
            ("[2001:db8::1%3]:9670", "[2001:db8::1]:9670"),
            ("[::ffff:192.0.2.7%3]:9670", "192.0.2.7:9670"),
        ] {
            let [scoped, plain] = [scoped, plain].map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(Endpoint::from(scoped), Endpoint::from(plain));
        }
        let [a, b] = ["[fe80::1%3]:9670", "[fe80::1%4]:9670"]
            .map(|text| Endpoint::from(text.parse::<SocketAddr>().unwrap()));
        assert_ne!(a, b);
    }

    #[test]
    fn only_the_port_says_whether_it_is_set() {
        assert!(Endpoint::default().is_unset());
        let endpoint = Endpoint::from("[2001:db8::1]:0".parse::<SocketAddr>().unwrap());
        assert!(endpoint.is_unset());
        assert_eq!(endpoint.with_port(7).to_string(), "[2001:db8::1]:7");
    }
}
