//! Packets of the routing protocol.

use hyphae_wire::babel::{HEADER_LEN, INFINITY, PACKET_MAX, Packet, Tlv, TlvError, Writer};

/// A routing packet, as a link opened it.
pub fn babel(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else {
        return;
    };
    let stated = usize::from(u16::from_be_bytes([data[2], data[3]]));
    assert!(stated + HEADER_LEN <= data.len());
    let read: Vec<Result<Tlv, TlvError>> = packet.tlvs().collect();
    // A TLV takes a byte at least, and what is after the body counts for nothing.
    assert!(read.len() <= stated);
    let body = &data[..stated + HEADER_LEN];
    assert!(Packet::parse(body).is_ok_and(|same| same.tlvs().eq(read.iter().copied())));
    let tlvs: Vec<Tlv> = read.into_iter().flatten().collect();
    for tlv in &tlvs {
        if let Tlv::Update(update) = tlv {
            assert!(update.metric == INFINITY || update.router_id.is_some());
            assert!(update.metric == INFINITY || update.prefix.is_some());
        }
    }
    assert_eq!(rewritten(&tlvs), tlvs);
}

/// What is read from packets that `tlvs` were written to.
fn rewritten(tlvs: &[Tlv]) -> Vec<Tlv> {
    let mut packets = Vec::new();
    let mut writer = Writer::new();
    for tlv in tlvs {
        if !writer.push(tlv) {
            packets.push(writer.take());
            assert!(writer.push(tlv), "one TLV fits into an empty packet");
        }
    }
    packets.push(writer.take());
    let read = packets.iter().flat_map(|packet| {
        assert!(packet.len() <= PACKET_MAX);
        Packet::parse(packet)
            .map(|p| p.tlvs())
            .into_iter()
            .flatten()
    });
    read.map(|tlv| match tlv {
        Ok(tlv) => tlv,
        Err(error) => panic!("what was written is read: {error}"),
    })
    .collect()
}
