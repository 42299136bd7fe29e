//! Covers that one place of many names (numbers that it collected, subnets that it owns, indices that
//! it makes up) leaves the others their part of what a worker takes, and that collected numbers age.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

mod common;

use std::net::SocketAddr;

use common::{
    Lane, Line, NOW, endpoint, index, install_link, install_peer, link_local, noise, receive_one,
    seal_transit,
};
use hyphae_forward::{Engine, Verdict};
use hyphae_shm::record::{CookieSecret, NodeSecret, Program, Secret};
use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind};
use hyphae_wire::frame::handshake_trailer;
use hyphae_wire::guard::{self, SessionReset};
use hyphae_wire::handshake::{
    HandshakeStep, encode_frame, encode_in, encode_session_in, set_cookie, set_session_cookie,
};

use hyphae_wire::{
    Endpoint, FrameKind, NetworkId, OverlayAddress, PublicKey, Service, SessionIndex, Suite,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const COOKIES: [u8; 32] = [1; 32];
const NODE_SECRET: [u8; 32] = [0x66; 32];
const LIMITED: Verdict = Verdict::Drop(DropReason::HandshakeLimited);
const STRAY: Verdict = Verdict::Drop(DropReason::HandshakeStray);

fn arm(engine: &mut Engine, current: u8, previous: u8) {
    let cookies = CookieSecret {
        current: Secret([current; 32]),
        previous: Secret([previous; 32]),
        inits_per_second: U32::new(200),
        inits_burst: U32::new(100),
    };
    engine.apply(NOW, &Program::CookieSecret(&cookies)).unwrap();
    let node = NodeSecret {
        secret: Secret(NODE_SECRET),
    };
    engine.apply(NOW, &Program::NodeSecret(&node)).unwrap();
}

/// A line whose server has a second neighbour.
struct Net {
    line: Line,
    other: Lane,
    counter: u64,
}

impl Net {
    fn new() -> Self {
        let suite = Suite::ChaCha20Poly1305;
        let mut line = Line::new(1, suite);
        let [other, here] = Lane::pair(70, suite, index(0, 6), index(0, 5));
        let server = line.server.engine();
        arm(server, 1, 2);
        install_peer(server, 9, PublicKey([9; 32]));
        install_link(server, &here, 9, endpoint(99));
        Self {
            line,
            other,
            counter: 0,
        }
    }

    /// What becomes of a routed frame that the server gets through the relay, or the other neighbour.
    fn routed(
        &mut self,
        through_other: bool,
        source: OverlayAddress,
        service: Service,
        session: SessionIndex,
        payload: &[u8],
    ) -> Verdict {
        let mut headers = self.line.headers(service, payload.len());
        headers.routing.source = source;
        headers.session.receiver.set(session.0);
        let body = [payload, &handshake_trailer(payload)].concat();
        let (lane, from) = if through_other {
            (&self.other, endpoint(99))
        } else {
            (&self.line.second[0][0], self.line.relay.endpoint)
        };
        self.counter += 1;
        let mut frame = seal_transit((lane, self.counter), &headers, &body);
        receive_one(self.line.server.engine(), NOW, from, &mut frame)
    }

    fn handshake(
        &mut self,
        through_other: bool,
        source: OverlayAddress,
        payload: &[u8],
    ) -> Verdict {
        let none = SessionIndex(0);
        self.routed(through_other, source, Service::Handshake, none, payload)
    }

    fn punted(&mut self, through_other: bool, source: OverlayAddress, payload: &[u8]) -> bool {
        let verdict = self.handshake(through_other, source, payload);
        let punted = matches!(verdict, Verdict::PuntService { .. });
        assert!(punted || verdict == LIMITED, "{verdict:?}");
        punted
    }
}

/// Handshake numbers that this node has given out.
fn collected(n: u32) -> u32 {
    guard::number(&COOKIES, (n + 1) << 12)
}

/// An address of one /64 of a /48.
fn in_site(site: u16, subnet: u16) -> Endpoint {
    let address: SocketAddr = format!("[2001:db8:{site:x}:{subnet:x}::1]:9670")
        .parse()
        .unwrap();
    address.into()
}

fn overlay(n: u16) -> OverlayAddress {
    let mut address = OverlayAddress([4; 16]);
    address.0[6..8].copy_from_slice(&n.to_be_bytes());
    address
}

#[test]
fn a_handshake_number_outlives_one_secret_and_not_two() {
    let mut net = Net::new();
    let number = collected(5);
    let client = net.line.client.address;
    let mut seen = |current, previous| {
        arm(net.line.server.engine(), current, previous);
        let mut verdicts = Vec::new();
        for step in [HandshakeStep::Response, HandshakeStep::Finish] {
            let mut frame = encode_frame(step, 5, number, &noise(90, 1));
            let engine = net.line.server.engine();
            verdicts.push(receive_one(engine, NOW, endpoint(50), &mut frame));
            let routed = encode_in(NetworkId::PUBLIC, step, 5, number, &noise(96, 1));
            let verdict = net.handshake(false, client, &routed);
            let punted = matches!(verdict, Verdict::PuntService { .. });
            verdicts.push(if punted {
                Verdict::PuntHandshake
            } else {
                verdict
            });
        }
        let mut cookie = guard::encode(FrameKind::CookieReply, number, &[9; 16]);
        let engine = net.line.server.engine();
        verdicts.push(receive_one(engine, NOW, endpoint(50), &mut cookie));
        verdicts
    };
    assert_eq!(seen(1, 2), vec![Verdict::PuntHandshake; 5]);
    assert_eq!(seen(3, 1), vec![Verdict::PuntHandshake; 5]);
    assert_eq!(seen(4, 3), vec![STRAY; 5]);
}

#[test]
fn one_address_with_many_numbers_leaves_the_others_their_answers() {
    let mut net = Net::new();
    let engine = net.line.server.engine();
    let mut taken = |now, step, from, number| {
        let mut frame = encode_frame(step, 5, number, &noise(90, 1));
        let verdict = receive_one(engine, now, from, &mut frame);
        assert!([Verdict::PuntHandshake, LIMITED].contains(&verdict));
        verdict == Verdict::PuntHandshake
    };
    for step in [HandshakeStep::Response, HandshakeStep::Finish] {
        // Three seconds of 20,000 per second from one IPv4 address and one IPv6 /48 each.
        let (mut v4, mut v6) = (0, 0);
        for tick in 0..3000u32 {
            let now = Nanos(NOW.0 + u64::from(tick) * 1_000_000);
            for n in 0..20 {
                let n = tick * 20 + n;
                let from = endpoint(50).with_port(n as u16 | 1);
                v4 += u32::from(taken(now, step, from, collected(n)));
                let from = in_site(1, n as u16);
                v6 += u32::from(taken(now, step, from, collected(n)));
            }
            if tick % 100 == 99 {
                let fresh = collected(100_000 + tick);
                assert!(taken(now, step, endpoint(51), fresh), "{step:?} {tick}");
                assert!(taken(now, step, in_site(2, 1), fresh), "{step:?} {tick}");
            }
        }
        // At once, and a quarter of 10,000 for three seconds.
        for passed in [v4, v6] {
            assert!((8700..=8750).contains(&passed), "{step:?}: {passed}");
        }
    }
}

#[test]
fn forged_addresses_spend_only_the_budget_of_the_number_that_they_name() {
    let mut net = Net::new();
    let engine = net.line.server.engine();
    let forged = |n: u32| {
        let ip = n.wrapping_mul(0x9e37_79b9).to_be_bytes();
        Endpoint::from(SocketAddr::from((ip, 9670)))
    };
    let mut punted = |step, from, number| {
        let mut frame = encode_frame(step, 5, number, &noise(90, 1));
        let verdict = receive_one(engine, NOW, from, &mut frame);
        assert!([Verdict::PuntHandshake, LIMITED, STRAY].contains(&verdict));
        verdict == Verdict::PuntHandshake
    };
    for step in [HandshakeStep::Response, HandshakeStep::Finish] {
        // A number in use, from an address of its own for each frame.
        let known = (0..20_000).filter(|n| punted(step, forged(*n), collected(1)));
        assert_eq!(known.count(), 40, "{step:?}");
        // Guessed numbers: two of 4096 match one of both secrets.
        let guess = |n: u32| n.wrapping_mul(0x85eb_ca6b) | 1;
        let guessed = (0..20_000).filter(|n| punted(step, forged(*n), guess(*n)));
        assert!(guessed.count() < 30, "{step:?}");
        let honest = (2..1000).filter(|n| punted(step, endpoint(51), collected(*n)));
        assert_eq!(honest.count(), 998, "{step:?}");
    }
}

#[test]
fn one_neighbour_with_many_numbers_leaves_the_others_their_answers() {
    let mut net = Net::new();
    let client = net.line.client.address;
    for step in [HandshakeStep::Response, HandshakeStep::Finish] {
        let message = |n| encode_in(NetworkId::PUBLIC, step, 5, collected(n), &noise(96, 1));
        let loud = (0..8000).filter(|n| net.punted(false, overlay(*n as u16), &message(*n)));
        assert_eq!(loud.count(), 1250, "{step:?}");
        assert!(net.punted(true, client, &message(9000)), "{step:?}");
    }
}

#[test]
fn proofs_of_many_subnets_of_one_site_leave_the_others_their_share() {
    let mut net = Net::new();
    let engine = net.line.server.engine();
    let mut taken = |from| {
        let mut frame = encode_frame(HandshakeStep::Init, 7, 0, &noise(90, 1));
        set_cookie(&mut frame, &guard::cookie(&COOKIES, &from));
        receive_one(engine, NOW, from, &mut frame) == Verdict::PuntHandshake
    };
    let site = (0..2000).filter(|n| taken(in_site(1, *n))).count();
    assert_eq!(site, 125);
    assert!(taken(in_site(2, 1)));
    assert!(taken(endpoint(50)));
}

#[test]
fn proofs_of_many_subnets_behind_one_neighbour_leave_the_others_their_share() {
    let mut net = Net::new();
    let init = |source| {
        let mut init =
            encode_session_in(NetworkId::PUBLIC, HandshakeStep::Init, 7, 0, &noise(60, 1));
        set_session_cookie(&mut init, &guard::session_cookie(&COOKIES, source));
        init
    };
    let loud = (0..2000).filter(|n| net.punted(false, overlay(*n), &init(overlay(*n))));
    assert_eq!(loud.count(), 125);
    let honest = overlay(3000);
    assert!(net.punted(true, honest, &init(honest)));
}

#[test]
fn resets_of_many_indices_through_one_neighbour_leave_the_others_theirs() {
    let mut net = Net::new();
    let client = net.line.client.address;
    let reset = |n| SessionReset::new(&[3; 32], SessionIndex(n));
    let loud = (1..5000).filter(|n| net.punted(false, client, reset(*n).as_bytes()));
    assert_eq!(loud.count(), 125);
    assert!(net.punted(true, client, reset(6000).as_bytes()));
    // The same of those that are given out.
    let mut answered = |through_other, slot| {
        let lost = index(0, slot);
        let verdict = net.routed(through_other, client, Service::Ipv6, lost, &[0; 100]);
        matches!(verdict, Verdict::TransmitPart(..))
    };
    let loud = (100..9000).filter(|slot| answered(false, *slot)).count();
    assert_eq!(loud, 1250);
    assert!(answered(true, 9001));
}

#[test]
fn link_resets_for_one_site_leave_the_others_theirs() {
    let mut net = Net::new();
    let mut lane = net.line.first[0][0];
    let engine = net.line.server.engine();
    let mut answered = |from, slot| {
        lane.send = index(0, slot);
        let mut frame = link_local(&lane, 1, &control::message(ControlKind::Keepalive));
        matches!(
            receive_one(engine, NOW, from, &mut frame),
            Verdict::Reply { .. }
        )
    };
    let site = (100..9000)
        .filter(|slot| answered(in_site(1, *slot), *slot))
        .count();
    assert_eq!(site, 1250);
    assert!(answered(in_site(2, 1), 9001));
}
