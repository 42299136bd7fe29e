//! Covers: who gets through the listeners for RPC of a real node, and what others cannot do to them: users
//! of this host, closed callers, callers of other hosts, pages of browsers, floods of connections, bodies
//! and batches. What the methods do is tested in rpc.rs; each check alone, in the daemon.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::node::{Lines, Node, exchange, request};
use common::{TIMEOUT, binary, eventually, file, privileged};
use hyphae::lab::Namespace;
use hyphae_rpc::{Base64, Client, code};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use serde_json::{Value, json};

/// A user that no configuration of these tests names.
const NOBODY: u32 = 65_534;
/// One that some do.
const SOMEBODY: u32 = 4242;

/// Does something as another user, on a thread that is that user's.
fn as_user<T: Send + 'static>(uid: u32, act: impl FnOnce() -> T + Send + 'static) -> T {
    let acting = move || {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        act()
    };
    std::thread::spawn(acting).join().unwrap()
}

/// Lets other users get as far as to the socket directory.
fn open_to_others(node: &Node) {
    for directory in [
        node.directory.path().to_owned(),
        node.directory.path().join("run"),
    ] {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

fn call(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

fn get_info() -> String {
    request("POST", "/rpc", &call("getInfo", &json!({})))
}

fn over_tcp(at: SocketAddr, request: &str) -> (u16, String) {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    exchange(stream, request)
}

fn over_unix(at: &Path, request: &str) -> (u16, String) {
    let stream = UnixStream::connect(at).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    exchange(stream, request)
}

/// As many descriptors as this process may have.
fn many_descriptors() {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let current = maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

#[test]
fn other_users_of_the_host_are_refused_unless_named() {
    if !privileged() {
        return;
    }
    let config = format!("[rpc]\nallow_uids = [{SOMEBODY}, {NOBODY}]\n");
    for (config, named) in [("", false), (config.as_str(), true)] {
        let node = Node::with(None, config);
        open_to_others(&node);
        let [rpc, rest, metrics] = node.listeners;
        let socket = node.socket();
        let admin = || request("GET", "/api/v1/admin", "");
        let asked = move |uid: u32| {
            let socket = socket.clone();
            as_user(uid, move || {
                let unix = UnixStream::connect(&socket).ok();
                let unix = unix.map_or(0, |stream| exchange(stream, &get_info()).0);
                [
                    over_tcp(rpc, &get_info()).0,
                    over_tcp(rest, &admin()).0,
                    unix,
                ]
            })
        };
        assert_eq!(asked(0), [200, 200, 200]);
        let somebody = if named { [200; 3] } else { [403, 403, 0] };
        assert_eq!(asked(SOMEBODY), somebody);
        // Named or not: that number stands for users of every other user namespace.
        let [over_rpc, over_rest, unix] = asked(NOBODY);
        assert_eq!((over_rpc, over_rest), (403, 403));
        assert_eq!(unix, if named { 403 } else { 0 });
        // What says why names the way out.
        let (_, said) = as_user(NOBODY, move || over_tcp(rpc, &get_info()));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["error"]["code"], code::DENIED, "{said}");
        let read = as_user(NOBODY, move || {
            over_tcp(metrics, &request("GET", "/metrics", "")).0
        });
        assert_eq!(read, 200);
    }
}

#[test]
fn a_caller_that_has_closed_its_socket_changes_nothing() {
    if !privileged() {
        return;
    }
    let node = Node::start();
    let [rpc, rest, _] = node.listeners;
    let status = node.client().node_status().unwrap();
    let plane = Pid::from_raw(i32::try_from(status.pid).unwrap()).unwrap();
    // All of it is in the accept queue before the node looks at it.
    rustix::process::kill_process(plane, Signal::STOP).unwrap();
    as_user(SOMEBODY, move || {
        for _ in 0..20 {
            let accept = call("setDefaultTopicAction", &json!({ "accept": false }));
            let mut stream = TcpStream::connect(rpc).unwrap();
            let accept = request("POST", "/rpc", &accept);
            stream.write_all(accept.as_bytes()).unwrap();
            let mut stream = TcpStream::connect(rest).unwrap();
            let path = "/api/v1/messages/topics/default";
            let accept = request("PUT", path, r#"{"accept":false}"#);
            stream.write_all(accept.as_bytes()).unwrap();
        }
    });
    rustix::process::kill_process(plane, Signal::CONT).unwrap();
    // Behind them in both queues.
    for at in [rpc, rest] {
        let (status, _) = over_tcp(at, &request("GET", "/health", ""));
        assert!([200, 404].contains(&status));
    }
    assert!(node.client().get_default_topic_action().unwrap());
}

#[test]
fn beyond_loopback_only_the_token_admits() {
    if !privileged() {
        return;
    }
    let token = "0123456789abcdef0123456789abcdef";
    let (token_file, state) = (file(token), tempfile::tempdir().unwrap());
    let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let ip = |last| IpAddr::from([192, 0, 2, last]);
    here.join("link0", (ip(1), 24), &there, "link1", (ip(2), 24))
        .unwrap();
    let place = SocketAddr::new(ip(1), 8990);
    let start = |config: &str| {
        let config = file(config);
        let mut node = Command::new(binary());
        node.args([
            "up",
            "--no-tun",
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "off",
        ])
        .args(["--rest", "off", "--rpc", &place.to_string(), "--config"])
        .arg(config.path())
        .arg("--state-dir")
        .arg(state.path().join("state"))
        .arg("--socket-dir")
        .arg(state.path().join("run"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
        (here.run(move || node.spawn()).unwrap().unwrap(), config)
    };
    let (without, _config) = start("");
    let output = without.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("rpc.token_file"),
        "{said}"
    );

    let path = token_file.path().display();
    let (mut node, _config) = start(&format!("[rpc]\ntoken_file = \"{path}\"\n"));
    let client = Client::new(state.path().join("run/rpc.sock"));
    eventually("the node answers", TIMEOUT, || client.get_info().is_ok());
    let ask = |inside: &Namespace, header: &'static str| {
        let request = get_info().replacen("Connection", &format!("{header}Connection"), 1);
        inside.run(move || over_tcp(place, &request).0).unwrap()
    };
    eventually("it listens", TIMEOUT, || {
        there
            .run(move || TcpStream::connect(place).is_ok())
            .unwrap()
    });
    let right = "Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n";
    for from in [&there, &here] {
        assert_eq!(ask(from, right), 200);
        assert_eq!(ask(from, ""), 401);
        assert_eq!(ask(from, "Authorization: Bearer 0123\r\n"), 401);
    }
    node.kill().unwrap();
    node.wait().unwrap();
}

#[test]
fn requests_of_pages_are_refused_at_every_listener() {
    let node = Node::start();
    let [rpc, rest, metrics] = node.listeners;
    let get = |path: &str, headers: &str| {
        format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")
    };
    for (at, path) in [
        (rpc, "/health"),
        (rest, "/api/v1/admin"),
        (metrics, "/metrics"),
    ] {
        let ask = |headers: &str| over_tcp(at, &get(path, headers)).0;
        assert_eq!(ask("Host: localhost\r\n"), 200, "{path}");
        assert_eq!(ask("Host: evil.example\r\n"), 403, "{path}");
        assert_eq!(
            ask("Host: localhost\r\nOrigin: http://localhost\r\n"),
            403,
            "{path}"
        );
        assert_eq!(
            ask("Host: localhost\r\nHost: evil.example\r\n"),
            400,
            "{path}"
        );
        assert_eq!(ask(""), 400, "{path}");
    }
    // Names are anything on the socket, which no page reaches.
    let ask = |headers: &str| over_unix(&node.socket(), &get("/health", headers)).0;
    assert_eq!(ask("Host: node\r\n"), 200);
    assert_eq!(ask("Host: node\r\nOrigin: null\r\n"), 403);
    assert_eq!(ask("Host: node\r\nHost: other\r\n"), 400);
    let plain = get_info().replace("application/json", "application/jsonp");
    assert_eq!(over_tcp(rpc, &plain).0, 415);
    assert_eq!(over_unix(&node.socket(), &plain).0, 415);
}

#[test]
fn idle_connections_keep_nobody_out() {
    if !privileged() {
        return;
    }
    many_descriptors();
    let node = Node::with(Some(1024), "");
    let [rpc, rest, metrics] = node.listeners;
    let socket = node.socket();
    // Of root, on its own socket, and of another user on the others, all at once.
    let silent = |_| UnixStream::connect(&socket);
    let unix: Vec<_> = (0..1500).map(silent).collect();
    let tcp = as_user(SOMEBODY, move || {
        let places = [rpc, rest, metrics].into_iter().cycle().take(1500);
        let timeout = Duration::from_millis(200);
        let idle = places.map(|at| TcpStream::connect_timeout(&at, timeout));
        idle.collect::<Vec<_>>()
    });
    for _ in 0..3 {
        assert!(node.client().get_info().is_ok());
    }
    assert_eq!(over_tcp(rpc, &get_info()).0, 200);
    assert_eq!(over_tcp(rest, &request("GET", "/api/v1/admin", "")).0, 200);
    assert!(unix.iter().any(Result::is_ok) && tcp.iter().any(Result::is_ok));
}

#[test]
fn a_caller_is_answered_when_no_descriptors_are_left() {
    let node = Node::start();
    let listening = UnixStream::connect(node.socket()).unwrap();
    let pid = socket_peercred(&listening).unwrap().pid;
    drop(listening);
    let process = pid.as_raw_nonzero();
    let open = || -> Vec<(u64, PathBuf)> {
        let all = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let all = all.filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, entry.path().read_link().ok()?))
        });
        all.collect()
    };
    let reserved = || {
        let open = open().into_iter();
        open.filter(|(number, target)| *number > 2 && target == Path::new("/dev/null"))
            .count()
    };
    let reserve = 16;
    eventually("the reserve is full", TIMEOUT, || reserved() >= reserve);
    let before = reserved();
    let last = open().into_iter().map(|(number, _)| number).max();
    let limit = |current| {
        let all = rustix::process::getrlimit(Resource::Nofile);
        let new = Rlimit { current, ..all };
        rustix::process::prlimit(Some(pid), Resource::Nofile, new).unwrap()
    };
    let limits = limit(last.map(|last| last + 1));
    // Descriptors below the limit may be free: until one of the reserve is used.
    let mut connections = Vec::new();
    while reserved() == before {
        assert!(connections.len() < 512, "the reserve was not used");
        connections.push(Lines::connect(&node));
        let lines = connections.last_mut().unwrap();
        let answer = lines.ask(&call("getInfo", &json!({})));
        assert!(answer["result"].is_object(), "{answer}");
    }
    drop(connections);
    eventually("the reserve is full again", TIMEOUT, || {
        reserved() == before
    });
    limit(limits.current);
}

