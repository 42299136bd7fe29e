//! Socket addresses and control messages as bytes.
//!
//! Parsing works on byte slices with checked offsets: what the kernel reports is bounded before use.

use hyphae_wire::Endpoint;

/// Bytes reserved for the sender's address in a receive: `sockaddr_in6`.
pub(crate) const NAME_LEN: usize = 28;
/// Bytes reserved for control messages in a receive: UDP_GRO and SO_RXQ_OVFL, 24 each.
pub(crate) const CONTROL_LEN: usize = 64;

const SOL_UDP: i32 = 17;
/// Send: cut into segments of this size (`u16`).
const UDP_SEGMENT: i32 = 103;
/// Receive: was merged from segments of this size (`int`).
const UDP_GRO: i32 = 104;

/// Bytes of the control message of a send, padding included.
pub(crate) const SEGMENT_CONTROL_LEN: usize = 24;

/// The control message that asks for segments of `segment` bytes.
pub(crate) fn segment_control(segment: u16) -> [u8; SEGMENT_CONTROL_LEN] {
    let mut bytes = [0; SEGMENT_CONTROL_LEN];
    // cmsg_len: 16-byte header and a u16.
    bytes[..8].copy_from_slice(&18u64.to_ne_bytes());
    bytes[8..12].copy_from_slice(&SOL_UDP.to_ne_bytes());
    bytes[12..16].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
    bytes[16..18].copy_from_slice(&segment.to_ne_bytes());
    bytes
}

/// What the control messages of a receive say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Control {
    /// Segment size of a merged train.
    pub(crate) segment: Option<u32>,
    /// Datagrams that the socket has dropped so far.
    pub(crate) overruns: Option<u32>,
}

pub(crate) fn parse_control(mut bytes: &[u8]) -> Control {
    let mut control = Control::default();
    while bytes.len() >= 16 {
        let mut len = [0; 8];
        len.copy_from_slice(&bytes[..8]);
        let len = usize::try_from(u64::from_ne_bytes(len)).unwrap_or(0);
        if len < 16 || len > bytes.len() {
            break;
        }
        let (level, kind) = (read_u32(bytes, 8) as i32, read_u32(bytes, 12) as i32);
        if len >= 20 {
            let value = read_u32(bytes, 16);
            match (level, kind) {
                (SOL_UDP, UDP_GRO) => control.segment = Some(value),
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => control.overruns = Some(value),
                _ => {}
            }
        }
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    control
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The sender's address as the kernel wrote it; `None` when it is of no known family.
pub(crate) fn parse_name(name: &[u8]) -> Option<Endpoint> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
    let family = u16::from_ne_bytes([*name.first()?, *name.get(1)?]);
    let port = u16::from_be_bytes([*name.get(2)?, *name.get(3)?]);
    let addr = match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = name.get(4..8)?.try_into().ok()?;
            SocketAddr::from((Ipv4Addr::from(ip), port))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = name.get(8..24)?.try_into().ok()?;
            let scope: [u8; 4] = name.get(24..28)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(scope);
            SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope))
        }
        _ => return None,
    };
    Some(Endpoint::from(addr))
}

/// An endpoint as a socket of the given family takes it; returns the bytes used.
pub(crate) fn store_name(to: &Endpoint, ipv4_socket: bool, name: &mut [u8; NAME_LEN]) -> usize {
    name.fill(0);
    let port = to.port.get().to_be_bytes();
    name[2..4].copy_from_slice(&port);
    if ipv4_socket {
        name[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        name[4..8].copy_from_slice(&to.ip[12..]);
        16
    } else {
        name[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        name[8..24].copy_from_slice(&to.ip);
        name[24..28].copy_from_slice(&to.scope.get().to_ne_bytes());
        NAME_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_for_both_socket_families() {
        for (text, v4) in [("192.0.2.1:9670", true), ("192.0.2.1:9670", false), ("[fe80::1%2]:7", false)]
        {
            let endpoint = Endpoint::from(text.parse::<std::net::SocketAddr>().unwrap());
            let mut name = [0; NAME_LEN];
            let len = store_name(&endpoint, v4, &mut name);
            assert_eq!(parse_name(&name[..len]), Some(endpoint), "{text}");
        }
        assert_eq!(parse_name(&[]), None);
        assert_eq!(parse_name(&[9, 9, 0, 0]), None);
    }

    #[test]
    fn garbage_control_messages_are_harmless() {
        assert_eq!(parse_control(&[0xff; CONTROL_LEN]), Control::default());
        assert_eq!(parse_control(&[0; CONTROL_LEN]), Control::default());
        let mut bytes = segment_control(1400);
        assert_eq!(parse_control(&bytes), Control::default());
        bytes[..8].copy_from_slice(&20u64.to_ne_bytes());
        bytes[12..16].copy_from_slice(&UDP_GRO.to_ne_bytes());
        bytes[16..20].copy_from_slice(&1400u32.to_ne_bytes());
        assert_eq!(parse_control(&bytes).segment, Some(1400));
    }
}
