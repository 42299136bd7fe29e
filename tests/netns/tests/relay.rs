//! Covers: two hosts that reach each other only through a relay, with TUN devices, in namespaces:
//! ICMPv6, UDP and TCP, full-size packets, renewal of keys, both drivers, both suites, several
//! workers, death of either plane, garbage at the port, idleness, clean stop. The command line is
//! tested in
//! `cli.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{TIMEOUT, UNTIMED_LINKS, eventually, file, lab, privileged, transfer};
use hyphae::lab::{Lab, LabNode, Namespace, Spec};
use hyphae_rpc::method::Peer;
use serde_json::json;

/// Labs are heavy and some of them measure time: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn namespaces(lab: &Lab) -> &[Namespace; 3] {
    lab.namespaces.as_ref().unwrap()
}

fn ping(from: &Namespace, to: Ipv6Addr, size: u32) -> bool {
    let run = move || {
        Command::new("ping")
            .args([
                "-6",
                "-c",
                "3",
                "-i",
                "0.2",
                "-W",
                "20",
                "-M",
                "do",
                "-s",
                &size.to_string(),
            ])
            .arg(to.to_string())
            .output()
    };
    from.run(run).unwrap().unwrap().status.success()
}

fn handshakes(node: &LabNode) -> u64 {
    let peers: Vec<Peer> = node.client.call("getPeers", json!({})).unwrap();
    peers.iter().map(|peer| peer.handshakes).sum()
}

fn counter(node: &LabNode, name: &str) -> u64 {
    node.status()
        .unwrap()
        .counters
        .get(name)
        .copied()
        .unwrap_or(0)
}

fn dropped(node: &LabNode, reason: &str) -> u64 {
    node.status()
        .unwrap()
        .drops
        .get(reason)
        .copied()
        .unwrap_or(0)
}

fn both_ways(lab: &Lab) {
    let [client, _, server] = namespaces(lab);
    transfer(client, server, lab.server.address(), 8 << 20);
    transfer(server, client, lab.client.address(), 8 << 20);
}

#[test]
fn hosts_talk_through_the_relay_in_packets_of_every_size() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let lab = lab(&Spec::default());
    let [client, _, server] = namespaces(&lab);
    for size in [8, 56, 1000, 1292] {
        assert!(
            ping(client, lab.server.address(), size),
            "{size} bytes to the server"
        );
        assert!(
            ping(server, lab.client.address(), size),
            "{size} bytes to the client"
        );
    }
    assert!(
        !ping(client, lab.server.address(), 1293),
        "more than the MTU does not fit"
    );
    both_ways(&lab);
    eventually("they were counted", TIMEOUT, || {
        counter(&lab.relay, "transit_packets") > 10_000
    });
    assert_eq!(
        counter(&lab.relay, "tx_errors"),
        0,
        "nothing is too large for the underlay"
    );
    // Super-packets go through whole: far fewer reads than packets. How large the sender makes them depends on how fast
    // it is, so once is enough.
    let read = || ["tun_rx_reads", "tun_rx_packets"].map(|name| counter(&lab.client, name));
    eventually("super-packets go through whole", TIMEOUT, || {
        let before = read();
        transfer(client, server, lab.server.address(), 1 << 20);
        let now = read();
        (now[0] - before[0]) * 2 < now[1] - before[1]
    });
}

#[test]
fn both_drivers_and_both_suites_carry_traffic() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let with = |driver: &str, suite: &str| Spec {
        driver: Some(driver.to_owned()),
        suite: Some(suite.to_owned()),
        ..Spec::default()
    };
    for (driver, suite) in [("epoll", "aes-256-gcm"), ("uring", "chacha20-poly1305")] {
        let lab = lab(&with(driver, suite));
        let plane = lab.relay.status().unwrap().dataplane.unwrap();
        assert_eq!(
            plane.driver,
            if driver == "uring" {
                "io_uring"
            } else {
                driver
            }
        );
        let peers: Vec<Peer> = lab.relay.client.call("getPeers", json!({})).unwrap();
        assert!(
            peers
                .iter()
                .all(|peer| peer.suite.as_deref() == Some(suite)),
            "{peers:?}"
        );
        both_ways(&lab);
    }
}

