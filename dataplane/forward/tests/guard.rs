//! Covers what strangers may cost a worker: first messages under load, cookies, answers nobody asked
//! for, stateless resets in both directions, and that none of it allocates. What the control plane
//! makes of it is tested in controlplane/overlay.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

mod common;

use std::net::SocketAddr;

use allocation_counter::measure;
use common::{
    Line, NOW, endpoint, events, index, link_local, noise, receive, receive_one, seal_transit,
};
use hyphae_forward::{Engine, EngineEvent, Verdict};
use hyphae_shm::record::{CookieSecret, NodeSecret, Program, Secret};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind};
use hyphae_wire::frame::{LINK_HEADER_LEN, OVERHEAD, PAYLOAD_AT, handshake_trailer};
use hyphae_wire::guard::{self, REPLY_LEN, SESSION_RESET_LEN, SessionCookie, SessionReset};
use hyphae_wire::handshake::{
    HandshakeStep, INIT_LEN, VERSION, encode_frame, encode_in, encode_session_in, set_cookie,
    set_session_cookie, unpad,
};

use hyphae_wire::{Endpoint, FrameKind, NetworkId, OverlayAddress, Service, SessionIndex, Suite};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const NODE_SECRET: [u8; 32] = [0x66; 32];
const SECOND: u64 = 1_000_000_000;

fn arm(engine: &mut Engine, current: u8, previous: u8, per_second: u32) {
    let cookies = CookieSecret {
        current: Secret([current; 32]),
        previous: Secret([previous; 32]),
        inits_per_second: U32::new(per_second),
        inits_burst: U32::new(per_second / 2),
    };
    engine.apply(NOW, &Program::CookieSecret(&cookies)).unwrap();
    let node = NodeSecret {
        secret: Secret(NODE_SECRET),
    };
    engine.apply(NOW, &Program::NodeSecret(&node)).unwrap();
}

/// An engine that asks for cookies beyond 200 first messages per second.
fn guarded() -> Line {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    arm(line.relay.engine(), 1, 2, 200);
    line
}

fn spoofed(n: u32) -> Endpoint {
    SocketAddr::from((n.wrapping_mul(0x9e37_79b9).to_be_bytes(), 9670)).into()
}

fn init(number: u32) -> Vec<u8> {
    encode_frame(HandshakeStep::Init, number, 0, &noise(90, 1))
}

/// Spends what the worker takes without a cookie.
fn load(engine: &mut Engine, now: Nanos, count: u32) -> usize {
    let mut frame = init(1);
    let punted = |n| {
        let verdict = receive_one(engine, now, spoofed(n), &mut frame);
        frame = init(1);
        verdict == Verdict::PuntHandshake
    };
    (0..count).map(punted).filter(|punted| *punted).count()
}

/// The cookie that an answer carries.
fn cookie_of(verdict: &Verdict, frame: &[u8], number: u32) -> [u8; 16] {
    let expected = Verdict::Reply {
        len: REPLY_LEN as u32,
        reason: DropReason::CookieWanted,
    };
    assert_eq!(*verdict, expected);
    let answer = &frame[..REPLY_LEN];
    assert_eq!(answer[0], FrameKind::CookieReply.code());
    let (echoed, cookie) = guard::parse(answer).unwrap();
    assert_eq!(echoed, number);
    cookie
}

#[test]
fn under_a_flood_a_newcomer_passes_with_a_cookie_and_the_flood_does_not() {
    let mut line = guarded();
    let engine = line.relay.engine();
    let newcomer = endpoint(50);
    let mut punted = 0;
    // A second of 100,000 spoofed first messages; the newcomer comes in the middle of it.
    for tick in 0..1000u64 {
        let now = Nanos(NOW.0 + tick * SECOND / 1000);
        for n in 0..100 {
            let mut frame = init(n);
            let from = spoofed(tick as u32 * 100 + n);
            let verdict = receive_one(engine, now, from, &mut frame);
            punted += usize::from(verdict == Verdict::PuntHandshake);
        }
        if tick == 500 {
            let mut frame = init(77);
            let verdict = receive_one(engine, now, newcomer, &mut frame);
            let cookie = cookie_of(&verdict, &frame, 77);
            let mut frame = init(77);
            set_cookie(&mut frame, &cookie);
            let again = frame.clone();
            let verdict = receive_one(engine, now, newcomer, &mut frame);
            assert_eq!(verdict, Verdict::PuntHandshake);
            assert_eq!(frame, again, "as it came");
        }
    }
    assert!(
        (250..=320).contains(&punted),
        "burst and one second: {punted}"
    );
    let counters = &engine.counters;
    let answered = counters.total(Counter::CookiesSent);
    assert_eq!(answered, counters.dropped(DropReason::CookieWanted));
    assert_eq!(
        answered + counters.dropped(DropReason::HandshakeLimited),
        100_001 - punted as u64
    );
    assert!(
        answered > 95_000,
        "whoever is really there must get one: {answered}"
    );
}

