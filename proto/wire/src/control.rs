//! Short control messages between neighbours (in link-local frames) and between the ends of a
//! session (in transit frames of [`crate::Service::Control`]). One layout serves both.
//!
//! Workers answer [`ControlKind::Probe`] themselves, so liveness does not depend on the control plane.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

/// Kind of a control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// Confirms the session and keeps NAT mappings open. No body.
    Keepalive,
    /// Requests the return of its body. Body: [`Probe`].
    Probe,
    /// Answer to a probe. Body: the [`Probe`], unchanged.
    ProbeReply,
    /// A packet of the routing protocol. Body: one RFC 8966 packet.
    Routing,
    /// The sender has ended this session and will not answer.
    Close,
    /// A message of a handshake that renews this session. Body: a handshake header and its Noise
    /// message ([`crate::handshake`]).
    Handshake,
    /// Another host has the receiver's key. Body: [`crate::Endpoint`] of the receiver, then of the
    /// other one, as the sender sees them.
    Duplicate,
}

impl ControlKind {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Keepalive => 0,
            Self::Probe => 1,
            Self::ProbeReply => 2,
            Self::Routing => 3,
            Self::Close => 4,
            Self::Handshake => 5,
            Self::Duplicate => 6,
        }
    }

    /// The kind of a code, if it is known.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Keepalive,
            1 => Self::Probe,
            2 => Self::ProbeReply,
            3 => Self::Routing,
            4 => Self::Close,
            5 => Self::Handshake,
            6 => Self::Duplicate,
            _ => return None,
        })
    }
}

/// Header of a control message; a body may follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControlHeader {
    /// [`ControlKind`] code.
    pub kind: u8,
    /// Zero; receivers ignore it.
    pub reserved: [u8; 3],
    /// Zero; receivers ignore it.
    pub reserved2: U32,
}

/// Bytes of a [`ControlHeader`].
pub const CONTROL_HEADER_LEN: usize = size_of::<ControlHeader>();
const _: () = assert!(CONTROL_HEADER_LEN == 8);

/// Body of a probe. The sender sets both fields; the answer returns them unchanged.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Probe {
    /// Number of the probe.
    pub id: U64,
    /// Transmission time, nanoseconds of the sender's clock.
    pub sent: U64,
}

const _: () = assert!(size_of::<Probe>() == 16);

/// Bytes of a probe or its answer. A probe may be padded with zeros to test the path MTU; the answer is not.
pub const PROBE_LEN: usize = CONTROL_HEADER_LEN + size_of::<Probe>();

/// A control message without a body.
pub fn message(kind: ControlKind) -> [u8; CONTROL_HEADER_LEN] {
    [kind.code(), 0, 0, 0, 0, 0, 0, 0]
}

/// A probe or its reply.
pub fn probe(kind: ControlKind, probe: Probe) -> [u8; CONTROL_HEADER_LEN + size_of::<Probe>()] {
    let mut bytes = [0; CONTROL_HEADER_LEN + size_of::<Probe>()];
    bytes[..CONTROL_HEADER_LEN].copy_from_slice(&message(kind));
    bytes[CONTROL_HEADER_LEN..].copy_from_slice(probe.as_bytes());
    bytes
}

/// Kind and body of a control message; `None` when it is too short or of an unknown kind.
pub fn parse(bytes: &[u8]) -> Option<(ControlKind, &[u8])> {
    let (header, body) = Ref::<_, ControlHeader>::from_prefix(bytes).ok()?;
    Some((ControlKind::from_code(header.kind)?, body))
}
