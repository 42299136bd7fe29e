//! What the host writes into the TUN device, and what a session's other end sends for it.

use hyphae_forward::host::{
    Coalescer, Part, Splitter, TUN_HEADER_LEN, TunHeader, TunSink, inspect as read,
};
use zerocopy::FromBytes;

use crate::take;

/// A packet, without what the TUN device puts in front of it.
pub fn inspect(data: &[u8]) {
    let Ok(inner) = read(data) else { return };
    assert!(data.len() >= 40 && inner.hop_limit == data[7]);
    assert_eq!(
        (&inner.source.0[..], &inner.destination.0[..]),
        (&data[8..24], &data[24..40])
    );
}

/// A read of the TUN device: MTU of the path (two bytes), virtio-net header, packet.
pub fn split(mut data: &[u8]) {
    let Some(mtu) = take(&mut data).map(u16::from_le_bytes) else {
        return;
    };
    let Some((header, packet)) = TunHeader::split(data) else {
        return;
    };
    let Ok(mut splitter) = Splitter::new(header, packet, mtu) else {
        return;
    };
    let Ok(whole) = read(packet) else {
        panic!("an accepted packet is IPv6")
    };
    // Where the host has a checksum completed that the receiver could not find, it may well say
    // that it is where the ports are.
    let anywhere = header.flags & TunHeader::NEEDS_CSUM != 0 && !splitter.partial_checksum();
    let mut segment = vec![0; usize::from(mtu)];
    while let Some(len) = splitter.next_len() {
        let before = splitter.position();
        assert!(len <= splitter.segment_len() && splitter.remaining() > 0);
        assert_eq!(splitter.write_next(&mut segment[..len - 1]), None);
        assert_eq!(splitter.write_next(&mut segment), Some(len));
        let Ok(inner) = read(&segment[..len]) else {
            panic!("a segment is IPv6")
        };
        assert_eq!(
            (inner.source, inner.destination),
            (whole.source, whole.destination)
        );
        assert!(
            inner.flow_hash == whole.flow_hash || anywhere,
            "segments are of one flow"
        );
        assert_eq!(splitter.position(), before + 1);
    }
    assert_eq!(
        (splitter.remaining(), splitter.write_next(&mut segment)),
        (0, None)
    );
}

/// Packets of a turn: per packet a length (two bytes; the top bit says that its checksum is
/// partial), then the packet. The first byte chooses whether UDP is merged.
pub fn coalesce(mut data: &[u8]) {
    let Some([udp]) = take(&mut data) else { return };
    let mut coalescer = Coalescer::new(udp & 1 == 1);
    let mut device = Device::default();
    let mut accepted = 0;
    while let Some(word) = take(&mut data).map(u16::from_le_bytes) {
        let len = usize::from(word & 0x7fff).min(data.len());
        let (packet, rest) = data.split_at(len);
        data = rest;
        let Ok(buffer) = u16::try_from(device.buffers.len()) else {
            return;
        };
        let Ok(len) = u32::try_from(len) else { return };
        device.buffers.push(packet.to_vec());
        let part = Part {
            buffer,
            offset: 0,
            len,
        };
        accepted += usize::from(coalescer.push(&mut device, part, word >> 15 == 1).is_ok());
    }
    coalescer.flush(&mut device);
    assert_eq!(device.parts, accepted, "every packet is written, once");
    coalescer.flush(&mut device);
    assert_eq!(device.parts, accepted, "and nothing is stored");
}

/// Buffers, and how many parts were written.
#[derive(Default)]
struct Device {
    buffers: Vec<Vec<u8>>,
    parts: usize,
}

impl TunSink for Device {
    fn slice(&mut self, buffer: u16, offset: u32, len: u32) -> &mut [u8] {
        let at = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        &mut self.buffers[usize::from(buffer)][at(offset)..][..at(len)]
    }

    fn write(&mut self, header: &TunHeader, parts: &[Part]) {
        assert!((1..=64).contains(&parts.len()));
        self.parts += parts.len();
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|p| self.slice(p.buffer, p.offset, p.len).to_vec())
            .collect();
        assert!(bytes.len() <= 65_535 + 40);
        assert!(read(&bytes).is_ok(), "lengths of what is written are right");
        let written = header.to_bytes();
        assert!(TunHeader::read_from_bytes(&written).is_ok_and(|written| written == *header));
        if header.gso_type == TunHeader::GSO_NONE {
            return;
        }
        // The kernel, given this back, would cut it at the same places.
        let mut splitter = match Splitter::new(header, &bytes, u16::MAX) {
            Ok(splitter) => splitter,
            Err(reason) => panic!("a super-packet that cannot be cut: {reason:?}"),
        };
        assert_eq!(splitter.remaining(), parts.len());
        let mut segment = vec![0; splitter.segment_len() + TUN_HEADER_LEN];
        while splitter.write_next(&mut segment).is_some() {}
    }
}
