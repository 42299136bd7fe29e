//! Cookies and resets between engines: what a node that requires cookies, was restarted, or lies
//! makes the others do. The workers' side is tested in dataplane/forward.

use std::collections::BTreeSet;
use std::time::Duration;

use hyphae_shm::record::{LANE_LINK, LaneEvent, Program, Punt, PuntHandshake, PuntService};
use hyphae_time::Nanos;
use hyphae_wire::guard::{self, SessionReset};
use hyphae_wire::handshake::{HandshakeStep, INIT_LEN, Message};

use hyphae_wire::{FrameKind, Service, SessionIndex, WorkerId};
use zerocopy::{FromZeros, IntoBytes};

use super::network::{Network, config};
use crate::{DownReason, Event};

const SECOND: Duration = Duration::from_secs(1);

/// Two nodes with a link that node 0 began.
fn pair(seed: u64, workers: u16) -> Network {
    let mut network = Network::new(seed, vec![config(1, workers), config(2, workers)]);
    network.connect(0, 1);
    network.wait(SECOND * 5, "a link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    network.run(SECOND * 2);
    network
}

fn inits_sent(network: &Network, from: usize) -> usize {
    let ip = network.nodes[from].ip;
    let own = |endpoint: &hyphae_wire::Endpoint| endpoint.to_socket_addr().ip() == ip;
    let sent = network.captured.iter().filter(|(from, _, _)| own(from));
    sent.filter(|(_, _, bytes)| bytes[0] == FrameKind::HandshakeInit.code())
        .count()
}

#[test]
fn a_newcomer_reaches_a_node_under_load_in_one_round_trip_more() {
    let mut network = Network::new(3, vec![config(1, 1), config(2, 1)]);
    network.nodes[1].workers[0].overloaded = true;
    network.connect(0, 1);
    network.wait(SECOND, "a link through the cookie", |n| {
        n.is_up(0, 1) && n.is_up(1, 0)
    });
    assert_eq!(network.nodes[1].workers[0].cookies_sent, 1);
    assert_eq!(
        inits_sent(&network, 0),
        2,
        "the first message, and again with the cookie"
    );
    let status = network.overlay(0).peers().next().unwrap();
    assert_eq!(status.handshakes, 1);
}

#[test]
fn a_cookie_is_good_for_every_repetition_of_its_message() {
    let mut network = Network::new(4, vec![config(1, 1), config(2, 1)]);
    network.nodes[1].workers[0].overloaded = true;
    network.loss_percent = 40;
    network.connect(0, 1);
    network.wait(SECOND * 60, "a link", |n| n.is_up(0, 1));
    network.loss_percent = 0;
    network.wait(SECOND * 20, "a link in both directions", |n| {
        n.is_up(0, 1) && n.is_up(1, 0)
    });
}

/// Passes node 0 a cookie reply from `from`.
fn forge(network: &mut Network, from: hyphae_wire::Endpoint, number: u32) {
    let frame = guard::encode(FrameKind::CookieReply, number, &[7; 16]);
    let meta = PuntHandshake {
        addresses: from.into(),
    };
    network.with(0, |overlay, now| {
        overlay.handle_punt(now, WorkerId(0), &Punt::Handshake(&meta, &frame));
    });
}

#[test]
fn unsolicited_and_repeated_cookies_cost_one_repetition_at_most() {
    let mut network = Network::new(5, vec![config(1, 1), config(2, 1), config(3, 1)]);
    network.block(0, 1, true);
    network.connect(0, 1);
    let (right, wrong) = (network.endpoint(1), network.endpoint(2));
    let message = network.captured[0].2.clone();
    let number = Message::parse_frame(&message).unwrap().header.sender.get();
    forge(&mut network, right, number ^ 1);
    forge(&mut network, wrong, number);
    assert_eq!(
        inits_sent(&network, 0),
        1,
        "another number, another place: nothing"
    );
    for _ in 0..10 {
        forge(&mut network, right, number);
    }
    assert_eq!(inits_sent(&network, 0), 2, "once per message that was sent");
    let again = Message::parse_frame(&network.captured[1].2).unwrap();
    assert_eq!(
        (again.step, again.header.cookie),
        (HandshakeStep::Init, [7; 16])
    );
    assert_eq!(network.captured[1].2.len(), INIT_LEN);
    // A forged cookie does not exclude the true answer.
    network.block(0, 1, false);
    network.wait(SECOND * 2, "a link", |n| n.is_up(0, 1) && n.is_up(1, 0));
}

#[test]
fn secrets_reach_every_worker_and_are_rotated() {
    let mut network = Network::new(6, vec![config(1, 3)]);
    let secrets = |network: &Network| -> Vec<_> {
        let workers = network.nodes[0].workers.iter();
        workers
            .map(|w| w.cookies.map(|c| (c.current.0, c.previous.0)).unwrap())
            .collect()
    };
    let first = secrets(&network);
    assert_eq!(
        first.iter().collect::<BTreeSet<_>>().len(),
        1,
        "one for all workers"
    );
    let nodes: BTreeSet<_> = network.nodes[0]
        .workers
        .iter()
        .map(|w| w.node_secret)
        .collect();
    let expected = guard::node_secret(&network.nodes[0].config.identity);
    assert_eq!(nodes, BTreeSet::from([Some(expected)]));
    network.run(SECOND * 61);
    let second = secrets(&network);
    assert_ne!(first[0].0, second[0].0);
    assert_eq!(
        first[0].0, second[2].1,
        "what was given out is good for one more period"
    );
    network.run(SECOND * 61);
    assert_ne!(secrets(&network)[0].1, first[0].0, "and then no more");
    // A later control plane does not know the secrets of the one before.
    network.restart_control_plane(0);
    assert_ne!(secrets(&network)[0].0, second[0].0);
}

#[test]
fn dataplanes_that_restart_in_a_row_go_on_taking_answers_to_handshakes_in_flight() {
    let mut network = Network::new(6, vec![config(1, 1), config(2, 1)]);
    network.block(0, 1, true);
    network.connect(0, 1);
    let message = network.captured[0].2.clone();
    let number = Message::parse_frame(&message).unwrap().header.sender.get();
    let taken = |network: &Network| {
        let secrets = network.nodes[0].workers[0].cookies.unwrap();
        guard::number_is_ours(&secrets.current.0, number)
            || guard::number_is_ours(&secrets.previous.0, number)
    };
    assert!(taken(&network));
    for generation in 2..6 {
        network.nodes[0].workers[0].cookies = None;
        network.with(0, |overlay, now| overlay.begin_attach(now, generation));
        network.run(SECOND);
        assert!(taken(&network), "attached for the {generation}th time");
    }
    network.run(SECOND * 120);
    assert!(!taken(&network), "replaced twice, however often attached");
}

/// A node without configured peers is killed and restarted: its neighbours connect
/// again as soon as one frame has shown that it is back.
#[test]
fn a_restarted_node_is_found_by_the_first_frame_sent_to_it() {
    for workers in [1, 2] {
        let mut network = pair(7, workers);
        network.restart(1);
        assert!(network.is_up(0, 1) && !network.is_up(1, 0));
        let at = network.now;
        // The next probe: nothing else is sent on this link.
        network.wait(SECOND * 6, "the link again", |n| n.is_up(1, 0));
        let sent: u64 = network.nodes[1].workers.iter().map(|w| w.resets_sent).sum();
        assert!((1..=4).contains(&sent), "{sent} resets");
        let events = &network.nodes[0].events;
        let down = |e: &&Event| matches!(e, Event::PeerDown { .. });
        assert_eq!(
            events.iter().find(down),
            None,
            "the session stays until the next is established"
        );
        assert!(network.now.since(at) < SECOND * 6);
    }
}

/// A configuration of a node that renews every 20 s.
fn brisk(seed: u8, workers: u16) -> crate::Config {
    crate::Config {
        rekey_after: SECOND * 20,
        reject_after: SECOND * 40,
        ..config(seed, workers)
    }
}

#[test]
fn a_node_that_restarts_after_a_renewal_inside_the_session_is_found_by_the_first_frame() {
    for (began, workers) in [(0, 1), (1, 1), (0, 2)] {
        let mut network = Network::new(16, vec![brisk(1, workers), brisk(2, workers)]);
        network.connect(began, 1 - began);
        network.wait(SECOND * 5, "a link", |n| n.is_up(0, 1) && n.is_up(1, 0));
        let before = inits_sent(&network, 0) + inits_sent(&network, 1);
        network.wait(SECOND * 60, "a renewal", |n| {
            n.overlay(began).handshakes().links_renewed >= 1
        });
        let after = inits_sent(&network, 0) + inits_sent(&network, 1);
        assert_eq!(before, after, "inside the session");
        network.run(SECOND * 4);
        for worker in network.nodes.iter().flat_map(|n| &n.workers) {
            let tokens = worker.links.values().map(|lane| lane.install.reset);
            assert!(tokens.into_iter().all(|token| token != [0; 16]));
        }
        network.restart(1);
        if began == 1 {
            // It has forgotten whom it was connected to.
            assert_eq!(network.overlay(1).peers().count(), 0);
        }
        network.wait(SECOND * 6, "the link again", |n| n.is_up(1, 0));
        let down = |e: &&Event| matches!(e, Event::PeerDown { .. });
        assert_eq!(network.nodes[0].events.iter().find(down), None);
    }
}

#[test]
fn a_restarted_inbound_peer_is_dialled_where_it_was() {
    let mut network = pair(8, 1);
    // Node 0, the initiator of the link, loses its state and does not dial again.
    network.restart(0);
    network.wait(SECOND * 6, "a link initiated by the other side", |n| {
        n.is_up(0, 1)
    });
    let status = network.overlay(0).peers().next().unwrap();
    assert_eq!(status.direction, Some(crate::Direction::Inbound));
}

fn reset(network: &mut Network, index: u32) {
    let event = LaneEvent {
        kind: LANE_LINK.into(),
        receive_index: index.into(),
    };
    network.with(0, |overlay, now| {
        overlay.handle_punt(now, WorkerId(0), &Punt::LaneReset(&event));
    });
}

#[test]
fn resets_without_end_cost_a_handshake_now_and_then_and_no_session() {
    let mut network = pair(9, 1);
    network.checked.push((0, 1));
    let before = inits_sent(&network, 0);
    for _ in 0..200 {
        let index = *network.nodes[0].workers[0]
            .link_sending
            .values()
            .next()
            .unwrap();
        reset(&mut network, index);
        network.run(Duration::from_millis(50));
    }
    let handshakes = inits_sent(&network, 0) - before;
    assert!((5..=9).contains(&handshakes), "{handshakes} in ten seconds");
    let lanes = network.nodes[0].workers[0].links.len();
    assert!(lanes <= 10, "sessions do not pile up: {lanes}");
}

#[test]
fn a_reset_of_a_session_that_is_not_in_use_is_nothing() {
    let mut network = pair(10, 1);
    let old = *network.nodes[0].workers[0].links.keys().next().unwrap();
    reset(&mut network, old);
    network.run(SECOND * 4);
    assert_eq!(
        network.nodes[0].workers[0].links.len(),
        2,
        "the old one in its grace"
    );
    let before = inits_sent(&network, 0);
    reset(&mut network, old);
    reset(&mut network, 0x3_0003);
    assert_eq!(inits_sent(&network, 0), before);
}

#[test]
fn a_handshake_that_waits_for_its_turn_goes_at_once_when_a_reset_comes() {
    let mut network = pair(11, 1);
    let index = *network.nodes[0].workers[0]
        .link_sending
        .values()
        .next()
        .unwrap();
    network.block(0, 1, true);
    reset(&mut network, index);
    network.run(SECOND * 5);
    let before = inits_sent(&network, 0);
    reset(&mut network, index);
    assert_eq!(inits_sent(&network, 0), before + 1);
}

fn ends() -> Network {
    ends_of(vec![config(1, 1), config(2, 1), config(3, 1)])
}

fn ends_of(configs: Vec<crate::Config>) -> Network {
    let mut network = Network::new(12, configs);
    network.connect(0, 1);
    network.connect(2, 1);
    network.wait(SECOND * 5, "links", |n| n.is_up(0, 1) && n.is_up(2, 1));
    let (a, b, relay) = (network.address(0), network.address(2), network.key(1));
    network.nodes[0].routes.insert(b.subnet_id(), relay);
    network.nodes[2].routes.insert(a.subnet_id(), relay);
    network.run(SECOND);
    assert!(!network.packet(0, 0, 2), "it requests a session");
    network.wait(SECOND * 2, "a session", |n| {
        n.overlay(0).sessions().count() == 1
    });
    network.run(SECOND * 4);
    network
}

#[test]
fn a_restarted_end_that_is_only_spoken_to_is_reached_again_in_round_trips() {
    let mut network = ends();
    network.restart(2);
    network.connect(2, 1);
    network.wait(SECOND, "the link", |n| n.is_up(2, 1) && n.is_up(1, 2));
    let session = |n: &Network| n.overlay(2).sessions().count() == 1;
    assert!(!session(&network) && network.packet(0, 0, 2));
    network.wait(SECOND, "a session again", session);
    let before = network.delivered(2);
    network.run(Duration::from_millis(200));
    assert!(network.packet(0, 0, 2));
    network.run(SECOND);
    assert_eq!(network.delivered(2), before + 1);
}

#[test]
fn an_end_that_restarts_after_a_renewal_inside_the_session_is_reached_again_in_round_trips() {
    let mut network = ends_of(vec![brisk(1, 1), brisk(2, 1), brisk(3, 1)]);
    let outside = network.nodes[0].routed_handshakes;
    for _ in 0..30 {
        assert!(network.packet(0, 0, 2));
        network.run(SECOND);
    }
    assert!(network.overlay(0).handshakes().sessions_renewed >= 1);
    assert_eq!(
        network.nodes[0].routed_handshakes, outside,
        "inside the session"
    );
    network.restart(2);
    network.connect(2, 1);
    network.wait(SECOND, "the link", |n| n.is_up(2, 1) && n.is_up(1, 2));
    let session = |n: &Network| n.overlay(2).sessions().count() == 1;
    assert!(!session(&network) && network.packet(0, 0, 2));
    network.wait(SECOND, "a session again", session);
}

#[test]
fn forged_session_resets_are_ignored() {
    let mut network = ends();
    let lane = network.nodes[0].workers[0]
        .sessions
        .values()
        .next()
        .unwrap();
    let (index, token) = (lane.install.send_index.get(), lane.install.reset);
    assert_ne!(token, [0; 16]);
    let (right, relay) = (network.address(2), network.address(1));
    let begun = |network: &mut Network, source, index, token| {
        let mut reset = SessionReset::new(&[1; 32], SessionIndex(index));
        reset.token = token;
        let mut meta = PuntService::new_zeroed();
        (meta.source, meta.service) = (source, Service::Handshake.code());
        let now: Nanos = network.now;
        let overlay = network.nodes[0].overlay.as_mut().unwrap();
        overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, reset.as_bytes()));
        let mut begun = false;
        while let Some((_, program)) = overlay.poll_program() {
            begun |= matches!(program.program(), Program::InjectRouted(..));
        }
        begun
    };
    let mut bent = token;
    bent[15] ^= 1;
    assert!(!begun(&mut network, right, index, bent));
    assert!(!begun(&mut network, right, index, [0; 16]));
    assert!(!begun(&mut network, right, index ^ 1, token));
    assert!(!begun(&mut network, relay, index, token), "another end's");
    assert!(begun(&mut network, right, index, token));
    assert!(!begun(&mut network, right, index, token), "once in a while");
    let lost = |e: &&Event| {
        matches!(
            e,
            Event::SessionDown {
                reason: DownReason::Lost,
                ..
            }
        )
    };
    assert_eq!(network.nodes[0].events.iter().find(lost), None);
}