#[test]
fn nodes_with_different_numbers_of_workers_understand_each_other() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let cores = ["any:2", "any:1", "any:3"].map(|cores| Some(cores.to_owned()));
    let lab = lab(&Spec {
        cores,
        ..Spec::default()
    });
    for _ in 0..5 {
        both_ways(&lab);
    }
    eventually("all lanes of both links are active", TIMEOUT, || {
        let peers: Vec<Peer> = lab.relay.client.call("getPeers", json!({})).unwrap();
        let lanes = peers.iter().map(|peer| (peer.lanes, peer.lanes_active));
        let lanes: Vec<_> = lanes.collect();
        lanes.contains(&(2, 2)) && lanes.contains(&(3, 3))
    });
    assert_eq!(counter(&lab.server, "handover_overruns"), 0);
}

#[test]
fn a_node_with_far_more_workers_than_its_peer_sends_from_all_of_them() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let cores = ["any:12", "any:1", "any:1"].map(|cores| Some(cores.to_owned()));
    let lab = lab(&Spec {
        cores,
        ..Spec::default()
    });
    eventually("eight lanes to the large node", TIMEOUT, || {
        let peers: Vec<Peer> = lab.relay.client.call("getPeers", json!({})).unwrap();
        peers
            .iter()
            .any(|peer| (peer.lanes, peer.lanes_active) == (8, 8))
    });
    // Each flow leaves by the TUN queue of its hash: some by that of a worker without a lane.
    eventually("flows of workers without a lane", TIMEOUT, || {
        both_ways(&lab);
        counter(&lab.client, "handovers") > 0
    });
    for _ in 0..5 {
        both_ways(&lab);
    }
    assert_eq!(counter(&lab.client, "handover_overruns"), 0);
}

/// What a node has dropped, by reason.
fn drops(node: &LabNode) -> BTreeMap<String, u64> {
    let mut drops = node.status().unwrap().drops;
    // The kernel of a host looks for routers now and then, from an address that is not the node's.
    drops.remove("tun_source_foreign");
    drops
}

