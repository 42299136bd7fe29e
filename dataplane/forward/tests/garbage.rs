//! Covers frames that nobody meant to send: every flipped bit, every length, random bytes.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; clippy excuses only the tests themselves"
)]

mod common;

use common::{BOTH_SUITES, Lane, Line, NOW, link_local, noise, receive, receive_one, transit};
use hyphae_forward::Verdict;
use hyphae_forward::host::TunHeader;
use hyphae_shm::stats::DropReason;
use hyphae_wire::control::{ControlKind, Probe, message, probe};
use hyphae_wire::frame::SealedHeaders;
use hyphae_wire::handshake::{HandshakeStep, encode_frame};
use hyphae_wire::{Service, Suite};
use proptest::prelude::*;
use zerocopy::little_endian::U64;

/// A counter that no frame of a test has had.
const FRESH: u64 = 1000;

#[test]
fn every_flipped_bit_of_a_transit_frame_is_caught() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(1, suite);
        let (client, relay) = (line.client.endpoint, line.relay.endpoint);
        let (good, packet) = line.frame_at_relay(40);
        let payload = 88..88 + packet.len();
        for bit in 0..good.len() * 8 {
            let mut frame = good.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame);
            if !payload.contains(&(bit / 8)) {
                assert!(
                    matches!(verdict, Verdict::Drop(_)),
                    "bit {bit}: {verdict:?}"
                );
                continue;
            }
            // The relay does not look at the payload; the end does.
            assert!(
                matches!(verdict, Verdict::Transmit(_)),
                "bit {bit}: {verdict:?}"
            );
            let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
            assert_eq!(verdict, Verdict::Drop(DropReason::SessionAuth), "bit {bit}");
            // Its link counter is used up at the relay: the next bit needs the lanes as they were.
            line = Line::new(1, suite);
            assert_eq!(line.frame_at_relay(40).0, good);
        }
        // Nothing of that has kept the frame itself from arriving.
        let mut frame = good;
        let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame);
        assert!(matches!(verdict, Verdict::Transmit(_)));
        let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
        assert!(matches!(verdict, Verdict::Deliver { .. }));
    }
}

#[test]
fn every_flipped_bit_of_a_link_local_frame_is_caught() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(1, suite);
        let body = Probe {
            id: U64::new(1),
            sent: U64::new(2),
        };
        for kind in [ControlKind::Probe, ControlKind::ProbeReply] {
            let good = link_local(&line.first[0][0], FRESH, &probe(kind, body));
            let from = common::endpoint(200);
            for bit in 0..good.len() * 8 {
                let mut frame = good.clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
                assert!(
                    matches!(verdict, Verdict::Drop(_)),
                    "bit {bit}: {verdict:?}"
                );
            }
        }
        let events = common::events(line.relay.engine());
        assert!(
            events.is_empty(),
            "forged frames report nothing: {events:?}"
        );
    }
}

#[test]
fn every_other_length_of_a_frame_is_caught() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(1, suite);
        let from = line.client.endpoint;
        let keepalive = message(ControlKind::Keepalive);
        let short = link_local(&line.first[0][0], FRESH, &keepalive);
        let (transit, _) = line.frame_at_relay(40);
        let handshake = encode_frame(HandshakeStep::Init, 1, 0, &noise(100, 3));
        for (good, longer) in [(short, true), (transit, true), (handshake, false)] {
            let mut lengths: Vec<_> = (1..good.len()).collect();
            if longer {
                lengths.extend([good.len() + 1, good.len() + 16, 9000, 65_507]);
            }
            for len in lengths {
                let mut frame = good.clone();
                frame.resize(len, 0);
                let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
                assert!(matches!(verdict, Verdict::Drop(_)), "{len}: {verdict:?}");
            }
        }
        assert!(receive(line.relay.engine(), NOW, from, &mut [], 100).is_empty());
    }
}

/// A train that claims to be of a lane that exists.
fn disguise(bytes: &mut [u8], segment: usize, kind: u8, lane: &Lane) {
    for frame in bytes.chunks_mut(segment).filter(|frame| frame.len() >= 16) {
        frame[..4].copy_from_slice(&[kind, 0, 0, 0]);
        frame[4..8].copy_from_slice(&lane.receive.0.to_le_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_are_dropped(
        len in prop_oneof![0usize..400, 0usize..4000, 65_000usize..140_000],
        segment in prop_oneof![
            0usize..3, 15usize..20, 30usize..42, 100usize..110, 1usize..2000, Just(65_507), Just(usize::MAX),
        ],
        seed in any::<u32>(),
        kind in prop::option::of(0u8..10),
    ) {
        let mut line = Line::new(1, Suite::ChaCha20Poly1305);
        let mut bytes = noise(len, seed);
        if let Some(kind) = kind {
            disguise(&mut bytes, segment.max(1), kind, &line.first[0][1]);
        }
        let from = line.client.endpoint;
        let verdicts = receive(line.relay.engine(), NOW, from, &mut bytes, segment);
        prop_assert_eq!(verdicts.len(), len.div_ceil(segment.max(1)));
        // Random handshakes of a valid version, step and length may be punted, as nothing can tell.
        let refused = |v: &Verdict| matches!(v, Verdict::Drop(_) | Verdict::PuntHandshake);
        prop_assert!(verdicts.iter().all(refused));
        let counters = &line.relay.engine().counters;
        let counted: u64 = DropReason::ALL.iter().map(|reason| counters.dropped(*reason)).sum();
        let punted = verdicts.iter().filter(|v| **v == Verdict::PuntHandshake).count();
        prop_assert_eq!(usize::try_from(counted).unwrap() + punted, verdicts.len());
    }

    #[test]
    fn authentic_frames_with_random_contents_never_panic(
        routing in any::<[u8; 56]>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        service in 0u8..8,
        known in any::<bool>(),
        link_local_frame in any::<bool>(),
    ) {
        let mut line = Line::new(1, Suite::Aes256Gcm);
        let mut headers: SealedHeaders = zerocopy::transmute!(routing);
        if known {
            headers = line.headers(Service::Ipv6, payload.len());
            headers.routing.service = service;
            headers.routing.flags.set(u16::from(routing[0]) & 1);
        }
        let link = &line.second[0][0];
        let mut frame = if link_local_frame {
            link_local(link, FRESH, &payload)
        } else {
            transit((link, FRESH), (&line.session[0][0], FRESH), headers, &payload)
        };
        let from = line.relay.endpoint;
        receive_one(line.server.engine(), NOW, from, &mut frame);
    }

    #[test]
    fn random_packets_of_the_host_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        header in any::<[u8; 10]>(),
        addressed in any::<bool>(),
    ) {
        let mut line = Line::new(1, Suite::Aes256Gcm);
        let header: TunHeader = zerocopy::transmute!(header);
        let mut packet = bytes;
        if addressed && packet.len() >= 40 {
            let good = line.packet(packet.len());
            let length = u16::try_from(packet.len() - 40).unwrap();
            packet[..6].copy_from_slice(&good[..6]);
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet[8..40].copy_from_slice(&good[8..40]);
        }
        line.client.engine().route_host(NOW, &header, &packet);
    }
}
