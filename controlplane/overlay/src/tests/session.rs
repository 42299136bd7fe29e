//! End-to-end sessions through a relay: on demand, renewal under traffic, glare, loss of one end,
//! pings.

use std::time::Duration;

use hyphae_shm::record::{LANE_SESSION, LaneEvent, NeedSession, Punt};
use hyphae_wire::{OverlayAddress, WorkerId};
use zerocopy::little_endian::U32;

use super::network::{Network, config};
use crate::ids::Owner;
use crate::{Config, Direction, DownReason, Event};

const SECOND: Duration = Duration::from_secs(1);

fn hasty(seed: u8, workers: u16) -> Config {
    Config {
        rekey_after: SECOND * 20,
        reject_after: SECOND * 40,
        grace: SECOND * 5,
        ..config(seed, workers)
    }
}

/// Client 0, relay 1, server 2, links up.
fn relayed(seed: u64, configs: Vec<Config>) -> Network {
    let mut network = Network::new(seed, configs);
    for (end, other) in [(0, 2), (2, 0)] {
        let (subnet, relay) = (network.address(other).subnet_id(), network.key(1));
        network.nodes[end].routes.insert(subnet, relay);
        network.connect(end, 1);
    }
    network.wait(SECOND * 2, "links", |n| {
        n.is_up(0, 1) && n.is_up(2, 1) && n.is_up(1, 2)
    });
    network
}

fn plain(seed: u64) -> Network {
    relayed(seed, vec![config(1, 1), config(2, 1), config(3, 1)])
}

fn count(network: &Network, node: usize, wanted: impl Fn(&Event) -> bool) -> usize {
    network.nodes[node]
        .events
        .iter()
        .filter(|event| wanted(event))
        .count()
}

fn session_up(network: &Network, from: usize) -> bool {
    network.overlay(from).sessions().next().is_some()
}

#[test]
fn a_waiting_packet_brings_a_session_and_a_session_serves_both_ways() {
    let mut network = plain(1);
    assert!(!network.packet(0, 0, 2));
    // Asking again meanwhile begins nothing new.
    assert!(!network.packet(0, 0, 2));
    network.wait(SECOND, "session", |n| session_up(n, 0) && session_up(n, 2));
    assert_eq!(network.nodes[0].routed_handshakes, 2);
    assert!(network.packet(0, 0, 2) && network.packet(2, 0, 0));
    network.run(SECOND);
    assert_eq!((network.delivered(2), network.delivered(0)), (1, 1));
    let session = network.overlay(0).sessions().next().unwrap();
    assert_eq!(
        (session.address, session.key),
        (network.address(2), network.key(2))
    );
    assert_eq!(session.direction, Direction::Outbound);
    assert_eq!(
        network.overlay(1).sessions().count(),
        0,
        "the relay has none"
    );
    let server = network.overlay(2).sessions().next().unwrap();
    assert_eq!(
        (server.key, server.direction),
        (network.key(0), Direction::Inbound)
    );
}

#[test]
fn any_address_of_the_subnet_will_do() {
    let mut network = plain(2);
    let mut address = network.address(2);
    address.0[8..].fill(9);
    network.with(0, |overlay, now| {
        overlay.handle_punt(
            now,
            WorkerId(0),
            &Punt::NeedSession(&NeedSession { address }),
        );
    });
    network.wait(SECOND, "session", |n| session_up(n, 0));
    assert_eq!(
        network.overlay(0).sessions().next().unwrap().address,
        network.address(2)
    );
}

#[test]
fn traffic_is_never_lost_while_sessions_are_renewed() {
    for workers in [(1, 1, 1), (2, 1, 3)] {
        let configs = vec![
            hasty(1, workers.0),
            hasty(2, workers.1),
            hasty(3, workers.2),
        ];
        let mut network = relayed(3, configs);
        network.packet(0, 0, 2);
        network.wait(SECOND * 2, "session", |n| {
            session_up(n, 0) && session_up(n, 2)
        });
        network.run(SECOND * 2);
        let mut sent = [0, 0];
        for _ in 0..2000 {
            network.run(Duration::from_millis(100));
            sent[0] += u64::from(network.packet(0, 0, 2));
            sent[1] += u64::from(network.packet(2, 0, 0));
        }
        network.run(SECOND);
        assert_eq!(sent, [2000, 2000]);
        assert_eq!([network.delivered(2), network.delivered(0)], sent);
        let session = network.overlay(0).sessions().next().unwrap();
        assert!(
            (9..=13).contains(&session.handshakes),
            "{}",
            session.handshakes
        );
        assert_eq!(
            count(&network, 0, |e| matches!(e, Event::SessionDown { .. })),
            0
        );
        assert_eq!(session.lanes_active, workers.0.max(workers.2));
    }
}

