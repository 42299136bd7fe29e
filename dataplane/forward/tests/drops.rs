//! Covers everything that is refused: each drop reason by a named case that moves its counter by
//! one and no other, replays, wrong keys, expired lanes.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; clippy excuses only the tests themselves"
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{
    BOTH_SUITES, HOPS, Host, Line, NOW, Node, REJECT_MS, link_local, receive, receive_one,
    seal_transit, send, transit,
};
use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{Engine, HostVerdict, Verdict};
use hyphae_shm::record::{ACTION_BLACKHOLE, Program, SessionRemove};
use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::control::{ControlKind, Probe, message, probe};
use hyphae_wire::frame::SealedHeaders;
use hyphae_wire::handshake::{HandshakeStep, encode_frame};

use hyphae_wire::{OverlayAddress, Service, SessionIndex, Suite};
use zerocopy::little_endian::{U32, U64};

/// A counter that no frame of a test has had.
const FRESH: u64 = 1000;

/// What a case hands to which engine.
enum Feed {
    Relay(Vec<u8>),
    Server(Vec<u8>),
    Host(Vec<u8>),
}

struct Case {
    name: &'static str,
    reason: DropReason,
    feed: fn(&mut Line) -> Feed,
    /// How late it is handed over.
    after_ms: u32,
}

fn case(name: &'static str, reason: DropReason, feed: fn(&mut Line) -> Feed) -> Case {
    Case {
        name,
        reason,
        feed,
        after_ms: 0,
    }
}

fn late(name: &'static str, reason: DropReason, feed: fn(&mut Line) -> Feed) -> Case {
    Case {
        after_ms: REJECT_MS,
        ..case(name, reason, feed)
    }
}

fn later(ms: u32) -> Nanos {
    NOW + Duration::from_millis(ms.into())
}

/// A frame of the client's to the server as the relay forwards it, made by hand.
fn at_server(line: &Line, headers: SealedHeaders, payload: &[u8]) -> Feed {
    let (link, session) = (&line.second[0][0], &line.session[0][0]);
    Feed::Server(transit((link, FRESH), (session, FRESH), headers, payload))
}

/// Likewise as the client sends it to the relay.
fn at_relay(line: &Line, headers: SealedHeaders, payload: &[u8]) -> Feed {
    let (link, session) = (&line.first[0][0], &line.session[0][0]);
    Feed::Relay(transit((link, FRESH), (session, FRESH), headers, payload))
}

/// The frame that the relay gets from the client, changed.
fn changed(line: &mut Line, change: fn(&mut Vec<u8>)) -> Feed {
    let (mut frame, _) = line.frame_at_relay(100);
    change(&mut frame);
    Feed::Relay(frame)
}

/// A packet inside a good frame.
fn inner(line: &Line, packet: &[u8]) -> Feed {
    at_server(line, line.headers(Service::Ipv6, packet.len()), packet)
}

fn link_control(line: &Line, payload: &[u8]) -> Feed {
    Feed::Relay(link_local(&line.first[0][0], FRESH, payload))
}

fn control(line: &Line, payload: &[u8]) -> Feed {
    at_server(line, line.headers(Service::Control, payload.len()), payload)
}

fn stranger() -> OverlayAddress {
    Node::new(9, 1).address
}

fn host(change: impl FnOnce(&mut Vec<u8>), line: &Line) -> Feed {
    let mut packet = line.packet(100);
    change(&mut packet);
    Feed::Host(packet)
}

fn remove_session(engine: &mut Engine, index: SessionIndex) {
    let record = SessionRemove {
        receive_index: U32::new(index.0),
        reserved: U32::ZERO,
    };
    engine.apply(NOW, &Program::SessionRemove(&record)).unwrap();
}

fn remove_link(engine: &mut Engine, index: SessionIndex) {
    let record = SessionRemove {
        receive_index: U32::new(index.0),
        reserved: U32::ZERO,
    };
    engine.apply(NOW, &Program::LinkRemove(&record)).unwrap();
}

fn blackhole(engine: &mut Engine, to: OverlayAddress) {
    let mut record = common::route_record(to, &[]);
    record.action = ACTION_BLACKHOLE;
    engine.apply(NOW, &Program::FibReplace(&record)).unwrap();
}

