//! Covers: `deploy/prometheus` and `deploy/grafana` against a real Prometheus that scrapes real nodes
//! under traffic: every panel has data, every alert is evaluated. The rules' own cases are in
//! `deploy/prometheus/hyphae.rules.test.yml`, run here by promtool; the names in both files are held
//! against the declared families in `controlplane/daemon`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::mesh::Mesh;
use common::{eventually, privileged, transfer};
use hyphae::lab::Namespace;
use hyphae_rpc::Base64;
use hyphae_rpc::method::{Destination, OutgoingMessage, PushMessageParams};
use serde_json::{Value, json};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where Prometheus listens, in a namespace of the test.
const PROMETHEUS: &str = "127.0.0.1:9090";

fn deploy(path: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    all.canonicalize().unwrap().join(path)
}

/// Whether Prometheus and its tool are there. A failure under CI, a loud skip elsewhere.
fn installed(test: &str) -> bool {
    let there = |program| {
        let run = Command::new(program).arg("--version").output();
        run.is_ok_and(|output| output.status.success())
    };
    if there("prometheus") && there("promtool") {
        return true;
    }
    let ci = std::env::var_os("CI").is_some();
    assert!(
        !ci,
        "{test} needs the package `prometheus`, which CI installs"
    );
    eprintln!("SKIPPED: {test} needs the package `prometheus`");
    false
}

fn promtool(line: &[&str], file: &str) {
    let output = Command::new("promtool")
        .args(line)
        .arg(deploy(file))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{file}: {said}");
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(deploy("grafana/hyphae.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn the_dashboard_explains_itself_and_its_panels_do_not_overlap() {
    let dashboard = dashboard();
    let (mut ids, mut titles, mut places) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard, "panels") {
        let title = text(panel, "title");
        assert!(titles.insert(title), "{title} twice");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: id");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && places.insert((x, y)), "{title} at {x} {y}");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(panel, "description").len() > 20, "{title}: says why");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(!list(panel, "targets").is_empty(), "{title}: asks nothing");
    }
    assert!(ids.len() > 40);
}

#[test]
fn the_alerts_do_what_their_cases_say() {
    if !installed("the_alerts_do_what_their_cases_say") {
        return;
    }
    promtool(&["check", "config"], "prometheus/prometheus.yml");
    promtool(&["test", "rules"], "prometheus/hyphae.rules.test.yml");
}

#[test]
fn every_alert_has_a_case_and_a_way_out() {
    let read = |path: &str| std::fs::read_to_string(deploy(path)).unwrap();
    let rules = read("prometheus/hyphae.rules.yml");
    let cases = read("prometheus/hyphae.rules.test.yml");
    let page = read("../docs/operations.md");
    let names: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 20, "{}", names.len());
    for name in names {
        assert!(cases.contains(&format!("name: {name}\n")), "{name}: a case");
        let anchor = name.to_lowercase();
        let runbook = format!("runbook: docs/operations.md#{anchor}\n");
        assert!(rules.contains(&runbook), "{name}: {runbook}");
        assert!(
            page.contains(&format!("\n### {name}\n")),
            "{name}: what to do"
        );
    }
}

/// Prometheus in a namespace; killed when dropped.
struct Prometheus<'a> {
    child: Child,
    inside: &'a Namespace,
    log: PathBuf,
}

