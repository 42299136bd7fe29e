//! Packets of the routing protocol: Babel, RFC 8966 section 4, with the RTT sub-TLVs of RFC 9616.
//!
//! A packet is the body of a [`crate::control::ControlKind::Routing`] message; the link frame takes the place
//! of the UDP datagram of RFC 8966. Integers are big-endian, as in the RFC.
//!
//! ```text
//! packet: | magic 42 | version 2 | body length u16 | TLV … |
//! TLV:    | type u8 | length u8 | body | sub-TLV … |
//! ```
//!
//! One sub-TLV is an extension, of a type that RFC 8966 reserves for experiments and with the mandatory bit set
//! (a node that does not know it ignores the TLV):
//!
//! ```text
//! origin (240, in Update and Seqno Request): | key 32 | serial u48 | signature 64 |
//! ```
//!
//! The signature is over [`Origin::message`]. The [`Serial`] extends the 16-bit sequence number so that it
//! never wraps and an old announcement stays old; its low bits are the sequence number of the Update.
//!
//! [`Packet`] parses, [`Writer`] encodes. What the RFC requires to ignore (unknown or malformed TLVs, address
//! families that the overlay does not carry) is returned by the iterator as an error, to be counted.

mod read;
mod write;

use crate::{Prefix, PublicKey, signature::Signature};

pub use read::{Packet, PacketError, TlvError, Tlvs};
pub use write::{PACKET_MAX, Writer};

/// First byte of a packet.
pub const MAGIC: u8 = 42;
/// Second byte of a packet.
pub const VERSION: u8 = 2;
/// Bytes of a packet before its body.
pub const HEADER_LEN: usize = 4;
/// Metric of an unreachable destination.
pub const INFINITY: u16 = 0xffff;

/// Types of TLVs.
pub(crate) mod tlv {
    pub(crate) const PAD1: u8 = 0;
    pub(crate) const PADN: u8 = 1;
    pub(crate) const ACK_REQUEST: u8 = 2;
    pub(crate) const ACK: u8 = 3;
    pub(crate) const HELLO: u8 = 4;
    pub(crate) const IHU: u8 = 5;
    pub(crate) const ROUTER_ID: u8 = 6;
    pub(crate) const NEXT_HOP: u8 = 7;
    pub(crate) const UPDATE: u8 = 8;
    pub(crate) const ROUTE_REQUEST: u8 = 9;
    pub(crate) const SEQNO_REQUEST: u8 = 10;
}

/// Types of sub-TLVs.
pub(crate) mod sub {
    pub(crate) const PAD1: u8 = 0;
    pub(crate) const TIMESTAMP: u8 = 3;
    /// Experimental and mandatory.
    pub(crate) const ORIGIN: u8 = 240;
    /// Bit of sub-TLV types that invalidate a TLV for a node that does not know them.
    pub(crate) const MANDATORY: u8 = 0x80;
}

/// Address encodings.
pub(crate) mod ae {
    pub(crate) const WILDCARD: u8 = 0;
    pub(crate) const IPV4: u8 = 1;
    pub(crate) const IPV6: u8 = 2;
    pub(crate) const LINK_LOCAL: u8 = 3;
}

/// Hello flag: unicast.
pub(crate) const HELLO_UNICAST: u16 = 0x8000;
/// Update flag: its prefix is the default of later ones, which may omit leading bytes.
pub(crate) const UPDATE_PREFIX: u8 = 0x80;
/// Update flag: the router-id is the last 8 bytes of the prefix.
pub(crate) const UPDATE_ROUTER_ID: u8 = 0x40;

/// Router-id: identifies the origin of a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouterId(pub [u8; 8]);

impl RouterId {
    /// The router-id of a node: the last 8 bytes of its overlay address, which binds it to the key.
    pub fn of(key: &PublicKey) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&key.address().0[8..]);
        Self(id)
    }
}

/// A 48-bit sequence number: the origin's start in the upper 32 bits, the sequence number of RFC 8966 in the
/// lower 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Serial(pub u64);

impl Serial {
    /// Composes a serial.
    pub fn new(epoch: u32, seqno: u16) -> Self {
        Self(u64::from(epoch) << 16 | u64::from(seqno))
    }

    /// Its low 16 bits, the sequence number of RFC 8966.
    #[allow(clippy::cast_possible_truncation, reason = "that is the point")]
    pub fn seqno(self) -> u16 {
        self.0 as u16
    }

