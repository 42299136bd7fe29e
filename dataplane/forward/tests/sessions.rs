//! Covers the life of lanes: roles, epochs, limits, endpoints, packets that wait for a session,
//! resync, snapshot, and handoff between two workers.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; clippy excuses only the tests themselves"
)]

mod common;

use std::time::Duration;

use common::{
    BOTH_SUITES, Host, Lane, Line, NOW, Node, REJECT_MS, REKEY_MS, endpoint, events, index,
    install_link, install_peer, install_session, lane_of, link_local, receive_one, send, transit,
};
use hyphae_forward::host::TunHeader;
use hyphae_forward::{
    ApplyError, Engine, EngineEvent, HostVerdict, LinkSlot, SnapshotCursor, Verdict,
};
use hyphae_shm::record::{
    Generation, InjectLinkLocal, InjectRouted, LANE_LINK, LANE_SESSION, PendingDrop, Program, Punt,
    RETAIN_LINK, RETAIN_PEER, RETAIN_SESSION, ROLE_RECEIVE_ONLY, ROLE_STANDBY, Retain,
    SessionRemove,
};
use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::control::{ControlKind, message};

use hyphae_wire::{OverlayAddress, Service, SessionIndex, Suite, WorkerId};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U32, U64};

const SUITE: Suite = Suite::ChaCha20Poly1305;

fn after(ms: u32) -> Nanos {
    NOW + Duration::from_millis(ms.into())
}

fn active(kind: u32, index: SessionIndex) -> EngineEvent {
    EngineEvent::LaneActive {
        kind,
        receive_index: index.0,
    }
}

/// Another lane of the same session, in another slot, with other keys.
fn renewed(seed: u8, slot: u16, epoch: u32, role: u8) -> [Lane; 2] {
    let mut pair = Lane::pair(seed, SUITE, index(0, slot), index(0, slot));
    for side in &mut pair {
        side.epoch = epoch;
        side.role = role;
    }
    pair
}

fn keepalive(lane: &Lane, counter: u64) -> Vec<u8> {
    link_local(lane, counter, &message(ControlKind::Keepalive))
}

/// Which of its own lanes the relay sends on to the client.
fn relay_sends_on(line: &mut Line) -> Result<LinkSlot, DropReason> {
    let record = InjectLinkLocal {
        peer: U32::new(1),
        receive_index: U32::ZERO,
        reserved: U64::ZERO,
    };
    let mut space = [0; 200];
    let payload = message(ControlKind::Routing);
    let engine = line.relay.engine();
    let train = engine.inject_link_local(NOW, &record, &payload, &mut space);
    train.map(|train| lane_of(&train))
}

/// Which session index the client's packets to the server carry.
fn client_seals_for(line: &mut Line) -> u32 {
    let packet = line.packet(20);
    let frame = send(line.client.engine(), NOW, &packet);
    let headers = common::open_headers(&line.first[0][1], &frame);
    headers.session.receiver.get()
}

#[test]
fn standby_link_lane_sends_after_its_first_authentic_frame() {
    let mut line = Line::new(1, SUITE);
    let (client, from) = (line.client.endpoint, line.client.endpoint);
    let [near, far] = renewed(100, 20, 2, ROLE_STANDBY);
    install_link(line.relay.engine(), &far, 1, client);
    assert_eq!(relay_sends_on(&mut line), Ok(LinkSlot(1)));
    let mut forged = keepalive(&near, 0);
    forged[20] ^= 1;
    receive_one(line.relay.engine(), NOW, from, &mut forged);
    assert_eq!(relay_sends_on(&mut line), Ok(LinkSlot(1)));
    assert_eq!(events(line.relay.engine()), []);

    receive_one(line.relay.engine(), NOW, from, &mut keepalive(&near, 0));
    assert_eq!(relay_sends_on(&mut line), Ok(LinkSlot(20)));
    assert_eq!(
        events(line.relay.engine()),
        [active(LANE_LINK, far.receive)]
    );
    receive_one(line.relay.engine(), NOW, from, &mut keepalive(&near, 1));
    assert_eq!(events(line.relay.engine()), [], "told once");
}

