//! Covers: the configuration of a relay changes while traffic flows through it: peers, lists, filters,
//! topics, log level; broken files; by RPC, by the command line and by SIGHUP. No packet of a flow that
//! none of it concerns is lost. What a gateway announces and a host reaches for, changed live.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use common::flow::Flow;
use common::mesh::Mesh;
use common::{TIMEOUT, binary, command, eventually, privileged, scrape, transfer};
use hyphae_rpc::method::{Peer, ReloadParams, ReloadResult, Status};
use hyphae_rpc::{ClientError, code};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const HUB: usize = 1;
const NEWCOMER: usize = 3;

/// What the hub's file says besides this test's changes.
const COMMON: &str = "log_level = \"info\"\n";

fn has_peer(mesh: &Mesh, state: &str) -> bool {
    let peers: Vec<Peer> = mesh.node(HUB).client.call("getPeers", json!({})).unwrap();
    let key = mesh.keys[NEWCOMER].to_string();
    peers
        .iter()
        .any(|peer| peer.connection_state == state && peer.pubkey.as_ref() == Some(&key))
}

fn reload(mesh: &Mesh, dry_run: bool) -> Result<ReloadResult, ClientError> {
    mesh.node(HUB)
        .client
        .config_reload(ReloadParams { dry_run })
}

fn keys(changes: &[hyphae_rpc::method::ConfigChange]) -> Vec<&str> {
    changes.iter().map(|change| change.key.as_str()).collect()
}

fn reloads(mesh: &Mesh, result: &str) -> u64 {
    let text = scrape(&mesh.namespaces[HUB]);
    let line = format!("hyphae_config_reloads_total{{result=\"{result}\"}} ");
    let line = text.lines().find_map(|other| other.strip_prefix(&line));
    line.unwrap().parse().unwrap()
}

fn hang_up(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
}