#[test]
fn a_cookie_is_good_for_one_address_and_two_secrets() {
    let mut line = guarded();
    let engine = line.relay.engine();
    load(engine, NOW, 300);
    let (here, there) = (endpoint(50), endpoint(51));
    let mut frame = init(7);
    let verdict = receive_one(engine, NOW, here, &mut frame);
    let cookie = cookie_of(&verdict, &frame, 7);
    let with_cookie = |engine: &mut Engine, from| {
        let mut frame = init(7);
        set_cookie(&mut frame, &cookie);
        receive_one(engine, NOW, from, &mut frame)
    };
    let asked = Verdict::Reply {
        len: REPLY_LEN as u32,
        reason: DropReason::CookieWanted,
    };
    assert_eq!(with_cookie(engine, here), Verdict::PuntHandshake);
    assert_eq!(with_cookie(engine, there), asked);
    assert_eq!(
        with_cookie(engine, here.with_port(1)),
        asked,
        "another port"
    );
    assert_eq!(engine.counters.total(Counter::CookiesRefused), 2);
    arm(engine, 3, 1, 1);
    load(engine, NOW, 50);
    assert_eq!(
        with_cookie(engine, here),
        Verdict::PuntHandshake,
        "the one before"
    );
    arm(engine, 4, 3, 1);
    assert_eq!(with_cookie(engine, here), asked, "too old");
    assert_eq!(engine.counters.total(Counter::CookiesRefused), 3);
}

#[test]
fn one_source_alone_does_not_put_others_under_load() {
    let mut line = guarded();
    let engine = line.relay.engine();
    let loud = endpoint(60);
    let mut punted = 0;
    for n in 0..5000u32 {
        // Its port changes, its address does not.
        let from = loud.with_port(1000 + n as u16);
        punted +=
            usize::from(receive_one(engine, NOW, from, &mut init(n)) == Verdict::PuntHandshake);
    }
    assert_eq!(punted, 40);
    assert_eq!(
        receive_one(engine, NOW, endpoint(61), &mut init(1)),
        Verdict::PuntHandshake
    );
    let sent = engine.counters.total(Counter::CookiesSent);
    assert_eq!(sent, 2000, "what goes back to one address is bounded");
    // A real source with a cookie is bounded likewise.
    let cookie = guard::cookie(&[1; 32], &loud);
    let proven = (0..1000).filter(|_| {
        let mut frame = init(1);
        set_cookie(&mut frame, &cookie);
        receive_one(engine, NOW, loud, &mut frame) == Verdict::PuntHandshake
    });
    assert_eq!(proven.count(), 100);
}

#[test]
fn sources_of_one_ipv6_subnet_are_one_source() {
    let mut line = guarded();
    let engine = line.relay.engine();
    let from = |n: u16| -> Endpoint {
        format!("[2001:db8:0:1::{n:x}]:9670")
            .parse::<SocketAddr>()
            .unwrap()
            .into()
    };
    let punted = (0..200)
        .filter(|n| receive_one(engine, NOW, from(*n), &mut init(1)) == Verdict::PuntHandshake);
    assert_eq!(punted.count(), 40);
    let other: SocketAddr = "[2001:db8:0:2::1]:9670".parse().unwrap();
    assert_eq!(
        receive_one(engine, NOW, other.into(), &mut init(1)),
        Verdict::PuntHandshake
    );
}

