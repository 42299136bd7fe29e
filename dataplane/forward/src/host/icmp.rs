//! ICMPv6 error messages (RFC 4443, sections 2.3, 2.4 and 3).

use hyphae_wire::OverlayAddress;
use zerocopy::{FromBytes, IntoBytes};

use super::checksum;
use super::packet::{self, IPV6_HEADER_LEN, Ipv6Header, protocol};

/// An error fits the smallest MTU.
const ERROR_MAX: usize = 1280;
const ICMP_HEADER_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Types below are errors.
const FIRST_INFORMATIONAL: u8 = 128;
const CHECKSUM_AT: usize = 2;

/// Whether a packet is an ICMPv6 error, or may be one as far as can be seen: no error answers it.
pub fn is_icmp_error(packet: &[u8]) -> bool {
    // Only the start of a packet may be left.
    let Ok((header, _)) = Ipv6Header::ref_from_prefix(packet) else {
        return true;
    };
    match packet::transport(header, packet) {
        Some(found) if found.protocol == protocol::ICMPV6 => packet
            .get(found.at)
            .is_none_or(|kind| *kind < FIRST_INFORMATIONAL),
        Some(_) => false,
        None => true,
    }
}

/// Source and destination of a packet, of which only the start may be left.
pub fn addresses(packet: &[u8]) -> Option<[OverlayAddress; 2]> {
    let (header, _) = Ipv6Header::ref_from_prefix(packet).ok()?;
    Some([header.source, header.destination])
}

/// A whole packet that tells `to` about `packet`, quoting what fits.
pub fn icmp_error(
    from: OverlayAddress,
    to: OverlayAddress,
    (kind, code): (u8, u8),
    word: u32,
    packet: &[u8],
) -> Vec<u8> {
    let quote = &packet[..packet
        .len()
        .min(ERROR_MAX - IPV6_HEADER_LEN - ICMP_HEADER_LEN)];
    let len = packet::length(ICMP_HEADER_LEN + quote.len());
    let mut error = Vec::with_capacity(IPV6_HEADER_LEN + usize::from(len));
    error.extend(0x6000_0000_u32.to_be_bytes());
    error.extend(len.to_be_bytes());
    error.extend([protocol::ICMPV6, HOP_LIMIT]);
    error.extend(from.as_bytes());
    error.extend(to.as_bytes());
    error.extend([kind, code, 0, 0]);
    error.extend(word.to_be_bytes());
    error.extend(quote);
    if let Ok((header, _)) = Ipv6Header::read_from_prefix(&error) {
        let sum = checksum::pseudo_header(&header, protocol::ICMPV6, len);
        let at = IPV6_HEADER_LEN + CHECKSUM_AT;
        error[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        checksum::complete(&mut error, IPV6_HEADER_LEN, at);
    }
    error
}
