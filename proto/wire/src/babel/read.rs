//! Parser of routing packets.

use super::{
    Echo, HEADER_LEN, HELLO_UNICAST, INFINITY, MAGIC, Origin, RouterId, SeqnoRequest, Serial, Tlv,
    UPDATE_PREFIX, UPDATE_ROUTER_ID, Update, VERSION, ae, sub, tlv,
};
use crate::signature::{SIGNATURE_LEN, Signature};
use crate::{OverlayAddress, Prefix, PublicKey};

/// Why a packet is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than its header, or than the length it states.
    #[error("routing packet is cut short")]
    Short,
    /// Another first byte than [`MAGIC`].
    #[error("routing packet begins with {0}, not with 42")]
    Magic(u8),
    /// Another version.
    #[error("routing packet of version {0}, not 2")]
    Version(u8),
}

/// Why a TLV is ignored. TLVs after it are still valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlvError {
    /// Shorter than its type requires, or inconsistent.
    #[error("TLV of type {0} is malformed")]
    Malformed(u8),
    /// Of a type or address family that this node does not use, or with a mandatory sub-TLV that
    /// it does not know.
    #[error("TLV of type {0} is of a kind that is not used here")]
    Ignored(u8),
}

/// A packet with a valid header.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Checks header and length; bytes after the body are the trailer, which is ignored.
    ///
    /// # Errors
    /// When it is not a packet of Babel version 2, or is cut short.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let [magic, version, high, low, rest @ ..] = bytes else {
            return Err(PacketError::Short);
        };
        if *magic != MAGIC {
            return Err(PacketError::Magic(*magic));
        }
        if *version != VERSION {
            return Err(PacketError::Version(*version));
        }
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let body = rest.get(..len).ok_or(PacketError::Short)?;
        debug_assert!(bytes.len() >= HEADER_LEN);
        Ok(Self { body })
    }

    /// The TLVs, without padding.
    pub fn tlvs(&self) -> Tlvs<'a> {
        Tlvs {
            rest: self.body,
            router_id: None,
            prefix: None,
        }
    }
}

/// Iterator over the TLVs of a packet, with the parser state of RFC 8966 section 4.5.
#[derive(Clone, Debug)]
pub struct Tlvs<'a> {
    rest: &'a [u8],
    router_id: Option<RouterId>,
    /// Default prefix, whose leading bytes updates may omit.
    prefix: Option<[u8; 16]>,
}

/// Cursor over big-endian fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn router_id(&mut self) -> Option<RouterId> {
        self.array().map(RouterId)
    }
}

/// Known sub-TLVs of a TLV.
#[derive(Default)]
struct Subs {
    timestamps: [Option<u32>; 2],
    origin: Option<Origin>,
}

/// Why a TLV yields no value.
enum Void {
    Malformed,
    Ignored,
}

/// A missing field makes the TLV malformed.
fn need<T>(field: Option<T>) -> Result<T, Void> {
    field.ok_or(Void::Malformed)
}

fn subs(mut fields: Fields<'_>) -> Result<Subs, Void> {
    let mut subs = Subs::default();
    while let Some(kind) = fields.u8() {
        if kind == sub::PAD1 {
            continue;
        }
        let len = need(fields.u8())?;
        let mut body = Fields(need(fields.take(len.into()))?);
        match kind {
            sub::TIMESTAMP => subs.timestamps = [Some(need(body.u32())?), body.u32()],
            sub::ORIGIN => {
                let key = PublicKey(need(body.array())?);
                let serial = Serial::new(need(body.u32())?, need(body.u16())?);
                let signature = Signature(need(body.array::<SIGNATURE_LEN>())?);
                subs.origin = Some(Origin {
                    key,
                    serial,
                    signature,
                });
            }
            kind if kind & sub::MANDATORY != 0 => return Err(Void::Ignored),
            _ => {}
        }
    }
    Ok(subs)
}

/// Bytes of a prefix of `len` bits.
pub(super) fn prefix_bytes(len: u8) -> usize {
    usize::from(len).div_ceil(8)
}

/// Reads `len` bits of prefix, of which `omitted` bytes come from `default`.
fn prefix(
    fields: &mut Fields<'_>,
    len: u8,
    omitted: u8,
    default: Option<[u8; 16]>,
) -> Result<Prefix, Void> {
    let (bytes, omitted) = (prefix_bytes(len), usize::from(omitted));
    if len > 128 || omitted > bytes {
        return Err(Void::Malformed);
    }
    let mut address = [0; 16];
    if omitted > 0 {
        address[..omitted].copy_from_slice(&need(default)?[..omitted]);
    }
    address[omitted..bytes].copy_from_slice(need(fields.take(bytes - omitted))?);
    Ok(Prefix::new(OverlayAddress(address), len))
}

fn ihu(mut f: Fields<'_>) -> Result<Tlv, Void> {
    let encoding = need(f.u8())?;
    need(f.u8())?;
    let (rxcost, interval) = (need(f.u16())?, need(f.u16())?);
    // A link has two ends, so the address is redundant, but allowed.
    need(f.take(match encoding {
        ae::WILDCARD => 0,
        ae::IPV4 => 4,
        ae::IPV6 => 16,
        ae::LINK_LOCAL => 8,
        _ => return Err(Void::Ignored),
    }))?;
    let echo = match subs(f)?.timestamps {
        [Some(origin), Some(receive)] => Some(Echo { origin, receive }),
        _ => None,
    };
    Ok(Tlv::Ihu {
        rxcost,
        interval,
        echo,
    })
}

