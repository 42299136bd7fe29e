//! Covers what is said about packets that cannot go on: ICMPv6 errors for the host, reports of
//! relays and what is believed of them, rate limits, traces; frames in two parts. Drop reasons as
//! such are in drops.rs.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "helpers of tests; clippy excuses only the tests themselves"
)]

mod common;

use common::{Line, NOW, Node, events, link_mtu, open_headers, receive_one, send};
use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{Engine, EngineEvent, HostVerdict, Verdict, cut};
use hyphae_shm::record::{
    FibRemove, InjectMtuProbe, InjectPathProbe, InjectRouted, InjectTrace, MTU_UNKNOWN, PathMtu,
    Program,
};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::{OVERHEAD, PAYLOAD_AT};
use hyphae_wire::report::{FRAME_MIN_MAX, Report, ReportCode};

use hyphae_wire::{OverlayAddress, Service, Suite};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

const SUITE: Suite = Suite::ChaCha20Poly1305;

fn unroute(engine: &mut Engine, to: OverlayAddress) {
    let record = FibRemove {
        prefix: to.subnet().address(),
        prefix_len: 64,
        reserved: [0; 7],
    };
    engine.apply(NOW, &Program::FibRemove(&record)).unwrap();
}

/// Type, code and word of an ICMPv6 error for the host, with its source, after a look at the rest.
fn error_of(packet: &[u8], host: OverlayAddress, about: &[u8]) -> ((u8, u8, u32), OverlayAddress) {
    assert!(packet.len() <= 1280);
    assert_eq!(packet[0] >> 4, 6);
    let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    assert_eq!((len, packet[6]), (packet.len() - 40, 58));
    assert_eq!(packet[24..40], host.0);
    let quote = &packet[48..];
    assert_eq!(quote, &about[..about.len().min(quote.len())]);
    assert!(quote.len() == about.len() || packet.len() == 1280 || quote.len() == 128);
    // The sum over pseudo-header and message, checksum included, is all ones.
    let mut sum: u32 = 58 + len as u32;
    let words = packet[8..40].chunks(2).chain(packet[40..].chunks(2));
    sum += words
        .map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)])))
        .sum::<u32>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    assert_eq!(sum, 0xffff);
    let word = u32::from_be_bytes(packet[44..48].try_into().unwrap());
    let source = OverlayAddress(packet[8..24].try_into().unwrap());
    ((packet[40], packet[41], word), source)
}

/// What a refused packet of the client's host is answered with.
fn refused(line: &mut Line, packet: &[u8]) -> Option<((u8, u8, u32), OverlayAddress)> {
    let address = line.client.address;
    let engine = line.client.engine();
    let verdict = engine.route_host(NOW, &TunHeader::default(), packet);
    assert!(matches!(verdict, HostVerdict::Drop(_)), "{verdict:?}");
    let reply = engine.next_host_reply()?;
    Some(error_of(&reply, address, packet))
}

/// Tries to send a packet that is too long, as the worker does it.
fn too_big(line: &mut Line, packet: &[u8]) -> u32 {
    let address = line.client.address;
    let engine = line.client.engine();
    let header = TunHeader::default();
    let HostVerdict::Depart(departure) = engine.route_host(NOW, &header, packet) else {
        panic!("no way")
    };
    let refusal = Splitter::new(&header, packet, departure.mtu()).err();
    assert_eq!(refusal, Some(DropReason::TunTooBig));
    engine.host_too_big(NOW, departure.mtu(), packet);
    let reply = engine.next_host_reply().unwrap();
    let ((kind, code, mtu), source) = error_of(&reply, address, packet);
    assert_eq!((kind, code, source), (2, 0, address));
    mtu
}

/// Next report of a node, as the neighbour gets it.
fn next_report(engine: &mut Engine, now: Nanos) -> Option<Vec<u8>> {
    if !engine.has_report() {
        return None;
    }
    let mut space = vec![0; 1000];
    let train = engine.next_report(now, &mut space).unwrap();
    space.truncate(train.len);
    Some(space)
}

