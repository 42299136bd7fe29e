//! Covers: real nodes that are attacked over loopback by a node that speaks the protocol as it likes
//! (`tests/hostile`). What single engines make of such input is tested beside them.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{binary, own_place};
use hyphae_test_hostile::{Claims, Hostile, Routed, Victim};
use hyphae_wire::babel::Serial;
use hyphae_wire::{SecretKey, Service};

const SERIAL: Serial = Serial(1 << 16);

/// Everything that the hostile node can do is understood as long as it behaves: what a test finds
/// refused is refused for what it says, and not because it says it wrongly.
#[test]
fn a_stranger_that_behaves_is_treated_as_a_node() {
    let victim = Victim::start_at(&binary(), own_place(), "", &[]).unwrap();
    let hostile = Hostile::new(own_place()).unwrap();
    let mut link = hostile.link(victim.target.at, &Claims::default()).unwrap();
    assert_eq!(link.key, victim.target.key);
    let address = victim.target.key.address();
    link.greet(1).unwrap();
    let other = SecretKey::generate().unwrap();
    for key in [&hostile.identity, &other] {
        link.announce(key, SERIAL).unwrap();
        let mut session = link.session(key, address, &Claims::default()).unwrap();
        session.bus(&mut link, &[0; 4]).unwrap();
    }
    let status = victim.status().unwrap();
    assert_eq!((status.peers_up, status.sessions), (1, 2));
    // Frames of sources that are not there are carried, and answered by nobody.
    let nobody = SecretKey::generate().unwrap().public_key().address();
    let routed = Routed::new(nobody, address, Service::Trace);
    link.unsealed(&routed, &[]).unwrap();
    let again = hostile.link(victim.target.at, &Claims::workers(3)).unwrap();
    assert!(again.lanes.len() >= 3);
}
