//! Covers packets that arrive: from a host over a relay to a host, in both suites, directions and
//! all train lengths; probes; packets of the control plane; equal-cost routes; traffic per peer.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; clippy excuses only the tests themselves"
)]

mod common;

use common::{
    BOTH_SUITES, HOPS, Host, Lane, Line, MTU, NOW, Node, depart, index, install_link,
    install_route, lane_of, link_local, noise, open_headers, receive, receive_one, send, trains,
    transit,
};
use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{LinkSlot, Verdict};
use hyphae_shm::record::{InjectLinkLocal, InjectRouted};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::control::{ControlKind, Probe, message, probe};
use hyphae_wire::frame::{HOP_LIMIT_DEFAULT, OVERHEAD, PAYLOAD_AT, PAYLOAD_MAX};
use hyphae_wire::handshake::{HandshakeStep, encode_frame, encode_session_in};
use hyphae_wire::{Endpoint, NetworkId, OverlayAddress, Service, Suite};
use zerocopy::little_endian::{U32, U64};

/// Slots at the relay.
const TO_CLIENT: LinkSlot = LinkSlot(1);
const TO_SERVER: LinkSlot = LinkSlot(2);

fn frames(train: &[u8], segment: usize, verdicts: &[Verdict]) -> Vec<Vec<u8>> {
    assert_eq!(train.chunks(segment).len(), verdicts.len());
    let deliver = |(frame, verdict): (&[u8], &Verdict)| {
        let Verdict::Deliver { offset, len, .. } = *verdict else {
            panic!("{verdict:?}")
        };
        frame[offset as usize..(offset + len) as usize].to_vec()
    };
    train.chunks(segment).zip(verdicts).map(deliver).collect()
}

/// Sends a super-packet of `count` segments over the relay, all trains joined to one.
fn cross(suite: Suite, tcp: bool, count: usize, backwards: bool) {
    const SIZE: usize = 500;
    let mut line = Line::new(1, suite);
    let Line {
        client,
        relay,
        server,
        ..
    } = &mut line;
    let (from, to, egress) = if backwards {
        (server, client, TO_CLIENT)
    } else {
        (client, server, TO_SERVER)
    };
    let mut host = Host::udp(from.address, to.address);
    host.tcp = tcp;
    // The last segment is shorter.
    let packet = host.packet(SIZE * count - 7);
    let header = if count == 1 {
        TunHeader::default()
    } else {
        host.offload(500)
    };
    let built = trains(from.engine(), &header, &packet);
    assert_eq!(built.len(), count.div_ceil(64));
    let segment = built[0].0.segment;
    let mut train: Vec<u8> = built.into_iter().flat_map(|(_, bytes)| bytes).collect();

    let verdicts = receive(relay.engine(), NOW, from.endpoint, &mut train, segment);
    assert_eq!(verdicts, vec![Verdict::Transmit(egress); count]);
    let counters = &relay.engine().counters;
    assert_eq!(counters.total(Counter::TransitPackets), count as u64);
    assert_eq!(counters.total(Counter::TransitBytes), train.len() as u64);
    assert_eq!(counters.total(Counter::UnderlayRxPackets), count as u64);

    let verdicts = receive(to.engine(), NOW, relay.endpoint, &mut train, segment);
    let got = frames(&train, segment, &verdicts);
    let headers = host.headers_len();
    let mut expected = Splitter::new(&header, &packet, MTU).unwrap();
    for packet in &got {
        let mut want = vec![0; expected.next_len().unwrap()];
        expected.write_next(&mut want).unwrap();
        assert_eq!(want[7], HOPS);
        want[7] = HOPS - 1;
        assert_eq!(*packet, want);
    }
    let payload: Vec<u8> = got.iter().flat_map(|p| p[headers..].to_vec()).collect();
    assert_eq!(payload, packet[headers..]);
    let partial = |v: &Verdict| {
        matches!(v, Verdict::Deliver { partial_checksum, .. }
        if *partial_checksum == (count > 1))
    };
    assert!(
        verdicts.iter().all(partial),
        "flag follows the host's offload"
    );
}

#[test]
fn packets_cross_a_relay_unchanged_but_for_the_hop_limit() {
    for suite in BOTH_SUITES {
        for count in [1, 64, 100] {
            for (tcp, backwards) in [(false, false), (false, true), (true, false), (true, true)] {
                cross(suite, tcp, count, backwards);
            }
        }
    }
}

