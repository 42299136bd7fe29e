//! Links: connecting, lanes, renewal, glare, loss, restarts, roaming, ending.

use std::net::Ipv4Addr;
use std::time::Duration;

use hyphae_wire::SessionIndex;

use super::network::{Network, config};
use crate::ids::Owner;
use crate::{Config, ConfiguredPeer, Direction, DownReason, Event, Live, PeerState};

const SECOND: Duration = Duration::from_secs(1);

fn pair(seed: u64, workers: (u16, u16)) -> Network {
    Network::new(seed, vec![config(1, workers.0), config(2, workers.1)])
}

/// Sessions that are renewed every twenty seconds.
fn hasty(seed: u8, workers: u16) -> Config {
    Config {
        rekey_after: SECOND * 20,
        reject_after: SECOND * 40,
        grace: SECOND * 5,
        ..config(seed, workers)
    }
}

fn connected(network: &Network) -> bool {
    network.is_up(0, 1) && network.is_up(1, 0)
}

fn downs(network: &Network, node: usize) -> Vec<DownReason> {
    let events = network.nodes[node].events.iter();
    events
        .filter_map(|event| {
            if let Event::PeerDown { reason, .. } = event {
                Some(*reason)
            } else {
                None
            }
        })
        .collect()
}

/// Own and peer index of the lanes that a node sends on, in order.
fn sending(network: &Network, node: usize) -> Vec<(u32, u32)> {
    let workers = network.nodes[node].workers.iter();
    workers
        .flat_map(|w| w.link_sending.values().map(|i| &w.links[i].install))
        .map(|install| (install.receive_index.get(), install.send_index.get()))
        .collect()
}

/// Both ends send on the same lanes of the same session.
fn converged(network: &Network) -> bool {
    let mut here = sending(network, 0);
    let mut there: Vec<_> = sending(network, 1)
        .into_iter()
        .map(|(a, b)| (b, a))
        .collect();
    here.sort_unstable();
    there.sort_unstable();
    !here.is_empty() && here == there
}

#[test]
fn a_configured_peer_comes_up_and_is_described() {
    let mut network = pair(1, (1, 1));
    network.connect(0, 1);
    network.wait(SECOND, "link", connected);
    network.run(SECOND * 10);
    let status: Vec<_> = network.overlay(0).peers().collect();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].key, Some(network.key(1)));
    assert_eq!(status[0].state, PeerState::Up);
    assert_eq!(status[0].configured, [ConfiguredPeer(1)]);
    assert_eq!(status[0].direction, Some(Direction::Outbound));
    assert_eq!(status[0].endpoint, network.endpoint(1));
    assert_eq!(
        (
            status[0].lanes,
            status[0].lanes_active,
            status[0].handshakes
        ),
        (1, 1, 1)
    );
    let rtt = status[0].rtt.unwrap();
    assert!(
        (Duration::from_millis(15)..Duration::from_millis(45)).contains(&rtt),
        "{rtt:?}"
    );
    let inbound = network.overlay(1).peers().next().unwrap();
    assert_eq!(inbound.direction, Some(Direction::Inbound));
    assert!(inbound.configured.is_empty());
    assert_eq!(
        network.overlay(1).key_of(network.address(0)),
        Some(network.key(0))
    );
}

#[test]
fn every_lane_becomes_active_whatever_the_worker_counts() {
    for workers in [(1, 1), (1, 4), (4, 1), (3, 2), (2, 2)] {
        for loss in [0, 20] {
            let mut network = pair(2, workers);
            network.loss_percent = loss;
            network.connect(0, 1);
            let lanes = usize::from(workers.0.max(workers.1));
            network.wait(SECOND * 30, "all lanes", |n| {
                sending(n, 0).len() == lanes && sending(n, 1).len() == lanes && converged(n)
            });
            for node in [0, 1] {
                for worker in &network.nodes[node].workers {
                    let links = worker.links.values();
                    let count = u32::try_from(network.nodes[node].workers.len()).unwrap();
                    for lane in links.map(|l| u32::from(l.install.lane.get())) {
                        assert_eq!(lane % count, u32::from(worker.id.0));
                    }
                }
            }
        }
    }
}

