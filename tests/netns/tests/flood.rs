//! Covers: floods of handshakes that claim the most workers, against processes: from the networks of one IPv6 site, and
//! end to end from behind the relay of the attacked node. `hyphae-bench flood` does the same at full rate for a minute.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{TIMEOUT, binary, command, eventually, own_place, privileged, scrape_at};
use hyphae::lab::Namespace;
use hyphae_rpc::method::{Peer, PingParams, Pong};
use hyphae_test_hostile::{Claims, FirstMessages, Hostile, Routed, Victim};
use hyphae_wire::babel::Serial;
use hyphae_wire::{PublicKey, SecretKey, Service};
use serde_json::json;

/// Required of a node that joins during a flood.
const JOIN_MAX: Duration = Duration::from_secs(1);
/// Renewals that a flood has to let pass.
const RENEWALS: u64 = 2;
const SESSION: &str = "[session]\nrekey_after_seconds = 2\n";
/// The most workers that a handshake can claim.
const WORKERS: u16 = 64;
/// First messages per second of a debug build, far above every rate for unproven sources.
const RATE: u32 = 10_000;

/// Stops the attack, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `send` at [`RATE`] until `done`.
fn at_rate(done: &AtomicBool, mut send: impl FnMut(usize)) {
    let began = Instant::now();
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        let due = (began.elapsed() * RATE).as_secs();
        // No burst after the thread was preempted.
        sent = sent.max(due.saturating_sub(u64::from(RATE / 50)));
        while sent < due {
            send(usize::try_from(sent).unwrap());
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn peer_of(node: &Victim, key: PublicKey) -> Option<Peer> {
    let peers: Vec<Peer> = node.client.call("getPeers", json!({})).unwrap();
    let key = key.to_string();
    let mut peers = peers.into_iter();
    peers.find(|peer| peer.pubkey.as_deref() == Some(&key))
}

fn is_alive(node: &Victim, key: PublicKey) -> bool {
    peer_of(node, key).is_some_and(|peer| peer.connection_state == "alive")
}

fn counter(node: &Victim, name: &str) -> u64 {
    let status = node.status().unwrap();
    status.counters.get(name).copied().unwrap_or(0)
}

/// Neither plane has panicked or was restarted.
fn assert_unharmed(node: &Victim) {
    let (status, log) = (node.status().unwrap(), node.log());
    let restarts = (status.controlplane_restarts, status.dataplane_restarts);
    assert!(restarts == (0, 0) && !log.contains("panicked"), "{log}");
}

/// Makes a node dial another; returns the time until the link is up.
fn join(node: &Victim, to: &Victim) -> Duration {
    let began = Instant::now();
    let endpoint = format!("udp://{}", to.target.at);
    let _: bool = node
        .client
        .call("addPeer", json!({ "endpoint": endpoint }))
        .unwrap();
    eventually("a newcomer has a link", TIMEOUT, || {
        is_alive(node, to.target.key)
    });
    began.elapsed()
}

/// Networks of one IPv6 site, and an address of its own for each honest node.
struct Site(Namespace);

impl Site {
    fn new() -> Self {
        let inside = Namespace::new().unwrap();
        for n in 0..16 {
            command(
                &inside,
                &format!("ip -6 addr add 2001:db8:7:{n:x}::1/64 dev lo"),
            );
        }
        for n in 1..4 {
            command(
                &inside,
                &format!("ip -6 addr add 2001:db8:8{n}::1/64 dev lo"),
            );
        }
        Self(inside)
    }

    fn attacker(&self, n: u16) -> Hostile {
        let ip = Ipv6Addr::new(0x2001, 0xdb8, 7, n % 16, 0, 0, 0, 1);
        let open = move || Hostile::new(SocketAddr::from((ip, 0)));
        self.0.run(open).unwrap().unwrap()
    }

    /// A node at the `n`th address of an honest node.
    fn node(&self, n: u16, config: &'static str, peers: &[&Victim]) -> Victim {
        let ip = Ipv6Addr::new(0x2001, 0xdb8, 0x80 + n, 0, 0, 0, 0, 1);
        let (program, at) = (binary(), SocketAddr::from((ip, 9670)));
        let peers: Vec<_> = peers.iter().map(|peer| peer.target.at).collect();
        let start = move || Victim::start_at(&program, at, config, &peers);
        self.0.run(start).unwrap().unwrap()
    }
}

#[test]
fn sixteen_networks_of_one_site_exclude_neither_a_renewal_nor_a_newcomer() {
    if !privileged() {
        return;
    }
    let site = Site::new();
    let victim = site.node(1, SESSION, &[]);
    let target = victim.target;
    let peer = site.node(2, SESSION, &[&victim]);
    let newcomer = site.node(3, SESSION, &[]);
    eventually("the link", TIMEOUT, || is_alive(&peer, target.key));
    let (done, joined) = (AtomicBool::new(false), AtomicUsize::new(0));
    let claims = Claims::workers(WORKERS);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let attackers: Vec<_> = (0..16).map(|n| site.attacker(n)).collect();
            let mut messages = FirstMessages::link(&attackers[0], &claims).unwrap();
            at_rate(&done, |n| {
                // Refused while the queue of the loopback device is full.
                let _ = attackers[n % 16].send(target.at, messages.forge());
            });
        });
        scope.spawn(|| {
            let mut turn = 0;
            while !done.load(Ordering::Relaxed) {
                let link = site.attacker(turn).link(target.at, &claims);
                joined.fetch_add(usize::from(link.is_ok()), Ordering::Relaxed);
                turn += 1;
            }
        });
        let _stop = Stop(&done);
        eventually("the flood is on", TIMEOUT, || {
            counter(&victim, "cookies_sent") > 5000 && joined.load(Ordering::Relaxed) > 16
        });
        let before = peer_of(&peer, target.key).unwrap().handshakes;
        let took = join(&newcomer, &victim);
        eprintln!("joined in {took:?}, beside {joined:?} others");
        assert!(took < JOIN_MAX, "{took:?}");
        eventually("the link is renewed", TIMEOUT, || {
            peer_of(&peer, target.key).unwrap().handshakes >= before + RENEWALS
        });
    });
    for node in [&peer, &newcomer] {
        assert!(!node.log().contains("peer is down"), "{}", node.log());
    }
    assert_unharmed(&victim);
}

