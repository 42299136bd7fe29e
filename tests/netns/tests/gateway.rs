//! Covers: subnets outside of the overlay behind a gateway, from the announcement to the host's
//! route; a node behind a NAT whose public address changes.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use common::mesh::Mesh;
use common::{TIMEOUT, command, eventually, forward_packets, privileged, transfer};
use hyphae::lab::Namespace;
use hyphae_rpc::method::Peer;
use serde_json::json;

const SITE: &str = "fd12:3456::/48";

/// A namespace without a node, behind a gateway.
fn site(gateway: &Namespace) -> (Namespace, Ipv6Addr) {
    let site = Namespace::new().unwrap();
    let address = |text: &str| -> (IpAddr, u8) { (text.parse().unwrap(), 64) };
    let (router, host) = (address("fd12:3456::1"), address("fd12:3456::2"));
    gateway.join("site", router, &site, "uplink", host).unwrap();
    command(&site, "ip -6 route add default via fd12:3456::1 dev uplink");
    forward_packets(gateway);
    (site, "fd12:3456::2".parse().unwrap())
}

fn has_route(inside: &Namespace) -> bool {
    command(inside, "ip -6 route show table all").contains("fd12:3456::/48 dev ")
}

#[test]
fn a_subnet_behind_a_gateway_is_reached_across_a_relay() {
    if !privileged() {
        return;
    }
    let mut mesh = Mesh::new(3, &[(0, 1), (1, 2)]);
    mesh.start_with(0, &format!("[routing]\nannounce = [\"{SITE}\"]\n"));
    // A relay passes the announcement on, and does not touch its own host's routes.
    let rule = "{ action = \"accept\", prefix = \"fd12::/16\" }";
    mesh.start_with(1, &format!("[routing]\nimport = [{rule}]\n"));
    mesh.start_with(2, "[routing]\nreach = [\"fd12::/16\"]\n");
    let (site, host) = site(&mesh.namespaces[0]);
    let user = mesh.keys[2].address().ip();
    eventually("the route is there", TIMEOUT, || {
        has_route(&mesh.namespaces[2])
    });
    assert!(!has_route(&mesh.namespaces[1]), "the relay's host");
    let route = mesh.routes(2).into_iter().find(|r| r.subnet == SITE);
    assert_eq!(route.unwrap().next_hop, mesh.keys[1].to_string());
    eventually("duplicate address detection is over", TIMEOUT, || {
        !command(&site, "ip -6 address show").contains("tentative")
    });
    transfer(&mesh.namespaces[2], &site, host, 1 << 20);
    transfer(&site, &mesh.namespaces[2], user, 1 << 20);
    // Nothing that the gateway did not announce, though the user would send it.
    command(
        &mesh.namespaces[2],
        "ip -6 route add fd12:9999::/48 dev hyphae0",
    );
    let refused = "ping -6 -c 1 -W 1 fd12:9999::1";
    let ping = mesh.namespaces[2].run(move || {
        let words: Vec<_> = refused.split(' ').collect();
        std::process::Command::new(words[0])
            .args(&words[1..])
            .output()
    });
    assert!(!ping.unwrap().unwrap().status.success());

    // A control plane that is killed costs its host no route.
    let control = mesh.node(2).status().unwrap().pid;
    mesh.node(2).kill(control).unwrap();
    transfer(&mesh.namespaces[2], &site, host, 1 << 20);
    eventually("another control plane", TIMEOUT, || {
        let status = mesh.node(2).status();
        status.is_ok_and(|status| status.pid != control)
    });
    assert!(has_route(&mesh.namespaces[2]));
    transfer(&mesh.namespaces[2], &site, host, 1 << 20);

    mesh.kill(0);
    eventually("the route goes with the gateway", TIMEOUT, || {
        !has_route(&mesh.namespaces[2])
    });
}

#[test]
fn a_node_behind_nat_is_reached_and_stays_so_when_its_public_address_changes() {
    if !privileged() {
        return;
    }
    // Between the nodes 0 and 2 is a host without a node that translates: 0 has no route to 2.
    let mut mesh = Mesh::new(3, &[(0, 1), (2, 1)]);
    let nat = &mesh.namespaces[1];
    forward_packets(nat);
    command(nat, "nft add table ip nat");
    command(
        nat,
        "nft add chain ip nat out { type nat hook postrouting priority 100 ; }",
    );
    command(nat, "nft add rule ip nat out oifname plug1 masquerade");
    command(&mesh.namespaces[2], "ip route add default via 198.18.2.2");
    mesh.start(0, &[]);
    let peer = format!("udp://198.18.1.1:9670#{}", mesh.keys[0]);
    mesh.start(2, &["--peer", &peer]);
    let reached = || {
        let from = |a: usize, b: usize| {
            let address = mesh.keys[b].address().ip();
            mesh.node(a).ping(address, Duration::from_secs(1)).is_ok()
        };
        from(0, 2) && from(2, 0)
    };
    eventually("they reach each other", TIMEOUT, reached);
    let seen = || -> Vec<Peer> { mesh.node(0).client.call("getPeers", json!({})).unwrap() };
    let endpoints = |peers: Vec<Peer>| format!("{peers:?}");
    assert!(endpoints(seen()).contains("198.18.1.2:"), "{:?}", seen());
    let (a, b) = (&mesh.namespaces[0], &mesh.namespaces[2]);
    transfer(a, b, mesh.node(2).address(), 1 << 20);
    transfer(b, a, mesh.node(0).address(), 1 << 20);

    // The provider gives another address; what was translated to the old one is forgotten.
    command(nat_of(&mesh), "ip address del 198.18.1.2/24 dev plug1");
    command(nat_of(&mesh), "ip address add 198.18.1.3/24 dev plug1");
    eventually("the new address is learnt", TIMEOUT, || {
        endpoints(seen()).contains("198.18.1.3:")
    });
    eventually("they reach each other again", TIMEOUT, reached);
    transfer(a, b, mesh.node(2).address(), 1 << 20);
}

fn nat_of(mesh: &Mesh) -> &Namespace {
    &mesh.namespaces[1]
}
