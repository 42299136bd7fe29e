//! The virtio-net header (virtio 1.2, section 5.1.6; `struct virtio_net_hdr`), 10 bytes.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const TUN_HEADER_LEN: usize = size_of::<TunHeader>();

/// [`TunHeader::flags`]: the transport checksum is partial.
pub const NEEDS_CSUM: u8 = 1;
/// [`TunHeader::gso_type`]: not a super-packet.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP datagrams (Linux 6.2).
pub const GSO_UDP_L4: u8 = 5;
/// With TCP: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// What precedes every packet of the TUN device.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TunHeader {
    /// [`NEEDS_CSUM`]; other bits are for the device.
    pub flags: u8,
    /// `GSO_…`.
    pub gso_type: u8,
    /// Bytes of headers before the payload of a super-packet; a hint.
    pub hdr_len: U16,
    /// Payload bytes of each segment.
    pub gso_size: U16,
    /// Where the checksum begins.
    pub csum_start: U16,
    /// Where its field is, from there.
    pub csum_offset: U16,
}

const _: () = assert!(TUN_HEADER_LEN == 10);
