//! One super-packet in the making: which packets may join it, and how its headers end up.

use hyphae_wire::OverlayAddress;
use zerocopy::FromBytes;

use super::checksum;
use super::coalesce::{Part, TunSink};
use super::header::TunHeader;
use super::packet::{
    IPV6_HEADER_LEN, Ipv6Header, TCP_CHECKSUM_AT, TCP_HEADER_LEN, TCP_HEADER_LEN_MAX, TcpHeader,
    UDP_CHECKSUM_AT, UDP_HEADER_LEN, UdpHeader, flag, length, protocol,
};

/// Packets of one group: the segments of one kernel super-packet, and the spans of one write.
pub(super) const SEGMENTS_MAX: usize = 64;
/// Bytes of one super-packet, IPv6 header included.
pub(super) const LEN_MAX: usize = 65_535;

const HEADERS_MAX: usize = IPV6_HEADER_LEN + TCP_HEADER_LEN_MAX;

/// What must not be reordered. Zero ports and protocol: whatever runs between the addresses.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flow {
    source: OverlayAddress,
    destination: OverlayAddress,
    protocol: u8,
    ports: u32,
}

impl Flow {
    /// The flow of a packet with TCP or UDP directly after the IPv6 header, else `None`.
    pub(super) fn of(ipv6: &Ipv6Header, packet: &[u8]) -> Option<Self> {
        if !matches!(ipv6.next_header, protocol::TCP | protocol::UDP) {
            return None;
        }
        let ports = u32::from_be_bytes(*packet.get(IPV6_HEADER_LEN..)?.first_chunk()?);
        let Ipv6Header {
            source,
            destination,
            next_header: protocol,
            ..
        } = *ipv6;
        Some(Self {
            source,
            destination,
            protocol,
            ports,
        })
    }
}

/// A packet that can be part of a group.
pub(super) struct Candidate {
    pub(super) flow: Flow,
    headers: Headers,
    payload_len: usize,
    /// TCP sequence numbers of the first byte and of the byte after the last; zero in UDP.
    sequence: u32,
    sequence_end: u32,
    /// PSH and FIN, which end a group.
    flags: u8,
}

/// IPv6 and transport header with zero in every field that differs between segments of one group:
/// two packets may be in one group only if these are equal.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Headers {
    bytes: [u8; HEADERS_MAX],
    len: usize,
}

impl Candidate {
    /// A TCP segment with data and no flags but ACK, PSH and FIN, or a UDP datagram with data;
    /// either without extension headers. `None` for anything else.
    pub(super) fn parse(ipv6: &Ipv6Header, packet: &[u8]) -> Option<Self> {
        let flow = Flow::of(ipv6, packet)?;
        let transport = &packet[IPV6_HEADER_LEN..];
        let header_len = match flow.protocol {
            protocol::TCP => TcpHeader::ref_from_prefix(transport).ok()?.0.header_len(),
            _ => UDP_HEADER_LEN,
        };
        let len = IPV6_HEADER_LEN + header_len;
        let payload_len = packet.len().checked_sub(len).filter(|len| *len > 0)?;
        if packet.len() > LEN_MAX {
            return None;
        }
        let mut headers = Headers {
            bytes: [0; HEADERS_MAX],
            len,
        };
        headers.bytes[..len].copy_from_slice(&packet[..len]);
        let (network, transport) = headers.bytes.split_at_mut(IPV6_HEADER_LEN);
        Ipv6Header::mut_from_bytes(network).ok()?.payload_len.set(0);
        let (mut sequence, mut sequence_end, mut flags) = (0, 0, 0);
        if flow.protocol == protocol::TCP {
            let (tcp, _) = TcpHeader::mut_from_prefix(transport).ok()?;
            flags = tcp.flags & (flag::PSH | flag::FIN);
            // The low bits of the offset are flags too: AE of RFC 9768, and reserved ones.
            let plain = tcp.flags ^ flags == flag::ACK && tcp.data_offset & 0xf == 0;
            if !plain || header_len < TCP_HEADER_LEN {
                return None;
            }
            sequence = tcp.sequence.get();
            sequence_end = sequence.wrapping_add(u32::from(length(payload_len)));
            (tcp.flags, tcp.sequence, tcp.checksum) = (0, 0.into(), 0.into());
        } else {
            let (udp, _) = UdpHeader::mut_from_prefix(transport).ok()?;
            if usize::from(udp.len.get()) != UDP_HEADER_LEN + payload_len {
                return None;
            }
            (udp.len, udp.checksum) = (0.into(), 0.into());
        }
        Some(Self {
            flow,
            headers,
            payload_len,
            sequence,
            sequence_end,
            flags,
        })
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.flow.protocol == protocol::TCP
    }
}

