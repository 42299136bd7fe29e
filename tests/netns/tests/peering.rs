//! Covers: nodes in namespaces that find each other without configuration, private networks and
//! allow-lists as an operator sees them, fail-over between two addresses of one peer, a peer whose
//! address changes. The protocol behind it is tested in controlplane/overlay.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{TIMEOUT, UNTIMED_LINKS, binary, command, eventually, privileged, scrape};
use hyphae::lab::{LabNode, Namespace};
use hyphae_rpc::method::Peer;
use hyphae_store::files;
use hyphae_wire::PublicKey;
use serde_json::json;
use tempfile::TempDir;

/// Nodes are heavy: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Two hosts, joined by any number of cables: 198.18.N.1 and 198.18.N.2.
struct Hosts {
    namespaces: [Namespace; 2],
    directory: TempDir,
    keys: [PublicKey; 2],
}

const NAMES: [&str; 2] = ["one", "two"];

impl Hosts {
    fn new(cables: u8) -> Self {
        let namespaces = [Namespace::new().unwrap(), Namespace::new().unwrap()];
        for cable in 1..=cables {
            let place = |host| (IpAddr::V4(Ipv4Addr::new(198, 18, cable, host)), 24);
            let device = format!("cable{cable}");
            let [one, two] = &namespaces;
            one.join(&device, place(1), two, &format!("plug{cable}"), place(2))
                .unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let keys = NAMES.map(|name| {
            let state = directory.path().join(name);
            let state = files::prepare_directory(&state).unwrap();
            files::generate_key(&state, false).unwrap().public_key()
        });
        Self {
            namespaces,
            directory,
            keys,
        }
    }

    fn start(&self, host: usize, flags: &[&str]) -> LabNode {
        let usual = "up --no-tun --rpc off --cores any:1 --metrics 127.0.0.1:9469";
        let line = usual.split(' ').chain(flags.iter().copied());
        LabNode::start(
            NAMES[host],
            self.keys[host],
            self.directory.path().join(NAMES[host]),
            line.map(str::to_owned).collect(),
            Some(&self.namespaces[host]),
            binary(),
        )
        .unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `ip` in a namespace.
    fn ip(&self, host: usize, arguments: &str) {
        let arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
        let run = move || Command::new("ip").args(arguments).status();
        let status = self.namespaces[host].run(run).unwrap().unwrap();
        assert!(status.success());
    }

    /// Refused handshakes of one reason, as Prometheus sees them.
    fn refused(&self, host: usize, reason: &str) -> u64 {
        let text = scrape(&self.namespaces[host]);
        let line = format!("hyphae_handshakes_refused_total{{reason=\"{reason}\"}} ");
        let value = text.lines().find_map(|l| l.strip_prefix(&line));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

fn peers(node: &LabNode) -> Vec<Peer> {
    node.client.call("getPeers", json!({})).unwrap()
}

/// The line about a refused handshake, as soon as it is whole.
fn refusal(node: &LabNode) -> String {
    let mut found = None;
    eventually("the log says so", TIMEOUT, || {
        let log = node.log();
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut lines = whole.lines().map(str::to_owned);
        found = lines.find(|line| line.contains("handshake refused"));
        found.is_some()
    });
    found.unwrap()
}

fn connected_to(node: &LabNode, key: PublicKey) -> Option<Peer> {
    let alive = |p: &Peer| p.connection_state == "alive" && p.pubkey == Some(key.to_string());
    peers(node).into_iter().find(alive)
}

#[test]
fn nodes_on_one_cable_find_each_other() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let hosts = Hosts::new(1);
    let mut nodes = [0, 1].map(|host| hosts.start(host, &[]));
    for (node, other) in [(0, 1), (1, 0)] {
        let found = || connected_to(&nodes[node], hosts.keys[other]);
        eventually("found, once", TIMEOUT, || {
            found().is_some_and(|peer| peer.kind == "lan") && peers(&nodes[node]).len() == 1
        });
        let peer = found().unwrap();
        assert!(peer.endpoint.socket_addr.starts_with("[fe80:"), "{peer:?}");
    }
    let round_trip = nodes[0].ping(nodes[1].address(), TIMEOUT);
    assert!(round_trip.is_ok(), "{round_trip:?}");
    assert!(nodes[0].stop().unwrap());
    // Not found by a member of another network, nor by one that does not search.
    let key = hosts.directory.path().join("garden.key");
    hyphae_store::network_key::generate(&key).unwrap();
    let flags = [
        "--network",
        "garden",
        "--network-key",
        key.to_str().unwrap(),
    ];
    nodes[0] = hosts.start(0, &flags);
    eventually("gone", TIMEOUT, || {
        connected_to(&nodes[1], hosts.keys[0]).is_none()
    });
    assert!(nodes[1].stop().unwrap());
    nodes[1] = hosts.start(1, &[&flags[..], &["--discovery", "none"]].concat());
    assert!(nodes[1].stop().unwrap());
    nodes[1] = hosts.start(1, &[&flags[..], &["--discovery", "plug1"]].concat());
    eventually("members find each other", TIMEOUT, || {
        connected_to(&nodes[0], hosts.keys[1]).is_some()
    });
}

#[test]
fn another_network_is_refused_with_a_clear_line_at_both_ends() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let hosts = Hosts::new(1);
    let key = hosts.directory.path().join("garden.key");
    hyphae_store::network_key::generate(&key).unwrap();
    let flags = [
        "--network",
        "garden",
        "--network-key",
        key.to_str().unwrap(),
    ];
    let two = hosts.start(1, &flags);
    let one = hosts.start(
        0,
        &["--peer", "udp://198.18.1.2:9670", "--discovery", "none"],
    );
    for (host, node) in [(0, &one), (1, &two)] {
        eventually("counted", TIMEOUT, || hosts.refused(host, "network") > 0);
        let line = refusal(node);
        assert!(
            line.contains("the public network") && line.contains("private network"),
            "{line}"
        );
        assert!(line.contains("198.18.1."), "{line}");
    }
    eventually("the peer's state says so", TIMEOUT, || {
        let refusal = peers(&one).remove(0).refusal;
        refusal.is_some_and(|refusal| refusal.contains("[network]"))
    });
    assert!(peers(&two).is_empty());
}

#[test]
fn a_key_that_is_not_allowed_stays_out() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let hosts = Hosts::new(1);
    let config = hosts.file("two.toml", "[peering]\nallow = []\n");
    let flags = ["--discovery", "none", "--config", config.to_str().unwrap()];
    let mut two = hosts.start(1, &flags);
    let one = hosts.start(
        0,
        &["--peer", "udp://198.18.1.2:9670", "--discovery", "none"],
    );
    eventually("counted", TIMEOUT, || hosts.refused(1, "not_allowed") > 0);
    let line = refusal(&two);
    assert!(
        line.contains(&hosts.keys[0].to_string()) && line.contains("allow-list"),
        "{line}"
    );
    assert!(peers(&two).is_empty());
    assert!(connected_to(&one, hosts.keys[1]).is_none());
    // With its key, and a name, on the list it is let in and shown by name.
    assert!(two.stop().unwrap());
    let entry = format!("{{ key = \"{}\", name = \"attic\" }}", hosts.keys[0]);
    hosts.file("two.toml", &format!("[peering]\nallow = [{entry}]\n"));
    let two = hosts.start(1, &flags);
    // The other end asks less and less often.
    eventually("let in", 2 * TIMEOUT, || {
        connected_to(&two, hosts.keys[0]).is_some()
    });
    let peer = connected_to(&two, hosts.keys[0]).unwrap();
    assert_eq!(
        (peer.kind.as_str(), peer.name.as_deref()),
        ("inbound", Some("attic"))
    );
}

/// Ends a thread that looks at this, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_link_moves_to_the_other_cable_when_one_is_pulled() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let hosts = Hosts::new(2);
    // Only that nothing comes back for what is sent can move the link as long as this test waits, and nothing ends it.
    let config = hosts.file("untimed.toml", UNTIMED_LINKS);
    let untimed = ["--discovery", "none", "--config", config.to_str().unwrap()];
    let two = hosts.start(1, &untimed);
    let ways = ["udp://198.18.1.2:9670", "udp://198.18.2.2:9670"];
    let flags = ["--peer", ways[0], "--peer", ways[1]];
    let one = hosts.start(0, &[&untimed[..], &flags].concat());
    let place = || connected_to(&one, hosts.keys[1]).map(|peer| peer.endpoint.socket_addr);
    eventually("connected", TIMEOUT, || place().is_some());
    let first = place().unwrap();
    let cable = if first == "198.18.1.2:9670" { 1 } else { 2 };
    let other = format!("198.18.{}.2:9670", 3 - cable);
    assert_eq!(peers(&one).len(), 1, "two entries, one peer");
    let (stop, address) = (AtomicBool::new(false), two.address());
    std::thread::scope(|scope| {
        let over = Over(&stop);
        // Traffic, so that the failure is noticed.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let answered = one.ping(address, Duration::from_millis(200)).is_ok();
                std::thread::sleep(Duration::from_millis(if answered { 20 } else { 0 }));
            }
        });
        // Both ways are known to the engine once the other was asked.
        eventually("carrying traffic", TIMEOUT, || {
            one.ping(address, TIMEOUT).is_ok()
        });
        hosts.ip(0, &format!("link set cable{cable} down"));
        let pulled = Instant::now();
        let mut alive = true;
        eventually("moved", TIMEOUT, || {
            let now = place();
            alive &= now.is_some();
            now.as_deref() == Some(&other)
        });
        println!("moved after {:?}", pulled.elapsed());
        drop(over);
        assert!(alive, "it was never down");
    });
    let answer = one.ping(address, TIMEOUT);
    assert!(answer.is_ok(), "{answer:?}");
}

