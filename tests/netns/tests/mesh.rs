//! Covers: real nodes that find their way by the routing protocol, in a line, a ring and a mesh of
//! eight; cuts, kills, restarts; what idle links cost. Large and hostile networks are in tests/sim,
//! three nodes and their traffic in `relay.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::mesh::Mesh;
use common::{binary, eventually, privileged, transfer};
use hyphae_rpc::method::{Peer, Pong};
use serde_json::json;

const CONNECT: Duration = Duration::from_secs(20);

/// Nodes are heavy and some of the tests measure time: one after the other.
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
    eventually("all reach all", CONNECT, || mesh.is_connected());
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

/// The longest time in which pings from one node to another stay unanswered after `event`.
fn outage(mesh: &Mesh, from: usize, to: usize, event: impl FnOnce(&Mesh)) -> Duration {
    let address = mesh.keys[to].address().ip();
    let answers = || {
        mesh.node(from)
            .ping(address, Duration::from_millis(100))
            .is_ok()
    };
    eventually("they reach each other", CONNECT, answers);
    event(mesh);
    let start = Instant::now();
    let (mut last, mut longest) = (start, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(6) {
        if answers() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    longest.max(last.elapsed())
}

#[test]
fn a_ring_heals_when_a_cable_is_pulled_and_when_a_link_is_ended() {
    if !privileged("a_ring_heals_when_a_cable_is_pulled_and_when_a_link_is_ended") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut cables = line(4);
    cables.push((0, 3));
    let mesh = Mesh::started(4, &cables);
    eventually("all reach all", CONNECT, || mesh.is_connected());
    let silent = outage(&mesh, 0, 3, |mesh| mesh.cable(4, "down"));
    println!("a pulled cable: away for {silent:?}");
    assert!(silent < Duration::from_secs(5), "{silent:?}");
    mesh.cable(4, "up");
    let direct = || {
        let up: Vec<Peer> = mesh.node(3).client.call("getPeers", json!({})).unwrap();
        up.iter().filter(|p| p.connection_state == "alive").count() == 2
    };
    eventually("the link is back", CONNECT, direct);
    let told = outage(&mesh, 0, 3, |mesh| {
        let endpoint = format!("udp://198.18.4.1:9670#{}", mesh.keys[0]);
        let node = &mesh.node(3).client;
        let _: bool = node
            .call("deletePeer", json!({ "endpoint": endpoint }))
            .unwrap();
    });
    println!("an ended link: away for {told:?}");
    assert!(told < Duration::from_secs(2), "{told:?}");
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
    eventually("all reach all", CONNECT, || mesh.is_connected());
    let shared = (0..8).flat_map(|n| mesh.routes(n));
    assert!(
        shared.filter(|route| route.next_hops.len() > 1).count() > 0,
        "some flows have several ways"
    );
    for n in [3, 0, 6] {
        mesh.kill(n);
        eventually("the others reach each other", CONNECT, || {
            mesh.is_connected()
        });
        mesh.start(n, &[]);
        let start = Instant::now();
        eventually("all reach all again", CONNECT, || mesh.is_connected());
        println!(
            "node {n} is part of the mesh {:?} after its start",
            start.elapsed()
        );
    }
    mesh.cable(1, "down");
    mesh.cable(9, "down");
    eventually("two cables less", CONNECT, || mesh.is_connected());
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
    eventually("all have routes to all", CONNECT, routed);
    let sent = || {
        let peers: Vec<Peer> = mesh.node(1).client.call("getPeers", json!({})).unwrap();
        peers.iter().map(|peer| peer.tx_bytes).sum::<u64>()
    };
    // What the links are measured with at first is over by then.
    std::thread::sleep(Duration::from_secs(5));
    let (before, start) = (sent(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    // Two links.
    let bits = (sent() - before) * 8 / 2 / start.elapsed().as_secs();
    println!("{bits} bit/s of UDP payload per idle link and direction");
    assert!(bits < 1000, "{bits}");
}

/// Ends what waits for it, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_drained_relay_can_be_stopped_without_anybody_noticing() {
    if !privileged("a_drained_relay_can_be_stopped_without_anybody_noticing") {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut mesh = Mesh::started(4, &[(0, 1), (0, 2), (1, 3), (2, 3)]);
    eventually("all reach all", CONNECT, || mesh.is_connected());
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
    eventually("both ways are known", CONNECT, || !ways(&mesh).is_empty());
    let lost = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    let drain = |mesh: &Mesh, flags: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("drain").args(flags).arg("--socket-dir");
        let sockets = mesh.node(1).directory().join("run");
        let output = command.arg(sockets).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let client = mesh.node(0).client.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let params = json!({ "address": far.to_string(), "timeoutMs": 500 });
            while !done.load(Ordering::Relaxed) {
                if client.call::<Pong>("node.ping", &params).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let _over = Over(&done);
        let said = drain(&mesh, &["--timeout", "20"]);
        assert!(said.contains("0 frames/s"), "{said}");
        assert_eq!(ways(&mesh), [by[1].clone()]);
        // It stays so when its control plane dies.
        let control = mesh.node(1).status().unwrap().pid;
        mesh.node(1).kill(control).unwrap();
        eventually("another control plane", CONNECT, || {
            let status = mesh.node(1).status();
            status.is_ok_and(|status| status.pid != control && status.drained)
        });
        mesh.kill(1);
        std::thread::sleep(Duration::from_secs(1));
    });
    assert_eq!(lost.load(Ordering::Relaxed), 0);
    mesh.start(1, &[]);
    eventually("it is back", CONNECT, || mesh.is_connected());
    assert_eq!(
        ways(&mesh),
        [by[1].clone()],
        "drained until somebody ends it"
    );
    drain(&mesh, &["--off"]);
    eventually("both ways are used", CONNECT, || ways(&mesh).len() == 2);
}