#[test]
fn a_long_connection_lives_through_renewals_of_all_keys() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let file = file(&format!("{UNTIMED_LINKS}rekey_after_seconds = 2\n"));
    let lab = lab(&Spec {
        config: Some(file.path().to_owned()),
        ..Spec::default()
    });
    let [client, _, server] = namespaces(&lab);
    let address = lab.server.address();
    let listener = server
        .run(move || TcpListener::bind((address, 0)))
        .unwrap()
        .unwrap();
    let place = listener.local_addr().unwrap();
    let mut near = client
        .run(move || TcpStream::connect(place))
        .unwrap()
        .unwrap();
    let (mut far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    let all = [&lab.client, &lab.relay, &lab.server];
    let (before, drops_before) = (handshakes(&lab.client), all.map(drops));
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    // A shell session: a key, its echo. A machine that is slow renews later.
    while handshakes(&lab.client) - before < 3 {
        assert!(started.elapsed() < TIMEOUT, "keys are renewed");
        let sent = Instant::now();
        near.write_all(b"k").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        far.write_all(&byte).unwrap();
        near.read_exact(&mut byte).unwrap();
        slowest = slowest.max(sent.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(all.map(drops), drops_before, "slowest echo {slowest:?}");
}

#[test]
fn killing_the_control_plane_loses_nothing_and_the_next_one_takes_over() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    // However long a slow machine takes to start a process: whoever gives up a link does it for another reason.
    let file = file(UNTIMED_LINKS);
    let lab = lab(&Spec {
        config: Some(file.path().to_owned()),
        ..Spec::default()
    });
    let [client, _, server] = namespaces(&lab);
    let before = lab.relay.status().unwrap();
    let generation = before.dataplane.unwrap().generation;
    let made = handshakes(&lab.client) + handshakes(&lab.server);
    let drops_before = drops(&lab.relay);
    std::thread::scope(|scope| {
        let address = lab.server.address();
        let flow = scope.spawn(move || transfer(client, server, address, 256 << 20));
        eventually("the transfer runs", TIMEOUT, || {
            counter(&lab.relay, "transit_packets") > 5000
        });
        lab.relay.kill(before.pid).unwrap();
        let killed = Instant::now();
        eventually("the next control plane has attached", TIMEOUT, || {
            let plane = lab.relay.status().ok().and_then(|status| status.dataplane);
            plane.is_some_and(|plane| plane.generation == generation + 1)
        });
        eprintln!("took over after {:?}", killed.elapsed());
        flow.join().unwrap();
    });
    let after = lab.relay.status().unwrap();
    assert_eq!(
        (after.peers_up, after.routes),
        (2, 2),
        "peers and routes are taken over"
    );
    assert_eq!(drops(&lab.relay), drops_before, "the relay dropped nothing");
    assert_eq!(
        handshakes(&lab.client) + handshakes(&lab.server),
        made,
        "no new handshakes"
    );
    both_ways(&lab);
}

#[test]
fn a_dataplane_that_dies_is_replaced_and_traffic_comes_back() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let lab = lab(&Spec::default());
    let pid = lab.client.status().unwrap().dataplane.unwrap().pid;
    lab.client.kill(pid).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let replaced = || {
        let plane = lab.client.status().ok()?.dataplane?;
        (plane.pid != pid).then_some(())
    };
    while replaced().is_none() {
        assert!(
            Instant::now() < deadline,
            "a new dataplane is there in time; the log: {}",
            lab.client.log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    lab.wait_until_connected(TIMEOUT).unwrap();
    both_ways(&lab);
}

#[test]
fn garbage_at_the_port_is_counted_and_costs_no_memory() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let lab = lab(&Spec::default());
    let [client, _, _] = namespaces(&lab);
    let socket = client
        .run(|| UdpSocket::bind("198.18.1.2:0"))
        .unwrap()
        .unwrap();
    socket.connect("198.18.1.1:9670").unwrap();
    let resident = || {
        let pid = lab.relay.status().unwrap().dataplane.unwrap().pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut blast = |count: usize| {
        for _ in 0..count {
            let len = 1 + (random() % 1400) as usize;
            let mut packet: Vec<u8> = (0..len).map(|_| random() as u8).collect();
            // Every kind of frame, known and unknown, with and without well-formed headers.
            packet[0] = (random() % 8) as u8;
            if len > 4 && random() % 2 == 0 {
                packet[1..4].fill(0);
            }
            // A full socket buffer on the way is fine.
            let _ = socket.send(&packet);
        }
    };
    blast(20_000);
    // Buffers are memory from their first use on, and how many are in use at once is chance: there is an end to that,
    // while what garbage costs it would cost each time.
    let mut grown = 0;
    let settled = (0..10).any(|_| {
        let before = resident();
        blast(100_000);
        grown = resident().saturating_sub(before);
        grown < 2048
    });
    assert!(
        settled,
        "{grown} KiB more after each 100,000 packets of garbage"
    );
    for reason in [
        "frame_too_short",
        "frame_kind_unknown",
        "frame_reserved_bits",
        "link_unknown",
        "handshake_malformed",
    ] {
        eventually(reason, TIMEOUT, || dropped(&lab.relay, reason) > 0);
    }
    both_ways(&lab);
}

#[test]
fn an_idle_node_sleeps() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let lab = lab(&Spec::default());
    let status = lab.relay.status().unwrap();
    let pids = [status.pid, status.dataplane.unwrap().pid];
    let ticks = || -> u64 {
        let of = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<_> = stat.rsplit(')').next().unwrap().split(' ').collect();
            fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
        };
        pids.iter().map(of).sum()
    };
    let per_second = rustix::param::clock_ticks_per_second();
    // What others do to the core makes the same work longer, and never shorter: the best time counts.
    let mut used = 0;
    let asleep = (0..6).any(|_| {
        let (before, began) = (ticks(), Instant::now());
        std::thread::sleep(Duration::from_secs(10));
        used = ticks() - before;
        used * 100 < per_second * began.elapsed().as_secs()
    });
    assert!(
        asleep,
        "{used} ticks of {per_second} per second in 10 s: over 1 %"
    );
}

#[test]
fn a_node_that_is_told_to_stop_leaves_nothing_behind() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let file = file(UNTIMED_LINKS);
    let mut lab = lab(&Spec {
        config: Some(file.path().to_owned()),
        ..Spec::default()
    });
    let device = |namespace: &Namespace| {
        namespace
            .run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap())
            .unwrap()
    };
    assert!(device(&namespaces(&lab)[0]).contains("hyphae0"));
    assert!(
        lab.client.stop().unwrap(),
        "exit code 0: {}",
        lab.client.log()
    );
    // The kernel takes a ring that held it apart when it finds the time.
    eventually("the device is gone", TIMEOUT, || {
        !device(&namespaces(&lab)[0]).contains("hyphae0")
    });
    let left: Vec<_> = std::fs::read_dir(lab.client.directory().join("run"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // The relay was told: it would wait for minutes of silence.
    eventually("the relay knows", TIMEOUT, || {
        lab.relay.status().unwrap().peers_up == 1
    });
}
