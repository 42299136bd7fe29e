//! Covers: peers over an IPv6 underlay of this host: routes to gateways that hold the addresses of peers, names and
//! scopes of peers that change while nobody is reached. Routes to gateways by themselves are in `gateway.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use common::{
    TIMEOUT, binary, command, eventually, forward_packets, host_up, privileged, transfer,
};
use hyphae::lab::{LabNode, Namespace};
use hyphae_store::files;
use hyphae_wire::PublicKey;
use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

const NAMES: [&str; 2] = ["gateway", "user"];
const REACH: &str = "[routing]\nreach = [\"2000::/3\"]\n";
const ANNOUNCE: &str = "[routing]\nannounce = [\"2000::/3\"]\n";
/// Behind the gateway, and nowhere else.
const SITE: &str = "2001:db8:c::1";

/// Two nodes to be, and a router between them without a node.
struct Two {
    ends: [Namespace; 2],
    _router: Namespace,
    keys: Vec<PublicKey>,
    directory: TempDir,
    nodes: [Option<LabNode>; 2],
}

impl Two {
    fn new() -> Self {
        let (router, ends) = (
            Namespace::new().unwrap(),
            [0, 1].map(|_| Namespace::new().unwrap()),
        );
        let net = |end: usize, host: u16| -> (IpAddr, u8) {
            (format!("2001:db8:{end}::{host}").parse().unwrap(), 64)
        };
        for (n, end) in ends.iter().enumerate() {
            let device = ["to-gateway", "to-user"][n];
            router
                .join(device, net(n, 1), end, "uplink", net(n, 2))
                .unwrap();
            let default = format!("ip -6 route add default via 2001:db8:{n}::1 dev uplink");
            command(end, &default);
        }
        forward_packets(&router);
        let directory = tempfile::tempdir().unwrap();
        let key = |name: &&str| {
            let state = directory.path().join(name);
            let state = files::prepare_directory(&state).unwrap();
            files::generate_key(&state, false).unwrap().public_key()
        };
        let two = Self {
            keys: NAMES.iter().map(key).collect(),
            ends,
            _router: router,
            directory,
            nodes: [None, None],
        };
        eventually("the underlay works", TIMEOUT, || {
            pings(&two.ends[0], "2001:db8:1::2")
        });
        two
    }

