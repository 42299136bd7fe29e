//! Tests of the checkers, with deliberately faulty engines. The real engine is in `mesh.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_test_sim::{Effects, Engine, Fault, Quality, Setup, Violation, World};
use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, Prefix, PublicKey};

const SECOND: Duration = Duration::from_secs(1);

/// Fault of an engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Accepts every route of neighbours: counts to infinity.
    Feasibility,
    /// Keeps routes of a neighbour that is down.
    Forgetful,
    /// Sets timers in the past.
    Restless,
    /// Advertises everything ten times a second.
    Talkative,
    /// Sends many packets for one event.
    Bursting,
    /// Has a route to a prefix without an owner.
    Inventive,
}

/// Naive distance vectors: 8 bytes of subnet and one of distance each, all of them every second.
struct Naive {
    flaw: Flaw,
    own: u64,
    peers: BTreeMap<u32, u64>,
    /// Distance and peer by subnet.
    routes: BTreeMap<u64, (u8, u32)>,
    next: Nanos,
    effects: Effects,
}

impl Naive {
    fn set(&mut self, subnet: u64, route: Option<(u8, u32)>) {
        let before = match route {
            Some(route) => self.routes.insert(subnet, route),
            None => self.routes.remove(&subnet),
        };
        if before.map(|(_, peer)| peer) != route.map(|(_, peer)| peer) {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&subnet.to_be_bytes());
            let prefix = Prefix::new(OverlayAddress(address), 64);
            let peers = route.map(|(_, peer)| peer).into_iter().collect();
            self.effects.routes.push((prefix, peers));
        }
    }
}

impl Engine for Naive {
    fn peer_up(&mut self, _: Nanos, peer: u32, key: PublicKey) {
        let subnet = key.address().subnet_id();
        self.peers.insert(peer, subnet);
        self.set(subnet, Some((1, peer)));
        if self.flaw == Flaw::Inventive {
            self.set(7, Some((1, peer)));
        }
    }

    fn peer_down(&mut self, _: Nanos, peer: u32, _: PublicKey) {
        self.peers.remove(&peer);
        if self.flaw == Flaw::Forgetful {
            return;
        }
        let via = |route: &(&u64, &(u8, u32))| route.1.1 == peer;
        let lost: Vec<u64> = self.routes.iter().filter(via).map(|(s, _)| *s).collect();
        for subnet in lost {
            self.set(subnet, None);
        }
    }

    fn handle_packet(&mut self, _: Nanos, peer: u32, packet: &[u8]) {
        for entry in packet.chunks(9) {
            let subnet = u64::from_be_bytes(entry[..8].try_into().unwrap());
            let distance = entry[8].saturating_add(1);
            let known = self.routes.get(&subnet).copied();
            let better = known.is_none_or(|(d, via)| via == peer || distance < d);
            if subnet != self.own && better && distance < 60 {
                self.set(subnet, Some((distance, peer)));
            }
        }
    }

    fn handle_timeout(&mut self, now: Nanos) {
        self.next = match self.flaw {
            Flaw::Restless => now,
            Flaw::Talkative => now + SECOND / 10,
            Flaw::Feasibility | Flaw::Forgetful | Flaw::Bursting | Flaw::Inventive => now + SECOND,
        };
        let mut packet = self.own.to_be_bytes().to_vec();
        packet.push(0);
        for (subnet, (distance, _)) in &self.routes {
            packet.extend(subnet.to_be_bytes());
            packet.push(*distance);
        }
        let copies = if self.flaw == Flaw::Bursting { 50 } else { 1 };
        for peer in self.peers.keys() {
            let packets = (0..copies).map(|_| (*peer, packet.clone()));
            self.effects.packets.extend(packets);
        }
    }

    fn drain(&mut self, _: Nanos, effects: &mut Effects) {
        effects.packets.append(&mut self.effects.packets);
        effects.routes.append(&mut self.effects.routes);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        Some(self.next)
    }
}