#[test]
fn only_answers_to_handshakes_of_this_node_reach_the_control_plane() {
    let mut line = guarded();
    let engine = line.relay.engine();
    let ours = guard::number(&[1; 32], 0x1234_5678);
    let stray = Verdict::Drop(DropReason::HandshakeStray);
    for step in [HandshakeStep::Response, HandshakeStep::Finish] {
        let to = |number| encode_frame(step, 5, number, &noise(90, 1));
        let from = endpoint(70 + step.code());
        assert_eq!(
            receive_one(engine, NOW, from, &mut to(ours)),
            Verdict::PuntHandshake
        );
        assert_eq!(receive_one(engine, NOW, from, &mut to(ours ^ 1)), stray);
        assert_eq!(receive_one(engine, NOW, from, &mut to(0)), stray);
        let more = (0..1000)
            .filter(|_| receive_one(engine, NOW, from, &mut to(ours)) == Verdict::PuntHandshake);
        assert_eq!(
            more.count(),
            39,
            "a known number does not open the door wide"
        );
    }
    let cookie = |number| guard::encode(FrameKind::CookieReply, number, &[9; 16]).to_vec();
    let from = endpoint(80);
    let ours = guard::number(&[1; 32], 0x4234_5678);
    assert_eq!(
        receive_one(engine, NOW, from, &mut cookie(ours)),
        Verdict::PuntHandshake
    );
    assert_eq!(receive_one(engine, NOW, from, &mut cookie(ours ^ 1)), stray);
    let malformed = Verdict::Drop(DropReason::HandshakeMalformed);
    assert_eq!(
        receive_one(engine, NOW, from, &mut [&cookie(ours)[..], &[0]].concat()),
        malformed
    );
}

#[test]
fn handshakes_of_other_versions_reach_the_control_plane_at_the_rate_of_unproven_sources() {
    let mut line = guarded();
    let engine = line.relay.engine();
    for (n, step) in [HandshakeStep::Init, HandshakeStep::Response]
        .iter()
        .enumerate()
    {
        let from = endpoint(90 + n as u8);
        let mut frame = encode_frame(*step, 5, 7, &noise(90, 1));
        frame[LINK_HEADER_LEN] = VERSION + 1;
        let verdicts = (0..1000).map(|_| receive_one(engine, NOW, from, &mut frame.clone()));
        let (punted, limited): (Vec<_>, Vec<_>) =
            verdicts.partition(|verdict| *verdict == Verdict::PuntHandshake);
        assert_eq!(punted.len(), 40);
        let reason = Verdict::Drop(DropReason::HandshakeLimited);
        assert!(limited.iter().all(|verdict| *verdict == reason));
    }
}

/// A relay that was restarted: it knows nobody, and has its secret.
fn restarted() -> Line {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    line.relay = common::Node::new(2, 1);
    arm(line.relay.engine(), 1, 2, 200);
    // The client was told the token of the lane that the relay had given it.
    let mut lane = line.first[0][0];
    lane.reset = guard::link_token(&NODE_SECRET, lane.send);
    line.client = common::Node::new(1, 1);
    let (relay, at) = (line.relay.key, line.relay.endpoint);
    line.client.peer(1, relay);
    common::install_link(line.client.engine(), &lane, 1, at);
    common::install_session(line.client.engine(), &line.session[0][0], line.server.key);
    let server = line.server.address;
    line.client.route(server, &[(1, 1)]);
    line
}

fn reset_verdict() -> Verdict {
    Verdict::Reply {
        len: REPLY_LEN as u32,
        reason: DropReason::LinkUnknown,
    }
}

#[test]
fn a_frame_to_a_restarted_node_comes_back_as_a_reset_that_its_sender_believes() {
    let mut line = restarted();
    let (client, relay) = (line.client.endpoint, line.relay.endpoint);
    let (frame, _) = line.frame_at_relay(300);
    let keepalive = control::message(ControlKind::Keepalive);
    let hello = link_local(&line.first[0][0], 5, &keepalive);
    for mut frame in [frame, hello] {
        assert!(
            frame.len() > REPLY_LEN,
            "an answer is shorter than what earned it"
        );
        let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame);
        assert_eq!(verdict, reset_verdict());
        let mut reset = frame[..REPLY_LEN].to_vec();
        let verdict = receive_one(line.client.engine(), NOW, relay, &mut reset);
        assert_eq!(verdict, Verdict::Done);
    }
    let counters = &line.relay.engine().counters;
    assert_eq!(counters.total(Counter::ResetsSent), 2);
    assert_eq!(counters.dropped(DropReason::LinkUnknown), 2);
    assert_eq!(
        line.client.engine().counters.total(Counter::ResetsAccepted),
        2
    );
    let receive_index = line.first[0][0].receive.0;
    let told = events(line.client.engine());
    assert_eq!(
        told,
        [EngineEvent::LaneReset { receive_index }],
        "once in a second"
    );
    // The session goes on as it was.
    let packet = line.packet(100);
    common::send(line.client.engine(), NOW, &packet);
}

