//! What must not work: unauthenticated sources, replays, floods, wrong keys, wrong versions, oneself.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hyphae_shm::record::{Program, Punt, PuntHandshake, PuntService};
use hyphae_wire::handshake::{
    HandshakeStep, Message, Offer, encode, encode_frame, encode_session_in,
};
use hyphae_wire::{Endpoint, NetworkId, Service, SessionIndex, Suite, SuiteSet, WorkerId};
use zerocopy::FromZeros;

use super::network::{Network, config, secret};
use super::worker::Frame;
use crate::keys::Kind;
use crate::noise::Noise;
use crate::{Config, DownReason, Event, HandshakeSource, PeerState, Refusal};

const SECOND: Duration = Duration::from_secs(1);

fn pair(seed: u64) -> Network {
    let mut network = Network::new(seed, vec![config(1, 1), config(2, 1)]);
    network.connect(0, 1);
    network.wait(SECOND, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    network
}

fn refusals(network: &Network, node: usize) -> Vec<Refusal> {
    let events = network.nodes[node].events.iter();
    events
        .filter_map(|event| {
            if let Event::Refused { reason, .. } = event {
                Some(*reason)
            } else {
                None
            }
        })
        .collect()
}

fn unknown_source(n: u32) -> Endpoint {
    SocketAddr::from((Ipv4Addr::from(0xc000_0200 + n), 5000)).into()
}

fn receive(network: &mut Network, node: usize, from: Endpoint, frame: &[u8]) {
    let meta = PuntHandshake {
        addresses: from.into(),
    };
    network.with(node, |overlay, now| {
        overlay.handle_punt(now, WorkerId(0), &Punt::Handshake(&meta, frame));
    });
}

/// A first message of a node with key `seed`.
fn init(seed: u8, number: u32) -> Vec<u8> {
    let mut ephemeral = [seed; 32];
    ephemeral[..4].copy_from_slice(&number.to_le_bytes());
    let mut noise = Noise::new(&secret(seed), Kind::Link, true, None, Some(ephemeral));
    let offer = Offer {
        suites: SuiteSet::all(),
        workers: 1,
        mtu: 1340,
        ports: vec![9670],
        lanes: vec![],
        resets: vec![],
        instance: 0,
    };
    encode_frame(
        HandshakeStep::Init,
        number,
        0,
        &noise.write(&offer.encode()).unwrap(),
    )
}

#[test]
fn replayed_handshakes_never_disturb_a_session() {
    let mut network = pair(1);
    network.checked.push((0, 1));
    let captured = network.captured.clone();
    assert!(captured.len() >= 3);
    let installed = |n: &Network| -> Vec<u32> {
        n.nodes
            .iter()
            .flat_map(|n| n.workers[0].links.keys().copied())
            .collect()
    };
    let (before, status) = (
        installed(&network),
        network.overlay(1).peers().next().unwrap(),
    );
    for round in 0..50 {
        for (from, to, frame) in &captured {
            let from = if round % 2 == 0 {
                *from
            } else {
                unknown_source(round)
            };
            network.transmit(from, *to, &Frame::Raw(frame.clone()));
            network.run(Duration::from_millis(50));
        }
    }
    network.run(SECOND * 30);
    assert_eq!(installed(&network), before);
    let after = network.overlay(1).peers().next().unwrap();
    assert_eq!(
        (after.handshakes, after.endpoint),
        (status.handshakes, status.endpoint)
    );
    assert!(network.overlay(1).half_opens.len() == 0, "they expire");
    for node in &network.nodes {
        assert!(
            !node
                .events
                .iter()
                .any(|e| matches!(e, Event::PeerDown { .. }))
        );
    }
}

#[test]
fn a_repeated_third_message_is_answered_with_a_keepalive_to_the_proven_end() {
    let mut network = pair(2);
    network.run(SECOND);
    let finish = network.captured[2].clone();
    assert_eq!(
        Message::parse_frame(&finish.2).unwrap().step,
        HandshakeStep::Finish
    );
    network.nodes[1].workers[0].out.clear();
    let meta = PuntHandshake {
        addresses: unknown_source(1).into(),
    };
    let now = network.now;
    let overlay = network.nodes[1].overlay.as_mut().unwrap();
    overlay.handle_punt(now, WorkerId(0), &Punt::Handshake(&meta, &finish.2));
    let (_, program) = overlay.poll_program().unwrap();
    assert!(matches!(
        program.program(),
        Program::InjectLinkLocal(_, [0, ..])
    ));
    assert!(overlay.poll_program().is_none());
}

#[test]
fn a_flood_of_first_messages_leaves_bounded_state_and_room_for_others() {
    let limited = Config {
        half_open_max: 40,
        half_open_per_source_max: 4,
        ..config(2, 1)
    };
    let mut network = Network::new(3, vec![config(1, 1), limited]);
    for number in 1..=200 {
        receive(&mut network, 1, unknown_source(7), &init(9, number));
        assert!(network.overlay(1).half_opens.len() <= 4);
    }
    for number in 1..=200 {
        receive(&mut network, 1, unknown_source(number), &init(9, number));
        assert!(network.overlay(1).half_opens.len() <= 40);
    }
    network.connect(0, 1);
    network.wait(SECOND, "link in the middle of it", |n| {
        n.is_up(0, 1) && n.is_up(1, 0)
    });
    network.run(SECOND * 11);
    assert_eq!(network.overlay(1).half_opens.len(), 0);
    // Unfinished handshakes have cost no slots.
    assert_eq!(network.overlay(1).peers().count(), 1);
    for number in 1000..1300 {
        receive(
            &mut network,
            1,
            unknown_source(number % 40),
            &init(9, number),
        );
    }
    assert!(!refusals(&network, 1).contains(&Refusal::Slots));
}

#[test]
fn a_repeated_first_message_gets_the_same_answer() {
    let mut network = Network::new(4, vec![config(1, 1)]);
    let frame = init(9, 5);
    receive(&mut network, 0, unknown_source(1), &frame);
    receive(&mut network, 0, unknown_source(1), &frame);
    assert_eq!(network.overlay(0).half_opens.len(), 1);
    assert_eq!(network.captured.len(), 2);
    assert_eq!(network.captured[0].2, network.captured[1].2);
    assert!(
        network.captured[0].2.len() <= frame.len(),
        "no amplification"
    );
}

#[test]
fn the_largest_answer_is_no_longer_than_a_first_message() {
    let mut network = Network::new(5, vec![config(1, 64)]);
    let frame = init(9, 5);
    receive(&mut network, 0, unknown_source(1), &frame);
    assert!(network.captured[0].2.len() <= frame.len());
}

#[test]
fn a_pinned_key_is_the_only_one_accepted() {
    let mut network = Network::new(6, vec![config(1, 1), config(2, 1)]);
    let mut peer = network.peer_config(1, 1);
    peer.key = Some(secret(77).public_key());
    let expected = secret(77).public_key();
    network.with(0, |overlay, now| overlay.add_peer(now, peer.clone()));
    network.run(SECOND * 3);
    let (key, from) = (
        Some(network.key(1)),
        HandshakeSource::Underlay(network.endpoint(1)),
    );
    let refused = Event::Refused {
        key,
        from,
        reason: Refusal::Pinned { expected },
    };
    assert_eq!(
        network.nodes[0]
            .events
            .iter()
            .filter(|e| **e == refused)
            .count(),
        1
    );
    assert!(!network.is_up(0, 1) && !network.is_up(1, 0));
    assert!(network.nodes[0].workers[0].links.is_empty());
    let status = network.overlay(0).peers().next().unwrap();
    assert_eq!(status.refusal, Some(Refusal::Pinned { expected }));
    assert_eq!(
        (status.state, status.key),
        (PeerState::Down, Some(expected))
    );
    peer.key = Some(network.key(1));
    network.with(0, |overlay, now| overlay.add_peer(now, peer));
    network.wait(SECOND, "link", |n| n.is_up(0, 1));
    assert_eq!(network.overlay(0).peers().next().unwrap().refusal, None);
}

#[test]
fn a_node_does_not_connect_to_itself() {
    let mut network = Network::new(7, vec![config(1, 1), config(1, 1)]);
    network.connect(0, 0);
    network.run(SECOND * 20);
    assert_eq!(refusals(&network, 0), [Refusal::OwnKey]);
    // Nor to another node with a copy of its key.
    network.connect(0, 1);
    network.run(SECOND * 20);
    let refused = refusals(&network, 0);
    assert!(
        refused.len() >= 2 && refused.iter().all(|r| *r == Refusal::OwnKey),
        "{refused:?}"
    );
    assert!(network.nodes.iter().all(|n| n.workers[0].links.is_empty()));
    assert_eq!(network.overlay(0).associations.len(), 0);
}

#[test]
fn other_versions_and_suites_are_refused_by_name() {
    let only = |suite, seed| Config {
        suites: SuiteSet::only(suite),
        ..config(seed, 1)
    };
    let configs = vec![only(Suite::Aes256Gcm, 1), only(Suite::ChaCha20Poly1305, 2)];
    let mut network = Network::new(8, configs);
    network.connect(0, 1);
    network.run(SECOND);
    assert_eq!(
        refusals(&network, 1)[0],
        Refusal::Suite(Suite::Aes256Gcm.code())
    );
    let mut frame = init(9, 1);
    frame[16] = 2;
    receive(&mut network, 0, unknown_source(1), &frame);
    assert_eq!(refusals(&network, 0), [Refusal::Version(2)]);
}

#[test]
fn inbound_peers_are_admitted_up_to_the_bound_and_configured_peers_beyond() {
    let limited = Config {
        peers_max: 2,
        ..config(1, 1)
    };
    let mut network = Network::new(
        9,
        vec![
            limited,
            config(2, 1),
            config(3, 1),
            config(4, 1),
            config(5, 1),
        ],
    );
    for node in 1..4 {
        network.connect(node, 0);
        network.run(SECOND);
    }
    assert!(network.is_up(0, 1) && network.is_up(0, 2) && !network.is_up(0, 3));
    assert!(refusals(&network, 0).contains(&Refusal::PeersMax));
    assert!(!network.is_up(3, 0));
    network.connect(0, 4);
    network.wait(SECOND, "configured", |n| n.is_up(0, 4));
    // Room again.
    let key = network.key(1);
    network.nodes[1].overlay = None;
    network.with(0, |overlay, now| {
        assert!(overlay.remove_peer_by_key(now, &key))
    });
    let key = network.key(4);
    network.with(0, |overlay, now| {
        assert!(overlay.remove_peer_by_key(now, &key))
    });
    network.nodes[4].overlay = None;
    network.wait(SECOND * 30, "admitted", |n| n.is_up(0, 3) && n.is_up(3, 0));
}

#[test]
fn garbage_changes_nothing() {
    let mut network = pair(10);
    network.checked.push((0, 1));
    let captured = network.captured.clone();
    for (number, (_, to, frame)) in (0u32..).zip(&captured) {
        for at in (0..frame.len().min(300)).step_by(3) {
            let mut bent = frame.clone();
            bent[at] ^= 1 << (at % 8);
            network.transmit(unknown_source(number), *to, &Frame::Raw(bent));
            network.transmit(
                unknown_source(number),
                *to,
                &Frame::Raw(frame[..at].to_vec()),
            );
        }
        network.run(Duration::from_millis(100));
    }
    network.run(SECOND * 30);
    assert_eq!(network.overlay(0).peers().count(), 1);
    assert_eq!(network.overlay(1).peers().next().unwrap().handshakes, 1);
}

#[test]
fn an_end_to_end_answer_must_come_from_the_owner_of_the_address() {
    let mut network = Network::new(11, vec![config(1, 1), config(2, 1)]);
    let address = network.address(1);
    let now = network.now;
    let overlay = network.nodes[0].overlay.as_mut().unwrap();
    overlay.ping(now, address, 1);
    let (_, program) = overlay.poll_program().unwrap();
    let Program::InjectRouted(inject, payload) = program.program() else {
        panic!("{program:?}")
    };
    assert_eq!(
        (inject.destination, inject.service),
        (address, Service::Handshake.code())
    );
    // A relay that answers in the place of the destination, with its own key.
    let first = Message::parse(payload).unwrap();
    let mut noise = Noise::new(&secret(66), Kind::EndToEnd, false, None, Some([1; 32]));
    noise.read(first.noise).unwrap();
    let choice = Offer {
        suites: SuiteSet::only(Suite::Aes256Gcm),
        workers: 1,
        mtu: 1340,
        ports: vec![],
        lanes: vec![SessionIndex(0x10001)],
        resets: vec![],
        instance: 0,
    };
    let answer = noise.write(&choice.encode()).unwrap();
    let answer = encode(
        HandshakeStep::Response,
        5,
        first.header.sender.get(),
        &answer,
    );
    let mut meta = PuntService::new_zeroed();
    meta.source = address;
    meta.service = Service::Handshake.code();
    overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, &answer));
    let key = Some(secret(66).public_key());
    let refused = Event::Refused {
        key,
        from: HandshakeSource::Overlay(address),
        reason: Refusal::Address,
    };
    let events: Vec<_> = std::iter::from_fn(|| overlay.poll_event()).collect();
    assert!(events.contains(&refused), "{events:?}");
    assert_eq!(overlay.sessions().count(), 0);
}