/// A frame of the client is dropped at the relay; the relay's report.
fn dropped(line: &mut Line, mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let from = line.client.endpoint;
    let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
    assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
    next_report(line.relay.engine(), NOW)
}

fn report_in(frame: &[u8]) -> Report {
    *Report::parse(&frame[PAYLOAD_AT..frame.len() - 16]).unwrap()
}

#[test]
fn the_host_hears_why_a_packet_cannot_go() {
    let mut line = Line::new(1, SUITE);
    let packet = line.packet(1300);
    let own = line.client.address;
    unroute(line.client.engine(), line.server.address);
    assert_eq!(refused(&mut line, &packet), Some(((1, 0, 0), own)));
    let nobody = Node::new(9, 1).address;
    let packet = common::Host::udp(own, nobody).packet(10);
    assert_eq!(refused(&mut line, &packet), Some(((1, 0, 0), own)));
    line.client.route(line.server.address, &[(7, 1)]);
    let packet = line.packet(10);
    assert_eq!(refused(&mut line, &packet), Some(((1, 3, 0), own)));
}

#[test]
fn no_error_answers_an_error_or_a_packet_of_somebody_else() {
    let mut line = Line::new(1, SUITE);
    unroute(line.client.engine(), line.server.address);
    let mut error = line.packet(100);
    error[6] = 58;
    for kind in [1, 2, 3, 4, 100, 127] {
        error[40] = kind;
        assert_eq!(refused(&mut line, &error), None, "type {kind}");
    }
    error[40] = 128;
    assert!(
        refused(&mut line, &error).is_some(),
        "an echo request is no error"
    );
    // Hidden behind an extension header.
    let mut hidden = line.packet(100);
    hidden[6] = 60;
    hidden[40..48].copy_from_slice(&[58, 0, 1, 4, 0, 0, 0, 0]);
    hidden[48] = 1;
    assert_eq!(refused(&mut line, &hidden), None);
    let mut foreign = line.packet(100);
    foreign[8..24].copy_from_slice(&line.server.address.0);
    assert_eq!(refused(&mut line, &foreign), None);
    let mut multicast = line.packet(100);
    multicast[24] = 0xff;
    assert_eq!(
        refused(&mut line, &multicast),
        Some(((1, 3, 0), line.client.address))
    );
}

#[test]
fn errors_for_the_host_are_limited() {
    let mut line = Line::new(1, SUITE);
    unroute(line.client.engine(), line.server.address);
    let packet = line.packet(10);
    let told = (0..100)
        .filter(|_| refused(&mut line, &packet).is_some())
        .count();
    assert_eq!(told, 10);
    let suppressed = line
        .client
        .engine()
        .counters
        .total(Counter::ErrorsSuppressed);
    assert_eq!(suppressed, 90);
}

#[test]
fn a_packet_longer_than_the_own_link_carries_is_answered_with_what_fits() {
    let mut line = Line::new(1, SUITE);
    link_mtu(line.client.engine(), 1, 1424);
    let packet = line.packet(1321 - 48);
    assert_eq!(too_big(&mut line, &packet), 1320);
    let expected = EngineEvent::PathTooBig {
        address: line.server.address,
        mtu: 1320,
    };
    assert_eq!(events(line.client.engine()), [expected]);
    // Below what IPv6 promises, frames leave in two parts instead.
    link_mtu(line.client.engine(), 1, 1232);
    let packet = line.packet(1281 - 48);
    assert_eq!(too_big(&mut line, &packet), 1280);
    let packet = line.packet(1280 - 48);
    let frame = send(line.client.engine(), NOW, &packet);
    assert_eq!(frame.len(), usize::from(FRAME_MIN_MAX));
}