fn route_request(mut f: Fields<'_>) -> Result<Tlv, Void> {
    let (encoding, len) = (need(f.u8())?, need(f.u8())?);
    let prefix = match encoding {
        ae::WILDCARD if len == 0 => None,
        ae::WILDCARD => return Err(Void::Malformed),
        ae::IPV6 => Some(prefix(&mut f, len, 0, None)?),
        _ => return Err(Void::Ignored),
    };
    subs(f)?;
    Ok(Tlv::RouteRequest { prefix })
}

fn seqno_request(mut f: Fields<'_>) -> Result<SeqnoRequest, Void> {
    let (encoding, len) = (need(f.u8())?, need(f.u8())?);
    let (seqno, hop_count) = (need(f.u16())?, need(f.u8())?);
    need(f.u8())?;
    let router_id = need(f.router_id())?;
    match encoding {
        ae::WILDCARD => return Err(Void::Malformed),
        ae::IPV6 => {}
        _ => return Err(Void::Ignored),
    }
    if hop_count == 0 {
        return Err(Void::Malformed);
    }
    Ok(SeqnoRequest {
        prefix: prefix(&mut f, len, 0, None)?,
        router_id,
        seqno,
        hop_count,
        origin: subs(f)?.origin,
    })
}

impl Tlvs<'_> {
    fn parse(&mut self, kind: u8, body: &[u8]) -> Result<Option<Tlv>, Void> {
        let mut f = Fields(body);
        Ok(Some(match kind {
            tlv::PADN => return Ok(None),
            tlv::ACK_REQUEST => {
                need(f.u16())?;
                let (opaque, interval) = (need(f.u16())?, need(f.u16())?);
                subs(f)?;
                Tlv::AckRequest { opaque, interval }
            }
            tlv::ACK => {
                let opaque = need(f.u16())?;
                subs(f)?;
                Tlv::Ack { opaque }
            }
            tlv::HELLO => {
                let (flags, seqno, interval) = (need(f.u16())?, need(f.u16())?, need(f.u16())?);
                let [transmit, _] = subs(f)?.timestamps;
                Tlv::Hello {
                    unicast: flags & HELLO_UNICAST != 0,
                    seqno,
                    interval,
                    transmit,
                }
            }
            tlv::IHU => ihu(f)?,
            tlv::ROUTER_ID => {
                need(f.u16())?;
                let id = need(f.router_id())?;
                subs(f)?;
                self.router_id = Some(id);
                return Ok(None);
            }
            // Ignored: the next hop is always the neighbour.
            tlv::NEXT_HOP => return Ok(None),
            tlv::UPDATE => Tlv::Update(self.update(f)?),
            tlv::ROUTE_REQUEST => route_request(f)?,
            tlv::SEQNO_REQUEST => Tlv::SeqnoRequest(seqno_request(f)?),
            _ => return Err(Void::Ignored),
        }))
    }

    fn update(&mut self, mut f: Fields<'_>) -> Result<Update, Void> {
        let (encoding, flags) = (need(f.u8())?, need(f.u8())?);
        let (len, omitted) = (need(f.u8())?, need(f.u8())?);
        let (interval, seqno, metric) = (need(f.u16())?, need(f.u16())?, need(f.u16())?);
        let prefix = match encoding {
            ae::WILDCARD if metric == INFINITY && len == 0 && omitted == 0 => None,
            ae::WILDCARD => return Err(Void::Malformed),
            ae::IPV6 => Some(prefix(&mut f, len, omitted, self.prefix)?),
            _ => return Err(Void::Ignored),
        };
        // The defaults apply to later updates even if a sub-TLV invalidates this one.
        if let Some(prefix) = prefix {
            let bytes = prefix.address().0;
            if flags & UPDATE_PREFIX != 0 {
                self.prefix = Some(bytes);
            }
            if flags & UPDATE_ROUTER_ID != 0 {
                let mut id = [0; 8];
                id.copy_from_slice(&bytes[8..]);
                self.router_id = Some(RouterId(id));
            }
        }
        let origin = subs(f)?.origin;
        let other = origin.is_some_and(|origin| origin.serial.seqno() != seqno);
        if other || (self.router_id.is_none() && metric != INFINITY) {
            return Err(Void::Malformed);
        }
        Ok(Update {
            prefix,
            router_id: self.router_id,
            interval,
            seqno,
            metric,
            origin,
        })
    }
}

impl Iterator for Tlvs<'_> {
    type Item = Result<Tlv, TlvError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (kind, rest) = self.rest.split_first()?;
            self.rest = rest;
            if *kind == tlv::PAD1 {
                continue;
            }
            let Some((body, rest)) = rest
                .split_first()
                .and_then(|(len, rest)| rest.split_at_checked((*len).into()))
            else {
                self.rest = &[];
                return Some(Err(TlvError::Malformed(*kind)));
            };
            self.rest = rest;
            match self.parse(*kind, body) {
                Ok(None) => {}
                Ok(Some(tlv)) => return Some(Ok(tlv)),
                Err(Void::Malformed) => return Some(Err(TlvError::Malformed(*kind))),
                Err(Void::Ignored) => return Some(Err(TlvError::Ignored(*kind))),
            }
        }
    }
}
