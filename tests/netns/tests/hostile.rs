//! Covers: real nodes that are attacked over loopback by a node that speaks the protocol as it likes
//! (`tests/hostile`). What single engines make of such input is tested beside them.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{TIMEOUT, binary, eventually, own_place, scrape_at};
use hyphae_rpc::method::{Peer, PingParams, Pong};
use hyphae_test_hostile::{Claims, Hostile, Routed, Victim};
use hyphae_wire::babel::Serial;
use hyphae_wire::handshake::{HandshakeStep, encode_session_in};
use hyphae_wire::{NetworkId, PublicKey, SecretKey, Service};
use serde_json::json;

const SERIAL: Serial = Serial(1 << 16);

/// Everything that the hostile node can do is understood as long as it behaves: what a test finds
/// refused is refused for what it says, and not because it says it wrongly.
#[test]
fn an_unknown_node_that_conforms_is_admitted() {
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

/// Ends the other thread of a test, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn node(config: &str, peers: &[&Victim]) -> Victim {
    let peers: Vec<_> = peers.iter().map(|peer| peer.target.at).collect();
    Victim::start_at(&binary(), own_place(), config, &peers).unwrap()
}

/// Whether a session with another node comes, and an answer over it, within so many seconds.
fn reaches(from: &Victim, to: &Victim, seconds: u64) -> bool {
    let params = PingParams {
        address: std::net::Ipv6Addr::from(to.target.key.address().0).to_string(),
        timeout_ms: seconds * 1000,
    };
    let answer: Result<Pong, _> = from.client.call("node.ping", params);
    answer.is_ok()
}

fn routes(of: &Victim) -> usize {
    let routes: Vec<serde_json::Value> = of
        .client
        .call("getSelectedRoutes", serde_json::json!({}))
        .unwrap();
    routes.len()
}

#[test]
fn a_neighbour_with_hundreds_of_prefixes_takes_no_routes_from_others() {
    let relay = node("[routing]\nroutes_max = 300\n", &[]);
    let first = node("", &[&relay]);
    eventually("a link", TIMEOUT, || relay.status().unwrap().peers_up == 1);
    let hostile = Hostile::new(own_place()).unwrap();
    let mut link = hostile.link(relay.target.at, &Claims::default()).unwrap();
    link.greet(1).unwrap();
    for n in 0..320 {
        let key = SecretKey::generate().unwrap();
        link.announce(&key, SERIAL).unwrap();
        // Signatures are checked a few at a time.
        if n % 32 == 31 {
            link.receive(Duration::from_millis(20)).unwrap();
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                link.receive(Duration::from_millis(50)).unwrap();
            }
        });
        let _ended = Ends(&done);
        eventually("the table is full", TIMEOUT, || routes(&relay) >= 290);
        // It comes when there is no room any more.
        let second = node("", &[&relay]);
        eventually("each reaches the other", TIMEOUT, || {
            reaches(&first, &second, 2) && reaches(&second, &first, 2)
        });
        assert!(routes(&relay) >= 290, "it is still full");
    });
}

#[test]
fn garbage_in_the_name_of_a_node_does_not_keep_it_from_a_session() {
    let relay = node("", &[]);
    let (target, honest) = (node("", &[&relay]), node("", &[&relay]));
    let hostile = Hostile::new(own_place()).unwrap();
    let mut link = hostile.link(relay.target.at, &Claims::default()).unwrap();
    eventually("links", TIMEOUT, || relay.status().unwrap().peers_up == 3);
    let (name, to) = (honest.target.key.address(), target.target.key.address());
    let routed = Routed::new(name, to, Service::Handshake);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 1;
            while !done.load(Ordering::Relaxed) {
                let noise = [0x5a; 80];
                let first =
                    encode_session_in(NetworkId::PUBLIC, HandshakeStep::Init, number, 0, &noise);
                link.unsealed(&routed, &first).unwrap();
                number += 1;
                link.receive(Duration::from_millis(2)).unwrap();
            }
        });
        let _ended = Ends(&done);
        eventually("the target is under load", TIMEOUT, || {
            let counters = target.status().unwrap().counters;
            counters.get("cookies_sent").copied().unwrap_or(0) > 100
        });
        let reached = (0..3).filter(|_| reaches(&honest, &target, 3)).count();
        assert_eq!(reached, 3);
    });
}

/// What a node says of a peer.
fn peer_of(node: &Victim, key: PublicKey) -> Option<Peer> {
    let peers: Vec<Peer> = node.client.call("getPeers", json!({})).unwrap();
    let key = key.to_string();
    peers
        .into_iter()
        .find(|peer| peer.pubkey.as_deref() == Some(&key))
}

