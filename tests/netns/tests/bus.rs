//! Covers: the message layer end to end, with real nodes without TUN devices and privileges, once as a
//! triangle of peers and once across a relay that is no end: messages in all directions, sources of
//! topics, administration over the bus, socket proxies with many connections, kill and restart. Part
//! of it goes through the command line, part through the typed client. Listeners and errors of single
//! methods are tested with the control plane; loss and reordering with the bus engine.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "bus/mesh.rs"]
mod mesh;
#[path = "bus/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyphae_rpc::message::{Response, code};
use hyphae_rpc::method::{
    AcceptParams, BusCallParams, MessageState, OutboundSocketParams, PubkeyParams,
    PushMessageParams, PushMessageReplyParams, PushMessageResult, TopicParams, TopicSubnetParams,
    TraceParams,
};
use hyphae_rpc::{Base64, ClientError};
use serde_json::{Value, json};

use mesh::{Mesh, Node, Shape, outgoing, pattern, text};
use server::{FRAMINGS, ask, echo};

/// Clients of a socket at once; as many as a node asks one server for at once.
const CLIENTS: usize = 64;

/// Three nodes are six processes: one mesh after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn three_nodes_exchange_messages_in_all_six_directions() {
    let _alone = alone();
    messages(&Mesh::start(Shape::Triangle));
}

#[test]
fn a_listed_key_is_delivered_and_another_is_rejected() {
    let _alone = alone();
    sources(&Mesh::start(Shape::Triangle));
}

#[test]
fn nodes_administer_each_other_over_the_bus() {
    let _alone = alone();
    let mesh = Mesh::start(Shape::Triangle);
    let [first, second, third] = &mesh.nodes;
    administration(first, second, third);
    administration(second, first, third);
    lock_out(first, second);
}

#[test]
fn sixty_four_connections_at_once_get_their_own_answers_byte_for_byte() {
    let _alone = alone();
    let mesh = Mesh::start(Shape::Triangle);
    sockets(&mesh, [0, 1]);
}

#[test]
fn a_killed_node_comes_back_with_every_setting_and_message() {
    let _alone = alone();
    restart(&mut Mesh::start(Shape::Triangle));
}

#[test]
fn the_same_across_a_relay_that_is_not_an_end() {
    let _alone = alone();
    let mut mesh = Mesh::start(Shape::Line);
    let [left, relay, right] = &mesh.nodes;
    for (from, to) in [(left, right), (right, left)] {
        let first = from.client.node_trace(TraceParams {
            address: to.address.clone(),
            hop_limit: 1,
            timeout_ms: 10_000,
        });
        assert_eq!(first.unwrap().pubkey, relay.key, "the relay is on the way");
    }
    messages(&mesh);
    sources(&mesh);
    administration(left, right, relay);
    administration(right, left, relay);
    sockets(&mesh, [0, 2]);
    sockets(&mesh, [2, 0]);
    assert_eq!(relay.pop(None, None), None, "nothing stays in between");
    restart(&mut mesh);
}

/// From each to each: small with the command line, large and answered with the client.
fn messages(mesh: &Mesh) {
    for (seed, from) in mesh.nodes.iter().enumerate() {
        for to in mesh.nodes.iter().filter(|to| to.key != from.key) {
            let greeting = format!("from {} to {}", from.key, to.key);
            let send = [
                "message",
                "send",
                &to.key,
                &greeting,
                "--topic",
                "greetings",
            ];
            from.printed(&[&send[..], &["--wait"]].concat());
            let receive = ["message", "receive", "--topic", "greetings", "--json"];
            let received: Value = serde_json::from_str(&to.printed(&receive)).unwrap();
            assert_eq!(received["srcPk"], from.key.as_str());
            assert_eq!(received["payload"], Base64::encode(&greeting));

            let large = pattern(seed, 3 << 20);
            let id = from.push(to, "", &large);
            let popped = to.pop(None, Some(60)).unwrap();
            assert!(popped.payload.0 == large, "every byte");
            assert_eq!((popped.id, popped.src_ip), (id, from.address.clone()));

            reply(from, to);
        }
    }
    for node in &mesh.nodes {
        assert_eq!(node.pop(None, None), None, "each message comes once");
    }
}

