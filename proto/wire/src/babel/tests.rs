use super::*;
use crate::SecretKey;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn all() -> Vec<Tlv> {
    let key = SecretKey::from_bytes(&[7; 32]).unwrap();
    let (router_id, serial) = (RouterId::of(&key.public_key()), Serial::new(9, 513));
    let subnet = key.public_key().address().subnet();
    let origin = Origin {
        key: key.public_key(),
        serial,
        signature: key.sign(&Origin::message(subnet, router_id, serial), &[3; 64]),
    };
    let update = Update {
        prefix: Some(subnet),
        router_id: Some(router_id),
        interval: 60_000,
        seqno: serial.seqno(),
        metric: 96,
        origin: Some(origin),
    };
    let longer = Prefix::new(subnet.address(), 65);
    vec![
        Tlv::AckRequest {
            opaque: 0xbeef,
            interval: 20,
        },
        Tlv::Ack { opaque: 7 },
        Tlv::Hello {
            unicast: false,
            seqno: 65_535,
            interval: 100,
            transmit: Some(123_456),
        },
        Tlv::Hello {
            unicast: true,
            seqno: 0,
            interval: 0,
            transmit: None,
        },
        Tlv::Ihu {
            rxcost: 256,
            interval: 300,
            echo: Some(Echo {
                origin: 1,
                receive: 2,
            }),
        },
        Tlv::Ihu {
            rxcost: INFINITY,
            interval: 300,
            echo: None,
        },
        Tlv::Update(update),
        Tlv::Update(Update {
            prefix: Some(longer),
            origin: None,
            ..update
        }),
        Tlv::Update(Update {
            prefix: Some(prefix("::/0")),
            origin: None,
            ..update
        }),
        Tlv::Update(Update {
            prefix: None,
            metric: INFINITY,
            origin: None,
            ..update
        }),
        Tlv::RouteRequest { prefix: None },
        Tlv::RouteRequest {
            prefix: Some(prefix("fd00:1:2::/47")),
        },
        Tlv::SeqnoRequest(SeqnoRequest {
            prefix: subnet,
            router_id,
            seqno: 514,
            hop_count: 64,
            origin: Some(origin),
        }),
    ]
}

fn read(bytes: &[u8]) -> Vec<Result<Tlv, TlvError>> {
    Packet::parse(bytes).unwrap().tlvs().collect()
}

#[test]
fn every_tlv_survives_a_round_trip() {
    let mut writer = Writer::new();
    for tlv in all() {
        assert!(writer.push(&tlv));
    }
    let bytes = writer.take();
    assert!(writer.is_empty());
    let expected: Vec<_> = all().into_iter().map(Ok).collect();
    assert_eq!(read(&bytes), expected);
}

#[test]
fn what_does_not_fit_leaves_the_packet_as_it_was() {
    let mut writer = Writer::new();
    let tlvs: Vec<_> = all().into_iter().cycle().take(200).collect();
    let fit = tlvs.iter().take_while(|tlv| writer.push(tlv)).count();
    let bytes = writer.take();
    assert!(bytes.len() <= PACKET_MAX && fit < 200);
    assert_eq!(read(&bytes).len(), fit);
}

#[test]
fn bytes_shared_with_the_prefix_before_are_left_out() {
    let id = Some(RouterId([1; 8]));
    let update = |text| {
        Tlv::Update(Update {
            prefix: Some(prefix(text)),
            router_id: id,
            interval: 1,
            seqno: 1,
            metric: 1,
            origin: None,
        })
    };
    let mut writer = Writer::new();
    assert!(writer.push(&update("400:1:2:3::/64")));
    let before = writer.clone().take().len();
    assert!(writer.push(&update("400:1:2:4::/64")));
    assert_eq!(writer.clone().take().len() - before, 2 + 10 + 1);
    assert_eq!(
        read(&writer.take()),
        [Ok(update("400:1:2:3::/64")), Ok(update("400:1:2:4::/64"))]
    );
}

#[test]
fn damage_is_contained_in_its_tlv() {
    let mut packet = vec![MAGIC, VERSION, 0, 0];
    packet.extend([tlv::PAD1, tlv::PADN, 2, 0, 0]);
    packet.extend([200, 1, 0]); // unknown type
    packet.extend([tlv::ACK, 1, 0]); // too short
    packet.extend([tlv::UPDATE, 10, ae::IPV6, 0, 0, 0, 0, 1, 0, 1, 0, 1]); // no router-id before
    packet.extend([tlv::UPDATE, 10, ae::IPV6, 0, 64, 9, 0, 1, 0, 1, 0xff, 0xff]); // leaves out too much
    packet.extend([tlv::UPDATE, 10, ae::WILDCARD, 0, 0, 0, 0, 1, 0, 1, 0, 1]); // finite wildcard
    packet.extend([tlv::ROUTE_REQUEST, 2, ae::IPV4, 0]);
    packet.extend([tlv::ACK, 6, 0, 9, 0x85, 2, 0, 0]); // mandatory sub-TLV
    packet.extend([tlv::ACK, 6, 0, 9, 0x05, 2, 0, 0]); // one that is not
    packet.extend([tlv::HELLO, 250]); // beyond the end
    let len = u16::try_from(packet.len() - 4).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    use TlvError::{Ignored, Malformed};
    assert_eq!(
        read(&packet),
        [
            Err(Ignored(200)),
            Err(Malformed(tlv::ACK)),
            Err(Malformed(tlv::UPDATE)),
            Err(Malformed(tlv::UPDATE)),
            Err(Malformed(tlv::UPDATE)),
            Err(Ignored(tlv::ROUTE_REQUEST)),
            Err(Ignored(tlv::ACK)),
            Ok(Tlv::Ack { opaque: 9 }),
            Err(Malformed(tlv::HELLO)),
        ]
    );
}

#[test]
fn a_packet_of_another_kind_is_named() {
    assert_eq!(Packet::parse(&[]).unwrap_err(), PacketError::Short);
    assert_eq!(
        Packet::parse(&[41, 2, 0, 0]).unwrap_err(),
        PacketError::Magic(41)
    );
    assert_eq!(
        Packet::parse(&[42, 1, 0, 0]).unwrap_err(),
        PacketError::Version(1)
    );
    assert_eq!(
        Packet::parse(&[42, 2, 0, 1]).unwrap_err(),
        PacketError::Short
    );
}

#[test]
fn serials_do_not_wrap() {
    let last = Serial::new(1, 0xffff);
    assert_eq!(last.next(), Serial::new(2, 0));
    assert!(last.next() > last);
    assert_eq!(last.near(3), Serial::new(2, 3));
    assert_eq!(Serial::new(2, 3).near(0xfffe), Serial::new(1, 0xfffe));
    assert_eq!(Serial::new(0, 3).near(0xfffe), Serial::new(0, 0xfffe));
}
