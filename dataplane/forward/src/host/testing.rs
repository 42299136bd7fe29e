//! Packets for the tests of this module, and an oracle of the kernel's side of the TUN device:
//! checksums and segmentation written as plainly as possible, sharing no code with what they test.

use std::ops::Range;

use hyphae_shm::stats::DropReason;
use proptest::prelude::*;

use super::{Coalescer, Part, Splitter, TunHeader, TunSink};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// What a TCP or UDP packet is made from.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) protocol: u8,
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
    pub(super) class_label: u32,
    pub(super) hop_limit: u8,
    pub(super) ports: (u16, u16),
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

/// Bytes that differ from place to place.
pub(super) fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn address(last: u8) -> [u8; 16] {
    [4, 0xab, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, last]
}

impl Spec {
    pub(super) fn tcp(payload: usize) -> Self {
        Self {
            protocol: TCP,
            source: address(1),
            destination: address(2),
            class_label: 0x0123_4567,
            hop_limit: 61,
            ports: (40_000, 443),
            sequence: 0xffff_fc00,
            acknowledgment: 77,
            flags: 0x10,
            window: 501,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            payload: noise(payload, 1),
        }
    }

    pub(super) fn udp(payload: usize) -> Self {
        Self {
            protocol: UDP,
            options: Vec::new(),
            ..Self::tcp(payload)
        }
    }

    pub(super) fn headers_len(&self) -> usize {
        if self.protocol == TCP {
            60 + self.options.len()
        } else {
            48
        }
    }

    /// The packet with its pseudo-header sum in the checksum field.
    pub(super) fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut packet = ipv6(self, self.protocol, &transport);
        seed(&mut packet);
        packet
    }

    /// The packet with an extension header of 8 bytes before the transport header.
    pub(super) fn build_extended(&self, kind: u8) -> Vec<u8> {
        let mut payload = vec![self.protocol, 0, 1, 4, 0, 0, 0, 0];
        payload.extend(self.transport());
        let mut packet = ipv6(self, kind, &payload);
        let sum = pseudo(&packet, self.protocol, packet.len() - 48);
        let at = 48 + checksum_at(self.protocol);
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.ports.0.to_be_bytes());
        out.extend(self.ports.1.to_be_bytes());
        if self.protocol == TCP {
            out.extend(self.sequence.to_be_bytes());
            out.extend(self.acknowledgment.to_be_bytes());
            out.push(u8::try_from(((20 + self.options.len()) / 4) << 4).unwrap());
            out.push(self.flags);
            out.extend(self.window.to_be_bytes());
            out.extend([0; 4]);
            out.extend(&self.options);
        } else {
            out.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            out.extend([0; 2]);
        }
        out.extend(&self.payload);
        out
    }

    /// The offload header of a super-packet to be cut into `size` bytes of payload.
    pub(super) fn offload(&self, size: usize) -> TunHeader {
        TunHeader {
            flags: TunHeader::NEEDS_CSUM,
            gso_type: if self.protocol == TCP { 4 } else { 5 },
            hdr_len: u16::try_from(self.headers_len()).unwrap().into(),
            gso_size: u16::try_from(size).unwrap().into(),
            csum_start: 40.into(),
            csum_offset: u16::try_from(checksum_at(self.protocol)).unwrap().into(),
        }
    }
}

/// A super-packet and its segment size.
pub(super) fn super_packet() -> impl Strategy<Value = (Spec, usize)> {
    let tcp = (0..=10_usize, any::<u32>(), 0..=1_u8, any::<u8>());
    (
        any::<bool>(),
        tcp,
        1..=60_000_usize,
        1..=1_240_usize,
        any::<u32>(),
    )
        .prop_map(
            |(is_tcp, (options, sequence, class, flags), len, size, seed)| {
                let base = if is_tcp { Spec::tcp(0) } else { Spec::udp(0) };
                let spec = Spec {
                    options: if is_tcp {
                        noise(options * 4, seed)
                    } else {
                        vec![]
                    },
                    sequence,
                    class_label: seed ^ u32::from(class),
                    flags: flags & !0x06,
                    payload: noise(len, seed),
                    ..base
                };
                (spec, size)
            },
        )
}

/// An IPv6 packet of `next_header` around `payload`.
pub(super) fn ipv6(like: &Spec, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = (0x6000_0000 | like.class_label & 0xfff_ffff)
        .to_be_bytes()
        .to_vec();
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next_header, like.hop_limit]);
    packet.extend(like.source);
    packet.extend(like.destination);
    packet.extend(payload);
    packet
}

pub(super) fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        ICMPV6 => 2,
        other => panic!("no checksum known of protocol {other}"),
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    u16::try_from(sum).unwrap()
}

fn pseudo(packet: &[u8], protocol: u8, len: usize) -> u16 {
    let mut bytes = packet[8..40].to_vec();
    bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    sum(&bytes)
}

