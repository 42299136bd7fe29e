//! Babel packets: our codec and Wireshark's dissector against the same bytes. Round trips over
//! generated packets are tested beside the codec, hostile bytes in `tests/fuzz`.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "babel/dissector.rs"]
mod dissector;

use hyphae_test_golden::load;
use hyphae_wire::babel::{
    Echo, INFINITY, Origin, Packet, RouterId, SeqnoRequest, Serial, Tlv, TlvError, Update, Writer,
};
use hyphae_wire::{Prefix, PublicKey, Signature};

/// What the packet of a case means.
fn meant(name: &str) -> Vec<Result<Tlv, TlvError>> {
    let prefix: Prefix = "400:1234:5678:9abc::/64".parse().unwrap();
    let router_id = RouterId([1, 2, 3, 4, 5, 6, 7, 8]);
    let hello = |seqno, interval, transmit| Tlv::Hello {
        unicast: false,
        seqno,
        interval,
        transmit,
    };
    let ihu = |rxcost, interval, echo: Option<(u32, u32)>| Tlv::Ihu {
        rxcost,
        interval,
        echo: echo.map(|(origin, receive)| Echo { origin, receive }),
    };
    let update = Update {
        prefix: Some(prefix),
        router_id: Some(router_id),
        interval: 1600,
        seqno: 5,
        metric: 96,
        origin: None,
    };
    let with = |text: &str, seqno, metric| Update {
        prefix: Some(text.parse().unwrap()),
        seqno,
        metric,
        ..update
    };
    let request = SeqnoRequest {
        prefix,
        router_id,
        seqno: 6,
        hop_count: 64,
        origin: None,
    };
    let tlvs = match name {
        "hello" => vec![hello(0x1234, 400, None)],
        "hello-unicast" => vec![Tlv::Hello {
            unicast: true,
            seqno: 0xffff,
            interval: 0,
            transmit: None,
        }],
        "hello-timestamp" => vec![hello(7, 90, Some(0x0102_0304))],
        "ihu" => vec![ihu(96, 300, None)],
        "ihu-link-local" => vec![ihu(INFINITY, 1200, None)],
        "ihu-timestamp" => vec![ihu(256, 300, Some((0xa1a2_a3a4, 0xb1b2_b3b4)))],
        "router-id" | "next-hop" => vec![],
        "update" => vec![Tlv::Update(update)],
        "update-compressed" => vec![
            Tlv::Update(update),
            Tlv::Update(with("400:1234:5678:9abc:5500::/72", 5, 192)),
        ],
        "update-router-id-from-address" => vec![Tlv::Update(Update {
            router_id: Some(RouterId([0, 1, 0, 2, 0, 3, 0, 4])),
            ..with("400:1234:5678:9abc:1:2:3:4/128", 9, 0)
        })],
        "retraction" => vec![Tlv::Update(Update {
            metric: INFINITY,
            ..update
        })],
        "wildcard-retraction" => vec![Tlv::Update(Update {
            prefix: None,
            router_id: None,
            interval: 0,
            seqno: 0,
            metric: INFINITY,
            origin: None,
        })],
        "update-odd-length" => vec![Tlv::Update(Update {
            interval: 6000,
            ..with("400::/7", 0xffff, 1)
        })],
        "route-request" => vec![Tlv::RouteRequest {
            prefix: Some(prefix),
        }],
        "wildcard-request" => vec![Tlv::RouteRequest { prefix: None }],
        "seqno-request" => vec![Tlv::SeqnoRequest(request)],
        "acknowledgement-request" => vec![Tlv::AckRequest {
            opaque: 0xbeef,
            interval: 100,
        }],
        "acknowledgement" => vec![Tlv::Ack { opaque: 0xbeef }],
        "padding" => vec![hello(1, 100, None)],
        "unknown-tlv" => {
            return vec![Err(TlvError::Ignored(200)), Ok(hello(1, 100, None))];
        }
        "signed-update" => {
            let (prefix, router_id, origin) = signed(name);
            vec![Tlv::Update(Update {
                prefix: Some(prefix),
                router_id: Some(router_id),
                interval: 6000,
                seqno: 0xfffe,
                metric: 0,
                origin: Some(origin),
            })]
        }
        "signed-seqno-request" => {
            let (prefix, router_id, origin) = signed(name);
            vec![Tlv::SeqnoRequest(SeqnoRequest {
                prefix,
                router_id,
                seqno: 0xffff,
                hop_count: 32,
                origin: Some(origin),
            })]
        }
        "all" => vec![
            hello(100, 90, Some(1)),
            ihu(96, 300, Some((2, 3))),
            Tlv::Update(update),
            Tlv::RouteRequest { prefix: None },
            Tlv::SeqnoRequest(request),
        ],
        _ => panic!("nothing is known about {name}"),
    };
    tlvs.into_iter().map(Ok).collect()
}