/// Process number of the supervisor of a plane.
fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn a_relay_is_reconfigured_under_traffic_and_loses_none_of_it() {
    if !privileged() {
        return;
    }
    let mut mesh = Mesh::new(4, &[(HUB, 0), (HUB, 2)]);
    let place = |host| (IpAddr::V4(Ipv4Addr::new(198, 18, 9, host)), 24);
    mesh.namespaces[HUB]
        .join(
            "spare",
            place(1),
            &mesh.namespaces[NEWCOMER],
            "uplink",
            place(2),
        )
        .unwrap();
    mesh.start_with(HUB, COMMON);
    for n in [0, 2, NEWCOMER] {
        mesh.start(n, &[]);
    }
    let reached = |mesh: &Mesh, to: usize| {
        let address = mesh.keys[to].address().ip();
        mesh.node(0).ping(address, Duration::from_secs(1)).is_ok()
    };
    eventually("both ends reach each other", TIMEOUT, || reached(&mesh, 2));
    let start = mesh.node(HUB).status().unwrap();
    let flow = Flow::start(
        &mesh.namespaces[0],
        &mesh.namespaces[2],
        mesh.node(2).address(),
    );
    flow.goes_on();

    // A peer is added; a setting that needs a restart is named and left alone.
    let peer = format!("udp://198.18.9.2:9670#{}", mesh.keys[NEWCOMER]);
    let with_peer = format!("peers = [\"{peer}\"]\nlisten = \"0.0.0.0:1\"\n{COMMON}");
    mesh.configure(HUB, &with_peer);
    let planned = reload(&mesh, true).unwrap();
    assert_eq!(keys(&planned.applied), ["peers"]);
    assert_eq!(planned.applied[0].old.as_deref(), Some("[]"));
    assert!(planned.applied[0].new.as_ref().unwrap().contains(&peer));
    // The flag says where it listens, so the file does not matter.
    assert_eq!(keys(&planned.restart), [""; 0]);
    assert!(!has_peer(&mesh, "alive"), "a dry run changes nothing");
    mesh.configure(HUB, &format!("{with_peer}[stream]\nlisten = false\n"));
    let done = reload(&mesh, false).unwrap();
    assert_eq!(
        (keys(&done.applied), keys(&done.restart)),
        (vec!["peers"], vec!["stream.listen"])
    );
    eventually("the new peer is up", TIMEOUT, || has_peer(&mesh, "alive"));
    eventually("it is reached", TIMEOUT, || reached(&mesh, NEWCOMER));
    assert_eq!(
        keys(&reload(&mesh, false).unwrap().restart),
        ["stream.listen"],
        "until the restart"
    );
    flow.goes_on();

    // A filter: its prefix is told to nobody any more, while the link stays.
    let subnet = mesh.keys[NEWCOMER].address().subnet();
    let known = |mesh: &Mesh| {
        mesh.routes(0)
            .iter()
            .any(|route| route.subnet == subnet.to_string())
    };
    assert!(known(&mesh));
    let rule = format!("export = [{{ action = \"refuse\", prefix = \"{subnet}\" }}]");
    mesh.configure(
        HUB,
        &format!("peers = [\"{peer}\"]\n{COMMON}[routing]\n{rule}\n"),
    );
    assert_eq!(
        keys(&reload(&mesh, false).unwrap().applied),
        ["routing.export"]
    );
    eventually("the route ends at the neighbour", TIMEOUT, || !known(&mesh));
    assert!(has_peer(&mesh, "alive"));
    mesh.configure(HUB, &format!("peers = [\"{peer}\"]\n{COMMON}"));
    reload(&mesh, false).unwrap();
    eventually("the route is told again", TIMEOUT, || known(&mesh));
    flow.goes_on();

    // Topics and the deny-list, by SIGHUP to the supervisor, which nothing else notices.
    let directory = mesh.node(HUB).directory().to_owned();
    let topics = "default_action = \"reject\"\n[topics.logs]\n";
    std::fs::write(directory.join("topics.toml"), topics).unwrap();
    let denied = format!("{COMMON}[peering]\ndeny = [\"{}\"]\n", mesh.keys[NEWCOMER]);
    mesh.configure(HUB, &denied);
    let before = reloads(&mesh, "done");
    hang_up(parent(start.pid));
    eventually("SIGHUP reloads", TIMEOUT, || {
        reloads(&mesh, "done") == before + 1
    });
    let client = &mesh.node(HUB).client;
    assert!(!client.get_default_topic_action().unwrap());
    assert_eq!(client.get_topics().unwrap().len(), 1);
    eventually("the peer is gone", TIMEOUT, || !has_peer(&mesh, "alive"));
    eventually("the log says old → new", TIMEOUT, || {
        let log = mesh.node(HUB).log();
        let mut lines = log.lines();
        let from_to = |line: &str| {
            line.contains("key=\"peers\"") && line.contains("new=\"[]\"") && line.contains(&peer)
        };
        lines.any(from_to) && log.contains("topics.toml: logs")
    });
    flow.goes_on();

    // Broken: nothing of it holds, not even what is right in it. All that is wrong is told.
    mesh.configure(
        HUB,
        &format!("{COMMON}[peering]\npeers_max = 0\ninbound = 1\ndeny = []\n"),
    );
    let before = reloads(&mesh, "refused");
    let Err(ClientError::Call(error)) = reload(&mesh, false) else {
        panic!("a broken file is refused")
    };
    assert_eq!(error.code, code::CONFIG_REFUSED);
    for expected in [
        "line 3: peering.peers_max",
        "line 4: peering.inbound",
        "all stays",
    ] {
        assert!(error.message.contains(expected), "{}", error.message);
    }
    hang_up(start.pid);
    eventually("both refusals are counted", TIMEOUT, || {
        reloads(&mesh, "refused") == before + 2
    });
    mesh.configure(HUB, &denied);
    std::fs::write(
        directory.join("topics.toml"),
        "default_action = \"perhaps\"\n",
    )
    .unwrap();
    let mut command = Command::new(binary());
    command
        .args(["reload", "--socket-dir"])
        .arg(directory.join("run"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("topics.toml") && said.contains("perhaps"),
        "{said}"
    );
    assert_eq!(client.get_topics().unwrap().len(), 1, "the topics in force");
    assert!(!has_peer(&mesh, "alive"), "still denied");
    std::fs::write(directory.join("topics.toml"), topics).unwrap();

    // The level of both planes. A signal to the dataplane itself ends nothing.
    let loud = denied.replace("info", "debug");
    mesh.configure(HUB, &loud);
    let said = command.output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("log_level: \"info\" → \"debug\""), "{said}");
    let dataplane = start.dataplane.as_ref().unwrap().pid;
    hang_up(dataplane);
    eventually("the dataplane has read it", TIMEOUT, || {
        let log = mesh.node(HUB).log();
        log.lines()
            .any(|line| line.contains("log level") && line.contains("debug"))
    });
    flow.goes_on();
    let end = mesh.node(HUB).status().unwrap();
    assert_eq!(end.pid, start.pid, "the same control plane");
    assert_eq!(end.dataplane.unwrap().pid, dataplane, "the same dataplane");
    flow.end();
}