#[test]
fn lanes_are_bounded_by_the_smaller_worker_count_at_both_ends() {
    for (workers, lanes) in [((16, 1), 8), ((1, 16), 8), ((3, 64), 24), ((64, 8), 64)] {
        let mut network = pair(4, workers);
        network.connect(0, 1);
        network.wait(SECOND * 30, "all lanes", |n| {
            sending(n, 0).len() == lanes && converged(n)
        });
        for (node, own) in [workers.0, workers.1].into_iter().enumerate() {
            let with_lanes = network.nodes[node].workers.iter();
            let with_lanes = with_lanes.filter(|w| !w.link_sending.is_empty());
            let ids: Vec<_> = with_lanes.map(|w| w.id.0).collect();
            let first: Vec<_> = (0..own.min(u16::try_from(lanes).unwrap())).collect();
            assert_eq!(ids, first, "{workers:?}, node {node}");
            let status = network.overlay(node).peers().next().unwrap();
            assert_eq!(usize::from(status.lanes), lanes);
        }
    }
}

#[test]
fn renewal_never_leaves_an_end_without_a_lane_that_the_other_has() {
    for workers in [(1, 1), (3, 2)] {
        let mut network = Network::new(3, vec![hasty(1, workers.0), hasty(2, workers.1)]);
        network.connect(0, 1);
        network.wait(SECOND, "link", connected);
        network.checked.push((0, 1));
        network.run(SECOND * 300);
        let status = network.overlay(0).peers().next().unwrap();
        assert!(
            (14..=18).contains(&status.handshakes),
            "{}",
            status.handshakes
        );
        assert_eq!(status.lanes_active, workers.0.max(workers.1));
        let counted = network.overlay(0).handshakes();
        assert_eq!(counted.finished, status.handshakes);
        assert_eq!(counted.links_renewed, counted.finished - 1);
        assert_eq!((counted.refused, counted.sessions_renewed), (0, 0));
        assert_eq!((downs(&network, 0), downs(&network, 1)), (vec![], vec![]));
        // The workers have removed the ones before.
        let lanes: usize = network.nodes[0].workers.iter().map(|w| w.links.len()).sum();
        assert!(
            lanes <= 2 * usize::from(workers.0.max(workers.1)),
            "{lanes}"
        );
    }
}

#[test]
fn an_unanswered_handshake_is_counted() {
    let mut network = pair(8, (1, 1));
    network.block(0, 1, true);
    network.connect(0, 1);
    network.run(SECOND * 60);
    let counted = network.overlay(0).handshakes();
    assert!(
        counted.unanswered > 0 && counted.finished == 0,
        "{counted:?}"
    );
    assert_eq!(network.overlay(1).handshakes(), Default::default());
}

#[test]
fn times_that_change_while_it_runs_hold_for_what_begins_then() {
    let renewed = |change: bool| {
        let mut network = pair(9, (1, 1));
        network.connect(0, 1);
        network.wait(SECOND, "link", connected);
        let usual = config(1, 1);
        let live = Live {
            suites: usual.suites,
            rekey_after: SECOND * 20,
            keepalive: usual.keepalive,
            dead_after: usual.dead_after,
            lost_after: usual.lost_after,
            retry_max: usual.retry_max,
            peers_max: usual.peers_max,
            half_open_per_source_max: usual.half_open_per_source_max,
            stream_fallback_after: usual.stream_fallback_after,
            stream_upgrade_every: usual.stream_upgrade_every,
        };
        for node in [0, 1] {
            network.with(node, |overlay, _| {
                if change {
                    overlay.set_live(&live);
                }
            });
        }
        network.run(SECOND * 300);
        assert_eq!((downs(&network, 0), downs(&network, 1)), (vec![], vec![]));
        network.overlay(0).handshakes().links_renewed
    };
    let (before, after) = (renewed(false), renewed(true));
    assert!(before <= 3 && after >= 6, "{before} and {after}");
}

#[test]
fn renewal_survives_loss_repetition_and_reordering() {
    for seed in 0..6 {
        let mut network = Network::new(seed, vec![hasty(1, 2), hasty(2, 2)]);
        network.nodes[0].config.dead_after = SECOND * 60;
        network.nodes[1].config.dead_after = SECOND * 60;
        network.restart(0);
        network.restart(1);
        network.loss_percent = 30;
        network.duplicate_percent = 20;
        network.delay_max = Duration::from_millis(300);
        network.connect(0, 1);
        network.wait(SECOND * 60, "link", connected);
        network.checked.push((0, 1));
        network.run(SECOND * 400);
        assert!(connected(&network), "seed {seed}");
        assert_eq!(
            (downs(&network, 0), downs(&network, 1)),
            (vec![], vec![]),
            "seed {seed}"
        );
    }
}