#[test]
fn an_idle_session_ends_at_its_age_and_is_made_again() {
    let mut network = plain(4);
    network.packet(0, 0, 2);
    network.wait(SECOND, "session", |n| session_up(n, 0) && session_up(n, 2));
    let before = network.nodes[0].routed_handshakes;
    network.run(SECOND * 200);
    for node in [0, 2] {
        let expired = |e: &Event| {
            matches!(
                e,
                Event::SessionDown {
                    reason: DownReason::Expired | DownReason::Closed,
                    ..
                }
            )
        };
        assert_eq!(count(&network, node, expired), 1);
        assert!(network.nodes[node].workers[0].sessions.is_empty());
        assert_eq!(
            network.nodes[node]
                .overlay
                .as_ref()
                .unwrap()
                .associations
                .len(),
            1
        );
    }
    assert_eq!(network.nodes[0].routed_handshakes, before);
    assert!(!network.packet(0, 0, 2));
    network.wait(SECOND, "session again", |n| {
        session_up(n, 0) && session_up(n, 2)
    });
}

#[test]
fn packets_for_an_unreachable_node_do_not_wait_for_ever() {
    let mut network = plain(5);
    let server = network.key(2);
    network.nodes[1].peers_up.remove(&server);
    network.packet(0, 0, 2);
    network.wait(SECOND * 12, "given up", |n| {
        count(n, 0, |e| matches!(e, Event::SessionFailed { .. })) == 1
    });
    let dropped = &network.nodes[0].workers[0].pending_dropped;
    assert_eq!(*dropped, [network.address(2)]);
    assert!((4..=8).contains(&network.nodes[0].routed_handshakes));
    // Packets right after it do not begin the next attempt.
    network.packet(0, 0, 2);
    assert_eq!(network.nodes[0].workers[0].pending_dropped.len(), 2);
    network.run(SECOND * 5);
    assert_eq!(network.overlay(0).associations.len(), 1);
    let before = network.nodes[0].routed_handshakes;
    network.packet(0, 0, 2);
    assert_eq!(network.nodes[0].routed_handshakes, before + 1);
}

#[test]
fn addresses_that_no_session_can_have_are_dropped_at_once() {
    let mut network = plain(6);
    let outside: OverlayAddress = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().into();
    for address in [outside, network.address(0)] {
        network.with(0, |overlay, now| {
            overlay.handle_punt(
                now,
                WorkerId(0),
                &Punt::NeedSession(&NeedSession { address }),
            );
        });
    }
    assert_eq!(
        network.nodes[0].workers[0].pending_dropped,
        [outside, network.address(0)]
    );
    assert_eq!(network.nodes[0].routed_handshakes, 0);
}

#[test]
fn both_ends_begin_and_both_use_the_same_session() {
    for seed in 0..30 {
        let mut network = plain(seed);
        network.loss_percent = seed % 3 * 10;
        network.packet(0, 0, 2);
        network.run(Duration::from_millis(seed % 5 * 20));
        network.packet(2, 0, 0);
        // A handshake that loses all its messages is given up; hosts go on asking.
        for _ in 0..60 {
            network.run(SECOND / 2);
            if !(session_up(&network, 0) && session_up(&network, 2)) {
                network.packet(0, 0, 2);
                network.packet(2, 0, 0);
            }
        }
        assert!(
            session_up(&network, 0) && session_up(&network, 2),
            "seed {seed}"
        );
        network.loss_percent = 0;
        network.run(SECOND);
        let before = (network.delivered(2), network.delivered(0));
        let mut sent = 0;
        for _ in 0..200 {
            network.run(Duration::from_millis(200));
            sent += u64::from(network.packet(0, 0, 2));
            assert!(network.packet(2, 0, 0), "seed {seed}");
        }
        network.run(SECOND);
        let delivered = (
            network.delivered(2) - before.0,
            network.delivered(0) - before.1,
        );
        assert_eq!((sent, delivered), (200, (200, 200)), "seed {seed}");
        let sending = |node: usize| {
            let worker = &network.nodes[node].workers[0];
            let install = worker
                .session_sending
                .values()
                .map(|i| worker.sessions[i].install)
                .next();
            install
                .map(|i| (i.receive_index.get(), i.send_index.get()))
                .unwrap()
        };
        let ((a, b), (c, d)) = (sending(0), sending(2));
        assert_eq!((a, b), (d, c), "seed {seed}");
    }
}

#[test]
fn an_end_that_restarts_is_found_within_seconds_and_not_at_the_age_limit() {
    let mut network = plain(8);
    network.packet(0, 0, 2);
    network.wait(SECOND, "session", |n| session_up(n, 0) && session_up(n, 2));
    network.run(SECOND * 3);
    network.restart(2);
    network.connect(2, 1);
    let mut last_lost = 0;
    for step in 0..300 {
        network.run(Duration::from_millis(100));
        let before = network.delivered(2);
        network.packet(0, 0, 2);
        network.run(Duration::from_millis(60));
        if network.delivered(2) == before {
            last_lost = step;
        }
    }
    assert!(
        last_lost < 130,
        "packets were lost for {last_lost} x 160 ms"
    );
}