    /// Its upper 32 bits, the origin's start.
    #[allow(clippy::cast_possible_truncation, reason = "a serial has 48 bits")]
    pub fn epoch(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// The next serial; the maximum stays.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1) & 0xffff_ffff_ffff)
    }

    /// The nearest serial with the given sequence number.
    pub fn near(self, seqno: u16) -> Self {
        let up = u64::from(seqno.wrapping_sub(self.seqno()));
        let forward = self.0.saturating_add(up);
        if up < 0x8000 || forward < 0x1_0000 {
            Self(forward)
        } else {
            Self(forward - 0x1_0000)
        }
    }
}

/// Signed proof that the owner of a key announced a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Public key of the origin.
    pub key: PublicKey,
    /// Serial of the announcement.
    pub serial: Serial,
    /// Signature over [`Origin::message`].
    pub signature: Signature,
}

/// Domain separation of the signature of an [`Origin`].
const CONTEXT: &[u8; 24] = b"hyphae route origin, v1\0";

impl Origin {
    /// Length of a signed message, bytes.
    pub const MESSAGE_LEN: usize = CONTEXT.len() + 16 + 1 + 8 + 6;

    /// The signed bytes: context, prefix, its length, router-id, serial.
    pub fn message(prefix: Prefix, router_id: RouterId, serial: Serial) -> [u8; Self::MESSAGE_LEN] {
        let mut bytes = [0; Self::MESSAGE_LEN];
        bytes[..24].copy_from_slice(CONTEXT);
        bytes[24..40].copy_from_slice(&prefix.address().0);
        bytes[40] = prefix.len();
        bytes[41..49].copy_from_slice(&router_id.0);
        bytes[49..].copy_from_slice(&serial.0.to_be_bytes()[2..]);
        bytes
    }
}

/// Timestamps of an IHU (RFC 9616), microseconds, each of its sender's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// Transmission of the last Hello received, by the clock of its sender.
    pub origin: u32,
    /// Its arrival, by the clock of the sender of the IHU.
    pub receive: u32,
}

/// A TLV.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlv {
    /// Request to acknowledge this packet within `interval` centiseconds.
    AckRequest {
        /// Value to return.
        opaque: u16,
        /// Centiseconds.
        interval: u16,
    },
    /// Acknowledgement of a packet.
    Ack {
        /// Value of the request.
        opaque: u16,
    },
    /// Hello.
    Hello {
        /// Unicast hellos have a sequence of their own.
        unicast: bool,
        /// Sequence number.
        seqno: u16,
        /// Centiseconds to the next; 0 for an unscheduled one.
        interval: u16,
        /// Transmission time, microseconds.
        transmit: Option<u32>,
    },
    /// IHU: reception report.
    Ihu {
        /// Reception cost.
        rxcost: u16,
        /// Centiseconds to the next.
        interval: u16,
        /// Timestamps for the round-trip time.
        echo: Option<Echo>,
    },
    /// Route or retraction.
    Update(Update),
    /// Request for the route to a prefix, or for all.
    RouteRequest {
        /// `None` for all.
        prefix: Option<Prefix>,
    },
    /// Request to the origin for a new sequence number.
    SeqnoRequest(SeqnoRequest),
}

/// Route or retraction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    /// Prefix; `None`, with an infinite metric, retracts every route of this link.
    pub prefix: Option<Prefix>,
    /// Router-id of the origin; `None` only with an infinite metric.
    pub router_id: Option<RouterId>,
    /// Centiseconds to the next.
    pub interval: u16,
    /// Sequence number of the origin.
    pub seqno: u16,
    /// Metric of the sender's route; [`INFINITY`] retracts it.
    pub metric: u16,
    /// Proof of origin; omitted for a neighbour that has acknowledged it.
    pub origin: Option<Origin>,
}

/// A request for a new sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeqnoRequest {
    /// The prefix.
    pub prefix: Prefix,
    /// Its origin.
    pub router_id: RouterId,
    /// Requested sequence number, at least.
    pub seqno: u16,
    /// Remaining hops.
    pub hop_count: u8,
    /// Newest announcement known to the requester: an origin that was restored from an old state recognises its
    /// own signature and continues from it.
    pub origin: Option<Origin>,
}

#[cfg(test)]
mod tests;
