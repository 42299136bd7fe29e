//! Covers: a relay that loses both planes and its supervisor to `kill -9` and is started again: how soon
//! client and server reach each other through it, whoever of them is configured to dial. Where the links' timers would
//! give nothing up for minutes, only what the relay itself says or asks can have done it. Death of one plane is in
//! `relay.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, PATIENT_LINKS, eventually, file, lab, privileged};
use hyphae::lab::{LabNode, Spec};
use hyphae_rpc::method::Peer;
use serde_json::json;

const ROUNDS: u32 = 3;

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
        eventually("the relay is gone", PATIENCE, || {
            lab.client.ping(server, Duration::from_millis(100)).is_err()
        });
        // Gone for a moment, or until the ends have noticed and ask for it in vain.
        if spec.config.is_none() {
            eventually("the ends have noticed", PATIENCE, || {
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
                if began.elapsed() > PATIENCE {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            began.elapsed()
        });
        eprintln!("round {round}: healed after {took:?}");
        assert!(took <= PATIENCE, "the relay says: {}", lab.relay.log());
        times.push(took);
        eventually("the relay is joined", PATIENCE, || {
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
    let file = file(PATIENT_LINKS);
    let patient = Spec {
        config: Some(file.path().to_owned()),
        ..spec.clone()
    };
    eprintln!("gone for a moment: {:?}", heal(&patient));
    eprintln!("noticed to be gone: {:?}", heal(spec));
}

#[test]
fn a_relay_that_nobody_told_its_peers_is_found_by_them() {
    if !privileged("a_relay_that_nobody_told_its_peers_is_found_by_them") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    heal_both_ways(&Spec::default());
}

#[test]
fn a_relay_that_dials_its_peers_is_back_as_soon() {
    if !privileged("a_relay_that_dials_its_peers_is_back_as_soon") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    heal_both_ways(&Spec {
        relay_dials: true,
        ..Spec::default()
    });
}
