//! Covers: the answer of every method to good and bad parameters, compared with a recorded file, so that a change of
//! structure cannot change a result, an error code or an error text. Two nodes run as ordinary processes on loopback.
//! Listeners, batches and limits are tested in `rpc.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::node::{Lines, Node};
use common::{TIMEOUT, eventually};
use hyphae_rpc::method::Peer;
use hyphae_rpc::{Base64, METHODS};
use serde_json::{Value, json};

/// Writes the recorded answers instead of comparing with them.
const REGENERATE: &str = "HYPHAE_WRITE_ANSWERS";

/// Members whose values differ between runs, or between hosts.
const VOLATILE: &[&str] = &[
    "aesHardware",
    "connectionState",
    "counters",
    "created",
    "deadline",
    "discovered",
    "discoveredSeconds",
    "driver",
    "driverReason",
    "drops",
    "expiration",
    "expirationSeconds",
    "handshakes",
    "lanes",
    "lanesActive",
    "lastConnected",
    "lastConnectedSeconds",
    "lossPermille",
    "metric",
    "nodeStartTime",
    "packetCount",
    "byteCount",
    "pid",
    "rttMicros",
    "rxBytes",
    "sending",
    "seqno",
    "sessions",
    "socketReceiveBytes",
    "socketAddr",
    "suite",
    "suites",
    "txBytes",
    "uptime",
    "uptimeSeconds",
    "version",
    "workers",
];

/// Configuration of both nodes. They meet nobody but each other.
const CONFIG: &str = "[discovery]\nmode = \"off\"\n";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rpc_answers.txt")
}

/// Records calls to one node as text.
struct Recorder {
    lines: Lines,
    text: String,
    /// Text that differs between runs, and the name that replaces it.
    names: BTreeMap<String, &'static str>,
}

impl Recorder {
    fn section(&mut self, title: &str) {
        writeln!(self.text, "\n== {title}").unwrap();
    }

    /// Calls a method, records the answer and returns it as it is.
    fn call(&mut self, method: &str, params: Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": &params });
        let shown = self.normal(params);
        self.raw(&format!("{method} {shown}"), &request.to_string())
    }

    /// Sends a line, records the answer under a title and returns it as it is.
    fn raw(&mut self, title: &str, line: &str) -> Value {
        let answer = self.lines.ask(line);
        let shown = match answer.get("result").or_else(|| answer.get("error")) {
            Some(shown) if answer["id"] == 1 => shown.clone(),
            _ => answer.clone(),
        };
        let shown = self.normal(shown);
        let title = self.named(title);
        let outcome = if answer.get("error").is_some() {
            "error "
        } else {
            ""
        };
        writeln!(self.text, "{title}\n    {outcome}{shown}").unwrap();
        answer
    }

    fn named(&self, text: &str) -> String {
        // A subnet is the beginning of an address: the longest name first.
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let replace = |text: String, (from, to): &(&String, &&str)| text.replace(*from, to);
        names.iter().fold(text.to_owned(), replace)
    }