/// Puts the pseudo-header sum into the checksum field.
pub(super) fn seed(packet: &mut [u8]) {
    let sum = pseudo(packet, packet[6], packet.len() - 40);
    let at = 40 + checksum_at(packet[6]);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Completes a partial checksum as the virtio-net header says, from what the field holds.
pub(super) fn complete_at(packet: &mut [u8], start: usize, offset: usize) {
    let checksum = match !sum(&packet[start..]) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Completes the checksum of a packet whose transport header follows the IPv6 header.
pub(super) fn complete(packet: &mut [u8]) {
    complete_at(packet, 40, checksum_at(packet[6]));
}

/// Whether the checksum of a transport header at `start` is right.
pub(super) fn verifies(packet: &[u8], protocol: u8, start: usize) -> bool {
    let mut bytes = pseudo(packet, protocol, packet.len() - start)
        .to_be_bytes()
        .to_vec();
    bytes.extend(&packet[start..]);
    matches!(sum(&bytes), 0 | 0xffff)
}

/// What the kernel makes of a TUN write: single packets with complete checksums.
pub(super) fn deliver(header: &TunHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
    let place = (usize::from(start), usize::from(offset));
    assert_eq!(
        usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        packet.len() - 40
    );
    if header.gso_type == TunHeader::GSO_NONE {
        let mut packet = packet.to_vec();
        match header.flags {
            0 => assert_eq!(*header, TunHeader::default()),
            flags => {
                assert_eq!(flags, TunHeader::NEEDS_CSUM);
                complete_at(&mut packet, place.0, place.1);
            }
        }
        return vec![packet];
    }
    assert_eq!(header.flags, TunHeader::NEEDS_CSUM);
    let tcp = header.gso_type & 0x7f == TunHeader::GSO_TCPV6;
    assert_eq!(place, (40, if tcp { 16 } else { 6 }));
    let headers = 40
        + if tcp {
            usize::from(packet[52] >> 4) * 4
        } else {
            8
        };
    assert_eq!(usize::from(header.hdr_len.get()), headers);
    assert!(packet.len() <= 65_535);
    let cuts: Vec<_> = packet[headers..]
        .chunks(usize::from(header.gso_size.get()))
        .collect();
    let mut sequence = u32::from_be_bytes(packet[44..48].try_into().unwrap());
    let mut out = Vec::new();
    for (n, payload) in cuts.iter().enumerate() {
        let mut segment = [&packet[..headers], payload].concat();
        let len = u16::try_from(segment.len() - 40).unwrap();
        segment[4..6].copy_from_slice(&len.to_be_bytes());
        if tcp {
            segment[44..48].copy_from_slice(&sequence.to_be_bytes());
            sequence = sequence.wrapping_add(u32::try_from(payload.len()).unwrap());
            if n > 0 {
                segment[53] &= 0x7f;
            }
            if n + 1 < cuts.len() {
                segment[53] &= !0x09;
            }
        } else {
            segment[44..46].copy_from_slice(&len.to_be_bytes());
        }
        seed(&mut segment);
        complete(&mut segment);
        assert!(verifies(&segment, packet[6], 40));
        out.push(segment);
    }
    out
}

/// All segments, or why not.
pub(super) fn split(
    header: &TunHeader,
    packet: &[u8],
    mtu: u16,
) -> Result<(Vec<Vec<u8>>, bool), DropReason> {
    let mut splitter = Splitter::new(header, packet, mtu)?;
    let mut segments = Vec::new();
    while let Some(len) = splitter.next_len() {
        let left = splitter.remaining();
        let mut out = vec![0xee; len + 3];
        assert!(len <= usize::from(mtu) && len <= splitter.segment_len());
        assert_eq!(splitter.write_next(&mut out), Some(len));
        assert_eq!(out[len..], [0xee; 3]);
        assert_eq!(splitter.remaining(), left - 1);
        out.truncate(len);
        segments.push(out);
    }
    assert_eq!(
        (splitter.remaining(), splitter.write_next(&mut [0; 9])),
        (0, None)
    );
    Ok((segments, splitter.partial_checksum()))
}

/// Buffers of a driver, and what was written to its TUN device.
#[derive(Default)]
pub(super) struct Memory {
    buffers: Vec<Vec<u8>>,
    pub(super) writes: Vec<(TunHeader, Vec<u8>)>,
}

impl Memory {
    /// Puts a packet into a buffer, with other bytes around it.
    pub(super) fn store(&mut self, packet: &[u8]) -> Part {
        self.buffers
            .push([&[0xdd; 11][..], packet, &[0xdd; 5]].concat());
        Part {
            buffer: u16::try_from(self.buffers.len() - 1).unwrap(),
            offset: 11,
            len: u32::try_from(packet.len()).unwrap(),
        }
    }

    pub(super) fn push(
        &mut self,
        coalescer: &mut Coalescer,
        packet: &[u8],
        partial: bool,
    ) -> Result<(), DropReason> {
        let part = self.store(packet);
        coalescer.push(self, part, partial)
    }

    /// What the kernel makes of all writes.
    pub(super) fn delivered(&self) -> Vec<Vec<u8>> {
        self.writes
            .iter()
            .flat_map(|(header, packet)| deliver(header, packet))
            .collect()
    }

    /// Packets in each write.
    pub(super) fn shape(&self) -> Vec<usize> {
        self.writes
            .iter()
            .map(|(header, packet)| deliver(header, packet).len())
            .collect()
    }
}

fn range(part: &Part) -> Range<usize> {
    let offset = usize::try_from(part.offset).unwrap();
    offset..offset + usize::try_from(part.len).unwrap()
}

impl TunSink for Memory {
    fn slice(&mut self, buffer: u16, offset: u32, len: u32) -> &mut [u8] {
        &mut self.buffers[usize::from(buffer)][range(&Part {
            buffer,
            offset,
            len,
        })]
    }

    fn write(&mut self, header: &TunHeader, parts: &[Part]) {
        assert!((1..=64).contains(&parts.len()));
        let bytes = parts
            .iter()
            .flat_map(|p| &self.buffers[usize::from(p.buffer)][range(p)]);
        let packet = bytes.copied().collect();
        self.writes.push((*header, packet));
    }
}
