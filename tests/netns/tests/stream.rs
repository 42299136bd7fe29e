//! Covers: links over TCP between real nodes in namespaces, where nftables drop UDP: falling back,
//! starting that way, returning to UDP, both drivers, `tcp://` peers, and a receiver that stands
//! still. The stream thread alone is tested beside it in the dataplane, the choice of a transport
//! in the overlay.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::UdpSocket;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{TIMEOUT, UNTIMED_LINKS, eventually, file, lab, nft, privileged, transfer};
use hyphae::lab::{Lab, LabNode, Namespace, Spec};
use hyphae_rpc::method::{Peer, ReloadResult};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// Falls back at once and looks for UDP every two seconds.
const CONFIG: &str = "[stream]\nfallback_after_seconds = 1\nupgrade_seconds = 2\n";

/// Labs are heavy: one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Streams {
    lab: Lab,
    config: tempfile::NamedTempFile,
}

impl Streams {
    fn new(driver: Option<&str>, cores: [&str; 3]) -> Self {
        let config = file(CONFIG);
        let lab = lab(&Spec {
            config: Some(config.path().to_owned()),
            driver: driver.map(str::to_owned),
            cores: cores.map(|cores| Some(cores.to_owned())),
            ..Spec::default()
        });
        Self { lab, config }
    }

    fn namespaces(&self) -> &[Namespace; 3] {
        self.lab.namespaces.as_ref().unwrap()
    }

    /// From now on only an event ends a link.
    fn use_long_timeouts(&self) {
        std::fs::write(self.config.path(), format!("{CONFIG}{UNTIMED_LINKS}")).unwrap();
        for node in [&self.lab.client, &self.lab.relay, &self.lab.server] {
            let params = json!({ "dryRun": false });
            let _: ReloadResult = node.client.call("config.reload", params).unwrap();
        }
    }

    /// Drops UDP between the relay and the others.
    fn block_udp(&self) {
        for namespace in self.namespaces() {
            nft(
                namespace,
                "table inet blocked { chain underlay { type filter hook input priority 0; \
                 iifname { \"to-client\", \"to-relay\", \"to-server\" } meta l4proto udp drop; }; }\n",
            );
        }
    }

    fn unblock_udp(&self) {
        for namespace in self.namespaces() {
            nft(namespace, "delete table inet blocked");
        }
    }

    /// Transports of the links that are up, as the relay and the ends see them.
    fn transports(&self) -> Vec<String> {
        let nodes = [&self.lab.client, &self.lab.relay, &self.lab.server];
        let peers = nodes.into_iter().flat_map(peers);
        peers
            .filter(|peer| peer.connection_state == "alive")
            .map(|peer| peer.endpoint.proto)
            .collect()
    }

    fn wait_for(&self, transport: &str) {
        eventually(transport, TIMEOUT, || {
            let used = self.transports();
            used.len() == 4 && used.iter().all(|used| used == transport)
        });
    }
}

fn peers(node: &LabNode) -> Vec<Peer> {
    node.client.call("getPeers", json!({})).unwrap()
}

fn counter(node: &LabNode, name: &str) -> u64 {
    let status = node.status().unwrap();
    let all = status.counters.get(name).or(status.drops.get(name));
    all.copied().unwrap_or(0)
}

fn both_ways(streams: &Streams) {
    let [client, _, server] = streams.namespaces();
    transfer(client, server, streams.lab.server.address(), 2 << 20);
    transfer(server, client, streams.lab.client.address(), 2 << 20);
}

