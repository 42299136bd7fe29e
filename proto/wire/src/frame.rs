//! Link, routing and session headers: all frames except handshakes.
//!
//! ```text
//! transit frame (UDP payload), OVERHEAD = 104 bytes around the payload
//! +----------------+-------------------+-------------------+----------+-------------+---------+
//! | link header 16 | routing header 40 | session header 16 | link tag | payload     | e2e tag |
//! |                |    sealed per hop by the link AEAD    |    16    | sealed by   |   16    |
//! |                |                                       |          | the sender  |         |
//! +----------------+-------------------+-------------------+----------+-------------+---------+
//!   link AAD = link header || e2e tag
//!   e2e AAD = routing header with hop limit 0 || session header
//!
//! link-local frame
//! +-----------------+----------------------------+----------+
//! | link header 16  | payload, sealed per hop    | link tag |      link AAD = link header
//! +-----------------+----------------------------+----------+
//! ```
//!
//! The nonce of either AEAD is four zero bytes and the little-endian counter of the header.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

use crate::OverlayAddress;

/// Bytes of an AEAD tag.
pub const TAG_LEN: usize = 16;
/// Bytes of the link header.
pub const LINK_HEADER_LEN: usize = size_of::<LinkHeader>();
/// Offset of the part of a transit frame that the link AEAD encrypts.
pub const SEALED_HEADERS_AT: usize = LINK_HEADER_LEN;
/// Bytes of that part: routing and session header.
pub const SEALED_HEADERS_LEN: usize = size_of::<RoutingHeader>() + size_of::<SessionHeader>();
/// Offset of the link tag of a transit frame.
pub const LINK_TAG_AT: usize = SEALED_HEADERS_AT + SEALED_HEADERS_LEN;
/// Offset of the payload of a transit frame.
pub const PAYLOAD_AT: usize = LINK_TAG_AT + TAG_LEN;
/// Bytes that a transit frame adds to its payload.
pub const OVERHEAD: usize = PAYLOAD_AT + TAG_LEN;
/// Bytes that a link-local frame adds to its payload.
pub const LINK_LOCAL_OVERHEAD: usize = LINK_HEADER_LEN + TAG_LEN;
/// Hop limit of frames without an inner packet.
pub const HOP_LIMIT_DEFAULT: u8 = 64;
/// Largest payload of a transit frame: the datagram must fit 65,507 bytes.
pub const PAYLOAD_MAX: usize = 65_507 - OVERHEAD;
/// TUN MTU that fits a 1500-byte underlay over IPv6 and UDP: 1500 - 48 - 104, rounded down to 20.
pub const MTU_DEFAULT: u16 = 1340;

/// Kind of a frame: the first byte of the link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Routed frame, payload sealed end to end.
    Transit,
    /// Frame between neighbours, payload sealed by the link.
    LinkLocal,
    /// First message of a link handshake.
    HandshakeInit,
    /// Second message.
    HandshakeResponse,
    /// Third message.
    HandshakeFinish,
    /// Request to repeat the first message with this cookie ([`crate::guard`]).
    CookieReply,
    /// Answer to an unknown receiver index ([`crate::guard`]).
    StatelessReset,
    /// One part of a frame that exceeds the link MTU ([`crate::report`]).
    Fragment,
}

impl FrameKind {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Transit => 1,
            Self::LinkLocal => 2,
            Self::HandshakeInit => 3,
            Self::HandshakeResponse => 4,
            Self::HandshakeFinish => 5,
            Self::CookieReply => 6,
            Self::StatelessReset => 7,
            Self::Fragment => 8,
        }
    }

    /// The kind of a code, if it is known.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Transit,
            2 => Self::LinkLocal,
            3 => Self::HandshakeInit,
            4 => Self::HandshakeResponse,
            5 => Self::HandshakeFinish,
            6 => Self::CookieReply,
            7 => Self::StatelessReset,
            8 => Self::Fragment,
            _ => return None,
        })
    }
}

/// Header of every UDP payload.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LinkHeader {
    /// [`FrameKind`] code.
    pub kind: u8,
    /// Zero; a receiver refuses anything else.
    pub flags: u8,
    /// Zero; a receiver refuses anything else.
    pub reserved: U16,
    /// Receiver index of the lane; 0 in handshakes.
    pub receiver: U32,
    /// Packet counter of the sender on this lane; 0 in handshakes.
    pub counter: U64,
}

const _: () = assert!(size_of::<LinkHeader>() == 16);

