//! Covers: every method by name through every listener of a real node; batches, notifications, garbage and
//! limits; administration over the bus from a node to itself; what is on disk after kill -9. Runs as an
//! ordinary user. Messages over one connection are in
//! `rpc_messages.rs`, delivery between nodes in `bus.rs`, framing of sockets in the daemon.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::unix::net::UnixStream;
use std::process::Command;

use common::node::{Lines, Node, exchange, request};
use common::{TIMEOUT, binary, eventually};
use hyphae_rpc::{Base64, METHODS, code};
use serde_json::{Value, json};

/// Sends a request through a listener and returns the answer.
type Ask<'a> = &'a mut dyn FnMut(&str) -> Value;

fn call(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": method, "method": method, "params": params })
}

/// Calls that succeed one after the other on a fresh node; together they are all methods.
fn script(key: &str, ip: &str, directory: &str) -> Vec<(&'static str, Value)> {
    let topic = Base64::encode("topic");
    let named = json!({ "topic": topic });
    let subnet = json!({ "topic": topic, "subnet": "400::/7" });
    let pubkey = json!({ "topic": topic, "pubkey": key });
    let message = json!({ "dst": { "pk": key }, "topic": "bm90ZQ==", "payload": "aGVsbG8=" });
    let route = json!({ "prefix": "400:1:2:3::/64", "via": "11".repeat(32) });
    let endpoint = json!({ "endpoint": "udp://127.0.0.1:9" });
    vec![
        ("getInfo", json!({})),
        ("getPublicKeyFromIp", json!([ip])),
        ("getPeers", json!({})),
        ("addPeer", endpoint.clone()),
        ("deletePeer", endpoint),
        ("getSelectedRoutes", json!({})),
        ("getFallbackRoutes", json!({})),
        ("getQueriedSubnets", json!({})),
        ("getPacketStatistics", json!({})),
        ("pushMessage", json!({ "message": message })),
        (
            "pushMessages",
            json!({ "dst": { "pk": key }, "topic": "bm90ZQ==", "payloads": ["aGk=", ""] }),
        ),
        ("popMessage", json!({ "timeout": 60, "topic": "bm90ZQ==" })),
        ("popMessages", json!({ "count": 10, "topic": "bm90ZQ==" })),
        ("listMessages", json!({ "topic": "bm90ZQ==", "count": 1 })),
        ("getDefaultTopicAction", json!({})),
        ("setDefaultTopicAction", json!([true])),
        ("addTopic", named.clone()),
        ("getTopics", json!({})),
        ("addTopicSource", subnet.clone()),
        ("getTopicSources", named.clone()),
        ("removeTopicSource", subnet),
        ("addTopicPubkeySource", pubkey.clone()),
        ("getTopicPubkeySources", named.clone()),
        ("removeTopicPubkeySource", pubkey),
        (
            "setTopicForwardSocket",
            json!({ "topic": topic, "socket_path": format!("{directory}/nowhere.sock") }),
        ),
        ("getTopicForwardSocket", named.clone()),
        ("getTopicSettings", named.clone()),
        ("removeTopicForwardSocket", named.clone()),
        (
            "setTopicOutboundSocket",
            json!({ "topic": topic, "dst": { "pk": key }, "path": format!("{directory}/out.sock") }),
        ),
        ("getTopicOutboundSocket", named.clone()),
        ("removeTopicOutboundSocket", named.clone()),
        ("removeTopic", named),
        ("admin.add", json!({ "pubkey": key })),
        ("admin.list", json!({})),
        ("admin.setMethodPatterns", json!({ "patterns": ["get*"] })),
        ("admin.getMethodPatterns", json!({})),
        (
            "admin.busCall",
            json!({ "dst_ip": ip, "method": "getInfo", "timeout_secs": 60 }),
        ),
        ("admin.setMethodPatterns", json!({ "patterns": [] })),
        ("admin.remove", json!({ "pubkey": key })),
        ("node.status", json!({})),
        ("node.drain", json!({ "on": false })),
        ("config.reload", json!({ "dryRun": true })),
        ("node.ping", json!({ "address": ip, "timeoutMs": 60_000 })),
        ("route.add", route.clone()),
        ("route.list", json!({})),
        ("route.remove", route),
        ("rpc.discover", json!({})),
    ]
}