#[test]
fn bodies_that_never_end_hold_back_no_other_listener_and_end() {
    let node = Node::start();
    let [rpc, ..] = node.listeners;
    let head = "POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    // Long enough to hold the room for long requests, and then nothing more.
    let mut endless: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(rpc).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let chunk = "x".repeat((1 << 20) + 1);
            write!(stream, "{head}{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
            stream
        })
        .collect();
    let key = node.client().get_info().unwrap().node_pubkey;
    let payload = Base64::encode(vec![7; 2 << 20]);
    let message = json!({ "message": { "dst": { "pk": key }, "payload": payload } });
    let push = request("POST", "/rpc", &call("pushMessage", &message));
    for (status, answer) in [over_unix(&node.socket(), &push), over_tcp(rpc, &push)] {
        assert_eq!(status, 200);
        assert!(answer.contains("result"), "{answer}");
    }
    let mut ended = String::new();
    endless[0].read_to_string(&mut ended).unwrap();
    assert!(ended.starts_with("HTTP/1.1 408"), "{ended}");
}

#[test]
fn a_batch_stops_where_its_answer_is_long_and_loses_nothing() {
    let node = Node::start();
    let client = node.client();
    let key = client.get_info().unwrap().node_pubkey;
    let message = json!({ "dst": { "pk": key }, "payload": "aGk=" });
    client
        .call::<Value>("pushMessage", json!({ "message": message }))
        .unwrap();
    let pop = |timeout: u64| json!({ "peek": timeout > 0, "timeout": timeout });
    // It has arrived.
    assert!(client.call::<Value>("popMessage", pop(60)).unwrap()["id"].is_string());
    let discover: Value = serde_json::from_str(&call("rpc.discover", &json!({}))).unwrap();
    let mut batch = vec![discover; 999];
    batch.push(serde_json::from_str(&call("popMessage", &pop(0))).unwrap());
    let body = request("POST", "/rpc", &json!(batch).to_string());
    let (status, answer) = over_tcp(node.listeners[0], &body);
    assert_eq!(status, 200);
    assert!(answer.len() < 6 << 20, "{} bytes", answer.len());
    let answers: Vec<Value> = serde_json::from_str(&answer).unwrap();
    assert_eq!(answers.len(), 1000);
    assert_eq!(answers[0]["result"]["openrpc"], "1.2.6");
    for refused in [&answers[998], &answers[999]] {
        assert_eq!(refused["error"]["data"]["kind"], "batch_answer_limit");
    }
    // Not called, so still there.
    assert!(client.call::<Value>("popMessage", pop(0)).unwrap()["id"].is_string());
}