#[test]
fn the_control_plane_is_told_what_the_way_of_its_own_packets_carries() {
    let mut line = Line::new(1, SUITE);
    let (mut space, address) = (vec![0; 2000], line.server.address);
    let record = InjectRouted {
        destination: address,
        service: Service::Message.code(),
        reserved: [0; 3],
        receive_index: U32::ZERO,
    };
    let engine = line.client.engine();
    link_mtu(engine, 1, 1424);
    let limit = PathMtu {
        address,
        mtu: U16::new(1300),
        reserved: [0; 6],
    };
    // By the own link, and by a relay beyond it.
    for carries in [1320, 1300] {
        let sent = engine.inject_routed(NOW, &record, &vec![0; carries + 1], &mut space);
        assert_eq!(sent.map(|_| ()), Err(DropReason::LinkTooBig));
        let mtu = carries as u16;
        assert_eq!(events(engine), [EngineEvent::PathTooBig { address, mtu }]);
        let sent = engine.inject_routed(NOW, &record, &vec![0; carries], &mut space);
        assert_eq!(sent.map(|train| train.len), Ok(carries + OVERHEAD));
        engine.apply(NOW, &Program::PathMtu(&limit)).unwrap();
    }
}

#[test]
fn a_relay_tells_the_sender_what_became_of_a_frame() {
    let mut line = Line::new(1, SUITE);
    let (frame, _) = line.frame_at_relay(100);
    unroute(line.relay.engine(), line.server.address);
    let original = open_headers(&line.first[0][1], &frame);
    let report = dropped(&mut line, frame).unwrap();
    let headers = open_headers(&line.first[0][0], &report);
    assert_eq!(headers.routing.destination, line.client.address);
    assert_eq!(headers.routing.source, line.relay.address);
    assert_eq!(headers.routing.service, Service::Report.code());
    let said = report_in(&report);
    assert_eq!(ReportCode::from_code(said.code), Some(ReportCode::NoRoute));
    assert_eq!(said.reporter, line.relay.key);
    assert_eq!(said.destination, line.server.address);
    assert_eq!(said.session.counter, original.session.counter);
    assert_eq!(said.session.receiver, original.session.receiver);
    assert_eq!(said.flow_hash, original.routing.flow_hash);
}

#[test]
fn a_reported_error_answers_the_next_packet_of_the_host() {
    let mut line = Line::new(1, SUITE);
    let (frame, _) = line.frame_at_relay(100);
    unroute(line.relay.engine(), line.server.address);
    let mut report = dropped(&mut line, frame).unwrap();
    let (relay, own) = (line.relay.endpoint, line.client.address);
    let engine = line.client.engine();
    assert_eq!(receive_one(engine, NOW, relay, &mut report), Verdict::Done);
    assert_eq!(engine.counters.total(Counter::ReportsTaken), 1);
    assert_eq!(
        engine.next_host_reply(),
        None,
        "not before there is a packet"
    );
    let packet = line.packet(200);
    // It goes out all the same: a hint stops nothing.
    send(line.client.engine(), NOW, &packet);
    let reply = line.client.engine().next_host_reply().unwrap();
    let (fields, source) = error_of(&reply, own, &packet);
    assert_eq!((fields, source), ((1, 0, 0), line.relay.address));
    send(line.client.engine(), NOW, &packet);
    assert_eq!(
        line.client.engine().next_host_reply(),
        None,
        "once per report"
    );
}

#[test]
fn traceroute_sees_the_relay_by_the_very_packet() {
    let mut line = Line::new(1, SUITE);
    let mut packet = line.packet(300);
    packet[7] = 1;
    let frame = send(line.client.engine(), NOW, &packet);
    let mut report = dropped(&mut line, frame).unwrap();
    let (relay, own) = (line.relay.endpoint, line.client.address);
    receive_one(line.client.engine(), NOW, relay, &mut report);
    let reply = line.client.engine().next_host_reply().unwrap();
    let (fields, source) = error_of(&reply, own, &packet);
    assert_eq!((fields, source), ((3, 0, 0), line.relay.address));
}

