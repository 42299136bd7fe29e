//! Merges packets of one turn into super-packets for the TUN device, as GRO does.
//!
//! Only packets whose checksum is partial are merged: then nobody's wrong checksum is laundered into
//! a right one. Within a flow order is kept: what cannot join its flow's group is written after it.
//! The bytes stay in the driver's buffers; a write names parts of them.

use hyphae_shm::stats::DropReason;
use zerocopy::little_endian::U16;

use super::checksum::pseudo_header;
use super::header::{GSO_NONE, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, TunHeader};
use super::inner::{ICMPV6, IPV6_LEN, TCP, UDP};

/// Packets of one super-packet.
const PARTS_MAX: usize = 64;
/// Flows that are merged at the same time.
const GROUPS_MAX: usize = 8;
/// Largest super-packet: the length field of IPv6 has 16 bits.
const BYTES_MAX: usize = 65_535 - IPV6_LEN;

const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;
const TCP_FIN: u8 = 0x01;

/// Bytes in a driver's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Which buffer.
    pub buffer: u16,
    /// Where they begin.
    pub offset: u32,
    /// How many.
    pub len: u32,
}

/// Where the bytes are and where writes go: the driver.
pub trait Buffers {
    /// The bytes of a part.
    fn bytes(&mut self, part: Part) -> &mut [u8];
    /// Writes a packet or super-packet to the TUN device.
    fn write(&mut self, header: &TunHeader, parts: &[Part]);
}

/// The groups that are open in a turn.
pub struct Coalescer {
    udp: bool,
    groups: Vec<Group>,
    spare: Vec<Group>,
}

struct Group {
    /// The flow: everything of the headers that must be equal.
    flow: Flow,
    /// Bytes of headers of the first packet.
    headers: usize,
    /// Payload bytes of each packet but the last.
    size: usize,
    /// Sequence number that continues the group (TCP).
    next_sequence: u32,
    /// Payload bytes so far.
    payload: usize,
    /// Flags that the last packet adds (PSH, FIN).
    last_flags: u8,
    closed: bool,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// Version, class and label; next header and hop limit; both addresses.
    ip: [u8; 38],
    ports: [u8; 4],
}

/// A packet taken apart.
struct Segment {
    flow: Flow,
    protocol: u8,
    headers: usize,
    payload: usize,
    sequence: u32,
    flags: u8,
}

impl Coalescer {
    /// A coalescer; `udp` says whether the TUN device takes UDP super-packets.
    pub fn new(udp: bool) -> Self {
        let group = || Group {
            flow: Flow { ip: [0; 38], ports: [0; 4] },
            headers: 0,
            size: 0,
            next_sequence: 0,
            payload: 0,
            last_flags: 0,
            closed: false,
            parts: Vec::with_capacity(PARTS_MAX),
        };
        Self {
            udp,
            groups: Vec::with_capacity(GROUPS_MAX),
            spare: (0..GROUPS_MAX).map(|_| group()).collect(),
        }
    }

    /// Takes a packet, which is well-formed IPv6 ([`super::inspect`]). It is written now, or with its
    /// group, at the latest by [`Self::flush`].
    ///
    /// # Errors
    /// [`DropReason::InnerMalformed`] when the checksum is said to be partial and there is no place
    /// for one.
    pub fn push(
        &mut self,
        buffers: &mut impl Buffers,
        part: Part,
        partial_checksum: bool,
    ) -> Result<(), DropReason> {
        let bytes = buffers.bytes(part);
        let flow_of = Flow::of(bytes);
        let Some(segment) = self.segment(bytes, flow_of, partial_checksum) else {
            // Not to be merged; but what came before it in its flow goes first.
            if let Some(at) = self.groups.iter().position(|group| group.flow == flow_of) {
                self.write_group(buffers, at);
            }
            let header = if partial_checksum {
                let bytes = buffers.bytes(part);
                complete(bytes).ok_or(DropReason::InnerMalformed)?
            } else {
                TunHeader::default()
            };
            buffers.write(&header, &[part]);
            return Ok(());
        };
        if let Some(at) = self.groups.iter().position(|group| group.flow == segment.flow) {
            let first = self.groups[at].parts[0];
            let joins = self.groups[at].takes(&segment)
                && (segment.protocol == UDP || same_tcp(buffers, first, part, segment.headers));
            if joins {
                self.groups[at].append(part, &segment);
                return Ok(());
            }
            self.write_group(buffers, at);
        } else if self.groups.len() == GROUPS_MAX {
            self.write_group(buffers, 0);
        }
        if let Some(mut group) = self.spare.pop() {
            group.start(part, &segment);
            self.groups.push(group);
        }
        Ok(())
    }

    /// Writes every open group.
    pub fn flush(&mut self, buffers: &mut impl Buffers) {
        while !self.groups.is_empty() {
            self.write_group(buffers, 0);
        }
    }

