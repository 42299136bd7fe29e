//! Covers: real nodes that find their way by the routing protocol, in a line, a ring and a mesh of
//! eight; cuts, kills, restarts; what idle links cost. Large and hostile networks are in tests/sim,
//! three nodes and their traffic in `relay.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::flow::Flow;
use common::mesh::Mesh;
use common::{PATIENCE, PATIENT_LINKS, binary, eventually, privileged, scrape, transfer};
use hyphae_rpc::method::{Peer, ReloadResult};
use serde_json::json;

/// Nodes are heavy: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn line(nodes: usize) -> Vec<(usize, usize)> {
    (1..nodes).map(|n| (n - 1, n)).collect()
}

#[test]
fn the_ends_of_a_line_find_each_other() {
    if !privileged("the_ends_of_a_line_find_each_other") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mesh = Mesh::started(5, &line(5));
    eventually("all reach all", PATIENCE, || mesh.is_connected());
    let (first, last) = (&mesh.namespaces[0], &mesh.namespaces[4]);
    transfer(first, last, mesh.node(4).address(), 1 << 20);
    let far = mesh.keys[4].address().subnet().to_string();
    let route = mesh
        .routes(0)
        .into_iter()
        .find(|r| r.subnet == far)
        .unwrap();
    assert_eq!(route.next_hop, mesh.keys[1].to_string());
    assert_eq!(route.origin, "dynamic");
}

/// How long pings from one node to another stay unanswered after `event`, until their way is through `by`.
fn outage(mesh: &Mesh, [from, by, to]: [usize; 3], event: impl FnOnce(&Mesh)) -> Duration {
    let far = mesh.keys[to].address();
    let answers = || {
        mesh.node(from)
            .ping(far.ip(), Duration::from_millis(500))
            .is_ok()
    };
    let hop = || {
        let routes = mesh.routes(from);
        let route = routes
            .into_iter()
            .find(|r| r.subnet == far.subnet().to_string());
        route.map(|route| route.next_hop)
    };
    eventually("they reach each other directly", PATIENCE, || {
        hop() == Some(mesh.keys[to].to_string()) && answers()
    });
    event(mesh);
    let start = Instant::now();
    // Pings are also what makes a link that carries nothing back suspicious.
    eventually("they reach each other the other way", PATIENCE, || {
        answers() && hop() == Some(mesh.keys[by].to_string())
    });
    start.elapsed()
}

#[test]
fn a_ring_heals_when_a_cable_is_pulled_and_when_a_link_is_ended() {
    if !privileged("a_ring_heals_when_a_cable_is_pulled_and_when_a_link_is_ended") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut cables = line(4);
    cables.push((0, 3));
    let mut mesh = Mesh::new(4, &cables);
    // Not by waiting for the end of a silence: that takes longer than this test waits.
    (0..4).for_each(|n| mesh.start_with(n, "[session]\ndead_after_seconds = 600\n"));
    eventually("all reach all", PATIENCE, || mesh.is_connected());
    let silent = outage(&mesh, [0, 1, 3], |mesh| mesh.cable(4, "down"));
    println!("a pulled cable: away for {silent:?}");
    mesh.cable(4, "up");
    let direct = || {
        let up: Vec<Peer> = mesh.node(3).client.call("getPeers", json!({})).unwrap();
        up.iter().filter(|p| p.connection_state == "alive").count() == 2
    };
    eventually("the link is back", PATIENCE, direct);
    // Told, as nobody notices by himself any more.
    let down = || {
        let text = scrape(&mesh.namespaces[0]);
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("hyphae_peer_down_total "));
        count.unwrap().parse::<u64>().unwrap()
    };
    for n in 0..4 {
        mesh.configure(n, PATIENT_LINKS);
        let params = json!({ "dryRun": false });
        let _: ReloadResult = mesh.node(n).client.call("config.reload", params).unwrap();
    }
    let before = down();
    let told = outage(&mesh, [0, 1, 3], |mesh| {
        let endpoint = format!("udp://198.18.4.1:9670#{}", mesh.keys[0]);
        let node = &mesh.node(3).client;
        let _: bool = node
            .call("deletePeer", json!({ "endpoint": endpoint }))
            .unwrap();
    });
    println!("an ended link: away for {told:?}");
    assert_eq!(down(), before + 1, "the other end was told");
}