#[test]
fn links_move_to_tcp_and_back_to_udp_and_carry_traffic_all_the_time() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    for (driver, cores) in [
        ("uring", ["any:1", "any:2", "any:1"]),
        ("epoll", ["any:1"; 3]),
    ] {
        let streams = Streams::new(Some(driver), cores);
        let lab = &streams.lab;
        streams.wait_for("udp");
        assert_eq!(counter(&lab.relay, "stream_accepted"), 0);
        streams.block_udp();
        streams.wait_for("tcp");
        lab.wait_until_connected(TIMEOUT).unwrap();
        let before = counter(&lab.relay, "stream_rx_frames");
        both_ways(&streams);
        // What the thread counts is shown a moment later.
        eventually("all frames came over TCP", TIMEOUT, || {
            counter(&lab.relay, "stream_rx_frames") - before > 3000
        });
        assert!(counter(&lab.client, "stream_connected") >= 1);

        // From nothing, without UDP.
        let plane = lab.client.status().unwrap().dataplane.unwrap();
        lab.client.kill(plane.pid).unwrap();
        eventually("the client's links are gone", TIMEOUT, || {
            let now = lab.client.status();
            now.is_ok_and(|now| now.dataplane.is_some_and(|now| now.pid != plane.pid))
        });
        lab.wait_until_connected(TIMEOUT).unwrap();
        streams.wait_for("tcp");
        both_ways(&streams);

        let began = Instant::now();
        streams.unblock_udp();
        streams.wait_for("udp");
        let took = began.elapsed();
        // Without this configuration nobody would look before.
        assert!(took < Duration::from_secs(48), "back to UDP after {took:?}");
        lab.wait_until_connected(TIMEOUT).unwrap();
        both_ways(&streams);
    }
}

#[test]
fn a_tcp_peer_uses_tcp_only() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let streams = Streams::new(None, ["any:1"; 3]);
    let client = &streams.lab.client;
    let url = |scheme| format!("{scheme}://198.18.1.1:9670#{}", streams.lab.relay.key);
    let add = |scheme| {
        let params = json!({ "endpoint": url(scheme) });
        let added: bool = client.client.call("addPeer", params).unwrap();
        assert!(added);
    };
    // The entry of the command line leads there too, so it has to go first.
    let params = json!({ "endpoint": url("udp") });
    let removed: bool = client.client.call("deletePeer", params).unwrap();
    assert!(removed);
    add("tcp");
    streams.lab.wait_until_connected(TIMEOUT).unwrap();
    let at_client = peers(client);
    assert!(
        at_client.iter().all(|peer| peer.endpoint.proto == "tcp"),
        "{at_client:?}"
    );
    let [from, _, to] = streams.namespaces();
    transfer(from, to, streams.lab.server.address(), 1 << 20);
}

#[test]
fn a_receiver_that_stands_still_does_not_hold_up_the_others() {
    if !privileged() {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let streams = Streams::new(None, ["any:1"; 3]);
    let lab = &streams.lab;
    streams.block_udp();
    streams.wait_for("tcp");
    lab.wait_until_connected(TIMEOUT).unwrap();
    // The relay does not get rid of the receiver: whoever is held up by it stays so.
    streams.use_long_timeouts();
    let [_, _, server] = streams.namespaces();
    let stopped = lab.client.status().unwrap().dataplane.unwrap().pid;
    let stopped = Pid::from_raw(i32::try_from(stopped).unwrap());
    let (from, to) = (lab.server.address(), lab.client.address());
    let socket = server
        .run(move || UdpSocket::bind((from, 0)))
        .unwrap()
        .unwrap();
    let full = || counter(&lab.relay, "stream_queue") > 0;
    eventually("the queue is full", TIMEOUT, || {
        kill(stopped, Signal::SIGSTOP).unwrap();
        // Until the relay's routing gives the neighbour up; if that comes first, once more.
        let began = Instant::now();
        while !full() && began.elapsed() < Duration::from_secs(2) {
            for _ in 0..500 {
                socket.send_to(&[0; 1200], (to, 9)).unwrap();
            }
            // The server's link is the way of these frames to the relay.
            let answer = lab.relay.ping(from, TIMEOUT);
            answer.expect("the other peer answers");
        }
        kill(stopped, Signal::SIGCONT).unwrap();
        lab.wait_until_connected(TIMEOUT).unwrap();
        full()
    });
}