#[test]
fn forged_resets_are_refused_and_never_crowd_out_the_true_one() {
    let mut line = restarted();
    let relay = line.relay.endpoint;
    let lane = line.first[0][0];
    let engine = line.client.engine();
    let token = guard::link_token(&NODE_SECRET, lane.send);
    let refused = Verdict::Drop(DropReason::ResetRefused);
    let mut reset = |from, index, token: &[u8; 16], now| {
        let mut frame = guard::encode(FrameKind::StatelessReset, index, token);
        receive_one(engine, now, from, &mut frame)
    };
    for n in 0..50_000u32 {
        let mut forged = [0; 16];
        forged[..4].copy_from_slice(&n.to_le_bytes());
        assert_eq!(reset(relay, lane.send.0, &forged, NOW), refused);
    }
    for at in 0..16 {
        let mut bent = token;
        bent[at] ^= 1;
        assert_eq!(reset(relay, lane.send.0, &bent, NOW), refused, "byte {at}");
    }
    assert_eq!(
        reset(endpoint(90), lane.send.0, &token, NOW),
        refused,
        "not from there"
    );
    assert_eq!(
        reset(relay, lane.receive.0, &token, NOW),
        refused,
        "our own index"
    );
    let late = Nanos(NOW.0 + 181 * SECOND);
    assert_eq!(
        reset(relay, lane.send.0, &token, late),
        refused,
        "past its limits"
    );
    assert_eq!(reset(relay, lane.send.0, &token, NOW), Verdict::Done);
}

#[test]
fn a_lane_without_a_token_is_never_reset() {
    let mut line = guarded();
    let (client, lane) = (line.client.endpoint, line.first[0][1]);
    let mut frame = guard::encode(FrameKind::StatelessReset, lane.send.0, &[0; 16]);
    let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame);
    assert_eq!(verdict, Verdict::Drop(DropReason::ResetRefused));
}

#[test]
fn a_reset_finds_its_lane_where_the_peer_has_moved_to() {
    let mut line = restarted();
    let (lane, relay, moved) = (line.first[0][0], line.relay.endpoint, endpoint(91));
    let keepalive = control::message(ControlKind::Keepalive);
    let mut frame = link_local(&line.first[0][1], 3, &keepalive);
    assert_eq!(
        receive_one(line.client.engine(), NOW, moved, &mut frame),
        Verdict::Done
    );
    let token = guard::link_token(&NODE_SECRET, lane.send);
    let mut reset = guard::encode(FrameKind::StatelessReset, lane.send.0, &token);
    let verdict = receive_one(line.client.engine(), NOW, relay, &mut reset.clone());
    assert_eq!(verdict, Verdict::Drop(DropReason::ResetRefused));
    let verdict = receive_one(line.client.engine(), NOW, moved, &mut reset);
    assert_eq!(verdict, Verdict::Done);
}

#[test]
fn resets_answer_neither_resets_nor_bad_tags_nor_floods() {
    let mut line = guarded();
    let (client, lane) = (line.client.endpoint, line.first[0][0]);
    let engine = line.relay.engine();
    // A known index with a bad tag is silence.
    let keepalive = control::message(ControlKind::Keepalive);
    let mut bent = link_local(&lane, 5, &keepalive);
    *bent.last_mut().unwrap() ^= 1;
    assert_eq!(
        receive_one(engine, NOW, client, &mut bent),
        Verdict::Drop(DropReason::LinkAuth)
    );
    // A reset for an index that is not known is refused.
    let mut reset = guard::encode(FrameKind::StatelessReset, 0x70007, &[1; 16]);
    let refused = Verdict::Drop(DropReason::ResetRefused);
    assert_eq!(receive_one(engine, NOW, client, &mut reset), refused);
    let unknown = |n: u32| {
        let mut lane = lane;
        lane.send = index(0, 900 + n as u16 % 100);
        link_local(&lane, n.into(), &keepalive)
    };
    let mut answered = |from: &dyn Fn(u32) -> Endpoint, count: u32| {
        let answers = (0..count)
            .filter(|n| receive_one(engine, NOW, from(*n), &mut unknown(*n)) == reset_verdict());
        answers.count()
    };
    assert_eq!(answered(&|_| client, 1000), 500, "five of each index");
    let all = answered(&spoofed, 20_000);
    assert!((4480..=4510).contains(&all), "of all: {all}");
    let dropped = engine.counters.dropped(DropReason::LinkUnknown);
    assert_eq!(dropped, 21_000, "counted as what they are, answered or not");
}