    /// Takes a packet apart if it may be merged.
    fn segment(&self, bytes: &[u8], flow: Flow, partial: bool) -> Option<Segment> {
        if !partial {
            return None;
        }
        let protocol = bytes[6];
        match protocol {
            TCP => {
                let tcp = bytes.get(IPV6_LEN..IPV6_LEN + 20)?;
                let headers = IPV6_LEN + usize::from(tcp[12] >> 4) * 4;
                let flags = tcp[13];
                let plain = flags & !(TCP_PSH | TCP_FIN) == TCP_ACK;
                let payload = bytes.len().checked_sub(headers).filter(|len| *len > 0)?;
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                (plain && headers >= IPV6_LEN + 20)
                    .then_some(Segment { flow, protocol, headers, payload, sequence, flags })
            }
            UDP if self.udp => {
                let headers = IPV6_LEN + 8;
                let udp = bytes.get(IPV6_LEN..headers)?;
                let payload = bytes.len().checked_sub(headers).filter(|len| *len > 0)?;
                let whole = usize::from(u16::from_be_bytes([udp[4], udp[5]])) == payload + 8;
                whole.then_some(Segment { flow, protocol, headers, payload, sequence: 0, flags: 0 })
            }
            _ => None,
        }
    }

    fn write_group(&mut self, buffers: &mut impl Buffers, at: usize) {
        let group = self.groups.remove(at);
        let header = group.finish(buffers.bytes(group.parts[0]));
        buffers.write(&header, &group.parts);
        self.spare.push(group);
    }
}

impl Flow {
    fn of(bytes: &[u8]) -> Self {
        let mut ip = [0; 38];
        ip[..4].copy_from_slice(&bytes[..4]);
        ip[4..].copy_from_slice(&bytes[6..40]);
        let mut ports = [0; 4];
        if let Some(found) = bytes.get(IPV6_LEN..IPV6_LEN + 4) {
            ports.copy_from_slice(found);
        }
        Self { ip, ports }
    }
}

/// Acknowledgement, data offset, window, urgent pointer and options are the same.
fn same_tcp(buffers: &mut impl Buffers, first: Part, next: Part, headers: usize) -> bool {
    let mut fixed = [0; 60];
    let len = headers - IPV6_LEN;
    fixed[..len].copy_from_slice(&buffers.bytes(first)[IPV6_LEN..headers]);
    let next = &buffers.bytes(next)[IPV6_LEN..headers];
    fixed[8..13] == next[8..13] && fixed[14..16] == next[14..16] && fixed[18..len] == next[18..]
}

impl Group {
    fn start(&mut self, part: Part, segment: &Segment) {
        self.flow = segment.flow;
        self.headers = segment.headers;
        self.size = segment.payload;
        self.payload = 0;
        self.closed = false;
        self.last_flags = 0;
        self.parts.clear();
        self.append(part, segment);
        self.parts[0] = part;
    }

    fn takes(&self, segment: &Segment) -> bool {
        !self.closed
            && segment.headers == self.headers
            && segment.payload <= self.size
            && self.parts.len() < PARTS_MAX
            && self.headers - IPV6_LEN + self.payload + segment.payload <= BYTES_MAX
            && (segment.protocol == UDP || segment.sequence == self.next_sequence)
    }

    /// Adds the payload of a packet.
    fn append(&mut self, part: Part, segment: &Segment) {
        // Headers are at most 100 bytes, payloads at most 64 KiB.
        let headers = segment.headers as u32;
        self.parts.push(Part { offset: part.offset + headers, len: part.len - headers, ..part });
        self.payload += segment.payload;
        self.next_sequence = segment.sequence.wrapping_add(segment.payload as u32);
        self.last_flags = segment.flags & (TCP_PSH | TCP_FIN);
        self.closed = segment.payload < self.size || self.last_flags != 0;
    }

    /// Completes the headers of the first packet so that they describe the whole group.
    fn finish(&self, first: &mut [u8]) -> TunHeader {
        let transport_len = self.headers - IPV6_LEN + self.payload;
        // Bounded by BYTES_MAX.
        let len = (transport_len as u16).to_be_bytes();
        first[4..6].copy_from_slice(&len);
        let (protocol, gso, field) = if first[6] == TCP {
            first[IPV6_LEN + 13] |= self.last_flags;
            (TCP, GSO_TCPV6, 16)
        } else {
            first[IPV6_LEN + 4..IPV6_LEN + 6].copy_from_slice(&len);
            (UDP, GSO_UDP_L4, 6)
        };
        let sum = pseudo_header(first, protocol, transport_len);
        first[IPV6_LEN + field..IPV6_LEN + field + 2].copy_from_slice(&sum.to_be_bytes());
        let merged = self.parts.len() > 1;
        TunHeader {
            flags: NEEDS_CSUM,
            gso_type: if merged { gso } else { GSO_NONE },
            hdr_len: U16::new(if merged { self.headers as u16 } else { 0 }),
            gso_size: U16::new(if merged { self.size as u16 } else { 0 }),
            csum_start: U16::new(IPV6_LEN as u16),
            csum_offset: U16::new(field as u16),
        }
    }
}

/// Header for a single packet whose checksum is partial; seeds the checksum field.
fn complete(bytes: &mut [u8]) -> Option<TunHeader> {
    let protocol = bytes[6];
    let field = match protocol {
        TCP => 16,
        UDP => 6,
        ICMPV6 => 2,
        _ => return None,
    };
    let transport_len = bytes.len() - IPV6_LEN;
    if transport_len < field + 2 {
        return None;
    }
    let sum = pseudo_header(bytes, protocol, transport_len);
    bytes[IPV6_LEN + field..IPV6_LEN + field + 2].copy_from_slice(&sum.to_be_bytes());
    Some(TunHeader {
        flags: NEEDS_CSUM,
        csum_start: U16::new(IPV6_LEN as u16),
        csum_offset: U16::new(field as u16),
        ..TunHeader::default()
    })
}
