//! The virtio-net header in front of every packet of a TUN device opened with `IFF_VNET_HDR`
//! (virtio 1.2, section 5.1.6; the legacy form without `num_buffers`).

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

/// Which offloads a packet relies on. All zero: none, the packet is as it would be on a wire.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct TunHeader {
    /// [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` constants; [`Self::GSO_ECN`] may be set in addition.
    pub gso_type: u8,
    /// A hint how much of the packet is headers. Linux writes the length of the linear part of its
    /// buffer, which may be anything up to the whole packet.
    pub hdr_len: U16,
    /// Payload bytes per segment of a super-packet.
    pub gso_size: U16,
    /// Where the bytes that the checksum covers begin; they end with the packet.
    pub csum_start: U16,
    /// Where the checksum is, from `csum_start`. It holds the sum of the pseudo-header.
    pub csum_offset: U16,
}

/// Bytes of a [`TunHeader`].
pub const TUN_HEADER_LEN: usize = size_of::<TunHeader>();
const _: () = assert!(TUN_HEADER_LEN == 10);

impl TunHeader {
    /// In `flags`: the transport checksum is partial.
    pub const NEEDS_CSUM: u8 = 1;
    /// In `flags`: the transport checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// Not a super-packet.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4 to be cut.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6 to be cut.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP over either to be cut into datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// In `gso_type`: TCP whose CWR flag belongs to the first segment only.
    pub const GSO_ECN: u8 = 0x80;

    /// The header at the start of a TUN read and the packet after it; `None` when it is too short.
    pub fn split(read: &[u8]) -> Option<(&Self, &[u8])> {
        let (header, packet) = Ref::<_, Self>::from_prefix(read).ok()?;
        Some((Ref::into_ref(header), packet))
    }

    /// The header as bytes for a TUN write.
    pub fn to_bytes(self) -> [u8; TUN_HEADER_LEN] {
        zerocopy::transmute!(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_virtio() {
        let bytes = [1, 0x84, 60, 0, 0x78, 0x05, 40, 0, 16, 0, 0xaa];
        let (header, packet) = TunHeader::split(&bytes).unwrap();
        assert_eq!(header.flags, TunHeader::NEEDS_CSUM);
        assert_eq!(header.gso_type, TunHeader::GSO_TCPV6 | TunHeader::GSO_ECN);
        assert_eq!((header.hdr_len.get(), header.gso_size.get()), (60, 1400));
        assert_eq!(
            (header.csum_start.get(), header.csum_offset.get()),
            (40, 16)
        );
        assert_eq!(packet, [0xaa]);
        assert_eq!(header.to_bytes(), bytes[..TUN_HEADER_LEN]);
        assert!(TunHeader::split(&bytes[..9]).is_none());
    }
}