#[test]
fn a_lower_epoch_does_not_take_over() {
    let mut line = Line::new(1, SUITE);
    let (client, from) = (line.client.endpoint, line.client.endpoint);
    for (slot, epoch, expected) in [(20, 5, 20), (21, 4, 20), (22, 5, 20), (23, 6, 23)] {
        let seed = u8::try_from(80 + slot).unwrap();
        let [near, far] = renewed(seed, slot, epoch, ROLE_STANDBY);
        install_link(line.relay.engine(), &far, 1, client);
        let verdict = receive_one(line.relay.engine(), NOW, from, &mut keepalive(&near, 0));
        assert_eq!(verdict, Verdict::Done, "it receives all the same");
        assert_eq!(
            relay_sends_on(&mut line),
            Ok(LinkSlot(expected)),
            "epoch {epoch}"
        );
    }
}

#[test]
fn standby_session_lane_sends_after_its_first_authentic_frame() {
    let mut line = Line::new(1, SUITE);
    let other = line.server.key;
    let [near, far] = renewed(100, 20, 2, ROLE_STANDBY);
    install_session(line.client.engine(), &near, other);
    assert_eq!(client_seals_for(&mut line), line.session[0][1].receive.0);
    let payload = message(ControlKind::Keepalive);
    let mut headers = line.headers(Service::Control, payload.len());
    std::mem::swap(
        &mut headers.routing.destination,
        &mut headers.routing.source,
    );
    let mut frame = transit((&line.first[0][1], 900), (&far, 0), headers, &payload);
    let from = line.relay.endpoint;
    let verdict = receive_one(line.client.engine(), NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Done);
    assert_eq!(client_seals_for(&mut line), far.receive.0);
    let seen = events(line.client.engine());
    assert_eq!(seen, [active(LANE_SESSION, near.receive)]);
}

#[test]
fn receive_only_lanes_receive_but_are_never_chosen_for_sending() {
    let mut line = Line::new(1, SUITE);
    let (client, from) = (line.client.endpoint, line.client.endpoint);
    let [near, far] = renewed(100, 20, 9, ROLE_RECEIVE_ONLY);
    install_link(line.relay.engine(), &far, 1, client);
    let verdict = receive_one(line.relay.engine(), NOW, from, &mut keepalive(&near, 0));
    assert_eq!(verdict, Verdict::Done);
    assert_eq!(relay_sends_on(&mut line), Ok(LinkSlot(1)));

    let [near, far] = renewed(101, 21, 9, ROLE_RECEIVE_ONLY);
    let other = line.client.key;
    install_session(line.server.engine(), &far, other);
    let payload = message(ControlKind::Keepalive);
    let headers = line.headers(Service::Control, payload.len());
    let mut frame = transit((&line.second[0][0], 900), (&near, 0), headers, &payload);
    let from = line.relay.endpoint;
    let verdict = receive_one(line.server.engine(), NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Done);
    let packet = Host::udp(line.server.address, line.client.address).packet(20);
    let frame = send(line.server.engine(), NOW, &packet);
    let headers = common::open_headers(&line.second[0][0], &frame);
    assert_eq!(headers.session.receiver, line.session[0][0].receive.0);
    assert_eq!(events(line.server.engine()), []);
    // With nothing else there is no adjacency.
    let index = line.first[0][1].receive;
    remove_link(line.relay.engine(), index).unwrap();
    assert_eq!(relay_sends_on(&mut line), Err(DropReason::AdjacencyDown));
}

fn remove_link(engine: &mut Engine, index: SessionIndex) -> Result<(), ApplyError> {
    let record = SessionRemove {
        receive_index: U32::new(index.0),
        reserved: U32::ZERO,
    };
    engine.apply(NOW, &Program::LinkRemove(&record))
}