#[test]
fn neighbours_reach_each_other_without_a_relay() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let host = Host::udp(line.server.address, line.relay.address);
    // The relay has a session of its own with the server.
    let [relay, server] = Lane::pair(77, Suite::Aes256Gcm, index(0, 9), index(0, 9));
    common::install_session(line.relay.engine(), &relay, line.server.key);
    common::install_session(line.server.engine(), &server, line.relay.key);
    line.server.route(line.relay.address, &[(1, 1)]);
    let packet = host.packet(100);
    let mut frame = send(line.server.engine(), NOW, &packet);
    let from = line.server.endpoint;
    let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
    let got = frames(&frame, frame.len(), &[verdict]);
    assert_eq!(
        got,
        [packet],
        "not forwarded, so the hop limit is as it was"
    );
}

#[test]
fn one_bad_segment_does_not_disturb_its_train() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let mut bytes = Vec::new();
    for _ in 0..5 {
        bytes.extend(line.frame_at_relay(300).0);
    }
    let segment = bytes.len() / 5;
    bytes[2 * segment + 20] ^= 1;
    let from = line.client.endpoint;
    let verdicts = receive(line.relay.engine(), NOW, from, &mut bytes, segment);
    let mut expected = vec![Verdict::Transmit(TO_SERVER); 5];
    expected[2] = Verdict::Drop(DropReason::LinkAuth);
    assert_eq!(verdicts, expected);
}

#[test]
fn a_frame_that_a_train_has_twice_passes_once() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(1, suite);
        let (frame, _) = line.frame_at_relay(300);
        let mut bytes = frame.repeat(3);
        let from = line.client.endpoint;
        let verdicts = receive(line.relay.engine(), NOW, from, &mut bytes, frame.len());
        let again = Verdict::Drop(DropReason::LinkReplay);
        assert_eq!(verdicts, [Verdict::Transmit(TO_SERVER), again, again]);
    }
}

#[test]
fn link_local_probe_returns_to_its_sender() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let body = Probe {
        id: U64::new(7),
        sent: U64::new(9),
    };
    let [near, _] = line.first[0];
    let mut frame = link_local(&near, 500, &probe(ControlKind::Probe, body));
    let from = line.client.endpoint;
    let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Transmit(TO_CLIENT));
    assert_eq!(
        line.relay.engine().counters.total(Counter::ProbesAnswered),
        1
    );

    let from = line.relay.endpoint;
    let verdict = receive_one(line.client.engine(), NOW, from, &mut frame);
    let expected = Verdict::PuntLinkLocal {
        peer: 1,
        receive_index: near.receive.0,
        offset: 16,
        len: 24,
    };
    assert_eq!(verdict, expected);
    assert_eq!(frame[16..40], probe(ControlKind::ProbeReply, body));
}

#[test]
fn end_to_end_probe_returns_over_the_relay() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(1, suite);
        let body = Probe {
            id: U64::new(3),
            sent: U64::new(4),
        };
        let payload = probe(ControlKind::Probe, body);
        let record = routed(line.server.address, Service::Control);
        let mut space = vec![0; 2000];
        let train = line
            .client
            .engine()
            .inject_routed(NOW, &record, &payload, &mut space)
            .unwrap();
        let frame = &mut space[..train.len];
        let (client, relay) = (line.client.endpoint, line.relay.endpoint);
        let verdict = receive_one(line.relay.engine(), NOW, client, frame);
        assert_eq!(verdict, Verdict::Transmit(TO_SERVER));
        let verdict = receive_one(line.server.engine(), NOW, relay, frame);
        assert_eq!(verdict, Verdict::Transmit(LinkSlot(1)));
        let server = line.server.endpoint;
        let verdict = receive_one(line.relay.engine(), NOW, server, frame);
        assert_eq!(verdict, Verdict::Transmit(TO_CLIENT));
        let verdict = receive_one(line.client.engine(), NOW, relay, frame);
        let Verdict::PuntService {
            source,
            receive_index,
            service,
            hop_limit,
            offset,
            len,
            ..
        } = verdict
        else {
            panic!("{verdict:?}")
        };
        assert_eq!(source, line.server.address);
        assert_eq!(receive_index, line.session[0][0].receive.0);
        assert_eq!(
            (service, hop_limit),
            (Service::Control, HOP_LIMIT_DEFAULT - 1)
        );
        let reply = &frame[offset as usize..(offset + len) as usize];
        assert_eq!(reply, probe(ControlKind::ProbeReply, body));
    }
}