#[test]
fn an_end_under_load_is_reached_with_a_cookie() {
    let mut network = Network::new(13, vec![config(1, 1), config(2, 1), config(3, 1)]);
    network.connect(0, 1);
    network.connect(2, 1);
    network.wait(SECOND * 5, "links", |n| n.is_up(0, 1) && n.is_up(2, 1));
    let (a, b, relay) = (network.address(0), network.address(2), network.key(1));
    network.nodes[0].routes.insert(b.subnet_id(), relay);
    network.nodes[2].routes.insert(a.subnet_id(), relay);
    network.run(SECOND);
    network.nodes[2].workers[0].overloaded = true;
    assert!(!network.packet(0, 0, 2), "it requests a session");
    network.wait(SECOND / 5, "a session, before the first repetition", |n| {
        n.overlay(0).sessions().count() == 1
    });
    assert_eq!(network.nodes[2].workers[0].cookies_sent, 1);
}

#[test]
fn a_path_that_carries_no_padded_message_gets_a_link_and_a_session() {
    let mut network = Network::new(14, vec![config(1, 2), config(2, 1), config(3, 1)]);
    network.carries.insert((0, 1), 600);
    network.carries.insert((1, 2), 600);
    network.connect(0, 1);
    network.connect(2, 1);
    network.wait(SECOND * 2, "links", |n| n.is_up(0, 1) && n.is_up(2, 1));
    // The responder requires a cookie at any load.
    assert!(network.nodes[1].workers[0].cookies_sent >= 2);
    let (a, b, relay) = (network.address(0), network.address(2), network.key(1));
    network.nodes[0].routes.insert(b.subnet_id(), relay);
    network.nodes[2].routes.insert(a.subnet_id(), relay);
    network.run(SECOND);
    assert!(!network.packet(0, 0, 2), "it requests a session");
    network.wait(SECOND * 2, "a session", |n| {
        n.overlay(0).sessions().count() == 1
    });
}

#[test]
fn a_second_message_is_no_longer_than_the_first() {
    for workers in [1, 8, 64] {
        let mut network = Network::new(15, vec![config(1, 1), config(2, workers)]);
        network.connect(0, 1);
        network.wait(SECOND * 5, "a link", |n| n.is_up(0, 1) && n.is_up(1, 0));
        let len = |kind: FrameKind| {
            let mut sent = network.captured.iter().map(|(_, _, bytes)| bytes);
            sent.find(|bytes| bytes[0] == kind.code()).unwrap().len()
        };
        assert_eq!(len(FrameKind::HandshakeInit), INIT_LEN);
        assert!(len(FrameKind::HandshakeResponse) <= INIT_LEN, "{workers}");
    }
}