#[test]
fn both_begin_and_both_use_the_same_session() {
    for seed in 0..40 {
        let mut network = pair(seed, (2, 1));
        network.loss_percent = seed % 4 * 10;
        network.connect(0, 1);
        if seed % 2 == 0 {
            network.run(Duration::from_millis(seed));
        }
        network.connect(1, 0);
        network.wait(SECOND * 60, "link", connected);
        network.checked.push((0, 1));
        network.run(SECOND * 45);
        network.wait(SECOND * 30, "one session", converged);
        if network.loss_percent == 0 {
            assert!(downs(&network, 0).is_empty() && downs(&network, 1).is_empty());
            assert_eq!(network.overlay(0).peers().count(), 1);
        }
    }
}

#[test]
fn both_renew_at_once() {
    for seed in 0..40 {
        let mut network = pair(seed, (1, 2));
        network.connect(0, 1);
        network.wait(SECOND, "link", connected);
        network.checked.push((0, 1));
        network.loss_percent = seed % 3 * 15;
        for node in [0, 1] {
            let peer = network.nodes[node].peers_up[&network.key(1 - node)];
            network.with(node, |overlay, now| {
                overlay.renew(now, Owner::Peer(peer), false)
            });
            if seed % 2 == 1 {
                network.run(Duration::from_millis(seed));
            }
        }
        network.run(SECOND * 12);
        network.loss_percent = 0;
        network.run(SECOND * 40);
        assert!(converged(&network), "seed {seed}");
        assert!(
            downs(&network, 0).is_empty() && downs(&network, 1).is_empty(),
            "seed {seed}"
        );
        if seed % 6 == 0 {
            // Nothing was lost: the session initiated by the smaller key is in use at both ends.
            let smaller = usize::from(network.key(1) < network.key(0));
            let status = network.overlay(smaller).peers().next().unwrap();
            assert_eq!(status.direction, Some(Direction::Outbound), "seed {seed}");
        }
    }
}

#[test]
fn a_peer_that_restarts_is_back_at_once_when_it_connects_itself() {
    let mut network = pair(5, (1, 1));
    network.connect(0, 1);
    network.wait(SECOND, "link", connected);
    network.run(SECOND * 3);
    network.restart(0);
    network.connect(0, 1);
    network.wait(SECOND, "link again", |n| connected(n) && converged(n));
    assert!(
        downs(&network, 1).is_empty(),
        "its sessions were replaced, not lost"
    );
}

#[test]
fn a_peer_that_restarts_and_only_listens_is_found_by_probes() {
    let mut network = pair(6, (1, 1));
    network.connect(0, 1);
    network.wait(SECOND, "link", connected);
    network.run(SECOND * 3);
    network.restart(1);
    network.wait(SECOND * 9, "link again", |n| connected(n) && converged(n));
    assert!(
        downs(&network, 0).is_empty(),
        "a new handshake came before the dead time"
    );
}

#[test]
fn silence_ends_a_link_and_its_end_brings_it_back() {
    let mut network = pair(7, (2, 2));
    network.connect(0, 1);
    network.wait(SECOND, "link", connected);
    network.block(0, 1, true);
    network.wait(SECOND * 25, "both down", |n| {
        !n.is_up(0, 1) && !n.is_up(1, 0)
    });
    assert_eq!(downs(&network, 0), [DownReason::Dead]);
    network.run(SECOND * 300);
    assert_eq!(
        network.overlay(1).peers().count(),
        0,
        "an inbound peer is forgotten"
    );
    assert_eq!(
        network.overlay(0).peers().next().unwrap().state,
        PeerState::Down
    );
    // It was up recently, so it is retried often; later the back-off grows.
    let sent_in_100_s = |network: &mut Network| {
        let before = network.nodes[0].raw_sent;
        network.run(SECOND * 100);
        network.nodes[0].raw_sent - before
    };
    let sent = sent_in_100_s(&mut network);
    assert!((40..=70).contains(&sent), "{sent} messages in 100 s");
    network.run(SECOND * 600);
    let sent = sent_in_100_s(&mut network);
    assert!((2..=6).contains(&sent), "{sent} messages in 100 s");
    network.block(0, 1, false);
    network.wait(SECOND * 40, "link again", connected);
}