#[test]
fn too_big_lowers_the_path_but_never_below_1280() {
    for (carries, expected) in [(1424, 1320), (1300, 1280)] {
        let mut line = Line::new(1, SUITE);
        link_mtu(line.relay.engine(), 2, carries);
        let (frame, _) = line.frame_at_relay(1340 - 48);
        let mut report = dropped(&mut line, frame).unwrap();
        assert_eq!(report_in(&report).mtu.get(), u32::from(expected));
        let relay = line.relay.endpoint;
        receive_one(line.client.engine(), NOW, relay, &mut report);
        let event = EngineEvent::PathTooBig {
            address: line.server.address,
            mtu: expected,
        };
        assert_eq!(events(line.client.engine()), [event]);
        let packet = line.packet(1340 - 48);
        assert_eq!(too_big(&mut line, &packet), u32::from(expected));
        // The control plane has found it to be false.
        let lift = PathMtu {
            address: line.server.address,
            mtu: U16::new(MTU_UNKNOWN),
            reserved: [0; 6],
        };
        let engine = line.client.engine();
        engine.apply(NOW, &Program::PathMtu(&lift)).unwrap();
        send(line.client.engine(), NOW, &packet);
    }
}

#[test]
fn forged_reports_change_nothing() {
    let mut line = Line::new(1, SUITE);
    let (frame, _) = line.frame_at_relay(100);
    let sent = open_headers(&line.first[0][1], &frame);
    let mut report: Report = zerocopy::FromZeros::new_zeroed();
    report.code = ReportCode::TooBig.code();
    report.mtu = U32::new(1280);
    report.reporter = line.relay.key;
    report.destination = line.server.address;
    report.session = sent.session;
    let mut forged = Vec::new();
    // Another session, another node, a counter that was never used, services that are not ours to
    // hear about.
    let mut other = report;
    other.session.receiver.set(sent.session.receiver.get() ^ 1);
    forged.push(other);
    let mut other = report;
    other.destination = Node::new(9, 1).address;
    forged.push(other);
    let mut other = report;
    other.session.counter.set(sent.session.counter.get() + 1);
    forged.push(other);
    for service in [Service::Handshake.code(), Service::Report.code(), 99] {
        let mut other = report;
        other.service = service;
        forged.push(other);
    }
    // Sent too long ago.
    let old = report;
    let count = forged.len() as u64;
    let mut counter = 1000;
    let mut feed = |line: &mut Line, report: &Report| {
        counter += 1;
        let mut headers = line.headers(Service::Report, 80);
        headers.routing.destination = line.client.address;
        headers.routing.source = line.relay.address;
        let lane = &line.first[0][1];
        let session = &line.session[0][1];
        let bytes = zerocopy::IntoBytes::as_bytes(report);
        let mut frame = common::transit((lane, counter), (session, 0), headers, bytes);
        let relay = line.relay.endpoint;
        receive_one(line.client.engine(), NOW, relay, &mut frame)
    };
    for report in &forged {
        assert_eq!(feed(&mut line, report), Verdict::Done);
    }
    let ignored = line.client.engine().counters.total(Counter::ReportsIgnored);
    assert_eq!(ignored, count);
    let packet = line.packet(10);
    for _ in 0..=1 << 16 {
        send(line.client.engine(), NOW, &packet);
    }
    feed(&mut line, &old);
    assert_eq!(events(line.client.engine()), [], "nothing was believed");
    let packet = line.packet(1340 - 48);
    send(line.client.engine(), NOW, &packet);
}

#[test]
fn no_report_answers_a_report_and_reports_are_limited() {
    let mut line = Line::new(1, SUITE);
    unroute(line.relay.engine(), line.server.address);
    let headers = line.headers(Service::Report, 80);
    let (lane, session) = (&line.first[0][0], &line.session[0][0]);
    let frame = common::transit((lane, 1000), (session, 0), headers, &[0; 80]);
    assert_eq!(dropped(&mut line, frame), None);
    let told = (0..100).filter(|_| {
        let (frame, _) = line.frame_at_relay(10);
        dropped(&mut line, frame).is_some()
    });
    assert_eq!(told.count(), 10);
}

