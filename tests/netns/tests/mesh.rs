//! Covers: routes among real nodes in a line, a ring and a mesh of eight; cuts, kills, restarts, a removed source
//! address; bytes on idle links. Large and hostile networks are in tests/sim, three nodes and their traffic in
//! `relay.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::flow::Flow;
use common::mesh::Mesh;
use common::{TIMEOUT, UNTIMED_LINKS, binary, command, eventually, privileged, scrape, transfer};
use hyphae_rpc::method::{Peer, ReloadResult};
use serde_json::json;

/// Window in which the bytes of idle links are counted.
const IDLE_WINDOW: Duration = Duration::from_secs(20);

/// Nodes are heavy: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn line(nodes: usize) -> Vec<(usize, usize)> {
    (1..nodes).map(|n| (n - 1, n)).collect()
}

#[test]
fn the_ends_of_a_line_find_each_other() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mesh = Mesh::started(5, &line(5));
    eventually("all reach all", TIMEOUT, || mesh.is_connected());
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
    eventually("they reach each other directly", TIMEOUT, || {
        hop() == Some(mesh.keys[to].to_string()) && answers()
    });
    event(mesh);
    let start = Instant::now();
    // Pings are also what makes a link that carries nothing back suspicious.
    eventually("they reach each other the other way", TIMEOUT, || {
        answers() && hop() == Some(mesh.keys[by].to_string())
    });
    start.elapsed()
}

#[test]
fn a_ring_heals_when_a_cable_is_pulled_and_when_a_link_is_ended() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut cables = line(4);
    cables.push((0, 3));
    let mut mesh = Mesh::new(4, &cables);
    // Not by waiting for the end of a silence: that takes longer than this test waits.
    (0..4).for_each(|n| mesh.start_with(n, "[session]\ndead_after_seconds = 600\n"));
    eventually("all reach all", TIMEOUT, || mesh.is_connected());
    let silent = outage(&mesh, [0, 1, 3], |mesh| mesh.cable(4, "down"));
    println!("a pulled cable: away for {silent:?}");
    mesh.cable(4, "up");
    let direct = || {
        let up: Vec<Peer> = mesh.node(3).client.call("getPeers", json!({})).unwrap();
        up.iter().filter(|p| p.connection_state == "alive").count() == 2
    };
    eventually("the link is back", TIMEOUT, direct);
    // Told, as nobody notices by himself any more.
    let down = || {
        let text = scrape(&mesh.namespaces[0]);
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("hyphae_peer_down_total "));
        count.unwrap().parse::<u64>().unwrap()
    };
    for n in 0..4 {
        mesh.configure(n, UNTIMED_LINKS);
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
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    // A ring with a chord to the second neighbour of each.
    let cables: Vec<_> = (0..8)
        .flat_map(|n: usize| [(n, (n + 1) % 8), (n, (n + 2) % 8)])
        .map(|(a, b)| (a.min(b), a.max(b)))
        .collect();
    let mut mesh = Mesh::started(8, &cables);
    eventually("all reach all", TIMEOUT, || mesh.is_connected());
    eventually("some flows have several ways", TIMEOUT, || {
        let mut shared = (0..8).flat_map(|n| mesh.routes(n));
        shared.any(|route| route.next_hops.len() > 1)
    });
    for n in [3, 0, 6] {
        mesh.kill(n);
        eventually("the others reach each other", TIMEOUT, || {
            mesh.is_connected()
        });
        mesh.start(n, &[]);
        let start = Instant::now();
        eventually("all reach all again", TIMEOUT, || mesh.is_connected());
        println!(
            "node {n} is part of the mesh {:?} after its start",
            start.elapsed()
        );
    }
    mesh.cable(1, "down");
    mesh.cable(9, "down");
    eventually("two cables less", TIMEOUT, || mesh.is_connected());
}

