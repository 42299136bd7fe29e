//! A hostile node: it receives what an honest node advertises, has one link, and sends forgeries over it; the
//! world checks after every event that no node sends it packets for others.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_routing::babel::RefusalReason;
use hyphae_test_sim::scenario;
use hyphae_test_sim::speaker::{RoutingNode, VerifyCache};
use hyphae_test_sim::{Fault, NodeId, Random, Shape, Violation, World};
use hyphae_wire::babel::{Origin, Packet, RouterId, Serial, Tlv, Update, Writer};
use hyphae_wire::{Prefix, SecretKey, Signature};

const SECOND: Duration = Duration::from_secs(1);
const NODES: NodeId = 16;
/// Capacity of a node's table: all honest destinations, and some more.
const ROUTES_MAX: usize = 24;
/// The hostile node, and its only neighbour.
const ATTACKER: NodeId = 0;
const NEIGHBOUR: NodeId = 1;

/// Fifteen honest nodes, and a hostile one without announcements of its own.
fn world(seed: u64, cache: &VerifyCache) -> World<RoutingNode> {
    let mut setup = scenario::setup(seed, NODES, Shape::Ring, None);
    let honest = Shape::Random.links(NODES - 1, &mut Random::new(seed));
    setup.links = honest.iter().map(|(a, b)| (a + 1, b + 1)).collect();
    setup.links.push((ATTACKER, NEIGHBOUR));
    setup.announcing = NODES - 1;
    assert!(!setup.announces(ATTACKER) && setup.announces(NEIGHBOUR));
    let mut speaker = scenario::speakers(&setup, cache);
    let small = move |node, secret: &SecretKey, restarts, now| {
        let mut engine = speaker(node, secret, restarts, now);
        engine.limit_routes(now, ROUTES_MAX);
        engine
    };
    let mut world = World::new(&setup, Box::new(small));
    world.distrust(ATTACKER);
    world
}

/// Announcements that the hostile node has received: the proofs of each prefix by serial.
fn heard(world: &World<RoutingNode>) -> BTreeMap<Prefix, BTreeMap<Serial, Origin>> {
    let mut heard: BTreeMap<Prefix, BTreeMap<Serial, Origin>> = BTreeMap::new();
    for packet in world.captured() {
        for tlv in Packet::parse(packet).unwrap().tlvs().flatten() {
            if let Tlv::Update(Update {
                prefix: Some(prefix),
                origin: Some(origin),
                ..
            }) = tlv
            {
                let proofs = heard.entry(prefix).or_default();
                proofs.insert(origin.serial, origin);
            }
        }
    }
    heard
}

/// Advertises the prefix with metric 0.
fn claim(world: &mut World<RoutingNode>, prefix: Prefix, router_id: RouterId, origin: Origin) {
    let mut writer = Writer::new();
    let update = Update {
        prefix: Some(prefix),
        router_id: Some(router_id),
        interval: 60_000,
        seqno: origin.serial.seqno(),
        metric: 0,
        origin: Some(origin),
    };
    assert!(writer.push(&Tlv::Update(update)));
    world.inject(ATTACKER, NEIGHBOUR, &writer.take());
}

fn owner(world: &World<RoutingNode>, prefix: Prefix) -> NodeId {
    let mut nodes = (0..).zip(world.nodes());
    let owns =
        |node: &hyphae_test_sim::world::Node<RoutingNode>| node.key.address().subnet() == prefix;
    nodes.find(|(_, node)| owns(node)).unwrap().0
}

/// Serials of the routes of honest nodes to a prefix, lowest and highest; each must be the owner's
/// announcement.
fn numbers(world: &World<RoutingNode>, prefix: Prefix) -> (Serial, Serial) {
    let owner = world.nodes()[usize::from(owner(world, prefix))].key;
    let mut numbers = Vec::new();
    for node in world
        .nodes()
        .iter()
        .filter(|n| !n.hostile && n.key != owner)
    {
        let route = node.engine.as_ref().unwrap().speaker().route(prefix);
        let route = route.unwrap();
        assert_eq!(route.origin, owner);
        numbers.push(route.serial);
    }
    (
        *numbers.iter().min().unwrap(),
        *numbers.iter().max().unwrap(),
    )
}

fn refused(world: &World<RoutingNode>, node: NodeId, reason: RefusalReason) -> u64 {
    let at = RefusalReason::ALL
        .iter()
        .position(|r| *r == reason)
        .unwrap();
    let engine = world.nodes()[usize::from(node)].engine.as_ref().unwrap();
    engine.counters().refused[at]
}