#[test]
fn a_node_without_its_secret_answers_nothing() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    let client = line.client.endpoint;
    let mut lane = line.first[0][0];
    lane.send = index(0, 900);
    let mut frame = link_local(&lane, 1, &control::message(ControlKind::Keepalive));
    let verdict = receive_one(line.relay.engine(), NOW, client, &mut frame);
    assert_eq!(verdict, Verdict::Drop(DropReason::LinkUnknown));
    assert!(
        load(line.relay.engine(), NOW, 1000) <= 100,
        "limits hold before any secret has come"
    );
}

#[test]
fn a_wrong_worker_hands_over_and_the_right_one_answers() {
    let mut line = Line::new(2, Suite::Aes256Gcm);
    let client = line.client.endpoint;
    for engine in &mut line.relay.engines {
        arm(engine, 1, 2, 200);
    }
    let mut lane = line.first[0][0];
    lane.send = index(1, 900);
    let mut frame = link_local(&lane, 1, &control::message(ControlKind::Keepalive));
    let verdict = receive_one(&mut line.relay.engines[0], NOW, client, &mut frame);
    assert!(matches!(verdict, Verdict::Handoff(_)));
    let verdict = receive_one(&mut line.relay.engines[1], NOW, client, &mut frame);
    assert_eq!(verdict, reset_verdict());
    // A worker that this node no longer has: any may answer.
    lane.send = index(9, 900);
    let mut frame = link_local(&lane, 1, &control::message(ControlKind::Keepalive));
    let verdict = receive_one(&mut line.relay.engines[0], NOW, client, &mut frame);
    assert_eq!(verdict, reset_verdict());
}

/// A frame for the server of a session that it does not know.
fn unknown_session(line: &Line, counter: u64, session: SessionIndex, payload: usize) -> Vec<u8> {
    let mut headers = line.headers(Service::Ipv6, payload);
    headers.session.receiver.set(session.0);
    let lane = &line.second[0][0];
    seal_transit((lane, counter), &headers, &noise(payload + 16, 3))
}

#[test]
fn an_unknown_session_is_reset_towards_its_source() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    arm(line.server.engine(), 1, 2, 200);
    let relay = line.relay.endpoint;
    let lost = index(0, 800);
    let mut frame = unknown_session(&line, 1, lost, 200);
    let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
    let Verdict::TransmitPart(lane, len) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(line.server.engine().endpoint(lane), Some(&relay));
    assert_eq!(len as usize, OVERHEAD + SESSION_RESET_LEN);
    let mut back = frame[..len as usize].to_vec();
    let server = line.server.endpoint;
    let verdict = receive_one(line.relay.engine(), NOW, server, &mut back);
    assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
    let verdict = receive_one(line.client.engine(), NOW, relay, &mut back);
    let Verdict::PuntService {
        service,
        source,
        len,
        ..
    } = verdict
    else {
        panic!("{verdict:?}")
    };
    assert_eq!((service, source), (Service::Handshake, line.server.address));
    let payload = &back[PAYLOAD_AT..PAYLOAD_AT + len as usize];
    let reset = SessionReset::parse(payload).unwrap();
    assert_eq!(
        reset.as_bytes(),
        SessionReset::new(&NODE_SECRET, lost).as_bytes()
    );
    assert_eq!(line.server.engine().counters.total(Counter::ResetsSent), 1);
    assert_eq!(
        line.server
            .engine()
            .counters
            .dropped(DropReason::SessionUnknown),
        1
    );
}