/// A host whose firewall lets in nothing but answers.
fn answers_only(hosts: &Hosts, host: usize) {
    for rule in [
        "add table inet guard",
        "add chain inet guard input { type filter hook input priority 0 ; policy drop ; }",
        "add rule inet guard input iif lo accept",
        "add rule inet guard input meta l4proto ipv6-icmp accept",
        "add rule inet guard input ct state established accept",
    ] {
        command(&hosts.namespaces[host], &format!("nft {rule}"));
    }
}

#[test]
fn a_node_answers_from_the_address_that_was_asked() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    for driver in ["io_uring", "epoll"] {
        let hosts = Hosts::new(1);
        let config = hosts.file("untimed.toml", UNTIMED_LINKS);
        let usual = ["--discovery", "none", "--config", config.to_str().unwrap()];
        let usual = [&usual[..], &["--driver", driver]].concat();
        hosts.ip(0, "address add fd18::1/64 dev cable1 nodad");
        hosts.ip(1, "address add 198.18.1.3/24 dev plug1");
        hosts.ip(1, "address add fd18::2/64 dev plug1 nodad");
        hosts.ip(1, "address add fd18::3/64 dev plug1 nodad");
        answers_only(&hosts, 0);
        let mut two = hosts.start(1, &usual);
        for place in ["[fd18::2]:9670", "[fd18::3]:9670", "198.18.1.3:9670"] {
            let url = format!("udp://{place}");
            let mut one = hosts.start(0, &[&usual[..], &["--peer", &url]].concat());
            eventually("connected over UDP", TIMEOUT, || {
                connected_to(&one, hosts.keys[1]).is_some_and(|peer| peer.endpoint.proto == "udp")
            });
            let found = connected_to(&one, hosts.keys[1]).unwrap();
            assert_eq!(found.endpoint.socket_addr, place);
            assert!(one.ping(two.address(), TIMEOUT).is_ok());
            if place != "198.18.1.3:9670" {
                assert!(one.stop().unwrap());
                continue;
            }
            // A restarted node's resets leave from there too.
            assert!(two.stop().unwrap());
            two = hosts.start(1, &usual);
            eventually("connected again", TIMEOUT, || {
                one.ping(two.address(), Duration::from_millis(500)).is_ok()
            });
            // With the address gone the link goes on from another.
            command(&hosts.namespaces[0], "nft delete table inet guard");
            hosts.ip(1, "address del 198.18.1.3/24 dev plug1");
            let answer = two.ping(one.address(), TIMEOUT);
            assert!(answer.is_ok(), "{answer:?}");
            let refused = scrape(&hosts.namespaces[1]);
            let refused = refused.lines().any(|line| {
                line.starts_with("hyphae_dataplane_tx_source_refused_total{")
                    && !line.ends_with(" 0")
            });
            assert!(refused, "it was from the address that is gone");
        }
    }
}

