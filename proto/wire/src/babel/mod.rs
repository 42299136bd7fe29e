//! Packets of the routing protocol: Babel, RFC 8966 section 4, with the RTT sub-TLVs of RFC 9616.
//!
//! A packet is the body of a [`crate::control::ControlKind::Routing`] message; what RFC 8966 takes
//! from the UDP datagram around it, the link frame gives. Integers are big-endian, as the RFC says.
//!
//! ```text
//! packet: | magic 42 | version 2 | body length u16 | TLV … |
//! TLV:    | type u8 | length u8 | body | sub-TLV … |
//! ```
//!
//! One sub-TLV is our own, of a type that RFC 8966 leaves to experiments and marks mandatory (who
//! does not know it ignores the TLV):
//!
//! ```text
//! origin (240, in Update and Seqno Request): | key 32 | serial u48 | signature 64 |
//! ```
//!
//! The signature is over [`Origin::message`]. The [`Serial`] extends the 16-bit sequence number so
//! that it never wraps, and an old announcement stays old for ever; in an Update its low bits are the
//! sequence number.
//!
//! [`Packet`] reads, [`Writer`] writes. What the RFC says to ignore (unknown TLVs, malformed TLVs, address
//! families that the overlay does not carry) comes out of the iterator as such, to be counted.

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
/// The metric that means unreachable.
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
    /// Set in the types of those that make a TLV void for who does not know them.
    pub(crate) const MANDATORY: u8 = 0x80;
}

/// Address encodings.
pub(crate) mod ae {
    pub(crate) const WILDCARD: u8 = 0;
    pub(crate) const IPV4: u8 = 1;
    pub(crate) const IPV6: u8 = 2;
    pub(crate) const LINK_LOCAL: u8 = 3;
}

/// Hello: it is unicast.
pub(crate) const HELLO_UNICAST: u16 = 0x8000;
/// Update: its prefix is the one that later ones leave bytes out of.
pub(crate) const UPDATE_PREFIX: u8 = 0x80;
/// Update: the router-id is the last 8 bytes of its prefix.
pub(crate) const UPDATE_ROUTER_ID: u8 = 0x40;

/// Names the origin of a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouterId(pub [u8; 8]);

impl RouterId {
    /// The router-id of a node: the last 8 bytes of its overlay address, so that key and router-id
    /// are bound to each other.
    pub fn of(key: &PublicKey) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&key.address().0[8..]);
        Self(id)
    }
}

/// A sequence number with the epoch that keeps it from wrapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Serial(pub u64);

impl Serial {
    /// From its parts.
    pub fn new(epoch: u32, seqno: u16) -> Self {
        Self(u64::from(epoch) << 16 | u64::from(seqno))
    }

    /// Its low 16 bits, the sequence number of RFC 8966.
    #[allow(clippy::cast_possible_truncation, reason = "that is the point")]
    pub fn seqno(self) -> u16 {
        self.0 as u16
    }

    /// The bits above.
    #[allow(clippy::cast_possible_truncation, reason = "a serial has 48 bits")]
    pub fn epoch(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1) & 0xffff_ffff_ffff)
    }

    /// The serial nearest to this one that has the given sequence number.
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

/// Proof that a key's owner has announced a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The owner.
    pub key: PublicKey,
    /// Number of the announcement.
    pub serial: Serial,
    /// Over [`Origin::message`].
    pub signature: Signature,
}

/// Says what the signature of an [`Origin`] is for.
const CONTEXT: &[u8; 24] = b"hyphae route origin, v1\0";

impl Origin {
    /// Bytes of a signed message.
    pub const MESSAGE_LEN: usize = CONTEXT.len() + 16 + 1 + 8 + 6;

    /// What is signed: context, prefix, its length, router-id, serial.
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

/// Timestamps of RFC 9616 in an IHU, microseconds of clocks that only their owners read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// Of the last Hello received: when its sender sent it, by the sender's clock.
    pub origin: u32,
    /// When it arrived, by the clock of the sender of the IHU.
    pub receive: u32,
}

/// A TLV.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlv {
    /// Please acknowledge this packet within `interval` centiseconds.
    AckRequest {
        /// To be returned.
        opaque: u16,
        /// Centiseconds.
        interval: u16,
    },
    /// A packet has arrived.
    Ack {
        /// From its request.
        opaque: u16,
    },
    /// I am here.
    Hello {
        /// Counted apart from the others.
        unicast: bool,
        /// Of this kind of hello on this link.
        seqno: u16,
        /// Centiseconds to the next; 0 for one out of schedule.
        interval: u16,
        /// When it was sent, microseconds.
        transmit: Option<u32>,
    },
    /// I hear you, at this cost.
    Ihu {
        /// Cost of reception.
        rxcost: u16,
        /// Centiseconds to the next.
        interval: u16,
        /// For the round-trip time.
        echo: Option<Echo>,
    },
    /// A route, or its end.
    Update(Update),
    /// Please tell your route to a prefix, or all of them.
    RouteRequest {
        /// `None` for all.
        prefix: Option<Prefix>,
    },
    /// Please have the origin raise its sequence number.
    SeqnoRequest(SeqnoRequest),
}

/// A route, or its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    /// Destinations; `None`, with an infinite metric, ends every route told on this link.
    pub prefix: Option<Prefix>,
    /// Who announced it; `None` only where the metric is infinite.
    pub router_id: Option<RouterId>,
    /// Centiseconds to the next.
    pub interval: u16,
    /// The origin's.
    pub seqno: u16,
    /// Of the sender's route; [`INFINITY`] ends it.
    pub metric: u16,
    /// Proof of origin.
    pub origin: Option<Origin>,
}

/// A request for a new sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeqnoRequest {
    /// The prefix.
    pub prefix: Prefix,
    /// Its origin.
    pub router_id: RouterId,
    /// The least that helps.
    pub seqno: u16,
    /// Hops that the request may still go.
    pub hop_count: u8,
    /// The newest announcement known to who asks: an origin that was restored from an old state
    /// learns from it, by its own signature, where to go on.
    pub origin: Option<Origin>,
}

#[cfg(test)]
mod tests;