#[test]
fn keepalives_are_consumed() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let payload = message(ControlKind::Keepalive);
    let mut frame = link_local(&line.second[0][0], 9, &payload);
    let from = line.relay.endpoint;
    let engine = line.server.engine();
    assert_eq!(receive_one(engine, NOW, from, &mut frame), Verdict::Done);
    let headers = line.headers(Service::Control, payload.len());
    let (link, session) = (&line.second[0][0], &line.session[0][0]);
    let mut frame = transit((link, 10), (session, 10), headers, &payload);
    let engine = line.server.engine();
    assert_eq!(receive_one(engine, NOW, from, &mut frame), Verdict::Done);
}

fn routed(destination: OverlayAddress, service: Service) -> InjectRouted {
    InjectRouted {
        destination,
        service: service.code(),
        reserved: [0; 3],
        receive_index: U32::ZERO,
    }
}

fn neighbour(peer: u32, receive_index: u32) -> InjectLinkLocal {
    InjectLinkLocal {
        peer: U32::new(peer),
        receive_index: U32::new(receive_index),
        reserved: U64::ZERO,
    }
}

#[test]
fn injected_link_local_messages_reach_the_neighbours_control_plane() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let lanes = line.second[0];
    for chosen in [0, lanes[0].receive.0] {
        for kind in [
            ControlKind::Routing,
            ControlKind::Close,
            ControlKind::ProbeReply,
        ] {
            let payload = [&message(kind)[..], &noise(300, 5)].concat();
            let mut space = vec![0; 2000];
            let engine = line.relay.engine();
            let train = engine
                .inject_link_local(NOW, &neighbour(2, chosen), &payload, &mut space)
                .unwrap();
            assert_eq!((lane_of(&train), train.segment), (TO_SERVER, train.len));
            let frame = &mut space[..train.len];
            let from = line.relay.endpoint;
            let verdict = receive_one(line.server.engine(), NOW, from, frame);
            let expected = Verdict::PuntLinkLocal {
                peer: 1,
                receive_index: lanes[1].receive.0,
                offset: 16,
                len: 308,
            };
            assert_eq!(verdict, expected);
            assert_eq!(frame[16..324], payload);
        }
    }
}

#[test]
fn injection_that_cannot_be_sent_says_why() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let mut space = vec![0; 2000];
    let server = line.server.address;
    let relay = line.relay.engine();
    let mut local = |record, space: &mut [u8]| relay.inject_link_local(NOW, &record, b"", space);
    let down = Err(DropReason::AdjacencyDown);
    assert_eq!(local(neighbour(5, 0), &mut space), down);
    let unknown = index(0, 99).0;
    assert_eq!(
        local(neighbour(1, unknown), &mut space),
        Err(DropReason::LinkUnknown)
    );
    assert_eq!(
        local(neighbour(1, 0), &mut space[..31]),
        Err(DropReason::NoBuffer)
    );

    let client = line.client.engine();
    let mut route = |record: &InjectRouted, len, space: &mut [u8]| {
        let payload = vec![0; len];
        client
            .inject_routed(NOW, record, &payload, space)
            .map(|_| ())
    };
    let mut record = routed(server, Service::Message);
    assert_eq!(
        route(&record, 9, &mut space[..OVERHEAD]),
        Err(DropReason::NoBuffer)
    );
    assert_eq!(
        route(&record, PAYLOAD_MAX + 1, &mut space),
        Err(DropReason::TunTooBig)
    );
    record.receive_index = U32::new(unknown);
    assert_eq!(
        route(&record, 9, &mut space),
        Err(DropReason::SessionUnknown)
    );
    record.service = 9;
    assert_eq!(
        route(&record, 9, &mut space),
        Err(DropReason::ServiceUnknown)
    );
    let stranger = Node::new(8, 1).address;
    let record = routed(stranger, Service::Message);
    assert_eq!(
        route(&record, 9, &mut space),
        Err(DropReason::SessionUnknown)
    );
    let record = routed(stranger, Service::Handshake);
    assert_eq!(route(&record, 9, &mut space), Err(DropReason::NoRoute));
}