    fn normal(&self, value: Value) -> Value {
        match value {
            Value::Object(members) => {
                let normal = |(key, value): (String, Value)| {
                    let is_id = ["id", "lease"].contains(&key.as_str()) && value.is_string();
                    let value = match is_id || VOLATILE.contains(&key.as_str()) {
                        true => json!("*"),
                        false => self.normal(value),
                    };
                    (key, value)
                };
                members.into_iter().map(normal).collect()
            }
            Value::Array(items) => {
                let mut items: Vec<_> = items.into_iter().map(|item| self.normal(item)).collect();
                // By key of the node, which differs between runs.
                items.sort_by_key(Value::to_string);
                items.into()
            }
            Value::String(text) => {
                let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
                match self.named(&text) {
                    id if [16, 32].contains(&id.len()) && is_hex(&id) => json!("*"),
                    text => json!(text),
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }
}

/// The port of a node's first worker.
fn port(node: &Node) -> u16 {
    let status = node.client().node_status().unwrap();
    status.dataplane.unwrap().workers[0].port
}

#[test]
fn answers_are_those_recorded() {
    let config = format!(
        "{CONFIG}[admin]\nsocket_dirs = [\"{}\"]\n",
        std::env::temp_dir().display()
    );
    let (node, other) = (Node::with(None, &config), Node::with(None, CONFIG));
    let endpoint = format!("udp://127.0.0.1:{}", port(&other));
    let mut names = BTreeMap::new();
    for (node, [key, ip, subnet]) in [
        (&node, ["KEY", "IP", "SUBNET"]),
        (&other, ["OTHER_KEY", "OTHER_IP", "OTHER_SUBNET"]),
    ] {
        let info = node.client().get_info().unwrap();
        names.insert(info.node_pubkey, key);
        names.insert(info.node_ip, ip);
        names.insert(info.node_subnet, subnet);
    }
    let directory = node.directory.path().to_str().unwrap().to_owned();
    names.insert(directory, "DIR");
    names.insert(endpoint.clone(), "OTHER_ENDPOINT");
    let mut recorder = Recorder {
        lines: Lines::connect(&node),
        text: "Written by rpc_answers.rs; * stands for what differs between runs.\n".to_owned(),
        names,
    };
    requests(&mut recorder);
    parameters(&mut recorder);
    peers(&mut recorder, &node, &endpoint);
    routes(&mut recorder, &node);
    messages(&mut recorder, &node);
    topics(&mut recorder, &node);
    administration(&mut recorder, &node);
    status_and_configuration(&mut recorder, &node, &config);
    recorder.call("node.shutdown", json!({}));

    let recorded = std::fs::read_to_string(golden()).unwrap_or_default();
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(golden(), &recorder.text).unwrap();
        return;
    }
    for (recorded, answered) in recorded.lines().zip(recorder.text.lines()) {
        assert_eq!(answered, recorded, "{REGENERATE}=1 records answers again");
    }
    assert_eq!(recorder.text.len(), recorded.len());
}

fn requests(recorder: &mut Recorder) {
    recorder.section("Requests");
    for line in [
        "{nonsense",
        "[]",
        "{}",
        "7",
        r#"{"jsonrpc":"1.0","id":1,"method":"getTopics"}"#,
        r#"{"jsonrpc":"2.0","id":[1],"method":"getTopics"}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"getTopics"}"#,
        r#"{"jsonrpc":"2.0","id":"one","method":"getTopics"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"getTopics","params":null}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"getTopics","params":7}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"noSuch"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"admin.noSuch"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"noSuchTopic"}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"getTopics"},{"jsonrpc":"2.0","method":"getTopics"},7]"#,
    ] {
        recorder.raw(line, line);
    }
}

/// The shape of parameters, the same way for each method.
fn parameters(recorder: &mut Recorder) {
    recorder.section("Parameters of a wrong shape");
    for method in METHODS.iter().filter(|method| !method.params.is_empty()) {
        // An empty object is an empty change to some of them, and a call to others.
        for params in [json!(7), json!([[]]), json!({ method.params[0]: {} })] {
            recorder.call(method.name, params);
        }
        if !["config.reload", "popMessage", "listMessages"].contains(&method.name) {
            recorder.call(method.name, json!({}));
        }
    }
}

fn peers(recorder: &mut Recorder, node: &Node, endpoint: &str) {
    recorder.section("Peers");
    let other = node_key(recorder, "OTHER_KEY");
    recorder.call("getInfo", json!({}));
    recorder.call("getPeers", json!({}));
    for method in ["addPeer", "deletePeer"] {
        for endpoint in ["", "udp://", "127.0.0.1:9", "udp://fe80::1:9", "quic://a:1"] {
            recorder.call(method, json!({ "endpoint": endpoint }));
        }
        recorder.call(method, json!(["udp://[fe80::1%none0]:9"]));
    }
    recorder.call("deletePeer", json!({ "endpoint": endpoint }));
    recorder.call("addPeer", json!({ "endpoint": endpoint }));
    recorder.call("addPeer", json!({ "endpoint": endpoint }));
    eventually("the peer is up", TIMEOUT, || {
        let peers: Vec<Peer> = node.client().get_peers().unwrap();
        peers.iter().any(|peer| peer.connection_state == "alive")
    });
    eventually("a route is learnt", TIMEOUT, || {
        let mut routes = node.client().get_selected_routes().unwrap().into_iter();
        routes.any(|route| route.next_hop == other && route.origin == "dynamic")
    });
    recorder.call("getPeers", json!({}));
    recorder.call("getSelectedRoutes", json!({}));
    recorder.call("getFallbackRoutes", json!({}));
    recorder.call("getQueriedSubnets", json!({}));
    recorder.call("getPacketStatistics", json!({}));
    let (ip, other_ip) = (node_key(recorder, "IP"), node_key(recorder, "OTHER_IP"));
    for ip in [&ip, &other_ip, "::1", "x", "400::7"] {
        recorder.call("getPublicKeyFromIp", json!({ "ip": ip }));
    }
    recorder.call("getPublicKeyFromIp", json!({ "mycelium_ip": ip }));
    for address in [&ip, "::1", "400::7"] {
        recorder.call("node.ping", json!({ "address": address, "timeoutMs": 300 }));
        let trace = json!({ "address": address, "hopLimit": 1, "timeoutMs": 300 });
        recorder.call("node.trace", trace);
    }
    let patient = json!({ "address": other_ip, "timeoutMs": 60_000 });
    recorder.call("node.ping", patient);
    for hops in [0, 1, 256] {
        let trace = json!({ "address": other_ip, "hopLimit": hops, "timeoutMs": 60_000 });
        recorder.call("node.trace", trace);
    }
    blocked(node, "peers.toml", || {
        recorder.call("addPeer", json!(["udp://127.0.0.1:9"]));
        recorder.call("deletePeer", json!({ "endpoint": endpoint }));
    });
}

/// What a name of the record stands for.
fn node_key(recorder: &Recorder, name: &str) -> String {
    let found = recorder.names.iter().find(|(_, it)| **it == name);
    found.unwrap().0.clone()
}

/// Has a state file be a directory meanwhile, so that nobody can write it.
fn blocked(node: &Node, file: &str, during: impl FnOnce()) {
    let file = node.state().join(file);
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    during();
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
}

fn routes(recorder: &mut Recorder, node: &Node) {
    recorder.section("Static routes");
    let other = node_key(recorder, "OTHER_KEY");
    let subnet = node_key(recorder, "SUBNET");
    let prefix = "400:1:2:3::/64";
    for method in ["route.add", "route.remove"] {
        for params in [
            json!({ "prefix": "x", "via": other }),
            json!({ "prefix": "::/0" }),
            json!({ "prefix": "10.0.0.0/8", "via": other }),
            json!({ "prefix": prefix, "via": "x" }),
            json!({ "prefix": prefix, "via": "::1" }),
        ] {
            recorder.call(method, params);
        }
    }
    recorder.call("route.add", json!({ "prefix": prefix }));
    recorder.call("route.add", json!({ "prefix": subnet, "via": other }));
    recorder.call("route.remove", json!([prefix]));
    recorder.call("route.add", json!({ "prefix": prefix, "via": other }));
    recorder.call("route.add", json!({ "prefix": prefix, "via": other }));
    let up = "11".repeat(32);
    recorder.call("route.add", json!({ "prefix": "400:5::/32", "via": up }));
    recorder.call("route.list", json!({}));
    recorder.call("getSelectedRoutes", json!({}));
    blocked(node, "routes.toml", || {
        recorder.call("route.add", json!({ "prefix": "400:6::/32", "via": up }));
        recorder.call("route.remove", json!([prefix]));
    });
    recorder.call("route.remove", json!({ "prefix": prefix, "via": up }));
    recorder.call("route.remove", json!([prefix]));
    recorder.call("route.list", json!({}));
}

fn messages(recorder: &mut Recorder, node: &Node) {
    recorder.section("Messages");
    let (key, ip) = (node_key(recorder, "KEY"), node_key(recorder, "IP"));
    let other = node_key(recorder, "OTHER_KEY");
    let topic = Base64::encode("topic");
    let admin = Base64::encode("mycelium.admin");
    let long = Base64::encode("x".repeat(256));
    let to = |dst: Value, topic: &str| json!({ "dst": dst, "topic": topic, "payload": "aGVsbG8=" });
    let good = to(json!({ "pk": key }), &topic);
    for message in [
        to(json!({ "pk": "x" }), &topic),
        to(json!({ "ip": "::1" }), &topic),
        to(json!({ "ip": "x", "pk": "x" }), &topic),
        to(json!({ "pk": key }), &admin),
        to(json!({ "pk": key }), &long),
        to(json!({ "pk": key }), "%"),
    ] {
        recorder.call("pushMessage", json!({ "message": message }));
        let mut list = message.clone();
        list["payloads"] = json!([""]);
        list.as_object_mut().unwrap().remove("payload");
        recorder.call("pushMessages", list);
        recorder.call("pushMessageReply", json!({ "id": "x", "message": message }));
        let id = "0000000000000000";
        recorder.call("pushMessageReply", json!({ "id": id, "message": message }));
    }
    recorder.call("pushMessages", json!({ "dst": { "pk": key } }));
    let both = json!({ "dst": { "pk": key }, "payloads": [""], "attached": [1] });
    recorder.call("pushMessages", both);
    let sent = recorder.call("pushMessage", json!({ "message": good }));
    let id = sent["result"]["id"].clone();
    recorder.call("getMessageInfo", json!({ "id": "x" }));
    recorder.call("getMessageInfo", json!({ "id": "0000000000000000" }));
    // One to another node that drops it, so that its end is the same each time.
    let wait = json!({ "message": to(json!({ "pk": other }), &topic), "reply_timeout": 0 });
    recorder.call("pushMessage", wait);
    pops(recorder, node, (&topic, &admin, &long), &id);
    let list = json!({ "dst": { "ip": ip }, "topic": topic, "payloads": ["aGk="], "wait": 60 });
    recorder.call("pushMessages", list);
    leases(recorder, &topic, &good);
    for params in [
        json!({ "method": "getInfo" }),
        json!({ "dst_pubkey": "x", "method": "getInfo" }),
        json!({ "dst_ip": "x", "method": "getInfo" }),
        json!({ "dst_ip": "400::1", "dst_pubkey": key, "method": "getInfo" }),
        json!({ "dst_ip": ip, "dst_pubkey": key, "method": "getInfo", "timeout_secs": 60 }),
    ] {
        recorder.call("admin.busCall", params);
    }
}

/// Messages leave the inbox.
fn pops(
    recorder: &mut Recorder,
    node: &Node,
    (topic, admin, long): (&str, &str, &str),
    id: &Value,
) {
    for method in ["popMessage", "popMessages", "listMessages"] {
        for topic in ["%", admin, long] {
            recorder.call(method, json!({ "topic": topic, "count": 1 }));
        }
    }
    for params in [
        json!({ "count": 0 }),
        json!({ "count": 1, "lease": 0 }),
        json!({ "count": 1, "lease": 3601 }),
        json!({ "count": 1, "timeout": 0, "topic": Base64::encode("none") }),
    ] {
        recorder.call("popMessages", params);
    }
    recorder.call("popMessage", json!({ "topic": Base64::encode("none") }));
    let peek = json!({ "topic": topic, "peek": true, "timeout": 60 });
    recorder.call("popMessage", peek);
    recorder.call("listMessages", json!({ "topic": topic }));
    recorder.call("listMessages", json!({ "after": 1_000_000 }));
    recorder.call("popMessage", json!({ "topic": topic, "timeout": 60 }));
    let id = id.as_str().unwrap();
    eventually("its sender has learnt that it was read", TIMEOUT, || {
        let asked = node.client().call::<Value>("getMessageInfo", json!([id]));
        asked.unwrap()["state"] == "read"
    });
    recorder.call("getMessageInfo", json!({ "id": id }));
}

fn leases(recorder: &mut Recorder, topic: &str, message: &Value) {
    let lease = json!({ "count": 1, "topic": topic, "timeout": 60, "lease": 3600 });
    let leased = recorder.call("popMessages", lease.clone());
    let token = leased["result"][0]["lease"].clone();
    let ended = "00".repeat(16);
    for (method, more) in [
        ("extendMessages", json!({ "lease": 60 })),
        ("extendMessages", json!({ "lease": 0 })),
        ("returnMessages", json!({})),
        ("ackMessages", json!({})),
    ] {
        for tokens in [
            json!([]),
            json!(["x"]),
            json!([ended]),
            json!([ended, token]),
        ] {
            let mut params = more.clone();
            params["tokens"] = tokens;
            recorder.call(method, params);
        }
    }
    // It was returned.
    let leased = recorder.call("popMessages", lease);
    let tokens = json!({ "tokens": [leased["result"][0]["lease"]] });
    recorder.call("ackMessages", tokens);
    for ack in ["x", &ended] {
        let id = "0000000000000000";
        let reply = json!({ "id": id, "message": message, "ack": ack });
        recorder.call("pushMessageReply", reply);
    }
}

fn topics(recorder: &mut Recorder, node: &Node) {
    recorder.section("Topics");
    let key = node_key(recorder, "KEY");
    let directory = node.directory.path().to_str().unwrap();
    let topic = Base64::encode("listed");
    let absolute = format!("{directory}/out.sock");
    recorder.call("getDefaultTopicAction", json!({}));
    recorder.call("setDefaultTopicAction", json!({ "accept": true }));
    recorder.call("getTopics", json!({}));
    let named: Vec<_> = METHODS
        .iter()
        .filter(|method| method.params.first() == Some(&"topic") && method.name.contains("Topic"))
        .collect();
    let whole = |topic: &str| {
        json!({
            "topic": topic, "subnet": "400::/7", "pubkey": key, "socket_path": absolute,
            "dst": { "pk": key }, "path": absolute, "framing": "http",
        })
    };
    for method in &named {
        for topic in ["%", &Base64::encode("mycelium.admin"), &topic] {
            if method.name != "addTopic" || topic.starts_with('%') {
                recorder.call(method.name, whole(topic));
            }
        }
    }
    recorder.call("addTopic", whole(&topic));
    recorder.call("addTopic", whole(&topic));
    for (method, member, value) in [
        ("addTopicSource", "subnet", json!("x")),
        ("removeTopicSource", "subnet", json!("10.0.0.0/8")),
        ("addTopicPubkeySource", "pubkey", json!("x")),
        ("setTopicForwardSocket", "socket_path", json!("relative")),
        ("setTopicForwardSocket", "framing", json!("x")),
        ("setTopicForwardSocket", "reply_timeout", json!(0)),
        (
            "setTopicForwardSocket",
            "socket_path",
            json!("/proc/self/none"),
        ),
        ("setTopicOutboundSocket", "dst", json!({ "pk": "x" })),
        ("setTopicOutboundSocket", "path", json!("relative")),
        ("setTopicOutboundSocket", "framing", json!("x")),
        (
            "setTopicOutboundSocket",
            "path",
            json!(format!("{directory}/none/out.sock")),
        ),
    ] {
        let mut params = whole(&topic);
        params[member] = value;
        recorder.call(method, params);
    }
    for method in [
        "addTopicSource",
        "addTopicPubkeySource",
        "setTopicForwardSocket",
    ] {
        recorder.call(method, whole(&topic));
        recorder.call(method, whole(&topic));
    }
    recorder.call("setTopicOutboundSocket", whole(&topic));
    for method in named.iter().filter(|method| method.name.starts_with("get")) {
        recorder.call(method.name, whole(&topic));
    }
    blocked(node, "topics.toml", || {
        recorder.call("removeTopicSource", whole(&topic));
        recorder.call("setDefaultTopicAction", json!([false]));
    });
    for method in [
        "removeTopicSource",
        "removeTopicPubkeySource",
        "removeTopicForwardSocket",
    ] {
        recorder.call(method, whole(&topic));
        recorder.call(method, whole(&topic));
    }
    recorder.call("removeTopicOutboundSocket", whole(&topic));
    recorder.call("removeTopicOutboundSocket", whole(&topic));
    recorder.call("getTopicSettings", whole(&topic));
    recorder.call("removeTopic", whole(&topic));
    recorder.call("removeTopic", whole(&topic));
}

fn administration(recorder: &mut Recorder, node: &Node) {
    recorder.section("Administration");
    let (key, ip) = (node_key(recorder, "KEY"), node_key(recorder, "IP"));
    recorder.call("admin.add", json!({ "pubkey": "x" }));
    recorder.call("admin.remove", json!({ "pubkey": "x" }));
    recorder.call("admin.add", json!({ "pubkey": key }));
    recorder.call("admin.add", json!({ "pubkey": key }));
    recorder.call("admin.list", json!({}));
    recorder.call("admin.setMethodPatterns", json!({ "patterns": ["!"] }));
    recorder.call(
        "admin.setMethodPatterns",
        json!({ "patterns": vec!["a"; 1025] }),
    );
    blocked(node, "admin.toml", || {
        recorder.call("admin.setMethodPatterns", json!({ "patterns": ["a"] }));
    });
    recorder.call(
        "admin.setMethodPatterns",
        json!({ "patterns": ["admin.*", "getT*", "node*"] }),
    );
    recorder.call("admin.getMethodPatterns", json!({}));
    for (method, params) in [
        ("getInfo", json!({})),
        ("getTopics", json!({})),
        ("getTopicSources", json!([7])),
        ("admin.remove", json!({ "pubkey": key })),
        ("admin.setMethodPatterns", json!({ "patterns": [] })),
        (
            "admin.busCall",
            json!({ "dst_pubkey": key, "method": "getInfo" }),
        ),
        ("node.shutdown", json!({})),
    ] {
        let call = json!({
            "dst_ip": ip, "method": method, "params": params, "timeout_secs": 60,
        });
        recorder.call("admin.busCall", call);
    }
    recorder.call("admin.setMethodPatterns", json!({ "patterns": [] }));
    recorder.call("admin.remove", json!({ "pubkey": key }));
    recorder.call("admin.remove", json!({ "pubkey": key }));
}

fn status_and_configuration(recorder: &mut Recorder, node: &Node, config: &str) {
    recorder.section("Status and configuration");
    recorder.call("node.status", json!({}));
    recorder.call("node.drain", json!({ "on": true }));
    blocked(node, "drain.toml", || {
        recorder.call("node.drain", json!({ "on": false }));
    });
    recorder.call("node.drain", json!({ "on": false }));
    let file = node.directory.path().join("config.toml");
    for (text, dry_run) in [
        ("nonsense = 1\n", false),
        ("routes = [\"::/0 via 400::1\"]\n", false),
        ("mtu = 1300\nlog_level = \"debug\"\n", true),
        ("mtu = 1300\nlog_level = \"debug\"\n", false),
        ("mtu = 1300\npeers = [\"udp://127.0.0.1:10\"]\n", false),
        ("", false),
    ] {
        std::fs::write(&file, format!("{text}{config}")).unwrap();
        recorder.call("config.reload", json!({ "dryRun": dry_run }));
    }
    let topics = node.state().join("topics.toml");
    let kept = std::fs::read_to_string(&topics).unwrap();
    std::fs::write(&topics, "nonsense").unwrap();
    recorder.call("config.reload", json!({}));
    std::fs::write(&topics, format!("{kept}\n[topics.AQ]\n")).unwrap();
    recorder.call("config.reload", json!({}));
    std::fs::write(&topics, kept).unwrap();
    recorder.call("config.reload", json!({}));
    let discovered = recorder
        .lines
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"rpc.discover"}"#);
    assert_eq!(discovered["result"], hyphae_rpc::openrpc());
}