#[test]
fn replayed_announcements_attract_no_traffic() -> Result<(), Violation> {
    for seed in 0..10 {
        let mut world = world(seed, &VerifyCache::default());
        world.run_for(20 * SECOND)?;
        world.await_reachability(20)?;
        let before = heard(&world);
        assert_eq!(before.len(), usize::from(NODES - 1));
        let packets = world.captured().to_vec();
        // Every victim restarts with a new serial.
        for victim in NEIGHBOUR + 1..NODES {
            let at = world.now() + SECOND * u32::from(victim);
            world.plan(at, Fault::Restart(victim, SECOND));
        }
        world.run_for(60 * SECOND)?;
        world.await_reachability(30)?;
        let after: BTreeMap<Prefix, Serial> = before
            .keys()
            .map(|prefix| (*prefix, numbers(&world, *prefix).1))
            .collect();
        for (prefix, proofs) in &before {
            let newest = after[prefix];
            let restarted = owner(&world, *prefix) != NEIGHBOUR;
            assert!(!restarted || *proofs.last_key_value().unwrap().0 < newest);
            for (serial, origin) in proofs.iter().filter(|(serial, _)| **serial < newest) {
                assert!(*serial < newest);
                claim(&mut world, *prefix, RouterId::of(&origin.key), *origin);
            }
        }
        world.run_for(5 * SECOND)?;
        // Complete packets as well, with hellos and acknowledgements.
        for packet in &packets {
            world.inject(ATTACKER, NEIGHBOUR, packet);
        }
        world.run_for(30 * SECOND)?;
        world.await_reachability(5)?;
        for (prefix, newest) in after {
            let (least, most) = numbers(&world, prefix);
            assert!(
                least >= newest && least == most,
                "{prefix}: {least:?} {most:?} {newest:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn forged_announcements_are_refused_and_counted() -> Result<(), Violation> {
    let cache = VerifyCache::default();
    let mut world = world(9, &cache);
    world.run_for(20 * SECOND)?;
    world.await_reachability(20)?;
    let genuine = heard(&world);
    let before: Vec<(Serial, Serial)> = genuine.keys().map(|p| numbers(&world, *p)).collect();
    let attacker = world.secret(ATTACKER).clone();
    let mut expected: BTreeMap<RefusalReason, u64> = BTreeMap::new();
    let prefixes: Vec<Prefix> = genuine.keys().copied().collect();
    for (index, (prefix, proofs)) in genuine.iter().enumerate() {
        let (serial, origin) = proofs.last_key_value().unwrap();
        // The neighbour ignores updates of its own prefix.
        if owner(&world, *prefix) == NEIGHBOUR {
            continue;
        }
        let other = prefixes[(index + 1) % prefixes.len()];
        let other_counts = owner(&world, other) != NEIGHBOUR;
        let router_id = RouterId::of(&origin.key);
        let ahead = Serial(serial.0 + 1000);
        let signed = |prefix: Prefix, key: RouterId, serial: Serial| {
            let message = Origin::message(prefix, key, serial);
            attacker.sign(&message, &[7; 64])
        };
        let mut bent = origin.signature;
        bent.0[index % 64] ^= 1 << (index % 8);
        let forge = |key, serial, signature: Signature| Origin {
            key,
            serial,
            signature,
        };
        let own = attacker.public_key();
        let lies = [
            // The victim's key with another signature.
            (
                *prefix,
                router_id,
                forge(origin.key, ahead, signed(*prefix, router_id, ahead)),
                RefusalReason::Signature,
            ),
            // A higher serial under the old signature; a changed signature.
            (
                *prefix,
                router_id,
                forge(origin.key, ahead, origin.signature),
                RefusalReason::Signature,
            ),
            (
                *prefix,
                router_id,
                forge(origin.key, *serial, bent),
                RefusalReason::Signature,
            ),
            // Another prefix under the victim's signature.
            (other, router_id, *origin, RefusalReason::NotOwner),
            // The victim's prefix, signed with the hostile node's key.
            (
                *prefix,
                RouterId::of(&own),
                forge(own, ahead, signed(*prefix, RouterId::of(&own), ahead)),
                RefusalReason::NotOwner,
            ),
            // The same with the victim's router-id.
            (
                *prefix,
                router_id,
                forge(own, ahead, signed(*prefix, router_id, ahead)),
                RefusalReason::RouterId,
            ),
        ];
        for (prefix, router_id, origin, reason) in lies {
            claim(&mut world, prefix, router_id, origin);
            if prefix != other || other_counts {
                *expected.entry(reason).or_default() += 1;
            }
        }
    }
    assert_eq!(expected.len(), 3);
    world.run_for(10 * SECOND)?;
    for reason in RefusalReason::ALL {
        let expected = expected.get(&reason).copied().unwrap_or(0);
        assert_eq!(refused(&world, NEIGHBOUR, reason), expected, "{reason}");
        // No node forwards forgeries.
        for node in NEIGHBOUR + 1..NODES {
            assert_eq!(refused(&world, node, reason), 0);
        }
    }
    world.await_reachability(5)?;
    for (prefix, before) in genuine.keys().zip(before) {
        assert_eq!(numbers(&world, *prefix), before);
    }
    Ok(())
}

#[test]
fn a_flood_of_signed_prefixes_makes_no_partition_and_no_loop() -> Result<(), Violation> {
    for seed in 0..5 {
        let mut world = world(seed, &VerifyCache::default());
        world.run_for(20 * SECOND)?;
        world.await_reachability(20)?;
        for n in 0..200_u8 {
            let secret = SecretKey::from_bytes(&[n + 1; 32]).unwrap();
            let key = secret.public_key();
            let (prefix, router_id) = (key.address().subnet(), RouterId::of(&key));
            let serial = Serial::new(7, 1);
            let message = Origin::message(prefix, router_id, serial);
            let signature = secret.sign(&message, &[n; 64]);
            let origin = Origin {
                key,
                serial,
                signature,
            };
            world.expect(prefix);
            claim(&mut world, prefix, router_id, origin);
            world.run_for(SECOND / 10)?;
        }
        assert!(refused(&world, NEIGHBOUR, RefusalReason::Full) > 0);
        world.run_for(20 * SECOND)?;
        world.await_reachability(5)?;
    }
    Ok(())
}
