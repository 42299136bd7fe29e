//! Admission of peers, and selection of their addresses: private networks, allow- and deny-lists, limits, back-off,
//! several addresses of one peer, links that fail while they carry traffic.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hyphae_wire::network::NetworkKey;
use hyphae_wire::{Endpoint, Network as PrivateNetwork, NetworkId, PublicKey};

use super::network::{BASE_PORT, Network, config};
use crate::{ConfiguredPeer, DownReason, Event, PeerState, Policy, Refusal};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn member(name: &str, key: u8) -> PrivateNetwork {
    let key = NetworkKey::parse(&format!("{key:02x}").repeat(32)).unwrap();
    PrivateNetwork::new(name, &key)
}

/// Nodes 0, 1, … of these networks; node 0 connects to all others.
fn star(seed: u64, networks: &[Option<PrivateNetwork>]) -> Network {
    let configs = (1u8..).zip(networks).map(|(n, network)| {
        let mut config = config(n, 1);
        config.network = network.clone();
        config
    });
    let mut network = Network::new(seed, configs.collect());
    for other in 1..networks.len() {
        network.connect(0, other);
    }
    network
}

fn refusals(network: &Network, node: usize) -> Vec<(Option<PublicKey>, Refusal)> {
    let refused = |event: &Event| {
        if let Event::Refused { key, reason, .. } = event {
            Some((*key, *reason))
        } else {
            None
        }
    };
    network.nodes[node]
        .events
        .iter()
        .filter_map(refused)
        .collect()
}

fn policy(network: &mut Network, node: usize, policy: Policy) {
    network.with(node, |overlay, now| overlay.set_policy(now, policy));
}

fn only(keys: &[PublicKey]) -> Policy {
    Policy {
        allow: Some(keys.iter().copied().collect()),
        ..Policy::default()
    }
}