#[test]
fn a_held_index_is_refused_and_its_counter_goes_on() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(1, suite);
        let (first, second) = (line.packet(50), line.packet(50));
        let before = send(line.client.engine(), NOW, &first);
        let (link, session) = (line.first[0][0], line.session[0][0]);
        let (relay, server) = (line.relay.endpoint, line.server.key);
        let engine = line.client.engine();
        let again = link.link(1, relay);
        assert_eq!(
            engine.apply(NOW, &Program::LinkInstall(&again)),
            Err(ApplyError::InUse)
        );
        let again = session.session(server);
        assert_eq!(
            engine.apply(NOW, &Program::SessionInstall(&again)),
            Err(ApplyError::InUse)
        );
        let mut salted = link;
        salted.receive.0 ^= 1 << 16;
        let salted = salted.link(1, relay);
        let refused = engine.apply(NOW, &Program::LinkInstall(&salted));
        assert_eq!(
            refused,
            Err(ApplyError::InUse),
            "the slot is held, whatever the salt"
        );
        let frame = send(engine, NOW, &second);
        assert_eq!((before[8], frame[8]), (0, 1));
        let counter = |frame| {
            common::open_headers(&line.first[0][1], frame)
                .session
                .counter
        };
        assert_eq!((counter(&before).get(), counter(&frame).get()), (0, 1));
    }
}

#[test]
fn an_expired_lane_gives_way_but_not_to_a_malformed_record() {
    let mut line = Line::new(1, SUITE);
    let relay = line.relay.endpoint;
    let now = after(REJECT_MS);
    let mut lane = line.first[0][0];
    lane.receive.0 ^= 1 << 16;
    lane.created = now;
    lane.keys.send[0] ^= 1;
    let mut bad = lane.link(1, relay);
    bad.suite = 77;
    let engine = line.client.engine();
    assert_eq!(
        engine.apply(now, &Program::LinkInstall(&bad)),
        Err(ApplyError::Malformed)
    );
    assert!(
        engine.endpoint(LinkSlot(2)).is_some(),
        "nothing has changed"
    );
    let good = lane.link(1, relay);
    assert_eq!(engine.apply(now, &Program::LinkInstall(&good)), Ok(()));

    let mut lane = line.session[0][0];
    lane.receive.0 ^= 1 << 16;
    lane.created = now;
    let mut bad = lane.session(line.server.key);
    bad.role = 77;
    let engine = line.client.engine();
    assert_eq!(
        engine.apply(now, &Program::SessionInstall(&bad)),
        Err(ApplyError::Malformed)
    );
    assert_eq!(snapshot(engine).2.len(), 1, "nothing has changed");
    let good = lane.session(line.server.key);
    assert_eq!(engine.apply(now, &Program::SessionInstall(&good)), Ok(()));
}

#[test]
fn records_with_impossible_values_are_refused() {
    let mut line = Line::new(1, SUITE);
    let lane = Lane::pair(1, SUITE, index(0, 40), index(0, 40))[0];
    let (server, client) = (line.server.key, line.client.key);
    let engine = line.client.engine();
    let link = lane.link(1, endpoint(1));
    let mut record = link;
    record.receive_index = U32::ZERO;
    let refused = |engine: &mut Engine, program: &Program<'_>| engine.apply(NOW, program);
    let malformed = Err(ApplyError::Malformed);
    assert_eq!(refused(engine, &Program::LinkInstall(&record)), malformed);
    record.receive_index = U32::new(index(1, 40).0);
    assert_eq!(refused(engine, &Program::LinkInstall(&record)), malformed);
    let mut record = link;
    record.peer = U32::new(400);
    let unknown = Err(ApplyError::Unknown);
    assert_eq!(refused(engine, &Program::LinkInstall(&record)), unknown);
    let mut record = lane.session(server);
    record.address = client.address();
    let program = Program::SessionInstall(&record);
    assert_eq!(
        refused(engine, &program),
        malformed,
        "address of another key"
    );
    assert_eq!(remove_link(engine, lane.receive), unknown);
    let record = Retain {
        kind: U32::new(9),
        id: U32::new(1),
    };
    assert_eq!(refused(engine, &Program::Retain(&record)), malformed);
    let raw = hyphae_shm::record::InjectRaw {
        addresses: endpoint(1).into(),
    };
    let program = Program::InjectRaw(&raw, &[]);
    assert_eq!(refused(engine, &program), Err(ApplyError::NotHere));
}

