//! Cuts a super-packet of the host into packets that fit the path: TCP and UDP segmentation.
//!
//! ```text
//!  super-packet    | IPv6 | TCP or UDP |          payload             |
//!  segment 0       | IPv6 | TCP or UDP | gso_size |
//!  segment 1       | IPv6 | TCP or UDP |          | gso_size |
//!  segment n - 1   | IPv6 | TCP or UDP |                     | 1..=gso_size |
//! ```
//!
//! Each segment has its own lengths and sequence number; FIN and PSH stay on the last one, CWR on
//! the first. A packet that is no super-packet is its own only segment.
//!
//! A partial checksum stays partial, with the pseudo-header sum of its segment in the field, where
//! the receiver can find it again (see [`super`]), and is completed here where it cannot.

use hyphae_shm::stats::DropReason;
use zerocopy::FromBytes;

use super::checksum;
use super::header::TunHeader;
use super::packet::{self, Ipv6Header, TcpHeader, UdpHeader, flag, length, protocol};

/// The packets that one read of the TUN device stands for, in order.
#[derive(Clone, Debug)]
pub struct Splitter<'p> {
    packet: &'p [u8],
    cut: Cut,
    /// Bytes of the headers, which every segment repeats.
    headers: usize,
    /// Payload bytes of every segment but the last.
    payload: usize,
    /// Segments in all, at least one.
    count: usize,
    /// Segments written.
    position: usize,
    checksum: Checksum,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Not a super-packet: passes as it is.
    None,
    /// Where the TCP header is.
    Tcp(usize),
    /// Where the UDP header is.
    Udp(usize),
}

#[derive(Clone, Copy, Debug)]
enum Checksum {
    /// Complete already, or none.
    Left,
    /// To be completed by the receiver. Of a super-packet: the pseudo-header sum without its
    /// length.
    Partial { sum: u16 },
    /// To be completed here.
    Complete { sum: u16, start: usize, at: usize },
}

impl<'p> Splitter<'p> {
    /// Checks a packet of the host and the header that came with it.
    ///
    /// # Errors
    /// [`DropReason::TunNotIpv6`]; [`DropReason::TunMalformed`] when the two contradict each other;
    /// [`DropReason::TunTooBig`] when a segment is longer than `mtu`.
    pub fn new(header: &TunHeader, packet: &'p [u8], mtu: u16) -> Result<Self, DropReason> {
        let ipv6 = packet::ipv6(packet).map_err(|not| not.host_reason())?;
        let splitter = Self::parse(header, ipv6, packet).ok_or(DropReason::TunMalformed)?;
        if splitter.segment_len() > usize::from(mtu) {
            return Err(DropReason::TunTooBig);
        }
        Ok(splitter)
    }

    fn parse(header: &TunHeader, ipv6: &Ipv6Header, packet: &'p [u8]) -> Option<Self> {
        // A flag of an offload that was not asked for says that the packet is not what it seems.
        let unknown = header.flags & !(TunHeader::NEEDS_CSUM | TunHeader::DATA_VALID) != 0;
        if unknown || usize::from(header.hdr_len.get()) > packet.len() {
            return None;
        }
        let (cut, headers) = cut(header, ipv6, packet)?;
        let payload_all = packet.len() - headers;
        let (payload, count) = match cut {
            Cut::None => (payload_all, 1),
            Cut::Tcp(_) | Cut::Udp(_) => {
                let size = usize::from(header.gso_size.get());
                if size == 0 || payload_all == 0 {
                    return None;
                }
                (size.min(payload_all), payload_all.div_ceil(size))
            }
        };
        let checksum = checksum(header, ipv6, packet, cut)?;
        Some(Self {
            packet,
            cut,
            headers,
            payload,
            count,
            position: 0,
            checksum,
        })
    }

    /// Bytes of every segment but the last, which may be shorter.
    pub fn segment_len(&self) -> usize {
        self.headers + self.payload
    }

    /// Segments not written yet.
    pub fn remaining(&self) -> usize {
        self.count - self.position
    }

    /// Segments written: what [`Self::seek`] takes to return to this place.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Makes segment `position` the next, to write it again; past the end there is none.
    pub fn seek(&mut self, position: usize) {
        self.position = position.min(self.count);
    }

    /// Bytes of the next segment; `None` when all are written.
    pub fn next_len(&self) -> Option<usize> {
        (self.position < self.count).then(|| {
            let written = self.headers + self.position * self.payload;
            self.headers + self.payload.min(self.packet.len() - written)
        })
    }

    /// Whether the segments leave with a checksum that the receiver has to complete
    /// ([`hyphae_wire::frame::FLAG_PARTIAL_CHECKSUM`]).
    pub fn partial_checksum(&self) -> bool {
        matches!(self.checksum, Checksum::Partial { .. })
    }

