//! Cuts super-packets of the host into packets of their own: TCP segmentation and UDP segmentation
//! as a network device would do it, except that checksums stay partial.

use hyphae_shm::stats::DropReason;

use super::checksum::pseudo_header;
use super::header::{GSO_ECN, GSO_NONE, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, TunHeader};
use super::inner::{IPV6_LEN, TCP, UDP};

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// One packet of the host, written out segment by segment.
pub struct Splitter<'a> {
    packet: &'a [u8],
    kind: Kind,
    /// Bytes of headers that every segment begins with.
    headers: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
    /// Payload bytes written so far.
    at: usize,
    done: bool,
    partial: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Tcp,
    Udp,
}

impl<'a> Splitter<'a> {
    /// Checks the virtio-net header against the packet, which [`super::inspect`] has accepted.
    ///
    /// # Errors
    /// [`DropReason::TunMalformed`] when they contradict each other, [`DropReason::TunTooBig`] when a
    /// segment would be larger than `mtu`.
    pub fn new(header: &TunHeader, packet: &'a [u8], mtu: u16) -> Result<Self, DropReason> {
        let malformed = DropReason::TunMalformed;
        if packet.len() < IPV6_LEN {
            return Err(malformed);
        }
        let partial = header.flags & NEEDS_CSUM != 0;
        let (kind, headers) = match header.gso_type & !GSO_ECN {
            GSO_NONE => (Kind::Whole, packet.len()),
            GSO_TCPV6 if packet[6] == TCP => {
                let offset = packet.get(IPV6_LEN + 12).ok_or(malformed)? >> 4;
                (Kind::Tcp, IPV6_LEN + usize::from(offset) * 4)
            }
            GSO_UDP_L4 if packet[6] == UDP => (Kind::Udp, IPV6_LEN + 8),
            _ => return Err(malformed),
        };
        let least = match kind {
            Kind::Whole => IPV6_LEN,
            Kind::Tcp => IPV6_LEN + 20,
            Kind::Udp => IPV6_LEN + 8,
        };
        if headers < least || headers > packet.len() {
            return Err(malformed);
        }
        let payload = packet.len() - headers;
        let size = if kind == Kind::Whole { 0 } else { usize::from(header.gso_size.get()) };
        let contradiction = match kind {
            Kind::Whole => {
                let start = usize::from(header.csum_start.get());
                let field = start + usize::from(header.csum_offset.get());
                partial && (start < IPV6_LEN || field + 2 > packet.len())
            }
            Kind::Tcp | Kind::Udp => size == 0 || payload == 0 || !partial,
        };
        if contradiction {
            return Err(malformed);
        }
        if headers + size.min(payload) > usize::from(mtu) {
            return Err(DropReason::TunTooBig);
        }
        Ok(Self { packet, kind, headers, size, at: 0, done: false, partial })
    }

    /// Bytes of every packet but the last, which may be shorter.
    pub fn segment_len(&self) -> usize {
        self.headers + self.size.min(self.packet.len() - self.headers)
    }

    /// Packets still to be written.
    pub fn remaining(&self) -> usize {
        match (self.done, self.kind) {
            (true, _) => 0,
            (false, Kind::Whole) => 1,
            (false, _) => (self.packet.len() - self.headers - self.at).div_ceil(self.size),
        }
    }

    /// Bytes of the next packet.
    pub fn next_len(&self) -> Option<usize> {
        if self.done {
            return None;
        }
        let rest = self.packet.len() - self.headers - self.at;
        Some(self.headers + if self.kind == Kind::Whole { 0 } else { rest.min(self.size) })
    }

    /// Whether the checksum of the packets is to be completed by whoever delivers them.
    pub fn partial_checksum(&self) -> bool {
        self.partial
    }

    /// Passes over the first `packets` packets, which were written before.
    pub fn skip(&mut self, packets: usize) {
        self.at = (packets * self.size).min(self.packet.len() - self.headers);
        self.done = packets > 0 && self.headers + self.at == self.packet.len();
    }

    /// Writes the next packet.
    ///
    /// # Panics
    /// When `out` is not [`Self::next_len`] bytes, or nothing remains.
    pub fn write_next(&mut self, out: &mut [u8]) {
        assert_eq!(Some(out.len()), self.next_len(), "room for exactly the next packet");
        let size = out.len() - self.headers;
        let from = self.headers + self.at;
        out[..self.headers].copy_from_slice(&self.packet[..self.headers]);
        out[self.headers..].copy_from_slice(&self.packet[from..from + size]);
        let first = self.at == 0;
        let last = from + size == self.packet.len();
        if self.kind != Kind::Whole {
            self.rewrite(out, first, last);
        }
        self.at += size;
        self.done = last;
    }

    fn rewrite(&self, out: &mut [u8], first: bool, last: bool) {
        // A segment is not longer than the super-packet, whose length field fits.
        let transport_len = out.len() - IPV6_LEN;
        let len = (transport_len as u16).to_be_bytes();
        out[4..6].copy_from_slice(&len);
        let (protocol, field) = match self.kind {
            Kind::Tcp => {
                let sequence = &mut out[IPV6_LEN + 4..IPV6_LEN + 8];
                let start = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
                // At most 64 KiB in.
                sequence.copy_from_slice(&start.wrapping_add(self.at as u32).to_be_bytes());
                let flags = &mut out[IPV6_LEN + 13];
                if !last {
                    *flags &= !(TCP_FIN | TCP_PSH);
                }
                if !first {
                    *flags &= !TCP_CWR;
                }
                (TCP, IPV6_LEN + 16)
            }
            Kind::Udp | Kind::Whole => {
                out[IPV6_LEN + 4..IPV6_LEN + 6].copy_from_slice(&len);
                (UDP, IPV6_LEN + 6)
            }
        };
        let sum = pseudo_header(out, protocol, transport_len);
        out[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