#[test]
fn another_key_under_a_peers_number_takes_its_lanes_away() {
    let mut line = Line::new(1, SUITE);
    install_peer(line.relay.engine(), 1, Node::new(9, 1).key);
    assert_eq!(relay_sends_on(&mut line), Err(DropReason::AdjacencyDown));
    let (mut frame, _) = line.frame_at_relay(10);
    let from = line.client.endpoint;
    let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Drop(DropReason::LinkUnknown));
}

#[test]
fn rekeying_is_asked_for_once_by_lanes_that_send() {
    let mut line = Line::new(1, SUITE);
    let packet = line.packet(30);
    send(line.client.engine(), after(REKEY_MS - 1), &packet);
    assert_eq!(events(line.client.engine()), []);
    let due = |kind, index: SessionIndex| EngineEvent::RekeyDue {
        kind,
        receive_index: index.0,
    };
    send(line.client.engine(), after(REKEY_MS), &packet);
    let expected = [
        due(LANE_SESSION, line.session[0][0].receive),
        due(LANE_LINK, line.first[0][0].receive),
    ];
    assert_eq!(events(line.client.engine()), expected);
    send(line.client.engine(), after(REKEY_MS + 1), &packet);
    assert_eq!(events(line.client.engine()), []);
}

#[test]
fn endpoints_are_learnt_from_the_newest_authentic_frames_only() {
    let mut line = Line::new(1, SUITE);
    let near = line.first[0][0];
    let (home, moved, other) = (line.client.endpoint, endpoint(200), endpoint(201));
    let engine = line.relay.engine();
    let at = |engine: &Engine| engine.endpoint(LinkSlot(1)).copied();
    receive_one(engine, NOW, home, &mut keepalive(&near, 10));
    assert_eq!(events(engine), []);
    let mut forged = keepalive(&near, 11);
    forged[17] ^= 4;
    receive_one(engine, NOW, other, &mut forged);
    assert_eq!((at(engine), events(engine)), (Some(home), vec![]));

    receive_one(engine, NOW, moved, &mut keepalive(&near, 12));
    let expected = EngineEvent::EndpointMoved {
        peer: 1,
        lane: 0,
        endpoint: moved,
    };
    assert_eq!((at(engine), events(engine)), (Some(moved), vec![expected]));
    // Late from where it was, and a copy sent from elsewhere.
    let verdict = receive_one(engine, NOW, home, &mut keepalive(&near, 11));
    assert_eq!(verdict, Verdict::Done);
    receive_one(engine, NOW, other, &mut keepalive(&near, 12));
    assert_eq!((at(engine), events(engine)), (Some(moved), vec![]));
}

/// A client that has a way to the server but no session yet.
fn waiting() -> (Line, Lane) {
    let mut line = Line::new(1, SUITE);
    let lane = line.session[0][0];
    let record = SessionRemove {
        receive_index: U32::new(lane.receive.0),
        reserved: U32::ZERO,
    };
    let program = Program::SessionRemove(&record);
    line.client.engine().apply(NOW, &program).unwrap();
    (line, lane)
}

fn queue(line: &mut Line, now: Nanos, packet: &[u8]) {
    let header = TunHeader::default();
    let verdict = line.client.engine().route_host(now, &header, packet);
    assert!(matches!(verdict, HostVerdict::Wait), "{verdict:?}");
}

fn pending_drops(line: &mut Line) -> u64 {
    line.client
        .engine()
        .counters
        .dropped(DropReason::SessionPending)
}