#[test]
fn a_gateway_comes_and_goes_by_reloads_of_gateway_relay_and_host() {
    if !privileged() {
        return;
    }
    const SITE: &str = "fd12:3456::/48";
    let (gateway, relay, host) = (0, 1, 2);
    let mut mesh = Mesh::new(3, &[(gateway, relay), (relay, host)]);
    (0..3).for_each(|n| mesh.start_with(n, COMMON));
    let inside: Ipv6Addr = "fd12:3456::1".parse().unwrap();
    let address = "ip -6 address add fd12:3456::1/128 dev lo nodad";
    command(&mesh.namespaces[gateway], address);
    let before: Vec<_> = (0..3).map(|n| mesh.node(n).status().unwrap()).collect();
    // Applied live, and nothing else.
    let set = |n: usize, key: &str, value: &str| {
        mesh.configure(n, &format!("{COMMON}[routing]\n{key} = {value}\n"));
        let client = &mesh.node(n).client;
        let done = client.config_reload(ReloadParams { dry_run: false });
        let done = done.unwrap();
        assert_eq!(keys(&done.applied), [format!("routing.{key}")]);
        assert_eq!(keys(&done.restart), [""; 0]);
    };
    let known = |n: usize| mesh.routes(n).iter().any(|route| route.subnet == SITE);
    let routed = || {
        let routes = command(&mesh.namespaces[host], "ip -6 route show table all");
        routes.contains(&format!("{SITE} dev hyphae0"))
    };
    let reached = || {
        transfer(
            &mesh.namespaces[host],
            &mesh.namespaces[gateway],
            inside,
            1 << 16,
        )
    };
    eventually("the ends know each other", TIMEOUT, || {
        mesh.node(host)
            .ping(mesh.keys[gateway].address().ip(), Duration::from_secs(1))
            .is_ok()
    });

    let announced = format!("[\"{SITE}\"]");
    set(gateway, "announce", &announced);
    let rule = "[{ action = \"accept\", prefix = \"fd12::/16\" }]";
    set(relay, "import", rule);
    eventually("the relay passes it on", TIMEOUT, || known(relay));
    assert!(!routed(), "the host has not asked for it");
    set(host, "reach", "[\"fd12::/16\"]");
    eventually("the host has a route", TIMEOUT, routed);
    reached();

    set(host, "reach", "[]");
    eventually("it does not want it any more", TIMEOUT, || !routed());
    assert!(known(relay), "the others are not asked");
    set(host, "reach", &announced);
    eventually("it wants it again", TIMEOUT, routed);
    reached();

    set(gateway, "announce", "[]");
    eventually("the gateway takes it back", TIMEOUT, || {
        !routed() && !known(relay) && !known(host)
    });
    set(gateway, "announce", &announced);
    eventually("and gives it again", TIMEOUT, routed);
    reached();
    for (n, before) in before.iter().enumerate() {
        let now = mesh.node(n).status().unwrap();
        let pids = |status: &Status| (status.pid, status.dataplane.as_ref().unwrap().pid);
        assert_eq!(pids(&now), pids(before), "nothing was restarted");
    }
}