const NO_LEASE: &str = r#"{"tokens":["00000000000000000000000000000000"]}"#;

/// Methods that need another node, or an id, to succeed: their own refusals show that they are there.
const REFUSED: [(&str, &str, i64); 6] = [
    ("ackMessages", NO_LEASE, code::LEASE_ENDED),
    ("returnMessages", NO_LEASE, code::LEASE_ENDED),
    (
        "extendMessages",
        r#"{"tokens":["00000000000000000000000000000000"],"lease":1}"#,
        code::LEASE_ENDED,
    ),
    (
        "getMessageInfo",
        r#"{"id":"0000000000000000"}"#,
        code::NO_MESSAGE,
    ),
    (
        "pushMessageReply",
        r#"{"id":"x","message":{"dst":{"ip":"400::1"},"payload":""}}"#,
        code::BAD_ID,
    ),
    (
        "node.trace",
        r#"{"address":"::1","hopLimit":1}"#,
        code::BAD_IP,
    ),
];

#[test]
fn every_method_answers_through_every_listener() {
    let config = format!(
        "[admin]\nsocket_dirs = [\"{}\"]\n",
        std::env::temp_dir().display()
    );
    let node = Node::with(None, &config);
    let info = node.client().get_info().unwrap();
    let directory = node.directory.path().to_str().unwrap();
    let script = script(&info.node_pubkey, &info.node_ip, directory);
    let scripted = |name: &str| {
        // It ends the node, which `cli.rs` watches.
        name == "node.shutdown"
            || script.iter().any(|(method, _)| *method == name)
            || REFUSED.iter().any(|(method, ..)| *method == name)
    };
    let missing: Vec<_> = METHODS
        .iter()
        .filter(|m| !scripted(m.name))
        .map(|m| m.name)
        .collect();
    assert!(missing.is_empty(), "{missing:?}");

    let mut lines = Lines::connect(&node);
    let mut over_lines = |body: &str| lines.ask(body);
    let mut over_unix_http = |body: &str| {
        let stream = UnixStream::connect(node.socket()).unwrap();
        serde_json::from_str(&exchange(stream, &request("POST", "/rpc", body)).1).unwrap()
    };
    let mut over_tcp =
        |body: &str| serde_json::from_str(&node.http(0, &request("POST", "/rpc", body)).1).unwrap();
    let listeners: [(&str, Ask<'_>); 3] = [
        ("lines", &mut over_lines),
        ("HTTP on the socket", &mut over_unix_http),
        ("TCP", &mut over_tcp),
    ];
    for (listener, ask) in listeners {
        for (method, params) in &script {
            let answer = ask(&call(method, params).to_string());
            assert!(answer["error"].is_null(), "{listener} {method}: {answer}");
            assert_eq!(answer["id"], **method, "{listener}");
        }
        for (method, params, code) in REFUSED {
            let params = serde_json::from_str(params).unwrap();
            let answer = ask(&call(method, &params).to_string());
            assert_eq!(
                answer["error"]["code"], code,
                "{listener} {method}: {answer}"
            );
        }
    }
    // The bus is a listener as well.
    let client = node.client();
    let key = info.node_pubkey;
    let admin = |method: &str, params: Value| client.call::<Value>(method, params).unwrap();
    admin("admin.add", json!({ "pubkey": key }));
    admin("admin.setMethodPatterns", json!({ "patterns": ["*"] }));
    let over_bus = |method: &str, params: &Value| {
        admin(
            "admin.busCall",
            json!({ "dst_pubkey": key, "method": method, "params": params, "timeout_secs": 60 }),
        )
    };
    let kept = ["admin.remove", "admin.setMethodPatterns", "admin.busCall"];
    for (method, params) in script.iter().filter(|(method, _)| !kept.contains(method)) {
        let answer = over_bus(method, params);
        assert!(answer["error"].is_null(), "bus {method}: {answer}");
    }
    // item 28: nobody locks himself out over the bus; item 29: no calls onwards.
    for (method, params) in [
        ("admin.remove", json!({ "pubkey": key })),
        ("admin.setMethodPatterns", json!({ "patterns": [] })),
        (
            "admin.busCall",
            json!({ "dst_pubkey": key, "method": "getInfo" }),
        ),
    ] {
        assert_eq!(
            over_bus(method, &params)["error"]["code"],
            code::DENIED,
            "{method}"
        );
    }
    admin("admin.remove", json!({ "pubkey": key }));
    assert_eq!(
        over_bus("getInfo", &json!({}))["error"]["code"],
        code::DENIED
    );

    for label in [
        r#"method="addPeer",code="ok""#,
        r#"method="getInfo",code="-32001""#,
    ] {
        // A call is counted when it is over, which may be after its answer is here.
        eventually(label, TIMEOUT, || {
            let text = node.http(2, &request("GET", "/metrics", "")).1;
            text.contains(&format!("hyphae_rpc_duration_seconds_count{{{label}}}"))
        });
    }
}

#[test]
fn batches_notifications_garbage_and_waits() {
    let node = Node::start();
    let mut lines = Lines::connect(&node);
    assert_eq!(lines.ask("{nonsense")["error"]["code"], code::PARSE);
    assert_eq!(lines.ask("[]")["error"]["code"], code::INVALID_REQUEST);
    assert_eq!(lines.ask("{}")["error"]["code"], code::INVALID_REQUEST);
    let answer = lines.ask(r#"{"jsonrpc":"2.0","method":"getInfo","id":[1]}"#);
    assert_eq!(answer["error"]["code"], code::INVALID_REQUEST);
    let answer = lines.ask(r#"{"jsonrpc":"2.0","method":"noSuch","id":1}"#);
    assert_eq!(answer["error"]["code"], code::METHOD_NOT_FOUND);
    let answer = lines.ask(r#"{"jsonrpc":"2.0","method":"addTopic","params":["%%"],"id":1}"#);
    assert_eq!(answer["error"]["code"], code::BAD_TOPIC);
    // item 30
    let reserved = Base64::encode("mycelium.admin");
    for (method, expected) in [
        ("addTopic", code::BAD_TOPIC),
        ("removeTopic", code::BAD_TOPIC),
        ("popMessage", code::BAD_TOPIC_FILTER),
        ("popMessages", code::BAD_TOPIC_FILTER),
    ] {
        let params = json!({ "topic": reserved, "count": 1 });
        let answer = lines.ask(&call(method, &params).to_string());
        assert_eq!(answer["error"]["code"], expected, "{method}");
    }
    let answer = lines.ask(&call("getTopicSources", &json!({ "topic": "" })).to_string());
    assert_eq!(answer["error"]["data"]["kind"], "topic_not_found");

    // A wait on the same connection, and in the same batch, keeps nothing back: it is longer than answers are waited
    // for here.
    lines.send(&call("popMessage", &json!({ "timeout": 600 })).to_string());
    assert_eq!(
        lines.ask(&call("getInfo", &json!({})).to_string())["id"],
        "getInfo"
    );
    let batch = json!([
        call("popMessage", &json!({ "timeout": 1, "topic": "AA==" })),
        { "jsonrpc": "2.0", "method": "addTopic", "params": { "topic": "AQ==" } },
        call("getTopics", &json!({})),
        7,
    ]);
    let answer = lines.ask(&batch.to_string());
    assert_eq!(answer.as_array().unwrap().len(), 3, "{answer}");
    assert_eq!(answer[1]["result"], json!(["AQ=="]));
    assert_eq!(answer[2]["error"]["code"], code::INVALID_REQUEST);
    // A notification is done and not answered.
    let notification = r#"{"jsonrpc":"2.0","method":"removeTopic","params":["AQ=="]}"#;
    let (status, body) = node.http(0, &request("POST", "/rpc", notification));
    assert_eq!((status, body.as_str()), (204, ""));
    assert!(node.client().get_topics().unwrap().is_empty());
}

#[test]
fn rest_has_the_status_codes_of_the_reference_and_browsers_are_kept_out() {
    let node = Node::start();
    let info = node.client().get_info().unwrap();
    let (topic, ip) = ("bG9ncw==", &info.node_ip);
    let message = json!({ "dst": { "ip": ip }, "topic": topic, "payload": "aGk=" });
    assert_eq!(node.rest("GET", "/admin", None).1["nodeIp"], **ip);
    let peer = json!({ "endpoint": "udp://127.0.0.1:9" });
    for expected in [204, 409] {
        assert_eq!(
            node.rest("POST", "/admin/peers", Some(peer.clone())).0,
            expected
        );
    }
    for expected in [204, 404] {
        let path = "/admin/peers/udp%3A%2F%2F127.0.0.1%3A9";
        assert_eq!(node.rest("DELETE", path, None).0, expected);
    }
    assert_eq!(
        node.rest("GET", &format!("/pubkey/{ip}"), None).1["publicKey"],
        info.node_pubkey
    );
    assert_eq!(node.rest("GET", "/pubkey/400::99", None).0, 404);
    assert_eq!(node.rest("GET", "/pubkey/::1", None).0, 400);
    assert_eq!(node.rest("GET", "/messages", None).0, 204);
    let (status, pushed) = node.rest("POST", "/messages", Some(message.clone()));
    assert_eq!(status, 201);
    let id = pushed["id"].as_str().unwrap();
    let (status, got) = node.rest("GET", &format!("/messages?timeout=60&topic={topic}"), None);
    assert_eq!(
        (status, &got["payload"], got["id"].as_str()),
        (200, &json!("aGk="), Some(id))
    );
    assert_eq!(
        node.rest("GET", &format!("/messages/status/{id}"), None).0,
        200
    );
    assert_eq!(
        node.rest("GET", "/messages/status/0000000000000000", None)
            .0,
        404
    );
    assert_eq!(node.rest("GET", "/messages/status/zz", None).0, 400);
    assert_eq!(
        node.rest("POST", "/messages?reply_timeout=1", Some(message.clone()))
            .0,
        408
    );
    assert_eq!(
        node.rest("POST", &format!("/messages/reply/{id}"), Some(message))
            .0,
        204
    );
    let accept = json!({ "accept": false });
    assert_eq!(
        node.rest("PUT", "/messages/topics/default", Some(accept.clone()))
            .0,
        204
    );
    assert_eq!(
        node.rest("GET", "/messages/topics/default", None),
        (200, accept)
    );
    assert_eq!(
        node.rest("POST", "/messages/topics", Some(json!(b"logs")))
            .0,
        201
    );
    assert_eq!(
        node.rest("GET", "/messages/topics", None),
        (200, json!([topic]))
    );
    let under = |rest: &str| format!("/messages/topics/bG9ncw%3D%3D{rest}");
    let subnet = json!({ "subnet": "400:1::/64" });
    assert_eq!(node.rest("POST", &under("/sources"), Some(subnet)).0, 201);
    assert_eq!(
        node.rest("POST", &under("/sources"), Some(json!({ "subnet": "x" })))
            .0,
        400
    );
    assert_eq!(
        node.rest("GET", &under("/sources"), None),
        (200, json!(["400:1::/64"]))
    );
    assert_eq!(
        node.rest("DELETE", &under("/sources/400:1::%2F64"), None).0,
        204
    );
    assert_eq!(
        node.rest("GET", &under("/forward"), None),
        (200, Value::Null)
    );
    let path = json!({ "socketPath": "/nowhere.sock" });
    assert_eq!(node.rest("PUT", &under("/forward"), Some(path)).0, 204);
    assert_eq!(node.rest("DELETE", &under("/forward"), None).0, 204);
    assert_eq!(node.rest("DELETE", &under(""), None).0, 204);
    assert_eq!(node.rest("GET", &under("/sources"), None).0, 404);

    let get = |headers: &str| {
        format!("GET /api/v1/messages HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")
    };
    assert_eq!(node.http(1, &get("Host: evil.example\r\n")).0, 403);
    assert_eq!(
        node.http(1, &get("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"))
            .0,
        403
    );
    let plain = "POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\
                 Content-Length: 2\r\nConnection: close\r\n\r\n{}";
    assert_eq!(node.http(0, plain).0, 415);
}

#[test]
fn of_several_additions_of_a_peer_at_once_one_succeeds() {
    let node = Node::start();
    let params = json!(["udp://127.0.0.1:9"]);
    let add = || node.client().call::<bool>("addPeer", &params);
    let added = std::thread::scope(|scope| {
        let adding: Vec<_> = (0..8).map(|_| scope.spawn(add)).collect();
        let results = adding.into_iter().map(|adding| adding.join().unwrap());
        results.filter(Result::is_ok).count()
    });
    assert_eq!(added, 1);
    assert_eq!(node.client().get_peers().unwrap().len(), 1);
    let stored = std::fs::read_to_string(node.state().join("peers.toml")).unwrap();
    assert_eq!(stored.matches("127.0.0.1:9").count(), 1, "{stored}");
}

#[test]
fn settings_survive_a_kill() {
    let mut node = Node::start();
    let key = node.client().get_info().unwrap().node_pubkey;
    let topic = Base64::encode([0xff, 0x00, 0x2e]);
    let out = node.directory.path().join("out.sock");
    let change = |node: &Node, method: &str, params: Value| {
        node.client().call::<Value>(method, params).unwrap();
    };
    change(&node, "setDefaultTopicAction", json!([false]));
    change(&node, "addTopic", json!([topic]));
    change(&node, "addTopicSource", json!([topic, "400:1::/64"]));
    change(&node, "addTopicPubkeySource", json!([topic, key]));
    change(
        &node,
        "setTopicForwardSocket",
        json!([topic, "/nowhere.sock"]),
    );
    change(
        &node,
        "setTopicOutboundSocket",
        json!([topic, { "pk": key }, out]),
    );
    change(&node, "admin.add", json!([key]));
    change(&node, "admin.setMethodPatterns", json!([["get*"]]));
    change(&node, "addPeer", json!(["udp://127.0.0.1:9"]));
    let ask = |node: &Node| -> Vec<Value> {
        let named = json!([topic]);
        let ask = |method: &str, params: &Value| node.client().call(method, params).unwrap();
        let mut all: Vec<Value> = [
            "getTopicSources",
            "getTopicPubkeySources",
            "getTopicForwardSocket",
            "getTopicOutboundSocket",
        ]
        .map(|method| ask(method, &named))
        .into();
        for method in [
            "getDefaultTopicAction",
            "getTopics",
            "admin.list",
            "admin.getMethodPatterns",
        ] {
            all.push(ask(method, &json!({})));
        }
        let peers = node.client().get_peers().unwrap();
        all.push(json!(
            peers
                .iter()
                .map(|peer| &peer.endpoint.socket_addr)
                .collect::<Vec<_>>()
        ));
        all
    };
    let before = ask(&node);
    node.kill();
    node.run();
    assert_eq!(ask(&node), before);
    eventually("the outbound socket is served again", TIMEOUT, || {
        UnixStream::connect(&out).is_ok()
    });
    // item 18: a file that is not understood stops the start, is named, and stays as it is.
    node.kill();
    let file = node.state().join("topics.toml");
    std::fs::write(
        &file,
        "default_action = \"accept\"\n[topics.a]\nsubnet = []\n",
    )
    .unwrap();
    let output = Command::new(binary())
        .args([
            "controlplane",
            "--no-tun",
            "--rpc",
            "off",
            "--metrics",
            "off",
            "--state-dir",
        ])
        .arg(node.state())
        .arg("--socket-dir")
        .arg(node.directory.path().join("run"))
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    for part in ["topics.toml", "line 3", "subnet"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .contains("subnet = []")
    );
}