#[test]
fn packets_wait_for_their_session_and_leave_in_order() {
    let (mut line, lane) = waiting();
    let server = line.server.address;
    let packets: Vec<_> = (1..6).map(|len| line.packet(len)).collect();
    assert_eq!(line.client.engine().idle_for(), None);
    packets
        .iter()
        .for_each(|packet| queue(&mut line, NOW, packet));
    let engine = line.client.engine();
    assert_eq!(events(engine), [EngineEvent::NeedSession(server)]);
    assert!(engine.idle_for().is_some());
    assert!(engine.next_ready().is_none());
    install_session(engine, &lane, line.server.key);
    let ready: Vec<_> = std::iter::from_fn(|| engine.next_ready()).collect();
    let ready: Vec<_> = ready.into_iter().map(|ready| ready.packet).collect();
    assert_eq!(ready, packets);
    assert_eq!(
        events(engine),
        [],
        "who installs a lane active knows that it is"
    );
    assert_eq!(engine.idle_for(), None);
    for packet in &packets {
        send(engine, NOW, packet);
    }
    assert_eq!(pending_drops(&mut line), 0);
}

#[test]
fn a_standby_session_releases_packets_when_it_becomes_active() {
    let (mut line, mut lane) = waiting();
    lane.role = ROLE_STANDBY;
    let packet = line.packet(9);
    queue(&mut line, NOW, &packet);
    install_session(line.client.engine(), &lane, line.server.key);
    assert!(line.client.engine().next_ready().is_none());
    let back = Host::udp(line.server.address, line.client.address).packet(5);
    let mut frame = send(line.server.engine(), NOW, &back);
    let (server, relay) = (line.server.endpoint, line.relay.endpoint);
    receive_one(line.relay.engine(), NOW, server, &mut frame);
    let verdict = receive_one(line.client.engine(), NOW, relay, &mut frame);
    assert!(matches!(verdict, Verdict::Deliver { .. }));
    let ready = line.client.engine().next_ready().unwrap();
    assert_eq!(ready.packet, packet);
}

#[test]
fn abandoned_packets_are_counted() {
    let (mut line, _) = waiting();
    let packet = line.packet(9);
    (0..3).for_each(|_| queue(&mut line, NOW, &packet));
    let record = PendingDrop {
        address: line.server.address,
    };
    let program = Program::PendingDrop(&record);
    line.client.engine().apply(NOW, &program).unwrap();
    assert_eq!(pending_drops(&mut line), 3);
    line.client.engine().handle_timeout(after(60_000));
    assert_eq!(pending_drops(&mut line), 3);
    assert_eq!(line.client.engine().idle_for(), None);
    // The next one asks again.
    events(line.client.engine());
    queue(&mut line, NOW, &packet);
    assert_eq!(events(line.client.engine()).len(), 1);
}

#[test]
fn packets_that_wait_too_long_are_counted() {
    let (mut line, _) = waiting();
    let packet = line.packet(9);
    queue(&mut line, NOW, &packet);
    queue(&mut line, after(1000), &packet);
    line.client.engine().handle_timeout(after(4999));
    assert_eq!(pending_drops(&mut line), 0);
    line.client.engine().handle_timeout(after(5000));
    assert_eq!(pending_drops(&mut line), 1);
    line.client.engine().handle_timeout(after(6000));
    assert_eq!(pending_drops(&mut line), 2);
    assert_eq!(line.client.engine().idle_for(), None);
}

#[test]
fn the_control_plane_is_reminded_and_what_does_not_fit_is_counted() {
    let (mut line, _) = waiting();
    let packet = line.packet(9);
    (0..64).for_each(|_| queue(&mut line, NOW, &packet));
    assert_eq!(events(line.client.engine()).len(), 1);
    for (ms, told, lost) in [(999, 0, 1), (1000, 1, 2), (1001, 0, 3)] {
        let header = TunHeader::default();
        let verdict = line.client.engine().route_host(after(ms), &header, &packet);
        assert!(
            matches!(verdict, HostVerdict::Drop(DropReason::SessionPending)),
            "{ms}"
        );
        assert_eq!(events(line.client.engine()).len(), told, "{ms}");
        assert_eq!(pending_drops(&mut line), lost, "{ms}");
    }
}

fn begin(engine: &mut Engine, generation: u64) {
    let record = Generation {
        generation: U64::new(generation),
    };
    engine.apply(NOW, &Program::ResyncBegin(&record)).unwrap();
}

