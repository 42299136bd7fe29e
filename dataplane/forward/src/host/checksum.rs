//! The Internet checksum over the IPv6 pseudo-header (RFC 8200, section 8.1).

/// The folded, not complemented sum of the pseudo-header: what a partial checksum field holds.
pub(super) fn pseudo_header(packet: &[u8], protocol: u8, transport_len: usize) -> u16 {
    let addresses = packet[8..40].chunks_exact(2);
    let sum: u64 = addresses.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    fold(sum + transport_len as u64 + u64::from(protocol))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