fn reply(from: &Node, to: &Node) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let question = to.pop(Some("questions"), Some(60)).unwrap();
            let answer = PushMessageReplyParams {
                id: question.id,
                message: outgoing(from, "", b"forty-two"),
                ack: None,
            };
            assert!(to.client.push_message_reply(answer).unwrap());
        });
        let asked = from.client.push_message(PushMessageParams {
            message: outgoing(to, "questions", b""),
            reply_timeout: Some(60),
            wait: None,
        });
        let PushMessageResult::Reply(answer) = asked.unwrap() else {
            panic!("a reply comes");
        };
        assert_eq!(answer.payload.0, b"forty-two");
        assert_eq!(answer.src_pk, to.key);
    });
}

/// Only one of two senders is listed.
fn sources(mesh: &Mesh) {
    let [listed, unlisted, receiver] = [0, 1, 2].map(|n| &mesh.nodes[n]);
    receiver.printed(&["topic", "add", "letters"]);
    let send = [
        "message",
        "send",
        &receiver.key,
        "--topic",
        "letters",
        "--wait",
    ];
    for sender in [listed, unlisted] {
        let output = sender.hyphae(&[&send[..], &["nobody is listed"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("rejected"), "{error}");
    }
    receiver.printed(&["topic", "pubkey-source", "add", "letters", &listed.key]);
    listed.printed(&[&send[..], &["listed"]].concat());
    let id = unlisted.push(receiver, "letters", b"unlisted");
    let info = unlisted.settled(&id);
    assert_eq!(info.state, MessageState::Aborted);
    assert_eq!(info.reason.as_deref(), Some("rejected"));
    let raw = ["message", "receive", "--topic", "letters", "--raw"];
    assert_eq!(receiver.printed(&raw), "listed");
    assert_eq!(
        receiver.pop(None, None),
        None,
        "nothing of the unlisted sender"
    );
    // Taken off the list: like any other topic again.
    receiver.printed(&["topic", "remove", "letters"]);
    unlisted.printed(&[&send[..], &["open"]].concat());
    assert_eq!(receiver.printed(&raw), "open");
}

fn bus_call(from: &Node, to: &Node, method: &str, params: Value) -> Response {
    let params = BusCallParams {
        dst_pubkey: Some(to.key.clone()),
        method: method.to_owned(),
        params,
        id: Some(json!("mine")),
        timeout_secs: Some(60),
        ..BusCallParams::default()
    };
    let response = from.client.admin_bus_call(params).unwrap();
    assert_eq!(response.id, "mine");
    response
}

fn refusal(response: Response) -> i64 {
    response.error.unwrap().code
}

/// `admin` becomes administrator of `node`; `other` does not.
fn administration(admin: &Node, node: &Node, other: &Node) {
    let call = ["admin", "call", &node.key, "getInfo"];
    assert_eq!(admin.refused(&call), code::DENIED, "nobody is, at first");
    node.printed(&["admin", "add", &admin.key]);
    assert_eq!(admin.refused(&call), code::DENIED, "no method is allowed");
    node.printed(&["admin", "patterns", "get*", "add*Topic", "admin.*"]);
    let info: Value = serde_json::from_str(&admin.printed(&call)).unwrap();
    assert_eq!(info["nodePubkey"], node.key.as_str());
    assert_eq!(other.refused(&call), code::DENIED, "another key");

    let topic = json!({ "topic": Base64::encode("remote") });
    let denied = bus_call(admin, node, "removeTopic", topic.clone());
    assert_eq!(refusal(denied), code::DENIED, "another method");
    let added = bus_call(admin, node, "addTopic", topic.clone());
    assert_eq!(added.result, Some(json!(true)));
    assert!(node.printed(&["topic", "list"]).contains("remote"));
    node.printed(&["topic", "remove", "remote"]);

    let further = bus_call(
        admin,
        node,
        "admin.busCall",
        json!({ "dst_pubkey": other.key, "method": "getInfo" }),
    );
    assert_eq!(refusal(further), code::DENIED, "no chain of calls");
    // The reserved topic is no way around.
    let smuggled = node.client.add_topic(TopicParams {
        topic: Base64::encode("mycelium.admin"),
    });
    assert!(matches!(smuggled, Err(ClientError::Call(error)) if error.code == code::BAD_TOPIC));
    let push = [
        "message",
        "send",
        &node.key,
        "{}",
        "--topic",
        "mycelium.admin",
    ];
    assert_eq!(admin.refused(&push), code::PUSH_REFUSED);
    assert_eq!(node.pop(None, None), None);
    node.printed(&["admin", "remove", &admin.key]);
    node.printed(&["admin", "patterns", "--clear"]);
}

/// What the bus must not do, and the operator may.
fn lock_out(admin: &Node, node: &Node) {
    node.printed(&["admin", "add", &admin.key]);
    node.printed(&["admin", "patterns", "admin.*"]);
    let itself = json!({ "pubkey": admin.key });
    let empty = json!({ "patterns": [] });
    for (method, params) in [
        ("admin.remove", itself.clone()),
        ("admin.setMethodPatterns", empty),
    ] {
        assert_eq!(refusal(bus_call(admin, node, method, params)), code::DENIED);
    }
    // With a successor it may go.
    let successor = PubkeyParams {
        pubkey: node.key.clone(),
    };
    let added = bus_call(admin, node, "admin.add", json!(successor));
    assert_eq!(added.result, Some(json!(true)));
    let removed = bus_call(admin, node, "admin.remove", itself);
    assert_eq!(removed.result, Some(json!(true)));
    assert_eq!(
        refusal(bus_call(admin, node, "admin.list", Value::Null)),
        code::DENIED
    );
    let left = node.client.admin_list().unwrap();
    assert_eq!(left.as_slice(), std::slice::from_ref(&node.key));
    node.printed(&["admin", "remove", &node.key]);
    node.printed(&["admin", "patterns", "--clear"]);
    assert!(node.client.admin_list().unwrap().is_empty());
    assert!(node.client.admin_get_method_patterns().unwrap().is_empty());
}

/// A server of one node and a socket of another that leads to it. Gives that socket.
fn tunnel(mesh: &Mesh, [from, to]: [usize; 2], framing: &'static str, together: usize) -> PathBuf {
    let topic = format!("echo {framing}");
    let server = mesh.path(&format!("server-{to}-{framing}-{together}"));
    let socket = mesh.path(&format!("remote-{from}-{framing}-{together}"));
    echo(&server, framing, together);
    let [from, to] = [from, to].map(|n| &mesh.nodes[n]);
    to.printed(&["topic", "add", &topic]);
    to.printed(&["topic", "pubkey-source", "add", &topic, &from.key]);
    let forward = ["topic", "forward", "set", &topic, text(&server)];
    to.printed(
        &[
            &forward[..],
            &["--framing", framing, "--reply-timeout", "90"],
        ]
        .concat(),
    );
    from.printed(&["topic", "add", &topic]);
    let outbound = ["topic", "outbound", "set", &topic, &to.key, text(&socket)];
    from.printed(&[&outbound[..], &["--framing", framing]].concat());
    socket
}

/// Programs on `from` talk to servers on `to`, in every framing.
fn sockets(mesh: &Mesh, [from, to]: [usize; 2]) {
    for framing in FRAMINGS {
        let socket = tunnel(mesh, [from, to], framing, CLIENTS);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let socket = &socket;
                scope.spawn(move || {
                    // One byte, less and more than a packet, and some that take many.
                    let sizes = [1, 900 + 17 * client, 1500 * client];
                    let requests = sizes.map(|size| pattern(client, size.max(1)));
                    ask(socket, framing, &requests);
                });
            }
        });
        let topic = format!("echo {framing}");
        mesh.nodes[from].printed(&["topic", "outbound", "remove", &topic]);
        assert!(!socket.exists(), "the socket goes with its setting");
        for node in [from, to] {
            mesh.nodes[node].printed(&["topic", "remove", &topic]);
        }
    }
    assert_eq!(mesh.nodes[to].pop(None, None), None, "all were answered");
}