#[test]
fn a_mesh_of_eight_lives_through_churn() {
    if !privileged("a_mesh_of_eight_lives_through_churn") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    // A ring with a chord to the second neighbour of each.
    let cables: Vec<_> = (0..8)
        .flat_map(|n: usize| [(n, (n + 1) % 8), (n, (n + 2) % 8)])
        .map(|(a, b)| (a.min(b), a.max(b)))
        .collect();
    let mut mesh = Mesh::started(8, &cables);
    eventually("all reach all", PATIENCE, || mesh.is_connected());
    eventually("some flows have several ways", PATIENCE, || {
        let mut shared = (0..8).flat_map(|n| mesh.routes(n));
        shared.any(|route| route.next_hops.len() > 1)
    });
    for n in [3, 0, 6] {
        mesh.kill(n);
        eventually("the others reach each other", PATIENCE, || {
            mesh.is_connected()
        });
        mesh.start(n, &[]);
        let start = Instant::now();
        eventually("all reach all again", PATIENCE, || mesh.is_connected());
        println!(
            "node {n} is part of the mesh {:?} after its start",
            start.elapsed()
        );
    }
    mesh.cable(1, "down");
    mesh.cable(9, "down");
    eventually("two cables less", PATIENCE, || mesh.is_connected());
}

#[test]
fn an_idle_link_costs_less_than_a_kilobit_per_second() {
    if !privileged("an_idle_link_costs_less_than_a_kilobit_per_second") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mesh = Mesh::started(3, &line(3));
    // No pings: the end-to-end sessions that they begin are probed while they are young.
    let routed = || (0..3).all(|n| mesh.routes(n).len() == 2);
    eventually("all have routes to all", PATIENCE, routed);
    let sent = || {
        let peers: Vec<Peer> = mesh.node(1).client.call("getPeers", json!({})).unwrap();
        peers.iter().map(|peer| peer.tx_bytes).sum::<u64>()
    };
    // At first links are measured, and a machine that is busy may have one made again: that adds, and nothing takes
    // away, so the best time is that of idle links.
    let mut bits = 0;
    let idle = (0..6).any(|_| {
        let (before, start) = (sent(), Instant::now());
        std::thread::sleep(Duration::from_secs(20));
        // Two links.
        bits = sent().saturating_sub(before) * 8 / 2 / start.elapsed().as_secs();
        println!("{bits} bit/s of UDP payload per idle link and direction");
        bits < 1000
    });
    assert!(idle, "{bits}");
}

#[test]
fn a_drained_relay_can_be_stopped_without_anybody_noticing() {
    if !privileged("a_drained_relay_can_be_stopped_without_anybody_noticing") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut mesh = Mesh::started(4, &[(0, 1), (0, 2), (1, 3), (2, 3)]);
    eventually("all reach all", PATIENCE, || mesh.is_connected());
    let (far, by) = (
        mesh.keys[3].address(),
        [1, 2].map(|n| mesh.keys[n].to_string()),
    );
    let ways = |mesh: &Mesh| -> Vec<String> {
        let routes = mesh.routes(0);
        let route = routes
            .into_iter()
            .find(|r| r.subnet == far.subnet().to_string());
        route.map_or(Vec::new(), |route| route.next_hops)
    };
    eventually("both ways are known", PATIENCE, || ways(&mesh).len() == 2);
    let drain = |mesh: &Mesh, flags: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("drain").args(flags).arg("--socket-dir");
        let sockets = mesh.node(1).directory().join("run");
        let output = command.arg(sockets).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let flow = Flow::start(&mesh.namespaces[0], &mesh.namespaces[3], far.ip());
    flow.goes_on();
    let said = drain(&mesh, &["--timeout", "60"]);
    assert!(said.contains(" 0 frames/s"), "{said}");
    assert_eq!(ways(&mesh), [by[1].clone()]);
    flow.goes_on();
    // It stays so when its control plane dies.
    let control = mesh.node(1).status().unwrap().pid;
    mesh.node(1).kill(control).unwrap();
    eventually("another control plane", PATIENCE, || {
        let status = mesh.node(1).status();
        status.is_ok_and(|status| status.pid != control && status.drained)
    });
    flow.goes_on();
    mesh.kill(1);
    flow.goes_on();
    flow.end();
    mesh.start(1, &[]);
    eventually("it is back", PATIENCE, || mesh.is_connected());
    eventually("drained until somebody ends it", PATIENCE, || {
        ways(&mesh) == [by[1].clone()]
    });
    drain(&mesh, &["--off"]);
    eventually("both ways are used", PATIENCE, || ways(&mesh).len() == 2);
}
