//! Encoder of routing packets.

use super::read::prefix_bytes;
use super::{
    HEADER_LEN, HELLO_UNICAST, MAGIC, Origin, RouterId, Tlv, UPDATE_PREFIX, Update, VERSION, ae,
    sub, tlv,
};
use crate::Prefix;

/// Longest packet, bytes: with all headers it fits into a link frame of a path that carries 1280-byte packets.
pub const PACKET_MAX: usize = 1152;

/// Encodes TLVs into a packet of at most [`PACKET_MAX`] bytes.
///
/// Tracks the parser state of the receiver, so that updates omit a router-id and leading prefix bytes that
/// repeat.
#[derive(Clone, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    router_id: Option<RouterId>,
    prefix: Option<[u8; 16]>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty packet.
    pub fn new() -> Self {
        Self {
            bytes: vec![MAGIC, VERSION, 0, 0],
            router_id: None,
            prefix: None,
        }
    }

    /// Whether the packet has no TLV.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_LEN
    }

    /// Appends a TLV. False, without a change, when it does not fit.
    #[must_use]
    pub fn push(&mut self, tlv: &Tlv) -> bool {
        let (len, router_id, prefix) = (self.bytes.len(), self.router_id, self.prefix);
        self.write(tlv);
        if self.bytes.len() <= PACKET_MAX {
            return true;
        }
        self.bytes.truncate(len);
        (self.router_id, self.prefix) = (router_id, prefix);
        false
    }

    /// Returns the packet; the writer is then empty.
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(self).bytes;
        // At most PACKET_MAX.
        let len = u16::try_from(bytes.len() - HEADER_LEN).unwrap_or(u16::MAX);
        bytes[2..HEADER_LEN].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    fn write(&mut self, tlv: &Tlv) {
        match tlv {
            Tlv::AckRequest { opaque, interval } => self.tlv(tlv::ACK_REQUEST, |b| {
                b.extend([0; 2]);
                b.extend(opaque.to_be_bytes());
                b.extend(interval.to_be_bytes());
            }),
            Tlv::Ack { opaque } => self.tlv(tlv::ACK, |b| b.extend(opaque.to_be_bytes())),
            Tlv::Hello {
                unicast,
                seqno,
                interval,
                transmit,
            } => self.tlv(tlv::HELLO, |b| {
                let flags = if *unicast { HELLO_UNICAST } else { 0 };
                b.extend(flags.to_be_bytes());
                b.extend(seqno.to_be_bytes());
                b.extend(interval.to_be_bytes());
                if let Some(transmit) = transmit {
                    b.extend([sub::TIMESTAMP, 4]);
                    b.extend(transmit.to_be_bytes());
                }
            }),
            Tlv::Ihu {
                rxcost,
                interval,
                echo,
            } => self.tlv(tlv::IHU, |b| {
                b.extend([ae::WILDCARD, 0]);
                b.extend(rxcost.to_be_bytes());
                b.extend(interval.to_be_bytes());
                if let Some(echo) = echo {
                    b.extend([sub::TIMESTAMP, 8]);
                    b.extend(echo.origin.to_be_bytes());
                    b.extend(echo.receive.to_be_bytes());
                }
            }),
            Tlv::Update(update) => self.update(update),
            Tlv::RouteRequest { prefix } => self.tlv(tlv::ROUTE_REQUEST, |b| match prefix {
                Some(prefix) => {
                    b.extend([ae::IPV6, prefix.len()]);
                    put_prefix(b, *prefix);
                }
                None => b.extend([ae::WILDCARD, 0]),
            }),
            Tlv::SeqnoRequest(request) => self.tlv(tlv::SEQNO_REQUEST, |b| {
                b.extend([ae::IPV6, request.prefix.len()]);
                b.extend(request.seqno.to_be_bytes());
                b.extend([request.hop_count, 0]);
                b.extend(request.router_id.0);
                put_prefix(b, request.prefix);
                put_origin(b, request.origin.as_ref());
            }),
        }
    }

    fn update(&mut self, update: &Update) {
        if let Some(id) = update.router_id.filter(|id| self.router_id != Some(*id)) {
            self.router_id = Some(id);
            self.tlv(tlv::ROUTER_ID, |b| {
                b.extend([0; 2]);
                b.extend(id.0);
            });
        }
        let before = self.prefix;
        if let Some(prefix) = update.prefix {
            self.prefix = Some(prefix.address().0);
        }
        self.tlv(tlv::UPDATE, |b| {
            let (encoding, flags, len) = match update.prefix {
                Some(prefix) => (ae::IPV6, UPDATE_PREFIX, prefix.len()),
                None => (ae::WILDCARD, 0, 0),
            };
            let address = update.prefix.map_or([0; 16], |p| p.address().0);
            let bytes = &address[..prefix_bytes(len)];
            let omitted = before.map_or(0, |before| {
                let same = |(a, b): &(&u8, &u8)| a == b;
                bytes.iter().zip(&before).take_while(same).count()
            });
            // At most 16.
            b.extend([encoding, flags, len, u8::try_from(omitted).unwrap_or(0)]);
            b.extend(update.interval.to_be_bytes());
            b.extend(update.seqno.to_be_bytes());
            b.extend(update.metric.to_be_bytes());
            b.extend(&bytes[omitted..]);
            put_origin(b, update.origin.as_ref());
        });
    }

    /// Appends a TLV with this body.
    fn tlv(&mut self, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend([kind, 0]);
        body(&mut self.bytes);
        // A seqno request with its origin is the longest, 134 bytes.
        self.bytes[start + 1] = u8::try_from(self.bytes.len() - start - 2).unwrap_or(u8::MAX);
    }
}

fn put_prefix(bytes: &mut Vec<u8>, prefix: Prefix) {
    bytes.extend(&prefix.address().0[..prefix_bytes(prefix.len())]);
}

fn put_origin(bytes: &mut Vec<u8>, origin: Option<&Origin>) {
    if let Some(origin) = origin {
        bytes.extend([sub::ORIGIN, 102]);
        bytes.extend(origin.key.0);
        bytes.extend(&origin.serial.0.to_be_bytes()[2..]);
        bytes.extend(origin.signature.0);
    }
}
