//! Covers: a relay that loses both planes and its supervisor to `kill -9` and is started again: how soon
//! client and server reach each other through it, whoever of them is configured to dial. Where the links' timers would
//! give nothing up for minutes, only what the relay itself says or asks can have done it. Death of one plane is in
//! `relay.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{TIMEOUT, UNTIMED_LINKS, eventually, file, lab, privileged};
use hyphae::lab::{LabNode, Spec};
use hyphae_rpc::method::Peer;
use serde_json::json;

const ROUNDS: u32 = 3;
/// Neighbours dial at intervals of at most 0.6 s; the rest is for the start of three processes.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

/// Labs are heavy: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Kills and starts the relay again and again, while both ends talk, and returns how long each start
/// took until they reached each other.
fn heal(spec: &Spec) -> Vec<Duration> {
    let mut lab = lab(spec);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        lab.relay.crash().unwrap();
        let (client, server) = (lab.client.address(), lab.server.address());
        eventually("the relay is gone", TIMEOUT, || {
            lab.client.ping(server, Duration::from_millis(100)).is_err()
        });
        // Gone for a moment, or until the ends have noticed, and their requests time out.
        if spec.config.is_none() {
            eventually("the ends have noticed", TIMEOUT, || {
                let _ = lab.client.ping(server, Duration::from_millis(100));
                let _ = lab.server.ping(client, Duration::from_millis(100));
                [&lab.client, &lab.server].iter().all(|end| !has_peer(end))
            });
        }
        let began = Instant::now();
        lab.restart_relay().unwrap();
        let done = AtomicBool::new(false);
        let took = std::thread::scope(|scope| {
            // Traffic both ways: each neighbour of the relay has something to send.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = lab.server.ping(client, Duration::from_millis(500));
                }
            });
            while lab.client.ping(server, Duration::from_millis(500)).is_err() {
                if began.elapsed() > TIMEOUT {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            began.elapsed()
        });
        eprintln!("round {round}: healed after {took:?}");
        assert!(took <= TIMEOUT, "the relay says: {}", lab.relay.log());
        times.push(took);
        eventually("the relay is joined", TIMEOUT, || {
            lab.relay.status().is_ok()
        });
    }
    times
}

fn has_peer(node: &LabNode) -> bool {
    let peers: Vec<Peer> = node.client.call("getPeers", json!({})).unwrap();
    peers.iter().any(|peer| peer.connection_state == "alive")
}

/// Both with links that nobody gives up, and with such as are noticed to be dead.
fn heal_both_ways(spec: &Spec) {
    let file = file(UNTIMED_LINKS);
    let untimed = Spec {
        config: Some(file.path().to_owned()),
        ..spec.clone()
    };
    for (case, spec) in [
        ("gone for a moment", &untimed),
        ("noticed to be gone", spec),
    ] {
        let times = heal(spec);
        eprintln!("{case}: {times:?}");
        // A busy machine delays some rounds, not all.
        let best = times.iter().min().unwrap();
        assert!(*best < HEALED_WITHIN, "{case}: {times:?}");
    }
}

#[test]
fn a_relay_without_peers_of_its_own_is_reached_within_seconds() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    heal_both_ways(&Spec::default());
}

#[test]
fn a_relay_that_dials_its_peers_is_reached_within_seconds() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    heal_both_ways(&Spec {
        relay_dials: true,
        ..Spec::default()
    });
}