#[test]
fn injected_services_reach_the_other_ends_control_plane() {
    for service in [Service::Message, Service::Handshake] {
        for chosen in [0, 1] {
            let mut line = Line::new(1, Suite::ChaCha20Poly1305);
            let mut record = routed(line.server.address, service);
            record.receive_index = U32::new(chosen * line.session[0][0].receive.0);
            let payload =
                encode_session_in(NetworkId::PUBLIC, HandshakeStep::Init, 5, 0, &noise(90, 8));
            let len = payload.len();
            let mut space = vec![0; 2000];
            let engine = line.client.engine();
            let train = engine.inject_routed(NOW, &record, &payload, &mut space);
            let frame = &mut space[..train.unwrap().len];
            let (client, relay) = (line.client.endpoint, line.relay.endpoint);
            let verdict = receive_one(line.relay.engine(), NOW, client, frame);
            assert_eq!(verdict, Verdict::Transmit(TO_SERVER));
            let verdict = receive_one(line.server.engine(), NOW, relay, frame);
            let sealed = service != Service::Handshake;
            let expected = Verdict::PuntService {
                destination: line.server.address,
                source: line.client.address,
                receive_index: u32::from(sealed) * line.session[0][1].receive.0,
                peer: 1,
                service,
                hop_limit: HOP_LIMIT_DEFAULT - 1,
                offset: 88,
                len: u32::try_from(len).unwrap_or(u32::MAX),
            };
            assert_eq!(verdict, expected);
            assert_eq!(frame[PAYLOAD_AT..PAYLOAD_AT + len], payload);
        }
    }
}

#[test]
fn link_handshakes_are_punted_as_they_came() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    for step in [
        HandshakeStep::Init,
        HandshakeStep::Response,
        HandshakeStep::Finish,
    ] {
        let whole = encode_frame(step, 5, 6, &noise(90, 1));
        let mut frame = whole.clone();
        let verdict = receive_one(line.relay.engine(), NOW, common::endpoint(99), &mut frame);
        assert_eq!(verdict, Verdict::PuntHandshake);
        assert_eq!(frame, whole);
    }
}

/// A client with two relays of equal cost.
fn fork(weights: [u16; 2]) -> (Node, OverlayAddress) {
    let suite = Suite::ChaCha20Poly1305;
    let mut client = Node::new(1, 1);
    let server = Node::new(3, 1);
    for peer in [1u8, 2] {
        client.peer(peer.into(), Node::new(40 + peer, 1).key);
        let slot = index(0, 10 + u16::from(peer));
        let [lane, _] = Lane::pair(50 + peer, suite, slot, index(0, 1));
        let endpoint = common::endpoint(peer);
        install_link(client.engine(), &lane, peer.into(), endpoint);
    }
    let [session, _] = Lane::pair(60, suite, index(0, 3), index(0, 3));
    common::install_session(client.engine(), &session, server.key);
    let hops = [(1, weights[0]), (2, weights[1])];
    install_route(client.engine(), server.address, &hops);
    (client, server.address)
}

#[test]
fn flows_spread_over_equal_routes_by_weight_and_each_stays_on_its_own() {
    for (weights, low, high) in [([1, 1], 400, 600), ([3, 1], 680, 820)] {
        let (mut client, server) = fork(weights);
        let mut first = 0;
        for port in 0..1000 {
            let mut host = Host::udp(client.address, server);
            host.ports.0 = port;
            let packet = host.packet(20);
            let lane = |client: &mut Node| {
                let header = TunHeader::default();
                lane_of(&trains(client.engine(), &header, &packet)[0].0)
            };
            let chosen = lane(&mut client);
            assert!([LinkSlot(11), LinkSlot(12)].contains(&chosen));
            assert_eq!(lane(&mut client), chosen);
            first += u32::from(chosen == LinkSlot(11));
        }
        assert!(
            (low..=high).contains(&first),
            "{first} of 1000 with {weights:?}"
        );
    }
}

#[test]
fn a_relay_keeps_a_flow_on_one_of_its_equal_routes() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    // A second neighbour of the relay, as good a way to the server.
    let [lane, _] = Lane::pair(90, Suite::Aes256Gcm, index(0, 7), index(0, 7));
    let other = Node::new(9, 1);
    line.relay.peer(3, other.key);
    install_link(line.relay.engine(), &lane, 3, other.endpoint);
    line.relay.route(line.server.address, &[(2, 1), (3, 1)]);
    let mut seen = [0; 2];
    for port in 0..200 {
        let mut host = Host::udp(line.client.address, line.server.address);
        host.ports.0 = port;
        let mut train = Vec::new();
        for _ in 0..3 {
            train.extend(send(line.client.engine(), NOW, &host.packet(64)));
        }
        let segment = train.len() / 3;
        let from = line.client.endpoint;
        let verdicts = receive(line.relay.engine(), NOW, from, &mut train, segment);
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]));
        assert!(
            [TO_SERVER, LinkSlot(7)]
                .map(Verdict::Transmit)
                .contains(&verdicts[0])
        );
        seen[usize::from(verdicts[0] != Verdict::Transmit(TO_SERVER))] += 1;
    }
    assert!(seen.iter().all(|n| (60..=140).contains(n)), "{seen:?}");
}