#[test]
fn a_neighbour_that_restarts_gets_its_session_at_once() {
    let mut network = Network::new(9, vec![config(1, 1), config(2, 1)]);
    network.connect(1, 0);
    network.wait(SECOND, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    network.packet(0, 0, 1);
    network.wait(SECOND, "session", |n| session_up(n, 0) && session_up(n, 1));
    network.restart(1);
    network.connect(1, 0);
    network.wait(SECOND, "session again", |n| session_up(n, 1));
    network.run(Duration::from_millis(100));
    network.packet(0, 0, 1);
    network.run(Duration::from_millis(100));
    assert_eq!(network.delivered(1), 1);
}

#[test]
fn a_ping_establishes_a_session_and_measures_the_path() {
    let mut network = plain(10);
    let address = network.address(2);
    network.with(0, |overlay, now| overlay.ping(now, address, 41));
    let own = network.address(0);
    network.with(0, |overlay, now| overlay.ping(now, own, 40));
    let reply = |n: &Network, wanted: u64| {
        n.nodes[0].events.iter().find_map(|event| {
            let Event::EchoReply { id, rtt, .. } = event else {
                return None;
            };
            (*id == wanted).then_some(*rtt)
        })
    };
    assert_eq!(reply(&network, 40), Some(Duration::ZERO));
    network.wait(SECOND, "answer", |n| reply(n, 41).is_some());
    let rtt = reply(&network, 41).unwrap();
    assert!(
        (Duration::from_millis(40)..Duration::from_millis(81)).contains(&rtt),
        "{rtt:?}"
    );
    // The next one uses the session; one to a node that lost it causes a new one.
    network.with(0, |overlay, now| overlay.ping(now, address, 42));
    network.wait(SECOND, "answer", |n| reply(n, 42).is_some());
    network.restart(2);
    network.connect(2, 1);
    network.run(SECOND);
    network.with(0, |overlay, now| overlay.ping(now, address, 43));
    network.wait(SECOND * 4, "answer", |n| reply(n, 43).is_some());
}

#[test]
fn many_pings_to_an_unreachable_node_expire() {
    let mut network = plain(11);
    let server = network.key(2);
    network.nodes[1].peers_up.remove(&server);
    let address = network.address(2);
    for id in 0..1000 {
        network.with(0, |overlay, now| overlay.ping(now, address, id));
    }
    let owner = Owner::Remote(address.subnet_id());
    assert_eq!(network.overlay(0).associations[&owner].pings.len(), 64);
    network.run(SECOND * 30);
    assert!(!network.overlay(0).associations.contains_key(&owner));
}

#[test]
fn the_other_end_renews_what_its_initiator_does_not() {
    let mut network = plain(12);
    network.packet(0, 0, 2);
    network.wait(SECOND, "session", |n| session_up(n, 0) && session_up(n, 2));
    network.run(SECOND * 5);
    // Only the responder's worker reports that the session is due.
    let index = *network.nodes[2].workers[0].sessions.keys().next().unwrap();
    let event = LaneEvent {
        kind: U32::new(LANE_SESSION),
        receive_index: U32::new(index),
    };
    network.with(2, |overlay, now| {
        overlay.handle_punt(now, WorkerId(0), &Punt::RekeyDue(&event))
    });
    assert_eq!(network.nodes[2].routed_handshakes, 1);
    network.run(SECOND * 20);
    let session = network.overlay(2).sessions().next().unwrap();
    assert_eq!(
        (session.direction, session.handshakes),
        (Direction::Outbound, 2)
    );
}

#[test]
fn a_full_table_of_sessions_evicts_the_node_that_was_silent_longest() {
    let mut limited = config(1, 1);
    limited.sessions_max = 1;
    let mut network = relayed(13, vec![limited, config(2, 1), config(3, 1)]);
    network.packet(0, 0, 2);
    network.wait(SECOND, "session", |n| session_up(n, 0));
    let only = |n: &Network, with: usize| {
        let sessions: Vec<_> = n.overlay(0).sessions().map(|s| s.key).collect();
        sessions == [n.key(with)]
    };
    assert!(only(&network, 2));
    // A session of this host evicts no holder of an equal share.
    network.packet(0, 0, 1);
    let dropped = &network.nodes[0].workers[0].pending_dropped;
    assert_eq!(*dropped, [network.address(1)]);
    // A node behind the same neighbour as the existing one replaces it.
    network.packet(1, 0, 0);
    network.wait(SECOND * 5, "initiated by the other end", |n| only(n, 1));
    let crowded = |e: &Event| {
        let reason = crate::DownReason::Crowded;
        matches!(e, Event::SessionDown { reason: r, .. } if *r == reason)
    };
    assert_eq!(count(&network, 0, crowded), 1);
}
