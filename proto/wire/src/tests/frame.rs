//! Link, routing and session headers, control messages, receiver indices, nonces.

use std::collections::BTreeSet;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::config;
use crate::control::{self, CONTROL_HEADER_LEN, ControlKind, Probe};
use crate::frame::{
    LINK_HEADER_LEN, LINK_LOCAL_OVERHEAD, LINK_TAG_AT, MTU_DEFAULT, OVERHEAD, PAYLOAD_AT,
    PAYLOAD_MAX, SEALED_HEADERS_LEN, SealedHeaders, TAG_LEN, handshake_trailer, nonce,
};
use crate::index::{SLOTS_MAX, WORKERS_MAX};
use crate::{
    FrameKind, LinkHeader, OverlayAddress, RoutingHeader, Service, SessionHeader, SessionIndex,
    WorkerId,
};

#[test]
fn layout_is_the_one_in_the_drawing() {
    assert_eq!((LINK_HEADER_LEN, SEALED_HEADERS_LEN), (16, 56));
    assert_eq!(
        (LINK_TAG_AT, PAYLOAD_AT, OVERHEAD, LINK_LOCAL_OVERHEAD),
        (72, 88, 104, 32)
    );
    assert_eq!(PAYLOAD_MAX + OVERHEAD, 65_507);
    assert!(usize::from(MTU_DEFAULT) + OVERHEAD + 48 <= 1500);
}

