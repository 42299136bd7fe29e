//! Packets of the message bus, byte by byte, and those that must be refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use hyphae_test_golden::load;
use hyphae_wire::message::{AckRange, Body, ChunkLayout, Packet, Status, parse};
use zerocopy::FromBytes;

#[test]
fn packets_of_the_message_bus() {
    let (mut read, mut refused) = (0, 0);
    for case in load("message") {
        let at = case.at();
        if case.has("refused") {
            assert_eq!(parse(&case.bytes("refused")), None, "{at}");
            refused += 1;
            continue;
        }
        let bytes = |field| {
            if case.has(field) {
                case.bytes(field)
            } else {
                Vec::new()
            }
        };
        let (topic, data, ranges) = (bytes("topic"), bytes("data"), bytes("ranges"));
        let digest: [u8; 32] = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let kind: u8 = case.number("kind");
        let (stored, received) = (bytes("kept"), bytes("there"));
        let ids: Vec<[u8; 8]> = bytes("ids")
            .chunks_exact(8)
            .map(|id| id.try_into().unwrap())
            .collect();
        let body = match kind {
            1 => Body::Open {
                layout: ChunkLayout {
                    len: case.number("length"),
                    first: data.len(),
                    chunk: case.number("chunk"),
                },
                digest: &digest,
                topic: &topic,
                failure: None,
                data: &data,
            },
            2 => Body::Data {
                number: case.number("number"),
                data: &data,
            },
            3 => Body::Ack {
                status: Status::from_code(case.number("status")).unwrap(),
                number: case.number("number"),
                ranges: <[AckRange]>::ref_from_bytes(&ranges).unwrap(),
            },
            4 => Body::Query,
            5 => Body::Read { ids: &ids },
            6 => Body::ReadAck,
            7 => Body::Abort,
            9 => Body::BatchAck {
                delay_us: case.number("number"),
                stored: <[AckRange]>::ref_from_bytes(&stored).unwrap(),
                received: <[AckRange]>::ref_from_bytes(&received).unwrap(),
            },
            _ => panic!("{at}: kind {kind}"),
        };
        let packet = Packet {
            // These are about several messages, or a receipt.
            id: if matches!(kind, 5 | 6 | 9) {
                [0; 8]
            } else {
                [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7]
            },
            reply: case.number::<u8>("reply") == 1,
            sequence: case.number("sequence"),
            body,
        };
        assert_eq!(packet.encode(), case.bytes("packet"), "{at}");
        assert_eq!(parse(&case.bytes("packet")), Some(packet), "{at}");
        read += 1;
    }
    assert_eq!((read, refused), (13, 24));
}