/// A ring of six with a tail, node 6, by link 6: 0-1-2-3-4-5-0, 5-6.
fn world(seed: u64, flaw: Flaw) -> World<Naive> {
    let mut links: Vec<(u16, u16)> = (0..6).map(|n| (n, (n + 1) % 6)).collect();
    links.push((5, 6));
    let setup = Setup {
        seed,
        nodes: 7,
        links,
        quality: Some(Quality::GOOD),
        skew_ppm: 100,
        boot_within: SECOND,
        announcing: 7,
    };
    let factory = move |_, secret: &hyphae_wire::SecretKey, _, now: Nanos| Naive {
        flaw,
        own: secret.public_key().address().subnet_id(),
        peers: BTreeMap::new(),
        routes: BTreeMap::new(),
        next: now,
        effects: Effects::default(),
    };
    World::new(&setup, Box::new(factory))
}

#[test]
fn without_faults_naive_engines_pass() {
    let mut world = world(1, Flaw::Feasibility);
    world.run_for(20 * SECOND).unwrap();
    world.check_reachability().unwrap();
    assert!(world.complete_at().unwrap() <= world.last_change());
    world.run_quiet(10 * SECOND, 4).unwrap();
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut world = world(seed, Flaw::Feasibility);
        world.run_for(30 * SECOND).unwrap();
        (world.sent(), world.last_change())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn loops_are_found_while_they_exist() {
    let mut world = world(2, Flaw::Feasibility);
    world.run_for(20 * SECOND).unwrap();
    // The path to node 6 is lost, and the neighbours accept each other's routes.
    world.plan(world.now(), Fault::Cut(6, [true, true]));
    let found = world.run_for(60 * SECOND).unwrap_err();
    assert!(
        matches!(found, Violation::Loop { destination: 6, .. }),
        "{found}"
    );
}

#[test]
fn routes_through_a_lost_peer_are_found() {
    let mut world = world(3, Flaw::Forgetful);
    world.run_for(20 * SECOND).unwrap();
    world.plan(world.now(), Fault::Cut(6, [true, false]));
    let found = world.run_for(60 * SECOND).unwrap_err();
    assert!(matches!(found, Violation::DownPeer { .. }), "{found}");
}

#[test]
fn missing_and_stale_routes_are_found() {
    let mut world = world(4, Flaw::Feasibility);
    // Every node is up, but not every session.
    world.run_for(SECOND).unwrap();
    let found = world.check_reachability().unwrap_err();
    assert!(matches!(found, Violation::Unreachable { .. }), "{found}");
    world.run_for(20 * SECOND).unwrap();
    // The sessions are still up, and so are the routes.
    world.plan(world.now(), Fault::Cut(6, [false, true]));
    world.run_for(SECOND).unwrap();
    let found = world.await_reachability(2).unwrap_err();
    assert!(matches!(found, Violation::Stale { .. }), "{found}");
}

#[test]
fn a_hostile_node_is_on_no_path_to_others() {
    let mut world = world(5, Flaw::Feasibility);
    world.distrust(5);
    let found = world.run_for(20 * SECOND).unwrap_err();
    assert!(
        matches!(found, Violation::Attracted { attacker: 5, .. }),
        "{found}"
    );
}

#[test]
fn noise_is_found() {
    let find = |flaw| {
        let mut world = world(6, flaw);
        let found = world.run_for(20 * SECOND);
        let found = found.and_then(|()| world.run_quiet(10 * SECOND, 4));
        found.unwrap_err()
    };
    let found = find(Flaw::Talkative);
    assert!(
        matches!(found, Violation::Chatter { packets: 15.., .. }),
        "{found}"
    );
    let found = find(Flaw::Bursting);
    assert!(matches!(found, Violation::Burst { .. }), "{found}");
    let found = find(Flaw::Restless);
    assert!(matches!(found, Violation::Spinning { .. }), "{found}");
    let found = find(Flaw::Inventive);
    assert!(matches!(found, Violation::Invented { .. }), "{found}");
}

#[test]
fn routes_to_a_restarted_node_are_removed_and_found_again() {
    let mut world = world(7, Flaw::Feasibility);
    world.run_for(20 * SECOND).unwrap();
    world.plan(world.now(), Fault::Restart(6, 3 * SECOND));
    world.run_for(2 * SECOND).unwrap();
    assert!(world.nodes()[6].engine.is_none());
    world.run_for(30 * SECOND).unwrap();
    assert_eq!(world.nodes()[6].restarts, 1);
    world.check_reachability().unwrap();
}
