//! Covers sends of workers that have no lane to the next hop or of the session: the worker that they hand off
//! to, and what it sends. Handoffs of received frames are in `sessions.rs`.

#![allow(clippy::cast_possible_truncation, reason = "test numbers are small")]

mod common;

use common::{
    HOPS, Host, Lane, MTU, NOW, Node, depart, index, install_link, install_peer, install_route,
    install_session, link_mtu, open_headers, receive_one, send, transit,
};
use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{Egress, Engine, HostVerdict, LinkSlot, Verdict};
use hyphae_shm::record::{InjectRouted, NodeSecret, Program, Secret};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::frame::{LINK_TAG_AT, OVERHEAD, SEALED_HEADERS_AT, SealedHeaders};
use hyphae_wire::{OverlayAddress, Service, Suite, WorkerId};
use zerocopy::{FromZeros, IntoBytes};

const SUITE: Suite = Suite::Aes256Gcm;
const WORKERS: u16 = 16;
/// The large node's number of the near one.
const NEAR: u32 = 1;
/// A worker without lanes to nodes of one worker, and the one that sends in its place.
const WITHOUT: usize = 9;
const SUBSTITUTE: WorkerId = WorkerId(1);

/// A node of 16 workers between two nodes: its peer 1 has 16 workers as well, its peer 2 has one worker and so 8
/// lanes. Sessions of the large nodes with the single worker have 8 lanes, the one between them has 16.
/// Slots: 1 towards peer 1, 2 towards peer 2, 3 and 5 for sessions; `8 * slot + lane` at the single worker.
struct Net {
    near: Node,
    large: Node,
    single: Node,
    /// The near and the large node's side.
    first: Vec<[Lane; 2]>,
    /// The large and the single node's side.
    second: Vec<[Lane; 2]>,
    /// The large and the single node's side.
    session: Vec<[Lane; 2]>,
    /// The near node's and the large node's side.
    through: Vec<[Lane; 2]>,
}

fn lanes(seed: u8, count: u16, slot: u16, single: bool) -> Vec<[Lane; 2]> {
    let lane = |k: u16| {
        let far = if single {
            index(0, 8 * slot + k)
        } else {
            index(k, slot)
        };
        let mut pair = Lane::pair(seed + k as u8, SUITE, index(k, slot), far);
        pair[0].number = k;
        pair[1].number = k;
        pair
    };
    (0..count).map(lane).collect()
}

impl Net {
    fn new() -> Self {
        let mut net = Self {
            near: Node::new(1, WORKERS),
            large: Node::new(2, WORKERS),
            single: Node::new(3, 1),
            first: lanes(10, WORKERS, 1, false),
            second: lanes(30, 8, 2, true),
            session: lanes(50, 8, 3, true),
            through: lanes(70, WORKERS, 5, false),
        };
        let (near, large, single) = (&mut net.near, &mut net.large, &mut net.single);
        near.peer(1, large.key);
        large.peer(1, near.key);
        large.peer(2, single.key);
        single.peer(1, large.key);
        near.route(single.address, &[(1, 1)]);
        near.route(large.address, &[(1, 1)]);
        large.route(near.address, &[(1, 1)]);
        large.route(single.address, &[(2, 1)]);
        single.route(near.address, &[(1, 1)]);
        single.route(large.address, &[(1, 1)]);
        for (k, [a, b]) in net.first.iter().enumerate() {
            install_link(&mut near.engines[k], a, 1, large.endpoint);
            install_link(&mut large.engines[k], b, 1, near.endpoint);
        }
        for (k, [a, b]) in net.second.iter().enumerate() {
            install_link(&mut large.engines[k], a, 2, single.endpoint);
            install_link(single.engine(), b, 1, large.endpoint);
        }
        for (k, [a, b]) in net.session.iter().enumerate() {
            install_session(&mut large.engines[k], a, single.key);
            install_session(single.engine(), b, large.key);
        }
        net
    }

    /// The worker of the large node that has no lane to the single one.
    fn without(&mut self) -> &mut Engine {
        &mut self.large.engines[WITHOUT]
    }

