//! Headers of inner packets, network byte order, and the way through a chain of extension headers.

use hyphae_wire::OverlayAddress;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::inspect::NotIpv6;

/// RFC 8200, section 3.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Ipv6Header {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub(super) first_word: U32,
    pub(super) payload_len: U16,
    pub(super) next_header: u8,
    pub(super) hop_limit: u8,
    pub(super) source: OverlayAddress,
    pub(super) destination: OverlayAddress,
}

/// RFC 9293, section 3.1, without options.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct TcpHeader {
    pub(super) source_port: U16,
    pub(super) destination_port: U16,
    pub(super) sequence: U32,
    pub(super) acknowledgment: U32,
    /// Length of the header in words (4 bits), reserved bits.
    pub(super) data_offset: u8,
    pub(super) flags: u8,
    pub(super) window: U16,
    pub(super) checksum: U16,
    pub(super) urgent: U16,
}

/// RFC 768.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct UdpHeader {
    pub(super) source_port: U16,
    pub(super) destination_port: U16,
    pub(super) len: U16,
    pub(super) checksum: U16,
}

pub(super) const IPV6_HEADER_LEN: usize = size_of::<Ipv6Header>();
pub(super) const TCP_HEADER_LEN: usize = size_of::<TcpHeader>();
pub(super) const TCP_HEADER_LEN_MAX: usize = 60;
pub(super) const UDP_HEADER_LEN: usize = size_of::<UdpHeader>();
const _: () = assert!(IPV6_HEADER_LEN == 40 && TCP_HEADER_LEN == 20 && UDP_HEADER_LEN == 8);

/// Protocol numbers of IANA's registry.
pub(super) mod protocol {
    pub(in crate::host) const HOP_BY_HOP: u8 = 0;
    pub(in crate::host) const TCP: u8 = 6;
    pub(in crate::host) const UDP: u8 = 17;
    pub(in crate::host) const ROUTING: u8 = 43;
    pub(in crate::host) const AUTHENTICATION: u8 = 51;
    pub(in crate::host) const ICMPV6: u8 = 58;
    pub(in crate::host) const DESTINATION_OPTIONS: u8 = 60;
    pub(in crate::host) const SCTP: u8 = 132;
}

/// Where the checksum is within the transport header.
pub(super) const TCP_CHECKSUM_AT: usize = 16;
pub(super) const UDP_CHECKSUM_AT: usize = 6;
const ICMPV6_CHECKSUM_AT: usize = 2;

/// TCP flags.
pub(super) mod flag {
    pub(in crate::host) const FIN: u8 = 0x01;
    pub(in crate::host) const SYN: u8 = 0x02;
    pub(in crate::host) const RST: u8 = 0x04;
    pub(in crate::host) const PSH: u8 = 0x08;
    pub(in crate::host) const ACK: u8 = 0x10;
    pub(in crate::host) const CWR: u8 = 0x80;
}

/// Extension headers that a packet may have before its transport header is looked for in vain.
const EXTENSIONS_MAX: usize = 8;

impl Ipv6Header {
    /// The 20 bits of the flow label.
    pub(super) fn flow_label(&self) -> u32 {
        self.first_word.get() & 0xf_ffff
    }
}

impl TcpHeader {
    /// Bytes of the header with its options, as it says itself.
    pub(super) fn header_len(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

/// The header of a packet that is exactly as long as it says.
pub(super) fn ipv6(packet: &[u8]) -> Result<&Ipv6Header, NotIpv6> {
    match packet.first() {
        None => return Err(NotIpv6::Length),
        Some(byte) if byte >> 4 != 6 => return Err(NotIpv6::Version),
        Some(_) => {}
    }
    let (header, payload) = Ipv6Header::ref_from_prefix(packet).map_err(|_| NotIpv6::Length)?;
    if usize::from(header.payload_len.get()) != payload.len() {
        return Err(NotIpv6::Length);
    }
    Ok(header)
}

/// A transport header's protocol and place.
#[derive(Clone, Copy)]
pub(super) struct Transport {
    pub(super) protocol: u8,
    pub(super) at: usize,
}

/// Where the extension headers of a packet end; `None` when they run out of the packet or are too
/// many. A fragment header ends the walk as a protocol of its own, for what follows it is not a
/// transport header in every fragment.
pub(super) fn transport(header: &Ipv6Header, packet: &[u8]) -> Option<Transport> {
    let mut found = Transport {
        protocol: header.next_header,
        at: IPV6_HEADER_LEN,
    };
    for _ in 0..=EXTENSIONS_MAX {
        let (unit, extra) = match found.protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => (8, 1),
            protocol::AUTHENTICATION => (4, 2),
            _ => return Some(found),
        };
        let &[next, len] = packet.get(found.at..)?.first_chunk()?;
        found.protocol = next;
        found.at += (usize::from(len) + extra) * unit;
    }
    None
}

/// Where the checksum of a packet with a partial one is to be found by whoever delivers it:
/// `csum_start` and `csum_offset`. `None` for everything but TCP, UDP and ICMPv6 directly after the
/// IPv6 header; an extension header may change what the pseudo-header is.
pub(super) fn partial_checksum_at(header: &Ipv6Header, packet: &[u8]) -> Option<(u16, u16)> {
    let (at, header_len) = match header.next_header {
        protocol::TCP => (TCP_CHECKSUM_AT, TCP_HEADER_LEN),
        protocol::UDP => (UDP_CHECKSUM_AT, UDP_HEADER_LEN),
        protocol::ICMPV6 => (ICMPV6_CHECKSUM_AT, ICMPV6_CHECKSUM_AT + 2),
        _ => return None,
    };
    (packet.len() >= IPV6_HEADER_LEN + header_len).then_some((length(IPV6_HEADER_LEN), length(at)))
}

/// A length that the caller knows to be that of a part of one IPv6 packet.
pub(super) fn length(len: usize) -> u16 {
    u16::try_from(len).expect("lengths inside of one packet fit 16 bits")
}
