//! What has to be known of an IPv6 packet to carry it.

use hyphae_wire::OverlayAddress;

/// Bytes of the fixed IPv6 header.
pub(super) const IPV6_LEN: usize = 40;
/// IPv6 next-header number of TCP.
pub(super) const TCP: u8 = 6;
/// Of UDP.
pub(super) const UDP: u8 = 17;
/// Of ICMPv6.
pub(super) const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
/// Extension headers that are walked before giving up on finding ports.
const EXTENSIONS_MAX: usize = 8;

/// Addresses, hop limit and flow of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: OverlayAddress,
    /// Destination address.
    pub destination: OverlayAddress,
    /// Hop limit.
    pub hop_limit: u8,
    /// Equal for packets of one flow: addresses, protocol and ports; for fragments and what has no
    /// ports, addresses and flow label.
    pub flow_hash: u16,
}

/// Reads an IPv6 packet. `None` when it is not one, or its length field is not what is there.
pub fn inspect(packet: &[u8]) -> Option<Inner> {
    let header = packet.first_chunk::<IPV6_LEN>()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || payload_len != packet.len() - IPV6_LEN {
        return None;
    }
    let address = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&header[at..at + 16]);
        OverlayAddress(bytes)
    };
    Some(Inner {
        source: address(8),
        destination: address(24),
        hop_limit: header[7],
        flow_hash: flow_hash(packet),
    })
}

fn flow_hash(packet: &[u8]) -> u16 {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&packet[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let label = u32::from_be_bytes([0, packet[1] & 0x0f, packet[2], packet[3]]);
    let tail = match ports(packet) {
        Some((protocol, ports)) => u64::from(protocol) << 32 | u64::from(ports),
        None => 1 << 63 | u64::from(label),
    };
    let mut hash = tail;
    for at in [8, 16, 24, 32] {
        hash = mix(hash ^ word(at));
    }
    (hash >> 48) as u16
}

/// Finalizer of SplitMix64: every input bit moves every output bit, so that relays in a row, which
/// all divide flows by this hash, do not see the same remainder again.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Protocol and both ports, if the packet is not a fragment and has them.
fn ports(packet: &[u8]) -> Option<(u8, u32)> {
    let mut next = packet[6];
    let mut at = IPV6_LEN;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            TCP | UDP | 132 | 136 => {
                let ports = packet.get(at..at + 4)?;
                return Some((next, u32::from_le_bytes([ports[0], ports[1], ports[2], ports[3]])));
            }
            // Hop-by-hop, routing, destination options: length in units of 8 after the first 8.
            0 | 43 | 60 => {
                next = *packet.get(at)?;
                at += 8 + usize::from(*packet.get(at + 1)?) * 8;
            }
            FRAGMENT => return None,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend([4; 16]);
        packet.extend([5; 16]);
        packet.extend(payload);
        packet
    }

    #[test]
    fn ports_behind_extension_headers_count_and_fragments_stay_together() {
        let direct = inspect(&packet(TCP, &[0, 1, 0, 2, 9, 9, 9, 9])).unwrap();
        let other = inspect(&packet(TCP, &[0, 1, 0, 3, 9, 9, 9, 9])).unwrap();
        let mut options = vec![TCP, 0, 0, 0, 0, 0, 0, 0];
        options.extend([0, 1, 0, 2, 7, 7]);
        let behind = inspect(&packet(60, &options)).unwrap();
        assert_ne!(direct.flow_hash, other.flow_hash);
        assert_eq!(direct.flow_hash, behind.flow_hash);
        let first = inspect(&packet(FRAGMENT, &[TCP, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 2])).unwrap();
        let second = inspect(&packet(FRAGMENT, &[TCP, 0, 1, 0, 0, 0, 0, 1, 9, 9, 9, 9])).unwrap();
        assert_eq!(first.flow_hash, second.flow_hash);
    }

    #[test]
    fn lengths_must_agree() {
        let mut good = packet(UDP, &[0; 8]);
        assert!(inspect(&good).is_some());
        good.push(0);
        assert!(inspect(&good).is_none());
        assert!(inspect(&good[..39]).is_none());
        good.pop();
        good[0] = 0x45;
        assert!(inspect(&good).is_none());
    }
}
