//! Headers, nonces, control messages and whole sealed frames, byte by byte. Handshakes are in
//! `handshake.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod aead;

use aead::{Aead, implementations};
use hyphae_test_golden::{Case, load};
use hyphae_wire::control::{self, ControlKind, Probe};
use hyphae_wire::frame::{
    LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT, SealedHeaders, TAG_LEN,
    handshake_trailer, nonce,
};
use hyphae_wire::{
    FrameKind, LinkHeader, OverlayAddress, RoutingHeader, Service, SessionHeader, Suite,
};
use zerocopy::{FromBytes, IntoBytes};

fn address(case: &Case, field: &str) -> OverlayAddress {
    case.parsed::<std::net::Ipv6Addr>(field).into()
}

#[test]
fn link_header() {
    for case in load("link-header") {
        let kind = FrameKind::from_code(case.number("kind")).unwrap();
        let header = LinkHeader::new(kind, case.number("receiver"), case.number("counter"));
        assert_eq!(header.as_bytes(), case.bytes("bytes"), "{}", case.at());

        let bytes = case.bytes("bytes");
        let (parsed, rest) = LinkHeader::split(&bytes).unwrap();
        assert_eq!(
            (parsed.kind, parsed.flags, parsed.reserved.get()),
            (kind.code(), 0, 0)
        );
        assert_eq!(
            parsed.receiver.get(),
            case.number("receiver"),
            "{}",
            case.at()
        );
        assert_eq!(
            parsed.counter.get(),
            case.number::<u64>("counter"),
            "{}",
            case.at()
        );
        assert!(rest.is_empty());
    }
}

#[test]
fn routing_and_session_header_and_what_the_end_to_end_seal_covers_of_them() {
    for case in load("sealed-headers") {
        let headers = SealedHeaders {
            routing: RoutingHeader {
                destination: address(&case, "destination"),
                source: address(&case, "source"),
                hop_limit: case.number("hop_limit"),
                service: case.number("service"),
                flow_hash: case.number::<u16>("flow_hash").into(),
                payload_len: case.number::<u16>("payload_len").into(),
                flags: case.number::<u16>("flags").into(),
            },
            session: SessionHeader {
                receiver: case.number::<u32>("session_receiver").into(),
                counter: case.number::<u64>("session_counter").into(),
                ..SessionHeader::default()
            },
        };
        assert_eq!(
            headers.routing.as_bytes(),
            case.bytes("routing_header"),
            "{}",
            case.at()
        );
        assert_eq!(
            headers.session.as_bytes(),
            case.bytes("session_header"),
            "{}",
            case.at()
        );
        assert_eq!(
            headers.associated_data()[..],
            case.bytes("e2e_aad"),
            "{}",
            case.at()
        );

        let bytes = [case.bytes("routing_header"), case.bytes("session_header")].concat();
        let parsed = SealedHeaders::ref_from_bytes(&bytes).unwrap();
        assert_eq!(parsed.routing.destination, address(&case, "destination"));
        assert_eq!(parsed.routing.source, address(&case, "source"));
        assert_eq!(parsed.routing.hop_limit, case.number("hop_limit"));
        assert_eq!(parsed.routing.service, case.number("service"));
        assert_eq!(parsed.routing.flow_hash.get(), case.number("flow_hash"));
        assert_eq!(parsed.routing.payload_len.get(), case.number("payload_len"));
        assert_eq!(parsed.routing.flags.get(), case.number("flags"));
        assert_eq!(
            parsed.session.receiver.get(),
            case.number("session_receiver")
        );
        assert_eq!(
            parsed.session.counter.get(),
            case.number::<u64>("session_counter")
        );
    }
}

#[test]
fn nonces() {
    for case in load("nonce") {
        assert_eq!(
            nonce(case.number("counter")),
            case.array("nonce"),
            "{}",
            case.at()
        );
    }
}