#[test]
fn a_peer_that_moves_keeps_its_link() {
    let mut network = pair(8, (2, 2));
    network.connect(0, 1);
    network.wait(SECOND, "link", connected);
    network.run(SECOND * 2);
    network.nodes[0].ip = Ipv4Addr::new(10, 9, 9, 9);
    network.wait(SECOND * 20, "moved", |n| {
        let there = n.overlay(1).peers().next();
        there.is_some_and(|peer| peer.endpoint == n.endpoint(0))
    });
    network.run(SECOND * 300);
    assert!(connected(&network) && downs(&network, 1).is_empty());
    let moves = network.nodes[1].events.iter();
    assert_eq!(
        moves
            .filter(|e| matches!(e, Event::PeerMoved { .. }))
            .count(),
        1
    );
}

#[test]
fn entries_of_one_key_are_one_peer() {
    let mut network = pair(9, (1, 1));
    network.connect(0, 1);
    let mut second = network.peer_config(7, 1);
    second.key = Some(network.key(1));
    network.with(0, |overlay, now| overlay.add_peer(now, second));
    network.wait(SECOND, "link", connected);
    network.run(SECOND * 60);
    let peers: Vec<_> = network.overlay(0).peers().collect();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].configured, [ConfiguredPeer(1), ConfiguredPeer(7)]);
    assert_eq!(peers[0].handshakes, 1);
    // The link ends with the last entry.
    assert!(network.with(0, |overlay, now| {
        overlay.remove_peer(now, ConfiguredPeer(7))
    }));
    network.run(SECOND);
    assert!(connected(&network));
    assert!(network.with(0, |overlay, now| {
        overlay.remove_peer(now, ConfiguredPeer(1))
    }));
    assert!(!network.with(0, |overlay, now| {
        overlay.remove_peer(now, ConfiguredPeer(1))
    }));
    network.wait(SECOND, "down at the other end", |n| !n.is_up(1, 0));
    assert_eq!(downs(&network, 0), [DownReason::Removed]);
    assert_eq!(downs(&network, 1), [DownReason::Closed]);
    assert!(network.nodes[0].workers[0].links.is_empty());
    assert!(network.nodes[1].workers[0].peers.is_empty());
}

#[test]
fn a_node_that_stops_says_so() {
    let mut network = pair(10, (1, 1));
    network.connect(0, 1);
    network.wait(SECOND, "link", connected);
    network.with(1, |overlay, now| overlay.shutdown(now));
    network.nodes[1].overlay = None;
    network.nodes[1].workers[0].links.clear();
    network.wait(SECOND, "down", |n| !n.is_up(0, 1));
    assert_eq!(downs(&network, 0), [DownReason::Closed]);
}

#[test]
fn an_address_that_changes_is_tried_at_once() {
    let mut network = pair(11, (1, 1));
    let mut peer = network.peer_config(1, 1);
    peer.addresses = vec![];
    network.with(0, |overlay, now| overlay.add_peer(now, peer));
    network.run(SECOND * 30);
    assert_eq!(network.nodes[0].raw_sent, 0);
    let addresses = vec![network.endpoint(0).with_port(1), network.endpoint(1)];
    network.with(0, |overlay, now| {
        overlay.set_addresses(now, ConfiguredPeer(1), addresses)
    });
    network.wait(SECOND, "link by the second address", connected);
}

#[test]
fn indices_name_their_worker_and_lane_at_both_ends() {
    let mut network = pair(12, (3, 2));
    network.connect(0, 1);
    network.wait(SECOND * 3, "all lanes", converged);
    for node in [0, 1] {
        for worker in &network.nodes[node].workers {
            for lane in worker.links.values() {
                let send = SessionIndex(lane.install.send_index.get());
                let there = u16::try_from(network.nodes[1 - node].workers.len()).unwrap();
                assert_eq!(send.worker().0, lane.install.lane.get() % there);
            }
        }
    }
}