    fn substitute(&mut self) -> &mut Engine {
        &mut self.large.engines[SUBSTITUTE.as_usize()]
    }

    fn packet(&self) -> Vec<u8> {
        Host::udp(self.large.address, self.single.address).packet(100)
    }

    /// What the single node does with a frame of the large one.
    fn at_single(&mut self, frame: &mut [u8]) -> Verdict {
        receive_one(self.single.engine(), NOW, self.large.endpoint, frame)
    }

    /// A frame of the near node for the single one, as it comes at the large node's worker without a lane.
    fn transit_frame(&self, payload: &[u8]) -> Vec<u8> {
        let headers = self.headers(self.near.address, payload.len());
        let link = &self.first[WITHOUT][0];
        transit((link, 7), (link, 0), headers, payload)
    }

    /// Headers of a frame for the single node.
    fn headers(&self, source: OverlayAddress, payload_len: usize) -> SealedHeaders {
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.destination = self.single.address;
        headers.routing.source = source;
        headers.routing.hop_limit = HOPS;
        headers.routing.service = Service::Handshake.code();
        headers.routing.payload_len.set(payload_len as u16);
        headers
    }
}

#[test]
fn packets_of_the_host_go_to_a_worker_that_has_a_lane_of_the_session() {
    let mut net = Net::new();
    let (packet, header) = (net.packet(), TunHeader::default());
    let verdict = net.without().route_host(NOW, &header, &packet);
    assert!(
        matches!(verdict, HostVerdict::Handoff(SUBSTITUTE)),
        "{verdict:?}"
    );
    assert!(
        net.without().next_event().is_none(),
        "no session is asked for"
    );
    let mut frame = send(net.substitute(), NOW, &packet);
    assert_eq!(
        open_headers(&net.second[1][1], &frame).routing.source,
        net.large.address
    );
    let verdict = net.at_single(&mut frame);
    let Verdict::Deliver { offset, len, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(
        frame[offset as usize + 8..(offset + len) as usize],
        packet[8..]
    );
}

#[test]
fn packets_with_a_session_here_and_no_link_lane_go_to_a_worker_that_has_both() {
    let mut net = Net::new();
    // A session beyond the single worker: both ends have sixteen workers.
    let far = Node::new(4, WORKERS);
    for (k, [a, _]) in net.through.clone().iter().enumerate() {
        install_session(&mut net.large.engines[k], a, far.key);
    }
    net.large.route(far.address, &[(2, 1)]);
    net.single.route(far.address, &[(1, 1)]);
    let packet = Host::udp(net.large.address, far.address).packet(usize::from(MTU) - 48);
    let header = TunHeader::default();
    let verdict = net.without().route_host(NOW, &header, &packet);
    assert!(
        matches!(verdict, HostVerdict::Handoff(SUBSTITUTE)),
        "{verdict:?}"
    );
    let departure = depart(net.substitute(), NOW, &header, &packet);
    let mut splitter = Splitter::new(&header, &packet, departure.mtu()).unwrap();
    let mut space = vec![0; 65_507];
    let train = net
        .substitute()
        .originate(NOW, &departure, &mut splitter, &mut space);
    let train = train.unwrap();
    assert_eq!(train.egress, Egress::Lane(LinkSlot(2)));
    let headers = open_headers(&net.second[1][1], &space[..train.len]);
    assert_eq!(
        headers.session.receiver.get(),
        net.through[SUBSTITUTE.as_usize()][0].send.0
    );
    assert_eq!(net.substitute().counters.total(Counter::TransitPackets), 0);
    // The MTU of the link bounds packets although their first worker has no lane of it.
    for engine in &mut net.large.engines {
        link_mtu(engine, 2, 1400);
    }
    let departure = depart(net.substitute(), NOW, &header, &packet);
    assert_eq!(usize::from(departure.mtu()), 1400 - OVERHEAD);
}

#[test]
fn the_host_hears_of_a_link_that_is_down_from_the_worker_that_would_send() {
    let mut net = Net::new();
    let far = Node::new(4, WORKERS);
    for (k, [a, _]) in net.through.clone().iter().enumerate() {
        install_session(&mut net.large.engines[k], a, far.key);
        // The peer is known, its link is down.
        install_peer(&mut net.large.engines[k], 3, Node::new(9, 1).key);
        install_route(&mut net.large.engines[k], far.address, &[(3, 1)]);
    }
    let packet = Host::udp(net.large.address, far.address).packet(100);
    let header = TunHeader::default();
    let verdict = net.without().route_host(NOW, &header, &packet);
    assert!(
        matches!(verdict, HostVerdict::Handoff(SUBSTITUTE)),
        "{verdict:?}"
    );
    let verdict = net.substitute().route_host(NOW, &header, &packet);
    assert!(
        matches!(verdict, HostVerdict::Drop(DropReason::AdjacencyDown)),
        "{verdict:?}"
    );
    assert!(
        net.substitute().next_host_reply().is_some(),
        "an ICMPv6 error for the host"
    );
}

#[test]
fn frames_of_others_leave_through_a_worker_that_has_a_lane() {
    let mut net = Net::new();
    let from = net.near.endpoint;
    let payload = [5; 200];
    let mut frame = net.transit_frame(&payload);
    let len = frame.len() as u32;
    let verdict = receive_one(net.without(), NOW, from, &mut frame);
    assert_eq!(
        verdict,
        Verdict::HandoffEgress {
            worker: SUBSTITUTE,
            peer: NEAR,
            len
        }
    );
    let lane = net
        .substitute()
        .forward_handed(NOW, NEAR, &mut frame, len as usize);
    assert_eq!(lane, Some(LinkSlot(2)));
    assert_eq!(net.substitute().counters.total(Counter::TransitPackets), 1);
    let headers = open_headers(&net.second[1][1], &frame);
    assert_eq!(
        (headers.routing.hop_limit, headers.routing.source),
        (HOPS - 1, net.near.address)
    );
    // The same frame again is a replay: the handoff changed nothing about its own link.
    let mut again = net.transit_frame(&payload);
    let verdict = receive_one(net.without(), NOW, from, &mut again);
    assert_eq!(verdict, Verdict::Drop(DropReason::LinkReplay));
}

#[test]
fn what_the_control_plane_injects_is_handed_off_too() {
    let mut net = Net::new();
    let mut record = InjectRouted::new_zeroed();
    record.destination = net.single.address;
    record.service = Service::Handshake.code();
    let mut space = vec![0; 2000];
    let train = net
        .without()
        .inject_routed(NOW, &record, b"hello", &mut space)
        .unwrap();
    assert_eq!(train.egress, Egress::Handoff(SUBSTITUTE));
    let frame = &mut space[..train.len];
    assert_eq!(
        net.substitute().forward_handed(NOW, 0, frame, train.len),
        Some(LinkSlot(2))
    );
    let headers = open_headers(&net.second[1][1], frame);
    assert_eq!(headers.routing.source, net.large.address);
}

#[test]
fn a_handed_frame_without_a_lane_is_dropped_once_and_reported() {
    let mut net = Net::new();
    let far = net.single.address;
    for engine in &mut net.large.engines {
        // The peer is known, its link is down.
        install_peer(engine, 3, Node::new(9, 1).key);
        install_route(engine, far, &[(3, 1)]);
    }
    let mut frame = net.transit_frame(&[5; 200]);
    let (len, from) = (frame.len(), net.near.endpoint);
    receive_one(net.without(), NOW, from, &mut frame);
    assert!(!net.without().has_report());
    let substitute = net.substitute();
    assert_eq!(substitute.forward_handed(NOW, NEAR, &mut frame, len), None);
    assert_eq!(substitute.counters.dropped(DropReason::AdjacencyDown), 1);
    assert!(substitute.has_report());
    // Its own sends are not handed off again.
    let mut frame = net.transit_frame(&[5; 200]);
    let verdict = receive_one(&mut net.large.engines[7], NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Handoff(WorkerId(WITHOUT as u16)));
}

#[test]
fn frames_that_the_link_does_not_carry_are_reported_by_the_worker_that_would_send() {
    let mut net = Net::new();
    for engine in &mut net.large.engines {
        link_mtu(engine, 2, 1400);
    }
    let mut frame = net.transit_frame(&[5; 1340]);
    let (len, from) = (frame.len(), net.near.endpoint);
    let verdict = receive_one(net.without(), NOW, from, &mut frame);
    assert!(
        matches!(verdict, Verdict::HandoffEgress { .. }),
        "{verdict:?}"
    );
    let substitute = net.substitute();
    assert_eq!(substitute.forward_handed(NOW, NEAR, &mut frame, len), None);
    assert_eq!(substitute.counters.dropped(DropReason::LinkTooBig), 1);
    assert!(substitute.has_report());
}

#[test]
fn errors_about_handed_frames_use_the_share_of_the_neighbour_that_they_came_from() {
    const PAYLOAD: usize = 1340;
    let mut net = Net::new();
    for engine in &mut net.large.engines {
        link_mtu(engine, 2, 1400);
    }
    let sources: Vec<_> = (0..20).map(|n| Node::new(100 + n, 1).address).collect();
    let reported = |engine: &mut Engine| {
        let mut space = vec![0; 2000];
        let mut count = 0;
        while engine.has_report() {
            // There is no route to a forged source.
            let built = engine.next_report(NOW, &mut space);
            assert_eq!(built.err(), Some(DropReason::NoRoute));
            count += 1;
        }
        count
    };
    // Received by the worker itself, with forged sources.
    let from = net.near.endpoint;
    let mut all = 0;
    for (n, source) in (0..).zip(sources.iter().cycle().take(200)) {
        let link = &net.first[SUBSTITUTE.as_usize()][0];
        let headers = net.headers(*source, PAYLOAD);
        let mut frame = transit((link, n), (link, 0), headers, &[5; PAYLOAD]);
        let verdict = receive_one(net.substitute(), NOW, from, &mut frame);
        assert_eq!(verdict, Verdict::Drop(DropReason::LinkTooBig));
        all += reported(net.substitute());
    }
    assert_eq!(all, 50, "the share of a neighbour");
    // Handed by another worker.
    let mut handed = |peer| {
        let mut count = 0;
        for source in &sources {
            let mut frame = vec![0; OVERHEAD + PAYLOAD];
            let headers = net.headers(*source, PAYLOAD);
            frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(headers.as_bytes());
            let len = frame.len();
            let lane = net.substitute().forward_handed(NOW, peer, &mut frame, len);
            assert_eq!(lane, None);
            count += reported(net.substitute());
        }
        count
    };
    assert_eq!((handed(NEAR), handed(7)), (0, 20));
}

#[test]
fn answers_built_in_place_are_handed_off() {
    let mut net = Net::new();
    // A frame of a session that the large node does not know earns a reset, which goes back to the single node's
    // side through a worker that has a lane.
    let secret = NodeSecret {
        secret: Secret([7; 32]),
    };
    let program = Program::NodeSecret(&secret);
    net.without().apply(NOW, &program).unwrap();
    let mut headers = SealedHeaders::new_zeroed();
    headers.routing.destination = net.large.address;
    headers.routing.source = net.single.address;
    headers.routing.hop_limit = HOPS;
    headers.routing.service = Service::Message.code();
    headers.routing.payload_len.set(200);
    let [_, session] = Lane::pair(99, SUITE, index(WITHOUT as u16, 77), index(0, 77));
    let link = &net.first[WITHOUT][0];
    let mut frame = transit((link, 3), (&session, 0), headers, &[1; 200]);
    let from = net.near.endpoint;
    let verdict = receive_one(net.without(), NOW, from, &mut frame);
    let Verdict::HandoffEgress {
        worker: SUBSTITUTE,
        peer: 0,
        len,
    } = verdict
    else {
        panic!("{verdict:?}")
    };
    let answer = &mut frame[..len as usize];
    assert_eq!(
        net.substitute()
            .forward_handed(NOW, 0, answer, len as usize),
        Some(LinkSlot(2))
    );
    let headers = open_headers(&net.second[1][1], answer);
    assert_eq!(headers.routing.service, Service::Handshake.code());
}