/// The headers that a transit case describes.
fn headers(case: &Case, service: Service, payload: &[u8]) -> SealedHeaders {
    let field = |name| {
        if case.has(name) {
            case.number::<u64>(name)
        } else {
            0
        }
    };
    let narrow = |name| u16::try_from(field(name)).unwrap();
    SealedHeaders {
        routing: RoutingHeader {
            destination: address(case, "destination"),
            source: address(case, "source"),
            hop_limit: case.number("hop_limit"),
            service: service.code(),
            flow_hash: narrow("flow_hash").into(),
            payload_len: u16::try_from(payload.len()).unwrap().into(),
            flags: narrow("flags").into(),
        },
        session: SessionHeader {
            receiver: u32::try_from(field("session_receiver")).unwrap().into(),
            counter: field("session_counter").into(),
            ..SessionHeader::default()
        },
    }
}

fn link_header_of(case: &Case, kind: FrameKind) -> LinkHeader {
    LinkHeader::new(
        kind,
        case.number("link_receiver"),
        case.number("link_counter"),
    )
}

/// Seals headers for a hop around a payload that is sealed (or has its trailer) already.
fn seal_hop(
    link: &dyn Aead,
    header: &LinkHeader,
    headers: &SealedHeaders,
    sealed: &[u8],
) -> Vec<u8> {
    let aad = [header.as_bytes(), &sealed[sealed.len() - TAG_LEN..]].concat();
    let hop = link.seal(nonce(header.counter.get()), &aad, headers.as_bytes());
    [header.as_bytes(), &hop, sealed].concat()
}

/// The headers of a frame, by the offsets of `hyphae_wire::frame`.
fn open_hop(link: &dyn Aead, frame: &[u8]) -> Option<SealedHeaders> {
    let (header, _) = LinkHeader::split(frame)?;
    let aad = [&frame[..SEALED_HEADERS_AT], &frame[frame.len() - TAG_LEN..]].concat();
    let sealed = &frame[SEALED_HEADERS_AT..PAYLOAD_AT];
    assert_eq!(sealed.len(), LINK_TAG_AT - SEALED_HEADERS_AT + TAG_LEN);
    let headers = link.open(nonce(header.counter.get()), &aad, sealed)?;
    SealedHeaders::read_from_bytes(&headers).ok()
}

#[test]
fn transit_frames_of_both_suites() {
    for case in load("transit-frame") {
        let suite: Suite = case.parsed("suite");
        let (payload, frame) = (case.bytes("payload"), case.bytes("frame"));
        let service = Service::from_code(case.number("service")).unwrap();
        let headers = headers(&case, service, &payload);
        let header = link_header_of(&case, FrameKind::Transit);
        let e2e_nonce = nonce(case.number("session_counter"));
        let link_keys = implementations(suite, &case.array("link_key"));
        let e2e_keys = implementations(suite, &case.array("e2e_key"));
        assert_eq!(frame.len(), payload.len() + OVERHEAD);

        for ((name, link), (_, e2e)) in link_keys.iter().zip(&e2e_keys) {
            let at = format!("{} by {name}", case.at());
            let sealed = e2e.seal(e2e_nonce, &headers.associated_data(), &payload);
            assert_eq!(sealed, case.bytes("sealed_payload"), "{at}");
            assert_eq!(seal_hop(&**link, &header, &headers, &sealed), frame, "{at}");

            let mut opened = open_hop(&**link, &frame).unwrap_or_else(|| panic!("{at}"));
            assert_eq!(opened.as_bytes(), headers.as_bytes(), "{at}");
            // As the end sees it after some hops.
            opened.routing.hop_limit -= 1;
            let plain = e2e.open(e2e_nonce, &opened.associated_data(), &frame[PAYLOAD_AT..]);
            assert_eq!(plain, Some(payload.clone()), "{at}");
        }
        let aad = [header.as_bytes(), &frame[frame.len() - TAG_LEN..]].concat();
        assert_eq!(aad, case.bytes("link_aad"), "{}", case.at());
    }
}

