//! What moves the panels: ordinary traffic, and one cause for each that ordinary traffic leaves at zero.

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyphae_rpc::Base64;
use hyphae_rpc::method::{
    Destination, MessageIdParams, MessageState, OutgoingMessage, Peer, PopMessageParams,
    PushMessageParams, PushMessageResult, ReloadParams,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::TIMEOUT;
use super::panels::Panels;
use crate::common::mesh::Mesh;
use crate::common::{command, eventually, nft, scrape, transfer};

/// Titles of panels, and what moves them. Whatever it changes, it changes back.
pub(crate) type Cause = (&'static [&'static str], fn(&mut Mesh, &mut Panels<'_>));

/// What ordinary traffic does not do.
pub(crate) const SPECIAL: [Cause; 9] = [
    (&["In flight", "Bytes in flight"], cut_a_message),
    (&["Drained"], drain),
    (&["State files"], fail_to_write),
    (&["Reloads of the configuration", "Program backlog"], reload),
    (&["Dropped by the kernel"], flood),
    (&["Frames in two parts"], shrink_a_cable),
    (&["Loss by peer"], lose_probes),
    (&["Between workers"], cross_workers),
    (
        &[
            "Stream links",
            "Stream connections opened and closed",
            "Frames over streams",
        ],
        use_streams,
    ),
];

/// Three nodes in a row, the last of which knows topics, and a fourth that the relay refuses.
pub(crate) fn start() -> Mesh {
    let mut mesh = Mesh::new(4, &[(0, 1), (1, 2), (1, 3)]);
    mesh.metrics = "0.0.0.0:9469";
    let unwanted = mesh.keys[3];
    mesh.cores = "any:2";
    mesh.start_with(0, FAMILIES);
    mesh.cores = "any:1";
    let list = format!("{FAMILIES}[peering]\ndeny = [\"{unwanted}\"]\n");
    mesh.start_with(1, &list);
    mesh.start_with(2, FAMILIES);
    mesh.start_with(3, "[session]\nretry_max_seconds = 2\n");
    let (receiver, sender) = (mesh.node(2), mesh.keys[0].to_string());
    let [letters, echo] = ["letters", "echo"].map(Base64::encode);
    let nobody = receiver.directory().join("nobody.sock");
    for (method, params) in [
        ("addTopic", json!({ "topic": letters })),
        ("addTopic", json!({ "topic": echo })),
        (
            "addTopicPubkeySource",
            json!({ "topic": echo, "pubkey": sender }),
        ),
        (
            "setTopicForwardSocket",
            json!({ "topic": echo, "socket_path": nobody }),
        ),
    ] {
        let result: Result<Value, _> = receiver.client.call(method, params);
        result.unwrap_or_else(|error| panic!("{method}: {error}"));
    }
    mesh
}

/// Peers with families of their own.
const FAMILIES: &str = "metrics_peers_max = 1\n";

pub(crate) fn connect(mesh: &Mesh) {
    let reaches = |from: usize, to: usize| {
        let address = mesh.keys[to].address().ip();
        let ping = mesh.node(from).ping(address, Duration::from_millis(500));
        ping.is_ok()
    };
    eventually("client and server reach each other", TIMEOUT, || {
        reaches(0, 2) && reaches(2, 0)
    });
    // The hosts too: their devices get address and route a moment later.
    let far = mesh.node(2).address().to_string();
    eventually("the hosts reach each other", TIMEOUT, || {
        answers(mesh, &far)
    });
}

/// Traffic; a node that loses everything and comes back, where nothing has been seen yet; and a peer
/// that goes and comes back.
pub(crate) fn usual(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    traffic(mesh);
    if panels.waits_for("Handshakes under load") {
        mesh.kill(2);
        mesh.start_with(2, FAMILIES);
        connect(mesh);
    }
    peer(mesh, "deletePeer", "udp");
    peer(mesh, "addPeer", "udp");
    connect(mesh);
}

/// Adds or deletes the last node's way to the relay.
fn peer(mesh: &Mesh, method: &str, scheme: &str) {
    let peer = json!({ "endpoint": format!("{scheme}://198.18.2.1:9670#{}", mesh.keys[1]) });
    let done: Result<bool, _> = mesh.node(2).client.call(method, &peer);
    assert!(done.unwrap(), "{method}");
}

/// Something of everything that panels show.
fn traffic(mesh: &Mesh) {
    let far = mesh.node(2).address();
    transfer(&mesh.namespaces[0], &mesh.namespaces[2], far, 1 << 20);
    // Bytes that are no frame are dropped, with a reason.
    let junk = || UdpSocket::bind("127.0.0.1:0")?.send_to(&[0xff; 64], "127.0.0.1:9670");
    mesh.namespaces[1].run(junk).unwrap().unwrap();
    // One topic takes everything, one nothing, and one leads to a server that does not run.
    for topic in ["", "letters", "echo"] {
        push(mesh, topic, b"hello");
    }
    // A session that there was not before.
    let near = mesh.node(1).address();
    mesh.node(0).ping(near, TIMEOUT).unwrap();
    // A call that fails.
    let nonsense = json!({ "endpoint": "nonsense" });
    let refused: Result<Value, _> = mesh.node(1).client.call("deletePeer", nonsense);
    assert!(refused.is_err());
    // A node that does not exist: the host is told so.
    assert!(!answers(mesh, "400:dead::1"));
}

/// Whether the first host gets an answer to a ping.
fn answers(mesh: &Mesh, address: &str) -> bool {
    ping(mesh, 0, &["-s", "56", address])
}

/// Pings from a host; whether an answer came.
fn ping(mesh: &Mesh, from: usize, arguments: &[&str]) -> bool {
    let mut ping = Command::new("ping");
    ping.args(["-6", "-c", "1", "-W", "1"]).args(arguments);
    ping.stdout(Stdio::null()).stderr(Stdio::null());
    let status = mesh.namespaces[from].run(move || ping.status()).unwrap();
    status.unwrap().success()
}

/// Sends a message from the first node to the last; its id.
fn push(mesh: &Mesh, topic: &str, payload: &[u8]) -> String {
    let message = OutgoingMessage {
        dst: Destination::Pk(mesh.keys[2].to_string()),
        topic: Some(topic.into()),
        payload: Base64(payload.to_vec()),
    };
    let params = PushMessageParams {
        message,
        reply_timeout: None,
        wait: None,
    };
    match mesh.node(0).client.push_message(params).unwrap() {
        PushMessageResult::Id { id } => id,
        PushMessageResult::Reply(_) => panic!("no reply was asked for"),
    }
}

/// Whether a message has arrived; it must not end otherwise.
fn arrived(mesh: &Mesh, id: &str) -> bool {
    let id = id.to_owned();
    let info = mesh.node(0).client.get_message_info(MessageIdParams { id });
    match info.unwrap().state {
        MessageState::Pending | MessageState::Sending { .. } => false,
        MessageState::Received | MessageState::Read => true,
        MessageState::Aborted => panic!("the message is lost"),
    }
}

/// A message stands still between its ends, because its cable is pulled when a part of it is there.
fn cut_a_message(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    let mut len = 4 << 20;
    eventually("a message stands still", TIMEOUT * 2, || {
        let content: Vec<u8> = (0..len)
            .map(|at: u32| at.to_le_bytes()[at as usize % 3])
            .collect();
        let id = push(mesh, "large", &content);
        eventually("a part of it is there", TIMEOUT, || {
            value(mesh, 2, "hyphae_messages_incoming") > 0.0 || arrived(mesh, &id)
        });
        mesh.cable(2, "down");
        let mut seen = false;
        eventually("it is seen, or was too fast", TIMEOUT, || {
            let moves = |gauge: &str| {
                let values = panels
                    .prometheus
                    .values(&format!("hyphae_messages_{gauge} > 0"));
                values.is_some_and(|values| !values.is_empty())
            };
            seen = ["outgoing", "outgoing_bytes", "incoming"]
                .into_iter()
                .all(moves);
            // All of it may be there, and only its sender not know.
            seen || value(mesh, 2, "hyphae_messages_incoming") == 0.0 || arrived(mesh, &id)
        });
        if seen {
            panels.look();
        }
        mesh.cable(2, "up");
        eventually("the whole message arrives", TIMEOUT, || arrived(mesh, &id));
        let params = PopMessageParams {
            peek: None,
            timeout: Some(60),
            topic: Some(Base64::encode("large")),
        };
        let popped = mesh.node(2).client.pop_message(params).unwrap().unwrap();
        assert!(popped.payload.0 == content, "every byte");
        len = (len * 2).min(64 << 20);
        seen
    });
    connect(mesh);
}

/// What a node says of itself in a gauge without labels.
fn value(mesh: &Mesh, n: usize, gauge: &str) -> f64 {
    let text = scrape(&mesh.namespaces[n]);
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(name, _)| *name == gauge).unwrap();
    value.parse().unwrap()
}

fn drain(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    let set = |on: bool| {
        let done: Result<Value, _> = mesh.node(2).client.call("node.drain", json!({ "on": on }));
        done.unwrap();
    };
    set(true);
    panels.see("Drained");
    set(false);
}

/// Where a state file belongs there is a directory.
fn fail_to_write(mesh: &mut Mesh, _: &mut Panels<'_>) {
    let node = mesh.node(2);
    let [file, kept] = ["topics.toml", "topics.kept"].map(|name| node.directory().join(name));
    std::fs::rename(&file, &kept).unwrap();
    std::fs::create_dir(&file).unwrap();
    let topic = json!({ "topic": Base64::encode("more") });
    let refused: Result<Value, _> = node.client.call("addTopic", topic);
    assert!(refused.is_err());
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&kept, &file).unwrap();
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// The dataplane of a node.
fn dataplane(mesh: &Mesh, n: usize) -> u32 {
    mesh.node(n).status().unwrap().dataplane.unwrap().pid
}

/// A worker that stands still gets more routes than its ring holds.
fn reload(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    let load = |routes: &str| {
        mesh.configure(2, &format!("{FAMILIES}routes = [{routes}]\n"));
        let params = ReloadParams { dry_run: false };
        let done = mesh.node(2).client.config_reload(params).unwrap();
        assert_eq!(done.applied[0].key, "routes");
    };
    let pid = dataplane(mesh, 2);
    signal(pid, Signal::SIGSTOP);
    let route = |n: u32| format!("\"400:{n:x}::/64={}\",", mesh.keys[1]);
    load(&(0..8000).map(route).collect::<String>());
    panels.see("Program backlog");
    signal(pid, Signal::SIGCONT);
    load("");
}

/// More junk than the socket of a relay that stands still can hold.
fn flood(mesh: &mut Mesh, _: &mut Panels<'_>) {
    let pid = dataplane(mesh, 1);
    let socket = mesh.namespaces[1].run(|| UdpSocket::bind("127.0.0.1:0"));
    let socket = socket.unwrap().unwrap();
    let junk = |len: usize| socket.send_to(&vec![0xff; len], "127.0.0.1:9670").unwrap();
    signal(pid, Signal::SIGSTOP);
    for _ in 0..2000 {
        junk(60_000);
    }
    signal(pid, Signal::SIGCONT);
    // The kernel tells with the next datagram.
    eventually("the relay knows of its loss", TIMEOUT, || {
        junk(64);
        counter(mesh, 1, "socket_overruns") > 0
    });
}

/// A cable carries less than IPv6 promises, and neither side is told.
fn shrink_a_cable(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    let set = |mtu: u32| {
        for (n, device) in [(1, "cable2"), (2, "plug2")] {
            command(
                &mesh.namespaces[n],
                &format!("ip link set {device} mtu {mtu}"),
            );
        }
    };
    set(1280);
    let far = mesh.node(2).address().to_string();
    eventually("frames pass in two parts", TIMEOUT, || {
        // The first of them only tells how much fits.
        ping(mesh, 0, &["-s", "1200", &far]);
        panels.look();
        !panels.waits_for("Frames in two parts")
    });
    set(1500);
}

/// A cable is out for as long as a probe takes to be missed.
fn lose_probes(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    let peer = || -> Peer {
        let peers: Vec<Peer> = mesh.node(2).client.call("getPeers", json!({})).unwrap();
        peers.into_iter().next().unwrap()
    };
    let loses = || peer().loss_permille.is_some_and(|loss| loss > 0);
    mesh.cable(2, "down");
    eventually("a probe is missed", TIMEOUT, || {
        loses() || peer().connection_state != "alive"
    });
    mesh.cable(2, "up");
    // A peer that was given up meanwhile restarts, and so does this.
    eventually("the loss is seen", TIMEOUT, || {
        panels.look();
        !panels.waits_for("Loss by peer") || !loses()
    });
    connect(mesh);
}

/// The relay tells the first node of frames that go nowhere; what its second worker had sent, its first
/// is told.
fn cross_workers(mesh: &mut Mesh, _: &mut Panels<'_>) {
    let (from, far) = (mesh.node(0).address(), mesh.node(2).address());
    eventually(
        "one worker is told what concerns the other",
        TIMEOUT,
        || {
            let flows = mesh.namespaces[0].run(move || -> std::io::Result<Vec<UdpSocket>> {
                (0..32).map(|_| UdpSocket::bind((from, 0))).collect()
            });
            let flows = flows.unwrap().unwrap();
            peer(mesh, "deletePeer", "udp");
            for _ in 0..10 {
                for flow in &flows {
                    // Errors of those before are of no interest.
                    let _ = flow.send_to(&[0; 100], (far, 9));
                }
            }
            peer(mesh, "addPeer", "udp");
            connect(mesh);
            counter(mesh, 0, "handovers") > 0
        },
    );
}

fn counter(mesh: &Mesh, n: usize, name: &str) -> u64 {
    let status = mesh.node(n).status().unwrap();
    status.counters.get(name).copied().unwrap_or(0)
}

/// The last node reaches the relay over TCP only: the relay would come back over UDP by itself.
fn use_streams(mesh: &mut Mesh, panels: &mut Panels<'_>) {
    nft(
        &mesh.namespaces[2],
        "table inet blocked { chain underlay { type filter hook input priority 0; \
         iifname \"plug2\" meta l4proto udp drop; }; }\n",
    );
    peer(mesh, "deletePeer", "udp");
    peer(mesh, "addPeer", "tcp");
    for title in [
        "Stream links",
        "Stream connections opened and closed",
        "Frames over streams",
    ] {
        panels.see(title);
    }
    nft(&mesh.namespaces[2], "delete table inet blocked\n");
    peer(mesh, "deletePeer", "tcp");
    peer(mesh, "addPeer", "udp");
    connect(mesh);
}