#[test]
fn flows_that_one_node_sent_this_way_spread_again_over_the_next_ones_routes() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let other = Node::new(9, 1);
    let server = line.server.address;
    let [lane, _] = Lane::pair(90, Suite::Aes256Gcm, index(0, 7), index(0, 7));
    for (node, known) in [(&mut line.client, 1), (&mut line.relay, 2)] {
        node.peer(3, other.key);
        install_link(node.engine(), &lane, 3, other.endpoint);
        node.route(server, &[(known, 1), (3, 1)]);
    }
    let (mut came, mut first) = (0, 0);
    for port in 0..400 {
        let mut host = Host::udp(line.client.address, server);
        host.ports.0 = port;
        let packet = host.packet(20);
        let (train, mut frame) =
            trains(line.client.engine(), &TunHeader::default(), &packet).remove(0);
        if lane_of(&train) == LinkSlot(2) {
            let from = line.client.endpoint;
            let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
            assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
            came += 1;
            first += u32::from(verdict == Verdict::Transmit(TO_SERVER));
        }
    }
    assert!((150..=250).contains(&came), "{came} of 400");
    assert!(
        (came / 3..=2 * came / 3).contains(&first),
        "{first} of {came}"
    );
}

#[test]
fn traffic_is_told_once_and_by_peer() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let drain = |line: &mut Line| {
        let mut all = Vec::new();
        line.relay.engine().drain_traffic(|peer, t| {
            all.push((peer, t.rx_packets, t.rx_bytes, t.tx_packets, t.tx_bytes));
        });
        all.sort_unstable();
        all
    };
    let (mut frame, _) = line.frame_at_relay(100);
    let len = frame.len() as u64;
    let mut again = frame.clone();
    let from = line.client.endpoint;
    receive_one(line.relay.engine(), NOW, from, &mut frame);
    line.relay.engine().note_sent(TO_SERVER, 1, len, 500);
    line.relay.engine().note_sent(LinkSlot(999), 1, len, 500);
    // What is not authentic is nobody's traffic.
    let verdict = receive_one(line.relay.engine(), NOW, from, &mut again);
    assert_eq!(verdict, Verdict::Drop(DropReason::LinkReplay));
    assert_eq!(drain(&mut line), [(1, 1, len, 0, 0), (2, 0, 0, 1, len)]);
    assert_eq!(drain(&mut line), []);
    let (mut frame, _) = line.frame_at_relay(100);
    receive_one(line.relay.engine(), NOW, from, &mut frame);
    assert_eq!(drain(&mut line), [(1, 1, len, 0, 0)]);
}

#[test]
fn endpoints_of_lanes_are_those_of_their_records() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let of = |line: &mut Line, slot| line.relay.engine().endpoint(slot).copied();
    let client: Endpoint = line.client.endpoint;
    assert_eq!(of(&mut line, TO_CLIENT), Some(client));
    assert_eq!(of(&mut line, LinkSlot(500)), None);
}

#[test]
fn routing_headers_carry_what_the_packet_says_and_the_path_mtu_is_the_smaller_one() {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let packet = line.packet(200);
    let header = TunHeader::default();
    let engine = line.client.engine();
    assert_eq!(depart(engine, NOW, &header, &packet).mtu(), MTU);
    let (frame, _) = line.frame_at_relay(200);
    let headers = open_headers(&line.first[0][1], &frame);
    assert_eq!(headers.routing.source, line.client.address);
    assert_eq!(headers.routing.destination, line.server.address);
    assert_eq!(headers.routing.hop_limit, HOPS);
    assert_eq!(headers.routing.service, Service::Ipv6.code());
    assert_eq!(usize::from(headers.routing.payload_len.get()), packet.len());
    assert_eq!(headers.session.receiver.get(), line.session[0][1].receive.0);
    let plain = &packet[40..];
    assert!(!frame.windows(16).any(|window| window == &plain[20..36]));
}