/// The last node is killed while others send to it.
fn restart(mesh: &mut Mesh) {
    // Its own socket leads to a server of the first node, and the other way round.
    let socket = tunnel(mesh, [2, 0], "http", 1);
    let back = tunnel(mesh, [0, 2], "json-lines", 1);
    let [first, second, node] = &mesh.nodes;
    let client = &node.client;
    assert!(
        client
            .set_default_topic_action(AcceptParams { accept: false })
            .unwrap()
    );
    let strange = Base64::encode([0, 0xff, b'\n', b'"']);
    for topic in [strange, Base64::encode("letters")] {
        let subnet = "400::/7".to_owned();
        client
            .add_topic(TopicParams {
                topic: topic.clone(),
            })
            .unwrap();
        client
            .add_topic_source(TopicSubnetParams { topic, subnet })
            .unwrap();
    }
    node.printed(&["admin", "add", &first.key]);
    node.printed(&["admin", "patterns", "get*"]);
    node.add_peer("udp://127.0.0.1:9");
    let taken = client.set_topic_outbound_socket(OutboundSocketParams {
        topic: Base64::encode("letters"),
        dst: outgoing(first, "", b"").dst,
        path: text(&node.state_file("topics.toml")).to_owned(),
        framing: None,
    });
    let Err(ClientError::Call(error)) = taken else {
        panic!("a file is no socket to replace");
    };
    assert_eq!(error.code, code::OUTBOUND_BIND_FAILED);
    assert_eq!(error.message, "outbound_socket_bind_failed");
    let settings = node.settings();
    assert_eq!(
        settings["topics"].as_array().unwrap().len(),
        4,
        "{settings}"
    );

    let mut expected = BTreeSet::new();
    let mut sent = Vec::new();
    for n in 0..10 {
        for sender in [first, second] {
            let payload = pattern(n, 5000 * n);
            sent.push((sender, sender.push(node, "letters", &payload)));
            expected.insert((sender.key.clone(), payload));
        }
    }
    for (sender, id) in sent {
        assert_eq!(sender.settled(&id).state, MessageState::Received);
    }
    mesh.nodes[2].kill();
    assert!(socket.exists(), "nobody was there to remove it");

    // Sent while nobody is there, and with a program that waits at a socket.
    let [first, _, node] = &mut mesh.nodes;
    let late = [
        "message", "send", &node.key, "late", "--topic", "letters", "--wait",
    ];
    let late = first.in_background(&late);
    expected.insert((first.key.clone(), b"late".to_vec()));
    let waiting = std::thread::spawn(move || ask(&back, "json-lines", &[pattern(9, 100)]));
    node.up();
    assert_eq!(node.settings(), settings);
    let late = late.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(late.status.success(), "{error}");
    waiting.join().unwrap();
    ask(&socket, "http", &[pattern(1, 10), pattern(2, 70_000)]);
    let call = ["admin", "call", &node.key, "getInfo"];
    assert!(first.printed(&call).contains(&node.key));

    let mut popped = BTreeSet::new();
    while let Some(message) = node.pop(Some("letters"), None) {
        let new = popped.insert((message.src_pk, message.payload.0));
        assert!(new, "each message comes once");
    }
    assert!(popped == expected, "{} of {}", popped.len(), expected.len());
    assert_eq!(node.pop(None, None), None);

    // What was taken stays taken, and a clean end leaves no socket.
    node.stop();
    assert!(!socket.exists());
    std::fs::write(&socket, "in the way").unwrap();
    node.up();
    assert_eq!(node.settings(), settings);
    assert_eq!(node.pop(None, None), None);
    // A socket that could not be made at the start is made when it is set again.
    let set = [
        "topic",
        "outbound",
        "set",
        "echo http",
        &first.key,
        text(&socket),
    ];
    assert_eq!(node.refused(&set), code::OUTBOUND_BIND_FAILED);
    std::fs::remove_file(&socket).unwrap();
    node.printed(&set);
    ask(&socket, "http", &[pattern(3, 10)]);
    assert_eq!(node.settings(), settings);
}