#[test]
fn members_of_a_network_reach_each_other_end_to_end() {
    let garden = Some(member("garden", 1));
    let mut network = star(1, &[garden.clone(), garden]);
    network.wait(SECOND, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    assert!(!network.packet(0, 0, 1), "no session yet");
    network.run(SECOND);
    assert!(network.packet(0, 0, 1));
    network.run(SECOND);
    assert!(network.delivered(1) > 0);
    assert_eq!(
        (refusals(&network, 0), refusals(&network, 1)),
        (vec![], vec![])
    );
}

#[test]
fn another_network_is_refused_by_its_name_at_both_ends() {
    let garden = member("garden", 1);
    let others = [None, Some(member("garden", 2)), Some(member("gardens", 1))];
    for (ours, theirs) in others.iter().flat_map(|other| {
        let garden = Some(garden.clone());
        [(garden.clone(), other.clone()), (other.clone(), garden)]
    }) {
        let id = |n: &Option<PrivateNetwork>| n.as_ref().map_or(NetworkId::PUBLIC, |n| n.id());
        let (ours_id, theirs_id) = (id(&ours), id(&theirs));
        let mut network = star(2, &[ours, theirs]);
        network.run(SECOND * 60);
        assert!(!network.is_up(0, 1) && !network.is_up(1, 0));
        let (here, there) = (refusals(&network, 0), refusals(&network, 1));
        let reason = |theirs, ours| (None, Refusal::Network { theirs, ours });
        assert!(here.contains(&reason(theirs_id, ours_id)), "{here:?}");
        assert!(there.iter().all(|r| *r == reason(ours_id, theirs_id)) && !there.is_empty());
        let status = network.overlay(0).peers().next().unwrap();
        assert_eq!(status.refusal, Some(reason(theirs_id, ours_id).1));
        assert_eq!(network.overlay(1).peers().count(), 0, "no state is stored");
        assert_eq!(network.overlay(1).half_opens.len(), 0);
    }
}

#[test]
fn an_answer_that_claims_another_network_does_not_stop_the_handshake() {
    let mut network = Network::new(3, vec![config(1, 1), config(2, 1), config(3, 1)]);
    network.block(0, 1, true);
    network.connect(0, 1);
    network.run(MS * 10);
    let (_, to, first) = network.captured.last().cloned().unwrap();
    let first = hyphae_wire::handshake::Message::parse_frame(&first).unwrap();
    let (step, sender) = (
        hyphae_wire::handshake::HandshakeStep::Response,
        first.header.sender.get(),
    );
    let garden = member("garden", 1).id();
    let forged = hyphae_wire::handshake::encode_frame_in(garden, step, 7, sender, &[]);
    for from in [to, network.endpoint(2)] {
        let here = network.endpoint(0);
        network.transmit(from, here, &super::worker::Frame::Raw(forged.clone()));
    }
    network.blocked.clear();
    network.block(0, 1, false);
    network.wait(SECOND * 3, "link", |n| n.is_up(0, 1));
    // Only an answer from the address that was dialled is reported to the operator.
    assert_eq!(refusals(&network, 0).len(), 1);
    let status = network.overlay(0).peers().next().unwrap();
    assert_eq!(status.refusal, None);
}

#[test]
fn keys_that_are_not_allowed_are_refused_inbound() {
    let mut network = Network::new(4, vec![config(1, 1), config(2, 1), config(3, 1)]);
    let allowed = only(&[network.key(2)]);
    policy(&mut network, 1, allowed);
    network.connect(0, 1);
    network.connect(2, 1);
    network.wait(SECOND, "the allowed one", |n| {
        n.is_up(2, 1) && n.is_up(1, 2)
    });
    network.run(SECOND * 60);
    assert!(!network.is_up(1, 0) && !network.is_up(0, 1));
    let there = refusals(&network, 1);
    assert!(!there.is_empty());
    let expected = (Some(network.key(0)), Refusal::NotAllowed);
    assert!(
        there.iter().all(|refusal| *refusal == expected),
        "{there:?}"
    );
    assert_eq!(
        network.overlay(1).peers().count(),
        1,
        "no state is stored for it"
    );
    // Allowed at run time, it is let in; denied at run time, its link ends.
    policy(&mut network, 1, Policy::default());
    network.wait(SECOND * 40, "let in", |n| n.is_up(0, 1) && n.is_up(1, 0));
    let deny = Policy {
        deny: BTreeSet::from([network.key(0)]),
        ..Policy::default()
    };
    policy(&mut network, 1, deny);
    network.wait(SECOND, "down at both ends", |n| {
        !n.is_up(0, 1) && !n.is_up(1, 0)
    });
    let down = |event: &Event| {
        matches!(
            event,
            Event::PeerDown {
                reason: DownReason::Refused,
                ..
            }
        )
    };
    assert_eq!(
        network.nodes[1].events.iter().filter(|e| down(e)).count(),
        1
    );
    assert!(network.is_up(1, 2));
    network.run(SECOND * 10);
    let last = refusals(&network, 1).pop().unwrap();
    assert_eq!(last, (Some(network.key(0)), Refusal::Denied));
}

#[test]
fn keys_that_are_not_allowed_are_refused_outbound() {
    let mut network = Network::new(5, vec![config(1, 1), config(2, 1), config(3, 1)]);
    let allowed = only(&[network.key(2)]);
    policy(&mut network, 0, allowed);
    network.connect(0, 1);
    network.run(SECOND * 10);
    let expected = (Some(network.key(1)), Refusal::NotAllowed);
    assert_eq!(refusals(&network, 0), [expected]);
    assert!(
        network.nodes[0].workers[0].peers.is_empty(),
        "no state is stored for it"
    );
    assert_eq!(
        network.overlay(0).peers().next().unwrap().refusal,
        Some(expected.1)
    );
    // With a pinned key nothing is dialled to find it.
    network.with(0, |overlay, now| {
        overlay.remove_peer(now, ConfiguredPeer(1))
    });
    let before = network.nodes[0].raw_sent;
    let mut pinned = network.peer_config(1, 1);
    pinned.key = Some(network.key(1));
    network.with(0, |overlay, now| overlay.add_peer(now, pinned));
    network.run(SECOND * 10);
    assert_eq!(network.nodes[0].raw_sent, before);
    assert_eq!(refusals(&network, 0), [expected, expected]);
    // What changes is tried at once.
    policy(&mut network, 0, Policy::default());
    network.wait(SECOND, "link", |n| n.is_up(0, 1));
}

#[test]
fn a_new_control_plane_ends_links_that_its_policy_does_not_allow() {
    let mut network = Network::new(6, vec![config(1, 1), config(2, 1), config(3, 1)]);
    network.connect(0, 1);
    network.connect(2, 1);
    network.wait(SECOND, "links", |n| n.is_up(1, 0) && n.is_up(1, 2));
    network.nodes[1].config.policy = only(&[network.key(2)]);
    network.restart_control_plane(1);
    network.wait(SECOND, "only one is left", |n| {
        n.is_up(1, 2) && !n.is_up(1, 0)
    });
    network.run(SECOND * 10);
    assert!(network.is_up(1, 2) && network.is_up(2, 1) && !network.is_up(0, 1));
}

/// Result of a handshake of node `of` with node 0 from an address.
fn admitted(network: &Network, of: usize, endpoint: Endpoint) -> Result<(), Refusal> {
    let carrier = crate::handshake::Carrier::to(endpoint);
    network.overlay(0).admitted(network.key(of), carrier)
}

#[test]
fn inbound_peers_are_limited_in_all_and_by_source() {
    let configs = || (1u8..=6).map(|n| config(n, 1)).collect::<Vec<_>>();
    let mut network = Network::new(7, configs());
    let limit = Policy {
        inbound_max: 3,
        ..Policy::default()
    };
    policy(&mut network, 0, limit);
    for node in 1..=5 {
        network.connect(node, 0);
        network.run(SECOND);
    }
    assert_eq!(network.nodes[0].peers_up.len(), 3);
    let refused = refusals(&network, 0);
    assert!(
        refused.contains(&(Some(network.key(5)), Refusal::InboundMax)),
        "{refused:?}"
    );
    // A configured peer is not an inbound one.
    network.connect(0, 5);
    network.wait(SECOND, "the configured one", |n| n.is_up(0, 5));

    // All of them behind one NAT.
    let nat = |port: u16| Endpoint::from(SocketAddr::from((Ipv4Addr::new(10, 9, 9, 9), port)));
    let limit = Policy {
        inbound_per_source_max: 3,
        ..Policy::default()
    };
    policy(&mut network, 0, limit);
    for (port, key) in (1..).zip([1, 2, 3].map(|node| network.key(node))) {
        let peer = network.nodes[0].peers_up[&key];
        assert_eq!(admitted(&network, 4, nat(9)), Ok(()));
        network.with(0, |overlay, _| overlay.endpoint_moved(peer, 0, nat(port)));
    }
    assert_eq!(admitted(&network, 4, nat(9)), Err(Refusal::SourceMax));
    assert_eq!(
        admitted(&network, 1, nat(9)),
        Ok(()),
        "it is a peer already"
    );
    assert_eq!(admitted(&network, 4, network.endpoint(4)), Ok(()));
}

#[test]
fn attempts_begin_fast_and_slow_down_until_something_changes() {
    let mut network = Network::new(8, vec![config(1, 1), config(2, 1)]);
    network.block(0, 1, true);
    network.connect(0, 1);
    network.run(MS * 200);
    assert_eq!(
        network.nodes[0].raw_sent, 2,
        "the first repetition comes within 200 ms"
    );
    network.run(SECOND * 5);
    let sent = network.nodes[0].raw_sent;
    assert!((5..=8).contains(&sent), "{sent} in the first 5 s");
    network.run(SECOND * 300);
    let before = network.nodes[0].raw_sent;
    network.run(SECOND * 300);
    let sent = network.nodes[0].raw_sent - before;
    assert!((7..=16).contains(&sent), "{sent} in 300 s");
    // Another address, or another network of the host, starts over.
    let there = network.endpoint(1);
    let other = vec![there.with_port(1), there];
    network.with(0, |o, now| o.set_addresses(now, ConfiguredPeer(1), other));
    let before = network.nodes[0].raw_sent;
    network.run(SECOND * 2);
    assert!(network.nodes[0].raw_sent - before >= 6);
    network.run(SECOND * 200);
    network.block(0, 1, false);
    network.with(0, |overlay, now| overlay.retry_now(now));
    network.wait(MS * 300, "link", |n| n.is_up(0, 1));
}

#[test]
fn a_peer_that_was_up_is_found_again_within_two_seconds() {
    let mut network = Network::new(9, vec![config(1, 1), config(2, 1)]);
    network.connect(0, 1);
    network.wait(SECOND, "link", |n| n.is_up(0, 1));
    network.block(0, 1, true);
    network.run(SECOND * 500);
    assert_eq!(
        network.overlay(0).peers().next().unwrap().state,
        PeerState::Down
    );
    network.block(0, 1, false);
    network.wait(MS * 2600, "link again", |n| n.is_up(0, 1));
}

#[test]
fn a_link_that_carries_traffic_is_given_up_within_three_seconds() {
    let mut network = Network::new(10, vec![config(1, 1), config(2, 1)]);
    network.connect(0, 1);
    network.wait(SECOND, "link", |n| n.is_up(0, 1));
    network.carry(0, 1, SECOND * 20);
    let before = network.now;
    network.block(0, 1, true);
    network.carry(0, 1, SECOND * 2);
    assert!(network.is_up(0, 1), "not too soon");
    network.carry(0, 1, SECOND);
    assert!(
        !network.is_up(0, 1),
        "down {:?} after the failure",
        network.now.since(before)
    );
}

#[test]
fn one_way_traffic_and_long_paths_are_no_failure() {
    for delay_max in [MS * 20, MS * 700] {
        let mut network = Network::new(11, vec![config(1, 1), config(2, 1)]);
        network.delay_max = delay_max;
        network.connect(0, 1);
        network.wait(SECOND * 5, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
        network.run(SECOND * 30);
        let before = network.overlay(0).peers().next().unwrap().handshakes;
        network.carry(0, 1, SECOND * 60);
        let status = network.overlay(0).peers().next().unwrap();
        assert_eq!(status.state, PeerState::Up);
        assert_eq!(
            status.handshakes, before,
            "no handshake was needed at {delay_max:?}"
        );
        let downs = network.nodes[0].events.iter();
        assert!(
            !downs
                .into_iter()
                .any(|e| matches!(e, Event::PeerDown { .. }))
        );
    }
}

#[test]
fn an_idle_link_is_not_probed_more_often_for_being_watched() {
    let mut network = Network::new(12, vec![config(1, 1), config(2, 1)]);
    network.connect(0, 1);
    network.wait(SECOND, "link", |n| n.is_up(0, 1));
    network.run(SECOND * 10);
    let sent = |n: &Network| -> u64 { n.nodes[0].workers[0].traffic.values().map(|t| t.0).sum() };
    let before = sent(&network);
    let mut busy = 0;
    for _ in 0..240 {
        busy += u32::from(network.read_counters(0));
        network.run(MS * 250);
    }
    let sent = sent(&network) - before;
    // Own probes every 5 s, and answers to theirs.
    assert!((20..=28).contains(&sent), "{sent} frames in a minute");
    assert!(busy <= 30, "{busy} readings called for another soon");
}

/// Nodes 0 and 1 joined by two networks, 10.0 and 10.1; node 0 has an entry for either address.
fn two_paths(seed: u64, workers: u16) -> (Network, [Endpoint; 2]) {
    let mut network = Network::new(seed, vec![config(1, workers), config(2, workers)]);
    for node in 0..2u8 {
        network.nodes[usize::from(node)].aliases = vec![Ipv4Addr::new(10, 1, 0, node + 1)];
    }
    let second = SocketAddr::from((Ipv4Addr::new(10, 1, 0, 2), BASE_PORT)).into();
    let first = network.endpoint(1);
    network.connect(0, 1);
    let mut other = network.peer_config(7, 1);
    other.addresses = vec![second];
    network.run(SECOND);
    network.with(0, |overlay, now| overlay.add_peer(now, other));
    (network, [first, second])
}

fn in_use(network: &Network) -> Endpoint {
    network.overlay(0).peers().next().unwrap().endpoint
}

fn block_path(network: &mut Network, path: u8, blocked: bool) {
    let pair = [1, 2].map(|host| Ipv4Addr::new(10, path, 0, host));
    for pair in [(pair[0], pair[1]), (pair[1], pair[0])] {
        if blocked {
            network.blocked.insert(pair);
        } else {
            network.blocked.remove(&pair);
        }
    }
}

#[test]
fn a_link_under_load_fails_over_to_the_other_address_within_moments() {
    for (seed, workers) in [(13, 1), (14, 3)] {
        let (mut network, [first, second]) = two_paths(seed, workers);
        network.carry(0, 1, SECOND * 10);
        assert_eq!(in_use(&network), first);
        assert_eq!(network.overlay(0).peers().count(), 1);
        block_path(&mut network, 0, true);
        network.carry(0, 1, MS * 1500);
        assert_eq!(in_use(&network), second);
        network.carry(0, 1, SECOND * 30);
        assert_eq!(in_use(&network), second, "and it stays on it");
        // The other one is back and fails in turn.
        block_path(&mut network, 0, false);
        network.carry(0, 1, SECOND * 40);
        block_path(&mut network, 1, true);
        network.carry(0, 1, MS * 1500);
        assert_eq!(in_use(&network), first);
        let down = |e: &&Event| matches!(e, Event::PeerDown { .. });
        for node in 0..2 {
            assert_eq!(
                network.nodes[node].events.iter().filter(down).count(),
                0,
                "never down"
            );
        }
    }
}

#[test]
fn an_address_not_in_use_is_asked_seldom_and_leaves_nothing_behind() {
    let (mut network, _) = two_paths(15, 1);
    network.run(SECOND * 10);
    let before = (
        network.nodes[0].raw_sent,
        network.overlay(0).peers().next().unwrap(),
    );
    network.run(SECOND * 90);
    let sent = network.nodes[0].raw_sent - before.0;
    assert!((2..=3).contains(&sent), "{sent} messages in 90 s");
    let after = network.overlay(0).peers().next().unwrap();
    assert_eq!(after.handshakes, before.1.handshakes);
    assert_eq!(after.endpoint, before.1.endpoint);
    assert!(network.overlay(0).outgoing.is_empty());
}

#[test]
fn a_clearly_shorter_path_is_taken_once_and_without_loss() {
    let (mut network, [first, second]) = two_paths(16, 2);
    network.wait(SECOND * 3, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    network.checked.push((0, 1));
    network.run(SECOND * 90);
    assert_eq!(in_use(&network), first, "equal paths are no reason to move");
    network.slow_network = Some((0, MS * 60));
    network.run(SECOND * 120);
    assert_eq!(in_use(&network), second);
    network.run(SECOND * 300);
    assert_eq!(in_use(&network), second);
    let moves = network.nodes[0].events.iter();
    let moved = |e: &&Event| matches!(e, Event::PeerMoved { .. });
    assert_eq!(moves.filter(moved).count(), 1);
}

#[test]
fn an_address_of_another_node_is_not_used() {
    let mut network = Network::new(17, vec![config(1, 1), config(2, 1), config(3, 1)]);
    let mut both = network.peer_config(1, 1);
    both.addresses.push(network.endpoint(2));
    network.block(0, 2, true);
    network.with(0, |overlay, now| overlay.add_peer(now, both));
    network.wait(SECOND, "link", |n| n.is_up(0, 1));
    network.block(0, 2, false);
    network.run(SECOND * 10);
    let before = network.nodes[0].raw_sent;
    network.run(SECOND * 90);
    assert_eq!(network.nodes[0].raw_sent, before);
    assert_eq!(
        refusals(&network, 0),
        [],
        "a name may stand for several nodes"
    );
    assert!(network.is_up(0, 1) && !network.is_up(0, 2));
}