/// What each hop authenticates, stated bit by bit: everything but the payload's ciphertext, which
/// only the end checks.
#[test]
fn a_changed_byte_is_noticed_by_the_hop_or_by_the_end() {
    for case in load("transit-frame") {
        let suite = case.parsed("suite");
        let (_, link) = implementations(suite, &case.array("link_key")).remove(0);
        let (_, e2e) = implementations(suite, &case.array("e2e_key")).remove(0);
        let frame = case.bytes("frame");
        for at in 0..frame.len() {
            let mut bent = frame.clone();
            bent[at] ^= 1;
            let by_hop = open_hop(&*link, &bent).is_none();
            let is_ciphertext = (PAYLOAD_AT..frame.len() - TAG_LEN).contains(&at);
            assert_eq!(by_hop, !is_ciphertext, "{} byte {at}", case.at());
            if let Some(headers) = open_hop(&*link, &bent) {
                let (nonce, aad) = (
                    nonce(headers.session.counter.get()),
                    headers.associated_data(),
                );
                assert_eq!(
                    e2e.open(nonce, &aad, &bent[PAYLOAD_AT..]),
                    None,
                    "byte {at}"
                );
            }
        }
    }
}

#[test]
fn transit_frames_of_the_handshake_service() {
    for case in load("transit-handshake") {
        let (payload, frame) = (case.bytes("payload"), case.bytes("frame"));
        let trailer = handshake_trailer(&payload);
        assert_eq!(trailer, case.array("trailer"), "{}", case.at());
        let headers = headers(&case, Service::Handshake, &payload);
        let header = link_header_of(&case, FrameKind::Transit);
        for (name, link) in implementations(case.parsed("suite"), &case.array("link_key")) {
            let carried = [&payload[..], &trailer].concat();
            let at = format!("{} by {name}", case.at());
            assert_eq!(seal_hop(&*link, &header, &headers, &carried), frame, "{at}");
            let opened = open_hop(&*link, &frame).unwrap_or_else(|| panic!("{at}"));
            assert_eq!(opened.as_bytes(), headers.as_bytes(), "{at}");
        }
    }
}

#[test]
fn link_local_frames_of_both_suites() {
    for case in load("link-local-frame") {
        let (payload, frame) = (case.bytes("payload"), case.bytes("frame"));
        let header = link_header_of(&case, FrameKind::LinkLocal);
        let nonce = nonce(header.counter.get());
        for (name, link) in implementations(case.parsed("suite"), &case.array("link_key")) {
            let at = format!("{} by {name}", case.at());
            let sealed = link.seal(nonce, header.as_bytes(), &payload);
            assert_eq!([header.as_bytes(), &sealed].concat(), frame, "{at}");
            let (parsed, sealed) = LinkHeader::split(&frame).unwrap();
            let opened = link.open(nonce, parsed.as_bytes(), sealed);
            assert_eq!(opened, Some(payload.clone()), "{at}");
        }
        assert!(control::parse(&payload).is_some(), "{}", case.at());
    }
}

#[test]
fn control_messages() {
    for case in load("control") {
        let message = case.bytes("message");
        let kind = ControlKind::from_code(case.number("kind")).unwrap();
        let (parsed, body) = control::parse(&message).unwrap();
        assert_eq!(parsed, kind, "{}", case.at());
        if case.has("id") {
            let probe = Probe {
                id: case.number::<u64>("id").into(),
                sent: case.number::<u64>("sent").into(),
            };
            assert_eq!(control::probe(kind, probe)[..], message, "{}", case.at());
            assert_eq!(
                Probe::read_from_bytes(body).unwrap(),
                probe,
                "{}",
                case.at()
            );
        } else {
            assert_eq!(control::message(kind)[..], message, "{}", case.at());
            assert!(body.is_empty());
        }
    }
}