#[test]
fn every_code_is_of_one_kind_and_every_kind_has_its_code() {
    fn codes<T: PartialEq + std::fmt::Debug>(
        of: fn(u8) -> Option<T>,
        code: fn(T) -> u8,
    ) -> Vec<u8> {
        (0..=u8::MAX)
            .filter(|c| of(*c).is_some_and(|kind| code(kind) == *c))
            .collect()
    }
    assert_eq!(
        codes(FrameKind::from_code, FrameKind::code),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(codes(Service::from_code, Service::code), [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        codes(ControlKind::from_code, ControlKind::code),
        [0, 1, 2, 3, 4, 5, 6]
    );
    assert!((9..=u8::MAX).all(|code| FrameKind::from_code(code).is_none()));
}

#[test]
fn cut_headers_are_refused_at_every_length() {
    let bytes = [1; LINK_HEADER_LEN];
    for len in 0..LINK_HEADER_LEN {
        assert!(LinkHeader::split(&bytes[..len]).is_none(), "{len}");
    }
    assert!(LinkHeader::split(&bytes).is_some_and(|(_, rest)| rest.is_empty()));
    for len in 0..CONTROL_HEADER_LEN {
        assert!(control::parse(&bytes[..len]).is_none(), "{len}");
    }
    assert!(control::parse(&control::message(ControlKind::Close)).is_some());
    assert!(
        control::parse(&[7, 0, 0, 0, 0, 0, 0, 0]).is_none(),
        "unknown kind"
    );
}

#[test]
fn nonces_differ_in_every_bit_of_the_counter() {
    let counters = (0..64).map(|bit| 1u64 << bit).chain([0, u64::MAX]);
    let nonces: BTreeSet<_> = counters.clone().map(nonce).collect();
    assert_eq!(nonces.len(), 66);
    assert!(nonces.iter().all(|nonce| nonce[..4] == [0; 4]));
}

#[test]
fn trailer_depends_on_every_byte_and_on_the_length() {
    let payload = [7; 40];
    let mut seen: BTreeSet<_> = (0..=40)
        .map(|len| handshake_trailer(&payload[..len]))
        .collect();
    for at in 0..40 {
        let mut bent = payload;
        bent[at] ^= 1;
        seen.insert(handshake_trailer(&bent));
    }
    assert_eq!(seen.len(), 81);
    assert!(seen.iter().all(|trailer| trailer.len() == TAG_LEN));
}

prop_compose! {
    fn sealed_headers()(
        destination: [u8; 16], source: [u8; 16], hop_limit: u8, service: u8, flow_hash: u16,
        payload_len: u16, flags: u16, receiver: u32, reserved: u32, counter: u64,
    ) -> SealedHeaders {
        SealedHeaders {
            routing: RoutingHeader {
                destination: OverlayAddress(destination),
                source: OverlayAddress(source),
                hop_limit,
                service,
                flow_hash: flow_hash.into(),
                payload_len: payload_len.into(),
                flags: flags.into(),
            },
            session: SessionHeader {
                receiver: receiver.into(),
                reserved: reserved.into(),
                counter: counter.into(),
            },
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn link_header_round_trips_and_leaves_the_rest(
        kind in 1u8..=7, receiver: u32, counter: u64,
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let kind = FrameKind::from_code(kind).unwrap();
        let header = LinkHeader::new(kind, receiver, counter);
        let datagram = [header.as_bytes(), &rest].concat();
        let (parsed, tail) = LinkHeader::split(&datagram).unwrap();
        prop_assert_eq!(parsed.as_bytes(), header.as_bytes());
        prop_assert_eq!(FrameKind::from_code(parsed.kind), Some(kind));
        prop_assert_eq!((parsed.flags, parsed.reserved.get()), (0, 0));
        prop_assert_eq!((parsed.receiver.get(), parsed.counter.get()), (receiver, counter));
        prop_assert_eq!(tail, rest);
    }

    #[test]
    fn sealed_headers_are_their_bytes(headers in sealed_headers()) {
        let bytes = headers.as_bytes();
        let again = SealedHeaders::ref_from_bytes(bytes).unwrap();
        prop_assert_eq!(again.routing.as_bytes(), &bytes[..40]);
        prop_assert_eq!(again.session.as_bytes(), &bytes[40..]);
        prop_assert_eq!(again.session.counter.get(), headers.session.counter.get());
    }

    /// What a relay changes is not covered, and nothing else is left out.
    #[test]
    fn associated_data_covers_everything_but_the_hop_limit(
        headers in sealed_headers(), hop_limit: u8, at in 0..SEALED_HEADERS_LEN, bit in 0u32..8,
    ) {
        const HOP_LIMIT_AT: usize = 32;
        let aad = headers.associated_data();
        let mut relayed = headers;
        relayed.routing.hop_limit = hop_limit;
        prop_assert_eq!(relayed.associated_data(), aad);

        let mut bytes: [u8; SEALED_HEADERS_LEN] = headers.as_bytes().try_into().unwrap();
        bytes[at] ^= 1u8 << bit;
        let bent = SealedHeaders::read_from_bytes(&bytes).unwrap();
        prop_assert_eq!(bent.associated_data() == aad, at == HOP_LIMIT_AT);
    }

    #[test]
    fn probes_come_back_as_they_went(id: u64, sent: u64, reply: bool) {
        let kind = if reply { ControlKind::ProbeReply } else { ControlKind::Probe };
        let probe = Probe { id: id.into(), sent: sent.into() };
        let message = control::probe(kind, probe);
        let (parsed, body) = control::parse(&message).unwrap();
        prop_assert_eq!(parsed, kind);
        prop_assert_eq!(Probe::read_from_bytes(body).unwrap(), probe);
    }

    /// Receivers ignore reserved bytes of a control message; only its kind decides.
    #[test]
    fn control_parses_by_its_first_byte(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let expected = bytes.first().and_then(|code| ControlKind::from_code(*code));
        match control::parse(&bytes) {
            Some((kind, body)) => {
                prop_assert_eq!(Some(kind), expected);
                prop_assert_eq!(body, &bytes[CONTROL_HEADER_LEN..]);
            }
            None => prop_assert!(expected.is_none() || bytes.len() < CONTROL_HEADER_LEN),
        }
    }

    #[test]
    fn index_fields_do_not_touch_each_other(worker in 0..WORKERS_MAX, salt: u16, slot: u16) {
        let index = SessionIndex::new(WorkerId(worker), salt, slot);
        prop_assert_eq!(index.worker(), WorkerId(worker));
        prop_assert_eq!(index.slot(), usize::from(slot));
        prop_assert_eq!((index.0 >> 16) & 0x3ff, u32::from(salt) & 0x3ff);
    }

    #[test]
    fn any_index_names_a_worker_and_a_slot_in_range(raw: u32) {
        let index = SessionIndex(raw);
        prop_assert!(index.worker().0 < WORKERS_MAX);
        prop_assert!(index.slot() < SLOTS_MAX as usize);
        prop_assert_eq!(u32::from_str_radix(&index.to_string(), 16), Ok(raw));
    }
}
