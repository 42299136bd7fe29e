//! What the engine has to know of an inner packet before it is sealed or after it was opened.

use hyphae_shm::stats::DropReason;
use hyphae_wire::OverlayAddress;

use super::packet::{self, Ipv6Header, protocol};

/// An IPv6 packet, by what the overlay needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: OverlayAddress,
    /// Destination address.
    pub destination: OverlayAddress,
    /// Hop limit.
    pub hop_limit: u8,
    /// Equal for packets that must not be reordered. Every bit depends on every bit of the flow, so
    /// any of them may choose a lane or a next hop. It is the same on every node: a relay that
    /// chooses by it mixes something of its own into it.
    pub flow_hash: u16,
}

/// Why bytes are not a whole IPv6 packet. The drop reason depends on whom they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIpv6 {
    /// Another version of IP.
    Version,
    /// Too short, or the payload length is not what follows the header.
    Length,
}

impl NotIpv6 {
    /// The reason to drop a packet of the host.
    pub const fn host_reason(self) -> DropReason {
        match self {
            Self::Version => DropReason::TunNotIpv6,
            Self::Length => DropReason::TunMalformed,
        }
    }

    /// The reason to drop a packet that a frame carried.
    pub const fn overlay_reason(self) -> DropReason {
        DropReason::InnerMalformed
    }
}

/// Reads the headers of an inner packet (without its [`super::TunHeader`]).
///
/// # Errors
/// When it is not IPv6, or not exactly as long as it says.
pub fn inspect(packet: &[u8]) -> Result<Inner, NotIpv6> {
    let header = packet::ipv6(packet)?;
    Ok(Inner {
        source: header.source,
        destination: header.destination,
        hop_limit: header.hop_limit,
        flow_hash: flow_hash(header, packet),
    })
}

/// Hash of addresses, protocol and ports; of addresses and flow label where there are no ports.
/// Fragments are among the latter: only the first of a packet has the ports, and all must go the
/// same way.
fn flow_hash(header: &Ipv6Header, packet: &[u8]) -> u16 {
    let flow = ports(header, packet).map_or(u64::from(header.flow_label()), |(protocol, ports)| {
        u64::from(protocol) << 32 | u64::from(ports)
    });
    let [a, b] = halves(header.source);
    let [c, d] = halves(header.destination);
    let hash = [a, b, c, d, flow].into_iter().fold(SEED, mix);
    // The multiplication carries upwards only, so one more round brings the high bits down again.
    let [high, low, ..] = mix(hash, 0).to_be_bytes();
    u16::from_be_bytes([high, low])
}

fn ports(header: &Ipv6Header, packet: &[u8]) -> Option<(u8, u32)> {
    let transport = packet::transport(header, packet)?;
    if !matches!(
        transport.protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP
    ) {
        return None;
    }
    let ports = packet.get(transport.at..)?.first_chunk()?;
    Some((transport.protocol, u32::from_be_bytes(*ports)))
}

fn halves(address: OverlayAddress) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = address.0;
    [
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u64::from_be_bytes(rest),
    ]
}

/// Any number that is not zero; pi's first bits.
const SEED: u64 = 0x243f_6a88_85a3_08d3;

/// One round in the manner of MurmurHash3's finaliser: for a given word a bijection of the hash.
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests;
