//! A new control plane that attaches to workers with sessions.

use std::time::Duration;

use hyphae_shm::record::{Generation, NeedSession, Program, Punt, SessionInstall};
use hyphae_time::Nanos;

use hyphae_wire::WorkerId;
use zerocopy::FromZeros;
use zerocopy::little_endian::U64;

use super::network::{Network, config};
use crate::{Config, ConfiguredPeer, DownReason, Event, Overlay};

const SECOND: Duration = Duration::from_secs(1);

/// Client 0, relay 1, server 2 with a session between the ends.
fn running(seed: u64, workers: u16) -> Network {
    let config = |n| Config {
        rekey_after: SECOND * 60,
        reject_after: SECOND * 90,
        ..config(n, workers)
    };
    let mut network = Network::new(seed, vec![config(1), config(2), config(3)]);
    for (end, other) in [(0, 2), (2, 0)] {
        let (subnet, relay) = (network.address(other).subnet_id(), network.key(1));
        network.nodes[end].routes.insert(subnet, relay);
        network.connect(end, 1);
    }
    network.wait(SECOND * 2, "links", |n| {
        n.is_up(0, 1) && n.is_up(2, 1) && n.is_up(1, 2)
    });
    network.packet(0, 0, 2);
    network.wait(SECOND, "session", |n| {
        n.overlay(0).sessions().next().is_some() && n.overlay(2).sessions().next().is_some()
    });
    network.run(SECOND * 5);
    network
}

fn handshakes(network: &Network) -> u64 {
    network
        .nodes
        .iter()
        .map(|n| n.raw_sent + n.routed_handshakes)
        .sum()
}

#[test]
fn a_new_control_plane_carries_on_without_a_handshake() {
    for (node, workers) in [(0, 1), (1, 1), (2, 1), (0, 3), (1, 3), (2, 3)] {
        let mut network = running(20 + u64::from(workers), workers);
        let before = handshakes(&network);
        let epochs: Vec<_> = network
            .overlay(node)
            .peers()
            .map(|p| (p.key, p.direction))
            .collect();
        let peers = if node == 1 {
            vec![]
        } else {
            vec![network.peer_config(1, 1)]
        };
        network.start_control_plane(node, &peers);
        assert!(network.overlay(node).is_attached());
        let after: Vec<_> = network
            .overlay(node)
            .peers()
            .map(|p| (p.key, p.direction))
            .collect();
        assert_eq!(epochs, after, "each peer once, each with its role");
        for _ in 0..300 {
            network.run(Duration::from_millis(100));
            assert!(network.packet(0, 0, 2) && network.packet(2, 0, 0));
        }
        network.run(SECOND);
        assert_eq!((network.delivered(2), network.delivered(0)), (300, 300));
        assert_eq!(
            handshakes(&network),
            before,
            "no handshake before renewal is due"
        );
        if node != 1 {
            let peer = network.overlay(node).peers().next().unwrap();
            assert_eq!(peer.configured, [ConfiguredPeer(1)]);
            assert_eq!(peer.lanes_active, workers);
        }
        // Renewal continues, for sessions of either direction.
        for _ in 0..2000 {
            network.run(Duration::from_millis(100));
            assert!(network.packet(0, 0, 2) && network.packet(2, 0, 0));
        }
        network.run(SECOND);
        assert_eq!((network.delivered(2), network.delivered(0)), (2300, 2300));
        let renewed = network.nodes.iter().filter_map(|n| n.overlay.as_ref());
        let renewed =
            renewed.map(|o| o.handshakes().links_renewed + o.handshakes().sessions_renewed);
        assert!(renewed.sum::<u64>() > 0);
        let down = |e: &Event| matches!(e, Event::PeerDown { .. } | Event::SessionDown { .. });
        assert!(network.nodes.iter().all(|n| !n.events.iter().any(down)));
    }
}

#[test]
fn incomplete_sessions_are_swept() {
    let mut network = running(30, 1);
    // Lanes of a session without its first lane, as an interrupted installation leaves them.
    let mut stray = SessionInstall::new_zeroed();
    let receive = network.nodes[0].workers[0]
        .sessions
        .values()
        .next()
        .unwrap()
        .install;
    stray.address = network.address(1);
    stray.key = network.key(1);
    stray.receive_index = 0x0011_7777.into();
    stray.lane = 1.into();
    stray.suite = receive.suite;
    stray.epoch = 1.into();
    stray.created = receive.created;
    stray.reject_after_ms = receive.reject_after_ms;
    let now = network.now;
    network.nodes[0].workers[0].execute(
        now,
        &crate::OwnedProgram::new(&Program::SessionInstall(&stray)),
    );
    assert_eq!(network.nodes[0].workers[0].sessions.len(), 2);
    network.restart_control_plane(0);
    assert_eq!(network.nodes[0].workers[0].sessions.len(), 1);
    assert_eq!(network.nodes[0].workers[0].links.len(), 1);
    assert_eq!(network.overlay(0).sessions().count(), 1);
}