fn end(engine: &mut Engine, generation: u64) -> Result<(), ApplyError> {
    let record = Generation {
        generation: U64::new(generation),
    };
    engine.apply(NOW, &Program::ResyncEnd(&record))
}

fn retain(engine: &mut Engine, kind: u32, id: u32) {
    let record = Retain {
        kind: U32::new(kind),
        id: U32::new(id),
    };
    engine.apply(NOW, &Program::Retain(&record)).unwrap();
}

/// Names peer, link and session of the client's engine.
fn retain_all(line: &mut Line) {
    let (link, session) = (line.first[0][0].receive.0, line.session[0][0].receive.0);
    let engine = line.client.engine();
    retain(engine, RETAIN_PEER, 1);
    retain(engine, RETAIN_LINK, link);
    retain(engine, RETAIN_SESSION, session);
}

/// Numbers of peers, indices of links and of sessions.
fn snapshot(engine: &Engine) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut all = (vec![], vec![], vec![]);
    let mut cursor = SnapshotCursor::default();
    while engine.snapshot(&mut cursor, |punt| {
        if let Punt::SnapshotPeer(peer) = punt {
            all.0.push(peer.peer.get());
        } else if let Punt::SnapshotLink(link) = punt {
            all.1.push(link.receive_index.get());
        } else if let Punt::SnapshotSession(session) = punt {
            all.2.push(session.receive_index.get());
        }
        true
    }) {}
    all
}

fn can_send(line: &mut Line, to: OverlayAddress) -> bool {
    let packet = Host::udp(line.client.address, to).packet(10);
    let header = TunHeader::default();
    let verdict = line.client.engine().route_host(NOW, &header, &packet);
    matches!(verdict, HostVerdict::Depart(_))
}

#[test]
fn resync_sweeps_what_it_does_not_name_and_keeps_the_rest() {
    let mut line = Line::new(1, SUITE);
    let server = line.server.address;
    let key = line.server.key;
    let [extra, _] = renewed(60, 30, 1, ROLE_STANDBY);
    let other = Node::new(9, 1);
    line.client.peer(2, other.key);
    install_link(line.client.engine(), &extra, 2, other.endpoint);
    install_session(line.client.engine(), &extra, key);
    line.client.route(other.address, &[(2, 1)]);
    begin(line.client.engine(), 1);
    retain_all(&mut line);
    line.client.route(server, &[(1, 1)]);
    assert_eq!(
        snapshot(line.client.engine()).1.len(),
        2,
        "nothing goes before the end"
    );
    end(line.client.engine(), 1).unwrap();
    let links = vec![line.first[0][0].receive.0];
    let sessions = vec![line.session[0][0].receive.0];
    assert_eq!(snapshot(line.client.engine()), (vec![1], links, sessions));
    assert!(can_send(&mut line, server));
    let packet = Host::udp(line.client.address, other.address).packet(10);
    let verdict = line
        .client
        .engine()
        .route_host(NOW, &TunHeader::default(), &packet);
    assert!(
        matches!(verdict, HostVerdict::Drop(DropReason::NoRoute)),
        "{verdict:?}"
    );
}

#[test]
fn a_resync_that_died_sweeps_nothing_and_its_marks_do_not_count_in_the_next() {
    let mut line = Line::new(1, SUITE);
    let server = line.server.address;
    let whole = snapshot(line.client.engine());
    begin(line.client.engine(), 1);
    retain(line.client.engine(), RETAIN_PEER, 1);
    // Its control plane dies here; the next one begins anew.
    begin(line.client.engine(), 2);
    assert_eq!(end(line.client.engine(), 1), Err(ApplyError::Malformed));
    assert_eq!(snapshot(line.client.engine()), whole);
    retain_all(&mut line);
    line.client.route(server, &[(1, 1)]);
    end(line.client.engine(), 2).unwrap();
    assert_eq!(snapshot(line.client.engine()), whole);
    assert!(can_send(&mut line, server));

    begin(line.client.engine(), 3);
    retain_all(&mut line);
    begin(line.client.engine(), 4);
    end(line.client.engine(), 4).unwrap();
    assert_eq!(snapshot(line.client.engine()), (vec![], vec![], vec![]));
    assert!(!can_send(&mut line, server));
}