#[test]
fn an_idle_link_costs_less_than_a_kilobit_per_second() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mesh = Mesh::started(3, &line(3));
    // No pings: the end-to-end sessions that they begin are probed while they are young.
    let routed = || (0..3).all(|n| mesh.routes(n).len() == 2);
    eventually("all have routes to all", TIMEOUT, routed);
    let count = || {
        let peers: Vec<Peer> = mesh.node(1).client.call("getPeers", json!({})).unwrap();
        let sum = |of: fn(&Peer) -> u64| peers.iter().map(of).sum::<u64>();
        (sum(|peer| peer.handshakes), sum(|peer| peer.tx_bytes))
    };
    // The search for the path MTU precedes idleness. A handshake, which a busy machine may cause, voids a window.
    std::thread::sleep(IDLE_WINDOW);
    let window = || {
        let ((handshakes, before), start) = (count(), Instant::now());
        std::thread::sleep(IDLE_WINDOW);
        let (again, after) = count();
        let per_link = (after - before) * 8 / 2 / start.elapsed().as_secs();
        (again == handshakes).then_some(per_link)
    };
    let bits = (0..3).find_map(|_| window());
    let bits = bits.expect("a window without a handshake");
    println!("{bits} bit/s of UDP payload per idle link and direction");
    assert!(bits < 1000, "{bits} bit/s");
}

#[test]
fn a_drained_relay_can_be_stopped_without_anybody_noticing() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut mesh = Mesh::started(4, &[(0, 1), (0, 2), (1, 3), (2, 3)]);
    eventually("all reach all", TIMEOUT, || mesh.is_connected());
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
    eventually("both ways are known", TIMEOUT, || ways(&mesh).len() == 2);
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
    assert!(said.contains(" 0 transit frames/s"), "{said}");
    assert_eq!(ways(&mesh), [by[1].clone()]);
    flow.goes_on();
    // It stays so when its control plane dies.
    let control = mesh.node(1).status().unwrap().pid;
    mesh.node(1).kill(control).unwrap();
    eventually("another control plane", TIMEOUT, || {
        let status = mesh.node(1).status();
        status.is_ok_and(|status| status.pid != control && status.drained)
    });
    flow.goes_on();
    mesh.kill(1);
    flow.goes_on();
    flow.end();
    mesh.start(1, &[]);
    eventually("it is back", TIMEOUT, || mesh.is_connected());
    eventually("drained until somebody ends it", TIMEOUT, || {
        ways(&mesh) == [by[1].clone()]
    });
    drain(&mesh, &["--off"]);
    eventually("both ways are used", TIMEOUT, || ways(&mesh).len() == 2);
}

#[test]
fn a_transfer_continues_when_the_source_address_of_its_trains_is_removed() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let mut mesh = Mesh::new(2, &[]);
    let place = |host| (IpAddr::V4(Ipv4Addr::new(198, 18, 1, host)), 24);
    let [sender, receiver] = &mesh.namespaces[..] else {
        panic!("two namespaces")
    };
    sender
        .join("cable1", place(1), receiver, "plug1", place(2))
        .unwrap();
    command(sender, "ip address add 198.18.1.3/24 dev cable1");
    mesh.start_with(0, UNTIMED_LINKS);
    mesh.configure(1, UNTIMED_LINKS);
    let (config, key) = (mesh.file(1), mesh.keys[0]);
    let peer = format!("udp://198.18.1.3:9670#{key}");
    mesh.start(1, &["--config", config.to_str().unwrap(), "--peer", &peer]);
    eventually("both reach each other", TIMEOUT, || mesh.is_connected());
    let [sender, receiver] = &mesh.namespaces[..] else {
        panic!("two namespaces")
    };
    let address = mesh.node(1).address();
    let transfers = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                transfer(sender, receiver, address, 16 << 20);
                transfers.fetch_add(1, Ordering::Relaxed);
            }
        });
        let done = || transfers.load(Ordering::Relaxed);
        eventually("the first transfer", TIMEOUT, || done() > 0);
        command(sender, "ip address del 198.18.1.3/24 dev cable1");
        let before = done();
        // The one that was under way, and one that began after it.
        eventually("two more transfers", TIMEOUT, || done() > before + 1);
        stop.store(true, Ordering::Relaxed);
    });
    let text = scrape(&mesh.namespaces[0]);
    let refused = text.lines().any(|line| {
        line.starts_with("hyphae_dataplane_tx_source_refused_total{") && !line.ends_with(" 0")
    });
    assert!(refused, "frames left from the address that was removed");
}