/// The origin that a case is signed by.
fn signed(name: &str) -> (Prefix, RouterId, Origin) {
    let cases = load("babel");
    let case = cases.iter().find(|case| case.name == name).unwrap();
    let key: PublicKey = case.parsed("public");
    let origin = Origin {
        key,
        serial: Serial::new(0x0001_0203, 0xfffe),
        signature: Signature(case.array("signature")),
    };
    (key.address().subnet(), RouterId::of(&key), origin)
}

#[test]
fn packets_are_read_as_they_are_meant() {
    for case in load("babel") {
        let bytes = case.bytes("packet");
        let read: Vec<_> = Packet::parse(&bytes).unwrap().tlvs().collect();
        assert_eq!(read, meant(&case.name), "{}", case.at());
    }
}

#[test]
fn packets_are_written_byte_for_byte() {
    for case in load("babel") {
        let mut writer = Writer::new();
        for tlv in meant(&case.name).into_iter().flatten() {
            assert!(writer.push(&tlv));
        }
        let same = writer.take() == case.bytes("packet");
        assert_eq!(same, case.text("written") == "yes", "{}", case.at());
    }
}

#[test]
fn origins_are_signed_over_the_documented_bytes() {
    for case in load("babel") {
        if !case.has("signature") {
            continue;
        }
        let (prefix, router_id, origin) = signed(&case.name);
        let message = Origin::message(prefix, router_id, origin.serial);
        assert_eq!(message[..], case.bytes("message"), "{}", case.at());
        assert_eq!(origin.key.verify(&message, &origin.signature), Ok(()));
    }
}

/// Needs `tshark` (Debian and Ubuntu: `apt install tshark`).
#[test]
fn wireshark_reads_the_packets_as_they_are_meant() {
    let cases = load("babel");
    let packets: Vec<_> = cases.iter().map(|case| case.bytes("packet")).collect();
    let Some(frames) = dissector::dissect(&packets) else {
        return hyphae_test_skip::skip("tshark is not installed");
    };
    for (case, frame) in cases.iter().zip(&frames) {
        let expected: Vec<_> = case.text("tlvs").split(", ").collect();
        assert_eq!(dissector::names(frame), expected, "{}:\n{frame}", case.at());
        for complaint in [
            "Malformed",
            "Expert Info",
            "Unreassembled",
            "[Checksum: [incorrect",
        ] {
            assert!(!frame.contains(complaint), "{}:\n{frame}", case.at());
        }
        for piece in case.text("shown").split("; ") {
            assert!(frame.contains(piece), "{}: {piece}\n{frame}", case.at());
        }
    }
}

#[test]
fn wireshark_would_have_complained() {
    let hello = load("babel").remove(0).bytes("packet");
    let mut longer = hello.clone();
    longer[5] = 60;
    let Some(frames) = dissector::dissect(&[hello, longer]) else {
        return hyphae_test_skip::skip("tshark is not installed");
    };
    assert!(!frames[0].contains("Malformed"), "{}", frames[0]);
    assert!(frames[1].contains("Malformed"), "{}", frames[1]);
}