impl<'a> Prometheus<'a> {
    fn start(inside: &'a Namespace, directory: &Path, targets: &[&str]) -> Self {
        let targets = targets.join("\", \"");
        let rules = deploy("prometheus/hyphae.rules.yml");
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n  - job_name: hyphae\n    static_configs: [{{ targets: [\"{targets}\"] }}]\n",
            rules.display()
        );
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let log = directory.join("prometheus.log");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        let child = inside.run(move || command.spawn()).unwrap().unwrap();
        Self { child, inside, log }
    }

    /// What its interface answers; null while it does not.
    fn ask(&self, path: String) -> Value {
        let get = move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(PROMETHEUS)?;
            // HTTP/1.0: the answer ends with the connection, and comes in one piece.
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {PROMETHEUS}\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let answer = self.inside.run(get).unwrap().unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    /// The values that a query has now; `None` while there is no answer.
    fn values(&self, query: &str) -> Option<Vec<f64>> {
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        let query: String = query.bytes().map(byte).collect();
        let answer = self.ask(format!("/api/v1/query?query={query}"));
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        let result = answer["data"]["result"].as_array()?;
        let value = |sample: &Value| sample["value"][1].as_str()?.parse().ok();
        Some(result.iter().filter_map(value).collect())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The queries of a panel as the dashboard would send them for all nodes and workers.
fn queries(panel: &Value) -> Vec<String> {
    list(panel, "targets")
        .iter()
        .map(|target| {
            text(target, "expr")
                .replace("$__rate_interval", "30s")
                .replace("$instance", ".*")
                .replace("$worker", ".*")
        })
        .collect()
}

/// Panels whose lines are all at zero on a node that has no trouble, and some that other tests provoke
/// (TCP links, small links, several workers): for them it is enough that the series are there.
const QUIET: [&str; 12] = [
    "Drained",
    "Lost at the kernel",
    "Rings that were full",
    "Between workers",
    "Frames in two parts",
    "Waiting for the workers",
    "State files",
    "Reloads of the configuration",
    "Loss by peer",
    "Stream links",
    "Stream connections coming and going",
    "Frames over streams",
];

/// Three nodes in a row, the last of which knows topics, and a fourth that the relay refuses.
fn start() -> Mesh {
    let mut mesh = Mesh::new(4, &[(0, 1), (1, 2), (1, 3)]);
    mesh.metrics = "0.0.0.0:9469";
    let unwanted = mesh.keys[3];
    mesh.start_with(0, FAMILIES);
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

fn connect(mesh: &Mesh) {
    let reaches = |from: usize, to: usize| {
        let address = mesh.keys[to].address().ip();
        let ping = mesh.node(from).ping(address, Duration::from_millis(500));
        ping.is_ok()
    };
    eventually("client and server reach each other", PATIENCE, || {
        reaches(0, 2) && reaches(2, 0)
    });
    // The hosts too: their devices get address and route a moment later.
    let far = mesh.node(2).address().to_string();
    eventually("the hosts reach each other", PATIENCE, || {
        answers(mesh, &far)
    });
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
        let message = OutgoingMessage {
            dst: Destination::Pk(mesh.keys[2].to_string()),
            topic: Some(topic.into()),
            payload: "hello".into(),
        };
        let params = PushMessageParams {
            message,
            reply_timeout: None,
        };
        mesh.node(0).client.push_message(params).unwrap();
    }
    // A session that there was not before.
    let near = mesh.node(1).address();
    mesh.node(0).ping(near, PATIENCE).unwrap();
    // A call that fails.
    let nonsense = json!({ "endpoint": "nonsense" });
    let refused: Result<Value, _> = mesh.node(1).client.call("deletePeer", nonsense);
    assert!(refused.is_err());
    // A node that does not exist: the host is told so.
    assert!(!answers(mesh, "400:dead::1"));
}

/// Whether the first host gets an answer to a ping.
fn answers(mesh: &Mesh, address: &str) -> bool {
    let mut ping = Command::new("ping");
    ping.args(["-6", "-c", "1", "-W", "1", address]);
    ping.stdout(Stdio::null()).stderr(Stdio::null());
    let status = mesh.namespaces[0].run(move || ping.status()).unwrap();
    status.unwrap().success()
}

#[test]
fn every_panel_has_data_and_every_alert_is_evaluated() {
    let name = "every_panel_has_data_and_every_alert_is_evaluated";
    if !privileged(name) || !installed(name) {
        return;
    }
    let mut mesh = start();
    connect(&mesh);
    let directory = tempfile::tempdir().unwrap();
    let outside = Namespace::new().unwrap();
    for (n, node) in (0..3).zip(&mesh.namespaces) {
        let place = |host| (IpAddr::V4(Ipv4Addr::new(198, 18, 20 + n, host)), 24);
        let name = format!("node{n}");
        node.join("watch", place(1), &outside, &name, place(2))
            .unwrap();
    }
    let targets = ["198.18.20.1:9469", "198.18.21.1:9469", "198.18.22.1:9469"];
    let prometheus = Prometheus::start(&outside, directory.path(), &targets);
    eventually("Prometheus scrapes three nodes", PATIENCE, || {
        prometheus.values("up == 1").is_some_and(|up| up.len() == 3)
    });
    // A node that loses everything comes back: peers and sessions end, and others begin.
    traffic(&mesh);
    mesh.kill(2);
    mesh.start_with(2, FAMILIES);
    connect(&mesh);

    let dashboard = dashboard();
    // What is still to be seen: title, query, and whether a value above zero is wanted.
    let mut waiting: Vec<_> = list(&dashboard, "panels")
        .iter()
        .filter(|panel| panel["type"] != "row")
        .flat_map(|panel| {
            queries(panel)
                .into_iter()
                .map(move |query| (text(panel, "title"), query))
        })
        .collect();
    let titles: BTreeSet<_> = waiting.iter().map(|(title, _)| *title).collect();
    assert!(QUIET.iter().all(|title| titles.contains(title)));
    let mut still: BTreeSet<_> = titles
        .into_iter()
        .filter(|title| !QUIET.contains(title))
        .collect();
    let deadline = Instant::now() + 2 * PATIENCE;
    while !waiting.is_empty() {
        assert!(
            Instant::now() < deadline,
            "not seen: {waiting:#?}, nothing but zero in {still:?}\n{}",
            prometheus.log()
        );
        traffic(&mesh);
        // A peer goes and comes back.
        let peer = json!({ "endpoint": format!("udp://198.18.2.1:9670#{}", mesh.keys[1]) });
        for method in ["deletePeer", "addPeer"] {
            let done: Result<bool, _> = mesh.node(2).client.call(method, &peer);
            assert!(done.unwrap(), "{method}");
        }
        connect(&mesh);
        waiting.retain(|(title, query)| {
            let values = prometheus.values(query).unwrap_or_default();
            if values.iter().any(|value| value.is_finite() && *value > 0.0) {
                still.remove(title);
            }
            let any = values.iter().any(|value| value.is_finite());
            // Lines at zero are asked for again until one of their panel has moved.
            !any || still.contains(title)
        });
    }
    alerts(&prometheus);
}

/// Every rule is evaluated without an error, and none of those about broken planes has a reason.
fn alerts(prometheus: &Prometheus<'_>) {
    let quiet = [
        "HyphaeNodeDown",
        "HyphaePlaneDetached",
        "HyphaeRingDetached",
        "HyphaeNoPeers",
    ];
    let mut rules = Vec::new();
    eventually("every rule is evaluated", PATIENCE, || {
        let answer = prometheus.ask("/api/v1/rules?type=alert".to_owned());
        let groups = list(&answer["data"], "groups").iter();
        rules = groups
            .flat_map(|group| list(group, "rules").to_vec())
            .collect();
        let settled = |rule: &Value| {
            let name = text(rule, "name");
            rule["health"] != "unknown" && (!quiet.contains(&name) || rule["state"] == "inactive")
        };
        rules.len() > 20 && rules.iter().all(settled)
    });
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}
