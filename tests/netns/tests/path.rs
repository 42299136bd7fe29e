//! Covers: a way whose middle carries less than IPv6 promises (frames in two parts), what the host
//! hears of packets that do not fit or cannot go, traces. Ordinary ways are tested in `relay.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod common;

use std::net::Ipv6Addr;
use std::process::{Command, Output};

use common::{TIMEOUT, eventually, file, lab, nft, privileged, transfer};
use hyphae::lab::{LabNode, Namespace, Spec};
use hyphae_rpc::Base64;
use hyphae_rpc::method::{
    Destination, OutgoingMessage, PopMessageParams, PushMessageParams, TraceHop, TraceOutcome,
};
use serde_json::json;

fn run(inside: &Namespace, program: &str, arguments: &[&str]) -> Output {
    let (program, arguments) = (program.to_owned(), arguments.join(" "));
    let command = move || {
        let arguments = arguments.split(' ').filter(|argument| !argument.is_empty());
        Command::new(program).args(arguments).output().unwrap()
    };
    inside.run(command).unwrap()
}

fn ping(from: &Namespace, to: Ipv6Addr, size: u32) -> (bool, String) {
    let (to, size) = (to.to_string(), size.to_string());
    let arguments = ["-6", "-c", "3", "-i", "0.3", "-W", "3", "-s", &size, &to];
    let output = run(from, "ping", &arguments);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// Sends a message of this length from one node to another, and takes it out.
fn message(from: &LabNode, to: &LabNode, len: usize) {
    let payload: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    let sent = from.client.push_message(PushMessageParams {
        message: OutgoingMessage {
            dst: Destination::Pk(to.key.to_string()),
            topic: None,
            payload: Base64::from(&payload[..]),
        },
        reply_timeout: None,
        wait: None,
    });
    sent.unwrap();
    let pop = PopMessageParams {
        timeout: Some(TIMEOUT.as_secs()),
        ..PopMessageParams::default()
    };
    let came = to.client.pop_message(pop).unwrap().unwrap();
    assert!(
        came.payload.0 == payload,
        "{} of {len} bytes",
        came.payload.0.len()
    );
}

#[test]
fn packets_are_as_large_as_links_carry_and_smaller_when_one_carries_less() {
    if !privileged() {
        return;
    }
    let lab = lab(&Spec {
        mtu: Some(8848),
        ..Spec::default()
    });
    let [client, relay, server] = lab.namespaces.as_ref().unwrap();
    let address = lab.server.address();
    // 40 bytes of IPv6 and 8 of ICMPv6.
    let whole = |size: u32| ping(client, address, size - 48).0;
    eventually("the largest packets pass", TIMEOUT, || whole(8848));
    transfer(client, server, address, 4 << 20);
    let relayed = || -> u64 {
        let status = lab.relay.status().unwrap();
        status.counters.get("transit_packets").copied().unwrap_or(0)
    };
    let before = relayed();
    message(&lab.client, &lab.server, 4 << 20);
    let frames = relayed() - before;
    // As many at least, and as many answers at most; not as many as of 1340 bytes.
    assert!((475..2500).contains(&frames), "{frames} frames");

    // The link beyond the relay shrinks: the client hears of it from the relay, its bus too.
    for (inside, device) in [(relay, "to-server"), (server, "to-relay")] {
        inside.set_mtu(device, 1500).unwrap();
    }
    message(&lab.client, &lab.server, 4 << 20);
    eventually("what fits passes", TIMEOUT, || whole(1340));
    transfer(client, server, address, 4 << 20);
    // And now the first link.
    for (inside, device) in [(client, "to-relay"), (relay, "to-client")] {
        inside.set_mtu(device, 1300).unwrap();
    }
    message(&lab.client, &lab.server, 1 << 20);
    message(&lab.server, &lab.client, 1 << 20);
}

#[test]
fn a_way_whose_middle_is_small_carries_everything_and_says_so() {
    if !privileged() {
        return;
    }
    let lab = lab(&Spec::default());
    let [client, relay, server] = lab.namespaces.as_ref().unwrap();
    // The middle shrinks under a running network: neither side is told.
    for (inside, device) in [(relay, "to-server"), (server, "to-relay")] {
        let arguments = ["link", "set", device, "mtu", "1280"];
        assert!(run(inside, "ip", &arguments).status.success());
    }
    let address = lab.server.address();
    let counter = |name: &str| {
        let status = lab.relay.status().unwrap();
        status.counters.get(name).copied().unwrap_or(0)
    };
    eventually("frames pass in two parts", TIMEOUT, || {
        ping(client, address, 1200).0 && counter("frames_split") > 0
    });
    eventually("the largest packets pass too", TIMEOUT, || {
        ping(client, address, 1340).0
    });
    transfer(client, server, address, 4 << 20);
    transfer(server, client, lab.client.address(), 4 << 20);
    assert!(counter("frames_joined") > 0);

    let trace = |hop_limit: u8| -> TraceHop {
        let params = json!({
            "address": address.to_string(), "hopLimit": hop_limit, "timeoutMs": 60_000,
        });
        lab.client.client.call("node.trace", params).unwrap()
    };
    let (first, last) = (trace(1), trace(2));
    assert_eq!(
        (first.outcome, first.pubkey),
        (TraceOutcome::HopLimit, lab.relay.key.to_string())
    );
    assert_eq!(
        (last.outcome, last.pubkey),
        (TraceOutcome::Reached, lab.server.key.to_string())
    );

    let (passed, said) = ping(client, "400:dead:beef:1::1".parse().unwrap(), 56);
    assert!(!passed);
    assert!(said.contains("Destination unreachable: No route"), "{said}");
}

#[test]
fn links_and_sessions_come_up_where_large_datagrams_are_dropped_silently() {
    if !privileged() {
        return;
    }
    let config = file("[stream]\nfallback = false\n");
    let lab = lab(&Spec {
        config: Some(config.path().to_owned()),
        ..Spec::default()
    });
    for namespace in lab.namespaces.as_ref().unwrap() {
        nft(
            namespace,
            "table inet small { chain underlay { type filter hook input priority 0; \
             iifname { \"to-client\", \"to-relay\", \"to-server\" } meta l4proto udp \
             meta length > 1000 drop; }; }\n",
        );
    }
    // From nothing: links, routes and the session end to end.
    for node in [&lab.client, &lab.server] {
        let plane = node.status().unwrap().dataplane.unwrap();
        node.kill(plane.pid).unwrap();
        eventually("the node restarts its search", TIMEOUT, || {
            let now = node.status();
            now.is_ok_and(|now| now.dataplane.is_some_and(|now| now.pid != plane.pid))
        });
    }
    lab.wait_until_connected(TIMEOUT).unwrap();
    let [client, _, server] = lab.namespaces.as_ref().unwrap();
    eventually("packets pass", TIMEOUT, || {
        ping(client, lab.server.address(), 600).0 && ping(server, lab.client.address(), 600).0
    });
}