#[test]
fn a_report_finds_the_worker_that_sent_the_frame() {
    let mut line = Line::new(2, SUITE);
    let (frame, _) = line.frame_at_relay(100);
    unroute(line.relay.engine(), line.server.address);
    let mut report = dropped(&mut line, frame).unwrap();
    // The link part is opened by the worker of the lane, the report is about the other's session.
    let relay = line.relay.endpoint;
    let session = line.session[0][0].receive.0;
    let remove = hyphae_shm::record::SessionRemove {
        receive_index: U32::new(session),
        reserved: U32::ZERO,
    };
    let [first, second] = &mut line.client.engines[..] else {
        panic!("two")
    };
    first.apply(NOW, &Program::SessionRemove(&remove)).unwrap();
    let verdict = receive_one(first, NOW, relay, &mut report);
    assert_eq!(verdict, Verdict::HandoffAll { peer: 1 });
    let verdict = second.receive_opened(NOW, 1, &mut report);
    assert_eq!(verdict, Verdict::Done, "not handed on for ever");
    assert_eq!(second.counters.total(Counter::ReportsIgnored), 1);
}

#[test]
fn a_trace_is_answered_by_each_node_on_the_way() {
    let mut line = Line::new(1, SUITE);
    let trace = |line: &Line, hop_limit| InjectTrace {
        destination: line.server.address,
        nonce: U64::new(0x1234_5678_9abc_def0),
        hop_limit,
        reserved: [0; 7],
    };
    for (hops, expected) in [(1, ReportCode::HopLimit), (2, ReportCode::Reached)] {
        let mut frame = vec![0; 200];
        let record = trace(&line, hops);
        let built = line.client.engine().inject_trace(NOW, &record, &mut frame);
        frame.truncate(built.unwrap().len);
        let (client, relay) = (line.client.endpoint, line.relay.endpoint);
        let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame);
        let report = if hops == 1 {
            next_report(line.relay.engine(), NOW)
        } else {
            assert!(matches!(verdict, Verdict::Transmit(_)));
            receive_one(line.server.engine(), NOW, relay, &mut frame);
            let mut report = next_report(line.server.engine(), NOW).unwrap();
            let server = line.server.endpoint;
            receive_one(line.relay.engine(), NOW, server, &mut report);
            Some(report)
        };
        let mut report = report.unwrap();
        let said = report_in(&report);
        assert_eq!(ReportCode::from_code(said.code), Some(expected));
        assert_eq!(said.session.counter.get(), 0x1234_5678_9abc_def0);
        let verdict = receive_one(line.client.engine(), NOW, relay, &mut report);
        let Verdict::PuntService { service, .. } = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(service, Service::Report);
    }
}

#[test]
fn a_frame_in_two_parts_is_received_like_a_whole_one() {
    let mut line = Line::new(1, SUITE);
    for (len, order) in [(700, [0, 1]), (1231, [1, 0]), (1232, [0, 1])] {
        let (frame, _) = line.frame_at_relay(len);
        let mut parts = vec![0; 2000];
        let (total, size) = cut(&frame, &mut parts).unwrap();
        assert!(size <= 1232, "{size}");
        parts.truncate(total);
        let mut parts: Vec<_> = parts.chunks(size).map(<[u8]>::to_vec).collect();
        let from = line.client.endpoint;
        let engine = line.relay.engine();
        let mut space = vec![0; usize::from(FRAME_MIN_MAX)];
        for n in order {
            assert!(!engine.has_whole());
            let verdict = receive_one(engine, NOW, from, &mut parts[n]);
            assert_eq!(verdict, Verdict::Done);
        }
        let (len, place) = engine.next_whole(&mut space).unwrap();
        assert_eq!((&space[..len], place.remote), (&frame[..], from));
        assert_eq!(engine.next_whole(&mut vec![0; 2000]), None);
        let verdict = receive_one(engine, NOW, from, &mut space[..len]);
        assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
        // A part that comes again is of a frame that was seen.
        let verdict = receive_one(engine, NOW, from, &mut parts[0]);
        assert_eq!(verdict, Verdict::Drop(DropReason::LinkReplay));
    }
}

