//! What comes in datagrams.

use hyphae_wire::frame::{PAYLOAD_AT, SEALED_HEADERS_AT, SEALED_HEADERS_LEN, SealedHeaders};
use hyphae_wire::handshake::{
    HandshakeStep, INIT_LEN, Message, NOISE_MAX, Offer, encode, encode_frame,
};
use hyphae_wire::{Endpoint, FrameKind, LinkHeader, Service, SessionIndex, guard};
use zerocopy::{FromBytes, IntoBytes};

/// A whole datagram: link header, and the other headers as a link that opened them would see them.
pub fn frame(data: &[u8]) {
    let Some((link, rest)) = LinkHeader::split(data) else {
        assert!(data.len() < SEALED_HEADERS_AT);
        return;
    };
    assert_eq!([link.as_bytes(), rest].concat(), data);
    if let Some((receiver, token)) = guard::parse(data) {
        let kind = FrameKind::from_code(link.kind).filter(|_| link.flags == 0);
        if let Some(kind) = kind.filter(|_| link.reserved.get() == 0) {
            assert_eq!(guard::encode(kind, receiver, &token)[..], *data);
        }
    }
    let index = SessionIndex(link.receiver.get());
    let _ = (
        index.worker(),
        index.slot(),
        hyphae_wire::frame::nonce(link.counter.get()),
    );
    if FrameKind::from_code(link.kind) != Some(FrameKind::Transit) || data.len() < PAYLOAD_AT {
        return;
    }
    let sealed = &rest[..SEALED_HEADERS_LEN];
    let Ok(headers) = SealedHeaders::ref_from_bytes(sealed) else {
        panic!("any bytes are headers");
    };
    let mut expected = sealed.to_vec();
    expected[32] = 0;
    assert_eq!(headers.associated_data()[..], expected);
    let _ = (
        Service::from_code(headers.routing.service),
        headers.routing.destination.subnet(),
    );
}

/// A link frame, or a handshake message alone (end to end).
pub fn handshake(data: &[u8]) {
    if let Some(reset) = guard::SessionReset::parse(data) {
        assert_eq!(reset.as_bytes(), data);
        assert!(Message::parse(data).is_err());
    }
    if let Some(cookie) = guard::SessionCookie::parse(data) {
        assert_eq!(cookie.as_bytes(), data);
        assert!(Message::parse(data).is_err() && guard::SessionReset::parse(data).is_none());
    }
    if let Ok(message) = Message::parse(data) {
        check_message(&message);
    }
    let Ok(message) = Message::parse_frame(data) else {
        return;
    };
    check_message(&message);
    assert_eq!(
        message.is_short_link(),
        message.step == HandshakeStep::Init && data.len() < INIT_LEN
    );
    assert_eq!(data[0], message.step.frame_kind().code());
    if message.noise.len() <= NOISE_MAX {
        let (sender, receiver) = (message.header.sender.get(), message.header.receiver.get());
        let again = encode_frame(message.step, sender, receiver, message.noise);
        assert!(Message::parse_frame(&again).is_ok_and(|m| m.noise == message.noise));
    }
    let _ = Offer::parse(message.noise);
}

fn check_message(message: &Message<'_>) {
    if message.noise.len() > NOISE_MAX {
        return;
    }
    let (sender, receiver) = (message.header.sender.get(), message.header.receiver.get());
    let again = encode(message.step, sender, receiver, message.noise);
    let Ok(parsed) = Message::parse(&again) else {
        panic!("what was written is read")
    };
    assert_eq!((parsed.step, parsed.noise), (message.step, message.noise));
}

/// Payload of a handshake message.
pub fn offer(data: &[u8]) {
    let Ok(offer) = Offer::parse(data) else {
        return;
    };
    assert!((1..=64).contains(&offer.workers));
    assert!(offer.ports.len() <= 64 && offer.lanes.len() <= 64);
    let again = offer.encode();
    assert_eq!(again.len(), data.len());
    assert_eq!(Offer::parse(&again).as_ref(), Ok(&offer));
}

/// A control message, as a link or a session opened it.
pub fn control(data: &[u8]) {
    use hyphae_wire::control::{CONTROL_HEADER_LEN, ControlKind, Probe, message, parse, probe};
    let Some((kind, body)) = parse(data) else {
        return;
    };
    assert_eq!((kind.code(), body), (data[0], &data[CONTROL_HEADER_LEN..]));
    match kind {
        ControlKind::Probe | ControlKind::ProbeReply => {
            if let Ok(asked) = Probe::read_from_bytes(body) {
                assert_eq!(probe(kind, asked)[CONTROL_HEADER_LEN..], *body);
            }
        }
        ControlKind::Handshake => {
            if let Ok(message) = Message::parse(body) {
                check_message(&message);
            }
        }
        ControlKind::Duplicate => {
            if let Ok((endpoints, _)) = <[Endpoint; 2]>::read_from_prefix(body) {
                endpoints.into_iter().for_each(check_endpoint);
            }
        }
        ControlKind::Keepalive | ControlKind::Routing | ControlKind::Close => {
            assert_eq!(message(kind)[0], data[0]);
        }
    }
}

/// Any bytes are an endpoint. Its address keeps IP and port, and the scope of a link-local one.
fn check_endpoint(endpoint: Endpoint) {
    let again = Endpoint::from(endpoint.to_socket_addr());
    assert_eq!((again.ip, again.port), (endpoint.ip, endpoint.port));
    assert!(again.scope == endpoint.scope || again.scope == 0);
    assert_eq!(Endpoint::from(again.to_socket_addr()), again);
}
