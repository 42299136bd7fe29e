//! Covers: a relay that loses both planes and its supervisor to `kill -9` and is started again: how soon
//! client and server reach each other through it, whoever of them is configured to dial. Death of one
//! plane is in `relay.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{binary, eventually, privileged};
use hyphae::lab::{Lab, Spec};

const CONNECT: Duration = Duration::from_secs(20);
/// What a slow machine may take; the times are printed.
const HEALED: Duration = Duration::from_secs(5);
const ROUNDS: u32 = 5;

/// Labs are heavy and these measure time: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Kills and starts the relay again and again, while both ends talk, and returns how long each start
/// took until they reached each other.
fn heal(spec: &Spec) -> Vec<Duration> {
    let mut lab = Lab::namespaces(&Spec {
        program: Some(binary()),
        ..spec.clone()
    })
    .unwrap();
    lab.wait_until_connected(CONNECT).unwrap();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        lab.relay.crash().unwrap();
        let (client, server) = (lab.client.address(), lab.server.address());
        eventually("the relay is gone", CONNECT, || {
            lab.client.ping(server, Duration::from_millis(100)).is_err()
        });
        // Gone for a moment, or long enough for probes and handshakes to have been lost meanwhile.
        if round % 2 == 1 {
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                let _ = lab.client.ping(server, Duration::from_millis(100));
            }
        }
        let began = Instant::now();
        lab.restart_relay().unwrap();
        let done = AtomicBool::new(false);
        let took = std::thread::scope(|scope| {
            // Traffic both ways: each neighbour of the relay has something to send.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = lab.server.ping(client, Duration::from_millis(50));
                }
            });
            while lab.client.ping(server, Duration::from_millis(50)).is_err() {
                if began.elapsed() > HEALED {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            began.elapsed()
        });
        eprintln!("round {round}: healed after {took:?}");
        assert!(took <= HEALED, "the relay says: {}", lab.relay.log());
        times.push(took);
        eventually("the relay is joined", CONNECT, || {
            lab.relay.status().is_ok()
        });
    }
    times
}

#[test]
fn a_relay_that_nobody_told_its_peers_is_found_by_them() {
    if !privileged("a_relay_that_nobody_told_its_peers_is_found_by_them") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let times = heal(&Spec::default());
    eprintln!("the ends dial: {times:?}");
}

#[test]
fn a_relay_that_dials_its_peers_is_back_as_soon() {
    if !privileged("a_relay_that_dials_its_peers_is_back_as_soon") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let times = heal(&Spec {
        relay_dials: true,
        ..Spec::default()
    });
    eprintln!("the relay dials: {times:?}");
}