#[test]
fn a_peer_whose_address_changes_keeps_its_link() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let hosts = Hosts::new(1);
    let config = hosts.file("untimed.toml", UNTIMED_LINKS);
    let untimed = ["--discovery", "none", "--config", config.to_str().unwrap()];
    let two = hosts.start(1, &untimed);
    let flags = ["--peer", "udp://198.18.1.2:9670"];
    let one = hosts.start(0, &[&untimed[..], &flags].concat());
    let seen = || connected_to(&two, hosts.keys[0]);
    let at = |ip: &str| seen().is_some_and(|peer| peer.endpoint.socket_addr.starts_with(ip));
    eventually("connected", TIMEOUT, || at("198.18.1.1:"));
    // Of another prefix, so that it does not go with the first one: there is no time without any.
    hosts.ip(0, "address add 198.18.1.77/25 dev cable1");
    hosts.ip(0, "address del 198.18.1.1/24 dev cable1");
    eventually("moved", TIMEOUT, || {
        let _ = one.ping(two.address(), Duration::from_millis(500));
        at("198.18.1.77:")
    });
    let peer = seen().unwrap();
    assert_eq!(peer.handshakes, 1, "the session moved with it");
    let answer = one.ping(two.address(), TIMEOUT);
    assert!(answer.is_ok(), "{answer:?}");
}