    /// Writes the next segment to the start of `out` and returns its length. `None`, with nothing
    /// done, when all are written or `out` is shorter than [`Self::next_len`].
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let out = out.get_mut(..len)?;
        let (headers, payload) = out.split_at_mut(self.headers);
        let from = self.headers + self.position * self.payload;
        headers.copy_from_slice(&self.packet[..self.headers]);
        payload.copy_from_slice(&self.packet[from..from + payload.len()]);
        self.patch(headers, len);
        if let Checksum::Complete { start, at, .. } = self.checksum {
            checksum::complete(out, start, at);
        }
        self.position += 1;
        Some(len)
    }

    /// Makes copied headers those of the segment of `len` bytes at the current position.
    fn patch(&self, headers: &mut [u8], len: usize) {
        let (Cut::Tcp(at) | Cut::Udp(at)) = self.cut else {
            return;
        };
        let transport_len = length(len - at);
        let sum = match self.checksum {
            Checksum::Left => return,
            Checksum::Partial { sum } | Checksum::Complete { sum, .. } => {
                checksum::add(sum, transport_len)
            }
        };
        let (network, transport) = headers.split_at_mut(at);
        if let Ok((ipv6, _)) = Ipv6Header::mut_from_prefix(network) {
            ipv6.payload_len.set(length(len - packet::IPV6_HEADER_LEN));
        }
        match self.cut {
            Cut::None => {}
            Cut::Tcp(_) => {
                let Ok((tcp, _)) = TcpHeader::mut_from_prefix(transport) else {
                    return;
                };
                let before = u32::from(length(self.position * self.payload));
                tcp.sequence.set(tcp.sequence.get().wrapping_add(before));
                if self.position > 0 {
                    tcp.flags &= !flag::CWR;
                }
                if self.remaining() > 1 {
                    tcp.flags &= !(flag::FIN | flag::PSH);
                }
                tcp.checksum.set(sum);
            }
            Cut::Udp(_) => {
                let Ok((udp, _)) = UdpHeader::mut_from_prefix(transport) else {
                    return;
                };
                udp.len.set(transport_len);
                udp.checksum.set(sum);
            }
        }
    }
}

/// How a packet is to be cut and the bytes of its headers; `None` when it cannot be.
fn cut(header: &TunHeader, ipv6: &Ipv6Header, packet: &[u8]) -> Option<(Cut, usize)> {
    let wanted = match header.gso_type & !TunHeader::GSO_ECN {
        TunHeader::GSO_NONE if header.gso_type == TunHeader::GSO_NONE => {
            return Some((Cut::None, packet::IPV6_HEADER_LEN));
        }
        TunHeader::GSO_TCPV6 => protocol::TCP,
        TunHeader::GSO_UDP_L4 if header.gso_type == TunHeader::GSO_UDP_L4 => protocol::UDP,
        _ => return None,
    };
    let packet::Transport { protocol, at } = packet::transport(ipv6, packet)?;
    let transport = packet.get(at..)?;
    let (cut, header_len, checksum_at) = if protocol == protocol::TCP {
        let (tcp, _) = TcpHeader::ref_from_prefix(transport).ok()?;
        let header_len = tcp.header_len();
        // Neither has a meaning in the middle of a stream, where segments would repeat it.
        let alone = tcp.flags & (flag::SYN | flag::RST) != 0;
        if alone || header_len < packet::TCP_HEADER_LEN || header_len > transport.len() {
            return None;
        }
        (Cut::Tcp(at), header_len, packet::TCP_CHECKSUM_AT)
    } else {
        let (udp, _) = UdpHeader::ref_from_prefix(transport).ok()?;
        if usize::from(udp.len.get()) != transport.len() {
            return None;
        }
        (
            Cut::Udp(at),
            packet::UDP_HEADER_LEN,
            packet::UDP_CHECKSUM_AT,
        )
    };
    let agree = protocol == wanted
        && header.flags & TunHeader::NEEDS_CSUM != 0
        && usize::from(header.csum_start.get()) == at
        && usize::from(header.csum_offset.get()) == checksum_at;
    agree.then_some((cut, at + header_len))
}

/// What is to be done about the checksum; `None` when it is said to be where it cannot be.
fn checksum(header: &TunHeader, ipv6: &Ipv6Header, packet: &[u8], cut: Cut) -> Option<Checksum> {
    if header.flags & TunHeader::NEEDS_CSUM == 0 {
        return Some(Checksum::Left);
    }
    let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
    let at = usize::from(start) + usize::from(offset);
    let field = packet.get(at..)?.first_chunk()?;
    let start_at = usize::from(start);
    if start_at < packet::IPV6_HEADER_LEN {
        return None;
    }
    let sum = u16::from_be_bytes(*field);
    let sum = match cut {
        Cut::None => sum,
        Cut::Tcp(_) | Cut::Udp(_) => checksum::subtract(sum, length(packet.len() - start_at)),
    };
    Some(
        if packet::partial_checksum_at(ipv6, packet) == Some((start, offset)) {
            Checksum::Partial { sum }
        } else {
            Checksum::Complete {
                sum,
                start: start_at,
                at,
            }
        },
    )
}

#[cfg(test)]
mod tests;