#[test]
fn what_is_installed_during_a_resync_stays() {
    let mut line = Line::new(1, SUITE);
    let (relay, server) = (line.relay.key, line.server.key);
    begin(line.client.engine(), 1);
    let [lane, _] = renewed(60, 30, 2, 0);
    install_peer(line.client.engine(), 1, relay);
    install_link(line.client.engine(), &lane, 1, endpoint(2));
    install_session(line.client.engine(), &lane, server);
    line.client.route(server.address(), &[(1, 1)]);
    end(line.client.engine(), 1).unwrap();
    let id = lane.receive.0;
    let expected = (vec![1], vec![id], vec![id]);
    assert_eq!(snapshot(line.client.engine()), expected);
    assert!(can_send(&mut line, server.address()));
}

#[test]
fn snapshots_have_every_lane_without_keys_and_go_on_where_they_stopped() {
    let mut line = Line::new(1, SUITE);
    let (key, server) = (line.server.key, line.server.endpoint);
    line.relay.peer(700, Node::new(9, 1).key);
    for slot in [40, 41, 9000] {
        let [lane, _] = renewed(60, slot, u32::from(slot), ROLE_STANDBY);
        install_link(line.relay.engine(), &lane, 2, server);
        install_session(line.relay.engine(), &lane, key);
    }
    let whole = snapshot(line.relay.engine());
    assert_eq!(whole.0, [1, 2, 700]);
    assert_eq!((whole.1.len(), whole.2.len()), (5, 3));
    // A record at a time, each refused twice before it is taken.
    let (mut cursor, mut steps, mut got) = (SnapshotCursor::default(), 0, Vec::new());
    let engine = line.relay.engine();
    while engine.snapshot(&mut cursor, |punt| {
        steps += 1;
        let taken = steps % 3 == 0;
        if taken {
            let (code, body, _) = punt.parts();
            got.push((code, body.to_vec()));
        }
        taken
    }) {}
    assert_eq!((steps, got.len()), (3 * 11, 11));
    let mut links = got.iter().filter(|(code, _)| *code == 6);
    let (code, bytes) = links.next().unwrap();
    let Some(Punt::SnapshotLink(link)) = Punt::parse(*code, bytes) else {
        panic!("code {code}")
    };
    let original = line.first[0][1].link(1, line.client.endpoint);
    let parts = |link: &hyphae_shm::record::LinkInstall| {
        let mut link = *link;
        link.keys = FromZeros::new_zeroed();
        Program::LinkInstall(&link).parts().1.to_vec()
    };
    assert_eq!(parts(link), parts(&original));
    for (code, bytes) in &got {
        assert!(
            *code == 5 || bytes[bytes.len() - 64..] == [0; 64],
            "keys are blank"
        );
    }
    let session = got.iter().find(|(code, _)| *code == 7).unwrap();
    let mut original = renewed(60, 40, 40, ROLE_STANDBY)[0].session(key);
    original.keys = FromZeros::new_zeroed();
    assert_eq!(session.1, Program::SessionInstall(&original).parts().1);
}

#[test]
fn frames_go_to_the_worker_that_owns_their_link() {
    let mut line = Line::new(2, SUITE);
    let from = line.client.endpoint;
    let good = keepalive(&line.first[1][0], 0);
    let mut frame = good.clone();
    let verdict = receive_one(&mut line.relay.engines[0], NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Handoff(WorkerId(1)));
    assert_eq!(frame, good, "as it came");
    let verdict = receive_one(&mut line.relay.engines[1], NOW, from, &mut frame);
    assert_eq!(verdict, Verdict::Done);
}

