//! Falling back to a stream and coming back to datagrams.

use std::time::Duration;

use super::network::{Network, config};
use crate::{Config, ConfiguredPeer, Event, PeerConfig};

const SECOND: Duration = Duration::from_secs(1);

fn falling_back(seed: u8, workers: u16) -> Config {
    Config {
        stream_fallback_after: Some(SECOND * 3),
        stream_upgrade_every: SECOND * 20,
        ..config(seed, workers)
    }
}

fn pair(seed: u64, workers: (u16, u16)) -> Network {
    let configs = vec![falling_back(1, workers.0), falling_back(2, workers.1)];
    Network::new(seed, configs)
}

fn connected(network: &Network) -> bool {
    network.is_up(0, 1) && network.is_up(1, 0)
}

/// Whether both ends have the link on a stream; `None` when they differ or have none.
fn on_stream(network: &Network) -> Option<bool> {
    let of = |node: usize| {
        let status = network.overlay(node).peers().next()?;
        Some(status.endpoint.is_stream())
    };
    let both = (of(0)?, of(1)?);
    (both.0 == both.1).then_some(both.0)
}

/// Every lane that both nodes send on leaves by this transport.
fn lanes_on_stream(network: &Network, stream: bool) -> bool {
    let workers = network.nodes.iter().flat_map(|node| &node.workers);
    let mut lanes = workers.flat_map(|w| w.link_sending.values().map(|i| w.links[i].endpoint));
    lanes.all(|endpoint| endpoint.is_stream() == stream)
}

#[test]
fn where_datagrams_pass_no_stream_is_tried() {
    for seed in 0..5 {
        let mut network = pair(seed, (2, 1));
        network.connect(0, 1);
        network.wait(SECOND, "link", connected);
        network.run(SECOND * 300);
        assert_eq!(on_stream(&network), Some(false));
        let streams = network.captured.iter().filter(|(_, to, _)| to.is_stream());
        assert_eq!(streams.count(), 0);
    }
}

#[test]
fn without_datagrams_the_link_comes_up_over_a_stream_on_every_lane() {
    for seed in 0..5 {
        let mut network = pair(seed, (3, 2));
        network.block_datagrams(0, 1, true);
        network.connect(0, 1);
        network.run(SECOND * 2);
        assert!(!connected(&network), "datagrams have their time first");
        network.wait(SECOND * 4, "link", connected);
        network.run(SECOND * 2);
        assert_eq!(on_stream(&network), Some(true));
        assert!(lanes_on_stream(&network, true));
        network.checked = vec![(0, 1)];
        // Renewals and attempts to leave the stream disturb nothing.
        network.run(SECOND * 500);
        assert_eq!(on_stream(&network), Some(true));
    }
}

#[test]
fn the_link_returns_to_datagrams_without_a_gap() {
    for seed in 0..5 {
        let mut network = pair(seed, (2, 2));
        network.block_datagrams(0, 1, true);
        network.connect(0, 1);
        network.wait(SECOND * 6, "link", connected);
        network.run(SECOND * 40);
        network.checked = vec![(0, 1)];
        network.block_datagrams(0, 1, false);
        network.wait(SECOND * 26, "datagrams", |n| on_stream(n) == Some(false));
        network.run(SECOND * 20);
        assert!(lanes_on_stream(&network, false));
        let down = |event: &Event| matches!(event, Event::PeerDown { .. });
        assert!(
            !network
                .nodes
                .iter()
                .any(|node| node.events.iter().any(down))
        );
        let moved = |event: &Event| matches!(event, Event::PeerMoved { .. });
        assert!(network.nodes[0].events.iter().any(moved));
    }
}

#[test]
fn a_link_whose_datagrams_cease_moves_to_a_stream() {
    for seed in 0..5 {
        let mut network = pair(seed, (1, 2));
        network.connect(0, 1);
        network.wait(SECOND, "link", connected);
        network.run(SECOND * 10);
        network.block_datagrams(0, 1, true);
        network.wait(SECOND * 25, "stream", |n| on_stream(n) == Some(true));
        network.wait(SECOND, "link", connected);
        network.block_datagrams(0, 1, false);
        network.wait(SECOND * 26, "datagrams", |n| on_stream(n) == Some(false));
    }
}

#[test]
fn a_stream_address_is_used_as_such_only() {
    let mut network = pair(7, (1, 1));
    let peer = PeerConfig {
        id: ConfiguredPeer(1),
        addresses: vec![network.endpoint(1).stream()],
        key: None,
    };
    network.with(0, |overlay, now| overlay.add_peer(now, peer));
    network.wait(SECOND, "link", connected);
    network.run(SECOND * 300);
    assert_eq!(on_stream(&network), Some(true));
    let datagrams = network.captured.iter().filter(|(_, to, _)| !to.is_stream());
    assert_eq!(datagrams.count(), 0);
}

#[test]
fn with_fallback_off_there_is_no_stream() {
    let mut network = Network::new(8, vec![config(1, 1), config(2, 1)]);
    network.block_datagrams(0, 1, true);
    network.connect(0, 1);
    network.run(SECOND * 120);
    assert!(!connected(&network));
    assert!(network.captured.iter().all(|(_, to, _)| !to.is_stream()));
}

#[test]
fn a_new_control_plane_goes_on_trying_to_leave_the_stream() {
    for seed in 0..5 {
        let mut network = pair(seed, (2, 1));
        network.block_datagrams(0, 1, true);
        network.connect(0, 1);
        network.wait(SECOND * 6, "link", connected);
        network.run(SECOND * 5);
        let peer = network.peer_config(1, 1);
        network.start_control_plane(0, &[peer]);
        network.run(SECOND * 5);
        assert_eq!(on_stream(&network), Some(true));
        network.block_datagrams(0, 1, false);
        network.wait(SECOND * 26, "datagrams", |n| on_stream(n) == Some(false));
    }
}