#[test]
fn session_resets_are_neither_longer_than_their_cause_nor_without_end() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    arm(line.server.engine(), 1, 2, 200);
    let relay = line.relay.endpoint;
    let lost = index(0, 800);
    let unknown = Verdict::Drop(DropReason::SessionUnknown);
    let mut short = unknown_session(&line, 1, lost, SESSION_RESET_LEN - 1);
    assert_eq!(
        receive_one(line.server.engine(), NOW, relay, &mut short),
        unknown
    );
    let mut answered = 0;
    for counter in 2..200 {
        let mut frame = unknown_session(&line, counter, lost, SESSION_RESET_LEN);
        let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
        answered += usize::from(matches!(verdict, Verdict::TransmitPart(..)));
    }
    assert_eq!(answered, 5, "of one source");
    assert_eq!(
        line.server
            .engine()
            .counters
            .dropped(DropReason::SessionUnknown),
        199
    );
}

/// A handshake frame that was routed to the server, as if from `source`.
fn routed(line: &Line, counter: u64, source: OverlayAddress, payload: &[u8]) -> Vec<u8> {
    let mut headers = line.headers(Service::Handshake, payload.len());
    headers.routing.source = source;
    let trailer = handshake_trailer(payload);
    let body = [payload, &trailer].concat();
    seal_transit((&line.second[0][0], counter), &headers, &body)
}

fn session_init(number: u32) -> Vec<u8> {
    encode_session_in(
        NetworkId::PUBLIC,
        HandshakeStep::Init,
        number,
        0,
        &noise(60, 1),
    )
}

/// What becomes of a frame that the relay passes on to the server, and the cookie that goes back.
fn arrive(line: &mut Line, now: Nanos, frame: &mut [u8]) -> (Verdict, Option<SessionCookie>) {
    let (relay, server) = (line.relay.endpoint, line.server.endpoint);
    let sent = frame.len();
    let verdict = receive_one(line.server.engine(), now, relay, frame);
    let Verdict::TransmitPart(_, len) = verdict else {
        return (verdict, None);
    };
    assert!((len as usize) < sent, "no longer than what it answers");
    let mut back = frame[..len as usize].to_vec();
    receive_one(line.relay.engine(), now, server, &mut back);
    let answered = receive_one(line.client.engine(), now, relay, &mut back);
    assert!(matches!(
        answered,
        Verdict::PuntService { .. } | Verdict::Drop(DropReason::HandshakeStray)
    ));
    let payload = &back[PAYLOAD_AT..back.len() - 16];
    (verdict, SessionCookie::parse(payload))
}

#[test]
fn forged_sources_do_not_keep_their_owner_from_a_session() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    arm(line.server.engine(), 1, 2, 200);
    let client = line.client.address;
    let number = guard::number(&[1; 32], 77 << 12);
    let punted = |verdict: &Verdict| matches!(verdict, Verdict::PuntService { .. });
    let mut garbage = 0;
    // Ten seconds of a thousand per second, behind the same relay and in the client's name.
    for tick in 0..10_000u64 {
        let now = Nanos(NOW.0 + tick * SECOND / 1000);
        let mut frame = routed(&line, 3 * tick, client, &session_init(tick as u32 + 1));
        garbage += usize::from(punted(&arrive(&mut line, now, &mut frame).0));
        if tick % 1000 != 500 {
            continue;
        }
        let first = session_init(number);
        let mut frame = routed(&line, 3 * tick + 1, client, &first);
        let (verdict, cookie) = arrive(&mut line, now, &mut frame);
        let mut again = first.clone();
        if let Some(cookie) = cookie {
            assert_eq!(cookie.number.get(), number);
            set_session_cookie(&mut again, &cookie.token);
            let mut frame = routed(&line, 3 * tick + 2, client, &again);
            assert!(
                punted(&arrive(&mut line, now, &mut frame).0),
                "with its cookie"
            );
        } else {
            assert!(punted(&verdict));
        }
    }
    assert!((500..=700).contains(&garbage), "50 per second: {garbage}");
}