/// What is wrong with a frame itself or its link part.
fn link_cases() -> Vec<Case> {
    use DropReason as R;
    vec![
        case("cut in the link header", R::FrameTooShort, |l| {
            changed(l, |f| f.truncate(15))
        }),
        case("cut in the headers", R::FrameTooShort, |l| {
            changed(l, |f| f.truncate(103))
        }),
        case("link-local without message", R::FrameTooShort, |l| {
            link_control(l, &[0; 7])
        }),
        case("kind 0", R::FrameKindUnknown, |l| changed(l, |f| f[0] = 0)),
        case("kind 200", R::FrameKindUnknown, |l| {
            changed(l, |f| f[0] = 200)
        }),
        case("flags", R::FrameReservedBits, |l| changed(l, |f| f[1] = 1)),
        case("reserved bytes", R::FrameReservedBits, |l| {
            changed(l, |f| f[3] = 0x80)
        }),
        case("routing flags", R::FrameReservedBits, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.flags.set(2);
            at_relay(l, headers, &[0; 10])
        }),
        case("salt of another holder", R::LinkUnknown, |l| {
            changed(l, |f| f[6] ^= 1)
        }),
        case("slot without lane", R::LinkUnknown, |l| {
            changed(l, |f| f[5] ^= 1)
        }),
        case("worker that is not there", R::LinkUnknown, |l| {
            changed(l, |f| f[7] |= 0xfc)
        }),
        case("removed lane", R::LinkUnknown, |l| {
            let (frame, _) = l.frame_at_relay(10);
            let index = l.first[0][1].receive;
            remove_link(l.relay.engine(), index);
            Feed::Relay(frame)
        }),
        case("other key", R::LinkAuth, |l| {
            let mut lane = l.first[0][0];
            lane.keys.send[0] ^= 1;
            Feed::Relay(link_local(&lane, FRESH, &message(ControlKind::Keepalive)))
        }),
        case("frame of ours sent back", R::LinkAuth, |l| {
            let mut lane = l.first[0][0];
            lane.keys.send = lane.keys.receive;
            Feed::Relay(link_local(&lane, FRESH, &message(ControlKind::Keepalive)))
        }),
        case("other suite", R::LinkAuth, |l| {
            let mut lane = l.first[0][0];
            lane.suite = match lane.suite {
                Suite::ChaCha20Poly1305 => Suite::Aes256Gcm,
                Suite::Aes256Gcm => Suite::ChaCha20Poly1305,
            };
            Feed::Relay(link_local(&lane, FRESH, &message(ControlKind::Keepalive)))
        }),
        case("transit frame said to be link-local", R::LinkAuth, |l| {
            changed(l, |f| f[0] = 2)
        }),
        case("seen", R::LinkReplay, |l| {
            let (frame, _) = l.frame_at_relay(10);
            let from = l.client.endpoint;
            receive_one(l.relay.engine(), NOW, from, &mut frame.clone());
            Feed::Relay(frame)
        }),
        case("older than the window", R::LinkReplay, |l| {
            let keepalive = message(ControlKind::Keepalive);
            let mut new = link_local(&l.first[0][0], 5000, &keepalive);
            let from = l.client.endpoint;
            receive_one(l.relay.engine(), NOW, from, &mut new);
            Feed::Relay(link_local(&l.first[0][0], FRESH, &keepalive))
        }),
        case("last counter of all", R::LinkReplay, |l| {
            let keepalive = message(ControlKind::Keepalive);
            Feed::Relay(link_local(&l.first[0][0], u64::MAX, &keepalive))
        }),
        late("link lane past its age", R::LinkExpired, |l| {
            Feed::Relay(l.frame_at_relay(10).0)
        }),
        case("payload length too small", R::LengthMismatch, |l| {
            at_relay(l, l.headers(Service::Ipv6, 9), &[0; 10])
        }),
        case("payload length too large", R::LengthMismatch, |l| {
            at_server(l, l.headers(Service::Ipv6, 11), &[0; 10])
        }),
        case("trailing byte", R::LinkAuth, |l| changed(l, |f| f.push(0))),
        case("control kind", R::ControlMalformed, |l| {
            link_control(l, &[7, 0, 0, 0, 0, 0, 0, 0])
        }),
        case("handshake cut", R::HandshakeMalformed, |_| {
            let frame = encode_frame(HandshakeStep::Init, 1, 0, &[1; 50]);
            Feed::Relay(frame[..16 + 32 + 49].to_vec())
        }),
        case("handshake of another kind", R::HandshakeMalformed, |_| {
            let mut frame = encode_frame(HandshakeStep::Response, 1, 2, &[1; 50]);
            frame[0] = 5;
            Feed::Relay(frame)
        }),
    ]
}