/// End-to-end sessions of a node that were renewed.
fn sessions_renewed(metrics: SocketAddr) -> u64 {
    let text = scrape_at(&metrics.to_string());
    let name = "hyphae_rekeys_total{kind=\"end_to_end\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.parse().unwrap())
}

fn ping(from: &Victim, to: &Victim, timeout_ms: u64) -> bool {
    let params = PingParams {
        address: Ipv6Addr::from(to.target.key.address().0).to_string(),
        timeout_ms,
    };
    let answer: Result<Pong, _> = from.client.call("node.ping", params);
    answer.is_ok()
}

fn has_route(node: &Victim, to: &Victim) -> bool {
    let routes: serde_json::Value = node.client.call("getSelectedRoutes", json!({})).unwrap();
    let subnet = to.target.key.address().subnet().to_string();
    routes.to_string().contains(&subnet)
}

#[test]
fn an_attacker_behind_the_relay_of_its_target_excludes_no_other_session_through_it() {
    let start = |config: &str, peers: &[&Victim]| {
        let peers: Vec<_> = peers.iter().map(|peer| peer.target.at).collect();
        Victim::start_at(&binary(), own_place(), config, &peers).unwrap()
    };
    let metrics = own_place();
    let relay = start("", &[]);
    let victim = start(SESSION, &[&relay]);
    let peer = start(&format!("metrics = \"{metrics}\"\n{SESSION}"), &[&relay]);
    let newcomer = start(SESSION, &[&relay]);
    eventually("the routes", TIMEOUT, || {
        has_route(&peer, &victim) && has_route(&newcomer, &victim)
    });
    eventually("the session", TIMEOUT, || ping(&peer, &victim, 1000));
    let [mut flooding, mut finishing] = [(); 2].map(|()| {
        let hostile = Hostile::new(own_place()).unwrap();
        hostile.link(relay.target.at, &Claims::default()).unwrap()
    });
    let (done, joined) = (AtomicBool::new(false), AtomicUsize::new(0));
    let claims = Claims::workers(WORKERS);
    let to = victim.target.key.address();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let key = || SecretKey::generate().unwrap().public_key().address();
            // The names of the honest ones, too.
            let honest = [&peer, &newcomer].map(|node| node.target.key.address());
            let names: Vec<_> = (0..14).map(|_| key()).chain(honest).collect();
            let identity = SecretKey::generate().unwrap();
            let mut messages = FirstMessages::end_to_end(&identity, &claims).unwrap();
            at_rate(&done, |n| {
                let routed = Routed::new(names[n % 16], to, Service::Handshake);
                let _ = flooding.unsealed(&routed, messages.forge());
                if n % 100 == 0 {
                    // Answers probes.
                    flooding.receive(Duration::from_millis(1)).unwrap();
                }
            });
        });
        scope.spawn(|| {
            finishing.greet(1).unwrap();
            while !done.load(Ordering::Relaxed) {
                let identity = SecretKey::generate().unwrap();
                finishing.announce(&identity, Serial(1 << 16)).unwrap();
                let session = finishing.session(&identity, to, &claims);
                joined.fetch_add(usize::from(session.is_ok()), Ordering::Relaxed);
            }
        });
        let _stop = Stop(&done);
        eventually("the flood is on", TIMEOUT, || {
            counter(&victim, "cookies_sent") > 5000 && joined.load(Ordering::Relaxed) > 16
        });
        let began = Instant::now();
        assert!(ping(&newcomer, &victim, 10_000));
        let took = began.elapsed();
        eprintln!("joined in {took:?}, beside {joined:?} others");
        assert!(took < JOIN_MAX, "{took:?}");
        let before = sessions_renewed(metrics);
        eventually("the session is renewed", TIMEOUT, || {
            assert!(ping(&peer, &victim, 1000), "the session is in use");
            sessions_renewed(metrics) >= before + RENEWALS
        });
    });
    assert_unharmed(&relay);
    assert_unharmed(&victim);
}