#[test]
fn a_short_first_message_is_answered_with_a_cookie_only() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    arm(line.server.engine(), 1, 2, 200);
    let client = line.client.address;
    let number = guard::number(&[1; 32], 77 << 12);
    let mut short = session_init(number);
    unpad(&mut short, 0);
    let mut frame = routed(&line, 1, client, &short);
    let (_, cookie) = arrive(&mut line, NOW, &mut frame);
    set_session_cookie(&mut short, &cookie.unwrap().token);
    let mut frame = routed(&line, 2, client, &short);
    let (verdict, _) = arrive(&mut line, NOW, &mut frame);
    assert!(
        matches!(verdict, Verdict::PuntService { .. }),
        "{verdict:?}"
    );
    // The same on a link.
    let engine = line.server.engine();
    let from = endpoint(50);
    let mut short = init(7);
    unpad(&mut short, 16);
    let mut frame = short.clone();
    let verdict = receive_one(engine, NOW, from, &mut frame);
    let cookie = cookie_of(&verdict, &frame, 7);
    set_cookie(&mut short, &cookie);
    assert_eq!(
        receive_one(engine, NOW, from, &mut short),
        Verdict::PuntHandshake
    );
}

#[test]
fn answers_and_resets_have_rates_that_forgers_do_not_exhaust() {
    let mut line = Line::new(1, Suite::ChaCha20Poly1305);
    arm(line.server.engine(), 1, 2, 200);
    let client = line.client.address;
    let punted = |verdict: &Verdict| matches!(verdict, Verdict::PuntService { .. });
    let answer = |step, number| encode_in(NetworkId::PUBLIC, step, 5, number, &noise(96, 1));
    let (known, other) = (
        guard::number(&[1; 32], 77 << 12),
        guard::number(&[1; 32], 78 << 12),
    );
    let mut counter = 0;
    let mut send = |line: &mut Line, payload: &[u8]| {
        counter += 1;
        let mut frame = routed(line, counter, client, payload);
        arrive(line, NOW, &mut frame).0
    };
    for step in [HandshakeStep::Response, HandshakeStep::Finish] {
        // A number that the forger knows, and numbers that it guesses.
        let passed = (0..1000).filter(|_| punted(&send(&mut line, &answer(step, known))));
        assert_eq!(passed.count(), 40);
        let guessed = (1..2000u32).map(|n| n.wrapping_mul(0x9e37_79b9));
        let passed = guessed.filter(|n| punted(&send(&mut line, &answer(step, *n))));
        assert!(passed.count() < 10);
        assert!(punted(&send(&mut line, &answer(step, other))), "{step:?}");
    }
    let reset = |index| SessionReset::new(&NODE_SECRET, SessionIndex(index));
    let passed = (1..200u32).filter(|_| punted(&send(&mut line, reset(9).as_bytes())));
    assert_eq!(passed.count(), 5);
    assert!(punted(&send(&mut line, reset(10).as_bytes())));
}

#[test]
fn a_flood_allocates_nothing() {
    let mut line = guarded();
    let engine = line.relay.engine();
    let frames: Vec<Vec<u8>> = vec![
        init(1),
        guard::encode(FrameKind::StatelessReset, 5, &[1; 16]).to_vec(),
        guard::encode(FrameKind::CookieReply, 5, &[1; 16]).to_vec(),
        link_local(&line.second[0][1], 1, &[0; 8]),
        encode_frame(HandshakeStep::Response, 5, 6, &[0; 80]),
    ];
    let mut verdicts = Vec::with_capacity(64);
    let mut space = vec![0; INIT_LEN];
    let mut run = |from: u32| {
        for frame in &frames {
            let space = &mut space[..frame.len()];
            space.copy_from_slice(frame);
            verdicts.clear();
            engine.receive(NOW, spoofed(from), space, frame.len(), &mut verdicts);
        }
    };
    run(0);
    let counted = measure(|| (1..20_000).for_each(&mut run));
    assert_eq!(counted.count_total, 0);
}

#[test]
fn a_train_of_first_messages_is_judged_one_by_one() {
    let mut line = guarded();
    let engine = line.relay.engine();
    let mut train = init(3).repeat(50);
    let verdicts = receive(engine, NOW, endpoint(77), &mut train, INIT_LEN);
    let (passed, asked) = verdicts.split_at(40);
    assert!(passed.iter().all(|v| *v == Verdict::PuntHandshake));
    for (n, verdict) in asked.iter().enumerate() {
        cookie_of(verdict, &train[(40 + n) * INIT_LEN..], 3);
    }
}