/// What is wrong with where a frame goes.
fn route_cases() -> Vec<Case> {
    use DropReason as R;
    vec![
        case("service code at a relay", R::ServiceUnknown, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.service = 77;
            at_relay(l, headers, &[0; 10])
        }),
        case("service code at the end", R::ServiceUnknown, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.service = 255;
            at_server(l, headers, &[0; 10])
        }),
        case("frame larger than the next link", R::LinkTooBig, |l| {
            common::link_mtu(l.relay.engine(), 2, 1383);
            at_relay(l, l.headers(Service::Ipv6, 1281), &[0; 1281])
        }),
        case("report that is none", R::ReportMalformed, |l| {
            at_server(l, l.headers(Service::Report, 79), &[0; 79])
        }),
        case("report of an unknown code", R::ReportMalformed, |l| {
            at_server(l, l.headers(Service::Report, 80), &[0; 80])
        }),
        case("trace with a payload", R::ReportMalformed, |l| {
            at_server(l, l.headers(Service::Trace, 1), &[0])
        }),
        case("part with another length", R::FragmentMalformed, |l| {
            let (frame, _) = l.frame_at_relay(1000);
            let mut parts = vec![0; 2000];
            let (_, size) = hyphae_forward::cut(&frame, &mut parts).unwrap();
            Feed::Relay(parts[..size - 1].to_vec())
        }),
        case("part of a frame of no lane", R::LinkUnknown, |l| {
            let (frame, _) = l.frame_at_relay(1000);
            let mut parts = vec![0; 2000];
            let (_, size) = hyphae_forward::cut(&frame, &mut parts).unwrap();
            parts[4] ^= 1;
            Feed::Relay(parts[..size].to_vec())
        }),
        case("one hop left", R::HopLimit, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.hop_limit = 1;
            at_relay(l, headers, &[0; 10])
        }),
        case("no hop left", R::HopLimit, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.hop_limit = 0;
            at_relay(l, headers, &[0; 10])
        }),
        case("nobody knows the way", R::NoRoute, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.destination = stranger();
            at_relay(l, headers, &[0; 10])
        }),
        case("discarded by a route", R::RouteBlackhole, |l| {
            let to = l.server.address;
            blackhole(l.relay.engine(), to);
            Feed::Relay(l.frame_at_relay(10).0)
        }),
        case("next hop without lane", R::AdjacencyDown, |l| {
            let index = l.second[0][0].receive;
            remove_link(l.relay.engine(), index);
            Feed::Relay(l.frame_at_relay(10).0)
        }),
        case("next hop that is no peer", R::AdjacencyDown, |l| {
            let to = l.server.address;
            l.relay.route(to, &[(77, 1)]);
            Feed::Relay(l.frame_at_relay(10).0)
        }),
        case("egress lane past its age", R::LinkExpired, |l| {
            let mut lane = l.second[0][0];
            remove_link(l.relay.engine(), lane.receive);
            lane.reject_ms = 0;
            let endpoint = l.server.endpoint;
            common::install_link(l.relay.engine(), &lane, 2, endpoint);
            Feed::Relay(l.frame_at_relay(10).0)
        }),
        case("probe that no route leads back from", R::NoRoute, |l| {
            let record = hyphae_shm::record::FibRemove {
                prefix: l.client.address.subnet().address(),
                prefix_len: 64,
                reserved: [0; 7],
            };
            let program = Program::FibRemove(&record);
            l.server.engine().apply(NOW, &program).unwrap();
            let body = Probe {
                id: U64::new(1),
                sent: U64::new(2),
            };
            control(l, &probe(ControlKind::Probe, body))
        }),
    ]
}