    /// Starts a node; `peer` is where it dials, without the key of the other.
    fn start(&mut self, n: usize, config: &str, peer: Option<&str>) {
        let file = self.directory.path().join(format!("{}.toml", NAMES[n]));
        std::fs::write(&file, config).unwrap();
        let mut line: Vec<String> = [
            "up",
            "--rpc",
            "off",
            "--rest",
            "off",
            "--metrics",
            "off",
            "--listen",
            "[::]:9670",
            "--cores",
            "any:1",
            "--discovery",
            "none",
            "--config",
            file.to_str().unwrap(),
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(peer) = peer {
            line.extend(["--peer".to_owned(), format!("{peer}#{}", self.keys[1 - n])]);
        }
        let at = self.directory.path().join(NAMES[n]);
        let inside = Some(&self.ends[n]);
        let node = LabNode::start(NAMES[n], self.keys[n], at, line, inside, binary()).unwrap();
        host_up(&self.ends[n], node.address());
        self.nodes[n] = Some(node);
    }

    fn node(&self, n: usize) -> &LabNode {
        self.nodes[n].as_ref().unwrap()
    }

    fn is_linked(&self) -> bool {
        let other = self.keys[1].address().ip();
        self.node(0).ping(other, Duration::from_secs(1)).is_ok()
    }

    /// The gateway has a site, and the user's host reaches it, across a link whose ends the route to the site covers.
    fn with_site(dial: [Option<&str>; 2]) -> Self {
        let mut two = Self::new();
        command(
            &two.ends[0],
            &format!("ip -6 address add {SITE}/128 dev lo"),
        );
        two.start(0, ANNOUNCE, dial[0]);
        two.start(1, REACH, dial[1]);
        eventually("the site is reached", TIMEOUT, || pings(&two.ends[1], SITE));
        two
    }
}

fn pings(inside: &Namespace, address: &str) -> bool {
    let address = address.to_owned();
    let ping = move || {
        let mut ping = Command::new("ping");
        ping.args(["-6", "-c", "1", "-W", "1", &address]).output()
    };
    inside.run(ping).unwrap().unwrap().status.success()
}

fn route(inside: &Namespace, to: &str) -> String {
    command(inside, &format!("ip -6 route get {to}"))
}

#[test]
fn a_route_that_covers_the_addresses_of_peers_leaves_underlay_packets_alone() {
    if !privileged() {
        return;
    }
    let two = Two::with_site([None, Some("udp://[2001:db8:0::2]:9670")]);
    let user = &two.ends[1];
    // The host's own traffic: to what is near as before, else into the overlay.
    assert!(route(user, SITE).contains("dev hyphae0"));
    assert!(route(user, "2001:db8:1::1").contains("dev uplink"));
    assert!(route(user, "2001:db8:0::2 mark 150").contains("dev uplink"));
    let longer = "2001:db8:ff::/48 via 2001:db8:1::1 dev uplink";
    command(user, &format!("ip -6 route add {longer}"));
    assert!(
        route(user, "2001:db8:ff::1").contains("dev uplink"),
        "a longer prefix wins"
    );
    transfer(user, &two.ends[0], SITE.parse().unwrap(), 1 << 20);
    assert!(two.is_linked());
    // Rules that others delete are there again.
    let rules = || command(user, "ip -6 rule show");
    let before = rules();
    assert!(before.contains("suppress_prefixlength 2"), "{before}");
    let ours: Vec<_> = before
        .lines()
        .filter(|line| line.contains("suppress_prefixlength"))
        .collect();
    for rule in ours {
        let (priority, _) = rule.split_once(':').unwrap();
        command(user, &format!("ip -6 rule del pref {priority}"));
    }
    eventually("the rules are there again", TIMEOUT, || rules() == before);
    eventually("the site is reached", TIMEOUT, || pings(user, SITE));
    // So are routes in a table of their own.
    command(user, "ip -6 route flush proto 96 table all");
    eventually("the site is reached", TIMEOUT, || pings(user, SITE));
}

#[test]
fn stream_links_are_not_captured_either_whoever_dials() {
    if !privileged() {
        return;
    }
    for dial in [
        [None, Some("tcp://[2001:db8:0::2]:9670")],
        [Some("tcp://[2001:db8:1::2]:9670"), None],
    ] {
        let two = Two::with_site(dial);
        transfer(&two.ends[1], &two.ends[0], SITE.parse().unwrap(), 1 << 20);
        assert!(two.is_linked());
    }
}

#[test]
fn without_a_mark_routes_that_cover_the_address_of_a_peer_are_left_out() {
    if !privileged() {
        return;
    }
    let mut two = Two::new();
    let announce = "[routing]\nannounce = [\"2000::/3\", \"fd12::/48\"]\n";
    two.start(0, announce, None);
    let reach = "underlay_mark = 0\n[routing]\nreach = [\"2000::/3\", \"fd12::/16\"]\n";
    two.start(1, reach, Some("udp://[2001:db8:0::2]:9670"));
    let user = &two.ends[1];
    eventually("the other route is there", TIMEOUT, || {
        command(user, "ip -6 route show").contains("fd12::/48 dev hyphae0")
    });
    eventually("it is said", TIMEOUT, || {
        let problem = two.node(1).status().unwrap().host_problem;
        problem.is_some_and(|problem| problem.contains("no route to 2000::/3"))
    });
    assert!(!command(user, "ip -6 route show").contains("2000::/3"));
    eventually("the link stands", TIMEOUT, || two.is_linked());
}

#[test]
fn a_route_that_covers_the_address_of_a_peer_is_withdrawn_while_the_kernel_refuses_a_rule() {
    if !privileged() {
        return;
    }
    let two = Two::with_site([None, Some("udp://[2001:db8:0::2]:9670")]);
    let user = &two.ends[1];
    let rules = || command(user, "ip -6 rule show");
    let before = rules();
    // The same selectors without `not`: underlay packets would look the table up.
    let rule = before
        .lines()
        .find_map(|line| line.split_once(":\tnot from all "));
    let (priority, selectors) = rule.unwrap();
    let foreign = format!("pref {priority} {selectors} protocol kernel");
    let batch = format!("rule del pref {priority}\nrule add {foreign}\n");
    let file = two.directory.path().join("rules");
    std::fs::write(&file, batch).unwrap();
    command(user, &format!("ip -6 -batch {}", file.display()));
    eventually("it is reported", TIMEOUT, || {
        let problem = two.node(1).status().unwrap().host_problem;
        problem.is_some_and(|problem| problem.starts_with("no route to 2000::/3"))
    });
    let log = two.node(1).log();
    let mut errors = log.lines().filter(|line| line.contains("ERROR"));
    assert!(
        errors.any(|line| line.contains("no route to 2000::/3")),
        "{log}"
    );
    assert!(!command(user, "ip -6 route show table all").contains("2000::/3 dev hyphae0"));
    assert!(route(user, "2001:db8:0::2").contains("dev uplink"));
    assert!(two.is_linked());
    command(user, &format!("ip -6 rule del {foreign}"));
    eventually("the rule is set", TIMEOUT, || rules() == before);
    eventually("the site is reached", TIMEOUT, || pings(user, SITE));
}

#[test]
fn a_scoped_address_is_dialled_on_an_interface_that_is_made_again() {
    if !privileged() {
        return;
    }
    let mut two = Two::new();
    let cable = |two: &Two| {
        let net = |host: u16| -> (IpAddr, u8) { (format!("fe80::{host}").parse().unwrap(), 64) };
        two.ends[0]
            .join("cable", net(1), &two.ends[1], "plug", net(2))
            .unwrap();
    };
    cable(&two);
    two.start(0, "", None);
    two.start(1, "", Some("udp://[fe80::1%plug]:9670"));
    eventually("they are linked", TIMEOUT, || two.is_linked());
    command(&two.ends[1], "ip link del plug");
    eventually("the link is gone", TIMEOUT, || !two.is_linked());
    cable(&two);
    let began = std::time::Instant::now();
    eventually("they are linked again", Duration::from_secs(30), || {
        two.is_linked()
    });
    eprintln!("linked after {:?}", began.elapsed());
}

#[test]
fn a_name_that_has_moved_is_found_by_the_retries_of_its_dead_peer() {
    if !privileged() {
        return;
    }
    let mut two = Two::new();
    let hosts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hosts.path(), "2001:db8:0::99 gateway.example\n").unwrap();
    let path = hosts.path().to_owned();
    let bind = move || -> nix::Result<()> {
        let none: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        mount(Some(&path), "/etc/hosts", none, MsFlags::MS_BIND, none)
    };
    two.ends[1].run(bind).unwrap().unwrap();
    two.start(0, "", None);
    two.start(1, "", Some("udp://gateway.example:9670"));
    assert!(!two.is_linked());
    std::fs::write(hosts.path(), "2001:db8:0::2 gateway.example\n").unwrap();
    let began = std::time::Instant::now();
    eventually("they are linked", Duration::from_secs(40), || {
        two.is_linked()
    });
    eprintln!("linked after {:?}", began.elapsed());
}