#[test]
fn an_end_to_end_initiator_must_own_its_source_address() {
    let mut network = Network::new(12, vec![config(1, 1)]);
    let own = network.address(0);
    let claimed = secret(2).public_key().address();
    let mut noise = Noise::new(&secret(66), Kind::EndToEnd, true, None, Some([1; 32]));
    let mut offer = Offer {
        suites: SuiteSet::all(),
        workers: 1,
        mtu: 1340,
        ports: vec![],
        lanes: vec![],
        resets: vec![],
        instance: 0,
    };
    let first = noise.write(&offer.encode()).unwrap();
    let first = encode_session_in(NetworkId::PUBLIC, HandshakeStep::Init, 5, 0, &first);
    let mut meta = PuntService::new_zeroed();
    meta.source = claimed;
    meta.destination = own;
    meta.service = Service::Handshake.code();
    let now = network.now;
    let overlay = network.nodes[0].overlay.as_mut().unwrap();
    overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, &first));
    let (_, program) = overlay.poll_program().unwrap();
    let Program::InjectRouted(_, payload) = program.program() else {
        panic!("{program:?}")
    };
    let second = Message::parse(payload).unwrap();
    noise.read(second.noise).unwrap();
    offer.suites = SuiteSet::only(Suite::Aes256Gcm);
    offer.lanes = vec![SessionIndex(0x10001)];
    let third = noise.write(&offer.encode()).unwrap();
    let third = encode(HandshakeStep::Finish, 5, second.header.sender.get(), &third);
    overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, &third));
    let event = overlay.poll_event().unwrap();
    assert!(
        matches!(
            event,
            Event::Refused {
                reason: Refusal::Address,
                ..
            }
        ),
        "{event:?}"
    );
    assert_eq!(
        (overlay.sessions().count(), overlay.associations.len()),
        (0, 0)
    );
}

#[test]
fn closing_needs_the_keys_of_the_session() {
    // A Close on an index that is unknown, or of an end-to-end session, does not affect a link.
    let mut network = pair(13);
    let index = *network.nodes[0].workers[0].links.keys().next().unwrap();
    let close = hyphae_wire::control::message(hyphae_wire::control::ControlKind::Close);
    let mut meta = PuntService::new_zeroed();
    meta.receive_index = index.into();
    meta.service = Service::Control.code();
    network.with(0, |overlay, now| {
        overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, &close));
    });
    assert!(network.is_up(0, 1));
    let down = |e: &Event| {
        matches!(
            e,
            Event::PeerDown {
                reason: DownReason::Closed,
                ..
            }
        )
    };
    assert!(!network.nodes[0].events.iter().any(down));
}
