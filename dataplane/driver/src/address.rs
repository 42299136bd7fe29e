//! Underlay addresses between [`Endpoint`] and the kernel's socket addresses.
//!
//! Socket addresses are handled as the bytes that the kernel reads and writes: no pointer casts,
//! and every length is checked. A `[::]` socket speaks IPv4 through mapped addresses, which is also
//! what an `Endpoint` holds.

use std::net::Ipv6Addr;

use hyphae_wire::Endpoint;

/// Bytes of `sockaddr_in6`, the longest address here.
pub(crate) const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();

const _: () = {
    assert!(size_of::<libc::sockaddr_in>() == 16 && NAME_BYTES == 28);
    assert!(libc::AF_INET == 2 && libc::AF_INET6 == 10);
};

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Bytes of a name of this family.
    pub(crate) const fn name_len(self) -> libc::socklen_t {
        match self {
            Self::V4 => 16,
            Self::V6 => 28,
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// Writes `to` as a socket address of `family` into `name`. False when the family cannot express it.
pub(crate) fn write_name(to: &Endpoint, family: Family, name: &mut [u8; NAME_BYTES]) -> bool {
    *name = [0; NAME_BYTES];
    name[..2].copy_from_slice(&family.number().to_ne_bytes());
    name[2..4].copy_from_slice(&to.port.get().to_be_bytes());
    match family {
        Family::V4 => {
            let Some(v4) = Ipv6Addr::from(to.ip).to_ipv4_mapped() else {
                return false;
            };
            name[4..8].copy_from_slice(&v4.octets());
        }
        Family::V6 => {
            name[8..24].copy_from_slice(&to.ip);
            name[24..28].copy_from_slice(&to.scope.get().to_ne_bytes());
        }
    }
    true
}

/// Reads the address that the kernel wrote. `None` when it is none of IPv4 and IPv6 or too short.
pub(crate) fn read_name(name: &[u8]) -> Option<Endpoint> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    let mut endpoint = Endpoint::default();
    if family == Family::V4.number() {
        let octets: [u8; 4] = *name.get(4..)?.first_chunk()?;
        endpoint.ip = std::net::Ipv4Addr::from(octets).to_ipv6_mapped().octets();
    } else if family == Family::V6.number() {
        endpoint.ip = *name.get(8..)?.first_chunk()?;
        endpoint.scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk()?).into();
    } else {
        return None;
    }
    Some(endpoint.with_port(port))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn addresses_survive_the_way_through_the_kernels_form() {
        for (text, family) in [
            ("192.0.2.1:9670", Family::V4),
            ("192.0.2.1:9670", Family::V6),
            ("[2001:db8::1]:1", Family::V6),
            ("[fe80::1%7]:65535", Family::V6),
        ] {
            let mut name = [0xff; NAME_BYTES];
            assert!(write_name(&endpoint(text), family, &mut name));
            assert_eq!(
                read_name(&name[..family.name_len() as usize]),
                Some(endpoint(text))
            );
        }
    }

    #[test]
    fn an_ipv4_socket_does_not_reach_ipv6() {
        let mut name = [0; NAME_BYTES];
        assert!(!write_name(
            &endpoint("[2001:db8::1]:1"),
            Family::V4,
            &mut name
        ));
    }

    #[test]
    fn short_and_foreign_names_are_refused() {
        let mut name = [0; NAME_BYTES];
        assert!(write_name(
            &endpoint("[2001:db8::1]:1"),
            Family::V6,
            &mut name
        ));
        for len in 0..NAME_BYTES {
            assert_eq!(read_name(&name[..len]), None);
        }
        assert_eq!(read_name(&[0; NAME_BYTES]), None);
    }
}