/// Four threads of unknown nodes of one address send first messages and join, each with a key of its own and with all
/// the workers that can be claimed, as fast as they are admitted: the peer renews its link meanwhile, a newcomer joins.
#[test]
fn nodes_of_one_address_that_claim_the_most_workers_keep_nobody_out() {
    let program = binary();
    let brisk = "[session]\nrekey_after_seconds = 10\n[peering]\ninbound_max = 32\n";
    let victim = Victim::start_at(&program, own_place(), brisk, &[]).unwrap();
    let target = victim.target;
    let peer = Victim::start_at(&program, own_place(), brisk, &[target.at]).unwrap();
    let alive = || peer_of(&peer, target.key).filter(|p| p.connection_state == "alive");
    eventually("the link", TIMEOUT, || alive().is_some());
    let before = alive().unwrap();
    let (done, joined) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let attack = || {
            let claims = Claims::workers(64);
            while !done.load(Ordering::Relaxed) {
                let hostile = Hostile::new(([127, 0, 0, 1], 0).into()).unwrap();
                for number in 2..5 {
                    let (_, first) = hostile.first_message(&claims, number).unwrap();
                    hostile.send(target.at, &first).unwrap();
                }
                let link = hostile.link(target.at, &claims);
                joined.fetch_add(usize::from(link.is_ok()), Ordering::Relaxed);
            }
        };
        (0..4).for_each(|_| drop(scope.spawn(attack)));
        eventually("the peer has renewed its link twice", TIMEOUT, || {
            let now = alive().map_or(0, |peer| peer.handshakes);
            now >= before.handshakes + 2
        });
        eventually("as many have joined as there may be", TIMEOUT, || {
            joined.load(Ordering::Relaxed) > 32
        });
        let began = Instant::now();
        let newcomer = Hostile::new(own_place()).unwrap();
        newcomer.link(target.at, &Claims::default()).unwrap();
        let took = began.elapsed();
        done.store(true, Ordering::Relaxed);
        eprintln!("joined in {took:?}, beside {joined:?} others");
        assert!(took < Duration::from_secs(10));
    });
    assert!(!peer.log().contains("peer is down"), "{}", peer.log());
}

#[test]
fn two_hosts_with_one_key_are_notified_and_the_relay_reports_them() {
    let program = binary();
    let metrics = own_place().to_string();
    let config = format!("metrics = \"{metrics}\"\n");
    let relay = Victim::start_at(&program, own_place(), &config, &[]).unwrap();
    let key = SecretKey::generate().unwrap();
    let places = [own_place(), own_place()];
    let hosts = places.map(|place| {
        Victim::start_as(&program, place, Some(&key), "", &[relay.target.at]).unwrap()
    });
    let found = |node: &Victim, of: PublicKey| peer_of(node, of).and_then(|peer| peer.duplicate);
    eventually("the relay sees two", TIMEOUT, || {
        found(&relay, key.public_key()).is_some()
    });
    let seen = found(&relay, key.public_key()).unwrap();
    let mut named = seen.places.clone();
    named.sort();
    let mut expected = places.map(|place| place.to_string()).to_vec();
    expected.sort();
    assert_eq!((seen.own, named), (false, expected.clone()));
    for (host, place) in hosts.iter().zip(places) {
        eventually("both hosts are told", TIMEOUT, || {
            found(host, relay.target.key).is_some()
        });
        let said = found(host, relay.target.key).unwrap();
        assert!(said.own);
        assert_eq!(said.places[0], place.to_string(), "its own place first");
        assert!(expected.contains(&said.places[1]));
    }
    let listed = |node: &Victim| {
        let mut list = Command::new(&program);
        list.args(["peer", "list", "--socket-dir"])
            .arg(node.sockets());
        String::from_utf8(list.output().unwrap().stdout).unwrap()
    };
    for (node, mark) in [
        (&relay, "DUPLICATE: this key is on two hosts"),
        (
            &hosts[0],
            "DUPLICATE, reported by the peer: this node's key",
        ),
    ] {
        let list = listed(node);
        assert!(list.contains(mark), "{list}");
    }
    let text = scrape_at(&metrics);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("hyphae_duplicate_keys_total "));
    assert!(line.unwrap().parse::<u64>().unwrap() > 0);
    let said = "a peer says that another host has this node's key";
    for (node, line) in [
        (&relay, "two hosts have one key"),
        (&hosts[0], said),
        (&hosts[1], said),
    ] {
        let log = node.log();
        assert!(log.contains(line), "{log}");
    }
}