#[test]
fn an_engine_that_attaches_to_an_empty_dataplane_starts_over() {
    let mut network = running(31, 2);
    let peers = network.nodes[0].peers_up.clone();
    let mut overlay = network.nodes[0].overlay.take();
    network.restart(0);
    std::mem::swap(&mut network.nodes[0].overlay, &mut overlay);
    network.nodes[0].peers_up = peers;
    network.with(0, |overlay, now| overlay.begin_attach(now, 9));
    let lost = |e: &&Event| {
        matches!(
            e,
            Event::PeerDown {
                reason: DownReason::Lost,
                ..
            } | Event::SessionDown {
                reason: DownReason::Lost,
                ..
            }
        )
    };
    assert_eq!(network.nodes[0].events.iter().filter(lost).count(), 2);
    network.wait(SECOND, "link again", |n| n.is_up(0, 1) && n.is_up(1, 0));
    network.packet(0, 0, 2);
    network.wait(SECOND, "session again", |n| {
        n.overlay(0).sessions().next().is_some()
    });
    network.run(SECOND);
    let before = network.delivered(2);
    network.packet(0, 0, 2);
    network.run(SECOND);
    assert_eq!(network.delivered(2), before + 1);
}

#[test]
fn the_resync_names_everything_between_begin_and_end_and_waits_for_the_fib() {
    let mut network = running(32, 1);
    let mut snapshot = Vec::new();
    let generation = Generation {
        generation: U64::new(77),
    };
    let now = network.now;
    let request = crate::OwnedProgram::new(&Program::SnapshotRequest(&generation));
    network.nodes[0].workers[0].execute(now, &request);
    snapshot.append(&mut network.nodes[0].workers[0].punts);

    let mut overlay = Overlay::new(network.nodes[0].config.clone(), [9; 32]);
    overlay.begin_attach(now, 77);
    let drain = |overlay: &mut Overlay| -> Vec<u16> {
        std::iter::from_fn(|| overlay.poll_program())
            .map(|(_, p)| p.code())
            .collect()
    };
    assert_eq!(drain(&mut overlay), [12]);
    // Not yet: the state is not known.
    let need = NeedSession {
        address: network.address(2),
    };
    overlay.handle_punt(now, WorkerId(0), &Punt::NeedSession(&need));
    assert!(drain(&mut overlay).is_empty());
    for punt in &snapshot {
        overlay.handle_punt(now, WorkerId(0), &punt.punt());
    }
    assert_eq!(
        drain(&mut overlay),
        [10, 9, 21, 20, 1, 14, 14],
        "begin, local, secrets, peer, link, session"
    );
    let events: Vec<_> = std::iter::from_fn(|| overlay.poll_event()).collect();
    assert!(matches!(events[0], Event::PeerUp { .. }));
    assert!(matches!(events[1], Event::SessionUp { .. }));
    assert_eq!(events[2], Event::ResyncFib { generation: 77 });
    assert!(!overlay.is_attached());
    overlay.finish_resync(now);
    overlay.finish_resync(now);
    assert_eq!(drain(&mut overlay), [11]);
    assert!(overlay.is_attached());
}

#[test]
fn a_worker_that_does_not_answer_is_asked_again_and_then_left_behind() {
    let mut overlay = Overlay::new(config(1, 2), [9; 32]);
    let start = Nanos(5_000_000_000);
    assert_eq!(overlay.poll_timeout(), None);
    overlay.begin_attach(start, 3);
    let asked = |overlay: &mut Overlay| {
        std::iter::from_fn(|| overlay.poll_program())
            .map(|(w, p)| (w.0, p.code()))
            .collect::<Vec<_>>()
    };
    assert_eq!(asked(&mut overlay), [(0, 12), (1, 12)]);
    let end = |generation| Generation {
        generation: U64::new(generation),
    };
    overlay.handle_punt(start, WorkerId(1), &Punt::SnapshotEnd(&end(2)));
    overlay.handle_punt(start, WorkerId(0), &Punt::SnapshotEnd(&end(3)));
    let first = overlay.poll_timeout().unwrap();
    overlay.handle_timeout(first);
    assert_eq!(asked(&mut overlay), [(1, 12)]);
    let second = overlay.poll_timeout().unwrap();
    assert_eq!(second.since(start), Duration::from_millis(500));
    overlay.handle_timeout(second);
    assert_eq!(
        overlay.poll_event(),
        Some(Event::ResyncFib { generation: 3 })
    );
}