/// A group, or a free place for one.
pub(super) struct Group {
    flow: Flow,
    headers: Headers,
    /// Payload bytes of the first packet and of all but the last.
    segment: usize,
    /// Bytes of the whole super-packet.
    len: usize,
    sequence_end: u32,
    flags: u8,
    complete: bool,
    parts: [Part; SEGMENTS_MAX],
    /// Packets; zero when free.
    count: usize,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            flow: Flow::default(),
            headers: Headers {
                bytes: [0; HEADERS_MAX],
                len: 0,
            },
            segment: 0,
            len: 0,
            sequence_end: 0,
            flags: 0,
            complete: false,
            parts: [Part::default(); SEGMENTS_MAX],
            count: 0,
        }
    }
}

impl Group {
    pub(super) fn is_free(&self) -> bool {
        self.count == 0
    }

    pub(super) fn is_of(&self, flow: &Flow) -> bool {
        !self.is_free() && self.flow == *flow
    }

    pub(super) fn is_between(&self, ipv6: &Ipv6Header) -> bool {
        let ends = (self.flow.source, self.flow.destination);
        !self.is_free() && ends == (ipv6.source, ipv6.destination)
    }

    /// Whether nothing can join any more.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Starts a group in this free place with a first packet.
    pub(super) fn begin(&mut self, first: &Candidate, part: Part) {
        self.flow = first.flow;
        self.headers = first.headers;
        self.segment = first.payload_len;
        self.len = first.headers.len;
        self.count = 0;
        self.add(first, part);
    }

    /// Adds the next packet of the flow, if it is that.
    pub(super) fn join(&mut self, next: &Candidate, part: Part) -> bool {
        // UDP has zero for sequence numbers, which are always consecutive.
        let joins = !self.complete
            && next.sequence == self.sequence_end
            && next.payload_len <= self.segment
            && self.len + next.payload_len <= LEN_MAX
            && next.headers == self.headers;
        if joins {
            let skip = u32::from(length(next.headers.len));
            let payload = Part {
                offset: part.offset.saturating_add(skip),
                len: part.len.saturating_sub(skip),
                ..part
            };
            self.add(next, payload);
        }
        joins
    }

    fn add(&mut self, packet: &Candidate, part: Part) {
        self.parts[self.count] = part;
        self.count += 1;
        self.len += packet.payload_len;
        self.sequence_end = packet.sequence_end;
        self.flags = packet.flags;
        self.complete =
            packet.flags != 0 || packet.payload_len < self.segment || self.count == SEGMENTS_MAX;
    }

    /// Writes the group, unless the place is free, and frees the place.
    pub(super) fn write<S: TunSink>(&mut self, sink: &mut S) {
        if self.is_free() {
            return;
        }
        let first = self.parts[0];
        self.finish(sink.slice(
            first.buffer,
            first.offset,
            u32::from(length(self.headers.len)),
        ));
        sink.write(&self.header(), &self.parts[..self.count]);
        self.count = 0;
    }

    fn header(&self) -> TunHeader {
        let tcp = self.flow.protocol == protocol::TCP;
        let checksum_at = if tcp {
            TCP_CHECKSUM_AT
        } else {
            UDP_CHECKSUM_AT
        };
        let mut header = TunHeader {
            flags: TunHeader::NEEDS_CSUM,
            csum_start: length(IPV6_HEADER_LEN).into(),
            csum_offset: length(checksum_at).into(),
            ..TunHeader::default()
        };
        if self.count > 1 {
            header.gso_type = if tcp {
                TunHeader::GSO_TCPV6
            } else {
                TunHeader::GSO_UDP_L4
            };
            header.gso_size = length(self.segment).into();
            header.hdr_len = length(self.headers.len).into();
        }
        header
    }

    /// Makes the headers of the first packet those of all.
    fn finish(&self, headers: &mut [u8]) {
        let Some((network, transport)) = headers.split_at_mut_checked(IPV6_HEADER_LEN) else {
            return;
        };
        let Ok(ipv6) = Ipv6Header::mut_from_bytes(network) else {
            return;
        };
        let transport_len = length(self.len - IPV6_HEADER_LEN);
        ipv6.payload_len.set(transport_len);
        let sum = checksum::pseudo_header(ipv6, self.flow.protocol, transport_len);
        if self.flow.protocol == protocol::TCP {
            let Ok((tcp, _)) = TcpHeader::mut_from_prefix(transport) else {
                return;
            };
            tcp.flags |= self.flags;
            tcp.checksum.set(sum);
        } else {
            let Ok((udp, _)) = UdpHeader::mut_from_prefix(transport) else {
                return;
            };
            udp.len.set(transport_len);
            udp.checksum.set(sum);
        }
    }
}