/// What is wrong with the end-to-end part.
fn session_cases() -> Vec<Case> {
    use DropReason as R;
    vec![
        case("removed session", R::SessionUnknown, |l| {
            let (frame, _) = l.frame_at_server(10);
            let index = l.session[0][1].receive;
            remove_session(l.server.engine(), index);
            Feed::Server(frame)
        }),
        case(
            "session of a worker that is not there",
            R::SessionUnknown,
            |l| {
                let mut session = l.session[0][0];
                session.send = common::index(5, 3);
                let headers = l.headers(Service::Ipv6, 10);
                let link = &l.second[0][0];
                Feed::Server(transit((link, FRESH), (&session, FRESH), headers, &[0; 10]))
            },
        ),
        case("payload changed on the way", R::SessionAuth, |l| {
            let (mut frame, _) = l.frame_at_server(10);
            frame[90] ^= 1;
            Feed::Server(frame)
        }),
        case("routing header changed by a relay", R::SessionAuth, |l| {
            let (frame, _) = l.frame_at_server(10);
            let mut headers = common::open_headers(&l.second[0][1], &frame);
            headers
                .routing
                .flow_hash
                .set(!headers.routing.flow_hash.get());
            Feed::Server(seal_transit(
                (&l.second[0][0], FRESH),
                &headers,
                &frame[88..],
            ))
        }),
        case("service changed by a relay", R::SessionAuth, |l| {
            let (frame, _) = l.frame_at_server(10);
            let mut headers = common::open_headers(&l.second[0][1], &frame);
            headers.routing.service = Service::Message.code();
            Feed::Server(seal_transit(
                (&l.second[0][0], FRESH),
                &headers,
                &frame[88..],
            ))
        }),
        case("other session key", R::SessionAuth, |l| {
            let mut session = l.session[0][0];
            session.keys.send[31] ^= 0x80;
            let headers = l.headers(Service::Ipv6, 10);
            let link = &l.second[0][0];
            Feed::Server(transit((link, FRESH), (&session, FRESH), headers, &[0; 10]))
        }),
        case("sent twice by a relay", R::SessionReplay, |l| {
            let (mut frame, _) = l.frame_at_server(10);
            let body = frame[88..].to_vec();
            let headers = common::open_headers(&l.second[0][1], &frame);
            let from = l.relay.endpoint;
            receive_one(l.server.engine(), NOW, from, &mut frame);
            Feed::Server(seal_transit((&l.second[0][0], FRESH), &headers, &body))
        }),
        case("session lane past its age", R::SessionExpired, |l| {
            let mut lane = l.session[0][1];
            remove_session(l.server.engine(), lane.receive);
            lane.reject_ms = 0;
            let other = l.client.key;
            common::install_session(l.server.engine(), &lane, other);
            Feed::Server(l.frame_at_server(10).0)
        }),
        case("routing source of another node", R::SourceSpoofed, |l| {
            let mut headers = l.headers(Service::Ipv6, 10);
            headers.routing.source = stranger();
            at_server(l, headers, &[0; 10])
        }),
        case("inner source of another node", R::SourceSpoofed, |l| {
            inner(l, &Host::udp(stranger(), l.server.address).packet(10))
        }),
        case(
            "inner destination of another node",
            R::DestinationMismatch,
            |l| inner(l, &Host::udp(l.client.address, stranger()).packet(10)),
        ),
        case(
            "inner destination beside the routed one",
            R::DestinationMismatch,
            |l| {
                let mut to = l.server.address;
                to.0[15] ^= 1;
                inner(l, &Host::udp(l.client.address, to).packet(10))
            },
        ),
        case("empty packet", R::InnerMalformed, |l| inner(l, &[])),
        case("IPv4 packet", R::InnerMalformed, |l| {
            let mut packet = l.packet(10);
            packet[0] = 0x45;
            inner(l, &packet)
        }),
        case("inner length", R::InnerMalformed, |l| {
            let mut packet = l.packet(10);
            packet[5] += 1;
            inner(l, &packet)
        }),
        case("end-to-end control kind", R::ControlMalformed, |l| {
            control(l, &[9; 8])
        }),
        case("end-to-end control cut", R::ControlMalformed, |l| {
            control(l, &[0; 7])
        }),
        case("handshake without its digest", R::HandshakeMalformed, |l| {
            let headers = l.headers(Service::Handshake, 20);
            let body = [[1; 20].as_slice(), &[0; 16]].concat();
            Feed::Server(seal_transit((&l.second[0][0], FRESH), &headers, &body))
        }),
        case("node without TUN device", R::NoTun, |l| {
            let engine = l.server.engine();
            *engine = Engine::new(hyphae_forward::EngineConfig {
                worker: hyphae_wire::WorkerId(0),
                workers: 1,
                has_tun: false,
            });
            let local = hyphae_shm::record::LocalInstall {
                address: l.server.address,
                mtu: 1340.into(),
                reserved: [0; 6],
                key: l.server.key,
            };
            let engine = l.server.engine();
            engine.apply(NOW, &Program::LocalInstall(&local)).unwrap();
            common::install_peer(engine, 1, l.relay.key);
            common::install_link(engine, &l.second[0][1], 1, l.relay.endpoint);
            common::install_session(engine, &l.session[0][1], l.client.key);
            Feed::Server(l.frame_at_server(10).0)
        }),
    ]
}