#[test]
fn rest_lists_peers_for_stock_clients_and_takes_them_back() {
    let node = Node::start();
    let added = json!({ "endpoint": "quic://127.0.0.1:9" });
    assert_eq!(node.rest("POST", "/admin/peers", Some(added)).0, 204);
    let (status, peers) = node.rest("GET", "/admin/peers", None);
    assert_eq!(status, 200);
    let endpoint = &peers[0]["endpoint"];
    assert_eq!(endpoint["proto"], "quic");
    assert_eq!(endpoint["addr"]["socket"], "127.0.0.1:9");
    assert_eq!(endpoint["socketAddr"], "127.0.0.1:9");
    assert_eq!(peers[0]["type"], "static");
    assert_eq!(node.client().get_peers().unwrap()[0].endpoint.proto, "udp");
    for expected in [204, 404] {
        let path = "/admin/peers/quic%3A%2F%2F127.0.0.1%3A9";
        assert_eq!(node.rest("DELETE", path, None).0, expected);
    }
    let tls = json!({ "endpoint": "tls://127.0.0.1:9" });
    assert_eq!(node.rest("POST", "/admin/peers", Some(tls)).0, 400);
    // Its other commands end as its user expects of a node that has no proxies.
    assert_eq!(node.rest("GET", "/admin/proxy", None), (200, json!([])));
    let connect = json!({ "remote": null });
    assert_eq!(node.rest("POST", "/admin/proxy", Some(connect)).0, 404);
    assert_eq!(node.rest("DELETE", "/admin/proxy", None).0, 204);
    assert_eq!(node.rest("DELETE", "/admin/proxy/probe", None).0, 204);
    assert_eq!(node.rest("GET", "/admin/proxy/probe", None).0, 501);
    for list in ["selected", "fallback", "queried"] {
        let (status, rows) = node.rest("GET", &format!("/admin/routes/{list}"), None);
        assert!(status == 200 && rows.is_array(), "{list}");
    }
    let (_, packets) = node.rest("GET", "/admin/stats/packets", None);
    assert!(packets["bySource"].is_array() && packets["byDestination"].is_array());
}