#[test]
fn opened_frames_go_to_the_worker_that_owns_their_session() {
    for suite in BOTH_SUITES {
        let mut line = Line::new(2, suite);
        let from = line.relay.endpoint;
        let packet = line.packet(100);
        let headers = line.headers(Service::Ipv6, packet.len());
        // The link lane ends at worker 0, the session lane at worker 1.
        let (link, session) = (&line.second[0][0], &line.session[1][0]);
        let good = transit((link, 0), (session, 0), headers, &packet);
        let (mut frame, mut again) = (good.clone(), good);
        let verdict = receive_one(&mut line.server.engines[0], NOW, from, &mut frame);
        let expected = Verdict::HandoffOpened {
            worker: WorkerId(1),
            peer: 1,
        };
        assert_eq!(verdict, expected);
        let opened = frame.clone();
        let verdict = line.server.engines[1].receive_opened(NOW, 1, &mut frame);
        let Verdict::Deliver { offset, len, .. } = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(frame[offset as usize..(offset + len) as usize], packet);
        // Again: refused by the link's worker, and by the session's if that one let it through.
        let verdict = receive_one(&mut line.server.engines[0], NOW, from, &mut again);
        assert_eq!(verdict, Verdict::Drop(DropReason::LinkReplay));
        let engine = &mut line.server.engines[1];
        let verdict = engine.receive_opened(NOW, 1, &mut opened.clone());
        assert_eq!(verdict, Verdict::Drop(DropReason::SessionReplay));
        assert_eq!(engine.counters.dropped(DropReason::SessionReplay), 1);
    }
}

#[test]
fn with_two_workers_each_sends_on_its_own_lanes() {
    let mut line = Line::new(2, SUITE);
    for k in 0..2 {
        let packet = line.packet(64);
        let mut frame = send(&mut line.client.engines[k], NOW, &packet);
        let (client, relay) = (line.client.endpoint, line.relay.endpoint);
        let verdict = receive_one(&mut line.relay.engines[k], NOW, client, &mut frame);
        assert_eq!(verdict, Verdict::Transmit(LinkSlot(2)));
        let verdict = receive_one(&mut line.server.engines[k], NOW, relay, &mut frame);
        assert!(matches!(verdict, Verdict::Deliver { .. }), "{verdict:?}");
    }
}

#[test]
fn the_last_hop_prefers_the_lane_that_ends_at_the_sessions_worker() {
    // The relay has one worker and two lanes to the server's two workers.
    let mut line = Line::new(1, SUITE);
    let [mut extra, _] = Lane::pair(60, SUITE, index(0, 9), index(1, 9));
    extra.number = 1;
    let server = line.server.endpoint;
    install_link(line.relay.engine(), &extra, 2, server);
    let from = line.client.endpoint;
    for worker in [0, 1] {
        for counter in 0..20 {
            let mut session = line.session[0][0];
            session.send = index(worker, 3);
            let mut headers = line.headers(Service::Ipv6, 10);
            headers
                .routing
                .flow_hash
                .set(u16::try_from(counter * 3001).unwrap());
            let counter = 100 * u64::from(worker) + u64::try_from(counter).unwrap();
            let link = (&line.first[0][0], counter);
            let mut frame = transit(link, (&session, counter), headers, &[0; 10]);
            let verdict = receive_one(line.relay.engine(), NOW, from, &mut frame);
            let expected = LinkSlot(if worker == 0 { 2 } else { 9 });
            assert_eq!(verdict, Verdict::Transmit(expected));
        }
    }
}

#[test]
fn messages_on_a_chosen_lane_leave_on_it() {
    let mut line = Line::new(1, SUITE);
    let [near, far] = renewed(100, 20, 9, ROLE_STANDBY);
    install_session(line.client.engine(), &near, line.server.key);
    let record = InjectRouted {
        destination: line.server.address,
        service: Service::Message.code(),
        reserved: [0; 3],
        receive_index: U32::new(near.receive.0),
    };
    let mut space = [0; 300];
    let engine = line.client.engine();
    let train = engine.inject_routed(NOW, &record, b"confirm", &mut space);
    let headers = common::open_headers(&line.first[0][1], &space[..train.unwrap().len]);
    assert_eq!(headers.session.receiver.get(), far.receive.0);
}