/// What is wrong with a packet of the host.
fn host_cases() -> Vec<Case> {
    use DropReason as R;
    vec![
        case("IPv4 of the host", R::TunNotIpv6, |l| {
            host(|p| p[0] = 0x45, l)
        }),
        case("cut header of the host", R::TunMalformed, |l| {
            host(|p| p.truncate(39), l)
        }),
        case("length of the host", R::TunMalformed, |l| {
            host(|p| p.push(0), l)
        }),
        case("source outside", R::TunSourceForeign, |l| {
            host(|p| p[8] = 0xfd, l)
        }),
        case("source of another node", R::TunSourceForeign, |l| {
            host(|p| p[10] ^= 1, l)
        }),
        case("destination outside", R::TunDestinationForeign, |l| {
            host(|p| p[24] = 0x20, l)
        }),
        case("destination is this node", R::TunDestinationForeign, |l| {
            Feed::Host(Host::udp(l.client.address, l.client.address).packet(10))
        }),
        case("host to nowhere", R::NoRoute, |l| {
            Feed::Host(Host::udp(l.client.address, stranger()).packet(10))
        }),
        case("host to a discarded prefix", R::RouteBlackhole, |l| {
            let to = l.server.address;
            blackhole(l.client.engine(), to);
            host(|_| {}, l)
        }),
        case("host without neighbour", R::AdjacencyDown, |l| {
            let index = l.first[0][0].receive;
            remove_link(l.client.engine(), index);
            host(|_| {}, l)
        }),
        case("one more than may wait", R::SessionPending, |l| {
            l.client.route(stranger(), &[(1, 1)]);
            let packet = Host::udp(l.client.address, stranger()).packet(10);
            for _ in 0..64 {
                let header = TunHeader::default();
                let verdict = l.client.engine().route_host(NOW, &header, &packet);
                assert!(matches!(verdict, HostVerdict::Wait));
            }
            Feed::Host(packet)
        }),
    ]
}

fn all_cases() -> Vec<Case> {
    let parts = [link_cases(), route_cases(), session_cases(), host_cases()];
    parts.into_iter().flatten().collect()
}

fn dropped(engine: &Engine) -> Vec<u64> {
    let count = |reason: &DropReason| engine.counters.dropped(*reason);
    DropReason::ALL.iter().map(count).collect()
}

