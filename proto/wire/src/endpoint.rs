//! Underlay addresses, in the layout that records, tables and sockets share.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// [`Endpoint::transport`]: datagrams. Unknown values mean the same.
pub const TRANSPORT_DATAGRAM: u8 = 0;
/// [`Endpoint::transport`]: a stream, the TCP connection with this remote address.
pub const TRANSPORT_STREAM: u8 = 1;

/// An underlay address, 24 bytes. IPv4 is stored as an IPv4-mapped IPv6 address, as a dual-stack socket reports
/// it, so equal addresses have equal bytes.
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
    /// UDP or TCP port.
    pub port: U16,
    /// `TRANSPORT_…`.
    pub transport: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<Endpoint>() == 24);

impl Endpoint {
    /// The address as [`SocketAddr`], IPv4 unmapped.
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

    /// Whether its transport is a stream.
    pub fn is_stream(self) -> bool {
        self.transport == TRANSPORT_STREAM
    }

    /// The same address with a stream.
    pub fn stream(self) -> Self {
        Self {
            transport: TRANSPORT_STREAM,
            ..self
        }
    }

    /// The same address with datagrams.
    pub fn datagram(self) -> Self {
        Self {
            transport: TRANSPORT_DATAGRAM,
            ..self
        }
    }

    /// Name of the transport, as in peer URLs.
    pub fn scheme(self) -> &'static str {
        if self.is_stream() { "tcp" } else { "udp" }
    }

    /// Whether it is the default, without a port.
    pub fn is_unset(self) -> bool {
        self.port.get() == 0
    }
}

/// A local address, 24 bytes: destination of a received datagram, source of its answer. All zero when unknown:
/// the kernel chooses.
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
pub struct LocalAddress {
    /// IPv6 or IPv4-mapped address.
    pub ip: [u8; 16],
    /// Interface index of a link-local address, else 0.
    pub interface: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<LocalAddress>() == 24);

impl LocalAddress {
    /// Unknown; the kernel chooses.
    pub const UNSET: Self = Self {
        ip: [0; 16],
        interface: U32::ZERO,
        reserved: U32::ZERO,
    };

    /// The destination address of a datagram received on `interface`, which counts for link-local addresses
    /// only. Unset for an address that is no valid source.
    pub fn new(ip: Ipv6Addr, interface: u32) -> Self {
        let unicast = match ip.to_ipv4_mapped() {
            Some(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
            None => !(ip.is_unspecified() || ip.is_multicast()),
        };
        if !unicast {
            return Self::UNSET;
        }
        let scope = if ip.is_unicast_link_local() {
            interface
        } else {
            0
        };
        Self {
            ip: ip.octets(),
            interface: U32::new(scope),
            reserved: U32::ZERO,
        }
    }

    /// Whether the kernel is to choose.
    pub fn is_unset(&self) -> bool {
        self.ip == [0; 16]
    }
}

impl fmt::Debug for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unset() {
            return f.write_str("any");
        }
        let ip = Ipv6Addr::from(self.ip);
        match (ip.to_ipv4_mapped(), self.interface.get()) {
            (Some(v4), _) => write!(f, "{v4}"),
            (None, 0) => write!(f, "{ip}"),
            (None, interface) => write!(f, "{ip}%{interface}"),
        }
    }
}

/// Both addresses of a datagram. Convert an [`Endpoint`] where the local address does not matter.
#[derive(
    Clone,
    Copy,
    Debug,
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
pub struct AddressPair {
    /// The other node.
    pub remote: Endpoint,
    /// This host.
    pub local: LocalAddress,
}

impl From<Endpoint> for AddressPair {
    fn from(remote: Endpoint) -> Self {
        Self {
            remote,
            local: LocalAddress::UNSET,
        }
    }
}

impl From<&Endpoint> for AddressPair {
    fn from(remote: &Endpoint) -> Self {
        Self::from(*remote)
    }
}

impl From<&Self> for AddressPair {
    fn from(pair: &Self) -> Self {
        *pair
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
            transport: TRANSPORT_DATAGRAM,
            reserved: 0,
        }
    }
}

/// The address, with the scheme of a stream.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_stream() {
            write!(f, "{}://", self.scheme())?;
        }
        self.to_socket_addr().fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
    fn a_stream_and_datagrams_to_one_address_are_different_endpoints() {
        let datagram = Endpoint::from("192.0.2.7:9670".parse::<SocketAddr>().unwrap());
        let stream = datagram.stream();
        assert_ne!(datagram, stream);
        assert_eq!((stream.datagram(), stream.scheme()), (datagram, "tcp"));
        assert_eq!(stream.to_string(), "tcp://192.0.2.7:9670");
        assert_eq!(stream.to_socket_addr(), datagram.to_socket_addr());
        assert_eq!(stream.with_port(1).scheme(), "tcp");
    }

    #[test]
    fn a_local_address_is_one_that_datagrams_can_be_sent_from() {
        let local = |text: &str| LocalAddress::new(text.parse().unwrap(), 7);
        for (text, shown) in [
            ("fe80::1", "fe80::1%7"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("ff02::1", "any"),
            ("::", "any"),
            ("::ffff:255.255.255.255", "any"),
            ("::ffff:224.0.0.1", "any"),
            ("::ffff:0.0.0.0", "any"),
        ] {
            assert_eq!(format!("{:?}", local(text)), shown);
            assert_eq!(local(text).is_unset(), shown == "any");
        }
    }

    #[test]
    fn only_the_port_says_whether_it_is_set() {
        assert!(Endpoint::default().is_unset());
        let endpoint = Endpoint::from("[2001:db8::1]:0".parse::<SocketAddr>().unwrap());
        assert!(endpoint.is_unset());
        assert_eq!(endpoint.with_port(7).to_string(), "[2001:db8::1]:7");
    }
}