impl LinkHeader {
    /// A header with flags and reserved bits zero.
    pub fn new(kind: FrameKind, receiver: u32, counter: u64) -> Self {
        Self {
            kind: kind.code(),
            flags: 0,
            reserved: U16::ZERO,
            receiver: U32::new(receiver),
            counter: U64::new(counter),
        }
    }

    /// Splits a datagram into header and rest; `None` when it is too short.
    pub fn split(datagram: &[u8]) -> Option<(&Self, &[u8])> {
        let (header, rest) = Ref::<_, Self>::from_prefix(datagram).ok()?;
        Some((Ref::into_ref(header), rest))
    }
}

/// Type of the payload of a transit frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// An IPv6 packet.
    Ipv6,
    /// A message of the end-to-end handshake; not sealed end to end, its trailer is
    /// [`handshake_trailer`].
    Handshake,
    /// An end-to-end control message ([`crate::control`]).
    Control,
    /// A packet of the message bus.
    Message,
    /// Report about a forwarded frame; not sealed end to end ([`crate::report::Report`]).
    Report,
    /// An empty frame that requests a report from the node at which it ends; not sealed end to end. Its session
    /// header has a random number as the counter.
    Trace,
}

impl Service {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ipv6 => 0,
            Self::Handshake => 1,
            Self::Control => 2,
            Self::Message => 3,
            Self::Report => 4,
            Self::Trace => 5,
        }
    }

    /// The service of a code, if it is known.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Ipv6,
            1 => Self::Handshake,
            2 => Self::Control,
            3 => Self::Message,
            4 => Self::Report,
            5 => Self::Trace,
            _ => return None,
        })
    }
}

/// [`RoutingHeader::flags`]: the transport checksum of the inner packet is partial and must be completed on
/// delivery (the AEAD protects the bytes meanwhile).
pub const FLAG_PARTIAL_CHECKSUM: u16 = 1;

/// Routing header of a transit frame; read and rewritten at every hop.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RoutingHeader {
    /// Overlay address of the receiver.
    pub destination: OverlayAddress,
    /// Overlay address of the sender.
    pub source: OverlayAddress,
    /// Decremented by every relay; a frame that would reach 0 is dropped. Copied from the inner
    /// packet and written back into it on delivery.
    pub hop_limit: u8,
    /// [`Service`] code.
    pub service: u8,
    /// Hash of the inner flow, chosen by the sender; equal for packets that must not be reordered.
    pub flow_hash: U16,
    /// Bytes of the payload without the end-to-end tag. Must be exactly what the datagram holds.
    pub payload_len: U16,
    /// [`FLAG_PARTIAL_CHECKSUM`]; other bits are zero.
    pub flags: U16,
}

const _: () = assert!(size_of::<RoutingHeader>() == 40);

/// Session header: the end-to-end session that sealed the payload.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SessionHeader {
    /// Receiver index of the lane; 0 in handshakes.
    pub receiver: U32,
    /// Zero.
    pub reserved: U32,
    /// Packet counter of the sender on this lane.
    pub counter: U64,
}

const _: () = assert!(size_of::<SessionHeader>() == 16);

/// The two headers that the link AEAD encrypts, as one view.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SealedHeaders {
    /// Routing header.
    pub routing: RoutingHeader,
    /// Session header.
    pub session: SessionHeader,
}

const _: () = assert!(size_of::<SealedHeaders>() == SEALED_HEADERS_LEN);

impl SealedHeaders {
    /// Associated data of the end-to-end AEAD: both headers, with the hop limit zero because every
    /// hop changes it.
    pub fn associated_data(&self) -> [u8; SEALED_HEADERS_LEN] {
        let mut copy = *self;
        copy.routing.hop_limit = 0;
        zerocopy::transmute!(copy)
    }
}

/// AEAD nonce of a counter: four zero bytes, then the counter, little-endian.
pub fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// Trailer of a frame that is not sealed end to end ([`Service::Handshake`], [`Service::Report`],
/// [`Service::Trace`]), in place of the end-to-end tag: a truncated BLAKE3 digest of the payload. The link AEAD
/// covers it, which binds header and payload at every hop.
pub fn handshake_trailer(payload: &[u8]) -> [u8; TAG_LEN] {
    let mut trailer = [0; TAG_LEN];
    trailer.copy_from_slice(&blake3::hash(payload).as_bytes()[..TAG_LEN]);
    trailer
}