fn run(case: &Case, suite: Suite) {
    let mut line = Line::new(1, suite);
    let feed = (case.feed)(&mut line);
    let now = later(case.after_ms);
    let (client, relay) = (line.client.endpoint, line.relay.endpoint);
    let engine = match &feed {
        Feed::Relay(_) => line.relay.engine(),
        Feed::Server(_) => line.server.engine(),
        Feed::Host(_) => line.client.engine(),
    };
    let before = dropped(engine);
    let reason = match feed {
        Feed::Relay(mut frame) => reason_of(receive_one(engine, now, client, &mut frame)),
        Feed::Server(mut frame) => reason_of(receive_one(engine, now, relay, &mut frame)),
        Feed::Host(packet) => match engine.route_host(now, &TunHeader::default(), &packet) {
            HostVerdict::Drop(reason) => Some(reason),
            HostVerdict::Depart(_) | HostVerdict::Wait | HostVerdict::Handoff(_) => None,
        },
    };
    assert_eq!(reason, Some(case.reason), "{}", case.name);
    let mut expected = before;
    expected[case.reason as usize] += 1;
    assert_eq!(dropped(engine), expected, "{}", case.name);
}

fn reason_of(verdict: Verdict) -> Option<DropReason> {
    if let Verdict::Drop(reason) = verdict {
        Some(reason)
    } else {
        None
    }
}

#[test]
fn each_case_is_dropped_for_its_reason_and_counted_once() {
    for case in all_cases() {
        for suite in BOTH_SUITES {
            run(&case, suite);
        }
    }
}

#[test]
fn every_reason_has_a_case() {
    let covered: BTreeSet<_> = all_cases().iter().map(|case| case.reason).collect();
    // Not of the receive and host paths: the splitter's and the injection's (see transit.rs). Not of
    // one frame alone: the guard's (see guard.rs).
    let elsewhere = [
        DropReason::TunTooBig,
        DropReason::NoBuffer,
        DropReason::CookieWanted,
        DropReason::HandshakeLimited,
        DropReason::HandshakeStray,
        DropReason::ResetRefused,
        // Of a worker's rings and the stream thread (dataplane/daemon).
        DropReason::HandoffFull,
        DropReason::PuntFull,
        DropReason::StreamQueue,
        DropReason::StreamDown,
        // Takes many frames (see errors.rs).
        DropReason::FragmentLost,
    ];
    let missing: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| !covered.contains(reason) && !elsewhere.contains(reason))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_whole_train_sent_again_is_dropped_whole() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let mut train = Vec::new();
    for _ in 0..100 {
        train.extend(line.frame_at_relay(50).0);
    }
    let segment = train.len() / 100;
    let from = line.client.endpoint;
    let mut first = train.clone();
    let verdicts = receive(line.relay.engine(), NOW, from, &mut first, segment);
    assert!(verdicts.iter().all(|v| matches!(v, Verdict::Transmit(_))));
    let verdicts = receive(line.relay.engine(), NOW, from, &mut train, segment);
    assert_eq!(verdicts, [Verdict::Drop(DropReason::LinkReplay); 100]);
    let counters = &line.relay.engine().counters;
    assert_eq!(counters.dropped(DropReason::LinkReplay), 100);
}

#[test]
fn frames_are_taken_until_just_before_the_lane_expires() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let from = line.client.endpoint;
    let (mut frame, _) = line.frame_at_relay(50);
    let now = later(REJECT_MS - 1);
    let verdict = receive_one(line.relay.engine(), now, from, &mut frame);
    assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
}

#[test]
fn packets_of_the_host_are_not_sealed_on_expired_lanes() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let packet = line.packet(50);
    let header = TunHeader::default();
    let now = later(REJECT_MS);
    let engine = line.client.engine();
    let departure = common::depart(engine, now, &header, &packet);
    let mut splitter = Splitter::new(&header, &packet, departure.mtu()).unwrap();
    let mut space = vec![0; 2000];
    let train = engine.originate(now, &departure, &mut splitter, &mut space);
    assert_eq!(train, None);
    assert_eq!(engine.counters.dropped(DropReason::SessionExpired), 1);
}

#[test]
fn hop_limit_is_spent_one_by_one() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let (from, relay) = (line.client.endpoint, line.relay.endpoint);
    for hops in [2, HOPS, 255] {
        let mut packet = line.packet(30);
        packet[7] = hops;
        let mut frame = send(line.client.engine(), NOW, &packet);
        let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
        assert!(matches!(verdict, Verdict::Transmit(_)));
        let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
        assert!(matches!(verdict, Verdict::Deliver { .. }));
        assert_eq!(frame[88 + 7], hops - 1);
    }
}