#[test]
fn parts_without_their_other_half_push_each_other_out() {
    let mut line = Line::new(1, SUITE);
    let from = line.client.endpoint;
    for _ in 0..20 {
        let (frame, _) = line.frame_at_relay(1000);
        let mut parts = vec![0; 2000];
        let (_, size) = cut(&frame, &mut parts).unwrap();
        receive_one(line.relay.engine(), NOW, from, &mut parts[..size]);
    }
    let engine = line.relay.engine();
    assert_eq!(engine.counters.dropped(DropReason::FragmentLost), 4);
    assert!(!engine.has_whole());
}

#[test]
fn frames_that_are_too_large_or_parts_already_are_not_cut() {
    let mut out = vec![0; 4000];
    assert_eq!(cut(&[1; FRAME_MIN_MAX as usize + 1], &mut out), None);
    assert_eq!(cut(&[1; FRAME_MIN_MAX as usize], &mut out[..1400]), None);
}

#[test]
fn padded_probes_are_answered_short() {
    let mut line = Line::new(1, SUITE);
    let record = InjectMtuProbe {
        peer: U32::new(1),
        receive_index: U32::ZERO,
        id: U64::new(7),
        sent: U64::new(8),
        len: U16::new(1444),
        reserved: [0; 6],
    };
    link_mtu(line.client.engine(), 1, 1200);
    let mut frame = vec![0; 2000];
    let train = line
        .client
        .engine()
        .inject_mtu_probe(NOW, &record, &mut frame);
    let len = train.unwrap().len;
    assert_eq!(len, 1444, "whole, whatever the link is thought to carry");
    let (client, relay) = (line.client.endpoint, line.relay.endpoint);
    let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame[..len]);
    let Verdict::TransmitPart(_, len) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(len, 56);
    let verdict = receive_one(line.client.engine(), NOW, relay, &mut frame[..len as usize]);
    assert!(
        matches!(verdict, Verdict::PuntLinkLocal { len: 24, .. }),
        "{verdict:?}"
    );

    let record = InjectPathProbe {
        destination: line.server.address,
        id: U64::new(7),
        sent: U64::new(8),
        receive_index: U32::ZERO,
        len: U16::new(1340),
        reserved: [0; 10],
    };
    link_mtu(line.client.engine(), 1, MTU_UNKNOWN);
    let mut frame = vec![0; 2000];
    let train = line
        .client
        .engine()
        .inject_path_probe(NOW, &record, &mut frame);
    let len = train.unwrap().len;
    assert_eq!(len, 1340 + OVERHEAD);
    frame.truncate(len);
    receive_one(line.relay.engine(), NOW, client, &mut frame);
    let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
    let Verdict::TransmitPart(_, len) = verdict else {
        panic!("{verdict:?}")
    };
    let mut answer = frame[..len as usize].to_vec();
    let server = line.server.endpoint;
    receive_one(line.relay.engine(), NOW, server, &mut answer);
    let verdict = receive_one(line.client.engine(), NOW, relay, &mut answer);
    assert!(
        matches!(verdict, Verdict::PuntService { len: 24, .. }),
        "{verdict:?}"
    );
    assert!(u64::read_from_bytes(&answer[PAYLOAD_AT + 8..PAYLOAD_AT + 16]).unwrap() == 7);
}

#[test]
fn large_frames_are_told_of_once_per_look() {
    let mut line = Line::new(1, SUITE);
    let engine = line.client.engine();
    engine.note_sent(hyphae_forward::LinkSlot(2), 1, 1000, 1000);
    engine.handle_timeout(NOW);
    assert_eq!(events(engine), []);
    engine.note_sent(hyphae_forward::LinkSlot(2), 2, 2800, 1400);
    engine.handle_timeout(NOW);
    engine.handle_timeout(NOW);
    assert_eq!(events(engine), [EngineEvent::LargeFrames { peer: 1 }]);
    engine.note_too_big(&line.relay.endpoint);
    let events = events(line.client.engine());
    assert_eq!(events, [EngineEvent::LinkTooBig { peer: 1 }]);
}
